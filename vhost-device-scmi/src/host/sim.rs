//! Simulated hardware: drivers that remember, and sensors with wave forms.
//!
//! A driver here checks nothing, as what it gets was checked against its resource already, by the
//! protocol or by the control socket.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    ClockDriver, Driver, Error, Guest, Limits, PerformanceDriver, PinSetting, PinctrlDriver, Pins,
    PowerDriver, PowerState, PowercapDriver, Reading, ResetDriver, Result, SensorDriver,
    SystemDriver, SystemState, VoltageDriver,
};

mod platform;

pub(crate) use platform::fake;
pub use platform::platform;

/// What the control socket sees of simulated hardware, and does with it.
pub trait Simulated {
    /// How it is: each of its parts, by name, with a value of one line. What has one part alone
    /// has no name for it.
    fn parts(&self) -> Vec<(&'static str, String)>;

    /// Changes a part.
    ///
    /// # Errors
    /// Why this cannot be set.
    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String>;
}

/// A part that nothing sets.
fn only_seen(part: &str) -> std::result::Result<(), String> {
    Err(format!("{part:?} can be seen, and not set"))
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
    /// Grows by one with each reading, not with time: from `start` on, `count` numbers, and then
    /// again.
    Readings {
        /// The first.
        start: i64,
        /// How many there are; not 0.
        count: u32,
    },
}

impl Wave {
    /// The number at a time, when there were this many readings before.
    pub fn at(&self, time: Duration, readings: u64) -> i64 {
        match *self {
            Self::Constant(value) => value,
            Self::Readings { start, count } => {
                let more = readings.checked_rem(count.into()).unwrap_or(0);
                start.saturating_add_unsigned(more)
            }
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

/// Understands a value of the control socket.
fn parse<T: FromStr>(text: &str, what: &str) -> std::result::Result<T, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("{text:?} is no {what}"))
}

/// `on` or `off`.
fn parse_switch(text: &str) -> std::result::Result<bool, String> {
    match text.trim() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A sensor whose numbers are waves, one for each axis.
///
/// On the control socket: its numbers, with commas between them. One that is set stays so.
#[derive(Debug)]
pub struct SimSensor {
    start: Instant,
    waves: Memory<Vec<Wave>>,
    readings: AtomicU64,
}

impl SimSensor {
    /// A sensor with a wave for each axis, or one for a scalar sensor.
    pub fn new(waves: Vec<Wave>) -> Self {
        Self {
            start: Instant::now(),
            waves: Memory::new(waves),
            readings: AtomicU64::new(0),
        }
    }
}

impl Driver for SimSensor {
    fn backing(&self) -> String {
        simulated()
    }

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
    }
}

impl SensorDriver for SimSensor {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        let readings = self.readings.fetch_add(1, Ordering::Relaxed);
        let time = self.start.elapsed();
        for (value, wave) in values.iter_mut().zip(self.waves.lock().iter()) {
            *value = wave.at(time, readings);
        }
        Ok(Reading::default())
    }
}

impl Simulated for SimSensor {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let readings = self.readings.load(Ordering::Relaxed);
        let time = self.start.elapsed();
        let waves = self.waves.lock();
        let numbers = waves.iter().map(|wave| wave.at(time, readings).to_string());
        vec![("", numbers.collect::<Vec<_>>().join(","))]
    }

    fn set(&self, _part: &str, text: &str) -> std::result::Result<(), String> {
        let numbers = text.split(',').map(|number| parse(number, "number"));
        let numbers = numbers.collect::<std::result::Result<Vec<_>, _>>()?;
        let mut waves = self.waves.lock();
        if numbers.len() != waves.len() {
            return Err(format!("the sensor has {} numbers", waves.len()));
        }
        *waves = numbers.into_iter().map(Wave::Constant).collect();
        Ok(())
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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

/// On the control socket: the rate in Hz, whether it is on, and the position of the parent.
impl Simulated for SimClock {
    fn parts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("rate", self.rate.get().to_string()),
            ("enabled", switch(self.enabled.get()).to_owned()),
            ("parent", self.parent.get().to_string()),
        ]
    }

    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String> {
        match part {
            "rate" => self.rate.set(parse(text, "rate")?),
            "enabled" => self.enabled.set(parse_switch(text)?),
            "parent" => self.parent.set(parse(text, "position of a parent")?),
            _ => return only_seen(part),
        }
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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

/// On the control socket: `on` or `off`.
impl Simulated for SimPower {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let state = match self.0.get() {
            PowerState::ON => "on".to_owned(),
            PowerState::OFF => "off".to_owned(),
            PowerState(number) => number.to_string(),
        };
        vec![("", state)]
    }

    fn set(&self, _part: &str, text: &str) -> std::result::Result<(), String> {
        self.0.set(if parse_switch(text)? {
            PowerState::ON
        } else {
            PowerState::OFF
        });
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
    }
}

impl PerformanceDriver for SimPerformance {
    fn level(&self) -> Result<usize> {
        Ok(self.0.get().0)
    }

