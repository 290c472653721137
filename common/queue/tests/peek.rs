//! Requests that are looked at and left in the ring, in any order with those that are taken.

mod rig;

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use rig::{DATA, RingRig, Setup};
use vhost_device_driver::{Buffer, PackedRing, Ring, SplitRing};
use vhost_device_queue::{ChainError, Config, Kept, Queue, Request};

/// No guest memory is there.
const NOWHERE: u64 = 0x4000_0000;

#[derive(Clone, Copy, Debug)]
enum Answer {
    Complete,
    Keep,
    Drop,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver makes a request of so many descriptors available, or one with a buffer that is
    /// nowhere.
    Add {
        length: usize,
        is_bad: bool,
    },
    /// The device looks at the next request and leaves it.
    Peek,
    /// It looks at it and takes it.
    Take(Answer),
    /// It takes it without a look.
    Pop(Answer),
    /// It answers one that it keeps.
    Resume(usize),
    Publish,
    /// It is done, and another one goes on.
    Stop,
}

/// A request that the device has not taken: what it says, how many entries it has, and whether it
/// breaks a rule.
#[derive(Clone, Copy, Debug)]
struct Added {
    id: u64,
    entries: u64,
    is_bad: bool,
}

/// A request that the device keeps.
#[derive(Debug)]
struct Held {
    kept: Kept,
    added: Added,
    position: u64,
}

struct World<R> {
    rig: RingRig<R>,
    /// What is in the ring and was not taken.
    waiting: VecDeque<Added>,
    held: Vec<Held>,
    /// How many entries were taken since the first device began.
    taken: u64,
    /// The used length that each request is to have, by what it says; of those that were taken.
    answers: BTreeMap<u64, u32>,
    /// The request of each head or buffer id.
    heads: BTreeMap<u16, u64>,
    next: u64,
}

impl<R: Ring> World<R> {
    fn new(setup: Setup) -> Self {
        Self {
            rig: RingRig::new(setup),
            waiting: VecDeque::new(),
            held: Vec::new(),
            taken: 0,
            answers: BTreeMap::new(),
            heads: BTreeMap::new(),
            next: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add { length, is_bad } => self.add(length, is_bad),
            Step::Peek => self.peek(None),
            Step::Take(answer) => self.peek(Some(answer)),
            Step::Pop(answer) => self.pop(answer),
            Step::Resume(index) => self.resume(index),
            Step::Publish => self.publish(),
            Step::Stop => self.stop(),
        }
    }

    fn add(&mut self, length: usize, is_bad: bool) {
        let id = self.next;
        let question = DATA + 16 * id;
        self.rig.driver_memory.write_obj(question, id);
        let last = if is_bad { NOWHERE } else { question + 8 };
        let buffers = match length {
            1 if is_bad => vec![Buffer::writable(last, 4)],
            1 => vec![Buffer::readable(question, 8)],
            2 => vec![Buffer::readable(question, 8), Buffer::writable(last, 4)],
            _ => vec![
                Buffer::readable(question, 3),
                Buffer::readable(question + 3, 5),
                Buffer::writable(last, 4),
            ],
        };
        let Ok(head) = self.rig.ring.add(&buffers) else {
            return;
        };
        self.rig.ring.publish();
        self.heads.insert(head, id);
        self.next += 1;
        let entries = if R::PACKED { length as u64 } else { 1 };
        self.waiting.push_back(Added {
            id,
            entries,
            is_bad,
        });
    }

    fn ring_bytes(&self) -> Vec<u8> {
        let len = R::bytes(self.rig.config.size) as usize;
        let start = self.rig.config.addresses.descriptor;
        self.rig.driver_memory.read_vec(start, len)
    }

    fn look(&mut self) {
        assert_eq!(self.rig.queue.look(), Ok(!self.waiting.is_empty()));
    }

    /// The next request is not in the ring any more.
    fn took(&mut self) -> (Added, u64) {
        let added = self.waiting.pop_front().expect("a request");
        let position = self.taken;
        self.taken += added.entries;
        (added, position)
    }

    fn refused(&mut self, error: ChainError) {
        let (added, _) = self.took();
        assert!(added.is_bad);
        assert_eq!(
            error,
            ChainError::Address {
                addr: NOWHERE,
                len: 4
            }
        );
        self.answers.insert(added.id, 0);
    }

