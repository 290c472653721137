//! Guest memory: files, memfds unless a test has others, mapped into this process, at guest addresses of the test's choosing.
//!
//! A region is what `VHOST_USER_SET_MEM_TABLE` and `VHOST_USER_ADD_MEM_REG` describe: a guest
//! address, a size, a file and an offset into it. The front-end's user address is where the region
//! is mapped here, so that guest, user and file addresses all differ, as they do under QEMU.
//!
//! All unsafe code of the crate is in this module. Guest memory is shared with the device by
//! design, and no reference to it is ever handed out: bytes are copied, and the fields that both
//! sides race on are read and written with atomics.
//!
//! Mistakes of the test (an address outside of every region, a misaligned index) panic.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::ffi;
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open,
};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, IntoBytes};

/// What a region shall look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
    /// Size in bytes.
    pub size: u64,
    /// Where in the file the region starts; need not be page-aligned.
    pub mmap_offset: u64,
    /// Length of the file. `None` is just long enough. If it is shorter than
    /// `mmap_offset + size`, then touching the missing pages raises SIGBUS, here as well.
    pub file_len: Option<u64>,
}

impl RegionSpec {
    /// A region that starts at the beginning of a file of its own size.
    pub const fn new(guest_addr: u64, size: u64) -> Self {
        RegionSpec {
            guest_addr,
            size,
            mmap_offset: 0,
            file_len: None,
        }
    }
}

/// Makes a file of this length, for a region.
pub type MakeFile = fn(u64) -> OwnedFd;

/// A memfd.
pub fn memfd(length: u64) -> OwnedFd {
    memfd_with(MemfdFlags::empty(), length)
}

/// A memfd of huge pages, of which the length must be a multiple.
pub fn huge_memfd(length: u64) -> OwnedFd {
    memfd_with(MemfdFlags::HUGETLB, length)
}

/// A udmabuf: the pages of a memfd as a dma-buf. The length must be a multiple of a page's. The
/// kernel must have `/dev/udmabuf`.
pub fn udmabuf(length: u64) -> OwnedFd {
    let memfd = memfd_with(MemfdFlags::ALLOW_SEALING, length);
    fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap_or_else(|e| panic!("cannot seal: {e}"));
    let mode = OFlags::RDWR | OFlags::CLOEXEC;
    let device = open("/dev/udmabuf", mode, Mode::empty())
        .unwrap_or_else(|e| panic!("cannot open /dev/udmabuf: {e}"));
    let create = CreateUdmabuf(UdmabufCreate {
        memfd: memfd.as_raw_fd() as u32,
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size: length,
    });
    // SAFETY: the device is udmabuf's, and `CreateUdmabuf` is what it says of this call.
    unsafe { ioctl(&device, create) }.unwrap_or_else(|e| panic!("cannot make a udmabuf: {e}"))
}

fn memfd_with(flags: MemfdFlags, length: u64) -> OwnedFd {
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC | flags)
        .unwrap_or_else(|e| panic!("cannot make a memfd: {e}"));
    ftruncate(&file, length)
        .unwrap_or_else(|e| panic!("cannot size a memfd for {length:#x} bytes: {e}"));
    file
}

const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// `struct udmabuf_create` of `linux/udmabuf.h`.
#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `UDMABUF_CREATE`.
struct CreateUdmabuf(UdmabufCreate);

