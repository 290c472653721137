//! The project's commands: `cargo xtask <command>`.

mod arm64;
mod cargo;
mod demo;
mod dependencies;
#[cfg(test)]
mod docs;
mod fuzz;
mod steps;
mod style;
mod valgrind;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use vhost_device_guest::Arch;
use vhost_device_guest::setup::{self, Progress, Series};

use steps::Selection;

/// The project's commands
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Linux guest with a daemon of each kind attached, and show what it sees
    ///
    /// Builds the daemons (a debug build), unless VHOST_DEVICE_BIN_DIR names a
    /// directory to take them from. Takes QEMU 11.1, busybox and tools out of
    /// Debian's packages, without installing them, and the kernel that the tests
    /// have (see `setup`) when there is one, or else Debian's own Linux 6.12,
    /// with the drivers that it lacks built as modules. All of that stays in
    /// $XDG_CACHE_HOME/vhost-device or ~/.cache/vhost-device. The first time
    /// takes two to three minutes, the others half a minute. Ends by itself, with
    /// a status other than 0 when something that the guest should see was
    /// missing.
    Demo {
        /// Leave a shell in the guest, on this terminal, until `exit`
        #[arg(short, long)]
        keep: bool,
        /// The guest's architecture
        #[arg(long, default_value = Arch::X86_64.name, value_parser = arch_parser())]
        arch: &'static Arch,
        /// Boot Debian's own kernel, even when there is the one that the tests have
        #[arg(long)]
        stock: bool,
    },
    /// Run all checks and tests, in steps, up to the first that fails
    ///
    /// The last line counts the tests: "N passed, N failed". A step that fails
    /// without a test that does counts as one failed. Does the guests' set-up
    /// when it is missing (see `setup`) and that for arm64 (see `arm64 setup`),
    /// installs cargo-fuzz into the same cache, and valgrind with
    /// apt.
    Test {
        /// Leave out what needs guests, arm64, their set-up, valgrind and cargo-fuzz
        #[arg(long)]
        quick: bool,
        /// Run the guest tests alone, on kernels of this series: which of them need a newer one
        /// is said
        #[arg(long, value_parser = series_parser(), conflicts_with = "quick")]
        kernel: Option<&'static Series>,
    },
    /// Run the benchmarks, built for release: rng, or the device that is named
    Bench {
        /// What is passed on to vhost-device-bench; try --help behind a --
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Look for inputs that make the queue fail, with cargo-fuzz and AddressSanitizer
    ///
    /// Needs a nightly compiler; installs cargo-fuzz into the cache. Goes on
    /// until something is found, or for --runs inputs. What it learns stays in
    /// tests/fuzz/corpus.
    Fuzz {
        /// The target, of those in tests/fuzz/fuzz_targets; else all in turn
        target: Option<String>,
        /// Try so many inputs for each target
        #[arg(long)]
        runs: Option<u64>,
    },
    /// Build the daemons for arm64, and run the tests there, under qemu-user
    Arm64 {
        #[command(subcommand)]
        action: arm64::Action,
    },
    /// Get and build what guests need, as the demo and the tests do before
    ///
    /// For each architecture, takes QEMU 11.1 of Debian 13's backports, busybox
    /// and tools out of their packages, without installing them, and builds a
    /// small Linux 7.3 of Debian's source (8 minutes of 2 cores; installs what
    /// that needs: bc, bison, flex, gcc, libelf-dev, make, perl, xz-utils, and a
    /// cross compiler for aarch64). Apt's own configuration is not
    /// changed. What was made stays in $XDG_CACHE_HOME/vhost-device or
    /// ~/.cache/vhost-device (160 MB). Without anything missing, nothing is done
    /// and no network is needed.
    Setup {
        /// The series of the guests' kernels
        #[arg(long, default_value = Series::NEWEST.name, value_parser = series_parser())]
        kernel: &'static Series,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{} {error:#}", style::stderr().bad("error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { keep, arch, stock } => demo::run(arch, keep, stock),
        Command::Test {
            kernel: Some(series),
            ..
        } => Ok(steps::run(Selection::Kernel(series))),
        Command::Test { quick: true, .. } => Ok(steps::run(Selection::Quick)),
        Command::Test { .. } => Ok(steps::run(Selection::All)),
        Command::Bench { args } => bench(args),
        Command::Fuzz { target, runs } => {
            fuzz::run(target.as_deref(), runs)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Arm64 { action } => {
            arm64::run(&action)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Setup { kernel } => {
            setup::run_with(Arch::ALL, kernel, &Progress::new())?;
            for arch in Arch::ALL {
                let kernel = setup::find_with(arch, kernel)?.kernel;
                println!(
                    "Guests of {} can be booted: {}",
                    arch.name,
                    kernel.display()
                );
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Takes the names of all architectures.
fn arch_parser() -> impl TypedValueParser<Value = &'static Arch> {
    let names = Arch::ALL.iter().map(|arch| arch.name);
    PossibleValuesParser::new(names)
        .try_map(|name| Arch::named(&name).ok_or("no such architecture"))
}

/// Takes the numbers of all series of kernels.
fn series_parser() -> impl TypedValueParser<Value = &'static Series> {
    let names = Series::ALL.iter().map(|series| series.name);
    PossibleValuesParser::new(names).try_map(|name| Series::named(&name).ok_or("no such series"))
}

fn bench(args: Vec<OsString>) -> Result<ExitCode> {
    let mut command = cargo::command(["run", "--release", "--package", "vhost-device-bench", "--"]);
    let status = command.args(args).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
