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

/// A file's path in its package and in the guest.
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
            from: "usr/lib/x86_64-linux-gnu/libi2c.so.0",
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
            from: "usr/lib/x86_64-linux-gnu/libgpiod.so.2",
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
                from: "lib/x86_64-linux-gnu/libc.so.6",
                to: "lib/libc.so.6",
            },
            File {
                from: "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
                to: "lib64/ld-linux-x86-64.so.2",
            },
        ],
    },
];

/// Directories of the guest that the files are in, besides those that it has.
pub(crate) const DIRECTORIES: [&str; 5] = ["lib", "lib64", "usr", "usr/bin", "usr/sbin"];

fn file_names() -> Vec<&'static str> {
    let packages = PACKAGES.iter();
    let files = packages.flat_map(|package| package.files);
    files.map(|file| file.to).collect()
}

/// The directory with the files as they are in the guest, when it is in the cache.
pub(crate) fn find(arch: &Arch, cache: &Cache) -> Result<Option<PathBuf>> {
    cache.find(&entry(arch, &file_names()))
}

fn entry<'a>(arch: &Arch, made_of: &'a [&'a str]) -> Entry<'a> {
    Entry {
        what: format!("tools-{}", arch.name),
        made_of,
    }
}

/// The files: their path in the guest and on the host.
pub(crate) fn files(directory: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    file_names()
        .into_iter()
        .map(move |name| (name, directory.join(name)))
}

/// Puts the files into the cache unless they are there.
pub(crate) fn extract(arch: &Arch, cache: &LockedCache, packages: &Packages<'_>) -> Result<()> {
    if find(arch, cache.cache())?.is_some() {
        return Ok(());
    }
    let work = cache.temporary()?;
    let made = work.path().join("made");
    let mut versions = Vec::new();
    for package in &PACKAGES {
        let root = work.path().join(package.pin.package);
        versions.push(packages.unpack(&package.pin, &root)?);
        take(package, &root, &made)?;
    }
    let version = versions.first().context("no package of tools")?;
    cache.publish(&made, &entry(arch, &file_names()), version)
}

/// Takes the guest's files of a package that was unpacked to `root`.
fn take(package: &Package, root: &Path, made: &Path) -> Result<()> {
    for file in package.files {
        let to = made.join(file.to);
        let directory = to.parent().unwrap_or(made);
        fs::create_dir_all(directory)
            // Some are symbolic links to others of their package.
            .and_then(|()| fs::copy(root.join(file.from), &to))
            .with_context(|| format!("cannot take {} out of {}", file.from, package.pin.package))?;
    }
    Ok(())
}
