//! Regulators: `/sys/class/regulator`, and the consumers that the kernel has for user space.
//!
//! The kernel lets nobody set a regulator by its own directory. Two drivers do: a
//! `reg-userspace-consumer` turns regulators on and off (its attribute `state`), and a
//! `reg-virt-consumer` sets a voltage, too (`min_microvolts` and `max_microvolts`, both 0 for off).

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhost_device_backend::Turns;

use super::attribute::{Mode, Number, Place, Switch, Words};
use super::switched::Switched;
use super::{Opened, Root};
use crate::host::{Driver, Error, Result, VoltageDriver};

const CONSUMERS: &str = "sys/bus/platform/devices";
const WORDS: Words = ["disabled", "enabled"];

/// The switch of a `reg-userspace-consumer`: what its `name` says, or the name of the platform
/// device, or a path. It can be turned as `mode` says.
///
/// # Errors
/// When there is no such device.
pub fn consumer(root: &Root, name: &str, mode: Mode) -> Opened<Switched<Switch>> {
    let (switch, path) = consumer_switch(root, name, mode)?;
    Ok(Switched::new(switch, path))
}

fn consumer_switch(root: &Root, name: &str, mode: Mode) -> Opened<(Switch, String)> {
    let directory = root.device(CONSUMERS, "name", name)?;
    let state = directory.join("state");
    let switch = Switch::open(Place::at(&state, mode), WORDS, false)?;
    Ok((switch, directory.display().to_string()))
}

/// Where a regulator is; at least one is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    /// The regulator: what its `name` says, `regulator.N`, or a path. Its voltage is read here.
    pub regulator: Option<&'a str>,
    /// A `reg-userspace-consumer`, which turns it on and off.
    pub consumer: Option<&'a str>,
    /// A `reg-virt-consumer`, which sets its voltage.
    pub virt: Option<&'a str>,
}

/// A voltage domain on a regulator.
#[derive(Debug)]
pub struct Regulator {
    microvolts: Option<Number>,
    consumer: Option<Switch>,
    virt: Option<Virtual>,
    backing: String,
}

impl Regulator {
    /// Opens its files. It can be set as `mode` says.
    ///
    /// # Errors
    /// When there is no such regulator or consumer.
    pub fn open(root: &Root, names: Names<'_>, mode: Mode) -> Opened<Self> {
        let mut backing = Vec::new();
        let mut microvolts = None;
        if let Some(name) = names.regulator {
            let directory = root.device("sys/class/regulator", "name", name)?;
            let path = directory.join("microvolts");
            microvolts = Some(Number::open(Place::at(&path, Mode::Read), 0)?);
            backing.push(directory.display().to_string());
        }
        let mut consumer = None;
        if let Some(name) = names.consumer {
            let (switch, path) = consumer_switch(root, name, mode)?;
            consumer = Some(switch);
            backing.push(path);
        }
        let mut virt = None;
        if let Some(name) = names.virt {
            let directory = root.device(CONSUMERS, "name", name)?;
            virt = Some(Virtual::open(&directory, mode)?);
            backing.push(directory.display().to_string());
        }
        Ok(Self {
            microvolts,
            consumer,
            virt,
            backing: backing.join(" + "),
        })
    }

    /// Whether it can be turned on and off.
    pub fn gate(&self) -> bool {
        self.consumer.is_some() || self.virt.is_some()
    }

    /// Whether its voltage can be set.
    pub fn settable(&self) -> bool {
        self.virt.is_some()
    }
}

impl Driver for Regulator {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl VoltageDriver for Regulator {
    fn level(&self) -> Result<i32> {
        if let Some(virt) = &self.virt
            && let Some(level) = virt.lock().level
        {
            return Ok(level);
        }
        let microvolts = self.microvolts.as_ref().ok_or(Error::NotSupported)?;
        microvolts.get_as()
    }

    fn set_level(&self, level: i32) -> Result<()> {
        let Some(virt) = &self.virt else {
            // One that cannot be set has one level.
            return if self.level()? == level {
                Ok(())
            } else {
                Err(Error::NotSupported)
            };
        };
        let _turn = virt.turns.take();
        let before = *virt.lock();
        virt.apply(State {
            level: Some(level),
            ..before
        })?;
        // The kernel's driver says that it was done also when it was not.
        if before.enabled
            && let Some(microvolts) = &self.microvolts
            && microvolts.get_as::<i32>()? != level
        {
            virt.apply(before)?;
            return Err(Error::OutOfRange);
        }
        virt.lock().level = Some(level);
        Ok(())
    }

    fn is_enabled(&self) -> Result<bool> {
        match (&self.consumer, &self.virt) {
            (Some(consumer), _) => consumer.get(),
            (None, Some(virt)) => Ok(virt.lock().enabled),
            (None, None) => Err(Error::NotSupported),
        }
    }

