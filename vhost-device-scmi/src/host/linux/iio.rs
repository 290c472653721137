//! Industrial I/O: sensors with channels, read one by one or from the kernel's buffer.
//!
//! The kernel says for a channel `(raw + offset) × scale`, with both as decimal numbers. SCMI has
//! whole numbers and a power of ten, so the digits of the scale are a factor of the numbers, and
//! where its point is becomes the power: nothing is rounded.

use std::path::{Path, PathBuf};

use super::attribute::Attribute;
use super::{OpenError, Opened, Root, USUAL_INTERVAL, entries, label_of, these, usual_intervals};
use crate::host::{
    Access, Axis, Driver, Error, MAX_NAME, Permissions, Quantity, Reading, Resolution, Resource,
    Result, Sensor, SensorDriver, Shape, Unit,
};

mod buffer;
mod decimal;

pub use buffer::{Buffered, Buffers, Setup};
use decimal::Decimal;

const CLASS: &str = "sys/bus/iio/devices";

/// What a channel measures by its type, with the power of ten of what the kernel calls one.
const KINDS: [(&str, Unit, i8); 21] = [
    ("voltage", Unit::VOLTS, -3),
    ("altvoltage", Unit::VOLTS, -3),
    ("current", Unit::AMPS, -3),
    ("power", Unit::WATTS, -3),
    ("energy", Unit::JOULES, 0),
    ("accel", Unit::METERS_PER_SECOND_SQUARED, 0),
    ("gravity", Unit::METERS_PER_SECOND_SQUARED, 0),
    ("anglvel", Unit::RADIANS_PER_SECOND, 0),
    ("angl", Unit::RADIANS, 0),
    ("magn", Unit::GAUSS, 0),
    ("temp", Unit::CELSIUS, -3),
    ("pressure", Unit::KILOPASCALS, 0),
    ("humidityrelative", Unit::PERCENT, -3),
    ("concentration", Unit::PERCENT, 0),
    ("illuminance", Unit::LUX, 0),
    ("distance", Unit::METERS, 0),
    // Ohms and farads, which `Unit` has no constants for.
    ("resistance", Unit(0x31), 0),
    ("capacitance", Unit(0x30), -9),
    ("count", Unit::COUNTS, 0),
    ("intensity", Unit::NONE, 0),
    ("proximity", Unit::NONE, 0),
];

/// A channel as its files tell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Channel {
    /// `in_accel_x`.
    base: String,
    /// `in_accel` for `in_accel_x`: the sensor that it is an axis of.
    group: String,
    /// `X`.
    axis: Option<char>,
    /// Whether the kernel gives it as it is (`_raw`) or computed (`_input`).
    raw: bool,
}

impl Channel {
    fn of_file(file: &str) -> Option<Self> {
        let (base, raw) = match file.strip_suffix("_raw") {
            Some(base) => (base, true),
            None => (file.strip_suffix("_input")?, false),
        };
        base.strip_prefix("in_")?;
        let axes = [("_x", 'X'), ("_y", 'Y'), ("_z", 'Z')];
        let axis = axes
            .iter()
            .find_map(|(end, axis)| Some((base.strip_suffix(end)?, *axis)));
        Some(Self {
            base: base.to_owned(),
            group: axis.map_or(base, |(group, _)| group).to_owned(),
            axis: axis.map(|(_, axis)| axis),
            raw,
        })
    }

    /// What an axis is called: `accel_X`.
    fn axis_name(&self) -> String {
        let group = self.group.strip_prefix("in_").unwrap_or(&self.group);
        match self.axis {
            Some(axis) => format!("{group}_{axis}"),
            None => group.to_owned(),
        }
    }

    /// `accel` for `in_accel_x`, `voltage` for `in_voltage0` and `in_voltage0-voltage1`.
    fn kind(&self) -> &str {
        let name = self.group.strip_prefix("in_").unwrap_or(&self.group);
        let end = name.find(|letter: char| !letter.is_ascii_lowercase());
        name.get(..end.unwrap_or(name.len())).unwrap_or(name)
    }

