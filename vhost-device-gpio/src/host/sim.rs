//! A simulated chip: named lines, wires between them, and signals from outside.
//!
//! An output has the level that it was given. Any other line has the level of the line that it is
//! wired to, if that is an output, or else the level that comes from outside, which is low until
//! a signal or a client of the control socket changes it.
//!
//! A chip is as new with each connection of its guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost_device_backend::Timer;
use vhost_device_daemon::Listener;
use vhost_device_daemon::control::{Client, Gone, MAX_CLIENTS, answer, refusal};

use self::control::Chip;
use super::{Edge, LineNumber, Lines, Watch, no_such_line};
use crate::log::Log;
use crate::wake::{Bundle, Flag};

mod control;

/// How many edges wait for the device. More are dropped, as a kernel drops them: they would only
/// latch what those before them latch.
const MAX_EDGES: usize = 1024;

/// How long clients of the control socket that cannot be taken are left alone: trying again at once
/// would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// How many things are done for the world outside before the device has its turn.
const MAX_WORK: usize = 64;

// The tokens of what wakes a chip; behind the last come those of the clients.
const PENDING: u16 = 0;
const TIMER: u16 = 1;
const LISTENER: u16 = 2;
const FIRST_CLIENT: u16 = 3;

/// What a simulated chip is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// The names of its lines.
    pub names: Vec<String>,
    /// Pairs of lines that are wired together.
    pub loops: Vec<(LineNumber, LineNumber)>,
    /// What comes from outside.
    pub signals: Vec<Signal>,
}

/// A level from outside that changes with time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// The line that it arrives at.
    pub line: LineNumber,
    /// The level changes after each of these times.
    pub delays: Vec<Duration>,
    /// Whether it begins again after the last.
    pub repeats: bool,
}

/// A simulated chip. A clone is the same chip.
#[derive(Clone, Debug)]
pub struct Sim {
    names: Arc<[String]>,
    bundle: Arc<Bundle>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    log: Log,
    names: Arc<[String]>,
    lines: Vec<Line>,
    listener: Option<Arc<Listener>>,
    /// Until when no client is taken, after one could not be.
    rests: Option<Instant>,
    clients: [Option<Player>; MAX_CLIENTS],
    bundle: Arc<Bundle>,
    generators: Vec<Generator>,
    edges: VecDeque<(LineNumber, Edge)>,
    /// Up while there are edges.
    pending: Flag,
    timer: Timer,
}

/// Who plays the world around the chip.
#[derive(Debug)]
struct Player {
    client: Client,
    /// Whether it is told of each change.
    watches: bool,
    /// Its line is being answered: it must not be let go before, however much it has read.
    is_served: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// The level that it drives, if it is an output.
    driven: Option<bool>,
    /// The level from outside.
    outside: bool,
    wired_to: Option<LineNumber>,
    watch: Option<Watch>,
    /// The level when it was last looked at for an edge.
    last: bool,
    /// The hardware fails.
    broken: bool,
}

#[derive(Debug)]
struct Generator {
    signal: Signal,
    step: usize,
    due: Option<Instant>,
}

impl Generator {
    fn new(signal: Signal, now: Instant) -> Self {
        let due = signal.delays.first().map(|delay| now + *delay);
        Self {
            signal,
            step: 0,
            due,
        }
    }

    /// Goes on to the next change; one that is missed is not made up for.
    fn advance(&mut self, now: Instant) {
        self.step += 1;
        if self.signal.repeats && self.step >= self.signal.delays.len() {
            self.step = 0;
        }
        let delay = self.signal.delays.get(self.step);
        self.due = delay.map(|delay| now + *delay);
    }
}

