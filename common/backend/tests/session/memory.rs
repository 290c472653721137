//! Guest memory that comes, goes and moves while rings run, and rings that are not in it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vhost_device_backend::{End, Error, MAX_MEM_SLOTS};
use vhost_device_driver::frontend::describe;
use vhost_device_driver::guest::{DEFAULT_GUEST_ADDR, Options, SESSION_STEPS, Step};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::protocol::*;
use vhost_device_driver::{EventFd, Frontend, GuestMemory, Layout};

use crate::common::*;

/// Where a second region begins: not next to the first.
const OTHER: u64 = DEFAULT_GUEST_ADDR + 4 * MEMORY_SIZE;
const OTHER_SPEC: RegionSpec = RegionSpec::new(OTHER, MEMORY_SIZE);

/// A guest with the rings in the first and nothing in the second region.
fn two_regions() -> Options {
    options().regions(&[RegionSpec::new(DEFAULT_GUEST_ADDR, MEMORY_SIZE), OTHER_SPEC])
}

/// A request whose buffers are in this region: its outcome.
fn request_in(guest: &mut Guest, region: usize, command: Command) -> (u64, bool) {
    let [request, answer] = [(); 2].map(|()| guest.arena.alloc_in(region, LEN.into(), 16));
    let id = guest.submit_at(0, command, request, answer);
    guest.queues[0].kick();
    assert_ne!(command, Command::Keep, "it does not come back");
    let outcome = guest.finish(0);
    assert_eq!(outcome.0, id);
    outcome
}

/// A second front-end on the connection of `guest`, that asks for acknowledgements.
fn second_frontend(guest: &Guest) -> Frontend {
    let mut frontend = Frontend::new(guest.frontend.stream().try_clone().unwrap());
    frontend.set_need_reply(true);
    frontend
}

/// Lets requests flow on queue 0 while `change` is done over and over.
fn under_load(guest: &mut Guest, mut change: impl FnMut(&Frontend)) {
    let frontend = second_frontend(guest);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            (0..2000).for_each(|_| guest.echo(0));
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            change(&frontend);
        }
    });
}

#[test]
fn v4_a_region_is_added_used_and_removed() {
    let (mut guest, _session) = running();
    for _ in 0..3 {
        guest.add_region(OTHER_SPEC).unwrap();
        assert!(request_in(&mut guest, 1, Command::Echo).1);
        guest.remove_region(1).unwrap();
        guest.echo_all();
    }
}

#[test]
fn v4_a_request_in_a_region_that_was_removed_goes_back_with_length_0() {
    let (mut guest, _session) = running_with(two_regions());
    let region = &guest.memory.regions()[1].clone();
    assert!(request_in(&mut guest, 1, Command::Echo).1);
    guest.frontend.rem_mem_reg(region).unwrap();
    assert!(!request_in(&mut guest, 1, Command::Echo).1);
    assert!(request_in(&mut guest, 0, Command::Echo).1);
    guest.frontend.add_mem_reg(region).unwrap();
    assert!(request_in(&mut guest, 1, Command::Echo).1);
}

#[test]
fn v4_a_kept_request_whose_memory_went_away_goes_back_with_length_0() {
    let (mut guest, session) = running_with(two_regions());
    for removed in [true, false] {
        let [request, answer] = [(); 2].map(|()| guest.arena.alloc_in(1, LEN.into(), 16));
        let id = guest.submit_at(0, Command::Keep, request, answer);
        guest.queues[0].kick();
        session.wait_until(|record| record.kept == 1);
        let region = &guest.memory.regions()[1].clone();
        guest.frontend.rem_mem_reg(region).unwrap();
        if !removed {
            // Back in time: it is answered.
            guest.frontend.add_mem_reg(region).unwrap();
        }
        session.release.signal();
        assert_eq!(guest.finish(0), (id, !removed));
        if removed {
            guest.frontend.add_mem_reg(region).unwrap();
        }
    }
}

#[test]
fn v4_regions_come_and_go_while_requests_flow() {
    let (mut guest, _session) = running_with(options().mem_slots());
    let other = GuestMemory::with_regions(&[OTHER_SPEC]);
    under_load(&mut guest, |frontend| {
        frontend.add_mem_reg(&other.regions()[0]).unwrap();
        frontend.rem_mem_reg(&other.regions()[0]).unwrap();
    });
    guest.echo_all();
}

