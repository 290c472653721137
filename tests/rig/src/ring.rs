//! Queues of a device and their driver on the same guest memory, in one process.

use vhost_device_backend::{Resume, publish};
use vhost_device_driver::{Layout, SplitRing, Used};
use vhost_device_model::{addresses, map};
use vhost_device_queue::{ChainError, Config, GuestMemory, Kept, Queue, Request};

/// Where the guest's memory begins, with the rings.
const BASE: u64 = 0x10_0000;

/// A guest with some rings, and the queues on their other side.
#[derive(Debug)]
pub struct Rig {
    /// The guest's memory, as the driver sees it.
    pub guest: vhost_device_driver::GuestMemory,
    /// The driver's side of each queue.
    pub rings: Vec<SplitRing>,
    /// The guest's memory, as the device sees it.
    memory: GuestMemory,
    queues: Vec<Queue>,
    next: u64,
}

/// Gives requests back that were kept, as a session does.
#[derive(Debug)]
pub struct Back<'a> {
    queues: &'a mut [Queue],
    memory: &'a GuestMemory,
}

impl Resume for Back<'_> {
    fn resume(&mut self, kept: Kept) -> Option<Request<'_>> {
        let queue = self.queues.iter_mut().find(|queue| queue.owns(&kept))?;
        queue.resume(self.memory, kept)
    }

    fn would_rewind(&self, kept: &Kept) -> bool {
        self.queues.iter().any(|queue| queue.would_rewind(kept))
    }
}

impl Rig {
    /// `count` rings of `entries` entries, with `room` bytes for buffers.
    pub fn new(count: u64, entries: u16, room: u64) -> Self {
        let ring_bytes = Layout::total_bytes(entries).next_multiple_of(0x1000);
        let data = BASE + count * ring_bytes;
        let guest = vhost_device_driver::GuestMemory::new(&[(BASE, data - BASE + room)]);
        let layouts = (0..count).map(|n| Layout::packed_at(BASE + n * ring_bytes, entries));
        let rings: Vec<_> = layouts
            .map(|layout| SplitRing::new(&guest, layout, entries, false))
            .collect();
        let memory = map(&guest);
        let queues = rings.iter().map(|ring| queue(&memory, ring)).collect();
        Self {
            guest,
            rings,
            memory,
            queues,
            next: data,
        }
    }

    /// Room for `length` bytes, never given out twice.
    pub fn alloc(&mut self, length: usize) -> u64 {
        let address = self.next;
        self.next += length as u64;
        address
    }

    /// Puts bytes into memory, where nothing else is.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len());
        self.guest.write(address, bytes);
        address
    }

    /// Shows the device everything that the driver has added to queue `index`; bad chains are
    /// given back.
    pub fn serve(&mut self, index: usize, mut handle: impl FnMut(Request<'_>)) -> Vec<ChainError> {
        self.rings[index].publish();
        let queue = &mut self.queues[index];
        queue.look().unwrap();
        let mut bad = Vec::new();
        while let Some(request) = queue.pop(&self.memory) {
            match request {
                Ok(request) => handle(request),
                Err(error) => bad.push(error),
            }
        }
        self.publish();
        bad
    }

    /// Lets the device take kept requests up again.
    pub fn resume(&mut self, act: impl FnOnce(&mut Back<'_>)) {
        act(&mut Back {
            queues: &mut self.queues,
            memory: &self.memory,
        });
        self.publish();
    }

    /// Shows the driver what was answered, by the rule of the sessions.
    fn publish(&mut self) {
        publish(&mut self.queues, |queue| {
            queue.publish();
        });
    }

    /// Takes the ring of queue `index` back and gives the device a new one in its place: kept
    /// requests are nobody's any more.
    pub fn replace_queue(&mut self, index: usize) {
        self.queues[index] = queue(&self.memory, &self.rings[index]);
    }

    /// The used lengths of what has come back from queue `index` since the last look, in order.
    pub fn used(&mut self, index: usize) -> Vec<u32> {
        std::iter::from_fn(|| self.rings[index].pop_used())
            .map(|Used { len, .. }| len)
            .collect()
    }
}

fn queue(memory: &GuestMemory, ring: &SplitRing) -> Queue {
    let layout = ring.layout();
    let config = Config {
        size: ring.size(),
        addresses: addresses(layout),
        base: 0,
        packed: false,
        in_order: false,
        event_idx: false,
        indirect: true,
    };
    Queue::new(memory, &config).unwrap()
}
