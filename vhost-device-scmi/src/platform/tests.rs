//! Files, good and bad, over a host that is a directory.

use super::*;
use crate::host::linux::tests::Tree;
use crate::host::{Access, PerformanceDriver, PowerState, Rates, Shape};
use crate::report::Report;

mod look;
mod random;
mod wrong;

const EXAMPLE: &str = include_str!("../../examples/platform.toml");

/// The host that the example is written for.
fn host() -> Tree {
    let tree = Tree::new();
    let hwmon = "sys/class/hwmon/hwmon0";
    tree.files(hwmon, &[("name", "soc_thermal"), ("temp1_input", "41500")]);
    let zone = "sys/class/thermal/thermal_zone1";
    tree.files(zone, &[("type", "gpu-thermal"), ("temp", "52000")]);
    tree.files("sys/class/power_supply/BAT0", &[("capacity", "87")]);
    let adc = "sys/bus/iio/devices/iio:device0";
    let voltage = [
        ("name", "adc"),
        ("in_voltage0_raw", "2048"),
        ("in_voltage_scale", "6.1"),
    ];
    tree.files(adc, &voltage);
    let imu = "sys/bus/iio/devices/iio:device1";
    tree.files(
        imu,
        &[
            ("name", "imu"),
            ("in_accel_scale", "0.01"),
            ("trigger/current_trigger", ""),
            ("sampling_frequency", "100"),
            ("buffer/enable", "0"),
            ("buffer/length", "2"),
        ],
    );
    for (index, axis) in ["x", "y", "z"].iter().enumerate() {
        let index = index.to_string();
        tree.files(imu, &[(&format!("in_accel_{axis}_raw"), "0")]);
        let element = format!("{imu}/scan_elements/in_accel_{axis}");
        tree.write(&format!("{element}_en"), "0\n");
        tree.write(&format!("{element}_index"), index);
        tree.write(&format!("{element}_type"), "le:s16/16>>0\n");
    }
    tree.fifo("dev/iio:device1");
    tree.write("run/weather/wind", "120 -45\n");
    tree.files(
        "run/clocks/mclk",
        &[("rate", "12000000"), ("enabled", "1"), ("parent", "0")],
    );
    let camera = "sys/bus/platform/devices/camera-supply";
    tree.files(camera, &[("name", "camera"), ("state", "disabled")]);
    let virt = "sys/bus/platform/devices/reg-virt-consumer.0";
    tree.files(virt, &[("min_microvolts", "0"), ("max_microvolts", "0")]);
    let vdd = "sys/class/regulator/regulator.4";
    tree.files(vdd, &[("name", "vdd-cam"), ("microvolts", "2800000")]);
    tree.fifo("run/board/usb-hub");
    tree.fifo("run/board/phy-reset");
    tree.fifo("run/board/system");
    tree.files(
        "sys/devices/system/cpu/cpufreq/policy0",
        &[
            ("scaling_available_frequencies", "600000 1200000 1800000"),
            ("scaling_cur_freq", "600000"),
            ("scaling_min_freq", "600000"),
            ("scaling_max_freq", "1800000"),
        ],
    );
    tree.files(
        "sys/class/devfreq/ff9a0000.gpu",
        &[
            ("available_frequencies", "200000000 800000000"),
            ("cur_freq", "200000000"),
            ("min_freq", "200000000"),
            ("max_freq", "800000000"),
        ],
    );
    tree.files(
        "sys/class/powercap/intel-rapl:0",
        &[
            ("name", "package-0"),
            ("enabled", "1"),
            ("energy_uj", "0"),
            ("constraint_0_name", "long_term"),
            ("constraint_0_power_limit_uw", "15000000"),
            ("constraint_0_time_window_us", "976"),
        ],
    );
    tree
}

/// A host under `root`, for files of the directory `/nowhere`.
fn nowhere(root: &Root) -> Site<'_> {
    Site {
        root,
        base: Path::new("/nowhere"),
        looks: false,
    }
}

fn load_text(tree: &Tree, text: &str, guests: Guest) -> Result<Platform, LoadError> {
    tree.write("platform.toml", text);
    load_under(&tree.root(), &tree.path("platform.toml"), guests)
}

