//! Packed rings, `VIRTIO_F_IN_ORDER` and `VIRTIO_F_RING_RESET` through a session.

use vhost_device_driver::guest::{Options, Step};
use vhost_device_driver::packed::PackedRing;
use vhost_device_driver::protocol::*;
use vhost_device_driver::ring::Ring;
use vhost_device_driver::split::SplitRing;

use crate::common::*;

fn sizes(size: u16) -> Options {
    Options::new(&[size; QUEUES as usize])
}

fn with<R: Ring>(options: Options) -> (RingGuest<R>, Session) {
    let (stream, session) = Session::start(Setup::default());
    (RingGuest::connect(stream, options), session)
}

#[test]
fn p9_packed_rings_of_any_size_wrap() {
    for size in [2, 3, 5, 8, 100, 255, 256] {
        let (mut guest, session) = packed_running_with(sizes(size));
        for _ in 0..3 * size {
            guest.echo_all();
        }
        session.stop();
    }
}

/// Of the longest, just before its end.
fn the_longest_ring_wraps<R: Ring>(base: u32) {
    let (mut guest, session) = with::<R>(Options::new(&[0x8000]).base(base));
    (0..20).for_each(|_| guest.echo(0));
    session.stop();
}

#[test]
fn p9_rings_of_32768_entries_wrap() {
    the_longest_ring_wraps::<SplitRing>(0x7ffb);
    the_longest_ring_wraps::<SplitRing>(0xfffb);
    the_longest_ring_wraps::<PackedRing>(0xfffb_fffb);
    the_longest_ring_wraps::<PackedRing>(0x7ffb_7ffb);
}

#[test]
fn p9_a_packed_ring_works_without_event_idx() {
    let options = options().without_features(bits(&[VIRTIO_F_EVENT_IDX]));
    let (mut guest, _session) = packed_running_with(options);
    (0..100).for_each(|_| guest.echo_all());
}

#[test]
fn v2_a_packed_ring_stops_and_resumes_over_and_over_and_loses_nothing() {
    for size in [7, 8] {
        let (mut guest, session) = packed_running_with(sizes(size));
        let mut expected = Vec::new();
        for round in 0..300 {
            while guest.queues[0].ring.free_descriptors() >= 2 {
                expected.push(guest.submit(0, Command::Echo));
                guest.queues[0].notify();
            }
            // Wherever the session is now.
            let base = guest.stop(0).unwrap();
            assert_eq!(base & 0xffff, base >> 16, "all that was taken is done");
            guest.resume(0, base).unwrap();
            for _ in 0..round % 3 + 1 {
                assert!(guest.finish(0).1);
            }
        }
        while guest.queues[0].ring.outstanding() > 0 {
            assert!(guest.finish(0).1);
        }
        assert_eq!(session.record(|record| record.executed.clone()), expected);
    }
}

#[test]
fn v2_the_newest_kept_requests_of_a_packed_ring_are_done_by_whoever_resumes() {
    for kept in 1..=3 {
        let (mut guest, session) = packed_running_with(sizes(9));
        guest.echo(0);
        let ids: Vec<_> = (0..kept).map(|_| guest.submit(0, Command::Keep)).collect();
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == kept);
        let base = guest.stop(0).unwrap();
        assert_eq!(base, 0x8002_8002, "those that are kept are not done");
        let bases = [base, guest.stop(1).unwrap(), guest.stop(2).unwrap()];
        let (stream, second) = Session::start(Setup::default());
        guest.reconnect(stream, &bases).unwrap();
        second.wait_until(|record| record.kept == kept);
        for id in ids {
            second.release.signal();
            assert_eq!(guest.finish(0), (id, true));
        }
        guest.echo(0);
    }
}

#[test]
fn a_base_that_is_no_place_in_the_ring_is_an_error_of_the_ring() {
    let (guest, session) = packed_running_with(options());
    guest.stop(0).unwrap();
    guest
        .resume(0, 0x8000_8000 + u32::from(QUEUE_SIZE))
        .unwrap_err();
    session.stop();
}

/// C-11: a request that is kept holds up those behind it, and its own answer comes first.
fn answers_come_in_order<R: Ring>() {
    let options = options().require_features(bits(&[VIRTIO_F_IN_ORDER]));
    let (mut guest, session) = with::<R>(options);
    for _ in 0..50 {
        let first = guest.submit(0, Command::Keep);
        let second = guest.submit(0, Command::Echo);
        let third = guest.submit(0, Command::Drop);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 1);
        settle(&guest.frontend);
        assert!(
            !guest.queues[0].ring.has_used(),
            "nothing overtakes the first"
        );
        session.release.signal();
        assert_eq!(guest.finish(0), (first, true));
        assert_eq!(guest.finish(0), (second, true));
        assert_eq!(guest.finish(0), (third, false));
    }
}

#[test]
fn c11_answers_come_in_order_in_a_split_ring() {
    answers_come_in_order::<SplitRing>();
}

#[test]
fn c11_answers_come_in_order_in_a_packed_ring() {
    answers_come_in_order::<PackedRing>();
}

/// C-12, C-13: as a front-end does it for `VIRTIO_F_RING_RESET`, one queue stops while others
/// run, and begins anew with another size.
fn a_queue_is_reset_and_enabled_again<R: Ring>() {
    let options = options().require_features(bits(&[VIRTIO_F_RING_RESET]));
    let (mut guest, session) = with::<R>(options);
    for size in [4, 16, 2] {
        guest.echo_all();
        let kept = guest.submit(0, Command::Keep);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 1);
        guest.stop(0).unwrap();
        assert_eq!(session.record(|record| record.kept), 0, "of {kept}");
        // Nothing that the driver does now reaches the device.
        let done = session.record(|record| record.executed.len());
        guest.submit(0, Command::Echo);
        guest.kick_and_settle(0);
        assert_eq!(session.record(|record| record.executed.len()), done);
        assert!(!guest.queues[0].ring.has_used());

        let place = guest.alloc(R::bytes(size));
        let layout = R::place_at(place, size);
        let event_idx = guest.queues[0].ring.event_idx();
        guest.queues[0].ring = R::create(&guest.memory, layout, size, event_idx);
        guest.forget(0);
        guest.queues[0].kick.take();
        guest.queue_step(0, Step::Num).unwrap();
        guest.queue_step(0, Step::Base).unwrap();
        for step in [Step::Addr, Step::Kick, Step::Call, Step::Enable] {
            guest.queue_step(0, step).unwrap();
        }
        (0..3 * size).for_each(|_| guest.echo_all());
    }
    assert_eq!(session.record(|record| record.resets), 0, "the others run");
    session.stop();
}

#[test]
fn c12_c13_a_split_queue_is_reset_and_enabled_again() {
    a_queue_is_reset_and_enabled_again::<SplitRing>();
}

#[test]
fn c12_c13_a_packed_queue_is_reset_and_enabled_again() {
    a_queue_is_reset_and_enabled_again::<PackedRing>();
}
