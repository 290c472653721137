//! Connections leave nothing behind: alone in its process, as it counts what the process has.

#[expect(dead_code, reason = "most helpers are for the other tests")]
mod common;

use std::fs::{read_dir, read_to_string};
use std::os::fd::AsFd;
use std::thread::yield_now;
use std::time::Instant;

use vhost_device_driver::EventFd;
use vhost_device_driver::codec::{MAX_FDS, Message};
use vhost_device_driver::guest::SESSION_STEPS;
use vhost_device_driver::protocol::VHOST_USER_SET_VRING_KICK;

use common::*;

/// What a process can run out of.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    fds: usize,
    threads: usize,
    guest_mappings: usize,
}

fn held() -> Held {
    let entries = |path| read_dir(path).unwrap().count();
    Held {
        fds: entries("/proc/self/fd"),
        threads: entries("/proc/self/task"),
        guest_mappings: mappings(|line| line.contains("guest-memory")),
    }
}

fn mappings(wanted: impl Fn(&str) -> bool) -> usize {
    let maps = read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| wanted(line)).count()
}

/// One connection, that ends in one of many ways.
fn connect_and_leave(way: usize) {
    let event = EventFd::new();
    match way % 6 {
        // In order, by either side.
        0 => {
            let (mut guest, session) = running();
            guest.echo_all();
            drop(guest);
            session.left();
        }
        1 => {
            let (mut guest, session) = running_with(options().mem_slots().track_inflight());
            guest.echo_all();
            session.stop();
        }
        // With requests that the device keeps.
        2 => {
            let (mut guest, session) = running();
            guest.submit(0, Command::Keep);
            guest.queues[0].kick();
            session.wait_until(|record| record.kept == 1);
            drop(guest);
            session.left();
        }
        // Half-way up.
        3 => {
            let (mut guest, session) = prepared(options());
            guest.run(&SESSION_STEPS).unwrap();
            drop(guest);
            session.left();
        }
        // With file descriptors that belong to nothing: in half a message, and too many.
        4 => {
            let (frontend, session) = frontend();
            frontend.send_raw(&[1; 10], &[event.as_fd(); 8]).unwrap();
            drop(frontend);
            assert!(session.end().is_err());
        }
        _ => {
            let (frontend, session) = negotiated();
            let message = Message::new(VHOST_USER_SET_VRING_KICK, &[0; 8]);
            let fds = [event.as_fd(); MAX_FDS];
            frontend.send_message(&message, &fds).unwrap();
            session.broken();
        }
    }
}

#[test]
fn v7_a_thousand_connections_leave_nothing_behind() {
    // What is made once and stays: the allocator's arenas, the test's own threads.
    (0..60).for_each(connect_and_leave);
    let (before, mapped_before) = (held(), mappings(|_| true));
    (0..1000).for_each(connect_and_leave);
    // A thread that was joined may be listed a moment longer.
    let start = Instant::now();
    while held() != before && start.elapsed() < DEADLINE {
        yield_now();
    }
    assert_eq!(held(), before);
    let grown = mappings(|_| true).saturating_sub(mapped_before);
    assert!(grown < 100, "{grown} mappings more after 1000 connections");
}
