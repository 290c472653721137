//! Both daemons in one guest that is their host, on hardware of its kernel's.
//!
//! | module | what lives there |
//! |---|---|
//! | `figures` | what a load gave, and how it comes out of the guest |
//! | `report` | the tables |

mod figures;
mod report;

use std::env;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::{self, Progress};
use vhost_device_guest::{Arch, Guest, RunningGuest};

pub(crate) use self::figures::Figures;
use self::report::Report;
use crate::cli::Cli;
use crate::machine::Machine;
use crate::programs::{self, Each, Side, Sides};
use crate::table::Form;

/// How long a guest may take for its boot and for what is not measured.
const SLACK: Duration = Duration::from_secs(120);

/// A comparison of two daemons.
pub(crate) struct Comparison {
    /// What the command line calls it.
    pub(crate) name: &'static str,
    /// What both programs are called.
    pub(crate) program: &'static str,
    /// The page of the report, in the workspace.
    pub(crate) document: &'static str,
    /// Both programs.
    pub(crate) sides: Sides,
    /// Lines of shell that give the guest its hardware.
    pub(crate) hardware: Vec<String>,
    /// What is measured.
    pub(crate) loads: Vec<Title>,
    /// How, besides what is the same for all: paragraphs of the report.
    pub(crate) method: Vec<String>,
    /// What is to be said of answers that were not good.
    pub(crate) failures: &'static str,
    /// Measures a side, in the guest, with a new daemon: figures for each load.
    pub(crate) measure: fn(&Side, &Plan) -> Result<Vec<Figures>>,
}

/// What the tables call a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Title {
    pub(crate) text: String,
    /// Whether each answer is timed.
    pub(crate) timed: bool,
}

/// What is measured how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Rounds; each has new processes.
    pub(crate) rounds: usize,
    /// How long each load runs in a round, behind a fifth of that to warm up.
    pub(crate) cell: Duration,
}

/// A load and what it gave, in each round.
#[derive(Clone, Debug)]
struct Measured {
    title: Title,
    rounds: Vec<Each<Figures>>,
}

impl Comparison {
    /// Measures, or is the part of that in the guest.
    pub(crate) fn run(&self, cli: &Cli) -> Result<()> {
        let plan = Plan {
            rounds: cli.rounds_or(9, 3),
            cell: cli.cell_or(500, 100),
        };
        if let Some(round) = cli.inside {
            return self.run_inside(&plan, round);
        }
        ensure!(
            cli.concerns_no_cpus(),
            "the guest has one CPU, and its driver sleeps: leave out --cpus and --busy"
        );
        let machine = Machine::find()?;
        let measured = self.measure_all(&plan)?;
        let report = Report {
            comparison: self,
            machine: &machine,
            plan: &plan,
            measured: &measured,
        };
        report
            .print(&mut io::stdout().lock(), Form::Terminal)
            .context("cannot print the report")?;
        if cli.write {
            programs::write_page(self.document, |page| report.print(page, Form::Markdown))?;
        }
        Ok(())
    }

    /// Measures a round, and prints it for the program outside.
    fn run_inside(&self, plan: &Plan, round: usize) -> Result<()> {
        let all = self.sides.each(round, |side| {
            (self.measure)(side, plan).with_context(|| format!("with {}", side.name))
        })?;
        for (&ours, &peer) in all.ours.iter().zip(&all.peer) {
            println!("{}", figures::line(&Each { ours, peer }));
        }
        Ok(())
    }

    fn measure_all(&self, plan: &Plan) -> Result<Vec<Measured>> {
        setup::run(&[&Arch::X86_64], &Progress::new())?;
        let mut guest = self.boot(plan)?;
        let measured = self.loads.iter().map(|title| Measured {
            title: title.clone(),
            rounds: Vec::with_capacity(plan.rounds),
        });
        let mut measured: Vec<_> = measured.collect();
        for round in 0..plan.rounds {
            eprintln!("In the guest, round {} of {}", round + 1, plan.rounds);
            let printed = guest.run(&self.inside_line(plan, round)?)?;
            let figures = figures::parse(printed.text())?;
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

    fn boot(&self, plan: &Plan) -> Result<RunningGuest> {
        let own = env::current_exe().context("cannot find the running program")?;
        let guest = [&own, &self.sides.ours.program, &self.sides.peer.program]
            .into_iter()
            .try_fold(Guest::new(), |guest, program| guest.program(program))?;
        // Both sides, each load with its warming up, and as much again.
        let loads = u32::try_from(4 * self.loads.len() * plan.rounds)?;
        let mut guest = guest.lives_for(SLACK + plan.cell * loads).boot()?;
        for line in &self.hardware {
            guest.run(line)?.succeeded();
        }
        Ok(guest)
    }

    /// The line that runs a round in the guest, where the programs have the paths that they have
    /// here.
    fn inside_line(&self, plan: &Plan, round: usize) -> Result<String> {
        let own = env::current_exe().context("cannot find the running program")?;
        Ok(format!(
            "'{}' {} --inside {round} --cell {} --ours '{}' --peer '{}'",
            own.display(),
            self.name,
            plan.cell.as_millis(),
            self.sides.ours.program.display(),
            self.sides.peer.program.display(),
        ))
    }
}
