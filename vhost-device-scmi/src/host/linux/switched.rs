//! Power and reset domains on something that is on or off.

use std::fmt;

use super::attribute::Switch;
use crate::host::{Driver, Error, PowerDriver, PowerState, ResetDriver, Result};

/// Something that is on or off: a GPIO line, a regulator, a file.
pub trait OnOff: fmt::Debug + Send + Sync {
    /// Whether it is on.
    ///
    /// # Errors
    /// The hardware's.
    fn is_on(&self) -> Result<bool>;

    /// Turns it on or off.
    ///
    /// # Errors
    /// The hardware's.
    fn turn(&self, on: bool) -> Result<()>;
}

impl OnOff for Switch {
    fn is_on(&self) -> Result<bool> {
        self.get()
    }

    fn turn(&self, on: bool) -> Result<()> {
        self.set(on)
    }
}

/// A domain on something that is on or off. A power domain is on when it is; a reset domain is
/// held in reset.
#[derive(Debug)]
pub struct Switched<S> {
    switch: S,
    backing: String,
}

impl<S> Switched<S> {
    /// A domain on `switch`, which is called `backing`.
    pub fn new(switch: S, backing: String) -> Self {
        Self { switch, backing }
    }
}

impl<S: OnOff> Driver for Switched<S> {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl<S: OnOff> PowerDriver for Switched<S> {
    fn state(&self) -> Result<PowerState> {
        Ok(if self.switch.is_on()? {
            PowerState::ON
        } else {
            PowerState::OFF
        })
    }

    fn set_state(&self, state: PowerState) -> Result<()> {
        match state {
            PowerState::ON => self.switch.turn(true),
            PowerState::OFF => self.switch.turn(false),
            _ => Err(Error::NotSupported),
        }
    }
}

impl<S: OnOff> ResetDriver for Switched<S> {
    fn set_asserted(&self, asserted: bool) -> Result<()> {
        self.switch.turn(asserted)
    }

    fn reset(&self) -> Result<()> {
        self.switch.turn(true)?;
        self.switch.turn(false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Steps(Mutex<Vec<bool>>);

    impl OnOff for Steps {
        fn is_on(&self) -> Result<bool> {
            Ok(self.0.lock().unwrap().last().copied().unwrap_or(false))
        }

        fn turn(&self, on: bool) -> Result<()> {
            self.0.lock().unwrap().push(on);
            Ok(())
        }
    }

    #[test]
    fn test_a_reset_is_into_reset_and_out_of_it() {
        let domain = Switched::new(Steps::default(), "steps".to_owned());
        domain.reset().unwrap();
        domain.set_asserted(true).unwrap();
        assert_eq!(*domain.switch.0.lock().unwrap(), [true, false, true]);
        assert_eq!(domain.backing(), "steps");
    }

    #[test]
    fn test_a_power_domain_knows_two_states() {
        let domain = Switched::new(Steps::default(), String::new());
        assert_eq!(domain.state().unwrap(), PowerState::OFF);
        domain.set_state(PowerState::ON).unwrap();
        assert_eq!(domain.state().unwrap(), PowerState::ON);
        let other = domain.set_state(PowerState(1));
        assert!(matches!(other, Err(Error::NotSupported)));
    }
}
