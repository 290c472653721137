//! Edges: from the pull that makes one to the event buffer that tells of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, bits};
use vhost_device_driver::{Buffer, Driver, Options};

use super::load::bytes;
use crate::load::Done;

/// The line that is pulled, and where its pull is set.
const LINE: u16 = 0;
const PULL: &str = "/sys/devices/platform/gpio-sim.0/gpiochip0/sim_gpio0/pull";
const LEVELS: [&str; 2] = ["pull-down", "pull-up"];

// VIRTIO 1.4 §5.18
const F_IRQ: u64 = 1;
const REQUESTS: usize = 0;
const EVENTS: usize = 1;
const SET_DIRECTION: u16 = 3;
const SET_IRQ_TYPE: u16 = 6;
const DIRECTION_IN: u32 = 2;
const EDGE_BOTH: u32 = 3;
const STATUS_OK: u8 = 0;
const IRQ_VALID: u8 = 1;

/// An edge that takes longer is lost.
const LOST: Duration = Duration::from_secs(1);
/// After so many that are lost the device does no more.
const MAX_LOST: u64 = 3;

/// A guest that waits for edges of a line.
#[derive(Debug)]
pub(super) struct Edges {
    driver: Driver,
    pull: File,
    /// The level that is pulled to.
    level: usize,
    request: u64,
    answer: u64,
    event: u64,
    status: u64,
}

impl Edges {
    /// Brings a device up and arms the line.
    pub(super) fn start(stream: UnixStream) -> Result<Self> {
        let wanted = F_IRQ | bits(&[VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC]);
        let options = Options::new(&[64, 64])
            .require_features(wanted)
            .regions(&[RegionSpec::new(0x4000_0000, 64 << 10)]);
        let mut driver = Driver::with_stream(stream, options).context("no device comes up")?;
        driver.frontend.sync().context("no device comes up")?;
        let pull = OpenOptions::new().write(true).open(PULL);
        let [request, answer, event, status] = [8, 2, 2, 1].map(|length| driver.alloc(length));
        let mut edges = Self {
            pull: pull.with_context(|| format!("cannot open {PULL}"))?,
            level: 0,
            request,
            answer,
            event,
            status,
            driver,
        };
        edges.pull()?;
        edges.ask(SET_DIRECTION, DIRECTION_IN)?;
        edges.ask(SET_IRQ_TYPE, EDGE_BOTH)?;
        edges.driver.memory.write(event, &LINE.to_le_bytes());
        Ok(edges)
    }

    fn pull(&mut self) -> Result<()> {
        self.pull.write_all_at(LEVELS[self.level].as_bytes(), 0)?;
        Ok(())
    }

    fn ask(&mut self, kind: u16, value: u32) -> Result<()> {
        self.driver
            .memory
            .write(self.request, &bytes(kind, LINE, value));
        let queue = &mut self.driver.queues[REQUESTS];
        queue.submit(&[
            Buffer::readable(self.request, 8),
            Buffer::writable(self.answer, 2),
        ])?;
        queue.notify();
        let answered = queue.try_wait_used(LOST).is_some();
        let status = self.driver.memory.read_vec(self.answer, 1);
        ensure!(
            answered && status == [STATUS_OK],
            "request {kind} is answered with {status:?}"
        );
        Ok(())
    }

    /// Makes edges for this long, each when the one before has been told of.
    pub(super) fn run(&mut self, time: Duration) -> Result<Done> {
        let mut done = Done::default();
        let start = Instant::now();
        while start.elapsed() < time && done.failed < MAX_LOST {
            let took = self.edge()?;
            done.requests += 1;
            match took {
                Some(took) => done.times.push(took),
                None => done.failed += 1,
            }
        }
        done.time = start.elapsed();
        Ok(done)
    }

    /// How long the event of an edge takes; `None` when it is lost.
    fn edge(&mut self) -> Result<Option<Duration>> {
        self.driver.memory.write(self.status, &[!IRQ_VALID]);
        let queue = &mut self.driver.queues[EVENTS];
        queue.submit(&[
            Buffer::readable(self.event, 2),
            Buffer::writable(self.status, 1),
        ])?;
        queue.notify();
        self.level = 1 - self.level;
        let start = Instant::now();
        self.pull()?;
        let used = self.driver.queues[EVENTS].try_wait_used(LOST);
        let took = start.elapsed();
        let valid = self.driver.memory.read_vec(self.status, 1) == [IRQ_VALID];
        Ok((used.is_some() && valid).then_some(took))
    }
}
