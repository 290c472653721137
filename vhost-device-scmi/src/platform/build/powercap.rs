//! `[[powercap]]`: power capping domains.

use std::sync::Arc;

use super::Builder;
use super::open::{absent, find, one, placed, power_scale, refuse};
use super::wave::to_wave;
use crate::host::linux::attribute::{Attribute, Mode, Number};
use crate::host::linux::powercap::{self, Capped, Meter};
use crate::host::sim::{SimPowercap, Wave};
use crate::host::{PowerScale, Powercap, PowercapDriver};
use crate::platform::file;
use crate::platform::{Checked, Problem, Span};

/// The averaging interval of a power cap if neither the file nor the kernel says it, in µs.
const INTERVAL_US: u32 = 1_000_000;

enum PowercapBacking {
    Zone(file::Zone),
    Hook(file::PowercapHook),
    Sim(file::PowercapSim),
}

impl Builder<'_> {
    pub(super) fn powercap(
        &mut self,
        span: &Span,
        table: file::Powercap,
        mode: Mode,
    ) -> Checked<Powercap> {
        let (place, backing) = one(
            span,
            [
                ("powercap", placed(table.powercap, PowercapBacking::Zone)),
                ("hook", placed(table.hook, PowercapBacking::Hook)),
                ("sim", placed(table.sim, PowercapBacking::Sim)),
            ],
        )?;
        let mut power_scale = power_scale(
            table.power_scale.as_ref().map(|scale| *scale.get_ref()),
            PowerScale::Microwatts,
        );
        let mut cap = table.cap.as_ref().map(|cap| *cap.get_ref());
        let interval = table
            .interval_us
            .as_ref()
            .map(|interval| *interval.get_ref());
        let needed = || {
            let why = "it has no limits: write cap = { min = …, max = …, step = … }, as a guest \
                       that sets too low a cap stops the host";
            Problem::at(span, why)
        };
        let fixed = |number| file::Steps {
            min: number,
            max: number,
            step: None,
        };
        let mut can_disable = table.can_disable.unwrap_or(false);
        let usual = interval.map_or(INTERVAL_US, |interval| interval.max);
        let (interval, monitoring, driver): (_, _, Arc<dyn PowercapDriver>) = match backing {
            PowercapBacking::Zone(zone) => {
                refuse(&table.power_scale, "the kernel counts in µW: leave it out")?;
                power_scale = PowerScale::Microwatts;
                let measured = zone.monitoring.unwrap_or(true);
                let constraint = zone.constraint.as_deref();
                let name = &zone.zone;
                let opened =
                    powercap::open(self.site.root, name, constraint, mode, measured, usual);
                match self.opened(opened, &place)? {
                    Some(zone) => {
                        cap = cap.or_else(|| {
                            Some(file::Steps {
                                min: zone.min_uw?,
                                max: zone.max_uw?,
                                step: None,
                            })
                        });
                        let now = zone.interval_us.unwrap_or(usual);
                        let interval = interval.unwrap_or(fixed(now));
                        (interval, zone.monitoring, Arc::new(zone.driver))
                    }
                    None => {
                        // The kernel would say its limits.
                        cap = cap.or(Some(fixed(1)));
                        let interval = interval.unwrap_or(fixed(usual));
                        (interval, measured, absent(name.clone()))
                    }
                }
            }
            PowercapBacking::Hook(hook) => {
                can_disable = table.can_disable.unwrap_or(hook.enabled.is_some());
                let highest = cap.ok_or_else(needed)?.max.into();
                let (number, backing) = self.number(&hook.cap, mode, highest, &place)?;
                let interval_us =
                    self.optional_number(&hook.interval_us, mode, usual.into(), &place)?;
                let monitoring = hook.power.is_some();
                let power = hook.power.as_ref();
                let power = power.map(|path| Attribute::to_read(&self.path(path)));
                let power = power.map(|power| self.opened(power, &place));
                let power = power.transpose()?.flatten();
                let driver = Capped {
                    cap: number,
                    enabled: self.optional_switch(&hook.enabled, mode, true, &place)?,
                    interval: interval_us.unwrap_or_else(|| Number::remembered(usual.into())),
                    meter: power.map(Meter::Power),
                    backing,
                };
                (
                    interval.unwrap_or(fixed(usual)),
                    monitoring,
                    Arc::new(driver),
                )
            }
            PowercapBacking::Sim(sim) => {
                let load = match sim.load.as_ref().map(|load| &load.0[..]) {
                    None => Wave::Constant(0),
                    Some([load]) => to_wave(load, &place)?,
                    Some(_) => return Err(Problem::at(&place, "its load is one wave")),
                };
                let has = |wanted| cap.is_none_or(|cap| (cap.min..=cap.max).contains(&wanted));
                let now = match &sim.cap {
                    Some(now) if !has(*now.get_ref()) => {
                        let why = "it is outside of the domain's limits, which `cap` says";
                        return Err(Problem::at(&now.span(), why));
                    }
                    Some(now) => Some(*now.get_ref()),
                    None => cap.map(|cap| cap.max),
                };
                let driver = SimPowercap::new(now, usual, load);
                (interval.unwrap_or(fixed(usual)), true, Arc::new(driver))
            }
        };
        let cap = cap.ok_or_else(needed)?;
        let parent = table.parent.as_ref();
        let parent = parent.map(|parent| find("powercap", &self.powercaps, parent));
        Ok(Powercap {
            power_scale,
            min_cap: cap.min,
            max_cap: cap.max,
            cap_step: cap.step.unwrap_or(1),
            min_pai_us: interval.min,
            max_pai_us: interval.max,
            pai_step_us: interval.step.unwrap_or(1),
            sustainable_power: table.sustainable.unwrap_or(0),
            accuracy: table.accuracy.unwrap_or(0),
            monitoring,
            can_disable,
            parent: parent.transpose()?,
            driver,
        })
    }
}
