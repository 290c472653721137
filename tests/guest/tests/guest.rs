//! The guests themselves: what they can do without any device of ours.

use anyhow::Result;
use vhost_device_guest::Guest;
use vhost_device_guest::setup::Series;

#[test]
fn lines_come_back_with_their_output_and_status() -> Result<()> {
    let seen = Guest::new().run(&[
        "uname -r",
        "echo out; echo err >&2; exit 3",
        "printf 'no newline'",
        "head -c 1000000 /dev/zero | tr '\\0' x",
        "ls /sys/kernel/config /sys/kernel/debug >/dev/null && echo mounted",
        "insmod /modules/i2c-stub.ko chip_addr=0x50 && ls /dev/i2c-*",
    ])?;
    let series = Series::chosen()?.name;
    assert!(seen.line(0).text().starts_with(&format!("{series}.")));
    assert_eq!(seen.line(1).output, "out\nerr\n");
    assert_eq!(seen.line(1).status, 3);
    assert_eq!(seen.line(2).output, "no newline");
    assert_eq!(seen.line(3).text(), "x".repeat(1_000_000));
    seen.line(4).is("mounted");
    seen.line(5).is("/dev/i2c-0");
    Ok(())
}

#[test]
fn a_guest_can_be_stopped_continued_and_reset() -> Result<()> {
    let mut guest = Guest::new().resets().boot()?;
    guest.qmp().execute("stop")?;
    guest.qmp().execute("cont")?;
    guest.run("touch /tmp/here")?.succeeded();
    guest.reset()?;
    assert_ne!(guest.run("ls /tmp/here")?.status, 0, "a reset clears /tmp");
    guest.power_off()
}
