//! A hostile driver: whatever it puts into the ring, it gets an answer or its buffer back with
//! length 0, and the next good request is served.

mod rig;

use rig::{BASE, Rig, SEAM, SIZE, Setup, echo};
use vhost_device_driver::Descriptor;
use vhost_device_driver::split::{
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};
use vhost_device_queue::{ChainError, MAX_CHAIN_DESCRIPTORS, RingError};

const END: u64 = BASE + SIZE;

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}

/// Makes the chain at descriptor 0 available, and checks that it comes back with length 0, for
/// the reason that is returned; then that the queue goes on.
fn refuse(rig: &mut Rig) -> ChainError {
    rig.ring.push_head(0);
    rig.ring.publish();
    let (bad, _) = rig.serve(|_| panic!("the device sees no bad chain"));
    assert_eq!(rig.ring.pop_any(), Some((0, 0)));
    rig.expect_service();
    assert_eq!(bad.len(), 1);
    bad[0]
}

fn refuse_table(descriptors: &[Descriptor]) -> ChainError {
    let mut rig = Rig::new(Setup::default());
    for (index, descriptor) in (0..).zip(descriptors) {
        rig.ring.set_descriptor(index, *descriptor);
    }
    refuse(&mut rig)
}

fn refuse_indirect(table: &[Descriptor]) -> ChainError {
    let mut rig = Rig::new(Setup::default());
    let addr = rig.alloc(16 * table.len() as u32);
    rig.ring.write_indirect_table(addr, table);
    let len = 16 * table.len() as u32;
    rig.ring.set_descriptor(0, desc(addr, len, INDIRECT, 0));
    refuse(&mut rig)
}

#[test]
fn a_loop_is_refused() {
    let at = rig::DATA;
    assert_eq!(refuse_table(&[desc(at, 1, NEXT, 0)]), ChainError::Loop(16));
    let two = [desc(at, 1, NEXT, 1), desc(at, 1, NEXT, 0)];
    assert_eq!(refuse_table(&two), ChainError::Loop(16));
    let empty = [desc(0, 0, NEXT, 0)];
    assert_eq!(refuse_table(&empty), ChainError::Loop(16));
}

#[test]
fn a_loop_in_an_indirect_table_is_refused() {
    let at = rig::DATA;
    assert_eq!(
        refuse_indirect(&[desc(at, 1, NEXT, 0)]),
        ChainError::Loop(1)
    );
    let two = [desc(at, 1, NEXT, 1), desc(at, 1, NEXT, 0)];
    assert_eq!(refuse_indirect(&two), ChainError::Loop(2));
}

#[test]
fn next_out_of_range_is_refused() {
    for next in [16, 17, 0x8000, 0xffff] {
        let error = refuse_table(&[desc(rig::DATA, 1, NEXT, next)]);
        assert_eq!(error, ChainError::Next { next, size: 16 });
    }
    let error = refuse_indirect(&[desc(rig::DATA, 1, NEXT, 2), desc(rig::DATA, 1, 0, 0)]);
    assert_eq!(error, ChainError::Next { next: 2, size: 2 });
}

#[test]
fn a_head_out_of_range_is_skipped() {
    for head in [16, 17, 0x7fff, 0xffff] {
        let mut rig = Rig::new(Setup::default());
        rig.ring.push_head(head);
        rig.ring.publish();
        let (bad, _) = rig.serve(|_| panic!("there is no such request"));
        assert_eq!(bad, [ChainError::Head { head, size: 16 }]);
        assert_eq!(rig.ring.pop_any(), None, "there is no id to return");
        rig.expect_service();
    }
}

#[test]
fn indirect_inside_indirect_is_refused() {
    let inner = rig::DATA + 0x1000;
    let error = refuse_indirect(&[desc(inner, 16, INDIRECT, 0)]);
    assert_eq!(error, ChainError::Nested { addr: inner });
    let error = refuse_indirect(&[desc(rig::DATA, 1, NEXT, 1), desc(inner, 16, INDIRECT, 0)]);
    assert_eq!(error, ChainError::Nested { addr: inner });
}

