//! Front-ends and guests that break the rules: none of them gets further than its own session.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, ftruncate, memfd_create};
use vhost_device_backend::{End, Error};
use vhost_device_driver::codec::{MAX_FDS, Message, header};
use vhost_device_driver::guest::ALL_STEPS;
use vhost_device_driver::protocol::*;
use vhost_device_driver::split::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use vhost_device_driver::{Descriptor, EventFd};

use crate::common::*;

/// A message that would be good, and how many file descriptors belong to it.
struct Sample {
    request: u32,
    payload: Vec<u8>,
    fds: usize,
}

impl Sample {
    fn bytes(&self) -> Vec<u8> {
        Message::new(self.request, &self.payload).to_bytes()
    }
}

/// One of each message that a session takes.
fn samples() -> Vec<Sample> {
    let sample = |request, words: &[u32], fds| Sample {
        request,
        payload: words.iter().copied().flat_map(u32::to_ne_bytes).collect(),
        fds,
    };
    // Guest address, size, user address and offset, each with its high half.
    let region = [0, 0, 0x1000, 0, 0x1_0000, 0, 0, 0];
    let with_region = |words: &[u32]| [words, &region].concat();
    vec![
        sample(VHOST_USER_GET_FEATURES, &[], 0),
        sample(VHOST_USER_SET_FEATURES, &[0, 1], 0),
        sample(VHOST_USER_SET_OWNER, &[], 0),
        sample(VHOST_USER_RESET_OWNER, &[], 0),
        sample(VHOST_USER_SET_MEM_TABLE, &with_region(&[1, 0]), 1),
        sample(VHOST_USER_SET_VRING_NUM, &[0, 8], 0),
        sample(VHOST_USER_SET_VRING_ADDR, &[0; 10], 0),
        sample(VHOST_USER_SET_VRING_BASE, &[0, 0], 0),
        sample(VHOST_USER_GET_VRING_BASE, &[0, 0], 0),
        sample(VHOST_USER_SET_VRING_KICK, &[0, 0], 1),
        sample(VHOST_USER_SET_VRING_CALL, &[0, 0], 1),
        sample(VHOST_USER_SET_VRING_ERR, &[0, 0], 1),
        sample(VHOST_USER_GET_PROTOCOL_FEATURES, &[], 0),
        sample(VHOST_USER_SET_PROTOCOL_FEATURES, &[8, 0], 0),
        sample(VHOST_USER_GET_QUEUE_NUM, &[], 0),
        sample(VHOST_USER_SET_VRING_ENABLE, &[0, 1], 0),
        sample(VHOST_USER_GET_CONFIG, &[0, 4, 0, 0], 0),
        sample(VHOST_USER_SET_CONFIG, &[0, 4, 0, 0], 0),
        sample(VHOST_USER_GET_INFLIGHT_FD, &[0, 0, 0, 0, 0x8_0001, 0], 0),
        sample(VHOST_USER_SET_INFLIGHT_FD, &[192, 0, 0, 0, 0x8_0001, 0], 1),
        sample(VHOST_USER_RESET_DEVICE, &[], 0),
        sample(VHOST_USER_GET_MAX_MEM_SLOTS, &[], 0),
        sample(VHOST_USER_ADD_MEM_REG, &with_region(&[0, 0]), 1),
        sample(VHOST_USER_REM_MEM_REG, &with_region(&[0, 0]), 0),
    ]
}

/// Sends `bytes` in a new session, which must end for it and not harm the next.
fn breaks_the_session(bytes: &[u8], fds: usize) {
    let (frontend, session) = negotiated();
    let event = EventFd::new();
    frontend.send_raw(bytes, &vec![event.as_fd(); fds]).unwrap();
    frontend.expect_closed().unwrap();
    session.broken();
}

#[test]
fn samples_are_what_a_session_takes() {
    for sample in samples() {
        let (frontend, _session) = negotiated();
        let event = EventFd::new();
        let fds = vec![event.as_fd(); sample.fds];
        frontend.send_raw(&sample.bytes(), &fds).unwrap();
        frontend
            .send_message(&Message::new(VHOST_USER_GET_FEATURES, &[]), &[])
            .unwrap();
        // It may have a reply of its own before.
        while frontend.recv_message().unwrap().0.request != VHOST_USER_GET_FEATURES {}
    }
}

