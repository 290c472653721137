//! A daemon's control socket: lines of text, each with an answer that ends with `ok`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Only a hang takes as long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Control(BufReader<UnixStream>);

impl Control {
    /// Connects to the daemon that listens at this path.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path);
        let stream = stream.with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Says a line, and gives back the lines of the answer, without the last.
    ///
    /// # Errors
    /// When the daemon says that it is one.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        let no_answer = || format!("no answer to {line:?}");
        writeln!(self.0.get_mut(), "{line}").with_context(no_answer)?;
        let mut answer = String::new();
        loop {
            let mut next = String::new();
            let read = self.0.read_line(&mut next).with_context(no_answer)?;
            ensure!(read > 0, "{line:?}: the daemon has left");
            ensure!(!next.starts_with("error: "), "{line:?}: {next}");
            if next == "ok\n" {
                return Ok(answer.trim_end().to_owned());
            }
            answer += &next;
        }
    }
}
