//! What each protocol says and does: the messages of DEN0056.

use crate::host::{Clock, Rates, ResourceId};

use super::*;

/// A command of every message that names a resource of the simulated platform: its protocol, its
/// number, arguments that are good, where among them the resource is, and whether it changes
/// something.
const MESSAGES: [(u8, u8, &[u32], usize, bool); 63] = [
    (POWER, 0x3, &[0], 0, false),
    (POWER, 0x4, &[0, 0, 0], 1, true),
    (POWER, 0x5, &[0], 0, false),
    (POWER, 0x6, &[0, 1], 0, false),
    (POWER, 0x8, &[0], 0, false),
    (PERFORMANCE, 0x3, &[0], 0, false),
    (PERFORMANCE, 0x4, &[0, 0], 0, false),
    (PERFORMANCE, 0x5, &[0, 1_800_000, 600_000], 0, true),
    (PERFORMANCE, 0x6, &[0], 0, false),
    (PERFORMANCE, 0x7, &[0, 1_000_000], 0, true),
    (PERFORMANCE, 0x8, &[0], 0, false),
    (PERFORMANCE, 0x9, &[0, 1], 0, false),
    (PERFORMANCE, 0xa, &[0, 1], 0, false),
    (PERFORMANCE, 0xc, &[0], 0, false),
    (CLOCK, 0x3, &[3], 0, false),
    (CLOCK, 0x4, &[3, 0], 0, false),
    (CLOCK, 0x5, &[0, 3, 30_000_000, 0], 1, true),
    (CLOCK, 0x6, &[3], 0, false),
    (CLOCK, 0x7, &[3, 1, 0], 0, true),
    (CLOCK, 0x8, &[3], 0, false),
    (CLOCK, 0x9, &[3, 1], 0, false),
    (CLOCK, 0xb, &[3, 0], 0, false),
    (CLOCK, 0xc, &[3, 0], 0, false),
    (CLOCK, 0xd, &[3, 1], 0, true),
    (CLOCK, 0xe, &[3], 0, false),
    (CLOCK, 0xf, &[3], 0, false),
    (SENSOR, 0x4, &[0, 1], 0, false),
    (SENSOR, 0x5, &[0, 1, 5, 0], 0, false),
    (SENSOR, 0x6, &[0, 0], 0, false),
    (SENSOR, 0x8, &[0, 0], 0, false),
    (SENSOR, 0x9, &[0], 0, false),
    (SENSOR, 0xa, &[0, 1], 0, false),
    (SENSOR, 0xb, &[0, 1], 0, false),
    (SENSOR, 0xc, &[0], 0, false),
    (SENSOR, 0x7, &[ACCELEROMETER, 0], 0, false),
    (SENSOR, 0xd, &[ACCELEROMETER, 0], 0, false),
    (RESET, 0x3, &[0], 0, false),
    (RESET, 0x4, &[0, 1, 0], 0, true),
    (RESET, 0x5, &[0, 1], 0, false),
    (RESET, 0x6, &[0], 0, false),
    (VOLTAGE, 0x3, &[0], 0, false),
    (VOLTAGE, 0x4, &[0, 0], 0, false),
    (VOLTAGE, 0x5, &[0, 7], 0, true),
    (VOLTAGE, 0x6, &[0], 0, false),
    (VOLTAGE, 0x7, &[0, 0, 1_000_000], 0, true),
    (VOLTAGE, 0x8, &[0], 0, false),
    (VOLTAGE, 0x9, &[0], 0, false),
    (POWERCAP, 0x3, &[0], 0, false),
    (POWERCAP, 0x4, &[0], 0, false),
    (POWERCAP, 0x5, &[0, 0, 2_000_000], 0, true),
    (POWERCAP, 0x6, &[0], 0, false),
    (POWERCAP, 0x7, &[0, 0, 2000], 0, true),
    (POWERCAP, 0x8, &[0], 0, false),
    (POWERCAP, 0x9, &[0], 0, false),
    (POWERCAP, 0xa, &[0, 1], 0, false),
    (POWERCAP, 0xb, &[0, 1, 1, 2], 0, false),
    (PINCTRL, 0x3, &[0, 0], 0, false),
    (PINCTRL, 0x4, &[0, 1, 0], 0, false),
    (PINCTRL, 0x5, &[0, 2 << 18], 0, false),
    (PINCTRL, 0x6, &[0, 0, 1 << 10 | 1], 0, true),
    (PINCTRL, 0x7, &[0, 0], 0, true),
    (PINCTRL, 0x8, &[0, 0], 0, true),
    (PINCTRL, 0x9, &[0, 0], 0, false),
];

/// The same for messages that name no resource.
const OTHER_MESSAGES: [(u8, u8, &[u32]); 9] = [
    (BASE, 0x3, &[]),
    (BASE, 0x4, &[]),
    (BASE, 0x5, &[]),
    (BASE, 0x6, &[0]),
    (BASE, 0x7, &[0]),
    (SYSTEM, 0x3, &[1, 0]),
    (SYSTEM, 0x4, &[]),
    (SYSTEM, 0x5, &[1]),
    (SENSOR, 0x3, &[0]),
];

/// All messages of single protocols, with good arguments.
fn messages() -> impl Iterator<Item = (u8, u8, &'static [u32])> {
    let of_resources = MESSAGES.into_iter();
    of_resources
        .map(|(protocol, message, arguments, ..)| (protocol, message, arguments))
        .chain(OTHER_MESSAGES)
}

fn restrict(platform: &mut Platform, permissions: &Permissions) {
    let all = || permissions.clone();
    platform
        .powers
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .performances
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .clocks
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .sensors
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .resets
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .voltages
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .powercaps
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .system
        .iter_mut()
        .for_each(|it| it.permissions = all());
    platform
        .pinctrl
        .iter_mut()
        .for_each(|it| it.permissions = all());
}

#[test]
fn test_every_message_takes_what_is_good() {
    let mut bench = Bench::new();
    for (protocol, message, arguments) in messages() {
        let status = bench.status(protocol, message, arguments);
        assert_eq!(status, 0, "{protocol:#x} {message:#x}");
        let attributes = match (protocol, message) {
            (SYSTEM, 0x3) => 3 << 30,
            _ => 0,
        };
        let said = bench.words(protocol, 0x2, &[message.into()]);
        assert_eq!(said, [attributes]);
    }
}

#[test]
fn test_a_message_has_attributes_exactly_when_its_command_is_done() {
    let benches = [
        Bench::new(),
        Bench::without_events(&hub(|_| {}), 0),
        Bench::on(
            &hub(|platform| platform.system.as_mut().unwrap().kind.driver = None),
            0,
        ),
    ];
    for mut bench in benches {
        for (protocol, message) in ALL
            .into_iter()
            .flat_map(|protocol| (0..=u8::MAX).map(move |message| (protocol, message)))
        {
            let of_all = matches!(message, 0x0..=0x2 | 0x10);
            let mut known = messages().filter(|known| (known.0, known.1) == (protocol, message));
            let known = known.next();
            let arguments = known.map_or(&[][..], |(.., arguments)| arguments);
            let said = bench.status(protocol, 0x2, &[message.into()]);
            let status = bench.status(protocol, message, arguments);
            let what = format!("{protocol:#x} {message:#x}: {said}, {status}");
            if said == 0 {
                assert!(of_all || known.is_some(), "{what}: add it to `MESSAGES`");
                assert!(of_all || status == 0, "{what}");
                assert!(![NOT_SUPPORTED, NOT_FOUND].contains(&status), "{what}");
            } else {
                assert_eq!(said, NOT_FOUND, "{what}");
                assert!([NOT_SUPPORTED, NOT_FOUND].contains(&status), "{what}");
            }
        }
    }
}

