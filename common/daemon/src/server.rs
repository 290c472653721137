//! The main loop: accepts front-ends, gives each guest a thread, ends them all on a signal.
//!
//! The main thread only waits: for a signal, for a front-end on a listener and for the end of a
//! session. While a guest is served, a front-end that comes to its listener is told of in the log,
//! and waits until the old session has given everything up.
//!
//! It is accepted all the same. What waits in the backlog cannot be looked at, and its queue may
//! hold the served front-end's own end of its connection as a file descriptor: nobody would see
//! that one leave. So a front-end that waits may not have sent any file descriptor, which none does
//! before it has had an answer, and no more than [`WAITING`] of them wait. The others are closed,
//! by a thread that can be interrupted: what is in their queues is closed with them, and may take
//! its time (see [`served`](crate::served)).

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};
use vhost_device_backend::{End, Limits, Logs, Options, RateLimit, limited, serve};

use crate::notify::ServiceManager;
use crate::served::{Served, Stage, has_any_of, has_left};
use crate::signals::{Signal, Signals};
use crate::sockets::{self, Endpoint, Listener};
use crate::{Backend, Chain, FAILURE};

/// Epoll tokens; a guest's listener has the guest's number behind [`FIRST_GUEST`].
const SIGNALS: u64 = 0;
const ENDED: u64 = 1;
const FIRST_GUEST: u64 = 2;
/// A guest's connection has the guest's number behind this.
const FIRST_SESSION: u64 = 1 << 32;
/// The front-ends that wait for a guest have its number behind this.
const FIRST_WAITING: u64 = 1 << 33;

/// How many events are taken from the kernel at once.
const EVENTS: usize = 64;

/// How many front-ends may wait for a guest. There is a use for one.
const WAITING: usize = 4;

/// How many front-ends of a guest may not have been closed yet until the next is accepted.
const TURNED_AWAY: usize = 4;

/// How long a listener rests when a front-end could not be accepted or served, for want of
/// descriptors or memory: trying again at once would spin.
const REST: Duration = Duration::from_secs(1);

/// How long the process has to end after a stop signal, and how much of that its sessions have: a
/// session that hangs in its hardware must not hold up a shutdown, nor may a log that nobody reads.
/// It is less than the two seconds that are promised, as nothing ends at once.
const END_TIMEOUT: Duration = Duration::from_millis(1800);
const STOP_TIMEOUT: Duration = Duration::from_millis(1300);

/// A daemon whose sockets listen.
pub(crate) struct Server<B> {
    backend: Arc<B>,
    guests: Vec<Guest>,
    epoll: OwnedFd,
    signals: Signals,
    manager: ServiceManager,
    /// Readable once every session is to end.
    stop: Arc<OwnedFd>,
    ended: Ended,
    /// How every guest's sessions are run, but for what is the guest's own.
    session: Options,
    hangups: RateLimit,
}

/// How a daemon has ended.
pub(crate) struct Ending {
    pub(crate) code: ExitCode,
    /// When the process has to be gone.
    pub(crate) deadline: Instant,
}

impl Ending {
    /// Begins now.
    pub(crate) fn new(code: ExitCode) -> Self {
        Self {
            code,
            deadline: Instant::now() + END_TIMEOUT,
        }
    }
}

struct Guest {
    /// How its sessions are run.
    options: Options,
    /// `None` for a guest that came with a connected socket and is served once.
    listener: Option<Listener>,
    /// Those that have come and are not served yet, the first first.
    waiting: VecDeque<UnixStream>,
    /// A thread serves a front-end.
    session: Option<Served<Result<End, SessionError>>>,
    /// Those that will not be served, and that are not closed yet.
    turned_away: VecDeque<UnixStream>,
    /// A thread closes one of them.
    closing: Option<Served<()>>,
    /// Nobody is accepted, and no thread started, until then.
    rests_until: Option<Instant>,
    arrivals: RateLimit,
    departures: RateLimit,
    others: RateLimit,
    refusals: RateLimit,
    failures: RateLimit,
}

