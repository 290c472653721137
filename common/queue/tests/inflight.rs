//! Requests in flight: a device that is killed at any instruction is followed by one that loses no
//! request and does none again that was answered.

mod step;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::{
    DescStatePacked, DescStateSplit, QueueRegionPacked, QueueRegionSplit,
};
use vhost_device_driver::{Buffer, PackedRing, Random, Ring, SplitRing};
use vhost_device_model::{addresses, map};
use vhost_device_queue::memory::Mapping;
use vhost_device_queue::{
    Config, DirtyLog, GuestMemory, InflightError, InflightRegion, Kept, Queue, QueueLog, Request,
    RingError, Stopped,
};

/// Where the guest's memory is. The ring is at its beginning.
const BASE: u64 = 0x10_0000;
const SIZE: u64 = 0x2000;
/// How often each request was done, 4 bytes each.
const JOURNAL: u64 = BASE + 0x400;
/// What each request says and is answered, 16 bytes each.
const DATA: u64 = BASE + 0x800;
/// As many requests as there is room for.
const REQUESTS: u64 = 0xc0;
/// Where the region is, in a file of its own.
const REGION: u64 = 0x20_0000;
const REGION_SIZE: u64 = 0x1000;
/// As much of both as these tests use.
const USED: [(u64, usize); 2] = [(BASE, 0x1400), (REGION, 0x180)];

/// What is different from one world to the other.
#[derive(Clone, Copy, Debug)]
struct Setup {
    size: u16,
    entries: u16,
    base: u32,
    in_order: bool,
    outlives_stop: bool,
    /// How many descriptors the requests have, in turn.
    lengths: &'static [u32],
}

impl Setup {
    fn length(&self, id: u64) -> u32 {
        self.lengths[id as usize % self.lengths.len()]
    }
}

/// A driver, and the memory that it shares with a device.
struct World<R> {
    memory: vhost_device_driver::GuestMemory,
    device_memory: GuestMemory,
    region: File,
    config: Config,
    setup: Setup,
    driver: Driver<R>,
}

/// What the driver knows.
#[derive(Clone)]
struct Driver<R> {
    ring: R,
    /// The request of each head or buffer id.
    requests: HashMap<u16, u64>,
    /// Those that are not answered, in the order in which they were made available.
    open: Vec<u64>,
    next: u64,
}

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is just gone.
    Gone,
    /// The queue is stopped.
    Stopped,
}

impl<R: Ring + Clone> World<R> {
    fn new(setup: Setup) -> Self {
        let memory = vhost_device_driver::GuestMemory::with_regions(&[
            RegionSpec::new(BASE, SIZE),
            RegionSpec::new(REGION, REGION_SIZE),
        ]);
        let layout = R::place_at(BASE, setup.size);
        let mut ring = R::create(&memory, layout, setup.size, true);
        ring.start_at(setup.base);
        let config = Config {
            size: setup.size,
            addresses: addresses(layout),
            base: setup.base,
            packed: R::PACKED,
            in_order: setup.in_order,
            event_idx: true,
            indirect: true,
        };
        let fd = memory.regions()[1].fd().try_clone_to_owned().unwrap();
        Self {
            device_memory: map(&memory),
            region: File::from(fd),
            memory,
            config,
            setup,
            driver: Driver {
                ring,
                requests: HashMap::new(),
                open: Vec::new(),
                next: 0,
            },
        }
    }

    fn inflight(&self) -> InflightRegion {
        let mapping = Mapping::new(&self.region, 0, REGION_SIZE as usize).unwrap();
        InflightRegion::new(mapping, 1, self.setup.entries, self.setup.outlives_stop).unwrap()
    }

