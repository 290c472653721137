//! Requests, and those that a device keeps to answer later. Neither can be lost: whichever way
//! one is dropped, the driver gets its buffer back.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::chain::{Buffers, Chain, MAX_CHAIN_DESCRIPTORS};
use crate::cursor::{Reader, Writer};
use crate::memory::GuestMemory;
use crate::ring::{Ring, Ticket};

/// One request of the driver: a descriptor chain, checked.
///
/// Answer it with [`Request::complete`], or hold on to it with [`Request::keep`]. Dropping it
/// returns it with length 0.
#[derive(Debug)]
pub struct Request<'a> {
    ticket: Ticket,
    reader: Reader<'a>,
    writer: Writer<'a>,
    buffers: Buffers<'a>,
    ring: &'a mut Ring,
    register: &'a mut Register,
}

impl<'a> Request<'a> {
    #[inline]
    pub(crate) fn new(
        ticket: Ticket,
        memory: &'a GuestMemory,
        buffers: Buffers<'a>,
        ring: &'a mut Ring,
        register: &'a mut Register,
    ) -> Self {
        Self {
            ticket,
            reader: Reader::new(memory, &buffers),
            writer: Writer::new(memory, &buffers),
            buffers,
            ring,
            register,
        }
    }

    /// What the driver sent.
    #[inline]
    pub fn reader(&mut self) -> &mut Reader<'a> {
        &mut self.reader
    }

    /// Room for the answer.
    #[inline]
    pub fn writer(&mut self) -> &mut Writer<'a> {
        &mut self.writer
    }

    /// Both ends at once.
    #[inline]
    pub fn split(&mut self) -> (&mut Reader<'a>, &mut Writer<'a>) {
        (&mut self.reader, &mut self.writer)
    }

    /// How many bytes the driver sent, read or not.
    #[inline]
    pub fn readable_len(&self) -> usize {
        self.buffers.readable_len
    }

    /// How many bytes the answer may have, written or not.
    #[inline]
    pub fn writable_len(&self) -> usize {
        self.buffers.writable_len
    }

    /// Returns the request to the driver. The used length is what was written.
    #[inline]
    pub fn complete(self) {
        let mut this = ManuallyDrop::new(self);
        let written = this.writer.written();
        let (ticket, buffers) = (this.ticket, this.buffers);
        // Fits: a chain's buffers add up to less than 2^32 (`ChainError::TooLarge`).
        this.ring.answer(ticket, written as u32, &buffers, written);
    }

    /// Returns the request to the driver with `status` in the last byte of its room, and nothing
    /// else written now: for one whose room is too large to fill it up to there. The used length
    /// is that of what was written before, as it counts from the first byte and may be less than
    /// was written (VIRTIO 1.4 §2.7.8).
    pub fn complete_with_last(self, status: u8) {
        self.writer.write_last(status);
        self.ring.mark_last(&self.buffers);
        self.complete();
    }

    /// Puts the request aside, to be answered through [`Queue::resume`](crate::Queue::resume).
    /// What was read or written so far is forgotten: it begins again.
    pub fn keep(self) -> Kept {
        let mut this = ManuallyDrop::new(self);
        let (ticket, buffers) = (this.ticket, this.buffers);
        let written = this.writer.written();
        this.ring.mark_written(&buffers, written);
        this.register.add(ticket, &buffers)
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let written = self.writer.written();
        self.ring.answer(self.ticket, 0, &self.buffers, written);
    }
}

/// A request that is still in the ring. It stays there unless it is taken.
#[derive(Debug)]
#[must_use = "a request that is not taken stays in the ring"]
pub struct Peeked<'a> {
    pub(crate) ticket: Ticket,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) buffers: Buffers<'a>,
    pub(crate) ring: &'a mut Ring,
    pub(crate) register: &'a mut Register,
}

impl<'a> Peeked<'a> {
    /// What the driver sent, from the beginning.
    #[inline]
    pub fn reader(&self) -> Reader<'a> {
        Reader::new(self.memory, &self.buffers)
    }

    /// How many bytes the driver sent.
    #[inline]
    pub fn readable_len(&self) -> usize {
        self.buffers.readable_len
    }

    /// How many bytes the answer may have.
    #[inline]
    pub fn writable_len(&self) -> usize {
        self.buffers.writable_len
    }

    /// Takes the request out of the ring.
    #[inline]
    pub fn take(self) -> Request<'a> {
        self.ring.advance(&self.ticket);
        Request::new(
            self.ticket,
            self.memory,
            self.buffers,
            self.ring,
            self.register,
        )
    }
}

/// A request that a device holds on to. Dropping it returns it to the driver with length 0.
#[derive(Debug)]
pub struct Kept {
    queue: u64,
    position: u64,
    /// Address and length of each segment, the readable ones first.
    segments: Box<[(u64, u32)]>,
    readable: usize,
    /// Where to report that it was dropped; nowhere once it has been resumed.
    dropped: Option<Arc<Mutex<Vec<u64>>>>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(dropped) = &self.dropped else {
            return;
        };
        // Poisoned or not, a list of numbers is whole.
        let mut dropped = dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.push(self.position);
    }
}

