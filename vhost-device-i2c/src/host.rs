//! The buses below the device, as it sees them.

use std::fmt::Debug;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;

pub mod linux;
pub mod sim;
mod smbus;

/// The most messages in one transaction: `I2C_RDWR_IOCTL_MAX_MSGS` of the kernel.
pub const MAX_MESSAGES: usize = 42;

/// The longest message: what the kernel's `i2c-dev` takes.
pub const MAX_MESSAGE_LEN: usize = 8192;

/// In what steps adapters count the time that they wait for an answer: the unit of the kernel's
/// `I2C_TIMEOUT`.
pub const TIMEOUT_STEP: Duration = Duration::from_millis(10);

/// The timeout that is in force when this one is asked for: rounded up to whole steps.
pub fn timeout_in_force(wanted: Duration) -> Duration {
    let steps = wanted.as_nanos().div_ceil(TIMEOUT_STEP.as_nanos());
    // More than 2³² steps are more than the kernel takes.
    TIMEOUT_STEP * u32::try_from(steps).unwrap_or(u32::MAX)
}

/// What an adapter can do: the `I2C_FUNC_…` bits of the kernel's `linux/i2c.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Functionality(pub u32);

impl Functionality {
    /// Plain messages.
    pub const I2C: u32 = 0x0000_0001;
    /// 10-bit addresses.
    pub const TEN_BIT_ADDRESSES: u32 = 0x0000_0002;
    /// A block written and a block read back, each with its length before it.
    pub const BLOCK_PROCESS_CALL: u32 = 0x0000_8000;
    /// No data at all.
    pub const QUICK: u32 = 0x0001_0000;
    /// One byte, received.
    pub const READ_BYTE: u32 = 0x0002_0000;
    /// One byte, sent.
    pub const WRITE_BYTE: u32 = 0x0004_0000;
    /// A register of a byte, read.
    pub const READ_BYTE_DATA: u32 = 0x0008_0000;
    /// A register of a byte, written.
    pub const WRITE_BYTE_DATA: u32 = 0x0010_0000;
    /// A register of two bytes, read.
    pub const READ_WORD_DATA: u32 = 0x0020_0000;
    /// A register of two bytes, written.
    pub const WRITE_WORD_DATA: u32 = 0x0040_0000;
    /// Two bytes written to a register and two read back.
    pub const PROCESS_CALL: u32 = 0x0080_0000;
    /// A block that begins with its length, read.
    pub const READ_BLOCK_DATA: u32 = 0x0100_0000;
    /// A block that begins with its length, written.
    pub const WRITE_BLOCK_DATA: u32 = 0x0200_0000;
    /// A block without its length, read.
    pub const READ_I2C_BLOCK: u32 = 0x0400_0000;
    /// A block without its length, written.
    pub const WRITE_I2C_BLOCK: u32 = 0x0800_0000;
    /// All of the above from [`Self::QUICK`] on.
    pub const ALL_SMBUS: u32 = 0x0fff_0000;

    /// What of it is used: to an adapter without plain messages, 10-bit addresses cannot be told
    /// from 7-bit ones here, whatever it says.
    pub fn usable(self) -> Self {
        if self.has(Self::I2C) {
            return self;
        }
        Self(self.0 & !Self::TEN_BIT_ADDRESSES)
    }

    /// Whether it can do all of this.
    pub fn has(self, functions: u32) -> bool {
        self.0 & functions == functions
    }
}

/// One message of a transaction.
#[derive(Debug)]
pub struct Message<'a> {
    /// To or from whom.
    pub address: Address,
    /// Its bytes.
    pub data: Data<'a>,
}

/// The bytes of a message; none for a zero-length one.
#[derive(Debug)]
pub enum Data<'a> {
    /// To be written.
    Write(&'a [u8]),
    /// To be filled by reading.
    Read(&'a mut [u8]),
}

impl Data<'_> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Write(bytes) => bytes.len(),
            Self::Read(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A transaction that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// How many of its messages had been done.
    pub done: usize,
    /// Why the next was not.
    pub error: Errno,
}

impl Failure {
    /// None of the messages was done.
    pub fn whole(error: Errno) -> Self {
        Self { done: 0, error }
    }

    /// Nobody answered at the address, or whoever did said no: daily business for those who look
    /// for devices.
    pub fn is_refusal(self) -> bool {
        matches!(self.error, Errno::NXIO | Errno::REMOTEIO | Errno::NODEV)
    }

    /// The adapter has no way to do this, and has not tried.
    pub fn is_unsupported(self) -> bool {
        self.error == Errno::OPNOTSUPP
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::whole(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Which bus it is, by whatever name it is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BusId {
    /// A bus of the host, by the number of its character device.
    Device(u64),
    /// A simulator, by its name.
    Sim(String),
}

/// An I2C bus, as one guest has it: others may have the same.
pub trait Bus: Debug + Send + Sync {
    /// What to call it in the log.
    fn name(&self) -> &str;

    /// Which bus it is.
    fn id(&self) -> BusId;

    /// What it can do.
    fn functionality(&self) -> Functionality;

    /// Sets how long it waits for an answer, for everyone who uses it: see [`timeout_in_force`].
    ///
    /// # Errors
    /// The kernel's.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;

    /// Sets how often it tries again when it is busy, for everyone who uses it.
    ///
    /// # Errors
    /// The kernel's.
    fn set_retries(&self, retries: u32) -> io::Result<()>;

    /// Does the messages as one transaction: one start, repeated starts between them, one stop.
    /// There are at most [`MAX_MESSAGES`], none longer than [`MAX_MESSAGE_LEN`]. Returns when
    /// the hardware has answered or its timeout is over.
    ///
    /// # Errors
    /// How far it came.
    fn transfer(&self, messages: &mut [Message<'_>]) -> Result<(), Failure>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_timeouts_are_whole_steps_of_10_ms() {
        for (wanted, in_force) in [(1, 10), (7, 10), (10, 10), (11, 20), (1000, 1000)] {
            let wanted = Duration::from_millis(wanted);
            assert_eq!(timeout_in_force(wanted), Duration::from_millis(in_force));
        }
        assert!(timeout_in_force(Duration::MAX) > Duration::from_secs(1_000_000));
    }

    #[test]
    fn i10_an_smbus_adapter_has_no_ten_bit_addresses() {
        let says = Functionality(Functionality::ALL_SMBUS | Functionality::TEN_BIT_ADDRESSES);
        assert_eq!(says.usable().0, Functionality::ALL_SMBUS);
        let plain = Functionality(says.0 | Functionality::I2C);
        assert_eq!(plain.usable().0, plain.0);
    }
}
