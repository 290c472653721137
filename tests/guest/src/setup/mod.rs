//! Gets, builds and caches what guests are made of.
//!
//! [`run`] makes everything be there: QEMU, busybox and some tools are taken out
//! of their packages, and a kernel is built of Debian's source. What was built stays in the cache; when nothing is missing,
//! nothing is downloaded and apt is not asked. [`find`] only looks.
//! [`install_crate`] is apart from guests: it installs a program of crates.io
//! into the same cache. So are the [`Arm64`] tools, and [`build_library`]
//! builds something of C for a bench.
//!
//! Versions are pinned to a series and not exactly, because Debian's mirrors
//! keep only the latest of each.

mod apt;
mod arm64;
mod busybox;
mod cache;
mod cpio;
mod crates;
mod initramfs;
mod kernel;
mod library;
mod packages;
mod progress;
mod qemu;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::programs::Programs;
use apt::{Apt, Tool};
pub use arm64::{Arm64, TARGET as ARM64_TARGET};
use cache::Cache;
pub use crates::{Build, install_crate, install_crate_with};
pub use library::{Library, Origin, build_library};
use packages::Packages;
pub use progress::Progress;
use qemu::Qemu;

/// What a guest is booted from.
#[derive(Debug)]
pub struct Images {
    /// The guest's architecture.
    pub arch: &'static Arch,
    /// The kernel image.
    pub kernel: PathBuf,
    /// What emulates the guest's machine.
    pub(crate) qemu: Qemu,
    modules: PathBuf,
    busybox: PathBuf,
    tools: PathBuf,
}

impl Images {
    /// Writes the guest's root file system, an initramfs with these programs.
    pub(crate) fn write_initramfs(&self, to: &Path, programs: &Programs) -> Result<()> {
        initramfs::write(to, self, programs)
            .with_context(|| format!("cannot make the guest's initramfs {}", to.display()))
    }
}

/// Makes everything that guests of these architectures need be there, saying
/// what it does.
pub fn run(archs: &[&'static Arch], progress: &Progress) -> Result<()> {
    let cache = Cache::open()?;
    let mut missing = Vec::new();
    for &arch in archs {
        if look(arch, &cache)?.is_none() {
            missing.push(arch);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let cache = cache.lock(progress)?;
    let apt = Apt::new(&cache, progress);
    let newer = Packages::newer(&cache, progress);
    for arch in &missing {
        Qemu::unpack(arch, &cache, &newer)?;
    }
    kernel::build(&missing, &cache, &apt, progress)?;
    for arch in missing {
        let foreign = Packages::foreign(&cache, progress, arch.debian);
        let packages = if arch.is_own() {
            apt.packages()
        } else {
            &foreign
        };
        busybox::extract(arch, &cache, packages)?;
        tools::extract(arch, &cache, packages)?;
        find(arch)?;
    }
    Ok(())
}

/// Installs a Debian package unless the program that it brings is there.
pub fn require(
    purpose: &str,
    package: &'static str,
    program: &'static str,
    progress: &Progress,
) -> Result<()> {
    let cache = Cache::open()?.lock(progress)?;
    Apt::new(&cache, progress).install_tools(purpose, &[Tool::program(package, program)])
}

/// What guests of this architecture need, when [`run`] made it be there before.
pub fn find(arch: &'static Arch) -> Result<Images> {
    look(arch, &Cache::open()?)?.with_context(|| {
        format!(
            "the guests for {} are not set up: run `cargo xtask setup`",
            arch.name
        )
    })
}

fn look(arch: &'static Arch, cache: &Cache) -> Result<Option<Images>> {
    let (Some(qemu), Some(kernel), Some(busybox), Some(tools)) = (
        Qemu::find(arch, cache)?,
        kernel::find(arch, cache)?,
        busybox::find(arch, cache)?,
        tools::find(arch, cache)?,
    ) else {
        return Ok(None);
    };
    Ok(Some(Images {
        arch,
        kernel: kernel.image,
        qemu,
        modules: kernel.modules,
        busybox,
        tools,
    }))
}
