//! The entropy device (VIRTIO 1.4 §5.4): a request is a buffer, the answer is random bytes in it.
//!
//! A buffer gets at least one byte, never none: a request that cannot be answered now, because
//! the source has run dry or the guest's quota is used up, is kept and answered later, in order.
//! Nothing sleeps here. A timer wakes the device, or the source itself if it can.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use vhost_device_backend::{
    Description, Device, QueueIndex, Queues, RateLimit, Resume, Timer, limited,
};
use vhost_device_queue::{Kept, Request, Writer};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::block::{Block, wipe};
use crate::host::Source;
use crate::quota::Lease;
use crate::wake::Readiness;

/// VIRTIO 1.4 §5.4.1.
const DEVICE_ID: u32 = 4;

/// The most that one request gets. A buffer of 4 GiB would else hold the guest's thread, deaf to
/// its front-end, for many seconds. A driver takes less than it asked for.
const MAX_ANSWER: usize = 64 * 1024;

/// Up to here a request is answered from the block in stock; a larger one is filled by the
/// generator itself, one call and no copy.
const SMALL: usize = 256;

/// How many waiting requests are answered before the session's other business has its turn.
const MAX_RESUMED: usize = 64;

/// How many bytes they get at most before that, but for the last one's.
const MAX_RESUMED_BYTES: usize = 256 * 1024;

/// A source that has run dry is tried again after this time, doubled each time up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// The shortest wait for quota: at a high rate, waking up for each grain would take the core.
const MIN_QUOTA_WAIT: Duration = Duration::from_millis(1);

/// Positions in [`Device::event_sources`].
const TIMER: usize = 0;
const READINESS: usize = 1;

/// The entropy device of one connection.
#[derive(Debug)]
pub struct Entropy<S: Source> {
    /// Whose it is, for the log.
    guest: String,
    source: Arc<S>,
    lease: Option<Lease>,
    block: Block,
    /// What was read of a source that others read too, on its way into guest memory.
    copy: Vec<u8>,
    waiting: VecDeque<Kept>,
    timer: Timer,
    readiness: Readiness,
    /// The next retry's delay while the source is dry.
    dry: Option<Duration>,
    logs: Logs,
}

/// What limits the device's log lines about its guest. A clone shares the limits.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    dry: RateLimit,
    no_room: RateLimit,
}

/// Why a request cannot be answered now.
#[derive(Debug)]
enum Later {
    /// The guest has used up what it may have, for this long.
    Quota(Duration),
    /// The source has nothing yet; it may say when.
    NotYet,
    /// The source is at its end.
    End,
    /// The source failed.
    Failed(VolatileMemoryError),
}

/// What woke the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Request,
    Timer,
    Readiness,
}

