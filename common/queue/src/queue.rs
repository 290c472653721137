//! A virtqueue: a ring, the chain that is being looked at, and the requests that are kept.

use crate::chain::{Chain, ChainError};
use crate::inflight::QueueInflight;
use crate::log::QueueLog;
use crate::memory::GuestMemory;
use crate::quick::Quick;
use crate::request::{Kept, Peeked, Register, Request};
use crate::ring::{Addresses, Config, Ring, RingError};

/// The device's side of one virtqueue.
///
/// The owner's loop: [`look`](Queue::look) once, [`pop`](Queue::pop) (or [`peek`](Queue::peek)) until `None`,
/// [`publish`](Queue::publish) and call if it says so; when there is nothing more,
/// [`arm`](Queue::arm), and sleep only if it returns false.
///
/// Memory is passed in, as it belongs to all queues of a device. After it has changed,
/// [`rebind`](Queue::rebind) before anything else.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    quick: Quick,
    /// What is not for the quick walk.
    chain: Chain,
    register: Register,
    /// Requests may have been left in the ring because the device kept too many.
    blocked: bool,
}

impl Queue {
    /// A queue in `memory`. A split ring's used index goes on from what stands in the ring.
    ///
    /// # Errors
    /// When the size or the base is not one that the ring may have, or an area is misaligned or
    /// not in memory.
    pub fn new(memory: &GuestMemory, config: &Config) -> Result<Self, RingError> {
        Ok(Self::on(Ring::new(memory, config)?))
    }

    /// A queue whose requests in flight are noted in `inflight`. Those that a queue before it has
    /// left there are popped again, before any other; from where it goes on then is found out, and
    /// the configuration's base counts for a new region only.
    ///
    /// # Errors
    /// As for [`Queue::new`], or when the region is not one of such a ring.
    pub fn tracked(
        memory: &GuestMemory,
        config: &Config,
        inflight: QueueInflight,
    ) -> Result<Self, RingError> {
        Ok(Self::on(Ring::tracked(memory, config, inflight)?))
    }

    fn on(ring: Ring) -> Self {
        let register = Register::new(ring.size());
        Self {
            ring,
            quick: Quick::new(),
            chain: Chain::new(),
            register,
            blocked: false,
        }
    }

    /// Whether a queue could be made from `config`. Touches nothing in memory.
    ///
    /// # Errors
    /// As for [`Queue::new`].
    pub fn check(memory: &GuestMemory, config: &Config) -> Result<(), RingError> {
        Ring::check(memory, config)
    }

    /// Whether the packed ring that `config` names, and that is said to be at base 0, is a new one.
    /// Base 0 is the beginning of the second round, and also what front-ends say of every ring that
    /// know nothing of packed ones: where nothing was used, the ring has not finished its first
    /// round. Of other bases this says nothing, and of a split ring `false`. Touches nothing in
    /// memory.
    ///
    /// # Errors
    /// As for [`Queue::new`].
    pub fn is_new(memory: &GuestMemory, config: &Config) -> Result<bool, RingError> {
        Ring::is_new(memory, config)
    }

    /// Goes on in other memory, or at other addresses. On an error nothing has changed: the queue
    /// still works on the memory that it had, and keeps it mapped.
    ///
    /// # Errors
    /// As for [`Queue::new`].
    pub fn rebind(&mut self, memory: &GuestMemory, addresses: &Addresses) -> Result<(), RingError> {
        self.ring.rebind(memory, addresses)
    }

    /// Has writes to guest memory logged from now on, or no more: those of answers before their
    /// used entries are shown.
    pub fn set_log(&mut self, log: Option<QueueLog>) {
        self.ring.set_log(log);
    }

    /// Looks for new requests. Whether [`Queue::pop`] will give any: not while the device keeps as
    /// many as the ring is long, or as much as there may be: see [`Queue::is_unblocked`].
    ///
    /// # Errors
    /// When the driver's index cannot be right. Nothing was taken; look again when it has kicked.
    #[inline]
    pub fn look(&mut self) -> Result<bool, RingError> {
        if self.is_full() {
            return Ok(false);
        }
        self.ring.look()
    }

