//! What goes over the queues (VIRTIO 1.4 §5.18), byte for byte.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::host::Lines;

/// VIRTIO 1.4 §5.18.1.
pub(super) const DEVICE_ID: u32 = 41;

/// `VIRTIO_GPIO_F_IRQ`: interrupts, and with them the event queue.
pub(super) const F_IRQ: u64 = 1 << 0;

pub(super) const REQUEST_QUEUE: u16 = 0;
#[cfg(test)]
pub(super) const EVENT_QUEUE: u16 = 1;

const GET_LINE_NAMES: u16 = 1;
const GET_DIRECTION: u16 = 2;
const SET_DIRECTION: u16 = 3;
const GET_VALUE: u16 = 4;
const SET_VALUE: u16 = 5;
const SET_IRQ_TYPE: u16 = 6;

/// `VIRTIO_GPIO_STATUS_*`.
const STATUS_OK: u8 = 0;
const STATUS_ERR: u8 = 1;

pub(super) use crate::args::MAX_NAME;

/// What the driver sends on the request queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct RequestHeader {
    kind: U16,
    line: U16,
    value: U32,
}

/// A request, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Names,
    GetDirection(u16),
    SetDirection(u16, Direction),
    GetValue(u16),
    SetValue(u16, bool),
    SetTrigger(u16, Option<Trigger>),
    /// Nothing that the specification knows.
    Unknown,
    /// Something that cannot be answered.
    NoRoom,
}

impl From<RequestHeader> for Command {
    fn from(header: RequestHeader) -> Self {
        let (line, value) = (header.line.get(), header.value.get());
        let known = match header.kind.get() {
            GET_LINE_NAMES => Some(Self::Names),
            GET_DIRECTION => Some(Self::GetDirection(line)),
            GET_VALUE => Some(Self::GetValue(line)),
            SET_DIRECTION => Direction::from_wire(value).map(|to| Self::SetDirection(line, to)),
            SET_VALUE => level(value).map(|high| Self::SetValue(line, high)),
            SET_IRQ_TYPE => trigger(value).map(|trigger| Self::SetTrigger(line, trigger)),
            _ => None,
        };
        known.unwrap_or(Self::Unknown)
    }
}

/// `VIRTIO_GPIO_DIRECTION_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Direction {
    #[default]
    None = 0,
    Out = 1,
    In = 2,
}

impl Direction {
    fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::Out),
            2 => Some(Self::In),
            _ => None,
        }
    }
}

fn level(value: u32) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// What raises an interrupt: `VIRTIO_GPIO_IRQ_TYPE_*`, without `NONE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    RisingEdge,
    FallingEdge,
    BothEdges,
    HighLevel,
    LowLevel,
}

/// The trigger of a `SET_IRQ_TYPE`, `Some(None)` for `NONE`; `None` when there is no such type.
fn trigger(value: u32) -> Option<Option<Trigger>> {
    match value {
        0 => Some(None),
        1 => Some(Some(Trigger::RisingEdge)),
        2 => Some(Some(Trigger::FallingEdge)),
        3 => Some(Some(Trigger::BothEdges)),
        4 => Some(Some(Trigger::HighLevel)),
        8 => Some(Some(Trigger::LowLevel)),
        _ => None,
    }
}

/// The answer to all requests but `GET_LINE_NAMES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Response {
    pub(super) status: u8,
    value: u8,
}

impl Response {
    pub(super) const ERR: Self = Self {
        status: STATUS_ERR,
        value: 0,
    };

    pub(super) fn ok(value: u8) -> Self {
        Self {
            status: STATUS_OK,
            value,
        }
    }
}

/// What the driver sends on the event queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes)]
#[repr(C)]
pub(super) struct EventRequest {
    pub(super) line: U16,
}

/// Why an event buffer goes back: `VIRTIO_GPIO_IRQ_STATUS_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(u8)]
pub(super) enum IrqStatus {
    Invalid = 0,
    Valid = 1,
}

/// The configuration space: `struct virtio_gpio_config`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    ngpio: U16,
    padding: [u8; 2],
    gpio_names_size: U32,
}

impl Config {
    pub(super) fn new(lines: u16, names: &[u8]) -> Self {
        Self {
            ngpio: lines.into(),
            padding: [0; 2],
            // Fits: 65535 names of at most 32 bytes.
            gpio_names_size: (names.len() as u32).into(),
        }
    }
}

/// The block of `GET_LINE_NAMES`: each name with a zero behind it. Empty when no line has a
/// name. A name that is too long, not printable ASCII or another line's is left out.
pub(super) fn names(lines: &dyn Lines) -> Vec<u8> {
    let mut seen = std::collections::HashSet::new();
    let mut block = Vec::new();
    for line in 0..lines.count() {
        let name = lines.name(line);
        let fit = name.len() <= MAX_NAME && name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if fit && seen.insert(name) {
            block.extend_from_slice(name.as_bytes());
        }
        block.push(0);
    }
    match seen.iter().any(|name| !name.is_empty()) {
        true => block,
        false => Vec::new(),
    }
}
