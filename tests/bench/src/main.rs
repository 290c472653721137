//! Ours and a peer side by side, in one run: `cargo xtask bench`.
//!
//! | module | what lives there |
//! |---|---|
//! | `cli` | the command line |
//! | `rng`, `i2c`, `gpio`, `scmi` | what is measured of a device |
//! | `poll` | a round trip with polling, without it, and the peer's |
//! | `queue` | the queue beside `virtio-queue`, without daemons |
//! | `host` | both daemons in a guest that is their host, and the report on them |
//! | `programs` | the daemons' programs: ours is built, the peer is installed |
//! | `daemon` | a daemon that runs |
//! | `process` | what a process costs: CPU time and memory |
//! | `cpus` | which CPUs the two ends run on |
//! | `load` | the driver that keeps requests outstanding |
//! | `stats` | medians, quartiles and ratios |
//! | `table` | tables of both sides |
//! | `machine` | the machine, for the report |
//!
//! `unsafe` is in `process` (the CPU clock of another process).

mod cli;
mod cpus;
mod daemon;
mod gpio;
mod host;
mod i2c;
mod load;
mod machine;
mod poll;
mod process;
mod programs;
mod queue;
mod rng;
mod scmi;
mod stats;
mod table;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::cli::{Cli, Device};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    ensure!(
        !cfg!(debug_assertions),
        "a driver that is not optimized measures itself: build with --release, as `cargo xtask \
         bench` does"
    );
    match cli.device {
        Device::Rng => rng::run(cli),
        Device::I2c => i2c::run(cli),
        Device::Gpio => gpio::run(cli),
        Device::Scmi => scmi::run(cli),
        Device::Queue => queue::run(cli),
        Device::Poll => poll::run(cli),
    }
}
