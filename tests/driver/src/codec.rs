//! Messages on a socket: bytes and file descriptors, as they are.
//!
//! Nothing is checked on the way out, so that a test can send any malformed message. On the way in
//! only the framing is checked.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::error::{Error, Result};
use crate::protocol::{FLAG_REPLY, FLAG_VERSION_1, HEADER_SIZE, request_name};

/// The most file descriptors that the kernel passes with one message.
pub const MAX_FDS: usize = 253;

/// The most payload that is received, so that a broken length is an error and not an allocation.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A message without its file descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The request's number.
    pub request: u32,
    /// The header's flags, version included.
    pub flags: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// A request with no flag but the version.
    pub fn new(request: u32, payload: &[u8]) -> Self {
        Message {
            request,
            flags: FLAG_VERSION_1,
            payload: payload.to_vec(),
        }
    }

    /// The reply to a request.
    pub fn reply(request: u32, payload: &[u8]) -> Self {
        Message {
            flags: FLAG_VERSION_1 | FLAG_REPLY,
            ..Self::new(request, payload)
        }
    }

    /// The message as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = header(self.request, self.flags, self.payload.len() as u32).to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The payload as a number.
    pub fn u64(&self) -> Result<u64> {
        match self.payload.as_slice().try_into() {
            Ok(bytes) => Ok(u64::from_ne_bytes(bytes)),
            Err(_) => Err(self.malformed()),
        }
    }

    /// The error for a payload that is not what the request's reply should be.
    pub(crate) fn malformed(&self) -> Error {
        Error::Protocol(format!(
            "{} bytes of payload in the reply to {}",
            self.payload.len(),
            request_name(self.request)
        ))
    }
}

/// A header, whose size may be wrong.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_SIZE] {
    let mut bytes = [0; HEADER_SIZE];
    bytes[0..4].copy_from_slice(&request.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// Sends bytes, with file descriptors at the first of them.
pub fn send(stream: &UnixStream, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<()> {
    assert!(
        fds.len() <= MAX_FDS && (fds.is_empty() || !bytes.is_empty()),
        "{} file descriptors cannot be sent with {} bytes",
        fds.len(),
        bytes.len()
    );
    while !bytes.is_empty() {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let pushed = ancillary.push(SendAncillaryMessage::ScmRights(fds));
            assert!(pushed, "there is space for every file descriptor");
        }
        let sent = sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(len) => {
                bytes = &bytes[len..];
                fds = &[];
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Receives what is there, at least one byte; zero bytes are the end of the stream.
pub fn recv(stream: &UnixStream, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    loop {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream.as_fd(),
            &mut [IoSliceMut::new(buf)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(new) = message {
                fds.extend(new);
            }
        }
        match received {
            Ok(message) => return Ok(message.bytes),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives a whole message with its file descriptors.
pub fn recv_message(stream: &UnixStream) -> Result<(Message, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut head = [0; HEADER_SIZE];
    recv_exact(stream, &mut head, &mut fds)?;
    let field = |i: usize| u32::from_ne_bytes(head[i..i + 4].try_into().expect("four bytes"));
    let (request, flags, size) = (field(0), field(4), field(8) as usize);
    if size > MAX_PAYLOAD {
        return Err(Error::Protocol(format!(
            "a message {request} of {size} bytes"
        )));
    }
    let mut payload = vec![0; size];
    recv_exact(stream, &mut payload, &mut fds)?;
    let message = Message {
        request,
        flags,
        payload,
    };
    Ok((message, fds))
}

fn recv_exact(stream: &UnixStream, mut buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
    while !buf.is_empty() {
        match recv(stream, buf, fds)? {
            0 => return Err(Error::Closed),
            len => buf = &mut buf[len..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventFd;
    use crate::protocol::VHOST_USER_SET_MEM_TABLE;

    #[test]
    fn messages_and_their_fds_arrive_whole_and_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let event = EventFd::new();
        let message = Message::new(VHOST_USER_SET_MEM_TABLE, &[7; 300]);
        send(&a, &message.to_bytes(), &[event.as_fd(); 3]).unwrap();
        send(&a, &Message::reply(1, &5u64.to_ne_bytes()).to_bytes(), &[]).unwrap();

        let (received, fds) = recv_message(&b).unwrap();
        assert_eq!(received, message);
        assert_eq!(fds.len(), 3);
        for fd in fds {
            EventFd::from(fd).signal();
        }
        assert_eq!(event.take(), 3);
        let (reply, fds) = recv_message(&b).unwrap();
        assert_eq!((reply.u64().unwrap(), fds.len()), (5, 0));
        assert_eq!(reply.flags, FLAG_VERSION_1 | FLAG_REPLY);
        drop(a);
        assert!(recv_message(&b).unwrap_err().is_closed());
        assert!(send(&b, b"x", &[]).unwrap_err().is_closed());
    }

    #[test]
    fn short_and_absurd_messages_are_errors() {
        let (a, b) = UnixStream::pair().unwrap();
        send(&a, &header(1, 1, 8), &[]).unwrap();
        b.set_read_timeout(Some(std::time::Duration::from_millis(1)))
            .unwrap();
        assert!(recv_message(&b).unwrap_err().is_timeout());
        send(&a, &header(1, 1, u32::MAX), &[]).unwrap();
        assert!(matches!(recv_message(&b), Err(Error::Protocol(_))));
        assert!(matches!(
            Message::new(1, &[1]).u64(),
            Err(Error::Protocol(_))
        ));
    }
}
