//! What is negotiated, asked and refused in messages.

use std::os::fd::AsFd;

use vhost_device_backend::Feature;
use vhost_device_driver::codec::Message;
use vhost_device_driver::guest::{SESSION_STEPS, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{EventFd, Frontend, PackedRing};

use crate::common::*;

const RING_FEATURES: u64 = bits(&[
    VIRTIO_F_VERSION_1,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_RESET,
]);
const PROTOCOL_FEATURES: u64 = bits(&[VHOST_USER_F_PROTOCOL_FEATURES, VHOST_F_LOG_ALL]);

/// The message was refused, and the session goes on.
fn refused(frontend: &Frontend, outcome: vhost_device_driver::Result<()>) {
    assert!(outcome.as_ref().is_err_and(|e| e.is_nack()), "{outcome:?}");
    frontend.sync().unwrap();
}

/// A read of configuration space was refused: a reply without any bytes of it.
fn config_refused(frontend: &Frontend, offset: u32, size: u32) {
    let payload = [offset, size, 0].map(u32::to_ne_bytes).concat();
    let payload = [payload, vec![0; size as usize]].concat();
    let (reply, _) = frontend.call(VHOST_USER_GET_CONFIG, &payload, &[]).unwrap();
    let size = reply.payload.get(4..8).unwrap_or(&[0; 4]);
    assert_eq!(size, [0; 4], "{offset:#x}: {reply:?}");
    assert!(reply.payload.len() <= 12, "{reply:?}");
}

#[test]
fn c5_c9_exactly_what_is_done_is_offered() {
    let (frontend, _session) = frontend();
    let offered = frontend.get_features().unwrap();
    assert_eq!(offered, RING_FEATURES | PROTOCOL_FEATURES | DEVICE_FEATURES);
    let protocol = frontend.get_protocol_features().unwrap();
    let expected = bits(&[
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_LOG_SHMFD,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
        VHOST_USER_PROTOCOL_F_CONFIG,
        VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        VHOST_USER_PROTOCOL_F_RESET_DEVICE,
        VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
    ]);
    assert_eq!(protocol, expected);
}

#[test]
fn c5_what_is_withheld_is_not_offered_and_the_rest_works() {
    let withheld = |features: &[Feature]| {
        let (stream, _session) = Session::start(Setup {
            without: features.to_vec(),
            ..Setup::default()
        });
        let mut guest = Guest::connect(stream, options());
        guest.echo_all();
        let virtio = guest.frontend.get_features().unwrap();
        (virtio, guest.frontend.get_protocol_features().unwrap())
    };
    let (all, protocol) = withheld(&[]);
    let inflight = bits(&[
        VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
    ]);
    let log = bits(&[VHOST_USER_PROTOCOL_F_LOG_SHMFD]);
    let missing = [
        (Feature::Packed, bits(&[VIRTIO_F_RING_PACKED]), 0),
        (Feature::InOrder, bits(&[VIRTIO_F_IN_ORDER]), 0),
        (Feature::Indirect, bits(&[VIRTIO_F_INDIRECT_DESC]), 0),
        (Feature::EventIdx, bits(&[VIRTIO_F_EVENT_IDX]), 0),
        (Feature::RingReset, bits(&[VIRTIO_F_RING_RESET]), 0),
        (Feature::Inflight, 0, inflight),
        (Feature::Log, bits(&[VHOST_F_LOG_ALL]), log),
    ];
    assert_eq!(missing.map(|(feature, ..)| feature), Feature::ALL);
    for (feature, virtio, of_protocol) in missing {
        assert_eq!(
            withheld(&[feature]),
            (all & !virtio, protocol & !of_protocol)
        );
    }
    let ours = bits(&[VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES]);
    let (all, protocol) = withheld(&Feature::ALL);
    assert_eq!(all, DEVICE_FEATURES | ours);
    assert_eq!(protocol & (inflight | log), 0);
}

#[test]
fn c5_what_is_withheld_is_refused() {
    let (stream, _session) = Session::start(Setup {
        without: vec![Feature::Packed, Feature::Log],
        ..Setup::default()
    });
    let mut frontend = Frontend::new(stream);
    let offered = frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    for bit in [VIRTIO_F_RING_PACKED, VHOST_F_LOG_ALL] {
        refused(&frontend, frontend.set_features(offered | bits(&[bit])));
    }
    frontend.set_features(offered).unwrap();
}

#[test]
fn v12_config_is_not_offered_by_a_device_that_has_none() {
    let (stream, _session) = Session::start(Setup {
        config: &[],
        ..Setup::default()
    });
    let protocol = Frontend::new(stream).get_protocol_features().unwrap();
    assert_eq!(protocol & bits(&[VHOST_USER_PROTOCOL_F_CONFIG]), 0);
}

#[test]
fn mq_tells_how_many_queues_there_are() {
    let (frontend, _session) = negotiated();
    assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
}

#[test]
fn reply_ack_is_sent_when_it_is_asked_for_and_only_then() {
    let (mut frontend, _session) = negotiated();
    frontend.set_owner().unwrap();
    frontend.reset_owner().unwrap();
    refused(&frontend, frontend.set_vring_num(0, 0));
    frontend.set_need_reply(false);
    frontend.set_owner().unwrap();
    frontend.set_vring_num(0, 0).unwrap();
    // Its reply is the next thing in the socket.
    frontend.sync().unwrap();
}

#[test]
fn reply_ack_is_not_sent_before_it_was_negotiated() {
    let (mut frontend, _session) = frontend();
    let features = frontend.get_features().unwrap();
    let mut message = Message::new(VHOST_USER_SET_FEATURES, &features.to_ne_bytes());
    message.flags |= FLAG_NEED_REPLY;
    frontend.send_message(&message, &[]).unwrap();
    frontend.sync().unwrap();
    frontend.set_protocol_features(0).unwrap();
    frontend.send_message(&message, &[]).unwrap();
    frontend.sync().unwrap();
}

#[test]
fn reply_ack_of_a_refused_negotiation_is_the_same_for_all_messages() {
    let (mut frontend, _session) = frontend();
    frontend.get_features().unwrap();
    let not_offered = VHOST_USER_PROTOCOL_F_XEN_MMAP;
    let features = bits(&[VHOST_USER_PROTOCOL_F_REPLY_ACK, not_offered]);
    frontend.set_protocol_features(features).unwrap();
    // The message layer acknowledges from here on, so what is answered beside it must as well.
    frontend.set_owner().unwrap();
    let misaligned = VringAddr {
        descriptor: 8,
        ..VringAddr::default()
    };
    refused(&frontend, frontend.set_vring_addr(&misaligned));
}

#[test]
fn c8_config_is_read_before_the_features_are_set() {
    let (mut frontend, _session) = frontend();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    let len = CONFIG.len() as u32;
    assert_eq!(frontend.get_config(0, len).unwrap(), CONFIG);
    for offset in 0..len {
        let byte = frontend.get_config(offset, 1).unwrap();
        assert_eq!(byte, [CONFIG[offset as usize]]);
    }
}

#[test]
fn v12_a_read_of_the_configuration_gets_what_it_asks_for_and_zeros_behind() {
    let (frontend, _session) = negotiated();
    let len = CONFIG.len() as u32;
    for (offset, size) in [
        (0, len + 1),
        (len, 1),
        (len - 1, 2),
        (len + 1, 1),
        (200, 56),
        (0, 256),
        (255, 256),
        (4000, 96),
    ] {
        let read = frontend.get_config(offset, size).unwrap();
        let own = CONFIG.get(offset as usize..).unwrap_or_default();
        let own = &own[..own.len().min(size as usize)];
        assert_eq!(read.len(), size as usize);
        assert_eq!(read[..own.len()], *own);
        assert!(read[own.len()..].iter().all(|byte| *byte == 0));
    }
    for size in [257, 1000] {
        config_refused(&frontend, 0, size);
    }
    assert_eq!(frontend.get_config(0, len).unwrap(), CONFIG);
}

#[test]
fn v12_a_write_of_the_configuration_is_taken_and_changes_nothing() {
    let (frontend, _session) = negotiated();
    for offset in [0, 1, 18, 19, 100] {
        for flags in [0, VHOST_USER_CONFIG_F_LIVE_MIGRATION] {
            frontend.set_config(offset, flags, b"x").unwrap();
        }
    }
    assert_eq!(frontend.get_config(0, CONFIG.len() as u32).unwrap(), CONFIG);
}

#[test]
fn v12_without_config_a_read_has_no_bytes_and_the_session_lives() {
    let (mut frontend, session) = frontend();
    let read = |frontend: &Frontend| {
        let error = frontend.get_config(0, 8).unwrap_err();
        assert!(error.is_nack(), "{error}");
        frontend.sync().unwrap();
    };
    read(&frontend);
    let protocol = frontend.get_protocol_features().unwrap();
    let config = bits(&[VHOST_USER_PROTOCOL_F_CONFIG]);
    frontend.set_protocol_features(protocol & !config).unwrap();
    read(&frontend);
    refused(&frontend, frontend.set_config(0, 0, b"x"));
    frontend.set_need_reply(false);
    frontend.set_config(0, 0, &[0; 256]).unwrap();
    read(&frontend);
    frontend.set_protocol_features(protocol).unwrap();
    assert_eq!(frontend.get_config(0, 1).unwrap(), CONFIG[..1]);
    session.stop();
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (frontend, session) = negotiated();
    let offered = frontend.get_features().unwrap();
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        refused(&frontend, frontend.set_features(offered | 1 << bit));
    }
    let features = session.record(|record| record.features);
    let packed = bits(&[VIRTIO_F_RING_PACKED]);
    assert_eq!(features, RING_FEATURES & !packed | DEVICE_FEATURES);
}

