//! A simulated bus, with devices good enough for Linux's drivers and tools.
//!
//! | address | device |
//! |---|---|
//! | 0x20 | 256 registers of a byte; the first byte of a write says which, and each byte moves on |
//! | 0x30 | fails as often as the last byte written to it says; the byte before it says how |
//! | 0x48 | LM75 temperature sensor |
//! | 0x50 | 24c02 EEPROM: 256 bytes, written in pages of 8 |
//! | 0x150 | registers as at 0x20, at a 10-bit address |

//!
//! Messages take no time. What would take time on a real bus, a device that holds the clock or a
//! bus that is busy, is waited for without the bus: the other guests go on meanwhile.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};
use vhost_device_backend::Turns;

use super::smbus::{self, Call};
use super::{Bus, BusId, Data, Failure, Functionality, Message, timeout_in_force};
use crate::address::Address;

/// Where the LM75 is.
const LM75: Address = Address::Seven(0x48);

/// A page of the EEPROM, in bytes.
const PAGE: u8 = 8;
/// How many steps a degree has in an LM75's register: 9 bits at the top of 16, in half degrees.
const STEPS: f32 = 2.0;

/// How long the bus waits for a device that holds its clock: what Linux has for adapters whose
/// drivers say nothing.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How long a busy bus is left alone before it is tried again: about as long as a try takes on a
/// real one.
const PAUSE: Duration = Duration::from_micros(100);

/// A device on the simulated bus.
trait Chip: Debug + Send {
    /// Answers to its address, and takes `bytes`.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble>;
    /// Answers to its address, and fills `bytes`.
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Trouble>;
    /// What it measures, if it measures the temperature.
    fn temperature(&self) -> Option<f32> {
        None
    }
    /// For one that measures the temperature.
    fn set_temperature(&mut self, degrees: f32) {
        let _ = degrees;
    }
}

/// What can go wrong with a message; the number is what the device at 0x30 calls it by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trouble {
    /// 0: it is not acknowledged.
    #[default]
    Nak,
    /// 1: the clock is held until the bus's timeout is over.
    Stuck,
    /// 2: another master has the bus; it is tried again as often as the bus's retries say.
    Busy,
}

impl From<Trouble> for Errno {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Nak => Self::NXIO,
            Trouble::Stuck => Self::TIMEDOUT,
            Trouble::Busy => Self::AGAIN,
        }
    }
}

/// What an LM75 measures where it is as warm as this, in degrees Celsius.
pub fn measured(degrees: f32) -> f32 {
    Lm75::decode(Lm75::encode(degrees))
}

/// A simulated bus.
#[derive(Debug)]
pub struct Sim {
    name: String,
    functionality: Functionality,
    wires: Turns<Wires>,
}

/// What everyone who uses the bus shares.
#[derive(Debug)]
struct Wires {
    chips: BTreeMap<Address, Box<dyn Chip>>,
    timeout: Duration,
    retries: u32,
}

impl Sim {
    /// A bus with one device of each kind, and this temperature at the LM75.
    pub fn standard(name: String, smbus_only: bool, degrees: f32) -> Self {
        let plain = Functionality::I2C | Functionality::TEN_BIT_ADDRESSES;
        let functionality = Functionality(if smbus_only {
            Functionality::ALL_SMBUS
        } else {
            plain | Functionality::ALL_SMBUS
        });
        let chips: [(Address, Box<dyn Chip>); 5] = [
            (Address::Seven(0x20), Box::new(Memory::registers())),
            (Address::Seven(0x30), Box::new(Troublemaker::default())),
            (LM75, Box::new(Lm75::new(degrees))),
            (Address::Seven(0x50), Box::new(Memory::eeprom())),
            (Address::Ten(0x150), Box::new(Memory::registers())),
        ];
        Self {
            name,
            functionality,
            wires: Turns::new(Wires {
                chips: BTreeMap::from(chips),
                timeout: TIMEOUT,
                retries: 0,
            }),
        }
    }

