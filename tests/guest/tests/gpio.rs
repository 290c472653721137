//! Linux's gpio-virtio driver against vhost-device-gpio, over its simulated chip; the test plays
//! the world around the chip, through the simulator's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vhost_device_guest::{Arch, Daemon, Guest, RunningGuest, on_each_arch};

const DEVICE: &str = "vhost-user-gpio-pci";

/// Lines 0 and 1 are wired together.
const CHIP: &str = "sim:6,0=out,1=in,2=reset,3=button,loop=0-1";

/// Only a hang takes as long.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often something is looked for in the guest before the test gives up.
const TRIES: usize = 500;

/// A guest with the simulated chip, and the world around that.
struct Bench {
    guest: RunningGuest,
    world: BufReader<UnixStream>,
    _directory: TempDir,
}

impl Bench {
    fn boot(arch: &'static Arch) -> Result<Self> {
        let directory = TempDir::new()?;
        let control = directory.path().join("control");
        let path = control.to_str().context("the path is not UTF-8")?;
        let daemon = Daemon::new("vhost-device-gpio")
            .args(["-l", CHIP, "--sim-control", path])
            .device(DEVICE);
        let guest = Guest::of(arch).attach(daemon).resets().boot()?;
        let world = UnixStream::connect(&control)?;
        world.set_read_timeout(Some(DEADLINE))?;
        let mut bench = Self {
            guest,
            world: BufReader::new(world),
            _directory: directory,
        };
        bench.ask("watch")?;
        Ok(bench)
    }

    /// The next change: a line's name and its level.
    fn change(&mut self) -> Result<String> {
        let mut line = String::new();
        self.world.read_line(&mut line)?;
        let change = line.trim_end().strip_prefix("changed ");
        Ok(change
            .with_context(|| format!("{line:?} is no change"))?
            .to_owned())
    }

    /// The next change of a level has to be this.
    fn expect(&mut self, change: &str) -> Result<()> {
        let next = self.change()?;
        ensure!(next == change, "{next:?} and not {change:?}");
        Ok(())
    }

    /// Has something done through the control socket.
    fn ask(&mut self, line: &str) -> Result<()> {
        writeln!(self.world.get_mut(), "{line}")?;
        loop {
            let mut answer = String::new();
            self.world.read_line(&mut answer)?;
            ensure!(
                !answer.is_empty() && !answer.starts_with("error: "),
                "{line}: {answer}"
            );
            if answer == "ok\n" {
                return Ok(());
            }
        }
    }

    /// Gives a line a level from outside.
    fn drive(&mut self, line: u16, level: u8) -> Result<()> {
        self.ask(&format!("set {line} {level}"))
    }

    /// Runs a line of shell that has to succeed.
    fn run(&mut self, line: &str) -> Result<String> {
        let output = self.guest.run(line)?;
        output.succeeded();
        Ok(output.text().to_owned())
    }

    /// Hands lines of the chip to programs that know sysfs, and gives back the directory of each.
    /// Linux 6.12 calls it by the line's name, 7.3 by its number.
    fn export(&mut self, lines: &[(u16, &str)]) -> Result<Vec<String>> {
        let base: u16 = self.run("cat /sys/class/gpio/gpiochip*/base")?.parse()?;
        let mut directories = Vec::new();
        for (line, name) in lines {
            let number = base + line;
            self.run(&format!("echo {number} >/sys/class/gpio/export"))?;
            let found = format!("ls -d /sys/class/gpio/* | grep -E '/({name}|gpio{number})$'");
            directories.push(self.run(&found)?);
        }
        Ok(directories)
    }

    /// Waits until a line of shell prints this.
    fn wait_for(&mut self, line: &str, expected: &str) -> Result<()> {
        for _ in 0..TRIES {
            if self.guest.run(line)?.text() == expected {
                return Ok(());
            }
        }
        self.guest.run(line)?.is(expected);
        Ok(())
    }

    /// Changes the level of a line over and over until a program that waits for edges has ended.
    fn toggle_while_runs(&mut self, line: u16, program: &str) -> Result<()> {
        for level in (0..TRIES).map(|turn| u8::from(turn % 2 == 0)) {
            self.drive(line, level)?;
            if self.guest.run(&format!("pidof {program}"))?.status != 0 {
                return Ok(());
            }
        }
        anyhow::bail!("{program} has not seen its edges");
    }
}

on_each_arch! {
    the_chip_is_there_with_its_names,
    lines_are_set_and_read,
    edges_are_seen_by_gpiomon,
    each_edge_is_one_interrupt,
    interrupts_survive_a_pause,
    the_driver_is_rebound_and_the_guest_reset,
}

fn the_chip_is_there_with_its_names(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    let chip = bench.run("/usr/bin/gpiodetect")?;
    assert!(chip.starts_with("gpiochip0 [virtio"), "{chip}");
    assert!(chip.ends_with("(6 lines)"), "{chip}");
    let lines = bench.run("/usr/bin/gpioinfo gpiochip0 | grep -o '\"[^\"]*\"'")?;
    let names = ["out", "in", "reset", "button", "sim4", "sim5"];
    assert_eq!(lines, names.map(|name| format!("{name:?}")).join("\n"));
    assert_eq!(bench.run("/usr/bin/gpiofind button")?, "gpiochip0 3");
    let messages = bench.run("dmesg")?;
    assert!(!messages.contains("GPIO request failed"), "{messages}");
    bench.guest.power_off()
}

