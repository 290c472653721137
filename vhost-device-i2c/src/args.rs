//! The options of this daemon; those of every daemon are in `vhost-device-daemon`.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use crate::access::is_granted;
use crate::address::Address;

/// What the user of the I2C daemon chooses.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The buses, and the addresses on each that a guest reaches [default: all but 0x00, the general
    /// call]; once for all guests, or once for each guest, in their order.
    ///
    /// A bus is its number, its name, its path (/dev/i2c-1), `sim` or `sim-smbus` (simulators).
    /// Addresses are hex with 0x and decimal without (0x50 is 80), single or ranges, for example
    /// `1:0x50-0x57:0x48,sim:0x20`. The log says at the start which are granted.
    #[arg(
        short = 'l',
        long,
        value_name = "BUS[:ADDR[-ADDR]]…[,BUS…]",
        required = true
    )]
    pub device_list: Vec<DeviceList>,

    /// Let guests only read these addresses, or only the guest with this number, from 0.
    ///
    /// Writes of up to POINTER bytes, which say where the next read begins, are let through: 1 by
    /// default, 2 for an EEPROM above 16 kbit.
    #[arg(long, value_name = "[GUEST=]ADDR[-ADDR][:POINTER]")]
    pub read_only: Vec<ReadOnly>,

    /// Give up on an answer of the bus after this time; of all buses unless one is named. It is
    /// the adapter's setting, for everyone on the host, in steps of 10 ms.
    #[arg(long, value_name = "[BUS=]MILLISECONDS", allow_negative_numbers = true)]
    pub timeout: Vec<Setting<NonZeroU32>>,

    /// Try so often again when the bus is busy; of all buses unless one is named.
    #[arg(long, value_name = "[BUS=]N", allow_negative_numbers = true)]
    pub retries: Vec<Setting<u32>>,

    /// The temperature at the simulators' LM75, in degrees Celsius [default: 25].
    #[arg(long, value_name = "DEGREES", allow_negative_numbers = true)]
    #[arg(value_parser = parse_temperature)]
    pub sim_temperature: Option<f32>,

    /// A socket to see and change simulated devices by, in lines of text: `help` says how.
    #[arg(long, value_name = "PATH")]
    pub sim_control: Option<PathBuf>,
}

/// The buses and addresses of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList(Vec<BusList>);

impl DeviceList {
    /// The buses in it.
    pub fn iter(&self) -> impl Iterator<Item = &BusList> {
        self.0.iter()
    }
}

/// A bus and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusList {
    /// Which bus.
    pub bus: BusSpec,
    /// The addresses; the whole bus when empty.
    pub ranges: Vec<RangeInclusive<Address>>,
}

impl BusList {
    /// Whether this address of the bus is in it.
    pub fn has(&self, address: Address) -> bool {
        is_granted(&self.ranges, address)
    }
}

/// What the user calls a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusSpec {
    /// A simulator.
    Sim {
        /// Its name.
        name: String,
        /// Whether it speaks SMBus only.
        smbus_only: bool,
    },
    /// N of `/dev/i2c-N`.
    Number(u32),
    /// What sysfs says.
    Name(String),
    /// Its character device, or its directory in sysfs.
    Path(PathBuf),
}

/// Addresses that may only be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOnly {
    /// By which guest; by all when none.
    pub guest: Option<usize>,
    /// Which.
    pub range: RangeInclusive<Address>,
    /// How many bytes a write may have: those that say where the next read begins.
    pub pointer: usize,
}

/// A setting of one bus or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// Which bus; all when none.
    pub bus: Option<BusSpec>,
    /// The value.
    pub value: T,
}

impl BusSpec {
    /// Whether it is certainly another bus: different names of the host's may be the same.
    pub fn is_another_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => one != other,
            (Self::Sim { .. }, _) | (_, Self::Sim { .. }) => self != other,
            _ => false,
        }
    }
}