#[test]
fn protocol_features_that_were_not_offered_are_refused() {
    let (frontend, _session) = negotiated();
    let offered = frontend.get_protocol_features().unwrap();
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        let features = offered | 1 << bit;
        let request = VHOST_USER_SET_PROTOCOL_FEATURES;
        refused(
            &frontend,
            frontend.send(request, &features.to_ne_bytes(), &[]),
        );
    }
}

#[test]
fn c4_every_subset_of_the_features_works() {
    let optional = [
        bits(&[VIRTIO_F_INDIRECT_DESC]),
        bits(&[VIRTIO_F_EVENT_IDX]),
        PROTOCOL_FEATURES,
        DEVICE_FEATURES,
    ];
    for subset in 0..1 << optional.len() {
        let features = (0..optional.len())
            .filter(|bit| subset & 1 << bit != 0)
            .fold(bits(&[VIRTIO_F_VERSION_1]), |all, bit| all | optional[bit]);
        let (mut guest, session) = running_with(options().features(features));
        guest.echo_all();
        let seen = session.record(|record| record.features);
        assert_eq!(seen, features & !PROTOCOL_FEATURES);
    }
}

#[test]
fn c6_the_same_features_can_be_set_again() {
    let (mut guest, _session) = running();
    let features = guest.features();
    guest.set_features(features).unwrap();
    guest.echo_all();
    guest.frontend.reset_device().unwrap();
    guest.frontend.set_features(features).unwrap();
    guest.frontend.set_features(features).unwrap();
}

