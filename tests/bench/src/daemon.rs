//! A daemon that runs.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::programs::Side;

/// How long a daemon may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    path: PathBuf,
    _directory: TempDir,
}

impl Daemon {
    /// Starts a daemon for so many guests, with more arguments. What it logs is thrown away.
    pub(crate) fn start(side: &Side, guests: usize, arguments: &[&str]) -> Result<Self> {
        let count = guests.to_string();
        let count = ["--socket-count", &count];
        Self::start_with(side, count.iter().chain(arguments))
    }

    /// Starts a daemon for one guest, of a program that knows no other.
    pub(crate) fn start_one(side: &Side, arguments: &[&str]) -> Result<Self> {
        Self::start_with(side, arguments)
    }

    fn start_with<'a>(
        side: &Side,
        arguments: impl IntoIterator<Item = &'a &'a str>,
    ) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a directory for the sockets")?;
        let path = directory.path().join("s");
        let mut command = Command::new(&side.program);
        command
            .arg("--socket-path")
            .arg(&path)
            .args(arguments)
            .stdin(Stdio::null())
            // A peer ends at once when this is not a pipe. Nobody reads it, and none writes much.
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", side.program.display()))?;
        Ok(Self {
            process,
            path,
            _directory: directory,
        })
    }

    /// The socket of this guest, counted from 0.
    pub(crate) fn socket(&self, guest: usize) -> PathBuf {
        socket_path(&self.path, guest)
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// Connects to a guest's socket as soon as this can be done.
    pub(crate) fn connect(&mut self, guest: usize) -> Result<UnixStream> {
        self.connect_to(self.socket(guest))
    }

    /// Connects to the only guest's socket.
    pub(crate) fn connect_one(&mut self) -> Result<UnixStream> {
        self.connect_to(self.path.clone())
    }

    fn connect_to(&mut self, socket: PathBuf) -> Result<UnixStream> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let error = match UnixStream::connect(&socket) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("the daemon ended with {status} before it listened");
            }
            if Instant::now() >= deadline {
                return Err(error).context("the daemon does not listen");
            }
            thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// With `--socket-count`, the guest's number is put behind the path.
fn socket_path(path: &Path, guest: usize) -> PathBuf {
    let mut numbered = path.as_os_str().to_owned();
    numbered.push(guest.to_string());
    numbered.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_have_the_guests_number() {
        assert_eq!(socket_path(Path::new("/s"), 0), Path::new("/s0"));
        assert_eq!(socket_path(Path::new("/s"), 63), Path::new("/s63"));
    }
}
