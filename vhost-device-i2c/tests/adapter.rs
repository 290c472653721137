//! The I2C adapter in its daemon, with a guest on the other side of the socket.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::{
    Daemon, ERR, FAIL_NEXT, Message, OK, PROGRAM, ZERO_LENGTH_REQUEST, buses, options, requests,
    statuses, submit, transfer,
};
use vhost_device_driver::guest::{ALL_STEPS, Step};
use vhost_device_driver::{Buffer, Driver, Frontend};
use vhost_device_rig::{opens_nothing_when_ready, wait_until};

const EEPROM: u8 = 0x50;
const REGISTERS: u8 = 0x20;
const LM75: u8 = 0x48;
const TROUBLEMAKER: u8 = 0x30;
const NOBODY: u8 = 0x51;

fn read_register(guest: &mut Driver, address: u8, register: u8, length: u32) -> Vec<u8> {
    let messages = [
        Message::Write(address, &[register]),
        Message::Read(address, length),
    ];
    let answers = transfer(guest, &messages);
    assert_eq!(statuses(&answers), [OK, OK]);
    answers[1].bytes.clone()
}

fn write_registers(guest: &mut Driver, address: u8, bytes: &[u8]) {
    let answers = transfer(guest, &[Message::Write(address, bytes)]);
    assert_eq!(statuses(&answers), [OK]);
}

/// The device goes on: a register takes a value and has it.
fn assert_works(guest: &mut Driver, value: u8) {
    write_registers(guest, REGISTERS, &[0, value]);
    assert_eq!(read_register(guest, REGISTERS, 0, 1), [value]);
}

#[test]
fn i1_i2_zero_length_requests_are_offered_and_must_be_taken() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let guest = daemon.guest("s");
        assert_eq!(guest.offered() & 0xff_ffff, ZERO_LENGTH_REQUEST);
        drop(guest);
        let path = daemon.directory.path().join("s");
        let without = options().without_features(ZERO_LENGTH_REQUEST);
        assert!(Driver::connect(&path, without).is_err());
        assert_works(&mut daemon.guest("s"), 0x11);
        daemon.stop();
    }
}

/// QEMU asks for no answer: the driver goes on as if its features had been accepted.
#[test]
fn i2_c4_a_driver_that_was_refused_is_not_served() {
    let daemon = Daemon::start(&["-l", "sim"]);
    let frontend = Frontend::connect(daemon.path("s")).unwrap();
    let without = options().without_features(ZERO_LENGTH_REQUEST);
    let mut guest = Driver::prepare(frontend, without);
    let is_features = |step: &Step| *step == Step::SetFeatures;
    let at = ALL_STEPS.iter().position(is_features).unwrap();
    guest.run(&ALL_STEPS[..at]).unwrap();
    guest.frontend.set_need_reply(false);
    guest.run(&ALL_STEPS[at..]).unwrap();
    submit(&mut guest, Message::Write(REGISTERS, &[0, 1]), 0);
    guest.queues[0].kick();
    // More round trips than there are messages in a turn of the session's.
    (0..70).for_each(|_| guest.frontend.sync().unwrap());
    assert!(!guest.queues[0].ring.has_used());
    assert_eq!(guest.queues[0].take_calls(), 0);
    daemon.wait_for_log("has not accepted VIRTIO_I2C_F_ZERO_LENGTH_REQUEST");
    // With it, the same request is done.
    let features = guest.features() | ZERO_LENGTH_REQUEST;
    guest.set_features(features).unwrap();
    guest.queues[0].wait_used(support::DEADLINE);
    drop(guest);
    daemon.stop();
}

#[test]
fn i3_the_simulated_devices_are_all_there() {
    let daemon = Daemon::start(&["-l", "sim", "--sim-temperature", "-10.5"]);
    let mut guest = daemon.guest("s");
    let write = transfer(&mut guest, &[Message::Write(EEPROM, &[0x10, 1, 2, 3])]);
    assert_eq!(statuses(&write), [OK]);
    assert_eq!(read_register(&mut guest, EEPROM, 0x10, 4), [1, 2, 3, 0xff]);
    assert_eq!(read_register(&mut guest, LM75, 0, 2), [0xf5, 0x80]);
    daemon.stop();
}

