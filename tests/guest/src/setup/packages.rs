//! Debian packages, downloaded and unpacked with apt, of this machine's
//! architecture or of another.
//!
//! The sources that this needs are Debian 12's, with backports and security
//! updates. They are given to apt with a directory of lists of their own, in a
//! temporary directory: the machine's sources, lists and architectures stay as
//! they are.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::cache::LockedCache;
use super::progress::Progress;

const SOURCES: &str = "\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// How often the lists are asked for, and how long is waited in between.
const UPDATE_TRIES: u32 = 3;
const UPDATE_PAUSE: Duration = Duration::from_secs(5);

/// A package, and the series of versions that will do.
pub(crate) struct Pin {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
}

/// Debian's packages of one architecture. The lists are downloaded with the
/// first use.
pub(crate) struct Packages<'a> {
    cache: &'a LockedCache,
    pub(super) progress: &'a Progress,
    /// Debian's name of it; `None` for the machine's own.
    architecture: Option<&'a str>,
    directory: OnceCell<TempDir>,
}

impl<'a> Packages<'a> {
    /// Those of the machine's architecture.
    pub(crate) fn own(cache: &'a LockedCache, progress: &'a Progress) -> Self {
        Self {
            cache,
            progress,
            architecture: None,
            directory: OnceCell::new(),
        }
    }

    /// Those of a foreign architecture by Debian's name, such as `arm64`. They
    /// can be unpacked and not installed.
    pub(crate) fn foreign(
        cache: &'a LockedCache,
        progress: &'a Progress,
        architecture: &'a str,
    ) -> Self {
        Self {
            architecture: Some(architecture),
            ..Self::own(cache, progress)
        }
    }

    /// Downloads a package and unpacks its files into the directory `root`,
    /// which is made if need be, and returns its version. Nothing is installed.
    pub(crate) fn unpack(&self, pin: &Pin, root: &Path) -> Result<String> {
        let work = self.cache.temporary()?;
        let deb = self.download(pin, work.path())?;
        let version = deb_version(&deb)?;
        let title = format!("Unpacking {} {version}", pin.package);
        self.progress.step(&title, |step| {
            let mut command = Command::new("dpkg");
            command.arg("-x").arg(&deb).arg(root);
            step.command(&mut command, &work.path().join("log"))
        })?;
        Ok(version)
    }

    /// Downloads a package into the directory `to`.
    fn download(&self, pin: &Pin, to: &Path) -> Result<PathBuf> {
        let Pin { package, version } = pin;
        let directory = self.directory()?;
        let foreign = match self.architecture {
            Some(architecture) => format!(" for {architecture}"),
            None => String::new(),
        };
        let title = format!("Downloading {package} {version}{foreign}");
        self.progress.step(&title, |step| {
            let mut command = Command::new("apt-get");
            command.args(self.options(directory)).arg("download");
            command.arg(format!("{package}={version}"));
            step.command(command.current_dir(to), &directory.join("log"))
        })?;
        find_deb(package, to)
    }

    /// The directory with the lists, made and filled at first.
    pub(super) fn directory(&self) -> Result<&Path> {
        if self.directory.get().is_none() {
            let directory = self.cache.temporary()?;
            self.update(directory.path())?;
            // It was empty: nobody else has this cell.
            let _ = self.directory.set(directory);
        }
        let directory = self.directory.get().context("no lists of packages")?;
        Ok(directory.path())
    }

    fn update(&self, directory: &Path) -> Result<()> {
        for sub in ["lists/partial", "archives/partial", "sources"] {
            fs::create_dir_all(directory.join(sub))?;
        }
        fs::write(directory.join("sources/debian.sources"), SOURCES)?;
        fs::write(directory.join("no-status"), "")?;
        let what = match self.architecture {
            Some(architecture) => format!("Asking Debian for its lists of {architecture} packages"),
            None => "Asking Debian for its lists of packages".to_owned(),
        };
        for attempt in 1.. {
            let title = match attempt {
                1 => what.clone(),
                again => format!("{what}, try {again}"),
            };
            let result = self.progress.step(&title, |step| {
                let mut command = Command::new("apt-get");
                command.args(self.options(directory)).arg("update");
                // Without this, apt-get takes old or no lists for success.
                command.arg("--error-on=any");
                step.command(&mut command, &directory.join("log"))
            });
            match result {
                Err(_) if attempt < UPDATE_TRIES => thread::sleep(UPDATE_PAUSE),
                result => return result,
            }
        }
        Ok(())
    }

    /// Makes apt use our sources, with lists and archives in this directory.
    pub(super) fn options(&self, directory: &Path) -> Vec<OsString> {
        let own = |key: &str, sub: &str| {
            let mut option = OsString::from(format!("{key}="));
            option.push(directory.join(sub));
            option
        };
        let mut settings = vec![
            own("Dir::State::lists", "lists"),
            own("Dir::Cache::archives", "archives"),
            own("Dir::Cache::pkgcache", "pkgcache.bin"),
            own("Dir::Cache::srcpkgcache", "srcpkgcache.bin"),
            own("Dir::Etc::SourceParts", "sources"),
            "Dir::Etc::SourceList=/dev/null".into(),
            // The directory may be one that apt's own user cannot enter.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
            "DPkg::Lock::Timeout=300".into(),
        ];
        if let Some(architecture) = self.architecture {
            settings.push(format!("APT::Architecture={architecture}").into());
            // This alone, and not those that dpkg was told of.
            settings.push(format!("APT::Architectures::={architecture}").into());
            // What is installed here is of another architecture.
            settings.push(own("Dir::State::status", "no-status"));
        }
        let options = settings.into_iter();
        options.flat_map(|setting| ["-o".into(), setting]).collect()
    }
}

fn find_deb(package: &str, directory: &Path) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(entry.path());
        }
    }
    bail!("apt-get download left no {prefix}*.deb")
}

fn deb_version(path: &Path) -> Result<String> {
    let mut command = Command::new("dpkg-deb");
    let output = command.args(["--field"]).arg(path).arg("Version").output();
    let output = output.context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "dpkg-deb cannot read {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::cache::Cache;
    use super::*;

    fn settings(packages: &Packages<'_>) -> Vec<String> {
        let options = packages.options(Path::new("/own"));
        let (names, values): (Vec<_>, Vec<_>) =
            options.chunks(2).map(|two| (&two[0], &two[1])).unzip();
        assert!(names.iter().all(|name| *name == "-o"), "{names:?}");
        values
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn foreign_packages_are_told_apart_from_what_the_machine_has() {
        let directory = TempDir::new().unwrap();
        let progress = Progress::new();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let cache = cache.lock(&progress).unwrap();
        let own = settings(&Packages::own(&cache, &progress));
        let mut foreign = settings(&Packages::foreign(&cache, &progress, "arm64"));
        let more = foreign.split_off(own.len());
        assert_eq!(foreign, own);
        let expected = [
            "APT::Architecture=arm64",
            "APT::Architectures::=arm64",
            "Dir::State::status=/own/no-status",
        ];
        assert_eq!(more, expected);
        for state in [
            "Dir::State::lists",
            "Dir::Etc::SourceParts",
            "Dir::Cache::archives",
        ] {
            let value = own
                .iter()
                .find(|setting| setting.starts_with(state))
                .unwrap();
            assert!(value.contains("=/own/"), "{value}");
        }
    }
}
