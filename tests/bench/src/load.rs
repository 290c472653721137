//! The driver that keeps requests outstanding.
//!
//! It is one thread that does what a Linux guest does: it takes all that is done, asks again,
//! kicks if the device wants to be kicked, and sleeps until it is called when nothing is done.
//! While it runs it allocates nothing, so that the daemon is what is measured.

use std::hint::spin_loop;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, bits};
use vhost_device_driver::{Buffer, Driver, Options, Queue};

/// Descriptors in the ring.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// The most answers that are timed in a run.
const MAX_TIMES: usize = 100_000;

/// Guest memory besides the buffers: the ring.
const OVERHEAD: u64 = 64 << 10;

/// Where guest memory begins.
const GUEST_ADDR: u64 = 0x4000_0000;

/// How long a daemon may leave the driver without an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a guest keeps asking for.
#[derive(Debug)]
pub(crate) struct Job {
    slots: Vec<Slot>,
    /// Whether each answer is timed.
    timed: bool,
}

/// A request, or several that belong together: made available at once, and answered when the last
/// one is. It is asked for again with the same buffers.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// The buffers of each request.
    requests: Vec<Vec<Buffer>>,
    /// Bytes in guest memory that a good answer makes so.
    good: Vec<(u64, u8)>,
    /// How many requests are not answered.
    left: usize,
    asked: Instant,
}

impl Slot {
    /// Requests, each with its buffers.
    pub(crate) fn new(requests: Vec<Vec<Buffer>>) -> Self {
        Self {
            requests,
            good: Vec::new(),
            left: 0,
            asked: Instant::now(),
        }
    }

    /// An answer that does not leave these bytes in guest memory has failed.
    pub(crate) fn expect(mut self, bytes: Vec<(u64, u8)>) -> Self {
        self.good = bytes;
        self
    }
}

impl Job {
    /// All of these are outstanding.
    pub(crate) fn new(slots: Vec<Slot>) -> Self {
        Self {
            slots,
            timed: false,
        }
    }

    /// Takes the time of each answer.
    pub(crate) fn timed(mut self) -> Self {
        self.timed = true;
        self
    }
}

/// How the driver waits for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Until it is called.
    Asleep,
    /// Looking all the time, with calls turned off.
    Busy,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Slots that were answered.
    pub(crate) requests: u64,
    /// Those of them whose answer was not good.
    pub(crate) failed: u64,
    /// Bytes that the device says it wrote.
    pub(crate) bytes: u64,
    /// From the first request to the last answer.
    pub(crate) time: Duration,
    /// How long each answer took, of the first ones, when the job is timed.
    pub(crate) times: Vec<Duration>,
}

/// A guest with a device of one queue.
#[derive(Debug)]
pub(crate) struct Guest {
    driver: Driver,
    /// Where the buffers are.
    data: u64,
    /// For the head of each outstanding request, which slot it is of.
    owners: Box<[usize]>,
}

impl Guest {
    /// Brings a device up, with room for so many bytes of requests, and these features of its own.
    pub(crate) fn start(stream: UnixStream, room: u64, features: u64) -> Result<Self> {
        let wanted = features | bits(&[VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC]);
        let options = Options::new(&[QUEUE_SIZE])
            .require_features(wanted)
            .regions(&[RegionSpec::new(GUEST_ADDR, room + OVERHEAD)]);
        let mut driver = Driver::with_stream(stream, options).context("no device comes up")?;
        // The peer acknowledges no message, and loses a kick that comes before its ring is enabled.
        driver.frontend.sync().context("no device comes up")?;
        Ok(Self {
            data: driver.alloc(room),
            driver,
            owners: vec![0; QUEUE_SIZE.into()].into(),
        })
    }

    /// Where its room for requests begins.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// Writes to guest memory.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.driver.memory.write(address, bytes);
    }

    /// Keeps the job's slots outstanding for this long, then waits for the last.
    pub(crate) fn run(&mut self, job: &mut Job, time: Duration, waiting: Waiting) -> Result<Done> {
        let mut done = Done::default();
        if job.timed {
            done.times.reserve_exact(MAX_TIMES);
        }
        let start = Instant::now();
        let end = start + time;
        let mut outstanding = job.slots.len();
        for (number, slot) in job.slots.iter_mut().enumerate() {
            self.ask(number, slot, start)?;
        }
        self.publish();
        while outstanding > 0 {
            let now = Instant::now();
            let again = now < end;
            let mut answered = false;
            while let Some(used) = self.queue().ring.pop_used() {
                answered = true;
                done.bytes += u64::from(used.len);
                let number = self.owners[usize::from(used.head)];
                let slot = &mut job.slots[number];
                slot.left -= 1;
                if slot.left > 0 {
                    continue;
                }
                done.requests += 1;
                done.failed += u64::from(!self.is_good(slot));
                if done.times.len() < done.times.capacity() {
                    done.times.push(slot.asked.elapsed());
                }
                if again {
                    self.ask(number, slot, now)?;
                } else {
                    outstanding -= 1;
                }
            }
            if !answered {
                self.wait(waiting)?;
            } else if again {
                self.publish();
            }
        }
        done.time = start.elapsed();
        Ok(done)
    }

    /// Adds a slot's requests.
    #[inline]
    fn ask(&mut self, number: usize, slot: &mut Slot, now: Instant) -> Result<()> {
        for &(address, byte) in &slot.good {
            self.driver.memory.write(address, &[!byte]);
        }
        for buffers in &slot.requests {
            let head = self.queue().ring.add(buffers)?;
            self.owners[usize::from(head)] = number;
        }
        slot.left = slot.requests.len();
        slot.asked = now;
        Ok(())
    }

    #[inline]
    fn is_good(&self, slot: &Slot) -> bool {
        slot.good.iter().all(|&(address, expected)| {
            let mut byte = [0];
            self.driver.memory.read(address, &mut byte);
            byte == [expected]
        })
    }

    /// Lets the device see what was added.
    #[inline]
    fn publish(&mut self) {
        let queue = self.queue();
        queue.ring.publish();
        queue.notify();
    }

    #[inline]
    fn wait(&mut self, waiting: Waiting) -> Result<()> {
        match waiting {
            Waiting::Asleep => self.sleep(),
            Waiting::Busy => self.spin(),
        }
    }

    /// Until the device calls.
    fn sleep(&mut self) -> Result<()> {
        let queue = self.queue();
        if !queue.ring.arm_calls() {
            let called = queue.call.wait(TIMEOUT);
            ensure!(
                called,
                "no answer within {TIMEOUT:?}; indices: available {}, kick wanted at {}, used {}, \
                 call wanted at {}, kicks not taken {}",
                queue.ring.avail_idx(),
                queue.ring.avail_event(),
                queue.ring.used_idx(),
                queue.ring.used_event(),
                queue.kick.take(),
            );
            queue.call.take();
        }
        Ok(())
    }

    /// Until there is an answer to be seen.
    fn spin(&mut self) -> Result<()> {
        let queue = self.queue();
        queue.ring.disarm_calls();
        let start = Instant::now();
        while !queue.ring.has_used() {
            ensure!(start.elapsed() < TIMEOUT, "no answer within {TIMEOUT:?}");
            spin_loop();
        }
        Ok(())
    }

    #[inline]
    fn queue(&mut self) -> &mut Queue {
        &mut self.driver.queues[0]
    }
}
