//! The base protocol (0x10): who is there, and which protocols.

use super::agent::{Call, Context, Protocol};
use super::wire::{AGENT, Done, PLATFORM, Results, Status};

const DISCOVER_VENDOR: u8 = 0x3;
const DISCOVER_SUB_VENDOR: u8 = 0x4;
const DISCOVER_IMPLEMENTATION_VERSION: u8 = 0x5;
const DISCOVER_LIST_PROTOCOLS: u8 = 0x6;
const DISCOVER_AGENT: u8 = 0x7;

/// What `BASE_DISCOVER_VENDOR` says when the platform does not.
const VENDOR: &str = "vhost-device";

/// The agent that asks, whoever that is.
const SELF: u32 = u32::MAX;

/// The protocols that a guest has, from the lowest number to the highest, without this one.
#[derive(Debug, Default)]
pub(super) struct Protocols(pub(super) Vec<u8>);

#[derive(Debug, Default)]
pub(super) struct Base {
    protocols: Protocols,
}

impl Base {
    pub(super) fn new(protocols: Protocols) -> Self {
        Self { protocols }
    }

    /// Numbers of protocols, a byte each, in whole words.
    fn list(&self, skip: u32, results: &mut Results<'_>) -> Done {
        let skip = usize::try_from(skip).map_err(|_| Status::InvalidParameters)?;
        let left = self.protocols.0.get(skip..);
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

    fn is_there(&self) -> bool {
        true
    }

    fn has(&self, _cx: Context<'_>, message: u8) -> bool {
        (DISCOVER_VENDOR..=DISCOVER_AGENT).contains(&message)
    }

    fn attributes(&self, _cx: Context<'_>, results: &mut Results<'_>) -> Done {
        // There are fewer than 256.
        let protocols = self.protocols.0.len() as u32;
        results.word(AGENT << 8 | protocols)?;
        Ok(())
    }

    fn command(&mut self, cx: Context<'_>, call: Call<'_, '_>) -> Done {
        let Call {
            header,
            arguments,
            results,
            ..
        } = call;
        let platform = cx.hub.platform();
        match header.message() {
            DISCOVER_VENDOR => {
                arguments.none()?;
                results.short_name(match &*platform.vendor {
                    "" => VENDOR,
                    vendor => vendor,
                })?;
            }
            DISCOVER_SUB_VENDOR => {
                arguments.none()?;
                results.short_name(&platform.sub_vendor)?;
            }
            DISCOVER_IMPLEMENTATION_VERSION => {
                arguments.none()?;
                results.word(implementation_version())?;
            }
            DISCOVER_LIST_PROTOCOLS => {
                let [skip] = arguments.words()?;
                self.list(skip, results)?;
            }
            _ => {
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
