//! The power of the system that a guest believes it runs on (DEN0056, protocol 0x12).

use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Guest, Result};

/// The system's power. A guest that sees it can be asked to shut down or to reboot; one that may
/// control it can ask for that itself.
#[derive(Clone, Debug)]
pub struct SystemPower {
    /// How long a guest has for a graceful shutdown or reboot.
    pub timeout: Duration,
    /// What is done with a guest's own wishes; `NOT_SUPPORTED` when nothing is.
    pub driver: Option<Arc<dyn SystemDriver>>,
}

/// A state that the system is to be brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SystemState {
    /// Off.
    Shutdown,
    /// Off and on again, nothing is kept.
    ColdReset,
    /// Running again from the start, without power having been off.
    WarmReset,
    /// Up.
    PowerUp,
    /// Asleep.
    Suspend,
}

/// What does with a guest what it asks for.
pub trait SystemDriver: Driver {
    /// `guest` wants to be in this state. Graceful means that others are to be asked first.
    ///
    /// # Errors
    /// The hardware's.
    fn request(&self, guest: Guest, state: SystemState, graceful: bool) -> Result<()>;
}
