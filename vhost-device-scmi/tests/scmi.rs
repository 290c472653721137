//! The daemon as a process, with guests at its sockets.

mod support;

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use vhost_device_driver::Buffer;
use vhost_device_rig::opens_nothing_when_ready;

use support::{
    BASE, CLOCK, COMMANDS, Control, DEADLINE, Daemon, F_P2A_CHANNELS, Guest, PROGRAM, RESET,
    SENSOR, SYSTEM, VOLTAGE, header,
};

// Of the simulated platform.
const FAN: u32 = 5;
const SLOW: u32 = 6;

#[test]
fn v9_the_program_says_what_it_is_and_has() {
    let (status, text) = PROGRAM.run(&["--print-capabilities"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("\"type\":\"scmi\""), "{text}");
    let (status, text) = PROGRAM.run(&["--help-devices"]);
    assert_eq!(status, 0, "{text}");
    for device in ["- fake", "- iio", "- sim"] {
        assert!(text.contains(device), "{text}");
    }
    let (status, text) = PROGRAM.run(&["--help"]);
    assert_eq!(status, 0, "{text}");
    for option in [
        "--platform",
        "--device",
        "--sim",
        "--check",
        "--sim-control",
    ] {
        assert!(text.contains(option), "{text}");
    }
}

#[test]
fn v9_check_says_what_each_guest_is_given() {
    let arguments = ["--check", "--sim", "-c", "2"];
    let (status, text) = PROGRAM.run(&arguments);
    assert_eq!(status, 0, "{text}");
    for part in ["GUEST", "cpu-temp", "clock 0x14", "simulated", "\n1 "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (status, text) = PROGRAM.run(&["--check", "-d", "fake,name=a"]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn v9_a_reader_that_has_seen_enough_of_the_check_does_not_make_it_fail() {
    // Less than fits a pipe.
    let mut command = PROGRAM.command();
    command.args(["--check", "--sim", "-c", "4"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut table = child.stdout.take().unwrap();
    table.read_exact(&mut [0]).unwrap();
    drop(table);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn v9_check_of_the_example_works_as_it_says_itself() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/platform.toml");
    let text = std::fs::read_to_string(example).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("#     vhost-device-scmi "))
        .expect("its command line");
    let arguments: Vec<_> = line.split_whitespace().collect();
    let mut command = PROGRAM.command();
    command.args(&arguments);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"));
    let output = command.output().unwrap();
    let (table, error) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    // Its hardware is not here, and that is said.
    assert!(output.status.success(), "{error}");
    for part in [
        "soc-temp",
        "codec-mclk",
        "(not here)",
        "Not on this machine",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(table.contains("sensor[0].hwmon"), "{table}");
}

#[test]
fn v9_check_as_json_is_for_programs() {
    let (status, text) = PROGRAM.run(&["--check=json", "--sim", "-d", "iio,path=/nonexistent"]);
    assert_eq!(status, 0, "{text}");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["format"], 1);
    let first = &json["guests"][0]["resources"][0];
    assert_eq!(
        (&first["protocol"], &first["name"]),
        (&"power".into(), &"gpu".into())
    );
    assert_eq!(json["not_here"][0]["line"], serde_json::Value::Null);
    let (status, text) = PROGRAM.run(&["--check=yaml"]);
    assert_eq!(status, 2, "{text}");
    // A FILE behind it is not its format.
    let (status, text) = PROGRAM.run(&["--check", "--platform", "/nonexistent"]);
    assert_eq!(status, 1, "{text}");
}

#[test]
fn v9_what_cannot_be_given_is_refused() {
    for (arguments, status, why) in [
        (&["-s", "s", "-d", "dummy"][..], 2, "--help-devices"),
        (&["-s", "s", "-d", "iio,channel=x"], 2, "needs a path"),
        (
            &["-s", "s", "--platform", "/nonexistent"],
            1,
            "/nonexistent",
        ),
        (&["-s", "s", "-d", "fake", "-d", "fake"], 1, "the same name"),
        (
            &["--check", "--platform", "/nonexistent"],
            1,
            "/nonexistent",
        ),
        (&["--sim"], 2, "no socket"),
    ] {
        let (got, text) = PROGRAM.run(arguments);
        assert_eq!(got, status, "{arguments:?}: {text}");
        assert!(text.contains(why), "{arguments:?}: {text}");
    }
}

#[test]
fn s1_the_guest_is_offered_events() {
    let daemon = Daemon::start(&["--sim"]);
    let guest = daemon.guest("s");
    assert_eq!(guest.driver.features() & 0xff, F_P2A_CHANNELS);
    daemon.stop();
}

#[test]
fn test_a_guest_finds_all_protocols() {
    let daemon = Daemon::start(&["--sim"]);
    let mut guest = daemon.guest("s");
    assert_eq!(guest.ok(BASE, 0x0, &[]), [0x2_0001]);
    let list = guest.ok(BASE, 0x6, &[0]);
    assert_eq!(list, [9, 0x1413_1211, 0x1817_1615, 0x19]);
    assert_eq!(guest.command(0x1a, 0x0, &[]), (-1, vec![]));
    daemon.stop();
}

#[test]
fn test_bad_requests_do_not_stop_good_ones() {
    let daemon = Daemon::start(&["--sim"]);
    let mut guest = daemon.guest("s");
    let good = header(BASE, 0).to_le_bytes();
    for (bytes, room) in [(&good[..2], 100), (&good[..], 7), (&good[..], 0)] {
        assert!(guest.send(bytes, room).is_empty());
    }
    // A descriptor outside of memory, with good ones around it.
    let queue = &mut guest.driver.queues[COMMANDS];
    let head = queue
        .submit(&[Buffer::readable(0x1234_5678_9abc, 4)])
        .unwrap();
    queue.notify();
    let used = queue.wait_used(DEADLINE);
    assert_eq!((used.head, used.len), (head, 0));
    let (status, _) = guest.command(SENSOR, 0x6, &[0]);
    assert_eq!(status, -10, "parameters are missing");
    assert_eq!(guest.ok(BASE, 0x0, &[]), [0x2_0001]);
    daemon.stop();
}

#[test]
fn test_two_fake_devices_and_output_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.args(["-d", "fake,name=one", "--device", "fake,name=two"]);
    command.stdout(File::create(directory.path().join("stdout")).unwrap());
    let daemon = vhost_device_rig::Daemon::spawn(command, directory);
    let mut guest = Guest::connect(&daemon, "s");
    assert_eq!(guest.ok(BASE, 0x6, &[0]), [1, SENSOR.into()]);
    assert_eq!(guest.ok(SENSOR, 0x1, &[])[0] & 0xffff, 2);
    for reading in 0..2 {
        for sensor in 0..2 {
            let values = guest.ok(SENSOR, 0x6, &[sensor, 0]);
            let axes = [values[0], values[4], values[8]];
            assert_eq!(axes, [reading, reading + 100, reading + 200]);
        }
    }
    daemon.stop();
}

#[test]
fn s12_a_delayed_response_reaches_the_guest() {
    let daemon = Daemon::start(&["--sim"]);
    let mut guest = daemon.guest("s");
    guest.ok(SENSOR, 0x6, &[SLOW, 1]);
    guest.give(1);
    let (told, words) = guest.told();
    assert_eq!(told, header(SENSOR, 0x6) | 2 << 8);
    assert_eq!(words[..3], [0, SLOW, 21_500]);
    daemon.stop();
}

#[test]
fn test_a_trip_point_fires() {
    let daemon = Daemon::start(&["--sim"]);
    let mut guest = daemon.guest("s");
    let mut control = daemon.control();
    assert_eq!(control.ask("set sensor:fan 1000"), "sensor:fan 1000");
    guest.give(4);
    // Every 10 ms, so that the test need not wait for long.
    guest.ok(SENSOR, 0xa, &[FAN, 1 << 16 | 0b11110 << 11 | 1]);
    guest.ok(SENSOR, 0x5, &[FAN, 1, 3000, 0]);
    // The first update comes after the first reading.
    guest.ok(SENSOR, 0x4, &[FAN, 1]);
    guest.ok(SENSOR, 0xb, &[FAN, 1]);
    assert_eq!(guest.notice(SENSOR, 1)[..3], [0, FAN, 1000]);
    guest.ok(SENSOR, 0xb, &[FAN, 0]);
    control.ask("set sensor:fan 3500");
    loop {
        guest.give(1);
        let (told, words) = guest.told();
        // Updates from before may still come.
        if told == header(SENSOR, 0) | 3 << 8 {
            assert_eq!(words, [0, FAN, 1 << 16]);
            break;
        }
    }
    daemon.stop();
}

#[test]
fn test_guests_hear_of_each_other() {
    let daemon = Daemon::start(&["--sim", "-c", "2"]);
    let mut first = daemon.guest("s0");
    let mut second = daemon.guest("s1");
    first.give(2);
    first.ok(CLOCK, 0x9, &[1, 1]);
    second.ok(CLOCK, 0x5, &[0, 1, 500_000_000, 0]);
    assert_eq!(first.notice(CLOCK, 0), [0, 1, 500_000_000, 0]);
    first.ok(CLOCK, 0x5, &[0, 1, 600_000_000, 0]);
    assert_eq!(first.notice(CLOCK, 0), [1, 1, 600_000_000, 0]);
    assert_eq!(second.ok(CLOCK, 0x6, &[1]), [600_000_000, 0]);
    daemon.stop();
}

#[test]
fn test_the_world_sees_what_a_guest_does() {
    let daemon = Daemon::start(&["--sim"]);
    let mut guest = daemon.guest("s");
    let mut control = daemon.control();
    guest.ok(VOLTAGE, 0x7, &[1, 0, 3_300_000]);
    guest.ok(VOLTAGE, 0x5, &[1, 7]);
    let voltage = "voltage:vdd-io.microvolts";
    assert_eq!(
        control.ask(&format!("get {voltage}")),
        format!("{voltage} 3300000")
    );
    guest.ok(support::POWERCAP, 0x5, &[0, 0, 5_000_000]);
    let powercap = control.ask("get powercap:package.cap");
    assert_eq!(powercap, "powercap:package.cap 5000000");
    guest.ok(RESET, 0x4, &[0, 1, 0]);
    assert_eq!(control.ask("get reset:usb.resets"), "reset:usb.resets 1");
    guest.ok(SYSTEM, 0x3, &[0, 1]);
    assert_eq!(
        control.ask("get system:system"),
        "system:system guest 0 cold-reset"
    );
    assert!(control.ask("nothing").starts_with("error: "));
    daemon.stop();
}

#[test]
fn test_a_guest_is_asked_to_shut_down() {
    let daemon = Daemon::start(&["--sim"]);
    let mut control = daemon.control();
    assert!(control.ask("shutdown").starts_with("error: no guest"));
    let mut guest = daemon.guest("s");
    guest.give(1);
    guest.ok(SYSTEM, 0x5, &[1]);
    assert_eq!(control.ask("shutdown"), "told 0");
    assert_eq!(guest.notice(SYSTEM, 0), [0, 1, 0, 30_000]);
    daemon.stop();
}

#[test]
fn test_hardware_that_fails_does_not_fill_the_log_however_much_there_is() {
    const SENSORS: u32 = 50;
    let directory = tempfile::tempdir().unwrap();
    let mut platform = String::new();
    for number in 0..SENSORS {
        std::fs::write(directory.path().join(format!("hook{number}")), "broken\n").unwrap();
        platform += &format!("[[sensor]]\nname = \"{number}\"\nunit = \"none\"\n");
        platform += &format!("hook = \"hook{number}\"\n");
    }
    let file = directory.path().join("platform.toml");
    std::fs::write(&file, platform).unwrap();
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.arg("--platform").arg(file);
    let daemon = vhost_device_rig::Daemon::spawn(command, directory);
    let mut guest = Guest::connect(&daemon, "s");
    let start = std::time::Instant::now();
    for sensor in 0..SENSORS {
        assert_eq!(guest.command(SENSOR, 0x6, &[sensor, 0]).0, -9);
    }
    let seconds = start.elapsed().as_secs() as usize;
    daemon.wait_for_log("cannot read");
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("cannot read"));
    assert!(lines.count() <= seconds + 1, "{log}");
    daemon.stop();
}

#[test]
fn v7_the_next_connection_starts_clean() {
    let daemon = Daemon::start(&["--sim"]);
    let mut control = daemon.control();
    let mut guest = daemon.guest("s");
    guest.ok(RESET, 0x5, &[0, 1]);
    guest.ok(SYSTEM, 0x5, &[1]);
    guest.ok(SENSOR, 0xa, &[0, 1]);
    drop(guest);
    let mut guest = daemon.guest("s");
    assert_eq!(guest.ok(SENSOR, 0x9, &[0])[0] & 1, 0, "the sensor is off");
    assert!(control.ask("shutdown").starts_with("error: no guest"));
    guest.give(2);
    guest.ok(RESET, 0x4, &[0, 1, 0]);
    guest.ok(RESET, 0x5, &[1, 1]);
    guest.ok(RESET, 0x4, &[1, 1, 0]);
    assert_eq!(guest.notice(RESET, 0), [1, 1, 0], "and nothing before it");
    daemon.stop();
}

#[test]
fn nothing_is_opened_when_the_daemon_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let arguments = ["--sim", "--sim-control", control.to_str().unwrap()];
    opens_nothing_when_ready(PROGRAM, &arguments, |daemon| {
        let mut guest = Guest::connect(daemon, "s");
        guest.give(1);
        guest.ok(RESET, 0x5, &[0, 1]);
        guest.ok(RESET, 0x4, &[0, 1, 0]);
        guest.notice(RESET, 0);
        guest.ok(SENSOR, 0x6, &[0, 0]);
        assert!(!Control::connect(&control).ask("help").is_empty());
    });
}
