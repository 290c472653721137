//! The device on rings of its own: no socket, no session, no clock.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_device_driver::Buffer;
use vhost_device_rig::{Back, Rig, logged};

use super::wire::{EVENT_QUEUE, F_IRQ, REQUEST_QUEUE};
use super::*;
use crate::host::sim::{Board, Sim};

const RING_SIZE: u16 = 64;
const ROOM: u64 = 4 << 20;

/// Fills what nobody has written.
const UNTOUCHED: u8 = 0xee;

const NAMES: u16 = 1;
const GET_DIRECTION: u16 = 2;
const SET_DIRECTION: u16 = 3;
const GET_VALUE: u16 = 4;
const SET_VALUE: u16 = 5;
const SET_IRQ_TYPE: u16 = 6;

const DIRECTION_NONE: u32 = 0;
const OUT: u32 = 1;
const IN: u32 = 2;

const IRQ_NONE: u32 = 0;
const RISING: u32 = 1;
const FALLING: u32 = 2;
const BOTH: u32 = 3;
const HIGH: u32 = 4;
const LOW: u32 = 8;

const OK: [u8; 2] = [0, 0];
const ERR: [u8; 2] = [1, 0];
const INVALID: [u8; 1] = [0];
const VALID: [u8; 1] = [1];

/// Lines 0 and 1 are wired together; 2 to 5 are not.
const COUNT: u16 = 6;
const LAST: u16 = COUNT - 1;

fn board() -> Board {
    Board {
        names: ["out", "in", "reset", "", "irq", ""]
            .map(str::to_owned)
            .to_vec(),
        loops: vec![(0, 1)],
        signals: Vec::new(),
    }
}

/// A guest with both rings, the device on their other side, and the world around its lines.
struct Bench {
    rig: Rig,
    world: Sim,
    device: Gpio,
    /// What has come back: the used lengths, by queue and head.
    back: BTreeMap<(usize, u16), u32>,
    /// The order in which it came back.
    order: Vec<Sent>,
    sent: Vec<Sent>,
}

/// A request or event buffer that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    queue: usize,
    head: u16,
    answer: u64,
    room: u32,
}