#[test]
fn test_every_message_of_a_wrong_length_is_a_protocol_error() {
    let mut bench = Bench::new();
    for (protocol, message, arguments) in messages() {
        let good = bytes(arguments);
        let longer = [&*good, &[0; 8]].concat();
        for length in (0..longer.len()).chain([longer.len(), 128, 129, 5000]) {
            // The third word is new in version 3.0.
            let old = (protocol, message, length) == (CLOCK, 0x7, 8);
            if length == good.len() || old {
                continue;
            }
            let mut bytes = longer.clone();
            bytes.resize(length, 0);
            let (status, _) = bench.command(protocol, message, &bytes, LINUX);
            assert_eq!(status, -10, "{protocol:#x} {message:#x} {length}");
        }
    }
}

#[test]
fn test_every_message_of_no_resource_is_not_found() {
    let mut bench = Bench::new();
    for (protocol, message, arguments, place, _) in MESSAGES {
        for id in [64, 0x1_0000, u32::MAX] {
            let mut arguments = arguments.to_vec();
            arguments[place] = id;
            let status = bench.status(protocol, message, &arguments);
            assert_eq!(status, -4, "{protocol:#x} {message:#x}");
        }
    }
}

#[test]
fn test_who_may_read_changes_nothing() {
    let hub = hub(|platform| restrict(platform, &Permissions::all(Access::Read)));
    let mut bench = Bench::on(&hub, 0);
    // Not those that change with time.
    let states = |hub: &Hub| {
        let drivers = hub.platform().drivers();
        let still = drivers
            .filter(|(id, _)| !matches!(id, ResourceId::Sensor(_) | ResourceId::Powercap(_)));
        still
            .map(|(id, driver)| (id, driver.simulated().unwrap().parts()))
            .collect::<Vec<_>>()
    };
    let before = states(&hub);
    for (protocol, message, arguments, _, changes) in MESSAGES {
        let status = bench.status(protocol, message, arguments);
        let expected = match (changes, protocol) {
            (false, _) => 0,
            // As the domain's attributes have said.
            (true, POWER) => NOT_SUPPORTED,
            (true, _) => DENIED,
        };
        assert_eq!(status, expected, "{protocol:#x} {message:#x}");
    }
    assert_eq!(bench.status(SYSTEM, 0x3, &[0, 0]), -3);
    assert_eq!(states(&hub), before);
    // And it is told so.
    assert_eq!(bench.words(POWER, 0x3, &[0])[0] & 7 << 29, 1 << 31);
    assert_eq!(bench.words(PERFORMANCE, 0x3, &[0])[0] & 3 << 30, 0);
    assert_eq!(bench.words(CLOCK, 0xf, &[3]), [0]);
    let attributes = bench.words(POWERCAP, 0x3, &[0]);
    assert_eq!(attributes[0] & (1 << 27 | 1 << 25), 0);
    assert_eq!(attributes[5], attributes[6], "one interval");
    assert_eq!(attributes[8], attributes[9], "one cap");
}

#[test]
fn test_a_protocol_without_resources_is_not_there() {
    let hub = hub(|platform| {
        restrict(platform, &Permissions::all(Access::None));
        platform.resets[1].permissions = Permissions::all(Access::Read);
    });
    let mut bench = Bench::on(&hub, 0);
    assert_eq!(bench.words(BASE, 0x1, &[]), [1 << 8 | 1]);
    assert_eq!(bench.words(BASE, 0x6, &[0]), [1, RESET.into()]);
    for protocol in ALL {
        let there = protocol == BASE || protocol == RESET;
        let status = bench.status(protocol, 0, &[]);
        assert_eq!(status, if there { 0 } else { -1 }, "{protocol:#x}");
    }
    // What is there is counted from 0.
    assert_eq!(bench.words(RESET, 0x1, &[]), [1]);
    assert_eq!(text(&bench.results(RESET, 0x3, &[0])[8..]), "ethernet-phy");
    assert_eq!(bench.status(RESET, 0x3, &[1]), -4);
}

#[test]
fn test_versions_are_those_of_linux_6_12() {
    let mut bench = Bench::new();
    for (protocol, version) in [
        (BASE, 0x2_0001),
        (POWER, 0x3_0001),
        (SYSTEM, 0x2_0001),
        (PERFORMANCE, 0x4_0000),
        (CLOCK, 0x3_0000),
        (SENSOR, 0x3_0001),
        (RESET, 0x3_0001),
        (VOLTAGE, 0x2_0001),
        (POWERCAP, 0x2_0000),
        (PINCTRL, 0x1_0000),
    ] {
        assert_eq!(bench.words(protocol, 0x0, &[]), [version]);
        assert_eq!(bench.words(protocol, 0x2, &[0x10]), [0]);
        bench.ok(protocol, 0x10, &[version]);
        bench.ok(protocol, 0x10, &[version & 0xffff_0000]);
        assert_eq!(bench.status(protocol, 0x10, &[version + 1]), -1);
        assert_eq!(bench.status(protocol, 0x10, &[version - 0x1_0000]), -1);
    }
}

#[test]
fn test_base_says_who_is_there() {
    let mut bench = Bench::new();
    assert_eq!(text(&bench.results(BASE, 0x3, &[])), "vhost-device");
    assert_eq!(text(&bench.results(BASE, 0x4, &[])), "sim");
    assert_eq!(bench.words(BASE, 0x5, &[]), [0x00_01_00]);
    assert_eq!(bench.words(BASE, 0x1, &[]), [1 << 8 | 9]);
    for (agent, id, name) in [(0, 0, "platform"), (1, 1, "guest"), (u32::MAX, 1, "guest")] {
        let results = bench.results(BASE, 0x7, &[agent]);
        assert_eq!(words(&results[..4]), [id]);
        assert_eq!(text(&results[4..]), name);
    }
    assert_eq!(bench.status(BASE, 0x7, &[2]), -4);
}

#[test]
fn test_protocols_are_listed_in_whole_words() {
    let mut bench = Bench::new();
    let list = |skip: usize| {
        let numbers: Vec<u8> = (POWER..=PINCTRL).skip(skip).collect();
        let mut list = (numbers.len() as u32).to_le_bytes().to_vec();
        list.extend(&numbers);
        list.resize(list.len().next_multiple_of(4), 0);
        list
    };
    for skip in 0..=9 {
        assert_eq!(bench.results(BASE, 0x6, &[skip]), list(skip as usize));
    }
    assert_eq!(bench.status(BASE, 0x6, &[10]), -2);
    assert_eq!(bench.status(BASE, 0x6, &[u32::MAX]), -2);
}

