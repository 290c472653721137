//! The power domain protocol (0x11).

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::view::{Told, View};
use super::wire::{Done, Results, Status, bits, is_long};
use crate::host::{self, Guest, PowerState, ResourceId};

commands! {
    /// The commands of the power domain protocol.
    enum PowerCommand {
        DomainAttributes = 0x3,
        StateSet = 0x4,
        StateGet = 0x5,
        DomainNameGet = 0x8,
    }
    if p2a {
        StateNotify = 0x6,
    }
}

/// The notification `POWER_STATE_CHANGED`.
const STATE_CHANGED: u8 = 0x0;

/// `POWER_STATE_SET`: answer at once, and tell later.
const ASYNC: u32 = 1;

#[derive(Debug)]
pub(super) struct Powers {
    view: View,
    told: Told<PowerState>,
}

impl Powers {
    pub(super) fn new(view: View) -> Self {
        let told = Told::new(&view);
        Self { view, told }
    }

    /// The platform's domain `number` may have changed.
    pub(super) fn changed(
        &mut self,
        cx: Context<'_>,
        number: usize,
        by: Option<Guest>,
        outbox: &mut Outbox,
    ) -> host::Result<()> {
        let domains = &cx.hub.platform().powers;
        let Some(found) = self.view.by_number(domains, number) else {
            return Ok(());
        };
        let news = self.told.news(found.index, || found.kind.driver.state())?;
        if let Some(state) = news {
            let subject = Subject::of(Self::ID, STATE_CHANGED, found.id());
            outbox.notify_words(subject, [cx.agent(by), found.id(), state.0]);
        }
        Ok(())
    }
}

impl Protocol for Powers {
    const ID: u8 = 0x11;
    const VERSION: u32 = 0x3_0001;
    const LAST: u8 = PowerCommand::DomainNameGet as u8;
    type Command = PowerCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        // No statistics.
        results.words([self.view.count(), 0, 0, 0])?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: PowerCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        let domains = &cx.hub.platform().powers;
        match command {
            PowerCommand::DomainAttributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(bits([
                    (31, cx.p2a),
                    (29, found.may_control()),
                    (27, is_long(found.name)),
                ]))?;
                results.short_name(found.name)?;
            }
            PowerCommand::StateSet => {
                let [flags, id, state] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                // As `DOMAIN_ATTRIBUTES` has said.
                if !found.may_control() {
                    return Err(Status::NotSupported.into());
                }
                match flags {
                    0 => {}
                    ASYNC => return Err(Status::NotSupported.into()),
                    _ => return Err(Status::InvalidParameters.into()),
                }
                let state = PowerState(state);
                if !found.kind.states.contains(&state) {
                    return Err(Status::InvalidParameters.into());
                }
                cx.hub.wish_state(found.number, cx.guest, state)?;
            }
            PowerCommand::StateGet => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.word(found.kind.driver.state()?.0)?;
            }
            PowerCommand::StateNotify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let subject = Subject::of(Self::ID, STATE_CHANGED, id);
                let state = || found.kind.driver.state();
                self.told.subscribe(subject, enable, state, outbox)?;
                let id = ResourceId::Power(found.number);
                let wanted = self.told.is_wanted(found.index);
                cx.hub.watch(id, cx.guest, wanted);
            }
            PowerCommand::DomainNameGet => self.view.tell_name(domains, arguments, results)?,
        }
        Ok(())
    }
}
