//! QEMU: any that is new enough, or else Debian's, installed.

use std::process::Command;

use anyhow::{Result, ensure};

use super::apt::Apt;
use crate::arch::Arch;

/// The oldest series that serves: it has all of the vhost-user devices.
const OLDEST: (u32, u32) = (10, 0);
/// The series that is installed where there is none.
const PIN: &str = "1:10.0.*";

/// Whether there is a QEMU that is new enough.
pub(crate) fn is_installed(arch: &Arch) -> bool {
    let output = Command::new(arch.qemu).arg("--version").output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse_version(&text).is_some_and(|version| version >= OLDEST)
    })
}

/// Installs QEMU unless it is there.
pub(crate) fn install(arch: &Arch, apt: &Apt<'_>) -> Result<()> {
    if is_installed(arch) {
        return Ok(());
    }
    apt.install_backport(arch.qemu_package, PIN)?;
    ensure!(
        is_installed(arch),
        "{} was installed, but {} is not of version {}.{} or later: is an older one before it in PATH?",
        arch.qemu_package,
        arch.qemu,
        OLDEST.0,
        OLDEST.1
    );
    Ok(())
}

/// The version in `QEMU emulator version 10.0.2 (Debian …)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_once("version ")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let parse = |version| parse_version(&format!("QEMU emulator version {version}\nCopy"));
        assert_eq!(parse("10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert!(parse("7.2.15") < Some(OLDEST));
        assert!(parse("11.1.0") > Some(OLDEST));
        assert_eq!(parse_version("no such thing"), None);
    }
}
