//! The daemon on hardware of the kernel.
//!
//! These tests are ignored but in the host guest, which `tests/guest/tests/host.rs` boots: it has
//! chips of the kernel's `gpio-sim`, and an LM75 at address 0x48 of the SMBus that `i2c-stub` makes.

mod support;

use std::fs;

use support::{DEADLINE, PROGRAM, RESET, SENSOR};
use vhost_device_rig::{GpioSim, wait_until};

const POWER: u8 = 0x11;
const STATE_SET: u8 = 0x4;
const STATE_GET: u8 = 0x5;
/// DEN0056, "Power domain power state parameter": off, without what it held.
const OFF: u32 = 1 << 30;
const ON: u32 = 0;

/// `RESET`: hold it, let it go.
const DOMAIN_RESET: u8 = 0x4;
const ASSERT: u32 = 1 << 1;

const NOT_SUPPORTED: i32 = -1;

/// A daemon for two guests with this platform, in its own directory.
fn start(platform: &str) -> vhost_device_rig::Daemon {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("platform.toml");
    fs::write(&file, platform).unwrap();
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.args(["-c", "2", "--platform"]).arg(file);
    vhost_device_rig::Daemon::spawn(command, directory)
}

#[track_caller]
fn expect(chip: &GpioSim, line: usize, high: bool) {
    wait_until(
        || chip.is_high(line) == high,
        || format!("line {line} is {high}"),
    );
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_are_switches_and_resets() {
    let chip = GpioSim::new("board", &["MODEM_PWR", "PHY_RESET"]);
    let path = chip.device().to_str().unwrap();
    let daemon = start(&format!(
        r#"
        [[power]]
        name = "modem"
        gpio = {{ chip = "{path}", line = "MODEM_PWR", initial = true }}
        control = [0]

        [[reset]]
        name = "phy"
        gpio = {{ chip = "{path}", line = "1", active-low = true, initial = false }}
        control = "all"
        "#
    ));
    // As the file says, before any guest is there: a reset that is low when it is held.
    expect(&chip, 0, true);
    expect(&chip, 1, true);
    let [mut first, mut second] = ["s0", "s1"].map(|name| support::Guest::connect(&daemon, name));
    assert_eq!(first.ok(POWER, STATE_GET, &[0]), [ON]);
    first.ok(POWER, STATE_SET, &[0, 0, OFF]);
    expect(&chip, 0, false);
    assert_eq!(second.ok(POWER, STATE_GET, &[0]), [OFF]);
    let (status, results) = second.command(POWER, STATE_SET, &[0, 0, ON]);
    assert_eq!((status, results.len()), (NOT_SUPPORTED, 0));
    expect(&chip, 0, false);
    first.ok(POWER, STATE_SET, &[0, 0, ON]);
    expect(&chip, 0, true);
    second.ok(RESET, DOMAIN_RESET, &[0, ASSERT, 0]);
    expect(&chip, 1, false);
    first.ok(RESET, DOMAIN_RESET, &[0, 0, 0]);
    expect(&chip, 1, true);
    drop((first, second));
    daemon.stop();
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_are_left_alone_by_check() {
    let chip = GpioSim::new("checked", &["A", "B"]);
    let path = chip.device().to_str().unwrap();
    let platform = format!(
        r#"
        [[power]]
        name = "modem"
        gpio = {{ chip = "{path}", line = "A", initial = true }}
        control = "all"

        [[reset]]
        name = "phy"
        gpio = {{ chip = "{path}", line = "1" }}
        "#
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("platform.toml");
    fs::write(&file, &platform).unwrap();
    let check = || {
        PROGRAM.run(&[
            "--check=json",
            "-c",
            "2",
            "--platform",
            file.to_str().unwrap(),
        ])
    };
    let (status, text) = check();
    assert_eq!(status, 0, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["not_here"], serde_json::json!([]), "{text}");
    // Nobody has driven it, nor has it.
    assert!(!chip.is_high(0));
    let daemon = start(&platform);
    expect(&chip, 0, true);
    // What a running daemon has is said, and left to it.
    let (status, text) = check();
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("is in use by"), "{text}");
    expect(&chip, 0, true);
    daemon.stop();
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_that_cannot_be_had_are_refused() {
    let chip = GpioSim::new("taken", &["A", "B"]);
    let path = chip.device().to_str().unwrap();
    let switch = |line: &str| {
        format!(
            "[[power]]\nname = \"modem\"\ncontrol = \"all\"\n\
             gpio = {{ chip = \"{path}\", line = \"{line}\" }}\n"
        )
    };
    let holder = start(&switch("A"));
    for (line, why) in [("A", "in use"), ("9", "line"), ("C", "line")] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("platform.toml");
        fs::write(&file, switch(line)).unwrap();
        let file = file.to_str().unwrap();
        let (status, text) = PROGRAM.run(&["-s", "/nowhere/s", "--platform", file]);
        assert_eq!(status, 1, "{line}: {text}");
        assert!(
            text.contains(why) && text.contains("line 4"),
            "{line}: {text}"
        );
    }
    holder.stop();
}

#[test]
#[ignore = "needs the LM75 of the host guest"]
fn kernel_sensors_are_read() {
    let daemon = start(
        r#"
        [[sensor]]
        name = "board-temp"
        hwmon = { chip = "lm75", channel = "temp1" }
        "#,
    );
    let mut guest = support::Guest::connect(&daemon, "s1");
    // SENSOR_DESCRIPTION_GET: °C, in thousandths.
    let found = guest.ok(SENSOR, 0x3, &[0]);
    let (unit, scale) = (found[3] & 0xff, (found[3] >> 11 & 0x1f) as i32);
    assert_eq!((unit, scale), (2, 32 - 3), "{found:x?}");
    // SENSOR_CONFIG_SET, then SENSOR_READING_GET.
    guest.ok(SENSOR, 0xa, &[0, 1]);
    let degrees = |guest: &mut support::Guest| guest.ok(SENSOR, 0x6, &[0, 0])[0];
    assert_eq!(degrees(&mut guest), 25_000);
    // Somebody warms it: the first byte of the register, which the SMBus calls the low one.
    let set = std::process::Command::new("/usr/sbin/i2cset")
        .args(["-f", "-y", "0", "0x48", "0", "0x001e", "w"])
        .status();
    assert!(set.unwrap().success());
    let end = std::time::Instant::now() + DEADLINE;
    // The driver looks at the chip once in a while only.
    while degrees(&mut guest) != 30_000 {
        assert!(std::time::Instant::now() < end, "the reading stays");
        std::thread::yield_now();
    }
    drop(guest);
    daemon.stop();
}
