//! What the guests share: the platform, what each wants of it, and the news about it.
//!
//! Each guest's device runs on a thread of its own. When one guest or the host changes a resource,
//! the other devices find that in their [`Inbox`]: which resource, and who did it, once however
//! often it happened. A device then reads the present value itself.
//!
//! Where guests may conflict, each one's wish counts as a vote: a clock, a regulator or a power
//! domain is on while at least one guest wants it on, and the lowest power cap holds.
//!
//! Hardware may be slow, and no guest waits for another's. The hub holds each lock for a moment,
//! and never while it calls a driver. Guests that change the same resource take [turns](Turns).
//! When a guest leaves, the hub forgets its wishes at once; a thread that no guest waits for then
//! sets the hardware to what the others want.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vhost_device_backend::{RateLimit, Turns, limited};

use crate::host::{Error, Guest, Platform, PowerState, ResourceId, Result, SystemState};

/// The platform and what its guests have to do with each other through it.
#[derive(Debug)]
pub struct Hub {
    platform: Platform,
    inboxes: Mutex<BTreeMap<Guest, Arc<Post>>>,
    /// By resource; those that cannot be wished for are not in it.
    wishes: BTreeMap<ResourceId, Shared<u32>>,
    /// By sensor: at which intervals guests want to be told of it.
    intervals: Vec<Shared<Duration>>,
    /// Resources that a guest has left, and that have to serve the others now.
    left: Mutex<Left>,
    /// The guests that want to be told of a resource: no others are woken when it changes, so that
    /// a guest cannot keep those busy that have nothing to do with it.
    watching: Mutex<BTreeMap<ResourceId, BTreeSet<Guest>>>,
    /// The pins that guests have requested, by their positions. Held while pins are set, as they
    /// are simulated: that takes no time.
    pins: Mutex<BTreeMap<usize, Guest>>,
    /// The guests that want to be told when they shall shut down.
    listening: Mutex<BTreeSet<Guest>>,
    /// A guest can have the same thing fail as often as it likes.
    complaints: RateLimit,
}

/// What guests want of one resource.
#[derive(Debug)]
struct Shared<T> {
    /// A guest holds its turn while it calls the resource's driver.
    turns: Turns,
    wanted: Mutex<Wanted<T>>,
}

#[derive(Debug)]
struct Wanted<T> {
    /// The lowest counts.
    wishes: BTreeMap<Guest, T>,
    /// What the driver was told last.
    told: Option<T>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            turns: Turns::default(),
            wanted: Mutex::new(Wanted {
                wishes: BTreeMap::new(),
                told: None,
            }),
        }
    }
}

impl<T: Copy + Ord> Shared<T> {
    fn lowest(&self) -> Option<T> {
        lock(&self.wanted).wishes.values().min().copied()
    }

    /// Forgets what a guest wanted. Whether it wanted anything.
    fn forget(&self, guest: Guest) -> bool {
        lock(&self.wanted).wishes.remove(&guest).is_some()
    }
}

