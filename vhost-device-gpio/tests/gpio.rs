//! The GPIO device in its daemon, with a guest on the other side of the socket and the world on
//! the simulator's.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use support::{
    BOTH, Daemon, ERR, EVENTS, F_IRQ, GET_DIRECTION, GET_LINE_NAMES, GET_VALUE, HIGH, IN, INVALID,
    NONE, OK, OUT, PROGRAM, REQUESTS, RISING, SET_DIRECTION, SET_IRQ_TYPE, SET_VALUE, VALID, World,
    event, header, no_event, ok, options, request, send, unmask, wait,
};
use vhost_device_driver::{Buffer, Driver};
use vhost_device_rig::opens_nothing_when_ready;

const SIM: &[&str] = &["-l", "sim:6,0=out,1=in,2=reset,loop=0-1"];

/// Its lines as they are at first.
const LOW: [(&str, u8); 6] = [
    ("out", 0),
    ("in", 0),
    ("reset", 0),
    ("sim3", 0),
    ("sim4", 0),
    ("sim5", 0),
];

#[test]
fn g1_g15_g16_lines_are_driven_and_read() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_VALUE, 0, 1);
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    world.expect("out 1");
    world.expect("in 1");
    assert_eq!(request(&mut guest, GET_VALUE, 1, 0), [OK, 1]);
    assert_eq!(request(&mut guest, GET_DIRECTION, 0, 0), [OK, 1]);
    ok(&mut guest, SET_VALUE, 0, 0);
    world.expect("out 0");
    world.expect("in 0");
    ok(&mut guest, SET_DIRECTION, 5, OUT);
    ok(&mut guest, SET_VALUE, 5, 1);
    world.expect("sim5 1");
    // Given up, it drives nothing.
    ok(&mut guest, SET_DIRECTION, 5, NONE);
    world.expect("sim5 0");
    ok(&mut guest, SET_DIRECTION, 2, IN);
    world.set("reset", 1);
    world.expect("reset 1");
    assert_eq!(request(&mut guest, GET_VALUE, 2, 0), [OK, 1]);
    assert_eq!(request(&mut guest, GET_VALUE, 6, 0), [ERR, 0]);
    daemon.stop();
}

#[test]
fn g2_g4_g17_c8_configuration_and_names() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let names = b"out\0in\0reset\0sim3\0sim4\0sim5\0";
    let size = names.len() as u8;
    let config = guest.frontend.get_config(0, 8).unwrap();
    assert_eq!(config, [6, 0, 0, 0, size, 0, 0, 0]);
    assert_eq!(guest.frontend.get_config(4, 4).unwrap(), [size, 0, 0, 0]);
    // Zeros behind it: upstream reads past its structure.
    for (offset, size) in [(0, 9), (4, 8), (8, 1), (0, 200)] {
        let read = guest.frontend.get_config(offset, size).unwrap();
        let own = &config[offset as usize..];
        assert_eq!(
            read[..own.len().min(size as usize)],
            own[..own.len().min(size as usize)]
        );
        assert!(read.iter().skip(own.len()).all(|byte| *byte == 0));
    }
    let room = 1 + u32::from(size);
    let sent = send(&mut guest, REQUESTS, &header(GET_LINE_NAMES, 0, 0), room);
    assert_eq!(
        wait(&mut guest, REQUESTS, sent),
        [&[OK][..], names].concat()
    );
}

#[test]
fn g8_g14_edges_reach_the_guest() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    assert_eq!(guest.offered() & 0xff_ffff, F_IRQ);
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    for _ in 0..20 {
        let buffer = unmask(&mut guest, 3);
        no_event(&mut guest);
        world.set("sim3", 1);
        assert_eq!(event(&mut guest, buffer), VALID);
        world.expect("sim3 1");
        // Masked: it is latched.
        for level in [0, 1, 0] {
            world.set("sim3", level);
            world.expect(&format!("sim3 {level}"));
        }
        let buffer = unmask(&mut guest, 3);
        assert_eq!(event(&mut guest, buffer), VALID);
    }
    daemon.stop();
}

#[test]
fn g9_g14_levels_reach_the_guest() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, HIGH);
    let buffer = unmask(&mut guest, 3);
    no_event(&mut guest);
    world.set("sim3", 1);
    assert_eq!(event(&mut guest, buffer), VALID);
    world.expect("sim3 1");
    // As long as it is high.
    for _ in 0..3 {
        let buffer = unmask(&mut guest, 3);
        assert_eq!(event(&mut guest, buffer), VALID);
    }
    world.set("sim3", 0);
    world.expect("sim3 0");
    let buffer = unmask(&mut guest, 3);
    no_event(&mut guest);
    world.set("sim3", 1);
    assert_eq!(event(&mut guest, buffer), VALID);
}