impl fmt::Display for BusSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Sim { name, .. } | Self::Name(name) => write!(f, "{name}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for BusSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            let what = "a bus is missing: write its number, its name, its path, or sim";
            return Err(what.to_owned());
        }
        if let Some(smbus_only) = simulator(text) {
            return Ok(Self::Sim {
                name: text.to_owned(),
                smbus_only,
            });
        }
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        Ok(text
            .parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Number))
    }
}

/// Whether this is the name of a simulator (`sim`, `sim3`, `sim-smbus`, `sim-smbus0`), and then
/// whether it speaks SMBus only.
fn simulator(text: &str) -> Option<bool> {
    let rest = text.strip_prefix("sim")?;
    let (number, smbus_only) = match rest.strip_prefix("-smbus") {
        Some(number) => (number, true),
        None => (rest, false),
    };
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(smbus_only)
}

impl FromStr for DeviceList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl FromStr for BusList {
    type Err = String;

    /// The addresses are looked for from the end, as the name of a bus may have colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bus = text;
        let mut ranges = Vec::new();
        while let Some((before, last)) = bus.rsplit_once(':')
            && let Some(range) = parse_range(last)?
        {
            bus = before;
            ranges.insert(0, range);
        }
        let bus: BusSpec = bus.parse()?;
        // A number cannot have a colon: then it is an address that is none.
        let is_doubtful = match &bus {
            BusSpec::Name(name) => name.split_once(':').is_some_and(|(first, _)| {
                first.parse::<u32>().is_ok() || simulator(first).is_some()
            }),
            _ => false,
        };
        if is_doubtful {
            return Err(format!(
                "{bus} has something behind its colon that is no address: write 0x50, or 80, or \
                 0x50-0x57"
            ));
        }
        Ok(Self { bus, ranges })
    }
}

/// `None` for what is no number at all: part of a name.
fn parse_range(text: &str) -> Result<Option<RangeInclusive<Address>>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (parse_number(first), parse_number(last)) else {
        return Ok(None);
    };
    let (first, last) = (address(first)?, address(last)?);
    if first.is_ten_bit() != last.is_ten_bit() {
        return Err(format!(
            "{text} begins with a 7-bit address and ends with a 10-bit one: give two ranges, one up \
             to 0x7f and one from 0x80 on"
        ));
    }
    if first > last {
        return Err(format!(
            "{text} ends before it begins: write the lower address first"
        ));
    }
    Ok(Some(first..=last))
}

fn parse_number(text: &str) -> Option<u16> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn address(number: u16) -> Result<Address, String> {
    Address::from_number(number)
        .ok_or_else(|| format!("{number:#x} ({number}) is no address: the last is 0x3ff (1023)"))
}

impl FromStr for ReadOnly {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (guest, addresses) = match text.split_once('=') {
            Some((guest, addresses)) => (Some(guest), addresses),
            None => (None, text),
        };
        let guest = guest.map(|guest| {
            let number = guest.parse();
            number.map_err(|_| format!("{guest:?} is no number of a guest: the first has 0"))
        });
        let (range, pointer) = addresses.split_once(':').unwrap_or((addresses, "1"));
        let range = parse_range(range)?.ok_or_else(|| {
            format!("{range:?} is no address: write 0x50, or 80, or 0x50-0x57, without a bus")
        })?;
        let pointer: u8 = pointer.parse().map_err(|_| {
            format!("{pointer:?} is no number of bytes that tell where a read begins, 0 to 255")
        })?;
        Ok(Self {
            guest: guest.transpose()?,
            range,
            pointer: pointer.into(),
        })
    }
}

/// What can be set of a bus.
pub trait Value: FromStr {
    /// What it is, for whom has written something else.
    const WHAT: &str;
}

impl Value for NonZeroU32 {
    const WHAT: &str = "number of milliseconds from 1 to 4294967295";
}

impl Value for u32 {
    const WHAT: &str = "number of times from 0 to 4294967295";
}

