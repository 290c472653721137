//! Random bytes in stock: one call of the source serves many small requests.

use std::hint::black_box;

use vhost_device_queue::Writer;
use vm_memory::{VolatileMemoryError, VolatileSlice};

use crate::host::Source;

/// How many bytes are fetched at once: 64 requests of Linux's driver.
const SIZE: usize = 4096;

/// A stock of random bytes. Each byte is handed out once and wiped at once, so that whoever gets
/// to see this memory learns nothing of what a guest was given.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8; SIZE]>,
    /// `bytes[next..]` is the stock; what is before it has been wiped.
    next: usize,
}

impl Block {
    /// An empty stock.
    pub(crate) fn new() -> Self {
        Self {
            bytes: Box::new([0; SIZE]),
            next: SIZE,
        }
    }

    /// Writes `count` bytes, refilled from `source` as needed. Fewer only if the source gives no
    /// more, 0 if it is at its end.
    ///
    /// # Errors
    /// The source's, when nothing was written.
    pub(crate) fn write_to(
        &mut self,
        writer: &mut Writer<'_>,
        count: usize,
        source: &impl Source,
    ) -> Result<usize, VolatileMemoryError> {
        let count = count.min(writer.remaining());
        let mut done = 0;
        while done < count {
            if self.next == SIZE {
                match self.refill(source) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            let end = SIZE.min(self.next + count - done);
            let piece = &mut self.bytes[self.next..end];
            if writer.write_all(piece).is_err() {
                break;
            }
            wipe(piece);
            done += piece.len();
            self.next = end;
        }
        Ok(done)
    }

    /// Forgets the stock.
    pub(crate) fn clear(&mut self) {
        wipe(&mut self.bytes[self.next..]);
        self.next = SIZE;
    }

    /// Fetches up to a block. A source that gives less fills the end of the block.
    fn refill(&mut self, source: &impl Source) -> Result<usize, VolatileMemoryError> {
        let bytes = source.read(&mut VolatileSlice::from(&mut self.bytes[..]))?;
        self.bytes.copy_within(..bytes, SIZE - bytes);
        self.next = SIZE - bytes;
        wipe(&mut self.bytes[..SIZE - bytes]);
        Ok(bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Zeroes `bytes`. The compiler must take it that they are looked at afterwards.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}
