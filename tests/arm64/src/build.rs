//! Cargo for arm64, and the programs that it builds.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vhost_device_guest::setup::Arm64;

/// The compiler's options for programs that need nothing of the system that they run on.
pub const STATIC: &str = "-C target-feature=+crt-static";

/// Cargo with these arguments in the workspace's root, for arm64. All of it is built apart, by
/// the compiler that builds for arm64.
///
/// # Errors
/// When the target directory is not known.
pub fn cargo<'a>(tools: &Arm64, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace());
    tools.configure(&mut command, &target_dir()?);
    Ok(command)
}

/// The same for programs that are linked statically.
///
/// # Errors
/// As for [`cargo`].
pub fn static_cargo<'a>(tools: &Arm64, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut command = cargo(tools, args)?;
    Arm64::rustflags(&mut command, STATIC);
    Ok(command)
}

/// Where everything is that is built for arm64: in a directory of its own beside what this program
/// was built in.
///
/// # Errors
/// When this program is in no target directory.
pub fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the running program")?;
    let profile = own.ancestors().skip(1).find(|path| !path.ends_with("deps"));
    let target = profile.and_then(Path::parent);
    Ok(target
        .context("there is no target directory")?
        .join("arm64"))
}

/// The workspace's root.
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

/// A program that cargo built.
#[derive(Debug)]
pub struct Built {
    /// The directory of its package.
    pub package: PathBuf,
    /// The target there.
    pub target: String,
    /// Whether it runs tests.
    pub test: bool,
    /// Where it is.
    pub executable: PathBuf,
}

impl Built {
    /// What one of cargo's messages tells of, if it is a program.
    fn parse(message: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(message).ok()?;
        let manifest = Path::new(message["manifest_path"].as_str()?);
        Some(Self {
            package: manifest.parent()?.into(),
            target: message["target"]["name"].as_str()?.to_owned(),
            test: message["profile"]["test"].as_bool()?,
            executable: message["executable"].as_str()?.into(),
        })
    }
}

/// Runs cargo and returns the programs that it built, or found built.
///
/// # Errors
/// When it fails. What it says is on standard error.
pub fn programs(command: &mut Command) -> Result<Vec<Built>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "it cannot be built for arm64");
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs: Vec<_> = messages.lines().filter_map(Built::parse).collect();
    ensure!(!programs.is_empty(), "cargo built no program");
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let message = |test: bool, executable: &str| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/w/common/x/Cargo.toml\",\
                 \"target\":{{\"name\":\"name\"}},\"profile\":{{\"test\":{test}}},\
                 \"executable\":{executable}}}"
            )
        };
        let built = Built::parse(&message(true, "\"/t/name-1\"")).unwrap();
        assert!(built.test);
        assert_eq!(built.target, "name");
        assert_eq!(built.package, Path::new("/w/common/x"));
        assert_eq!(built.executable, Path::new("/t/name-1"));
        assert!(!Built::parse(&message(false, "\"/t/r\"")).unwrap().test);
        assert!(Built::parse(&message(false, "null")).is_none());
        assert!(Built::parse("{\"reason\":\"build-finished\",\"success\":true}").is_none());
    }

    #[test]
    fn the_target_directory_is_beside_the_own_one() {
        let directory = target_dir().unwrap();
        assert!(directory.ends_with("arm64"), "{}", directory.display());
        assert!(
            env::current_exe()
                .unwrap()
                .starts_with(directory.parent().unwrap())
        );
    }
}