#[test]
fn test_names_that_are_long_are_told_whole() {
    let long = "x".repeat(63);
    let hub = hub(|platform| {
        platform.powers[0].name = long.clone();
        platform.performances[0].name = long.clone();
        platform.clocks[0].name = long.clone();
        platform.sensors[0].name = "fifteen-letters".to_owned();
        platform.resets[0].name = long.clone();
        platform.voltages[0].name = long.clone();
        platform.powercaps[0].name = long.clone();
    });
    let mut bench = Bench::on(&hub, 0);
    for (protocol, message, at, flag) in [
        (POWER, 0x8, 4, 27),
        (PERFORMANCE, 0xc, 16, 26),
        (CLOCK, 0x8, 4, 29),
        (RESET, 0x6, 8, 29),
        (VOLTAGE, 0x9, 4, 30),
        (POWERCAP, 0x8, 4, 28),
    ] {
        let attributes = bench.results(protocol, 0x3, &[0]);
        assert_eq!(words(&attributes)[0] >> flag & 1, 1, "{protocol:#x}");
        assert_eq!(text(&attributes[at..at + 16]), "x".repeat(15));
        let name = bench.results(protocol, message, &[0]);
        assert_eq!(name.len(), 4 + 64);
        assert_eq!(text(&name[4..]), long);
        let attributes = bench.words(protocol, 0x3, &[1]);
        assert_eq!(attributes[0] >> flag & 1, 0, "{protocol:#x}");
    }
    let descriptor = bench.results(SENSOR, 0x3, &[0]);
    assert_eq!(words(&descriptor)[2] >> 29 & 1, 0);
    assert_eq!(text(&descriptor[16..32]), "fifteen-letters");
    let descriptor = bench.results(SENSOR, 0x3, &[SLOW]);
    assert_eq!(words(&descriptor)[2] >> 29 & 1, 1);
    assert_eq!(text(&descriptor[16..32]), "ambient-tempera");
    let name = bench.results(SENSOR, 0xc, &[SLOW]);
    assert_eq!(text(&name[4..]), "ambient-temperature-at-the-air-inlet");
}

#[test]
fn test_power_domains_are_on_for_as_long_as_one_guest_wants_it() {
    const OFF: u32 = 1 << 30;
    let hub = hub(|_| {});
    let mut first = Bench::on(&hub, 0);
    let mut second = Bench::on(&hub, 1);
    second.give(4, LINUX);
    second.ok(POWER, 0x6, &[0, 1]);
    assert_eq!(first.words(POWER, 0x5, &[0]), [OFF]);
    first.ok(POWER, 0x4, &[0, 0, 0]);
    second.run();
    assert_eq!(second.notice(POWER, 0), [0, 0, 0], "by the platform");
    second.ok(POWER, 0x4, &[0, 0, 0]);
    first.ok(POWER, 0x4, &[0, 0, OFF]);
    assert_eq!(first.words(POWER, 0x5, &[0]), [0], "it stays on");
    assert!(second.told().is_empty());
    second.ok(POWER, 0x4, &[0, 0, OFF]);
    assert_eq!(first.words(POWER, 0x5, &[0]), [OFF]);
    assert_eq!(second.notice(POWER, 0), [1, 0, OFF], "by itself");
    assert_eq!(first.status(POWER, 0x4, &[0, 0, 5]), -2, "no such state");
    assert_eq!(first.status(POWER, 0x4, &[1, 0, 0]), -1, "not later");
}

#[test]
fn test_what_a_guest_wanted_goes_with_it() {
    let hub = hub(|_| {});
    let mut first = Bench::on(&hub, 0);
    let mut second = Bench::on(&hub, 1);
    first.ok(POWERCAP, 0x5, &[0, 0, 2_000_000]);
    second.ok(POWERCAP, 0x5, &[0, 0, 5_000_000]);
    assert_eq!(second.words(POWERCAP, 0x4, &[0]), [2_000_000], "the lowest");
    second.give(1, LINUX);
    second.ok(POWERCAP, 0xa, &[0, 1]);
    drop(first);
    hub.settle();
    second.run();
    assert_eq!(second.notice(POWERCAP, 0), [0, 0, 5_000_000, 100_000]);
    assert_eq!(second.words(POWERCAP, 0x4, &[0]), [5_000_000]);
    // The last one leaves all as it is.
    drop(second);
    hub.settle();
    let mut third = Bench::on(&hub, 2);
    assert_eq!(third.words(POWERCAP, 0x4, &[0]), [5_000_000]);
}

#[test]
fn test_the_system_is_asked_to_shut_down() {
    let mut bench = Bench::new();
    bench.give(2, LINUX);
    bench.ok(SYSTEM, 0x5, &[1]);
    let request = |state, graceful| SystemRequest { state, graceful };
    let hub = Arc::clone(&bench.hub);
    assert_eq!(hub.ask(None, request(SystemState::Shutdown, true)), [0]);
    bench.run();
    assert_eq!(bench.notice(SYSTEM, 0), [0, 1, 0, 30_000]);
    assert_eq!(
        hub.ask(Some(0), request(SystemState::ColdReset, false)),
        [0]
    );
    bench.run();
    assert_eq!(bench.notice(SYSTEM, 0), [0, 0, 1, 0]);
    bench.ok(SYSTEM, 0x5, &[0]);
    assert!(
        hub.ask(None, request(SystemState::Suspend, true))
            .is_empty()
    );
}

#[test]
fn test_the_system_does_what_the_guest_asks_for() {
    let mut bench = Bench::new();
    bench.ok(SYSTEM, 0x3, &[1, 0]);
    let system = bench.hub.platform().system.as_ref().unwrap();
    let driver = system.kind.driver.as_ref().unwrap();
    let parts = driver.simulated().unwrap().parts();
    assert_eq!(parts, [("", "guest 0 graceful shutdown".to_owned())]);
    assert_eq!(bench.status(SYSTEM, 0x3, &[2, 0]), -2);
    assert_eq!(bench.status(SYSTEM, 0x3, &[0, 0x8000_0000]), -2);
    assert_eq!(bench.words(SYSTEM, 0x4, &[]), [3]);
    assert_eq!(bench.words(SYSTEM, 0x1, &[]), [0]);
    // Without anybody who does it.
    let hub = hub(|platform| platform.system.as_mut().unwrap().kind.driver = None);
    let mut bench = Bench::on(&hub, 0);
    assert_eq!(bench.status(SYSTEM, 0x3, &[0, 0]), -1);
    assert_eq!(bench.status(SYSTEM, 0x2, &[0x3]), -4);
}

#[test]
fn test_performance_levels_are_described() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(PERFORMANCE, 0x1, &[]), [2 | 1 << 16, 0, 0, 0]);
    let cpu = bench.results(PERFORMANCE, 0x3, &[0]);
    assert_eq!(words(&cpu[..16]), [0xf << 28, 1000, 1_400_000, 1_400_000]);
    assert_eq!(text(&cpu[16..]), "cpu");
    let gpu = bench.words(PERFORMANCE, 0x3, &[1]);
    assert_eq!(gpu[0] >> 25 & 1, 1, "by index");
    let levels = bench.words(PERFORMANCE, 0x4, &[0, 0]);
    assert_eq!(levels[0], 4);
    assert_eq!(levels[1..6], [600_000, 100, 50, 600_000, 600_000]);
    let levels = bench.words(PERFORMANCE, 0x4, &[1, 1]);
    assert_eq!(levels[0], 2);
    assert_eq!(levels[1..6], [25, 700, 50, 400_000, 2]);
    // In parts, as there is room.
    let part = |bench: &mut Bench, skip, room| {
        let (status, results) = bench.command(PERFORMANCE, 0x4, &bytes(&[0, skip]), room);
        (status, words(&results))
    };
    let (status, levels) = part(&mut bench, 1, 8 + 4 + 2 * 20 + 19);
    assert_eq!((status, levels[0], levels.len()), (0, 1 << 16 | 2, 11));
    assert_eq!(part(&mut bench, 1, 8 + 4 + 19), (-10, vec![]));
    assert_eq!(part(&mut bench, 4, LINUX), (-2, vec![]));
    assert_eq!(part(&mut bench, u32::MAX, LINUX), (-2, vec![]));
}

