//! What the user is told of a guest and its lines: one line of a kind a second.

use std::fmt::Display;
use std::sync::Arc;

use vhost_device_backend::{RateLimit, limited};
use vhost_device_daemon::Chain;

use crate::device::Failure;

/// The log of one guest. A clone is the same log, with the same limits: it outlasts connections, as
/// a guest may reconnect thousands of times a second, and have hundreds of lines each time.
#[derive(Clone, Debug)]
pub struct Log {
    guest: Arc<str>,
    no_room: RateLimit,
    refused: RateLimit,
    failed: RateLimit,
    lost: RateLimit,
    not_safe: RateLimit,
    no_client: RateLimit,
}

impl Log {
    /// The log of `guest`.
    pub fn new(guest: &str) -> Self {
        Self {
            guest: guest.into(),
            no_room: RateLimit::default(),
            refused: RateLimit::default(),
            failed: RateLimit::default(),
            lost: RateLimit::default(),
            not_safe: RateLimit::default(),
            no_client: RateLimit::default(),
        }
    }

    /// Whose it is.
    pub(crate) fn guest(&self) -> &str {
        &self.guest
    }

    /// An event buffer came without room for a status.
    pub(crate) fn no_room(&self) {
        limited!(
            self.no_room,
            Warn,
            "{}: an event buffer without room for a status goes back empty",
            self.guest
        );
    }

    /// Something was not done. What the guest has asked for wrongly is a kind of its own: it must
    /// not hide what the hardware does.
    pub(crate) fn failed(&self, failure: &Failure) {
        let limit = match failure {
            Failure::Host(..) => &self.failed,
            _ => &self.refused,
        };
        limited!(limit, Warn, "{}: {}", self.guest, Chain(failure));
    }

    /// The edges of a line cannot be read any more.
    pub(crate) fn lost_edges(&self, line: impl Display, error: impl Display) {
        limited!(
            self.lost,
            Error,
            "{}: {line}: its edges cannot be read any more, and it raises no interrupts until its \
             guest connects again: {error}",
            self.guest
        );
    }

    /// A line is not at its safe value while its guest is away.
    pub(crate) fn not_safe(&self, error: impl Display) {
        limited!(self.not_safe, Error, "{}: {error}", self.guest);
    }

    /// A client of the simulator's control socket was not taken.
    pub(crate) fn no_client(&self, error: impl Display) {
        limited!(
            self.no_client,
            Warn,
            "{}: the control socket cannot take a client: {error}",
            self.guest
        );
    }
}
