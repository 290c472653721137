//! The real daemon in a process of its own, and a guest's SCMI driver in small.

// Each test program uses its part.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options};
use vhost_device_rig::Program;
pub use vhost_device_rig::program::DEADLINE;

/// The daemon's program.
pub const PROGRAM: Program = Program(env!("CARGO_BIN_EXE_vhost-device-scmi"));

/// `VIRTIO_SCMI_F_P2A_CHANNELS`.
pub const F_P2A_CHANNELS: u64 = 1;

pub const COMMANDS: usize = 0;
pub const EVENTS: usize = 1;

pub const BASE: u8 = 0x10;
pub const SYSTEM: u8 = 0x12;
pub const CLOCK: u8 = 0x14;
pub const SENSOR: u8 = 0x15;
pub const RESET: u8 = 0x16;
pub const VOLTAGE: u8 = 0x17;
pub const POWERCAP: u8 = 0x18;

/// How much Linux gives for an answer or a notification.
pub const ROOM: u32 = 128 + 8;

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
    pub fn guest(&self, name: &str) -> Guest {
        Guest::connect(&self.0, name)
    }

    /// A client of the control socket.
    pub fn control(&self) -> Control {
        Control::connect(self.path("control"))
    }

    /// Ends it, as a service manager does, and expects it to end well.
    pub fn stop(self) {
        self.0.stop();
    }
}

/// A guest with both queues.
pub fn options() -> Options {
    Options::new(&[64, 64]).regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
}

/// A guest's driver.
#[derive(Debug)]
pub struct Guest {
    pub driver: Driver,
    /// The event buffers that are out: their heads, and where they are.
    buffers: Vec<(u16, u64)>,
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    assert_eq!(bytes.len() % 4, 0, "{bytes:x?}");
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

pub fn header(protocol: u8, message: u8) -> u32 {
    u32::from(protocol) << 10 | u32::from(message)
}

impl Guest {
    /// A guest at the socket `name` of a daemon.
    pub fn connect(daemon: &vhost_device_rig::Daemon, name: &str) -> Self {
        Self {
            driver: daemon.guest(name, options()),
            buffers: Vec::new(),
        }
    }

    /// A command's bytes, and all of the answer.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8], room: u32) -> Vec<u8> {
        let driver = &mut self.driver;
        let request = driver.alloc(bytes.len() as u64);
        let answer = driver.alloc(room.into());
        driver.memory.write(request, bytes);
        let mut buffers = vec![Buffer::readable(request, bytes.len() as u32)];
        buffers.push(Buffer::writable(answer, room));
        buffers.retain(|buffer| buffer.len > 0);
        let head = driver.queues[COMMANDS].submit(&buffers).unwrap();
        driver.queues[COMMANDS].notify();
        let used = driver.queues[COMMANDS].wait_used(DEADLINE);
        assert_eq!(used.head, head);
        driver.memory.read_vec(answer, used.len as usize)
    }

    /// A command and its answer: the status and the results.
    #[track_caller]
    pub fn command(&mut self, protocol: u8, message: u8, arguments: &[u32]) -> (i32, Vec<u8>) {
        let header = header(protocol, message);
        let all = [&[header], arguments].concat();
        let bytes: Vec<_> = all.iter().flat_map(|word| word.to_le_bytes()).collect();
        let answer = self.send(&bytes, ROOM);
        assert_eq!(words(&answer[..4]), [header]);
        (words(&answer[4..8])[0] as i32, answer[8..].to_vec())
    }

    /// The results of a command that has to succeed.
    #[track_caller]
    pub fn ok(&mut self, protocol: u8, message: u8, arguments: &[u32]) -> Vec<u32> {
        let (status, results) = self.command(protocol, message, arguments);
        assert_eq!(status, 0, "{protocol:#x} {message:#x}");
        words(&results)
    }

    /// Gives the device event buffers.
    pub fn give(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.driver.alloc(ROOM.into());
            let queue = &mut self.driver.queues[EVENTS];
            let head = queue.submit(&[Buffer::writable(buffer, ROOM)]).unwrap();
            self.buffers.push((head, buffer));
        }
        self.driver.queues[EVENTS].notify();
    }

    /// Waits for what the device tells next: the header and the payload.
    #[track_caller]
    pub fn told(&mut self) -> (u32, Vec<u32>) {
        let used = self.driver.queues[EVENTS].wait_used(DEADLINE);
        let (head, buffer) = self.buffers.remove(0);
        assert_eq!(used.head, head, "buffers are used in their order");
        let words = words(&self.driver.memory.read_vec(buffer, used.len as usize));
        (words[0], words[1..].to_vec())
    }

    /// Waits for the next notification, which has to be this one.
    #[track_caller]
    pub fn notice(&mut self, protocol: u8, message: u8) -> Vec<u32> {
        let (told, words) = self.told();
        assert_eq!(told, header(protocol, message) | 3 << 8);
        words
    }
}

/// A client of the control socket.
#[derive(Debug)]
pub struct Control(BufReader<UnixStream>);

impl Control {
    pub fn connect(path: impl AsRef<Path>) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The answer, without the line that ends it.
    pub fn ask(&mut self, line: &str) -> String {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ok\n") && !answer.starts_with("error: ") {
            assert!(self.0.read_line(&mut answer).unwrap() > 0, "{answer}");
        }
        let answer = answer.strip_suffix("ok\n").unwrap_or(&answer);
        answer.trim_end().to_owned()
    }
}