#[test]
fn test_performance_levels_and_limits_are_set() {
    let mut bench = Bench::new();
    bench.give(8, LINUX);
    bench.ok(PERFORMANCE, 0x9, &[0, 1]);
    bench.ok(PERFORMANCE, 0xa, &[0, 1]);
    bench.ok(PERFORMANCE, 0x7, &[0, 1_800_000]);
    assert_eq!(bench.notice(PERFORMANCE, 1), [1, 0, 1_800_000]);
    assert_eq!(bench.words(PERFORMANCE, 0x8, &[0]), [1_800_000]);
    // Limits between levels move inwards, and the level with them.
    bench.ok(PERFORMANCE, 0x5, &[0, 1_500_000, 0]);
    let told: Vec<_> = bench.told().into_iter().map(|told| told.words).collect();
    assert_eq!(
        told,
        [vec![1, 0, 1_400_000, 600_000], vec![1, 0, 1_400_000]]
    );
    assert_eq!(bench.words(PERFORMANCE, 0x6, &[0]), [1_400_000, 600_000]);
    bench.ok(PERFORMANCE, 0x5, &[0, 0, 700_000]);
    assert_eq!(bench.words(PERFORMANCE, 0x6, &[0]), [1_400_000, 1_000_000]);
    for (message, arguments, status) in [
        (0x7, &[0, 1_800_000][..], -5),
        (0x7, &[0, 1_000_001], -5),
        (0x5, &[0, 0, 0], -2),
        (0x5, &[0, 700_000, 800_000], -2),
        (0x5, &[0, 599_999, 0], -5),
        (0x5, &[0, 0, 1_800_001], -5),
        (0x5, &[0, 650_000, 610_000], -2),
        (0xa, &[0, 2], -2),
    ] {
        assert_eq!(
            bench.status(PERFORMANCE, message, arguments),
            status,
            "{arguments:?}"
        );
    }
    // By index, from 1 on.
    assert_eq!(bench.words(PERFORMANCE, 0x6, &[1]), [3, 1]);
    bench.ok(PERFORMANCE, 0x5, &[1, 2, 1]);
    bench.ok(PERFORMANCE, 0x7, &[1, 2]);
    assert_eq!(bench.words(PERFORMANCE, 0x8, &[1]), [2]);
    assert_eq!(bench.status(PERFORMANCE, 0x7, &[1, 25]), -5);
    assert_eq!(bench.status(PERFORMANCE, 0x7, &[1, 0]), -5);
}

#[test]
fn test_clocks_are_described() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(CLOCK, 0x1, &[]), [4]);
    let oscillator = bench.results(CLOCK, 0x3, &[0]);
    assert_eq!(words(&oscillator[..4]), [1 << 31 | 3]);
    assert_eq!(text(&oscillator[4..20]), "osc");
    assert_eq!(words(&oscillator[20..]), [0]);
    assert_eq!(bench.words(CLOCK, 0x4, &[0, 0]), [1, 24_000_000, 0]);
    assert_eq!(
        bench.words(CLOCK, 0x4, &[1, 0]),
        [3 | 1 << 12, 100_000_000, 0, 2_000_000_000, 0, 1_000_000, 0]
    );
    assert_eq!(
        bench.words(CLOCK, 0x4, &[2, 2]),
        [2, 24_000_000, 0, 48_000_000, 0]
    );
    let part = |bench: &mut Bench, clock, skip, room| {
        let (status, results) = bench.command(CLOCK, 0x4, &bytes(&[clock, skip]), room);
        (status, words(&results))
    };
    let two = (0, vec![2 << 16 | 2, 1_843_200, 0, 3_686_400, 0]);
    assert_eq!(part(&mut bench, 2, 0, 8 + 4 + 16), two);
    assert_eq!(part(&mut bench, 2, 4, LINUX).0, -5);
    assert_eq!(part(&mut bench, 1, 1, LINUX).0, -5, "a range is one answer");
    assert_eq!(part(&mut bench, 1, 0, 8 + 27).0, -10);
    let pixel = bench.words(CLOCK, 0x3, &[3]);
    assert_eq!(pixel[0], 1 << 31 | 1 << 29 | 1 << 28 | 1 << 1);
    assert_eq!(bench.words(CLOCK, 0xf, &[3]), [7 << 29]);
    assert_eq!(bench.words(CLOCK, 0xf, &[0]), [1 << 29]);
}

#[test]
fn test_clocks_remember_rates_states_and_parents() {
    let mut bench = Bench::new();
    bench.give(2, LINUX);
    bench.ok(CLOCK, 0x9, &[2, 1]);
    bench.ok(CLOCK, 0x5, &[1 << 3, 2, 20_000_000, 0]);
    assert_eq!(bench.words(CLOCK, 0x6, &[2]), [24_000_000, 0]);
    assert!(bench.told().is_empty(), "it had that rate");
    bench.ok(CLOCK, 0x5, &[0, 2, 20_000_000, 0]);
    assert_eq!(bench.notice(CLOCK, 0), [1, 2, 3_686_400, 0]);
    bench.ok(CLOCK, 0x5, &[1 << 2, 2, 20_000_000, 0]);
    assert_eq!(bench.words(CLOCK, 0x6, &[2]), [24_000_000, 0]);
    assert_eq!(bench.status(CLOCK, 0x5, &[0, 2, 1, 0]), -2);
    assert_eq!(bench.status(CLOCK, 0x5, &[0, 1, 0, 1]), -2, "too high");
    assert_eq!(
        bench.status(CLOCK, 0x5, &[1, 2, 24_000_000, 0]),
        -1,
        "not later"
    );
    assert_eq!(bench.status(CLOCK, 0x5, &[1 << 4, 2, 24_000_000, 0]), -2);
    // On and off, with two words as well.
    assert_eq!(bench.words(CLOCK, 0xb, &[2, 0]), [0, 0, 0]);
    bench.ok(CLOCK, 0x7, &[2, 1, 0]);
    assert_eq!(bench.words(CLOCK, 0xb, &[2, 0]), [0, 1, 0]);
    assert_eq!(bench.words(CLOCK, 0x3, &[2])[0] & 1, 1);
    bench.ok(CLOCK, 0x7, &[2, 0]);
    assert_eq!(bench.words(CLOCK, 0xb, &[2, 0]), [0, 0, 0]);
    for (message, arguments, status) in [
        (0x7, &[2, 2, 0][..], -2),
        (0x7, &[2, 3, 0], -2),
        (0x7, &[2, 1 << 16 | 3, 5], -1),
        (0x7, &[2, 1 << 2 | 1, 0], -2),
        (0x7, &[2, 1 << 24 | 1, 0], -2),
        (0x7, &[2, 1 << 16 | 1], -2),
        (0x7, &[2, 2], -2),
        (0x7, &[0, 0, 0], -1),
        (0x7, &[0, 1, 0], 0),
        (0xb, &[2, 1], -1),
        (0xb, &[2, 1 << 8], -2),
    ] {
        assert_eq!(
            bench.status(CLOCK, message, arguments),
            status,
            "{arguments:x?}"
        );
    }
    assert_eq!(bench.words(CLOCK, 0xc, &[3, 0]), [2, 0, 1]);
    assert_eq!(bench.words(CLOCK, 0xc, &[3, 1]), [1, 1]);
    assert_eq!(bench.words(CLOCK, 0xe, &[3]), [0]);
    bench.ok(CLOCK, 0xd, &[3, 1]);
    assert_eq!(bench.words(CLOCK, 0xe, &[3]), [1]);
    assert_eq!(bench.status(CLOCK, 0xd, &[3, 2]), -2);
    assert_eq!(bench.status(CLOCK, 0xe, &[2]), -1);
    assert_eq!(bench.words(CLOCK, 0xc, &[2, 0]), [0]);
}

