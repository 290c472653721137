//! The real daemon in a process of its own, and what the tests look at.

// Each test program uses its part.
#![allow(dead_code)]

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
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options, Used};

/// The daemon's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-device-rng");

/// Only a hang takes as long.
pub const DEADLINE: Duration = Duration::from_secs(60);

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
    /// Starts the daemon on the socket `s` of a new directory, with more arguments, and waits
    /// until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("-s").arg(directory.path().join("s"));
        command.args(arguments);
        Self::spawn(command, directory)
    }

    /// Runs `command`, which starts the daemon, and waits until it is ready.
    pub fn spawn(mut command: Command, directory: TempDir) -> Self {
        let notify = directory.path().join("notify");
        let _ = fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let stderr = directory.path().join("stderr");
        let child = command
            .env("NOTIFY_SOCKET", &notify)
            .env("RUST_LOG", "debug")
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let daemon = Self {
            child,
            manager,
            stderr,
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
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Waits until it has logged this.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(
            || self.log().contains(text),
            || format!("{text:?} in {}", self.log()),
        );
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process, for system calls.
    pub fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// A guest at the socket `name`.
    pub fn guest(&self, name: &str) -> Driver {
        Driver::connect(self.path(name), options()).unwrap()
    }

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

/// A guest small enough to have many.
pub fn options() -> Options {
    Options::new(&[64]).regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
}

/// Asks for `length` bytes and kicks; returns where they will be.
pub fn submit(driver: &mut Driver, length: u32) -> u64 {
    let address = driver.alloc(length.into());
    driver.memory.fill(address, length as usize, 0);
    submit_buffers(driver, &[Buffer::writable(address, length)]);
    address
}

/// Makes a request of these buffers and kicks.
pub fn submit_buffers(driver: &mut Driver, buffers: &[Buffer]) {
    driver.queues[0].submit(buffers).unwrap();
    driver.queues[0].notify();
}

/// Waits for the next answer and returns its length.
pub fn answer(driver: &mut Driver) -> usize {
    let Used { len, .. } = driver.queues[0].wait_used(DEADLINE);
    len as usize
}

/// Asks for `length` bytes and waits for as many as there are.
pub fn request(driver: &mut Driver, length: u32) -> Vec<u8> {
    driver.arena.clear();
    let address = submit(driver, length);
    let length = answer(driver);
    driver.memory.read_vec(address, length)
}

/// Runs the daemon for as long as it takes to see that it cannot be run so: its status and what
/// it says.
pub fn run(arguments: &[&OsStr]) -> (i32, String) {
    let output = Command::new(PROGRAM)
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

/// A command that runs the daemon in a shell with `prefix` before it. `stdin` is descriptor 0 of
/// the shell, `stdout` 1.
pub fn shell(prefix: &str, stdin: OwnedFd, stdout: Option<OwnedFd>, arguments: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{prefix} exec {PROGRAM} {arguments}"))
        .stdin(stdin);
    if let Some(stdout) = stdout {
        command.stdout(stdout);
    }
    command
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
