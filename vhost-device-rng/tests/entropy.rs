//! The entropy device in its daemon, with a guest on the other side of the socket.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::{PROGRAM, answer, options, request, submit, submit_buffers};
use tempfile::TempDir;
use vhost_device_driver::Buffer;
use vhost_device_rig::Daemon;
use vhost_device_rig::program::DEADLINE;

fn is_random(bytes: &[u8]) -> bool {
    let mut seen = bytes.to_vec();
    seen.sort_unstable();
    seen.dedup();
    seen.len() > 100.min(bytes.len() / 4)
}

fn with_file(content: &[u8]) -> (TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    fs::write(&path, content).unwrap();
    let daemon = PROGRAM.start(&["-f", path.to_str().unwrap()]);
    (directory, daemon)
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn e1_every_request_is_filled_with_random_bytes() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    let mut last = Vec::new();
    for length in [1, 2, 16, 64, 255, 256, 257, 4096, 65_536] {
        let bytes = request(&mut guest, length);
        assert_eq!(bytes.len(), length as usize);
        assert!(bytes.len() < 16 || is_random(&bytes), "{bytes:?}");
        assert!(bytes.len() < 16 || !bytes.starts_with(&last), "given twice");
        last = bytes[..bytes.len().min(16)].to_vec();
    }
    drop(guest);
    daemon.stop();
}

#[test]
fn e1_the_kernels_generator_is_known_by_its_files() {
    for path in ["/dev/random", "/dev/urandom"] {
        let daemon = PROGRAM.start(&["--filename", path]);
        assert!(is_random(&request(&mut daemon.guest("s", options()), 4096)));
    }
}

#[test]
fn e1_a_ring_full_of_requests_is_answered() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    for _ in 0..100 {
        guest.arena.clear();
        for length in 1..=64 {
            submit(&mut guest, length);
        }
        for length in 1..=64 {
            assert_eq!(answer(&mut guest), length);
        }
    }
}

#[test]
fn r1_any_layout_of_the_buffers_will_do() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    for sizes in [&[1, 1, 1][..], &[5, 300, 2], &[4000, 4000], &[3; 60]] {
        guest.arena.clear();
        let readable = Buffer::readable(guest.alloc(16), 16);
        let writable = sizes.iter().map(|&size| (guest.alloc(size), size));
        let writable: Vec<_> = writable.collect();
        let buffers = writable
            .iter()
            .map(|&(address, size)| Buffer::writable(address, size as u32));
        let buffers: Vec<_> = [readable].into_iter().chain(buffers).collect();
        submit_buffers(&mut guest, &buffers);
        assert_eq!(answer(&mut guest), sizes.iter().sum::<u64>() as usize);
        let bytes: Vec<_> = writable
            .iter()
            .flat_map(|&(address, size)| guest.memory.read_vec(address, size as usize))
            .collect();
        assert!(bytes.len() < 16 || is_random(&bytes), "{bytes:?}");
    }
}

#[test]
fn r5_indirect_descriptors_will_do() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    let table = guest.alloc(16 * 4);
    let buffers: Vec<_> = (0..4)
        .map(|_| Buffer::writable(guest.alloc(100), 100))
        .collect();
    let queue = &mut guest.queues[0];
    queue.ring.add_indirect(table, &buffers).unwrap();
    queue.ring.publish();
    queue.notify();
    assert_eq!(answer(&mut guest), 400);
}

#[test]
fn test_a_request_without_room_goes_back_empty() {
    let daemon = PROGRAM.start(&[]);
    let mut guest = daemon.guest("s", options());
    let readable = guest.alloc(16);
    submit_buffers(&mut guest, &[Buffer::readable(readable, 16)]);
    assert_eq!(answer(&mut guest), 0);
    assert_eq!(request(&mut guest, 8).len(), 8);
    daemon.wait_for_log("without room");
}

#[test]
fn e1_a_file_is_read_to_its_end_and_then_waited_for() {
    let (directory, daemon) = with_file(b"0123456789");
    let mut guest = daemon.guest("s", options());
    assert_eq!(request(&mut guest, 8), b"01234567");
    assert_eq!(request(&mut guest, 8), b"89");
    guest.arena.clear();
    let (first, second) = (submit(&mut guest, 3), submit(&mut guest, 8));
    daemon.wait_for_log("is at its end");
    append(&directory.path().join("source"), b"abcdef");
    assert_eq!(answer(&mut guest), 3);
    assert_eq!(guest.memory.read_vec(first, 3), b"abc");
    assert_eq!(answer(&mut guest), 3);
    assert_eq!(guest.memory.read_vec(second, 3), b"def");
}

