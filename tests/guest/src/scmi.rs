//! What a guest needs for the platform of `vhost-device-scmi --sim`, and what Linux makes of it.

/// Source for [`Guest::device_tree`](crate::Guest::device_tree): the transport, the protocols, and
/// consumers of what they offer.
pub const TREE: &str = include_str!("../trees/scmi.dts");

/// A line of shell that lists the drivers that are bound to a device of SCMI's, sorted.
pub const LIST_DRIVERS: &str = "for device in /sys/bus/scmi_protocol/devices/*; do \
    [ -e $device/driver ] && basename $(readlink -f $device/driver); done | sort";

/// Those that cannot be had as modules of Debian's own kernel, which lacks what they stand on.
pub const NOT_STOCK: [&str; 2] = ["scmi-powercap", "scmi-system-power"];

/// What that lists when the guest has them all.
pub const DRIVERS: [&str; 10] = [
    "scmi-clocks",
    "scmi-cpufreq",
    "scmi-hwmon",
    "scmi-perf-domain",
    "scmi-power-domain",
    "scmi-powercap",
    "scmi-regulator",
    "scmi-reset",
    "scmi-sensor-iiodev",
    "scmi-system-power",
];
