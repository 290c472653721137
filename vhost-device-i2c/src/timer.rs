//! What wakes the device for requests that it keeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

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

    /// Whether it has fired; then it is not readable any more.
    pub(crate) fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    fn set(&self, delay: Duration) {
        let time = |duration: Duration| Timespec {
            // A second at most.
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