    /// A device that has just been started.
    fn device(&self) -> Device<'_, R> {
        let inflight = self.inflight().queue(0, R::PACKED).unwrap().unwrap();
        // Whoever lost a device does not know where it was.
        let queue = Queue::tracked(&self.device_memory, &self.config, inflight).unwrap();
        Device {
            world: self,
            queue,
            kept: Vec::new(),
        }
    }

    fn times_done(&self, id: u64) -> u32 {
        self.memory.load_u32(JOURNAL + 4 * id, Ordering::Relaxed)
    }

    /// Everything that is shared.
    fn state(&self) -> Vec<u8> {
        let parts = USED.map(|(at, len)| self.memory.read_vec(at, len));
        parts.concat()
    }

    fn set_state(&self, state: &[u8]) {
        let (guest, region) = state.split_at(USED[0].1);
        self.memory.write(BASE, guest);
        self.memory.write(REGION, region);
    }

    /// Makes requests available until there is no room, at most `count`.
    fn submit(&self, driver: &mut Driver<R>, count: u64) {
        for _ in 0..count {
            let id = driver.next;
            assert!(id < REQUESTS);
            let question = DATA + 16 * id;
            self.memory.write_obj(question, id);
            let answer = Buffer::writable(question + 8, 8);
            let buffers = match self.setup.length(id) {
                1 => vec![Buffer::readable(question, 8)],
                2 => vec![Buffer::readable(question, 8), answer],
                _ => vec![
                    Buffer::readable(question, 3),
                    Buffer::readable(question + 3, 5),
                    answer,
                ],
            };
            let Ok(head) = driver.ring.add(&buffers) else {
                break;
            };
            driver.next += 1;
            driver.requests.insert(head, id);
            driver.open.push(id);
        }
        driver.ring.publish();
    }

    /// Takes what was answered. Each answer must be right, and each request have been done.
    fn collect(&self, driver: &mut Driver<R>) -> Vec<u64> {
        let mut answered = Vec::new();
        while let Some(used) = driver.ring.pop_used() {
            let id = driver.requests.remove(&used.head).unwrap();
            let place = driver.open.iter().position(|open| *open == id).unwrap();
            driver.open.remove(place);
            assert!(self.times_done(id) > 0, "{id} was not done");
            let is_answered = used.len > 0;
            let has_room = self.setup.length(id) > 1;
            assert_eq!(is_answered, has_room, "{id} was not answered");
            if is_answered {
                let answer: u64 = self.memory.read_obj(DATA + 16 * id + 8);
                assert_eq!(answer, !id);
            }
            answered.push(id);
        }
        answered
    }
}

/// A device, as long as it lives.
struct Device<'a, R> {
    world: &'a World<R>,
    queue: Queue,
    /// What it keeps, and what that says.
    kept: Vec<(u64, Kept)>,
}

impl<R: Ring + Clone> World<R> {
    /// Does a request.
    fn execute(&self, mut request: Request<'_>) {
        let id: u64 = request.reader().read_obj().unwrap();
        let times = self.times_done(id);
        let entry = JOURNAL + 4 * id;
        self.memory.store_u32(entry, times + 1, Ordering::Relaxed);
        if request.writable_len() > 0 {
            request.writer().write_obj(&!id).unwrap();
        }
        request.complete();
    }
}

impl<R: Ring + Clone> Device<'_, R> {
    fn do_next(&mut self) -> bool {
        if !self.queue.look().unwrap() {
            return false;
        }
        let popped = self.queue.pop(&self.world.device_memory);
        popped.is_some_and(|request| {
            self.world.execute(request.unwrap());
            true
        })
    }

    /// Looks at the next request, and leaves it where it is. What it says.
    fn peek_next(&mut self) -> Option<u64> {
        if !self.queue.look().unwrap() {
            return None;
        }
        let peeked = self.queue.peek(&self.world.device_memory)?;
        Some(peeked.unwrap().reader().read_obj().unwrap())
    }

    fn keep_next(&mut self) -> bool {
        let Some(id) = self.peek_next() else {
            return false;
        };
        let peeked = self.queue.peek(&self.world.device_memory);
        let mut request = peeked.unwrap().unwrap().take();
        assert_eq!(request.reader().read_obj(), Ok(id));
        self.kept.push((id, request.keep()));
        true
    }

    fn do_kept(&mut self, index: usize) -> u64 {
        let (id, kept) = self.kept.remove(index);
        let request = self.queue.resume(&self.world.device_memory, kept);
        self.world.execute(request.unwrap());
        id
    }

    /// Works on whatever is there for some steps, in some order.
    fn live(mut self, random: &mut Random, steps: u64, end: End) -> Option<Stopped> {
        for _ in 0..steps {
            match random.below(8) {
                0..=2 => {
                    self.do_next();
                    self.peek_next();
                }
                3..=4 => {
                    self.keep_next();
                }
                5..=6 if !self.kept.is_empty() => {
                    let index = random.below(self.kept.len() as u64);
                    self.do_kept(index as usize);
                }
                _ => {
                    self.queue.publish();
                }
            }
        }
        match end {
            End::Gone => None,
            End::Stopped => Some(self.stop()),
        }
    }

    /// Does what cannot be left to others, and stops.
    fn stop(mut self) -> Stopped {
        while let Some(index) = self.index_of_lost() {
            self.do_kept(index);
        }
        self.kept.clear();
        self.queue.stop()
    }

    fn index_of_lost(&self) -> Option<usize> {
        let lost = |(_, kept): &(u64, Kept)| !self.queue.would_rewind(kept);
        self.kept.iter().position(lost)
    }
}

