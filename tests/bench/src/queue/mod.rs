//! The queue beside `virtio-queue`, libvhost-user and rte_vhost, in one process.
//!
//! | module | what lives there |
//! |---|---|
//! | `sides` | the devices that are compared |
//! | `c_peers` | those of them that are written in C |
//! | `measure` | the device alone, in alternating rounds |
//! | `across` | driver and device on two CPUs |
//! | `count` | instructions instead of times |

mod across;
mod c_peers;
mod count;
mod measure;
mod sides;

use std::io::{self, Write};

use anyhow::{Context, Result};

use self::across::Round;
use self::count::Whose;
use self::measure::{Figures, Measured, Shape};
use self::sides::{Side, Sides};
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

const INSTRUCTIONS: Kind = Kind {
    title: "Instructions per chain",
    better: Better::Less,
    digits: 0,
};

/// A comparison: what the title says, ours, and the peer.
type Comparison = (&'static str, Side, Side);

const COMPARISONS: [Comparison; 6] = [
    (
        ", split ring, beside virtio-queue bare",
        Side::Split,
        Side::Bare,
    ),
    (
        ", split ring, beside virtio-queue in VringRwLock",
        Side::Split,
        Side::Locked,
    ),
    (
        ", packed ring, beside virtio-queue's split ring bare",
        Side::Packed,
        Side::Bare,
    ),
    (
        ", split ring, beside libvhost-user",
        Side::Split,
        Side::LibvhostUser,
    ),
    (
        ", split ring, beside rte_vhost",
        Side::Split,
        Side::RteSplit,
    ),
    (
        ", packed ring, beside rte_vhost",
        Side::Packed,
        Side::RtePacked,
    ),
];

/// What each peer is and does, for who reads the figures.
const VIRTIO_QUEUE: &str = "\"Bare\" is `virtio-queue` 0.18 with everything borrowed and reused; \
    \"VringRwLock\" is the same in `vhost-user-backend` 0.24, as the daemons of crates.io use it: \
    chains are collected into a list, and each is cloned and its descriptors collected. Neither has a \
    packed ring.";
const LIBVHOST_USER: &str = "libvhost-user is that of QEMU 10.0, built from Debian's source with \
    -O2: `vu_queue_pop` for each chain of a batch, then `vu_queue_fill` for each, `vu_queue_flush` \
    and `vu_queue_notify`. Memory and ring are set by hand, without a socket. It allocates an \
    element for each chain, which is freed here, and tells the driver with each chain where it \
    wants the next kick. It has no packed ring.";
const RTE_VHOST: &str = "rte_vhost is that of Debian's DPDK 22.11, with the bench as its front-end. \
    Its work is another one: `rte_vhost_dequeue_burst` takes a network card's packets, so it copies \
    each chain's bytes, but for a header of 12, into a packet of a pool, which is freed here. It \
    resolves no buffer for others, does not look at whether a buffer is to be written, and takes at \
    most 32 chains at once: of 128, the driver is shown the answers 4 times.";

const COUNTED: &str = "Instructions are those of the device, counted by callgrind: the same however \
    busy the machine is, but blind to what waits for memory.";

/// What has no row, and why.
const NOT_COMPARED: &str = "Packed rings beside those of `virtio-queue` and libvhost-user: they \
    have none. Chains over 8 regions on rte_vhost: its table has 8, and the ring's is one more. \
    rte_vhost without the copy: its asynchronous path needs a device that copies. Taking chains to \
    write to on rte_vhost (`rte_vhost_enqueue_burst`): it writes packets that the caller has, and \
    merges buffers. Both peers with their vhost-user messages: only the queue is measured.";

/// All that was measured.
#[derive(Debug)]
struct Results {
    alone: Vec<Measured>,
    across: Vec<Round>,
    /// Instructions, in one round.
    counts: Vec<Measured>,
    has_c_peers: bool,
}

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    match (cli.count, cli.inside) {
        (true, None) => return count::run(cli.write),
        (true, Some(whose)) => return count::inside(whose),
        (false, _) => {}
    }
    let machine = Machine::find()?;
    let cpus = Cpus::find(Placement::Together)?;
    let (rounds, cell) = (cli.rounds_or(9, 3), cli.cell_or(4, 1));
    let sides = Sides::load(!cli.no_c_peers)?;
    let has_c_peers = sides.has_c_peers();
    // Who wants no peers of C may not be able to install anything, valgrind included.
    let counts = if has_c_peers {
        count::take(Whose::All)?
    } else {
        Vec::new()
    };
    let alone = cpus.for_driver(|| measure::take(rounds, cell, &sides))?;
    // Where there is one CPU only, there is nothing to measure between two.
    let across = match Cpus::find(Placement::Apart) {
        Ok(cpus) => across::take(rounds, 25 * cell, &cpus, &sides)?,
        Err(_) => Vec::new(),
    };
    let measured = Results {
        alone,
        across,
        counts,
        has_c_peers,
    };
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
    measured: &Results,
) -> io::Result<()> {
    if form == Form::Markdown {
        writeln!(out, "# The queue side by side with others\n")?;
    }
    let mut method = vec![
        format!("Machine: {machine}."),
        format!(
            "A driver fills a ring of 1024 descriptors with 128 chains; a device takes them in \
             batches, resolves each buffer to mapped memory, returns them with length 0, and finds \
             out after each batch whether to call. Only the device is timed, on one thread and \
             with warm caches. All sides are measured in turn in each of {rounds} rounds. Between \
             two CPUs, the driver keeps 256 chains there, the device takes 64 at once, and neither \
             sleeps."
        ),
        VIRTIO_QUEUE.to_owned(),
    ];
    if measured.has_c_peers {
        method.extend([LIBVHOST_USER, RTE_VHOST, COUNTED].map(str::to_owned));
    }
    method.push(
        "Figures are medians. A ratio above 1 is ours ahead; it is the median of the ratios of \
         each round, behind it is their middle half."
            .to_owned(),
    );
    for paragraph in method {
        print_paragraph(&mut out, &paragraph, form)?;
    }
    if form == Form::Markdown {
        writeln!(
            out,
            "Repeat it with:\n\n```\ncargo xtask bench queue --write\n```\n"
        )?;
    }
    let times = COMPARISONS.iter().map(|sides| times(sides, measured));
    let counts = COMPARISONS.iter().map(|sides| counts(sides, measured));
    let tables: Vec<_> = times
        .chain(counts)
        .filter(|table| !table.rows.is_empty())
        .collect();
    for table in &tables {
        table.print(&mut out, form)?;
    }
    if !measured.across.is_empty() {
        print_title(&mut out, "What a cache line costs", form)?;
        print_paragraph(&mut out, &lines(&measured.across), form)?;
    }
    if measured.has_c_peers {
        print_title(&mut out, "What could not be compared", form)?;
        print_paragraph(&mut out, NOT_COMPARED, form)?;
    }
    print_title(&mut out, "Where ours is not ahead", form)?;
    print_paragraph(&mut out, &conclusion(&tables), form)
}

