//! The steps of a turn of the queue, each a function that can be found in the disassembly, and a
//! whole turn beside `virtio-queue`'s. Run with `split`, `packed` or `reference`, it does some
//! turns: the last ones are those that are looked at, as the first are not like the others.

#![allow(missing_docs, reason = "a program for tests")]

use std::env;
use std::fs::File;
use std::hint::black_box;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, GuestMemory, PackedRing, Ring, SplitRing};
use vhost_device_model::{addresses, map};
use vhost_device_queue::{Config, GuestMemory as Mapped, Queue};
use virtio_queue::{Queue as Reference, QueueOwnedT as _, QueueT as _};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// How many chains a turn has; `tests/arm64/src/probes.rs` knows.
const BATCH: usize = 16;
const SIZE: u16 = 64;
const RING: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const BUFFER: u32 = 64;
const TURNS: usize = 8;

/// Looks for new chains.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_look(queue: &mut Queue) -> bool {
    queue.look() == Ok(true)
}

/// Takes a chain and returns it.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_request(queue: &mut Queue, memory: &Mapped) -> usize {
    let Some(Ok(request)) = queue.pop(memory) else {
        return 0;
    };
    let bytes = request.readable_len() + request.writable_len();
    request.complete();
    bytes
}

/// Shows the driver what was returned.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_publish(queue: &mut Queue) -> bool {
    queue.publish()
}

/// Asks for a kick.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_arm(queue: &mut Queue) -> bool {
    queue.arm()
}

/// All of it at once, but for the arming.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_turn(queue: &mut Queue, memory: &Mapped) -> usize {
    if queue.look() != Ok(true) {
        return 0;
    }
    let mut bytes = 0;
    while let Some(Ok(request)) = queue.pop(memory) {
        bytes += request.readable_len() + request.writable_len();
        request.complete();
    }
    bytes + usize::from(queue.publish())
}

/// The same with `virtio-queue`, with everything borrowed and reused.
#[unsafe(no_mangle)]
#[inline(never)]
fn probe_reference(queue: &mut Reference, memory: &GuestMemoryMmap, heads: &mut Vec<u16>) -> usize {
    let mut bytes = 0;
    heads.clear();
    let Ok(chains) = queue.iter(memory) else {
        return 0;
    };
    for chain in chains {
        heads.push(chain.head_index());
        for descriptor in chain {
            let len = descriptor.len() as usize;
            bytes += memory
                .get_slice(descriptor.addr(), len)
                .map_or(0, |slice| slice.len());
        }
    }
    for head in heads {
        let _ = queue.add_used(memory, *head, 0);
    }
    bytes + usize::from(queue.needs_notification(memory).unwrap_or(true))
}

/// The driver: makes `BATCH` chains available, runs the device, and takes them back.
fn drive<R: Ring>(ring: &mut R, mut device: impl FnMut() -> usize) {
    for _ in 0..TURNS {
        for chain in 0..BATCH as u64 {
            let at = DATA + chain * 2 * u64::from(BUFFER);
            let buffers = [
                Buffer::readable(at, BUFFER),
                Buffer::writable(at + u64::from(BUFFER), BUFFER),
            ];
            ring.add(&buffers).expect("there is room");
        }
        ring.publish();
        let bytes = black_box(device());
        let expected = 2 * BATCH * BUFFER as usize;
        assert!((expected..=expected + 1).contains(&bytes), "{bytes}");
        while ring.pop_used().is_some() {}
        assert_eq!(ring.outstanding(), 0);
    }
}

fn ours<R: Ring>(memory: &GuestMemory, packed: bool) {
    let layout = R::place_at(RING, SIZE);
    let mut ring = R::create(memory, layout, SIZE, true);
    let mapped = map(memory);
    let config = Config {
        size: SIZE,
        addresses: addresses(layout),
        base: Config::first_base(packed),
        packed,
        event_idx: true,
        indirect: true,
        in_order: false,
    };
    let mut queue = Queue::new(&mapped, &config).expect("a good ring");
    drive(&mut ring, || {
        queue.disarm();
        assert!(probe_look(&mut queue));
        let bytes = (0..BATCH).map(|_| probe_request(&mut queue, &mapped)).sum();
        black_box(probe_publish(&mut queue));
        assert!(!probe_arm(&mut queue));
        bytes
    });
    drive(&mut ring, || probe_turn(&mut queue, &mapped));
}

fn reference(memory: &GuestMemory) {
    let layout = SplitRing::place_at(RING, SIZE);
    let mut ring = SplitRing::create(memory, layout, SIZE, true);
    let ranges = memory.regions().iter().map(|region| {
        let file = File::from(region.fd().try_clone_to_owned().expect("a descriptor"));
        let offset = FileOffset::new(file, region.mmap_offset());
        let start = GuestAddress(region.guest_addr());
        (start, region.size() as usize, Some(offset))
    });
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).expect("memory");
    let mut queue = Reference::new(SIZE).expect("a good size");
    let set = [
        queue.try_set_desc_table_address(GuestAddress(layout.desc)),
        queue.try_set_avail_ring_address(GuestAddress(layout.avail)),
        queue.try_set_used_ring_address(GuestAddress(layout.used)),
    ];
    assert!(set.iter().all(Result::is_ok));
    queue.set_event_idx(true);
    queue.set_ready(true);
    let mut heads = Vec::with_capacity(BATCH);
    drive(&mut ring, || {
        probe_reference(&mut queue, &memory, &mut heads)
    });
}

fn main() {
    let regions = [RING, DATA].map(|start| RegionSpec::new(start, 0x1_0000));
    let memory = GuestMemory::with_regions(&regions);
    match env::args().nth(1).as_deref() {
        Some("split") => ours::<SplitRing>(&memory, false),
        Some("packed") => ours::<PackedRing>(&memory, true),
        Some("reference") => reference(&memory),
        _ => panic!("split, packed or reference?"),
    }
}
