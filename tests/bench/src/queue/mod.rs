//! The queue beside `virtio-queue`, in one process.
//!
//! | module | what lives there |
//! |---|---|
//! | `sides` | the devices that are compared |
//! | `measure` | the device alone, in alternating rounds |
//! | `across` | driver and device on two CPUs |
//! | `count` | instructions instead of times |

mod across;
mod count;
mod measure;
mod sides;

use std::io::{self, Write};

use anyhow::{Context, Result};

use self::across::Round;
use self::measure::{Measured, Shape, Times};
use crate::cli::Cli;
use crate::cpus::{Cpus, Placement};
use crate::machine::Machine;
use crate::programs::{self, Each};
use crate::stats::{Better, Summary};
use crate::table::{Form, Kind, Row, Table, conclusion, print_paragraph, print_title};

/// The page of the report, in the workspace.
const DOCUMENT: &str = "docs/bench-queue.md";

const TIME: Kind = Kind {
    title: "Nanoseconds per chain",
    better: Better::Less,
    digits: 1,
};

/// A comparison: what the title says, our time, and the peer's.
type Comparison = (&'static str, fn(&Times) -> f64, fn(&Times) -> f64);

const COMPARISONS: [Comparison; 3] = [
    (
        ", split ring, beside virtio-queue bare",
        |t| t.split,
        |t| t.bare,
    ),
    (
        ", split ring, beside virtio-queue in VringRwLock",
        |t| t.split,
        |t| t.locked,
    ),
    (
        ", packed ring, beside virtio-queue's split ring bare",
        |t| t.packed,
        |t| t.bare,
    ),
];

/// All that was measured.
#[derive(Debug)]
struct Figures {
    alone: Vec<Measured>,
    across: Vec<Round>,
}

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    match (cli.count, cli.inside) {
        (true, None) => return count::run(cli.write),
        (true, Some(_)) => return count::inside(),
        (false, _) => {}
    }
    let machine = Machine::find()?;
    let cpus = Cpus::find(Placement::Together)?;
    let (rounds, cell) = (cli.rounds_or(9, 3), cli.cell_or(4, 1));
    let alone = cpus.for_driver(|| measure::take(rounds, cell))?;
    // Where there is one CPU only, there is nothing to measure between two.
    let across = match Cpus::find(Placement::Apart) {
        Ok(cpus) => across::take(rounds, 25 * cell, &cpus)?,
        Err(_) => Vec::new(),
    };
    let measured = Figures { alone, across };
    let report = |out: &mut dyn Write, form| print(out, form, &machine, rounds, &measured);
    report(&mut io::stdout().lock(), Form::Terminal).context("cannot print the report")?;
    if cli.write {
        programs::write_page(DOCUMENT, |page| report(page, Form::Markdown))?;
    }
    Ok(())
}

fn print(
    mut out: &mut dyn Write,
    form: Form,
    machine: &Machine,
    rounds: usize,
    measured: &Figures,
) -> io::Result<()> {
    if form == Form::Markdown {
        writeln!(out, "# The queue side by side with virtio-queue\n")?;
    }
    let method = [
        format!("Machine: {machine}."),
        format!(
            "A driver fills a ring of 1024 descriptors with 128 chains; a device takes them in \
             batches, resolves each buffer to mapped memory, returns them with length 0, and finds \
             out after each batch whether to call. Only the device is timed, on one thread and \
             with warm caches. \"Bare\" is `virtio-queue` 0.18 with everything borrowed and \
             reused; \"VringRwLock\" is the same in `vhost-user-backend` 0.24, with chains and \
             descriptors collected into lists as the daemons of crates.io do. All sides are \
             measured in turn in each of {rounds} rounds. `virtio-queue` has no packed ring. \
             Between two CPUs, the driver keeps 256 chains there, the device takes 64 at once, and \
             neither sleeps."
        ),
        "Figures are medians. A ratio above 1 is ours ahead; it is the median of the ratios of \
         each round, behind it is their middle half."
            .to_owned(),
    ];
    for paragraph in method {
        print_paragraph(&mut out, &paragraph, form)?;
    }
    if form == Form::Markdown {
        writeln!(
            out,
            "Repeat it with:\n\n```\ncargo xtask bench queue --write\n```\n"
        )?;
    }
    let tables: Vec<_> = COMPARISONS
        .iter()
        .map(|comparison| table(comparison, measured))
        .collect();
    for table in &tables {
        table.print(&mut out, form)?;
    }
    if !measured.across.is_empty() {
        print_title(&mut out, "What a cache line costs", form)?;
        print_paragraph(&mut out, &lines(&measured.across), form)?;
    }
    print_title(&mut out, "Where ours is not ahead", form)?;
    print_paragraph(&mut out, &conclusion(&tables), form)
}

/// The time of a chain between two CPUs beside that of a cache line there and back, of the same
/// rounds.
fn lines(rounds: &[Round]) -> String {
    let line = Summary::of(rounds.iter().map(|round| round.line)).median;
    let ratio = |of: fn(&Times) -> f64| {
        let ratios = rounds.iter().map(|round| of(&round.times) / round.line);
        Summary::of(ratios).median
    };
    format!(
        "A cache line goes to the other CPU and back in {line:.0} ns. Of that time, a chain between \
         two CPUs takes {:.2} with our split ring and {:.2} with the packed one, {:.2} with \
         virtio-queue bare and {:.2} in VringRwLock.",
        ratio(|times| times.split),
        ratio(|times| times.packed),
        ratio(|times| times.bare),
        ratio(|times| times.locked),
    )
}

fn table((place, ours, peer): &Comparison, measured: &Figures) -> Table {
    let row = |label, times: &mut dyn Iterator<Item = &Times>| {
        let rounds: Vec<_> = times
            .map(|times| Each {
                ours: ours(times),
                peer: peer(times),
            })
            .collect();
        Row::new(label, &rounds, TIME, |time| *time)
    };
    let alone = measured.alone.iter();
    let alone = alone.map(|Measured { shape, rounds }| row(label(*shape), &mut rounds.iter()));
    let mut rows: Vec<_> = alone.collect();
    if !measured.across.is_empty() {
        let mut times = measured.across.iter().map(|round| &round.times);
        rows.push(row("1 direct, between two CPUs".to_owned(), &mut times));
    }
    Table {
        kind: TIME,
        place: (*place).to_owned(),
        rows,
    }
}

fn label(shape: Shape) -> String {
    let Shape {
        descriptors,
        indirect,
        batch,
        regions,
        event_idx,
    } = shape;
    let way = if indirect { "indirect" } else { "direct" };
    let regions = if regions == 1 { "" } else { ", 8 regions" };
    let flags = if event_idx { "" } else { ", no EVENT_IDX" };
    format!("{descriptors} {way}, batch {batch}{regions}{flags}")
}
