//! Looking for more requests before sleeping: saves the driver a kick and the thread a wake-up,
//! and costs a core for as long as it lasts.
//!
//! How long pays off depends on the guest, so it is found out: a look that finds nothing halves
//! the next one, down to none; a sleep that was so short that a look would have seen its end
//! doubles it, up to what the user allows. An idle guest costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The shortest look; half of it is none.
const SHORTEST: Duration = Duration::from_micros(2);

/// Between two readings of the clock in a look lie nanoseconds, unless the system gave the core to
/// somebody else.
const PREEMPTED: Duration = Duration::from_micros(20);

/// How many sessions of the process want a core. A clone counts with the others.
#[derive(Clone, Debug)]
pub struct Cores {
    awake: Arc<AtomicUsize>,
    count: usize,
}

impl Default for Cores {
    /// The cores that the process may use.
    fn default() -> Self {
        let count = thread::available_parallelism();
        Self::new(count.map_or(1, usize::from))
    }
}

impl Cores {
    fn new(count: usize) -> Self {
        Self {
            awake: Arc::default(),
            count,
        }
    }

    // The number is a hint: nothing is ordered by it.

    fn take(&self) {
        self.awake.fetch_add(1, Ordering::Relaxed);
    }

    fn give(&self) {
        self.awake.fetch_sub(1, Ordering::Relaxed);
    }

    fn are_enough(&self) -> bool {
        self.awake.load(Ordering::Relaxed) <= self.count
    }
}

/// One session's looking.
#[derive(Debug)]
pub(crate) struct Spin {
    window: Window,
    cores: Cores,
    /// When the session went to sleep, if it does.
    asleep_since: Option<Instant>,
}

impl Spin {
    /// Looks for `limit` at most; never when that is 0.
    pub(crate) fn new(limit: Duration, cores: Cores) -> Self {
        cores.take();
        Self {
            window: Window::new(limit),
            cores,
            asleep_since: None,
        }
    }

    /// Looks with `found`, until that sees something or it has been long enough. Ends at once when
    /// another session of the process has no core.
    pub(crate) fn look(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.window.length.is_zero() {
            return false;
        }
        let mut now = Instant::now();
        let end = now + self.window.length;
        while now < end && self.cores.are_enough() {
            if found() {
                return true;
            }
            std::hint::spin_loop();
            let last = std::mem::replace(&mut now, Instant::now());
            if now - last > PREEMPTED {
                break;
            }
        }
        self.window.missed();
        false
    }

    /// The session goes to sleep.
    pub(crate) fn sleeps(&mut self) {
        if self.window.limit.is_zero() {
            return;
        }
        self.cores.give();
        self.asleep_since = Some(Instant::now());
    }

    /// The session is awake, if it was asleep.
    pub(crate) fn wakes(&mut self) {
        if let Some(start) = self.asleep_since.take() {
            self.cores.take();
            self.window.slept(start.elapsed());
        }
    }
}

impl Drop for Spin {
    fn drop(&mut self) {
        if self.asleep_since.is_none() {
            self.cores.give();
        }
    }
}

/// How long a look is.
#[derive(Debug)]
struct Window {
    length: Duration,
    limit: Duration,
}

impl Window {
    /// The first look is as long as it may be.
    fn new(limit: Duration) -> Self {
        Self {
            length: limit,
            limit,
        }
    }

    /// A look has found nothing.
    fn missed(&mut self) {
        self.length /= 2;
        if self.length < SHORTEST {
            self.length = Duration::ZERO;
        }
    }

    /// The session has slept for so long.
    fn slept(&mut self, time: Duration) {
        if time < self.limit {
            self.length = (self.length * 2).max(SHORTEST).min(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn an_idle_guest_is_soon_not_looked_at() {
        let mut window = Window::new(LIMIT);
        for _ in 0..5 {
            window.missed();
        }
        assert_eq!(window.length, Duration::ZERO);
        window.slept(LONG);
        assert_eq!(window.length, Duration::ZERO);
    }

    #[test]
    fn short_sleeps_bring_it_back_up_to_the_limit() {
        let mut window = Window::new(LIMIT);
        for _ in 0..5 {
            window.missed();
        }
        window.slept(LIMIT / 2);
        assert_eq!(window.length, SHORTEST);
        for _ in 0..10 {
            window.slept(LIMIT / 2);
        }
        assert_eq!(window.length, LIMIT);
    }

    #[test]
    fn without_a_limit_there_is_no_look() {
        let mut spin = Spin::new(Duration::ZERO, Cores::new(1));
        assert!(!spin.look(|| panic!("looked")));
        spin.sleeps();
        spin.wakes();
        assert!(!spin.look(|| panic!("looked")));
    }

    #[test]
    fn a_look_sees_what_is_there() {
        let mut spin = Spin::new(LONG, Cores::new(1));
        let mut looks = 0;
        // It ends early if the system takes the core away in the middle: then once more.
        while !spin.look(|| {
            looks += 1;
            looks > 3
        }) {}
        assert!(looks > 3);
    }

    #[test]
    fn nobody_looks_while_another_has_no_core() {
        let cores = Cores::new(1);
        let mut one = Spin::new(LONG, cores.clone());
        let mut other = Spin::new(LONG, cores.clone());
        assert!(!one.look(|| panic!("looked")));
        other.sleeps();
        assert!(cores.are_enough());
        other.wakes();
        assert!(!cores.are_enough());
        drop(other);
        assert!(one.look(|| true) || one.look(|| true));
    }

    #[test]
    fn a_session_that_ends_asleep_is_counted_once() {
        let cores = Cores::new(1);
        let mut spin = Spin::new(LIMIT, cores.clone());
        spin.sleeps();
        drop(spin);
        drop(Spin::new(LIMIT, cores.clone()));
        assert_eq!(cores.awake.load(Ordering::Relaxed), 0);
    }
}
