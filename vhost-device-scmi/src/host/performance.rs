//! Performance domains (DEN0056, protocol 0x13).

use std::sync::Arc;

use super::{Driver, Result};

/// A performance domain: something that runs faster or slower.
#[derive(Clone, Debug)]
pub struct Performance {
    /// Its operating points, from the slowest to the fastest by [`PerformanceLevel::level`], each
    /// once: at least one and at most [`Performance::MAX_LEVELS`].
    pub levels: Vec<PerformanceLevel>,
    /// The level that it can hold for long, by its position in `levels`.
    pub sustained: usize,
    /// The frequency of `sustained`, in kHz. Linux takes levels as multiples of it, unless they
    /// have indicative frequencies of their own.
    pub sustained_frequency_khz: u32,
    /// Whether guests name levels by their position in `levels` and are told the frequencies
    /// behind them (level indexing mode).
    pub level_indexing: bool,
    /// What [`PerformanceLevel::power`] counts.
    pub power_scale: PowerScale,
    /// The shortest time between two changes of the level, in microseconds; 0 when there is none.
    pub rate_limit_us: u32,
    /// Whether guests that may control it may set its limits, too.
    pub limits: bool,
    /// What drives it.
    pub driver: Arc<dyn PerformanceDriver>,
}

impl Performance {
    /// The most levels of a domain. Linux 6.12 takes 32 and no more.
    pub const MAX_LEVELS: usize = 256;
}

/// An operating point of a performance domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerformanceLevel {
    /// A number that grows with the performance, not 0: often the frequency in kHz.
    pub level: u32,
    /// What it costs, in what [`Performance::power_scale`] says; 0 when that is not known.
    pub power: u32,
    /// The longest time to get there, in microseconds.
    pub latency_us: u16,
    /// The frequency, in kHz; 0 when there is none.
    pub indicative_frequency_khz: u32,
}

/// What the cost of an operating point is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PowerScale {
    /// Nothing in particular.
    #[default]
    Abstract,
    /// mW.
    Milliwatts,
    /// µW.
    Microwatts,
}

/// Between which levels a performance domain may be, by their positions in
/// [`Performance::levels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The slowest.
    pub min: usize,
    /// The fastest; not below `min`.
    pub max: usize,
}

impl Limits {
    /// Whether a level is within them.
    pub fn contains(self, position: usize) -> bool {
        (self.min..=self.max).contains(&position)
    }
}

/// What drives a performance domain. Levels are positions in [`Performance::levels`].
pub trait PerformanceDriver: Driver {
    /// The level that it has; the next below when it is between two.
    ///
    /// # Errors
    /// The hardware's.
    fn level(&self) -> Result<usize>;

    /// Sets the level, which is within the limits that were told last.
    ///
    /// # Errors
    /// The hardware's, or `OutOfRange` where the limits are others by now; then it is as before.
    fn set_level(&self, position: usize) -> Result<()>;

    /// The limits that it has; the whole table at first.
    ///
    /// # Errors
    /// The hardware's.
    fn limits(&self) -> Result<Limits>;

    /// Sets the limits. A level outside of them is moved to the nearest one inside.
    ///
    /// # Errors
    /// The hardware's; then they are as before.
    fn set_limits(&self, limits: Limits) -> Result<()>;
}
