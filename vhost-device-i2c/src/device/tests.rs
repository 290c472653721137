//! The device on a ring of its own: no socket, no session, no clock.

use std::sync::Mutex;

use proptest::prelude::*;
use rustix::io::Errno;
use vhost_device_driver::Buffer;
use vhost_device_rig::Rig;

use super::*;
use crate::access::Grant;
use crate::host::sim::Sim;
use crate::host::{BusId, Failure};

const RING_SIZE: u16 = 1024;
const ROOM: u64 = 64 << 20;

/// Fills a status that nobody has written.
const UNTOUCHED: u8 = 0xee;

const EEPROM: u16 = 0x50 << 1;
const REGISTERS: u16 = 0x20 << 1;
const TROUBLE: u16 = 0x30 << 1;
const NOBODY: u16 = 0x51 << 1;

/// A bus that notes each transaction, in front of another.
#[derive(Debug)]
struct Spy {
    bus: Sim,
    functionality: u32,
    seen: Mutex<Vec<Vec<(u16, bool, usize)>>>,
    /// What the next ones fail with.
    fail: Mutex<VecDeque<Failure>>,
}

impl Bus for Spy {
    fn name(&self) -> &str {
        "the spy"
    }

    fn id(&self) -> BusId {
        self.bus.id()
    }

    fn functionality(&self) -> Functionality {
        Functionality(self.functionality)
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.bus.set_timeout(timeout)
    }

    fn set_retries(&self, retries: u32) -> io::Result<()> {
        self.bus.set_retries(retries)
    }

    fn transfer(&self, messages: &mut [Message<'_>]) -> Result<(), Failure> {
        let note = |message: &Message<'_>| {
            let read = matches!(message.data, Data::Read(_));
            (message.address.number(), read, message.data.len())
        };
        let notes = messages.iter().map(note).collect();
        self.seen.lock().unwrap().push(notes);
        match self.fail.lock().unwrap().pop_front() {
            Some(failure) => Err(failure),
            None => self.bus.transfer(messages),
        }
    }
}

/// A guest with a ring, and the device on its other side.
struct Bench {
    rig: Rig,
    spy: Arc<Spy>,
    device: Adapter,
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    data: u64,
    length: u32,
    status: u64,
}

fn spy(functionality: u32) -> Arc<Spy> {
    Arc::new(Spy {
        bus: Sim::standard("sim".to_owned(), false, 25.0),
        functionality,
        seen: Mutex::default(),
        fail: Mutex::default(),
    })
}

fn whole_bus(bus: usize) -> Grant {
    Grant {
        bus,
        ranges: Vec::new(),
    }
}

impl Bench {
    fn new() -> Self {
        Self::with_access(&[whole_bus(0)], &[])
    }

    fn with_access(grants: &[Grant], read_only: &[u8]) -> Self {
        let functionality = Functionality::I2C | Functionality::TEN_BIT_ADDRESSES;
        Self::with_bus(spy(functionality), grants, read_only)
    }

    fn with_bus(spy: Arc<Spy>, grants: &[Grant], read_only: &[u8]) -> Self {
        let mut access = Access::new(&["one", "two"], grants).unwrap();
        for &number in read_only {
            let address = Address::Seven(number);
            access.protect(&(address..=address), 1);
        }
        let other: Arc<dyn Bus> = Arc::new(Sim::standard("two".to_owned(), false, 25.0));
        let first: Arc<dyn Bus> = spy.clone();
        let buses = [first, other];
        let log = Log::new("guest 0".to_owned(), buses.len());
        let device = Adapter::new(Arc::new(buses), Arc::new(access), log);
        Self {
            rig: Rig::new(1, RING_SIZE, ROOM),
            spy,
            device: device.unwrap(),
        }
    }

    fn header(&mut self, addr: u16, flags: u32) -> Buffer {
        let mut header = [0; 8];
        header[..2].copy_from_slice(&addr.to_le_bytes());
        header[4..].copy_from_slice(&flags.to_le_bytes());
        Buffer::readable(self.rig.place(&header), 8)
    }

    fn status(&mut self) -> Buffer {
        Buffer::writable(self.rig.place(&[UNTOUCHED]), 1)
    }

    /// Makes a write available.
    fn write(&mut self, addr: u16, flags: u32, bytes: &[u8]) -> Sent {
        let header = self.header(addr, flags);
        let length = bytes.len() as u32;
        let data = self.rig.place(bytes);
        let status = self.status();
        let buffers = [header, Buffer::readable(data, length), status];
        self.send(&buffers, data, length)
    }

    /// Makes a read available.
    fn read(&mut self, addr: u16, flags: u32, length: u32) -> Sent {
        let header = self.header(addr, flags | READ);
        let data = self.rig.place(&vec![UNTOUCHED; length as usize]);
        let status = self.status();
        let buffers = [header, Buffer::writable(data, length), status];
        self.send(&buffers, data, length)
    }

