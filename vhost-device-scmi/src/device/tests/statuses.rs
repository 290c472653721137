//! The statuses that Arm's own tests demand (their numbers are in the comments), and for what they
//! do not test those of Arm's firmware. Where protocols differ, each has its own.

use super::*;

fn expect(bench: &mut Bench, cases: &[(u8, u8, &[u32], i32)]) {
    for &(protocol, message, arguments, status) in cases {
        let got = bench.status(protocol, message, arguments);
        assert_eq!(got, status, "{protocol:#x} {message:#x} {arguments:x?}");
    }
}

#[test]
fn s16_a_list_from_behind_its_end_is_refused_as_its_protocol_does_it() {
    expect(
        &mut Bench::new(),
        &[
            (BASE, 0x6, &[10], INVALID_PARAMETERS),          // b008
            (PERFORMANCE, 0x4, &[0, 5], INVALID_PARAMETERS), // d007
            (CLOCK, 0x4, &[2, 4], OUT_OF_RANGE),             // c007
            (CLOCK, 0x4, &[1, 3], OUT_OF_RANGE),             // c007, of a range
            (SENSOR, 0x3, &[9], INVALID_PARAMETERS),         // m005
            (SENSOR, 0x7, &[ACCELEROMETER, 3], INVALID_PARAMETERS),
            (SENSOR, 0xd, &[ACCELEROMETER, 3], INVALID_PARAMETERS),
            (VOLTAGE, 0x4, &[1, 2], OUT_OF_RANGE),
        ],
    );
}

#[test]
fn s16_a_message_that_there_is_not_is_not_found() {
    let mut bench = Bench::new();
    for protocol in ALL {
        // b004, p004, s004, d004, c004, m004, r004: as command, and as what is asked for.
        for message in [0x11, 0x7f, 0xff] {
            assert_eq!(bench.status(protocol, message, &[]), NOT_FOUND);
            assert_eq!(bench.status(protocol, 0x2, &[message.into()]), NOT_FOUND);
        }
    }
    // The first behind the last one of each.
    for (protocol, message) in [
        (BASE, 0xc),
        (POWER, 0x9),
        (SYSTEM, 0x6),
        (PERFORMANCE, 0xd),
        (SENSOR, 0xe),
        (RESET, 0x7),
        (VOLTAGE, 0xa),
        (POWERCAP, 0xd),
        (PINCTRL, 0xb),
    ] {
        assert_eq!(bench.status(protocol, message, &[]), NOT_FOUND);
    }
    // What DEN0056 has and this platform has not.
    for (protocol, message) in [
        (BASE, 0x8),
        (BASE, 0xb),
        (POWER, 0x7),
        (PERFORMANCE, 0xb),
        (CLOCK, 0xa),
        (POWERCAP, 0xc),
        (PINCTRL, 0xa),
    ] {
        assert_eq!(bench.status(protocol, message, &[0, 0]), NOT_SUPPORTED);
        assert_eq!(bench.status(protocol, 0x2, &[message.into()]), NOT_FOUND);
    }
}