#[test]
fn v4_the_table_is_replaced_while_requests_flow() {
    let (mut guest, _session) = running();
    let small = guest.memory.clone();
    let mut large = guest.memory.clone();
    large.add_region(OTHER_SPEC);
    under_load(&mut guest, |frontend| {
        frontend.set_mem_table(&large).unwrap();
        frontend.set_mem_table(&small).unwrap();
    });
    guest.echo_all();
}

#[test]
fn v4_rings_whose_memory_goes_stop_and_go_on_when_it_is_back() {
    let (mut guest, session) = running_with(two_regions());
    guest.echo_all();
    let rings = &guest.memory.regions()[0].clone();
    guest.frontend.rem_mem_reg(rings).unwrap();
    assert_eq!(session.record(|record| record.stopped.clone()), [0, 1, 2]);
    for queue in &guest.queues {
        assert_ne!(queue.err.take(), 0, "nobody was told");
    }
    let before = guest.used_ring(0);
    let id = guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    assert_eq!(guest.used_ring(0), before);
    guest.frontend.add_mem_reg(rings).unwrap();
    assert_eq!(guest.finish(0), (id, true));
    guest.echo_all();
}

#[test]
fn v4_a_ring_whose_memory_went_can_be_taken_back() {
    let (mut guest, _session) = running_with(two_regions());
    guest.echo_all();
    let rings = &guest.memory.regions()[0].clone();
    guest.frontend.rem_mem_reg(rings).unwrap();
    let base = guest.stop(0).unwrap();
    assert_eq!(base, 1);
    guest.frontend.add_mem_reg(rings).unwrap();
    guest.resume(0, base).unwrap();
    guest.echo_all();
}

#[test]
fn buffers_extend_over_adjacent_regions_at_any_offset_of_their_files() {
    let first = RegionSpec {
        mmap_offset: 0x1230,
        ..RegionSpec::new(DEFAULT_GUEST_ADDR, MEMORY_SIZE)
    };
    let second = RegionSpec {
        mmap_offset: 0x5678,
        ..RegionSpec::new(DEFAULT_GUEST_ADDR + MEMORY_SIZE, 0x1000)
    };
    for options in [options(), options().mem_slots()] {
        let (mut guest, _session) = running_with(options.regions(&[first, second]));
        let border = second.guest_addr;
        for before in 0..=u64::from(LEN) {
            let id = guest.submit_at(0, Command::Echo, border - before, border + 0x100 - before);
            guest.queues[0].kick();
            assert_eq!(guest.finish(0), (id, true));
            let id = guest.submit_at(0, Command::Echo, border + 0x100, border - before);
            guest.queues[0].kick();
            assert_eq!(guest.finish(0), (id, true));
        }
    }
}

#[test]
fn mem_slots_are_bounded() {
    let (mut guest, _session) = running_with(options().mem_slots());
    let frontend = &guest.frontend;
    assert_eq!(frontend.get_max_mem_slots().unwrap(), MAX_MEM_SLOTS as u64);
    let page = GuestMemory::new(&[(OTHER, 0x1000)]);
    let fd = page.regions()[0].fd();
    // Adjacent regions of the same file.
    let nth = |n: usize| {
        let mut region = describe(&page.regions()[0]);
        region.guest_phys_addr += 0x1000 * n as u64;
        region.user_addr += 0x1000 * n as u64;
        region
    };
    for n in 1..MAX_MEM_SLOTS {
        frontend.add_mem_reg_raw(&nth(n), &[fd]).unwrap();
    }
    let more = nth(MAX_MEM_SLOTS);
    let full = frontend.add_mem_reg_raw(&more, &[fd]);
    assert!(full.unwrap_err().is_nack());
    frontend.rem_mem_reg_raw(&nth(7), &[]).unwrap();
    frontend.add_mem_reg_raw(&more, &[fd]).unwrap();
    guest.echo_all();
}

