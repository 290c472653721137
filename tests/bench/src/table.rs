//! Tables of both sides, for a terminal and for a page of `docs/`.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::programs::Each;
use crate::stats::{Better, Summary};

/// How tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// In columns.
    Terminal,
    /// As a page.
    Markdown,
}

/// A kind of figure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// The title of its tables.
    pub(crate) title: &'static str,
    /// What is better.
    pub(crate) better: Better,
    /// Digits behind the point.
    pub(crate) digits: usize,
}

/// A row of a table: the medians, and the ratios of each round.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    label: String,
    medians: Each<f64>,
    ratio: Summary,
}

/// Tables of one kind of figure.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Which kind.
    pub(crate) kind: Kind,
    /// Where it was measured, if that matters: the end of the title.
    pub(crate) place: String,
    /// The figures.
    pub(crate) rows: Vec<Row>,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ahead,
    /// The middle half of the rounds has both.
    Level,
    Behind,
}

impl Row {
    /// What all rounds gave for one thing.
    pub(crate) fn new<T>(
        label: String,
        rounds: &[Each<T>],
        kind: Kind,
        of: impl Fn(&T) -> f64,
    ) -> Self {
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
        self.kind.title.to_owned() + &self.place
    }

    /// Writes it, and an empty line.
    pub(crate) fn print(&self, out: &mut impl Write, form: Form) -> io::Result<()> {
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
pub(crate) fn conclusion(tables: &[Table]) -> String {
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
        let (place, rows) = (table.place.clone(), rows.join("; "));
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
    if ratio.low.is_infinite() {
        return "the peer has none".to_owned();
    }
    let mark = match verdict(ratio) {
        Verdict::Ahead => "",
        Verdict::Level => "level ",
        Verdict::Behind => "BEHIND ",
    };
    let Summary { low, median, high } = ratio;
    format!("{mark}{median:.2} ({low:.2}–{high:.2})")
}

/// A number with the digits before its point in groups of three; an infinite one is none.
pub(crate) fn grouped(number: f64, digits: usize) -> String {
    if number.is_infinite() {
        return "–".to_owned();
    }
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
pub(crate) fn print_title(out: &mut impl Write, title: &str, form: Form) -> io::Result<()> {
    match form {
        Form::Terminal => writeln!(out, "{title}"),
        Form::Markdown => writeln!(out, "## {title}\n"),
    }
}

/// A paragraph and an empty line; wrapped on a page, where a terminal wraps by itself.
pub(crate) fn print_paragraph(out: &mut impl Write, text: &str, form: Form) -> io::Result<()> {
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

    const TIME: Kind = Kind {
        title: "From fork to the first connection, in milliseconds",
        better: Better::Less,
        digits: 2,
    };
    const REQUESTS: Kind = Kind {
        title: "Requests per second",
        better: Better::More,
        digits: 0,
    };
    const BYTES: Kind = Kind {
        title: "Megabytes per second",
        ..REQUESTS
    };

    fn table(pairs: &[(f64, f64)]) -> Table {
        let rounds: Vec<_> = pairs
            .iter()
            .map(|&(ours, peer)| Each { ours, peer })
            .collect();
        Table {
            kind: TIME,
            place: String::new(),
            rows: vec![Row::new("one".to_owned(), &rounds, TIME, |figure| *figure)],
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
        let terminal = "From fork to the first connection, in milliseconds
       ours  peer             ratio
  one  1.00  2.00  2.00 (1.50–2.50)

";
        assert_eq!(text(&table, Form::Terminal), terminal);
        let page = text(&table, Form::Markdown);
        assert!(page.starts_with("## From fork"));
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
            place: ", on one CPU".to_owned(),
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
    fn numbers_are_readable() {
        assert_eq!(grouped(1_234_567.4, 0), "1 234 567");
        assert_eq!(grouped(1234.5, 2), "1 234.50");
        assert_eq!(grouped(0.123_46, 3), "0.123");
        assert_eq!(grouped(f64::INFINITY, 1), "–");
        let none = Summary::of_ratios([(1.0, 0.0), (2.0, 0.0)], Better::More);
        assert_eq!(
            (ratio_cell(none), verdict(none)),
            ("the peer has none".to_owned(), Verdict::Ahead)
        );
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two  three", 7), "one two\nthree");
        assert_eq!(wrapped("longer than this", 3), "longer\nthan\nthis");
    }
}
