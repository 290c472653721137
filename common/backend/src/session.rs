//! The event loop of one connection, and the state that its messages change.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};
use rustix::io::Errno;
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_device_queue::{
    DirtyLog, GuestMemory, InflightError, InflightRegion, Kept, MAX_QUEUE_SIZE, Queue, Request,
};
use virtio_bindings::virtio_config::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::device::{Device, QueueIndex, Refused, Resume, TURN};
use crate::features::{Feature, Names, Withheld};
use crate::flaw::Flaw;
use crate::inbox::{self, Inbox};
use crate::limited;
use crate::memory_file::{FileError, MemoryFile, MemoryFs, memfd};
use crate::notifier::{Notifier, NotifierError, Signalling};
use crate::rate_limit::RateLimit;
use crate::sigbus::Watch;
use crate::spin::{Cores, Spin};
use crate::table::{Limits, Table, TableError};
use crate::vring::{Kick, RingFeatures, UserAddresses, Vring, VringError};

/// The most requests that are answered before the driver is shown the answers, and before other
/// queues and the socket are looked at. Stops one queue from holding up everything else.
const BATCH: u16 = 64;

/// The most bytes of requests in a batch, for the same reason: a few of the longest.
const BATCH_BYTES: usize = 256 * 1024;

/// The most messages that are handled before the queues are looked at again.
const MESSAGES: usize = 32;

/// How long a read or write on the socket may take. None does, as `inbox` looks before; but what
/// a socket counts as there and what can be read are not the same for bytes out of band.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a ring without a kick is looked at while nothing comes, in milliseconds.
const POLL_PERIOD_MS: i32 = 1;

/// How a session is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What the log calls the guest.
    pub name: String,
    /// The longest look for more requests after the last, before sleeping; none when it is 0.
    pub poll: Duration,
    /// The cores that the process's sessions share: none looks while another waits for one.
    pub cores: Cores,
    /// How large the guest's memory may be.
    pub limits: Limits,
    /// Where the files may be that the front-end shares memory by.
    pub memory_fs: MemoryFs,
    /// How long the front-end may take to finish a message, or to make room for its answer.
    pub patience: Patience,
    /// Tells whoever watches over the session of its calls on the front-end's fds.
    pub signalling: Signalling,
    /// What limits the log lines about the guest.
    pub logs: Logs,
    /// What front-ends are not offered.
    pub without: Vec<Feature>,
}

/// How long a front-end may take to finish a message that it has begun, or to read answers so that
/// there is room for the next.
///
/// What lies in the socket meanwhile is held open: above all file descriptors that came with it,
/// and the front-end's own end of the connection can be among them. Nobody would see it leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(pub Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_secs(5))
    }
}

/// One limit for each kind of log line about a guest. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    bad_chains: RateLimit,
    bad_rings: RateLimit,
    bad_messages: RateLimit,
    no_memory: RateLimit,
    beginnings: RateLimit,
    ends: RateLimit,
}

/// How a session came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The front-end left.
    Disconnected,
    /// The stop fd became readable.
    Stopped,
}

/// Why a session was broken off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the operating system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The front-end sent something that is not vhost-user, or not what it may send now.
    #[error("the front-end broke the protocol: {0}")]
    Protocol(#[from] vhost::vhost_user::Error),
    /// The front-end left in the middle of a message.
    #[error("the front-end left in the middle of a message")]
    Partial,
    /// The front-end has not gone on with a message for too long.
    #[error(
        "the front-end has begun a message and not finished it, or not read its answers, for {0:?}"
    )]
    Stalled(Duration),
    /// The front-end truncated a file that guest memory is in.
    #[error("the front-end truncated a file that holds guest memory")]
    MemoryLost,
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System {
        what,
        source: source.into(),
    }
}

/// Why a message fails. The session goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("VHOST_USER_PROTOCOL_F_{} was not negotiated, or not offered", name(*.0))]
    NotNegotiated(VhostUserProtocolFeatures),
    #[error("there is no vring {0}")]
    NoVring(u32),
    #[error("vring {0} is running")]
    Running(u32),
    #[error("no vring runs, as features were accepted that were not offered: {0}")]
    NotOffered(Names),
    #[error("no vring runs, as ring features changed while some did")]
    RingFeatures,
    #[error("no vring runs, as the device cannot work with these features: {0}")]
    Device(#[from] Refused),
    #[error("vring {index}: {source}")]
    Vring { index: u32, source: VringError },
    #[error("vring {index}: the file descriptor cannot be used: {source}")]
    Fd { index: u32, source: NotifierError },
    #[error("vring {index}: the file descriptor cannot be watched: {source}")]
    Watch { index: u32, source: io::Error },
    #[error(
        "{queues} queues of {size} cannot be tracked: there are {vrings}, of at most {MAX_QUEUE_SIZE}"
    )]
    Untrackable {
        queues: u16,
        size: u16,
        vrings: usize,
    },
    #[error("the region for requests in flight cannot be used: {0}")]
    Inflight(#[from] InflightError),
    #[error("cannot make the region for requests in flight: {0}")]
    MakeInflight(io::Error),
    #[error("the region for requests in flight cannot be used: {0}")]
    InflightFile(#[from] FileError),
    #[error("the dirty log cannot be used: {0}")]
    LogFile(#[source] FileError),
}

fn name(feature: VhostUserProtocolFeatures) -> &'static str {
    feature.iter_names().next().map_or("?", |(name, _)| name)
}

/// The longest dirty log: a bit for each page of 2⁴⁶ bytes.
const MAX_LOG: u64 = 1 << (46 - 12 - 3);

/// The device's queues, for what it answers outside of [`Device::handle`].
#[derive(Debug)]
pub struct Queues<'a> {
    vrings: &'a mut [Vring],
    memory: &'a GuestMemory,
}