    fn send(&mut self, buffers: &[Buffer], data: u64, length: u32) -> Sent {
        let buffers: Vec<_> = buffers.iter().copied().filter(|b| b.len > 0).collect();
        self.rig.rings[0].add(&buffers).unwrap();
        let status = buffers.last().map_or(0, |b| b.addr + u64::from(b.len) - 1);
        Sent {
            data,
            length,
            status,
        }
    }

    /// Shows the requests to the device; nothing more comes. However many turns it takes, which on
    /// a busy machine are more, all groups are done that are whole.
    fn run(&mut self) {
        self.turn();
        while !self.device.groups.is_empty() {
            self.rig.resume(|back| self.device.flush(back));
        }
    }

    /// The same, for one turn.
    fn turn(&mut self) {
        self.run_without_end();
        self.rig.resume(|back| self.device.flush(back));
    }

    /// Shows the requests to the device, as if there were more behind them.
    fn run_without_end(&mut self) {
        self.rig.serve(0, |request| self.device.take(request));
    }

    /// The timer has fired.
    fn wake(&mut self) {
        self.rig.resume(|back| self.device.wake(back));
    }

    fn used(&mut self) -> Vec<u32> {
        self.rig.used(0)
    }

    fn status_of(&self, sent: Sent) -> u8 {
        self.rig.guest.read_vec(sent.status, 1)[0]
    }

    fn statuses(&self, sent: &[Sent]) -> Vec<u8> {
        sent.iter().map(|&sent| self.status_of(sent)).collect()
    }

    fn data(&self, sent: Sent) -> Vec<u8> {
        self.rig.guest.read_vec(sent.data, sent.length as usize)
    }

    /// The next transactions fail so.
    fn fail(&self, failures: &[Failure]) {
        self.spy.fail.lock().unwrap().extend(failures);
    }

    fn seen(&self) -> Vec<Vec<(u16, bool, usize)>> {
        std::mem::take(&mut *self.spy.seen.lock().unwrap())
    }
}

#[test]
fn i1_zero_length_requests_are_offered() {
    let description = Bench::new().device.describe();
    assert_eq!(description.device_id, 34);
    assert_eq!(description.queues, 1);
    assert_eq!(description.features, 1);
    assert!(Bench::new().device.config().is_empty());
}

#[test]
fn i2_a_driver_without_zero_length_requests_is_refused() {
    let mut bench = Bench::new();
    let version_1 = 1 << 32;
    assert!(bench.device.negotiated(version_1).is_err());
    assert!(bench.device.negotiated(0).is_err());
    assert!(bench.device.negotiated(version_1 | 1).is_ok());
}

#[test]
fn i3_what_is_written_is_read_back() {
    let mut bench = Bench::new();
    let write = bench.write(EEPROM, 0, &[8, 1, 2, 3]);
    let pointer = bench.write(EEPROM, FAIL_NEXT, &[8]);
    let read = bench.read(EEPROM, 0, 4);
    bench.run();
    assert_eq!(bench.statuses(&[write, pointer, read]), [OK; 3]);
    assert_eq!(bench.data(read), [1, 2, 3, 0xff]);
    assert_eq!(bench.used(), [1, 1, 5]);
}

#[test]
fn i4_i5_what_the_driver_sends_is_not_changed() {
    let mut bench = Bench::new();
    let before = bench.rig.alloc(0);
    // Padding and reserved flags that should be 0.
    let header = bench.header(REGISTERS, 0xffff_fffc);
    bench.rig.guest.write(before + 2, &[0xab, 0xcd]);
    let data = bench.rig.place(&[1, 2, 3]);
    let status = bench.status();
    let sent = bench.rig.guest.read_vec(before, 11);
    bench.send(&[header, Buffer::readable(data, 3), status], data, 3);
    let failing = bench.rig.alloc(0);
    let nobody = bench.write(NOBODY, 0, &[4, 5]);
    bench.run();
    assert_eq!(bench.rig.guest.read_vec(before, 11), sent);
    assert_eq!(bench.status_of(nobody), ERR);
    assert_eq!(bench.rig.guest.read_vec(failing + 8, 2), [4, 5]);
}

#[test]
fn i6_a_read_fills_its_buffer() {
    for length in [1, 2, 255, 256, 4096, 8192] {
        let mut bench = Bench::new();
        let read = bench.read(EEPROM, 0, length);
        bench.run();
        assert_eq!(bench.used(), [length + 1]);
        assert_eq!(bench.status_of(read), OK);
        assert_eq!(bench.data(read), vec![0xff; length as usize]);
        assert_eq!(bench.seen(), [vec![(0x50, true, length as usize)]]);
    }
}

