//! The daemon as a process: its command line, its sockets, its life.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use support::{PROGRAM, options, request, submit};
use vhost_device_driver::protocol::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, bits};
use vhost_device_driver::{Driver, Frontend};
use vhost_device_rig::{Daemon, entries, wait_for_exit, wait_until};

fn refused(arguments: &[&OsStr], status: i32, message: &str) {
    let (code, text) = PROGRAM.run(arguments);
    assert_eq!(code, status, "{arguments:?}: {text}");
    assert!(text.contains(message), "{arguments:?}: {text}");
}

fn os<'a>(arguments: &'a [&'a str]) -> Vec<&'a OsStr> {
    arguments.iter().map(OsStr::new).collect()
}

#[test]
fn v9_print_capabilities_ignores_everything_else() {
    for arguments in [
        &["--print-capabilities"][..],
        &["--print-capabilities", "--socket-path", "/nowhere/s"],
        &["--nonsense", "--fd", "x", "--print-capabilities"],
    ] {
        let (code, text) = PROGRAM.run(&os(arguments));
        assert_eq!(code, 0);
        let capabilities: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({ "type": "rng", "features": [] });
        assert_eq!(capabilities, expected);
    }
}

#[test]
fn test_help_names_every_option() {
    let (code, help) = PROGRAM.run(&os(&["--help"]));
    assert_eq!(code, 0);
    for option in [
        "-s, --socket-path",
        "-c, --socket-count",
        "--socket-mode",
        "--fd",
        "--log-level",
        "--poll-us",
        "--without",
        "--memory-fs",
        "--print-capabilities",
        "-f, --filename",
        "-m, --max-bytes",
        "-p, --period",
        "-h, --help",
        "-V, --version",
    ] {
        assert!(help.contains(option), "{option} in {help}");
    }
    let (code, version) = PROGRAM.run(&os(&["--version"]));
    assert_eq!(code, 0);
    assert_eq!(
        version.trim(),
        concat!("vhost-device-rng ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn test_features_are_withheld() {
    let packed = bits(&[VIRTIO_F_RING_PACKED]);
    let in_order = bits(&[VIRTIO_F_IN_ORDER]);
    let offered = |arguments: &[&str]| {
        let daemon = PROGRAM.start(arguments);
        let mut guest = daemon.guest("s", options());
        assert!(!request(&mut guest, 8).is_empty());
        daemon.stop();
        guest.offered()
    };
    let all = offered(&[]);
    assert_eq!(all & (packed | in_order), packed | in_order);
    let fewer = offered(&["--without", "packed,in-order"]);
    assert_eq!(fewer, all & !(packed | in_order));
}

#[test]
fn v9_usage_errors_end_with_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let socket = socket.to_str().unwrap();
    refused(&[], 2, "--socket-path");
    for (arguments, message) in [
        (&["--fd", "3"][..], "--socket-path"),
        (&["-c", "0"], "--socket-count"),
        (&["--max-bytes", "0"], "--max-bytes"),
        (&["--period", "0"], "--period"),
        (&["--poll-us", "10001"], "--poll-us"),
        (&["--log-level", "loud"], "--log-level"),
        (&["--nonsense"], "--nonsense"),
    ] {
        refused(&os(&[&["-s", socket], arguments].concat()), 2, message);
    }
    refused(&os(&["--fd", "99"]), 2, "not open");
    refused(&os(&["--fd", "0"]), 2, "not a socket");
    assert!(entries(directory.path()).is_empty());
}

#[test]
fn v9_what_cannot_be_opened_ends_with_status_1() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("empty"), "").unwrap();
    fs::create_dir(path("directory")).unwrap();
    let long = path(&"x".repeat(108));
    for (socket, file, message) in [
        (path("s"), path("missing"), "cannot open"),
        (path("s"), path("empty"), "is empty"),
        (path("s"), path("directory"), "not a file"),
        (path("s"), "/dev/null".to_owned(), "at its end from the"),
        (path("missing/s"), "/dev/urandom".to_owned(), "must exist"),
        (path("empty"), "/dev/urandom".to_owned(), "not a socket"),
        (long, "/dev/urandom".to_owned(), "at most 107"),
    ] {
        refused(&os(&["-s", &socket, "-f", &file]), 1, message);
    }
    assert_eq!(entries(directory.path()), ["directory", "empty"]);
}

