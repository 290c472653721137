//! The pin control protocol (0x19).

use super::protocol::{Call, Context, Protocol, commands};
use super::wire::{
    Arguments, Done, MAX_COUNT, NoRoom, Part, Results, Status, bits, count_and_left, is_long,
};
use crate::host::{Access, Guest, Members, PinSetting, Pinctrl, Pins, Resource};

commands! {
    /// The commands of the pin control protocol.
    enum PinctrlCommand {
        Attributes = 0x3,
        ListAssociations = 0x4,
        SettingsGet = 0x5,
        SettingsConfigure = 0x6,
        Request = 0x7,
        Release = 0x8,
        NameGet = 0x9,
    }
}

/// Selectors: a number is that of a pin, a group or a function.
const PIN: u32 = 0;
const GROUP: u32 = 1;
const FUNCTION: u32 = 2;

/// A pin or a group that has no function.
const NO_FUNCTION: u32 = u32::MAX;

/// The most settings that an answer can count.
const MAX_SETTINGS: usize = 0xff;

#[derive(Debug)]
pub(super) struct PinControl {
    access: Access,
}

impl PinControl {
    pub(super) fn new(pinctrl: Option<&Resource<Pinctrl>>, guest: Guest) -> Self {
        Self {
            access: pinctrl.map_or(Access::None, |pinctrl| pinctrl.permissions.of(guest)),
        }
    }

    fn may_control(&self) -> Result<(), Status> {
        match self.access {
            Access::Control => Ok(()),
            _ => Err(Status::Denied),
        }
    }

    /// The pins that a guest requests or releases.
    fn owned(&self, pinctrl: &Pinctrl, arguments: Arguments<'_>) -> Result<Vec<usize>, Status> {
        let [number, selector] = arguments.words()?;
        self.may_control()?;
        Ok(members(pinctrl, pins(pinctrl, number, selector)?))
    }
}

/// A number as a position in a list.
fn position<T>(list: &[T], number: u32) -> Result<usize, Status> {
    let position = usize::try_from(number).map_err(|_| Status::NotFound)?;
    if position < list.len() {
        Ok(position)
    } else {
        Err(Status::NotFound)
    }
}

/// The pin or the group that a number names.
fn pins(pinctrl: &Pinctrl, number: u32, selector: u32) -> Result<Pins, Status> {
    Ok(match selector {
        PIN => Pins::One(position(&pinctrl.pins, number)?),
        GROUP => Pins::Group(position(&pinctrl.groups, number)?),
        _ => return Err(Status::InvalidParameters),
    })
}

/// The positions of all these pins.
fn members(pinctrl: &Pinctrl, pins: Pins) -> Vec<usize> {
    match pins {
        Pins::One(pin) => vec![pin],
        Pins::Group(group) => {
            let group = pinctrl.groups.get(group);
            let members = group.into_iter().flat_map(|group| &group.members);
            members.map(|pin| usize::from(*pin)).collect()
        }
    }
}

/// A group or a function.
fn set(list: &[Members], number: u32) -> Result<&Members, Status> {
    list.get(position(list, number)?).ok_or(Status::NotFound)
}

/// The name of a pin, a group or a function, and how many members it has.
fn describe(pinctrl: &Pinctrl, number: u32, selector: u32) -> Result<(&str, u32), Status> {
    let set = match selector {
        PIN => {
            let pin = pinctrl.pins.get(position(&pinctrl.pins, number)?);
            return Ok((pin.ok_or(Status::NotFound)?, 1));
        }
        GROUP => set(&pinctrl.groups, number)?,
        FUNCTION => set(&pinctrl.functions, number)?,
        _ => return Err(Status::InvalidParameters),
    };
    // Fits: there are at most `MAX_RESOURCES`.
    Ok((&set.name, set.members.len() as u32))
}

fn list_members(pinctrl: &Pinctrl, arguments: [u32; 3], results: &mut Results<'_>) -> Done {
    let [number, selector, skip] = arguments;
    let set = match selector {
        GROUP => set(&pinctrl.groups, number)?,
        FUNCTION => set(&pinctrl.functions, number)?,
        _ => return Err(Status::InvalidParameters.into()),
    };
    let members = &set.members;
    let part = Part {
        total: members.len(),
        skip,
        most: MAX_COUNT,
        beyond: Status::OutOfRange,
    };
    results.list(part, count_and_left, |results, position| {
        results.bytes(&members.get(position).ok_or(NoRoom)?.to_le_bytes())
    })
}

