//! Whether a whole message has arrived, so that reading it cannot block the session's thread:
//! a front-end that sends half a message and waits must not stop its guest's queues, nor keep
//! the daemon from ending. Nor must one that does not read its answers.
//!
//! Two kinds of messages are answered here, which the `vhost` crate takes for a broken connection,
//! though they are errors that a front-end can be told of: messages that say what cannot be (see
//! [`Flaw`]), and messages about the configuration without `VHOST_USER_PROTOCOL_F_CONFIG`: crosvm
//! sends those whatever was negotiated.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg,
    send,
};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES};

use crate::flaw::{self, Flaw};

/// Request, flags and size: three `u32` (vhost-user "Header").
const HEADER: usize = 12;
/// The longest body that the `vhost` crate accepts.
const MAX_BODY: usize = 0x1000;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const VERSION: u32 = 1;

/// What is in the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbox {
    /// Nothing, or only a part of a message.
    Incomplete,
    /// A whole message, or something that is none.
    Message,
    /// This message or a later one has more file descriptors than any message may have, or has some
    /// within its header.
    BadFds,
    /// The process has no room for the file descriptors of this message or a later one.
    NoRoomForFds,
    /// A message that must fail, as it says what cannot be.
    Flawed(Header, Flaw),
    /// A message about the configuration, which must fail if the front-end may not send it.
    Config(Header),
}

/// The fields of a message's header that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    flags: u32,
    pub(crate) size: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            request: read_u32(bytes, 0)?,
            flags: read_u32(bytes, 4)?,
            size: usize::try_from(read_u32(bytes, 8)?).ok()?,
        })
    }

    fn is_config(self) -> bool {
        [FrontendReq::GET_CONFIG, FrontendReq::SET_CONFIG]
            .iter()
            .any(|request| self.request == *request as u32)
    }
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// Whether the front-end has read enough of its answers that the next one cannot block.
pub(crate) fn has_room(stream: &UnixStream) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    Ok(retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))? > 0)
}

/// Looks at the socket without taking anything from it.
pub(crate) fn look(stream: &UnixStream) -> Result<Inbox, Errno> {
    let queued = usize::try_from(ioctl_fionread(stream)?).unwrap_or(usize::MAX);
    if queued < HEADER {
        return Ok(Inbox::Incomplete);
    }
    let header = match peek_header(stream)? {
        Peeked::Header(header) => header,
        Peeked::BadFds => return Ok(Inbox::BadFds),
        Peeked::NoRoomForFds => return Ok(Inbox::NoRoomForFds),
    };
    // A body that is too long is refused without being read.
    if header.size <= MAX_BODY && queued < HEADER + header.size {
        return Ok(Inbox::Incomplete);
    }
    // Anything else about it that is wrong is for the message layer to find.
    let is_sound = header.size <= MAX_BODY && header.flags & !NEED_REPLY == VERSION;
    if !is_sound {
        return Ok(Inbox::Message);
    }
    Ok(match flaw_of(stream, header)? {
        Some(flaw) => Inbox::Flawed(header, flaw),
        None if header.is_config() => Inbox::Config(header),
        None => Inbox::Message,
    })
}

/// What is wrong with the whole message that is in the socket.
fn flaw_of(stream: &UnixStream, header: Header) -> Result<Option<Flaw>, Errno> {
    let mut bytes = [0; HEADER + flaw::LOOKED_AT];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (count, _) = recv(stream, &mut bytes, flags)?;
    let body = bytes.get(HEADER..count).unwrap_or_default();
    let own = header.size.min(flaw::LOOKED_AT);
    // File descriptors within it cut it off: whether it can be is for the message layer to find.
    Ok(body.get(..own).and_then(|body| flaw::find(header, body)))
}

/// What lies at the front of the socket.
enum Peeked {
    Header(Header),
    BadFds,
    NoRoomForFds,
}

/// The header that is in the socket. File descriptors that do not fit the message layer are found
/// here: it would take them for a passing shortage, and wait for more.
///
/// The kernel shows whoever peeks the first file descriptors in the queue, of this message or of
/// one behind it, and there is no way to see which. So a session may end some messages before the
/// one whose file descriptors are too many: it would not have outlived that one.
fn peek_header(stream: &UnixStream) -> Result<Peeked, Errno> {
    let mut bytes = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES + 1))];
    // Looking at them makes duplicates, which are closed with the buffer.
    let mut fds = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let peeked = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut fds, flags)?;
    let count: usize = fds.drain().map(count_fds).sum();
    if count > MAX_ATTACHED_FD_ENTRIES {
        return Ok(Peeked::BadFds);
    }
    // There was room for one more than a message may have, and yet some were left out.
    if peeked.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Peeked::NoRoomForFds);
    }
    match Header::parse(&bytes) {
        Some(header) if peeked.bytes == HEADER => Ok(Peeked::Header(header)),
        _ => Ok(Peeked::BadFds),
    }
}

fn count_fds(message: RecvAncillaryMessage<'_>) -> usize {
    match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.count(),
        _ => 0,
    }
}

/// Takes the whole message with `header` from the socket. Whether as many file descriptors came
/// with it as belong to it.
pub(crate) fn take(stream: &UnixStream, header: Header, fds: usize) -> Result<bool, Errno> {
    let mut message = [0; HEADER + MAX_BODY];
    let len = message.len().min(HEADER + header.size);
    let message = message.get_mut(..len).unwrap_or_default();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES + 1))];
    // What comes is closed with the buffer.
    let mut came = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let taken = recvmsg(stream, &mut [IoSliceMut::new(message)], &mut came, flags)?;
    Ok(taken.bytes == len && came.drain().map(count_fds).sum::<usize>() == fds)
}

/// Says that the message with `header` failed. Where the answer is a configuration, one without any
/// bytes says so; any other message is answered if the front-end has asked for it.
pub(crate) fn refuse(stream: &UnixStream, header: Header, reply_ack: bool) -> Result<(), Errno> {
    if header.request == FrontendReq::GET_CONFIG as u32 {
        reply(stream, header, &[])
    } else if reply_ack && header.flags & NEED_REPLY != 0 {
        reply(stream, header, &1u64.to_ne_bytes())
    } else {
        Ok(())
    }
}

/// Answers the message with `header`.
fn reply(stream: &UnixStream, header: Header, body: &[u8]) -> Result<(), Errno> {
    // A few bytes.
    let size = body.len() as u32;
    let head = [header.request, VERSION | REPLY, size].map(u32::to_ne_bytes);
    send(
        stream,
        &[head.as_flattened(), body].concat(),
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
