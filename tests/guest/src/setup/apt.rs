//! Debian packages, installed or only downloaded, with apt.
//!
//! The sources that this needs are Debian 12's, with backports and security
//! updates. They are given to apt with a directory of lists of their own, in a
//! temporary directory: the machine's sources and lists stay as they are.

use std::cell::OnceCell;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::cache::LockedCache;
use super::progress::Progress;

/// The release whose packages are installed.
const RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";

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

/// Where sources are taken from: the list is short, and the others are not needed for them.
const BACKPORTED_SOURCES: &str = "\
Types: deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
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

/// Something that must be on the machine, and the package that brings it.
pub(crate) struct Tool {
    package: &'static str,
    probe: Probe,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
}

impl Tool {
    /// A program in `PATH`.
    pub(crate) const fn program(package: &'static str, program: &'static str) -> Self {
        Self {
            package,
            probe: Probe::Program(program),
        }
    }

    /// A file.
    pub(crate) const fn file(package: &'static str, path: &'static str) -> Self {
        Self {
            package,
            probe: Probe::File(path),
        }
    }

    fn is_there(&self) -> bool {
        match self.probe {
            Probe::File(path) => Path::new(path).exists(),
            Probe::Program(program) => env::var_os("PATH").is_some_and(|path| {
                env::split_paths(&path).any(|directory| directory.join(program).is_file())
            }),
        }
    }
}

/// A package that was downloaded.
pub(crate) struct Deb {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// The upstream part of a source package that was downloaded.
pub(crate) struct Tarball {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// Debian's packages. The lists are downloaded with the first use.
pub(crate) struct Apt<'a> {
    cache: &'a LockedCache,
    progress: &'a Progress,
    directory: OnceCell<TempDir>,
}

impl<'a> Apt<'a> {
    pub(crate) fn new(cache: &'a LockedCache, progress: &'a Progress) -> Self {
        Self {
            cache,
            progress,
            directory: OnceCell::new(),
        }
    }

    /// Installs the packages of those tools that are missing; `purpose` says
    /// what for.
    pub(crate) fn install_tools(&self, purpose: &str, tools: &[Tool]) -> Result<()> {
        let missing = |tools: &[Tool]| -> Vec<&'static str> {
            let missing = tools.iter().filter(|tool| !tool.is_there());
            missing.map(|tool| tool.package).collect()
        };
        let packages = missing(tools);
        if packages.is_empty() {
            return Ok(());
        }
        let packages: Vec<String> = packages.into_iter().map(str::to_owned).collect();
        self.install(purpose, &packages, None)?;
        let missing = missing(tools);
        ensure!(
            missing.is_empty(),
            "these were installed, but what they bring is not there: {}",
            missing.join(" ")
        );
        Ok(())
    }

    /// Installs a package of this version from the backports.
    pub(crate) fn install_backport(&self, package: &str, version: &str) -> Result<()> {
        let pinned = [format!("{package}={version}")];
        self.install("running guests", &pinned, Some(BACKPORTS))
    }

    fn install(&self, purpose: &str, packages: &[String], suite: Option<&str>) -> Result<()> {
        let advice = manual_commands(packages, suite);
        ensure!(
            is_release(RELEASE),
            "{} must be installed for {purpose}. This does so on Debian 12 only; on it, the \
             commands would be:\n{advice}",
            packages.join(" ")
        );
        let Some(root) = as_root() else {
            bail!(
                "{} must be installed for {purpose}, which needs root (and `sudo -n` did not \
                 work). Run this, then try again:\n{advice}",
                packages.join(" ")
            );
        };
        let directory = self.directory()?;
        let from = suite.unwrap_or(RELEASE);
        let title = format!("Installing {} from {from}", packages.join(" "));
        self.progress.step(&title, |step| {
            let mut words: Vec<OsString> = root;
            words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"].map(Into::into));
            words.extend(options(directory));
            words.extend(["install", "--yes", "--no-install-recommends"].map(Into::into));
            words.extend(suite.map(|suite| format!("--target-release={suite}").into()));
            words.extend(packages.iter().map(Into::into));
            let mut command = Command::new(&words[0]);
            step.command(command.args(&words[1..]), &directory.join("log"))
        })
    }

