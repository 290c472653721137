//! Files, good and bad, over a host that is a directory.

use proptest::prelude::*;

use super::*;
use crate::host::linux::tests::Tree;
use crate::host::{Access, PerformanceDriver, PowerState, Rates, Shape};
use crate::report::Report;

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
fn nowhere(root: &Root) -> Place<'_> {
    Place {
        root,
        base: Path::new("/nowhere"),
        looks: false,
    }
}

fn load_text(tree: &Tree, text: &str, guests: Guest) -> Result<Platform, LoadError> {
    tree.write("platform.toml", text);
    load_under(&tree.root(), &tree.path("platform.toml"), guests)
}

/// The line, the key and the reason of a bad file.
fn wrong(tree: &Tree, text: &str) -> (usize, String, String) {
    match load_text(tree, text, 2) {
        Err(LoadError::Wrong { line, key, reason }) => (line, key, reason),
        other => panic!("{text}: {other:?}"),
    }
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
fn test_what_is_wrong_is_told_with_line_and_key() {
    let tree = host();
    let sim = "[[sensor]]\nname = \"a\"\nunit = \"celsius\"\n";
    let mut others = Vec::new();
    for (text, line, key, reason) in [
        ("vendor = ", 1, "", "string values must be quoted"),
        ("\n\nvendor = 3", 3, "vendor", "expected a string"),
        (
            "[[sensor]]\nname = 'a'\nsim = 1\ntrip-points = 300",
            4,
            "sensor[0].trip-points",
            "integer `300`, expected a number from 0 to 255",
        ),
        (
            "[system]\ntimeout-ms = -1",
            2,
            "system.timeout-ms",
            "integer `-1`, expected a number from 0 on",
        ),
        (
            "[system]\ntimeout-ms = 'x'",
            2,
            "system.timeout-ms",
            "expected a number from 0 on",
        ),
        (
            "vendor = \"x\"\nvendors = \"y\"",
            2,
            "vendors",
            "unknown field `vendors`",
        ),
        (
            "vendor = \"x\"\nsub-vendor = \"1234567890123456\"",
            2,
            "sub-vendor",
            "at most 15",
        ),
        (
            "guests = [\"a\"]",
            1,
            "guests",
            "it names 1 guest, and there are 2 sockets",
        ),
        (
            "guests = [\"a\", \"a\"]",
            1,
            "guests[1]",
            "two guests are called",
        ),
        (
            "[[sensor]]\nunit = \"volts\"",
            1,
            "sensor[0]",
            "missing field `name`",
        ),
        (
            "[[sensor]]\nname = \"a\"",
            1,
            "sensor[0]",
            "write one of hwmon, iio",
        ),
        (
            &format!("{sim}sim = 1\nthermal = \"gpu-thermal\""),
            4,
            "sensor[0].sim",
            "thermal and sim: write one",
        ),
        (
            &format!("{sim}sim = 1\nread = \"a\""),
            5,
            "sensor[0].read",
            "write [\"a\"]",
        ),
        (
            &format!("{sim}sim = 1\nread = [\"a\"]"),
            5,
            "sensor[0].read[0]",
            "write `guests",
        ),
        (
            &format!("{sim}sim = 1\ncontrol = [2]"),
            5,
            "sensor[0].control[0]",
            "there are 2 guests, from 0",
        ),
        (
            &format!("{sim}sim = [1, 2]"),
            4,
            "sensor[0].sim",
            "2 waves: write 1",
        ),
        (
            &format!("{sim}sim = {{ sine = {{ mean = 1, amplitude = 1, period-ms = 0 }} }}"),
            4,
            "sensor[0].sim",
            "at least one millisecond",
        ),
        (
            &format!("{sim}sim = {{ saw = 1 }}"),
            4,
            "sensor[0].sim.saw",
            "unknown variant `saw`",
        ),
        (
            &format!("{sim}sim = 1\nscale = 16"),
            5,
            "sensor[0].scale",
            "from -16 to 15",
        ),
        (
            &format!("{sim}sim = 1\ntrip-points = 300"),
            5,
            "sensor[0].trip-points",
            "300",
        ),
        (
            &format!("{sim}sim = 1\nintervals-ms = [1234567]"),
            5,
            "sensor[0].intervals-ms",
            "too many digits",
        ),
        (
            &format!("{sim}sim = 1\n{sim}sim = 2"),
            6,
            "sensor[1].name",
            "the same name",
        ),
        (
            "[[sensor]]\nname = \"a\"\nunit = \"furlongs\"\nsim = 1",
            3,
            "sensor[0].unit",
            "is no unit",
        ),
        (
            "[[sensor]]\nname = \"a\"\nsim = 1",
            1,
            "sensor[0]",
            "write unit",
        ),
        (
            "[[sensor]]\nname = \"a\"\nunit = \"volts\"\nthermal = \"gpu-thermal\"",
            3,
            "sensor[0].unit",
            "leave it out",
        ),
        (
            "[[sensor]]\nname = \"a\"\nthermal = \"cpu-thermal\"",
            3,
            "sensor[0].thermal",
            "there is thermal_zone1 (gpu-thermal)",
        ),
        (
            "[[sensor]]\nname = \"a\"\nhwmon.chip = \"soc_thermal\"\nhwmon.chanel = \"temp1\"",
            4,
            "sensor[0].hwmon.chanel",
            "unknown field `chanel`, expected `chip` or `channel`",
        ),
        (
            "[[sensor]]\nname = \"a\"\nhook = \"/run/gone\"\nunit = \"volts\"",
            3,
            "sensor[0].hook",
            "/run/gone: No such file",
        ),
        (
            "[[sensor]]\nname = \"a\"\nhook = \"/run/board/system\"\nunit = \"volts\"",
            3,
            "sensor[0].hook",
            "is a FIFO",
        ),
        (
            "[[sensor]]\nname = \"a\"\niio = { device = \"adc\", channel = \"in_voltage0\", \
             trigger = \"t\" }",
            3,
            "sensor[0].iio",
            "buffer = true",
        ),
        (
            "[[clock]]\nname = \"a\"\nrates = 5",
            3,
            "clock[0].rates",
            "a list of numbers",
        ),
        (
            "[[clock]]\nname = \"a\"\nrates = []\nsim = {}",
            3,
            "clock[0].rates",
            "needs a rate",
        ),
        (
            "[[clock]]\nname = \"a\"\nrates = [1]\nsim = {}\nparents = [\"b\"]",
            5,
            "clock[0].parents[0]",
            "no [[clock]] that is called \"b\"",
        ),
        (
            "[[clock]]\nname = \"a\"\nrates = [1]\nhook.rate = {}",
            4,
            "clock[0].hook.rate",
            "write get, set or both",
        ),
        (
            "[[clock]]\nname = \"a\"\nrates = [1]\ngate = true\nhook.rate = \"/run/clocks/mclk/rate\"",
            4,
            "clock[0].gate",
            "nothing here turns it on and off",
        ),
        (
            "[[performance]]\nname = \"a\"\ncpufreq = \"policy0\"\nlevels = [700000]",
            4,
            "performance[0].levels[0]",
            "the hardware has no 700000 kHz, but 600000, 1200000, 1800000",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}",
            1,
            "performance[0]",
            "write levels",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}\nlevels = [1, 2]\nsustained = 3",
            5,
            "performance[0].sustained",
            "none of the levels",
        ),
        (
            "[[reset]]\nname = \"a\"\nhook = {}",
            3,
            "reset[0].hook",
            "write reset = PATH",
        ),
        (
            "[[reset]]\nname = \"a\"\ngpio = { chip = \"gpiochip7\", line = \"0\" }",
            3,
            "reset[0].gpio",
            "there is no GPIO chip \"gpiochip7\"",
        ),
        (
            "[[voltage]]\nname = \"a\"\nregulator.name = \"vdd-cam\"\nmicrovolts = [1]",
            4,
            "voltage[0].microvolts",
            "lets nobody set this regulator",
        ),
        (
            "[[voltage]]\nname = \"a\"\nsim = {}",
            1,
            "voltage[0]",
            "write microvolts",
        ),
        (
            "[[voltage]]\nname = \"a\"\nregulator.consumer = \"camera\"",
            3,
            "voltage[0].regulator",
            "make it a [[power]] domain",
        ),
        (
            "[[powercap]]\nname = \"a\"\npowercap.zone = \"package-0\"",
            1,
            "powercap[0]",
            "write cap",
        ),
        (
            "[system]\nhook = \"/run/gone\"\ncontrol = \"all\"",
            2,
            "system.hook",
            "No such file",
        ),
        ("[sensor]\nname = \"a\"", 1, "sensor", "write [[sensor]]"),
        (
            "\n[powercap]\nname = \"a\"",
            2,
            "powercap",
            "write [[powercap]]",
        ),
        ("[[system]]\nsim = {}", 1, "system[0]", "write [system]"),
        (
            "[[pinctrl]]\nname = \"p\"\npins = [\"a\"]\nsim = {}",
            1,
            "pinctrl[0]",
            "write [pinctrl]",
        ),
        (
            "[pinctrl]\nname = \"p\"\npins = [\"a\"]\nsim = true",
            4,
            "pinctrl.sim",
            "expected {}",
        ),
        (
            "[[reset]]\nname = \"a\"\nsim = 3",
            3,
            "reset[0].sim",
            "expected {}",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = true\nrates = [1]",
            3,
            "clock[0].sim",
            "expected a table: write sim = { … }",
        ),
        (
            "[pinctrl]\nname = \"p\"\npins = \"a\"\nsim = {}",
            3,
            "pinctrl.pins",
            "write pins = […], a list",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = {}\nrates = [1, 99999999999999999999]",
            4,
            "clock[0].rates[1]",
            "a number is from -9223372036854775808 to 9223372036854775807",
        ),
        (
            "[system]\ntimeout-ms = 99999999999999999999",
            2,
            "system.timeout-ms",
            "a number is from -9223372036854775808 to 9223372036854775807",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = {}\nrates = [1, \"x\"]",
            4,
            "clock[0].rates[1]",
            "expected a number from 0 on",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = {}\nrates = [2, 1]",
            4,
            "clock[0].rates",
            "in order",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = {}\n\nrates = { min = 5, max = 1 }",
            5,
            "clock[0].rates",
            "above its highest",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = { rate = 2 }\nrates = [1, 3]",
            3,
            "clock[0].sim.rate",
            "none of the clock's rates",
        ),
        (
            "[[voltage]]\nname = \"a\"\nsim = { microvolts = 2 }\nmicrovolts = [1, 3]",
            3,
            "voltage[0].sim.microvolts",
            "none of the domain's voltages",
        ),
        (
            "[[voltage]]\nname = \"a\"\nsim = {}\nmicrovolts = [3, 1]",
            4,
            "voltage[0].microvolts",
            "in order",
        ),
        (
            "[[powercap]]\nname = \"a\"\nsim = { cap = 9 }\ncap = { min = 1, max = 3 }",
            3,
            "powercap[0].sim.cap",
            "outside of the domain's limits",
        ),
        (
            "[[powercap]]\nname = \"a\"\nsim = {}\ncap = { min = 3, max = 1 }",
            4,
            "powercap[0].cap",
            "above its highest",
        ),
        (
            &format!("{sim}sim = 1\nrange = {{ min = 2, max = 1 }}"),
            5,
            "sensor[0].range",
            "above the greatest",
        ),
        (
            &format!("{sim}sim = 7\nrange = {{ min = 1, max = 2 }}"),
            4,
            "sensor[0].sim",
            "its numbers are from 7 to 7, which is not within range",
        ),
        (
            &format!("{sim}sim = 1\nrange = [1, 2]"),
            5,
            "sensor[0].range",
            "write range = { … }",
        ),
        (
            &format!("{sim}sim = 1\nintervals-ms = [10, 100]\ndefault-interval-ms = 50"),
            6,
            "sensor[0].default-interval-ms",
            "none of the intervals",
        ),
        (
            &format!("{sim}sim = 1\nintervals-ms = [100, 10]"),
            5,
            "sensor[0].intervals-ms",
            "in order",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}\nlevels = [2, 1]",
            4,
            "performance[0].levels",
            "in order",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}\nlevels = [-1]",
            4,
            "performance[0].levels[0]",
            "a level is from 1",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}\nlevels = [{ level = 1, frequency-khz = \"x\" }]",
            4,
            "performance[0].levels[0].frequency-khz",
            "expected a number from 0 to 4294967295",
        ),
        (
            "[[performance]]\nname = \"a\"\nsim = {}\nlevels = [1]\nlevel-indexing = true",
            5,
            "performance[0].level-indexing",
            "each level needs a frequency-khz",
        ),
        (
            "[[sensor]]\nname = \"a\"\nunit = \"celcius\"\nsim = 1",
            3,
            "sensor[0].unit",
            "is celsius meant?",
        ),
        (
            "[[sensor]]\nname = \"a \"\nunit = \"celsius\"\nsim = 1",
            2,
            "sensor[0].name",
            "does not begin or end with a blank",
        ),
        (
            "[[sensor]]\nname = \"a\"\nhwmon = { chip = \"x/y\", channel = \"temp1\" }",
            3,
            "sensor[0].hwmon",
            "neither a name nor a path",
        ),
        (
            "[[reset]]\nname = \"a\"\ngpio = { chip = \"x\", line = \"0\", initial = true }",
            3,
            "reset[0].gpio.initial",
            "no guest may control it",
        ),
        (
            "[[sensor]]\nname = \"a\"\niio = { device = \"imu\", channel = \"in_accel\", \
             buffer = true, trigger = \"t\" }",
            3,
            "sensor[0].iio",
            "a trigger is set, and no guest may control this",
        ),
        (
            "[[sensor]]\nname = \"a\"\niio = { device = \"imu\", channel = \"in_accel\", \
             buffer = true }",
            3,
            "sensor[0].iio",
            "is off, and no guest may control",
        ),
    ] {
        let (found_line, found_key, found_reason) = wrong(&tree, text);
        let found = format!("line {found_line}: {found_key}: {found_reason}");
        if (found_line, &*found_key) != (line, key) || !found_reason.contains(reason) {
            others.push(format!(
                "{text}\n  {found}\n  not {line}: {key}: {reason}\n"
            ));
        }
    }
    assert!(others.is_empty(), "{}", others.concat());
}

