//! The vhost-user VirtIO I2C adapter (VIRTIO 1.4 §5.16, device id 34).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`access`] | which addresses a guest reaches, on which bus |
//! | [`check`] | options that contradict each other |
//! | [`address`] | 7-bit and 10-bit addresses |
//! | [`device`] | the device: requests, groups, one status each |
//! | [`host`] | the buses below |
//! | `control` | sees and changes simulated devices while they run |
//! | `log` | what is said of a guest, once a burst |
//!
//! `unsafe` is in `host::linux` (the ioctls of `i2c-dev`).

pub mod access;
pub mod address;
pub mod args;
pub mod check;
mod control;
pub mod device;
pub mod host;
pub mod log;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use vhost_device_daemon::control::ControlError;
use vhost_device_daemon::{Backend, Identity, Listener};

use crate::access::{Access, AccessError, Grant};
use crate::address::Address;
use crate::args::{Args, BusSpec, DeviceList, ReadOnly, Setting};
use crate::check::Contradiction;
use crate::device::Adapter;
use crate::host::linux::{Linux, OpenError};
use crate::host::sim::{self, Sim};
use crate::host::{Bus, BusId, Functionality, TIMEOUT_STEP, timeout_in_force};
use crate::log::Log;

/// What a simulator's LM75 measures when the user does not say.
const DEGREES: f32 = 25.0;

/// The daemon: for each guest, some buses behind one virtual adapter.
#[derive(Debug)]
pub struct I2c {
    guests: Vec<Guest>,
    /// The file of the control socket is there for as long as this.
    _control: Option<Listener>,
}

