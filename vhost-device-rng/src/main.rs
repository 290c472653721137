//! The vhost-user entropy daemon: `vhost-device-rng --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_daemon::run::<vhost_device_rng::Rng>()
}
