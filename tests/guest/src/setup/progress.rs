//! Says what set-up does, and for how long it has been doing it.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Process, tail};

/// How often a terminal's line is written anew.
const TERMINAL_PERIOD: Duration = Duration::from_secs(1);
/// How often a line is written where lines stay, as in a log.
const LOG_PERIOD: Duration = Duration::from_secs(30);

/// Where set-up says what it does: one line a step, on standard error, with
/// the time so far.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Progress on standard error.
    pub fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Says one thing that takes no time.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Does `work`, saying before what it is and after how long it took.
    pub(crate) fn step<T>(&self, title: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let step = Step {
            title,
            started: Instant::now(),
            terminal: self.terminal,
        };
        step.write("...");
        let result = work(&step);
        step.write(if result.is_ok() { "done" } else { "FAILED" });
        if self.terminal {
            eprintln!();
        }
        result.with_context(|| format!("set-up failed at: {title}"))
    }
}

/// A step that is being done.
pub(crate) struct Step<'a> {
    title: &'a str,
    started: Instant,
    terminal: bool,
}

impl Step<'_> {
    /// Runs a command with what it prints in the file `log`, whose end is part
    /// of the error when it fails.
    pub(crate) fn command(&self, command: &mut Command, log: &Path) -> Result<()> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        let mut process = Process::spawn(command.stderr(file), &program.display().to_string())?;
        let period = if self.terminal {
            TERMINAL_PERIOD
        } else {
            LOG_PERIOD
        };
        let status = loop {
            match process.wait_end(Instant::now() + period)? {
                Some(status) => break status,
                None => self.write("..."),
            }
        };
        if !status.success() {
            bail!("{} ended with {status}:\n{}", program.display(), tail(log));
        }
        Ok(())
    }

    fn write(&self, state: &str) {
        let seconds = self.started.elapsed().as_secs();
        let (before, after) = if self.terminal {
            ("\r\x1b[K", "")
        } else {
            ("", "\n")
        };
        let time = if seconds > 0 || state != "..." {
            format!(" ({}:{:02})", seconds / 60, seconds % 60)
        } else {
            String::new()
        };
        eprint!("{before}{} {state}{time}{after}", self.title);
        // Nothing is lost when a line of progress is late.
        let _ = io::stderr().flush();
    }
}
