//! The SCMI device: both daemons on this machine, with a simulated sensor of three axes each.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vhost_device_driver::Buffer;
use vhost_device_guest::setup::Build;

use crate::cli::Cli;
use crate::cpus::{Cpus, Placement};
use crate::daemon::Daemon;
use crate::host::{Figures, Plan};
use crate::load::{Guest, Job, Slot, Waiting};
use crate::machine::Machine;
use crate::programs::{self, Each, Side, Sides};
use crate::stats::Better;
use crate::table::{Form, Kind, Row, Table, conclusion, print_paragraph, print_title};

const PROGRAM: &str = "vhost-device-scmi";
/// The peer's version, pinned.
const PEER_VERSION: &str = "0.4.0";
/// The page of the report, in the workspace.
const DOCUMENT: &str = "docs/bench-scmi.md";

/// Commands that are outstanding: one, and as many as the ring has room for.
const DEPTHS: [u64; 3] = [1, 16, 120];

/// Room for a command and its answer, in guest memory.
const SLOT: u64 = 128;
/// Where the answer goes in a slot.
const ANSWER: u64 = 64;
/// An answer's header and status (Arm DEN0056, "Message header", "Status codes").
const HEADER: u64 = 4;
const STATUS: u64 = 4;

const BASE: u32 = 0x10;
const SENSOR: u32 = 0x15;
/// `SENSOR_CONFIG_SET`, with the bit that turns the sensor on.
const CONFIG_SET: u32 = 0xa;
const ENABLED: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
struct Command {
    name: &'static str,
    protocol: u32,
    id: u32,
    parameters: &'static [u32],
    /// Bytes of what is returned behind the status.
    returned: u64,
}

const COMMANDS: [Command; 2] = [
    Command {
        name: "PROTOCOL_VERSION",
        protocol: BASE,
        id: 0,
        parameters: &[],
        returned: 4,
    },
    Command {
        name: "SENSOR_READING_GET, 3 axes",
        protocol: SENSOR,
        id: 6,
        parameters: &[0, 0],
        // A value and a time for each axis.
        returned: 3 * 16,
    },
];

const TURN_ON: Command = Command {
    name: "SENSOR_CONFIG_SET",
    protocol: SENSOR,
    id: CONFIG_SET,
    parameters: &[0, ENABLED],
    returned: 0,
};

const REQUESTS: Kind = Kind {
    title: "Messages per second",
    better: Better::More,
    digits: 0,
};
const LATENCY: Kind = Kind {
    title: "Microseconds for a message",
    better: Better::Less,
    digits: 2,
};

/// What one row of each table is of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    command: Command,
    depth: u64,
    placement: Placement,
}

/// A shape, and its rounds.
type Measured = (Shape, Vec<Each<Figures>>);

/// Measures, prints, and writes if wanted.
pub(crate) fn run(cli: &Cli) -> Result<()> {
    let machine = Machine::find()?;
    let build = Build::default();
    let sides = programs::sides_of(PROGRAM, PEER_VERSION, cli, &build)?;
    let (rounds, cell) = (cli.rounds_or(9, 3), cli.cell_or(200, 50));
    let mut measured: Vec<Measured> = shapes(cli)
        .map(|shape| (shape, Vec::with_capacity(rounds)))
        .collect();
    for round in 0..rounds {
        eprintln!("Round {} of {rounds}", round + 1);
        for (shape, figures) in &mut measured {
            figures.push(measure(&sides, *shape, round, cell)?);
        }
    }
    let report = |out: &mut dyn Write, form| print(out, form, &machine, rounds, &measured);
    report(&mut io::stdout().lock(), Form::Terminal).context("cannot print the report")?;
    if cli.write {
        programs::write_page(DOCUMENT, |page| report(page, Form::Markdown))?;
    }
    Ok(())
}

fn shapes(cli: &Cli) -> impl Iterator<Item = Shape> {
    cli.placements().into_iter().flat_map(|placement| {
        COMMANDS.into_iter().flat_map(move |command| {
            DEPTHS.into_iter().map(move |depth| Shape {
                command,
                depth,
                placement,
            })
        })
    })
}

