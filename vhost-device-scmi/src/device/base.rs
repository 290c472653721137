//! The base protocol (0x10): who is there, and which protocols.

use super::protocol::{Call, Context, Protocol, commands};
use super::wire::{AGENT, Done, PLATFORM, Results, Status};

commands! {
    /// The commands of the base protocol.
    enum BaseCommand {
        DiscoverVendor = 0x3,
        DiscoverSubVendor = 0x4,
        DiscoverImplementationVersion = 0x5,
        DiscoverListProtocols = 0x6,
        DiscoverAgent = 0x7,
    }
}

/// The answer to `BASE_DISCOVER_VENDOR` if the platform has no vendor.
const VENDOR: &str = "vhost-device";

/// The agent that asks, whichever it is.
const SELF: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Base {
    /// The protocols that the guest has, from the lowest number to the highest, without this one.
    protocols: Vec<u8>,
}

impl Base {
    pub(super) fn new(protocols: Vec<u8>) -> Self {
        Self { protocols }
    }

    /// Numbers of protocols, a byte each, in whole words.
    fn list(&self, skip: u32, results: &mut Results<'_>) -> Done {
        let skip = usize::try_from(skip).map_err(|_| Status::InvalidParameters)?;
        let left = self.protocols.get(skip..);
        let left = left.ok_or(Status::InvalidParameters)?;
        // All fit in three words. There are fewer than 256.
        results.word(left.len() as u32)?;
        for four in left.chunks(4) {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(four) {
                *to = *from;
            }
            results.bytes(&word)?;
        }
        Ok(())
    }
}

/// The version of the program, a byte for each of its three numbers.
fn implementation_version() -> u32 {
    let numbers = env!("CARGO_PKG_VERSION").split('.');
    numbers.fold(0, |version, number| {
        version << 8 | number.parse::<u32>().unwrap_or(0) & 0xff
    })
}

impl Protocol for Base {
    const ID: u8 = 0x10;
    const VERSION: u32 = 0x2_0001;
    /// `BASE_RESET_AGENT_CONFIGURATION`.
    const LAST: u8 = 0xb;
    type Command = BaseCommand;

    fn is_there(&self) -> bool {
        true
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        // There are fewer than 256.
        let protocols = self.protocols.len() as u32;
        results.word(AGENT << 8 | protocols)?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, command: BaseCommand, call: Call<'_, '_>) -> Done {
        let Call {
            arguments, results, ..
        } = call;
        let platform = cx.hub.platform();
        match command {
            BaseCommand::DiscoverVendor => {
                arguments.none()?;
                results.short_name(match &*platform.vendor {
                    "" => VENDOR,
                    vendor => vendor,
                })?;
            }
            BaseCommand::DiscoverSubVendor => {
                arguments.none()?;
                results.short_name(&platform.sub_vendor)?;
            }
            BaseCommand::DiscoverImplementationVersion => {
                arguments.none()?;
                results.word(implementation_version())?;
            }
            BaseCommand::DiscoverListProtocols => {
                let [skip] = arguments.words()?;
                self.list(skip, results)?;
            }
            BaseCommand::DiscoverAgent => {
                let [agent] = arguments.words()?;
                let (id, name) = match agent {
                    PLATFORM => (PLATFORM, "platform"),
                    AGENT | SELF => (AGENT, "guest"),
                    _ => return Err(Status::NotFound.into()),
                };
                results.word(id)?;
                results.short_name(name)?;
            }
        }
        Ok(())
    }
}
