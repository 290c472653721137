//! Requests in flight, in a region that the front-end keeps (V-10).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost_device_backend::{Error, Feature};
use vhost_device_driver::guest::{ALL_STEPS, Options, RingDriver, SESSION_STEPS, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{PackedRing, Random, Ring, SplitRing};
use vhost_device_queue::memory::Mapping;

use crate::common::*;

/// The length of a queue's part of a region, for either kind of ring of [`QUEUE_SIZE`].
const SPLIT_LEN: u64 = 192;
const PACKED_LEN: u64 = 320;

/// Requests may stay in the region while a queue is stopped.
const OUTLIVES_STOP: u64 = bits(&[VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT]);

fn tracked() -> Options {
    options().track_inflight()
}

fn file(len: u64) -> File {
    let file = File::from(memfd_create("region", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn area(len: u64, queues: u16, queue_size: u16) -> Inflight {
    Inflight {
        mmap_size: len,
        num_queues: queues,
        queue_size,
        ..Inflight::default()
    }
}

/// The region of a guest, as the front-end can write to it.
fn region<R>(guest: &RingGuest<R>) -> File {
    let (_, fd) = guest.inflight.as_ref().unwrap();
    File::from(fd.try_clone().unwrap())
}

fn stop_all<R: Ring>(guest: &RingGuest<R>) {
    for queue in 0..guest.queues.len() {
        guest.stop(queue).unwrap();
    }
}

/// Goes on with another back-end, as when the first has died.
fn replace<R: Ring>(guest: &mut RingGuest<R>, first: Session, bases: &[u32]) -> Session {
    let (stream, second) = Session::start(Setup::default());
    guest.reconnect(stream, bases).unwrap();
    first.left();
    second
}

#[test]
fn v10_a_region_is_made_for_either_kind_of_ring() {
    let (frontend, session) = negotiated();
    for (queues, size) in [(1, 1), (3, 8), (2, 100), (3, 0x8000)] {
        let (area, fd) = frontend.get_inflight_fd(queues, size).unwrap();
        let part = (32 + 32 * u64::from(size)).next_multiple_of(64);
        assert_eq!(area.mmap_size, part * u64::from(queues));
        assert_eq!((area.num_queues, area.queue_size), (queues, size));
        assert_eq!(area.mmap_offset, 0);
        let file = File::from(fd.try_clone().unwrap());
        assert_eq!(file.metadata().unwrap().len(), area.mmap_size);
        let mut bytes = vec![1; 64];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 64], "not used yet");
        // Nobody can take it away from under the back-end.
        assert!(file.set_len(0).is_err());
        frontend.set_inflight_fd(&area, fd.as_fd()).unwrap();
    }
    session.stop();
}

#[test]
fn v10_a_region_that_cannot_be_made_ends_the_session() {
    for (queues, size) in [
        (0, 8),
        (1, 0),
        (QUEUES + 1, 8),
        (0xffff, 0xffff),
        (1, 0x8001),
    ] {
        let (frontend, session) = negotiated();
        frontend.get_inflight_fd(queues, size).unwrap_err();
        session.broken();
    }
}

#[test]
fn v10_a_region_that_cannot_be_used_is_refused() {
    let (frontend, session) = negotiated();
    let all = file(0x4000);
    let good = area(3 * SPLIT_LEN, 3, 8);
    let refused = [
        area(3 * SPLIT_LEN, QUEUES + 1, 8),
        area(0x4000, 1, 0x8001),
        area(0x4000, 3, 0x8000),
        area(3 * SPLIT_LEN - 1, 3, 8),
        area(0, 3, 8),
        Inflight {
            mmap_offset: 64,
            ..good
        },
        Inflight {
            mmap_offset: 0x4000,
            ..good
        },
        Inflight {
            mmap_offset: u64::MAX - 0xfff,
            ..good
        },
    ];
    for area in refused {
        let error = frontend.set_inflight_fd(&area, all.as_fd()).unwrap_err();
        assert!(error.is_nack(), "{area:?}: {error}");
    }
    // Longer than its file.
    let short = file(3 * SPLIT_LEN - 1);
    assert!(
        frontend
            .set_inflight_fd(&good, short.as_fd())
            .unwrap_err()
            .is_nack()
    );
    // Longer than it must be is no harm, wherever it is in its file.
    let later = Inflight {
        mmap_offset: 0x2000,
        mmap_size: 0x2000,
        ..good
    };
    frontend.set_inflight_fd(&later, all.as_fd()).unwrap();
    frontend.set_inflight_fd(&good, all.as_fd()).unwrap();
    session.stop();
}

#[test]
fn v10_a_region_does_not_change_while_rings_run() {
    let (guest, session) = running_with(tracked());
    for queue in 0..guest.queues.len() {
        guest.queues[queue].kick();
    }
    settle(&guest.frontend);
    let (area, fd) = guest.inflight.as_ref().unwrap();
    let set = || guest.frontend.set_inflight_fd(area, fd.as_fd());
    assert!(set().unwrap_err().is_nack());
    stop_all(&guest);
    set().unwrap();
    session.stop();
}

/// Everything else works as without a region, over many rounds.
fn a_tracked_device_works<R: Ring>(options: Options) {
    let (mut guest, session) = running_on::<R>(options);
    for round in 0..50 {
        guest.echo_all();
        let kept = guest.submit(0, Command::Keep);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 1);
        let dropped = guest.submit(1, Command::Drop);
        guest.queues[1].notify();
        assert_eq!(guest.finish(1), (dropped, false), "{round}");
        session.release.signal();
        assert_eq!(guest.finish(0), (kept, true), "{round}");
    }
    session.stop();
}

#[test]
fn v10_a_tracked_device_works_as_any_other() {
    let no_events = bits(&[VIRTIO_F_EVENT_IDX]);
    a_tracked_device_works::<SplitRing>(tracked());
    a_tracked_device_works::<PackedRing>(tracked());
    a_tracked_device_works::<SplitRing>(tracked().without_features(no_events));
    a_tracked_device_works::<PackedRing>(tracked().without_features(no_events));
}

/// The back-end dies with requests of which a later one is answered.
fn what_was_in_flight_is_done_again<R: Ring>(options: Options) {
    let (mut guest, mut session) = running_on::<R>(options);
    for _ in 0..20 {
        let first = guest.submit(0, Command::Keep);
        let second = guest.submit(0, Command::Keep);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 2);
        let answered = guest.submit(0, Command::Echo);
        guest.queues[0].kick();
        assert_eq!(guest.finish(0), (answered, true));
        let third = guest.submit(0, Command::Keep);
        guest.queues[0].kick();
        session.wait_until(|record| record.kept == 3);

        let bases = guest.bases_after_a_loss();
        session = replace(&mut guest, session, &bases);
        // Nobody kicks: the kick was for the one that has died.
        session.wait_until(|record| record.kept == 3);
        assert!(session.record(|record| record.executed.is_empty()));
        guest.echo_behind(0);
        for id in [first, second, third] {
            session.release.signal();
            assert_eq!(guest.finish(0), (id, true));
        }
        let executed = session.record(|record| record.executed.clone());
        assert_eq!(executed[1..], [first, second, third]);
        guest.echo_all();
    }
}