#[test]
fn ring_features_cannot_change_while_rings_run() {
    let (mut guest, _session) = running();
    guest.echo_all();
    let features = guest.features();
    for bit in [VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX] {
        let other = features ^ bits(&[bit]);
        refused(&guest.frontend, guest.frontend.set_features(other));
        guest.frontend.set_features(features).unwrap();
        guest.echo_all();
    }
    for queue in 0..guest.queues.len() {
        guest.stop(queue).unwrap();
    }
    let other = features ^ bits(&[VIRTIO_F_INDIRECT_DESC]);
    guest.frontend.set_features(other).unwrap();
}

#[test]
fn features_that_the_device_cannot_work_with_are_refused() {
    let (stream, session) = Session::start(Setup {
        required: bits(&[0]),
        ..Setup::default()
    });
    let mut frontend = Frontend::new(stream);
    let offered = frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    refused(&frontend, frontend.set_features(offered & !1));
    assert_eq!(session.record(|record| record.features), 0);
    frontend.set_features(offered).unwrap();
}

#[test]
fn queue_sizes_that_no_ring_can_have_are_refused() {
    let (frontend, _session) = negotiated();
    for size in [0, 3, 7, 9, 0x8001, 0xffff, 0x1_0000, 0x1_0008, u32::MAX] {
        refused(&frontend, frontend.set_vring_num(0, size));
    }
    for shift in 0..=15 {
        frontend.set_vring_num(0, 1 << shift).unwrap();
    }
}

