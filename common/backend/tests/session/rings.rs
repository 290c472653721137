//! When rings run, how they stop and go on, and that no notification is lost.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vhost_device_driver::guest::{Options, SESSION_STEPS, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{EventFd, Ring, SplitRing};

use crate::common::*;

/// The steps about queues that can be taken in any order.
const VRING_STEPS: [Step; 6] = [
    Step::Num,
    Step::Base,
    Step::Addr,
    Step::Kick,
    Step::Call,
    Step::Enable,
];

/// A running guest with one kept request on queue 0, and its session.
fn keeping() -> (Guest, Session) {
    let (mut guest, session) = running();
    guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 1);
    (guest, session)
}

/// All orders of `items`.
fn permutations<T: Copy>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    (0..items.len())
        .flat_map(|first| {
            let mut rest = items.to_vec();
            let first = rest.remove(first);
            permutations(&rest).into_iter().map(move |mut order| {
                order.insert(0, first);
                order
            })
        })
        .collect()
}

#[test]
fn v1_every_order_of_setting_up_works() {
    for order in permutations(&VRING_STEPS) {
        let position = |step| order.iter().position(|s| *s == step);
        // Whether a ring fits where it is said to be depends on its size.
        if position(Step::Num) > position(Step::Addr) {
            continue;
        }
        let steps = [&SESSION_STEPS[..], &order].concat();
        let (mut guest, _session) = running_with(options().steps(&steps));
        guest.echo_all();
    }
}

#[test]
fn v1_kick_before_enable_is_not_lost() {
    let (mut guest, _session) = running_with(options().without(Step::Enable));
    let id = guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    assert_eq!(guest.queues[0].ring.used_idx(), 0);
    guest.queue_step(0, Step::Enable).unwrap();
    assert_eq!(guest.finish(0), (id, true));
    guest.echo(0);
}

#[test]
fn v1_enable_before_kick() {
    let (mut guest, _session) = running_with(options().without(Step::Kick));
    let id = guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    assert_eq!(guest.queues[0].ring.used_idx(), 0);
    guest.queue_step(0, Step::Kick).unwrap();
    assert_eq!(guest.finish(0), (id, true));
    guest.echo(0);
}

#[test]
fn v1_buffers_from_before_the_kick_are_served_by_it() {
    let (mut guest, _session) = running();
    let ids: Vec<_> = (0..4).map(|_| guest.submit(0, Command::Echo)).collect();
    guest.queues[0].kick();
    for id in ids {
        assert_eq!(guest.finish(0), (id, true));
    }
}

#[test]
fn v1_c1_without_a_kick_nothing_is_consumed() {
    let (mut guest, session) = running();
    guest.submit(0, Command::Echo);
    let before = guest.used_ring(0);
    settle(&guest.frontend);
    guest.echo(1);
    assert_eq!(guest.used_ring(0), before);
    assert_eq!(guest.queues[0].take_calls(), 0);
    assert_eq!(session.record(|record| record.executed.len()), 1);
}

#[test]
fn v1_a_ring_that_resumes_needs_no_kick() {
    let (mut guest, _session) = prepared(options().base(7));
    let id = guest.submit(0, Command::Echo);
    guest.run(&SESSION_STEPS).unwrap();
    guest.run(&VRING_STEPS).unwrap();
    assert_eq!(guest.finish(0), (id, true));
}

#[test]
fn v1_a_ring_starts_at_any_base() {
    for base in [1u16, 7, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let (mut guest, _session) = running_with(options().base(base.into()));
        for _ in 0..3 * QUEUE_SIZE {
            guest.echo(0);
        }
        let end = base.wrapping_add(3 * QUEUE_SIZE);
        assert_eq!(guest.stop(0).unwrap(), u32::from(end));
    }
}

