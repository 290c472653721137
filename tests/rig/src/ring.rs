//! A queue of a device and its driver on the same guest memory, in one process.

use std::fs::File;
use std::sync::Arc;

use vhost_device_backend::Resume;
use vhost_device_driver::memory::Region;
use vhost_device_driver::{Buffer, Layout, SplitRing, Used};
use vhost_device_queue::{
    Addresses, ChainError, Config, GuestMemory, Kept, Queue, Request, memory,
};

/// Where the guest's memory begins, with the ring.
const BASE: u64 = 0x10_0000;
/// Where buffers are: behind the largest ring.
const DATA: u64 = BASE + 0x10_0000;

/// A guest with a ring, and the queue on its other side.
#[derive(Debug)]
pub struct Rig {
    /// The guest's memory, as the driver sees it.
    pub guest: vhost_device_driver::GuestMemory,
    /// The driver's side.
    pub ring: SplitRing,
    /// The guest's memory, as the device sees it.
    memory: GuestMemory,
    queue: Queue,
    next: u64,
}

/// Gives requests back that were kept, as a session does.
#[derive(Debug)]
pub struct Back<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
}

impl Resume for Back<'_> {
    fn resume(&mut self, kept: Kept) -> Option<Request<'_>> {
        self.queue.resume(self.memory, kept)
    }
}

impl Rig {
    /// A ring of `entries` entries, with `room` bytes for buffers.
    pub fn new(entries: u16, room: u64) -> Self {
        let guest = vhost_device_driver::GuestMemory::new(&[(BASE, DATA - BASE + room)]);
        let layout = Layout::packed_at(BASE, entries);
        let ring = SplitRing::new(&guest, layout, entries, false);
        let memory = GuestMemory::new(guest.regions().iter().map(|r| map(r)).collect()).unwrap();
        let queue = queue(&memory, layout, entries);
        Self {
            guest,
            ring,
            memory,
            queue,
            next: DATA,
        }
    }

    /// Room for `length` bytes, never given out twice.
    pub fn alloc(&mut self, length: usize) -> u64 {
        let address = self.next;
        self.next += length as u64;
        address
    }

    /// A readable buffer that holds `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let address = self.alloc(bytes.len());
        self.guest.write(address, bytes);
        Buffer::readable(address, bytes.len() as u32)
    }

    /// A writable buffer of `length` bytes.
    pub fn writable(&mut self, length: u32) -> Buffer {
        Buffer::writable(self.alloc(length as usize), length)
    }

    /// Shows the device everything that the driver has added; bad chains are given back.
    pub fn serve(&mut self, mut handle: impl FnMut(Request<'_>)) -> Vec<ChainError> {
        self.ring.publish();
        self.queue.look().unwrap();
        let mut bad = Vec::new();
        while let Some(request) = self.queue.pop(&self.memory) {
            match request {
                Ok(request) => handle(request),
                Err(error) => bad.push(error),
            }
        }
        self.queue.publish();
        bad
    }

    /// Lets the device take kept requests up again.
    pub fn resume(&mut self, act: impl FnOnce(&mut Back<'_>)) {
        act(&mut Back {
            queue: &mut self.queue,
            memory: &self.memory,
        });
        self.queue.publish();
    }

    /// Takes the ring back and gives the device a new one in its place: kept requests are nobody's
    /// any more.
    pub fn replace_queue(&mut self) {
        self.queue = queue(&self.memory, self.ring.layout(), self.ring.size());
    }

    /// The used lengths of what has come back since the last look, in order.
    pub fn used(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.ring.pop_used())
            .map(|Used { len, .. }| len)
            .collect()
    }
}

fn map(region: &Region) -> memory::Region {
    let file = File::from(region.fd().try_clone_to_owned().unwrap());
    let size = region.size() as usize;
    let mapping = memory::Mapping::new(&file, region.mmap_offset(), size).unwrap();
    memory::Region::new(region.guest_addr(), Arc::new(mapping), 0, region.size()).unwrap()
}

fn queue(memory: &GuestMemory, layout: Layout, entries: u16) -> Queue {
    let config = Config {
        size: entries,
        addresses: Addresses {
            descriptor: layout.desc,
            available: layout.avail,
            used: layout.used,
        },
        base: 0,
        event_idx: false,
        indirect: true,
    };
    Queue::new(memory, &config).unwrap()
}
