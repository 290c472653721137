//! A file that is truncated under its mapping ends one session, not the process.
//!
//! The front-end owns the files that guest memory is mapped from, and may truncate one at any
//! time; the next access raises SIGBUS. The handler puts zeros under the whole mapping, so that
//! the access ends, and notes it; the session sees the note and closes the connection. Faults
//! elsewhere are left to the default action.

use std::cell::Cell;
use std::io;
use std::os::raw::c_int;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{Ordering, compiler_fence};

use vmm_sys_util::signal::register_signal_handler;

/// Address and length of a mapping.
type Range = (usize, usize);

thread_local! {
    /// The mappings of the session that runs on this thread: the list of its [`Watch`]. Neither
    /// of the two needs initialisation or a destructor, so a signal handler may reach them.
    static RANGES: Cell<(*const Range, usize)> = const { Cell::new((ptr::null(), 0)) };
    static HIT: Cell<bool> = const { Cell::new(false) };
}

/// Watches the mappings of this thread's session. Unwatched when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    ranges: Vec<Range>,
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
        HIT.set(false);
        Self { ranges: Vec::new() }
    }

    /// From now on, these are the mappings.
    pub(crate) fn set(&mut self, mappings: impl Iterator<Item = Range>) {
        let ranges: Vec<Range> = mappings.collect();
        // Before the old list goes, and before memory is touched that only the new one has.
        RANGES.set((ranges.as_ptr(), ranges.len()));
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
        RANGES.set((ptr::null(), 0));
        compiler_fence(Ordering::SeqCst);
    }
}

/// The mapping of this thread's session that `addr` is in.
fn find(addr: usize) -> Option<Range> {
    let (list, len) = RANGES.get();
    if list.is_null() {
        return None;
    }
    // SAFETY: the list of a `Watch` on this thread, which takes it from here before it drops or
    // changes it.
    let ranges = unsafe { std::slice::from_raw_parts(list, len) };
    ranges
        .iter()
        .copied()
        .find(|&(start, len)| addr.wrapping_sub(start) < len)
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and for SIGBUS it has an address.
    let addr = unsafe { (*info).si_addr() } as usize;
    match find(addr) {
        Some((start, len)) if replace_with_zeros(start, len).is_ok() => HIT.set(true),
        _ => {
            // Not guest memory: the default action, when the access is repeated.
            // SAFETY: `signal` and SIG_DFL are valid, and `signal` may be called in a handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Maps zeros over the range. Only calls that a signal handler may make.
fn replace_with_zeros(start: usize, len: usize) -> io::Result<()> {
    // SAFETY: the range is a mapping of this session, which nothing but guest memory uses; it
    // stays mapped, so every pointer into it stays good.
    let mapped = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
