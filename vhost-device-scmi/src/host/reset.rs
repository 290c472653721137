//! Reset domains (DEN0056, protocol 0x16).

use std::sync::Arc;

use super::{Driver, Result};

/// A reset domain. It can be held in reset and released, or reset by itself, or both.
#[derive(Clone, Debug)]
pub struct Reset {
    /// Whether [`ResetDriver::reset`] works.
    pub autonomous: bool,
    /// Whether [`ResetDriver::set_asserted`] works.
    pub explicit: bool,
    /// How long a reset takes at most, in microseconds; `None` when that is not known.
    pub latency_us: Option<u32>,
    /// What drives it.
    pub driver: Arc<dyn ResetDriver>,
}

/// What drives a reset domain.
pub trait ResetDriver: Driver {
    /// Holds the domain in reset, or releases it.
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_asserted(&self, asserted: bool) -> Result<()>;

    /// Resets the domain: into reset and out of it, without waiting between.
    ///
    /// # Errors
    /// The hardware's.
    fn reset(&self) -> Result<()>;
}
