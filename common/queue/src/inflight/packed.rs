//! `QueueRegionPacked` and its `DescStatePacked`.
//!
//! Used descriptors take the place of those that were made available, so the region has copies of
//! them: a chain is a list of entries, and so are those that are free. What is being changed has
//! two values, the new one and the old one. A chain is in flight as soon as the old head of the
//! free list is behind its entries. A batch is done as soon as the first of its used descriptors is
//! in the ring, which is seen by the flags there: they are still those of an available descriptor,
//! or they are not.
//!
//! The indices and wrap counters are stored as one word, and so are both heads of the free list:
//! between the index and its wrap counter there is nowhere to be killed. (The specification does
//! not say so. A device that is killed there can be taken for one that has shown nothing.)

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use super::{InflightError, VERSION_1};
use crate::area::Area;
use crate::chain::{DESCRIPTOR_SIZE, Words};
use crate::log::QueueLog;
use crate::packed::{PackedRing, Place};
use crate::ring::{Config, Ticket};

/// The word of `version`, `desc_num`, `free_head` and `old_free_head`.
const HEADS: usize = 8;
/// The word of `used_idx`, `old_used_idx`, `used_wrap_counter` and `old_used_wrap_counter`, with
/// two bytes of padding.
const PLACES: usize = 16;
const DESC: usize = 32;

/// In a `DescStatePacked`.
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;
const DESC_STATE: usize = 32;

/// The size of a `QueueRegionPacked` with `entries`.
pub(super) const fn len(entries: u16) -> usize {
    DESC + entries as usize * DESC_STATE
}

/// Where field `offset` of an entry is.
const fn field(entry: u16, offset: usize) -> usize {
    DESC + entry as usize * DESC_STATE + offset
}

/// A chain in the region: its first and its last entry, and how many there are.
#[derive(Clone, Copy, Debug)]
struct Entries {
    head: u16,
    last: u16,
    num: u16,
}

/// A request to take again.
#[derive(Debug)]
struct Replay {
    entries: Entries,
    counter: u64,
    /// Its descriptors, as they stood in the ring.
    descriptors: Box<[Words]>,
}

/// What is in flight on a packed ring.
#[derive(Debug)]
pub(super) struct Tracker {
    area: Area,
    /// How many entries there are: also what stands behind the last free one.
    entries: u16,
    size: u16,
    counter: u64,
    /// `next` of each entry: what stands in the region.
    next: Box<[u16]>,
    free_head: u16,
    free: u16,
    /// Where the next used descriptor goes, as far as the driver was shown any.
    used: Place,
    /// Where it goes once the driver is shown the batch.
    publishing: Option<Place>,
    /// The chains in flight, by position.
    chains: BTreeMap<u64, Entries>,
    /// Those that were given back since the driver was last shown any.
    batch: Vec<Entries>,
    /// Those to take again, the oldest first.
    replays: VecDeque<Replay>,
    /// How many descriptors of the ring were put right from `recovered_from` on.
    recovered: u16,
    recovered_from: Place,
}

impl Tracker {
    /// What was in flight on `ring`, and the base from which to take it.
    pub(super) fn recover(
        area: Area,
        entries: u16,
        ring: &PackedRing,
        config: &Config,
    ) -> Result<(Self, u32), InflightError> {
        let used = ring.next_used();
        let mut tracker = Self {
            area,
            entries,
            size: config.size,
            counter: 0,
            next: vec![entries; entries.into()].into(),
            free_head: entries,
            free: 0,
            used,
            publishing: None,
            chains: BTreeMap::new(),
            batch: Vec::new(),
            replays: VecDeque::new(),
            recovered: 0,
            recovered_from: used,
        };
        let mut is_taken = vec![false; entries.into()];
        let base = if tracker.heads().is_none() {
            (0..entries).for_each(|entry| tracker.set_inflight(entry, false));
            config.base
        } else {
            tracker.used = tracker.settle(ring)?;
            tracker.collect(&mut is_taken)?;
            tracker.restore(ring);
            // What is in flight was taken from there on, whichever of it was answered first.
            u32::from(tracker.used.pack()) * 0x1_0001
        };
        tracker.link_free(&is_taken);
        tracker.set_places(tracker.used, tracker.used);
        tracker.set_heads(tracker.free_head, tracker.free_head);
        // Once more, as the first word means nothing without the second in a new region, and the
        // second nothing without the first in an old one.
        tracker.set_places(tracker.used, tracker.used);
        Ok((tracker, base))
    }

