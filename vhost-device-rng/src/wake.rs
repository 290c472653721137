//! What wakes a device that has requests waiting: file descriptors that the session watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that fires once.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires after `delay`, instead of what was set before.
    pub(crate) fn arm(&self, delay: Duration) {
        // 0 would disarm it.
        self.set(delay.max(Duration::from_nanos(1)));
    }

    /// Does not fire, and is not readable if it has.
    pub(crate) fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    fn set(&self, delay: Duration) {
        let time = |duration: Duration| Timespec {
            // A day at most.
            tv_sec: duration.as_secs() as i64,
            tv_nsec: i64::from(duration.subsec_nanos()),
        };
        let setting = Itimerspec {
            it_interval: time(Duration::ZERO),
            it_value: time(delay),
        };
        // Fails only on a descriptor that is no timer, or a time that is none.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

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
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable(fd: &impl AsFd) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    fn becomes_readable(fd: &impl AsFd) -> bool {
        let deadline = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&deadline)).unwrap() > 0
    }

    #[test]
    fn test_timer_fires_until_it_is_disarmed() {
        let timer = Timer::new().unwrap();
        assert!(!is_readable(&timer));
        timer.arm(Duration::ZERO);
        assert!(becomes_readable(&timer));
        timer.disarm();
        assert!(!is_readable(&timer));
        timer.arm(Duration::from_secs(3600));
        assert!(!is_readable(&timer));
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
