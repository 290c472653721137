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
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use tempfile::TempDir;
use vhost_device_guest::setup::{self, Images, Progress};
use vhost_device_guest::{Arch, CommandOutput, Daemon, Guest, RunningGuest};

use crate::cargo;
use crate::steps::minutes;
use crate::style::{self, Style};

/// A device that is shown.
struct Section {
    title: &'static str,
    /// The guests that have such a device.
    archs: &'static [&'static Arch],
    /// What is said in the other guests.
    elsewhere: &'static str,
    /// What is added to the device trees of guests that have one.
    device_tree: &'static str,
    /// The daemon, with its options and the guest's device. This and the next get a directory for
    /// what they share.
    daemon: fn(&Path) -> Daemon,
    show: fn(&mut RunningGuest, &mut Report, &Path) -> Result<()>,
}

const SECTIONS: [Section; 4] = [rng::SECTION, i2c::SECTION, gpio::SECTION, scmi::SECTION];

/// Sets up, builds, boots, and shows.
///
/// With `stock`, the guest has Debian's own kernel even when there is one that was built for tests.
pub(crate) fn run(arch: &'static Arch, keep: bool, stock: bool) -> Result<ExitCode> {
    ensure!(
        !keep || (io::stdin().is_terminal() && io::stdout().is_terminal()),
        "--keep gives the guest this terminal, but input or output is none"
    );
    let started = Instant::now();
    let progress = Progress::new();
    // Neither waits for the other: the daemons are compiled while packages come.
    let (images, daemons) = thread::scope(|scope| {
        let daemons = scope.spawn(|| build_daemons(&progress));
        let images = setup::run_quickly(arch, stock, &progress);
        let daemons = daemons.join().unwrap_or_else(|e| panic::resume_unwind(e));
        Ok::<_, anyhow::Error>((images?, daemons?))
    })?;
    let ready = started.elapsed();
    let stock = images.stock;
    let directory = TempDir::new()?;
    let is_shown = |section: &&Section| section.archs.iter().any(|own| own.name == arch.name);
    let sections: Vec<_> = SECTIONS.iter().filter(is_shown).collect();
    let mut guest = progress.step(&format!("Booting an {} guest", arch.name), |_| {
        boot(
            images,
            &sections,
            keep,
            directory.path(),
            daemons.as_deref(),
        )
    })?;
    let mut report = Report::new(style::stdout(), stock);
    for section in sections {
        report.begin(section.title);
        (section.show)(&mut guest, &mut report, directory.path())?;
    }
    for section in SECTIONS.iter().filter(|section| !is_shown(section)) {
        let note = format!("not on {}: {}", arch.name, section.elsewhere);
        println!(
            "\n{}\n  {}",
            report.style.bold(section.title),
            report.style.faint(&note)
        );
    }
    if keep {
        println!("\nA shell in the guest: `exit` ends it, Ctrl-A X kills it.");
        guest.shell()?;
    }
    guest.power_off()?;
    println!(
        "\nThis took {}, of which {} were for what is kept for the next time.",
        minutes(started.elapsed()),
        minutes(ready)
    );
    Ok(report.end())
}

/// Builds the daemons, in the profile that compiles fastest, and says where they are. None when
/// the user has them.
fn build_daemons(progress: &Progress) -> Result<Option<PathBuf>> {
    if env::var_os("VHOST_DEVICE_BIN_DIR").is_some() {
        return Ok(None);
    }
    let directory = cargo::target_dir()?;
    let log = directory.join("demo.log");
    progress.step("Building the daemons (a debug build)", |step| {
        // The workspace's default members are the daemons.
        let mut command = cargo::command(["build"]);
        command.env("CARGO_TERM_PROGRESS_WHEN", "always");
        command.env("CARGO_TERM_PROGRESS_WIDTH", "80");
        step.follow(&mut command, &log, compiled)
    })?;
    Ok(Some(directory.join("debug")))
}

/// How far cargo is, out of the line that it writes again and again: `12/34: this, that`.
fn compiled(printed: &str) -> Option<String> {
    let (_, last) = printed.rsplit_once("Building [")?;
    let (_, rest) = last.split_once("] ")?;
    let line = rest.split(['\r', '\n', '\x1b']).next()?;
    Some(line.trim().to_owned())
}

fn boot(
    images: Images,
    sections: &[&Section],
    keep: bool,
    directory: &Path,
    programs: Option<&Path>,
) -> Result<RunningGuest> {
    let daemons = sections.iter().map(|section| (section.daemon)(directory));
    let daemons = daemons.map(|daemon| match programs {
        Some(programs) => daemon.from_dir(programs),
        None => daemon,
    });
    let guest = daemons.fold(Guest::from_images(images), Guest::attach);
    let trees = sections.iter().map(|section| section.device_tree);
    let mut guest = trees.fold(guest, Guest::device_tree);
    if keep {
        guest = guest.console_on_terminal();
    }
    guest.boot()
}

/// What is printed, and what should have been there and was not.
struct Report {
    style: Style,
    /// Whether the guest's kernel is Debian's own.
    stock: bool,
    missing: Vec<String>,
}

impl Report {
    fn new(style: Style, stock: bool) -> Self {
        Self {
            style,
            stock,
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

    /// Says why something is not shown.
    fn leave_out(&self, title: &str, why: &str) {
        println!("  {title:<20}{}", self.style.faint(why));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_cargo_is_is_read_off_its_last_line() {
        let printed = "   Compiling log v0.4.33\n    Building [==>    ] 2/9: log\r    \
            Building [=====> ] 7/9: serde(build), syn\r\x1b[K   Compiling syn v3.0.10\n";
        assert_eq!(compiled(printed).unwrap(), "7/9: serde(build), syn");
        assert_eq!(compiled("   Compiling log v0.4.33\n"), None);
    }
}