impl Resume for Queues<'_> {
    fn resume(&mut self, kept: Kept) -> Option<Request<'_>> {
        let queue = self
            .vrings
            .iter_mut()
            .filter_map(|vring| vring.queue.as_mut())
            .find(|queue| queue.owns(&kept))?;
        queue.resume(self.memory, kept)
    }

    fn would_rewind(&self, kept: &Kept) -> bool {
        let mut queues = self.vrings.iter().filter_map(|vring| vring.queue.as_ref());
        queues.any(|queue| queue.would_rewind(kept))
    }
}

/// Shows drivers what a device has answered, on all of its queues: the last queue first, whatever
/// the device was called for. What a request brings back from an event queue is there before the
/// request's own answer, as a driver that has seen the answer does not expect it any more.
pub fn publish<Q>(queues: &mut [Q], publish: impl FnMut(&mut Q)) {
    queues.iter_mut().rev().for_each(publish);
}

/// What an event on the epoll means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    Socket,
    Kick(u32),
    Device(u32),
}

impl Token {
    const fn encode(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Socket => 1,
            Self::Kick(index) => 2 << 32 | index as u64,
            Self::Device(index) => 3 << 32 | index as u64,
        }
    }

    fn decode(data: u64) -> Self {
        // The low half is the index.
        let index = data as u32;
        match data >> 32 {
            2 => Self::Kick(index),
            3 => Self::Device(index),
            _ if index == 1 => Self::Socket,
            _ => Self::Stop,
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, token: Token, events: EventSet) -> io::Result<()> {
    let event = EpollEvent::new(events, token.encode());
    epoll.ctl(ControlOperation::Add, fd, event)
}

/// The front-end holds the other end of a kick: closing ours would not unregister it.
fn unwatch(epoll: &Epoll, kick: &Kick) {
    if let Kick::Fd(fd) = kick {
        let none = EpollEvent::default();
        // It was registered when it was taken; nothing else can be wrong with it.
        let _ = epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), none);
    }
}

/// Serves one front-end on `stream`, on this thread, until it leaves or `stop` is readable.
///
/// A hostile front-end can have the thread sleep in a write to its own full eventfd, for as long as
/// it likes and after it has left. [`Options::signalling`] shows that; a signal with a handler that
/// has no `SA_RESTART` ends the sleep. What a file system does that keeps the thread waiting, no
/// signal ends: see [`MemoryFs`].
///
/// # Errors
/// When the front-end breaks the protocol or takes its memory away, or the operating system
/// fails. The connection is closed in every case; the caller may take the next one.
pub fn serve<D: Device>(
    stream: UnixStream,
    device: D,
    options: &Options,
    stop: BorrowedFd<'_>,
) -> Result<End, Error> {
    let epoll = Arc::new(Epoll::new().map_err(system("create an epoll"))?);
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(SOCKET_TIMEOUT)))
        .and_then(|()| stream.set_write_timeout(Some(SOCKET_TIMEOUT)))
        .map_err(system("set up the socket"))?;
    watch(&epoll, stop.as_raw_fd(), Token::Stop, EventSet::IN)
        .map_err(system("watch the stop fd"))?;
    // By edges: what is in the socket may be half a message, which is left there. Room for
    // answers is an event too: a front-end that does not read them is not listened to.
    let edges = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    watch(&epoll, stream.as_raw_fd(), Token::Socket, edges).map_err(system("watch the socket"))?;
    for (index, fd) in (0..).zip(device.event_sources()) {
        watch(&epoll, fd.as_raw_fd(), Token::Device(index), EventSet::IN)
            .map_err(system("watch a file descriptor of the device"))?;
    }
    let inbox = stream.try_clone().map_err(system("clone the socket"))?;
    // The message layer wants a shared handler with a lock. It is never waited for: everything
    // happens on this thread. It is taken once a turn of the loop, not for each request.
    let session = Session::new(device, options, Arc::clone(&epoll));
    let session = Arc::new(Mutex::new(session));
    let messages = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    Loop {
        epoll,
        inbox,
        messages,
        session,
        signalling: options.signalling.clone(),
        readable: true,
        hung_up: false,
        patience: options.patience.0,
        waits_since: None,
    }
    .run()
}

/// One connection: its sources of events, and its session.
struct Loop<D: Device> {
    epoll: Arc<Epoll>,
    inbox: UnixStream,
    messages: BackendReqHandler<Mutex<Session<D>>>,
    session: Arc<Mutex<Session<D>>>,
    signalling: Signalling,
    /// There may be messages in the socket.
    readable: bool,
    /// There will be no more.
    hung_up: bool,
    patience: Duration,
    /// Since when there is something in the socket that cannot be handled yet.
    waits_since: Option<Instant>,
}