#[test]
fn s17_reserved_bits_are_refused_whatever_the_others_say() {
    let mut cases: Vec<(u8, u8, Vec<u32>)> = vec![
        (CLOCK, 0x5, vec![0xff, 2, 24_000_000, 0]), // c011
        (CLOCK, 0x7, vec![2, 0xf]),                 // c015
        (RESET, 0x4, vec![0, 0xf8, 0]),             // r008
        (RESET, 0x4, vec![0, 0, 0xff]),             // r009
        (POWER, 0x4, vec![0xf, 0, 0]),              // p007
        (POWER, 0x4, vec![0xe, 0, 0]),              // p007
        (POWER, 0x4, vec![0, 0, 0xff00_0000]),      // p007
        (SYSTEM, 0x3, vec![0xf, 1]),                // s005
        (SENSOR, 0x5, vec![0, 0xf, 0, 0]),          // m008
        (SENSOR, 0x5, vec![0, 5 << 4, 0, 0]),       // m008, a trip point that there is not
        (SENSOR, 0x6, vec![0, 0xf]),                // m011
        (POWERCAP, 0x5, vec![0, 0xff, 2_000_000]),
        (POWERCAP, 0x7, vec![0, 1, 5000]),
        (VOLTAGE, 0x5, vec![0, 0x17]),
        (VOLTAGE, 0x7, vec![0, 0xf, 1_000_000]),
    ];
    // p012, s007, d017, d019, r011, m006 and their like: what subscribes.
    for (protocol, message) in [
        (POWER, 0x6),
        (PERFORMANCE, 0x9),
        (PERFORMANCE, 0xa),
        (CLOCK, 0x9),
        (SENSOR, 0x4),
        (SENSOR, 0xb),
        (RESET, 0x5),
        (POWERCAP, 0xa),
    ] {
        cases.push((protocol, message, vec![0, 0xf]));
    }
    cases.push((SYSTEM, 0x5, vec![0xf]));
    cases.push((POWERCAP, 0xb, vec![0, 0xf, 1, 2]));
    // Each bit alone, beside arguments that are good.
    let good: [(u8, u8, &[u32], usize, u32); 12] = [
        (POWER, 0x4, &[0, 0, 0], 0, !1),
        (SYSTEM, 0x3, &[1, 0], 0, !1),
        (CLOCK, 0x5, &[0, 2, 24_000_000, 0], 0, !0xf),
        (CLOCK, 0x7, &[2, 1, 0], 1, !0xff_0003),
        (CLOCK, 0xb, &[2, 0], 1, !0xff),
        (SENSOR, 0x5, &[0, 1, 5, 0], 1, !0xff3),
        (SENSOR, 0x6, &[0, 0], 1, !1),
        (SENSOR, 0xa, &[0, 1], 1, 0x1fc),
        (RESET, 0x4, &[0, 1, 0], 1, !7),
        (POWERCAP, 0x5, &[0, 0, 2_000_000], 1, !3),
        (PINCTRL, 0x5, &[0, 2 << 18], 1, !0xf_ffff),
        (PINCTRL, 0x6, &[0, 0, 1 << 10 | 1], 2, !0x7ff),
    ];
    for (protocol, message, arguments, place, reserved) in good {
        let bits = (0..32).map(|bit| 1 << bit);
        for bit in bits.filter(|bit| reserved & bit != 0) {
            let mut arguments = arguments.to_vec();
            arguments[place] |= bit;
            cases.push((protocol, message, arguments));
        }
    }
    let mut bench = Bench::new();
    for (protocol, message, arguments) in cases {
        let got = bench.status(protocol, message, &arguments);
        assert_eq!(
            got, INVALID_PARAMETERS,
            "{protocol:#x} {message:#x} {arguments:x?}"
        );
    }
}

#[test]
fn s18_what_is_outside_is_refused_and_not_moved_inwards() {
    let mut bench = Bench::new();
    let (low, high) = (600_000, 1_800_000);
    expect(
        &mut bench,
        &[
            (PERFORMANCE, 0x5, &[0, high + 1, low], OUT_OF_RANGE), // d010
            (PERFORMANCE, 0x5, &[0, high, low - 1], OUT_OF_RANGE), // d010
            (PERFORMANCE, 0x5, &[0, low, high], INVALID_PARAMETERS), // d010
            (PERFORMANCE, 0x5, &[1, 4, 1], OUT_OF_RANGE),          // d010, by index
            (PERFORMANCE, 0x7, &[0, high + 1], OUT_OF_RANGE),      // d014
            (PERFORMANCE, 0x7, &[0, low - 1], OUT_OF_RANGE),       // d014
            (CLOCK, 0x5, &[0, 2, 1_843_201, 1], INVALID_PARAMETERS), // c011
            (CLOCK, 0x5, &[0, 1, 100_000_001, 1], INVALID_PARAMETERS), // c011
            (CLOCK, 0x5, &[4, 2, 1, 0], INVALID_PARAMETERS),
            (CLOCK, 0x5, &[8, 2, 48_000_001, 0], INVALID_PARAMETERS),
            (VOLTAGE, 0x7, &[0, 0, 1_200_001], INVALID_PARAMETERS),
            (VOLTAGE, 0x7, &[0, 0, 599_999], INVALID_PARAMETERS),
            (POWERCAP, 0x5, &[0, 0, 15_000_001], OUT_OF_RANGE),
            (POWERCAP, 0x7, &[0, 0, 1_000_001], OUT_OF_RANGE),
            // From 10 ms to 4 s.
            (SENSOR, 0xa, &[0, 5 << 16], OUT_OF_RANGE),
            (
                SENSOR,
                0xa,
                &[0, 9 << 16 | 0b11101 << 11 | 1 << 9],
                OUT_OF_RANGE,
            ),
        ],
    );
    // Nothing of it was done.
    assert_eq!(bench.words(PERFORMANCE, 0x6, &[0]), [high, low]);
    assert_eq!(bench.words(CLOCK, 0x6, &[2]), [24_000_000, 0]);
    assert_eq!(bench.words(CLOCK, 0x6, &[1]), [1_200_000_000, 0]);
}

