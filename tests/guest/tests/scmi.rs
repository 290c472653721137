//! Linux's SCMI drivers against vhost-device-scmi, over its simulated platform, in an arm64 guest;
//! the test is the host's side, through the control socket.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vhost_device_guest::{Arch, Control, Daemon, Guest, RING_PACKED, RunningGuest, scmi};

const DEVICE: &str = "vhost-user-scmi-pci";

/// The same device in QEMU's general front-end. That of the device itself withholds packed rings.
const GENERAL_DEVICE: &str = "vhost-user-test-device-pci,virtio-id=32,num_vqs=2";

/// How often something is looked for before the test gives up.
const TRIES: usize = 500;

/// How many times the device is taken out and put back.
const PLUGGED: usize = 20;

/// The consumers of the device tree.
const SETTER: &str = "/sys/bus/platform/devices/regulator-setter";
const SWITCH: &str = "/sys/bus/platform/devices/regulator-switch";
const SWITCH_DRIVER: &str = "/sys/bus/platform/drivers/reg-userspace-consumer";

const POWERCAP: &str = "/sys/class/powercap/arm-scmi:0";
const CPU: &str = "/sys/devices/system/cpu/cpu0/cpufreq";
const RAW: &str = "/sys/kernel/debug/scmi/0/raw";

/// Sensor 0's trip points, in messages to protocol 0x15 of a header and arguments, and what tells
/// of them.
mod trip {
    const SENSOR: u32 = 0;

    /// `SENSOR_TRIP_POINT_NOTIFY`: on.
    pub(crate) const NOTIFY: &[u32] = &[0x5404, SENSOR, 1];
    /// `SENSOR_TRIP_POINT_CONFIG`: trip point 1, in both directions, at 70 °C.
    pub(crate) const CONFIG: &[u32] = &[0x5405, SENSOR, 1 << 4 | 3, 70_000, 0];
    /// The header of `SENSOR_TRIP_POINT_EVENT`.
    pub(crate) const EVENT: &str = "00005700";
    /// The event, of the platform: trip point 1, upwards.
    pub(crate) const UP: &str = "00005700 00000000 00000000 00010001";
    /// The same downwards.
    pub(crate) const DOWN: &str = "00005700 00000000 00000000 00000001";
}

/// `RESET` of protocol 0x16: domain 0, by itself.
const RESET: &[u32] = &[0x5804, 0, 1, 0];

/// A guest that knows of everything that the simulated platform has.
fn board() -> Guest {
    Guest::of(&Arch::AARCH64).device_tree(scmi::TREE)
}

/// A guest with the simulated platform, and the host's side of that.
struct Bench {
    guest: RunningGuest,
    host: Control,
    _directory: TempDir,
}

impl Bench {
    fn boot() -> Result<Self> {
        Self::boot_with(board(), DEVICE)
    }

    fn boot_with(guest: Guest, device: &str) -> Result<Self> {
        let directory = TempDir::new()?;
        let control: PathBuf = directory.path().join("control");
        let daemon = Daemon::new("vhost-device-scmi")
            .args([
                "--sim".as_ref(),
                "--sim-control".as_ref(),
                control.as_os_str(),
            ])
            .device(device);
        let guest = guest.attach(daemon).boot()?;
        Ok(Self {
            guest,
            host: Control::connect(&control)?,
            _directory: directory,
        })
    }

    /// Runs a line of shell that has to succeed.
    #[track_caller]
    fn run(&mut self, line: &str) -> Result<String> {
        Ok(self.guest.run(line)?.text().to_owned())
    }

    /// The state of something simulated, or what it is after a change (`NAME=VALUE`).
    fn host(&mut self, line: &str) -> Result<String> {
        let line = match line.split_once('=') {
            Some((name, value)) => format!("set {name} {value}"),
            None => format!("get {line}"),
        };
        let answer = self.host.ask(&line)?;
        let (_, state) = answer.split_once(' ').context("an answer has two words")?;
        Ok(state.to_owned())
    }

