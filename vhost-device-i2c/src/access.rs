//! Which addresses a guest reaches, on which bus, and which of them it may only read.

use std::ops::RangeInclusive;

use crate::address::Address;

/// Addresses of one bus that guests may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The position of the bus in the list of all.
    pub bus: usize,
    /// Which addresses; all of them when empty.
    pub ranges: Vec<RangeInclusive<Address>>,
}

/// An address that may only be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOnly {
    /// Which.
    pub address: Address,
    /// How many bytes a write may have: those that say where the next read begins.
    pub pointer: usize,
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
    /// What nobody may use need not be protected: likely a mistyped address.
    #[error("the address {0} of --read-only is on no bus of --device-list")]
    Nowhere(Address),
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
    /// When an address would be on two buses, or a read-only one on none.
    pub fn new(
        names: &[&str],
        grants: &[Grant],
        read_only: &[ReadOnly],
    ) -> Result<Self, AccessError> {
        let mut access = Self(vec![None; Address::COUNT]);
        for grant in grants {
            access.add(names, grant)?;
        }
        for protected in read_only {
            access.protect(protected)?;
        }
        Ok(access)
    }

    fn add(&mut self, names: &[&str], grant: &Grant) -> Result<(), AccessError> {
        let ranges = &grant.ranges;
        let granted =
            |address| ranges.is_empty() || ranges.iter().any(|range| range.contains(&address));
        let name = |bus: usize| names.get(bus).copied().unwrap_or_default().to_owned();
        for (place, address) in self.0.iter_mut().zip(Address::all()) {
            if !granted(address) {
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

    fn protect(&mut self, protected: &ReadOnly) -> Result<(), AccessError> {
        let route = self.0.get_mut(protected.address.index());
        let route = route.and_then(Option::as_mut);
        let route = route.ok_or(AccessError::Nowhere(protected.address))?;
        route.longest_write = Some(protected.pointer);
        Ok(())
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
        let access = Access::new(&["a", "b"], &grants, &[]).unwrap();
        let bus = |number| access.route(Address::Seven(number)).map(|route| route.bus);
        assert_eq!([0x50, 0x51, 0x20].map(bus), [Some(0); 3]);
        assert_eq!(bus(0x48), Some(1));
        assert_eq!(bus(0x49), None);
        assert_eq!(access.route(Address::Ten(0x50)), None);
    }

    #[test]
    fn test_a_bus_without_addresses_has_them_all() {
        let access = Access::new(&["a"], &[grant(0, &[])], &[]).unwrap();
        assert!(Address::all().all(|address| access.route(address).is_some()));
    }

    #[test]
    fn test_an_address_on_two_buses_is_refused_with_both_names() {
        for second in [grant(1, &[0x51, 0x50]), grant(1, &[])] {
            let grants = [grant(0, &[0x50]), second];
            let error = Access::new(&["left", "right"], &grants, &[]).unwrap_err();
            let text = error.to_string();
            for part in ["0x50", "left", "right"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn test_a_read_only_address_lets_its_pointer_through() {
        let read_only = |number, pointer| ReadOnly {
            address: Address::Seven(number),
            pointer,
        };
        let grants = [grant(0, &[0x50, 0x51])];
        let access = Access::new(&["a"], &grants, &[read_only(0x50, 1)]).unwrap();
        let may = |number, length| {
            let route = access.route(Address::Seven(number)).unwrap();
            route.may_write(length)
        };
        assert!(may(0x50, 0) && may(0x50, 1) && !may(0x50, 2));
        assert!(may(0x51, 8192));
        let nowhere = Access::new(&["a"], &grants, &[read_only(0x52, 1)]);
        assert_eq!(
            nowhere.unwrap_err(),
            AccessError::Nowhere(Address::Seven(0x52))
        );
    }
}
