//! What builds programs for arm64 on a machine that is none, and runs them there.
//!
//! The compiler is Debian's `rustc-web`, which is as new as rustup's and comes with a standard
//! library for each of Debian's architectures. The linker, and the C library to link to, are
//! Debian's cross compiler. `qemu-aarch64` runs a program as if the machine were an arm64 one: the
//! instructions are emulated, the system calls are the machine's own. `llvm-mca` knows how long
//! instructions take on a core.
//!
//! Linker and libraries are installed, the rest is unpacked into the cache (600 MB).

use std::env::consts::ARCH;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Tool};
use super::cache::{Cache, Entry, LockedCache, Purpose};
use super::packages::{Packages, Pin};
use super::progress::Progress;

/// What cargo calls the target.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The same in the names of cargo's variables.
const VARIABLE: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU";

/// Debian's name of the architecture.
const DEBIAN: &str = "arm64";
/// Where Debian's cross compiler has the target's C library.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";

const RUST: &str = "1.96.*";
const LLVM: &str = "1:22.1.*";

/// What is unpacked, for this machine. The first one's version is the entry's.
const PINS: [Pin; 6] = [
    Pin {
        package: "rustc-web",
        version: RUST,
    },
    Pin {
        package: "libstd-rust-web-1.96",
        version: RUST,
    },
    Pin {
        package: "libstd-rust-web-dev",
        version: RUST,
    },
    Pin {
        package: "libllvm22",
        version: LLVM,
    },
    Pin {
        package: "llvm-22",
        version: LLVM,
    },
    Pin {
        package: "qemu-user",
        version: "1:10.0.*",
    },
];

/// What is unpacked for the target: the standard library, of the same version.
const TARGET_PIN: &Pin = &PINS[2];

/// What the cross compiler, and what was unpacked, need of the machine.
const TOOLS: [Tool; 7] = [
    Tool::program("gcc-aarch64-linux-gnu", LINKER),
    Tool::program("binutils-aarch64-linux-gnu", "aarch64-linux-gnu-objdump"),
    Tool::file("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/lib/crt1.o"),
    Tool::file("libedit2", "/usr/lib/x86_64-linux-gnu/libedit.so.2"),
    Tool::file("libxml2", "/usr/lib/x86_64-linux-gnu/libxml2.so.2"),
    Tool::file("libz3-4", "/usr/lib/x86_64-linux-gnu/libz3.so.4"),
    Tool::file("libpfm4", "/usr/lib/x86_64-linux-gnu/libpfm.so.4"),
];

/// The programs in the entry, by what they are called there.
const PROGRAMS: [(&str, &str); 3] = [
    ("usr/bin/rustc", "bin/rustc"),
    ("usr/lib/llvm-22/bin/llvm-mca", "bin/llvm-mca"),
    ("usr/bin/qemu-aarch64", "bin/qemu-aarch64"),
];

/// Runs a program of the entry with the libraries of the entry. It is a script of bash, as others
/// drop variables with names such as `CARGO_BIN_EXE_vhost-device-rng`, which rustc reads.
const WRAPPER: &str = "\
#!/bin/bash
root=${0%/*}
LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu exec \"$root/bin/${0##*/}\" \"$@\"
";

/// The programs that have such a script, in the entry itself.
const WRAPPED: [&str; 2] = ["rustc", "llvm-mca"];

/// The tools for arm64.
#[derive(Debug)]
pub struct Arm64 {
    directory: PathBuf,
}

impl Arm64 {
    /// Makes everything be there, saying what it does.
    ///
    /// # Errors
    /// When something cannot be downloaded or installed, or the machine is not an x86_64 one.
    pub fn set_up(progress: &Progress) -> Result<Self> {
        ensure!(
            ARCH == "x86_64",
            "programs for arm64 are built and run on x86_64 machines; on this one ({ARCH}), \
             `cargo test` may do that as it is"
        );
        let cache = Cache::open()?;
        if let Some(found) = Self::look(&cache)? {
            return Ok(found);
        }
        let cache = cache.lock(Purpose::Arm64, progress)?;
        let apt = Apt::new(&cache, progress);
        apt.install_tools("building for arm64", &TOOLS)?;
        extract(&cache, &apt, progress)?;
        Self::find()
    }

    /// The tools, when [`Arm64::set_up`] made them be there before.
    ///
    /// # Errors
    /// When it did not.
    pub fn find() -> Result<Self> {
        Self::look(&Cache::open()?)?
            .context("there is nothing to build for arm64 with: run `cargo xtask arm64 setup`")
    }

    fn look(cache: &Cache) -> Result<Option<Self>> {
        let directory = cache.find(&entry(&made_of()))?;
        let directory = directory.filter(|_| TOOLS.iter().all(Tool::is_there));
        Ok(directory.map(|directory| Self { directory }))
    }

