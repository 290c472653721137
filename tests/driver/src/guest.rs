//! A guest with its device: memory, queues and front-end, put together.
//!
//! [`RingDriver::connect`] brings a device up the way QEMU does. [`Options`] say what is different in a
//! test: sizes, features, where the rings start, and above all which steps are taken and in which
//! order. [`RingDriver::prepare`] sends nothing, so that a test can add buffers first and take the
//! steps itself with [`RingDriver::run`].

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::event::EventFd;
use crate::frontend::Frontend;
use crate::memory::{self, GuestMemory, MakeFile, Region, RegionSpec};
use crate::packed::PackedRing;
use crate::protocol::*;
use crate::ring::Ring;
use crate::split::{Buffer, Full, SplitRing, Used};

/// Where guest memory begins unless a test says otherwise: not at zero, so that a guest address
/// taken for an offset shows.
pub const DEFAULT_GUEST_ADDR: u64 = 0x4000_0000;

/// How much memory a guest has unless a test says otherwise.
pub const DEFAULT_MEMORY_SIZE: u64 = 16 << 20;

/// The features that a driver takes if they are offered, unless a test says otherwise: those of
/// devices, and of the others those that need nothing from the front-end.
pub const DEFAULT_FEATURES: u64 = 0x00ff_ffff
    | bits(&[
        VIRTIO_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX,
        VHOST_USER_F_PROTOCOL_FEATURES,
        VIRTIO_F_VERSION_1,
    ]);

/// The protocol features that a front-end takes if they are offered, unless a test says otherwise.
pub const DEFAULT_PROTOCOL_FEATURES: u64 = bits(&[
    VHOST_USER_PROTOCOL_F_MQ,
    VHOST_USER_PROTOCOL_F_LOG_SHMFD,
    VHOST_USER_PROTOCOL_F_REPLY_ACK,
    VHOST_USER_PROTOCOL_F_BACKEND_REQ,
    VHOST_USER_PROTOCOL_F_CONFIG,
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
    VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    VHOST_USER_PROTOCOL_F_STATUS,
    VHOST_USER_PROTOCOL_F_DEVICE_STATE,
]);

const PAGE: u64 = 0x1000;

/// A step on the way to a running device. The steps about queues are taken for every queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// SET_OWNER.
    Owner,
    /// GET_FEATURES; the features of the options that are offered become the driver's.
    GetFeatures,
    /// GET_ and SET_PROTOCOL_FEATURES, if there are any.
    ProtocolFeatures,
    /// SET_FEATURES.
    SetFeatures,
    /// SET_STATUS up to `FEATURES_OK`, and GET_STATUS to see it accepted, if there is a status.
    FeaturesOk,
    /// SET_MEM_TABLE, or ADD_MEM_REG for each region if the options say so.
    Memory,
    /// GET_INFLIGHT_FD, if the guest has no region yet, and SET_INFLIGHT_FD, if the options say so.
    Inflight,
    /// SET_VRING_NUM.
    Num,
    /// SET_VRING_BASE.
    Base,
    /// SET_VRING_ADDR.
    Addr,
    /// SET_VRING_ERR.
    Err,
    /// SET_VRING_CALL.
    Call,
    /// SET_VRING_KICK.
    Kick,
    /// SET_VRING_ENABLE, if protocol features were negotiated.
    Enable,
    /// SET_STATUS with `DRIVER_OK`, if there is a status.
    DriverOk,
}

/// The steps in QEMU's order.
pub const ALL_STEPS: [Step; 15] = [
    Step::GetFeatures,
    Step::ProtocolFeatures,
    Step::Owner,
    Step::SetFeatures,
    Step::FeaturesOk,
    Step::Memory,
    Step::Inflight,
    Step::Num,
    Step::Base,
    Step::Addr,
    Step::Kick,
    Step::Call,
    Step::Err,
    Step::Enable,
    Step::DriverOk,
];

/// The steps before those about queues, in QEMU's order.
pub const SESSION_STEPS: [Step; 7] = [
    Step::GetFeatures,
    Step::ProtocolFeatures,
    Step::Owner,
    Step::SetFeatures,
    Step::FeaturesOk,
    Step::Memory,
    Step::Inflight,
];

