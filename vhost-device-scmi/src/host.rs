//! What is below the protocols: the [`Platform`] with its resources, and the drivers behind them.
//!
//! A platform is made once, before a guest comes: all files that a driver needs are open by
//! then, and nothing is opened later. It is shared by all guests, each with a thread of its own:
//! a driver is `Sync`, its methods take `&self`, and what it remembers is behind a lock of its
//! own, held for a moment. Where only one guest at a time can access hardware, they take
//! [turns](vhost_device_backend::Turns), so that none waits for longer than one access of each that
//! came before it. What belongs to one guest (subscriptions, trip points, its view of the
//! resources) is in that guest's device and never here.
//!
//! A driver does not wait for anything but its hardware, and for that no longer than an access
//! takes. It gets values that were checked against the resource's description: a clock's rate is
//! one of its rates, a voltage one of its levels, a position in a table is below its length.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;

pub mod linux;
pub mod sim;

mod check;
mod clock;
mod looked;
mod performance;
mod permissions;
mod pinctrl;
mod power;
mod powercap;
mod reset;
mod sensor;
mod system;
mod unit;
mod voltage;

pub use check::Invalid;
pub use clock::{Clock, ClockDriver, Rates};
pub use looked::Looked;
pub use performance::{Limits, Performance, PerformanceDriver, PerformanceLevel, PowerScale};
pub use permissions::{Access, Guest, Permissions};
pub use pinctrl::{Members, PinSetting, Pinctrl, PinctrlDriver, Pins};
pub use power::{Power, PowerDriver, PowerState};
pub use powercap::{Powercap, PowercapDriver};
pub use reset::{Reset, ResetDriver};
pub use sensor::{Axis, Intervals, Quantity, Reading, Resolution, Sensor, SensorDriver, Shape};
pub use system::{SystemDriver, SystemPower, SystemState};
pub use unit::{NoUnit, Unit};
pub use voltage::{Levels, Voltage, VoltageDriver};

/// The most resources of one protocol: ids of sensors have 16 bits, and a list that a mistake made
/// must not fill the memory of every guest's device.
pub const MAX_RESOURCES: usize = 1024;

/// The longest name: 64 bytes with the zero behind it (DEN0056, `*_NAME_GET`).
pub const MAX_NAME: usize = 63;

/// Why a driver did not do what it was asked for: what the guest is told, and what the log says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hardware cannot do it at all. `NOT_SUPPORTED`.
    #[error("not supported")]
    NotSupported,
    /// The host does not allow it. `DENIED`.
    #[error("not allowed")]
    Denied,
    /// It is not there, or not any more. `NOT_FOUND`.
    #[error("not found")]
    NotFound,
    /// The value is outside of what the hardware takes just now. `OUT_OF_RANGE`.
    #[error("out of range")]
    OutOfRange,
    /// Not now. `BUSY`.
    #[error("busy")]
    Busy,
    /// Somebody else has it. `IN_USE`.
    #[error("in use")]
    InUse,
    /// Anything else. `HARDWARE_ERROR`.
    #[error(transparent)]
    Hardware(io::Error),
}

impl From<io::Error> for Error {
    /// What the kernel's errors mean to a guest.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Unsupported => Self::NotSupported,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied,
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => Self::Busy,
            io::ErrorKind::InvalidInput => Self::OutOfRange,
            _ => match error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error)
            {
                Some(rustix::io::Errno::RANGE) => Self::OutOfRange,
                Some(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Self::NotFound,
                _ => Self::Hardware(error),
            },
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// What a driver's methods return.
pub type Result<T> = std::result::Result<T, Error>;

/// What every driver has, whatever it drives.
pub trait Driver: fmt::Debug + Send + Sync {
    /// What is behind the resource, in a few words, for `--check` and the log: a path, or
    /// `simulated`.
    fn backing(&self) -> String;

    /// What tells that the resource may have changed without a guest's doing, if anything does: a
    /// sample has come, somebody on the host has set another level. It is watched by the daemon,
    /// on a thread that no guest waits for, for as long as the process lives.
    fn event(&self) -> Option<Event<'_>> {
        None
    }

    /// [`Driver::event`] is ready. It must be read here, or this is called again at once. True
    /// when the guests that asked for it shall be told that the resource has changed (a sensor:
    /// that there is a new reading).
    fn on_event(&self) -> bool {
        false
    }

    /// The simulated hardware, when it is, for the control socket.
    fn simulated(&self) -> Option<&dyn sim::Simulated> {
        None
    }
}

/// A descriptor that tells of changes.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// What to wait for: `IN`, or `PRI` for an attribute in sysfs that notifies.
    pub flags: PollFlags,
}

/// A resource of the platform: what it is called, who may use it, and what it is.
#[derive(Clone, Debug)]
pub struct Resource<T> {
    /// Its name: 1 to [`MAX_NAME`] bytes of printable ASCII, unique in its protocol.
    pub name: String,
    /// Which guests may see it, and which may control it.
    pub permissions: Permissions,
    /// What it is: its limits, its properties and its driver.
    pub kind: T,
}