#[test]
fn a_descriptor_behind_an_indirect_one_is_refused() {
    let table = rig::DATA;
    let chain = [
        desc(table, 16, INDIRECT | NEXT, 1),
        desc(rig::DATA + 64, 4, WRITE, 0),
    ];
    assert_eq!(refuse_table(&chain), ChainError::Nested { addr: table });
}

#[test]
fn an_indirect_table_of_no_whole_descriptors_is_refused() {
    for len in [0, 1, 15, 17, 31, u32::MAX] {
        let error = refuse_table(&[desc(rig::DATA, len, INDIRECT, 0)]);
        assert_eq!(error, ChainError::TableSize(len));
    }
}

#[test]
fn an_indirect_table_out_of_memory_is_refused() {
    for addr in [0, BASE - 16, END, END - 8, u64::MAX - 15, u64::MAX - 7] {
        let error = refuse_table(&[desc(addr, 16, INDIRECT, 0)]);
        assert_eq!(error, ChainError::Address { addr, len: 16 });
    }
}

#[test]
fn an_indirect_table_may_cross_from_one_region_to_the_next_between_descriptors() {
    let mut rig = Rig::new(Setup::default());
    let question = rig.readable(b"abc");
    let answer = rig.writable(3);
    let table = SEAM - 16;
    rig.ring.write_indirect_table(
        table,
        &[
            desc(question.addr, 3, NEXT, 1),
            desc(answer.addr, 3, WRITE, 0),
        ],
    );
    rig.ring.set_descriptor(0, desc(table, 32, INDIRECT, 0));
    rig.ring.push_head(0);
    rig.ring.publish();
    assert_eq!(rig.serve(echo).0, []);
    assert_eq!(rig.ring.pop_any(), Some((0, 3)));
}

#[test]
fn an_indirect_table_longer_than_memory_is_read_only_as_far_as_its_chain_goes() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(3);
    let table = rig.alloc(16);
    rig.ring
        .write_indirect_table(table, &[desc(answer.addr, 3, WRITE, 0)]);
    rig.ring
        .set_descriptor(0, desc(table, 0xffff_fff0, INDIRECT, 0));
    rig.ring.push_head(0);
    rig.ring.publish();
    assert_eq!(rig.serve(echo).0, []);
    assert_eq!(rig.ring.pop_any(), Some((0, 0)));
    rig.expect_service();
}

#[test]
fn a_long_walk_over_empty_descriptors_is_cut_short() {
    let mut rig = Rig::new(Setup::default());
    let table = rig.alloc(16);
    rig.ring.write_indirect_table(table, &[desc(0, 0, NEXT, 0)]);
    let len = 0xffff_fff0;
    rig.ring.set_descriptor(0, desc(table, len, INDIRECT, 0));
    assert_eq!(refuse(&mut rig), ChainError::TooLong);

    let setup = Setup {
        size: 0x8000,
        ..Setup::default()
    };
    let mut rig = Rig::new(setup);
    for index in 0..0x8000 {
        rig.ring.set_descriptor(index, desc(0, 0, NEXT, index + 1));
    }
    rig.ring.push_head(0);
    rig.ring.publish();
    assert_eq!(rig.serve(echo).0, [ChainError::TooLong]);
}

#[test]
fn a_misaligned_indirect_table_is_read_all_the_same() {
    for shift in 0..16 {
        let mut rig = Rig::new(Setup::default());
        let answer = rig.writable(3);
        let table = rig.alloc(64) + shift;
        rig.ring
            .write_indirect_table(table, &[desc(answer.addr, 3, WRITE, 0)]);
        rig.ring.set_descriptor(0, desc(table, 16, INDIRECT, 0));
        rig.ring.push_head(0);
        rig.ring.publish();
        assert_eq!(
            rig.serve(|request| assert_eq!(request.writable_len(), 3)).0,
            []
        );
        rig.ring.pop_any();
        rig.expect_service();
    }
}

