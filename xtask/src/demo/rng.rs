//! Entropy: the driver, a sample, and how fast it comes.

use std::path::Path;

use anyhow::Result;
use vhost_device_guest::{Arch, CommandOutput, Daemon, RunningGuest};

use super::{Report, Section};
use crate::style::Style;

pub(super) const SECTION: Section = Section {
    title: "vhost-device-rng: entropy",
    archs: Arch::ALL,
    elsewhere: "",
    device_tree: "",
    daemon,
    show,
};

/// The drivers that bound to entropy devices: those with virtio's number 4.
const DRIVER: &str = "for id in $(grep -lx 0x0004 /sys/bus/virtio/devices/*/device); do \
    basename \"$(readlink \"${id%/device}/driver\")\"; done";
const CURRENT: &str = "cat /sys/class/misc/hw_random/rng_current";
const SAMPLE: &str = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1";
const MEASURE: &str = "time dd if=/dev/hwrng of=/dev/null bs=16k count=16";
const MEASURED_BYTES: u32 = 1 << 18;
/// What `dd` says when it copied all of them.
const MEASURED: &str = "16+0 records out";
/// Busybox's `time` tells no shorter ones.
const SHORTEST: f64 = 0.01;

fn daemon(_directory: &Path) -> Daemon {
    Daemon::new("vhost-device-rng").device("vhost-user-rng-pci")
}

fn show(guest: &mut RunningGuest, report: &mut Report, _directory: &Path) -> Result<()> {
    let style = report.style;
    report.expect("driver bound", &guest.run(DRIVER)?, "virtio_rng");
    report.expect("current hwrng", &guest.run(CURRENT)?, "virtio_rng.0");
    report.check("64 bytes of it", dump(&guest.run(SAMPLE)?, style));
    report.check("256 KiB of it", speed(&guest.run(MEASURE)?, style));
    Ok(())
}

/// The 64 bytes as they were dumped, a line for each 16.
fn dump(seen: &CommandOutput, style: Style) -> Result<String, String> {
    let bytes: Vec<&str> = seen.output.split_whitespace().collect();
    if bytes.len() != 64 || bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err(format!("64 bytes of entropy, instead {seen}"));
    }
    let lines = bytes.chunks(16).map(|line| style.data(&line.join(" ")));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Bytes in a second, of the time that the guest's `dd` took.
fn speed(seen: &CommandOutput, style: Style) -> Result<String, String> {
    match seconds(&seen.output) {
        Some(seconds) if seen.output.contains(MEASURED) => {
            let rate = f64::from(MEASURED_BYTES) / seconds;
            let rate = style.good(&format!("{} bytes/s", grouped(rate)));
            let note = style.faint("(on an emulated CPU)");
            Ok(format!("{rate} in {seconds:.2} s {note}"))
        }
        _ => Err(format!("256 KiB of entropy, instead {seen}")),
    }
}

/// The time in the line `real 0m 1.52s` of busybox's `time`.
fn seconds(output: &str) -> Option<f64> {
    let time = output.lines().find_map(|line| line.strip_prefix("real"))?;
    let (minutes, seconds) = time.trim().split_once("m ")?;
    let minutes: f64 = minutes.parse().ok()?;
    let seconds: f64 = seconds.strip_suffix('s')?.parse().ok()?;
    Some((minutes * 60.0 + seconds).max(SHORTEST))
}

/// A whole number with its digits in groups of three.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups = groups.map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_off_busybox_time() {
        let printed = "16+0 records out\nreal\t1m 2.25s\nuser\t0m 0.01s\n";
        assert_eq!(seconds(printed), Some(62.25));
        assert_eq!(seconds("real\t0m 0.00s"), Some(SHORTEST));
        assert_eq!(seconds("dd: /dev/hwrng: No such device"), None);
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(12.0), "12");
        assert_eq!(grouped(1_234_567.4), "1 234 567");
    }
}
