//! The voltage domain protocol (0x17).

use super::protocol::{Call, Context, Protocol, commands};
use super::view::{Found, View};
use super::wire::{Choice, Done, Results, Status, bits, is_long};
use crate::host::{Levels, ResourceId, Voltage};

commands! {
    /// The commands of the voltage domain protocol.
    enum VoltageCommand {
        DomainAttributes = 0x3,
        DescribeLevels = 0x4,
        ConfigSet = 0x5,
        ConfigGet = 0x6,
        LevelSet = 0x7,
        LevelGet = 0x8,
        DomainNameGet = 0x9,
    }
}

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
    const LAST: u8 = VoltageCommand::DomainNameGet as u8;
    type Command = VoltageCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        results.word(self.view.count())?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: VoltageCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments, results, ..
        } = call;
        let domains = &cx.hub.platform().voltages;
        match command {
            VoltageCommand::DomainAttributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(bits([(30, is_long(found.name))]))?;
                results.short_name(found.name)?;
            }
            VoltageCommand::DescribeLevels => {
                let [id, skip] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                Self::describe_levels(&found, skip, results)?;
            }
            VoltageCommand::ConfigSet => {
                let [id, config] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                let enabled = match config {
                    ON => true,
                    OFF => false,
                    _ => return Err(Status::InvalidParameters.into()),
                };
                if found.kind.gate {
                    let id = ResourceId::Voltage(found.number);
                    cx.hub.wish_enabled(id, cx.guest, enabled)?;
                } else if !enabled {
                    return Err(Status::NotSupported.into());
                }
            }
            VoltageCommand::ConfigGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let enabled = !found.kind.gate || found.kind.driver.is_enabled()?;
                results.word(if enabled { ON } else { OFF })?;
            }
            VoltageCommand::LevelSet => {
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
            VoltageCommand::LevelGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(word(found.kind.driver.level()?))?;
            }
            VoltageCommand::DomainNameGet => self.view.tell_name(domains, arguments, results)?,
        }
        Ok(())
    }
}
