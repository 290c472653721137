//! A driver and a device at random on one queue, and what each must see.
//!
//! Bytes at random are no ring: they are refused at once, and nothing behind the first check is
//! seen. So an input is a list of what a driver and a device do, and the driver does it well,
//! until it writes a byte where it should not. Before that, every answer is checked, and that no
//! side sleeps while the other has something for it; from then on the queue has to survive, and to
//! serve the next driver that comes.
//!
//! The fuzz targets in `tests/fuzz` run it on inputs of their own making, and the tests here on
//! random ones.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vhost_device_driver::memory::Region;
use vhost_device_driver::{Buffer, Layout, Ring};
use vhost_device_queue::{Addresses, Config, GuestMemory, Kept, Queue, Request, memory};

/// Where the ring is, and the first region of memory.
const RING: u64 = 0x10_0000;
/// As much as the largest ring takes, rounded up: the buffers are in a region of their own.
const RING_ROOM: u64 = 0x4000;
/// Where buffers and indirect tables are, one slot for each request.
const DATA: u64 = 0x20_0000;
const SLOTS: u64 = 64;
const SLOT: u64 = 0x1000;
/// In a slot: the table, and behind it the buffers.
const BUFFERS: u64 = 0x400;

/// The largest split ring, as a power of two, and the largest packed one.
const MAX_ORDER: u16 = 8;
const MAX_SIZE: u16 = 1 << MAX_ORDER;
const MAX_BUFFERS: usize = 20;
const MAX_LEN: u16 = 128;

/// What the device writes, and what is where it does not.
const ANSWER: u8 = 0x5a;
const UNTOUCHED: u8 = 0xee;

/// A ring, and what happens to it.
#[derive(Debug)]
pub struct Input {
    size: u8,
    base: u16,
    event_idx: bool,
    indirect: bool,
    in_order: bool,
    /// Whether the driver ever does what it should not.
    corrupts: bool,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Input {
    /// As many steps as the bytes are good for: a derived list would end at random.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut input = Self {
            size: bytes.arbitrary()?,
            base: bytes.arbitrary()?,
            event_idx: bytes.arbitrary()?,
            indirect: bytes.arbitrary()?,
            in_order: bytes.arbitrary()?,
            corrupts: bytes.arbitrary()?,
            steps: Vec::new(),
        };
        while !bytes.is_empty() {
            input.steps.push(bytes.arbitrary()?);
        }
        Ok(input)
    }
}

/// What the driver or the device does.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The driver adds a request.
    Add {
        readable: Vec<u8>,
        writable: Vec<u8>,
        kind: Kind,
    },
    /// The driver shows what it has added.
    Publish,
    /// The device answers what it sees, each request in this way, from the first again behind the
    /// last.
    Serve(Vec<Answer>),
    /// The device looks at the next request, and takes it to answer it, or leaves it.
    Peek(Option<Answer>),
    /// The device answers one that it keeps.
    Resume {
        which: u8,
        answer: Answer,
    },
    /// The driver takes the answers.
    Collect,
    /// The device would sleep; the driver may be called, or not.
    Arm,
    Disarm,
    Calls(bool),
    /// The queue stops, and another goes on from its base.
    Restart,
    /// The driver writes where it should not.
    Corrupt {
        area: Area,
        offset: u16,
        value: u8,
    },
    /// The driver moves its index, or changes a descriptor's flags.
    Disturb(u16),
}