fn header(kind: u16, line: u16, value: u32) -> Vec<u8> {
    let (kind, line, value) = (kind.to_le_bytes(), line.to_le_bytes(), value.to_le_bytes());
    [&kind[..], &line, &value].concat()
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::with_board(&board());
        bench.device.negotiated(F_IRQ).unwrap();
        bench
    }

    fn with_board(board: &Board) -> Self {
        Self::with_log(board, Log::new("guest 0"))
    }

    fn with_log(board: &Board, log: Log) -> Self {
        let world = Sim::new(board, None, log.clone()).unwrap();
        let device = Gpio::new(Box::new(world.clone()), log).unwrap();
        Self {
            rig: Rig::new(2, RING_SIZE, ROOM),
            world,
            device,
            back: BTreeMap::new(),
            order: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Makes bytes available with this much room for an answer; the device does not see it yet.
    fn send_bytes(&mut self, queue: u16, bytes: &[u8], room: u32) -> Sent {
        let queue = usize::from(queue);
        let request = self.rig.place(bytes);
        let answer = self.rig.place(&vec![UNTOUCHED; room as usize + 8]);
        let mut buffers = vec![Buffer::readable(request, bytes.len() as u32)];
        buffers.push(Buffer::writable(answer, room));
        buffers.retain(|buffer| buffer.len > 0);
        let head = self.rig.rings[queue].add(&buffers).unwrap();
        self.back.remove(&(queue, head));
        let sent = Sent {
            queue,
            head,
            answer,
            room,
        };
        self.sent
            .retain(|old| (old.queue, old.head) != (queue, head));
        self.sent.push(sent);
        sent
    }

    fn send(&mut self, kind: u16, line: u16, value: u32) -> Sent {
        self.send_bytes(REQUEST_QUEUE, &header(kind, line, value), 2)
    }

    /// Makes an event buffer available.
    fn send_buffer(&mut self, line: u16) -> Sent {
        self.send_bytes(EVENT_QUEUE, &line.to_le_bytes(), 1)
    }

    /// Shows the device what is available, as the session does.
    fn run(&mut self) {
        for number in [REQUEST_QUEUE, EVENT_QUEUE] {
            let index = usize::from(number);
            self.rig
                .serve(index, |request| self.device.handle(number, request));
            self.with_queues(|device, back| device.finish_batch(back));
            self.finish_deferred();
        }
    }

    /// Does what was too much for one turn.
    fn finish_deferred(&mut self) {
        while !self.device.deferred.is_empty() {
            assert!(self.device.timer.is_running() || self.is_woken());
            self.with_queues(|device, back| device.finish_batch(back));
        }
    }

    /// The host's lines have something to tell.
    fn wake(&mut self) {
        while self.is_woken() {
            self.with_queues(|device, back| {
                device.attend(HOST_EVENTS, back);
                device.attend(HOST_EVENTS + 1, back);
            });
        }
    }

    fn is_woken(&self) -> bool {
        let events = self.device.event_sources();
        let mut fds: Vec<_> = events
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    fn with_queues(&mut self, work: impl FnOnce(&mut Gpio, &mut Back<'_>)) {
        self.rig.resume(|back| work(&mut self.device, back));
        for (index, ring) in self.rig.rings.iter_mut().enumerate().rev() {
            while let Some(used) = ring.pop_used() {
                self.back.insert((index, used.head), used.len);
                let is_it = |sent: &&Sent| (sent.queue, sent.head) == (index, used.head);
                self.order.extend(self.sent.iter().find(is_it));
            }
        }
    }

    /// What was written for the driver, as the used length says; `None` while it is not back.
    fn answer(&self, sent: Sent) -> Option<Vec<u8>> {
        let length = *self.back.get(&(sent.queue, sent.head))?;
        let bytes = self.rig.guest.read_vec(sent.answer, sent.room as usize + 8);
        let (answer, rest) = bytes.split_at(length as usize);
        assert!(length <= sent.room);
        assert!(rest.iter().all(|&byte| byte == UNTOUCHED), "{bytes:x?}");
        Some(answer.to_vec())
    }

    #[track_caller]
    fn request(&mut self, kind: u16, line: u16, value: u32) -> [u8; 2] {
        let sent = self.send(kind, line, value);
        self.run();
        let answer = self.answer(sent).expect("it is answered at once");
        answer.try_into().expect("two bytes")
    }

    #[track_caller]
    fn ok(&mut self, kind: u16, line: u16, value: u32) {
        assert_eq!(self.request(kind, line, value), OK);
    }

    /// Gives the device an event buffer, and returns what comes back at once.
    fn unmask(&mut self, line: u16) -> (Sent, Option<Vec<u8>>) {
        let sent = self.send_buffer(line);
        self.run();
        (sent, self.answer(sent))
    }

    /// An event buffer that the device holds.
    #[track_caller]
    fn hold(&mut self, line: u16) -> Sent {
        let (sent, answer) = self.unmask(line);
        assert_eq!(answer, None, "it is held");
        sent
    }

    /// Enables the interrupt of an input.
    #[track_caller]
    fn enable(&mut self, line: u16, trigger: u32) {
        self.ok(SET_DIRECTION, line, IN);
        self.ok(SET_IRQ_TYPE, line, trigger);
    }

    /// The world changes a line's level.
    fn drive(&mut self, line: u16, high: bool) {
        self.world.drive(line, high);
        self.wake();
    }

    fn pulse(&mut self, line: u16) {
        self.drive(line, true);
        self.drive(line, false);
    }

    fn names(&mut self, room: u32) -> Vec<u8> {
        let sent = self.send_bytes(REQUEST_QUEUE, &header(NAMES, 0, 0), room);
        self.run();
        self.answer(sent).unwrap()
    }
}

#[test]
fn test_description() {
    let description = Bench::new().device.describe();
    assert_eq!(description.device_id, 41);
    assert_eq!(description.queues, 2);
    assert_eq!(description.features, 1);
}

#[test]
fn g1_all_fields_of_a_response_are_set() {
    let mut bench = Bench::new();
    for (kind, line, value, expected) in [
        (GET_DIRECTION, 2, 0, OK),
        (SET_DIRECTION, 2, IN, OK),
        (GET_VALUE, 2, 0, OK),
        (SET_VALUE, 2, 1, OK),
        (SET_IRQ_TYPE, 2, RISING, OK),
        (GET_VALUE, COUNT, 0, ERR),
        (0, 0, 0, ERR),
    ] {
        // `request` sees to it that two bytes were written, and no more.
        assert_eq!(bench.request(kind, line, value), expected, "{kind}");
    }
    let roomy = bench.send_bytes(REQUEST_QUEUE, &header(GET_VALUE, 0, 0), 100);
    bench.run();
    assert_eq!(bench.answer(roomy).unwrap(), OK);
}

#[test]
fn g2_all_fields_of_the_configuration_are_set() {
    let names = "out\0in\0reset\0\0irq\0\0".len() as u8;
    assert_eq!(
        Bench::new().device.config(),
        [COUNT as u8, 0, 0, 0, names, 0, 0, 0]
    );
}

#[test]
fn g3_without_names_their_size_is_0() {
    let board = Board {
        names: vec![String::new(); 300],
        ..Board::default()
    };
    let mut bench = Bench::with_board(&board);
    assert_eq!(bench.device.config(), [44, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.names(2), ERR);
    assert_eq!(bench.names(100), ERR);
}

#[test]
fn g4_g17_names_are_a_block_of_the_size_that_was_told() {
    let mut bench = Bench::new();
    let block = b"\0out\0in\0reset\0\0irq\0\0";
    assert_eq!(bench.names(block.len() as u32), block);
    assert_eq!(bench.names(4096), block);
    // Too little room: an error, in as much as there is.
    assert_eq!(bench.names(block.len() as u32 - 1), ERR);
    assert_eq!(bench.names(1), [1]);
    assert!(bench.names(0).is_empty());
}

#[test]
fn g4_names_that_may_not_be_are_left_out() {
    let long = "x".repeat(wire::MAX_NAME + 1);
    let names = ["a", "b", "a", "grün", "new\nline", &long, "c"];
    let board = Board {
        names: names.map(str::to_owned).to_vec(),
        ..Board::default()
    };
    let mut bench = Bench::with_board(&board);
    assert_eq!(bench.names(100), b"\0a\0b\0\0\0\0\0c\0");
}

#[test]
fn g5_requests_are_answered_in_order() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    let buffer = bench.hold(2);
    bench.order.clear();
    let sent = [
        bench.send(GET_DIRECTION, 2, 0),
        // This one has to bring a buffer back before it is answered.
        bench.send(SET_IRQ_TYPE, 2, IRQ_NONE),
        bench.send(SET_DIRECTION, 2, OUT),
        bench.send(SET_VALUE, 2, 1),
        bench.send(GET_VALUE, 2, 0),
        bench.send(SET_DIRECTION, 2, DIRECTION_NONE),
        bench.send(GET_DIRECTION, 2, 0),
    ];
    bench.run();
    let answers = sent.map(|sent| bench.answer(sent).unwrap());
    assert_eq!(answers, [[0, 2], OK, OK, OK, [0, 1], OK, [0, 0]]);
    let mut expected = vec![buffer];
    expected.extend(sent);
    assert_eq!(bench.order, expected);
}

#[test]
fn g6_a_line_does_not_wait_for_another() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    bench.hold(2);
    // Nothing is due for line 2; line 3 is served all the same.
    bench.ok(SET_DIRECTION, 3, OUT);
    bench.ok(SET_VALUE, 3, 1);
    assert_eq!(bench.world.driven(3), Some(true));
}

#[test]
fn g7_direction_none_discards_all_state() {
    let mut bench = Bench::new();
    bench.ok(SET_VALUE, 2, 1);
    bench.enable(2, BOTH);
    bench.drive(2, true);
    let (_, latched) = bench.unmask(2);
    assert_eq!(latched.unwrap(), VALID);
    let buffer = bench.hold(2);
    bench.ok(SET_DIRECTION, 2, DIRECTION_NONE);
    assert_eq!(bench.answer(buffer).unwrap(), INVALID);
    assert!(!bench.world.is_watched(2));
    assert_eq!(bench.request(GET_DIRECTION, 2, 0), OK);
    // Neither the value, nor the interrupt, nor what was latched is left.
    bench.ok(SET_DIRECTION, 2, OUT);
    assert_eq!(bench.world.driven(2), Some(false));
    bench.ok(SET_DIRECTION, 2, DIRECTION_NONE);
    assert_eq!(bench.world.driven(2), None);
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
    bench.enable(2, BOTH);
    bench.hold(2);
}

#[test]
fn g7_direction_none_discards_state_even_when_the_host_fails() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    let buffer = bench.hold(2);
    bench.world.set_broken(2, true);
    assert_eq!(bench.request(SET_DIRECTION, 2, DIRECTION_NONE), ERR);
    assert_eq!(bench.answer(buffer).unwrap(), INVALID);
    bench.world.set_broken(2, false);
    assert_eq!(bench.request(GET_DIRECTION, 2, 0), OK);
    bench.pulse(2);
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
}

#[test]
fn g8_an_edge_is_latched_while_masked() {
    for (trigger, first_level) in [
        (RISING, true),
        (FALLING, false),
        (BOTH, true),
        (BOTH, false),
    ] {
        let mut bench = Bench::new();
        bench.world.drive(2, !first_level);
        bench.enable(2, trigger);
        bench.drive(2, first_level);
        bench.drive(2, !first_level);
        bench.drive(2, first_level);
        // However many came, they are one.
        assert_eq!(bench.unmask(2).1.unwrap(), VALID);
        bench.hold(2);
    }
}

#[test]
fn g8_only_the_edges_that_are_wanted_are_latched() {
    for (trigger, level) in [(RISING, false), (FALLING, true)] {
        let mut bench = Bench::new();
        bench.world.drive(2, !level);
        bench.enable(2, trigger);
        bench.drive(2, level);
        bench.hold(2);
    }
}

#[test]
fn g9_a_level_is_not_latched_while_masked() {
    for (trigger, active) in [(HIGH, true), (LOW, false)] {
        let mut bench = Bench::new();
        bench.world.drive(2, !active);
        bench.enable(2, trigger);
        bench.drive(2, active);
        bench.drive(2, !active);
        let buffer = bench.hold(2);
        bench.drive(2, active);
        assert_eq!(bench.answer(buffer).unwrap(), VALID);
    }
}

#[test]
fn g10_what_is_latched_is_discarded_on_disable() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    bench.pulse(2);
    // One that the device has not even seen yet.
    bench.world.drive(2, true);
    bench.ok(SET_IRQ_TYPE, 2, IRQ_NONE);
    bench.wake();
    bench.ok(SET_IRQ_TYPE, 2, RISING);
    bench.hold(2);
}

