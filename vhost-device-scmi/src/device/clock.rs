//! The clock protocol (0x14).

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::rounding::Rounding;
use super::view::{Found, Told, View};
use super::wire::{Choice, Done, Failure, NoRoom, Part, Results, Status, bits, is_long};
use crate::host::{self, Clock, Guest, Rates, ResourceId};

commands! {
    /// The commands of the clock protocol.
    enum ClockCommand {
        Attributes = 0x3,
        DescribeRates = 0x4,
        RateSet = 0x5,
        RateGet = 0x6,
        ConfigSet = 0x7,
        NameGet = 0x8,
        ConfigGet = 0xb,
        PossibleParentsGet = 0xc,
        ParentSet = 0xd,
        ParentGet = 0xe,
        GetPermissions = 0xf,
    }
    if p2a {
        RateNotify = 0x9,
    }
}

/// The notification `CLOCK_RATE_CHANGED`.
const RATE_CHANGED: u8 = 0x0;

/// `CLOCK_RATE_SET`: answer at once, and tell later.
const ASYNC: u32 = 1 << 0;
/// `CLOCK_RATE_SET`: and do not even tell. Without `ASYNC` it means nothing.
const IGNORE_RESPONSE: u32 = 1 << 1;
/// `CLOCK_RATE_SET`: to the next rate above, without `ROUND_AUTO`.
const ROUND_UP: u32 = 1 << 2;
/// `CLOCK_RATE_SET`: to the nearest rate.
const ROUND_AUTO: u32 = 1 << 3;

/// `CLOCK_CONFIG_SET`: the state is in the lowest two bits.
const STATE: u32 = 3;
const DISABLED: u32 = 0;
const ENABLED: u32 = 1;

/// `CLOCK_CONFIG_SET`: a vendor's configuration. This platform has none.
const EXTENDED: u32 = 0xff << 16;

/// `CLOCK_CONFIG_GET`: the same.
const EXTENDED_GET: u32 = 0xff;

/// The most parents that `CLOCK_POSSIBLE_PARENTS_GET` can count at a time.
const MAX_PARENTS: usize = 0xff;

#[derive(Debug)]
pub(super) struct Clocks {
    view: View,
    told: Told<u64>,
}

/// The possible rate next to a wanted one.
fn round(rates: &Rates, wanted: u64, rounding: Rounding) -> Option<u64> {
    let rate = match *rates {
        Rates::Discrete(ref rates) => rounding.in_list(rates, wanted.into()),
        Rates::Range { min, max, step } => {
            rounding.in_range([min, max, step].map(u128::from), wanted.into())
        }
    };
    u64::try_from(rate?).ok()
}

impl Clocks {
    pub(super) fn new(view: View) -> Self {
        let told = Told::new(&view);
        Self { view, told }
    }

    /// The platform's clock `number` may have changed.
    pub(super) fn changed(
        &mut self,
        cx: Context<'_>,
        number: usize,
        by: Option<Guest>,
        outbox: &mut Outbox,
    ) -> host::Result<()> {
        let clocks = &cx.hub.platform().clocks;
        let Some(found) = self.view.by_number(clocks, number) else {
            return Ok(());
        };
        let news = self.told.news(found.index, || found.kind.driver.rate())?;
        if let Some(rate) = news {
            let subject = Subject::of(Self::ID, RATE_CHANGED, found.id());
            // The halves of the rate.
            let words = [cx.agent(by), found.id(), rate as u32, (rate >> 32) as u32];
            outbox.notify_words(subject, words);
        }
        Ok(())
    }

    /// The parents of a clock that the guest sees: as the guest calls them, and by their
    /// positions among all its parents.
    fn parents(&self, clock: &Found<'_, Clock>) -> Vec<(u32, usize)> {
        let parents = clock.kind.parents.iter().enumerate();
        let seen = parents.filter_map(|(position, &number)| {
            // Fits: there are at most `MAX_RESOURCES`.
            Some((self.view.position(number)? as u32, position))
        });
        seen.collect()
    }

    fn is_enabled(clock: &Found<'_, Clock>) -> host::Result<bool> {
        if clock.kind.gate {
            clock.kind.driver.is_enabled()
        } else {
            Ok(true)
        }
    }

    fn set_rate(
        &self,
        cx: Context<'_>,
        clock: &Found<'_, Clock>,
        flags: u32,
        wanted: u64,
    ) -> Result<(), Failure> {
        if flags & !(ASYNC | IGNORE_RESPONSE | ROUND_UP | ROUND_AUTO) != 0 {
            return Err(Status::InvalidParameters.into());
        }
        if flags & ASYNC != 0 {
            return Err(Status::NotSupported.into());
        }
        let rounding = match (flags & ROUND_AUTO != 0, flags & ROUND_UP != 0) {
            (true, _) => Rounding::Nearest,
            (false, true) => Rounding::Up,
            (false, false) => Rounding::Down,
        };
        let rate = round(&clock.kind.rates, wanted, rounding);
        let rate = rate.ok_or(Status::InvalidParameters)?;
        clock.kind.driver.set_rate(rate)?;
        let id = ResourceId::Clock(clock.number);
        cx.hub.changed(id, Some(cx.guest));
        Ok(())
    }

