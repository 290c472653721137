//! Where the random bytes come from, as the device sees it.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{VolatileMemoryError, VolatileSlice};

pub mod linux;
#[cfg(test)]
pub(crate) mod sim;

/// A source of random bytes, shared by all guests of a daemon.
pub trait Source: Send + Sync {
    /// What to call it in the log.
    fn name(&self) -> &str;

    /// Fills `buffer` or a part of it and returns how much; 0 when it is at its end for now.
    /// Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing yet; anything else is a failure. Either may pass.
    fn read<B: BitmapSlice>(
        &self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError>;

    /// Whether it costs nobody anything to fetch more than was asked for. Not so for a source
    /// that runs dry: another guest would wait for what this one does not use.
    fn is_plentiful(&self) -> bool;

    /// What becomes readable when [`Source::read`] has something again after `WouldBlock`;
    /// `None` for a source that can only be tried again.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// The time.
    fn now(&self) -> Instant {
        Instant::now()
    }
}
