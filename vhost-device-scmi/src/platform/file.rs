//! What a platform file may say. Names here are its keys.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) vendor: Option<Spanned<String>>,
    pub(super) sub_vendor: Option<Spanned<String>>,
    /// What the file calls the guests, in the order of their sockets.
    pub(super) guests: Option<Spanned<Vec<Spanned<String>>>>,
    /// For resources that do not say it themselves.
    pub(super) read: Option<Who>,
    pub(super) control: Option<Who>,
    #[serde(default)]
    pub(super) sensor: Vec<Spanned<Sensor>>,
    #[serde(default)]
    pub(super) clock: Vec<Spanned<Clock>>,
    #[serde(default)]
    pub(super) power: Vec<Spanned<Power>>,
    #[serde(default)]
    pub(super) performance: Vec<Spanned<Performance>>,
    #[serde(default)]
    pub(super) reset: Vec<Spanned<Reset>>,
    #[serde(default)]
    pub(super) voltage: Vec<Spanned<Voltage>>,
    #[serde(default)]
    pub(super) powercap: Vec<Spanned<Powercap>>,
    pub(super) system: Option<Spanned<System>>,
    pub(super) pinctrl: Option<Spanned<Pinctrl>>,
}

/// Which guests.
#[derive(Clone, Debug)]
pub(super) enum Who {
    All,
    None,
    These(Vec<Spanned<GuestKey>>),
}

/// A guest, by its number or its name.
#[derive(Clone, Debug)]
pub(super) enum GuestKey {
    Number(u64),
    Name(String),
}

/// What is `expected` of a value that can be written in several ways; the others are refused.
macro_rules! visitor {
    ($name:ident, $value:ty, $expected:literal, { $($method:item)* }) => {
        struct $name;

        impl<'de> Visitor<'de> for $name {
            type Value = $value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expected)
            }

            $($method)*
        }

        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($name)
            }
        }
    };
}

visitor!(WhoVisitor, Who, "\"all\", \"none\" or a list of guests", {
    fn visit_str<E: Error>(self, text: &str) -> Result<Who, E> {
        match text {
            "all" => Ok(Who::All),
            "none" => Ok(Who::None),
            other => Err(E::custom(format!(
                "{other:?} is neither \"all\" nor \"none\"; for one guest write [{other:?}]"
            ))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Who, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Who::These)
    }
});

visitor!(
    GuestKeyVisitor,
    GuestKey,
    "the name or the number of a guest",
    {
        fn visit_str<E: Error>(self, text: &str) -> Result<GuestKey, E> {
            Ok(GuestKey::Name(text.to_owned()))
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<GuestKey, E> {
            let number = u64::try_from(number);
            number
                .map(GuestKey::Number)
                .map_err(|_| E::custom("guests are counted from 0"))
        }
    }
);

/// Numbers that may be chosen: a list, or all from one to another.
#[derive(Debug)]
pub(super) enum Choice<T> {
    List(Vec<T>),
    Range(Steps<T>),
}

/// All numbers from `min` to `max` with `step` between them.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Steps<T> {
    pub(super) min: T,
    pub(super) max: T,
    pub(super) step: Option<T>,
}

struct ChoiceVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ChoiceVisitor<T> {
    type Value = Choice<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers, or { min = …, max = …, step = … }")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Choice::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Steps::deserialize(MapAccessDeserializer::new(map)).map(Choice::Range)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ChoiceVisitor(PhantomData))
    }
}

/// Files of a hook: one that is read and written, or one for each.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) get: Option<PathBuf>,
    pub(super) set: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetSet {
    get: Option<PathBuf>,
    set: Option<PathBuf>,
}

