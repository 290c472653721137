//! Each clause of the specification on the split ring, by its id in the project's checklist.

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rig::{DATA, Rig, SEAM, Setup, echo};
use vhost_device_driver::split::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use vhost_device_driver::{Buffer, Descriptor};
use vhost_device_queue::memory::Mapping;
use vhost_device_queue::{ChainError, DirtyLog, Queue, QueueLog, RingError};

/// All ways to cut `len` bytes into at most `pieces` parts, empty ones among them.
fn cuts(len: u32, pieces: u32) -> Vec<Vec<u32>> {
    if pieces == 1 {
        return vec![vec![len]];
    }
    (0..=len)
        .flat_map(|first| {
            cuts(len - first, pieces - 1)
                .into_iter()
                .map(move |mut rest| {
                    rest.insert(0, first);
                    rest
                })
        })
        .collect()
}

#[test]
fn r1_any_layout_of_descriptors_gives_the_same_bytes() {
    let message = b"abcd";
    for read_cut in cuts(4, 3) {
        for write_cut in cuts(4, 3) {
            let mut rig = Rig::new(Setup::default());
            let mut buffers = Vec::new();
            let mut at = 0;
            for len in &read_cut {
                let end = at + *len as usize;
                buffers.push(rig.readable(&message[at..end]));
                at = end;
            }
            let places: Vec<Buffer> = write_cut.iter().map(|len| rig.writable(*len)).collect();
            buffers.extend(&places);
            rig.ring.add(&buffers).expect("room");
            rig.ring.publish();
            let (bad, _) = rig.serve(echo);
            assert_eq!(bad, []);
            assert_eq!(rig.ring.pop_used().expect("an answer").len, 4);
            let answer: Vec<u8> = places
                .iter()
                .flat_map(|place| rig.driver_memory.read_vec(place.addr, place.len as usize))
                .collect();
            assert_eq!(answer, message, "{read_cut:?} {write_cut:?}");
        }
    }
}

#[test]
fn r1_a_header_and_its_payload_may_share_a_descriptor() {
    let mut rig = Rig::new(Setup::default());
    let buffer = rig.readable(&[1, 2, 0, 0, b'x', b'y']);
    rig.ring.add(&[buffer]).expect("room");
    rig.ring.publish();
    rig.serve(|mut request| {
        let header: u32 = request.reader().read_obj().expect("a header");
        let mut payload = [0; 2];
        request
            .reader()
            .read_exact(&mut payload)
            .expect("a payload");
        assert_eq!((header, &payload), (0x201, b"xy"));
        request.complete();
    });
    assert!(rig.ring.pop_used().is_some());
}

#[test]
fn r1_a_buffer_may_cross_from_one_region_to_the_next() {
    let mut rig = Rig::new(Setup::default());
    rig.driver_memory.write(SEAM - 3, b"abc");
    rig.driver_memory.write(SEAM, b"def");
    let answer = rig.writable(6);
    let question = Buffer::readable(SEAM - 3, 6);
    rig.ring.add(&[question, answer]).expect("room");
    rig.ring.publish();
    rig.serve(echo);
    assert_eq!(rig.ring.pop_used().expect("an answer").len, 6);
    assert_eq!(rig.driver_memory.read_vec(answer.addr, 6), b"abcdef");
}

#[test]
fn r2_readable_buffers_are_never_written() {
    let mut rig = Rig::new(Setup::default());
    let question = rig.readable(b"do not touch");
    let answer = rig.writable(4);
    rig.ring.add(&[question, answer]).expect("room");
    rig.ring.publish();
    rig.serve(|mut request| {
        let writer = request.writer();
        assert_eq!(
            writer.remaining(),
            4,
            "only the writable bytes can be written"
        );
        assert!(writer.write_all(&[0; 5]).is_err());
        writer.write_all(&[7; 4]).expect("room");
        assert!(writer.write_all(&[0]).is_err());
        request.complete();
    });
    assert_eq!(
        rig.driver_memory.read_vec(question.addr, 12),
        b"do not touch"
    );
    assert_eq!(rig.driver_memory.read_vec(answer.addr, 4), [7; 4]);
}

