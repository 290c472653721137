//! The resources that a file describes, with all that is opened for them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::file::{self, Choice, File, Files, GuestKey, Who};
use super::{Checked, Place as In, Problem, Span};
use crate::host::linux::attribute::{Attribute, DIGITS, Mode, Number, Place, Sink, Switch, Window};
use crate::host::linux::hook::{
    HookClock, HookPerformance, HookReset, HookSensor, HookSystem, HookVoltage,
};
use crate::host::linux::iio::{Buffers, Setup};
use crate::host::linux::powercap::{Capped, Meter};
use crate::host::linux::switched::Switched;
use crate::host::linux::{
    OpenError, Opened, Root, USUAL_INTERVAL, frequency, gpio, hwmon, iio, power_supply, powercap,
    regulator, thermal, usual_intervals,
};
use crate::host::sim::{
    SimClock, SimPerformance, SimPinctrl, SimPower, SimPowercap, SimReset, SimSensor, SimSystem,
    SimVoltage, Wave,
};
use crate::host::{
    Access, Axis, Clock, Guest, Intervals, Levels, Looked, Members, Performance, PerformanceLevel,
    Permissions, Pinctrl, Platform, Power, PowerDriver, PowerScale, PowerState, Powercap, Quantity,
    Rates, Reset, Resource, ResourceId, Sensor, SensorDriver, Shape, SystemDriver, SystemPower,
    Unit, Voltage,
};

/// The time that a guest has for shutting down, when the file does not say it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How many trip points a sensor has when the file does not say it, if it may have any.
const TRIP_POINTS: u8 = 4;

/// The averaging interval of a power cap when nobody says it, in microseconds.
const INTERVAL_US: u32 = 1_000_000;

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

/// The platform of a file, for guests below `guests`, and what of it could not be looked at.
pub(super) fn platform(
    place: &In<'_>,
    file: File,
    guests: Guest,
) -> Checked<(Platform, Vec<Problem>)> {
    let root = place.root;
    let who = Guests::new(&file, guests)?;
    let mut builder = Builder {
        root,
        base: place.base,
        looks: place.looks,
        not_here: RefCell::default(),
        resource: None,
        guests: who,
        buffers: Buffers::default(),
        buffered: (0..0, None),
    };
    let mut places = Places::default();
    let mut platform = Platform {
        vendor: places.text("vendor", file.vendor),
        sub_vendor: places.text("sub-vendor", file.sub_vendor),
        ..Platform::default()
    };
    let clocks = names(&file.clock, |clock| &clock.name);
    let zones = names(&file.powercap, |zone| &zone.name);
    /// The resources of one list of the file, each made by `$make`.
    macro_rules! make {
        ($protocol:literal, $id:ident, $from:ident, $into:ident, |$span:ident, $table:ident, $mode:ident| $make:expr) => {
            for table in file.$from {
                let ($span, $table) = places.add($protocol, table, |table| &table.name);
                let permissions = builder.guests.permissions(&$table.read, &$table.control)?;
                let name = $table.name.get_ref().clone();
                let $mode = builder.mode(&permissions);
                builder.resource = Some(ResourceId::$id(platform.$into.len()));
                platform.$into.push(Resource {
                    name,
                    permissions,
                    kind: $make?,
                });
            }
        };
    }
    make!("sensor", Sensor, sensor, sensors, |span, table, mode| {
        builder.sensor(&span, table, mode)
    });
    make!("clock", Clock, clock, clocks, |span, table, mode| builder
        .clock(&span, table, &clocks, mode));
    make!("power domain", Power, power, powers, |span, table, mode| {
        builder.power(&span, table, mode)
    });
    make!(
        "performance domain",
        Performance,
        performance,
        performances,
        |span, table, mode| builder.performance(&span, table, mode)
    );
    make!("reset domain", Reset, reset, resets, |span, table, mode| {
        builder.reset(&span, table, mode)
    });
    make!(
        "voltage domain",
        Voltage,
        voltage,
        voltages,
        |span, table, mode| { builder.voltage(&span, table, mode) }
    );
    make!(
        "power capping domain",
        Powercap,
        powercap,
        powercaps,
        |span, table, mode| { builder.powercap(&span, table, &zones, mode) }
    );
    if let Some(table) = file.system {
        let (span, table) = (table.span(), table.into_inner());
        let permissions = builder.guests.permissions(&table.read, &table.control)?;
        let name = table.name.clone().unwrap_or_else(|| "system".to_owned());
        builder.resource = Some(ResourceId::System);
        let kind = builder.system(&span, table, builder.mode(&permissions))?;
        platform.system = Some(Resource {
            name,
            permissions,
            kind,
        });
    }
    if let Some(table) = file.pinctrl {
        let (span, table) = places.add("pin controller", table, |table| &table.name);
        let permissions = builder.guests.permissions(&table.read, &table.control)?;
        let name = table.name.get_ref().clone();
        platform.pinctrl = Some(Resource {
            name,
            permissions,
            kind: pinctrl(&span, table)?,
        });
    }
    platform.check().map_err(|invalid| {
        let span = places.of(invalid.protocol, &invalid.name);
        Problem {
            beside: invalid.key,
            ..Problem::at(&span, invalid)
        }
    })?;
    // Last, as it turns hardware on.
    let buffers = std::mem::take(&mut builder.buffers);
    let (place, resource) = builder.buffered.clone();
    builder.resource = resource;
    let started = match builder.looks {
        true => buffers.look(root),
        false => buffers.start(root),
    };
    builder.opened(started, &place)?;
    Ok((platform, builder.not_here.into_inner()))
}

/// The names of a list's resources, for those that name each other.
fn names<T>(list: &[Spanned<T>], name: impl Fn(&T) -> &Spanned<String>) -> Vec<String> {
    let names = list.iter().map(|table| name(table.get_ref()).get_ref());
    names.cloned().collect()
}

