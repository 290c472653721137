//! The sensor protocol (0x15).
//!
//! It also looks after trip points and updates: it reads a sensor at each interval, or at each
//! event of the sensor's driver, and tells the guest what the reading means to it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::interval;
use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::rounding::Rounding;
use super::view::{Found, View};
use super::wire::{
    Choice, Done, Failure, Header, MAX_COUNT, MAX_RESULTS, NoRoom, PLATFORM, Part, Results, Status,
    bits, count_and_left, is_long, is_subscription,
};
use crate::host::{self, Axis, Intervals, Quantity, Resource, ResourceId, Sensor, Shape};

commands! {
    /// The commands of the sensor protocol.
    enum SensorCommand {
        DescriptionGet = 0x3,
        ReadingGet = 0x6,
        AxisDescriptionGet = 0x7,
        ListUpdateIntervals = 0x8,
        ConfigGet = 0x9,
        ConfigSet = 0xa,
        NameGet = 0xc,
        AxisNameGet = 0xd,
    }
    if p2a {
        TripPointNotify = 0x4,
        TripPointConfig = 0x5,
        ContinuousUpdateNotify = 0xb,
    }
}

/// The notification `SENSOR_TRIP_POINT_EVENT`.
const TRIP_POINT_EVENT: u8 = 0x0;
/// The notification `SENSOR_UPDATE`.
const UPDATE: u8 = 0x1;

/// `SENSOR_READING_GET`: answer at once, and tell later.
const ASYNC: u32 = 1;

/// `SENSOR_CONFIG_SET`: the sensor is on.
const ENABLED: u32 = 1 << 0;
/// `SENSOR_CONFIG_SET`: readings have timestamps.
const TIMESTAMPS: u32 = 1 << 1;

/// `SENSOR_CONFIG_SET`: these mean nothing.
const RESERVED: u32 = 0x1fc;

/// Timestamps are in nanoseconds.
const TIMESTAMP_EXPONENT: i32 = -9;

/// The most delayed responses that a guest may wait for: it must not fill the memory of its host.
/// `PROTOCOL_ATTRIBUTES` says this number.
pub(super) const MAX_PENDING: usize = 64;

/// A delayed response goes out this much later than the answer to its command, or after the
/// conversion, if that is shorter. One that went out at once could overtake the answer in Linux,
/// which complains about that: the interrupts of the two queues have no order.
const HEAD_START: Duration = Duration::from_millis(5);

/// How often the device reads a sensor for its trip points if the sensor has no interval.
const USUAL_INTERVAL: Duration = Duration::from_secs(1);

/// In which direction a trip point is crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crossing {
    Rising,
    Falling,
}

/// A trip point that a guest has set.
#[derive(Clone, Copy, Debug)]
struct TripPoint {
    value: i64,
    rising: bool,
    falling: bool,
    /// Whether the last reading was at or above it; `None` before the first.
    above: Option<bool>,
}

impl TripPoint {
    /// What a reading means to it.
    fn see(&mut self, reading: i64) -> Option<Crossing> {
        let above = reading >= self.value;
        match (self.above.replace(above)?, above) {
            (false, true) if self.rising => Some(Crossing::Rising),
            (true, false) if self.falling => Some(Crossing::Falling),
            _ => None,
        }
    }
}

/// How a guest has configured a sensor.
#[derive(Debug)]
struct State {
    /// The guest gets updates only while the sensor is on. It is off at first: Linux's driver for
    /// IIO subscribes long before somebody reads. Reading it and its trip points work whether it is
    /// on or not: Linux's driver for hwmon turns nothing on.
    enabled: bool,
    timestamps: bool,
    interval: Duration,
    trips: BTreeMap<u8, TripPoint>,
    tell_trips: bool,
    tell_updates: bool,
    /// When the device reads it next, if it does.
    due: Option<Instant>,
    /// The interval at which the guest wants readings, as the hub knows it.
    wanted: Option<Duration>,
}

impl State {
    fn new(sensor: &Sensor) -> Self {
        Self {
            enabled: false,
            timestamps: false,
            interval: sensor.default_interval,
            trips: BTreeMap::new(),
            tell_trips: false,
            tell_updates: false,
            due: None,
            wanted: None,
        }
    }

    fn is_updated(&self) -> bool {
        self.enabled && self.tell_updates
    }

