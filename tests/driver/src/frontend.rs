//! A vhost-user front-end: what QEMU's side of the socket sends.
//!
//! There is one method for each message, which sends what it is given without checking it, and a
//! raw layer for everything that a front-end should not send. Every wait for the back-end ends
//! with [`Error::Timeout`], so that a hang of the back-end is a failed test.
//!
//! Once `REPLY_ACK` was negotiated, every message that has no reply of its own asks for an
//! acknowledgement; [`Frontend::set_need_reply`] turns that off. Without acknowledgements, use
//! [`Frontend::sync`] to know that the messages before it were handled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::codec::{self, Message};
use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Region};
use crate::protocol::*;

/// How long the back-end may take for anything unless a test says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

const NO_FDS: &[BorrowedFd<'static>] = &[];

/// The front-end's end of a connection.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
    need_reply: bool,
    protocol_features: u64,
}

/// Connections and the raw layer.
impl Frontend {
    /// A front-end on a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        let frontend = Frontend {
            stream,
            need_reply: false,
            protocol_features: 0,
        };
        frontend.set_timeout(DEFAULT_TIMEOUT);
        frontend
    }

    /// Connects to a back-end, which may still be starting: its socket is waited for.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let deadline = Instant::now() + DEFAULT_TIMEOUT;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(Self::new(stream)),
                Err(e) => {
                    let starting = matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    );
                    if !starting || Instant::now() >= deadline {
                        return Err(e.into());
                    }
                    sleep(Duration::from_millis(2));
                }
            }
        }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sets how long the back-end may take to answer or to take a message.
    pub fn set_timeout(&self, timeout: Duration) {
        self.stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| self.stream.set_write_timeout(Some(timeout)))
            .unwrap_or_else(|e| panic!("cannot set a socket's timeout to {timeout:?}: {e}"));
    }

    /// Sets whether messages without a reply of their own ask for an acknowledgement.
    pub fn set_need_reply(&mut self, need_reply: bool) {
        self.need_reply = need_reply;
    }

    /// The protocol features that were set last.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// Whether the protocol feature with this bit number was set.
    pub fn has_protocol_feature(&self, number: u32) -> bool {
        self.protocol_features & bits(&[number]) != 0
    }

    /// Sends any bytes with any file descriptors.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        codec::send(&self.stream, bytes, fds)
    }

    /// Receives at most `max` bytes, as they come; no bytes mean that the back-end hung up.
    pub fn recv_raw(&self, max: usize) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; max];
        let mut fds = Vec::new();
        let len = codec::recv(&self.stream, &mut bytes, &mut fds)?;
        bytes.truncate(len);
        Ok((bytes, fds))
    }

    /// Sends a message as it is.
    pub fn send_message(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_raw(&message.to_bytes(), fds)
    }

    /// Receives a message.
    pub fn recv_message(&self) -> Result<(Message, Vec<OwnedFd>)> {
        codec::recv_message(&self.stream)
    }

    /// Sends a request that has no reply of its own; waits for the acknowledgement if one is due.
    pub fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut message = Message::new(request, payload);
        if self.need_reply {
            message.flags |= FLAG_NEED_REPLY;
        }
        self.send_message(&message, fds)?;
        if self.need_reply {
            self.recv_ack(request)?;
        }
        Ok(())
    }

    /// Sends a request and receives its reply.
    pub fn call(
        &self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Message, Vec<OwnedFd>)> {
        self.send_message(&Message::new(request, payload), fds)?;
        self.recv_reply(request)
    }

    /// Receives the reply to a request that was sent before.
    pub fn recv_reply(&self, request: u32) -> Result<(Message, Vec<OwnedFd>)> {
        let (reply, fds) = self.recv_message()?;
        let flags = reply.flags & (FLAG_REPLY | FLAG_VERSION_MASK);
        if reply.request != request || flags != (FLAG_REPLY | FLAG_VERSION_1) {
            return Err(Error::Protocol(format!(
                "message {} with flags {:#x} instead of the reply to {}",
                reply.request,
                reply.flags,
                request_name(request)
            )));
        }
        Ok((reply, fds))
    }

    /// Receives the acknowledgement of a request that was sent before.
    pub fn recv_ack(&self, request: u32) -> Result<()> {
        match self.recv_reply(request)?.0.u64()? {
            0 => Ok(()),
            value => Err(Error::Nack { request, value }),
        }
    }

    /// Waits until the back-end hangs up, whatever it sends before. An error if it does not.
    pub fn expect_closed(&self) -> Result<()> {
        loop {
            match self.recv_raw(0x1000) {
                Ok((bytes, _)) if bytes.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(Error::Closed) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the back-end has handled every message so far, by one that has a reply.
    pub fn sync(&self) -> Result<()> {
        self.get_features().map(drop)
    }

    fn send_obj(&self, request: u32, payload: impl IntoBytes + Immutable) -> Result<()> {
        self.send(request, payload.as_bytes(), NO_FDS)
    }

    fn get_u64(&self, request: u32) -> Result<u64> {
        self.call(request, &[], NO_FDS)?.0.u64()
    }
}

/// One method for each message.
impl Frontend {
    /// GET_FEATURES.
    pub fn get_features(&self) -> Result<u64> {
        self.get_u64(VHOST_USER_GET_FEATURES)
    }

    /// SET_FEATURES.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.send_obj(VHOST_USER_SET_FEATURES, features)
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn get_protocol_features(&self) -> Result<u64> {
        self.get_u64(VHOST_USER_GET_PROTOCOL_FEATURES)
    }

    /// SET_PROTOCOL_FEATURES. From then on acknowledgements are asked for if `REPLY_ACK` is among
    /// them, and not if it is not.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.send_obj(VHOST_USER_SET_PROTOCOL_FEATURES, features)?;
        self.protocol_features = features;
        self.need_reply = self.has_protocol_feature(VHOST_USER_PROTOCOL_F_REPLY_ACK);
        Ok(())
    }

    /// SET_OWNER.
    pub fn set_owner(&self) -> Result<()> {
        self.send(VHOST_USER_SET_OWNER, &[], NO_FDS)
    }

    /// RESET_OWNER, which is deprecated.
    pub fn reset_owner(&self) -> Result<()> {
        self.send(VHOST_USER_RESET_OWNER, &[], NO_FDS)
    }

    /// RESET_DEVICE.
    pub fn reset_device(&self) -> Result<()> {
        self.send(VHOST_USER_RESET_DEVICE, &[], NO_FDS)
    }

    /// SET_MEM_TABLE with all regions.
    pub fn set_mem_table(&self, memory: &GuestMemory) -> Result<()> {
        let regions: Vec<_> = memory.regions().iter().map(|r| describe(r)).collect();
        let fds: Vec<_> = memory.regions().iter().map(|r| r.fd()).collect();
        self.set_mem_table_raw(regions.len() as u32, &regions, &fds)
    }

    /// SET_MEM_TABLE with any count, regions and file descriptors.
    pub fn set_mem_table_raw(
        &self,
        count: u32,
        regions: &[MemoryRegion],
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let mut payload = [count, 0].as_bytes().to_vec();
        payload.extend_from_slice(regions.as_bytes());
        self.send(VHOST_USER_SET_MEM_TABLE, &payload, fds)
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.get_u64(VHOST_USER_GET_MAX_MEM_SLOTS)
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&self, region: &Region) -> Result<()> {
        self.add_mem_reg_raw(&describe(region), &[region.fd()])
    }

    /// ADD_MEM_REG with any region and file descriptors.
    pub fn add_mem_reg_raw(&self, region: &MemoryRegion, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(VHOST_USER_ADD_MEM_REG, &single(region), fds)
    }

    /// REM_MEM_REG.
    pub fn rem_mem_reg(&self, region: &Region) -> Result<()> {
        self.rem_mem_reg_raw(&describe(region), NO_FDS)
    }

    /// REM_MEM_REG with any region and file descriptors: older front-ends send one.
    pub fn rem_mem_reg_raw(&self, region: &MemoryRegion, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(VHOST_USER_REM_MEM_REG, &single(region), fds)
    }

    /// GET_QUEUE_NUM.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.get_u64(VHOST_USER_GET_QUEUE_NUM)
    }

    /// SET_VRING_NUM: the size of a queue.
    pub fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.send_obj(VHOST_USER_SET_VRING_NUM, VringState { index, num })
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&self, addr: &VringAddr) -> Result<()> {
        self.send_obj(VHOST_USER_SET_VRING_ADDR, *addr)
    }

    /// SET_VRING_BASE.
    pub fn set_vring_base(&self, index: u32, num: u32) -> Result<()> {
        self.send_obj(VHOST_USER_SET_VRING_BASE, VringState { index, num })
    }

    /// GET_VRING_BASE, which stops the queue.
    pub fn get_vring_base(&self, index: u32) -> Result<u32> {
        let state = VringState { index, num: 0 };
        let (reply, _) = self.call(VHOST_USER_GET_VRING_BASE, state.as_bytes(), NO_FDS)?;
        let state: VringState = parse(&reply)?;
        if state.index != index {
            return Err(Error::Protocol(format!(
                "the base of queue {} instead of {index}",
                state.index
            )));
        }
        Ok(state.num)
    }

    /// SET_VRING_KICK; without a file descriptor the back-end must poll.
    pub fn set_vring_kick(&self, index: u8, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(VHOST_USER_SET_VRING_KICK, index, fd)
    }

    /// SET_VRING_CALL; without a file descriptor the back-end does not call.
    pub fn set_vring_call(&self, index: u8, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(VHOST_USER_SET_VRING_CALL, index, fd)
    }

    /// SET_VRING_ERR.
    pub fn set_vring_err(&self, index: u8, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.set_vring_fd(VHOST_USER_SET_VRING_ERR, index, fd)
    }

    fn set_vring_fd(&self, request: u32, index: u8, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let nofd = if fd.is_none() {
            VHOST_USER_VRING_NOFD_MASK
        } else {
            0
        };
        let payload = u64::from(index) | nofd;
        self.send(request, payload.as_bytes(), fd.as_slice())
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        let num = enable.into();
        self.send_obj(VHOST_USER_SET_VRING_ENABLE, VringState { index, num })
    }

    /// GET_CONFIG: `size` bytes of configuration space. A back-end that refuses answers with an
    /// empty payload, which is [`Error::Nack`] with the value zero.
    pub fn get_config(&self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let request = VHOST_USER_GET_CONFIG;
        let header = ConfigHeader {
            offset,
            size,
            flags: 0,
        };
        let mut payload = header.as_bytes().to_vec();
        payload.resize(payload.len() + size as usize, 0);
        let (reply, _) = self.call(request, &payload, NO_FDS)?;
        if reply.payload.is_empty() {
            return Err(Error::Nack { request, value: 0 });
        }
        match ConfigHeader::read_from_prefix(&reply.payload) {
            Ok((got, bytes)) if got.size == size && bytes.len() == size as usize => {
                Ok(bytes.to_vec())
            }
            _ => Err(reply.malformed()),
        }
    }

    /// SET_CONFIG: writes bytes of configuration space. `flags` is zero or
    /// [`VHOST_USER_CONFIG_F_LIVE_MIGRATION`].
    pub fn set_config(&self, offset: u32, flags: u32, bytes: &[u8]) -> Result<()> {
        let header = ConfigHeader {
            offset,
            size: bytes.len() as u32,
            flags,
        };
        let mut payload = header.as_bytes().to_vec();
        payload.extend_from_slice(bytes);
        self.send(VHOST_USER_SET_CONFIG, &payload, NO_FDS)
    }

    /// SET_BACKEND_REQ_FD with one end of a new socket pair. Returns the other end.
    pub fn set_backend_req_fd(&self) -> Result<BackChannel> {
        let (ours, theirs) = UnixStream::pair()?;
        self.send(VHOST_USER_SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        ours.set_read_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(BackChannel { stream: ours })
    }

    /// GET_INFLIGHT_FD for this many queues of this size.
    pub fn get_inflight_fd(&self, num_queues: u16, queue_size: u16) -> Result<(Inflight, OwnedFd)> {
        let wanted = Inflight {
            num_queues,
            queue_size,
            ..Inflight::default()
        };
        let (reply, mut fds) = self.call(VHOST_USER_GET_INFLIGHT_FD, wanted.as_bytes(), NO_FDS)?;
        let inflight = parse(&reply)?;
        match (fds.pop(), fds.is_empty()) {
            (Some(fd), true) => Ok((inflight, fd)),
            _ => Err(Error::Protocol(
                "GET_INFLIGHT_FD was not answered with one file descriptor".into(),
            )),
        }
    }

    /// SET_INFLIGHT_FD.
    pub fn set_inflight_fd(&self, inflight: &Inflight, fd: BorrowedFd<'_>) -> Result<()> {
        self.send(VHOST_USER_SET_INFLIGHT_FD, inflight.as_bytes(), &[fd])
    }

    /// SET_LOG_BASE. With `LOG_SHMFD` it has a reply of its own, whose content has no meaning.
    pub fn set_log_base(&self, area: &LogArea, fd: BorrowedFd<'_>) -> Result<()> {
        let request = VHOST_USER_SET_LOG_BASE;
        if self.has_protocol_feature(VHOST_USER_PROTOCOL_F_LOG_SHMFD) {
            self.call(request, area.as_bytes(), &[fd]).map(drop)
        } else {
            self.send(request, area.as_bytes(), &[fd])
        }
    }

    /// SET_LOG_FD.
    pub fn set_log_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.send(VHOST_USER_SET_LOG_FD, &[], &[fd])
    }

    /// SET_STATUS.
    pub fn set_status(&self, status: u64) -> Result<()> {
        self.send_obj(VHOST_USER_SET_STATUS, status)
    }

    /// GET_STATUS.
    pub fn get_status(&self) -> Result<u64> {
        self.get_u64(VHOST_USER_GET_STATUS)
    }

    /// SET_DEVICE_STATE_FD to save the back-end's state. Returns what to read the state from.
    pub fn save_device_state(&self) -> Result<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let theirs = self.set_device_state_fd(0, write.as_fd())?;
        Ok(theirs.unwrap_or(read))
    }

    /// SET_DEVICE_STATE_FD to load the back-end's state. Returns what to write the state to; the
    /// back-end loads it when this is closed.
    pub fn load_device_state(&self) -> Result<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let theirs = self.set_device_state_fd(1, read.as_fd())?;
        Ok(theirs.unwrap_or(write))
    }

    /// SET_DEVICE_STATE_FD. Returns the back-end's own end of the transfer if it sent one.
    pub fn set_device_state_fd(
        &self,
        direction: u32,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<OwnedFd>> {
        let request = VHOST_USER_SET_DEVICE_STATE_FD;
        let transfer = DeviceStateTransfer {
            direction,
            phase: 0,
        };
        let (reply, mut fds) = self.call(request, transfer.as_bytes(), &[fd])?;
        let value = reply.u64()?;
        if value & 0xff != 0 {
            return Err(Error::Nack { request, value });
        }
        let nofd = value & VHOST_USER_DEVICE_STATE_NOFD != 0;
        match (nofd, fds.pop()) {
            (true, None) => Ok(None),
            (false, Some(fd)) => Ok(Some(fd)),
            (_, fd) => Err(Error::Protocol(format!(
                "a reply of {value:#x} to SET_DEVICE_STATE_FD with file descriptor {fd:?}"
            ))),
        }
    }

    /// CHECK_DEVICE_STATE: whether the transfer succeeded.
    pub fn check_device_state(&self) -> Result<()> {
        let request = VHOST_USER_CHECK_DEVICE_STATE;
        match self.get_u64(request)? {
            0 => Ok(()),
            value => Err(Error::Nack { request, value }),
        }
    }
}

