//! Who may access hardware next, where only one may at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A lock that those who wait for it get in the order in which they came.
///
/// It is held while hardware is accessed, which may take long. A `Mutex` goes to whoever is there
/// when it is free, and that is most often who has just had it: a guest that does one thing after
/// the other with slow hardware would keep the others out. Here, each waits for one access of each
/// guest that came before it. What is remembered has a `Mutex` of its own, held for a moment.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next who comes.
    next: u64,
    /// The number of who has its turn, or will have.
    now: u64,
}

/// The turn of whoever has this.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoned or not, the numbers are sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for those who came before.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        while state.now != number {
            let waited = self.over.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    /// How many have a turn or wait for one.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> u64 {
        let state = self.lock();
        state.next - state.now
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().now += 1;
        self.0.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn test_turns_come_in_the_order_of_those_who_wait() {
        let turns = Arc::new(Turns::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut held = Some(turns.take());
        let waiting: Vec<_> = (0..4)
            .map(|number| {
                let (waits, order) = (Arc::clone(&turns), Arc::clone(&order));
                let thread = thread::spawn(move || {
                    let _turn = waits.take();
                    order.lock().unwrap().push(number);
                });
                while turns.queued() < number + 2 {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        // Who had it and comes again is behind all of them.
        drop(held.take());
        drop(turns.take());
        assert_eq!(order.lock().unwrap().len(), 4);
        waiting
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    }
}
