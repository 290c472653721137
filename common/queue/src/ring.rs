//! What both kinds of ring have in common, and the choice between them.

use std::collections::BTreeMap;

use crate::chain::{Buffers, Chain, ChainError};
use crate::inflight::{Inflight, InflightError, QueueInflight};
use crate::log::QueueLog;
use crate::memory::GuestMemory;
use crate::packed::{self, PackedRing};
use crate::quick::Quick;
use crate::split::{self, SplitRing};

/// The largest ring (VIRTIO 1.4 §2.7, §2.8.10.1).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Where the three areas of a ring are, as guest physical addresses (VIRTIO 1.4 §2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The descriptor table, or the packed descriptor ring ("descriptor area").
    pub descriptor: u64,
    /// The available ring, or the driver's event suppression ("driver area").
    pub available: u64,
    /// The used ring, or the device's event suppression ("device area").
    pub used: u64,
}

/// What a queue is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The number of descriptors; a power of two for a split ring.
    pub size: u16,
    /// Where the ring is.
    pub addresses: Addresses,
    /// Where to begin, as vhost-user's `SET_VRING_BASE` has it. A split ring: the available
    /// index. A packed ring: the next available descriptor in bits 0 to 14, its wrap counter in
    /// bit 15, and the same of the next used descriptor in bits 16 to 31.
    pub base: u32,
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
}

impl Config {
    /// The base of a ring that has not run: both wrap counters of a packed ring begin with 1.
    pub const fn first_base(packed: bool) -> u32 {
        if packed { 0x8000_8000 } else { 0 }
    }
}

/// What is wrong with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is 0, more than [`MAX_QUEUE_SIZE`], or, for a split ring, not a power of two.
    #[error(
        "queue size {0} is not from 1 to {MAX_QUEUE_SIZE}, or not a power of two for a split ring"
    )]
    Size(u32),
    /// The base names no place in the ring.
    #[error("base {base:#x} is no place in a ring of {size}")]
    Base {
        /// The base.
        base: u32,
        /// The queue size.
        size: u16,
    },
    /// An area is not in guest memory, or passes the end of a region.
    #[error("{area} at {addr:#x} is not in one region of guest memory")]
    Address {
        /// Which area.
        area: &'static str,
        /// Its guest physical address.
        addr: u64,
    },
    /// An area is not aligned (VIRTIO 1.4 §2.7, §2.8.10.1).
    #[error("{area} at {addr:#x} is not aligned to {align}")]
    Alignment {
        /// Which area.
        area: &'static str,
        /// Its guest physical address.
        addr: u64,
        /// The alignment that it must have.
        align: u64,
    },
    /// The region for requests in flight cannot be used.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The driver moved the available index further than the ring is long.
    #[error("available index {index} is more than {size} ahead of {next}")]
    Index {
        /// The driver's index.
        index: u16,
        /// The index of the next entry to use.
        next: u16,
        /// The queue size.
        size: u16,
    },
}

/// The size of a ring, if it is one that such a ring may have.
///
/// # Errors
/// [`RingError::Size`].
pub fn checked_size(size: u32, packed: bool) -> Result<u16, RingError> {
    match u16::try_from(size) {
        Ok(short @ 1..=MAX_QUEUE_SIZE) if packed || short.is_power_of_two() => Ok(short),
        _ => Err(RingError::Size(size)),
    }
}

/// What a chain is to its ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    /// What the driver knows it by: the head of a split ring's chain, the buffer id of a packed
    /// one's.
    pub(crate) id: u16,
    /// How many entries it takes up in the order in which the driver makes them available: 1, or
    /// in a packed ring the descriptors of the chain.
    pub(crate) entries: u16,
    /// How many entries were made available before it, counted from some place.
    pub(crate) position: u64,
}

impl Ticket {
    /// The position of what comes next.
    pub(crate) fn end(&self) -> u64 {
        self.position + u64::from(self.entries)
    }
}

#[derive(Debug)]
pub(crate) enum Kind {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Passes a call on to whichever ring it is.
macro_rules! either {
    ($ring:expr, $inner:ident => $call:expr) => {
        match $ring {
            Kind::Split($inner) => $call,
            Kind::Packed($inner) => $call,
        }
    };
}

impl Kind {
    fn new(memory: &GuestMemory, config: &Config) -> Result<Self, RingError> {
        Ok(if config.packed {
            Self::Packed(PackedRing::new(memory, config)?)
        } else {
            Self::Split(SplitRing::new(memory, config)?)
        })
    }

