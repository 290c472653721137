//! Sensors of the kernel's hardware monitoring, `/sys/class/hwmon`.

use std::path::Path;

use super::attribute::Attribute;
use super::{OpenError, Opened, Root, entries, label_of, these};
use crate::host::{Driver, Error, Quantity, Reading, Result, SensorDriver, Unit};

/// A file with the number that a sensor reads.
///
/// Behind hwmon, thermal zones and power supplies: each has its numbers in whole multiples of some
/// power of ten.
#[derive(Debug)]
pub struct FileSensor {
    value: Attribute,
    /// Says 1 when the value means nothing.
    fault: Option<Attribute>,
    factor: i64,
    backing: String,
}

impl FileSensor {
    pub(super) fn new(value: Attribute, fault: Option<Attribute>, factor: i64) -> Self {
        let backing = value.path().display().to_string();
        Self {
            value,
            fault,
            factor,
            backing,
        }
    }
}

impl Driver for FileSensor {
    fn backing(&self) -> String {
        self.backing.clone()
    }
}

impl SensorDriver for FileSensor {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        if let Some(fault) = &self.fault
            && fault.number()? != 0
        {
            return Err(fault.says(1, "0: the sensor has a fault"));
        }
        let number = self.value.number()?;
        let number = number
            .checked_mul(self.factor)
            .ok_or_else(|| self.value.says(number, "within bounds"))?;
        match values {
            [value] => {
                *value = number;
                Ok(Reading::default())
            }
            _ => Err(Error::NotSupported),
        }
    }
}

/// What a channel measures by how its name begins.
const KINDS: [(&str, Unit, i8); 9] = [
    ("temp", Unit::CELSIUS, -3),
    ("in", Unit::VOLTS, -3),
    ("curr", Unit::AMPS, -3),
    ("power", Unit::WATTS, -6),
    ("energy", Unit::JOULES, -6),
    ("humidity", Unit::PERCENT, -3),
    ("fan", Unit::RPM, 0),
    ("freq", Unit::HERTZ, 0),
    ("pwm", Unit::NONE, 0),
];

/// The sensor `channel` of the hwmon chip `chip`.
///
/// The chip is what its attribute `name` says, or `hwmonN`, or a path. The channel is `temp1`, or
/// what `temp1_label` says, or one of the chip's files, as `temp1_crit`.
///
/// # Errors
/// When there is no such chip or channel, with those that there are.
pub fn open(root: &Root, chip: &str, channel: &str) -> Opened<(Quantity, FileSensor)> {
    let chip = root.device("sys/class/hwmon", "name", chip)?;
    let names = entries(&chip)?;
    let (file, channel) = find(&chip, &names, channel)?;
    let (unit, scale) = kind(&channel).ok_or_else(|| {
        OpenError::unfit(format!(
            "{channel} of {} is no measurement, as temp1, in0, curr1, power1 and fan1 are",
            chip.display()
        ))
    })?;
    let value = Attribute::to_read(&chip.join(file))?;
    let fault = Attribute::optional(&chip.join(format!("{channel}_fault")))?;
    let quantity = Quantity {
        unit,
        scale,
        resolution: None,
        range: None,
    };
    Ok((quantity, FileSensor::new(value, fault, 1)))
}

/// Files that have a channel's value, by what is behind its name.
const VALUES: [&str; 2] = ["_input", "_average"];

/// The file of a channel, and the channel's name.
fn find(chip: &Path, names: &[String], wanted: &str) -> Opened<(String, String)> {
    let has = |file: &str| names.iter().any(|name| name == file);
    let value = |channel: &str| {
        let mut files = VALUES.iter().map(|end| format!("{channel}{end}"));
        files.find(|file| has(file))
    };
    if let Some(file) = value(wanted) {
        return Ok((file, wanted.to_owned()));
    }
    if has(wanted) && kind(wanted).is_some() {
        let channel = wanted.split('_').next().unwrap_or(wanted);
        return Ok((wanted.to_owned(), channel.to_owned()));
    }
    let labelled = names.iter().filter_map(|name| name.strip_suffix("_label"));
    let found: Vec<_> = labelled
        .filter(|channel| {
            let label = label_of(&chip.join(format!("{channel}_label")));
            label.as_deref() == Some(wanted)
        })
        .filter_map(|channel| Some((value(channel)?, channel.to_owned())))
        .collect();
    match <[_; 1]>::try_from(found) {
        Ok([found]) => Ok(found),
        Err(found) if found.is_empty() => Err(OpenError::unfit(format!(
            "{} has no channel {wanted:?}; {}",
            chip.display(),
            these(channels(names))
        ))),
        Err(found) => Err(OpenError::unfit(format!(
            "several channels of {} are called {wanted:?}: {}",
            chip.display(),
            these(found.iter().map(|(_, channel)| channel))
        ))),
    }
}

