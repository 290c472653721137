//! The device on a ring of its own: no socket, no session, no clock.

use std::io::ErrorKind;
use std::sync::Mutex;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_device_driver::Buffer;
use vhost_device_rig::Rig;

use super::*;
use crate::host::sim::{Sim, Step, expected};
use crate::quota::{Bucket, Limit};

const RING_SIZE: u16 = 128;
const ROOM: u64 = 16 << 20;

/// A guest with a ring, and the device on its other side.
struct Bench {
    rig: Rig,
    source: Arc<Sim>,
    device: Entropy<Sim>,
}

fn device(source: &Arc<Sim>, bucket: Option<&Arc<Mutex<Bucket>>>) -> Entropy<Sim> {
    let lease = bucket.cloned().map(Lease::new);
    Entropy::new(
        "guest 0".to_owned(),
        Arc::clone(source),
        lease,
        Logs::default(),
    )
    .unwrap()
}

impl Bench {
    fn new(source: Sim) -> Self {
        let source = Arc::new(source);
        let device = device(&source, None);
        Self::with_device(source, device)
    }

    fn with_device(source: Arc<Sim>, device: Entropy<Sim>) -> Self {
        Self {
            rig: Rig::new(1, RING_SIZE, ROOM),
            source,
            device,
        }
    }

    fn buffer(&mut self, length: u32) -> u64 {
        self.rig.alloc(length as usize)
    }

    /// Makes a request of these buffers available, and has the device look.
    fn submit_buffers(&mut self, buffers: &[Buffer]) {
        self.rig.rings[0].add(buffers).unwrap();
        let bad = self.rig.serve(0, |request| self.device.take(request));
        assert_eq!(bad, []);
    }

    /// A request for `length` bytes; returns where they will be.
    fn submit(&mut self, length: u32) -> u64 {
        let address = self.buffer(length);
        self.submit_buffers(&[Buffer::writable(address, length)]);
        address
    }

    /// The timer has fired.
    fn wake(&mut self) {
        self.rig.resume(|back| self.device.retry(back, Wake::Timer));
    }

    fn used(&mut self) -> Vec<u32> {
        self.rig.used(0)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        self.rig.guest.read_vec(address, length)
    }

    /// Whether the device will be woken, sooner or later.
    fn is_armed(&self) -> bool {
        self.device.timer.is_running() || has_fired(&self.device)
    }
}

fn has_fired(device: &Entropy<Sim>) -> bool {
    let mut fds = [PollFd::new(&device.timer, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn e1_a_request_is_filled() {
    for plentiful in [true, false] {
        for length in [1, 2, 63, 64, 255, 256, 257, 4096, 5000, 65_536] {
            let mut bench = Bench::new(Sim::new(plentiful));
            let address = bench.submit(length);
            assert_eq!(bench.used(), [length]);
            let length = length as usize;
            assert_eq!(
                bench.bytes(address, length + 1)[..length],
                expected(0, length)
            );
            assert_eq!(
                bench.bytes(address + length as u64, 1),
                [0],
                "beyond the buffer"
            );
        }
    }
}

#[test]
fn e1_a_source_of_all_guests_is_not_read_into_the_memory_of_one() {
    // The kernel would hold the file's lock while the guest's pages come. A read of all pieces at
    // once is one into memory of the device's own.
    for (plentiful, reads) in [(false, vec![700]), (true, vec![300, 400])] {
        let mut bench = Bench::new(Sim::new(plentiful));
        let (one, two) = (bench.buffer(300), bench.buffer(400));
        bench.submit_buffers(&[Buffer::writable(one, 300), Buffer::writable(two, 400)]);
        assert_eq!(bench.used(), [700]);
        assert_eq!(bench.source.reads(), reads);
        assert_eq!(bench.bytes(one, 300), expected(0, 300));
        assert_eq!(bench.bytes(two, 400), expected(300, 400));
        assert!(bench.device.copy.iter().all(|&byte| byte == 0), "wiped");
    }
}

#[test]
fn e1_no_byte_is_given_twice() {
    let mut bench = Bench::new(Sim::new(true));
    let lengths = [64, 1, 256, 100, 3];
    let mut from = 0;
    for length in lengths.into_iter().cycle().take(100) {
        let address = bench.submit(length);
        let length = length as usize;
        assert_eq!(bench.bytes(address, length), expected(from, length));
        from += length;
        bench.used();
    }
}

#[test]
fn e1_a_short_read_answers_with_less() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(5), Step::Give(0)]);
    let address = bench.submit(64);
    assert_eq!(bench.used(), [5]);
    assert_eq!(bench.bytes(address, 6), [0, 1, 2, 3, 4, 0]);
}

