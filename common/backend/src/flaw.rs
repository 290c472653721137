//! Messages that are well formed and say what cannot be. The `vhost` crate takes them for a broken
//! connection, but only they fail: a front-end can be told so, and goes on.
//!
//! What stays for the message layer ends the session: a header, a length or a number of file
//! descriptors that no such message has, as nobody knows where the next message begins or what was
//! meant; a message whose feature was not negotiated; and what has no answer that says no:
//! `GET_VRING_BASE` of a vring that is not there, `GET_INFLIGHT_FD` of a region that cannot be, and
//! `SET_LOG_BASE` of a log that cannot be used.

use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, VHOST_USER_CONFIG_SIZE, VhostUserConfigFlags,
    VhostUserVringAddrFlags,
};

use crate::inbox::{Header, read_u32, read_u64};

/// A memory table: the number of regions and padding, then the regions.
const TABLE_HEAD: usize = 8;
const REGION: usize = 32;
/// The body of `SET_VRING_ADDR`: index, flags, then descriptor, used, available and log address.
const VRING_ADDR: usize = 40;
/// The body of `SET_VRING_ENABLE`: index and state.
const VRING_STATE: usize = 8;
/// The body of `SET_INFLIGHT_FD`: size, offset, the number of queues and their size, padding.
const INFLIGHT: usize = 24;
/// The body of the messages about the configuration: offset, size, flags, and then so many bytes.
const CONFIG_HEAD: usize = 12;
/// The most bytes of configuration space in a message (vhost-user "Virtio device config space").
const MAX_CONFIG: u32 = 256;

/// How much of a body can tell: the longest memory table.
pub(crate) const LOOKED_AT: usize = TABLE_HEAD + MAX_ATTACHED_FD_ENTRIES * REGION;

/// What cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("ring addresses are misaligned")]
    Misaligned,
    #[error("ring addresses have unknown flags")]
    AddressFlags,
    #[error("a vring is to be neither enabled nor disabled")]
    NeitherOnNorOff,
    #[error("a memory table without any memory")]
    NoMemory,
    #[error("a memory table of {regions} regions, of which one is empty or ends nowhere")]
    Regions { regions: usize },
    #[error("a region for requests in flight on no queues, or on empty ones")]
    NothingInFlight,
    #[error(
        "configuration is read and written 1 to {MAX_CONFIG} bytes at a time, below \
         {VHOST_USER_CONFIG_SIZE:#x}"
    )]
    ConfigRange,
    #[error("a message about the configuration has unknown flags")]
    ConfigFlags,
}

impl Flaw {
    /// How many file descriptors belong to the message.
    pub(crate) fn fds(self) -> usize {
        match self {
            Self::Regions { regions } => regions,
            Self::NothingInFlight => 1,
            _ => 0,
        }
    }
}

/// What the message with `header` says that cannot be, if any; `body` is as much of it as can tell.
pub(crate) fn find(header: Header, body: &[u8]) -> Option<Flaw> {
    match FrontendReq::try_from(header.request).ok()? {
        FrontendReq::SET_VRING_ADDR if header.size == VRING_ADDR => in_addresses(body),
        FrontendReq::SET_VRING_ENABLE if header.size == VRING_STATE => {
            (read_u32(body, 4)? > 1).then_some(Flaw::NeitherOnNorOff)
        }
        FrontendReq::SET_MEM_TABLE => in_table(header.size, body),
        FrontendReq::SET_INFLIGHT_FD if header.size == INFLIGHT => {
            let [queues, size] = halves(read_u32(body, 16)?);
            (queues == 0 || size == 0).then_some(Flaw::NothingInFlight)
        }
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => in_config(header.size, body),
        _ => None,
    }
}

/// The `u16` that lie where `word` does, in their order.
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [[a, b], [c, d]].map(u16::from_ne_bytes)
}

/// VIRTIO 1.4 §2.7: 16 for the descriptor table, 4 for the used and 2 for the available ring.
fn in_addresses(body: &[u8]) -> Option<Flaw> {
    let flags = read_u32(body, 4)?;
    let descriptor = read_u64(body, 8)?;
    let used = read_u64(body, 16)?;
    let available = read_u64(body, 24)?;
    if descriptor % 16 != 0 || used % 4 != 0 || available % 2 != 0 {
        return Some(Flaw::Misaligned);
    }
    VhostUserVringAddrFlags::from_bits(flags)
        .is_none()
        .then_some(Flaw::AddressFlags)
}

fn in_table(size: usize, body: &[u8]) -> Option<Flaw> {
    let regions = usize::try_from(read_u32(body, 0)?).ok()?;
    // Else it is as long as no table, or has more regions than fds can come for.
    if regions > MAX_ATTACHED_FD_ENTRIES || size != TABLE_HEAD + regions * REGION {
        return None;
    }
    if regions == 0 {
        return Some(Flaw::NoMemory);
    }
    let flawed = body.get(TABLE_HEAD..)?.chunks(REGION).any(|region| {
        let at = |place| read_u64(region, place);
        let size = at(8).unwrap_or(0);
        let mut starts = [at(0), at(16), at(24)].into_iter().flatten();
        size == 0 || starts.any(|start| start.checked_add(size).is_none())
    });
    let is_padded = read_u32(body, 4)? != 0;
    (flawed || is_padded).then_some(Flaw::Regions { regions })
}

fn in_config(len: usize, body: &[u8]) -> Option<Flaw> {
    let (offset, size, flags) = (read_u32(body, 0)?, read_u32(body, 4)?, read_u32(body, 8)?);
    // Else it is as long as no such message.
    if usize::try_from(size).ok()?.checked_add(CONFIG_HEAD)? != len {
        return None;
    }
    let within = |end| end <= VHOST_USER_CONFIG_SIZE;
    if !(1..=MAX_CONFIG).contains(&size) || !offset.checked_add(size).is_some_and(within) {
        return Some(Flaw::ConfigRange);
    }
    VhostUserConfigFlags::from_bits(flags)
        .is_none()
        .then_some(Flaw::ConfigFlags)
}