/// Where resources are in the file, by protocol and name.
#[derive(Debug, Default)]
struct Places(Vec<(&'static str, String, Span)>);

impl Places {
    /// Remembers a resource, and takes it out of its place.
    fn add<T>(
        &mut self,
        protocol: &'static str,
        table: Spanned<T>,
        name: impl Fn(&T) -> &Spanned<String>,
    ) -> (Span, T) {
        let span = table.span();
        let table = table.into_inner();
        let name = name(&table);
        self.0.push((protocol, name.get_ref().clone(), name.span()));
        (span, table)
    }

    /// Remembers what the platform calls itself, as a resource of its own kind.
    fn text(&mut self, what: &'static str, text: Option<Spanned<String>>) -> String {
        let Some(text) = text else {
            return String::new();
        };
        self.0.push((what, text.get_ref().clone(), text.span()));
        text.into_inner()
    }

    /// The last resource of a protocol that has this name: a second one is what is wrong.
    fn of(&self, protocol: &str, name: &str) -> Span {
        let mut places = self.0.iter().rev();
        let found = places.find(|(other, called, _)| *other == protocol && called == name);
        found.map_or(0..0, |(.., span)| span.clone())
    }
}

/// The guests, and what they may do when a resource does not say it.
#[derive(Debug)]
struct Guests {
    count: Guest,
    names: Vec<String>,
    read: Option<Who>,
    control: Option<Who>,
}

impl Guests {
    fn new(file: &File, count: Guest) -> Checked<Self> {
        let mut names = Vec::new();
        if let Some(list) = &file.guests {
            if list.get_ref().len() != count {
                let named = list.get_ref().len();
                return Err(Problem::at(
                    &list.span(),
                    format!(
                        "it names {}, and there {}: write as many names as --socket-count says, \
                         or --socket-count {named}",
                        counted(named, "guest"),
                        are_counted(count, "socket")
                    ),
                ));
            }
            for name in list.get_ref() {
                if names.contains(name.get_ref()) {
                    let why = format!("two guests are called {:?}", name.get_ref());
                    return Err(Problem::at(&name.span(), why));
                }
                names.push(name.get_ref().clone());
            }
        }
        let copy = |who: &Option<Who>| who.as_ref().map(Who::copy);
        Ok(Self {
            count,
            names,
            read: copy(&file.read),
            control: copy(&file.control),
        })
    }

    /// What is said of a resource; else what the file says for all; else all guests read, and none
    /// controls.
    ///
    /// Who controls a resource reads it, too. But where a resource says who reads it, what the file
    /// says for all lets nobody else in.
    fn permissions(&self, read: &Option<Who>, control: &Option<Who>) -> Checked<Permissions> {
        let general = control.is_none() && read.is_some();
        let read = read.as_ref().or(self.read.as_ref()).unwrap_or(&Who::All);
        let control = control.as_ref().or(self.control.as_ref());
        let control = control.unwrap_or(&Who::None);
        let (read_all, readers) = self.those(read)?;
        let (control_all, controllers) = self.those(control)?;
        let access = |reads: bool, controls: bool| match (reads, controls) {
            (false, true) if general => Access::None,
            (_, true) => Access::Control,
            (true, false) => Access::Read,
            (false, false) => Access::None,
        };
        let others = access(read_all, control_all);
        let mut permissions = Permissions::all(others);
        for &guest in readers.iter().chain(&controllers) {
            let reads = read_all || readers.contains(&guest);
            let controls = control_all || controllers.contains(&guest);
            permissions = permissions.with(guest, access(reads, controls));
        }
        Ok(permissions)
    }

    /// Whether it is all guests, and else which.
    fn those(&self, who: &Who) -> Checked<(bool, Vec<Guest>)> {
        Ok(match who {
            Who::All => (true, Vec::new()),
            Who::None => (false, Vec::new()),
            Who::These(guests) => {
                let guests = guests.iter().map(|guest| self.find(guest));
                (false, guests.collect::<Checked<_>>()?)
            }
        })
    }

    fn find(&self, guest: &Spanned<GuestKey>) -> Checked<Guest> {
        let number = match guest.get_ref() {
            GuestKey::Number(number) => usize::try_from(*number).ok(),
            GuestKey::Name(name) => self.names.iter().position(|other| other == name),
        };
        let number = number.filter(|number| *number < self.count);
        number.ok_or_else(|| {
            let why = match guest.get_ref() {
                GuestKey::Number(number) => {
                    format!(
                        "there is no guest {number}: there {}, from 0",
                        are_counted(self.count, "guest")
                    )
                }
                GuestKey::Name(name) if self.names.is_empty() => format!(
                    "there is no guest {name:?}: write `guests = […]` with the names of all at \
                     the top of the file, or the guest's number"
                ),
                GuestKey::Name(name) => {
                    format!(
                        "there is no guest {name:?}; there is {}",
                        self.names.join(", ")
                    )
                }
            };
            Problem::at(&guest.span(), why)
        })
    }
}

impl Who {
    fn copy(&self) -> Self {
        match self {
            Self::All => Self::All,
            Self::None => Self::None,
            Self::These(guests) => {
                let copy = |guest: &Spanned<GuestKey>| {
                    let key = match guest.get_ref() {
                        GuestKey::Number(number) => GuestKey::Number(*number),
                        GuestKey::Name(name) => GuestKey::Name(name.clone()),
                    };
                    Spanned::new(guest.span(), key)
                };
                Self::These(guests.iter().map(copy).collect())
            }
        }
    }
}

/// A number of things: `1 guest`, `2 guests`.
fn counted(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// The same behind "there".
fn are_counted(number: usize, what: &str) -> String {
    let are = if number == 1 { "is" } else { "are" };
    format!("{are} {}", counted(number, what))
}

/// Whether any guest may control it: else it is opened for reading alone.
fn is_controlled(permissions: &Permissions) -> bool {
    let others = permissions.of(Guest::MAX);
    others == Access::Control
        || permissions
            .exceptions()
            .any(|(_, access)| access == Access::Control)
}

/// The one key of several that a resource has: what is behind it.
fn one<B, const N: usize>(
    table: &Span,
    candidates: [(&'static str, Option<(Span, B)>); N],
) -> Checked<(Span, B)> {
    let names = candidates.each_ref().map(|(name, _)| *name).join(", ");
    let mut found = candidates
        .into_iter()
        .filter_map(|(name, backing)| Some((name, backing?)));
    let Some((first, backing)) = found.next() else {
        let why = format!("it does not say what is behind it: write one of {names}");
        return Err(Problem::at(table, why));
    };
    match found.next() {
        None => Ok(backing),
        Some((second, (span, _))) => {
            let why = format!("it has {first} and {second}: write one of them");
            Err(Problem::at(&span, why))
        }
    }
}

/// A key's value with its place.
fn placed<T, B>(value: Option<Spanned<T>>, wrap: impl FnOnce(T) -> B) -> Option<(Span, B)> {
    let value = value?;
    Some((value.span(), wrap(value.into_inner())))
}

/// A key that must not be there, with why.
fn refuse<T>(key: &Option<Spanned<T>>, why: &str) -> Checked<()> {
    match key {
        None => Ok(()),
        Some(key) => Err(Problem::at(&key.span(), why)),
    }
}

/// What makes resources.
#[derive(Debug)]
struct Builder<'a> {
    root: &'a Root,
    /// What paths of the file are relative to.
    base: &'a Path,
    /// Hardware is only looked at, and need not be here.
    looks: bool,
    /// What is made just now.
    resource: Option<ResourceId>,
    /// What could not be looked at.
    not_here: RefCell<Vec<Problem>>,
    guests: Guests,
    buffers: Buffers,
    /// Where the file asks for the last of them, and for which resource.
    buffered: (Span, Option<ResourceId>),
}

enum SensorBacking {
    Hwmon(file::Hwmon),
    Iio(file::Iio),
    Thermal(String),
    PowerSupply(file::PowerSupply),
    Hook(PathBuf),
    Sim(file::Waves),
}

/// A GPIO line, or what `--check` has seen of one.
enum GpioDomain {
    Line(Switched<gpio::Line>),
    Looked(Looked),
}

enum GateBacking {
    Gpio(file::Gpio),
    Consumer(file::Consumer),
    Hook(Files),
    Sim(file::OnSim),
}

enum PerformanceBacking {
    Cpufreq(String),
    Devfreq(String),
    Hook(file::PerformanceHook),
    Sim(file::LevelSim),
}

enum ClockBacking {
    Hook(file::ClockHook),
    Sim(file::ClockSim),
}

enum ResetBacking {
    Gpio(file::Gpio),
    Hook(file::ResetHook),
    Sim,
}

enum VoltageBacking {
    Regulator(file::Regulator),
    Hook(file::VoltageHook),
    Sim(file::VoltageSim),
}

enum PowercapBacking {
    Zone(file::Zone),
    Hook(file::PowercapHook),
    Sim(file::PowercapSim),
}

enum SystemBacking {
    Hook(PathBuf),
    Sim,
}

/// Paths of a hook.
struct HookFiles {
    get: Option<PathBuf>,
    set: Option<PathBuf>,
}

impl HookFiles {
    fn place(&self, mode: Mode) -> Place<'_> {
        Place {
            get: self.get.as_deref(),
            set: self.set.as_deref(),
            mode,
        }
    }

    /// What it is called in `--check`.
    fn name(&self, mode: Mode) -> String {
        let set = self.set.as_ref().filter(|_| mode != Mode::Read);
        let paths = [self.get.as_ref(), set].into_iter().flatten();
        let mut names: Vec<_> = paths.map(|path| path.display().to_string()).collect();
        names.dedup();
        match names.is_empty() {
            true => "nothing that is read".to_owned(),
            false => names.join(" + "),
        }
    }
}

/// What stands for hardware that is not here.
fn absent(backing: String) -> Arc<Looked> {
    Arc::new(Looked(backing))
}

/// What is known of a sensor whose hardware is not here.
fn unknown() -> Quantity {
    Quantity {
        unit: Unit::UNSPECIFIED,
        scale: 0,
        resolution: None,
        range: None,
    }
}

impl Builder<'_> {
    /// What is done with the hardware of a resource.
    fn mode(&self, permissions: &Permissions) -> Mode {
        match (is_controlled(permissions), self.looks) {
            (false, _) => Mode::Read,
            (true, true) => Mode::Look,
            (true, false) => Mode::Control,
        }
    }

    /// Where a path of the file leads.
    fn path(&self, path: &Path) -> PathBuf {
        match path.is_absolute() {
            true => self.root.path(path),
            false => self.base.join(path),
        }
    }

    /// What was opened. `None` when it is not here, and is only looked at: that is noted.
    fn opened<T>(&self, opened: Opened<T>, span: &Span) -> Checked<Option<T>> {
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                let problem = Problem {
                    resource: self.resource,
                    ..Problem::at(span, error.explain())
                };
                match self.looks {
                    false => Err(problem),
                    true => {
                        self.not_here.borrow_mut().push(problem);
                        Ok(None)
                    }
                }
            }
        }
    }

    fn files(&self, files: &Files) -> HookFiles {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| self.path(path));
        HookFiles {
            get: path(&files.get),
            set: path(&files.set),
        }
    }

    fn number(
        &self,
        files: &Files,
        mode: Mode,
        initial: i64,
        span: &Span,
    ) -> Checked<(Number, String)> {
        let files = self.files(files);
        let number = self.opened(Number::open(files.place(mode), initial), span)?;
        let number = number.unwrap_or_else(|| Number::remembered(initial));
        Ok((number, files.name(mode)))
    }

    fn optional_number(
        &self,
        files: &Option<Files>,
        mode: Mode,
        initial: i64,
        span: &Span,
    ) -> Checked<Option<Number>> {
        let number = files
            .as_ref()
            .map(|files| self.number(files, mode, initial, span));
        Ok(number.transpose()?.map(|(number, _)| number))
    }

    fn switch(
        &self,
        files: &Files,
        mode: Mode,
        initial: bool,
        span: &Span,
    ) -> Checked<(Switch, String)> {
        let files = self.files(files);
        let switch = self.opened(Switch::open(files.place(mode), DIGITS, initial), span)?;
        let switch = switch.unwrap_or_else(|| Switch::remembered(DIGITS, initial));
        Ok((switch, files.name(mode)))
    }

    fn optional_switch(
        &self,
        files: &Option<Files>,
        mode: Mode,
        initial: bool,
        span: &Span,
    ) -> Checked<Option<Switch>> {
        let switch = files
            .as_ref()
            .map(|files| self.switch(files, mode, initial, span));
        Ok(switch.transpose()?.map(|(switch, _)| switch))
    }

    /// What is only written to; `None` when it is not opened.
    fn sink(&self, path: &Path, mode: Mode, span: &Span) -> Checked<Option<Sink>> {
        let path = self.path(path);
        match mode {
            Mode::Read => Ok(None),
            Mode::Look => Ok(self.opened(Sink::look(&path), span)?.and(None)),
            Mode::Control => self.opened(Sink::open(&path), span),
        }
    }

    /// A sensor of the host's.
    fn host_sensor(
        &self,
        opened: Opened<(Shape, Arc<dyn SensorDriver>)>,
        span: &Span,
        what: String,
    ) -> Checked<(Shape, Arc<dyn SensorDriver>)> {
        Ok(match self.opened(opened, span)? {
            Some(sensor) => sensor,
            None => (Shape::Scalar(unknown()), absent(what)),
        })
    }

    fn sensor(&mut self, span: &Span, table: file::Sensor, mode: Mode) -> Checked<Sensor> {
        let (place, backing) = one(
            span,
            [
                ("hwmon", placed(table.hwmon, SensorBacking::Hwmon)),
                ("iio", placed(table.iio, SensorBacking::Iio)),
                ("thermal", placed(table.thermal, SensorBacking::Thermal)),
                (
                    "power-supply",
                    placed(table.power_supply, SensorBacking::PowerSupply),
                ),
                ("hook", placed(table.hook, SensorBacking::Hook)),
                ("sim", placed(table.sim, SensorBacking::Sim)),
            ],
        )?;
        let free = matches!(backing, SensorBacking::Hook(_) | SensorBacking::Sim(_));
        if !free {
            let why = "the host's hardware says this itself: leave it out";
            refuse(&table.unit, why)?;
            refuse(&table.scale, why)?;
            refuse(&table.axes, why)?;
        }
        let described = || -> Checked<Shape> {
            let unit = table.unit.as_ref().ok_or_else(|| {
                Problem::at(
                    span,
                    "it has no unit: write unit = \"celsius\", or another one",
                )
            })?;
            let quantity = Quantity {
                unit: unit
                    .get_ref()
                    .parse::<Unit>()
                    .map_err(|error| Problem::at(&unit.span(), error))?,
                scale: table.scale.as_ref().map_or(0, |scale| *scale.get_ref()),
                resolution: None,
                range: None,
            };
            Ok(match &table.axes {
                None => Shape::Scalar(quantity),
                Some(names) => {
                    let axes = names.get_ref().iter().map(|name| Axis {
                        name: name.clone(),
                        quantity: quantity.clone(),
                    });
                    Shape::Axes(axes.collect())
                }
            })
        };
        let root = self.root;
        // From which number to which a simulated one goes.
        let mut simulated = None;
        let scalar = |opened: Opened<(Quantity, hwmon::FileSensor)>| {
            opened.map(|(quantity, driver)| {
                let driver: Arc<dyn SensorDriver> = Arc::new(driver);
                (Shape::Scalar(quantity), driver)
            })
        };
        let (mut shape, driver): (Shape, Arc<dyn SensorDriver>) = match backing {
            SensorBacking::Hwmon(file::Hwmon { chip, channel }) => {
                let opened = scalar(hwmon::open(root, &chip, &channel));
                self.host_sensor(opened, &place, format!("{chip} {channel}"))?
            }
            SensorBacking::Thermal(zone) => {
                self.host_sensor(scalar(thermal::open(root, &zone)), &place, zone)?
            }
            SensorBacking::PowerSupply(file::PowerSupply { supply, attribute }) => {
                let opened = scalar(power_supply::open(root, &supply, &attribute));
                self.host_sensor(opened, &place, format!("{supply} {attribute}"))?
            }
            SensorBacking::Iio(iio) => self.iio(&iio, &place, mode)?,
            SensorBacking::Hook(path) => {
                let path = self.path(&path);
                let shape = described()?;
                let opened = Attribute::to_read(&path).map(|file| {
                    let driver: Arc<dyn SensorDriver> = Arc::new(HookSensor::new(file));
                    (shape.clone(), driver)
                });
                let (_, driver) = self.host_sensor(opened, &place, path.display().to_string())?;
                (shape, driver)
            }
            SensorBacking::Sim(waves) => {
                let shape = described()?;
                let waves: Checked<Vec<_>> =
                    waves.0.iter().map(|wave| to_wave(wave, &place)).collect();
                let mut waves = waves?;
                let width = match &shape {
                    Shape::Scalar(_) => 1,
                    Shape::Axes(axes) => axes.len(),
                };
                if let [wave] = &waves[..] {
                    waves = vec![wave.clone(); width];
                }
                if waves.len() != width {
                    let why = format!("it has {} waves: write {width}, or one", waves.len());
                    return Err(Problem::at(&place, why));
                }
                simulated = extent(&waves);
                (shape, Arc::new(SimSensor::new(waves)))
            }
        };
        if let Some(range) = &table.range {
            let range = range.get_ref();
            let quantities: Vec<_> = match &mut shape {
                Shape::Scalar(quantity) => vec![quantity],
                Shape::Axes(axes) => axes.iter_mut().map(|axis| &mut axis.quantity).collect(),
            };
            for quantity in quantities {
                quantity.range = Some((range.min, range.max));
            }
            if let Some((least, most)) = simulated
                && (least < range.min || most > range.max)
                && range.min <= range.max
            {
                let why = format!("its numbers are from {least} to {most}, which is not within");
                return Err(Problem::at(&place, format!("{why} range")));
            }
        }
        let intervals = match &table.intervals_ms {
            None => usual_intervals(),
            Some(intervals) => to_intervals(intervals)?,
        };
        let usual = match &intervals {
            Intervals::Discrete(list) if !list.contains(&USUAL_INTERVAL) => list.first().copied(),
            Intervals::Range { min, max, .. } => Some(USUAL_INTERVAL.clamp(*min, *max.max(min))),
            Intervals::Discrete(_) => None,
        };
        let trip_points = match &shape {
            Shape::Scalar(_) => TRIP_POINTS,
            Shape::Axes(_) => 0,
        };
        let chosen = match &table.default_interval_ms {
            None => None,
            Some(ms) => {
                let chosen = Duration::from_millis(*ms.get_ref());
                if !intervals.contains(chosen) {
                    let why = "it is none of the intervals: add it to intervals-ms, or write one \
                               of those";
                    return Err(Problem::at(&ms.span(), why));
                }
                Some(chosen)
            }
        };
        Ok(Sensor {
            shape,
            intervals,
            default_interval: chosen.or(usual).unwrap_or(USUAL_INTERVAL),
            trip_points: table.trip_points.unwrap_or(trip_points),
            updates: table.updates.unwrap_or(true),
            timestamps: table.timestamps.unwrap_or(true),
            conversion: table.conversion_ms.map(Duration::from_millis),
            power_uw: table.power_uw.unwrap_or(0),
            driver,
        })
    }

    fn iio(
        &mut self,
        iio: &file::Iio,
        place: &Span,
        mode: Mode,
    ) -> Checked<(Shape, Arc<dyn SensorDriver>)> {
        let what = format!("{} {}", iio.device, iio.channel);
        if iio.buffer != Some(true) {
            if iio.trigger.is_some() {
                let why = "a trigger is of a buffer: write buffer = true, or leave it out";
                return Err(Problem::at(place, why));
            }
            let opened = iio::open(self.root, &iio.device, &iio.channel);
            let opened = opened.map(|(shape, driver)| (shape, Arc::from(driver)));
            return self.host_sensor(opened, place, what);
        }
        if iio.trigger.is_some() && mode == Mode::Read {
            let why = "a trigger is set, and no guest may control this: leave it out, or write \
                       control = […]";
            return Err(Problem::at(place, why));
        }
        let setup = Setup {
            trigger: iio.trigger.as_deref(),
            mode,
        };
        let added = self
            .buffers
            .add(self.root, &iio.device, &iio.channel, setup);
        self.buffered = (place.clone(), self.resource);
        let added = added.map(|(shape, driver)| (shape, driver as Arc<dyn SensorDriver>));
        self.host_sensor(added, place, what)
    }

    fn clock(
        &self,
        span: &Span,
        table: file::Clock,
        clocks: &[String],
        mode: Mode,
    ) -> Checked<Clock> {
        let rates = match table.rates.get_ref() {
            Choice::List(rates) => Rates::Discrete(rates.clone()),
            Choice::Range(steps) => Rates::Range {
                min: steps.min,
                max: steps.max,
                step: steps.step.unwrap_or(1),
            },
        };
        let lowest = match &rates {
            Rates::Discrete(rates) => rates.first().copied().unwrap_or(0),
            Rates::Range { min, .. } => *min,
        };
        let parents = table.parents.unwrap_or_default();
        let parents = parents.iter().map(|parent| find("clock", clocks, parent));
        let parents = parents.collect::<Checked<Vec<_>>>()?;
        let (place, backing) = one(
            span,
            [
                ("hook", placed(table.hook, ClockBacking::Hook)),
                ("sim", placed(table.sim, ClockBacking::Sim)),
            ],
        )?;
        let mut can_gate = true;
        let driver: Arc<dyn crate::host::ClockDriver> = match backing {
            ClockBacking::Sim(sim) => {
                let rate = match &sim.rate {
                    Some(rate) if !rates.contains(*rate.get_ref()) => {
                        let why = "it is none of the clock's rates";
                        return Err(Problem::at(&rate.span(), why));
                    }
                    Some(rate) => *rate.get_ref(),
                    None => lowest,
                };
                Arc::new(SimClock::new(rate, sim.enabled.unwrap_or(false)))
            }
            ClockBacking::Hook(hook) => {
                can_gate = hook.enabled.is_some();
                if hook.parent.is_none() && !parents.is_empty() {
                    let why = "it has parents: write parent = PATH, the file that says which \
                               one, counted from 0";
                    return Err(Problem::at(&place, why));
                }
                let initial = i64::try_from(lowest).unwrap_or(i64::MAX);
                let (rate, backing) = self.number(&hook.rate, mode, initial, &place)?;
                Arc::new(HookClock {
                    rate,
                    enabled: self.optional_switch(&hook.enabled, mode, false, &place)?,
                    parent: self.optional_number(&hook.parent, mode, 0, &place)?,
                    backing,
                })
            }
        };
        Ok(Clock {
            rates,
            parents,
            gate: gate(&table.gate, can_gate)?,
            enable_latency_us: table.enable_latency_us.unwrap_or(0),
            driver,
        })
    }

    /// A line, as both kinds of domains have it.
    fn gpio(&self, gpio: &file::Gpio, place: &Span, mode: Mode) -> Checked<GpioDomain> {
        let spec = gpio::LineSpec {
            chip: &gpio.chip,
            line: &gpio.line,
            active_low: gpio.active_low.unwrap_or(false),
            open_drain: gpio.open_drain.unwrap_or(false),
            initial: gpio.initial.as_ref().map(|initial| *initial.get_ref()),
        };
        if mode == Mode::Read {
            let why = "this sets the line, and no guest may control it: leave it out, or write \
                       control = […]";
            refuse(&gpio.initial, why)?;
        }
        if !self.looks {
            let line = self.opened(gpio::open(self.root, &spec, mode), place)?;
            if let Some(line) = line {
                return Ok(GpioDomain::Line(line));
            }
        }
        let found = self.opened(gpio::look(self.root, &spec, mode), place)?;
        let backing = found.unwrap_or_else(|| format!("{} line {}", gpio.chip, gpio.line));
        Ok(GpioDomain::Looked(Looked(backing)))
    }

    fn power(&self, span: &Span, table: file::Power, mode: Mode) -> Checked<Power> {
        let (place, backing) = one(
            span,
            [
                ("gpio", placed(table.gpio, GateBacking::Gpio)),
                ("regulator", placed(table.regulator, GateBacking::Consumer)),
                ("hook", placed(table.hook, GateBacking::Hook)),
                ("sim", placed(table.sim, GateBacking::Sim)),
            ],
        )?;
        let driver: Arc<dyn PowerDriver> = match backing {
            GateBacking::Gpio(gpio) => match self.gpio(&gpio, &place, mode)? {
                GpioDomain::Line(line) => Arc::new(line),
                GpioDomain::Looked(looked) => Arc::new(looked),
            },
            GateBacking::Consumer(file::Consumer { consumer }) => {
                let opened = regulator::consumer(self.root, &consumer, mode);
                match self.opened(opened, &place)? {
                    Some(switch) => Arc::new(switch),
                    None => absent(consumer),
                }
            }
            GateBacking::Hook(files) => {
                let (switch, name) = self.switch(&files, mode, false, &place)?;
                Arc::new(Switched::new(switch, name))
            }
            GateBacking::Sim(sim) => Arc::new(SimPower::new(match sim.on {
                Some(true) => PowerState::ON,
                _ => PowerState::OFF,
            })),
        };
        Ok(Power {
            states: vec![PowerState::ON, PowerState::OFF],
            driver,
        })
    }

    fn performance(
        &self,
        span: &Span,
        table: file::Performance,
        mode: Mode,
    ) -> Checked<Performance> {
        let (place, backing) = one(
            span,
            [
                (
                    "cpufreq",
                    placed(table.cpufreq, PerformanceBacking::Cpufreq),
                ),
                (
                    "devfreq",
                    placed(table.devfreq, PerformanceBacking::Devfreq),
                ),
                ("hook", placed(table.hook, PerformanceBacking::Hook)),
                ("sim", placed(table.sim, PerformanceBacking::Sim)),
            ],
        )?;
        let scaling = match &backing {
            PerformanceBacking::Cpufreq(policy) => {
                self.opened(frequency::cpufreq(self.root, policy, mode), &place)?
            }
            PerformanceBacking::Devfreq(device) => {
                self.opened(frequency::devfreq(self.root, device, mode), &place)?
            }
            PerformanceBacking::Hook(_) | PerformanceBacking::Sim(_) => None,
        };
        let on_host = matches!(
            backing,
            PerformanceBacking::Cpufreq(_) | PerformanceBacking::Devfreq(_)
        );
        let levels = match (on_host && scaling.is_none(), &table.levels) {
            // What there is instead is not known here.
            (true, None) => vec![PerformanceLevel {
                level: table.sustained.as_ref().map_or(1, |level| *level.get_ref()),
                power: 0,
                latency_us: 0,
                indicative_frequency_khz: 1,
            }],
            (true, Some(_)) => levels(span, &table.levels, Some(&frequency::Known::default()))?,
            (false, _) => levels(span, &table.levels, scaling.as_ref().map(|it| &it.known))?,
        };
        let numbers: Vec<_> = levels.iter().map(|level| level.level).collect();
        let position = |level: &Spanned<u32>| {
            let found = numbers.iter().position(|number| number == level.get_ref());
            let why = "it is none of the levels";
            found.ok_or_else(|| Problem::at(&level.span(), why))
        };
        let last = numbers.len().saturating_sub(1);
        let sustained = table
            .sustained
            .as_ref()
            .map(position)
            .transpose()?
            .unwrap_or(last);
        let driver: Arc<dyn crate::host::PerformanceDriver> = match (backing, scaling) {
            (PerformanceBacking::Sim(sim), _) => {
                let level = sim.level.as_ref().map(position).transpose()?;
                Arc::new(SimPerformance::new(
                    numbers.len(),
                    level.unwrap_or(sustained),
                ))
            }
            (PerformanceBacking::Hook(hook), _) => {
                let first = numbers.first().copied().unwrap_or(0).into();
                let last = numbers.last().copied().unwrap_or(0).into();
                let (level, backing) = self.number(&hook.level, mode, first, &place)?;
                let min = self.optional_number(&hook.min, mode, first, &place)?;
                let max = self.optional_number(&hook.max, mode, last, &place)?;
                Arc::new(HookPerformance {
                    levels: numbers,
                    level,
                    limits: Window::new(
                        min.unwrap_or_else(|| Number::remembered(first)),
                        max.unwrap_or_else(|| Number::remembered(last)),
                    ),
                    backing,
                })
            }
            (_, Some(scaling)) => Arc::new(scaling.driver(&numbers)),
            (PerformanceBacking::Cpufreq(name) | PerformanceBacking::Devfreq(name), None) => {
                absent(name)
            }
        };
        let sustained_level = levels.get(sustained);
        Ok(Performance {
            sustained,
            sustained_frequency_khz: sustained_level
                .map_or(0, |level| level.indicative_frequency_khz),
            level_indexing: table.level_indexing.unwrap_or(false),
            power_scale: power_scale(table.power_scale, PowerScale::Abstract),
            rate_limit_us: table.rate_limit_us.unwrap_or(0),
            limits: table.limits.unwrap_or(true),
            driver,
            levels,
        })
    }

    fn reset(&self, span: &Span, table: file::Reset, mode: Mode) -> Checked<Reset> {
        let (place, backing) = one(
            span,
            [
                ("gpio", placed(table.gpio, ResetBacking::Gpio)),
                ("hook", placed(table.hook, ResetBacking::Hook)),
                ("sim", placed(table.sim, |_| ResetBacking::Sim)),
            ],
        )?;
        let (mut autonomous, mut explicit) = (true, true);
        let driver: Arc<dyn crate::host::ResetDriver> = match backing {
            ResetBacking::Gpio(gpio) => match self.gpio(&gpio, &place, mode)? {
                GpioDomain::Line(line) => Arc::new(line),
                GpioDomain::Looked(looked) => Arc::new(looked),
            },
            ResetBacking::Sim => Arc::new(SimReset::default()),
            ResetBacking::Hook(hook) => {
                (autonomous, explicit) = (hook.reset.is_some(), hook.assert.is_some());
                let paths = [&hook.assert, &hook.reset];
                let names = paths.iter().filter_map(|path| {
                    let path = self.path(path.as_ref()?);
                    Some(path.display().to_string())
                });
                let names: Vec<_> = names.collect();
                if names.is_empty() {
                    let why = "it names no file: write reset = PATH, assert = PATH or both";
                    return Err(Problem::at(&place, why));
                }
                let sink = |path: &Option<PathBuf>| {
                    let sink = path.as_ref().map(|path| self.sink(path, mode, &place));
                    Ok(sink.transpose()?.flatten())
                };
                Arc::new(HookReset {
                    assert: sink(&hook.assert)?,
                    reset: sink(&hook.reset)?,
                    backing: names.join(" + "),
                })
            }
        };
        Ok(Reset {
            autonomous,
            explicit,
            latency_us: table.latency_us,
            driver,
        })
    }

    fn voltage(&self, span: &Span, table: file::Voltage, mode: Mode) -> Checked<Voltage> {
        let (place, backing) = one(
            span,
            [
                (
                    "regulator",
                    placed(table.regulator, VoltageBacking::Regulator),
                ),
                ("hook", placed(table.hook, VoltageBacking::Hook)),
                ("sim", placed(table.sim, VoltageBacking::Sim)),
            ],
        )?;
        let levels = table
            .microvolts
            .as_ref()
            .map(|levels| match levels.get_ref() {
                Choice::List(levels) => Levels::Discrete(levels.clone()),
                Choice::Range(steps) => Levels::Range {
                    min: steps.min,
                    max: steps.max,
                    step: steps.step.unwrap_or(1),
                },
            });
        let needed = || {
            Problem::at(
                span,
                "it has no voltages: write microvolts = [1800000, 3300000], or \
                 { min = 600000, max = 1200000, step = 12500 }",
            )
        };
        let lowest = levels.as_ref().map_or(0, |levels| match levels {
            Levels::Discrete(levels) => levels.first().copied().unwrap_or(0),
            Levels::Range { min, .. } => *min,
        });
        let mut can_gate = true;
        let (levels, driver): (_, Arc<dyn crate::host::VoltageDriver>) = match backing {
            VoltageBacking::Sim(sim) => {
                let has = |level| levels.as_ref().is_none_or(|levels| levels.contains(level));
                let microvolts = match &sim.microvolts {
                    Some(level) if !has(*level.get_ref()) => {
                        let why = "it is none of the domain's voltages";
                        return Err(Problem::at(&level.span(), why));
                    }
                    Some(level) => *level.get_ref(),
                    None => lowest,
                };
                let driver = SimVoltage::new(microvolts, sim.enabled.unwrap_or(false));
                (levels.ok_or_else(needed)?, Arc::new(driver))
            }
            VoltageBacking::Hook(hook) => {
                can_gate = hook.enabled.is_some();
                let (microvolts, backing) =
                    self.number(&hook.microvolts, mode, lowest.into(), &place)?;
                let enabled = self.optional_switch(&hook.enabled, mode, false, &place)?;
                let driver = HookVoltage {
                    microvolts,
                    enabled,
                    backing,
                };
                (levels.ok_or_else(needed)?, Arc::new(driver))
            }
            VoltageBacking::Regulator(names) => {
                let names = regulator::Names {
                    regulator: names.name.as_deref(),
                    consumer: names.consumer.as_deref(),
                    virt: names.r#virtual.as_deref(),
                };
                if names.regulator.is_none() && names.virt.is_none() {
                    let why = "it has no voltage: write name = REGULATOR, or virtual = \
                               REG-VIRT-CONSUMER, or make it a [[power]] domain";
                    return Err(Problem::at(&place, why));
                }
                let opened = regulator::Regulator::open(self.root, names, mode);
                let driver = self.opened(opened, &place)?;
                can_gate = names.consumer.is_some() || names.virt.is_some();
                let levels = match (levels, names.virt.is_some()) {
                    (Some(levels), true) => levels,
                    (None, true) => return Err(needed()),
                    (None, false) => {
                        let now = driver.as_ref().map(crate::host::VoltageDriver::level);
                        let now = now.transpose().map_err(|error| {
                            OpenError::Unfit(format!("its voltage cannot be read: {error}"))
                        });
                        let now = self.opened(now, &place)?.flatten();
                        Levels::Discrete(vec![now.unwrap_or(0)])
                    }
                    (Some(_), false) => {
                        refuse(
                            &table.microvolts,
                            "the kernel lets nobody set this regulator, so it has the voltage \
                             that it has: leave this out, or write virtual = REG-VIRT-CONSUMER",
                        )?;
                        return Err(needed());
                    }
                };
                let called = [names.regulator, names.consumer, names.virt];
                let called: Vec<_> = called.into_iter().flatten().collect();
                match driver {
                    Some(driver) => (levels, Arc::new(driver)),
                    None => (levels, absent(called.join(" + "))),
                }
            }
        };
        Ok(Voltage {
            levels,
            gate: gate(&table.gate, can_gate)?,
            driver,
        })
    }

    fn powercap(
        &self,
        span: &Span,
        table: file::Powercap,
        zones: &[String],
        mode: Mode,
    ) -> Checked<Powercap> {
        let (place, backing) = one(
            span,
            [
                ("powercap", placed(table.powercap, PowercapBacking::Zone)),
                ("hook", placed(table.hook, PowercapBacking::Hook)),
                ("sim", placed(table.sim, PowercapBacking::Sim)),
            ],
        )?;
        let mut power_scale = power_scale(
            table.power_scale.as_ref().map(|scale| *scale.get_ref()),
            PowerScale::Microwatts,
        );
        let mut cap = table.cap.as_ref().map(|cap| *cap.get_ref());
        let interval = table
            .interval_us
            .as_ref()
            .map(|interval| *interval.get_ref());
        let needed = || {
            let why = "it has no limits: write cap = { min = …, max = …, step = … }, as a guest \
                       that sets too low a cap stops the host";
            Problem::at(span, why)
        };
        let fixed = |number| file::Steps {
            min: number,
            max: number,
            step: None,
        };
        let mut can_disable = table.can_disable.unwrap_or(false);
        let usual = interval.map_or(INTERVAL_US, |interval| interval.max);
        let (interval, monitoring, driver): (_, _, Arc<dyn crate::host::PowercapDriver>) =
            match backing {
                PowercapBacking::Zone(zone) => {
                    refuse(&table.power_scale, "the kernel counts in µW: leave it out")?;
                    power_scale = PowerScale::Microwatts;
                    let measured = zone.monitoring.unwrap_or(true);
                    let constraint = zone.constraint.as_deref();
                    let name = &zone.zone;
                    let opened = powercap::open(self.root, name, constraint, mode, measured, usual);
                    match self.opened(opened, &place)? {
                        Some(zone) => {
                            cap = cap.or_else(|| {
                                Some(file::Steps {
                                    min: zone.min_uw?,
                                    max: zone.max_uw?,
                                    step: None,
                                })
                            });
                            let now = zone.interval_us.unwrap_or(usual);
                            let interval = interval.unwrap_or(fixed(now));
                            (interval, zone.monitoring, Arc::new(zone.driver))
                        }
                        None => {
                            // What the kernel says of it is not known here.
                            cap = cap.or(Some(fixed(1)));
                            let interval = interval.unwrap_or(fixed(usual));
                            (interval, measured, absent(name.clone()))
                        }
                    }
                }
                PowercapBacking::Hook(hook) => {
                    can_disable = table.can_disable.unwrap_or(hook.enabled.is_some());
                    let highest = cap.ok_or_else(needed)?.max.into();
                    let (number, backing) = self.number(&hook.cap, mode, highest, &place)?;
                    let interval_us =
                        self.optional_number(&hook.interval_us, mode, usual.into(), &place)?;
                    let monitoring = hook.power.is_some();
                    let power = hook.power.as_ref();
                    let power = power.map(|path| Attribute::to_read(&self.path(path)));
                    let power = power.map(|power| self.opened(power, &place));
                    let power = power.transpose()?.flatten();
                    let driver = Capped {
                        cap: number,
                        enabled: self.optional_switch(&hook.enabled, mode, true, &place)?,
                        interval: interval_us.unwrap_or_else(|| Number::remembered(usual.into())),
                        meter: power.map(Meter::Power),
                        backing,
                    };
                    (
                        interval.unwrap_or(fixed(usual)),
                        monitoring,
                        Arc::new(driver),
                    )
                }
                PowercapBacking::Sim(sim) => {
                    let load = match sim.load.as_ref().map(|load| &load.0[..]) {
                        None => Wave::Constant(0),
                        Some([load]) => to_wave(load, &place)?,
                        Some(_) => return Err(Problem::at(&place, "its load is one wave")),
                    };
                    let has = |wanted| cap.is_none_or(|cap| (cap.min..=cap.max).contains(&wanted));
                    let now = match &sim.cap {
                        Some(now) if !has(*now.get_ref()) => {
                            let why = "it is outside of the domain's limits, which `cap` says";
                            return Err(Problem::at(&now.span(), why));
                        }
                        Some(now) => Some(*now.get_ref()),
                        None => cap.map(|cap| cap.max),
                    };
                    let driver = SimPowercap::new(now, usual, load);
                    (interval.unwrap_or(fixed(usual)), true, Arc::new(driver))
                }
            };
        let cap = cap.ok_or_else(needed)?;
        let parent = table.parent.as_ref();
        let parent = parent.map(|parent| find("powercap", zones, parent));
        Ok(Powercap {
            power_scale,
            min_cap: cap.min,
            max_cap: cap.max,
            cap_step: cap.step.unwrap_or(1),
            min_pai_us: interval.min,
            max_pai_us: interval.max,
            pai_step_us: interval.step.unwrap_or(1),
            sustainable_power: table.sustainable.unwrap_or(0),
            accuracy: table.accuracy.unwrap_or(0),
            monitoring,
            can_disable,
            parent: parent.transpose()?,
            driver,
        })
    }

    fn system(&self, span: &Span, table: file::System, mode: Mode) -> Checked<SystemPower> {
        let timeout = table.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
        let has_any = table.hook.is_some() || table.sim.is_some();
        // Without any, the host may ask guests, and guests may not ask the host.
        let driver: Option<Arc<dyn SystemDriver>> = match has_any {
            false => None,
            true => {
                let (place, backing) = one(
                    span,
                    [
                        ("hook", placed(table.hook, SystemBacking::Hook)),
                        ("sim", placed(table.sim, |_| SystemBacking::Sim)),
                    ],
                )?;
                Some(match backing {
                    SystemBacking::Sim => Arc::new(SimSystem::default()),
                    SystemBacking::Hook(path) => Arc::new(HookSystem::new(
                        self.sink(&path, mode, &place)?,
                        self.path(&path).display().to_string(),
                    )),
                })
            }
        };
        Ok(SystemPower { timeout, driver })
    }
}

