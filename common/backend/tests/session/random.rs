//! Any sequence of messages, good and bad, leaves a session that either goes on or has ended in
//! order: it never hangs, and never panics.

use std::os::fd::{AsFd, BorrowedFd};

use proptest::prelude::*;
use vhost_device_backend::{End, Error};
use vhost_device_driver::codec::Message;
use vhost_device_driver::frontend::describe;
use vhost_device_driver::guest::DEFAULT_GUEST_ADDR;
use vhost_device_driver::protocol::*;
use vhost_device_driver::{Buffer, EventFd, GuestMemory, Step};

use crate::common::*;

/// What a front-end and its guest may do next.
#[derive(Clone, Debug)]
enum Action {
    /// A step of a correct driver.
    Step(usize, Step),
    /// A message with the state of a vring.
    State(u32, u32, u32),
    /// Ring addresses, relative to the right ones.
    Addresses(usize, [i64; 3]),
    /// A message with a vring's file descriptor, or none.
    VringFd(u32, u64, bool),
    /// A second region comes or goes, this far from the first.
    Region(u32, u64),
    /// Any message, with an fd or without.
    Any(u32, u32, Vec<u8>, bool),
    /// A request with a buffer anywhere.
    Submit(usize, Buffer),
    /// A kick, with an available index from nowhere or as it is.
    Kick(usize, Option<u16>),
    /// The device answers a request that it keeps.
    Release,
}

fn action() -> impl Strategy<Value = Action> {
    use prop::sample::select;
    let queue = || 0..usize::from(QUEUES);
    let steps = [
        Step::Num,
        Step::Base,
        Step::Addr,
        Step::Call,
        Step::Kick,
        Step::Enable,
    ];
    let states = [
        VHOST_USER_SET_VRING_NUM,
        VHOST_USER_SET_VRING_BASE,
        VHOST_USER_GET_VRING_BASE,
        VHOST_USER_SET_VRING_ENABLE,
    ];
    let fds = [
        VHOST_USER_SET_VRING_KICK,
        VHOST_USER_SET_VRING_CALL,
        VHOST_USER_SET_VRING_ERR,
    ];
    let regions = [VHOST_USER_ADD_MEM_REG, VHOST_USER_REM_MEM_REG];
    let near = || prop_oneof![4 => Just(0), 2 => -128..128i64, 1 => any::<i64>()];
    let flags = prop_oneof![8 => Just(FLAG_VERSION_1 | FLAG_NEED_REPLY), 1 => 0..16u32];
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    let buffer =
        (0..2 * MEMORY_SIZE, 0..0x100u32, any::<bool>()).prop_map(|(at, len, writable)| Buffer {
            addr: DEFAULT_GUEST_ADDR + at,
            len,
            writable,
        });
    prop_oneof![
        12 => (queue(), select(steps.to_vec())).prop_map(|(q, step)| Action::Step(q, step)),
        4 => (select(states.to_vec()), 0..u32::from(QUEUES), 0..9u32)
            .prop_map(|(request, index, num)| Action::State(request, index, num)),
        3 => (queue(), [near(), near(), near()]).prop_map(|(q, by)| Action::Addresses(q, by)),
        3 => (select(fds.to_vec()), 0..4u64, any::<bool>())
            .prop_map(|(request, index, fd)| Action::VringFd(request, index, fd)),
        3 => (select(regions.to_vec()), 0..3u64)
            .prop_map(|(request, at)| Action::Region(request, at * MEMORY_SIZE / 2)),
        // All but GET_FEATURES, which the test uses itself.
        1 => (2..50u32, flags, payload, any::<bool>())
            .prop_map(|(request, flags, payload, fd)| Action::Any(request, flags, payload, fd)),
        8 => (queue(), buffer).prop_map(|(q, buffer)| Action::Submit(q, buffer)),
        8 => (queue(), prop::option::weighted(0.1, any::<u16>()))
            .prop_map(|(q, index)| Action::Kick(q, index)),
        2 => Just(Action::Release),
        1 => Just(Action::Any(VHOST_USER_RESET_DEVICE, FLAG_VERSION_1, Vec::new(), false)),
    ]
}

/// Does it. What is sent may be refused, or nobody be there for it any more.
fn act(guest: &mut Guest, session: &Session, other: &GuestMemory, action: Action) {
    let event = EventFd::new();
    let send = |message: &Message, fds: &[BorrowedFd<'_>]| {
        let _ = guest.frontend.send_message(message, fds);
    };
    let fd = |with: bool| with.then(|| event.as_fd());
    match action {
        Action::Step(queue, step) => {
            let _ = guest.queue_step(queue, step);
        }
        Action::State(request, index, num) => {
            let payload = [index, num].map(u32::to_ne_bytes).concat();
            send(&Message::new(request, &payload), &[]);
        }
        Action::Addresses(queue, [descriptor, used, available]) => {
            let mut addr = guest.vring_addr(queue);
            addr.descriptor = addr.descriptor.wrapping_add_signed(descriptor);
            addr.used = addr.used.wrapping_add_signed(used);
            addr.available = addr.available.wrapping_add_signed(available);
            let _ = guest.frontend.set_vring_addr(&addr);
        }
        Action::VringFd(request, index, with) => {
            let nofd = if with { 0 } else { VHOST_USER_VRING_NOFD_MASK };
            let payload = (index | nofd).to_ne_bytes();
            send(&Message::new(request, &payload), fd(with).as_slice());
        }
        Action::Region(request, at) => {
            let mut region = describe(&other.regions()[0]);
            region.guest_phys_addr += at;
            let outcome = match request {
                VHOST_USER_ADD_MEM_REG => {
                    let fds = [other.regions()[0].fd()];
                    guest.frontend.add_mem_reg_raw(&region, &fds)
                }
                _ => guest.frontend.rem_mem_reg_raw(&region, &[]),
            };
            let _ = outcome;
        }
        Action::Any(request, flags, payload, with) => {
            let mut message = Message::new(request, &payload);
            message.flags = flags;
            send(&message, fd(with).as_slice());
        }
        Action::Submit(queue, buffer) => {
            let _ = guest.queues[queue].submit(&[buffer]);
        }
        Action::Kick(queue, index) => {
            if let Some(index) = index {
                guest.queues[queue].ring.set_avail_idx(index);
            }
            guest.queues[queue].kick();
        }
        Action::Release => session.release.signal(),
    }
}

/// Whether the session answers still. It may say more before that.
fn goes_on(guest: &Guest) -> bool {
    let get = Message::new(VHOST_USER_GET_FEATURES, &[]);
    let mut outcome = guest.frontend.send_message(&get, &[]);
    while outcome.is_ok() {
        match guest.frontend.recv_message() {
            Ok((reply, _)) if reply.request == VHOST_USER_GET_FEATURES => return true,
            answer => outcome = answer.map(drop),
        }
    }
    let why = outcome.unwrap_err();
    assert!(why.is_closed(), "{why}");
    false
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_of_messages_hangs_a_session(
        actions in prop::collection::vec(action(), 1..100)
    ) {
        let (mut guest, session) = running();
        let other = GuestMemory::new(&[(DEFAULT_GUEST_ADDR + MEMORY_SIZE / 2, MEMORY_SIZE)]);
        guest.frontend.set_need_reply(false);
        for action in actions {
            act(&mut guest, &session, &other, action);
            if !goes_on(&guest) {
                let end = session.end();
                prop_assert!(matches!(end, Err(Error::Protocol(_))), "{end:?}");
                return Ok(());
            }
        }
        drop(guest);
        prop_assert_eq!(session.end().unwrap(), End::Disconnected);
    }
}