#[test]
fn v10_what_was_in_flight_is_done_again_and_nothing_else() {
    for options in [tracked(), tracked().with_protocol_features(OUTLIVES_STOP)] {
        what_was_in_flight_is_done_again::<SplitRing>(options.clone());
        what_was_in_flight_is_done_again::<PackedRing>(options);
    }
}

/// Answers that wait for an earlier one were not shown: those requests are done again.
fn what_waits_for_its_turn_is_done_again<R: Ring>() {
    let options = tracked().require_features(bits(&[VIRTIO_F_IN_ORDER]));
    let (mut guest, session) = running_on::<R>(options);
    let kept = guest.submit(0, Command::Keep);
    let early = guest.submit(0, Command::Echo);
    guest.queues[0].notify();
    session.wait_until(|record| record.executed == [early]);
    let bases = guest.bases_after_a_loss();
    let session = replace(&mut guest, session, &bases);
    session.wait_until(|record| record.executed == [early] && record.kept == 1);
    session.release.signal();
    assert_eq!(guest.finish(0), (kept, true));
    assert_eq!(guest.finish(0), (early, true));
    guest.echo_all();
}

#[test]
fn v10_answers_that_wait_for_their_turn_were_not_given() {
    what_waits_for_its_turn_is_done_again::<SplitRing>();
    what_waits_for_its_turn_is_done_again::<PackedRing>();
}

