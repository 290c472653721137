//! The host's buses, by the ioctls of `i2c-dev`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::smbus::{self, Call, MAX_BLOCK};
use super::{
    Bus, BusId, Data, Failure, Functionality, MAX_MESSAGES, Message, TIMEOUT_STEP, timeout_in_force,
};
use crate::address::Address;

// linux/i2c-dev.h
const I2C_RETRIES: libc::Ioctl = 0x0701;
const I2C_TIMEOUT: libc::Ioctl = 0x0702;
const I2C_SLAVE: libc::Ioctl = 0x0703;
const I2C_FUNCS: libc::Ioctl = 0x0705;
const I2C_RDWR: libc::Ioctl = 0x0707;
const I2C_SMBUS: libc::Ioctl = 0x0720;

// linux/i2c.h
const I2C_M_RD: u16 = 0x0001;
const I2C_M_TEN: u16 = 0x0010;
const SMBUS_QUICK: u32 = 0;
const SMBUS_BYTE: u32 = 1;
const SMBUS_BYTE_DATA: u32 = 2;
const SMBUS_WORD_DATA: u32 = 3;
const SMBUS_PROC_CALL: u32 = 4;
const SMBUS_BLOCK_DATA: u32 = 5;
const SMBUS_BLOCK_PROC_CALL: u32 = 7;
const SMBUS_I2C_BLOCK_DATA: u32 = 8;

/// Where the kernel lists its buses.
const SYSFS: &str = "/sys/bus/i2c/devices";

/// A bus that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its character device cannot be opened.
    #[error("cannot open the bus {}: {hint}", .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What to do about it.
        hint: String,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no I2C bus: write its number, its name, /dev/i2c-N, or sim", .0.display())]
    Kind(PathBuf),
    /// No bus has this name.
    #[error("no bus is called \"{name}\": {hint}")]
    NoName {
        /// The name.
        name: String,
        /// What there is.
        hint: String,
    },
    /// Several have.
    #[error("several buses are called \"{name}\": say which by its number, {numbers}")]
    ManyNames {
        /// The name.
        name: String,
        /// The numbers of those.
        numbers: String,
    },
}

/// `struct i2c_msg`.
#[repr(C)]
struct RawMessage {
    addr: u16,
    flags: u16,
    len: u16,
    buf: *mut u8,
}

/// `struct i2c_rdwr_ioctl_data`.
#[repr(C)]
struct RawTransfer {
    msgs: *mut RawMessage,
    nmsgs: u32,
}

/// `struct i2c_smbus_ioctl_data`, with `union i2c_smbus_data` as its bytes.
#[repr(C)]
struct RawCall {
    read_write: u8,
    command: u8,
    size: u32,
    data: *mut SmbusData,
}

// The layouts of the kernel, with pointers of 32 and of 64 bits.
const _: () = {
    let pointer = size_of::<usize>();
    assert!(size_of::<RawMessage>() == 8 + pointer && align_of::<RawMessage>() == pointer);
    assert!(size_of::<RawTransfer>() == 2 * pointer);
    assert!(size_of::<RawCall>() == 8 + pointer && align_of::<RawCall>() == pointer);
    assert!(size_of::<SmbusData>() == MAX_BLOCK + 2 && align_of::<SmbusData>() == 2);
};

/// `union i2c_smbus_data`: a byte, a word of the host's order, or a block with its length first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(2))]
struct SmbusData([u8; MAX_BLOCK + 2]);

impl SmbusData {
    const EMPTY: Self = Self([0; MAX_BLOCK + 2]);

    fn byte(value: u8) -> Self {
        let mut data = Self::EMPTY;
        data.0[0] = value;
        data
    }

    fn word(value: u16) -> Self {
        let mut data = Self::EMPTY;
        let [first, second] = value.to_ne_bytes();
        (data.0[0], data.0[1]) = (first, second);
        data
    }

    /// `length` bytes, of which `bytes` are the first.
    fn block(length: usize, bytes: &[u8]) -> Self {
        // Fits: a call's block has at most 32.
        let mut data = Self::byte(length.min(MAX_BLOCK) as u8);
        data.0
            .iter_mut()
            .skip(1)
            .zip(bytes)
            .for_each(|(to, &from)| *to = from);
        data
    }