    /// The file of a property that channels may share: `in_accel_x_scale`, `in_accel_scale`.
    fn property(&self, what: &str, names: &[String]) -> Option<String> {
        let kind = self.kind();
        let candidates = [
            format!("{}_{what}", self.base),
            format!("{}_{what}", self.group),
            format!("in_{kind}_{what}"),
            format!("in_{kind}-{kind}_{what}"),
            format!("in_{what}"),
        ];
        candidates
            .into_iter()
            .find(|file| names.iter().any(|name| name == file))
    }
}

/// How a channel's numbers become a sensor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Conversion {
    /// In front: raw numbers are multiplied by this, and the offset is added.
    multiplier: i64,
    offset: i64,
    /// Then this.
    factor: i64,
    /// And divided by this, so that the power of ten is one that SCMI has.
    divisor: i64,
}

impl Conversion {
    /// A number of the kernel's as one of the sensor's, if it has room.
    fn apply(&self, raw: i64) -> Option<i64> {
        let sum = i128::from(raw) * i128::from(self.multiplier) + i128::from(self.offset);
        let number = sum.checked_mul(self.factor.into())? / i128::from(self.divisor.max(1));
        i64::try_from(number).ok()
    }
}

/// What a channel needs to be read, opened.
#[derive(Debug)]
struct Opener<'a> {
    device: &'a Path,
    names: &'a [String],
}

impl Opener<'_> {
    fn decimal(&self, channel: &Channel, what: &str) -> Opened<Option<Decimal>> {
        let Some(file) = channel.property(what, self.names) else {
            return Ok(None);
        };
        let path = self.device.join(file);
        let line = Attribute::to_read(&path)?.line()?;
        Decimal::parse(&line)
            .map(Some)
            .ok_or_else(|| OpenError::unfit(format!("{} says {line:?}: no number", path.display())))
    }

    /// What the channel's numbers mean, and how the sensor's are made of them.
    fn conversion(&self, channel: &Channel) -> Opened<(Quantity, Conversion)> {
        let kind = channel.kind();
        let known = KINDS.iter().find(|(name, ..)| *name == kind);
        let (unit, exponent) =
            known.map_or((Unit::UNSPECIFIED, 0), |&(_, unit, scale)| (unit, scale));
        let one = Decimal {
            digits: 1,
            exponent: 0,
        };
        let (scale, offset) = if channel.raw {
            (
                self.decimal(channel, "scale")?.unwrap_or(one),
                self.decimal(channel, "offset")?.unwrap_or_default(),
            )
        } else {
            // It is computed, and may have digits behind the point: they stay as many.
            (one, Decimal::default())
        };
        // The offset's digits behind the point are the raw number's, too.
        let behind = offset.exponent.min(0);
        let too_fine = || {
            OpenError::unfit(format!(
                "scale and offset of {} in {} have more digits than can be told",
                channel.base,
                self.device.display()
            ))
        };
        let power = |exponent: i8| 10_i64.checked_pow(exponent.unsigned_abs().into());
        let multiplier = power(behind).ok_or_else(too_fine)?;
        let offset_factor = power(offset.exponent - behind).ok_or_else(too_fine)?;
        let mut conversion = Conversion {
            multiplier,
            offset: offset
                .digits
                .checked_mul(offset_factor)
                .ok_or_else(too_fine)?,
            factor: scale.digits,
            divisor: 1,
        };
        let mut exponent = i16::from(exponent) + i16::from(scale.exponent) + i16::from(behind);
        while exponent < -16 {
            conversion.divisor = conversion.divisor.checked_mul(10).ok_or_else(too_fine)?;
            exponent += 1;
        }
        while exponent > 15 {
            conversion.factor = conversion.factor.checked_mul(10).ok_or_else(too_fine)?;
            exponent -= 1;
        }
        let quantity = Quantity {
            unit,
            // Fits: it is within -16 and 15.
            scale: exponent as i8,
            resolution: resolution(multiplier, &conversion, exponent as i8),
            range: None,
        };
        Ok((quantity, conversion))
    }

    /// A channel for reading it by its own file.
    fn direct(&self, channel: &Channel) -> Opened<(Quantity, Direct)> {
        let end = if channel.raw { "raw" } else { "input" };
        let value = Attribute::to_read(&self.device.join(format!("{}_{end}", channel.base)))?;
        let (mut quantity, conversion) = self.conversion(channel)?;
        // A computed number says by its digits what its power of ten is.
        let mut behind = 0;
        if !channel.raw {
            let now = value
                .line()
                .ok()
                .and_then(|line| Decimal::parse_exact(&line));
            behind = now
                .map_or(0, |now| now.exponent.min(0))
                .max(-16 - quantity.scale);
            quantity.scale += behind;
        }
        let direct = Direct {
            value,
            conversion,
            exponent: behind,
        };
        Ok((quantity, direct))
    }
}

