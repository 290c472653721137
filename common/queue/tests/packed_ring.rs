//! Each clause of the specification on the packed ring, by its id in the project's checklist.

mod rig;

use rig::{DATA, RingRig, SEAM, Setup, echo};
use vhost_device_driver::packed::{
    PackedDescriptor, Place, RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED,
};
use vhost_device_driver::split::{
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};
use vhost_device_driver::{Buffer, PackedRing, Used};
use vhost_device_queue::{ChainError, Queue, RingError};

type Rig = RingRig<PackedRing>;

/// Sizes that are a power of two, and others.
const SIZES: [u16; 6] = [1, 2, 3, 5, 8, 13];

fn sized(size: u16) -> Setup {
    Setup {
        size,
        ..Setup::default()
    }
}

/// Puts a chain into the ring that the cooked layer would not make.
fn push(rig: &mut Rig, chain: &[PackedDescriptor]) {
    for descriptor in chain {
        rig.ring.push_descriptor(*descriptor);
    }
    rig.ring.publish();
}

fn desc(addr: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor {
        addr,
        len,
        id: 0x7a,
        flags,
    }
}

#[test]
fn v15_a_ring_is_new_at_its_beginning_and_not_after_its_first_round() {
    for size in SIZES {
        for length in 1..=size {
            let mut rig = Rig::new(sized(size));
            let mut seen = 0;
            for taken in (0..4 * u32::from(size)).step_by(length.into()) {
                // Base 0 in a first round, and in all that begin as the second does.
                let at_zero = taken == 0 || taken % (2 * u32::from(size)) == u32::from(size);
                let is_new = |rig: &Rig| Queue::is_new(&rig.memory, &rig.config) == Ok(true);
                assert!(
                    !at_zero || is_new(&rig) == (taken == 0),
                    "{taken} of {size}"
                );
                let buffers: Vec<_> = (0..length).map(|_| rig.writable(1)).collect();
                rig.ring.add(&buffers).expect("room");
                rig.ring.publish();
                // Nor does what the driver makes available there change anything.
                assert!(
                    !at_zero || is_new(&rig) == (taken == 0),
                    "{taken} of {size}"
                );
                seen += u32::from(at_zero);
                rig.serve(echo);
                rig.ring.pop_used().expect("an answer");
            }
            assert!(seen > 0);
        }
    }
    let mut nowhere = Rig::new(sized(2)).config;
    nowhere.addresses.descriptor = 0;
    let rig = Rig::new(sized(2));
    let error = Queue::is_new(&rig.memory, &nowhere).unwrap_err();
    assert!(matches!(error, RingError::Address { .. }), "{error}");
}

#[test]
fn p1_chains_are_taken_in_the_order_of_the_ring_and_around_its_end() {
    for size in SIZES {
        let mut rig = Rig::new(sized(size));
        let mut expected = 0u32;
        for round in 0..5 * u32::from(size) {
            let count = 1 + round % u32::from(size);
            for number in 0..count {
                let question = rig.readable(&(expected + number).to_le_bytes());
                rig.ring.add(&[question]).expect("room");
            }
            rig.ring.publish();
            let (bad, _) = rig.serve(|mut request| {
                let number: u32 = request.reader().read_obj().expect("four bytes");
                assert_eq!(number, expected, "size {size}");
                expected += 1;
                request.complete();
            });
            assert_eq!(bad, []);
            for _ in 0..count {
                assert_eq!(rig.ring.pop_used().expect("an answer").len, 0);
            }
            assert_eq!(rig.ring.pop_used(), None);
        }
        rig.ring.publish();
    }
}

#[test]
fn p2_used_descriptors_stand_in_the_order_of_completion_behind_whole_chains() {
    for size in [5, 6, 7, 8] {
        let mut rig = Rig::new(sized(size));
        for round in 0..20 {
            let place = rig.writable(4);
            let heads = [
                rig.ring.add(&[place, place]).expect("room"),
                rig.ring.add(&[place]).expect("room"),
                rig.ring.add(&[place, place]).expect("room"),
            ];
            rig.ring.publish();
            let mut kept = Vec::new();
            rig.serve(|request| kept.push(request.keep()));
            let order = [[2, 0, 1], [1, 2, 0], [0, 1, 2]][round % 3];
            let mut kept: Vec<_> = kept.into_iter().map(Some).collect();
            for index in order {
                let one = kept[index].take().expect("once");
                let request = rig.queue.resume(&rig.memory, one);
                request.expect("still there").complete();
                rig.queue.publish();
                let used = rig.ring.pop_used().expect("at once");
                assert_eq!(used.head, heads[index], "size {size} round {round}");
            }
            assert_eq!(rig.ring.free_descriptors(), size);
        }
    }
}