/// Pins are simulated: the kernel lets nobody else than itself have them.
fn pinctrl(span: &Span, table: file::Pinctrl) -> Checked<Pinctrl> {
    one(span, [("sim", placed(table.sim, |_| ()))])?;
    let groups = members("pin", table.groups, &table.pins)?;
    let called: Vec<_> = groups.iter().map(|group| group.name.clone()).collect();
    let functions = members("group", table.functions, &called)?;
    Ok(Pinctrl {
        pins: table.pins,
        groups,
        functions,
        driver: Arc::new(SimPinctrl::default()),
    })
}

/// Groups of what has these names.
fn members(
    what: &str,
    tables: Option<Vec<file::Members>>,
    names: &[String],
) -> Checked<Vec<Members>> {
    let member = |name: &Spanned<String>| {
        let found = names.iter().position(|other| other == name.get_ref());
        let found = found.and_then(|position| u16::try_from(position).ok());
        found.ok_or_else(|| {
            let why = format!("there is no {what} that is called {:?}", name.get_ref());
            Problem::at(&name.span(), why)
        })
    };
    let tables = tables.unwrap_or_default().into_iter().map(|table| {
        Ok(Members {
            members: table.members.iter().map(member).collect::<Checked<_>>()?,
            name: table.name,
        })
    });
    tables.collect()
}

