//! The tables, for a terminal and for a page of `docs/`.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::cpus::Placement;
use crate::load::{Shape, Waiting};
use crate::machine::Machine;
use crate::measure::{Figures, Measurements, Plan};
use crate::process::Memory;
use crate::programs::{Each, PEER_VERSION};
use crate::stats::{Better, Summary};

/// How tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In columns.
    Terminal,
    /// As a page.
    Markdown,
}

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

/// A kind of figure.
#[derive(Clone, Copy, Debug)]
struct Kind {
    title: &'static str,
    better: Better,
    /// Digits behind the point.
    digits: usize,
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
    title: "From exec to listening, in milliseconds",
    better: Better::Less,
    digits: 2,
};

/// What there is to be ahead in, besides the work of the daemon.
const COST: &str = "From 4 KiB on, both sides spend their time in the kernel's generator, and at \
                    depth 1 on two CPUs in waking each other up.";

/// A row of a table: the medians, and the ratios of each round.
#[derive(Clone, Debug)]
struct Row {
    label: String,
    medians: Each<f64>,
    ratio: Summary,
}

/// Tables of one kind of figure.
#[derive(Clone, Debug)]
struct Table {
    kind: Kind,
    /// Where driver and daemon ran, if that matters.
    placement: Option<Placement>,
    rows: Vec<Row>,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ahead,
    /// The middle half of the rounds has both.
    Level,
    Behind,
}

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
                placement: None,
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
            placement: Some(placement),
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

impl Row {
    fn new<T>(label: String, rounds: &[Each<T>], kind: Kind, of: impl Fn(&T) -> f64) -> Self {
        let median =
            |side: fn(&Each<T>) -> &T| Summary::of(rounds.iter().map(|each| of(side(each)))).median;
        let pairs = rounds.iter().map(|each| (of(&each.ours), of(&each.peer)));
        Self {
            label,
            medians: Each {
                ours: median(|each| &each.ours),
                peer: median(|each| &each.peer),
            },
            ratio: Summary::of_ratios(pairs, kind.better),
        }
    }

    fn cells(&self, kind: Kind) -> Vec<String> {
        let number = |figure| grouped(figure, kind.digits);
        vec![
            self.label.clone(),
            number(self.medians.ours),
            number(self.medians.peer),
            ratio_cell(self.ratio),
        ]
    }
}

impl Table {
    fn title(&self) -> String {
        self.kind.title.to_owned() + &self.place()
    }

    /// The end of the title.
    fn place(&self) -> String {
        self.placement
            .map_or_else(String::new, |placement| format!(", {placement}"))
    }

    fn print(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
        let heading = ["", "ours", "peer", "ratio"].map(str::to_owned);
        let mut lines = vec![heading.to_vec()];
        lines.extend(self.rows.iter().map(|row| row.cells(self.kind)));
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        print_title(out, &self.title(), form)?;
        for (number, line) in lines.iter().enumerate() {
            writeln!(out, "{}", table_line(line, &widths, form))?;
            if number == 0 && form == Form::Markdown {
                writeln!(out, "{}", rule(&widths))?;
            }
        }
        writeln!(out)
    }
}

