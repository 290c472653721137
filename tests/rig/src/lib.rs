//! What the devices' tests stand on.
//!
//! | module | what lives there |
//! |---|---|
//! | [`ring`] | a device's queues and their driver on the same memory: no socket, no session |
//! | [`program`] | a daemon as a process of its own |
//! | [`opens`] | what a daemon opens once it is ready |
//! | [`logged`](mod@logged) | what a test has logged |
//! | [`gpio_sim`] | GPIO chips of the kernel without hardware, in the host guest |
//!
//! Everything panics where a test has to fail.

pub mod gpio_sim;
pub mod logged;
pub mod opens;
pub mod program;
pub mod ring;

pub use gpio_sim::GpioSim;
pub use logged::logged;
pub use opens::opens_nothing_when_ready;
pub use program::{Daemon, Program, entries, wait_for_exit, wait_until};
pub use ring::{Back, Rig};
