//! Back-ends that are killed while they work, thousands of them, one after the other on the same
//! rings: no request is lost, and none is done again that was answered.
//!
//! A back-end is a child of the test, with a session on a socket, and is ended by SIGKILL at a time
//! that is left to chance. What it does is written into memory that all of them share. The verdict
//! does not depend on when it dies.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use vhost_device_backend::{Description, Device, Options, QueueIndex, Queues, Resume as _, serve};
use vhost_device_driver::guest::{self, DEFAULT_GUEST_ADDR, RingDriver};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::*;
use vhost_device_driver::{Buffer, EventFd, GuestMemory, PackedRing, Random, Ring, SplitRing};
use vhost_device_queue::{Kept, Request};

/// How many back-ends of each kind are killed.
const KILLS: usize = 1500;
const QUEUES: u16 = 2;
const QUEUE_SIZE: u16 = 16;
/// A back-end is killed at most so long after it was started, or after the rings run.
const LONGEST_LIFE_US: u64 = 1500;
/// Only a hang takes that long.
const DEADLINE: Duration = Duration::from_secs(20);
/// How often each request was done, 4 bytes each: in a region of its own.
const JOURNAL: u64 = 0x1_0000_0000;
const MOST_REQUESTS: u64 = 1 << 20;
/// A question and its answer.
const LEN: u32 = 8;

fn times_done(memory: &GuestMemory, id: u64) -> u32 {
    memory.load_u32(JOURNAL + 4 * id, Ordering::Relaxed)
}

/// Does requests and writes down that it did. Every third is put aside for a while.
struct Worker {
    memory: GuestMemory,
    release: EventFd,
    kept: Vec<(QueueIndex, u64, Kept)>,
}

impl Worker {
    fn answer(&self, id: u64, mut request: Request<'_>) {
        let times = times_done(&self.memory, id);
        let entry = JOURNAL + 4 * id;
        self.memory.store_u32(entry, times + 1, Ordering::Relaxed);
        request.writer().write_obj(&!id).expect("room");
        request.complete();
    }
}

impl Device for Worker {
    fn describe(&self) -> Description {
        Description {
            device_id: 63,
            queues: QUEUES,
            features: 0,
        }
    }

    fn handle(&mut self, queue: QueueIndex, mut request: Request<'_>) {
        let id: u64 = request.reader().read_obj().expect("an id");
        if id.is_multiple_of(3) {
            self.kept.push((queue, id, request.keep()));
        } else {
            self.answer(id, request);
        }
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.release.as_fd()]
    }

    fn on_event(&mut self, _source: usize, queues: &mut Queues<'_>) {
        self.release.take();
        // The last first.
        while let Some((_, id, kept)) = self.kept.pop() {
            if let Some(request) = queues.resume(kept) {
                self.answer(id, request);
            }
        }
    }

    fn queue_stopping(&mut self, queue: QueueIndex, queues: &mut Queues<'_>) {
        // What would be lost is answered.
        while let Some(place) = self
            .kept
            .iter()
            .position(|(of, _, kept)| *of == queue && !queues.would_rewind(kept))
        {
            let (_, id, kept) = self.kept.remove(place);
            if let Some(request) = queues.resume(kept) {
                self.answer(id, request);
            }
        }
    }

    fn queue_stopped(&mut self, queue: QueueIndex) {
        self.kept.retain(|(of, ..)| *of != queue);
    }
}

/// A child, until it is killed.
struct Child(libc::pid_t);

impl Child {
    /// Runs `life` in a child.
    fn start(life: impl FnOnce()) -> Self {
        // SAFETY: the child runs `life` on the one thread that it has, and leaves by `_exit`. What
        // other threads of the test hold, it needs not: it takes no lock but the allocator's, which
        // is made whole in a child, and those of its own session.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "cannot fork");
        if child == 0 {
            // SAFETY: a plain system call. A test that fails leaves nobody behind.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let _ = catch_unwind(AssertUnwindSafe(life));
            // Whatever happened, it should have been killed before.
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) };
        }
        Self(child)
    }

    fn kill(&self) {
        // SAFETY: a child of ours, which nobody has waited for yet.
        let killed = unsafe { libc::kill(self.0, libc::SIGKILL) };
        assert_eq!(killed, 0);
    }

    /// Waits until there is nothing left of it.
    fn reap(self) {
        let mut status = 0;
        // SAFETY: `status` is there for as long as the call takes.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        assert_eq!(waited, self.0);
        assert!(
            libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL,
            "a back-end ended by itself: {status:#x}"
        );
    }
}

