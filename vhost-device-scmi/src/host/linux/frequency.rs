//! What runs at several frequencies: processors through cpufreq, all else through devfreq.
//!
//! A level is set by making it the lowest and the highest frequency that the host's governor may
//! choose, which works with every governor. Until a guest sets one, the governor chooses between
//! the limits.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhost_device_backend::Turns;

use super::attribute::{Attribute, Mode, Number, Place, Window, parse_number};
use super::{OpenError, Opened, Root};
use crate::host::{Driver, Error, Limits, PerformanceDriver, Result};

/// How much less than a level's frequency a measured one may be, as its part: counters are not
/// exact.
const TOLERANCE: i64 = 100;

/// Something whose frequency can be limited, with what the kernel says of it.
#[derive(Debug)]
pub struct Scaling {
    /// What the kernel says of it.
    pub known: Known,
    /// The kernel's numbers for its frequencies.
    exact: Vec<i64>,
    /// How many of the kernel's units a kHz has.
    per_khz: i64,
    current: Attribute,
    window: Window,
    backing: String,
}

/// What the kernel says of something whose frequency can be limited.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The frequencies that it has, in kHz, from the lowest to the highest; empty when the kernel
    /// has no table and takes any.
    pub frequencies_khz: Vec<u32>,
    /// The lowest and the highest that the hardware has, in kHz, if the kernel says so.
    pub range_khz: Option<(u32, u32)>,
    /// The time that a change takes, in microseconds; 0 when that is not known.
    pub latency_us: u16,
}

/// The processors of a cpufreq policy: `policy0`, or a path. It can be set as `mode` says.
///
/// # Errors
/// When there is no such policy, with those that there are.
pub fn cpufreq(root: &Root, policy: &str, mode: Mode) -> Opened<Scaling> {
    let policy = root.device("sys/devices/system/cpu/cpufreq", "affected_cpus", policy)?;
    let file = |name: &str| policy.join(name);
    let mut scaling = Scaling::open(&policy, mode, &CPUFREQ)?;
    // The kernel's is in ns, or all ones when it is not known.
    let latency = number(&file("cpuinfo_transition_latency"))?;
    let latency = latency.filter(|&ns| ns < i64::from(u32::MAX)).unwrap_or(0);
    scaling.known.latency_us = u16::try_from((latency + 999) / 1000).unwrap_or(u16::MAX);
    let range = number(&file("cpuinfo_min_freq"))?.zip(number(&file("cpuinfo_max_freq"))?);
    scaling.known.range_khz =
        range.and_then(|(min, max)| Some((min.try_into().ok()?, max.try_into().ok()?)));
    Ok(scaling)
}

/// A device of `/sys/class/devfreq`, by its name there, or a path. It can be set as `mode` says.
///
/// # Errors
/// When there is no such device, with those that there are.
pub fn devfreq(root: &Root, device: &str, mode: Mode) -> Opened<Scaling> {
    let device = root.device("sys/class/devfreq", "name", device)?;
    Scaling::open(&device, mode, &DEVFREQ)
}

/// What the files are called, and in what they count.
struct Names {
    available: &'static str,
    current: &'static str,
    min: &'static str,
    max: &'static str,
    per_khz: i64,
}

const CPUFREQ: Names = Names {
    available: "scaling_available_frequencies",
    current: "scaling_cur_freq",
    min: "scaling_min_freq",
    max: "scaling_max_freq",
    per_khz: 1,
};

const DEVFREQ: Names = Names {
    available: "available_frequencies",
    current: "cur_freq",
    min: "min_freq",
    max: "max_freq",
    per_khz: 1000,
};

fn number(path: &Path) -> Opened<Option<i64>> {
    let attribute = Attribute::optional(path)?;
    Ok(attribute.and_then(|attribute| attribute.number().ok()))
}

impl Scaling {
    fn open(directory: &Path, mode: Mode, names: &Names) -> Opened<Self> {
        let file = |name: &str| directory.join(name);
        let exact = match Attribute::optional(&file(names.available))? {
            Some(available) => frequencies(&available)?,
            None => Vec::new(),
        };
        let khz = exact.iter().map(|&number| {
            u32::try_from(number / names.per_khz).map_err(|_| {
                let path = file(names.available);
                OpenError::unfit(format!("{} says {number}: too high", path.display()))
            })
        });
        let (min, max) = (file(names.min), file(names.max));
        Ok(Self {
            known: Known {
                frequencies_khz: khz.collect::<Opened<_>>()?,
                ..Known::default()
            },
            exact,
            per_khz: names.per_khz,
            current: Attribute::to_read(&file(names.current))?,
            window: Window::new(
                Number::open(Place::at(&min, mode), 0)?,
                Number::open(Place::at(&max, mode), 0)?,
            ),
            backing: directory.display().to_string(),
        })
    }

