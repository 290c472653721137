//! What is done under valgrind: the queue's tests, for accesses that are not its own, and its
//! instructions, which are counted.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::{self, Progress};

use crate::cargo;
use crate::steps::{Counts, counted};

/// The test programs: those that are not random. What others do at random, they do under
/// AddressSanitizer (`cargo xtask fuzz`).
const TESTS: [&str; 9] = [
    "--package",
    "vhost-device-queue",
    "--lib",
    "--test",
    "hostile",
    "--test",
    "packed_ring",
    "--test",
    "split_ring",
];

/// What is not optimized here. The optimizer compares bytes that do not matter together with those
/// that do, and memcheck reports them as uninitialised.
const NOT_OPTIMIZED: [&str; 2] = ["vhost-device-driver", "vhost-device-queue"];

/// A driver and a device race here. Valgrind lets one thread run at a time, and they wait for each
/// other.
const RACES: &str = "r8_r9_what_the_index_shows_is_complete";

/// Runs the queue's tests under memcheck, and counts them.
pub(crate) fn check_memory(counts: &mut Counts) -> Result<()> {
    setup::require(
        "checking accesses",
        "valgrind",
        "valgrind",
        &Progress::new(),
    )?;
    let runner = "valgrind --quiet --error-exitcode=99 --leak-check=full \
        --show-leak-kinds=definite --errors-for-leak-kinds=definite";
    let mut command = cargo::command(["test", "--no-fail-fast"]);
    command
        .env(format!("CARGO_TARGET_{}_RUNNER", host()?), runner)
        .args(TESTS);
    for package in NOT_OPTIMIZED {
        command.arg("--config");
        command.arg(format!("profile.dev.package.{package}.opt-level=0"));
    }
    command.args(["--", "--skip", RACES]);
    let status = counted(&mut command, counts)?;
    ensure!(status.success(), "the queue's tests failed under valgrind");
    Ok(())
}

/// Compares the instructions of a chain with the baseline.
pub(crate) fn count_instructions() -> Result<()> {
    cargo::run(&[
        "run",
        "--release",
        "--package",
        "vhost-device-bench",
        "--",
        "queue",
        "--count",
    ])
}

/// The compiler's own target, as cargo's variables spell it.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for what it compiles")?;
    Ok(host.to_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_test_that_is_skipped_is_there() {
        let path = cargo::workspace().join("common/queue/tests/split_ring.rs");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(&format!("fn {RACES}()")));
        assert!(host().unwrap().contains("_LINUX_"));
    }
}
