//! Medians, quartiles and ratios.

use std::time::Duration;

/// The middle of some figures and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// A quarter of the figures is less.
    pub(crate) low: f64,
    /// Half of them is.
    pub(crate) median: f64,
    /// A quarter of them is more.
    pub(crate) high: f64,
}

/// Whether more or less of something is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// As of requests in a second.
    More,
    /// As of time for a request.
    Less,
}

impl Summary {
    /// The summary of at least one figure.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self {
            low: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            high: quantile(&sorted, 0.75),
        }
    }

    /// How often `ours` is as good as `peer`, by the figures that were taken in the same round:
    /// above 1 is ours ahead.
    pub(crate) fn of_ratios(pairs: impl IntoIterator<Item = (f64, f64)>, better: Better) -> Self {
        Self::of(pairs.into_iter().map(|(ours, peer)| match better {
            Better::More => ours / peer,
            Better::Less => peer / ours,
        }))
    }
}

/// A time in microseconds.
pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The figure that a fraction of the others is below, between two of them if need be; 0 of none.
pub(crate) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let position = fraction * last as f64;
    let below = position.floor();
    let (left, right) = (sorted[below as usize], sorted[position.ceil() as usize]);
    // Also for two that are infinite: those between them are no numbers.
    if left == right {
        return left;
    }
    left + (right - left) * (position - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_and_even_counts_have_a_middle() {
        let summary = Summary::of([5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((summary.low, summary.median, summary.high), (2.0, 3.0, 4.0));
        let summary = Summary::of([4.0, 1.0]);
        assert_eq!(
            (summary.low, summary.median, summary.high),
            (1.75, 2.5, 3.25)
        );
        assert_eq!(Summary::of([7.0]).high, 7.0);
        assert_eq!(Summary::of([]).median, 0.0);
        assert!(Summary::of([f64::INFINITY; 4]).low.is_infinite());
    }

    #[test]
    fn a_ratio_above_one_is_ours_ahead() {
        assert_eq!(Summary::of_ratios([(20.0, 10.0)], Better::More).median, 2.0);
        assert_eq!(Summary::of_ratios([(20.0, 10.0)], Better::Less).median, 0.5);
    }
}