#[test]
fn v6_malformed_headers_end_the_session() {
    let get = VHOST_USER_GET_FEATURES;
    let bad = [
        header(get, 0, 0),
        header(get, 2, 0),
        header(get, 3, 0),
        header(get, FLAG_VERSION_1 | FLAG_REPLY, 0),
        header(get, FLAG_VERSION_1 | 0x10, 0),
        header(get, u32::MAX, 0),
        header(get, FLAG_VERSION_1, 0x1001),
        header(get, FLAG_VERSION_1, u32::MAX),
        header(0, 0, 0),
        [0xff; HEADER_SIZE],
    ];
    for bytes in bad {
        breaks_the_session(&bytes, 0);
    }
}

#[test]
fn v6_unknown_requests_end_the_session() {
    for request in [0, 45, 46, 99, 0x100, 0x8000_0000, u32::MAX] {
        breaks_the_session(&Message::new(request, &[]).to_bytes(), 0);
        breaks_the_session(&Message::new(request, &[0; 8]).to_bytes(), 0);
    }
}

#[test]
fn v6_requests_of_features_that_are_not_offered_end_the_session() {
    for request in [
        VHOST_USER_SET_LOG_BASE,
        VHOST_USER_SET_LOG_FD,
        VHOST_USER_SEND_RARP,
        VHOST_USER_NET_SET_MTU,
        VHOST_USER_SET_BACKEND_REQ_FD,
        VHOST_USER_IOTLB_MSG,
        VHOST_USER_SET_VRING_ENDIAN,
        VHOST_USER_CREATE_CRYPTO_SESSION,
        VHOST_USER_CLOSE_CRYPTO_SESSION,
        VHOST_USER_POSTCOPY_ADVISE,
        VHOST_USER_POSTCOPY_LISTEN,
        VHOST_USER_POSTCOPY_END,
        VHOST_USER_VRING_KICK,
        VHOST_USER_SET_STATUS,
        VHOST_USER_GET_STATUS,
        VHOST_USER_GET_SHARED_OBJECT,
        VHOST_USER_GET_SHMEM_CONFIG,
    ] {
        breaks_the_session(&Message::new(request, &[0; 16]).to_bytes(), 0);
    }
}

#[test]
fn v6_wrong_sizes_end_the_session() {
    for sample in samples() {
        let mut longer = sample.payload.clone();
        longer.push(0);
        let mut wrong = vec![longer, vec![0; 0x1000]];
        if let Some((_, shorter)) = sample.payload.split_last() {
            wrong.extend([shorter.to_vec(), Vec::new()]);
        }
        for payload in wrong {
            let message = Message::new(sample.request, &payload);
            breaks_the_session(&message.to_bytes(), sample.fds);
        }
    }
}

#[test]
fn v6_wrong_numbers_of_fds_end_the_session() {
    for sample in samples() {
        // An fd with REM_MEM_REG is tolerated, as the specification allows.
        if sample.request == VHOST_USER_REM_MEM_REG {
            continue;
        }
        for fds in [0, 1, 2, 33, MAX_FDS] {
            if fds != sample.fds {
                breaks_the_session(&sample.bytes(), fds);
            }
        }
    }
}

#[test]
fn v6_values_that_no_message_has_end_the_session() {
    let event = EventFd::new();
    // A flag that says that no fd comes, and an fd.
    for request in [
        VHOST_USER_SET_VRING_KICK,
        VHOST_USER_SET_VRING_CALL,
        VHOST_USER_SET_VRING_ERR,
    ] {
        let (frontend, session) = negotiated();
        let nofd = VHOST_USER_VRING_NOFD_MASK.to_ne_bytes();
        let _ = frontend.send(request, &nofd, &[event.as_fd()]);
        session.broken();
    }
    // More regions than fit, and more than came.
    for count in [1, 33, u32::MAX] {
        let (frontend, session) = negotiated();
        let _ = frontend.set_mem_table_raw(count, &[], &[]);
        session.broken();
    }
}