impl Sim {
    /// The chip that `board` describes, with clients that come through `listener`, for the guest
    /// that `log` is about.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(board: &Board, listener: Option<Arc<Listener>>, log: Log) -> io::Result<Self> {
        let mut lines = vec![Line::default(); board.names.len()];
        for &(one, other) in &board.loops {
            for (from, to) in [(one, other), (other, one)] {
                if let Some(line) = lines.get_mut(usize::from(from)) {
                    line.wired_to = Some(to);
                }
            }
        }
        let now = Instant::now();
        let generators = board.signals.iter().cloned();
        let bundle = Arc::new(Bundle::new()?);
        let names: Arc<[String]> = board.names.iter().cloned().collect();
        let state = State {
            log,
            names: Arc::clone(&names),
            lines,
            listener,
            rests: None,
            clients: Default::default(),
            bundle: Arc::clone(&bundle),
            generators: generators
                .map(|signal| Generator::new(signal, now))
                .collect(),
            edges: VecDeque::new(),
            pending: Flag::new()?,
            timer: Timer::new()?,
        };
        bundle.add(&state.pending, PENDING)?;
        bundle.add(&state.timer, TIMER)?;
        if let Some(listener) = &state.listener {
            bundle.add(&**listener, LISTENER)?;
        }
        state.set_timer(now);
        Ok(Self {
            names,
            bundle,
            state: Arc::new(Mutex::new(state)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Poisoned or not, each line is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the level that comes from outside to a line.
    pub fn drive(&self, line: LineNumber, high: bool) {
        self.state().drive(line, high);
    }

    /// The level that the guest drives a line to; `None` when it drives none.
    pub fn driven(&self, line: LineNumber) -> Option<bool> {
        self.state().line(line).ok()?.driven
    }

    /// Whether the edges of a line are looked for.
    pub fn is_watched(&self, line: LineNumber) -> bool {
        self.state()
            .line(line)
            .is_ok_and(|line| line.watch.is_some())
    }

    /// Makes all that is done with a line fail, or work again.
    pub fn set_broken(&self, line: LineNumber, broken: bool) {
        if let Ok(line) = self.state().line(line) {
            line.broken = broken;
        }
    }

    /// Changes a line that works, and looks what comes of it.
    fn change(&self, number: LineNumber, change: impl FnOnce(&mut Line)) -> io::Result<()> {
        let mut state = self.state();
        change(state.working(number)?);
        state.look_for_edges();
        Ok(())
    }
}

impl State {
    fn line(&mut self, number: LineNumber) -> io::Result<&mut Line> {
        let line = self.lines.get_mut(usize::from(number));
        line.ok_or_else(no_such_line)
    }

    fn working(&mut self, number: LineNumber) -> io::Result<&mut Line> {
        let line = self.line(number)?;
        match line.broken {
            true => Err(io::Error::other("the simulated line is broken")),
            false => Ok(line),
        }
    }

    fn level(&self, line: &Line) -> bool {
        let partner = line
            .wired_to
            .and_then(|number| self.lines.get(usize::from(number)));
        line.driven
            .or_else(|| partner.and_then(|partner| partner.driven))
            .unwrap_or(line.outside)
    }

    fn drive(&mut self, line: LineNumber, high: bool) {
        if let Ok(line) = self.line(line) {
            line.outside = high;
        }
        self.look_for_edges();
    }

    /// Sees which lines have changed.
    fn look_for_edges(&mut self) {
        let levels: Vec<bool> = self.lines.iter().map(|line| self.level(line)).collect();
        for ((number, line), level) in (0..).zip(&mut self.lines).zip(levels) {
            if std::mem::replace(&mut line.last, level) == level {
                continue;
            }
            let mut watching = self
                .clients
                .iter_mut()
                .flatten()
                .filter(|p| p.watches)
                .peekable();
            if watching.peek().is_some() {
                let name = control::name(&self.names, number);
                let change = format!("changed {name} {}\n", u8::from(level));
                watching.for_each(|player| player.client.tell(&change));
            }
            let edge = match level {
                true => Edge::Rising,
                false => Edge::Falling,
            };
            let wanted = line.watch.is_some_and(|watch| watch.wants(edge));
            if wanted && self.edges.len() < MAX_EDGES {
                self.edges.push_back((number, edge));
            }
        }
        self.pending.set(!self.edges.is_empty());
        self.flush_clients();
    }

    /// Takes a new client.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let accepted = listener.accept().and_then(Client::new);
        let mut client = match accepted {
            Ok(client) => client,
            // It has left already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                self.log.no_client(error);
                // It is ready still.
                self.bundle.remove(&**listener);
                self.rests = Some(Instant::now() + PAUSE);
                self.set_timer(Instant::now());
                return;
            }
        };
        let slots = (FIRST_CLIENT..).zip(&mut self.clients);
        let Some((token, slot)) = slots.into_iter().find(|(_, slot)| slot.is_none()) else {
            client.answer(&refusal());
            // Gone or not, it is dropped.
            let _ = client.flush();
            return;
        };
        match self.bundle.add(&client, token) {
            Ok(()) => {
                *slot = Some(Player {
                    client,
                    watches: false,
                    is_served: false,
                });
            }
            Err(error) => self.log.no_client(error),
        }
    }

    /// Takes clients again.
    fn take_clients(&mut self, now: Instant) {
        if self.rests.is_none_or(|rests| rests > now) {
            return;
        }
        self.rests = None;
        if let Some(listener) = &self.listener
            && let Err(error) = self.bundle.add(&**listener, LISTENER)
        {
            self.log.no_client(error);
            self.rests = Some(now + PAUSE);
        }
    }

    /// Does what a client says, as far as it takes the answers.
    fn serve(&mut self, token: u16) {
        let slot = usize::from(token.saturating_sub(FIRST_CLIENT));
        let talked = self.talk(slot);
        if let Some(slot) = self.clients.get_mut(slot) {
            match (talked, &mut *slot) {
                (Ok(()), Some(player)) => player.is_served = false,
                _ => *slot = None,
            }
        }
        self.flush_clients();
    }

    fn talk(&mut self, slot: usize) -> Result<(), Gone> {
        // What it took is room for the next answer.
        let player = self.client(slot)?;
        player.is_served = true;
        player.client.flush()?;
        player.client.receive()?;
        while let Some(line) = self.client(slot)?.client.next_line() {
            let mut watches = self.client(slot)?.watches;
            let chip = &mut Chip {
                state: self,
                watches: &mut watches,
            };
            let answer = answer(chip, &line);
            let player = self.client(slot)?;
            player.watches = watches;
            player.client.answer(&answer);
            player.client.flush()?;
        }
        self.client(slot)?.client.flush()
    }

    fn client(&mut self, slot: usize) -> Result<&mut Player, Gone> {
        self.clients
            .get_mut(slot)
            .and_then(Option::as_mut)
            .ok_or(Gone)
    }

    fn flush_clients(&mut self) {
        for (token, slot) in (FIRST_CLIENT..).zip(&mut self.clients) {
            let Some(Player {
                client,
                is_served: false,
                ..
            }) = slot
            else {
                continue;
            };
            match client.flush() {
                Ok(()) => self.bundle.watch(&*client, token, client.listens()),
                Err(Gone) => *slot = None,
            }
        }
    }

    /// Does what one of those that are ready is there for.
    fn work(&mut self, token: u16) {
        match token {
            TIMER => {
                let now = Instant::now();
                self.take_clients(now);
                self.run_generators(now);
            }
            LISTENER => self.accept(),
            PENDING => {}
            client => self.serve(client),
        }
    }

    /// Makes the changes from outside that are due.
    fn run_generators(&mut self, now: Instant) {
        for generator in &mut self.generators {
            if generator.due.is_none_or(|due| due > now) {
                continue;
            }
            generator.advance(now);
            if let Some(line) = self.lines.get_mut(usize::from(generator.signal.line)) {
                line.outside = !line.outside;
            }
        }
        self.set_timer(now);
        self.look_for_edges();
    }

    fn set_timer(&self, now: Instant) {
        let next = self
            .generators
            .iter()
            .filter_map(|generator| generator.due)
            .chain(self.rests)
            .min();
        match next {
            Some(due) => self.timer.arm(due.saturating_duration_since(now)),
            None => self.timer.disarm(),
        }
    }
}

impl Lines for Sim {
    fn count(&self) -> LineNumber {
        // Fits: the command line bounds it (`MAX_LINES`).
        self.names.len() as LineNumber
    }

