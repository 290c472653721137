//! The report on the entropy device.

use std::io::{self, Write};

use super::measure::{Figures, Measurements, Plan, Shape};
use crate::cpus::Placement;
use crate::load::Waiting;
use crate::machine::Machine;
use crate::process::Memory;
use crate::programs::{Each, PEER_VERSION};
use crate::stats::Better;
use crate::table::{Form, Kind, Row, Table, conclusion, print_paragraph, print_title};

/// All that the report says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report<'a> {
    /// Where it was measured.
    pub(crate) machine: &'a Machine,
    /// How often.
    pub(crate) plan: &'a Plan,
    /// What came out.
    pub(crate) measurements: &'a Measurements,
}

const REQUESTS: Kind = Kind {
    title: "Requests per second",
    better: Better::More,
    digits: 0,
};
const BYTES: Kind = Kind {
    title: "Megabytes per second",
    better: Better::More,
    digits: 2,
};
const CPU: Kind = Kind {
    title: "CPU time per request, in microseconds",
    better: Better::Less,
    digits: 3,
};
const RESIDENT: Kind = Kind {
    title: "Memory, in KiB",
    better: Better::Less,
    digits: 0,
};
const START: Kind = Kind {
    title: "From fork to the first connection, in milliseconds",
    better: Better::Less,
    digits: 2,
};

/// What there is to be ahead in, besides the work of the daemon.
const COST: &str = "From 4 KiB on, both sides spend their time in the kernel's generator, and at \
                    depth 1 on two CPUs in waking each other up.";

impl Report<'_> {
    /// Writes everything.
    pub(crate) fn print(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
        let tables = self.tables();
        self.print_head(out, form)?;
        for table in &tables {
            table.print(out, form)?;
        }
        print_title(out, "Where ours is not ahead", form)?;
        for paragraph in [conclusion(&tables), COST.to_owned(), self.answers()] {
            print_paragraph(out, &paragraph, form)?;
        }
        Ok(())
    }

    fn tables(&self) -> Vec<Table> {
        let Measurements { crowds, starts, .. } = self.measurements;
        let memory = crowds.iter().flat_map(|crowd| {
            let row = |what: &str, of: fn(&Memory) -> u64| {
                let guests = if crowd.guests == 1 { "guest" } else { "guests" };
                let label = format!("{what}, {} {guests}", crowd.guests);
                Row::new(label, &crowd.rounds, RESIDENT, |memory| of(memory) as f64)
            };
            [
                row("resident", |memory| memory.resident),
                row("private", |memory| memory.private),
            ]
        });
        let start = Row::new("one socket".to_owned(), starts, START, |start| *start);
        let mut tables = Vec::new();
        for &placement in &self.plan.placements {
            tables.extend([
                self.load_table(placement, REQUESTS, |figures| figures.requests),
                self.load_table(placement, BYTES, |figures| figures.bytes / 1e6),
                self.load_table(placement, CPU, |figures| figures.cpu),
            ]);
        }
        tables.extend(
            [(RESIDENT, memory.collect()), (START, vec![start])].map(|(kind, rows)| Table {
                kind,
                place: String::new(),
                rows,
            }),
        );
        tables
    }

    fn load_table(&self, placement: Placement, kind: Kind, of: fn(&Figures) -> f64) -> Table {
        let loads = self.measurements.loads.iter();
        let loads = loads.filter(|load| load.placement == placement);
        let rows = loads.map(|load| Row::new(label(load.shape), &load.rounds, kind, of));
        Table {
            kind,
            place: format!(", {placement}"),
            rows: rows.collect(),
        }
    }

    fn print_head(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
        if form == Form::Markdown {
            writeln!(out, "# vhost-device-rng side by side with its peer\n")?;
        }
        for paragraph in self.method() {
            print_paragraph(out, &paragraph, form)?;
        }
        if form == Form::Markdown {
            let what = "Repeat it with (three minutes at most, and nothing else running):";
            writeln!(out, "{what}\n\n```\ncargo xtask bench --write\n```\n")?;
        }
        Ok(())
    }

    fn method(&self) -> Vec<String> {
        let Plan {
            rounds,
            cell,
            starts,
            waiting,
            placements: _,
        } = self.plan;
        let waiting = match waiting {
            Waiting::Asleep => "sleeps until it is called when nothing is done",
            Waiting::Busy => "looks for answers all the time, with calls turned off (`--busy`)",
        };
        vec![
            format!("Machine: {}.", self.machine),
            format!(
                "The peer is `vhost-device-rng` {PEER_VERSION} of crates.io, built for release by \
                 `cargo install --locked`. Both daemons run with their defaults. Ours takes its \
                 bytes from getrandom(2), the peer from /dev/urandom: the same generator of the \
                 kernel."
            ),
            format!(
                "The load is one driver thread over the daemon's own socket, the same for both: a \
                 split ring of 256 descriptors with EVENT_IDX and INDIRECT negotiated, one \
                 writable descriptor for a request, and \"depth\" requests outstanding. It takes \
                 all answers, asks again, kicks if the device wants to be kicked, and {waiting}. \
                 On two CPUs, one side works while the other does, and to wake each other they \
                 interrupt a CPU; in a virtual machine that takes its hypervisor, and outweighs \
                 all else where few requests are outstanding. On one CPU they take turns: that \
                 measures the work."
            ),
            format!(
                "Both sides are measured in turn in each of {rounds} rounds with new processes, \
                 {} ms for each load behind {} ms to warm up. Start-up is from fork to the first \
                 connection, {starts} times each. Bytes are what the used ring says. CPU time is that of \
                 all of the daemon's threads, in user space and in the kernel. Memory is without \
                 the guests' own; each guest is connected and has had an answer. \"private\" is \
                 what no other process shares.",
                cell.as_millis(),
                cell.as_millis() / 5,
            ),
            "Figures are medians. A ratio above 1 is ours ahead, whatever is measured; it is the \
             median of the ratios of each round, behind it is their middle half."
                .to_owned(),
        ]
    }

    /// Whether all answers filled their buffers.
    fn answers(&self) -> String {
        let mut short = Vec::new();
        for load in &self.measurements.loads {
            let filled = |side: fn(&Each<Figures>) -> &Figures| {
                let full = f64::from(load.shape.size);
                load.rounds.iter().all(|round| side(round).answer == full)
            };
            let sides = [
                ("ours", filled(|each| &each.ours)),
                ("the peer", filled(|each| &each.peer)),
            ];
            let sides = sides.iter().filter(|(_, filled)| !filled);
            short
                .extend(sides.map(|(side, _)| {
                    format!("{side} {} at {}", load.placement, label(load.shape))
                }));
        }
        if short.is_empty() {
            "Every answer of both sides filled its buffer.".to_owned()
        } else {
            format!(
                "Answers with less than was asked for: {}.",
                short.join("; ")
            )
        }
    }
}

fn label(shape: Shape) -> String {
    let Shape { size, depth } = shape;
    if size.is_multiple_of(1024) {
        format!("{} KiB, depth {depth}", size / 1024)
    } else {
        format!("{size} B, depth {depth}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_readable() {
        let label = |size, depth| label(Shape { size, depth });
        assert_eq!(label(256, 1), "256 B, depth 1");
        assert_eq!(label(65536, 128), "64 KiB, depth 128");
    }
}