/// Whether something can be turned off: what the file says, if the hardware can.
fn gate(wanted: &Option<Spanned<bool>>, can: bool) -> Checked<bool> {
    match wanted {
        None => Ok(can),
        Some(wanted) if *wanted.get_ref() && !can => Err(Problem::at(
            &wanted.span(),
            "nothing here turns it on and off: write what does beside what is behind it, or leave \
             this out",
        )),
        Some(wanted) => Ok(*wanted.get_ref()),
    }
}

/// The number of a resource by its name.
fn find(table: &str, names: &[String], name: &Spanned<String>) -> Checked<usize> {
    let found = names.iter().position(|other| other == name.get_ref());
    found.ok_or_else(|| {
        let why = format!(
            "there is no [[{table}]] that is called {:?}",
            name.get_ref()
        );
        Problem::at(&name.span(), why)
    })
}

fn power_scale(scale: Option<file::PowerScale>, usual: PowerScale) -> PowerScale {
    match scale {
        None => usual,
        Some(file::PowerScale::Abstract) => PowerScale::Abstract,
        Some(file::PowerScale::Milliwatts) => PowerScale::Milliwatts,
        Some(file::PowerScale::Microwatts) => PowerScale::Microwatts,
    }
}

fn period(period_ms: u64, place: &Span) -> Checked<Duration> {
    match period_ms {
        0 => Err(Problem::at(place, "a period is at least one millisecond")),
        ms => Ok(Duration::from_millis(ms)),
    }
}

