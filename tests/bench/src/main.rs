//! Ours and a peer side by side, in one run: `cargo xtask bench`.
//!
//! | module | what lives there |
//! |---|---|
//! | `cli` | the command line |
//! | `programs` | the daemons' programs: ours is built, the peer is installed |
//! | `daemon` | a daemon that runs |
//! | `process` | what a process costs: CPU time and memory |
//! | `cpus` | which CPUs the two ends run on |
//! | `load` | the driver that keeps requests outstanding |
//! | `measure` | the measurements, in alternating rounds |
//! | `stats` | medians, quartiles and ratios |
//! | `report` | the tables |
//! | `machine` | the machine, for the report |
//!
//! `unsafe` is in `process` (the CPU clock of another process).

mod cli;
mod cpus;
mod daemon;
mod load;
mod machine;
mod measure;
mod process;
mod programs;
mod report;
mod stats;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::cli::Cli;
use crate::machine::Machine;
use crate::measure::Measurements;
use crate::report::{Form, Report};

/// Where `--write` writes, in the workspace.
const DOCUMENT: &str = "docs/bench-rng.md";

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
    let machine = Machine::find()?;
    let sides = programs::sides(cli.ours.as_deref(), cli.peer.as_deref())?;
    let plan = cli.plan();
    let started = Instant::now();
    let measurements = Measurements::take(&sides, &plan)?;
    let report = Report {
        machine: &machine,
        plan: &plan,
        measurements: &measurements,
    };
    report
        .print(&mut io::stdout().lock(), Form::Terminal)
        .context("cannot print the report")?;
    eprintln!("Measured for {} s", started.elapsed().as_secs());
    if cli.write {
        write(&report)?;
    }
    Ok(())
}

fn write(report: &Report<'_>) -> Result<()> {
    let path = programs::workspace().join(DOCUMENT);
    let mut page = Vec::new();
    report.print(&mut page, Form::Markdown)?;
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| fs::write(&path, page))
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("Wrote {DOCUMENT}");
    Ok(())
}
