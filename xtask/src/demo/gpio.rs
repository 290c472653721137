//! GPIO: a simulated chip, used with libgpiod's tools; the demo is the world around the chip.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vhost_device_guest::{Arch, Daemon, RunningGuest};

use super::{Report, Section};

pub(super) const SECTION: Section = Section {
    title: "vhost-device-gpio: lines, in and out",
    archs: Arch::ALL,
    elsewhere: "",
    device_tree: "",
    daemon,
    show,
};

/// Lines 0 and 1 are wired together.
const CHIP: &str = "sim:4,0=out,1=in,2=led,3=button,loop=0-1";
/// What the control socket tells when the light goes on.
const LED: &str = "changed led 1";

// The chip is named by its label, that of the third virtio device: it may not be the first chip.
// Busybox has no such programs, but these are named by their paths as the others are.
const LINES_OF_CHIP: &str = "/usr/bin/gpioinfo virtio2";
const LOOP: &str = "/usr/bin/gpioset --mode=signal virtio2 0=1 & holder=$!; \
    until [ \"$(/usr/bin/gpioget virtio2 1)\" = 1 ] || ! kill -0 $holder; do :; done; \
    /usr/bin/gpioget virtio2 1; kill $holder";
const LED_ON: &str = "/usr/bin/gpioset --mode=signal virtio2 2=1 & echo $! > /tmp/led";
const LED_OFF: &str = "kill $(cat /tmp/led)";
const MONITOR: &str = "/usr/bin/gpiomon --num-events=4 --format='%o %e' virtio2 3 > /tmp/edges &";
const MONITOR_RUNS: &str = "pidof gpiomon";
const EDGES: &str = "sort -u /tmp/edges; wc -l < /tmp/edges";
/// Line 3, falling and rising; and how many.
const EXPECTED_EDGES: &str = "3 0\n3 1\n4";

/// Only a hang takes as long.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often the button is pressed and released before the demo gives up: an edge counts only
/// once the guest waits for it.
const PRESSES: usize = 500;

fn control(directory: &Path) -> PathBuf {
    directory.join("gpio-control")
}

fn daemon(directory: &Path) -> Daemon {
    let control = control(directory);
    Daemon::new("vhost-device-gpio")
        .args(["--device-list", CHIP])
        .args(["--sim-control".as_ref(), control.as_os_str()])
        .device("vhost-user-gpio-pci")
}

fn show(guest: &mut RunningGuest, report: &mut Report, directory: &Path) -> Result<()> {
    let mut world = World::connect(&control(directory))?;
    let names = ["\"out\"", "\"in\"", "\"led\"", "\"button\""];
    report.expect_parts("gpioinfo", &guest.run(LINES_OF_CHIP)?, &names);
    report.expect("out=1, then in is", &guest.run(LOOP)?, "1");

    guest.run(LED_ON)?;
    let seen = world.wait_for(LED);
    let shown = seen.map(|()| report.style.good("the host sees 1"));
    report.check("led=1", shown.map_err(|why| format!("{why:#}")));
    guest.run(LED_OFF)?;

    guest.run(MONITOR)?;
    world.press_while_runs(guest, MONITOR_RUNS)?;
    report.expect("gpiomon: line, edge", &guest.run(EDGES)?, EXPECTED_EDGES);
    Ok(())
}

/// The world around the chip, through the simulator's control socket.
struct World(BufReader<UnixStream>);

impl World {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("cannot reach the simulated chip")?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut world = Self(BufReader::new(stream));
        world.ask("watch")?;
        Ok(world)
    }

    /// Has something done.
    fn ask(&mut self, line: &str) -> Result<()> {
        writeln!(self.0.get_mut(), "{line}")?;
        self.wait_for("ok")
    }

    /// The next line that the chip tells.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        read.context("nothing changes on the simulated chip")?;
        Ok(line.trim_end().to_owned())
    }

    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        loop {
            let line = self.line()?;
            if line == wanted {
                return Ok(());
            }
            if line.is_empty() || line.starts_with("error: ") {
                bail!("the simulated chip says {line:?}");
            }
        }
    }

    /// Presses and releases the button until a program of the guest has ended.
    fn press_while_runs(&mut self, guest: &mut RunningGuest, is_running: &str) -> Result<()> {
        for level in (0..PRESSES).map(|turn| u8::from(turn % 2 == 0)) {
            self.ask(&format!("set button {level}"))?;
            if guest.run(is_running)?.status != 0 {
                return Ok(());
            }
        }
        bail!("the guest does not see the button");
    }
}