#[test]
fn g10_another_trigger_forgets_what_the_old_one_latched() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    bench.pulse(2);
    bench.ok(SET_IRQ_TYPE, 2, FALLING);
    let buffer = bench.hold(2);
    // With another trigger the buffer stays.
    bench.ok(SET_IRQ_TYPE, 2, RISING);
    assert_eq!(bench.answer(buffer), None);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
}

#[test]
fn g11_no_event_unless_enabled_and_unmasked() {
    let mut bench = Bench::new();
    bench.ok(SET_DIRECTION, 2, IN);
    // Disabled.
    bench.pulse(2);
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
    bench.ok(SET_IRQ_TYPE, 2, RISING);
    // Enabled, but what came before does not count.
    let buffer = bench.hold(2);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
    // Masked by its delivery: no other buffer is touched.
    let other = {
        bench.enable(3, RISING);
        bench.hold(3)
    };
    bench.drive(2, false);
    bench.drive(2, true);
    assert_eq!(bench.answer(other), None);
}

#[test]
fn g12_irq_type_none_returns_the_held_buffer_at_once() {
    for trigger in [RISING, FALLING, BOTH, HIGH] {
        let mut bench = Bench::new();
        bench.enable(2, trigger);
        let buffer = bench.hold(2);
        let none = bench.send(SET_IRQ_TYPE, 2, IRQ_NONE);
        bench.order.clear();
        bench.run();
        assert_eq!(bench.answer(none).unwrap(), OK);
        assert_eq!(bench.answer(buffer).unwrap(), INVALID);
        assert_eq!(bench.order, [buffer, none], "before the answer");
        assert!(!bench.world.is_watched(2));
    }
}

