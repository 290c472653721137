//! Power domains (DEN0056, protocol 0x11).

use std::sync::Arc;

use super::{Driver, Result};

/// A power domain.
#[derive(Clone, Debug)]
pub struct Power {
    /// The states that it can be set to; [`PowerState::ON`] and [`PowerState::OFF`] are among
    /// them.
    pub states: Vec<PowerState>,
    /// What drives it.
    pub driver: Arc<dyn PowerDriver>,
}

/// A state of a power domain, as DEN0056 encodes it: bit 30 says that context is lost, bits 0 to
/// 27 which state it is. Bits 28, 29 and 31 are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PowerState(pub u32);

impl PowerState {
    /// On.
    pub const ON: Self = Self(0);
    /// Off, and what was in there is lost.
    pub const OFF: Self = Self(1 << 30);
}

/// What drives a power domain.
pub trait PowerDriver: Driver {
    /// The state that it has.
    ///
    /// # Errors
    /// The hardware's.
    fn state(&self) -> Result<PowerState>;

    /// Sets it to one of [`Power::states`].
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_state(&self, state: PowerState) -> Result<()>;
}
