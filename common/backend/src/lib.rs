//! One guest's session: what a vhost-user front-end says on its socket, the guest's memory, the
//! vrings, the event loop, and the [`Device`] trait.
//!
//! [`serve`] runs one connection on the thread that calls it, from the first message to the
//! last. Messages, kicks and the device's own events are handled one after the other on that
//! thread, so a request is never torn by a change of memory, and a reply means that the change
//! is in force: the order of the loop is the lock.
//!
//! | module | what lives there |
//! |---|---|
//! | [`device`] | the trait that a device implements |
//! | `session` | the event loop, and which queue runs next |
//! | `messages` | vhost-user messages, as the `vhost` crate calls them |
//! | `features` | what can be withheld from front-ends, and the names of feature bits |
//! | `flaw` | messages that are well formed and say what cannot be |
//! | `inbox` | whether a whole message has arrived, so that reading it cannot block |
//! | `vring` | what the front-end said of one vring, and its queue while it runs |
//! | `notifier` | eventfds and pipes by which the session and the front-end wake each other |
//! | `memory_file` | the files that the front-end shares memory by: where they may be |
//! | `table` | the memory table: files of the front-end, mapped |
//! | `spin` | looking for more requests before sleeping |
//! | `sigbus` | a file that is truncated under its mapping ends one session, not the process |
//! | `rate_limit` | a guest cannot flood the log |
//! | `timer` | what a device waits for |
//! | `turns` | what several guests use, in the order in which they came |

pub mod device;
mod features;
mod flaw;
mod inbox;
mod memory_file;
mod messages;
mod notifier;
mod rate_limit;
mod session;
mod sigbus;
mod spin;
mod table;
mod timer;
mod turns;
mod vring;

/// For [`limited!`], which names it.
#[doc(hidden)]
pub use log;

pub use device::{Description, Device, QueueIndex, Refused, Resume, TURN};
pub use features::{Feature, UnknownFeature};
pub use memory_file::MemoryFs;
pub use notifier::{Signalling, Step};
pub use rate_limit::RateLimit;
pub use session::{End, Error, Logs, Options, Patience, Queues, publish, serve};
pub use spin::Cores;
pub use table::{Limits, MAX_MEM_SLOTS};
pub use timer::Timer;
pub use turns::{Turn, Turns};