#[test]
fn i3_what_was_written_is_read() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        for address in [REGISTERS, EEPROM] {
            write_registers(&mut guest, address, &[0x10, 1, 2, 3, 4]);
            assert_eq!(read_register(&mut guest, address, 0x10, 4), [1, 2, 3, 4]);
            write_registers(&mut guest, address, &[0x11, 5]);
            assert_eq!(read_register(&mut guest, address, 0x10, 4), [1, 5, 3, 4]);
            // A read alone goes on where the pointer is.
            let messages = [Message::Write(address, &[0x11])];
            assert_eq!(statuses(&transfer(&mut guest, &messages)), [OK]);
            for expected in [5, 3] {
                let read = transfer(&mut guest, &[Message::Read(address, 1)]);
                assert_eq!((read[0].status, &read[0].bytes[..]), (OK, &[expected][..]));
            }
        }
    }
}

#[test]
fn i3_a_transfer_of_several_messages_and_many_bytes_is_one() {
    // No SMBus call does that.
    let daemon = Daemon::start(&["-l", &buses::i2c()]);
    let mut guest = daemon.guest("s");
    let bytes: Vec<u8> = (0..=200).collect();
    write_registers(&mut guest, REGISTERS, &bytes);
    let answers = transfer(
        &mut guest,
        &[
            Message::Write(REGISTERS, &[0x7f]),
            Message::Read(REGISTERS, 3),
            Message::Read(REGISTERS, 70),
        ],
    );
    assert_eq!(statuses(&answers), [OK; 3]);
    assert_eq!(answers[1].bytes, bytes[0x80..0x83]);
    assert_eq!(answers[2].bytes, bytes[0x83..0x83 + 70]);
}

#[test]
fn i8_i9_groups_fail_for_themselves() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        let answers = requests(
            &mut guest,
            &[
                (Message::Write(REGISTERS, &[1, 7]), 0),
                (Message::Write(NOBODY, &[1]), FAIL_NEXT),
                (Message::Write(REGISTERS, &[1, 66]), 0),
                (Message::Write(REGISTERS, &[1]), FAIL_NEXT),
                (Message::Read(REGISTERS, 1), 0),
            ],
        );
        assert_eq!(statuses(&answers), [OK, ERR, ERR, OK, OK]);
        assert_eq!(answers[4].bytes, [7]);
        let used: Vec<_> = answers.iter().map(|answer| answer.used).collect();
        assert_eq!(used, [1, 1, 1, 1, 2], "what was written, not what was read");
    }
}

#[test]
fn i9_a_group_whose_end_does_not_come_is_done() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        let messages = [(Message::Write(REGISTERS, &[1, 7]), FAIL_NEXT)];
        assert_eq!(statuses(&requests(&mut guest, &messages)), [OK]);
        assert_eq!(read_register(&mut guest, REGISTERS, 1, 1), [7]);
    }
}

#[test]
fn i9_a_group_that_comes_in_parts_is_one() {
    'buses: for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus, "--poll-us", "1000"]);
        let mut guest = daemon.guest("s");
        for _ in 0..20 {
            guest.arena.clear();
            submit(&mut guest, Message::Write(NOBODY, &[1]), FAIL_NEXT);
            guest.queues[0].kick();
            guest.frontend.sync().unwrap();
            let (_, _, _, status) = submit(&mut guest, Message::Write(REGISTERS, &[1, 66]), 0);
            guest.queues[0].kick();
            for _ in 0..2 {
                guest.queues[0].wait_used(support::DEADLINE);
            }
            let status = guest.memory.read_vec(status, 1);
            // Unless this test was stopped for longer than an open group waits.
            if status == [ERR] {
                continue 'buses;
            }
        }
        panic!("the group was torn each time");
    }
}

#[test]
fn i11_zero_length_requests_find_devices() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        for (address, expected) in [(EEPROM, OK), (NOBODY, ERR)] {
            let write = transfer(&mut guest, &[Message::Write(address, &[])]);
            let read = transfer(&mut guest, &[Message::Read(address, 0)]);
            assert_eq!((write[0].status, read[0].status), (expected, expected));
        }
    }
}

