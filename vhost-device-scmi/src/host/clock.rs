//! Clocks (DEN0056, protocol 0x14).

use std::sync::Arc;

use super::{Driver, Result};

/// A clock.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The rates that it may have.
    pub rates: Rates,
    /// The clocks that it can get its input from, by their numbers in
    /// [`Platform::clocks`](super::Platform::clocks). None, when that cannot be chosen.
    pub parents: Vec<usize>,
    /// Whether it can be turned on and off. One that cannot is on.
    pub gate: bool,
    /// How long it takes to turn it on at most, in microseconds; 0 when that is not known.
    pub enable_latency_us: u32,
    /// What drives it.
    pub driver: Arc<dyn ClockDriver>,
}

/// The rates of a clock, in Hz.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rates {
    /// These, from the lowest to the highest: at least one and at most [`Rates::MAX`]. One alone
    /// is a fixed clock.
    Discrete(Vec<u64>),
    /// From `min` to `max` in steps of `step`, which is not 0.
    Range {
        /// The lowest.
        min: u64,
        /// The highest; not below `min`.
        max: u64,
        /// The distance between two.
        step: u64,
    },
}

impl Rates {
    /// The most rates of a list. Linux takes 16 and no more.
    pub const MAX: usize = 256;

    /// Whether a rate is one of them.
    pub fn contains(&self, rate: u64) -> bool {
        match self {
            Self::Discrete(rates) => rates.contains(&rate),
            &Self::Range { min, max, step } => {
                let above = rate.checked_sub(min);
                rate <= max && above.is_some_and(|above| above.checked_rem(step) == Some(0))
            }
        }
    }
}

/// What drives a clock.
pub trait ClockDriver: Driver {
    /// The rate, in Hz.
    ///
    /// # Errors
    /// The hardware's.
    fn rate(&self) -> Result<u64>;

    /// Sets the rate to one of the clock's [`Rates`].
    ///
    /// # Errors
    /// The hardware's; then the rate is as before.
    fn set_rate(&self, rate: u64) -> Result<()>;

    /// Whether it runs. Not asked of a clock without [`Clock::gate`].
    ///
    /// # Errors
    /// The hardware's.
    fn is_enabled(&self) -> Result<bool>;

    /// Turns it on or off. Not asked of a clock without [`Clock::gate`].
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_enabled(&self, enabled: bool) -> Result<()>;

    /// Which of [`Clock::parents`] it gets its input from, by the position there. Not asked of a
    /// clock without parents.
    ///
    /// # Errors
    /// The hardware's.
    fn parent(&self) -> Result<usize> {
        Err(super::Error::NotSupported)
    }

    /// Takes its input from another of [`Clock::parents`]. Not asked of a clock without parents.
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_parent(&self, position: usize) -> Result<()> {
        let _ = position;
        Err(super::Error::NotSupported)
    }
}
