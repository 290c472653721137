//! Thermal zones, `/sys/class/thermal`.

use super::attribute::Attribute;
use super::hwmon::FileSensor;
use super::{Opened, Root};
use crate::host::{Quantity, Unit};

/// The temperature of a thermal zone: what its `type` says, or `thermal_zoneN`, or a path.
///
/// # Errors
/// When there is no such zone, with those that there are.
pub fn open(root: &Root, zone: &str) -> Opened<(Quantity, FileSensor)> {
    let zone = root.device("sys/class/thermal", "type", zone)?;
    let value = Attribute::to_read(&zone.join("temp"))?;
    let quantity = Quantity {
        unit: Unit::CELSIUS,
        scale: -3,
        resolution: None,
        range: None,
    };
    Ok((quantity, FileSensor::new(value, None, 1)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;
    use crate::host::SensorDriver;

    #[test]
    fn test_a_zone_is_found_by_its_type() {
        let tree = Tree::new();
        tree.files("sys/class/thermal/cooling_device0", &[("type", "fan")]);
        let zone = "sys/class/thermal/thermal_zone1";
        tree.files(zone, &[("type", "cpu-thermal"), ("temp", "52123")]);
        for name in [
            "cpu-thermal",
            "thermal_zone1",
            "/sys/class/thermal/thermal_zone1",
        ] {
            let (quantity, sensor) = open(&tree.root(), name).unwrap();
            let mut values = [0];
            sensor.read(&mut values).unwrap();
            assert_eq!((values, quantity.scale), ([52123], -3), "{name}");
        }
        assert!(open(&tree.root(), "fan").is_err());
        let error = open(&tree.root(), "gpu-thermal").unwrap_err().to_string();
        assert!(error.contains("thermal_zone1 (cpu-thermal)"), "{error}");
    }

    #[test]
    fn test_the_zones_of_this_host_can_be_read() {
        // Where there are some; and one that is off may say so.
        let Ok(names) = super::super::entries("/sys/class/thermal".as_ref()) else {
            return;
        };
        for name in names.iter().filter(|name| name.starts_with("thermal_zone")) {
            let (_, sensor) = open(&Root::default(), name).unwrap();
            let _ = sensor.read(&mut [0]);
        }
    }
}