fn to_wave(wave: &file::Wave, place: &Span) -> Checked<Wave> {
    Ok(match wave {
        file::Wave::Constant(number) => Wave::Constant(*number),
        file::Wave::Sine(around) => Wave::Sine {
            mean: around.mean,
            amplitude: around.amplitude,
            period: period(around.period_ms, place)?,
        },
        file::Wave::Triangle(around) => Wave::Triangle {
            mean: around.mean,
            amplitude: around.amplitude,
            period: period(around.period_ms, place)?,
        },
        file::Wave::Step(step) => Wave::Step {
            low: step.low,
            high: step.high,
            period: period(step.period_ms, place)?,
        },
        file::Wave::Counter(counter) => Wave::Counter {
            start: counter.start,
            step: counter.step,
            period: period(counter.period_ms, place)?,
        },
    })
}

/// From which number to which waves go, of those that have bounds.
fn extent(waves: &[Wave]) -> Option<(i64, i64)> {
    let bounds = |wave: &Wave| match *wave {
        Wave::Constant(number) => Some((number, number)),
        Wave::Sine {
            mean, amplitude, ..
        }
        | Wave::Triangle {
            mean, amplitude, ..
        } => {
            let far = amplitude.saturating_abs();
            Some((mean.saturating_sub(far), mean.saturating_add(far)))
        }
        Wave::Step { low, high, .. } => Some((low.min(high), low.max(high))),
        Wave::Counter { .. } | Wave::Readings { .. } => None,
    };
    let bounds = waves.iter().filter_map(bounds);
    bounds.reduce(|(least, most), (low, high)| (least.min(low), most.max(high)))
}

