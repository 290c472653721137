//! The control socket (`--sim-control`): asks guests to shut down, and plays the world around
//! simulated hardware.
//!
//! Lines of text, each ended by a newline, and each with an answer:
//!
//! | from the client | to the client |
//! |---|---|
//! | `list` | a line `PROTOCOL:NAME STATE` for each simulated resource, and an empty one |
//! | `PROTOCOL:NAME` | the same for one |
//! | `PROTOCOL:NAME=VALUE` | the same, after a change |
//! | `REQUEST`, `REQUEST GUEST` | `told GUEST…`: those that were asked |
//! | anything else | `error: …` |
//!
//! `PROTOCOL` is `power`, `performance`, `clock`, `sensor`, `reset`, `voltage`, `powercap`,
//! `pinctrl` or `system`. `REQUEST` is `shutdown`, `reboot` or `suspend`, with `force-` before it when it is
//! not an orderly one; `GUEST` is a guest's number.

use std::path::Path;
use std::sync::Arc;

use vhost_device_daemon::Listener;
use vhost_device_daemon::control::{self, Answer, ControlError};

use crate::host::sim::Simulated;
use crate::host::{Guest, Platform, ResourceId, SystemState};
use crate::hub::{Hub, SystemRequest};

/// Listens at `path`, for as long as the process lives. The file is there for as long as what is
/// returned.
///
/// # Errors
/// When the path cannot be had.
pub(crate) fn start(path: &Path, hub: &Arc<Hub>) -> Result<Listener, ControlError> {
    let hub = Arc::clone(hub);
    control::start(path, move |line| obey(line, &hub))
}

/// The name of a resource with that of its protocol.
fn full_name(platform: &Platform, id: ResourceId) -> Option<String> {
    let protocol = match id {
        ResourceId::Power(_) => "power",
        ResourceId::System => "system",
        ResourceId::Performance(_) => "performance",
        ResourceId::Clock(_) => "clock",
        ResourceId::Sensor(_) => "sensor",
        ResourceId::Reset(_) => "reset",
        ResourceId::Voltage(_) => "voltage",
        ResourceId::Powercap(_) => "powercap",
        ResourceId::Pinctrl => "pinctrl",
    };
    let (name, _) = platform.resource(id)?;
    Some(format!("{protocol}:{name}"))
}

/// The simulated resources.
fn simulated(platform: &Platform) -> impl Iterator<Item = (ResourceId, String, &dyn Simulated)> {
    platform.drivers().filter_map(|(id, driver)| {
        let simulated = driver.simulated()?;
        Some((id, full_name(platform, id)?, simulated))
    })
}

/// Does what a line says.
fn obey(line: &str, hub: &Hub) -> Answer {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if let Some(request) = parse_request(word) {
        return ask(hub, request, rest);
    }
    let platform = hub.platform();
    if line == "list" {
        let lines = simulated(platform).map(|(_, name, sim)| format!("{name} {}\n", sim.state()));
        return Ok(lines.collect());
    }
    // A name may have anything in it: the longest that fits is meant.
    let fits = |name: &str| {
        let rest = line.strip_prefix(name)?;
        match rest.strip_prefix('=') {
            None if rest.is_empty() => Some(None),
            None => None,
            value => Some(value),
        }
    };
    let named = simulated(platform).filter_map(|(id, name, sim)| {
        let value = fits(&name)?;
        Some((id, name, sim, value))
    });
    let named = named.max_by_key(|(_, name, ..)| name.len());
    let (id, name, sim, value) = named.ok_or("that is no request, and nothing simulated")?;
    if let Some(value) = value {
        sim.set(value)?;
        hub.changed(id, None);
    }
    Ok(format!("{name} {}", sim.state()))
}

fn parse_request(word: &str) -> Option<SystemRequest> {
    let (word, graceful) = match word.strip_prefix("force-") {
        Some(word) => (word, false),
        None => (word, true),
    };
    let state = match word {
        "shutdown" => SystemState::Shutdown,
        "reboot" => SystemState::ColdReset,
        "suspend" => SystemState::Suspend,
        _ => return None,
    };
    Some(SystemRequest { state, graceful })
}

/// Asks guests for something.
fn ask(hub: &Hub, request: SystemRequest, guest: &str) -> Answer {
    let guest = match guest.trim() {
        "" => None,
        number => {
            let number: Result<Guest, _> = number.parse();
            Some(number.map_err(|_| format!("{guest:?} is no guest's number"))?)
        }
    };
    let told = hub.ask(guest, request);
    match told.is_empty() {
        true => Err("no guest listens: none has a driver for the system's power".to_owned()),
        false => {
            let told: Vec<_> = told.iter().map(Guest::to_string).collect();
            Ok(format!("told {}", told.join(" ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sim;

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(sim::platform()))
    }

    #[test]
    fn test_simulated_hardware_is_seen_and_changed() {
        let hub = hub();
        let ask = |line: &str| obey(line, &hub);
        assert_eq!(ask("voltage:vdd-io").unwrap(), "voltage:vdd-io 1800000,off");
        assert_eq!(
            ask("voltage:vdd-io=3300000,on").unwrap(),
            "voltage:vdd-io 3300000,on"
        );
        assert_eq!(ask("sensor:fan=77").unwrap(), "sensor:fan 77");
        let list = ask("list").unwrap();
        assert!(list.contains("sensor:fan 77\n"), "{list}");
        assert_eq!(list.lines().count(), hub.platform().drivers().count());
        for (line, why) in [
            ("", "no request"),
            ("voltage:vdd-i", "no request"),
            ("vdd-io", "no request"),
            ("sensor:fan=", "no number"),
            ("sensor:fan=1,2", "has 1 numbers"),
            ("sensor:fanfare", "no request"),
        ] {
            let error = ask(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn test_a_change_is_news() {
        let hub = hub();
        let inbox = hub.inbox(0).unwrap();
        let other = hub.inbox(1).unwrap();
        hub.watch(ResourceId::Sensor(5), 0, true);
        obey("sensor:fan=77", &hub).unwrap();
        obey("sensor:fan", &hub).unwrap();
        assert!(other.take().changes.is_empty(), "it has not asked");
        let changes = inbox.take().changes;
        assert_eq!(
            changes.into_iter().collect::<Vec<_>>(),
            [(ResourceId::Sensor(5), None)]
        );
    }

    #[test]
    fn test_guests_that_listen_are_asked() {
        let hub = hub();
        let inboxes = [0, 1].map(|guest| hub.inbox(guest).unwrap());
        let error = obey("shutdown", &hub).unwrap_err();
        assert!(error.contains("no guest listens"), "{error}");
        hub.listen(0, true);
        hub.listen(1, true);
        assert_eq!(obey("shutdown", &hub).unwrap(), "told 0 1");
        assert_eq!(obey("force-reboot 1", &hub).unwrap(), "told 1");
        let requests = inboxes.each_ref().map(|inbox| inbox.take().system);
        let request = |state, graceful| Some(SystemRequest { state, graceful });
        assert_eq!(
            requests,
            [
                request(SystemState::Shutdown, true),
                request(SystemState::ColdReset, false)
            ]
        );
        assert!(obey("reboot 7", &hub).is_err());
        assert!(obey("reboot x", &hub).unwrap_err().contains("number"));
        drop(inboxes);
        assert!(obey("suspend", &hub).is_err(), "nobody is there");
    }
}