    /// Downloads a package into the directory `to`, installing nothing.
    pub(crate) fn download(&self, pin: &Pin, to: &Path) -> Result<Deb> {
        let directory = self.directory()?;
        let Pin { package, version } = pin;
        let title = format!("Downloading {package} {version}");
        self.progress.step(&title, |step| {
            let mut command = Command::new("apt-get");
            command.args(options(directory)).arg("download");
            command.arg(format!("{package}={version}"));
            step.command(command.current_dir(to), &directory.join("log"))
        })?;
        let path = find_deb(package, to)?;
        let version = deb_version(&path)?;
        Ok(Deb { path, version })
    }

    /// Downloads the upstream part of the backports' source package `pin`, without Debian's
    /// changes, into the directory `to`.
    pub(crate) fn download_source(&self, pin: &Pin, to: &Path) -> Result<Tarball> {
        let lists = self.cache.temporary()?;
        self.update(lists.path(), BACKPORTED_SOURCES)?;
        let Pin { package, version } = pin;
        let title = format!("Downloading the source of {package} {version}");
        self.progress.step(&title, |step| {
            let mut command = Command::new("apt-get");
            command.args(options(lists.path())).arg("source");
            command.args(["--download-only", "--tar-only", package]);
            step.command(command.current_dir(to), &lists.path().join("log"))
        })?;
        let tarball = find_tarball(package, to)?;
        let series = version.trim_end_matches('*');
        ensure!(
            tarball.version.starts_with(series),
            "the source of {package} in {BACKPORTS} is {} now, not {version}",
            tarball.version
        );
        Ok(tarball)
    }

    /// The directory with the lists, made and filled at first.
    fn directory(&self) -> Result<&Path> {
        if self.directory.get().is_none() {
            let directory = self.cache.temporary()?;
            self.update(directory.path(), SOURCES)?;
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
        for attempt in 1.. {
            let title = match attempt {
                1 => "Asking Debian for its lists of packages".to_owned(),
                again => format!("Asking Debian for its lists of packages, try {again}"),
            };
            let result = self.progress.step(&title, |step| {
                let mut command = Command::new("apt-get");
                command.args(options(directory)).arg("update");
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
}

/// Makes apt use our sources, with lists and archives in this directory.
fn options(directory: &Path) -> Vec<OsString> {
    let own = |key: &str, sub: &str| {
        let mut option = OsString::from(format!("{key}="));
        option.push(directory.join(sub));
        option
    };
    let settings = [
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
    let options = settings.into_iter();
    options.flat_map(|setting| ["-o".into(), setting]).collect()
}

/// What a user can run to install these; backports may not be in apt's sources.
fn manual_commands(packages: &[String], suite: Option<&str>) -> String {
    let packages = packages.join("' '");
    let Some(suite) = suite else {
        return format!("  sudo apt-get install --no-install-recommends '{packages}'");
    };
    format!(
        "  echo 'deb http://deb.debian.org/debian {suite} main' \
         | sudo tee /etc/apt/sources.list.d/{suite}.list\n  \
         sudo apt-get update\n  \
         sudo apt-get install --no-install-recommends -t {suite} '{packages}'"
    )
}

fn is_release(codename: &str) -> bool {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let expected = format!("VERSION_CODENAME={codename}");
    text.lines().any(|line| line == expected)
}

/// The words before a command that make it run as root, if there is a way.
fn as_root() -> Option<Vec<OsString>> {
    if rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"]).stderr(Stdio::null());
    let works = sudo.status().is_ok_and(|status| status.success());
    works.then(|| ["sudo", "-n"].map(Into::into).to_vec())
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
}
