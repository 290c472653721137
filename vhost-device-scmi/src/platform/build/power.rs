//! `[[power]]`: power domains.

use std::sync::Arc;

use super::Builder;
use super::open::{absent, one, placed};
use crate::host::linux::attribute::Mode;
use crate::host::linux::regulator;
use crate::host::linux::switched::Switched;
use crate::host::sim::SimPower;
use crate::host::{Power, PowerDriver, PowerState};
use crate::platform::file::{self, Files};
use crate::platform::{Checked, Span};

enum PowerBacking {
    Gpio(file::Gpio),
    Consumer(file::Consumer),
    Hook(Files),
    Sim(file::OnSim),
}

impl Builder<'_> {
    pub(super) fn power(&mut self, span: &Span, table: file::Power, mode: Mode) -> Checked<Power> {
        let (place, backing) = one(
            span,
            [
                ("gpio", placed(table.gpio, PowerBacking::Gpio)),
                ("regulator", placed(table.regulator, PowerBacking::Consumer)),
                ("hook", placed(table.hook, PowerBacking::Hook)),
                ("sim", placed(table.sim, PowerBacking::Sim)),
            ],
        )?;
        let driver: Arc<dyn PowerDriver> = match backing {
            PowerBacking::Gpio(gpio) => self.line(&gpio, &place, mode)?,
            PowerBacking::Consumer(file::Consumer { consumer }) => {
                let opened = regulator::consumer(self.site.root, &consumer, mode);
                match self.opened(opened, &place)? {
                    Some(switch) => Arc::new(switch),
                    None => absent(consumer),
                }
            }
            PowerBacking::Hook(files) => {
                let (switch, name) = self.switch(&files, mode, false, &place)?;
                Arc::new(Switched::new(switch, name))
            }
            PowerBacking::Sim(file::OnSim { on: Some(true) }) => {
                Arc::new(SimPower::new(PowerState::ON))
            }
            PowerBacking::Sim(_) => Arc::new(SimPower::new(PowerState::OFF)),
        };
        Ok(Power {
            states: vec![PowerState::ON, PowerState::OFF],
            driver,
        })
    }
}
