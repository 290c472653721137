//! The orderings of `common/queue`'s rings, tried in every interleaving and every reordering that
//! the memory model allows (loom). What is tried is each table row of `split.rs` and `packed.rs`:
//! the same accesses with the same orderings, without the rest of the ring. Each row is tried
//! without what it says is needed too, and must fail then: else it would say too much.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering, fence};
use loom::thread;

/// Whether what a row says is needed is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    AsItIs,
    /// Relaxed, and without its fences.
    Weakened,
}

impl Row {
    fn fence(self, ordering: Ordering) {
        if self == Self::AsItIs {
            fence(ordering);
        }
    }

    fn or_relaxed(self, ordering: Ordering) -> Ordering {
        match self {
            Self::AsItIs => ordering,
            Self::Weakened => Ordering::Relaxed,
        }
    }
}

/// The row holds as it is, and does not when it is weakened.
#[track_caller]
fn needed_and_enough(model: fn(Row)) {
    loom::model(move || model(Row::AsItIs));
    let weakened = catch_unwind(AssertUnwindSafe(|| {
        loom::model(move || model(Row::Weakened));
    }));
    assert!(weakened.is_err(), "it holds without what it says is needed");
}

/// See new chains, split: the index, then what it stands for.
fn entries_are_seen_with_their_index(row: Row) {
    let index = Arc::new(AtomicU16::new(0));
    let head = Arc::new(AtomicU16::new(0));
    let (their_index, their_head) = (Arc::clone(&index), Arc::clone(&head));
    let driver = thread::spawn(move || {
        their_head.store(7, Ordering::Relaxed);
        their_index.store(1, Ordering::Release);
    });
    if index.load(Ordering::Relaxed) == 1 {
        row.fence(Ordering::Acquire);
        assert_eq!(head.load(Ordering::Relaxed), 7);
    }
    driver.join().unwrap();
}

#[test]
fn r8_entries_are_seen_with_their_index() {
    needed_and_enough(entries_are_seen_with_their_index);
}

/// Publish, split: a batch of answers, then the index.
fn answers_are_seen_with_their_index(row: Row) {
    let index = Arc::new(AtomicU16::new(0));
    let data = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let (our_index, our_data) = (Arc::clone(&index), Arc::clone(&data));
    let device = thread::spawn(move || {
        for word in our_data.iter() {
            word.store(1, Ordering::Relaxed);
        }
        our_index.store(2, row.or_relaxed(Ordering::Release));
    });
    if index.load(Ordering::Acquire) == 2 {
        for word in data.iter() {
            assert_eq!(word.load(Ordering::Relaxed), 1);
        }
    }
    device.join().unwrap();
}

#[test]
fn r8_answers_are_seen_with_their_index() {
    needed_and_enough(answers_are_seen_with_their_index);
}

/// Must I call, and may I sleep: one side has news and looks whether the other wants to be woken;
/// the other says that it wants to be and looks for news. Which side is the device does not
/// matter: both rings do it in both directions. `news` and `wish` are the used index and
/// `used_event`, the available index and `avail_event`, or a packed descriptor's flags and an area
/// for event suppression.
fn nobody_sleeps_beside_news(row: Row) {
    let news = Arc::new(AtomicU16::new(0));
    let wish = Arc::new(AtomicU16::new(0));
    let woken = Arc::new(AtomicBool::new(false));
    let (their_news, their_wish, wake) = (news.clone(), wish.clone(), woken.clone());
    let waker = thread::spawn(move || {
        their_news.store(1, Ordering::Release);
        row.fence(Ordering::SeqCst);
        if their_wish.load(Ordering::Relaxed) == 1 {
            wake.store(true, Ordering::SeqCst);
        }
    });
    wish.store(1, Ordering::Relaxed);
    row.fence(Ordering::SeqCst);
    let sleeps = news.load(Ordering::Relaxed) == 0;
    waker.join().unwrap();
    let woken = woken.load(Ordering::SeqCst);
    assert!(!sleeps || woken, "asleep, and nobody wakes it");
}

#[test]
fn r6_r7_r10_nobody_sleeps_beside_news() {
    needed_and_enough(nobody_sleeps_beside_news);
}

const AVAIL: u64 = 1 << 55;
const USED: u64 = 1 << 63;

/// Whether a descriptor's last word makes it available in the round with this wrap counter.
fn is_available(tail: u64, wrap: bool) -> bool {
    (tail & AVAIL != 0) == wrap && (tail & USED != 0) != wrap
}

/// Whether it makes it used.
fn is_used(tail: u64, wrap: bool) -> bool {
    (tail & AVAIL != 0) == wrap && (tail & USED != 0) == wrap
}

/// See new chains, packed, where the driver comes round: the slot has a used descriptor of the
/// round before, and its new address is seen with the flags of the new round, whichever wrap
/// counter that has.
fn a_slot_of_the_new_round_is_seen_whole(row: Row, wrap: bool) {
    let before = if wrap { 0 } else { AVAIL | USED };
    let now = if wrap { AVAIL } else { USED };
    let tail = Arc::new(AtomicU64::new(before));
    let addr = Arc::new(AtomicU64::new(1));
    assert!(is_used(before, !wrap) && !is_available(before, wrap));
    let (their_tail, their_addr) = (Arc::clone(&tail), Arc::clone(&addr));
    let driver = thread::spawn(move || {
        their_addr.store(2, Ordering::Relaxed);
        their_tail.store(now, Ordering::Release);
    });
    if is_available(tail.load(Ordering::Relaxed), wrap) {
        row.fence(Ordering::Acquire);
        assert_eq!(addr.load(Ordering::Relaxed), 2, "of the round before");
    }
    driver.join().unwrap();
}

#[test]
fn p4_a_slot_of_the_new_round_is_seen_whole() {
    needed_and_enough(|row| a_slot_of_the_new_round_is_seen_whole(row, true));
    needed_and_enough(|row| a_slot_of_the_new_round_is_seen_whole(row, false));
}

/// Publish, packed, where the device comes round: of a batch of two the second is in the first
/// slot, with the other wrap counter. The first is stored last, and whoever sees it sees the
/// second, and the data.
fn a_batch_over_the_end_is_seen_with_its_first(row: Row, wrap: bool) {
    let used = |wrap: bool| if wrap { AVAIL | USED } else { 0 };
    let available = |wrap: bool| if wrap { AVAIL } else { USED };
    let last = Arc::new(AtomicU64::new(available(wrap)));
    let first = Arc::new(AtomicU64::new(available(!wrap)));
    let data = Arc::new(AtomicU64::new(0));
    let (our_last, our_first, our_data) = (last.clone(), first.clone(), data.clone());
    let device = thread::spawn(move || {
        our_data.store(1, Ordering::Relaxed);
        our_first.store(used(!wrap), Ordering::Relaxed);
        our_last.store(used(wrap), row.or_relaxed(Ordering::Release));
    });
    if is_used(last.load(Ordering::Acquire), wrap) {
        assert!(is_used(first.load(Ordering::Relaxed), !wrap), "the second");
        assert_eq!(data.load(Ordering::Relaxed), 1);
    }
    device.join().unwrap();
}

#[test]
fn p8_a_batch_over_the_end_is_seen_with_its_first() {
    needed_and_enough(|row| a_batch_over_the_end_is_seen_with_its_first(row, true));
    needed_and_enough(|row| a_batch_over_the_end_is_seen_with_its_first(row, false));
}
