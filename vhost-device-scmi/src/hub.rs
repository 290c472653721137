//! What the guests share: the platform, what each wants of it, and the news about it.
//!
//! A guest's device runs on a thread of its own. What one of them changes, or the host, comes to
//! the others through their [`Inbox`]: that a resource has changed and who did it, once for each
//! resource however often it happened. The device looks itself at what it is now.
//!
//! Where it is dangerous to do what the last guest said, each guest has a wish, and the platform
//! does the one that serves them all: a clock, a regulator or a power domain is on for as long as
//! one guest wants it on, and a power cap is the lowest that one of them wants.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vhost_device_backend::{RateLimit, limited};

use crate::host::{Access, Error, Guest, Platform, PowerState, ResourceId, Result, SystemState};

/// The platform and what its guests have to do with each other through it.
#[derive(Debug)]
pub struct Hub {
    platform: Platform,
    inboxes: Mutex<BTreeMap<Guest, Arc<Post>>>,
    /// By resource; those that cannot be wished for are not in it. A lock is held while its
    /// resource is changed.
    wishes: BTreeMap<ResourceId, Mutex<BTreeMap<Guest, u32>>>,
    /// By sensor: at which intervals guests want to be told of it. A lock is held while the driver
    /// is told.
    intervals: Vec<Mutex<BTreeMap<Guest, Duration>>>,
    /// The guests that want to be told of a resource: no others are woken when it changes, so that
    /// a guest cannot keep those busy that have nothing to do with it.
    watching: Mutex<BTreeMap<ResourceId, BTreeSet<Guest>>>,
    /// The pins that guests have requested, by their positions.
    pins: Mutex<BTreeMap<usize, Guest>>,
    /// The guests that want to be told when they shall shut down.
    listening: Mutex<BTreeSet<Guest>>,
    /// A guest can have the same thing fail as often as it likes.
    complaints: RateLimit,
}

/// The wish that a clock or a regulator is on.
const ON: u32 = 0;

/// The wish that it is off. Of several wishes the lowest counts.
const OFF: u32 = 1;

/// The wish that a power is not capped.
const NO_CAP: u32 = u32::MAX;

/// What the host wants of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemRequest {
    /// What it shall do.
    pub state: SystemState,
    /// Whether it has the time to do it in an orderly way.
    pub graceful: bool,
}

/// News for a guest.
#[derive(Debug, Default)]
pub struct News {
    /// The resources that have changed, with the guest that did it last, if a guest did.
    pub changes: BTreeMap<ResourceId, Option<Guest>>,
    /// What the host wants of the guest.
    pub system: Option<SystemRequest>,
}

#[derive(Debug)]
struct Post {
    /// Readable while there are news.
    fd: OwnedFd,
    news: Mutex<News>,
}

