//! Debian packages, downloaded and unpacked with apt, of this machine's
//! architecture or of another.
//!
//! The sources that this needs are those of a [`Release`], with its backports
//! and security updates. They are given to apt with a directory of lists of
//! their own, in a temporary directory: the machine's sources, lists and
//! architectures stay as they are. What is only unpacked needs no root.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::cache::LockedCache;
use super::progress::{Progress, Step};

/// A release of Debian.
#[derive(Clone, Copy)]
pub(crate) enum Release {
    /// Debian 12, on which all of this runs: its packages can be installed.
    Bookworm,
    /// Debian 13. What has to be newer comes from it, and is unpacked with the
    /// libraries that it needs.
    Trixie,
}

impl Release {
    pub(super) fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The suite with newer versions of some packages.
    pub(super) fn backports(self) -> String {
        format!("{}-backports", self.codename())
    }

    /// Its packages, as apt is told of them.
    fn sources(self) -> String {
        let name = self.codename();
        let backports = self.backports();
        let of_debian = stanza(
            "deb",
            "debian",
            &format!("{name} {name}-updates {backports}"),
        );
        let security = stanza("deb", "debian-security", &format!("{name}-security"));
        [of_debian, security].join("\n")
    }

    /// The source packages of its backports: the list is short, and others are not needed.
    fn backported_sources(self) -> String {
        stanza("deb-src", "debian", &self.backports())
    }
}

/// Some suites of an archive of Debian's, for apt. Of their lists, those of packages are fetched
/// alone, whatever else the machine's configuration wants of its own suites.
fn stanza(kind: &str, archive: &str, suites: &str) -> String {
    let targets = if kind == "deb" { "Packages" } else { "Sources" };
    format!(
        "Types: {kind}\n\
         URIs: http://deb.debian.org/{archive}\n\
         Suites: {suites}\n\
         Components: main\n\
         Targets: {targets}\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
}

/// How often the lists are asked for, and how long is waited in between.
const UPDATE_TRIES: u32 = 3;
const UPDATE_PAUSE: Duration = Duration::from_secs(5);

/// A package, and the series of versions that will do.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
}

impl fmt::Display for Pin {
    /// As apt takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.package, self.version)
    }
}

/// The upstream part of a source package that was downloaded.
pub(crate) struct Tarball {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// A release's packages of one architecture. The lists are downloaded with the
/// first use.
pub(crate) struct Packages<'a> {
    cache: &'a LockedCache,
    pub(super) progress: &'a Progress,
    release: Release,
    /// Debian's name of it; `None` for the machine's own.
    architecture: Option<&'a str>,
    directory: OnceLock<TempDir>,
    /// Held by who fills the directory.
    filling: Mutex<()>,
}