    fn is_read(&self) -> bool {
        self.is_updated() || self.tell_trips && !self.trips.is_empty()
    }

    /// How often it is read.
    fn period(&self) -> Duration {
        match self.interval {
            Duration::ZERO => USUAL_INTERVAL,
            interval => interval.max(Intervals::MIN),
        }
    }

    fn config(&self) -> u32 {
        let (number, exponent) = interval::encode(self.interval);
        let flags = bits([(0, self.enabled), (1, self.timestamps)]);
        number << 16 | exponent << 11 | flags
    }
}

/// A reading that the platform tells later.
#[derive(Clone, Copy, Debug)]
struct Pending {
    command: Header,
    index: usize,
    due: Instant,
}

#[derive(Debug)]
pub(super) struct Sensors {
    view: View,
    states: Vec<State>,
    pending: VecDeque<Pending>,
}

impl Sensors {
    pub(super) fn new(view: View, sensors: &[Resource<Sensor>]) -> Self {
        let seen = (0..view.len()).filter_map(|index| view.at(sensors, index));
        Self {
            states: seen.map(|found| State::new(found.kind)).collect(),
            view,
            pending: VecDeque::new(),
        }
    }

    fn state(&mut self, sensor: &Found<'_, Sensor>) -> Result<&mut State, Status> {
        self.states.get_mut(sensor.index).ok_or(Status::NotFound)
    }

    /// From now on, reads the sensor as its state says.
    fn schedule(&mut self, cx: Context<'_>, sensor: &Found<'_, Sensor>) -> Result<(), Status> {
        let state = self.state(sensor)?;
        let wanted = state.is_read().then(|| state.period());
        if wanted == state.wanted {
            return Ok(());
        }
        state.wanted = wanted;
        let events = sensor.kind.driver.event().is_some();
        state.due = wanted.filter(|_| !events).map(|_| Instant::now());
        for trip in state.trips.values_mut() {
            trip.above = None;
        }
        let id = ResourceId::Sensor(sensor.number);
        cx.hub.watch(id, cx.guest, wanted.is_some());
        // A guest that may only read the sensor does not change how often its hardware samples.
        if sensor.may_control() {
            cx.hub.want_readings(sensor.number, cx.guest, wanted);
        }
        Ok(())
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let states = self.states.iter().filter_map(|state| state.due);
        let pending = self.pending.front().map(|pending| pending.due);
        states.chain(pending).min()
    }

    /// Makes one reading that is due. False if none is.
    pub(super) fn work(
        &mut self,
        cx: Context<'_>,
        now: Instant,
        outbox: &mut Outbox,
    ) -> host::Result<bool> {
        let sensors = &cx.hub.platform().sensors;
        let pending = self.pending.pop_front_if(|pending| pending.due <= now);
        if let Some(Pending { command, index, .. }) = pending {
            let Some(found) = self.view.at(sensors, index) else {
                return Ok(true);
            };
            let timestamps = self.states.get(index).is_some_and(|state| state.timestamps);
            match read(&found, timestamps) {
                Ok(readings) => {
                    let results = readings.behind(&[found.id()]);
                    outbox.respond(command, Status::Success, &results);
                }
                Err(error) => {
                    let failure = Failure::Host(error);
                    outbox.respond(command, failure.status(), &[]);
                }
            }
            return Ok(true);
        }
        let states = self.states.iter_mut().enumerate();
        let due = states.filter_map(|(index, state)| {
            let due = state.due.filter(|due| *due <= now)?;
            Some((due, index, state))
        });
        // The one that has waited longest goes first: otherwise a slow sensor would be due again
        // before those behind it have been read.
        let Some((_, index, state)) = due.min_by_key(|&(due, ..)| due) else {
            return Ok(false);
        };
        // A reading that was missed stays missed.
        state.due = Some(now + state.period());
        if let Some(found) = self.view.at(sensors, index) {
            self.look(&found, outbox)?;
        }
        Ok(true)
    }

    /// There is a new reading of the platform's sensor `number`.
    pub(super) fn changed(
        &mut self,
        cx: Context<'_>,
        number: usize,
        outbox: &mut Outbox,
    ) -> host::Result<()> {
        match self.view.by_number(&cx.hub.platform().sensors, number) {
            Some(found) => self.look(&found, outbox),
            None => Ok(()),
        }
    }

