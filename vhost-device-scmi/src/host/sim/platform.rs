//! A whole simulated platform: something of everything that Linux has a driver for.

use std::sync::Arc;
use std::time::Duration;

use super::{
    SimClock, SimPerformance, SimPinctrl, SimPower, SimPowercap, SimReset, SimSensor, SimSystem,
    SimVoltage, Wave,
};
use crate::host::{
    Access, Axis, Clock, Intervals, Levels, Members, Performance, PerformanceLevel, Permissions,
    Pinctrl, Platform, Power, PowerScale, PowerState, Powercap, Quantity, Rates, Reset, Resolution,
    Resource, Sensor, Shape, SystemPower, Unit, Voltage,
};

fn resource<T>(name: &str, kind: T) -> Resource<T> {
    Resource {
        name: name.to_owned(),
        permissions: Permissions::all(Access::Control),
        kind,
    }
}

fn quantity(unit: Unit, scale: i8) -> Quantity {
    Quantity {
        unit,
        scale,
        resolution: None,
        range: None,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn sensor(shape: Shape, waves: Vec<Wave>) -> Sensor {
    // Linux 6.12's driver for IIO takes those above 4.2 s for others.
    let intervals = [10, 100, 1000, 4000];
    Sensor {
        shape,
        intervals: Intervals::Discrete(intervals.map(Duration::from_millis).to_vec()),
        default_interval: seconds(1),
        trip_points: 0,
        updates: true,
        timestamps: true,
        conversion: None,
        power_uw: 0,
        driver: Arc::new(SimSensor::new(waves)),
    }
}

fn scalar(unit: Unit, scale: i8, wave: Wave) -> Sensor {
    Sensor {
        trip_points: 4,
        ..sensor(Shape::Scalar(quantity(unit, scale)), vec![wave])
    }
}

fn axes(prefix: &str, unit: Unit, waves: [Wave; 3]) -> Sensor {
    let axes = ["X", "Y", "Z"].map(|axis| Axis {
        name: format!("{prefix}_{axis}"),
        quantity: Quantity {
            resolution: Some(Resolution {
                mantissa: 1,
                exponent: -3,
            }),
            range: Some((-40_000, 40_000)),
            ..quantity(unit, -3)
        },
    });
    sensor(Shape::Axes(axes.to_vec()), waves.to_vec())
}

/// A sensor of three axes as the peer's `fake` device has one: a number that grows with each
/// reading, and 100 and 200 more.
pub(crate) fn fake(name: &str) -> Resource<Sensor> {
    let axes = ["X", "Y", "Z"].map(|axis| Axis {
        name: format!("acc_{axis}"),
        quantity: quantity(Unit::METERS_PER_SECOND_SQUARED, 0),
    });
    let waves = [0, 100, 200].map(|start| Wave::Readings { start, count: 256 });
    resource(name, sensor(Shape::Axes(axes.to_vec()), waves.to_vec()))
}

fn sensors() -> Vec<Resource<Sensor>> {
    let cpu = Wave::Sine {
        mean: 45_000,
        amplitude: 10_000,
        period: seconds(60),
    };
    let mut temperature = scalar(Unit::CELSIUS, -3, cpu);
    temperature.power_uw = 50;
    temperature.shape = Shape::Scalar(Quantity {
        resolution: Some(Resolution {
            mantissa: 1,
            exponent: -3,
        }),
        range: Some((-40_000, 125_000)),
        ..quantity(Unit::CELSIUS, -3)
    });
    let fan = Wave::Triangle {
        mean: 2000,
        amplitude: 500,
        period: seconds(30),
    };
    let current = Wave::Step {
        low: 250,
        high: 1500,
        period: seconds(20),
    };
    let energy = Wave::Counter {
        start: 0,
        step: 2_500,
        period: Duration::from_millis(1),
    };
    let power = Wave::Sine {
        mean: 2_500_000,
        amplitude: 1_000_000,
        period: seconds(60),
    };
    let slow = Sensor {
        conversion: Some(Duration::from_millis(100)),
        ..scalar(Unit::CELSIUS, -3, Wave::Constant(21_500))
    };
    let swing = |amplitude, period| Wave::Sine {
        mean: 0,
        amplitude,
        period: seconds(period),
    };
    let gravity = Wave::Constant(9_807);
    vec![
        resource("cpu-temp", temperature),
        resource("board-12v", scalar(Unit::VOLTS, -3, Wave::Constant(12_040))),
        resource("board-current", scalar(Unit::AMPS, -3, current)),
        resource("soc-power", scalar(Unit::WATTS, -6, power)),
        resource("soc-energy", scalar(Unit::JOULES, -6, energy)),
        resource("fan", scalar(Unit::RPM, 0, fan)),
        resource("ambient-temperature-at-the-air-inlet", slow),
        resource(
            "accelerometer",
            axes(
                "acc",
                Unit::METERS_PER_SECOND_SQUARED,
                [swing(500, 4), swing(300, 7), gravity],
            ),
        ),
        resource(
            "gyroscope",
            axes(
                "gyro",
                Unit::RADIANS_PER_SECOND,
                [swing(100, 4), swing(60, 7), swing(20, 11)],
            ),
        ),
    ]
}

fn clocks() -> Vec<Resource<Clock>> {
    let clock = |rates, rate, enabled| Clock {
        rates,
        parents: Vec::new(),
        gate: true,
        enable_latency_us: 100,
        driver: Arc::new(SimClock::new(rate, enabled)),
    };
    let oscillator = Clock {
        gate: false,
        enable_latency_us: 0,
        ..clock(Rates::Discrete(vec![24_000_000]), 24_000_000, true)
    };
    let uart = vec![1_843_200, 3_686_400, 24_000_000, 48_000_000];
    let pll = Rates::Range {
        min: 100_000_000,
        max: 2_000_000_000,
        step: 1_000_000,
    };
    let pixel = Rates::Range {
        min: 25_000_000,
        max: 600_000_000,
        step: 1,
    };
    vec![
        resource("osc", oscillator),
        resource("pll", clock(pll, 1_200_000_000, true)),
        resource("uart", clock(Rates::Discrete(uart), 24_000_000, false)),
        resource(
            "display-controller-pixel-clock",
            Clock {
                parents: vec![0, 1],
                ..clock(pixel, 148_500_000, false)
            },
        ),
    ]
}

fn performances() -> Vec<Resource<Performance>> {
    let level = |level, power, indicative_frequency_khz| PerformanceLevel {
        level,
        power,
        latency_us: 50,
        indicative_frequency_khz,
    };
    // By their frequencies in kHz.
    let cpu: Vec<_> = [
        (600_000, 100),
        (1_000_000, 250),
        (1_400_000, 500),
        (1_800_000, 1000),
    ]
    .map(|(khz, mw)| level(khz, mw, khz))
    .to_vec();
    let gpu: Vec<_> = [(10, 200_000, 300), (25, 400_000, 700), (50, 800_000, 2000)]
        .map(|(number, khz, mw)| level(number, mw, khz))
        .to_vec();
    let domain = |levels: Vec<PerformanceLevel>, sustained, level_indexing| {
        let frequency = levels
            .get(sustained)
            .map_or(0, |level: &PerformanceLevel| level.indicative_frequency_khz);
        Performance {
            sustained,
            sustained_frequency_khz: frequency,
            level_indexing,
            power_scale: PowerScale::Milliwatts,
            rate_limit_us: 1000,
            limits: true,
            driver: Arc::new(SimPerformance::new(levels.len(), 0)),
            levels,
        }
    };
    vec![
        resource("cpu", domain(cpu, 2, false)),
        resource("gpu", domain(gpu, 1, true)),
    ]
}

fn powercaps() -> Vec<Resource<Powercap>> {
    let domain = |max_cap, load, parent| Powercap {
        power_scale: PowerScale::Microwatts,
        min_cap: 1_000_000,
        max_cap,
        cap_step: 1000,
        min_pai_us: 1000,
        max_pai_us: 1_000_000,
        pai_step_us: 1000,
        sustainable_power: max_cap / 2,
        accuracy: 1000,
        monitoring: true,
        can_disable: true,
        parent,
        driver: Arc::new(SimPowercap::new(Some(max_cap), 100_000, load)),
    };
    let load = |mean, amplitude| Wave::Sine {
        mean,
        amplitude,
        period: seconds(60),
    };
    vec![
        resource(
            "package",
            domain(15_000_000, load(8_000_000, 4_000_000), None),
        ),
        resource(
            "cores",
            domain(10_000_000, load(5_000_000, 3_000_000), Some(0)),
        ),
    ]
}

fn pinctrl() -> Pinctrl {
    let members = |name: &str, members: &[u16]| Members {
        name: name.to_owned(),
        members: members.to_vec(),
    };
    Pinctrl {
        pins: (0..8).map(|pin| format!("pin{pin}")).collect(),
        groups: vec![
            members("uart0-pins", &[0, 1]),
            members("i2c0-pins", &[2, 3]),
            members("spi0-pins-with-chip-select", &[4, 5, 6, 7]),
        ],
        functions: vec![
            members("uart", &[0]),
            members("i2c", &[1]),
            members("spi", &[2]),
            members("gpio", &[0, 1, 2]),
        ],
        driver: Arc::new(SimPinctrl::default()),
    }
}

/// A whole platform. All guests may control all of it.
pub fn platform() -> Platform {
    let power = |state| Power {
        states: vec![PowerState::ON, PowerState::OFF],
        driver: Arc::new(SimPower::new(state)),
    };
    let reset = |explicit| Reset {
        autonomous: true,
        explicit,
        latency_us: Some(1000),
        driver: Arc::new(SimReset::default()),
    };
    let voltage = |levels, level, enabled| Voltage {
        levels,
        gate: true,
        driver: Arc::new(SimVoltage::new(level, enabled)),
    };
    let core = Levels::Range {
        min: 600_000,
        max: 1_200_000,
        step: 12_500,
    };
    Platform {
        vendor: String::new(),
        sub_vendor: "sim".to_owned(),
        powers: vec![
            resource("gpu", power(PowerState::OFF)),
            resource("display", power(PowerState::ON)),
        ],
        system: Some(resource(
            "system",
            SystemPower {
                timeout: seconds(30),
                driver: Some(Arc::new(SimSystem::default())),
            },
        )),
        performances: performances(),
        clocks: clocks(),
        sensors: sensors(),
        resets: vec![
            resource("usb", reset(true)),
            resource("ethernet-phy", reset(false)),
        ],
        voltages: vec![
            resource("vdd-core", voltage(core, 900_000, true)),
            resource(
                "vdd-io",
                voltage(
                    Levels::Discrete(vec![1_800_000, 3_300_000]),
                    1_800_000,
                    false,
                ),
            ),
            resource(
                "vref",
                Voltage {
                    gate: false,
                    ..voltage(Levels::Discrete(vec![2_500_000]), 2_500_000, true)
                },
            ),
        ],
        powercaps: powercaps(),
        pinctrl: Some(resource("pins", pinctrl())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_there_is_something_of_everything_and_nothing_is_wrong() {
        let platform = platform();
        assert_eq!(platform.check(), Ok(()));
        let counts = [
            platform.powers.len(),
            platform.performances.len(),
            platform.clocks.len(),
            platform.sensors.len(),
            platform.resets.len(),
            platform.voltages.len(),
            platform.powercaps.len(),
            usize::from(platform.system.is_some()),
            usize::from(platform.pinctrl.is_some()),
        ];
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        for (id, driver) in platform.drivers() {
            assert!(driver.simulated().is_some(), "{id:?}");
        }
    }

    #[test]
    fn test_the_fake_sensor_is_sound() {
        let platform = Platform {
            sensors: vec![fake("fake")],
            ..Platform::default()
        };
        assert_eq!(platform.check(), Ok(()));
        let driver = &platform.sensors[0].kind.driver;
        for expected in [[0, 100, 200], [1, 101, 201]] {
            let mut values = [0; 3];
            driver.read(&mut values).unwrap();
            assert_eq!(values, expected);
        }
    }
}