/// What a [`RingDriver`] shall be.
#[derive(Clone, Debug)]
pub struct Options {
    queue_sizes: Vec<u16>,
    features: u64,
    required: u64,
    protocol_features: u64,
    base: u32,
    regions: Vec<RegionSpec>,
    make_file: MakeFile,
    mem_slots: bool,
    polled: bool,
    log_used: bool,
    track_inflight: bool,
    steps: Vec<Step>,
}

impl Options {
    /// Queues of these sizes, and otherwise the defaults.
    pub fn new(queue_sizes: &[u16]) -> Self {
        Options {
            queue_sizes: queue_sizes.to_vec(),
            features: DEFAULT_FEATURES,
            required: 0,
            protocol_features: DEFAULT_PROTOCOL_FEATURES,
            base: 0,
            regions: vec![RegionSpec::new(DEFAULT_GUEST_ADDR, DEFAULT_MEMORY_SIZE)],
            make_file: memory::memfd,
            mem_slots: false,
            polled: false,
            log_used: false,
            track_inflight: false,
            steps: ALL_STEPS.to_vec(),
        }
    }

    /// Takes these features, if they are offered, and no others.
    pub fn features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// Takes these features as well, if they are offered.
    pub fn with_features(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    /// Does not take these features.
    pub fn without_features(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// Takes these features, and fails if they are not offered.
    pub fn require_features(mut self, features: u64) -> Self {
        self.features |= features;
        self.required |= features;
        self
    }

    /// Takes these protocol features, if they are offered, and no others.
    pub fn protocol_features(mut self, features: u64) -> Self {
        self.protocol_features = features;
        self
    }

    /// Takes these protocol features as well, if they are offered.
    pub fn with_protocol_features(mut self, features: u64) -> Self {
        self.protocol_features |= features;
        self
    }

    /// Does not take these protocol features.
    pub fn without_protocol_features(mut self, features: u64) -> Self {
        self.protocol_features &= !features;
        self
    }

    /// Starts every ring at `base`, as `SET_VRING_BASE` has it; 0 is where a new ring starts.
    pub fn base(mut self, base: u32) -> Self {
        self.base = base;
        self
    }

    /// Memory of these regions. The rings are in the first.
    pub fn regions(mut self, regions: &[RegionSpec]) -> Self {
        self.regions = regions.to_vec();
        self
    }

    /// Has the files of memory made so, and not as memfds.
    pub fn memory_files(mut self, make_file: MakeFile) -> Self {
        self.make_file = make_file;
        self
    }

    /// Announces memory with ADD_MEM_REG instead of SET_MEM_TABLE.
    pub fn mem_slots(mut self) -> Self {
        self.mem_slots = true;
        self
    }

    /// Gives the back-end no kick, so that it must poll.
    pub fn polled(mut self) -> Self {
        self.polled = true;
        self
    }

    /// Has writes to the used ring logged.
    pub fn log_used(mut self) -> Self {
        self.log_used = true;
        self
    }

    /// Keeps a region for requests in flight, of the longest queue's size, and gives it to each
    /// back-end.
    pub fn track_inflight(mut self) -> Self {
        self.track_inflight = true;
        self
    }

    /// Takes these steps, in this order.
    pub fn steps(mut self, steps: &[Step]) -> Self {
        self.steps = steps.to_vec();
        self
    }

    /// Leaves a step out.
    pub fn without(mut self, step: Step) -> Self {
        self.steps.retain(|s| *s != step);
        self
    }

    /// Takes `step` just before `other`.
    ///
    /// # Panics
    ///
    /// Panics if `other` is not among the steps.
    pub fn before(self, step: Step, other: Step) -> Self {
        let mut options = self.without(step);
        let at = options
            .steps
            .iter()
            .position(|s| *s == other)
            .unwrap_or_else(|| panic!("{other:?} is not among the steps"));
        options.steps.insert(at, step);
        options
    }
}

/// The parts of guest memory that are free for data. Nothing is ever given back alone.
#[derive(Clone, Debug)]
pub struct Arena {
    /// For each region, its first byte for data, the next free byte, and the end.
    regions: Vec<(u64, u64, u64)>,
}

impl Arena {
    /// All of `memory`.
    pub fn new(memory: &GuestMemory) -> Self {
        let mut arena = Arena {
            regions: Vec::new(),
        };
        for region in memory.regions() {
            arena.add(region);
        }
        arena
    }

    fn add(&mut self, region: &Region) {
        let range = region.guest_range();
        self.regions.push((range.start, range.start, range.end));
    }

    /// Takes `len` bytes, aligned to 16, from the first region that has them.
    pub fn alloc(&mut self, len: u64) -> u64 {
        (0..self.regions.len())
            .find_map(|region| self.try_alloc(region, len, 16))
            .unwrap_or_else(|| panic!("guest memory has not {len} bytes left"))
    }

    /// Takes `len` bytes, aligned to `align`, from a region.
    pub fn alloc_in(&mut self, region: usize, len: u64, align: u64) -> u64 {
        self.try_alloc(region, len, align)
            .unwrap_or_else(|| panic!("region {region} has not {len} bytes left"))
    }

    /// Takes the last `len` bytes of a region that are free, whatever their alignment, so that a
    /// device that goes beyond a buffer goes beyond the region.
    pub fn alloc_at_end_of_region(&mut self, region: usize, len: u64) -> u64 {
        let (_, next, end) = &mut self.regions[region];
        assert!(
            *end - *next >= len,
            "region {region} has not {len} bytes left"
        );
        *end -= len;
        *end
    }

    fn try_alloc(&mut self, region: usize, len: u64, align: u64) -> Option<u64> {
        let (_, next, end) = &mut self.regions[region];
        let start = next.next_multiple_of(align);
        let new = start.checked_add(len)?;
        (new <= *end).then(|| {
            *next = new;
            start
        })
    }

    /// Everything that was taken so far stays taken; what is taken from now on is given back by
    /// the next [`Arena::clear`].
    fn keep(&mut self) {
        for (first, next, _) in &mut self.regions {
            *first = *next;
        }
    }

    /// Gives back all data that was taken from the beginning of a region.
    pub fn clear(&mut self) {
        for (first, next, _) in &mut self.regions {
            *next = *first;
        }
    }
}

/// A queue of a [`RingDriver`].
#[derive(Debug)]
pub struct Queue<R = SplitRing> {
    /// The ring.
    pub ring: R,
    /// What the device is kicked with.
    pub kick: EventFd,
    /// What the device calls with.
    pub call: EventFd,
    /// What the device reports errors with.
    pub err: EventFd,
    /// The queue's number.
    pub index: u8,
    calls: u64,
}

impl<R: Ring> Queue<R> {
    /// Adds and publishes a request; does not kick.
    #[inline]
    pub fn submit(&mut self, buffers: &[Buffer]) -> std::result::Result<u16, Full> {
        let head = self.ring.add(buffers)?;
        self.ring.publish();
        Ok(head)
    }

    /// Kicks the device, even if it does not want to be.
    #[inline]
    pub fn kick(&self) {
        self.kick.signal();
    }

    /// Kicks the device if it wants to be for what was published. Returns whether it did.
    #[inline]
    pub fn notify(&mut self) -> bool {
        let wanted = self.ring.needs_kick();
        if wanted {
            self.kick();
        }
        wanted
    }

    /// Waits for a completed request, asleep until the device calls.
    ///
    /// # Panics
    ///
    /// Panics if none comes in time.
    pub fn wait_used(&mut self, timeout: Duration) -> Used {
        self.try_wait_used(timeout)
            .unwrap_or_else(|| panic!("no request was completed in {timeout:?}: {self:#?}"))
    }

    /// As [`Queue::wait_used`], but `None` if none comes in time.
    ///
    /// # Panics
    ///
    /// Panics if one comes without the call that was asked for.
    pub fn try_wait_used(&mut self, timeout: Duration) -> Option<Used> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.ring.pop_used() {
                return Some(used);
            }
            if self.ring.arm_calls() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.call.wait(left) {
                // The device may have completed just now, with its call on the way.
                if self.ring.has_used() && !self.call.wait(Duration::from_secs(1)) {
                    panic!("a request was completed, but the call was lost: {self:#?}");
                }
                return self.ring.pop_used();
            }
            self.calls += self.call.take();
        }
    }

