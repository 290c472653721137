//! The process around a vhost-user device: command line, sockets, signals, logs, capabilities.
//!
//! A device's binary implements [`Backend`] and calls [`run`]. Everything that the daemons have in
//! common is here, so that a user who knows one knows them all.
//!
//! # Order of start
//! 1. Parse the command line and claim the sockets that were inherited (`--fd`, `LISTEN_FDS`),
//!    before anything else is opened, so that no number can mean a file of our own.
//!    [`Backend::check`] finds options that contradict each other.
//! 2. Open the hardware: [`Backend::open`].
//! 3. Bind the sockets of `--socket-path`.
//! 4. Make what serving needs: the event loop, the link to the service manager, the thread that
//!    writes the log.
//! 5. Say READY, then serve: [`Backend::device`] for each connection.
//!
//! Whatever the user's configuration can cause to fail does so before step 5, with a message and a
//! status that is not 0. Nothing is opened by path after step 4, so privileges can be dropped
//! there.

mod cli;
pub mod control;
mod logging;
mod nearest;
mod notify;
mod served;
mod server;
mod signals;
mod sockets;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use vhost_device_backend::{Device, Options};

pub use crate::cli::{number_in, with_number};
pub use crate::nearest::nearest;
pub use crate::sockets::{BindError, Listener, bind};

use crate::cli::{Invocation, Sockets};
use crate::logging::Log;
use crate::notify::ServiceManager;

use crate::server::{Ending, Server};
use crate::signals::Signals;
use crate::sockets::Endpoint;

/// The status of a daemon that could not start or not go on.
const FAILURE: u8 = 1;

/// The status of a usage error.
const USAGE: u8 = 2;

/// What a daemon is called.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The name of the program: `env!("CARGO_PKG_NAME")`.
    pub name: &'static str,
    /// Its version: `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// One line on what it does: `env!("CARGO_PKG_DESCRIPTION")`.
    pub about: &'static str,
    /// The type that `--print-capabilities` reports, for example `rng` (QEMU,
    /// `docs/interop/vhost-user.json`, `VhostUserBackendType`).
    pub device_type: &'static str,
}

/// A daemon: the hardware, shared by all guests, and what makes a device of it for each.
pub trait Backend: Send + Sync + Sized + 'static {
    /// The options of this daemon, shown under their own heading.
    type Args: clap::Args;
    /// The device that one connection of one guest gets.
    type Device: Device;
    /// Why the hardware cannot be had; its message tells the user what to do.
    type Error: std::error::Error + 'static;

    /// What the daemon is called.
    const IDENTITY: Identity;

    /// Finds what is wrong with the command line alone, whatever the hardware is, for so many
    /// guests.
    ///
    /// # Errors
    /// A usage error: the daemon ends with this message and status 2.
    fn check(args: &Self::Args, guests: usize) -> Result<(), Self::Error> {
        let _ = (args, guests);
        Ok(())
    }

    /// What the options ask for instead of a start, such as a list: the daemon prints it and ends.
    /// `guests` is how many there would be.
    fn answer(args: &Self::Args, guests: usize) -> Option<Result<String, Self::Error>> {
        let _ = (args, guests);
        None
    }

    /// Opens the hardware for `guests` guests, before any socket exists.
    ///
    /// # Errors
    /// The daemon ends with this message and status 1.
    fn open(args: Self::Args, guests: usize) -> Result<Self, Self::Error>;

    /// Makes the device for a new connection of `guest`, counted from 0, on the thread that
    /// serves it. A guest has one connection at a time.
    ///
    /// # Errors
    /// The connection is closed; the daemon goes on.
    fn device(&self, guest: usize) -> io::Result<Self::Device>;
}

