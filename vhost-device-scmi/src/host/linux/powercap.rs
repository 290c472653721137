//! Power that is measured and limited, `/sys/class/powercap`, as RAPL is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::attribute::{Attribute, DIGITS, Mode, Number, Place, Switch};
use super::{OpenError, Opened, Root, entries, these};
use crate::host::{Driver, Error, PowercapDriver, Result};

/// The shortest time for which a power can be told from a counter of energy: RAPL's counts about
/// once a millisecond.
const SHORTEST: Duration = Duration::from_millis(2);

/// A zone of the kernel's, with what the kernel says of it.
#[derive(Debug)]
pub struct Zone {
    /// The lowest cap, in µW, if the kernel says so.
    pub min_uw: Option<u32>,
    /// The highest cap, in µW, if the kernel says so.
    pub max_uw: Option<u32>,
    /// The averaging interval, in microseconds, if the kernel says so.
    pub interval_us: Option<u32>,
    /// Whether the power is measured.
    pub monitoring: bool,
    /// The driver.
    pub driver: Capped,
}

/// Opens the zone `zone`: what its `name` says, or its name in the class (`intel-rapl:0`), or a
/// path. The cap is that of `constraint`, by its number or by its name (`long_term`), or the first
/// one. It can be set as `mode` says; the power is measured if `monitoring` and if it can be. Where
/// the kernel has no averaging interval, it is `interval_us`, in microseconds.
///
/// # Errors
/// When there is no such zone or constraint, with those that there are.
pub fn open(
    root: &Root,
    zone: &str,
    constraint: Option<&str>,
    mode: Mode,
    monitoring: bool,
    interval_us: u32,
) -> Opened<Zone> {
    let zone = root.device("sys/class/powercap", "name", zone)?;
    let names = entries(&zone)?;
    let constraint = find_constraint(&zone, &names, constraint)?;
    let of_constraint = |what: &str| zone.join(format!("constraint_{constraint}_{what}"));
    let cap_path = of_constraint("power_limit_uw");
    let interval_path = of_constraint("time_window_us");
    let interval_place = if interval_path.exists() {
        Place::at(&interval_path, mode)
    } else {
        Place::MEMORY
    };
    let enabled_path = zone.join("enabled");
    let enabled = enabled_path
        .exists()
        .then(|| Switch::open(Place::at(&enabled_path, mode), DIGITS, true))
        .transpose()?;
    let meter = if monitoring {
        Meter::open(&zone)?
    } else {
        None
    };
    let number = |what: &str| -> Opened<Option<u32>> {
        let attribute = Attribute::optional(&of_constraint(what))?;
        let number = attribute.and_then(|attribute| attribute.number().ok());
        let number = number.and_then(|number| u32::try_from(number).ok());
        Ok(number.filter(|&number| number > 0))
    };
    Ok(Zone {
        min_uw: number("min_power_uw")?,
        max_uw: number("max_power_uw")?,
        interval_us: number("time_window_us")?,
        monitoring: meter.is_some(),
        driver: Capped {
            cap: Number::open(Place::at(&cap_path, mode), 0)?,
            enabled,
            interval: Number::open(interval_place, interval_us.into())?,
            meter,
            backing: zone.display().to_string(),
        },
    })
}

fn find_constraint(
    zone: &std::path::Path,
    names: &[String],
    wanted: Option<&str>,
) -> Opened<String> {
    let numbers = names.iter().filter_map(|name| {
        let name = name.strip_prefix("constraint_")?;
        name.strip_suffix("_power_limit_uw")
    });
    let called: Vec<_> = numbers
        .map(|number| {
            let label = super::label_of(&zone.join(format!("constraint_{number}_name")));
            (number, label.unwrap_or_default())
        })
        .collect();
    let found = match wanted {
        None => called.first(),
        Some(wanted) => {
            let mut called = called.iter();
            called.find(|(number, label)| *number == wanted || label == wanted)
        }
    };
    found
        .map(|(number, _)| (*number).to_owned())
        .ok_or_else(|| {
            let constraints = called
                .iter()
                .map(|(number, label)| format!("{number} ({label})"));
            OpenError::unfit(format!(
                "{} has no constraint {:?}; {}",
                zone.display(),
                wanted.unwrap_or("0"),
                these(constraints)
            ))
        })
}

