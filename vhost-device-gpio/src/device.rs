//! The GPIO device (VIRTIO 1.4 §5.18): lines that a guest reads and drives, and interrupts.
//!
//! Requests on the request queue are answered at once. Buffers on the event queue are kept until
//! the line that they are for has an interrupt; a buffer unmasks its line, and its return masks
//! it again.
//!
//! A request may return a buffer of the other queue (`SET_IRQ_TYPE` of `NONE`, above all). That
//! can be done only when the batch is over, so such a request is put aside until then, with all
//! that come behind it, and the buffer goes back before the request is answered.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use vhost_device_backend::{Description, Device, QueueIndex, Queues, Refused, Resume, TURN, Timer};
use vhost_device_queue::{Kept, Request, Short, Writer};
use zerocopy::IntoBytes;

use self::line::{Line, Returned};
use self::wire::{Command, Direction, EventRequest, IrqStatus, RequestHeader, Response, Trigger};
use crate::host::{LineNumber, Lines};
use crate::log::Log;

mod line;
mod wire;

/// How many edges are taken before the session's other business has its turn.
const MAX_EDGES: usize = 64;

/// How many requests that were put aside are answered before that.
const MAX_DONE: usize = 16;

/// The position of the host's edges in the list of event sources; the other one is the timer.
const HOST_EVENTS: usize = 0;

/// The GPIO device of one connection.
#[derive(Debug)]
pub struct Gpio {
    host: Box<dyn Lines>,
    config: wire::Config,
    names: Vec<u8>,
    lines: Vec<Line>,
    /// `VIRTIO_GPIO_F_IRQ` was negotiated.
    interrupts: bool,
    /// Requests for the end of the batch, in order.
    deferred: VecDeque<Deferred>,
    /// Runs while some of them are left over from a turn.
    timer: Timer,
    /// Event buffers that go back as soon as there are queues to give them back through.
    returned: Vec<Returned>,
    log: Log,
}

/// A request that was put aside, read already: the driver may change it meanwhile.
#[derive(Debug)]
struct Deferred {
    kept: Kept,
    command: Command,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Short(Response),
    Names,
}

/// Why the device answers with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("refused: there is no line {0}")]
    NoLine(LineNumber),
    #[error("refused: a request that the specification does not know")]
    Unknown,
    #[error("refused: a request without room for its answer")]
    NoRoom,
    #[error("refused: interrupts were not negotiated")]
    NoInterrupts,
    #[error("refused: line {0} is an output and cannot raise interrupts")]
    Output(LineNumber),
    #[error("refused: line {0} raises interrupts and cannot be an output")]
    Armed(LineNumber),
    #[error("refused: no line has a name")]
    NoNames,
    #[error("the host cannot {1} line {0}")]
    Host(LineNumber, &'static str, #[source] io::Error),
}