    fn peek(&mut self, answer: Option<Answer>) {
        self.look();
        let before = self.ring_bytes();
        let peeked = self.rig.queue.peek(&self.rig.memory);
        let peeked = peeked.map(|peeked| {
            let peeked = peeked?;
            let id: u64 = peeked.reader().read_obj().expect("what it says");
            assert_eq!(self.waiting.front().map(|added| added.id), Some(id));
            assert_eq!(peeked.reader().remaining(), 8, "from the beginning");
            assert_eq!(peeked.readable_len(), 8);
            Ok(answer.map(|answer| answered(peeked.take(), answer)))
        });
        match peeked {
            None => assert!(self.waiting.is_empty()),
            Some(Err(error)) => self.refused(error),
            Some(Ok(Some(done))) => self.held_or_answered(done),
            Some(Ok(None)) => assert_eq!(self.ring_bytes(), before, "nothing was written"),
        }
    }

    fn pop(&mut self, answer: Answer) {
        self.look();
        let popped = self.rig.queue.pop(&self.rig.memory);
        match popped.map(|request| request.map(|request| answered(request, answer))) {
            None => assert!(self.waiting.is_empty()),
            Some(Err(error)) => self.refused(error),
            Some(Ok(done)) => self.held_or_answered(done),
        }
    }

    fn held_or_answered(&mut self, (id, len, kept): (u64, u32, Option<Kept>)) {
        let (added, position) = self.took();
        assert_eq!((id, false), (added.id, added.is_bad));
        if let Some(kept) = kept {
            self.held.push(Held {
                kept,
                added,
                position,
            });
        } else {
            self.answers.insert(id, len);
        }
    }

    fn resume(&mut self, index: usize) {
        let Some(index) = index.checked_rem(self.held.len()) else {
            return;
        };
        let Held { kept, added, .. } = self.held.remove(index);
        let resumed = self.rig.queue.resume(&self.rig.memory, kept);
        let (id, len, _) = answered(resumed.expect("it is kept"), Answer::Complete);
        assert_eq!(id, added.id);
        self.answers.insert(id, len);
    }

    /// Shows the answers, which the driver takes.
    fn publish(&mut self) {
        self.rig.queue.publish();
        self.collect();
        let left = self.rig.queue.arm();
        assert!(
            !left || !self.waiting.is_empty(),
            "there is nothing to stay awake for"
        );
        self.rig.queue.disarm();
    }

    fn collect(&mut self) {
        while let Some(used) = self.rig.ring.pop_used() {
            let id = self.heads.remove(&used.head).expect("a request");
            assert_eq!(self.answers.remove(&id), Some(used.len), "{id}");
        }
    }

    /// The base is exact: what was left is not passed over.
    fn stop(&mut self) {
        let size = self.rig.config.size;
        // The newest without a gap are taken again.
        self.held.sort_by_key(|held| held.position);
        while let Some(held) = self
            .held
            .pop_if(|held| held.position + held.added.entries == self.taken)
        {
            self.taken = held.position;
            self.waiting.push_front(held.added);
        }
        for held in self.held.drain(..) {
            self.answers.insert(held.added.id, 0);
        }
        let base = base_after::<R>(self.rig.config.base, self.taken, size);
        let config = Config {
            base,
            ..self.rig.config
        };
        let next = Queue::new(&self.rig.memory, &config).expect("a ring");
        let stopped = std::mem::replace(&mut self.rig.queue, next).stop();
        assert_eq!(stopped.base, base);
        assert_eq!(stopped.more, !self.waiting.is_empty());
        // A new one takes the used index from the ring.
        self.rig.queue = Queue::new(&self.rig.memory, &config).expect("a ring");
        self.collect();
    }

    /// All that was asked is answered once.
    fn finish(&mut self) {
        while !self.held.is_empty() {
            self.resume(0);
        }
        while !self.waiting.is_empty() {
            self.step(Step::Take(Answer::Complete));
        }
        self.publish();
        assert_eq!((self.heads.len(), self.answers.len()), (0, 0));
    }
}