/// A power capping domain, on the kernel's files or a hook's.
#[derive(Debug)]
pub struct Capped {
    /// The cap.
    pub cap: Number,
    /// Whether there is capping.
    pub enabled: Option<Switch>,
    /// The averaging interval, in microseconds.
    pub interval: Number,
    /// What tells the power.
    pub meter: Option<Meter>,
    /// What it is called in `--check`.
    pub backing: String,
}

impl Driver for Capped {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl PowercapDriver for Capped {
    fn cap(&self) -> Result<Option<u32>> {
        match &self.enabled {
            Some(enabled) if !enabled.get()? => Ok(None),
            _ => self.cap.get_as().map(Some),
        }
    }

    fn set_cap(&self, cap: Option<u32>) -> Result<()> {
        let Some(cap) = cap else {
            let enabled = self.enabled.as_ref().ok_or(Error::NotSupported)?;
            return enabled.set(false);
        };
        self.cap.set(cap.into())?;
        match &self.enabled {
            Some(enabled) if !enabled.get()? => enabled.set(true),
            _ => Ok(()),
        }
    }

    fn pai_us(&self) -> Result<u32> {
        self.interval.get_as()
    }

    fn set_pai_us(&self, interval_us: u32) -> Result<()> {
        self.interval.set(interval_us.into())
    }

    fn power(&self) -> Result<u32> {
        let meter = self.meter.as_ref().ok_or(Error::NotSupported)?;
        let interval = Duration::from_micros(self.pai_us()?.into());
        meter.power(interval, Instant::now())
    }
}

/// What tells how much power is used.
#[derive(Debug)]
pub enum Meter {
    /// A file with the power.
    Power(Attribute),
    /// A counter of energy.
    Energy(Energy),
}

impl Meter {
    fn open(zone: &std::path::Path) -> Opened<Option<Self>> {
        if let Some(power) = Attribute::optional(&zone.join("power_uw"))? {
            return Ok(Some(Self::Power(power)));
        }
        let Some(counter) = Attribute::optional(&zone.join("energy_uj"))? else {
            return Ok(None);
        };
        let range = Attribute::optional(&zone.join("max_energy_range_uj"))?;
        let range = range.map(|range| range.number()).transpose()?;
        Ok(Some(Self::Energy(Energy {
            counter,
            range,
            history: Mutex::default(),
        })))
    }

    fn power(&self, interval: Duration, now: Instant) -> Result<u32> {
        match self {
            Self::Power(power) => {
                let number = power.number()?;
                u32::try_from(number).map_err(|_| power.says(number, "within bounds"))
            }
            Self::Energy(energy) => energy.power(interval, now),
        }
    }
}

/// A counter of energy, in µJ.
#[derive(Debug)]
pub struct Energy {
    counter: Attribute,
    /// Where the counter starts again from 0.
    range: Option<i64>,
    history: Mutex<History>,
}

/// Two readings of the counter: the older one is what the power is told from, the newer one
/// becomes it when it is an averaging interval old.
#[derive(Debug, Default)]
struct History {
    older: Option<(Instant, i64)>,
    newer: Option<(Instant, i64)>,
    power: u32,
}

impl Energy {
    fn power(&self, interval: Duration, now: Instant) -> Result<u32> {
        let energy = self.counter.number()?;
        // Poisoned or not, the readings are whole.
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(older), Some(newer)) = (history.older, history.newer) else {
            history.older = Some((now, energy));
            history.newer = history.older;
            return Ok(0);
        };
        if now.saturating_duration_since(newer.0) >= interval.max(SHORTEST) {
            history.older = Some(newer);
            history.newer = Some((now, energy));
        }
        let (since, before) = history.older.unwrap_or(older);
        let time = now.saturating_duration_since(since);
        if time >= SHORTEST {
            let used = match energy.checked_sub(before) {
                Some(used) if used >= 0 => used,
                // It has begun again.
                used => used
                    .unwrap_or(0)
                    .saturating_add(self.range.unwrap_or(0))
                    .max(0),
            };
            let power = i128::from(used) * 1_000_000 / time.as_micros().max(1) as i128;
            history.power = u32::try_from(power).unwrap_or(u32::MAX);
        }
        Ok(history.power)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    const ZONE: &str = "sys/class/powercap/intel-rapl:0";

