//! The device on rings of its own: no socket, no session. Time passes when a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_device_driver::Buffer;
use vhost_device_rig::{Back, Rig};

use super::wire::{COMMAND_QUEUE, EVENT_QUEUE};
use super::*;
use crate::host::sim::{self, Simulated};
use crate::host::{Access, Permissions, Platform, SystemState};
use crate::hub::SystemRequest;

mod clauses;
mod protocols;
mod random;
mod statuses;

const RING_SIZE: u16 = 64;
const ROOM: u64 = 16 << 20;

/// Fills what nobody has written.
const UNTOUCHED: u8 = 0xee;

/// How much Linux gives for an answer or a notification.
const LINUX: u32 = 128 + 8;

const BASE: u8 = 0x10;
const POWER: u8 = 0x11;
const SYSTEM: u8 = 0x12;
const PERFORMANCE: u8 = 0x13;
const CLOCK: u8 = 0x14;
const SENSOR: u8 = 0x15;
const RESET: u8 = 0x16;
const VOLTAGE: u8 = 0x17;
const POWERCAP: u8 = 0x18;
const PINCTRL: u8 = 0x19;

const ALL: [u8; 10] = [
    BASE,
    POWER,
    SYSTEM,
    PERFORMANCE,
    CLOCK,
    SENSOR,
    RESET,
    VOLTAGE,
    POWERCAP,
    PINCTRL,
];

const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const DENIED: i32 = -3;
const NOT_FOUND: i32 = -4;
const OUT_OF_RANGE: i32 = -5;

// Of the simulated platform.
const CPU_TEMP: u32 = 0;
const FAN: u32 = 5;
const SLOW: u32 = 6;
const ACCELEROMETER: u32 = 7;

/// A guest with both rings, and the device on their other side.
struct Bench {
    rig: Rig,
    hub: Arc<Hub>,
    device: Scmi,
    now: Instant,
    /// What has come back: the used lengths, by queue and head.
    back: BTreeMap<(usize, u16), u32>,
    /// Event buffers that are out, by head.
    buffers: BTreeMap<u16, Sent>,
    /// What was told, in order.
    told: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    queue: usize,
    head: u16,
    answer: u64,
    room: u32,
}

/// A notification or a delayed response, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    protocol: u8,
    message: u8,
    kind: u32,
    token: u32,
    words: Vec<u32>,
}

fn header(protocol: u8, message: u8, token: u32) -> u32 {
    token << 18 | u32::from(protocol) << 10 | u32::from(message)
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    assert_eq!(bytes.len() % 4, 0, "{bytes:x?}");
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    assert!(bytes[end..].iter().all(|&byte| byte == 0));
    str::from_utf8(&bytes[..end]).unwrap()
}

/// The simulated platform after a change of it.
fn hub(change: impl FnOnce(&mut Platform)) -> Arc<Hub> {
    let mut platform = sim::platform();
    change(&mut platform);
    assert_eq!(platform.check(), Ok(()));
    Arc::new(Hub::new(platform))
}

impl Bench {
    fn new() -> Self {
        Self::on(&hub(|_| {}), 0)
    }

    fn on(hub: &Arc<Hub>, guest: Guest) -> Self {
        let mut bench = Self::without_events(hub, guest);
        bench.device.negotiated(F_P2A_CHANNELS).unwrap();
        bench
    }

