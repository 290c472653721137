//! Programs of crates.io, installed with cargo.
//!
//! A program is in the cache below `programs`, by its name and exact version:
//! what runs it decides on the version, and another one is another program.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::apt::{Apt, Tool};
use super::cache::{Cache, LockedCache, Purpose};
use super::packages::Pin;
use super::progress::Progress;

/// The program `name` of the crate of this name, at exactly this version, installed unless it is in
/// the cache.
pub fn install_crate(
    name: &str,
    version: &str,
    build: &Build,
    progress: &Progress,
) -> Result<PathBuf> {
    let program = Program {
        name,
        version,
        build,
    };
    program.find_or_install(Cache::open()?, &cargo, progress)
}

/// How a program is built that needs more than cargo.
#[derive(Debug, Default)]
pub struct Build {
    /// Debian packages that the build needs, and their series of versions. They are unpacked into
    /// a directory for the build, and not installed.
    pub packages: &'static [(&'static str, &'static str)],
    /// Programs that the build runs and that are installed unless they are there, each from the
    /// package of its name.
    pub tools: &'static [&'static str],
    /// More options of `cargo install`.
    pub options: &'static [&'static str],
    /// Variables of its environment. `{root}` stands for the directory with the packages.
    pub environment: &'static [(&'static str, &'static str)],
}

/// The cargo that runs this, or else the first in the path.
fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

struct Program<'a> {
    name: &'a str,
    version: &'a str,
    build: &'a Build,
}

impl Program<'_> {
    fn find_or_install(
        &self,
        cache: Cache,
        cargo: &dyn Fn() -> Command,
        progress: &Progress,
    ) -> Result<PathBuf> {
        if let Some(program) = self.find(&cache) {
            return Ok(program);
        }
        let cache = cache.lock(Purpose::Programs, progress)?;
        // Another process may have installed it before it let go of the lock.
        if let Some(program) = self.find(cache.cache()) {
            return Ok(program);
        }
        self.install(&cache, cargo, progress)
    }

    fn find(&self, cache: &Cache) -> Option<PathBuf> {
        let program = self.program_in(&cache.path(&self.directory()));
        program.is_file().then_some(program)
    }

    fn install(
        &self,
        cache: &LockedCache,
        cargo: &dyn Fn() -> Command,
        progress: &Progress,
    ) -> Result<PathBuf> {
        let Self {
            name,
            version,
            build,
        } = self;
        let work = cache.temporary()?;
        let root = work.path().join("root");
        let apt = Apt::new(cache, progress);
        let tools: Vec<_> = build
            .tools
            .iter()
            .map(|tool| Tool::program(tool, tool))
            .collect();
        apt.install_tools(&format!("building {name}"), &tools)?;
        for &(package, version) in build.packages {
            apt.packages().unpack(&Pin { package, version }, &root)?;
        }
        let made = work.path().join("made");
        let install = |how: &str, options: &[&str]| {
            let title = format!("Installing {name} {version} of crates.io{how}");
            progress.step(&title, |step| {
                let mut command = cargo();
                command.args(["install", name, "--version", version]);
                command.args(build.options).args(options);
                command.envs(variables(build.environment, &root));
                // Neither our configuration nor our target directory: what is
                // built is none of this workspace, and goes with the rest of
                // the work when this is interrupted.
                command.current_dir(work.path());
                command.env_remove("CARGO_TARGET_DIR");
                command.arg("--target-dir").arg(work.path().join("target"));
                command.arg("--root").arg(&made);
                step.command(&mut command, &work.path().join("log"))
            })
        };
        // The versions of its lock file may be too old for the compiler.
        install("", &["--locked"]).or_else(|error| {
            progress.say(&format!("{error:#}"));
            install(", without its lock file", &[])
        })?;
        ensure!(
            self.program_in(&made).is_file(),
            "the crate {name} {version} was installed, but has no program {name}"
        );
        let path = cache.keep(&made, &self.directory())?;
        Ok(self.program_in(&path))
    }

    /// Where it is in the cache. A program is built in one way only.
    fn directory(&self) -> PathBuf {
        Path::new("programs").join(format!("{}-{}", self.name, self.version))
    }

    /// Where it is in cargo's root.
    fn program_in(&self, root: &Path) -> PathBuf {
        root.join("bin").join(self.name)
    }
}

fn variables<'a>(
    environment: &'a [(&'a str, &'a str)],
    root: &Path,
) -> impl Iterator<Item = (&'a str, OsString)> {
    let root = root.display().to_string();
    environment
        .iter()
        .map(move |(name, value)| (*name, value.replace("{root}", &root).into()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const PROGRAM: Program<'static> = Program {
        name: "tool",
        version: "1.2.3",
        build: &Build {
            packages: &[],
            tools: &[],
            options: &["--target", "here"],
            environment: &[("LIBRARY", "{root}/lib")],
        },
    };

    /// Finds or installs with a shell script for cargo, which has the crate in
    /// `$2`, the version in `$4` and the root in `$root`.
    fn run(cache: &TempDir, script: &str, calls: &Cell<u32>) -> Result<PathBuf> {
        let script = format!("for root; do :; done; {script}");
        let cargo = || {
            calls.set(calls.get() + 1);
            let mut command = Command::new("sh");
            command.args(["-euc", &script, "cargo"]);
            command
        };
        let cache = Cache::at(cache.path().to_owned());
        PROGRAM.find_or_install(cache?, &cargo, &Progress::new())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    const MAKES_IT: &str = "mkdir -p \"$root/bin\"; echo \"$2 $4\" > \"$root/bin/$2\"";

    #[test]
    fn a_program_is_installed_once() {
        let (cache, calls) = (TempDir::new().unwrap(), Cell::new(0));
        let script = format!("test \"$7\" = --locked; {MAKES_IT}");
        let path = run(&cache, &script, &calls).unwrap();
        let expected = cache.path().join("programs/tool-1.2.3/bin/tool");
        assert_eq!(path, expected);
        assert_eq!(fs::read_to_string(&path).unwrap(), "tool 1.2.3\n");
        assert_eq!(run(&cache, "false", &calls).unwrap(), expected);
        assert_eq!(calls.get(), 1);
        assert_eq!(names(cache.path()), ["lock-programs", "programs"]);
    }

    #[test]
    fn the_second_try_is_without_the_lock_file() {
        let (cache, calls) = (TempDir::new().unwrap(), Cell::new(0));
        let script = format!("test \"$7\" != --locked; {MAKES_IT}");
        run(&cache, &script, &calls).unwrap();
        assert_eq!(calls.get(), 2);
    }

    #[test]
    fn what_the_build_needs_is_given_to_it() {
        let (cache, calls) = (TempDir::new().unwrap(), Cell::new(0));
        let script = format!(
            "test \"$5 $6\" = '--target here'; echo \"$LIBRARY\" | grep '^/.*/root/lib$'; {MAKES_IT}"
        );
        run(&cache, &script, &calls).unwrap();
        assert_eq!(calls.get(), 1);
    }

    #[test]
    fn what_failed_is_not_kept() {
        let (cache, calls) = (TempDir::new().unwrap(), Cell::new(0));
        let error = run(&cache, &format!("{MAKES_IT}; echo why; false"), &calls);
        assert!(format!("{:#}", error.unwrap_err()).contains("why"));
        let error = run(&cache, "mkdir -p \"$root/bin\"", &calls).unwrap_err();
        assert!(error.to_string().contains("has no program tool"));
        assert_eq!(calls.get(), 3);
        assert_eq!(names(cache.path()), ["lock-programs"]);
    }
}
