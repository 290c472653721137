//! A guest cannot flood the log: one line of a kind a second, with the number of those left out.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// Limits one kind of log line to one a second.
#[derive(Debug, Default)]
pub struct RateLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Whether a line may be written now; if so, how many were left out since the last.
    pub fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        let too_soon = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < PERIOD);
        if too_soon {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Writes `line` as a warning, if one may be written now.
    pub fn warn(&mut self, line: impl std::fmt::Display) {
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
        let mut limit = RateLimit::default();
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start), None);
        assert_eq!(limit.allow_at(start + PERIOD / 2), None);
        assert_eq!(limit.allow_at(start + PERIOD), Some(2));
        assert_eq!(limit.allow_at(start + PERIOD * 3), Some(0));
    }
}
