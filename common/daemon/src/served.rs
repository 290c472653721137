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
//! something waits in its socket, and one that has not moved for longer than that patience.
//!
//! Closing an fd can sleep, too: a TCP connection with `SO_LINGER` whose peer does not read takes
//! as long as the front-end likes, for whoever closes it last. Closing a connection also closes the
//! fds in its queue. So the main thread closes no connection. The session's thread does, at its
//! end, and says so before ([`Stage::Closes`]), so that it is interrupted there.
//!
//! What no signal interrupts is left alone: a sleep in the hardware's driver, or in a file system
//! that does not answer.
//!
//! [`Patience`]: vhost_device_backend::Patience

use std::io;
use std::os::raw::{c_int, c_void};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use vhost_device_backend::{Patience, Signalling, Step};
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

/// How much longer than its [`Patience`] a session may stay where it is while something waits in
/// its socket. What it waits for then is not its hardware: that takes turns of milliseconds.
const SLACK: Duration = Duration::from_secs(1);

extern "C" fn interrupted(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// Gets ready for signals to sessions. Call it before any thread is started, so that [`INTERRUPT`]
/// interrupts only threads that unblock it.
pub(crate) fn prepare() -> io::Result<()> {
    // A front-end asks for a region for requests in flight, and says how long it is. Where the user
    // has limited the size of files (`ulimit -f`), the call that makes it fails; it must not end
    // the process with all its guests.
    register_signal_handler(libc::SIGXFSZ, interrupted)?;
    // Without SA_RESTART: the call that is interrupted fails.
    register_signal_handler(INTERRUPT, interrupted)?;
    match block_signal(INTERRUPT) {
        Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => Ok(()),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// What a session's thread says at its end, however that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It closes the connection, and with it what the front-end has left in there.
    Closes,
    /// Nothing of it is left.
    Ended,
}

/// Our end of a connection once more, until the session's thread has closed it.
#[derive(Clone, Debug)]
struct Connection(Arc<Mutex<Option<UnixStream>>>);

impl Connection {
    fn new(socket: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(Some(socket))))
    }

    fn take(&self) -> Option<UnixStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// `None` when it is closed. The lock is held for a call that waits for nobody.
    fn with<R>(&self, look: impl FnOnce(&UnixStream) -> R) -> Option<R> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.as_ref().map(look)
    }
}

/// The end of a session's thread, whether it returns or panics.
struct Leaving<F: Fn(Stage)> {
    connection: Connection,
    tell: F,
}

impl<F: Fn(Stage)> Drop for Leaving<F> {
    fn drop(&mut self) {
        (self.tell)(Stage::Closes);
        drop(self.connection.take());
        (self.tell)(Stage::Ended);
    }
}

/// The session of a guest, on a thread of its own.
pub(crate) struct Served<T> {
    thread: JoinHandle<T>,
    connection: Connection,
    signalling: Signalling,
    /// It is to end: the process stops, or it has said so.
    ends: bool,
    /// Since when it has a reason to move, and when to see whether it does.
    due: Option<(Instant, Instant)>,
    /// Where it was seen last, and since when.
    seen: Option<(Step, Instant)>,
    /// It has stayed somewhere for too long before.
    is_slow: bool,
}

impl<T: Send + 'static> Served<T> {
    /// Runs `session` on a thread called `name`, which tells when it has ended.
    ///
    /// # Errors
    /// The system's, with the connection.
    pub(crate) fn start(
        name: String,
        stream: UnixStream,
        tell: impl Fn(Stage) + Send + 'static,
        session: impl FnOnce(UnixStream, Signalling) -> T + Send + 'static,
    ) -> Result<Self, (io::Error, UnixStream)> {
        let other = match stream.try_clone() {
            Ok(other) => other,
            Err(error) => return Err((error, stream)),
        };
        let connection = Connection::new(stream);
        let signalling = Signalling::default();
        let told = signalling.clone();
        let closed = connection.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _leaving = Leaving {
                connection: closed,
                tell,
            };
            // Fails only for a signal that does not exist.
            let _ = unblock_signal(INTERRUPT);
            session(other, told)
        });
        match thread {
            Ok(thread) => Ok(Self {
                thread,
                connection,
                signalling,
                ends: false,
                due: None,
                seen: None,
                is_slow: false,
            }),
            // It is there: no thread has taken it.
            Err(error) => match connection.take() {
                Some(stream) => Err((error, stream)),
                None => unreachable!("{error}"),
            },
        }
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

    /// It is to end, or has said that it does.
    pub(crate) fn is_to_end(&mut self) {
        self.ends = true;
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
        let must_end = self.ends || self.connection.with(has_left) != Some(false);
        if !must_end && self.connection.with(is_empty) == Some(true) {
            (self.due, self.seen) = (None, None);
            return;
        }
        let step = self.signalling.step();
        let before = self.seen.filter(|(before, _)| *before == step);
        let (_, stays_since) = *self.seen.insert(before.unwrap_or((step, now)));
        // Once is enough: it may have as much before it as its front-end has sent.
        self.is_slow |= now.saturating_duration_since(stays_since) > Patience::default().0 + SLACK;
        let stays = before.is_some() && (step.is_call() || self.is_slow);
        if must_end || stays {
            // Fails only for a thread that has ended, of which we are told.
            let _ = self.thread.kill(INTERRUPT);
        }
        // Less often what does not help.
        let pause = AGAIN.max((now - since) / 64);
        self.due = Some((since, now + pause));
    }

    /// Has the connection watched, if it is open still.
    pub(crate) fn watch(
        &self,
        watch: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> io::Result<()> {
        self.connection.with(watch).unwrap_or(Ok(()))
    }

    /// Waits for its end, of which it has told.
    pub(crate) fn join(self) -> thread::Result<T> {
        self.thread.join()
    }
}

/// Whether nothing will come on a connection any more.
pub(crate) fn has_left(socket: &UnixStream) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    has_any_of(socket, gone).unwrap_or(false)
}

/// Whether a connection is in one of these states now.
pub(crate) fn has_any_of(socket: &UnixStream, states: PollFlags) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(socket, states)];
    retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))?;
    Ok(fds.iter().any(|fd| fd.revents().intersects(states)))
}

fn is_empty(socket: &UnixStream) -> bool {
    ioctl_fionread(socket).is_ok_and(|queued| queued == 0)
}
