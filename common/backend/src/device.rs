//! What a device is, seen from its session: the [`Device`] trait.
//!
//! A device implements its chapter of the VIRTIO specification and nothing else: it never sees
//! a socket, a ring or a thread. The session calls it from one thread only, so it needs no lock.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use vhost_device_queue::{Kept, Request};

use crate::session::Queues;

/// The index of a virtqueue of a device, as the device's specification numbers them.
pub type QueueIndex = u16;

/// What a device is: fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The device's VIRTIO id, for example 4 for entropy (VIRTIO 1.4 §5).
    pub device_id: u32,
    /// How many virtqueues it has, with those that a feature bit enables.
    pub queues: u16,
    /// The device's own feature bits, 0 to 23 and 50 to 127 (VIRTIO 1.4 §2.2). The session adds
    /// those of the transport and of the ring.
    pub features: u64,
}

/// How long the requests of one turn may take, but for the last of them, with a device that waits
/// for its hardware. A stuck bus costs its timeout for each request: a batch of those would keep a
/// message waiting for minutes.
pub const TURN: Duration = Duration::from_millis(10);

/// A set of features that the device cannot work with, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Gives requests back that were kept: [`Queues`] do, and so does a queue without a session in a
/// device's tests.
pub trait Resume {
    /// Takes up a request that was kept. `None` when its queue has been stopped since, or its
    /// memory was taken away: there is nobody to answer.
    fn resume(&mut self, kept: Kept) -> Option<Request<'_>>;

    /// Whether a request that was kept is seen again when its queue resumes, if that stops now.
    fn would_rewind(&self, kept: &Kept) -> bool;
}

/// A VirtIO device: gets requests, answers them.
///
/// One value serves one connection of one guest. It is made when the front-end connects and
/// dropped when it leaves, so what must outlast a connection (open hardware, quotas) lives in
/// what makes it.
pub trait Device {
    /// Whether a request may wait for hardware, say for a bus that is stuck. Then the session has
    /// its turn after some milliseconds, and not only after a batch of requests.
    const WAITS: bool = false;

    /// Whether the device can answer each queue's requests in the order in which they came, as
    /// `VIRTIO_F_IN_ORDER` wants it. Not one that keeps a request until something happens while
    /// others that came later are done: they would wait for it.
    const ANSWERS_IN_ORDER: bool = true;

    /// What the device is. The session asks once.
    fn describe(&self) -> Description;

    /// The device's configuration space as it is now; empty when it has none.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// Takes note of the features that the driver accepted (a subset of what was offered), or
    /// refuses to work with them.
    ///
    /// # Errors
    /// The reason, for the log: by name, what the guest's driver lacks. The front-end's
    /// `SET_FEATURES` fails then, and no queue runs until other features are accepted.
    fn negotiated(&mut self, features: u64) -> Result<(), Refused> {
        let _ = features;
        Ok(())
    }

    /// Answers one request: [`Request::complete`], [`Request::keep`] to answer it later through
    /// [`Resume::resume`], or drop it, which returns it to the driver with length 0.
    fn handle(&mut self, queue: QueueIndex, request: Request<'_>);

    /// Nothing more is available on `queue` now: the place to flush what was collected over
    /// several requests.
    fn queue_drained(&mut self, queue: QueueIndex, queues: &mut Queues<'_>) {
        let _ = (queue, queues);
    }

    /// The file descriptors that the session watches for the device, for as long as it lives.
    /// [`Device::on_event`] gets the position in this list.
    fn event_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Event source `source` is readable. The device must read it, or it is called again at once.
    fn on_event(&mut self, source: usize, queues: &mut Queues<'_>) {
        let _ = (source, queues);
    }

    /// `queue` is about to stop: the last chance to answer what would else go back with length 0,
    /// see [`Device::queue_stopped`].
    fn queue_stopping(&mut self, queue: QueueIndex, queues: &mut Queues<'_>) {
        let _ = (queue, queues);
    }

    /// `queue` stops: the driver took it back. Whatever the device keeps of it is given up and
    /// must be dropped here: `kept` requests that were the newest are seen again when the queue
    /// resumes, older ones go back with length 0, unless the front-end keeps what is in flight.
    fn queue_stopped(&mut self, queue: QueueIndex) {
        let _ = queue;
    }

    /// Returns to the state of a new device. The queues have been stopped before.
    fn reset(&mut self) {}
}
