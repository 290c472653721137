//! `cargo xtask demo`: a guest with the rng daemon, and what it sees.

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use vhost_device_guest::setup::{self, Progress};
use vhost_device_guest::{CommandOutput, Daemon, Guest, RunningGuest};

use crate::cargo;
use crate::style::{self, Style};

const PROGRAM: &str = "vhost-device-rng";

/// The drivers that bound to entropy devices: those with virtio's number 4.
const DRIVER: &str = "for id in $(grep -lx 0x0004 /sys/bus/virtio/devices/*/device); do \
    basename \"$(readlink \"${id%/device}/driver\")\"; done";
const CURRENT: &str = "cat /sys/class/misc/hw_random/rng_current";
const SAMPLE: &str = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1";
const MEASURE: &str = "time dd if=/dev/hwrng of=/dev/null bs=64k count=16";
const MEASURED_BYTES: u32 = 1 << 20;
/// What `dd` says when it copied all of them.
const MEASURED: &str = "16+0 records out";
/// Busybox's `time` tells no shorter ones.
const SHORTEST: f64 = 0.01;

/// Sets up, builds, boots, and shows.
pub(crate) fn run(keep: bool) -> Result<ExitCode> {
    ensure!(
        !keep || (io::stdin().is_terminal() && io::stdout().is_terminal()),
        "--keep gives the guest this terminal, but input or output is none"
    );
    setup::run(&Progress::new())?;
    let mut guest = boot(keep)?;
    let missing = show(&mut guest, style::stdout())?;
    if keep {
        println!("\nA shell in the guest: `exit` ends it, Ctrl-A X kills it.");
        guest.shell()?;
    }
    guest.power_off()?;
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for thing in missing {
        eprintln!("{} {thing}", style::stderr().bad("missing:"));
    }
    Ok(ExitCode::FAILURE)
}

fn boot(keep: bool) -> Result<RunningGuest> {
    let mut daemon = Daemon::new(PROGRAM).device("vhost-user-rng-pci");
    if env::var_os("VHOST_DEVICE_BIN_DIR").is_none() {
        cargo::run(&["build", "--release", "--package", PROGRAM])?;
        daemon = daemon.from_dir(cargo::release_dir()?);
    }
    let mut guest = Guest::new().attach(daemon);
    if keep {
        guest = guest.console_on_terminal();
    }
    eprintln!("Booting a guest with {PROGRAM} attached");
    guest.boot()
}

/// Shows what the guest sees, and gives back what it should see and does not.
fn show(guest: &mut RunningGuest, style: Style) -> Result<Vec<String>> {
    let seen = guest.run_all(&[DRIVER, CURRENT, SAMPLE, MEASURE])?;
    let driver = seen.line(0);
    let current = seen.line(1);
    let sample = seen.line(2);
    let measured = seen.line(3);

    println!("\n{}", style.bold("What the guest sees"));
    let mut missing = Vec::new();
    let mut check = |title: &str, shown: Result<String, String>| match shown {
        Ok(text) => println!("  {title:<20}{text}"),
        Err(what) => {
            println!("  {title:<20}{}", style.bad("missing"));
            missing.push(what);
        }
    };
    check("driver bound", expect(driver, "virtio_rng", style));
    check("current hwrng", expect(current, "virtio_rng.0", style));
    check("64 bytes of it", dump(sample, style));
    check("1 MiB of it", speed(measured, style));
    Ok(missing)
}

/// The output, when it is as expected.
fn expect(seen: &CommandOutput, expected: &str, style: Style) -> Result<String, String> {
    if seen.status == 0 && seen.output.trim() == expected {
        return Ok(style.good(expected));
    }
    Err(format!("{expected}, instead {seen}"))
}

/// The 64 bytes as they were dumped, a line for each 16.
fn dump(seen: &CommandOutput, style: Style) -> Result<String, String> {
    let bytes: Vec<&str> = seen.output.split_whitespace().collect();
    if bytes.len() != 64 || bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err(format!("64 bytes of entropy, instead {seen}"));
    }
    let lines = bytes.chunks(16).map(|line| style.data(&line.join(" ")));
    Ok(lines.collect::<Vec<_>>().join(&format!("\n{:22}", "")))
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
        _ => Err(format!("1 MiB of entropy, instead {seen}")),
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
