//! An echo device behind a real socket, and the guest that drives it.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::raw::{c_int, c_void};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vhost_device_backend::{
    Description, Device, End, Error, Feature, Patience, QueueIndex, Queues, Refused, Resume as _,
    Signalling, serve,
};
use vhost_device_driver::guest::{DEFAULT_GUEST_ADDR, Options, RingDriver, Step};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::*;
use vhost_device_driver::{Buffer, EventFd, Frontend, Ring, SplitRing, Used};
use vhost_device_queue::{Kept, Request};
use vmm_sys_util::signal::{Killable as _, register_signal_handler};

/// How many queues the device has.
pub const QUEUES: u16 = 3;
/// The size of each queue of the guest.
pub const QUEUE_SIZE: u16 = 8;
/// The device's own feature bits.
pub const DEVICE_FEATURES: u64 = bits(&[0, 5]);
/// The device's configuration space.
pub const CONFIG: &[u8] = b"configuration space";
/// The guest's memory: enough for the rings and some thousand requests.
pub const MEMORY_SIZE: u64 = 1 << 20;
/// How long anything may take; only a hang takes that long.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The length of a request, and of its answer.
pub const LEN: u32 = 16;

/// A request: the command, and in its second half the id.
type Message = [u8; LEN as usize];

fn message(command: Command, id: u64) -> Message {
    let mut message = [0; LEN as usize];
    message[0] = command as u8;
    message[8..].copy_from_slice(&id.to_ne_bytes());
    message
}

fn id_of(message: &Message) -> u64 {
    u64::from_ne_bytes(message[8..].try_into().unwrap())
}

/// What a request asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Copy it into the answer.
    Echo,
    /// The same, but only once [`Session::release`] is signalled.
    Keep,
    /// Drop it unanswered.
    Drop,
}

/// What the device saw.
#[derive(Debug, Default)]
pub struct Record {
    /// The id of each request that was answered.
    pub executed: Vec<u64>,
    /// How many requests the device keeps now.
    pub kept: usize,
    /// Each queue that stopped.
    pub stopped: Vec<QueueIndex>,
    /// How often the device was reset.
    pub resets: usize,
    /// The features that were negotiated last.
    pub features: u64,
}

/// What is different about a test's device.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its configuration space.
    pub config: &'static [u8],
    /// Features that it refuses to work without.
    pub required: u64,
    /// How long the session spins before it sleeps.
    pub poll: Duration,
    /// What front-ends are not offered.
    pub without: Vec<Feature>,
    /// How long a message may take.
    pub patience: Patience,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: CONFIG,
            required: 0,
            poll: Duration::ZERO,
            without: Vec::new(),
            patience: Patience::default(),
        }
    }
}

/// The device.
struct Echo {
    setup: Setup,
    record: Arc<Mutex<Record>>,
    release: EventFd,
    kept: Vec<(QueueIndex, Kept)>,
}

impl Echo {
    fn record(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock().unwrap());
    }

    /// Copies the request into its answer; one that is too short for that is dropped.
    fn answer(&self, message: Message, mut request: Request<'_>) {
        if request.writer().write_all(&message).is_ok() {
            self.record(|record| record.executed.push(id_of(&message)));
            request.complete();
        }
    }
}

impl Device for Echo {
    fn describe(&self) -> Description {
        Description {
            device_id: 63,
            queues: QUEUES,
            features: DEVICE_FEATURES,
        }
    }

    fn config(&self) -> &[u8] {
        self.setup.config
    }

    fn negotiated(&mut self, features: u64) -> Result<(), Refused> {
        let missing = self.setup.required & !features;
        if missing != 0 {
            return Err(Refused(format!("features {missing:#x} are needed")));
        }
        self.record(|record| record.features = features);
        Ok(())
    }