#[test]
fn g17_without_the_feature_there_are_no_interrupts() {
    let daemon = Daemon::start(SIM);
    let path = daemon.directory.path().join("s");
    let mut guest = Driver::connect(path, options().without_features(F_IRQ)).unwrap();
    ok(&mut guest, SET_DIRECTION, 3, IN);
    assert_eq!(request(&mut guest, SET_IRQ_TYPE, 3, RISING), [ERR, 0]);
}

#[test]
fn test_loops_make_edges() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    ok(&mut guest, SET_DIRECTION, 1, IN);
    ok(&mut guest, SET_IRQ_TYPE, 1, BOTH);
    for level in [1, 0, 1, 0] {
        let buffer = unmask(&mut guest, 1);
        ok(&mut guest, SET_VALUE, 0, level);
        assert_eq!(event(&mut guest, buffer), VALID);
        let value = [OK, u8::try_from(level).unwrap()];
        assert_eq!(request(&mut guest, GET_VALUE, 1, 0), value);
    }
}

#[test]
fn test_generators_make_edges() {
    let daemon = Daemon::start(&["-l", "sim:3,pulse=1@5,edges=2@5/5/5"]);
    let mut guest = daemon.guest("s");
    ok(&mut guest, SET_IRQ_TYPE, 1, BOTH);
    for _ in 0..5 {
        let buffer = unmask(&mut guest, 1);
        assert_eq!(event(&mut guest, buffer), VALID);
    }
    // Three changes, and it stays so.
    let mut world = daemon.world("control");
    while request(&mut guest, GET_VALUE, 2, 0) != [OK, 1] {
        world.send("get 2\n");
        world.line();
    }
}

#[test]
fn v7_the_next_connection_starts_clean() {
    let daemon = Daemon::start(SIM);
    let mut world = daemon.world("control");
    let mut guest = daemon.guest("s");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    ok(&mut guest, SET_VALUE, 0, 1);
    world.expect("out 1");
    world.expect("in 1");
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    unmask(&mut guest, 3);
    no_event(&mut guest);
    drop(guest);
    // The chip that it was connected to is no more.
    world.expect_end();
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    for line in 0..6 {
        assert_eq!(request(&mut guest, GET_DIRECTION, line, 0), [OK, 0]);
    }
    let buffer = unmask(&mut guest, 3);
    assert_eq!(event(&mut guest, buffer), INVALID);
    daemon.stop();
}

#[test]
fn v2_held_buffers_are_taken_up_again_after_a_stop() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    let buffer = unmask(&mut guest, 3);
    no_event(&mut guest);
    let bases = [0, 1].map(|queue| guest.stop(queue).unwrap());
    assert_eq!(bases[EVENTS], 0, "the held buffer is not taken yet");
    // What comes meanwhile is latched.
    world.set("sim3", 1);
    world.expect("sim3 1");
    guest.resume(EVENTS, bases[EVENTS]).unwrap();
    guest.resume(REQUESTS, bases[REQUESTS]).unwrap();
    assert_eq!(event(&mut guest, buffer), VALID);
    assert_eq!(request(&mut guest, GET_DIRECTION, 3, 0), [OK, 2]);
}

#[test]
fn v2_buffers_that_cannot_be_taken_up_again_come_back_invalid() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    for line in [3, 4] {
        ok(&mut guest, SET_DIRECTION, line, IN);
        ok(&mut guest, SET_IRQ_TYPE, line, RISING);
    }
    let old = unmask(&mut guest, 3);
    let answered = unmask(&mut guest, 4);
    world.set("sim4", 1);
    assert_eq!(event(&mut guest, answered), VALID);
    world.expect("sim4 1");
    let new = unmask(&mut guest, 4);
    no_event(&mut guest);
    let base = guest.stop(EVENTS).unwrap();
    assert_eq!(base, 2, "the newest is taken again");
    // Linux's driver makes it available again.
    assert_eq!(event(&mut guest, old), INVALID);
    for (line, level) in [("sim3", 1), ("sim4", 0), ("sim4", 1)] {
        world.set(line, level);
        world.expect(&format!("{line} {level}"));
    }
    guest.resume(EVENTS, base).unwrap();
    assert_eq!(event(&mut guest, new), VALID);
    let again = unmask(&mut guest, 3);
    assert_eq!(event(&mut guest, again), VALID);
}