/// What one more of the raw number is.
fn resolution(multiplier: i64, conversion: &Conversion, exponent: i8) -> Option<Resolution> {
    let step = conversion.factor.checked_mul(multiplier)? / conversion.divisor;
    let mantissa = u32::try_from(step.unsigned_abs()).ok()?;
    let known = (1..1 << 27).contains(&mantissa);
    known.then_some(Resolution { mantissa, exponent })
}

/// A channel that is read by its own file.
#[derive(Debug)]
struct Direct {
    value: Attribute,
    conversion: Conversion,
    /// The power of ten of a computed number's last digit.
    exponent: i8,
}

impl Direct {
    fn read(&self) -> Result<i64> {
        let line = self.value.line()?;
        let number = Decimal::parse(&line).and_then(|number| number.at(self.exponent));
        let number = number.and_then(|number| self.conversion.apply(number));
        number.ok_or_else(|| self.value.says(&line, "a number within bounds"))
    }
}

/// A sensor whose channels are read by their own files.
#[derive(Debug)]
struct DirectSensor {
    axes: Vec<Direct>,
    backing: String,
}

impl Driver for DirectSensor {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl SensorDriver for DirectSensor {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        if values.len() != self.axes.len() {
            return Err(Error::NotSupported);
        }
        for (value, axis) in values.iter_mut().zip(&self.axes) {
            *value = axis.read()?;
        }
        Ok(Reading::default())
    }
}

/// The device: what its `name` says, or `iio:deviceN`, or a path.
fn device(root: &Root, wanted: &str) -> Opened<PathBuf> {
    root.device(CLASS, "name", wanted)
}

/// The channels of each sensor of a device, and the one that is wanted alone. A channel's name is
/// with or without `in_`.
fn groups(device: &Path, names: &[String], wanted: Option<&str>) -> Opened<Vec<Vec<Channel>>> {
    let mut groups: Vec<Vec<Channel>> = Vec::new();
    // `_raw` is before `_input` where a channel has both.
    let mut channels: Vec<_> = names
        .iter()
        .filter_map(|name| Channel::of_file(name))
        .collect();
    channels.sort_by_key(|channel| !channel.raw);
    for channel in channels {
        let group = groups
            .iter_mut()
            .find(|group| group.iter().any(|other| other.group == channel.group));
        match group {
            Some(group) if group.iter().any(|other| other.base == channel.base) => {}
            Some(group) => group.push(channel),
            None => groups.push(vec![channel]),
        }
    }
    for group in &mut groups {
        group.sort_by_key(|channel| channel.axis);
        group.truncate(Shape::MAX_AXES);
    }
    groups.sort_by(|one, other| name_of(one).cmp(name_of(other)));
    let Some(wanted) = wanted else {
        return Ok(groups);
    };
    let is_wanted = |name: &str| name == wanted || name.strip_prefix("in_") == Some(wanted);
    if let Some(group) = groups.iter().find(|group| is_wanted(name_of(group))) {
        return Ok(vec![group.clone()]);
    }
    let channel = groups
        .iter()
        .flatten()
        .find(|channel| is_wanted(&channel.base));
    channel
        .map(|channel| vec![vec![channel.clone()]])
        .ok_or_else(|| {
            OpenError::unfit(format!(
                "{} has no channel {wanted:?}; {}",
                device.display(),
                these(groups.iter().map(|group| name_of(group)))
            ))
        })
}

fn name_of(group: &[Channel]) -> &str {
    group.first().map_or("", |channel| &channel.group)
}

/// A name of the host's, without what is no printable ASCII and what is too much.
fn tellable(name: &str) -> String {
    let ascii = name.chars().filter(|letter| (' '..='~').contains(letter));
    ascii.take(MAX_NAME).collect()
}