    fn handle(&mut self, queue: QueueIndex, mut request: Request<'_>) {
        let Ok(message) = request.reader().read_obj::<Message>() else {
            return;
        };
        if message[0] == Command::Keep as u8 {
            self.kept.push((queue, request.keep()));
            self.record(|record| record.kept += 1);
        } else if message[0] != Command::Drop as u8 {
            self.answer(message, request);
        }
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.release.as_fd()]
    }

    fn on_event(&mut self, source: usize, queues: &mut Queues<'_>) {
        assert_eq!(source, 0);
        for _ in 0..self.release.take() {
            if self.kept.is_empty() {
                break;
            }
            let (_, kept) = self.kept.remove(0);
            self.record(|record| record.kept -= 1);
            if let Some(mut request) = queues.resume(kept)
                && let Ok(message) = request.reader().read_obj()
            {
                self.answer(message, request);
            }
        }
    }

    fn queue_stopped(&mut self, queue: QueueIndex) {
        self.kept.retain(|(of, _)| *of != queue);
        let kept = self.kept.len();
        self.record(|record| {
            record.kept = kept;
            record.stopped.push(queue);
        });
    }

    fn reset(&mut self) {
        self.record(|record| record.resets += 1);
    }
}

/// The other end of a connection: the thread that serves it.
pub struct Session {
    /// What the device saw.
    record: Arc<Mutex<Record>>,
    /// Each signal lets the device answer the oldest request that it keeps.
    pub release: EventFd,
    signalling: Signalling,
    stop: EventFd,
    end: Receiver<Result<End, Error>>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Serves a new connection, and returns the front-end's end of it.
    pub fn start(setup: Setup) -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (record, release, stop) = (Arc::default(), EventFd::new(), EventFd::new());
        let device = Echo {
            record: Arc::clone(&record),
            release: release.duplicate().unwrap(),
            kept: Vec::new(),
            setup: setup.clone(),
        };
        let signalling = Signalling::default();
        let options = vhost_device_backend::Options {
            name: "test".into(),
            poll: setup.poll,
            without: setup.without.clone(),
            patience: setup.patience,
            signalling: signalling.clone(),
            ..vhost_device_backend::Options::default()
        };
        let stopping = stop.duplicate().unwrap();
        let (sender, end) = channel();
        let thread = thread::spawn(move || {
            let end = serve(theirs, device, &options, stopping.as_fd());
            // Nobody waits for the end in most tests.
            let _ = sender.send(end);
        });
        let session = Self {
            record,
            release,
            signalling,
            stop,
            end,
            thread,
        };
        (ours, session)
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it is in a call on an fd of the front-end.
    pub fn wait_until_it_signals(&self) {
        let start = Instant::now();
        while !self.signalling.step().is_call() {
            assert!(start.elapsed() < DEADLINE, "it does not signal anything");
            thread::yield_now();
        }
    }

    /// Interrupts the call that it is in.
    pub fn interrupt(&self) {
        extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
        register_signal_handler(libc::SIGUSR1, nothing).unwrap();
        // It may have ended meanwhile.
        let _ = self.thread.kill(libc::SIGUSR1);
    }

    /// A value of the record.
    pub fn record<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.lock().unwrap())
    }

    /// The record, for after the end.
    pub fn shared(&self) -> Arc<Mutex<Record>> {
        Arc::clone(&self.record)
    }

    /// Waits until the record is as wanted.
    pub fn wait_until(&self, wanted: impl Fn(&Record) -> bool) {
        let start = Instant::now();
        while !self.record(&wanted) {
            let record = self.record.lock().unwrap();
            assert!(start.elapsed() < DEADLINE, "still {record:?}");
            drop(record);
            thread::yield_now();
        }
    }

    /// Waits for the end of the session, and of its thread.
    pub fn end(self) -> Result<End, Error> {
        let end = self.end.recv_timeout(DEADLINE).expect("the session ends");
        self.thread.join().unwrap();
        end
    }

    /// Stops the session, which must be in order still.
    pub fn stop(self) {
        self.stop.signal();
        assert_eq!(self.end().unwrap(), End::Stopped);
    }

    /// Waits for the end, which must be that the front-end left.
    pub fn left(self) {
        assert_eq!(self.end().unwrap(), End::Disconnected);
    }

    /// Waits for the end, which must be that the front-end broke the protocol.
    pub fn broken(self) {
        let end = self.end();
        assert!(matches!(end, Err(Error::Protocol(_))), "{end:?}");
    }
}

