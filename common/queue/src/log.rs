//! The dirty log (vhost-user "Migration"): a bit for each page of guest memory that is written, for
//! a front-end that copies the guest to another host while it runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::chain::Segment;
use crate::memory::Mapping;

/// How many bytes of guest memory a bit stands for (vhost-user `VHOST_LOG_PAGE`).
const LOG_PAGE: u64 = 0x1000;

/// The bits, in memory that the front-end shares.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Mapping,
}

impl DirtyLog {
    /// The log in `bits`: page 0 of guest memory is the lowest bit of the first byte.
    pub fn new(bits: Mapping) -> Self {
        Self { bits }
    }

    /// Where it begins in this process, and how long it is in bytes.
    pub fn range(&self) -> (usize, usize) {
        self.bits.range()
    }

    /// Marks the pages of `len` bytes at `addr`, which have been written: whoever takes the bit
    /// sees the bytes. Pages that the log has no bits for are left out.
    pub(crate) fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|rest| addr.checked_add(rest)) else {
            return;
        };
        for page in addr / LOG_PAGE..=last / LOG_PAGE {
            let byte = usize::try_from(page / 8).ok();
            let Some(byte) = byte.and_then(|byte| self.bits.byte(byte)) else {
                return;
            };
            byte.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

/// What of a queue is logged: always what is written for the driver, and the ring if wanted.
#[derive(Clone, Debug)]
pub struct QueueLog {
    /// Where.
    pub dirty: Arc<DirtyLog>,
    /// The address at which the used ring is logged, or a packed ring's device area; not at all
    /// without one.
    pub used: Option<u64>,
}

impl QueueLog {
    /// Marks the first `written` bytes of a chain's writable buffers.
    #[cold]
    pub(crate) fn mark_written(&self, writable: &[Segment], written: usize) {
        let mut left = written;
        for segment in writable {
            let now = segment.len.min(left);
            self.dirty.mark(segment.guest_addr, now as u64);
            left -= now;
        }
    }

    /// Marks the last byte of a chain's writable buffers.
    pub(crate) fn mark_last(&self, writable: &[Segment]) {
        let last = writable.iter().rfind(|segment| segment.len > 0);
        if let Some(last) = last {
            // Fits: a segment was found in a region, which does not go beyond 2^64.
            let addr = last.guest_addr.saturating_add(last.len as u64 - 1);
            self.dirty.mark(addr, 1);
        }
    }

    /// Marks `len` bytes of the used ring, from `offset`.
    pub(crate) fn mark_used(&self, offset: usize, len: usize) {
        if let Some(used) = self.used {
            self.dirty
                .mark(used.saturating_add(offset as u64), len as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn log(len: usize) -> DirtyLog {
        let fd = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(fd.expect("a memfd"));
        file.set_len(len as u64).expect("a length");
        DirtyLog::new(Mapping::new(&file, 0, len).expect("a mapping"))
    }

    fn bytes(log: &DirtyLog, len: usize) -> Vec<u8> {
        let load = |index| {
            log.bits
                .byte(index)
                .expect("inside")
                .load(Ordering::Relaxed)
        };
        (0..len).map(load).collect()
    }

    #[test]
    fn v8_a_bit_stands_for_a_page_and_no_page_beyond_the_log_is_marked() {
        for (addr, len, expected) in [
            (0, 0, [0, 0]),
            (0, 1, [1, 0]),
            (0xfff, 1, [1, 0]),
            (0xfff, 2, [3, 0]),
            (0x7000, 0x1001, [0x80, 1]),
            (0xf000, 0x1000, [0, 0x80]),
            (0xf000, u64::MAX / 2, [0, 0x80]),
            (0x10000, 0x1000, [0, 0]),
            (u64::MAX, 1, [0, 0]),
            (u64::MAX, 2, [0, 0]),
        ] {
            let log = log(2);
            log.mark(addr, len);
            assert_eq!(bytes(&log, 2), expected, "{addr:#x} {len:#x}");
        }
    }
}
