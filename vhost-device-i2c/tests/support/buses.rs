//! The buses below the tests' daemons: simulators, or in the host guest the kernel's.
//!
//! On each there is something with registers at 0x20, 0x48 and 0x50, and nobody at 0x51. What is
//! in the registers is what the tests before have left there.

use std::env;

/// The variable that names the kernel's bus that takes all messages.
pub const I2C: &str = "VHOST_DEVICE_TEST_I2C";
/// The variable that names the kernel's bus that takes SMBus calls only.
pub const SMBUS: &str = "VHOST_DEVICE_TEST_SMBUS";

/// A bus that takes all messages.
pub fn i2c() -> String {
    named(I2C).unwrap_or_else(|| "sim".to_owned())
}

/// A bus that takes SMBus calls only.
pub fn smbus() -> String {
    named(SMBUS).unwrap_or_else(|| "sim-smbus".to_owned())
}

/// Both, for tests of what every bus can.
pub fn each() -> [String; 2] {
    [i2c(), smbus()]
}

/// What the variable says. A kernel's bus and a simulator do not mix: half a setting is a mistake.
fn named(variable: &str) -> Option<String> {
    let set = [I2C, SMBUS].map(|name| env::var(name).is_ok());
    assert_eq!(set[0], set[1], "set both {I2C} and {SMBUS}, or none");
    env::var(variable).ok()
}
