//! The control socket (`--sim-control`): asks guests to shut down, and plays the world around
//! simulated hardware. What is said over it is the same in every daemon
//! ([`vhost_device_daemon::control`]); here is what there is to see, to set and to ask for.
//!
//! A thing is called by its protocol, its name, and its part where it has several:
//! `sensor:cpu-temp`, `clock:uart.rate`.

use std::path::Path;
use std::sync::Arc;

use vhost_device_daemon::Listener;
use vhost_device_daemon::control::{self, Answer, Command, Control, ControlError, Item};

use crate::host::sim::Simulated;
use crate::host::{
    Clock, Guest, Levels, Platform, Powercap, Rates, ResourceId, Sensor, Shape, SystemState,
    Voltage,
};
use crate::hub::{Hub, SystemRequest};

/// Listens at `path`, for as long as the process lives. The file is there for as long as what is
/// returned.
///
/// # Errors
/// When the path cannot be had.
pub(crate) fn start(path: &Path, hub: &Arc<Hub>) -> Result<Listener, ControlError> {
    control::serve(path, World(Arc::clone(hub)))
}

/// What guests are asked for: the word, what is asked, and whether there is time for it.
const REQUESTS: [(Command, SystemState, bool); 6] = [
    request(
        "shutdown",
        "asks all guests that listen, or one, to shut down",
        SystemState::Shutdown,
        true,
    ),
    request(
        "reboot",
        "asks them to reboot",
        SystemState::ColdReset,
        true,
    ),
    request("suspend", "asks them to sleep", SystemState::Suspend, true),
    request(
        "force-shutdown",
        "the same without time for an orderly one",
        SystemState::Shutdown,
        false,
    ),
    request(
        "force-reboot",
        "the same without time for an orderly one",
        SystemState::ColdReset,
        false,
    ),
    request(
        "force-suspend",
        "the same without time for an orderly one",
        SystemState::Suspend,
        false,
    ),
];

const fn request(
    name: &'static str,
    about: &'static str,
    state: SystemState,
    graceful: bool,
) -> (Command, SystemState, bool) {
    let arguments = "[GUEST]";
    let command = Command {
        name,
        arguments,
        about,
    };
    (command, state, graceful)
}

/// The commands of [`REQUESTS`].
const COMMANDS: [Command; REQUESTS.len()] = {
    let mut commands = [REQUESTS[0].0; REQUESTS.len()];
    let mut number = 0;
    while number < REQUESTS.len() {
        commands[number] = REQUESTS[number].0;
        number += 1;
    }
    commands
};

/// The world around the guests.
struct World(Arc<Hub>);

/// A part of something simulated.
struct Part<'a> {
    id: ResourceId,
    simulated: &'a dyn Simulated,
    part: &'static str,
    item: Item,
}

/// What a part can be set to.
enum Takes {
    /// One of these words.
    Words(Vec<String>),
    /// As many numbers as this, with commas between them.
    Numbers { count: usize, min: i64, max: i64 },
    /// One of these numbers.
    Steps { min: i128, max: i128, step: i128 },
}

impl Takes {
    fn text(&self) -> String {
        match self {
            Self::Words(words) => words.join(", "),
            Self::Numbers { count: 1, min, max } => format!("{min} to {max}"),
            Self::Numbers { count, min, max } => {
                format!("{count} numbers with commas between them, {min} to {max}")
            }
            Self::Steps { min, max, step: 1 } => format!("{min} to {max}"),
            Self::Steps { min, max, step } => format!("{min} to {max} in steps of {step}"),
        }
    }

    /// Whether a value is one that it takes.
    fn check(&self, value: &str) -> Result<(), String> {
        match self {
            Self::Words(words) => {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                control::choice(value, &words)?;
            }
            Self::Numbers { count, min, max } => {
                let numbers: Vec<_> = value.split(',').collect();
                if numbers.len() != *count {
                    return Err(format!("{value:?} is not {}", self.text()));
                }
                for number in numbers {
                    control::number(number, *min..=*max)?;
                }
            }
            Self::Steps { min, max, step } => {
                let number = control::number(value, *min..=*max)?;
                if (number - min).checked_rem(*step) != Some(0) {
                    return Err(format!("{value:?} is not a number from {}", self.text()));
                }
            }
        }
        Ok(())
    }
}

fn words<T: ToString>(words: impl IntoIterator<Item = T>) -> Takes {
    Takes::Words(words.into_iter().map(|word| word.to_string()).collect())
}

fn switch() -> Takes {
    words(["on", "off"])
}

impl Clock {
    fn takes(&self, part: &str) -> Option<Takes> {
        match part {
            "rate" => Some(match self.rates {
                Rates::Discrete(ref rates) => words(rates),
                Rates::Range { min, max, step } => Takes::Steps {
                    min: min.into(),
                    max: max.into(),
                    step: step.into(),
                },
            }),
            "enabled" if self.gate => Some(switch()),
            "parent" if !self.parents.is_empty() => Some(words(0..self.parents.len())),
            _ => None,
        }
    }
}