#[test]
fn r2_writable_buffers_cannot_be_read() {
    let mut rig = Rig::new(Setup::default());
    let question = rig.readable(b"ab");
    let answer = rig.writable(4);
    rig.ring.add(&[question, answer]).expect("room");
    rig.ring.publish();
    rig.serve(|mut request| {
        let mut bytes = [0; 3];
        let short = request.reader().read_exact(&mut bytes);
        assert_eq!(short.expect_err("two bytes").left, 2);
        request.complete();
    });
}

#[test]
fn r3_the_descriptor_table_is_never_written() {
    let mut rig = Rig::new(Setup::default());
    for _ in 0..40 {
        let question = rig.readable(b"question");
        let answer = rig.writable(8);
        let table = rig.alloc(64);
        rig.ring.add(&[question, answer]).expect("room");
        rig.ring
            .add_indirect(table, &[question, answer])
            .expect("room");
        rig.ring.publish();
        let before = rig.ring.descriptor_table();
        let table_before = rig.driver_memory.read_vec(table, 64);
        rig.serve(echo);
        assert_eq!(rig.ring.descriptor_table(), before);
        assert_eq!(rig.driver_memory.read_vec(table, 64), table_before);
        while rig.ring.pop_used().is_some() {}
    }
}

#[test]
fn r4_the_write_flag_of_the_referrer_to_an_indirect_table_is_ignored() {
    for flags in [
        VIRTQ_DESC_F_INDIRECT,
        VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE,
    ] {
        let mut rig = Rig::new(Setup::default());
        let question = rig.readable(b"abc");
        let answer = rig.writable(3);
        let table = rig.alloc(32);
        rig.ring.write_buffer_table(table, &[question, answer]);
        let referrer = Descriptor {
            addr: table,
            len: 32,
            flags,
            next: 0,
        };
        rig.ring.set_descriptor(0, referrer);
        rig.ring.push_head(0);
        rig.ring.publish();
        let (bad, _) = rig.serve(echo);
        assert_eq!(bad, []);
        assert_eq!(rig.ring.pop_any(), Some((0, 3)));
        assert_eq!(rig.driver_memory.read_vec(answer.addr, 3), b"abc");
    }
}

#[test]
fn r5_direct_descriptors_may_be_followed_by_an_indirect_one() {
    for direct in 0..4 {
        let mut rig = Rig::new(Setup::default());
        let parts: Vec<Buffer> = (0..4).map(|n| rig.readable(&[b'a' + n])).collect();
        let answer = rig.writable(4);
        let table = rig.alloc(16 * 5);
        let (first, rest) = parts.split_at(direct);
        let mut rest = rest.to_vec();
        rest.push(answer);
        rig.ring.add_mixed(first, table, &rest).expect("room");
        rig.ring.publish();
        let (bad, _) = rig.serve(echo);
        assert_eq!(bad, []);
        assert_eq!(rig.ring.pop_used().expect("an answer").len, 4);
        assert_eq!(rig.driver_memory.read_vec(answer.addr, 4), b"abcd");
    }
}

#[test]
fn r5_without_the_feature_an_indirect_table_is_refused() {
    let setup = Setup {
        indirect: false,
        ..Setup::default()
    };
    let mut rig = Rig::new(setup);
    let answer = rig.writable(4);
    let table = rig.alloc(16);
    rig.ring.add_indirect(table, &[answer]).expect("room");
    rig.ring.publish();
    assert_eq!(rig.serve(echo).0, [ChainError::NotNegotiated]);
    assert_eq!(rig.ring.pop_used().expect("returned").len, 0);
    rig.expect_service();
}

/// Serves one request more, and whether the driver is called for it.
fn is_called(rig: &mut Rig) -> bool {
    let answer = rig.writable(1);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    let (_, call) = rig.serve(echo);
    assert!(rig.ring.pop_used().is_some());
    call
}

#[test]
fn r6_without_event_idx_only_the_flag_decides_about_calls() {
    let mut rig = Rig::new(Setup {
        event_idx: false,
        ..Setup::default()
    });
    is_called(&mut rig);
    for round in 0..100u16 {
        // Behind the ring, where used_event would be.
        rig.ring.set_used_event(round.wrapping_mul(7919));
        rig.ring.set_avail_flags(round % 2);
        assert_eq!(is_called(&mut rig), round % 2 == 0);
    }
}

