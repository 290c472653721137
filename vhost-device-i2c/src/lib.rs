//! The vhost-user VirtIO I2C adapter (VIRTIO 1.4 §5.18, device id 34).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`access`] | which addresses a guest reaches, on which bus |
//! | [`address`] | 7-bit and 10-bit addresses |
//! | [`device`] | the device: requests, groups, one status each |
//! | [`host`] | the buses below |
//!
//! `unsafe` is in `host::linux` (the ioctls of `i2c-dev`).

pub mod access;
pub mod address;
pub mod args;
pub mod device;
pub mod host;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use vhost_device_daemon::{Backend, Identity};

use crate::access::{Access, AccessError, Grant};
use crate::args::{Args, BusSpec, Setting};
use crate::device::{Adapter, Limits};
use crate::host::Bus;
use crate::host::linux::{Linux, OpenError};
use crate::host::sim::Sim;

/// The daemon: some buses behind one virtual adapter, the same for all guests.
#[derive(Debug)]
pub struct I2c {
    buses: Arc<[Arc<dyn Bus>]>,
    access: Arc<Access>,
    /// One a guest.
    limits: Vec<Limits>,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A bus cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The lists of addresses contradict each other.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A setting of a bus that no list names.
    #[error("{option} names the bus {bus}, which --device-list does not")]
    NoSuchBus {
        /// The option.
        option: &'static str,
        /// The bus that it names.
        bus: String,
    },
}

/// A bus, and what the command line said of it.
#[derive(Debug)]
enum Opened {
    Linux(Linux),
    Sim(Sim),
}

impl I2c {
    /// Opens each bus once, by whatever names it is called.
    fn open_buses(args: &Args) -> Result<(Vec<Opened>, Vec<Grant>), StartError> {
        let mut buses = Vec::new();
        let mut grants = Vec::new();
        let mut numbers = BTreeMap::new();
        for entry in &args.device_list {
            for list in entry.iter() {
                let bus = open(&list.bus, args)?;
                let next = buses.len();
                let number = *numbers.entry(bus.identity()).or_insert(next);
                if number == next {
                    buses.push(bus);
                }
                grants.push(Grant {
                    bus: number,
                    ranges: list.ranges.clone(),
                });
            }
        }
        Ok((buses, grants))
    }
}

fn open(spec: &BusSpec, args: &Args) -> Result<Opened, StartError> {
    Ok(match spec {
        BusSpec::Sim { name, smbus_only } => Opened::Sim(Sim::standard(
            name.clone(),
            *smbus_only,
            args.sim_temperature,
        )),
        BusSpec::Number(number) => Opened::Linux(Linux::by_number(*number)?),
        BusSpec::Name(name) => Opened::Linux(Linux::by_name(name)?),
        BusSpec::Path(path) => Opened::Linux(Linux::by_path(path)?),
    })
}

impl Opened {
    /// The same for two names of one bus.
    fn identity(&self) -> String {
        match self {
            Self::Linux(bus) => format!("device {}", bus.device()),
            Self::Sim(bus) => format!("simulator {}", bus.name()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Linux(bus) => bus.name(),
            Self::Sim(bus) => bus.name(),
        }
    }

    fn share(self) -> Arc<dyn Bus> {
        match self {
            Self::Linux(bus) => Arc::new(bus),
            Self::Sim(bus) => Arc::new(bus),
        }
    }
}

/// Applies a setting to the buses that it names: all, or those of one specification.
fn apply(
    option: &'static str,
    settings: &[Setting],
    buses: &[Opened],
    args: &Args,
    set: impl Fn(&Linux, u32) -> Result<(), OpenError>,
) -> Result<(), StartError> {
    for setting in settings {
        let wanted = match &setting.bus {
            None => None,
            Some(spec) => Some(open(spec, args)?.identity()),
        };
        let mut found = wanted.is_none();
        for bus in buses {
            if wanted.as_ref().is_some_and(|own| *own != bus.identity()) {
                continue;
            }
            found = true;
            // A simulator waits for nothing.
            if let Opened::Linux(bus) = bus {
                set(bus, setting.value)?;
            }
        }
        if let (false, Some(spec)) = (found, &setting.bus) {
            return Err(StartError::NoSuchBus {
                option,
                bus: spec.to_string(),
            });
        }
    }
    Ok(())
}

impl Backend for I2c {
    type Args = Args;
    type Device = Adapter;
    type Error = StartError;

    const IDENTITY: Identity = Identity {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        about: env!("CARGO_PKG_DESCRIPTION"),
        device_type: "i2c",
    };

    fn open(args: Args, guests: usize) -> Result<Self, StartError> {
        let (buses, grants) = Self::open_buses(&args)?;
        apply(
            "--timeout",
            &args.timeout,
            &buses,
            &args,
            Linux::set_timeout,
        )?;
        apply(
            "--retries",
            &args.retries,
            &buses,
            &args,
            Linux::set_retries,
        )?;
        let names: Vec<_> = buses.iter().map(Opened::name).collect();
        let access = Access::new(&names, &grants, &args.read_only)?;
        Ok(Self {
            buses: buses.into_iter().map(Opened::share).collect(),
            access: Arc::new(access),
            limits: (0..guests).map(|_| Limits::default()).collect(),
        })
    }

    fn device(&self, guest: usize) -> io::Result<Self::Device> {
        Adapter::new(
            format!("guest {guest}"),
            Arc::clone(&self.buses),
            Arc::clone(&self.access),
            self.limits.get(guest).cloned().unwrap_or_default(),
        )
    }
}