#[test]
fn i7_requests_are_done_in_order() {
    let mut bench = Bench::new();
    for n in 0..100 {
        let group = if n % 3 == 0 { FAIL_NEXT } else { 0 };
        bench.write(REGISTERS, group, &vec![0; n + 1]);
    }
    bench.run();
    while !bench.device.is_idle() {
        bench.wake();
    }
    let lengths: Vec<_> = bench.seen().into_iter().flatten().map(|m| m.2).collect();
    assert_eq!(lengths, (1..=100).collect::<Vec<_>>());
    assert_eq!(bench.used().len(), 100);
}

#[test]
fn i7_a_request_behind_a_group_waits_for_it() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.write(REGISTERS, 0, &[2, 2]);
    bench.write(REGISTERS, 0, &[3, 3, 3]);
    bench.run_without_end();
    assert!(bench.seen().is_empty());
    bench.run();
    let one = vec![(0x20, false, 1), (0x20, false, 2)];
    assert_eq!(bench.seen(), [one, vec![(0x20, false, 3)]]);
}

#[test]
fn i8_the_first_that_fails_and_the_rest_of_its_group_fail() {
    let mut bench = Bench::new();
    let first = bench.write(REGISTERS, FAIL_NEXT, &[1]);
    let second = bench.read(NOBODY, FAIL_NEXT, 3);
    let third = bench.read(REGISTERS, 0, 2);
    bench.run();
    assert_eq!(bench.statuses(&[first, second, third]), [OK, ERR, ERR]);
    assert_eq!(bench.used(), [1, 4, 3], "the status is within the length");
    assert_eq!(bench.data(second), [0; 3]);
    assert_eq!(bench.data(third), [0; 2]);
}

#[test]
fn i9_other_groups_are_untouched_by_a_failure() {
    let mut bench = Bench::new();
    let before = bench.write(REGISTERS, 0, &[1, 7]);
    let failing = [
        bench.write(NOBODY, FAIL_NEXT, &[1]),
        bench.write(REGISTERS, 0, &[1, 66]),
    ];
    let after = [
        bench.write(REGISTERS, FAIL_NEXT, &[1]),
        bench.read(REGISTERS, 0, 1),
    ];
    bench.run();
    assert_eq!(bench.status_of(before), OK);
    assert_eq!(bench.statuses(&failing), [ERR; 2]);
    assert_eq!(bench.statuses(&after), [OK; 2]);
    assert_eq!(bench.data(after[1]), [7], "the one behind was not executed");
}

#[test]
fn i9_requests_of_no_group_are_transactions_of_their_own() {
    let mut bench = Bench::new();
    let sent = [
        bench.write(NOBODY, 0, &[1]),
        bench.write(REGISTERS, 0, &[1]),
        bench.read(REGISTERS, 0, 1),
    ];
    bench.run_without_end();
    assert_eq!(bench.statuses(&sent), [ERR, OK, OK], "answered at once");
    assert_eq!(bench.seen().len(), 3);
}

#[test]
fn i10_ten_bit_addresses_reach_their_devices() {
    let mut bench = Bench::new();
    // 0x150: bits 9 and 8 are 01.
    let field = 0x50 << 8 | 0b1111_0010;
    let write = bench.write(field, 0, &[3, 9]);
    let group = [bench.write(field, FAIL_NEXT, &[3]), bench.read(field, 0, 1)];
    bench.run();
    assert_eq!(bench.status_of(write), OK);
    assert_eq!(bench.statuses(&group), [OK; 2]);
    assert_eq!(bench.data(group[1]), [9]);
    assert_eq!(bench.seen()[0], [(0x150, false, 2)]);
}

#[test]
fn i10_ten_bit_addresses_fail_on_a_bus_without_them() {
    let mut bench = Bench::with_bus(spy(Functionality::I2C), &[whole_bus(0)], &[]);
    let sent = bench.write(0x50 << 8 | 0b1111_0010, 0, &[3, 9]);
    bench.run();
    assert_eq!(bench.status_of(sent), ERR);
    assert!(bench.seen().is_empty());
}

#[test]
fn i10_what_is_no_address_fails() {
    let mut bench = Bench::new();
    let sent = [0xa1, 0x1a0, 0xffff].map(|field| bench.write(field, 0, &[1]));
    bench.run();
    assert_eq!(bench.statuses(&sent), [ERR; 3]);
    assert!(bench.seen().is_empty());
}

#[test]
fn i11_zero_length_requests_have_a_direction() {
    let mut bench = Bench::new();
    let sent = [
        bench.write(EEPROM, 0, &[]),
        bench.read(EEPROM, 0, 0),
        bench.write(NOBODY, 0, &[]),
        bench.read(NOBODY, 0, 0),
    ];
    bench.run();
    assert_eq!(bench.statuses(&sent), [OK, OK, ERR, ERR]);
    assert_eq!(bench.used(), [1; 4]);
    let seen = bench.seen();
    assert_eq!(seen[0], [(0x50, false, 0)]);
    assert_eq!(seen[1], [(0x50, true, 0)]);
}