    /// The word as it is on the wire.
    fn wire_word(&self) -> [u8; 2] {
        u16::from_ne_bytes([self.0[0], self.0[1]]).to_le_bytes()
    }
}

/// A bus of the host, opened for one guest.
#[derive(Debug)]
pub struct Linux {
    file: File,
    name: String,
    device: u64,
    functionality: Functionality,
    /// The address that SMBus calls of this file go to: two steps that belong together. A guest
    /// has one connection at a time, so nobody waits for it.
    target: Mutex<Option<Address>>,
}

impl Linux {
    /// `/dev/i2c-N`.
    ///
    /// # Errors
    /// When it cannot be opened or is no bus.
    pub fn by_number(number: u32) -> Result<Self, OpenError> {
        Self::open(Path::new(&format!("/dev/i2c-{number}")))
    }

    /// The one bus with this name.
    ///
    /// # Errors
    /// When there is none, or several; or it cannot be opened.
    pub fn by_name(name: &str) -> Result<Self, OpenError> {
        match find(Path::new(SYSFS), name)[..] {
            [] => Err(OpenError::NoName {
                name: name.to_owned(),
                hint: match bus_number(name) {
                    Some(number) => format!("to have /dev/i2c-{number}, write {number}"),
                    None => there_are(Path::new(SYSFS)),
                },
            }),
            [number] => Self::by_number(number),
            ref numbers => Err(OpenError::ManyNames {
                name: name.to_owned(),
                numbers: numbers
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(" or "),
            }),
        }
    }

    /// The bus with this character device, or this directory in sysfs.
    ///
    /// # Errors
    /// When it cannot be opened or is no bus.
    pub fn by_path(path: &Path) -> Result<Self, OpenError> {
        if !path.is_dir() {
            return Self::open(path);
        }
        let number = path.file_name().and_then(|name| bus_number(name.to_str()?));
        Self::by_number(number.ok_or_else(|| OpenError::Kind(path.into()))?)
    }

    fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Open {
            path: path.into(),
            hint: hint(&source, path, Path::new(SYSFS)),
            source,
        };
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.file_type().is_char_device() {
            return Err(OpenError::Kind(path.into()));
        }
        let functionality =
            functionality(file.as_raw_fd()).map_err(|_| OpenError::Kind(path.into()))?;
        Ok(Self {
            file,
            name: path.display().to_string(),
            device: metadata.rdev(),
            functionality,
            target: Mutex::new(None),
        })
    }

    /// One `I2C_RDWR`.
    fn read_and_write(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        let count = messages.len();
        if count > MAX_MESSAGES {
            return Err(Failure::whole(Errno::INVAL));
        }
        let mut raw = messages
            .iter_mut()
            .map(raw_message)
            .collect::<Result<Vec<_>, _>>()?;
        let mut transfer = RawTransfer {
            msgs: raw.as_mut_ptr(),
            // Fits: it was compared with 42.
            nmsgs: count as u32,
        };
        // SAFETY: `transfer` has `count` messages, and each has `len` bytes at `buf`, borrowed
        // through `messages` for this call: the kernel writes only to those with `I2C_M_RD`,
        // which were made of mutable slices.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), I2C_RDWR, &raw mut transfer) };
        match usize::try_from(result) {
            Err(_) => Err(io::Error::last_os_error().into()),
            // How many the adapter did.
            Ok(done) if done < count => Err(Failure {
                done,
                error: Errno::IO,
            }),
            Ok(_) => Ok(()),
        }
    }

    fn target(&self) -> MutexGuard<'_, Option<Address>> {
        // One value, whole at any time.
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages as one SMBus call.
    fn call(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        let unsupported = Failure::whole(Errno::OPNOTSUPP);
        let (Some(address), Some(call)) = (
            messages.first().map(|message| message.address),
            smbus::call(self.functionality, messages),
        ) else {
            return Err(unsupported);
        };
        let (read, command, size, mut data) = encode(call);
        self.smbus(address, read, command, size, &mut data)?;
        let Some(Message {
            data: Data::Read(bytes),
            ..
        }) = messages.last_mut()
        else {
            return Ok(());
        };
        decode(size, &data, bytes).ok_or(Failure::whole(Errno::PROTO))
    }

    fn smbus(
        &self,
        address: Address,
        read: bool,
        command: u8,
        size: u32,
        data: &mut SmbusData,
    ) -> Result<(), Failure> {
        let fd = self.file.as_raw_fd();
        let mut target = self.target();
        if *target != Some(address) {
            *target = None;
            // Refused when a driver of the host has the device.
            ioctl_value(fd, I2C_SLAVE, address.number().into())?;
            *target = Some(address);
        }
        let mut raw = RawCall {
            read_write: read.into(),
            command,
            size,
            data,
        };
        // SAFETY: `raw` and the union that it points to, of the kernel's size, live and are ours
        // until the call returns.
        let result = unsafe { libc::ioctl(fd, I2C_SMBUS, &raw mut raw) };
        if result < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(())
    }
}

