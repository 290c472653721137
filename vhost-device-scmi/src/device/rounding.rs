//! How a number that there is not becomes one that there is: rates of clocks, and intervals of
//! sensors.
//!
//! Rounding goes to a neighbour and no further: what is below the lowest or above the highest is
//! refused, as Arm's tests demand it of clocks (c011), and not moved to the nearest end.

/// In which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Down,
    Up,
    Nearest,
}

impl Rounding {
    /// The one of two neighbours; of two that are equally near, the lower one.
    fn choose(self, wanted: u128, below: Option<u128>, above: Option<u128>) -> Option<u128> {
        match (self, below, above) {
            (Self::Down, ..) => below,
            (Self::Up, ..) => above,
            (Self::Nearest, Some(low), Some(high))
                if high.abs_diff(wanted) < wanted.abs_diff(low) =>
            {
                Some(high)
            }
            (Self::Nearest, ..) => below.or(above),
        }
    }

    /// A number of a list, which is in order.
    pub(super) fn in_list<T: Copy + Into<u128>>(self, list: &[T], wanted: u128) -> Option<u128> {
        let list = list.iter().map(|&number| number.into());
        let below = list.clone().rev().find(|&number| number <= wanted);
        let above = list.clone().find(|&number| number >= wanted);
        // With none on one side, it is outside.
        below.and(above)?;
        self.choose(wanted, below, above)
    }

    /// A number of those from `min` to `max` in steps of `step`. Outside, the steps go on: half a
    /// step below the lowest is rounded up to it, and a step and a half below is refused.
    pub(super) fn in_range(self, [min, max, step]: [u128; 3], wanted: u128) -> Option<u128> {
        let exact = |distance: u128| Some(distance.checked_rem(step)? == 0);
        let (below, above) = match wanted.checked_sub(min) {
            Some(over) => {
                let below = wanted - over.checked_rem(step)?;
                let next = below.checked_add(step);
                (Some(below), if exact(over)? { Some(below) } else { next })
            }
            None => {
                let above = wanted + (min - wanted).checked_rem(step)?;
                let next = above.checked_sub(step);
                (
                    if exact(min - wanted)? {
                        Some(above)
                    } else {
                        next
                    },
                    Some(above),
                )
            }
        };
        let there = |number: &u128| (min..=max).contains(number);
        if there(&wanted) {
            // The last step may end above the highest: then nothing is left to go up to.
            self.choose(wanted, below, above.filter(there))
        } else {
            self.choose(wanted, below, above).filter(there)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rounding::{Down, Nearest, Up};

    #[test]
    fn s18_numbers_of_a_list_are_rounded_as_asked_and_not_moved_inwards() {
        let list = [10_u64, 20, 40];
        for (wanted, down, up, nearest) in [
            (9, None, None, None),
            (10, Some(10), Some(10), Some(10)),
            (29, Some(20), Some(40), Some(20)),
            (30, Some(20), Some(40), Some(20)),
            (31, Some(20), Some(40), Some(40)),
            (40, Some(40), Some(40), Some(40)),
            (41, None, None, None),
        ] {
            assert_eq!(Down.in_list(&list, wanted), down, "{wanted}");
            assert_eq!(Up.in_list(&list, wanted), up, "{wanted}");
            assert_eq!(Nearest.in_list(&list, wanted), nearest, "{wanted}");
        }
        assert_eq!(Nearest.in_list(&[0_u64; 0], 1), None);
    }

    #[test]
    fn s18_numbers_of_a_range_are_rounded_as_asked_and_not_moved_inwards() {
        // The highest that there is is below the maximum.
        let range = [100, 205, 10];
        for (wanted, down, up, nearest) in [
            (0, None, None, None),
            (90, None, None, None),
            (91, None, Some(100), None),
            (99, None, Some(100), Some(100)),
            (104, Some(100), Some(110), Some(100)),
            (106, Some(100), Some(110), Some(110)),
            (200, Some(200), Some(200), Some(200)),
            (205, Some(200), None, Some(200)),
            (209, Some(200), None, None),
            (210, None, None, None),
            (u128::from(u64::MAX), None, None, None),
        ] {
            assert_eq!(Down.in_range(range, wanted), down, "{wanted}");
            assert_eq!(Up.in_range(range, wanted), up, "{wanted}");
            assert_eq!(Nearest.in_range(range, wanted), nearest, "{wanted}");
        }
        let most = u128::from(u64::MAX);
        assert_eq!(Up.in_range([0, most, 1], most), Some(most));
        assert_eq!(Up.in_range([0, most, 0], most), None, "no step");
    }

    proptest! {
        #[test]
        fn test_what_is_rounded_is_one_that_there_is(
            (min, max, step) in (0..100_u128, 0..100_u128, 1..50_u128),
            wanted in 0..200_u128,
        ) {
            for rounding in [Down, Up, Nearest] {
                if let Some(number) = rounding.in_range([min, min + max, step], wanted) {
                    prop_assert!((min..=min + max).contains(&number));
                    prop_assert!((number - min).is_multiple_of(step));
                    prop_assert!(number.abs_diff(wanted) < step);
                }
            }
        }
    }
}
