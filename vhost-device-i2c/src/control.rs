//! The simulators' control socket (`--sim-control`): changes simulated devices while they run.
//!
//! It speaks [`vhost_device_daemon::control`]'s language. What there is to see and to set:
//!
//! | name | is |
//! |---|---|
//! | `BUS.temperature` | what the LM75 of the simulator `BUS` measures |

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vhost_device_daemon::Listener;
use vhost_device_daemon::control::{self, Control, ControlError, Item, number};

use crate::args::MEASURABLE;
use crate::host::sim::Sim;

/// What comes behind the name of a bus.
const TEMPERATURE: &str = ".temperature";

/// Listens at `path`, for as long as the process lives. The file is there for as long as what is
/// returned.
///
/// # Errors
/// When the path cannot be had.
pub(crate) fn start(
    path: &Path,
    sims: BTreeMap<String, Arc<Sim>>,
) -> Result<Listener, ControlError> {
    control::serve(path, Simulators(sims))
}

/// All simulators, by their names.
struct Simulators(BTreeMap<String, Arc<Sim>>);

impl Control for Simulators {
    fn items(&self) -> Vec<Item> {
        let items = self.0.iter().map(|(bus, sim)| Item {
            name: format!("{bus}{TEMPERATURE}"),
            value: sim.temperature().to_string(),
            takes: Some(format!(
                "degrees Celsius, {} to {}, in halves",
                MEASURABLE.start(),
                MEASURABLE.end()
            )),
        });
        items.collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bus = name.strip_suffix(TEMPERATURE);
        let sim = bus.and_then(|bus| self.0.get(bus));
        let sim = sim.ok_or_else(|| format!("{name} is no temperature of a simulator"))?;
        sim.set_temperature(number(value, MEASURABLE)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulators() -> Simulators {
        let sims = ["sim", "sim-smbus1"].map(|name| {
            let sim = Sim::standard(name.to_owned(), name.contains("smbus"), 25.0);
            (name.to_owned(), Arc::new(sim))
        });
        Simulators(BTreeMap::from(sims))
    }

    #[test]
    fn test_temperatures_are_seen_and_set() {
        let mut simulators = simulators();
        let mut ask = |line: &str| control::answer(&mut simulators, line.as_bytes());
        assert_eq!(
            ask("list"),
            "sim.temperature 25\nsim-smbus1.temperature 25\nok\n"
        );
        // An LM75 measures halves of a degree.
        assert_eq!(
            ask("set sim.temperature -3.3"),
            "sim.temperature -3.5\nok\n"
        );
        assert_eq!(
            ask("get sim-smbus1.temperature"),
            "sim-smbus1.temperature 25\nok\n"
        );
        let help = ask("help sim.temperature");
        assert!(help.contains("takes degrees Celsius, -55 to 125, in halves"));
    }

    #[test]
    fn test_what_cannot_be_set_is_told_with_what_could() {
        let mut simulators = simulators();
        for (line, why) in [
            ("set sim.temperature 126", "a number from -55 to 125"),
            ("set sim.temperature nan", "a number from -55 to 125"),
            ("set sim.temperature warm", "a number from -55 to 125"),
            ("set sim.temprature 3", "is sim.temperature meant?"),
            ("sim temperature=3", "help shows what there is"),
            ("sim.temperature=3", "write: set sim.temperature 3"),
        ] {
            let answer = control::answer(&mut simulators, line.as_bytes());
            assert!(answer.starts_with("error: "), "{line}: {answer}");
            assert!(answer.contains(why), "{line}: {answer}");
        }
    }
}
