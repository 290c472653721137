//! File descriptors that are no good, or that keep whoever uses them asleep.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::io::{Errno, write};
use rustix::pipe::pipe;
use vhost_device_backend::{End, Error, Patience};
use vhost_device_driver::codec::{self, Message};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{EventFd, Frontend};

use crate::common::*;

/// Sets kick, call or error fd of queue 0.
type Set = fn(&Frontend, BorrowedFd<'_>) -> vhost_device_driver::Result<()>;

const SETTERS: [Set; 3] = [
    |frontend, fd| frontend.set_vring_kick(0, Some(fd)),
    |frontend, fd| frontend.set_vring_call(0, Some(fd)),
    |frontend, fd| frontend.set_vring_err(0, Some(fd)),
];

#[test]
fn v3_kick_call_and_err_that_are_neither_eventfds_nor_pipes_are_refused() {
    let (mut guest, session) = running();
    // The session's own socket, and one that has it in its queue.
    let own: OwnedFd = guest.frontend.stream().try_clone().unwrap().into();
    let (inner, outer) = UnixStream::pair().unwrap();
    codec::send(&inner, b"x", &[own.as_fd()]).unwrap();
    let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
    let bad = [own, outer.into(), file];
    for set in SETTERS {
        for fd in &bad {
            let outcome = set(&guest.frontend, fd.as_fd());
            assert!(outcome.unwrap_err().is_nack());
            // The old one is in force.
            guest.echo_all();
        }
    }
    drop((guest, bad, inner));
    session.left();
}

#[test]
fn v3_pipes_are_taken_for_kick_call_and_err() {
    let (mut guest, session) = running();
    let (reader, writer) = pipe().unwrap();
    let frontend = &guest.frontend;
    // The end that is of no use.
    frontend
        .set_vring_kick(0, Some(writer.as_fd()))
        .unwrap_err();
    frontend
        .set_vring_call(0, Some(reader.as_fd()))
        .unwrap_err();
    frontend.set_vring_err(0, Some(reader.as_fd())).unwrap_err();
    frontend.set_vring_err(0, Some(writer.as_fd())).unwrap();
    frontend.set_vring_call(0, Some(writer.as_fd())).unwrap();
    let (kicked, kick) = pipe().unwrap();
    frontend.set_vring_kick(0, Some(kicked.as_fd())).unwrap();
    guest.submit(0, Command::Echo);
    let one = 1_u64.to_ne_bytes();
    std::fs::File::from(kick.try_clone().unwrap())
        .write_all(&one)
        .unwrap();
    let mut call = [0; 8];
    let mut calls = std::fs::File::from(reader);
    calls.read_exact(&mut call).unwrap();
    assert_eq!(call, one);
    guest.queues[0].spin_used(DEADLINE);
    session.stop();
}

/// A guest whose session has no patience.
fn impatient() -> (Guest, Session) {
    let (stream, session) = Session::start(Setup {
        patience: Patience(Duration::from_millis(50)),
        ..Setup::default()
    });
    (Guest::connect(stream, options()), session)
}

fn stalled(session: Session) {
    let end = session.end();
    assert!(matches!(end, Err(Error::Stalled(_))), "{end:?}");
}

#[test]
fn v7_half_a_message_with_the_session_s_own_socket_does_not_keep_it_open() {
    for len in [1, 4, 12, 16] {
        let (guest, session) = impatient();
        let message = Message::new(VHOST_USER_SET_VRING_CALL, &[0; 8]).to_bytes();
        let own = guest.frontend.stream().try_clone().unwrap();
        guest
            .frontend
            .send_raw(&message[..len], &[own.as_fd()])
            .unwrap();
        drop((guest, own));
        stalled(session);
    }
}

#[test]
fn v7_answers_that_nobody_reads_do_not_keep_a_session_open() {
    let (guest, session) = impatient();
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]);
    let own = guest.frontend.stream().try_clone().unwrap();
    own.set_nonblocking(true).unwrap();
    while guest.frontend.send_message(&get, &[]).is_ok() {}
    // Whatever room comes up is taken by a message with the socket itself.
    let call = Message::new(VHOST_USER_SET_VRING_CALL, &[0; 8]);
    let start = Instant::now();
    while guest.frontend.send_message(&call, &[own.as_fd()]).is_err() && !session.is_finished() {
        assert!(start.elapsed() < DEADLINE);
    }
    drop((guest, own));
    stalled(session);
}