/// The socket on which a back-end sends requests of its own.
#[derive(Debug)]
pub struct BackChannel {
    stream: UnixStream,
}

impl BackChannel {
    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Receives a request.
    pub fn recv(&self) -> Result<(Message, Vec<OwnedFd>)> {
        codec::recv_message(&self.stream)
    }

    /// Acknowledges a request with a value; zero is success.
    pub fn ack(&self, request: u32, value: u64) -> Result<()> {
        let reply = Message::reply(request, value.as_bytes());
        codec::send(&self.stream, &reply.to_bytes(), &[])
    }

    /// Waits for CONFIG_CHANGE_MSG and acknowledges it if that is asked for.
    pub fn expect_config_change(&self) -> Result<()> {
        let (message, _) = self.recv()?;
        if message.request != VHOST_USER_BACKEND_CONFIG_CHANGE_MSG || !message.payload.is_empty() {
            return Err(Error::Protocol(format!(
                "{message:?} instead of a change of configuration"
            )));
        }
        if message.flags & FLAG_NEED_REPLY != 0 {
            self.ack(message.request, 0)?;
        }
        Ok(())
    }
}

/// A region as the memory messages describe it.
pub fn describe(region: &Region) -> MemoryRegion {
    MemoryRegion {
        guest_phys_addr: region.guest_addr(),
        memory_size: region.size(),
        user_addr: region.user_addr(),
        mmap_offset: region.mmap_offset(),
    }
}

