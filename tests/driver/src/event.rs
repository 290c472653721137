//! Eventfds: how a guest kicks its device and how a device calls its guest.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A non-blocking eventfd.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes an eventfd whose counter is zero.
    ///
    /// # Panics
    ///
    /// Panics if the process has no file descriptor left.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .unwrap_or_else(|e| panic!("cannot make an eventfd: {e}"));
        EventFd(fd)
    }

    /// Adds one to the counter.
    pub fn signal(&self) {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            // A counter that is full is signalled.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(e) => panic!("cannot signal an eventfd: {e}"),
        }
    }

    /// Takes the counter's value and sets it to zero; zero if nothing was signalled.
    pub fn take(&self) -> u64 {
        let mut value = [0; 8];
        match rustix::io::read(&self.0, &mut value) {
            Ok(_) => u64::from_ne_bytes(value),
            Err(Errno::AGAIN) => 0,
            Err(e) => panic!("cannot read an eventfd: {e}"),
        }
    }

    /// Waits until the counter is not zero; false if `timeout` ran out first. The counter keeps
    /// its value.
    pub fn wait(&self, timeout: Duration) -> bool {
        wait_readable(self, timeout).unwrap_or_else(|e| panic!("cannot poll an eventfd: {e}"))
    }

    /// A second file descriptor for the same counter.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(EventFd(self.0.try_clone()?))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for EventFd {
    /// Takes over an eventfd made elsewhere; it must be non-blocking.
    fn from(fd: OwnedFd) -> Self {
        EventFd(fd)
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

/// Waits until `fd` can be read or its other end is closed; false if `timeout` ran out first.
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_signals_and_times_out() {
        let event = EventFd::new();
        assert_eq!(event.take(), 0);
        assert!(!event.wait(Duration::from_millis(1)));
        event.signal();
        event.duplicate().unwrap().signal();
        assert!(event.wait(Duration::from_secs(10)));
        assert_eq!(event.take(), 2);
        assert_eq!(event.take(), 0);
    }
}
