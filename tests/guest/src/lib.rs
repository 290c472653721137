//! Linux guests in QEMU, driven by tests against the daemons.
//!
//! A test says which daemons a guest is attached to and which shell lines run
//! in it, and looks at what they printed:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vhost_device_guest::{Daemon, Guest};
//!
//! let seen = Guest::new()
//!     .attach(Daemon::new("vhost-device-rng").device("vhost-user-rng-pci"))
//!     .run(&["cat /sys/class/misc/hw_random/rng_current"])?;
//! seen.line(0).is("virtio_rng.0");
//! # Ok(())
//! # }
//! ```
//!
//! The guest is a small kernel of our own with busybox as its whole user
//! space, without network and without disk. [`setup`] gets, builds and caches
//! what that takes, once; `cargo xtask setup` calls it. A test never installs
//! anything: it uses what is there, or fails saying what to run.
//!
//! Commands go to the guest over a virtio serial port, one line each, and come
//! back framed by their exit status and length, so that no output and no
//! kernel message can be taken for something else.

mod arch;
mod daemon;
mod guest;
mod held;
mod port;
mod process;
mod programs;
mod qmp;
mod seen;
pub mod setup;
mod test_program;

pub use arch::Arch;
pub use daemon::{Daemon, RunningDaemon};
pub use guest::{Guest, RunningGuest};
pub use held::Held;
pub use qmp::Qmp;
pub use seen::{CommandOutput, Seen};
pub use test_program::{TestProgram, TestResults};
