//! Linux's virtio_i2c driver against vhost-device-i2c, over its simulated bus.

use anyhow::Result;
use vhost_device_guest::{Arch, Daemon, Guest, RunningGuest, on_each_arch};

// The programs are named by their paths, as busybox has poorer ones of the same names.

const DEVICE: &str = "vhost-user-i2c-pci";

const NEW_DEVICE: &str = "/sys/bus/i2c/devices/i2c-0/new_device";
const EEPROM: &str = "/sys/bus/i2c/devices/0-0050/eeprom";

fn daemon(bus: &str) -> Daemon {
    Daemon::new("vhost-device-i2c")
        .args(["-l", bus])
        .device(DEVICE)
}

/// A register that was written is read back.
#[track_caller]
fn assert_works(guest: &mut RunningGuest, value: &str) -> Result<()> {
    let set = format!("/usr/sbin/i2cset -y 0 0x20 7 {value}");
    let seen = guest.run_all(&[&set, "/usr/sbin/i2cget -y 0 0x20 7"])?;
    seen.line(0).succeeded();
    seen.line(1).is(value);
    Ok(())
}

/// The addresses that i2cdetect found, and not the row and column heads.
fn detected(table: &str) -> Vec<&str> {
    let rows = table.lines().skip(1);
    let cells = rows.flat_map(|row| row.split_whitespace().skip(1));
    cells.filter(|cell| *cell != "--").collect()
}

on_each_arch! {
    the_adapter_is_there_and_its_devices_are_found,
    registers_are_written_and_read,
    an_eeprom_is_written_and_read_through_at24,
    a_temperature_is_read_through_hwmon,
    only_what_is_granted_is_found,
    an_smbus_only_adapter_serves_what_linux_makes_of_calls,
    a_transfer_longer_than_the_queue_ends,
    the_driver_is_rebound_and_the_guest_reset,
    guests_have_lists_of_their_own,
}

fn the_adapter_is_there_and_its_devices_are_found(arch: &'static Arch) -> Result<()> {
    let seen = Guest::of(arch).attach(daemon("sim")).run(&[
        "/usr/sbin/i2cdetect -V 2>&1",
        "/usr/sbin/i2cdetect -l",
        "/usr/sbin/i2cdetect -y 0",
        "/usr/sbin/i2cdetect -y -q 0",
        "/usr/sbin/i2cdetect -y -r 0",
        "/usr/sbin/i2cdetect -F 0",
    ])?;
    seen.line(0).contains("i2cdetect version");
    seen.line(1).contains("i2c-0");
    seen.line(1).contains("virtio");
    for line in 2..5 {
        let table = seen.line(line).text();
        assert_eq!(detected(table), ["20", "30", "48", "50"], "in {table}");
    }
    seen.line(5).contains("I2C ");
    Ok(())
}

fn registers_are_written_and_read(arch: &'static Arch) -> Result<()> {
    let mut guest = Guest::of(arch).attach(daemon("sim")).boot()?;
    assert_works(&mut guest, "0x5a")?;
    let seen = guest.run_all(&[
        "/usr/sbin/i2ctransfer -y 0 w4@0x20 0x10 1 2 3",
        "/usr/sbin/i2ctransfer -y 0 w1@0x20 0x10 r4",
        "/usr/sbin/i2cset -y 0 0x20 0x30 0xbeef w && /usr/sbin/i2cget -y 0 0x20 0x30 w",
        "/usr/sbin/i2ctransfer -y 0 w1@0x20 0x10 r1@0x20 w1@0x20 0x12 r1@0x20",
        "/usr/sbin/i2ctransfer -y 0 r1@0x51",
    ])?;
    seen.line(0).succeeded();
    seen.line(1).is("0x01 0x02 0x03 0x00");
    seen.line(2).is("0xbeef");
    seen.line(3).is("0x01\n0x03");
    seen.line(4).contains("only 0/1");
    guest.power_off()
}

fn an_eeprom_is_written_and_read_through_at24(arch: &'static Arch) -> Result<()> {
    let seen = Guest::of(arch).attach(daemon("sim")).run(&[
        &format!("echo 24c02 0x50 > {NEW_DEVICE}"),
        &format!("stat -c %s {EEPROM}"),
        &format!(
            "seq -s, 1 60 | head -c 150 > /tmp/text && dd if=/tmp/text of={EEPROM} bs=1 seek=3"
        ),
        &format!("dd if={EEPROM} bs=1 skip=3 count=150 2>/dev/null | cmp - /tmp/text && echo same"),
        &format!("head -c 3 {EEPROM} | od -An -tx1"),
    ])?;
    seen.line(0).succeeded();
    seen.line(1).is("256");
    seen.line(2).succeeded();
    seen.line(3).is("same");
    seen.line(4).is("ff ff ff");
    Ok(())
}