#[test]
fn e1_an_error_after_some_bytes_answers_with_those() {
    let mut bench = Bench::new(Sim::new(false));
    bench
        .source
        .script(&[Step::Give(10), Step::Fail(ErrorKind::Other)]);
    let (one, two) = (bench.buffer(10), bench.buffer(10));
    bench.submit_buffers(&[Buffer::writable(one, 10), Buffer::writable(two, 10)]);
    assert_eq!(bench.used(), [10]);
}

#[test]
fn e1_a_dry_source_never_answers_with_nothing() {
    let dry = [
        Step::Give(0),
        Step::Fail(ErrorKind::WouldBlock),
        Step::Fail(ErrorKind::Other),
    ];
    for plentiful in [true, false] {
        for step in dry {
            let mut bench = Bench::new(Sim::new(plentiful));
            bench.source.script(&[step, step]);
            let address = bench.submit(8);
            assert!(bench.used().is_empty(), "{step:?}");
            assert!(bench.is_armed());
            bench.wake();
            assert!(bench.used().is_empty(), "{step:?}");
            assert!(bench.is_armed());
            bench.wake();
            assert_eq!(bench.used(), [8], "{step:?}");
            assert_eq!(bench.bytes(address, 8), expected(0, 8));
            assert!(!bench.is_armed());
        }
    }
}

#[test]
fn test_a_dry_source_is_tried_less_and_less_often() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0); 10]);
    bench.submit(8);
    let mut delays = Vec::new();
    for _ in 0..9 {
        bench.wake();
        delays.push(bench.device.dry.unwrap());
    }
    assert_eq!(delays[0], FIRST_RETRY * 4);
    assert!(delays.is_sorted());
    assert_eq!(delays[8], LAST_RETRY);
    bench.wake();
    assert_eq!(bench.device.dry, None, "as new once it gives again");
}

#[test]
fn test_requests_wait_in_order() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0), Step::Give(0)]);
    let buffers: Vec<_> = (1..=5)
        .map(|length| (bench.submit(length), length))
        .collect();
    assert_eq!(bench.source.reads(), [1], "only the first tries the source");
    bench.wake();
    assert_eq!(bench.source.reads(), [1]);
    assert!(bench.used().is_empty());
    bench.wake();
    assert_eq!(bench.used(), [1, 2, 3, 4, 5]);
    let mut from = 0;
    for (address, length) in buffers {
        assert_eq!(
            bench.bytes(address, length as usize),
            expected(from, length as usize)
        );
        from += length as usize;
    }
}

#[test]
fn test_many_waiting_requests_leave_room_for_other_business() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0)]);
    for _ in 0..MAX_RESUMED + 10 {
        bench.submit(1);
    }
    bench.wake();
    assert_eq!(bench.used().len(), MAX_RESUMED);
    assert!(bench.is_armed());
    bench.wake();
    assert_eq!(bench.used().len(), 10);
    assert!(!bench.is_armed());
}

#[test]
fn test_large_waiting_requests_leave_room_too() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0)]);
    let length = 64 * 1024;
    let enough = MAX_RESUMED_BYTES / length;
    for _ in 0..enough + 1 {
        bench.submit(length as u32);
    }
    bench.wake();
    assert_eq!(bench.used().len(), enough);
    assert!(bench.is_armed());
    bench.wake();
    assert_eq!(bench.used().len(), 1);
}

#[test]
fn r1_any_layout_of_the_buffers_will_do() {
    let mut bench = Bench::new(Sim::new(true));
    for sizes in [&[1, 1, 1][..], &[5, 300, 2], &[4000, 4000], &[1; 60]] {
        let buffers: Vec<_> = sizes
            .iter()
            .map(|&size| Buffer::writable(bench.buffer(size), size))
            .collect();
        bench.submit_buffers(&buffers);
        assert_eq!(bench.used(), [sizes.iter().sum::<u32>()]);
    }
}

#[test]
fn r1_readable_buffers_are_passed_over() {
    let mut bench = Bench::new(Sim::new(true));
    let (readable, writable) = (bench.buffer(16), bench.buffer(16));
    bench.submit_buffers(&[
        Buffer::readable(readable, 16),
        Buffer::writable(writable, 16),
    ]);
    assert_eq!(bench.used(), [16]);
    assert_eq!(bench.bytes(readable, 16), [0; 16]);
    assert_eq!(bench.bytes(writable, 16), expected(0, 16));
}

