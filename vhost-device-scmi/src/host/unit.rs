//! What a sensor measures in.

use std::fmt;
use std::str::FromStr;

/// A unit of a sensor, as DEN0056 numbers them (protocol 0x15, "sensor type"). It is written as
/// one of [`Unit::NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit(pub u8);

impl Unit {
    /// No unit.
    pub const NONE: Self = Self(0x00);
    /// A unit that is not told.
    pub const UNSPECIFIED: Self = Self(0x01);
    /// Degrees Celsius.
    pub const CELSIUS: Self = Self(0x02);
    /// Volts.
    pub const VOLTS: Self = Self(0x05);
    /// Amperes.
    pub const AMPS: Self = Self(0x06);
    /// Watts.
    pub const WATTS: Self = Self(0x07);
    /// Joules.
    pub const JOULES: Self = Self(0x08);
    /// Coulombs.
    pub const COULOMBS: Self = Self(0x09);
    /// Lux.
    pub const LUX: Self = Self(0x0d);
    /// kPa.
    pub const KILOPASCALS: Self = Self(0x0f);
    /// Revolutions a minute.
    pub const RPM: Self = Self(0x13);
    /// Hz.
    pub const HERTZ: Self = Self(0x14);
    /// Metres.
    pub const METERS: Self = Self(0x1f);
    /// Radians.
    pub const RADIANS: Self = Self(0x24);
    /// Gauss.
    pub const GAUSS: Self = Self(0x2d);
    /// Percent.
    pub const PERCENT: Self = Self(0x41);
    /// Counts.
    pub const COUNTS: Self = Self(0x43);
    /// rad/s.
    pub const RADIANS_PER_SECOND: Self = Self(0x57);
    /// m/s².
    pub const METERS_PER_SECOND_SQUARED: Self = Self(0x59);
    /// A unit of the vendor's.
    pub const OEM: Self = Self(0xff);

    /// The names of the units, by number; `oem` is 0xff.
    pub const NAMES: [&str; 0x5e] = [
        "none",
        "unspecified",
        "celsius",
        "fahrenheit",
        "kelvin",
        "volts",
        "amps",
        "watts",
        "joules",
        "coulombs",
        "va",
        "nits",
        "lumens",
        "lux",
        "candelas",
        "kpa",
        "psi",
        "newtons",
        "cfm",
        "rpm",
        "hertz",
        "seconds",
        "minutes",
        "hours",
        "days",
        "weeks",
        "mils",
        "inches",
        "feet",
        "cubic-inches",
        "cubic-feet",
        "meters",
        "cubic-centimeters",
        "cubic-meters",
        "liters",
        "fluid-ounces",
        "radians",
        "steradians",
        "revolutions",
        "cycles",
        "gravities",
        "ounces",
        "pounds",
        "foot-pounds",
        "ounce-inches",
        "gauss",
        "gilberts",
        "henries",
        "farads",
        "ohms",
        "siemens",
        "moles",
        "becquerels",
        "ppm",
        "decibels",
        "dba",
        "dbc",
        "grays",
        "sieverts",
        "color-temperature-kelvin",
        "bits",
        "bytes",
        "words",
        "double-words",
        "quad-words",
        "percent",
        "pascals",
        "counts",
        "grams",
        "newton-meters",
        "hits",
        "misses",
        "retries",
        "overruns",
        "underruns",
        "collisions",
        "packets",
        "messages",
        "characters",
        "errors",
        "corrected-errors",
        "uncorrectable-errors",
        "square-mils",
        "square-inches",
        "square-feet",
        "square-centimeters",
        "square-meters",
        "radians-per-second",
        "beats-per-minute",
        "meters-per-second-squared",
        "meters-per-second",
        "cubic-meters-per-second",
        "mm-mercury",
        "radians-per-second-squared",
    ];
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None if *self == Self::OEM => f.write_str("oem"),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// A name that is no unit's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no unit; {}", self.instead())]
pub struct NoUnit {
    name: String,
    /// The unit that is probably meant.
    nearest: Option<&'static str>,
}

impl NoUnit {
    fn instead(&self) -> String {
        match self.nearest {
            Some(unit) => format!("is {unit} meant?"),
            None => {
                "docs/scmi-platform.md has all of them, as celsius, volts, rpm and none".to_owned()
            }
        }
    }
}

impl FromStr for Unit {
    type Err = NoUnit;

    fn from_str(name: &str) -> Result<Self, NoUnit> {
        if name == "oem" {
            return Ok(Self::OEM);
        }
        let number = Self::NAMES.iter().position(|other| *other == name);
        // Fits: there are fewer.
        number
            .map(|number| Self(number as u8))
            .ok_or_else(|| NoUnit {
                name: name.to_owned(),
                nearest: match name {
                    // What `celsius` counts, and not a word like it.
                    "degrees" | "degree" | "degrees-celsius" | "°C" | "C" => Some("celsius"),
                    _ => vhost_device_daemon::nearest(name, Self::NAMES),
                },
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_page_has_all_units() {
        let page = include_str!("../../../docs/scmi-platform.md");
        for unit in Unit::NAMES.into_iter().chain(["oem"]) {
            assert!(page.contains(&format!("`{unit}`")), "{unit}");
        }
    }

    #[test]
    fn test_units_are_called_by_their_names() {
        for (unit, name) in [
            (Unit::NONE, "none"),
            (Unit::CELSIUS, "celsius"),
            (Unit::RPM, "rpm"),
            (Unit::GAUSS, "gauss"),
            (Unit::PERCENT, "percent"),
            (Unit::COUNTS, "counts"),
            (Unit::RADIANS_PER_SECOND, "radians-per-second"),
            (Unit::METERS_PER_SECOND_SQUARED, "meters-per-second-squared"),
            (Unit::OEM, "oem"),
        ] {
            assert_eq!(unit.to_string(), name);
            assert_eq!(name.parse(), Ok(unit));
        }
        let wrong = |name: &str| name.parse::<Unit>().unwrap_err().to_string();
        let none = wrong("xyzzy");
        assert!(none.contains("docs/scmi-platform.md"), "{none}");
        for (name, meant) in [
            ("celcius", "celsius"),
            ("Volts", "volts"),
            ("metres", "meters"),
            ("degrees", "celsius"),
        ] {
            let error = wrong(name);
            assert!(error.ends_with(&format!("is {meant} meant?")), "{error}");
        }
        assert_eq!(Unit(0x77).to_string(), "0x77");
    }
}