#[test]
fn r7_with_event_idx_the_flag_is_ignored_and_used_event_decides() {
    for base in [0, 0x7ff0, 0xfff0] {
        let mut rig = Rig::new(Setup {
            base: Some(base),
            ..Setup::default()
        });
        assert!(is_called(&mut rig), "the first is always called for");
        for round in 0..40u16 {
            rig.ring.set_avail_flags(round % 2);
            let next = rig.ring.next_used();
            for offset in [0, 1, 2, 15, 16, 0x7fff, 0x8000, 0xffff] {
                rig.ring.set_used_event(next.wrapping_add(offset));
                let before = rig.ring.next_used();
                let wanted = next.wrapping_add(offset) == before;
                assert_eq!(is_called(&mut rig), wanted, "{base:#x} {round} {offset}");
            }
        }
    }
}

#[test]
fn r7_a_batch_calls_when_the_awaited_index_is_in_it() {
    for awaited in 0..8u16 {
        let mut rig = Rig::new(Setup {
            base: Some(0xfffc),
            ..Setup::default()
        });
        is_called(&mut rig);
        let next = rig.ring.next_used();
        rig.ring.set_used_event(next.wrapping_add(awaited));
        for _ in 0..4 {
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
        }
        rig.ring.publish();
        assert_eq!(rig.serve(echo).1, awaited < 4, "{awaited}");
    }
}

#[test]
fn r8_r9_what_the_index_shows_is_complete() {
    const ROUNDS: u32 = 20_000;
    let mut rig = Rig::new(Setup::default());
    let places: Vec<Buffer> = (0..8).map(|_| rig.writable(4)).collect();
    let Rig {
        mut ring,
        mut queue,
        memory,
        driver_memory,
        ..
    } = rig;
    std::thread::scope(|scope| {
        let device = scope.spawn(move || {
            let mut answered = 0;
            while answered < ROUNDS {
                queue.look().expect("a sound index");
                while let Some(popped) = queue.pop(&memory) {
                    let mut request = popped.expect("a good chain");
                    // Odd lengths, so that a length from another round is noticed.
                    let stamp = answered.to_le_bytes();
                    let len = 1 + answered as usize % 4;
                    request.writer().write_all(&stamp[..len]).expect("room");
                    request.complete();
                    answered += 1;
                }
                queue.publish();
            }
        });
        let mut place_of = [0; 16];
        let mut expected = 0;
        let mut given = 0;
        while expected < ROUNDS {
            while given < ROUNDS && given - expected < 8 {
                let place = places[given as usize % 8];
                let head = ring.add(&[place]).expect("room");
                place_of[usize::from(head)] = given;
                ring.publish();
                given += 1;
            }
            while let Some(used) = ring.pop_used() {
                assert_eq!(place_of[usize::from(used.head)], expected, "in order here");
                assert_eq!(used.len, 1 + expected % 4);
                let place = places[expected as usize % 8];
                let bytes = driver_memory.read_vec(place.addr, used.len as usize);
                assert_eq!(bytes, &expected.to_le_bytes()[..used.len as usize]);
                expected += 1;
            }
        }
        device.join().expect("the device's thread");
    });
}

#[test]
fn r9_the_used_length_is_what_was_written_from_the_first_byte() {
    let mut rig = Rig::new(Setup::default());
    for written in 0..=6usize {
        let first = rig.writable(2);
        let second = rig.writable(4);
        rig.ring.add(&[first, second]).expect("room");
        rig.ring.publish();
        rig.serve(|mut request| {
            request
                .writer()
                .write_all(&[0xaa; 6][..written])
                .expect("room");
            assert_eq!(request.writer().written(), written);
            request.complete();
        });
        assert_eq!(
            rig.ring.pop_used().expect("an answer").len as usize,
            written
        );
        let mut bytes = rig.driver_memory.read_vec(first.addr, 2);
        bytes.extend(rig.driver_memory.read_vec(second.addr, 4));
        let filled = bytes.iter().filter(|byte| **byte == 0xaa).count();
        assert_eq!(filled, written);
        assert!(bytes[..written].iter().all(|byte| *byte == 0xaa));
    }
}