    /// Reads a sensor, and tells what there is to tell.
    fn look(&mut self, sensor: &Found<'_, Sensor>, outbox: &mut Outbox) -> host::Result<()> {
        let Some(state) = self.states.get_mut(sensor.index) else {
            return Ok(());
        };
        if !state.is_read() {
            return Ok(());
        }
        let readings = read(sensor, state.timestamps)?;
        let id = sensor.id();
        if state.is_updated() {
            let subject = Subject::of(Self::ID, UPDATE, id);
            outbox.notify(subject, &readings.behind(&[PLATFORM, id]));
        }
        if state.tell_trips
            && let Some(&first) = readings.values().first()
        {
            for (&trip, point) in &mut state.trips {
                let Some(crossing) = point.see(first) else {
                    continue;
                };
                let direction = u32::from(crossing == Crossing::Rising) << 16;
                let words = [PLATFORM, id, direction | u32::from(trip)];
                let subject = Subject {
                    part: trip.into(),
                    ..Subject::of(Self::ID, TRIP_POINT_EVENT, id)
                };
                outbox.notify_words(subject, words);
            }
        }
        Ok(())
    }

    fn set_trip_point(
        &mut self,
        cx: Context<'_>,
        sensor: &Found<'_, Sensor>,
        control: u32,
        value: i64,
    ) -> Result<(), Failure> {
        if control & !0xff3 != 0 {
            return Err(Status::InvalidParameters.into());
        }
        let number = (control >> 4 & 0xff) as u8;
        if number >= sensor.kind.trip_points {
            return Err(Status::InvalidParameters.into());
        }
        let (rising, falling) = (control & 1 != 0, control & 2 != 0);
        let trips = &mut self.state(sensor)?.trips;
        if rising || falling {
            let point = TripPoint {
                value,
                rising,
                falling,
                above: None,
            };
            trips.insert(number, point);
        } else {
            trips.remove(&number);
        }
        Ok(self.schedule(cx, sensor)?)
    }

    fn set_config(
        &mut self,
        cx: Context<'_>,
        sensor: &Found<'_, Sensor>,
        config: u32,
    ) -> Result<(), Failure> {
        if config & RESERVED != 0 {
            return Err(Status::InvalidParameters.into());
        }
        let rounding = match config >> 9 & 3 {
            0 => Rounding::Down,
            1 => Rounding::Up,
            2 => Rounding::Nearest,
            _ => return Err(Status::InvalidParameters.into()),
        };
        let timestamps = config & TIMESTAMPS != 0;
        if timestamps && !sensor.kind.timestamps {
            return Err(Status::NotSupported.into());
        }
        let wanted = interval::decode(config >> 16, config >> 11);
        let now = self.state(sensor)?.interval;
        // The present interval, and none in particular, are never wrong.
        let interval = if wanted.is_zero() || interval::encode(now) == interval::encode(wanted) {
            now
        } else {
            let rounded = interval::round(&sensor.kind.intervals, wanted, rounding);
            rounded.ok_or(Status::OutOfRange)?
        };
        let state = self.state(sensor)?;
        state.enabled = config & ENABLED != 0;
        state.timestamps = timestamps;
        state.interval = interval;
        Ok(self.schedule(cx, sensor)?)
    }

