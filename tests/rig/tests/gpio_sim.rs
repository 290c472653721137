//! The kernel's chips that the GPIO tests have in the host guest, seen through their devices.
//!
//! Ignored elsewhere: `tests/guest/tests/host.rs` runs these.

use std::fs::File;
use std::path::Path;

use gpiocdev_uapi::v2::{
    LineConfig, LineEdgeEvent, LineEdgeEventKind, LineFlags, LineRequest, LineValues, Offsets,
    get_chip_info, get_line, get_line_info, get_line_values, has_event, read_event,
    set_line_values, wait_event,
};
use vhost_device_rig::GpioSim;
use vhost_device_rig::program::DEADLINE;

fn open(chip: &GpioSim) -> File {
    let mut options = File::options();
    options.read(true).write(true).open(chip.device()).unwrap()
}

fn request(chip: &File, line: u32, flags: LineFlags) -> File {
    let request = LineRequest {
        offsets: Offsets::from_slice(&[line]),
        consumer: "test".into(),
        config: LineConfig {
            flags,
            ..LineConfig::default()
        },
        num_lines: 1,
        ..LineRequest::default()
    };
    get_line(chip, request).unwrap()
}

fn is_high(line: &File) -> bool {
    let mut values = LineValues { bits: 0, mask: 1 };
    get_line_values(line, &mut values).unwrap();
    values.bits == 1
}

/// The next edge, which must come.
fn edge(line: &File) -> u32 {
    assert!(wait_event(line, DEADLINE).unwrap(), "no edge");
    let mut words = vec![0; LineEdgeEvent::u64_size()];
    read_event(line, &mut words).unwrap();
    LineEdgeEvent::from_slice(&words).unwrap().kind
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_chips_have_their_names_and_go_away() {
    let one = GpioSim::new("one", &["button", "", "led"]);
    let two = GpioSim::new("two", &["button"]);
    for (chip, label, names) in [
        (&one, "one", &["button", "", "led"][..]),
        (&two, "two", &["button"]),
    ] {
        let file = open(chip);
        let info = get_chip_info(&file).unwrap();
        assert_eq!(String::from(&info.label), label);
        assert_eq!(info.num_lines as usize, names.len());
        for (line, name) in (0..).zip(names) {
            let info = get_line_info(&file, line).unwrap();
            assert_eq!(&String::from(&info.name), name);
        }
    }
    let device = one.device().to_owned();
    assert!(device.exists());
    drop((one, two));
    assert!(!device.exists());
    assert!(!Path::new("/sys/kernel/config/gpio-sim/one").exists());
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_inputs_follow_what_pulls_them_with_an_edge_each() {
    let chip = GpioSim::new("inputs", &["a", "b"]);
    let file = open(&chip);
    let edges = LineFlags::INPUT | LineFlags::EDGE_RISING | LineFlags::EDGE_FALLING;
    let line = request(&file, 1, edges);
    for high in [true, false] {
        chip.pull(1, high);
        let expected = match high {
            true => LineEdgeEventKind::RisingEdge,
            false => LineEdgeEventKind::FallingEdge,
        };
        assert_eq!(edge(&line), expected as u32);
        assert_eq!(is_high(&line), high);
        assert_eq!(chip.is_high(1), high);
    }
    // Neither the same level again nor another line gives an edge: the next is that of the pull
    // behind them.
    chip.pull(1, false);
    chip.pull(0, true);
    chip.pull(1, true);
    assert_eq!(edge(&line), LineEdgeEventKind::RisingEdge as u32);
    assert!(!has_event(&line).unwrap());
}

#[test]
#[ignore = "needs gpio-sim of the host guest"]
fn kernel_outputs_are_seen_from_outside() {
    let chip = GpioSim::new("outputs", &["a"]);
    let file = open(&chip);
    let line = request(&file, 0, LineFlags::OUTPUT);
    for high in [true, false, true] {
        let values = LineValues {
            bits: high.into(),
            mask: 1,
        };
        set_line_values(&line, &values).unwrap();
        assert_eq!(chip.is_high(0), high);
        // What is outside does not change what is driven.
        chip.pull(0, !high);
        assert_eq!(chip.is_high(0), high);
    }
}