#[test]
fn test_a_period_without_a_limit_is_told() {
    let daemon = PROGRAM.start(&["-p", "1000"]);
    daemon.wait_for_log("--period does nothing without --max-bytes");
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.stop();
}

#[test]
fn test_sockets_that_were_bound_go_when_a_later_one_fails() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s2"), "").unwrap();
    let socket = directory.path().join("s");
    let arguments = ["-s", socket.to_str().unwrap(), "-c", "4"];
    refused(&os(&arguments), 1, "not a socket");
    assert_eq!(entries(directory.path()), ["s2"]);
}

#[test]
fn v9_a_stop_signal_ends_the_daemon_with_status_0_and_without_a_trace() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = PROGRAM.start(&["-c", "3"]);
        // A guest that is served, and one whose front-end is still silent.
        let mut guest = daemon.guest("s0", options());
        request(&mut guest, 8);
        let _silent = UnixStream::connect(daemon.path("s1")).unwrap();
        daemon.signal(signal);
        assert_eq!(daemon.state(), "STOPPING=1");
        assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
        assert_eq!(entries(daemon.directory.path()), ["notify", "stderr"]);
        guest.frontend.expect_closed().unwrap();
    }
}

#[test]
fn test_a_request_that_waits_does_not_hold_up_the_end() {
    let daemon = PROGRAM.start(&["-m", "1", "-p", "86400000"]);
    let mut guest = daemon.guest("s", options());
    submit(&mut guest, 1);
    submit(&mut guest, 1);
    guest.frontend.sync().unwrap();
    let log = daemon.path("stderr");
    let directory = log.parent().unwrap().to_owned();
    daemon.signal(Signal::TERM);
    daemon.state();
    wait_until(
        || !directory.join("s").exists(),
        || "the removal of the socket".to_owned(),
    );
    assert!(!daemon.log().contains("does not end"));
    daemon.stop();
}

#[test]
fn test_a_socket_in_use_is_refused() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    let socket = daemon.path("s");
    refused(
        &os(&["-s", socket.to_str().unwrap()]),
        1,
        "another program is listening",
    );
    assert_eq!(request(&mut guest, 8).len(), 8);
    drop(guest);
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
}

#[test]
fn test_a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let mut command = PROGRAM.command();
    command.arg("-s").arg(&socket);
    let daemon = Daemon::spawn(command, directory);
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
}

#[test]
fn test_of_many_that_start_at_once_one_gets_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            PROGRAM
                .command()
                .arg("-s")
                .arg(&socket)
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut codes = Vec::new();
    wait_until(
        || {
            children.retain_mut(|child| match child.try_wait().unwrap() {
                None => true,
                Some(status) => {
                    codes.push(status.code());
                    false
                }
            });
            children.len() == 1
        },
        || "seven refusals".to_owned(),
    );
    assert_eq!(codes, [Some(1); 7]);
    let mut guest = Driver::connect(&socket, options()).unwrap();
    assert_eq!(request(&mut guest, 8).len(), 8);
    let mut winner = children.pop().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&winner), Signal::TERM).unwrap();
    assert_eq!(wait_for_exit(&mut winner).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn test_systemd_passes_the_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| directory.path().join(name));
    let [first, second] = paths
        .each_ref()
        .map(|path| UnixListener::bind(path).unwrap());
    let command = PROGRAM.shell(
        "LISTEN_PID=$$ LISTEN_FDS=2",
        OwnedFd::from(first),
        Some(OwnedFd::from(second)),
        "3<&0 4>&1 </dev/null >/dev/null",
    );
    let daemon = Daemon::spawn(command, directory);
    let mut guests = ["a", "b"].map(|name| daemon.guest(name, options()));
    for guest in &mut guests {
        assert_eq!(request(guest, 8).len(), 8);
    }
    drop(guests);
    daemon.guest("a", options());
    let kept = daemon.path("a");
    daemon.signal(Signal::TERM);
    daemon.state();
    assert!(kept.exists(), "the file is the service manager's");
    daemon.stop();
}

#[test]
fn test_sockets_for_another_process_are_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("a")).unwrap();
    let output = PROGRAM
        .shell(
            "LISTEN_PID=1 LISTEN_FDS=1",
            OwnedFd::from(listener),
            None,
            "3<&0",
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn v9_a_listening_socket_is_inherited() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("a")).unwrap();
    let mut command = PROGRAM.command();
    command.args(["--fd", "0"]).stdin(OwnedFd::from(listener));
    let daemon = Daemon::spawn(command, directory);
    for _ in 0..3 {
        assert_eq!(request(&mut daemon.guest("a", options()), 8).len(), 8);
    }
    daemon.stop();
}