    /// Has cargo, which `command` runs, build for arm64 and run what it built. What is built goes
    /// below `target_dir`, apart from what another compiler built.
    pub fn configure<'a>(&self, command: &'a mut Command, target_dir: &Path) -> &'a mut Command {
        command
            .env("RUSTC", self.directory.join("rustc"))
            .env(format!("{VARIABLE}_LINKER"), LINKER)
            .env(format!("{VARIABLE}_RUNNER"), self.runner())
            .env("CARGO_BUILD_TARGET", TARGET)
            .env("CARGO_TARGET_DIR", target_dir)
            // Those of the machine are none of the target's.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
    }

    /// Has cargo, which was configured, pass these options to the compiler for what is built for
    /// arm64.
    pub fn rustflags<'a>(command: &'a mut Command, flags: &str) -> &'a mut Command {
        command.env(format!("{VARIABLE}_RUSTFLAGS"), flags)
    }

    /// The words before a program for arm64 that run it, separated by spaces.
    pub fn runner(&self) -> OsString {
        let mut words = self.emulator().into_os_string();
        words.push(" -L ");
        words.push(LIBRARIES);
        words
    }

    /// The program that runs programs for arm64. Those that are linked statically need no more.
    pub fn emulator(&self) -> PathBuf {
        self.directory.join("bin/qemu-aarch64")
    }

    /// A command that runs `llvm-mca`, for arm64.
    pub fn mca(&self) -> Command {
        let mut command = Command::new(self.directory.join("llvm-mca"));
        command.arg("--mtriple=aarch64-linux-gnu");
        command
    }

    /// A command that runs `objdump`, for arm64.
    pub fn objdump(&self) -> Command {
        Command::new("aarch64-linux-gnu-objdump")
    }

    /// The versions of compiler and emulator, for reports.
    ///
    /// # Errors
    /// When they do not say.
    pub fn versions(&self) -> Result<String> {
        let first = |program: PathBuf| {
            let output = Command::new(&program).arg("--version").output();
            let output = output.with_context(|| format!("cannot run {}", program.display()))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .next()
                .map(|line| line.trim().to_owned())
                .with_context(|| format!("{} says nothing", program.display()))
        };
        let names = ["rustc", "llvm-mca", "bin/qemu-aarch64"];
        let versions = names.map(|name| first(self.directory.join(name)));
        Ok(versions.into_iter().collect::<Result<Vec<_>>>()?.join(", "))
    }
}

/// Everything that an entry is made of, besides the packages' exact versions.
fn made_of() -> Vec<&'static str> {
    let pins = PINS.iter().flat_map(|pin| [pin.package, pin.version]);
    pins.chain([WRAPPER]).collect()
}

fn entry<'a>(made_of: &'a [&'a str]) -> Entry<'a> {
    Entry {
        what: "arm64".to_owned(),
        made_of,
    }
}

/// Puts the compiler, the emulator and `llvm-mca` into the cache unless they are there.
fn extract(cache: &LockedCache, apt: &Apt<'_>, progress: &Progress) -> Result<()> {
    let made_of = made_of();
    let entry = entry(&made_of);
    if cache.cache().find(&entry)?.is_some() {
        return Ok(());
    }
    let work = cache.temporary()?;
    let root = work.path().join("root");
    let mut versions = Vec::new();
    for pin in &PINS {
        versions.push(apt.packages().unpack(pin, &root)?);
    }
    let foreign = Packages::foreign(cache, progress, DEBIAN).unpack(TARGET_PIN, &root)?;
    let version = versions.first().context("no compiler")?;
    ensure!(
        foreign == *version,
        "the compiler is of version {version} and the standard library for arm64 of {foreign}: \
         Debian is about to exchange them, try again later"
    );
    let made = work.path().join("made");
    take(&root, &made).context("cannot take what is needed out of the packages")?;
    cache.publish(&made, &entry, version)
}

/// Moves what is needed to where it is in the entry.
fn take(root: &Path, made: &Path) -> Result<()> {
    fs::create_dir_all(made.join("bin"))?;
    for (from, to) in PROGRAMS {
        fs::rename(root.join(from), made.join(to)).with_context(|| from.to_owned())?;
    }
    fs::create_dir_all(made.join("lib"))?;
    for directory in ["x86_64-linux-gnu", "rustlib"] {
        let from = root.join("usr/lib").join(directory);
        fs::rename(from, made.join("lib").join(directory))?;
    }
    for name in WRAPPED {
        let script = made.join(name);
        fs::write(&script, WRAPPER)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_wrapped_program_gets_its_libraries_and_every_variable() {
        let made = TempDir::new().unwrap();
        fs::create_dir(made.path().join("bin")).unwrap();
        let script = made.path().join("rustc");
        fs::write(&script, WRAPPER).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        fs::copy("/usr/bin/env", made.path().join("bin/rustc")).unwrap();
        let output = Command::new(made.path().join("rustc"))
            .env("CARGO_BIN_EXE_a-b", "c")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let libraries = made.path().join("lib/x86_64-linux-gnu");
        let expected = format!("LD_LIBRARY_PATH={}", libraries.display());
        assert!(text.lines().any(|line| line == expected), "{text}");
        assert!(
            text.lines().any(|line| line == "CARGO_BIN_EXE_a-b=c"),
            "{text}"
        );
    }
}
