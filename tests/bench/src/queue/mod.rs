//! The queue beside `virtio-queue`, in one process.
//!
//! | module | what lives there |
//! |---|---|
//! | `sides` | the devices that are compared |
//! | `measure` | the measurements, in alternating rounds |

mod measure;
mod sides;

use std::io::{self, Write};

use anyhow::{Context, Result};

use self::measure::{Measured, Shape, Times};
use crate::cli::Cli;
use crate::cpus::{Cpus, Placement};
use crate::machine::Machine;
use crate::programs::{self, Each};
use crate::stats::Better;
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

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let machine = Machine::find()?;
    let cpus = Cpus::find(Placement::Together)?;
    let (rounds, cell) = (cli.rounds_or(9, 3), cli.cell_or(4, 1));
    let measured = cpus.for_driver(|| measure::take(rounds, cell))?;
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
    measured: &[Measured],
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
             measured in turn in each of {rounds} rounds. `virtio-queue` has no packed ring."
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
    print_title(&mut out, "Where ours is not ahead", form)?;
    print_paragraph(&mut out, &conclusion(&tables), form)
}

fn table((place, ours, peer): &Comparison, measured: &[Measured]) -> Table {
    let rows = measured.iter().map(|Measured { shape, rounds }| {
        let rounds: Vec<_> = rounds
            .iter()
            .map(|times| Each {
                ours: ours(times),
                peer: peer(times),
            })
            .collect();
        Row::new(label(*shape), &rounds, TIME, |time| *time)
    });
    Table {
        kind: TIME,
        place: (*place).to_owned(),
        rows: rows.collect(),
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
