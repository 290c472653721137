//! The devices that are compared. Each takes a batch of chains, resolves every buffer of theirs to
//! mapped memory, returns them, and finds out whether to call the driver.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use vhost_device_driver::memory::Region;
use vhost_device_driver::{GuestMemory, Layout, PackedRing, Ring, SplitRing};
use vhost_device_model::{addresses, map};
use vhost_device_queue::{Config, Queue};
use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::{Queue as Reference, QueueOwnedT as _, QueueT as _};
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap,
};

use super::c_peers::CPeers;

/// A device on a ring.
pub(super) trait Device {
    /// Takes at most `batch` chains and returns them. How many bytes their buffers have, all
    /// resolved; 0 when there is no chain.
    fn run(&mut self, batch: usize) -> u64;
}

/// A device, on a kind of ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Ours, on a split ring.
    Split,
    /// Ours, on a packed ring.
    Packed,
    /// `virtio-queue`, which has split rings only.
    Bare,
    /// `virtio-queue` in a `VringRwLock`.
    Locked,
    /// QEMU's libvhost-user, which has split rings only.
    LibvhostUser,
    /// DPDK's rte_vhost, on a split ring.
    RteSplit,
    /// DPDK's rte_vhost, on a packed ring.
    RtePacked,
}

impl Side {
    /// All, in the order of their numbers.
    pub(super) const ALL: [Self; 7] = [
        Self::Split,
        Self::Packed,
        Self::Bare,
        Self::Locked,
        Self::LibvhostUser,
        Self::RteSplit,
        Self::RtePacked,
    ];

    /// Over how many regions its buffers may be spread, of those that are measured. A table of
    /// rte_vhost has eight, and one of them is the ring's.
    fn max_regions(self) -> usize {
        match self {
            Self::RteSplit | Self::RtePacked => 7,
            _ => usize::MAX,
        }
    }

    fn is_c(self) -> bool {
        matches!(self, Self::LibvhostUser | Self::RteSplit | Self::RtePacked)
    }
}

/// What is done with a side.
pub(super) trait Work {
    type Output;

    /// Does it with the device that `make` makes, and a ring of its kind.
    fn on<R: Ring, D: Device + Send>(
        self,
        make: impl FnOnce(Place<'_>) -> Result<D>,
    ) -> Result<Self::Output>;
}

/// The sides that there are: without peers of C, or with them.
#[derive(Debug)]
pub(super) struct Sides {
    c_peers: Option<CPeers>,
}

impl Sides {
    pub(super) fn load(with_c_peers: bool) -> Result<Self> {
        Ok(Self {
            c_peers: with_c_peers.then(CPeers::load).transpose()?,
        })
    }

    pub(super) fn has_c_peers(&self) -> bool {
        self.c_peers.is_some()
    }

    /// Those that can work where buffers are spread over this many regions.
    pub(super) fn of(&self, regions: usize) -> impl Iterator<Item = Side> + use<> {
        let has_c = self.c_peers.is_some();
        let there = Side::ALL.into_iter();
        there.filter(move |side| (has_c || !side.is_c()) && regions <= side.max_regions())
    }

    /// Does some work with a side.
    pub(super) fn work<W: Work>(&self, side: Side, work: W) -> Result<W::Output> {
        let c = || {
            self.c_peers
                .as_ref()
                .context("the peers of C are not loaded")
        };
        match side {
            Side::Split => work.on::<SplitRing, _>(|place| Ours::new(place, false)),
            Side::Packed => work.on::<PackedRing, _>(|place| Ours::new(place, true)),
            Side::Bare => work.on::<SplitRing, _>(Bare::new),
            Side::Locked => work.on::<SplitRing, _>(Locked::new),
            Side::LibvhostUser => work.on::<SplitRing, _>(|place| c()?.libvhost_user(place)),
            Side::RteSplit => work.on::<SplitRing, _>(|place| c()?.rte_vhost(place, false)),
            Side::RtePacked => work.on::<PackedRing, _>(|place| c()?.rte_vhost(place, true)),
        }
    }
}

/// What a device is made on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) layout: Layout,
    pub(super) size: u16,
    pub(super) event_idx: bool,
}

/// Ours.
#[derive(Debug)]
pub(super) struct Ours {
    memory: vhost_device_queue::GuestMemory,
    queue: Queue,
}

impl Ours {
    pub(super) fn new(place: Place<'_>, packed: bool) -> Result<Self> {
        let memory = map(place.memory);
        let config = Config {
            size: place.size,
            addresses: addresses(place.layout),
            base: Config::first_base(packed),
            packed,
            event_idx: place.event_idx,
            indirect: true,
            in_order: false,
        };
        let queue = Queue::new(&memory, &config)?;
        Ok(Self { memory, queue })
    }
}