    fn tree() -> Tree {
        let tree = Tree::new();
        tree.files(
            ZONE,
            &[
                ("name", "package-0"),
                ("enabled", "1"),
                ("energy_uj", "1000000"),
                ("max_energy_range_uj", "10000000"),
                ("constraint_0_name", "long_term"),
                ("constraint_0_power_limit_uw", "15000000"),
                ("constraint_0_max_power_uw", "28000000"),
                ("constraint_0_time_window_us", "27983872"),
                ("constraint_1_name", "short_term"),
                ("constraint_1_power_limit_uw", "35000000"),
            ],
        );
        tree
    }

    fn zone(tree: &Tree, constraint: Option<&str>) -> Opened<Zone> {
        open(
            &tree.root(),
            "package-0",
            constraint,
            Mode::Control,
            true,
            976,
        )
    }

    #[test]
    fn test_a_cap_is_set_and_turned_off() {
        let tree = tree();
        let found = zone(&tree, None).unwrap();
        assert_eq!((found.min_uw, found.max_uw), (None, Some(28_000_000)));
        assert_eq!(found.interval_us, Some(27_983_872));
        let capped = found.driver;
        assert_eq!(capped.cap().unwrap(), Some(15_000_000));
        capped.set_cap(Some(20_000_000)).unwrap();
        let limit = format!("{ZONE}/constraint_0_power_limit_uw");
        assert_eq!(tree.read(&limit), "20000000\n");
        capped.set_cap(None).unwrap();
        assert_eq!(tree.read(&format!("{ZONE}/enabled")), "0\n");
        assert_eq!(capped.cap().unwrap(), None);
        capped.set_cap(Some(10_000_000)).unwrap();
        assert_eq!(capped.cap().unwrap(), Some(10_000_000));
        capped.set_pai_us(1_000_000).unwrap();
        assert_eq!(capped.pai_us().unwrap(), 1_000_000);
        tree.write(&limit, "-1\n");
        assert!(matches!(capped.cap(), Err(Error::Hardware(_))));
    }

    #[test]
    fn test_constraints_have_names_and_numbers() {
        let tree = tree();
        for constraint in ["short_term", "1"] {
            let capped = zone(&tree, Some(constraint)).unwrap().driver;
            assert_eq!(capped.cap().unwrap(), Some(35_000_000));
            assert_eq!(capped.pai_us().unwrap(), 976);
            // It is remembered only.
            capped.set_pai_us(1000).unwrap();
            assert_eq!(capped.pai_us().unwrap(), 1000);
        }
        let error = zone(&tree, Some("peak")).unwrap_err().to_string();
        assert!(error.contains("0 (long_term), 1 (short_term)"), "{error}");
    }

    #[test]
    fn test_power_is_energy_by_time() {
        let tree = tree();
        let zone = tree.path(ZONE);
        let meter = Meter::open(&zone).unwrap().unwrap();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let at = |seconds: u32, energy: i64| {
            tree.write(&format!("{ZONE}/energy_uj"), format!("{energy}\n"));
            meter.power(second, start + second * seconds).unwrap()
        };
        assert_eq!(at(0, 1_000_000), 0);
        assert_eq!(at(2, 7_000_000), 3_000_000);
        // At once again: the same.
        assert_eq!(at(2, 7_000_000), 3_000_000);
        // The counter has begun again at 10 J: 7 to 10, and 1 more in a second.
        assert_eq!(at(3, 1_000_000), 4_000_000);
        assert_eq!(at(4, 1_000_000), 0);
    }

    #[test]
    fn test_a_zone_need_not_be_measured() {
        let tree = tree();
        tree.remove(&format!("{ZONE}/energy_uj"));
        let found = zone(&tree, None).unwrap();
        assert!(!found.monitoring);
        assert!(matches!(found.driver.power(), Err(Error::NotSupported)));
    }
}
