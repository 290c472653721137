//! Decimal numbers, exactly as they are written.

/// `digits × 10^exponent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decimal {
    pub(super) digits: i64,
    pub(super) exponent: i8,
}

/// The most digits: more may not fit.
const MAX_DIGITS: usize = 18;

impl Decimal {
    /// Understands `-0.000598550`, also with a unit behind it (` dB`), without the zeros at the
    /// end.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut number = Self::parse_exact(text)?;
        while number.digits != 0 && number.digits % 10 == 0 {
            number.digits /= 10;
            number.exponent += 1;
        }
        match number.digits {
            0 => Some(Self::default()),
            _ => Some(number),
        }
    }

    /// The same with the zeros at the end.
    pub(super) fn parse_exact(text: &str) -> Option<Self> {
        let word = text.split_ascii_whitespace().next()?;
        let (negative, word) = match word.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, word.strip_prefix('+').unwrap_or(word)),
        };
        let (whole, behind) = word.split_once('.').unwrap_or((word, ""));
        let all = [whole, behind].concat();
        let valid = !all.is_empty() && all.bytes().all(|byte| byte.is_ascii_digit());
        if !valid || behind.len() > MAX_DIGITS {
            return None;
        }
        let digits = all.trim_start_matches('0');
        let digits: i64 = match digits.len() {
            0 => 0,
            1..=MAX_DIGITS => digits.parse().ok()?,
            // A long one may still fit.
            _ if behind.is_empty() => digits.parse().ok()?,
            _ => return None,
        };
        Some(Self {
            digits: if negative { -digits } else { digits },
            // Fits: it is at most `MAX_DIGITS`.
            exponent: -(behind.len() as i8),
        })
    }

    /// The number in units of `10^exponent`, cut where it has more digits.
    pub(super) fn at(self, exponent: i8) -> Option<i64> {
        let power = i32::from(self.exponent) - i32::from(exponent);
        let factor = 10_i64.checked_pow(power.unsigned_abs());
        match (power, factor) {
            (0.., Some(factor)) => self.digits.checked_mul(factor),
            (_, Some(factor)) => Some(self.digits / factor),
            (0.., None) => (self.digits == 0).then_some(0),
            (_, None) => Some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn test_parse_is_exact() {
        for (text, expected) in [
            ("0.000598550", Some((59855, -8))),
            ("1", Some((1, 0))),
            ("-2500", Some((-25, 2))),
            ("+2.50 dB", Some((25, -1))),
            ("0.000000", Some((0, 0))),
            (".5", Some((5, -1))),
            ("9223372036854775807", Some((i64::MAX, 0))),
            ("9223372036854775808", None),
            ("", None),
            (".", None),
            ("-", None),
            ("1e3", None),
            ("--1", None),
            ("1.1.1", None),
            ("0.0000000000000000001", None),
        ] {
            let number = Decimal::parse(text);
            let number = number.map(|number| (number.digits, number.exponent));
            assert_eq!(number, expected, "{text:?}");
        }
        let exact = Decimal::parse_exact("417.250000").unwrap();
        assert_eq!((exact.digits, exact.exponent), (417_250_000, -6));
    }

    #[test]
    fn test_at_another_power() {
        let number = Decimal::parse("-12.345").unwrap();
        assert_eq!(number.at(-3), Some(-12_345));
        assert_eq!(number.at(-6), Some(-12_345_000));
        assert_eq!(number.at(0), Some(-12));
        assert_eq!(number.at(100), Some(0));
        assert_eq!(number.at(-100), None);
    }

    proptest! {
        #[test]
        fn test_any_text_is_a_number_or_none(text: String, exponent: i8) {
            if let Some(number) = Decimal::parse(&text) {
                let _ = number.at(exponent);
            }
        }

        #[test]
        fn test_numbers_come_back(digits in -999_999_999_i64..1_000_000_000, behind in 0_usize..9) {
            let divisor = 10_i64.pow(behind as u32);
            let sign = if digits < 0 { "-" } else { "" };
            let whole = digits.abs() / divisor;
            let rest = digits.abs() % divisor;
            let text = match behind {
                0 => format!("{sign}{whole}"),
                _ => format!("{sign}{whole}.{rest:0behind$}"),
            };
            prop_assert_eq!(Decimal::parse(&text).unwrap().at(-(behind as i8)), Some(digits));
        }
    }
}