#[test]
fn test_a_group_is_one_transaction() {
    let mut bench = Bench::new();
    for _ in 0..MAX_MESSAGES - 1 {
        bench.write(REGISTERS, FAIL_NEXT, &[1]);
    }
    bench.write(REGISTERS, 0, &[1]);
    bench.run();
    assert_eq!(bench.seen().len(), 1);
    assert_eq!(bench.used(), [1; MAX_MESSAGES]);
}

#[test]
fn test_a_group_that_is_too_long_fails_and_leaves_the_others_alone() {
    let mut bench = Bench::new();
    let mut sent = Vec::new();
    for _ in 0..MAX_MESSAGES + 10 {
        sent.push(bench.write(REGISTERS, FAIL_NEXT, &[1, 66]));
    }
    sent.push(bench.write(REGISTERS, 0, &[1, 66]));
    let next = bench.read(REGISTERS, 0, 1);
    bench.run();
    assert_eq!(bench.statuses(&sent), [ERR; MAX_MESSAGES + 11]);
    assert_eq!(bench.status_of(next), OK);
    assert_eq!(bench.seen(), [vec![(0x20, true, 1)]]);
    assert_eq!(bench.used().len(), MAX_MESSAGES + 12);
}

#[test]
fn test_an_open_group_is_not_torn_while_its_driver_adds_to_it() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    assert!(bench.used().is_empty());
    bench.read(REGISTERS, 0, 1);
    bench.run();
    assert_eq!(bench.seen(), [vec![(0x20, false, 1), (0x20, true, 1)]]);
    assert_eq!(bench.used(), [1, 2]);
}

#[test]
fn test_an_open_group_is_done_when_nothing_follows() {
    let mut bench = Bench::new();
    let sent = bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    assert_eq!(bench.status_of(sent), UNTOUCHED);
    assert!(bench.device.grace);
    bench.wake();
    assert_eq!(bench.status_of(sent), OK);
    assert!(bench.device.is_idle());
    assert_eq!(bench.device.kept, 0);
}

#[test]
fn test_what_the_timer_was_not_meant_for_stays_open() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    // More comes between the timer and its event.
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run_without_end();
    bench.wake();
    assert!(bench.seen().is_empty());
    bench.wake();
    assert_eq!(bench.seen()[0].len(), 2);
}

#[test]
fn test_many_groups_leave_room_for_other_business() {
    let mut bench = Bench::new();
    for _ in 0..MAX_DONE + 3 {
        bench.write(REGISTERS, FAIL_NEXT, &[1]);
        bench.write(REGISTERS, 0, &[1]);
    }
    bench.turn();
    let done = bench.seen().len();
    assert!((1..=MAX_DONE).contains(&done), "{done}");
    bench.run();
    assert_eq!(bench.seen().len(), MAX_DONE + 3 - done);
    assert!(bench.device.is_idle());
}

#[test]
fn test_what_is_stored_is_bounded() {
    let mut bench = Bench::new();
    let bytes = [1; MAX_MESSAGE_LEN];
    // Of 8: no group is too long.
    let fit = MAX_STORED / MAX_MESSAGE_LEN;
    let sent: Vec<_> = (0..fit + 8)
        .map(|n| bench.write(REGISTERS, if n % 8 == 7 { 0 } else { FAIL_NEXT }, &bytes))
        .collect();
    bench.run_without_end();
    assert_eq!(bench.device.stored, MAX_STORED);
    assert!(bench.used().is_empty());
    bench.run();
    while !bench.device.is_idle() {
        bench.wake();
    }
    assert_eq!(bench.used().len(), fit + 8);
    let (first, rest) = sent.split_at(fit);
    assert_eq!(bench.statuses(first), vec![OK; fit]);
    assert_eq!(bench.statuses(rest), [ERR; 8]);
    assert_eq!((bench.device.kept, bench.device.stored), (0, 0));
}

#[test]
fn i7_many_small_requests_that_wait_are_all_done() {
    let mut bench = Bench::new();
    let sent: Vec<_> = (0..300)
        .map(|n| bench.write(REGISTERS, if n % 2 == 0 { FAIL_NEXT } else { 0 }, &[1]))
        .collect();
    bench.run_without_end();
    assert_eq!(bench.device.kept, 300);
    while !bench.device.is_idle() {
        bench.wake();
    }
    assert_eq!(bench.statuses(&sent), [OK; 300]);
}

#[test]
fn test_a_bus_that_is_stuck_leaves_room_for_other_business() {
    let mut bench = Bench::new();
    bench.fail(&[Failure::whole(Errno::TIMEDOUT); 20]);
    let mut sent: Vec<_> = (0..20)
        .map(|n| bench.write(REGISTERS, 0, &vec![1; n]))
        .collect();
    sent.push(bench.write(REGISTERS, 0, &[1; 20]));
    bench.turn();
    assert_eq!(bench.seen().len(), 2, "one as it came, one at the end");
    for left in (1..=18).rev() {
        assert_eq!(bench.device.kept, left + 1);
        bench.wake();
        assert_eq!(bench.seen().len(), 1);
    }
    bench.wake();
    assert!(bench.device.is_idle());
    assert_eq!(bench.statuses(&sent[..20]), [ERR; 20]);
    assert_eq!(bench.status_of(sent[20]), OK);
    // Then all is as before: a request that is alone is answered as it comes.
    let next = bench.read(REGISTERS, 0, 1);
    bench.run_without_end();
    assert_eq!(bench.status_of(next), OK);
}