/// The payload of ADD_MEM_REG and REM_MEM_REG: a region behind padding.
fn single(region: &MemoryRegion) -> [u8; 40] {
    let mut payload = [0; 40];
    payload[8..].copy_from_slice(region.as_bytes());
    payload
}

fn parse<T: FromBytes>(reply: &Message) -> Result<T> {
    T::read_from_bytes(&reply.payload).map_err(|_| reply.malformed())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::event::EventFd;
    use crate::memory::RegionSpec;

    /// Runs a front-end against a peer that gets each message and its fds and may reply.
    fn with_peer(
        mut peer: impl FnMut(&UnixStream, Message, Vec<OwnedFd>) + Send,
        test: impl FnOnce(Frontend),
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                while let Ok((message, fds)) = codec::recv_message(&theirs) {
                    peer(&theirs, message, fds);
                }
            });
            test(Frontend::new(ours));
        });
    }

    fn reply(stream: &UnixStream, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        codec::send(stream, &Message::reply(request, payload).to_bytes(), fds).unwrap();
    }

    #[test]
    fn acknowledgements_are_asked_for_once_negotiated() {
        let peer = |stream: &UnixStream, message: Message, _| {
            let number = message.request;
            let asked = message.flags & FLAG_NEED_REPLY != 0;
            match number {
                VHOST_USER_GET_FEATURES => reply(stream, number, &7u64.to_ne_bytes(), &[]),
                VHOST_USER_SET_VRING_NUM if asked => {
                    assert_eq!(message.payload, [1u32, 128].as_bytes());
                    reply(stream, number, &1u64.to_ne_bytes(), &[]);
                }
                _ if asked => reply(stream, number, &0u64.to_ne_bytes(), &[]),
                _ => {}
            }
        };
        with_peer(peer, |mut frontend| {
            frontend.set_owner().unwrap();
            frontend.set_vring_num(1, 128).unwrap();
            assert_eq!(frontend.get_features().unwrap(), 7);
            let ack = bits(&[VHOST_USER_PROTOCOL_F_REPLY_ACK]);
            frontend.set_protocol_features(ack).unwrap();
            frontend.set_owner().unwrap();
            let error = frontend.set_vring_num(1, 128).unwrap_err();
            assert!(matches!(
                error,
                Error::Nack {
                    request: VHOST_USER_SET_VRING_NUM,
                    value: 1
                }
            ));
            assert!(error.is_nack());
            assert_eq!(
                error.to_string(),
                "the back-end refused VHOST_USER_SET_VRING_NUM: 0x1"
            );
            frontend.set_need_reply(false);
            frontend.set_vring_num(1, 128).unwrap();
            frontend.sync().unwrap();
        });
    }

    #[test]
    fn memory_is_described_with_its_files() {
        let spec = RegionSpec {
            guest_addr: 0x20_0000,
            size: 0x1000,
            mmap_offset: 0x1000,
            file_len: None,
        };
        let memory = GuestMemory::with_regions(&[RegionSpec::new(0, 0x2000), spec]);
        let expected: Vec<_> = memory.regions().iter().map(|r| describe(r)).collect();
        let peer = |stream: &UnixStream, message: Message, fds: Vec<OwnedFd>| {
            match message.request {
                VHOST_USER_SET_MEM_TABLE => {
                    assert_eq!(message.payload[..8], *[2u32, 0].as_bytes());
                    assert_eq!(message.payload[8..], *expected.as_bytes());
                    assert_eq!(fds.len(), 2);
                    let mut bytes = [0; 4];
                    rustix::io::pread(&fds[1], &mut bytes, 0x1ffc).unwrap();
                    assert_eq!(&bytes, b"last");
                }
                VHOST_USER_ADD_MEM_REG => {
                    assert_eq!(message.payload[8..], *expected[1].as_bytes());
                    assert_eq!(fds.len(), 1);
                }
                VHOST_USER_REM_MEM_REG => {
                    assert_eq!(message.payload[8..], *expected[1].as_bytes());
                    assert!(fds.is_empty());
                }
                number => reply(stream, number, &0u64.to_ne_bytes(), &[]),
            };
        };
        memory.write(0x20_0ffc, b"last");
        with_peer(peer, |frontend| {
            frontend.set_mem_table(&memory).unwrap();
            frontend.rem_mem_reg(&memory.regions()[1]).unwrap();
            frontend.add_mem_reg(&memory.regions()[1]).unwrap();
            frontend.sync().unwrap();
        });
    }

    #[test]
    fn replies_bring_structures_and_files() {
        let peer = |stream: &UnixStream, message: Message, fds: Vec<OwnedFd>| {
            let number = message.request;
            match number {
                VHOST_USER_GET_VRING_BASE => {
                    let state = VringState {
                        index: 1,
                        num: 0x8001_7fff,
                    };
                    reply(stream, number, state.as_bytes(), &[]);
                }
                VHOST_USER_GET_CONFIG if message.payload[0] == 0 => {
                    let mut payload = message.payload.clone();
                    payload[12..].copy_from_slice(b"conf");
                    reply(stream, number, &payload, &[]);
                }
                VHOST_USER_GET_CONFIG => reply(stream, number, &[], &[]),
                VHOST_USER_GET_INFLIGHT_FD => {
                    let mut inflight = Inflight::read_from_bytes(&message.payload).unwrap();
                    inflight.mmap_size = 0x1000;
                    let event = EventFd::new();
                    reply(stream, number, inflight.as_bytes(), &[event.as_fd()]);
                }
                VHOST_USER_SET_LOG_BASE => {
                    assert_eq!(fds.len(), 1);
                    reply(stream, number, &message.payload, &[]);
                }
                VHOST_USER_SET_DEVICE_STATE_FD => {
                    rustix::io::write(&fds[0], b"state").unwrap();
                    reply(stream, number, &0x100u64.to_ne_bytes(), &[]);
                }
                VHOST_USER_SET_VRING_KICK => match fds.as_slice() {
                    [] => assert_eq!(message.payload, 0x103u64.as_bytes()),
                    _ => assert_eq!(message.payload, 3u64.as_bytes()),
                },
                VHOST_USER_SET_BACKEND_REQ_FD => {
                    let mut change = Message::new(VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, &[]);
                    change.flags |= FLAG_NEED_REPLY;
                    let channel = UnixStream::from(fds.into_iter().next().unwrap());
                    codec::send(&channel, &change.to_bytes(), &[]).unwrap();
                    let (ack, _) = codec::recv_message(&channel).unwrap();
                    assert_eq!(ack.u64().unwrap(), 0);
                }
                _ => {}
            }
        };
        with_peer(peer, |mut frontend| {
            assert_eq!(frontend.get_vring_base(1).unwrap(), 0x8001_7fff);
            assert!(matches!(
                frontend.get_vring_base(0),
                Err(Error::Protocol(_))
            ));
            assert_eq!(frontend.get_config(0, 4).unwrap(), b"conf");
            assert!(frontend.get_config(1, 4).unwrap_err().is_nack());
            let (inflight, _) = frontend.get_inflight_fd(2, 64).unwrap();
            assert_eq!((inflight.mmap_size, inflight.queue_size), (0x1000, 64));
            let log = bits(&[VHOST_USER_PROTOCOL_F_LOG_SHMFD]);
            frontend.set_protocol_features(log).unwrap();
            let event = EventFd::new();
            frontend
                .set_log_base(&LogArea::default(), event.as_fd())
                .unwrap();
            let state = frontend.save_device_state().unwrap();
            let mut bytes = [0; 8];
            assert_eq!(rustix::io::read(&state, &mut bytes), Ok(5));
            frontend.set_vring_kick(3, Some(event.as_fd())).unwrap();
            frontend.set_vring_kick(3, None).unwrap();
            let channel = frontend.set_backend_req_fd().unwrap();
            channel.expect_config_change().unwrap();
        });
    }

    #[test]
    fn a_silent_or_gone_peer_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let frontend = Frontend::new(ours);
        frontend.set_timeout(Duration::from_millis(1));
        assert!(frontend.get_features().unwrap_err().is_timeout());
        assert!(frontend.expect_closed().unwrap_err().is_timeout());
        reply(&theirs, VHOST_USER_GET_STATUS, &[], &[]);
        assert!(matches!(frontend.get_features(), Err(Error::Protocol(_))));
        drop(theirs);
        frontend.expect_closed().unwrap();
        assert!(frontend.set_owner().unwrap_err().is_closed());
    }
}
