//! How many cycles a turn takes on some cores, as `llvm-mca` knows them, beside `virtio-queue`.
//!
//! What qemu-user executed of a turn is given to `llvm-mca` as one straight line, over and over. It
//! knows how long each instruction takes, what depends on what, and how many a core does at once. It
//! takes every load for a hit in the first cache and every branch for foreseen. What a barrier costs
//! depends on what is in flight, which it does not know: barriers are left out and counted apart.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::Arm64;

use crate::disassembly::{Instruction, Order};
use crate::probes::{BATCH, Probes, Run};

/// The cores: what they are called, and what `llvm-mca` calls them.
const CORES: [(&str, &str); 5] = [
    ("Cortex-A55", "cortex-a55"),
    ("Cortex-A76", "cortex-a76"),
    ("Neoverse N1", "neoverse-n1"),
    ("Neoverse N2", "neoverse-n2"),
    ("Neoverse V2", "neoverse-v2"),
];

/// The turns: of what, and how the probes are run for it.
const TURNS: [(&str, &str, &str); 3] = [
    ("split ring", "split", "probe_turn"),
    ("packed ring", "packed", "probe_turn"),
    ("virtio-queue", "reference", "probe_reference"),
];

/// How often a turn is repeated: what is in flight at the end of one meets the next.
const REPEATED: u32 = 10;

/// What is put for the place that a branch or an address is relative to.
const PLACE: &str = "place";

/// The page, in Markdown.
///
/// # Errors
/// When the probes cannot be built or run, or `llvm-mca` does not take them.
pub fn page() -> Result<String> {
    let tools = Arm64::find()?;
    let probes = Probes::build()?;
    let mut turns = Vec::new();
    for (title, ring, probe) in TURNS {
        let trace = probes.trace(ring)?;
        let run = probes.runs(&trace, probe)?.pop();
        let run = run.context("the probes did no turn")?;
        let cycles = CORES.map(|(_, core)| cycles(&tools, core, &run));
        let cycles = cycles.into_iter().collect::<Result<Vec<_>>>()?;
        turns.push(Turn::new(title, &run, cycles));
    }
    Ok(write(&turns, &tools.versions()?.replace(", ", ",\n")))
}

/// What is said of a turn.
#[derive(Debug)]
struct Turn {
    title: &'static str,
    instructions: usize,
    acquire: usize,
    release: usize,
    full: usize,
    atomic: usize,
    /// For each chain, on each core.
    cycles: Vec<f64>,
}

impl Turn {
    fn new(title: &'static str, run: &Run<'_>, cycles: Vec<f64>) -> Self {
        let count = |order| {
            let orders = run.iter().filter_map(|instruction| instruction.order());
            orders.filter(|own| *own == order).count()
        };
        Self {
            title,
            instructions: run.len(),
            acquire: count(Order::Acquire),
            release: count(Order::Release),
            full: count(Order::Full),
            atomic: count(Order::Atomic),
            cycles,
        }
    }
}

