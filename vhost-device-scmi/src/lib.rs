//! The vhost-user VirtIO SCMI device (VIRTIO 1.4 §5.17, device id 32; Arm DEN0056).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`device`] | the device: commands, notifications |
//! | [`host`] | the platform below it: resources and their drivers |
//! | [`hub`] | what guests have to do with each other through the platform |
//! | [`platform`] | a platform from a file |
//! | `control` | the control socket |
//! | `report` | what `--check` prints |
//! | `watch` | changes on the host |

pub mod args;
mod control;
pub mod device;
pub mod host;
pub mod hub;
pub mod platform;
mod report;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vhost_device_daemon::control::ControlError;
use vhost_device_daemon::{Backend, Identity, Listener};

use crate::args::{Args, Device, Format};
use crate::device::{Logs, Scmi};
use crate::host::{Invalid, Platform, linux, sim};
use crate::hub::Hub;
use crate::platform::{LoadError, NotHere};
use crate::report::Report;

/// The daemon: one platform, and a part of it for each guest.
#[derive(Debug)]
pub struct ScmiDaemon {
    hub: Arc<Hub>,
    /// One a guest. A guest's log limits are here, so that one that reconnects wins nothing.
    logs: Vec<Logs>,
    /// The file of the control socket is there for as long as this.
    _control: Option<Listener>,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file of the platform is wrong.
    #[error("--platform {}", path.display())]
    Platform {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LoadError,
    },
    /// A device of the host's cannot be had.
    #[error("--device iio,path={}", path.display())]
    Device {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something cannot be as it was wished.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no control socket.
    #[error("--sim-control")]
    Control(#[from] ControlError),
    /// Nobody can look for changes on the host.
    #[error("cannot watch the host's hardware")]
    Watch(#[source] io::Error),
}

/// The sensors of a device of the host's, called as the user wants it.
fn iio(
    path: &std::path::Path,
    channel: Option<&str>,
    name: Option<&str>,
) -> io::Result<Vec<host::Resource<host::Sensor>>> {
    let mut sensors = linux::iio(path, channel)?;
    if let Some(name) = name {
        let several = sensors.len() > 1;
        for (number, sensor) in sensors.iter_mut().enumerate() {
            sensor.name = match several {
                true => format!("{name}-{number}"),
                false => name.to_owned(),
            };
        }
    }
    Ok(sensors)
}

/// All that the options name, in their order: the file, the devices, the simulator. With `looks`,
/// hardware is only looked at, and what is not on this machine is listed.
fn platform(
    args: &Args,
    guests: usize,
    looks: bool,
) -> Result<(Platform, Vec<NotHere>), StartError> {
    let (mut platform, mut not_here) = match &args.platform {
        None => Default::default(),
        Some(path) => {
            let path = path.clone();
            let read = match looks {
                true => platform::look(&path, guests),
                false => platform::load(&path, guests).map(|platform| (platform, Vec::new())),
            };
            read.map_err(|source| StartError::Platform { path, source })?
        }
    };
    for device in &args.device {
        match device {
            Device::Fake { name } => platform.sensors.push(sim::fake(name)),
            Device::Iio {
                path,
                channel,
                name,
            } => match iio(path, channel.as_deref(), name.as_deref()) {
                Ok(sensors) => platform.sensors.extend(sensors),
                Err(error) if looks => not_here.push(NotHere::of_option(
                    &format!("--device iio,path={}", path.display()),
                    &error,
                )),
                Err(source) => {
                    let path = path.clone();
                    return Err(StartError::Device { path, source });
                }
            },
            Device::Sim => platform.merge(sim::platform()),
        }
    }
    if args.sim {
        platform.merge(sim::platform());
    }
    platform.check()?;
    Ok((platform, not_here))
}

impl Backend for ScmiDaemon {
    type Args = Args;
    type Device = Scmi;
    type Error = StartError;

    const IDENTITY: Identity = Identity {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        about: env!("CARGO_PKG_DESCRIPTION"),
        device_type: "scmi",
    };

    fn answer(args: &Args, guests: usize) -> Option<Result<String, StartError>> {
        if args.help_devices {
            return Some(Ok(args::DEVICES.to_owned()));
        }
        let format = args.check?;
        let report = || {
            let (platform, not_here) = platform(args, guests, true)?;
            let report = Report::new(&platform, guests, not_here);
            Ok(match format {
                Format::Table => report.table(),
                Format::Json => report.json(),
            })
        };
        Some(report())
    }

    fn open(args: Args, guests: usize) -> Result<Self, StartError> {
        let (platform, _) = platform(&args, guests, false)?;
        if platform.drivers().next().is_none() && platform.system.is_none() {
            log::warn!("guests are given nothing: see --platform, --device and --sim");
        }
        let hub = Arc::new(Hub::new(platform));
        watch::start(&hub).map_err(StartError::Watch)?;
        let control = args.sim_control.map(|path| control::start(&path, &hub));
        Ok(Self {
            hub,
            logs: (0..guests).map(|_| Logs::default()).collect(),
            _control: control.transpose()?,
        })
    }

    fn device(&self, guest: usize) -> io::Result<Scmi> {
        let logs = self.logs.get(guest).ok_or(io::ErrorKind::NotFound)?;
        Scmi::new(&self.hub, guest, logs.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_all_that_the_options_name_is_there() {
        let args = Args {
            device: ["fake,name=foo", "fake,name=bar"]
                .map(|device| device.parse().unwrap())
                .to_vec(),
            sim: true,
            ..Args::default()
        };
        let (platform, _) = platform(&args, 1, false).unwrap();
        let names: Vec<_> = platform
            .sensors
            .iter()
            .map(|sensor| &*sensor.name)
            .collect();
        assert_eq!(names[..3], ["foo", "bar", "cpu-temp"]);
    }

    #[test]
    fn test_devices_of_one_name_are_refused() {
        let args = Args {
            device: vec!["fake".parse().unwrap(); 2],
            ..Args::default()
        };
        let error = platform(&args, 1, false).unwrap_err().to_string();
        assert!(error.contains("the same name"), "{error}");
    }
}