    /// What the LM75 measures, in degrees Celsius.
    pub fn temperature(&self) -> f32 {
        let wires = self.wires.take();
        let chip = wires.chips.get(&LM75);
        chip.and_then(|chip| chip.temperature()).unwrap_or_default()
    }

    /// Changes the temperature at the LM75.
    pub fn set_temperature(&self, degrees: f32) {
        if let Some(chip) = self.wires.take().chips.get_mut(&LM75) {
            chip.set_temperature(degrees);
        }
    }

    /// Puts messages on the wire, and waits for as long as that would take.
    fn play(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        let start = Instant::now();
        let mut tries: u32 = 0;
        loop {
            let mut wires = self.wires.take();
            let result = wires.play(messages);
            let (timeout, retries) = (wires.timeout, wires.retries);
            // Nobody waits for who sleeps.
            drop(wires);
            match result {
                // As in the kernel, not beyond the timeout: a group may make the bus busy for
                // itself each time.
                Err(Failure {
                    error: Errno::AGAIN,
                    ..
                }) if tries < retries && start.elapsed() < timeout && sleep(PAUSE) => tries += 1,
                Err(Failure {
                    error: Errno::TIMEDOUT,
                    ..
                }) => {
                    sleep(timeout);
                    return result;
                }
                result => return result,
            }
        }
    }
}

/// Sleeps for so long. False when a signal has come, which ends the sleep: whoever interrupts this
/// thread wants its session to end.
fn sleep(time: Duration) -> bool {
    // A `u32` of milliseconds at most: it fits.
    let time = Timespec::try_from(time).unwrap_or_default();
    matches!(nanosleep(&time), NanosleepRelativeResult::Ok)
}

impl Wires {
    fn play(&mut self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        for (done, message) in messages.iter_mut().enumerate() {
            let chip = self.chips.get_mut(&message.address);
            chip.ok_or(Trouble::Nak)
                .and_then(|chip| match &mut message.data {
                    Data::Write(bytes) => chip.write(bytes),
                    Data::Read(bytes) => chip.read(bytes),
                })
                .map_err(|trouble| Failure {
                    done,
                    error: trouble.into(),
                })?;
        }
        Ok(())
    }
}

impl Bus for Sim {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> BusId {
        BusId::Sim(self.name.clone())
    }

    fn functionality(&self) -> Functionality {
        self.functionality
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = timeout_in_force(timeout);
        self.wires.take().timeout = timeout;
        Ok(())
    }

    fn set_retries(&self, retries: u32) -> io::Result<()> {
        self.wires.take().retries = retries;
        Ok(())
    }

    fn transfer(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        if self.functionality.has(Functionality::I2C) {
            return self.play(messages);
        }
        match smbus::call(self.functionality, messages) {
            None => Err(Failure::whole(Errno::OPNOTSUPP)),
            Some(Call::Quick { .. }) => self.play(messages),
            // A call fails as a whole.
            Some(_) => self
                .play(messages)
                .map_err(|failure| Failure::whole(failure.error)),
        }
    }
}

/// Bytes with a pointer.
#[derive(Debug)]
struct Memory {
    bytes: [u8; 256],
    pointer: u8,
    /// Whether a write stays in its page.
    paged: bool,
}

impl Memory {
    fn registers() -> Self {
        Self {
            bytes: [0; 256],
            pointer: 0,
            paged: false,
        }
    }

    /// Erased, as delivered.
    fn eeprom() -> Self {
        Self {
            bytes: [0xff; 256],
            pointer: 0,
            paged: true,
        }
    }

    fn at_pointer(&mut self) -> Option<&mut u8> {
        self.bytes.get_mut(usize::from(self.pointer))
    }
}

