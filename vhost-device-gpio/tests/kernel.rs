//! The daemon on chips of the kernel: what a simulated chip does not have.
//!
//! These tests are ignored but in the host guest, which `tests/guest/tests/host.rs` boots: they
//! make chips of the kernel's `gpio-sim`.

mod support;

use std::fs::File;
use std::os::unix::net::UnixStream;

use gpiocdev_uapi::v2::{
    LineConfig, LineFlags, LineInfo, LineRequest, Offsets, get_line, get_line_info,
};
use support::{
    GET_DIRECTION, GET_LINE_NAMES, GET_VALUE, IN, OK, OUT, PROGRAM, REQUESTS, RISING,
    SET_DIRECTION, SET_IRQ_TYPE, SET_VALUE, VALID, event, header, ok, options, request, send,
    unmask, wait,
};
use vhost_device_rig::{GpioSim, wait_until};

fn path(chip: &GpioSim) -> &str {
    chip.device().to_str().unwrap()
}

/// `gpiochipN`.
fn name(chip: &GpioSim) -> &str {
    chip.device().file_name().unwrap().to_str().unwrap()
}

fn open(chip: &GpioSim) -> File {
    let mut options = File::options();
    options.read(true).write(true).open(chip.device()).unwrap()
}

fn info(chip: &GpioSim, line: u32) -> LineInfo {
    get_line_info(&open(chip), line).unwrap()
}

#[track_caller]
fn expect(chip: &GpioSim, line: usize, high: bool) {
    wait_until(
        || chip.is_high(line) == high,
        || format!("line {line} is {high}"),
    );
}

