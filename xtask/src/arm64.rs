//! `cargo xtask arm64`: the daemons built for arm64, and the tests of the queue, the session and
//! the devices run there, under qemu-user.
//!
//! The test programs and the daemons that they start are arm64's; the system calls are this
//! machine's. Emulation shows what compiles to something else there. It does not show weak
//! ordering, as it is done on a processor that orders more: that is for loom (`tests/model`) and
//! for the instructions themselves (`tests/arm64`).

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use vhost_device_arm64::build::{self, Built};
use vhost_device_arm64::cycles;
use vhost_device_guest::setup::{ARM64_TARGET, Arm64, Progress};

use crate::steps::{Counts, counted};
use crate::style;

/// The variable by which tests find out how daemons are started (`tests/rig`).
const RUNNER: &str = "VHOST_DEVICE_TEST_RUNNER";

/// What is tested: all but the packages that are for this machine, and those that have guests.
const TESTED: [&str; 10] = [
    "--workspace",
    "--exclude",
    "vhost-device-arm64",
    "--exclude",
    "vhost-device-bench",
    "--exclude",
    "vhost-device-guest",
    "--exclude",
    "xtask",
    "--no-fail-fast",
];

/// The page with the cycles, in the workspace.
const CYCLES: &str = "docs/bench-arm64.md";

/// A test that cannot pass under qemu-user.
struct Skipped {
    /// Its package's directory, and its program there.
    package: &'static str,
    target: &'static str,
    test: &'static str,
    reason: &'static str,
}

/// All of them. Those that are `#[ignore]`d, as they need the hardware of the host guest, are not
/// among them: they are ignored here as everywhere.
const SKIPPED: [Skipped; 14] = [
    Skipped {
        package: "common/backend",
        target: "reconnect",
        test: "v7_a_thousand_connections_leave_nothing_behind",
        reason: "qemu-user gives the kernel twice the room for file descriptors that recvmsg was \
                 given, and does not close those that the program has no room for",
    },
    killed("v10_back_ends_on_split_rings_are_killed"),
    killed("v10_back_ends_on_packed_rings_are_killed"),
    killed("v10_back_ends_on_split_rings_in_order_are_killed"),
    killed("v10_back_ends_on_packed_rings_in_order_are_killed"),
    exhausted("memory_is_lost_where_private_memory_is_used_up"),
    exhausted("memory_is_lost_where_address_space_is_used_up"),
    exhausted("memory_is_lost_where_mappings_are_used_up"),
    exhausted("who_cannot_have_zeros_waits_and_holds_nobody_up"),
    exhausted("who_may_have_no_file_is_served_and_loses_its_memory"),
    opens("vhost-device-rng", "process"),
    opens("vhost-device-i2c", "adapter"),
    opens("vhost-device-gpio", "gpio"),
    opens("vhost-device-scmi", "scmi"),
];

const fn killed(test: &'static str) -> Skipped {
    Skipped {
        package: "common/backend",
        target: "killed",
        test,
        reason: "it kills thousands of processes, each of which takes many times longer to get \
                 anywhere under emulation",
    }
}

const fn exhausted(test: &'static str) -> Skipped {
    Skipped {
        package: "common/backend",
        target: "exhausted",
        test,
        reason: "it starts itself under limits, which qemu-user keeps from the kernel or suffers from itself",
    }
}

