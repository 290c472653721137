//! Linux's virtio_rng driver against vhost-device-rng.

use anyhow::Result;
use vhost_device_guest::{Arch, Daemon, Guest, RunningGuest, on_each_arch};

const DEVICE: &str = "vhost-user-rng-pci";

const CURRENT: &str = "cat /sys/class/misc/hw_random/rng_current";
const READ_64: &str = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | od -An -v -tx1";

fn daemon() -> Daemon {
    Daemon::new("vhost-device-rng").device(DEVICE)
}

/// The bytes of a hex dump, which must be 64 and not all the same.
#[track_caller]
fn entropy(dump: &str) -> Vec<u8> {
    let bytes: Vec<u8> = dump
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect("od prints bytes in hex"))
        .collect();
    assert_eq!(bytes.len(), 64, "in {dump}");
    assert!(bytes.iter().any(|byte| *byte != bytes[0]), "in {dump}");
    bytes
}

/// The guest's driver is there and reads entropy.
#[track_caller]
fn assert_works(guest: &mut RunningGuest) -> Result<Vec<u8>> {
    let seen = guest.run_all(&[CURRENT, READ_64])?;
    seen.line(0).is("virtio_rng.0");
    Ok(entropy(seen.line(1).text()))
}

on_each_arch! {
    the_driver_binds_and_reads_entropy,
    a_mebibyte_is_read_whole,
    a_rate_limit_delays_and_does_not_starve,
    two_guests_share_a_daemon,
    a_reset_guest_reads_again,
    a_daemon_serves_again_when_qemu_was_killed,
}

fn the_driver_binds_and_reads_entropy(arch: &'static Arch) -> Result<()> {
    let seen = Guest::of(arch).attach(daemon()).run(&[
        CURRENT,
        "basename $(readlink /sys/bus/virtio/drivers/virtio_rng/virtio*)",
        READ_64,
        READ_64,
    ])?;
    seen.line(0).is("virtio_rng.0");
    seen.line(1).is("virtio0");
    assert_ne!(
        entropy(seen.line(2).text()),
        entropy(seen.line(3).text()),
        "two reads gave the same"
    );
    Ok(())
}

fn a_mebibyte_is_read_whole(arch: &'static Arch) -> Result<()> {
    let seen = Guest::of(arch).attach(daemon()).run(&[
        "dd if=/dev/hwrng bs=64k count=16 2>/dev/null | tee /tmp/one | wc -c",
        // Random bytes do not get smaller.
        "gzip -c /tmp/one | wc -c",
    ])?;
    seen.line(0).is("1048576");
    let compressed: u32 = seen.line(1).text().parse()?;
    assert!(compressed > 1 << 20, "1 MiB was compressed to {compressed}");
    Ok(())
}

fn a_rate_limit_delays_and_does_not_starve(arch: &'static Arch) -> Result<()> {
    let limited = daemon().args(["--max-bytes", "1024", "--period", "1000"]);
    let mut guest = Guest::of(arch).attach(limited).boot()?;
    assert_works(&mut guest)?;
    guest.power_off()
}

fn two_guests_share_a_daemon(arch: &'static Arch) -> Result<()> {
    let daemon = daemon().guests(2).start()?;
    let mut one = Guest::of(arch).device(DEVICE, daemon.socket(0)).boot()?;
    let mut two = Guest::of(arch).device(DEVICE, daemon.socket(1)).boot()?;
    assert_ne!(assert_works(&mut one)?, assert_works(&mut two)?);

    // The end of one is nothing to the other.
    one.power_off()?;
    assert_works(&mut two)?;
    two.power_off()?;
    daemon.stop()
}

fn a_reset_guest_reads_again(arch: &'static Arch) -> Result<()> {
    let mut guest = Guest::of(arch).attach(daemon()).resets().boot()?;
    let before = assert_works(&mut guest)?;
    guest.reset()?;
    assert_ne!(assert_works(&mut guest)?, before);
    guest.power_off()
}

fn a_daemon_serves_again_when_qemu_was_killed(arch: &'static Arch) -> Result<()> {
    let daemon = daemon().start()?;
    let mut killed = Guest::of(arch).device(DEVICE, daemon.socket(0)).boot()?;
    assert_works(&mut killed)?;
    killed.kill()?;

    let mut next = Guest::of(arch).device(DEVICE, daemon.socket(0)).boot()?;
    assert_works(&mut next)?;
    next.power_off()?;
    daemon.stop()
}