/// Does not start, for this reason.
#[track_caller]
fn refused(arguments: &[&str], message: &str) {
    let (code, text) = PROGRAM.run(&[&["-s", "/nowhere/s"], arguments].concat());
    assert_eq!(code, 1, "{arguments:?}: {text}");
    assert!(text.contains(message), "{arguments:?}: {text}");
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_of_several_chips_come_in_the_order_of_the_list() {
    let one = GpioSim::new("one", &["a", "b", "c"]);
    let two = GpioSim::new("two", &["d", "e"]);
    let list = format!("c,0@{}:first+e@{}", path(&one), name(&two));
    let daemon = PROGRAM.start(&["-l", &list]);
    let mut guest = daemon.guest("s", options());
    let names = b"first\0a\0e\0";
    let room = 1 + names.len() as u32;
    let sent = send(&mut guest, REQUESTS, &header(GET_LINE_NAMES, 0, 0), room);
    assert_eq!(wait(&mut guest, REQUESTS, sent)[1..], names[..]);
    for (line, chip, offset) in [(0, &one, 2), (1, &one, 0), (2, &two, 1)] {
        ok(&mut guest, SET_VALUE, line, 1);
        ok(&mut guest, SET_DIRECTION, line, OUT);
        assert!(chip.is_high(offset));
        let consumer = String::from(&info(chip, offset as u32).consumer);
        assert_eq!(consumer, "vhost-device-gpio 0");
    }
    // The others are nobody's.
    for (chip, offset) in [(&one, 1), (&two, 0)] {
        assert!(!info(chip, offset).flags.contains(LineFlags::USED));
    }
    drop(guest);
    daemon.stop();
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_that_cannot_be_had_are_refused() {
    let chip = GpioSim::new("refused", &["a", "twin", "twin"]);
    let (path, name) = (path(&chip), name(&chip));
    let holder = PROGRAM.start(&["-l", path, "--safe", &format!("0@{path}=1")]);
    let user = format!("line 0 of {name} is in use by \"vhost-device-gpio 0\"");
    refused(&["-l", path], &user);
    holder.stop();
    refused(&["-l", &format!("3@{path}")], "has no line 3: it has 3");
    refused(
        &["-l", &format!("b@{path}")],
        "no line that is called \"b\"",
    );
    refused(&["-l", &format!("twin@{path}")], "several lines");
    // Two names of one chip.
    let (first, second) = (format!("0-1@{path}"), format!("1@/dev/../dev/{name}"));
    let twice = format!("line 1 of {name} is given to guest 0 and to guest 1");
    refused(&["-c", "2", "-l", &first, "-l", &second], &twice);
    let unused = format!("line 1 of {name}, which no guest has");
    for option in ["--safe", "--attr"] {
        let value = if option == "--safe" { "1" } else { "pull-up" };
        let setting = format!("1@{path}={value}");
        refused(&["-l", &format!("0@{path}"), option, &setting], &unused);
    }
    // Nothing was taken on the way.
    assert!((0..3).all(|line| !info(&chip, line).flags.contains(LineFlags::USED)));
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_lines_that_are_taken_while_the_guest_is_away_are_told_of() {
    let chip = GpioSim::new("taken", &["a"]);
    let daemon = PROGRAM.start(&["-l", path(&chip)]);
    let request = LineRequest {
        offsets: Offsets::from_slice(&[0]),
        consumer: "somebody".into(),
        config: LineConfig::default(),
        num_lines: 1,
        ..LineRequest::default()
    };
    let line = get_line(&open(&chip), request).unwrap();
    drop(UnixStream::connect(daemon.path("s")).unwrap());
    daemon.wait_for_log("is in use by \"somebody\"");
    drop(line);
    let mut guest = daemon.guest("s", options());
    ok(&mut guest, SET_DIRECTION, 0, IN);
    drop(guest);
    daemon.stop();
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_safe_values_are_there_while_the_guest_is_not() {
    let chip = GpioSim::new("safe", &["a", "b"]);
    let path = path(&chip);
    let safe = format!("0@{path}=1");
    // As the guest sees it: high on the line.
    let (low, active_low) = (format!("1@{path}=0"), format!("1@{path}=active-low"));
    let daemon = PROGRAM.start(&[
        "-l",
        path,
        "--safe",
        &safe,
        "--safe",
        &low,
        "--attr",
        &active_low,
    ]);
    for _ in 0..2 {
        for line in [0, 1] {
            expect(&chip, line, true);
        }
        let mut guest = daemon.guest("s", options());
        for line in [0, 1] {
            assert_eq!(request(&mut guest, GET_DIRECTION, line, 0), [OK, 0]);
        }
        assert!(chip.is_high(0) && chip.is_high(1), "they stay as they are");
        for (line, level) in [(0, 0), (1, 1)] {
            ok(&mut guest, SET_VALUE, line, level);
            ok(&mut guest, SET_DIRECTION, line, OUT);
            assert!(!chip.is_high(line.into()));
        }
        drop(guest);
    }
    for line in [0, 1] {
        expect(&chip, line, true);
    }
    daemon.stop();
    assert!(!info(&chip, 0).flags.contains(LineFlags::USED));
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_attributes_are_what_the_host_makes_of_lines() {
    let chip = GpioSim::new("attributes", &["a", "b", "c", "d", "e", "f", "g"]);
    let path = path(&chip);
    let attributes = [
        ("active-low", OUT, LineFlags::ACTIVE_LOW),
        ("pull-up", IN, LineFlags::BIAS_PULL_UP),
        ("pull-down", IN, LineFlags::BIAS_PULL_DOWN),
        ("no-bias", IN, LineFlags::BIAS_DISABLED),
        ("open-drain", OUT, LineFlags::OPEN_DRAIN),
        ("open-source", OUT, LineFlags::OPEN_SOURCE),
    ];
    let mut arguments = vec!["-l".to_owned(), path.to_owned()];
    for (line, (attribute, ..)) in attributes.iter().enumerate() {
        arguments.extend(["--attr".to_owned(), format!("{line}@{path}={attribute}")]);
    }
    arguments.extend(["--attr".to_owned(), format!("6@{path}=debounce=1000")]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let daemon = PROGRAM.start(&arguments);
    let mut guest = daemon.guest("s", options());
    for (line, (attribute, direction, flag)) in (0..).zip(attributes) {
        ok(&mut guest, SET_DIRECTION, line, direction);
        let flags = info(&chip, line.into()).flags;
        assert!(flags.contains(flag), "{attribute}: {flags:?}");
    }
    for (line, high) in [(0, true), (1, true), (2, false)] {
        assert_eq!(chip.is_high(line), high, "line {line}");
    }
    assert_eq!(request(&mut guest, GET_VALUE, 1, 0), [OK, 1]);
    // What bounces is seen when it has come to rest.
    ok(&mut guest, SET_DIRECTION, 6, IN);
    ok(&mut guest, SET_IRQ_TYPE, 6, RISING);
    let buffer = unmask(&mut guest, 6);
    assert_eq!(info(&chip, 6).num_attrs, 1);
    chip.pull(6, true);
    assert_eq!(event(&mut guest, buffer), VALID);
    drop(guest);
    daemon.stop();
}