/// Resources that a guest has left.
#[derive(Debug, Default)]
struct Left {
    resources: BTreeSet<ResourceId>,
    /// A thread looks after them.
    attended: bool,
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
            .map(|id| (id, Shared::default()))
            .collect();
        Self {
            intervals: platform.sensors.iter().map(|_| Shared::default()).collect(),
            left: Mutex::default(),
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
        if wanted {
            guests.insert(guest)
        } else {
            guests.remove(&guest)
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
        if wanted {
            listening.insert(guest)
        } else {
            listening.remove(&guest)
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
        let shared = self.wishes.get(&id).ok_or(Error::NotFound)?;
        let turn = shared.turns.take();
        let lowest = {
            let wanted = lock(&shared.wanted);
            let others = wanted.wishes.iter().filter(|(other, _)| **other != guest);
            others.map(|(_, &value)| value).fold(value, u32::min)
        };
        self.apply(id, lowest)?;
        lock(&shared.wanted).wishes.insert(guest, value);
        drop(turn);
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
    /// [`Error::InUse`] when one of them is another's; then it does not call `set`. Otherwise
    /// what that returns.
    pub fn set_pins(
        &self,
        guest: Guest,
        pins: &[usize],
        set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let owners = lock(&self.pins);
        let mut owned = pins.iter().filter_map(|pin| owners.get(pin));
        if owned.all(|owner| *owner == guest) {
            set()
        } else {
            Err(Error::InUse)
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
        let Some(shared) = self.intervals.get(sensor) else {
            return;
        };
        let mut wanted = lock(&shared.wanted);
        match interval {
            Some(interval) => wanted.wishes.insert(guest, interval),
            None => wanted.wishes.remove(&guest),
        };
        let news = wanted.wishes.values().min().copied() != wanted.told;
        drop(wanted);
        if news {
            self.tell_interval(sensor);
        }
    }

    /// Tells a sensor's driver the shortest interval that a guest wants, if that is another one.
    fn tell_interval(&self, sensor: usize) {
        let resource = self.platform.sensors.get(sensor);
        let (Some(resource), Some(shared)) = (resource, self.intervals.get(sensor)) else {
            return;
        };
        let _turn = shared.turns.take();
        // Looked at when it is our turn: it may be another one by now, or be told already.
        let shortest = {
            let mut wanted = lock(&shared.wanted);
            let shortest = wanted.wishes.values().min().copied();
            if std::mem::replace(&mut wanted.told, shortest) == shortest {
                return;
            }
            shortest
        };
        if let Err(error) = resource.kind.driver.set_interval(shortest) {
            let line = format_args!("the sensor {}: {error}", resource.name);
            limited!(self.complaints, Warn, "{line}");
        }
    }

    /// A guest has gone, or begins anew: it wants nothing any more. What others want holds; where
    /// nobody wants anything, all stays as it is. It waits for no hardware.
    pub fn forget(self: &Arc<Self>, guest: Guest) {
        self.listen(guest, false);
        lock(&self.pins).retain(|_, owner| *owner != guest);
        for guests in lock(&self.watching).values_mut() {
            guests.remove(&guest);
        }
        let wishes = self.wishes.iter();
        let wishes = wishes.filter(|(_, shared)| shared.forget(guest));
        let intervals = self.intervals.iter().enumerate();
        let intervals = intervals.filter(|(_, shared)| shared.forget(guest));
        let sensors = intervals.map(|(sensor, _)| ResourceId::Sensor(sensor));
        let resources: BTreeSet<_> = wishes.map(|(id, _)| *id).chain(sensors).collect();
        if resources.is_empty() {
            return;
        }
        let mut left = lock(&self.left);
        left.resources.extend(resources);
        if std::mem::replace(&mut left.attended, true) {
            return;
        }
        drop(left);
        let hub = Arc::clone(self);
        let thread = thread::Builder::new().name("left".to_owned());
        if let Err(error) = thread.spawn(move || hub.attend_left()) {
            limited!(
                self.complaints,
                Warn,
                "no thread for what guest {guest} has left: {error}"
            );
            self.attend_left();
        }
    }

    /// Sees to it that what guests have left serves the others.
    fn attend_left(&self) {
        /// Should a driver panic, the next guest that leaves has another thread.
        struct Attending<'a>(&'a Hub);
        impl Drop for Attending<'_> {
            fn drop(&mut self) {
                if thread::panicking() {
                    lock(&self.0.left).attended = false;
                }
            }
        }
        let attending = Attending(self);
        loop {
            let id = {
                let mut left = lock(&self.left);
                let id = left.resources.pop_first();
                left.attended = id.is_some();
                id
            };
            match id {
                Some(ResourceId::Sensor(sensor)) => attending.0.tell_interval(sensor),
                Some(id) => attending.0.serve_others(id),
                None => return,
            }
        }
    }

    /// Brings a resource to what those want who are still there.
    fn serve_others(&self, id: ResourceId) {
        let Some(shared) = self.wishes.get(&id) else {
            return;
        };
        let turn = shared.turns.take();
        let Some(lowest) = shared.lowest() else {
            return;
        };
        let applied = self.apply(id, lowest);
        drop(turn);
        match applied {
            Ok(()) => self.changed(id, None),
            Err(error) => {
                limited!(
                    self.complaints,
                    Warn,
                    "{id:?}, which a guest has left: {error}"
                );
            }
        }
    }

    /// Waits until what guests have left serves the others.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        vhost_device_rig::wait_until(
            || !lock(&self.left).attended,
            || "what was left is attended to".to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Clock, ClockDriver, Driver, Reading, Resource, Sensor, SensorDriver, sim};

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
        hub.settle();
        assert_eq!(lock(&noted.enabled)[4..], [true, false]);
        // Nobody is left who wants anything.
        hub.forget(1);
        hub.settle();
        assert_eq!(lock(&noted.enabled).len(), 6);
    }

    #[test]
    fn test_a_guest_that_goes_does_not_wait_for_hardware() {
        let (hub, noted) = hub();
        hub.wish_enabled(CLOCK, 0, true).unwrap();
        hub.wish_enabled(CLOCK, 1, false).unwrap();
        let ms = |ms| Some(Duration::from_millis(ms));
        hub.want_readings(0, 0, ms(10));
        hub.want_readings(0, 1, ms(20));
        // As while another guest's access to it takes its time.
        let held = (
            hub.wishes[&CLOCK].turns.take(),
            hub.intervals[0].turns.take(),
        );
        // On a thread of its own, so that one that waits is seen.
        let (gone, goes) = std::sync::mpsc::channel();
        let leaving = Arc::clone(&hub);
        thread::spawn(move || {
            leaving.forget(0);
            gone.send(()).unwrap();
        });
        goes.recv_timeout(Duration::from_secs(60)).unwrap();
        // It may come again at once, and want something else.
        hub.watch(CLOCK, 0, true);
        assert_eq!(*lock(&noted.enabled), [true, true]);
        drop(held);
        hub.settle();
        assert_eq!(*lock(&noted.enabled), [true, true, false]);
        assert_eq!(*lock(&noted.intervals), [ms(10), ms(20)]);
    }

    #[test]
    fn test_guests_change_what_they_share_in_turns() {
        let (hub, noted) = hub();
        let shared = &hub.wishes[&CLOCK];
        let held = shared.turns.take();
        let waiting: Vec<_> = [(0, true), (1, false), (2, true)]
            .into_iter()
            .map(|(guest, enabled)| {
                let other = Arc::clone(&hub);
                let wish = move || other.wish_enabled(CLOCK, guest, enabled).unwrap();
                let thread = thread::spawn(wish);
                vhost_device_rig::wait_until(
                    || shared.turns.queued() == 2 + guest as u64,
                    || "it waits".to_owned(),
                );
                thread
            })
            .collect();
        // What is remembered is at hand meanwhile.
        hub.watch(CLOCK, 3, true);
        assert_eq!(shared.lowest(), None);
        drop(held);
        waiting
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(*lock(&noted.enabled), [true, true, true]);
        assert_eq!(shared.lowest(), Some(ON));
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
        hub.settle();
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
