//! [`Reader`] and [`Writer`]: a chain's bytes in order, however the driver cut them.
//!
//! They copy; nothing borrows guest memory. A structure is read whole and once, so that what was
//! checked is what is used.

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::chain::{Buffers, Segment};
use crate::memory::GuestMemory;

/// A buffer that the driver made too short for what was to be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer has {left} bytes left, {wanted} are needed")]
pub struct Short {
    /// How many bytes were asked for.
    pub wanted: usize,
    /// How many there were.
    pub left: usize,
}

/// A place in a list of segments. The segments were resolved in guest memory that is borrowed
/// for `'a`, so they stay mapped for as long as the cursor lives.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    segments: &'a [Segment],
    /// The segment that the place is in.
    index: usize,
    /// How many bytes of it were passed; fewer than it has.
    passed: usize,
    /// How many bytes there are from the place on.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// `len` bytes from the segment with this index on; all segments are in `_memory`.
    #[inline]
    fn new(_memory: &'a GuestMemory, segments: &'a [Segment], index: usize, len: usize) -> Self {
        Self {
            segments,
            index,
            passed: 0,
            left: len,
        }
    }

    #[inline]
    fn check(&self, wanted: usize) -> Result<(), Short> {
        if wanted > self.left {
            return Err(Short {
                wanted,
                left: self.left,
            });
        }
        Ok(())
    }

    /// The bytes at the cursor up to the end of their segment; `None` when none are left.
    #[inline]
    fn piece(&self) -> Option<VolatileSlice<'a, ()>> {
        if self.left == 0 {
            return None;
        }
        let segment = self.segments.get(self.index)?;
        let left = segment.len.checked_sub(self.passed)?;
        // SAFETY: `Chain` or `Quick` resolved the segment in the memory that is borrowed for `'a`
        // (see `new`): `len` mapped bytes, of which `passed` are passed over. They are the guest's,
        // and `VolatileSlice` makes volatile accesses only.
        Some(unsafe { VolatileSlice::new(segment.host.add(self.passed).as_ptr(), left) })
    }

    /// Moves on by `count` bytes, at most to the end of the current piece.
    #[inline]
    fn advance(&mut self, count: usize) {
        let Some(segment) = self.segments.get(self.index) else {
            return;
        };
        let count = count.min(segment.len - self.passed);
        self.passed += count;
        self.left -= count;
        if self.passed == segment.len {
            self.index += 1;
            self.passed = 0;
        }
    }
}

/// The bytes that the device may read, in order.
#[derive(Debug)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(memory: &'a GuestMemory, buffers: &Buffers<'a>) -> Self {
        let Buffers {
            segments,
            readable_len,
            ..
        } = *buffers;
        Self(Cursor::new(memory, segments, 0, readable_len))
    }

    /// How many bytes are left to read.
    pub fn remaining(&self) -> usize {
        self.0.left
    }

    /// Fills `buf` with the next bytes.
    ///
    /// # Errors
    /// When fewer bytes are left; then nothing was read.
    pub fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), Short> {
        self.0.check(buf.len())?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..)
            && !rest.is_empty()
            && let Some(piece) = self.0.piece()
        {
            let count = piece.copy_to(rest);
            self.0.advance(count);
            done += count;
        }
        Ok(())
    }

    /// Reads a structure of the specification, whole and once.
    ///
    /// # Errors
    /// When fewer bytes are left; then nothing was read.
    pub fn read_obj<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Short> {
        let mut object = T::new_zeroed();
        self.read_exact(object.as_mut_bytes())?;
        Ok(object)
    }

    /// Passes over `count` bytes.
    ///
    /// # Errors
    /// When fewer bytes are left; then the reader has not moved.
    pub fn skip(&mut self, count: usize) -> Result<(), Short> {
        self.0.check(count)?;
        let mut left = count;
        while left > 0
            && let Some(piece) = self.0.piece()
        {
            let step = left.min(piece.len());
            self.0.advance(step);
            left -= step;
        }
        Ok(())
    }
}

/// The bytes that the device may write, in order. What was written is the request's used length.
#[derive(Debug)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    len: usize,
}