    fn without_events(hub: &Arc<Hub>, guest: Guest) -> Self {
        Self {
            rig: Rig::new(2, RING_SIZE, ROOM),
            hub: Arc::clone(hub),
            device: Scmi::new(hub, guest, Logs::default()).unwrap(),
            now: Instant::now(),
            back: BTreeMap::new(),
            buffers: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Makes bytes available with this much room for an answer; the device does not see it yet.
    fn send(&mut self, queue: u16, bytes: &[u8], room: u32) -> Sent {
        let queue = usize::from(queue);
        let request = self.rig.place(bytes);
        let answer = self.rig.place(&vec![UNTOUCHED; room as usize + 8]);
        let mut buffers = vec![Buffer::readable(request, bytes.len() as u32)];
        buffers.push(Buffer::writable(answer, room));
        buffers.retain(|buffer| buffer.len > 0);
        let head = self.rig.rings[queue].add(&buffers).unwrap();
        self.back.remove(&(queue, head));
        Sent {
            queue,
            head,
            answer,
            room,
        }
    }

    /// Shows the device what is available, as the session does.
    fn run(&mut self) {
        for number in [COMMAND_QUEUE, EVENT_QUEUE] {
            let index = usize::from(number);
            self.rig
                .serve(index, |request| self.device.handle(number, request));
            self.with_queues(|device, back| device.finish_batch(back));
        }
        // The device's own fd, and not time.
        while self.has_news() {
            self.with_queues(|device, back| device.attend(NEWS, back));
        }
    }

    fn has_news(&self) -> bool {
        let inbox = self.device.event_sources()[NEWS];
        let mut fds = [PollFd::from_borrowed_fd(inbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    /// An hour passes: all that is due is done, once.
    fn pass_time(&mut self) {
        self.now += Duration::from_secs(3600);
        let now = self.now;
        self.with_queues(|device, back| {
            while device.agent.work(&device.hub, now, &mut device.outbox) {}
            device.outbox.flush(back);
        });
    }

    fn with_queues(&mut self, work: impl FnOnce(&mut Scmi, &mut Back<'_>)) {
        self.rig.resume(|back| work(&mut self.device, back));
        for (index, ring) in self.rig.rings.iter_mut().enumerate().rev() {
            while let Some(used) = ring.pop_used() {
                self.back.insert((index, used.head), used.len);
                if index == usize::from(EVENT_QUEUE)
                    && let Some(sent) = self.buffers.remove(&used.head)
                {
                    let bytes = self.rig.guest.read_vec(sent.answer, used.len as usize);
                    self.told.push(bytes);
                }
            }
        }
    }

    /// What was written for the driver, as the used length says; `None` while it is not back.
    fn answer(&self, sent: Sent) -> Option<Vec<u8>> {
        let length = *self.back.get(&(sent.queue, sent.head))?;
        let bytes = self.rig.guest.read_vec(sent.answer, sent.room as usize + 8);
        let (answer, rest) = bytes.split_at(length as usize);
        assert!(length <= sent.room);
        assert!(rest.iter().all(|&byte| byte == UNTOUCHED), "{bytes:x?}");
        Some(answer.to_vec())
    }

    /// A command and its answer: the status and the results.
    #[track_caller]
    fn command(
        &mut self,
        protocol: u8,
        message: u8,
        arguments: &[u8],
        room: u32,
    ) -> (i32, Vec<u8>) {
        let header = header(protocol, message, 0x2a5);
        let request = [&header.to_le_bytes(), arguments].concat();
        let sent = self.send(COMMAND_QUEUE, &request, room);
        self.run();
        let answer = self.answer(sent).expect("it is answered at once");
        assert_eq!(answer[..4], header.to_le_bytes(), "the header comes back");
        let status = i32::from_le_bytes(answer[4..8].try_into().unwrap());
        let results = answer[8..].to_vec();
        assert!(
            status == 0 || results.is_empty(),
            "{status} with {results:x?}"
        );
        (status, results)
    }

    #[track_caller]
    fn status(&mut self, protocol: u8, message: u8, arguments: &[u32]) -> i32 {
        self.command(protocol, message, &bytes(arguments), LINUX).0
    }

    /// The results of a command that has to succeed.
    #[track_caller]
    fn results(&mut self, protocol: u8, message: u8, arguments: &[u32]) -> Vec<u8> {
        let (status, results) = self.command(protocol, message, &bytes(arguments), LINUX);
        assert_eq!(status, 0, "{protocol:#x} {message:#x} {arguments:x?}");
        results
    }

    #[track_caller]
    fn words(&mut self, protocol: u8, message: u8, arguments: &[u32]) -> Vec<u32> {
        words(&self.results(protocol, message, arguments))
    }

    #[track_caller]
    fn ok(&mut self, protocol: u8, message: u8, arguments: &[u32]) {
        let results = self.results(protocol, message, arguments);
        assert!(results.is_empty(), "{results:x?}");
    }

    /// Gives the device event buffers.
    fn give(&mut self, count: usize, room: u32) {
        for _ in 0..count {
            let sent = self.send(EVENT_QUEUE, &[], room);
            self.buffers.insert(sent.head, sent);
        }
        self.run();
    }

    /// What was told since the last time this was asked.
    fn told(&mut self) -> Vec<Told> {
        let told = std::mem::take(&mut self.told);
        told.iter()
            .map(|bytes| {
                let words = words(bytes);
                let header = words[0];
                Told {
                    protocol: (header >> 10) as u8,
                    message: header as u8,
                    kind: header >> 8 & 3,
                    token: header >> 18,
                    words: words[1..].to_vec(),
                }
            })
            .collect()
    }

    /// The one notification that was told.
    #[track_caller]
    fn notice(&mut self, protocol: u8, message: u8) -> Vec<u32> {
        let told = self.told();
        let [told] = told.try_into().expect("one is told");
        assert_eq!((told.kind, told.token), (3, 0));
        assert_eq!((told.protocol, told.message), (protocol, message));
        told.words
    }

    /// The world changes simulated hardware.
    fn set(&mut self, id: crate::host::ResourceId, value: &str) {
        let hub = Arc::clone(&self.hub);
        let mut drivers = hub.platform().drivers();
        let (_, driver) = drivers.find(|(other, _)| *other == id).unwrap();
        let sim: &dyn Simulated = driver.simulated().unwrap();
        let parts = sim.parts();
        // What the world does to it, where it has several parts.
        let has_power = parts.iter().any(|(part, _)| *part == "power");
        let part = if has_power { "power" } else { parts[0].0 };
        sim.set(part, value).unwrap();
        hub.changed(id, None);
        self.run();
    }
}