/// What the register knows of a kept request.
#[derive(Clone, Copy, Debug)]
struct Entry {
    ticket: Ticket,
    segments: usize,
}

/// The most segments of kept requests, together: a driver that makes the same long chain
/// available over and over would else fill the host's memory with lists of them. A ring of 32768
/// with requests of one descriptor fits in it.
const MAX_KEPT_SEGMENTS: usize = 32 * MAX_CHAIN_DESCRIPTORS;

/// The requests of one queue that a device keeps. All of this is off the fast path.
#[derive(Debug)]
pub(crate) struct Register {
    /// Tells this queue's requests from another's, or from those of an earlier run of it.
    queue: u64,
    /// By position.
    kept: BTreeMap<u64, Entry>,
    /// How many segments they have together.
    segments: usize,
    /// Whether these are as many as there may be.
    full: bool,
    /// How many requests there may be: as many as the ring is long.
    room: usize,
    dropped: Arc<Mutex<Vec<u64>>>,
}

impl Register {
    /// For a ring of `size`.
    pub(crate) fn new(size: u16) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            queue: NEXT.fetch_add(1, Ordering::Relaxed),
            kept: BTreeMap::new(),
            segments: 0,
            full: false,
            room: size.into(),
            dropped: Arc::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether the device keeps as many requests as the ring may have, or as many segments as there
    /// may be.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    fn count(&mut self) {
        self.full = self.kept.len() >= self.room || self.segments >= MAX_KEPT_SEGMENTS;
    }

    fn remove(&mut self, position: u64) -> Option<Ticket> {
        let entry = self.kept.remove(&position)?;
        self.segments -= entry.segments;
        self.count();
        Some(entry.ticket)
    }

    fn add(&mut self, ticket: Ticket, buffers: &Buffers<'_>) -> Kept {
        let position = ticket.position;
        let segments = buffers.segments.len();
        self.kept.insert(position, Entry { ticket, segments });
        self.segments += segments;
        self.count();
        Kept {
            queue: self.queue,
            position,
            segments: buffers
                .segments
                .iter()
                // Fits: a segment is a part of a descriptor, whose length is a u32.
                .map(|segment| (segment.guest_addr, segment.len as u32))
                .collect(),
            readable: buffers.readable,
            dropped: Some(Arc::clone(&self.dropped)),
        }
    }

    pub(crate) fn owns(&self, kept: &Kept) -> bool {
        kept.queue == self.queue
    }

    /// Forgets `kept` and returns its ticket, with its segments in `chain`, and
    /// whether they are all in memory still. `None` when it is not of this queue.
    pub(crate) fn resume(
        &mut self,
        mut kept: Kept,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Option<(Ticket, bool)> {
        if !self.owns(&kept) {
            return None;
        }
        let ticket = self.remove(kept.position)?;
        // It may be kept again, under the same position.
        kept.dropped = None;
        let sound = chain.gather(memory, &kept.segments, kept.readable).is_ok();
        Some((ticket, sound))
    }

    /// Where to go on from when the ring stops with `taken` entries taken: those that are kept and
    /// the newest without a gap can be taken again, but none before `first`.
    fn rewound(&self, taken: u64, first: u64) -> u64 {
        let mut base = taken;
        for Entry { ticket, .. } in self.kept.values().rev() {
            if ticket.end() != base || ticket.position < first {
                break;
            }
            base = ticket.position;
        }
        base
    }

    /// Whether `kept` is taken again by whoever resumes the ring, when it stops with `taken`
    /// entries taken.
    pub(crate) fn would_rewind(&self, kept: &Kept, taken: u64, first: u64) -> bool {
        self.owns(kept) && kept.position >= self.rewound(taken, first)
    }

    /// Gives `back` the ticket of each request that a device dropped.
    pub(crate) fn collect_dropped(&mut self, mut back: impl FnMut(Ticket)) {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        let positions = std::mem::take(&mut *dropped);
        drop(dropped);
        for position in positions {
            if let Some(ticket) = self.remove(position) {
                back(ticket);
            }
        }
    }

    /// Forgets all kept requests, as the ring stops with `taken` entries taken and can go on from
    /// `first` at the earliest. The position to go on from is returned, with the tickets from there
    /// on, the newest first; those of the requests before it are given `back`.
    pub(crate) fn rewind(
        &mut self,
        taken: u64,
        first: u64,
        mut back: impl FnMut(Ticket),
    ) -> (u64, Vec<Ticket>) {
        let base = self.rewound(taken, first);
        self.segments = 0;
        let mut kept = std::mem::take(&mut self.kept);
        self.count();
        let again = kept.split_off(&base);
        kept.into_values().for_each(|entry| back(entry.ticket));
        let again = again.into_values().rev().map(|entry| entry.ticket);
        (base, again.collect())
    }
}
