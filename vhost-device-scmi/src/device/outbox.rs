//! What the platform has to say of its own accord, and the buffers that the guest gives for it.
//!
//! Messages go out in the order in which they came up, each in the guest's oldest buffer. A
//! notification that waits for a buffer is brought up to date instead of waiting twice (S-10), is
//! left out when the buffer is too small (S-11), and is dropped when too many wait (S-9). A
//! delayed response is never lost (S-12): there are no more of them than there are commands that
//! were accepted, and those are counted.

use std::collections::VecDeque;

use vhost_device_backend::Resume;
use vhost_device_queue::{Kept, Request};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::wire::{ANSWER_HEAD, Header, Status};

/// The most notifications that wait: a guest that subscribes to everything and gives no buffers
/// must not fill the host's memory.
pub(super) const MAX_NOTICES: usize = 1024;

/// What a notification is about: of several about the same, the last one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) protocol: u8,
    pub(super) message: u8,
    /// The resource, as the guest counts.
    pub(super) resource: u32,
    /// The part of it, where there are several.
    pub(super) part: u32,
}

impl Subject {
    /// All of a resource.
    pub(super) fn of(protocol: u8, message: u8, resource: u32) -> Self {
        Self {
            protocol,
            message,
            resource,
            part: 0,
        }
    }
}

#[derive(Debug)]
struct Message {
    /// What it is about; a delayed response is about nothing else.
    subject: Option<Subject>,
    bytes: Vec<u8>,
}

/// A buffer of the event queue.
#[derive(Debug)]
struct Buffer {
    kept: Kept,
    room: usize,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: VecDeque<Message>,
    notices: usize,
    buffers: VecDeque<Buffer>,
}

impl Outbox {
    /// Takes a buffer of the event queue.
    pub(super) fn take_buffer(&mut self, request: Request<'_>) {
        let room = request.writable_len();
        let kept = request.keep();
        self.buffers.push_back(Buffer { kept, room });
    }

    /// Has something to tell.
    pub(super) fn notify(&mut self, subject: Subject, payload: &[u8]) {
        let header = Header::notification(subject.protocol, subject.message);
        let bytes = [&header.0.to_le_bytes(), payload].concat();
        let mut messages = self.messages.iter_mut();
        if let Some(message) = messages.find(|message| message.subject == Some(subject)) {
            message.bytes = bytes;
        } else if self.notices < MAX_NOTICES {
            self.notices += 1;
            self.messages.push_back(Message {
                subject: Some(subject),
                bytes,
            });
        }
    }

    /// Has some words to tell.
    pub(super) fn notify_words<const N: usize>(&mut self, subject: Subject, payload: [u32; N]) {
        self.notify(subject, payload.map(U32::new).as_bytes());
    }

    /// Has the rest of the answer to a command.
    pub(super) fn respond(&mut self, command: Header, status: Status, results: &[u8]) {
        let (header, status) = (command.delayed().0, status as i32);
        let bytes = [&header.to_le_bytes(), &status.to_le_bytes(), results].concat();
        let subject = None;
        self.messages.push_back(Message { subject, bytes });
    }

    /// How many delayed responses wait.
    pub(super) fn responses(&self) -> usize {
        self.messages.len() - self.notices
    }

    /// How many notifications wait.
    #[cfg(test)]
    pub(super) fn notices(&self) -> usize {
        self.notices
    }

    /// Sends what there are buffers for.
    pub(super) fn flush(&mut self, queues: &mut impl Resume) {
        while let Some(message) = self.messages.front_mut()
            && let Some(Buffer { kept, room }) = self.buffers.pop_front()
        {
            if message.bytes.len() > room {
                if message.subject.is_some() {
                    self.buffers.push_front(Buffer { kept, room });
                    self.pop();
                    continue;
                }
                if room >= ANSWER_HEAD {
                    refuse(&mut message.bytes);
                }
            }
            // `None`: the queue has been stopped since, and the buffer is nobody's.
            let Some(mut request) = queues.resume(kept) else {
                continue;
            };
            // Dropped when it has no room for a status either: it goes back with length 0.
            if request.writer().write_all(&message.bytes).is_ok() {
                request.complete();
                self.pop();
            }
        }
    }

    fn pop(&mut self) {
        if let Some(message) = self.messages.pop_front()
            && message.subject.is_some()
        {
            self.notices -= 1;
        }
    }

    /// The driver took the event queue back. What waits goes on waiting.
    pub(super) fn drop_buffers(&mut self) {
        self.buffers.clear();
    }

    /// Nothing is told any more: the driver takes no messages, or begins anew.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.notices = 0;
    }

    /// Drops what waits about a subject, whatever part of it: the guest does not want it any more.
    pub(super) fn withdraw(&mut self, subject: Subject) {
        self.messages.retain(|waiting| {
            let part = waiting.subject.map_or(0, |waiting| waiting.part);
            waiting.subject != Some(Subject { part, ..subject })
        });
        let notices = self.messages.iter();
        self.notices = notices.filter(|other| other.subject.is_some()).count();
    }
}

/// Makes an error of a response that has no room: with one, the status is all (S-13).
fn refuse(bytes: &mut Vec<u8>) {
    bytes.truncate(ANSWER_HEAD);
    if let Some(status) = bytes.get_mut(4..) {
        status.copy_from_slice(&(Status::ProtocolError as i32).to_le_bytes());
    }
}
