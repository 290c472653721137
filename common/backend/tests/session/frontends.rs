//! What front-ends send, in their order, written down from what they do: how they begin, how they
//! bring the device up, use it, take it back at a reset of the guest, and bring it up again.
//!
//! | front-end | what is special |
//! |---|---|
//! | QEMU | keeps its connection when the device is taken out and put back, and takes no memory back |
//! | crosvm | asks for no answers; sends features that have not changed once; reads a configuration that was not negotiated |
//! | Cloud Hypervisor | asks for every answer; any error about the configuration ends it; connects again |
//! | libkrun | resets by disabling; SET_OWNER with each activation; base 0, one call for all queues |
//! | alioth | asks for every answer, of every message; err before SET_OWNER, kick before the rest; base 0 |

use vhost_device_driver::codec::Message;
use vhost_device_driver::guest::{Options, Step};
use vhost_device_driver::protocol::*;
use vhost_device_driver::{EventFd, PackedRing, Ring, SplitRing};

use crate::common::*;

const PROTOCOL_FEATURES: u64 = bits(&[VHOST_USER_F_PROTOCOL_FEATURES]);

/// A guest of a new connection, and its session. Nothing was sent.
fn machine<R: Ring>(options: Options) -> (RingGuest<R>, Session) {
    machine_with(Setup::default(), options)
}

fn machine_with<R: Ring>(setup: Setup, options: Options) -> (RingGuest<R>, Session) {
    let (stream, session) = Session::start(setup);
    (RingGuest::prepare(stream, options), session)
}

impl<R: Ring> RingGuest<R> {
    /// Takes one step for all queues.
    fn each(&self, step: Step) {
        for queue in 0..self.queues.len() {
            self.queue_step(queue, step).unwrap();
        }
    }

    /// Takes the steps for one queue after the other.
    fn one_by_one(&self, steps: &[Step]) {
        for queue in 0..self.queues.len() {
            for step in steps {
                self.queue_step(queue, *step).unwrap();
            }
        }
    }

    fn enable_all(&self, enable: bool) {
        for queue in 0..self.queues.len() as u32 {
            self.frontend.set_vring_enable(queue, enable).unwrap();
        }
    }

    /// The guest's driver is gone, and its next one begins: with new rings, at other places.
    fn reboot(&mut self) {
        self.arena.clear();
        for queue in 0..self.queues.len() {
            self.forget(queue);
            let size = self.queues[queue].ring.size();
            let place = self.arena.alloc_in(0, R::bytes(size), 0x1000);
            let event_idx = self.queues[queue].ring.event_idx();
            let layout = R::place_at(place, size);
            self.queues[queue].ring = R::create(&self.memory, layout, size, event_idx);
        }
    }

    /// Every queue works, and is called and kicked.
    fn works(&mut self) {
        for _ in 0..3 {
            self.echo_all();
        }
    }
}

/// A read of the configuration as the front-end's own message: its answer's bytes.
fn read_config<R>(
    guest: &RingGuest<R>,
    offset: u32,
    size: u32,
    flags: u32,
    need_reply: bool,
) -> Vec<u8> {
    let head = [offset, size, flags].map(u32::to_ne_bytes).concat();
    let mut message = Message::new(
        VHOST_USER_GET_CONFIG,
        &[head, vec![0; size as usize]].concat(),
    );
    if need_reply {
        message.flags |= FLAG_NEED_REPLY;
    }
    guest.frontend.send_message(&message, &[]).unwrap();
    let (reply, _) = guest.frontend.recv_reply(VHOST_USER_GET_CONFIG).unwrap();
    reply.payload.get(12..).unwrap_or_default().to_vec()
}

/// What the device has, with zeros behind.
fn config(offset: usize, size: usize) -> Vec<u8> {
    let mut space = CONFIG.to_vec();
    space.resize(offset + size, 0);
    space[offset..offset + size].to_vec()
}

mod qemu {
    use super::*;