#[test]
fn test_access_is_checked_for_every_message() {
    for bus in buses::each() {
        let list = format!("{bus}:0x20:72");
        let daemon = Daemon::start(&["-l", &list, "--read-only", "0x48"]);
        let mut guest = daemon.guest("s");
        write_registers(&mut guest, REGISTERS, &[1, 3]);
        let answers = transfer(
            &mut guest,
            &[
                Message::Write(REGISTERS, &[1, 66]),
                Message::Write(EEPROM, &[1, 66]),
            ],
        );
        assert_eq!(statuses(&answers), [ERR, ERR]);
        assert_eq!(read_register(&mut guest, REGISTERS, 1, 1), [3]);
        daemon.wait_for_log("0x50 is not for this guest");
        let before = read_register(&mut guest, LM75, 3, 2);
        let protected = transfer(&mut guest, &[Message::Write(LM75, &[3, 90, 0])]);
        assert_eq!(statuses(&protected), [ERR]);
        assert_eq!(read_register(&mut guest, LM75, 3, 2), before);
    }
}

#[test]
fn test_several_simulators_are_one_adapter() {
    let daemon = Daemon::start(&["-l", "sim0:0x20,sim1:0x50,sim-smbus:0x48"]);
    let mut guest = daemon.guest("s");
    assert_eq!(read_register(&mut guest, REGISTERS, 0, 1), [0]);
    assert_eq!(read_register(&mut guest, EEPROM, 0, 1), [0xff]);
    assert_eq!(read_register(&mut guest, LM75, 0, 2), [25, 0]);
}

#[test]
fn test_several_buses_are_one_adapter() {
    let list = format!("{}:0x20,{}:0x50", buses::i2c(), buses::smbus());
    let daemon = Daemon::start(&["-l", &list]);
    let mut guest = daemon.guest("s");
    write_registers(&mut guest, REGISTERS, &[4, 1]);
    write_registers(&mut guest, EEPROM, &[4, 2]);
    assert_eq!(read_register(&mut guest, REGISTERS, 4, 1), [1]);
    assert_eq!(read_register(&mut guest, EEPROM, 4, 1), [2]);
    // One transaction cannot be on both.
    let messages = [Message::Write(REGISTERS, &[4, 9]), Message::Read(EEPROM, 1)];
    assert_eq!(statuses(&transfer(&mut guest, &messages)), [ERR, ERR]);
    assert_eq!(read_register(&mut guest, REGISTERS, 4, 1), [1]);
}

#[test]
fn test_an_smbus_adapter_outlives_what_it_cannot_do() {
    let daemon = Daemon::start(&["-l", &buses::smbus()]);
    let mut guest = daemon.guest("s");
    // Upstream's panic.
    let messages = [Message::Write(REGISTERS, &[1]), Message::Read(REGISTERS, 0)];
    assert_eq!(statuses(&transfer(&mut guest, &messages)), [ERR, ERR]);
    let long = [1; 40];
    let messages = [Message::Write(REGISTERS, &long)];
    assert_eq!(statuses(&transfer(&mut guest, &messages)), [ERR]);
    for written in [&[1, 2][..], &[1, 2, 3], &[1, 2, 3, 4]] {
        let write = transfer(&mut guest, &[Message::Write(REGISTERS, written)]);
        assert_eq!(statuses(&write), [OK]);
        let length = written.len() as u32 - 1;
        let read = read_register(&mut guest, REGISTERS, 1, length);
        assert_eq!(read, written[1..]);
    }
}

#[test]
fn test_bad_requests_do_not_stop_the_good_ones() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        let header = guest.alloc(8);
        guest
            .memory
            .write(header, &[REGISTERS << 1, 0, 0, 0, 0, 0, 0, 0]);
        let status = guest.alloc(1);
        let hostile = [
            (vec![Buffer::readable(header, 8)], 0),
            // Nowhere in memory.
            (
                vec![Buffer::readable(0x10, 8), Buffer::writable(status, 1)],
                0,
            ),
            // Too short for a header: it is told so.
            (
                vec![Buffer::readable(header, 3), Buffer::writable(status, 1)],
                1,
            ),
            (vec![Buffer::writable(status, 1)], 1),
        ];
        for (buffers, used) in &hostile {
            guest.memory.write(status, &[0xee]);
            guest.queues[0].submit(buffers).unwrap();
            guest.queues[0].notify();
            assert_eq!(guest.queues[0].wait_used(support::DEADLINE).len, *used);
            let expected = if *used == 0 { 0xee } else { ERR };
            assert_eq!(guest.memory.read_vec(status, 1), [expected]);
        }
        assert_works(&mut guest, 0x22);
    }
}