/// What a guest has, whether it is connected or not.
#[derive(Debug)]
struct Guest {
    /// Opened for this guest alone: nothing that two guests would wait for in turn is theirs,
    /// and the kernel serves those who wait for an adapter in order.
    buses: Arc<[Arc<dyn Bus>]>,
    access: Arc<Access>,
    log: Log,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A bus cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A list of addresses contradicts itself.
    #[error("--device-list for guest {guest}")]
    Access {
        /// The guest.
        guest: usize,
        /// The contradiction.
        source: AccessError,
    },
    /// The command line contradicts itself.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// There are no such addresses to be granted.
    #[error(
        "the bus {bus} has no 10-bit addresses, which are those from 0x80 on, and --device-list \
         names {address}: leave it out"
    )]
    TenBit {
        /// The bus.
        bus: String,
        /// The address.
        address: Address,
    },
    /// A setting was refused.
    #[error(
        "{option} {value} cannot be set for the bus {bus}: its driver does not take this value, so \
         choose another or leave it out"
    )]
    Setting {
        /// The option.
        option: &'static str,
        /// The bus.
        bus: String,
        /// The value.
        value: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no way to control the simulators.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Opens buses.
#[derive(Debug)]
struct Opener {
    /// By name: those that several guests reach are one.
    sims: BTreeMap<String, Arc<Sim>>,
    degrees: f32,
}

impl Opener {
    fn open(&mut self, spec: &BusSpec) -> Result<Arc<dyn Bus>, OpenError> {
        Ok(match spec {
            BusSpec::Sim { name, smbus_only } => self.sim(name, *smbus_only),
            BusSpec::Number(number) => Arc::new(Linux::by_number(*number)?),
            BusSpec::Name(name) => Arc::new(Linux::by_name(name)?),
            BusSpec::Path(path) => Arc::new(Linux::by_path(path)?),
        })
    }

    fn sim(&mut self, name: &str, smbus_only: bool) -> Arc<Sim> {
        let new = || Arc::new(Sim::standard(name.to_owned(), smbus_only, self.degrees));
        Arc::clone(self.sims.entry(name.to_owned()).or_insert_with(new))
    }

    /// Opens each bus of a guest's list once, by whatever names it is called.
    fn guest(&mut self, guest: usize, list: &DeviceList) -> Result<Guest, StartError> {
        let mut buses: Vec<Arc<dyn Bus>> = Vec::new();
        let mut grants = Vec::new();
        for entry in list.iter() {
            let bus = self.open(&entry.bus)?;
            let mut starts = entry.ranges.iter().map(|range| *range.start());
            if !bus.functionality().has(Functionality::TEN_BIT_ADDRESSES)
                && let Some(address) = starts.find(|address| address.is_ten_bit())
            {
                let bus = bus.name().to_owned();
                return Err(StartError::TenBit { bus, address });
            }
            let known = buses.iter().position(|other| other.id() == bus.id());
            let number = known.unwrap_or(buses.len());
            if known.is_none() {
                buses.push(bus);
            }
            grants.push(Grant {
                bus: number,
                ranges: entry.ranges.clone(),
            });
        }
        let names: Vec<_> = buses.iter().map(|bus| bus.name()).collect();
        let access = Access::new(&names, &grants);
        let access = access.map_err(|source| StartError::Access { guest, source })?;
        Ok(Guest {
            log: Log::new(format!("guest {guest}"), buses.len()),
            buses: buses.into(),
            access: Arc::new(access),
        })
    }
}

/// Applies what is for all guests, and then what is for one, which knows better.
fn protect(guests: &mut [Guest], read_only: &[ReadOnly]) {
    let (all, each): (Vec<_>, Vec<_>) = read_only.iter().partition(|entry| entry.guest.is_none());
    for entry in all.into_iter().chain(each) {
        let guests = guests.iter_mut().enumerate();
        let meant = guests.filter(|(guest, _)| entry.guest.is_none_or(|wanted| wanted == *guest));
        // No connection has it yet.
        meant
            .filter_map(|(_, guest)| Arc::get_mut(&mut guest.access))
            .for_each(|access| access.protect(&entry.range, entry.pointer));
    }
}

/// The buses of all guests, each once.
fn distinct(guests: &[Guest]) -> BTreeMap<BusId, Arc<dyn Bus>> {
    let buses = guests.iter().flat_map(|guest| guest.buses.iter());
    buses.map(|bus| (bus.id(), Arc::clone(bus))).collect()
}

/// What is said of timeouts that no adapter has as they are given, and what is in force instead.
fn rounded(settings: &[Setting<NonZeroU32>]) -> Vec<String> {
    let rounded = settings.iter().filter_map(|setting| {
        let wanted = Duration::from_millis(setting.value.get().into());
        let in_force = timeout_in_force(wanted);
        (in_force != wanted).then(|| {
            let bus = setting.bus.as_ref();
            let bus = bus.map_or_else(String::new, |bus| format!("{bus}="));
            format!(
                "--timeout {bus}{}: adapters count in steps of {} ms, so {} ms are in force",
                wanted.as_millis(),
                TIMEOUT_STEP.as_millis(),
                in_force.as_millis()
            )
        })
    });
    rounded.collect()
}

/// What is said of a temperature that an LM75 does not measure.
fn rounded_temperature(degrees: f32) -> Option<String> {
    let measured = sim::measured(degrees);
    (measured != degrees).then(|| {
        format!(
            "--sim-temperature {degrees}: an LM75 measures in halves of a degree, so it is {measured}"
        )
    })
}

/// Applies a setting to the buses that it names: first what is for all, then what is for one.
fn configure<T: Copy + Into<u32>>(
    option: &'static str,
    settings: &[Setting<T>],
    buses: &BTreeMap<BusId, Arc<dyn Bus>>,
    opener: &mut Opener,
    set: impl Fn(&dyn Bus, u32) -> io::Result<()>,
) -> Result<(), StartError> {
    let (all, each): (Vec<_>, Vec<_>) = settings.iter().partition(|setting| setting.bus.is_none());
    for setting in all.into_iter().chain(each) {
        let value = setting.value.into();
        let wanted = match &setting.bus {
            None => None,
            Some(spec) => Some((opener.open(spec)?.id(), spec)),
        };
        if let Some((id, spec)) = &wanted
            && !buses.contains_key(id)
        {
            let known = buses.values().map(|bus| bus.name().to_owned());
            return Err(Contradiction::NoSuchBus {
                option,
                bus: spec.to_string(),
                known: check::each_once(known),
            }
            .into());
        }
        for (id, bus) in buses {
            if wanted.as_ref().is_some_and(|(wanted, _)| wanted != id) {
                continue;
            }
            set(&**bus, value).map_err(|source| StartError::Setting {
                option,
                bus: bus.name().to_owned(),
                value,
                source,
            })?;
        }
    }
    Ok(())
}

/// Which addresses of which buses the guests are granted: a line for each bus of those that have
/// the same.
fn granted(guests: &[Guest]) -> Vec<String> {
    let of_guest = |guest: &Guest| -> Vec<String> {
        let buses = guest.buses.iter().enumerate();
        buses
            .map(|(number, bus)| format!("bus {}: {}", bus.name(), guest.access.describe(number)))
            .collect()
    };
    let all: Vec<_> = guests.iter().map(of_guest).collect();
    let mut lines = Vec::new();
    let mut first = 0;
    for same in all.chunk_by(|one, next| one == next) {
        let last = first + same.len() - 1;
        let whose = match last == first {
            true => format!("guest {first}"),
            false => format!("guests {first} to {last}"),
        };
        let buses = same.first().into_iter().flatten();
        lines.extend(buses.map(|bus| format!("{whose}: {bus}")));
        first = last + 1;
    }
    lines
}

/// What is said when lists of several guests have the same devices: it may be meant, or a slip.
fn shared(guests: &[Guest]) -> Vec<String> {
    let mut owners: BTreeMap<(BusId, Address), Vec<usize>> = BTreeMap::new();
    for (number, guest) in guests.iter().enumerate() {
        for (address, bus) in guest.access.addresses() {
            if let Some(bus) = guest.buses.get(bus) {
                owners.entry((bus.id(), address)).or_default().push(number);
            }
        }
    }
    owners.retain(|_, owners| owners.len() > 1);
    let mut lines = Vec::new();
    for (id, bus) in distinct(guests) {
        let mut shared = owners.iter().filter(|((other, _), _)| *other == id);
        if let Some(((_, address), owners)) = shared.next() {
            let mut line = format!(
                "the bus {}: the guests {owners:?} share {address}",
                bus.name()
            );
            match shared.count() {
                0 => {}
                more => line += &format!(", and {more} more addresses are in several lists"),
            }
            lines.push(line);
        }
    }
    lines
}

impl Backend for I2c {
    type Args = Args;
    type Device = Adapter;
    type Error = StartError;

    const IDENTITY: Identity = Identity {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        about: env!("CARGO_PKG_DESCRIPTION"),
        device_type: "i2c",
    };

    fn check(args: &Args, guests: usize) -> Result<(), StartError> {
        Ok(check::check(args, guests)?)
    }

    fn open(args: Args, count: usize) -> Result<Self, StartError> {
        let mut opener = Opener {
            sims: BTreeMap::new(),
            degrees: args.sim_temperature.unwrap_or(DEGREES),
        };
        if let Some(line) = args.sim_temperature.and_then(rounded_temperature) {
            ::log::warn!("{line}");
        }
        let mut guests = check::lists(&args.device_list, count)?
            .into_iter()
            .enumerate()
            .map(|(guest, list)| opener.guest(guest, list))
            .collect::<Result<Vec<_>, _>>()?;
        protect(&mut guests, &args.read_only);
        granted(&guests)
            .iter()
            .for_each(|line| ::log::info!("{line}"));
        // One list for all is meant so.
        if args.device_list.len() > 1 {
            shared(&guests)
                .iter()
                .for_each(|line| ::log::info!("{line}"));
        }
        let buses = distinct(&guests);
        let sims = opener.sims.clone();
        configure(
            "--timeout",
            &args.timeout,
            &buses,
            &mut opener,
            |bus, ms| bus.set_timeout(Duration::from_millis(ms.into())),
        )?;
        rounded(&args.timeout)
            .iter()
            .for_each(|line| ::log::warn!("{line}"));
        configure("--retries", &args.retries, &buses, &mut opener, |bus, n| {
            bus.set_retries(n)
        })?;
        let control = args.sim_control.map(|path| control::start(&path, sims));
        Ok(Self {
            guests,
            _control: control.transpose()?,
        })
    }

    fn device(&self, guest: usize) -> io::Result<Self::Device> {
        let guest = self.guests.get(guest).ok_or(io::ErrorKind::NotFound)?;
        Adapter::new(
            Arc::clone(&guest.buses),
            Arc::clone(&guest.access),
            guest.log.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(arguments: &[&str]) -> Vec<Guest> {
        let mut opener = Opener {
            sims: BTreeMap::new(),
            degrees: DEGREES,
        };
        let lists = arguments.iter().map(|list| list.parse().unwrap());
        lists
            .enumerate()
            .map(|(guest, list)| opener.guest(guest, &list).unwrap())
            .collect()
    }

    #[test]
    fn test_what_is_read_only_for_one_guest_is_not_for_another() {
        let mut guests = guests(&["sim:0x50", "sim:0x50", "sim:0x20"]);
        let entries = ["1=0x50:2", "0x50"].map(|entry| entry.parse().unwrap());
        protect(&mut guests, &entries);
        let longest = |guest: &Guest| {
            let route = guest.access.route(Address::Seven(0x50))?;
            (0..4).rev().find(|&length| route.may_write(length))
        };
        let longest: Vec<_> = guests.iter().map(longest).collect();
        assert_eq!(longest, [Some(1), Some(2), None]);
    }

    #[test]
    fn test_what_is_granted_is_told_in_hex() {
        let lists = ["sim:50,sim1:0x51-0x53:0x55", "sim:0x20", "sim:0x20", "sim"];
        let mut guests = guests(&lists);
        protect(&mut guests, &["0=0x52-0x55".parse().unwrap()]);
        assert_eq!(
            granted(&guests),
            [
                "guest 0: bus sim: 0x32",
                "guest 0: bus sim1: 0x51, 0x52-0x53 (read-only), 0x55 (read-only)",
                "guests 1 to 2: bus sim: 0x20",
                "guest 3: bus sim: all addresses but 0x00, the general call",
            ]
        );
    }

    #[test]
    fn test_ten_bit_addresses_that_are_not_there_are_refused() {
        let mut opener = Opener {
            sims: BTreeMap::new(),
            degrees: DEGREES,
        };
        let list = "sim-smbus:0x20:0x150".parse().unwrap();
        let error = opener.guest(0, &list).unwrap_err();
        assert!(matches!(error, StartError::TenBit { .. }), "{error}");
        assert!(opener.guest(0, &"sim:0x150".parse().unwrap()).is_ok());
    }

    #[test]
    fn test_a_setting_of_one_bus_goes_before_that_of_all() {
        let mut opener = Opener {
            sims: BTreeMap::new(),
            degrees: DEGREES,
        };
        let list = "sim0:0x20,sim1:0x30".parse().unwrap();
        let guest = opener.guest(0, &list).unwrap();
        let settings = ["sim1=3", "1"].map(|text| text.parse::<Setting<u32>>().unwrap());
        let set = std::cell::RefCell::new(Vec::new());
        configure(
            "--retries",
            &settings,
            &distinct(&[guest]),
            &mut opener,
            |bus, n| {
                set.borrow_mut().push((bus.name().to_owned(), n));
                Ok(())
            },
        )
        .unwrap();
        let last = |name: &str| {
            set.borrow()
                .iter()
                .rfind(|(bus, _)| bus == name)
                .map(|s| s.1)
        };
        assert_eq!([last("sim0"), last("sim1")], [Some(1), Some(3)]);
    }

    #[test]
    fn test_timeouts_that_no_adapter_has_are_told() {
        let settings = ["7", "20", "sim=11"].map(|text| text.parse().unwrap());
        assert_eq!(
            rounded(&settings),
            [
                "--timeout 7: adapters count in steps of 10 ms, so 10 ms are in force",
                "--timeout sim=11: adapters count in steps of 10 ms, so 20 ms are in force",
            ]
        );
    }

    #[test]
    fn test_a_temperature_between_two_steps_is_told() {
        let line = rounded_temperature(30.3).unwrap();
        assert!(line.ends_with("so it is 30.5"), "{line}");
        for measured in [30.5, -55.0, 125.0, 0.0] {
            assert_eq!(rounded_temperature(measured), None);
        }
    }

    #[test]
    fn test_devices_in_several_lists_are_told() {
        assert!(shared(&guests(&["sim:1", "sim:2", "sim0:1"])).is_empty());
        let lines = shared(&guests(&["sim:0x20-0x22", "sim0:0x20", "sim:0x21:0x22"]));
        let [line] = &lines[..] else {
            panic!("{lines:?}");
        };
        for part in ["bus sim:", "[0, 2]", "0x21", "1 more"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