const fn opens(package: &'static str, target: &'static str) -> Skipped {
    Skipped {
        package,
        target,
        test: "nothing_is_opened_when_the_daemon_is_ready",
        reason: "qemu-user has no seccomp filters for the programs that it runs",
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Get what builds and runs programs for arm64, as the other commands do before
    ///
    /// Installs gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and unpacks Debian's rustc-web
    /// 1.96 with the standard library for arm64, llvm-mca 22 and qemu-user 10.0 into
    /// $XDG_CACHE_HOME/vhost-device or ~/.cache/vhost-device (600 MB).
    Setup,
    /// Build the daemons for arm64, for release
    Build {
        /// Link them statically: they run on an arm64 Linux whatever it has
        #[arg(long = "static")]
        linked_statically: bool,
    },
    /// Run the tests of the queue, the session and the devices under qemu-user
    Test,
    /// Say how many cycles a chain takes on some arm64 cores, beside virtio-queue
    ///
    /// By the instructions that qemu-user executes, and llvm-mca.
    Cycles {
        /// Write the page in docs/ too
        #[arg(long)]
        write: bool,
    },
}

/// Does it.
pub(crate) fn run(action: &Action) -> Result<()> {
    let tools = Arm64::set_up(&Progress::new())?;
    match action {
        Action::Setup => println!("Programs can be built for arm64: {}", tools.versions()?),
        Action::Build { linked_statically } => {
            for program in build_daemons(&tools, *linked_statically)? {
                println!("{}", program.display());
            }
        }
        Action::Cycles { write } => {
            let page = cycles::page()?;
            print!("{page}");
            if *write {
                fs::write(build::workspace().join(CYCLES), page)
                    .with_context(|| format!("cannot write {CYCLES}"))?;
            }
        }
        Action::Test => {
            let mut counts = Counts::default();
            let result = test(&mut counts);
            println!("{counts}");
            result?;
        }
    }
    Ok(())
}

/// Builds the daemons and says where they are. Both ways of linking have a directory.
fn build_daemons(tools: &Arm64, linked_statically: bool) -> Result<Vec<PathBuf>> {
    let (mut command, directory) = if linked_statically {
        (
            build::static_cargo(tools, ["build", "--release"])?,
            "static",
        )
    } else {
        (build::cargo(tools, ["build", "--release"])?, "dynamic")
    };
    let directory = build::target_dir()?.join(directory);
    fs::create_dir_all(&directory).context("cannot make a directory for the daemons")?;
    let built = build::programs(&mut command)?;
    let programs = built.into_iter().map(|built| {
        let name = built.executable.file_name().context("a nameless program")?;
        let to = directory.join(name);
        fs::copy(&built.executable, &to)
            .with_context(|| format!("cannot copy {}", built.executable.display()))?;
        Ok(to)
    });
    programs.collect()
}

/// Builds the tests, runs them under qemu-user, and counts them.
pub(crate) fn test(counts: &mut Counts) -> Result<()> {
    let tools = Arm64::find()?;
    let mut command = build::cargo(&tools, ["test", "--no-run"])?;
    command.args(TESTED).env("CARGO_PROFILE_DEV_DEBUG", "0");
    let built = build::programs(&mut command)?;
    let tests: Vec<_> = built.into_iter().filter(|built| built.test).collect();
    ensure!(!tests.is_empty(), "cargo built no tests");
    let mut failed = Vec::new();
    let mut skipped = Vec::new();
    for program in &tests {
        let skips: Vec<_> = SKIPPED.iter().filter(|skip| skip.is_in(program)).collect();
        if !run_tests(program, &tools, &skips, counts)? {
            failed.push(program.executable.display().to_string());
        }
        skipped.extend(skips);
    }
    let style = style::stdout();
    for Skipped { package, test, .. } in &SKIPPED {
        let known = skipped
            .iter()
            .any(|skip| (skip.package, skip.test) == (*package, *test));
        ensure!(
            known,
            "{package} has no test {test}, which is to be skipped"
        );
    }
    for Skipped { test, reason, .. } in skipped {
        println!("{}", style.faint(&format!("skipped: {test}: {reason}")));
    }
    ensure!(failed.is_empty(), "these failed: {}", failed.join(", "));
    Ok(())
}

impl Skipped {
    fn is_in(&self, program: &Built) -> bool {
        program.target == self.target && program.package.ends_with(self.package)
    }
}

/// Runs the tests of a program as cargo does, without those that are skipped. Whether all passed.
fn run_tests(
    program: &Built,
    tools: &Arm64,
    skips: &[&Skipped],
    counts: &mut Counts,
) -> Result<bool> {
    if !skips.is_empty() {
        let names = names(program, tools)?;
        for Skipped { test, .. } in skips {
            ensure!(
                names.contains(*test),
                "{} has no test {test}",
                program.target
            );
        }
        counts.ignore(skips.len());
    }
    let style = style::stdout();
    let name = program.executable.file_name().unwrap_or_default();
    let title = format!("{} for {ARM64_TARGET}", name.display());
    println!("\n{}", style.bold(&title));
    let mut command = emulated(program, tools);
    command.arg("--exact");
    for skip in skips {
        command.args(["--skip", skip.test]);
    }
    command.env(RUNNER, tools.runner());
    Ok(counted(&mut command, counts)?.success())
}

/// The names of a program's tests.
fn names(program: &Built, tools: &Arm64) -> Result<BTreeSet<String>> {
    let output = emulated(program, tools)
        .args(["--list", "--format=terse"])
        .output()
        .context("cannot run qemu-aarch64")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// A command that runs a program where cargo would.
fn emulated(program: &Built, tools: &Arm64) -> Command {
    let runner = tools.runner();
    let runner = runner.to_string_lossy();
    let mut words = runner.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .arg(&program.executable)
        .current_dir(&program.package)
        .env("CARGO_MANIFEST_DIR", &program.package);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn what_is_skipped_is_where_it_is_said_to_be() {
        for skip in &SKIPPED {
            let file = format!("{}/tests/{}.rs", skip.package, skip.target);
            let text = fs::read_to_string(cargo::workspace().join(file)).unwrap();
            assert!(text.contains(&format!("fn {}()", skip.test)));
        }
    }
}