    fn get(&self, offset: usize) -> u16 {
        self.area.u16(offset).load(Ordering::Acquire)
    }

    fn set(&self, offset: usize, value: u16) {
        self.area.u16(offset).store(value, Ordering::Release);
    }

    fn set_inflight(&self, entry: u16, inflight: bool) {
        let field = self.area.u8(field(entry, INFLIGHT));
        field.store(inflight.into(), Ordering::Release);
    }

    /// The head of the free list and its old one; nothing in a new region.
    fn heads(&self) -> Option<(u16, u16)> {
        let word = self.area.u64(HEADS).load(Ordering::Acquire).to_ne_bytes();
        let [version, _desc_num, head, old_head]: [u16; 4] = zerocopy::transmute!(word);
        (version != 0).then_some((head, old_head))
    }

    fn set_heads(&self, head: u16, old_head: u16) {
        let word: [u8; 8] = zerocopy::transmute!([VERSION_1, self.entries, head, old_head]);
        let field = self.area.u64(HEADS);
        field.store(u64::from_ne_bytes(word), Ordering::Release);
    }

    /// Where the next used descriptor goes and where it went, once.
    fn places(&self) -> (Place, Place) {
        let word = self.area.u64(PLACES).load(Ordering::Acquire).to_ne_bytes();
        let [a, b, c, d, wrap, old_wrap, ..] = word;
        let place = |slot, wrap| Place {
            slot: u16::from_ne_bytes(slot),
            wrap: wrap != 0,
        };
        (place([a, b], wrap), place([c, d], old_wrap))
    }

    fn set_places(&self, place: Place, old: Place) {
        let [a, b] = place.slot.to_ne_bytes();
        let [c, d] = old.slot.to_ne_bytes();
        let word = [a, b, c, d, place.wrap.into(), old.wrap.into(), 0, 0];
        let field = self.area.u64(PLACES);
        field.store(u64::from_ne_bytes(word), Ordering::Release);
    }

    /// Finishes a batch that the driver was shown and takes back one that it was not shown. What is
    /// free is not in flight. Where the next used descriptor goes.
    fn settle(&self, ring: &PackedRing) -> Result<Place, InflightError> {
        let (new, old) = self.places();
        if new.slot >= self.size || old.slot >= self.size {
            return Err(InflightError::Damaged("a used index leaves the ring"));
        }
        let (head, old_head) = self.heads().unwrap_or((self.entries, self.entries));
        let was_shown = new != old && !ring.is_available(old);
        let (place, head) = match was_shown {
            true => (new, head),
            false => (old, old_head),
        };
        let mut entry = head;
        let mut steps = 0;
        while entry < self.entries {
            if steps == self.entries {
                return Err(InflightError::Damaged("the free list is a loop"));
            }
            steps += 1;
            self.set_inflight(entry, false);
            entry = self.get(field(entry, NEXT));
        }
        Ok(place)
    }

    /// Collects what is in flight, in the order in which it was taken.
    fn collect(&mut self, is_taken: &mut [bool]) -> Result<(), InflightError> {
        let mut found = Vec::new();
        let mut descriptors: usize = 0;
        for head in 0..self.entries {
            let inflight = self.area.u8(field(head, INFLIGHT));
            if inflight.load(Ordering::Acquire) != 0 {
                let replay = self.copy(head, is_taken)?;
                descriptors += replay.descriptors.len();
                found.push(replay);
            }
        }
        if descriptors > self.size.into() {
            return Err(InflightError::Damaged(
                "more is in flight than the ring has",
            ));
        }
        found.sort_by_key(|replay| replay.counter);
        if let Some(newest) = found.last() {
            // Whatever stands there: a counter that wraps puts requests in another order.
            self.counter = newest.counter.wrapping_add(1);
        }
        self.replays = found.into();
        Ok(())
    }