#[test]
fn test_failures_are_counted_for_each_bus() {
    let range = |number| vec![Address::Seven(number)..=Address::Seven(number)];
    let grants = [(0, 0x20), (1, 0x50)].map(|(bus, number)| Grant {
        bus,
        ranges: range(number),
    });
    let mut bench = Bench::with_access(&grants, &[]);
    for expected in 1..=3 {
        bench.fail(&[Failure::whole(Errno::TIMEDOUT)]);
        let sent = [bench.write(REGISTERS, 0, &[1]), bench.read(EEPROM, 0, 1)];
        bench.run();
        assert_eq!(bench.statuses(&sent), [ERR, OK]);
        assert_eq!(bench.device.log.failures(0), expected);
    }
    assert_eq!(bench.device.log.failures(1), 0);
}

#[test]
fn test_what_an_adapter_cannot_do_is_no_failure_of_the_bus() {
    let mut bench = Bench::new();
    bench.fail(&[Failure::whole(Errno::OPNOTSUPP)]);
    let sent = bench.write(REGISTERS, 0, &[1]);
    bench.run();
    assert_eq!(bench.status_of(sent), ERR);
    assert_eq!(bench.device.log.failures(0), 0);
    assert!(!bench.device.slow);
}

#[test]
fn test_an_open_group_that_began_malformed_has_its_own_time() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    assert!(bench.device.grace);
    // Without room for a status: one ends that group, the other begins the next.
    for flags in [0, FAIL_NEXT] {
        let header = bench.header(REGISTERS, flags);
        bench.send(&[header], 0, 0);
    }
    bench.run_without_end();
    bench.wake();
    let rest = bench.write(REGISTERS, 0, &[1, 66]);
    bench.run();
    assert_eq!(bench.status_of(rest), ERR);
    assert!(bench.seen().is_empty());
}

#[test]
fn test_every_message_of_every_group_is_checked() {
    let only = Grant {
        bus: 0,
        ranges: vec![Address::Seven(0x20)..=Address::Seven(0x20)],
    };
    let mut bench = Bench::with_access(&[only], &[]);
    let alone = bench.write(EEPROM, 0, &[1, 2]);
    let group = [
        bench.write(REGISTERS, FAIL_NEXT, &[1, 66]),
        bench.write(EEPROM, FAIL_NEXT, &[1, 2]),
        bench.write(REGISTERS, 0, &[1, 66]),
    ];
    let after = bench.read(REGISTERS, 0, 1);
    bench.run();
    assert_eq!(bench.status_of(alone), ERR);
    assert_eq!(bench.statuses(&group), [ERR; 3]);
    assert_eq!(bench.status_of(after), OK);
    assert_eq!(bench.seen(), [vec![(0x20, true, 1)]]);
}

#[test]
fn test_a_read_only_address_cannot_be_written() {
    let mut bench = Bench::with_access(&[whole_bus(0)], &[0x50]);
    let write = bench.write(EEPROM, 0, &[0, 1]);
    let group = [
        bench.write(EEPROM, FAIL_NEXT, &[0]),
        bench.read(EEPROM, 0, 1),
    ];
    let hidden = [
        bench.write(EEPROM, FAIL_NEXT, &[0]),
        bench.write(EEPROM, 0, &[0, 1]),
    ];
    bench.run();
    assert_eq!(bench.status_of(write), ERR);
    assert_eq!(bench.statuses(&group), [OK; 2]);
    assert_eq!(bench.statuses(&hidden), [ERR; 2]);
    assert_eq!(bench.data(group[1]), [0xff]);
}

#[test]
fn test_the_general_call_is_for_those_who_were_granted_it_by_name() {
    const GENERAL_CALL: u16 = 0;
    let mut bench = Bench::new();
    let sent = [
        bench.write(GENERAL_CALL, 0, &[6]),
        bench.read(REGISTERS, 0, 1),
    ];
    bench.run();
    assert_eq!(bench.statuses(&sent), [ERR, OK]);
    assert_eq!(bench.seen(), [vec![(0x20, true, 1)]]);
    let named = Grant {
        bus: 0,
        ranges: vec![Address::GENERAL_CALL..=Address::Seven(0x50)],
    };
    for (read_only, reaches) in [(&[][..], true), (&[0x50], false)] {
        let mut bench = Bench::with_access(std::slice::from_ref(&named), read_only);
        bench.write(GENERAL_CALL, 0, &[6]);
        bench.run();
        assert_eq!(!bench.seen().is_empty(), reaches, "{read_only:?}");
    }
}

