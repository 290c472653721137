//! The measurements: a driver fills the ring, a device empties it, and only the device is timed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, GuestMemory, Ring};

use super::sides::{Device, Place, Side, Sides, Work};

/// The ring: room for the largest batch of the longest chains.
pub(super) const SIZE: u16 = 1024;
/// How many chains are there when the device begins.
pub(super) const CHAINS: usize = 128;
pub(super) const RING: u64 = 0x10_0000;
const RING_ROOM: u64 = 0x1_0000;
/// Where a device may have another one.
pub(super) const SECOND_RING: u64 = RING + RING_ROOM / 2;
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

/// Figures for a chain: of each side that has any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures([Option<f64>; Side::ALL.len()]);

impl Figures {
    pub(super) fn of(&self, side: Side) -> Option<f64> {
        self.0[side as usize]
    }

    pub(super) fn set(&mut self, side: Side, figure: f64) {
        self.0[side as usize] = Some(figure);
    }
}

/// A shape's rounds.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) shape: Shape,
    pub(super) rounds: Vec<Figures>,
}

/// Measures all sides in turn, in each round, every other one backwards.
pub(super) fn take(rounds: usize, cell: Duration, sides: &Sides) -> Result<Vec<Measured>> {
    shapes()
        .into_iter()
        .map(|shape| {
            let rounds = (0..rounds).map(|round| {
                sides_in_turn(round, sides.of(shape.regions), |side| {
                    sides.work(side, Alone { shape, cell })
                })
            });
            Ok(Measured {
                shape,
                rounds: rounds.collect::<Result<_>>()?,
            })
        })
        .collect()
}

/// Measures the sides in this order, in odd rounds backwards.
pub(super) fn sides_in_turn(
    round: usize,
    sides: impl Iterator<Item = Side>,
    mut measure: impl FnMut(Side) -> Result<f64>,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut order: Vec<_> = sides.collect();
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    for side in order {
        figures.set(side, measure(side)?);
    }
    Ok(figures)
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
struct Alone {
    shape: Shape,
    cell: Duration,
}

impl Work for Alone {
    type Output = f64;

    fn on<R: Ring, D: Device>(self, make: impl FnOnce(Place<'_>) -> Result<D>) -> Result<f64> {
        let Self { shape, cell } = self;
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn odd_rounds_go_backwards() {
        let sides = [Side::Split, Side::Bare, Side::RteSplit];
        for (round, expected) in [(0, [0.0, 1.0, 2.0]), (1, [2.0, 1.0, 0.0])] {
            let seen = RefCell::new(0.0);
            let figures = sides_in_turn(round, sides.into_iter(), |_| {
                Ok(seen.replace_with(|seen| *seen + 1.0))
            });
            let figures = figures.unwrap();
            let order = sides.map(|side| figures.of(side));
            assert_eq!(order, expected.map(Some));
            assert_eq!(figures.of(Side::Packed), None);
        }
    }

    /// Every device of Rust empties the ring of every shape: what is timed is the whole work.
    #[test]
    fn devices_answer_all_chains_of_all_shapes() {
        struct Once(Shape);
        impl Work for Once {
            type Output = ();
            fn on<R: Ring, D: Device>(
                self,
                make: impl FnOnce(Place<'_>) -> Result<D>,
            ) -> Result<()> {
                let mut ring = Loop::<R, D>::new(self.0, make)?;
                ring.turn(|device| empty(device, self.0.batch)).map(drop)
            }
        }
        let sides = Sides::load(false).unwrap();
        for shape in shapes() {
            for side in sides.of(shape.regions) {
                sides.work(side, Once(shape)).unwrap();
            }
        }
    }
}