    fn set_level(&self, position: usize) -> Result<()> {
        let mut state = self.0.lock();
        // Another guest may have set them since they were looked at.
        if !state.1.contains(position) {
            return Err(Error::OutOfRange);
        }
        state.0 = position;
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

/// On the control socket: the position of the level, counted from 0, and those of the limits.
impl Simulated for SimPerformance {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let (level, Limits { min, max }) = self.0.get();
        vec![
            ("level", level.to_string()),
            ("limits", format!("{min}..{max}")),
        ]
    }

    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String> {
        if part != "level" {
            return only_seen(part);
        }
        let level: usize = parse(text, "position of a level")?;
        let mut state = self.0.lock();
        let Limits { min, max } = state.1;
        if !state.1.contains(level) {
            return Err(format!("the limits of the level are {min} to {max}"));
        }
        state.0 = level;
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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

/// On the control socket: whether it is held in reset, and how often it was reset.
impl Simulated for SimReset {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let Resets { asserted, count } = self.0.get();
        let held = if asserted { "asserted" } else { "released" };
        vec![("", held.to_owned()), ("resets", count.to_string())]
    }

    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String> {
        if !part.is_empty() {
            return only_seen(part);
        }
        self.0.lock().asserted = match text {
            "asserted" => true,
            "released" => false,
            _ => return Err(format!("{text:?} is neither asserted nor released")),
        };
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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

/// On the control socket: the voltage in µV, and whether it is on.
impl Simulated for SimVoltage {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let (level, enabled) = self.0.get();
        vec![
            ("microvolts", level.to_string()),
            ("enabled", switch(enabled).to_owned()),
        ]
    }

    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String> {
        match part {
            "microvolts" => self.0.lock().0 = parse(text, "voltage")?,
            "enabled" => self.0.lock().1 = parse_switch(text)?,
            _ => return only_seen(part),
        }
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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
        let load = self.load.lock().at(self.start.elapsed(), 0);
        let load = u32::try_from(load.max(0)).unwrap_or(u32::MAX);
        Ok(load.min(self.cap.get().unwrap_or(u32::MAX)))
    }
}

/// On the control socket: the cap or `none`, the averaging interval in µs, and the power, which
/// can be set.
impl Simulated for SimPowercap {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let cap = self.cap.get();
        let cap = cap.map_or_else(|| "none".to_owned(), |cap| cap.to_string());
        vec![
            ("cap", cap),
            ("interval-us", self.pai_us.get().to_string()),
            ("power", self.power().unwrap_or(0).to_string()),
        ]
    }

    fn set(&self, part: &str, text: &str) -> std::result::Result<(), String> {
        if part != "power" {
            return only_seen(part);
        }
        let power: u32 = parse(text, "power")?;
        *self.load.lock() = Wave::Constant(power.into());
        Ok(())
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

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
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

/// On the control socket: what the guests have asked for last.
impl Simulated for SimSystem {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let requests = self.0.lock();
        let requests = requests.iter().map(|(guest, state, graceful)| {
            let how = if *graceful { "graceful " } else { "" };
            format!("guest {guest} {how}{state}")
        });
        let state = match requests.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "idle".to_owned(),
            requests => requests,
        };
        vec![("", state)]
    }

    fn set(&self, part: &str, _text: &str) -> std::result::Result<(), String> {
        only_seen(part)
    }
}

/// A pin controller: pins and groups remember what they were given, each for itself.
#[derive(Debug, Default)]
pub struct SimPinctrl(Memory<BTreeMap<Pins, PinState>>);

/// What a pin or a group was given.
#[derive(Clone, Debug, Default)]
struct PinState {
    function: Option<usize>,
    /// By kind.
    settings: BTreeMap<u8, u32>,
}

impl Driver for SimPinctrl {
    fn backing(&self) -> String {
        simulated()
    }

    fn simulated(&self) -> Option<&dyn Simulated> {
        Some(self)
    }
}

impl PinctrlDriver for SimPinctrl {
    fn function(&self, pins: Pins) -> Result<Option<usize>> {
        let states = self.0.lock();
        Ok(states.get(&pins).and_then(|state| state.function))
    }

    fn set_function(&self, pins: Pins, function: usize) -> Result<()> {
        self.0.lock().entry(pins).or_default().function = Some(function);
        Ok(())
    }

    fn settings(&self, pins: Pins) -> Result<Vec<PinSetting>> {
        let states = self.0.lock();
        let settings = states
            .get(&pins)
            .into_iter()
            .flat_map(|state| &state.settings);
        Ok(settings
            .map(|(&kind, &value)| PinSetting { kind, value })
            .collect())
    }

    fn set(&self, pins: Pins, settings: &[PinSetting]) -> Result<()> {
        let mut states = self.0.lock();
        let state = states.entry(pins).or_default();
        let settings = settings.iter().map(|setting| (setting.kind, setting.value));
        state.settings.extend(settings);
        Ok(())
    }
}

/// On the control socket: what pins and groups were given: the function, and settings as
/// `KIND=VALUE`.
impl Simulated for SimPinctrl {
    fn parts(&self) -> Vec<(&'static str, String)> {
        let states = self.0.lock();
        let states = states.iter().map(|(pins, state)| {
            let pins = match pins {
                Pins::One(pin) => format!("pin {pin}:"),
                Pins::Group(group) => format!("group {group}:"),
            };
            let function = state
                .function
                .map(|function| format!("function {function}"));
            let settings = state.settings.iter();
            let settings = settings.map(|(kind, value)| format!("{kind}={value}"));
            let all: Vec<_> = [pins].into_iter().chain(function).chain(settings).collect();
            all.join(" ")
        });
        let state = match states.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "unset".to_owned(),
            states => states,
        };
        vec![("", state)]
    }

    fn set(&self, part: &str, _text: &str) -> std::result::Result<(), String> {
        only_seen(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_waves() {
        let period = Duration::from_secs(8);
        let (mean, amplitude) = (10, 100);
        let sine = Wave::Sine {
            mean,
            amplitude,
            period,
        };
        let triangle = Wave::Triangle {
            mean,
            amplitude,
            period,
        };
        let step = Wave::Step {
            low: 1,
            high: 2,
            period,
        };
        let counter = Wave::Counter {
            start: 5,
            step: -3,
            period,
        };
        for (second, of_sine, of_triangle, of_step, of_counter) in [
            (0, 10, 10, 1, 5),
            (1, 81, 60, 1, 5),
            (2, 110, 110, 1, 5),
            (4, 10, 10, 2, 5),
            (6, -90, -90, 2, 5),
            (7, -61, -40, 2, 5),
            (8, 10, 10, 1, 2),
            (80, 10, 10, 1, -25),
        ] {
            let at = |wave: &Wave| wave.at(Duration::from_secs(second), 0);
            assert_eq!(at(&sine), of_sine, "{second}");
            assert_eq!(at(&triangle), of_triangle, "{second}");
            assert_eq!(at(&step), of_step, "{second}");
            assert_eq!(at(&counter), of_counter, "{second}");
        }
        let readings = Wave::Readings { start: 3, count: 2 };
        let numbers = (0..4).map(|reading| readings.at(Duration::ZERO, reading));
        assert_eq!(numbers.collect::<Vec<_>>(), [3, 4, 3, 4]);
    }

    #[test]
    fn test_waves_that_cannot_be_do_not_panic() {
        let none = Duration::ZERO;
        let far = Duration::MAX;
        for wave in [
            Wave::Sine {
                mean: i64::MAX,
                amplitude: i64::MAX,
                period: none,
            },
            Wave::Triangle {
                mean: i64::MIN,
                amplitude: i64::MIN,
                period: Duration::from_nanos(1),
            },
            Wave::Counter {
                start: i64::MAX,
                step: i64::MAX,
                period: Duration::from_nanos(1),
            },
            Wave::Readings {
                start: i64::MAX,
                count: 0,
            },
        ] {
            for time in [none, Duration::from_secs(1), far] {
                wave.at(time, u64::MAX);
            }
        }
    }

    #[test]
    fn test_what_is_set_is_seen() {
        let cases: [(&dyn Simulated, &str, &str, &str); 11] = [
            (
                &SimSensor::new(vec![Wave::Constant(1); 3]),
                "",
                "1,1,1",
                "4,-5,6",
            ),
            (&SimClock::new(5, false), "rate", "5", "7"),
            (&SimClock::new(5, false), "enabled", "off", "on"),
            (&SimClock::new(5, false), "parent", "0", "1"),
            (&SimPower::new(PowerState::OFF), "", "off", "on"),
            (&SimPerformance::new(3, 1), "level", "1", "2"),
            (&SimReset::default(), "", "released", "asserted"),
            (&SimVoltage::new(5, true), "microvolts", "5", "-7"),
            (&SimVoltage::new(5, true), "enabled", "on", "off"),
            (
                &SimPowercap::new(None, 1, Wave::Constant(3)),
                "power",
                "3",
                "9",
            ),
            (
                &SimPowercap::new(Some(9), 1, Wave::Constant(3)),
                "power",
                "3",
                "8",
            ),
        ];
        for (sim, part, before, after) in cases {
            let now = || {
                let mut parts = sim.parts().into_iter();
                parts.find(|(name, _)| *name == part).unwrap().1
            };
            assert_eq!(now(), before);
            sim.set(part, after).unwrap();
            assert_eq!(now(), after);
            assert!(sim.set(part, "nonsense").is_err());
            assert_eq!(now(), after, "what is refused changes nothing");
            for (other, _) in sim.parts() {
                assert!(sim.set(other, "nonsense").is_err(), "{other}");
            }
        }
        let performance = SimPerformance::new(3, 1);
        performance.set_limits(Limits { min: 0, max: 1 }).unwrap();
        assert!(performance.set("level", "2").is_err());
        let system = SimSystem::default();
        assert_eq!(system.parts(), [("", "idle".to_owned())]);
        system.request(1, SystemState::Suspend, false).unwrap();
        system.request(1, SystemState::Shutdown, true).unwrap();
        assert_eq!(
            system.parts(),
            [("", "guest 1 graceful shutdown".to_owned())]
        );
    }
}
