//! The device's side of a virtqueue over guest memory (VIRTIO 1.4 §2.6 to §2.8).
//!
//! Only rings and memory: no sockets, no threads, no eventfds. A [`Queue`] hands out one
//! [`Request`] for each descriptor chain that the driver made available; a request gives a
//! [`Reader`] over the bytes that the device may read and a [`Writer`] over those that it may
//! write, however the driver cut them into descriptors. Whoever owns the queue carries kicks in
//! and calls out.
//!
//! The guest is hostile: every value in guest memory can be wrong and can change at any time.
//! What is read is read once, checked, and the copy is used. A chain that breaks the rules goes
//! back with length 0 and the queue goes on.
//!
//! | module | what lives there |
//! |---|---|
//! | [`memory`] | guest physical addresses to mapped memory |
//! | `ring` | what both kinds of ring have in common, and the choice between them |
//! | `split` | the split ring: available, used, notification suppression |
//! | `packed` | the packed ring: the same, in one ring of descriptors |
//! | `area` | a part of a ring, mapped |
//! | `quick` | from a ring to the checked segments of a chain as drivers make them |
//! | `chain` | the same for every other chain, and what is wrong with it |
//! | `request` | requests, and those that a device keeps for later |
//! | `log` | the dirty log |
//! | `inflight` | requests in flight, in memory that outlives the process |
//! | `cursor` | [`Reader`] and [`Writer`] |
//!
//! `unsafe` is in `memory` (mappings and pointers into them), `area` (the rings' fields, and tables
//! of descriptors), `chain` (`Send` of resolved segments) and `cursor` (copies).

mod area;
mod chain;
mod cursor;
mod inflight;
mod log;
pub mod memory;
mod packed;
mod queue;
mod quick;
mod request;
mod ring;
mod split;

pub use chain::{ChainError, MAX_CHAIN_DESCRIPTORS};
pub use cursor::{Reader, Short, Writer};
pub use inflight::{InflightError, InflightRegion, QueueInflight};
pub use log::{DirtyLog, QueueLog};
pub use memory::GuestMemory;
pub use queue::{Queue, Stopped};
pub use request::{Kept, Peeked, Request};
pub use ring::{Addresses, Config, MAX_QUEUE_SIZE, RingError, checked_size};
