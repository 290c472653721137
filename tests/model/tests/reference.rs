//! The split ring beside the field's own, `virtio-queue`: two drivers do the same to two rings, and
//! the two devices must see, write and call the same.
//!
//! Left out is where the two differ by intention: `virtio-queue` does not heed the driver's
//! `VIRTQ_AVAIL_F_NO_INTERRUPT`, and does not say what is wrong with a chain.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use vhost_device_driver::memory::Region;
use vhost_device_driver::{Buffer, Layout, SplitRing};
use vhost_device_model::{addresses, map};
use vhost_device_queue::{Config, Kept, Queue};
use virtio_queue::{DescriptorChain, Queue as Reference, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const RING: u64 = 0x10_0000;
const ROOM: u64 = 0x8000;
const DATA: u64 = 0x20_0000;
/// For each request: a table, and its buffers.
const SLOT: u64 = 0x800;
const BUFFERS: u64 = 0x100;
const MAX_SIZE: u16 = 256;

/// How many steps each kind of ring does.
const STEPS: u32 = 300_000;

/// SplitMix64: the same steps in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A guest: memory and a driver.
struct Side {
    memory: vhost_device_driver::GuestMemory,
    ring: SplitRing,
}

impl Side {
    fn new(size: u16, event_idx: bool, base: u16) -> Self {
        let data = u64::from(size) * SLOT;
        let memory = vhost_device_driver::GuestMemory::new(&[(RING, ROOM), (DATA, data)]);
        let layout = Layout::packed_at(RING, size);
        let mut ring = SplitRing::new(&memory, layout, size, event_idx);
        ring.reset(base);
        Self { memory, ring }
    }

    fn used_ring(&self) -> Vec<u8> {
        let layout = self.ring.layout();
        let len = Layout::used_bytes(self.ring.size());
        self.memory.read_vec(layout.used, len)
    }
}

/// A request that neither device has answered.
struct Held {
    ours: Kept,
    theirs: DescriptorChain<Arc<GuestMemoryMmap>>,
}

struct Twins {
    random: Random,
    ours: Side,
    theirs: Side,
    memory: vhost_device_queue::GuestMemory,
    queue: Queue,
    reference_memory: Arc<GuestMemoryMmap>,
    reference: Reference,
    /// What both devices hold, oldest first.
    held: VecDeque<Held>,
    /// Slots that no request uses, and the slot of each head that is out.
    slots: Vec<u64>,
    by_head: Vec<u64>,
    armed: bool,
    published: bool,
    /// The driver's flags ask for no calls, which only ours heeds.
    no_calls: bool,
    answers: u64,
}

fn file(region: &Region) -> File {
    File::from(region.fd().try_clone_to_owned().unwrap())
}

impl Twins {
    fn new(size: u16, event_idx: bool, base: u16) -> Self {
        let [ours, theirs] = [(); 2].map(|()| Side::new(size, event_idx, base));
        let memory = map(&ours.memory);
        let layout = ours.ring.layout();
        let config = Config {
            size,
            addresses: addresses(layout),
            base: base.into(),
            packed: false,
            event_idx,
            indirect: true,
            in_order: false,
        };
        let queue = Queue::new(&memory, &config).unwrap();
        let ranges = theirs.memory.regions().iter().map(|region| {
            let offset = FileOffset::new(file(region), region.mmap_offset());
            let start = GuestAddress(region.guest_addr());
            (start, region.size() as usize, Some(offset))
        });
        let reference_memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let mut reference = Reference::new(MAX_SIZE).unwrap();
        reference.set_size(size);
        reference
            .try_set_desc_table_address(GuestAddress(layout.desc))
            .unwrap();
        reference
            .try_set_avail_ring_address(GuestAddress(layout.avail))
            .unwrap();
        reference
            .try_set_used_ring_address(GuestAddress(layout.used))
            .unwrap();
        reference.set_event_idx(event_idx);
        reference.set_next_avail(base);
        reference.set_next_used(base);
        reference.set_ready(true);
        assert!(reference.is_valid(&reference_memory));
        Self {
            random: Random(u64::from(size) << 32 | u64::from(base) << 1 | u64::from(event_idx)),
            ours,
            theirs,
            memory,
            queue,
            reference_memory: Arc::new(reference_memory),
            reference,
            held: VecDeque::new(),
            slots: (0..size.into()).collect(),
            by_head: vec![0; size.into()],
            armed: false,
            published: false,
            no_calls: false,
            answers: 0,
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..4 => self.add(),
            4 | 5 => self.publish(),
            6 | 7 => self.serve(),
            8 => self.answer_held(),
            9 => self.notifications(),
            _ => self.collect(),
        }
    }

    /// Both drivers add the same request.
    fn add(&mut self) {
        let Some(slot) = self.slots.pop() else {
            return;
        };
        let start = DATA + slot * SLOT;
        let mut at = start + BUFFERS;
        let mut buffers = Vec::new();
        for _ in 0..self.random.below(4) {
            let bytes = self.random.next().to_le_bytes();
            let len = self.random.below(8) as u32;
            for side in [&self.ours, &self.theirs] {
                side.memory.write(at, &bytes);
            }
            buffers.push(Buffer::readable(at, len));
            at += 8;
        }
        for _ in 0..self.random.below(4) {
            buffers.push(Buffer::writable(at, self.random.below(80) as u32));
            at += 80;
        }
        let way = self.random.below(3);
        let cut = self.random.below(buffers.len() as u64 + 1) as usize;
        let added = [&mut self.ours, &mut self.theirs].map(|side| match way {
            _ if buffers.is_empty() => None,
            0 => side.ring.add(&buffers).ok(),
            1 => side.ring.add_indirect(start, &buffers).ok(),
            // A table of nothing is no table.
            _ if cut == buffers.len() => side.ring.add(&buffers).ok(),
            _ => {
                let (direct, table) = buffers.split_at(cut);
                side.ring.add_mixed(direct, start, table).ok()
            }
        });
        assert_eq!(added[0], added[1]);
        match added[0] {
            Some(head) => self.by_head[usize::from(head)] = slot,
            None => self.slots.push(slot),
        }
    }

    fn publish(&mut self) {
        let kicks = [&mut self.ours, &mut self.theirs].map(|side| {
            side.ring.publish();
            side.ring.needs_kick()
        });
        assert_eq!(kicks[0], kicks[1], "one device wants a kick");
    }

    /// Both devices take some requests, and answer or hold each.
    fn serve(&mut self) {
        self.disarm();
        let count = self.random.below(6) + 1;
        self.queue.look().unwrap();
        for _ in 0..count {
            let popped = self.queue.pop(&self.memory);
            let reference = self
                .reference
                .pop_descriptor_chain(Arc::clone(&self.reference_memory));
            assert_eq!(popped.is_some(), reference.is_some());
            let (Some(popped), Some(theirs)) = (popped, reference) else {
                break;
            };
            let mut request = popped.expect("a good chain");
            let mut seen = vec![0; request.readable_len()];
            request.reader().read_exact(&mut seen).unwrap();
            assert_eq!(seen, read(&self.reference_memory, &theirs));
            let room: usize = theirs.clone().writable().map(|d| d.len() as usize).sum();
            assert_eq!(request.writable_len(), room);
            if self.random.below(4) == 0 {
                let ours = request.keep();
                self.held.push_back(Held { ours, theirs });
                continue;
            }
            let answer = vec![self.random.next() as u8; self.random.below(100) as usize];
            let answer = &answer[..answer.len().min(room)];
            request.writer().write_all(answer).unwrap();
            request.complete();
            write(&self.reference_memory, &theirs, answer);
            let len = answer.len() as u32;
            self.reference
                .add_used(&*self.reference_memory, theirs.head_index(), len)
                .unwrap();
            self.answers += 1;
        }
        self.call();
    }

    fn answer_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let which = self.random.below(self.held.len() as u64) as usize;
        let Held { ours, theirs } = self.held.remove(which).unwrap();
        let mut request = self.queue.resume(&self.memory, ours).expect("still there");
        let len = request.writable_len();
        request.writer().write_zeros(len).unwrap();
        request.complete();
        write(&self.reference_memory, &theirs, &vec![0; len]);
        self.reference
            .add_used(&*self.reference_memory, theirs.head_index(), len as u32)
            .unwrap();
        self.answers += 1;
        self.call();
    }

    /// Both devices show their answers, and call or do not.
    fn call(&mut self) {
        let any = self.ours.ring.used_idx() != self.reference.next_used();
        let call = self.queue.publish();
        let reference = self
            .reference
            .needs_notification(&*self.reference_memory)
            .unwrap();
        // The first time, ours calls in any case.
        if any && self.published && !self.no_calls {
            assert_eq!(call, reference, "one device calls");
        }
        self.published |= any;
        assert_eq!(self.ours.used_ring(), self.theirs.used_ring());
    }

    fn notifications(&mut self) {
        match self.random.below(4) {
            0 => self.arm(),
            1 => self.disarm(),
            2 => {
                let missed = [&mut self.ours, &mut self.theirs].map(|side| side.ring.arm_calls());
                assert_eq!(missed[0], missed[1]);
                self.no_calls = false;
            }
            _ => {
                for side in [&mut self.ours, &mut self.theirs] {
                    side.ring.disarm_calls();
                }
                self.no_calls = !self.ours.ring.event_idx();
            }
        }
    }

    fn arm(&mut self) {
        if std::mem::replace(&mut self.armed, true) {
            return;
        }
        let missed = self.queue.arm();
        let reference = self.reference.enable_notification(&*self.reference_memory);
        assert_eq!(missed, reference.unwrap());
        assert_eq!(self.ours.used_ring(), self.theirs.used_ring());
    }

    fn disarm(&mut self) {
        if std::mem::replace(&mut self.armed, false) {
            self.queue.disarm();
            self.reference
                .disable_notification(&*self.reference_memory)
                .unwrap();
        }
        assert_eq!(self.ours.used_ring(), self.theirs.used_ring());
    }

    /// Both drivers take the same answers.
    fn collect(&mut self) {
        loop {
            let used = self.ours.ring.pop_used();
            assert_eq!(used, self.theirs.ring.pop_used());
            let Some(used) = used else {
                return;
            };
            let slot = self.by_head[usize::from(used.head)];
            let start = DATA + slot * SLOT;
            let len = SLOT as usize;
            let [ours, theirs] =
                [&self.ours, &self.theirs].map(|side| side.memory.read_vec(start, len));
            assert_eq!(ours, theirs);
            self.slots.push(slot);
        }
    }

    /// Both stop at the same place, once nothing is held.
    fn finish(mut self) {
        while !self.held.is_empty() {
            self.answer_held();
        }
        self.collect();
        let base = self.queue.stop().base;
        assert_eq!(base, u32::from(self.reference.next_avail()));
        assert!(self.answers > u64::from(STEPS / 20), "{}", self.answers);
    }
}