/// What a front-end says of each ring again after a reset: all but its call and err fds.
pub const RING_AGAIN: [Step; 5] = [Step::Num, Step::Base, Step::Addr, Step::Kick, Step::Enable];

/// The default guest: a queue of each of the device's, and a small memory.
pub fn options() -> Options {
    Options::new(&[QUEUE_SIZE; QUEUES as usize])
        .regions(&[RegionSpec::new(DEFAULT_GUEST_ADDR, MEMORY_SIZE)])
}

/// A front-end that has sent nothing, and its session.
pub fn frontend() -> (Frontend, Session) {
    let (stream, session) = Session::start(Setup::default());
    (Frontend::new(stream), session)
}

/// A front-end that has negotiated all features but that of packed rings, and its session.
pub fn negotiated() -> (Frontend, Session) {
    negotiated_without(bits(&[VIRTIO_F_RING_PACKED]))
}

/// A front-end that has negotiated all features but these, and its session.
pub fn negotiated_without(features: u64) -> (Frontend, Session) {
    let (mut frontend, session) = frontend();
    let offered = frontend.get_features().unwrap() & !features;
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_owner().unwrap();
    frontend.set_features(offered).unwrap();
    (frontend, session)
}

/// A front-end that sets protocol features though they were withheld, and its session.
pub fn set_though_withheld(feature: Feature, protocol: u64) -> (Frontend, Session) {
    let (stream, session) = Session::start(Setup {
        without: vec![feature],
        ..Setup::default()
    });
    let mut frontend = Frontend::new(stream);
    frontend.get_features().unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    assert_eq!(offered & protocol, 0);
    // It goes on as if nothing had been said.
    let _ = frontend.set_protocol_features(offered | protocol);
    (frontend, session)
}

/// A guest whose device runs, and its session.
pub fn running() -> (Guest, Session) {
    running_with(options())
}

/// A guest whose device was brought up with these options, and its session.
pub fn running_with(options: Options) -> (Guest, Session) {
    running_on(options)
}

/// The same with rings of either kind.
pub fn running_on<R: Ring>(options: Options) -> (RingGuest<R>, Session) {
    let (stream, session) = Session::start(Setup::default());
    (RingGuest::connect(stream, options), session)
}

/// A guest that has sent nothing, and its session.
pub fn prepared(options: Options) -> (Guest, Session) {
    prepared_on(options)
}

/// The same with rings of either kind.
pub fn prepared_on<R: Ring>(options: Options) -> (RingGuest<R>, Session) {
    let (frontend, session) = frontend();
    (RingGuest::prepare_with(frontend, options), session)
}

/// A driver of the echo device. It knows what it asked for.
pub struct RingGuest<R> {
    driver: RingDriver<R>,
    /// Id and place of the answer of each request, by queue and head.
    requests: HashMap<(usize, u16), (u64, u64)>,
    next_id: u64,
}

/// The same with split rings.
pub type Guest = RingGuest<SplitRing>;

impl<R> Deref for RingGuest<R> {
    type Target = RingDriver<R>;

    fn deref(&self) -> &RingDriver<R> {
        &self.driver
    }
}

impl<R> DerefMut for RingGuest<R> {
    fn deref_mut(&mut self) -> &mut RingDriver<R> {
        &mut self.driver
    }
}

impl<R: Ring> RingGuest<R> {
    fn new(driver: RingDriver<R>) -> Self {
        Self {
            driver,
            requests: HashMap::new(),
            next_id: 0,
        }
    }

    /// A guest that has sent nothing.
    pub fn prepare(stream: UnixStream, options: Options) -> Self {
        Self::prepare_with(Frontend::new(stream), options)
    }