#[test]
fn g12_irq_type_none_without_a_buffer() {
    let mut bench = Bench::new();
    bench.ok(SET_IRQ_TYPE, 2, IRQ_NONE);
    bench.enable(2, RISING);
    bench.ok(SET_IRQ_TYPE, 2, IRQ_NONE);
    bench.ok(SET_IRQ_TYPE, 2, IRQ_NONE);
}

#[test]
fn g12_a_trigger_that_the_host_refuses_returns_the_held_buffer() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    let buffer = bench.hold(2);
    bench.world.set_broken(2, true);
    assert_eq!(bench.request(SET_IRQ_TYPE, 2, FALLING), ERR);
    assert_eq!(bench.answer(buffer).unwrap(), INVALID);
    bench.world.set_broken(2, false);
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
}

#[test]
fn g13_a_buffer_for_a_line_that_is_not_enabled_is_invalid() {
    let mut bench = Bench::new();
    for line in [0, LAST, COUNT, u16::MAX] {
        assert_eq!(bench.unmask(line).1.unwrap(), INVALID);
    }
    // One buffer a line is enough: the second comes back.
    bench.enable(2, RISING);
    let first = bench.hold(2);
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
    bench.drive(2, true);
    assert_eq!(bench.answer(first).unwrap(), VALID);
}

