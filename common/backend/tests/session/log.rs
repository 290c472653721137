//! The dirty log (V-8).

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost_device_backend::Feature;
use vhost_device_driver::guest::{DEFAULT_GUEST_ADDR, Options, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::ring::Ring;
use vhost_device_driver::{PackedRing, SplitRing};

use crate::common::*;

/// Bits up to the end of the guest's memory.
const LOG_LEN: u64 = (DEFAULT_GUEST_ADDR + MEMORY_SIZE) / VHOST_LOG_PAGE / 8;

/// A log as a front-end has it.
struct Log {
    file: File,
}

impl Log {
    fn new(len: u64) -> Self {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        Self { file }
    }

    fn announce<R: Ring>(&self, guest: &RingGuest<R>, len: u64) -> vhost_device_driver::Result<()> {
        let area = LogArea {
            mmap_size: len,
            mmap_offset: 0,
        };
        guest.frontend.set_log_base(&area, self.file.as_fd())
    }

    /// The pages that were marked since the last look, by their addresses.
    fn take(&self) -> Vec<u64> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; LOG_LEN as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        self.file
            .write_all_at(&vec![0; LOG_LEN as usize], 0)
            .unwrap();
        let bits = (0..).zip(&bytes).flat_map(|(index, byte)| {
            let set = (0..8).filter(move |bit| byte & 1 << bit != 0);
            set.map(move |bit| (8 * index + bit) * VHOST_LOG_PAGE)
        });
        bits.collect()
    }
}

fn guest<R: Ring>() -> (RingGuest<R>, Session) {
    running_on(options().log_used())
}

/// One request whose question and answer have a page each; the page of the answer.
fn echo_apart<R: Ring>(guest: &mut RingGuest<R>) -> u64 {
    let question = guest.arena.alloc_in(0, LEN.into(), VHOST_LOG_PAGE);
    let answer = guest.arena.alloc_in(0, LEN.into(), VHOST_LOG_PAGE);
    let id = guest.submit_at(0, Command::Echo, question, answer);
    guest.queues[0].notify();
    assert_eq!(guest.finish(0), (id, true));
    answer
}

fn page(addr: u64) -> u64 {
    addr / VHOST_LOG_PAGE * VHOST_LOG_PAGE
}

/// Off, on and off again while the rings run: what is marked is what was written.
fn exactly_what_is_written_is_marked<R: Ring>(options: Options) {
    let (mut guest, session) = running_on::<R>(options.log_used());
    let log = Log::new(LOG_LEN);
    log.announce(&guest, LOG_LEN).unwrap();
    echo_apart(&mut guest);
    settle(&guest.frontend);
    assert_eq!(log.take(), [0u64; 0], "not wanted yet");

    let features = guest.features();
    let all = bits(&[VHOST_F_LOG_ALL]);
    guest.frontend.set_features(features | all).unwrap();
    for queue in 0..guest.queues.len() {
        guest.queue_step(queue, Step::Addr).unwrap();
    }
    settle(&guest.frontend);
    log.take();
    for _ in 0..20 {
        let answer = echo_apart(&mut guest);
        // The ring is marked once more when the session asks for kicks.
        settle(&guest.frontend);
        let layout = guest.queues[0].ring.layout();
        // The rings of these sizes have a page of their own.
        assert_eq!(page(layout.desc), page(layout.used));
        assert_eq!(log.take(), [page(layout.used), answer]);
    }

    guest.frontend.set_features(features).unwrap();
    echo_apart(&mut guest);
    settle(&guest.frontend);
    assert_eq!(log.take(), [0u64; 0], "not wanted any more");
    session.stop();
}

#[test]
fn v8_exactly_what_is_written_through_a_split_ring_is_marked() {
    exactly_what_is_written_is_marked::<SplitRing>(options());
    exactly_what_is_written_is_marked::<SplitRing>(options().track_inflight());
}

#[test]
fn v8_exactly_what_is_written_through_a_packed_ring_is_marked() {
    exactly_what_is_written_is_marked::<PackedRing>(options());
    exactly_what_is_written_is_marked::<PackedRing>(options().track_inflight());
}

/// V-14: who begins anew shares a log of its own, or none, and a region of its own or none.
fn who_begins_anew_has_nothing_of_before<R: Ring>() {
    let (mut guest, session) = running_on::<R>(options().log_used().track_inflight());
    let log = Log::new(LOG_LEN);
    log.announce(&guest, LOG_LEN).unwrap();
    let features = guest.features();
    let all = bits(&[VHOST_F_LOG_ALL]);
    guest.frontend.set_features(features | all).unwrap();
    guest.echo_all();
    for queue in 0..guest.queues.len() {
        guest.stop(queue).unwrap();
    }
    guest.frontend.set_owner().unwrap();
    log.take();
    let region = File::from(guest.inflight.as_ref().unwrap().1.try_clone().unwrap());
    let in_region = || {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; region.metadata().unwrap().len() as usize];
        region.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = in_region();
    guest.set_features(features | all).unwrap();
    guest.place_rings_elsewhere();
    guest.run(&[Step::Memory]).unwrap();
    guest.run(&RING_AGAIN).unwrap();
    guest.echo_all();
    settle(&guest.frontend);
    assert_eq!(log.take(), [0u64; 0], "another front-end's log");
    assert_eq!(in_region(), before, "another front-end's region");
    session.stop();
}

#[test]
fn v14_who_begins_anew_has_no_log_and_no_region_of_before() {
    who_begins_anew_has_nothing_of_before::<SplitRing>();
    who_begins_anew_has_nothing_of_before::<PackedRing>();
}

#[test]
fn v8_a_log_that_is_too_short_is_no_harm() {
    let (mut guest, session) = guest::<SplitRing>();
    let log = Log::new(0x1000);
    log.announce(&guest, 1).unwrap();
    let features = guest.features() | bits(&[VHOST_F_LOG_ALL]);
    guest.frontend.set_features(features).unwrap();
    guest.echo_all();
    session.stop();
}

#[test]
fn v8_a_log_that_loses_its_file_ends_the_session_and_nothing_else() {
    let (mut guest, session) = guest::<SplitRing>();
    let log = Log::new(LOG_LEN);
    log.announce(&guest, LOG_LEN).unwrap();
    let features = guest.features() | bits(&[VHOST_F_LOG_ALL]);
    guest.frontend.set_features(features).unwrap();
    log.file.set_len(0).unwrap();
    guest.submit(0, Command::Echo);
    guest.queues[0].kick();
    assert!(session.end().is_err());
}

#[test]
fn v8_a_log_that_its_file_does_not_hold_ends_the_session() {
    for (size, wanted) in [(0x1000, 0x1001), (0x1000, u64::MAX / 2), (0x1000, 1 << 40)] {
        let (guest, session) = guest::<SplitRing>();
        assert!(Log::new(size).announce(&guest, wanted).is_err());
        assert!(session.end().is_err());
    }
}

#[test]
fn c5_a_log_that_was_withheld_ends_the_session_whatever_the_front_end_says() {
    let shmfd = bits(&[VHOST_USER_PROTOCOL_F_LOG_SHMFD]);
    let (frontend, session) = set_though_withheld(Feature::Log, shmfd);
    let area = LogArea {
        mmap_size: LOG_LEN,
        mmap_offset: 0,
    };
    let log = Log::new(LOG_LEN);
    // There is no answer that says no.
    assert!(frontend.set_log_base(&area, log.file.as_fd()).is_err());
    session.broken();
}