#[test]
fn v9_a_connected_socket_is_served_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let command = PROGRAM.shell("", OwnedFd::from(theirs), None, "--fd 9 9<&0 </dev/null");
    let mut daemon = Daemon::spawn(command, tempfile::tempdir().unwrap());
    let mut guest = Driver::with_stream(ours, options()).unwrap();
    assert_eq!(request(&mut guest, 8).len(), 8);
    drop(guest);
    assert_eq!(daemon.state(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
}

#[test]
fn v9_a_connected_socket_that_breaks_the_protocol_ends_with_status_1() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = PROGRAM.command();
    command.args(["--fd", "0"]).stdin(OwnedFd::from(theirs));
    let mut daemon = Daemon::spawn(command, tempfile::tempdir().unwrap());
    let frontend = Frontend::new(ours);
    frontend.send_raw(&[0xff; 64], &[]).unwrap();
    frontend.expect_closed().unwrap();
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
}

#[test]
fn v6_the_next_front_end_is_served_after_a_broken_one() {
    let daemon = PROGRAM.start(&[]);
    for _ in 0..3 {
        let frontend = Frontend::connect(daemon.path("s")).unwrap();
        frontend.send_raw(&[0xff; 64], &[]).unwrap();
        frontend.expect_closed().unwrap();
    }
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.wait_for_log("guest 0: connection closed");
}

#[test]
fn v7_a_front_end_that_is_early_waits_for_the_one_before_it() {
    let daemon = PROGRAM.start(&[]);
    let mut first = daemon.guest("s", options());
    let second = UnixStream::connect(daemon.path("s")).unwrap();
    assert_eq!(request(&mut first, 8).len(), 8);
    drop(first);
    let mut second = Driver::with_stream(second, options()).unwrap();
    assert_eq!(request(&mut second, 8).len(), 8);
}

#[test]
fn test_256_guests_have_one_process() {
    // The front-ends are all in this process.
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let arguments = format!("-c 256 -s {}/s", directory.path().display());
    let null = fs::File::open("/dev/null").unwrap();
    let command = PROGRAM.shell("ulimit -Sn 1024;", null.into(), None, &arguments);
    let daemon = Daemon::spawn(command, directory);
    let mut guests: Vec<_> = (0..256)
        .map(|n| daemon.guest(&format!("s{n}"), options()))
        .collect();
    for _ in 0..3 {
        for guest in &mut guests {
            guest.arena.clear();
            submit(guest, 64);
        }
        for guest in &mut guests {
            assert_eq!(support::answer(guest), 64);
        }
    }
    drop(guests);
    daemon.stop();
}

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    guest_mappings: usize,
}

fn holdings(pid: u32) -> Holdings {
    let process = Path::new("/proc").join(pid.to_string());
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    Holdings {
        descriptors: entries(&process.join("fd")).len(),
        threads: entries(&process.join("task")).len(),
        guest_mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
    }
}

fn mappings(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().count()
}

#[test]
fn v7_a_thousand_connections_leave_nothing_behind() {
    let daemon = PROGRAM.start(&["--log-level", "warn"]);
    let before = holdings(daemon.pid());
    let connect = |times| {
        for _ in 0..times {
            assert_eq!(request(&mut daemon.guest("s", options()), 64).len(), 64);
        }
        wait_until(
            || holdings(daemon.pid()) == before,
            || format!("{before:?} from {:?}", holdings(daemon.pid())),
        );
    };
    // The allocator's own mappings come with the first threads.
    connect(50);
    let settled = mappings(daemon.pid());
    connect(1000);
    let after = mappings(daemon.pid());
    assert!(after <= settled + 8, "{settled} mappings became {after}");
    daemon.stop();
}

#[test]
fn test_want_of_descriptors_is_outlived() {
    let daemon = PROGRAM.start(&[]);
    let limit = |current: usize| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = Some(current as u64);
        prlimit(
            Some(daemon.process()),
            Resource::Nofile,
            Rlimit { current, maximum },
        )
        .unwrap();
    };
    limit(0);
    let frontend = Frontend::connect(daemon.path("s")).unwrap();
    daemon.wait_for_log("cannot take its front-end");
    limit(1024);
    frontend.get_features().unwrap();
}
