//! The daemon as a process: its command line, its sockets, its life.

mod support;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, OFlags};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{PROGRAM, options, request, submit, submit_buffers};
use vhost_device_driver::guest::{SESSION_STEPS, Step};
use vhost_device_driver::protocol::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, bits};
use vhost_device_driver::{Buffer, Driver, Frontend};
use vhost_device_rig::{Daemon, entries, opens_nothing_when_ready, wait_for_exit, wait_until};

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

/// What is wrong is known to neither side: the log says what to look at.
#[test]
fn test_a_front_end_that_shares_no_memory_is_told_of() {
    // The lines of a guest are limited, so there are two.
    let daemon = PROGRAM.start(&["-c", "2"]);
    let connect = |socket: &str| {
        let frontend = Frontend::connect(daemon.path(socket)).unwrap();
        let mut guest = Driver::prepare(frontend, options());
        guest.run(&SESSION_STEPS[..5]).unwrap();
        guest.frontend.set_need_reply(false);
        guest
    };
    let wait_for = |guest: u32, why: &str| {
        let said = format!("guest {guest}: {why}: does the front-end share its guest's memory?");
        daemon.wait_for_log(&said);
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains(&said)).unwrap();
        assert!(line.contains("share=on"), "{line}");
    };

    // QEMU leaves out what has no file or is mapped privately, which may be all of it.
    let guest = connect("s0");
    guest.queue_step(0, Step::Num).unwrap();
    guest.queue_step(0, Step::Addr).unwrap();
    wait_for(
        0,
        "a vring outside of all memory that the front-end has told of",
    );

    let guest = connect("s1");
    guest.frontend.set_mem_table_raw(0, &[], &[]).unwrap();
    wait_for(1, "a memory table without any memory");
    daemon.stop();
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
    assert_eq!(request(&mut first, 8).len(), 8);
    let second = UnixStream::connect(daemon.path("s")).unwrap();
    // When it comes, and not only when it is served.
    daemon.wait_for_log("vhost_device_daemon::server] guest 0: another front-end has come to ");
    assert_eq!(request(&mut first, 8).len(), 8);
    drop(first);
    let mut second = Driver::with_stream(second, options()).unwrap();
    assert_eq!(request(&mut second, 8).len(), 8);
}

/// A pipe that nobody reads, and that is full.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&vec![b'.'; size]).unwrap();
    (reader, writer)
}

fn start_with_stderr(stderr: impl Into<Stdio>, arguments: &[&str]) -> Daemon {
    let directory = tempfile::tempdir().unwrap();
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.args(arguments);
    Daemon::spawn_with_stderr(command, directory, stderr)
}

/// A request in memory that the guest does not have: a line of the log.
fn request_badly(guest: &mut Driver) {
    submit_buffers(guest, &[Buffer::writable(0xdead_0000, 8)]);
    assert_eq!(support::answer(guest), 0);
}

