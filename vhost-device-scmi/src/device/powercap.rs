//! The power capping protocol (0x18).

use std::time::{Duration, Instant};

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::view::{Found, Told, View};
use super::wire::{Done, Failure, PLATFORM, Results, Status, bits, is_long, is_subscription};
use crate::host::{self, Guest, PowerScale, Powercap, ResourceId};

commands! {
    /// The commands of the power capping protocol.
    enum PowercapCommand {
        DomainAttributes = 0x3,
        CapGet = 0x4,
        CapSet = 0x5,
        PaiGet = 0x6,
        PaiSet = 0x7,
        DomainNameGet = 0x8,
        MeasurementsGet = 0x9,
    }
    if p2a {
        CapNotify = 0xa,
        MeasurementsNotify = 0xb,
    }
}

/// The notification `POWERCAP_CAP_CHANGED`.
const CAP_CHANGED: u8 = 0x0;
/// The notification `POWERCAP_MEASUREMENTS_CHANGED`.
const MEASUREMENTS_CHANGED: u8 = 0x1;

/// `POWERCAP_CAP_SET`: do not tell later. Without `ASYNC` it means nothing.
const IGNORE_RESPONSE: u32 = 1 << 0;
/// `POWERCAP_CAP_SET`: answer at once, and tell later.
const ASYNC: u32 = 1 << 1;

/// The cap of a domain that is not capped.
const NO_CAP: u32 = 0;

/// The parent of a domain that has none.
const NO_PARENT: u32 = u32::MAX;

/// The shortest time between two measurements for a notification: a guest must not keep its host
/// busy.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// The powers between which nothing is told.
#[derive(Clone, Copy, Debug)]
struct Thresholds {
    low: u32,
    high: u32,
    side: Side,
    due: Instant,
}

/// Where a power was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Below,
    Between,
    Above,
}

#[derive(Debug)]
pub(super) struct Powercaps {
    view: View,
    /// Caps and averaging intervals.
    told: Told<(Option<u32>, u32)>,
    /// By domain: the thresholds that the guest wants to hear of.
    measured: Vec<Option<Thresholds>>,
}

/// The next number at or below `value` of those from `min` to `max` in steps of `step`. Linux
/// sends multiples of the step, whatever the minimum is.
fn step_below(value: u32, (min, max, step): (u32, u32, u32)) -> Result<u32, Status> {
    if !(min..=max).contains(&value) {
        return Err(Status::OutOfRange);
    }
    Ok(value - (value - min).checked_rem(step).unwrap_or(0))
}

/// The cap and the averaging interval of a domain.
fn limits(domain: &Found<'_, Powercap>) -> host::Result<(Option<u32>, u32)> {
    let driver = &domain.kind.driver;
    Ok((driver.cap()?, driver.pai_us()?))
}

impl Powercaps {
    pub(super) fn new(view: View) -> Self {
        Self {
            told: Told::new(&view),
            measured: vec![None; view.len()],
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
        let domains = &cx.hub.platform().powercaps;
        let Some(found) = self.view.by_number(domains, number) else {
            return Ok(());
        };
        let news = self.told.news(found.index, || limits(&found))?;
        if let Some((cap, pai)) = news {
            let subject = Subject::of(Self::ID, CAP_CHANGED, found.id());
            let words = [cx.agent(by), found.id(), cap.unwrap_or(NO_CAP), pai];
            outbox.notify_words(subject, words);
        }
        Ok(())
    }

    /// When the next measurement is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let measured = self.measured.iter().flatten();
        measured.map(|thresholds| thresholds.due).min()
    }

    /// Measures one domain that is due. False if none is.
    pub(super) fn work(
        &mut self,
        cx: Context<'_>,
        now: Instant,
        outbox: &mut Outbox,
    ) -> host::Result<bool> {
        let measured = self.measured.iter_mut().enumerate();
        let due = measured.filter_map(|(index, thresholds)| {
            let thresholds = thresholds.as_mut()?;
            (thresholds.due <= now).then_some((index, thresholds))
        });
        // The one that has waited longest goes first, as with sensors.
        let Some((index, thresholds)) = due.min_by_key(|(_, thresholds)| thresholds.due) else {
            return Ok(false);
        };
        // Also a domain that cannot be read waits for its next turn.
        thresholds.due = now + MIN_INTERVAL;
        let Some(found) = self.view.at(&cx.hub.platform().powercaps, index) else {
            return Ok(true);
        };
        let pai = found.kind.driver.pai_us()?;
        thresholds.due = now + Duration::from_micros(pai.into()).max(MIN_INTERVAL);
        let power = found.kind.driver.power()?;
        let side = match power {
            power if power < thresholds.low => Side::Below,
            power if power > thresholds.high => Side::Above,
            _ => Side::Between,
        };
        if std::mem::replace(&mut thresholds.side, side) != side && side != Side::Between {
            let subject = Subject::of(Self::ID, MEASUREMENTS_CHANGED, found.id());
            outbox.notify_words(subject, [PLATFORM, found.id(), power]);
        }
        Ok(true)
    }

