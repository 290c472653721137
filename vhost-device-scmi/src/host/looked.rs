//! What stands for hardware that `--check` has looked at, here or not, and that no guest is given.

use super::{
    Driver, Error, Limits, PerformanceDriver, PowerDriver, PowerState, PowercapDriver, Reading,
    ResetDriver, Result, SensorDriver, VoltageDriver,
};

/// Hardware that was looked at: what it is, as for [`Driver::backing`].
#[derive(Clone, Debug)]
pub struct Looked(pub String);

impl Driver for Looked {
    fn backing(&self) -> String {
        self.0.clone()
    }
}

impl SensorDriver for Looked {
    fn read(&self, _values: &mut [i64]) -> Result<Reading> {
        Err(Error::NotFound)
    }
}

impl PowerDriver for Looked {
    fn state(&self) -> Result<PowerState> {
        Err(Error::NotFound)
    }

    fn set_state(&self, _state: PowerState) -> Result<()> {
        Err(Error::NotFound)
    }
}

impl PerformanceDriver for Looked {
    fn level(&self) -> Result<usize> {
        Err(Error::NotFound)
    }

    fn set_level(&self, _position: usize) -> Result<()> {
        Err(Error::NotFound)
    }

    fn limits(&self) -> Result<Limits> {
        Err(Error::NotFound)
    }

    fn set_limits(&self, _limits: Limits) -> Result<()> {
        Err(Error::NotFound)
    }
}

impl ResetDriver for Looked {
    fn set_asserted(&self, _asserted: bool) -> Result<()> {
        Err(Error::NotFound)
    }

    fn reset(&self) -> Result<()> {
        Err(Error::NotFound)
    }
}

impl VoltageDriver for Looked {
    fn level(&self) -> Result<i32> {
        Err(Error::NotFound)
    }

    fn set_level(&self, _microvolts: i32) -> Result<()> {
        Err(Error::NotFound)
    }

    fn is_enabled(&self) -> Result<bool> {
        Err(Error::NotFound)
    }

    fn set_enabled(&self, _enabled: bool) -> Result<()> {
        Err(Error::NotFound)
    }
}

impl PowercapDriver for Looked {
    fn cap(&self) -> Result<Option<u32>> {
        Err(Error::NotFound)
    }

    fn set_cap(&self, _cap: Option<u32>) -> Result<()> {
        Err(Error::NotFound)
    }

    fn pai_us(&self) -> Result<u32> {
        Err(Error::NotFound)
    }

    fn set_pai_us(&self, _interval: u32) -> Result<()> {
        Err(Error::NotFound)
    }

    fn power(&self) -> Result<u32> {
        Err(Error::NotFound)
    }
}