#[test]
fn v2_an_open_group_is_taken_up_again_after_a_stop() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus]);
        let mut guest = daemon.guest("s");
        let (_, _, _, status) = submit(&mut guest, Message::Write(REGISTERS, &[1, 7]), FAIL_NEXT);
        guest.queues[0].notify();
        let base = guest.stop(0).unwrap();
        guest.resume(0, base).unwrap();
        guest.queues[0].wait_used(support::DEADLINE);
        assert_eq!(guest.memory.read_vec(status, 1), [OK]);
    }
}

#[test]
fn test_each_guest_has_its_own_list() {
    let bus = buses::i2c();
    let lists = [format!("{bus}:0x20:0x50"), format!("{bus}:0x50-0x51")];
    let [one, two] = &lists;
    let daemon = Daemon::start(&["-c", "2", "-l", one, "-l", two, "--read-only", "1=0x50"]);
    let mut guests = [daemon.guest("s0"), daemon.guest("s1")];
    let mut status = |guest: usize, address, bytes: &[u8]| {
        statuses(&transfer(
            &mut guests[guest],
            &[Message::Write(address, bytes)],
        ))
    };
    assert_eq!(status(0, REGISTERS, &[3, 5]), [OK]);
    assert_eq!(status(1, REGISTERS, &[3, 6]), [ERR]);
    assert_eq!(status(0, EEPROM, &[3, 7]), [OK]);
    assert_eq!(status(1, EEPROM, &[3, 8]), [ERR], "read-only for it");
    assert_eq!(status(1, EEPROM, &[3]), [OK], "where to read");
    let [mut one, mut two] = guests;
    assert_eq!(read_register(&mut one, REGISTERS, 3, 1), [5]);
    assert_eq!(read_register(&mut two, EEPROM, 3, 1), [7]);
    // Behind a message that is allowed, too.
    let messages = [Message::Read(EEPROM, 1), Message::Read(REGISTERS, 1)];
    assert_eq!(statuses(&transfer(&mut two, &messages)), [ERR, ERR]);
}

#[test]
fn test_a_bus_that_is_stuck_holds_up_nobody_on_another() {
    // It is stuck for longer than anybody waits.
    let stuck = ["-l", "sim0", "-l", "sim1", "--timeout", "sim0=3600000"];
    let daemon = Daemon::start(&[&["-c", "2"], &stuck[..]].concat());
    let mut one = daemon.guest("s0");
    let mut two = daemon.guest("s1");
    let make_stuck = transfer(&mut one, &[Message::Write(TROUBLEMAKER, &[1, 1])]);
    assert_eq!(statuses(&make_stuck), [OK]);
    submit(&mut one, Message::Read(TROUBLEMAKER, 1), 0);
    one.queues[0].notify();
    assert_works(&mut two, 0x33);
    assert!(one.queues[0].try_wait_used(Duration::ZERO).is_none());
}

