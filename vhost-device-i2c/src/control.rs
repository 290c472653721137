//! The simulators' control socket (`--sim-control`): changes simulated devices while they run.
//!
//! Lines of text, each ended by a newline, and each with an answer:
//!
//! | from the client | to the client |
//! |---|---|
//! | `BUS temperature=DEGREES` | `BUS temperature=DEGREES`: the LM75 of the simulator `BUS` measures this now |
//! | anything else | `error: …` |
//!
//! It is [`vhost_device_daemon::control`]'s socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vhost_device_daemon::Listener;
use vhost_device_daemon::control::{self, ControlError};

use crate::args::parse_temperature;
use crate::host::sim::Sim;

/// Listens at `path`, for as long as the process lives. The file is there for as long as what is
/// returned.
///
/// # Errors
/// When the path cannot be had.
pub(crate) fn start(
    path: &Path,
    sims: BTreeMap<String, Arc<Sim>>,
) -> Result<Listener, ControlError> {
    control::start(path, move |line| {
        obey(line, &sims)?;
        Ok(line.to_owned())
    })
}

/// Does what a line says.
fn obey(line: &str, sims: &BTreeMap<String, Arc<Sim>>) -> Result<(), String> {
    let wanted = line.split_once(' ').and_then(|(bus, setting)| {
        let degrees = setting.strip_prefix("temperature=")?;
        Some((bus, degrees))
    });
    let (bus, degrees) = wanted.ok_or("that is not BUS temperature=DEGREES")?;
    let sim = sims
        .get(bus)
        .ok_or_else(|| format!("no guest has the simulator {bus}"))?;
    sim.set_temperature(parse_temperature(degrees)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sims() -> BTreeMap<String, Arc<Sim>> {
        let sim = Sim::standard("sim1".to_owned(), false, 25.0);
        BTreeMap::from([("sim1".to_owned(), Arc::new(sim))])
    }

    #[test]
    fn test_lines_that_say_nothing_are_refused() {
        for (line, why) in [
            ("", "BUS temperature=DEGREES"),
            ("sim1", "BUS temperature=DEGREES"),
            ("sim1 pressure=3", "BUS temperature=DEGREES"),
            ("sim1 temperature=3 4", "LM75"),
            ("sim2 temperature=3", "no guest has"),
            ("sim1 temperature=126", "LM75"),
            ("sim1 temperature=nan", "LM75"),
        ] {
            let error = obey(line, &sims()).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        assert_eq!(obey("sim1 temperature=-3.5", &sims()), Ok(()));
    }
}
