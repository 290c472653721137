//! QEMU's machine protocol: as much of it as tests need, blocking.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How many events are kept that nobody waits for.
const MAX_EVENTS: usize = 100;

/// A connection to a running QEMU's monitor.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// The last that nobody has waited for.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Reads QEMU's greeting and leaves the negotiation mode.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
        };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's monitor greeted with {greeting}");
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments, such as `system_reset`, `stop` and
    /// `cont`, and gives back what it returned.
    pub fn execute(&mut self, command: &str) -> Result<Value> {
        self.execute_with(command, json!({}))
    }

    /// Runs a command with these arguments, and gives back what it returned.
    pub fn execute_with(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments })
        );
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("cannot send {command} to QEMU"))?;
        loop {
            let mut message = self.read()?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            self.keep(message);
        }
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Waits for an event that `is_meant` knows by its data.
    pub(crate) fn wait_for_event(
        &mut self,
        name: &str,
        is_meant: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        loop {
            // Those that came while a command was answered are first.
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self
                    .read()
                    .with_context(|| format!("no {name} of QEMU's"))?,
            };
            if event["event"] == name && is_meant(&event["data"]) {
                return Ok(());
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line);
        if count.context("no answer from QEMU's monitor")? == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line:?}"))
    }
}