// SAFETY: the opcode is `_IOW('u', 0x42, struct udmabuf_create)`; the call reads that structure,
// which has no padding, and returns a descriptor that nobody else has.
unsafe impl Ioctl for CreateUdmabuf {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<UdmabufCreate>(b'u', 0x42)
    }

    fn as_ptr(&mut self) -> *mut ffi::c_void {
        ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut ffi::c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded: this is the new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

/// One region of guest memory: a file and where it is mapped here.
pub struct Region {
    spec: RegionSpec,
    file: OwnedFd,
    /// The page-aligned mapping that contains the region.
    map: NonNull<u8>,
    map_len: usize,
    /// The region's first byte, within the mapping.
    first: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value until it is dropped, its address never changes, and it
// is only accessed by raw copies and atomics, which any thread may do.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(spec: RegionSpec, make_file: MakeFile) -> Self {
        let RegionSpec {
            guest_addr,
            size,
            mmap_offset,
            file_len,
        } = spec;
        assert!(
            size > 0 && guest_addr.checked_add(size).is_some(),
            "a region of {size:#x} bytes at {guest_addr:#x} is not possible"
        );
        let file = make_file(file_len.unwrap_or(mmap_offset + size));

        let page = rustix::param::page_size() as u64;
        let lead = mmap_offset % page;
        let map_len = usize::try_from(lead + size).expect("a region must fit in our address space");
        // SAFETY: the kernel chooses a free range, so that no memory in use is replaced.
        let map = unsafe {
            mmap(
                ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                mmap_offset - lead,
            )
        }
        .unwrap_or_else(|e| panic!("cannot map {spec:x?}: {e}"));
        let map = NonNull::new(map.cast::<u8>()).expect("mmap does not return null");
        // SAFETY: `lead` is less than a page, and the mapping is longer than `lead`.
        let first = unsafe { map.add(lead as usize) };
        Region {
            spec,
            file,
            map,
            map_len,
            first,
        }
    }

    /// Guest physical address of the first byte.
    pub fn guest_addr(&self) -> u64 {
        self.spec.guest_addr
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.spec.size
    }

    /// The guest physical addresses of the region.
    pub fn guest_range(&self) -> Range<u64> {
        self.spec.guest_addr..self.spec.guest_addr + self.spec.size
    }

    /// Where in the file the region starts.
    pub fn mmap_offset(&self) -> u64 {
        self.spec.mmap_offset
    }

    /// Where the region is mapped in this process: the user address of the protocol.
    pub fn user_addr(&self) -> u64 {
        self.first.as_ptr() as u64
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The offset of `gpa` into the region if `len` bytes from there are within it.
    fn offset_of(&self, gpa: u64, len: usize) -> Option<usize> {
        let offset = gpa.checked_sub(self.spec.guest_addr)?;
        let left = self.spec.size.checked_sub(offset)?;
        (len as u64 <= left).then_some(offset as usize)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing can refer to it any more: spans hold
        // an `Arc` of the region, and the users of raw pointers are told to keep it alive.
        unsafe { munmap(self.map.as_ptr().cast(), self.map_len) }
            .unwrap_or_else(|e| panic!("cannot unmap {self:?}: {e}"));
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("spec", &format_args!("{:x?}", self.spec))
            .field("user_addr", &format_args!("{:#x}", self.user_addr()))
            .finish()
    }
}

/// The memory of a guest.
///
/// A clone is cheap and shares the bytes. The list of regions is each clone's own: adding or
/// removing one changes that handle only, and a region lives for as long as any handle or
/// [`Span`] knows it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    regions: Arc<Vec<Arc<Region>>>,
    /// Makes the file of a region that is added.
    make_file: MakeFile,
}

