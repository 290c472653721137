//! Packed rings, `VIRTIO_F_IN_ORDER` and `VIRTIO_F_RING_RESET` through a session.

use vhost_device_driver::guest::{Options, Step};
use vhost_device_driver::packed::PackedRing;
use vhost_device_driver::protocol::*;
use vhost_device_driver::ring::Ring;
use vhost_device_driver::split::SplitRing;

use crate::common::*;
use crate::rings::{stopping_over_and_over_loses_nothing, the_newest_are_done_by_whoever_resumes};

fn sizes(size: u16) -> Options {
    Options::new(&[size; QUEUES as usize])
}

#[test]
fn p9_packed_rings_of_any_size_wrap() {
    for size in [2, 3, 5, 8, 100, 255, 256] {
        let (mut guest, session) = running_on::<PackedRing>(sizes(size));
        for _ in 0..3 * size {
            guest.echo_all();
        }
        session.stop();
    }
}

/// Of the longest, just before its end.
fn the_longest_ring_wraps<R: Ring>(base: u32) {
    let (mut guest, session) = running_on::<R>(Options::new(&[0x8000]).base(base));
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
    let (mut guest, _session) = running_on::<PackedRing>(options);
    (0..100).for_each(|_| guest.echo_all());
}

#[test]
fn v2_a_packed_ring_stops_and_resumes_over_and_over_and_loses_nothing() {
    for size in [7, 8] {
        let all_is_done = |base, _| base & 0xffff == base >> 16;
        stopping_over_and_over_loses_nothing::<PackedRing>(sizes(size), all_is_done);
    }
}

#[test]
fn v2_the_newest_kept_requests_of_a_packed_ring_are_done_by_whoever_resumes() {
    the_newest_are_done_by_whoever_resumes::<PackedRing>(&sizes(9), 0x8002_8002);
}

#[test]
fn a_base_that_is_no_place_in_the_ring_is_an_error_of_the_ring() {
    let (guest, session) = running_on::<PackedRing>(options());
    guest.stop(0).unwrap();
    guest
        .resume(0, 0x8000_8000 + u32::from(QUEUE_SIZE))
        .unwrap_err();
    session.stop();
}

/// A ring that has run one round, and has requests in the next: the base is 0.
fn in_its_second_round() -> (RingGuest<PackedRing>, Session) {
    let (mut guest, session) = running_on::<PackedRing>(options());
    (0..QUEUE_SIZE / 2).for_each(|_| guest.echo(0));
    assert_eq!(guest.stop(0).unwrap(), 0);
    (guest, session)
}

#[test]
fn v15_a_packed_ring_that_has_run_goes_on_at_base_0() {
    for pending in 0..=QUEUE_SIZE / 2 {
        for other in [false, true] {
            let (mut guest, mut session) = in_its_second_round();
            let ids: Vec<_> = (0..pending)
                .map(|_| guest.submit(0, Command::Echo))
                .collect();
            if other {
                let bases = [0, 1, 2].map(|queue| guest.stop(queue).unwrap());
                let (stream, second) = Session::start(Setup::default());
                guest.reconnect(stream, &bases).unwrap();
                session = second;
            } else {
                guest.resume(0, 0).unwrap();
            }
            // They were there before the kick fd, and nobody kicks again.
            for id in ids {
                assert_eq!(guest.finish(0), (id, true));
            }
            (0..3 * QUEUE_SIZE).for_each(|_| guest.echo(0));
            session.stop();
        }
    }
}

#[test]
fn v15_a_new_packed_ring_at_base_0_is_a_new_ring() {
    for pending in 0..=QUEUE_SIZE / 2 {
        let (mut guest, session) = running_on::<PackedRing>(options().without(Step::Enable));
        let ids: Vec<_> = (0..pending)
            .map(|_| guest.submit(0, Command::Echo))
            .collect();
        guest.frontend.set_vring_base(0, 0).unwrap();
        guest.queue_step(0, Step::Enable).unwrap();
        settle(&guest.frontend);
        assert!(!guest.queues[0].ring.has_used(), "it waits for its kick");
        guest.queues[0].kick();
        for id in ids {
            assert_eq!(guest.finish(0), (id, true));
        }
        (0..3 * QUEUE_SIZE).for_each(|_| guest.echo(0));
        session.stop();
    }
}

/// Where the region says that a ring has run, that counts.
#[test]
fn v15_a_region_for_requests_in_flight_knows_better_than_the_ring() {
    let (mut guest, session) = running_on::<PackedRing>(options().track_inflight());
    let kept = guest.submit(0, Command::Keep);
    guest.queues[0].kick();
    session.wait_until(|record| record.kept == 1);
    // Nothing was used in the ring, and the back-end is gone.
    let (stream, second) = Session::start(Setup::default());
    guest.reconnect(stream, &[0, 0, 0]).unwrap();
    session.left();
    second.wait_until(|record| record.kept == 1);
    second.release.signal();
    assert_eq!(guest.finish(0), (kept, true));
    guest.echo(0);
    second.stop();
}

/// C-11: a request that is kept holds up those behind it, and its own answer comes first.
fn answers_come_in_order<R: Ring>() {
    let options = options().require_features(bits(&[VIRTIO_F_IN_ORDER]));
    let (mut guest, session) = running_on::<R>(options);
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
    let (mut guest, session) = running_on::<R>(options);
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