#[test]
fn test_a_log_that_nobody_reads_holds_up_nobody() {
    let (reader, stderr) = full_pipe();
    let mut daemon = start_with_stderr(stderr, &["-c", "2"]);
    let mut first = daemon.guest("s0", options());
    request_badly(&mut first);
    assert_eq!(request(&mut first, 8).len(), 8);
    // And nobody who comes after it.
    for _ in 0..3 {
        let mut second = daemon.guest("s1", options());
        request_badly(&mut second);
        assert_eq!(request(&mut second, 8).len(), 8);
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.state(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(entries(daemon.directory.path()), ["notify"]);
    drop(reader);
}

#[test]
fn test_nothing_that_was_logged_is_lost_at_the_end() {
    let (mut reader, stderr) = std::io::pipe().unwrap();
    let mut daemon = start_with_stderr(stderr, &[]);
    let mut guest = daemon.guest("s", options());
    request_badly(&mut guest);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let log = std::io::read_to_string(&mut reader).unwrap();
    for line in [
        "ready: ",
        "guest 0: front-end connected",
        "session] guest 0: vring 0: bad request",
        "SIGTERM: stopping",
        "guest 0: stopped",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
}

#[test]
fn test_a_log_whose_reader_has_gone_breaks_nothing() {
    let (reader, stderr) = std::io::pipe().unwrap();
    let daemon = start_with_stderr(stderr, &[]);
    drop(reader);
    for _ in 0..2 {
        let mut guest = daemon.guest("s", options());
        request_badly(&mut guest);
        assert_eq!(request(&mut guest, 8).len(), 8);
    }
    daemon.stop();
}

#[test]
fn test_the_journal_is_told_how_urgent_each_line_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("journal")).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.env("JOURNAL_STREAM", &stream);
    let mut daemon = Daemon::spawn_with_stderr(command, directory, file);
    request_badly(&mut daemon.guest("s", options()));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    let log = fs::read_to_string(daemon.path("journal")).unwrap();
    assert!(
        log.contains("<6>[INFO  vhost_device_daemon::server] ready: "),
        "{log}"
    );
    assert!(
        log.contains("<4>[WARN  vhost_device_backend::session] "),
        "{log}"
    );
    assert!(log.contains("<7>[DEBUG "), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");

    let refusal = |arguments: &[&str]| {
        let mut command = PROGRAM.command();
        let file = fs::File::options();
        let file = file
            .clone()
            .append(true)
            .open(daemon.path("journal"))
            .unwrap();
        file.set_len(0).unwrap();
        command.args(arguments).env("JOURNAL_STREAM", &stream);
        command.stderr(file).status().unwrap();
        fs::read_to_string(daemon.path("journal")).unwrap()
    };
    for refusal in [refusal(&["-s", "/nowhere/s"]), refusal(&["--nonsense"])] {
        assert!(refusal.contains("error: "), "{refusal}");
        assert!(
            refusal.lines().all(|line| line.starts_with("<3>")),
            "{refusal}"
        );
    }
}

#[test]
fn v9_what_cannot_be_printed_ends_with_the_status_that_is_documented() {
    let run = |arguments: &[&str], is_stdout_full: bool| {
        let full = || fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = PROGRAM.command();
        command.args(arguments).stdin(Stdio::null());
        match is_stdout_full {
            true => command.stdout(full()).stderr(Stdio::null()),
            false => command.stdout(Stdio::null()).stderr(full()),
        };
        command.status().unwrap().code()
    };
    for asked in ["--help", "-h", "--version", "--print-capabilities"] {
        assert_eq!(run(&[asked], true), Some(1), "{asked}");
        assert_eq!(run(&[asked], false), Some(0), "{asked}");
    }
    assert_eq!(run(&["-s", "/nowhere/s"], false), Some(1), "a start error");
    assert_eq!(run(&["--nonsense"], false), Some(2), "a usage error");
    assert_eq!(run(&[], false), Some(2), "a usage error");
}

#[test]
fn test_what_is_wrong_in_rust_log_is_a_line_of_the_log() {
    let (code, text) = {
        let mut command = PROGRAM.command();
        command
            .args(["-s", "/nowhere/s"])
            .env("RUST_LOG", "a=loud,warn");
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("WARN  vhost_device_daemon::logging] RUST_LOG: \"a=loud\""),
        "{text}"
    );
}

#[test]
fn test_a_hangup_without_a_terminal_is_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("setsid");
    command.arg(PROGRAM.command().get_program());
    command.args(PROGRAM.command().get_args());
    command.arg("-s").arg(directory.path().join("s"));
    let daemon = Daemon::spawn(command, directory);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("SIGHUP: ignored");
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.stop();
}

/// Starts the daemon in a session of its own, with a terminal of its own, by the words `prefix`
/// before it. The terminal goes when what is returned with the daemon is dropped.
fn start_on_a_terminal(prefix: &[&str]) -> (OwnedFd, Daemon) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let side = ptsname(&terminal, Vec::new()).unwrap();
    let side = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(side.to_str().unwrap())
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = PROGRAM.command();
    let mut command = Command::new("setsid");
    command.arg("--ctty").args(prefix);
    command.arg(program.get_program()).args(program.get_args());
    command.arg("-s").arg(directory.path().join("s"));
    command.stdin(side).stdout(Stdio::null());
    (terminal, Daemon::spawn(command, directory))
}

#[test]
fn v9_a_terminal_that_goes_ends_the_daemon_as_sigterm_does() {
    let (terminal, mut daemon) = start_on_a_terminal(&[]);
    let mut guest = daemon.guest("s", options());
    assert_eq!(request(&mut guest, 8).len(), 8);
    drop(terminal);
    assert_eq!(daemon.state(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(
        daemon.log().contains("SIGHUP: stopping"),
        "{}",
        daemon.log()
    );
    assert_eq!(entries(daemon.directory.path()), ["notify", "stderr"]);
}

#[test]
fn test_nohup_has_the_daemon_outlive_its_terminal() {
    let (terminal, mut daemon) = start_on_a_terminal(&["nohup"]);
    drop(terminal);
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    // Had it been there, it would have been read first.
    assert!(!daemon.log().contains("SIGHUP"), "{}", daemon.log());
}

#[test]
fn test_what_a_killed_start_left_behind_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    for name in [".s.vd-01234567", ".another.vd-89abcdef"] {
        drop(UnixListener::bind(directory.path().join(name)).unwrap());
    }
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    let daemon = Daemon::spawn(command, directory);
    assert_eq!(entries(daemon.directory.path()), ["notify", "s", "stderr"]);
    daemon.stop();
}

#[test]
fn test_a_lock_of_somebody_else_does_not_stop_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let holder = fs::File::open(directory.path()).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    let mut command = PROGRAM.command();
    command.arg("-s").arg(directory.path().join("s"));
    let daemon = Daemon::spawn(command, directory);
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
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

#[test]
fn test_a_limit_of_file_sizes_fails_what_needs_a_file_and_ends_nobody() {
    let daemon = PROGRAM.start(&[]);
    let limit = Rlimit {
        current: Some(0),
        maximum: None,
    };
    prlimit(Some(daemon.process()), Resource::Fsize, limit).unwrap();
    // The answer has no room for a refusal, so the connection ends.
    assert!(Driver::connect(daemon.path("s"), options().track_inflight()).is_err());
    assert_eq!(request(&mut daemon.guest("s", options()), 16).len(), 16);
    daemon.stop();
}

#[test]
fn nothing_is_opened_when_the_daemon_is_ready() {
    opens_nothing_when_ready(PROGRAM, &["-m", "1000", "-p", "10"], |daemon| {
        request(&mut daemon.guest("s", options()), 8);
    });
}
