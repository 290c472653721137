//! How simulated numbers change.

use std::time::Duration;

use crate::host::sim::Wave;
use crate::platform::file;
use crate::platform::{Checked, Problem, Span};

fn period(period_ms: u64, place: &Span) -> Checked<Duration> {
    match period_ms {
        0 => Err(Problem::at(place, "a period is at least one millisecond")),
        ms => Ok(Duration::from_millis(ms)),
    }
}

pub(super) fn to_wave(wave: &file::Wave, place: &Span) -> Checked<Wave> {
    Ok(match wave {
        file::Wave::Constant(number) => Wave::Constant(*number),
        file::Wave::Sine(around) => Wave::Sine {
            mean: around.mean,
            amplitude: around.amplitude,
            period: period(around.period_ms, place)?,
        },
        file::Wave::Triangle(around) => Wave::Triangle {
            mean: around.mean,
            amplitude: around.amplitude,
            period: period(around.period_ms, place)?,
        },
        file::Wave::Step(step) => Wave::Step {
            low: step.low,
            high: step.high,
            period: period(step.period_ms, place)?,
        },
        file::Wave::Counter(counter) => Wave::Counter {
            start: counter.start,
            step: counter.step,
            period: period(counter.period_ms, place)?,
        },
    })
}

/// From which number to which waves go, of those that have bounds.
pub(super) fn extent(waves: &[Wave]) -> Option<(i64, i64)> {
    let bounds = |wave: &Wave| match *wave {
        Wave::Constant(number) => Some((number, number)),
        Wave::Sine {
            mean, amplitude, ..
        }
        | Wave::Triangle {
            mean, amplitude, ..
        } => {
            let far = amplitude.saturating_abs();
            Some((mean.saturating_sub(far), mean.saturating_add(far)))
        }
        Wave::Step { low, high, .. } => Some((low.min(high), low.max(high))),
        Wave::Counter { .. } | Wave::Readings { .. } => None,
    };
    let bounds = waves.iter().filter_map(bounds);
    bounds.reduce(|(least, most), (low, high)| (least.min(low), most.max(high)))
}
