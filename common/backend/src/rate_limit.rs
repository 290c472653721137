//! A guest cannot flood the log: one line of a kind a second, with the number of those left out.

use std::fmt;
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

    /// Writes `line` if one may be written now. To be called by [`limited!`](crate::limited), which
    /// knows who speaks.
    pub fn write(&self, level: log::Level, target: &str, line: fmt::Arguments<'_>) {
        match self.allow() {
            None => {}
            Some(0) => log::log!(target: target, level, "{line}"),
            Some(more) => log::log!(
                target: target,
                level,
                "{line} ({more} more {} of this kind left out)",
                if more == 1 { "line was" } else { "lines were" },
            ),
        }
    }
}

/// Writes a line of the log, of the module that this is written in, if a
/// [`RateLimit`](crate::RateLimit) allows one now: `limited!(limit, Warn, "{name}: no")`.
#[macro_export]
macro_rules! limited {
    ($limit:expr, $level:ident, $($line:tt)+) => {
        $limit.write(
            $crate::log::Level::$level,
            ::std::module_path!(),
            ::std::format_args!($($line)+),
        )
    };
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
