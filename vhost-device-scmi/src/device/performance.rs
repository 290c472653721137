//! The performance domain protocol (0x13).

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::view::{Found, Told, View};
use super::wire::{Done, MAX_COUNT, NoRoom, Part, Results, Status, bits, count_and_left, is_long};
use crate::host::{self, Guest, Limits, Performance, PowerScale, Resource, ResourceId};

commands! {
    /// The commands of the performance domain protocol.
    enum PerformanceCommand {
        DomainAttributes = 0x3,
        DescribeLevels = 0x4,
        LimitsSet = 0x5,
        LimitsGet = 0x6,
        LevelSet = 0x7,
        LevelGet = 0x8,
        DomainNameGet = 0xc,
    }
    if p2a {
        NotifyLimits = 0x9,
        NotifyLevel = 0xa,
    }
}

/// The notification `PERFORMANCE_LIMITS_CHANGED`.
const LIMITS_CHANGED: u8 = 0x0;
/// The notification `PERFORMANCE_LEVEL_CHANGED`.
const LEVEL_CHANGED: u8 = 0x1;

/// The bits of a domain's rate limit.
const RATE_LIMIT: u32 = 0xf_ffff;

#[derive(Debug)]
pub(super) struct Performances {
    view: View,
    /// All domains of an answer have one scale.
    scale: PowerScale,
    limits: Told<Limits>,
    levels: Told<usize>,
}

/// The scale that can say what all domains cost.
fn common_scale(scales: impl Iterator<Item = PowerScale>) -> PowerScale {
    scales
        .reduce(|one, other| match (one, other) {
            (one, other) if one == other => one,
            (PowerScale::Abstract, _) | (_, PowerScale::Abstract) => PowerScale::Abstract,
            _ => PowerScale::Microwatts,
        })
        .unwrap_or_default()
}

/// A power in another scale, at most `u32::MAX`.
fn rescale(power: u32, from: PowerScale, to: PowerScale) -> u32 {
    match (from, to) {
        (PowerScale::Milliwatts, PowerScale::Microwatts) => power.saturating_mul(1000),
        _ => power,
    }
}

impl Performances {
    pub(super) fn new(view: View, domains: &[Resource<Performance>]) -> Self {
        let seen = (0..view.len()).filter_map(|index| view.at(domains, index));
        Self {
            scale: common_scale(seen.map(|found| found.kind.power_scale)),
            limits: Told::new(&view),
            levels: Told::new(&view),
            view,
        }
    }

    /// The platform's domain `number` may have changed.
    pub(super) fn changed(
        &mut self,
        cx: Context<'_>,
        number: usize,
        by: Option<Guest>,
        outbox: &mut Outbox,
    ) -> host::Result<()> {
        let domains = &cx.hub.platform().performances;
        let Some(found) = self.view.by_number(domains, number) else {
            return Ok(());
        };
        let driver = &found.kind.driver;
        if let Some(Limits { min, max }) = self.limits.news(found.index, || driver.limits())? {
            let subject = Subject::of(Self::ID, LIMITS_CHANGED, found.id());
            let (max, min) = (number_of(&found, max), number_of(&found, min));
            outbox.notify_words(subject, [cx.agent(by), found.id(), max, min]);
        }
        if let Some(level) = self.levels.news(found.index, || driver.level())? {
            let subject = Subject::of(Self::ID, LEVEL_CHANGED, found.id());
            let words = [cx.agent(by), found.id(), number_of(&found, level)];
            outbox.notify_words(subject, words);
        }
        Ok(())
    }

    /// Asks the hub for news of a domain while the guest wants limits or levels.
    fn watch(&self, cx: Context<'_>, domain: &Found<'_, Performance>) {
        let index = domain.index;
        let wanted = self.limits.is_wanted(index) || self.levels.is_wanted(index);
        let id = ResourceId::Performance(domain.number);
        cx.hub.watch(id, cx.guest, wanted);
    }
}

/// What the guest calls the level at a position. Indices begin with 1, as 0 means no change in
/// `PERFORMANCE_LIMITS_SET`.
fn number_of(domain: &Found<'_, Performance>, position: usize) -> u32 {
    if domain.kind.level_indexing {
        // Fits: there are at most `MAX_LEVELS`.
        return position as u32 + 1;
    }
    let level = domain.kind.levels.get(position);
    level.map_or(0, |level| level.level)
}

/// The numbers of a domain's levels, in order.
fn numbers<'a>(
    domain: &'a Found<'_, Performance>,
) -> impl DoubleEndedIterator<Item = (usize, u32)> + Clone + 'a {
    (0..domain.kind.levels.len()).map(|position| (position, number_of(domain, position)))
}

