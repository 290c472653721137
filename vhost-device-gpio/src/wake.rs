//! File descriptors that wake the session: a flag, and a bundle of others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// One descriptor that is readable while any of many is.
#[derive(Debug)]
pub(crate) struct Bundle(OwnedFd);

impl Bundle {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: u16) -> io::Result<()> {
        let data = EventData::new_u64(token.into());
        Ok(epoll::add(&self.0, fd, data, EventFlags::IN)?)
    }

    /// Whether what is in it is looked at for something to read, or for room to write.
    pub(crate) fn watch(&self, fd: impl AsFd, token: u16, reading: bool) {
        let data = EventData::new_u64(token.into());
        let flags = match reading {
            true => EventFlags::IN,
            false => EventFlags::OUT,
        };
        // Fails only on a descriptor that is not in it.
        let _ = epoll::modify(&self.0, fd, data, flags);
    }

    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Fails only on a descriptor that is not in it.
        let _ = epoll::delete(&self.0, fd);
    }

    /// The token of one that is ready, each in its turn.
    pub(crate) fn ready(&self) -> Option<u16> {
        let mut events = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        let now = Timespec::default();
        match epoll::wait(&self.0, &mut events, Some(&now)) {
            Ok(1) => u16::try_from(events.first()?.data.u64()).ok(),
            _ => None,
        }
    }
}

impl AsFd for Bundle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readable while it is up.
#[derive(Debug)]
pub(crate) struct Flag {
    fd: OwnedFd,
    up: bool,
}

impl Flag {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            fd: eventfd(0, flags)?,
            up: false,
        })
    }

    pub(crate) fn set(&mut self, up: bool) {
        if self.up == up {
            return;
        }
        // Neither can fail: its count is 0 or 1, as `up` says.
        let _ = match up {
            true => rustix::io::write(&self.fd, &1_u64.to_ne_bytes()),
            false => rustix::io::read(&self.fd, &mut [0; 8]),
        };
        self.up = up;
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn becomes_readable(fd: &impl AsFd, seconds: i64) -> bool {
        let deadline = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&deadline)).unwrap() > 0
    }

    #[test]
    fn test_a_flag_is_readable_while_it_is_up() {
        let mut flag = Flag::new().unwrap();
        for up in [false, true, true, false, false, true] {
            flag.set(up);
            assert_eq!(becomes_readable(&flag, 0), up);
        }
    }

    #[test]
    fn test_a_bundle_tells_of_each_that_is_ready() {
        let bundle = Bundle::new().unwrap();
        let mut flags = [Flag::new().unwrap(), Flag::new().unwrap()];
        bundle.add(&flags[0], 7).unwrap();
        bundle.add(&flags[1], 9).unwrap();
        assert_eq!(bundle.ready(), None);
        assert!(!becomes_readable(&bundle, 0));
        flags.iter_mut().for_each(|flag| flag.set(true));
        assert!(becomes_readable(&bundle, 0));
        let mut seen = [bundle.ready(), bundle.ready()];
        seen.sort();
        assert_eq!(seen, [Some(7), Some(9)], "none starves the other");
        bundle.remove(&flags[0]);
        assert_eq!(bundle.ready(), Some(9));
        flags[1].set(false);
        assert_eq!(bundle.ready(), None);
        bundle.watch(&flags[1], 9, false);
        assert_eq!(bundle.ready(), Some(9), "there is room to write");
        bundle.watch(&flags[1], 9, true);
        assert_eq!(bundle.ready(), None);
    }
}