/// Finds `state` in memory and goes on from it. Nothing may be lost, and nothing be done again that
/// was answered.
fn goes_on_from<R: Ring + Clone>(
    world: &World<R>,
    driver: &Driver<R>,
    state: &[u8],
    collect_first: bool,
) {
    world.set_state(state);
    let mut driver = driver.clone();
    if collect_first {
        world.collect(&mut driver);
        world.submit(&mut driver, 2);
    }
    let open = {
        let mut copy = driver.clone();
        world.collect(&mut copy);
        copy.open
    };
    let answered: Vec<_> = (0..driver.next).filter(|id| !open.contains(id)).collect();
    let before: Vec<_> = answered.iter().map(|id| world.times_done(*id)).collect();

    let mut device = world.device();
    while device.keep_next() {}
    let again: Vec<_> = device.kept.iter().map(|(id, _)| *id).collect();
    assert_eq!(again, open, "all that was not answered, in order");
    world.collect(&mut driver);
    // The last first, each shown alone: whatever was on its way into the ring is not there.
    let mut held_back = Vec::new();
    for index in (0..device.kept.len()).rev() {
        let id = device.do_kept(index);
        device.queue.publish();
        held_back.insert(0, id);
        if !world.setup.in_order || index == 0 {
            assert_eq!(world.collect(&mut driver), held_back);
            held_back.clear();
        } else {
            assert_eq!(world.collect(&mut driver), [0u64; 0]);
        }
    }
    let after: Vec<_> = answered.iter().map(|id| world.times_done(*id)).collect();
    assert_eq!(after, before, "done again, though it was answered");
    // And the next ones.
    for _ in 0..3 {
        world.submit(&mut driver, 3);
        while device.do_next() {}
        device.queue.publish();
        world.collect(&mut driver);
        assert_eq!(driver.open, [0u64; 0]);
    }
}

/// Lives one after the other, of which one is watched instruction by instruction.
fn killed_anywhere<R: Ring + Clone>(setup: Setup, seed: u64, end: End) {
    let mut world = World::<R>::new(setup);
    let mut random = Random::new(seed);
    // A past, so that the ring has wrapped and the region is in no order.
    for _ in 0..6 {
        let mut driver = world.driver.clone();
        world.submit(&mut driver, 4);
        world.device().live(&mut random, 12, End::Gone);
        world.collect(&mut driver);
        world.driver = driver;
    }
    let mut driver = world.driver.clone();
    let room = u64::from(setup.size);
    world.submit(&mut driver, room);
    let first = states_of(&world, &mut random, 14, end);
    for (index, state) in first.iter().enumerate() {
        goes_on_from(&world, &driver, state, index % 2 == 0);
    }
    // Whoever goes on may be killed as well.
    for state in first.iter().skip(seed as usize % 7).step_by(61) {
        world.set_state(state);
        let mut driver = driver.clone();
        world.collect(&mut driver);
        world.submit(&mut driver, room);
        for (index, state) in states_of(&world, &mut random, 6, End::Gone)
            .iter()
            .enumerate()
        {
            goes_on_from(&world, &driver, state, index % 2 == 0);
        }
    }
}

