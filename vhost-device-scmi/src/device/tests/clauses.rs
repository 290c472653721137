//! The clauses of the VIRTIO specification (S-1 to S-15).

use crate::host::{Driver, Error, Reading, ResourceId, Result, SensorDriver};

use super::*;

/// The commands that ask for notifications, with arguments that are good.
const SUBSCRIPTIONS: [(u8, u8, &[u32]); 10] = [
    (POWER, 0x6, &[0, 1]),
    (SYSTEM, 0x5, &[1]),
    (PERFORMANCE, 0x9, &[0, 1]),
    (PERFORMANCE, 0xa, &[0, 1]),
    (CLOCK, 0x9, &[0, 1]),
    (SENSOR, 0x4, &[0, 1]),
    (SENSOR, 0xb, &[0, 1]),
    (RESET, 0x5, &[0, 1]),
    (POWERCAP, 0xa, &[0, 1]),
    (POWERCAP, 0xb, &[0, 1, 1, 2]),
];

#[test]
fn s1_s2_notifications_are_offered_and_statistics_are_not() {
    let description = Bench::new().device.describe();
    assert_eq!(description.device_id, 32);
    assert_eq!(description.queues, 2);
    assert_eq!(description.features, 1, "P2A_CHANNELS and nothing else");
}

#[test]
fn s3_s4_a_burst_is_answered_whole() {
    let mut bench = Bench::new();
    let count = u32::from(RING_SIZE) / 2;
    let sent: Vec<_> = (0..count)
        .map(|token| {
            let request = header(ALL[token as usize % ALL.len()], 0, token);
            bench.send(COMMAND_QUEUE, &request.to_le_bytes(), LINUX)
        })
        .collect();
    bench.run();
    for (token, sent) in (0..).zip(sent) {
        let answer = words(&bench.answer(sent).unwrap());
        assert_eq!(answer[0] >> 18, token);
        assert_eq!(answer[1], 0);
        assert_eq!(answer.len(), 3);
    }
}

#[test]
fn s5_with_an_error_the_status_is_all() {
    let mut bench = Bench::new();
    // `command` sees to it that nothing is behind another status than SUCCESS.
    for (protocol, message, arguments, status) in [
        (0x42, 0, &[][..], -1),
        (BASE, 0x42, &[], -4),
        (BASE, 0x9, &[0, 0, 0], -1),
        (BASE, 0xa, &[0, 0, 0], -1),
        (BASE, 0xb, &[0, 0], -1),
        (BASE, 0x2, &[0x9], -4),
        (PERFORMANCE, 0xb, &[0, 7], -1),
        (CLOCK, 0x6, &[99], -4),
        (CLOCK, 0x6, &[], -10),
        (CLOCK, 0x5, &[0, 2, 1, 0], -2),
        (VOLTAGE, 0x7, &[0, 0, 7], -2),
    ] {
        let got = bench.status(protocol, message, arguments);
        assert_eq!(got, status, "{protocol:#x} {message:#x}");
    }
    // Not a command, but a notification and what there is none of.
    for kind in [1, 2, 3] {
        let request = header(BASE, 0, 0) | kind << 8;
        let sent = bench.send(COMMAND_QUEUE, &request.to_le_bytes(), LINUX);
        bench.run();
        assert_eq!(
            words(&bench.answer(sent).unwrap()),
            [request, -10_i32 as u32]
        );
    }
}

#[test]
fn s5_an_answer_that_has_no_room_is_an_error() {
    let mut bench = Bench::new();
    // 16 bytes of a vendor's name.
    assert_eq!(bench.command(BASE, 0x3, &[], 8 + 16).0, 0);
    for room in 8..8 + 16 {
        assert_eq!(bench.command(BASE, 0x3, &[], room), (-10, vec![]), "{room}");
    }
    // No room for a status, or no whole header: the buffer goes back empty.
    for (length, room) in [(4, 7), (4, 4), (4, 0), (3, 100), (1, 100)] {
        let request = &header(BASE, 0x3, 0).to_le_bytes()[..length];
        let sent = bench.send(COMMAND_QUEUE, request, room);
        bench.run();
        assert!(bench.answer(sent).unwrap().is_empty(), "{length} {room}");
    }
    assert_eq!(bench.status(BASE, 0, &[]), 0, "the next one is served");
}

#[test]
fn s6_subscriptions_succeed_without_buffers() {
    let mut bench = Bench::new();
    for (protocol, message, arguments) in SUBSCRIPTIONS {
        bench.ok(protocol, message, arguments);
    }
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
}

