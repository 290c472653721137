//! Requests in flight, in memory that outlives the device (vhost-user "Inflight I/O tracking").
//!
//! The front-end keeps a region in which a device notes what it has taken and not yet answered. A
//! device that dies, wherever it is killed, is followed by one that finds in it what is to be done
//! again: all that was taken and not answered, in the order in which it was taken, before anything
//! new. What was answered is not done again.
//!
//! | step | what is stored, in this order |
//! |---|---|
//! | take | what the request is; then that it is in flight |
//! | publish | which requests the batch has; then the driver is shown; then that they are not in flight; then that the batch is done |
//! | recover | a batch that was shown is done, one that was not is forgotten; what is in flight is collected |
//!
//! Of each step one store decides, and the stores around it can be done again or taken back. A
//! process that is killed has made its stores up to one instruction and none after it, in the
//! order of the program: only the compiler must not change that. All of them are stores with
//! release, none of which passes the one before.
//!
//! The region is read when a queue begins and only written after that: it is another party's
//! memory, as hostile as the guest's. What was read is bounded by the size of the ring and checked.
//! Without a region none of this costs more than a branch.
//!
//! Where a front-end wants it (`VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT`), requests that are
//! kept when a queue stops stay in the region; else the region is left empty, as the specification
//! demands it.

mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::area::Area;
use crate::chain::{Chain, ChainError};
use crate::log::QueueLog;
use crate::memory::{GuestMemory, Mapping};
use crate::ring::{Config, Kind, MAX_QUEUE_SIZE, RingError, Ticket};

/// The parts of the region, one a queue, have a multiple of this size. The specification does not
/// say so; every back-end does it.
const ALIGNMENT: usize = 64;

/// `version` in both kinds of region, and its value. 0 is a region that was not used yet.
const VERSION: usize = 8;
const VERSION_1: u16 = 1;

/// What is wrong with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// It is of no queue, or for queues that cannot be.
    #[error("{queues} queues of {queue_size} cannot be tracked: at most {MAX_QUEUE_SIZE} entries")]
    Queues {
        /// How many queues.
        queues: u16,
        /// How many entries each of them has.
        queue_size: u16,
    },
    /// The memory is too short.
    #[error("the region has {len} bytes, {needed} are needed")]
    Short {
        /// How long it is.
        len: usize,
        /// How long it must be.
        needed: usize,
    },
    /// The ring is longer than what the region has entries for.
    #[error("a ring of {size} is longer than the {entries} entries that the region has")]
    Size {
        /// The queue size.
        size: u16,
        /// The number of entries.
        entries: u16,
    },
    /// Another version than 1.
    #[error("the region has version {0}, only version 1 is known")]
    Version(u16),
    /// What stands in the region cannot be what a device has written.
    #[error("the region is damaged: {0}")]
    Damaged(&'static str),
}

/// How many bytes the region has for a queue.
fn queue_len(packed: bool, entries: u16) -> usize {
    let len = match packed {
        false => split::len(entries),
        true => packed::len(entries),
    };
    len.next_multiple_of(ALIGNMENT)
}

/// The region of all queues of a device.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: Arc<Mapping>,
    queues: u16,
    /// How many entries each queue has.
    entries: u16,
    /// Requests that are kept when a queue stops stay here.
    outlives_stop: bool,
}

impl InflightRegion {
    /// How many bytes `queues` of `queue_size` take, whichever kind they are.
    pub fn len_for(queues: u16, queue_size: u16) -> u64 {
        // Packed ones take more. Cannot overflow: below 2^37.
        u64::from(queues) * queue_len(true, queue_size) as u64
    }

    /// The region in `mapping`, for `queues` of at most `queue_size` entries. `outlives_stop` says
    /// that the front-end keeps it when a queue is stopped, so that requests may be in it then.
    ///
    /// # Errors
    /// When there are no queues or entries, more entries than a ring may have, or the mapping is
    /// too short even for split rings.
    pub fn new(
        mapping: Mapping,
        queues: u16,
        queue_size: u16,
        outlives_stop: bool,
    ) -> Result<Self, InflightError> {
        if queues == 0 || !(1..=MAX_QUEUE_SIZE).contains(&queue_size) {
            return Err(InflightError::Queues { queues, queue_size });
        }
        let needed = usize::from(queues) * queue_len(false, queue_size);
        let len = mapping.size();
        if len < needed {
            return Err(InflightError::Short { len, needed });
        }
        Ok(Self {
            mapping: Arc::new(mapping),
            queues,
            entries: queue_size,
            outlives_stop,
        })
    }

