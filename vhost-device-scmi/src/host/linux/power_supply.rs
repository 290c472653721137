//! Batteries and chargers, `/sys/class/power_supply`.

use super::attribute::Attribute;
use super::hwmon::FileSensor;
use super::{OpenError, Opened, Root, entries, these};
use crate::host::{Quantity, Unit};

/// Seconds in an hour: supplies count hours, SCMI's units seconds.
const HOUR: i64 = 3600;

/// What an attribute measures by how its name begins: the unit, the power of ten, the factor.
const KINDS: [(&str, Unit, i8, i64); 9] = [
    ("voltage_", Unit::VOLTS, -6, 1),
    ("current_", Unit::AMPS, -6, 1),
    ("power_", Unit::WATTS, -6, 1),
    ("energy_", Unit::JOULES, -6, HOUR),
    ("charge_", Unit::COULOMBS, -6, HOUR),
    ("capacity", Unit::PERCENT, 0, 1),
    ("temp", Unit::CELSIUS, -1, 1),
    ("cycle_count", Unit::COUNTS, 0, 1),
    ("online", Unit::NONE, 0, 1),
];

/// Begins as a measurement does, and is a word.
const WORDS: [&str; 4] = [
    "capacity_level",
    "charge_type",
    "charge_types",
    "charge_behaviour",
];

/// What `attribute` of the power supply `supply` says, as `voltage_now` of `BAT0`.
///
/// # Errors
/// When there is no such supply or attribute, with those that there are.
pub fn open(root: &Root, supply: &str, attribute: &str) -> Opened<(Quantity, FileSensor)> {
    let supply = root.device("sys/class/power_supply", "model_name", supply)?;
    let names = entries(&supply)?;
    let found = names.iter().find(|name| *name == attribute);
    let (name, (unit, scale, factor)) = found
        .and_then(|name| Some((name, kind(name)?)))
        .ok_or_else(|| {
            let measurements = names.iter().filter(|name| kind(name).is_some());
            OpenError::unfit(format!(
                "{} does not measure {attribute:?}; {}",
                supply.display(),
                these(measurements)
            ))
        })?;
    let value = Attribute::to_read(&supply.join(name))?;
    let quantity = Quantity {
        unit,
        scale,
        resolution: None,
        range: None,
    };
    Ok((quantity, FileSensor::new(value, None, factor)))
}

fn kind(name: &str) -> Option<(Unit, i8, i64)> {
    if WORDS.contains(&name) {
        return None;
    }
    let kind = KINDS.iter().find(|(kind, ..)| name.starts_with(kind));
    kind.map(|&(_, unit, scale, factor)| (unit, scale, factor))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;
    use crate::host::{Error, SensorDriver};

    #[test]
    fn test_attributes_have_their_unit_and_scale() {
        let tree = Tree::new();
        tree.files(
            "sys/class/power_supply/BAT0",
            &[
                ("voltage_now", "11850000"),
                ("current_now", "-1250000"),
                ("energy_now", "40000000"),
                ("charge_now", "2000000"),
                ("capacity", "87"),
                ("temp", "311"),
                ("capacity_level", "Normal"),
                ("status", "Charging"),
            ],
        );
        let root = tree.root();
        for (attribute, expected) in [
            ("voltage_now", (11_850_000, -6, Unit::VOLTS)),
            ("current_now", (-1_250_000, -6, Unit::AMPS)),
            // 40 Wh are 144 kJ, and 2 Ah are 7200 C.
            ("energy_now", (144_000_000_000, -6, Unit::JOULES)),
            ("charge_now", (7_200_000_000, -6, Unit::COULOMBS)),
            ("capacity", (87, 0, Unit::PERCENT)),
            ("temp", (311, -1, Unit::CELSIUS)),
        ] {
            let (quantity, sensor) = open(&root, "BAT0", attribute).unwrap();
            let mut values = [0];
            sensor.read(&mut values).unwrap();
            assert_eq!((values[0], quantity.scale, quantity.unit), expected);
        }
        for word in ["status", "capacity_level", "voltage_max"] {
            let error = open(&root, "BAT0", word).unwrap_err().to_string();
            assert!(
                error.contains("there is capacity, charge_now, current_now"),
                "{error}"
            );
        }
    }

    #[test]
    fn test_a_number_that_does_not_fit_is_a_hardware_error() {
        let tree = Tree::new();
        let text = i64::MAX.to_string();
        tree.files("sys/class/power_supply/BAT0", &[("energy_now", &text)]);
        let (_, sensor) = open(&tree.root(), "BAT0", "energy_now").unwrap();
        assert!(matches!(sensor.read(&mut [0]), Err(Error::Hardware(_))));
    }
}
