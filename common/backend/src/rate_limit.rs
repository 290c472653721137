//! A guest cannot flood the log: one line of a kind a second, with the number of those left out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// Limits one kind of log line to one a second. A clone shares the limit: what logs for a guest
/// has to outlast its connections, as a guest may connect thousands of times a second.
#[derive(Clone, Debug, Default)]
pub struct RateLimit(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Whether a line may be written now; if so, how many were left out since the last.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        // Poisoned or not, the two numbers are sound.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let too_soon = state
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < PERIOD);
        if too_soon {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }

    /// Writes `line` as a warning, if one may be written now.
    pub fn warn(&self, line: impl std::fmt::Display) {
        match self.allow() {
            None => {}
            Some(0) => log::warn!("{line}"),
            Some(more) => log::warn!("{line} ({more} more lines of this kind were left out)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let limit = RateLimit::default();
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.clone().allow_at(start + PERIOD / 2), None);
        assert_eq!(limit.allow_at(start + PERIOD), Some(2));
        assert_eq!(limit.allow_at(start + PERIOD * 3), Some(0));
    }
}
