//! The real daemon in a process of its own, and a guest's GPIO driver in small.

// Each test program uses its part.
#![allow(dead_code)]

pub mod board;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Signal;
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options};
pub use vhost_device_rig::program::DEADLINE;
use vhost_device_rig::{Program, entries};

/// The daemon's program.
pub const PROGRAM: Program = Program(env!("CARGO_BIN_EXE_vhost-device-gpio"));

/// `VIRTIO_GPIO_F_IRQ`.
pub const F_IRQ: u64 = 1;

pub const REQUESTS: usize = 0;
pub const EVENTS: usize = 1;

pub const GET_LINE_NAMES: u16 = 1;
pub const GET_DIRECTION: u16 = 2;
pub const SET_DIRECTION: u16 = 3;
pub const GET_VALUE: u16 = 4;
pub const SET_VALUE: u16 = 5;
pub const SET_IRQ_TYPE: u16 = 6;

pub const NONE: u32 = 0;
pub const OUT: u32 = 1;
pub const IN: u32 = 2;
pub const RISING: u32 = 1;
pub const FALLING: u32 = 2;
pub const BOTH: u32 = 3;
pub const HIGH: u32 = 4;
pub const LOW: u32 = 8;

pub const OK: u8 = 0;
pub const ERR: u8 = 1;
pub const INVALID: u8 = 0;
pub const VALID: u8 = 1;

/// A running daemon, ended with the test.
#[derive(Debug)]
pub struct Daemon(vhost_device_rig::Daemon);

impl Deref for Daemon {
    type Target = vhost_device_rig::Daemon;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Daemon {
    /// Starts the daemon on the socket `s` of a new directory, with more arguments, and waits
    /// until it is ready. The control socket is `control`.
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = PROGRAM.command();
        command.arg("-s").arg(directory.path().join("s"));
        command
            .arg("--sim-control")
            .arg(directory.path().join("control"))
            .args(arguments);
        Self(vhost_device_rig::Daemon::spawn(command, directory))
    }

    /// A guest at the socket `name`.
    pub fn guest(&self, name: &str) -> Driver {
        self.0.guest(name, options())
    }

    /// A client of the control socket `name`.
    pub fn world(&self, name: &str) -> World {
        World::connect(self.path(name))
    }

    /// Ends it, as a service manager does, and expects it to end well, with no socket left.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.0.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert_eq!(entries(self.directory.path()), ["notify", "stderr"]);
    }
}

/// A guest with both queues.
pub fn options() -> Options {
    Options::new(&[64, 64]).regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
}

/// A request's bytes, or an event buffer's.
pub fn header(kind: u16, line: u16, value: u32) -> Vec<u8> {
    let (kind, line, value) = (kind.to_le_bytes(), line.to_le_bytes(), value.to_le_bytes());
    [&kind[..], &line, &value].concat()
}

/// What was sent: the head of its chain, and where its answer will be.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub head: u16,
    pub answer: u64,
}

/// Makes bytes available on a queue, with room for an answer.
pub fn send(guest: &mut Driver, queue: usize, bytes: &[u8], room: u32) -> Sent {
    let request = guest.alloc(bytes.len() as u64);
    let answer = guest.alloc(room.into());
    guest.memory.write(request, bytes);
    let buffers = [
        Buffer::readable(request, bytes.len() as u32),
        Buffer::writable(answer, room),
    ];
    let head = guest.queues[queue].submit(&buffers).unwrap();
    guest.queues[queue].notify();
    Sent { head, answer }
}

/// Waits for the next answer on a queue, which has to be this one's.
#[track_caller]
pub fn wait(guest: &mut Driver, queue: usize, sent: Sent) -> Vec<u8> {
    let used = guest.queues[queue].wait_used(DEADLINE);
    assert_eq!(used.head, sent.head);
    guest.memory.read_vec(sent.answer, used.len as usize)
}

/// A request and its answer.
#[track_caller]
pub fn request(guest: &mut Driver, kind: u16, line: u16, value: u32) -> [u8; 2] {
    let sent = send(guest, REQUESTS, &header(kind, line, value), 2);
    wait(guest, REQUESTS, sent).try_into().unwrap()
}

/// A request that has to succeed.
#[track_caller]
pub fn ok(guest: &mut Driver, kind: u16, line: u16, value: u32) {
    assert_eq!(request(guest, kind, line, value), [OK, 0]);
}

/// Gives the device an event buffer.
pub fn unmask(guest: &mut Driver, line: u16) -> Sent {
    send(guest, EVENTS, &line.to_le_bytes(), 1)
}

/// Waits for an event buffer.
#[track_caller]
pub fn event(guest: &mut Driver, sent: Sent) -> u8 {
    wait(guest, EVENTS, sent)[0]
}

/// Nothing has come on the event queue up to now: a request is handled after what was before it.
#[track_caller]
pub fn no_event(guest: &mut Driver) {
    request(guest, GET_DIRECTION, 0, 0);
    assert!(guest.queues[EVENTS].ring.pop_used().is_none());
}

/// A client of the simulator's control socket that is told of each change.
#[derive(Debug)]
pub struct World {
    stream: BufReader<UnixStream>,
    /// Changes that were told and not asked for yet.
    changes: VecDeque<String>,
}

impl World {
    /// Connects; it is served as soon as a guest is there, and what it asks for is answered then.
    pub fn connect(path: impl AsRef<Path>) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut world = Self {
            stream: BufReader::new(stream),
            changes: VecDeque::new(),
        };
        world.send("watch\nlist\n");
        world
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next line; empty when the daemon has closed the connection.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next line that is no change.
    pub fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            match line.strip_prefix("changed ") {
                Some(change) => self.changes.push_back(change.to_owned()),
                None => return line,
            }
        }
    }

    /// The next lines that are no changes have to be these.
    #[track_caller]
    pub fn expect_answer(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.answer(), *line);
        }
    }

    /// The next change has to be this: a line's name and its level.
    #[track_caller]
    pub fn expect(&mut self, change: &str) {
        let next = self.changes.pop_front();
        let next = next.map_or_else(|| self.line(), |change| format!("changed {change}"));
        assert_eq!(next, format!("changed {change}"));
    }

    /// Gives a line a level from outside, which it then has.
    #[track_caller]
    pub fn set(&mut self, line: &str, level: u8) {
        self.send(&format!("set {line} {level}\n"));
        self.expect_answer(&[&format!("{line} {level}"), "ok"]);
    }

    /// Nothing more comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(self.answer(), "");
    }

    /// What was asked for with the connection: the lines' names and levels.
    #[track_caller]
    pub fn expect_levels(&mut self, levels: &[(&str, u8)]) {
        self.expect_answer(&["ok"]);
        for (name, level) in levels {
            self.expect_answer(&[&format!("{name} {level}")]);
        }
        self.expect_answer(&["ok"]);
    }
}