impl Voltage {
    fn takes(&self, part: &str) -> Option<Takes> {
        match part {
            "microvolts" => Some(match self.levels {
                Levels::Discrete(ref levels) => words(levels),
                Levels::Range { min, max, step } => Takes::Steps {
                    min: min.into(),
                    max: max.into(),
                    step: step.into(),
                },
            }),
            "enabled" if self.gate => Some(switch()),
            _ => None,
        }
    }
}

impl Sensor {
    fn takes(&self) -> Takes {
        let quantity = match &self.shape {
            Shape::Scalar(quantity) => Some(quantity),
            Shape::Axes(axes) => axes.first().map(|axis| &axis.quantity),
        };
        let range = quantity.and_then(|quantity| quantity.range);
        let (min, max) = range.unwrap_or((i64::MIN, i64::MAX));
        let count = self.width();
        Takes::Numbers { count, min, max }
    }
}

impl Powercap {
    fn takes(&self, part: &str) -> Option<Takes> {
        (part == "power").then_some(Takes::Steps {
            min: 0,
            max: u32::MAX.into(),
            step: 1,
        })
    }
}

/// What a part of a resource can be set to; `None` when it can only be seen.
fn takes(platform: &Platform, id: ResourceId, part: &str) -> Option<Takes> {
    match id {
        ResourceId::Clock(number) => platform.clocks.get(number)?.kind.takes(part),
        ResourceId::Voltage(number) => platform.voltages.get(number)?.kind.takes(part),
        ResourceId::Sensor(number) => Some(platform.sensors.get(number)?.kind.takes()),
        ResourceId::Powercap(number) => platform.powercaps.get(number)?.kind.takes(part),
        ResourceId::Power(_) => Some(switch()),
        ResourceId::Performance(number) if part == "level" => {
            let levels = &platform.performances.get(number)?.kind.levels;
            Some(words(0..levels.len()))
        }
        ResourceId::Reset(_) if part.is_empty() => Some(words(["asserted", "released"])),
        ResourceId::Performance(_)
        | ResourceId::Reset(_)
        | ResourceId::System
        | ResourceId::Pinctrl => None,
    }
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

impl World {
    fn parts(&self) -> Vec<Part<'_>> {
        let platform = self.0.platform();
        let simulated = platform.drivers().filter_map(|(id, driver)| {
            let simulated = driver.simulated()?;
            Some((id, full_name(platform, id)?, simulated))
        });
        simulated
            .flat_map(|(id, name, simulated)| {
                simulated
                    .parts()
                    .into_iter()
                    .map(move |(part, value)| Part {
                        id,
                        simulated,
                        part,
                        item: Item {
                            name: match part {
                                "" => name.clone(),
                                part => format!("{name}.{part}"),
                            },
                            value,
                            takes: takes(platform, id, part).map(|takes| takes.text()),
                        },
                    })
            })
            .collect()
    }

    /// Asks guests for something.
    fn ask(&self, request: SystemRequest, guest: &str) -> Answer {
        let guest = match guest {
            "" => None,
            number => Some(control::number(number, 0..=Guest::MAX)?),
        };
        let told = self.0.ask(guest, request);
        match (told.is_empty(), guest) {
            (true, None) => {
                Err("no guest listens: none has a driver for the system's power".to_owned())
            }
            (true, Some(guest)) => Err(format!(
                "guest {guest} does not listen: it is not there, or has no driver for the \
                 system's power"
            )),
            (false, _) => {
                let told: Vec<_> = told.iter().map(Guest::to_string).collect();
                Ok(format!("told {}", told.join(" ")))
            }
        }
    }
}

impl Control for World {
    fn commands(&self) -> &[Command] {
        &COMMANDS
    }

    fn items(&self) -> Vec<Item> {
        self.parts().into_iter().map(|part| part.item).collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let parts = self.parts();
        let part = parts.iter().find(|part| part.item.name == name);
        let Some(part) = part else {
            return Err(format!("{name} is gone"));
        };
        if let Some(takes) = takes(self.0.platform(), part.id, part.part) {
            takes.check(value)?;
        }
        part.simulated.set(part.part, value)?;
        self.0.changed(part.id, None);
        Ok(())
    }

