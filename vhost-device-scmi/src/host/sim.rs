//! Simulated hardware: drivers that remember, and sensors with wave forms.
//!
//! A driver here checks nothing, as what it gets was checked against its resource already.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    ClockDriver, Driver, Guest, Limits, PerformanceDriver, PowerDriver, PowerState, PowercapDriver,
    Reading, ResetDriver, Result, SensorDriver, SystemDriver, SystemState, VoltageDriver,
};

/// What the control socket sees of simulated hardware, and does with it.
pub trait Simulated {
    /// How it is, in a line of text.
    fn state(&self) -> String;

    /// Changes it.
    ///
    /// # Errors
    /// Why this cannot be set.
    fn set(&self, text: &str) -> std::result::Result<(), String>;
}

/// How a simulated number changes with time, since the start of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wave {
    /// Always the same.
    Constant(i64),
    /// Up and down around `mean`, smoothly.
    Sine {
        /// The middle.
        mean: i64,
        /// How far from it at most.
        amplitude: i64,
        /// For once up and down; not zero.
        period: Duration,
    },
    /// Up and down around `mean`, along straight lines.
    Triangle {
        /// The middle.
        mean: i64,
        /// How far from it at most.
        amplitude: i64,
        /// For once up and down; not zero.
        period: Duration,
    },
    /// `low` for half of the period, then `high`.
    Step {
        /// The first half's.
        low: i64,
        /// The second half's.
        high: i64,
        /// For both; not zero.
        period: Duration,
    },
    /// Grows by `step` with each period, from `start` on.
    Counter {
        /// At first.
        start: i64,
        /// What is added.
        step: i64,
        /// How often; not zero.
        period: Duration,
    },
}

impl Wave {
    /// The number at a time.
    pub fn at(&self, time: Duration) -> i64 {
        match *self {
            Self::Constant(value) => value,
            Self::Sine {
                mean,
                amplitude,
                period,
            } => {
                let turn = phase(time, period) * std::f64::consts::TAU;
                // A float becomes the nearest number that there is.
                mean.saturating_add((turn.sin() * amplitude as f64).round() as i64)
            }
            Self::Triangle {
                mean,
                amplitude,
                period,
            } => {
                let phase = phase(time, period);
                let height = match phase {
                    ..0.25 => 4.0 * phase,
                    ..0.75 => 2.0 - 4.0 * phase,
                    _ => 4.0 * phase - 4.0,
                };
                mean.saturating_add((height * amplitude as f64).round() as i64)
            }
            Self::Step { low, high, period } => match phase(time, period) {
                ..0.5 => low,
                _ => high,
            },
            Self::Counter {
                start,
                step,
                period,
            } => {
                let periods = time.as_nanos().checked_div(period.as_nanos());
                let periods = i64::try_from(periods.unwrap_or(0)).unwrap_or(i64::MAX);
                start.saturating_add(step.saturating_mul(periods))
            }
        }
    }
}

/// How much of the current period is over, from 0 to 1.
fn phase(time: Duration, period: Duration) -> f64 {
    let rest = time.as_nanos().checked_rem(period.as_nanos());
    rest.unwrap_or(0) as f64 / period.as_nanos().max(1) as f64
}

/// Something that is remembered.
#[derive(Debug)]
struct Memory<T>(Mutex<T>);

impl<T> Memory<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // Poisoned or not, each value is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Copy> Memory<T> {
    fn get(&self) -> T {
        *self.lock()
    }

    fn set(&self, value: T) {
        *self.lock() = value;
    }
}

fn simulated() -> String {
    "simulated".to_owned()
}

/// A sensor whose numbers are waves, one for each axis.
#[derive(Debug)]
pub struct SimSensor {
    start: Instant,
    waves: Memory<Vec<Wave>>,
}

impl SimSensor {
    /// A sensor with a wave for each axis, or one for a scalar sensor.
    pub fn new(waves: Vec<Wave>) -> Self {
        Self {
            start: Instant::now(),
            waves: Memory::new(waves),
        }
    }
}

impl Driver for SimSensor {
    fn backing(&self) -> String {
        simulated()
    }
}

impl SensorDriver for SimSensor {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        let time = self.start.elapsed();
        for (value, wave) in values.iter_mut().zip(self.waves.lock().iter()) {
            *value = wave.at(time);
        }
        Ok(Reading::default())
    }
}

/// A clock.
#[derive(Debug)]
pub struct SimClock {
    rate: Memory<u64>,
    enabled: Memory<bool>,
    parent: Memory<usize>,
}

impl SimClock {
    /// A clock with this rate in Hz, which is on or off, and has the first of its parents.
    pub fn new(rate: u64, enabled: bool) -> Self {
        Self {
            rate: Memory::new(rate),
            enabled: Memory::new(enabled),
            parent: Memory::new(0),
        }
    }
}

impl Driver for SimClock {
    fn backing(&self) -> String {
        simulated()
    }
}

impl ClockDriver for SimClock {
    fn rate(&self) -> Result<u64> {
        Ok(self.rate.get())
    }

    fn set_rate(&self, rate: u64) -> Result<()> {
        self.rate.set(rate);
        Ok(())
    }

    fn is_enabled(&self) -> Result<bool> {
        Ok(self.enabled.get())
    }

    fn set_enabled(&self, enabled: bool) -> Result<()> {
        self.enabled.set(enabled);
        Ok(())
    }

    fn parent(&self) -> Result<usize> {
        Ok(self.parent.get())
    }

    fn set_parent(&self, position: usize) -> Result<()> {
        self.parent.set(position);
        Ok(())
    }
}

