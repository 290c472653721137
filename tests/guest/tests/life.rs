//! What a guest and its daemons live through: after each event the same
//! commands work again, and the daemons hold no more than before.
//!
//! One guest has all of the devices, each with a daemon of its own.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vhost_device_guest::{Daemon, Guest, Held, RunningDaemon, RunningGuest};

/// Only a leak takes as long.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many times a device's command is run while the guest is stopped and continued.
const BUSY: u32 = 40;

/// A device, and what works again after each event.
struct Device {
    program: &'static str,
    args: &'static [&'static str],
    /// QEMU's name of it.
    model: &'static str,
    /// Its driver's directory in `/sys/bus/virtio/drivers`.
    driver: &'static str,
    /// Sends requests to the device, of which the daemon's state keeps nothing.
    command: &'static str,
    /// What the command prints, one line, when all is well.
    says: &'static str,
    /// Its driver gives a request up when the device goes. Linux's for I2C and GPIO wait for the
    /// answer forever, and QEMU 10.0 cannot hand requests under way to the next daemon.
    gives_up: bool,
}

const DEVICES: &[Device] = &[
    Device {
        program: "vhost-device-rng",
        args: &[],
        model: "vhost-user-rng-pci",
        driver: "virtio_rng",
        command: "dd if=/dev/hwrng bs=1k count=1 2>/dev/null | wc -c",
        says: "1024",
        gives_up: true,
    },
    Device {
        program: "vhost-device-i2c",
        args: &["-l", "sim"],
        model: "vhost-user-i2c-pci",
        driver: "i2c_virtio",
        command: "/usr/sbin/i2cset -y 0 0x20 7 0x5a && /usr/sbin/i2cget -y 0 0x20 7",
        says: "0x5a",
        gives_up: false,
    },
    Device {
        program: "vhost-device-gpio",
        args: &["-l", "sim:2,loop=0-1"],
        model: "vhost-user-gpio-pci",
        driver: "gpio_virtio",
        command: "/usr/bin/gpioset --mode=signal gpiochip0 0=1 & for i in $(seq 100); do \
            [ \"$(/usr/bin/gpioget gpiochip0 1)\" = 1 ] && echo looped && break; done; \
            kill $!; wait",
        says: "looped",
        gives_up: false,
    },
];

/// A device's daemon, and what it held at two times.
struct Served {
    device: &'static Device,
    daemon: RunningDaemon,
    /// Before any guest came.
    idle: Held,
    /// With a guest that had made requests.
    connected: Held,
}

/// The daemons of all devices, and a guest that has run all commands.
struct Life {
    served: Vec<Served>,
    guest: RunningGuest,
}

impl Life {
    fn begin() -> Result<Self> {
        Self::begin_with(Guest::new().resets(), "")
    }

    /// With more `options` for each device of QEMU's.
    fn begin_with(guest: Guest, options: &str) -> Result<Self> {
        let mut daemons = Vec::new();
        for device in DEVICES {
            let daemon = Daemon::new(device.program).args(device.args).start()?;
            let idle = daemon.held()?;
            daemons.push((device, daemon, idle));
        }
        let guest = daemons.iter().fold(guest, |guest, started| {
            let (device, daemon, _) = started;
            guest.device(&format!("{}{options}", device.model), daemon.socket(0))
        });
        let mut guest = guest.boot()?;
        let mut served = Vec::new();
        for (device, daemon, idle) in daemons {
            work(device, &mut guest)?;
            let connected = daemon.held()?;
            assert_ne!(connected, idle, "{}", device.program);
            served.push(Served {
                device,
                daemon,
                idle,
                connected,
            });
        }
        Ok(Self { served, guest })
    }

    /// Every command works, and every daemon holds what it did the first time.
    #[track_caller]
    fn goes_on(&mut self) -> Result<()> {
        for served in &self.served {
            work(served.device, &mut self.guest)?;
            served.comes_to_hold(&served.connected)?;
        }
        Ok(())
    }

