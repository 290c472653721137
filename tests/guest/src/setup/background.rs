//! A set-up that goes on while other things are done.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::Process;

/// How often what was printed is looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// A command whose lines are kept until it is waited for. It ends with the thread that began it.
pub struct Background {
    process: Process,
    directory: TempDir,
}

impl Background {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a directory for what is printed")?;
        let printed = File::create(directory.path().join("printed"))?;
        command.stdin(Stdio::null()).stdout(printed.try_clone()?);
        let process = Process::spawn(command.stderr(printed), "the set-up in the background")?;
        Ok(Self { process, directory })
    }

    /// Prints what it printed and prints, until it ends, which must be well.
    ///
    /// # Errors
    /// When it failed.
    pub fn wait(self) -> Result<()> {
        self.wait_printing_to(&mut io::stderr())
    }

    fn wait_printing_to(mut self, out: &mut impl Write) -> Result<()> {
        let path = self.directory.path().join("printed");
        let mut seen = 0;
        loop {
            let status = self.process.wait_end(Instant::now() + PERIOD)?;
            let printed = fs::read(&path).context("cannot read what was printed")?;
            out.write_all(printed.get(seen..).unwrap_or_default())?;
            seen = printed.len();
            if let Some(status) = status {
                ensure!(status.success(), "the set-up ended with {status}");
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(script: &str) -> (Result<()>, String) {
        let started = Background::start(Command::new("sh").args(["-c", script]));
        let mut printed = Vec::new();
        let result = started.unwrap().wait_printing_to(&mut printed);
        (result, String::from_utf8(printed).unwrap())
    }

    #[test]
    fn what_is_printed_is_kept_and_a_failure_is_told() {
        let (result, printed) = wait_for("echo one; echo two >&2");
        result.unwrap();
        assert_eq!(printed, "one\ntwo\n");
        let (result, printed) = wait_for("echo why; exit 3");
        assert!(result.unwrap_err().to_string().contains("exit status: 3"));
        assert_eq!(printed, "why\n");
    }
}