    #[inline]
    fn push_used(&mut self, ticket: Ticket, len: u32) {
        match self {
            Self::Split(ring) => ring.push_used(ticket.id, len),
            Self::Packed(ring) => ring.push_used(ticket, len),
        }
    }
}

/// The device's side of one ring, split or packed.
#[derive(Debug)]
pub(crate) struct Ring {
    kind: Kind,
    config: Config,
    order: Option<Order>,
    /// Whether the driver was asked for kicks.
    armed: bool,
    log: Option<QueueLog>,
    inflight: Option<Box<Inflight>>,
    /// There is no order to keep, no log and no region: nothing is to be done but what the driver
    /// sees. One look at this for each chain.
    plain: bool,
}

/// Answers that must wait for those before them (`VIRTIO_F_IN_ORDER`).
#[derive(Debug)]
struct Order {
    /// The position of the next answer to give.
    next: u64,
    /// Answers that came early, by position.
    early: BTreeMap<u64, Answer>,
}

/// A chain that is done: with a used length, or nothing that the driver can be told.
#[derive(Clone, Copy, Debug)]
struct Answer {
    ticket: Ticket,
    len: Option<u32>,
}

impl Ring {
    pub(crate) fn new(memory: &GuestMemory, config: &Config) -> Result<Self, RingError> {
        let kind = Kind::new(memory, config)?;
        let next = either!(&kind, ring => ring.taken());
        Ok(Self {
            kind,
            config: *config,
            order: config.in_order.then(|| Order {
                next,
                early: BTreeMap::new(),
            }),
            armed: false,
            log: None,
            inflight: None,
            plain: !config.in_order,
        })
    }

    /// A ring whose requests in flight are noted in `queue`. Those that are noted there already are
    /// taken again before any other.
    pub(crate) fn tracked(
        memory: &GuestMemory,
        config: &Config,
        queue: QueueInflight,
    ) -> Result<Self, RingError> {
        let kind = Kind::new(memory, config)?;
        let (mut inflight, base) = Inflight::recover(queue, &kind, config)?;
        let mut ring = Self::new(memory, &Config { base, ..*config })?;
        inflight.compare(&ring.kind);
        ring.inflight = Some(Box::new(inflight));
        ring.plain = false;
        Ok(ring)
    }

    /// Whether a ring could be made from `config`. Touches nothing.
    pub(crate) fn check(memory: &GuestMemory, config: &Config) -> Result<(), RingError> {
        if config.packed {
            packed::check(memory, config)
        } else {
            split::check(memory, config)
        }
    }

    /// Whether the ring that `config` names, which is a packed one at base 0, is new. `false` of a
    /// split ring, whose base says so.
    pub(crate) fn is_new(memory: &GuestMemory, config: &Config) -> Result<bool, RingError> {
        Ok(config.packed && packed::is_new(memory, config)?)
    }

    /// Binds the ring to other memory or addresses, and goes on where it is.
    pub(crate) fn rebind(
        &mut self,
        memory: &GuestMemory,
        addresses: &Addresses,
    ) -> Result<(), RingError> {
        let config = Config {
            addresses: *addresses,
            ..self.config
        };
        match &mut self.kind {
            Kind::Split(ring) => *ring = ring.moved_to(SplitRing::new(memory, &config)?),
            Kind::Packed(ring) => *ring = ring.moved_to(PackedRing::new(memory, &config)?),
        }
        self.config = config;
        self.armed = false;
        Ok(())
    }

    pub(crate) fn size(&self) -> u16 {
        self.config.size
    }

    /// How many entries were taken, counted from where positions are counted from.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        either!(&self.kind, ring => ring.taken())
    }

