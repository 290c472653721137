//! `--check`: what each guest is given, in a table.

use std::fmt::Write;

use crate::host::{
    Access, Clock, Driver, Guest, Intervals, Levels, Performance, Pinctrl, Platform, Power,
    Powercap, Rates, Reset, Resource, Sensor, Shape, SystemPower, Voltage,
};

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

type Row = [String; 7];

fn add<T: Words>(
    rows: &mut Vec<Row>,
    guest: Guest,
    protocol: &str,
    resources: impl IntoIterator<Item = impl std::borrow::Borrow<Resource<T>>>,
) {
    let mut id = 0;
    for resource in resources {
        let resource = resource.borrow();
        let access = match resource.permissions.of(guest) {
            Access::None => continue,
            Access::Read => "read",
            Access::Control => "control",
        };
        let behind = resource.kind.driver();
        rows.push([
            guest.to_string(),
            protocol.to_owned(),
            id.to_string(),
            resource.name.clone(),
            access.to_owned(),
            resource.kind.words(),
            behind.map_or_else(|| "nothing".to_owned(), Driver::backing),
        ]);
        id += 1;
    }
}

/// What each of `guests` guests is given.
pub(crate) fn table(platform: &Platform, guests: usize) -> String {
    let mut rows: Vec<Row> = vec![HEAD.map(str::to_owned)];
    for guest in 0..guests {
        let before = rows.len();
        add(&mut rows, guest, "power 0x11", &platform.powers);
        add(&mut rows, guest, "system 0x12", &platform.system);
        add(&mut rows, guest, "performance 0x13", &platform.performances);
        add(&mut rows, guest, "clock 0x14", &platform.clocks);
        add(&mut rows, guest, "sensor 0x15", &platform.sensors);
        add(&mut rows, guest, "reset 0x16", &platform.resets);
        add(&mut rows, guest, "voltage 0x17", &platform.voltages);
        add(&mut rows, guest, "powercap 0x18", &platform.powercaps);
        add(&mut rows, guest, "pinctrl 0x19", &platform.pinctrl);
        if rows.len() == before {
            let mut row = Row::default();
            let [number, what, ..] = &mut row;
            *number = guest.to_string();
            *what = "nothing".to_owned();
            rows.push(row);
        }
    }
    let mut widths = [0; 7];
    for row in &rows {
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
        let table = table(&platform, 2);
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
        let table = table(&Platform::default(), 2);
        let lines: Vec<_> = table.lines().skip(1).collect();
        assert_eq!(lines, ["0      nothing", "1      nothing"]);
    }
}
