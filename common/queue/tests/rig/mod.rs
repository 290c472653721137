//! A queue and its driver's side on the same guest memory, in one process.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Ring, SplitRing};
use vhost_device_model::addresses;
pub use vhost_device_model::map;
use vhost_device_queue::{ChainError, Config, GuestMemory, Queue, Request};

/// Where the guest's memory begins.
pub const BASE: u64 = 0x10_0000;
/// How much there is: two adjacent regions of half of it each.
pub const SIZE: u64 = 0x20_0000;
/// Where buffers are put: behind the largest ring of these tests.
pub const DATA: u64 = BASE + 0x8_0000;
/// The first address of the second region.
pub const SEAM: u64 = BASE + SIZE / 2;

/// What to build.
#[derive(Clone, Copy)]
pub struct Setup {
    pub size: u16,
    /// Where the ring starts; nothing for a new one.
    pub base: Option<u32>,
    pub event_idx: bool,
    pub indirect: bool,
    pub in_order: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            size: 16,
            base: None,
            event_idx: true,
            indirect: true,
            in_order: false,
        }
    }
}

pub struct RingRig<R> {
    pub driver_memory: vhost_device_driver::GuestMemory,
    pub ring: R,
    pub memory: GuestMemory,
    pub config: Config,
    pub queue: Queue,
    next: u64,
}

pub type Rig = RingRig<SplitRing>;

impl<R: Ring> RingRig<R> {
    pub fn new(setup: Setup) -> Self {
        let base = setup.base.unwrap_or(R::FIRST_BASE);
        let half = SIZE / 2;
        let driver_memory = vhost_device_driver::GuestMemory::with_regions(&[
            RegionSpec::new(BASE, half),
            RegionSpec::new(SEAM, half),
        ]);
        let layout = R::place_at(BASE, setup.size);
        let mut ring = R::create(&driver_memory, layout, setup.size, setup.event_idx);
        ring.start_at(base);
        let memory = map(&driver_memory);
        let config = Config {
            size: setup.size,
            addresses: addresses(layout),
            base,
            packed: R::PACKED,
            in_order: setup.in_order,
            event_idx: setup.event_idx,
            indirect: setup.indirect,
        };
        let queue = Queue::new(&memory, &config).expect("a sound ring");
        Self {
            driver_memory,
            ring,
            memory,
            config,
            queue,
            next: DATA,
        }
    }

    /// Room for `len` bytes, never given out twice.
    pub fn alloc(&mut self, len: u32) -> u64 {
        let addr = self.next;
        self.next += u64::from(len).next_multiple_of(16);
        addr
    }

    /// A readable buffer that holds `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let addr = self.alloc(bytes.len() as u32);
        self.driver_memory.write(addr, bytes);
        Buffer::readable(addr, bytes.len() as u32)
    }

    /// A writable buffer of `len` bytes.
    pub fn writable(&mut self, len: u32) -> Buffer {
        Buffer::writable(self.alloc(len), len)
    }

    /// Lets the device answer everything that is available with `handle`, and publishes. The
    /// chains that were bad, and whether the driver is to be called.
    pub fn serve(&mut self, mut handle: impl FnMut(Request<'_>)) -> (Vec<ChainError>, bool) {
        let mut bad = Vec::new();
        while self.queue.look().expect("a sound index") {
            while let Some(popped) = self.queue.pop(&self.memory) {
                match popped {
                    Ok(request) => handle(request),
                    Err(error) => bad.push(error),
                }
            }
        }
        (bad, self.queue.publish())
    }

    /// What a good request says.
    pub const QUESTION: &'static [u8] = b"how are you?";

    /// Makes a good request, and checks that it is answered: whatever happened before, the queue
    /// goes on.
    pub fn expect_service(&mut self) {
        let question = self.readable(Self::QUESTION);
        let answer = self.writable(64);
        let head = self
            .ring
            .add(&[question, answer])
            .expect("room in the ring");
        self.ring.publish();
        let (bad, _) = self.serve(echo);
        assert_eq!(bad, [], "the good request is not bad");
        let used = self.ring.pop_used().expect("an answer");
        assert_eq!(used.head, head);
        assert_eq!(used.len as usize, Self::QUESTION.len());
        let bytes = self.driver_memory.read_vec(answer.addr, used.len as usize);
        assert_eq!(bytes, Self::QUESTION);
    }
}

/// Answers with what was asked, as far as there is room.
pub fn echo(mut request: Request<'_>) {
    let (reader, writer) = request.split();
    let mut bytes = vec![0; reader.remaining().min(writer.remaining())];
    reader.read_exact(&mut bytes).expect("as many as there are");
    writer.write_all(&bytes).expect("as many as fit");
    request.complete();
}
