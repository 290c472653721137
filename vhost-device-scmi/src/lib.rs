//! The vhost-user VirtIO SCMI device (VIRTIO 1.4 §5.18, device id 32).
//!
//! | module | what lives there |
//! |---|---|
//! | [`host`] | the platform below it: resources and their drivers |
//! | [`platform`] | a platform from a file |

pub mod host;
pub mod platform;
