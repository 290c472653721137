//! The vhost-user VirtIO SCMI device (VIRTIO 1.4, "SCMI Device", id 32; Arm DEN0056).
//!
//! | module | what lives there |
//! |---|---|
//! | [`device`] | the device: commands, notifications |
//! | [`host`] | the platform below it: resources and their drivers |
//! | [`hub`] | what guests have to do with each other through the platform |
//! | [`platform`] | a platform from a file |

pub mod device;
pub mod host;
pub mod hub;
pub mod platform;