    /// The driver for a domain with these levels, in kHz, from the slowest to the fastest.
    pub fn driver(self, levels_khz: &[u32]) -> Frequency {
        let exact = |&khz: &u32| {
            let known = &self.known.frequencies_khz;
            let known = known.iter().position(|other| *other == khz);
            let known = known.and_then(|position| self.exact.get(position));
            known.copied().unwrap_or(i64::from(khz) * self.per_khz)
        };
        let all = Limits {
            min: 0,
            max: levels_khz.len().saturating_sub(1),
        };
        Frequency {
            table: levels_khz.iter().map(exact).collect(),
            turns: Turns::default(),
            state: Mutex::new(State {
                limits: all,
                level: None,
            }),
            current: self.current,
            window: self.window,
            backing: self.backing,
        }
    }
}

fn frequencies(available: &Attribute) -> Opened<Vec<i64>> {
    let line = available.line()?;
    let numbers = line.split_ascii_whitespace().map(|word| {
        let number = parse_number(word).filter(|&number| number > 0);
        number.ok_or_else(|| {
            let path = available.path().display();
            OpenError::unfit(format!("{path} says {word:?}, which is no frequency"))
        })
    });
    let mut numbers = numbers.collect::<Opened<Vec<_>>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// A performance domain on cpufreq or devfreq.
#[derive(Debug)]
pub struct Frequency {
    /// The kernel's number for each level.
    table: Vec<i64>,
    /// Had while the files are written.
    turns: Turns,
    state: Mutex<State>,
    current: Attribute,
    window: Window,
    backing: String,
}

/// What guests have set.
#[derive(Clone, Copy, Debug)]
struct State {
    limits: Limits,
    /// None, until a guest sets one.
    level: Option<usize>,
}

impl State {
    /// The levels that the governor may choose from.
    fn window(self) -> (usize, usize) {
        match self.level {
            Some(level) => (level, level),
            None => (self.limits.min, self.limits.max),
        }
    }
}

impl Frequency {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoned or not, the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever calls this has its turn.
    fn apply(&self, wanted: State) -> Result<()> {
        let (min, max) = wanted.window();
        let (Some(&min), Some(&max)) = (self.table.get(min), self.table.get(max)) else {
            return Err(Error::OutOfRange);
        };
        self.window.set((min, max))?;
        *self.lock() = wanted;
        Ok(())
    }
}

impl Driver for Frequency {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl PerformanceDriver for Frequency {
    fn level(&self) -> Result<usize> {
        let current = self.current.number()?;
        let reached = self
            .table
            .iter()
            .take_while(|&&frequency| current >= frequency.saturating_sub(frequency / TOLERANCE));
        Ok(reached.count().saturating_sub(1))
    }

    fn set_level(&self, position: usize) -> Result<()> {
        let _turn = self.turns.take();
        let state = *self.lock();
        // Another guest may have set them since they were looked at.
        if !state.limits.contains(position) {
            return Err(Error::OutOfRange);
        }
        self.apply(State {
            level: Some(position),
            ..state
        })
    }

    fn limits(&self) -> Result<Limits> {
        Ok(self.lock().limits)
    }

    fn set_limits(&self, limits: Limits) -> Result<()> {
        let _turn = self.turns.take();
        let level = self.lock().level;
        let level = level.map(|level| level.max(limits.min).min(limits.max));
        self.apply(State { limits, level })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    const POLICY: &str = "sys/devices/system/cpu/cpufreq/policy0";

    fn cpus() -> Tree {
        let tree = Tree::new();
        tree.files(
            POLICY,
            &[
                ("scaling_available_frequencies", "1800000 1200000 600000 "),
                ("scaling_cur_freq", "1199800"),
                ("scaling_min_freq", "600000"),
                ("scaling_max_freq", "1800000"),
                ("cpuinfo_transition_latency", "350500"),
                ("cpuinfo_min_freq", "600000"),
                ("cpuinfo_max_freq", "1800000"),
            ],
        );
        tree
    }

    fn window(tree: &Tree) -> (String, String) {
        let read = |name: &str| tree.read(&format!("{POLICY}/{name}")).trim().to_owned();
        (read("scaling_min_freq"), read("scaling_max_freq"))
    }

    fn window_is(tree: &Tree, min: &str, max: &str) {
        assert_eq!(window(tree), (min.to_owned(), max.to_owned()));
    }

    #[test]
    fn test_a_level_is_both_limits_of_the_governor() {
        let tree = cpus();
        let scaling = cpufreq(&tree.root(), "policy0", Mode::Control).unwrap();
        assert_eq!(
            scaling.known.frequencies_khz,
            [600_000, 1_200_000, 1_800_000]
        );
        assert_eq!(scaling.known.latency_us, 351);
        assert_eq!(scaling.known.range_khz, Some((600_000, 1_800_000)));
        let domain = scaling.driver(&[600_000, 1_200_000, 1_800_000]);
        // A little less is measured.
        assert_eq!(domain.level().unwrap(), 1);
        domain.set_level(0).unwrap();
        window_is(&tree, "600000", "600000");
        domain.set_level(2).unwrap();
        window_is(&tree, "1800000", "1800000");

        let limits = Limits { min: 0, max: 1 };
        domain.set_limits(limits).unwrap();
        window_is(&tree, "1200000", "1200000");
        assert_eq!(domain.limits().unwrap(), limits);
        assert!(matches!(domain.set_level(3), Err(Error::OutOfRange)));
    }

    #[test]
    fn test_a_level_that_is_outside_by_now_is_out_of_range() {
        let sim = crate::host::sim::SimPerformance::new(4, 0);
        let tree = cpus();
        let scaling = cpufreq(&tree.root(), "policy0", Mode::Control).unwrap();
        let levels = scaling.known.frequencies_khz.clone();
        let domain = scaling.driver(&levels);
        for driver in [&sim as &dyn PerformanceDriver, &domain] {
            driver.set_limits(Limits { min: 0, max: 1 }).unwrap();
            assert!(matches!(driver.set_level(2), Err(Error::OutOfRange)));
            driver.set_level(1).unwrap();
        }
    }

    #[test]
    fn test_limits_alone_leave_the_choice_to_the_governor() {
        let tree = cpus();
        let scaling = cpufreq(&tree.root(), "policy0", Mode::Control).unwrap();
        let domain = scaling.driver(&[600_000, 1_200_000, 1_800_000]);
        assert_eq!(domain.limits().unwrap(), Limits { min: 0, max: 2 });
        domain.set_limits(Limits { min: 1, max: 2 }).unwrap();
        window_is(&tree, "1200000", "1800000");
    }

    #[test]
    fn test_between_and_below_the_levels() {
        let tree = cpus();
        let scaling = cpufreq(&tree.root(), "policy0", Mode::Read).unwrap();
        let domain = scaling.driver(&[600_000, 1_200_000]);
        for (current, expected) in [("0", 0), ("900000", 0), ("5000000", 1)] {
            tree.write(&format!("{POLICY}/scaling_cur_freq"), current);
            assert_eq!(domain.level().unwrap(), expected);
        }
        tree.write(&format!("{POLICY}/scaling_cur_freq"), "<unknown>\n");
        assert!(matches!(domain.level(), Err(Error::Hardware(_))));
        assert!(matches!(domain.set_level(0), Err(Error::NotSupported)));
        window_is(&tree, "600000", "1800000");
    }

    #[test]
    fn test_devfreq_gets_its_own_numbers_back() {
        let tree = Tree::new();
        let gpu = "sys/class/devfreq/ff9a0000.gpu";
        tree.files(
            gpu,
            &[
                ("available_frequencies", "200000000 933333333"),
                ("cur_freq", "200000000"),
                ("min_freq", "200000000"),
                ("max_freq", "933333333"),
            ],
        );
        let scaling = devfreq(&tree.root(), "ff9a0000.gpu", Mode::Control).unwrap();
        assert_eq!(scaling.known.frequencies_khz, [200_000, 933_333]);
        let domain = scaling.driver(&[200_000, 933_333]);
        domain.set_level(1).unwrap();
        assert_eq!(tree.read(&format!("{gpu}/min_freq")), "933333333\n");
        assert_eq!(domain.level().unwrap(), 0);
    }

    #[test]
    fn test_a_table_that_is_none_is_refused() {
        for table in ["1200000 fast", "0 1", "9999999999999"] {
            let tree = cpus();
            tree.files(POLICY, &[("scaling_available_frequencies", table)]);
            let error = cpufreq(&tree.root(), "policy0", Mode::Read).unwrap_err();
            assert!(error.to_string().contains("says"), "{error}");
        }
    }
}