    /// Where it begins in this process, and how long it is in bytes.
    pub fn range(&self) -> (usize, usize) {
        self.mapping.range()
    }

    /// The part of queue `index`; nothing when it has none.
    fn area(&self, index: u16, packed: bool) -> Result<Option<Area>, InflightError> {
        if index >= self.queues {
            return Ok(None);
        }
        let len = queue_len(packed, self.entries);
        let offset = usize::from(index) * len;
        let short = InflightError::Short {
            len: self.mapping.size(),
            needed: offset + len,
        };
        let area = Area::in_mapping(&self.mapping, offset, len).ok_or(short)?;
        Ok(Some(area))
    }

    /// What is known of queue `index`; nothing when it is not tracked.
    ///
    /// # Errors
    /// When the region is too short for packed rings.
    pub fn queue(&self, index: u16, packed: bool) -> Result<Option<QueueInflight>, InflightError> {
        let area = self.area(index, packed)?;
        Ok(area.map(|area| QueueInflight {
            area,
            entries: self.entries,
            outlives_stop: self.outlives_stop,
        }))
    }

    /// Whether queue `index` has run with this region: requests may be in flight that nobody will
    /// kick for.
    pub fn has_run(&self, index: u16, packed: bool) -> bool {
        let area = self.area(index, packed).ok().flatten();
        area.is_some_and(|area| area.u16(VERSION).load(Ordering::Relaxed) != 0)
    }

    /// Forgets all that is known of queue `index`, whose driver begins anew.
    pub fn forget(&self, index: u16, packed: bool) {
        if let Ok(Some(area)) = self.area(index, packed) {
            area.u16(VERSION).store(0, Ordering::Release);
        }
    }
}

/// The part of a region that is a queue's.
#[derive(Debug)]
pub struct QueueInflight {
    area: Area,
    entries: u16,
    outlives_stop: bool,
}

#[derive(Debug)]
enum Tracker {
    Split(split::Tracker),
    Packed(packed::Tracker),
}

/// Passes a call on to whichever tracker it is.
macro_rules! either {
    ($self:expr, $inner:ident => $call:expr) => {
        match $self.tracker {
            Tracker::Split(ref mut $inner) => $call,
            Tracker::Packed(ref mut $inner) => $call,
        }
    };
}

/// What a ring notes of its requests in flight, and those that it takes again.
#[derive(Debug)]
pub(crate) struct Inflight {
    tracker: Tracker,
    outlives_stop: bool,
    /// The first position from which the driver's ring has what was in flight when this began,
    /// entry for entry: what can be taken again by an index alone.
    rewinds_from: u64,
}

impl Inflight {
    /// Finds out what was in flight on `kind`, and makes a note of that all over again. Also the
    /// base from which the ring takes it, before anything else; that of the configuration counts
    /// for a new region only.
    pub(crate) fn recover(
        queue: QueueInflight,
        kind: &Kind,
        config: &Config,
    ) -> Result<(Self, u32), RingError> {
        let (size, entries) = (config.size, queue.entries);
        if size > entries {
            return Err(InflightError::Size { size, entries }.into());
        }
        match queue.area.u16(VERSION).load(Ordering::Relaxed) {
            0 | VERSION_1 => {}
            version => return Err(InflightError::Version(version).into()),
        }
        let (tracker, base) = match kind {
            Kind::Split(ring) => {
                let (tracker, base) = split::Tracker::recover(queue.area, entries, ring, config)?;
                (Tracker::Split(tracker), base)
            }
            Kind::Packed(ring) => {
                let (tracker, base) = packed::Tracker::recover(queue.area, entries, ring, config)?;
                (Tracker::Packed(tracker), base)
            }
        };
        let inflight = Self {
            tracker,
            outlives_stop: queue.outlives_stop,
            rewinds_from: 0,
        };
        Ok((inflight, base))
    }

