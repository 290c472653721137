//! `QueueRegionSplit` and its `DescStateSplit`.
//!
//! The used index is what decides: a batch is done as soon as it is stored. The region has the
//! index of the last batch that was cleared, and the list of those that were given back, the newest
//! first: as many of them as the two indices are apart are not in flight any more.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::{InflightError, VERSION, VERSION_1};
use crate::area::Area;
use crate::ring::{Config, Ticket};
use crate::split::SplitRing;

const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const DESC: usize = 16;

/// In a `DescStateSplit`.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const DESC_STATE: usize = 16;

/// The size of a `QueueRegionSplit` with `entries`.
pub(super) const fn len(entries: u16) -> usize {
    DESC + entries as usize * DESC_STATE
}

/// Where field `offset` of an entry is.
const fn field(entry: u16, offset: usize) -> usize {
    DESC + entry as usize * DESC_STATE + offset
}

/// What is in flight on a split ring. An entry's number is that of the chain's head.
#[derive(Debug)]
pub(super) struct Tracker {
    area: Area,
    /// The size of the ring: at most as many as there are entries.
    size: u16,
    counter: u64,
    /// What stands in the region.
    last_batch_head: u16,
    /// The heads that were given back since the driver was last shown any.
    batch: Vec<u16>,
    /// The heads to take again, the oldest first.
    replays: VecDeque<u16>,
}

impl Tracker {
    /// What was in flight on `ring`, and the base from which to take it.
    pub(super) fn recover(
        area: Area,
        entries: u16,
        ring: &SplitRing,
        config: &Config,
    ) -> Result<(Self, u32), InflightError> {
        let mut tracker = Self {
            area,
            size: config.size,
            counter: 0,
            last_batch_head: 0,
            batch: Vec::new(),
            replays: VecDeque::new(),
        };
        // Nothing was published yet: it is the index that stands in the ring.
        let used = ring.published_index();
        let is_new = tracker.area.u16(VERSION).load(Ordering::Relaxed) == 0;
        tracker.set(DESC_NUM, entries);
        if is_new {
            (0..entries).for_each(|head| tracker.set_inflight(head, false));
            tracker.set(LAST_BATCH_HEAD, 0);
            tracker.set(USED_IDX, used);
            tracker.set(VERSION, VERSION_1);
            return Ok((tracker, config.base));
        }
        tracker.finish_batch(used)?;
        tracker.collect();
        // All before them were answered, and all behind them are new.
        Ok((tracker, used.into()))
    }

    fn get(&self, offset: usize) -> u16 {
        self.area.u16(offset).load(Ordering::Acquire)
    }

    fn set(&self, offset: usize, value: u16) {
        self.area.u16(offset).store(value, Ordering::Release);
    }

    fn set_inflight(&self, head: u16, inflight: bool) {
        let field = self.area.u8(field(head, INFLIGHT));
        field.store(inflight.into(), Ordering::Release);
    }

    /// Finishes a batch that the driver was shown, if that was all that happened to it.
    fn finish_batch(&mut self, used: u16) -> Result<(), InflightError> {
        self.last_batch_head = self.get(LAST_BATCH_HEAD);
        let batch = used.wrapping_sub(self.get(USED_IDX));
        // No batch is longer than the ring: then the index in the region is not one that a device
        // noted. There are devices that do not note it when they begin.
        if batch > 0 && batch <= self.size {
            let mut head = self.last_batch_head;
            for _ in 0..batch {
                if head >= self.size {
                    return Err(InflightError::Damaged("the last batch leaves the ring"));
                }
                self.set_inflight(head, false);
                head = self.get(field(head, NEXT));
            }
        }
        self.set(USED_IDX, used);
        Ok(())
    }

    /// Collects what is in flight, in the order in which it was taken.
    fn collect(&mut self) {
        let inflight = |head: &u16| {
            let field = self.area.u8(field(*head, INFLIGHT));
            field.load(Ordering::Acquire) != 0
        };
        let counter = |head| {
            let counter = self.area.u64(field(head, COUNTER));
            (counter.load(Ordering::Relaxed), head)
        };
        let mut found: Vec<_> = (0..self.size).filter(inflight).map(counter).collect();
        found.sort_unstable();
        if let Some((newest, _)) = found.last() {
            // Whatever stands there: a counter that wraps puts requests in another order.
            self.counter = newest.wrapping_add(1);
        }
        self.replays = found.into_iter().map(|(_, head)| head).collect();
    }

    /// The first position from which the available ring has the heads that are to be taken again.
    pub(super) fn rewinds_from(&self, ring: &SplitRing) -> u64 {
        let mut position = ring.taken() + self.replays.len() as u64;
        for head in self.replays.iter().rev() {
            if ring.head_at(position - 1) != *head {
                break;
            }
            position -= 1;
        }
        position
    }

    pub(super) fn has_replays(&self) -> bool {
        !self.replays.is_empty()
    }

    /// The next request that was in flight before.
    pub(super) fn replay(&self, ring: &SplitRing) -> Option<Ticket> {
        let head = self.replays.front()?;
        Some(Ticket {
            id: *head,
            entries: 1,
            position: ring.taken(),
        })
    }

    /// The next request is taken: the first of those that were in flight before, or else a new one.
    pub(super) fn advance(&mut self, ring: &mut SplitRing, ticket: &Ticket) {
        if self.replays.pop_front().is_some() {
            ring.pass();
        } else {
            ring.advance(ticket);
            self.took(ticket);
        }
    }

    /// A new request is in flight.
    fn took(&mut self, ticket: &Ticket) {
        let head = ticket.id;
        // A head that does not exist is never given back.
        if head < self.size {
            let counter = self.area.u64(field(head, COUNTER));
            counter.store(self.counter, Ordering::Release);
            self.counter = self.counter.wrapping_add(1);
            self.set_inflight(head, true);
        }
    }

    pub(super) fn gave(&mut self, ticket: &Ticket) {
        let head = ticket.id;
        self.set(field(head, NEXT), self.last_batch_head);
        self.set(LAST_BATCH_HEAD, head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    pub(super) fn published(&mut self, used: u16) {
        if self.batch.is_empty() {
            return;
        }
        for &head in &self.batch {
            self.set_inflight(head, false);
        }
        self.batch.clear();
        self.set(USED_IDX, used);
    }

    pub(super) fn rewind(&mut self, tickets: &[Ticket]) {
        // The newest first: what is in flight has no gap in between.
        let newest = std::mem::take(&mut self.replays).into_iter().rev();
        for head in newest.chain(tickets.iter().map(|ticket| ticket.id)) {
            self.set_inflight(head, false);
        }
    }
}
