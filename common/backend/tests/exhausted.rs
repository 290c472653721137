//! Sessions that lose their memory while the process has used up what the system gives it: another
//! session of the process goes on. Each test has a process of its own, as that is what is used up.
//!
//! `vm.overcommit_memory` 2 is for the whole system, and no test's to set. What it does is what
//! `RLIMIT_DATA` does to one process: private memory that can be written is charged when it is
//! mapped, and a file's is not.

#[expect(dead_code, reason = "most helpers are for the other tests")]
mod common;

use std::env;
use std::ffi::{c_int, c_void};
use std::fs::{File, read_to_string};
use std::process;
use std::ptr;
use std::thread::yield_now;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use rustix::param::page_size;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost_device_backend::Error;
use vhost_device_driver::guest::ALL_STEPS;
use vmm_sys_util::signal::register_signal_handler;

use common::*;

/// Says to a test that the process is its own.
const ALONE: &str = "VHOST_DEVICE_TEST_ALONE";

/// Runs test `name` again in a process of its own; there, it is `test`.
fn alone(name: &str, test: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        return test();
    }
    let program = env::current_exe().unwrap();
    let output = process::Command::new(program)
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        said.concat()
    );
    assert!(said.concat().contains("1 passed"), "{}", said.concat());
}

/// Limits the process, and returns the limit that it had.
fn limit(resource: Resource, current: u64) -> Rlimit {
    let before = getrlimit(resource);
    let limit = Rlimit {
        current: Some(current),
        maximum: before.maximum,
    };
    setrlimit(resource, limit).unwrap();
    before
}

/// How many bytes of address space the process uses.
fn address_space() -> u64 {
    let pages = read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    pages * page_size() as u64
}

/// A shared mapping of a file, as guest memory is.
struct Shared(*mut c_void);

impl Shared {
    const LEN: usize = MEMORY_SIZE as usize;

    fn new() -> Self {
        let file = File::from(memfd_create("shared", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(Self::LEN as u64).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                Self::LEN,
                access,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        Self(start.unwrap())
    }

    /// Whether private memory can take its place.
    fn is_replaced(&self) -> rustix::io::Result<()> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the mapping is this value's, and nobody reaches into it.
        unsafe { mmap_anonymous(self.0, Self::LEN, access, flags) }.map(drop)
    }
}

/// A new mapping of a page. It stays.
fn map_page(access: ProtFlags) -> rustix::io::Result<()> {
    // SAFETY: a new mapping at an address that the kernel chooses.
    unsafe { mmap_anonymous(ptr::null_mut(), page_size(), access, MapFlags::PRIVATE) }.map(drop)
}

/// Two sessions, of which the second is about to lose its memory.
fn about_to_lose() -> [(Guest, Session); 2] {
    let mut sessions = [running(), running()];
    for (guest, _) in &mut sessions {
        guest.echo_all();
    }
    let [_, (guest, _)] = &sessions;
    guest.memory.truncate(0, 0);
    sessions
}

/// The second loses it and ends; the first goes on.
fn ends_alone([(mut bystander, _kept), (guest, session)]: [(Guest, Session); 2]) {
    guest.queues[0].kick();
    let end = session.end();
    assert!(matches!(end, Err(Error::MemoryLost)), "{end:?}");
    bystander.echo_all();
}

#[test]
fn memory_is_lost_where_private_memory_is_used_up() {
    alone("memory_is_lost_where_private_memory_is_used_up", || {
        let sessions = about_to_lose();
        let shared = Shared::new();
        // 0 would be no limit, for the kernel.
        limit(Resource::Data, 1);
        assert_eq!(shared.is_replaced(), Err(Errno::NOMEM));
        ends_alone(sessions);
    });
}

#[test]
fn memory_is_lost_where_address_space_is_used_up() {
    alone("memory_is_lost_where_address_space_is_used_up", || {
        let sessions = about_to_lose();
        limit(Resource::As, address_space());
        assert_eq!(map_page(ProtFlags::empty()), Err(Errno::NOMEM));
        ends_alone(sessions);
    });
}

#[test]
fn memory_is_lost_where_mappings_are_used_up() {
    alone("memory_is_lost_where_mappings_are_used_up", || {
        let most = read_to_string("/proc/sys/vm/max_map_count").unwrap();
        if most.trim().parse::<usize>().unwrap() > 1 << 21 {
            eprintln!("skipped: it would take too much memory");
            return;
        }
        let sessions = about_to_lose();
        let shared = Shared::new();
        // Neighbours that are as accessible are one mapping.
        let accesses = [ProtFlags::empty(), ProtFlags::READ];
        let mut accesses = accesses.into_iter().cycle();
        let error = accesses.find_map(|access| map_page(access).err());
        assert_eq!(error, Some(Errno::NOMEM));
        assert_eq!(shared.is_replaced(), Err(Errno::NOMEM));
        ends_alone(sessions);
    });
}

#[test]
fn who_cannot_have_zeros_waits_and_holds_nobody_up() {
    alone("who_cannot_have_zeros_waits_and_holds_nobody_up", || {
        let spares = || {
            let maps = read_to_string("/proc/self/maps").unwrap();
            maps.matches("vhost-device-zeros").count()
        };
        let [(mut bystander, kept), (guest, session)] = about_to_lose();
        let before = spares();
        // Less than is used already: nothing may be mapped, whatever it replaces.
        let limit_before = limit(Resource::As, 1);
        guest.queues[0].kick();
        let start = Instant::now();
        // It has tried to make room.
        while spares() == before {
            assert!(start.elapsed() < DEADLINE, "it does not come that far");
            yield_now();
        }
        bystander.echo_all();
        assert!(!session.is_finished());
        setrlimit(Resource::As, limit_before).unwrap();
        ends_alone([(bystander, kept), (guest, session)]);
    });
}

#[test]
fn who_may_have_no_file_is_served_and_loses_its_memory() {
    alone(
        "who_may_have_no_file_is_served_and_loses_its_memory",
        || {
            extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
            register_signal_handler(libc::SIGXFSZ, nothing).unwrap();
            let bystander = running();
            let before = limit(Resource::Fsize, 0);
            let (frontend, session) = frontend();
            // It has begun.
            frontend.get_features().unwrap();
            setrlimit(Resource::Fsize, before).unwrap();
            let maps = read_to_string("/proc/self/maps").unwrap();
            assert_eq!(
                maps.matches("vhost-device-zeros").count(),
                3,
                "the bystander's"
            );
            let mut guest = Guest::prepare_with(frontend, options());
            guest.run(&ALL_STEPS).unwrap();
            guest.echo_all();
            guest.memory.truncate(0, 0);
            ends_alone([bystander, (guest, session)]);
        },
    );
}
