//! What the user is told of a guest: what fails, once a burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_device_backend::{RateLimit, limited};

use crate::address::Address;
use crate::device::Refusal;
use crate::host::{Bus, Failure};

/// The log of one guest. A clone is the same log: it outlasts connections, so that a guest that
/// reconnects is not told of anew.
#[derive(Clone, Debug)]
pub struct Log {
    guest: Arc<str>,
    malformed: RateLimit,
    refused: RateLimit,
    failed: RateLimit,
    works: RateLimit,
    /// For each bus, how many transactions have failed one after the other.
    failures: Arc<[AtomicU64]>,
}

impl Log {
    /// The log of `guest`, which has so many buses.
    pub fn new(guest: String, buses: usize) -> Self {
        Self {
            guest: guest.into(),
            malformed: RateLimit::default(),
            refused: RateLimit::default(),
            failed: RateLimit::default(),
            works: RateLimit::default(),
            failures: (0..buses).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn malformed(&self) {
        limited!(
            self.malformed,
            Warn,
            "{}: a request without room for a status goes back empty",
            self.guest
        );
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        limited!(self.refused, Warn, "{}: refused: {refusal}", self.guest);
    }

    /// A transaction with `address` on the bus with this number has failed. Returns whether the
    /// bus is to blame, and not the request or who did not answer it.
    pub(crate) fn failed(
        &self,
        number: usize,
        bus: &dyn Bus,
        address: Address,
        failure: Failure,
    ) -> bool {
        let (guest, name) = (&self.guest, bus.name());
        if failure.is_unsupported() {
            self.refused(Refusal::Unsupported(address));
            return false;
        }
        if failure.is_refusal() {
            ::log::debug!("{guest}: {name}: nobody at {address} takes this: {failure}");
            return false;
        }
        let failures = self.failures.get(number);
        // Counts and nothing else: no order is needed.
        if failures.is_some_and(|failures| failures.fetch_add(1, Ordering::Relaxed) == 0) {
            limited!(
                self.failed,
                Warn,
                "{guest}: {name}: cannot reach {address}: {failure}"
            );
        }
        true
    }

    /// A transaction on the bus with this number is done.
    pub(crate) fn done(&self, number: usize, bus: &dyn Bus) {
        let failures = self.failures.get(number);
        let count = failures.map_or(0, |failures| failures.swap(0, Ordering::Relaxed));
        if count > 0 {
            let (guest, name) = (&self.guest, bus.name());
            limited!(
                self.works,
                Warn,
                "{guest}: {name}: works again after {count} failures"
            );
        }
    }

    /// How many transactions have failed one after the other on the bus with this number.
    #[cfg(test)]
    pub(crate) fn failures(&self, number: usize) -> u64 {
        self.failures[number].load(Ordering::Relaxed)
    }
}