#[test]
fn test_two_buses_are_one_adapter_but_no_group() {
    let range = |number| vec![Address::Seven(number)..=Address::Seven(number)];
    let grants = [(0, 0x20), (1, 0x50)].map(|(bus, number)| Grant {
        bus,
        ranges: range(number),
    });
    let mut bench = Bench::with_access(&grants, &[]);
    let alone = [bench.write(REGISTERS, 0, &[1]), bench.read(EEPROM, 0, 1)];
    let group = [
        bench.write(REGISTERS, FAIL_NEXT, &[1]),
        bench.read(EEPROM, 0, 1),
    ];
    bench.run();
    assert_eq!(bench.statuses(&alone), [OK; 2]);
    assert_eq!(bench.statuses(&group), [ERR; 2]);
    assert_eq!(bench.seen().len(), 1, "the spy is on the first bus");
}

#[test]
fn test_long_messages() {
    let mut bench = Bench::new();
    let longest = [
        bench.write(REGISTERS, 0, &[1; MAX_MESSAGE_LEN]),
        bench.read(REGISTERS, 0, MAX_MESSAGE_LEN as u32),
    ];
    let longer = [
        bench.write(REGISTERS, 0, &[1; MAX_MESSAGE_LEN + 1]),
        bench.write(REGISTERS, 0, &[1; 65_537]),
        bench.read(REGISTERS, 0, MAX_MESSAGE_LEN as u32 + 1),
        bench.read(REGISTERS, 0, 65_535),
        bench.read(REGISTERS, FAIL_NEXT, 65_535),
    ];
    bench.run();
    bench.wake();
    assert_eq!(bench.statuses(&longest), [OK; 2]);
    assert_eq!(bench.statuses(&longer), [ERR; 5]);
    assert_eq!(bench.seen().len(), 2);
    assert_eq!(bench.used(), [1, 8193, 1, 1, 8194, 65_536, 65_536]);
}

#[test]
fn i8_a_request_that_is_refused_for_its_shape_has_err_in_its_last_byte() {
    let mut bench = Bench::new();
    // More than any message: nothing is written but the status.
    let huge = bench.read(REGISTERS, 0, 48 << 20);
    bench.run();
    assert_eq!(bench.used(), [0]);
    assert_eq!(bench.status_of(huge), ERR);
    assert!(bench.data(huge).iter().all(|&byte| byte == UNTOUCHED));
    // No header, or a part of one.
    for length in [0, 1, 7] {
        let header = bench.header(REGISTERS, 0);
        let answer = bench.rig.place(&[UNTOUCHED; 4]);
        let header = Buffer::readable(header.addr, length);
        let short = bench.send(&[header, Buffer::writable(answer, 4)], answer, 3);
        bench.run();
        assert_eq!(bench.used(), [4]);
        assert_eq!(
            (bench.data(short), bench.status_of(short)),
            (vec![0; 3], ERR)
        );
    }
    // In a group, all of it fails, each in its turn.
    let group = [
        bench.write(REGISTERS, FAIL_NEXT, &[1, 66]),
        bench.read(REGISTERS, FAIL_NEXT, 1 << 20),
        bench.write(REGISTERS, 0, &[1, 66]),
    ];
    let next = bench.read(REGISTERS, 0, 1);
    bench.run();
    assert_eq!(bench.statuses(&group), [ERR; 3]);
    assert_eq!(bench.status_of(next), OK);
    assert_eq!(bench.used(), [1, 0, 1, 2]);
    assert_eq!(bench.seen(), [vec![(0x20, true, 1)]]);
}

#[test]
fn i8_malformed_requests_fail_with_their_group() {
    let mut bench = Bench::new();
    let first = bench.write(REGISTERS, FAIL_NEXT, &[1, 66]);
    // Without room for a status, it goes back empty. Too short for a header; empty of what is read.
    let header = bench.header(REGISTERS, FAIL_NEXT);
    bench.send(&[header], 0, 0);
    let short = Buffer::readable(header.addr, 7);
    let status = bench.status();
    let short = bench.send(&[short, status], 0, 0);
    let status = bench.status();
    let empty = bench.send(&[status], 0, 0);
    let last = bench.write(REGISTERS, 0, &[1, 66]);
    let next = bench.write(REGISTERS, 0, &[1]);
    bench.run();
    let group = [first, short, empty, last];
    assert_eq!(bench.statuses(&group), [ERR; 4]);
    assert_eq!(bench.status_of(next), OK);
    assert_eq!(bench.used(), [0, 1, 1, 1, 1, 1]);
    assert_eq!(bench.seen(), [vec![(0x20, false, 1)]]);
}

#[test]
fn test_a_group_that_begins_malformed_fails() {
    let mut bench = Bench::new();
    let header = bench.header(REGISTERS, FAIL_NEXT);
    bench.send(&[header], 0, 0);
    let rest = bench.write(REGISTERS, 0, &[1, 66]);
    bench.run();
    assert_eq!(bench.status_of(rest), ERR);
    assert!(bench.seen().is_empty());
}

