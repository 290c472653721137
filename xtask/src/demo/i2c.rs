//! I2C: a simulated bus, found and used with i2c-tools and the drivers of Linux.

use std::path::Path;

use anyhow::Result;
use vhost_device_guest::{Arch, Daemon, RunningGuest};

use super::{Report, Section};

pub(super) const SECTION: Section = Section {
    title: "vhost-device-i2c: an EEPROM and a temperature sensor",
    archs: Arch::ALL,
    elsewhere: "",
    device_tree: "",
    daemon,
    show,
};

// Busybox has poorer programs of the same names: these are named by their paths.
const ADAPTERS: &str = "/usr/sbin/i2cdetect -l";
const ADDRESSES: &str = "/usr/sbin/i2cdetect -y 0";
const NEW_EEPROM: &str = "echo 24c02 0x50 > /sys/bus/i2c/devices/i2c-0/new_device";
const WRITE: &str = "echo 'a page of 8 is crossed' > /sys/bus/i2c/devices/0-0050/eeprom";
const READ: &str = "head -n 1 /sys/bus/i2c/devices/0-0050/eeprom";
const NEW_SENSOR: &str = "echo lm75 0x48 > /sys/bus/i2c/devices/i2c-0/new_device";
const TEMPERATURE: &str = "cat /sys/bus/i2c/devices/0-0048/hwmon/hwmon*/temp1_input";

fn daemon(_directory: &Path) -> Daemon {
    Daemon::new("vhost-device-i2c")
        .args(["--device-list", "sim", "--sim-temperature", "21.5"])
        .device("vhost-user-i2c-pci")
}

fn show(guest: &mut RunningGuest, report: &mut Report, _directory: &Path) -> Result<()> {
    report.expect_parts("i2cdetect -l", &guest.run(ADAPTERS)?, &["i2c-0", "virtio"]);
    let found = guest.run(ADDRESSES)?;
    report.expect_parts("i2cdetect -y 0", &found, &["20", "30", "48", "50"]);
    guest.run_all(&[NEW_EEPROM, WRITE, NEW_SENSOR])?;
    report.expect(
        "EEPROM, by at24",
        &guest.run(READ)?,
        "a page of 8 is crossed",
    );
    report.expect("m°C, by hwmon", &guest.run(TEMPERATURE)?, "21500");
    Ok(())
}
