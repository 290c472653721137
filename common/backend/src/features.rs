//! What a user can withhold from front-ends, and what feature bits are called in the log.

use std::fmt;
use std::str::FromStr;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_ORDER_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// A feature of the rings or of the session that can be withheld: a front-end is not offered it
/// then. All of them are the session's, so every device has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Packed rings: `VIRTIO_F_RING_PACKED`.
    Packed,
    /// Answers in the order of the requests: `VIRTIO_F_IN_ORDER`.
    InOrder,
    /// Indirect descriptors: `VIRTIO_F_INDIRECT_DESC`.
    Indirect,
    /// Notifications by index: `VIRTIO_F_EVENT_IDX`.
    EventIdx,
    /// Resets of a single queue: `VIRTIO_F_RING_RESET`.
    RingReset,
    /// The region for requests in flight: `VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD` and
    /// `VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT`.
    Inflight,
    /// The dirty log: `VHOST_F_LOG_ALL` and `VHOST_USER_PROTOCOL_F_LOG_SHMFD`.
    Log,
}

/// No feature has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no feature {0:?}")]
pub struct UnknownFeature(String);

impl Feature {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Packed,
        Self::InOrder,
        Self::Indirect,
        Self::EventIdx,
        Self::RingReset,
        Self::Inflight,
        Self::Log,
    ];

    /// What a user calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::InOrder => "in-order",
            Self::Indirect => "indirect",
            Self::EventIdx => "event-idx",
            Self::RingReset => "ring-reset",
            Self::Inflight => "inflight",
            Self::Log => "log",
        }
    }

    /// Its bits among the features of VIRTIO and vhost.
    const fn virtio(self) -> u64 {
        match self {
            Self::Packed => 1 << VIRTIO_F_RING_PACKED,
            Self::InOrder => 1 << VIRTIO_F_IN_ORDER,
            Self::Indirect => 1 << VIRTIO_RING_F_INDIRECT_DESC,
            Self::EventIdx => 1 << VIRTIO_RING_F_EVENT_IDX,
            Self::RingReset => 1 << VIRTIO_F_RING_RESET,
            Self::Log => VhostUserVirtioFeatures::LOG_ALL.bits(),
            Self::Inflight => 0,
        }
    }

    /// Its bits among the protocol features of vhost-user.
    const fn protocol(self) -> VhostUserProtocolFeatures {
        match self {
            Self::Inflight => VhostUserProtocolFeatures::INFLIGHT_SHMFD
                .union(VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT),
            Self::Log => VhostUserProtocolFeatures::LOG_SHMFD,
            _ => VhostUserProtocolFeatures::empty(),
        }
    }
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        let mut all = Self::ALL.into_iter();
        all.find(|feature| feature.name() == name)
            .ok_or_else(|| UnknownFeature(name.to_owned()))
    }
}

/// The bits of all features that are withheld.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Withheld {
    pub(crate) virtio: u64,
    pub(crate) protocol: VhostUserProtocolFeatures,
}

impl Withheld {
    pub(crate) fn new(features: &[Feature]) -> Self {
        let virtio = features.iter().map(|feature| feature.virtio());
        let protocol = features.iter().map(|feature| feature.protocol());
        Self {
            virtio: virtio.fold(0, |all, bits| all | bits),
            protocol: protocol.collect(),
        }
    }
}

/// Feature bits, by their names where the device does not decide what they mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) u64);

/// The names of the bits that mean the same in every device.
const NAMES: [(u64, &str); 11] = [
    (VhostUserVirtioFeatures::LOG_ALL.bits(), "VHOST_F_LOG_ALL"),
    (
        VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
        "VHOST_USER_F_PROTOCOL_FEATURES",
    ),
    (1 << VIRTIO_RING_F_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC"),
    (1 << VIRTIO_RING_F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
    (1 << VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
    (1 << VIRTIO_F_ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM"),
    (1 << VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"),
    (1 << VIRTIO_F_IN_ORDER, "VIRTIO_F_IN_ORDER"),
    (1 << VIRTIO_F_ORDER_PLATFORM, "VIRTIO_F_ORDER_PLATFORM"),
    (
        1 << VIRTIO_F_NOTIFICATION_DATA,
        "VIRTIO_F_NOTIFICATION_DATA",
    ),
    (1 << VIRTIO_F_RING_RESET, "VIRTIO_F_RING_RESET"),
];

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = (0..u64::BITS).filter(|bit| self.0 & (1 << bit) != 0);
        for (count, bit) in set.enumerate() {
            let separator = if count == 0 { "" } else { ", " };
            let known = NAMES.iter().find(|(mask, _)| *mask == 1 << bit);
            match known {
                Some((_, name)) => write!(f, "{separator}{name}")?,
                None => write!(f, "{separator}bit {bit}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_by_their_names() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(feature));
            assert!(feature.virtio() != 0 || !feature.protocol().is_empty());
        }
        let unknown = "Packed".parse::<Feature>().unwrap_err();
        assert_eq!(unknown.to_string(), "there is no feature \"Packed\"");
    }

    #[test]
    fn bits_are_called_by_their_names() {
        assert_eq!(Names(0).to_string(), "");
        assert_eq!(
            Names(1 << 34 | 1 << 30 | 1 << 5).to_string(),
            "bit 5, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_RING_PACKED"
        );
    }
}
