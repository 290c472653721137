//! A control socket: a client sees and changes what is simulated, and gives the daemon commands.
//! All daemons have the same grammar:
//!
//! | from the client, a line | to the client, lines |
//! |---|---|
//! | `help`, `help WORD` | each command, and each thing that there is, with what it can be set to; or one of them |
//! | `list` | `NAME VALUE` of each thing |
//! | `get NAME` | `NAME VALUE` |
//! | `set NAME VALUE` | the same, after the change |
//! | a command of the daemon's own | what it says |
//!
//! - Each line has an answer, which ends with a line `ok`, or is a line that begins with `error: `
//!   and tells what to write instead: the nearest word, or the range that a value must be in.
//! - A line that a daemon sends by itself, because a command has asked it to, begins with
//!   `changed `; it may come before the first line of an answer and behind its last, never between.
//! - A `NAME` may have spaces in it, a `VALUE` has none. Parts of one thing have dots before them:
//!   `sim.temperature`.
//! - A line has at most 256 bytes, and ends with a newline.
//!
//! A daemon implements [`Control`] for its things, and passes it to [`serve`], which serves clients
//! on a thread that no guest waits for. One whose simulator lives on a guest's thread keeps a
//! [`Client`] for each connection, and gets its answers from [`answer`].
//!
//! Eight clients are served at once; one that stays connected, or does not read its answers, holds
//! up no other. Only the daemon's user may connect.

mod client;
mod grammar;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use vhost_device_backend::{RateLimit, limited};

pub use self::client::{Client, Gone};
pub use self::grammar::{Answer, Command, Control, Item, answer, choice, number};
use crate::sockets::{BindError, Listener, bind};

/// How many clients are served at once.
pub const MAX_CLIENTS: usize = 8;

/// How long clients that cannot be taken are left alone: trying again at once would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nobody can listen to what clients say.
    #[error("cannot listen at the control socket")]
    Thread(#[source] io::Error),
}

/// Listens at `path`, for as long as the process lives, and does what clients say with `control`.
/// The file is there for as long as what is returned.
///
/// # Errors
/// When the path cannot be had.
pub fn serve(
    path: &Path,
    control: impl Control + Send + 'static,
) -> Result<Listener, ControlError> {
    let listener = bind(path, Some(Mode::RUSR | Mode::WUSR))?;
    let socket = listener.socket().map_err(ControlError::Thread)?;
    let mut server = Server {
        control,
        clients: Vec::new(),
        lost: RateLimit::default(),
    };
    let thread = thread::Builder::new().name("control".to_owned());
    thread
        .spawn(move || server.run(&socket))
        .map_err(ControlError::Thread)?;
    Ok(listener)
}

/// What the thread has.
struct Server<C> {
    control: C,
    clients: Vec<Client>,
    lost: RateLimit,
}

impl<C: Control> Server<C> {
    fn run(&mut self, socket: &UnixListener) {
        // Not watched after a client could not be taken: it would be ready still.
        let mut rests = false;
        loop {
            let ready = match self.wait((!rests).then_some(socket)) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    self.complain(error);
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            rests = false;
            if ready {
                match accept(socket) {
                    Ok(stream) => self.welcome(stream),
                    // It has left already.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        self.complain(error);
                        rests = true;
                    }
                }
            }
            let Self {
                control, clients, ..
            } = self;
            clients.retain_mut(|client| serve_client(client, control).is_ok());
        }
    }

    /// Waits for a client that can be served; tells whether a new one has come to `socket`. Does
    /// not wait long without `socket`.
    fn wait(&self, socket: Option<&UnixListener>) -> Result<bool, Errno> {
        let clients = self.clients.iter().map(|client| {
            let flags = match client.listens() {
                true => PollFlags::IN,
                false => PollFlags::OUT,
            };
            PollFd::new(client, flags)
        });
        let socket = socket.map(|socket| PollFd::new(socket, PollFlags::IN));
        let timeout = Timespec {
            tv_sec: 0,
            // Fits: it is less than a second.
            tv_nsec: i64::from(PAUSE.subsec_nanos()),
        };
        let timeout = socket.is_none().then_some(&timeout);
        let is_watched = socket.is_some();
        let mut fds: Vec<_> = socket.into_iter().chain(clients).collect();
        poll(&mut fds, timeout)?;
        let first = fds.first().filter(|_| is_watched);
        Ok(first.is_some_and(|fd| !fd.revents().is_empty()))
    }

    fn welcome(&mut self, stream: UnixStream) {
        let mut client = match Client::new(stream) {
            Ok(client) => client,
            Err(error) => return self.complain(error),
        };
        if self.clients.len() < MAX_CLIENTS {
            return self.clients.push(client);
        }
        client.answer(&refusal());
        // Gone or not, it is dropped.
        let _ = client.flush();
    }

    fn complain(&self, error: impl Into<io::Error>) {
        limited!(
            self.lost,
            Warn,
            "the control socket cannot take a client: {}",
            error.into()
        );
    }
}

