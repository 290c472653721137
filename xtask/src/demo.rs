//! `cargo xtask demo`: a guest with a daemon of each kind, and what it sees.
//!
//! | module | what is shown |
//! |---|---|
//! | `rng` | entropy |
//! | `i2c` | a bus with an EEPROM and a temperature sensor |
//! | `gpio` | lines, in and out |
//! | `scmi` | sensors, clocks, regulators, power limits; in an arm64 guest |
//!
//! Each checks what it shows: something that is missing makes the demo fail.

mod gpio;
mod i2c;
mod rng;
mod scmi;

use std::env;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use vhost_device_guest::setup::{self, Progress};
use vhost_device_guest::{Arch, CommandOutput, Daemon, Guest, RunningGuest};

use crate::cargo;
use crate::style::{self, Style};

/// A device that is shown.
struct Section {
    title: &'static str,
    /// The guests that have such a device.
    archs: &'static [&'static Arch],
    /// What is added to the device trees of guests that have one.
    device_tree: &'static str,
    /// The daemon, with its options and the guest's device. This and the next get a directory for
    /// what they share.
    daemon: fn(&Path) -> Daemon,
    show: fn(&mut RunningGuest, &mut Report, &Path) -> Result<()>,
}

const SECTIONS: [Section; 4] = [rng::SECTION, i2c::SECTION, gpio::SECTION, scmi::SECTION];

/// Sets up, builds, boots, and shows.
pub(crate) fn run(arch: &'static Arch, keep: bool) -> Result<ExitCode> {
    ensure!(
        !keep || (io::stdin().is_terminal() && io::stdout().is_terminal()),
        "--keep gives the guest this terminal, but input or output is none"
    );
    setup::run(&[arch], &Progress::new())?;
    let directory = TempDir::new()?;
    let is_shown = |section: &&Section| section.archs.iter().any(|own| own.name == arch.name);
    let sections: Vec<_> = SECTIONS.iter().filter(is_shown).collect();
    let mut guest = boot(arch, &sections, keep, directory.path())?;
    let mut report = Report::new(style::stdout());
    for section in sections {
        report.begin(section.title);
        (section.show)(&mut guest, &mut report, directory.path())?;
    }
    if keep {
        println!("\nA shell in the guest: `exit` ends it, Ctrl-A X kills it.");
        guest.shell()?;
    }
    guest.power_off()?;
    Ok(report.end())
}

fn boot(
    arch: &'static Arch,
    sections: &[&Section],
    keep: bool,
    directory: &Path,
) -> Result<RunningGuest> {
    let daemons = sections.iter().map(|section| (section.daemon)(directory));
    let mut daemons: Vec<Daemon> = daemons.collect();
    if env::var_os("VHOST_DEVICE_BIN_DIR").is_none() {
        // The workspace's default members are the daemons.
        cargo::run(&["build", "--release"])?;
        let directory = cargo::release_dir()?;
        let from_here = |daemon: Daemon| daemon.from_dir(&directory);
        daemons = daemons.into_iter().map(from_here).collect();
    }
    let guest = daemons.into_iter().fold(Guest::of(arch), Guest::attach);
    let trees = sections.iter().map(|section| section.device_tree);
    let mut guest = trees.fold(guest, Guest::device_tree);
    if keep {
        guest = guest.console_on_terminal();
    }
    eprintln!("Booting an {} guest with the daemons attached", arch.name);
    guest.boot()
}

/// What is printed, and what should have been there and was not.
struct Report {
    style: Style,
    missing: Vec<String>,
}

impl Report {
    fn new(style: Style) -> Self {
        Self {
            style,
            missing: Vec::new(),
        }
    }

    fn begin(&self, title: &str) {
        println!("\n{}", self.style.bold(title));
    }

    /// Prints what the guest sees, or takes note of what it does not.
    fn check(&mut self, title: &str, shown: Result<String, String>) {
        match shown {
            Ok(text) => {
                let text = text.replace('\n', &format!("\n{:22}", ""));
                println!("  {title:<20}{text}");
            }
            Err(what) => {
                println!("  {title:<20}{}", self.style.bad("missing"));
                self.missing.push(what);
            }
        }
    }

    /// The output is `expected`.
    fn expect(&mut self, title: &str, seen: &CommandOutput, expected: &str) {
        let shown = if seen.status == 0 && seen.output.trim() == expected {
            Ok(self.style.good(expected))
        } else {
            Err(format!("{title}: {expected}, instead {seen}"))
        };
        self.check(title, shown);
    }

    /// The output has all of `parts` in it, and is shown whole.
    fn expect_parts(&mut self, title: &str, seen: &CommandOutput, parts: &[&str]) {
        let missing = parts.iter().find(|part| !seen.output.contains(**part));
        let shown = match missing {
            None if seen.status == 0 => Ok(self.lines(seen.output.trim_end())),
            None => Err(format!("{title}: instead {seen}")),
            Some(part) => Err(format!("{title}: {part}, instead {seen}")),
        };
        self.check(title, shown);
    }

    /// Text as it came from the guest.
    fn lines(&self, text: &str) -> String {
        let lines = text.lines().map(|line| self.style.data(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn end(self) -> ExitCode {
        for thing in &self.missing {
            eprintln!("{} {thing}", style::stderr().bad("missing:"));
        }
        match self.missing.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
