//! `--check`: what each guest is given, as a table or as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::host::{
    Access, Clock, Driver, Guest, Intervals, Levels, Performance, Pinctrl, Platform, Power,
    Powercap, Rates, Reset, Resource, ResourceId, Sensor, Shape, SystemPower, Voltage,
};
use crate::platform::NotHere;

const HEAD: [&str; 7] = [
    "GUEST",
    "PROTOCOL",
    "ID",
    "NAME",
    "ACCESS",
    "WHAT",
    "BEHIND IT",
];

/// What a resource is, in a few words.
trait Words {
    fn words(&self) -> String;
    fn driver(&self) -> Option<&dyn Driver>;
}

impl Words for Power {
    fn words(&self) -> String {
        format!("{} states", self.states.len())
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for SystemPower {
    fn words(&self) -> String {
        format!("{} s to shut down", self.timeout.as_secs())
    }

    fn driver(&self) -> Option<&dyn Driver> {
        self.driver.as_deref().map(|driver| driver as &dyn Driver)
    }
}

impl Words for Performance {
    fn words(&self) -> String {
        let how = if self.level_indexing {
            ", by index"
        } else {
            ""
        };
        let level =
            |level: Option<&crate::host::PerformanceLevel>| level.map_or(0, |level| level.level);
        let (first, last) = (level(self.levels.first()), level(self.levels.last()));
        format!("{} levels {first}..{last}{how}", self.levels.len())
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Clock {
    fn words(&self) -> String {
        let rates = match &self.rates {
            Rates::Discrete(rates) => match rates.as_slice() {
                [rate] => format!("{rate} Hz"),
                rates => format!("{} rates", rates.len()),
            },
            Rates::Range { min, max, step } => format!("{min}..{max} Hz by {step}"),
        };
        match self.parents.len() {
            0 => rates,
            parents => format!("{rates}, {parents} parents"),
        }
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Sensor {
    fn words(&self) -> String {
        let mut words = match &self.shape {
            Shape::Scalar(quantity) => format!("{} 10^{}", quantity.unit, quantity.scale),
            Shape::Axes(axes) => {
                let quantity = axes.first().map(|axis| &axis.quantity);
                let unit = quantity.map_or(String::new(), |quantity| {
                    format!(" {} 10^{}", quantity.unit, quantity.scale)
                });
                format!("{} axes{unit}", axes.len())
            }
        };
        if self.trip_points > 0 {
            // A `String` takes everything.
            let _ = write!(words, ", {} trip points", self.trip_points);
        }
        if self.updates {
            words += ", updates";
            if let Intervals::Discrete(list) = &self.intervals
                && let Some(shortest) = list.first()
            {
                let _ = write!(words, " from {shortest:?}");
            }
        }
        words
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Reset {
    fn words(&self) -> String {
        match (self.autonomous, self.explicit) {
            (true, true) => "pulse or hold",
            (true, false) => "pulse",
            _ => "hold",
        }
        .to_owned()
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Voltage {
    fn words(&self) -> String {
        match &self.levels {
            Levels::Discrete(levels) => match levels.as_slice() {
                [level] => format!("{level} µV"),
                levels => format!("{} voltages", levels.len()),
            },
            Levels::Range { min, max, step } => format!("{min}..{max} µV by {step}"),
        }
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Powercap {
    fn words(&self) -> String {
        let unit = match self.power_scale {
            crate::host::PowerScale::Abstract => "",
            crate::host::PowerScale::Milliwatts => " mW",
            crate::host::PowerScale::Microwatts => " µW",
        };
        format!("{}..{}{unit}", self.min_cap, self.max_cap)
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

impl Words for Pinctrl {
    fn words(&self) -> String {
        let (pins, groups, functions) = (&self.pins, &self.groups, &self.functions);
        let counts = [pins.len(), groups.len(), functions.len()];
        let [pins, groups, functions] = counts;
        format!("{pins} pins, {groups} groups, {functions} functions")
    }

    fn driver(&self) -> Option<&dyn Driver> {
        Some(&*self.driver)
    }
}

/// What it is, when it is not here.
const UNKNOWN: &str = "?";

/// What `--check` says. Serialized, this is the JSON that the documentation promises.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What a program that reads this has to understand.
    format: u32,
    guests: Vec<Given>,
    not_here: Vec<Missing>,
}

/// What a guest is given.
#[derive(Debug, Serialize)]
struct Given {
    guest: Guest,
    resources: Vec<Row>,
}

/// A resource, as a guest sees it.
#[derive(Debug, Serialize)]
struct Row {
    protocol: &'static str,
    number: u8,
    id: usize,
    name: String,
    access: &'static str,
    /// `None` when it is not here: much of it only the hardware can say.
    what: Option<String>,
    behind: Option<String>,
    here: bool,
}

/// What is not on this machine.
#[derive(Debug, Serialize)]
struct Missing {
    /// `None` when it is an option that asks for it.
    line: Option<usize>,
    key: String,
    reason: String,
    /// All of it, for people.
    #[serde(skip)]
    text: String,
}

/// The platform, and what of it is not here.
#[derive(Clone, Copy)]
struct Source<'a> {
    platform: &'a Platform,
    not_here: &'a [NotHere],
}

impl Source<'_> {
    /// What a guest is given of one protocol.
    fn add<T: Words>(
        self,
        rows: &mut Vec<Row>,
        guest: Guest,
        (protocol, number): (&'static str, u8),
        resources: &[Resource<T>],
        id_of: impl Fn(usize) -> ResourceId,
    ) {
        let mut id = 0;
        for (position, resource) in resources.iter().enumerate() {
            let access = match resource.permissions.of(guest) {
                Access::None => continue,
                Access::Read => "read",
                Access::Control => "control",
            };
            let resource_id = Some(id_of(position));
            let here = !self.not_here.iter().any(|it| it.resource == resource_id);
            rows.push(Row {
                protocol,
                number,
                id,
                name: resource.name.clone(),
                access,
                what: here.then(|| resource.kind.words()),
                behind: resource.kind.driver().map(Driver::backing),
                here,
            });
            id += 1;
        }
    }

    fn given(self, guest: Guest) -> Given {
        let Platform {
            powers,
            system,
            performances,
            clocks,
            sensors,
            resets,
            voltages,
            powercaps,
            pinctrl,
            ..
        } = self.platform;
        let rows = &mut Vec::new();
        self.add(rows, guest, ("power", 0x11), powers, ResourceId::Power);
        let system = system.as_slice();
        self.add(rows, guest, ("system", 0x12), system, |_| {
            ResourceId::System
        });
        let performance = ResourceId::Performance;
        self.add(
            rows,
            guest,
            ("performance", 0x13),
            performances,
            performance,
        );
        self.add(rows, guest, ("clock", 0x14), clocks, ResourceId::Clock);
        self.add(rows, guest, ("sensor", 0x15), sensors, ResourceId::Sensor);
        self.add(rows, guest, ("reset", 0x16), resets, ResourceId::Reset);
        self.add(
            rows,
            guest,
            ("voltage", 0x17),
            voltages,
            ResourceId::Voltage,
        );
        let powercap = ResourceId::Powercap;
        self.add(rows, guest, ("powercap", 0x18), powercaps, powercap);
        let pinctrl = pinctrl.as_slice();
        self.add(rows, guest, ("pinctrl", 0x19), pinctrl, |_| {
            ResourceId::Pinctrl
        });
        Given {
            guest,
            resources: std::mem::take(rows),
        }
    }
}

impl Report {
    /// What each of `guests` guests is given of a platform, and what of it is not here.
    pub(crate) fn new(platform: &Platform, guests: usize, not_here: Vec<NotHere>) -> Self {
        let source = Source {
            platform,
            not_here: &not_here,
        };
        let guests = (0..guests).map(|guest| source.given(guest)).collect();
        let missing = |not_here: NotHere| Missing {
            text: not_here.to_string(),
            line: Some(not_here.line).filter(|line| *line != 0),
            key: not_here.key,
            reason: not_here.reason,
        };
        Self {
            format: 1,
            guests,
            not_here: not_here.into_iter().map(missing).collect(),
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        // It has no keys but names, and nothing else fails.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![HEAD.map(str::to_owned)];
        for Given { guest, resources } in &self.guests {
            if resources.is_empty() {
                let mut row = <[String; 7]>::default();
                let [number, what, ..] = &mut row;
                *number = guest.to_string();
                *what = "nothing".to_owned();
                rows.push(row);
            }
            rows.extend(resources.iter().map(|row| {
                [
                    guest.to_string(),
                    format!("{} {:#x}", row.protocol, row.number),
                    row.id.to_string(),
                    row.name.clone(),
                    row.access.to_owned(),
                    row.what.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
                    match (&row.behind, row.here) {
                        (None, _) => "nothing".to_owned(),
                        (Some(behind), true) => behind.clone(),
                        (Some(behind), false) => format!("{behind} (not here)"),
                    },
                ]
            }));
        }
        let mut text = aligned(&rows);
        if !self.not_here.is_empty() {
            text += "\nNot on this machine, or not as the platform wants it. A start is refused there:\n";
            text.extend(
                self.not_here
                    .iter()
                    .map(|missing| format!("- {}\n", missing.text)),
            );
        }
        text
    }
}

/// Cells below each other.
fn aligned(rows: &[[String; 7]]) -> String {
    let mut widths = [0; 7];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Permissions, sim};

    #[test]
    fn test_each_guest_has_its_own_numbers() {
        let mut platform = sim::platform();
        let none = Permissions::all(Access::None);
        platform.clocks[0].permissions = none.clone().with(0, Access::Read);
        platform.sensors.truncate(1);
        platform.sensors[0].permissions = none;
        let table = Report::new(&platform, 2, Vec::new()).table();
        let row = |guest: &str, name: &str| {
            let mut lines = table.lines().map(|line| line.split_whitespace().collect());
            lines.find(|cells: &Vec<_>| cells[0] == guest && cells.get(4) == Some(&name))
        };
        assert_eq!(row("0", "osc").unwrap()[3..6], ["0", "osc", "read"]);
        assert_eq!(row("0", "pll").unwrap()[3..6], ["1", "pll", "control"]);
        assert_eq!(row("1", "osc"), None);
        assert_eq!(row("1", "pll").unwrap()[3..6], ["0", "pll", "control"]);
        assert!(!table.contains("sensor"), "{table}");
        assert!(table.starts_with("GUEST  PROTOCOL"), "{table}");
    }

    #[test]
    fn test_a_guest_that_is_given_nothing_is_named() {
        let table = Report::new(&Platform::default(), 2, Vec::new()).table();
        let lines: Vec<_> = table.lines().skip(1).collect();
        assert_eq!(lines, ["0      nothing", "1      nothing"]);
    }

    #[test]
    fn test_json_has_what_the_documentation_promises() {
        let sim = sim::platform();
        let platform = Platform {
            clocks: sim.clocks[..2].to_vec(),
            ..Platform::default()
        };
        let not_here = NotHere {
            line: 7,
            key: "sensor[0].hwmon".to_owned(),
            reason: "there is none".to_owned(),
            resource: Some(ResourceId::Clock(0)),
        };
        let option = NotHere::of_option("--device iio,path=/x", &std::io::Error::other("gone"));
        let json = Report::new(&platform, 1, vec![not_here, option]).json();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({
            "format": 1,
            "guests": [{
                "guest": 0,
                "resources": [{
                    "protocol": "clock",
                    "number": 0x14,
                    "id": 0,
                    "name": "osc",
                    "access": "control",
                    "what": null,
                    "behind": "simulated",
                    "here": false,
                }, {
                    "protocol": "clock",
                    "number": 0x14,
                    "id": 1,
                    "name": "pll",
                    "access": "control",
                    "what": "100000000..2000000000 Hz by 1000000",
                    "behind": "simulated",
                    "here": true,
                }],
            }],
            "not_here": [
                { "line": 7, "key": "sensor[0].hwmon", "reason": "there is none" },
                { "line": null, "key": "--device iio,path=/x", "reason": "gone" },
            ],
        });
        assert_eq!(json, expected);
    }
}