#[test]
fn s16_what_a_domain_says_that_it_cannot_do_is_refused_as_its_protocol_does_it() {
    let hub = hub(|platform| {
        platform.powers[0].permissions = Permissions::all(Access::Read);
        platform.performances[0].kind.limits = false;
        platform.performances[1].permissions = Permissions::all(Access::Read);
        let cap = &mut platform.powercaps[0].kind;
        cap.min_cap = cap.max_cap;
        cap.min_pai_us = cap.max_pai_us;
    });
    let mut bench = Bench::on(&hub, 0);
    assert_eq!(bench.words(POWER, 0x3, &[0])[0] & 3 << 29, 0);
    assert_eq!(bench.words(PERFORMANCE, 0x3, &[0])[0] >> 31, 0);
    assert_eq!(bench.words(PERFORMANCE, 0x3, &[1])[0] & 3 << 30, 0);
    assert_eq!(bench.words(POWERCAP, 0x3, &[0])[0] & (1 << 27 | 1 << 25), 0);
    expect(
        &mut bench,
        &[
            (POWER, 0x4, &[0, 0, 0], NOT_SUPPORTED),              // p008
            (PERFORMANCE, 0x5, &[0, 1_800_000, 600_000], DENIED), // d011
            (PERFORMANCE, 0x7, &[1, 1], DENIED),                  // d015
            (SENSOR, 0x6, &[0, 1], NOT_SUPPORTED),                // m015
            (RESET, 0x4, &[0, 5, 0], NOT_SUPPORTED),              // r008
            (RESET, 0x4, &[1, 2, 0], NOT_SUPPORTED),
            (POWERCAP, 0x5, &[0, 0, 15_000_000], NOT_SUPPORTED),
            (POWERCAP, 0x7, &[0, 0, 1_000_000], NOT_SUPPORTED),
        ],
    );
}

#[test]
fn test_what_linux_7_3_asks_for_is_answered() {
    let mut bench = Bench::new();
    // A domain that is found on is turned on, so that it counts as used.
    assert_eq!(bench.words(POWER, 0x5, &[1]), [0]);
    bench.ok(POWER, 0x4, &[0, 1, 0]);
    let mut other = Bench::on(&Arc::clone(&bench.hub), 1);
    other.ok(POWER, 0x4, &[0, 1, 1 << 30]);
    assert_eq!(bench.words(POWER, 0x5, &[1]), [0], "it stays on");
    // cpufreq wants to know of limits.
    bench.give(1, LINUX);
    bench.ok(PERFORMANCE, 0x9, &[0, 1]);
    other.ok(PERFORMANCE, 0x5, &[0, 1_000_000, 0]);
    bench.run();
    assert_eq!(bench.notice(PERFORMANCE, 0), [0, 0, 1_000_000, 600_000]);
    // hwmon turns sensors on, without timestamps.
    for sensor in 0..9 {
        bench.ok(SENSOR, 0xa, &[sensor, 1]);
    }
    // The first three rates of a clock, and then the last.
    let first = bench.words(CLOCK, 0x4, &[2, 0]);
    assert_eq!(first[0], 4);
    assert_eq!(bench.words(CLOCK, 0x4, &[2, 3]), [1, 48_000_000, 0]);
    // A range is three numbers and nothing is left: Linux would correct anything else.
    assert_eq!(bench.words(CLOCK, 0x4, &[1, 0])[0], 1 << 12 | 3);
}