#[test]
fn test_buffers_of_both_directions_fail() {
    let mut bench = Bench::new();
    for flags in [0, READ] {
        let header = bench.header(REGISTERS, flags);
        let data = bench.rig.place(&[1; 4]);
        let room = Buffer::writable(bench.rig.alloc(4), 4);
        let status = bench.status();
        let buffers = [header, Buffer::readable(data, 4), room, status];
        let sent = bench.send(&buffers, data, 4);
        bench.run();
        assert_eq!(bench.status_of(sent), ERR);
        assert_eq!(bench.used(), [5]);
    }
    assert!(bench.seen().is_empty());
}

#[test]
fn r1_any_layout_of_the_buffers_will_do() {
    let mut bench = Bench::new();
    // Header and data cut into bytes, the answer and its status in one.
    let mut bytes = [0; 8];
    bytes[0] = REGISTERS as u8;
    let address = bench.rig.place(&[&bytes[..], &[5, 9, 8]].concat());
    let mut buffers: Vec<_> = (0..11).map(|n| Buffer::readable(address + n, 1)).collect();
    buffers.push(bench.status());
    let write = bench.send(&buffers, address, 3);
    let pointer = bench.write(REGISTERS, FAIL_NEXT, &[5]);
    let header = bench.header(REGISTERS, READ);
    let data = bench.rig.place(&[UNTOUCHED; 3]);
    let read = bench.send(&[header, Buffer::writable(data, 3)], data, 2);
    bench.run();
    assert_eq!(bench.statuses(&[write, pointer, read]), [OK; 3]);
    assert_eq!(bench.data(read), [9, 8]);
    assert_eq!(bench.used(), [1, 1, 3]);
}

#[test]
fn test_a_device_that_says_no_says_yes_again() {
    let mut bench = Bench::new();
    let sent: Vec<_> = [2, 0, 0, 0]
        .into_iter()
        .map(|count| bench.write(TROUBLE, 0, &[count]))
        .collect();
    bench.run();
    assert_eq!(bench.statuses(&sent), [OK, ERR, ERR, OK]);
}

#[test]
fn test_failures_are_counted_until_the_bus_works_again() {
    let mut bench = Bench::new();
    for expected in 1..=3 {
        bench.fail(&[Failure::whole(Errno::TIMEDOUT)]);
        let sent = bench.write(REGISTERS, 0, &[1]);
        bench.run();
        assert_eq!(bench.status_of(sent), ERR);
        assert_eq!(bench.device.log.failures(0), expected);
    }
    bench.write(NOBODY, 0, &[1]);
    bench.run();
    assert_eq!(
        bench.device.log.failures(0),
        3,
        "nobody there is no failure"
    );
    bench.write(REGISTERS, 0, &[1]);
    bench.run();
    assert_eq!(bench.device.log.failures(0), 0);
}

#[test]
fn test_a_bus_that_claims_too_much_is_not_believed() {
    let mut bench = Bench::new();
    let error = Errno::IO;
    bench.fail(&[Failure { done: 99, error }]);
    let sent = [
        bench.write(REGISTERS, FAIL_NEXT, &[1]),
        bench.write(REGISTERS, 0, &[1]),
    ];
    bench.run();
    assert_eq!(bench.statuses(&sent), [OK, ERR]);
}

#[test]
fn test_a_stopped_queue_leaves_nothing_behind() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    bench.device.queue_stopped(0);
    assert!(bench.device.is_idle());
    assert_eq!(bench.device.kept, 0);
    bench.wake();
    let next = bench.read(REGISTERS, 0, 1);
    bench.run();
    assert_eq!(bench.status_of(next), OK);
    assert_eq!(bench.seen().len(), 1);
}

#[test]
fn test_requests_of_a_ring_that_is_gone_are_passed_over() {
    let mut bench = Bench::new();
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.write(REGISTERS, FAIL_NEXT, &[1]);
    bench.run();
    bench.rig.replace_queue(0);
    bench.wake();
    assert!(bench.device.is_idle());
    assert!(bench.used().is_empty());
}

#[test]
fn groups_of_which_nothing_is_left_are_not_kept() {
    let mut bench = Bench::new();
    let more = bench.header(EEPROM, FAIL_NEXT);
    let end = bench.header(EEPROM, 0);
    for _ in 0..10 {
        for _ in 0..64 {
            // Without room for a status, so each is dropped.
            bench.send(&[more], 0, 0);
            bench.send(&[end], 0, 0);
        }
        bench.run_without_end();
        assert_eq!(bench.used(), [0; 128]);
        assert!(bench.device.is_idle());
    }
}

/// What a guest, its bus and the time do.
#[derive(Clone, Debug)]
enum Deed {
    /// Field `addr`, flags, bytes for the bus, and room with that for the status.
    Request(u16, u32, usize, usize),
    /// Less than a header.
    Short(usize, usize),
    Run,
    RunWithoutEnd,
    Wake,
    Fail(usize, Errno),
}