    fn name(&self, line: LineNumber) -> &str {
        self.names.get(usize::from(line)).map_or("", String::as_str)
    }

    fn set_input(&mut self, line: LineNumber) -> io::Result<()> {
        self.change(line, |line| line.driven = None)
    }

    fn set_output(&mut self, line: LineNumber, high: bool) -> io::Result<()> {
        self.set_value(line, high)
    }

    fn release(&mut self, line: LineNumber) -> io::Result<()> {
        self.watch(line, None)?;
        self.change(line, |line| line.driven = None)
    }

    fn value(&mut self, line: LineNumber) -> io::Result<bool> {
        let mut state = self.state();
        let line = *state.working(line)?;
        Ok(state.level(&line))
    }

    fn set_value(&mut self, line: LineNumber, high: bool) -> io::Result<()> {
        self.change(line, |line| line.driven = Some(high))?;
        let level = u8::from(high);
        ::log::debug!("{}: line {line} is {level}", self.state().log.guest());
        Ok(())
    }

    fn watch(&mut self, line: LineNumber, edges: Option<Watch>) -> io::Result<()> {
        let mut state = self.state();
        state.line(line)?.watch = None;
        state.edges.retain(|(other, _)| *other != line);
        let result = state.working(line).map(|line| line.watch = edges);
        state.look_for_edges();
        result
    }

    fn events(&self) -> BorrowedFd<'_> {
        self.bundle.as_fd()
    }

    fn next_edge(&mut self) -> Option<(LineNumber, Edge)> {
        let mut state = self.state();
        for _ in 0..MAX_WORK {
            if let Some(edge) = state.edges.pop_front() {
                let more = !state.edges.is_empty();
                state.pending.set(more);
                return Some(edge);
            }
            let token = self.bundle.ready()?;
            state.work(token);
        }
        None
    }
}
