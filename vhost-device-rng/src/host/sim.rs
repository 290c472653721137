//! A source for tests: gives what it is told to, at the time that it is told.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileMemoryError, VolatileSlice};

use super::Source;

/// What one read does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Gives at most this many bytes; 0 is the end of the source.
    Give(usize),
    /// Fails.
    Fail(io::ErrorKind),
}

/// Counts upwards: the n-th byte that it gives is `n % 251`.
#[derive(Debug)]
pub(crate) struct Sim {
    plentiful: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    steps: VecDeque<Step>,
    reads: Vec<usize>,
    given: usize,
    now: Instant,
}

impl Sim {
    /// Gives all that is asked for.
    pub(crate) fn new(plentiful: bool) -> Self {
        Self {
            plentiful,
            state: Mutex::new(State {
                steps: VecDeque::new(),
                reads: Vec::new(),
                given: 0,
                now: Instant::now(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the next reads do, before it gives all again.
    pub(crate) fn script(&self, steps: &[Step]) {
        self.state().steps.extend(steps);
    }

    /// The length that each read since the last call asked for.
    pub(crate) fn reads(&self) -> Vec<usize> {
        std::mem::take(&mut self.state().reads)
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) {
        self.state().now += time;
    }
}

/// The bytes that a [`Sim`] gives from the `from`-th on.
pub(crate) fn expected(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|n| (n % 251) as u8).collect()
}

impl Source for Sim {
    fn name(&self) -> &str {
        "the simulator"
    }

    fn read<B: BitmapSlice>(
        &self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut state = self.state();
        state.reads.push(buffer.len());
        let count = match state.steps.pop_front() {
            None => buffer.len(),
            Some(Step::Give(count)) => count.min(buffer.len()),
            Some(Step::Fail(kind)) => return Err(VolatileMemoryError::IOError(kind.into())),
        };
        buffer.write_slice(&expected(state.given, count), 0)?;
        state.given += count;
        Ok(count)
    }

    fn is_plentiful(&self) -> bool {
        self.plentiful
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn now(&self) -> Instant {
        self.state().now
    }
}