impl Gpio {
    /// A device that gives the lines of `host` to the guest that `log` is about.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(host: Box<dyn Lines>, log: Log) -> io::Result<Self> {
        let count = host.count();
        let names = wire::names(&*host);
        Ok(Self {
            config: wire::Config::new(count, &names),
            lines: (0..count).map(|_| Line::default()).collect(),
            names,
            host,
            interrupts: false,
            deferred: VecDeque::new(),
            timer: Timer::new()?,
            returned: Vec::new(),
            log,
        })
    }

    /// Answers a request of the request queue, or puts it aside for the end of the batch.
    fn take_request(&mut self, mut request: Request<'_>) {
        let header = request.reader().read_obj::<RequestHeader>();
        let mut command = header.map_or(Command::Unknown, Command::from);
        if request.writable_len() < self.answer_len(command) {
            // Not done, as nobody could be told what came of it.
            command = Command::NoRoom;
        }
        if !self.deferred.is_empty() || self.returns_a_buffer(command) {
            let kept = request.keep();
            self.deferred.push_back(Deferred { kept, command });
            return;
        }
        let answer = self.answer(command);
        self.reply(request, answer);
    }

    /// How long the answer is when all is well.
    fn answer_len(&self, command: Command) -> usize {
        match command {
            Command::Names if !self.names.is_empty() => 1 + self.names.len(),
            _ => size_of::<Response>(),
        }
    }

    /// Whether a buffer that is held may go back for this.
    fn returns_a_buffer(&self, command: Command) -> bool {
        let (Command::SetDirection(number, _) | Command::SetTrigger(number, _)) = command else {
            return false;
        };
        self.lines
            .get(usize::from(number))
            .is_some_and(Line::holds_a_buffer)
    }

    /// Answers what was put aside, now that buffers can go back. Each goes before the answer to
    /// the request that it goes back for. What takes longer than a turn may is left for the next:
    /// a chip may be slow, and there may be as many requests as the queue is long.
    fn finish_batch(&mut self, queues: &mut impl Resume) {
        let start = Instant::now();
        for _ in 0..MAX_DONE {
            if start.elapsed() >= TURN {
                break;
            }
            let Some(Deferred { kept, command }) = self.deferred.pop_front() else {
                break;
            };
            let answer = self.answer(command);
            self.return_buffers(queues);
            if let Some(request) = queues.resume(kept) {
                self.reply(request, answer);
            }
        }
        self.return_buffers(queues);
        if !self.deferred.is_empty() {
            self.timer.arm(Duration::ZERO);
        }
    }

    /// An event source is readable.
    fn attend(&mut self, source: usize, queues: &mut impl Resume) {
        if source == HOST_EVENTS {
            self.take_edges();
            self.return_buffers(queues);
        } else if self.timer.take() {
            self.finish_batch(queues);
        }
    }

    fn return_buffers(&mut self, queues: &mut impl Resume) {
        for Returned { kept, status } in self.returned.drain(..) {
            if let Some(request) = queues.resume(kept) {
                return_buffer(request, status);
            }
        }
    }

    fn reply(&mut self, mut request: Request<'_>, answer: Answer) {
        if write(request.writer(), answer, &self.names).is_ok() {
            request.complete();
        }
    }

    fn answer(&mut self, command: Command) -> Answer {
        self.execute(command).unwrap_or_else(|failure| {
            self.log.failed(&failure);
            Answer::Short(Response::ERR)
        })
    }

    fn execute(&mut self, command: Command) -> Result<Answer, Failure> {
        let value = match command {
            Command::Names if self.names.is_empty() => return Err(Failure::NoNames),
            Command::Names => return Ok(Answer::Names),
            // The enum's numbers are the specification's.
            Command::GetDirection(number) => self.line(number)?.direction as u8,
            Command::SetDirection(number, Direction::None) => self.disuse(number)?,
            Command::SetDirection(number, Direction::In) => self.make_input(number)?,
            Command::SetDirection(number, Direction::Out) => self.make_output(number)?,
            Command::GetValue(number) => self.read(number)?,
            Command::SetValue(number, high) => self.write_level(number, high)?,
            Command::SetTrigger(number, trigger) => self.set_trigger(number, trigger)?,
            Command::Unknown => return Err(Failure::Unknown),
            Command::NoRoom => return Err(Failure::NoRoom),
        };
        Ok(Answer::Short(Response::ok(value)))
    }

    fn line(&mut self, number: LineNumber) -> Result<&mut Line, Failure> {
        self.lines
            .get_mut(usize::from(number))
            .ok_or(Failure::NoLine(number))
    }

    /// `SET_DIRECTION` to `NONE`: all that is known of the line is forgotten, even when the host
    /// fails.
    fn disuse(&mut self, number: LineNumber) -> Result<u8, Failure> {
        let line = std::mem::take(self.line(number)?);
        self.returned.extend(line.into_buffer());
        self.host
            .release(number)
            .map_err(|error| Failure::Host(number, "release", error))?;
        Ok(0)
    }

    fn make_input(&mut self, number: LineNumber) -> Result<u8, Failure> {
        if self.line(number)?.direction != Direction::In {
            self.host
                .set_input(number)
                .map_err(|error| Failure::Host(number, "make an input of", error))?;
            self.line(number)?.direction = Direction::In;
        }
        Ok(0)
    }

    fn make_output(&mut self, number: LineNumber) -> Result<u8, Failure> {
        let line = self.line(number)?;
        if line.trigger().is_some() {
            return Err(Failure::Armed(number));
        }
        let high = line.value;
        if line.direction != Direction::Out {
            self.host
                .set_output(number, high)
                .map_err(|error| Failure::Host(number, "make an output of", error))?;
            self.line(number)?.direction = Direction::Out;
        }
        Ok(0)
    }

    fn read(&mut self, number: LineNumber) -> Result<u8, Failure> {
        self.line(number)?;
        let level = self.host.value(number);
        level
            .map(u8::from)
            .map_err(|error| Failure::Host(number, "read", error))
    }

    fn write_level(&mut self, number: LineNumber, high: bool) -> Result<u8, Failure> {
        if self.line(number)?.direction == Direction::Out {
            self.host
                .set_value(number, high)
                .map_err(|error| Failure::Host(number, "set", error))?;
        }
        self.line(number)?.value = high;
        Ok(0)
    }

    fn set_trigger(&mut self, number: LineNumber, trigger: Option<Trigger>) -> Result<u8, Failure> {
        if !self.interrupts {
            return Err(Failure::NoInterrupts);
        }
        let line = self.line(number)?;
        if trigger.is_some() && line.direction == Direction::Out {
            return Err(Failure::Output(number));
        }
        let watched = line.trigger().is_some();
        // Until the host watches it, it is disabled: what was latched is gone.
        line.disable();
        let watch = trigger.map(Trigger::watch);
        let result = match watched || watch.is_some() {
            true => self.host.watch(number, watch),
            false => Ok(()),
        };
        let line = self.line(number)?;
        match (trigger, result) {
            (Some(trigger), Ok(())) => line.enable(trigger),
            (_, result) => {
                let buffer = line.take_buffer(IrqStatus::Invalid);
                self.returned.extend(buffer);
                result.map_err(|error| Failure::Host(number, "watch", error))?;
            }
        }
        self.look_at_level(number);
        Ok(0)
    }

    /// Takes a buffer of the event queue: it unmasks its line.
    fn take_buffer(&mut self, mut request: Request<'_>) {
        if request.writable_len() == 0 {
            self.log.no_room();
            return;
        }
        let number = request.reader().read_obj::<EventRequest>();
        let number = number.map(|event| event.line.get()).ok();
        match number.and_then(|number| self.unmask(number)) {
            Some(line) => line.hold(request.keep()),
            None => {
                let status = number.map_or(IrqStatus::Invalid, |number| self.status(number));
                return_buffer(request, status);
            }
        }
    }

    /// The line to hold a buffer for, if there is nothing to answer it with now.
    fn unmask(&mut self, number: LineNumber) -> Option<&mut Line> {
        let active = self.is_active(number);
        let line = self.lines.get_mut(usize::from(number))?;
        (line.wants_a_buffer() && !line.is_latched() && !active).then_some(line)
    }

    /// What a buffer that is not held goes back with.
    fn status(&mut self, number: LineNumber) -> IrqStatus {
        match self.lines.get_mut(usize::from(number)) {
            Some(line) if line.wants_a_buffer() => {
                line.unlatch();
                IrqStatus::Valid
            }
            _ => IrqStatus::Invalid,
        }
    }

    /// Whether a line that wants a buffer has the level that raises its interrupt.
    fn is_active(&mut self, number: LineNumber) -> bool {
        let Some(line) = self.lines.get(usize::from(number)) else {
            return false;
        };
        let Some(level) = line.trigger().and_then(Trigger::level) else {
            return false;
        };
        match self.host.value(number) {
            Ok(high) => high == level,
            Err(error) => {
                self.log.failed(&Failure::Host(number, "read", error));
                false
            }
        }
    }

    /// Raises the interrupt of a line whose buffer waits for the level that it has.
    fn look_at_level(&mut self, number: LineNumber) {
        let holds = |line: &Line| line.holds_a_buffer();
        let waits = self.lines.get(usize::from(number)).is_some_and(holds);
        if waits
            && self.is_active(number)
            && let Some(line) = self.lines.get_mut(usize::from(number))
        {
            self.returned.extend(line.take_buffer(IrqStatus::Valid));
        }
    }

    /// Takes the edges that have come.
    fn take_edges(&mut self) {
        let start = Instant::now();
        for _ in 0..MAX_EDGES {
            // A level is read for each, from a chip that may be slow.
            if start.elapsed() >= TURN {
                break;
            }
            let Some((number, edge)) = self.host.next_edge() else {
                break;
            };
            let Some(line) = self.lines.get_mut(usize::from(number)) else {
                continue;
            };
            self.returned.extend(line.edge(edge));
            self.look_at_level(number);
        }
    }

    /// The event queue is about to stop. Buffers behind which one was answered cannot be taken
    /// again by whoever resumes, and would go back with length 0, which Linux's driver does not
    /// expect: the line would have no interrupts any more. One that is INVALID it sends again.
    fn return_what_cannot_be_resumed(&mut self, queues: &mut impl Resume) {
        for line in &mut self.lines {
            if line.buffer().is_some_and(|kept| !queues.would_rewind(kept)) {
                self.returned.extend(line.take_buffer(IrqStatus::Invalid));
            }
        }
        self.return_buffers(queues);
    }

    /// Forgets all lines; the host has them back as they were at first.
    fn forget(&mut self) {
        self.deferred.clear();
        self.timer.disarm();
        self.returned.clear();
        for (number, line) in (0..).zip(&mut self.lines) {
            let used = line.is_used();
            *line = Line::default();
            if used && let Err(error) = self.host.release(number) {
                self.log.failed(&Failure::Host(number, "release", error));
            }
        }
    }

    /// Without interrupts there are no events.
    fn disable_interrupts(&mut self) {
        for (number, line) in (0..).zip(&mut self.lines) {
            if line.trigger().is_some() {
                line.disable();
                self.returned.extend(line.take_buffer(IrqStatus::Invalid));
                // An edge that comes nevertheless finds the line disabled.
                if let Err(error) = self.host.watch(number, None) {
                    self.log.failed(&Failure::Host(number, "watch", error));
                }
            }
        }
    }
}

