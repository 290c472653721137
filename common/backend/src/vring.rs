//! What the front-end said of one vring, and the queue that runs on it (vhost-user "Ring
//! states").
//!
//! A vring is *started* by a kick and *enabled* by a message; its queue runs while it is both.

use std::sync::Arc;

use vhost_device_queue::{
    Addresses, Config, DirtyLog, InflightRegion, Queue, QueueLog, RingError, checked_size,
};

use crate::notifier::Notifier;
use crate::table::Table;

/// How the front-end makes itself heard.
#[derive(Debug, Default)]
pub(crate) enum Kick {
    /// It has not said yet.
    #[default]
    Unset,
    /// By this eventfd or pipe.
    Fd(Notifier),
    /// Not at all: the ring is to be polled.
    Polled,
}

/// Ring addresses in the front-end's address space, as `SET_VRING_ADDR` gives them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserAddresses {
    pub(crate) descriptor: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Why a vring cannot be set up as the front-end wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VringError {
    #[error("{area} at {addr:#x} of the front-end is outside of every memory region")]
    Unmapped { area: &'static str, addr: u64 },
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl UserAddresses {
    fn to_guest(self, table: &Table) -> Result<Addresses, VringError> {
        let find = |area, addr| {
            table
                .guest_addr(addr)
                .ok_or(VringError::Unmapped { area, addr })
        };
        Ok(Addresses {
            descriptor: find("descriptor table", self.descriptor)?,
            available: find("available ring", self.available)?,
            used: find("used ring", self.used)?,
        })
    }
}

/// The ring features that were negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    pub(crate) packed: bool,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) in_order: bool,
}

/// One vring.
#[derive(Debug, Default)]
pub(crate) struct Vring {
    pub(crate) size: u16,
    pub(crate) addresses: Option<UserAddresses>,
    /// Where to begin or go on, if the front-end has said so or it has run.
    pub(crate) base: Option<u32>,
    /// Where it stopped, if it has run.
    pub(crate) stopped_at: Option<u32>,
    pub(crate) kick: Kick,
    /// The address at which writes to the used ring are logged, if they are to be.
    pub(crate) log: Option<u64>,
    pub(crate) call: Option<Notifier>,
    pub(crate) err: Option<Notifier>,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
    pub(crate) queue: Option<Queue>,
    /// The queue is to be looked at before the thread sleeps.
    pub(crate) pending: bool,
    /// The front-end knows that the ring is in error.
    pub(crate) in_error: bool,
}

impl Vring {
    /// Takes a size from the front-end: one that such a ring may have.
    pub(crate) fn set_size(&mut self, size: u32, features: RingFeatures) -> Result<(), VringError> {
        self.size = checked_size(size, features.packed)?;
        Ok(())
    }

    /// Takes the place where to begin or go on from the front-end.
    pub(crate) fn set_base(&mut self, base: u32, features: RingFeatures) -> Result<(), VringError> {
        // A split ring's index has 16 bits; cutting a longer one would resume at another place.
        // A packed ring's is checked when its size is known for sure.
        if !features.packed && u16::try_from(base).is_err() {
            let size = self.size;
            return Err(RingError::Base { base, size }.into());
        }
        self.base = Some(base);
        Ok(())
    }

    /// Where to begin or go on.
    pub(crate) fn base(&self, features: RingFeatures) -> u32 {
        let first = Config::first_base(features.packed);
        self.base.unwrap_or(first)
    }

    /// Whether it goes on from where it was, rather than begins.
    pub(crate) fn resumes(&self, features: RingFeatures) -> bool {
        self.base(features) != Config::first_base(features.packed)
    }

    /// Puts the first base in the place of base 0, if nothing was ever used in a packed ring.
    /// Front-ends that know nothing of packed rings begin each one at 0, which is a place in its
    /// second round. Whether that was so.
    pub(crate) fn settle_base(
        &mut self,
        table: &Table,
        memory: &vhost_device_queue::GuestMemory,
        features: RingFeatures,
    ) -> bool {
        let (Some(addresses), Some(0), None) = (self.addresses, self.base, &self.queue) else {
            return false;
        };
        let config = self.config(addresses, table, features);
        let is_new = config.is_ok_and(|config| Queue::is_new(memory, &config) == Ok(true));
        if is_new {
            self.base = Some(Config::first_base(features.packed));
        }
        is_new
    }

    fn config(
        &self,
        addresses: UserAddresses,
        table: &Table,
        features: RingFeatures,
    ) -> Result<Config, VringError> {
        Ok(Config {
            size: self.size,
            addresses: addresses.to_guest(table)?,
            base: self.base(features),
            packed: features.packed,
            event_idx: features.event_idx,
            indirect: features.indirect,
            in_order: features.in_order,
        })
    }

    /// Takes ring addresses, if a ring can be there. A running queue moves to them.
    pub(crate) fn set_addresses(
        &mut self,
        addresses: UserAddresses,
        table: &Table,
        memory: &vhost_device_queue::GuestMemory,
        features: RingFeatures,
    ) -> Result<(), VringError> {
        let config = self.config(addresses, table, features)?;
        match &mut self.queue {
            Some(queue) => queue.rebind(memory, &config.addresses)?,
            None => Queue::check(memory, &config)?,
        }
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Moves a running queue to other memory.
    pub(crate) fn rebind(
        &mut self,
        table: &Table,
        memory: &vhost_device_queue::GuestMemory,
    ) -> Result<(), VringError> {
        if let (Some(queue), Some(addresses)) = (&mut self.queue, self.addresses) {
            queue.rebind(memory, &addresses.to_guest(table)?)?;
        }
        Ok(())
    }

    /// Makes the queue, if there is none yet and everything is known that it needs. With a region
    /// that tracks vring `index`, it goes on with what is in flight there.
    pub(crate) fn start(
        &mut self,
        index: u32,
        table: &Table,
        memory: &vhost_device_queue::GuestMemory,
        features: RingFeatures,
        inflight: Option<&InflightRegion>,
    ) -> Result<(), VringError> {
        if let (None, Some(addresses)) = (&self.queue, self.addresses) {
            let config = self.config(addresses, table, features)?;
            let tracked = match (inflight, u16::try_from(index)) {
                (Some(region), Ok(index)) => {
                    let queue = region.queue(index, features.packed);
                    queue.map_err(RingError::from)?
                }
                _ => None,
            };
            self.queue = Some(match tracked {
                None => Queue::new(memory, &config)?,
                Some(inflight) => Queue::tracked(memory, &config, inflight)?,
            });
        }
        Ok(())
    }

    /// Has the queue's writes logged, or no more.
    pub(crate) fn set_log(&mut self, dirty: Option<&Arc<DirtyLog>>) {
        if let Some(queue) = &mut self.queue {
            queue.set_log(dirty.map(|dirty| QueueLog {
                dirty: Arc::clone(dirty),
                used: self.log,
            }));
        }
    }

    /// Back to the state of a new vring, but for the fds that it signals. Returns the kick.
    pub(crate) fn reset(&mut self) -> Kick {
        let fresh = Self {
            call: self.call.take(),
            err: self.err.take(),
            ..Self::default()
        };
        std::mem::replace(self, fresh).kick
    }

    /// Whether the front-end has said more of it than what it signals.
    pub(crate) fn is_set_up(&self) -> bool {
        self.size != 0
            || self.enabled
            || self.addresses.is_some()
            || self.base.is_some()
            || !matches!(self.kick, Kick::Unset)
    }

    /// Shows the driver what was answered, and calls it if it wants that.
    #[inline]
    pub(crate) fn publish(&mut self) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let call = queue.publish();
        self.pending |= queue.is_unblocked();
        if call {
            self.call();
        }
    }

    /// Calls the driver.
    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Tells the front-end that the ring is in error; once, until it has worked again. Nothing
    /// keeps a front-end from giving the same fd for errors as for kicks.
    pub(crate) fn report_error(&mut self) {
        if !std::mem::replace(&mut self.in_error, true)
            && let Some(err) = &self.err
        {
            err.signal();
        }
    }

    /// Takes the kicks that have come, and whether there were any.
    pub(crate) fn take_kicks(&self) -> bool {
        matches!(&self.kick, Kick::Fd(fd) if fd.take())
    }

    /// Kicks on the driver's behalf, for whoever resumes the ring.
    pub(crate) fn kick_again(&self) {
        if let Kick::Fd(fd) = &self.kick {
            fd.signal();
        }
    }
}