/// The limits that a guest wants; 0 leaves one as it is. Between two levels they are moved
/// inwards; outside of all levels they are refused.
fn parse_limits(
    domain: &Found<'_, Performance>,
    (max, min): (u32, u32),
    now: Limits,
) -> Result<Limits, Status> {
    if max == 0 && min == 0 || max != 0 && min > max {
        return Err(Status::InvalidParameters);
    }
    let mut all = numbers(domain).map(|(_, number)| number);
    let (lowest, highest) = (all.clone().next(), all.next_back());
    let outside = |limit: u32| limit != 0 && (Some(limit) < lowest || Some(limit) > highest);
    if outside(max) || outside(min) {
        return Err(Status::OutOfRange);
    }
    let max = match max {
        0 => now.max,
        max => {
            let mut below = numbers(domain).rev().filter(|(_, number)| *number <= max);
            below.next().ok_or(Status::OutOfRange)?.0
        }
    };
    let min = match min {
        0 => now.min,
        min => {
            let mut above = numbers(domain).filter(|(_, number)| *number >= min);
            above.next().ok_or(Status::OutOfRange)?.0
        }
    };
    if min <= max {
        Ok(Limits { min, max })
    } else {
        Err(Status::InvalidParameters)
    }
}

impl Protocol for Performances {
    const ID: u8 = 0x13;
    const VERSION: u32 = 0x4_0000;
    const LAST: u8 = PerformanceCommand::DomainNameGet as u8;
    type Command = PerformanceCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        let scale = bits([
            (16, self.scale == PowerScale::Milliwatts),
            (17, self.scale == PowerScale::Microwatts),
        ]);
        // No statistics.
        results.words([self.view.count() | scale, 0, 0, 0])?;
        Ok(())
    }

    fn command(
        &mut self,
        cx: Context<'_>,
        command: PerformanceCommand,
        call: Call<'_, '_>,
    ) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        let domains = &cx.hub.platform().performances;
        match command {
            PerformanceCommand::DomainAttributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let kind = found.kind;
                results.word(bits([
                    (31, found.may_control() && kind.limits),
                    (30, found.may_control()),
                    (29, cx.p2a),
                    (28, cx.p2a),
                    (26, is_long(found.name)),
                    (25, kind.level_indexing),
                ]))?;
                let sustained = kind.levels.get(kind.sustained);
                results.words([
                    kind.rate_limit_us & RATE_LIMIT,
                    kind.sustained_frequency_khz,
                    sustained.map_or(0, |level| level.level),
                ])?;
                results.short_name(found.name)?;
            }
            PerformanceCommand::DescribeLevels => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let part = Part {
                    total: found.kind.levels.len(),
                    skip,
                    most: MAX_COUNT,
                    beyond: Status::InvalidParameters,
                };
                let scale = self.scale;
                results.list(part, count_and_left, |results, position| {
                    let level = found.kind.levels.get(position).ok_or(NoRoom)?;
                    results.words([
                        level.level,
                        rescale(level.power, found.kind.power_scale, scale),
                        level.latency_us.into(),
                        level.indicative_frequency_khz,
                        number_of(&found, position),
                    ])
                })?;
            }
            PerformanceCommand::LimitsSet => {
                let [id, max, min] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                if !found.kind.limits {
                    return Err(Status::Denied.into());
                }
                let limits = parse_limits(&found, (max, min), found.kind.driver.limits()?)?;
                found.kind.driver.set_limits(limits)?;
                let id = ResourceId::Performance(found.number);
                cx.hub.changed(id, Some(cx.guest));
            }
            PerformanceCommand::LimitsGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let Limits { min, max } = found.kind.driver.limits()?;
                results.words([number_of(&found, max), number_of(&found, min)])?;
            }
            PerformanceCommand::LevelSet => {
                let [id, wanted] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                let level = numbers(&found).find(|(_, number)| *number == wanted);
                let (level, _) = level.ok_or(Status::OutOfRange)?;
                if !found.kind.driver.limits()?.contains(level) {
                    return Err(Status::OutOfRange.into());
                }
                found.kind.driver.set_level(level)?;
                let id = ResourceId::Performance(found.number);
                cx.hub.changed(id, Some(cx.guest));
            }
            PerformanceCommand::LevelGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let level = found.kind.driver.level()?;
                results.word(number_of(&found, level))?;
            }
            PerformanceCommand::NotifyLimits => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let subject = Subject::of(Self::ID, LIMITS_CHANGED, id);
                let limits = || found.kind.driver.limits();
                self.limits.subscribe(subject, enable, limits, outbox)?;
                self.watch(cx, &found);
            }
            PerformanceCommand::NotifyLevel => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let subject = Subject::of(Self::ID, LEVEL_CHANGED, id);
                let level = || found.kind.driver.level();
                self.levels.subscribe(subject, enable, level, outbox)?;
                self.watch(cx, &found);
            }
            PerformanceCommand::DomainNameGet => {
                self.view.tell_name(domains, arguments, results)?
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_one_scale_says_what_all_domains_cost() {
        use PowerScale::{Abstract, Microwatts, Milliwatts};
        for (scales, common) in [
            (&[][..], Abstract),
            (&[Milliwatts, Milliwatts], Milliwatts),
            (&[Milliwatts, Microwatts], Microwatts),
            (&[Microwatts, Abstract], Abstract),
        ] {
            assert_eq!(common_scale(scales.iter().copied()), common, "{scales:?}");
        }
        assert_eq!(rescale(7, Milliwatts, Microwatts), 7000);
        assert_eq!(rescale(u32::MAX, Milliwatts, Microwatts), u32::MAX);
        assert_eq!(rescale(7, Microwatts, Microwatts), 7);
    }
}