    fn reading(
        &mut self,
        cx: Context<'_>,
        (command, sensor): (Header, &Found<'_, Sensor>),
        flags: u32,
        results: &mut Results<'_>,
        outbox: &Outbox,
    ) -> Done {
        match flags {
            0 => {
                let timestamps = self.state(sensor)?.timestamps;
                read(sensor, timestamps)?.put(results)?;
                Ok(())
            }
            ASYNC => {
                cx.require_p2a()?;
                let conversion = sensor.kind.conversion.ok_or(Status::NotSupported)?;
                if self.pending.len() + outbox.responses() >= MAX_PENDING {
                    return Err(Status::Busy.into());
                }
                self.pending.push_back(Pending {
                    command,
                    index: sensor.index,
                    due: Instant::now() + conversion.min(HEAD_START),
                });
                Ok(())
            }
            _ => Err(Status::InvalidParameters.into()),
        }
    }

    fn describe(
        cx: Context<'_>,
        sensor: &Found<'_, Sensor>,
        results: &mut Results<'_>,
    ) -> Result<(), NoRoom> {
        let kind = sensor.kind;
        let scalar = match &kind.shape {
            Shape::Scalar(quantity) => Some(quantity),
            Shape::Axes(_) => None,
        };
        let extended = kind.power_uw != 0 || scalar.is_some_and(is_extended);
        let low = bits([
            (31, cx.p2a && kind.conversion.is_some()),
            (30, cx.p2a && kind.updates),
            (29, is_long(sensor.name)),
            (9, kind.timestamps),
            (8, extended),
        ]);
        let timestamps = if kind.timestamps {
            interval::exponent_bits(TIMESTAMP_EXPONENT) << 10
        } else {
            0
        };
        let trips = if cx.p2a { kind.trip_points } else { 0 };
        let high = match scalar {
            Some(quantity) => unit_and_scale(quantity),
            // Fits: there are at most `Shape::MAX_AXES`.
            None => (kind.width() as u32) << 16 | 1 << 8,
        };
        results.words([sensor.id(), low | timestamps | u32::from(trips), high])?;
        results.short_name(sensor.name)?;
        if extended {
            results.word(kind.power_uw)?;
            if let Some(quantity) = scalar {
                describe_range(quantity, results)?;
            }
        }
        Ok(())
    }
}

/// A reading. It is on the stack: a command for one costs no allocation.
struct Readings {
    values: [i64; Shape::MAX_AXES],
    width: usize,
    /// Nanoseconds since the boot, or 0.
    time: u64,
}

impl Readings {
    /// The numbers, one for each axis.
    fn values(&self) -> &[i64] {
        self.values.get(..self.width).unwrap_or(&self.values)
    }

    /// As it goes over the queues: 16 bytes for each axis, the number and the time.
    fn put(&self, results: &mut Results<'_>) -> Result<(), NoRoom> {
        for value in self.values() {
            results.double(value.cast_unsigned())?;
            results.double(self.time)?;
        }
        Ok(())
    }