/// Two requests that the device keeps, with one in between that is answered.
fn keep_around_an_answer<R: Ring>(guest: &mut RingGuest<R>, session: &Session) -> (u64, u64) {
    let older = guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 1);
    guest.echo_behind(0);
    let newer = guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 2);
    (older, newer)
}

/// With GET_VRING_BASE_INFLIGHT a stop leaves kept requests where they are, and the base is behind
/// them.
fn kept_requests_outlive_a_stop<R: Ring>(behind: u32) {
    for other in [false, true] {
        let options = tracked().with_protocol_features(OUTLIVES_STOP);
        let (mut guest, session) = running_on::<R>(options);
        let (older, newer) = keep_around_an_answer(&mut guest, &session);
        assert_eq!(guest.stop(0).unwrap(), behind);
        assert!(!guest.queues[0].ring.has_used(), "nothing is given up");
        let session = if other {
            let bases = [behind, guest.stop(1).unwrap(), guest.stop(2).unwrap()];
            replace(&mut guest, session, &bases)
        } else {
            guest.resume(0, behind).unwrap();
            session
        };
        session.wait_until(|record| record.kept == 2);
        for id in [older, newer] {
            session.release.signal();
            assert_eq!(guest.finish(0), (id, true));
        }
        guest.echo_all();
    }
}

#[test]
fn v10_kept_requests_outlive_a_stop_where_the_front_end_wants_it() {
    kept_requests_outlive_a_stop::<SplitRing>(3);
    // Three chains of two descriptors were taken, and one was used.
    kept_requests_outlive_a_stop::<PackedRing>(0x8002_8006);
}

/// Without it a stop leaves nothing behind in the region, and whoever has no region can go on.
fn a_stop_empties_the_region<R: Ring>(base: u32) {
    for tracks in [false, true] {
        let (mut guest, session) = running_on::<R>(tracked());
        let (older, newer) = keep_around_an_answer(&mut guest, &session);
        let bases = [0, 1, 2].map(|queue| guest.stop(queue).unwrap());
        assert_eq!(bases[0], base);
        assert_eq!(guest.finish(0), (older, false));
        if !tracks {
            // Another host's, perhaps.
            let file = file(3 * PACKED_LEN);
            let area = area(3 * PACKED_LEN, 3, QUEUE_SIZE);
            guest.inflight = Some((area, file.into()));
        }
        let session = replace(&mut guest, session, &bases);
        session.wait_until(|record| record.kept == 1);
        session.release.signal();
        assert_eq!(guest.finish(0), (newer, true));
        guest.echo_all();
    }
}

#[test]
fn v10_a_stop_empties_the_region_where_nothing_else_was_said() {
    a_stop_empties_the_region::<SplitRing>(2);
    a_stop_empties_the_region::<PackedRing>(0x8004_8004);
}