/// Writes an answer; an error in as much room as there is, which may be none.
fn write(writer: &mut Writer<'_>, answer: Answer, names: &[u8]) -> Result<(), Short> {
    match answer {
        Answer::Names => {
            writer.write_obj(&Response::ok(0).status)?;
            writer.write_all(names)
        }
        Answer::Short(response) => {
            let bytes = response.as_bytes();
            let room = writer.remaining().min(bytes.len());
            writer.write_all(bytes.get(..room).unwrap_or(bytes))
        }
    }
}

/// There was room for a status when the buffer was taken.
fn return_buffer(mut request: Request<'_>, status: IrqStatus) {
    if request.writer().write_obj(&status).is_ok() {
        request.complete();
    }
}

impl Device for Gpio {
    // A chip may itself be behind a bus that is stuck.
    const WAITS: bool = true;
    // An interrupt's buffer waits for its line, and must not make those of other lines wait.
    const ANSWERS_IN_ORDER: bool = false;

    fn describe(&self) -> Description {
        Description {
            device_id: wire::DEVICE_ID,
            queues: 2,
            features: wire::F_IRQ,
        }
    }

    fn config(&self) -> &[u8] {
        self.config.as_bytes()
    }

    fn negotiated(&mut self, features: u64) -> Result<(), Refused> {
        self.interrupts = features & wire::F_IRQ != 0;
        if !self.interrupts {
            self.disable_interrupts();
        }
        Ok(())
    }

    fn handle(&mut self, queue: QueueIndex, request: Request<'_>) {
        match queue {
            wire::REQUEST_QUEUE => self.take_request(request),
            _ => self.take_buffer(request),
        }
    }

    fn queue_drained(&mut self, _queue: QueueIndex, queues: &mut Queues<'_>) {
        self.finish_batch(queues);
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.host.events(), self.timer.as_fd()]
    }

    fn on_event(&mut self, source: usize, queues: &mut Queues<'_>) {
        self.attend(source, queues);
    }

    fn queue_stopping(&mut self, queue: QueueIndex, queues: &mut Queues<'_>) {
        if queue != wire::REQUEST_QUEUE {
            self.return_what_cannot_be_resumed(queues);
        }
    }

    fn queue_stopped(&mut self, queue: QueueIndex) {
        match queue {
            wire::REQUEST_QUEUE => self.deferred.clear(),
            _ => {
                self.returned.clear();
                self.lines.iter_mut().for_each(Line::drop_buffer);
            }
        }
    }

    fn reset(&mut self) {
        self.forget();
        self.interrupts = false;
    }
}

#[cfg(test)]
mod tests;