fn states_of<R: Ring + Clone>(
    world: &World<R>,
    random: &mut Random,
    steps: u64,
    end: End,
) -> Vec<Vec<u8>> {
    step::states(
        || world.state(),
        || {
            world.device().live(random, steps, end);
        },
    )
}

const SPLIT: Setup = Setup {
    size: 8,
    entries: 8,
    base: 0xfff9,
    in_order: false,
    outlives_stop: true,
    lengths: &[1, 2, 3],
};

const PACKED: Setup = Setup {
    size: 7,
    entries: 11,
    base: 0x8005_8005,
    ..SPLIT
};

/// In each kind of world.
fn killed_anywhere_in<R: Ring + Clone>(setup: Setup) {
    for (in_order, outlives_stop, end) in [
        (false, true, End::Gone),
        (false, true, End::Stopped),
        (false, false, End::Stopped),
        (true, false, End::Stopped),
        (true, true, End::Gone),
    ] {
        let setup = Setup {
            in_order,
            outlives_stop,
            ..setup
        };
        killed_anywhere::<R>(setup, 1, end);
    }
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "exclusive loads and stores never succeed in single steps"
)]
fn v10_a_device_on_a_split_ring_is_killed_at_any_instruction() {
    killed_anywhere_in::<SplitRing>(SPLIT);
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "exclusive loads and stores never succeed in single steps"
)]
fn v10_a_device_on_a_packed_ring_is_killed_at_any_instruction() {
    killed_anywhere_in::<PackedRing>(PACKED);
}

/// Used descriptors of a batch that was not shown are in the very slots that the next device uses.
#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "exclusive loads and stores never succeed in single steps"
)]
fn v10_a_batch_that_was_not_shown_is_not_seen_later() {
    let setup = Setup {
        lengths: &[1],
        ..PACKED
    };
    killed_anywhere::<PackedRing>(setup, 2, End::Gone);
}

/// The slot behind the last used one has what it had a round ago.
#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "exclusive loads and stores never succeed in single steps"
)]
fn v10_the_round_is_not_lost_where_the_ring_wraps() {
    let setup = Setup {
        size: 4,
        lengths: &[3],
        ..PACKED
    };
    let setup = Setup {
        base: 0x8000_8000,
        ..setup
    };
    for seed in 0..4 {
        killed_anywhere::<PackedRing>(setup, seed, End::Gone);
    }
}

/// Requests that are given up to be taken again go one by one, and never leave a gap.
fn killed_while_it_stops<R: Ring + Clone>(setup: Setup) {
    let world = World::<R>::new(Setup {
        outlives_stop: false,
        lengths: &[1, 2],
        ..setup
    });
    let mut driver = world.driver.clone();
    world.submit(&mut driver, 4);
    let mut device = world.device();
    (0..4).for_each(|_| assert!(device.keep_next()));
    drop(device);
    let life = || {
        let mut device = world.device();
        // Two that are kept, and two that are not even looked at.
        (0..2).for_each(|_| assert!(device.keep_next()));
        device.stop();
    };
    let states = step::states(|| world.state(), life);
    assert!(states.len() > 4, "{} states", states.len());
    for (index, state) in states.iter().enumerate() {
        goes_on_from(&world, &driver, state, index % 2 == 0);
    }
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "exclusive loads and stores never succeed in single steps"
)]
fn v10_a_device_is_killed_while_it_stops() {
    killed_while_it_stops::<SplitRing>(SPLIT);
    killed_while_it_stops::<PackedRing>(PACKED);
}

/// A request that is looked at is not noted, and one that was in flight before comes again.
fn nothing_is_noted_before_it_is_taken<R: Ring + Clone>(setup: Setup) {
    for outlives_stop in [false, true] {
        let world = World::<R>::new(Setup {
            outlives_stop,
            ..setup
        });
        let mut driver = world.driver.clone();
        world.submit(&mut driver, 3);
        let mut device = world.device();
        assert!(device.keep_next());
        let before = world.state();
        assert_eq!(device.peek_next(), Some(1));
        assert_eq!(world.state(), before, "noted, though it was not taken");
        drop(device);

        // 0 is in flight, and 1 is in the ring.
        let mut device = world.device();
        let before = world.state();
        assert_eq!(device.peek_next(), Some(0));
        assert_eq!(device.peek_next(), Some(0));
        assert_eq!(world.state(), before);
        assert!(device.keep_next());
        assert_eq!(device.peek_next(), Some(1));
        let stopped = device.stop();
        assert!(stopped.more);

        // What stays in the region comes from there, and otherwise from the ring.
        let mut device = world.device();
        while device.keep_next() {}
        let kept: Vec<_> = device.kept.iter().map(|(id, _)| *id).collect();
        assert_eq!(kept, [0, 1, 2]);
    }
}