#[test]
fn a_region_that_overlaps_another_is_refused() {
    let (mut guest, _session) = running();
    let other = GuestMemory::with_regions(&[OTHER_SPEC]);
    let fd = other.regions()[0].fd();
    let (start, end) = (DEFAULT_GUEST_ADDR, DEFAULT_GUEST_ADDR + MEMORY_SIZE);
    for guest_phys_addr in [start, start + 0x1000, end - 1, start - MEMORY_SIZE + 1] {
        let region = MemoryRegion {
            guest_phys_addr,
            ..describe(&other.regions()[0])
        };
        let overlap = guest.frontend.add_mem_reg_raw(&region, &[fd]);
        assert!(overlap.unwrap_err().is_nack(), "{guest_phys_addr:#x}");
        let both = [describe(&guest.memory.regions()[0]), region];
        let fds = [guest.memory.regions()[0].fd(), fd];
        let overlap = guest.frontend.set_mem_table_raw(2, &both, &fds);
        assert!(overlap.unwrap_err().is_nack(), "{guest_phys_addr:#x}");
    }
    guest.echo_all();
}

#[test]
fn a_region_that_is_not_there_cannot_be_removed() {
    let (mut guest, _session) = running_with(two_regions());
    let region = describe(&guest.memory.regions()[1]);
    let others = [
        MemoryRegion {
            guest_phys_addr: region.guest_phys_addr + 0x1000,
            ..region
        },
        MemoryRegion {
            memory_size: region.memory_size - 0x1000,
            ..region
        },
        MemoryRegion {
            user_addr: region.user_addr + 0x1000,
            ..region
        },
    ];
    for other in others {
        let unknown = guest.frontend.rem_mem_reg_raw(&other, &[]);
        assert!(unknown.unwrap_err().is_nack(), "{other:x?}");
    }
    // The offset has no meaning here, and older front-ends send a file descriptor.
    let offset = MemoryRegion {
        mmap_offset: 0x1000,
        ..region
    };
    let fd = EventFd::new();
    guest
        .frontend
        .rem_mem_reg_raw(&offset, &[fd.as_fd()])
        .unwrap();
    let again = guest.frontend.rem_mem_reg_raw(&region, &[]);
    assert!(again.unwrap_err().is_nack());
    guest.echo_all();
}

#[test]
fn files_that_cannot_be_mapped_are_refused() {
    let (mut guest, _session) = running();
    let other = GuestMemory::with_regions(&[OTHER_SPEC]);
    let region = describe(&other.regions()[0]);
    let (event, (pipe, _)) = (EventFd::new(), rustix::pipe::pipe().unwrap());
    for fd in [event.as_fd(), pipe.as_fd()] {
        let outcome = guest.frontend.add_mem_reg_raw(&region, &[fd]);
        assert!(outcome.unwrap_err().is_nack());
        let outcome = guest.frontend.set_mem_table_raw(1, &[region], &[fd]);
        assert!(outcome.unwrap_err().is_nack());
    }
    guest.echo_all();
}

#[test]
fn v6_regions_that_pass_the_end_of_an_address_space_are_never_mapped() {
    let memory = GuestMemory::with_regions(&[OTHER_SPEC]);
    let region = describe(&memory.regions()[0]);
    let fds = [memory.regions()[0].fd()];
    let bad = [
        MemoryRegion {
            memory_size: 0,
            ..region
        },
        MemoryRegion {
            memory_size: u64::MAX,
            ..region
        },
        MemoryRegion {
            guest_phys_addr: MEMORY_SIZE.wrapping_neg(),
            ..region
        },
        MemoryRegion {
            user_addr: u64::MAX,
            ..region
        },
        MemoryRegion {
            mmap_offset: u64::MAX - 0xfff,
            ..region
        },
    ];
    let (mut guest, session) = running();
    for region in bad {
        let outcome = guest.frontend.add_mem_reg_raw(&region, &fds);
        assert!(outcome.unwrap_err().is_nack());
        let outcome = guest.frontend.set_mem_table_raw(1, &[region], &fds);
        assert!(outcome.unwrap_err().is_nack());
        guest.echo_all();
    }
    session.stop();
}