fn measure(sides: &Sides, shape: Shape, round: usize, cell: Duration) -> Result<Each<Figures>> {
    let cpus = Cpus::find(shape.placement)?;
    sides.each(round, |side| {
        load(side, shape, &cpus, cell)
            .with_context(|| format!("{} with {}", side.name, shape.command.name))
    })
}

fn load(side: &Side, shape: Shape, cpus: &Cpus, cell: Duration) -> Result<Figures> {
    let mut daemon =
        cpus.for_daemons(|| Daemon::start_one(side, &["--device", "fake,name=accel"]))?;
    let mut guest = Guest::start(daemon.connect_one()?, shape.depth * SLOT, 0)?;
    cpus.for_driver(|| {
        let mut on = TURN_ON.job(&guest, 1);
        let done = guest.run(&mut on, Duration::ZERO, Waiting::Asleep)?;
        ensure!(done.failed == 0, "the sensor cannot be turned on");
        let mut job = shape.command.job(&guest, shape.depth).timed();
        let plan = Plan { rounds: 1, cell };
        let figures = Figures::of_job(&mut job, &mut guest, &daemon, &plan)?;
        let failed = figures.failed;
        ensure!(failed == 0.0, "{failed} of all answers were errors");
        Ok(figures)
    })
}

impl Command {
    /// So many of it, in the guest's memory.
    fn job(self, guest: &Guest, depth: u64) -> Job {
        let slots = (0..depth).map(|number| {
            let address = guest.data() + number * SLOT;
            let header = self.id | self.protocol << 10;
            let words = [header].into_iter().chain(self.parameters.iter().copied());
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            guest.write(address, &bytes);
            let answer = address + ANSWER;
            let len = HEADER + STATUS + self.returned;
            let buffers = vec![
                Buffer::readable(address, bytes.len() as u32),
                Buffer::writable(answer, len as u32),
            ];
            // SUCCESS is 0.
            let status = (0..STATUS).map(|byte| (answer + HEADER + byte, 0));
            Slot::new(vec![buffers]).expect(status.collect())
        });
        Job::new(slots.collect())
    }
}

fn print(
    mut out: &mut dyn Write,
    form: Form,
    machine: &Machine,
    rounds: usize,
    measured: &[Measured],
) -> io::Result<()> {
    if form == Form::Markdown {
        writeln!(out, "# vhost-device-scmi side by side with its peer\n")?;
    }
    let method = [
        format!("Machine: {machine}."),
        format!(
            "The peer is `vhost-device-scmi` {PEER_VERSION} of crates.io, built for release by \
             `cargo install --locked`. Both have one simulated sensor (`--device fake`) of three \
             axes. A driver keeps \"depth\" commands outstanding in a split ring of 256 descriptors \
             with EVENT_IDX and INDIRECT negotiated, two descriptors each, checks the status of \
             each answer, and sleeps until it is called when nothing is done. Both sides are \
             measured in turn in each of {rounds} rounds with new processes."
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
            "Repeat it with:\n\n```\ncargo xtask bench scmi --write\n```\n"
        )?;
    }
    let tables = [
        table(REQUESTS, "", measured, |figures| figures.good),
        table(LATENCY, ", median", measured, |figures| figures.median),
        table(LATENCY, ", p99", measured, |figures| figures.percentile_99),
        table(LATENCY, ", CPU time of the daemon", measured, |figures| {
            figures.cpu
        }),
    ];
    for table in &tables {
        table.print(&mut out, form)?;
    }
    print_title(&mut out, "Where ours is not ahead", form)?;
    print_paragraph(&mut out, &conclusion(&tables), form)
}

fn table(kind: Kind, place: &str, measured: &[Measured], of: fn(&Figures) -> f64) -> Table {
    let rows = measured.iter().map(|(shape, rounds)| {
        let Shape {
            command,
            depth,
            placement,
        } = shape;
        let label = format!("{}, depth {depth}, {placement}", command.name);
        Row::new(label, rounds, kind, of)
    });
    Table {
        kind,
        place: place.to_owned(),
        rows: rows.collect(),
    }
}
