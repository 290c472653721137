//! The command line.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;

use crate::cpus::Placement;
use crate::load::Waiting;
use crate::measure::Plan;

/// Measures vhost-device-rng of this workspace against that of crates.io, in one run
///
/// Both are driven by the same driver over their sockets, in alternating rounds.
/// The first run installs the peer into $XDG_CACHE_HOME/vhost-device or
/// ~/.cache/vhost-device, which needs the network.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench --", max_term_width = 100)]
pub(crate) struct Cli {
    /// Write the tables to docs/bench-rng.md too
    #[arg(long)]
    pub(crate) write: bool,

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

    /// How long a cell is measured in a round [default: 200, with --quick 50]
    #[arg(long, value_name = "MILLISECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    cell: Option<u64>,

    /// Take our program from here and build none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) ours: Option<PathBuf>,

    /// Take the peer's program from here and install none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) peer: Option<PathBuf>,
}

impl Cli {
    /// What is measured how often.
    pub(crate) fn plan(&self) -> Plan {
        let (rounds, cell, starts) = if self.quick {
            (3, 50, 11)
        } else {
            (9, 200, 51)
        };
        Plan {
            rounds: self.rounds.unwrap_or(rounds) as usize,
            cell: Duration::from_millis(self.cell.unwrap_or(cell)),
            starts,
            placements: self.placements(),
            waiting: if self.busy {
                Waiting::Busy
            } else {
                Waiting::Asleep
            },
        }
    }

    fn placements(&self) -> Vec<Placement> {
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
        let plan = |args: &[&str]| Cli::parse_from([&["bench"], args].concat()).plan();
        assert_eq!(plan(&[]).rounds, 9);
        let quick = plan(&["--quick", "--rounds", "5", "--busy"]);
        assert_eq!((quick.rounds, quick.cell.as_millis()), (5, 50));
        assert_eq!(quick.waiting, Waiting::Busy);
        assert_eq!(plan(&["--cpus", "free"]).placements, [Placement::Free]);
    }
}
