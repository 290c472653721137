//! QEMU, of a newer Debian than the machine's: unpacked into the cache with the libraries that it
//! needs, and never installed.
//!
//! Its programs are started by the loader that comes with them, which finds their libraries beside
//! itself. Nothing of the machine's own is loaded, and no root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::{Cache, Entry, LockedCache};
use super::packages::{Packages, Pin};
use crate::arch::Arch;
use crate::programs::libraries;

/// The series: the newest that Debian 13's backports have.
const SERIES: &str = "1:11.1.*";

/// The compiler of device trees, which comes along for machines that have one.
const DTC: &str = "dtc";
const DTC_PIN: Pin = Pin {
    package: "device-tree-compiler",
    version: "1.7.*",
};

/// What QEMU puts into a machine's memory. `virt` is started without any.
const FIRMWARE: [&str; 6] = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/efi-virtio.rom",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/multiboot_dma.bin",
    "usr/share/qemu/pvh.bin",
];

/// To be counted up when what is taken changes.
const RECIPE: &str = "recipe 1";

/// QEMU for guests of one architecture.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    arch: &'static Arch,
    directory: PathBuf,
}

impl Qemu {
    /// QEMU, when it is in the cache.
    pub(crate) fn find(arch: &'static Arch, cache: &Cache) -> Result<Option<Self>> {
        let found = with_entry(arch, |entry| cache.find(entry))?;
        Ok(found.map(|directory| Self { arch, directory }))
    }

    /// Puts it into the cache unless it is there.
    pub(crate) fn unpack(
        arch: &'static Arch,
        cache: &LockedCache,
        newer: &Packages<'_>,
    ) -> Result<()> {
        if Self::find(arch, cache.cache())?.is_some() {
            return Ok(());
        }
        let own = Arch::own()?;
        let work = cache.temporary()?;
        let root = work.path().join("root");
        let title = format!("Getting {} {SERIES} with its libraries", arch.qemu_package);
        let version = newer.unpack_whole(&title, &pins(arch), &root)?;
        let version = version.context("apt takes QEMU for installed")?;
        let made = work.path().join("made");
        take(arch, own, &root, &made)
            .with_context(|| format!("cannot take {} out of its packages", arch.qemu))?;
        with_entry(arch, |entry| cache.publish(&made, entry, &version))
    }

    /// A command that runs QEMU.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = self.program(self.arch.qemu)?;
        command.arg("-L").arg(self.directory.join("firmware"));
        // It has none: what the machine has is another QEMU's.
        command.env("QEMU_MODULE_DIR", self.directory.join("modules"));
        Ok(command)
    }

    /// A command that runs the compiler of device trees.
    pub(crate) fn dtc(&self) -> Result<Command> {
        ensure!(
            self.arch.has_device_tree,
            "a guest of {} has no device tree",
            self.arch.name
        );
        self.program(DTC)
    }

    fn program(&self, name: &str) -> Result<Command> {
        let libraries = self.directory.join("lib");
        let mut command = Command::new(libraries.join(Arch::own()?.loader));
        command.arg("--library-path").arg(&libraries);
        command.args(["--argv0", name]);
        command.arg(self.directory.join("bin").join(name));
        Ok(command)
    }
}

fn pins(arch: &Arch) -> Vec<Pin> {
    let qemu = Pin {
        package: arch.qemu_package,
        version: SERIES,
    };
    let dtc = arch.has_device_tree.then_some(DTC_PIN);
    [qemu].into_iter().chain(dtc).collect()
}

fn programs(arch: &Arch) -> Vec<&'static str> {
    let dtc = arch.has_device_tree.then_some(DTC);
    [arch.qemu].into_iter().chain(dtc).collect()
}

/// Does something with the cache's entry for it.
fn with_entry<T>(arch: &Arch, work: impl FnOnce(&Entry<'_>) -> T) -> T {
    let pins = pins(arch);
    let pins = pins.iter().flat_map(|pin| [pin.package, pin.version]);
    let made_of: Vec<_> = pins.chain(FIRMWARE).chain([RECIPE]).collect();
    work(&Entry {
        what: arch.qemu.to_owned(),
        made_of: &made_of,
    })
}

/// Takes the programs, the libraries that they are linked to, and the firmware out of the unpacked
/// packages: a third of them.
fn take(arch: &Arch, own: &Arch, root: &Path, made: &Path) -> Result<()> {
    let copy = |from: &Path, to: &str| -> Result<()> {
        let name = from.file_name().context("a file without a name")?;
        let directory = made.join(to);
        fs::create_dir_all(&directory)
            // Libraries are symbolic links to what is named by its whole version.
            .and_then(|()| fs::copy(from, directory.join(name)))
            .with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    let loader = root.join("usr").join(own.loader_directory).join(own.loader);
    copy(&loader, "lib")?;
    let search = root.join("usr/lib").join(own.triplet);
    for program in programs(arch) {
        let program = root.join("usr/bin").join(program);
        copy(&program, "bin")?;
        let mut list = Command::new(&loader);
        list.arg("--library-path").arg(&search).arg("--list");
        let output = list.arg(&program).output();
        let output = output.with_context(|| format!("cannot run {}", loader.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{} lacks libraries: {text}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        for library in libraries(&text).map(Path::new) {
            // Its own loader is named by the path that the machine's has.
            if library.starts_with(&search) {
                copy(library, "lib")?;
            }
        }
    }
    let firmware = FIRMWARE.iter().map(|path| root.join(path));
    // Those of a PC alone come with its QEMU.
    for file in firmware.filter(|file| file.exists()) {
        copy(&file, "firmware")?;
    }
    fs::create_dir_all(made.join("firmware")).context("cannot make a directory for firmware")
}
