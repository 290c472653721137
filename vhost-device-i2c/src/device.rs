//! The I2C adapter (VIRTIO 1.4 §5.18): a request is a message, a group of requests a transaction.
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
use std::time::Duration;

use vhost_device_backend::{
    Description, Device, QueueIndex, Queues, RateLimit, Refused, Resume, Timer,
};
use vhost_device_queue::{Kept, Reader, Request, Writer};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::access::Access;
use crate::address::Address;
use crate::host::{Bus, Data, Failure, MAX_MESSAGE_LEN, MAX_MESSAGES, Message};

/// VIRTIO 1.4 §5.18.1.
const DEVICE_ID: u32 = 34;
/// VIRTIO 1.4 §5.18.3.
const ZERO_LENGTH_REQUEST: u64 = 1 << 0;
/// VIRTIO 1.4 §5.18.6, `flags`.
const FAIL_NEXT: u32 = 1 << 0;
const READ: u32 = 1 << 1;
/// VIRTIO 1.4 §5.18.6, `status`.
const OK: u8 = 0;
const ERR: u8 = 1;

/// The most that is written into a request: a message of Linux, whose length has 16 bits, and
/// its status. A guest could else have 4 GiB of zeros written, request for request.
const MAX_ANSWER: usize = u16::MAX as usize + 1;

/// The most requests that are kept, each with its bytes: what a guest can have the daemon store.
const MAX_KEPT: usize = 256;

/// How many groups are done before the session's other business has its turn: on a bus that is
/// stuck, each costs a timeout.
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
enum Refusal {
    #[error("the address field {0:#06x} is no address")]
    Address(u16),
    #[error("the address {0} is not for this guest")]
    Denied(Address),
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
    #[error("too many requests wait")]
    TooMany,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Plan {
    bus: usize,
    address: Address,
    read: bool,
    length: usize,
}

/// A request of a group.
#[derive(Debug)]
struct Member {
    kept: Kept,
    plan: Plan,
    /// What is written, or room for what is read.
    bytes: Vec<u8>,
}

/// Requests that are one transaction.
#[derive(Debug, Default)]
struct Group {
    members: Vec<Member>,
    /// Requests that only wait for the group's failure.
    refused: Vec<Kept>,
    /// Why the group fails, if it does.
    refusal: Option<Refusal>,
    /// How many requests it has, kept or not.
    count: usize,
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
    /// How many requests are in all of them.
    kept: usize,
    /// Room for the message of a request that is alone.
    room: Vec<u8>,
    timer: Timer,
    log: Log,
}

impl Adapter {
    /// An adapter of `guest` for those addresses of `buses` that `access` lists.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(
        guest: String,
        buses: Arc<[Arc<dyn Bus>]>,
        access: Arc<Access>,
        limits: Limits,
    ) -> io::Result<Self> {
        Ok(Self {
            buses,
            access,
            groups: VecDeque::new(),
            open: None,
            grace: false,
            kept: 0,
            room: vec![0; MAX_MESSAGE_LEN],
            timer: Timer::new()?,
            log: Log::new(guest, limits),
        })
    }

    /// Answers a request, or puts it behind those that wait.
    fn take(&mut self, mut request: Request<'_>) {
        let room = request.writable_len();
        let Ok(header) = request.reader().read_obj::<OutHeader>() else {
            self.spoil_group();
            return;
        };
        if room == 0 || room > MAX_ANSWER {
            if header.has(FAIL_NEXT) {
                self.open.get_or_insert_default();
            }
            self.spoil_group();
            self.end_group_unless(header.has(FAIL_NEXT));
            return;
        }
        let plan = self.plan(header, request.reader().remaining(), room - 1);
        if self.is_idle() && !header.has(FAIL_NEXT) {
            self.answer_alone(request, plan);
        } else {
            self.add_to_group(request, plan);
            self.end_group_unless(header.has(FAIL_NEXT));
        }
    }