macro_rules! atomic_access {
    ($(($load:ident, $store:ident, $int:ident, $atomic:ident)),+ $(,)?) => {
        impl GuestMemory {
            $(
                #[doc = concat!("Loads the `", stringify!($int), "` at `gpa`, in native byte order.")]
                #[inline]
                pub fn $load(&self, gpa: u64, order: Ordering) -> $int {
                    let field = aligned(self.host_ptr(gpa, size_of::<$int>()), size_of::<$int>());
                    // SAFETY: `host_ptr` checked the bounds and `aligned` the alignment; the
                    // mapping outlives `self`, and other accesses to the field are atomic as well.
                    unsafe { $atomic::from_ptr(field.cast()) }.load(order)
                }

                #[doc = concat!("Stores a `", stringify!($int), "` at `gpa`, in native byte order.")]
                #[inline]
                pub fn $store(&self, gpa: u64, value: $int, order: Ordering) {
                    let field = aligned(self.host_ptr(gpa, size_of::<$int>()), size_of::<$int>());
                    // SAFETY: as for the load.
                    unsafe { $atomic::from_ptr(field.cast()) }.store(value, order);
                }
            )+
        }

        impl Span {
            $(
                #[doc = concat!("Loads the `", stringify!($int), "` at `offset`, in native byte order.")]
                #[inline]
                pub fn $load(&self, offset: usize, order: Ordering) -> $int {
                    let field = aligned(self.at(offset, size_of::<$int>()), size_of::<$int>());
                    // SAFETY: `at` checked the bounds and `aligned` the alignment; the mapping
                    // outlives `self`, and other accesses to the field are atomic as well.
                    unsafe { $atomic::from_ptr(field.cast()) }.load(order)
                }

                #[doc = concat!("Stores a `", stringify!($int), "` at `offset`, in native byte order.")]
                #[inline]
                pub fn $store(&self, offset: usize, value: $int, order: Ordering) {
                    let field = aligned(self.at(offset, size_of::<$int>()), size_of::<$int>());
                    // SAFETY: as for the load.
                    unsafe { $atomic::from_ptr(field.cast()) }.store(value, order);
                }
            )+
        }
    };
}

atomic_access!(
    (load_u16, store_u16, u16, AtomicU16),
    (load_u32, store_u32, u32, AtomicU32),
    (load_u64, store_u64, u64, AtomicU64),
);

impl GuestMemory {
    /// Memory with a region for each pair of guest address and size.
    pub fn new(regions: &[(u64, u64)]) -> Self {
        let specs: Vec<_> = regions
            .iter()
            .map(|&(addr, size)| RegionSpec::new(addr, size))
            .collect();
        Self::with_regions(&specs)
    }

    /// Memory with these regions.
    pub fn with_regions(specs: &[RegionSpec]) -> Self {
        Self::of_files(memfd, specs)
    }

    /// Memory with these regions, whose files are made so.
    pub fn of_files(make_file: MakeFile, specs: &[RegionSpec]) -> Self {
        let mut memory = GuestMemory {
            regions: Arc::default(),
            make_file,
        };
        for spec in specs {
            memory.add_region(*spec);
        }
        memory
    }

    /// Adds a region behind the others and returns it.
    ///
    /// # Panics
    ///
    /// Panics if it overlaps another region; tests of overlapping tables send them raw.
    pub fn add_region(&mut self, spec: RegionSpec) -> Arc<Region> {
        let region = Arc::new(Region::new(spec, self.make_file));
        let new = region.guest_range();
        if let Some(other) = self
            .regions
            .iter()
            .find(|r| r.guest_range().start < new.end && new.start < r.guest_range().end)
        {
            panic!("{region:?} overlaps {other:?}");
        }
        Arc::make_mut(&mut self.regions).push(region.clone());
        region
    }

    /// Removes the region with this index and returns it.
    pub fn remove_region(&mut self, index: usize) -> Arc<Region> {
        Arc::make_mut(&mut self.regions).remove(index)
    }

    /// The regions.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Cuts or extends the file of the region with this index to `len` bytes. After a cut,
    /// accesses to pages beyond the end raise SIGBUS, in this process as in the back-end.
    pub fn truncate(&self, index: usize, len: u64) {
        let region = &self.regions[index];
        ftruncate(&region.file, len).unwrap_or_else(|e| panic!("cannot truncate {region:?}: {e}"));
    }

    /// `len` bytes from `gpa`, looked up once for many accesses.
    ///
    /// # Panics
    ///
    /// Panics if the bytes are not within one region.
    pub fn span(&self, gpa: u64, len: usize) -> Span {
        let (region, offset) = self.find(gpa, len);
        Span {
            // SAFETY: `find` checked that the offset is within the region.
            first: unsafe { region.first.add(offset) },
            len,
            region: region.clone(),
        }
    }