    /// Waits for a completed request without sleeping, with calls turned off.
    ///
    /// # Panics
    ///
    /// Panics if none comes in time.
    #[inline]
    pub fn spin_used(&mut self, timeout: Duration) -> Used {
        self.ring.disarm_calls();
        let start = Instant::now();
        loop {
            // The clock is read rarely: it costs more than a look at the ring.
            for _ in 0..1024 {
                if let Some(used) = self.ring.pop_used() {
                    return used;
                }
                std::hint::spin_loop();
            }
            assert!(
                start.elapsed() < timeout,
                "no request was completed in {timeout:?}: {self:#?}"
            );
        }
    }

    /// How many calls have come since this was last asked.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls) + self.call.take()
    }

    /// Stops the queue and returns where it was.
    pub fn stop(&self, frontend: &Frontend) -> Result<u32> {
        frontend.get_vring_base(self.index.into())
    }
}

/// A guest with a device, and rings of either kind.
#[derive(Debug)]
pub struct RingDriver<R> {
    /// The connection to the back-end.
    pub frontend: Frontend,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// What of the memory is free.
    pub arena: Arena,
    /// The queues.
    pub queues: Vec<Queue<R>>,
    /// The region for requests in flight, once a back-end has made one.
    pub inflight: Option<(Inflight, OwnedFd)>,
    options: Options,
    offered: u64,
    features: u64,
}