#[test]
fn test_the_example_is_what_it_says() {
    let tree = host();
    let platform = load_text(&tree, EXAMPLE, 2).unwrap();
    assert_eq!(
        (&*platform.vendor, &*platform.sub_vendor),
        ("acme", "gateway")
    );

    let [soc, gpu, battery, supply, accel, wind, ambient] = &platform.sensors[..] else {
        panic!("{:?}", platform.sensors);
    };
    for (sensor, expected) in [(soc, 41_500), (gpu, 52_000), (battery, 87)] {
        let mut values = [0];
        sensor.kind.driver.read(&mut values).unwrap();
        assert_eq!(values, [expected], "{}", sensor.name);
    }
    let Shape::Scalar(quantity) = &soc.kind.shape else {
        panic!("{soc:?}");
    };
    assert_eq!(
        (quantity.scale, quantity.range),
        (-3, Some((-40_000, 125_000)))
    );
    let mut values = [0];
    supply.kind.driver.read(&mut values).unwrap();
    // 2048 × 6.1 mV.
    assert_eq!(values, [2048 * 61]);
    let mut values = [0; 2];
    wind.kind.driver.read(&mut values).unwrap();
    assert_eq!(values, [120, -45]);
    assert_eq!(
        ambient.kind.conversion,
        Some(std::time::Duration::from_millis(50))
    );
    assert_eq!(accel.kind.width(), 3);
    assert!(accel.kind.driver.event().is_some());
    assert_eq!(accel.permissions.of(0), Access::Control);
    assert_eq!(accel.permissions.of(1), Access::None);
    assert_eq!(
        tree.read("sys/bus/iio/devices/iio:device1/buffer/enable"),
        "1\n"
    );

    let mclk = &platform.clocks[1];
    assert_eq!(mclk.permissions.of(0), Access::Read);
    assert_eq!(mclk.permissions.of(1), Access::Control);
    assert_eq!(mclk.kind.parents, [0]);
    assert!(mclk.kind.gate && !platform.clocks[0].kind.gate);
    assert_eq!(mclk.kind.driver.rate().unwrap(), 12_000_000);
    mclk.kind.driver.set_rate(24_000_000).unwrap();
    mclk.kind.driver.set_enabled(false).unwrap();
    assert_eq!(tree.read("run/clocks/mclk/rate"), "24000000\n");
    assert!(!mclk.kind.driver.is_enabled().unwrap());

    let [camera, hub] = &platform.powers[..] else {
        panic!("{:?}", platform.powers);
    };
    camera.kind.driver.set_state(PowerState::ON).unwrap();
    assert_eq!(
        tree.read("sys/bus/platform/devices/camera-supply/state"),
        "enabled\n"
    );
    assert_eq!(hub.kind.driver.state().unwrap(), PowerState::OFF);
    hub.kind.driver.set_state(PowerState::ON).unwrap();
    assert_eq!(hub.kind.driver.state().unwrap(), PowerState::ON);

    let cpu = &platform.performances[0].kind;
    let levels: Vec<_> = cpu
        .levels
        .iter()
        .map(|level| (level.level, level.power))
        .collect();
    assert_eq!(levels, [(600_000, 100), (1_200_000, 400)]);
    assert_eq!(cpu.sustained_frequency_khz, 1_200_000);
    cpu.driver.set_level(1).unwrap();
    let max = "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq";
    assert_eq!(tree.read(max), "1200000\n");

    let cap = &platform.powercaps[0].kind;
    cap.driver.set_cap(Some(7_000_000)).unwrap();
    let limit = "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw";
    assert_eq!(tree.read(limit), "7000000\n");
    assert_eq!((cap.min_pai_us, cap.max_pai_us), (976, 976));
    assert_eq!(platform.powercaps[1].kind.parent, Some(0));

    let pins = &platform.pinctrl.as_ref().unwrap().kind;
    assert_eq!(pins.groups[1].members, [2, 3]);
    assert_eq!(pins.functions[1].members, [1]);
}

#[test]
fn test_the_table_of_the_example() {
    let tree = host();
    let platform = load_text(&tree, EXAMPLE, 2).unwrap();
    let table = Report::new(&platform, 2, Vec::new()).table();
    // The directory is another one each time.
    let table = table.replace(tree.path("").to_str().unwrap(), "/");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<_> = table.lines().map(words).collect();
    for expected in [
        "0 power 0x11 0 camera control 2 states /sys/bus/platform/devices/camera-supply",
        "1 power 0x11 0 camera read 2 states /sys/bus/platform/devices/camera-supply",
        "0 power 0x11 1 usb-hub control 2 states /run/board/usb-hub",
        "0 clock 0x14 1 codec-mclk read 8000000..50000000 Hz by 1000, 1 parents \
         /run/clocks/mclk/rate",
        "1 clock 0x14 1 codec-mclk control 8000000..50000000 Hz by 1000, 1 parents \
         /run/clocks/mclk/rate",
        "0 voltage 0x17 0 vdd-cam control 2800000 µV /sys/class/regulator/regulator.4 + \
         /sys/bus/platform/devices/camera-supply",
    ] {
        assert!(
            lines.iter().any(|line| line == expected),
            "{expected}\n{table}"
        );
    }
    // The second guest does not see the accelerometer: what is behind it has another number.
    let wind = |guest: &str, id: &str| {
        let start = format!("{guest} sensor 0x15 {id} wind read ");
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "{start}\n{table}"
        );
    };
    wind("0", "5");
    wind("1", "4");
}