    /// The same, with a front-end that may have.
    pub fn prepare_with(frontend: Frontend, options: Options) -> Self {
        Self::new(RingDriver::prepare(frontend, options))
    }

    /// A guest whose device is brought up on `stream`.
    pub fn connect(stream: UnixStream, options: Options) -> Self {
        Self::new(RingDriver::with_stream(stream, options).unwrap())
    }

    /// Adds and publishes a request, and returns its id. Does not kick.
    pub fn submit(&mut self, queue: usize, command: Command) -> u64 {
        let [request, answer] = [(); 2].map(|()| self.driver.alloc(LEN.into()));
        self.submit_at(queue, command, request, answer)
    }

    /// The same with buffers that the test chose.
    pub fn submit_at(&mut self, queue: usize, command: Command, request: u64, answer: u64) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.memory.write(request, &message(command, id));
        let buffers = [
            Buffer::readable(request, LEN),
            Buffer::writable(answer, LEN),
        ];
        let head = self.queues[queue].submit(&buffers).unwrap();
        self.requests.insert((queue, head), (id, answer));
        id
    }

    /// Waits for a request to come back: its id, and whether it was answered. An answer must be
    /// the right one; the alternative is a used length of 0.
    pub fn finish(&mut self, queue: usize) -> (u64, bool) {
        let used = self.queues[queue].wait_used(DEADLINE);
        self.check(queue, used)
    }

    fn check(&mut self, queue: usize, used: Used) -> (u64, bool) {
        let (id, answer) = self.requests.remove(&(queue, used.head)).unwrap();
        if used.len == 0 {
            return (id, false);
        }
        assert_eq!(used.len, LEN);
        let echo = self.memory.read_vec(answer, LEN as usize);
        assert_eq!(echo[8..], id.to_ne_bytes(), "another request's answer");
        (id, true)
    }

    /// Gives up the requests of a queue whose ring was taken away.
    pub fn forget(&mut self, queue: usize) {
        self.requests.retain(|(of, _), _| *of != queue);
    }

    /// Gives each queue a new ring elsewhere, as another driver does.
    pub fn place_rings_elsewhere(&mut self) {
        for queue in 0..self.queues.len() {
            self.forget(queue);
            let ring = &self.queues[queue].ring;
            let (size, event_idx) = (ring.size(), ring.event_idx());
            let layout = R::place_at(self.alloc(R::bytes(size)), size);
            self.queues[queue].ring = R::create(&self.memory, layout, size, event_idx);
            self.queues[queue].kick.take();
        }
    }

    /// A whole request: it must be answered, and in order.
    pub fn echo(&mut self, queue: usize) {
        let id = self.submit(queue, Command::Echo);
        self.queues[queue].notify();
        assert_eq!(self.finish(queue), (id, true));
    }

    /// A request that is answered while earlier ones are kept.
    pub fn echo_behind(&mut self, queue: usize) {
        let id = self.submit(queue, Command::Echo);
        self.queues[queue].kick();
        assert_eq!(self.finish(queue), (id, true));
    }

    /// The device works: a request on each queue is answered.
    pub fn echo_all(&mut self) {
        (0..self.queues.len()).for_each(|queue| self.echo(queue));
    }

    /// Kicks a queue and waits until the session has done what it does about it: more round
    /// trips than it handles messages in two turns of its loop.
    pub fn kick_and_settle(&self, queue: usize) {
        self.queues[queue].kick();
        settle(&self.frontend);
    }
}

impl Guest {
    /// The used ring of a queue, to see that it was not touched.
    pub fn used_ring(&self, queue: usize) -> Vec<u8> {
        let ring = &self.queues[queue].ring;
        let len = vhost_device_driver::Layout::used_bytes(ring.size());
        self.memory.read_vec(ring.layout().used, len)
    }
}

/// Waits until the session has handled everything that happened before: more round trips than
/// it handles messages in two turns of its loop.
pub fn settle(frontend: &Frontend) {
    for _ in 0..70 {
        frontend.sync().unwrap();
    }
}