#[test]
fn s7_s8_without_p2a_channels_there_are_no_subscriptions() {
    let hub = hub(|_| {});
    let mut with = Bench::on(&hub, 0);
    let mut without = Bench::without_events(&hub, 1);
    for (protocol, message, arguments) in SUBSCRIPTIONS {
        assert_eq!(without.status(protocol, message, arguments), -1);
        assert_eq!(without.status(protocol, 0x2, &[message.into()]), -4);
        assert_eq!(with.words(protocol, 0x2, &[message.into()]), [0]);
    }
    assert_eq!(without.status(SENSOR, 0x6, &[SLOW, 1]), -1);
    // Nor does a domain, a clock or a sensor say that it has some.
    for (protocol, flags) in [
        (POWER, 1 << 31),
        (PERFORMANCE, 3 << 28),
        (CLOCK, 3 << 30),
        (RESET, 3 << 30),
        (VOLTAGE, 1 << 31),
        (POWERCAP, 7 << 29),
    ] {
        let attributes = without.words(protocol, 0x3, &[0]);
        assert_eq!(attributes[0] & flags, 0, "{protocol:#x}");
        if protocol != VOLTAGE {
            let attributes = with.words(protocol, 0x3, &[0]);
            assert_ne!(attributes[0] & flags, 0, "{protocol:#x}");
        }
    }
    let attributes = without.words(SENSOR, 0x3, &[SLOW]);
    assert_eq!(attributes[2] & (3 << 30 | 0xff), 0);
    let attributes = with.words(SENSOR, 0x3, &[SLOW]);
    assert_eq!(attributes[2] & (3 << 30 | 0xff), 3 << 30 | 4);
    assert_eq!(
        without.words(SENSOR, 0x1, &[])[0] >> 16,
        0,
        "no pending ones"
    );
}

#[test]
fn s9_notifications_wait_for_buffers_up_to_a_bound() {
    let mut bench = Bench::new();
    bench.ok(CLOCK, 0x9, &[1, 1]);
    bench.ok(RESET, 0x5, &[0, 1]);
    bench.ok(CLOCK, 0x5, &[0, 1, 200_000_000, 0]);
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    assert!(bench.told().is_empty());
    bench.give(1, LINUX);
    assert_eq!(bench.notice(CLOCK, 0), [1, 1, 200_000_000, 0]);
    bench.give(1, LINUX);
    assert_eq!(bench.notice(RESET, 0), [1, 0, 0]);
    // However many there are, the memory that they take is bounded.
    let outbox = &mut bench.device.outbox;
    for part in 0..2 * outbox::MAX_NOTICES as u32 {
        let subject = outbox::Subject {
            part,
            ..outbox::Subject::of(SENSOR, 0, 0)
        };
        outbox.notify_words(subject, [part]);
    }
    assert_eq!(outbox.notices(), outbox::MAX_NOTICES);
    bench.give(2, LINUX);
    let first: Vec<_> = bench.told().into_iter().map(|told| told.words).collect();
    assert_eq!(first, [[0], [1]], "the oldest first");
}

#[test]
fn s10_the_latest_is_told_of_what_changes_often() {
    let mut bench = Bench::new();
    bench.ok(CLOCK, 0x9, &[1, 1]);
    bench.ok(POWER, 0x6, &[0, 1]);
    for rate in [200_000_000, 300_000_000, 400_000_000] {
        bench.ok(CLOCK, 0x5, &[0, 1, rate, 0]);
        bench.ok(POWER, 0x4, &[0, 0, 0]);
    }
    bench.give(4, LINUX);
    let told: Vec<_> = bench.told().into_iter().map(|told| told.words).collect();
    assert_eq!(told, [vec![1, 1, 400_000_000, 0], vec![1, 0, 0]]);
}

#[test]
fn s11_a_notification_that_does_not_fit_is_left_out() {
    let mut bench = Bench::new();
    // 16 bytes and a header.
    bench.ok(CLOCK, 0x9, &[1, 1]);
    bench.ok(RESET, 0x5, &[0, 1]);
    bench.give(1, 19);
    bench.ok(CLOCK, 0x5, &[0, 1, 200_000_000, 0]);
    assert!(bench.told().is_empty());
    // The buffer is not lost: this one has 12.
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    assert_eq!(bench.notice(RESET, 0), [1, 0, 0]);
}

#[test]
fn s12_a_delayed_response_is_sent_once_there_is_a_buffer() {
    let mut bench = Bench::new();
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
    bench.pass_time();
    assert!(bench.told().is_empty());
    // Notifications that nobody takes do not push it out.
    let outbox = &mut bench.device.outbox;
    for part in 0..2 * outbox::MAX_NOTICES as u32 {
        let subject = outbox::Subject {
            part,
            ..outbox::Subject::of(SENSOR, 0, 0)
        };
        outbox.notify_words(subject, [part]);
    }
    // One that is too small for anything goes back.
    bench.give(1, 7);
    assert_eq!(bench.told, [Vec::<u8>::new()]);
    bench.told.clear();
    bench.give(1, LINUX);
    let told = bench.told();
    let expected = Told {
        protocol: SENSOR,
        message: 0x6,
        kind: 2,
        token: 0x2a5,
        words: vec![0, SLOW, 21_500, 0, 0, 0],
    };
    assert_eq!(told, [expected]);
}

