//! Whether a whole message has arrived, so that reading it cannot block the session's thread:
//! a front-end that sends half a message and waits must not stop its guest's queues, nor keep
//! the daemon from ending.
//!
//! One message is answered here: a `SET_VRING_ADDR` with misaligned addresses, which the `vhost`
//! crate takes for a broken connection, though it is an error that a front-end can be told of.

use std::os::unix::net::UnixStream;

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vhost::vhost_user::message::FrontendReq;

/// Request, flags and size: three `u32` (vhost-user "Header").
const HEADER: usize = 12;
/// The longest body that the `vhost` crate accepts.
const MAX_BODY: usize = 0x1000;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const VERSION: u32 = 1;
/// The body of `SET_VRING_ADDR`: index, flags, then descriptor, used, available and log address.
const VRING_ADDR: usize = 40;

/// What is in the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbox {
    /// Nothing, or only a part of a message.
    Incomplete,
    /// A whole message, or something that is none.
    Message,
    /// A message that must fail: ring addresses that are misaligned.
    Misaligned(Header),
}

/// The fields of a message's header that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    request: u32,
    flags: u32,
    size: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            request: read_u32(bytes, 0)?,
            flags: read_u32(bytes, 4)?,
            size: usize::try_from(read_u32(bytes, 8)?).ok()?,
        })
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// Looks at the socket without taking anything from it.
pub(crate) fn look(stream: &UnixStream) -> Result<Inbox, Errno> {
    let queued = usize::try_from(ioctl_fionread(stream)?).unwrap_or(usize::MAX);
    if queued < HEADER {
        return Ok(Inbox::Incomplete);
    }
    let mut bytes = [0; HEADER + VRING_ADDR];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (count, _) = recv(stream, &mut bytes, flags)?;
    let peeked = bytes.get(..count).unwrap_or_default();
    let Some(header) = Header::parse(peeked) else {
        // The header came in two pieces with a file descriptor between them: reading it will
        // find out, and cannot block, as its bytes are there.
        return Ok(Inbox::Message);
    };
    // A body that is too long is refused without being read.
    if header.size <= MAX_BODY && queued < HEADER + header.size {
        return Ok(Inbox::Incomplete);
    }
    let body = peeked.get(HEADER..).unwrap_or_default();
    if header.request == FrontendReq::SET_VRING_ADDR as u32
        && header.size == VRING_ADDR
        && is_misaligned(body) == Some(true)
    {
        return Ok(Inbox::Misaligned(header));
    }
    Ok(Inbox::Message)
}

/// VIRTIO 1.4 §2.7: 16 for the descriptor table, 4 for the used and 2 for the available ring.
fn is_misaligned(body: &[u8]) -> Option<bool> {
    let descriptor = read_u64(body, 8)?;
    let used = read_u64(body, 16)?;
    let available = read_u64(body, 24)?;
    Some(descriptor % 16 != 0 || used % 4 != 0 || available % 2 != 0)
}

/// Takes the message with `header` from the socket, and says that it failed if the front-end
/// wants to know.
pub(crate) fn refuse(stream: &UnixStream, header: Header, reply_ack: bool) -> Result<(), Errno> {
    let mut bytes = [0; HEADER + VRING_ADDR];
    recv(stream, &mut bytes, RecvFlags::DONTWAIT)?;
    if reply_ack && header.flags & NEED_REPLY != 0 {
        let mut reply = Vec::with_capacity(HEADER + 8);
        for word in [header.request, VERSION | REPLY, 8] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        reply.extend_from_slice(&1u64.to_ne_bytes());
        send(stream, &reply, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
