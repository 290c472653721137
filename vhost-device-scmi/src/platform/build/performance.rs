//! `[[performance]]`: performance domains.

use std::sync::Arc;

use toml::Spanned;

use super::Builder;
use super::open::{absent, one, placed, power_scale};
use crate::host::linux::attribute::{Mode, Number, Window};
use crate::host::linux::frequency;
use crate::host::linux::hook::HookPerformance;
use crate::host::sim::SimPerformance;
use crate::host::{Performance, PerformanceDriver, PerformanceLevel, PowerScale};
use crate::platform::file;
use crate::platform::{Checked, Problem, Span};

enum PerformanceBacking {
    Cpufreq(String),
    Devfreq(String),
    Hook(file::PerformanceHook),
    Sim(file::LevelSim),
}

impl Builder<'_> {
    pub(super) fn performance(
        &mut self,
        span: &Span,
        table: file::Performance,
        mode: Mode,
    ) -> Checked<Performance> {
        let (place, backing) = one(
            span,
            [
                (
                    "cpufreq",
                    placed(table.cpufreq, PerformanceBacking::Cpufreq),
                ),
                (
                    "devfreq",
                    placed(table.devfreq, PerformanceBacking::Devfreq),
                ),
                ("hook", placed(table.hook, PerformanceBacking::Hook)),
                ("sim", placed(table.sim, PerformanceBacking::Sim)),
            ],
        )?;
        let scaling = match &backing {
            PerformanceBacking::Cpufreq(policy) => {
                self.opened(frequency::cpufreq(self.site.root, policy, mode), &place)?
            }
            PerformanceBacking::Devfreq(device) => {
                self.opened(frequency::devfreq(self.site.root, device, mode), &place)?
            }
            PerformanceBacking::Hook(_) | PerformanceBacking::Sim(_) => None,
        };
        let on_host = matches!(
            backing,
            PerformanceBacking::Cpufreq(_) | PerformanceBacking::Devfreq(_)
        );
        let levels = match (on_host && scaling.is_none(), &table.levels) {
            // The hardware would say its levels.
            (true, None) => vec![PerformanceLevel {
                level: table.sustained.as_ref().map_or(1, |level| *level.get_ref()),
                power: 0,
                latency_us: 0,
                indicative_frequency_khz: 1,
            }],
            (true, Some(_)) => levels(span, &table.levels, Some(&frequency::Known::default()))?,
            (false, _) => levels(span, &table.levels, scaling.as_ref().map(|it| &it.known))?,
        };
        let numbers: Vec<_> = levels.iter().map(|level| level.level).collect();
        let position = |level: &Spanned<u32>| {
            let found = numbers.iter().position(|number| number == level.get_ref());
            let why = "it is none of the levels";
            found.ok_or_else(|| Problem::at(&level.span(), why))
        };
        let last = numbers.len().saturating_sub(1);
        let sustained = table
            .sustained
            .as_ref()
            .map(position)
            .transpose()?
            .unwrap_or(last);
        let driver: Arc<dyn PerformanceDriver> = match (backing, scaling) {
            (PerformanceBacking::Sim(sim), _) => {
                let level = sim.level.as_ref().map(position).transpose()?;
                Arc::new(SimPerformance::new(
                    numbers.len(),
                    level.unwrap_or(sustained),
                ))
            }
            (PerformanceBacking::Hook(hook), _) => {
                let first = numbers.first().copied().unwrap_or(0).into();
                let last = numbers.last().copied().unwrap_or(0).into();
                let (level, backing) = self.number(&hook.level, mode, first, &place)?;
                let min = self.optional_number(&hook.min, mode, first, &place)?;
                let max = self.optional_number(&hook.max, mode, last, &place)?;
                Arc::new(HookPerformance {
                    levels: numbers,
                    level,
                    limits: Window::new(
                        min.unwrap_or_else(|| Number::remembered(first)),
                        max.unwrap_or_else(|| Number::remembered(last)),
                    ),
                    backing,
                })
            }
            (_, Some(scaling)) => Arc::new(scaling.driver(&numbers)),
            (PerformanceBacking::Cpufreq(name) | PerformanceBacking::Devfreq(name), None) => {
                absent(name)
            }
        };
        let sustained_level = levels.get(sustained);
        Ok(Performance {
            sustained,
            sustained_frequency_khz: sustained_level
                .map_or(0, |level| level.indicative_frequency_khz),
            level_indexing: table.level_indexing.unwrap_or(false),
            power_scale: power_scale(table.power_scale, PowerScale::Abstract),
            rate_limit_us: table.rate_limit_us.unwrap_or(0),
            limits: table.limits.unwrap_or(true),
            driver,
            levels,
        })
    }
}

/// The levels of a performance domain: those of the file, or those of the hardware.
fn levels(
    span: &Span,
    listed: &Option<Spanned<Vec<Spanned<file::Level>>>>,
    scaling: Option<&frequency::Known>,
) -> Checked<Vec<PerformanceLevel>> {
    let Some(listed) = listed else {
        let known = scaling.map_or(&[][..], |scaling| &scaling.frequencies_khz);
        if known.is_empty() {
            let why = match scaling.and_then(|scaling| scaling.range_khz) {
                Some((min, max)) => format!(
                    "the kernel has no table of frequencies for it: write levels = [{min}, \
                     {max}] with those in kHz that guests shall have"
                ),
                None => "it has no levels: write levels = [1, 2, 3], or with more of each, \
                         [{ level = 1, frequency-khz = 600000, power = 100 }]"
                    .to_owned(),
            };
            return Err(Problem::at(span, why));
        }
        let latency_us = scaling.map_or(0, |scaling| scaling.latency_us);
        let levels = known.iter().map(|&khz| PerformanceLevel {
            level: khz,
            power: 0,
            latency_us,
            indicative_frequency_khz: khz,
        });
        return Ok(levels.collect());
    };
    let levels = listed.get_ref().iter().map(|spanned| {
        let level = spanned.get_ref();
        let frequency = match (scaling, level.frequency_khz) {
            (Some(_), None) => level.level,
            (_, khz) => khz.unwrap_or(0),
        };
        if let Some(scaling) = scaling {
            let known = &scaling.frequencies_khz;
            let outside = |(min, max): (u32, u32)| !(min..=max).contains(&level.level);
            let wrong = if known.is_empty() {
                scaling.range_khz.is_some_and(outside)
            } else {
                !known.contains(&level.level)
            };
            if wrong {
                let have = match (known.is_empty(), scaling.range_khz) {
                    (true, Some((min, max))) => format!("{min} to {max}"),
                    _ => {
                        let known: Vec<_> = known.iter().map(u32::to_string).collect();
                        known.join(", ")
                    }
                };
                let why = format!("the hardware has no {} kHz, but {have}", level.level);
                return Err(Problem::at(&spanned.span(), why));
            }
        }
        Ok(PerformanceLevel {
            level: level.level,
            power: level.power,
            latency_us: level.latency_us,
            indicative_frequency_khz: frequency,
        })
    });
    levels.collect()
}
