//! What goes over the queues: messages of DEN0056 as the SCMI device carries them (VIRTIO 1.4
//! §5.17).
//!
//! A message is a header of 32 bits with a payload behind it, all little-endian. The payload of
//! an answer begins with a status.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::host;

/// VIRTIO 1.4 §5.17.1.
pub(super) const DEVICE_ID: u32 = 32;

/// `VIRTIO_SCMI_F_P2A_CHANNELS`: notifications and delayed responses, and with them the event
/// queue.
pub(super) const F_P2A_CHANNELS: u64 = 1 << 0;

pub(super) const COMMAND_QUEUE: u16 = 0;
#[cfg(test)]
pub(super) const EVENT_QUEUE: u16 = 1;

/// The longest payload of a command. No command that is known here has more than 16 bytes; what
/// is longer is not read, so that it costs nothing.
pub(super) const MAX_ARGUMENTS: usize = 128;

/// The longest payload of an answer or a notification, behind the status: a reading of 63 axes
/// fits. Lists go on in another answer, so that a guest with large buffers makes none that are
/// large.
pub(super) const MAX_RESULTS: usize = 1024;

/// The bytes of an answer before its results: header and status.
pub(super) const ANSWER_HEAD: usize = 8;

/// The bytes of a notification before its payload.
pub(super) const HEADER: usize = 4;

/// How long a name may be in an answer that has other things in it, with the zero behind it.
const SHORT_NAME: usize = 16;

/// How long it may be in the answer to a `*_NAME_GET`.
const LONG_NAME: usize = 64;

/// The number of the platform among the agents.
pub(super) const PLATFORM: u32 = 0;

/// The number of the guest. It is the only agent that it is told of: what other guests do, the
/// platform does.
pub(super) const AGENT: u32 = 1;

/// The kinds of messages that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Command = 0,
    DelayedResponse = 2,
    Notification = 3,
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header(pub(super) u32);

impl Header {
    /// The header of a notification.
    pub(super) fn notification(protocol: u8, message: u8) -> Self {
        Self(u32::from(protocol) << 10 | (Kind::Notification as u32) << 8 | u32::from(message))
    }

    /// The header of the delayed response to a command.
    pub(super) fn delayed(self) -> Self {
        Self(self.0 & !(3 << 8) | (Kind::DelayedResponse as u32) << 8)
    }

    pub(super) fn message(self) -> u8 {
        // Its lowest eight bits.
        self.0 as u8
    }

    pub(super) fn is_command(self) -> bool {
        self.0 >> 8 & 3 == Kind::Command as u32
    }

    pub(super) fn protocol(self) -> u8 {
        // Eight bits in the middle.
        (self.0 >> 10) as u8
    }
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Status {
    Success = 0,
    NotSupported = -1,
    InvalidParameters = -2,
    Denied = -3,
    NotFound = -4,
    OutOfRange = -5,
    Busy = -6,
    HardwareError = -9,
    ProtocolError = -10,
    InUse = -11,
}

/// Why a command is answered with an error.
#[derive(Debug)]
pub(super) enum Failure {
    /// The guest's fault.
    Status(Status),
    /// The hardware's.
    Host(host::Error),
}

impl Failure {
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Status(status) => *status,
            Self::Host(error) => match error {
                host::Error::NotSupported => Status::NotSupported,
                host::Error::Denied => Status::Denied,
                host::Error::NotFound => Status::NotFound,
                host::Error::OutOfRange => Status::OutOfRange,
                host::Error::Busy => Status::Busy,
                host::Error::InUse => Status::InUse,
                host::Error::Hardware(_) => Status::HardwareError,
            },
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<host::Error> for Failure {
    fn from(error: host::Error) -> Self {
        Self::Host(error)
    }
}

impl From<NoRoom> for Failure {
    fn from(_: NoRoom) -> Self {
        Self::Status(Status::ProtocolError)
    }
}

/// How a command ends.
pub(super) type Done = Result<(), Failure>;

/// The payload of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments<'a>(pub(super) &'a [u8]);

impl Arguments<'_> {
    /// All of them; there have to be as many as the command has.
    pub(super) fn words<const N: usize>(self) -> Result<[u32; N], Status> {
        let words = <[U32; N]>::read_from_bytes(self.0).map_err(|_| Status::ProtocolError)?;
        Ok(words.map(U32::get))
    }

    /// The first ones, and the others, of a command that has as many as it says.
    pub(super) fn split<const N: usize>(self) -> Result<([u32; N], Vec<u32>), Status> {
        let (first, rest) =
            <[U32; N]>::read_from_prefix(self.0).map_err(|_| Status::ProtocolError)?;
        let words = rest.chunks(size_of::<U32>()).map(|word| {
            let word = U32::read_from_bytes(word).map_err(|_| Status::ProtocolError);
            word.map(U32::get)
        });
        Ok((first.map(U32::get), words.collect::<Result<_, _>>()?))
    }

    /// For a command without any.
    pub(super) fn none(self) -> Result<(), Status> {
        self.words::<0>().map(|_| ())
    }
}

/// More was to be written than the guest's buffer has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The results of a command, for as long as there is room for them.
#[derive(Debug)]
pub(super) struct Results<'a> {
    bytes: &'a mut Vec<u8>,
    end: usize,
}

