//! What Linux does with each of our devices that any guest can have, whatever its machine.

use anyhow::Result;
use vhost_device_guest::{Daemon, RunningGuest};

/// A device, and a command of its driver's.
pub(crate) struct Device {
    program: &'static str,
    args: &'static [&'static str],
    /// QEMU's name of it.
    pub(crate) model: &'static str,
    /// Its driver's directory in `/sys/bus/virtio/drivers`.
    pub(crate) driver: &'static str,
    /// Sends requests to the device with the number `$n` of its kind, of which the daemon's state
    /// keeps nothing.
    command: &'static str,
    /// What the command prints, one line, when all is well.
    pub(crate) says: &'static str,
    /// A request of the command does not fit into QEMU's queue without tables of descriptors.
    #[allow(dead_code, reason = "for the tests that withhold them")]
    pub(crate) needs_tables: bool,
    /// It answers in order, and says so.
    #[allow(dead_code, reason = "for the tests that look at it")]
    pub(crate) in_order: bool,
}

pub(crate) const DEVICES: &[Device] = &[
    Device {
        program: "vhost-device-rng",
        args: &[],
        model: "vhost-user-rng-pci",
        driver: "virtio_rng",
        command: "echo virtio_rng.$n >/sys/class/misc/hw_random/rng_current && \
            dd if=/dev/hwrng bs=1k count=1 2>/dev/null | wc -c",
        says: "1024",
        needs_tables: false,
        in_order: true,
    },
    Device {
        program: "vhost-device-i2c",
        args: &["-l", "sim"],
        model: "vhost-user-i2c-pci",
        driver: "i2c_virtio",
        command: "/usr/sbin/i2cset -y $n 0x20 7 0x5a && /usr/sbin/i2cget -y $n 0x20 7",
        says: "0x5a",
        needs_tables: true,
        in_order: true,
    },
    Device {
        program: "vhost-device-gpio",
        args: &["-l", "sim:2,loop=0-1"],
        model: "vhost-user-gpio-pci",
        driver: "gpio_virtio",
        command: "/usr/bin/gpioset --mode=signal gpiochip$n 0=1 & for i in $(seq 100); do \
            [ \"$(/usr/bin/gpioget gpiochip$n 1)\" = 1 ] && echo looped && break; done; \
            kill $!; wait",
        says: "looped",
        needs_tables: false,
        in_order: false,
    },
];

impl Device {
    /// Its daemon, without these features.
    pub(crate) fn daemon(&self, without: &str) -> Daemon {
        let daemon = Daemon::new(self.program).args(self.args).device(self.model);
        match without {
            "" => daemon,
            features => daemon.args(["--without", features]),
        }
    }

    /// The command for the device with this number of those of its kind.
    pub(crate) fn command(&self, number: usize) -> String {
        format!("n={number}; {}", self.command)
    }

    /// The command works.
    #[track_caller]
    pub(crate) fn works(&self, number: usize, guest: &mut RunningGuest) -> Result<()> {
        let output = guest.run(&self.command(number))?;
        assert_eq!(output.output.trim(), self.says, "from {output}");
        Ok(())
    }
}
