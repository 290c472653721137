//! Instructions for a chain, counted by callgrind: the same in each run of the same program, however
//! busy the machine is. So a change of some percent can be told, where times cannot.
//!
//! This program runs itself under valgrind. The part inside does each loop twice, and callgrind
//! writes down what each time took; the first time is for what is allocated once.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use vhost_device_driver::{PackedRing, Ring, SplitRing};
use vhost_device_guest::setup::{self, Progress};

use super::measure::{CHAINS, Loop, Shape, shapes};
use super::sides::{Device, Ours};
use crate::machine;
use crate::programs::workspace;

/// The counts that others are compared with, in the workspace.
const BASELINE: &str = "tests/bench/instructions.txt";

/// By how many percent a count may differ from the baseline.
const TOLERANCE: f64 = 2.0;

/// What is counted, in the order in which it is.
fn cells() -> impl Iterator<Item = (bool, Shape)> {
    let kinds = [false, true].into_iter();
    // What the flags cost is one comparison a batch: one of the two is enough.
    kinds.flat_map(|packed| {
        let shapes = shapes().into_iter().filter(|shape| shape.event_idx);
        shapes.map(move |shape| (packed, shape))
    })
}

fn label((packed, shape): (bool, Shape)) -> String {
    let kind = if packed { "packed" } else { "split" };
    format!("{kind}, {}", super::label(shape))
}

/// Counts, prints, and compares with the baseline, or writes it.
pub(super) fn run(write: bool) -> Result<()> {
    let compiler = machine::compiler()?;
    let counts = count()?;
    let mut page = format!("# Instructions for a chain, on x86_64, by {compiler}\n");
    for (cell, count) in cells().zip(&counts) {
        writeln!(page, "{count:.1}\t{}", label(cell))?;
    }
    let path = workspace().join(BASELINE);
    if write {
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("Wrote {BASELINE}");
        return Ok(());
    }
    print!("{page}");
    let baseline =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if baseline.lines().next() != page.lines().next() {
        println!(
            "Not compared: {BASELINE} is of another compiler. `cargo xtask bench queue --count \
             --write` makes one of this."
        );
        return Ok(());
    }
    compare(&baseline, &page)
}

/// Fails with all counts of `page` that are not as in `baseline`.
fn compare(baseline: &str, page: &str) -> Result<()> {
    let mut wrong = String::new();
    let mut old = baseline.lines().skip(1);
    for new in page.lines().skip(1) {
        let old = old.next().unwrap_or("(nothing)");
        if !is_close(old, new) {
            writeln!(wrong, "  {old}  became  {new}")?;
        }
    }
    ensure!(
        old.next().is_none(),
        "{BASELINE} has more lines than there are counts"
    );
    ensure!(
        wrong.is_empty(),
        "more than {TOLERANCE} % away from {BASELINE}:\n{wrong}If that is what you want, write it \
         with `cargo xtask bench queue --count --write`"
    );
    Ok(())
}

fn is_close(old: &str, new: &str) -> bool {
    let parse = |line: &str| {
        let (count, label) = line.split_once('\t')?;
        Some((count.parse::<f64>().ok()?, label.to_owned()))
    };
    match (parse(old), parse(new)) {
        (Some((old, old_label)), Some((new, label))) => {
            label == old_label && (new - old).abs() <= old * TOLERANCE / 100.0
        }
        _ => false,
    }
}

/// Instructions for a chain, of each cell.
fn count() -> Result<Vec<f64>> {
    setup::require(
        "counting instructions",
        "valgrind",
        "valgrind",
        &Progress::new(),
    )?;
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let out = directory.path().join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--combine-dumps=no"])
        .args([
            "--dump-before=*count::counted*",
            "--dump-before=*count::over*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().context("cannot find the running program")?)
        .args(["queue", "--count", "--inside", "0"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run valgrind")?;
    ensure!(
        output.status.success(),
        "valgrind failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let parts = (0..cells().count()).map(|cell| {
        // Parts are counted from 1: what was before the loop, and the loop, of either time.
        let part = directory.path().join(format!("out.{}", 4 * cell + 4));
        Ok(total(&part)? as f64 / CHAINS as f64)
    });
    parts.collect()
}

/// The instructions in a file of callgrind's.
fn total(part: &Path) -> Result<u64> {
    let text = fs::read_to_string(part)
        .with_context(|| format!("callgrind did not write {}", part.display()))?;
    let Some(total) = text.lines().find_map(|line| line.strip_prefix("totals: ")) else {
        bail!("{} has no totals", part.display());
    };
    total
        .trim()
        .parse()
        .context("callgrind's total is no number")
}

/// The part under callgrind: all loops.
pub(super) fn inside() -> Result<()> {
    for (packed, shape) in cells() {
        if packed {
            run_loop::<PackedRing>(shape, true)?;
        } else {
            run_loop::<SplitRing>(shape, false)?;
        }
    }
    Ok(())
}

fn run_loop<R: Ring>(shape: Shape, packed: bool) -> Result<()> {
    let mut cell = Loop::<R, _>::new(shape, |place| Ours::new(place, packed))?;
    for _ in 0..2 {
        cell.turn(|device| {
            let bytes = counted(device, shape.batch);
            over();
            bytes
        })?;
    }
    Ok(())
}

/// What is counted.
#[inline(never)]
fn counted<D: Device>(device: &mut D, batch: usize) -> u64 {
    super::measure::empty(device, batch)
}

/// Where counting ends: callgrind writes its counts down when this is called.
#[inline(never)]
fn over() {
    std::hint::black_box(());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_moved_are_told() {
        let baseline = "# head\n100.0\ta\n50.0\tb\n";
        compare(baseline, "# head\n102.0\ta\n49.0\tb\n").unwrap();
        for (page, what) in [
            ("# head\n102.1\ta\n50.0\tb\n", "102.1"),
            ("# head\n97.9\ta\n50.0\tb\n", "97.9"),
            ("# head\n100.0\tc\n50.0\tb\n", "c"),
            ("# head\n100.0\ta\n50.0\tb\n1.0\tc\n", "(nothing)"),
            ("# head\n100.0\ta\n", "more lines"),
        ] {
            let error = compare(baseline, page).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