/// What no index can stand for is not given up by a stop that comes before it was looked at.
fn a_stop_at_once_loses_nothing<R: Ring>() {
    let (mut guest, session) = running_on::<R>(tracked());
    let kept = guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 1);
    let echoed: Vec<_> = (0..3).map(|_| guest.submit(0, Command::Echo)).collect();
    guest.queues[0].kick();
    for id in echoed {
        assert_eq!(guest.finish(0), (id, true));
    }
    // Ring 0 begins with its last message; behind it in the socket is the one that stops it.
    let bases = guest.bases_after_a_loss();
    let session = replace(&mut guest, session, &bases);
    let base = guest.stop(0).unwrap();
    // The device was asked for it, though it keeps it, and an index cannot stand for it.
    assert_eq!(guest.finish(0), (kept, false));
    guest.resume(0, base).unwrap();
    guest.echo(0);
    drop(session);
}

#[test]
fn v10_a_stop_at_once_is_in_order() {
    a_stop_at_once_loses_nothing::<SplitRing>();
    a_stop_at_once_loses_nothing::<PackedRing>();
}

/// A driver that begins anew has nothing in flight, whatever the region says.
fn a_new_driver_has_nothing_in_flight<R: Ring>() {
    for reset in [false, true] {
        let options = tracked().with_protocol_features(OUTLIVES_STOP);
        let (mut guest, session) = running_on::<R>(options);
        guest.echo(0);
        guest.submit(0, Command::Keep);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 1);
        if reset {
            guest.frontend.reset_device().unwrap();
            guest.frontend.set_features(guest.features()).unwrap();
        } else {
            stop_all(&guest);
        }
        for queue in 0..guest.queues.len() {
            guest.queues[queue].ring.start_at(R::FIRST_BASE);
            guest.forget(queue);
            guest.resume(queue, R::FIRST_BASE).unwrap();
        }
        guest.echo_all();
        assert_eq!(session.record(|record| record.kept), 0);
        session.stop();
    }
}

#[test]
fn v10_a_new_driver_begins_with_nothing_in_flight() {
    a_new_driver_has_nothing_in_flight::<SplitRing>();
    a_new_driver_has_nothing_in_flight::<PackedRing>();
}

/// A guest's firmware may have split rings, and its kernel packed ones.
#[test]
fn v10_a_region_of_the_other_kind_means_nothing() {
    let options = tracked().with_protocol_features(OUTLIVES_STOP);
    let (mut guest, session) = running_with(options.clone());
    guest.echo_all();
    for queue in 0..guest.queues.len() {
        guest.submit(queue, Command::Keep);
    }
    guest.queues.iter().for_each(|queue| queue.kick());
    session.wait_until(|record| record.kept == usize::from(QUEUES));
    stop_all(&guest);

    let stream = guest.frontend.stream().try_clone().unwrap();
    let mut next = RingGuest::<PackedRing>::prepare(stream, options);
    next.inflight = guest.inflight.take();
    next.run(&ALL_STEPS).unwrap();
    next.echo_all();
    assert_eq!(session.record(|record| record.kept), 0);
    session.stop();
}

#[test]
fn v10_queues_beyond_the_region_are_not_tracked() {
    let (mut guest, session) = prepared(tracked());
    let file = file(SPLIT_LEN);
    guest.inflight = Some((area(SPLIT_LEN, 1, QUEUE_SIZE), file.into()));
    guest.run(&ALL_STEPS).unwrap();
    guest.echo_all();
    session.stop();
}

/// A region that does not do for its ring: that ring does not run, and the front-end is told.
fn a_ring_does_not_run<R: Ring>(len: u64, queue_size: u16, change: impl FnOnce(&File)) {
    let (frontend, session) = frontend();
    let mut driver = RingDriver::<R>::prepare(frontend, tracked());
    let file = file(len);
    change(&file);
    driver.inflight = Some((area(len, 1, queue_size), file.into()));
    driver.run(&ALL_STEPS).unwrap();
    driver.queues[0].kick();
    assert!(driver.queues[0].err.wait(DEADLINE));
    settle(&driver.frontend);
    session.stop();
}

