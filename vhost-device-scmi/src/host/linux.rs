//! The host's hardware, through sysfs and devices.
//!
//! | module | what it backs |
//! |---|---|
//! | `attribute` | files with a number in them, which all others are made of |
//! | `hwmon`, `thermal`, `power_supply` | sensors |
//! | `iio` | sensors with axes, read directly or from the kernel's buffer |
//! | `frequency` | performance domains, through cpufreq and devfreq |
//! | `powercap` | power capping domains, as RAPL's |
//! | `regulator` | voltage and power domains |
//! | `gpio` | reset and power domains, through lines of a GPIO chip |
//! | `hook` | anything, through files of the user's |
//!
//! Each driver opens its files when it is made and opens none later. A file that fails then, or
//! says what it must not, is a hardware error to the guest and a line in the log: one a second at
//! most of what is read, and one of what is set, however many files there are.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use vhost_device_backend::RateLimit;

use super::{Intervals, Resource, Sensor};

pub mod attribute;
pub mod frequency;
pub mod gpio;
pub mod hook;
pub mod hwmon;
pub mod iio;
pub mod power_supply;
pub mod powercap;
pub mod regulator;
pub mod switched;
pub mod thermal;

/// Limits the lines of the log about hardware that cannot be read. All of it has one limit: when
/// a bus fails, hundreds of files fail with it.
static CANNOT_READ: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

/// The same for hardware that cannot be set.
static CANNOT_SET: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

/// What a directory is looked through for at most: no class of devices has so many.
const MAX_ENTRIES: usize = 4096;

/// Why hardware cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or a directory cannot be opened.
    #[error("cannot open {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there, and is not what it has to be; or it is not there, and something else is.
    #[error("{0}")]
    Unfit(String),
}

impl OpenError {
    fn open(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Open {
            path: path.to_owned(),
            source: source.into(),
        }
    }

    fn unfit(text: impl Into<String>) -> Self {
        Self::Unfit(text.into())
    }

    /// All of it in one line, with the kernel's reason.
    pub fn explain(&self) -> String {
        match self {
            Self::Open { source, .. } => format!("{self}: {source}"),
            Self::Unfit(_) => self.to_string(),
        }
    }

    fn is_not_found(&self) -> bool {
        self.is(rustix::io::Errno::NOENT)
    }

    fn is(&self, errno: rustix::io::Errno) -> bool {
        match self {
            Self::Open { source, .. } => source.raw_os_error() == Some(errno.raw_os_error()),
            Self::Unfit(_) => false,
        }
    }
}

impl From<super::Error> for OpenError {
    /// A first access has failed.
    fn from(error: super::Error) -> Self {
        Self::unfit(error.to_string())
    }
}

/// What opening hardware returns.
pub type Opened<T> = Result<T, OpenError>;

/// The directory that the host's files are under: `/`, or another for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self::new("/")
    }
}

impl Root {
    /// The host's files are under `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where a path of the host's is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A device of a class: `wanted` is a path, or the device's name in the directory `class`
    /// (`hwmon0`), or what its attribute `label` says, if only one says so.
    ///
    /// # Errors
    /// When there is none, with those that are there, or several.
    fn device(&self, class: &str, label: &str, wanted: &str) -> Opened<PathBuf> {
        if wanted.starts_with('/') {
            let path = self.path(wanted);
            return match std::fs::metadata(&path) {
                Ok(data) if data.is_dir() => Ok(path),
                Ok(_) => Err(OpenError::unfit(format!(
                    "{} is no directory: give the device's own",
                    path.display()
                ))),
                Err(error) => Err(OpenError::open(&path, error)),
            };
        }
        if wanted.contains('/') {
            return Err(OpenError::unfit(format!(
                "{wanted:?} is neither a name nor a path that begins with /"
            )));
        }
        let class = self.path(class);
        let names = entries(&class)?;
        if names.iter().any(|name| name == wanted) {
            return Ok(class.join(wanted));
        }
        let labelled: Vec<_> = names
            .iter()
            .map(|name| (name, label_of(&class.join(name).join(label))))
            .collect();
        let found: Vec<_> = labelled
            .iter()
            .filter(|(_, label)| label.as_deref() == Some(wanted))
            .map(|(name, _)| *name)
            .collect();
        match found[..] {
            [name] => Ok(class.join(name)),
            [] => Err(OpenError::unfit(format!(
                "there is no {wanted:?} in {}; {}",
                class.display(),
                these(labelled.iter().map(|(name, label)| match label {
                    Some(label) => format!("{name} ({label})"),
                    None => String::clone(name),
                }))
            ))),
            _ => Err(OpenError::unfit(format!(
                "{} in {} are called {wanted:?}: give one of these names, or a path",
                list(found.iter()),
                class.display()
            ))),
        }
    }
}

