//! The main loop: accepts front-ends, gives each guest a thread, ends them all on a signal.
//!
//! The main thread only waits: for a signal, for a front-end on a listener and for the end of a
//! session. While a guest is served, a front-end that comes to its listener is told of in the log,
//! and waits in the backlog until the old session has given everything up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use vhost_device_backend::{End, Limits, Logs, Options, RateLimit, limited, serve};

use crate::notify::ServiceManager;
use crate::served::{Served, Stage};
use crate::signals::{Signal, Signals};
use crate::sockets::{self, Endpoint, Listener};
use crate::{Backend, Chain, FAILURE};

/// Epoll tokens; a guest's listener has the guest's number behind [`FIRST_GUEST`].
const SIGNALS: u64 = 0;
const ENDED: u64 = 1;
const FIRST_GUEST: u64 = 2;
/// A guest's connection has the guest's number behind this.
const FIRST_SESSION: u64 = 1 << 32;

/// How many events are taken from the kernel at once.
const EVENTS: usize = 64;

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
    state: State,
    arrivals: RateLimit,
    departures: RateLimit,
    others: RateLimit,
    failures: RateLimit,
}

enum State {
    /// A front-end is there already.
    Arrived(UnixStream),
    /// The listener is watched.
    Listening,
    /// The listener is left alone until then, and so is a front-end that could not be served.
    Resting(Instant, Option<UnixStream>),
    /// A thread serves a front-end. The listener, if there is one, is watched by edges.
    Serving(Served<Result<End, SessionError>>),
    /// No front-end will come any more.
    Gone,
}

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot make its device")]
    Device(#[source] io::Error),
    #[error(transparent)]
    Protocol(#[from] vhost_device_backend::Error),
}

/// Tells the main loop which sessions have ended.
struct Ended {
    wake: Arc<OwnedFd>,
    sender: Sender<(usize, Stage)>,
    receiver: Receiver<(usize, Stage)>,
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

    /// Tells of a guest's session, on its thread.
    fn teller(&self, guest: usize) -> impl Fn(Stage) + Send + 'static {
        let wake = Arc::clone(&self.wake);
        let sender = self.sender.clone();
        move |stage| {
            // Neither fails while the main loop is there, and without it nobody asks.
            let _ = sender.send((guest, stage));
            let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
        }
    }

    /// What sessions have told since the last call.
    fn take(&self) -> Vec<(usize, Stage)> {
        // Emptied first: a session that tells something from here on wakes the loop again.
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
        let (listener, state) = match endpoint {
            Endpoint::Listener(listener) => {
                watch(&self.epoll, &listener, FIRST_GUEST + index as u64)?;
                (Some(listener), State::Listening)
            }
            Endpoint::Connected(stream) => (None, State::Arrived(stream)),
        };
        self.guests.push(Guest {
            options: Options {
                name: format!("guest {index}"),
                logs: Logs::default(),
                ..self.session.clone()
            },
            listener,
            state,
            arrivals: RateLimit::default(),
            departures: RateLimit::default(),
            others: RateLimit::default(),
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
            std::mem::forget(std::mem::replace(&mut guest.state, State::Gone));
        }
        ending
    }

    fn serve(&mut self) -> io::Result<Ending> {
        self.serve_arrived();
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
                    session if session >= FIRST_SESSION => {
                        self.guests[(session - FIRST_SESSION) as usize].stirred();
                    }
                    guest => self.accept((guest - FIRST_GUEST) as usize)?,
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

    fn serve_arrived(&mut self) {
        for index in 0..self.guests.len() {
            match std::mem::replace(&mut self.guests[index].state, State::Gone) {
                State::Arrived(stream) => self.spawn(index, stream),
                state => self.guests[index].state = state,
            }
        }
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
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        tokens.extend(events.iter().map(|event| event.data.u64()));
        Ok(())
    }

    fn end_of_rest(&self) -> Option<Instant> {
        self.guests
            .iter()
            .filter_map(|guest| match guest.state {
                State::Resting(until, _) => Some(until),
                _ => None,
            })
            .min()
    }

    /// When a session is to be looked at.
    fn next_look(&self) -> Option<Instant> {
        self.guests.iter().filter_map(Guest::next_look).min()
    }

    /// Interrupts sessions that do not move although they should.
    fn look_at_sessions(&mut self) {
        let now = Instant::now();
        for guest in &mut self.guests {
            if let State::Serving(session) = &mut guest.state {
                session.look(now);
            }
        }
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        for index in 0..self.guests.len() {
            let State::Resting(until, waiting) = &mut self.guests[index].state else {
                continue;
            };
            if *until <= now {
                match waiting.take() {
                    Some(stream) => self.spawn(index, stream),
                    None => self.listen(index),
                }
            }
        }
    }

    /// Watches the listener of a guest, or gives the guest up if it has none.
    fn listen(&mut self, index: usize) {
        let Some(listener) = &self.guests[index].listener else {
            self.guests[index].state = State::Gone;
            return;
        };
        // By levels: a front-end that came meanwhile is seen now.
        match self.watch_listener(index, listener, EventFlags::IN) {
            Ok(()) => self.guests[index].state = State::Listening,
            Err(error) => self.rest(index, &error, None),
        }
    }

    /// Changes how the listener of a guest is watched.
    fn watch_listener(
        &self,
        index: usize,
        listener: &Listener,
        flags: EventFlags,
    ) -> io::Result<()> {
        let token = EventData::new_u64(FIRST_GUEST + index as u64);
        epoll::modify(&self.epoll, listener, token, flags)?;
        Ok(())
    }

    fn accept(&mut self, index: usize) -> io::Result<()> {
        let guest = &self.guests[index];
        let Some(listener) = &guest.listener else {
            return Ok(());
        };
        match &guest.state {
            State::Listening => {}
            State::Serving(_) => {
                limited!(
                    guest.others,
                    Warn,
                    "{}: another front-end has come to {}, and waits until the one that is served \
                     has left",
                    guest.options.name,
                    listener.name(),
                );
                return Ok(());
            }
            State::Arrived(_) | State::Resting(..) | State::Gone => return Ok(()),
        }
        match listener.accept() {
            Ok(stream) => {
                // By edges: each front-end that comes is told of once, those of the backlog too.
                self.watch_listener(index, listener, EventFlags::IN | EventFlags::ET)?;
                self.spawn(index, stream);
            }
            // The front-end left before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                // No new edge is looked at while it rests.
                self.watch_listener(index, listener, EventFlags::ET)?;
                self.rest(index, &error, None);
            }
        }
        Ok(())
    }

    /// Leaves a guest alone for a while, with its front-end if that has come.
    fn rest(&mut self, index: usize, error: &io::Error, waiting: Option<UnixStream>) {
        let guest = &mut self.guests[index];
        limited!(
            guest.failures,
            Error,
            "{}: cannot take its front-end: {error}",
            guest.options.name
        );
        guest.state = State::Resting(Instant::now() + REST, waiting);
    }

    /// Starts the session of a guest on a thread of its own, now or when the system has one.
    fn spawn(&mut self, index: usize, stream: UnixStream) {
        let tell = self.ended.teller(index);
        let guest = &self.guests[index];
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
            Err((error, stream)) => return self.rest(index, &error, Some(stream)),
        };
        // By edges: messages are for the session to read. Without it a session may sleep for long.
        let token = EventData::new_u64(FIRST_SESSION + index as u64);
        let edges = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        let watched = served.watch(|socket| Ok(epoll::add(&self.epoll, socket, token, edges)?));
        let guest = &mut self.guests[index];
        guest.state = State::Serving(served);
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
    }

    /// Hears what sessions tell. Whether one of those that have ended was broken.
    fn take_ended(&mut self) -> bool {
        let mut broken = false;
        for (guest, stage) in self.ended.take() {
            match stage {
                Stage::Closes => self.guests[guest].is_to_end(),
                Stage::Ended => broken |= self.ended(guest),
            }
        }
        broken
    }

    /// Clears up after the session of a guest, and watches its listener again. Tells whether it
    /// was broken.
    fn ended(&mut self, index: usize) -> bool {
        let broken = self.guests[index].join();
        self.listen(index);
        broken
    }

    /// Ends all sessions and waits for them, but not forever.
    fn stop(&mut self) -> io::Result<()> {
        self.manager.stopping();
        for guest in &mut self.guests {
            // No front-end is to connect to a daemon that is leaving.
            guest.listener = None;
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
    fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    fn is_served(&self) -> bool {
        matches!(self.state, State::Serving(_))
    }

    /// Something has happened on its connection.
    fn stirred(&mut self) {
        if let State::Serving(session) = &mut self.state {
            session.stirred();
        }
    }

    /// Its session is to end, or says that it does.
    fn is_to_end(&mut self) {
        if let State::Serving(session) = &mut self.state {
            session.is_to_end();
        }
    }

    fn next_look(&self) -> Option<Instant> {
        match &self.state {
            State::Serving(session) => session.next_look(),
            _ => None,
        }
    }

    /// Waits for the end of the thread, which has announced it, and logs what came of it. Tells
    /// whether the session was broken.
    fn join(&mut self) -> bool {
        let State::Serving(thread) = std::mem::replace(&mut self.state, State::Gone) else {
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
