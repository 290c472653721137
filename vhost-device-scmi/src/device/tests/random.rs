//! Any bytes as a command: an answer, and never a panic.

use proptest::prelude::*;

use super::*;

/// Numbers that mean something, and others.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![0..12_u32, Just(u32::MAX), any::<u32>()]
}

/// A protocol and a message that there may be.
fn command() -> impl Strategy<Value = (u8, u8, Vec<u8>, u32)> {
    let protocol = prop_oneof![4 => 0x10..0x1a_u8, 1 => any::<u8>()];
    let message = prop_oneof![8 => 0..0x12_u8, 1 => any::<u8>()];
    let arguments = prop_oneof![
        6 => proptest::collection::vec(word(), 0..6).prop_map(|words| bytes(&words)),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
    ];
    let room = prop_oneof![4 => Just(LINUX), 1 => 8..300_u32];
    (protocol, message, arguments, room)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn test_any_commands_are_answered(commands in proptest::collection::vec(command(), 1..200)) {
        let hub = hub(|platform| {
            let read = Permissions::all(Access::Read);
            platform.clocks[0].permissions = read.clone();
            platform.voltages[0].permissions = read;
        });
        let mut guests = [Bench::on(&hub, 0), Bench::on(&hub, 1)];
        for (count, (protocol, message, arguments, room)) in commands.into_iter().enumerate() {
            let bench = &mut guests[count % 2];
            // It looks at the header, the status, the length and what is around the answer.
            let (status, results) = bench.command(protocol, message, &arguments, room);
            prop_assert!((-11..=0).contains(&status));
            prop_assert!(results.len() <= room as usize - 8);
            if count % 16 == 0 {
                bench.give(1, room);
                bench.pass_time();
                bench.pass_time();
            }
        }
        for mut bench in guests {
            prop_assert_eq!(bench.words(BASE, 0, &[]), [0x2_0001]);
        }
    }

    #[test]
    fn test_any_bytes_come_back(
        requests in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..40), 0..40_u32),
            1..20,
        ),
    ) {
        let mut bench = Bench::new();
        for (request, room) in requests {
            if request.is_empty() && room == 0 {
                continue;
            }
            let sent = bench.send(COMMAND_QUEUE, &request, room);
            bench.run();
            let answer = bench.answer(sent).unwrap();
            prop_assert!(answer.is_empty() || answer.len() >= 8);
        }
    }
}
