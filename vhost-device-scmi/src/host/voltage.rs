//! Voltage domains (DEN0056, protocol 0x17).

use std::sync::Arc;

use super::{Driver, Result};

/// A voltage domain: a regulator.
#[derive(Clone, Debug)]
pub struct Voltage {
    /// The voltages that it may have.
    pub levels: Levels,
    /// Whether it can be turned on and off. One that cannot is on.
    pub gate: bool,
    /// What drives it.
    pub driver: Arc<dyn VoltageDriver>,
}

/// The voltages of a domain, in µV; they may be negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Levels {
    /// These, from the lowest to the highest: at least one and at most [`Levels::MAX`]. One alone
    /// is a fixed regulator.
    Discrete(Vec<i32>),
    /// From `min` to `max` in steps of `step`, which is above 0.
    Range {
        /// The lowest.
        min: i32,
        /// The highest; not below `min`.
        max: i32,
        /// The distance between two.
        step: i32,
    },
}

impl Levels {
    /// The most voltages of a list.
    pub const MAX: usize = 1024;

    /// Whether a voltage is one of them.
    pub fn contains(&self, level: i32) -> bool {
        match self {
            Self::Discrete(levels) => levels.contains(&level),
            &Self::Range { min, max, step } => {
                let above = i64::from(level) - i64::from(min);
                (min..=max).contains(&level) && above.checked_rem(step.into()) == Some(0)
            }
        }
    }
}

/// What drives a voltage domain.
pub trait VoltageDriver: Driver {
    /// The voltage that it is set to, in µV, whether it is on or not.
    ///
    /// # Errors
    /// The hardware's.
    fn level(&self) -> Result<i32>;

    /// Sets the voltage to one of the domain's [`Levels`].
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_level(&self, microvolts: i32) -> Result<()>;

    /// Whether it is on. Not asked of a domain without [`Voltage::gate`].
    ///
    /// # Errors
    /// The hardware's.
    fn is_enabled(&self) -> Result<bool>;

    /// Turns it on or off. Not asked of a domain without [`Voltage::gate`].
    ///
    /// # Errors
    /// The hardware's; then it is as before.
    fn set_enabled(&self, enabled: bool) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_levels_are_those_of_the_list_or_the_range() {
        let list = Levels::Discrete(vec![-5, 0, 7]);
        let range = Levels::Range {
            min: i32::MIN,
            max: i32::MAX,
            step: 2,
        };
        for (level, in_list, in_range) in [
            (-5, true, false),
            (0, true, true),
            (7, true, false),
            (8, false, true),
            (i32::MIN, false, true),
            (i32::MAX, false, false),
        ] {
            assert_eq!(list.contains(level), in_list, "{level}");
            assert_eq!(range.contains(level), in_range, "{level}");
        }
    }
}
