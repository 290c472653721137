//! Which addresses a guest reaches, on which bus, and which of them it may only read.

use std::ops::RangeInclusive;

use crate::address::Address;

/// Addresses of one bus that guests may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The position of the bus in the list of all.
    pub bus: usize,
    /// Which addresses: see [`is_granted`].
    pub ranges: Vec<RangeInclusive<Address>>,
}

/// Whether an address is among these. No ranges are the whole bus, but for the general call: that
/// one reaches all devices at once, those of other guests too, so it has to be named.
pub fn is_granted(ranges: &[RangeInclusive<Address>], address: Address) -> bool {
    match ranges.is_empty() {
        true => address != Address::GENERAL_CALL,
        false => ranges.iter().any(|range| range.contains(&address)),
    }
}

/// Lists of addresses that contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A guest sees one adapter: an address on it can only be on one bus.
    #[error("the address {address} is on both bus {first} and bus {second}: give each bus its own")]
    Twice {
        /// The address.
        address: Address,
        /// The bus that has it.
        first: String,
        /// The bus that was to have it too.
        second: String,
    },
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The position of the bus.
    pub bus: usize,
    /// The longest write that is let through; none is too long when it is not read-only.
    longest_write: Option<usize>,
}

impl Route {
    /// Whether a write of so many bytes is let through.
    pub fn may_write(self, length: usize) -> bool {
        self.longest_write.is_none_or(|longest| length <= longest)
    }
}

/// The access list: a route for each address that has one.
#[derive(Debug)]
pub struct Access(Vec<Option<Route>>);

impl Access {
    /// The list that these grants make, on buses with these names.
    ///
    /// # Errors
    /// When an address would be on two buses.
    pub fn new(names: &[&str], grants: &[Grant]) -> Result<Self, AccessError> {
        let mut access = Self(vec![None; Address::COUNT]);
        for grant in grants {
            access.add(names, grant)?;
        }
        Ok(access)
    }

    fn add(&mut self, names: &[&str], grant: &Grant) -> Result<(), AccessError> {
        let name = |bus: usize| names.get(bus).copied().unwrap_or_default().to_owned();
        for (place, address) in self.0.iter_mut().zip(Address::all()) {
            if !is_granted(&grant.ranges, address) {
                continue;
            }
            let route = place.get_or_insert(Route {
                bus: grant.bus,
                longest_write: None,
            });
            if route.bus != grant.bus {
                return Err(AccessError::Twice {
                    address,
                    first: name(route.bus),
                    second: name(grant.bus),
                });
            }
        }
        Ok(())
    }

    /// Lets only writes of up to `pointer` bytes through to those of these addresses that are in
    /// the list: writes that say where the next read begins. What is written to the general call
    /// would reach them too and says no such thing, so nothing is let through to that on their bus.
    pub fn protect(&mut self, range: &RangeInclusive<Address>, pointer: usize) {
        for (place, address) in self.0.iter_mut().zip(Address::all()) {
            if let Some(route) = place
                && range.contains(&address)
            {
                route.longest_write = Some(pointer);
            }
        }
        let is_protected = |route: &Route| route.longest_write.is_some();
        let protected: Vec<_> = self
            .0
            .iter()
            .flatten()
            .filter(|r| is_protected(r))
            .collect();
        let general = self.route(Address::GENERAL_CALL);
        let reaches = general.is_some_and(|general| protected.iter().any(|r| r.bus == general.bus));
        if reaches && let Some(Some(general)) = self.0.get_mut(Address::GENERAL_CALL.index()) {
            general.longest_write = Some(0);
        }
    }

