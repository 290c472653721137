//! The daemons, built for arm64 and linked statically, serve a driver of this machine.

use std::path::Path;
use std::process::Command;

use vhost_device_arm64::build;
use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Options};
use vhost_device_guest::setup::Arm64;
use vhost_device_rig::Daemon;
use vhost_device_rig::program::DEADLINE;

/// What a daemon is started with, the features that its driver must take, its queues, and a request
/// to the first of them: what it reads, and room for its answer, which fills it.
struct Case {
    daemon: &'static str,
    arguments: &'static [&'static str],
    features: u64,
    queues: &'static [u16],
    request: &'static [u8],
    room: u32,
}

/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`.
const ZERO_LENGTH_REQUEST: u64 = 1;

const CASES: [Case; 4] = [
    Case {
        daemon: "vhost-device-rng",
        arguments: &[],
        features: 0,
        queues: &[64],
        request: &[],
        room: 64,
    },
    // A byte of the EEPROM at 0x50: the address, padding, VIRTIO_I2C_FLAGS_M_RD.
    Case {
        daemon: "vhost-device-i2c",
        arguments: &["-l", "sim"],
        features: ZERO_LENGTH_REQUEST,
        queues: &[64],
        request: &[0xa0, 0, 0, 0, 2, 0, 0, 0],
        room: 2,
    },
    // VIRTIO_GPIO_MSG_GET_DIRECTION of line 0.
    Case {
        daemon: "vhost-device-gpio",
        arguments: &["-l", "sim:4"],
        features: 0,
        queues: &[64, 64],
        request: &[2, 0, 0, 0, 0, 0, 0, 0],
        room: 2,
    },
    // The base protocol's PROTOCOL_VERSION: a header, the status, the version.
    Case {
        daemon: "vhost-device-scmi",
        arguments: &["--sim"],
        features: 0,
        queues: &[64],
        request: &[0, 0x40, 0, 0],
        room: 12,
    },
];

impl Case {
    fn serves(&self, tools: &Arm64, program: &Path) {
        let directory = tempfile::tempdir().unwrap();
        // Without the libraries of arm64: it needs none.
        let mut command = Command::new(tools.emulator());
        command.arg(program).arg("-s");
        command.arg(directory.path().join("s")).args(self.arguments);
        let daemon = Daemon::spawn(command, directory);
        let options = Options::new(self.queues)
            .regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
            .with_features(self.features);
        let mut guest = daemon.guest("s", options);
        let answer = guest.alloc(self.room.into());
        let mut buffers = Vec::new();
        if !self.request.is_empty() {
            let request = guest.alloc(self.request.len() as u64);
            guest.memory.write(request, self.request);
            buffers.push(Buffer::readable(request, self.request.len() as u32));
        }
        buffers.push(Buffer::writable(answer, self.room));
        guest.queues[0].submit(&buffers).unwrap();
        guest.queues[0].notify();
        let used = guest.queues[0].wait_used(DEADLINE);
        assert_eq!(used.len, self.room, "{}", self.daemon);
        if let [.., status] = *guest.memory.read_vec(answer, self.room as usize)
            && !self.request.is_empty()
        {
            // Of an I2C message it is the last byte; of a direction the last byte is none of a line
            // that is not used; of a version it is that of the major number's high half.
            assert_eq!(status, 0, "{}", self.daemon);
        }
        drop(guest);
        daemon.stop();
    }
}

#[test]
fn static_daemons_serve_a_driver_of_another_architecture() {
    let tools = Arm64::find().unwrap();
    // Not for release: that takes minutes, and is the same but for the optimizer.
    let mut cargo = build::static_cargo(&tools, ["build"]).unwrap();
    let programs = build::programs(&mut cargo).unwrap();
    for program in &programs {
        let case = CASES.iter().find(|case| case.daemon == program.target);
        let case = case.unwrap_or_else(|| panic!("nothing is asked of {}", program.target));
        case.serves(&tools, &program.executable);
    }
    assert!(programs.len() >= CASES.len());
}
