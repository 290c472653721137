//! Sessions over a real socket: a front-end that plays by the rules, and some that do not.
//!
//! Tests are named after the clause that they prove (`v1_…`, `c7_…`), where there is one. That
//! something does *not* happen is proved by what the session handles after it, never by waiting.

#[path = "../common/mod.rs"]
mod common;

mod fds;
mod features;
mod frontends;
mod hostile;
mod inflight;
mod log;
mod memory;
mod messages;
mod packed;
mod random;
mod rings;
mod slow;