    /// The addresses of a bus for the log, in hex: all (but for the general call), or single ones
    /// and ranges.
    pub fn describe(&self, bus: usize) -> String {
        let own = |route: Option<Route>| route.filter(|route| route.bus == bus);
        let routes: Vec<_> = Address::all()
            .zip(self.0.iter().map(|route| own(*route)))
            .collect();
        let alike = |one: &(Address, Option<Route>), next: &(Address, Option<Route>)| {
            one.1 == next.1 && one.0.is_ten_bit() == next.0.is_ten_bit()
        };
        let is_free = |route: &Option<Route>| route.is_some_and(|r| r.longest_write.is_none());
        let mut others = routes
            .iter()
            .filter(|(address, _)| *address != Address::GENERAL_CALL);
        if others.all(|(_, route)| is_free(route)) {
            let general = own(self.route(Address::GENERAL_CALL));
            return match general {
                None => "all addresses but 0x00, the general call".to_owned(),
                Some(_) if is_free(&general) => "all addresses".to_owned(),
                Some(_) => "all addresses, 0x00 (the general call) read-only".to_owned(),
            };
        }
        let mut parts = Vec::new();
        for run in routes.chunk_by(alike) {
            let (Some(&(first, route)), Some(&(last, _))) = (run.first(), run.last()) else {
                continue;
            };
            let Some(route) = route else {
                continue;
            };
            let range = match first == last {
                true => first.to_string(),
                false => format!("{:#04x}-{last}", first.number()),
            };
            parts.push(match route.longest_write {
                None => range,
                Some(_) => format!("{range} (read-only)"),
            });
        }
        parts.join(", ")
    }

    /// The addresses in the list, each with the position of its bus.
    pub fn addresses(&self) -> impl Iterator<Item = (Address, usize)> {
        let routes = Address::all().zip(&self.0);
        routes.filter_map(|(address, route)| Some((address, route.as_ref()?.bus)))
    }