#[test]
fn p3_the_device_writes_no_other_field_of_a_descriptor() {
    let mut rig = Rig::new(sized(4));
    let question = rig.readable(b"abc");
    let answer = rig.writable(3);
    rig.ring.add(&[question, answer]).expect("room");
    rig.ring.publish();
    let second = rig.ring.descriptor(1);
    rig.serve(echo);
    let first = rig.ring.descriptor(0);
    assert_eq!(first.addr, question.addr, "only the last word is written");
    assert_eq!(
        rig.ring.descriptor(1),
        second,
        "the rest of the chain is skipped"
    );
    assert_eq!(rig.ring.pop_used().expect("an answer").len, 3);
}

#[test]
fn p4_a_descriptor_is_not_used_before_its_bits_change() {
    let base = Place {
        slot: 2,
        wrap: true,
    };
    for wrap in [true, false] {
        let place = Place { wrap, ..base };
        let base = u32::from(place.bits()) * 0x1_0001;
        let mut rig = Rig::new(Setup {
            base: Some(base),
            ..sized(4)
        });
        let (avail, used) = (VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED);
        let good = if wrap { avail } else { used };
        for bits in [0, avail, used, avail | used] {
            rig.ring.set_descriptor(2, desc(DATA, 4, bits));
            let there = bits == good;
            assert_eq!(rig.queue.look(), Ok(there), "{wrap} {bits:#x}");
            assert_eq!(rig.queue.arm(), there, "{wrap} {bits:#x}");
            rig.queue.disarm();
            let popped = rig.queue.pop(&rig.memory).is_some();
            assert_eq!(popped, there, "{wrap} {bits:#x}");
            if there {
                break;
            }
        }
    }
}

#[test]
fn p4_a_chain_ends_where_a_descriptor_is_not_available() {
    let mut rig = Rig::new(sized(8));
    push(&mut rig, &[desc(DATA, 4, NEXT)]);
    let (bad, call) = rig.serve(|_| panic!("half a chain"));
    assert_eq!(bad, [ChainError::Unavailable(1)]);
    assert!(call);
    let used = rig.ring.descriptor(0);
    assert_eq!(
        (used.id, used.flags & WRITE),
        (0x7a, 0),
        "returned with length 0"
    );
    // What comes next is served from there.
    rig.ring.reset(0x8001_8001);
    rig.expect_service();
}

#[test]
fn p5_a_used_descriptor_is_not_touched_again() {
    let mut rig = Rig::new(sized(4));
    let answer = rig.writable(4);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    rig.serve(echo);
    let mark = PackedDescriptor {
        flags: rig.ring.descriptor(0).flags,
        ..desc(1, 2, 0)
    };
    rig.ring.set_descriptor(0, mark);
    for _ in 0..3 {
        rig.serve(echo);
        rig.queue.arm();
        rig.queue.disarm();
    }
    assert_eq!(rig.ring.descriptor(0), mark);
}

#[test]
fn p6_buffers_of_a_chain_are_taken_in_order_around_the_end_of_the_ring() {
    for size in [3, 4, 5] {
        let mut rig = Rig::new(sized(size));
        for round in 0..12 {
            let parts = [rig.readable(b"ab"), rig.readable(b"c")];
            let answer = rig.writable(8);
            rig.ring.add(&[parts[0], parts[1], answer]).expect("room");
            rig.ring.publish();
            let (bad, _) = rig.serve(echo);
            assert_eq!(bad, []);
            assert_eq!(rig.ring.pop_used().expect("an answer").len, 3);
            let bytes = rig.driver_memory.read_vec(answer.addr, 3);
            assert_eq!(bytes, b"abc", "size {size} round {round}");
        }
    }
}

#[test]
fn p6_a_chain_as_long_as_the_ring_is_no_loop() {
    let mut rig = Rig::new(sized(5));
    for _ in 0..7 {
        let answer = rig.writable(1);
        rig.ring.add(&[answer; 5]).expect("room");
        rig.ring.publish();
        let mut room = 0;
        rig.serve(|request| room = request.writable_len());
        assert_eq!(room, 5);
        assert!(rig.ring.pop_used().is_some());
    }
}