    /// Looks for new chains. Whether [`Ring::peek`] will give any.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, RingError> {
        if self.has_replays() {
            return Ok(true);
        }
        match &mut self.kind {
            Kind::Split(ring) => ring.look(),
            Kind::Packed(ring) => Ok(ring.look()),
        }
    }

    /// The next chain, if the quick walk can follow it and nothing is to be noted of it. It stays in
    /// the ring until [`Ring::advance`].
    #[inline(always)]
    pub(crate) fn peek<'a>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        if !self.plain && self.inflight.is_some() {
            return None;
        }
        either!(&mut self.kind, ring => ring.peek(quick, memory))
    }

    /// The same, and takes it.
    #[inline(always)]
    pub(crate) fn take<'a>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        if !self.plain && self.inflight.is_some() {
            return None;
        }
        either!(&mut self.kind, ring => ring.take(quick, memory))
    }

    /// Takes the chain that was peeked at last.
    #[inline]
    pub(crate) fn advance(&mut self, ticket: &Ticket) {
        match &mut self.inflight {
            None => either!(&mut self.kind, ring => ring.advance(ticket)),
            Some(inflight) => inflight.advance(&mut self.kind, ticket),
        }
    }

    /// The next chain, collected in `chain`. It stays in the ring until [`Ring::advance`]. A chain
    /// that breaks a rule does not: it is taken and answered, and what is wrong with it is returned.
    #[cold]
    #[inline(never)]
    pub(crate) fn peek_carefully(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Option<Result<Ticket, ChainError>> {
        let (ticket, walked) = match &mut self.inflight {
            None => either!(&mut self.kind, ring => ring.peek_carefully(chain, memory)),
            Some(inflight) => inflight.peek(&mut self.kind, chain, memory),
        }?;
        if let Err(error) = walked {
            self.advance(&ticket);
            // A descriptor that does not exist cannot be returned.
            let len = (!matches!(error, ChainError::Head { .. })).then_some(0);
            self.finish(Answer { ticket, len });
            return Some(Err(error));
        }
        Some(Ok(ticket))
    }

    /// The same, and takes it.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_carefully(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Option<Result<Ticket, ChainError>> {
        let peeked = self.peek_carefully(chain, memory)?;
        if let Ok(ticket) = &peeked {
            self.advance(ticket);
        }
        Some(peeked)
    }

    /// Returns a chain to the driver, which sees it with the next [`Ring::publish`].
    #[inline]
    pub(crate) fn push_used(&mut self, ticket: Ticket, len: u32) {
        self.answer(ticket, len, &Buffers::NONE, 0);
    }

    /// The same, with what was written for the driver.
    #[inline]
    pub(crate) fn answer(
        &mut self,
        ticket: Ticket,
        len: u32,
        buffers: &Buffers<'_>,
        written: usize,
    ) {
        if self.plain {
            self.kind.push_used(ticket, len);
        } else {
            self.mark_written(buffers, written);
            let len = Some(len);
            self.finish(Answer { ticket, len });
        }
    }

    #[inline(never)]
    fn finish(&mut self, answer: Answer) {
        if self.order.is_some() {
            self.finish_in_order(answer);
        } else {
            self.give(answer);
        }
    }

    /// Gives an answer when all before it are given, and those that waited for it (C-11).
    fn finish_in_order(&mut self, answer: Answer) {
        let mut now = Some(answer);
        while let (Some(order), Some(answer)) = (&mut self.order, now) {
            if answer.ticket.position != order.next {
                order.early.insert(answer.ticket.position, answer);
                return;
            }
            order.next = answer.ticket.end();
            now = order.early.remove(&order.next);
            self.give(answer);
        }
    }

    fn give(&mut self, Answer { ticket, len }: Answer) {
        let Some(len) = len else {
            return;
        };
        if let Some(inflight) = &mut self.inflight {
            inflight.gave(&ticket);
        }
        self.kind.push_used(ticket, len);
    }

    /// Whether as many answers wait for others as the ring is long. A driver that breaks the
    /// rules could else make it any number.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        !self.plain && self.holds_too_many()
    }

    #[inline(never)]
    fn holds_too_many(&self) -> bool {
        let size = usize::from(self.config.size);
        let order = self.order.as_ref();
        order.is_some_and(|order| order.early.len() >= size)
    }

    /// Shows the driver all answers. True when it wants to be called.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.plain {
            either!(&mut self.kind, ring => ring.publish())
        } else {
            self.publish_noted()
        }
    }

    #[inline(never)]
    fn publish_noted(&mut self) -> bool {
        if let Some(inflight) = &mut self.inflight {
            inflight.publishing(&self.kind);
        }
        let log = self.log.as_ref();
        let descriptors = self.config.addresses.descriptor;
        let call = match &mut self.kind {
            Kind::Split(ring) => {
                let from = ring.published();
                let call = ring.publish();
                if let Some(log) = log {
                    ring.mark_published(from, log);
                }
                call
            }
            Kind::Packed(ring) => {
                let batch = ring.batch();
                let call = ring.publish();
                if let Some(log) = log {
                    ring.mark_published(batch, descriptors, log);
                }
                call
            }
        };
        if let Some(inflight) = &mut self.inflight {
            inflight.published(&self.kind);
        }
        call
    }

    /// Has writes logged from now on, or no more.
    pub(crate) fn set_log(&mut self, log: Option<QueueLog>) {
        self.log = log;
        self.plain = self.order.is_none() && self.inflight.is_none() && self.log.is_none();
        // What was written when the ring was bound.
        self.mark_wish();
        if let (Some(inflight), Some(log)) = (&self.inflight, &self.log) {
            inflight.mark_recovered(self.config.addresses.descriptor, log);
        }
    }

    /// Logs what was written for the driver.
    #[inline]
    pub(crate) fn mark_written(&self, buffers: &Buffers<'_>, written: usize) {
        if let Some(log) = &self.log {
            log.mark_written(buffers.writable(), written);
        }
    }

    /// Logs that the last byte of what may be written for the driver was written.
    pub(crate) fn mark_last(&self, buffers: &Buffers<'_>) {
        if let Some(log) = &self.log {
            log.mark_last(buffers.writable());
        }
    }

    #[inline]
    fn mark_wish(&self) {
        if let Some(log) = &self.log {
            either!(&self.kind, ring => ring.mark_wish(log));
        }
    }

    /// Asks the driver for a kick with its next chain. True when there is one already: the device
    /// must look again instead of going to sleep. Once armed, there is nothing to do until
    /// [`Ring::disarm`]: a chain that came since has its kick.
    #[inline]
    pub(crate) fn arm(&mut self) -> bool {
        if std::mem::replace(&mut self.armed, true) {
            return false;
        }
        let missed = either!(&mut self.kind, ring => ring.arm());
        self.mark_wish();
        missed || self.has_replays()
    }

    /// Tells the driver that kicks are not needed until [`Ring::arm`]. With EVENT_IDX that needs
    /// no write: an event that lies behind asks for nothing, or in a packed ring for one kick in a
    /// round.
    #[inline]
    pub(crate) fn disarm(&mut self) {
        if std::mem::replace(&mut self.armed, false) && !self.config.event_idx {
            either!(&mut self.kind, ring => ring.disarm());
            self.mark_wish();
        }
    }

    /// Whether there are chains to take again, which were in flight before.
    #[inline]
    pub(crate) fn has_replays(&self) -> bool {
        let inflight = self.inflight.as_ref();
        inflight.is_some_and(|inflight| inflight.has_replays())
    }

    /// The first position that a base can stand for, when all before it are answered. `None` when
    /// what is in flight stays so while the ring is stopped.
    pub(crate) fn rewinds_from(&self) -> Option<u64> {
        match &self.inflight {
            None => Some(0),
            Some(inflight) if inflight.outlives_stop() => None,
            Some(inflight) => Some(inflight.rewinds_from()),
        }
    }

    /// Passes over the next of the chains that were in flight before.
    pub(crate) fn pass(&mut self) -> Option<Ticket> {
        self.inflight.as_mut()?.pass(&mut self.kind)
    }

    /// `tickets`, the newest first, are to be taken again from the driver's ring, as well as what
    /// was not passed over.
    pub(crate) fn rewind(&mut self, tickets: &[Ticket]) {
        if let Some(inflight) = &mut self.inflight {
            inflight.rewind(tickets);
        }
    }

    /// The base from which the chain at `position` is taken next, when all before it are
    /// answered, and whether the driver made anything available from there on.
    pub(crate) fn base_at(&self, position: u64) -> (u32, bool) {
        either!(&self.kind, ring => ring.base_at(position))
    }
}
