//! Lines of a GPIO chip that hold something in reset or give it power, through the kernel's
//! interface (uAPI v2).

use std::fs::File;
use std::io;
use std::path::PathBuf;

use gpiocdev_uapi::v2::{
    self as uapi, LineConfig, LineFlags, LineInfo, LineRequest, LineValues, Offsets,
};
use rustix::fs::OFlags;
use vhost_device_backend::{RateLimit, limited};

use super::attribute::Mode;
use super::switched::{OnOff, Switched};
use super::{CANNOT_READ, CANNOT_SET, OpenError, Opened, Root, entries, these};
use crate::host::{Error, Result};

/// What the kernel calls the user of the lines.
const CONSUMER: &str = "vhost-device-scmi";

/// The most lines of a chip that are looked through for a name.
const MAX_LINES: u32 = 4096;

/// A line, and how it is driven.
#[derive(Clone, Debug)]
pub struct LineSpec<'a> {
    /// `gpiochip0`, or a path, or the chip's label.
    pub chip: &'a str,
    /// Its offset, or its name.
    pub line: &'a str,
    /// On is low.
    pub active_low: bool,
    /// Only low is driven.
    pub open_drain: bool,
    /// What it is set to at first; as it is, when `None`.
    pub initial: Option<bool>,
}

/// Looks at a line, and leaves it as it is: what it is called.
///
/// # Errors
/// When there is no such chip or line, or somebody has it.
pub fn look(root: &Root, spec: &LineSpec<'_>, mode: Mode) -> Opened<String> {
    let path = find_chip(root, spec.chip)?;
    let chip = open_chip(&path, mode)?;
    let offset = find_line(&chip, &path, spec.line)?;
    let backing = format!("{} line {offset}", path.display());
    let info = uapi::get_line_info(&chip, offset)
        .map_err(|error| OpenError::open(&path, system(error)))?;
    if info.flags.contains(LineFlags::USED) {
        Err(in_use(&backing, &info))
    } else {
        Ok(backing)
    }
}

fn in_use(backing: &str, info: &LineInfo) -> OpenError {
    let user = String::from(&info.consumer);
    OpenError::unfit(format!("{backing} is in use by {user:?}"))
}

/// A domain on a line, which is nobody else's from then on.
///
/// # Errors
/// When there is no such chip or line, or somebody has it.
pub fn open(root: &Root, spec: &LineSpec<'_>, mode: Mode) -> Opened<Switched<Line>> {
    let path = find_chip(root, spec.chip)?;
    let chip = open_chip(&path, mode)?;
    let offset = find_line(&chip, &path, spec.line)?;
    let backing = format!("{} line {offset}", path.display());
    let mut flags = LineFlags::empty();
    if spec.active_low {
        flags |= LineFlags::ACTIVE_LOW;
    }
    let request = LineRequest {
        offsets: Offsets::from_slice(&[offset]),
        consumer: CONSUMER.into(),
        config: LineConfig {
            flags,
            ..LineConfig::default()
        },
        num_lines: 1,
        ..LineRequest::default()
    };
    let file = uapi::get_line(&chip, request).map_err(|error| {
        let info = uapi::get_line_info(&chip, offset).ok();
        let user = info.filter(|info| info.flags.contains(LineFlags::USED));
        match user {
            Some(info) => in_use(&backing, &info),
            None => OpenError::unfit(format!("{backing} cannot be had: {}", system(error))),
        }
    })?;
    if spec.open_drain {
        flags |= LineFlags::OPEN_DRAIN;
    }
    let line = Line {
        file,
        flags: flags | LineFlags::OUTPUT,
        name: backing.clone(),
    };
    if let Some(on) = spec.initial {
        line.drive(on)
            .map_err(|error| OpenError::unfit(format!("{backing} cannot be an output: {error}")))?;
    }
    Ok(Switched::new(line, backing))
}

fn find_chip(root: &Root, wanted: &str) -> Opened<PathBuf> {
    if wanted.starts_with('/') {
        return Ok(root.path(wanted));
    }
    let dev = root.path("dev");
    let names = entries(&dev)?;
    let chips = names.iter().filter(|name| name.starts_with("gpiochip"));
    let chips: Vec<_> = chips.map(|name| (name, dev.join(name))).collect();
    if let Some((_, path)) = chips.iter().find(|(name, _)| *name == wanted) {
        return Ok(path.clone());
    }
    let label = |path: &PathBuf| {
        let info = uapi::get_chip_info(&open_chip(path, Mode::Read).ok()?).ok()?;
        Some(String::from(&info.label))
    };
    let mut labelled = chips
        .iter()
        .filter(|(_, path)| label(path).as_deref() == Some(wanted));
    match (labelled.next(), labelled.next()) {
        (Some((_, path)), None) => Ok(path.clone()),
        (Some((one, _)), Some((other, _))) => Err(OpenError::unfit(format!(
            "{one} and {other} are both called {wanted:?}: give one of these names"
        ))),
        (None, _) => Err(OpenError::unfit(format!(
            "there is no GPIO chip {wanted:?}; {}",
            these(chips.iter().map(|(name, _)| name))
        ))),
    }
}