/// Ring addresses that no ring can have, with the rest of them sound.
fn bad_addresses(guest: &Guest) -> Vec<VringAddr> {
    let good = guest.vring_addr(0);
    let end = guest.memory.user_addr(DEFAULT_GUEST_ADDR + MEMORY_SIZE - 1) + 1;
    let outside = [0, end, end + MEMORY_SIZE, !0xf];
    let with = |change: fn(&mut VringAddr, u64), bad: &[u64]| {
        let bad = [&outside, bad].concat();
        bad.into_iter().map(move |addr| {
            let mut vring = good;
            change(&mut vring, addr);
            vring
        })
    };
    let avail_len = Layout::avail_bytes(QUEUE_SIZE) as u64;
    let used_len = Layout::used_bytes(QUEUE_SIZE) as u64;
    // Misaligned, then one alignment too far behind.
    with(
        |vring, addr| vring.descriptor = addr,
        &[good.descriptor + 8, end - 16 * u64::from(QUEUE_SIZE) + 16],
    )
    .chain(with(
        |vring, addr| vring.available = addr,
        &[good.available + 1, end - avail_len + 2],
    ))
    .chain(with(
        |vring, addr| vring.used = addr,
        &[good.used + 2, end - used_len.next_multiple_of(4) + 4],
    ))
    .collect()
}

#[test]
fn v5_bad_ring_addresses_are_refused_and_the_session_goes_on() {
    let (mut guest, _session) = prepared(options());
    guest.run(&SESSION_STEPS).unwrap();
    guest.run(&[Step::Num, Step::Base]).unwrap();
    for addr in bad_addresses(&guest) {
        let outcome = guest.frontend.set_vring_addr(&addr);
        assert!(outcome.unwrap_err().is_nack(), "{addr:x?}");
    }
    guest
        .run(&[Step::Addr, Step::Kick, Step::Call, Step::Enable])
        .unwrap();
    guest.echo_all();
}

#[test]
fn v5_a_running_ring_stays_where_it_is_when_bad_addresses_are_refused() {
    let (mut guest, _session) = running();
    for addr in bad_addresses(&guest) {
        let outcome = guest.frontend.set_vring_addr(&addr);
        assert!(outcome.unwrap_err().is_nack(), "{addr:x?}");
        guest.echo(0);
    }
}

#[test]
fn v5_without_acknowledgements_bad_ring_addresses_change_nothing() {
    let (mut guest, _session) = running();
    guest.frontend.set_need_reply(false);
    for addr in bad_addresses(&guest) {
        guest.frontend.set_vring_addr(&addr).unwrap();
    }
    guest.echo_all();
}

#[test]
fn v5_a_ring_may_end_with_its_region() {
    for part in 0..3 {
        let (mut guest, _session) = prepared(options());
        let end = DEFAULT_GUEST_ADDR + MEMORY_SIZE;
        let mut layout = guest.queues[0].ring.layout();
        match part {
            0 => layout.desc = end - Layout::desc_bytes(QUEUE_SIZE) as u64,
            1 => layout.avail = end - Layout::avail_bytes(QUEUE_SIZE) as u64,
            _ => layout.used = end - (Layout::used_bytes(QUEUE_SIZE) as u64).next_multiple_of(4),
        }
        let memory = guest.memory.clone();
        let ring = vhost_device_driver::SplitRing::new(&memory, layout, QUEUE_SIZE, false);
        guest.queues[0].ring = ring;
        guest.run(&vhost_device_driver::guest::ALL_STEPS).unwrap();
        guest.echo_all();
    }
}

#[test]
fn v5_a_ring_does_not_extend_over_adjacent_regions() {
    let border = DEFAULT_GUEST_ADDR + MEMORY_SIZE;
    let adjacent = [
        RegionSpec::new(DEFAULT_GUEST_ADDR, MEMORY_SIZE),
        RegionSpec::new(border, 0x1000),
    ];
    let (mut guest, _session) = running_with(options().regions(&adjacent));
    let addr = VringAddr {
        descriptor: guest.memory.user_addr(border - 16),
        ..guest.vring_addr(0)
    };
    let outcome = guest.frontend.set_vring_addr(&addr);
    assert!(outcome.unwrap_err().is_nack());
    guest.echo_all();
}

