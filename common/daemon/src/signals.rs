//! The signals that a daemon handles, as a file descriptor among the others.
//!
//! SIGTERM and SIGINT end it. SIGHUP ends it if it was started on a terminal, as that was closed;
//! without a terminal it only causes a line in the log. Under `nohup` SIGHUP stays ignored: it is
//! not blocked then, as the kernel queues a blocked signal even if it is ignored. SIGQUIT and all
//! other signals have the system's default action. The standard library ignores SIGPIPE from the
//! start: a write to a reader that has gone fails.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{SIGHUP, SIGINT, SIGTERM, c_int, sigset_t};
use rustix::fs::{Mode, OFlags, open};

/// The signals that are handled, and their names for the log.
const HANDLED: [(c_int, &str); 3] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT"), (SIGHUP, "SIGHUP")];

/// What a signal is to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It is to end; the signal's name.
    Stop(&'static str),
    /// SIGHUP, without a terminal.
    Hangup,
}

/// The signals that are handled, blocked in this thread and in those that it will start.
pub(crate) struct Signals {
    fd: OwnedFd,
    is_on_terminal: bool,
}

impl Signals {
    /// Blocks the signals and makes them readable instead. To be called before any thread is
    /// started.
    pub(crate) fn block() -> io::Result<Self> {
        let set = empty_set();
        let handled = HANDLED
            .iter()
            .filter(|(signal, _)| *signal != SIGHUP || !is_ignored(*signal));
        let set = handled.fold(set, |mut set, (signal, _)| {
            // SAFETY: the set is initialised, and the signal exists.
            unsafe { libc::sigaddset(&mut set, *signal) };
            set
        });
        change_mask(libc::SIG_BLOCK, &set)?;
        // SAFETY: -1 asks for a new descriptor; the set is initialised.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            is_on_terminal: is_on_terminal(),
        })
    }

    /// A signal that has come, if any.
    pub(crate) fn take(&self) -> Option<Signal> {
        // A `signalfd_siginfo` begins with the signal's number, `ssi_signo`.
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let length = rustix::io::read(&self.fd, &mut info).ok()?;
        let number = u32::from_ne_bytes(*info[..length].first_chunk()?);
        let (signal, name) = HANDLED
            .iter()
            .find(|(signal, _)| u32::try_from(*signal) == Ok(number))?;
        match *signal == SIGHUP && !self.is_on_terminal {
            true => Some(Signal::Hangup),
            false => Some(Signal::Stop(name)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Calls `start` with every signal blocked, so that a thread that it starts never handles one.
pub(crate) fn with_all_blocked<T>(start: impl FnOnce() -> T) -> io::Result<T> {
    let mut all = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set that it is given, and cannot fail on one.
    let all = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    };
    let before = change_mask(libc::SIG_BLOCK, &all)?;
    let started = start();
    change_mask(libc::SIG_SETMASK, &before)?;
    Ok(started)
}

fn empty_set() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set that it is given, and cannot fail on one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Whether the program that started this process made it ignore a signal.
fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::zeroed();
    // SAFETY: the signal exists, no new action is given, and there is room for the present one, of
    // which zeros are a good value.
    let action: libc::sigaction = unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Changes this thread's mask, and gives what it was.
fn change_mask(how: c_int, set: &sigset_t) -> io::Result<sigset_t> {
    let mut before = empty_set();
    // SAFETY: both sets are initialised, and stay where they are meanwhile.
    let error = unsafe { libc::pthread_sigmask(how, set, ptr::from_mut(&mut before)) };
    match error {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Whether this process has a controlling terminal, which can hang up: then `/dev/tty` can be
/// opened, whatever the standard streams are.
fn is_on_terminal() -> bool {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    open("/dev/tty", flags, Mode::empty()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a signal to this thread, which has blocked it.
    fn raise(signal: c_int) {
        // SAFETY: the thread is this one, and the signal exists.
        let error = unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
        assert_eq!(error, 0);
    }

    #[test]
    fn test_signals_are_read_by_name() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.take(), None);
        raise(SIGTERM);
        assert_eq!(signals.take(), Some(Signal::Stop("SIGTERM")));
        assert_eq!(signals.take(), None);
    }

    #[test]
    fn test_a_hangup_ends_only_what_is_on_a_terminal() {
        // Under `nohup` it is ignored, and would not come.
        // SAFETY: the signal exists, and has a default action.
        unsafe { libc::signal(SIGHUP, libc::SIG_DFL) };
        let signals = Signals::block().unwrap();
        for (is_on_terminal, expected) in [(true, Signal::Stop("SIGHUP")), (false, Signal::Hangup)]
        {
            raise(SIGHUP);
            let fd = signals.fd.try_clone().unwrap();
            let signals = Signals { fd, is_on_terminal };
            assert_eq!(signals.take(), Some(expected));
        }
    }

    #[test]
    fn test_a_thread_is_started_with_all_signals_blocked_and_its_starter_is_not() {
        let blocked = || {
            let mask = change_mask(libc::SIG_BLOCK, &empty_set()).unwrap();
            // SAFETY: the set is initialised, and the signal exists.
            unsafe { libc::sigismember(&mask, libc::SIGUSR1) == 1 }
        };
        let thread = with_all_blocked(|| std::thread::spawn(blocked)).unwrap();
        assert!(thread.join().unwrap());
        assert!(!blocked());
    }
}
