//! Features that are refused, and rings that nobody has settled features for (C-4).

use vhost_device_driver::guest::{ALL_STEPS, DEFAULT_FEATURES, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{Buffer, PackedRing, Ring, SplitRing};

use crate::common::*;

/// What the device cannot work without.
const REQUIRED: u64 = bits(&[0]);

/// The steps before the features are set, and those behind.
fn around_features() -> (Vec<Step>, Vec<Step>) {
    let mut steps = ALL_STEPS.split(|step| *step == Step::SetFeatures);
    let [before, behind] = [(); 2].map(|()| steps.next().unwrap().to_vec());
    (before, behind)
}

/// A front-end that asks for no answers, and has said what comes before the features.
fn silent<R: Ring>(features: u64) -> (RingGuest<R>, Session) {
    let (stream, session) = Session::start(Setup {
        required: REQUIRED,
        ..Setup::default()
    });
    let options = options().features(features);
    let mut guest = RingGuest::<R>::prepare(stream, options);
    guest.run(&around_features().0).unwrap();
    guest.frontend.set_need_reply(false);
    (guest, session)
}

/// The feature that makes it a ring of this kind.
fn kind<R: Ring>() -> u64 {
    u64::from(R::PACKED) << VIRTIO_F_RING_PACKED
}

/// A request in an indirect table.
fn submit_indirect<R: Ring>(guest: &mut RingGuest<R>) {
    let [table, request, answer] = [32, 16, 16].map(|len| guest.alloc(len));
    let buffers = [
        Buffer::readable(request, LEN),
        Buffer::writable(answer, LEN),
    ];
    let ring = &mut guest.queues[0].ring;
    ring.add_indirect(table, &buffers).unwrap();
    ring.publish();
}

/// Nothing is done and nothing comes back, whatever the driver does.
fn nothing_is_answered<R: Ring>(guest: &mut RingGuest<R>, session: &Session, indirect: bool) {
    let done = session.record(|record| record.executed.len());
    for queue in 0..guest.queues.len() {
        guest.queues[queue].take_calls();
        guest.submit(queue, Command::Echo);
        guest.queues[queue].kick();
    }
    if indirect {
        submit_indirect(guest);
        guest.queues[0].kick();
    }
    settle(&guest.frontend);
    assert_eq!(session.record(|record| record.executed.len()), done);
    for queue in &mut guest.queues {
        assert!(!queue.ring.has_used());
        assert_eq!(queue.take_calls(), 0);
    }
}

/// A driver without a feature that the device needs, behind a front-end that does not hear of it.
fn a_driver_without_what_is_needed_is_not_served<R: Ring>(also: u64) {
    let features = bits(&[VIRTIO_F_VERSION_1]) | kind::<R>() | also;
    let (mut guest, session) = silent::<R>(features);
    guest.frontend.set_features(features).unwrap();
    guest.run(&around_features().1).unwrap();
    let indirect = also & bits(&[VIRTIO_F_INDIRECT_DESC]) != 0;
    nothing_is_answered(&mut guest, &session, indirect);
    session.stop();
}

#[test]
fn c4_a_driver_without_what_the_device_needs_is_not_served() {
    let indirect = bits(&[VIRTIO_F_INDIRECT_DESC]);
    let protocol = bits(&[VHOST_USER_F_PROTOCOL_FEATURES]);
    let event_idx = bits(&[VIRTIO_F_EVENT_IDX]);
    for also in [0, indirect, event_idx, indirect | event_idx] {
        for also in [also, also | protocol] {
            a_driver_without_what_is_needed_is_not_served::<SplitRing>(also);
            a_driver_without_what_is_needed_is_not_served::<PackedRing>(also);
        }
    }
}

/// With features that work, the same driver's requests are answered.
fn features_that_are_accepted_later_let_rings_run<R: Ring>() {
    let features = bits(&[VIRTIO_F_VERSION_1, VIRTIO_F_EVENT_IDX]) | kind::<R>();
    let (mut guest, session) = silent::<R>(features);
    guest.set_features(features).unwrap();
    guest.run(&around_features().1).unwrap();
    nothing_is_answered(&mut guest, &session, false);
    guest.set_features(features | REQUIRED).unwrap();
    for queue in 0..guest.queues.len() {
        assert!(guest.finish(queue).1);
    }
    guest.echo_all();
}

#[test]
fn c4_features_that_are_accepted_later_let_rings_run() {
    features_that_are_accepted_later_let_rings_run::<SplitRing>();
    features_that_are_accepted_later_let_rings_run::<PackedRing>();
}

#[test]
fn c4_no_ring_runs_before_features_were_set() {
    for features in [bits(&[VIRTIO_F_VERSION_1]) | REQUIRED, DEFAULT_FEATURES] {
        let (mut guest, session) = silent::<SplitRing>(features);
        // A ring cannot be enabled then, but without PROTOCOL_FEATURES it is.
        let behind = around_features().1;
        let behind: Vec<_> = behind
            .into_iter()
            .filter(|step| *step != Step::Enable)
            .collect();
        guest.run(&behind).unwrap();
        nothing_is_answered(&mut guest, &session, false);
        let accepted = guest.offered() & features;
        guest.set_features(accepted).unwrap();
        guest.run(&[Step::Enable]).unwrap();
        for queue in 0..guest.queues.len() {
            assert!(guest.finish(queue).1);
        }
        guest.echo_all();
    }
}

/// Whatever is wrong with a later SET_FEATURES, what was accepted before is not in force any more,
/// until it is accepted again: then the rings go on where they were.
fn a_refused_set_features_withdraws<R: Ring>(need_reply: bool, wrong: impl Fn(u64) -> u64) {
    let (mut guest, session) = running_on::<R>(options());
    guest.echo_all();
    let features = guest.features();
    guest.frontend.set_need_reply(need_reply);
    let outcome = guest.frontend.set_features(wrong(features));
    assert_eq!(outcome.is_err(), need_reply);
    nothing_is_answered(&mut guest, &session, false);
    guest.frontend.set_features(features).unwrap();
    for queue in 0..guest.queues.len() {
        assert!(guest.finish(queue).1);
    }
    guest.echo_all();
    session.stop();
}

#[test]
fn c4_a_refused_set_features_withdraws_what_was_accepted() {
    for need_reply in [false, true] {
        for bit in [VIRTIO_F_ACCESS_PLATFORM, 50] {
            let wrong = |features| features | bits(&[bit]);
            a_refused_set_features_withdraws::<SplitRing>(need_reply, wrong);
            a_refused_set_features_withdraws::<PackedRing>(need_reply, wrong);
        }
        // Rings that run cannot be of another kind, nor follow other rules.
        for bit in [
            VIRTIO_F_RING_PACKED,
            VIRTIO_F_INDIRECT_DESC,
            VIRTIO_F_IN_ORDER,
        ] {
            let wrong = |features| features ^ bits(&[bit]);
            a_refused_set_features_withdraws::<SplitRing>(need_reply, wrong);
        }
    }
}

#[test]
fn c4_get_vring_base_withdraws_nothing() {
    let (mut guest, _session) = running();
    for _ in 0..3 {
        guest.echo_all();
        for queue in 0..guest.queues.len() {
            let base = guest.stop(queue).unwrap();
            guest.resume(queue, base).unwrap();
        }
    }
    guest.echo_all();
}

/// A refusal says nothing of a ring's kick, and a packed ring's first base not that it has run.
fn a_ring_that_was_not_kicked_waits_for_its_kick_after_a_refusal<R: Ring>() {
    let (mut guest, session) = running_on::<R>(options());
    let ids: Vec<_> = (0..guest.queues.len())
        .map(|queue| guest.submit(queue, Command::Echo))
        .collect();
    let features = guest.features();
    guest.frontend.set_need_reply(false);
    let wrong = features | bits(&[VIRTIO_F_ACCESS_PLATFORM]);
    guest.frontend.set_features(wrong).unwrap();
    guest.frontend.set_features(features).unwrap();
    settle(&guest.frontend);
    assert_eq!(session.record(|record| record.executed.len()), 0);
    for (queue, id) in ids.into_iter().enumerate() {
        guest.queues[queue].kick();
        assert_eq!(guest.finish(queue), (id, true));
    }
    guest.echo_all();
    session.stop();
}

#[test]
fn c4_a_ring_that_was_not_kicked_waits_for_its_kick_after_a_refusal() {
    a_ring_that_was_not_kicked_waits_for_its_kick_after_a_refusal::<SplitRing>();
    a_ring_that_was_not_kicked_waits_for_its_kick_after_a_refusal::<PackedRing>();
}
