//! Resources whose get and set are files of the user's, with text in them.
//!
//! Numbers are decimal, one a line; what is on is `1`, what is off `0`. Where a value is only set,
//! the file may be a FIFO, and whoever reads it gets a line for each change.

use super::attribute::{Attribute, Number, Sink, Switch, Window, parse_number};
use crate::host::{
    ClockDriver, Driver, Error, Guest, Limits, PerformanceDriver, Reading, ResetDriver, Result,
    SensorDriver, SystemDriver, SystemState, VoltageDriver,
};

/// A sensor: a line with a number for each axis, with white space between them.
#[derive(Debug)]
pub struct HookSensor(Attribute);

impl HookSensor {
    /// A sensor that reads this file.
    pub fn new(file: Attribute) -> Self {
        Self(file)
    }
}

impl Driver for HookSensor {
    fn backing(&self) -> String {
        self.0.path().display().to_string()
    }
}

impl SensorDriver for HookSensor {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        let line = self.0.line()?;
        let mut words = line.split_ascii_whitespace();
        let axes = values.len();
        for value in values {
            let number = words.next().and_then(parse_number);
            *value = number.ok_or_else(|| self.0.says(&line, &format!("{axes} numbers")))?;
        }
        match words.next() {
            None => Ok(Reading::default()),
            Some(_) => Err(self.0.says(&line, &format!("{axes} numbers"))),
        }
    }
}

/// A clock.
#[derive(Debug)]
pub struct HookClock {
    /// The rate, in Hz.
    pub rate: Number,
    /// Whether it runs.
    pub enabled: Option<Switch>,
    /// Which of its parents it has, counted from 0.
    pub parent: Option<Number>,
    /// What it is called in `--check`.
    pub backing: String,
}

impl Driver for HookClock {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl ClockDriver for HookClock {
    fn rate(&self) -> Result<u64> {
        self.rate.get_as()
    }

    fn set_rate(&self, rate: u64) -> Result<()> {
        self.rate.set(signed(rate)?)
    }

    fn is_enabled(&self) -> Result<bool> {
        some(&self.enabled)?.get()
    }

    fn set_enabled(&self, enabled: bool) -> Result<()> {
        some(&self.enabled)?.set(enabled)
    }

    fn parent(&self) -> Result<usize> {
        some(&self.parent)?.get_as()
    }

    fn set_parent(&self, position: usize) -> Result<()> {
        some(&self.parent)?.set(signed(position as u64)?)
    }
}

fn some<T>(part: &Option<T>) -> Result<&T> {
    part.as_ref().ok_or(Error::NotSupported)
}

fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::OutOfRange)
}

/// A performance domain: files have the numbers of levels, not their positions.
#[derive(Debug)]
pub struct HookPerformance {
    /// The numbers of the levels, from the slowest to the fastest.
    pub levels: Vec<u32>,
    /// The level.
    pub level: Number,
    /// The lowest level that it may have, and the highest.
    pub limits: Window,
    /// What it is called in `--check`.
    pub backing: String,
}

impl HookPerformance {
    fn level_at(&self, position: usize) -> Result<i64> {
        let level = self.levels.get(position);
        level.map(|&level| level.into()).ok_or(Error::OutOfRange)
    }

    /// The position of a level, or of the next one below.
    fn position(&self, level: i64) -> usize {
        let reached = self
            .levels
            .iter()
            .take_while(|&&other| i64::from(other) <= level);
        reached.count().saturating_sub(1)
    }
}

impl Driver for HookPerformance {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl PerformanceDriver for HookPerformance {
    fn level(&self) -> Result<usize> {
        Ok(self.position(self.level.get()?))
    }

    fn set_level(&self, position: usize) -> Result<()> {
        self.level.set(self.level_at(position)?)
    }

    fn limits(&self) -> Result<Limits> {
        let (min, max) = self.limits.get()?;
        let (min, max) = (self.position(min), self.position(max));
        if min <= max {
            Ok(Limits { min, max })
        } else {
            Err(self.limits.says(min, "below the highest level"))
        }
    }

    fn set_limits(&self, limits: Limits) -> Result<()> {
        let wanted = (self.level_at(limits.min)?, self.level_at(limits.max)?);
        self.limits.set(wanted)?;
        let level = self.level()?;
        match level.max(limits.min).min(limits.max) {
            same if same == level => Ok(()),
            other => self.set_level(other),
        }
    }
}

/// A reset domain.
#[derive(Debug)]
pub struct HookReset {
    /// Gets `1` and `0`: hold it in reset, release it.
    pub assert: Option<Sink>,
    /// Gets `1` for each reset.
    pub reset: Option<Sink>,
    /// What it is called in `--check`.
    pub backing: String,
}

impl Driver for HookReset {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl ResetDriver for HookReset {
    fn set_asserted(&self, asserted: bool) -> Result<()> {
        some(&self.assert)?.write(u8::from(asserted))
    }

    fn reset(&self) -> Result<()> {
        some(&self.reset)?.write(1)
    }
}

/// A voltage domain.
#[derive(Debug)]
pub struct HookVoltage {
    /// The voltage, in µV.
    pub microvolts: Number,
    /// Whether it is on.
    pub enabled: Option<Switch>,
    /// What it is called in `--check`.
    pub backing: String,
}

impl Driver for HookVoltage {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl VoltageDriver for HookVoltage {
    fn level(&self) -> Result<i32> {
        self.microvolts.get_as()
    }

    fn set_level(&self, microvolts: i32) -> Result<()> {
        self.microvolts.set(microvolts.into())
    }

    fn is_enabled(&self) -> Result<bool> {
        some(&self.enabled)?.get()
    }

    fn set_enabled(&self, enabled: bool) -> Result<()> {
        some(&self.enabled)?.set(enabled)
    }
}

/// The system's power: a line for each wish of a guest, `0 shutdown graceful`.
#[derive(Debug)]
pub struct HookSystem {
    request: Option<Sink>,
    backing: String,
}

impl HookSystem {
    /// Wishes are written to `request`, if any guest may have some; `backing` is what it is called
    /// in `--check`.
    pub fn new(request: Option<Sink>, backing: String) -> Self {
        Self { request, backing }
    }
}

impl Driver for HookSystem {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl SystemDriver for HookSystem {
    fn request(&self, guest: Guest, state: SystemState, graceful: bool) -> Result<()> {
        let how = if graceful { "graceful" } else { "forceful" };
        let request = some(&self.request)?;
        request.write(format_args!("{guest} {state} {how}"))
    }
}
