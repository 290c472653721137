//! The GPIO device on lines that the world pulls and looks at: a simulator's, and in the host
//! guest, which `tests/guest/tests/host.rs` boots, the kernel's.

mod support;

use support::board::{Board, NAMES};
use support::{
    BOTH, ERR, EVENTS, FALLING, GET_DIRECTION, GET_LINE_NAMES, GET_VALUE, HIGH, IN, INVALID, LOW,
    NONE, OK, OUT, REQUESTS, RISING, SET_DIRECTION, SET_IRQ_TYPE, SET_VALUE, VALID, event, header,
    no_event, ok, request, send, unmask, wait,
};

#[test]
fn g1_g15_g16_outputs_are_driven() {
    let board = Board::start();
    let mut guest = board.guest();
    // What was set before is what the line gets.
    ok(&mut guest, SET_VALUE, 0, 1);
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    board.expect(0, true);
    assert_eq!(request(&mut guest, GET_DIRECTION, 0, 0), [OK, 1]);
    for high in [false, true, false] {
        ok(&mut guest, SET_VALUE, 0, high.into());
        board.expect(0, high);
        assert_eq!(request(&mut guest, GET_VALUE, 0, 0), [OK, high.into()]);
    }
    assert_eq!(request(&mut guest, SET_VALUE, 6, 1), [ERR, 0]);
    board.daemon.stop();
}

#[test]
fn g1_g16_inputs_are_read() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 1, IN);
    assert_eq!(request(&mut guest, GET_DIRECTION, 1, 0), [OK, 2]);
    for high in [true, false, true] {
        board.pull(1, high);
        assert_eq!(request(&mut guest, GET_VALUE, 1, 0), [OK, high.into()]);
    }
}

#[test]
fn g2_g4_g17_names_are_the_lines_own() {
    let board = Board::start();
    let mut guest = board.guest();
    let names = NAMES.map(|name| format!("{name}\0")).concat();
    let size = names.len() as u8;
    let config = guest.frontend.get_config(0, 8).unwrap();
    assert_eq!(config, [6, 0, 0, 0, size, 0, 0, 0]);
    let room = 1 + u32::from(size);
    let sent = send(&mut guest, REQUESTS, &header(GET_LINE_NAMES, 0, 0), room);
    let answer = wait(&mut guest, REQUESTS, sent);
    assert_eq!(answer, [&[OK], names.as_bytes()].concat());
}

#[test]
fn g7_a_line_that_is_given_up_drives_nothing() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 2, OUT);
    ok(&mut guest, SET_VALUE, 2, 1);
    board.expect(2, true);
    ok(&mut guest, SET_DIRECTION, 2, NONE);
    assert_eq!(request(&mut guest, GET_DIRECTION, 2, 0), [OK, 0]);
    // What is driven does not follow the world.
    for high in [true, false, true] {
        board.pull(2, high);
        board.expect(2, high);
    }
    // The value from before is forgotten.
    ok(&mut guest, SET_DIRECTION, 2, OUT);
    board.expect(2, false);
}

#[test]
fn g8_g14_edges_reach_the_guest_and_are_latched_while_masked() {
    let board = Board::start();
    let mut guest = board.guest();
    for (trigger, active) in [(RISING, true), (FALLING, false)] {
        board.pull(3, !active);
        ok(&mut guest, SET_DIRECTION, 3, IN);
        board.settle(&mut guest);
        ok(&mut guest, SET_IRQ_TYPE, 3, trigger);
        let buffer = unmask(&mut guest, 3);
        no_event(&mut guest);
        board.pull(3, active);
        assert_eq!(event(&mut guest, buffer), VALID);
        // Several that come while it is masked are one.
        for high in [!active, active, !active, active] {
            board.pull(3, high);
        }
        board.settle(&mut guest);
        let buffer = unmask(&mut guest, 3);
        assert_eq!(event(&mut guest, buffer), VALID);
        let buffer = unmask(&mut guest, 3);
        board.pull(3, !active);
        board.settle(&mut guest);
        no_event(&mut guest);
        ok(&mut guest, SET_IRQ_TYPE, 3, NONE);
        assert_eq!(event(&mut guest, buffer), INVALID);
    }
}

