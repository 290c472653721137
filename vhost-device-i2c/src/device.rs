//! The I2C adapter (VIRTIO 1.4 §5.16): a request is a message, a group of requests a transaction.
//!
//! A request without `FAIL_NEXT` that follows none with it is answered at once. Those of a group
//! are kept until it is whole, and then done as one transaction with repeated starts.
//!
//! A driver whose queue is shorter than its group leaves the end out. So a group that is not
//! continued for `GRACE` is taken as whole; not sooner, because a driver adds the requests of
//! a group one by one, and an adapter that looks in between must not tear it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_device_backend::{Description, Device, QueueIndex, Queues, Refused, Resume, TURN, Timer};
use vhost_device_queue::{Kept, Reader, Request, Writer};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::access::Access;
use crate::address::Address;
use crate::host::{Bus, Data, Functionality, MAX_MESSAGE_LEN, MAX_MESSAGES, Message};
use crate::log::Log;

/// VIRTIO 1.4 §5.16.1.
const DEVICE_ID: u32 = 34;
/// VIRTIO 1.4 §5.16.3.
const ZERO_LENGTH_REQUEST: u64 = 1 << 0;
/// VIRTIO 1.4 §5.16.6, `flags`.
const FAIL_NEXT: u32 = 1 << 0;
const READ: u32 = 1 << 1;
/// VIRTIO 1.4 §5.16.6, `status`.
const OK: u8 = 0;
const ERR: u8 = 1;

/// The most that is written into a request: a message of Linux, whose length has 16 bits, and
/// its status. Without a limit, a guest could have 4 GiB of zeros written for each request.
const MAX_ANSWER: usize = u16::MAX as usize + 1;

/// The most bytes of messages that are stored for requests that wait: what a guest can make the
/// daemon store. How many requests wait, the queue limits.
const MAX_STORED: usize = 2 << 20;

/// How many groups are done before the session's other business has its turn. When one has failed
/// as it does on a bus that is stuck, none: the next may cost a timeout as well.
const MAX_DONE: usize = 16;

/// How many requests are kept before groups are done though more are available.
const ENOUGH: usize = 64;

/// How long an open group waits for its next request.
const GRACE: Duration = Duration::from_millis(20);

/// `struct virtio_i2c_out_hdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct OutHeader {
    addr: [u8; 2],
    padding: [u8; 2],
    flags: [u8; 4],
}

impl OutHeader {
    fn has(self, flag: u32) -> bool {
        u32::from_le_bytes(self.flags) & flag != 0
    }
}

/// Why a request is answered with ERR before it reaches its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a request without a header")]
    NoHeader,
    #[error("the address field {0:#06x} is no address")]
    Address(u16),
    #[error("the address {0} is not for this guest")]
    Denied(Address),
    #[error("the general call, address 0x00, is not for this guest: --device-list has to name it")]
    GeneralCall,
    #[error("the address {0} is read-only")]
    ReadOnly(Address),
    #[error("the bus has no 10-bit addresses, as in {0}")]
    TenBit(Address),
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    #[error("buffers of both directions in one request")]
    BothDirections,
    #[error("a group of more than {MAX_MESSAGES} requests")]
    GroupTooLong,
    #[error("a group with addresses on two buses")]
    TwoBuses,
    #[error("a group with a malformed request in it")]
    Malformed,
    #[error("requests with more than {MAX_STORED} bytes wait")]
    TooMuch,
    #[error("the adapter has no way to do these messages at {0}")]
    Unsupported(Address),
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Plan {
    bus: usize,
    address: Address,
    read: bool,
    length: usize,
}

/// A message that waits for the rest of its group.
#[derive(Debug)]
struct Planned {
    plan: Plan,
    /// What is written, or room for what is read.
    bytes: Vec<u8>,
}

/// A request of a group.
#[derive(Debug)]
struct Member {
    kept: Kept,
    /// None if it is for its sake that the group fails, or one before it.
    message: Option<Planned>,
}

/// Requests that are one transaction, in the driver's order.
#[derive(Debug, Default)]
struct Group {
    members: Vec<Member>,
    /// Why the group fails, if it does.
    refusal: Option<Refusal>,
}

