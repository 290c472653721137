//! One client of a control socket: lines in, answers out, and nothing waits for it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The longest line that a client may send: one without an end cannot fill the memory.
const MAX_LINE: usize = 256;

/// How much is read of a client at once; the same is kept of what it sent.
const CHUNK: usize = 512;

/// How much a client that does not read may have waiting of what it did not ask for.
const MAX_UNASKED: usize = 64 * 1024;

/// The client has gone, or has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A client that is connected. Nothing here blocks: whoever serves it watches its fd for reading
/// while [`Client::listens`], and for writing otherwise, and then calls [`Client::receive`],
/// answers each [`Client::next_line`], and calls [`Client::flush`].
///
/// What is kept for it is bounded: a line, the lines behind it as far as they were read at once,
/// the answer to one line, and 64 KiB that it did not ask for. One that does not read its answer is
/// not listened to meanwhile.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Nothing will come any more, and no line behind those that are there.
    ended: bool,
    /// It does not read what it is told.
    deaf: bool,
}

impl Client {
    /// A client at the other end of `stream`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            ended: false,
            deaf: false,
        })
    }

    /// Whether it is to be watched for reading, and not for writing: it has taken all that it was
    /// told, or has more to say.
    pub fn listens(&self) -> bool {
        self.output.is_empty()
    }

    /// Reads what it has sent, as far as there is room.
    ///
    /// # Errors
    /// Its connection is broken.
    pub fn receive(&mut self) -> Result<(), Gone> {
        if self.ended || self.input.len() >= CHUNK {
            return Ok(());
        }
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            // Its last line may have no newline, and it may wait for answers still.
            Ok(0) => self.ended = true,
            Ok(length) => self
                .input
                .extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if is_for_later(&error) => {}
            Err(_) => return Err(Gone),
        }
        Ok(())
    }

    /// Its next line, without its newline, if one has come whole and the answer to the one before
    /// is sent.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        if !self.output.is_empty() {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(self.input.len());
        if length > MAX_LINE {
            self.answer(&format!("error: a line has at most {MAX_LINE} bytes\n"));
            self.input.clear();
            self.ended = true;
            return None;
        }
        match end {
            Some(end) => {
                let mut line: Vec<_> = self.input.drain(..=end).collect();
                line.pop();
                Some(line)
            }
            None if self.ended && length > 0 => Some(std::mem::take(&mut self.input)),
            None => None,
        }
    }

    /// Answers its line.
    pub fn answer(&mut self, text: &str) {
        self.output.extend_from_slice(text.as_bytes());
    }

    /// Tells it something that it did not ask for with this line. One that has left too much of
    /// that unread is cut off.
    pub fn tell(&mut self, text: &str) {
        match self.output.len() < MAX_UNASKED {
            true => self.answer(text),
            false => self.deaf = true,
        }
    }

    /// Sends what it has been told, as far as it takes it.
    ///
    /// # Errors
    /// It has gone, or was told all that it wanted to know, or does not read what it is told.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(Gone),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if is_for_later(&error) => break,
                Err(_) => return Err(Gone),
            }
        }
        let satisfied = self.ended && self.output.is_empty() && self.input.is_empty();
        match satisfied || self.deaf {
            true => Err(Gone),
            false => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    fn client() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::new(ours).unwrap(), theirs)
    }

    fn next(client: &mut Client) -> Option<String> {
        client.receive().unwrap();
        let line = client.next_line()?;
        Some(String::from_utf8(line).unwrap())
    }

    #[test]
    fn test_lines_are_put_together_from_pieces() {
        let (mut client, mut theirs) = client();
        assert_eq!(next(&mut client), None);
        theirs.write_all(b"get 1\nge").unwrap();
        assert_eq!(next(&mut client).as_deref(), Some("get 1"));
        assert_eq!(next(&mut client), None);
        theirs.write_all(b"t 2\n\nget 3").unwrap();
        assert_eq!(next(&mut client).as_deref(), Some("get 2"));
        assert_eq!(next(&mut client).as_deref(), Some(""));
        assert_eq!(next(&mut client), None);
        assert_eq!(client.flush(), Ok(()));
        drop(theirs);
        assert_eq!(next(&mut client).as_deref(), Some("get 3"), "it has no end");
        assert_eq!(client.flush(), Err(Gone));
    }

    #[test]
    fn test_a_client_that_has_said_all_gets_its_answers() {
        let (mut client, mut theirs) = client();
        theirs.write_all(b"1\n2\n").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!(next(&mut client).as_deref(), Some("1"));
        client.answer("1");
        client.flush().unwrap();
        assert_eq!(next(&mut client).as_deref(), Some("2"));
        client.answer("2");
        assert_eq!(client.flush(), Err(Gone));
        drop(client);
        let mut seen = String::new();
        theirs.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "12");
    }

    #[test]
    fn test_a_line_without_end_is_the_end() {
        let (mut client, mut theirs) = client();
        theirs.write_all(&[b'x'; MAX_LINE]).unwrap();
        assert_eq!(next(&mut client), None);
        assert_eq!(client.flush(), Ok(()));
        theirs.write_all(b"x").unwrap();
        assert_eq!(next(&mut client), None);
        assert_eq!(client.flush(), Err(Gone));
        drop(client);
        let mut seen = String::new();
        theirs.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "error: a line has at most 256 bytes\n");
    }

    #[test]
    fn test_a_client_that_reads_no_answer_is_asked_nothing() {
        let (mut client, mut theirs) = client();
        theirs.write_all(b"1\n2\n").unwrap();
        assert_eq!(next(&mut client).as_deref(), Some("1"));
        let answer = "x".repeat(1 << 20);
        client.answer(&answer);
        client.flush().unwrap();
        assert!(!client.listens());
        assert_eq!(next(&mut client), None);
        let mut seen = vec![0; answer.len()];
        theirs.set_nonblocking(true).unwrap();
        let mut length = 0;
        while length < seen.len() {
            client.flush().unwrap();
            if let Ok(more) = theirs.read(&mut seen[length..]) {
                length += more;
            }
        }
        assert!(client.listens());
        assert_eq!(next(&mut client).as_deref(), Some("2"));
    }

    #[test]
    fn test_a_client_that_does_not_read_what_it_is_told_is_cut_off() {
        let (mut client, mut theirs) = client();
        let mut told = 0;
        while client.flush().is_ok() {
            client.tell("7 1\n");
            told += 4;
        }
        assert_eq!(client.output.len(), MAX_UNASKED);
        drop(client);
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).unwrap();
        assert_eq!(seen.len() + MAX_UNASKED + 4, told);
    }
}