#[test]
fn v10_a_region_that_does_not_do_is_an_error_of_the_ring() {
    a_ring_does_not_run::<SplitRing>(SPLIT_LEN, QUEUE_SIZE / 2, |_| ());
    a_ring_does_not_run::<PackedRing>(SPLIT_LEN, QUEUE_SIZE, |_| ());
    let version = |file: &File| file.write_all_at(&[2], 8).unwrap();
    a_ring_does_not_run::<SplitRing>(SPLIT_LEN, QUEUE_SIZE, version);
    a_ring_does_not_run::<PackedRing>(PACKED_LEN, QUEUE_SIZE, version);
    // An old used index outside of the ring.
    let index = |file: &File| {
        file.write_all_at(&[1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0], 8)
            .unwrap()
    };
    a_ring_does_not_run::<PackedRing>(PACKED_LEN, QUEUE_SIZE, index);
}

/// Anything may stand in a region. The session lives, and a new region is as good as ever.
fn anything_may_stand_in_a_region<R: Ring>() {
    let (mut guest, mut session) = running_on::<R>(tracked());
    let mut random = Random::new(1);
    for round in 0..100 {
        guest.submit(0, Command::Keep);
        guest.queues[0].notify();
        session.wait_until(|record| record.kept == 1);
        let region = region(&guest);
        for _ in 0..=round % 20 {
            let at = random.below(3 * SPLIT_LEN);
            let byte = random.below(0x100) as u8;
            region.write_all_at(&[byte], at).unwrap();
        }
        // Else it would only be refused.
        region.write_all_at(&1u16.to_ne_bytes(), 8).unwrap();
        let bases = guest.bases_after_a_loss();
        session = replace(&mut guest, session, &bases);
        guest.queues[0].kick();
        settle(&guest.frontend);
        // The front-end begins anew.
        stop_all(&guest);
        guest.inflight = None;
        for queue in 0..guest.queues.len() {
            guest.queues[queue].ring.start_at(R::FIRST_BASE);
            guest.forget(queue);
        }
        session = replace(&mut guest, session, &[R::FIRST_BASE; QUEUES as usize]);
        guest.echo_all();
    }
}

#[test]
fn v10_anything_may_stand_in_the_region_of_split_rings() {
    anything_may_stand_in_a_region::<SplitRing>();
}

#[test]
fn v10_anything_may_stand_in_the_region_of_packed_rings() {
    anything_may_stand_in_a_region::<PackedRing>();
}

#[test]
fn v10_a_region_that_loses_its_file_ends_the_session_and_nothing_else() {
    let (mut guest, session) = prepared(tracked());
    let file = file(3 * SPLIT_LEN);
    let copy = file.try_clone().unwrap();
    guest.inflight = Some((area(3 * SPLIT_LEN, 3, QUEUE_SIZE), file.into()));
    guest.run(&ALL_STEPS).unwrap();
    guest.echo_all();
    copy.set_len(0).unwrap();
    guest.submit(0, Command::Echo);
    guest.queues[0].kick();
    assert!(matches!(session.end(), Err(Error::MemoryLost)));
}

#[test]
fn v10_a_region_of_huge_pages_that_loses_its_file_ends_the_session_and_nothing_else() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    let Ok(fd) = memfd_create("region", flags) else {
        eprintln!("skipped: the kernel has no huge pages");
        return;
    };
    let file = File::from(fd);
    // Whole pages, the largest that are common.
    file.set_len(1 << 30).unwrap();
    if Mapping::new(&file, 0, 1 << 30).is_err() {
        eprintln!("skipped: huge pages cannot be mapped, as under qemu-user");
        return;
    }
    let copy = file.try_clone().unwrap();
    let (mut guest, session) = prepared(tracked());
    guest.inflight = Some((area(3 * SPLIT_LEN, 3, QUEUE_SIZE), file.into()));
    // If the system has no such page to give, the region is lost as soon as it is touched: in the
    // middle of the steps, or behind them.
    if guest.run(&ALL_STEPS).is_ok() {
        copy.set_len(0).unwrap();
        guest.submit(0, Command::Echo);
        guest.queues[0].kick();
    }
    assert!(matches!(session.end(), Err(Error::MemoryLost)));
}

