//! Makes a platform from a file: each resource, and what it needs opened.
//!
//! | module | makes |
//! |---|---|
//! | `sensor` to `pinctrl` | the resources of one protocol each |
//! | `open` | what several of them need: files of hooks, GPIO lines, switches |
//! | `wave` | the wave forms of simulated numbers |
//! | `guests` | which guests may read and control a resource |

use std::cell::RefCell;

use toml::Spanned;

use self::guests::Guests;
use super::file::{File, Table};
use super::{Checked, Problem, Site, Span};
use crate::host::linux::attribute::Mode;
use crate::host::linux::iio::Buffers;
use crate::host::{Guest, Platform, Resource, ResourceId};

mod clock;
mod guests;
mod open;
mod performance;
mod pinctrl;
mod power;
mod powercap;
mod reset;
mod sensor;
mod system;
mod voltage;
mod wave;

/// The tables of which a file may have several.
pub(super) const LISTS: [&str; 7] = [
    "sensor",
    "clock",
    "power",
    "performance",
    "reset",
    "voltage",
    "powercap",
];

/// The tables of which it has one.
pub(super) const SINGLES: [&str; 2] = ["system", "pinctrl"];

/// Makes the platform of a file, for guests below `guests`. Also returns a problem for each thing
/// that [`Site::looks`] did not find.
pub(super) fn platform(
    site: &Site<'_>,
    file: File,
    guests: Guest,
) -> Checked<(Platform, Vec<Problem>)> {
    let mut builder = Builder {
        site: *site,
        clocks: names(&file.clock),
        powercaps: names(&file.powercap),
        names: Names::default(),
        not_here: RefCell::default(),
        resource: None,
        guests: Guests::new(&file, guests)?,
        buffers: Buffers::default(),
        buffered: (0..0, None),
    };
    let vendor = builder.names.vendor("vendor", file.vendor);
    let sub_vendor = builder.names.vendor("sub-vendor", file.sub_vendor);
    // The order in which the daemon opens them: the user reads the first problem.
    let sensors = builder.all("sensor", ResourceId::Sensor, file.sensor, Builder::sensor)?;
    let clocks = builder.all("clock", ResourceId::Clock, file.clock, Builder::clock)?;
    let powers = builder.all(
        "power domain",
        ResourceId::Power,
        file.power,
        Builder::power,
    )?;
    let performances = builder.all(
        "performance domain",
        ResourceId::Performance,
        file.performance,
        Builder::performance,
    )?;
    let resets = builder.all(
        "reset domain",
        ResourceId::Reset,
        file.reset,
        Builder::reset,
    )?;
    let voltages = builder.all(
        "voltage domain",
        ResourceId::Voltage,
        file.voltage,
        Builder::voltage,
    )?;
    let powercaps = builder.all(
        "power capping domain",
        ResourceId::Powercap,
        file.powercap,
        Builder::powercap,
    )?;
    let system = file.system.map(|table| builder.system(table));
    let system = system.transpose()?;
    let pinctrl = file.pinctrl.map(|table| {
        builder.one(
            "pin controller",
            ResourceId::Pinctrl,
            table,
            Builder::pinctrl,
        )
    });
    let platform = Platform {
        vendor,
        sub_vendor,
        powers,
        system,
        performances,
        clocks,
        sensors,
        resets,
        voltages,
        powercaps,
        pinctrl: pinctrl.transpose()?,
    };
    platform.check().map_err(|invalid| {
        let span = builder.names.find(invalid.protocol, &invalid.name);
        Problem {
            beside: invalid.key,
            ..Problem::at(&span, invalid)
        }
    })?;
    // Last, as it turns hardware on.
    builder.start_buffers()?;
    Ok((platform, builder.not_here.into_inner()))
}

/// The names of a list's resources, for those that name each other.
fn names<T: Table>(list: &[Spanned<T>]) -> Vec<String> {
    let names = list.iter().map(|table| table.get_ref().name().get_ref());
    names.cloned().collect()
}

/// Where the names of resources are in the file, by protocol.
#[derive(Debug, Default)]
struct Names(Vec<(&'static str, String, Span)>);

impl Names {
    fn add(&mut self, protocol: &'static str, name: &Spanned<String>) {
        self.0.push((protocol, name.get_ref().clone(), name.span()));
    }

    /// Takes what the platform calls itself, and remembers it as a resource of its own kind.
    fn vendor(&mut self, what: &'static str, name: Option<Spanned<String>>) -> String {
        let Some(name) = name else {
            return String::new();
        };
        self.add(what, &name);
        name.into_inner()
    }

    /// The last resource of a protocol with this name: where two have it, the second is wrong.
    fn find(&self, protocol: &str, name: &str) -> Span {
        let mut names = self.0.iter().rev();
        let found = names.find(|(other, called, _)| *other == protocol && called == name);
        found.map_or(0..0, |(.., span)| span.clone())
    }
}

/// Makes resources.
#[derive(Debug)]
struct Builder<'a> {
    site: Site<'a>,
    guests: Guests,
    /// The names of all clocks and power capping domains, which name each other.
    clocks: Vec<String>,
    powercaps: Vec<String>,
    /// Where the resources are that it has made so far.
    names: Names,
    /// The resource that it makes now.
    resource: Option<ResourceId>,
    /// What it looked for and did not find.
    not_here: RefCell<Vec<Problem>>,
    buffers: Buffers,
    /// Where the file asks for the last of the buffers, and for which resource.
    buffered: (Span, Option<ResourceId>),
}

impl Builder<'_> {
    /// Makes all resources of one kind.
    fn all<T: Table, K>(
        &mut self,
        protocol: &'static str,
        id: impl Fn(usize) -> ResourceId,
        tables: Vec<Spanned<T>>,
        make: impl Fn(&mut Self, &Span, T, Mode) -> Checked<K>,
    ) -> Checked<Vec<Resource<K>>> {
        let tables = tables.into_iter().enumerate();
        let resources = tables.map(|(number, table)| self.one(protocol, id(number), table, &make));
        resources.collect()
    }

    /// Makes the resource of one table.
    fn one<T: Table, K>(
        &mut self,
        protocol: &'static str,
        id: ResourceId,
        table: Spanned<T>,
        make: impl Fn(&mut Self, &Span, T, Mode) -> Checked<K>,
    ) -> Checked<Resource<K>> {
        let (span, table) = (table.span(), table.into_inner());
        self.names.add(protocol, table.name());
        let name = table.name().get_ref().clone();
        let permissions = self.guests.permissions(table.read(), table.control())?;
        self.resource = Some(id);
        let kind = make(self, &span, table, self.mode(&permissions))?;
        Ok(Resource {
            name,
            permissions,
            kind,
        })
    }

    /// Turns on the buffers that sensors read from.
    fn start_buffers(&mut self) -> Checked<()> {
        let buffers = std::mem::take(&mut self.buffers);
        let (span, resource) = self.buffered.clone();
        self.resource = resource;
        let started = if self.site.looks {
            buffers.look(self.site.root)
        } else {
            buffers.start(self.site.root)
        };
        self.opened(started, &span)?;
        Ok(())
    }
}