visitor!(
    FilesVisitor,
    Files,
    "a path, or { get = PATH, set = PATH }",
    {
        fn visit_str<E: Error>(self, text: &str) -> Result<Files, E> {
            Ok(Files {
                get: Some(text.into()),
                set: Some(text.into()),
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Files, A::Error> {
            let GetSet { get, set } = GetSet::deserialize(MapAccessDeserializer::new(map))?;
            if get.is_none() && set.is_none() {
                return Err(A::Error::custom("it names no file: write get, set or both"));
            }
            Ok(Files { get, set })
        }
    }
);

/// How a simulated number changes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) enum Wave {
    Constant(i64),
    Sine(Around),
    Triangle(Around),
    Step(Step),
    Counter(Counter),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Around {
    pub(super) mean: i64,
    pub(super) amplitude: i64,
    pub(super) period_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Step {
    pub(super) low: i64,
    pub(super) high: i64,
    pub(super) period_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Counter {
    #[serde(default)]
    pub(super) start: i64,
    pub(super) step: i64,
    pub(super) period_ms: u64,
}

/// One wave, or one for each axis; a number stays as it is.
#[derive(Debug)]
pub(super) struct Waves(pub(super) Vec<Wave>);

visitor!(
    WavesVisitor,
    Waves,
    "a number, { sine = … }, { triangle = … }, { step = … }, { counter = … }, or a list of these",
    {
        fn visit_i64<E: Error>(self, number: i64) -> Result<Waves, E> {
            Ok(Waves(vec![Wave::Constant(number)]))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Waves, A::Error> {
            let wave = Wave::deserialize(MapAccessDeserializer::new(map))?;
            Ok(Waves(vec![wave]))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Waves, A::Error> {
            let waves = Vec::<Waves>::deserialize(SeqAccessDeserializer::new(list))?;
            Ok(Waves(waves.into_iter().flat_map(|waves| waves.0).collect()))
        }
    }
);

/// A table of the file; unknown keys are refused.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }
    };
}

/// What all tables of resources have.
pub(super) trait Table {
    fn name(&self) -> &Spanned<String>;
    fn read(&self) -> &Option<Who>;
    fn control(&self) -> &Option<Who>;
}

/// A resource: a table with a name and with who may use it.
macro_rules! resource {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        table! {
            $(#[$doc])*
            $name {
                name: Spanned<String>,
                read: Option<Who>,
                control: Option<Who>,
                $($field: $type,)*
            }
        }

        impl Table for $name {
            fn name(&self) -> &Spanned<String> {
                &self.name
            }

            fn read(&self) -> &Option<Who> {
                &self.read
            }

            fn control(&self) -> &Option<Who> {
                &self.control
            }
        }
    };
}

resource! {
    /// `[[sensor]]`
    Sensor {
        hwmon: Option<Spanned<Hwmon>>,
        iio: Option<Spanned<Iio>>,
        thermal: Option<Spanned<String>>,
        power_supply: Option<Spanned<PowerSupply>>,
        hook: Option<Spanned<PathBuf>>,
        sim: Option<Spanned<Waves>>,
        unit: Option<Spanned<String>>,
        scale: Option<Spanned<i8>>,
        axes: Option<Spanned<Vec<String>>>,
        range: Option<Spanned<Steps<i64>>>,
        intervals_ms: Option<Spanned<Choice<u64>>>,
        default_interval_ms: Option<Spanned<u64>>,
        trip_points: Option<u8>,
        updates: Option<bool>,
        timestamps: Option<bool>,
        conversion_ms: Option<u64>,
        power_uw: Option<u32>,
    }
}

table! { Hwmon { chip: String, channel: String, } }
table! { Iio { device: String, channel: String, buffer: Option<bool>, trigger: Option<String>, } }
table! { PowerSupply { supply: String, attribute: String, } }

resource! {
    /// `[[clock]]`
    Clock {
        hook: Option<Spanned<ClockHook>>,
        sim: Option<Spanned<ClockSim>>,
        rates: Spanned<Choice<u64>>,
        parents: Option<Vec<Spanned<String>>>,
        gate: Option<Spanned<bool>>,
        enable_latency_us: Option<u32>,
    }
}

table! { ClockHook { rate: Files, enabled: Option<Files>, parent: Option<Files>, } }
table! { ClockSim { rate: Option<Spanned<u64>>, enabled: Option<bool>, } }

resource! {
    /// `[[power]]`
    Power {
        gpio: Option<Spanned<Gpio>>,
        regulator: Option<Spanned<Consumer>>,
        hook: Option<Spanned<Files>>,
        sim: Option<Spanned<OnSim>>,
    }
}

table! {
    Gpio {
        chip: String,
        line: String,
        active_low: Option<bool>,
        open_drain: Option<bool>,
        initial: Option<Spanned<bool>>,
    }
}
table! { Consumer { consumer: String, } }
table! { OnSim { on: Option<bool>, } }

resource! {
    /// `[[performance]]`
    Performance {
        cpufreq: Option<Spanned<String>>,
        devfreq: Option<Spanned<String>>,
        hook: Option<Spanned<PerformanceHook>>,
        sim: Option<Spanned<LevelSim>>,
        levels: Option<Spanned<Vec<Spanned<Level>>>>,
        sustained: Option<Spanned<u32>>,
        level_indexing: Option<bool>,
        power_scale: Option<PowerScale>,
        rate_limit_us: Option<u32>,
        limits: Option<bool>,
    }
}

table! { PerformanceHook { level: Files, min: Option<Files>, max: Option<Files>, } }
table! { LevelSim { level: Option<Spanned<u32>>, } }

/// A level: its number alone, or with what is known of it.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) level: u32,
    pub(super) power: u32,
    pub(super) latency_us: u16,
    pub(super) frequency_khz: Option<u32>,
}

table! {
    LevelTable {
        level: u32,
        power: Option<u32>,
        latency_us: Option<u16>,
        frequency_khz: Option<u32>,
    }
}

visitor!(
    LevelVisitor,
    Level,
    "a number, or { level = …, power = …, frequency-khz = … }",
    {
        fn visit_i64<E: Error>(self, number: i64) -> Result<Level, E> {
            let level = u32::try_from(number);
            let level = level.map_err(|_| E::custom("a level is from 1 to 4294967295"))?;
            Ok(Level {
                level,
                power: 0,
                latency_us: 0,
                frequency_khz: None,
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Level, A::Error> {
            let table = LevelTable::deserialize(MapAccessDeserializer::new(map))?;
            Ok(Level {
                level: table.level,
                power: table.power.unwrap_or(0),
                latency_us: table.latency_us.unwrap_or(0),
                frequency_khz: table.frequency_khz,
            })
        }
    }
);

/// What powers are counted in.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PowerScale {
    Abstract,
    Milliwatts,
    Microwatts,
}

resource! {
    /// `[[reset]]`
    Reset {
        gpio: Option<Spanned<Gpio>>,
        hook: Option<Spanned<ResetHook>>,
        sim: Option<Spanned<Nothing>>,
        latency_us: Option<u32>,
    }
}

table! { ResetHook { assert: Option<PathBuf>, reset: Option<PathBuf>, } }
table! {
    /// `{}`
    Nothing {}
}

resource! {
    /// `[[voltage]]`
    Voltage {
        regulator: Option<Spanned<Regulator>>,
        hook: Option<Spanned<VoltageHook>>,
        sim: Option<Spanned<VoltageSim>>,
        microvolts: Option<Spanned<Choice<i32>>>,
        gate: Option<Spanned<bool>>,
    }
}

table! {
    Regulator {
        name: Option<String>,
        consumer: Option<String>,
        r#virtual: Option<String>,
    }
}
table! { VoltageHook { microvolts: Files, enabled: Option<Files>, } }
table! { VoltageSim { microvolts: Option<Spanned<i32>>, enabled: Option<bool>, } }

resource! {
    /// `[[powercap]]`
    Powercap {
        powercap: Option<Spanned<Zone>>,
        hook: Option<Spanned<PowercapHook>>,
        sim: Option<Spanned<PowercapSim>>,
        cap: Option<Spanned<Steps<u32>>>,
        interval_us: Option<Spanned<Steps<u32>>>,
        power_scale: Option<Spanned<PowerScale>>,
        sustainable: Option<u32>,
        accuracy: Option<u32>,
        can_disable: Option<bool>,
        parent: Option<Spanned<String>>,
    }
}

table! { Zone { zone: String, constraint: Option<String>, monitoring: Option<bool>, } }
table! {
    PowercapHook {
        cap: Files,
        enabled: Option<Files>,
        interval_us: Option<Files>,
        power: Option<PathBuf>,
    }
}
table! { PowercapSim { cap: Option<Spanned<u32>>, load: Option<Waves>, } }

table! {
    /// `[system]`
    System {
        name: Option<String>,
        read: Option<Who>,
        control: Option<Who>,
        timeout_ms: Option<u64>,
        hook: Option<Spanned<PathBuf>>,
        sim: Option<Spanned<Nothing>>,
    }
}

resource! {
    /// `[pinctrl]`
    Pinctrl {
        pins: Vec<String>,
        groups: Option<Vec<Members>>,
        functions: Option<Vec<Members>>,
        sim: Option<Spanned<Nothing>>,
    }
}

table! {
    /// A group of pins, or a function of groups.
    Members {
        name: String,
        members: Vec<Spanned<String>>,
    }
}