    /// Waits until something simulated is in this state.
    fn wait_for_host(&mut self, name: &str, expected: &str) -> Result<()> {
        let mut state = String::new();
        for _ in 0..TRIES {
            state = self.host(name)?;
            if state == expected {
                return Ok(());
            }
            // Takes its time.
            self.run("usleep 1000")?;
        }
        anyhow::bail!("{name} is {state:?} and not {expected:?}");
    }

    /// What hwmon reads of the sensor with this name.
    fn hwmon(&mut self, name: &str) -> Result<String> {
        let label = format!("grep -lx '{name}' /sys/class/hwmon/hwmon*/*_label");
        self.run(&format!("label=$({label}) && cat ${{label%_label}}_input"))
    }

    /// Sends a message past the drivers, and gives back the words that it is answered with.
    fn message(&mut self, words: &[u32]) -> Result<String> {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        let bytes: String = bytes.map(|byte| format!("\\x{byte:02x}")).collect();
        let line = format!("printf '{bytes}' >{RAW}/message && od -An -v -tx4 {RAW}/message");
        self.run(&line)
    }

    /// Sends a message that has to succeed.
    fn command(&mut self, words: &[u32]) -> Result<()> {
        let answer = self.message(words)?;
        let mut answer_words = answer.split_whitespace().skip(1);
        ensure!(
            answer_words.next() == Some("00000000"),
            "{words:x?}: {answer}"
        );
        Ok(())
    }

    /// Waits for a notification with this header, among those that the drivers have asked for, and
    /// gives back its words.
    fn notification(&mut self, header: &str) -> Result<String> {
        self.run(&format!(
            "while words=$(od -An -v -tx4 {RAW}/notification); do \
             case $words in *' {header} '*) echo $words; break; esac; done"
        ))
    }
}

#[test]
fn each_protocol_has_its_driver_on_split_rings() -> Result<()> {
    let bench = Bench::boot()?;
    each_protocol_has_its_driver(bench, false)
}

#[test]
fn each_protocol_has_its_driver_on_packed_rings() -> Result<()> {
    let bench = Bench::boot_with(board(), GENERAL_DEVICE)?;
    each_protocol_has_its_driver(bench, true)
}

fn each_protocol_has_its_driver(mut bench: Bench, packed: bool) -> Result<()> {
    assert_eq!(
        bench
            .guest
            .has_feature("drivers/scmi-virtio/virtio*", RING_PACKED)?,
        packed
    );
    assert_eq!(bench.run(scmi::LIST_DRIVERS)?, scmi::DRIVERS.join("\n"));
    assert_eq!(bench.run("cat /sys/kernel/debug/devices_deferred")?, "");
    let messages = bench.run("dmesg | grep -i scmi")?;
    assert!(!messages.contains("failed"), "{messages}");
    assert!(!messages.contains("not implemented"), "{messages}");
    let errors = format!("cat {RAW}/../transport/counters/xfers_response_timeout");
    assert_eq!(bench.run(&errors)?, "0");
    // Often enough that the rings wrap around.
    for turn in 0..100 {
        bench.host(&format!("sensor:cpu-temp={turn}"))?;
        assert_eq!(bench.hwmon("cpu-temp")?, turn.to_string());
    }
    bench.command(trip::CONFIG)?;
    bench.command(trip::NOTIFY)?;
    for _ in 0..20 {
        bench.host("sensor:cpu-temp=70000")?;
        assert_eq!(bench.notification(trip::EVENT)?, trip::UP);
        bench.host("sensor:cpu-temp=1000")?;
        assert_eq!(bench.notification(trip::EVENT)?, trip::DOWN);
    }
    bench.guest.power_off()
}