impl Chip for Memory {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let Some((&pointer, bytes)) = bytes.split_first() else {
            return Ok(());
        };
        self.pointer = pointer;
        for &byte in bytes {
            if let Some(place) = self.at_pointer() {
                *place = byte;
            }
            let next = self.pointer.wrapping_add(1);
            let page = self.pointer / PAGE * PAGE;
            self.pointer = if self.paged { page + next % PAGE } else { next };
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Trouble> {
        for byte in bytes {
            *byte = self.at_pointer().copied().unwrap_or_default();
            self.pointer = self.pointer.wrapping_add(1);
        }
        Ok(())
    }
}

/// A temperature sensor: registers of two bytes, the high one first.
#[derive(Debug)]
struct Lm75 {
    /// Temperature, configuration (of one byte), hysteresis, overtemperature.
    registers: [[u8; 2]; 4],
    pointer: u8,
}

impl Lm75 {
    fn new(degrees: f32) -> Self {
        Self {
            registers: [degrees, 0.0, 75.0, 80.0].map(Self::encode),
            pointer: 0,
        }
    }

    /// The range of degrees was checked where they came from; others are cut to what fits.
    fn encode(degrees: f32) -> [u8; 2] {
        (((degrees * STEPS).round() as i16) << 7).to_be_bytes()
    }

    fn decode(register: [u8; 2]) -> f32 {
        f32::from(i16::from_be_bytes(register) >> 7) / STEPS
    }
}

impl Chip for Lm75 {
    fn temperature(&self) -> Option<f32> {
        Some(Self::decode(self.registers[0]))
    }

    fn set_temperature(&mut self, degrees: f32) {
        self.registers[0] = Self::encode(degrees);
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let Some((&pointer, bytes)) = bytes.split_first() else {
            return Ok(());
        };
        self.pointer = pointer & 0b11;
        // The temperature is read-only.
        if let Some(register) = self.registers.get_mut(usize::from(self.pointer))
            && self.pointer != 0
        {
            register
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, &from)| *to = from);
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Trouble> {
        let register = self.registers.get(usize::from(self.pointer));
        let register = register.copied().unwrap_or_default();
        let size = if self.pointer == 1 { 1 } else { 2 };
        let source = register.iter().take(size).cycle();
        bytes
            .iter_mut()
            .zip(source)
            .for_each(|(to, &from)| *to = from);
        Ok(())
    }
}

/// Fails as often as it is told to.
#[derive(Debug, Default)]
struct Troublemaker {
    left: u8,
    trouble: Trouble,
}

impl Troublemaker {
    fn answer(&mut self) -> Result<(), Trouble> {
        match self.left.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.left = left;
                Err(self.trouble)
            }
        }
    }
}

impl Chip for Troublemaker {
    /// The last byte says how often, the one before it how.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.answer()?;
        let mut bytes = bytes.iter().rev();
        self.left = bytes.next().copied().unwrap_or_default();
        self.trouble = match bytes.next() {
            Some(1) => Trouble::Stuck,
            Some(2) => Trouble::Busy,
            _ => Trouble::Nak,
        };
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Trouble> {
        bytes.fill(0);
        self.answer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bus: &Sim, number: u8, bytes: &[u8]) -> Result<(), Failure> {
        let data = Data::Write(bytes);
        let address = Address::Seven(number);
        bus.transfer(&mut [Message { address, data }])
    }

    fn read(bus: &Sim, number: u8, register: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let command = [register];
        let address = Address::Seven(number);
        let datas = [Data::Write(&command), Data::Read(&mut bytes)];
        bus.transfer(&mut datas.map(|data| Message { address, data }))
            .unwrap();
        bytes
    }

    fn sim(smbus_only: bool) -> Sim {
        Sim::standard("sim".to_owned(), smbus_only, 25.0)
    }

    #[test]
    fn test_an_eeprom_wraps_in_its_page() {
        let bus = sim(false);
        write(&bus, 0x50, &[0x0e, 1, 2, 3, 4]).unwrap();
        assert_eq!(read(&bus, 0x50, 0x08, 8), [3, 4, 255, 255, 255, 255, 1, 2]);
        assert_eq!(read(&bus, 0x50, 0xff, 2), [255, 255]);
    }