#[test]
fn v2_a_request_that_waits_is_taken_up_again_after_a_stop() {
    let (directory, daemon) = with_file(b"x");
    let mut guest = daemon.guest("s", options());
    assert_eq!(request(&mut guest, 1), b"x");
    let address = submit(&mut guest, 4);
    daemon.wait_for_log("is at its end");
    let base = guest.stop(0).unwrap();
    assert_eq!(base, 1, "the second request is still to be done");
    append(&directory.path().join("source"), b"wxyz");
    guest.resume(0, base).unwrap();
    assert_eq!(answer(&mut guest), 4);
    assert_eq!(guest.memory.read_vec(address, 4), b"wxyz");
}

#[test]
fn e1_a_fifo_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let daemon = PROGRAM.start(&["-f", path.to_str().unwrap()]);
    let mut guest = daemon.guest("s", options());

    // Nobody writes yet: the end of the source.
    submit(&mut guest, 4);
    daemon.wait_for_log("is at its end");
    let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"abcd").unwrap();
    assert_eq!(answer(&mut guest), 4);

    // A writer that is silent: nothing yet.
    for _ in 0..100 {
        submit(&mut guest, 4);
        guest.frontend.sync().unwrap();
        writer.write_all(b"ef").unwrap();
        assert_eq!(answer(&mut guest), 2);
    }

    // The writer leaves while a request waits, and another comes.
    submit(&mut guest, 4);
    guest.frontend.sync().unwrap();
    drop(writer);
    let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"gh").unwrap();
    assert_eq!(answer(&mut guest), 2);
}

#[test]
fn test_guests_share_a_file_and_no_byte_is_given_twice() {
    let content: Vec<u8> = (0..=255).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    fs::write(&path, &content).unwrap();
    let daemon = PROGRAM.start(&["-c", "4", "-f", path.to_str().unwrap()]);
    let mut guests: Vec<_> = (0..4)
        .map(|n| daemon.guest(&format!("s{n}"), options()))
        .collect();
    let mut all = Vec::new();
    for _ in 0..16 {
        for guest in &mut guests {
            all.extend(request(guest, 4));
        }
    }
    all.sort_unstable();
    assert_eq!(all, content);
}

#[test]
fn test_a_limited_guest_is_served_in_order_and_never_with_nothing() {
    // A period so short that the test need not wait, long enough that requests do.
    let daemon = PROGRAM.start(&["--max-bytes", "64", "--period", "20"]);
    let mut guest = daemon.guest("s", options());
    let mut heads = Vec::new();
    for length in [64, 10, 1, 64, 100, 3, 64, 1000] {
        let address = guest.alloc(length.into());
        let buffer = [Buffer::writable(address, length)];
        heads.push((guest.queues[0].submit(&buffer).unwrap(), length));
    }
    guest.queues[0].notify();
    for (head, length) in heads {
        let used = guest.queues[0].wait_used(DEADLINE);
        assert_eq!(used.head, head);
        assert!((1..=length.min(64)).contains(&used.len), "{used:?}");
    }
}

#[test]
fn test_a_guest_gets_its_quota_and_a_reconnect_wins_nothing() {
    // A period so long that nothing comes back during the test.
    let daemon = PROGRAM.start(&["-c", "2", "-m", "100", "-p", "86400000"]);
    let mut guest = daemon.guest("s0", options());
    assert_eq!(request(&mut guest, 60).len(), 60);
    assert_eq!(request(&mut guest, 40).len(), 40);
    for _ in 0..3 {
        drop(guest);
        guest = daemon.guest("s0", options());
        submit(&mut guest, 40);
        guest.frontend.sync().unwrap();
        assert!(!guest.queues[0].ring.has_used());
    }
    let mut other = daemon.guest("s1", options());
    assert_eq!(request(&mut other, 64).len(), 64, "each guest has its own");
    drop((guest, other));
    daemon.stop();
}
