//! A control socket: whoever may connect says in lines of text what shall be done, and gets an
//! answer to each.
//!
//! Clients are served one after the other, on a thread that no guest waits for.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;

use crate::sockets::{BindError, Listener, bind};

/// The longest line: a client cannot fill the memory.
const MAX_LINE: u64 = 256;

/// How long clients that cannot be taken are left alone.
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

/// What a line is answered with: a text, or why it was not done, which follows on `error: `.
pub type Answer = Result<String, String>;

/// Listens at `path`, for as long as the process lives, and answers each line by `obey`. Only the
/// daemon's user may connect. The file is there for as long as what is returned.
///
/// # Errors
/// When the path cannot be had.
pub fn start(
    path: &Path,
    obey: impl Fn(&str) -> Answer + Send + 'static,
) -> Result<Listener, ControlError> {
    let listener = bind(path, Some(Mode::RUSR | Mode::WUSR))?;
    let socket = listener.socket().map_err(ControlError::Thread)?;
    let thread = thread::Builder::new().name("control".to_owned());
    thread
        .spawn(move || listen(&socket, &obey))
        .map_err(ControlError::Thread)?;
    Ok(listener)
}

fn listen(socket: &UnixListener, obey: &impl Fn(&str) -> Answer) {
    loop {
        match accept(socket) {
            Ok(stream) => {
                if let Err(error) = serve(&stream, obey) {
                    log::debug!("the control socket lost a client: {error}");
                }
            }
            Err(error) => {
                log::debug!("the control socket cannot take a client: {error}");
                // It is ready still when descriptors have run out.
                thread::sleep(PAUSE);
            }
        }
    }
}

fn accept(socket: &UnixListener) -> io::Result<UnixStream> {
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None)?;
    let (stream, _) = socket.accept()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Does what a client says, until it leaves.
fn serve(stream: &UnixStream, obey: &impl Fn(&str) -> Answer) -> io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut output = stream;
    let mut line = Vec::new();
    while input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        match obey(text.trim()) {
            Ok(answer) => writeln!(output, "{answer}")?,
            Err(why) => writeln!(output, "error: {why}")?,
        }
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_each_line_has_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let echo = |line: &str| match line {
            "no" => Err("why".to_owned()),
            line => Ok(line.to_owned()),
        };
        let listener = start(&path, echo).unwrap();
        for _ in 0..2 {
            let mut client = BufReader::new(UnixStream::connect(&path).unwrap());
            let mut ask = |text: &[u8]| {
                client.get_mut().write_all(text).unwrap();
                let mut answer = String::new();
                client.read_line(&mut answer).unwrap();
                answer
            };
            assert_eq!(ask(b" yes \r\n"), "yes\n");
            assert_eq!(ask(b"no\n"), "error: why\n");
            assert_eq!(ask(b"\xff\n"), "\u{fffd}\n");
            // One that is too long is several.
            assert_eq!(ask(&[b'x'; MAX_LINE as usize]).len(), MAX_LINE as usize + 1);
        }
        drop(listener);
        assert!(!path.exists());
    }
}