impl<'a> Packages<'a> {
    /// Those of the machine's architecture, of the release that it has.
    pub(crate) fn own(cache: &'a LockedCache, progress: &'a Progress) -> Self {
        Self {
            cache,
            progress,
            release: Release::Bookworm,
            architecture: None,
            directory: OnceLock::new(),
            filling: Mutex::new(()),
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

    /// Those of the machine's architecture, of a release that is newer than the
    /// machine's. They can be unpacked and not installed, and programs need
    /// the libraries of the same release.
    pub(crate) fn newer(cache: &'a LockedCache, progress: &'a Progress) -> Self {
        Self {
            release: Release::Trixie,
            ..Self::own(cache, progress)
        }
    }

    /// Downloads a package and unpacks its files into the directory `root`,
    /// which is made if need be, and returns its version. Nothing is installed.
    pub(crate) fn unpack(&self, pin: &Pin, root: &Path) -> Result<String> {
        let Pin { package, version } = pin;
        let title = format!("Getting {package} {version}{}", self.foreign_note());
        self.unpack_as(&title, &[&pin.to_string()], root)
    }

    /// Does that with several packages, each in apt's `NAME=VERSION`, or without a version for the
    /// newest. The version of the first.
    pub(crate) fn unpack_as(&self, title: &str, names: &[&str], root: &Path) -> Result<String> {
        let directory = self.directory()?;
        let work = self.cache.temporary()?;
        let log = work.path().join("log");
        self.progress.step(title, |step| {
            let mut command = Command::new("apt-get");
            command.args(self.options(directory)).arg("download");
            let command = command.args(names).current_dir(work.path());
            step.follow(command, &log, |_| Some("downloading".to_owned()))?;
            let first = names.first().context("no package")?;
            let first = first.split_once('=').map_or(*first, |(name, _)| name);
            let version = deb_version(&find_deb(first, work.path())?)?;
            extract_all(work.path(), root, step, &log)?;
            Ok(version)
        })
    }

    /// Downloads the newest package of this name into the directory `to`, which is made, and says
    /// where it is.
    pub(crate) fn download_as(&self, title: &str, name: &str, to: &Path) -> Result<PathBuf> {
        let directory = self.directory()?;
        fs::create_dir(to)?;
        self.progress.step(title, |step| {
            let mut command = Command::new("apt-get");
            command.args(self.options(directory)).arg("download");
            step.command(command.arg(name).current_dir(to), &to.join("log"))
        })?;
        find_deb(name, to)
    }

    /// Downloads packages with all that they need and is not installed, and unpacks them into the
    /// directory `root`. Those of a newer release are of its backports, and with them comes
    /// everything down to the C library. The version of the first, if it was not installed.
    pub(crate) fn unpack_whole(
        &self,
        title: &str,
        pins: &[Pin],
        root: &Path,
    ) -> Result<Option<String>> {
        let first = pins.first().context("no package")?;
        let directory = self.directory()?;
        let work = self.cache.temporary()?;
        let archives = work.path().join("archives");
        fs::create_dir_all(archives.join("partial"))?;
        let log = work.path().join("log");
        self.progress.step(title, |step| {
            let mut command = Command::new("apt-get");
            command.args(self.options(directory)).arg("-o");
            command.arg(setting("Dir::Cache::archives", &archives));
            // Nothing of dpkg's is touched, and its lock is root's.
            command.args(["-o", "Debug::NoLocking=1"]);
            command.args(["-o", "APT::Keep-Downloaded-Packages=1"]);
            command.args(["install", "--download-only", "--yes"]);
            command.args(["--no-install-recommends", "--no-upgrade"]);
            if !self.can_install() {
                command.arg(format!("--target-release={}", self.release.backports()));
            }
            command.args(pins.iter().map(Pin::to_string));
            step.follow(&mut command, &log, |_| Some("downloading".to_owned()))?;
            let deb = find_deb(first.package, &archives).ok();
            let version = deb.map(|deb| deb_version(&deb)).transpose()?;
            extract_all(&archives, root, step, &log)?;
            Ok(version)
        })
    }

    /// The newest package that this one, which has no files, stands for: the first that it depends
    /// on.
    pub(crate) fn stands_for(&self, package: &str) -> Result<String> {
        let mut command = Command::new("apt-cache");
        command.args(self.options(self.directory()?));
        let output = command.args(["depends", package]).output();
        let output = output.context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "));
        first.map(str::to_owned).with_context(|| {
            let why = String::from_utf8_lossy(&output.stderr);
            format!("{package} depends on nothing: {text}{why}")
        })
    }

    fn foreign_note(&self) -> String {
        match self.architecture {
            Some(architecture) => format!(" for {architecture}"),
            None => String::new(),
        }
    }

    /// Downloads the upstream part of the backports' source package `pin`, without Debian's
    /// changes, into the directory `to`.
    pub(crate) fn download_source(&self, pin: &Pin, to: &Path) -> Result<Tarball> {
        let lists = self.cache.temporary()?;
        self.update(lists.path(), &self.release.backported_sources())?;
        let Pin { package, version } = pin;
        let title = format!("Downloading the source of {package} {version}");
        self.progress.step(&title, |step| {
            let mut command = Command::new("apt-get");
            command.args(self.options(lists.path())).arg("source");
            command.args(["--download-only", "--tar-only", package]);
            step.command(command.current_dir(to), &lists.path().join("log"))
        })?;
        let tarball = find_tarball(package, to)?;
        let series = version.trim_end_matches('*');
        ensure!(
            tarball.version.starts_with(series),
            "the source of {package} in the backports is {} now, not {version}",
            tarball.version
        );
        Ok(tarball)
    }

    /// The directory with the lists, made and filled at first. Other threads wait for that.
    pub(super) fn directory(&self) -> Result<&Path> {
        let _filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.directory.get().is_none() {
            let directory = self.cache.temporary()?;
            self.update(directory.path(), &self.release.sources())?;
            // It was empty: nobody else has this cell.
            let _ = self.directory.set(directory);
        }
        let directory = self.directory.get().context("no lists of packages")?;
        Ok(directory.path())
    }

    fn update(&self, directory: &Path, sources: &str) -> Result<()> {
        for sub in ["lists/partial", "archives/partial", "sources"] {
            fs::create_dir_all(directory.join(sub))?;
        }
        fs::write(directory.join("sources/debian.sources"), sources)?;
        fs::write(directory.join("no-status"), "")?;
        let name = self.release.codename();
        let what = match self.architecture {
            Some(architecture) => {
                format!("Asking Debian for {name}'s lists of {architecture} packages")
            }
            None => format!("Asking Debian for {name}'s lists of packages"),
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

    /// Whether they are for the machine, and not only for a directory.
    fn can_install(&self) -> bool {
        self.architecture.is_none() && matches!(self.release, Release::Bookworm)
    }

    /// Makes apt use our sources, with lists and archives in this directory.
    pub(super) fn options(&self, directory: &Path) -> Vec<OsString> {
        let own = |key: &str, sub: &str| setting(key, &directory.join(sub));
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
        }
        if !self.can_install() {
            // What is installed here is of another architecture or release.
            settings.push(own("Dir::State::status", "no-status"));
        }
        let options = settings.into_iter();
        options.flat_map(|setting| ["-o".into(), setting]).collect()
    }
}

/// Unpacks all packages in a directory.
fn extract_all(from: &Path, root: &Path, step: &Step<'_>, log: &Path) -> Result<()> {
    for deb in fs::read_dir(from)? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            let mut command = Command::new("dpkg-deb");
            let command = command.arg("--extract").arg(deb).arg(root);
            step.follow(command, log, |_| Some("unpacking".to_owned()))?;
        }
    }
    Ok(())
}

/// A setting of apt's that is a path.
fn setting(key: &str, path: &Path) -> OsString {
    let mut setting = OsString::from(format!("{key}="));
    setting.push(path);
    setting
}

fn find_deb(package: &str, directory: &Path) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let found = find_file(directory, |name| {
        name.starts_with(&prefix) && name.ends_with(".deb")
    })?;
    let (path, _) = found.with_context(|| format!("apt-get download left no {prefix}*.deb"))?;
    Ok(path)
}