/// The I2C adapter of one connection.
#[derive(Debug)]
pub struct Adapter {
    buses: Arc<[Arc<dyn Bus>]>,
    access: Arc<Access>,
    /// Those that are whole, in the driver's order.
    groups: VecDeque<Group>,
    /// The one behind them whose end has not come.
    open: Option<Group>,
    /// Whether the timer runs for it.
    grace: bool,
    /// Whether the timer runs because many requests wait.
    hurry: bool,
    /// How many requests are in all of them.
    kept: usize,
    /// How many bytes are stored for them.
    stored: usize,
    /// Whether a transaction has failed in a way that may have cost a timeout, in this turn.
    slow: bool,
    /// Room for the message of a request that is alone.
    room: Vec<u8>,
    timer: Timer,
    log: Log,
}

impl Adapter {
    /// An adapter for those addresses of `buses` that `access` lists.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(buses: Arc<[Arc<dyn Bus>]>, access: Arc<Access>, log: Log) -> io::Result<Self> {
        Ok(Self {
            buses,
            access,
            groups: VecDeque::new(),
            open: None,
            grace: false,
            hurry: false,
            kept: 0,
            stored: 0,
            slow: false,
            room: vec![0; MAX_MESSAGE_LEN],
            timer: Timer::new()?,
            log,
        })
    }

    /// Answers a request, or puts it behind those that wait.
    fn take(&mut self, mut request: Request<'_>) {
        let header = request.reader().read_obj::<OutHeader>().ok();
        // One without a header does not say whether its group goes on: one that is open does.
        let goes_on = header.map_or(self.open.is_some(), |header| header.has(FAIL_NEXT));
        let Some(room) = request.writable_len().checked_sub(1) else {
            if goes_on {
                self.open_group();
            }
            self.spoil_group();
            self.end_group_unless(goes_on);
            return;
        };
        let sent = request.reader().remaining();
        let plan = header.ok_or(Refusal::NoHeader);
        let plan = plan.and_then(|header| self.plan(header, sent, room));
        if self.is_idle() && !self.slow && !goes_on {
            self.answer_alone(request, plan);
        } else {
            self.add_to_group(request, plan);
            self.end_group_unless(goes_on);
        }
    }

    /// Checks a request with so many bytes for the bus and room for so many of it.
    fn plan(&self, header: OutHeader, sent: usize, room: usize) -> Result<Plan, Refusal> {
        let field = u16::from_le_bytes(header.addr);
        let address = Address::decode(field).ok_or(Refusal::Address(field))?;
        let route = self.access.route(address).ok_or(match address {
            Address::GENERAL_CALL => Refusal::GeneralCall,
            _ => Refusal::Denied(address),
        })?;
        let read = header.has(READ);
        let (length, other) = if read { (room, sent) } else { (sent, room) };
        if other > 0 {
            return Err(Refusal::BothDirections);
        }
        if length > MAX_MESSAGE_LEN {
            return Err(Refusal::TooLong(length));
        }
        if !read && !route.may_write(length) {
            return Err(Refusal::ReadOnly(address));
        }
        let bus = self.buses.get(route.bus).ok_or(Refusal::Denied(address))?;
        let functions = bus.functionality();
        if address.is_ten_bit() && !functions.has(Functionality::TEN_BIT_ADDRESSES) {
            return Err(Refusal::TenBit(address));
        }
        Ok(Plan {
            bus: route.bus,
            address,
            read,
            length,
        })
    }

    /// Does a request that is no part of a group.
    fn answer_alone(&mut self, mut request: Request<'_>, plan: Result<Plan, Refusal>) {
        let (reader, writer) = request.split();
        let done = match plan {
            Ok(plan) => self.transfer_alone(plan, reader, writer),
            Err(refusal) => {
                self.log.refused(refusal);
                None
            }
        };
        match done {
            Some(()) => request.complete(),
            None => fail(request),
        }
    }

    /// `None` when it was not done.
    fn transfer_alone(
        &mut self,
        plan: Plan,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
    ) -> Option<()> {
        let bytes = self.room.get_mut(..plan.length)?;
        if !plan.read {
            reader.read_exact(bytes).ok()?;
        }
        let bus = self.buses.get(plan.bus)?;
        match bus.transfer(&mut [message(plan, bytes)]) {
            Ok(()) => {
                self.log.done(plan.bus, &**bus);
                write_success(writer, if plan.read { bytes } else { &[] })
            }
            Err(failure) => {
                self.slow |= self.log.failed(plan.bus, &**bus, plan.address, failure);
                None
            }
        }
    }

    /// Whether no request waits.
    fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.open.is_none()
    }

    /// The group that is not whole yet. More comes for it, so it does not end with the timer.
    fn open_group(&mut self) -> &mut Group {
        self.grace = false;
        self.open.get_or_insert_default()
    }

    fn add_to_group(&mut self, mut request: Request<'_>, plan: Result<Plan, Refusal>) {
        let room = MAX_STORED.saturating_sub(self.stored);
        let group = self.open_group();
        let message = plan.and_then(|plan| group.take(plan, room, request.reader()));
        let message = message.map_err(|refusal| group.refuse(refusal)).ok();
        let stored = message.as_ref().map_or(0, |message| message.bytes.len());
        let kept = request.keep();
        group.members.push(Member { kept, message });
        self.kept += 1;
        self.stored += stored;
    }

    /// A request without room for a status was dropped: if it is of a group, that must not be done
    /// without it.
    fn spoil_group(&mut self) {
        self.log.malformed();
        if let Some(group) = &mut self.open {
            group.refuse(Refusal::Malformed);
        }
    }

    fn end_group_unless(&mut self, goes_on: bool) {
        if goes_on {
            return;
        }
        self.close_group();
        if self.kept >= ENOUGH && !self.hurry {
            self.hurry = true;
            self.timer.arm(Duration::ZERO);
        }
    }

    /// The open group is whole. One whose requests were all dropped is nothing to do, and must not
    /// wait: no bound on what waits would count it.
    fn close_group(&mut self) {
        let group = self.open.take();
        self.groups
            .extend(group.filter(|group| !group.members.is_empty()));
    }

    /// Does the groups that are whole, in order, and sees to the one that is not.
    fn flush(&mut self, queues: &mut impl Resume) {
        self.slow = false;
        self.hurry = false;
        let start = Instant::now();
        for _ in 0..MAX_DONE {
            if self.slow || start.elapsed() >= TURN {
                break;
            }
            let Some(group) = self.groups.pop_front() else {
                break;
            };
            self.kept -= group.members.len();
            self.stored -= group.stored();
            self.execute(group, queues);
        }
        if !self.groups.is_empty() {
            self.hurry = true;
            self.timer.arm(Duration::ZERO);
        } else if self.open.is_some() && !self.grace {
            self.grace = true;
            self.timer.arm(GRACE);
        }
    }

    /// The timer has fired. If it ran for the open group, the driver has left its end out.
    fn wake(&mut self, queues: &mut impl Resume) {
        if self.grace {
            self.grace = false;
            self.close_group();
        }
        self.flush(queues);
    }

    fn execute(&mut self, mut group: Group, queues: &mut impl Resume) {
        let done = match group.refusal {
            None => self.transfer_group(&mut group.members),
            Some(refusal) => {
                self.log.refused(refusal);
                0
            }
        };
        for (position, member) in group.members.into_iter().enumerate() {
            let message = member.message.filter(|_| position < done);
            give_back(queues, member.kept, message.as_ref().map(Planned::answer));
        }
    }

    /// Returns how many messages were done.
    fn transfer_group(&mut self, members: &mut [Member]) -> usize {
        let messages = members
            .iter_mut()
            .filter_map(|member| member.message.as_mut());
        let planned: Vec<_> = messages.collect();
        let plans: Vec<_> = planned.iter().map(|message| message.plan).collect();
        let Some((&first, last)) = plans.first().zip(plans.len().checked_sub(1)) else {
            return 0;
        };
        let Some(bus) = self.buses.get(first.bus) else {
            return 0;
        };
        let mut messages: Vec<_> = planned.into_iter().map(Planned::message).collect();
        match bus.transfer(&mut messages) {
            Ok(()) => {
                self.log.done(first.bus, &**bus);
                plans.len()
            }
            Err(failure) => {
                // Whatever the bus says, one of them failed.
                let done = failure.done.min(last);
                let address = plans.get(done).map_or(first.address, |plan| plan.address);
                self.slow |= self.log.failed(first.bus, &**bus, address, failure);
                done
            }
        }
    }

    /// Gives up the requests that wait.
    fn forget(&mut self) {
        self.groups.clear();
        self.open = None;
        self.grace = false;
        self.hurry = false;
        self.kept = 0;
        self.stored = 0;
        self.slow = false;
        self.timer.disarm();
    }
}

