//! `[[sensor]]`: sensors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Builder;
use super::open::{absent, one, placed, refuse};
use super::wave::{extent, to_wave};
use crate::host::linux::attribute::{Attribute, Mode};
use crate::host::linux::hook::HookSensor;
use crate::host::linux::iio::Setup;
use crate::host::linux::{
    Opened, USUAL_INTERVAL, hwmon, iio, power_supply, thermal, usual_intervals,
};
use crate::host::sim::SimSensor;
use crate::host::{Axis, Intervals, Quantity, Sensor, SensorDriver, Shape, Unit};
use crate::platform::file::{self, Choice, Steps};
use crate::platform::{Checked, Problem, Span};

/// How many trip points a sensor has when the file does not say it, if it may have any.
const TRIP_POINTS: u8 = 4;

enum SensorBacking {
    Hwmon(file::Hwmon),
    Iio(file::Iio),
    Thermal(String),
    PowerSupply(file::PowerSupply),
    Hook(PathBuf),
    Sim(file::Waves),
}

/// A quantity in place of that of a sensor whose hardware is not here.
fn unknown() -> Quantity {
    Quantity {
        unit: Unit::UNSPECIFIED,
        scale: 0,
        resolution: None,
        range: None,
    }
}

impl Builder<'_> {
    pub(super) fn sensor(
        &mut self,
        span: &Span,
        table: file::Sensor,
        mode: Mode,
    ) -> Checked<Sensor> {
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
        let described = || described(span, &table.unit, &table.scale, &table.axes);
        let root = self.site.root;
        // The lowest and the highest number of a simulated one.
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
            limit(&mut shape, range.get_ref(), simulated, &place)?;
        }
        let intervals = match &table.intervals_ms {
            None => usual_intervals(),
            Some(intervals) => to_intervals(intervals)?,
        };
        let default_interval = match &table.default_interval_ms {
            None => usual_interval(&intervals),
            Some(chosen) => chosen_interval(&intervals, chosen)?,
        };
        let trip_points = match &shape {
            Shape::Scalar(_) => TRIP_POINTS,
            Shape::Axes(_) => 0,
        };
        Ok(Sensor {
            shape,
            intervals,
            default_interval,
            trip_points: table.trip_points.unwrap_or(trip_points),
            updates: table.updates.unwrap_or(true),
            timestamps: table.timestamps.unwrap_or(true),
            conversion: table.conversion_ms.map(Duration::from_millis),
            power_uw: table.power_uw.unwrap_or(0),
            driver,
        })
    }

    pub(super) fn iio(
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
            let opened = iio::open(self.site.root, &iio.device, &iio.channel);
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
            .add(self.site.root, &iio.device, &iio.channel, setup);
        self.buffered = (place.clone(), self.resource);
        let added = added.map(|(shape, driver)| (shape, driver as Arc<dyn SensorDriver>));
        self.host_sensor(added, place, what)
    }

    /// A sensor of the host's.
    pub(super) fn host_sensor(
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
}

/// What a sensor measures, if the file says it and not the hardware.
fn described(
    table: &Span,
    unit: &Option<Spanned<String>>,
    scale: &Option<Spanned<i8>>,
    axes: &Option<Spanned<Vec<String>>>,
) -> Checked<Shape> {
    let Some(unit) = unit else {
        let why = "it has no unit: write unit = \"celsius\", or another one";
        return Err(Problem::at(table, why));
    };
    let number = unit.get_ref().parse::<Unit>();
    let quantity = Quantity {
        unit: number.map_err(|error| Problem::at(&unit.span(), error))?,
        scale: scale.as_ref().map_or(0, |scale| *scale.get_ref()),
        resolution: None,
        range: None,
    };
    Ok(match axes {
        None => Shape::Scalar(quantity),
        Some(names) => {
            let axes = names.get_ref().iter().map(|name| Axis {
                name: name.clone(),
                quantity: quantity.clone(),
            });
            Shape::Axes(axes.collect())
        }
    })
}

/// Gives all that a sensor measures this range. The numbers of a simulated one have to be in it.
fn limit(
    shape: &mut Shape,
    range: &Steps<i64>,
    simulated: Option<(i64, i64)>,
    place: &Span,
) -> Checked<()> {
    let quantities: Vec<_> = match shape {
        Shape::Scalar(quantity) => vec![quantity],
        Shape::Axes(axes) => axes.iter_mut().map(|axis| &mut axis.quantity).collect(),
    };
    for quantity in quantities {
        quantity.range = Some((range.min, range.max));
    }
    match simulated {
        // That the range has its ends the wrong way round is for `Platform::check`.
        Some((least, most))
            if (least < range.min || most > range.max) && range.min <= range.max =>
        {
            let why = format!("its numbers are from {least} to {most}, which is not within range");
            Err(Problem::at(place, why))
        }
        _ => Ok(()),
    }
}

/// The interval of a sensor whose default the file does not say: a second, or what is near.
fn usual_interval(intervals: &Intervals) -> Duration {
    match intervals {
        Intervals::Discrete(list) if list.contains(&USUAL_INTERVAL) => USUAL_INTERVAL,
        Intervals::Discrete(list) => list.first().copied().unwrap_or(USUAL_INTERVAL),
        Intervals::Range { min, max, .. } => USUAL_INTERVAL.clamp(*min, *max.max(min)),
    }
}

fn chosen_interval(intervals: &Intervals, ms: &Spanned<u64>) -> Checked<Duration> {
    let chosen = Duration::from_millis(*ms.get_ref());
    if !intervals.contains(chosen) {
        let why = "it is none of the intervals: add it to intervals-ms, or write one of those";
        return Err(Problem::at(&ms.span(), why));
    }
    Ok(chosen)
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
        if ms <= MAX_INTERVAL {
            return Ok(duration);
        }
        let why = format!(
            "{} ms has too many digits: an interval is up to {MAX_INTERVAL}, times a power of ten",
            duration.as_millis()
        );
        Err(Problem::at(&intervals.span(), why))
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