impl Device for Ours {
    fn run(&mut self, batch: usize) -> u64 {
        let mut bytes = 0;
        if self.queue.look() != Ok(true) {
            return 0;
        }
        for _ in 0..batch {
            let Some(Ok(request)) = self.queue.pop(&self.memory) else {
                break;
            };
            bytes += (request.readable_len() + request.writable_len()) as u64;
            request.complete();
        }
        std::hint::black_box(self.queue.publish());
        bytes
    }
}

fn mmap(memory: &GuestMemory) -> Result<GuestMemoryMmap> {
    let file = |region: &Region| region.fd().try_clone_to_owned().map(File::from);
    let ranges = memory.regions().iter().map(|region| {
        let offset = FileOffset::new(file(region)?, region.mmap_offset());
        let start = GuestAddress(region.guest_addr());
        Ok((start, region.size() as usize, Some(offset)))
    });
    let ranges = ranges.collect::<Result<Vec<_>>>()?;
    GuestMemoryMmap::from_ranges_with_files(ranges).context("cannot map the memory")
}

fn set_up(queue: &mut Reference, place: Place<'_>) -> Result<()> {
    queue.set_size(place.size);
    queue.try_set_desc_table_address(GuestAddress(place.layout.desc))?;
    queue.try_set_avail_ring_address(GuestAddress(place.layout.avail))?;
    queue.try_set_used_ring_address(GuestAddress(place.layout.used))?;
    queue.set_event_idx(place.event_idx);
    queue.set_ready(true);
    Ok(())
}

/// `virtio-queue`, as good as it gets: memory and heads are borrowed and reused.
#[derive(Debug)]
pub(super) struct Bare {
    memory: GuestMemoryMmap,
    queue: Reference,
    heads: Vec<u16>,
}

impl Bare {
    pub(super) fn new(place: Place<'_>) -> Result<Self> {
        let memory = mmap(place.memory)?;
        let mut queue = Reference::new(place.size)?;
        set_up(&mut queue, place)?;
        ensure!(
            queue.is_valid(&memory),
            "the ring is not where it should be"
        );
        Ok(Self {
            memory,
            queue,
            heads: Vec::new(),
        })
    }
}

impl Device for Bare {
    fn run(&mut self, batch: usize) -> u64 {
        let mut bytes = 0;
        self.heads.clear();
        let Ok(chains) = self.queue.iter(&self.memory) else {
            return 0;
        };
        for chain in chains.take(batch) {
            self.heads.push(chain.head_index());
            for descriptor in chain {
                let len = descriptor.len();
                let slice = self.memory.get_slice(descriptor.addr(), len as usize);
                bytes += slice.map_or(0, |slice| slice.len() as u64);
            }
        }
        for head in &self.heads {
            let _ = self.queue.add_used(&self.memory, *head, 0);
        }
        if !self.heads.is_empty() {
            std::hint::black_box(self.queue.needs_notification(&self.memory).is_ok());
        }
        bytes
    }
}

/// `virtio-queue` in a `VringRwLock`, as the daemons of crates.io use it: memory that can be
/// exchanged, chains and descriptors collected into lists, a lock for each answer.
pub(super) struct Locked {
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    vring: VringRwLock,
}

impl Locked {
    pub(super) fn new(place: Place<'_>) -> Result<Self> {
        let memory = GuestMemoryAtomic::new(mmap(place.memory)?);
        let vring = VringRwLock::new(memory.clone(), place.size)?;
        set_up(vring.get_mut().get_queue_mut(), place)?;
        Ok(Self { memory, vring })
    }
}

impl Device for Locked {
    fn run(&mut self, batch: usize) -> u64 {
        let mut bytes = 0;
        let chains: Vec<_> = match self
            .vring
            .get_mut()
            .get_queue_mut()
            .iter(self.memory.memory())
        {
            Ok(chains) => chains.take(batch).collect(),
            Err(_) => return 0,
        };
        let any = !chains.is_empty();
        for chain in chains {
            let descriptors: Vec<_> = chain.clone().collect();
            for descriptor in descriptors {
                let len = descriptor.len() as usize;
                let slice = chain.memory().get_slice(descriptor.addr(), len);
                bytes += slice.map_or(0, |slice| slice.len() as u64);
            }
            let _ = self.vring.add_used(chain.head_index(), 0);
        }
        if any {
            std::hint::black_box(self.vring.needs_notification().is_ok());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_numbered_in_their_order() {
        for (number, side) in Side::ALL.into_iter().enumerate() {
            assert_eq!(side as usize, number);
        }
    }

    #[test]
    fn without_peers_of_c_there_are_those_of_rust() {
        let sides = Sides::load(false).unwrap();
        let there = [Side::Split, Side::Packed, Side::Bare, Side::Locked];
        for regions in [1, 8] {
            assert_eq!(sides.of(regions).collect::<Vec<_>>(), there);
        }
    }
}