#[test]
fn buffers_out_of_memory_are_refused() {
    for (addr, len) in [
        (0, 1),
        (BASE - 1, 1),
        (BASE - 1, 2),
        (END, 1),
        (END - 1, 2),
        (SEAM - 1, (SIZE / 2 + 2) as u32),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 1, u32::MAX),
        (BASE, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            let error = refuse_table(&[desc(addr, len, flags, 0)]);
            assert_eq!(error, ChainError::Address { addr, len });
            let error = refuse_indirect(&[desc(addr, len, flags, 0)]);
            assert_eq!(error, ChainError::Address { addr, len });
        }
    }
}

#[test]
fn a_good_buffer_before_a_bad_one_is_not_touched() {
    let mut rig = Rig::new(Setup::default());
    let good = rig.writable(16);
    rig.ring
        .set_descriptor(0, desc(good.addr, 16, WRITE | NEXT, 1));
    rig.ring.set_descriptor(1, desc(END, 16, WRITE, 0));
    rig.driver_memory.fill(good.addr, 16, 0x55);
    refuse(&mut rig);
    assert_eq!(rig.driver_memory.read_vec(good.addr, 16), [0x55; 16]);
}

#[test]
fn more_than_4_gib_in_one_chain_is_refused() {
    // The same memory again and again.
    let len = (SIZE / 2) as u32;
    let mut rig = Rig::new(Setup::default());
    let count = (1u64 << 32) / u64::from(len);
    let table: Vec<Descriptor> = (0..count)
        .map(|n| {
            desc(
                BASE,
                len,
                WRITE | if n + 1 < count { NEXT } else { 0 },
                n as u16 + 1,
            )
        })
        .collect();
    assert!(table.len() <= MAX_CHAIN_DESCRIPTORS || count > 1024);
    let addr = SEAM;
    rig.ring.write_indirect_table(addr, &table);
    rig.ring
        .set_descriptor(0, desc(addr, 16 * count as u32, INDIRECT, 0));
    let error = refuse(&mut rig);
    assert!(
        matches!(error, ChainError::TooLarge | ChainError::TooLong),
        "{error}"
    );
}

#[test]
fn a_chain_longer_than_the_limit_is_refused_and_one_of_the_limit_is_not() {
    for extra in [0, 1] {
        let count = MAX_CHAIN_DESCRIPTORS + extra;
        let mut rig = Rig::new(Setup::default());
        let buffer = rig.writable(1);
        let table: Vec<Descriptor> = (1..=count)
            .map(|n| {
                desc(
                    buffer.addr,
                    1,
                    WRITE | if n < count { NEXT } else { 0 },
                    n as u16,
                )
            })
            .collect();
        rig.ring.write_indirect_table(SEAM, &table);
        rig.ring
            .set_descriptor(0, desc(SEAM, 16 * count as u32, INDIRECT, 0));
        if extra == 1 {
            assert_eq!(refuse(&mut rig), ChainError::TooLong);
        } else {
            rig.ring.push_head(0);
            rig.ring.publish();
            let (bad, _) = rig.serve(|request| assert_eq!(request.writable_len(), count));
            assert_eq!(bad, []);
        }
    }
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_refused() {
    let at = rig::DATA;
    let chain = [desc(at, 4, WRITE | NEXT, 1), desc(at + 8, 4, 0, 0)];
    assert_eq!(refuse_table(&chain), ChainError::Order { addr: at + 8 });
    assert_eq!(refuse_indirect(&chain), ChainError::Order { addr: at + 8 });
    let empty = [desc(at, 0, WRITE | NEXT, 1), desc(at + 8, 4, 0, 0)];
    assert_eq!(refuse_table(&empty), ChainError::Order { addr: at + 8 });
}

#[test]
fn empty_buffers_are_nothing_wherever_they_are() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(3);
    rig.ring.set_descriptor(0, desc(u64::MAX, 0, NEXT, 1));
    rig.ring.set_descriptor(1, desc(0, 0, NEXT | WRITE, 2));
    rig.ring.set_descriptor(2, desc(answer.addr, 3, WRITE, 0));
    rig.ring.push_head(0);
    rig.ring.publish();
    let (bad, _) = rig.serve(|request| {
        assert_eq!((request.readable_len(), request.writable_len()), (0, 3));
    });
    assert_eq!(bad, []);
    rig.ring.pop_any();
    rig.expect_service();
}