/// One setting, all of them, or the function alone.
fn get_settings(pinctrl: &Pinctrl, number: u32, wanted: u32, results: &mut Results<'_>) -> Done {
    let pins = pins(pinctrl, number, wanted >> 16 & 3)?;
    if wanted >> 20 != 0 {
        return Err(Status::InvalidParameters.into());
    }
    let driver = &pinctrl.driver;
    let one = |results: &mut Results<'_>, setting: &PinSetting| {
        results.words([setting.kind.into(), setting.value])
    };
    let function = match driver.function(pins)? {
        // Fits: there are at most `MAX_RESOURCES`.
        Some(function) => function as u32,
        None => NO_FUNCTION,
    };
    results.word(function)?;
    match wanted >> 18 & 3 {
        0 => {
            let settings = driver.settings(pins)?;
            let kind = wanted & 0xff;
            let found = settings
                .iter()
                .find(|setting| u32::from(setting.kind) == kind);
            results.word(1)?;
            // Linux takes this for a pin without the setting, and anything else for a failure.
            one(results, found.ok_or(Status::InvalidParameters)?)?;
        }
        1 => {
            let settings = driver.settings(pins)?;
            let head = |count, left: u32| count | left << 24;
            let part = Part {
                total: settings.len().min(MAX_SETTINGS),
                skip: wanted >> 8 & 0xff,
                most: MAX_SETTINGS,
                beyond: Status::OutOfRange,
            };
            results.list(part, head, |results, position| {
                one(results, settings.get(position).ok_or(NoRoom)?)
            })?;
        }
        2 => results.word(0)?,
        _ => return Err(Status::InvalidParameters.into()),
    }
    Ok(())
}

/// `PINCTRL_SETTINGS_CONFIGURE`: sets the function, if the guest names one, and then the settings.
fn configure(cx: Context<'_>, pinctrl: &Pinctrl, arguments: Arguments<'_>) -> Done {
    let (head, settings) = arguments.split::<3>()?;
    let [number, function, attributes] = head;
    let pins = pins(pinctrl, number, attributes & 3)?;
    if attributes >> 11 != 0 {
        return Err(Status::InvalidParameters.into());
    }
    let count = usize::try_from(attributes >> 2 & 0xff).unwrap_or(0);
    if settings.len() != 2 * count {
        return Err(Status::ProtocolError.into());
    }
    let settings = settings.chunks_exact(2).map(|pair| match *pair {
        [kind, value] => {
            let kind = u8::try_from(kind).map_err(|_| Status::InvalidParameters)?;
            Ok(PinSetting { kind, value })
        }
        _ => Err(Status::ProtocolError),
    });
    let settings = settings.collect::<Result<Vec<_>, _>>()?;
    let function = if attributes & 1 << 10 != 0 {
        Some(position(&pinctrl.functions, function)?)
    } else {
        None
    };
    if let Some(function) = function {
        let groups = pinctrl
            .functions
            .get(function)
            .map(|function| &function.members);
        if let Pins::Group(group) = pins
            && !groups.is_some_and(|groups| groups.iter().any(|one| usize::from(*one) == group))
        {
            return Err(Status::InvalidParameters.into());
        }
    }
    cx.hub.set_pins(cx.guest, &members(pinctrl, pins), || {
        if let Some(function) = function {
            pinctrl.driver.set_function(pins, function)?;
        }
        if settings.is_empty() {
            return Ok(());
        }
        pinctrl.driver.set(pins, &settings)
    })?;
    Ok(())
}

impl Protocol for PinControl {
    const ID: u8 = 0x19;
    const VERSION: u32 = 0x1_0000;
    /// `PINCTRL_SET_PERMISSIONS`.
    const LAST: u8 = 0xa;
    type Command = PinctrlCommand;

    fn is_there(&self) -> bool {
        self.access >= Access::Read
    }

    fn attributes(&self, cx: Context<'_>, results: &mut Results<'_>) -> Done {
        let pinctrl = cx.hub.platform().pinctrl.as_ref();
        let pinctrl = &pinctrl.ok_or(Status::NotSupported)?.kind;
        // Fit: there are at most `MAX_RESOURCES`.
        let (pins, groups) = (pinctrl.pins.len() as u32, pinctrl.groups.len() as u32);
        results.words([groups << 16 | pins, pinctrl.functions.len() as u32])?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: PinctrlCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments, results, ..
        } = call;
        let pinctrl = cx.hub.platform().pinctrl.as_ref();
        let pinctrl = &pinctrl.ok_or(Status::NotSupported)?.kind;
        match command {
            PinctrlCommand::Attributes => {
                let [number, selector] = arguments.words()?;
                let (name, count) = describe(pinctrl, number, selector)?;
                results.word(bits([(31, is_long(name))]) | count)?;
                results.short_name(name)?;
            }
            PinctrlCommand::ListAssociations => list_members(pinctrl, arguments.words()?, results)?,
            PinctrlCommand::SettingsGet => {
                let [number, wanted] = arguments.words()?;
                get_settings(pinctrl, number, wanted, results)?;
            }
            PinctrlCommand::SettingsConfigure => {
                self.may_control()?;
                configure(cx, pinctrl, arguments)?;
            }
            PinctrlCommand::Request => {
                let members = self.owned(pinctrl, arguments)?;
                cx.hub.request_pins(cx.guest, &members)?;
            }
            PinctrlCommand::Release => {
                let members = self.owned(pinctrl, arguments)?;
                cx.hub.release_pins(cx.guest, &members)?;
            }
            PinctrlCommand::NameGet => {
                let [number, selector] = arguments.words()?;
                let (name, _) = describe(pinctrl, number, selector)?;
                results.word(0)?;
                results.long_name(name)?;
            }
        }
        Ok(())
    }
}
