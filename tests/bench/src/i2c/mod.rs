//! The I2C adapter: both daemons in one guest that is their host, on its `i2c-stub`.
//!
//! | module | what lives there |
//! |---|---|
//! | `load` | what is asked for |
//! | `inside` | the part that runs in the guest, and prints figures |
//! | `report` | the tables |

mod inside;
mod load;
mod report;

use std::env;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::{self, Progress};
use vhost_device_guest::{Guest, RunningGuest};

use self::load::{ADDRESS, Load};
use self::report::Report;
use crate::cli::Cli;
use crate::machine::Machine;
use crate::programs::{self, Each, Sides};
use crate::table::Form;

/// What both programs are called.
const PROGRAM: &str = "vhost-device-i2c";
/// What Linux calls the bus, and both programs understand.
const BUS: &str = "SMBus stub driver";
/// The page of the report, in the workspace.
const DOCUMENT: &str = "docs/bench-i2c.md";

/// How long a guest may take for its boot and for what is not measured.
const SLACK: Duration = Duration::from_secs(120);

/// What is measured how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// Rounds; each has new processes.
    rounds: usize,
    /// How long each load runs in a round, behind a fifth of that to warm up.
    cell: Duration,
}

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    /// Good answers in a second.
    good: f64,
    /// The part of all answers that failed, from 0 to 1.
    failed: f64,
    /// How long an answer takes, in microseconds: half of them take longer.
    median: f64,
    /// One in a hundred takes longer.
    percentile_99: f64,
    /// The daemon's CPU time for an answer, in microseconds.
    cpu: f64,
}

/// A load and what it gave, in each round.
#[derive(Clone, Debug)]
struct Measured {
    load: Load,
    rounds: Vec<Each<Figures>>,
}

/// Measures, or is the part of that in the guest.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let plan = Plan {
        rounds: cli.rounds_or(9, 3),
        cell: cli.cell_or(500, 100),
    };
    let sides = programs::sides(PROGRAM, cli.ours.as_deref(), cli.peer.as_deref())?;
    if let Some(round) = cli.inside {
        return inside::run(&sides, &plan, round);
    }
    ensure!(
        cli.concerns_no_cpus(),
        "the guest has one CPU, and its driver sleeps: leave out --cpus and --busy"
    );
    let machine = Machine::find()?;
    let measured = measure(&sides, &plan)?;
    let report = Report {
        machine: &machine,
        plan: &plan,
        measured: &measured,
    };
    report
        .print(&mut io::stdout().lock(), Form::Terminal)
        .context("cannot print the report")?;
    if cli.write {
        programs::write_page(DOCUMENT, |page| report.print(page, Form::Markdown))?;
    }
    Ok(())
}

fn measure(sides: &Sides, plan: &Plan) -> Result<Vec<Measured>> {
    setup::run(&Progress::new())?;
    let mut guest = boot(sides, plan)?;
    let mut measured: Vec<_> = Load::all()
        .map(|load| Measured {
            load,
            rounds: Vec::with_capacity(plan.rounds),
        })
        .collect();
    for round in 0..plan.rounds {
        eprintln!("In the guest, round {} of {}", round + 1, plan.rounds);
        let printed = guest.run(&inside_line(sides, plan, round)?)?;
        let figures = inside::parse(printed.text())?;
        ensure!(
            figures.len() == measured.len(),
            "loads are missing: {printed}"
        );
        for (measured, figures) in measured.iter_mut().zip(figures) {
            measured.rounds.push(figures);
        }
    }
    guest.power_off()?;
    Ok(measured)
}

fn boot(sides: &Sides, plan: &Plan) -> Result<RunningGuest> {
    let own = env::current_exe().context("cannot find the running program")?;
    let guest = [&own, &sides.ours.program, &sides.peer.program]
        .into_iter()
        .try_fold(Guest::new(), |guest, program| guest.program(program))?;
    // Both sides, each load with its warming up, and as much again.
    let loads = u32::try_from(4 * Load::all().count() * plan.rounds)?;
    let mut guest = guest.lives_for(SLACK + plan.cell * loads).boot()?;
    let stub = format!("insmod /modules/i2c-stub.ko chip_addr={ADDRESS:#x}");
    guest.run(&stub)?.succeeded();
    Ok(guest)
}

/// The line that runs a round in the guest, where the programs have the paths that they have here.
fn inside_line(sides: &Sides, plan: &Plan, round: usize) -> Result<String> {
    let own = env::current_exe().context("cannot find the running program")?;
    Ok(format!(
        "'{}' i2c --inside {round} --cell {} --ours '{}' --peer '{}'",
        own.display(),
        plan.cell.as_millis(),
        sides.ours.program.display(),
        sides.peer.program.display(),
    ))
}
