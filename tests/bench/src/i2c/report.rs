//! The report on the I2C adapter.

use std::io::{self, Write};

use super::load::Depth;
use super::{Figures, Measured, Plan};
use crate::machine::Machine;
use crate::programs::{Each, PEER_VERSION};
use crate::stats::{Better, Summary};
use crate::table::{Form, Kind, Row, Table, conclusion, print_paragraph, print_title};

const GOOD: Kind = Kind {
    title: "Good answers per second",
    better: Better::More,
    digits: 0,
};
const LATENCY: Kind = Kind {
    title: "Time to an answer, in microseconds",
    better: Better::Less,
    digits: 1,
};
const CPU: Kind = Kind {
    title: "CPU time of the daemon per good answer, in microseconds",
    better: Better::Less,
    digits: 1,
};

/// All that the report says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report<'a> {
    pub(super) machine: &'a Machine,
    pub(super) plan: &'a Plan,
    pub(super) measured: &'a [Measured],
}

impl Report<'_> {
    /// Writes everything.
    pub(super) fn print(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
        if form == Form::Markdown {
            writeln!(out, "# vhost-device-i2c side by side with its peer\n")?;
        }
        for paragraph in self.method() {
            print_paragraph(out, &paragraph, form)?;
        }
        if form == Form::Markdown {
            let what = "Repeat it with (two minutes, and nothing else running):";
            writeln!(out, "{what}\n\n```\ncargo xtask bench i2c --write\n```\n")?;
        }
        let tables = self.tables();
        for table in &tables {
            table.print(out, form)?;
        }
        print_title(out, "What is to be said of it", form)?;
        for paragraph in [self.failures(), conclusion(&tables)] {
            print_paragraph(out, &paragraph, form)?;
        }
        Ok(())
    }

    fn method(&self) -> [String; 4] {
        let cell = self.plan.cell.as_millis();
        [
            format!(
                "Machine: {}, and on it a guest of one CPU in QEMU, which emulates it (TCG). Both \
                 daemons run in this guest, in turn. Times are those of an emulated CPU: only \
                 ratios mean something.",
                self.machine
            ),
            format!(
                "The peer is `vhost-device-i2c` {PEER_VERSION} of crates.io, built for release by \
                 `cargo install --locked`. Both are on the guest's `i2c-stub`, a bus of SMBus calls \
                 that answers at once, with the same options. The load is one driver thread in the \
                 guest over the daemon's own socket, the same for both: a split ring of 256 \
                 descriptors with EVENT_IDX and INDIRECT negotiated, three descriptors for a \
                 request. To write a byte is one request of two bytes; to read one is two requests, \
                 the first with FAIL_NEXT, as Linux's driver has them. \"depth\" transfers are \
                 outstanding; the larger is what the ring holds. The driver sleeps until it is \
                 called when nothing is done."
            ),
            format!(
                "Both sides are measured in turn in each of {} rounds with new processes, {cell} ms \
                 for each load behind {} ms to warm up. An answer is good when its status is OK and \
                 what was read is what is in the register.",
                self.plan.rounds,
                cell / 5,
            ),
            "Figures are medians. A ratio above 1 is ours ahead, whatever is measured; it is the \
             median of the ratios of each round, behind it is their middle half."
                .to_owned(),
        ]
    }

    fn tables(&self) -> [Table; 3] {
        let rows = |kind, of: fn(&Figures) -> f64| {
            let measured = self.measured.iter();
            let rows = measured.map(|one| Row::new(one.load.to_string(), &one.rounds, kind, of));
            rows.collect()
        };
        let timed = self.measured.iter();
        let timed = timed.filter(|one| one.load.depth == Depth::One);
        let latencies = timed.flat_map(|one| {
            let row = |what: &str, of: fn(&Figures) -> f64| {
                Row::new(format!("{}, {what}", one.load), &one.rounds, LATENCY, of)
            };
            [
                row("median", |figures| figures.median),
                row("99th percentile", |figures| figures.percentile_99),
            ]
        });
        let table = |kind, rows| Table {
            kind,
            place: String::new(),
            rows,
        };
        [
            table(GOOD, rows(GOOD, |figures| figures.good)),
            table(LATENCY, latencies.collect()),
            table(
                CPU,
                rows(CPU, |figures| figures.cpu / (1.0 - figures.failed)),
            ),
        ]
    }

    /// Who failed at what.
    fn failures(&self) -> String {
        let mut failures = Vec::new();
        for one in self.measured {
            let share = |side: fn(&Each<Figures>) -> &Figures| {
                Summary::of(one.rounds.iter().map(|round| side(round).failed)).median
            };
            let sides = [
                ("ours", share(|each| &each.ours)),
                ("the peer", share(|each| &each.peer)),
            ];
            let failed = sides.iter().filter(|(_, share)| *share > 0.0);
            failures.extend(
                failed.map(|(side, share)| {
                    format!("{side} at \"{}\" {:.1} %", one.load, share * 100.0)
                }),
            );
        }
        if failures.is_empty() {
            "Every answer of both sides was good.".to_owned()
        } else {
            format!(
                "Answers that were not good: {}. The peer makes one transaction of all requests \
                 that it finds in the ring; an SMBus has calls for one or two of them.",
                failures.join("; ")
            )
        }
    }
}