impl<'a> Writer<'a> {
    #[inline]
    pub(crate) fn new(memory: &'a GuestMemory, buffers: &Buffers<'a>) -> Self {
        let Buffers {
            segments,
            readable,
            writable_len,
            ..
        } = *buffers;
        Self {
            cursor: Cursor::new(memory, segments, readable, writable_len),
            len: writable_len,
        }
    }

    /// How many bytes there is room for.
    pub fn remaining(&self) -> usize {
        self.cursor.left
    }

    /// How many bytes were written.
    pub fn written(&self) -> usize {
        self.len - self.cursor.left
    }

    /// Writes all of `buf`.
    ///
    /// # Errors
    /// When there is less room; then nothing was written.
    pub fn write_all(&mut self, buf: &[u8]) -> Result<(), Short> {
        self.cursor.check(buf.len())?;
        let mut rest = buf;
        while !rest.is_empty()
            && let Some(piece) = self.cursor.piece()
        {
            let (now, later) = rest.split_at(rest.len().min(piece.len()));
            piece.copy_from(now);
            self.cursor.advance(now.len());
            rest = later;
        }
        Ok(())
    }

    /// Writes a structure of the specification.
    ///
    /// # Errors
    /// When there is less room; then nothing was written.
    pub fn write_obj<T: IntoBytes + Immutable>(&mut self, object: &T) -> Result<(), Short> {
        self.write_all(object.as_bytes())
    }

    /// Writes `count` zeros.
    ///
    /// # Errors
    /// When there is less room; then nothing was written.
    pub fn write_zeros(&mut self, count: usize) -> Result<(), Short> {
        const ZEROS: [u8; 256] = [0; 256];
        self.cursor.check(count)?;
        let mut left = count;
        while left > 0 {
            let now = ZEROS.get(..left).unwrap_or(&ZEROS);
            self.write_all(now)?;
            left -= now.len();
        }
        Ok(())
    }

    /// Writes the last byte that there is room for, wherever the writer is. It is not counted.
    pub(crate) fn write_last(&self, byte: u8) {
        let mut cursor = self.cursor.clone();
        while let Some(piece) = cursor.piece() {
            let len = piece.len();
            if len == cursor.left {
                piece
                    .offset(len - 1)
                    .map(|last| last.copy_from(&[byte]))
                    .ok();
            }
            cursor.advance(len);
        }
    }

    /// Takes at most `count` bytes from `source`, straight into guest memory, until it gives no
    /// more.
    ///
    /// # Errors
    /// The source's, when it gave nothing at all; an error after some bytes ends the call.
    pub fn write_from<S: ReadVolatile>(
        &mut self,
        source: &mut S,
        count: usize,
    ) -> Result<usize, VolatileMemoryError> {
        transfer(&mut self.cursor, count, |piece| source.read_volatile(piece))
    }
}

/// Lets `step` work on one piece after the other, until `count` bytes are done or it does none.
fn transfer<'a>(
    cursor: &mut Cursor<'a>,
    count: usize,
    mut step: impl FnMut(&mut VolatileSlice<'a, ()>) -> Result<usize, VolatileMemoryError>,
) -> Result<usize, VolatileMemoryError> {
    let mut done = 0;
    while done < count
        && let Some(piece) = cursor.piece()
    {
        let mut piece = piece.subslice(0, piece.len().min(count - done))?;
        match step(&mut piece) {
            Ok(0) => break,
            Ok(bytes) => {
                let bytes = bytes.min(piece.len());
                cursor.advance(bytes);
                done += bytes;
            }
            Err(error) => {
                touch_if_lost(&piece, &error);
                if done == 0 {
                    return Err(error);
                }
                break;
            }
        }
    }
    Ok(done)
}

/// The kernel says of memory whose file was truncated that its address is bad. Touching it tells
/// whoever watches for that (SIGBUS), as an access of our own would have.
fn touch_if_lost(piece: &VolatileSlice<'_, ()>, error: &VolatileMemoryError) {
    if let VolatileMemoryError::IOError(error) = error
        && error.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error())
    {
        piece.copy_to(&mut [0u8; 1]);
    }
}
