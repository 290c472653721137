//! The split ring (VIRTIO 1.4 §2.7): the three areas in guest memory, and the order in which
//! they are read and written.
//!
//! | step | ordering | why it is enough |
//! |---|---|---|
//! | see new chains | relaxed load of `avail.idx`, one acquire fence when it moved | orders the ring's entries and the descriptors after the index |
//! | publish | release store of `used.idx`, once a batch | orders ids, lengths and data before the index |
//! | must I call? | one full fence between that store and reading `used_event` or `flags` | the driver writes `used_event`, then looks at `used.idx`: one of the two sees the other |
//! | may I sleep? | write `avail_event` or `flags`, one full fence, read `avail.idx` once more | the same, the other way round |
//!
//! Every field is reached through a pointer that was resolved and checked once, when the ring
//! was bound to memory; the ring owns a share of the mappings, so the pointers stay good.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::area::{Area, Link, Table};
use crate::chain::{Buffers, Chain, ChainError, DESCRIPTOR_SIZE, Words};
use crate::log::QueueLog;
use crate::memory::GuestMemory;
use crate::quick::{INDIRECT, Links, NEXT, Quick};
use crate::ring::{Addresses, Config, RingError, Ticket, checked_size};

/// `flags` and `idx` come before the entries, in both rings.
const FLAGS: usize = 0;
const IDX: usize = 2;
const ENTRIES: usize = 4;
/// `struct virtq_used_elem`: id and len.
const USED_ELEM: usize = 8;
/// `used_event` or `avail_event` behind the entries.
const EVENT: usize = 2;

/// Resolves and checks the descriptor table, the available and the used ring.
fn areas(memory: &GuestMemory, config: &Config) -> Result<(Area, Area, Area), RingError> {
    let n = usize::from(checked_size(config.size.into(), config.packed)?);
    let event = if config.event_idx { EVENT } else { 0 };
    let Addresses {
        descriptor,
        available,
        used,
    } = config.addresses;
    let desc_len = n * DESCRIPTOR_SIZE;
    let desc = Area::resolve(memory, "descriptor table", descriptor, desc_len, 16)?;
    let avail_len = ENTRIES + n * size_of::<u16>() + event;
    let avail = Area::resolve(memory, "available ring", available, avail_len, 2)?;
    let used_len = ENTRIES + n * USED_ELEM + event;
    let used = Area::resolve(memory, "used ring", used, used_len, 4)?;
    Ok((desc, avail, used))
}

/// The available index to go on from.
fn next_avail(config: &Config) -> Result<u16, RingError> {
    let Config { size, base, .. } = *config;
    u16::try_from(base).map_err(|_| RingError::Base { base, size })
}

/// Whether a ring could be made from `config`. Touches nothing.
pub(crate) fn check(memory: &GuestMemory, config: &Config) -> Result<(), RingError> {
    areas(memory, config)?;
    next_avail(config).map(drop)
}

/// A descriptor of a table in which `next` names the one behind it.
#[derive(Clone, Copy)]
struct Linked<'a> {
    table: Table<'a>,
    index: usize,
}

impl Links for Linked<'_> {
    #[inline(always)]
    fn here(&self) -> Option<Link> {
        self.table.virtq(self.index)
    }

    #[inline(always)]
    fn follow(&mut self, link: &Link) -> Option<Link> {
        self.index = link.with;
        self.here()
    }
}

/// The device's side of one split ring.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    /// The size less one: what of an index is the slot.
    mask: usize,
    event_idx: bool,
    indirect: bool,
    desc: Area,
    avail: Area,
    used: Area,
    /// How many entries were taken from the available ring, counted from the base: its low 16
    /// bits are the next index.
    taken: u64,
    /// How many were there when last looked at.
    seen: u64,
    /// An index that was refused: it is not worth waking up for.
    refused: Option<u16>,
    /// How many used elements there are, and how many the driver was shown, both counted from some
    /// round of the ring: their low 16 bits are the indices.
    next_used: u64,
    published: u64,
    /// Whether anything was published since the ring was bound. With `EVENT_IDX` the first time
    /// always calls: nobody knows what `used_event` was meant for.
    called: bool,
}