/// A guest with split rings.
pub type Driver = RingDriver<SplitRing>;

/// A guest with packed rings, which it insists on.
pub type PackedDriver = RingDriver<PackedRing>;

impl<R: Ring> RingDriver<R> {
    /// Connects to a back-end's socket, waiting for it if need be, and takes the options' steps.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::start(Self::prepare(Frontend::connect(path)?, options))
    }

    /// Takes the options' steps on a connected socket.
    pub fn with_stream(stream: UnixStream, options: Options) -> Result<Self> {
        Self::start(Self::prepare(Frontend::new(stream), options))
    }

    fn start(mut driver: Self) -> Result<Self> {
        let steps = driver.options.steps.clone();
        driver.run(&steps)?;
        Ok(driver)
    }

    /// Makes memory and queues and sends nothing.
    ///
    /// `EVENT_IDX` is used in the rings once it was negotiated; a test that adds buffers before
    /// that sets it in them.
    pub fn prepare(frontend: Frontend, options: Options) -> Self {
        let options = if R::PACKED {
            options.require_features(bits(&[VIRTIO_F_RING_PACKED]))
        } else {
            options
        };
        let memory = GuestMemory::of_files(options.make_file, &options.regions);
        let mut arena = Arena::new(&memory);
        let mut queues = Vec::new();
        for (index, &size) in (0..).zip(&options.queue_sizes) {
            let place = arena.alloc_in(0, R::bytes(size), PAGE);
            let layout = R::place_at(place, size);
            let mut ring = R::create(&memory, layout, size, false);
            ring.start_at(first_base::<R>(&options));
            queues.push(Queue {
                ring,
                kick: EventFd::new(),
                call: EventFd::new(),
                err: EventFd::new(),
                index,
                calls: 0,
            });
        }
        // Data does not share a page with rings: the dirty log can tell them apart.
        arena.alloc_in(0, 0, PAGE);
        arena.keep();
        RingDriver {
            frontend,
            memory,
            arena,
            queues,
            inflight: None,
            options,
            offered: 0,
            features: 0,
        }
    }

    /// The features that the back-end offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that were negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the feature with this bit number was negotiated.
    pub fn has_feature(&self, number: u32) -> bool {
        self.features & bits(&[number]) != 0
    }

    /// Takes steps, in this order.
    pub fn run(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| self.step(*step))
    }

    fn step(&mut self, step: Step) -> Result<()> {
        let status = self
            .frontend
            .has_protocol_feature(VHOST_USER_PROTOCOL_F_STATUS);
        match step {
            Step::Owner => self.frontend.set_owner(),
            Step::GetFeatures => self.get_features(),
            Step::ProtocolFeatures => self.negotiate_protocol_features(),
            Step::SetFeatures => self.set_features(self.features),
            Step::FeaturesOk if status => self.features_ok(),
            Step::DriverOk if status => self.frontend.set_status(
                VIRTIO_CONFIG_S_ACKNOWLEDGE
                    | VIRTIO_CONFIG_S_DRIVER
                    | VIRTIO_CONFIG_S_FEATURES_OK
                    | VIRTIO_CONFIG_S_DRIVER_OK,
            ),
            Step::FeaturesOk | Step::DriverOk => Ok(()),
            Step::Memory if self.options.mem_slots => self
                .memory
                .regions()
                .iter()
                .try_for_each(|region| self.frontend.add_mem_reg(region)),
            Step::Memory => self.frontend.set_mem_table(&self.memory),
            Step::Inflight if self.options.track_inflight => self.track_inflight(),
            Step::Inflight => Ok(()),
            Step::Num
            | Step::Base
            | Step::Addr
            | Step::Err
            | Step::Call
            | Step::Kick
            | Step::Enable => {
                (0..self.queues.len()).try_for_each(|queue| self.queue_step(queue, step))
            }
        }
    }

    fn get_features(&mut self) -> Result<()> {
        self.offered = self.frontend.get_features()?;
        let missing = self.options.required & !self.offered;
        if missing != 0 {
            return Err(Error::NotOffered { missing });
        }
        self.features = self.offered & self.options.features;
        Ok(())
    }

    fn negotiate_protocol_features(&mut self) -> Result<()> {
        if !self.has_feature(VHOST_USER_F_PROTOCOL_FEATURES) {
            return Ok(());
        }
        let offered = self.frontend.get_protocol_features()?;
        let wanted = offered & self.options.protocol_features;
        self.frontend.set_protocol_features(wanted)
    }

    fn track_inflight(&mut self) -> Result<()> {
        let (area, fd) = match self.inflight.take() {
            Some(region) => region,
            None => {
                let sizes = self.queues.iter().map(|queue| queue.ring.size());
                let longest = sizes.max().unwrap_or(0);
                let queues = self.queues.len() as u16;
                self.frontend.get_inflight_fd(queues, longest)?
            }
        };
        let (area, fd) = self.inflight.insert((area, fd));
        self.frontend.set_inflight_fd(area, fd.as_fd())
    }

    /// SET_FEATURES with any features, offered or not. The rings follow `EVENT_IDX`.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.frontend.set_features(features)?;
        self.features = features;
        for queue in &mut self.queues {
            let event_idx = features & bits(&[VIRTIO_F_EVENT_IDX]) != 0;
            queue.ring.set_event_idx(event_idx);
        }
        Ok(())
    }

    fn features_ok(&self) -> Result<()> {
        let known = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        self.frontend.set_status(known)?;
        self.frontend
            .set_status(known | VIRTIO_CONFIG_S_FEATURES_OK)?;
        let status = self.frontend.get_status()?;
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            return Err(Error::FeaturesRefused { status });
        }
        Ok(())
    }

    /// Takes one of the steps about queues for one queue.
    ///
    /// # Panics
    ///
    /// Panics if the step is about something else.
    pub fn queue_step(&self, queue: usize, step: Step) -> Result<()> {
        let frontend = &self.frontend;
        let addr = || self.vring_addr(queue);
        let Queue {
            ring,
            kick,
            call,
            err,
            index,
            ..
        } = &self.queues[queue];
        let number = u32::from(*index);
        match step {
            Step::Num => frontend.set_vring_num(number, ring.size().into()),
            Step::Base => frontend.set_vring_base(number, first_base::<R>(&self.options)),
            Step::Addr => frontend.set_vring_addr(&addr()),
            Step::Err => frontend.set_vring_err(*index, Some(err.as_fd())),
            Step::Call => frontend.set_vring_call(*index, Some(call.as_fd())),
            Step::Kick if self.options.polled => frontend.set_vring_kick(*index, None),
            Step::Kick => frontend.set_vring_kick(*index, Some(kick.as_fd())),
            Step::Enable if self.has_feature(VHOST_USER_F_PROTOCOL_FEATURES) => {
                frontend.set_vring_enable(number, true)
            }
            Step::Enable => Ok(()),
            _ => panic!("{step:?} is not about a queue"),
        }
    }

    /// The addresses of a queue's ring as the front-end announces them.
    pub fn vring_addr(&self, queue: usize) -> VringAddr {
        let Queue { ring, index, .. } = &self.queues[queue];
        let layout = ring.layout();
        VringAddr {
            index: u32::from(*index),
            flags: if self.options.log_used {
                VHOST_VRING_F_LOG
            } else {
                0
            },
            descriptor: self.memory.user_addr(layout.desc),
            used: self.memory.user_addr(layout.used),
            available: self.memory.user_addr(layout.avail),
            log: layout.used,
        }
    }

    /// Goes on with another back-end, each queue from its base: the rings are left as they are.
    /// The other back-end must offer what was negotiated with the first.
    pub fn reconnect(&mut self, stream: UnixStream, bases: &[u32]) -> Result<()> {
        assert_eq!(bases.len(), self.queues.len(), "every queue needs a base");
        self.frontend = Frontend::new(stream);
        self.options.required = self.features;
        self.run(&SESSION_STEPS)?;
        for (queue, base) in bases.iter().enumerate() {
            self.resume(queue, *base)?;
        }
        self.step(Step::DriverOk)
    }

    /// Where a front-end lets each queue go on that has lost its back-end. The used index of a split
    /// ring is in memory; of a packed one it knows nothing but where it began.
    pub fn bases_after_a_loss(&self) -> Vec<u32> {
        let base = |queue: &Queue<R>| match R::PACKED {
            true => first_base::<R>(&self.options),
            false => {
                let index = queue.ring.layout().used + 2;
                u16::from_le(self.memory.load_u16(index, Ordering::Acquire)).into()
            }
        };
        self.queues.iter().map(base).collect()
    }

    /// Takes `len` bytes for data.
    pub fn alloc(&mut self, len: u64) -> u64 {
        self.arena.alloc(len)
    }

    /// Adds a region to the guest and announces it with ADD_MEM_REG.
    pub fn add_region(&mut self, spec: RegionSpec) -> Result<Arc<Region>> {
        let region = self.memory.add_region(spec);
        self.arena.add(&region);
        for queue in &mut self.queues {
            queue.ring.set_memory(&self.memory);
        }
        self.frontend.add_mem_reg(&region)?;
        Ok(region)
    }

    /// Takes the region with this index back with REM_MEM_REG and removes it from the guest.
    pub fn remove_region(&mut self, index: usize) -> Result<Arc<Region>> {
        self.frontend.rem_mem_reg(&self.memory.regions()[index])?;
        self.arena.regions.remove(index);
        let region = self.memory.remove_region(index);
        for queue in &mut self.queues {
            queue.ring.set_memory(&self.memory);
        }
        Ok(region)
    }

    /// Stops a queue and returns where it was.
    pub fn stop(&self, queue: usize) -> Result<u32> {
        self.queues[queue].stop(&self.frontend)
    }

    /// Starts a queue that was stopped, where it was. The ring is left as it is.
    pub fn resume(&self, queue: usize, base: u32) -> Result<()> {
        self.queue_step(queue, Step::Num)?;
        let index = self.queues[queue].index;
        self.frontend.set_vring_base(index.into(), base)?;
        for step in [Step::Addr, Step::Kick, Step::Call, Step::Err, Step::Enable] {
            self.queue_step(queue, step)?;
        }
        Ok(())
    }
}