/// The most that a sensor's interval has digits for, when the last ones are 0.
const MAX_INTERVAL: u64 = u16::MAX as u64;

/// Intervals, each of which has to be a 16-bit number times a power of ten.
fn to_intervals(intervals: &Spanned<Choice<u64>>) -> Checked<Intervals> {
    let interval = |mut ms: u64| {
        let duration = Duration::from_millis(ms);
        while ms != 0 && ms.is_multiple_of(10) {
            ms /= 10;
        }
        match ms <= MAX_INTERVAL {
            true => Ok(duration),
            false => Err(Problem::at(
                &intervals.span(),
                format!(
                    "{} ms has too many digits: an interval is up to {MAX_INTERVAL}, times a \
                     power of ten",
                    duration.as_millis()
                ),
            )),
        }
    };
    Ok(match intervals.get_ref() {
        Choice::List(list) => {
            let list = list.iter().map(|ms| interval(*ms));
            Intervals::Discrete(list.collect::<Checked<_>>()?)
        }
        Choice::Range(steps) => Intervals::Range {
            min: interval(steps.min)?,
            max: interval(steps.max)?,
            step: interval(steps.step.unwrap_or(1))?,
        },
    })
}

/// The levels of a performance domain: those of the file, or those of the hardware.
fn levels(
    span: &Span,
    listed: &Option<Spanned<Vec<Spanned<file::Level>>>>,
    scaling: Option<&frequency::Known>,
) -> Checked<Vec<PerformanceLevel>> {
    let Some(listed) = listed else {
        let known = scaling.map_or(&[][..], |scaling| &scaling.frequencies_khz);
        if known.is_empty() {
            let why = match scaling.and_then(|scaling| scaling.range_khz) {
                Some((min, max)) => format!(
                    "the kernel has no table of frequencies for it: write levels = [{min}, \
                     {max}] with those in kHz that guests shall have"
                ),
                None => "it has no levels: write levels = [1, 2, 3], or with more of each, \
                         [{ level = 1, frequency-khz = 600000, power = 100 }]"
                    .to_owned(),
            };
            return Err(Problem::at(span, why));
        }
        let latency_us = scaling.map_or(0, |scaling| scaling.latency_us);
        let levels = known.iter().map(|&khz| PerformanceLevel {
            level: khz,
            power: 0,
            latency_us,
            indicative_frequency_khz: khz,
        });
        return Ok(levels.collect());
    };
    let levels = listed.get_ref().iter().map(|spanned| {
        let level = spanned.get_ref();
        let frequency = match (scaling, level.frequency_khz) {
            (Some(_), None) => level.level,
            (_, khz) => khz.unwrap_or(0),
        };
        if let Some(scaling) = scaling {
            let known = &scaling.frequencies_khz;
            let outside = |(min, max): (u32, u32)| !(min..=max).contains(&level.level);
            let wrong = match known.is_empty() {
                true => scaling.range_khz.is_some_and(outside),
                false => !known.contains(&level.level),
            };
            if wrong {
                let have = match (known.is_empty(), scaling.range_khz) {
                    (true, Some((min, max))) => format!("{min} to {max}"),
                    _ => {
                        let known: Vec<_> = known.iter().map(u32::to_string).collect();
                        known.join(", ")
                    }
                };
                let why = format!("the hardware has no {} kHz, but {have}", level.level);
                return Err(Problem::at(&spanned.span(), why));
            }
        }
        Ok(PerformanceLevel {
            level: level.level,
            power: level.power,
            latency_us: level.latency_us,
            indicative_frequency_khz: frequency,
        })
    });
    levels.collect()
}
