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
//! A guest is of an [`Arch`]; [`on_each_arch!`] makes a test of each.
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
mod control;
mod daemon;
mod device_tree;
mod guest;
mod held;
mod port;
mod process;
mod programs;
mod qmp;
pub mod scmi;
mod seen;
pub mod setup;
mod test_program;

pub use arch::Arch;
pub use control::Control;
pub use daemon::{Daemon, RunningDaemon};
pub use guest::{Guest, IN_ORDER, RING_PACKED, RunningGuest};
pub use held::Held;
pub use qmp::Qmp;
pub use seen::{CommandOutput, Seen};
pub use test_program::{TestProgram, TestResults};

/// Makes a test of each of these functions for each architecture, which the function takes:
/// `x86_64::NAME` and `aarch64::NAME`.
#[macro_export]
macro_rules! on_each_arch {
    (@ $module:ident $arch:ident $($test:ident)+) => {
        mod $module {
            $(
                #[test]
                fn $test() -> ::anyhow::Result<()> {
                    super::$test(&$crate::Arch::$arch)
                }
            )+
        }
    };
    ($($test:ident),+ $(,)?) => {
        $crate::on_each_arch! { @ x86_64 X86_64 $($test)+ }
        $crate::on_each_arch! { @ aarch64 AARCH64 $($test)+ }
    };
}