#[test]
fn sensors_are_read_through_hwmon_and_as_a_thermal_zone() -> Result<()> {
    let mut bench = Bench::boot()?;
    bench.host("sensor:cpu-temp=61500")?;
    assert_eq!(bench.hwmon("cpu-temp")?, "61500");
    let zone = "/sys/class/thermal/thermal_zone0";
    assert_eq!(
        bench.run(&format!("cat {zone}/type {zone}/temp"))?,
        "scmi-thermal\n61500"
    );
    bench.host("sensor:cpu-temp=-5250")?;
    assert_eq!(bench.hwmon("cpu-temp")?, "-5250");
    // The name is longer than a descriptor has room for.
    bench.host("sensor:ambient-temperature-at-the-air-inlet=20125")?;
    assert_eq!(
        bench.hwmon("ambient-temperature-at-the-air-inlet")?,
        "20125"
    );
    for (name, value) in [
        ("board-12v", "11987"),
        ("board-current", "812"),
        ("soc-power", "3141592"),
        ("soc-energy", "123456789"),
    ] {
        bench.host(&format!("sensor:{name}={value}"))?;
        assert_eq!(bench.hwmon(name)?, value, "{name}");
    }
    bench.guest.power_off()
}

#[test]
fn sensors_are_read_through_iio() -> Result<()> {
    let mut bench = Bench::boot()?;
    let device = bench.run("dirname $(grep -lx accelerometer /sys/bus/iio/devices/*/name)")?;
    bench.host("sensor:accelerometer=12,-34,9807")?;
    let axes = |what: &str| format!("cat {device}/in_accel_[xyz]_{what}");
    assert_eq!(bench.run(&axes("raw"))?, "12\n-34\n9807");
    assert_eq!(bench.run(&axes("scale"))?, ["0.001000000"; 3].join("\n"));
    // Samples that come by themselves, 100 in a second.
    for axis in ["x", "y", "z"] {
        bench.run(&format!(
            "echo 1 >{device}/scan_elements/in_accel_{axis}_en"
        ))?;
    }
    bench.run(&format!("echo 100 >{device}/in_accel_sampling_frequency"))?;
    bench.run(&format!("echo 1 >{device}/buffer/enable"))?;
    let node = format!("/dev/{}", device.rsplit('/').next().unwrap_or_default());
    let samples = format!("dd if={node} bs=24 count=3 2>/dev/null | od -An -v -td8 -w24");
    let samples = bench.run(&samples)?;
    let rows: Vec<Vec<_>> = samples
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows, [["12", "-34", "9807"]; 3]);
    bench.run(&format!("echo 0 >{device}/buffer/enable"))?;
    bench.guest.power_off()
}

#[test]
fn clocks_are_listed_and_set() -> Result<()> {
    let mut bench = Bench::boot()?;
    let rates = bench.run("awk '{ print $1, $5 }' /sys/kernel/debug/clk/clk_summary")?;
    // The last one's rate is set by the device tree.
    for clock in [
        "osc 24000000",
        "pll 1200000000",
        "uart 24000000",
        "display-controller-pixel-clock 297000000",
    ] {
        assert!(rates.lines().any(|line| line == clock), "{clock}: {rates}");
    }
    let rate = bench.host("clock:display-controller-pixel-clock.rate")?;
    assert_eq!(rate, "297000000");
    bench.guest.power_off()
}

#[test]
fn regulators_are_set_and_switched() -> Result<()> {
    let mut bench = Bench::boot()?;
    let regulators = "cat /sys/class/regulator/regulator.*/name";
    assert_eq!(bench.run(regulators)?, "regulator-dummy\nvdd-core\nvdd-io");
    assert_eq!(bench.host("voltage:vdd-core.microvolts")?, "900000");
    for level in ["1000000", "612500", "1200000"] {
        bench.run(&format!("echo 0 >{SETTER}/min_microvolts"))?;
        bench.run(&format!("echo {level} >{SETTER}/max_microvolts"))?;
        bench.run(&format!("echo {level} >{SETTER}/min_microvolts"))?;
        assert_eq!(bench.host("voltage:vdd-core.microvolts")?, level);
        assert_eq!(bench.host("voltage:vdd-core.enabled")?, "on");
        let shown = "cat $(dirname $(grep -lx vdd-core /sys/class/regulator/*/name))/microvolts";
        assert_eq!(bench.run(shown)?, level);
    }
    for (state, expected) in [("enabled", "on"), ("disabled", "off")] {
        bench.run(&format!("echo {state} >{SWITCH}/state"))?;
        assert_eq!(bench.host("voltage:vdd-io.enabled")?, expected);
    }
    bench.guest.power_off()
}

