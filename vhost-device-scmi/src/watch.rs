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