#[test]
fn test_parents_that_a_guest_does_not_see_are_not_told() {
    let hub = hub(|platform| {
        platform.clocks[0].permissions = Permissions::all(Access::Control).with(0, Access::None);
    });
    let mut bench = Bench::on(&hub, 0);
    // The clocks are pll, uart and this one.
    assert_eq!(bench.words(CLOCK, 0xc, &[2, 0]), [1, 0]);
    assert_eq!(bench.status(CLOCK, 0xe, &[2]), -3);
    bench.ok(CLOCK, 0xd, &[2, 0]);
    assert_eq!(bench.words(CLOCK, 0xe, &[2]), [0]);
    let mut other = Bench::on(&hub, 1);
    assert_eq!(other.words(CLOCK, 0xe, &[3]), [1]);
}

#[test]
fn test_rates_above_32_bits() {
    let hub = hub(|platform| {
        let kind: &mut Clock = &mut platform.clocks[2].kind;
        kind.rates = Rates::Discrete((1..=256).map(|rate| rate << 32 | 7).collect());
    });
    let mut bench = Bench::on(&hub, 0);
    bench.ok(CLOCK, 0x5, &[0, 2, 7, 5]);
    assert_eq!(bench.words(CLOCK, 0x6, &[2]), [7, 5]);
    let mut rates = Vec::new();
    loop {
        let part = bench.words(CLOCK, 0x4, &[2, rates.len() as u32]);
        let count = part[0] & 0xfff;
        assert_eq!(part.len() as u32, 1 + 2 * count);
        rates.extend(part[1..].chunks_exact(2).map(|rate| rate[1]));
        if part[0] >> 16 == 0 {
            break;
        }
    }
    assert_eq!(rates, (1..=256).collect::<Vec<_>>());
}

#[test]
fn test_sensors_are_described() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(SENSOR, 0x1, &[]), [9 | 64 << 16, 0, 0, 0]);
    // All of them, in as many answers as it takes. Those with ranges are longer.
    let mut names = Vec::new();
    loop {
        let part = bench.results(SENSOR, 0x3, &[names.len() as u32]);
        let head = words(&part[..4])[0];
        let mut rest = &part[4..];
        for _ in 0..head & 0xffff {
            let fixed = words(&rest[..12]);
            assert_eq!(fixed[0] as usize, names.len());
            names.push(text(&rest[12..28]).to_owned());
            let axes = fixed[2] >> 8 & 1 == 1;
            let extended = fixed[1] >> 8 & 1 == 1;
            rest = &rest[if extended && !axes { 28 + 24 } else { 28 }..];
        }
        assert!(rest.is_empty());
        if head >> 16 == 0 {
            break;
        }
    }
    assert_eq!(names[..2], ["cpu-temp", "board-12v"]);
    assert_eq!(names.len(), 9);
    let cpu = bench.results(SENSOR, 0x3, &[CPU_TEMP]);
    let fixed = words(&cpu[..16]);
    let timestamps = 1 << 9 | 0b10111 << 10;
    assert_eq!(fixed[1..3], [0, 1 << 30 | 1 << 8 | timestamps | 4]);
    // °C, times ten to the -3.
    assert_eq!(fixed[3], 0b11101 << 11 | 2);
    let range = words(&cpu[32..56]);
    let (min, max) = (-40_000_i32 as u32, 125_000);
    assert_eq!(range, [50, 0b11101 << 27 | 1, min, u32::MAX, max, 0]);
    assert_eq!(bench.status(SENSOR, 0x3, &[9]), -2);
    let axes = bench.words(SENSOR, 0x3, &[ACCELEROMETER]);
    assert_eq!(axes[3], 3 << 16 | 1 << 8);
}

#[test]
fn test_axes_are_described() {
    let hub = hub(|platform| {
        let crate::host::Shape::Axes(axes) =
            &mut platform.sensors[ACCELEROMETER as usize].kind.shape
        else {
            panic!("it has axes");
        };
        axes[1].name = "a-name-of-an-axis-that-is-long".to_owned();
    });
    let mut bench = Bench::on(&hub, 0);
    // An axis has 48 bytes here, so that two fit.
    let part = bench.results(SENSOR, 0x7, &[ACCELEROMETER, 0]);
    let head = words(&part[..4])[0];
    assert_eq!((head & 0x3f, head >> 26), (2, 1));
    assert_eq!(words(&part[4..16]), [0, 1 << 8, 0b11101 << 11 | 0x59]);
    assert_eq!(text(&part[16..32]), "acc_X");
    assert_eq!(words(&part[52..64])[1], 1 << 9 | 1 << 8);
    let part = bench.results(SENSOR, 0x7, &[ACCELEROMETER, 2]);
    assert_eq!(words(&part[..8]), [1, 2]);
    assert_eq!(text(&part[16..32]), "acc_Z");
    let names = bench.results(SENSOR, 0xd, &[ACCELEROMETER, 1]);
    assert_eq!(words(&names[..8]), [1 | 1 << 26, 1]);
    assert_eq!(text(&names[8..72]), "a-name-of-an-axis-that-is-long");
    for message in [0x7, 0xd] {
        assert_eq!(bench.status(SENSOR, message, &[ACCELEROMETER, 3]), -2);
        assert_eq!(bench.status(SENSOR, message, &[CPU_TEMP, 0]), -1, "no axes");
    }
}

#[test]
fn test_sensors_are_read() {
    let mut bench = Bench::new();
    bench.set(ResourceId::Sensor(0), "-5");
    assert_eq!(
        bench.words(SENSOR, 0x6, &[0, 0]),
        [-5_i32 as u32, u32::MAX, 0, 0]
    );
    bench.set(ResourceId::Sensor(7), "1,-2,9807");
    let values: Vec<_> = bench.words(SENSOR, 0x6, &[7, 0]);
    assert_eq!([values[0], values[4], values[8]], [1, -2_i32 as u32, 9807]);
    assert_eq!(values.len(), 12);
    // With timestamps, in nanoseconds since the boot.
    bench.ok(SENSOR, 0xa, &[7, 3]);
    let time = |values: &[u32]| u64::from(values[3]) << 32 | u64::from(values[2]);
    let first = time(&bench.words(SENSOR, 0x6, &[7, 0]));
    let second = time(&bench.words(SENSOR, 0x6, &[7, 0]));
    assert!(0 < first && first <= second);
    assert_eq!(bench.status(SENSOR, 0x6, &[0, 2]), -2);
    assert_eq!(
        bench.status(SENSOR, 0x6, &[0, 1]),
        -1,
        "it is there at once"
    );
}

