//! The entropy device: both daemons on this machine.
//!
//! | module | what lives there |
//! |---|---|
//! | `measure` | the measurements, in alternating rounds |
//! | `report` | the tables |

mod measure;
mod report;

use std::io;
use std::time::Instant;

use anyhow::{Context, Result};
use vhost_device_guest::setup::Build;

use self::measure::{Measurements, Plan};
use self::report::Report;
use crate::cli::Cli;
use crate::machine::Machine;
use crate::programs;
use crate::table::Form;

/// What both programs are called.
const PROGRAM: &str = "vhost-device-rng";
/// The page of the report, in the workspace.
const DOCUMENT: &str = "docs/bench-rng.md";

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let machine = Machine::find()?;
    let sides = programs::sides(PROGRAM, cli, &Build::default())?;
    let plan = Plan {
        rounds: cli.rounds_or(9, 3),
        cell: cli.cell_or(200, 50),
        starts: cli.starts(),
        placements: cli.placements(),
        waiting: cli.waiting(),
    };
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
        programs::write_page(DOCUMENT, |page| report.print(page, Form::Markdown))?;
    }
    Ok(())
}
