//! A file that is truncated under its mapping ends one session, not the process.
//!
//! The front-end owns the files that guest memory is mapped from, and may truncate one at any
//! time; the next access raises SIGBUS. The handler puts zeros under the whole mapping, so that
//! the access ends, and notes it; the session sees the note and closes the connection. Faults
//! elsewhere are left to the default action.
//!
//! The handler must not fail, as all guests of the process would go with the one, and so it asks
//! for nothing that the system may refuse:
//!
//! - The zeros are those of a sparse file that each session has from its beginning. Shared memory
//!   of a file is charged page by page, when it is touched; private memory may be charged as a
//!   whole, when it is mapped (`vm.overcommit_memory` 2, `RLIMIT_DATA`). It is freed with the
//!   session.
//! - The file's two pages in the middle are there from the beginning too, and the page that was
//!   lost becomes the first of them. So the access ends even if there is no memory for other pages:
//!   a page that cannot be had raises SIGBUS again, and is the next to become it. For that, no
//!   instruction may need two distant pages of a mapping at once, and none does: what is copied
//!   from guest memory is not copied to guest memory.
//! - The mapping is replaced as a whole, so that the process has no more mappings than before.
//!   Should it have as many as it may, or should the kernel have made one of the mappings of two
//!   sessions, spare ones are given up.
//!
//! If the mapping cannot be replaced all the same, the thread tries again until it can, as others
//! may give back what is missing. Until then its session does not end, but the others go on. So it
//! is with a session that could not have its file (no file descriptor was left, or `RLIMIT_FSIZE`
//! forbids it), which is served all the same: its zeros are private memory.

use std::cell::Cell;
use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::raw::c_int;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::event::{Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;
use vmm_sys_util::signal::register_signal_handler;

use crate::memory_file::memfd;

/// The two pages of a session's zeros that need no memory when they are touched. Addresses end long
/// before, so any mapping has room on either side of it.
const MIDDLE: u64 = 1 << 62;
/// How long the zeros are.
const ZEROS: u64 = MIDDLE + MIDDLE / 2;

/// How soon what has failed is tried again.
const AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Address and length of a mapping.
type Range = (usize, usize);

/// What the handler knows of a session.
#[derive(Clone, Copy)]
struct Watched {
    /// The list of the mappings, and its length.
    ranges: (*const Range, usize),
    /// The file, if it has one.
    zeros: Option<RawFd>,
    page: usize,
}

thread_local! {
    /// The session that runs on this thread, as its [`Watch`] has it. None of these needs
    /// initialisation or a destructor, so a signal handler may reach them.
    static WATCHED: Cell<Option<Watched>> = const { Cell::new(None) };
    static SPARE: Cell<Option<Range>> = const { Cell::new(None) };
    static HIT: Cell<bool> = const { Cell::new(false) };
}

/// Watches the mappings of this thread's session. Unwatched when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    ranges: Vec<Range>,
    zeros: Option<File>,
    page: usize,
}

impl Watch {
    pub(crate) fn new() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            if let Err(error) = register_signal_handler(libc::SIGBUS, on_sigbus) {
                log::warn!(
                    "cannot handle SIGBUS, a front-end that truncates its memory will end the \
                     daemon: {error}"
                );
            }
        });
        let page = page_size();
        let (zeros, spare) = prepare(page).unzip();
        SPARE.set(spare);
        HIT.set(false);
        Self {
            ranges: Vec::new(),
            zeros,
            page,
        }
    }

    /// From now on, these are the mappings.
    pub(crate) fn set(&mut self, mappings: impl Iterator<Item = Range>) {
        let ranges = joined(mappings.collect(), self.page);
        // Before the old list goes, and before memory is touched that only the new one has.
        WATCHED.set(Some(Watched {
            ranges: (ranges.as_ptr(), ranges.len()),
            zeros: self.zeros.as_ref().map(AsRawFd::as_raw_fd),
            page: self.page,
        }));
        compiler_fence(Ordering::SeqCst);
        self.ranges = ranges;
    }

    /// Whether a mapping has lost its file.
    pub(crate) fn was_hit(&self) -> bool {
        HIT.get()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(None);
        compiler_fence(Ordering::SeqCst);
        give_up_spare();
    }
}

/// The mappings, with those that adjoin joined: if they are of one file, the kernel may have made
/// one of them, and to replace a part of it would make three.
fn joined(mut ranges: Vec<Range>, page: usize) -> Vec<Range> {
    ranges.sort_unstable();
    ranges.dedup_by(|&mut (next, next_len), (start, len)| {
        let adjoins = *start + len.next_multiple_of(page) == next;
        if adjoins {
            *len = next - *start + next_len;
        }
        adjoins
    });
    ranges
}

/// The zeros of a session and its spare mappings, if there can be any.
fn prepare(page: usize) -> Option<(File, Range)> {
    let make = || {
        let zeros = memfd(c"vhost-device-zeros")?;
        ftruncate(&zeros, ZEROS)?;
        fallocate(&zeros, FallocateFlags::empty(), MIDDLE, 2 * page as u64)?;
        let spare = map_spare(&zeros, page)?;
        Ok((zeros, spare))
    };
    let made: Result<_, Errno> = make();
    made.inspect_err(|error| log::debug!("no file of zeros for a session: {error}"))
        .ok()
}

