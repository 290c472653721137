//! The host's hardware, through sysfs and devices.

use std::io;
use std::path::Path;

use super::{Resource, Sensor};

/// The sensors of the IIO device at `path`, for example `/sys/bus/iio/devices/iio:device0`: one
/// with several axes for channels that are named so, and one for each other channel. `channel`
/// names the only one that is wanted, for example `in_accel`. All guests may read them.
///
/// # Errors
/// When there is no such device or channel, or it cannot be opened.
pub fn iio(path: &Path, channel: Option<&str>) -> io::Result<Vec<Resource<Sensor>>> {
    let _ = (path, channel);
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
