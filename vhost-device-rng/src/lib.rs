//! The vhost-user VirtIO entropy device (VIRTIO 1.4 §5.4, device id 4).
//!
//! | module | what lives there |
//! |---|---|
//! | [`args`] | the daemon's own options |
//! | [`device`] | the device: one request queue, one answer a request |
//! | `block` | random bytes in stock, for small requests |
//! | [`quota`] | how much a guest may have |
//! | [`host`] | where the bytes come from |
//! | `wake` | timers and readiness, for requests that wait |
//!
//! `unsafe` is in `host::linux` (the call of `getrandom`).

pub mod args;
mod block;
pub mod device;
pub mod host;
pub mod quota;
mod wake;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vhost_device_daemon::{Backend, Identity};

use crate::args::Args;
use crate::device::{Entropy, Logs};
use crate::host::linux::{Linux, OpenError};
use crate::quota::{Bucket, Lease};

/// The daemon: one source for all guests, a quota for each.
#[derive(Debug)]
pub struct Rng {
    source: Arc<Linux>,
    /// One a guest, in the guests' order; none without a limit. It lives here and not in the
    /// device, so that a guest that reconnects wins nothing.
    buckets: Vec<Arc<Mutex<Bucket>>>,
    /// One a guest, here for the same reason.
    logs: Vec<Logs>,
}

impl Backend for Rng {
    type Args = Args;
    type Device = Entropy<Linux>;
    type Error = OpenError;

    const IDENTITY: Identity = Identity {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        about: env!("CARGO_PKG_DESCRIPTION"),
        device_type: "rng",
    };

    fn open(args: Args, guests: usize) -> Result<Self, OpenError> {
        if let Some(remark) = args.remark() {
            log::warn!("{remark}");
        }
        let source = match &args.filename {
            Some(path) => Linux::open(path)?,
            None => Linux::kernel(),
        };
        let buckets = args.limit().map_or_else(Vec::new, |limit| {
            let bucket = Bucket::new(limit, Instant::now());
            (0..guests)
                .map(|_| Arc::new(Mutex::new(bucket.clone())))
                .collect()
        });
        Ok(Self {
            source: Arc::new(source),
            buckets,
            logs: (0..guests).map(|_| Logs::default()).collect(),
        })
    }

    fn device(&self, guest: usize) -> io::Result<Self::Device> {
        let lease = self.buckets.get(guest).cloned().map(Lease::new);
        let logs = self.logs.get(guest).cloned().unwrap_or_default();
        Entropy::new(
            format!("guest {guest}"),
            Arc::clone(&self.source),
            lease,
            logs,
        )
    }
}