#[test]
fn r9_a_status_in_the_last_byte_alone_is_not_counted() {
    const PAGE: u64 = 0x1000;
    for cut in [&[5][..], &[1], &[2, 3], &[2, 0], &[4, 1]] {
        let mut rig = Rig::new(Setup::default());
        let log = vhost_device_driver::GuestMemory::new(&[(0, PAGE)]);
        let file = log.regions()[0].fd().try_clone_to_owned().expect("an fd");
        let bits = Mapping::new(&file.into(), 0, PAGE as usize).expect("a mapping");
        rig.queue.set_log(Some(QueueLog {
            dirty: Arc::new(DirtyLog::new(bits)),
            used: None,
        }));
        // Each buffer ends with its page, and the next one is on another.
        let buffers: Vec<_> = (2..)
            .step_by(2)
            .zip(cut)
            .map(|(page, &len)| Buffer::writable(DATA + page * PAGE - u64::from(len), len))
            .collect();
        rig.ring.add(&buffers).expect("room");
        rig.ring.publish();
        rig.serve(|request| request.complete_with_last(0xaa));
        assert_eq!(rig.ring.pop_used().expect("an answer").len, 0);
        let mut bytes: Vec<u8> = buffers
            .iter()
            .flat_map(|buffer| rig.driver_memory.read_vec(buffer.addr, buffer.len as usize))
            .collect();
        assert_eq!(bytes.pop(), Some(0xaa), "{cut:?}");
        assert!(bytes.iter().all(|&byte| byte == 0), "{cut:?}: {bytes:?}");
        let last = buffers.iter().rfind(|buffer| buffer.len > 0);
        let page = last.map_or(0, |last| last.addr / PAGE);
        let mut marked = log.read_vec(0, PAGE as usize);
        let byte = &mut marked[page as usize / 8];
        assert_eq!(std::mem::take(byte), 1 << (page % 8), "{cut:?}");
        assert!(marked.iter().all(|&byte| byte == 0), "{cut:?}");
    }
    // Without room there is nothing to write.
    let mut rig = Rig::new(Setup::default());
    let question = rig.readable(b"x");
    rig.ring.add(&[question]).expect("room");
    rig.ring.publish();
    rig.serve(|request| request.complete_with_last(0xaa));
    assert_eq!(rig.ring.pop_used().expect("an answer").len, 0);
    rig.expect_service();
}

#[test]
fn r10_without_event_idx_the_used_flags_are_0_or_1() {
    let mut rig = Rig::new(Setup {
        event_idx: false,
        ..Setup::default()
    });
    assert_eq!(rig.ring.used_flags(), 0);
    rig.queue.arm();
    assert_eq!(rig.ring.used_flags(), 0, "armed: kicks are wanted");
    rig.queue.disarm();
    assert_eq!(rig.ring.used_flags(), 1, "busy: they are not");
    rig.queue.disarm();
    rig.queue.arm();
    assert_eq!(rig.ring.used_flags(), 0);
}

#[test]
fn r10_with_event_idx_the_used_flags_stay_0() {
    let mut rig = Rig::new(Setup::default());
    // What an earlier device may have left.
    let used = rig.config.addresses.used;
    rig.driver_memory.store_u16(used, 1, Ordering::Relaxed);
    rig.queue = Queue::new(&rig.memory, &rig.config).expect("a ring");
    for _ in 0..20 {
        assert_eq!(rig.ring.used_flags(), 0);
        rig.queue.disarm();
        rig.expect_service();
        assert_eq!(rig.ring.used_flags(), 0);
        rig.queue.arm();
    }
}

#[test]
fn r10_arming_asks_for_a_kick_with_the_next_entry() {
    for base in [0, 0xfff8] {
        let mut rig = Rig::new(Setup {
            base: Some(base),
            ..Setup::default()
        });
        for _ in 0..20 {
            rig.queue.disarm();
            rig.expect_service();
            assert!(!rig.queue.arm(), "nothing is there");
            assert_eq!(rig.ring.avail_event(), rig.ring.next_avail());
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
            rig.ring.publish();
            assert!(rig.ring.needs_kick());
            rig.serve(echo);
            rig.ring.pop_used().expect("an answer");
        }
    }
}

#[test]
fn r10_arming_notices_what_came_before_it() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(Setup {
            event_idx,
            ..Setup::default()
        });
        rig.queue.disarm();
        assert_eq!(rig.queue.look(), Ok(false));
        let answer = rig.writable(1);
        rig.ring.add(&[answer]).expect("room");
        rig.ring.publish();
        assert!(rig.queue.arm(), "sleeping now would miss it");
    }
}