/// A thread of a guest, by the guest's number.
#[derive(Clone, Copy, Debug)]
enum Task {
    Session(usize),
    Closing(usize),
}

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot make its device")]
    Device(#[source] io::Error),
    #[error(transparent)]
    Protocol(#[from] vhost_device_backend::Error),
}

/// Tells the main loop which threads have ended.
struct Ended {
    wake: Arc<OwnedFd>,
    sender: Sender<(Task, Stage)>,
    receiver: Receiver<(Task, Stage)>,
}

impl Ended {
    fn new() -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (sender, receiver) = channel();
        Ok(Self {
            wake,
            sender,
            receiver,
        })
    }

    /// Tells of a guest's thread, on that thread.
    fn teller(&self, task: Task) -> impl Fn(Stage) + Send + 'static {
        let wake = Arc::clone(&self.wake);
        let sender = self.sender.clone();
        move |stage| {
            // Neither fails while the main loop is there, and without it nobody asks.
            let _ = sender.send((task, stage));
            let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
        }
    }

    /// What threads have told since the last call.
    fn take(&self) -> Vec<(Task, Stage)> {
        // Emptied first: a thread that tells something from here on wakes the loop again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.receiver.try_iter().collect()
    }
}

impl<B: Backend> Server<B> {
    /// Gets ready to serve one guest at each of the `endpoints`, as `options` say. Each has its
    /// share of the process.
    pub(crate) fn new(
        backend: B,
        endpoints: Vec<Endpoint>,
        signals: Signals,
        manager: ServiceManager,
        session: Options,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let ended = Ended::new()?;
        watch(&epoll, &signals, SIGNALS)?;
        watch(&epoll, &ended.wake, ENDED)?;
        let mut server = Self {
            backend: Arc::new(backend),
            guests: Vec::with_capacity(endpoints.len()),
            epoll,
            signals,
            manager,
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?),
            ended,
            session: Options {
                limits: Limits::fair(endpoints.len()),
                ..session
            },
            hangups: RateLimit::default(),
        };
        for endpoint in endpoints {
            server.add(endpoint)?;
        }
        Ok(server)
    }

    fn add(&mut self, endpoint: Endpoint) -> io::Result<()> {
        let index = self.guests.len();
        let mut waiting = VecDeque::new();
        let listener = match endpoint {
            Endpoint::Listener(listener) => {
                // By edges: all that have come are accepted at once.
                let token = EventData::new_u64(FIRST_GUEST + index as u64);
                epoll::add(
                    &self.epoll,
                    &listener,
                    token,
                    EventFlags::IN | EventFlags::ET,
                )?;
                Some(listener)
            }
            Endpoint::Connected(stream) => {
                waiting.push_back(stream);
                None
            }
        };
        self.guests.push(Guest {
            options: Options {
                name: format!("guest {index}"),
                logs: Logs::default(),
                ..self.session.clone()
            },
            listener,
            waiting,
            session: None,
            turned_away: VecDeque::new(),
            closing: None,
            rests_until: None,
            arrivals: RateLimit::default(),
            departures: RateLimit::default(),
            others: RateLimit::default(),
            refusals: RateLimit::default(),
            failures: RateLimit::default(),
        });
        Ok(())
    }

    /// Says that the daemon is ready, in the log and to the service manager.
    pub(crate) fn announce(&self) {
        let names: Vec<_> = self
            .guests
            .iter()
            .map(|guest| match &guest.listener {
                Some(listener) => listener.name(),
                None => "a connected socket".to_owned(),
            })
            .collect();
        match names.as_slice() {
            [name] => log::info!("ready: {name}"),
            [first, .., last] => {
                log::info!("ready: {} guests, {first} to {last}", names.len());
            }
            [] => {}
        }
        self.manager.ready();
    }

    /// Serves until a stop signal, or until no front-end can come any more.
    ///
    /// # Errors
    /// Only what makes the loop itself impossible.
    pub(crate) fn run(mut self) -> io::Result<Ending> {
        let ending = self.serve();
        // The system closes the connections that are left when the process ends, and waits for none
        // of what front-ends have put into them.
        for guest in &mut self.guests {
            guest.leave_connections();
            std::mem::forget((guest.session.take(), guest.closing.take()));
        }
        ending
    }

    fn serve(&mut self) -> io::Result<Ending> {
        for index in 0..self.guests.len() {
            self.go_on(index);
        }
        let mut broken = false;
        let mut tokens = Vec::with_capacity(EVENTS);
        while !self.guests.iter().all(Guest::is_gone) {
            let deadline = self.end_of_rest().into_iter().chain(self.next_look()).min();
            self.wait(deadline, &mut tokens)?;
            for token in tokens.drain(..) {
                match token {
                    SIGNALS => match self.signals.take() {
                        Some(Signal::Stop(name)) => {
                            let ending = Ending::new(ExitCode::SUCCESS);
                            log::info!("{name}: stopping");
                            self.stop()?;
                            return Ok(ending);
                        }
                        Some(Signal::Hangup) => {
                            limited!(
                                self.hangups,
                                Info,
                                "SIGHUP: ignored, as there is no terminal and nothing to read again"
                            );
                        }
                        None => {}
                    },
                    ENDED => broken |= self.take_ended(),
                    waiting if waiting >= FIRST_WAITING => {
                        self.go_on((waiting - FIRST_WAITING) as usize);
                    }
                    session if session >= FIRST_SESSION => {
                        self.guests[(session - FIRST_SESSION) as usize].stirred();
                    }
                    guest => self.go_on((guest - FIRST_GUEST) as usize),
                }
            }
            self.wake_rested();
            self.look_at_sessions();
        }
        self.manager.stopping();
        Ok(Ending::new(match broken {
            true => ExitCode::from(FAILURE),
            false => ExitCode::SUCCESS,
        }))
    }

    /// Waits for events until `deadline`, and puts their tokens into `tokens`.
    fn wait(&self, deadline: Option<Instant>, tokens: &mut Vec<u64>) -> io::Result<()> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Some seconds at most.
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        tokens.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }

    fn end_of_rest(&self) -> Option<Instant> {
        self.guests
            .iter()
            .filter_map(|guest| guest.rests_until)
            .min()
    }

    /// When a thread is to be looked at.
    fn next_look(&self) -> Option<Instant> {
        self.guests.iter().filter_map(Guest::next_look).min()
    }

    /// Interrupts threads that do not move although they should.
    fn look_at_sessions(&mut self) {
        let now = Instant::now();
        for guest in &mut self.guests {
            if let Some(session) = &mut guest.session {
                session.look(now);
            }
            if let Some(closing) = &mut guest.closing {
                closing.look(now);
            }
        }
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        for index in 0..self.guests.len() {
            let rested = &mut self.guests[index].rests_until;
            if rested.take_if(|until| *until <= now).is_some() {
                self.go_on(index);
            }
        }
    }

    /// Does for a guest what there is to do: something has happened at its listener, to those that
    /// wait for it, or to its threads.
    fn go_on(&mut self, index: usize) {
        if self.guests[index].rests_until.is_some() {
            return;
        }
        if let Err(error) = self.try_to_go_on(index) {
            let guest = &mut self.guests[index];
            limited!(
                guest.failures,
                Error,
                "{}: cannot take its front-end: {error}",
                guest.options.name
            );
            guest.rests_until = Some(Instant::now() + REST);
        }
    }

    fn try_to_go_on(&mut self, index: usize) -> io::Result<()> {
        loop {
            self.serve_next(index)?;
            self.turn_away(index);
            self.close_next(index)?;
            if !self.accept(index)? {
                return Ok(());
            }
        }
    }

    /// Accepts a front-end. False if there is none, or too much to do first.
    fn accept(&mut self, index: usize) -> io::Result<bool> {
        let guest = &mut self.guests[index];
        let Some(listener) = &guest.listener else {
            return Ok(false);
        };
        if guest.turned_away.len() >= TURNED_AWAY {
            return Ok(false);
        }
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // The front-end left before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) =>
            {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        // Whoever made the listener may have asked for them.
        if sockets::refuse_credentials(&stream).is_err() {
            guest.turned_away.push_back(stream);
            return Ok(true);
        }
        if guest.session.is_some() {
            limited!(
                guest.others,
                Warn,
                "{}: another front-end has come to {}, and waits until the one that is served has \
                 left",
                guest.options.name,
                listener.name(),
            );
        }
        guest.waiting.push_back(stream);
        Ok(true)
    }

    /// Sees that those that wait may do so.
    fn turn_away(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let token = EventData::new_u64(FIRST_WAITING + index as u64);
        let edges = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        for stream in std::mem::take(&mut guest.waiting) {
            let watched = match epoll::add(&self.epoll, &stream, token, edges) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error),
            };
            let why = match watched {
                Err(_) => Some("it cannot be watched"),
                Ok(()) if has_left(&stream) => None,
                Ok(()) if may_hold_file_descriptors(&stream) => {
                    Some("it has sent file descriptors before it was answered")
                }
                Ok(()) if guest.waiting.len() >= WAITING => Some("too many do"),
                Ok(()) => {
                    guest.waiting.push_back(stream);
                    continue;
                }
            };
            if let Some(why) = why {
                limited!(
                    guest.refusals,
                    Warn,
                    "{}: a front-end that waits is turned away: {why}",
                    guest.options.name
                );
            }
            // Its file description may be in other processes, so closing it would not do.
            let _ = epoll::delete(&self.epoll, &stream);
            guest.turned_away.push_back(stream);
        }
    }

    /// Has the next of those that were turned away closed, by a thread that can be interrupted.
    fn close_next(&mut self, index: usize) -> io::Result<()> {
        let guest = &mut self.guests[index];
        if guest.closing.is_some() {
            return Ok(());
        }
        let Some(stream) = guest.turned_away.pop_front() else {
            return Ok(());
        };
        let tell = self.ended.teller(Task::Closing(index));
        let name = guest.options.name.clone();
        match Served::start(name, stream, tell, |stream, _| drop(stream)) {
            Ok(mut closing) => {
                closing.is_to_end();
                guest.closing = Some(closing);
                Ok(())
            }
            Err((error, stream)) => {
                guest.turned_away.push_front(stream);
                Err(error)
            }
        }
    }

    /// Starts a session for the next front-end, if the last one has left.
    fn serve_next(&mut self, index: usize) -> io::Result<()> {
        let guest = &mut self.guests[index];
        if guest.session.is_some() {
            return Ok(());
        }
        let Some(stream) = guest.waiting.pop_front() else {
            return Ok(());
        };
        // If it was watched while it waited.
        let _ = epoll::delete(&self.epoll, &stream);
        let tell = self.ended.teller(Task::Session(index));
        let backend = Arc::clone(&self.backend);
        let stop = Arc::clone(&self.stop);
        let mut options = guest.options.clone();
        let session = move |stream, signalling| {
            options.signalling = signalling;
            let device = backend.device(index).map_err(SessionError::Device)?;
            Ok(serve(stream, device, &options, stop.as_fd())?)
        };
        let started = Served::start(guest.options.name.clone(), stream, tell, session);
        let served = match started {
            Ok(served) => served,
            Err((error, stream)) => {
                guest.waiting.push_front(stream);
                return Err(error);
            }
        };
        // By edges: messages are for the session to read. Without it a session may sleep for long.
        let token = EventData::new_u64(FIRST_SESSION + index as u64);
        let edges = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let watched = served.watch(|socket| Ok(epoll::add(&self.epoll, socket, token, edges)?));
        guest.session = Some(served);
        if let Err(error) = watched {
            limited!(
                guest.failures,
                Warn,
                "{}: cannot watch its connection: {error}",
                guest.options.name
            );
        }
        limited!(
            guest.arrivals,
            Info,
            "{}: front-end connected",
            guest.options.name
        );
        Ok(())
    }

    /// Hears what threads tell. Whether one of the sessions that have ended was broken.
    fn take_ended(&mut self) -> bool {
        let mut broken = false;
        for (task, stage) in self.ended.take() {
            match (task, stage) {
                (Task::Session(index), Stage::Closes) => self.guests[index].is_to_end(),
                (Task::Session(index), Stage::Ended) => {
                    broken |= self.guests[index].join();
                    self.go_on(index);
                }
                // It was to end from the beginning.
                (Task::Closing(_), Stage::Closes) => {}
                (Task::Closing(index), Stage::Ended) => {
                    if let Some(closing) = self.guests[index].closing.take() {
                        // There is nothing in it that could panic.
                        let _ = closing.join();
                    }
                    self.go_on(index);
                }
            }
        }
        broken
    }

    /// Ends all sessions and waits for them, but not forever.
    fn stop(&mut self) -> io::Result<()> {
        self.manager.stopping();
        for guest in &mut self.guests {
            // No front-end is to connect to a daemon that is leaving, or is to be served any more.
            guest.listener = None;
            guest.leave_connections();
        }
        // What else has a socket is the backend's, which a session that does not end holds.
        sockets::remove_files();
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes())?;
        for guest in &mut self.guests {
            guest.is_to_end();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut tokens = Vec::with_capacity(EVENTS);
        loop {
            self.take_ended();
            if !self.guests.iter().any(Guest::is_served) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            self.look_at_sessions();
            let next = self.next_look().map_or(deadline, |next| next.min(deadline));
            self.wait(Some(next), &mut tokens)?;
            tokens.clear();
            // A second signal changes nothing, and must not stay readable.
            while self.signals.take().is_some() {}
        }
        for guest in self.guests.iter().filter(|guest| guest.is_served()) {
            log::warn!(
                "{}: its session does not end, leaving it",
                guest.options.name
            );
        }
        Ok(())
    }
}