/// The whole life of a daemon; the result is for `main` to return.
#[must_use]
pub fn run<B: Backend>() -> ExitCode {
    let identity = &B::IDENTITY;
    let arguments: Vec<_> = std::env::args_os().collect();
    if cli::wants_capabilities(&arguments) {
        return print_capabilities(identity);
    }
    let parsed = match cli::parse::<B::Args>(identity, arguments) {
        Ok(parsed) => parsed,
        Err(error) => return answer_parser(identity, &error),
    };
    if let Some(answer) = B::answer(&parsed.device, parsed.guests()) {
        return match answer {
            Ok(text) => print(identity, text.trim_end()),
            Err(error) => {
                logging::say_without_log(&failure(identity, &error));
                ExitCode::from(FAILURE)
            }
        };
    }
    let invocation = match parsed.claim(B::check) {
        Ok(invocation) => invocation,
        Err(error) => return answer_parser(identity, &error),
    };
    // Before any thread, so that each inherits the mask and no socket is left behind.
    let signals = Signals::block().and_then(|signals| served::prepare().map(|()| signals));
    let mut log = Log::install(invocation.log_level);
    let ending = signals
        .map_err(Into::into)
        .and_then(|signals| start::<B>(invocation, signals, &mut log))
        .and_then(|server| Ok(server.run()?));
    let Ending { code, deadline } = match ending {
        Ok(ending) => ending,
        Err(error) => {
            // Not as a message, which the level may leave out.
            log.say(&failure(identity, &*error));
            Ending::new(ExitCode::from(FAILURE))
        }
    };
    log.finish(deadline);
    code
}

/// What a daemon says that cannot start or go on.
fn failure(identity: &Identity, error: &dyn std::error::Error) -> String {
    format!("{}: error: {}", identity.name, Chain(error))
}

/// Everything up to READY.
fn start<B: Backend>(
    invocation: Invocation<B::Args>,
    signals: Signals,
    log: &mut Log,
) -> Result<Server<B>, Box<dyn std::error::Error>> {
    raise_open_files_limit();
    let backend = B::open(invocation.device, invocation.sockets.guests())
        .map_err(Box::<dyn std::error::Error>::from)?;
    let endpoints = endpoints(invocation.sockets)?;
    let manager = ServiceManager::connect();
    let session = Options {
        poll: invocation.poll,
        memory_fs: invocation.memory_fs,
        without: invocation.without,
        ..Options::default()
    };
    let server = Server::new(backend, endpoints, signals, manager, session)?;
    log.start()?;
    server.announce();
    Ok(server)
}

fn endpoints(sockets: Sockets) -> Result<Vec<Endpoint>, BindError> {
    match sockets {
        Sockets::Adopted(endpoints) => Ok(endpoints),
        Sockets::Paths { paths, mode } => paths
            .iter()
            .map(|path| bind(path, mode).map(Endpoint::Listener))
            .collect(),
    }
}

/// A guest takes about ten descriptors: the usual soft limit of 1024 is too small for 256 guests
/// and nothing here uses `select`, which is what the soft limit is for.
fn raise_open_files_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("the limit of open files stays as it is: {error}");
    }
}

/// `--print-capabilities`: QEMU `docs/interop/vhost-user.rst`, "Backend program conventions".
fn print_capabilities(identity: &Identity) -> ExitCode {
    let capabilities = serde_json::json!({ "type": identity.device_type, "features": [] });
    print(identity, capabilities)
}

/// Prints what was asked for.
fn print(identity: &Identity, text: impl fmt::Display) -> ExitCode {
    let mut stdout = io::stdout();
    // At once: a reader that has seen enough of it does not make it fail. At the end, what is left
    // in its buffer would be lost without an error.
    let text = format!("{text}\n");
    let printed = stdout.write_all(text.as_bytes());
    written(identity, printed.and_then(|()| stdout.flush()))
}

/// The end of a program that was to print something.
fn written(identity: &Identity, result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = format!("{}: error: cannot write: {error}", identity.name);
            logging::say_without_log(&error);
            ExitCode::from(FAILURE)
        }
    }
}

/// Prints what the parser of the command line gives: the help or the version, with status 0, or
/// a usage error, with status 2 whether it can be written or not.
fn answer_parser(identity: &Identity, error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        match logging::is_for_the_journal() {
            true => logging::say_without_log(&error.to_string()),
            false => drop(error.print()),
        }
        return ExitCode::from(USAGE);
    }
    written(identity, error.print().and_then(|()| io::stdout().flush()))
}

/// An error with its sources behind it, `a: b: c`, for a line of the log.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