/// The first column to the left, the others to the right.
fn table_line(cells: &[String], widths: &[usize], form: Form) -> String {
    let padded = cells
        .iter()
        .zip(widths)
        .enumerate()
        .map(|(column, (cell, &width))| {
            if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
    let padded: Vec<String> = padded.collect();
    match form {
        Form::Terminal => format!("  {}", padded.join("  ")),
        Form::Markdown => format!("| {} |", padded.join(" | ")),
    }
}

/// The line below the heading of a Markdown table.
fn rule(widths: &[usize]) -> String {
    let mut rule = String::from("|");
    for (column, width) in widths.iter().enumerate() {
        let (left, right) = if column == 0 { (":", "-") } else { ("-", ":") };
        let _ = write!(rule, "{left}{}{right}|", "-".repeat(*width));
    }
    rule
}

/// What is said of all rows of all tables.
fn conclusion(tables: &[Table]) -> String {
    let count = |wanted| {
        let rows = tables.iter().flat_map(|table| &table.rows);
        rows.filter(|row| verdict(row.ratio) == wanted).count()
    };
    let all: usize = tables.iter().map(|table| table.rows.len()).sum();
    let mut text = format!("Ours is ahead in {} of {all} cells.", count(Verdict::Ahead));
    let others = [
        (Verdict::Behind, "Behind"),
        (Verdict::Level, "Not told apart from the peer"),
    ];
    for (verdict, what) in others {
        let number = count(verdict);
        if number > 0 {
            let cells = cells_with(verdict, tables);
            let _ = write!(text, " {what} in {number}: {cells}.");
        }
    }
    text
}

/// The tables that have rows of this kind, and these rows. Tables that follow each other and have
/// the same are said at once: requests and bytes are the same when all answers are full.
fn cells_with(wanted: Verdict, tables: &[Table]) -> String {
    let mut said: Vec<(String, String, String)> = Vec::new();
    for table in tables {
        let rows = table.rows.iter();
        let rows = rows.filter(|row| verdict(row.ratio) == wanted);
        let rows: Vec<String> = rows
            .map(|row| format!("{} {:.2}", row.label, row.ratio.median))
            .collect();
        let (place, rows) = (table.place(), rows.join("; "));
        if rows.is_empty() {
            continue;
        }
        match said.last_mut() {
            Some(last) if (&last.1, &last.2) == (&place, &rows) => {
                last.0 = format!("{} and {}", last.0, table.kind.title);
            }
            _ => said.push((table.kind.title.to_owned(), place, rows)),
        }
    }
    let said = said.into_iter();
    let said = said.map(|(titles, place, rows)| format!("{titles}{place} ({rows})"));
    said.collect::<Vec<_>>().join(", ")
}

fn verdict(ratio: Summary) -> Verdict {
    if ratio.low > 1.0 {
        Verdict::Ahead
    } else if ratio.high < 1.0 {
        Verdict::Behind
    } else {
        Verdict::Level
    }
}

fn ratio_cell(ratio: Summary) -> String {
    let mark = match verdict(ratio) {
        Verdict::Ahead => "",
        Verdict::Level => "level ",
        Verdict::Behind => "BEHIND ",
    };
    let Summary { low, median, high } = ratio;
    format!("{mark}{median:.2} ({low:.2}–{high:.2})")
}

fn label(shape: Shape) -> String {
    let Shape { size, depth } = shape;
    if size.is_multiple_of(1024) {
        format!("{} KiB, depth {depth}", size / 1024)
    } else {
        format!("{size} B, depth {depth}")
    }
}

/// A number with the digits before its point in groups of three.
fn grouped(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    let (whole, rest) = match text.find('.') {
        Some(point) => text.split_at(point),
        None => (text.as_str(), ""),
    };
    let groups = whole.as_bytes().rchunks(3).rev();
    let groups = groups.map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(" ") + rest
}

/// The title of a table or of what is said.
fn print_title(out: &mut impl Write, title: &str, form: Form) -> io::Result<()> {
    match form {
        Form::Terminal => writeln!(out, "{title}"),
        Form::Markdown => writeln!(out, "## {title}\n"),
    }
}

/// A paragraph and an empty line; wrapped on a page, where a terminal wraps by itself.
fn print_paragraph(out: &mut impl Write, text: &str, form: Form) -> io::Result<()> {
    match form {
        Form::Terminal => writeln!(out, "{text}\n"),
        Form::Markdown => writeln!(out, "{}\n", wrapped(text, 100)),
    }
}

/// Breaks lines between words, as long as `width` allows.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(f64, f64)]) -> Table {
        let rounds: Vec<_> = pairs
            .iter()
            .map(|&(ours, peer)| Each { ours, peer })
            .collect();
        Table {
            kind: START,
            placement: None,
            rows: vec![Row::new("one".to_owned(), &rounds, START, |figure| *figure)],
        }
    }

    fn text(table: &Table, form: Form) -> String {
        let mut out = Vec::new();
        table.print(&mut out, form).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_are_aligned() {
        let table = table(&[(1.0, 2.0), (2.0, 2.0), (1.0, 3.0)]);
        let terminal = "From exec to listening, in milliseconds
       ours  peer             ratio
  one  1.00  2.00  2.00 (1.50–2.50)

";
        assert_eq!(text(&table, Form::Terminal), terminal);
        let page = text(&table, Form::Markdown);
        assert!(page.starts_with("## From exec"));
        assert!(page.contains("\n|:----|-----:|-----:|"), "{page}");
        let mut lines = page.lines().filter(|line| line.starts_with('|'));
        let width = |line: &str| line.chars().count();
        let first = lines.next().map(width);
        assert!(lines.all(|line| Some(width(line)) == first), "{page}");
    }

    #[test]
    fn what_is_not_ahead_is_said() {
        let tables = [
            table(&[(1.0, 2.0)]),
            table(&[(4.0, 2.0)]),
            table(&[(1.0, 2.0), (4.0, 2.0)]),
        ];
        let text = conclusion(&tables);
        assert!(text.starts_with("Ours is ahead in 1 of 3 cells. Behind in 1: From"));
        assert!(text.contains("(one 0.50). Not told apart from the peer in 1: "));
        let all = conclusion(&tables[..1]);
        assert_eq!(all, "Ours is ahead in 1 of 1 cells.");
        assert_eq!(
            ratio_cell(tables[1].rows[0].ratio),
            "BEHIND 0.50 (0.50–0.50)"
        );
    }

    #[test]
    fn the_same_cells_are_said_once() {
        let of_kind = |kind| Table {
            kind,
            placement: Some(Placement::Together),
            ..table(&[(4.0, 2.0)])
        };
        let text = conclusion(&[of_kind(REQUESTS), of_kind(BYTES)]);
        assert!(
            text.ends_with(
                "Behind in 2: Requests per second and Megabytes per second, on one CPU (one 0.50)."
            ),
            "{text}"
        );
    }

    #[test]
    fn numbers_and_labels_are_readable() {
        assert_eq!(grouped(1_234_567.4, 0), "1 234 567");
        assert_eq!(grouped(1234.5, 2), "1 234.50");
        assert_eq!(grouped(0.123_46, 3), "0.123");
        let label = |size, depth| label(Shape { size, depth });
        assert_eq!(label(256, 1), "256 B, depth 1");
        assert_eq!(label(65536, 128), "64 KiB, depth 128");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two  three", 7), "one two\nthree");
        assert_eq!(wrapped("longer than this", 3), "longer\nthan\nthis");
    }
}
