//! What is asked for: what a guest's driver does with its lines.

use std::fmt;

use vhost_device_driver::Buffer;

use crate::load::{Guest, Job, QUEUE_SIZE, Slot};

/// The lines that are an output and an input. Nothing pulls the input up.
const OUTPUT: u16 = 1;
const INPUT: u16 = 2;

// VIRTIO 1.4 §5.18.6
const SET_DIRECTION: u16 = 3;
const GET_VALUE: u16 = 4;
const SET_VALUE: u16 = 5;
const DIRECTION_OUT: u32 = 1;
const DIRECTION_IN: u32 = 2;
const HIGH: u32 = 1;
const STATUS_OK: u8 = 0;

/// Bytes of guest memory for a request: what is sent, and its answer.
const REQUEST_ROOM: u64 = 16;
/// Bytes for all that can be outstanding.
pub(super) const ROOM: u64 = REQUEST_ROOM * QUEUE_SIZE as u64;
/// Descriptors of a request.
const DESCRIPTORS: u16 = 2;

/// A request that is made over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// An output is set.
    Set,
    /// The level of an input is read.
    Get,
}

/// Requests, and how many of them are outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    request: Request,
    pub(super) depth: u16,
}

impl Load {
    /// All of them: alone, and as many as the ring holds.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [1, QUEUE_SIZE / DESCRIPTORS]
            .into_iter()
            .flat_map(|depth| [Request::Set, Request::Get].map(|request| Self { request, depth }))
    }

    /// The requests, laid out in a guest's memory.
    pub(super) fn job(self, guest: &Guest) -> Job {
        let slots = (0..u64::from(self.depth)).map(|number| {
            let at = guest.data() + number * REQUEST_ROOM;
            match self.request {
                Request::Set => slot(guest, at, bytes(SET_VALUE, OUTPUT, HIGH)),
                Request::Get => slot(guest, at, bytes(GET_VALUE, INPUT, 0)),
            }
        });
        let job = Job::new(slots.collect());
        if self.depth == 1 { job.timed() } else { job }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.request {
            Request::Set => "set an output",
            Request::Get => "read an input",
        };
        write!(f, "{what}, depth {}", self.depth)
    }
}

/// What makes the lines an output and an input.
pub(super) fn directions(guest: &Guest) -> Job {
    let requests = [(OUTPUT, DIRECTION_OUT), (INPUT, DIRECTION_IN)];
    let slots = (0..).zip(requests).map(|(number, (line, direction))| {
        let at = guest.data() + number * REQUEST_ROOM;
        slot(guest, at, bytes(SET_DIRECTION, line, direction))
    });
    Job::new(slots.collect())
}

/// A request, whose answer has to have status OK and value 0.
fn slot(guest: &Guest, at: u64, bytes: [u8; 8]) -> Slot {
    let answer = at + 8;
    guest.write(at, &bytes);
    let request = vec![Buffer::readable(at, 8), Buffer::writable(answer, 2)];
    let good = vec![(answer, STATUS_OK), (answer + 1, 0)];
    Slot::new(vec![request]).expect(good)
}

/// `struct virtio_gpio_request`.
pub(super) fn bytes(kind: u16, line: u16, value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&line.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}