    /// The same behind some words, for a message that goes out later.
    fn behind(&self, head: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<_> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        // There is room for as many as there may be.
        let _ = self.put(&mut Results::new(&mut bytes, MAX_RESULTS));
        bytes
    }
}

/// Reads a sensor.
fn read(sensor: &Found<'_, Sensor>, timestamps: bool) -> host::Result<Readings> {
    let mut values = [0; Shape::MAX_AXES];
    let width = sensor.kind.width().min(values.len());
    let reading = sensor
        .kind
        .driver
        .read(values.get_mut(..width).unwrap_or_default())?;
    let time = if timestamps {
        reading.timestamp.unwrap_or_else(since_boot)
    } else {
        Duration::ZERO
    };
    Ok(Readings {
        values,
        width,
        time: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
    })
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // A clock that runs since the boot is not negative.
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Whether there is more to say of a quantity than its unit.
fn is_extended(quantity: &Quantity) -> bool {
    quantity.resolution.is_some() || quantity.range.is_some()
}

fn unit_and_scale(quantity: &Quantity) -> u32 {
    interval::exponent_bits(quantity.scale.into()) << 11 | u32::from(quantity.unit.0)
}

fn describe_range(quantity: &Quantity, results: &mut Results<'_>) -> Result<(), NoRoom> {
    let resolution = quantity.resolution.map_or(0, |resolution| {
        let exponent = interval::exponent_bits(resolution.exponent.into());
        exponent << 27 | resolution.mantissa & 0x7ff_ffff
    });
    // All that there is, when that is not known.
    let (min, max) = quantity.range.unwrap_or((i64::MIN, i64::MAX));
    results.word(resolution)?;
    results.double(min.cast_unsigned())?;
    results.double(max.cast_unsigned())
}

fn describe_axis(axis: &Axis, position: usize, results: &mut Results<'_>) -> Result<(), NoRoom> {
    let extended = is_extended(&axis.quantity);
    results.words([
        // Fits: there are at most `Shape::MAX_AXES`.
        position as u32,
        bits([(9, is_long(&axis.name)), (8, extended)]),
        unit_and_scale(&axis.quantity),
    ])?;
    results.short_name(&axis.name)?;
    if extended {
        describe_range(&axis.quantity, results)?;
    }
    Ok(())
}

/// A part of the axes of a sensor that has some.
fn list_axes(
    sensor: &Found<'_, Sensor>,
    skip: u32,
    results: &mut Results<'_>,
    put: impl Fn(&Axis, usize, &mut Results<'_>) -> Result<(), NoRoom>,
) -> Done {
    let axes = match &sensor.kind.shape {
        Shape::Axes(axes) => axes,
        Shape::Scalar(_) => return Err(Status::NotSupported.into()),
    };
    let part = Part {
        total: axes.len(),
        skip,
        most: Shape::MAX_AXES,
        beyond: Status::InvalidParameters,
    };
    results.list(part, axes_and_left, |results, position| {
        put(axes.get(position).ok_or(NoRoom)?, position, results)
    })
}

/// How many axes there are in bits 0 to 5, and in bits 26 to 31 how many are left.
fn axes_and_left(count: u32, left: u32) -> u32 {
    count | left << 26
}

fn interval_word(interval: Duration) -> u32 {
    let (number, exponent) = interval::encode(interval);
    number << 5 | exponent
}

fn list_intervals(intervals: &Intervals, skip: u32, results: &mut Results<'_>) -> Done {
    let intervals = match intervals {
        Intervals::Discrete(list) => Choice::List(list),
        &Intervals::Range { min, max, step } => Choice::Range([min, max, step]),
    };
    let put = |results: &mut Results<'_>, interval| results.word(interval_word(interval));
    results.choice(intervals, skip, put)
}

impl Protocol for Sensors {
    const ID: u8 = 0x15;
    const VERSION: u32 = 0x3_0001;
    const LAST: u8 = SensorCommand::AxisNameGet as u8;
    type Command = SensorCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, cx: Context<'_>, results: &mut Results<'_>) -> Done {
        // Fits in its byte.
        let pending = if cx.p2a { MAX_PENDING as u32 } else { 0 };
        // No statistics.
        results.words([self.view.count() | pending << 16, 0, 0, 0])?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: SensorCommand, call: Call<'_, '_>) -> Done {
        let Call {
            header,
            arguments,
            results,
            outbox,
        } = call;
        let sensors = &cx.hub.platform().sensors;
        match command {
            SensorCommand::DescriptionGet => {
                let [skip] = arguments.words()?;
                let view = &self.view;
                let part = Part {
                    total: view.len(),
                    skip,
                    most: MAX_COUNT,
                    beyond: Status::InvalidParameters,
                };
                results.list(part, count_and_left, |results, index| {
                    let found = view.at(sensors, index).ok_or(NoRoom)?;
                    Self::describe(cx, &found, results)
                })?;
            }
            SensorCommand::TripPointNotify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                let wanted = is_subscription(enable)?;
                if found.kind.trip_points == 0 {
                    return Err(Status::NotSupported.into());
                }
                if !wanted {
                    outbox.withdraw(Subject::of(Self::ID, TRIP_POINT_EVENT, id));
                }
                self.state(&found)?.tell_trips = wanted;
                self.schedule(cx, &found)?;
            }
            SensorCommand::TripPointConfig => {
                let [id, control, low, high] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                let value = u64::from(high) << 32 | u64::from(low);
                self.set_trip_point(cx, &found, control, value.cast_signed())?;
            }
            SensorCommand::ReadingGet => {
                let [id, flags] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                self.reading(cx, (header, &found), flags, results, outbox)?;
            }
            SensorCommand::AxisDescriptionGet => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                list_axes(&found, skip, results, describe_axis)?;
            }
            SensorCommand::ListUpdateIntervals => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                list_intervals(&found.kind.intervals, skip, results)?;
            }
            SensorCommand::ConfigGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                results.word(self.state(&found)?.config())?;
            }
            SensorCommand::ConfigSet => {
                let [id, config] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                self.set_config(cx, &found, config)?;
            }
            SensorCommand::ContinuousUpdateNotify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                let wanted = is_subscription(enable)?;
                if !found.kind.updates {
                    return Err(Status::NotSupported.into());
                }
                if !wanted {
                    outbox.withdraw(Subject::of(Self::ID, UPDATE, id));
                }
                self.state(&found)?.tell_updates = wanted;
                self.schedule(cx, &found)?;
            }
            SensorCommand::NameGet => self.view.tell_name(sensors, arguments, results)?,
            SensorCommand::AxisNameGet => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(sensors, id)?;
                list_axes(&found, skip, results, |axis, position, results| {
                    // Fits: there are at most `Shape::MAX_AXES`.
                    results.word(position as u32)?;
                    results.long_name(&axis.name)
                })?;
            }
        }
        Ok(())
    }
}