fn find_tarball(package: &str, directory: &Path) -> Result<Tarball> {
    let found = find_file(directory, |name| tarball_version(package, name).is_some())?;
    let (path, name) =
        found.with_context(|| format!("apt-get source left no {package}_*.orig.tar.*"))?;
    let version = tarball_version(package, &name).unwrap_or_default();
    Ok(Tarball {
        version: version.to_owned(),
        path,
    })
}

/// The version in `PACKAGE_VERSION.orig.tar.xz`.
fn tarball_version<'a>(package: &str, name: &'a str) -> Option<&'a str> {
    let rest = name.strip_prefix(package)?.strip_prefix('_')?;
    Some(rest.split_once(".orig.tar.")?.0)
}

/// The path and the name of a file whose name is as wanted.
fn find_file(
    directory: &Path,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Option<(PathBuf, String)>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_wanted(&name) {
            return Ok(Some((entry.path(), name)));
        }
    }
    Ok(None)
}

/// The version of a package in a file.
pub(super) fn deb_version(path: &Path) -> Result<String> {
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

    use super::super::cache::{Cache, Purpose};
    use super::*;

    #[test]
    fn a_source_tells_its_version() {
        let version = |name| tarball_version("qemu", name);
        assert_eq!(version("qemu_10.0.2+ds.orig.tar.xz"), Some("10.0.2+ds"));
        for other in [
            "qemu_10.0.2+ds-2.dsc",
            "qemu-web_1.orig.tar.xz",
            "qemu_1.debian.tar.xz",
        ] {
            assert_eq!(version(other), None);
        }
    }

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
        let cache = cache.lock(Purpose::Guests, &progress).unwrap();
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
        let mut newer = settings(&Packages::newer(&cache, &progress));
        assert_eq!(newer.pop().unwrap(), "Dir::State::status=/own/no-status");
        assert_eq!(newer, own);
    }

    #[test]
    fn each_release_has_suites_of_its_own() {
        for (release, other) in [
            (Release::Bookworm, Release::Trixie),
            (Release::Trixie, Release::Bookworm),
        ] {
            let name = release.codename();
            let sources = release.sources();
            for suite in ["-updates", "-backports", "-security"] {
                assert!(sources.contains(&format!("{name}{suite}")), "{sources}");
            }
            assert!(!sources.contains(other.codename()), "{sources}");
            let sources = release.backported_sources();
            assert!(sources.contains(&format!("Suites: {name}-backports\n")));
            assert!(sources.starts_with("Types: deb-src\n"), "{sources}");
        }
    }
}
