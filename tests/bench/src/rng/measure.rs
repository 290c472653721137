//! The measurements, in alternating rounds.
//!
//! Whatever else the machine does, and however its clock changes, it does to both sides: each
//! round measures them one after the other, and only figures of the same round are compared.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vhost_device_driver::Buffer;

use crate::cpus::{Cpus, Placement};
use crate::daemon::Daemon;
use crate::load::{Guest, Job, Slot, Waiting};
use crate::process::{Memory, cpu_time};
use crate::programs::{Each, Side, Sides};
use crate::stats::micros;

/// Bytes of a request.
const SIZES: [u32; 4] = [16, 256, 4 << 10, 64 << 10];

/// Requests that are outstanding.
const DEPTHS: [u16; 3] = [1, 16, 128];

/// The most bytes that are outstanding.
const ROOM: u64 = 128 * (64 << 10);

/// How many guests there are when memory is measured.
const GUESTS: [usize; 2] = [1, 64];

/// How often memory is measured: it varies little.
const MEMORY_ROUNDS: usize = 3;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of a request.
    pub(crate) size: u32,
    /// Requests that are outstanding.
    pub(crate) depth: u16,
}

impl Shape {
    /// As requests with buffers from `data` on.
    fn job(self, data: u64) -> Job {
        let slots = (0..u64::from(self.depth)).map(|number| {
            let address = data + number * u64::from(self.size);
            Slot::new(vec![vec![Buffer::writable(address, self.size)]])
        });
        Job::new(slots.collect())
    }
}

/// What a guest asks for before its daemon's memory is measured.
const ONE_REQUEST: Shape = Shape { size: 64, depth: 1 };

/// What is measured how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Rounds of the load; each has new processes.
    pub(crate) rounds: usize,
    /// How long each load runs in a round.
    pub(crate) cell: Duration,
    /// How often each side is started.
    pub(crate) starts: usize,
    /// Where driver and daemon run: all loads are run for each.
    pub(crate) placements: Vec<Placement>,
    /// How the driver waits.
    pub(crate) waiting: Waiting,
}

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Requests in a second.
    pub(crate) requests: f64,
    /// Bytes in a second.
    pub(crate) bytes: f64,
    /// The daemon's CPU time for a request, in microseconds.
    pub(crate) cpu: f64,
    /// Bytes of a request, on the average.
    pub(crate) answer: f64,
}

/// A load and what it gave, in each round.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where driver and daemon ran.
    pub(crate) placement: Placement,
    /// The load.
    pub(crate) shape: Shape,
    /// The figures of each round.
    pub(crate) rounds: Vec<Each<Figures>>,
}

/// A number of guests and the memory that they took, in each round.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    /// How many guests.
    pub(crate) guests: usize,
    /// The memory in each round.
    pub(crate) rounds: Vec<Each<Memory>>,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measurements {
    /// Speed.
    pub(crate) loads: Vec<Load>,
    /// Memory.
    pub(crate) crowds: Vec<Crowd>,
    /// Milliseconds from fork to the first connection.
    pub(crate) starts: Vec<Each<f64>>,
}

impl Measurements {
    /// Measures everything.
    pub(crate) fn take(sides: &Sides, plan: &Plan) -> Result<Self> {
        let mut measured = Vec::new();
        for &placement in &plan.placements {
            measured.extend(loads(sides, plan, placement)?);
        }
        Ok(Self {
            loads: measured,
            crowds: crowds(sides)?,
            starts: starts(sides, plan.starts)?,
        })
    }
}