#[test]
fn g14_delivery_masks_and_an_edge_notifies_again_after_unmask() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    for _ in 0..100 {
        let buffer = bench.hold(2);
        bench.pulse(2);
        assert_eq!(bench.answer(buffer).unwrap(), VALID);
        bench.pulse(2);
        assert_eq!(bench.unmask(2).1.unwrap(), VALID, "it was latched");
    }
}

#[test]
fn g14_a_level_that_is_active_still_notifies_again_at_unmask() {
    for (trigger, active) in [(HIGH, true), (LOW, false)] {
        let mut bench = Bench::new();
        bench.world.drive(2, !active);
        bench.enable(2, trigger);
        let buffer = bench.hold(2);
        bench.drive(2, active);
        assert_eq!(bench.answer(buffer).unwrap(), VALID);
        for _ in 0..3 {
            assert_eq!(bench.unmask(2).1.unwrap(), VALID);
        }
        bench.drive(2, !active);
        let buffer = bench.hold(2);
        bench.drive(2, active);
        assert_eq!(bench.answer(buffer).unwrap(), VALID);
    }
}

#[test]
fn g14_a_level_that_is_active_when_its_trigger_is_set_notifies_the_held_buffer() {
    let mut bench = Bench::new();
    bench.world.drive(2, true);
    bench.enable(2, RISING);
    let buffer = bench.hold(2);
    bench.ok(SET_IRQ_TYPE, 2, HIGH);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
}

#[test]
fn g14_a_level_that_was_gone_when_its_edge_is_seen_does_not_notify() {
    let mut bench = Bench::new();
    bench.enable(2, HIGH);
    let buffer = bench.hold(2);
    bench.world.drive(2, true);
    bench.world.drive(2, false);
    bench.wake();
    assert_eq!(bench.answer(buffer), None);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
}

#[test]
fn g15_a_value_that_was_set_before_is_the_outputs_first() {
    let mut bench = Bench::new();
    bench.enable(1, BOTH);
    let buffer = bench.hold(1);
    bench.ok(SET_VALUE, 0, 1);
    assert_eq!(bench.world.driven(0), None, "it is no output yet");
    bench.ok(SET_DIRECTION, 0, OUT);
    assert_eq!(bench.world.driven(0), Some(true));
    assert_eq!(bench.request(GET_VALUE, 1, 0), [0, 1], "through the wire");
    bench.wake();
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
    bench.ok(SET_DIRECTION, 0, IN);
    assert_eq!(bench.world.driven(0), None);
    bench.ok(SET_VALUE, 0, 0);
    bench.ok(SET_DIRECTION, 0, OUT);
    assert_eq!(bench.world.driven(0), Some(false));
}

#[test]
fn g16_status_is_ok_or_err_and_set_answers_0() {
    let mut bench = Bench::new();
    bench.ok(SET_DIRECTION, 0, OUT);
    bench.ok(SET_VALUE, 0, 1);
    assert_eq!(bench.request(GET_VALUE, 0, 0), [0, 1]);
    assert_eq!(bench.request(GET_DIRECTION, 0, 0), [0, 1]);
    for (kind, line, value) in [
        (SET_DIRECTION, 0, 3),
        (SET_VALUE, 0, 2),
        (SET_VALUE, 0, u32::MAX),
        (SET_IRQ_TYPE, 2, 5),
        (SET_IRQ_TYPE, 2, 0x100),
        // An output raises no interrupts.
        (SET_IRQ_TYPE, 0, RISING),
        (0, 0, 0),
        (7, 0, 0),
        (u16::MAX, 0, 0),
    ] {
        assert_eq!(bench.request(kind, line, value), ERR, "{kind} {value}");
    }
    assert_eq!(
        bench.request(GET_VALUE, 0, 0),
        [0, 1],
        "nothing was changed"
    );
    bench.enable(2, RISING);
    assert_eq!(
        bench.request(SET_DIRECTION, 2, OUT),
        ERR,
        "disable it first"
    );
}

