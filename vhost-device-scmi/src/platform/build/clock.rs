//! `[[clock]]`: clocks.

use std::sync::Arc;

use super::Builder;
use super::open::{find, gate, one, placed};
use crate::host::linux::attribute::Mode;
use crate::host::linux::hook::HookClock;
use crate::host::sim::SimClock;
use crate::host::{Clock, ClockDriver, Rates};
use crate::platform::file::{self, Choice};
use crate::platform::{Checked, Problem, Span};

enum ClockBacking {
    Hook(file::ClockHook),
    Sim(file::ClockSim),
}

impl Builder<'_> {
    pub(super) fn clock(&mut self, span: &Span, table: file::Clock, mode: Mode) -> Checked<Clock> {
        let rates = match table.rates.get_ref() {
            Choice::List(rates) => Rates::Discrete(rates.clone()),
            Choice::Range(steps) => Rates::Range {
                min: steps.min,
                max: steps.max,
                step: steps.step.unwrap_or(1),
            },
        };
        let lowest = match &rates {
            Rates::Discrete(rates) => rates.first().copied().unwrap_or(0),
            Rates::Range { min, .. } => *min,
        };
        let parents = table.parents.unwrap_or_default();
        let parents = parents
            .iter()
            .map(|parent| find("clock", &self.clocks, parent));
        let parents = parents.collect::<Checked<Vec<_>>>()?;
        let (place, backing) = one(
            span,
            [
                ("hook", placed(table.hook, ClockBacking::Hook)),
                ("sim", placed(table.sim, ClockBacking::Sim)),
            ],
        )?;
        let mut can_gate = true;
        let driver: Arc<dyn ClockDriver> = match backing {
            ClockBacking::Sim(sim) => {
                let rate = match &sim.rate {
                    Some(rate) if !rates.contains(*rate.get_ref()) => {
                        let why = "it is none of the clock's rates";
                        return Err(Problem::at(&rate.span(), why));
                    }
                    Some(rate) => *rate.get_ref(),
                    None => lowest,
                };
                Arc::new(SimClock::new(rate, sim.enabled.unwrap_or(false)))
            }
            ClockBacking::Hook(hook) => {
                can_gate = hook.enabled.is_some();
                if hook.parent.is_none() && !parents.is_empty() {
                    let why = "it has parents: write parent = PATH, the file that says which \
                               one, counted from 0";
                    return Err(Problem::at(&place, why));
                }
                let initial = i64::try_from(lowest).unwrap_or(i64::MAX);
                let (rate, backing) = self.number(&hook.rate, mode, initial, &place)?;
                Arc::new(HookClock {
                    rate,
                    enabled: self.optional_switch(&hook.enabled, mode, false, &place)?,
                    parent: self.optional_number(&hook.parent, mode, 0, &place)?,
                    backing,
                })
            }
        };
        Ok(Clock {
            rates,
            parents,
            gate: gate(&table.gate, can_gate)?,
            enable_latency_us: table.enable_latency_us.unwrap_or(0),
            driver,
        })
    }
}