/// What is different from one guest to the other.
#[derive(Clone, Copy)]
struct Setup {
    in_order: bool,
    /// The region is kept while a queue is stopped.
    outlives_stop: bool,
}

/// The guest, who outlives all back-ends.
struct Guest<R> {
    driver: RingDriver<R>,
    release: EventFd,
    /// The request of each head or buffer id, by queue, and where its question is.
    requests: HashMap<(usize, u16), (u64, u64)>,
    /// Where a question and its answer may be.
    places: Vec<u64>,
    next: u64,
    /// Whether each queue has run.
    has_run: [bool; QUEUES as usize],
    /// How often each request had been done when its answer was seen.
    answered: Vec<(u64, u32)>,
}

impl<R: Ring> Guest<R> {
    fn new(stream: UnixStream, setup: Setup, release: EventFd) -> Self {
        let in_order = bits(&[VIRTIO_F_IN_ORDER]);
        let kept = bits(&[VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT]);
        let mut options = guest::Options::new(&[QUEUE_SIZE; QUEUES as usize])
            .regions(&[
                RegionSpec::new(DEFAULT_GUEST_ADDR, 1 << 16),
                RegionSpec::new(JOURNAL, 4 * MOST_REQUESTS),
            ])
            .track_inflight();
        if setup.in_order {
            options = options.with_features(in_order);
        }
        if setup.outlives_stop {
            options = options.with_protocol_features(kept);
        }
        let mut driver = RingDriver::prepare(vhost_device_driver::Frontend::new(stream), options);
        let places = (0..QUEUES * QUEUE_SIZE)
            .map(|_| driver.alloc(2 * u64::from(LEN)))
            .collect();
        Self {
            driver,
            release,
            requests: HashMap::new(),
            places,
            next: 0,
            has_run: [false; QUEUES as usize],
            answered: Vec::new(),
        }
    }
    /// Goes on with another back-end. False when it dies meanwhile.
    fn reconnect(&mut self, stream: UnixStream, bases: &[u32]) -> bool {
        for queue in &mut self.driver.queues {
            queue.take_calls();
        }
        match self.driver.reconnect(stream, bases) {
            Ok(()) => {}
            Err(error) if error.is_closed() => return false,
            Err(error) => panic!("a back-end refuses what the last one took: {error}"),
        }
        for (queue, has_run) in self.driver.queues.iter_mut().zip(self.has_run) {
            // The last one may have died between an answer and its call.
            assert!(!has_run || queue.take_calls() > 0, "nobody calls");
        }
        true
    }

    /// One look at everything. Whether anything has happened.
    fn work(&mut self, random: &mut Random, submit: bool) -> bool {
        let mut worked = false;
        for index in 0..self.driver.queues.len() {
            for _ in 0..random.below(6) {
                worked |= submit && self.submit(index);
            }
            self.driver.queues[index].notify();
            worked |= self.collect(index);
        }
        if random.below(3) == 0 {
            self.release.signal();
        }
        worked
    }

    fn submit(&mut self, index: usize) -> bool {
        if self.next == MOST_REQUESTS {
            return false;
        }
        let Some(place) = self.places.pop() else {
            return false;
        };
        let id = self.next;
        self.driver.memory.write_obj(place, id);
        let answer = Buffer::writable(place + u64::from(LEN), LEN);
        // Two or three descriptors.
        let half = LEN / 2;
        let buffers = match id % 2 {
            0 => vec![Buffer::readable(place, LEN), answer],
            _ => vec![
                Buffer::readable(place, half),
                Buffer::readable(place + u64::from(half), half),
                answer,
            ],
        };
        match self.driver.queues[index].submit(&buffers) {
            Ok(head) => {
                self.requests.insert((index, head), (id, place));
                self.next += 1;
                true
            }
            Err(_) => {
                self.places.push(place);
                false
            }
        }
    }

    fn collect(&mut self, index: usize) -> bool {
        let mut any = false;
        while let Some(used) = self.driver.queues[index].ring.pop_used() {
            any = true;
            self.has_run[index] = true;
            let (id, place) = self.requests.remove(&(index, used.head)).unwrap();
            assert_eq!(used.len, LEN, "{id} was not answered");
            let answer: u64 = self.driver.memory.read_obj(place + u64::from(LEN));
            assert_eq!(answer, !id, "another request's answer");
            let times = times_done(&self.driver.memory, id);
            assert!(times > 0, "{id} was answered without being done");
            self.answered.push((id, times));
            self.places.push(place);
        }
        any
    }

    /// Nothing was done again that was answered, from `from` on.
    fn check(&self, from: usize) {
        for (id, times) in &self.answered[from..] {
            let now = times_done(&self.driver.memory, *id);
            assert_eq!(now, *times, "{id} was done again after it was answered");
        }
    }

