//! Front-ends that leave so that nobody should notice: the session's thread sleeps in a call on a
//! file descriptor of theirs, or their end of the connection lies in the daemon's own queue. Each
//! guest's socket serves the next front-end all the same, and nothing of the last one stays.

mod support;

use std::fs::read_to_string;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::write;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::process::Signal;
use support::{PROGRAM, options, request, submit};
use vhost_device_driver::codec::Message;
use vhost_device_driver::protocol::{VHOST_USER_GET_FEATURES, VHOST_USER_SET_VRING_CALL};
use vhost_device_driver::{Driver, Frontend};
use vhost_device_rig::{Daemon, wait_until};

/// How much guest memory the daemon has mapped.
fn mappings(daemon: &Daemon) -> usize {
    let maps = read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
    let memory = maps.lines().filter(|line| line.contains("guest-memory"));
    memory.count()
}

/// A guest with one region.
fn guest(daemon: &Daemon, socket: &str) -> Driver {
    let mut guest = daemon.guest(socket, options());
    request(&mut guest, 8);
    guest
}

/// The next write to this eventfd sleeps.
fn fill(eventfd: BorrowedFd<'_>) {
    let flags = fcntl_getfl(eventfd).unwrap();
    fcntl_setfl(eventfd, flags - OFlags::NONBLOCK).unwrap();
    write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
}

/// A guest whose session sleeps, as it calls its driver for an answer that is there.
fn sleeping(daemon: &Daemon, socket: &str) -> Driver {
    let mut guest = guest(daemon, socket);
    guest.queues[0].take_calls();
    fill(guest.queues[0].call.as_fd());
    assert!(!guest.queues[0].ring.arm_calls());
    submit(&mut guest, 8);
    wait_until(|| guest.queues[0].ring.has_used(), || daemon.log());
    guest
}

/// Puts an fd into the queue of a socket's peer, if that is open.
fn try_to_queue(socket: &UnixStream, fd: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    try_to_queue_with(socket, &[fd], SendFlags::NOSIGNAL)
}

fn try_to_queue_with(
    socket: &UnixStream,
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let bytes = [IoSlice::new(b"x")];
    sendmsg(socket, &bytes, &mut ancillary, flags)
}

fn queue(socket: &UnixStream, fd: BorrowedFd<'_>) {
    assert_eq!(try_to_queue(socket, fd), Ok(1));
}

/// `SET_VRING_CALL` for queue 0, with this fd.
fn send_call(guest: &Driver, fd: BorrowedFd<'_>) {
    let message = Message::new(VHOST_USER_SET_VRING_CALL, &[0; 8]);
    guest.frontend.send_message(&message, &[fd]).unwrap();
}

#[test]
fn v7_whatever_a_front_end_leaves_behind_the_next_one_is_served() {
    let daemon = PROGRAM.start(&["-c", "6"]);
    // Four bytes of a header, with its own end of the connection.
    let half = guest(&daemon, "s0");
    let socket = half.frontend.stream();
    half.frontend.send_raw(&[0; 4], &[socket.as_fd()]).unwrap();
    // The same as a call.
    let itself = guest(&daemon, "s1");
    send_call(&itself, itself.frontend.stream().as_fd());
    // A call that has the connection in its queue.
    let queued = guest(&daemon, "s2");
    let (inner, outer) = UnixStream::pair().unwrap();
    queue(&inner, queued.frontend.stream().as_fd());
    send_call(&queued, outer.as_fd());
    // A call that sleeps, also with the connection in the daemon's queue, in a whole message and in
    // half of one.
    let asleep = sleeping(&daemon, "s3");
    let asleep_itself = sleeping(&daemon, "s4");
    send_call(&asleep_itself, asleep_itself.frontend.stream().as_fd());
    let asleep_half = sleeping(&daemon, "s5");
    let socket = asleep_half.frontend.stream();
    asleep_half
        .frontend
        .send_raw(&[0; 4], &[socket.as_fd()])
        .unwrap();

    assert_eq!(mappings(&daemon), 6);
    drop((half, itself, queued, inner, outer));
    drop((asleep, asleep_itself, asleep_half));
    wait_until(|| mappings(&daemon) == 0, || daemon.log());
    for socket in ["s0", "s1", "s2", "s3", "s4", "s5"] {
        guest(&daemon, socket);
    }
    daemon.stop();
}

#[test]
fn v9_a_session_that_sleeps_does_not_hold_up_the_end() {
    let mut daemon = PROGRAM.start(&["-c", "2"]);
    let guests = ["s0", "s1"].map(|socket| sleeping(&daemon, socket));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.log().contains("does not end"), "{}", daemon.log());
    drop(guests);
}

/// A connection to somebody who does not read, and which takes its time to be closed; and that one.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 0x1_0000]).is_ok() {}
    set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    (ours, theirs)
}