impl<T: Value> FromStr for Setting<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bus, value) = match text.rsplit_once('=') {
            Some((bus, value)) => (Some(bus.parse()?), value),
            None => (None, text),
        };
        let value = value
            .parse()
            .map_err(|_| format!("{value:?} is no {}", T::WHAT))?;
        Ok(Self { bus, value })
    }
}

/// What an LM75 can measure, in degrees Celsius.
pub(crate) const MEASURABLE: RangeInclusive<f32> = -55.0..=125.0;

/// A temperature that an LM75 can measure.
fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(degrees) if MEASURABLE.contains(&degrees) => Ok(degrees),
        _ => Err(format!(
            "an LM75 measures from {} to {} degrees Celsius: write a number like 30.5",
            MEASURABLE.start(),
            MEASURABLE.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seven(first: u8, last: u8) -> RangeInclusive<Address> {
        Address::Seven(first)..=Address::Seven(last)
    }

    #[test]
    fn test_upstreams_lists_are_understood() {
        let list: DeviceList = "2:0x20:32,SMBus I801 adapter at efa0:72".parse().unwrap();
        assert_eq!(
            list.0,
            [
                BusList {
                    bus: BusSpec::Number(2),
                    ranges: vec![seven(0x20, 0x20), seven(32, 32)],
                },
                BusList {
                    bus: BusSpec::Name("SMBus I801 adapter at efa0".to_owned()),
                    ranges: vec![seven(72, 72)],
                }
            ]
        );
    }

    #[test]
    fn test_ranges_names_with_colons_paths_and_simulators() {
        let parse = |text: &str| text.parse::<BusList>().unwrap();
        let ranges = vec![seven(0x50, 0x57), Address::Ten(0x80)..=Address::Ten(0x3ff)];
        assert_eq!(parse("1:0x50-0x57:0x80-1023").ranges, ranges);
        let name = BusSpec::Name("NVIDIA i2c adapter 0 at 1:00.0".to_owned());
        assert_eq!(parse("NVIDIA i2c adapter 0 at 1:00.0").bus, name);
        assert_eq!(
            parse("/dev/i2c-7:3").bus,
            BusSpec::Path("/dev/i2c-7".into())
        );
        let sim = |name: &str, smbus_only| BusSpec::Sim {
            name: name.to_owned(),
            smbus_only,
        };
        assert_eq!(parse("sim:0x50").bus, sim("sim", false));
        assert_eq!(parse("sim-smbus1").bus, sim("sim-smbus1", true));
        assert_eq!(parse("simple").bus, BusSpec::Name("simple".to_owned()));
    }

    #[test]
    fn test_wrong_lists_are_refused() {
        for wrong in [
            "",
            ":3",
            "1:0x400",
            "1:9-3",
            "1:0x70-0x90",
            "1:x",
            "sim:0xzz",
            "1,,2",
        ] {
            assert!(wrong.parse::<DeviceList>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn test_settings_and_read_only() {
        let setting: Setting<u32> = "sim=20".parse().unwrap();
        assert_eq!((setting.bus.is_some(), setting.value), (true, 20));
        assert_eq!("20".parse::<Setting<u32>>().unwrap().bus, None);
        assert!("sim=x".parse::<Setting<u32>>().is_err());
        assert!("0".parse::<Setting<NonZeroU32>>().is_err());
        let read_only = |text: &str| text.parse::<ReadOnly>();
        let expected = ReadOnly {
            guest: Some(3),
            range: seven(0x50, 0x57),
            pointer: 2,
        };
        assert_eq!(read_only("3=0x50-0x57:2").unwrap(), expected);
        let expected = ReadOnly {
            guest: None,
            range: seven(80, 80),
            pointer: 1,
        };
        assert_eq!(read_only("80").unwrap(), expected);
        for wrong in ["", "x", "0x50:", "0x50:300", "-1=0x50", "a=0x50", "=0x50"] {
            assert!(read_only(wrong).is_err(), "{wrong}");
        }
        assert!(parse_temperature("126").is_err());
    }
}