impl SplitRing {
    /// Binds a ring to `memory`, to go on from the available index that is the base.
    pub(crate) fn new(memory: &GuestMemory, config: &Config) -> Result<Self, RingError> {
        let (desc, avail, used) = areas(memory, config)?;
        let base = next_avail(config)?;
        let index = u16::from_le(used.u16(IDX).load(Ordering::Relaxed)).into();
        let ring = Self {
            size: config.size,
            mask: usize::from(config.size) - 1,
            event_idx: config.event_idx,
            indirect: config.indirect,
            next_used: index,
            published: index,
            desc,
            avail,
            used,
            taken: u64::from(base),
            seen: base.into(),
            refused: None,
            called: false,
        };
        // with EVENT_IDX the flags stay 0, whatever an earlier device left there.
        ring.used.u16(FLAGS).store(0, Ordering::Relaxed);
        Ok(ring)
    }

    /// This ring, to go on where it is in the memory that `fresh` is bound to.
    pub(crate) fn moved_to(&self, fresh: Self) -> Self {
        Self {
            taken: self.taken,
            seen: self.taken,
            next_used: self.next_used,
            published: self.published,
            ..fresh
        }
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver may use indirect tables.
    pub(crate) fn indirect(&self) -> bool {
        self.indirect
    }

    /// How many entries were taken from the available ring, counted from the base.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    #[inline]
    fn next_avail(&self) -> u16 {
        // The low 16 bits are the index.
        self.taken as u16
    }

    /// The slot of an entry, which is counted as `taken` or `next_used`.
    #[inline]
    fn slot(&self, position: u64) -> usize {
        // The low bits are the index.
        position as usize & self.mask
    }

    /// Looks for new entries: one read of the index for the whole batch. Whether there
    /// are any for [`SplitRing::take`].
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, RingError> {
        let next = self.next_avail();
        let index = u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed));
        let count = index.wrapping_sub(next);
        self.seen = self.taken;
        if count == 0 {
            return Ok(false);
        }
        if count > self.size {
            self.refused = Some(index);
            return Err(RingError::Index {
                index,
                next,
                size: self.size,
            });
        }
        fence(Ordering::Acquire);
        self.refused = None;
        self.seen += u64::from(count);
        Ok(true)
    }

    /// The head that stands in the available ring for `position`.
    #[inline]
    pub(crate) fn head_at(&self, position: u64) -> u16 {
        let offset = ENTRIES + self.slot(position) * size_of::<u16>();
        u16::from_le(self.avail.u16(offset).load(Ordering::Relaxed))
    }

    /// The next chain that [`SplitRing::look`] saw, if the quick walk can follow it. It stays in the
    /// ring until [`SplitRing::advance`].
    #[inline(always)]
    pub(crate) fn peek<'a>(
        &self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        if self.taken == self.seen {
            return None;
        }
        let head = self.head_at(self.taken);
        let links = Linked {
            table: self.desc.table(),
            index: head.into(),
        };
        let first = links.here()?;
        let (buffers, _) = if first.flags & INDIRECT == 0 {
            quick.take(memory, links, &first)?
        } else {
            if !self.indirect || first.flags & NEXT != 0 {
                return None;
            }
            let table = Table::at_hand(memory, first.addr, first.len)?;
            let links = Linked { table, index: 0 };
            quick.take(memory, links, &links.here()?)?
        };
        Some((self.ticket(head), buffers))
    }

    /// The same, and takes it.
    #[inline(always)]
    pub(crate) fn take<'a>(
        &mut self,
        quick: &'a mut Quick,
        memory: &'a GuestMemory,
    ) -> Option<(Ticket, Buffers<'a>)> {
        let (ticket, buffers) = self.peek(quick, memory)?;
        self.advance(&ticket);
        Some((ticket, buffers))
    }

    /// What the next entry is, of the chain with this head.
    #[inline]
    fn ticket(&self, head: u16) -> Ticket {
        Ticket {
            id: head,
            entries: 1,
            position: self.taken,
        }
    }

    /// Takes the chain that was peeked at last.
    #[inline]
    pub(crate) fn advance(&mut self, ticket: &Ticket) {
        self.taken = ticket.end();
    }

    /// The next chain that [`SplitRing::look`] saw, collected in `chain`, or what is wrong with it.
    /// It stays in the ring until [`SplitRing::advance`].
    pub(crate) fn peek_carefully(
        &self,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Option<(Ticket, Result<(), ChainError>)> {
        if self.taken == self.seen {
            return None;
        }
        let head = self.head_at(self.taken);
        let ticket = self.ticket(head);
        let size = self.size;
        let walked = if head < size {
            chain.walk(self, memory, head)
        } else {
            Err(ChainError::Head { head, size })
        };
        Some((ticket, walked))
    }

    /// Passes over the next entry: its chain is known already.
    pub(crate) fn pass(&mut self) {
        self.taken += 1;
        // Nothing behind it was looked for.
        self.seen = self.taken;
    }

    /// Descriptor `index` of the table, read once; `None` when there is no such descriptor.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Option<Words> {
        if index >= self.size {
            return None;
        }
        Some(self.desc.descriptor(index))
    }

    /// Puts a used element behind the last. The driver sees it with the next
    /// [`SplitRing::publish`].
    #[inline]
    pub(crate) fn push_used(&mut self, id: u16, len: u32) {
        let offset = ENTRIES + self.slot(self.next_used) * USED_ELEM;
        let element = [u32::from(id), len];
        for (field, value) in [0, 4].into_iter().zip(element) {
            let field = self.used.u32(offset + field);
            field.store(value.to_le(), Ordering::Relaxed);
        }
        self.next_used += 1;
    }

    /// Shows the driver all used elements. True when it wants to be called.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        // The low 16 bits are the indices.
        let [old, new] = [self.published, self.next_used].map(|index| index as u16);
        self.used.u16(IDX).store(new.to_le(), Ordering::Release);
        self.published = self.next_used;
        fence(Ordering::SeqCst);
        let first = !std::mem::replace(&mut self.called, true);
        if self.event_idx {
            let offset = ENTRIES + usize::from(self.size) * size_of::<u16>();
            let event = u16::from_le(self.avail.u16(offset).load(Ordering::Relaxed));
            // The index that the driver waits for is one of those published now.
            first || new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u16::from_le(self.avail.u16(FLAGS).load(Ordering::Relaxed));
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// How many used elements the driver was shown, counted from some round of the ring.
    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// The used index that the driver was last shown.
    pub(crate) fn published_index(&self) -> u16 {
        // The low 16 bits are the index.
        self.published as u16
    }

    /// Logs what was written for the used elements from the one on that is numbered `from`.
    #[cold]
    pub(crate) fn mark_published(&self, from: u64, log: &QueueLog) {
        for number in from..self.published {
            let slot = self.slot(number);
            log.mark_used(ENTRIES + slot * USED_ELEM, USED_ELEM);
        }
        if from < self.published {
            log.mark_used(IDX, size_of::<u16>());
        }
    }

    /// Logs where the driver is told whether kicks are wanted.
    #[cold]
    pub(crate) fn mark_wish(&self, log: &QueueLog) {
        log.mark_used(FLAGS, size_of::<u16>());
        if self.event_idx {
            log.mark_used(ENTRIES + usize::from(self.size) * USED_ELEM, EVENT);
        }
    }

    /// Asks the driver for a kick with its next entry. True when there is one already: the
    /// device must look again instead of going to sleep.
    #[inline]
    pub(crate) fn arm(&mut self) -> bool {
        let next = self.next_avail();
        if self.event_idx {
            let offset = ENTRIES + usize::from(self.size) * USED_ELEM;
            let event = self.used.u16(offset);
            event.store(next.to_le(), Ordering::Relaxed);
        } else {
            self.used.u16(FLAGS).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        let index = u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed));
        index != next && self.refused != Some(index)
    }

    /// The base from which entry `position` is taken next, and whether the driver made anything
    /// available from there on, taken or not.
    pub(crate) fn base_at(&self, position: u64) -> (u32, bool) {
        // The low 16 bits are the index.
        let base = position as u16;
        let index = u16::from_le(self.avail.u16(IDX).load(Ordering::Relaxed));
        (base.into(), index != base)
    }

    /// Tells the driver, without EVENT_IDX, that kicks are not needed until [`SplitRing::arm`].
    #[inline]
    pub(crate) fn disarm(&mut self) {
        let no_notify = (VRING_USED_F_NO_NOTIFY as u16).to_le();
        self.used.u16(FLAGS).store(no_notify, Ordering::Relaxed);
    }
}
