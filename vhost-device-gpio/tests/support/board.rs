//! Lines and the world on their other side: a simulated chip, or in the host guest one of the
//! kernel's `gpio-sim`.

use std::env;
use std::sync::atomic::{AtomicU32, Ordering};

use vhost_device_driver::Driver;
use vhost_device_rig::{GpioSim, program, wait_until};

use super::{
    BOTH, IN, PROGRAM, SET_DIRECTION, SET_IRQ_TYPE, VALID, World, event, ok, options, unmask,
};

/// The variable that says that the kernel's chips are meant.
const KERNEL: &str = "VHOST_DEVICE_TEST_GPIO_SIM";

/// The simulator's control socket.
const CONTROL: &str = "control";

/// What the lines are called, in their order.
pub const NAMES: [&str; 6] = ["out", "in", "reset", "sim3", "sim4", "fence"];
/// The line that [`Board::settle`] has for itself.
const FENCE: usize = 5;

/// A daemon whose guest has a chip with lines of these names.
#[derive(Debug)]
pub struct Board {
    pub daemon: program::Daemon,
    /// The chip, if it is the kernel's.
    kernel: Option<GpioSim>,
}

impl Board {
    /// Starts the daemon.
    pub fn start() -> Self {
        match env::var_os(KERNEL) {
            Some(_) => Self::of_the_kernel(),
            None => Self::simulated(),
        }
    }

    fn simulated() -> Self {
        let names = (0..)
            .zip(NAMES)
            .map(|(line, name): (u32, _)| format!("{line}={name}"));
        let list = format!(
            "sim:{},{}",
            NAMES.len(),
            names.collect::<Vec<_>>().join(",")
        );
        let directory = tempfile::tempdir().unwrap();
        let mut command = PROGRAM.command();
        command.arg("-s").arg(directory.path().join("s"));
        command.args(["-l", &list, "--sim-control"]);
        command.arg(directory.path().join(CONTROL));
        Self {
            daemon: program::Daemon::spawn(command, directory),
            kernel: None,
        }
    }

    fn of_the_kernel() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let label = format!("board{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let chip = GpioSim::new(&label, &NAMES);
        Self {
            daemon: PROGRAM.start(&["-l", chip.device().to_str().unwrap()]),
            kernel: Some(chip),
        }
    }

    /// The guest.
    pub fn guest(&self) -> Driver {
        self.daemon.guest("s", options())
    }

    /// The world pulls a line up or down. When this returns, the daemon of a simulator has seen
    /// it; for the kernel's lines see [`Board::settle`].
    pub fn pull(&self, line: usize, high: bool) {
        if let Some(chip) = &self.kernel {
            chip.pull(line, high);
            return;
        }
        let level = u8::from(high);
        let mut world = World::connect(self.daemon.path(CONTROL));
        world.send(&format!("set {line} {level}\n"));
        // Of what it asks for by itself, and of this.
        for _ in 0..3 {
            while world.answer() != "ok" {}
        }
    }

    /// Whether a line is high, as the world sees it. One of `gpio-sim` that was driven, and is no
    /// more, stays as it was until it is pulled.
    pub fn is_high(&self, line: usize) -> bool {
        if let Some(chip) = &self.kernel {
            return chip.is_high(line);
        }
        let mut world = World::connect(self.daemon.path(CONTROL));
        world.expect_answer(&["ok"]);
        let levels = NAMES.map(|_| world.answer());
        levels[line].ends_with(" 1")
    }

    /// A line is or becomes high, or low.
    #[track_caller]
    pub fn expect(&self, line: usize, high: bool) {
        wait_until(
            || self.is_high(line) == high,
            || format!("line {line} is {high}"),
        );
    }

    /// Waits until the daemon has seen all edges up to now: those of a line of its own come
    /// behind them.
    pub fn settle(&self, guest: &mut Driver) {
        let Some(chip) = &self.kernel else {
            return;
        };
        ok(guest, SET_DIRECTION, FENCE as u16, IN);
        ok(guest, SET_IRQ_TYPE, FENCE as u16, BOTH);
        let buffer = unmask(guest, FENCE as u16);
        chip.pull(FENCE, !chip.is_high(FENCE));
        assert_eq!(event(guest, buffer), VALID);
    }
}
