//! Says what set-up does, and for how long it has been doing it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Process, tail};

/// How often a terminal's lines are written anew.
const TERMINAL_PERIOD: Duration = Duration::from_secs(1);
/// How often a line is written where lines stay, as in a log.
const LOG_PERIOD: Duration = Duration::from_secs(30);

/// Where set-up says what it does: one line a step, on standard error, with
/// the time so far. Steps may be done by several threads at a time: on a
/// terminal each that is being done has a line, below those that are done.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    lines: Mutex<Lines>,
}

/// What is on the terminal below all that stays.
#[derive(Debug, Default)]
struct Lines {
    /// The steps that are being done, in the order in which they began.
    live: Vec<Line>,
    next: u64,
    /// How many lines were written, and are to be replaced.
    drawn: usize,
}

#[derive(Debug)]
struct Line {
    id: u64,
    title: String,
    started: Instant,
    detail: String,
}

impl Line {
    fn time(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }
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
            lines: Mutex::default(),
        }
    }

    /// Says one thing that takes no time.
    pub fn say(&self, text: &str) {
        self.lines().write(self.terminal, Some(text));
    }

    /// Does `work`, saying before what it is and after how long it took.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn step<T>(&self, title: &str, work: impl FnOnce(&Step<'_>) -> Result<T>) -> Result<T> {
        let step = Step {
            progress: self,
            id: self.begin(title),
        };
        let result = work(&step);
        self.end(step.id, if result.is_ok() { "done" } else { "FAILED" });
        result.with_context(|| format!("set-up failed at: {title}"))
    }

    fn begin(&self, title: &str) -> u64 {
        let mut lines = self.lines();
        let id = lines.next;
        lines.next += 1;
        lines.live.push(Line {
            id,
            title: title.to_owned(),
            started: Instant::now(),
            detail: String::new(),
        });
        let text = (!self.terminal).then(|| format!("{title} ..."));
        lines.write(self.terminal, text.as_deref());
        id
    }

    fn end(&self, id: u64, how: &str) {
        let mut lines = self.lines();
        if let Some(place) = lines.live.iter().position(|line| line.id == id) {
            let line = lines.live.remove(place);
            let text = format!("{} {how} ({})", line.title, line.time());
            lines.write(self.terminal, Some(&text));
        }
    }

    /// A step goes on, and says what it does now.
    fn go_on(&self, id: u64, detail: Option<String>) {
        let mut lines = self.lines();
        let Some(line) = lines.live.iter_mut().find(|line| line.id == id) else {
            return;
        };
        line.detail = detail.unwrap_or_default();
        let text = (!self.terminal).then(|| format!("{} ... ({})", line.title, line.time()));
        lines.write(self.terminal, text.as_deref());
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // What a thread that panicked left is as good as any.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Writes what stays, and on a terminal the lines of what is being done below.
    fn write(&mut self, terminal: bool, stays: Option<&str>) {
        let text = if terminal {
            self.draw(stays)
        } else {
            stays.map(|text| format!("{text}\n")).unwrap_or_default()
        };
        eprint!("{text}");
        // Nothing is lost when a line of progress is late.
        let _ = io::stderr().flush();
    }

    fn draw(&mut self, stays: Option<&str>) -> String {
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A\x1b[J", self.drawn);
        }
        if let Some(stays) = stays {
            text.push_str(stays);
            text.push('\n');
        }
        // A line that is too long would become two, and stay: such are cut by the terminal.
        text.push_str("\x1b[?7l");
        for line in &self.live {
            let _ = write!(text, "{} ... ({})", line.title, line.time());
            if !line.detail.is_empty() {
                let _ = write!(text, " {}", line.detail);
            }
            text.push('\n');
        }
        text.push_str("\x1b[?7h");
        self.drawn = self.live.len();
        text
    }
}

/// A step that is being done.
pub struct Step<'a> {
    progress: &'a Progress,
    id: u64,
}

impl Step<'_> {
    /// Runs a command with what it prints in the file `log`, whose end is part
    /// of the error when it fails.
    ///
    /// # Errors
    /// When the command cannot be run, or fails.
    pub fn command(&self, command: &mut Command, log: &Path) -> Result<()> {
        self.follow(command, log, |_| None)
    }

    /// The same, and `detail` makes of what was printed so far what is said beside the time.
    ///
    /// # Errors
    /// When the command cannot be run, or fails.
    pub fn follow(
        &self,
        command: &mut Command,
        log: &Path,
        detail: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        let mut process =
            Process::spawn_family(command.stderr(file), &program.display().to_string())?;
        let period = match self.progress.terminal {
            true => TERMINAL_PERIOD,
            false => LOG_PERIOD,
        };
        let status = loop {
            if let Some(status) = process.wait_end(Instant::now() + period)? {
                break status;
            }
            let printed = fs::read(log).unwrap_or_default();
            let now = detail(&String::from_utf8_lossy(&printed));
            self.progress.go_on(self.id, now);
        };
        if !status.success() {
            bail!("{} ended with {status}:\n{}", program.display(), tail(log));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(titles: &[&str]) -> Lines {
        let line = |title: &&str| Line {
            id: 0,
            title: (*title).to_owned(),
            started: Instant::now(),
            detail: String::new(),
        };
        Lines {
            live: titles.iter().map(line).collect(),
            ..Lines::default()
        }
    }

    #[test]
    fn what_is_being_done_is_replaced_and_what_is_done_stays() {
        let mut lines = lines(&["a", "b"]);
        let first = lines.draw(None);
        assert_eq!(first, "\x1b[?7la ... (0:00)\nb ... (0:00)\n\x1b[?7h");
        lines.live.remove(0);
        let second = lines.draw(Some("a done"));
        assert_eq!(
            second,
            "\x1b[2A\x1b[Ja done\n\x1b[?7lb ... (0:00)\n\x1b[?7h"
        );
        lines.live[0].detail = "half".to_owned();
        let third = lines.draw(None);
        assert_eq!(third, "\x1b[1A\x1b[J\x1b[?7lb ... (0:00) half\n\x1b[?7h");
    }

    #[test]
    fn steps_of_several_threads_each_come_to_their_end() {
        let progress = Progress::new();
        std::thread::scope(|scope| {
            for number in 0..4 {
                let progress = &progress;
                scope.spawn(move || {
                    let result = progress.step(&format!("step {number}"), |_| match number {
                        0 => bail!("why"),
                        _ => Ok(()),
                    });
                    assert_eq!(result.is_ok(), number != 0);
                });
            }
        });
        assert!(progress.lines().live.is_empty());
    }
}