#[test]
fn p6_a_chain_without_an_end_goes_back_whole() {
    let mut rig = Rig::new(sized(4));
    push(&mut rig, &[desc(DATA, 4, NEXT); 4]);
    let (bad, _) = rig.serve(|_| panic!("no end"));
    assert_eq!(bad, [ChainError::Loop(4)]);
    rig.ring.reset(0);
    rig.expect_service();
}

#[test]
fn p7_of_flags_in_a_table_only_write_means_anything() {
    let mut rig = Rig::new(sized(4));
    let table = rig.alloc(16 * 3);
    let question = rig.readable(b"abc");
    let answer = rig.writable(2);
    let entry = |buffer: Buffer, flags| PackedDescriptor {
        id: 0xdead,
        ..desc(buffer.addr, buffer.len, flags)
    };
    let rest = Buffer::writable(answer.addr + 1, 1);
    let entries = [
        entry(question, NEXT | INDIRECT | VIRTQ_DESC_F_USED),
        entry(Buffer::writable(answer.addr, 1), WRITE),
        entry(rest, WRITE | NEXT | VIRTQ_DESC_F_AVAIL),
    ];
    rig.ring.write_indirect_table(table, &entries);
    for flags in [INDIRECT, INDIRECT | WRITE] {
        push(&mut rig, &[desc(table, 48, flags)]);
        let (bad, _) = rig.serve(echo);
        assert_eq!(bad, []);
        assert_eq!(rig.driver_memory.read_vec(answer.addr, 2), b"ab");
    }
    let used = rig.ring.descriptor(1);
    assert_eq!((used.id, used.len), (0x7a, 2));
}

#[test]
fn p7_tables_that_break_the_rules_go_back() {
    let table = DATA + 0x100;
    let referrer = |len| desc(table, len, INDIRECT);
    let nested = ChainError::Nested { addr: table };
    let cases: [(&[PackedDescriptor], ChainError); 6] = [
        (&[referrer(0)], ChainError::TableSize(0)),
        (&[referrer(17)], ChainError::TableSize(17)),
        (&[desc(DATA, 4, NEXT), referrer(16)], nested),
        (
            &[desc(table, 16, INDIRECT | NEXT), desc(DATA, 4, 0)],
            nested,
        ),
        (
            &[desc(SEAM * 4, 16, INDIRECT)],
            ChainError::Address {
                addr: SEAM * 4,
                len: 16,
            },
        ),
        (&[referrer(16 * 1025)], ChainError::TooLong),
    ];
    for (chain, error) in cases {
        let mut rig = Rig::new(sized(8));
        push(&mut rig, chain);
        let (bad, _) = rig.serve(|_| panic!("{error}"));
        assert_eq!(bad, [error]);
        let used = rig.ring.descriptor(0);
        assert_eq!((used.id, used.flags & WRITE), (0x7a, 0));
        let next = 0x8000 + chain.len() as u32;
        rig.ring.reset(next << 16 | next);
        rig.expect_service();
    }
    let mut rig = Rig::new(Setup {
        indirect: false,
        ..sized(8)
    });
    push(&mut rig, &[referrer(16)]);
    let (bad, _) = rig.serve(|_| panic!("not negotiated"));
    assert_eq!(bad, [ChainError::NotNegotiated]);
}

#[test]
fn p8_the_id_is_that_of_the_last_descriptor_and_write_tells_of_data() {
    let mut rig = Rig::new(sized(8));
    let chain = [
        PackedDescriptor {
            id: 1,
            ..desc(DATA, 2, NEXT)
        },
        PackedDescriptor {
            id: 9,
            ..desc(DATA, 4, WRITE)
        },
    ];
    push(&mut rig, &chain);
    push(&mut rig, &chain[1..]);
    rig.serve(|mut request| {
        let length = request.readable_len();
        request.writer().write_zeros(length).expect("room");
        request.complete();
    });
    let both = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
    let first = rig.ring.descriptor(0);
    assert_eq!((first.id, first.len), (9, 2));
    assert_eq!(first.flags, both | WRITE);
    let second = rig.ring.descriptor(2);
    assert_eq!((second.id, second.flags), (9, both), "nothing was written");
}

#[test]
fn p8_a_batch_is_shown_with_its_first_descriptor() {
    let mut rig = Rig::new(sized(8));
    let answer = rig.writable(4);
    for _ in 0..3 {
        rig.ring.add(&[answer]).expect("room");
    }
    rig.ring.publish();
    rig.queue.look().expect("a ring");
    while let Some(popped) = rig.queue.pop(&rig.memory) {
        popped.expect("a good chain").complete();
        assert!(!rig.ring.has_used(), "nothing is published");
    }
    rig.queue.publish();
    for _ in 0..3 {
        assert!(rig.ring.pop_used().is_some());
    }
}