#[test]
fn p9_a_packed_ring_has_any_size_up_to_32768() {
    let (frontend, _session) = negotiated_without(0);
    for size in [0, 0x8001, 0xffff, 0x1_0000, u32::MAX] {
        refused(&frontend, frontend.set_vring_num(0, size));
    }
    for size in [1, 3, 7, 100, 0x7fff, 0x8000] {
        frontend.set_vring_num(0, size).unwrap();
    }
}

/// Messages that are well formed and say what cannot be, and how many fds belong to them.
fn impossible() -> Vec<(u32, Vec<u8>, usize)> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_ne_bytes()).collect();
    let config = |offset: u32, size: u32, flags: u32| -> Vec<u8> {
        let head: Vec<u8> = words(&[offset, size, flags]);
        [head, vec![0; size as usize]].concat()
    };
    let mut all = vec![
        // Flags that do not exist, then addresses that are misaligned.
        (VHOST_USER_SET_VRING_ADDR, longs(&[2 << 32, 0, 0, 0, 0]), 0),
        (VHOST_USER_SET_VRING_ADDR, longs(&[0, 8, 0, 0, 0]), 0),
        (VHOST_USER_SET_VRING_ADDR, longs(&[0, 0, 2, 0, 0]), 0),
        (VHOST_USER_SET_VRING_ADDR, longs(&[0, 0, 0, 1, 0]), 0),
        (VHOST_USER_SET_VRING_ENABLE, words(&[0, 2]), 0),
        (VHOST_USER_SET_VRING_ENABLE, words(&[0, u32::MAX]), 0),
        (VHOST_USER_SET_MEM_TABLE, words(&[0, 0]), 0),
        (VHOST_USER_SET_MEM_TABLE, words(&[0, 1]), 0),
        // No queues, and empty ones.
        (
            VHOST_USER_SET_INFLIGHT_FD,
            words(&[64, 0, 0, 0, 8 << 16, 0]),
            1,
        ),
        (VHOST_USER_SET_INFLIGHT_FD, words(&[64, 0, 0, 0, 1, 0]), 1),
    ];
    // Padding, an empty region, and regions that end nowhere.
    for (padding, region) in [
        (1, [0, 0x1000, 0, 0]),
        (0, [0, 0, 0, 0]),
        (0, [u64::MAX, 0x1000, 0, 0]),
        (0, [0, 0x1000, u64::MAX, 0]),
        (0, [0, 0x1000, 0, u64::MAX]),
    ] {
        for regions in [1, 2, 32] {
            let good = [0x10_0000, 0x1000, 0x10_0000, 0];
            let mut table: Vec<u64> = vec![padding << 32 | regions];
            (1..regions).for_each(|_| table.extend(good));
            table.extend(region);
            all.push((VHOST_USER_SET_MEM_TABLE, longs(&table), regions as usize));
        }
    }
    for (offset, size, flags) in [
        (0, 0, 0),
        (0, 257, 0),
        (4096, 1, 0),
        (4000, 97, 0),
        (u32::MAX, 1, 0),
        (0, 1, 4),
        (0, 1, u32::MAX),
    ] {
        let body = config(offset, size, flags);
        all.push((VHOST_USER_GET_CONFIG, body.clone(), 0));
        all.push((VHOST_USER_SET_CONFIG, body, 0));
    }
    all
}

#[test]
fn v5_a_message_that_says_what_cannot_be_fails_and_the_session_lives() {
    let (mut guest, session) = running();
    let event = EventFd::new();
    for (request, payload, count) in impossible() {
        let fds = vec![event.as_fd(); count];
        let frontend = &mut guest.frontend;
        if request == VHOST_USER_GET_CONFIG {
            // It has always an answer, without any bytes when it fails.
            let (reply, _) = frontend.call(request, &payload, &fds).unwrap();
            assert_eq!(reply.payload, [0; 0]);
            continue;
        }
        refused(frontend, frontend.send(request, &payload, &fds));
        frontend.set_need_reply(false);
        frontend.send(request, &payload, &fds).unwrap();
        frontend.sync().unwrap();
        frontend.set_need_reply(true);
    }
    guest.echo_all();
    session.stop();
}

