//! The real daemon in a process of its own, and a guest's I2C driver in small.

// Each test program uses its part.
#![allow(dead_code)]

pub mod buses;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options};

/// The daemon's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-device-i2c");

/// Only a hang takes as long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`.
pub const ZERO_LENGTH_REQUEST: u64 = 1;

pub const FAIL_NEXT: u32 = 1;
pub const READ: u32 = 2;
pub const OK: u8 = 0;
pub const ERR: u8 = 1;

/// A running daemon, ended with the test.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    stderr: PathBuf,
    /// Where its sockets and files are.
    pub directory: TempDir,
}

impl Daemon {
    /// Starts the daemon on the socket `s` of a new directory, with more arguments, and waits
    /// until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let notify = directory.path().join("notify");
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let stderr = directory.path().join("stderr");
        let child = Command::new(PROGRAM)
            .arg("-s")
            .arg(directory.path().join("s"))
            .args(arguments)
            .env("NOTIFY_SOCKET", &notify)
            .env("RUST_LOG", "debug")
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let daemon = Self {
            child,
            stderr,
            directory,
        };
        let mut text = [0; 256];
        let length = manager.recv(&mut text);
        let length = length.unwrap_or_else(|error| panic!("{error}: {}", daemon.log()));
        assert_eq!(&text[..length], b"READY=1");
        daemon
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < DEADLINE, "{text:?} in {}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A guest at the socket `name`.
    pub fn guest(&self, name: &str) -> Driver {
        Driver::connect(self.directory.path().join(name), options()).unwrap()
    }

    /// Ends it, as a service manager does, and expects it to end well.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest that takes zero-length requests.
pub fn options() -> Options {
    Options::new(&[64])
        .regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
        .with_features(ZERO_LENGTH_REQUEST)
}

/// A message as a guest's driver has it.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    Write(u8, &'a [u8]),
    Read(u8, u32),
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub used: u32,
    pub bytes: Vec<u8>,
}

/// Does messages as one transfer, as Linux's driver does.
pub fn transfer(driver: &mut Driver, messages: &[Message<'_>]) -> Vec<Answer> {
    let last = messages.len().saturating_sub(1);
    let flagged: Vec<_> = messages
        .iter()
        .enumerate()
        .map(|(n, &message)| (message, if n < last { FAIL_NEXT } else { 0 }))
        .collect();
    requests(driver, &flagged)
}

/// Does requests with these flags, all made available at once.
pub fn requests(driver: &mut Driver, messages: &[(Message<'_>, u32)]) -> Vec<Answer> {
    driver.arena.clear();
    let sent: Vec<_> = messages
        .iter()
        .map(|&(message, flags)| submit(driver, message, flags))
        .collect();
    driver.queues[0].notify();
    sent.into_iter()
        .map(|(head, data, length, status)| {
            let used = driver.queues[0].wait_used(DEADLINE);
            assert_eq!(used.head, head, "in order");
            Answer {
                status: driver.memory.read_vec(status, 1)[0],
                used: used.len,
                bytes: driver.memory.read_vec(data, length as usize),
            }
        })
        .collect()
}

/// Makes a request available; its head, what is read, and where its status will be.
pub fn submit(driver: &mut Driver, message: Message<'_>, flags: u32) -> (u16, u64, u32, u64) {
    let (number, flags, length) = match message {
        Message::Write(number, bytes) => (number, flags, bytes.len() as u32),
        Message::Read(number, length) => (number, flags | READ, length),
    };
    let header = driver.alloc(8);
    let data = driver.alloc(u64::from(length.max(1)));
    let status = driver.alloc(1);
    driver.memory.write(header, &[number << 1, 0, 0, 0]);
    driver.memory.write(header + 4, &flags.to_le_bytes());
    driver.memory.write(status, &[0xee]);
    let mut buffers = vec![Buffer::readable(header, 8)];
    let mut read = 0;
    match message {
        Message::Write(_, bytes) if length > 0 => {
            driver.memory.write(data, bytes);
            buffers.push(Buffer::readable(data, length));
        }
        Message::Read(_, length) if length > 0 => {
            buffers.push(Buffer::writable(data, length));
            read = length;
        }
        _ => {}
    }
    buffers.push(Buffer::writable(status, 1));
    let head = driver.queues[0].submit(&buffers).unwrap();
    (head, data, read, status)
}

/// The statuses alone.
pub fn statuses(answers: &[Answer]) -> Vec<u8> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Runs the daemon for as long as it takes to see that it cannot be run so: its status and what
/// it says.
pub fn run(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}
