//! What is wrong with a file: the line, the key, and what to write instead.

use super::*;

/// A text, and where it is wrong: the line, the key, and a part of the reason.
type Case<'a> = (&'a str, usize, &'a str, &'a str);

#[track_caller]
fn expect(cases: &[Case<'_>]) {
    let tree = host();
    let mut others = Vec::new();
    for &(text, line, key, reason) in cases {
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
fn test_what_is_wrong_with_the_file_itself_is_told_with_line_and_key() {
    expect(&[
        ("vendor = ", 1, "", "string values must be quoted"),
        ("\n\nvendor = 3", 3, "vendor", "expected a string"),
        (
            "vendor = \"x\"\nvendors = \"y\"",
            2,
            "vendors",
            "unknown field `vendors`",
        ),
        (
            "[[sensors]]\nname = \"a\"",
            1,
            "sensors",
            "is sensor meant?",
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
    ]);
}

#[test]
fn test_what_is_wrong_with_a_sensor_is_told_with_line_and_key() {
    let sim = "[[sensor]]\nname = \"a\"\nunit = \"celsius\"\n";
    expect(&[
        (
            "[[sensor]]\nname = 'a'\nsim = 1\ntrip-points = 300",
            4,
            "sensor[0].trip-points",
            "integer `300`, expected a number from 0 to 255",
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
        ("[sensor]\nname = \"a\"", 1, "sensor", "write [[sensor]]"),
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
    ]);
}

#[test]
fn test_what_is_wrong_with_a_clock_is_told_with_line_and_key() {
    expect(&[
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
            "[[clock]]\nname = \"a\"\nrates = [1]\ngate = true\n\
             hook.rate = \"/run/clocks/mclk/rate\"",
            4,
            "clock[0].gate",
            "nothing here turns it on and off",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = true\nrates = [1]",
            3,
            "clock[0].sim",
            "expected a table: write sim = { … }",
        ),
        (
            "[[clock]]\nname = \"a\"\nsim = {}\nrates = [1, 99999999999999999999]",
            4,
            "clock[0].rates[1]",
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
    ]);
}

#[test]
fn test_what_is_wrong_with_a_performance_domain_is_told_with_line_and_key() {
    expect(&[
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
            "[[performance]]\nname = \"a\"\nsim = {}\n\
             levels = [{ level = 1, frequency-khz = \"x\" }]",
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
    ]);
}

#[test]
fn test_what_is_wrong_with_a_reset_domain_is_told_with_line_and_key() {
    expect(&[
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
            "[[reset]]\nname = \"a\"\nsim = 3",
            3,
            "reset[0].sim",
            "expected {}",
        ),
        (
            "[[reset]]\nname = \"a\"\ngpio = { chip = \"x\", line = \"0\", initial = true }",
            3,
            "reset[0].gpio.initial",
            "no guest may control it",
        ),
    ]);
}

#[test]
fn test_what_is_wrong_with_a_voltage_domain_is_told_with_line_and_key() {
    expect(&[
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
    ]);
}

#[test]
fn test_what_is_wrong_with_a_power_capping_domain_is_told_with_line_and_key() {
    expect(&[
        (
            "[[powercap]]\nname = \"a\"\npowercap.zone = \"package-0\"",
            1,
            "powercap[0]",
            "write cap",
        ),
        (
            "\n[powercap]\nname = \"a\"",
            2,
            "powercap",
            "write [[powercap]]",
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
    ]);
}

#[test]
fn test_what_is_wrong_with_the_system_is_told_with_line_and_key() {
    expect(&[
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
            "[system]\nhook = \"/run/gone\"\ncontrol = \"all\"",
            2,
            "system.hook",
            "No such file",
        ),
        ("[[system]]\nsim = {}", 1, "system[0]", "write [system]"),
        (
            "[system]\ntimeout-ms = 99999999999999999999",
            2,
            "system.timeout-ms",
            "a number is from -9223372036854775808 to 9223372036854775807",
        ),
    ]);
}

#[test]
fn test_what_is_wrong_with_the_pin_controller_is_told_with_line_and_key() {
    expect(&[
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
            "[pinctrl]\nname = \"p\"\npins = \"a\"\nsim = {}",
            3,
            "pinctrl.pins",
            "write pins = […], a list",
        ),
    ]);
}

/// The line, the key and the reason of a bad file.
fn wrong(tree: &Tree, text: &str) -> (usize, String, String) {
    match load_text(tree, text, 2) {
        Err(LoadError::Wrong { line, key, reason }) => (line, key, reason),
        other => panic!("{text}: {other:?}"),
    }
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