#[test]
fn r11_a_kick_without_a_request_does_nothing() {
    let mut rig = Rig::new(Setup::default());
    for _ in 0..10 {
        rig.queue.disarm();
        assert_eq!(rig.queue.look(), Ok(false));
        assert!(rig.queue.pop(&rig.memory).is_none());
        assert!(!rig.queue.publish());
        assert!(!rig.queue.arm());
        rig.expect_service();
    }
}

#[test]
fn r12_every_request_has_its_own_used_element_in_order_or_not() {
    for in_order in [false, true] {
        let mut rig = Rig::new(Setup {
            in_order,
            ..Setup::default()
        });
        for _ in 0..4 {
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
        }
        rig.ring.publish();
        let mut kept = Vec::new();
        rig.serve(|request| kept.push(request.keep()));
        // Answered in the wrong order: allowed, as IN_ORDER is not offered.
        for kept in kept.into_iter().rev() {
            rig.queue
                .resume(&rig.memory, kept)
                .expect("still there")
                .complete();
        }
        rig.queue.publish();
        let mut seen = 0;
        while rig.ring.pop_used().is_some() {
            seen += 1;
        }
        assert_eq!(seen, 4);
    }
}

#[test]
fn a_full_ring_is_served_at_every_index() {
    for base in [0, 1, 15, 0x7fff, 0xfff0, 0xffff] {
        let mut rig = Rig::new(Setup {
            base: Some(base),
            ..Setup::default()
        });
        for _ in 0..5 {
            for _ in 0..16 {
                let answer = rig.writable(1);
                rig.ring.add(&[answer]).expect("room");
            }
            rig.ring.publish();
            assert_eq!(
                rig.queue.look(),
                Ok(true),
                "exactly one ring ahead is no jump"
            );
            rig.serve(echo);
            for _ in 0..16 {
                rig.ring.pop_used().expect("an answer");
            }
        }
    }
}

#[test]
fn rings_of_every_size_are_served() {
    for size in (0..=15).map(|shift| 1u16 << shift) {
        let mut rig = Rig::new(Setup {
            size,
            base: Some(0xfffe),
            ..Setup::default()
        });
        for _ in 0..4 {
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
            rig.ring.publish();
            rig.serve(|mut request| {
                request.writer().write_all(&[1]).expect("room");
                request.complete();
            });
            assert_eq!(rig.ring.pop_used().expect("an answer").len, 1);
        }
    }
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let rig = Rig::new(Setup::default());
    for size in [0, 3, 6, 100, 0x8001, 0xffff] {
        let config = vhost_device_queue::Config { size, ..rig.config };
        let error = Queue::check(&rig.memory, &config);
        assert_eq!(error, Err(RingError::Size(size.into())));
    }
    let end = rig::BASE + rig::SIZE;
    for addr in [0, rig::BASE - 16, end, end - 16, SEAM - 16, u64::MAX - 15] {
        for area in 0..3 {
            let mut config = rig.config;
            let addresses = &mut config.addresses;
            *[
                &mut addresses.descriptor,
                &mut addresses.available,
                &mut addresses.used,
            ][area] = addr;
            let error = Queue::new(&rig.memory, &config).expect_err("out of memory");
            assert!(
                matches!(error, RingError::Address { .. }),
                "{addr:#x} {error}"
            );
        }
    }
    for (area, step) in [(0, 8), (1, 1), (2, 2)] {
        let mut config = rig.config;
        let addresses = &mut config.addresses;
        *[
            &mut addresses.descriptor,
            &mut addresses.available,
            &mut addresses.used,
        ][area] += step;
        let error = Queue::new(&rig.memory, &config).expect_err("misaligned");
        assert!(matches!(error, RingError::Alignment { .. }), "{error}");
    }
}

#[test]
fn a_dropped_request_goes_back_with_length_0() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(4);
    let head = rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    rig.serve(|mut request| {
        request.writer().write_all(&[1, 2]).expect("room");
    });
    let used = rig.ring.pop_used().expect("returned");
    assert_eq!((used.head, used.len), (head, 0));
}

#[test]
fn a_kept_request_that_is_dropped_goes_back_with_length_0() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(4);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    let mut kept = None;
    rig.serve(|request| kept = Some(request.keep()));
    assert!(rig.ring.pop_used().is_none(), "kept");
    drop(kept);
    rig.queue.publish();
    assert_eq!(rig.ring.pop_used().expect("returned").len, 0);
    rig.expect_service();
}