/// One number, or several where channels are axes.
fn shape(channels: &[Channel], quantities: Vec<Quantity>) -> Shape {
    match (channels, &quantities[..]) {
        ([Channel { axis: None, .. }], [quantity]) => Shape::Scalar(quantity.clone()),
        _ => {
            let axes = channels.iter().zip(quantities);
            let axes = axes.map(|(channel, quantity)| {
                let name = tellable(&channel.axis_name());
                Axis { name, quantity }
            });
            Shape::Axes(axes.collect())
        }
    }
}

/// The sensor that `channel` of the device `wanted` is, read by its own files.
///
/// The device is what its attribute `name` says, or `iio:deviceN`, or a path. The channel is as
/// its files are called: `in_accel` for all axes, `in_accel_x` for one, `in_voltage0`.
///
/// # Errors
/// When there is no such device or channel, with those that there are.
pub fn open(root: &Root, wanted: &str, channel: &str) -> Opened<(Shape, Box<dyn SensorDriver>)> {
    let device = device(root, wanted)?;
    let names = entries(&device)?;
    let groups = groups(&device, &names, Some(channel))?;
    let channels = groups.into_iter().next().unwrap_or_default();
    let (shape, driver) = direct(&device, &names, &channels)?;
    Ok((shape, Box::new(driver)))
}

fn direct(device: &Path, names: &[String], channels: &[Channel]) -> Opened<(Shape, DirectSensor)> {
    let opener = Opener { device, names };
    let axes = channels.iter().map(|channel| opener.direct(channel));
    let (quantities, axes) = axes.collect::<Opened<(Vec<_>, Vec<_>)>>()?;
    let backing = format!("{} {}", device.display(), name_of(channels));
    Ok((shape(channels, quantities), DirectSensor { axes, backing }))
}