    /// Powers the guest off: the daemons hold nothing of it, and end well.
    fn end(self) -> Result<()> {
        self.guest.power_off()?;
        for served in self.served {
            served.comes_to_hold(&served.idle)?;
            served.daemon.stop()?;
        }
        Ok(())
    }

    /// Another guest in the place of one that `end` ends.
    fn replace(self, end: impl FnOnce(RunningGuest) -> Result<()>) -> Result<Self> {
        let Self { served, guest } = self;
        end(guest)?;
        let mut next = Guest::new().resets();
        for served in &served {
            served.comes_to_hold(&served.idle)?;
            next = next.device(served.device.model, served.daemon.socket(0));
        }
        let guest = next.boot()?;
        Ok(Self { served, guest })
    }
}

impl Served {
    /// Waits until the daemon holds this and no more.
    #[track_caller]
    fn comes_to_hold(&self, expected: &Held) -> Result<()> {
        let start = Instant::now();
        while self.daemon.held()? != *expected && start.elapsed() < DEADLINE {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.daemon.held()?, *expected, "{}", self.device.program);
        Ok(())
    }
}

/// The device's command works.
fn work(device: &Device, guest: &mut RunningGuest) -> Result<()> {
    let output = guest.run(device.command)?;
    assert_eq!(output.output.trim(), device.says, "from {output}");
    Ok(())
}

#[test]
fn v7_a_guest_reboots() -> Result<()> {
    let mut life = Life::begin()?;
    life.guest.reboot()?;
    life.goes_on()?;
    life.end()
}

#[test]
fn v7_a_guest_panics() -> Result<()> {
    let mut life = Life::begin()?;
    life.guest.panic()?;
    life.goes_on()?;
    life.end()
}

#[test]
fn v7_the_machine_is_reset_again_and_again() -> Result<()> {
    let mut life = Life::begin()?;
    for _ in 0..3 {
        life.guest.reset()?;
        life.goes_on()?;
    }
    life.end()
}

#[test]
fn v7_drivers_are_unbound_and_bound_again() -> Result<()> {
    let mut life = Life::begin()?;
    for _ in 0..3 {
        for served in &life.served {
            let Device {
                driver, command, ..
            } = served.device;
            let directory = format!("/sys/bus/virtio/drivers/{driver}");
            let guest = &mut life.guest;
            guest
                .run(&format!("basename {directory}/virtio* > /tmp/name"))?
                .succeeded();
            guest
                .run(&format!("cat /tmp/name > {directory}/unbind"))?
                .succeeded();
            let output = guest.run(command)?;
            assert_ne!(output.output.trim(), served.device.says, "{output}");
            guest
                .run(&format!("cat /tmp/name > {directory}/bind"))?
                .succeeded();
        }
        life.goes_on()?;
    }
    life.end()
}

/// Runs the device's command again and again, behind the lines that follow.
fn work_on(device: &Device, guest: &mut RunningGuest) -> Result<()> {
    let Device {
        driver, command, ..
    } = device;
    let line = format!(
        "{{ for i in $(seq {BUSY}); do {command}; done; echo end; }} >/tmp/{driver} 2>&1 &"
    );
    guest.run(&line)?.succeeded();
    Ok(())
}

/// Waits for what [`work_on`] has begun: it always worked.
fn has_worked(device: &Device, guest: &mut RunningGuest) -> Result<()> {
    let Device { driver, says, .. } = device;
    let line = format!(
        "until grep -qx end /tmp/{driver}; do usleep 10000; done; sort /tmp/{driver} | uniq -c"
    );
    let output = guest.run(&line)?;
    let mut counts = output.text().split_whitespace().collect::<Vec<_>>();
    counts.sort_unstable();
    let busy = BUSY.to_string();
    let mut expected = [busy.as_str(), says, "1", "end"];
    expected.sort_unstable();
    assert_eq!(counts, expected, "from {output}");
    Ok(())
}