    fn set_enabled(&self, enabled: bool) -> Result<()> {
        if let Some(consumer) = &self.consumer {
            return consumer.set(enabled);
        }
        let virt = self.virt.as_ref().ok_or(Error::NotSupported)?;
        let _turn = virt.turns.take();
        // Turned on, it has the voltage that it has now, if nobody has set one.
        let level = virt.lock().level;
        let level = match level {
            Some(level) => level,
            None => self.microvolts.as_ref().ok_or(Error::Busy)?.get_as()?,
        };
        let wanted = State {
            level: Some(level),
            enabled,
        };
        virt.apply(wanted)?;
        *virt.lock() = wanted;
        Ok(())
    }
}

/// A `reg-virt-consumer`.
#[derive(Debug)]
struct Virtual {
    min: Number,
    max: Number,
    /// Had while the files are written.
    turns: Turns,
    state: Mutex<State>,
}

/// How a `reg-virt-consumer` is, or is to be.
#[derive(Clone, Copy, Debug)]
struct State {
    /// None, until somebody has set one.
    level: Option<i32>,
    enabled: bool,
}

impl Virtual {
    fn open(directory: &Path, mode: Mode) -> Opened<Self> {
        let number = |name: &str| {
            let path = directory.join(name);
            Number::open(Place::at(&path, mode), 0)
        };
        let this = Self {
            min: number("min_microvolts")?,
            max: number("max_microvolts")?,
            turns: Turns::default(),
            state: Mutex::new(State {
                level: None,
                enabled: false,
            }),
        };
        let (min, max): (i32, i32) = (this.min.get_as()?, this.max.get_as()?);
        *this.lock() = State {
            level: (min != 0).then_some(min),
            enabled: min != 0 && max != 0,
        };
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoned or not, the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the files to a state; whoever calls this has its turn. In the order in which the voltage is never outside of what it
    /// was and what it shall be.
    fn apply(&self, wanted: State) -> Result<()> {
        let level = match wanted {
            State {
                level: Some(level),
                enabled: true,
            } => i64::from(level),
            // Remembered, and set when it is turned on.
            _ => 0,
        };
        if level != 0 && level > self.max.get()? {
            self.max.set(level)?;
            self.min.set(level)
        } else {
            self.min.set(level)?;
            self.max.set(level)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;
    use crate::host::{PowerDriver, PowerState};

    const VDD: &str = "sys/class/regulator/regulator.4";
    const SWITCH: &str = "sys/bus/platform/devices/camera-supply";
    const VIRT: &str = "sys/bus/platform/devices/reg-virt-consumer.0";

    fn tree() -> Tree {
        let tree = Tree::new();
        tree.files(VDD, &[("name", "vdd-cam"), ("microvolts", "1800000")]);
        tree.files(SWITCH, &[("name", "camera"), ("state", "disabled")]);
        tree.files(VIRT, &[("min_microvolts", "0"), ("max_microvolts", "0")]);
        tree
    }

    #[test]
    fn test_a_consumer_is_a_power_domain() {
        let tree = tree();
        let domain = consumer(&tree.root(), "camera", Mode::Control).unwrap();
        assert_eq!(domain.state().unwrap(), PowerState::OFF);
        domain.set_state(PowerState::ON).unwrap();
        assert_eq!(tree.read(&format!("{SWITCH}/state")), "enabled\n");
        assert_eq!(domain.state().unwrap(), PowerState::ON);
    }

    #[test]
    fn test_a_regulator_without_a_virtual_consumer_has_one_level() {
        let tree = tree();
        let names = Names {
            regulator: Some("vdd-cam"),
            consumer: Some("camera-supply"),
            virt: None,
        };
        let regulator = Regulator::open(&tree.root(), names, Mode::Control).unwrap();
        assert!(regulator.gate() && !regulator.settable());
        assert_eq!(regulator.level().unwrap(), 1_800_000);
        regulator.set_level(1_800_000).unwrap();
        let other = regulator.set_level(1_900_000);
        assert!(matches!(other, Err(Error::NotSupported)));
        regulator.set_enabled(true).unwrap();
        assert!(regulator.is_enabled().unwrap());
        tree.write(&format!("{VDD}/microvolts"), "99999999999\n");
        assert!(matches!(regulator.level(), Err(Error::Hardware(_))));
    }

    #[test]
    fn test_a_virtual_consumer_sets_the_voltage() {
        let tree = tree();
        let names = Names {
            virt: Some("reg-virt-consumer.0"),
            ..Names::default()
        };
        let regulator = Regulator::open(&tree.root(), names, Mode::Control).unwrap();
        let files = || {
            let read = |name: &str| tree.read(&format!("{VIRT}/{name}")).trim().to_owned();
            [read("min_microvolts"), read("max_microvolts")]
        };
        assert!(!regulator.is_enabled().unwrap());
        // Off: it is remembered, and nothing is turned on.
        regulator.set_level(900_000).unwrap();
        assert_eq!(files(), ["0", "0"]);
        regulator.set_enabled(true).unwrap();
        assert_eq!(files(), ["900000", "900000"]);
        regulator.set_level(1_100_000).unwrap();
        assert_eq!(files(), ["1100000", "1100000"]);
        regulator.set_enabled(false).unwrap();
        assert_eq!(files(), ["0", "0"]);
        assert_eq!(regulator.level().unwrap(), 1_100_000);
    }

    #[test]
    fn test_a_voltage_that_the_regulator_does_not_take_is_out_of_range() {
        let tree = tree();
        tree.files(
            VIRT,
            &[("min_microvolts", "1800000"), ("max_microvolts", "1800000")],
        );
        let names = Names {
            regulator: Some("vdd-cam"),
            virt: Some("reg-virt-consumer.0"),
            consumer: None,
        };
        let regulator = Regulator::open(&tree.root(), names, Mode::Control).unwrap();
        // The file of the regulator stays as it is: as if the kernel had refused.
        let refused = regulator.set_level(2_000_000);
        assert!(matches!(refused, Err(Error::OutOfRange)));
        assert_eq!(regulator.level().unwrap(), 1_800_000);
        assert_eq!(tree.read(&format!("{VIRT}/max_microvolts")), "1800000\n");
    }
}
