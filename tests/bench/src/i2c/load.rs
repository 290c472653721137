//! What is asked for: the transfers that Linux's tools make.

use std::fmt;

use vhost_device_driver::Buffer;

use crate::load::{Guest, Job, QUEUE_SIZE, Slot};

/// The device on the bus.
pub(super) const ADDRESS: u8 = 0x20;
/// Its register, and what is in it.
const REGISTER: u8 = 7;
const VALUE: u8 = 0x5a;

// VIRTIO 1.4 §5.16.6, `flags` and `status`
const FAIL_NEXT: u32 = 1;
const READ: u32 = 2;
const OK: u8 = 0;

/// Bytes of guest memory for a request: header, data and status.
const REQUEST_ROOM: u64 = 16;
/// Bytes for all that can be outstanding.
pub(super) const ROOM: u64 = REQUEST_ROOM * QUEUE_SIZE as u64;
/// Descriptors of a request.
const DESCRIPTORS: u16 = 3;

/// A transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// A register of a byte is written: one request.
    Write,
    /// A register of a byte is read: two requests, the first with `FAIL_NEXT`.
    Read,
}

/// How many transfers are outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    One,
    /// As many as the ring has room for.
    Full,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) transfer: Transfer,
    pub(super) depth: Depth,
}

impl Load {
    /// All of them. What is read was written by the one before.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Depth::One, Depth::Full].into_iter().flat_map(|depth| {
            [Transfer::Write, Transfer::Read].map(|transfer| Self { transfer, depth })
        })
    }

    /// How many transfers that is.
    pub(super) fn outstanding(self) -> u16 {
        match self.depth {
            Depth::One => 1,
            Depth::Full => QUEUE_SIZE / (DESCRIPTORS * self.transfer.requests()),
        }
    }

    /// The transfers, laid out in a guest's memory.
    pub(super) fn job(self, guest: &Guest) -> Job {
        let room = REQUEST_ROOM * u64::from(self.transfer.requests());
        let slots = (0..u64::from(self.outstanding()))
            .map(|number| self.transfer.slot(guest, guest.data() + number * room));
        let job = Job::new(slots.collect());
        match self.depth {
            Depth::One => job.timed(),
            Depth::Full => job,
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.transfer {
            Transfer::Write => "write a byte",
            Transfer::Read => "read a byte",
        };
        write!(f, "{what}, depth {}", self.outstanding())
    }
}

impl Transfer {
    fn requests(self) -> u16 {
        match self {
            Self::Write => 1,
            Self::Read => 2,
        }
    }

    fn slot(self, guest: &Guest, at: u64) -> Slot {
        match self {
            Self::Write => {
                let (request, status) = write(guest, at, &[REGISTER, VALUE], 0);
                Slot::new(vec![request]).expect(vec![(status, OK)])
            }
            Self::Read => {
                let (pointer, one) = write(guest, at, &[REGISTER], FAIL_NEXT);
                let (read, data, two) = read(guest, at + REQUEST_ROOM);
                let good = vec![(one, OK), (data, VALUE), (two, OK)];
                Slot::new(vec![pointer, read]).expect(good)
            }
        }
    }
}

/// A request that writes these bytes, at most 4, and where its status will be.
fn write(guest: &Guest, at: u64, bytes: &[u8], flags: u32) -> (Vec<Buffer>, u64) {
    let (header, data, status) = (at, at + 8, at + 12);
    write_header(guest, header, flags);
    guest.write(data, bytes);
    let request = vec![
        Buffer::readable(header, 8),
        Buffer::readable(data, bytes.len() as u32),
        Buffer::writable(status, 1),
    ];
    (request, status)
}

/// A request that reads a byte, and where that and the status will be.
fn read(guest: &Guest, at: u64) -> (Vec<Buffer>, u64, u64) {
    let (header, data, status) = (at, at + 8, at + 12);
    write_header(guest, header, READ);
    let request = vec![
        Buffer::readable(header, 8),
        Buffer::writable(data, 1),
        Buffer::writable(status, 1),
    ];
    (request, data, status)
}

/// `struct virtio_i2c_out_hdr`.
fn write_header(guest: &Guest, at: u64, flags: u32) {
    guest.write(at, &[ADDRESS << 1, 0, 0, 0]);
    guest.write(at + 4, &flags.to_le_bytes());
}
