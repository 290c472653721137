//! SCMI: a simulated platform, used by the drivers of Linux; the demo is the host's side.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vhost_device_guest::{Arch, CommandOutput, Control, Daemon, RunningGuest, scmi};

use super::{Report, Section};

pub(super) const SECTION: Section = Section {
    title: "vhost-device-scmi: sensors, clocks, regulators, power limits",
    // QEMU has the device for Arm alone.
    archs: &[&Arch::AARCH64],
    elsewhere: "Linux has drivers for SCMI on Arm alone, and so has QEMU the device; \
        `cargo xtask demo --arch aarch64` shows it",
    device_tree: scmi::TREE,
    daemon,
    show,
};

const TEMPERATURE: &str =
    "label=$(grep -lx cpu-temp /sys/class/hwmon/hwmon*/temp*_label) && cat ${label%_label}_input";
const ACCELERATION: &str = "cd $(dirname $(grep -lx accelerometer /sys/bus/iio/devices/*/name)) && \
    echo $(cat in_accel_[xyz]_raw)";
const CLOCKS: &str = "awk '/deviceless/ && NF > 5 { print $5, $1 }' \
    /sys/kernel/debug/clk/clk_summary";
const VOLTAGE: &str = "cd /sys/bus/platform/devices/regulator-setter && \
    echo 1000000 > max_microvolts && echo 1000000 > min_microvolts";
const FREQUENCY: &str = "cd /sys/devices/system/cpu/cpu0/cpufreq && \
    echo userspace > scaling_governor && echo 1400000 > scaling_setspeed && cat cpuinfo_cur_freq";
const LIMIT: &str = "cd /sys/class/powercap/arm-scmi:0 && \
    echo 7500000 > constraint_0_power_limit_uw";

fn control(directory: &Path) -> PathBuf {
    directory.join("scmi-control")
}

fn daemon(directory: &Path) -> Daemon {
    let control = control(directory);
    Daemon::new("vhost-device-scmi")
        .args([
            "--sim".as_ref(),
            "--sim-control".as_ref(),
            control.as_os_str(),
        ])
        .device("vhost-user-scmi-pci")
}

fn show(guest: &mut RunningGuest, report: &mut Report, directory: &Path) -> Result<()> {
    let mut host = Control::connect(&control(directory))?;
    let mut drivers = scmi::DRIVERS.to_vec();
    if report.stock {
        drivers.retain(|driver| !scmi::NOT_STOCK.contains(driver));
    }
    report.expect_parts("drivers bound", &guest.run(scmi::LIST_DRIVERS)?, &drivers);
    host.ask("set sensor:cpu-temp 61500")?;
    report.expect("m°C, by hwmon", &guest.run(TEMPERATURE)?, "61500");
    host.ask("set sensor:accelerometer 12,-34,9807")?;
    report.expect("mm/s², by IIO", &guest.run(ACCELERATION)?, "12 -34 9807");
    let clocks = ["1200000000 pll", "297000000 display-controller-pixel-clock"];
    report.expect_parts("clk_summary, in Hz", &guest.run(CLOCKS)?, &clocks);

    let set = guest.run(VOLTAGE)?;
    expect_on_host(
        report,
        &mut host,
        "1 V for vdd-core",
        &set,
        "voltage:vdd-core.microvolts 1000000",
    )?;
    report.expect("kHz, by cpufreq", &guest.run(FREQUENCY)?, "1400000");
    if report.stock {
        report.leave_out("powercap", "Debian's kernel has none");
        return Ok(());
    }
    let set = guest.run(LIMIT)?;
    expect_on_host(
        report,
        &mut host,
        "7.5 W by powercap",
        &set,
        "powercap:package.cap 7500000",
    )
}

/// What the guest has set is there on the host: the control socket says this, a name and its value.
fn expect_on_host(
    report: &mut Report,
    host: &mut Control,
    title: &str,
    set: &CommandOutput,
    expected: &str,
) -> Result<()> {
    let (name, state) = expected.split_once(' ').unwrap_or((expected, ""));
    let seen = host.ask(&format!("get {name}"))?;
    let shown = match set.status {
        0 if seen == expected => Ok(report.style.good(&format!("the host sees {state}"))),
        0 => Err(format!("{title}: {expected}, instead {seen}")),
        _ => Err(format!("{title}: instead {set}")),
    };
    report.check(title, shown);
    Ok(())
}
