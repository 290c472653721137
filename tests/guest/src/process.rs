//! Child processes that never outlive the test, and waits with a deadline.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};

/// How many lines of a log are shown when something failed.
const TAIL_LINES: usize = 40;

/// How long a family may take to end when it is terminated.
const PATIENCE: Duration = Duration::from_secs(2);

/// A child process, killed when dropped, and ended when the thread that started it ends.
pub(crate) struct Process {
    name: String,
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    /// What ends it.
    end: Signal,
}

impl Process {
    /// Starts `command`; `name` is what messages call it.
    pub(crate) fn spawn(command: &mut Command, name: &str) -> Result<Self> {
        Self::spawn_ended_by(Signal::KILL, command, name)
    }

    /// The same for a command that starts others, and ends them when it is terminated, as `make`
    /// does: if it were killed instead, they would go on.
    pub(crate) fn spawn_family(command: &mut Command, name: &str) -> Result<Self> {
        Self::spawn_ended_by(Signal::TERM, command, name)
    }

    fn spawn_ended_by(end: Signal, command: &mut Command, name: &str) -> Result<Self> {
        let die_with_parent =
            move || set_parent_process_death_signal(Some(end)).map_err(io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call and
        // neither allocates nor takes a lock.
        unsafe { command.pre_exec(die_with_parent) };
        let program = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                name: name.to_owned(),
                child,
                pid,
                pidfd,
                end,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e).with_context(|| format!("cannot watch {name} (pidfd_open)"))
            }
        }
    }

    /// Waits until `fd` can be read; fails when the process ends before or at
    /// the deadline. `what` says what is waited for.
    pub(crate) fn wait_readable(
        &mut self,
        fd: impl AsFd,
        deadline: Instant,
        what: &str,
    ) -> Result<()> {
        loop {
            let mut fds = [
                PollFd::new(&fd, PollFlags::IN),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ];
            let count = poll_until(&mut fds, deadline)?;
            let (readable, ended) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if readable {
                return Ok(());
            }
            if ended {
                let status = self.child.wait()?;
                bail!("{} ended ({status}) before {what}", self.name);
            }
            if count == 0 {
                bail!("{} did not get to this in time: {what}", self.name);
            }
        }
    }

    /// Waits for the end of the process; `None` at the deadline.
    pub(crate) fn wait_end(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        poll_until(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], deadline)?;
        let status = self.child.try_wait();
        status.with_context(|| format!("cannot wait for {}", self.name))
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        kill_process(self.pid, Signal::TERM)
            .with_context(|| format!("cannot send SIGTERM to {}", self.name))
    }

    /// Ends the process and takes its status away.
    pub(crate) fn kill(&mut self) {
        // All of this fails only for a process whose status was already taken.
        if self.end != Signal::KILL && self.terminate().is_ok() {
            let _ = self.wait_end(Instant::now() + PATIENCE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls until something is ready, 0 at the deadline; a signal does not end it.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(fds, Some(&timespec(left))) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.context("cannot poll"),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// A file that a process writes its messages to, shown when something failed.
pub(crate) struct Log {
    title: String,
    path: PathBuf,
}

impl Log {
    /// The log at `path`; `title` is what it is shown under.
    pub(crate) fn new(title: impl Into<String>, path: PathBuf) -> Self {
        Self {
            title: title.into(),
            path,
        }
    }

    /// Creates the file, to be given to a process.
    pub(crate) fn create(&self) -> Result<File> {
        File::create(&self.path).with_context(|| format!("cannot create {}", self.path.display()))
    }

    /// Opens the file that was created, to be written on from its end.
    pub(crate) fn append(&self) -> Result<File> {
        let opened = File::options().append(true).open(&self.path);
        opened.with_context(|| format!("cannot open {}", self.path.display()))
    }

    /// Prints the last lines to standard error.
    pub(crate) fn show(&self) {
        eprintln!(
            "--- {}: the last lines ---\n{}",
            self.title,
            tail(&self.path)
        );
    }
}

/// The last lines of a file; what went wrong when it cannot be read.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => return format!("(cannot read {}: {e})", path.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    match lines[first..].join("\n") {
        empty if empty.trim().is_empty() => "(nothing)".to_owned(),
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::thread;

    use tempfile::TempDir;

    use super::*;

    fn wait_for(path: &Path) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !path.exists() {
            assert!(Instant::now() < deadline, "there is no {}", path.display());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A family that tells when it has begun and when it was terminated, by files.
    fn family(begun: &Path, ended: &Path) -> Process {
        let (begun, ended) = (begun.display(), ended.display());
        let script =
            format!("sleep 60 & trap 'touch {ended}; kill $!; exit' TERM; touch {begun}; wait");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(Stdio::null());
        Process::spawn_family(command.stderr(Stdio::null()), "sh").unwrap()
    }

    #[test]
    fn a_family_is_terminated_when_its_starter_is_gone_or_drops_it() {
        for drops in [true, false] {
            let directory = TempDir::new().unwrap();
            let [begun, ended] = ["begun", "ended"].map(|name| directory.path().join(name));
            let end = ended.clone();
            let starter = thread::spawn(move || {
                let process = family(&begun, &end);
                wait_for(&begun);
                if !drops {
                    std::mem::forget(process);
                }
            });
            starter.join().unwrap();
            wait_for(&ended);
        }
    }
}