/// What an attribute says, if it is there and says something.
fn label_of(path: &Path) -> Option<String> {
    let line = attribute::Attribute::to_read(path).ok()?.line().ok()?;
    (!line.is_empty()).then_some(line)
}

/// The names in a directory, sorted as people count: `temp2` before `temp10`.
fn entries(path: &Path) -> Opened<Vec<String>> {
    let entries = std::fs::read_dir(path).map_err(|error| OpenError::open(path, error))?;
    let mut names: Vec<_> = entries
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_by(|one, other| counted(one).cmp(&counted(other)));
    Ok(names)
}

/// A name without its digits, and then with: for sorting.
fn counted(name: &str) -> (String, usize, &str) {
    let text = name.replace(|letter: char| letter.is_ascii_digit(), "");
    (text, name.len(), name)
}

/// What there is instead, for an error.
fn these(names: impl Iterator<Item = impl fmt::Display>) -> String {
    match list(names) {
        empty if empty.is_empty() => "nothing is there".to_owned(),
        names => format!("there is {names}"),
    }
}

/// How many names an error has room for.
const MAX_LISTED: usize = 20;

fn list(names: impl Iterator<Item = impl fmt::Display>) -> String {
    let mut names: Vec<_> = names
        .take(MAX_LISTED + 1)
        .map(|name| name.to_string())
        .collect();
    if names.len() > MAX_LISTED {
        names.truncate(MAX_LISTED);
        names.push("…".to_owned());
    }
    names.join(", ")
}

/// The interval between readings of a sensor until a guest chooses another.
pub const USUAL_INTERVAL: Duration = Duration::from_secs(1);

/// The intervals that guests may choose from for a sensor that nobody knows more of.
pub fn usual_intervals() -> Intervals {
    let intervals = [10, 100, 1000, 10_000].map(Duration::from_millis);
    Intervals::Discrete(intervals.to_vec())
}

/// The sensors of the IIO device at `path`, for example `/sys/bus/iio/devices/iio:device0`: one
/// with several axes for channels that are named so, and one for each other channel. `channel`
/// names the only one that is wanted, for example `in_accel`. All guests may read them.
///
/// # Errors
/// When there is no such device or channel, or it cannot be opened.
pub fn iio(path: &Path, channel: Option<&str>) -> io::Result<Vec<Resource<Sensor>>> {
    iio::sensors(path, channel).map_err(|error| {
        let kind = match &error {
            OpenError::Open { source, .. } => source.kind(),
            OpenError::Unfit(_) => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error.explain())
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tree of files in a temporary directory, as sysfs has them.
    #[derive(Debug)]
    pub(crate) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn root(&self) -> Root {
            Root::new(self.0.path())
        }

        pub(crate) fn path(&self, path: &str) -> PathBuf {
            self.root().path(path)
        }

        pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        pub(crate) fn files(&self, directory: &str, files: &[(&str, &str)]) {
            for (name, text) in files {
                self.write(&format!("{directory}/{name}"), format!("{text}\n"));
            }
        }

        pub(crate) fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.path(path)).unwrap()
        }

        pub(crate) fn remove(&self, path: &str) {
            std::fs::remove_file(self.path(path)).unwrap();
        }

        pub(crate) fn fifo(&self, path: &str) {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let kind = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
        }
    }

    #[test]
    fn test_a_device_has_a_name_a_label_or_a_path() {
        let tree = Tree::new();
        for (name, label) in [
            ("hwmon0", "lm75"),
            ("hwmon1", "ina219"),
            ("hwmon10", "lm75"),
        ] {
            tree.files(&format!("sys/class/hwmon/{name}"), &[("name", label)]);
        }
        let root = tree.root();
        let find = |wanted| root.device("sys/class/hwmon", "name", wanted);
        let at = |name: &str| tree.path(&format!("sys/class/hwmon/{name}"));
        assert_eq!(find("hwmon1").unwrap(), at("hwmon1"));
        assert_eq!(find("ina219").unwrap(), at("hwmon1"));
        assert_eq!(find("/sys/class/hwmon/hwmon0").unwrap(), at("hwmon0"));
        let error = |wanted| find(wanted).unwrap_err().to_string();
        assert!(
            error("lm75").starts_with("hwmon0, hwmon10 in "),
            "{}",
            error("lm75")
        );
        let none = error("tmp102");
        assert!(
            none.ends_with("there is hwmon0 (lm75), hwmon1 (ina219), hwmon10 (lm75)"),
            "{none}"
        );
        assert!(error("../hwmon").contains("neither a name nor a path"));
        assert!(error("/sys/class/hwmon/hwmon0/name").contains("no directory"));
        assert!(matches!(find("/gone"), Err(OpenError::Open { .. })));
    }
}
