//! Power capping domains (DEN0056, protocol 0x18).

use std::sync::Arc;

use super::{Driver, PowerScale, Result};

/// A power capping domain: something whose power is measured and can be limited. Powers are in
/// what [`Powercap::power_scale`] says.
#[derive(Clone, Debug)]
pub struct Powercap {
    /// What powers are counted in.
    pub power_scale: PowerScale,
    /// The lowest cap, not 0.
    pub min_cap: u32,
    /// The highest cap. The same as `min_cap` when the cap cannot be set.
    pub max_cap: u32,
    /// The distance between two caps, not 0 where there are two.
    pub cap_step: u32,
    /// The shortest averaging interval of a measurement, in microseconds, not 0.
    pub min_pai_us: u32,
    /// The longest one. The same as `min_pai_us` when it cannot be set.
    pub max_pai_us: u32,
    /// The distance between two intervals, not 0 where there are two.
    pub pai_step_us: u32,
    /// The power that it can take for long; 0 when that is not known.
    pub sustainable_power: u32,
    /// How exact a measurement is, in what powers are counted in; 0 when that is not known.
    pub accuracy: u32,
    /// Whether the power is measured, that is, whether [`PowercapDriver::power`] works.
    pub monitoring: bool,
    /// Whether capping can be turned off.
    pub can_disable: bool,
    /// The domain that this is a part of, by its number in
    /// [`Platform::powercaps`](super::Platform::powercaps).
    pub parent: Option<usize>,
    /// What drives it.
    pub driver: Arc<dyn PowercapDriver>,
}

/// What drives a power capping domain.
pub trait PowercapDriver: Driver {
    /// The cap; `None` when capping is off.
    ///
    /// # Errors
    /// The hardware's.
    fn cap(&self) -> Result<Option<u32>>;

    /// Sets the cap, or turns capping off. It is within the domain's limits, and `None` only with
    /// [`Powercap::can_disable`].
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_cap(&self, cap: Option<u32>) -> Result<()>;

    /// The averaging interval, in microseconds.
    ///
    /// # Errors
    /// The hardware's.
    fn pai_us(&self) -> Result<u32>;

    /// Sets the averaging interval, in microseconds, within the domain's limits.
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_pai_us(&self, interval: u32) -> Result<()>;

    /// The average power over the averaging interval. Not asked of a domain without
    /// [`Powercap::monitoring`]. Where the hardware counts energy, this is what was used since the
    /// last call or the last averaging interval, whichever is longer; at the first call, 0.
    ///
    /// # Errors
    /// The hardware's.
    fn power(&self) -> Result<u32>;
}
