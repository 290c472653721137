//! Daemons that are killed while a guest waits for entropy: the next one goes on where the last one
//! was, as a front-end that keeps the region for requests in flight can have it.

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use support::{PROGRAM, options};
use vhost_device_driver::guest::{Queue, RingDriver};
use vhost_device_driver::protocol::{DescStatePacked, DescStateSplit};
use vhost_device_driver::{Buffer, PackedRing, Ring, SplitRing, Used};
use vhost_device_rig::Daemon;
use vhost_device_rig::program::{DEADLINE, wait_until};

/// More than this a guest does not get from one daemon.
const QUOTA: [&str; 4] = ["--max-bytes", "100", "--period", "65536"];

/// How many requests the region has in flight.
fn in_flight(region: &OwnedFd, entry: usize) -> usize {
    let file = File::from(region.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    // The head of either kind of region is as long as an entry, which begins with the flag.
    let entries = bytes[entry..].chunks_exact(entry);
    entries.filter(|entry| entry[0] == 1).count()
}

fn submit<R: Ring>(driver: &mut RingDriver<R>, length: u32) -> u64 {
    let address = driver.alloc(length.into());
    let queue: &mut Queue<R> = &mut driver.queues[0];
    queue.submit(&[Buffer::writable(address, length)]).unwrap();
    queue.notify();
    address
}

fn the_next_daemon_goes_on<R: Ring>(entry: usize) {
    let kill = |mut daemon: Daemon| {
        daemon.signal(Signal::KILL);
        daemon.wait();
    };
    let mut daemon = PROGRAM.start(&QUOTA);
    let mut guest = RingDriver::<R>::connect(daemon.path("s"), options().track_inflight()).unwrap();
    for _ in 0..5 {
        // All that there is, and more.
        let first = submit(&mut guest, 100);
        let Used { len, .. } = guest.queues[0].wait_used(DEADLINE);
        assert_eq!(len, 100);
        guest.memory.fill(first, 100, 0);
        let waiting = [20, 30, 50].map(|length| (submit(&mut guest, length), length));
        let (_, region) = guest.inflight.as_ref().unwrap();
        let count = || in_flight(region, entry);
        wait_until(|| count() == 3, || format!("{} are in flight", count()));

        kill(daemon);
        daemon = PROGRAM.start(&QUOTA);
        let stream = UnixStream::connect(daemon.path("s")).unwrap();
        let bases = guest.bases_after_a_loss();
        guest.reconnect(stream, &bases).unwrap();
        for (address, length) in waiting {
            let Used { len, .. } = guest.queues[0].wait_used(DEADLINE);
            assert_eq!(len, length, "in their order");
            let bytes = guest.memory.read_vec(address, length as usize);
            assert_ne!(bytes, vec![0; length as usize]);
        }
        assert_eq!(guest.memory.read_vec(first, 100), [0; 100], "done again");
        // And a daemon with another hundred.
        kill(daemon);
        daemon = PROGRAM.start(&QUOTA);
        let stream = UnixStream::connect(daemon.path("s")).unwrap();
        let bases = guest.bases_after_a_loss();
        guest.reconnect(stream, &bases).unwrap();
    }
    daemon.stop();
}

#[test]
fn v10_the_next_daemon_goes_on_on_a_split_ring() {
    the_next_daemon_goes_on::<SplitRing>(size_of::<DescStateSplit>());
}

#[test]
fn v10_the_next_daemon_goes_on_on_a_packed_ring() {
    the_next_daemon_goes_on::<PackedRing>(size_of::<DescStatePacked>());
}
