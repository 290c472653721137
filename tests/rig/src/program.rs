//! A daemon as a process of its own, and what tests look at.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost_device_driver::{Driver, Options};

/// Only a hang takes as long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The variable with the words before a daemon's path, where the system cannot run it by itself:
/// an emulator of its architecture.
const RUNNER: &str = "VHOST_DEVICE_TEST_RUNNER";

/// A daemon's program, by its path.
#[derive(Clone, Copy, Debug)]
pub struct Program(pub &'static str);

impl Program {
    /// The words that run it.
    fn words(self) -> Vec<String> {
        let runner = env::var(RUNNER).unwrap_or_default();
        let runner = runner.split_whitespace().map(str::to_owned);
        runner.chain([self.0.to_owned()]).collect()
    }

    /// A command that runs it.
    pub fn command(self) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// Starts it on the socket `s` of a new directory, with more arguments, and waits until it is
    /// ready.
    pub fn start(self, arguments: &[&str]) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let mut command = self.command();
        command.arg("-s").arg(directory.path().join("s"));
        command.args(arguments);
        Daemon::spawn(command, directory)
    }

    /// Runs it for as long as it takes to see that it cannot be run so: its status and what it
    /// says.
    pub fn run<S: AsRef<OsStr>>(self, arguments: &[S]) -> (i32, String) {
        let output = self
            .command()
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(text).unwrap(),
        )
    }

    /// A command that runs it in a shell with `prefix` before it. `stdin` is descriptor 0 of the
    /// shell, `stdout` 1.
    pub fn shell(
        self,
        prefix: &str,
        stdin: OwnedFd,
        stdout: Option<OwnedFd>,
        arguments: &str,
    ) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(
                "{prefix} exec {} {arguments}",
                self.words().join(" ")
            ))
            .stdin(stdin);
        if let Some(stdout) = stdout {
            command.stdout(stdout);
        }
        command
    }
}

/// A running daemon, ended with the test.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    manager: UnixDatagram,
    stderr: PathBuf,
    /// Where its sockets and files are.
    pub directory: TempDir,
}

impl Daemon {
    /// Runs `command`, which starts the daemon, and waits until it is ready.
    pub fn spawn(command: Command, directory: TempDir) -> Self {
        let stderr = directory.path().join("stderr");
        let stderr = fs::File::create(stderr).unwrap();
        Self::spawn_with_stderr(command, directory, stderr)
    }

    /// The same, with another standard error: [`Daemon::log`] has nothing to tell then.
    pub fn spawn_with_stderr(
        mut command: Command,
        directory: TempDir,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let notify = directory.path().join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = command
            .env("NOTIFY_SOCKET", &notify)
            .env("RUST_LOG", "debug")
            .stderr(stderr)
            .spawn()
            .unwrap();
        let daemon = Self {
            child,
            manager,
            stderr: directory.path().join("stderr"),
            directory,
        };
        assert_eq!(daemon.state(), "READY=1");
        daemon
    }

    /// What the daemon tells the service manager next.
    pub fn state(&self) -> String {
        let mut text = [0; 256];
        loop {
            match self.manager.recv(&mut text) {
                Ok(length) => return String::from_utf8(text[..length].to_vec()).unwrap(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the daemon says nothing: {error}\n{}", self.log()),
            }
        }
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(
            || self.log().contains(text),
            || format!("{text:?} in {}", self.log()),
        );
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process, for system calls.
    pub fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// A guest at the socket `name`.
    pub fn guest(&self, name: &str, options: Options) -> Driver {
        Driver::connect(self.path(name), options).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.process(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }

    /// Ends it, as a service manager does, and expects it to end well.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process.
pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until(
        || {
            status = child.try_wait().unwrap();
            status.is_some()
        },
        || "the end of a process".to_owned(),
    );
    status.unwrap()
}

/// Waits until something is so.
pub fn wait_until(mut condition: impl FnMut() -> bool, what: impl Fn() -> String) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waiting in vain for {}", what());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The entries of a directory.
pub fn entries(path: &Path) -> Vec<String> {
    let mut entries: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    entries.sort();
    entries
}
