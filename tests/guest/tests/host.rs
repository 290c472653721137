//! The devices' own tests on a machine with hardware: a guest that is the host of the daemons.
//! What its hardware is, is in docs/testing.md.

use anyhow::Result;
use vhost_device_guest::{Daemon, Guest, TestProgram};

/// Panics unless each of these is the beginning of a test's name.
#[track_caller]
fn assert_covers(tests: &TestProgram, clauses: &[&str]) {
    for clause in clauses {
        let mut names = tests.names().iter();
        assert!(
            names.any(|name| name.contains(clause)),
            "no test for {clause}"
        );
    }
}

const I2C: &str = "vhost-device-i2c";

#[test]
fn i2c_on_adapters_of_the_kernel() -> Result<()> {
    let tests = TestProgram::build(I2C, "adapter")?;
    assert_covers(&tests, &["i1_", "i3_", "i8_", "i9_", "i11_"]);
    let kernel_tests = TestProgram::build(I2C, "kernel")?;
    let mut host = Guest::new()
        .attach(
            Daemon::new(I2C)
                .args(["-l", "sim"])
                .device("vhost-user-i2c-pci"),
        )
        .test_program(&tests)?
        .test_program(&kernel_tests)?
        .boot()?;
    host.run("insmod /modules/i2c-stub.ko chip_addr=0x20,0x48,0x50")?
        .succeeded();
    host.run("cat /sys/bus/i2c/devices/i2c-*/name")?
        .is("i2c_virtio at virtio bus 0\nSMBus stub driver");
    let buses = [
        "VHOST_DEVICE_TEST_I2C=/dev/i2c-0",
        "VHOST_DEVICE_TEST_SMBUS=/dev/i2c-1",
    ];
    host.run_tests(&tests, &buses)?.all_passed();
    // What a test writes there last, through a daemon and no simulator.
    for bus in ["0", "1"] {
        host.run(&format!("/usr/sbin/i2cget -y {bus} 0x20 9"))?
            .is("0x2a");
    }
    host.run_tests(&kernel_tests, &buses)?.all_passed();
    host.power_off()
}

#[test]
fn gpio_chips_of_the_kernel_are_made_and_driven() -> Result<()> {
    let tests = TestProgram::build("vhost-device-rig", "gpio_sim")?;
    let mut host = Guest::new().test_program(&tests)?.boot()?;
    host.run_tests(&tests, &[])?.all_passed();
    host.power_off()
}

#[test]
fn gpio_on_chips_of_the_kernel() -> Result<()> {
    let tests = TestProgram::build("vhost-device-gpio", "lines")?;
    assert_covers(
        &tests,
        &[
            "g1_", "g2_", "g4_", "g5_", "g7_", "g8_", "g9_", "g10_", "g11_", "g12_", "g13_",
            "g14_", "g15_", "g16_", "g17_",
        ],
    );
    let kernel_tests = TestProgram::build("vhost-device-gpio", "kernel")?;
    let mut host = Guest::new()
        .test_program(&tests)?
        .test_program(&kernel_tests)?
        .boot()?;
    host.run_tests(&tests, &["VHOST_DEVICE_TEST_GPIO_SIM=1"])?
        .all_passed();
    host.run_tests(&kernel_tests, &[])?.all_passed();
    host.power_off()
}

#[test]
fn memory_of_each_kind_that_the_kernel_has() -> Result<()> {
    let tests = TestProgram::build("vhost-device-rng", "kernel")?;
    let mut host = Guest::new().test_program(&tests)?.boot()?;
    for line in [
        "echo 8 > /proc/sys/vm/nr_hugepages",
        "mkdir /tmp/overlay && mount -t tmpfs tmpfs /tmp/overlay",
        "cd /tmp/overlay && mkdir lower upper work merged && mount -t overlay overlay \
         -o lowerdir=lower,upperdir=upper,workdir=work merged",
    ] {
        host.run(line)?.succeeded();
    }
    let overlay = "VHOST_DEVICE_TEST_OVERLAY=/tmp/overlay/merged";
    host.run_tests(&tests, &[overlay])?.all_passed();
    host.power_off()
}

#[test]
fn scmi_on_hardware_of_the_kernel() -> Result<()> {
    let tests = TestProgram::build("vhost-device-scmi", "kernel")?;
    let mut host = Guest::new().test_program(&tests)?.boot()?;
    for line in [
        "insmod /modules/i2c-stub.ko chip_addr=0x48",
        "/usr/sbin/i2cset -y 0 0x48 0 0x0019 w",
        "echo lm75 0x48 > /sys/bus/i2c/devices/i2c-0/new_device",
    ] {
        host.run(line)?.succeeded();
    }
    host.run_tests(&tests, &[])?.all_passed();
    host.power_off()
}