/// A power domain.
#[derive(Debug)]
pub struct SimPower(Memory<PowerState>);

impl SimPower {
    /// A power domain in this state.
    pub fn new(state: PowerState) -> Self {
        Self(Memory::new(state))
    }
}

impl Driver for SimPower {
    fn backing(&self) -> String {
        simulated()
    }
}

impl PowerDriver for SimPower {
    fn state(&self) -> Result<PowerState> {
        Ok(self.0.get())
    }

    fn set_state(&self, state: PowerState) -> Result<()> {
        self.0.set(state);
        Ok(())
    }
}

/// A performance domain.
#[derive(Debug)]
pub struct SimPerformance(Memory<(usize, Limits)>);

impl SimPerformance {
    /// A performance domain of `levels` levels, at least one, that is at `level`.
    pub fn new(levels: usize, level: usize) -> Self {
        let limits = Limits {
            min: 0,
            max: levels.saturating_sub(1),
        };
        Self(Memory::new((level.min(limits.max), limits)))
    }
}

impl Driver for SimPerformance {
    fn backing(&self) -> String {
        simulated()
    }
}

impl PerformanceDriver for SimPerformance {
    fn level(&self) -> Result<usize> {
        Ok(self.0.get().0)
    }

    fn set_level(&self, position: usize) -> Result<()> {
        self.0.lock().0 = position;
        Ok(())
    }

    fn limits(&self) -> Result<Limits> {
        Ok(self.0.get().1)
    }

    fn set_limits(&self, limits: Limits) -> Result<()> {
        let mut state = self.0.lock();
        let level = state.0.max(limits.min).min(limits.max);
        *state = (level, limits);
        Ok(())
    }
}

/// A reset domain.
#[derive(Debug, Default)]
pub struct SimReset(Memory<Resets>);

/// What has happened to a reset domain.
#[derive(Clone, Copy, Debug, Default)]
struct Resets {
    asserted: bool,
    count: u64,
}

impl<T: Default> Default for Memory<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl Driver for SimReset {
    fn backing(&self) -> String {
        simulated()
    }
}

impl ResetDriver for SimReset {
    fn set_asserted(&self, asserted: bool) -> Result<()> {
        self.0.lock().asserted = asserted;
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.0.lock();
        state.asserted = false;
        state.count += 1;
        Ok(())
    }
}

/// A regulator.
#[derive(Debug)]
pub struct SimVoltage(Memory<(i32, bool)>);

impl SimVoltage {
    /// A regulator that is set to this voltage, in µV, and is on or off.
    pub fn new(microvolts: i32, enabled: bool) -> Self {
        Self(Memory::new((microvolts, enabled)))
    }
}

impl Driver for SimVoltage {
    fn backing(&self) -> String {
        simulated()
    }
}

impl VoltageDriver for SimVoltage {
    fn level(&self) -> Result<i32> {
        Ok(self.0.get().0)
    }

    fn set_level(&self, microvolts: i32) -> Result<()> {
        self.0.lock().0 = microvolts;
        Ok(())
    }

    fn is_enabled(&self) -> Result<bool> {
        Ok(self.0.get().1)
    }

    fn set_enabled(&self, enabled: bool) -> Result<()> {
        self.0.lock().1 = enabled;
        Ok(())
    }
}

/// A power capping domain: it uses what its wave says, but not more than its cap.
#[derive(Debug)]
pub struct SimPowercap {
    start: Instant,
    cap: Memory<Option<u32>>,
    pai_us: Memory<u32>,
    load: Memory<Wave>,
}

impl SimPowercap {
    /// A domain with this cap and averaging interval, which would use what `load` says.
    pub fn new(cap: Option<u32>, pai_us: u32, load: Wave) -> Self {
        Self {
            start: Instant::now(),
            cap: Memory::new(cap),
            pai_us: Memory::new(pai_us),
            load: Memory::new(load),
        }
    }
}

impl Driver for SimPowercap {
    fn backing(&self) -> String {
        simulated()
    }
}

impl PowercapDriver for SimPowercap {
    fn cap(&self) -> Result<Option<u32>> {
        Ok(self.cap.get())
    }

    fn set_cap(&self, cap: Option<u32>) -> Result<()> {
        self.cap.set(cap);
        Ok(())
    }

    fn pai_us(&self) -> Result<u32> {
        Ok(self.pai_us.get())
    }

    fn set_pai_us(&self, interval: u32) -> Result<()> {
        self.pai_us.set(interval);
        Ok(())
    }

    fn power(&self) -> Result<u32> {
        let load = self.load.lock().at(self.start.elapsed());
        let load = u32::try_from(load.max(0)).unwrap_or(u32::MAX);
        Ok(load.min(self.cap.get().unwrap_or(u32::MAX)))
    }
}

/// The power of the system: it remembers what each guest asked for last.
#[derive(Debug, Default)]
pub struct SimSystem(Memory<Vec<(Guest, SystemState, bool)>>);

impl fmt::Display for SystemState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::ColdReset => "cold-reset",
            Self::WarmReset => "warm-reset",
            Self::PowerUp => "power-up",
            Self::Suspend => "suspend",
        })
    }
}

impl Driver for SimSystem {
    fn backing(&self) -> String {
        simulated()
    }
}

impl SystemDriver for SimSystem {
    fn request(&self, guest: Guest, state: SystemState, graceful: bool) -> Result<()> {
        let mut requests = self.0.lock();
        requests.retain(|(other, ..)| *other != guest);
        requests.push((guest, state, graceful));
        Ok(())
    }
}
