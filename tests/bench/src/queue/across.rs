//! Driver and device on two CPUs: how many chains go over in a second, beside what the cache lines
//! cost that must move for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use vhost_device_driver::{Buffer, GuestMemory, PackedRing, Ring, SplitRing};

use super::measure::{DATA, RING, SIZE, Times, memory, sides_in_turn};
use super::sides::{Bare, Device, Locked, Ours, Place};
use crate::cpus::Cpus;

/// How many chains the driver keeps there, and how many the device takes at once.
const OUTSTANDING: u16 = 256;
const BATCH: usize = 64;

/// A round: nanoseconds for a chain of each side, and for a cache line there and back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) times: Times,
    pub(super) line: f64,
}

/// Measures all sides in turn, in each round.
pub(super) fn take(rounds: usize, cell: Duration, cpus: &Cpus) -> Result<Vec<Round>> {
    (0..rounds)
        .map(|round| {
            let times = sides_in_turn(round, |side| match side {
                0 => time::<SplitRing, _>(cell, cpus, |place| Ours::new(place, false)),
                1 => time::<PackedRing, _>(cell, cpus, |place| Ours::new(place, true)),
                2 => time::<SplitRing, _>(cell, cpus, Bare::new),
                _ => time::<SplitRing, _>(cell, cpus, Locked::new),
            })?;
            let line = ping_pong(cell, cpus)?;
            Ok(Round { times, line })
        })
        .collect()
}

/// Runs `device` on the one CPU for as long as `driver` runs on the other.
fn beside<T>(
    cpus: &Cpus,
    mut device: impl FnMut() + Send,
    driver: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            cpus.for_daemons(|| {
                while !done.load(Ordering::Relaxed) {
                    device();
                }
                Ok(())
            })
        });
        let result = cpus.for_driver(driver);
        done.store(true, Ordering::Relaxed);
        other.join().expect("the device does not panic")?;
        result
    })
}

/// Nanoseconds for a chain.
fn time<R: Ring, D: Device + Send>(
    cell: Duration,
    cpus: &Cpus,
    make: impl FnOnce(Place<'_>) -> Result<D>,
) -> Result<f64> {
    let memory: GuestMemory = memory(1);
    let layout = R::place_at(RING, SIZE);
    let mut ring = R::create(&memory, layout, SIZE, true);
    let mut device = make(Place {
        memory: &memory,
        layout,
        size: SIZE,
        event_idx: true,
    })?;
    let buffer = [Buffer::writable(DATA, 64)];
    let run = || {
        device.run(BATCH);
        std::hint::spin_loop();
    };
    beside(cpus, run, || {
        ring.disarm_calls();
        let mut chains = 0u64;
        let mut start = Instant::now();
        let mut warm = false;
        loop {
            for _ in 0..100 {
                while ring.outstanding() < OUTSTANDING {
                    ring.add(&buffer).expect("the ring is longer");
                }
                ring.publish();
                while ring.pop_used().is_some() {
                    chains += 1;
                }
            }
            if !warm && start.elapsed() >= cell / 4 {
                (warm, chains, start) = (true, 0, Instant::now());
            }
            // On a busy machine the other CPU may be somebody else's for a while.
            if warm && start.elapsed() >= cell && chains > 0 {
                break;
            }
        }
        let spent = start.elapsed();
        Ok(spent.as_secs_f64() * 1e9 / chains as f64)
    })
}

/// Nanoseconds for a cache line to go to the other CPU and back.
fn ping_pong(cell: Duration, cpus: &Cpus) -> Result<f64> {
    #[repr(align(128))]
    struct Line(AtomicU64);
    let (there, back) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let answer = || {
        let number = there.0.load(Ordering::Acquire);
        back.0.store(number, Ordering::Release);
    };
    beside(cpus, answer, || {
        let mut number = 0u64;
        let start = Instant::now();
        while start.elapsed() < cell {
            for _ in 0..100 {
                number += 1;
                there.0.store(number, Ordering::Release);
                while back.0.load(Ordering::Acquire) != number {
                    std::hint::spin_loop();
                }
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / number as f64)
    })
}