#[test]
fn g8_both_edges_reach_the_guest() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, BOTH);
    for high in [true, false, true, false] {
        let buffer = unmask(&mut guest, 3);
        board.pull(3, high);
        assert_eq!(event(&mut guest, buffer), VALID);
        assert_eq!(request(&mut guest, GET_VALUE, 3, 0), [OK, high.into()]);
    }
}

#[test]
fn g9_g14_levels_are_looked_at_when_unmasked() {
    let board = Board::start();
    let mut guest = board.guest();
    for (trigger, active) in [(HIGH, true), (LOW, false)] {
        board.pull(3, !active);
        ok(&mut guest, SET_DIRECTION, 3, IN);
        board.settle(&mut guest);
        ok(&mut guest, SET_IRQ_TYPE, 3, trigger);
        let buffer = unmask(&mut guest, 3);
        no_event(&mut guest);
        board.pull(3, active);
        assert_eq!(event(&mut guest, buffer), VALID);
        let buffer = unmask(&mut guest, 3);
        assert_eq!(event(&mut guest, buffer), VALID, "it is still active");
        board.pull(3, !active);
        board.pull(3, active);
        board.pull(3, !active);
        board.settle(&mut guest);
        let buffer = unmask(&mut guest, 3);
        no_event(&mut guest);
        board.pull(3, active);
        assert_eq!(event(&mut guest, buffer), VALID);
        ok(&mut guest, SET_IRQ_TYPE, 3, NONE);
    }
}

#[test]
fn g10_what_is_latched_goes_with_the_interrupt() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    board.pull(3, true);
    board.settle(&mut guest);
    ok(&mut guest, SET_IRQ_TYPE, 3, NONE);
    ok(&mut guest, SET_IRQ_TYPE, 3, RISING);
    let buffer = unmask(&mut guest, 3);
    no_event(&mut guest);
    board.pull(3, false);
    board.pull(3, true);
    assert_eq!(event(&mut guest, buffer), VALID);
}

#[test]
fn g11_g12_g13_buffers_of_disabled_lines_come_back() {
    let board = Board::start();
    let mut guest = board.guest();
    let buffer = unmask(&mut guest, 3);
    assert_eq!(event(&mut guest, buffer), INVALID);
    ok(&mut guest, SET_DIRECTION, 3, IN);
    ok(&mut guest, SET_IRQ_TYPE, 3, BOTH);
    let buffer = unmask(&mut guest, 3);
    no_event(&mut guest);
    ok(&mut guest, SET_IRQ_TYPE, 3, NONE);
    // It was there before the answer.
    let used = guest.queues[EVENTS].ring.pop_used().unwrap();
    assert_eq!(used.head, buffer.head);
    assert_eq!(guest.memory.read_vec(buffer.answer, 1), [INVALID]);
}

#[test]
fn g5_many_requests_of_a_line_are_done_in_their_order() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    let kinds = [
        (SET_VALUE, 1),
        (GET_VALUE, 0),
        (SET_VALUE, 0),
        (GET_VALUE, 0),
    ];
    let sent: Vec<_> = kinds
        .iter()
        .cycle()
        .take(24)
        .map(|&(kind, value)| send(&mut guest, REQUESTS, &header(kind, 0, value), 2))
        .collect();
    let expected = [[OK, 0], [OK, 1], [OK, 0], [OK, 0]];
    for (sent, expected) in sent.into_iter().zip(expected.iter().cycle()) {
        assert_eq!(wait(&mut guest, REQUESTS, sent), expected);
    }
}

#[test]
fn v7_the_next_connection_starts_clean() {
    let board = Board::start();
    let mut guest = board.guest();
    ok(&mut guest, SET_DIRECTION, 0, OUT);
    ok(&mut guest, SET_VALUE, 0, 1);
    board.expect(0, true);
    drop(guest);
    let mut guest = board.guest();
    board.expect(0, false);
    assert_eq!(request(&mut guest, GET_DIRECTION, 0, 0), [OK, 0]);
    board.daemon.stop();
}