    /// Where the `len` bytes from `gpa` are in this process, for code under test that takes host
    /// addresses. The pointer is valid for as long as some handle knows the region.
    ///
    /// # Panics
    ///
    /// Panics if the bytes are not within one region.
    pub fn host_ptr(&self, gpa: u64, len: usize) -> *mut u8 {
        let (region, offset) = self.find(gpa, len);
        // SAFETY: `find` checked that the offset is within the region.
        unsafe { region.first.add(offset) }.as_ptr()
    }

    /// The user address of `gpa`, as in `VHOST_USER_SET_VRING_ADDR`.
    ///
    /// # Panics
    ///
    /// Panics if `gpa` is in no region.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        self.host_ptr(gpa, 1) as u64
    }

    /// Copies from guest memory; the bytes may extend over adjacent regions.
    #[inline]
    pub fn read(&self, mut gpa: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let (here, len) = self.piece(gpa, buf.len());
            let (now, later) = buf.split_at_mut(len);
            // SAFETY: `piece` returns a pointer to `len` mapped bytes; `now` is as long and is
            // not guest memory, to which no reference exists.
            unsafe { ptr::copy_nonoverlapping(here, now.as_mut_ptr(), len) };
            buf = later;
            gpa += len as u64;
        }
    }

    /// Copies to guest memory; the bytes may extend over adjacent regions.
    #[inline]
    pub fn write(&self, mut gpa: u64, mut buf: &[u8]) {
        while !buf.is_empty() {
            let (here, len) = self.piece(gpa, buf.len());
            let (now, later) = buf.split_at(len);
            // SAFETY: as in `read`, in the other direction.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), here, len) };
            buf = later;
            gpa += len as u64;
        }
    }

    /// Fills `len` bytes with `value`.
    pub fn fill(&self, gpa: u64, len: usize, value: u8) {
        let mut done = 0;
        while done < len {
            let (here, piece) = self.piece(gpa + done as u64, len - done);
            // SAFETY: `piece` returns a pointer to that many mapped bytes.
            unsafe { ptr::write_bytes(here, value, piece) };
            done += piece;
        }
    }

    /// The `len` bytes from `gpa`, in a new vector.
    pub fn read_vec(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes);
        bytes
    }

    /// Copies a structure out of guest memory.
    #[inline]
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: u64) -> T {
        let mut object = T::new_zeroed();
        self.read(gpa, object.as_mut_bytes());
        object
    }

    /// Copies a structure into guest memory.
    #[inline]
    pub fn write_obj<T: IntoBytes + zerocopy::Immutable>(&self, gpa: u64, object: T) {
        self.write(gpa, object.as_bytes());
    }

    fn find(&self, gpa: u64, len: usize) -> (&Arc<Region>, usize) {
        self.regions
            .iter()
            .find_map(|r| Some((r, r.offset_of(gpa, len)?)))
            .unwrap_or_else(|| {
                panic!("{len} bytes at guest address {gpa:#x} are not within one region")
            })
    }

    /// A pointer to `gpa` and how many of the `wanted` bytes are in the same region.
    #[inline]
    fn piece(&self, gpa: u64, wanted: usize) -> (*mut u8, usize) {
        let (region, offset) = self.find(gpa, 1);
        let left = region.spec.size as usize - offset;
        // SAFETY: `find` checked that the offset is within the region.
        let here = unsafe { region.first.add(offset) };
        (here.as_ptr(), wanted.min(left))
    }
}

/// Bytes of one region that were looked up before: what rings are made of. Keeps its region alive.
#[derive(Clone, Debug)]
pub struct Span {
    first: NonNull<u8>,
    len: usize,
    region: Arc<Region>,
}

// SAFETY: the pointer is into the region, which is `Send`, and is used in the same ways.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region that the bytes are in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Copies from guest memory.
    #[inline]
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        let here = self.at(offset, buf.len());
        // SAFETY: `at` checked the bounds; `buf` is not guest memory, to which no reference exists.
        unsafe { ptr::copy_nonoverlapping(here, buf.as_mut_ptr(), buf.len()) };
    }

    /// Copies to guest memory.
    #[inline]
    pub fn write(&self, offset: usize, buf: &[u8]) {
        let here = self.at(offset, buf.len());
        // SAFETY: as in `read`, in the other direction.
        unsafe { ptr::copy_nonoverlapping(buf.as_ptr(), here, buf.len()) };
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, value: u8) {
        // SAFETY: the span is `len` mapped bytes.
        unsafe { ptr::write_bytes(self.first.as_ptr(), value, self.len) };
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at offset {offset} are not within a span of {}",
            self.len
        );
        // SAFETY: just checked.
        unsafe { self.first.add(offset) }.as_ptr()
    }
}