    /// Checks a request with so many bytes for the bus and room for so many of it.
    fn plan(&self, header: OutHeader, sent: usize, room: usize) -> Result<Plan, Refusal> {
        let field = u16::from_le_bytes(header.addr);
        let address = Address::decode(field).ok_or(Refusal::Address(field))?;
        let route = self.access.route(address).ok_or(Refusal::Denied(address))?;
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
        if address.is_ten_bit() && !has_ten_bit(&**bus) {
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
        let answered = match plan {
            Ok(plan) => self.transfer_alone(plan, reader, writer),
            Err(refusal) => {
                self.log.refused(refusal);
                write_failure(writer)
            }
        };
        if answered.is_some() {
            request.complete();
        }
    }

    /// `None` when the request is too short for what was planned, which cannot be.
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
                self.log.done(&**bus);
                write_success(writer, if plan.read { bytes } else { &[] })
            }
            Err(failure) => {
                self.log.failed(&**bus, plan.address, failure);
                write_failure(writer)
            }
        }
    }

    /// Whether no request waits.
    fn is_idle(&self) -> bool {
        self.groups.is_empty() && self.open.is_none()
    }

    fn add_to_group(&mut self, mut request: Request<'_>, plan: Result<Plan, Refusal>) {
        let full = self.kept >= MAX_KEPT;
        let group = self.open.get_or_insert_default();
        self.grace = false;
        group.count += 1;
        let plan = if full {
            Err(Refusal::TooMany)
        } else {
            plan.and_then(|plan| group.check(plan))
        };
        if let Err(refusal) = plan {
            group.refuse(refusal);
        }
        if full || group.count > MAX_MESSAGES {
            // It fails whatever comes, and what has not been stored need not be.
            if write_failure(request.writer()).is_some() {
                request.complete();
            }
            return;
        }
        let bytes = plan.and_then(|plan| fetch(plan, request.reader()));
        match (plan, bytes) {
            (Ok(plan), Ok(bytes)) => group.members.push(Member {
                kept: request.keep(),
                plan,
                bytes,
            }),
            (Err(refusal), _) | (_, Err(refusal)) => {
                group.refuse(refusal);
                group.refused.push(request.keep());
            }
        }
        self.kept += 1;
    }

    /// A request that cannot be answered was dropped: if it is of a group, that must not be done
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
        self.groups.extend(self.open.take());
        if self.kept >= ENOUGH {
            self.timer.arm(Duration::ZERO);
        }
    }

    /// Does the groups that are whole, in order, and sees to the one that is not.
    fn flush(&mut self, queues: &mut impl Resume) {
        for _ in 0..MAX_DONE {
            let Some(group) = self.groups.pop_front() else {
                break;
            };
            self.kept -= group.members.len() + group.refused.len();
            self.execute(group, queues);
        }
        self.grace = self.groups.is_empty() && self.open.is_some();
        if self.grace {
            self.timer.arm(GRACE);
        } else if !self.groups.is_empty() {
            self.timer.arm(Duration::ZERO);
        }
    }

    /// The timer has fired. If it ran for the open group, the driver has left its end out.
    fn wake(&mut self, queues: &mut impl Resume) {
        if self.grace {
            self.groups.extend(self.open.take());
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
            let answer = (position < done).then_some(&member.bytes);
            let answer = answer.map(|bytes| if member.plan.read { &bytes[..] } else { &[] });
            give_back(queues, member.kept, answer);
        }
        for kept in group.refused {
            give_back(queues, kept, None);
        }
    }

    /// Returns how many messages were done.
    fn transfer_group(&mut self, members: &mut [Member]) -> usize {
        let count = members.len();
        let Some(Plan { bus, address, .. }) = members.first().map(|member| member.plan) else {
            return 0;
        };
        let Some(bus) = self.buses.get(bus) else {
            return 0;
        };
        let mut messages: Vec<_> = members
            .iter_mut()
            .map(|member| message(member.plan, &mut member.bytes))
            .collect();
        match bus.transfer(&mut messages) {
            Ok(()) => {
                self.log.done(&**bus);
                count
            }
            Err(failure) => {
                self.log.failed(&**bus, address, failure);
                failure.done.min(count.saturating_sub(1))
            }
        }
    }

    /// Gives up the requests that wait.
    fn forget(&mut self) {
        self.groups.clear();
        self.open = None;
        self.grace = false;
        self.kept = 0;
        self.timer.disarm();
    }
}

