//! A vhost-user daemon as a test's child.

use std::env;
use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::held::Held;
use crate::process::{Log, Process};

/// How long a daemon may take to say that it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

// The names of what a daemon has in its directory.
const SOCKET: &str = "device.sock";
const NOTIFY: &str = "notify.sock";

/// The directory with the daemons' programs, when not the test's own build's.
const BIN_DIR: &str = "VHOST_DEVICE_BIN_DIR";

/// A daemon to be started for guests.
#[derive(Clone)]
pub struct Daemon {
    program: String,
    directory: Option<PathBuf>,
    args: Vec<OsString>,
    guests: usize,
    device: Option<String>,
}

impl Daemon {
    /// The daemon with this program name, from the directory that
    /// `VHOST_DEVICE_BIN_DIR` names or else from the build of the running
    /// program.
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            directory: None,
            args: Vec::new(),
            guests: 1,
            device: None,
        }
    }

    /// Takes the program from this directory.
    #[must_use]
    pub fn from_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// More of the command line; `--socket-path` is always given.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Serves this many guests: gives `--socket-count` when it is not one.
    #[must_use]
    pub fn guests(mut self, count: usize) -> Self {
        self.guests = count;
        self
    }

    /// The QEMU device that a guest is given when this daemon is attached to it.
    #[must_use]
    pub fn device(mut self, model: &str) -> Self {
        self.device = Some(model.to_owned());
        self
    }

    /// The QEMU device for [`Guest::attach`](crate::Guest::attach).
    pub(crate) fn device_model(&self) -> Result<&str> {
        self.device
            .as_deref()
            .with_context(|| format!("say which QEMU device {} is behind", self.program))
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start(&self) -> Result<RunningDaemon> {
        let directory = TempDir::new().context("cannot make a directory for the sockets")?;
        let notify = UnixDatagram::bind(directory.path().join(NOTIFY))
            .context("cannot make a notify socket")?;
        notify.set_nonblocking(true)?;
        let log = Log::new(
            format!("{}'s messages", self.program),
            directory.path().join("daemon.log"),
        );
        log.create()?;
        let mut daemon = RunningDaemon {
            process: self.spawn(directory.path(), &log)?,
            sockets: socket_paths(&directory.path().join(SOCKET), self.guests),
            log,
            notify,
            stopped: false,
            daemon: self.clone(),
            directory,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn spawn(&self, directory: &Path, log: &Log) -> Result<Process> {
        let mut command = Command::new(self.find_program()?);
        command.arg("--socket-path").arg(directory.join(SOCKET));
        if self.guests != 1 {
            command.arg("--socket-count").arg(self.guests.to_string());
        }
        command
            .args(&self.args)
            .env("NOTIFY_SOCKET", directory.join(NOTIFY))
            .stdin(std::process::Stdio::null())
            .stdout(log.append()?)
            .stderr(log.append()?);
        Process::spawn(&mut command, &self.program)
    }

    fn find_program(&self) -> Result<PathBuf> {
        let directory = match (&self.directory, env::var_os(BIN_DIR)) {
            (Some(directory), _) => directory.clone(),
            (None, Some(directory)) => directory.into(),
            (None, None) => own_build_dir()?,
        };
        let path = directory.join(&self.program);
        ensure!(
            path.is_file(),
            "there is no {}: run `cargo build{} -p {}`, or set {BIN_DIR} to its directory",
            path.display(),
            if directory.ends_with("release") {
                " --release"
            } else {
                ""
            },
            self.program,
        );
        Ok(path)
    }
}

/// The directory where cargo put the programs of the build that this one is of.
fn own_build_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the running program")?;
    let mut directory = own.parent().unwrap_or(Path::new("/"));
    // A test is one below, in `deps`.
    if directory.ends_with("deps") {
        directory = directory.parent().unwrap_or(directory);
    }
    Ok(directory.to_owned())
}

/// The exact path for one guest; with more, the guest's number is put behind.
fn socket_paths(path: &Path, guests: usize) -> Vec<PathBuf> {
    if guests == 1 {
        return vec![path.to_owned()];
    }
    (0..guests)
        .map(|guest| {
            let mut numbered = path.as_os_str().to_owned();
            numbered.push(guest.to_string());
            numbered.into()
        })
        .collect()
}

/// A daemon that serves. Dropped without [`RunningDaemon::stop`], as when a
/// test fails, it is killed and its messages are shown.
pub struct RunningDaemon {
    process: Process,
    sockets: Vec<PathBuf>,
    log: Log,
    notify: UnixDatagram,
    stopped: bool,
    /// What it is started again from.
    daemon: Daemon,
    directory: TempDir,
}

impl RunningDaemon {
    /// The socket for this guest, counted from 0.
    #[track_caller]
    pub fn socket(&self, guest: usize) -> &Path {
        let count = self.sockets.len();
        self.sockets
            .get(guest)
            .unwrap_or_else(|| panic!("no socket {guest}: the daemon serves {count} guests"))
    }

    /// Ends the daemon with SIGTERM, which it must obey with status 0 and with
    /// its sockets removed.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()?;
        self.stopped = true;
        Ok(())
    }

    /// Kills the daemon with SIGKILL, which leaves its sockets' files behind.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill();
        for socket in &self.sockets {
            ensure!(socket.exists(), "who removed {}?", socket.display());
        }
        Ok(())
    }

    /// Ends the daemon with SIGTERM, which it must obey with status 0 and with
    /// its sockets removed; [`RunningDaemon::start_again`] may follow.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.terminate()?;
        let Some(status) = self.process.wait_end(Instant::now() + STOP_TIMEOUT)? else {
            bail!("the daemon did not end within {STOP_TIMEOUT:?} of SIGTERM");
        };
        ensure!(
            status.success(),
            "the daemon ended with {status} on SIGTERM"
        );
        for socket in &self.sockets {
            ensure!(
                !socket.exists(),
                "the daemon left its socket {} behind",
                socket.display()
            );
        }
        Ok(())
    }

    /// Starts a daemon that was killed or has ended, at the same sockets.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = self.daemon.spawn(self.directory.path(), &self.log)?;
        self.wait_ready()
    }

    /// What the daemon's process has open, runs and maps now.
    pub fn held(&self) -> Result<Held> {
        Held::of(self.process.pid())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut message = [0; 4096];
        loop {
            self.process.wait_readable(
                &self.notify,
                deadline,
                "READY=1 on the socket that NOTIFY_SOCKET names",
            )?;
            let length = self
                .notify
                .recv(&mut message)
                .context("cannot be notified")?;
            let mut lines = message[..length].split(|&byte| byte == b'\n');
            if lines.any(|line| line == b"READY=1") {
                break;
            }
        }
        for socket in &self.sockets {
            ensure!(
                socket.exists(),
                "the daemon said READY=1 but there is no {}",
                socket.display()
            );
        }
        Ok(())
    }
}

impl Drop for RunningDaemon {
    fn drop(&mut self) {
        if !self.stopped {
            self.process.kill();
            self.log.show();
        }
    }
}
