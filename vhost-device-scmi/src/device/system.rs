//! The system power protocol (0x12).

use std::time::Duration;

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::wire::{Done, PLATFORM, Results, Status, bits, is_subscription};
use crate::host::{Access, Guest, Resource, SystemPower, SystemState};
use crate::hub::{Hub, SystemRequest};

commands! {
    /// The commands of the system power protocol.
    enum SystemCommand {
        StateSet = 0x3,
        StateGet = 0x4,
    }
    if p2a {
        StateNotify = 0x5,
    }
}

/// The notification `SYSTEM_POWER_STATE_NOTIFIER`.
const STATE_NOTIFIER: u8 = 0x0;

/// `SYSTEM_POWER_STATE_SET`: in an orderly way.
const GRACEFUL: u32 = 1;

#[derive(Debug)]
pub(super) struct System {
    access: Access,
    /// Something does what the guest asks for.
    drives: bool,
    timeout: Duration,
    subscribed: bool,
}

impl System {
    pub(super) fn new(system: Option<&Resource<SystemPower>>, guest: Guest) -> Self {
        let access = system.map_or(Access::None, |system| system.permissions.of(guest));
        Self {
            access,
            drives: system.is_some_and(|system| system.kind.driver.is_some()),
            timeout: system.map_or(Duration::ZERO, |system| system.kind.timeout),
            subscribed: false,
        }
    }

    /// The host wants something of the guest.
    pub(super) fn request(&mut self, hub: &Hub, request: SystemRequest, outbox: &mut Outbox) {
        if !self.subscribed || hub.platform().system.is_none() {
            return;
        }
        let subject = Subject::of(Self::ID, STATE_NOTIFIER, 0);
        let timeout = if request.graceful {
            u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX)
        } else {
            0
        };
        let flags = u32::from(request.graceful);
        outbox.notify_words(subject, [PLATFORM, flags, number(request.state), timeout]);
    }
}

fn number(state: SystemState) -> u32 {
    match state {
        SystemState::Shutdown => 0,
        SystemState::ColdReset => 1,
        SystemState::WarmReset => 2,
        SystemState::PowerUp => 3,
        SystemState::Suspend => 4,
    }
}

fn state(number: u32) -> Result<SystemState, Status> {
    Ok(match number {
        0 => SystemState::Shutdown,
        1 => SystemState::ColdReset,
        2 => SystemState::WarmReset,
        3 => SystemState::PowerUp,
        4 => SystemState::Suspend,
        _ => return Err(Status::InvalidParameters),
    })
}

impl Protocol for System {
    const ID: u8 = 0x12;
    const VERSION: u32 = 0x2_0001;
    const LAST: u8 = SystemCommand::StateNotify as u8;
    type Command = SystemCommand;

    fn is_there(&self) -> bool {
        self.access >= Access::Read
    }

    fn message_attributes(&self, command: SystemCommand) -> Option<u32> {
        match command {
            // It knows a reset without power being off, and sleep.
            SystemCommand::StateSet => self.drives.then_some(bits([(31, true), (30, true)])),
            SystemCommand::StateGet | SystemCommand::StateNotify => Some(0),
        }
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        results.word(0)?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: SystemCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        match command {
            SystemCommand::StateSet => {
                let [flags, wanted] = arguments.words()?;
                if self.access < Access::Control {
                    return Err(Status::Denied.into());
                }
                if flags & !GRACEFUL != 0 {
                    return Err(Status::InvalidParameters.into());
                }
                let wanted = state(wanted)?;
                let system = cx.hub.platform().system.as_ref();
                let driver = system.and_then(|system| system.kind.driver.as_ref());
                let driver = driver.ok_or(Status::NotSupported)?;
                driver.request(cx.guest, wanted, flags == GRACEFUL)?;
            }
            SystemCommand::StateGet => {
                arguments.none()?;
                // Otherwise it could not ask.
                results.word(number(SystemState::PowerUp))?;
            }
            SystemCommand::StateNotify => {
                let [enable] = arguments.words()?;
                self.subscribed = is_subscription(enable)?;
                if !self.subscribed {
                    outbox.withdraw(Subject::of(Self::ID, STATE_NOTIFIER, 0));
                }
                cx.hub.listen(cx.guest, self.subscribed);
            }
        }
        Ok(())
    }
}
