//! Pins, their functions and settings (DEN0056, protocol 0x19).

use std::sync::Arc;

use super::{Driver, Result};

/// A pin controller. A guest that sees it sees all of it, and of guests that may control it each
/// has the pins that it requested.
#[derive(Clone, Debug)]
pub struct Pinctrl {
    /// The names of its pins.
    pub pins: Vec<String>,
    /// Groups of pins.
    pub groups: Vec<Members>,
    /// Functions, with the groups that can have them.
    pub functions: Vec<Members>,
    /// What drives it.
    pub driver: Arc<dyn PinctrlDriver>,
}

/// A group with its pins, or a function with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Its name, as that of a resource.
    pub name: String,
    /// The positions of its pins or groups: at least one, each once.
    pub members: Vec<u16>,
}

/// What has a function and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pins {
    /// A pin, by its position in [`Pinctrl::pins`].
    One(usize),
    /// A group, by its position in [`Pinctrl::groups`].
    Group(usize),
}

/// A setting of a pin or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinSetting {
    /// What is set, as DEN0056 numbers it: 4 is a pull-up, 10 the drive strength.
    pub kind: u8,
    /// The value, in the unit of the kind.
    pub value: u32,
}

/// What drives a pin controller.
pub trait PinctrlDriver: Driver {
    /// The function of a pin or a group, by its position in [`Pinctrl::functions`], if it has one.
    ///
    /// # Errors
    /// The hardware's.
    fn function(&self, pins: Pins) -> Result<Option<usize>>;

    /// Gives a pin or a group a function.
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_function(&self, pins: Pins, function: usize) -> Result<()>;

    /// The settings of a pin or a group: one of a kind at most, so no more than 256.
    ///
    /// # Errors
    /// The hardware's.
    fn settings(&self, pins: Pins) -> Result<Vec<PinSetting>>;

    /// Sets a pin or all pins of a group.
    ///
    /// # Errors
    /// The hardware's; the settings before the one that fails may hold.
    fn set(&self, pins: Pins, settings: &[PinSetting]) -> Result<()>;
}
