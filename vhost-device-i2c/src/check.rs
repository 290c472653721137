//! What is wrong with the command line alone, whatever the host's buses are.
//!
//! Two names may be one bus, which only the host knows: what depends on that is found when the
//! buses are open.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::address::Address;
use crate::args::{Args, BusList, BusSpec, DeviceList, ReadOnly, Setting};

/// Options that contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Neither one list nor one for each guest.
    #[error(
        "--device-list is given {lists} times, and there {}: give it once for all guests, or once \
         for each (--socket-count says how many there are)", are_guests(*.guests)
    )]
    Lists {
        /// How many lists.
        lists: usize,
        /// How many guests.
        guests: usize,
    },
    /// A guest sees one adapter: an address on it can only be on one bus.
    #[error(
        "--device-list has the address {address} on both bus {first} and bus {second}: say which \
         addresses of each bus a guest gets, none on two"
    )]
    Twice {
        /// The address.
        address: Address,
        /// The bus that has it.
        first: String,
        /// The bus that was to have it too.
        second: String,
    },
    /// There are none to be granted.
    #[error(
        "{bus} has no 10-bit addresses, which are those from 0x80 on, and --device-list names \
         {address}: leave it out"
    )]
    TenBit {
        /// The bus.
        bus: String,
        /// The address.
        address: Address,
    },
    /// What nobody may use need not be protected: likely a mistyped address.
    #[error(
        "--read-only names {}, which --device-list gives to no guest; addresses are decimal \
         unless they begin with 0x", in_both(*.0)
    )]
    NothingToProtect(Address),
    /// The same for one guest.
    #[error(
        "--read-only names {} for guest {guest}, to which --device-list does not give it; \
         addresses are decimal unless they begin with 0x", in_both(*.address)
    )]
    NotOfGuest {
        /// The guest.
        guest: usize,
        /// The address.
        address: Address,
    },
    /// There is no such guest.
    #[error(
        "--read-only names guest {guest}: guests are counted from 0, and there {}",
        are_guests(*.guests)
    )]
    NoGuest {
        /// The guest.
        guest: usize,
        /// How many there are.
        guests: usize,
    },
    /// Two lengths for the same address and guests.
    #[error(
        "--read-only lets both {first} and {second} bytes be written to the address {address}: \
         name it once"
    )]
    TwoPointers {
        /// The address.
        address: Address,
        /// A length.
        first: usize,
        /// The other.
        second: usize,
    },
    /// A setting of a bus that no list names.
    #[error("{option} names the bus {bus}, which --device-list does not: it names {known}")]
    NoSuchBus {
        /// The option.
        option: &'static str,
        /// The bus that it names.
        bus: String,
        /// Those that it could name.
        known: String,
    },
    /// Two values for the same.
    #[error("{option} is given twice for {bus}: give it once")]
    SetTwice {
        /// The option.
        option: &'static str,
        /// The bus, or all.
        bus: String,
    },
    /// There is nothing that an option could be for.
    #[error(
        "{0} is for simulators, and --device-list names none (sim, sim0, sim-smbus, …): leave it out"
    )]
    NothingSimulated(&'static str),
}

/// How many guests there are, behind "there".
fn are_guests(guests: usize) -> String {
    match guests {
        1 => "is 1 guest".to_owned(),
        guests => format!("are {guests} guests"),
    }
}

/// An address as those write it who mean hex, and as those who do not.
fn in_both(address: Address) -> String {
    format!("the address {address} ({} in decimal)", address.number())
}