/// What a client is told that finds [`MAX_CLIENTS`] others there.
pub fn refusal() -> String {
    format!("error: {MAX_CLIENTS} clients are connected already: close one\n")
}

fn accept(socket: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = socket.accept()?;
    Ok(stream)
}

/// Does what a client has said, as far as it takes the answers.
fn serve_client(client: &mut Client, control: &mut dyn Control) -> Result<(), Gone> {
    // What it took is room for the next answer.
    client.flush()?;
    client.receive()?;
    while let Some(line) = client.next_line() {
        client.answer(&answer(control, &line));
        client.flush()?;
    }
    client.flush()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::path::PathBuf;

    use super::*;

    /// A thing called `level`.
    struct Level(u8);

    impl Control for Level {
        fn items(&self) -> Vec<Item> {
            vec![Item {
                name: "level".to_owned(),
                value: self.0.to_string(),
                takes: Some("0 to 9".to_owned()),
            }]
        }

        fn set(&mut self, _: &str, value: &str) -> Result<(), String> {
            self.0 = number(value, 0..=9)?;
            Ok(())
        }
    }

    fn level() -> (tempfile::TempDir, PathBuf, Listener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = serve(&path, Level(0)).unwrap();
        (directory, path, listener)
    }

    fn connect(path: &Path) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(path).unwrap())
    }

    fn ask(client: &mut BufReader<UnixStream>, line: &str) -> String {
        client.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ok\n") && !answer.starts_with("error: ") {
            assert!(client.read_line(&mut answer).unwrap() > 0, "{answer}");
        }
        answer
    }

    #[test]
    fn test_each_line_has_an_answer() {
        let (_directory, path, listener) = level();
        let mut client = connect(&path);
        assert_eq!(ask(&mut client, "set level 7\n"), "level 7\nok\n");
        let error = ask(&mut client, "set level 10\n");
        assert_eq!(error, "error: \"10\" is not a number from 0 to 9\n");
        assert_eq!(ask(&mut client, "get level\n"), "level 7\nok\n");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn test_a_client_that_stays_holds_up_no_other() {
        let (_directory, path, _listener) = level();
        // One says nothing, one half a line, and one does not read what it has asked for.
        let _silent = connect(&path);
        let mut half = connect(&path);
        half.get_mut().write_all(b"set level 9").unwrap();
        let deaf = connect(&path);
        deaf.get_ref().set_nonblocking(true).unwrap();
        while deaf.get_ref().write(b"help\nhelp\nhelp\nhelp\n").is_ok() {}
        assert_eq!(ask(&mut connect(&path), "get level\n"), "level 0\nok\n");
        assert_eq!(ask(&mut half, "\n"), "level 9\nok\n");
    }

    #[test]
    fn test_a_client_too_many_is_told_so_and_one_that_leaves_makes_room() {
        let (_directory, path, _listener) = level();
        let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| connect(&path)).collect();
        for client in &mut clients {
            ask(client, "list\n");
        }
        let mut answer = String::new();
        connect(&path).read_line(&mut answer).unwrap();
        assert_eq!(
            answer,
            "error: 8 clients are connected already: close one\n"
        );
        clients.pop();
        loop {
            // It is not gone before the thread has seen it.
            let mut client = connect(&path);
            if client.get_mut().write_all(b"list\n").is_ok() {
                answer.clear();
                client.read_line(&mut answer).unwrap_or(0);
                if answer == "level 0\n" {
                    break;
                }
            }
        }
    }
}
