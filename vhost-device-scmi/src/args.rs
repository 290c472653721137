//! The options of this daemon; those of every daemon are in `vhost-device-daemon`.

use std::path::PathBuf;
use std::str::FromStr;

/// What the user of the SCMI daemon chooses.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// The platform that guests are given, as the file describes it.
    #[arg(long, value_name = "FILE")]
    pub platform: Option<PathBuf>,

    /// A device that all guests are given: fake,name=NAME or iio,path=PATH,channel=CHANNEL or
    /// sim; may be given several times. --help-devices says more.
    #[arg(short, long, value_name = "DEVICE[,KEY=VALUE]…", num_args(1..))]
    pub device: Vec<Device>,

    /// A whole simulated platform, which all guests may control.
    #[arg(long)]
    pub sim: bool,

    /// Say what each of --socket-count guests is given, as a table or as json, and exit. Nothing
    /// is changed, and the hardware need not be on this machine.
    #[arg(
        long,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "table"
    )]
    pub check: Option<Format>,

    /// Say which devices there are for --device, and exit.
    #[arg(long)]
    pub help_devices: bool,

    /// A socket to ask guests to shut down by, and to see and change what is simulated.
    #[arg(long, visible_alias = "control", value_name = "PATH")]
    pub sim_control: Option<PathBuf>,
}

/// How `--check` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What `--help-devices` says.
pub const DEVICES: &str = "\
Devices for --device:

- fake: a simulated accelerometer, whose three numbers grow with each reading
  - name: what guests call it [default: fake]

- iio: a device of the host's industrial I/O subsystem
  - path: its directory in sysfs, as /sys/bus/iio/devices/iio:device0
  - channel: its channels that begin so, as in_accel [default: all]
  - name: what guests call it [default: its own name]

- sim: a whole simulated platform, as --sim

Example:
--device iio,path=/sys/bus/iio/devices/iio:device0,channel=in_accel";

/// A device of `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A simulated accelerometer.
    Fake {
        /// What guests call it.
        name: String,
    },
    /// Sensors of the host's.
    Iio {
        /// The directory of the device.
        path: PathBuf,
        /// What its channels begin with, if not all are wanted.
        channel: Option<String>,
        /// What guests call it, if not as the host does.
        name: Option<String>,
    },
    /// A whole simulated platform.
    Sim,
}

/// What is wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; --help-devices says what there is")]
pub struct Invalid(String);

impl FromStr for Device {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut parts = text.split(',');
        let device = parts.next().unwrap_or("");
        let keys: &[&str] = match device {
            "fake" => &["name"],
            "iio" => &["path", "channel", "name"],
            "sim" => &[],
            _ => return Err(Invalid(format!("{device:?} is no device"))),
        };
        let mut values = vec![None; keys.len()];
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())
                .ok_or_else(|| Invalid(format!("{part:?} is not KEY=VALUE")))?;
            let position = keys.iter().position(|known| *known == key);
            let place = position.and_then(|position| values.get_mut(position));
            let place = place.ok_or_else(|| Invalid(format!("{device} has no {key:?}")))?;
            if place.replace(value.to_owned()).is_some() {
                return Err(Invalid(format!("{key} is there twice")));
            }
        }
        let mut values = values.into_iter();
        let mut next = || values.next().flatten();
        Ok(match device {
            "fake" => Self::Fake {
                name: next().unwrap_or_else(|| "fake".to_owned()),
            },
            "iio" => Self::Iio {
                path: next()
                    .ok_or_else(|| Invalid("iio needs a path".to_owned()))?
                    .into(),
                channel: next(),
                name: next(),
            },
            _ => Self::Sim,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_upstreams_devices_are_understood() {
        let iio = "iio,path=/sys/bus/iio/devices/iio:device0,channel=in_accel";
        let path = PathBuf::from("/sys/bus/iio/devices/iio:device0");
        assert_eq!(
            iio.parse(),
            Ok(Device::Iio {
                path: path.clone(),
                channel: Some("in_accel".to_owned()),
                name: None
            })
        );
        let named = format!("iio,name=a=b,path={}", path.display());
        assert_eq!(
            named.parse(),
            Ok(Device::Iio {
                path,
                channel: None,
                name: Some("a=b".to_owned())
            })
        );
        let fake = |name: &str| {
            let name = name.to_owned();
            Ok(Device::Fake { name })
        };
        assert_eq!("fake,name=foo".parse(), fake("foo"));
        assert_eq!("fake".parse(), fake("fake"));
        assert_eq!("sim".parse(), Ok(Device::Sim));
    }

    #[test]
    fn test_what_is_wrong_with_a_device_is_said() {
        for (text, why) in [
            ("", "\"\" is no device"),
            ("dummy", "\"dummy\" is no device"),
            ("fake,name", "\"name\" is not KEY=VALUE"),
            ("fake,name=", "\"name=\" is not KEY=VALUE"),
            ("fake,path=/x", "fake has no \"path\""),
            ("fake,name=a,name=b", "name is there twice"),
            ("iio,channel=in_accel", "iio needs a path"),
            ("sim,name=x", "sim has no \"name\""),
        ] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.starts_with(why), "{text}: {error}");
            assert!(error.contains("--help-devices"), "{error}");
        }
    }
}
