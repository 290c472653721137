//! Lines that are logged and not written yet: a bounded buffer between the threads that serve
//! guests and the one thread that writes.
//!
//! # Why nobody who logs waits
//! [`Buffer::push`] takes the lock, copies a line, wakes the writer, and leaves. The lock is never
//! held while something is written, or waited for: [`Buffer::take`] swaps two vectors under it,
//! and the thread writes what it has taken after it has let go. So a thread that logs
//! waits at most while others copy their lines, however long the reader of the log sleeps.
//!
//! # Why the memory is bounded
//! Lines are taken up to the limit. With the batch that is being written, twice the limit is held.
//! There is no limit until [`Buffer::limit`] is called: nobody is served yet, only the command line
//! determines what is logged, and none of that may be lost.
//!
//! # Why a gap is counted, and reported in its place
//! The first line that does not fit closes the buffer for those behind it, too, short as they may
//! be. `take` empties it and gets their number. So a gap is always at the end of a batch, and the
//! writer says how long it is between that batch and the next.
//!
//! # Why nothing is lost at the end
//! [`Buffer::finish`] asks the writer to end, and waits until a `take` has found the buffer empty
//! *after* what was taken before has been written, as it is the writer who comes for more. It waits
//! until a deadline only: the writer may sleep in `write` forever. A line that is pushed
//! after the end comes from a thread that the process leaves behind, and is not written.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Buffer {
    state: Mutex<State>,
    /// There is something to take, or the writer is to end.
    filled: Condvar,
    /// The writer has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    lines: Vec<u8>,
    /// How many bytes `lines` may have.
    limit: usize,
    /// How many lines did not fit since the last `take`.
    left_out: u64,
    ends: bool,
    has_ended: bool,
}

impl Buffer {
    /// An empty one, without a limit.
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                lines: Vec::new(),
                limit: usize::MAX,
                left_out: 0,
                ends: false,
                has_ended: false,
            }),
            filled: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// From now on it holds so many bytes at most.
    pub(super) fn limit(&self, bytes: usize) {
        self.state().limit = bytes;
    }

    /// Adds the lines of one message, or counts one as left out.
    pub(super) fn push(&self, message: &[u8]) {
        let mut state = self.state();
        let room = state.limit.saturating_sub(state.lines.len());
        if state.left_out > 0 || message.len() > room {
            state.left_out = state.left_out.saturating_add(1);
        } else {
            state.lines.extend_from_slice(message);
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Waits for lines, and swaps them for `batch`, which must be written and is emptied; gives
    /// the number of those that were left out behind them. `None` is the end. For one thread.
    pub(super) fn take(&self, batch: &mut Vec<u8>) -> Option<u64> {
        batch.clear();
        let mut state = self.state();
        while state.lines.is_empty() && state.left_out == 0 {
            if state.ends {
                state.has_ended = true;
                drop(state);
                self.ended.notify_all();
                return None;
            }
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.lines, batch);
        Some(std::mem::take(&mut state.left_out))
    }

    /// Has the writer end when it has written everything, and waits for that until `deadline`.
    pub(super) fn finish(&self, deadline: Instant) {
        let mut state = self.state();
        state.ends = true;
        self.filled.notify_one();
        while !state.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (state, _) = self
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Poisoned or not, the state is sound: nothing panics between two of its changes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn take(buffer: &Buffer) -> (String, u64) {
        let mut batch = b"what was written before".to_vec();
        let left_out = buffer.take(&mut batch).unwrap();
        (String::from_utf8(batch).unwrap(), left_out)
    }

    #[test]
    fn test_lines_come_out_in_their_order_and_the_gap_is_behind_them() {
        let buffer = Buffer::new();
        buffer.limit(8);
        for line in ["one\n", "two\n", "three\n", "4\n"] {
            buffer.push(line.as_bytes());
        }
        // The fourth has left no gap before it, as it would have fitted only in the order 1, 2, 4.
        assert_eq!(take(&buffer), ("one\ntwo\n".to_owned(), 2));
        buffer.push(b"five\n");
        assert_eq!(take(&buffer), ("five\n".to_owned(), 0));
        buffer.push(b"longer than the limit\n");
        assert_eq!(take(&buffer), (String::new(), 1));
    }

    #[test]
    fn test_nothing_is_left_out_before_there_is_a_limit() {
        let buffer = Buffer::new();
        for _ in 0..100_000 {
            buffer.push(b"0123456789\n");
        }
        buffer.limit(1);
        buffer.push(b"1\n");
        let (lines, left_out) = take(&buffer);
        assert_eq!((lines.len(), left_out), (1_100_000, 1));
    }

    #[test]
    fn test_the_end_waits_for_what_is_being_written() {
        let buffer = Arc::new(Buffer::new());
        let writer = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || {
                let (mut batch, mut seen) = (Vec::new(), Vec::new());
                while buffer.take(&mut batch).is_some() {
                    thread::yield_now();
                    seen.extend_from_slice(&batch);
                }
                seen
            }
        });
        for _ in 0..1000 {
            buffer.push(b"line\n");
        }
        // Only a hang takes as long.
        buffer.finish(Instant::now() + Duration::from_secs(60));
        assert!(buffer.state().has_ended);
        assert_eq!(writer.join().unwrap().len(), 5000);
    }

    #[test]
    fn test_the_end_waits_for_no_writer_that_sleeps() {
        let buffer = Buffer::new();
        buffer.push(b"line\n");
        buffer.finish(Instant::now() + Duration::from_millis(1));
        assert!(!buffer.state().has_ended);
    }
}