#[test]
fn v1_a_ring_without_a_kick_fd_is_polled() {
    let (mut guest, _session) = running_with(options().polled());
    for _ in 0..20 {
        let id = guest.submit(0, Command::Echo);
        assert_eq!(guest.finish(0), (id, true), "nobody kicked");
    }
    guest.echo_all();
    // It can be kicked again later.
    guest.queues[0].kick = EventFd::new();
    let kick = guest.queues[0].kick.duplicate().unwrap();
    let frontend = &guest.frontend;
    frontend.set_vring_kick(0, Some(kick.as_fd())).unwrap();
    guest.echo_all();
}

#[test]
fn v1_without_protocol_features_rings_are_enabled_at_once() {
    let protocol = bits(&[VHOST_USER_F_PROTOCOL_FEATURES]);
    let options = options().without_features(protocol).without(Step::Enable);
    let (mut guest, _session) = running_with(options);
    guest.echo_all();
}

#[test]
fn v1_a_disabled_ring_waits_until_it_is_enabled_again() {
    let (mut guest, session) = running();
    guest.echo_all();
    guest.frontend.set_vring_enable(0, false).unwrap();
    let id = guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    guest.echo(1);
    assert!(!session.record(|record| record.executed.contains(&id)));
    guest.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.finish(0), (id, true));
    guest.echo(0);
}

#[test]
fn v1_setting_a_kick_neither_enables_nor_disables() {
    let (mut guest, _session) = running();
    guest.queue_step(0, Step::Kick).unwrap();
    guest.echo(0);
    guest.frontend.set_vring_enable(0, false).unwrap();
    guest.queue_step(0, Step::Kick).unwrap();
    let id = guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    assert_eq!(guest.queues[0].ring.used_idx(), 1);
    guest.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.finish(0), (id, true));
}

#[test]
fn v1_no_ring_waits_for_another() {
    let (mut guest, session) = keeping();
    for _ in 1..QUEUE_SIZE / 2 {
        guest.submit(0, Command::Keep);
    }
    guest.queues[0].notify();
    let full = usize::from(QUEUE_SIZE / 2);
    session.wait_until(|record| record.kept == full);
    guest.echo(1);
    guest.echo(2);
    (0..full).for_each(|_| session.release.signal());
    (0..full as u64).for_each(|id| assert_eq!(guest.finish(0), (id, true)));
}

#[test]
fn a_spinning_session_serves_and_stops() {
    let (stream, session) = Session::start(Setup {
        poll: Duration::from_micros(50),
        ..Setup::default()
    });
    let mut guest = Guest::connect(stream, options());
    (0..100).for_each(|_| guest.echo_all());
    session.stop();
}

/// Submits some requests, stops after `done` of them, lets `resume` bring the ring back from
/// its base, and finishes the rest: each must be answered once. With `kicked`, the session has
/// been told of the rest before the stop, and is somewhere among them.
fn stop_after(done: usize, kicked: bool, resume: impl FnOnce(&mut Guest, u32)) {
    let (mut guest, session) = running();
    let mut ids = Vec::new();
    for n in 1..=usize::from(QUEUE_SIZE / 2) {
        ids.push(guest.submit(0, Command::Echo));
        if n == done || kicked {
            guest.queues[0].kick();
        }
    }
    for id in &ids[..done] {
        assert_eq!(guest.finish(0), (*id, true));
    }
    let base = guest.stop(0).unwrap();
    let executed = session.record(|record| record.executed.len());
    assert_eq!(executed, base as usize, "the base is what was done");
    resume(&mut guest, base);
    if done == 0 && !kicked {
        guest.queues[0].kick();
    }
    for id in &ids[done..] {
        assert_eq!(guest.finish(0), (*id, true));
    }
    guest.echo(0);
    assert_eq!(guest.queues[0].ring.outstanding(), 0);
}

#[test]
fn v2_a_ring_resumes_after_any_request() {
    for kicked in [false, true] {
        for done in 0..=usize::from(QUEUE_SIZE / 2) {
            stop_after(done, kicked, |guest, base| guest.resume(0, base).unwrap());
        }
    }
}

