//! `[[voltage]]`: voltage domains.

use std::sync::Arc;

use super::Builder;
use super::open::{absent, gate, one, placed, refuse};
use crate::host::linux::attribute::Mode;
use crate::host::linux::hook::HookVoltage;
use crate::host::linux::{OpenError, regulator};
use crate::host::sim::SimVoltage;
use crate::host::{Levels, Voltage, VoltageDriver};
use crate::platform::file::{self, Choice};
use crate::platform::{Checked, Problem, Span};

enum VoltageBacking {
    Regulator(file::Regulator),
    Hook(file::VoltageHook),
    Sim(file::VoltageSim),
}

impl Builder<'_> {
    pub(super) fn voltage(
        &mut self,
        span: &Span,
        table: file::Voltage,
        mode: Mode,
    ) -> Checked<Voltage> {
        let (place, backing) = one(
            span,
            [
                (
                    "regulator",
                    placed(table.regulator, VoltageBacking::Regulator),
                ),
                ("hook", placed(table.hook, VoltageBacking::Hook)),
                ("sim", placed(table.sim, VoltageBacking::Sim)),
            ],
        )?;
        let levels = table
            .microvolts
            .as_ref()
            .map(|levels| match levels.get_ref() {
                Choice::List(levels) => Levels::Discrete(levels.clone()),
                Choice::Range(steps) => Levels::Range {
                    min: steps.min,
                    max: steps.max,
                    step: steps.step.unwrap_or(1),
                },
            });
        let needed = || {
            Problem::at(
                span,
                "it has no voltages: write microvolts = [1800000, 3300000], or \
                 { min = 600000, max = 1200000, step = 12500 }",
            )
        };
        let lowest = levels.as_ref().map_or(0, |levels| match levels {
            Levels::Discrete(levels) => levels.first().copied().unwrap_or(0),
            Levels::Range { min, .. } => *min,
        });
        let mut can_gate = true;
        let (levels, driver): (_, Arc<dyn VoltageDriver>) = match backing {
            VoltageBacking::Sim(sim) => {
                let has = |level| levels.as_ref().is_none_or(|levels| levels.contains(level));
                let microvolts = match &sim.microvolts {
                    Some(level) if !has(*level.get_ref()) => {
                        let why = "it is none of the domain's voltages";
                        return Err(Problem::at(&level.span(), why));
                    }
                    Some(level) => *level.get_ref(),
                    None => lowest,
                };
                let driver = SimVoltage::new(microvolts, sim.enabled.unwrap_or(false));
                (levels.ok_or_else(needed)?, Arc::new(driver))
            }
            VoltageBacking::Hook(hook) => {
                can_gate = hook.enabled.is_some();
                let (microvolts, backing) =
                    self.number(&hook.microvolts, mode, lowest.into(), &place)?;
                let enabled = self.optional_switch(&hook.enabled, mode, false, &place)?;
                let driver = HookVoltage {
                    microvolts,
                    enabled,
                    backing,
                };
                (levels.ok_or_else(needed)?, Arc::new(driver))
            }
            VoltageBacking::Regulator(names) => {
                let names = regulator::Names {
                    regulator: names.name.as_deref(),
                    consumer: names.consumer.as_deref(),
                    virt: names.r#virtual.as_deref(),
                };
                if names.regulator.is_none() && names.virt.is_none() {
                    let why = "it has no voltage: write name = REGULATOR, or virtual = \
                               REG-VIRT-CONSUMER, or make it a [[power]] domain";
                    return Err(Problem::at(&place, why));
                }
                let opened = regulator::Regulator::open(self.site.root, names, mode);
                let driver = self.opened(opened, &place)?;
                can_gate = names.consumer.is_some() || names.virt.is_some();
                let levels = match (levels, names.virt.is_some()) {
                    (Some(levels), true) => levels,
                    (None, true) => return Err(needed()),
                    (None, false) => {
                        let now = driver.as_ref().map(VoltageDriver::level);
                        let now = now.transpose().map_err(|error| {
                            OpenError::Unfit(format!("its voltage cannot be read: {error}"))
                        });
                        let now = self.opened(now, &place)?.flatten();
                        Levels::Discrete(vec![now.unwrap_or(0)])
                    }
                    (Some(_), false) => {
                        refuse(
                            &table.microvolts,
                            "the kernel lets nobody set this regulator, so it has the voltage \
                             that it has: leave this out, or write virtual = REG-VIRT-CONSUMER",
                        )?;
                        return Err(needed());
                    }
                };
                let called = [names.regulator, names.consumer, names.virt];
                let called: Vec<_> = called.into_iter().flatten().collect();
                match driver {
                    Some(driver) => (levels, Arc::new(driver)),
                    None => (levels, absent(called.join(" + "))),
                }
            }
        };
        Ok(Voltage {
            levels,
            gate: gate(&table.gate, can_gate)?,
            driver,
        })
    }
}
