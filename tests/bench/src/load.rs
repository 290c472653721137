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
const QUEUE_SIZE: u16 = 256;

/// Guest memory besides the buffers: the ring.
const OVERHEAD: u64 = 64 << 10;

/// Where guest memory begins.
const GUEST_ADDR: u64 = 0x4000_0000;

/// How long a daemon may leave the driver without an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of a request.
    pub(crate) size: u32,
    /// Requests that are outstanding.
    pub(crate) depth: u16,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Bytes that the device says it wrote.
    pub(crate) bytes: u64,
    /// From the first request to the last answer.
    pub(crate) time: Duration,
}

/// A guest with an entropy device.
#[derive(Debug)]
pub(crate) struct Guest {
    driver: Driver,
    /// Where the buffers are.
    data: u64,
    /// Bytes that there are for buffers.
    room: u64,
    /// For the head of each outstanding request, which of the buffers it has.
    buffers: Box<[u16]>,
}

impl Guest {
    /// Brings a device up, with room for so many bytes of outstanding requests.
    pub(crate) fn start(stream: UnixStream, room: u64) -> Result<Self> {
        let wanted = bits(&[VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC]);
        let options = Options::new(&[QUEUE_SIZE])
            .require_features(wanted)
            .regions(&[RegionSpec::new(GUEST_ADDR, room + OVERHEAD)]);
        let mut driver = Driver::with_stream(stream, options).context("no device comes up")?;
        // The peer acknowledges no message, and loses a kick that comes before its ring is enabled.
        driver.frontend.sync().context("no device comes up")?;
        Ok(Self {
            data: driver.alloc(room),
            driver,
            room,
            buffers: vec![0; QUEUE_SIZE.into()].into(),
        })
    }

    /// Keeps requests outstanding for this long, then waits for the last.
    pub(crate) fn run(&mut self, shape: Shape, time: Duration, waiting: Waiting) -> Result<Done> {
        let needed = u64::from(shape.size) * u64::from(shape.depth);
        ensure!(
            needed <= self.room && shape.depth <= QUEUE_SIZE,
            "{shape:?} is too much for this guest"
        );
        let start = Instant::now();
        let end = start + time;
        let mut done = Done::default();
        let mut outstanding = shape.depth;
        for buffer in 0..shape.depth {
            self.ask(shape, buffer)?;
        }
        self.publish();
        while outstanding > 0 {
            let again = Instant::now() < end;
            let before = done.requests;
            while let Some(used) = self.queue().ring.pop_used() {
                done.requests += 1;
                done.bytes += u64::from(used.len);
                if again {
                    self.ask(shape, self.buffers[usize::from(used.head)])?;
                } else {
                    outstanding -= 1;
                }
            }
            if done.requests == before {
                self.wait(waiting)?;
            } else if again {
                self.publish();
            }
        }
        done.time = start.elapsed();
        Ok(done)
    }

    /// Adds a request with this buffer.
    #[inline]
    fn ask(&mut self, shape: Shape, buffer: u16) -> Result<()> {
        let address = self.data + u64::from(buffer) * u64::from(shape.size);
        let head = self
            .queue()
            .ring
            .add(&[Buffer::writable(address, shape.size)])?;
        self.buffers[usize::from(head)] = buffer;
        Ok(())
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
