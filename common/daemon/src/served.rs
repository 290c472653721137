//! How the main thread watches a session, and ends it.
//!
//! A session ends by itself when its front-end has left or the process stops, unless it sleeps. A
//! hostile front-end can make it sleep: it fills an eventfd, clears its `O_NONBLOCK` in time, and
//! the session's next write to it blocks. So the main thread watches the connection, too, and
//! interrupts the session's thread with a signal that does nothing else. It repeats the signal
//! until the session has ended, as the next write may sleep again.
//!
//! The main thread may not see that a front-end has left: a message in our socket's queue can carry
//! the front-end's own end of the connection as a file descriptor, which keeps the connection open.
//! The session closes such a connection (see [`Patience`]), but not while it sleeps. So the main
//! thread also interrupts a session that stays in one call on an fd of its front-end while
//! something waits in its socket.
//!
//! What no signal interrupts is left alone: a sleep in the hardware's driver, or in a file system
//! that does not answer.
//!
//! [`Patience`]: vhost_device_backend::Patience

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::raw::{c_int, c_void};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ioctl_fionread, retry_on_intr};
use vhost_device_backend::Signalling;
use vmm_sys_util::signal::{
    Error, Killable, block_signal, register_signal_handler, unblock_signal,
};

/// What interrupts a session. Nobody else has a use for it, and it does nothing to a process that
/// has no handler for it. Not a real-time signal: those are queued again and again while they
/// cannot be delivered.
const INTERRUPT: c_int = libc::SIGURG;

/// How long a session has to end by itself. One that is in no trouble takes no time.
const GRACE: Duration = Duration::from_millis(300);

/// How soon a session is interrupted again. It may have a call left for each message that its
/// front-end has sent.
const AGAIN: Duration = Duration::from_millis(20);

extern "C" fn interrupted(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// Gets ready to interrupt sessions. Call it before any thread is started, so that the signal
/// interrupts only threads that unblock it.
pub(crate) fn prepare() -> io::Result<()> {
    // Without SA_RESTART: the call that is interrupted fails.
    register_signal_handler(INTERRUPT, interrupted)?;
    match block_signal(INTERRUPT) {
        Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => Ok(()),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// The session of a guest, on a thread of its own.
pub(crate) struct Served<T> {
    thread: JoinHandle<T>,
    /// Our end of the connection once more.
    socket: UnixStream,
    signalling: Signalling,
    /// The process stops.
    stops: bool,
    /// Since when it has a reason to move, and when to see whether it does.
    due: Option<(Instant, Instant)>,
    /// In which call on an fd of its front-end it was seen last.
    call: Option<u64>,
}

impl<T: Send + 'static> Served<T> {
    /// Runs `session` on a thread called `name`.
    pub(crate) fn start(
        name: String,
        stream: UnixStream,
        session: impl FnOnce(UnixStream, Signalling) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let socket = stream.try_clone()?;
        let signalling = Signalling::default();
        let told = signalling.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            // Fails only for a signal that does not exist.
            let _ = unblock_signal(INTERRUPT);
            session(stream, told)
        })?;
        Ok(Self {
            thread,
            socket,
            signalling,
            stops: false,
            due: None,
            call: None,
        })
    }
}

impl<T> Served<T> {
    /// Something has happened on the connection: a message, or its end.
    pub(crate) fn stirred(&mut self) {
        if self.due.is_none() {
            let now = Instant::now();
            self.due = Some((now, now + GRACE));
        }
    }

    /// The process stops.
    pub(crate) fn is_to_stop(&mut self) {
        self.stops = true;
        self.stirred();
    }

    /// When to look at it again, if it has a reason to move.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.due.map(|(_, next)| next)
    }

    /// Interrupts it if it does not move although it should.
    pub(crate) fn look(&mut self, now: Instant) {
        let Some((since, next)) = self.due else {
            return;
        };
        if now < next {
            return;
        }
        let must_end = self.stops || self.front_end_has_left();
        if !must_end && ioctl_fionread(&self.socket).is_ok_and(|queued| queued == 0) {
            (self.due, self.call) = (None, None);
            return;
        }
        let before = std::mem::replace(&mut self.call, self.signalling.current());
        if must_end || (self.call.is_some() && self.call == before) {
            // Fails only for a thread that has ended, of which we are told.
            let _ = self.thread.kill(INTERRUPT);
        }
        // Less often what does not help.
        let pause = AGAIN.max((now - since) / 64);
        self.due = Some((since, now + pause));
    }

    fn front_end_has_left(&self) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.socket, gone)];
        let polled = retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())));
        polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(gone))
    }

    /// Waits for its end.
    pub(crate) fn join(self) -> thread::Result<T> {
        self.thread.join()
    }
}

/// The connection, to be watched.
impl<T> AsFd for Served<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