#[test]
fn v10_a_request_that_is_looked_at_is_not_in_flight() {
    nothing_is_noted_before_it_is_taken::<SplitRing>(SPLIT);
    nothing_is_noted_before_it_is_taken::<PackedRing>(PACKED);
}

/// After answers out of order the driver's ring is no longer what is in flight. An index stands
/// only for what is in both.
fn an_index_stands_for_what_is_in_the_ring<R: Ring + Clone>(setup: Setup) {
    for looked_at in [false, true] {
        let world = World::<R>::new(Setup {
            outlives_stop: false,
            lengths: &[2],
            ..setup
        });
        let mut driver = world.driver.clone();
        world.submit(&mut driver, 3);
        let mut device = world.device();
        (0..3).for_each(|_| assert!(device.keep_next()));
        assert_eq!(device.do_kept(1), 1);
        device.queue.publish();
        drop(device);
        assert_eq!(world.collect(&mut driver), [1]);

        // What is left is 0 and 2, where the ring has 1 and 2.
        let mut device = world.device();
        let entries = if R::PACKED { 2 } else { 1 };
        assert_eq!(device.queue.stranded(), entries);
        if looked_at {
            (0..2).for_each(|_| assert!(device.keep_next()));
            assert_eq!(device.queue.stranded(), 0);
            let again: Vec<_> = device
                .kept
                .iter()
                .map(|(id, kept)| (*id, device.queue.would_rewind(kept)))
                .collect();
            assert_eq!(again, [(0, false), (2, true)]);
        }
        device.kept.clear();
        device.queue.stop();
        let used = driver.ring.pop_used().unwrap();
        assert_eq!((driver.requests[&used.head], used.len), (0, 0));
        assert_eq!(driver.ring.pop_used(), None);

        let mut device = world.device();
        assert_eq!(device.queue.stranded(), 0);
        assert!(device.keep_next());
        assert_eq!(device.kept[0].0, 2);
        assert!(!device.keep_next());
    }
}

#[test]
fn v10_an_index_stands_for_what_is_in_the_ring_still() {
    an_index_stands_for_what_is_in_the_ring::<SplitRing>(SPLIT);
    an_index_stands_for_what_is_in_the_ring::<PackedRing>(PACKED);
}

/// The specification's structures, field by field.
#[test]
fn v10_the_region_of_a_split_ring_is_as_specified() {
    let world = World::<SplitRing>::new(SPLIT);
    let header = || world.memory.read_obj::<QueueRegionSplit>(REGION);
    let entry = |head: u16| {
        let offset =
            size_of::<QueueRegionSplit>() + usize::from(head) * size_of::<DescStateSplit>();
        world
            .memory
            .read_obj::<DescStateSplit>(REGION + offset as u64)
    };
    let expected = |last_batch_head, used_idx| QueueRegionSplit {
        features: 0,
        version: 1,
        desc_num: 8,
        last_batch_head,
        used_idx,
    };
    let in_flight = |counter| DescStateSplit {
        inflight: 1,
        counter,
        ..DescStateSplit::default()
    };
    assert_eq!(header(), QueueRegionSplit::default(), "not used yet");
    let mut device = world.device();
    assert_eq!(header(), expected(0, 0xfff9), "the index of the ring");

    // Heads 0, 1 and 3: the chains have 1, 2 and 3 descriptors.
    let mut driver = world.driver.clone();
    world.submit(&mut driver, 3);
    while device.keep_next() {}
    let counters: Vec<_> = (0..8).map(|head| entry(head).counter).collect();
    let taken: Vec<_> = (0..8).filter(|head| entry(*head).inflight != 0).collect();
    assert_eq!(taken.len(), 3);
    for (head, counter) in taken.iter().zip(0..) {
        assert_eq!(entry(*head), in_flight(counter), "{counters:?}");
    }
    // Two of them in one batch, the last first.
    device.do_kept(2);
    device.do_kept(0);
    assert_eq!(entry(taken[2]).inflight, 1, "the driver has not seen it");
    device.queue.publish();
    assert_eq!(header(), expected(taken[0], 0xfffb));
    assert_eq!(entry(taken[0]).next, taken[2]);
    assert_eq!(entry(taken[2]).next, 0, "what stood there before");
    let left: Vec<_> = taken.iter().map(|head| entry(*head).inflight).collect();
    assert_eq!(left, [0, 1, 0]);
}

