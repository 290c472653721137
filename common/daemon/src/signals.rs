//! The signals that end a daemon, as a file descriptor among the others.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{SIGINT, SIGTERM, c_int};

/// The signals that end the daemon, and their names for the log.
const STOP: [(c_int, &str); 2] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")];

/// The stop signals, blocked in this thread and in those that it will start.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the stop signals and makes them readable instead. To be called before any thread
    /// is started.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set that it is given, and cannot fail on one;
        // `sigaddset` gets the initialised set and signals that exist.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for (signal, _) in STOP {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            set.assume_init()
        };
        // SAFETY: the set is initialised, and no old set is asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: -1 asks for a new descriptor; the set is initialised.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The name of a stop signal that has come, if any.
    pub(crate) fn take(&self) -> Option<&'static str> {
        // A `signalfd_siginfo` begins with the signal's number, `ssi_signo`.
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let length = rustix::io::read(&self.0, &mut info).ok()?;
        let number = u32::from_ne_bytes(*info[..length].first_chunk()?);
        STOP.iter()
            .find(|(signal, _)| u32::try_from(*signal) == Ok(number))
            .map(|(_, name)| *name)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_stop_signal_is_read_by_name() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.take(), None);
        // SAFETY: sends a signal to this thread, which has blocked it.
        let error = unsafe { libc::pthread_kill(libc::pthread_self(), SIGTERM) };
        assert_eq!(error, 0);
        assert_eq!(signals.take(), Some("SIGTERM"));
        assert_eq!(signals.take(), None);
    }
}
