//! The daemon and guest memory of kinds that not every machine has.
//!
//! These tests are ignored but in the host guest, which `tests/guest/tests/host.rs` boots: its
//! kernel has `/dev/udmabuf` and huge pages, and it mounts an overlay. That about FUSE runs wherever
//! there is `/dev/fuse` and the right to mount.

mod support;

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use support::fuse::{self, FUSE_FLUSH, FUSE_RELEASE, Fuse};
use support::{PROGRAM, options, request};
use vhost_device_driver::memory::{MakeFile, RegionSpec, huge_memfd, udmabuf};
use vhost_device_driver::protocol::MemoryRegion;
use vhost_device_driver::{Driver, Frontend, Options};
use vhost_device_rig::{Daemon, wait_until};

/// The variable that names the directory of an overlay.
const OVERLAY: &str = "VHOST_DEVICE_TEST_OVERLAY";

/// The size of a huge page.
const HUGE: u64 = 2 << 20;

/// A guest whose memory is of such files.
fn memory_of(make_file: MakeFile) -> Options {
    let regions = [
        RegionSpec::new(0x4000_0000, HUGE),
        RegionSpec::new(0x8000_0000, HUGE),
    ];
    options().regions(&regions).memory_files(make_file)
}

/// A file on an overlay.
fn on_overlay(length: u64) -> OwnedFd {
    let directory = env::var_os(OVERLAY).unwrap_or_else(|| panic!("{OVERLAY} names none"));
    let path = Path::new(&directory).join("memory");
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).unwrap();
    file.set_len(length).unwrap();
    file.into()
}

/// A daemon with these arguments serves such a guest.
#[track_caller]
fn serves(arguments: &[&str], make_file: MakeFile) {
    let daemon = PROGRAM.start(arguments);
    let mut guest = daemon.guest("s", memory_of(make_file));
    for _ in 0..100 {
        assert_eq!(request(&mut guest, 4096).len(), 4096);
    }
    drop(guest);
    // It lets go of the memory: another guest is served.
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.stop();
}

/// A daemon refuses such a guest, says what to do, and serves the next.
#[track_caller]
fn refuses(make_file: MakeFile) {
    let daemon = PROGRAM.start(&[]);
    Driver::connect(daemon.path("s"), memory_of(make_file)).unwrap_err();
    daemon.wait_for_log("--memory-fs any");
    assert_eq!(request(&mut daemon.guest("s", options()), 8).len(), 8);
    daemon.stop();
}

#[test]
#[ignore = "needs /dev/udmabuf of the host guest"]
fn kernel_memory_of_udmabufs_is_served_when_any_is() {
    refuses(udmabuf);
    serves(&["--memory-fs", "any"], udmabuf);
}

#[test]
#[ignore = "needs the overlay of the host guest"]
fn kernel_memory_on_an_overlay_is_served_when_any_is() {
    refuses(on_overlay);
    serves(&["--memory-fs", "any"], on_overlay);
}

#[test]
#[ignore = "needs huge pages of the host guest"]
fn kernel_memory_of_huge_pages_is_served() {
    serves(&[], huge_memfd);
}

/// A front-end gives this file as guest memory. It does not wait for what becomes of that.
fn give(daemon: &Daemon, socket: &str, file: &File) -> Frontend {
    let frontend = Frontend::connect(daemon.path(socket)).unwrap();
    frontend.set_owner().unwrap();
    let region = MemoryRegion {
        guest_phys_addr: 0x4000_0000,
        memory_size: fuse::SIZE,
        user_addr: 0x4000_0000,
        mmap_offset: 0,
    };
    frontend
        .set_mem_table_raw(1, &[region], &[file.as_fd()])
        .unwrap();
    frontend
}

#[test]
#[ignore = "needs /dev/fuse and the right to mount, as in the host guest"]
fn kernel_memory_on_fuse_is_refused_and_its_server_not_asked() {
    let daemon = PROGRAM.start(&["-c", "2"]);
    let fuse = Fuse::mount(daemon.path("fuse"));
    let file = fuse.open();
    fuse.asked();
    let held = fuse.hold_flush();
    let frontend = give(&daemon, "s0", &file);
    let mut asked = Vec::new();
    let mut wait_for = |opcode: u32| {
        wait_until(
            || {
                asked.extend(fuse.asked());
                asked.contains(&opcode)
            },
            || format!("FUSE opcode {opcode}"),
        );
        // Nothing but the end of a file descriptor.
        let mut others = asked.iter();
        assert!(
            others.all(|opcode| [FUSE_FLUSH, FUSE_RELEASE].contains(opcode)),
            "the server was asked: {asked:?}"
        );
    };
    wait_for(FUSE_FLUSH);
    // The other guest is served while this one's thread waits for the end.
    assert_eq!(request(&mut daemon.guest("s1", options()), 8).len(), 8);
    drop(frontend);
    drop(held);
    daemon.wait_for_log("--memory-fs any");
    // And so is this one's next front-end.
    assert_eq!(request(&mut daemon.guest("s0", options()), 8).len(), 8);
    drop(file);
    wait_for(FUSE_RELEASE);
    daemon.stop();
}
