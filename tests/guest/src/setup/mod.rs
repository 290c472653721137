//! Gets, builds and caches what guests are made of.
//!
//! [`run`] makes everything be there: QEMU, busybox and some tools are taken out
//! of their packages, and a kernel is built of Debian's source. What was built
//! stays in the cache; when nothing is missing, nothing is downloaded and apt is
//! not asked. [`find`] only looks. [`run_quickly`] is for who waits: much is done
//! at the same time, and the kernel is Debian's own.
//! [`install_crate`] is apart from guests: it installs a program of crates.io
//! into the same cache. So are the [`Arm64`] tools, and [`build_library`]
//! builds something of C for a bench.
//!
//! Versions are pinned to a series and not exactly, because Debian's mirrors
//! keep only the latest of each.

mod apt;
mod arm64;
mod background;
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
mod stock;
mod together;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::programs::Programs;
use apt::{Apt, Tool};
pub use arm64::{Arm64, TARGET as ARM64_TARGET};
pub use background::Background;
use cache::{Cache, Purpose};
pub use crates::{Build, install_crate};
use kernel::Kernel;
pub use kernel::{SERIES, Series};
pub use library::{Library, Origin, build_library};
use packages::Packages;
pub use progress::{Progress, Step};
use qemu::Qemu;
use together::together;

/// What a guest is booted from.
#[derive(Debug)]
pub struct Images {
    /// The guest's architecture.
    pub arch: &'static Arch,
    /// The kernel image.
    pub kernel: PathBuf,
    /// Whether the kernel is Debian's own, which has fewer drivers than the tests'.
    pub stock: bool,
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
/// what it does. The kernels are of the series that is [chosen](Series::chosen).
pub fn run(archs: &[&'static Arch], progress: &Progress) -> Result<()> {
    run_with(archs, Series::chosen()?, progress)
}

/// The same with kernels of this series.
pub fn run_with(archs: &[&'static Arch], series: &Series, progress: &Progress) -> Result<()> {
    let cache = Cache::open()?;
    let mut missing = Vec::new();
    for &arch in archs {
        if look(arch, series, &cache)?.is_none() {
            missing.push(arch);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let cache = cache.lock(Purpose::Guests, progress)?;
    let apt = Apt::new(&cache, progress);
    let newer = Packages::newer(&cache, progress);
    for &arch in &missing {
        Qemu::unpack(arch, &cache, &newer)?;
        let foreign = Packages::foreign(&cache, progress, arch.debian);
        let packages = if arch.is_own() {
            apt.packages()
        } else {
            &foreign
        };
        busybox::extract(arch, &cache, packages)?;
        tools::extract(arch, &cache, packages)?;
    }
    // The last, as it takes longest.
    kernel::build(&missing, series, &cache, &apt, &newer, progress)?;
    for arch in missing {
        find_with(arch, series)?;
    }
    Ok(())
}

/// Makes what a guest of the demo needs be there, in the shortest time. The kernel is that of the
/// tests when it is in the cache, unless `stock` says not to take it, and else Debian's own.
pub fn run_quickly(arch: &'static Arch, stock: bool, progress: &Progress) -> Result<Images> {
    let cache = Cache::open()?;
    if let Some(found) = look_quickly(arch, stock, &cache)? {
        return Ok(found);
    }
    let locked = cache.lock(Purpose::Guests, progress)?;
    let own = Packages::own(&locked, progress);
    let newer = Packages::newer(&locked, progress);
    let foreign = Packages::foreign(&locked, progress, arch.debian);
    let packages = if arch.is_own() { &own } else { &foreign };
    together(&mut [
        &mut || match quick_kernel(arch, stock, locked.cache())? {
            Some(_) => Ok(()),
            None => stock::make(arch, &locked, &own, packages, progress),
        },
        &mut || Qemu::unpack(arch, &locked, &newer),
        &mut || {
            busybox::extract(arch, &locked, packages)?;
            tools::extract(arch, &locked, packages)
        },
    ])?;
    look_quickly(arch, stock, locked.cache())?.context("what was made is not in the cache")
}

/// The kernel of the tests, or else Debian's own, when one is in the cache.
fn quick_kernel(arch: &'static Arch, stock: bool, cache: &Cache) -> Result<Option<Kernel>> {
    let built = match stock {
        true => None,
        false => kernel::find(arch, Series::chosen()?, cache)?,
    };
    built.map_or_else(|| stock::find(arch, cache), |kernel| Ok(Some(kernel)))
}

fn look_quickly(arch: &'static Arch, stock: bool, cache: &Cache) -> Result<Option<Images>> {
    let kernel = quick_kernel(arch, stock, cache)?;
    look_with(arch, kernel, cache)
}

/// Installs a Debian package unless the program that it brings is there.
pub fn require(
    purpose: &str,
    package: &'static str,
    program: &'static str,
    progress: &Progress,
) -> Result<()> {
    let cache = Cache::open()?.lock(Purpose::Programs, progress)?;
    Apt::new(&cache, progress).install_tools(purpose, &[Tool::program(package, program)])
}

/// What guests of this architecture need, when [`run`] made it be there before.
pub fn find(arch: &'static Arch) -> Result<Images> {
    find_with(arch, Series::chosen()?)
}

/// The same with a kernel of this series.
pub fn find_with(arch: &'static Arch, series: &Series) -> Result<Images> {
    look(arch, series, &Cache::open()?)?.with_context(|| {
        format!(
            "the guests for {} with Linux {} are not set up: run `cargo xtask setup --kernel {1}`",
            arch.name, series.name
        )
    })
}

/// A command that runs the compiler of device trees, which comes with QEMU.
#[cfg(test)]
pub(crate) fn find_dtc() -> Result<std::process::Command> {
    let qemu = Qemu::find(&Arch::AARCH64, &Cache::open()?)?;
    qemu.context("there is no QEMU: run `cargo xtask setup`")?
        .dtc()
}

fn look(arch: &'static Arch, series: &Series, cache: &Cache) -> Result<Option<Images>> {
    look_with(arch, kernel::find(arch, series, cache)?, cache)
}

/// What guests with this kernel need.
fn look_with(arch: &'static Arch, kernel: Option<Kernel>, cache: &Cache) -> Result<Option<Images>> {
    let (Some(qemu), Some(kernel), Some(busybox), Some(tools)) = (
        Qemu::find(arch, cache)?,
        kernel,
        busybox::find(arch, cache)?,
        tools::find(arch, cache)?,
    ) else {
        return Ok(None);
    };
    Ok(Some(Images {
        arch,
        kernel: kernel.image,
        stock: kernel.stock,
        qemu,
        modules: kernel.modules,
        busybox,
        tools,
    }))
}