fn open_chip(path: &std::path::Path, mode: Mode) -> Opened<File> {
    let access = match mode {
        Mode::Read => OFlags::RDONLY,
        Mode::Look | Mode::Control => OFlags::RDWR,
    };
    // A FIFO of that name would else be waited for.
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|error| OpenError::open(path, error))?;
    match uapi::get_chip_info(&file) {
        Ok(_) => Ok(file),
        Err(error) => Err(OpenError::unfit(format!(
            "{} is no GPIO chip with the kernel's interface of version 2: {}",
            path.display(),
            system(error)
        ))),
    }
}

fn find_line(chip: &File, path: &std::path::Path, wanted: &str) -> Opened<u32> {
    let info = uapi::get_chip_info(chip).map_err(|error| OpenError::open(path, system(error)))?;
    let count = info.num_lines;
    if let Ok(offset) = wanted.parse::<u32>() {
        return if offset < count {
            Ok(offset)
        } else {
            Err(OpenError::unfit(format!(
                "{} has {count} lines: there is no line {offset}",
                path.display()
            )))
        };
    }
    let named = |offset: &u32| {
        let info = uapi::get_line_info(chip, *offset);
        info.is_ok_and(|info| String::from(&info.name) == wanted)
    };
    let found: Vec<_> = (0..count.min(MAX_LINES)).filter(named).collect();
    match found[..] {
        [offset] => Ok(offset),
        [] => Err(OpenError::unfit(format!(
            "{} has no line that is called {wanted:?}; `gpioinfo` lists them",
            path.display()
        ))),
        _ => Err(OpenError::unfit(format!(
            "{} has several lines that are called {wanted:?}: give the offset",
            path.display()
        ))),
    }
}

fn system(error: uapi::Error) -> io::Error {
    match error {
        uapi::Error::Os(errno) => io::Error::from_raw_os_error(errno.0),
        error => io::Error::other(error),
    }
}

/// A line that is ours.
#[derive(Debug)]
pub struct Line {
    file: File,
    /// Those of an output.
    flags: LineFlags,
    name: String,
}

impl Line {
    /// Makes it an output, if it is none yet.
    fn drive(&self, on: bool) -> io::Result<()> {
        let mut config = LineConfig {
            flags: self.flags,
            ..LineConfig::default()
        };
        config.add_values(&LineValues {
            bits: on.into(),
            mask: 1,
        });
        uapi::set_line_config(&self.file, config).map_err(system)
    }

    fn failed(&self, limit: &RateLimit, error: io::Error) -> Error {
        limited!(limit, Warn, "{}: {error}", self.name);
        Error::Hardware(error)
    }
}

impl OnOff for Line {
    fn is_on(&self) -> Result<bool> {
        let mut values = LineValues { bits: 0, mask: 1 };
        match uapi::get_line_values(&self.file, &mut values) {
            Ok(()) => Ok(values.bits & 1 != 0),
            Err(error) => Err(self.failed(&CANNOT_READ, system(error))),
        }
    }

    fn turn(&self, on: bool) -> Result<()> {
        self.drive(on)
            .map_err(|error| self.failed(&CANNOT_SET, error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn test_what_is_no_chip_is_refused() {
        let tree = Tree::new();
        tree.write("dev/gpiochip0", "");
        tree.write("dev/null", "");
        let error = |chip| {
            let spec = LineSpec {
                chip,
                line: "0",
                active_low: false,
                open_drain: false,
                initial: None,
            };
            open(&tree.root(), &spec, Mode::Control)
                .unwrap_err()
                .explain()
        };
        assert!(error("gpiochip0").contains("is no GPIO chip"));
        assert!(error("/dev/null").contains("is no GPIO chip"));
        let none = error("gpiochip1");
        assert!(none.ends_with("there is gpiochip0"), "{none}");
        assert!(error("/dev/gone").contains("No such file"));
    }
}