impl Guest {
    /// No front-end will come any more, and nothing is left of those that have.
    fn is_gone(&self) -> bool {
        self.listener.is_none()
            && self.waiting.is_empty()
            && self.session.is_none()
            && self.turned_away.is_empty()
            && self.closing.is_none()
    }

    /// Leaves it to the end of the process to close what is not served: closing may take its time.
    fn leave_connections(&mut self) {
        let left = [&mut self.waiting, &mut self.turned_away].map(std::mem::take);
        std::mem::forget(left);
    }

    fn is_served(&self) -> bool {
        self.session.is_some()
    }

    /// Something has happened on its connection.
    fn stirred(&mut self) {
        if let Some(session) = &mut self.session {
            session.stirred();
        }
    }

    /// Its session is to end, or says that it does.
    fn is_to_end(&mut self) {
        if let Some(session) = &mut self.session {
            session.is_to_end();
        }
    }

    fn next_look(&self) -> Option<Instant> {
        let session = self.session.as_ref().and_then(Served::next_look);
        let closing = self.closing.as_ref().and_then(Served::next_look);
        session.into_iter().chain(closing).min()
    }

    /// Waits for the end of the thread, which has announced it, and logs what came of it. Tells
    /// whether the session was broken.
    fn join(&mut self) -> bool {
        let Some(thread) = self.session.take() else {
            return false;
        };
        let result = thread.join();
        let broken = !matches!(result, Ok(Ok(_)));
        let (name, limit) = (&self.options.name, &self.departures);
        match result {
            Ok(Ok(End::Disconnected)) => limited!(limit, Info, "{name}: front-end left"),
            Ok(Ok(End::Stopped)) => limited!(limit, Debug, "{name}: stopped"),
            Ok(Err(error)) => {
                limited!(limit, Error, "{name}: connection closed: {}", Chain(&error));
            }
            Err(_) => limited!(
                limit,
                Error,
                "{name}: its thread panicked; the other guests go on"
            ),
        }
        broken
    }
}