#[test]
fn an_index_further_than_the_ring_is_long_is_not_followed() {
    for jump in [17, 18, 0x7fff, 0x8000, 0xffff] {
        let mut rig = Rig::new(Setup::default());
        rig.expect_service();
        let next = rig.ring.next_avail();
        rig.ring.set_avail_idx(next.wrapping_add(jump));
        rig.queue.disarm();
        for _ in 0..3 {
            let index = next.wrapping_add(jump);
            let error = RingError::Index {
                index,
                next,
                size: 16,
            };
            assert_eq!(rig.queue.look(), Err(error));
            assert!(rig.queue.pop(&rig.memory).is_none());
        }
        assert!(
            !rig.queue.arm(),
            "an index that was refused is not worth waking for"
        );
        rig.ring.set_avail_idx(next);
        rig.expect_service();
    }
}

#[test]
fn the_same_head_twice_is_answered_twice() {
    let mut rig = Rig::new(Setup::default());
    let answer = rig.writable(3);
    rig.ring.set_descriptor(0, desc(answer.addr, 3, WRITE, 0));
    rig.ring.push_head(0);
    rig.ring.push_head(0);
    rig.ring.publish();
    rig.serve(echo);
    assert_eq!(rig.ring.pop_any(), Some((0, 0)));
    assert_eq!(rig.ring.pop_any(), Some((0, 0)));
    rig.expect_service();
}

#[test]
fn a_ring_that_its_own_buffers_overwrite_is_survived() {
    let mut rig = Rig::new(Setup::default());
    let ring = rig.config.addresses.descriptor;
    rig.ring.set_descriptor(0, desc(ring, 0x1000, WRITE, 0));
    rig.ring.push_head(0);
    rig.ring.publish();
    for _ in 0..100 {
        if rig.queue.look() == Ok(true)
            && let Some(Ok(mut request)) = rig.queue.pop(&rig.memory)
        {
            let room = request.writable_len().min(0x1000);
            request.writer().write_zeros(room).expect("room");
            request.complete();
        }
    }
    rig.queue.publish();
}

#[test]
fn a_guest_that_rewrites_everything_meanwhile_is_survived() {
    let mut rig = Rig::new(Setup::default());
    let table = rig.alloc(16 * 8);
    let ring = rig.config.addresses.descriptor;
    let memory = rig.driver_memory.clone();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 1u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) % 0x100;
                let value = [0, seed, rig::DATA, table, SEAM][(seed >> 60) as usize % 5];
                let place = if seed & 1 == 0 { ring } else { table };
                memory.write(place + at % 0x80, &value.to_le_bytes());
            }
        });
        for _ in 0..20_000 {
            rig.ring.push_head(0);
            rig.ring.publish();
            while rig.queue.look() == Ok(true) {
                while let Some(popped) = rig.queue.pop(&rig.memory) {
                    if let Ok(mut request) = popped {
                        let mut bytes = vec![0; request.readable_len().min(64)];
                        request
                            .reader()
                            .read_exact(&mut bytes)
                            .expect("they are there");
                        let room = request.writable_len().min(64);
                        request.writer().write_zeros(room).expect("room");
                        request.complete();
                    }
                }
            }
            rig.queue.publish();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