impl Group {
    /// Takes one more message into the transaction, with its bytes: at most [`MAX_MESSAGE_LEN`],
    /// and not more than there is `room` for. When the group fails anyway, it stores nothing.
    fn take(&self, plan: Plan, room: usize, reader: &mut Reader<'_>) -> Result<Planned, Refusal> {
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        if self.members.len() >= MAX_MESSAGES {
            return Err(Refusal::GroupTooLong);
        }
        let first = self.members.first();
        let first = first.and_then(|member| member.message.as_ref());
        if first.is_some_and(|first| first.plan.bus != plan.bus) {
            return Err(Refusal::TwoBuses);
        }
        if plan.length > room {
            return Err(Refusal::TooMuch);
        }
        let mut bytes = vec![0; plan.length];
        if !plan.read {
            let read = reader.read_exact(&mut bytes);
            read.map_err(|_| Refusal::Malformed)?;
        }
        Ok(Planned { plan, bytes })
    }

    /// The first reason counts.
    fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }

    fn stored(&self) -> usize {
        let messages = self.members.iter().filter_map(|m| m.message.as_ref());
        messages.map(|message| message.bytes.len()).sum()
    }
}

impl Planned {
    fn message(&mut self) -> Message<'_> {
        message(self.plan, &mut self.bytes)
    }

    /// The bytes that the driver gets, once it is done.
    fn answer(&self) -> &[u8] {
        if self.plan.read { &self.bytes } else { &[] }
    }
}