/// The next write sleeps.
fn fill(fd: impl AsFd) {
    let fd = fd.as_fd();
    let flags = fcntl_getfl(fd).unwrap();
    fcntl_setfl(fd, flags - OFlags::NONBLOCK).unwrap();
    write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
}

/// Has the session answer a request, for which it calls the driver next.
fn echo_and_call(guest: &mut Guest) {
    assert!(!guest.queues[0].ring.arm_calls());
    guest.submit(0, Command::Echo);
    guest.queues[0].kick();
    let start = Instant::now();
    // A look that turns off no calls.
    while !guest.queues[0].ring.has_used() {
        assert!(start.elapsed() < DEADLINE);
        thread::yield_now();
    }
}

/// Interrupts a session whose front-end has left, for as long as it lasts, as a daemon does.
fn interrupted(session: Session) {
    let start = Instant::now();
    while !session.is_finished() {
        assert!(start.elapsed() < DEADLINE, "the session does not end");
        session.interrupt();
        thread::yield_now();
    }
    // Whether it has seen that its front-end left, or could not answer it.
    let end = session.end();
    assert!(
        matches!(end, Ok(End::Disconnected) | Err(Error::Protocol(_))),
        "{end:?}"
    );
}

#[test]
fn v7_a_call_that_sleeps_is_interrupted_and_not_made_again() {
    let (mut guest, session) = running();
    guest.echo(0);
    guest.queues[0].take_calls();
    fill(&guest.queues[0].call);
    echo_and_call(&mut guest);
    session.wait_until_it_signals();
    drop(guest);
    interrupted(session);
}

#[test]
fn v7_an_error_report_that_sleeps_is_interrupted() {
    let (guest, session) = running();
    fill(&guest.queues[0].err);
    let index = guest.queues[0].ring.avail_idx();
    guest.queues[0].ring.set_avail_idx(index.wrapping_add(1000));
    guest.queues[0].kick();
    session.wait_until_it_signals();
    drop(guest);
    interrupted(session);
}

#[test]
fn v7_a_kick_on_the_driver_s_behalf_that_sleeps_is_interrupted() {
    let (mut guest, session) = running();
    // A FIFO that is open both ways, and full.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kick");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let open = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let kick = rustix::fs::open(&path, open, rustix::fs::Mode::empty()).unwrap();
    guest
        .frontend
        .set_vring_kick(0, Some(kick.as_fd()))
        .unwrap();
    guest.submit(0, Command::Keep);
    write(&kick, &1_u64.to_ne_bytes()).unwrap();
    session.wait_until(|record| record.kept == 1);
    while write(&kick, &[0; 8]) != Err(Errno::AGAIN) {}
    let flags = fcntl_getfl(&kick).unwrap();
    fcntl_setfl(&kick, flags - OFlags::NONBLOCK).unwrap();
    let state = [0_u32, 0];
    let payload: Vec<u8> = state.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let message = Message::new(VHOST_USER_GET_VRING_BASE, &payload);
    guest.frontend.send_message(&message, &[]).unwrap();
    session.wait_until_it_signals();
    drop((guest, kick));
    interrupted(session);
}

#[test]
fn an_eventfd_that_was_made_blocking_before_does_not_block() {
    let (mut guest, session) = running();
    let call = EventFd::new();
    fill(&call);
    guest
        .frontend
        .set_vring_call(0, Some(call.as_fd()))
        .unwrap();
    echo_and_call(&mut guest);
    session.stop();
}