#[test]
fn test_sensors_are_configured() {
    let mut bench = Bench::new();
    let config = |number: u32, exponent: i32, rest: u32| {
        number << 16 | (exponent as u32 & 0x1f) << 11 | rest
    };
    assert_eq!(bench.words(SENSOR, 0x9, &[0]), [config(1, 0, 0)]);
    assert_eq!(
        bench.words(SENSOR, 0x8, &[0, 0]),
        [4, 1 << 5 | 0b11110, 1 << 5 | 0b11111, 1 << 5, 4 << 5]
    );
    // 30 ms: down is 10, up is 100.
    for (rounding, exponent) in [(0, -2), (1 << 9, -1), (2 << 9, -2)] {
        bench.ok(SENSOR, 0xa, &[0, config(30, -3, rounding | 1)]);
        assert_eq!(bench.words(SENSOR, 0x9, &[0]), [config(1, exponent, 1)]);
    }
    // An interval of 0 changes nothing of it.
    bench.ok(SENSOR, 0xa, &[0, 0]);
    assert_eq!(bench.words(SENSOR, 0x9, &[0]), [config(1, -2, 0)]);
    for (config, status) in [
        (config(1, -3, 1), -5),
        (config(100, 0, 1 << 9), -5),
        (config(1, 0, 3 << 9), -2),
        (config(5, 0, 0), -5),
        (config(5, 0, 2 << 9), -5),
    ] {
        assert_eq!(bench.status(SENSOR, 0xa, &[0, config]), status);
    }
    assert_eq!(bench.status(SENSOR, 0x8, &[0, 4]), -5);
}

#[test]
fn test_sensors_tell_of_readings() {
    let mut bench = Bench::new();
    bench.give(4, LINUX);
    bench.set(ResourceId::Sensor(7), "1,2,3");
    bench.ok(SENSOR, 0xb, &[7, 1]);
    assert_eq!(bench.device.agent.due(), None, "it is off");
    bench.ok(SENSOR, 0xa, &[7, 1]);
    assert!(bench.device.agent.due().is_some());
    bench.pass_time();
    let notice = bench.notice(SENSOR, 1);
    assert_eq!(notice, [0, 7, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    bench.pass_time();
    assert_eq!(bench.notice(SENSOR, 1), notice);
    // Not while it is off, and not when it is not wanted any more.
    bench.ok(SENSOR, 0xa, &[7, 0]);
    assert_eq!(bench.device.agent.due(), None);
    bench.ok(SENSOR, 0xa, &[7, 1]);
    assert!(bench.device.agent.due().is_some());
    bench.ok(SENSOR, 0xb, &[7, 0]);
    assert_eq!(bench.device.agent.due(), None);
    bench.pass_time();
    assert!(bench.told().is_empty());
}

#[test]
fn test_all_that_is_due_has_its_turn_however_slow_reading_is() {
    let mut bench = Bench::new();
    bench.give(4, LINUX);
    bench.ok(POWERCAP, 0xb, &[0, 1, 1, 2]);
    for sensor in [CPU_TEMP, FAN] {
        bench.ok(SENSOR, 0xb, &[sensor, 1]);
        bench.ok(SENSOR, 0xa, &[sensor, 1]);
    }
    // A reading takes so long that all is due again after it.
    for _ in 0..3 {
        bench.now += Duration::from_secs(3600);
        let now = bench.now;
        bench.with_queues(|device, back| {
            assert!(device.agent.work(&device.hub, now, &mut device.outbox));
            device.outbox.flush(back);
        });
    }
    let told = bench.told();
    let told: BTreeSet<_> = told.iter().map(|it| (it.protocol, it.words[1])).collect();
    let all = [(POWERCAP, 0), (SENSOR, CPU_TEMP), (SENSOR, FAN)];
    assert_eq!(told, all.into());
}

#[test]
fn test_trip_points_fire_when_they_are_crossed() {
    const RISING: u32 = 1;
    const FALLING: u32 = 2;
    const UP: u32 = 1 << 16;
    let fan = ResourceId::Sensor(FAN as usize);
    let mut bench = Bench::new();
    bench.set(fan, "1000");
    bench.give(16, LINUX);
    bench.ok(SENSOR, 0x5, &[FAN, RISING, 2000, 0]);
    bench.ok(SENSOR, 0x5, &[FAN, 1 << 4 | FALLING, 2000, 0]);
    bench.ok(
        SENSOR,
        0x5,
        &[FAN, 2 << 4 | RISING | FALLING, -10_i32 as u32, u32::MAX],
    );
    assert_eq!(bench.device.agent.due(), None, "nobody is told");
    bench.ok(SENSOR, 0x4, &[FAN, 1]);
    bench.pass_time();
    let mut points = |value: &str| {
        bench.set(fan, value);
        bench.pass_time();
        let told = bench.told();
        told.into_iter()
            .map(|told| {
                assert_eq!((told.protocol, told.message, told.kind), (SENSOR, 0, 3));
                assert_eq!(told.words[..2], [0, FAN]);
                told.words[2]
            })
            .collect::<Vec<_>>()
    };
    assert!(points("1999").is_empty());
    assert_eq!(points("2000"), [UP]);
    assert!(points("2500").is_empty());
    assert_eq!(points("1999"), [1]);
    assert_eq!(points("-11"), [2]);
    assert_eq!(points("9999"), [UP, UP | 2]);
    // Without the last one, and with a number that there is not.
    bench.ok(SENSOR, 0x5, &[FAN, 2 << 4, 0, 0]);
    bench.set(fan, "-11");
    bench.pass_time();
    assert_eq!(bench.notice(SENSOR, 0), [0, FAN, 1]);
    assert_eq!(bench.status(SENSOR, 0x5, &[FAN, 4 << 4 | RISING, 0, 0]), -2);
    assert_eq!(bench.status(SENSOR, 0x5, &[FAN, 1 << 2, 0, 0]), -2);
    assert_eq!(bench.status(SENSOR, 0x4, &[ACCELEROMETER, 1]), -1);
    bench.ok(SENSOR, 0x4, &[FAN, 0]);
    assert_eq!(bench.device.agent.due(), None);
}

#[test]
fn test_guests_have_subscriptions_of_their_own() {
    let hub = hub(|_| {});
    let mut first = Bench::on(&hub, 0);
    let mut second = Bench::on(&hub, 1);
    first.give(2, LINUX);
    second.give(2, LINUX);
    first.ok(CLOCK, 0x9, &[1, 1]);
    second.ok(CLOCK, 0x5, &[0, 1, 500_000_000, 0]);
    first.run();
    assert_eq!(first.notice(CLOCK, 0), [0, 1, 500_000_000, 0]);
    second.run();
    assert!(second.told().is_empty(), "it has not asked");
    // What one sets of a sensor the other does not have.
    first.ok(SENSOR, 0xa, &[0, 1]);
    assert_eq!(second.words(SENSOR, 0x9, &[0])[0] & 1, 0);
}

#[test]
fn test_resets() {
    let mut bench = Bench::new();
    let state = |bench: &Bench, domain: usize| {
        let domain = &bench.hub.platform().resets[domain];
        let parts = domain.kind.driver.simulated().unwrap().parts();
        format!("{} resets {}", parts[0].1, parts[1].1)
    };
    let usb = bench.results(RESET, 0x3, &[0]);
    assert_eq!(words(&usb[..8]), [1 << 30, 1000]);
    bench.give(8, LINUX);
    bench.ok(RESET, 0x5, &[0, 1]);
    bench.ok(RESET, 0x4, &[0, 2, 0]);
    assert_eq!(state(&bench, 0), "asserted resets 0");
    assert_eq!(bench.notice(RESET, 0), [1, 0, 0]);
    bench.ok(RESET, 0x4, &[0, 0, 0]);
    assert_eq!(state(&bench, 0), "released resets 0");
    assert!(bench.told().is_empty());
    bench.ok(RESET, 0x4, &[0, 1, 0]);
    assert_eq!(state(&bench, 0), "released resets 1");
    bench.ok(RESET, 0x4, &[0, 3, 0]);
    assert_eq!(state(&bench, 0), "released resets 2", "bit 1 means nothing");
    for (arguments, status) in [
        ([0, 1, 5], -2),
        ([0, 0, 5], -2),
        ([0, 2, 1 << 31], -2),
        ([0, 5, 0], -1),
        ([0, 4, 0], -2),
        ([0, 8, 0], -2),
        ([1, 4, 0], -1),
        ([1, 2, 0], -1),
        ([1, 0, 0], -1),
        ([1, 1, 0], 0),
    ] {
        assert_eq!(
            bench.status(RESET, 0x4, &arguments),
            status,
            "{arguments:?}"
        );
    }
}

#[test]
fn test_voltages() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(VOLTAGE, 0x1, &[]), [3]);
    let core = [3 | 1 << 12, 600_000, 1_200_000, 12_500];
    assert_eq!(bench.words(VOLTAGE, 0x4, &[0, 0]), core);
    assert_eq!(
        bench.words(VOLTAGE, 0x4, &[1, 0]),
        [2, 1_800_000, 3_300_000]
    );
    assert_eq!(bench.words(VOLTAGE, 0x4, &[1, 1]), [1, 3_300_000]);
    bench.ok(VOLTAGE, 0x7, &[1, 0, 3_300_000]);
    assert_eq!(bench.words(VOLTAGE, 0x8, &[1]), [3_300_000]);
    assert_eq!(bench.words(VOLTAGE, 0x6, &[1]), [0]);
    bench.ok(VOLTAGE, 0x5, &[1, 7]);
    assert_eq!(bench.words(VOLTAGE, 0x6, &[1]), [7]);
    assert_eq!(bench.words(VOLTAGE, 0x6, &[2]), [7], "always on");
    for (message, arguments, status) in [
        (0x7, &[1, 0, 2_000_000][..], -2),
        (0x7, &[0, 0, 600_001], -2),
        (0x7, &[0, 0, 599_999], -2),
        (0x7, &[0, 0, 1_212_500], -2),
        (0x7, &[0, 1, 600_000], -1),
        (0x7, &[0, 2, 600_000], -2),
        (0x5, &[1, 1], -2),
        (0x5, &[2, 0], -1),
        (0x5, &[2, 7], 0),
        (0x4, &[0, 1], -5),
        (0x4, &[1, 2], -5),
    ] {
        assert_eq!(
            bench.status(VOLTAGE, message, arguments),
            status,
            "{arguments:?}"
        );
    }
}