/// Finds what contradicts itself for so many guests.
///
/// # Errors
/// The first that is found.
pub fn check(args: &Args, guests: usize) -> Result<(), Contradiction> {
    let lists = lists(&args.device_list, guests)?;
    for list in &args.device_list {
        check_list(list)?;
    }
    check_read_only(&args.read_only, &lists)?;
    let buses: Vec<_> = buses(args).map(|entry| &entry.bus).collect();
    check_settings("--timeout", &args.timeout, &buses)?;
    check_settings("--retries", &args.retries, &buses)?;
    let is_simulated = |bus: &&BusSpec| matches!(bus, BusSpec::Sim { .. });
    if !buses.iter().any(is_simulated) {
        let control = args.sim_control.as_ref().map(|_| "--sim-control");
        let temperature = args.sim_temperature.map(|_| "--sim-temperature");
        if let Some(option) = control.or(temperature) {
            return Err(Contradiction::NothingSimulated(option));
        }
    }
    Ok(())
}

fn buses(args: &Args) -> impl Iterator<Item = &BusList> {
    args.device_list.iter().flat_map(DeviceList::iter)
}

/// The list of each guest: its own, or the one of all.
pub(crate) fn lists(
    lists: &[DeviceList],
    guests: usize,
) -> Result<Vec<&DeviceList>, Contradiction> {
    match lists {
        [one] => Ok(vec![one; guests]),
        each if each.len() == guests => Ok(each.iter().collect()),
        other => Err(Contradiction::Lists {
            lists: other.len(),
            guests,
        }),
    }
}

