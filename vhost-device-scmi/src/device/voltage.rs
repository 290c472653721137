//! The voltage domain protocol (0x17).

use super::agent::{Call, Context, Found, Protocol, View};
use super::wire::{Choice, Done, Results, Status, bits, is_long};
use crate::host::{Levels, ResourceId, Voltage};

const DOMAIN_ATTRIBUTES: u8 = 0x3;
const DESCRIBE_LEVELS: u8 = 0x4;
const CONFIG_SET: u8 = 0x5;
const CONFIG_GET: u8 = 0x6;
const LEVEL_SET: u8 = 0x7;
const LEVEL_GET: u8 = 0x8;
const DOMAIN_NAME_GET: u8 = 0x9;

/// The mode of a domain that is off, and of one that is on.
const OFF: u32 = 0;
const ON: u32 = 7;

/// `VOLTAGE_LEVEL_SET`: answer at once, and tell later.
const ASYNC: u32 = 1;

#[derive(Debug)]
pub(super) struct Voltages {
    view: View,
}

/// A signed number on the wire.
fn word(level: i32) -> u32 {
    level.cast_unsigned()
}

impl Voltages {
    pub(super) fn new(view: View) -> Self {
        Self { view }
    }

    fn describe_levels(domain: &Found<'_, Voltage>, skip: u32, results: &mut Results<'_>) -> Done {
        let levels = match &domain.kind.levels {
            Levels::Discrete(levels) => Choice::List(levels),
            &Levels::Range { min, max, step } => Choice::Range([min, max, step]),
        };
        results.choice(levels, skip, |results, level| results.word(word(level)))
    }
}

impl Protocol for Voltages {
    const ID: u8 = 0x17;
    const VERSION: u32 = 0x2_0001;
    const LAST: u8 = DOMAIN_NAME_GET;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn has(&self, _cx: Context<'_>, message: u8) -> bool {
        (DOMAIN_ATTRIBUTES..=DOMAIN_NAME_GET).contains(&message)
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        results.word(self.view.count())?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, call: Call<'_, '_>) -> Done {
        let Call {
            header,
            arguments,
            results,
            ..
        } = call;
        let domains = &cx.hub.platform().voltages;
        match header.message() {
            DOMAIN_ATTRIBUTES => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(bits([(30, is_long(found.name))]))?;
                results.short_name(found.name)?;
            }
            DESCRIBE_LEVELS => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                Self::describe_levels(&found, skip, results)?;
            }
            CONFIG_SET => {
                let [id, config] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                let enabled = match config {
                    ON => true,
                    OFF => false,
                    _ => return Err(Status::InvalidParameters.into()),
                };
                match found.kind.gate {
                    true => {
                        let id = ResourceId::Voltage(found.number);
                        cx.hub.wish_enabled(id, cx.guest, enabled)?;
                    }
                    false if enabled => {}
                    false => return Err(Status::NotSupported.into()),
                }
            }
            CONFIG_GET => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let enabled = !found.kind.gate || found.kind.driver.is_enabled()?;
                results.word(if enabled { ON } else { OFF })?;
            }
            LEVEL_SET => {
                let [id, flags, level] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                match flags {
                    0 => {}
                    ASYNC => return Err(Status::NotSupported.into()),
                    _ => return Err(Status::InvalidParameters.into()),
                }
                let level = level.cast_signed();
                if !found.kind.levels.contains(level) {
                    return Err(Status::InvalidParameters.into());
                }
                found.kind.driver.set_level(level)?;
                let id = ResourceId::Voltage(found.number);
                cx.hub.changed(id, Some(cx.guest));
            }
            LEVEL_GET => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(word(found.kind.driver.level()?))?;
            }
            _ => self.view.tell_name(domains, arguments, results)?,
        }
        Ok(())
    }
}
