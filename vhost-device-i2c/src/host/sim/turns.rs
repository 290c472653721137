//! What several guests use, one at a time and in the order in which they came.
//!
//! A [`Mutex`] alone goes to whoever asks at the right moment: a guest that asks again and again
//! would have it far more often than one that waits for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A value that is taken in turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// Only the one whose turn it is locks it, so nobody waits for this lock.
    value: Mutex<T>,
    numbers: Mutex<Numbers>,
    next: Condvar,
}

/// As at a counter: whoever comes draws a number, and waits until it is called.
#[derive(Debug, Default)]
struct Numbers {
    drawn: u64,
    called: u64,
}

/// One's turn. It ends when this is dropped, by a panic too.
struct Turn<'a, T>(&'a Turns<T>);

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        lock(&self.0.numbers).called += 1;
        self.0.next.notify_all();
    }
}

impl<T> Turns<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            numbers: Mutex::default(),
            next: Condvar::new(),
        }
    }

    /// Does something with the value when all have had their turn who came before. What is done
    /// must not wait for anything: everybody else waits for it.
    pub(super) fn take<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let _turn = self.wait();
        work(&mut lock(&self.value))
    }

    fn wait(&self) -> Turn<'_, T> {
        let mut numbers = lock(&self.numbers);
        let own = numbers.drawn;
        numbers.drawn += 1;
        let is_early = |numbers: &mut Numbers| numbers.called != own;
        drop(
            self.next
                .wait_while(numbers, is_early)
                .unwrap_or_else(PoisonError::into_inner),
        );
        Turn(self)
    }
}

/// Poisoned or not, what is in it is whole: numbers, and devices between two calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Waits until so many have drawn a number.
    fn wait_for<T>(turns: &Turns<T>, drawn: u64) {
        while lock(&turns.numbers).drawn < drawn {
            thread::yield_now();
        }
    }

    #[test]
    fn test_those_who_wait_are_served_in_the_order_in_which_they_came() {
        let turns = Turns::new(Vec::new());
        thread::scope(|scope| {
            let first = turns.wait();
            for number in 0..8 {
                let turns = &turns;
                scope.spawn(move || turns.take(|order| order.push(number)));
                wait_for(turns, number + 2);
            }
            drop(first);
            // Whoever has just had it comes behind all of them.
            turns.take(|order| order.push(8));
        });
        turns.take(|order| assert_eq!(*order, [0, 1, 2, 3, 4, 5, 6, 7, 8]));
    }

    #[test]
    fn test_a_turn_ends_with_a_panic() {
        let turns = Turns::new(0);
        thread::scope(|scope| {
            let panics = scope.spawn(|| turns.take(|_| panic!("on purpose")));
            assert!(panics.join().is_err());
        });
        turns.take(|value| *value += 1);
        assert_eq!(turns.take(|value| *value), 1);
    }
}
