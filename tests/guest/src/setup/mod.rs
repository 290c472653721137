//! Gets, builds and caches what guests are made of.
//!
//! [`run`] makes everything be there: QEMU is installed with apt, a kernel is
//! built of Debian's source, busybox and some tools are taken out of their
//! packages. What was built stays in the cache; when nothing is missing,
//! nothing is downloaded and apt is not asked. [`find`] only looks.
//! [`install_crate`] is apart from guests: it installs a program of crates.io
//! into the same cache, and [`build_library`] builds something of C for a bench.
//!
//! Versions are pinned to a series and not exactly, because Debian's mirrors
//! keep only the latest of each.

mod apt;
mod busybox;
mod cache;
mod cpio;
mod crates;
mod initramfs;
mod kernel;
mod library;
mod progress;
mod qemu;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::programs::Programs;
use apt::{Apt, Tool};
use cache::Cache;
pub use crates::{Build, install_crate, install_crate_with};
pub use library::{Library, Origin, build_library};
pub use progress::Progress;

/// What a guest is booted from.
#[derive(Debug)]
pub struct Images {
    /// The guest's architecture.
    pub arch: &'static Arch,
    /// The kernel image.
    pub kernel: PathBuf,
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

/// Makes everything that guests need be there, saying what it does.
pub fn run(progress: &Progress) -> Result<Images> {
    let arch = &Arch::X86_64;
    let cache = Cache::open()?;
    if let Some(images) = look(arch, &cache)? {
        return Ok(images);
    }
    let cache = cache.lock(progress)?;
    let apt = Apt::new(&cache, progress);
    qemu::install(arch, &apt)?;
    kernel::build(arch, &cache, &apt, progress)?;
    busybox::extract(arch, &cache, &apt, progress)?;
    tools::extract(arch, &cache, &apt, progress)?;
    find()
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

/// What guests need, when [`run`] made it be there before.
pub fn find() -> Result<Images> {
    look(&Arch::X86_64, &Cache::open()?)?
        .context("the guests are not set up: run `cargo xtask setup`")
}

fn look(arch: &'static Arch, cache: &Cache) -> Result<Option<Images>> {
    let (Some(kernel), Some(busybox), Some(tools), true) = (
        kernel::find(arch, cache)?,
        busybox::find(arch, cache)?,
        tools::find(arch, cache)?,
        qemu::is_installed(arch),
    ) else {
        return Ok(None);
    };
    Ok(Some(Images {
        arch,
        kernel: kernel.image,
        modules: kernel.modules,
        busybox,
        tools,
    }))
}
