//! A platform from a file: `--platform FILE`, in TOML.
//!
//! | module | what lives there |
//! |---|---|
//! | `file` | what the file may say, key by key |
//! | `build` | the resources that are made of it, and what is opened for them |
//! | `locate` | the line and the key of a place in the file |

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use crate::host::linux::Root;
use crate::host::{Guest, Platform};

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
    /// It is larger than any that is of use.
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
    reason: String,
}

impl Problem {
    fn at(span: &Span, reason: impl ToString) -> Self {
        Self {
            span: span.clone(),
            reason: reason.to_string(),
        }
    }
}

/// What is found right, or a problem.
type Checked<T> = Result<T, Problem>;

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
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(LoadError::TooLong);
    }
    parse(root, &text, guests)
}

/// The parser's reason, for people who know no types of Rust.
fn in_words(reason: &str) -> String {
    let types = [
        ("u8", "a number from 0 to 255"),
        ("u16", "a number from 0 to 65535"),
        ("u32", "a number from 0 to 4294967295"),
        ("u64", "a number from 0 on"),
        ("i8", "a number from -128 to 127"),
        ("i32", "a number from -2147483648 to 2147483647"),
        ("i64", "a whole number"),
    ];
    let mut named = types.iter().filter_map(|(name, words)| {
        let before = reason.strip_suffix(name)?.strip_suffix("expected ")?;
        Some(format!("{before}expected {words}"))
    });
    named.next().unwrap_or_else(|| reason.to_owned())
}

/// The platform that a text describes.
fn parse(root: &Root, text: &[u8], guests: Guest) -> Result<Platform, LoadError> {
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
    let file = toml::from_str(text).map_err(|error| Problem {
        span: error.span().unwrap_or_default(),
        reason: in_words(error.message()),
    });
    let platform = file.and_then(|file| build::platform(root, file, guests));
    platform.map_err(|Problem { span, reason }| LoadError::Wrong {
        line: locate::line(text, span.start),
        key: locate::key(text, &span),
        reason,
    })
}
