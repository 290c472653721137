//! Which guests may read and control a resource, as the file says.

use toml::Spanned;

use crate::host::{Access, Guest, Permissions};
use crate::platform::file::{File, GuestKey, Who};
use crate::platform::{Checked, Problem};

/// The guests, and what they may do with a resource that does not say it.
#[derive(Debug)]
pub(super) struct Guests {
    count: Guest,
    names: Vec<String>,
    read: Option<Who>,
    control: Option<Who>,
}

impl Guests {
    pub(super) fn new(file: &File, count: Guest) -> Checked<Self> {
        let mut names = Vec::new();
        if let Some(list) = &file.guests {
            if list.get_ref().len() != count {
                let named = list.get_ref().len();
                return Err(Problem::at(
                    &list.span(),
                    format!(
                        "it names {}, and there {}: write as many names as --socket-count says, \
                         or --socket-count {named}",
                        counted(named, "guest"),
                        are_counted(count, "socket")
                    ),
                ));
            }
            for name in list.get_ref() {
                if names.contains(name.get_ref()) {
                    let why = format!("two guests are called {:?}", name.get_ref());
                    return Err(Problem::at(&name.span(), why));
                }
                names.push(name.get_ref().clone());
            }
        }
        Ok(Self {
            count,
            names,
            read: file.read.clone(),
            control: file.control.clone(),
        })
    }

    /// Who may read and control a resource. Keys of the resource come first, then those at the top
    /// of the file; without either, all guests read and none controls.
    ///
    /// A guest that controls a resource also reads it. But if the resource itself says who reads
    /// it, a `control` at the top of the file lets nobody else in.
    pub(super) fn permissions(
        &self,
        read: &Option<Who>,
        control: &Option<Who>,
    ) -> Checked<Permissions> {
        let general = control.is_none() && read.is_some();
        let read = read.as_ref().or(self.read.as_ref()).unwrap_or(&Who::All);
        let control = control.as_ref().or(self.control.as_ref());
        let control = control.unwrap_or(&Who::None);
        let (read_all, readers) = self.those(read)?;
        let (control_all, controllers) = self.those(control)?;
        let access = |reads: bool, controls: bool| match (reads, controls) {
            (false, true) if general => Access::None,
            (_, true) => Access::Control,
            (true, false) => Access::Read,
            (false, false) => Access::None,
        };
        let others = access(read_all, control_all);
        let mut permissions = Permissions::all(others);
        for &guest in readers.iter().chain(&controllers) {
            let reads = read_all || readers.contains(&guest);
            let controls = control_all || controllers.contains(&guest);
            permissions = permissions.with(guest, access(reads, controls));
        }
        Ok(permissions)
    }

    /// Whether these are all guests; otherwise, which.
    fn those(&self, who: &Who) -> Checked<(bool, Vec<Guest>)> {
        Ok(match who {
            Who::All => (true, Vec::new()),
            Who::None => (false, Vec::new()),
            Who::These(guests) => {
                let guests = guests.iter().map(|guest| self.find(guest));
                (false, guests.collect::<Checked<_>>()?)
            }
        })
    }

    fn find(&self, guest: &Spanned<GuestKey>) -> Checked<Guest> {
        let number = match guest.get_ref() {
            GuestKey::Number(number) => usize::try_from(*number).ok(),
            GuestKey::Name(name) => self.names.iter().position(|other| other == name),
        };
        let number = number.filter(|number| *number < self.count);
        number.ok_or_else(|| {
            let why = match guest.get_ref() {
                GuestKey::Number(number) => {
                    format!(
                        "there is no guest {number}: there {}, from 0",
                        are_counted(self.count, "guest")
                    )
                }
                GuestKey::Name(name) if self.names.is_empty() => format!(
                    "there is no guest {name:?}: write `guests = […]` with the names of all at \
                     the top of the file, or the guest's number"
                ),
                GuestKey::Name(name) => {
                    format!(
                        "there is no guest {name:?}; there is {}",
                        self.names.join(", ")
                    )
                }
            };
            Problem::at(&guest.span(), why)
        })
    }
}

/// A number of things: `1 guest`, `2 guests`.
fn counted(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// The same behind "there".
fn are_counted(number: usize, what: &str) -> String {
    let are = if number == 1 { "is" } else { "are" };
    format!("{are} {}", counted(number, what))
}

/// Whether any guest may control a resource. The daemon opens others for reading alone.
pub(super) fn is_controlled(permissions: &Permissions) -> bool {
    let others = permissions.of(Guest::MAX);
    others == Access::Control
        || permissions
            .exceptions()
            .any(|(_, access)| access == Access::Control)
}