    fn describe_rates(clock: &Found<'_, Clock>, skip: u32, results: &mut Results<'_>) -> Done {
        let rates = match &clock.kind.rates {
            Rates::Discrete(rates) => Choice::List(rates),
            &Rates::Range { min, max, step } => Choice::Range([min, max, step]),
        };
        results.choice(rates, skip, Results::double)
    }

    fn set_config(
        cx: Context<'_>,
        clock: &Found<'_, Clock>,
        attributes: u32,
    ) -> Result<(), Failure> {
        if attributes & !(STATE | EXTENDED) != 0 {
            return Err(Status::InvalidParameters.into());
        }
        // A message without an extended configuration has to have a state.
        if attributes & EXTENDED != 0 {
            return Err(Status::NotSupported.into());
        }
        let enabled = match attributes & STATE {
            ENABLED => true,
            DISABLED => false,
            _ => return Err(Status::InvalidParameters.into()),
        };
        if clock.kind.gate {
            let id = ResourceId::Clock(clock.number);
            Ok(cx.hub.wish_enabled(id, cx.guest, enabled)?)
        } else if enabled {
            Ok(())
        } else {
            Err(Status::NotSupported.into())
        }
    }
}

impl Protocol for Clocks {
    const ID: u8 = 0x14;
    const VERSION: u32 = 0x3_0000;
    const LAST: u8 = ClockCommand::GetPermissions as u8;
    type Command = ClockCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        // No rate is set later.
        results.word(self.view.count())?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: ClockCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        let clocks = &cx.hub.platform().clocks;
        match command {
            ClockCommand::Attributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                results.word(bits([
                    (31, cx.p2a),
                    (29, is_long(found.name)),
                    (28, !self.parents(&found).is_empty()),
                    (1, true),
                    (0, Self::is_enabled(&found)?),
                ]))?;
                results.short_name(found.name)?;
                results.word(found.kind.enable_latency_us)?;
            }
            ClockCommand::DescribeRates => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                Self::describe_rates(&found, skip, results)?;
            }
            ClockCommand::RateSet => {
                let [flags, id, low, high] = arguments.words()?;
                let found = self.view.find(clocks, id)?.controlled()?;
                let wanted = u64::from(high) << 32 | u64::from(low);
                self.set_rate(cx, &found, flags, wanted)?;
            }
            ClockCommand::RateGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                results.double(found.kind.driver.rate()?)?;
            }
            ClockCommand::ConfigSet => {
                // Agents of versions before 3.0 have no third word.
                let (id, attributes, reserved) = match arguments.words() {
                    Ok([id, attributes]) => (id, attributes, !ENABLED),
                    Err(_) => {
                        let [id, attributes, _] = arguments.words()?;
                        (id, attributes, 0)
                    }
                };
                let found = self.view.find(clocks, id)?.controlled()?;
                if attributes & reserved != 0 {
                    return Err(Status::InvalidParameters.into());
                }
                Self::set_config(cx, &found, attributes)?;
            }
            ClockCommand::NameGet => self.view.tell_name(clocks, arguments, results)?,
            ClockCommand::RateNotify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                let subject = Subject::of(Self::ID, RATE_CHANGED, id);
                let rate = || found.kind.driver.rate();
                self.told.subscribe(subject, enable, rate, outbox)?;
                let id = ResourceId::Clock(found.number);
                let wanted = self.told.is_wanted(found.index);
                cx.hub.watch(id, cx.guest, wanted);
            }
            ClockCommand::ConfigGet => {
                let [id, flags] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                if flags & !EXTENDED_GET != 0 {
                    return Err(Status::InvalidParameters.into());
                }
                if flags != 0 {
                    return Err(Status::NotSupported.into());
                }
                results.words([0, Self::is_enabled(&found)?.into(), 0])?;
            }
            ClockCommand::PossibleParentsGet => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                let parents = self.parents(&found);
                let head = |count, left: u32| count | left.min(0xff) << 24;
                let part = Part {
                    total: parents.len(),
                    skip,
                    most: MAX_PARENTS,
                    beyond: Status::OutOfRange,
                };
                results.list(part, head, |results, position| {
                    results.word(parents.get(position).ok_or(NoRoom)?.0)
                })?;
            }
            ClockCommand::ParentSet => {
                let [id, wanted] = arguments.words()?;
                let found = self.view.find(clocks, id)?.controlled()?;
                let parents = self.parents(&found);
                let parent = parents.iter().find(|(parent, _)| *parent == wanted);
                let (_, position) = parent.ok_or(Status::InvalidParameters)?;
                found.kind.driver.set_parent(*position)?;
                let id = ResourceId::Clock(found.number);
                cx.hub.changed(id, Some(cx.guest));
            }
            ClockCommand::ParentGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                let parents = self.parents(&found);
                if parents.is_empty() {
                    return Err(Status::NotSupported.into());
                }
                let now = found.kind.driver.parent()?;
                let parent = parents.iter().find(|(_, position)| *position == now);
                // It may be one that the guest does not see.
                results.word(parent.ok_or(Status::Denied)?.0)?;
            }
            ClockCommand::GetPermissions => {
                let [id] = arguments.words()?;
                let found = self.view.find(clocks, id)?;
                let control = found.may_control();
                results.word(bits([
                    (31, control && found.kind.gate),
                    (30, control && !self.parents(&found).is_empty()),
                    (29, control),
                ]))?;
            }
        }
        Ok(())
    }
}