fn deed() -> impl Strategy<Value = Deed> {
    let addr = prop_oneof![
        4 => prop::sample::select(vec![REGISTERS, EEPROM, TROUBLE, NOBODY, 0x50f2, 0x21 << 1]),
        1 => any::<u16>(),
    ];
    let flags = prop_oneof![4 => 0_u32..4, 1 => any::<u32>()];
    let length = || {
        prop_oneof![
            6 => 0_usize..4,
            1 => Just(MAX_MESSAGE_LEN),
            1 => Just(MAX_MESSAGE_LEN + 1),
        ]
    };
    let request =
        (addr, flags, length(), length(), 0..8).prop_map(|(addr, flags, sent, room, odd)| {
            match (flags & READ != 0, odd) {
                (_, 0) => Deed::Request(addr, flags, sent, room),
                (true, _) => Deed::Request(addr, flags, 0, room + 1),
                (false, _) => Deed::Request(addr, flags, sent, 1),
            }
        });
    let error = prop::sample::select(vec![Errno::NXIO, Errno::TIMEDOUT, Errno::OPNOTSUPP]);
    prop_oneof![
        16 => request,
        1 => (1_usize..8, 0_usize..3).prop_map(|(sent, room)| Deed::Short(sent, room)),
        2 => Just(Deed::Run),
        2 => Just(Deed::RunWithoutEnd),
        2 => Just(Deed::Wake),
        1 => (0..4_usize, error).prop_map(|(done, error)| Deed::Fail(done, error)),
    ]
}

proptest! {
    /// Whatever is done: each request comes back once, those with an answer in their order;
    /// nothing reaches a bus that is not granted, or is longer than it may be.
    #[test]
    fn i7_nothing_is_lost_and_nothing_more_is_granted(
        deeds in prop::collection::vec(deed(), 1..120)
    ) {
        let own = [0x20, 0x30, 0x50].map(|number| Address::Seven(number)..=Address::Seven(number));
        let grant = Grant { bus: 0, ranges: own.to_vec() };
        let mut bench = Bench::with_access(&[grant], &[0x50]);
        let mut sent = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Request(addr, flags, length, room) => {
                    let header = bench.header(addr, flags);
                    // All zeros: nothing that the device at 0x30 would fail for.
                    let data = bench.rig.place(&vec![0; length]);
                    let answer = bench.rig.place(&vec![UNTOUCHED; room]);
                    let data = Buffer::readable(data, length as u32);
                    let buffers = [header, data, Buffer::writable(answer, room as u32)];
                    let buffers: Vec<_> = buffers.into_iter().filter(|b| b.len > 0).collect();
                    let head = bench.rig.rings[0].add(&buffers).unwrap();
                    sent.push((head, answer, room));
                }
                Deed::Short(length, room) => {
                    let header = bench.rig.place(&vec![0; length]);
                    let answer = bench.rig.place(&vec![UNTOUCHED; room]);
                    let header = Buffer::readable(header, length as u32);
                    let buffers = [header, Buffer::writable(answer, room as u32)];
                    let buffers: Vec<_> = buffers.into_iter().filter(|b| b.len > 0).collect();
                    let head = bench.rig.rings[0].add(&buffers).unwrap();
                    sent.push((head, answer, room));
                }
                Deed::Run => bench.run(),
                Deed::RunWithoutEnd => bench.run_without_end(),
                Deed::Wake => bench.wake(),
                Deed::Fail(done, error) => bench.fail(&[Failure { done, error }]),
            }
        }
        bench.run();
        while !bench.device.is_idle() {
            bench.wake();
        }
        prop_assert_eq!((bench.device.kept, bench.device.stored), (0, 0));
        let used: Vec<_> = std::iter::from_fn(|| bench.rig.rings[0].pop_used()).collect();
        prop_assert_eq!(used.len(), sent.len());
        let answered: Vec<_> = used.iter().filter(|used| used.len > 0).collect();
        let due: Vec<_> = sent.iter().filter(|(.., room)| *room > 0).collect();
        prop_assert_eq!(answered.len(), due.len());
        for (used, (head, answer, room)) in answered.into_iter().zip(due) {
            prop_assert_eq!((used.head, used.len as usize), (*head, *room));
            let status = bench.rig.guest.read_vec(answer + *room as u64 - 1, 1)[0];
            prop_assert!(status == OK || status == ERR);
        }
        for transaction in bench.seen() {
            prop_assert!((1..=MAX_MESSAGES).contains(&transaction.len()));
            for (address, read, length) in transaction {
                prop_assert!([0x20, 0x30, 0x50].contains(&address));
                let is_free = read || address != 0x50;
                let longest = if is_free { MAX_MESSAGE_LEN } else { 1 };
                prop_assert!(length <= longest);
            }
        }
    }
}