impl Post {
    fn add(&self, add: impl FnOnce(&mut News)) {
        let mut news = lock(&self.news);
        let first = news.changes.is_empty() && news.system.is_none();
        add(&mut news);
        if first {
            // Fails only when the count is full: then it is readable.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }
}

/// Where the news for a guest arrive, for as long as it is connected. With it go the guest's
/// wishes.
#[derive(Debug)]
pub struct Inbox {
    guest: Guest,
    hub: Arc<Hub>,
    post: Arc<Post>,
}

impl Inbox {
    /// Takes the news.
    pub fn take(&self) -> News {
        // Fails when there are none. Read first: what is added behind it is seen at once or makes
        // it readable again.
        let _ = rustix::io::read(&self.post.fd, &mut [0; 8]);
        std::mem::take(&mut *lock(&self.post.news))
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.post.fd.as_fd()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.hub.forget(self.guest);
        let mut inboxes = lock(&self.hub.inboxes);
        // The guest may have another connection already.
        let ours = |post: &Arc<Post>| Arc::ptr_eq(post, &self.post);
        if inboxes.get(&self.guest).is_some_and(ours) {
            inboxes.remove(&self.guest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned or not, each entry is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// A hub around a platform.
    pub fn new(platform: Platform) -> Self {
        let ids = platform.drivers().map(|(id, _)| id);
        let wishes = ids
            .filter(|id| {
                matches!(
                    id,
                    ResourceId::Clock(_)
                        | ResourceId::Power(_)
                        | ResourceId::Voltage(_)
                        | ResourceId::Powercap(_)
                )
            })
            .map(|id| (id, Mutex::default()))
            .collect();
        Self {
            intervals: platform.sensors.iter().map(|_| Mutex::default()).collect(),
            platform,
            inboxes: Mutex::default(),
            wishes,
            watching: Mutex::default(),
            pins: Mutex::default(),
            listening: Mutex::default(),
            complaints: RateLimit::default(),
        }
    }

    /// The platform.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// News for a guest from now on.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn inbox(self: &Arc<Self>, guest: Guest) -> io::Result<Inbox> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let post = Arc::new(Post {
            fd: eventfd(0, flags)?,
            news: Mutex::default(),
        });
        lock(&self.inboxes).insert(guest, Arc::clone(&post));
        Ok(Inbox {
            guest,
            hub: Arc::clone(self),
            post,
        })
    }

    /// A guest wants to be told of a resource, or does not want it any more.
    pub fn watch(&self, id: ResourceId, guest: Guest, wanted: bool) {
        let mut watching = lock(&self.watching);
        let guests = watching.entry(id).or_default();
        match wanted {
            true => guests.insert(guest),
            false => guests.remove(&guest),
        };
    }

    /// Tells all guests that want to know that a resource may have changed.
    pub fn changed(&self, id: ResourceId, by: Option<Guest>) {
        let watching = lock(&self.watching);
        let Some(guests) = watching.get(&id).filter(|guests| !guests.is_empty()) else {
            return;
        };
        let inboxes = lock(&self.inboxes);
        for post in guests.iter().filter_map(|guest| inboxes.get(guest)) {
            post.add(|news| {
                news.changes.insert(id, by);
            });
        }
    }

    /// A guest wants, or does not want, to be told what the host wants of it.
    pub fn listen(&self, guest: Guest, wanted: bool) {
        let mut listening = lock(&self.listening);
        match wanted {
            true => listening.insert(guest),
            false => listening.remove(&guest),
        };
    }

    /// Tells a guest what the host wants of it, or all that listen. The guests that were told.
    pub fn ask(&self, guest: Option<Guest>, request: SystemRequest) -> Vec<Guest> {
        let listening = lock(&self.listening).clone();
        let inboxes = lock(&self.inboxes);
        let wanted = listening
            .into_iter()
            .filter(|other| guest.is_none_or(|guest| guest == *other));
        wanted
            .filter(|guest| {
                let post = inboxes.get(guest);
                if let Some(post) = post {
                    post.add(|news| news.system = Some(request));
                }
                post.is_some()
            })
            .collect()
    }

    /// A guest wants a clock or a regulator to be on or off.
    ///
    /// # Errors
    /// The hardware's; then the wish is not taken.
    pub fn wish_enabled(&self, id: ResourceId, guest: Guest, enabled: bool) -> Result<()> {
        self.wish(id, guest, if enabled { ON } else { OFF })
    }

    /// A guest wants a power domain to have a state. Of several, it gets the one with the lowest
    /// number: on before what keeps context, and that before what loses it.
    ///
    /// # Errors
    /// The hardware's; then the wish is not taken.
    pub fn wish_state(&self, domain: usize, guest: Guest, state: PowerState) -> Result<()> {
        self.wish(ResourceId::Power(domain), guest, state.0)
    }

    /// A guest wants a cap, or none.
    ///
    /// # Errors
    /// The hardware's; then the wish is not taken.
    pub fn wish_cap(&self, domain: usize, guest: Guest, cap: Option<u32>) -> Result<()> {
        self.wish(ResourceId::Powercap(domain), guest, cap.unwrap_or(NO_CAP))
    }

    fn wish(&self, id: ResourceId, guest: Guest, value: u32) -> Result<()> {
        let mut wishes = lock(self.wishes.get(&id).ok_or(Error::NotFound)?);
        let others = wishes.iter().filter(|(other, _)| **other != guest);
        let lowest = others.map(|(_, &value)| value).fold(value, u32::min);
        self.apply(id, lowest)?;
        wishes.insert(guest, value);
        drop(wishes);
        self.changed(id, Some(guest));
        Ok(())
    }

    fn apply(&self, id: ResourceId, value: u32) -> Result<()> {
        let platform = &self.platform;
        match id {
            ResourceId::Clock(number) => {
                let clock = platform.clocks.get(number).ok_or(Error::NotFound)?;
                clock.kind.driver.set_enabled(value == ON)
            }
            ResourceId::Voltage(number) => {
                let voltage = platform.voltages.get(number).ok_or(Error::NotFound)?;
                voltage.kind.driver.set_enabled(value == ON)
            }
            ResourceId::Power(number) => {
                let power = platform.powers.get(number).ok_or(Error::NotFound)?;
                power.kind.driver.set_state(PowerState(value))
            }
            ResourceId::Powercap(number) => {
                let powercap = platform.powercaps.get(number).ok_or(Error::NotFound)?;
                let cap = (value != NO_CAP).then_some(value);
                powercap.kind.driver.set_cap(cap)
            }
            _ => Err(Error::NotSupported),
        }
    }

    /// A guest sets pins. None of them becomes another's before that is done.
    ///
    /// # Errors
    /// [`Error::InUse`] when one of them is another's; then `set` is not called. Else what it says.
    pub fn set_pins(
        &self,
        guest: Guest,
        pins: &[usize],
        set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let owners = lock(&self.pins);
        let mut owned = pins.iter().filter_map(|pin| owners.get(pin));
        match owned.all(|owner| *owner == guest) {
            true => set(),
            false => Err(Error::InUse),
        }
    }

    /// A guest wants pins to be its own.
    ///
    /// # Errors
    /// [`Error::InUse`] when one of them is another's; then it gets none.
    pub fn request_pins(&self, guest: Guest, pins: &[usize]) -> Result<()> {
        let mut owners = lock(&self.pins);
        let mut owned = pins.iter().filter_map(|pin| owners.get(pin));
        if owned.any(|owner| *owner != guest) {
            return Err(Error::InUse);
        }
        owners.extend(pins.iter().map(|pin| (*pin, guest)));
        Ok(())
    }

    /// A guest gives pins back.
    ///
    /// # Errors
    /// [`Error::Denied`] when one of them is not its own; then it keeps all.
    pub fn release_pins(&self, guest: Guest, pins: &[usize]) -> Result<()> {
        let mut owners = lock(&self.pins);
        if pins.iter().any(|pin| owners.get(pin) != Some(&guest)) {
            return Err(Error::Denied);
        }
        owners.retain(|pin, _| !pins.contains(pin));
        Ok(())
    }

    /// The interval at which a guest wants to be told of a sensor, or that it does not want to be
    /// told any more. The driver is told when the shortest of all has changed.
    pub fn want_readings(&self, sensor: usize, guest: Guest, interval: Option<Duration>) {
        let resource = self.platform.sensors.get(sensor);
        let (Some(resource), Some(wanted)) = (resource, self.intervals.get(sensor)) else {
            return;
        };
        let mut wanted = lock(wanted);
        let before = wanted.values().min().copied();
        match interval {
            Some(interval) => wanted.insert(guest, interval),
            None => wanted.remove(&guest),
        };
        let after = wanted.values().min().copied();
        if before != after
            && let Err(error) = resource.kind.driver.set_interval(after)
        {
            let line = format_args!("the sensor {}: {error}", resource.name);
            limited!(self.complaints, Warn, "{line}");
        }
    }

    /// A guest has gone, or begins anew: it wants nothing any more. What others want holds; where
    /// nobody wants anything, all stays as it is.
    pub fn forget(&self, guest: Guest) {
        self.listen(guest, false);
        lock(&self.pins).retain(|_, owner| *owner != guest);
        for guests in lock(&self.watching).values_mut() {
            guests.remove(&guest);
        }
        // A lock of what the guest cannot have wished for may be held for as long as another
        // guest's hardware takes.
        let access = |id| {
            let resource = self.platform.resource(id);
            resource.map_or(Access::None, |(_, permissions)| permissions.of(guest))
        };
        for (&id, wishes) in &self.wishes {
            if access(id) < Access::Control {
                continue;
            }
            let mut wishes = lock(wishes);
            if wishes.remove(&guest).is_none() {
                continue;
            }
            let Some(lowest) = wishes.values().min().copied() else {
                continue;
            };
            match self.apply(id, lowest) {
                Ok(()) => {
                    drop(wishes);
                    self.changed(id, None);
                }
                Err(error) => {
                    let line = format_args!("{id:?} without guest {guest}: {error}");
                    limited!(self.complaints, Warn, "{line}");
                }
            }
        }
        for sensor in 0..self.intervals.len() {
            if access(ResourceId::Sensor(sensor)) >= Access::Read {
                self.want_readings(sensor, guest, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        Clock, ClockDriver, Driver, Permissions, Reading, Resource, Sensor, SensorDriver, sim,
    };

    /// Hardware that notes what it is told, and may fail.
    #[derive(Debug, Default)]
    struct Noted {
        enabled: Mutex<Vec<bool>>,
        intervals: Mutex<Vec<Option<Duration>>>,
        broken: Mutex<bool>,
    }

    impl Driver for Noted {
        fn backing(&self) -> String {
            "noted".to_owned()
        }
    }

    impl ClockDriver for Noted {
        fn rate(&self) -> Result<u64> {
            Ok(0)
        }

        fn set_rate(&self, _rate: u64) -> Result<()> {
            Ok(())
        }

        fn is_enabled(&self) -> Result<bool> {
            Ok(lock(&self.enabled).last() == Some(&true))
        }

        fn set_enabled(&self, enabled: bool) -> Result<()> {
            if *lock(&self.broken) {
                return Err(Error::Busy);
            }
            lock(&self.enabled).push(enabled);
            Ok(())
        }
    }

    impl SensorDriver for Noted {
        fn read(&self, _values: &mut [i64]) -> Result<Reading> {
            Ok(Reading::default())
        }

        fn set_interval(&self, interval: Option<Duration>) -> Result<()> {
            lock(&self.intervals).push(interval);
            Ok(())
        }
    }

    const CLOCK: ResourceId = ResourceId::Clock(0);

    fn hub() -> (Arc<Hub>, Arc<Noted>) {
        let noted = Arc::new(Noted::default());
        let sim = sim::platform();
        let clock = Resource {
            kind: Clock {
                driver: Arc::clone(&noted) as _,
                ..sim.clocks[1].kind.clone()
            },
            ..sim.clocks[1].clone()
        };
        let sensor = Resource {
            kind: Sensor {
                driver: Arc::clone(&noted) as _,
                ..sim.sensors[0].kind.clone()
            },
            ..sim.sensors[0].clone()
        };
        let platform = Platform {
            clocks: vec![clock],
            sensors: vec![sensor],
            ..Platform::default()
        };
        (Arc::new(Hub::new(platform)), noted)
    }

    #[test]
    fn test_a_clock_is_on_for_as_long_as_one_guest_wants_it() {
        let (hub, noted) = hub();
        for (guest, enabled) in [(0, true), (1, true), (0, false), (1, false)] {
            hub.wish_enabled(CLOCK, guest, enabled).unwrap();
        }
        assert_eq!(*lock(&noted.enabled), [true, true, true, false]);
        hub.wish_enabled(CLOCK, 0, true).unwrap();
        // Guest 1 wants it off still.
        hub.forget(0);
        assert_eq!(lock(&noted.enabled)[4..], [true, false]);
        // Nobody is left who wants anything.
        hub.forget(1);
        assert_eq!(lock(&noted.enabled).len(), 6);
    }

    #[test]
    fn test_a_guest_that_goes_does_not_wait_for_the_hardware_of_others() {
        let (hub, _) = hub();
        let mut platform = hub.platform().clone();
        let others = Permissions::all(Access::Control).with(1, Access::None);
        platform.clocks[0].permissions = others.clone();
        platform.sensors[0].permissions = others;
        let hub = Arc::new(Hub::new(platform));
        // As while the hardware takes its time.
        let held = (lock(&hub.wishes[&CLOCK]), lock(&hub.intervals[0]));
        let (gone, goes) = std::sync::mpsc::channel();
        let leaving = Arc::clone(&hub);
        std::thread::spawn(move || {
            leaving.forget(1);
            gone.send(()).unwrap();
        });
        goes.recv_timeout(Duration::from_secs(60)).unwrap();
        drop(held);
    }

    #[test]
    fn test_pins_are_not_anothers_before_they_are_set() {
        let (hub, _) = hub();
        hub.request_pins(0, &[3]).unwrap();
        let set = || -> Result<()> { panic!("not its own") };
        assert!(matches!(hub.set_pins(1, &[2, 3], set), Err(Error::InUse)));
        let held = || {
            assert!(hub.pins.try_lock().is_err());
            Err(Error::Busy)
        };
        assert!(matches!(hub.set_pins(0, &[2, 3], held), Err(Error::Busy)));
    }

    #[test]
    fn test_what_fails_is_not_wished() {
        let (hub, noted) = hub();
        hub.wish_enabled(CLOCK, 0, false).unwrap();
        *lock(&noted.broken) = true;
        assert!(hub.wish_enabled(CLOCK, 0, true).is_err());
        *lock(&noted.broken) = false;
        hub.wish_enabled(CLOCK, 1, false).unwrap();
        assert_eq!(*lock(&noted.enabled), [false, false]);
        assert!(hub.wish_enabled(ResourceId::Clock(9), 0, true).is_err());
        assert!(hub.wish_enabled(ResourceId::Sensor(0), 0, true).is_err());
    }

    #[test]
    fn test_a_driver_is_told_the_shortest_interval() {
        let (hub, noted) = hub();
        let ms = |ms| Some(Duration::from_millis(ms));
        hub.want_readings(0, 0, ms(100));
        hub.want_readings(0, 1, ms(200));
        hub.want_readings(0, 1, ms(50));
        hub.want_readings(0, 0, None);
        hub.forget(1);
        hub.want_readings(7, 0, ms(1));
        assert_eq!(*lock(&noted.intervals), [ms(100), ms(50), None]);
    }

    #[test]
    fn test_news_come_once_to_those_who_want_them() {
        let (hub, _) = hub();
        let inboxes = [0, 1].map(|guest| hub.inbox(guest).unwrap());
        hub.watch(CLOCK, 0, true);
        hub.changed(CLOCK, None);
        hub.changed(CLOCK, Some(1));
        let [first, second] = inboxes.each_ref().map(|inbox| inbox.take().changes);
        assert_eq!(first.into_iter().collect::<Vec<_>>(), [(CLOCK, Some(1))]);
        assert!(second.is_empty());
        let mut count = [0; 8];
        let inbox = &inboxes[0];
        assert!(
            rustix::io::read(inbox, &mut count).is_err(),
            "all are taken"
        );
        hub.changed(CLOCK, None);
        assert!(rustix::io::read(inbox, &mut count).is_ok());
        hub.forget(0);
        inbox.take();
        hub.changed(CLOCK, None);
        assert!(inbox.take().changes.is_empty());
    }
}