#[test]
fn v10_the_region_of_a_packed_ring_is_as_specified() {
    let world = World::<PackedRing>::new(PACKED);
    let header = || world.memory.read_obj::<QueueRegionPacked>(REGION);
    let entry = |index: u16| {
        let offset =
            size_of::<QueueRegionPacked>() + usize::from(index) * size_of::<DescStatePacked>();
        world
            .memory
            .read_obj::<DescStatePacked>(REGION + offset as u64)
    };
    let expected = |free_head, (used_idx, wrap)| QueueRegionPacked {
        version: 1,
        desc_num: 11,
        free_head,
        old_free_head: free_head,
        used_idx,
        old_used_idx: used_idx,
        used_wrap_counter: wrap,
        old_used_wrap_counter: wrap,
        ..QueueRegionPacked::default()
    };
    assert_eq!(header(), QueueRegionPacked::default(), "not used yet");
    let mut device = world.device();
    assert_eq!(header(), expected(0, (5, 1)));
    let next: Vec<_> = (0..11).map(|index| entry(index).next).collect();
    assert_eq!(next, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);

    // Chains of 1, 2 and 3 descriptors.
    let mut driver = world.driver.clone();
    world.submit(&mut driver, 3);
    let slots = [5, 6, 0, 1, 2, 3].map(|slot| driver.ring.descriptor(slot));
    while device.keep_next() {}
    assert_eq!(header(), expected(6, (5, 1)), "nothing is used");
    for (index, slot) in (0..).zip(slots) {
        let entry = entry(index);
        assert_eq!(
            (entry.addr, entry.len, entry.id, entry.flags),
            (slot.addr, slot.len, slot.id, slot.flags)
        );
    }
    let heads = [(0, 0, 1), (1, 2, 2), (3, 5, 3)];
    for ((head, last, num), counter) in heads.into_iter().zip(0..) {
        let entry = entry(head);
        assert_eq!((entry.inflight, entry.counter), (1, counter));
        assert_eq!((entry.last, entry.num), (last, num));
    }
    assert_eq!([1, 3].map(|head| entry(head).next), [2, 4]);
    // Two of them in one batch, the last first: 3 and 1 slots, over the end of the ring.
    device.do_kept(2);
    device.do_kept(0);
    assert_eq!(
        header(),
        expected(6, (5, 1)),
        "the driver has not seen them"
    );
    device.queue.publish();
    assert_eq!(header(), expected(0, (2, 0)));
    assert_eq!((entry(0).next, entry(5).next), (3, 6), "the free list");
    assert_eq!([0, 1, 3].map(|head| entry(head).inflight), [0, 1, 0]);
}

