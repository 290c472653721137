//! The command line.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;

use crate::cpus::Placement;
use crate::load::Waiting;

/// Measures a daemon of this workspace against that of crates.io, in one run
///
/// Both are driven by the same driver over their sockets, in alternating rounds.
/// The first run installs the peer into $XDG_CACHE_HOME/vhost-device or
/// ~/.cache/vhost-device, which needs the network.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench --", max_term_width = 100)]
pub(crate) struct Cli {
    /// Which daemon, or the queue
    #[arg(value_enum, default_value_t = Device::Rng)]
    pub(crate) device: Device,

    /// Write the tables to the page in docs/ too
    #[arg(long)]
    pub(crate) write: bool,

    /// Count the queue's instructions for a chain with callgrind, and compare them with the
    /// baseline; with --write, make that
    #[arg(long)]
    pub(crate) count: bool,

    /// Fewer and shorter rounds: a look, not a result
    #[arg(long)]
    quick: bool,

    /// Let the driver wait for answers on a busy CPU, without calls
    #[arg(long)]
    busy: bool,

    /// Where driver and daemon run [default: first apart, then together]
    #[arg(long, value_name = "WHERE")]
    cpus: Option<Placement>,

    /// How many rounds; each has new processes [default: 9, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// How long a cell is measured in a round [default: 200, with --quick 50; in a guest 500 and
    /// 100]
    #[arg(long, value_name = "MILLISECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    cell: Option<u64>,

    /// Take our program from here and build none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) ours: Option<PathBuf>,

    /// Take the peer's program from here and install none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) peer: Option<PathBuf>,

    /// Be the part in the guest, and measure this round
    #[arg(long, value_name = "ROUND", hide = true)]
    pub(crate) inside: Option<usize>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Device {
    /// vhost-device-rng, on this machine
    Rng,
    /// vhost-device-i2c, in a guest with an SMBus
    I2c,
    /// vhost-device-gpio, in a guest with a simulated chip of the kernel's
    Gpio,
    /// vhost-device-scmi, on this machine
    Scmi,
    /// The queue alone, beside virtio-queue
    Queue,
    /// vhost-device-rng with --poll-us, at depth 1
    Poll,
}

impl Cli {
    /// How many rounds, unless the user says.
    pub(crate) fn rounds_or(&self, all: u32, quick: u32) -> usize {
        let default = if self.quick { quick } else { all };
        self.rounds.unwrap_or(default) as usize
    }

    /// How long a cell is measured, in milliseconds unless the user says.
    pub(crate) fn cell_or(&self, all: u64, quick: u64) -> Duration {
        let default = if self.quick { quick } else { all };
        Duration::from_millis(self.cell.unwrap_or(default))
    }

    /// How often each side is started.
    pub(crate) fn starts(&self) -> usize {
        if self.quick { 11 } else { 51 }
    }

    /// How the driver waits.
    pub(crate) fn waiting(&self) -> Waiting {
        if self.busy {
            Waiting::Busy
        } else {
            Waiting::Asleep
        }
    }

    /// Whether nothing was said of CPUs.
    pub(crate) fn concerns_no_cpus(&self) -> bool {
        self.cpus.is_none() && !self.busy
    }

    /// Where driver and daemon run.
    pub(crate) fn placements(&self) -> Vec<Placement> {
        match self.cpus {
            Some(placement) => vec![placement],
            None if thread::available_parallelism().is_ok_and(|count| count.get() > 1) => {
                vec![Placement::Apart, Placement::Together]
            }
            None => vec![Placement::Together],
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn options_change_the_plan() {
        Cli::command().debug_assert();
        let parse = |args: &[&str]| Cli::parse_from([&["bench"], args].concat());
        assert_eq!(parse(&[]).rounds_or(9, 3), 9);
        assert_eq!(parse(&[]).device, Device::Rng);
        assert_eq!(parse(&["i2c"]).device, Device::I2c);
        let quick = parse(&["--quick", "--rounds", "5", "--busy"]);
        assert_eq!(quick.rounds_or(9, 3), 5);
        assert_eq!(quick.cell_or(200, 50).as_millis(), 50);
        assert_eq!(quick.waiting(), Waiting::Busy);
        assert_eq!(parse(&["--cpus", "free"]).placements(), [Placement::Free]);
    }
}
