//! The vhost-user SCMI daemon: `vhost-device-scmi --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_daemon::run::<vhost_device_scmi::ScmiDaemon>()
}