#[test]
fn v10_a_queue_has_a_part_of_its_own_aligned_to_64_bytes() {
    // The larger kind of ring: 32 bytes, and as many for each entry.
    for (entries, len) in [(1, 64), (2, 128), (3, 128), (8, 320), (256, 8256)] {
        assert_eq!(InflightRegion::len_for(1, entries), len);
        assert_eq!(InflightRegion::len_for(3, entries), 3 * len);
    }
    let world = World::<SplitRing>::new(SPLIT);
    let map = |len| Mapping::new(&world.region, 0, len).unwrap();
    let region = InflightRegion::new(map(0x1000), 3, 8, true).unwrap();
    for (index, offset) in [(0, 0), (1, 192), (2, 384)] {
        world
            .memory
            .store_u16(REGION + offset + 8, 1, Ordering::Relaxed);
        assert!(region.has_run(index, false), "{index}");
        region.forget(index, false);
        assert!(!region.has_run(index, false), "{index}");
    }
    assert!(region.queue(3, false).unwrap().is_none(), "not tracked");

    // Enough for split rings, but not for packed ones.
    let region = InflightRegion::new(map(3 * 192), 3, 8, true).unwrap();
    assert!(region.queue(2, false).unwrap().is_some());
    let short = InflightError::Short {
        len: 576,
        needed: 640,
    };
    assert_eq!(region.queue(1, true).err(), Some(short));
    assert!(InflightRegion::new(map(3 * 192 - 1), 3, 8, true).is_err());
    for (queues, entries) in [(0, 8), (1, 0), (1, 0x8001)] {
        assert!(InflightRegion::new(map(0x1000), queues, entries, true).is_err());
    }
}

/// Where a device begins whose region says this.
fn begin<R: Ring + Clone>(world: &World<R>) -> Result<Queue, RingError> {
    let inflight = world.inflight().queue(0, R::PACKED).unwrap().unwrap();
    Queue::tracked(&world.device_memory, &world.config, inflight)
}

#[test]
fn v10_a_region_that_cannot_be_is_refused() {
    let damaged = |found: Result<Queue, RingError>| {
        let why = InflightError::Damaged("");
        let same = |error: RingError| match error {
            RingError::Inflight(InflightError::Damaged(_)) => why,
            RingError::Inflight(other) => other,
            other => panic!("{other}"),
        };
        assert_eq!(found.map(drop).map_err(same), Err(why));
    };
    let split = World::<SplitRing>::new(SPLIT);
    let packed = World::<PackedRing>::new(PACKED);
    let set = |at: u64, value: u16| {
        split
            .memory
            .store_u16(REGION + at, value, Ordering::Relaxed);
        packed
            .memory
            .store_u16(REGION + at, value, Ordering::Relaxed);
    };
    let zero = || {
        split.memory.fill(REGION, REGION_SIZE as usize, 0);
        packed.memory.fill(REGION, REGION_SIZE as usize, 0);
    };
    for version in [2, 0x100, 0xffff] {
        set(8, version);
        let unknown = RingError::Inflight(InflightError::Version(version));
        assert_eq!(begin(&split).err(), Some(unknown));
        assert_eq!(begin(&packed).err(), Some(unknown));
    }
    // A batch that leaves the ring, at its beginning or later.
    zero();
    set(8, 1);
    set(14, 0xfff9 - 2);
    set(12, 8);
    damaged(begin(&split));
    set(12, 7);
    set(16 + 16 * 7 + 6, 0xffff);
    damaged(begin(&split));
    // A used index that does; a free list that is a loop; a chain that is none.
    zero();
    set(8, 1);
    set(18, 7);
    damaged(begin(&packed));
    set(18, 0);
    damaged(begin(&packed));
    for (num, next) in [(0, 1), (2, 0), (2, 11), (8, 1), (0xffff, 1)] {
        zero();
        set(8, 1);
        set(12, 11);
        set(14, 11);
        set(32, 1);
        set(32 + 6, num);
        set(32 + 2, next);
        damaged(begin(&packed));
    }
}

#[test]
fn v10_a_ring_is_not_longer_than_its_region() {
    let world = World::<SplitRing>::new(Setup {
        entries: 7,
        ..SPLIT
    });
    let longer = InflightError::Size {
        size: 8,
        entries: 7,
    };
    assert_eq!(begin(&world).err(), Some(RingError::Inflight(longer)));
}

