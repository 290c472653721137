//! The vhost-user VirtIO SCMI device (VIRTIO 1.4 §5.17, device id 32; Arm DEN0056).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`plan`] | the platform that these options ask for, checked as a whole |
//! | [`platform`] | the platform of a file |
//! | [`device`] | the device: commands, notifications |
//! | [`host`] | the platform below it: resources and their drivers |
//! | [`hub`] | the platform as guests share it |
//! | `control` | the control socket |
//! | `report` | what `--check` prints |
//! | `watch` | tells guests of changes on the host |

#![forbid(unsafe_code)]

pub mod args;
mod control;
pub mod device;
pub mod host;
pub mod hub;
pub mod plan;
pub mod platform;
mod report;
mod watch;

use std::io;
use std::sync::Arc;

use vhost_device_daemon::control::ControlError;
use vhost_device_daemon::{Backend, Identity, Listener};

use crate::args::{Args, Format};
use crate::device::{Logs, Scmi};
use crate::hub::Hub;
use crate::plan::PlanError;
use crate::report::Report;

/// The daemon: one platform, and a part of it for each guest.
#[derive(Debug)]
pub struct ScmiDaemon {
    hub: Arc<Hub>,
    /// The log limits of each guest. They outlive its connections, so that a guest that reconnects
    /// wins nothing.
    logs: Vec<Logs>,
    /// The file of the control socket exists for as long as this.
    _control: Option<Listener>,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options ask for no platform that guests can have.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The control socket cannot be opened.
    #[error("--sim-control")]
    Control(#[from] ControlError),
    /// Nothing can watch for changes on the host.
    #[error("cannot watch the host's hardware")]
    Watch(#[source] io::Error),
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
            let (platform, not_here) = plan::look(args, guests)?;
            let report = Report::new(&platform, guests, not_here);
            Ok(match format {
                Format::Table => report.table(),
                Format::Json => report.json(),
            })
        };
        Some(report())
    }

    fn open(args: Args, guests: usize) -> Result<Self, StartError> {
        let platform = plan::open(&args, guests)?;
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