/// The time of a chain between two CPUs beside that of a cache line there and back, of the same
/// rounds.
fn lines(rounds: &[Round]) -> String {
    let line = Summary::of(rounds.iter().map(|round| round.line)).median;
    let ratio = |side: Side| {
        let ratios = rounds.iter().filter_map(|round| {
            let time = round.times.of(side)?;
            Some(time / round.line)
        });
        Summary::of(ratios).median
    };
    let mut text = format!(
        "A cache line goes to the other CPU and back in {line:.0} ns. Of that time, a chain between \
         two CPUs takes {:.2} with our split ring and {:.2} with the packed one, {:.2} with \
         virtio-queue bare and {:.2} in VringRwLock",
        ratio(Side::Split),
        ratio(Side::Packed),
        ratio(Side::Bare),
        ratio(Side::Locked),
    );
    let has = |side| rounds.iter().any(|round| round.times.of(side).is_some());
    if has(Side::LibvhostUser) {
        let (split, packed) = (ratio(Side::RteSplit), ratio(Side::RtePacked));
        text += &format!(
            ", {:.2} with libvhost-user, {split:.2} with rte_vhost's split ring and {packed:.2} \
             with its packed one",
            ratio(Side::LibvhostUser)
        );
    }
    text + "."
}

fn times(comparison: &Comparison, measured: &Results) -> Table {
    let mut rows = shape_rows(comparison, &measured.alone, TIME);
    let across = measured.across.iter().map(|round| &round.times);
    let label = "1 direct, between two CPUs".to_owned();
    rows.extend(row(label, across, comparison, TIME));
    table(comparison, rows, TIME)
}

fn counts(comparison: &Comparison, measured: &Results) -> Table {
    let rows = shape_rows(comparison, &measured.counts, INSTRUCTIONS);
    table(comparison, rows, INSTRUCTIONS)
}

fn table((place, ..): &Comparison, rows: Vec<Row>, kind: Kind) -> Table {
    Table {
        kind,
        place: (*place).to_owned(),
        rows,
    }
}

fn shape_rows(comparison: &Comparison, measured: &[Measured], kind: Kind) -> Vec<Row> {
    let rows = measured.iter().filter_map(|Measured { shape, rounds }| {
        row(label(*shape), rounds.iter(), comparison, kind)
    });
    rows.collect()
}

/// A row, where both sides have figures.
fn row<'a>(
    label: String,
    rounds: impl Iterator<Item = &'a Figures>,
    &(_, ours, peer): &Comparison,
    kind: Kind,
) -> Option<Row> {
    let both = rounds.filter_map(|figures| {
        Some(Each {
            ours: figures.of(ours)?,
            peer: figures.of(peer)?,
        })
    });
    let both: Vec<_> = both.collect();
    (!both.is_empty()).then(|| Row::new(label, &both, kind, |figure| *figure))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_without_figures_has_no_rows() {
        let mut figures = Figures::default();
        figures.set(Side::Split, 10.0);
        figures.set(Side::Bare, 30.0);
        let shape = measure::shapes()[0];
        let rounds = vec![figures; 3];
        let round = Round {
            times: figures,
            line: 20.0,
        };
        let measured = Results {
            alone: vec![Measured { shape, rounds }],
            across: vec![round],
            counts: Vec::new(),
            has_c_peers: false,
        };
        let rows = COMPARISONS.map(|sides| times(&sides, &measured).rows.len());
        assert_eq!(rows, [2, 0, 0, 0, 0, 0]);
        assert!(counts(&COMPARISONS[0], &measured).rows.is_empty());
        let text = lines(&measured.across);
        assert!(text.contains("takes 0.50 with our split ring"), "{text}");
        assert!(!text.contains("rte_vhost"), "{text}");
    }
}