#[test]
fn v6_a_message_that_is_cut_off_is_partial_at_every_byte() {
    for sample in samples() {
        let bytes = sample.bytes();
        for cut in 1..bytes.len() {
            let (frontend, session) = frontend();
            let event = EventFd::new();
            let fds = vec![event.as_fd(); sample.fds];
            frontend.send_raw(&bytes[..cut], &fds).unwrap();
            drop(frontend);
            let end = session.end();
            assert!(matches!(end, Err(Error::Partial)), "{end:?} at {cut}");
        }
    }
}

#[test]
fn v6_half_a_message_holds_up_neither_rings_nor_stop() {
    for sample in samples() {
        let (mut guest, session) = running();
        let bytes = sample.bytes();
        for at in 0..bytes.len() - 1 {
            guest.frontend.send_raw(&bytes[at..=at], &[]).unwrap();
            if at % 8 == 0 {
                guest.echo(0);
            }
        }
        guest.echo_all();
        session.stop();
    }
}

#[test]
fn v6_the_rest_of_half_a_message_may_come_later() {
    let (mut guest, _session) = running();
    let message = Message::new(VHOST_USER_GET_VRING_BASE, &[0; 8]).to_bytes();
    for cut in 1..message.len() {
        let (first, rest) = message.split_at(cut);
        guest.frontend.send_raw(first, &[]).unwrap();
        guest.echo(1);
        guest.frontend.send_raw(rest, &[]).unwrap();
        let reply = guest.frontend.recv_reply(VHOST_USER_GET_VRING_BASE);
        assert_eq!(reply.unwrap().0.u64().unwrap(), 0);
    }
}

#[test]
fn v6_fds_in_the_middle_of_a_message_end_the_session() {
    let sample = Message::new(VHOST_USER_SET_VRING_ADDR, &[1; 40]).to_bytes();
    for cut in 1..sample.len() {
        let (frontend, session) = negotiated();
        let event = EventFd::new();
        let (first, rest) = sample.split_at(cut);
        frontend.send_raw(first, &[event.as_fd()]).unwrap();
        // The session may have ended already, or take the last for the rest of whatever it is now.
        let _ = frontend.send_raw(rest, &[event.as_fd()]);
        let _ = frontend.send_raw(&[0xff; 64], &[]);
        session.broken();
    }
}

/// A peek ends where the next fds begin, and so does not show all of this message.
#[test]
fn v6_a_sound_table_may_come_in_two_pieces() {
    let region = [0, 0x1000, 0x1_0000, 0].map(u64::to_ne_bytes).concat();
    let table = [&[1, 0, 0, 0, 0, 0, 0, 0], &region[..]].concat();
    let message = Message::new(VHOST_USER_SET_MEM_TABLE, &table).to_bytes();
    for cut in 12..message.len() {
        let (frontend, session) = negotiated();
        let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 0x1000).unwrap();
        let (first, rest) = message.split_at(cut);
        frontend.send_raw(first, &[file.as_fd()]).unwrap();
        frontend.send_raw(rest, &[]).unwrap();
        frontend.sync().unwrap();
        session.stop();
    }
}

/// The message layer would wait for ever for fds that do not fit, so they must be seen before it
/// looks, wherever in the header they come and whatever comes with them.
#[test]
fn v6_too_many_fds_are_seen_before_they_are_received() {
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]).to_bytes();
    let event = EventFd::new();
    let fds = vec![event.as_fd(); 33];
    for cut in 0..get.len() {
        let (frontend, session) = negotiated();
        frontend.send_raw(&get[..cut], &[]).unwrap();
        let rest = [&get[cut..], &get, &get[..4]].concat();
        frontend.send_raw(&rest, &fds).unwrap();
        session.broken();
    }
    // Those of a later message end the session as well, a little early.
    let (frontend, session) = negotiated();
    frontend.send_raw(&get, &[]).unwrap();
    frontend.send_raw(&get, &fds).unwrap();
    session.broken();
}

#[test]
fn v7_a_front_end_may_leave_after_every_step() {
    for steps in 0..=ALL_STEPS.len() {
        let (mut guest, session) = prepared(options());
        guest.run(&ALL_STEPS[..steps]).unwrap();
        drop(guest);
        session.left();
        let (mut next, session) = running();
        next.echo_all();
        drop(next);
        session.left();
    }
}