#[test]
fn test_an_error_reads_as_a_sentence() {
    let tree = host();
    let text = "[[sensor]]\nname = \"a\"\nthermal = \"cpu\"\n";
    let error = load_text(&tree, text, 1).unwrap_err().to_string();
    assert!(
        error.starts_with("line 3: sensor[0].thermal: there is no \"cpu\" in "),
        "{error}"
    );
    let error = load_text(&tree, "a b", 1).unwrap_err().to_string();
    assert!(error.starts_with("line 1: "), "{error}");
    let error = parse(&nowhere(&tree.root()), b"vendor = 'a'\n# \xff\n", 1).unwrap_err();
    assert_eq!(error.to_string(), "line 2: this is no text in UTF-8");
}

#[test]
fn test_a_file_that_is_too_large_is_refused() {
    let tree = host();
    let text = "#".repeat(MAX_FILE as usize + 1);
    assert!(matches!(
        load_text(&tree, &text, 1),
        Err(LoadError::TooLong)
    ));
    let gone = load_under(&tree.root(), &tree.path("gone"), 1);
    assert!(matches!(gone, Err(LoadError::Read(_))));
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

/// All files below a directory, with what is in them. A FIFO has nothing.
fn contents(directory: &Path, into: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            contents(&entry.path(), into);
        } else if kind.is_file() {
            into.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn all(tree: &Tree) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    contents(&tree.path(""), &mut files);
    files.sort();
    files
}

/// The files below a directory that this process has open for writing.
fn open_for_writing(tree: &Tree) -> Vec<std::path::PathBuf> {
    let root = tree.path("").canonicalize().unwrap();
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let path = std::fs::read_link(entry.path()).ok()?;
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name()));
        let info = info.ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
        (path.starts_with(&root) && flags & 3 != 0).then_some(path)
    });
    open.collect()
}