    /// The device is plugged in.
    fn plug<R: Ring>(guest: &mut RingGuest<R>) {
        let frontend = &mut guest.frontend;
        frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let known = bits(&[
            VHOST_USER_PROTOCOL_F_MQ,
            VHOST_USER_PROTOCOL_F_LOG_SHMFD,
            VHOST_USER_PROTOCOL_F_REPLY_ACK,
            VHOST_USER_PROTOCOL_F_CONFIG,
            VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
            VHOST_USER_PROTOCOL_F_RESET_DEVICE,
        ]);
        frontend.set_protocol_features(protocol & known).unwrap();
        // Answers are asked for where memory changes, and not else.
        frontend.set_need_reply(false);
        frontend.get_queue_num().unwrap();
        frontend.get_max_mem_slots().unwrap();
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        guest.one_by_one(&[Step::Call, Step::Err]);
        assert_eq!(read_config(guest, 0, 24, 0, false), config(0, 24));
    }

    /// The guest's driver is ready. The memory is what QEMU has not told the back-end of yet: all
    /// of it after the device was plugged in.
    fn start<R: Ring>(guest: &mut RingGuest<R>, features: u64, is_new: bool) {
        guest.set_features(features).unwrap();
        if is_new {
            guest.frontend.set_need_reply(true);
            for region in guest.memory.regions() {
                guest.frontend.add_mem_reg(region).unwrap();
            }
            guest.frontend.set_need_reply(false);
        }
        guest.one_by_one(&[Step::Num, Step::Base, Step::Addr, Step::Kick, Step::Call]);
        guest.each(Step::Enable);
    }

    fn stop<R: Ring>(guest: &RingGuest<R>) {
        for queue in 0..guest.queues.len() {
            guest.stop(queue).unwrap();
        }
    }

    /// `device_del` and `device_add` on one connection, with resets of the guest between.
    fn devices_come_and_go<R: Ring>() {
        let (mut guest, session) = machine::<R>(options().track_inflight());
        let kind = u64::from(R::PACKED) << VIRTIO_F_RING_PACKED;
        let event_idx = bits(&[VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC]);
        let features =
            bits(&[VIRTIO_F_VERSION_1]) | event_idx | DEVICE_FEATURES | PROTOCOL_FEATURES | kind;
        for _ in 0..20 {
            plug(&mut guest);
            for boot in 0..3 {
                start(&mut guest, features, boot == 0);
                guest.works();
                let kept = guest.submit(0, Command::Keep);
                guest.queues[0].notify();
                session.wait_until(|record| record.kept == 1);
                stop(&guest);
                assert_eq!(session.record(|record| record.kept), 0, "of {kept}");
                guest.reboot();
            }
        }
        session.stop();
    }

    #[test]
    fn v14_devices_come_and_go_on_one_connection() {
        devices_come_and_go::<SplitRing>();
        devices_come_and_go::<PackedRing>();
    }
}

mod crosvm {
    use super::*;

    fn connect(guest: &mut RingGuest<SplitRing>) {
        let frontend = &mut guest.frontend;
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let known = bits(&[
            VHOST_USER_PROTOCOL_F_CONFIG,
            VHOST_USER_PROTOCOL_F_MQ,
            VHOST_USER_PROTOCOL_F_BACKEND_REQ,
            VHOST_USER_PROTOCOL_F_DEVICE_STATE,
            VHOST_USER_PROTOCOL_F_REPLY_ACK,
        ]);
        frontend.set_protocol_features(protocol & known).unwrap();
        // REPLY_ACK is for what the back-end sends.
        frontend.set_need_reply(false);
        assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
    }

    fn activate(guest: &RingGuest<SplitRing>) {
        guest.frontend.set_mem_table(&guest.memory).unwrap();
        guest.one_by_one(&[
            Step::Num,
            Step::Addr,
            Step::Base,
            Step::Call,
            Step::Kick,
            Step::Enable,
        ]);
    }

    /// Disables and stops each queue: the bases.
    fn deactivate(guest: &RingGuest<SplitRing>) -> Vec<u32> {
        (0..guest.queues.len())
            .map(|queue| {
                guest
                    .frontend
                    .set_vring_enable(queue as u32, false)
                    .unwrap();
                guest.stop(queue).unwrap()
            })
            .collect()
    }

