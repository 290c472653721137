//! How much a guest may have: a token bucket, refilled evenly.
//!
//! A full bucket holds [`Limit::max_bytes`]. What is taken comes back at the rate of `max_bytes`
//! a period, so a guest gets at most a bucket at once and then that rate. No clock is read here:
//! the caller says what time it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest period: with it the arithmetic below cannot overflow, and a longer one would
/// leave a guest without entropy for days.
pub const MAX_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);

/// The least that a guest with an empty bucket waits for, unless it asked for less or the bucket
/// is smaller. One byte at a time would keep guest and host busy with almost nothing.
const GRAIN: u64 = 64;

/// A guest's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many bytes it may have in a period, at least 1.
    pub max_bytes: u64,
    /// The period, longer than 0 and at most [`MAX_PERIOD`].
    pub period: Duration,
}

impl Limit {
    /// What one byte costs, in the unit of [`Bucket::credit`].
    fn cost(&self) -> u128 {
        self.period.as_nanos()
    }

    /// What a full bucket holds. Below 2^111: less than 2^64 bytes at less than 2^47 each.
    fn full(&self) -> u128 {
        u128::from(self.max_bytes) * self.cost()
    }
}

/// What a guest has left of its limit.
#[derive(Clone, Debug)]
pub struct Bucket {
    limit: Limit,
    /// In bytes times the period's nanoseconds, so that each nanosecond adds exactly `max_bytes`
    /// and nothing is lost by rounding.
    credit: u128,
    /// Until when `credit` was added up.
    counted: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(limit: Limit, now: Instant) -> Self {
        Self {
            limit,
            credit: limit.full(),
            counted: now,
        }
    }

    /// How many of `wanted` bytes may be given now.
    ///
    /// # Errors
    /// How long to wait before any may.
    pub fn allow(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        self.refill(now);
        let worth_it = GRAIN.min(wanted as u64).min(self.limit.max_bytes);
        let missing = (u128::from(worth_it) * self.limit.cost()).saturating_sub(self.credit);
        if missing > 0 {
            // At most a period's nanoseconds, which fit.
            let nanos = missing.div_ceil(u128::from(self.limit.max_bytes)) as u64;
            return Err(Duration::from_nanos(nanos));
        }
        let available = self.credit / self.limit.cost();
        Ok(usize::try_from(available).map_or(wanted, |available| wanted.min(available)))
    }

    /// `bytes` were given.
    pub fn take(&mut self, bytes: usize) {
        let cost = bytes as u128 * self.limit.cost();
        self.credit = self.credit.saturating_sub(cost);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now
            .saturating_duration_since(self.counted)
            .min(self.limit.period);
        let gained = elapsed.as_nanos() * u128::from(self.limit.max_bytes);
        self.credit = (self.credit + gained).min(self.limit.full());
        self.counted = self.counted.max(now);
    }
}

/// A guest's bucket, taken out for as long as one connection lives, so that no lock is needed
/// for a request. A guest has one connection at a time.
#[derive(Debug)]
pub struct Lease {
    bucket: Bucket,
    home: Arc<Mutex<Bucket>>,
}

impl Lease {
    /// Takes out what is in `home`.
    pub fn new(home: Arc<Mutex<Bucket>>) -> Self {
        // A bucket is replaced whole, so it is sound even if the lock is poisoned.
        let bucket = home.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { bucket, home }
    }

    /// The bucket.
    pub fn bucket(&mut self) -> &mut Bucket {
        &mut self.bucket
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.bucket.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bucket(max_bytes: u64, period: Duration) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::new(Limit { max_bytes, period }, now), now)
    }

    #[test]
    fn test_a_full_bucket_is_the_burst() {
        let (mut bucket, now) = bucket(1000, SECOND);
        assert_eq!(bucket.allow(10, now), Ok(10));
        assert_eq!(bucket.allow(5000, now), Ok(1000));
        bucket.take(1000);
        assert!(bucket.allow(5000, now).is_err());
        assert_eq!(
            bucket.allow(5000, now + 10 * SECOND),
            Ok(1000),
            "no more than full"
        );
    }

    #[test]
    fn test_what_was_taken_comes_back_evenly() {
        let (mut bucket, now) = bucket(1000, SECOND);
        bucket.take(1000);
        assert_eq!(bucket.allow(1000, now + SECOND / 2), Ok(500));
        bucket.take(500);
        assert_eq!(bucket.allow(1000, now + SECOND * 3 / 5), Ok(100));
    }

    #[test]
    fn test_an_empty_bucket_says_how_long_to_wait() {
        let (mut bucket, now) = bucket(1000, SECOND);
        bucket.take(1000);
        for (wanted, milliseconds) in [(1, 1), (10, 10), (64, 64), (5000, 64)] {
            let wait = bucket.allow(wanted, now).unwrap_err();
            assert_eq!(wait, Duration::from_millis(milliseconds));
        }
        let wait = bucket.allow(10, now).unwrap_err();
        assert!(
            bucket
                .allow(10, now + wait - Duration::from_nanos(1))
                .is_err()
        );
        assert_eq!(bucket.allow(10, now + wait), Ok(10));
    }

    #[test]
    fn test_a_bucket_smaller_than_the_grain_is_waited_for() {
        let (mut bucket, now) = bucket(3, SECOND);
        bucket.take(3);
        assert_eq!(bucket.allow(100, now), Err(SECOND));
        assert_eq!(bucket.allow(100, now + SECOND), Ok(3));
    }

    #[test]
    fn test_no_byte_is_lost_or_won_by_rounding() {
        let (mut bucket, start) = bucket(7, SECOND);
        bucket.take(7);
        let mut now = start;
        for taken in 1..=7_000 {
            now += bucket.allow(1, now).unwrap_err();
            assert_eq!(bucket.allow(1, now), Ok(1));
            bucket.take(1);
            // Each wait is rounded up to a nanosecond, and that nanosecond is credited.
            let exact = SECOND.as_nanos() * taken / 7;
            assert!((now - start).as_nanos() - exact <= 1, "byte {taken}");
        }
    }

    #[test]
    fn test_the_largest_limit_does_not_overflow() {
        let (mut bucket, now) = bucket(u64::MAX, MAX_PERIOD);
        assert_eq!(bucket.allow(usize::MAX, now), Ok(usize::MAX));
        bucket.take(usize::MAX);
        bucket.take(usize::MAX);
        assert!(bucket.allow(1, now).is_err());
        assert_eq!(
            bucket.allow(usize::MAX, now + 1000 * MAX_PERIOD),
            Ok(usize::MAX)
        );
    }

    #[test]
    fn test_a_clock_that_stands_still_gives_nothing() {
        let (mut bucket, now) = bucket(10, SECOND);
        bucket.take(10);
        assert!(bucket.allow(1, now - SECOND).is_err());
        assert!(bucket.allow(1, now).is_err());
    }

    #[test]
    fn test_a_lease_brings_the_bucket_back() {
        let (bucket, now) = bucket(10, SECOND);
        let home = Arc::new(Mutex::new(bucket));
        let mut lease = Lease::new(Arc::clone(&home));
        lease.bucket().take(10);
        drop(lease);
        assert!(Lease::new(home).bucket().allow(1, now).is_err());
    }
}
