//! Debian packages, installed with apt.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail, ensure};

use super::cache::LockedCache;
use super::packages::{Packages, Release};
use super::progress::Progress;

/// The release whose packages are installed.
const RELEASE: Release = Release::Bookworm;

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

    pub(crate) fn is_there(&self) -> bool {
        match self.probe {
            Probe::File(path) => Path::new(path).exists(),
            Probe::Program(program) => env::var_os("PATH").is_some_and(|path| {
                env::split_paths(&path).any(|directory| directory.join(program).is_file())
            }),
        }
    }
}

/// This machine's packages.
pub(crate) struct Apt<'a> {
    packages: Packages<'a>,
}

impl<'a> Apt<'a> {
    pub(crate) fn new(cache: &'a LockedCache, progress: &'a Progress) -> Self {
        Self {
            packages: Packages::own(cache, progress),
        }
    }

    /// The packages of the machine's architecture, to be unpacked.
    pub(crate) fn packages(&self) -> &Packages<'a> {
        &self.packages
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
        self.install(purpose, &packages)?;
        let missing = missing(tools);
        ensure!(
            missing.is_empty(),
            "these were installed, but what they bring is not there: {}",
            missing.join(" ")
        );
        Ok(())
    }

    fn install(&self, purpose: &str, packages: &[&str]) -> Result<()> {
        let advice = manual_command(packages);
        ensure!(
            is_release(RELEASE.codename()),
            "{} must be installed for {purpose}. This does so on Debian 12 only; on it, the \
             command would be:\n{advice}",
            packages.join(" ")
        );
        let Some(root) = as_root() else {
            bail!(
                "{} must be installed for {purpose}, which needs root (and `sudo -n` did not \
                 work). Run this, then try again:\n{advice}",
                packages.join(" ")
            );
        };
        let directory = self.packages.directory()?;
        let title = format!("Installing {}", packages.join(" "));
        self.packages.progress.step(&title, |step| {
            let mut words: Vec<OsString> = root;
            words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"].map(Into::into));
            words.extend(self.packages.options(directory));
            words.extend(["install", "--yes", "--no-install-recommends"].map(Into::into));
            words.extend(packages.iter().map(Into::into));
            let mut command = Command::new(&words[0]);
            step.command(command.args(&words[1..]), &directory.join("log"))
        })
    }
}

/// What a user can run to install these.
fn manual_command(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    format!("  sudo apt-get install --no-install-recommends {packages}")
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
