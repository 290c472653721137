//! What a guest and its daemons live through: after each event the same
//! commands work again, and the daemons hold no more than before.
//!
//! One guest has all of the devices, each with a daemon of its own. Each test is done with packed
//! rings and with split ones: `packed::NAME` and `split::NAME`.

mod devices;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devices::{DEVICES, Device};
use vhost_device_guest::{Guest, Held, RING_PACKED, RunningDaemon, RunningGuest};

/// Only a leak takes as long.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many times a device's command is run while the guest is stopped and continued.
const BUSY: u32 = 40;

/// How many times each device is taken out and put back.
const PLUGGED: usize = 20;

/// The kind of all devices' rings.
#[derive(Clone, Copy, PartialEq)]
enum Rings {
    Packed,
    Split,
}

/// Makes a test of each of these functions for each kind of ring, which the function takes.
macro_rules! on_each_kind_of_ring {
    (@ $module:ident $rings:ident $($test:ident)+) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    super::$test(super::Rings::$rings)
                }
            )+
        }
    };
    ($($test:ident),+ $(,)?) => {
        on_each_kind_of_ring! { @ packed Packed $($test)+ }
        on_each_kind_of_ring! { @ split Split $($test)+ }
    };
}

on_each_kind_of_ring! {
    v7_a_guest_reboots_panics_and_is_reset,
    v7_drivers_are_unbound_and_bound_again,
    v2_a_working_guest_is_stopped_and_continued,
    v7_qemu_is_killed_or_quits_and_another_comes,
    v7_daemons_are_killed_or_ended_and_started_again,
    v14_devices_are_taken_out_and_put_back_on_the_same_connection,
}

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
    fn begin(rings: Rings) -> Result<Self> {
        Self::begin_with(Guest::new().resets(), rings)
    }

    fn begin_with(guest: Guest, rings: Rings) -> Result<Self> {
        let without = match rings {
            Rings::Packed => "",
            Rings::Split => "packed",
        };
        let mut daemons = Vec::new();
        for device in DEVICES {
            let daemon = device.daemon(without).start()?;
            let idle = daemon.held()?;
            daemons.push((device, daemon, idle));
        }
        let guest = daemons.iter().fold(guest, |guest, started| {
            let (device, daemon, _) = started;
            guest.device(device.model, daemon.socket(0))
        });
        let mut guest = guest.boot()?;
        let mut served = Vec::new();
        for (device, daemon, idle) in daemons {
            let own_driver = format!("drivers/{}/virtio*", device.driver);
            let packed = guest.has_feature(&own_driver, RING_PACKED)?;
            assert_eq!(packed, rings == Rings::Packed, "{}", device.model);
            device.works(0, &mut guest)?;
            let connected = daemon.held()?;
            assert_ne!(connected, idle, "{}", device.model);
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
            served.device.works(0, &mut self.guest)?;
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
        assert_eq!(self.daemon.held()?, *expected, "{}", self.device.model);
        Ok(())
    }
}

fn v7_a_guest_reboots_panics_and_is_reset(rings: Rings) -> Result<()> {
    let mut life = Life::begin(rings)?;
    life.guest.reboot()?;
    life.goes_on().context("after a reboot")?;
    life.guest.panic()?;
    life.goes_on().context("after a panic")?;
    for _ in 0..2 {
        life.guest.reset()?;
        life.goes_on().context("after a reset")?;
    }
    life.end()
}

fn v7_drivers_are_unbound_and_bound_again(rings: Rings) -> Result<()> {
    let mut life = Life::begin(rings)?;
    for _ in 0..3 {
        for served in &life.served {
            let driver = served.device.driver;
            let directory = format!("/sys/bus/virtio/drivers/{driver}");
            let guest = &mut life.guest;
            guest
                .run(&format!("basename {directory}/virtio* > /tmp/name"))?
                .succeeded();
            guest
                .run(&format!("cat /tmp/name > {directory}/unbind"))?
                .succeeded();
            let output = guest.run(&served.device.command(0))?;
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
    let (driver, command) = (device.driver, device.command(0));
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

fn v2_a_working_guest_is_stopped_and_continued(rings: Rings) -> Result<()> {
    let mut life = Life::begin(rings)?;
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

fn v7_qemu_is_killed_or_quits_and_another_comes(rings: Rings) -> Result<()> {
    let mut life = Life::begin(rings)?;
    for served in &life.served {
        // There are requests under way when it dies.
        work_on(served.device, &mut life.guest)?;
    }
    let mut life = life.replace(RunningGuest::kill)?;
    life.goes_on().context("after QEMU was killed")?;
    let mut life = life.replace(RunningGuest::quit)?;
    life.goes_on().context("after QEMU has quit")?;
    life.end()
}

/// Ends each daemon while its guest is at work, starts it again, and gives the guest its device
/// anew: QEMU connects again by itself, but then ends (`vhost_dev_start: Assertion`) when the
/// device is still there.
fn v7_daemons_are_killed_or_ended_and_started_again(rings: Rings) -> Result<()> {
    const ENDS: [fn(&mut RunningDaemon) -> Result<()>; 2] =
        [RunningDaemon::kill, RunningDaemon::terminate];
    let mut life = Life::begin_with(Guest::new().resets().reconnects(), rings)?;
    for (round, end) in ENDS.into_iter().cycle().take(4).enumerate() {
        for served in life.served.iter().filter(|served| gives_up(served.device)) {
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

/// QEMU keeps the connection of a device that is taken out, and begins anew on it with the next.
fn v14_devices_are_taken_out_and_put_back_on_the_same_connection(rings: Rings) -> Result<()> {
    let mut life = Life::begin_with(Guest::new().plugs(), rings)?;
    for round in 0..PLUGGED {
        for (number, served) in life.served.iter().enumerate() {
            life.guest.unplug(number)?;
            life.guest.plug(number, served.device.model)?;
            wait_for_driver(served.device, &mut life.guest)?;
        }
        life.goes_on()
            .with_context(|| format!("in round {round}"))?;
    }
    life.end()
}

/// Whether the device's driver gives a request up when the device goes. Linux's for I2C and GPIO
/// wait for the answer forever, and QEMU cannot hand requests under way to the next daemon.
fn gives_up(device: &Device) -> bool {
    device.driver == "virtio_rng"
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
