//! `cargo xtask fuzz`: the targets in `tests/fuzz`, with cargo-fuzz and AddressSanitizer.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::{self, Build, Progress};

use crate::cargo;

/// The version of cargo-fuzz that builds and runs the targets.
const CARGO_FUZZ: &str = "0.13.2";

/// The longest input. Longer ones are more of the same.
const MAX_LEN: &str = "-max_len=4096";

/// Runs one target, or all in turn, for so many inputs each; until something is found when there
/// is no number.
pub(crate) fn run(target: Option<&str>, runs: Option<u64>) -> Result<()> {
    let mut targets = targets()?;
    if let Some(target) = target {
        targets.retain(|name| name == target);
        ensure!(
            !targets.is_empty(),
            "there is no tests/fuzz/fuzz_targets/{target}.rs"
        );
    }
    ensure!(
        runs.is_some() || targets.len() == 1,
        "say which target, or for how many inputs (--runs): {}",
        targets.join(", ")
    );
    // Not optimized, which is built in half the time: it only calls other programs.
    let build = Build {
        options: &["--debug"],
        ..Build::default()
    };
    let cargo_fuzz = setup::install_crate("cargo-fuzz", CARGO_FUZZ, &build, &Progress::new())?;
    for target in targets {
        let mut command = Command::new(&cargo_fuzz);
        command
            .args(["run", "--fuzz-dir", "tests/fuzz"])
            .arg(&target)
            .args(["--", MAX_LEN, "-print_final_stats=1"])
            .args(runs.map(|runs| format!("-runs={runs}")))
            .current_dir(cargo::workspace())
            .env("CARGO_TARGET_DIR", cargo::target_dir()?.join("fuzz"))
            // AddressSanitizer is a nightly compiler's.
            .env("RUSTUP_TOOLCHAIN", "nightly");
        for variable in ["CARGO", "RUSTC", "RUSTDOC"] {
            command.env_remove(variable);
        }
        let status = command.status().context("cannot run cargo-fuzz")?;
        ensure!(
            status.success(),
            "{target} found something: see the input above, and run it again with `cargo +nightly \
             fuzz run --fuzz-dir tests/fuzz {target} INPUT`"
        );
    }
    Ok(())
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let directory = cargo::workspace().join("tests/fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).context("cannot find the fuzz targets")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|name| name.to_str());
            names.extend(name.map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_in_the_manifest() {
        let manifest = cargo::workspace().join("tests/fuzz/Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        let targets = targets().unwrap();
        assert!(targets.contains(&"split_ring".to_owned()));
        for target in targets {
            let path = format!("path = \"fuzz_targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target}");
        }
    }
}