#[test]
fn v7_a_front_end_may_leave_with_requests_in_flight() {
    for command in [Command::Echo, Command::Keep, Command::Drop] {
        let (mut guest, session) = running();
        for queue in 0..guest.queues.len() {
            guest.submit(queue, command);
            guest.queues[queue].kick();
        }
        drop(guest);
        session.left();
    }
}

#[test]
fn v7_what_was_sent_before_leaving_is_handled() {
    let (frontend, session) = negotiated();
    for _ in 0..100 {
        let reset = Message::new(VHOST_USER_RESET_DEVICE, &[]);
        frontend.send_message(&reset, &[]).unwrap();
    }
    let record = session.shared();
    drop(frontend);
    session.left();
    assert_eq!(record.lock().unwrap().resets, 100);
}

#[test]
fn replies_that_nobody_reads_hold_up_neither_rings_nor_stop() {
    let (mut guest, session) = running();
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]);
    let mut sent = 0;
    // Full is full only after the session had its turns.
    for _ in 0..20 {
        guest.frontend.stream().set_nonblocking(true).unwrap();
        while guest.frontend.send_message(&get, &[]).is_ok() {
            sent += 1;
        }
        guest.echo_all();
    }
    guest.frontend.stream().set_nonblocking(false).unwrap();
    for _ in 0..sent {
        guest.frontend.recv_reply(VHOST_USER_GET_FEATURES).unwrap();
    }
    guest.frontend.stream().set_nonblocking(true).unwrap();
    while guest.frontend.send_message(&get, &[]).is_ok() {}
    guest.echo_all();
    session.stop();
}

#[test]
fn v7_a_front_end_may_leave_without_reading_its_replies() {
    let (frontend, session) = negotiated();
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]);
    frontend.stream().set_nonblocking(true).unwrap();
    while frontend.send_message(&get, &[]).is_ok() {}
    drop(frontend);
    // Whether it left before or while it was answered.
    let _ = session.end();
}

#[test]
fn a_flood_of_refused_messages_changes_nothing() {
    let (mut guest, session) = running();
    for need_reply in [true, false] {
        guest.frontend.set_need_reply(need_reply);
        for n in 0..5_000 {
            let refused = guest.frontend.set_vring_num(n % 4, 3);
            assert_eq!(refused.is_err(), need_reply);
            if n % 500 == 0 {
                guest.echo_all();
            }
        }
    }
    guest.echo_all();
    session.stop();
}

/// Chains that a device must not follow, as the descriptors from 0.
fn bad_chains(free: u64) -> Vec<Vec<Descriptor>> {
    let desc = |addr, len, flags, next| Descriptor {
        addr,
        len,
        flags,
        next,
    };
    let (next, write, indirect) = (VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT);
    vec![
        // A loop, and a next that is not there.
        vec![desc(free, 16, next, 0)],
        vec![desc(free, 16, next, QUEUE_SIZE)],
        // Outside of memory.
        vec![desc(0, 16, 0, 0)],
        vec![desc(u64::MAX, 16, write, 0)],
        vec![desc(free, u32::MAX, 0, 0)],
        // Writable before readable.
        vec![desc(free, 16, write | next, 1), desc(free, 16, 0, 0)],
        // Tables of no size, of a wrong one, outside of memory, and with a successor.
        vec![desc(free, 0, indirect, 0)],
        vec![desc(free, 17, indirect, 0)],
        vec![desc(0, 16, indirect, 0)],
        vec![desc(free, 16, indirect | next, 1), desc(free, 16, 0, 0)],
        // A request that is too short for the device.
        vec![desc(free, 3, 0, 0)],
        vec![desc(free, 16, write, 0)],
    ]
}