#[test]
fn s12_there_are_no_more_delayed_responses_than_are_accepted() {
    let mut bench = Bench::new();
    let most = sensor::MAX_PENDING as u32;
    assert_eq!(bench.words(SENSOR, 0x1, &[])[0] >> 16 & 0xff, most);
    for count in 0..most {
        bench.ok(SENSOR, 0x6, &[SLOW, 1]);
        if count == most / 2 {
            bench.pass_time();
        }
    }
    assert_eq!(bench.status(SENSOR, 0x6, &[SLOW, 1]), -6);
    bench.pass_time();
    assert_eq!(bench.status(SENSOR, 0x6, &[SLOW, 1]), -6);
    let mut told = 0;
    while told < most {
        bench.give(8, LINUX);
        told += bench.told().len() as u32;
    }
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
}

/// A sensor that fails.
#[derive(Debug)]
struct Broken;

impl Driver for Broken {
    fn backing(&self) -> String {
        "nothing".to_owned()
    }
}

impl SensorDriver for Broken {
    fn read(&self, _values: &mut [i64]) -> Result<Reading> {
        Err(Error::Hardware(io::Error::other("the sensor is broken")))
    }
}

#[test]
fn s13_a_delayed_error_is_its_status_alone() {
    let hub = hub(|platform| platform.sensors[SLOW as usize].kind.driver = Arc::new(Broken));
    let mut bench = Bench::on(&hub, 0);
    assert_eq!(bench.status(SENSOR, 0x6, &[SLOW, 0]), -9);
    bench.give(2, LINUX);
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
    bench.pass_time();
    let told = bench.told();
    assert_eq!((told[0].kind, told[0].message), (2, 0x6));
    assert_eq!(told[0].words, [-9_i32 as u32]);
}

#[test]
fn s13_a_delayed_response_that_does_not_fit_is_an_error() {
    let mut bench = Bench::new();
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
    bench.pass_time();
    bench.give(1, 8);
    assert_eq!(bench.told()[0].words, [-10_i32 as u32]);
}

#[test]
fn s14_there_is_no_region_of_shared_memory() {
    let mut bench = Bench::new();
    for protocol in [POWER, PERFORMANCE, SENSOR] {
        let attributes = bench.words(protocol, 0x1, &[]);
        assert_eq!(attributes[1..], [0, 0, 0], "{protocol:#x}");
    }
    for message in [0xb, 0xc] {
        let protocol = if message == 0xb {
            PERFORMANCE
        } else {
            POWERCAP
        };
        assert_eq!(
            bench.status(protocol, 0x2, &[message]),
            -4,
            "no fast channels"
        );
    }
}

#[test]
fn s15_the_answer_is_in_the_commands_buffer() {
    let mut bench = Bench::new();
    let request = header(BASE, 0, 7).to_le_bytes();
    let sent = bench.send(COMMAND_QUEUE, &request, 4096);
    bench.run();
    // `answer` sees to it that nothing else was written.
    let answer = words(&bench.answer(sent).unwrap());
    assert_eq!(answer, [header(BASE, 0, 7), 0, 0x2_0001]);
}

#[test]
fn test_event_buffers_are_used_in_their_order() {
    let mut bench = Bench::new();
    let sent: Vec<_> = (0..3)
        .map(|_| bench.send(EVENT_QUEUE, &[], LINUX))
        .collect();
    bench.run();
    bench.ok(RESET, 0x5, &[0, 1]);
    bench.ok(RESET, 0x5, &[1, 1]);
    for domain in [0, 1] {
        bench.ok(RESET, 0x4, &[domain, 1, 0]);
    }
    assert_eq!(words(&bench.answer(sent[0]).unwrap())[2], 0);
    assert_eq!(words(&bench.answer(sent[1]).unwrap())[2], 1);
    assert_eq!(bench.answer(sent[2]), None);
}

#[test]
fn test_a_queue_that_stops_takes_its_buffers_and_nothing_else() {
    let mut bench = Bench::new();
    bench.give(2, LINUX);
    bench.ok(RESET, 0x5, &[0, 1]);
    bench.device.queue_stopped(EVENT_QUEUE);
    bench.with_queues(|_, _| {});
    bench.told.clear();
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    bench.give(1, LINUX);
    assert_eq!(bench.notice(RESET, 0), [1, 0, 0]);
}

#[test]
fn c7_after_a_reset_nothing_is_told() {
    let mut bench = Bench::new();
    for (protocol, message, arguments) in SUBSCRIPTIONS {
        bench.ok(protocol, message, arguments);
    }
    bench.ok(SENSOR, 0x6, &[SLOW, 1]);
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    bench.device.reset();
    bench.device.negotiated(F_P2A_CHANNELS).unwrap();
    assert_eq!(bench.device.agent.due(), None);
    bench.give(4, LINUX);
    bench.set(ResourceId::Sensor(0), "99");
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    bench.pass_time();
    assert!(bench.told().is_empty());
    let request = SystemRequest {
        state: SystemState::Shutdown,
        graceful: true,
    };
    assert!(bench.hub.ask(None, request).is_empty());
}
