//! A timer for devices: what waits for time is an event, never a sleep.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_gettime, timerfd_settime,
};

/// A timer that fires once, and is readable from then until it is set again.
///
/// Reading never blocks, unlike that of `vmm-sys-util`: a device may have set the timer anew
/// between the event and the read.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires after `delay`, instead of what was set before.
    pub fn arm(&self, delay: Duration) {
        // 0 would disarm it.
        self.set(delay.max(Duration::from_nanos(1)));
    }

    /// Does not fire, and is not readable if it has.
    pub fn disarm(&self) {
        self.set(Duration::ZERO);
    }

    /// Whether it has fired; then it is not readable any more.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Whether it is set and has not fired yet.
    pub fn is_running(&self) -> bool {
        // Fails only on a descriptor that is no timer.
        timerfd_gettime(&self.0).is_ok_and(|left| left.it_value != Timespec::default())
    }

    fn set(&self, delay: Duration) {
        let setting = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: delay.subsec_nanos().into(),
            },
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

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable_within(timer: &Timer, seconds: i64) -> bool {
        let limit = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(timer, PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    #[test]
    fn it_fires_until_it_is_disarmed() {
        let timer = Timer::new().unwrap();
        assert!(!readable_within(&timer, 0));
        timer.arm(Duration::ZERO);
        assert!(readable_within(&timer, 60));
        timer.disarm();
        assert!(!readable_within(&timer, 0));
        timer.arm(Duration::from_secs(3600));
        assert!(timer.is_running());
        assert!(!readable_within(&timer, 0));
    }

    #[test]
    fn it_has_fired_once() {
        let timer = Timer::new().unwrap();
        assert!(!timer.take());
        timer.arm(Duration::ZERO);
        assert!(readable_within(&timer, 60));
        assert!(timer.take());
        assert!(!timer.take());
        assert!(!timer.is_running());
    }
}