impl Bus for Linux {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> BusId {
        BusId::Device(self.device)
    }

    fn functionality(&self) -> Functionality {
        self.functionality
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let argument = timeout_argument(timeout);
        ioctl_value(self.file.as_raw_fd(), I2C_TIMEOUT, argument)
    }

    fn set_retries(&self, retries: u32) -> io::Result<()> {
        ioctl_value(self.file.as_raw_fd(), I2C_RETRIES, retries)
    }

    fn transfer(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        if self.functionality.has(Functionality::I2C) {
            self.read_and_write(messages)
        } else {
            self.call(messages)
        }
    }
}

fn functionality(fd: RawFd) -> io::Result<Functionality> {
    let mut functions: libc::c_ulong = 0;
    // SAFETY: the kernel writes an unsigned long.
    let result = unsafe { libc::ioctl(fd, I2C_FUNCS, &raw mut functions) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel's bits are a u32.
    Ok(Functionality(functions as u32).usable())
}

/// The argument of `I2C_TIMEOUT`, in its steps. The longest that the kernel takes, an `int`, stands
/// for all that are longer.
fn timeout_argument(timeout: Duration) -> u32 {
    let steps = timeout_in_force(timeout).as_nanos() / TIMEOUT_STEP.as_nanos();
    let longest = i32::MAX.unsigned_abs();
    u32::try_from(steps).map_or(longest, |steps| steps.min(longest))
}

/// An ioctl whose argument is a number.
fn ioctl_value(fd: RawFd, request: libc::Ioctl, value: u32) -> io::Result<()> {
    // SAFETY: these ioctls take their argument as a number, and touch no memory of ours.
    let result = unsafe { libc::ioctl(fd, request, libc::c_ulong::from(value)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn raw_message(message: &mut Message<'_>) -> Result<RawMessage, Failure> {
    let len = u16::try_from(message.data.len()).map_err(|_| Failure::whole(Errno::INVAL))?;
    let ten = if message.address.is_ten_bit() {
        I2C_M_TEN
    } else {
        0
    };
    let (direction, buf) = match &mut message.data {
        // The kernel only reads it.
        Data::Write(bytes) => (0, bytes.as_ptr().cast_mut()),
        Data::Read(bytes) => (I2C_M_RD, bytes.as_mut_ptr()),
    };
    Ok(RawMessage {
        addr: message.address.number(),
        flags: direction | ten,
        len,
        buf,
    })
}

/// Direction, command, size and data of a call.
fn encode(call: Call<'_>) -> (bool, u8, u32, SmbusData) {
    let none = SmbusData::EMPTY;
    match call {
        Call::Quick { read } => (read, 0, SMBUS_QUICK, none),
        Call::WriteByte(byte) => (false, byte, SMBUS_BYTE, none),
        Call::ReadByte => (true, 0, SMBUS_BYTE, none),
        Call::WriteByteData(command, byte) => {
            (false, command, SMBUS_BYTE_DATA, SmbusData::byte(byte))
        }
        Call::ReadByteData(command) => (true, command, SMBUS_BYTE_DATA, none),
        Call::WriteWordData(command, word) => {
            (false, command, SMBUS_WORD_DATA, SmbusData::word(word))
        }
        Call::ReadWordData(command) => (true, command, SMBUS_WORD_DATA, none),
        Call::Process(command, word) => (false, command, SMBUS_PROC_CALL, SmbusData::word(word)),
        Call::WriteBlock(command, bytes) => {
            let data = SmbusData::block(bytes.len(), bytes);
            (false, command, SMBUS_BLOCK_DATA, data)
        }
        Call::BlockProcess(command, bytes) => {
            let data = SmbusData::block(bytes.len(), bytes);
            (false, command, SMBUS_BLOCK_PROC_CALL, data)
        }
        Call::ReadBlock(command) => (true, command, SMBUS_BLOCK_DATA, none),
        Call::WriteI2cBlock(command, bytes) => {
            let data = SmbusData::block(bytes.len(), bytes);
            (false, command, SMBUS_I2C_BLOCK_DATA, data)
        }
        Call::ReadI2cBlock(command, length) => {
            let data = SmbusData::block(length, &[]);
            (true, command, SMBUS_I2C_BLOCK_DATA, data)
        }
    }
}

/// Puts the answer of a call into the message that is read; `None` when it is too short for it.
fn decode(size: u32, data: &SmbusData, bytes: &mut [u8]) -> Option<()> {
    let word = data.wire_word();
    let length = usize::from(data.0[0]);
    let answer = match size {
        SMBUS_WORD_DATA | SMBUS_PROC_CALL => &word[..],
        // Its length is on the wire.
        SMBUS_BLOCK_DATA | SMBUS_BLOCK_PROC_CALL => data.0.get(..=length)?,
        SMBUS_I2C_BLOCK_DATA => data.0.get(1..=length)?,
        _ => data.0.get(..1)?,
    };
    bytes.copy_from_slice(answer.get(..bytes.len())?);
    Some(())
}

/// N of `i2c-N`.
fn bus_number(name: &str) -> Option<u32> {
    name.strip_prefix("i2c-")?.parse().ok()
}

/// The buses that the kernel lists: numbers and names.
fn buses(sysfs: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir(sysfs).into_iter().flatten().flatten();
    let mut buses: Vec<_> = entries
        .filter_map(|entry| {
            let number = bus_number(entry.file_name().to_str()?)?;
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            Some((number, name.trim_end().to_owned()))
        })
        .collect();
    buses.sort_unstable();
    buses
}

/// The numbers of the buses with this name.
fn find(sysfs: &Path, name: &str) -> Vec<u32> {
    let buses = buses(sysfs).into_iter();
    buses
        .filter_map(|(number, own)| (own == name).then_some(number))
        .collect()
}

/// What there is to choose from, for those who have named something else.
fn there_are(sysfs: &Path) -> String {
    let buses = buses(sysfs).into_iter();
    let buses: Vec<_> = buses
        .map(|(number, name)| format!("{number} ({name})"))
        .collect();
    match buses.is_empty() {
        true => "this host has no I2C bus; sim is a simulated one".to_owned(),
        false => format!("this host has the buses {}", buses.join(", ")),
    }
}

/// What the user can do about a bus that cannot be opened.
fn hint(error: &io::Error, path: &Path, sysfs: &Path) -> String {
    let number = path.file_name().and_then(|name| bus_number(name.to_str()?));
    let is_known = |number| buses(sysfs).iter().any(|(known, _)| *known == number);
    match error.kind() {
        io::ErrorKind::NotFound if number.is_some_and(is_known) => {
            "the bus is there, its device is not: load i2c-dev (modprobe i2c-dev)".to_owned()
        }
        io::ErrorKind::NotFound => there_are(sysfs),
        io::ErrorKind::PermissionDenied => {
            "this user needs the right to read and write it (on Debian the group i2c has it)"
                .to_owned()
        }
        _ => "its driver does not let it be opened".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_a_bus_is_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        for (entry, name) in [
            ("i2c-3", "one"),
            ("i2c-10", "two"),
            ("i2c-4", "two"),
            ("3-0050", "one"),
        ] {
            fs::create_dir(directory.path().join(entry)).unwrap();
            fs::write(
                directory.path().join(entry).join("name"),
                format!("{name}\n"),
            )
            .unwrap();
        }
        assert_eq!(find(directory.path(), "one"), [3]);
        assert_eq!(find(directory.path(), "two"), [4, 10]);
        assert!(find(directory.path(), "three").is_empty());
        assert!(find(&directory.path().join("missing"), "one").is_empty());
    }

    #[test]
    fn test_who_names_no_bus_is_told_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let sysfs = directory.path();
        let missing = io::ErrorKind::NotFound.into();
        let hint = |error: &io::Error| hint(error, Path::new("/dev/i2c-4"), sysfs);
        assert!(hint(&missing).contains("no I2C bus; sim is"));
        for (number, name) in [(10, "ten"), (3, "three")] {
            let bus = sysfs.join(format!("i2c-{number}"));
            fs::create_dir(&bus).unwrap();
            fs::write(bus.join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(
            hint(&missing),
            "this host has the buses 3 (three), 10 (ten)"
        );
        fs::create_dir(sysfs.join("i2c-4")).unwrap();
        fs::write(sysfs.join("i2c-4/name"), "four\n").unwrap();
        assert!(hint(&missing).contains("modprobe i2c-dev"));
        let denied = io::ErrorKind::PermissionDenied.into();
        assert!(hint(&denied).contains("the right to read and write"));
    }

    #[test]
    fn test_what_is_no_bus_is_refused() {
        let error = Linux::by_path(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::Kind(_)), "{error}");
        let error = Linux::by_name("i2c-7").unwrap_err().to_string();
        assert!(error.contains("to have /dev/i2c-7, write 7"), "{error}");
        let error = Linux::by_path(Path::new("/missing")).unwrap_err();
        assert!(matches!(error, OpenError::Open { .. }), "{error}");
        let error = Linux::by_path(Path::new("/tmp")).unwrap_err();
        assert!(matches!(error, OpenError::Kind(_)), "{error}");
    }

    #[test]
    fn test_answers_of_calls_are_put_on_the_wire() {
        let mut bytes = [0; 3];
        let word = SmbusData::word(0x0201);
        decode(SMBUS_WORD_DATA, &word, &mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [1, 2]);
        let block = SmbusData::block(2, &[7, 8]);
        decode(SMBUS_BLOCK_DATA, &block, &mut bytes).unwrap();
        assert_eq!(bytes, [2, 7, 8]);
        decode(SMBUS_I2C_BLOCK_DATA, &block, &mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [7, 8]);
        assert_eq!(decode(SMBUS_I2C_BLOCK_DATA, &block, &mut bytes), None);
        decode(SMBUS_BLOCK_PROC_CALL, &block, &mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [2, 7], "a prefix of what the device said");
        let broken = SmbusData::byte(255);
        assert_eq!(decode(SMBUS_BLOCK_DATA, &broken, &mut bytes), None);
    }

    #[test]
    fn test_calls_are_encoded() {
        let (read, command, size, data) = encode(Call::WriteI2cBlock(9, &[1, 2]));
        assert_eq!((read, command, size), (false, 9, SMBUS_I2C_BLOCK_DATA));
        assert_eq!(data.0[..4], [2, 1, 2, 0]);
        let (read, _, _, data) = encode(Call::ReadI2cBlock(9, 32));
        assert_eq!((read, data.0[0]), (true, 32));
        let (read, command, size, data) = encode(Call::BlockProcess(9, &[1, 2]));
        assert_eq!((read, command, size), (false, 9, SMBUS_BLOCK_PROC_CALL));
        assert_eq!(data.0[..4], [2, 1, 2, 0]);
    }

    #[test]
    fn test_timeouts_are_in_units_of_10_ms() {
        for (milliseconds, units) in [(1, 1), (10, 1), (11, 2), (200, 20), (1000, 100)] {
            let timeout = Duration::from_millis(milliseconds);
            assert_eq!(timeout_argument(timeout), units);
        }
        // The kernel refuses what does not fit in its `int`.
        let longest = Duration::from_millis(u32::MAX.into());
        assert!(timeout_argument(longest) <= i32::MAX.unsigned_abs());
        assert_eq!(timeout_argument(Duration::MAX), i32::MAX.unsigned_abs());
    }
}