#[test]
fn test_power_caps() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(POWERCAP, 0x1, &[]), [2]);
    let package = bench.results(POWERCAP, 0x3, &[0]);
    let flags = 1 << 31 | 1 << 30 | 7 << 25 | 1 << 23;
    assert_eq!(words(&package[..4]), [flags]);
    assert_eq!(text(&package[4..20]), "package");
    assert_eq!(
        words(&package[20..]),
        [
            1000,
            1_000_000,
            1000,
            1_000_000,
            15_000_000,
            1000,
            7_500_000,
            1000,
            u32::MAX
        ]
    );
    assert_eq!(
        *bench.words(POWERCAP, 0x3, &[1]).last().unwrap(),
        0,
        "its parent"
    );
    bench.give(4, LINUX);
    bench.ok(POWERCAP, 0xa, &[0, 1]);
    bench.ok(POWERCAP, 0x5, &[0, 0, 2_000_999]);
    assert_eq!(bench.words(POWERCAP, 0x4, &[0]), [2_000_000]);
    assert_eq!(bench.notice(POWERCAP, 0), [1, 0, 2_000_000, 100_000]);
    bench.ok(POWERCAP, 0x7, &[0, 0, 5000]);
    assert_eq!(bench.words(POWERCAP, 0x6, &[0]), [5000]);
    assert_eq!(bench.notice(POWERCAP, 0), [1, 0, 2_000_000, 5000]);
    bench.set(ResourceId::Powercap(0), "9000000");
    assert_eq!(
        bench.words(POWERCAP, 0x9, &[0]),
        [2_000_000, 5000],
        "capped"
    );
    // Off, as Linux asks for it.
    bench.ok(POWERCAP, 0x5, &[0, 1, 0]);
    assert_eq!(bench.words(POWERCAP, 0x4, &[0]), [0]);
    assert_eq!(bench.words(POWERCAP, 0x9, &[0]), [9_000_000, 5000]);
    for (message, arguments, status) in [
        (0x5, &[0, 0, 999_999][..], -5),
        (0x5, &[0, 0, 15_000_001], -5),
        (0x5, &[0, 2, 2_000_000], -1),
        (0x5, &[0, 4, 2_000_000], -2),
        (0x7, &[0, 0, 0], -5),
        (0x7, &[0, 1, 5000], -2),
        (0xb, &[0, 1, 3, 2], -2),
    ] {
        assert_eq!(
            bench.status(POWERCAP, message, arguments),
            status,
            "{arguments:?}"
        );
    }
}

#[test]
fn test_powers_that_leave_their_thresholds_are_told() {
    let mut bench = Bench::new();
    let cores = ResourceId::Powercap(1);
    bench.give(8, LINUX);
    bench.set(cores, "5");
    bench.ok(POWERCAP, 0xb, &[1, 1, 3, 7]);
    let mut told = |power: &str| {
        bench.set(cores, power);
        bench.pass_time();
        let told = bench.told();
        told.into_iter()
            .map(|told| (told.message, told.words))
            .collect::<Vec<_>>()
    };
    assert_eq!(told("7"), []);
    assert_eq!(told("8"), [(1, vec![0, 1, 8])]);
    assert_eq!(told("9"), []);
    assert_eq!(told("2"), [(1, vec![0, 1, 2])]);
    assert_eq!(told("3"), []);
    assert_eq!(told("2"), [(1, vec![0, 1, 2])]);
    bench.ok(POWERCAP, 0xb, &[1, 0, 0, 0]);
    assert_eq!(bench.device.agent.due(), None);
}

#[test]
fn test_pins_groups_and_functions_are_described() {
    let mut bench = Bench::new();
    assert_eq!(bench.words(PINCTRL, 0x1, &[]), [3 << 16 | 8, 4]);
    for (number, selector, head, name) in [
        (7, 0, 1, "pin7"),
        (0, 1, 2, "uart0-pins"),
        (2, 1, 1 << 31 | 4, "spi0-pins-with-"),
        (3, 2, 3, "gpio"),
    ] {
        let attributes = bench.results(PINCTRL, 0x3, &[number, selector]);
        assert_eq!(words(&attributes[..4]), [head]);
        assert_eq!(text(&attributes[4..]), name);
    }
    let name = bench.results(PINCTRL, 0x9, &[2, 1]);
    assert_eq!(text(&name[4..]), "spi0-pins-with-chip-select");
    assert_eq!(bench.status(PINCTRL, 0x3, &[4, 2]), -4);
    assert_eq!(bench.status(PINCTRL, 0x3, &[0, 3]), -2);
    // Numbers of 16 bits, as many as there is room for.
    let list = |bench: &mut Bench, arguments: [u32; 3], room| {
        bench.command(PINCTRL, 0x4, &bytes(&arguments), room)
    };
    let whole = [4, 0, 0, 0, 4, 0, 5, 0, 6, 0, 7, 0].to_vec();
    assert_eq!(list(&mut bench, [2, 1, 0], LINUX), (0, whole));
    let part = [2, 0, 1, 0, 5, 0, 6, 0].to_vec();
    assert_eq!(list(&mut bench, [2, 1, 1], 8 + 4 + 5), (0, part));
    assert_eq!(list(&mut bench, [2, 1, 4], LINUX).0, -5);
    assert_eq!(
        list(&mut bench, [0, 0, 0], LINUX).0,
        -2,
        "a pin has no members"
    );
}