#[test]
fn v6_a_message_that_says_what_cannot_be_has_its_fds_and_no_others() {
    for (request, payload, count) in impossible() {
        for wrong in [0, 1, 2, 32].into_iter().filter(|fds| *fds != count) {
            let (frontend, session) = negotiated();
            let event = EventFd::new();
            let message = Message::new(request, &payload);
            frontend
                .send_message(&message, &vec![event.as_fd(); wrong])
                .unwrap();
            session.broken();
        }
    }
}

#[test]
fn v15_a_ring_that_is_not_enabled_is_not_looked_at() {
    let (mut guest, session) = prepared_on::<PackedRing>(options());
    guest.run(&SESSION_STEPS).unwrap();
    guest.run(&[Step::Num, Step::Addr]).unwrap();
    guest.frontend.set_vring_base(0, 0).unwrap();
    guest.run(&[Step::Kick]).unwrap();
    // As the front-end has said: nobody has looked whether the ring is new.
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 0);
    guest.run(&RING_AGAIN).unwrap();
    guest.run(&[Step::Call]).unwrap();
    guest.echo_all();
    session.stop();
}

#[test]
fn v2_a_packed_ring_that_has_not_run_is_at_its_first_base() {
    let (frontend, _session) = negotiated_without(0);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0x8000_8000);
    frontend.set_vring_base(0, 0x0003_8004).unwrap();
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0x0003_8004);
}

#[test]
fn bases_over_16_bits_are_refused() {
    let (frontend, _session) = negotiated();
    frontend.set_vring_base(0, 0xffff).unwrap();
    for base in [0x1_0000, 0x1_0005, 0x8000_0000, u32::MAX] {
        refused(&frontend, frontend.set_vring_base(0, base));
    }
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0xffff);
}

#[test]
fn messages_about_vrings_that_do_not_exist_are_refused() {
    let (guest, _session) = running();
    let (frontend, event) = (&guest.frontend, EventFd::new());
    for index in [QUEUES.into(), 0xff] {
        let addr = VringAddr {
            index,
            ..guest.vring_addr(0)
        };
        refused(frontend, frontend.set_vring_num(index, 8));
        refused(frontend, frontend.set_vring_base(index, 0));
        refused(frontend, frontend.set_vring_addr(&addr));
        refused(frontend, frontend.set_vring_enable(index, true));
        for fd in [None, Some(event.as_fd())] {
            refused(frontend, frontend.set_vring_kick(index as u8, fd));
            refused(frontend, frontend.set_vring_call(index as u8, fd));
            refused(frontend, frontend.set_vring_err(index as u8, fd));
        }
    }
    for index in [0x100, 0x1_0000, u32::MAX] {
        refused(frontend, frontend.set_vring_num(index, 8));
        refused(frontend, frontend.set_vring_enable(index, false));
    }
}

#[test]
fn v6_get_vring_base_of_a_vring_that_does_not_exist_ends_the_session() {
    // There is no answer that says no.
    let (frontend, session) = negotiated();
    assert!(frontend.get_vring_base(QUEUES.into()).is_err());
    session.broken();
}

#[test]
fn a_running_vring_keeps_its_size_and_base() {
    let (mut guest, _session) = running();
    guest.echo_all();
    refused(&guest.frontend, guest.frontend.set_vring_num(0, 4));
    refused(&guest.frontend, guest.frontend.set_vring_base(0, 0));
    guest.queue_step(0, Step::Addr).unwrap();
    guest.queue_step(0, Step::Err).unwrap();
    guest.echo_all();
    assert_eq!(guest.stop(0).unwrap(), 2);
}

#[test]
fn c7_after_a_reset_nothing_runs_until_it_is_set_up_again() {
    let (mut guest, session) = running();
    guest.echo_all();
    guest.submit(0, Command::Keep);
    guest.queues[0].notify();
    session.wait_until(|record| record.kept == 1);
    guest.queues[0].take_calls();

    guest.frontend.reset_device().unwrap();
    let before = guest.used_ring(0);
    guest.submit(0, Command::Echo);
    session.release.signal();
    guest.kick_and_settle(0);
    assert_eq!(guest.used_ring(0), before);
    assert_eq!(guest.queues[0].take_calls(), 0);
    session.record(|record| {
        assert_eq!((record.resets, record.kept), (1, 0));
        assert_eq!(record.executed.len(), usize::from(QUEUES));
    });
}