    #[test]
    fn c4_crosvm_sends_features_that_have_not_changed_once() {
        // The longest rings.
        let (mut guest, session) = machine(Options::new(&[0x8000; QUEUES as usize]));
        connect(&mut guest);
        let features = bits(&[VIRTIO_F_VERSION_1, VIRTIO_F_EVENT_IDX]) | DEVICE_FEATURES;
        guest.set_features(features | PROTOCOL_FEATURES).unwrap();
        for _ in 0..5 {
            activate(&guest);
            guest.works();
            // Put to sleep and woken: each queue goes on where it was.
            let bases = deactivate(&guest);
            guest.frontend.set_mem_table(&guest.memory).unwrap();
            for (queue, base) in (0..).zip(bases) {
                guest.queue_step(queue, Step::Num).unwrap();
                guest.queue_step(queue, Step::Addr).unwrap();
                guest.frontend.set_vring_base(queue as u32, base).unwrap();
                for step in [Step::Call, Step::Kick, Step::Enable] {
                    guest.queue_step(queue, step).unwrap();
                }
            }
            guest.works();
            deactivate(&guest);
            guest.reboot();
        }
        session.stop();
    }

    #[test]
    fn v12_crosvm_reads_and_writes_a_configuration_that_was_not_negotiated() {
        let setup = Setup {
            config: &[],
            ..Setup::default()
        };
        let (mut guest, session) = machine_with(setup, options());
        connect(&mut guest);
        assert!(
            !guest
                .frontend
                .has_protocol_feature(VHOST_USER_PROTOCOL_F_CONFIG)
        );
        for size in [1, 4, 8, 256] {
            // It wants the fields that can be written.
            assert_eq!(read_config(&guest, 0, size, 1, false), []);
            guest
                .frontend
                .set_config(0, 0, &vec![1; size as usize])
                .unwrap();
        }
        let features = bits(&[VIRTIO_F_VERSION_1, VIRTIO_F_EVENT_IDX]) | DEVICE_FEATURES;
        guest.set_features(features | PROTOCOL_FEATURES).unwrap();
        activate(&guest);
        guest.works();
        session.stop();
    }
}

mod cloud_hypervisor {
    use super::*;

    /// No feature of the device's own, and no packed rings.
    const FEATURES: u64 = bits(&[
        VIRTIO_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_F_VERSION_1,
        VIRTIO_F_IN_ORDER,
        VHOST_USER_F_PROTOCOL_FEATURES,
    ]);

    const PROTOCOL: u64 = bits(&[
        VHOST_USER_PROTOCOL_F_CONFIG,
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
        VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
        VHOST_USER_PROTOCOL_F_LOG_SHMFD,
    ]);

    fn connect(guest: &mut RingGuest<SplitRing>) {
        let frontend = &mut guest.frontend;
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        assert_eq!(
            frontend.get_protocol_features().unwrap() & PROTOCOL,
            PROTOCOL
        );
        // From here on each message asks for its answer.
        frontend.set_protocol_features(PROTOCOL).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
    }

    fn set_up(guest: &mut RingGuest<SplitRing>) {
        guest.set_features(FEATURES).unwrap();
        guest.frontend.set_mem_table(&guest.memory).unwrap();
        guest.each(Step::Num);
        guest.run(&[Step::Inflight]).unwrap();
        for queue in 0..guest.queues.len() {
            guest.queue_step(queue, Step::Addr).unwrap();
            // The available index of the moment.
            let base = guest.queues[queue].ring.avail_idx();
            let frontend = &guest.frontend;
            frontend.set_vring_base(queue as u32, base.into()).unwrap();
            guest.queue_step(queue, Step::Call).unwrap();
            guest.queue_step(queue, Step::Kick).unwrap();
        }
        guest.enable_all(true);
    }

    fn reset(guest: &RingGuest<SplitRing>) {
        for queue in 0..guest.queues.len() {
            let frontend = &guest.frontend;
            frontend.set_vring_enable(queue as u32, false).unwrap();
            guest.stop(queue).unwrap();
        }
    }