impl<'a> Results<'a> {
    /// Results behind what is in `bytes` already, at most `room` bytes.
    pub(super) fn new(bytes: &'a mut Vec<u8>, room: usize) -> Self {
        let end = bytes.len().saturating_add(room.min(MAX_RESULTS));
        Self { bytes, end }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        if bytes.len() > self.end.saturating_sub(self.bytes.len()) {
            return Err(NoRoom);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn word(&mut self, value: u32) -> Result<(), NoRoom> {
        self.bytes(&value.to_le_bytes())
    }

    /// A number of 64 bits: the low half, then the high one.
    pub(super) fn double(&mut self, value: u64) -> Result<(), NoRoom> {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn words<const N: usize>(&mut self, values: [u32; N]) -> Result<(), NoRoom> {
        self.bytes(values.map(U32::new).as_bytes())
    }

    /// A name, cut if need be.
    pub(super) fn short_name(&mut self, name: &str) -> Result<(), NoRoom> {
        self.name::<SHORT_NAME>(name)
    }

    /// A name, whole.
    pub(super) fn long_name(&mut self, name: &str) -> Result<(), NoRoom> {
        self.name::<LONG_NAME>(name)
    }

    fn name<const N: usize>(&mut self, name: &str) -> Result<(), NoRoom> {
        let mut field = [0; N];
        // The last byte stays 0.
        let room = field.iter_mut().take(N - 1);
        for (to, from) in room.zip(name.bytes()) {
            *to = from;
        }
        self.bytes(&field)
    }

    /// A part of a list. Before what it has comes a word that `head` makes of how many they are
    /// and how many are left.
    pub(super) fn list(
        &mut self,
        part: Part,
        head: impl Fn(u32, u32) -> u32,
        mut put: impl FnMut(&mut Self, usize) -> Result<(), NoRoom>,
    ) -> Done {
        let Part { total, most, .. } = part;
        let skip = usize::try_from(part.skip).unwrap_or(usize::MAX);
        if skip >= total && (total, skip) != (0, 0) {
            return Err(part.beyond.into());
        }
        let place = self.bytes.len();
        self.word(0)?;
        let mut count = 0;
        for position in (skip..total).take(most) {
            let mark = self.bytes.len();
            if put(self, position).is_err() {
                self.bytes.truncate(mark);
                break;
            }
            count += 1;
        }
        if count == 0 && total > 0 {
            return Err(NoRoom.into());
        }
        // Fit: a list is no longer than a platform may make it.
        let head = head(count as u32, (total - skip - count) as u32);
        if let Some(word) = self.bytes.get_mut(place..place + 4) {
            word.copy_from_slice(&head.to_le_bytes());
        }
        Ok(())
    }
}

/// Which part of a list an answer has: from `skip` on, as many as there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// How many there are.
    pub(super) total: usize,
    pub(super) skip: u32,
    /// The most at a time.
    pub(super) most: usize,
    /// The status when it begins behind the end: protocols differ in it.
    pub(super) beyond: Status,
}

/// What a guest may choose from, for an answer that tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice<'a, T> {
    /// These.
    List(&'a [T]),
    /// From the lowest to the highest, with a step between two.
    Range([T; 3]),
}

impl Results<'_> {
    /// A part of a list, or the three numbers of a range.
    pub(super) fn choice<T: Copy>(
        &mut self,
        choice: Choice<'_, T>,
        skip: u32,
        put: impl Fn(&mut Self, T) -> Result<(), NoRoom>,
    ) -> Done {
        match choice {
            Choice::List(list) => {
                let one = |results: &mut Self, position: usize| {
                    put(results, *list.get(position).ok_or(NoRoom)?)
                };
                let part = Part {
                    total: list.len(),
                    skip,
                    most: MAX_COUNT,
                    beyond: Status::OutOfRange,
                };
                self.list(part, count_and_left, one)
            }
            // All three, or none.
            Choice::Range(range) => {
                if skip != 0 {
                    return Err(Status::OutOfRange.into());
                }
                self.word(3 | RANGE)?;
                for number in range {
                    put(self, number)?;
                }
                Ok(())
            }
        }
    }
}

/// In the head of a list: its three numbers are the lowest, the highest and the step.
const RANGE: u32 = 1 << 12;

/// Whether a name is too long for an answer that has other things in it.
pub(super) fn is_long(name: &str) -> bool {
    name.len() >= SHORT_NAME
}

/// A word of flags: the bits whose condition holds.
pub(super) fn bits<const N: usize>(bits: [(u32, bool); N]) -> u32 {
    let set = bits.into_iter().filter(|(_, set)| *set);
    set.fold(0, |word, (bit, _)| word | 1 << bit)
}

/// Whether a command that subscribes or unsubscribes does the one or the other.
pub(super) fn is_subscription(word: u32) -> Result<bool, Status> {
    match word {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Status::InvalidParameters),
    }
}

/// The head of most lists: how many there are in bits 0 to 11, and in bits 16 to 31 how many are
/// left.
pub(super) fn count_and_left(count: u32, left: u32) -> u32 {
    count | left << 16
}

/// The most entries that [`count_and_left`] can count at a time.
pub(super) const MAX_COUNT: usize = 0xfff;
