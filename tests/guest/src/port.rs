//! The serial port over which commands go into the guest.
//!
//! The guest says `ready`, then answers each line that it is sent with
//! `<exit status> <length>`, a newline, and so many bytes of output.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::seen::CommandOutput;

/// What the guest's init says once it takes commands.
const READY: &str = "ready";
/// More output than this from one line is a mistake of the test.
const MAX_OUTPUT: u64 = 64 << 20;

/// The host's end of the command port.
pub(crate) struct Port {
    stream: BufReader<UnixStream>,
}

impl Port {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Waits until the guest takes commands; with `None`, for ever.
    pub(crate) fn wait_ready(&mut self, deadline: Option<Instant>) -> Result<()> {
        let said = self.read_line(deadline).context("while the guest booted")?;
        ensure!(said == READY, "the guest's first line was {said:?}");
        Ok(())
    }

    /// Sends a line that the guest does not live to answer.
    pub(crate) fn send(&mut self, line: &str) -> Result<()> {
        ensure!(
            !line.contains('\n'),
            "a guest's command must be one line: {line:?}"
        );
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("cannot send the guest its line `{line}`"))
    }

    /// Runs a line and waits for what it printed.
    pub(crate) fn run(&mut self, line: &str, deadline: Option<Instant>) -> Result<CommandOutput> {
        self.send(line)?;
        self.read_answer(line, deadline)
            .with_context(|| format!("while the guest ran `{line}`"))
    }

    fn read_answer(&mut self, line: &str, deadline: Option<Instant>) -> Result<CommandOutput> {
        let header = self.read_line(deadline)?;
        let (status, length) = parse_header(&header)
            .with_context(|| format!("the guest's answer began with {header:?}"))?;
        ensure!(length <= MAX_OUTPUT, "the line printed {length} bytes");
        let output = self.read_output(length, deadline)?;
        Ok(CommandOutput {
            line: line.to_owned(),
            output: String::from_utf8_lossy(&output).into_owned(),
            status,
        })
    }

    fn read_output(&mut self, length: u64, deadline: Option<Instant>) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        while (output.len() as u64) < length {
            self.set_timeout(deadline)?;
            let left = length - output.len() as u64;
            let chunk = checked(self.stream.fill_buf())?;
            ensure!(!chunk.is_empty(), "the guest ended");
            let count = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            output.extend_from_slice(&chunk[..count]);
            self.stream.consume(count);
        }
        Ok(output)
    }

    fn read_line(&mut self, deadline: Option<Instant>) -> Result<String> {
        self.set_timeout(deadline)?;
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(256);
        checked(limited.read_line(&mut line))?;
        ensure!(line.ends_with('\n'), "the guest ended");
        Ok(line.trim_end().to_owned())
    }

    fn set_timeout(&self, deadline: Option<Instant>) -> Result<()> {
        let timeout = deadline.map(|deadline| {
            // A timeout of zero would mean none.
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        });
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(timeout)
            .context("cannot set the command port's timeout")
    }
}

/// `<exit status> <length>`
fn parse_header(header: &str) -> Option<(i32, u64)> {
    let (status, length) = header.split_once(' ')?;
    Some((status.parse().ok()?, length.parse().ok()?))
}

/// Names a timeout and an end for what they mean here.
fn checked<T>(result: std::io::Result<T>) -> Result<T> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("the guest's time is over")
        }
        Err(e) if e.kind() == ErrorKind::ConnectionReset => bail!("the guest ended"),
        result => result.context("cannot read from the guest"),
    }
}
