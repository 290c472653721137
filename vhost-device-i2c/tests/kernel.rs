//! The daemon on buses of the kernel: what simulators do not have.
//!
//! These tests are ignored but in the host guest, which `tests/guest/tests/host.rs` boots: they
//! need its buses, and change them.

mod support;

use std::fs;

use support::{Daemon, ERR, Message, OK, PROGRAM, buses, statuses, transfer};
use vhost_device_driver::Driver;

const REGISTERS: u8 = 0x20;
const EEPROM: u8 = 0x50;
const NOBODY: u8 = 0x51;

/// How many messages fit into the queue that QEMU gives the host guest's adapter.
const QEMU_QUEUE: usize = 4;

/// N of `/dev/i2c-N`.
fn number(path: &str) -> &str {
    path.strip_prefix("/dev/i2c-")
        .unwrap_or_else(|| panic!("{path} is not the kernel's: is this the host guest?"))
}

/// The bus's directory in sysfs.
fn sysfs(path: &str) -> String {
    format!("/sys/bus/i2c/devices/i2c-{}", number(path))
}

#[track_caller]
fn assert_register(guest: &mut Driver, value: u8) {
    let messages = [Message::Write(REGISTERS, &[9]), Message::Read(REGISTERS, 1)];
    let answers = transfer(guest, &messages);
    assert_eq!(statuses(&answers), [OK, OK]);
    assert_eq!(answers[1].bytes, [value]);
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn kernel_buses_are_found_by_number_name_and_path() {
    for (value, bus) in (1..).zip(buses::each()) {
        let name = fs::read_to_string(format!("{}/name", sysfs(&bus))).unwrap();
        let daemon = Daemon::start(&["-l", &bus]);
        let write = [Message::Write(REGISTERS, &[9, value])];
        let answers = transfer(&mut daemon.guest("s"), &write);
        assert_eq!(statuses(&answers), [OK]);
        daemon.stop();
        for called in [number(&bus), name.trim_end(), &sysfs(&bus)] {
            let daemon = Daemon::start(&["-l", called]);
            assert_register(&mut daemon.guest("s"), value);
            daemon.stop();
        }
        // All of them are one bus: else 0x20 would be on two.
        let (number, sysfs) = (number(&bus), sysfs(&bus));
        let list = format!("{bus}:0x20,{number}:0x20-0x50,{sysfs}");
        Daemon::start(&["-l", &list]).stop();
    }
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn kernel_settings_are_taken_or_refused() {
    for bus in buses::each() {
        Daemon::start(&["-l", &bus, "--timeout", "1000", "--retries", "1"]).stop();
        // More than the kernel's int.
        let wrong = ["-s", "/nowhere/s", "-l", &bus, "--retries", "4000000000"];
        let (code, text) = PROGRAM.run(&wrong);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("--retries 4000000000 cannot be set"),
            "{text}"
        );
    }
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn kernel_drivers_keep_their_addresses_on_an_smbus_adapter() {
    let bus = buses::smbus();
    let daemon = Daemon::start(&["-l", &bus]);
    let mut guest = daemon.guest("s");
    let mut read = |address| {
        let messages = [Message::Write(address, &[0]), Message::Read(address, 1)];
        statuses(&transfer(&mut guest, &messages))
    };
    fs::write(format!("{}/new_device", sysfs(&bus)), "24c02 0x50").unwrap();
    assert_eq!(read(EEPROM), [ERR, ERR]);
    assert_eq!(read(REGISTERS), [OK, OK]);
    fs::write(format!("{}/delete_device", sysfs(&bus)), "0x50").unwrap();
    assert_eq!(read(EEPROM), [OK, OK]);
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn i8_kernel_what_the_adapter_left_out_is_an_error() {
    let daemon = Daemon::start(&["-l", &buses::i2c()]);
    let mut guest = daemon.guest("s");
    for count in [QEMU_QUEUE, QEMU_QUEUE + 1, 20] {
        let messages = vec![Message::Read(REGISTERS, 1); count];
        let expected: Vec<_> = (0..count)
            .map(|number| if number < QEMU_QUEUE { OK } else { ERR })
            .collect();
        assert_eq!(statuses(&transfer(&mut guest, &messages)), expected);
    }
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn i6_kernel_the_longest_message_is_read_whole() {
    let daemon = Daemon::start(&["-l", &buses::i2c()]);
    let mut guest = daemon.guest("s");
    let write = [Message::Write(REGISTERS, &[0xff, 1, 2])];
    assert_eq!(statuses(&transfer(&mut guest, &write)), [OK]);
    let messages = [
        Message::Write(REGISTERS, &[0xff]),
        Message::Read(REGISTERS, 8192),
    ];
    let answers = transfer(&mut guest, &messages);
    assert_eq!(statuses(&answers), [OK, OK]);
    let bytes = &answers[1].bytes;
    assert_eq!((bytes[0], bytes[1]), (1, 2));
    assert!(
        bytes
            .iter()
            .zip(&bytes[256..])
            .all(|(one, next)| one == next)
    );
    let long = transfer(&mut guest, &[Message::Read(REGISTERS, 8193)]);
    assert_eq!(statuses(&long), [ERR]);
}

#[test]
#[ignore = "needs the kernel's buses of the host guest"]
fn kernel_an_address_without_a_device_is_no_failure_of_the_bus() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        let scan = transfer(&mut guest, &[Message::Read(NOBODY, 1)]);
        assert_eq!(statuses(&scan), [ERR]);
        let found = transfer(&mut guest, &[Message::Read(REGISTERS, 1)]);
        assert_eq!(statuses(&found), [OK]);
        daemon.stop();
    }
}
