//! The times between two readings of a sensor, as DEN0056 writes them: a number of 16 bits times
//! a power of ten of seconds, whose exponent has five bits and a sign.

use std::time::Duration;

use super::rounding::Rounding;
use crate::host::Intervals;

/// The exponents that five bits can say, in seconds. Below -9 there is nothing in a [`Duration`].
const MIN_EXPONENT: i32 = -9;
const MAX_EXPONENT: i32 = 15;

/// Five bits of a signed exponent.
pub(super) fn exponent_bits(exponent: i32) -> u32 {
    exponent.cast_unsigned() & 0x1f
}

/// The exponent that five bits say.
fn exponent(bits: u32) -> i32 {
    let bits = (bits & 0x1f).cast_signed();
    if bits >= 16 { bits - 32 } else { bits }
}

/// The number and the exponent's bits of an interval; what is lost in 16 bits is cut off.
pub(super) fn encode(interval: Duration) -> (u32, u32) {
    let mut number = interval.as_nanos();
    let mut exponent = MIN_EXPONENT;
    while exponent < MAX_EXPONENT
        && (number > u16::MAX.into() || number != 0 && number.is_multiple_of(10))
    {
        number /= 10;
        exponent += 1;
    }
    if number == 0 {
        exponent = 0;
    }
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    (number.into(), exponent_bits(exponent))
}

/// The interval that a number and an exponent's bits say.
pub(super) fn decode(number: u32, bits: u32) -> Duration {
    let shift = exponent(bits) - MIN_EXPONENT;
    let nanos = match u32::try_from(shift) {
        Ok(shift) => u64::from(number).saturating_mul(10_u64.saturating_pow(shift)),
        Err(_) => {
            let divisor = 10_u64.saturating_pow(shift.unsigned_abs());
            u64::from(number).checked_div(divisor).unwrap_or(0)
        }
    };
    Duration::from_nanos(nanos)
}

/// An interval that there is.
pub(super) fn round(
    intervals: &Intervals,
    wanted: Duration,
    rounding: Rounding,
) -> Option<Duration> {
    let wanted = wanted.as_nanos();
    let nanos = match *intervals {
        Intervals::Discrete(ref list) => {
            let list: Vec<_> = list.iter().map(Duration::as_nanos).collect();
            rounding.in_list(&list, wanted)
        }
        Intervals::Range { min, max, step } => {
            rounding.in_range([min, max, step].map(|one| one.as_nanos()), wanted)
        }
    };
    Some(Duration::from_nanos(u64::try_from(nanos?).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_intervals_on_the_wire() {
        let ms = Duration::from_millis;
        for (interval, number, exponent) in [
            (ms(1), 1, -3),
            (ms(250), 25, -2),
            (ms(1000), 1, 0),
            (ms(1_001), 1001, -3),
            (ms(10_000), 1, 1),
            (Duration::from_secs(65_535), 65_535, 0),
            (Duration::from_secs(655_350), 65_535, 1),
            (Duration::from_nanos(1), 1, -9),
            (Duration::ZERO, 0, 0),
        ] {
            assert_eq!(encode(interval), (number, exponent_bits(exponent)));
            assert_eq!(decode(number, exponent_bits(exponent)), interval);
        }
        assert_eq!(decode(5, exponent_bits(-10)), Duration::ZERO);
        assert_eq!(decode(50_000, exponent_bits(-12)), Duration::from_nanos(50));
    }

    proptest! {
        #[test]
        fn test_any_interval_can_be_said(number in any::<u32>(), bits in any::<u32>()) {
            let interval = decode(number, bits);
            let (number, bits) = encode(interval);
            prop_assert!(decode(number, bits) <= interval);
            prop_assert!(number <= u16::MAX.into() && bits < 32);
        }
    }
}