#[test]
fn v2_another_back_end_goes_on_after_any_request() {
    for kicked in [false, true] {
        for done in 0..=usize::from(QUEUE_SIZE / 2) {
            let mut other = None;
            stop_after(done, kicked, |guest, base| {
                let bases = [base, guest.stop(1).unwrap(), guest.stop(2).unwrap()];
                let (stream, session) = Session::start(Setup::default());
                guest.reconnect(stream, &bases).unwrap();
                other = Some(session);
            });
        }
    }
}

/// Stops queue 0 over and over, wherever the session is, and checks the base: `is_base` gets it
/// with the number of requests that were done.
pub(crate) fn stopping_over_and_over_loses_nothing<R: Ring>(
    options: Options,
    is_base: impl Fn(u32, usize) -> bool,
) {
    let (mut guest, session) = running_on::<R>(options);
    let mut expected = Vec::new();
    for round in 0..300 {
        while guest.queues[0].ring.free_descriptors() >= 2 {
            expected.push(guest.submit(0, Command::Echo));
            guest.queues[0].notify();
        }
        // Wherever the session is now.
        let base = guest.stop(0).unwrap();
        let executed = session.record(|record| record.executed.len());
        assert!(is_base(base, executed), "{base:#x} after {executed}");
        guest.resume(0, base).unwrap();
        let outstanding = guest.queues[0].ring.outstanding();
        for _ in 0..outstanding.min(round % 4 + 1) {
            assert!(guest.finish(0).1);
        }
    }
    while guest.queues[0].ring.outstanding() > 0 {
        assert!(guest.finish(0).1);
    }
    assert_eq!(session.record(|record| record.executed.clone()), expected);
}

#[test]
fn v2_stopping_over_and_over_loses_nothing() {
    let is_base = |base, executed| base == executed as u32;
    stopping_over_and_over_loses_nothing::<SplitRing>(options(), is_base);
}

/// Keeps the newest requests of queue 0, stops it, which gives `base`, and lets the same or
/// another back-end go on.
pub(crate) fn the_newest_are_done_by_whoever_resumes<R: Ring>(options: &Options, base: u32) {
    for other in [false, true] {
        for kept in 1..=3 {
            let (mut guest, session) = running_on::<R>(options.clone());
            guest.echo(0);
            let ids: Vec<_> = (0..kept).map(|_| guest.submit(0, Command::Keep)).collect();
            guest.queues[0].notify();
            session.wait_until(|record| record.kept == kept);
            let stopped = guest.stop(0).unwrap();
            assert_eq!(stopped, base, "those that are kept are not done");
            assert_eq!(session.record(|record| record.kept), 0);
            let session = if other {
                let bases = [base, guest.stop(1).unwrap(), guest.stop(2).unwrap()];
                let (stream, second) = Session::start(Setup::default());
                guest.reconnect(stream, &bases).unwrap();
                second
            } else {
                guest.resume(0, base).unwrap();
                session
            };
            session.wait_until(|record| record.kept == kept);
            for id in ids {
                session.release.signal();
                assert_eq!(guest.finish(0), (id, true));
            }
            guest.echo(0);
        }
    }
}

#[test]
fn v2_the_newest_kept_requests_are_done_by_whoever_resumes() {
    the_newest_are_done_by_whoever_resumes::<SplitRing>(&options(), 1);
}

#[test]
fn v2_an_older_kept_request_goes_back_with_length_0() {
    let (mut guest, session) = keeping();
    guest.echo_behind(0);
    let kept = guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 2);
    assert_eq!(guest.stop(0).unwrap(), 2);
    assert_eq!(guest.finish(0), (0, false));
    guest.resume(0, 2).unwrap();
    session.wait_until(|record| record.kept == 1);
    session.release.signal();
    assert_eq!(guest.finish(0), (kept, true));
}