/// Has one request served, and whether the driver is called for it.
fn is_called(rig: &mut Rig, buffers: usize) -> bool {
    let answer = rig.writable(1);
    rig.ring.add(&vec![answer; buffers]).expect("room");
    rig.ring.publish();
    let (_, called) = rig.serve(echo);
    rig.ring.pop_used().expect("an answer");
    called
}

#[test]
fn p9_calls_follow_the_drivers_area() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(Setup {
            event_idx,
            ..sized(5)
        });
        // The first time with EVENT_IDX nobody knows what the event was meant for.
        is_called(&mut rig, 1);
        for round in 0..12 {
            rig.ring.set_driver_event(0, RING_EVENT_FLAGS_DISABLE);
            assert!(!is_called(&mut rig, 1), "{event_idx} {round}");
            rig.ring.set_driver_event(0, RING_EVENT_FLAGS_ENABLE);
            assert!(is_called(&mut rig, 1), "{event_idx} {round}");
            let _ = rig.ring.arm_calls();
            assert!(is_called(&mut rig, 2), "{event_idx} {round}");
        }
    }
}

#[test]
fn p9_a_call_comes_when_the_event_is_passed_and_not_again() {
    for size in [3, 4, 5, 8] {
        for ahead in 0..size {
            let mut rig = Rig::new(sized(size));
            is_called(&mut rig, 1);
            for _ in 0..3 * size {
                let mut event = rig.ring.next_used();
                event.move_on(ahead, size);
                rig.ring
                    .set_driver_event(event.bits(), RING_EVENT_FLAGS_DESC);
                for step in 0..size {
                    let called = is_called(&mut rig, 1);
                    assert_eq!(called, step == ahead, "{size} {ahead} {step}");
                }
            }
        }
    }
}

#[test]
fn p9_an_event_inside_of_a_chain_is_passed_with_it() {
    let mut rig = Rig::new(sized(7));
    is_called(&mut rig, 1);
    for _ in 0..20 {
        for inside in 0..3 {
            let mut event = rig.ring.next_used();
            event.move_on(inside, 7);
            rig.ring
                .set_driver_event(event.bits(), RING_EVENT_FLAGS_DESC);
            assert!(is_called(&mut rig, 3));
            assert!(!is_called(&mut rig, 2));
        }
    }
}

#[test]
fn p9_kicks_are_asked_for_by_place_or_by_flag() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(Setup {
            event_idx,
            ..sized(3)
        });
        for round in 0..10 {
            rig.queue.disarm();
            if round > 0 && !event_idx {
                let (_, flags) = rig.ring.device_event();
                assert_eq!(flags, RING_EVENT_FLAGS_DISABLE);
            }
            assert!(!rig.queue.arm(), "there is nothing");
            let (place, flags) = rig.ring.device_event();
            if event_idx {
                assert_eq!(flags, RING_EVENT_FLAGS_DESC);
                assert_eq!(place, rig.ring.next_avail().bits());
            } else {
                assert_eq!(flags, RING_EVENT_FLAGS_ENABLE);
            }
            let answer = rig.writable(1);
            rig.ring.add(&[answer]).expect("room");
            rig.ring.publish();
            assert!(rig.ring.needs_kick());
            rig.queue.disarm();
            assert!(rig.queue.arm(), "there is something already");
            rig.serve(echo);
            rig.ring.pop_used().expect("an answer");
        }
    }
}

#[test]
fn p9_a_missed_chain_is_found_after_arming() {
    let mut rig = Rig::new(sized(4));
    assert_eq!(rig.queue.look(), Ok(false));
    let answer = rig.writable(1);
    rig.ring.add(&[answer]).expect("room");
    rig.ring.publish();
    assert!(!rig.ring.needs_kick() || rig.queue.arm());
    assert_eq!(rig.queue.look(), Ok(true));
}

#[test]
fn any_size_up_to_32768_is_taken_and_no_other() {
    for size in [1, 3, 1000, 32767] {
        let mut rig = Rig::new(sized(size));
        rig.queue.look().expect("a ring");
        if size > 1 {
            rig.expect_service();
        }
    }
    let rig = Rig::new(sized(4));
    for size in [0, 32769, 65535] {
        let config = vhost_device_queue::Config { size, ..rig.config };
        let error = RingError::Size(size.into());
        assert_eq!(Queue::check(&rig.memory, &config), Err(error));
        assert_eq!(Queue::new(&rig.memory, &config).err(), Some(error));
    }
}

