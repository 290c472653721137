//! The real daemon in a process of its own, and a guest's I2C driver in small.

// Each test program uses its part.
#![allow(dead_code)]

pub mod buses;

use std::ops::Deref;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options};
use vhost_device_rig::Program;
pub use vhost_device_rig::program::DEADLINE;

/// The daemon's program.
pub const PROGRAM: Program = Program(env!("CARGO_BIN_EXE_vhost-device-i2c"));

/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`.
pub const ZERO_LENGTH_REQUEST: u64 = 1;

pub const FAIL_NEXT: u32 = 1;
pub const READ: u32 = 2;
pub const OK: u8 = 0;
pub const ERR: u8 = 1;

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
    /// until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self(PROGRAM.start(arguments))
    }

    /// A guest at the socket `name`.
    pub fn guest(&self, name: &str) -> Driver {
        self.0.guest(name, options())
    }

    /// Ends it, as a service manager does, and expects it to end well.
    pub fn stop(self) {
        self.0.stop();
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