#[test]
fn a_request_may_be_kept_again_and_again() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(4);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    let mut kept = None;
    rig.serve(|request| kept = Some(request.keep()));
    for _ in 0..3 {
        let again = kept.take().expect("one request");
        let request = rig.queue.resume(&rig.memory, again).expect("still there");
        kept = Some(request.keep());
        rig.queue.publish();
        assert!(rig.ring.pop_used().is_none(), "still kept");
    }
    let request = rig
        .queue
        .resume(&rig.memory, kept.take().expect("one request"));
    let mut request = request.expect("still there");
    request.writer().write_all(&[1; 4]).expect("room");
    request.complete();
    rig.queue.publish();
    assert_eq!(rig.ring.pop_used().expect("an answer").len, 4);
}

#[test]
fn a_device_cannot_keep_more_than_the_ring_is_long() {
    let mut rig = Rig::new(Setup::default());
    let mut kept = Vec::new();
    // A driver that makes the same buffer available again and again, without getting it back.
    let answer = rig.writable(4);
    let desc = Descriptor {
        addr: answer.addr,
        len: 4,
        flags: VIRTQ_DESC_F_WRITE,
        next: 0,
    };
    rig.ring.set_descriptor(0, desc);
    for _ in 0..40 {
        rig.ring.push_head(0);
        rig.ring.publish();
        if rig.queue.look().expect("a sound index") {
            while let Some(popped) = rig.queue.pop(&rig.memory) {
                kept.push(popped.expect("a good chain").keep());
            }
        }
        if kept.len() == 16 {
            break;
        }
    }
    rig.ring.push_head(0);
    rig.ring.publish();
    assert_eq!(kept.len(), 16);
    assert_eq!(rig.queue.look(), Ok(false), "no more are taken");
    assert!(!rig.queue.arm(), "and none is waited for");
    let first = kept.remove(0);
    rig.queue
        .resume(&rig.memory, first)
        .expect("still there")
        .complete();
    rig.queue.publish();
    assert!(rig.queue.is_unblocked(), "room again");
    assert!(!rig.queue.is_unblocked(), "said once");
    assert_eq!(rig.queue.look(), Ok(true));
}

#[test]
fn a_device_cannot_keep_more_than_a_bound_of_segments() {
    let setup = Setup {
        size: 0x1000,
        ..Setup::default()
    };
    let mut rig = Rig::new(setup);
    let buffer = rig.writable(1);
    let table = rig.alloc(16 * 1024);
    rig.ring.write_buffer_table(table, &[buffer; 1024]);
    let referrer = Descriptor {
        addr: table,
        len: 16 * 1024,
        flags: VIRTQ_DESC_F_INDIRECT,
        next: 0,
    };
    rig.ring.set_descriptor(0, referrer);
    for _ in 0..200 {
        rig.ring.push_head(0);
    }
    rig.ring.publish();
    let mut kept = Vec::new();
    rig.serve(|request| kept.push(request.keep()));
    assert_eq!(kept.len(), 32, "of 200, 1024 segments each");
    kept.pop();
    rig.queue.publish();
    assert!(rig.queue.is_unblocked());
    let mut rest = 0;
    while rig.queue.look() == Ok(true) {
        while rig.queue.pop(&rig.memory).is_some() {
            rest += 1;
        }
    }
    assert_eq!(rest, 168);
}

#[test]
fn stopping_takes_back_the_newest_kept_requests_and_returns_the_others() {
    // Of six requests, the device keeps those with a 1.
    for (pattern, base, returned) in [
        ([0, 0, 0, 0, 0, 0], 6, 0),
        ([0, 0, 0, 0, 0, 1], 5, 0),
        ([1, 1, 1, 1, 1, 1], 0, 0),
        ([0, 0, 1, 0, 1, 1], 4, 1),
        ([1, 0, 0, 0, 0, 0], 6, 1),
    ] {
        let mut rig = Rig::new(Setup {
            base: Some(0xfffd),
            ..Setup::default()
        });
        for _ in 0..6 {
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
        }
        rig.ring.publish();
        let mut kept = Vec::new();
        let mut order = pattern.iter();
        rig.serve(|mut request| match order.next() {
            Some(1) => kept.push(request.keep()),
            _ => {
                request.writer().write_all(&[1]).expect("room");
                request.complete();
            }
        });
        let stopped = rig.queue.stop();
        let expected = u32::from(0xfffdu16.wrapping_add(base));
        assert_eq!(stopped.base, expected, "{pattern:?}");
        assert_eq!(stopped.more, base < 6);
        drop(kept);
        let mut empty = 0;
        while let Some(used) = rig.ring.pop_used() {
            empty += u32::from(used.len == 0);
        }
        assert_eq!(empty, returned, "{pattern:?}");
        let config = vhost_device_queue::Config {
            base: stopped.base,
            ..rig.config
        };
        let mut queue = Queue::new(&rig.memory, &config).expect("a ring");
        assert_eq!(queue.look(), Ok(base < 6));
        let again = std::iter::from_fn(|| queue.pop(&rig.memory).map(drop)).count();
        assert_eq!(again, 6 - usize::from(base), "the rest comes again");
    }
}