/// Answers a request: what it says, its used length, and what is kept.
fn answered(mut request: Request<'_>, answer: Answer) -> (u64, u32, Option<Kept>) {
    let id = request.reader().read_obj().expect("what it says");
    let len = request.writable_len();
    match answer {
        Answer::Complete => {
            request.writer().write_zeros(len).expect("room");
            request.complete();
            (id, len as u32, None)
        }
        Answer::Keep => (id, 0, Some(request.keep())),
        Answer::Drop => (id, 0, None),
    }
}

/// Where a ring is that began at `base`, when `taken` entries were taken and answered.
fn base_after<R: Ring>(base: u32, taken: u64, size: u16) -> u32 {
    if !R::PACKED {
        return (base + taken as u32) & 0xffff;
    }
    let size = u64::from(size);
    let begin = u64::from(base & 0x7fff) + if base & 0x8000 == 0 { size } else { 0 };
    let place = (begin + taken) % (2 * size);
    let wrap = if place < size { 0x8000 } else { 0 };
    ((place % size) as u32 | wrap) * 0x1_0001
}

fn answer() -> impl Strategy<Value = Answer> {
    prop::sample::select(&[Answer::Complete, Answer::Keep, Answer::Drop][..])
}

fn step() -> impl Strategy<Value = Step> {
    let add = (1_usize..=3, prop::bool::weighted(0.2));
    prop_oneof![
        6 => add.prop_map(|(length, is_bad)| Step::Add { length, is_bad }),
        4 => Just(Step::Peek),
        4 => answer().prop_map(Step::Take),
        1 => answer().prop_map(Step::Pop),
        1 => any::<usize>().prop_map(Step::Resume),
        2 => Just(Step::Publish),
        1 => Just(Step::Stop),
    ]
}

fn steps() -> impl Strategy<Value = (Vec<Step>, bool, bool)> {
    (
        prop::collection::vec(step(), 1..120),
        any::<bool>(),
        any::<bool>(),
    )
}

fn run<R: Ring>(size: u16, base: u32, (steps, in_order, event_idx): (Vec<Step>, bool, bool)) {
    let mut world = World::<R>::new(Setup {
        size,
        base: Some(base),
        event_idx,
        in_order,
        ..Setup::default()
    });
    for step in steps {
        world.step(step);
    }
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_left_in_a_split_ring_is_there_still(steps in steps()) {
        run::<SplitRing>(8, 0xfffb, steps);
    }

    #[test]
    fn what_is_left_in_a_packed_ring_is_there_still(steps in steps()) {
        run::<PackedRing>(7, 0x8005_8005, steps);
    }
}

/// A device that leaves a request costs nothing for how often it looks.
fn looking_is_keeping_nothing<R: Ring>() {
    let mut rig = RingRig::<R>::new(Setup::default());
    let question = rig.readable(b"who?");
    rig.ring.add(&[question]).expect("room");
    rig.ring.publish();
    for _ in 0..3 * u32::from(rig.config.size) {
        assert_eq!(rig.queue.look(), Ok(true));
        let peeked = rig.queue.peek(&rig.memory).expect("a request");
        assert_eq!(peeked.expect("a good chain").readable_len(), 4);
        assert!(!rig.queue.is_unblocked(), "nothing is kept");
    }
    assert!(rig.queue.arm(), "it is there still");
    assert!(!rig.queue.publish(), "nothing was answered");
    assert_eq!(rig.ring.pop_used(), None);
    rig.serve(rig::echo);
    assert!(rig.ring.pop_used().is_some());
}

#[test]
fn a_request_may_be_looked_at_any_number_of_times() {
    looking_is_keeping_nothing::<SplitRing>();
    looking_is_keeping_nothing::<PackedRing>();
}

/// The driver may change a request that is in the ring: what was looked at is what is taken.
#[test]
fn what_is_taken_is_what_was_looked_at() {
    let mut rig = RingRig::<SplitRing>::new(Setup::default());
    let question = rig.readable(b"who?");
    let head = rig.ring.add(&[question]).expect("room");
    rig.ring.publish();
    assert_eq!(rig.queue.look(), Ok(true));
    let peeked = rig.queue.peek(&rig.memory).expect("a request");
    let peeked = peeked.expect("a good chain");
    rig.driver_memory.write(
        rig.config.addresses.descriptor + 16 * u64::from(head) + 8,
        &[2],
    );
    let request = peeked.take();
    assert_eq!(request.readable_len(), 4);
    request.complete();
}
