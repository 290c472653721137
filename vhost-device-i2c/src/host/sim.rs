//! A simulated bus, with devices good enough for Linux's drivers and tools.
//!
//! | address | device |
//! |---|---|
//! | 0x20 | 256 registers of a byte; the first byte of a write says which, and each byte moves on |
//! | 0x30 | says no as often as the byte that was written to it last, then yes again |
//! | 0x48 | LM75 temperature sensor |
//! | 0x50 | 24c02 EEPROM: 256 bytes, written in pages of 8 |
//! | 0x150 | registers as at 0x20, at a 10-bit address |

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::smbus::{self, Call};
use super::{Bus, Data, Failure, Functionality, Message};
use crate::address::Address;

/// A page of the EEPROM, in bytes.
const PAGE: u8 = 8;
/// How many steps a degree has in an LM75's register: 9 bits at the top of 16, in half degrees.
const STEPS: f32 = 2.0;

/// A device on the simulated bus.
trait Chip: Debug + Send {
    /// Answers to its address, and takes `bytes`. False is a NAK.
    fn write(&mut self, bytes: &[u8]) -> bool;
    /// Answers to its address, and fills `bytes`. False is a NAK.
    fn read(&mut self, bytes: &mut [u8]) -> bool;
}

/// A simulated bus.
#[derive(Debug)]
pub struct Sim {
    name: String,
    functionality: Functionality,
    chips: Mutex<BTreeMap<Address, Box<dyn Chip>>>,
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
            (Address::Seven(0x30), Box::new(Naysayer::default())),
            (Address::Seven(0x48), Box::new(Lm75::new(degrees))),
            (Address::Seven(0x50), Box::new(Memory::eeprom())),
            (Address::Ten(0x150), Box::new(Memory::registers())),
        ];
        Self {
            name,
            functionality,
            chips: Mutex::new(BTreeMap::from(chips)),
        }
    }

    /// Changes the temperature at the LM75.
    pub fn set_temperature(&self, degrees: f32) {
        let chip = Box::new(Lm75::new(degrees));
        self.chips().insert(Address::Seven(0x48), chip);
    }

    fn chips(&self) -> MutexGuard<'_, BTreeMap<Address, Box<dyn Chip>>> {
        // A chip is whole between its calls.
        self.chips.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts messages on the wire.
    fn play(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        let mut chips = self.chips();
        for (done, message) in messages.iter_mut().enumerate() {
            let chip = chips.get_mut(&message.address);
            let answered = chip.is_some_and(|chip| match &mut message.data {
                Data::Write(bytes) => chip.write(bytes),
                Data::Read(bytes) => chip.read(bytes),
            });
            if !answered {
                let error = Errno::NXIO;
                return Err(Failure { done, error });
            }
        }
        Ok(())
    }
}

impl Bus for Sim {
    fn name(&self) -> &str {
        &self.name
    }

    fn functionality(&self) -> Functionality {
        self.functionality
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
    fn write(&mut self, bytes: &[u8]) -> bool {
        let Some((&pointer, bytes)) = bytes.split_first() else {
            return true;
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
        true
    }

    fn read(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            *byte = self.at_pointer().copied().unwrap_or_default();
            self.pointer = self.pointer.wrapping_add(1);
        }
        true
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
    /// The range of degrees was checked with the command line; others are cut to what 8 bits hold.
    fn new(degrees: f32) -> Self {
        let encode = |degrees: f32| (((degrees * STEPS).round() as i16) << 7).to_be_bytes();
        Self {
            registers: [encode(degrees), [0; 2], encode(75.0), encode(80.0)],
            pointer: 0,
        }
    }
}

impl Chip for Lm75 {
    fn write(&mut self, bytes: &[u8]) -> bool {
        let Some((&pointer, bytes)) = bytes.split_first() else {
            return true;
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
        true
    }

    fn read(&mut self, bytes: &mut [u8]) -> bool {
        let register = self.registers.get(usize::from(self.pointer));
        let register = register.copied().unwrap_or_default();
        let size = if self.pointer == 1 { 1 } else { 2 };
        let source = register.iter().take(size).cycle();
        bytes
            .iter_mut()
            .zip(source)
            .for_each(|(to, &from)| *to = from);
        true
    }
}

/// Says no as often as it is told to.
#[derive(Debug, Default)]
struct Naysayer {
    left: u8,
}

impl Naysayer {
    fn refuses(&mut self) -> bool {
        let refuses = self.left > 0;
        self.left = self.left.saturating_sub(1);
        refuses
    }
}

impl Chip for Naysayer {
    fn write(&mut self, bytes: &[u8]) -> bool {
        if self.refuses() {
            return false;
        }
        self.left = bytes.last().copied().unwrap_or_default();
        true
    }

    fn read(&mut self, bytes: &mut [u8]) -> bool {
        bytes.fill(0);
        !self.refuses()
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
        assert_eq!(read(&bus, 0x48, 3, 2), [90, 0]);
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
    fn test_smbus_only_does_calls_only() {
        let bus = sim(true);
        write(&bus, 0x20, &[3, 7, 8]).unwrap();
        assert_eq!(read(&bus, 0x20, 3, 2), [7, 8]);
        let error = write(&bus, 0x20, &[0; 40]).unwrap_err();
        assert_eq!(error, Failure::whole(Errno::OPNOTSUPP));
    }
}
