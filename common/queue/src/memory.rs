//! Guest physical addresses to mapped memory.
//!
//! A [`GuestMemory`] is a sorted list of regions that do not overlap. It never changes: when the
//! front-end adds or removes a region, a new one is made from the old one's regions, and whoever
//! holds pointers into the old one resolves them again.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use rustix::fs::{AtFlags, FileType, RawMode, StatxFlags, statx};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::chain::{DESCRIPTOR_SIZE, Words};

/// A part of a file, mapped shared and writable. It does not keep the file open: with hundreds of
/// regions a guest, descriptors would run out before memory does.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// How long it is for the kernel.
    mapped: usize,
}

// SAFETY: the mapping is memory that any thread may reach, and the only thing done with it as a
// whole is to unmap it when the last owner drops it.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; a shared `Mapping` hands out its address only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset`.
    ///
    /// Its file system is not asked how long the file is, as it may be slow to answer: what the
    /// kernel knows counts. Devices have no length, and see to it themselves.
    ///
    /// # Errors
    /// When the file ends before, `offset` is not a multiple of the page size, or the operating
    /// system refuses.
    pub fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, c"", flags, StatxFlags::TYPE | StatxFlags::SIZE)?;
        let kind = FileType::from_raw_mode(RawMode::from(stat.stx_mode));
        let end = offset.checked_add(len as u64);
        let is_regular = kind == FileType::RegularFile;
        if is_regular && end.is_none_or(|end| end > stat.stx_size) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file ends before the region",
            ));
        }
        // Where pages are huge, only whole ones can be unmapped, or be replaced by others.
        let whole = len.checked_next_multiple_of(stat.stx_blksize as usize);
        let in_file = |&whole: &usize| {
            let end = offset.checked_add(whole as u64);
            is_regular && end.is_some_and(|end| end <= stat.stx_size)
        };
        let mapped = whole.filter(in_file).unwrap_or(len);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses: it overlaps nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), mapped, access, flags, file, offset)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, len, mapped })
    }

    /// Where it begins in this process, and how long it is there: no less than was asked for.
    pub fn range(&self) -> (usize, usize) {
        (self.start.as_ptr() as usize, self.mapped)
    }

    /// How many bytes of it there are to use.
    pub(crate) fn size(&self) -> usize {
        self.len
    }

    /// Where `len` bytes from `offset` are; `None` when they are not all inside.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset` lies inside the mapping, or right behind it.
        (end <= self.len).then(|| unsafe { self.start.add(offset) })
    }

    /// Byte `index` of it.
    pub(crate) fn byte(&self, index: usize) -> Option<&AtomicU8> {
        if index >= self.len {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`; a byte needs no alignment,
        // and others who have it mapped make atomic accesses too.
        Some(unsafe { self.start.add(index).cast::<AtomicU8>().as_ref() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and whole, and whoever holds a pointer into it holds a
        // share of it too: this is the last. Fails only for a range that is none.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// One contiguous range of guest memory, mapped into this process.
#[derive(Clone, Debug)]
pub struct Region {
    window: Window,
    mapping: Arc<Mapping>,
}

impl Region {
    /// The guest sees `len` bytes of `mapping`, from `offset`, at `guest_addr`.
    ///
    /// # Errors
    /// When the range is empty, leaves the mapping, or passes the end of the address space.
    pub fn new(
        guest_addr: u64,
        mapping: Arc<Mapping>,
        offset: usize,
        len: u64,
    ) -> Result<Self, MemoryError> {
        let bad = MemoryError::Range { guest_addr, len };
        let Ok(host_len) = usize::try_from(len) else {
            return Err(bad);
        };
        let fits = offset
            .checked_add(host_len)
            .is_some_and(|end| end <= mapping.len);
        if len == 0 || !fits || guest_addr.checked_add(len).is_none() {
            return Err(bad);
        }
        // SAFETY: `offset` lies inside the mapping, checked above.
        let host = unsafe { mapping.start.add(offset) };
        Ok(Self {
            window: Window {
                guest_addr,
                len,
                host,
            },
            mapping,
        })
    }

    /// The first guest physical address of the region.
    pub fn guest_addr(&self) -> u64 {
        self.window.guest_addr
    }

    /// The region's length in bytes, never 0.
    pub fn size(&self) -> u64 {
        self.window.len
    }

    /// The mapping that the region is a part of.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// How many bytes there are from `addr` to the region's end; `None` when `addr` is outside.
    #[inline]
    fn left_at(&self, addr: u64) -> Option<u64> {
        let offset = addr.wrapping_sub(self.guest_addr());
        (offset < self.size()).then(|| self.size() - offset)
    }

    #[inline]
    fn pointer_at(&self, addr: u64) -> NonNull<u8> {
        // The cast loses nothing: a region's length fits `usize`, checked in `new`.
        let offset = (addr - self.guest_addr()) as usize;
        // SAFETY: callers have checked with `left_at` that `addr` is inside the region.
        unsafe { self.window.host.add(offset) }
    }
}

/// Why a memory table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The region is empty or leaves its mapping or the address space.
    #[error("memory region at {guest_addr:#x} of {len:#x} bytes is empty or too long")]
    Range {
        /// Where the region begins.
        guest_addr: u64,
        /// Its length.
        len: u64,
    },
    /// Two regions share guest addresses.
    #[error("memory regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
}

/// All memory that the guest shares with the device.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
    windows: Box<Windows>,
}

/// A piece of guest memory that is contiguous in this process too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) host: NonNull<u8>,
    pub(crate) len: u64,
}

impl GuestMemory {
    /// Guest memory made of `regions`, in any order.
    ///
    /// # Errors
    /// When two of them overlap.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(Region::guest_addr);
        for pair in regions.windows(2) {
            if let [low, high] = pair
                && low.left_at(high.guest_addr()).is_some()
            {
                return Err(MemoryError::Overlap(low.guest_addr(), high.guest_addr()));
            }
        }
        let windows = Windows::of(&regions);
        Ok(Self { regions, windows })
    }

    /// The regions, by rising guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that holds `addr`, and how many bytes there are to its end.
    #[inline]
    fn region_at(&self, addr: u64) -> Option<(&Region, u64)> {
        let after = self
            .regions
            .partition_point(|region| region.guest_addr() <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        Some((region, region.left_at(addr)?))
    }

    /// The region that `addr` is in, if it is in one and that can be told without a search: but for
    /// some bytes of awkward layouts, it can.
    #[inline(always)]
    pub(crate) fn at_hand(&self, addr: u64) -> Option<&Window> {
        self.windows.at(addr)
    }

    /// The longest piece from `addr`, at most `len` bytes: shorter than `len` when the region
    /// ends before. `None` when `addr` is outside of every region.
    pub(crate) fn piece(&self, addr: u64, len: u64) -> Option<Piece> {
        let (region, left) = self.region_at(addr)?;
        Some(Piece {
            host: region.pointer_at(addr),
            len: len.min(left),
        })
    }

    /// The 16 bytes of a descriptor at `addr`, which need not be aligned, read once; `None` when
    /// they do not lie in one region.
    #[cold]
    pub(crate) fn descriptor(&self, addr: u64) -> Option<Words> {
        const LEN: u64 = DESCRIPTOR_SIZE as u64;
        let piece = self.piece(addr, LEN)?;
        if piece.len != LEN {
            return None;
        }
        let bytes = piece.host.cast::<[u8; DESCRIPTOR_SIZE]>();
        // SAFETY: the piece is `DESCRIPTOR_SIZE` bytes of mapped memory, which stays mapped
        // while `self` is borrowed. Bytes need no alignment. Volatile, as the guest may write at
        // any time.
        Some(zerocopy::transmute!(unsafe { bytes.read_volatile() }))
    }

    /// `len` bytes at `addr` that lie in one region, with the mapping that keeps them alive.
    pub(crate) fn contiguous(&self, addr: u64, len: u64) -> Option<(NonNull<u8>, Arc<Mapping>)> {
        let (region, left) = self.region_at(addr)?;
        (left >= len).then(|| (region.pointer_at(addr), Arc::clone(&region.mapping)))
    }
}

/// A region as one that looks up address after address has it at hand: nothing to follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    guest_addr: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: `host` points into a mapping, which is shared memory that any thread may reach; all
// accesses through it are volatile or atomic.
unsafe impl Send for Window {}
// SAFETY: as for `Send`; a shared `Window` hands out pointers only.
unsafe impl Sync for Window {}

impl Window {
    /// Nothing is in it.
    const NONE: Self = Self {
        guest_addr: 0,
        len: 0,
        host: NonNull::dangling(),
    };

    /// Where `len` bytes at `addr` are mapped, when there are any and all of them are in the
    /// region.
    #[inline(always)]
    pub(crate) fn all(&self, addr: u64, len: u64) -> Option<NonNull<u8>> {
        let offset = addr.wrapping_sub(self.guest_addr);
        // No bytes: the last of them is too far away.
        let last = len.wrapping_sub(1);
        if offset >= self.len || last >= self.len - offset {
            return None;
        }
        // SAFETY: inside the region, whose length fits `usize`.
        Some(unsafe { self.host.add(offset as usize) })
    }
}

/// How many bytes of a region are worth as much as one of another's share. A byte of a small region
/// is worth more: what is below 4 GiB is little of a large guest, and there is nothing else for
/// some devices. But not so much more that the first bytes of a PC would count for more than what
/// comes behind them.
fn share(region: &Region) -> u64 {
    region.size().isqrt()
}

/// The region that an address is likely to be in, without a search: by some bits of the address.
#[derive(Clone, Debug)]
struct Windows {
    /// What moves the bits to the top.
    factor: u64,
    slots: [Window; Self::SLOTS],
}

impl Windows {
    const BITS: u32 = 6;
    const SLOTS: usize = 1 << Self::BITS;
    /// From pages up to half of what there can be.
    const SHIFTS: std::ops::Range<u32> = 12..u64::BITS - Self::BITS;

    /// With the bits that tell the regions apart best.
    fn of(regions: &[Region]) -> Box<Self> {
        let (mut shift, mut worth) = (Self::SHIFTS.start, 0);
        // No bits are worth more.
        let worths = regions.iter().map(|region| region.size() / share(region));
        let all: u64 = worths.sum();
        // Where there are more regions than slots, no choice is good, and each takes its time.
        let step = regions.len().div_ceil(Self::SLOTS).max(1);
        // Few large slots are at hand sooner than many small ones.
        for other in Self::SHIFTS.rev().step_by(step) {
            let is_worth = Self::choose(other, regions, |_, _| {});
            if is_worth > worth {
                (shift, worth) = (other, is_worth);
            }
            if worth == all {
                break;
            }
        }
        let mut windows = Box::<Self>::default();
        windows.factor = Self::factor(shift);
        let slots = &mut windows.slots;
        Self::choose(shift, regions, |slot, region| {
            if let Some(slot) = slots.get_mut(slot) {
                *slot = region.window;
            }
        });
        windows
    }

    /// Has a slot `take` a region when that is worth more than what it has taken before, by the
    /// bits from `shift` on. What all slots have is worth then.
    fn choose(shift: u32, regions: &[Region], mut take: impl FnMut(usize, &Region)) -> u64 {
        let mut worths = [0; Self::SLOTS];
        for region in regions {
            // What is in a slot in each round through all of them, and how many rounds there are.
            let part = 1_u64 << shift;
            let round = part * Self::SLOTS as u64;
            let rounds = (region.size() / round).max(1);
            let share = share(region);
            let mut addr = region.guest_addr();
            let mut left = region.size().min(round);
            while left > 0 {
                let here = left.min(part - addr % part);
                let worth = here * rounds / share;
                let slot = Self::slot(Self::factor(shift), addr);
                if let Some(best) = worths.get_mut(slot)
                    && worth > *best
                {
                    *best = worth;
                    take(slot, region);
                }
                left -= here;
                addr = addr.wrapping_add(here);
            }
        }
        worths.iter().sum()
    }

    /// What moves the bits from `shift` on to the top.
    fn factor(shift: u32) -> u64 {
        1 << (Self::SHIFTS.end - shift)
    }

    #[inline(always)]
    fn slot(factor: u64, addr: u64) -> usize {
        // Below `SLOTS`.
        (addr.wrapping_mul(factor) >> Self::SHIFTS.end) as usize
    }

    #[inline(always)]
    fn at(&self, addr: u64) -> Option<&Window> {
        self.slots.get(Self::slot(self.factor, addr))
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            factor: 0,
            slots: [Window::NONE; Self::SLOTS],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(len: u64) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(fd.expect("a memfd"));
        file.set_len(len).expect("a length");
        file
    }

    fn mapping(len: usize) -> Arc<Mapping> {
        Arc::new(Mapping::new(&file(len as u64), 0, len).expect("a mapping"))
    }

    #[test]
    fn huge_pages_are_mapped_and_unmapped_whole() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        let Ok(fd) = rustix::fs::memfd_create("test", flags) else {
            eprintln!("skipped: the kernel has no huge pages");
            return;
        };
        let file = File::from(fd);
        let flags = AtFlags::EMPTY_PATH;
        let stat = statx(&file, c"", flags, StatxFlags::SIZE).expect("what it is");
        let page = u64::from(stat.stx_blksize);
        file.set_len(2 * page).expect("a length");
        if Mapping::new(&file, 0, page as usize).is_err() {
            eprintln!("skipped: huge pages cannot be mapped, as under qemu-user");
            return;
        }
        let mapping = Mapping::new(&file, page, 0x1001).expect("a mapping");
        assert_eq!(mapping.size(), 0x1001);
        assert!(mapping.part(0x1001, 1).is_none() && mapping.byte(0x1001).is_none());
        let (start, len) = mapping.range();
        assert_eq!(len as u64, page);
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
            let inode = format!(" {} ", stat.stx_ino);
            maps.lines()
                .any(|line| line.starts_with(&format!("{start:x}-")) && line.contains(&inode))
        };
        assert!(is_mapped());
        drop(mapping);
        assert!(!is_mapped(), "it stays mapped");
    }

    #[test]
    fn a_file_that_ends_before_the_region_is_refused() {
        let file = file(0x2000);
        Mapping::new(&file, 0x1000, 0x1000).expect("all of it");
        for (offset, len) in [(0x1000, 0x1001), (0x2000, 1), (u64::MAX - 0xfff, 0x1000)] {
            let error = Mapping::new(&file, offset, len).expect_err("beyond the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    fn region(guest_addr: u64, len: usize) -> Region {
        Region::new(guest_addr, mapping(len), 0, len as u64).expect("a sound region")
    }

    #[test]
    fn region_outside_of_its_mapping_is_refused() {
        let bad = [
            (0, 0, 0),
            (0, 0, 0x2001),
            (0, 0x1000, 0x1001),
            (0, usize::MAX, 1),
            (u64::MAX - 0xfff, 0, 0x1001),
        ];
        for (guest_addr, offset, len) in bad {
            assert!(
                Region::new(guest_addr, mapping(0x2000), offset, len).is_err(),
                "{guest_addr:#x} {offset:#x} {len:#x}"
            );
        }
    }

    #[test]
    fn overlapping_regions_are_refused_and_adjacent_ones_are_not() {
        let overlap = GuestMemory::new(vec![region(0x3000, 0x1000), region(0x2000, 0x1001)]);
        assert_eq!(overlap.err(), Some(MemoryError::Overlap(0x2000, 0x3000)));
        GuestMemory::new(vec![region(0x3000, 0x1000), region(0x2000, 0x1000)])
            .expect("adjacent regions");
    }

    #[test]
    fn pieces_end_with_their_region() {
        let memory = GuestMemory::new(vec![region(0x1000, 0x1000), region(0x2000, 0x1000)])
            .expect("two regions");
        for (addr, len, found) in [
            (0x1000, 0x1000, Some(0x1000)),
            (0x1fff, 2, Some(1)),
            (0x2000, 2, Some(2)),
            (0x2fff, u64::MAX, Some(1)),
            (0x3000, 1, None),
            (0xfff, 2, None),
            (u64::MAX, 1, None),
        ] {
            let piece = memory.piece(addr, len).map(|piece| piece.len);
            assert_eq!(piece, found, "{addr:#x}");
        }
        assert!(memory.contiguous(0x1800, 0x800).is_some());
        assert!(memory.contiguous(0x1800, 0x801).is_none());
    }

    #[test]
    fn a_window_has_what_is_in_its_region() {
        let region = region(0x1000, 0x1000);
        let Window { host, .. } = region.window;
        for (addr, len, offset) in [
            (0x1000, 1, Some(0)),
            (0x1000, 0x1000, Some(0)),
            (0x1fff, 1, Some(0xfff)),
            (0x1800, 0x800, Some(0x800)),
            (0x1000, 0, None),
            (0x1000, 0x1001, None),
            (0x1fff, 2, None),
            (0x2000, 1, None),
            (0x2000, 0, None),
            (0xfff, 2, None),
            (u64::MAX, 1, None),
            (u64::MAX, 0x1002, None),
            (0x1800, u64::MAX, None),
        ] {
            let found = region.window.all(addr, len);
            let found = found.map(|found| found.as_ptr() as usize - host.as_ptr() as usize);
            assert_eq!(found, offset, "{addr:#x} {len:#x}");
        }
    }

    /// Regions of any length, which are not all mapped: only to be told apart.
    fn layout(regions: &[(u64, u64)]) -> GuestMemory {
        let mapping = mapping(0x1000);
        let region = |&(guest_addr, len)| Region {
            window: Window {
                guest_addr,
                len,
                host: mapping.start,
            },
            mapping: Arc::clone(&mapping),
        };
        let regions = regions.iter().map(region).collect();
        GuestMemory::new(regions).expect("regions that do not overlap")
    }

    /// The region that `addr` is in, if that is at hand.
    fn at_hand(memory: &GuestMemory, addr: u64) -> Option<u64> {
        let window = memory.at_hand(addr)?;
        let is_in = addr.wrapping_sub(window.guest_addr) < window.len;
        is_in.then_some(window.guest_addr)
    }

    #[test]
    fn all_of_a_usual_guest_is_at_hand() {
        const M: u64 = 1 << 20;
        const G: u64 = 1 << 30;
        let spread: Vec<_> = (0..8).map(|n| (0x1000_0000 + n * 2 * M, M)).collect();
        let hotplugged: Vec<_> = (0..16).map(|n| (4 * G + n * 128 * M, 128 * M)).collect();
        let many: Vec<_> = (6..70).map(|n| (n * G, G)).collect();
        for regions in [
            &[(0x4000_0000, 512 * M)][..],
            &[(0, 3 * G), (4 * G, 13 * G)],
            &[(0, 2 * G), (4 * G, 2 * G)],
            &spread,
            &hotplugged,
            &many,
        ] {
            let memory = layout(regions);
            for &(region, len) in regions {
                for place in (0..len).step_by((len / 64) as usize) {
                    let found = at_hand(&memory, region + place);
                    assert_eq!(found, Some(region), "{regions:x?} {place:#x}");
                }
            }
        }
    }

    #[test]
    fn of_awkward_layouts_the_most_is_at_hand() {
        // 640 KiB and what is behind them are in one slot, as long as 4 GiB and more are in others.
        let (low, high) = ((0, 0xa_0000), (0xc_0000, 0x7ff4_0000));
        let memory = layout(&[low, high, (0x1_0000_0000, 0x1_0000_0000)]);
        assert_eq!(at_hand(&memory, 0x1000), None);
        assert!(at_hand(&memory, 0xc_0000).is_some());
        assert!(at_hand(&memory, 0x1_ffff_ffff).is_some());
        // What is below 4 GiB is little of a large guest.
        let memory = layout(&[(0, 0xc000_0000), (0x1_0000_0000, 0x100_0000_0000)]);
        assert!(at_hand(&memory, 0x1000).is_some());
        assert!(at_hand(&memory, 0xbfff_ffff).is_some());
        let high = (0x1_0000_0000_u64..0x101_0000_0000).step_by(0x4000_0000);
        let missed = high.filter(|addr| at_hand(&memory, *addr).is_none());
        assert!(missed.count() < 40);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn what_is_at_hand_is_what_a_search_finds(
            gaps in prop::collection::vec((0u64..64, 1u64..64, 0u32..40), 0..80),
            probes in prop::collection::vec((any::<prop::sample::Index>(), -4i64..0x3_0000), 64),
        ) {
            let mut regions = Vec::new();
            let mut addr = 0;
            for (gap, len, shift) in gaps {
                addr += (gap << shift) & !0xfff;
                regions.push((addr, len << 12));
                addr += len << 12;
            }
            let memory = layout(&regions);
            for (index, offset) in probes {
                let begin = if regions.is_empty() { 0 } else { index.get(&regions).0 };
                let addr = begin.wrapping_add_signed(offset);
                if let Some(found) = at_hand(&memory, addr) {
                    let searched = memory.region_at(addr).map(|(region, _)| region.guest_addr());
                    prop_assert_eq!(Some(found), searched);
                }
            }
        }
    }
}