#[test]
fn v5_a_ring_that_grew_beyond_its_region_does_not_run() {
    let small = [RegionSpec::new(DEFAULT_GUEST_ADDR, 0x1_0000)];
    let (mut guest, _session) = prepared(options().regions(&small));
    guest.run(&SESSION_STEPS).unwrap();
    guest.run(&[Step::Num, Step::Base, Step::Addr]).unwrap();
    guest.frontend.set_vring_num(0, 0x8000).unwrap();
    guest
        .run(&[Step::Kick, Step::Call, Step::Err, Step::Enable])
        .unwrap();
    let before = guest.used_ring(0);
    guest.submit(0, Command::Echo);
    guest.kick_and_settle(0);
    assert_eq!(guest.used_ring(0), before);
    assert_ne!(guest.queues[0].err.take(), 0, "nobody was told");
    guest.echo(1);
}

/// Waits for the end of a session that lost its memory, and sees that another goes on.
fn lost(session: Session, bystander: &mut (Guest, Session)) {
    let end = session.end();
    assert!(matches!(end, Err(Error::MemoryLost)), "{end:?}");
    bystander.0.echo_all();
}

#[test]
fn a_file_that_is_truncated_ends_its_session_only() {
    let mut bystander = running();
    // The rings go.
    let (mut guest, session) = running();
    guest.echo_all();
    guest.memory.truncate(0, 0);
    guest.queues[0].kick();
    lost(session, &mut bystander);
    // A buffer goes, to be read or to be written.
    for gone in [0, 1] {
        let (mut guest, session) = running_with(two_regions());
        let buffer = [0, 1].map(|n| {
            let region = usize::from(n == gone);
            guest.arena.alloc_in(region, LEN.into(), 16)
        });
        guest.submit_at(0, Command::Echo, buffer[0], buffer[1]);
        guest.memory.truncate(1, 0);
        guest.queues[0].kick();
        lost(session, &mut bystander);
    }
    // The rings move to a file that loses its end as soon as it is mapped, or is refused.
    let (mut guest, session) = running();
    guest.echo_all();
    let short = GuestMemory::with_regions(&[OTHER_SPEC]);
    let table = [describe(&guest.memory.regions()[0])];
    let fds = [short.regions()[0].fd()];
    guest.frontend.set_mem_table_raw(1, &table, &fds).unwrap();
    short.truncate(0, 0);
    guest.queues[0].kick();
    lost(session, &mut bystander);
    // In the middle of a message.
    let (mut guest, session) = running();
    guest.submit(0, Command::Keep);
    guest.queues[0].kick();
    session.wait_until(|record| record.kept == 1);
    guest.memory.truncate(0, 0);
    // It may be answered before the session ends.
    let _ = guest.stop(0);
    lost(session, &mut bystander);
    bystander.0.frontend.sync().unwrap();
}

#[test]
fn a_file_that_is_truncated_and_never_touched_is_no_harm() {
    let (mut guest, session) = running_with(two_regions());
    guest.memory.truncate(1, 0);
    guest.echo_all();
    drop(guest);
    assert_eq!(session.end().unwrap(), End::Disconnected);
}

#[test]
fn v4_a_region_beyond_the_end_of_its_file_is_refused() {
    let (mut guest, session) = running();
    guest.echo_all();
    let short = GuestMemory::with_regions(&[RegionSpec {
        file_len: Some(0),
        ..OTHER_SPEC
    }]);
    let table = [describe(&guest.memory.regions()[0])];
    let fds = [short.regions()[0].fd()];
    let error = guest.frontend.set_mem_table_raw(1, &table, &fds);
    assert!(error.unwrap_err().is_nack());
    guest.echo_all();
    drop(guest);
    session.left();
}

#[test]
fn v4_more_memory_than_a_guests_share_is_refused() {
    let (guest, session) = running();
    let share = vhost_device_backend::Limits::default().bytes;
    let mut region = describe(&guest.memory.regions()[0]);
    region.guest_phys_addr = 1 << 50;
    region.memory_size = share;
    let sparse = GuestMemory::with_regions(&[RegionSpec {
        file_len: Some(1 << 47),
        ..OTHER_SPEC
    }]);
    let fds = [sparse.regions()[0].fd()];
    let error = guest.frontend.add_mem_reg_raw(&region, &fds);
    assert!(error.unwrap_err().is_nack());
    drop(guest);
    session.left();
}
