//! Addresses on an I2C bus, and how VirtIO writes them.

use std::fmt;

/// The number of 7-bit addresses.
const SEVEN_BIT: u16 = 1 << 7;
/// The number of 10-bit addresses.
const TEN_BIT: u16 = 1 << 10;

/// What tells a 10-bit address from a 7-bit one in the low byte: `11110xx0`.
const TEN_BIT_MASK: u8 = 0b1111_1001;
const TEN_BIT_PREFIX: u8 = 0b1111_0000;

/// The address of a device on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// 0x00 to 0x7f.
    Seven(u8),
    /// 0x000 to 0x3ff; another device than that of the same 7-bit number.
    Ten(u16),
}

impl Address {
    /// Whoever listens to it takes what is written to it, whatever its own address is.
    pub const GENERAL_CALL: Self = Self::Seven(0);

    /// How many addresses there are: [`Address::index`] is below.
    pub const COUNT: usize = SEVEN_BIT as usize + TEN_BIT as usize;

    /// Reads the field `addr` of a request (VIRTIO 1.4 §5.16.6): a 7-bit address is shifted left
    /// by one; a 10-bit one has `11110`, bits 9 and 8, and 0 in the low byte, and the other bits
    /// in the high byte. None when it is neither.
    pub fn decode(field: u16) -> Option<Self> {
        let [low, high] = field.to_le_bytes();
        if low & TEN_BIT_MASK == TEN_BIT_PREFIX {
            let top = u16::from(low >> 1 & 0b11);
            return Some(Self::Ten(top << 8 | u16::from(high)));
        }
        (low & 1 == 0 && high == 0).then_some(Self::Seven(low >> 1))
    }

    /// The address with this number: up to 0x7f a 7-bit one, from there to 0x3ff a 10-bit one.
    /// The first 128 of 10 bits cannot be said so.
    pub fn from_number(number: u16) -> Option<Self> {
        match u8::try_from(number) {
            Ok(number) if u16::from(number) < SEVEN_BIT => Some(Self::Seven(number)),
            _ => (number < TEN_BIT).then_some(Self::Ten(number)),
        }
    }

    /// All addresses, in the order of [`Address::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        let seven = (0..=u8::MAX).take(SEVEN_BIT.into()).map(Self::Seven);
        seven.chain((0..TEN_BIT).map(Self::Ten))
    }

    /// A place in a table of all addresses.
    pub fn index(self) -> usize {
        match self {
            Self::Seven(address) => address.into(),
            Self::Ten(address) => usize::from(SEVEN_BIT) + usize::from(address),
        }
    }

    /// The number alone.
    pub fn number(self) -> u16 {
        match self {
            Self::Seven(address) => address.into(),
            Self::Ten(address) => address,
        }
    }

    /// Whether it has 10 bits.
    pub fn is_ten_bit(self) -> bool {
        matches!(self, Self::Ten(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seven(address) => write!(f, "{address:#04x}"),
            Self::Ten(address) => write!(f, "{address:#05x} (10 bits)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_seven_bits_are_shifted_by_one() {
        for number in 0..0x78 {
            let field = u16::from(number) << 1;
            assert_eq!(Address::decode(field), Some(Address::Seven(number)));
        }
        assert_eq!(Address::decode(0x7c << 1), Some(Address::Seven(0x7c)));
    }

    #[test]
    fn i10_ten_bits_are_in_both_bytes() {
        for number in 0..TEN_BIT {
            let low = 0b1111_0000 | (number >> 8) << 1;
            let field = low | (number & 0xff) << 8;
            assert_eq!(Address::decode(field), Some(Address::Ten(number)));
        }
        assert_eq!(Address::decode(0x34f4), Some(Address::Ten(0x234)));
    }

    #[test]
    fn i10_what_is_neither_is_no_address() {
        for field in [0x00a1, 0x01a0, 0xf1, 0xffff, 0x8000] {
            assert_eq!(Address::decode(field), None, "{field:#x}");
        }
    }

    #[test]
    fn test_every_address_has_a_place_of_its_own() {
        let indices: Vec<_> = Address::all().map(Address::index).collect();
        assert_eq!(indices, (0..Address::COUNT).collect::<Vec<_>>());
        assert_eq!(Address::from_number(0x7f), Some(Address::Seven(0x7f)));
        assert_eq!(Address::from_number(0x80), Some(Address::Ten(0x80)));
        assert_eq!(Address::from_number(0x400), None);
    }
}