#[test]
fn c7_a_reset_gives_all_lines_back() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let mut world = daemon.world("control");
    world.expect_levels(&LOW);
    ok(&mut guest, SET_DIRECTION, 2, OUT);
    ok(&mut guest, SET_VALUE, 2, 1);
    world.expect("reset 1");
    guest.frontend.reset_device().unwrap();
    world.expect("reset 0");
}

#[test]
fn test_bad_requests_do_not_stop_the_good_ones() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let place = guest.alloc(64);
    guest.memory.write(place, &header(GET_VALUE, 0xffff, 0));
    for (queue, buffers) in [
        (REQUESTS, vec![Buffer::readable(place, 8)]),
        (EVENTS, vec![Buffer::readable(place, 2)]),
        // Nowhere in memory.
        (
            REQUESTS,
            vec![Buffer::readable(0x10, 8), Buffer::writable(place, 2)],
        ),
        (
            EVENTS,
            vec![Buffer::readable(0x10, 2), Buffer::writable(place, 1)],
        ),
    ] {
        guest.queues[queue].submit(&buffers).unwrap();
        guest.queues[queue].notify();
        assert_eq!(guest.queues[queue].wait_used(support::DEADLINE).len, 0);
    }
    for kind in [2, 3, 4, 5, 6, 7, 0xffff] {
        assert_eq!(request(&mut guest, kind, 0xffff, 0), [ERR, 0]);
    }
    assert_eq!(request(&mut guest, GET_VALUE, 0, 0), [OK, 0]);
    daemon.stop();
}

#[test]
fn test_more_event_buffers_than_lines() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    let first = unmask(&mut guest, 3);
    for _ in 0..100 {
        let more = unmask(&mut guest, 3);
        assert_eq!(event(&mut guest, more), INVALID);
    }
    ok(&mut guest, SET_IRQ_TYPE, 3, NONE);
    assert_eq!(event(&mut guest, first), INVALID);
}

#[test]
fn test_the_control_socket_is_the_users_alone() {
    let daemon = Daemon::start(SIM);
    let path = daemon.directory.path().join("control");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    daemon.stop();
}

#[test]
fn test_control_speaks_the_language_of_all_daemons() {
    let daemon = Daemon::start(SIM);
    let _guest = daemon.guest("s");
    let mut world = daemon.world("control");
    let mut other = daemon.world("control");
    world.expect_levels(&LOW);
    other.expect_levels(&LOW);
    world.send("get 4\nset 4 0\nset sim4 1\nset sim4 1\nset 4 0\n");
    for level in [0, 0, 1, 1, 0] {
        world.expect_answer(&[&format!("sim4 {level}"), "ok"]);
    }
    for (line, error) in [
        (
            "get nobody",
            "there is no thing \"nobody\": list shows what there is",
        ),
        (
            "set 9 1",
            "there is no thing \"9\": list shows what there is",
        ),
        ("set 4 7", "\"7\" is none of: 0, 1"),
        ("sim4=1", "to set it, write: set sim4 1"),
        ("", "that line is empty: help shows what can be said"),
    ] {
        world.send(&format!("{line}\n"));
        world.expect_answer(&[&format!("error: {error}")]);
    }
    world.send("help watch\n");
    let help = world.answer();
    assert!(help.contains("changed NAME LEVEL"), "{help}");
    // All who watch are told of changes, the one who made them too, and of nothing else.
    for world in [&mut world, &mut other] {
        world.expect("sim4 1");
        world.expect("sim4 0");
    }
}

#[test]
fn test_control_answers_who_has_said_all() {
    let daemon = Daemon::start(SIM);
    let _guest = daemon.guest("s");
    let mut client = UnixStream::connect(daemon.path("control")).unwrap();
    client.set_read_timeout(Some(support::DEADLINE)).unwrap();
    client.write_all(b"list\nset 4 1").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut seen = String::new();
    client.read_to_string(&mut seen).unwrap();
    assert!(seen.ends_with("\nok\nsim4 1\nok\n"), "{seen}");
}