fn write(turns: &[Turn], versions: &str) -> String {
    let mut page = format!(
        "# The queue on arm64, by its instructions

No arm64 machine was measured. qemu-user executes turns of the queue, instruction by instruction,
and `llvm-mca` says how many cycles a core takes for them: with warm caches, every branch foreseen,
and without barriers, as what one costs depends on what is in flight. Figures are for comparing the
columns, not for foretelling a machine's time. A turn takes and returns {BATCH} chains of two
descriptors, shows the answers and finds out whether to call. `virtio-queue` is version 0.18, with
everything borrowed and reused. Built for release, for any arm64 processor.

Made with {versions}.

Repeat it with:

```
cargo xtask arm64 cycles --write
```

## Cycles per chain, without barriers

"
    );
    let titles = turns.iter().map(|turn| turn.title);
    let mut heading = vec![String::new()];
    heading.extend(titles.map(str::to_owned));
    heading.extend(["split ahead", "packed ahead"].map(str::to_owned));
    let mut rows = vec![heading];
    for (core, (name, _)) in CORES.iter().enumerate() {
        let cycles: Vec<f64> = turns.iter().map(|turn| turn.cycles[core]).collect();
        let mut row = vec![(*name).to_owned()];
        row.extend(cycles.iter().map(|cycles| format!("{cycles:.0}")));
        if let [split, packed, reference] = cycles[..] {
            row.extend([split, packed].map(|own| format!("{:.2}", reference / own)));
        }
        rows.push(row);
    }
    table(&mut page, &rows);
    page.push_str("\n## What a turn executes\n\n");
    let heading = [
        "",
        "instructions per chain",
        "acquire",
        "release",
        "full barriers",
        "atomic updates",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for turn in turns {
        let per_chain = turn.instructions as f64 / BATCH as f64;
        let mut row = vec![turn.title.to_owned(), format!("{per_chain:.0}")];
        let counts = [turn.acquire, turn.release, turn.full, turn.atomic];
        row.extend(counts.map(|count| count.to_string()));
        rows.push(row);
    }
    table(&mut page, &rows);
    page
}

/// Writes a table, whose first row is its heading.
fn table(page: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string does not fail.
            let _ = if column == 0 {
                write!(page, "| {cell:<width$} |")
            } else {
                write!(page, " {cell:>width$} |")
            };
        }
        page.push('\n');
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                page.push_str(&if column == 0 {
                    format!("|:{dashes}|")
                } else {
                    format!("{dashes}:|")
                });
            }
            page.push('\n');
        }
    }
}

/// How many cycles a chain takes on a core.
fn cycles(tools: &Arm64, core: &str, run: &Run<'_>) -> Result<f64> {
    let mut mca = tools
        .mca()
        .arg(format!("--mcpu={core}"))
        .arg(format!("--iterations={REPEATED}"))
        // What is called is in the line: a call is a branch.
        .args(["--call-latency=1", "--resource-pressure=false"])
        .args(["--instruction-info=false"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run llvm-mca")?;
    let mut stdin = mca.stdin.take().context("llvm-mca has no input")?;
    let line: String = run.iter().filter_map(|i| assembly(i)).collect();
    // It reads everything before it writes anything.
    stdin.write_all(line.as_bytes())?;
    drop(stdin);
    let output = mca.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "llvm-mca failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let total = total_cycles(&text).context("llvm-mca names no cycles")?;
    Ok(total / f64::from(REPEATED) / BATCH as f64)
}

/// The number in `Total Cycles:      1234`.
fn total_cycles(text: &str) -> Option<f64> {
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("Total Cycles:"));
    total?.trim().parse().ok()
}

/// A line of assembly; none for a barrier.
fn assembly(instruction: &Instruction) -> Option<String> {
    let Instruction { name, operands } = instruction;
    if ["dmb", "dsb", "isb"].contains(&name.as_str()) {
        return None;
    }
    let relative = ["b", "bl", "cbz", "cbnz", "tbz", "tbnz", "adr", "adrp"];
    if relative.contains(&name.as_str()) || name.starts_with("b.") {
        let before = operands
            .rsplit_once(',')
            .map_or(String::new(), |(before, _)| format!("{before}, "));
        return Some(format!("{name} {before}{PLACE}\n"));
    }
    Some(format!("{name} {operands}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_relative_to_a_place_loses_it_and_barriers_go() {
        let of = |name: &str, operands: &str| {
            assembly(&Instruction {
                name: name.to_owned(),
                operands: operands.to_owned(),
            })
        };
        assert_eq!(of("dmb", "ish"), None);
        assert_eq!(of("b.ne", "4007c0").unwrap(), "b.ne place\n");
        assert_eq!(of("tbz", "w0, #3, 4007c0").unwrap(), "tbz w0, #3, place\n");
        assert_eq!(of("adrp", "x0, 49a000").unwrap(), "adrp x0, place\n");
        assert_eq!(of("stlrh", "w0, [x1]").unwrap(), "stlrh w0, [x1]\n");
    }

    #[test]
    fn tables_have_a_column_for_each_cell() {
        let mut page = String::new();
        table(
            &mut page,
            &[vec!["".into(), "b".into()], vec!["aa".into(), "10".into()]],
        );
        assert_eq!(page, "|    |  b |\n|:---|---:|\n| aa | 10 |\n");
        assert_eq!(
            total_cycles("Instructions: 2\nTotal Cycles:      12\n"),
            Some(12.0)
        );
    }
}