/// Where the rings start.
fn first_base<R: Ring>(options: &Options) -> u32 {
    match options.base {
        0 => R::FIRST_BASE,
        base => base,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::codec::{self, Message};

    const OFFERED: u64 = DEFAULT_FEATURES;

    /// A back-end that says yes to everything until it is hung up on, and what it was told.
    fn back_end(stream: UnixStream) -> Vec<(Message, usize)> {
        let mut told: Vec<(Message, usize)> = Vec::new();
        let mut ack = false;
        while let Ok((message, fds)) = codec::recv_message(&stream) {
            let fds: Vec<OwnedFd> = fds;
            let last = |told: &[(Message, usize)], request| {
                let found = told.iter().rfind(|(m, _)| m.request == request);
                found.map(|(m, _)| m.payload.clone()).unwrap_or_default()
            };
            let number = message.request;
            let payload = match number {
                VHOST_USER_GET_FEATURES => Some(OFFERED.to_ne_bytes().to_vec()),
                VHOST_USER_GET_PROTOCOL_FEATURES => {
                    Some(DEFAULT_PROTOCOL_FEATURES.to_ne_bytes().to_vec())
                }
                VHOST_USER_GET_STATUS => Some(last(&told, VHOST_USER_SET_STATUS)),
                VHOST_USER_GET_VRING_BASE => Some(last(&told, VHOST_USER_SET_VRING_BASE)),
                _ if ack && message.flags & FLAG_NEED_REPLY != 0 => Some(vec![0; 8]),
                _ => None,
            };
            ack |= number == VHOST_USER_SET_PROTOCOL_FEATURES;
            told.push((message, fds.len()));
            if let Some(payload) = payload {
                codec::send(&stream, &Message::reply(number, &payload).to_bytes(), &[]).unwrap();
            }
        }
        told
    }

    fn with_back_end(test: impl FnOnce(UnixStream)) -> Vec<(Message, usize)> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let told = thread::spawn(move || back_end(theirs));
        test(ours);
        told.join().unwrap()
    }

    fn requests(told: &[(Message, usize)]) -> Vec<u32> {
        told.iter().map(|(message, _)| message.request).collect()
    }

    #[test]
    fn a_device_is_brought_up_in_qemus_order() {
        let told = with_back_end(|stream| {
            let driver = Driver::with_stream(stream, Options::new(&[64, 8]).base(0xfff0)).unwrap();
            assert_eq!(driver.features(), OFFERED);
            assert!(driver.queues.iter().all(|queue| queue.ring.event_idx()));
            assert_eq!(driver.queues[1].ring.avail_idx(), 0xfff0);
            assert_eq!(driver.stop(1).unwrap(), 0xfff0);
            driver.resume(1, 0xfff1).unwrap();
            assert_eq!(driver.stop(1).unwrap(), 0xfff1);
        });
        assert_eq!(
            requests(&told),
            [
                1, 15, 16, 3, 2, 39, 39, 40, 5, 8, 8, 10, 10, 9, 9, 12, 12, 13, 13, 14, 14, 18, 18,
                39, 11, 8, 10, 9, 12, 13, 14, 18, 11,
            ]
        );
        let (table, fds) = &told[8];
        assert_eq!((table.payload.len(), *fds), (40, 1));
        assert_eq!(told[15].1, 1, "a kick comes with a file descriptor");
    }

    #[test]
    fn another_back_end_goes_on_where_the_first_stopped() {
        let told = with_back_end(|stream| {
            let (first, theirs) = UnixStream::pair().unwrap();
            let peer = thread::spawn(move || back_end(theirs));
            let mut driver = Driver::with_stream(first, Options::new(&[4])).unwrap();
            let data = driver.alloc(8);
            driver.queues[0]
                .submit(&[Buffer::writable(data, 8)])
                .unwrap();
            driver.reconnect(stream, &[7]).unwrap();
            assert_eq!(driver.queues[0].ring.outstanding(), 1);
            peer.join().unwrap();
        });
        assert_eq!(
            requests(&told),
            [1, 15, 16, 3, 2, 39, 39, 40, 5, 8, 10, 9, 12, 13, 14, 18, 39]
        );
        assert_eq!(told[10].0.payload, [0, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn steps_are_left_out_and_moved() {
        let told = with_back_end(|stream| {
            let options = Options::new(&[16])
                .without_features(bits(&[VHOST_USER_F_PROTOCOL_FEATURES]))
                .before(Step::Kick, Step::Memory)
                .without(Step::Base)
                .without(Step::Err)
                .polled();
            Driver::with_stream(stream, options).unwrap();
        });
        assert_eq!(requests(&told), [1, 3, 2, 12, 5, 8, 9, 13]);
        assert_eq!(told[3].1, 0, "a polled queue has no kick");
    }

    #[test]
    fn features_that_are_not_offered_are_missed() {
        with_back_end(|stream| {
            let packed = bits(&[VIRTIO_F_RING_PACKED]);
            let options = Options::new(&[16]).require_features(packed);
            assert!(matches!(
                Driver::with_stream(stream, options),
                Err(Error::NotOffered { missing }) if missing == packed
            ));
        });
    }

    #[test]
    fn a_socket_that_appears_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        thread::scope(|scope| {
            let driver = scope.spawn(|| Driver::connect(&path, Options::new(&[4])).map(drop));
            thread::sleep(Duration::from_millis(20));
            let listener = UnixListener::bind(&path).unwrap();
            back_end(listener.accept().unwrap().0);
            driver.join().unwrap().unwrap();
        });
    }

    #[test]
    fn requests_are_waited_for() {
        let told = with_back_end(|stream| {
            let mut driver = Driver::with_stream(stream, Options::new(&[4])).unwrap();
            let data = driver.alloc(0x100);
            let (memory, layout) = (driver.memory.clone(), driver.queues[0].ring.layout());
            let queue = &mut driver.queues[0];
            let (kick, call) = (&queue.kick, &queue.call);
            let (kick, call) = (kick.duplicate().unwrap(), call.duplicate().unwrap());
            // A device that does one request for each kick and calls for it.
            let device = thread::spawn(move || {
                for done in 0..20u16 {
                    assert!(kick.wait(Duration::from_secs(10)));
                    kick.take();
                    let slot = u64::from(done % 4);
                    let head: u16 = memory.read_obj(layout.avail + 4 + 2 * slot);
                    let entry = [u32::from(head), u32::from(done)];
                    memory.write_obj(layout.used + 4 + 8 * slot, entry);
                    // It wants a kick for the next.
                    memory.store_u16(layout.used + 4 + 32, done + 1, Ordering::Relaxed);
                    memory.store_u16(layout.used + 2, done + 1, Ordering::SeqCst);
                    call.signal();
                }
            });
            for done in 0..20 {
                let head = queue.submit(&[Buffer::writable(data, 8)]).unwrap();
                assert!(queue.notify());
                let used = if done % 2 == 0 {
                    queue.wait_used(Duration::from_secs(10))
                } else {
                    queue.spin_used(Duration::from_secs(10))
                };
                assert_eq!(used, Used { head, len: done });
            }
            device.join().unwrap();
            assert_eq!(queue.take_calls(), 20);
            assert_eq!(queue.try_wait_used(Duration::from_millis(1)), None);
            driver.add_region(RegionSpec::new(0, 0x1000)).unwrap();
            assert_eq!(driver.arena.alloc_at_end_of_region(1, 3), 0xffd);
            driver.remove_region(1).unwrap();
        });
        assert_eq!(requests(&told)[told.len() - 2..], [37, 38]);
    }

    #[test]
    fn data_is_given_out_behind_the_rings() {
        let memory = GuestMemory::new(&[(0x1000, 0x1000), (0x10_0000, 0x1000)]);
        let mut arena = Arena::new(&memory);
        assert_eq!(arena.alloc_in(0, 1, 1), 0x1000);
        arena.keep();
        assert_eq!(arena.alloc(8), 0x1010);
        assert_eq!(arena.alloc_at_end_of_region(0, 0xf00), 0x1100);
        assert_eq!(arena.alloc(0x100), 0x10_0000, "the first region is full");
        arena.clear();
        assert_eq!(arena.alloc(8), 0x1010);
    }
}