fn message(plan: Plan, bytes: &mut [u8]) -> Message<'_> {
    Message {
        address: plan.address,
        data: if plan.read {
            Data::Read(bytes)
        } else {
            Data::Write(bytes)
        },
    }
}

fn give_back(queues: &mut impl Resume, kept: Kept, answer: Option<&[u8]>) {
    let Some(mut request) = queues.resume(kept) else {
        return;
    };
    match answer.and_then(|bytes| write_success(request.writer(), bytes)) {
        Some(()) => request.complete(),
        None => fail(request),
    }
}

fn write_success(writer: &mut Writer<'_>, bytes: &[u8]) -> Option<()> {
    writer.write_all(bytes).ok()?;
    writer.write_all(&[OK]).ok()
}

/// The status is the last byte. What is before it becomes zeros, so that nothing that was not read
/// is taken for data; where that would be too much, it stays as it is.
fn fail(mut request: Request<'_>) {
    let writer = request.writer();
    let before = writer.remaining().saturating_sub(1);
    if before < MAX_ANSWER && writer.write_zeros(before).is_ok() && writer.write_all(&[ERR]).is_ok()
    {
        request.complete();
    } else {
        request.complete_with_last(ERR);
    }
}

impl Device for Adapter {
    const WAITS: bool = true;

    fn describe(&self) -> Description {
        Description {
            device_id: DEVICE_ID,
            queues: 1,
            features: ZERO_LENGTH_REQUEST,
        }
    }

    fn negotiated(&mut self, features: u64) -> Result<(), Refused> {
        if features & ZERO_LENGTH_REQUEST == 0 {
            let why = "the guest's driver has not accepted VIRTIO_I2C_F_ZERO_LENGTH_REQUEST, which \
                       it must; perhaps its front-end does not offer it";
            return Err(Refused(why.to_owned()));
        }
        Ok(())
    }

    fn handle(&mut self, _queue: QueueIndex, request: Request<'_>) {
        self.take(request);
    }

    fn queue_drained(&mut self, _queue: QueueIndex, queues: &mut Queues<'_>) {
        self.flush(queues);
    }

    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.timer.as_fd()]
    }

    fn on_event(&mut self, _source: usize, queues: &mut Queues<'_>) {
        if self.timer.take() {
            self.wake(queues);
        }
    }

    fn queue_stopped(&mut self, _queue: QueueIndex) {
        self.forget();
    }

    fn reset(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests;