#[test]
fn test_pins_are_set() {
    const ALL_OF: u32 = 1 << 18;
    const GROUP: u32 = 1 << 16;
    let mut bench = Bench::new();
    assert_eq!(bench.words(PINCTRL, 0x5, &[1, ALL_OF]), [u32::MAX, 0]);
    assert_eq!(bench.status(PINCTRL, 0x5, &[1, 4]), -2, "it is not set");
    // Two settings of a pin: a pull-up and a drive strength.
    bench.ok(PINCTRL, 0x6, &[1, u32::MAX, 2 << 2, 4, 1, 10, 8]);
    assert_eq!(
        bench.words(PINCTRL, 0x5, &[1, ALL_OF]),
        [u32::MAX, 2, 4, 1, 10, 8]
    );
    assert_eq!(
        bench.words(PINCTRL, 0x5, &[1, ALL_OF | 1 << 8]),
        [u32::MAX, 1, 10, 8]
    );
    assert_eq!(bench.words(PINCTRL, 0x5, &[1, 10]), [u32::MAX, 1, 10, 8]);
    // A function of a group, without settings.
    bench.ok(PINCTRL, 0x6, &[1, 1, 1 << 10 | 1]);
    assert_eq!(bench.words(PINCTRL, 0x5, &[1, 2 << 18 | GROUP]), [1, 0]);
    for (message, arguments, status) in [
        (0x6, &[1, 0, 1 << 10 | 1][..], -2),
        (0x6, &[1, 9, 1 << 10 | 1], -4),
        (0x6, &[1, 0, 1 << 2], -10),
        (0x6, &[1, 0, 1 << 2, 256, 0], -2),
        (0x6, &[1, 0, 2], -2),
        (0x6, &[1, 0, 1 << 11], -2),
        (0x5, &[1, 3 << 18], -2),
        (0x5, &[1, 1 << 20 | 1 << 18], -2),
        (0x7, &[0, 2], -2),
        (0x8, &[5, 0], -3),
    ] {
        assert_eq!(
            bench.status(PINCTRL, message, arguments),
            status,
            "{arguments:x?}"
        );
    }
}

#[test]
fn test_pins_are_one_guests_at_a_time() {
    let hub = hub(|_| {});
    let mut first = Bench::on(&hub, 0);
    let mut second = Bench::on(&hub, 1);
    first.ok(PINCTRL, 0x7, &[0, 1]);
    first.ok(PINCTRL, 0x7, &[0, 0]);
    assert_eq!(second.status(PINCTRL, 0x7, &[1, 0]), -11);
    assert_eq!(second.status(PINCTRL, 0x6, &[1, 0, 1 << 2, 4, 1]), -11);
    assert_eq!(second.status(PINCTRL, 0x8, &[1, 0]), -3);
    second.ok(PINCTRL, 0x6, &[2, 0, 1 << 2, 4, 1]);
    first.ok(PINCTRL, 0x8, &[1, 0]);
    second.ok(PINCTRL, 0x7, &[1, 0]);
    assert_eq!(second.status(PINCTRL, 0x7, &[0, 1]), -11);
    drop(first);
    second.ok(PINCTRL, 0x7, &[0, 1]);
}

#[test]
fn test_a_reading_of_as_many_axes_as_there_may_be() {
    const AXES: usize = crate::host::Shape::MAX_AXES;
    let hub = hub(|platform| {
        let sensor = &mut platform.sensors[ACCELEROMETER as usize].kind;
        let crate::host::Shape::Axes(axes) = &mut sensor.shape else {
            panic!("it has axes");
        };
        *axes = vec![axes[0].clone(); AXES];
        let waves = (0..AXES as i64).map(sim::Wave::Constant).collect();
        sensor.driver = Arc::new(sim::SimSensor::new(waves));
    });
    let mut bench = Bench::on(&hub, 0);
    let arguments = bytes(&[ACCELEROMETER, 0]);
    let room = 8 + 16 * AXES as u32;
    let (status, results) = bench.command(SENSOR, 0x6, &arguments, room);
    let values: Vec<_> = words(&results).chunks(4).map(|axis| axis[0]).collect();
    assert_eq!((status, values), (0, (0..AXES as u32).collect()));
    assert_eq!(bench.command(SENSOR, 0x6, &arguments, room - 1).0, -10);
    assert_eq!(
        bench.words(SENSOR, 0x3, &[ACCELEROMETER])[3] >> 16,
        AXES as u32
    );
    bench.give(1, 12 + 16 * AXES as u32);
    bench.ok(SENSOR, 0xa, &[ACCELEROMETER, 1]);
    bench.ok(SENSOR, 0xb, &[ACCELEROMETER, 1]);
    bench.pass_time();
    assert_eq!(bench.notice(SENSOR, 1).len(), 2 + 4 * AXES);
    // Axes are listed in parts, however little room there is.
    let mut axes = 0;
    while axes < AXES as u32 {
        let (status, part) = bench.command(SENSOR, 0xd, &bytes(&[ACCELEROMETER, axes]), LINUX);
        let head = words(&part[..4])[0];
        assert_eq!((status, head >> 26), (0, AXES as u32 - axes - 1));
        axes += head & 0x3f;
    }
}

/// A sensor that notes how often it is to have samples.
#[derive(Debug, Default)]
struct Paced(std::sync::Mutex<Vec<Option<Duration>>>);

impl crate::host::Driver for Paced {
    fn backing(&self) -> String {
        "paced".to_owned()
    }
}

impl crate::host::SensorDriver for Paced {
    fn read(&self, _values: &mut [i64]) -> crate::host::Result<crate::host::Reading> {
        Ok(crate::host::Reading::default())
    }

    fn set_interval(&self, interval: Option<Duration>) -> crate::host::Result<()> {
        self.0.lock().unwrap().push(interval);
        Ok(())
    }
}

#[test]
fn test_who_may_only_read_a_sensor_does_not_set_its_pace() {
    let paced = Arc::new(Paced::default());
    let hub = hub(|platform| {
        let sensor = &mut platform.sensors[FAN as usize];
        sensor.permissions = Permissions::all(Access::Read).with(0, Access::Control);
        sensor.kind.driver = Arc::clone(&paced) as _;
    });
    // Every 10 ms for who reads, every 100 ms for who controls.
    for (guest, exponent) in [(1, 0b11110), (0, 0b11111)] {
        let mut bench = Bench::on(&hub, guest);
        bench.ok(SENSOR, 0xa, &[FAN, 1 << 16 | exponent << 11 | 1]);
        bench.ok(SENSOR, 0xb, &[FAN, 1]);
        assert!(
            bench.device.agent.due().is_some(),
            "it is told all the same"
        );
    }
    hub.settle();
    let told = paced.0.lock().unwrap().clone();
    assert_eq!(told, [Some(Duration::from_millis(100)), None]);
}
