//! What several guests use, one at a time and in the order in which they came.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A lock that those who wait for it get in the order in which they came.
///
/// A [`Mutex`] goes to whoever is there when it is free, and that is most often who has just had
/// it: a guest that does one thing after the other would keep the others out. Here, a guest waits
/// for one turn of each guest that came before it. So a turn should be short: one access to
/// hardware, and nothing that sleeps for the guest's sake.
#[derive(Debug, Default)]
pub struct Turns<T = ()> {
    /// Only the one whose turn it is locks it, so nobody waits here for long.
    value: Mutex<T>,
    numbers: Mutex<Numbers>,
    over: Condvar,
}

/// As at a counter: whoever comes draws a number, and waits until it is called.
#[derive(Debug, Default)]
struct Numbers {
    drawn: u64,
    called: u64,
}

/// A turn, and what it is for. It ends when this is dropped, by a panic too.
#[derive(Debug)]
pub struct Turn<'a, T = ()> {
    value: MutexGuard<'a, T>,
    /// Behind the value, so that it is dropped after it: then the next one finds it free.
    _called: CallNext<'a, T>,
}

#[derive(Debug)]
struct CallNext<'a, T>(&'a Turns<T>);

impl<T> Turns<T> {
    /// Nobody has a turn yet.
    pub fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            numbers: Mutex::default(),
            over: Condvar::new(),
        }
    }

    /// Waits until all who came before have had their turn.
    pub fn take(&self) -> Turn<'_, T> {
        let mut numbers = lock(&self.numbers);
        let own = numbers.drawn;
        numbers.drawn += 1;
        let is_early = |numbers: &mut Numbers| numbers.called != own;
        let waited = self.over.wait_while(numbers, is_early);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        let called = CallNext(self);
        Turn {
            value: lock(&self.value),
            _called: called,
        }
    }

    /// How many have a turn or wait for one.
    pub fn queued(&self) -> u64 {
        let numbers = lock(&self.numbers);
        numbers.drawn - numbers.called
    }
}

impl<T> Drop for CallNext<'_, T> {
    fn drop(&mut self) {
        lock(&self.0.numbers).called += 1;
        self.0.over.notify_all();
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Poisoned or not, what is in it is whole: numbers, and a value whose users see to that.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn those_who_wait_are_served_in_the_order_in_which_they_came() {
        let turns = Turns::new(Vec::new());
        thread::scope(|scope| {
            let first = turns.take();
            for number in 0..8 {
                let turns = &turns;
                scope.spawn(move || turns.take().push(number));
                while turns.queued() < number + 2 {
                    thread::yield_now();
                }
            }
            drop(first);
            // Whoever has just had it comes behind all of them.
            turns.take().push(8);
        });
        assert_eq!(*turns.take(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_turn_ends_with_a_panic() {
        let turns = Turns::new(0);
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _turn = turns.take();
                panic!("on purpose");
            });
            assert!(panics.join().is_err());
        });
        *turns.take() += 1;
        assert_eq!(*turns.take(), 1);
    }
}