/// Does something that the daemon sees at once when it is done: what is closed here is closed there
/// last.
fn at_once<T>(daemon: &Daemon, what: impl FnOnce() -> T) -> T {
    daemon.signal(Signal::STOP);
    let stopped = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let mut stats = tasks.map(|task| read_to_string(task.unwrap().path().join("stat")));
        stats.all(|stat| stat.unwrap().contains(") T "))
    };
    wait_until(stopped, || daemon.log());
    let done = what();
    daemon.signal(Signal::CONT);
    done
}

#[test]
fn v7_a_file_descriptor_that_is_not_closed_at_once_holds_up_nobody_else() {
    let daemon = PROGRAM.start(&["-c", "2"]);
    let (fd, _reader) = lingering();
    // In the queue of the connection, which nobody reads any more when it ends.
    let half = guest(&daemon, "s0");
    at_once(&daemon, || {
        half.frontend.send_raw(&[0; 4], &[fd.as_fd()]).unwrap();
        drop((half, fd));
    });
    wait_until(|| mappings(&daemon) == 0, || daemon.log());
    guest(&daemon, "s1");
    guest(&daemon, "s0");
    daemon.stop();
}

#[test]
fn v7_a_session_that_closes_what_is_not_closed_at_once_ends() {
    let daemon = PROGRAM.start(&[]);
    let (fd, _reader) = lingering();
    let refused = guest(&daemon, "s");
    at_once(&daemon, || {
        send_call(&refused, fd.as_fd());
        drop(fd);
    });
    let socket = refused.frontend.stream();
    refused
        .frontend
        .send_raw(&[0; 4], &[socket.as_fd()])
        .unwrap();
    drop(refused);
    wait_until(|| mappings(&daemon) == 0, || daemon.log());
    guest(&daemon, "s");
    daemon.stop();
}

#[test]
fn v9_what_is_not_closed_at_once_does_not_hold_up_the_end() {
    let mut daemon = PROGRAM.start(&["-c", "2"]);
    let (fd, _reader) = lingering();
    let half = guest(&daemon, "s0");
    let (refused_fd, _other_reader) = lingering();
    let refused = guest(&daemon, "s1");
    at_once(&daemon, || {
        half.frontend.send_raw(&[0; 4], &[fd.as_fd()]).unwrap();
        send_call(&refused, refused_fd.as_fd());
        drop((fd, refused_fd));
    });
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.log().contains("does not end"), "{}", daemon.log());
    drop((half, refused));
}

/// Whoever waits for a guest cannot keep the front-end that is served from being seen to leave.
#[test]
fn v7_front_ends_that_wait_do_not_keep_the_one_that_is_served() {
    let daemon = PROGRAM.start(&[]);
    let plain = SendFlags::NOSIGNAL;
    let urgent = plain | SendFlags::OOB;
    // Behind a byte that is out of band a peek sees nothing, nor what comes with one.
    for (count, before, flags) in [
        (1, None, plain),
        (3, None, plain),
        (40, None, plain),
        (3, None, urgent),
        (3, Some(urgent), plain),
    ] {
        let served = guest(&daemon, "s");
        let connect = |_| UnixStream::connect(daemon.path("s")).unwrap();
        let waiting: Vec<_> = (0..count).map(connect).collect();
        // Each has the next one's end in its queue, the last the first's, so that none is seen to
        // leave; and all have the end of the one that is served.
        let ends = waiting.iter().cycle().skip(1);
        for (socket, end) in waiting.iter().zip(ends) {
            let fds = [end.as_fd(), served.frontend.stream().as_fd()];
            // It may have been turned away already.
            if let Some(before) = before {
                let _ = send(socket, b"x", plain).and_then(|_| send(socket, b"y", before));
            }
            let _ = try_to_queue_with(socket, &fds, flags);
        }
        drop((served, waiting));
        wait_until(|| mappings(&daemon) == 0, || daemon.log());
    }
    guest(&daemon, "s");
    daemon.stop();
}

#[test]
fn v7_a_front_end_that_waits_is_served_when_the_one_before_has_left() {
    let daemon = PROGRAM.start(&[]);
    let served = guest(&daemon, "s");
    let next = Frontend::connect(daemon.path("s")).unwrap();
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]);
    next.send_message(&get, &[]).unwrap();
    daemon.wait_for_log("another front-end has come");
    // One that has come later and left, and one that has no business.
    drop(UnixStream::connect(daemon.path("s")).unwrap());
    let turned_away = UnixStream::connect(daemon.path("s")).unwrap();
    let (fd, _reader) = lingering();
    at_once(&daemon, || {
        queue(&turned_away, fd.as_fd());
        drop(fd);
    });
    daemon.wait_for_log("it has sent file descriptors before it was answered");
    Frontend::new(turned_away).expect_closed().unwrap();
    drop(served);
    next.recv_reply(VHOST_USER_GET_FEATURES).unwrap();
    daemon.stop();
}
