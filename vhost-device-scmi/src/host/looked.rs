//! Drivers in place of hardware that `--check` has looked at, whether it found it or not.
//!
//! No guest has them: `--check` only asks what they are called, and each access fails.

use super::{
    Driver, Error, Limits, PerformanceDriver, PowerDriver, PowerState, PowercapDriver, Reading,
    ResetDriver, Result, SensorDriver, VoltageDriver,
};

/// Hardware that `--check` has looked at: what it is, as for [`Driver::backing`].
#[derive(Clone, Debug)]
pub struct Looked(pub String);

impl Driver for Looked {
    fn backing(&self) -> String {
        self.0.clone()
    }
}

/// Implements drivers all of whose methods fail.
macro_rules! looked {
    ($($driver:ident { $($method:ident($($argument:ty)?) -> $value:ty,)* })*) => {$(
        impl $driver for Looked {
            $(fn $method(&self $(, _: $argument)?) -> Result<$value> {
                Err(Error::NotFound)
            })*
        }
    )*};
}

looked! {
    SensorDriver {
        read(&mut [i64]) -> Reading,
    }
    PowerDriver {
        state() -> PowerState,
        set_state(PowerState) -> (),
    }
    PerformanceDriver {
        level() -> usize,
        set_level(usize) -> (),
        limits() -> Limits,
        set_limits(Limits) -> (),
    }
    ResetDriver {
        set_asserted(bool) -> (),
        reset() -> (),
    }
    VoltageDriver {
        level() -> i32,
        set_level(i32) -> (),
        is_enabled() -> bool,
        set_enabled(bool) -> (),
    }
    PowercapDriver {
        cap() -> Option<u32>,
        set_cap(Option<u32>) -> (),
        pai_us() -> u32,
        set_pai_us(u32) -> (),
        power() -> u32,
    }
}