fn lines_are_set_and_read(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    assert_eq!(bench.run("/usr/bin/gpioget gpiochip0 0 1 2 3")?, "0 0 0 0");
    bench.drive(3, 1)?;
    assert_eq!(bench.run("/usr/bin/gpioget gpiochip0 2 3")?, "0 1");
    // Through the wire, for as long as the program holds the line.
    bench.run("/usr/bin/gpioset --mode=signal gpiochip0 0=1 2=1 & echo $! >/tmp/pid")?;
    bench.expect("out 1")?;
    bench.expect("in 1")?;
    bench.expect("reset 1")?;
    assert_eq!(bench.run("/usr/bin/gpioget gpiochip0 1")?, "1");
    bench.run("kill $(cat /tmp/pid)")?;
    let mut changes = [bench.change()?, bench.change()?, bench.change()?];
    changes.sort();
    assert_eq!(changes, ["in 0", "out 0", "reset 0"], "given back");
    bench.guest.power_off()
}

fn edges_are_seen_by_gpiomon(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    let monitor = "/usr/bin/gpiomon --num-events=6 --format='%o %e'";
    bench.run(&format!("{monitor} gpiochip0 3 >/tmp/edges &"))?;
    bench.toggle_while_runs(3, "gpiomon")?;
    assert_eq!(bench.run("sort -u /tmp/edges")?, "3 0\n3 1");
    assert_eq!(bench.run("wc -l </tmp/edges")?, "6");
    for (option, kind) in [("--rising-edge", "3 1"), ("--falling-edge", "3 0")] {
        bench.run(&format!("{monitor} {option} gpiochip0 3 >/tmp/edges &"))?;
        bench.toggle_while_runs(3, "gpiomon")?;
        assert_eq!(bench.run("sort -u /tmp/edges")?, kind);
    }
    let messages = bench.run("dmesg")?;
    assert!(!messages.contains("WARNING"), "{messages}");
    bench.guest.power_off()
}

fn each_edge_is_one_interrupt(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    let line = bench.export(&[(3, "button")])?.remove(0);
    bench.run(&format!("echo in >{line}/direction"))?;
    // Armed when this is back.
    bench.run(&format!("echo both >{line}/edge"))?;
    let count = "awk '/gpiolib/ { print $2 }' /proc/interrupts";
    for turn in 1..=10 {
        bench.drive(3, turn % 2)?;
        bench.wait_for(count, &turn.to_string())?;
        let value = bench.run(&format!("cat {line}/value"))?;
        assert_eq!(value, (turn % 2).to_string());
    }
    // One that nobody waits for is forgotten.
    bench.run(&format!("echo none >{line}/edge"))?;
    bench.drive(3, 1)?;
    bench.run(&format!("echo rising >{line}/edge"))?;
    let before: u32 = bench.run(count)?.parse()?;
    bench.drive(3, 0)?;
    bench.drive(3, 1)?;
    bench.wait_for(count, &(before + 1).to_string())?;
    bench.guest.power_off()
}

fn interrupts_survive_a_pause(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    for line in bench.export(&[(3, "button"), (4, "sim4")])? {
        bench.run(&format!("echo in >{line}/direction"))?;
        bench.run(&format!("echo rising >{line}/edge"))?;
    }
    let counts = "awk '/gpiolib/ { print $2 }' /proc/interrupts";
    // The first line's buffer is the older one, with an answered one behind it.
    bench.drive(4, 1)?;
    bench.wait_for(counts, "0\n1")?;
    bench.guest.qmp().execute("stop")?;
    bench.drive(4, 0)?;
    bench.guest.qmp().execute("cont")?;
    bench.drive(3, 1)?;
    bench.wait_for(counts, "1\n1")?;
    bench.drive(4, 1)?;
    bench.wait_for(counts, "1\n2")?;
    let messages = bench.run("dmesg")?;
    assert!(!messages.contains("incorrect length"), "{messages}");
    bench.guest.power_off()
}

fn the_driver_is_rebound_and_the_guest_reset(arch: &'static Arch) -> Result<()> {
    let mut bench = Bench::boot(arch)?;
    let works = "/usr/bin/gpioset --mode=signal gpiochip0 5=1 & echo $! >/tmp/pid";
    let driver = "/sys/bus/virtio/drivers/gpio_virtio";
    bench.run(works)?;
    bench.expect("sim5 1")?;
    bench.run("kill $(cat /tmp/pid)")?;
    bench.expect("sim5 0")?;
    bench.run(&format!("basename {driver}/virtio* >/tmp/name"))?;
    bench.run(&format!("cat /tmp/name >{driver}/unbind"))?;
    assert_ne!(bench.guest.run("ls /dev/gpiochip0")?.status, 0);
    bench.run(&format!("cat /tmp/name >{driver}/bind"))?;
    bench.run(works)?;
    bench.expect("sim5 1")?;
    bench.guest.qmp().execute("stop")?;
    bench.guest.qmp().execute("cont")?;
    // What the guest drives stays so while it is stopped.
    assert_eq!(bench.run("pidof gpioset >/dev/null && echo runs")?, "runs");
    bench.guest.reset()?;
    // The new driver has none of the old one's lines.
    bench.expect("sim5 0")?;
    bench.run(works)?;
    bench.expect("sim5 1")?;
    bench.run("kill $(cat /tmp/pid)")?;
    bench.expect("sim5 0")?;
    bench.guest.power_off()
}