/// Three mappings of a page each that the kernel does not join, in one range.
fn map_spare(zeros: &File, page: usize) -> Result<Range, Errno> {
    let len = 3 * page;
    let (none, shared) = (ProtFlags::empty(), MapFlags::SHARED);
    // SAFETY: a new mapping at an address that the kernel chooses: it overlaps nothing.
    let start = unsafe { mmap(ptr::null_mut(), len, none, shared, zeros, 0)? };
    // SAFETY: the second of the three pages.
    let split = unsafe { mprotect(start.wrapping_byte_add(page), page, MprotectFlags::READ) };
    split.inspect_err(|_| {
        // SAFETY: the mapping made above, of which nobody knows yet. Fails only for one that is
        // none.
        let _ = unsafe { munmap(start, len) };
    })?;
    Ok((start as usize, len))
}

/// Unmaps the spare mappings, unless that was done before. A signal handler may call it.
fn give_up_spare() {
    if let Some((start, len)) = SPARE.take() {
        // SAFETY: what `map_spare` mapped, which nobody reaches; it was taken, so that it is
        // unmapped once. Fails only for a range that is none.
        let _ = unsafe { munmap(start as *mut c_void, len) };
    }
}

/// The mapping of this thread's session that `addr` is in, and what is known of the session.
fn find(addr: usize) -> Option<(Range, Watched)> {
    let watched = WATCHED.get()?;
    let (list, len) = watched.ranges;
    // SAFETY: the list of a `Watch` on this thread, which takes it from here before it drops or
    // changes it.
    let ranges = unsafe { std::slice::from_raw_parts(list, len) };
    let mut ranges = ranges.iter().copied();
    let range = ranges.find(|&(start, len)| addr.wrapping_sub(start) < len)?;
    Some((range, watched))
}

/// Only what a signal handler may do: system calls, this thread's variables, and no allocation.
/// They leave the `errno` of the thread as it is, or nobody cares: it was interrupted by its own
/// access to guest memory, not between a call and a look at what became of it.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and for SIGBUS it has an address.
    let addr = unsafe { (*info).si_addr() } as usize;
    let Some((range, watched)) = find(addr) else {
        // Not guest memory: the default action, when the access is repeated.
        // SAFETY: `signal` and SIG_DFL are valid, and `signal` may be called in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    HIT.set(true);
    while replace_with_zeros(range, addr, watched).is_err() {
        if SPARE.get().is_some() {
            give_up_spare();
        } else {
            // Fails only for times that are none; and then it is tried at once.
            let _ = poll(&mut [], Some(&AGAIN));
        }
    }
}

/// Maps zeros over the range, with those that need no memory at `addr`.
fn replace_with_zeros((start, len): Range, addr: usize, watched: Watched) -> Result<(), Errno> {
    let place = start as *mut c_void;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::NORESERVE | MapFlags::FIXED;
    let Some(zeros) = watched.zeros else {
        // SAFETY: the range is mappings of this session, which nothing but guest memory uses; it
        // stays mapped, so every pointer into it stays good.
        return unsafe { mmap_anonymous(place, len, access, flags | MapFlags::PRIVATE) }.map(drop);
    };
    // SAFETY: the file of the `Watch` on this thread, which is open until it has dropped.
    let zeros = unsafe { BorrowedFd::borrow_raw(zeros) };
    // What is before the page in the range is before the middle of the file.
    let before = (addr - start) / watched.page * watched.page;
    let offset = MIDDLE - before as u64;
    // SAFETY: as above.
    unsafe { mmap(place, len, access, flags | MapFlags::SHARED, zeros, offset) }.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use vhost_device_queue::memory::Mapping;

    use super::*;

    #[test]
    fn mappings_that_adjoin_are_replaced_as_one() {
        let ranges = vec![
            (0x5000, 0x1000),
            (0x1000, 0x1800),
            (0x9000, 1),
            (0x3000, 0x2000),
        ];
        let expected = [(0x1000, 0x5000), (0x9000, 1)];
        assert_eq!(joined(ranges, 0x1000), expected);
    }

    #[test]
    fn a_page_that_there_is_no_memory_for_is_lost_too() {
        let (done, end) = channel();
        thread::spawn(move || {
            let page = page_size();
            let mut watch = Watch::new();
            // As if there were no memory: the pages behind those in the middle raise SIGBUS.
            let zeros = watch.zeros.as_ref().unwrap();
            zeros.set_len(MIDDLE + 2 * page as u64).unwrap();
            let file = memfd(c"test").unwrap();
            file.set_len(10 * page as u64).unwrap();
            let mapping = Mapping::new(&file, 0, 10 * page).unwrap();
            let (start, _) = mapping.range();
            watch.set([mapping.range()].into_iter());
            assert!(!watch.was_hit());
            file.set_len(0).unwrap();
            // The last access needs two pages at once.
            for at in [page, 3 * page, 9 * page, 6 * page - 4] {
                let place = (start + at) as *mut u64;
                // SAFETY: inside the mapping, and read and written nowhere else.
                let read = unsafe {
                    place.write_unaligned(at as u64);
                    place.read_unaligned()
                };
                assert_eq!(read, at as u64);
            }
            done.send(watch.was_hit()).unwrap();
        });
        // Else it goes from fault to fault for ever.
        assert_eq!(end.recv_timeout(Duration::from_secs(10)), Ok(true));
    }
}