fn a_temperature_is_read_through_hwmon(arch: &'static Arch) -> Result<()> {
    let daemon = daemon("sim").args(["--sim-temperature", "-10.5"]);
    let seen = Guest::of(arch).attach(daemon).run(&[
        &format!("echo lm75 0x48 > {NEW_DEVICE}"),
        "cat /sys/class/hwmon/hwmon0/name",
        "cat /sys/class/hwmon/hwmon0/temp1_input",
    ])?;
    seen.line(0).succeeded();
    seen.line(1).is("lm75");
    seen.line(2).is("-10500");
    Ok(())
}

fn only_what_is_granted_is_found(arch: &'static Arch) -> Result<()> {
    let daemon = daemon("sim:0x20:0x50").args(["--read-only", "0x50"]);
    let mut guest = Guest::of(arch).attach(daemon).boot()?;
    let table = guest.run("/usr/sbin/i2cdetect -y 0")?;
    assert_eq!(detected(table.text()), ["20", "50"]);
    assert_ne!(guest.run("/usr/sbin/i2cset -y 0 0x50 0 1")?.status, 0);
    guest.run("/usr/sbin/i2cget -y 0 0x50 0")?.is("0xff");
    guest.power_off()
}

fn an_smbus_only_adapter_serves_what_linux_makes_of_calls(arch: &'static Arch) -> Result<()> {
    let mut guest = Guest::of(arch).attach(daemon("sim-smbus")).boot()?;
    assert_works(&mut guest, "0x33")?;
    let seen = guest.run_all(&[
        "/usr/sbin/i2cset -y 0 0x20 0x30 0xbeef w && /usr/sbin/i2cget -y 0 0x20 0x30 w",
        "/usr/sbin/i2cset -y 0 0x20 0x40 1 2 3 4 5 i && /usr/sbin/i2cget -y 0 0x20 0x40 i 5",
        "/usr/sbin/i2ctransfer -y 0 r4@0x20",
    ])?;
    seen.line(0).is("0xbeef");
    seen.line(1).is("0x01 0x02 0x03 0x04 0x05");
    // No SMBus call does that.
    seen.line(2).contains("only 0/1");
    guest.power_off()
}

fn a_transfer_longer_than_the_queue_ends(arch: &'static Arch) -> Result<()> {
    // QEMU's queue has 4 entries: the driver sends the first messages alone.
    let mut guest = Guest::of(arch).attach(daemon("sim")).boot()?;
    let messages = "r1@0x20 ".repeat(10);
    let seen = guest.run(&format!("/usr/sbin/i2ctransfer -y 0 {messages}"))?;
    seen.contains("only 4/10");
    assert_works(&mut guest, "0x77")?;
    guest.power_off()
}

fn the_driver_is_rebound_and_the_guest_reset(arch: &'static Arch) -> Result<()> {
    let mut guest = Guest::of(arch).attach(daemon("sim")).resets().boot()?;
    assert_works(&mut guest, "0x01")?;
    let seen = guest.run_all(&[
        "basename /sys/bus/virtio/drivers/i2c_virtio/virtio* > /tmp/name && cat /tmp/name",
        "cat /tmp/name > /sys/bus/virtio/drivers/i2c_virtio/unbind",
        "ls /dev/i2c-0",
        "cat /tmp/name > /sys/bus/virtio/drivers/i2c_virtio/bind",
    ])?;
    seen.line(0).contains("virtio");
    seen.line(1).succeeded();
    assert_ne!(seen.line(2).status, 0, "the adapter is gone");
    seen.line(3).succeeded();
    assert_works(&mut guest, "0x02")?;
    guest.qmp().execute("stop")?;
    guest.qmp().execute("cont")?;
    assert_works(&mut guest, "0x03")?;
    guest.reset()?;
    assert_works(&mut guest, "0x04")?;
    guest.power_off()
}

fn guests_have_lists_of_their_own(arch: &'static Arch) -> Result<()> {
    let daemon = Daemon::new("vhost-device-i2c")
        .args(["-l", "sim:0x20:0x50", "-l", "sim:0x48:0x50"])
        .args(["--read-only", "1=0x50"])
        .guests(2)
        .start()?;
    // One guest with both sockets: it has two adapters.
    let mut guest = Guest::of(arch)
        .device(DEVICE, daemon.socket(0))
        .device(DEVICE, daemon.socket(1))
        .boot()?;
    let seen = guest.run_all(&[
        "/usr/sbin/i2cdetect -l | wc -l",
        "/usr/sbin/i2cdetect -y 0",
        "/usr/sbin/i2cdetect -y 1",
        "for n in 0 1; do if /usr/sbin/i2cset -y $n 0x50 9 $n >/dev/null 2>&1; then echo $n; fi; done",
        "/usr/sbin/i2cget -y 0 0x50 9; /usr/sbin/i2cget -y 1 0x50 9",
    ])?;
    seen.line(0).is("2");
    let mut found = [1, 2].map(|line| detected(seen.line(line).text()));
    found.sort_unstable();
    assert_eq!(found, [["20", "50"], ["48", "50"]]);
    // One of them wrote, and both see it.
    let writer = seen.line(3).text().trim();
    let value = format!("0x0{writer}");
    seen.line(4).is(&format!("{value}\n{value}"));
    guest.power_off()?;
    daemon.stop()
}