#[test]
fn c7_a_ring_that_begins_elsewhere_has_a_new_driver() {
    let (mut guest, session) = running();
    guest.echo_all();
    let before = session.record(|record| record.features);
    // Stopped and gone on with, as for a pause: nothing is forgotten.
    for queue in 0..usize::from(QUEUES) {
        let base = guest.stop(queue).unwrap();
        guest.resume(queue, base).unwrap();
    }
    guest.echo_all();
    assert_eq!(session.record(|record| record.resets), 0);
    // Begun anew, as after a reset of the guest.
    for queue in 0..usize::from(QUEUES) {
        assert_ne!(guest.stop(queue).unwrap(), 0);
    }
    for queue in 0..usize::from(QUEUES) {
        guest.queues[queue].ring.reset(0);
        guest.resume(queue, 0).unwrap();
    }
    guest.echo_all();
    assert_eq!(session.record(|record| record.resets), 1);
    assert_eq!(session.record(|record| record.features), before);
}

#[test]
fn reset_device_puts_everything_back_to_the_beginning() {
    let (mut guest, session) = running();
    for _ in 0..3 {
        guest.echo_all();
        guest.frontend.reset_device().unwrap();
        for queue in 0..QUEUES {
            let base = guest.frontend.get_vring_base(queue.into()).unwrap();
            assert_eq!(base, 0, "indices are gone");
            // So are enablement and size: the ring is not served before all is said again.
            let queue = usize::from(queue);
            guest.queues[queue].ring.reset(0);
            let addr = guest.queue_step(queue, Step::Addr);
            refused(&guest.frontend, addr);
        }
        let features = guest.features();
        guest.set_features(features).unwrap();
        guest
            .run(&[Step::Num, Step::Addr, Step::Call, Step::Kick])
            .unwrap();
        guest.submit(0, Command::Drop);
        guest.kick_and_settle(0);
        assert_eq!(guest.queues[0].ring.used_idx(), 0, "enabled by a reset");
        guest.run(&[Step::Enable]).unwrap();
        guest.finish(0);
        guest.echo_all();
    }
    assert_eq!(session.record(|record| record.resets), 3);
}

#[test]
fn v11_a_reset_keeps_what_the_driver_is_called_and_told_of_errors_with() {
    let (mut guest, session) = running();
    for _ in 0..3 {
        guest.echo_all();
        guest.frontend.reset_device().unwrap();
        for queue in &mut guest.queues {
            queue.ring.reset(0);
        }
        let features = guest.features();
        guest.set_features(features).unwrap();
        // Neither err nor call is said again.
        guest.run(&RING_AGAIN).unwrap();
        guest.echo_all();
    }
    let index = guest.queues[0].ring.avail_idx();
    guest.queues[0].ring.set_avail_idx(index.wrapping_add(1000));
    guest.kick_and_settle(0);
    assert_ne!(guest.queues[0].err.take(), 0, "nobody was told");
    session.stop();
}

#[test]
fn v11_after_a_reset_all_rings_are_disabled() {
    let (mut guest, session) = running();
    guest.echo_all();
    guest.frontend.reset_device().unwrap();
    guest
        .queues
        .iter_mut()
        .for_each(|queue| queue.ring.reset(0));
    let features = guest.features();
    guest.set_features(features).unwrap();
    let [but_enable @ .., _] = RING_AGAIN;
    guest.run(&but_enable).unwrap();
    let done = session.record(|record| record.executed.len());
    for queue in 0..guest.queues.len() {
        guest.submit(queue, Command::Echo);
        guest.kick_and_settle(queue);
        assert_eq!(guest.queues[queue].ring.used_idx(), 0);
    }
    assert_eq!(session.record(|record| record.executed.len()), done);
    guest.run(&[Step::Enable]).unwrap();
    (0..guest.queues.len()).for_each(|queue| assert!(guest.finish(queue).1));
}