fn read(memory: &GuestMemoryMmap, chain: &DescriptorChain<Arc<GuestMemoryMmap>>) -> Vec<u8> {
    let buffers = chain.clone().readable();
    let pieces = buffers.map(|descriptor| {
        let mut bytes = vec![0; descriptor.len() as usize];
        memory.read_slice(&mut bytes, descriptor.addr()).unwrap();
        bytes
    });
    pieces.flatten().collect()
}

fn write(memory: &GuestMemoryMmap, chain: &DescriptorChain<Arc<GuestMemoryMmap>>, bytes: &[u8]) {
    let mut rest = bytes;
    for descriptor in chain.clone().writable() {
        let (now, later) = rest.split_at(rest.len().min(descriptor.len() as usize));
        memory.write_slice(now, descriptor.addr()).unwrap();
        rest = later;
    }
}

fn compare(size: u16, event_idx: bool, base: u16) {
    let mut twins = Twins::new(size, event_idx, base);
    // Both areas begin with zeros, which ask for kicks.
    twins.arm();
    (0..STEPS).for_each(|_| twins.step());
    twins.finish();
}

#[test]
fn r1_the_reference_does_the_same_with_event_idx() {
    for (size, base) in [(2, 0xfffe), (8, 0), (16, 0x7fff), (MAX_SIZE, 0xfff0)] {
        compare(size, true, base);
    }
}

#[test]
fn r1_the_reference_does_the_same_without_event_idx() {
    for (size, base) in [(2, 0), (8, 0xffff), (16, 0x8000), (MAX_SIZE, 1)] {
        compare(size, false, base);
    }
}
