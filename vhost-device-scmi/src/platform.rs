//! A platform from a file: `--platform FILE`, in TOML.
//!
//! | module | what lives there |
//! |---|---|
//! | `file` | what the file may say, key by key |
//! | `build` | the resources that are made of it, and what is opened for them |
//! | `locate` | the line and the key of a place in the file |

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use crate::host::linux::Root;
use crate::host::{Guest, Platform, ResourceId};

mod build;
mod file;
mod locate;
#[cfg(test)]
mod tests;

/// The largest file: it has room for all resources that there may be, and a wrong path (a disk)
/// does not fill the memory.
const MAX_FILE: u64 = 1 << 20;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("cannot read the platform file")]
    Read(#[from] io::Error),
    /// It is larger than any useful one.
    #[error("the platform file has more than {MAX_FILE} bytes")]
    TooLong,
    /// It says something wrong, or names what cannot be opened.
    #[error("line {line}{}: {reason}", locate::Behind(key))]
    Wrong {
        /// Where, counted from 1.
        line: usize,
        /// What, as `sensor[0].hwmon.chip`; empty where the file is no TOML.
        key: String,
        /// Why, and what to write instead.
        reason: String,
    },
}

/// A place in the file, in bytes.
type Span = Range<usize>;

/// What is wrong, and where.
#[derive(Debug)]
struct Problem {
    span: Span,
    /// The key that is wrong, where the span is that of another one in the same table.
    beside: &'static str,
    reason: String,
    /// The resource that has it, if the platform has that all the same.
    resource: Option<ResourceId>,
}

impl Problem {
    fn at(span: &Span, reason: impl ToString) -> Self {
        Self {
            span: span.clone(),
            beside: "",
            reason: reason.to_string(),
            resource: None,
        }
    }
}

/// Something that is right, or a problem.
type Checked<T> = Result<T, Problem>;

/// Where the host's files are, and what the daemon does with them.
#[derive(Clone, Copy, Debug)]
struct Site<'a> {
    root: &'a Root,
    /// The directory of the file: what its paths are relative to.
    base: &'a Path,
    /// It only looks at them, and they need not be there.
    looks: bool,
}

/// Something of a file that is not on this machine, or not as the file wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHere {
    /// Where the file asks for it, counted from 1; 0 when an option does.
    pub line: usize,
    /// As what, as `sensor[0].hwmon`, or the option.
    pub key: String,
    /// Why a start would fail.
    pub reason: String,
    /// Which resource of the platform that is, if it has become one.
    pub resource: Option<ResourceId>,
}

impl NotHere {
    /// What an option of the command line asks for.
    pub(crate) fn of_option(option: &str, error: &io::Error) -> Self {
        Self {
            line: 0,
            key: option.to_owned(),
            reason: error.to_string(),
            resource: None,
        }
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line, key, reason, ..
        } = self;
        match line {
            0 => write!(f, "{key}: {reason}"),
            _ => write!(f, "line {line}{}: {reason}", locate::Behind(key)),
        }
    }
}

/// Reads the platform that `path` describes, for guests counted from 0 and below `guests`, and
/// opens all that it names.
///
/// # Errors
/// Where the file is wrong, with the line, the key and the reason, or what cannot be opened.
pub fn load(path: &Path, guests: Guest) -> Result<Platform, LoadError> {
    load_under(&Root::default(), path, guests)
}

/// The same for a host whose files are under another directory than `/`; `path` is as it is.
///
/// # Errors
/// As of [`load`].
pub fn load_under(root: &Root, path: &Path, guests: Guest) -> Result<Platform, LoadError> {
    let (platform, _) = read(root, path, guests, false)?;
    Ok(platform)
}

/// Looks at what `path` describes, and changes nothing: the platform, which no guest can be given,
/// and what of it is not on this machine.
///
/// # Errors
/// Where the file is wrong.
pub fn look(path: &Path, guests: Guest) -> Result<(Platform, Vec<NotHere>), LoadError> {
    read(&Root::default(), path, guests, true)
}

fn read(
    root: &Root,
    path: &Path,
    guests: Guest,
    looks: bool,
) -> Result<(Platform, Vec<NotHere>), LoadError> {
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(LoadError::TooLong);
    }
    let base = path.parent().unwrap_or(Path::new(""));
    parse(&Site { root, base, looks }, &text, guests)
}

/// The key that is probably meant by one that there is not: the parser names it, then all that there
/// are, each in backticks.
fn meant(reason: &str) -> Option<&str> {
    let (unknown, known) = reason.strip_prefix("unknown field `")?.split_once('`')?;
    vhost_device_daemon::nearest(unknown, known.split('`').skip(1).step_by(2))
}

/// The parser's reason, for people who know no types of Rust; `key` is where it is.
fn in_words(reason: &str, key: &str) -> String {
    let types = [
        ("u8", "a number from 0 to 255"),
        ("u16", "a number from 0 to 65535"),
        ("u32", "a number from 0 to 4294967295"),
        ("u64", "a number from 0 on"),
        ("i8", "a number from -128 to 127"),
        ("i32", "a number from -2147483648 to 2147483647"),
        ("i64", "a whole number"),
        ("usize", "a number from 0 on"),
        ("struct Nothing", "{}"),
        ("a boolean", "true or false"),
    ];
    let last = key.rsplit('.').next().unwrap_or(key);
    if reason.ends_with("expected a sequence") {
        return if build::LISTS.contains(&key) {
            format!("write [[{key}]], with two brackets each: there may be several")
        } else {
            format!("write {last} = […], a list")
        };
    }
    // The parser takes a list of these for the keys of one.
    let mut single = build::SINGLES.iter();
    if let Some(table) = single.find(|table| key.starts_with(&format!("{table}["))) {
        return format!("write [{table}], with one bracket: there is one");
    }
    // The parser goes on to 128 bits, and no key does.
    if ["as i128", "as u128", "overflow"]
        .iter()
        .any(|wide| reason.contains(wide))
    {
        return format!("a number is from {} to {}", i64::MIN, i64::MAX);
    }
    let mut named = types.iter().filter_map(|(name, words)| {
        let before = reason.strip_suffix(name)?.strip_suffix("expected ")?;
        Some(format!("{before}expected {words}"))
    });
    if let Some(named) = named.next() {
        return named;
    }
    if let Some(meant) = meant(reason) {
        return format!("{reason}; is {meant} meant?");
    }
    match reason.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table: write {last} = {{ … }}"),
        None => reason.to_owned(),
    }
}

/// The platform that a text describes, and what of it is not on this machine.
fn parse(
    site: &Site<'_>,
    text: &[u8],
    guests: Guest,
) -> Result<(Platform, Vec<NotHere>), LoadError> {
    let text = match str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let before = text.get(..error.valid_up_to()).unwrap_or_default();
            return Err(LoadError::Wrong {
                line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
                key: String::new(),
                reason: "this is no text in UTF-8".to_owned(),
            });
        }
    };
    let file = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        let key = locate::key(text, &span);
        Problem::at(&span, in_words(error.message(), &key))
    });
    let built = file.and_then(|file| build::platform(site, file, guests));
    let located = |problem: Problem| {
        let (line, key) = locate::find(text, &problem.span, problem.beside);
        NotHere {
            line,
            key,
            reason: problem.reason,
            resource: problem.resource,
        }
    };
    match built {
        Ok((platform, problems)) => Ok((platform, problems.into_iter().map(located).collect())),
        Err(problem) => {
            let NotHere {
                line, key, reason, ..
            } = located(problem);
            Err(LoadError::Wrong { line, key, reason })
        }
    }
}