impl<S: Source> Entropy<S> {
    /// A device that gives bytes of `source`, as far as `lease` allows, to `guest`.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(
        guest: String,
        source: Arc<S>,
        lease: Option<Lease>,
        logs: Logs,
    ) -> io::Result<Self> {
        Ok(Self {
            guest,
            source,
            lease,
            block: Block::new(),
            copy: Vec::new(),
            waiting: VecDeque::new(),
            timer: Timer::new()?,
            readiness: Readiness::new()?,
            dry: None,
            logs,
        })
    }

    /// Answers a request or puts it behind those that wait.
    fn take(&mut self, mut request: Request<'_>) {
        if request.writable_len() == 0 {
            self.log_no_room();
            return;
        }
        if !self.waiting.is_empty() {
            self.waiting.push_back(request.keep());
            return;
        }
        match self.answer(request.writer()) {
            Ok(()) => request.complete(),
            Err(later) => {
                self.waiting.push_back(request.keep());
                self.wait(later, Wake::Request);
            }
        }
    }

    /// Answers requests that wait, in order, until one has to wait longer.
    fn retry(&mut self, queues: &mut impl Resume, wake: Wake) {
        self.stop_waking();
        let mut bytes = 0;
        for _ in 0..MAX_RESUMED {
            if bytes >= MAX_RESUMED_BYTES {
                break;
            }
            let Some(kept) = self.waiting.pop_front() else {
                return;
            };
            let Some(mut request) = queues.resume(kept) else {
                continue;
            };
            match self.answer(request.writer()) {
                Ok(()) => {
                    bytes += request.writer().written();
                    request.complete();
                }
                Err(later) => {
                    self.waiting.push_front(request.keep());
                    self.wait(later, wake);
                    return;
                }
            }
        }
        if !self.waiting.is_empty() {
            self.timer.arm(Duration::ZERO);
        }
    }

    /// Writes at least one byte, as many as there is room for if it can.
    fn answer(&mut self, writer: &mut Writer<'_>) -> Result<(), Later> {
        let wanted = writer.remaining().min(MAX_ANSWER);
        let Some(lease) = &mut self.lease else {
            return self.give(writer, wanted).map(drop);
        };
        let now = self.source.now();
        let allowed = lease.bucket().allow(wanted, now).map_err(Later::Quota)?;
        let given = self.give(writer, allowed)?;
        if let Some(lease) = &mut self.lease {
            lease.bucket().take(given);
        }
        Ok(())
    }

    /// Writes at most `count` bytes of the source, at least one, and returns how many.
    fn give(&mut self, writer: &mut Writer<'_>, count: usize) -> Result<usize, Later> {
        let result = if !self.source.is_plentiful() {
            self.copy(writer, count)
        } else if count <= SMALL {
            self.block.write_to(writer, count, &*self.source)
        } else {
            writer.write_from(&mut Direct(&*self.source), count)
        };
        match result {
            Ok(0) => Err(Later::End),
            Ok(given) => {
                self.log_flow();
                Ok(given)
            }
            Err(VolatileMemoryError::IOError(error))
                if error.kind() == io::ErrorKind::WouldBlock =>
            {
                Err(Later::NotYet)
            }
            Err(error) => Err(Later::Failed(error)),
        }
    }

    /// Writes at most `count` bytes of a source that runs dry: one read, and a copy. The kernel locks
    /// such a file while it copies from it. Into memory of a guest whose pages come slowly, from a
    /// disk or from its front-end, that would be for as long as the guest likes, and all other
    /// guests would wait.
    fn copy(
        &mut self,
        writer: &mut Writer<'_>,
        count: usize,
    ) -> Result<usize, VolatileMemoryError> {
        self.copy.resize(count, 0);
        let read = self
            .source
            .read(&mut VolatileSlice::from(&mut self.copy[..]))?;
        let bytes = self.copy.get_mut(..read).unwrap_or_default();
        let written = writer.write_all(bytes).map_or(0, |()| read);
        wipe(bytes);
        Ok(written)
    }

    /// Sees to it that the device is woken when the first request can be answered.
    fn wait(&mut self, later: Later, wake: Wake) {
        match later {
            Later::Quota(delay) => self.timer.arm(delay.max(MIN_QUOTA_WAIT)),
            // A source that said that it was ready and was not may say so again at once: then
            // the clock comes in between.
            Later::NotYet if wake != Wake::Readiness && self.watch_source() => {}
            later => {
                let delay = self.dry.unwrap_or(FIRST_RETRY);
                if self.dry.is_none() {
                    self.log_dry(&later);
                }
                self.dry = Some((delay * 2).min(LAST_RETRY));
                self.timer.arm(delay);
            }
        }
    }

    fn watch_source(&mut self) -> bool {
        let Some(source) = self.source.readiness() else {
            return false;
        };
        self.readiness.arm(source)
    }

    fn stop_waking(&mut self) {
        self.timer.disarm();
        if let Some(source) = self.source.readiness() {
            self.readiness.disarm(source);
        }
    }

    /// Gives up the requests that wait.
    fn forget(&mut self) {
        self.waiting.clear();
        self.stop_waking();
    }

    fn log_no_room(&mut self) {
        limited!(
            self.logs.no_room,
            Warn,
            "{}: a request without room for an answer goes back empty",
            self.guest
        );
    }

    /// Once for each time that the source runs dry, however many requests wait.
    fn log_dry(&mut self, later: &Later) {
        let (guest, source) = (&self.guest, self.source.name());
        match later {
            Later::Failed(error) => limited!(
                self.logs.dry,
                Warn,
                "{guest}: cannot read {source}, requests wait: {error}"
            ),
            Later::End => limited!(
                self.logs.dry,
                Warn,
                "{guest}: {source} is at its end, requests wait for more"
            ),
            Later::NotYet | Later::Quota(_) => {
                log::debug!("{guest}: {source} has nothing now, requests wait");
            }
        }
    }

    fn log_flow(&mut self) {
        if self.dry.take().is_some() {
            log::debug!("{}: {} gives again", self.guest, self.source.name());
        }
    }
}

impl<S: Source> Device for Entropy<S> {
    fn describe(&self) -> Description {
        Description {
            device_id: DEVICE_ID,
            queues: 1,
            features: 0,
        }
    }

    fn handle(&mut self, _queue: QueueIndex, request: Request<'_>) {
        self.take(request);
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        let mut sources = vec![self.timer.as_fd()];
        if self.source.readiness().is_some() {
            sources.push(self.readiness.as_fd());
        }
        sources
    }

    fn on_event(&mut self, source: usize, queues: &mut Queues<'_>) {
        let wake = match source {
            TIMER => Wake::Timer,
            READINESS => Wake::Readiness,
            _ => return,
        };
        self.retry(queues, wake);
    }

    fn queue_stopped(&mut self, _queue: QueueIndex) {
        self.forget();
    }

    fn reset(&mut self) {
        self.forget();
        self.block.clear();
        self.dry = None;
    }
}

/// A [`Source`] that writes straight into guest memory.
struct Direct<'a, S>(&'a S);

impl<S: Source> ReadVolatile for Direct<'_, S> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        self.0.read(buffer)
    }
}

#[cfg(test)]
mod tests;
