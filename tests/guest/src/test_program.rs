//! A package's test program, run in a guest.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, RunningGuest};

/// A test program, and the programs of its package, which it may start.
#[derive(Debug)]
pub struct TestProgram {
    path: PathBuf,
    package_programs: Vec<PathBuf>,
    names: BTreeSet<String>,
}

impl TestProgram {
    /// Builds `tests/<name>.rs` of a package, as `cargo test` does.
    ///
    /// # Errors
    /// When it cannot be built, or has no tests.
    pub fn build(package: &str, name: &str) -> Result<Self> {
        let output = cargo()
            .args(["test", "--no-run", "--message-format=json"])
            .args(["--package", package, "--test", name])
            .args((!cfg!(debug_assertions)).then_some("--release"))
            .stdin(Stdio::null())
            .output()
            .context("cannot run cargo")?;
        ensure!(
            output.status.success(),
            "cannot build the test {name} of {package}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let messages = String::from_utf8_lossy(&output.stdout);
        let path = executables(&messages, "test").next();
        let path = path.with_context(|| format!("cargo built no test {name} of {package}"))?;
        Ok(Self {
            names: list(&path)?,
            package_programs: executables(&messages, "bin").collect(),
            path,
        })
    }

    /// The names of its tests, also of those that are ignored outside of a guest.
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

impl Guest {
    /// Puts a test program into the guest, and the programs of its package.
    ///
    /// # Errors
    /// When one is not there, or lacks a library.
    pub fn test_program(self, tests: &TestProgram) -> Result<Self> {
        let programs = tests.package_programs.iter().chain([&tests.path]);
        programs
            .into_iter()
            .try_fold(self, |guest, path| guest.program(path))
    }
}

impl RunningGuest {
    /// Runs all tests of a program one after the other, also the ignored ones, with these
    /// variables (`NAME=value`).
    ///
    /// # Errors
    /// When the guest ends, or its time does. A test that fails is in the results.
    pub fn run_tests(&mut self, tests: &TestProgram, variables: &[&str]) -> Result<TestResults> {
        let variables = variables.join(" ");
        let path = tests.path.display();
        // One after the other: the guest's hardware is there once.
        let line = format!("{variables} '{path}' --include-ignored --test-threads=1");
        let output = self.run(&line)?;
        Ok(TestResults {
            passed: passed(&output.output),
            expected: tests.names.clone(),
            status: output.status,
            output: output.output,
        })
    }
}

/// What became of the tests of a program.
#[derive(Debug)]
pub struct TestResults {
    passed: BTreeSet<String>,
    expected: BTreeSet<String>,
    status: i32,
    output: String,
}

impl TestResults {
    /// Panics unless every test of the program was run, and passed.
    #[track_caller]
    pub fn all_passed(&self) {
        let Self { output, .. } = self;
        let missing: Vec<_> = self.expected.difference(&self.passed).collect();
        assert!(missing.is_empty(), "{missing:?} did not pass:\n{output}");
        assert_eq!(self.status, 0, "{output}");
    }
}

/// The cargo that runs this, or else the first in the path, in the workspace.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// The programs of this kind that cargo says it has built.
fn executables(messages: &str, kind: &'static str) -> impl Iterator<Item = PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    messages.filter_map(move |message: Value| {
        let kinds = message["target"]["kind"].as_array()?;
        let wanted = kinds.iter().any(|own| own == kind);
        let path = message["executable"].as_str()?;
        wanted.then(|| path.into())
    })
}

/// The names of a program's tests.
fn list(path: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new(path)
        .args(["--list", "--format=terse"])
        .output();
    let output = output.with_context(|| format!("cannot run {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    ensure!(!names.is_empty(), "{} has no tests: {text}", path.display());
    Ok(names)
}

/// The names in libtest's lines `test NAME ... ok`.
fn passed(output: &str) -> BTreeSet<String> {
    let names = output.lines().filter_map(|line| {
        let name = line.strip_prefix("test ")?;
        name.strip_suffix(" ... ok")
    });
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passed_is_counted() {
        let output = "running 4 tests\ntest one ... ok\ntest two ... FAILED\n\
            test three ... ignored, for a reason\ntest four ... ok\nok\n";
        let expected = ["four", "one"].map(str::to_owned);
        assert_eq!(passed(output), BTreeSet::from(expected));
    }

    #[test]
    fn a_test_that_was_not_run_is_missed() {
        let results = |passed: &[&str]| TestResults {
            passed: passed.iter().map(|&name| name.to_owned()).collect(),
            expected: BTreeSet::from(["one".to_owned()]),
            status: 0,
            output: String::new(),
        };
        results(&["one"]).all_passed();
        assert!(std::panic::catch_unwind(|| results(&[]).all_passed()).is_err());
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"lib\"]},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"bin\"]},\"executable\":\"/d/daemon\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"test\"]},\"executable\":\"/d/deps/t\"}\n";
        let find = |kind| executables(messages, kind).collect::<Vec<_>>();
        assert_eq!(find("bin"), [Path::new("/d/daemon")]);
        assert_eq!(find("test"), [Path::new("/d/deps/t")]);
    }
}