#[test]
fn test_what_nobody_controls_is_not_opened_for_writing() {
    let tree = host();
    let text = "[[clock]]\nname = \"a\"\nrates = [1, 2]\nhook.rate = \"/run/clocks/mclk/rate\"\n";
    let platform = load_text(&tree, text, 1).unwrap();
    let driver = &platform.clocks[0].kind.driver;
    assert!(matches!(platform.clocks[0].kind.rates, Rates::Discrete(_)));
    assert!(driver.set_rate(2).is_err());
    assert_eq!(tree.read("run/clocks/mclk/rate"), "12000000\n");
    // One that is only set needs nobody to be its reader.
    let text = text.replace("\"/run/clocks/mclk/rate\"", "{ set = \"/run/gone\" }");
    assert!(load_text(&tree, &text, 1).is_ok());
    assert!(load_text(&tree, &format!("control = \"all\"\n{text}"), 1).is_err());
}

#[test]
fn test_who_may_do_what() {
    use Access::{Control, None, Read};

    let tree = host();
    for (file, clock, expected) in [
        ("", "", [Read, Read]),
        ("", "control = [1]", [Read, Control]),
        ("", "control = \"all\"", [Control, Control]),
        ("", "read = \"none\"", [None, None]),
        ("", "read = [0]", [Read, None]),
        ("", "read = [\"a\"]\ncontrol = [\"b\"]", [Read, Control]),
        ("", "read = \"none\"\ncontrol = [0]", [Control, None]),
        ("read = \"none\"", "", [None, None]),
        ("read = \"none\"", "read = \"all\"", [Read, Read]),
        ("control = \"all\"", "", [Control, Control]),
        ("control = \"all\"", "control = \"none\"", [Read, Read]),
        // What is for all lets nobody in whom the resource leaves out.
        ("control = \"all\"", "read = [1]", [None, Control]),
        ("control = [0]", "read = [1]", [None, Read]),
        ("control = [0]", "read = \"none\"", [None, None]),
        ("read = [1]\ncontrol = [0]", "", [Control, Read]),
    ] {
        let text = format!(
            "guests = [\"a\", \"b\"]\n{file}\n[[clock]]\nname = \"c\"\nrates = [1]\nsim = {{}}\n{clock}"
        );
        let platform = load_text(&tree, &text, 2).unwrap();
        let permissions = &platform.clocks[0].permissions;
        let found = [permissions.of(0), permissions.of(1)];
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn test_hooks_of_a_performance_domain_have_levels() {
    let tree = host();
    tree.write("run/level", "20\n");
    let text = "control = \"all\"\n[[performance]]\nname = \"a\"\nlevels = [10, 20, 40]\n\
                hook.level = \"/run/level\"\n";
    let platform = load_text(&tree, text, 1).unwrap();
    let driver: &dyn PerformanceDriver = &*platform.performances[0].kind.driver;
    assert_eq!(driver.level().unwrap(), 1);
    driver.set_level(2).unwrap();
    assert_eq!(tree.read("run/level"), "40\n");
    let limits = crate::host::Limits { min: 0, max: 1 };
    driver.set_limits(limits).unwrap();
    assert_eq!(tree.read("run/level"), "20\n");
    assert_eq!(driver.limits().unwrap(), limits);
}

#[test]
fn test_paths_of_a_file_are_relative_to_it() {
    let tree = Tree::new();
    let directory = "etc/scmi";
    let numbers = [
        "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "n10", "n11", "n12",
    ];
    for name in numbers {
        tree.write(&format!("{directory}/{name}"), "1\n");
    }
    for name in ["w1", "w2", "w3", "w4"] {
        tree.fifo(&format!("{directory}/{name}"));
    }
    let text = r#"
        control = "all"
        [[sensor]]
        name = "a"
        unit = "none"
        hook = "n1"
        [[clock]]
        name = "parent"
        rates = [1]
        sim = {}
        [[clock]]
        name = "a"
        rates = [1, 2]
        parents = ["parent"]
        hook = { rate = "./n2", enabled = { get = "n3", set = "w1" }, parent = "../scmi/n4" }
        [[power]]
        name = "a"
        hook = { get = "n5", set = "w2" }
        [[performance]]
        name = "a"
        levels = [1, 2]
        hook = { level = "n6", min = "n7", max = "n8" }
        [[reset]]
        name = "a"
        hook = { reset = "w3", assert = "w4" }
        [[voltage]]
        name = "a"
        microvolts = [1, 2]
        hook = { microvolts = "n9", enabled = "n10" }
        [[powercap]]
        name = "a"
        cap = { min = 1, max = 2 }
        hook = { cap = "n11", enabled = "n10", interval-us = "n12", power = "n1" }
        [system]
        hook = "w1"
    "#;
    let file = format!("{directory}/platform.toml");
    tree.write(&file, text);
    let platform = load_under(&tree.root(), &tree.path(&file), 1).unwrap();
    platform.clocks[1].kind.driver.set_rate(2).unwrap();
    assert_eq!(tree.read(&format!("{directory}/n2")), "2\n");
    assert!(platform.clocks[1].kind.driver.backing().contains(directory));
    assert!(platform.resets[0].kind.driver.backing().contains(directory));
}
