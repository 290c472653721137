//! Programs in the guest besides busybox, out of Debian's packages, with the
//! libraries that they need.
//!
//! Where busybox has a program of the same name, its shell takes its own: name
//! these by their paths.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{Cache, Entry, LockedCache};
use super::packages::{Packages, Pin};
use crate::arch::Arch;

/// A package, and the files of it that the guest gets.
struct Package {
    pin: Pin,
    files: &'static [File],
}

/// A file's path in its package and in the guest, without the first `/`. The
/// names of [`Arch`]'s fields in braces stand for their values.
struct File {
    from: &'static str,
    to: &'static str,
}

/// The first one's version is the entry's.
const PACKAGES: [Package; 5] = [
    Package {
        pin: Pin {
            package: "i2c-tools",
            version: "4.3-*",
        },
        files: &[
            File {
                from: "usr/sbin/i2cdetect",
                to: "usr/sbin/i2cdetect",
            },
            File {
                from: "usr/sbin/i2cdump",
                to: "usr/sbin/i2cdump",
            },
            File {
                from: "usr/sbin/i2cget",
                to: "usr/sbin/i2cget",
            },
            File {
                from: "usr/sbin/i2cset",
                to: "usr/sbin/i2cset",
            },
            File {
                from: "usr/sbin/i2ctransfer",
                to: "usr/sbin/i2ctransfer",
            },
        ],
    },
    Package {
        pin: Pin {
            package: "libi2c0",
            version: "4.3-*",
        },
        files: &[File {
            from: "usr/lib/{triplet}/libi2c.so.0",
            to: "lib/libi2c.so.0",
        }],
    },
    Package {
        pin: Pin {
            package: "gpiod",
            version: "1.6.*",
        },
        files: &[
            File {
                from: "usr/bin/gpiodetect",
                to: "usr/bin/gpiodetect",
            },
            File {
                from: "usr/bin/gpiofind",
                to: "usr/bin/gpiofind",
            },
            File {
                from: "usr/bin/gpioget",
                to: "usr/bin/gpioget",
            },
            File {
                from: "usr/bin/gpioinfo",
                to: "usr/bin/gpioinfo",
            },
            File {
                from: "usr/bin/gpiomon",
                to: "usr/bin/gpiomon",
            },
            File {
                from: "usr/bin/gpioset",
                to: "usr/bin/gpioset",
            },
        ],
    },
    Package {
        pin: Pin {
            package: "libgpiod2",
            version: "1.6.*",
        },
        files: &[File {
            from: "usr/lib/{triplet}/libgpiod.so.2",
            to: "lib/libgpiod.so.2",
        }],
    },
    Package {
        pin: Pin {
            package: "libc6",
            version: "2.36-*",
        },
        files: &[
            File {
                from: "lib/{triplet}/libc.so.6",
                to: "lib/libc.so.6",
            },
            File {
                from: "lib/{triplet}/{loader}",
                to: "{loader_directory}/{loader}",
            },
        ],
    },
];

/// Directories of the guest that the files are in, besides those that it has.
pub(crate) const DIRECTORIES: [&str; 5] = ["lib", "lib64", "usr", "usr/bin", "usr/sbin"];

/// A path with the names in braces replaced.
fn expand(path: &str, arch: &Arch) -> String {
    path.replace("{triplet}", arch.triplet)
        .replace("{loader_directory}", arch.loader_directory)
        .replace("{loader}", arch.loader)
}

/// The files' paths in the guest.
fn file_names(arch: &Arch) -> Vec<String> {
    let packages = PACKAGES.iter();
    let files = packages.flat_map(|package| package.files);
    files.map(|file| expand(file.to, arch)).collect()
}

/// Does something with the cache's entry for the files.
fn with_entry<T>(arch: &Arch, work: impl FnOnce(&Entry<'_>) -> T) -> T {
    let names = file_names(arch);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    work(&Entry {
        what: format!("tools-{}", arch.name),
        made_of: &names,
    })
}

/// The directory with the files as they are in the guest, when it is in the cache.
pub(crate) fn find(arch: &Arch, cache: &Cache) -> Result<Option<PathBuf>> {
    with_entry(arch, |entry| cache.find(entry))
}

/// The files: their path in the guest and on the host.
pub(crate) fn files(arch: &Arch, directory: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    file_names(arch).into_iter().map(move |name| {
        let path = directory.join(&name);
        (name, path)
    })
}

/// Puts the files into the cache unless they are there.
pub(crate) fn extract(arch: &Arch, cache: &LockedCache, packages: &Packages<'_>) -> Result<()> {
    if find(arch, cache.cache())?.is_some() {
        return Ok(());
    }
    let work = cache.temporary()?;
    let root = work.path().join("root");
    let pins: Vec<_> = PACKAGES
        .iter()
        .map(|package| package.pin.to_string())
        .collect();
    let pins: Vec<_> = pins.iter().map(String::as_str).collect();
    let title = format!("Getting the guest's tools for {}", arch.name);
    let version = packages.unpack_as(&title, &pins, &root)?;
    let made = work.path().join("made");
    for package in &PACKAGES {
        take(package, arch, &root, &made)?;
    }
    with_entry(arch, |entry| cache.publish(&made, entry, &version))
}

/// Takes the guest's files of a package that was unpacked to `root`, with the others.
fn take(package: &Package, arch: &Arch, root: &Path, made: &Path) -> Result<()> {
    for file in package.files {
        let from = expand(file.from, arch);
        let to = made.join(expand(file.to, arch));
        let directory = to.parent().unwrap_or(made);
        fs::create_dir_all(directory)
            // Some are symbolic links to others of their package.
            .and_then(|()| fs::copy(root.join(&from), &to))
            .with_context(|| format!("cannot take {from} out of {}", package.pin.package))?;
    }
    Ok(())
}
