//! The SCMI device (VIRTIO 1.4 §5.17): a guest's commands to the platform, and what that has to say.
//!
//! Commands on the command queue are answered at once, each in its own buffer (S-15). Buffers on
//! the event queue are kept until there is something to tell: a notification that the guest has
//! asked for, or the rest of an answer that takes its time.
//!
//! | part | does |
//! |---|---|
//! | `agent` | all protocols of one guest together |
//! | `protocol` | what they share: from a message id to the command that it names |
//! | `base` to `pinctrl` | the commands of one protocol each |
//! | `view` | the resources that a guest sees, and what it was told last of each |
//! | `interval` | times between readings, as they are written |
//! | `rounding` | rates and intervals that a guest wants, and those that there are |
//! | `outbox` | what waits for a buffer of the event queue |
//! | `wire` | headers, statuses, names, lists |

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use vhost_device_backend::{
    Description, Device, QueueIndex, Queues, Refused, Resume, TURN, Timer, limited,
};
use vhost_device_queue::Request;

use self::agent::Agent;
pub use self::agent::Logs;
use self::outbox::Outbox;
use self::protocol::Call;
use self::wire::{
    ANSWER_HEAD, Arguments, F_P2A_CHANNELS, HEADER, Header, MAX_ARGUMENTS, Results, Status,
};
use crate::host::Guest;
use crate::hub::{Hub, Inbox};

mod agent;
mod base;
mod clock;
mod interval;
mod outbox;
mod performance;
mod pinctrl;
mod power;
mod powercap;
mod protocol;
mod reset;
mod rounding;
mod sensor;
mod system;
mod view;
mod voltage;
mod wire;

/// The position of the news in the list of event sources; the other one is the timer.
const NEWS: usize = 0;

/// The SCMI device of one connection.
#[derive(Debug)]
pub struct Scmi {
    /// Whose it is, for the log.
    guest: String,
    hub: Arc<Hub>,
    agent: Agent,
    inbox: Inbox,
    outbox: Outbox,
    /// Runs until the next thing that is due.
    timer: Timer,
    /// The answer that is being made.
    answer: Vec<u8>,
    logs: Logs,
}

impl Scmi {
    /// A device that gives `guest` its part of the platform behind `hub`.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(hub: &Arc<Hub>, guest: Guest, logs: Logs) -> io::Result<Self> {
        let name = format!("guest {guest}");
        Ok(Self {
            agent: Agent::new(hub, guest, name.clone(), logs.clone()),
            inbox: hub.inbox(guest)?,
            guest: name,
            hub: Arc::clone(hub),
            outbox: Outbox::default(),
            timer: Timer::new()?,
            answer: Vec::new(),
            logs,
        })
    }

    /// Answers a command.
    fn take_command(&mut self, mut request: Request<'_>) {
        let room = request.writable_len();
        let (reader, writer) = request.split();
        let mut header = [0; HEADER];
        if reader.read_exact(&mut header).is_err() || room < ANSWER_HEAD {
            // Not done, as nobody could be told what came of it.
            let line = format_args!("{}: a command has no header, or no answer", self.guest);
            limited!(self.logs.no_room, Warn, "{line}");
            return;
        }
        let header = Header(u32::from_le_bytes(header));
        self.answer.clear();
        self.answer.extend_from_slice(&header.0.to_le_bytes());
        self.answer.extend_from_slice(&[0; ANSWER_HEAD - HEADER]);
        let mut arguments = [0; MAX_ARGUMENTS];
        // `None` when there are more than any command has.
        let place = arguments.get_mut(..reader.remaining());
        let arguments = place.and_then(|arguments| {
            reader.read_exact(arguments).ok()?;
            Some(Arguments(arguments))
        });
        let mut results = Results::new(&mut self.answer, room - ANSWER_HEAD);
        let outbox = &mut self.outbox;
        let status = arguments.map_or(Status::ProtocolError, |arguments| {
            let call = Call {
                header,
                arguments,
                results: &mut results,
                outbox,
            };
            self.agent.command(&self.hub, call)
        });
        if status != Status::Success {
            // With an error, the status is all (S-5).
            self.answer.truncate(ANSWER_HEAD);
        }
        if let Some(place) = self.answer.get_mut(HEADER..ANSWER_HEAD) {
            place.copy_from_slice(&(status as i32).to_le_bytes());
        }
        if writer.write_all(&self.answer).is_ok() {
            request.complete();
        }
    }

    /// A batch is over: tells what came of it.
    fn finish_batch(&mut self, queues: &mut impl Resume) {
        self.outbox.flush(queues);
        self.set_timer();
    }

    /// An event source is readable.
    fn attend(&mut self, source: usize, queues: &mut impl Resume) {
        if source == NEWS {
            let news = self.inbox.take();
            self.agent.tell(&self.hub, news, &mut self.outbox);
        } else if self.timer.take() {
            let start = Instant::now();
            // What takes longer than a turn may is left for the next.
            while self.agent.work(&self.hub, start, &mut self.outbox) && start.elapsed() < TURN {}
        }
        self.finish_batch(queues);
    }

    fn set_timer(&self) {
        match self.agent.due() {
            Some(due) => self
                .timer
                .arm(due.saturating_duration_since(Instant::now())),
            None => self.timer.disarm(),
        }
    }
}

impl Device for Scmi {
    // A sensor may be behind a bus that is stuck.
    const WAITS: bool = true;

    fn describe(&self) -> Description {
        Description {
            device_id: wire::DEVICE_ID,
            queues: 2,
            features: F_P2A_CHANNELS,
        }
    }

    fn negotiated(&mut self, features: u64) -> Result<(), Refused> {
        self.agent.set_p2a(features & F_P2A_CHANNELS != 0);
        Ok(())
    }

    fn handle(&mut self, queue: QueueIndex, request: Request<'_>) {
        match queue {
            wire::COMMAND_QUEUE => self.take_command(request),
            _ => self.outbox.take_buffer(request),
        }
    }

    fn queue_drained(&mut self, _queue: QueueIndex, queues: &mut Queues<'_>) {
        self.finish_batch(queues);
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.inbox.as_fd(), self.timer.as_fd()]
    }

    fn on_event(&mut self, source: usize, queues: &mut Queues<'_>) {
        self.attend(source, queues);
    }

    fn queue_stopped(&mut self, queue: QueueIndex) {
        if queue != wire::COMMAND_QUEUE {
            self.outbox.drop_buffers();
        }
    }

    fn reset(&mut self) {
        self.agent.reset(&self.hub);
        self.outbox.clear();
        self.set_timer();
    }
}

#[cfg(test)]
mod tests;