#[test]
fn v2_a_working_guest_is_stopped_and_continued() -> Result<()> {
    stop_and_continue(Life::begin()?)
}

#[test]
fn v2_a_working_guest_with_packed_rings_is_stopped_and_continued() -> Result<()> {
    /// A string of a 0 or a 1 for each feature, of which `VIRTIO_F_RING_PACKED` is the 35th.
    const PACKED: &str = "for driver in virtio_rng i2c_virtio gpio_virtio; do \
        cut -c 35 /sys/bus/virtio/drivers/$driver/virtio*/features; done | tr -d '\\n'";
    let mut life = Life::begin_with(Guest::new().resets(), ",packed=on")?;
    assert_eq!(life.guest.run(PACKED)?.text(), "111");
    stop_and_continue(life)
}

fn stop_and_continue(mut life: Life) -> Result<()> {
    for served in &life.served {
        work_on(served.device, &mut life.guest)?;
    }
    for _ in 0..10 {
        life.guest.qmp().execute("stop")?;
        let status = life.guest.qmp().execute("query-status")?;
        assert_eq!(status["status"], "paused");
        for served in &life.served {
            // The answer to GET_VRING_BASE was the ring's last sign: its kick is given up.
            let (now, before) = (served.daemon.held()?, &served.connected);
            let kind = "anon_inode:[eventfd]";
            assert!(now.open(kind) < before.open(kind), "{now:?}, {before:?}");
        }
        life.guest.qmp().execute("cont")?;
    }
    for served in &life.served {
        has_worked(served.device, &mut life.guest)?;
    }
    life.goes_on()?;
    life.end()
}

#[test]
fn v7_qemu_is_killed_and_another_comes() -> Result<()> {
    let mut life = Life::begin()?;
    for served in &life.served {
        // There are requests under way when it dies.
        work_on(served.device, &mut life.guest)?;
    }
    let mut life = life.replace(RunningGuest::kill)?;
    life.goes_on()?;
    life.end()
}

#[test]
fn v7_qemu_quits_and_another_comes() -> Result<()> {
    let mut life = Life::begin()?.replace(RunningGuest::quit)?;
    life.goes_on()?;
    life.end()
}

/// Ends each daemon while its guest is at work, starts it again, and gives the guest its device
/// anew: QEMU 10.0 connects again by itself, but then ends (`vhost_dev_start: Assertion`) when the
/// device is still there.
fn restart(end: impl Fn(&mut RunningDaemon) -> Result<()>) -> Result<()> {
    let mut life = Life::begin_with(Guest::new().resets().reconnects(), "")?;
    for round in 0..2 {
        for served in life.served.iter().filter(|served| served.device.gives_up) {
            work_on(served.device, &mut life.guest)?;
        }
        for (number, served) in life.served.iter_mut().enumerate() {
            end(&mut served.daemon)?;
            life.guest.unplug(number)?;
            served.daemon.start_again()?;
            life.guest.plug(number, served.device.model)?;
            wait_for_driver(served.device, &mut life.guest)?;
        }
        life.goes_on()
            .with_context(|| format!("in round {round}"))?;
    }
    life.end()
}

/// Waits until the guest's driver has a device.
fn wait_for_driver(device: &Device, guest: &mut RunningGuest) -> Result<()> {
    let found = format!("ls -d /sys/bus/virtio/drivers/{}/virtio*", device.driver);
    let start = Instant::now();
    while guest.run(&found)?.status != 0 {
        assert!(start.elapsed() < DEADLINE, "{} is not bound", device.driver);
    }
    Ok(())
}

#[test]
fn v7_daemons_are_killed_and_started_again() -> Result<()> {
    restart(RunningDaemon::kill)
}

#[test]
fn v7_daemons_are_ended_and_started_again() -> Result<()> {
    restart(RunningDaemon::terminate)
}