#[test]
fn a_base_outside_of_the_ring_is_refused() {
    let rig = Rig::new(sized(4));
    for (base, good) in [
        (0x8000_8000, true),
        (0x0003_8003, true),
        (0x8000_8004, false),
        (0x8004_8000, false),
        (0, true),
        (0x7fff_0000, false),
    ] {
        let config = vhost_device_queue::Config { base, ..rig.config };
        let expected = good.then_some(()).ok_or(RingError::Base { base, size: 4 });
        assert_eq!(Queue::check(&rig.memory, &config), expected, "{base:#x}");
    }
}

#[test]
fn areas_outside_of_memory_or_misaligned_are_refused() {
    let rig = Rig::new(sized(4));
    let good = rig.config.addresses;
    let far = SEAM * 4;
    for (addresses, area) in [
        (
            vhost_device_queue::Addresses {
                descriptor: far,
                ..good
            },
            "descriptor ring",
        ),
        (
            vhost_device_queue::Addresses {
                available: far,
                ..good
            },
            "driver area",
        ),
        (
            vhost_device_queue::Addresses { used: far, ..good },
            "device area",
        ),
    ] {
        let config = vhost_device_queue::Config {
            addresses,
            ..rig.config
        };
        let error = RingError::Address { area, addr: far };
        assert_eq!(Queue::check(&rig.memory, &config), Err(error));
    }
    for (addresses, area, addr, align) in [
        (
            vhost_device_queue::Addresses {
                descriptor: DATA + 8,
                ..good
            },
            "descriptor ring",
            DATA + 8,
            16,
        ),
        (
            vhost_device_queue::Addresses {
                available: DATA + 2,
                ..good
            },
            "driver area",
            DATA + 2,
            4,
        ),
        (
            vhost_device_queue::Addresses {
                used: DATA + 1,
                ..good
            },
            "device area",
            DATA + 1,
            4,
        ),
    ] {
        let config = vhost_device_queue::Config {
            addresses,
            ..rig.config
        };
        let error = RingError::Alignment { area, addr, align };
        assert_eq!(Queue::check(&rig.memory, &config), Err(error));
    }
}

#[test]
fn stopping_takes_back_the_newest_kept_requests_and_returns_the_others() {
    // Of six requests of one or two descriptors, the device keeps those with a 1.
    let lengths = [1, 2, 1, 2, 1, 2];
    for (pattern, again, returned) in [
        ([0, 0, 0, 0, 0, 0], 0, 0),
        ([0, 0, 0, 0, 0, 1], 1, 0),
        ([1, 1, 1, 1, 1, 1], 6, 0),
        ([0, 0, 1, 0, 1, 1], 2, 1),
        ([1, 0, 0, 0, 0, 0], 0, 1),
    ] {
        for (size, base) in [(9, 0x8000_8000), (11, 0x8007_8007), (13, 0x000a_000a)] {
            let mut rig = Rig::new(Setup {
                base: Some(base),
                ..sized(size)
            });
            for length in lengths {
                let answer = rig.writable(1);
                rig.ring.add(&vec![answer; length]).expect("room");
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
            assert_eq!(stopped.base & 0xffff, stopped.base >> 16, "nothing between");
            assert_eq!(stopped.more, again > 0, "{pattern:?}");
            drop(kept);
            let used: Vec<Used> = std::iter::from_fn(|| rig.ring.pop_used()).collect();
            let empty = used.iter().filter(|used| used.len == 0).count();
            assert_eq!((used.len(), empty), (6 - again, returned), "{pattern:?}");
            let config = vhost_device_queue::Config {
                base: stopped.base,
                ..rig.config
            };
            rig.queue = Queue::new(&rig.memory, &config).expect("a ring");
            let mut seen = 0;
            rig.serve(|request| {
                seen += 1;
                request.complete();
            });
            assert_eq!(seen, again, "the rest comes again");
            assert_eq!(std::iter::from_fn(|| rig.ring.pop_used()).count(), again);
            assert_eq!(rig.ring.free_descriptors(), size);
            rig.expect_service();
        }
    }
}

#[test]
fn a_ring_that_moves_goes_on_where_it_is() {
    let mut rig = Rig::new(sized(5));
    for _ in 0..7 {
        rig.expect_service();
        let addresses = rig.config.addresses;
        let memory = rig::map(&rig.driver_memory);
        rig.queue.rebind(&memory, &addresses).expect("the same");
        rig.memory = memory;
    }
}