/// See [`super::iio`].
pub(super) fn sensors(device: &Path, channel: Option<&str>) -> Opened<Vec<Resource<Sensor>>> {
    let names = entries(device)?;
    let groups = groups(device, &names, channel)?;
    if groups.is_empty() {
        let text = format!("{} has no channels to read", device.display());
        return Err(OpenError::unfit(text));
    }
    let called = label_of(&device.join("name")).unwrap_or_else(|| "iio".to_owned());
    let alone = groups.len() == 1;
    let sensors = groups.iter().map(|channels| {
        let (shape, driver) = direct(device, &names, channels)?;
        let channel = name_of(channels);
        let channel = channel.strip_prefix("in_").unwrap_or(channel);
        let name = if alone {
            called.clone()
        } else {
            format!("{called}-{channel}")
        };
        Ok(Resource {
            name: tellable(&name),
            permissions: Permissions::all(Access::Read),
            kind: Sensor {
                shape,
                intervals: usual_intervals(),
                default_interval: USUAL_INTERVAL,
                trip_points: 0,
                updates: true,
                timestamps: false,
                conversion: None,
                power_uw: 0,
                driver: std::sync::Arc::new(driver),
            },
        })
    });
    sensors.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    const DEVICE: &str = "sys/bus/iio/devices/iio:device0";

    fn tree() -> Tree {
        let tree = Tree::new();
        tree.files(
            DEVICE,
            &[
                ("name", "imu"),
                ("in_accel_x_raw", "1000"),
                ("in_accel_y_raw", "-1000"),
                ("in_accel_z_raw", "16384"),
                ("in_accel_scale", "0.000598550"),
                ("in_anglvel_x_raw", "3"),
                ("in_anglvel_scale", "0.001064724"),
                ("in_temp_raw", "100"),
                ("in_temp_offset", "12420.5"),
                ("in_temp_scale", "2.5"),
                ("in_voltage0_raw", "2048"),
                ("in_voltage1_raw", "1"),
                ("in_voltage_scale", "0.805664062"),
                ("in_illuminance_input", "417.250000"),
                ("in_illuminance_raw", "7"),
                ("in_pressure_input", "101.325000"),
                ("sampling_frequency", "100"),
            ],
        );
        tree
    }

    fn read(tree: &Tree, channel: &str) -> (Shape, Vec<i64>) {
        let (shape, driver) = open(&tree.root(), "imu", channel).unwrap();
        let width = match &shape {
            Shape::Scalar(_) => 1,
            Shape::Axes(axes) => axes.len(),
        };
        let mut values = vec![0; width];
        driver.read(&mut values).unwrap();
        (shape, values)
    }

    fn read_scalar(tree: &Tree, channel: &str) -> (i64, i8, Unit) {
        match read(tree, channel) {
            (Shape::Scalar(quantity), values) => (values[0], quantity.scale, quantity.unit),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn test_channels_with_axes_are_one_sensor() {
        let tree = tree();
        let (shape, values) = read(&tree, "in_accel");
        let Shape::Axes(axes) = shape else {
            panic!("{shape:?}");
        };
        let names: Vec<_> = axes.iter().map(|axis| axis.name.as_str()).collect();
        assert_eq!(names, ["accel_X", "accel_Y", "accel_Z"]);
        // 0.000598550 is 59855 × 10^-8.
        assert_eq!(values, [59_855_000, -59_855_000, 16_384 * 59_855]);
        for axis in axes {
            assert_eq!(axis.quantity.scale, -8);
            assert_eq!(axis.quantity.unit, Unit::METERS_PER_SECOND_SQUARED);
            let resolution = axis.quantity.resolution.unwrap();
            assert_eq!((resolution.mantissa, resolution.exponent), (59_855, -8));
        }
    }

    #[test]
    fn test_scale_and_offset_are_exact() {
        let tree = tree();
        // (100 + 12420.5) × 2.5 = 31301.25 m°C.
        assert_eq!(
            read_scalar(&tree, "in_temp"),
            (3_130_125, -5, Unit::CELSIUS)
        );
        // 2048 × 0.805664062 = 1649.999998976 mV.
        let expected = (2048 * 805_664_062, -12, Unit::VOLTS);
        assert_eq!(read_scalar(&tree, "voltage0"), expected);
    }

    #[test]
    fn test_computed_channels_keep_their_digits() {
        let tree = tree();
        let expected = (101_325_000, -6, Unit::KILOPASCALS);
        assert_eq!(read_scalar(&tree, "in_pressure"), expected);
        // Raw, where there are both.
        assert_eq!(read_scalar(&tree, "in_illuminance"), (7, 0, Unit::LUX));
    }

    #[test]
    fn test_a_name_of_the_hosts_is_one_that_can_be_told() {
        // The 63rd byte is within a letter.
        let long = format!("{}é{}", "a".repeat(62), "b".repeat(9));
        assert_eq!(tellable(&long), format!("{}b", "a".repeat(62)));
    }

    #[test]
    fn test_an_axis_alone_stays_an_axis() {
        let tree = tree();
        let (shape, values) = read(&tree, "in_accel_z");
        assert!(matches!(&shape, Shape::Axes(axes) if axes[0].name == "accel_Z"));
        assert_eq!(values, [16_384 * 59_855]);
    }

    #[test]
    fn test_upstreams_device_is_all_its_sensors() {
        let tree = tree();
        let all = crate::host::linux::iio(&tree.path(DEVICE), None).unwrap();
        let names: Vec<_> = all.iter().map(|sensor| sensor.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "imu-accel",
                "imu-anglvel",
                "imu-illuminance",
                "imu-pressure",
                "imu-temp",
                "imu-voltage0",
                "imu-voltage1"
            ]
        );
        let one = crate::host::linux::iio(&tree.path(DEVICE), Some("in_accel")).unwrap();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].name, "imu");
        assert_eq!(one[0].kind.width(), 3);
        assert_eq!(one[0].permissions.of(7), Access::Read);
    }

    #[test]
    fn test_what_is_not_there_is_told_with_what_is() {
        let tree = tree();
        let error = open(&tree.root(), "imu", "in_magn")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("in_accel, in_anglvel, in_illuminance"),
            "{error}"
        );
        let error = crate::host::linux::iio(Path::new("/gone"), None).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/gone"), "{error}");
        tree.files(DEVICE, &[("in_accel_scale", "half")]);
        let error = open(&tree.root(), "imu", "in_accel").unwrap_err();
        assert!(error.to_string().contains("in_accel_scale"), "{error}");
    }

    #[test]
    fn test_a_number_without_room_is_a_hardware_error() {
        let tree = tree();
        let (_, driver) = open(&tree.root(), "imu", "in_temp").unwrap();
        for text in ["9223372036854775807\n", "warm\n", "\n"] {
            tree.write(&format!("{DEVICE}/in_temp_raw"), text);
            assert!(matches!(driver.read(&mut [0]), Err(Error::Hardware(_))));
        }
    }
}
