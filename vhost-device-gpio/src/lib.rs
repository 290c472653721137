//! The vhost-user VirtIO GPIO device (VIRTIO 1.4 §5.18, device id 41).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`plan`] | which guest gets which lines, checked against the host's chips |
//! | [`device`] | the device: requests, interrupts |
//! | [`host`] | the lines below it: the host's, or simulated ones |
//! | [`log`] | what is said of a guest and its lines, with limits |
//! | `wake` | readiness, for events |
//!
//! There is no `unsafe` here.

pub mod args;
pub mod device;
pub mod host;
pub mod log;
pub mod plan;
mod wake;

use std::io;
use std::sync::Arc;

use vhost_device_daemon::{Backend, Identity};

use crate::args::Args;
use crate::device::Gpio;
use crate::host::Lines;
use crate::host::linux::Linux;
use crate::host::sim::Sim;
use crate::log::Log;
use crate::plan::{OpenError, Share};

/// The daemon: its own lines for each guest.
#[derive(Debug)]
pub struct GpioDaemon {
    /// One a guest, in the guests' order. A guest's log is here, so that one that reconnects does
    /// not begin its limits anew.
    guests: Vec<(Share, Log)>,
}

impl Backend for GpioDaemon {
    type Args = Args;
    type Device = Gpio;
    type Error = OpenError;

    const IDENTITY: Identity = Identity {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        about: env!("CARGO_PKG_DESCRIPTION"),
        device_type: "gpio",
    };

    fn check(args: &Args, guests: usize) -> Result<(), OpenError> {
        plan::check(args, guests)
    }

    fn open(args: Args, _guests: usize) -> Result<Self, OpenError> {
        let shares = plan::open(&args)?.into_iter().enumerate();
        let with_log = |(guest, share)| (share, Log::new(&format!("guest {guest}")));
        Ok(Self {
            guests: shares.map(with_log).collect(),
        })
    }

    fn device(&self, guest: usize) -> io::Result<Self::Device> {
        let Some((share, log)) = self.guests.get(guest) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let host: Box<dyn Lines> = match share {
            Share::Sim(board, control) => Box::new(Sim::new(board, control.clone(), log.clone())?),
            Share::Host(lines) => Box::new(Linux::new(Arc::clone(lines), guest, log.clone())?),
        };
        Gpio::new(host, log.clone())
    }
}