#[test]
fn v10_a_front_end_that_makes_a_region_and_keeps_it_to_itself_is_not_tracked() {
    let (mut guest, session) = prepared(options());
    guest.run(&SESSION_STEPS).unwrap();
    guest.frontend.get_inflight_fd(3, QUEUE_SIZE).unwrap();
    for step in [
        Step::Num,
        Step::Base,
        Step::Addr,
        Step::Kick,
        Step::Call,
        Step::Enable,
    ] {
        guest.run(&[step]).unwrap();
    }
    guest.echo_all();
    session.stop();
}

#[test]
fn c5_a_region_that_was_withheld_is_refused_whatever_the_front_end_says() {
    let inflight = bits(&[
        VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
    ]);
    let (frontend, session) = set_though_withheld(Feature::Inflight, inflight);
    let file = file(3 * SPLIT_LEN);
    let set = frontend.set_inflight_fd(&area(3 * SPLIT_LEN, 3, 8), file.as_fd());
    assert!(set.unwrap_err().is_nack());
    frontend.sync().unwrap();
    // There is no answer that says no.
    frontend.get_inflight_fd(1, 8).unwrap_err();
    session.broken();
}

#[test]
fn v10_a_region_needs_its_protocol_feature() {
    let (mut frontend, session) = frontend();
    frontend.get_features().unwrap();
    frontend.set_protocol_features(0).unwrap();
    frontend.get_inflight_fd(1, 8).unwrap_err();
    session.broken();
}

/// A driver whose features are refused comes between.
fn refuse_features<R: Ring>(guest: &mut RingGuest<R>) {
    let wrong = guest.features() | bits(&[VIRTIO_F_ACCESS_PLATFORM]);
    assert!(guest.frontend.set_features(wrong).unwrap_err().is_nack());
}

/// A request is kept on each queue, in a region that outlives stops.
fn kept_on_each_queue<R: Ring>() -> (RingGuest<R>, Session, Vec<u64>) {
    let options = tracked().with_protocol_features(OUTLIVES_STOP);
    let (mut guest, session) = running_on::<R>(options);
    guest.echo_all();
    let kept: Vec<_> = (0..guest.queues.len())
        .map(|queue| {
            let id = guest.submit(queue, Command::Keep);
            guest.queues[queue].kick();
            session.wait_until(|record| record.kept == queue + 1);
            id
        })
        .collect();
    (guest, session, kept)
}

fn a_refusal_forgets_nothing_in_flight<R: Ring>() {
    let (mut guest, session, kept) = kept_on_each_queue::<R>();
    refuse_features(&mut guest);
    assert_eq!(session.record(|record| record.kept), 0);
    let features = guest.features();
    guest.frontend.set_features(features).unwrap();
    session.wait_until(|record| record.kept == kept.len());
    for (queue, id) in kept.into_iter().enumerate() {
        session.release.signal();
        assert_eq!(guest.finish(queue), (id, true));
    }
    guest.echo_all();
    session.stop();
}

#[test]
fn c4_a_refusal_forgets_nothing_that_is_in_flight() {
    a_refusal_forgets_nothing_in_flight::<SplitRing>();
    a_refusal_forgets_nothing_in_flight::<PackedRing>();
}

fn a_reset_after_a_refusal_forgets_all<R: Ring>() {
    let (mut guest, session, _) = kept_on_each_queue::<R>();
    refuse_features(&mut guest);
    guest.frontend.reset_device().unwrap();
    guest.place_rings_elsewhere();
    let features = guest.features();
    guest.set_features(features).unwrap();
    guest.run(&RING_AGAIN).unwrap();
    guest.echo_all();
    assert_eq!(session.record(|record| record.kept), 0, "another driver's");
    session.stop();
}

#[test]
fn v11_a_reset_after_a_refusal_forgets_what_was_in_flight_of_either_kind() {
    a_reset_after_a_refusal_forgets_all::<SplitRing>();
    a_reset_after_a_refusal_forgets_all::<PackedRing>();
}