fn check_list(list: &DeviceList) -> Result<(), Contradiction> {
    for (position, entry) in list.iter().enumerate() {
        if let BusSpec::Sim {
            smbus_only: true, ..
        } = entry.bus
            && let Some(range) = entry.ranges.iter().find(|range| range.start().is_ten_bit())
        {
            return Err(Contradiction::TenBit {
                bus: entry.bus.to_string(),
                address: *range.start(),
            });
        }
        let before = list.iter().take(position);
        for other in before.filter(|other| other.bus.is_another_than(&entry.bus)) {
            let both = |address: &Address| other.has(*address) && entry.has(*address);
            if let Some(address) = Address::all().find(both) {
                return Err(Contradiction::Twice {
                    address,
                    first: other.bus.to_string(),
                    second: entry.bus.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn check_read_only(read_only: &[ReadOnly], lists: &[&DeviceList]) -> Result<(), Contradiction> {
    let gives = |list: &DeviceList, range: &RangeInclusive<Address>| {
        let mut wanted = Address::all().filter(|address| range.contains(address));
        wanted.any(|address| list.iter().any(|entry| entry.has(address)))
    };
    for (position, entry) in read_only.iter().enumerate() {
        let address = *entry.range.start();
        match entry.guest {
            None if !lists.iter().any(|list| gives(list, &entry.range)) => {
                return Err(Contradiction::NothingToProtect(address));
            }
            None => {}
            Some(guest) => match lists.get(guest) {
                None => {
                    let guests = lists.len();
                    return Err(Contradiction::NoGuest { guest, guests });
                }
                Some(list) if !gives(list, &entry.range) => {
                    return Err(Contradiction::NotOfGuest { guest, address });
                }
                Some(_) => {}
            },
        }
        let before = read_only.iter().take(position);
        let contradicts =
            |other: &&ReadOnly| other.guest == entry.guest && other.pointer != entry.pointer;
        for other in before.filter(contradicts) {
            let address = *entry.range.start().max(other.range.start());
            if entry.range.contains(&address) && other.range.contains(&address) {
                return Err(Contradiction::TwoPointers {
                    address,
                    first: other.pointer,
                    second: entry.pointer,
                });
            }
        }
    }
    Ok(())
}

/// Names of buses for an error, each once.
pub(crate) fn each_once(names: impl Iterator<Item = String>) -> String {
    let names: BTreeSet<_> = names.collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn check_settings<T>(
    option: &'static str,
    settings: &[Setting<T>],
    buses: &[&BusSpec],
) -> Result<(), Contradiction> {
    for (position, setting) in settings.iter().enumerate() {
        if let Some(bus) = &setting.bus
            && buses.iter().all(|other| other.is_another_than(bus))
        {
            let known = buses.iter().map(|bus| bus.to_string());
            return Err(Contradiction::NoSuchBus {
                option,
                bus: bus.to_string(),
                known: each_once(known),
            });
        }
        let mut before = settings.iter().take(position);
        if before.any(|other| other.bus == setting.bus) {
            let bus = match &setting.bus {
                None => "all buses".to_owned(),
                Some(bus) => format!("the bus {bus}"),
            };
            return Err(Contradiction::SetTwice { option, bus });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn checked(guests: usize, arguments: &str) -> Result<(), Contradiction> {
        let arguments = ["i2c"].into_iter().chain(arguments.split(' '));
        check(&Cli::try_parse_from(arguments).unwrap().args, guests)
    }

    #[test]
    fn test_what_contradicts_itself_is_refused() {
        for (guests, arguments, why) in [
            (
                1,
                "-l sim0 -l sim1",
                "given 2 times, and there is 1 guest: give",
            ),
            (3, "-l sim0 -l sim1", "give it once for all guests"),
            (1, "-l sim0,sim1", "both bus sim0 and bus sim1"),
            (1, "-l 1:0x50,2:0x48-0x57", "0x50 on both bus 1 and bus 2"),
            (1, "-l sim:0x50,/dev/i2c-1", "0x50 on both"),
            (1, "-l sim-smbus:0x48:0x150", "names 0x150 (10 bits): leave"),
            (1, "-l sim:0x50 --read-only 50", "0x32 (50 in decimal)"),
            (1, "-l sim:0x50 --read-only 0=0x51", "for guest 0"),
            (
                2,
                "-l 1 --read-only 2=0x50",
                "counted from 0, and there are 2 guests",
            ),
            (
                1,
                "-l 1 --read-only 0x50-0x57 --read-only 0x56-0x5f:2",
                "both 1 and 2 bytes be written to the address 0x56",
            ),
            (
                1,
                "-l sim:0x50,sim0:0x20,sim:0x51 --timeout sim1=100",
                "names the bus sim1, which --device-list does not: it names sim, sim0",
            ),
            (1, "-l 1 --retries 2=1", "names the bus 2"),
            (1, "-l 1 --retries 1 --retries 2", "twice for all buses"),
            (
                1,
                "-l 1 --timeout 1=10 --timeout 1=10",
                "twice for the bus 1",
            ),
            (
                1,
                "-l 1 --sim-control /c",
                "--sim-control is for simulators",
            ),
            (1, "-l 1 --sim-temperature 3", "--sim-temperature is for"),
        ] {
            let error = checked(guests, arguments).unwrap_err().to_string();
            assert!(error.contains(why), "{arguments}: {error}");
        }
    }

    #[test]
    fn test_what_only_the_host_can_tell_is_let_through() {
        for (guests, arguments) in [
            (2, "-l sim:0x50:0x51 --sim-control /c"),
            (2, "-l 1:0x50 -l 1:0x50"),
            // The same bus, perhaps.
            (1, "-l 1:0x50,/dev/i2c-1:0x50,name:0x50 --timeout other=10"),
            (1, "-l sim:0x50,sim:0x50-0x57"),
            (1, "-l sim-smbus"),
            (
                1,
                "-l 1 --read-only 0x50:2 --read-only 0=0x50 --read-only 0x50:2",
            ),
            (1, "-l 1 --timeout 10 --timeout 1=20"),
            (2, "-l 1:0x50 -l 1:0x51 --read-only 0x51-0x57"),
        ] {
            assert_eq!(checked(guests, arguments), Ok(()), "{arguments}");
        }
    }

    #[test]
    fn test_one_list_is_for_all_guests_and_several_are_for_one_each() {
        let one = ["sim".parse().unwrap()];
        assert_eq!(lists(&one, 3).unwrap().len(), 3);
        let two: Vec<DeviceList> = ["sim:1", "sim:2"].map(|list| list.parse().unwrap()).into();
        assert_eq!(lists(&two, 2).unwrap(), [&two[0], &two[1]]);
    }
}