#[test]
fn g16_what_the_host_cannot_do_is_an_error() {
    let mut bench = Bench::new();
    bench.world.set_broken(2, true);
    for (kind, value) in [
        (SET_DIRECTION, IN),
        (SET_DIRECTION, OUT),
        (GET_VALUE, 0),
        (SET_IRQ_TYPE, RISING),
    ] {
        assert_eq!(bench.request(kind, 2, value), ERR);
    }
    assert_eq!(bench.request(GET_DIRECTION, 2, 0), OK);
    bench.world.set_broken(2, false);
    bench.ok(SET_DIRECTION, 2, OUT);
    bench.world.set_broken(2, true);
    assert_eq!(bench.request(SET_VALUE, 2, 1), ERR);
    bench.world.set_broken(2, false);
    assert_eq!(bench.request(GET_VALUE, 2, 0), OK);
}

#[test]
fn g16_a_level_that_cannot_be_read_keeps_its_buffer() {
    let mut bench = Bench::new();
    bench.enable(2, HIGH);
    bench.world.set_broken(2, true);
    let buffer = bench.hold(2);
    bench.world.set_broken(2, false);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
}

#[test]
fn g17_irq_type_needs_the_feature() {
    let mut bench = Bench::with_board(&board());
    bench.device.negotiated(0).unwrap();
    bench.ok(SET_DIRECTION, 2, IN);
    for trigger in [IRQ_NONE, RISING, HIGH] {
        assert_eq!(bench.request(SET_IRQ_TYPE, 2, trigger), ERR);
    }
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
    bench.device.negotiated(F_IRQ).unwrap();
    bench.ok(SET_IRQ_TYPE, 2, RISING);
    let buffer = bench.hold(2);
    // A driver that begins anew without it.
    bench.device.negotiated(0).unwrap();
    bench.run();
    assert_eq!(bench.answer(buffer).unwrap(), INVALID);
    assert!(!bench.world.is_watched(2));
}

#[test]
fn test_line_numbers_out_of_range_are_errors() {
    // Upstream's panic.
    let mut bench = Bench::new();
    for line in [COUNT, 0x8000, u16::MAX] {
        for kind in [
            GET_DIRECTION,
            SET_DIRECTION,
            GET_VALUE,
            SET_VALUE,
            SET_IRQ_TYPE,
        ] {
            assert_eq!(bench.request(kind, line, 0), ERR);
        }
    }
    // A question for names is about no line.
    let sent = bench.send_bytes(REQUEST_QUEUE, &header(NAMES, u16::MAX, 7), 100);
    bench.run();
    assert_eq!(bench.answer(sent).unwrap()[0], 0);
}

#[test]
fn test_short_response_buffers_are_not_overrun() {
    // Upstream writes behind them.
    let mut bench = Bench::new();
    bench.ok(SET_DIRECTION, 2, OUT);
    for (room, expected) in [(0, &[][..]), (1, &[1])] {
        let sent = bench.send_bytes(REQUEST_QUEUE, &header(SET_VALUE, 2, 1), room);
        bench.run();
        assert_eq!(bench.answer(sent).unwrap(), expected);
        assert_eq!(bench.world.driven(2), Some(false), "it was not done");
    }
    bench.enable(3, RISING);
    let sent = bench.send_bytes(EVENT_QUEUE, &3_u16.to_le_bytes(), 0);
    bench.run();
    assert!(bench.answer(sent).unwrap().is_empty());
    bench.hold(3);
}

#[test]
fn test_short_requests_are_errors() {
    let mut bench = Bench::new();
    for length in 0..8 {
        let bytes = &header(SET_VALUE, 2, 1)[..length];
        let sent = bench.send_bytes(REQUEST_QUEUE, bytes, 2);
        bench.run();
        assert_eq!(bench.answer(sent).unwrap(), ERR);
    }
    let sent = bench.send_bytes(EVENT_QUEUE, &[2], 1);
    bench.run();
    assert_eq!(bench.answer(sent).unwrap(), INVALID);
}

