//! Which guest may do what with a resource.

use std::collections::BTreeMap;

/// A guest, counted from 0 in the order of their sockets. SCMI's agents are counted from 1, as 0
/// is the platform.
pub type Guest = usize;

/// What a guest may do with a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// It is not there for the guest.
    #[default]
    None,
    /// The guest sees it and reads it; what would change it is `DENIED`.
    Read,
    /// The guest may change it, too.
    Control,
}

/// What each guest may do with a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    others: Access,
    guests: BTreeMap<Guest, Access>,
}

impl Permissions {
    /// The same for all guests.
    pub fn all(access: Access) -> Self {
        Self {
            others: access,
            guests: BTreeMap::new(),
        }
    }

    /// What is different for one guest.
    #[must_use]
    pub fn with(mut self, guest: Guest, access: Access) -> Self {
        self.guests.insert(guest, access);
        self
    }

    /// What `guest` may do.
    pub fn of(&self, guest: Guest) -> Access {
        self.guests.get(&guest).copied().unwrap_or(self.others)
    }

    /// The guests for which something else holds than for all others.
    pub fn exceptions(&self) -> impl Iterator<Item = (Guest, Access)> {
        self.guests.iter().map(|(&guest, &access)| (guest, access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_what_is_said_of_one_guest_holds_for_no_other() {
        let permissions = Permissions::all(Access::Read)
            .with(1, Access::Control)
            .with(2, Access::None);
        let all: Vec<_> = (0..4).map(|guest| permissions.of(guest)).collect();
        let expected = [Access::Read, Access::Control, Access::None, Access::Read];
        assert_eq!(all, expected);
        assert_eq!(Permissions::default().of(0), Access::None);
    }
}
