//! The vhost-user GPIO daemon: `vhost-device-gpio --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_daemon::run::<vhost_device_gpio::GpioDaemon>()
}