#[test]
fn a_power_domain_is_on_while_it_is_used() -> Result<()> {
    let mut bench = Bench::boot()?;
    assert_eq!(bench.host("power:gpu")?, "on");
    // Nobody in the guest uses it.
    bench.wait_for_host("power:display", "off")?;
    let summary = "awk '/^(gpu|display) / { print $1, $2 }' \
        /sys/kernel/debug/pm_genpd/pm_genpd_summary | sort";
    assert_eq!(bench.run(summary)?, "display off-0\ngpu on");
    bench.run(&format!("echo regulator-switch >{SWITCH_DRIVER}/unbind"))?;
    bench.wait_for_host("power:gpu", "off")?;
    bench.run(&format!("echo regulator-switch >{SWITCH_DRIVER}/bind"))?;
    bench.wait_for_host("power:gpu", "on")?;
    bench.guest.power_off()
}

#[test]
fn the_cpu_runs_as_fast_as_it_is_told() -> Result<()> {
    let mut bench = Bench::boot()?;
    assert_eq!(bench.run(&format!("cat {CPU}/scaling_driver"))?, "scmi");
    let frequencies = format!("cat {CPU}/scaling_available_frequencies");
    assert_eq!(bench.run(&frequencies)?, "600000 1000000 1400000");
    for (level, khz) in ["600000", "1000000", "1400000"].into_iter().enumerate() {
        bench.run(&format!("echo {khz} >{CPU}/scaling_setspeed"))?;
        assert_eq!(bench.host("performance:cpu.level")?, level.to_string());
        assert_eq!(bench.run(&format!("cat {CPU}/cpuinfo_cur_freq"))?, khz);
    }
    bench.guest.power_off()
}

#[test]
fn a_power_limit_is_set_and_read_back() -> Result<()> {
    let mut bench = Bench::boot()?;
    let names = format!("cat {POWERCAP}/name {POWERCAP}:0/name");
    assert_eq!(bench.run(&names)?, "package\ncores");
    let limit = format!("{POWERCAP}/constraint_0_power_limit_uw");
    assert_eq!(bench.run(&format!("cat {limit}"))?, "15000000");
    bench.host("powercap:package.power=9000000")?;
    assert_eq!(bench.run(&format!("cat {POWERCAP}/power_uw"))?, "9000000");
    bench.run(&format!("echo 7500000 >{limit}"))?;
    assert_eq!(bench.host("powercap:package.cap")?, "7500000");
    // The load is held to the cap.
    assert_eq!(bench.host("powercap:package.power")?, "7500000");
    assert_eq!(
        bench.run(&format!("cat {limit} {POWERCAP}/power_uw"))?,
        "7500000\n7500000"
    );
    bench.run(&format!("echo 0 >{POWERCAP}/enabled"))?;
    assert_eq!(bench.host("powercap:package.cap")?, "none");
    assert_eq!(bench.host("powercap:package.power")?, "9000000");
    bench.guest.power_off()
}

#[test]
fn a_trip_point_is_told_in_both_directions() -> Result<()> {
    let mut bench = Bench::boot()?;
    bench.host("sensor:cpu-temp=40000")?;
    bench.command(trip::CONFIG)?;
    bench.command(trip::NOTIFY)?;
    for (temperature, expected) in [(70_000, trip::UP), (69_999, trip::DOWN), (90_000, trip::UP)] {
        bench.host(&format!("sensor:cpu-temp={temperature}"))?;
        assert_eq!(bench.notification(trip::EVENT)?, expected, "{temperature}");
    }
    bench.guest.power_off()
}

#[test]
fn a_domain_is_reset() -> Result<()> {
    let mut bench = Bench::boot()?;
    assert_eq!(bench.host("reset:usb.resets")?, "0");
    bench.command(RESET)?;
    assert_eq!(bench.host("reset:usb")?, "released");
    assert_eq!(bench.host("reset:usb.resets")?, "1");
    bench.guest.power_off()
}