    /// Copies the chain that begins with entry `head`.
    fn copy(&mut self, head: u16, is_taken: &mut [bool]) -> Result<Replay, InflightError> {
        let num = self.get(field(head, NUM));
        let damaged = InflightError::Damaged("a chain is no list of entries of its own");
        if num == 0 || num > self.size {
            return Err(damaged);
        }
        let mut descriptors = Vec::with_capacity(num.into());
        let mut entry = head;
        let mut last = head;
        for _ in 0..num {
            match is_taken.get_mut(usize::from(entry)) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(damaged),
            }
            descriptors.push(self.descriptor(entry));
            last = entry;
            entry = self.get(field(entry, NEXT));
            self.link(last, entry);
        }
        Ok(Replay {
            entries: Entries { head, last, num },
            counter: self.area.u64(field(head, COUNTER)).load(Ordering::Relaxed),
            descriptors: descriptors.into(),
        })
    }

    /// The descriptor that was copied to `entry`, as it stands in a ring.
    fn descriptor(&self, entry: u16) -> Words {
        let [id, flags] = [ID, FLAGS].map(|offset| u64::from(self.get(field(entry, offset))));
        let len = self.area.u32(field(entry, LEN)).load(Ordering::Relaxed);
        let addr = self.area.u64(field(entry, ADDR)).load(Ordering::Relaxed);
        let rest = u64::from(len) | id << 32 | flags << 48;
        [addr.to_le(), rest.to_le()]
    }

    fn set_descriptor(&self, entry: u16, [addr, rest]: Words) {
        let rest = u64::from_le(rest);
        // Each cut is a field.
        self.set(field(entry, ID), (rest >> 32) as u16);
        self.set(field(entry, FLAGS), (rest >> 48) as u16);
        let len = self.area.u32(field(entry, LEN));
        len.store(rest as u32, Ordering::Release);
        let field = self.area.u64(field(entry, ADDR));
        field.store(u64::from_le(addr), Ordering::Release);
    }

    /// Notes what comes behind `entry` here. There is such an entry.
    fn link(&mut self, entry: u16, next: u16) {
        if let Some(link) = self.next.get_mut(usize::from(entry)) {
            *link = next;
        }
    }

    fn next(&self, entry: u16) -> u16 {
        let next = self.next.get(usize::from(entry));
        next.copied().unwrap_or(self.entries)
    }

    /// Makes a list of all entries that are not taken, and notes it in the region. Nothing in it is
    /// in flight, so whoever finds half of the old and half of the new one finds the same.
    fn link_free(&mut self, is_taken: &[bool]) {
        for entry in (0..self.entries).rev() {
            if is_taken.get(usize::from(entry)) == Some(&false) {
                self.set(field(entry, NEXT), self.free_head);
                self.link(entry, self.free_head);
                self.free_head = entry;
                self.free += 1;
            }
        }
    }

    /// Puts the flags right where chains are in flight: a batch may have been on its way into the
    /// ring, all but its first used descriptor, and the driver must not take the others for answers
    /// that are there.
    fn restore(&mut self, ring: &PackedRing) {
        let in_flight: u16 = self.replays.iter().map(|replay| replay.entries.num).sum();
        for offset in 0..in_flight {
            ring.restore(self.used.after(offset, self.size));
        }
        self.recovered_from = self.used;
        self.recovered = in_flight;
    }

    pub(super) fn mark_recovered(&self, descriptors: u64, log: &QueueLog) {
        if log.used.is_none() {
            return;
        }
        for offset in 0..self.recovered {
            let slot = self.recovered_from.after(offset, self.size).slot;
            let offset = usize::from(slot) * DESCRIPTOR_SIZE;
            log.dirty
                .mark(descriptors + offset as u64, DESCRIPTOR_SIZE as u64);
        }
    }

    /// The first position from which the ring has the descriptors that are to be taken again.
    pub(super) fn rewinds_from(&self, ring: &PackedRing) -> u64 {
        let mut offset: u16 = self.replays.iter().map(|replay| replay.entries.num).sum();
        for replay in self.replays.iter().rev() {
            let first = offset - replay.entries.num;
            let same = (first..offset).zip(&replay.descriptors).all(|(at, copy)| {
                let slot = self.used.after(at, self.size).slot;
                ring.descriptor(slot) == *copy
            });
            if !same {
                break;
            }
            offset = first;
        }
        ring.taken() + u64::from(offset)
    }

    pub(super) fn has_replays(&self) -> bool {
        !self.replays.is_empty()
    }

    /// The next request that was in flight before, and its descriptors.
    pub(super) fn replay(&self, ring: &PackedRing) -> Option<(Ticket, &[Words])> {
        let Replay {
            entries,
            descriptors,
            ..
        } = self.replays.front()?;
        let id = descriptors.last().map_or(0, |[_, rest]| {
            // Its bits 32 to 47.
            (u64::from_le(*rest) >> 32) as u16
        });
        let ticket = Ticket {
            id,
            entries: entries.num,
            position: ring.taken(),
        };
        Some((ticket, descriptors))
    }

    /// The next request is taken: the first of those that were in flight before, or else a new one.
    pub(super) fn advance(&mut self, ring: &mut PackedRing, ticket: &Ticket) {
        if let Some(Replay { entries, .. }) = self.replays.pop_front() {
            ring.pass(ticket.entries);
            self.chains.insert(ticket.position, entries);
        } else {
            let first = ring.next_avail();
            ring.advance(ticket);
            self.took(ring, first, ticket);
        }
    }

    /// A new request is in flight, from the descriptor in `first` on.
    fn took(&mut self, ring: &PackedRing, first: Place, ticket: &Ticket) {
        let num = ticket.entries;
        if num > self.free {
            // Only a driver that breaks the rules has more in flight than the ring is long. It is
            // served, but it is its own loss when the device dies.
            return;
        }
        let head = self.free_head;
        let mut last = head;
        let mut entry = head;
        for offset in 0..num {
            let slot = first.after(offset, self.size).slot;
            self.set_descriptor(entry, ring.descriptor(slot));
            last = entry;
            entry = self.next(entry);
        }
        self.set(field(head, NUM), num);
        self.set(field(head, LAST), last);
        let counter = self.area.u64(field(head, COUNTER));
        counter.store(self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.set_inflight(head, true);
        self.free_head = entry;
        self.free -= num;
        self.set_heads(entry, entry);
        let entries = Entries { head, last, num };
        self.chains.insert(ticket.position, entries);
    }

    pub(super) fn gave(&mut self, ticket: &Ticket) {
        // The free list changes when the batch is shown: until then others may be taken.
        self.batch.extend(self.chains.remove(&ticket.position));
    }

    /// Puts a chain's entries at the head of the free list. Nobody sees it before the heads are
    /// stored.
    fn free(&mut self, entries: Entries) {
        self.set(field(entries.last, NEXT), self.free_head);
        self.link(entries.last, self.free_head);
        self.free_head = entries.head;
        self.free += entries.num;
    }

    /// The batch is about to be shown; then the next used descriptor goes to `used`.
    pub(super) fn publishing(&mut self, used: Place) {
        if used == self.used {
            return;
        }
        let old_head = self.free_head;
        for index in 0..self.batch.len() {
            if let Some(entries) = self.batch.get(index).copied() {
                self.free(entries);
            }
        }
        self.set_heads(self.free_head, old_head);
        self.set_places(used, self.used);
        self.publishing = Some(used);
    }

    pub(super) fn published(&mut self) {
        let Some(used) = self.publishing.take() else {
            return;
        };
        for entries in &self.batch {
            self.set_inflight(entries.head, false);
        }
        self.batch.clear();
        self.set_heads(self.free_head, self.free_head);
        self.set_places(used, used);
        self.used = used;
    }

    pub(super) fn rewind(&mut self, tickets: &[Ticket]) {
        // The newest first: what is in flight has no gap in between.
        let newest = std::mem::take(&mut self.replays).into_iter().rev();
        let newest: Vec<_> = newest.map(|replay| replay.entries).collect();
        let tickets = tickets.iter().map(|ticket| ticket.position);
        let kept: Vec<_> = tickets
            .filter_map(|position| self.chains.remove(&position))
            .collect();
        for entries in newest.into_iter().chain(kept) {
            self.free(entries);
            self.set_heads(self.free_head, self.free_head);
            self.set_inflight(entries.head, false);
        }
    }
}
