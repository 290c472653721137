//! What is done at the same time.

use std::panic;
use std::thread;

use anyhow::Result;

/// Something to do.
pub(crate) type Work<'a> = &'a mut (dyn FnMut() -> Result<()> + Send);

/// Does all of these at the same time, each in a thread of its own, and waits for all. The first
/// error, in their order.
pub(crate) fn together(all: &mut [Work<'_>]) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter_mut().map(|work| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        });
        // All are waited for, also behind one that failed.
        let results: Vec<_> = results.collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use anyhow::bail;

    use super::*;

    #[test]
    fn they_are_done_at_the_same_time_and_the_first_error_is_told() {
        let meeting = Barrier::new(3);
        let mut done = false;
        let error = together(&mut [
            &mut || {
                meeting.wait();
                Ok(())
            },
            &mut || {
                meeting.wait();
                bail!("one")
            },
            &mut || {
                meeting.wait();
                done = true;
                bail!("two")
            },
        ]);
        assert_eq!(error.unwrap_err().to_string(), "one");
        assert!(done);
    }
}
