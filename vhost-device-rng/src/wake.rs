//! What wakes a device that has requests waiting: file descriptors that the session watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

/// A source's readiness, looked for only while somebody waits: the session watches this for as
/// long as the device lives, and a source that has data would else wake it all the time.
#[derive(Debug)]
pub(crate) struct Readiness {
    epoll: OwnedFd,
    armed: bool,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            armed: false,
        })
    }

    /// Becomes readable when `source` does. False if the source cannot be watched.
    pub(crate) fn arm(&mut self, source: BorrowedFd<'_>) -> bool {
        self.armed = self.armed
            || epoll::add(&self.epoll, source, EventData::new_u64(0), EventFlags::IN).is_ok();
        self.armed
    }

    /// Is not readable until it is armed again.
    pub(crate) fn disarm(&mut self, source: BorrowedFd<'_>) {
        if self.armed {
            // Fails only on a descriptor that is not watched.
            let _ = epoll::delete(&self.epoll, source);
            self.armed = false;
        }
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(fd: &impl AsFd) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn test_readiness_is_silent_until_it_is_armed() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut readiness = Readiness::new().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        assert!(!is_readable(&readiness));
        assert!(readiness.arm(reader.as_fd()));
        assert!(readiness.arm(reader.as_fd()));
        assert!(is_readable(&readiness));
        readiness.disarm(reader.as_fd());
        assert!(!is_readable(&readiness));
        drop(writer);
        assert!(!is_readable(&readiness), "not even for a hang-up");
    }
}