#[test]
fn a_guest_shuts_down_in_its_own_time_when_it_is_asked_to() -> Result<()> {
    /// What the kernel runs then: it switches a regulator on, and waits for a temperature.
    const LINES: &str = "#!/bin/sh\\necho enabled >SWITCH/state\\n\
        until [ $(cat /sys/class/hwmon/hwmon0/temp1_input) = 1 ]; do usleep 1000; done\\n\
        exec poweroff -f\\n";
    let mut bench = Bench::boot()?;
    let lines = LINES.replace("SWITCH", SWITCH);
    bench.run(&format!("printf '{lines}' >/tmp/off && chmod +x /tmp/off"))?;
    bench.run("echo /tmp/off >/proc/sys/kernel/poweroff_cmd")?;
    assert_eq!(bench.host.ask("shutdown")?, "told 0");
    bench.wait_for_host("voltage:vdd-io.enabled", "on")?;
    bench.host("sensor:cpu-temp=1")?;
    bench.guest.powers_itself_off()
}

#[test]
fn a_guest_reboots_when_it_is_asked_to() -> Result<()> {
    let mut bench = Bench::boot_with(board().resets(), DEVICE)?;
    for _ in 0..2 {
        assert_eq!(bench.host.ask("reboot 0")?, "told 0");
        bench.guest.comes_back()?;
        bench.host("sensor:cpu-temp=33000")?;
        assert_eq!(bench.hwmon("cpu-temp")?, "33000");
    }
    bench.guest.power_off()
}

#[test]
fn a_guest_that_was_reset_begins_anew() -> Result<()> {
    let mut bench = Bench::boot_with(board().resets(), DEVICE)?;
    bench.run(&format!("echo enabled >{SWITCH}/state"))?;
    assert_eq!(bench.host("voltage:vdd-io.enabled")?, "on");
    for temperature in ["25000", "26000"] {
        bench.guest.reset()?;
        bench.host(&format!("sensor:cpu-temp={temperature}"))?;
        assert_eq!(bench.hwmon("cpu-temp")?, temperature);
        // What the guest has left on stays on.
        assert_eq!(bench.run(&format!("cat {SWITCH}/state"))?, "enabled");
    }
    bench.run(&format!("echo disabled >{SWITCH}/state"))?;
    assert_eq!(bench.host("voltage:vdd-io.enabled")?, "off");
    bench.guest.power_off()
}

#[test]
fn v14_the_device_is_taken_out_and_put_back_on_the_same_connection() -> Result<()> {
    /// Sensors, of which nobody holds any: Linux waits for those who do before it lets a device go.
    const SENSORS: &str = "/ { firmware { scmi { compatible = \"arm,scmi-virtio\"; \
        #address-cells = <1>; #size-cells = <0>; protocol@15 { reg = <0x15>; }; }; }; };";
    /// Linux takes no second device while it knows the first as the platform's transport.
    const TRANSPORT: &str = "/sys/bus/platform/drivers/scmi_virtio_transport";
    const ARRIVED: &str =
        "until [ -e /sys/bus/virtio/drivers/scmi-virtio/virtio* ]; do usleep 1000; done";
    let guest = Guest::of(&Arch::AARCH64).plugs().device_tree(SENSORS);
    let mut bench = Bench::boot_with(guest, DEVICE)?;
    for turn in 0..PLUGGED {
        bench.run(&format!("echo firmware:scmi >{TRANSPORT}/unbind"))?;
        bench.guest.unplug(0)?;
        bench.guest.plug(0, DEVICE)?;
        bench.run(ARRIVED)?;
        bench.run(&format!("echo firmware:scmi >{TRANSPORT}/bind"))?;
        bench.host(&format!("sensor:cpu-temp={turn}"))?;
        assert_eq!(bench.hwmon("cpu-temp")?, turn.to_string());
    }
    bench.guest.power_off()
}
