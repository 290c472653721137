//! The guest's side of a vhost-user device, in a process.
//!
//! Tests, benches and fuzzers need somebody to talk to a device as QEMU and a guest kernel would,
//! and also as a hostile guest or a broken front-end would. This crate is that somebody:
//!
//! - [`memory`]: guest memory, made of memfds that can be handed to a back-end;
//! - [`split`] and [`packed`]: the driver's side of a virtqueue, both well-behaved and raw;
//! - [`frontend`]: a vhost-user front-end that sends what it is told to, with [`codec`] below it
//!   for messages that no front-end should send and [`protocol`] for the numbers;
//! - [`guest`]: a [`guest::Driver`] that puts these together and brings a device up in one call;
//! - [`event`]: eventfds, for kicks and calls.
//!
//! It shares no code with the device side of this workspace, so that a misunderstanding of the
//! specification on one side shows as a failing test. The memory and ring modules need no socket.

pub mod codec;
mod error;
pub mod event;
pub mod frontend;
pub mod guest;
pub mod memory;
pub mod packed;
pub mod protocol;
mod random;
pub mod ring;
pub mod split;

pub use error::{Error, Result};
pub use event::EventFd;
pub use frontend::Frontend;
pub use guest::{Driver, Options, PackedDriver, Queue, RingDriver, Step};
pub use memory::GuestMemory;
pub use packed::PackedRing;
pub use random::Random;
pub use ring::Ring;
pub use split::{Buffer, Descriptor, Layout, SplitRing, Used};