/// A pointer, checked to be aligned to `size` bytes.
#[inline]
fn aligned(here: *mut u8, size: usize) -> *mut u8 {
    assert!(
        (here as usize).is_multiple_of(size),
        "the {size} bytes at {here:p} are not aligned"
    );
    here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_extend_over_adjacent_regions() {
        let memory = GuestMemory::new(&[(0x1000, 0x1000), (0x2000, 0x1000)]);
        memory.write(0x1ffe, &[1, 2, 3, 4]);
        assert_eq!(memory.read_vec(0x1ffe, 4), [1, 2, 3, 4]);
        assert_eq!(memory.read_obj::<u16>(0x2000), u16::from_ne_bytes([3, 4]));
        memory.fill(0x1fff, 2, 9);
        assert_eq!(memory.read_vec(0x1ffe, 4), [1, 9, 9, 4]);
    }

    #[test]
    fn integers_are_shared_by_clones() {
        let memory = GuestMemory::new(&[(0x1000, 0x1000)]);
        let clone = memory.clone();
        memory.store_u16(0x1002, 0x1234, Ordering::Release);
        memory.store_u64(0x1008, 7, Ordering::Relaxed);
        assert_eq!(clone.load_u16(0x1002, Ordering::Acquire), 0x1234);
        assert_eq!(clone.load_u32(0x1008, Ordering::Relaxed), 7);
        assert_eq!(clone.read_obj::<u64>(0x1008), 7);
    }

    #[test]
    fn regions_start_anywhere_in_their_file() {
        let spec = RegionSpec {
            guest_addr: 0x10_0000,
            size: 0x3000,
            mmap_offset: 0x1234,
            file_len: Some(0x8000),
        };
        let memory = GuestMemory::with_regions(&[spec]);
        let region = &memory.regions()[0];
        memory.write(0x10_0000, b"first");
        let mut bytes = [0; 5];
        rustix::io::pread(region.fd(), &mut bytes, 0x1234).unwrap();
        assert_eq!(&bytes, b"first");
        assert_eq!(memory.user_addr(0x10_0005), region.user_addr() + 5);
        assert_eq!(rustix::fs::fstat(region.fd()).unwrap().st_size, 0x8000);
        memory.truncate(0, 0x1000);
        assert_eq!(rustix::fs::fstat(region.fd()).unwrap().st_size, 0x1000);
    }

    #[test]
    fn a_removed_region_lives_while_it_is_used() {
        let mut memory = GuestMemory::new(&[(0, 0x1000)]);
        memory.add_region(RegionSpec::new(0x10_0000, 0x1000));
        let span = memory.span(0x10_0000, 8);
        let removed = memory.remove_region(1);
        assert_eq!(removed.guest_range(), 0x10_0000..0x10_1000);
        drop(removed);
        span.store_u16(6, 3, Ordering::Relaxed);
        assert_eq!(span.load_u16(6, Ordering::Relaxed), 3);
        assert_eq!(memory.regions().len(), 1);
    }

    #[test]
    #[should_panic(expected = "not within one region")]
    fn pointers_do_not_extend_over_regions() {
        GuestMemory::new(&[(0, 0x1000), (0x1000, 0x1000)]).host_ptr(0xfff, 2);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn regions_do_not_overlap() {
        GuestMemory::new(&[(0, 0x2000), (0x1000, 0x1000)]);
    }

    #[test]
    #[should_panic(expected = "not aligned")]
    fn integers_are_aligned() {
        GuestMemory::new(&[(0, 0x1000)]).load_u32(2, Ordering::Relaxed);
    }
}