impl Step {
    fn corrupts(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Disturb(_))
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Direct,
    Indirect,
    Mixed,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Answer {
    Write(u8),
    Keep,
    Drop,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Area {
    Descriptors,
    Available,
    Used,
    Table(u8),
}

/// A request that the driver waits for.
struct Asked {
    /// What the device is to read.
    sent: Vec<u8>,
    room: usize,
    /// What the device did last.
    answer: Option<Answer>,
    buffers: Vec<Buffer>,
}

struct World<R> {
    guest: vhost_device_driver::GuestMemory,
    ring: R,
    memory: GuestMemory,
    config: Config,
    queue: Queue,
    /// With its position.
    kept: VecDeque<(Kept, usize)>,
    /// By slot.
    asked: BTreeMap<u64, Asked>,
    /// The slot of each request that was added, by its position.
    order: Vec<u64>,
    /// The position of the request that the device sees next.
    next: usize,
    heads: BTreeMap<u16, u64>,
    /// The slots of the requests that are out, in order.
    due: VecDeque<u64>,
    /// How many requests the device can see.
    published: usize,
    /// The driver sleeps until it is called.
    driver_sleeps: bool,
    /// The device asked for kicks, and has not taken that back.
    armed: bool,
    /// The device sleeps until it is kicked.
    device_sleeps: bool,
    corrupt: bool,
}

/// Does what the input says.
///
/// # Panics
/// When the queue does what it must not.
pub fn run<R: Ring>(input: &Input) {
    let mut world = World::<R>::new(input);
    for step in &input.steps {
        if input.corrupts || !step.corrupts() {
            world.step(step);
        }
    }
    if !world.corrupt {
        world.finish();
    }
    world.expect_service();
}

impl<R: Ring> World<R> {
    fn new(input: &Input) -> Self {
        let size = if R::PACKED {
            1 + u16::from(input.size) % MAX_SIZE
        } else {
            1 << (u16::from(input.size) % (MAX_ORDER + 1))
        };
        let regions = [(RING, RING_ROOM), (DATA, SLOTS * SLOT)];
        let guest = vhost_device_driver::GuestMemory::new(&regions);
        let layout = R::place_at(RING, size);
        let mut ring = R::create(&guest, layout, size, input.event_idx);
        let base = base::<R>(input.base, size);
        ring.start_at(base);
        let memory = map(&guest);
        let config = Config {
            size,
            addresses: addresses(layout),
            base,
            packed: R::PACKED,
            event_idx: input.event_idx,
            indirect: input.indirect,
            in_order: input.in_order,
        };
        let queue = Queue::new(&memory, &config).expect("a sound ring");
        Self {
            guest,
            ring,
            memory,
            config,
            queue,
            kept: VecDeque::new(),
            asked: BTreeMap::new(),
            order: Vec::new(),
            next: 0,
            heads: BTreeMap::new(),
            due: VecDeque::new(),
            published: 0,
            driver_sleeps: false,
            armed: false,
            device_sleeps: false,
            corrupt: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add {
                readable,
                writable,
                kind,
            } => self.add(readable, writable, *kind),
            Step::Publish => self.publish(),
            Step::Serve(answers) => self.serve(answers),
            Step::Peek(answer) => self.peek(*answer),
            Step::Resume { which, answer } => self.resume(*which, *answer),
            Step::Collect => self.collect(),
            Step::Arm => self.arm(),
            Step::Disarm => self.disarm(),
            Step::Calls(true) => self.driver_sleeps = !self.ring.arm_calls(),
            Step::Calls(false) => {
                self.ring.disarm_calls();
                self.driver_sleeps = false;
            }
            Step::Restart => self.restart(),
            Step::Corrupt {
                area,
                offset,
                value,
            } => self.corrupt(*area, *offset, *value),
            Step::Disturb(value) => {
                self.corrupt = true;
                self.ring.disturb(*value);
            }
        }
    }

    fn add(&mut self, readable: &[u8], writable: &[u8], kind: Kind) {
        let Some(slot) = (0..SLOTS).find(|slot| !self.asked.contains_key(slot)) else {
            return;
        };
        let start = DATA + slot * SLOT;
        let mut at = start + BUFFERS;
        let mut sent = Vec::new();
        let mut room = 0;
        let mut buffers = Vec::new();
        for &len in readable.iter().take(MAX_BUFFERS) {
            let len = u16::from(len) % MAX_LEN;
            let bytes: Vec<u8> = (0..len).map(|n| (n as u8) ^ (slot as u8)).collect();
            self.guest.write(at, &bytes);
            sent.extend(bytes);
            buffers.push(Buffer::readable(at, len.into()));
            at += u64::from(len);
        }
        for &len in writable.iter().take(MAX_BUFFERS - buffers.len()) {
            let len = u16::from(len) % MAX_LEN;
            self.guest.write(at, &vec![UNTOUCHED; len.into()]);
            room += usize::from(len);
            buffers.push(Buffer::writable(at, len.into()));
            at += u64::from(len);
        }
        if buffers.is_empty() {
            return;
        }
        let kind = if self.config.indirect {
            kind
        } else {
            Kind::Direct
        };
        let added = match kind {
            Kind::Direct => self.ring.add(&buffers),
            Kind::Indirect => self.ring.add_indirect(start, &buffers),
            Kind::Mixed => {
                let (direct, table) = buffers.split_at(buffers.len() / 2);
                self.ring.add_mixed(direct, start, table)
            }
        };
        let Ok(head) = added else {
            return;
        };
        self.heads.insert(head, slot);
        self.order.push(slot);
        self.due.push_back(slot);
        let asked = Asked {
            sent,
            room,
            answer: None,
            buffers,
        };
        self.asked.insert(slot, asked);
    }

    /// The driver shows what it has added, and kicks if it is to.
    fn publish(&mut self) {
        self.ring.publish();
        self.published = self.order.len();
        if self.ring.needs_kick() {
            self.device_sleeps = false;
        }
        let missed = self.device_sleeps && self.published > self.next;
        assert!(
            !missed || self.corrupt,
            "the device sleeps, and was not kicked"
        );
    }

    /// The device goes to sleep, if it may.
    fn arm(&mut self) {
        // Awake means that it was kicked: it disarms before it does anything else.
        if !self.armed {
            self.armed = true;
            self.device_sleeps = !self.queue.arm();
        }
    }

    fn disarm(&mut self) {
        self.queue.disarm();
        self.armed = false;
        self.device_sleeps = false;
    }

    /// The device shows its answers, and calls if it is to.
    fn answer(&mut self) {
        if self.queue.publish() {
            self.driver_sleeps = false;
        }
        self.check_calls();
    }

    fn check_calls(&mut self) {
        let missed = self.driver_sleeps && self.ring.has_used();
        assert!(
            !missed || self.corrupt,
            "the driver sleeps, and was not called"
        );
    }

    /// The device wakes up and looks whether there are requests.
    fn look(&mut self) {
        self.disarm();
        let looked = self.queue.look();
        assert!(looked.is_ok() || self.corrupt, "{looked:?}");
        let there = self.published > self.next;
        assert!(
            looked == Ok(there) || self.corrupt,
            "{looked:?}, not {there}"
        );
    }

    fn peek(&mut self, answer: Option<Answer>) {
        self.look();
        let position = self.next;
        let is_due = self.published > position;
        match self.queue.peek(&self.memory) {
            None => assert!(!is_due || self.corrupt, "there is a request"),
            // It has gone back.
            Some(Err(why)) => {
                assert!(self.corrupt, "{why}");
                self.next += 1;
            }
            Some(Ok(peeked)) => {
                let asked = self.order.get(position);
                let asked = asked.and_then(|slot| self.asked.get_mut(slot));
                let asked = asked.filter(|_| !self.corrupt);
                assert!(asked.is_some() || self.corrupt, "nobody has asked this");
                if let Some(asked) = &asked {
                    let mut sent = vec![0; peeked.readable_len()];
                    peeked
                        .reader()
                        .read_exact(&mut sent)
                        .expect("as many as there are");
                    assert_eq!((&sent, peeked.writable_len()), (&asked.sent, asked.room));
                }
                if let Some(answer) = answer {
                    self.next += 1;
                    let kept = handle(peeked.take(), answer, asked);
                    self.kept.extend(kept.map(|kept| (kept, position)));
                }
            }
        }
        self.answer();
    }

    fn serve(&mut self, answers: &[Answer]) {
        self.look();
        let mut answers = answers.iter().cycle();
        while let Some(popped) = self.queue.pop(&self.memory) {
            let position = self.next;
            self.next += 1;
            match popped {
                Err(why) => assert!(self.corrupt, "{why}"),
                Ok(request) => {
                    let answer = *answers.next().unwrap_or(&Answer::Drop);
                    let asked = self.order.get(position);
                    let asked = asked.and_then(|slot| self.asked.get_mut(slot));
                    let asked = asked.filter(|_| !self.corrupt);
                    assert!(asked.is_some() || self.corrupt, "nobody has asked this");
                    let kept = handle(request, answer, asked);
                    self.kept.extend(kept.map(|kept| (kept, position)));
                }
            }
        }
        self.answer();
    }

    fn resume(&mut self, which: u8, answer: Answer) {
        if self.kept.is_empty() {
            return;
        }
        let index = usize::from(which) % self.kept.len();
        let Some((kept, position)) = self.kept.remove(index) else {
            return;
        };
        match self.queue.resume(&self.memory, kept) {
            None => assert!(self.corrupt, "a kept request is there still"),
            Some(request) => {
                let slot = self.order.get(position);
                let asked = slot.and_then(|slot| self.asked.get_mut(slot));
                let kept = handle(request, answer, asked.filter(|_| !self.corrupt));
                self.kept.extend(kept.map(|kept| (kept, position)));
            }
        }
        self.answer();
    }

    /// Takes the answers, and checks them as long as nothing was corrupted.
    fn collect(&mut self) {
        if self.corrupt {
            return;
        }
        while let Some(used) = self.ring.pop_used() {
            let slot = self.heads.remove(&used.head).expect("a head that is out");
            let asked = self.asked.remove(&slot).expect("a slot that is in use");
            let oldest = self.due.front() == Some(&slot);
            assert!(oldest || !self.config.in_order, "out of order");
            self.due.retain(|out| *out != slot);
            let len = used.len as usize;
            let expected = match asked.answer.expect("the device saw it") {
                Answer::Write(count) => usize::from(count).min(asked.room),
                Answer::Keep | Answer::Drop => 0,
            };
            assert_eq!(len, expected);
            let mut written = Vec::new();
            for buffer in asked.buffers.iter().filter(|buffer| buffer.writable) {
                written.extend(self.guest.read_vec(buffer.addr, buffer.len as usize));
            }
            let (answer, rest) = written.split_at(len);
            assert!(answer.iter().all(|byte| *byte == ANSWER));
            assert!(
                rest.iter().all(|byte| *byte == UNTOUCHED),
                "beyond the length"
            );
        }
    }

    fn restart(&mut self) {
        let placeholder = self.another(self.config.base);
        let stopped = std::mem::replace(&mut self.queue, placeholder).stop();
        // The newest are seen again; those that were kept before them go back with length 0.
        let before = self.next;
        while let Some(newest) = self.next.checked_sub(1)
            && self.kept.iter().any(|(_, position)| *position == newest)
        {
            self.next = newest;
        }
        if !R::PACKED && !self.corrupt {
            let base = self.config.base.wrapping_add(self.next as u32);
            assert_eq!(stopped.base, base & 0xffff, "{} of {before}", self.next);
        }
        let more = self.published > self.next;
        assert!(stopped.more == more || self.corrupt, "{}", stopped.more);
        for (kept, position) in self.kept.drain(..) {
            drop(kept);
            let slot = self.order.get(position).filter(|_| position < self.next);
            if let Some(asked) = slot.and_then(|slot| self.asked.get_mut(slot)) {
                asked.answer = Some(Answer::Drop);
            }
        }
        self.driver_sleeps &= !stopped.call;
        self.armed = false;
        self.device_sleeps = false;
        self.check_calls();
        self.queue = self.another(stopped.base);
    }

    fn another(&self, base: u32) -> Queue {
        let config = Config {
            base,
            ..self.config
        };
        Queue::new(&self.memory, &config).expect("the ring has not moved")
    }

    fn corrupt(&mut self, area: Area, offset: u16, value: u8) {
        let Addresses {
            descriptor,
            available,
            used,
        } = self.config.addresses;
        let (start, len) = match area {
            Area::Descriptors => (descriptor, available - descriptor),
            Area::Available => (available, used - available),
            Area::Used => (used, RING + R::bytes(self.config.size) - used),
            Area::Table(slot) => (DATA + u64::from(slot) % SLOTS * SLOT, BUFFERS),
        };
        self.corrupt = true;
        let at = start + u64::from(offset) % len;
        self.guest.write(at, &[value]);
    }

    /// Everything that was asked is answered once.
    fn finish(&mut self) {
        self.publish();
        while !self.asked.is_empty() {
            let before = self.asked.len();
            self.serve(&[Answer::Write(1)]);
            while !self.kept.is_empty() {
                self.resume(0, Answer::Drop);
            }
            self.collect();
            assert!(self.asked.len() < before, "nobody answers any more");
        }
    }

    /// A driver that begins anew is served as if nothing had been.
    fn expect_service(&mut self) {
        self.kept.clear();
        self.ring.start_at(R::FIRST_BASE);
        self.queue = self.another(R::FIRST_BASE);
        let buffer = Buffer::writable(DATA, 4);
        let head = self.ring.add(&[buffer]).expect("an empty ring");
        self.ring.publish();
        assert_eq!(self.queue.look(), Ok(true));
        let request = self.queue.pop(&self.memory).expect("what was added");
        let mut request = request.expect("a good chain");
        request.writer().write_all(b"good").expect("four bytes");
        request.complete();
        self.queue.publish();
        let used = self.ring.pop_used().expect("an answer");
        assert_eq!((used.head, used.len), (head, 4));
        assert_eq!(self.guest.read_vec(DATA, 4), b"good");
    }
}

/// A base that a ring of `size` may have, from any number: both sides are at the same place.
fn base<R: Ring>(number: u16, size: u16) -> u32 {
    if !R::PACKED {
        return number.into();
    }
    let place = u32::from(((number & 0x7fff) % size) | (number & 0x8000));
    place << 16 | place
}

/// Answers a request. `asked` is what the driver made of it, as long as that can be known.
fn handle(mut request: Request<'_>, answer: Answer, asked: Option<&mut Asked>) -> Option<Kept> {
    let (reader, writer) = request.split();
    let room = writer.remaining();
    // A corrupt chain may have gigabytes of the same buffer.
    let mut sent = vec![0; reader.remaining().min(4096)];
    reader.read_exact(&mut sent).expect("as many as there are");
    if let Some(asked) = asked {
        assert_eq!(sent, asked.sent);
        assert_eq!(room, asked.room);
        asked.answer = Some(answer);
    }
    match answer {
        Answer::Keep => return Some(request.keep()),
        Answer::Drop => {}
        Answer::Write(count) => {
            let answer = vec![ANSWER; usize::from(count).min(room)];
            writer.write_all(&answer).expect("as many as fit");
            request.complete();
        }
    }
    None
}

/// The addresses of the driver's ring, for the device's.
pub fn addresses(layout: Layout) -> Addresses {
    Addresses {
        descriptor: layout.desc,
        available: layout.avail,
        used: layout.used,
    }
}

/// Maps the driver's memory a second time, as a back-end does.
///
/// # Panics
/// When the system has no descriptors or memory left.
pub fn map(memory: &vhost_device_driver::GuestMemory) -> GuestMemory {
    let regions = memory.regions().iter().map(|region| map_region(region));
    GuestMemory::new(regions.collect()).expect("no overlap")
}

fn map_region(region: &Region) -> memory::Region {
    let file = File::from(region.fd().try_clone_to_owned().expect("a descriptor"));
    let size = region.size() as usize;
    let mapping = memory::Mapping::new(&file, region.mmap_offset(), size).expect("a mapping");
    memory::Region::new(region.guest_addr(), Arc::new(mapping), 0, region.size()).expect("a region")
}
