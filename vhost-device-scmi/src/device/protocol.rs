//! What all protocols share: the context of a command, and the way from its message id to the code
//! that does it.
//!
//! A protocol lists its commands in an enum ([`commands`]) and does them in one `match` over it.
//! `PROTOCOL_MESSAGE_ATTRIBUTES` looks a message id up in the same way as a command with that id,
//! so the answer and the deed cannot differ. The compiler refuses a command that is listed and not
//! done.

use super::outbox::Outbox;
use super::wire::{AGENT, Arguments, Done, Header, PLATFORM, Results, Status};
use crate::host::Guest;
use crate::hub::Hub;

/// What a protocol needs to know besides its own state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) hub: &'a Hub,
    pub(super) guest: Guest,
    /// The driver negotiated `VIRTIO_SCMI_F_P2A_CHANNELS`.
    pub(super) p2a: bool,
}

impl Context<'_> {
    /// For what only works with an event queue (S-7).
    pub(super) fn require_p2a(&self) -> Result<(), Status> {
        if self.p2a {
            Ok(())
        } else {
            Err(Status::NotSupported)
        }
    }

    /// The number by which the guest knows who did something.
    pub(super) fn agent(&self, by: Option<Guest>) -> u32 {
        if by == Some(self.guest) {
            AGENT
        } else {
            PLATFORM
        }
    }
}

/// A command's message, and where its results go.
#[derive(Debug)]
pub(super) struct Call<'a, 'b> {
    pub(super) header: Header,
    pub(super) arguments: Arguments<'a>,
    pub(super) results: &'a mut Results<'b>,
    /// For what the platform tells later.
    pub(super) outbox: &'a mut Outbox,
}

/// The commands of a protocol: an enum that [`commands`] makes.
pub(super) trait Command: Copy + TryFrom<u8, Error = NoCommand> {
    /// The command subscribes to something, or makes sense with subscriptions only (S-7).
    fn needs_p2a(self) -> bool;
}

/// A protocol has no command with this message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoCommand;

/// Makes the enum of a protocol's commands from their names and message ids. Those behind `if p2a`
/// exist only for guests with an event queue.
macro_rules! commands {
    (
        $(#[$doc:meta])*
        enum $name:ident { $($always:ident = $id:literal,)* }
        $(if p2a { $($p2a:ident = $p2a_id:literal,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(clippy::enum_variant_names, reason = "DEN0056 names them")]
        pub(super) enum $name {
            $($always = $id,)*
            $($($p2a = $p2a_id,)*)?
        }

        impl TryFrom<u8> for $name {
            type Error = $crate::device::protocol::NoCommand;

            fn try_from(message: u8) -> Result<Self, Self::Error> {
                match message {
                    $($id => Ok(Self::$always),)*
                    $($($p2a_id => Ok(Self::$p2a),)*)?
                    _ => Err($crate::device::protocol::NoCommand),
                }
            }
        }

        impl $crate::device::protocol::Command for $name {
            fn needs_p2a(self) -> bool {
                match self {
                    $(Self::$always => false,)*
                    $($(Self::$p2a => true,)*)?
                }
            }
        }
    };
}
pub(super) use commands;

commands! {
    /// The commands of every protocol.
    enum CommonCommand {
        ProtocolVersion = 0x0,
        ProtocolAttributes = 0x1,
        ProtocolMessageAttributes = 0x2,
        NegotiateProtocolVersion = 0x10,
    }
}

/// A protocol with the resources that one guest sees.
pub(super) trait Protocol {
    /// Its number.
    const ID: u8;
    /// Its version: the major one in the upper 16 bits.
    const VERSION: u32;
    /// The highest message id that DEN0056 gives to one of its commands. This platform does not
    /// support those that are missing below; above, nothing exists.
    const LAST: u8;
    /// Its own commands, without those of every protocol.
    type Command: Command;

    /// Whether it has anything for the guest. A protocol without resources does not exist for it.
    fn is_there(&self) -> bool;

    /// What `PROTOCOL_MESSAGE_ATTRIBUTES` says of a command. `None` if the guest does not have it,
    /// for a reason besides the event queue.
    fn message_attributes(&self, command: Self::Command) -> Option<u32> {
        let _ = command;
        Some(0)
    }

    /// The results of `PROTOCOL_ATTRIBUTES`.
    fn attributes(&self, cx: Context<'_>, results: &mut Results<'_>) -> Done;

    /// Does a command that the guest has.
    fn command(&mut self, cx: Context<'_>, command: Self::Command, call: Call<'_, '_>) -> Done;
}

/// A message id, looked up.
#[derive(Clone, Copy, Debug)]
enum Known<C> {
    /// A command of every protocol.
    Common(CommonCommand),
    /// A command of this one, with its attributes.
    Own(C, u32),
}

/// Looks a message id up: the command, or why the guest does not have it.
fn look_up<P: Protocol>(
    protocol: &P,
    cx: Context<'_>,
    message: u8,
) -> Result<Known<P::Command>, Status> {
    if let Ok(common) = CommonCommand::try_from(message) {
        return Ok(Known::Common(common));
    }
    let Ok(own) = P::Command::try_from(message) else {
        return Err(if message <= P::LAST {
            Status::NotSupported
        } else {
            Status::NotFound
        });
    };
    if own.needs_p2a() {
        cx.require_p2a()?;
    }
    let attributes = protocol.message_attributes(own);
    Ok(Known::Own(own, attributes.ok_or(Status::NotSupported)?))
}

/// A [`Protocol`], whichever it is.
pub(super) trait AnyProtocol {
    /// As [`Protocol::is_there`].
    fn is_there(&self) -> bool;

    /// Does the command that a message names.
    fn call(&mut self, cx: Context<'_>, call: Call<'_, '_>) -> Done;
}

impl<P: Protocol> AnyProtocol for P {
    fn is_there(&self) -> bool {
        Protocol::is_there(self)
    }

    fn call(&mut self, cx: Context<'_>, call: Call<'_, '_>) -> Done {
        let command = match look_up(self, cx, call.header.message())? {
            Known::Common(command) => command,
            Known::Own(command, _) => return self.command(cx, command, call),
        };
        let Call {
            arguments, results, ..
        } = call;
        match command {
            CommonCommand::ProtocolVersion => {
                arguments.none()?;
                results.word(P::VERSION)?;
            }
            CommonCommand::ProtocolAttributes => {
                arguments.none()?;
                self.attributes(cx, results)?;
            }
            CommonCommand::ProtocolMessageAttributes => {
                let [message] = arguments.words()?;
                let message = u8::try_from(message).map_err(|_| Status::NotFound)?;
                let attributes = match look_up(self, cx, message) {
                    Ok(Known::Common(_)) => 0,
                    Ok(Known::Own(_, attributes)) => attributes,
                    Err(_) => return Err(Status::NotFound.into()),
                };
                results.word(attributes)?;
            }
            CommonCommand::NegotiateProtocolVersion => {
                let [version] = arguments.words()?;
                // Minor versions differ in what an agent may do without.
                if version > P::VERSION || version >> 16 != P::VERSION >> 16 {
                    return Err(Status::NotSupported.into());
                }
            }
        }
        Ok(())
    }
}
