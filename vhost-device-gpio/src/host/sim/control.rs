//! The simulator's control socket: whoever connects plays the world around the chip.
//!
//! Lines of text, each ended by a newline; `LINE` is a number or, from the client, a name.
//!
//! | from the client | meaning |
//! |---|---|
//! | `LINE=0`, `LINE=1` | the level that comes from outside |
//! | `LINE` | what is its level? |
//!
//! | to the client | meaning |
//! |---|---|
//! | `LINE LEVEL` | the line has this level: of each line at first, with each change, and once for each line that the client sent |
//! | `error: …` | what the client sent is nothing of these |
//!
//! A client is not trusted: what is kept for one is bounded, and one that does not read, or sends
//! lines without end, is cut off.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::host::LineNumber;

/// The longest line that a client may send.
const MAX_LINE: usize = 128;

/// How much is kept for a client that does not read.
const MAX_OUTPUT: usize = 64 * 1024;

/// How much of a client is read before others have their turn.
const CHUNK: usize = 512;

/// What a client wants of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) line: LineNumber,
    /// The level from outside that it shall have, if it shall have one.
    pub(super) level: Option<bool>,
}

/// A client that is connected.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    /// The beginning of a line.
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The client has gone, or has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Client {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
        })
    }

    /// Takes some of what it sent: the lines that are whole, without their newlines.
    pub(super) fn read(&mut self) -> Result<Vec<Vec<u8>>, Gone> {
        let mut chunk = [0; CHUNK];
        let bytes = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(Gone),
            Ok(length) => chunk.get(..length).unwrap_or_default(),
            Err(error) if is_for_later(&error) => return Ok(Vec::new()),
            Err(_) => return Err(Gone),
        };
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => lines.push(std::mem::take(&mut self.input)),
                _ if self.input.len() >= MAX_LINE => return Err(Gone),
                byte => self.input.push(byte),
            }
        }
        Ok(lines)
    }

    /// Tells it the level of a line.
    pub(super) fn tell(&mut self, line: LineNumber, level: bool) {
        let level = u8::from(level);
        self.output
            .extend_from_slice(format!("{line} {level}\n").as_bytes());
    }

    pub(super) fn tell_error(&mut self, why: &str) {
        self.output
            .extend_from_slice(format!("error: {why}\n").as_bytes());
    }

    /// Sends what it has been told, as far as it takes it. True when something is left.
    pub(super) fn flush(&mut self) -> Result<bool, Gone> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(Gone),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if is_for_later(&error) => break,
                Err(_) => return Err(Gone),
            }
        }
        match self.output.len() > MAX_OUTPUT {
            true => Err(Gone),
            false => Ok(!self.output.is_empty()),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Understands a line of a client, with the names of the chip's lines.
pub(super) fn parse(text: &[u8], names: &[String]) -> Result<Command, &'static str> {
    let text = str::from_utf8(text).map_err(|_| "that is no text")?;
    let text = text.trim();
    let (line, level) = match text.rsplit_once('=') {
        None => (text, None),
        Some((line, "0")) => (line, Some(false)),
        Some((line, "1")) => (line, Some(true)),
        Some(_) => return Err("a level is 0 or 1"),
    };
    let line = find(line, names).ok_or("there is no such line")?;
    Ok(Command { line, level })
}

fn find(line: &str, names: &[String]) -> Option<LineNumber> {
    let number = match line.parse() {
        Ok(number) => number,
        Err(_) if line.is_empty() => return None,
        Err(_) => names.iter().position(|name| name == line)?,
    };
    (number < names.len()).then(|| LineNumber::try_from(number).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::new(ours).unwrap(), theirs)
    }

    #[test]
    fn test_parse_numbers_names_and_what_is_neither() {
        let names = ["reset", "a=b", ""].map(str::to_owned);
        let command = |line, level| Ok(Command { line, level });
        assert_eq!(parse(b"1=1", &names), command(1, Some(true)));
        assert_eq!(parse(b" reset=0\r", &names), command(0, Some(false)));
        assert_eq!(parse(b"a=b=1", &names), command(1, Some(true)));
        assert_eq!(parse(b"2", &names), command(2, None));
        for wrong in [&b""[..], b"3", b"=1", b"nobody=1", b"99999999999999999999"] {
            assert_eq!(parse(wrong, &names), Err("there is no such line"));
        }
        assert_eq!(parse(b"0=2", &names), Err("a level is 0 or 1"));
        assert_eq!(parse(b"\xff=1", &names), Err("that is no text"));
    }

    #[test]
    fn test_lines_are_put_together_from_pieces() {
        let (mut client, mut theirs) = client();
        assert_eq!(client.read(), Ok(vec![]));
        theirs.write_all(b"1=1\n2").unwrap();
        assert_eq!(client.read(), Ok(vec![b"1=1".to_vec()]));
        theirs.write_all(b"=0\n\n").unwrap();
        assert_eq!(client.read(), Ok(vec![b"2=0".to_vec(), vec![]]));
        drop(theirs);
        assert_eq!(client.read(), Err(Gone));
    }

    #[test]
    fn test_a_line_without_end_is_the_end() {
        let (mut client, mut theirs) = client();
        theirs.write_all(&[b'x'; MAX_LINE + 1]).unwrap();
        assert_eq!(client.read(), Err(Gone));
    }

    #[test]
    fn test_a_client_that_does_not_read_is_cut_off() {
        let (mut client, mut theirs) = client();
        let mut told = 0;
        while client.flush() == Ok(false) {
            client.tell(7, true);
            told += 4;
        }
        while client.flush() == Ok(true) {
            client.tell(7, true);
            told += 4;
        }
        assert_eq!(client.flush(), Err(Gone));
        assert_eq!(client.output.len(), MAX_OUTPUT + 4);
        drop(client);
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).unwrap();
        assert_eq!(seen.len() + MAX_OUTPUT + 4, told);
    }
}