    fn command(&mut self, name: &str, arguments: &str) -> Answer {
        let request = REQUESTS.iter().find(|(command, ..)| command.name == name);
        match request {
            Some(&(_, state, graceful)) => self.ask(SystemRequest { state, graceful }, arguments),
            None => Err(format!("{name} is not done here")),
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

    /// What a line is answered with, without its end.
    fn ask(hub: &Arc<Hub>, line: &str) -> String {
        let answer = control::answer(&mut World(Arc::clone(hub)), line.as_bytes());
        answer.trim_end().to_owned()
    }

    #[test]
    fn test_simulated_hardware_is_seen_and_changed() {
        let hub = hub();
        for (line, answer) in [
            (
                "get voltage:vdd-io.microvolts",
                "voltage:vdd-io.microvolts 1800000",
            ),
            (
                "set voltage:vdd-io.microvolts 3300000",
                "voltage:vdd-io.microvolts 3300000",
            ),
            ("set voltage:vdd-io.enabled on", "voltage:vdd-io.enabled on"),
            ("set sensor:fan 77", "sensor:fan 77"),
            (
                "set sensor:accelerometer 1,-2,3",
                "sensor:accelerometer 1,-2,3",
            ),
            ("set clock:uart.rate 48000000", "clock:uart.rate 48000000"),
            (
                "set clock:display-controller-pixel-clock.parent 1",
                "clock:display-controller-pixel-clock.parent 1",
            ),
            ("set power:gpu on", "power:gpu on"),
            ("set performance:cpu.level 3", "performance:cpu.level 3"),
            ("set reset:usb asserted", "reset:usb asserted"),
            ("set powercap:package.power 5", "powercap:package.power 5"),
            ("get system:system", "system:system idle"),
        ] {
            assert_eq!(ask(&hub, line), format!("{answer}\nok"), "{line}");
        }
        let list = ask(&hub, "list");
        assert!(list.contains("\nsensor:fan 77\n"), "{list}");
        let help = ask(&hub, "help clock:uart.rate");
        assert!(
            help.contains("takes 1843200, 3686400, 24000000, 48000000"),
            "{help}"
        );
        // There is something of everything.
        for (id, _) in hub.platform().drivers() {
            let name = full_name(hub.platform(), id).unwrap();
            assert!(list.contains(&name), "{name}: {list}");
        }
    }

    #[test]
    fn test_what_is_out_of_range_is_told_with_the_range() {
        let hub = hub();
        let before = ask(&hub, "list");
        for (line, why) in [
            ("set clock:uart.rate 24000001", "none of: 1843200, 3686400"),
            (
                "set clock:pll.rate 99999999",
                "a number from 100000000 to 2000000000",
            ),
            ("set clock:pll.rate 100000001", "in steps of 1000000"),
            ("set clock:osc.enabled off", "can be seen, and not set"),
            (
                "set clock:display-controller-pixel-clock.parent 2",
                "none of: 0, 1",
            ),
            (
                "set voltage:vdd-io.microvolts 5",
                "none of: 1800000, 3300000",
            ),
            (
                "set voltage:vdd-core.microvolts 1200001",
                "from 600000 to 1200000",
            ),
            ("set power:gpu 7", "none of: on, off"),
            ("set performance:cpu.level 4", "none of: 0, 1, 2, 3"),
            ("set sensor:cpu-temp 125001", "from -40000 to 125000"),
            ("set sensor:accelerometer 1,2", "is not 3 numbers"),
            ("set sensor:fan 1,2", "is not"),
            ("set sensor:fan x", "is not a number"),
            ("set reset:usb held", "none of: asserted, released"),
            ("set reset:usb.resets 1", "can be seen, and not set"),
            (
                "set powercap:package.power -1",
                "a number from 0 to 4294967295",
            ),
            ("set system:system idle", "can be seen, and not set"),
            ("get sensor:fanfare", "is sensor:fan meant?"),
            ("shutdwon", "is shutdown meant?"),
            ("sensor:fan=77", "write: set sensor:fan 77"),
            ("shutdown 7", "guest 7 does not listen"),
            ("shutdown x", "is not a number"),
        ] {
            let error = ask(&hub, line);
            assert!(error.starts_with("error: "), "{line}: {error}");
            assert!(error.contains(why), "{line}: {error}");
        }
        let still = |list: &str| {
            let lines = list.lines();
            let still =
                lines.filter(|line| !line.starts_with("sensor:") && !line.contains(".power"));
            still.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(still(&ask(&hub, "list")), still(&before));
    }

    #[test]
    fn test_a_change_is_news() {
        let hub = hub();
        let inbox = hub.inbox(0).unwrap();
        let other = hub.inbox(1).unwrap();
        hub.watch(ResourceId::Sensor(5), 0, true);
        ask(&hub, "set sensor:fan 77");
        ask(&hub, "get sensor:fan");
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
        let error = ask(&hub, "shutdown");
        assert!(error.contains("no guest listens"), "{error}");
        hub.listen(0, true);
        hub.listen(1, true);
        assert_eq!(ask(&hub, "shutdown"), "told 0 1\nok");
        assert_eq!(ask(&hub, "force-reboot 1"), "told 1\nok");
        let requests = inboxes.each_ref().map(|inbox| inbox.take().system);
        let request = |state, graceful| Some(SystemRequest { state, graceful });
        assert_eq!(
            requests,
            [
                request(SystemState::Shutdown, true),
                request(SystemState::ColdReset, false)
            ]
        );
        drop(inboxes);
        let gone = ask(&hub, "suspend");
        assert!(gone.starts_with("error: "), "nobody is there: {gone}");
    }
}