#[test]
fn test_control_outlives_hostile_clients() {
    let daemon = Daemon::start(SIM);
    let mut guest = daemon.guest("s");
    let path = daemon.directory.path().join("control");
    // A line without end.
    let mut endless = daemon.world("control");
    endless.expect_levels(&LOW);
    endless.send(&"x".repeat(300));
    endless.expect_answer(&["error: a line has at most 256 bytes", ""]);
    // One that never reads what it asks for.
    let deaf = UnixStream::connect(&path).unwrap();
    deaf.set_nonblocking(true).unwrap();
    while (&deaf).write(b"help\nhelp\nhelp\n").is_ok() {}
    // Too many at once.
    let mut crowd: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    assert_eq!(request(&mut guest, GET_VALUE, 0, 0), [OK, 0]);
    let served = crowd.iter_mut().filter(|client| {
        // One that was refused is not listened to any more.
        let _ = (&**client).write_all(b"watch\n");
        client.set_read_timeout(Some(support::DEADLINE)).unwrap();
        let mut answer = String::new();
        BufReader::new(&**client).read_line(&mut answer).unwrap();
        let refused = "error: 8 clients are connected already: close one\n";
        assert!(answer == "ok\n" || answer == refused, "{answer}");
        answer == "ok\n"
    });
    // The deaf one is there still.
    assert_eq!(served.count(), 7);
    drop(crowd);
    // They have gone, and there is room again.
    assert_eq!(request(&mut guest, GET_VALUE, 0, 0), [OK, 0]);
    daemon.world("control").expect_levels(&LOW);
    daemon.stop();
}

#[test]
fn test_each_guest_has_its_own_chip() {
    let daemon = Daemon::start(&["-c", "2", "-l", "s2:s3"]);
    let mut guests = ["s0", "s1"].map(|name| daemon.guest(name));
    let mut worlds = ["control0", "control1"].map(|name| daemon.world(name));
    let names = [("sim0", 0), ("sim1", 0), ("sim2", 0)];
    worlds[0].expect_levels(&names[..2]);
    worlds[1].expect_levels(&names);
    worlds[1].set("sim0", 1);
    assert_eq!(request(&mut guests[0], GET_VALUE, 0, 0), [OK, 0]);
    assert_eq!(request(&mut guests[1], GET_VALUE, 0, 0), [OK, 1]);
    let [one, mut two] = guests;
    drop(one);
    assert_eq!(request(&mut two, GET_VALUE, 0, 0), [OK, 1]);
    assert_eq!(request(&mut two, GET_VALUE, 2, 0), [OK, 0]);
    daemon.stop();
}

#[test]
fn v9_what_cannot_be_had_ends_with_status_1() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (socket, control) = (path("s"), path("control"));
    for (arguments, message) in [
        (
            &["-l", "4000000000"][..],
            "cannot open /dev/gpiochip4000000000",
        ),
        (&["-l", "0-3@/dev/null"], "/dev/null is no GPIO chip"),
        (&["-l", "s1", "--sim-control", "/nowhere/c"], "/nowhere"),
        (&["-l", "s1", "--sim-control", "/dev/null"], "not a socket"),
    ] {
        let (code, text) = PROGRAM.run(&[&["-s", &socket], arguments].concat());
        assert_eq!(code, 1, "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
    }
    // What fails later leaves no control socket behind.
    let arguments = ["-s", "/nowhere/s", "-l", "s1", "--sim-control", &control];
    let (code, text) = PROGRAM.run(&arguments);
    assert_eq!(code, 1, "{text}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn v9_usage_errors_end_with_status_2() {
    for (arguments, message) in [
        (&[][..], "--device-list"),
        (&["-l", "7-3@0"], "ends before"),
        (&["-l", "sim:0"], "1 to 512"),
        (&["-l", "0", "--attr", "1@0=loud"], "no attribute"),
        (&["-l", "0", "--safe", "1@0=2"], "neither 0 nor 1"),
        (&["-l", "0-3@sim:8"], "a simulated chip is given whole"),
        (
            &["-l", "s1", "--safe", "0@0=1"],
            "--safe is for lines of the",
        ),
        (
            &["-l", "s1", "--attr", "0@0=pull-up"],
            "--attr is for lines",
        ),
        // What contradicts itself; the rest is in the program's own tests.
        (
            &["-l", "sim:2", "-l", "sim:2"],
            "is 1 guest, and -l has lines for 2",
        ),
        (&["-l", "sim:2,0=a,1=a"], "two lines that are called \"a\""),
        (
            &["-l", "0", "--sim-control", "/c"],
            "no guest has a simulated",
        ),
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
        serde_json::json!({ "type": "gpio", "features": [] })
    );
}

#[test]
fn nothing_is_opened_when_the_daemon_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let arguments = [SIM, &["--sim-control", control.to_str().unwrap()]].concat();
    opens_nothing_when_ready(PROGRAM, &arguments, |daemon| {
        let mut guest = daemon.guest("s", options());
        let mut world = World::connect(&control);
        world.expect_levels(&LOW);
        ok(&mut guest, SET_DIRECTION, 2, IN);
        ok(&mut guest, SET_IRQ_TYPE, 2, RISING);
        let buffer = unmask(&mut guest, 2);
        world.set("reset", 1);
        assert_eq!(event(&mut guest, buffer), VALID);
        world.set("reset", 0);
    });
}
