//! Watches what tells of changes on the host, on a thread that no guest waits for.

use std::io;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

use crate::host::{Driver, ResourceId};
use crate::hub::Hub;

/// Watches the events of all drivers, for as long as the process lives. Without any there is no
/// thread.
///
/// # Errors
/// When there is no thread to be had.
pub(crate) fn start(hub: &Arc<Hub>) -> io::Result<()> {
    let mut drivers = hub.platform().drivers();
    if drivers.all(|(_, driver)| driver.event().is_none()) {
        return Ok(());
    }
    drop(drivers);
    let hub = Arc::clone(hub);
    let thread = thread::Builder::new().name("host-events".to_owned());
    thread.spawn(move || watch(&hub))?;
    Ok(())
}

fn watch(hub: &Hub) {
    let drivers = hub.platform().drivers();
    let mut watched: Vec<_> = drivers
        .filter(|(_, driver)| driver.event().is_some())
        .collect();
    while !watched.is_empty() {
        if let Err(error) = wait(hub, &mut watched) {
            log::error!("changes on the host are not told any more: {error}");
            return;
        }
    }
}

/// Waits for events, and tells of them. One whose descriptor is broken is not watched any more:
/// it would be ready forever.
fn wait(hub: &Hub, watched: &mut Vec<(ResourceId, &dyn Driver)>) -> io::Result<()> {
    let events = watched.iter().filter_map(|(_, driver)| driver.event());
    let mut fds: Vec<_> = events
        .map(|event| PollFd::from_borrowed_fd(event.fd, event.flags))
        .collect();
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let wanted = PollFlags::IN | PollFlags::PRI;
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    let ready: Vec<_> = fds.iter().map(PollFd::revents).collect();
    let mut ready = ready.into_iter();
    watched.retain(|(id, driver)| {
        let ready = ready.next().unwrap_or(PollFlags::empty());
        if ready.intersects(wanted) {
            if driver.on_event() {
                hub.changed(*id, None);
            }
        } else if ready.intersects(broken) {
            log::error!("{}: its events are lost", driver.backing());
            return false;
        }
        true
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Mutex;

    use rustix::event::Timespec;
    use rustix::pipe::pipe;

    use super::*;
    use crate::host::{Event, Platform, Reading, Result, SensorDriver, sim};

    /// A sensor whose samples come through a pipe.
    #[derive(Debug)]
    struct Piped {
        samples: OwnedFd,
        newest: Mutex<u8>,
    }

    impl Driver for Piped {
        fn backing(&self) -> String {
            "a pipe".to_owned()
        }

        fn event(&self) -> Option<Event<'_>> {
            Some(Event {
                fd: self.samples.as_fd(),
                flags: PollFlags::IN,
            })
        }

        fn on_event(&self) -> bool {
            let mut sample = [0];
            let read = rustix::io::read(&self.samples, &mut sample) == Ok(1);
            *self.newest.lock().unwrap() = sample[0];
            read
        }
    }

    impl SensorDriver for Piped {
        fn read(&self, values: &mut [i64]) -> Result<Reading> {
            values.fill((*self.newest.lock().unwrap()).into());
            Ok(Reading::default())
        }
    }

    #[test]
    fn test_events_of_drivers_are_news() {
        let (samples, world) = pipe().unwrap();
        let mut sensor = sim::platform().sensors.remove(0);
        let newest = Mutex::new(0);
        sensor.kind.driver = Arc::new(Piped { samples, newest });
        let hub = Arc::new(Hub::new(Platform {
            sensors: vec![sensor],
            ..Platform::default()
        }));
        let id = ResourceId::Sensor(0);
        let inbox = hub.inbox(0).unwrap();
        hub.watch(id, 0, true);
        start(&hub).unwrap();
        for sample in [7, 8] {
            rustix::io::write(&world, &[sample]).unwrap();
            let limit = Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            poll(&mut [PollFd::new(&inbox, PollFlags::IN)], Some(&limit)).unwrap();
            assert_eq!(inbox.take().changes.into_keys().collect::<Vec<_>>(), [id]);
            let mut values = [0];
            let driver = &hub.platform().sensors[0].kind.driver;
            driver.read(&mut values).unwrap();
            assert_eq!(values, [i64::from(sample)]);
        }
    }

    #[test]
    fn test_a_broken_descriptor_is_not_watched_any_more() {
        let (samples, world) = pipe().unwrap();
        drop(world);
        let newest = Mutex::new(0);
        let broken = Piped { samples, newest };
        let hub = Hub::new(Platform::default());
        let mut watched: Vec<(_, &dyn Driver)> = vec![(ResourceId::Sensor(0), &broken)];
        wait(&hub, &mut watched).unwrap();
        assert!(watched.is_empty());
    }
}
