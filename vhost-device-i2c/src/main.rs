//! The vhost-user I2C daemon: `vhost-device-i2c --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_daemon::run::<vhost_device_i2c::I2c>()
}
