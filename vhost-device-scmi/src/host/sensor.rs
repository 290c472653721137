//! Sensors (DEN0056, protocol 0x15).

use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Result, Unit};

/// A sensor.
#[derive(Clone, Debug)]
pub struct Sensor {
    /// What it measures.
    pub shape: Shape,
    /// How often a guest may have it told.
    pub intervals: Intervals,
    /// The interval that holds until a guest chooses another; zero when the sensor does not say.
    pub default_interval: Duration,
    /// How many trip points a guest may set, at most 255. The daemon looks after them itself, with
    /// a reading at each interval or at each event. A sensor with several axes has none.
    pub trip_points: u8,
    /// Whether guests may ask for updates, at each interval or at each event.
    pub updates: bool,
    /// Whether a reading has a timestamp.
    pub timestamps: bool,
    /// How long a reading takes: then guests may ask for it and be told later. `None` when it is
    /// there at once.
    pub conversion: Option<Duration>,
    /// How much power it uses while it is on, in µW; 0 when that is not known.
    pub power_uw: u32,
    /// What drives it.
    pub driver: Arc<dyn SensorDriver>,
}

impl Sensor {
    /// How many numbers a reading has.
    pub fn width(&self) -> usize {
        match &self.shape {
            Shape::Scalar(_) => 1,
            Shape::Axes(axes) => axes.len(),
        }
    }
}

/// Whether a sensor measures one thing or several at once.
#[derive(Clone, Debug)]
pub enum Shape {
    /// One.
    Scalar(Quantity),
    /// Several, up to [`Shape::MAX_AXES`]. One alone is still an axis: some Linux drivers know
    /// sensors with axes only.
    Axes(Vec<Axis>),
}

impl Shape {
    /// The most axes: six bits count them.
    pub const MAX_AXES: usize = 63;
}

/// An axis of a sensor.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Its name: 1 to [`MAX_NAME`](super::MAX_NAME) bytes of printable ASCII. Linux's driver for
    /// IIO takes the last letter, X, Y or Z, as the direction.
    pub name: String,
    /// What it measures.
    pub quantity: Quantity,
}

/// What a number of a reading means: `number × 10^scale unit`.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// The unit.
    pub unit: Unit,
    /// The power of ten, from -16 to 15.
    pub scale: i8,
    /// The smallest difference that it sees, if that is known.
    pub resolution: Option<Resolution>,
    /// The least and the greatest number that it reads, if they are known.
    pub range: Option<(i64, i64)>,
}

/// `mantissa × 10^exponent`, in the sensor's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Below 2²⁷.
    pub mantissa: u32,
    /// From -16 to 15.
    pub exponent: i8,
}

/// The times between two readings that a guest may choose from. Each is a 16-bit number of some
/// power of ten of seconds, at least [`Intervals::MIN`]. None: it may choose nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intervals {
    /// These, from the shortest to the longest, at most [`Intervals::MAX`].
    Discrete(Vec<Duration>),
    /// From `min` to `max` in steps of `step`, which is not 0.
    Range {
        /// The shortest.
        min: Duration,
        /// The longest.
        max: Duration,
        /// The distance between two.
        step: Duration,
    },
}

impl Intervals {
    /// The most intervals of a list.
    pub const MAX: usize = 256;

    /// Whether an interval is one of them.
    pub fn contains(&self, interval: Duration) -> bool {
        match self {
            Self::Discrete(list) => list.contains(&interval),
            &Self::Range { min, max, step } => {
                let above = interval.checked_sub(min).map(|above| above.as_nanos());
                let above = above.and_then(|above| above.checked_rem(step.as_nanos()));
                interval <= max && above == Some(0)
            }
        }
    }

    /// The shortest interval: a guest must not keep its host busy with reading.
    pub const MIN: Duration = Duration::from_millis(1);
}

/// What comes with the numbers of a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// When it was made, if the hardware says so: the time since the host's boot
    /// (`CLOCK_BOOTTIME`).
    pub timestamp: Option<Duration>,
}

/// What drives a sensor.
pub trait SensorDriver: Driver {
    /// Reads the sensor: one number into `values` for each axis, or one for a scalar sensor. What
    /// the hardware gives is converted by then: a number times the power of ten of its
    /// [`Quantity`] is in its unit. With [`Driver::event`], this is the newest sample.
    ///
    /// # Errors
    /// The hardware's.
    fn read(&self, values: &mut [i64]) -> Result<Reading>;

    /// The shortest interval at which any guest wants readings now; `None` when none of them
    /// wants to be told. Only with [`Driver::event`] there is something to do: the others are read
    /// when it is time.
    ///
    /// # Errors
    /// The hardware's; then readings come as before.
    fn set_interval(&self, interval: Option<Duration>) -> Result<()> {
        let _ = interval;
        Ok(())
    }
}