    /// Where this address leads, if guests may use it.
    pub fn route(&self, address: Address) -> Option<Route> {
        self.0.get(address.index()).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(bus: usize, numbers: &[u8]) -> Grant {
        let address = |&number: &u8| Address::Seven(number)..=Address::Seven(number);
        Grant {
            bus,
            ranges: numbers.iter().map(address).collect(),
        }
    }

    #[test]
    fn test_addresses_lead_to_their_buses() {
        let grants = [
            grant(0, &[0x50, 0x51]),
            grant(1, &[0x48]),
            grant(0, &[0x20]),
        ];
        let access = Access::new(&["a", "b"], &grants).unwrap();
        let bus = |number| access.route(Address::Seven(number)).map(|route| route.bus);
        assert_eq!([0x50, 0x51, 0x20].map(bus), [Some(0); 3]);
        assert_eq!(bus(0x48), Some(1));
        assert_eq!(bus(0x49), None);
        assert_eq!(access.route(Address::Ten(0x50)), None);
    }

    #[test]
    fn test_a_bus_without_addresses_has_all_but_the_general_call() {
        let access = Access::new(&["a"], &[grant(0, &[])]).unwrap();
        let missing: Vec<_> = Address::all()
            .filter(|&a| access.route(a).is_none())
            .collect();
        assert_eq!(missing, [Address::GENERAL_CALL]);
        let access = Access::new(&["a"], &[grant(0, &[0x00, 0x50])]).unwrap();
        assert!(
            access.route(Address::GENERAL_CALL).unwrap().may_write(2),
            "it is named"
        );
    }

    #[test]
    fn test_the_general_call_writes_to_nothing_that_is_read_only() {
        let one = |number| Address::Seven(number)..=Address::Seven(number);
        let grants = [grant(0, &[0x00, 0x50]), grant(1, &[0x48])];
        let general = |protected| {
            let mut access = Access::new(&["a", "b"], &grants).unwrap();
            access.protect(&one(protected), 2);
            let route = access.route(Address::GENERAL_CALL).unwrap();
            (0..=2).rev().find(|&length| route.may_write(length))
        };
        assert_eq!(general(0x50), Some(0), "what is written reaches 0x50");
        assert_eq!(general(0x00), Some(0), "no pointer is written there");
        assert_eq!(general(0x48), Some(2), "that is on another bus");
        assert_eq!(general(0x51), Some(2), "that is not granted");
    }

    #[test]
    fn test_an_address_on_two_buses_is_refused_with_both_names() {
        for second in [grant(1, &[0x51, 0x50]), grant(1, &[])] {
            let grants = [grant(0, &[0x50]), second];
            let error = Access::new(&["left", "right"], &grants).unwrap_err();
            let text = error.to_string();
            for part in ["0x50", "left", "right"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn test_a_read_only_address_lets_its_pointer_through() {
        let one = |number| Address::Seven(number)..=Address::Seven(number);
        let mut access = Access::new(&["a"], &[grant(0, &[0x50, 0x51])]).unwrap();
        access.protect(&one(0x50), 1);
        let may = |access: &Access, number, length| {
            let route = access.route(Address::Seven(number)).unwrap();
            route.may_write(length)
        };
        assert!(may(&access, 0x50, 0) && may(&access, 0x50, 1) && !may(&access, 0x50, 2));
        assert!(may(&access, 0x51, 8192));
        let range = Address::Seven(0x50)..=Address::Seven(0x57);
        access.protect(&range, 2);
        assert_eq!(
            access.route(Address::Seven(0x52)),
            None,
            "it is not in the list"
        );
        assert!(may(&access, 0x50, 2) && !may(&access, 0x51, 3));
    }

    #[test]
    fn test_the_addresses_of_a_bus_are_described_in_hex() {
        let ten = Address::Ten(0x80)..=Address::Ten(0x3ff);
        let mut ranges = grant(0, &[50, 0x50, 0x51, 0x52]).ranges;
        ranges.push(ten);
        let grants = [Grant { bus: 0, ranges }, grant(1, &[0x7f])];
        let mut access = Access::new(&["a", "b"], &grants).unwrap();
        access.protect(&(Address::Seven(0x51)..=Address::Seven(0x51)), 1);
        assert_eq!(
            access.describe(0),
            "0x32, 0x50, 0x51 (read-only), 0x52, 0x80-0x3ff (10 bits)"
        );
        assert_eq!(access.describe(1), "0x7f");
        let mut all = Access::new(&["a"], &[grant(0, &[])]).unwrap();
        assert_eq!(all.describe(0), "all addresses but 0x00, the general call");
        all.protect(&(Address::Seven(0x50)..=Address::Seven(0x57)), 2);
        assert_eq!(
            all.describe(0),
            "0x01-0x4f, 0x50-0x57 (read-only), 0x58-0x7f, 0x00-0x3ff (10 bits)"
        );
        let general = || Grant {
            bus: 0,
            ranges: vec![Address::GENERAL_CALL..=Address::GENERAL_CALL],
        };
        let mut all = Access::new(&["a"], &[grant(0, &[]), general()]).unwrap();
        assert_eq!(all.describe(0), "all addresses");
        let grants = [grant(0, &[]), general()];
        let mut quiet = Access::new(&["a"], &grants).unwrap();
        quiet.protect(&(Address::GENERAL_CALL..=Address::GENERAL_CALL), 2);
        assert_eq!(
            quiet.describe(0),
            "all addresses, 0x00 (the general call) read-only"
        );
        all.protect(&(Address::Seven(0x50)..=Address::Seven(0x50)), 2);
        assert!(all.describe(0).starts_with("0x00 (read-only), 0x01-0x4f, "));
    }

    #[test]
    fn test_the_addresses_of_a_list() {
        let access = Access::new(&["a", "b"], &[grant(1, &[0x50]), grant(0, &[0x20])]).unwrap();
        let addresses: Vec<_> = access.addresses().collect();
        assert_eq!(
            addresses,
            [(Address::Seven(0x20), 0), (Address::Seven(0x50), 1)]
        );
    }
}