#[test]
fn a_bad_chain_goes_back_with_length_0_and_the_next_request_is_served() {
    let (mut guest, _session) = running();
    let free = guest.alloc(0x1000);
    let chains = bad_chains(free);
    for (round, chain) in chains.iter().enumerate() {
        // The driver's own requests begin at descriptor 0 again each time.
        let top = QUEUE_SIZE - 2;
        let moved = |at: u16| if at < 2 { top + at } else { at };
        for (at, descriptor) in (0..).zip(chain) {
            let mut descriptor = *descriptor;
            descriptor.next = moved(descriptor.next);
            guest.queues[0].ring.set_descriptor(moved(at), descriptor);
        }
        guest.queues[0].take_calls();
        let ring = &mut guest.queues[0].ring;
        assert!(!ring.arm_calls());
        ring.push_head(top);
        ring.publish();
        guest.queues[0].kick();
        assert!(guest.queues[0].call.wait(DEADLINE), "chain {round}");
        let ring = &mut guest.queues[0].ring;
        assert_eq!(ring.pop_any(), Some((top.into(), 0)), "chain {round}");
        guest.echo_all();
    }
}

#[test]
fn a_head_that_is_not_there_is_skipped() {
    let (mut guest, _session) = running();
    for head in [QUEUE_SIZE, 0x8000, 0xffff] {
        guest.queues[0].ring.push_head(head);
        guest.echo_behind(0);
    }
}

#[test]
fn an_available_index_that_cannot_be_is_reported_until_it_is_corrected() {
    for jump in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
        let (mut guest, session) = running();
        guest.echo(0);
        let ring = &guest.queues[0].ring;
        ring.set_avail_idx(ring.next_avail().wrapping_add(jump));
        guest.kick_and_settle(0);
        assert_ne!(guest.queues[0].err.take(), 0, "nobody was told");
        guest.echo(1);
        assert_eq!(session.record(|record| record.executed.len()), 2);
        // The next request puts the index right.
        guest.echo_behind(0);
        guest.echo(0);
    }
}

#[test]
fn a_front_end_that_shuts_its_end_down_has_left() {
    let (guest, session) = running();
    guest
        .frontend
        .stream()
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    assert_eq!(session.end().unwrap(), End::Disconnected);
    guest.frontend.expect_closed().unwrap();
}

#[test]
fn an_error_fd_that_is_the_kick_fd_does_not_keep_the_session_busy() {
    let (guest, session) = running();
    let event = EventFd::new();
    let frontend = &guest.frontend;
    frontend.set_vring_err(0, Some(event.as_fd())).unwrap();
    frontend.set_vring_kick(0, Some(event.as_fd())).unwrap();
    let index = guest.queues[0].ring.avail_idx();
    guest.queues[0].ring.set_avail_idx(index.wrapping_add(1000));
    event.signal();
    settle(frontend);
    assert_eq!(event.take(), 2, "one kick, one error");
    settle(frontend);
    assert_eq!(event.take(), 0, "and none because of it");
    drop(guest);
    session.left();
}

#[test]
fn v6_a_body_out_of_band_closes_the_connection() {
    let (frontend, session) = negotiated();
    let head = header(VHOST_USER_GET_FEATURES, FLAG_VERSION_1, 1);
    frontend.send_raw(&head, &[]).unwrap();
    rustix::net::send(frontend.stream(), b"x", rustix::net::SendFlags::OOB).unwrap();
    session.broken();
}

#[test]
fn v6_misaligned_addresses_in_a_malformed_message_close_the_connection() {
    for (flags, fds) in [
        (0, 0),
        (FLAG_VERSION_1 | FLAG_REPLY, 0),
        (FLAG_VERSION_1, 1),
    ] {
        let (frontend, session) = negotiated();
        let mut bytes = header(VHOST_USER_SET_VRING_ADDR, flags, 40).to_vec();
        bytes.extend_from_slice(&[1; 40]);
        let event = EventFd::new();
        frontend
            .send_raw(&bytes, &vec![event.as_fd(); fds])
            .unwrap();
        session.broken();
    }
}

#[test]
fn a_kick_that_the_front_end_makes_blocking_does_not_block_the_session() {
    let (guest, session) = running();
    guest.kick_and_settle(0);
    let kick = guest.queues[0].kick.as_fd();
    guest.queues[0].kick.take();
    let flags = fcntl_getfl(kick).unwrap();
    fcntl_setfl(kick, flags - OFlags::NONBLOCK).unwrap();
    // Stopping the ring empties the kick.
    let base = guest.stop(0).unwrap();
    assert_eq!(base, 0);
    session.stop();
}