impl Group {
    /// Whether one more message fits in the transaction.
    fn check(&self, plan: Plan) -> Result<Plan, Refusal> {
        if self.count > MAX_MESSAGES {
            return Err(Refusal::GroupTooLong);
        }
        let other = self.members.first();
        if other.is_some_and(|member| member.plan.bus != plan.bus) {
            return Err(Refusal::TwoBuses);
        }
        Ok(plan)
    }

    /// The first reason counts.
    fn refuse(&mut self, refusal: Refusal) {
        self.refusal.get_or_insert(refusal);
    }
}

fn has_ten_bit(bus: &dyn Bus) -> bool {
    use crate::host::Functionality;
    bus.functionality().has(Functionality::TEN_BIT_ADDRESSES)
}

/// The bytes that a planned message writes, or room for those that it reads: at most
/// [`MAX_MESSAGE_LEN`].
fn fetch(plan: Plan, reader: &mut Reader<'_>) -> Result<Vec<u8>, Refusal> {
    let mut bytes = vec![0; plan.length];
    if !plan.read {
        let read = reader.read_exact(&mut bytes);
        read.map_err(|_| Refusal::Malformed)?;
    }
    Ok(bytes)
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
    let writer = request.writer();
    let written = match answer {
        Some(bytes) => write_success(writer, bytes),
        None => write_failure(writer),
    };
    if written.is_some() {
        request.complete();
    }
}

fn write_success(writer: &mut Writer<'_>, bytes: &[u8]) -> Option<()> {
    writer.write_all(bytes).ok()?;
    writer.write_all(&[OK]).ok()
}

/// The status is the last byte: what is before it becomes zeros, so that the used length covers
/// it and nothing that was not read is taken for data.
fn write_failure(writer: &mut Writer<'_>) -> Option<()> {
    let before = writer.remaining().checked_sub(1)?;
    writer.write_zeros(before).ok()?;
    writer.write_all(&[ERR]).ok()
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
            let why = "the driver does not take VIRTIO_I2C_F_ZERO_LENGTH_REQUEST, which it must";
            return Err(Refused(why.to_owned()));
        }
        Ok(())
    }

    fn handle(&mut self, _queue: QueueIndex, request: Request<'_>) {
        self.take(request);
    }

    fn queue_drained(&mut self, _queue: QueueIndex, queues: &mut Queues<'_>) {
        if !self.is_idle() {
            self.flush(queues);
        }
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

/// What limits the device's log lines about its guest. A clone shares the limits.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    malformed: RateLimit,
    refused: RateLimit,
    failed: RateLimit,
    works: RateLimit,
}

/// What the user is told: what fails, once a burst.
#[derive(Debug)]
struct Log {
    guest: String,
    limits: Limits,
    /// How many transactions have failed one after the other.
    failures: u64,
}

impl Log {
    fn new(guest: String, limits: Limits) -> Self {
        Self {
            guest,
            limits,
            failures: 0,
        }
    }

    fn malformed(&mut self) {
        self.limits.malformed.warn(format_args!(
            "{}: a request without a header or without room for a status goes back empty",
            self.guest
        ));
    }

    fn refused(&mut self, refusal: Refusal) {
        self.limits
            .refused
            .warn(format_args!("{}: refused: {refusal}", self.guest));
    }

    fn failed(&mut self, bus: &dyn Bus, address: Address, failure: Failure) {
        let (guest, name) = (&self.guest, bus.name());
        if failure.is_refusal() {
            log::debug!("{guest}: {name}: nobody at {address} takes this: {failure}");
            return;
        }
        if self.failures == 0 {
            self.limits.failed.warn(format_args!(
                "{guest}: {name}: cannot reach {address}: {failure}"
            ));
        }
        self.failures += 1;
    }

    fn done(&mut self, bus: &dyn Bus) {
        let count = std::mem::take(&mut self.failures);
        if count > 0 {
            let (guest, name) = (&self.guest, bus.name());
            self.limits.works.warn(format_args!(
                "{guest}: {name}: works again after {count} failures"
            ));
        }
    }
}

#[cfg(test)]
mod tests;
