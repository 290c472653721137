//! The vhost-user SCMI daemon: `vhost-device-scmi --help`.

fn main() {}