    /// Works until something is answered.
    fn wait_for_an_answer(&mut self, random: &mut Random) {
        let begin = Instant::now();
        let before = self.answered.len();
        while self.answered.len() == before {
            assert!(begin.elapsed() < DEADLINE, "a back-end answers nothing");
            if !self.work(random, true) {
                thread::yield_now();
            }
        }
    }

    /// Stops all queues, as a front-end does in order to pause.
    fn stop(&self) -> Option<Vec<u32>> {
        let queues = 0..self.driver.queues.len();
        queues.map(|queue| self.driver.stop(queue).ok()).collect()
    }
}

/// Kills what it is told to, when it is told to, and says so.
fn killer(orders: &Receiver<(libc::pid_t, Duration)>, done: &Sender<()>) {
    for (child, after) in orders {
        thread::sleep(after);
        Child(child).kill();
        done.send(()).unwrap();
    }
}

fn back_ends_are_killed<R: Ring>(setup: Setup, seed: u64) {
    let mut random = Random::new(seed);
    let release = EventFd::new();
    let (idle, _) = UnixStream::pair().unwrap();
    let mut guest = Guest::<R>::new(idle, setup, release.duplicate().unwrap());
    let start = |theirs: UnixStream, ours: &UnixStream, guest: &Guest<R>| {
        let worker = Worker {
            memory: guest.driver.memory.clone(),
            release: release.duplicate().unwrap(),
            kept: Vec::new(),
        };
        let ours = ours.try_clone().unwrap();
        let never = EventFd::new();
        Child::start(move || {
            // The front-end's end is not for the child.
            drop(ours);
            let _ = serve(theirs, worker, &Options::default(), never.as_fd());
        })
    };
    let (orders, ordered) = channel();
    let (done, killed) = channel();
    thread::scope(|scope| {
        scope.spawn(move || killer(&ordered, &done));
        let mut stopped = None;
        for _ in 0..KILLS {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let child = start(theirs, &ours, &guest);
            let after = Duration::from_micros(random.below(LONGEST_LIFE_US));
            // Some die while they are set up.
            let early = random.below(4) == 0;
            if early {
                orders.send((child.0, after)).unwrap();
            }
            let from = guest.answered.len();
            let bases = stopped
                .take()
                .unwrap_or_else(|| guest.driver.bases_after_a_loss());
            let mut lives = guest.reconnect(ours, &bases);
            if !early {
                assert!(lives, "a back-end died by itself");
                // Every other one has answered something before, however slow the machine is.
                if random.below(2) == 0 {
                    guest.wait_for_an_answer(&mut random);
                }
                orders.send((child.0, after)).unwrap();
            }
            while killed.try_recv().is_err() {
                let pause = lives && random.below(200) == 0;
                if pause {
                    stopped = guest.stop();
                    lives = false;
                } else if !guest.work(&mut random, true) {
                    thread::yield_now();
                }
            }
            child.reap();
            (0..guest.driver.queues.len()).for_each(|index| {
                guest.collect(index);
            });
            guest.check(from);
        }
        drop(orders);
        // The last one lives until nothing is left.
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = start(theirs, &ours, &guest);
        let bases = stopped.unwrap_or_else(|| guest.driver.bases_after_a_loss());
        assert!(guest.reconnect(ours, &bases));
        let begin = Instant::now();
        while !guest.requests.is_empty() {
            assert!(begin.elapsed() < DEADLINE, "lost: {:?}", guest.requests);
            if !guest.work(&mut random, false) {
                thread::yield_now();
            }
        }
        child.kill();
        child.reap();
        guest.check(0);
    });
    assert!(guest.answered.len() > KILLS / 4, "{}", guest.answered.len());
}

#[test]
fn v10_back_ends_on_split_rings_are_killed() {
    let setup = Setup {
        in_order: false,
        outlives_stop: true,
    };
    back_ends_are_killed::<SplitRing>(setup, 1);
}

#[test]
fn v10_back_ends_on_packed_rings_are_killed() {
    let setup = Setup {
        in_order: false,
        outlives_stop: true,
    };
    back_ends_are_killed::<PackedRing>(setup, 2);
}

#[test]
fn v10_back_ends_on_split_rings_in_order_are_killed() {
    let setup = Setup {
        in_order: true,
        outlives_stop: false,
    };
    back_ends_are_killed::<SplitRing>(setup, 3);
}

#[test]
fn v10_back_ends_on_packed_rings_in_order_are_killed() {
    let setup = Setup {
        in_order: true,
        outlives_stop: false,
    };
    back_ends_are_killed::<PackedRing>(setup, 4);
}
