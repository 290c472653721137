//! The report of a comparison in the host guest.

use std::io::{self, Write};

use super::{Comparison, Figures, Measured, Plan};
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
pub(super) struct Report<'a> {
    pub(super) comparison: &'a Comparison,
    pub(super) machine: &'a Machine,
    pub(super) plan: &'a Plan,
    pub(super) measured: &'a [Measured],
}

impl Report<'_> {
    /// Writes everything.
    pub(super) fn print(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
        if form == Form::Markdown {
            let program = self.comparison.program;
            writeln!(out, "# {program} side by side with its peer\n")?;
        }
        for paragraph in self.method() {
            print_paragraph(out, &paragraph, form)?;
        }
        if form == Form::Markdown {
            let what = "Repeat it with (some minutes, and nothing else running):";
            let name = self.comparison.name;
            writeln!(
                out,
                "{what}\n\n```\ncargo xtask bench {name} --write\n```\n"
            )?;
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

    fn method(&self) -> Vec<String> {
        let Comparison {
            program, method, ..
        } = self.comparison;
        let cell = self.plan.cell.as_millis();
        let mut paragraphs = vec![format!(
            "Machine: {}, and on it a guest of one CPU in QEMU, which emulates it (TCG). Both \
             daemons run in this guest, in turn. Times are those of an emulated CPU: only ratios \
             mean something. The peer is `{program}` {PEER_VERSION} of crates.io, built for release \
             by `cargo install --locked`.",
            self.machine
        )];
        paragraphs.extend(method.iter().cloned());
        paragraphs.push(format!(
            "Both sides are measured in turn in each of {} rounds with new processes, {cell} ms \
             for each load behind {} ms to warm up.",
            self.plan.rounds,
            cell / 5,
        ));
        paragraphs.push(
            "Figures are medians. A ratio above 1 is ours ahead, whatever is measured; it is the \
             median of the ratios of each round, behind it is their middle half."
                .to_owned(),
        );
        paragraphs
    }

    fn tables(&self) -> [Table; 3] {
        let rows = |kind, of: fn(&Figures) -> f64| {
            let measured = self.measured.iter();
            let rows = measured.map(|one| Row::new(one.title.text.clone(), &one.rounds, kind, of));
            rows.collect()
        };
        let timed = self.measured.iter();
        let timed = timed.filter(|one| one.title.timed);
        let latencies = timed.flat_map(|one| {
            let row = |what: &str, of: fn(&Figures) -> f64| {
                Row::new(
                    format!("{}, {what}", one.title.text),
                    &one.rounds,
                    LATENCY,
                    of,
                )
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
            failures.extend(failed.map(|(side, share)| {
                format!("{side} at \"{}\" {:.1} %", one.title.text, share * 100.0)
            }));
        }
        if failures.is_empty() {
            "Every answer of both sides was good.".to_owned()
        } else {
            format!(
                "Answers that were not good: {}. {}",
                failures.join("; "),
                self.comparison.failures
            )
        }
    }
}