#[test]
fn v2_nothing_is_touched_or_called_after_the_reply() {
    let (mut guest, session) = keeping();
    guest.echo_behind(0);
    let base = guest.stop(0).unwrap();
    assert_eq!(session.record(|record| record.stopped.clone()), [0]);
    let before = guest.used_ring(0);
    let done = session.record(|record| record.executed.len());
    guest.queues[0].take_calls();

    guest.submit(0, Command::Echo);
    session.release.signal();
    guest.kick_and_settle(0);
    // Nor do other messages about it wake it.
    guest.queue_step(0, Step::Enable).unwrap();
    guest.queue_step(0, Step::Call).unwrap();
    let features = guest.features();
    guest.frontend.set_features(features).unwrap();
    guest.kick_and_settle(0);
    assert_eq!(guest.used_ring(0), before);
    assert_eq!(guest.queues[0].take_calls(), 0);
    assert_eq!(session.record(|record| record.executed.len()), done);
    assert_eq!(guest.stop(0).unwrap(), base, "it has not moved");
}

#[test]
fn v2_a_polled_ring_stops_as_well() {
    let (mut guest, _session) = running_with(options().polled());
    guest.echo(0);
    assert_eq!(guest.stop(0).unwrap(), 1);
    guest.submit(0, Command::Echo);
    let before = guest.used_ring(0);
    settle(&guest.frontend);
    assert_eq!(guest.used_ring(0), before);
}

#[test]
fn v2_the_kick_is_put_back_for_what_is_left() {
    let (guest, _session) = keeping();
    assert_eq!(guest.stop(0).unwrap(), 0);
    assert_ne!(guest.queues[0].kick.take(), 0, "a request waits");
}

#[test]
fn v2_no_kick_is_put_back_when_nothing_is_left() {
    let (mut guest, _session) = running();
    guest.echo(0);
    assert_eq!(guest.stop(0).unwrap(), 1);
    assert_eq!(guest.queues[0].kick.take(), 0);
}

#[test]
fn v2_what_is_left_is_not_run_by_the_kick_that_was_put_back() {
    let (guest, session) = keeping();
    assert_eq!(guest.stop(0).unwrap(), 0);
    let before = guest.used_ring(0);
    settle(&guest.frontend);
    assert_eq!(session.record(|record| record.kept), 0);
    assert_eq!(guest.used_ring(0), before);
}

#[test]
fn v2_a_ring_that_never_ran_gives_back_its_base() {
    let (guest, _session) = running_with(options().base(99).without(Step::Kick));
    for queue in 0..guest.queues.len() {
        assert_eq!(guest.stop(queue).unwrap(), 99);
        assert_eq!(guest.stop(queue).unwrap(), 99);
    }
}

#[test]
fn v2_the_driver_is_called_for_the_last_requests_before_the_reply() {
    let (mut guest, _session) = keeping();
    guest.echo_behind(0);
    guest.queues[0].take_calls();
    let armed = guest.queues[0].ring.arm_calls();
    assert!(!armed);
    guest.stop(0).unwrap();
    assert_eq!(guest.queues[0].take_calls(), 1, "the kept one came back");
    assert_eq!(guest.finish(0), (0, false));
}

#[test]
fn v3_a_kick_is_replaced_while_the_ring_runs() {
    let (mut guest, _session) = running();
    for round in 0..1000 {
        let id = guest.submit(0, Command::Echo);
        let new = EventFd::new();
        // Before, on both, on the new one before it is known, or after.
        if round % 4 < 2 {
            guest.queues[0].kick();
        }
        if round % 4 == 1 || round % 4 == 2 {
            new.signal();
        }
        guest.queues[0].kick = new;
        guest.queue_step(0, Step::Kick).unwrap();
        if round % 4 == 3 {
            guest.queues[0].kick();
        }
        assert_eq!(guest.finish(0), (id, true));
    }
}