#[test]
fn test_values_are_read_while_edges_come() {
    // Upstream's deadlock.
    let mut bench = Bench::new();
    bench.enable(2, BOTH);
    for turn in 0..100 {
        let buffer = bench.send_buffer(2);
        bench.world.drive(2, turn % 2 == 0);
        let level = bench.request(GET_VALUE, 2, 0);
        assert_eq!(level, [0, u8::from(turn % 2 == 0)]);
        bench.wake();
        assert_eq!(bench.answer(buffer).unwrap(), VALID);
    }
}

#[test]
fn test_an_interrupt_without_a_direction() {
    // The specification does not ask for a direction first.
    let mut bench = Bench::new();
    bench.ok(SET_IRQ_TYPE, 2, RISING);
    let buffer = bench.hold(2);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
    assert_eq!(bench.request(GET_DIRECTION, 2, 0), OK);
}

#[test]
fn test_more_edges_than_a_turn_takes() {
    let mut bench = Bench::new();
    bench.enable(2, BOTH);
    bench.enable(3, RISING);
    let (two, three) = (bench.hold(2), bench.hold(3));
    for turn in 0..10 * MAX_EDGES {
        bench.world.drive(2, turn % 2 == 0);
    }
    bench.world.drive(3, true);
    bench.wake();
    assert_eq!(bench.answer(two).unwrap(), VALID);
    assert_eq!(bench.answer(three).unwrap(), VALID);
}

#[test]
fn test_a_queue_that_stops_takes_its_buffers_along() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    bench.hold(2);
    bench.device.queue_stopped(EVENT_QUEUE);
    // Masked, not disabled: the edge waits for the next buffer.
    bench.pulse(2);
    assert_eq!(bench.unmask(2).1.unwrap(), VALID);
}

#[test]
fn test_a_queue_that_stops_takes_requests_along_that_were_put_aside() {
    let mut bench = Bench::new();
    bench.enable(2, RISING);
    let buffer = bench.hold(2);
    bench.send(SET_IRQ_TYPE, 2, IRQ_NONE);
    let Bench { rig, device, .. } = &mut bench;
    rig.serve(0, |request| device.handle(REQUEST_QUEUE, request));
    bench.device.queue_stopped(REQUEST_QUEUE);
    // It will be taken again by whoever resumes: nothing of it was done.
    bench.wake();
    assert_eq!(bench.answer(buffer), None);
    bench.drive(2, true);
    assert_eq!(bench.answer(buffer).unwrap(), VALID);
}

#[test]
fn c7_a_reset_forgets_everything() {
    let mut bench = Bench::new();
    bench.ok(SET_VALUE, 0, 1);
    bench.ok(SET_DIRECTION, 0, OUT);
    bench.enable(2, BOTH);
    bench.pulse(2);
    bench.device.queue_stopped(REQUEST_QUEUE);
    bench.device.queue_stopped(EVENT_QUEUE);
    bench.device.reset();
    assert_eq!(bench.world.driven(0), None);
    assert!(!bench.world.is_watched(2));
    bench.wake();
    bench.device.negotiated(F_IRQ).unwrap();
    for line in 0..COUNT {
        assert_eq!(bench.request(GET_DIRECTION, line, 0), OK);
    }
    assert_eq!(bench.unmask(2).1.unwrap(), INVALID);
}

#[test]
fn test_what_fails_again_and_again_is_a_line_a_second_over_all_connections() {
    let board = Board {
        names: vec![String::new(); 100],
        ..Board::default()
    };
    let log = Log::new("guest 0");
    let start = Instant::now();
    let lines = logged(|| {
        for _ in 0..5 {
            let mut bench = Bench::with_log(&board, log.clone());
            bench.device.negotiated(F_IRQ).unwrap();
            for line in 0..100 {
                bench.enable(line, RISING);
                bench.world.set_broken(line, true);
                bench.request(GET_VALUE, line, 0);
            }
            bench.device.reset();
        }
    });
    let most = 1 + start.elapsed().as_secs() as usize;
    assert!((1..=most).contains(&lines.len()), "{lines:?}");
    assert!(lines[0].starts_with("WARN: guest 0: the host cannot read line 0"));
}