fn loads(sides: &Sides, plan: &Plan, placement: Placement) -> Result<Vec<Load>> {
    let cpus = Cpus::find(placement)?;
    let shapes = SIZES
        .iter()
        .flat_map(|&size| DEPTHS.iter().map(move |&depth| Shape { size, depth }));
    let mut loads: Vec<Load> = shapes
        .map(|shape| Load {
            placement,
            shape,
            rounds: Vec::with_capacity(plan.rounds),
        })
        .collect();
    for round in 0..plan.rounds {
        eprintln!("Load {placement}, round {} of {}", round + 1, plan.rounds);
        let mut pairs = sides.each(round, |side| Pair::start(side, &cpus))?;
        for load in &mut loads {
            let figures = sides.each(round, |side| {
                let pair = pairs.of(side, sides);
                cpus.for_driver(|| pair.measure(load.shape, plan))
                    .with_context(|| format!("{} {placement} with {:?}", side.name, load.shape))
            })?;
            load.rounds.push(figures);
        }
    }
    Ok(loads)
}

/// A daemon and its guest.
#[derive(Debug)]
struct Pair {
    guest: Guest,
    daemon: Daemon,
}

impl Each<Pair> {
    /// The pair of this side.
    fn of(&mut self, side: &Side, sides: &Sides) -> &mut Pair {
        if *side == sides.ours {
            &mut self.ours
        } else {
            &mut self.peer
        }
    }
}

impl Pair {
    fn start(side: &Side, cpus: &Cpus) -> Result<Self> {
        let mut daemon = cpus.for_daemons(|| Daemon::start(side, 1, &[]))?;
        let guest = Guest::start(daemon.connect(0)?, ROOM, 0)?;
        Ok(Self { guest, daemon })
    }

    /// Runs a load, first for a while to warm up. The daemon is idle before and after, so that
    /// its CPU time is that of this load.
    fn measure(&mut self, shape: Shape, plan: &Plan) -> Result<Figures> {
        let mut job = shape.job(self.guest.data());
        self.guest.run(&mut job, plan.cell / 5, plan.waiting)?;
        let before = cpu_time(self.daemon.pid())?;
        let done = self.guest.run(&mut job, plan.cell, plan.waiting)?;
        let cpu = cpu_time(self.daemon.pid())?.saturating_sub(before);
        let (requests, bytes) = (done.requests as f64, done.bytes as f64);
        Ok(Figures {
            requests: requests / done.time.as_secs_f64(),
            bytes: bytes / done.time.as_secs_f64(),
            cpu: micros(cpu) / requests,
            answer: bytes / requests,
        })
    }
}

fn crowds(sides: &Sides) -> Result<Vec<Crowd>> {
    let crowd = |&guests: &usize| {
        eprintln!("Memory with {guests} guests");
        let rounds = (0..MEMORY_ROUNDS).map(|round| {
            sides.each(round, |side| {
                memory_with(side, guests)
                    .with_context(|| format!("{} with {guests} guests", side.name))
            })
        });
        Ok(Crowd {
            guests,
            rounds: rounds.collect::<Result<_>>()?,
        })
    };
    GUESTS.iter().map(crowd).collect()
}

/// The memory of a daemon whose guests are all connected and have had an answer each.
fn memory_with(side: &Side, guests: usize) -> Result<Memory> {
    let mut daemon = Daemon::start(side, guests, &[])?;
    let mut connected = Vec::with_capacity(guests);
    for guest in 0..guests {
        let stream = daemon.connect(guest)?;
        let mut guest = Guest::start(stream, ONE_REQUEST.size.into(), 0)?;
        let mut job = ONE_REQUEST.job(guest.data());
        guest.run(&mut job, Duration::ZERO, Waiting::Asleep)?;
        connected.push(guest);
    }
    Memory::of(daemon.pid())
}

fn starts(sides: &Sides, count: usize) -> Result<Vec<Each<f64>>> {
    eprintln!("Starts, {count} of each");
    (0..count).map(|round| sides.each(round, start)).collect()
}

/// Milliseconds until a daemon can be connected to.
fn start(side: &Side) -> Result<f64> {
    let begun = Instant::now();
    let mut daemon = Daemon::start(side, 1, &[])?;
    let _connection = daemon.connect(0)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}