/// All that the guests are given: the resources of each protocol, in the order in which a guest
/// that may see them all counts them.
///
/// A guest sees only what it may, counted from 0 without gaps, so a number here is not what a
/// guest calls the resource. Where resources name each other (a clock its parents), they do by the
/// number here.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// What `BASE_DISCOVER_VENDOR` says: at most 15 bytes of ASCII. Empty means the project's.
    pub vendor: String,
    /// What `BASE_DISCOVER_SUB_VENDOR` says: at most 15 bytes of ASCII, or none.
    pub sub_vendor: String,
    /// Power domains, protocol 0x11.
    pub powers: Vec<Resource<Power>>,
    /// The system's power, protocol 0x12, if guests have it.
    pub system: Option<Resource<SystemPower>>,
    /// Performance domains, protocol 0x13.
    pub performances: Vec<Resource<Performance>>,
    /// Clocks, protocol 0x14.
    pub clocks: Vec<Resource<Clock>>,
    /// Sensors, protocol 0x15.
    pub sensors: Vec<Resource<Sensor>>,
    /// Reset domains, protocol 0x16.
    pub resets: Vec<Resource<Reset>>,
    /// Voltage domains, protocol 0x17.
    pub voltages: Vec<Resource<Voltage>>,
    /// Power capping domains, protocol 0x18.
    pub powercaps: Vec<Resource<Powercap>>,
    /// The pin controller, protocol 0x19, if guests have it.
    pub pinctrl: Option<Resource<Pinctrl>>,
}

/// A resource of a [`Platform`], by protocol and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceId {
    /// Of [`Platform::powers`].
    Power(usize),
    /// [`Platform::system`].
    System,
    /// Of [`Platform::performances`].
    Performance(usize),
    /// Of [`Platform::clocks`].
    Clock(usize),
    /// Of [`Platform::sensors`].
    Sensor(usize),
    /// Of [`Platform::resets`].
    Reset(usize),
    /// Of [`Platform::voltages`].
    Voltage(usize),
    /// Of [`Platform::powercaps`].
    Powercap(usize),
    /// [`Platform::pinctrl`].
    Pinctrl,
}

impl Platform {
    /// The name of a resource, and who may use it.
    pub fn resource(&self, id: ResourceId) -> Option<(&str, &Permissions)> {
        fn head<T>(resource: &Resource<T>) -> (&str, &Permissions) {
            (&resource.name, &resource.permissions)
        }
        match id {
            ResourceId::Power(number) => self.powers.get(number).map(head),
            ResourceId::System => self.system.as_ref().map(head),
            ResourceId::Performance(number) => self.performances.get(number).map(head),
            ResourceId::Clock(number) => self.clocks.get(number).map(head),
            ResourceId::Sensor(number) => self.sensors.get(number).map(head),
            ResourceId::Reset(number) => self.resets.get(number).map(head),
            ResourceId::Voltage(number) => self.voltages.get(number).map(head),
            ResourceId::Powercap(number) => self.powercaps.get(number).map(head),
            ResourceId::Pinctrl => self.pinctrl.as_ref().map(head),
        }
    }

    /// Each resource with its driver.
    pub fn drivers(&self) -> impl Iterator<Item = (ResourceId, &dyn Driver)> {
        let powers = numbered(&self.powers, ResourceId::Power, |kind| &*kind.driver);
        let system = self.system.iter().filter_map(|resource| {
            let driver = resource.kind.driver.as_deref()?;
            Some((ResourceId::System, driver as &dyn Driver))
        });
        let performances = numbered(&self.performances, ResourceId::Performance, |kind| {
            &*kind.driver
        });
        let clocks = numbered(&self.clocks, ResourceId::Clock, |kind| &*kind.driver);
        let sensors = numbered(&self.sensors, ResourceId::Sensor, |kind| &*kind.driver);
        let resets = numbered(&self.resets, ResourceId::Reset, |kind| &*kind.driver);
        let voltages = numbered(&self.voltages, ResourceId::Voltage, |kind| &*kind.driver);
        let powercaps = numbered(&self.powercaps, ResourceId::Powercap, |kind| &*kind.driver);
        let pinctrl = self.pinctrl.iter();
        let pinctrl =
            pinctrl.map(|resource| (ResourceId::Pinctrl, &*resource.kind.driver as &dyn Driver));
        powers
            .chain(system)
            .chain(performances)
            .chain(clocks)
            .chain(sensors)
            .chain(resets)
            .chain(voltages)
            .chain(powercaps)
            .chain(pinctrl)
    }
}

fn numbered<T>(
    resources: &[Resource<T>],
    id: impl Fn(usize) -> ResourceId,
    driver: impl Fn(&T) -> &dyn Driver,
) -> impl Iterator<Item = (ResourceId, &dyn Driver)> {
    let resources = resources.iter().enumerate();
    resources.map(move |(number, resource)| (id(number), driver(&resource.kind)))
}
