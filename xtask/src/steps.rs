//! `cargo xtask test`: the steps, and the count of the tests in them.

use std::env;
use std::fmt;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost_device_guest::Arch;
use vhost_device_guest::setup::{self, Arm64, Background, Progress, SERIES, Series};

use crate::{arm64, cargo, demo, dependencies, fuzz, style, valgrind};

/// How many inputs each fuzz target gets: some tens of seconds.
const FUZZ_RUNS: u64 = 60_000;

/// A check that can fail.
struct Step {
    title: &'static str,
    /// Whether it is left out with `--quick`: it needs guests, or a program to be installed.
    slow: bool,
    action: Action,
}

/// What a step does.
enum Action {
    /// Runs cargo with these arguments.
    Cargo(&'static [&'static str]),
    /// Runs `cargo doc`, whose warnings are errors.
    Doc,
    /// Runs `cargo test` with these arguments, and counts the tests.
    Tests(&'static [&'static str]),
    /// Checks licences and sources of what is depended on.
    Dependencies,
    /// Runs each fuzz target for a while.
    Fuzz,
    /// Runs the queue's tests under valgrind.
    Valgrind,
    /// Counts the queue's instructions, and compares them.
    Instructions,
    /// Gets and builds what guests with kernels of this series need.
    SetUp(&'static Series),
    /// Runs the tests that have guests, with kernels of this series, and counts them.
    Guests(&'static Series),
    /// Gets what builds and runs programs for arm64.
    SetUpArm64,
    /// Runs the tests of the queue, the session and the devices under qemu-user.
    Arm64,
    /// Runs the demo in a guest of this architecture.
    Demo { arch: &'static Arch, stock: bool },
}

/// All of them, in the order in which they run: the quick ones first.
const STEPS: &[Step] = &[
    Step {
        title: "format",
        slow: false,
        action: Action::Cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        title: "format of the fuzz targets",
        slow: false,
        action: Action::Cargo(&["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--check"]),
    },
    Step {
        title: "lints",
        slow: false,
        action: Action::Cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    },
    Step {
        title: "API documentation",
        slow: false,
        action: Action::Doc,
    },
    Step {
        title: "build",
        slow: false,
        action: Action::Cargo(&["build", "--workspace"]),
    },
    Step {
        title: "unit and session tests",
        slow: false,
        action: Action::Tests(&[
            "--workspace",
            "--exclude",
            "vhost-device-arm64",
            "--exclude",
            "vhost-device-guest",
        ]),
    },
    Step {
        title: "dependencies",
        slow: false,
        action: Action::Dependencies,
    },
    Step {
        title: "fuzz targets",
        slow: true,
        action: Action::Fuzz,
    },
    Step {
        title: "the queue under valgrind",
        slow: true,
        action: Action::Valgrind,
    },
    Step {
        title: "the queue's instructions",
        slow: true,
        action: Action::Instructions,
    },
    Step {
        title: "set-up for arm64",
        slow: true,
        action: Action::SetUpArm64,
    },
    Step {
        title: "unit and session tests on arm64",
        slow: true,
        action: Action::Arm64,
    },
    Step {
        title: "instructions and static daemons for arm64",
        slow: true,
        action: Action::Tests(&["--package", "vhost-device-arm64"]),
    },
    Step {
        title: "set-up for guests",
        slow: true,
        action: Action::SetUp(&Series::NEWEST),
    },
    Step {
        title: "guest tests",
        slow: true,
        action: Action::Guests(&Series::NEWEST),
    },
    Step {
        title: "demo",
        slow: true,
        action: Action::Demo {
            arch: &Arch::X86_64,
            stock: false,
        },
    },
    Step {
        title: "demo on aarch64",
        slow: true,
        action: Action::Demo {
            arch: &Arch::AARCH64,
            stock: false,
        },
    },
    Step {
        title: "demo as it is the first time, on Debian's own kernel",
        slow: true,
        action: Action::Demo {
            arch: &Arch::X86_64,
            stock: true,
        },
    },
];

/// The steps that are run.
#[derive(Clone, Copy)]
pub(crate) enum Selection {
    All,
    /// Those that need no guest, and no program to be installed.
    Quick,
    /// The guest tests, on kernels of this series.
    Kernel(&'static Series),
}

/// The steps of [`Selection::Kernel`].
fn steps_on(series: &'static Series) -> [Step; 3] {
    let step = |title, action| Step {
        title,
        slow: true,
        action,
    };
    [
        step("build", Action::Cargo(&["build", "--workspace"])),
        step("set-up for guests", Action::SetUp(series)),
        step("guest tests", Action::Guests(series)),
    ]
}

/// Runs the steps up to the first that fails. The last line that it prints is
/// `N passed, N failed`.
pub(crate) fn run(selection: Selection) -> ExitCode {
    let started = Instant::now();
    let mut counts = Counts::default();
    let mut well = true;
    let mut setup = match selection {
        Selection::All => set_up_in_background(),
        Selection::Quick | Selection::Kernel(_) => None,
    };
    let own;
    let all = match selection {
        Selection::All | Selection::Quick => STEPS,
        Selection::Kernel(series) => {
            own = steps_on(series);
            &own
        }
    };
    let quick = matches!(selection, Selection::Quick);
    let mut steps = all.iter().filter(|step| !(quick && step.slow));
    for step in steps.by_ref() {
        well = run_step(step, &mut counts, &mut setup);
        if !well {
            // A step that fails without a test that does is a failure too.
            counts.failed = counts.failed.max(1);
            break;
        }
    }
    let style = style::stdout();
    for step in steps {
        println!("{}", style.faint(&format!("not run: {}", step.title)));
    }
    println!(
        "\n{} in {}, {counts}",
        if well {
            style.good("All steps passed")
        } else {
            style.bad("A step failed")
        },
        minutes(started.elapsed())
    );
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Begins with what guests need: their kernels are built while tests run that need none, which have
/// the processors first.
fn set_up_in_background() -> Option<Background> {
    let own = env::current_exe().ok()?;
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(own).arg("setup");
    // If it does not start, the step does it.
    Background::start(&mut command).ok()
}

/// Runs a step, adds its tests, and says whether it passed.
fn run_step(step: &Step, counts: &mut Counts, setup: &mut Option<Background>) -> bool {
    let style = style::stdout();
    println!("\n{}", style.bold(&format!("== {}", step.title)));
    let started = Instant::now();
    let result = step.action.run(counts, setup);
    let time = minutes(started.elapsed());
    match result {
        Ok(()) => {
            println!("{} {} ({time})", style.good("passed:"), step.title);
            true
        }
        Err(error) => {
            println!(
                "{} {} ({time}): {error:#}",
                style.bad("FAILED:"),
                step.title
            );
            false
        }
    }
}

impl Action {
    fn run(&self, counts: &mut Counts, setup: &mut Option<Background>) -> Result<()> {
        match self {
            Self::Cargo(args) => cargo::run(args),
            Self::Doc => document(),
            Self::Tests(args) => test(args, counts),
            Self::Dependencies => dependencies::check(),
            Self::Fuzz => fuzz::run(None, Some(FUZZ_RUNS)),
            Self::Valgrind => valgrind::check_memory(counts),
            Self::Instructions => valgrind::count_instructions(),
            Self::SetUp(series) => {
                if let Some(background) = setup.take() {
                    background.wait()?;
                }
                setup::run_with(Arch::ALL, series, &Progress::new())
            }
            Self::Guests(series) => test_guests(series, counts),
            Self::SetUpArm64 => Arm64::set_up(&Progress::new()).map(drop),
            Self::Arm64 => arm64::test(counts),
            Self::Demo { arch, stock } => {
                let status = demo::run(arch, false, *stock)?;
                ensure!(status == ExitCode::SUCCESS, "the guest missed something");
                Ok(())
            }
        }
    }
}

fn document() -> Result<()> {
    let mut command = cargo::command(["doc", "--workspace", "--no-deps"]);
    let status = command.env("RUSTDOCFLAGS", "-Dwarnings").status();
    ensure!(
        status.context("cannot run cargo")?.success(),
        "`cargo doc` failed"
    );
    Ok(())
}

/// Runs all tests that the arguments name, also behind one that fails.
fn test(args: &[&str], counts: &mut Counts) -> Result<()> {
    let mut command = cargo::command(["test", "--no-fail-fast"]);
    command.args(args).arg("--");
    let status = counted(&mut command, counts)?;
    ensure!(status.success(), "`cargo test` failed");
    Ok(())
}

/// Runs all tests that have guests, but those that need a newer series: these it names.
fn test_guests(series: &Series, counts: &mut Counts) -> Result<()> {
    const PACKAGE: [&str; 2] = ["--package", "vhost-device-guest"];
    let newer: Vec<_> = series.newer_tests().collect();
    let mut command = cargo::command(["test", "--no-fail-fast"]);
    command.args(PACKAGE).env(SERIES, series.name).arg("--");
    command.args(newer.iter().flat_map(|name| ["--skip", name]));
    let status = counted(&mut command, counts)?;
    for name in newer {
        let mut list = cargo::command(["test", "--quiet"]);
        list.args(PACKAGE)
            .args(["--", "--list", "--format=terse", &name]);
        let output = list.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "cannot list the guest tests");
        let list = String::from_utf8_lossy(&output.stdout);
        for test in list.lines().filter_map(|line| line.strip_suffix(": test")) {
            println!("left out, as it needs a newer Linux: {test}");
            counts.ignore(1);
        }
    }
    ensure!(status.success(), "`cargo test` failed");
    Ok(())
}

/// Runs a command whose arguments end with those of test programs, and counts the tests in what it
/// prints.
pub(crate) fn counted(command: &mut Command, counts: &mut Counts) -> Result<ExitStatus> {
    command.stdout(Stdio::piped());
    if io::stdout().is_terminal() {
        command.arg("--color=always");
    }
    let name = command.get_program().to_owned();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", name.display()))?;
    let stdout = child.stdout.take().context("it has no output")?;
    let mut own = io::stdout().lock();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("cannot read from {}", name.display()))?;
        own.write_all(&line)?;
        own.write_all(b"\n")?;
        if let Some(more) = Counts::parse(&String::from_utf8_lossy(&line)) {
            *counts += more;
        }
    }
    child
        .wait()
        .with_context(|| format!("cannot wait for {}", name.display()))
}

/// How many tests ended in which way.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Those of libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let part = counts.split("; ").find(|part| part.ends_with(what))?;
            part.split_once(' ')?.0.parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    /// Adds tests that were not run.
    pub(crate) fn ignore(&mut self, tests: usize) {
        self.ignored += tests as u64;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ignored\n{} passed, {} failed",
            self.ignored, self.passed, self.failed
        )
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.ignored += more.ignored;
    }
}

pub(crate) fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_tests_are_counted() {
        let failed = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; \
            3 filtered out; finished in 0.52s";
        let mut counts = Counts::parse(failed).unwrap();
        let coloured = "test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 1 passed; 0 failed; \
            0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        counts += Counts::parse(coloured).unwrap();
        let expected = Counts {
            passed: 13,
            failed: 2,
            ignored: 1,
        };
        assert_eq!(counts, expected);
        assert_eq!(Counts::parse("test result_is_fine ... ok"), None);
    }
}