#[test]
fn a_kept_request_of_an_earlier_run_is_nobodys() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(1);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    let mut kept = None;
    rig.serve(|request| kept = Some(request.keep()));
    let fresh = Queue::new(&rig.memory, &rig.config).expect("a ring");
    drop(std::mem::replace(&mut rig.queue, fresh));
    let kept = kept.expect("one request");
    assert!(!rig.queue.owns(&kept));
    assert!(rig.queue.resume(&rig.memory, kept).is_none());
    rig.queue.publish();
    assert!(rig.ring.pop_used().is_none());
}

#[test]
fn a_kept_request_whose_memory_has_gone_goes_back_with_length_0() {
    let mut rig = Rig::new(Setup::default());
    let far = Buffer::writable(SEAM + 0x100, 4);
    rig.ring.add(&[far]).expect("room");
    rig.ring.publish();
    let mut kept = None;
    rig.serve(|request| kept = Some(request.keep()));
    let mut smaller = rig.driver_memory.clone();
    smaller.remove_region(1);
    rig.memory = rig::map(&smaller);
    rig.queue
        .rebind(&rig.memory, &rig.config.addresses)
        .expect("the ring is in the other");
    assert!(rig.queue.resume(&rig.memory, kept.expect("one")).is_none());
    rig.queue.publish();
    assert_eq!(rig.ring.pop_used().expect("returned").len, 0);
    rig.expect_service();
}

#[test]
fn next_flag_on_the_last_descriptor_is_followed() {
    let mut rig = Rig::new(Setup {
        size: 2,
        ..Setup::default()
    });
    let answer = rig.writable(1);
    let first = Descriptor {
        addr: answer.addr,
        len: 1,
        flags: VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT,
        next: 1,
    };
    rig.ring.set_descriptor(0, first);
    rig.ring.set_descriptor(
        1,
        Descriptor {
            flags: VIRTQ_DESC_F_WRITE,
            next: 9,
            ..first
        },
    );
    rig.ring.push_head(0);
    rig.ring.publish();
    let mut room = 0;
    rig.serve(|request| room = request.writable_len());
    assert_eq!(room, 2, "a chain as long as the ring is no loop");
}

#[test]
fn only_what_is_kept_up_to_the_newest_would_rewind() {
    let mut rig = Rig::new(Setup::default());
    let mut kept = Vec::new();
    let keep = |rig: &mut Rig, kept: &mut Vec<_>| {
        let answer = rig.writable(1);
        rig.ring.add(&[answer]).expect("room");
        rig.ring.publish();
        rig.serve(|request| kept.push(request.keep()));
    };
    let would = |rig: &Rig, kept: &[_]| -> Vec<bool> {
        kept.iter()
            .map(|kept| rig.queue.would_rewind(kept))
            .collect()
    };
    keep(&mut rig, &mut kept);
    keep(&mut rig, &mut kept);
    assert_eq!(would(&rig, &kept), [true, true]);
    // A bad chain is answered, and takes an entry as well.
    let nowhere = Buffer::writable(SEAM * 4, 1);
    rig.ring.add(&[nowhere]).expect("room");
    rig.ring.publish();
    let (bad, _) = rig.serve(|_| panic!("it is nowhere"));
    assert_eq!(bad.len(), 1);
    assert_eq!(would(&rig, &kept), [false, false]);
    keep(&mut rig, &mut kept);
    assert_eq!(would(&rig, &kept), [false, false, true]);
    let other = Rig::new(Setup::default());
    assert_eq!(would(&other, &kept), [false; 3], "of another queue");
}