#[test]
fn v14_set_owner_while_a_ring_runs_changes_nothing() {
    let (mut guest, session) = running();
    guest.echo_all();
    refused(&guest.frontend, guest.frontend.set_owner());
    guest.frontend.set_need_reply(false);
    guest.frontend.set_owner().unwrap();
    guest.echo_all();
    // One that is disabled does not run.
    for queue in 0..u32::from(QUEUES) {
        guest.frontend.set_vring_enable(queue, false).unwrap();
    }
    guest.frontend.set_need_reply(true);
    guest.frontend.set_owner().unwrap();
    assert_eq!(session.record(|record| record.resets), 1);
    session.stop();
}

#[test]
fn v14_set_owner_forgets_all_but_what_is_said_before_it() {
    let (mut guest, session) = running_with(options().track_inflight());
    guest.echo_all();
    for queue in 0..guest.queues.len() {
        guest.stop(queue).unwrap();
    }
    guest.frontend.set_owner().unwrap();
    // Protocol features are in force still: this is answered, and so is a part of them.
    assert_eq!(guest.frontend.get_queue_num().unwrap(), u64::from(QUEUES));
    assert_eq!(guest.frontend.get_config(0, 1).unwrap(), CONFIG[..1]);
    // The memory is gone.
    let features = guest.features();
    guest.set_features(features).unwrap();
    guest.queue_step(0, Step::Num).unwrap();
    refused(&guest.frontend, guest.queue_step(0, Step::Addr));
    let gone = &guest.memory.regions()[0];
    refused(&guest.frontend, guest.frontend.rem_mem_reg(gone));
    for queue in 0..u32::from(QUEUES) {
        assert_eq!(guest.frontend.get_vring_base(queue).unwrap(), 0);
    }
    session.record(|record| {
        assert_eq!(record.resets, 1);
        assert_eq!(record.stopped.len(), 2 * usize::from(QUEUES));
    });
    // Call and err are not said again.
    guest.run(&[Step::Memory]).unwrap();
    for queue in &mut guest.queues {
        queue.ring.reset(0);
    }
    guest.run(&RING_AGAIN).unwrap();
    guest.echo_all();
    session.stop();
}

/// The kernel shows who looks the file descriptors of a later message.
#[test]
fn a_message_is_refused_whatever_comes_behind_it() {
    let (mut frontend, session) = negotiated();
    let event = EventFd::new();
    frontend.set_need_reply(false);
    let addr = VringAddr {
        descriptor: 8,
        ..VringAddr::default()
    };
    for _ in 0..100 {
        frontend.set_vring_addr(&addr).unwrap();
        frontend.set_vring_call(0, Some(event.as_fd())).unwrap();
    }
    frontend.sync().unwrap();
    session.stop();
}

#[test]
fn v6_a_config_message_with_a_file_descriptor_closes_the_connection() {
    for request in [VHOST_USER_GET_CONFIG, VHOST_USER_SET_CONFIG] {
        let (frontend, session) = frontend();
        let event = EventFd::new();
        let message = Message::new(request, &[0; 16]);
        frontend.send_message(&message, &[event.as_fd()]).unwrap();
        session.broken();
    }
}

#[test]
fn messages_come_in_one_piece_or_in_many() {
    let (frontend, _session) = frontend();
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]).to_bytes();
    let offered = frontend.get_features().unwrap();
    frontend.send_raw(&get.repeat(100), &[]).unwrap();
    for byte in get.chunks(1).cycle().take(get.len() * 10) {
        frontend.send_raw(byte, &[]).unwrap();
    }
    for _ in 0..110 {
        let (reply, _) = frontend.recv_reply(VHOST_USER_GET_FEATURES).unwrap();
        assert_eq!(reply.u64().unwrap(), offered);
    }
}

#[test]
fn a_session_can_be_stopped_at_every_step() {
    for steps in 0..=SESSION_STEPS.len() {
        let (mut guest, session) = prepared(options());
        guest.run(&SESSION_STEPS[..steps]).unwrap();
        session.stop();
        guest.frontend.expect_closed().unwrap();
    }
    let (mut guest, session) = running();
    guest.echo_all();
    session.stop();
    guest.frontend.expect_closed().unwrap();
}
