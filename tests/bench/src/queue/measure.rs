//! The measurements: a driver fills the ring, a device empties it, and only the device is timed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, GuestMemory, PackedRing, Ring, SplitRing};

use super::sides::{Bare, Device, Locked, Ours, Place};

/// The ring: room for the largest batch of the longest chains.
pub(super) const SIZE: u16 = 1024;
/// How many chains are there when the device begins.
pub(super) const CHAINS: usize = 128;
pub(super) const RING: u64 = 0x10_0000;
const RING_ROOM: u64 = 0x1_0000;
/// Where the regions of the buffers are, and how long each is.
pub(super) const DATA: u64 = 0x1000_0000;
const REGION: u64 = 0x10_0000;
/// For each chain: its table, and its buffers.
const SLOT: u64 = 0x400;
const BUFFER: u32 = 64;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// How many descriptors a chain has.
    pub(super) descriptors: usize,
    pub(super) indirect: bool,
    /// How many chains are taken before the driver is shown the answers.
    pub(super) batch: usize,
    /// Over how many regions the buffers are spread.
    pub(super) regions: usize,
    pub(super) event_idx: bool,
}

/// All shapes.
pub(super) fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for event_idx in [true, false] {
        for regions in [1, 8] {
            for (descriptors, indirect) in [
                (1, false),
                (2, false),
                (8, false),
                (1, true),
                (2, true),
                (8, true),
            ] {
                for batch in [1, 16, 128] {
                    shapes.push(Shape {
                        descriptors,
                        indirect,
                        batch,
                        regions,
                        event_idx,
                    });
                }
            }
        }
    }
    shapes
}

/// Nanoseconds for a chain, of each side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) split: f64,
    pub(super) packed: f64,
    pub(super) bare: f64,
    pub(super) locked: f64,
}

/// A shape's rounds.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) shape: Shape,
    pub(super) rounds: Vec<Times>,
}

/// Measures all sides in turn, in each round, every other one backwards.
pub(super) fn take(rounds: usize, cell: Duration) -> Result<Vec<Measured>> {
    shapes()
        .into_iter()
        .map(|shape| {
            let rounds = (0..rounds).map(|round| measure(shape, round, cell));
            Ok(Measured {
                shape,
                rounds: rounds.collect::<Result<_>>()?,
            })
        })
        .collect()
}

fn measure(shape: Shape, round: usize, cell: Duration) -> Result<Times> {
    sides_in_turn(round, |side| match side {
        0 => time::<SplitRing, _>(shape, cell, |place| Ours::new(place, false)),
        1 => time::<PackedRing, _>(shape, cell, |place| Ours::new(place, true)),
        2 => time::<SplitRing, _>(shape, cell, Bare::new),
        _ => time::<SplitRing, _>(shape, cell, Locked::new),
    })
}

/// Measures the sides by their numbers, in odd rounds backwards.
pub(super) fn sides_in_turn(
    round: usize,
    mut time: impl FnMut(usize) -> Result<f64>,
) -> Result<Times> {
    let mut times = [0.0; 4];
    let mut order = [0, 1, 2, 3];
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    for side in order {
        times[side] = time(side)?;
    }
    let [split, packed, bare, locked] = times;
    Ok(Times {
        split,
        packed,
        bare,
        locked,
    })
}

/// A ring, a driver that fills it, and the device that empties it.
pub(super) struct Loop<R, D> {
    ring: R,
    device: D,
    shape: Shape,
    requests: Vec<(u64, Vec<Buffer>)>,
    _memory: GuestMemory,
}

impl<R: Ring, D> Loop<R, D> {
    pub(super) fn new(shape: Shape, make: impl FnOnce(Place<'_>) -> Result<D>) -> Result<Self> {
        let memory = memory(shape.regions);
        let layout = R::place_at(RING, SIZE);
        let ring = R::create(&memory, layout, SIZE, shape.event_idx);
        let device = make(Place {
            memory: &memory,
            layout,
            size: SIZE,
            event_idx: shape.event_idx,
        })?;
        Ok(Self {
            ring,
            device,
            shape,
            requests: (0..CHAINS).map(|n| buffers(shape, n)).collect(),
            _memory: memory,
        })
    }

    /// Fills the ring with [`CHAINS`], lets `work` empty it, which returns how many bytes there
    /// were, and takes the answers. How long `work` took.
    pub(super) fn turn(&mut self, work: impl FnOnce(&mut D) -> u64) -> Result<Duration> {
        let shape = self.shape;
        fill(&mut self.ring, shape, &self.requests);
        let start = Instant::now();
        let bytes = work(&mut self.device);
        let spent = start.elapsed();
        let expected = (CHAINS * shape.descriptors) as u64 * u64::from(BUFFER);
        ensure!(
            bytes == expected,
            "{bytes} bytes, not {expected}: {shape:?}"
        );
        while self.ring.pop_used().is_some() {}
        ensure!(self.ring.outstanding() == 0, "not every chain came back");
        Ok(spent)
    }
}

/// Empties the ring of [`CHAINS`] in batches. How many bytes there were.
#[inline]
pub(super) fn empty<D: Device>(device: &mut D, batch: usize) -> u64 {
    (0..CHAINS / batch).map(|_| device.run(batch)).sum()
}

/// Nanoseconds for a chain.
fn time<R: Ring, D: Device>(
    shape: Shape,
    cell: Duration,
    make: impl FnOnce(Place<'_>) -> Result<D>,
) -> Result<f64> {
    let mut ring = Loop::<R, D>::new(shape, make)?;
    let mut spent = Duration::ZERO;
    let mut chains = 0u32;
    // The first times are for the caches and the branch predictors.
    for warm in [true, false] {
        (spent, chains) = (Duration::ZERO, 0);
        let limit = if warm { cell / 4 } else { cell };
        while spent < limit {
            spent += ring.turn(|device| empty(device, shape.batch))?;
            chains += CHAINS as u32;
        }
    }
    Ok(spent.as_secs_f64() * 1e9 / f64::from(chains))
}

/// Memory for the ring, and regions for buffers.
pub(super) fn memory(regions: usize) -> GuestMemory {
    let data = (0..regions as u64).map(|n| RegionSpec::new(DATA + 2 * n * REGION, REGION));
    let ring = RegionSpec::new(RING, RING_ROOM);
    GuestMemory::with_regions(&[ring].into_iter().chain(data).collect::<Vec<_>>())
}

/// The table of chain `number`, and its buffers: half of them to read, and one region after the
/// other.
fn buffers(shape: Shape, number: usize) -> (u64, Vec<Buffer>) {
    let slot = number as u64 * SLOT;
    let region = |n: usize| DATA + 2 * REGION * (n % shape.regions) as u64;
    let buffers = (0..shape.descriptors).map(|n| {
        let addr = region(number + n) + slot + 0x100 + n as u64 * u64::from(BUFFER);
        if 2 * n + 1 < shape.descriptors {
            Buffer::readable(addr, BUFFER)
        } else {
            Buffer::writable(addr, BUFFER)
        }
    });
    (region(number) + slot, buffers.collect())
}

fn fill<R: Ring>(ring: &mut R, shape: Shape, requests: &[(u64, Vec<Buffer>)]) {
    for (table, buffers) in requests {
        let added = if shape.indirect {
            ring.add_indirect(*table, buffers)
        } else {
            ring.add(buffers)
        };
        added.expect("the ring has room for all");
    }
    ring.publish();
}