    /// The next request. In a split ring [`Queue::look`] sees how many there are, and this gives
    /// no more than that; in a packed ring it looks for itself.
    ///
    /// # Errors
    /// What is wrong with its chain. It has been returned with length 0 (or skipped, when the
    /// driver named a descriptor that does not exist), and the queue goes on with the next.
    #[inline]
    pub fn pop<'a>(
        &'a mut self,
        memory: &'a GuestMemory,
    ) -> Option<Result<Request<'a>, ChainError>> {
        if self.is_full() {
            return None;
        }
        let (ticket, buffers) = match self.ring.take(&mut self.quick, memory) {
            Some(taken) => taken,
            None => match self.ring.take_carefully(&mut self.chain, memory)? {
                Ok(ticket) => (ticket, self.chain.buffers()),
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(Request::new(
            ticket,
            memory,
            buffers,
            &mut self.ring,
            &mut self.register,
        )))
    }

    /// The next request, left where it is: [`Peeked::take`] takes it. One that is dropped stays in
    /// the ring as if nobody had looked at it, so a device may find out how large it is, or what it
    /// says, before it decides. While one is left in the ring, [`Queue::arm`] returns true: a device
    /// that wants none for now leaves the queue disarmed.
    ///
    /// The driver may change what it has made available for as long as it is there. What a peek
    /// shows counts for its own [`Peeked::take`], and not for the next peek.
    ///
    /// # Errors
    /// As for [`Queue::pop`]: a chain that breaks a rule is not left in the ring.
    #[inline]
    pub fn peek<'a>(
        &'a mut self,
        memory: &'a GuestMemory,
    ) -> Option<Result<Peeked<'a>, ChainError>> {
        if self.is_full() {
            return None;
        }
        let (ticket, buffers) = match self.ring.peek(&mut self.quick, memory) {
            Some(peeked) => peeked,
            None => match self.ring.peek_carefully(&mut self.chain, memory)? {
                Ok(ticket) => (ticket, self.chain.buffers()),
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(Peeked {
            ticket,
            memory,
            buffers,
            ring: &mut self.ring,
            register: &mut self.register,
        }))
    }

    #[inline]
    fn is_full(&mut self) -> bool {
        let full = self.holds_too_many();
        self.blocked |= full;
        full
    }

    #[inline]
    fn holds_too_many(&self) -> bool {
        self.register.is_full() || self.ring.is_full()
    }

    /// Whether the device kept too many requests, and does so no more: then there may be some in
    /// the ring that nobody will kick for.
    pub fn is_unblocked(&mut self) -> bool {
        self.blocked && !self.holds_too_many() && {
            self.blocked = false;
            true
        }
    }

    /// Whether `kept` is a request of this run of this queue.
    pub fn owns(&self, kept: &Kept) -> bool {
        self.register.owns(kept)
    }

    /// Whether a request that the device kept would be taken again by whoever resumes the queue, if
    /// it stopped now: all that came behind it are kept as well, or it stays in a region. Else
    /// [`Queue::stop`] returns it with length 0.
    pub fn would_rewind(&self, kept: &Kept) -> bool {
        match self.ring.rewinds_from() {
            None => self.owns(kept),
            Some(first) => self.register.would_rewind(kept, self.ring.taken(), first),
        }
    }

    /// Takes up a request that the device kept. `None` when it is not of this queue, or of an
    /// earlier run of it, or its memory has been taken away: then it went back with length 0.
    pub fn resume<'a>(&'a mut self, memory: &'a GuestMemory, kept: Kept) -> Option<Request<'a>> {
        let (ticket, sound) = self.register.resume(kept, memory, &mut self.chain)?;
        if !sound {
            self.ring.push_used(ticket, 0);
            return None;
        }
        Some(Request::new(
            ticket,
            memory,
            self.chain.buffers(),
            &mut self.ring,
            &mut self.register,
        ))
    }

    /// Shows the driver all answers up to now. True when it wants to be called for them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if !self.register.is_empty() {
            let ring = &mut self.ring;
            self.register
                .collect_dropped(|ticket| ring.push_used(ticket, 0));
        }
        self.ring.publish()
    }

    /// Asks for a kick with the next request. True when there is one already, so that sleeping
    /// would miss it: [`look`](Queue::look) again.
    #[inline]
    pub fn arm(&mut self) -> bool {
        self.ring.arm() && !self.is_full()
    }

    /// Asks for no kicks until [`Queue::arm`].
    #[inline]
    pub fn disarm(&mut self) {
        self.ring.disarm();
    }

    /// How many entries there are of requests, in flight since before the queue was made, that were
    /// not popped yet and that [`Queue::stop`] would return with length 0, as the driver's ring has
    /// them no more. [`Queue::pop`] gives them.
    pub fn stranded(&self) -> u64 {
        match self.ring.rewinds_from() {
            Some(first) if self.ring.has_replays() => first.saturating_sub(self.ring.taken()),
            _ => 0,
        }
    }

    /// Stops the queue. Requests that are kept, or were dropped since the last
    /// [`publish`](Queue::publish), and are the newest are to be taken
    /// again by whoever resumes at the base that is returned; others go back with length 0. With a
    /// region that outlives it, all of them stay in there, and the base is behind them.
    pub fn stop(mut self) -> Stopped {
        let (position, stay) = match self.ring.rewinds_from() {
            None => (self.leave(), true),
            Some(first) => (self.rewind(first), false),
        };
        let call = self.ring.publish();
        let (base, more) = self.ring.base_at(position);
        Stopped {
            base,
            call,
            more: more || stay,
        }
    }

    /// Gives up all that is not answered and can be taken again from `first` on at the earliest.
    /// The position to go on from.
    fn rewind(&mut self, first: u64) -> u64 {
        let ring = &mut self.ring;
        while ring.taken() < first
            && let Some(ticket) = ring.pass()
        {
            ring.push_used(ticket, 0);
        }
        let (position, again) = self
            .register
            .rewind(ring.taken(), first, |ticket| ring.push_used(ticket, 0));
        ring.rewind(&again);
        position
    }

    /// Leaves all that is not answered where it is. The position behind it.
    fn leave(&mut self) -> u64 {
        while self.ring.pass().is_some() {}
        self.ring.taken()
    }
}

/// How a queue was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The base to go on from ([`Config::base`]).
    pub base: u32,
    /// The driver wants a last call.
    pub call: bool,
    /// There are requests from `base` on already, for which the driver may not kick again.
    pub more: bool,
}
