//! Requests in flight: a device that is killed at any instruction is followed by one that loses no
//! request and does none again that was answered.

mod step;

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::Ordering;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, PackedRing, Ring, SplitRing};
use vhost_device_model::{addresses, map};
use vhost_device_queue::memory::Mapping;
use vhost_device_queue::{Config, GuestMemory, InflightRegion, Kept, Queue, Request, Stopped};

/// Where the guest's memory is. The ring is at its beginning.
const BASE: u64 = 0x10_0000;
const SIZE: u64 = 0x4000;
/// How often each request was done, 4 bytes each.
const JOURNAL: u64 = BASE + 0x800;
/// What each request says and is answered, 16 bytes each.
const DATA: u64 = BASE + 0x1000;
/// As many requests as there is room for.
const REQUESTS: u64 = 0x300;
/// Where the region is, in a file of its own.
const REGION: u64 = 0x20_0000;
const REGION_SIZE: u64 = 0x1000;

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

/// Numbers that are random enough.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
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
        let mut state = self.memory.read_vec(BASE, SIZE as usize);
        state.extend(self.memory.read_vec(REGION, REGION_SIZE as usize));
        state
    }

    fn set_state(&self, state: &[u8]) {
        let (guest, region) = state.split_at(SIZE as usize);
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

    fn keep_next(&mut self) -> bool {
        if !self.queue.look().unwrap() {
            return false;
        }
        let popped = self.queue.pop(&self.world.device_memory);
        popped.is_some_and(|request| {
            let mut request = request.unwrap();
            let id = request.reader().read_obj().unwrap();
            self.kept.push((id, request.keep()));
            true
        })
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
    let mut random = Random(seed);
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
fn v10_a_device_on_a_split_ring_is_killed_at_any_instruction() {
    killed_anywhere_in::<SplitRing>(SPLIT);
}

#[test]
fn v10_a_device_on_a_packed_ring_is_killed_at_any_instruction() {
    killed_anywhere_in::<PackedRing>(PACKED);
}

/// Used descriptors of a batch that was not shown are in the very slots that the next device uses.
#[test]
fn v10_a_batch_that_was_not_shown_is_not_seen_later() {
    let setup = Setup {
        lengths: &[1],
        ..PACKED
    };
    killed_anywhere::<PackedRing>(setup, 2, End::Gone);
}

/// The slot behind the last used one has what it had a round ago.
#[test]
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