#[test]
fn test_what_a_guest_does_wrong_does_not_hide_what_the_hardware_does() {
    let mut bench = Bench::new();
    bench.world.set_broken(2, true);
    let lines = logged(|| {
        bench.request(GET_VALUE, COUNT, 0);
        bench.request(GET_VALUE, 2, 0);
    });
    let [refused, failed] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(refused.contains("refused: there is no line 6"), "{refused}");
    assert!(failed.contains("the host cannot read line 2"), "{failed}");
}

/// What a guest and the world do.
#[derive(Clone, Debug)]
enum Deed {
    Request(u16, u16, u32),
    Buffer(u16),
    Bytes(u16, Vec<u8>, u32),
    Drive(u16, bool),
    Break(u16, bool),
}

fn deed() -> impl Strategy<Value = Deed> {
    let line = 0..COUNT + 1;
    prop_oneof![
        4 => (0..8_u16, line.clone(), 0..10_u32)
            .prop_map(|(kind, line, value)| Deed::Request(kind, line, value)),
        2 => line.clone().prop_map(Deed::Buffer),
        1 => (0..2_u16, prop::collection::vec(any::<u8>(), 0..12), 0..32_u32)
            .prop_map(|(queue, bytes, room)| Deed::Bytes(queue, bytes, room)),
        2 => (line.clone(), any::<bool>()).prop_map(|(line, high)| Deed::Drive(line, high)),
        1 => (line, any::<bool>()).prop_map(|(line, broken)| Deed::Break(line, broken)),
    ]
}

proptest! {
    /// Whatever is done: requests are answered, a line holds one buffer at most, and when all
    /// interrupts are off, no buffer is held.
    #[test]
    fn test_nothing_is_lost(deeds in prop::collection::vec((deed(), any::<bool>()), 1..80)) {
        let mut bench = Bench::new();
        for (deed, run) in deeds {
            if bench.rig.rings.iter().any(|ring| ring.free_descriptors() < 8) {
                bench.run();
            }
            match deed {
                Deed::Request(kind, line, value) => drop(bench.send(kind, line, value)),
                Deed::Buffer(line) => drop(bench.send_buffer(line)),
                Deed::Bytes(queue, bytes, room) if !bytes.is_empty() || room > 0 => {
                    bench.send_bytes(queue, &bytes, room);
                }
                Deed::Bytes(..) => {}
                Deed::Drive(line, high) => bench.world.drive(line, high),
                Deed::Break(line, broken) => bench.world.set_broken(line, broken),
            }
            if run {
                bench.run();
                bench.wake();
            }
        }
        bench.run();
        bench.wake();
        prop_assert_eq!(bench.rig.rings[0].outstanding(), 0);
        let held = bench.device.lines.iter().filter(|line| line.holds_a_buffer()).count();
        prop_assert_eq!(usize::from(bench.rig.rings[1].outstanding()), held);
        for line in 0..COUNT {
            bench.world.set_broken(line, false);
            bench.ok(SET_IRQ_TYPE, line, IRQ_NONE);
        }
        prop_assert_eq!(bench.rig.rings[1].outstanding(), 0);
        for line in 0..COUNT {
            prop_assert!(!bench.world.is_watched(line));
        }
    }
}

#[test]
fn what_was_put_aside_is_answered_turn_by_turn_and_in_order() {
    let mut bench = Bench::new();
    bench.send(SET_DIRECTION, 1, IN);
    bench.send(SET_IRQ_TYPE, 1, RISING);
    bench.run();
    bench.send_buffer(1);
    bench.run();
    // It returns the buffer, so it waits for the end of the batch, and all behind it with it.
    let mut sent = vec![bench.send(SET_IRQ_TYPE, 1, 0)];
    for _ in 0..29 {
        sent.push(bench.send(GET_VALUE, 2, 0));
    }
    let serve = |bench: &mut Bench| {
        bench
            .rig
            .serve(0, |request| bench.device.handle(REQUEST_QUEUE, request));
    };
    serve(&mut bench);
    assert_eq!(bench.device.deferred.len(), 30);
    bench.with_queues(|device, back| device.finish_batch(back));
    let left = bench.device.deferred.len();
    assert!(left >= 30 - MAX_DONE, "{left} are left for the next turn");
    bench.finish_deferred();
    for sent in sent {
        assert!(bench.answer(sent).is_some());
    }
}