#[test]
fn test_a_request_without_room_goes_back_empty() {
    let mut bench = Bench::new(Sim::new(true));
    let readable = bench.buffer(16);
    bench.submit_buffers(&[Buffer::readable(readable, 16)]);
    bench.submit(4);
    assert_eq!(bench.used(), [0, 4]);
}

#[test]
fn test_a_large_request_is_cut() {
    let mut bench = Bench::new(Sim::new(true));
    bench.submit(MAX_ANSWER as u32 + 1);
    assert_eq!(bench.used(), [MAX_ANSWER as u32]);
    assert_eq!(bench.source.reads(), [MAX_ANSWER]);
}

#[test]
fn test_small_requests_of_a_plentiful_source_share_a_read() {
    let mut bench = Bench::new(Sim::new(true));
    for _ in 0..64 {
        bench.submit(64);
    }
    assert_eq!(bench.source.reads(), [4096]);
    bench.submit(257);
    assert_eq!(bench.source.reads(), [257]);
}

#[test]
fn test_nothing_is_fetched_in_advance_from_a_source_that_may_run_dry() {
    let mut bench = Bench::new(Sim::new(false));
    bench.submit(3);
    assert_eq!(bench.source.reads(), [3]);
}

#[test]
fn test_reset_forgets_the_stock() {
    let mut bench = Bench::new(Sim::new(true));
    bench.submit(1);
    bench.device.reset();
    let address = bench.submit(1);
    assert_eq!(bench.source.reads(), [4096, 4096]);
    assert_eq!(bench.bytes(address, 1), expected(4096, 1));
}

#[test]
fn test_a_stopped_queue_leaves_nothing_behind() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0)]);
    bench.submit(1);
    bench.device.queue_stopped(0);
    assert!(bench.device.waiting.is_empty());
    assert!(!bench.is_armed());
    bench.wake();
    bench.submit(7);
    assert_eq!(bench.used(), [0, 7]);
}

#[test]
fn test_a_request_of_a_ring_that_is_gone_is_passed_over() {
    let mut bench = Bench::new(Sim::new(false));
    bench.source.script(&[Step::Give(0)]);
    bench.submit(1);
    bench.rig.replace_queue(0);
    bench.wake();
    assert!(bench.device.waiting.is_empty());
    assert!(bench.used().is_empty());
}

fn limited(max_bytes: u64) -> (Bench, Arc<Mutex<Bucket>>) {
    let source = Arc::new(Sim::new(true));
    let limit = Limit {
        max_bytes,
        period: Duration::from_secs(1),
    };
    let bucket = Arc::new(Mutex::new(Bucket::new(limit, source.now())));
    let device = device(&source, Some(&bucket));
    (Bench::with_device(source, device), bucket)
}

#[test]
fn test_a_guest_gets_its_quota_and_then_waits() {
    let (mut bench, _) = limited(100);
    bench.submit(64);
    bench.submit(300);
    bench.submit(10);
    bench.submit(1);
    assert_eq!(bench.used(), [64]);
    assert!(bench.is_armed());
    bench.source.pass(Duration::from_millis(280));
    bench.wake();
    assert_eq!(bench.used(), [64], "64 of 300 bytes, and those behind wait");
    bench.source.pass(Duration::from_millis(100));
    bench.wake();
    assert_eq!(bench.used(), [10]);
    bench.source.pass(Duration::from_millis(10));
    bench.wake();
    assert_eq!(bench.used(), [1]);
    assert!(!bench.is_armed());
}

#[test]
fn test_only_what_was_given_is_charged() {
    let (mut bench, _) = limited(100);
    bench.source.script(&[Step::Give(0)]);
    bench.submit(100);
    assert!(bench.used().is_empty());
    bench.wake();
    assert_eq!(bench.used(), [100]);
}

#[test]
fn test_a_guest_that_reconnects_wins_nothing() {
    let (mut bench, bucket) = limited(100);
    bench.submit(100);
    assert_eq!(bench.used(), [100]);
    let source = Arc::clone(&bench.source);
    drop(bench);
    let device = device(&source, Some(&bucket));
    let mut bench = Bench::with_device(source, device);
    bench.submit(100);
    assert!(bench.used().is_empty());
}

#[test]
fn test_no_time_is_asked_for_without_a_limit() {
    let mut bench = Bench::new(Sim::new(true));
    assert!(bench.device.lease.is_none());
    bench.submit(1);
    assert_eq!(bench.used(), [1]);
    assert!(bench.source.now() <= Instant::now());
}