/// Whatever stands in it, in the guest's memory too, is survived.
fn any_bytes_are_survived<R: Ring + Clone>(setup: Setup) {
    let mut random = Random::new(7);
    let mut begun = 0;
    for round in 0..3000 {
        let world = World::<R>::new(setup);
        let mut driver = world.driver.clone();
        world.submit(&mut driver, 5);
        // Some requests were in flight, so that not everything is wrong.
        world.device().live(&mut random, 6, End::Gone);
        for _ in 0..=round % 12 {
            let at = match random.below(4) {
                0 => BASE + random.below(0x200),
                _ => REGION + random.below(0x180),
            };
            world.memory.write(at, &[random.below(0x100) as u8]);
        }
        // A new version would only be refused.
        world.memory.store_u16(REGION + 8, 1, Ordering::Relaxed);
        let Ok(mut queue) = begin(&world) else {
            continue;
        };
        begun += 1;
        let mut taken = 0;
        while let Ok(true) = queue.look() {
            if random.below(2) == 0 {
                let _left = queue.peek(&world.device_memory);
            }
            let Some(_answered) = queue.pop(&world.device_memory).map(drop) else {
                break;
            };
            taken += 1;
            if taken % 2 == 0 {
                queue.publish();
            }
        }
        assert!(taken <= 64, "{taken} requests of a ring of 8");
        queue.publish();
        queue.arm();
        queue.stop();
    }
    assert!(begun > 500, "{begun} have begun");
}

#[test]
fn v10_any_bytes_in_the_region_of_a_split_ring_are_survived() {
    any_bytes_are_survived::<SplitRing>(SPLIT);
    any_bytes_are_survived::<SplitRing>(Setup {
        outlives_stop: false,
        in_order: true,
        ..SPLIT
    });
}

#[test]
fn v10_any_bytes_in_the_region_of_a_packed_ring_are_survived() {
    any_bytes_are_survived::<PackedRing>(PACKED);
    any_bytes_are_survived::<PackedRing>(Setup {
        outlives_stop: false,
        in_order: true,
        ..PACKED
    });
}

/// What a device puts right in a packed ring when it begins is marked, as it may have been copied
/// to another host as it was.
#[test]
fn v8_v10_what_is_put_right_is_marked() {
    const SIZE: u16 = 512;
    const PAGE: u64 = 0x1000;
    let memory = vhost_device_driver::GuestMemory::new(&[(BASE, 0x1_0000), (REGION, 0x5000)]);
    let device_memory = map(&memory);
    let layout = PackedRing::place_at(BASE, SIZE);
    let mut ring = PackedRing::create(&memory, layout, SIZE, true);
    let config = Config {
        size: SIZE,
        addresses: addresses(layout),
        base: PackedRing::FIRST_BASE,
        packed: true,
        in_order: false,
        event_idx: true,
        indirect: true,
    };
    let map_file = |fd: std::os::fd::BorrowedFd<'_>, len| {
        let file = File::from(fd.try_clone_to_owned().unwrap());
        Mapping::new(&file, 0, len).unwrap()
    };
    let begin = || {
        let region = InflightRegion::new(map_file(memory.regions()[1].fd(), 0x5000), 1, SIZE, true);
        let inflight = region.unwrap().queue(0, true).unwrap().unwrap();
        Queue::tracked(&device_memory, &config, inflight).unwrap()
    };
    // Into the second page of the ring, and there some are in flight.
    let mut queue = begin();
    let mut kept = Vec::new();
    for id in 0..300 {
        ring.add(&[Buffer::readable(BASE + 0x8000, 8)]).unwrap();
        ring.publish();
        let request = queue.pop(&device_memory).unwrap().unwrap();
        match id {
            0..=290 => request.complete(),
            _ => kept.push(request.keep()),
        }
        queue.publish();
        while ring.pop_used().is_some() {}
    }
    drop((queue, kept));

    let log = vhost_device_driver::GuestMemory::new(&[(0, PAGE)]);
    let dirty = DirtyLog::new(map_file(log.regions()[0].fd(), PAGE as usize));
    let mut queue = begin();
    queue.set_log(Some(QueueLog {
        dirty: Arc::new(dirty),
        used: Some(layout.used),
    }));
    let is_marked = |addr: u64| {
        let page = addr / PAGE;
        log.read_vec(page / 8, 1)[0] & 1 << (page % 8) != 0
    };
    assert!(!is_marked(BASE), "nothing is in flight there");
    assert!(is_marked(BASE + PAGE));
    assert!(is_marked(layout.used), "the wish for kicks");
}