    /// Sees which of the requests that were in flight stand in the ring as if they had never been
    /// taken. Now that `kind` has its base.
    pub(crate) fn compare(&mut self, kind: &Kind) {
        self.rewinds_from = match (&self.tracker, kind) {
            (Tracker::Split(tracker), Kind::Split(ring)) => tracker.rewinds_from(ring),
            (Tracker::Packed(tracker), Kind::Packed(ring)) => tracker.rewinds_from(ring),
            _ => 0,
        };
    }

    /// Whether what is in flight may stay so when the ring stops.
    pub(crate) fn outlives_stop(&self) -> bool {
        self.outlives_stop
    }

    pub(crate) fn rewinds_from(&self) -> u64 {
        self.rewinds_from
    }

    /// Whether there are requests to take again.
    pub(crate) fn has_replays(&self) -> bool {
        match &self.tracker {
            Tracker::Split(tracker) => tracker.has_replays(),
            Tracker::Packed(tracker) => tracker.has_replays(),
        }
    }

    /// The next chain: one that was in flight before, or a new one. Nothing is noted of it until
    /// [`Inflight::advance`].
    #[cold]
    pub(crate) fn peek(
        &self,
        kind: &mut Kind,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Option<(Ticket, Result<(), ChainError>)> {
        match (&self.tracker, kind) {
            (Tracker::Split(tracker), Kind::Split(ring)) => match tracker.replay(ring) {
                Some(ticket) => Some((ticket, chain.walk(ring, memory, ticket.id))),
                None => ring.peek_carefully(chain, memory),
            },
            (Tracker::Packed(tracker), Kind::Packed(ring)) => match tracker.replay(ring) {
                Some((ticket, descriptors)) => {
                    let walked = chain.walk_copied(memory, ring.indirect(), descriptors);
                    Some((ticket, walked))
                }
                None => ring.peek_carefully(chain, memory),
            },
            // They are made together.
            _ => None,
        }
    }

    /// Takes the chain that was peeked at last. A new one is in flight from now on.
    #[cold]
    pub(crate) fn advance(&mut self, kind: &mut Kind, ticket: &Ticket) {
        match (&mut self.tracker, kind) {
            (Tracker::Split(tracker), Kind::Split(ring)) => tracker.advance(ring, ticket),
            (Tracker::Packed(tracker), Kind::Packed(ring)) => tracker.advance(ring, ticket),
            _ => {}
        }
    }

    /// Passes over the next request that was in flight before, without a look at its chain.
    pub(crate) fn pass(&mut self, kind: &mut Kind) -> Option<Ticket> {
        let ticket = match (&self.tracker, &*kind) {
            (Tracker::Split(tracker), Kind::Split(ring)) => tracker.replay(ring),
            (Tracker::Packed(tracker), Kind::Packed(ring)) => {
                tracker.replay(ring).map(|(ticket, _)| ticket)
            }
            _ => None,
        }?;
        self.advance(kind, &ticket);
        Some(ticket)
    }

    /// A chain is answered: part of the next batch.
    #[cold]
    pub(crate) fn gave(&mut self, ticket: &Ticket) {
        either!(self, tracker => tracker.gave(ticket));
    }

    /// The batch is about to be shown to the driver.
    #[cold]
    pub(crate) fn publishing(&mut self, kind: &Kind) {
        if let (Tracker::Packed(tracker), Kind::Packed(ring)) = (&mut self.tracker, kind) {
            tracker.publishing(ring.next_used());
        }
    }

    /// The driver was shown the batch.
    #[cold]
    pub(crate) fn published(&mut self, kind: &Kind) {
        match (&mut self.tracker, kind) {
            (Tracker::Split(tracker), Kind::Split(ring)) => {
                tracker.published(ring.published_index())
            }
            (Tracker::Packed(tracker), _) => tracker.published(),
            _ => {}
        }
    }

    /// The ring stops: `tickets`, the newest first, and what was not taken again yet are given up
    /// for whoever resumes to take from the driver's ring.
    pub(crate) fn rewind(&mut self, tickets: &[Ticket]) {
        either!(self, tracker => tracker.rewind(tickets));
    }

    /// Logs what was written into the driver's ring, at `descriptors`, to begin with.
    pub(crate) fn mark_recovered(&self, descriptors: u64, log: &QueueLog) {
        if let Tracker::Packed(tracker) = &self.tracker {
            tracker.mark_recovered(descriptors, log);
        }
    }
}