    #[test]
    fn test_registers_move_on() {
        let bus = sim(false);
        write(&bus, 0x20, &[0xfe, 1, 2, 3]).unwrap();
        assert_eq!(read(&bus, 0x20, 0xfe, 4), [1, 2, 3, 0]);
    }

    #[test]
    fn test_an_lm75_tells_the_temperature() {
        let bus = sim(false);
        assert_eq!(read(&bus, 0x48, 0, 2), [25, 0]);
        for (degrees, expected) in [(-10.5, [0xf5, 0x80]), (125.0, [125, 0]), (-55.0, [0xc9, 0])] {
            bus.set_temperature(degrees);
            assert_eq!(read(&bus, 0x48, 0, 2), expected);
        }
        write(&bus, 0x48, &[3, 90, 0]).unwrap();
        bus.set_temperature(7.5);
        assert_eq!(read(&bus, 0x48, 3, 2), [90, 0], "the limits stay");
        assert_eq!(read(&bus, 0x48, 0, 2), [7, 0x80]);
    }

    #[test]
    fn test_a_device_says_no_when_told_to() {
        let bus = sim(false);
        write(&bus, 0x30, &[2]).unwrap();
        let no = Failure::whole(Errno::NXIO);
        assert_eq!(write(&bus, 0x30, &[0]), Err(no));
        assert_eq!(write(&bus, 0x30, &[0]), Err(no));
        assert_eq!(write(&bus, 0x30, &[0]), Ok(()));
        assert_eq!(write(&bus, 0x31, &[0]), Err(no));
    }

    #[test]
    fn test_a_busy_bus_is_tried_again_as_often_as_the_retries_say() {
        let bus = sim(false);
        let busy = Err(Failure::whole(Errno::AGAIN));
        write(&bus, 0x30, &[2, 3]).unwrap();
        assert_eq!(write(&bus, 0x30, &[0]), busy);
        bus.set_retries(1).unwrap();
        assert_eq!(write(&bus, 0x30, &[0]), busy);
        assert_eq!(write(&bus, 0x30, &[0]), Ok(()));
        write(&bus, 0x30, &[2, 3]).unwrap();
        // As many as there may be cost a message that is done nothing.
        bus.set_retries(u32::MAX).unwrap();
        assert_eq!(write(&bus, 0x30, &[0]), Ok(()));
    }

    #[test]
    fn test_a_bus_that_stays_busy_is_given_up_after_the_timeout() {
        let bus = sim(false);
        bus.set_timeout(Duration::from_millis(1)).unwrap();
        bus.set_retries(u32::MAX).unwrap();
        let (mut answer, address) = ([0], Address::Seven(0x30));
        // Each time it is tried, the device is told to be busy again.
        let datas = [Data::Write(&[2, 255]), Data::Read(&mut answer)];
        let failure = bus
            .transfer(&mut datas.map(|data| Message { address, data }))
            .unwrap_err();
        assert_eq!(failure.error, Errno::AGAIN);
    }

    #[test]
    fn test_a_stuck_bus_is_given_up_after_the_timeout() {
        let bus = sim(false);
        bus.set_timeout(Duration::from_millis(1)).unwrap();
        write(&bus, 0x30, &[1, 3]).unwrap();
        for _ in 0..3 {
            let failure = write(&bus, 0x30, &[0]).unwrap_err();
            assert_eq!(failure, Failure::whole(Errno::TIMEDOUT));
        }
        assert_eq!(write(&bus, 0x30, &[0]), Ok(()));
    }

    #[test]
    fn test_smbus_only_does_calls_only() {
        let bus = sim(true);
        write(&bus, 0x20, &[3, 7, 8]).unwrap();
        assert_eq!(read(&bus, 0x20, 3, 2), [7, 8]);
        let error = write(&bus, 0x20, &[0; 40]).unwrap_err();
        assert_eq!(error, Failure::whole(Errno::OPNOTSUPP));
    }
}