/// Whether there may be file descriptors in a connection's queue. They are not taken, not even for a
/// moment: closing one may ask a file system that takes its time.
fn may_hold_file_descriptors(stream: &UnixStream) -> bool {
    // No front-end sends bytes out of band. Nobody can look behind one, or at what comes with it.
    if has_any_of(stream, PollFlags::PRI).unwrap_or(true) {
        return true;
    }
    let mut byte = [0; 1];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    // There is no room for them.
    match recvmsg(stream, buffers, &mut RecvAncillaryBuffer::default(), flags) {
        Ok(peeked) => peeked.flags.contains(ReturnFlags::CTRUNC),
        // Nothing is in the queue.
        Err(Errno::AGAIN) => false,
        Err(_) => true,
    }
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> io::Result<()> {
    epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::thread::{self, JoinHandle};

    use vhost_device_backend::{Description, Device, QueueIndex};

    use super::*;
    use crate::Identity;

    /// Guest 0 is fine, guest 1 gets no device, guest 2 a panic.
    struct Troubled;

    struct Nothing;

    #[derive(Debug, clap::Args)]
    struct NoArgs {}

    impl Device for Nothing {
        fn describe(&self) -> Description {
            Description {
                device_id: 0,
                queues: 1,
                features: 0,
            }
        }

        fn handle(&mut self, _: QueueIndex, request: vhost_device_queue::Request<'_>) {
            drop(request);
        }
    }

    impl Backend for Troubled {
        type Args = NoArgs;
        type Device = Nothing;
        type Error = Infallible;

        const IDENTITY: Identity = Identity {
            name: "troubled",
            version: "0",
            about: "",
            device_type: "none",
        };

        fn open(_: NoArgs, _: usize) -> Result<Self, Infallible> {
            Ok(Self)
        }

        fn device(&self, guest: usize) -> io::Result<Nothing> {
            match guest {
                0 => Ok(Nothing),
                1 => Err(io::ErrorKind::NotFound.into()),
                _ => panic!("a device that panics"),
            }
        }
    }

    /// Serves guests that are connected already until the last has gone.
    fn serve_all(guests: usize) -> (Vec<UnixStream>, JoinHandle<String>) {
        let (front_ends, endpoints): (Vec<_>, Vec<_>) = (0..guests)
            .map(|_| UnixStream::pair().unwrap())
            .map(|(theirs, ours)| (theirs, Endpoint::Connected(ours)))
            .unzip();
        let server = thread::spawn(move || {
            let signals = Signals::block().unwrap();
            crate::served::prepare().unwrap();
            let manager = ServiceManager::none();
            let server = Server::new(Troubled, endpoints, signals, manager, Options::default());
            format!("{:?}", server.unwrap().run().unwrap().code)
        });
        (front_ends, server)
    }

    #[test]
    fn test_run_ends_when_the_last_front_end_leaves() {
        let (front_ends, server) = serve_all(1);
        drop(front_ends);
        assert_eq!(server.join().unwrap(), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn test_run_outlives_a_session_that_panics_and_one_that_fails() {
        let (mut front_ends, server) = serve_all(3);
        for broken in front_ends.drain(1..) {
            let mut end = [0; 1];
            let read = io::Read::read(&mut &broken, &mut end);
            assert_eq!(read.unwrap(), 0, "the connection is closed");
        }
        assert!(!server.is_finished());
        drop(front_ends);
        assert_eq!(
            server.join().unwrap(),
            format!("{:?}", ExitCode::from(FAILURE))
        );
    }
}
