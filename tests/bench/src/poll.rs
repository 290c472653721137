//! A round trip at depth 1, from the kick to the answer: with polling, without it, and the peer's.
//!
//! The entropy device answers at once, so what is measured is how a daemon gets to know of a
//! request and a driver of its answer.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vhost_device_driver::Buffer;
use vhost_device_guest::setup::Build;

use crate::cli::Cli;
use crate::cpus::{Cpus, Placement};
use crate::daemon::Daemon;
use crate::host::Figures;
use crate::load::{Guest, Job, Slot, Waiting};
use crate::machine::Machine;
use crate::process::cpu_time;
use crate::programs::{self, Each, PEER_VERSION, Side, Sides};
use crate::stats::{Better, Summary, micros};
use crate::table::{Form, Kind, Row, Table, conclusion, print_paragraph, print_title};

const PROGRAM: &str = "vhost-device-rng";
/// The page of the report, in the workspace.
const DOCUMENT: &str = "docs/bench-poll.md";

/// Bytes of a request.
const SIZE: u32 = 16;

/// What our daemon is told, the second time.
const POLL: [&str; 2] = ["--poll-us", "50"];

/// For how long nothing is asked for, to see what an idle guest costs.
const IDLE: Duration = Duration::from_millis(500);

const TIME: Kind = Kind {
    title: "Microseconds",
    better: Better::Less,
    digits: 2,
};

/// What a run gave.
#[derive(Clone, Copy, Debug)]
struct Trip {
    figures: Figures,
    /// The daemon's CPU time while nothing was asked for, in microseconds.
    idle: f64,
}

/// A round: ours as it is, ours that polls, and the peer.
#[derive(Clone, Copy, Debug)]
struct Round {
    plain: Trip,
    polling: Trip,
    peer: Trip,
}

/// A way to wait, and all rounds.
type Measured = (Waiting, Vec<Round>);

/// What a row shows.
type Figure = (&'static str, fn(&Figures) -> f64);

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let machine = Machine::find()?;
    let sides = programs::sides(PROGRAM, cli, &Build::default())?;
    let cpus = Cpus::find(Placement::Apart)?;
    let (rounds, cell) = (cli.rounds_or(9, 3), cli.cell_or(200, 50));
    let mut measured = Vec::new();
    for waiting in [Waiting::Asleep, Waiting::Busy] {
        let rounds = (0..rounds).map(|round| measure(&sides, round, &cpus, waiting, cell));
        measured.push((waiting, rounds.collect::<Result<Vec<_>>>()?));
    }
    let report = |out: &mut dyn Write, form| print(out, form, &machine, &measured);
    report(&mut io::stdout().lock(), Form::Terminal).context("cannot print the report")?;
    if cli.write {
        programs::write_page(DOCUMENT, |page| report(page, Form::Markdown))?;
    }
    Ok(())
}

/// Measures all three in turn, in odd rounds backwards.
fn measure(
    sides: &Sides,
    round: usize,
    cpus: &Cpus,
    waiting: Waiting,
    cell: Duration,
) -> Result<Round> {
    let one = |side: &Side, arguments: &[&str]| {
        trip(side, arguments, cpus, waiting, cell).with_context(|| side.name)
    };
    Ok(if round.is_multiple_of(2) {
        Round {
            plain: one(&sides.ours, &[])?,
            polling: one(&sides.ours, &POLL)?,
            peer: one(&sides.peer, &[])?,
        }
    } else {
        let peer = one(&sides.peer, &[])?;
        let polling = one(&sides.ours, &POLL)?;
        Round {
            plain: one(&sides.ours, &[])?,
            polling,
            peer,
        }
    })
}

fn trip(
    side: &Side,
    arguments: &[&str],
    cpus: &Cpus,
    waiting: Waiting,
    cell: Duration,
) -> Result<Trip> {
    let mut daemon = cpus.for_daemons(|| Daemon::start(side, 1, arguments))?;
    let mut guest = Guest::start(daemon.connect(0)?, SIZE.into(), 0)?;
    cpus.for_driver(|| {
        let buffer = Buffer::writable(guest.data(), SIZE);
        let mut job = Job::new(vec![Slot::new(vec![vec![buffer]])]).timed();
        guest.run(&mut job, cell / 5, waiting)?;
        let figures = Figures::of(&daemon, || guest.run(&mut job, cell, waiting))?;
        let before = cpu_time(daemon.pid())?;
        thread::sleep(IDLE);
        let idle = cpu_time(daemon.pid())?.saturating_sub(before);
        Ok(Trip {
            figures,
            idle: micros(idle),
        })
    })
}