    fn describe(
        &self,
        cx: Context<'_>,
        domain: &Found<'_, Powercap>,
        results: &mut Results<'_>,
    ) -> Done {
        let kind = domain.kind;
        let control = domain.may_control();
        let unit = match kind.power_scale {
            PowerScale::Abstract => 0,
            PowerScale::Microwatts => 1,
            PowerScale::Milliwatts => 2,
        };
        // What cannot be set has one value: the limits that a guest sees are those that it has.
        let cap = control && kind.min_cap != kind.max_cap;
        let pai = control && kind.min_pai_us != kind.max_pai_us;
        let flags = bits([
            (31, cx.p2a),
            (30, cx.p2a && kind.monitoring),
            (28, is_long(domain.name)),
            (27, cap),
            (26, kind.monitoring),
            (25, pai),
        ]);
        results.word(flags | unit << 23)?;
        results.short_name(domain.name)?;
        let min_pai = if pai {
            kind.min_pai_us
        } else {
            kind.max_pai_us
        };
        let min_cap = if cap { kind.min_cap } else { kind.max_cap };
        let parent = kind.parent.and_then(|parent| self.view.position(parent));
        results.words([
            min_pai,
            kind.max_pai_us,
            if pai { kind.pai_step_us } else { 0 },
            min_cap,
            kind.max_cap,
            if cap { kind.cap_step } else { 0 },
            kind.sustainable_power,
            kind.accuracy,
            // Fits: there are at most `MAX_RESOURCES`.
            parent.map_or(NO_PARENT, |parent| parent as u32),
        ])?;
        Ok(())
    }

    fn set_cap(
        cx: Context<'_>,
        domain: &Found<'_, Powercap>,
        flags: u32,
        cap: u32,
    ) -> Result<(), Failure> {
        let kind = domain.kind;
        if flags & !(ASYNC | IGNORE_RESPONSE) != 0 {
            return Err(Status::InvalidParameters.into());
        }
        // As `DOMAIN_ATTRIBUTES` has said.
        if flags & ASYNC != 0 || kind.min_cap == kind.max_cap {
            return Err(Status::NotSupported.into());
        }
        let cap = match cap {
            NO_CAP if kind.can_disable => None,
            NO_CAP => return Err(Status::NotSupported.into()),
            cap => Some(step_below(
                cap,
                (kind.min_cap, kind.max_cap, kind.cap_step),
            )?),
        };
        cx.hub.wish_cap(domain.number, cx.guest, cap)?;
        Ok(())
    }

    fn watch_measurements(
        &mut self,
        domain: &Found<'_, Powercap>,
        thresholds: Option<(u32, u32)>,
        outbox: &mut Outbox,
    ) -> Result<(), Failure> {
        let thresholds = match thresholds {
            Some((low, high)) if low > high => return Err(Status::InvalidParameters.into()),
            // The guest hears of a power that is outside already.
            Some((low, high)) => Some(Thresholds {
                low,
                high,
                side: Side::Between,
                due: Instant::now(),
            }),
            None => {
                outbox.withdraw(Subject::of(Self::ID, MEASUREMENTS_CHANGED, domain.id()));
                None
            }
        };
        if let Some(measured) = self.measured.get_mut(domain.index) {
            *measured = thresholds;
        }
        Ok(())
    }
}

impl Protocol for Powercaps {
    const ID: u8 = 0x18;
    const VERSION: u32 = 0x2_0000;
    /// `POWERCAP_DESCRIBE_FASTCHANNEL`.
    const LAST: u8 = 0xc;
    type Command = PowercapCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        results.word(self.view.count())?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: PowercapCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        let domains = &cx.hub.platform().powercaps;
        match command {
            PowercapCommand::DomainAttributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                self.describe(cx, &found, results)?;
            }
            PowercapCommand::CapGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(found.kind.driver.cap()?.unwrap_or(NO_CAP))?;
            }
            PowercapCommand::CapSet => {
                let [id, flags, cap] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                Self::set_cap(cx, &found, flags, cap)?;
            }
            PowercapCommand::PaiGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(found.kind.driver.pai_us()?)?;
            }
            PowercapCommand::PaiSet => {
                let [id, flags, pai] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                let kind = found.kind;
                if flags != 0 {
                    return Err(Status::InvalidParameters.into());
                }
                if kind.min_pai_us == kind.max_pai_us {
                    return Err(Status::NotSupported.into());
                }
                let steps = (kind.min_pai_us, kind.max_pai_us, kind.pai_step_us);
                let pai = step_below(pai, steps)?;
                kind.driver.set_pai_us(pai)?;
                let id = ResourceId::Powercap(found.number);
                cx.hub.changed(id, Some(cx.guest));
            }
            PowercapCommand::DomainNameGet => self.view.tell_name(domains, arguments, results)?,
            PowercapCommand::MeasurementsGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                if !found.kind.monitoring {
                    return Err(Status::NotSupported.into());
                }
                let driver = &found.kind.driver;
                results.words([driver.power()?, driver.pai_us()?])?;
            }
            PowercapCommand::CapNotify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let subject = Subject::of(Self::ID, CAP_CHANGED, id);
                self.told
                    .subscribe(subject, enable, || limits(&found), outbox)?;
                let id = ResourceId::Powercap(found.number);
                let wanted = self.told.is_wanted(found.index);
                cx.hub.watch(id, cx.guest, wanted);
            }
            PowercapCommand::MeasurementsNotify => {
                let [id, enable, low, high] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                if !found.kind.monitoring {
                    return Err(Status::NotSupported.into());
                }
                let wanted = is_subscription(enable)?.then_some((low, high));
                self.watch_measurements(&found, wanted, outbox)?;
            }
        }
        Ok(())
    }
}