/// While one guest waits for the bus after `messages`, another and the control socket go on.
fn holds_up_nobody(messages: &[(Message<'_>, u32)]) {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    // It waits for longer than anybody else does.
    let settings = ["--timeout", "3600000", "--retries", "4294967295"];
    let control_at = ["--sim-control", control.to_str().unwrap()];
    let daemon = Daemon::start(&[&["-c", "2", "-l", "sim"], &settings[..], &control_at].concat());
    let [mut waiting, mut free] = ["s0", "s1"].map(|name| daemon.guest(name));
    for &(message, flags) in messages {
        submit(&mut waiting, message, flags);
    }
    waiting.queues[0].notify();
    for value in 0..20 {
        assert_works(&mut free, value);
    }
    let mut client = BufReader::new(UnixStream::connect(&control).unwrap());
    client
        .get_ref()
        .set_read_timeout(Some(support::DEADLINE))
        .unwrap();
    writeln!(client.get_mut(), "set sim.temperature 3").unwrap();
    client.read_line(&mut String::new()).unwrap();
    assert_eq!(read_register(&mut free, LM75, 0, 2), [3, 0]);
    assert!(waiting.queues[0].try_wait_used(Duration::ZERO).is_none());
}

#[test]
fn test_a_guest_whose_bus_is_stuck_holds_up_nobody_on_it() {
    let write = Message::Write(TROUBLEMAKER, &[1, 1]);
    holds_up_nobody(&[(write, FAIL_NEXT), (Message::Read(TROUBLEMAKER, 1), 0)]);
}

#[test]
fn test_a_guest_whose_bus_is_busy_holds_up_nobody_on_it() {
    // It makes it busy for itself each time that it is tried again.
    let write = Message::Write(TROUBLEMAKER, &[2, 255]);
    holds_up_nobody(&[(write, FAIL_NEXT), (Message::Read(TROUBLEMAKER, 1), 0)]);
}

/// Its session sleeps for longer than anybody waits, and ends all the same.
#[test]
fn v7_a_guest_that_leaves_a_bus_that_is_stuck_makes_room_for_the_next() {
    let settings = ["--timeout", "3600000", "--retries", "4294967295"];
    let daemon = Daemon::start(&[&["-c", "2", "-l", "sim"], &settings[..]].concat());
    let mut other = daemon.guest("s1");
    // The bus is stuck, or busy for itself each time that it is tried again.
    for trouble in [1, 2] {
        let mut waiting = daemon.guest("s0");
        for (message, flags) in [
            (Message::Write(REGISTERS, &[9, trouble]), FAIL_NEXT),
            (Message::Write(TROUBLEMAKER, &[trouble, 255]), FAIL_NEXT),
            (Message::Read(TROUBLEMAKER, 1), 0),
        ] {
            submit(&mut waiting, message, flags);
        }
        waiting.queues[0].notify();
        // Soon after this message it sleeps.
        wait_until(
            || read_register(&mut other, REGISTERS, 9, 1) == [trouble],
            || daemon.log(),
        );
        drop(waiting);
        assert_works(&mut daemon.guest("s0"), 0x33);
    }
    daemon.stop();
}

#[test]
fn test_timeouts_that_no_adapter_has_are_logged() {
    let daemon = Daemon::start(&["-l", "sim", "--timeout", "7"]);
    daemon.wait_for_log("--timeout 7: adapters count in steps of 10 ms, so 10 ms are in force");
    daemon.stop();
}

#[test]
fn test_a_busy_bus_is_tried_again_as_often_as_retries_say() {
    let daemon = Daemon::start(&["-l", "sim", "--retries", "2"]);
    let mut guest = daemon.guest("s");
    for (busy, expected) in [(2, OK), (3, ERR), (1, OK)] {
        let make_busy = transfer(&mut guest, &[Message::Write(TROUBLEMAKER, &[2, busy])]);
        assert_eq!(statuses(&make_busy), [OK]);
        let read = transfer(&mut guest, &[Message::Read(TROUBLEMAKER, 1)]);
        assert_eq!(statuses(&read), [expected]);
    }
}

#[test]
fn test_failures_of_a_bus_are_logged_once_a_burst() {
    let daemon = Daemon::start(&["-l", "sim", "--timeout", "1"]);
    let mut guest = daemon.guest("s");
    let make_stuck = transfer(&mut guest, &[Message::Write(TROUBLEMAKER, &[1, 5])]);
    assert_eq!(statuses(&make_stuck), [OK]);
    for _ in 0..5 {
        let read = transfer(&mut guest, &[Message::Read(TROUBLEMAKER, 1)]);
        assert_eq!(statuses(&read), [ERR]);
    }
    assert_works(&mut guest, 0x44);
    daemon.wait_for_log("works again after 5 failures");
    assert_eq!(daemon.log().matches("cannot reach").count(), 1);
}

#[test]
fn test_the_temperature_is_changed_while_the_guest_runs() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let daemon = Daemon::start(&["-l", "sim", "--sim-control", control.to_str().unwrap()]);
    let mut guest = daemon.guest("s");
    assert_eq!(read_register(&mut guest, LM75, 0, 2), [25, 0]);
    let mut client = BufReader::new(UnixStream::connect(&control).unwrap());
    writeln!(client.get_mut(), "set sim.temperature -0.5").unwrap();
    let mut answer = String::new();
    for _ in 0..2 {
        client.read_line(&mut answer).unwrap();
    }
    assert_eq!(answer, "sim.temperature -0.5\nok\n");
    assert_eq!(read_register(&mut guest, LM75, 0, 2), [0xff, 0x80]);
    daemon.stop();
    assert!(!control.exists());
}

#[test]
fn test_guests_share_the_bus_and_reconnect() {
    for bus in buses::each() {
        let daemon = Daemon::start(&["-l", &bus, "-c", "2"]);
        let mut one = daemon.guest("s0");
        let mut two = daemon.guest("s1");
        let write = transfer(&mut one, &[Message::Write(REGISTERS, &[9, 42])]);
        assert_eq!(statuses(&write), [OK]);
        assert_eq!(read_register(&mut two, REGISTERS, 9, 1), [42]);
        drop(one);
        assert_eq!(
            read_register(&mut daemon.guest("s0"), REGISTERS, 9, 1),
            [42]
        );
        daemon.stop();
    }
}

#[test]
fn v9_what_cannot_be_had_ends_with_status_1() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let socket = socket.to_str().unwrap();
    for (arguments, message) in [
        (&["-l", "4000000000"][..], "cannot open"),
        (&["-l", "no such bus"], "no bus is called"),
        (&["-l", "/dev/null"], "no I2C bus"),
        (
            &["-l", "sim", "--sim-control", "/dev/null"],
            "cannot listen at /dev/null",
        ),
    ] {
        let (code, text) = PROGRAM.run(&[&["-s", socket], arguments].concat());
        assert_eq!(code, 1, "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
    }
    assert!(!std::path::Path::new(socket).exists());
}

#[test]
fn test_the_general_call_has_to_be_named() {
    let daemon = Daemon::start(&["-c", "2", "-l", "sim", "-l", "sim,sim:0x00"]);
    daemon.wait_for_log("guest 0: bus sim: all addresses but 0x00, the general call");
    daemon.wait_for_log("guest 1: bus sim: all addresses\n");
    let mut guest = daemon.guest("s0");
    let call = transfer(&mut guest, &[Message::Write(0, &[6])]);
    assert_eq!(statuses(&call), [ERR]);
    daemon.wait_for_log("the general call, address 0x00, is not for this guest");
}

#[test]
fn test_what_is_granted_is_logged_in_hex() {
    let daemon = Daemon::start(&["-l", "sim:50:0x50", "--read-only", "0x50"]);
    daemon.wait_for_log("guest 0: bus sim: 0x32, 0x50 (read-only)");
    daemon.stop();
}

#[test]
fn v9_usage_errors_end_with_status_2() {
    for (arguments, message) in [
        (&[][..], "--device-list"),
        (&["-l", "sim:9-3"], "ends before"),
        (&["-l", "sim:0x400"], "no address"),
        (&["-l", "sim", "--retries", "x"], "--retries"),
        (&["-l", "sim", "--read-only", "x"], "--read-only"),
        (&["-l", "sim", "--sim-temperature", "200"], "LM75"),
        (&["-l", "sim", "--timeout", "0"], "milliseconds from 1 to"),
        (
            &["-l", "sim", "--retries", "-1"],
            "number of times from 0 to",
        ),
        // What contradicts itself; the rest is in the program's own tests.
        (&["-l", "sim0,sim1"], "both bus sim0 and bus sim1"),
        (
            &["-l", "sim:0x50", "--read-only", "50"],
            "0x32 (50 in decimal)",
        ),
        (
            &["-l", "sim0", "-l", "sim1"],
            "given 2 times, and there is 1 guest: give it once for all",
        ),
        (&["-l", "1", "--sim-control", "/c"], "names none"),
    ] {
        let (code, text) = PROGRAM.run(&[&["-s", "/nowhere/s"], arguments].concat());
        assert_eq!(code, 2, "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
    }
}

#[test]
fn v9_print_capabilities() {
    let (code, text) = PROGRAM.run(&["--print-capabilities"]);
    assert_eq!(code, 0);
    let capabilities: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        capabilities,
        serde_json::json!({ "type": "i2c", "features": [] })
    );
}

#[test]
fn nothing_is_opened_when_the_daemon_is_ready() {
    for bus in buses::each() {
        opens_nothing_when_ready(PROGRAM, &["-l", &bus], |daemon| {
            let mut guest = daemon.guest("s", options());
            let mut one = |message| statuses(&transfer(&mut guest, &[message]));
            assert_eq!(one(Message::Write(REGISTERS, &[1, 2])), [OK]);
            assert_eq!(one(Message::Write(NOBODY, &[1])), [ERR]);
        });
    }
}