#[test]
fn v3_a_call_is_replaced_while_the_ring_runs() {
    let (mut guest, _session) = running();
    for _ in 0..1000 {
        let id = guest.submit(0, Command::Echo);
        let _ = guest.queues[0].ring.arm_calls();
        guest.queues[0].kick();
        // The old one may have been called already, and nobody listens to it any more.
        guest.queues[0].call = EventFd::new();
        guest.queue_step(0, Step::Call).unwrap();
        assert_eq!(guest.finish(0), (id, true));
    }
}

#[test]
fn v3_notifications_are_replaced_under_load() {
    let (guest, _session) = running();
    let (kick, call) = (&guest.queues[0].kick, &guest.queues[0].call);
    let (kick, call) = (kick.duplicate().unwrap(), call.duplicate().unwrap());
    let frontend = vhost_device_driver::Frontend::new(guest.frontend.stream().try_clone().unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut guest = guest;
            (0..2000).for_each(|_| guest.echo(0));
            done.store(true, Ordering::Relaxed);
            guest
        });
        // Each message brings another fd of the same two eventfds.
        while !done.load(Ordering::Relaxed) {
            frontend.set_vring_kick(0, Some(kick.as_fd())).unwrap();
            frontend.set_vring_call(0, Some(call.as_fd())).unwrap();
            frontend.set_vring_err(0, None).unwrap();
            frontend.sync().unwrap();
        }
        guest.join().unwrap();
    });
}

#[test]
fn v3_a_ring_without_a_call_is_served_and_called_once_it_has_one() {
    let (mut guest, _session) = running_with(options().without(Step::Call));
    let id = guest.submit(0, Command::Echo);
    guest.queues[0].kick();
    guest.queues[0].spin_used(DEADLINE);
    assert_eq!(id, 0);
    guest.queue_step(0, Step::Call).unwrap();
    let id = guest.submit(0, Command::Echo);
    guest.queues[0].kick();
    assert_eq!(guest.finish(0), (id, true));
}

#[test]
fn v7_what_the_device_keeps_is_dropped_with_the_connection() {
    let (guest, session) = keeping();
    drop(guest);
    session.left();
}

#[test]
fn answers_of_an_event_are_shown_the_last_queue_first() {
    use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

    let (mut guest, session) = running();
    // What becomes ready first is told first.
    let order = epoll::create(CreateFlags::CLOEXEC).unwrap();
    for queue in 0..guest.queues.len() {
        guest.submit(queue, Command::Keep);
        guest.queues[queue].kick();
        session.wait_until(|record| record.kept == queue + 1);
        assert!(!guest.queues[queue].ring.arm_calls());
        guest.queues[queue].take_calls();
        let data = EventData::new_u64(queue as u64);
        epoll::add(&order, &guest.queues[queue].call, data, EventFlags::IN).unwrap();
    }
    // One event for all of them.
    rustix::io::write(&session.release, &3u64.to_ne_bytes()).unwrap();
    session.wait_until(|record| record.kept == 0);
    settle(&guest.frontend);
    let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
    let (events, _) = epoll::wait(&order, &mut events, None).unwrap();
    let queues: Vec<_> = events.iter().map(|event| event.data.u64()).collect();
    assert_eq!(queues, [2, 1, 0]);
}

#[test]
fn dropped_requests_go_back_with_length_0() {
    let (mut guest, _session) = running();
    let id = guest.submit(0, Command::Drop);
    guest.queues[0].notify();
    assert_eq!(guest.finish(0), (id, false));
    guest.echo(0);
}

#[test]
fn a_ring_of_any_size_wraps() {
    for shift in 1..=10 {
        let options = Options::new(&[1 << shift]);
        let (mut guest, _session) = running_with(options);
        for _ in 0..3 << shift {
            guest.echo(0);
        }
    }
}
