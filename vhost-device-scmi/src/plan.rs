//! The platform that the command line asks for: first the file, then the devices, then the
//! simulator, checked as a whole.

use std::io;
use std::path::{Path, PathBuf};

use crate::args::{Args, Device};
use crate::host::{Guest, Invalid, Platform, Resource, Sensor, linux, sim};
use crate::platform::{self, LoadError, NotHere};

/// Why guests cannot have what the command line asks for.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file of the platform is wrong.
    #[error("--platform {}", path.display())]
    Platform {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LoadError,
    },
    /// A device of the host cannot be opened.
    #[error("--device iio,path={}", path.display())]
    Device {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A resource contradicts itself or another one.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Opens all that the options name.
///
/// # Errors
/// What is wrong with the options or the file, or what cannot be opened.
pub fn open(args: &Args, guests: Guest) -> Result<Platform, PlanError> {
    let mut platform = match &args.platform {
        Some(path) => platform::load(path, guests).map_err(|source| wrong(path, source))?,
        None => Platform::default(),
    };
    add_devices(args, &mut platform, |path, source| {
        let path = path.to_owned();
        Err(PlanError::Device { path, source })
    })?;
    Ok(platform)
}

/// Looks at all that the options name, and changes nothing. Returns the platform, for `--check`
/// alone, and what of it is not on this machine.
///
/// # Errors
/// What is wrong with the options or the file.
pub fn look(args: &Args, guests: Guest) -> Result<(Platform, Vec<NotHere>), PlanError> {
    let (mut platform, mut not_here) = match &args.platform {
        Some(path) => platform::look(path, guests).map_err(|source| wrong(path, source))?,
        None => Default::default(),
    };
    add_devices(args, &mut platform, |path, error| {
        let option = format!("--device iio,path={}", path.display());
        not_here.push(NotHere::of_option(&option, &error));
        Ok(())
    })?;
    Ok((platform, not_here))
}

fn wrong(path: &Path, source: LoadError) -> PlanError {
    let path = path.to_owned();
    PlanError::Platform { path, source }
}

/// Adds the devices and the simulator to what the file describes, and checks all of it. Calls
/// `missing` for a device that is not on this machine.
fn add_devices(
    args: &Args,
    platform: &mut Platform,
    mut missing: impl FnMut(&Path, io::Error) -> Result<(), PlanError>,
) -> Result<(), PlanError> {
    for device in &args.device {
        match device {
            Device::Fake { name } => platform.sensors.push(sim::fake(name)),
            Device::Iio {
                path,
                channel,
                name,
            } => match iio(path, channel.as_deref(), name.as_deref()) {
                Ok(sensors) => platform.sensors.extend(sensors),
                Err(error) => missing(path, error)?,
            },
            Device::Sim => platform.merge(sim::platform()),
        }
    }
    if args.sim {
        platform.merge(sim::platform());
    }
    Ok(platform.check()?)
}

/// The sensors of a device of the host, under the name that the user gives them.
fn iio(
    path: &Path,
    channel: Option<&str>,
    name: Option<&str>,
) -> io::Result<Vec<Resource<Sensor>>> {
    let mut sensors = linux::iio(path, channel)?;
    match (name, &mut sensors[..]) {
        (None, _) => {}
        (Some(name), [sensor]) => sensor.name = name.to_owned(),
        (Some(name), several) => {
            for (number, sensor) in several.iter_mut().enumerate() {
                sensor.name = format!("{name}-{number}");
            }
        }
    }
    Ok(sensors)
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
        let platform = open(&args, 1).unwrap();
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
        let error = open(&args, 1).unwrap_err().to_string();
        assert!(error.contains("the same name"), "{error}");
    }
}