/// The example's FIFOs with a reader each, who is told when somebody opened one for writing.
struct Readers(Vec<std::fs::File>);

impl Readers {
    fn new(tree: &Tree) -> Self {
        let open = |name: &str| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
            let mode = rustix::fs::Mode::empty();
            rustix::fs::open(tree.path(name), flags, mode)
                .unwrap()
                .into()
        };
        let fifos = [
            "run/board/usb-hub",
            "run/board/phy-reset",
            "run/board/system",
        ];
        Self(fifos.into_iter().map(open).collect())
    }

    fn saw_nobody(&self) -> bool {
        self.0.iter().all(|file| {
            let mut fds = [rustix::event::PollFd::new(
                file,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 0
        })
    }
}

fn look_under(tree: &Tree, text: &str) -> (Platform, Vec<NotHere>) {
    tree.write("platform.toml", text);
    read(&tree.root(), &tree.path("platform.toml"), 2, true).unwrap()
}

#[test]
fn test_looking_at_a_platform_changes_nothing() {
    let tree = host();
    tree.write("platform.toml", EXAMPLE);
    let readers = Readers::new(&tree);
    let before = all(&tree);
    let (platform, not_here) = look_under(&tree, EXAMPLE);
    assert!(not_here.is_empty(), "{not_here:?}");
    assert_eq!(open_for_writing(&tree), [] as [std::path::PathBuf; 0]);
    assert_eq!(all(&tree), before);
    assert!(readers.saw_nobody(), "a FIFO was opened for writing");
    // It is what a start gives guests.
    let started = load_text(&tree, EXAMPLE, 2).unwrap();
    let table = |platform: &Platform| Report::new(platform, 2, Vec::new()).table();
    assert_eq!(table(&platform), table(&started));
    assert_ne!(all(&tree), before, "a start turns a buffer on");
}

#[test]
fn test_a_platform_is_looked_at_where_its_hardware_is_not() {
    let tree = Tree::new();
    let (platform, not_here) = look_under(&tree, EXAMPLE);
    let full = load_text(&host(), EXAMPLE, 2).unwrap();
    let names = |platform: &Platform| {
        let drivers = platform.drivers();
        let names = drivers.map(|(id, _)| platform.resource(id).unwrap().0.to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&platform), names(&full));
    let keys: Vec<_> = not_here.iter().map(|it| it.key.as_str()).collect();
    for key in [
        "sensor[0].hwmon",
        "sensor[1].thermal",
        "sensor[2].power-supply",
        "sensor[3].iio",
        "sensor[4].iio",
        "sensor[5].hook",
        "clock[1].hook",
        "power[0].regulator",
        "power[1].hook",
        "performance[0].cpufreq",
        "performance[1].devfreq",
        "reset[0].hook",
        "voltage[0].regulator",
        "voltage[1].regulator",
        "powercap[0].powercap",
        "system.hook",
    ] {
        assert!(keys.contains(&key), "{key}: {keys:?}");
    }
    let hook = not_here
        .iter()
        .find(|it| it.key == "sensor[5].hook")
        .unwrap();
    assert!(hook.reason.contains("No such file"), "{hook}");
    let table = Report::new(&platform, 1, not_here).table();
    assert!(table.contains("soc_thermal temp1 (not here)"), "{table}");
    // What is wrong with the file itself is wrong here, too.
    for (text, reason) in [
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\ntrip-points = 300",
            "300",
        ),
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\nunit = \"volts\"",
            "leave it out",
        ),
        (
            "hwmon = { chip = \"x\", channel = \"temp1\" }\nintervals-ms = [9, 3]",
            "in order",
        ),
    ] {
        let text = format!("[[sensor]]\nname = \"a\"\n{text}\n");
        tree.write("platform.toml", text);
        let error = read(&tree.root(), &tree.path("platform.toml"), 2, true).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// A host with all that the example has, for guests that control nothing of it.
fn host_to_read() -> (Tree, String) {
    let tree = host();
    // As the host has to set it up.
    let imu = "sys/bus/iio/devices/iio:device1";
    tree.files(imu, &[("buffer/enable", "1")]);
    for axis in ["x", "y", "z"] {
        tree.write(&format!("{imu}/scan_elements/in_accel_{axis}_en"), "1\n");
    }
    let text: String = EXAMPLE
        .lines()
        .filter(|line| !line.starts_with("control = "))
        .map(|line| line.replace(", trigger = \"imu-dev0\"", "") + "\n")
        .collect();
    tree.write("platform.toml", &text);
    (tree, text)
}

/// One process can have it: the daemon that runs, when its file is looked at.
#[test]
fn test_looking_at_a_buffer_that_nobody_controls_does_not_open_it() {
    let (tree, text) = host_to_read();
    let node = tree.path("dev/iio:device1").canonicalize().unwrap();
    let is_open = || {
        let mut entries = std::fs::read_dir("/proc/self/fd").unwrap();
        entries
            .any(|entry| std::fs::read_link(entry.unwrap().path()).is_ok_and(|path| path == node))
    };
    let (_platform, not_here) = look_under(&tree, &text);
    assert!(not_here.is_empty(), "{not_here:?}");
    assert!(!is_open(), "it was opened");
    let started = load_text(&tree, &text, 2).unwrap();
    assert!(is_open(), "a start opens it");
    drop(started);
    // What is not among its samples is told of, as by a start.
    tree.write(
        "sys/bus/iio/devices/iio:device1/scan_elements/in_accel_x_en",
        "0\n",
    );
    let (_platform, not_here) = look_under(&tree, &text);
    assert!(not_here[0].reason.contains("in_accel_x_en"), "{not_here:?}");
}

#[test]
fn test_what_nobody_controls_is_neither_opened_for_writing_nor_written() {
    let (tree, text) = host_to_read();
    let readers = Readers::new(&tree);
    let before = all(&tree);
    let platform = load_text(&tree, &text, 2).unwrap();
    for guest in [0, 1] {
        let access = platform.drivers().map(|(id, _)| {
            let (_, permissions) = platform.resource(id).unwrap();
            permissions.of(guest)
        });
        assert!(access.max() <= Some(Access::Read));
    }
    assert_eq!(open_for_writing(&tree), [] as [std::path::PathBuf; 0]);
    let accel = &platform.sensors[4].kind.driver;
    assert!(accel.event().is_some(), "it is read from the buffer");
    accel
        .set_interval(Some(std::time::Duration::from_millis(1)))
        .unwrap();
    platform.clocks[1]
        .kind
        .driver
        .set_rate(8_000_000)
        .unwrap_err();
    platform.powers[1]
        .kind
        .driver
        .set_state(PowerState::ON)
        .unwrap();
    platform.resets[0].kind.driver.reset().unwrap_err();
    platform.powercaps[0].kind.driver.set_cap(None).unwrap_err();
    let system = platform
        .system
        .as_ref()
        .unwrap()
        .kind
        .driver
        .as_ref()
        .unwrap();
    system
        .request(0, crate::host::SystemState::Suspend, true)
        .unwrap_err();
    assert_eq!(all(&tree), before);
    assert!(readers.saw_nobody(), "a FIFO was opened for writing");
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

/// Pieces that files are made of, so that random ones come further than the first byte.
fn pieces() -> impl Strategy<Value = String> {
    let lines: Vec<_> = EXAMPLE.lines().map(str::to_owned).collect();
    let line = prop_oneof![
        8 => prop::sample::select(lines),
        1 => "[ -~]{0,20}",
        1 => Just("[[sensor]]".to_owned()),
    ];
    prop::collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn test_any_bytes_are_a_platform_or_an_error(text: Vec<u8>) {
        let _ = parse(&nowhere(&Root::new("/nowhere")), &text, 2);
    }

    #[test]
    fn test_any_mixture_of_lines_is_a_platform_or_an_error(text in pieces()) {
        if let Err(error) = parse(&nowhere(&Root::new("/nowhere")), text.as_bytes(), 2) {
            prop_assert!(error.to_string().starts_with("line "));
        }
    }

    #[test]
    fn test_a_changed_example_is_a_platform_or_an_error(place: prop::sample::Index, byte: u8) {
        let mut text = EXAMPLE.as_bytes().to_vec();
        let place = place.index(text.len());
        text[place] = byte;
        let _ = parse(&nowhere(&Root::new("/nowhere")), &text, 2);
    }
}