    #[test]
    fn v2_cloud_hypervisor_resets_pauses_and_connects_again() {
        let (mut guest, mut session) = machine(options().track_inflight());
        connect(&mut guest);
        for _ in 0..5 {
            set_up(&mut guest);
            guest.works();
            guest.enable_all(false);
            let id = guest.submit(0, Command::Echo);
            guest.queues[0].kick();
            guest.enable_all(true);
            assert_eq!(guest.finish(0), (id, true));
            reset(&guest);
            // Each activation has a region of its own.
            guest.inflight = None;
            guest.reboot();
        }
        set_up(&mut guest);
        guest.works();
        // The back-end dies with a request, and the next one gets the region.
        let kept = guest.submit(1, Command::Keep);
        guest.queues[1].notify();
        session.wait_until(|record| record.kept == 1);
        let (stream, next) = Session::start(Setup::default());
        guest.frontend = vhost_device_driver::Frontend::new(stream);
        session.left();
        session = next;
        guest.frontend.set_owner().unwrap();
        guest.frontend.get_features().unwrap();
        guest.frontend.set_protocol_features(PROTOCOL).unwrap();
        set_up(&mut guest);
        session.wait_until(|record| record.kept == 1);
        session.release.signal();
        assert_eq!(guest.finish(1), (kept, true));
        guest.works();
        session.stop();
    }

    #[test]
    fn v12_cloud_hypervisor_reads_and_writes_anywhere() {
        let (mut guest, session) = machine(options());
        connect(&mut guest);
        // An error would end it.
        for offset in [0, 1, 16, 19, 20, 200, 255, 256, 4080] {
            for size in [1, 2, 4, 8] {
                let bytes = guest.frontend.get_config(offset, size).unwrap();
                assert_eq!(bytes, config(offset as usize, size as usize));
                let written = vec![0xff; size as usize];
                guest.frontend.set_config(offset, 1, &written).unwrap();
            }
        }
        assert_eq!(guest.frontend.get_config(0, 256).unwrap(), config(0, 256));
        set_up(&mut guest);
        guest.works();
        session.stop();
    }
}

mod libkrun {
    use super::*;

    fn connect<R: Ring>(guest: &mut RingGuest<R>) -> u64 {
        let frontend = &mut guest.frontend;
        let offered = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let known = bits(&[VHOST_USER_PROTOCOL_F_CONFIG, VHOST_USER_PROTOCOL_F_MQ]);
        frontend.set_protocol_features(protocol & known).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
        assert_eq!(read_config(guest, 0, 8, 0, false), config(0, 8));
        // Whatever the guest takes of it: all but what is no feature of VIRTIO.
        offered
    }

    fn activate<R: Ring>(guest: &mut RingGuest<R>, features: u64) {
        guest.frontend.set_owner().unwrap();
        guest.frontend.set_mem_table(&guest.memory).unwrap();
        guest.set_features(features).unwrap();
        // One for all queues.
        let call = EventFd::new();
        for queue in &mut guest.queues {
            queue.call = call.duplicate().unwrap();
        }
        for queue in 0..guest.queues.len() {
            guest.queue_step(queue, Step::Num).unwrap();
            guest.frontend.set_vring_base(queue as u32, 0).unwrap();
            for step in [Step::Addr, Step::Kick, Step::Call, Step::Enable] {
                guest.queue_step(queue, step).unwrap();
            }
        }
    }

    fn activates_over_and_over<R: Ring>() {
        let (mut guest, session) = machine::<R>(options());
        let offered = connect(&mut guest);
        let kind = bits(&[VIRTIO_F_RING_PACKED]);
        let features = bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_F_EVENT_IDX,
            VIRTIO_F_INDIRECT_DESC,
        ]) | DEVICE_FEATURES
            | PROTOCOL_FEATURES
            | if R::PACKED { offered & kind } else { 0 };
        for boot in 0..10 {
            activate(&mut guest, features);
            // Buffers that were there before the first kick are no reason to see more than them.
            assert_eq!(session.record(|record| record.executed.len()), 9 * boot);
            guest.works();
            let kept = guest.submit(0, Command::Keep);
            guest.queues[0].notify();
            session.wait_until(|record| record.kept == 1);
            // Its reset.
            guest.enable_all(false);
            settle(&guest.frontend);
            assert_eq!(session.record(|record| record.kept), 0, "of {kept}");
            guest.reboot();
        }
        session.stop();
    }

    #[test]
    fn v14_libkrun_says_set_owner_with_each_activation() {
        activates_over_and_over::<SplitRing>();
    }

    #[test]
    fn v15_libkrun_begins_packed_rings_at_base_0() {
        activates_over_and_over::<PackedRing>();
    }
}