impl<D: Device> Loop<D> {
    fn run(mut self) -> Result<End, Error> {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let timeout = match self.readable {
                true => 0,
                false => self.session().prepare_to_wait(),
            };
            let timeout = self.wait_at_most(timeout)?;
            if self.session().watch.was_hit() {
                return Err(Error::MemoryLost);
            }
            let count = self.wait(timeout, &mut events)?;
            let happened = events.get(..count).unwrap_or_default();
            if self.dispatch(happened) == Some(End::Stopped) {
                return Ok(End::Stopped);
            }
            if self.readable
                && let Some(end) = self.handle_messages()?
            {
                return Ok(end);
            }
            self.session().run_queues();
        }
    }

    /// The time to sleep, in milliseconds: `timeout`, or until the front-end has taken too long.
    fn wait_at_most(&self, timeout: i32) -> Result<i32, Error> {
        let Some(since) = self.waits_since else {
            return Ok(timeout);
        };
        let left = self.patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(Error::Stalled(self.patience));
        }
        // Rounded up, as it is looked at again then.
        let left = i32::try_from(left.as_millis()).map_or(i32::MAX, |left| left.saturating_add(1));
        Ok(match timeout {
            0.. => timeout.min(left),
            _ => left,
        })
    }

    /// There is nothing to handle now, but there may be something in the socket.
    fn nothing_whole(&mut self) -> Result<(), Error> {
        self.readable = false;
        let queued = rustix::io::ioctl_fionread(&self.inbox);
        match queued.map_err(system("look into the socket"))? {
            0 => self.waits_since = None,
            _ => _ = self.waits_since.get_or_insert_with(Instant::now),
        }
        Ok(())
    }

    fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> Result<usize, Error> {
        if timeout != 0 {
            self.session().spin.sleeps();
        }
        let result = self.epoll.wait(timeout, events);
        if timeout != 0 {
            self.session().spin.wakes();
        }
        match result {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(system("wait for events")(error)),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session<D>> {
        // A panic ends this thread: nobody sees a poisoned lock.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dispatch(&mut self, events: &[EpollEvent]) -> Option<End> {
        for event in events {
            match Token::decode(event.data()) {
                Token::Stop => return Some(End::Stopped),
                Token::Socket => {
                    let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                    self.readable = true;
                    self.hung_up |= event.event_set().intersects(gone);
                }
                Token::Kick(index) => self.session().kicked(index),
                Token::Device(index) => self.session().device_event(index),
            }
        }
        None
    }

    /// Handles the messages that have arrived whole.
    fn handle_messages(&mut self) -> Result<Option<End>, Error> {
        for _ in 0..MESSAGES {
            self.signalling.moves();
            if !inbox::has_room(&self.inbox).map_err(system("poll the socket"))? {
                self.nothing_whole()?;
                break;
            }
            let found = inbox::look(&self.inbox).map_err(system("look into the socket"))?;
            if found != Inbox::Incomplete {
                self.waits_since = None;
            }
            match found {
                Inbox::Message => self.handle_message()?,
                Inbox::NoRoomForFds => {
                    return Err(system("take file descriptors")(Errno::MFILE));
                }
                Inbox::BadFds => return Err(vhost::vhost_user::Error::IncorrectFds.into()),
                Inbox::Flawed(header, flaw) => {
                    if flaw == Flaw::NoMemory {
                        self.session().shares_no_memory(&flaw.to_string());
                    }
                    self.refuse(header, flaw.fds(), flaw)?;
                }
                Inbox::Config(header) => {
                    let negotiated = self
                        .session()
                        .check_protocol(VhostUserProtocolFeatures::CONFIG);
                    match negotiated {
                        Ok(()) => self.handle_message()?,
                        Err(why) => self.refuse(header, 0, why)?,
                    }
                }
                Inbox::Incomplete if self.hung_up => return self.hang_up().map(Some),
                Inbox::Incomplete => {
                    self.nothing_whole()?;
                    break;
                }
            }
        }
        Ok(None)
    }

    fn handle_message(&mut self) -> Result<(), Error> {
        match self.messages.handle_request() {
            Ok(()) => Ok(()),
            Err(vhost::vhost_user::Error::ReqHandlerError(why)) => {
                self.session().refused(why);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses the message that is in the socket, and does not let the message layer see it.
    /// So many `fds` belong to it.
    fn refuse(
        &self,
        header: inbox::Header,
        fds: usize,
        why: impl std::fmt::Display,
    ) -> Result<(), Error> {
        if !inbox::take(&self.inbox, header, fds).map_err(system("read the socket"))? {
            return Err(vhost::vhost_user::Error::IncorrectFds.into());
        }
        let mut session = self.session();
        session.refused(why);
        let reply_ack = VhostUserProtocolFeatures::REPLY_ACK;
        let reply_ack = session.protocol.contains(reply_ack) && session.told_features;
        drop(session);
        inbox::refuse(&self.inbox, header, reply_ack).map_err(system("answer the front-end"))
    }

    fn hang_up(&self) -> Result<End, Error> {
        match rustix::io::ioctl_fionread(&self.inbox) {
            Ok(0) => Ok(End::Disconnected),
            _ => Err(Error::Partial),
        }
    }
}

/// What the messages of one connection have set up.
pub(crate) struct Session<D> {
    device: D,
    name: String,
    spin: Spin,
    epoll: Arc<Epoll>,
    /// What the device and the ring offer.
    offered: u64,
    /// What the front-end accepted of it with the last `SET_FEATURES`; nothing when that was
    /// refused, or has not come. Then no ring runs.
    accepted: Option<u64>,
    /// Rings are packed by the features that were accepted last, in force or not: what is in the
    /// region for requests in flight is of that kind.
    packed: bool,
    /// What the user does not want to be offered.
    withheld: Withheld,
    /// The front-end has asked what is offered. Before that, the message layer acknowledges
    /// nothing.
    told_features: bool,
    /// The protocol features in force: what was offered, of what the front-end has set. The message
    /// layer does not look whether they were offered.
    protocol: VhostUserProtocolFeatures,
    table: Table,
    memory: GuestMemory,
    vrings: Vec<Vring>,
    /// Where the front-end wants to see what was written, if it has ever said.
    log: Option<Arc<DirtyLog>>,
    /// Where requests in flight are noted, if the front-end keeps a region for them.
    inflight: Option<InflightRegion>,
    watch: Watch,
    /// A request was handled since the thread last slept.
    active: bool,
    limits: Limits,
    memory_fs: MemoryFs,
    signalling: Signalling,
    logs: Logs,
}

impl<D: Device> Session<D> {
    fn new(device: D, options: &Options, epoll: Arc<Epoll>) -> Self {
        let description = device.describe();
        let ours = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_F_RING_PACKED
            | 1 << VIRTIO_F_RING_RESET
            | u64::from(D::ANSWERS_IN_ORDER) << VIRTIO_F_IN_ORDER;
        let withheld = Withheld::new(&options.without);
        Self {
            offered: (description.features | ours) & !withheld.virtio,
            withheld,
            vrings: (0..description.queues).map(|_| Vring::default()).collect(),
            device,
            name: options.name.clone(),
            spin: Spin::new(options.poll, options.cores.clone()),
            epoll,
            accepted: None,
            packed: false,
            told_features: false,
            protocol: VhostUserProtocolFeatures::empty(),
            table: Table::default(),
            memory: GuestMemory::default(),
            log: None,
            inflight: None,
            watch: Watch::new(),
            active: false,
            limits: options.limits,
            memory_fs: options.memory_fs,
            signalling: options.signalling.clone(),
            logs: options.logs.clone(),
        }
    }

    /// A message failed; the front-end learns it only if it asked for a reply.
    pub(crate) fn refused(&mut self, why: impl std::fmt::Display) {
        let line = format_args!("{}: refused a message of the front-end: {why}", self.name);
        limited!(self.logs.bad_messages, Warn, "{line}");
    }

    /// Says what a front-end has probably forgotten whose guest's memory cannot be seen. QEMU tells
    /// only of memory that has a file and is mapped shared. With memory slots it goes on even if
    /// there is none.
    fn shares_no_memory(&self, why: &str) {
        limited!(
            self.logs.no_memory,
            Warn,
            "{}: {why}: does the front-end share its guest's memory? QEMU does with -object \
             memory-backend-memfd,id=mem,size=SIZE,share=on and -machine TYPE,memory-backend=mem",
            self.name
        );
    }

    /// The features, for the front-end.
    pub(crate) fn tell_features(&mut self) -> u64 {
        self.told_features = true;
        self.offered()
    }

    fn offered(&self) -> u64 {
        let ours = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        self.offered | ours.bits() & !self.withheld.virtio
    }

    pub(crate) fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if !self.device.config().is_empty() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        features - self.withheld.protocol
    }

    /// Takes note of the protocol features in force.
    pub(crate) fn set_protocol(&mut self, features: u64) {
        self.protocol =
            VhostUserProtocolFeatures::from_bits_truncate(features) & self.offered_protocol();
    }

    fn check_protocol(&self, feature: VhostUserProtocolFeatures) -> Result<(), MessageError> {
        match self.protocol.contains(feature) {
            true => Ok(()),
            false => Err(MessageError::NotNegotiated(feature)),
        }
    }

    /// Takes the features that the front-end accepts. If they are refused, those that were accepted
    /// before are withdrawn all the same: the driver works with the new ones, and the front-end may
    /// not have asked for an answer.
    pub(crate) fn negotiate(&mut self, features: u64) -> Result<(), MessageError> {
        let checked = self.check_features(features);
        self.accepted = checked.is_ok().then_some(features);
        if let Err(why) = checked {
            self.wake_all();
            return Err(why);
        }
        let packed = self.ring_features().packed;
        let before = std::mem::replace(&mut self.packed, packed);
        let has_run = self.vrings.iter().any(|vring| vring.stopped_at.is_some());
        if has_run && packed != before {
            // Another driver: what the region says is of the other kind.
            (0..)
                .take(self.vrings.len())
                .for_each(|index| self.forget_inflight(index));
        }
        self.log_writes();
        self.wake_all();
        Ok(())
    }

    fn check_features(&mut self, features: u64) -> Result<(), MessageError> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(MessageError::NotOffered(Names(unknown)));
        }
        if self.runs() && ring_features(features) != self.ring_features() {
            return Err(MessageError::RingFeatures);
        }
        Ok(self.device.negotiated(features & self.offered)?)
    }

    /// Whether no queue runs, or which does.
    fn check_stopped(&self) -> Result<(), MessageError> {
        let mut vrings = (0..).zip(&self.vrings);
        match vrings.find(|(_, vring)| vring.queue.is_some()) {
            Some((index, _)) => Err(MessageError::Running(index)),
            None => Ok(()),
        }
    }

    /// Whether any queue runs.
    fn runs(&self) -> bool {
        self.vrings.iter().any(|vring| vring.queue.is_some())
    }

    fn ring_features(&self) -> RingFeatures {
        ring_features(self.accepted())
    }

    fn accepted(&self) -> u64 {
        self.accepted.unwrap_or(0)
    }

    /// As many bytes of the configuration as were asked for, which are few, zeros behind the
    /// device's own: a front-end may not know where they end, and some take a refusal for the end
    /// of the guest.
    pub(crate) fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let [start, len] = [offset, size].map(|word| usize::try_from(word).unwrap_or(usize::MAX));
        let own = self.device.config().get(start..).unwrap_or_default();
        let bytes = own.iter().copied().chain(std::iter::repeat(0));
        bytes.take(len).collect()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn memory_fs(&self) -> MemoryFs {
        self.memory_fs
    }

    pub(crate) fn vring_count(&self) -> u64 {
        self.vrings.len() as u64
    }

    pub(crate) fn vring(&mut self, index: u32) -> Result<&mut Vring, MessageError> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.vrings.get_mut(index))
            .ok_or(MessageError::NoVring(index))
    }

    /// The vring, for changes that a running queue could not follow.
    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, MessageError> {
        let vring = self.vring(index)?;
        match vring.queue {
            Some(_) => Err(MessageError::Running(index)),
            None => Ok(vring),
        }
    }

    pub(crate) fn set_size(&mut self, index: u32, size: u32) -> Result<(), MessageError> {
        let features = self.ring_features();
        let vring = self.stopped_vring(index)?;
        vring
            .set_size(size, features)
            .map_err(|source| MessageError::Vring { index, source })
    }

    /// Puts a vring's base in place. A vring that has run and goes on from elsewhere has a driver
    /// that begins anew: not every front-end tells of a guest's reset in another way (QEMU 10.0
    /// does not), and the next driver must not find what the last one left.
    pub(crate) fn set_base(&mut self, index: u32, base: u32) -> Result<(), MessageError> {
        let features = self.ring_features();
        let vring = self.stopped_vring(index)?;
        vring
            .set_base(base, features)
            .map_err(|source| MessageError::Vring { index, source })?;
        match vring.stopped_at.is_some_and(|before| before != base) {
            true => self.begin_ring(index),
            false => Ok(()),
        }
    }

    /// A driver that begins anew has a new ring where another one was.
    fn begin_ring(&mut self, index: u32) -> Result<(), MessageError> {
        self.vring(index)?.stopped_at = None;
        self.forget_inflight(index);
        if self.runs() {
            return Ok(());
        }
        limited!(
            self.logs.beginnings,
            Debug,
            "{}: the driver begins anew",
            self.name
        );
        // Once for all of its vrings.
        for vring in &mut self.vrings {
            vring.stopped_at = None;
        }
        self.device.reset();
        if let Some(features) = self.accepted {
            // As before: it was accepted then, and is still in force.
            self.device.negotiated(features & self.offered)?;
        }
        Ok(())
    }

    pub(crate) fn set_addresses(
        &mut self,
        index: u32,
        addresses: UserAddresses,
        log: Option<u64>,
    ) -> Result<(), MessageError> {
        let features = self.ring_features();
        let memory = self.memory.clone();
        let table = self.table.clone();
        let vring = self.vring(index)?;
        let set = vring.set_addresses(addresses, &table, &memory, features);
        if let Err(VringError::Unmapped { .. }) = set {
            self.shares_no_memory("a vring outside of all memory that the front-end has told of");
        }
        set.map_err(|source| MessageError::Vring { index, source })?;
        let vring = self.vring(index)?;
        vring.log = log;
        self.log_writes();
        self.wake(index);
        Ok(())
    }

    /// Takes the dirty log that the front-end shares.
    pub(crate) fn set_log(
        &mut self,
        file: &File,
        offset: u64,
        size: u64,
    ) -> Result<(), MessageError> {
        self.check_protocol(VhostUserProtocolFeatures::LOG_SHMFD)?;
        let len = usize::try_from(size).ok().filter(|_| size <= MAX_LOG);
        let len = len.ok_or(FileError::Map(io::ErrorKind::InvalidInput.into()));
        let bits = len
            .and_then(|len| MemoryFile::new(file, self.memory_fs)?.map(offset, len))
            .map_err(MessageError::LogFile)?;
        self.log = Some(Arc::new(DirtyLog::new(bits)));
        // Nothing is written to the old one any more: from here on the queues have the new.
        self.watch_mappings();
        self.log_writes();
        Ok(())
    }

    /// What is mapped beside the guest's memory.
    fn other_ranges(&self) -> impl Iterator<Item = (usize, usize)> {
        let log = self.log.as_ref().map(|log| log.range());
        let inflight = self.inflight.as_ref().map(InflightRegion::range);
        log.into_iter().chain(inflight)
    }

    /// What may lose its file.
    fn watch_mappings(&mut self) {
        let mappings: Vec<_> = self.table.mappings().chain(self.other_ranges()).collect();
        self.watch.set(mappings.into_iter());
    }

    /// Whether so many queues can be tracked: no more than there are, and no more entries than a
    /// ring may have, or a front-end could ask for any amount of memory.
    fn check_trackable(&self, queues: u16, size: u16) -> Result<(), MessageError> {
        let vrings = self.vrings.len();
        match (1..=vrings).contains(&queues.into()) && (1..=MAX_QUEUE_SIZE).contains(&size) {
            true => Ok(()),
            false => Err(MessageError::Untrackable {
                queues,
                size,
                vrings,
            }),
        }
    }

    /// A new region for the requests in flight on `queues` of at most `size` entries, which the
    /// front-end is to keep, and its length. It has room for either kind of ring, as the front-end
    /// may ask before it has said which.
    pub(crate) fn make_inflight(
        &mut self,
        queues: u16,
        size: u16,
    ) -> Result<(File, u64), MessageError> {
        self.check_protocol(VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        self.check_trackable(queues, size)?;
        let len = InflightRegion::len_for(queues, size);
        let file = memfd(c"vhost-device-inflight")
            .and_then(|file| {
                ftruncate(&file, len)?;
                let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
                fcntl_add_seals(&file, seals)?;
                Ok(file)
            })
            .map_err(|error| MessageError::MakeInflight(error.into()))?;
        Ok((file, len))
    }

    /// Takes the region in which requests in flight are noted: a new one, or one that another
    /// back-end has left.
    pub(crate) fn set_inflight(
        &mut self,
        file: &File,
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    ) -> Result<(), MessageError> {
        self.check_protocol(VhostUserProtocolFeatures::INFLIGHT_SHMFD)?;
        self.check_trackable(queues, size)?;
        self.check_stopped()?;
        // No more than is needed, whatever the front-end says.
        let len = len.min(InflightRegion::len_for(queues, size));
        // Fits: below 2^37.
        let mapping = MemoryFile::new(file, self.memory_fs)?.map(offset, len as usize)?;
        let stays = VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT;
        let stays = self.protocol.contains(stays);
        self.inflight = Some(InflightRegion::new(mapping, queues, size, stays)?);
        self.watch_mappings();
        Ok(())
    }

    /// What was in flight on a vring belongs to a driver that is gone.
    fn forget_inflight(&self, index: u32) {
        if let (Some(region), Ok(index)) = (&self.inflight, u16::try_from(index)) {
            region.forget(index, self.packed);
        }
    }

    /// Whether a vring goes on from where it was, rather than begins: its base says so, or requests
    /// may be in flight on it.
    fn resumes(&mut self, index: u32) -> bool {
        let features = self.ring_features();
        let tracked = match (&self.inflight, u16::try_from(index)) {
            (Some(region), Ok(index)) => region.has_run(index, features.packed),
            _ => false,
        };
        let vring = usize::try_from(index).ok();
        let Some(vring) = vring.and_then(|place| self.vrings.get_mut(place)) else {
            return false;
        };
        if features.packed && !tracked {
            let is_new = vring.settle_base(&self.table, &self.memory, features);
            // Its base has not told of it: the one before has stopped at 0 as well.
            if is_new
                && vring.stopped_at.is_some()
                && let Err(why) = self.begin_ring(index)
            {
                self.refused(why);
            }
        }
        let vring = self.vring(index);
        tracked || vring.is_ok_and(|vring| vring.resumes(features))
    }

    /// The dirty log, while the front-end wants it.
    fn log_in_force(&self) -> Option<Arc<DirtyLog>> {
        let wanted = self.accepted() & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        self.log.clone().filter(|_| wanted)
    }

    fn log_writes(&mut self) {
        let log = self.log_in_force();
        for vring in &mut self.vrings {
            vring.set_log(log.as_ref());
        }
    }

    /// Puts `fd` in the place of the old kick; without one the ring is polled. A kick that the old
    /// one holds counts.
    pub(crate) fn set_kick(&mut self, index: u32, fd: Option<File>) -> Result<(), MessageError> {
        let epoll = Arc::clone(&self.epoll);
        self.vring(index)?;
        let kick = match fd {
            Some(fd) => {
                let fd = Notifier::to_watch(fd, &self.signalling)
                    .map_err(|source| MessageError::Fd { index, source })?;
                // By edges, so that a kick need not be read to be answered: one system call
                // less for each.
                let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
                watch(&epoll, fd.as_raw_fd(), Token::Kick(index), edges)
                    .map_err(|source| MessageError::Watch { index, source })?;
                Kick::Fd(fd)
            }
            None => Kick::Polled,
        };
        let vring = self.vring(index)?;
        let kicked = vring.take_kicks();
        unwatch(&epoll, &std::mem::replace(&mut vring.kick, kick));
        vring.started |= kicked || matches!(vring.kick, Kick::Polled);
        self.wake(index);
        Ok(())
    }

    /// An fd of a vring that the front-end wants to have signalled, if it gave one.
    fn notifier(&self, index: u32, fd: Option<File>) -> Result<Option<Notifier>, MessageError> {
        fd.map(|fd| Notifier::to_signal(fd, &self.signalling))
            .transpose()
            .map_err(|source| MessageError::Fd { index, source })
    }

    /// Puts `fd` in the place of the old call. What the old one may have swallowed is repeated.
    pub(crate) fn set_call(&mut self, index: u32, fd: Option<File>) -> Result<(), MessageError> {
        self.vring(index)?;
        let call = self.notifier(index, fd)?;
        let vring = self.vring(index)?;
        vring.call = call;
        if vring.queue.is_some() {
            vring.call();
        }
        Ok(())
    }

    /// Puts `fd` in the place of the old error fd.
    pub(crate) fn set_err(&mut self, index: u32, fd: Option<File>) -> Result<(), MessageError> {
        self.vring(index)?;
        let err = self.notifier(index, fd)?;
        self.vring(index)?.err = err;
        Ok(())
    }

    pub(crate) fn enable(&mut self, index: u32, enable: bool) -> Result<(), MessageError> {
        self.vring(index)?.enabled = enable;
        self.wake(index);
        Ok(())
    }

    /// A kick has come.
    fn kicked(&mut self, index: u32) {
        if let Ok(vring) = self.vring(index) {
            vring.started = true;
            self.wake(index);
        }
    }

    /// The same for all vrings.
    fn wake_all(&mut self) {
        (0..)
            .take(self.vrings.len())
            .for_each(|index| self.wake(index));
    }

    /// Lets the queue of a vring run if it is started and enabled and the features are settled, and
    /// stops it if that is not so.
    fn wake(&mut self, index: u32) {
        let features = self.ring_features();
        // Without PROTOCOL_FEATURES there is no message to enable a ring.
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let always_enabled = self
            .accepted
            .is_some_and(|features| features & protocol == 0);
        let settled = self.accepted.is_some();
        let Ok(vring) = self.vring(index) else {
            return;
        };
        let begins = vring.queue.is_none();
        let enabled = settled && (vring.enabled || always_enabled);
        // A base says so of a ring whose kind is known only. The look may take as long as the ring
        // is: it is for one that can run.
        let resumes = enabled && begins && self.resumes(index);
        let place = usize::try_from(index).ok();
        let Some(vring) = place.and_then(|place| self.vrings.get_mut(place)) else {
            return;
        };
        // A ring that resumes has been kicked before, perhaps for the last time.
        vring.started |= resumes && matches!(vring.kick, Kick::Fd(_));
        if !enabled || !vring.started {
            // It is there, and has nothing that could fail.
            let _ = self.halt(index);
            return;
        }
        let started = vring.start(
            index,
            &self.table,
            &self.memory,
            features,
            self.inflight.as_ref(),
        );
        if let Err(why) = started {
            vring.report_error();
            let line = format_args!("{}: vring {index} cannot run: {why}", self.name);
            limited!(self.logs.bad_rings, Warn, "{line}");
            return;
        }
        vring.pending = vring.queue.is_some();
        if begins {
            let log = self.log_in_force();
            if let Ok(vring) = self.vring(index) {
                vring.set_log(log.as_ref());
                if resumes && vring.queue.is_some() {
                    // Whoever ran it before may have died between its answer and its call.
                    vring.call();
                }
            }
        }
    }

    /// Stops a vring, and returns the base to resume it from. After this nothing of it is
    /// touched and its driver is not called, until it gets another kick fd.
    pub(crate) fn stop(&mut self, index: u32) -> Result<u32, MessageError> {
        let base = self.halt(index)?;
        let epoll = Arc::clone(&self.epoll);
        let vring = self.vring(index)?;
        unwatch(&epoll, &std::mem::take(&mut vring.kick));
        vring.started = false;
        Ok(base)
    }

    /// Has the device see requests that were in flight before and that no index can stand for, if
    /// their region does not outlive the stop of the vring. They are no more than the ring is long.
    fn finish_stranded(&mut self, index: u32) {
        // Fits: there are at most 65535 vrings.
        let place = index as usize;
        let stranded = |session: &Self| {
            let queue = session
                .vrings
                .get(place)
                .and_then(|vring| vring.queue.as_ref());
            queue.map_or(0, Queue::stranded)
        };
        let mut left = stranded(self);
        while left > 0 {
            self.run_queue(place);
            // The device may keep as many as it can, and then no more are taken.
            let before = std::mem::replace(&mut left, stranded(self));
            if left == before {
                break;
            }
        }
    }

    /// Takes the queue from a vring, and returns the base to make the next one from.
    fn halt(&mut self, index: u32) -> Result<u32, MessageError> {
        self.finish_stranded(index);
        if self.vring(index)?.queue.is_some() {
            let mut queues = Queues {
                vrings: &mut self.vrings,
                memory: &self.memory,
            };
            // Fits: there are at most 65535 vrings.
            self.device.queue_stopping(index as QueueIndex, &mut queues);
            publish(&mut self.vrings, Vring::publish);
        }
        let features = self.ring_features();
        let vring = self.vring(index)?;
        vring.pending = false;
        let Some(queue) = vring.queue.take() else {
            // A kick that has come stays for whoever resumes.
            return Ok(vring.base(features));
        };
        // Before the look at what is left: a kick that comes later stays as well.
        vring.take_kicks();
        // Fits: there are at most 65535 vrings.
        self.device.queue_stopped(index as QueueIndex);
        let stopped = queue.stop();
        let vring = self.vring(index)?;
        vring.base = Some(stopped.base);
        vring.stopped_at = Some(stopped.base);
        if stopped.call {
            vring.call();
        }
        if stopped.more {
            vring.kick_again();
        }
        Ok(stopped.base)
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Puts another memory table in force. Queues that are in memory which goes are stopped, and
    /// go on when it is back.
    pub(crate) fn change_memory(&mut self, table: Table) -> Result<(), TableError> {
        let memory = table.memory()?;
        // Both, as queues are touched while they move from the old to the new.
        let old = self.table.mappings().chain(self.other_ranges());
        let all: Vec<_> = old.chain(table.mappings()).collect();
        self.watch.set(all.into_iter());
        let mut waiting = Vec::new();
        for index in (0..).take(self.vrings.len()) {
            let Ok(vring) = self.vring(index) else {
                continue;
            };
            if vring.started && vring.queue.is_none() {
                waiting.push(index);
            }
            if let Err(why) = vring.rebind(&table, &memory) {
                vring.report_error();
                let line = format_args!("{}: vring {index} stops: {why}", self.name);
                limited!(self.logs.bad_rings, Warn, "{line}");
                // The old memory is mapped still, so the queue can be left in order.
                let _ = self.halt(index);
            }
        }
        self.table = table;
        self.memory = memory;
        self.watch_mappings();
        waiting.into_iter().for_each(|index| self.wake(index));
        Ok(())
    }

    /// The front-end begins (`SET_OWNER`): what it has said before is forgotten, but for what a
    /// front-end may say first. QEMU keeps its connection when a device is taken out, and libkrun
    /// says this each time the guest's driver is ready. Neither takes its memory back.
    pub(crate) fn begin(&mut self) -> Result<(), MessageError> {
        // Memory would go that the queue is in.
        self.check_stopped()?;
        let has_begun = self.accepted.is_some() || self.vrings.iter().any(Vring::is_set_up);
        if has_begun {
            limited!(
                self.logs.beginnings,
                Debug,
                "{}: the front-end begins anew",
                self.name
            );
            self.reset();
        }
        self.log = None;
        self.inflight = None;
        self.table = Table::default();
        self.memory = GuestMemory::default();
        self.watch_mappings();
        Ok(())
    }

    /// Back to the state of a new device (`RESET_DEVICE`), with the memory, the log, and the region
    /// for requests in flight. Err and call fds stay: QEMU sends an err fd once. The queues are
    /// left as they are: the driver has taken them back.
    pub(crate) fn reset(&mut self) {
        for index in 0..self.vrings.len() {
            let Some(vring) = self.vrings.get_mut(index) else {
                continue;
            };
            unwatch(&self.epoll, &vring.reset());
            // Fits: there are at most 65535 vrings.
            let index = index as QueueIndex;
            self.device.queue_stopped(index);
            self.forget_inflight(index.into());
        }
        self.accepted = None;
        self.device.reset();
    }

    fn device_event(&mut self, source: u32) {
        let mut queues = Queues {
            vrings: &mut self.vrings,
            memory: &self.memory,
        };
        // Fits: it was counted up from 0 over a list.
        self.device.on_event(source as usize, &mut queues);
        publish(&mut self.vrings, Vring::publish);
        for vring in &mut self.vrings {
            // A queue that was full of kept requests may have room now.
            vring.pending |= vring.queue.is_some();
        }
    }

    /// Runs each queue that has something to do for one batch.
    fn run_queues(&mut self) {
        for index in 0..self.vrings.len() {
            if self.vrings.get(index).is_some_and(|vring| vring.pending) {
                self.run_queue(index);
            }
        }
    }

    fn run_queue(&mut self, index: usize) {
        // Fits: there are at most 65535 vrings.
        let number = index as QueueIndex;
        let Some(vring) = self.vrings.get_mut(index) else {
            return;
        };
        let Some(queue) = &mut vring.queue else {
            vring.pending = false;
            return;
        };
        queue.disarm();
        match queue.look() {
            Ok(available) => self.active |= available,
            Err(why) => {
                vring.pending = false;
                vring.report_error();
                let line = format_args!("{}: vring {index}: {why}", self.name);
                limited!(self.logs.bad_rings, Warn, "{line}");
                return;
            }
        }
        vring.in_error = false;
        let mut bytes = 0;
        let start = D::WAITS.then(Instant::now);
        for _ in 0..BATCH {
            match queue.pop(&self.memory) {
                None => break,
                Some(Ok(request)) => {
                    bytes += request.readable_len() + request.writable_len();
                    self.device.handle(number, request);
                }
                Some(Err(why)) => {
                    let line = format_args!("{}: vring {index}: bad request: {why}", self.name);
                    limited!(self.logs.bad_chains, Warn, "{line}");
                }
            }
            let is_late = start.is_some_and(|start| start.elapsed() >= TURN);
            if bytes >= BATCH_BYTES || is_late {
                break;
            }
        }
        // An index that cannot be right is reported by the next look, when it is still so.
        let more = queue.look().unwrap_or(true);
        vring.pending = more;
        if !more {
            let mut queues = Queues {
                vrings: &mut self.vrings,
                memory: &self.memory,
            };
            self.device.queue_drained(number, &mut queues);
        }
        publish(&mut self.vrings, Vring::publish);
    }

    /// How long the thread may sleep, in milliseconds as for `epoll_wait`. Asks all drivers for
    /// kicks if it may.
    fn prepare_to_wait(&mut self) -> i32 {
        if !self.has_work() && std::mem::take(&mut self.active) {
            self.look_for_more();
        }
        if self.has_work() {
            return 0;
        }
        let mut timeout = -1;
        for vring in &mut self.vrings {
            let Some(queue) = &mut vring.queue else {
                continue;
            };
            let missed = queue.arm();
            let polled = matches!(vring.kick, Kick::Polled);
            vring.pending = missed || polled;
            if missed {
                timeout = 0;
            } else if polled && timeout != 0 {
                timeout = POLL_PERIOD_MS;
            }
        }
        timeout
    }

    fn has_work(&self) -> bool {
        self.vrings.iter().any(|vring| vring.pending)
    }

    /// Looks at the rings for a while, in the hope of saving a sleep and a kick.
    fn look_for_more(&mut self) {
        let vrings = &mut self.vrings;
        self.spin.look(|| {
            for vring in &mut *vrings {
                let queue = vring.queue.as_mut();
                vring.pending = queue.is_some_and(|queue| queue.look().unwrap_or(true));
            }
            vrings.iter().any(|vring| vring.pending)
        });
    }
}

impl<D> Drop for Session<D> {
    fn drop(&mut self) {
        limited!(self.logs.ends, Debug, "{}: session ends", self.name);
    }
}

fn ring_features(features: u64) -> RingFeatures {
    let has = |feature: u32| features & (1 << feature) != 0;
    RingFeatures {
        packed: has(VIRTIO_F_RING_PACKED),
        event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
        in_order: has(VIRTIO_F_IN_ORDER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_published_the_last_first() {
        let mut order = Vec::new();
        publish(&mut [0, 1, 2], |queue| order.push(*queue));
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn features_are_refused_by_name() {
        let packed = Names(1 << VIRTIO_F_RING_PACKED | 1 << 7);
        let why = MessageError::NotOffered(packed).to_string();
        assert!(why.contains("bit 7, VIRTIO_F_RING_PACKED"), "{why}");
        let why = MessageError::Device(Refused("VIRTIO_X is missing".into())).to_string();
        assert!(why.starts_with("no vring runs"), "{why}");
        assert!(why.contains("VIRTIO_X"), "{why}");
    }

    #[test]
    fn tokens_survive_encoding() {
        for token in [
            Token::Stop,
            Token::Socket,
            Token::Kick(0),
            Token::Kick(u32::MAX),
            Token::Device(7),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
