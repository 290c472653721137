//! Random chains against a second opinion: a walk of the same descriptors written for clarity,
//! from the specification alone. And random bytes, which must only be survived.

mod rig;

use proptest::prelude::*;
use rig::{BASE, DATA, Rig, SEAM, SIZE, Setup};
use vhost_device_driver::Descriptor;
use vhost_device_driver::split::{
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};

const RING: u16 = 16;
/// Two places for indirect tables: one anywhere, and one whose third descriptor would be beyond
/// the end of memory.
const TABLES: [u64; 2] = [DATA + 0x1_0000, BASE + SIZE - 40];

/// What the specification makes of a chain: the readable and the writable ranges, or nothing.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

/// Follows the chain from `head`; `None` when it breaks a rule.
fn expected(ring: &[Descriptor], tables: &[Vec<Descriptor>; 2], head: u16) -> Option<Expected> {
    let mut found = Expected::default();
    let mut table = ring;
    let mut size = ring.len();
    let mut index = usize::from(head);
    let mut steps = 0;
    let mut writable_seen = false;
    let mut inside = false;
    loop {
        steps += 1;
        if steps > size || index >= size {
            return None;
        }
        let desc = table.get(index)?;
        if desc.flags & INDIRECT != 0 {
            let whole = desc.len > 0 && desc.len % 16 == 0;
            if inside || !whole || desc.flags & NEXT != 0 {
                return None;
            }
            let which = TABLES.iter().position(|addr| *addr == desc.addr)?;
            table = &tables[which];
            size = desc.len as usize / 16;
            (index, steps, inside) = (0, 0, true);
            continue;
        }
        let write = desc.flags & WRITE != 0;
        if writable_seen && !write {
            return None;
        }
        writable_seen |= write;
        let end = desc.addr.checked_add(desc.len.into());
        let mapped = desc.addr >= BASE && end.is_some_and(|end| end <= BASE + SIZE);
        if desc.len > 0 && !mapped {
            return None;
        }
        let list = if write {
            &mut found.writable
        } else {
            &mut found.readable
        };
        if desc.len > 0 {
            list.push((desc.addr, desc.len));
        }
        if desc.flags & NEXT == 0 {
            return Some(found);
        }
        index = usize::from(desc.next);
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => DATA + 0x2_0000..DATA + 0x3_0000,
        2 => SEAM - 32..SEAM + 32,
        1 => Just(TABLES[0]),
        1 => Just(BASE + SIZE - 8),
        1 => any::<u64>(),
    ]
}

fn descriptor(indirect: u32) -> impl Strategy<Value = Descriptor> {
    let direct = (
        address(),
        prop_oneof![8 => 0u32..64, 1 => any::<u32>()],
        prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(NEXT | WRITE)],
        prop_oneof![8 => 0u16..8, 1 => any::<u16>()],
    );
    let referrer = (
        prop_oneof![Just(TABLES[0]), Just(TABLES[1])],
        prop_oneof![4 => (1u32..8).prop_map(|n| n * 16), 1 => 0u32..64],
        prop_oneof![6 => Just(INDIRECT), 2 => Just(INDIRECT | WRITE), 1 => Just(INDIRECT | NEXT)],
        0u16..8,
    );
    let make = |(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    };
    prop_oneof![
        10 => direct.prop_map(make),
        indirect => referrer.prop_map(make),
    ]
}

fn table(len: usize, indirect: u32) -> impl Strategy<Value = Vec<Descriptor>> {
    prop::collection::vec(descriptor(indirect), len)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn chains_are_read_as_the_specification_says(
        ring in table(RING.into(), 4),
        first in table(8, 1),
        second in table(2, 1),
        heads in prop::collection::vec(0..RING, 1..8),
    ) {
        let tables = [first, second];
        let mut rig = Rig::new(Setup { size: RING, ..Setup::default() });
        for (index, desc) in (0..).zip(&ring) {
            rig.ring.set_descriptor(index, *desc);
        }
        for (addr, table) in TABLES.iter().zip(&tables) {
            rig.ring.write_indirect_table(*addr, table);
        }
        let before = rig.ring.descriptor_table();
        for head in heads {
            rig.ring.push_head(head);
            rig.ring.publish();
            let mut seen = None;
            rig.serve(|mut request| {
                let mut bytes = vec![0; request.readable_len()];
                request.reader().read_exact(&mut bytes).expect("all of them");
                seen = Some((bytes, request.writable_len()));
                request.complete();
            });
            prop_assert_eq!(rig.ring.pop_any(), Some((head.into(), 0)));
            let wanted = expected(&ring, &tables, head).map(|chain| {
                let bytes: Vec<u8> = chain
                    .readable
                    .iter()
                    .flat_map(|(addr, len)| read(&rig, *addr, *len))
                    .collect();
                let room: usize = chain.writable.iter().map(|(_, len)| *len as usize).sum();
                (bytes, room)
            });
            prop_assert_eq!(seen, wanted);
        }
        prop_assert_eq!(rig.ring.descriptor_table(), before);
        rig.expect_service();
    }

    #[test]
    fn what_is_written_lands_in_the_writable_buffers_in_order(
        cut in prop::collection::vec(0u32..40, 1..8),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        shift in 0u64..80,
    ) {
        let mut rig = Rig::new(Setup::default());
        // One after the other from here, so that some buffer crosses the seam.
        let mut at = SEAM - shift;
        let mut buffers = Vec::new();
        for len in &cut {
            buffers.push(vhost_device_driver::Buffer::writable(at, *len));
            at += u64::from(*len);
        }
        let room: u32 = cut.iter().sum();
        let count = bytes.len().min(room as usize);
        rig.ring.add(&buffers).expect("room");
        rig.ring.publish();
        rig.serve(|mut request| {
            request.writer().write_all(&bytes[..count]).expect("room");
            request.complete();
        });
        let used = rig.ring.pop_used().expect("an answer");
        prop_assert_eq!(used.len as usize, count);
        prop_assert_eq!(read(&rig, SEAM - shift, count as u32), &bytes[..count]);
    }

    #[test]
    fn random_bytes_in_the_ring_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0x400),
        index in any::<u16>(),
    ) {
        let mut rig = Rig::new(Setup::default());
        rig.driver_memory.write(BASE, &bytes);
        rig.ring.set_avail_idx(index);
        rig.queue.disarm();
        if rig.queue.look().is_ok() {
            while let Some(popped) = rig.queue.pop(&rig.memory) {
                drop(popped);
            }
        }
        rig.queue.publish();
        rig.queue.arm();
        // The driver comes to its senses.
        rig.ring.reset(index);
        rig.config.base = index.into();
        rig.queue = vhost_device_queue::Queue::new(&rig.memory, &rig.config).expect("a ring");
        rig.expect_service();
    }
}

fn read(rig: &Rig, addr: u64, len: u32) -> Vec<u8> {
    // The driver's side reads within one region.
    (0..u64::from(len))
        .flat_map(|offset| rig.driver_memory.read_vec(addr + offset, 1))
        .collect()
}
