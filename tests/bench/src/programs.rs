//! The daemons' programs: ours is built, the peer is installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::{Build, Progress, install_crate};

use crate::cli::Cli;

/// The peer's version, pinned: another one would need figures of its own.
pub(crate) const PEER_VERSION: &str = "0.1.0";

/// One of those that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// What the tables call it.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) program: PathBuf,
}

/// Both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    /// Ours.
    pub(crate) ours: Side,
    /// The peer.
    pub(crate) peer: Side,
}

/// Something for each side.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Each<T> {
    /// That of ours.
    pub(crate) ours: T,
    /// That of the peer.
    pub(crate) peer: T,
}

impl Sides {
    /// Does `work` for each side, one after the other; in odd rounds in the other order, so that
    /// neither always follows the other.
    pub(crate) fn each<T>(
        &self,
        round: usize,
        mut work: impl FnMut(&Side) -> Result<T>,
    ) -> Result<Each<T>> {
        let (ours, peer) = if round.is_multiple_of(2) {
            let ours = work(&self.ours)?;
            (ours, work(&self.peer)?)
        } else {
            let peer = work(&self.peer)?;
            (work(&self.ours)?, peer)
        };
        Ok(Each { ours, peer })
    }
}

/// Builds and installs what is missing of the programs with this name, unless the command line
/// gives them. `build` is how the peer is built.
pub(crate) fn sides(name: &str, cli: &Cli, build: &Build) -> Result<Sides> {
    sides_of(name, PEER_VERSION, cli, build)
}

/// The same, beside another version of the peer.
pub(crate) fn sides_of(name: &str, version: &str, cli: &Cli, build: &Build) -> Result<Sides> {
    let ours = cli.ours.clone().map_or_else(|| build_ours(name), Ok)?;
    let install = || install_crate(name, version, build, &Progress::new());
    let peer = cli.peer.clone().map_or_else(install, Ok)?;
    let side = |name, program| Side { name, program };
    Ok(Sides {
        ours: side("ours", ours),
        peer: side("peer", peer),
    })
}

/// The workspace that this program was built from.
pub(crate) fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

/// Writes a page of the workspace's `docs/`.
pub(crate) fn write_page(
    document: &str,
    print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let path = workspace().join(document);
    let mut page = Vec::new();
    print(&mut page)?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("Wrote {document}");
    Ok(())
}

/// Ours, for release, beside this program.
fn build_ours(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the running program")?;
    let directory = own.parent().context("the running program is nowhere")?;
    let target = directory.parent().context("there is no target directory")?;
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--package", name, "--target-dir"])
        .arg(target)
        .current_dir(workspace())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "`cargo build` failed");
    let program = target.join("release").join(name);
    ensure!(program.is_file(), "there is no {}", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn rounds_alternate() {
        let cli = Cli::parse_from(["bench", "--ours", "a", "--peer", "b"]);
        let sides = sides("x", &cli, &Build::default()).unwrap();
        let order = |round| {
            let mut order = Vec::new();
            let each = sides.each(round, |side| {
                order.push(side.name);
                Ok(side.name)
            });
            let each = each.unwrap();
            assert_eq!((each.ours, each.peer), ("ours", "peer"));
            order
        };
        assert_eq!(order(0), ["ours", "peer"]);
        assert_eq!(order(1), ["peer", "ours"]);
    }

    #[test]
    fn the_workspace_has_the_daemons() {
        for name in ["vhost-device-rng", "vhost-device-i2c"] {
            assert!(workspace().join(name).join("Cargo.toml").is_file());
        }
    }
}