/// The channels that have a value.
fn channels(names: &[String]) -> impl Iterator<Item = &str> {
    names
        .iter()
        .filter_map(|name| VALUES.iter().find_map(|end| name.strip_suffix(end)))
}

/// What a channel or a file of it measures: letters, then a number.
fn kind(channel: &str) -> Option<(Unit, i8)> {
    let letters = channel.find(|letter: char| letter.is_ascii_digit())?;
    let name = channel.get(..letters)?;
    let kind = KINDS.iter().find(|(kind, ..)| *kind == name);
    kind.map(|&(_, unit, scale)| (unit, scale))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    const CHIP: &str = "sys/class/hwmon/hwmon3";

    fn tree() -> Tree {
        let tree = Tree::new();
        tree.files(
            CHIP,
            &[
                ("name", "board"),
                ("temp1_input", "41500"),
                ("temp1_label", "CPU"),
                ("temp1_crit", "95000"),
                ("temp2_input", "-5250"),
                ("temp2_fault", "0"),
                ("in0_input", "3300"),
                ("power1_average", "12500000"),
                ("fan1_input", "1200"),
                ("pwm1", "255"),
                ("intrusion0_alarm", "0"),
            ],
        );
        tree
    }

    fn read(tree: &Tree, channel: &str) -> (i64, i8, Unit) {
        let (quantity, sensor) = open(&tree.root(), "board", channel).unwrap();
        let mut values = [0];
        sensor.read(&mut values).unwrap();
        (values[0], quantity.scale, quantity.unit)
    }

    #[test]
    fn test_channels_have_their_unit_and_scale() {
        let tree = tree();
        for (channel, expected) in [
            ("temp1", (41500, -3, Unit::CELSIUS)),
            ("CPU", (41500, -3, Unit::CELSIUS)),
            ("temp1_crit", (95000, -3, Unit::CELSIUS)),
            ("temp2", (-5250, -3, Unit::CELSIUS)),
            ("in0", (3300, -3, Unit::VOLTS)),
            ("power1", (12_500_000, -6, Unit::WATTS)),
            ("fan1", (1200, 0, Unit::RPM)),
            ("pwm1", (255, 0, Unit::NONE)),
        ] {
            assert_eq!(read(&tree, channel), expected, "{channel}");
        }
    }

    #[test]
    fn test_open_tells_which_channels_there_are() {
        let tree = tree();
        let error = |channel| {
            let error = open(&tree.root(), "board", channel).unwrap_err();
            error.to_string()
        };
        assert!(
            error("temp9").ends_with("there is fan1, in0, power1, temp1, temp2"),
            "{}",
            error("temp9")
        );
        assert!(error("intrusion0_alarm").contains("has no channel"));
        assert!(error("name").contains("has no channel"));
        assert!(open(&tree.root(), "other", "temp1").is_err());
    }

    #[test]
    fn test_a_fault_is_a_hardware_error() {
        let tree = tree();
        let (_, sensor) = open(&tree.root(), "board", "temp2").unwrap();
        assert!(sensor.read(&mut [0]).is_ok());
        tree.write(&format!("{CHIP}/temp2_fault"), "1\n");
        assert!(matches!(sensor.read(&mut [0]), Err(Error::Hardware(_))));
    }

    #[test]
    fn test_what_the_host_makes_of_a_file_later_is_no_panic() {
        let tree = tree();
        let (_, sensor) = open(&tree.root(), "board", "temp1").unwrap();
        for text in ["", "hot\n", "99999999999999999999\n"] {
            tree.write(&format!("{CHIP}/temp1_input"), text);
            assert!(matches!(sensor.read(&mut [0]), Err(Error::Hardware(_))));
        }
        // The file is open: what is done to its name later does not matter.
        tree.write(&format!("{CHIP}/temp1_input"), "1000\n");
        tree.remove(&format!("{CHIP}/temp1_input"));
        let mut values = [0];
        sensor.read(&mut values).unwrap();
        assert_eq!(values, [1000]);
    }
}