fn print(
    mut out: &mut dyn Write,
    form: Form,
    machine: &Machine,
    measured: &[Measured],
) -> io::Result<()> {
    if form == Form::Markdown {
        writeln!(out, "# Polling: a round trip at depth 1\n")?;
    }
    let method = [
        format!("Machine: {machine}."),
        format!(
            "One request of {SIZE} bytes at a time to `vhost-device-rng`, ours without an option \
             and with `{}`, and {PEER_VERSION} of crates.io, in turn in each round with new \
             processes; driver and daemon on a CPU each. A round trip begins before the request is \
             made available and ends when its answer was taken. The driver sleeps until it is \
             called, or looks for the answer all the time with calls turned off (\"busy\"), as a \
             guest does that polls.",
            POLL.join(" ")
        ),
        "Figures are medians of the rounds. A ratio above 1 is ours ahead; it is the median of the \
         ratios of each round, behind it is their middle half."
            .to_owned(),
    ];
    for paragraph in method {
        print_paragraph(&mut out, &paragraph, form)?;
    }
    if form == Form::Markdown {
        writeln!(
            out,
            "Repeat it with:\n\n```\ncargo xtask bench poll --write\n```\n"
        )?;
    }
    let tables = [
        table(", without polling", measured, |round| round.plain),
        table(", with polling", measured, |round| round.polling),
    ];
    for table in &tables {
        table.print(&mut out, form)?;
    }
    print_title(&mut out, "What polling gains and costs", form)?;
    for paragraph in [gain(measured), idle(measured)] {
        print_paragraph(&mut out, &paragraph, form)?;
    }
    print_title(&mut out, "Where ours is not ahead", form)?;
    print_paragraph(&mut out, &conclusion(&tables), form)
}

fn name(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::Asleep => "driver asleep",
        Waiting::Busy => "driver busy",
    }
}

fn table(place: &str, measured: &[Measured], ours: fn(&Round) -> Trip) -> Table {
    let figures: [Figure; 3] = [
        ("round trip, median", |figures| figures.median),
        ("round trip, p99", |figures| figures.percentile_99),
        ("CPU time for a request", |figures| figures.cpu),
    ];
    let rows = measured.iter().flat_map(|(waiting, rounds)| {
        let pairs: Vec<_> = rounds
            .iter()
            .map(|round| Each {
                ours: ours(round).figures,
                peer: round.peer.figures,
            })
            .collect();
        figures.map(|(what, of)| Row::new(format!("{what}, {}", name(*waiting)), &pairs, TIME, of))
    });
    Table {
        kind: TIME,
        place: place.to_owned(),
        rows: rows.collect(),
    }
}

/// Polling beside none.
fn gain(measured: &[Measured]) -> String {
    let sentences = measured.iter().map(|(waiting, rounds)| {
        let pairs = rounds
            .iter()
            .map(|round| (round.polling.figures.median, round.plain.figures.median));
        let ratio = Summary::of_ratios(pairs, Better::Less);
        format!(
            "With the {}, a round trip with polling is {:.2} times ({:.2}–{:.2}) as fast as one \
             without.",
            name(*waiting),
            ratio.median,
            ratio.low,
            ratio.high
        )
    });
    sentences.collect::<Vec<_>>().join(" ")
}

/// What an idle guest costs.
fn idle(measured: &[Measured]) -> String {
    let median = |of: fn(&Round) -> Trip| {
        let rounds = measured.iter().flat_map(|(_, rounds)| rounds);
        Summary::of(rounds.map(|round| of(round).idle)).median
    };
    format!(
        "In {} ms without requests after the last one, the daemon takes {:.0} µs of CPU time with \
         polling, {:.0} µs without, and the peer {:.0} µs.",
        IDLE.as_millis(),
        median(|round| round.polling),
        median(|round| round.plain),
        median(|round| round.peer),
    )
}