mod alioth {
    use super::*;

    /// What it demands of a back-end.
    const PROTOCOL: u64 = bits(&[
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
        VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        VHOST_USER_PROTOCOL_F_CONFIG,
    ]);

    /// Every message asks for an answer, even one that has an answer of its own.
    fn ask<R>(guest: &RingGuest<R>, request: u32) -> u64 {
        let mut message = Message::new(request, &[]);
        message.flags |= FLAG_NEED_REPLY;
        guest.frontend.send_message(&message, &[]).unwrap();
        let (reply, _) = guest.frontend.recv_reply(request).unwrap();
        reply.u64().unwrap()
    }

    fn connect<R: Ring>(guest: &mut RingGuest<R>) -> u64 {
        let offered = ask(guest, VHOST_USER_GET_FEATURES);
        let protocol = ask(guest, VHOST_USER_GET_PROTOCOL_FEATURES);
        assert_eq!(protocol & PROTOCOL, PROTOCOL);
        guest.frontend.set_need_reply(true);
        guest.frontend.set_protocol_features(PROTOCOL).unwrap();
        assert_eq!(ask(guest, VHOST_USER_GET_QUEUE_NUM), u64::from(QUEUES));
        guest.each(Step::Err);
        guest.frontend.set_owner().unwrap();
        for region in guest.memory.regions() {
            guest.frontend.add_mem_reg(region).unwrap();
        }
        for offset in 0..8 {
            let read = read_config(guest, offset, 4, 0, true);
            assert_eq!(read, config(offset as usize, 4));
        }
        offered
    }

    fn activate<R: Ring>(guest: &mut RingGuest<R>, features: u64) {
        guest.set_features(features).unwrap();
        guest.each(Step::Kick);
        for queue in 0..guest.queues.len() {
            guest.queue_step(queue, Step::Call).unwrap();
            guest.queue_step(queue, Step::Num).unwrap();
            guest.frontend.set_vring_base(queue as u32, 0).unwrap();
            guest.queue_step(queue, Step::Addr).unwrap();
            guest.queue_step(queue, Step::Enable).unwrap();
        }
    }

    fn activates_over_and_over<R: Ring>() {
        let (mut guest, session) = machine::<R>(options());
        let offered = connect(&mut guest);
        let mut features = offered & !bits(&[VHOST_F_LOG_ALL]);
        if !R::PACKED {
            features &= !bits(&[VIRTIO_F_RING_PACKED]);
        }
        for boot in 0..10 {
            activate(&mut guest, features);
            // An error of a ring is heard of, at each activation.
            let index = guest.queues[0].ring.base();
            guest.works();
            if R::PACKED && boot % 2 == 0 {
                // They end where the second round begins: the next base is no other.
                guest.echo_all();
            }
            if !R::PACKED {
                guest.queues[0].ring.disturb(index as u16 + 1000);
                guest.kick_and_settle(0);
                assert_ne!(guest.queues[0].err.take(), 0, "{boot}");
            }
            // Its reset.
            guest.enable_all(false);
            settle(&guest.frontend);
            guest.reboot();
        }
        assert_eq!(session.record(|record| record.resets), 9);
        session.stop();
    }

    #[test]
    fn v3_alioth_gives_an_err_fd_once_and_kicks_before_addresses() {
        activates_over_and_over::<SplitRing>();
    }

    #[test]
    fn v15_alioth_begins_packed_rings_at_base_0() {
        activates_over_and_over::<PackedRing>();
    }
}
