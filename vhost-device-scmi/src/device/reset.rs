//! The reset domain protocol (0x16).

use super::outbox::{Outbox, Subject};
use super::protocol::{Call, Context, Protocol, commands};
use super::view::{Told, View};
use super::wire::{Done, Results, Status, bits, is_long};
use crate::host::{self, Guest, ResourceId};

commands! {
    /// The commands of the reset domain protocol.
    enum ResetCommand {
        DomainAttributes = 0x3,
        Reset = 0x4,
        DomainNameGet = 0x6,
    }
    if p2a {
        Notify = 0x5,
    }
}

/// The notification `RESET_ISSUED`.
const ISSUED: u8 = 0x0;

/// `RESET`: into reset and out of it.
const AUTONOMOUS: u32 = 1 << 0;
/// `RESET`: into reset; without it, out of it. It counts without `AUTONOMOUS` only.
const ASSERT: u32 = 1 << 1;
/// `RESET`: answer at once, and tell later. It may be there with `AUTONOMOUS` only.
const ASYNC: u32 = 1 << 2;

/// The state of a reset that loses everything. This platform knows no other.
const COLD: u32 = 0;

/// The latency of a domain that does not say it.
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Resets {
    view: View,
    told: Told<()>,
}

impl Resets {
    pub(super) fn new(view: View) -> Self {
        let told = Told::new(&view);
        Self { view, told }
    }

    /// The platform's domain `number` was reset.
    pub(super) fn changed(
        &self,
        cx: Context<'_>,
        number: usize,
        by: Option<Guest>,
        outbox: &mut Outbox,
    ) -> host::Result<()> {
        let domains = &cx.hub.platform().resets;
        if let Some(found) = self.view.by_number(domains, number)
            && self.told.is_wanted(found.index)
        {
            let subject = Subject::of(Self::ID, ISSUED, found.id());
            outbox.notify_words(subject, [cx.agent(by), found.id(), COLD]);
        }
        Ok(())
    }
}

impl Protocol for Resets {
    const ID: u8 = 0x16;
    const VERSION: u32 = 0x3_0001;
    const LAST: u8 = ResetCommand::DomainNameGet as u8;
    type Command = ResetCommand;

    fn is_there(&self) -> bool {
        !self.view.is_empty()
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        results.word(self.view.count())?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: ResetCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments,
            results,
            outbox,
            ..
        } = call;
        let domains = &cx.hub.platform().resets;
        match command {
            ResetCommand::DomainAttributes => {
                let [id] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                results.words([
                    bits([(30, cx.p2a), (29, is_long(found.name))]),
                    found.kind.latency_us.unwrap_or(UNKNOWN),
                ])?;
                results.short_name(found.name)?;
            }
            ResetCommand::Reset => {
                let [id, flags, state] = arguments.words()?;
                let found = self.view.find(domains, id)?.controlled()?;
                // Arm's tests want a valid state also where it means nothing (r009).
                if flags & !(AUTONOMOUS | ASSERT | ASYNC) != 0 || state != COLD {
                    return Err(Status::InvalidParameters.into());
                }
                let has = |bit: u32| flags & bit != 0;
                let kind = found.kind;
                if has(AUTONOMOUS) {
                    if !kind.autonomous || has(ASYNC) {
                        return Err(Status::NotSupported.into());
                    }
                    // `ASSERT` means nothing here.
                    kind.driver.reset()?;
                } else {
                    if !kind.explicit {
                        return Err(Status::NotSupported.into());
                    }
                    if has(ASYNC) {
                        return Err(Status::InvalidParameters.into());
                    }
                    kind.driver.set_asserted(has(ASSERT))?;
                }
                // The platform tells of the begin of a reset, and not of its end.
                if flags != 0 {
                    let id = ResourceId::Reset(found.number);
                    cx.hub.changed(id, Some(cx.guest));
                }
            }
            ResetCommand::Notify => {
                let [id, enable] = arguments.words()?;
                let found = self.view.find(domains, id)?;
                let subject = Subject::of(Self::ID, ISSUED, id);
                self.told.subscribe(subject, enable, || Ok(()), outbox)?;
                let id = ResourceId::Reset(found.number);
                let wanted = self.told.is_wanted(found.index);
                cx.hub.watch(id, cx.guest, wanted);
            }
            ResetCommand::DomainNameGet => self.view.tell_name(domains, arguments, results)?,
        }
        Ok(())
    }
}
