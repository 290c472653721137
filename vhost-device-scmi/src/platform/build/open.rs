//! What several protocols need of a file and of the host: keys that exclude each other, files of
//! hooks, GPIO lines. With [`Site::looks`](crate::platform::Site) nothing here has to exist.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;

use super::Builder;
use super::guests::is_controlled;
use crate::host::linux::attribute::{DIGITS, Mode, Number, Place, Sink, Switch};
use crate::host::linux::{Opened, gpio};
use crate::host::{Looked, Permissions, PowerDriver, PowerScale, ResetDriver};
use crate::platform::file::{self, Files};
use crate::platform::{Checked, Problem, Span};

/// The one key of several that says what is behind a resource.
pub(super) fn one<B, const N: usize>(
    table: &Span,
    candidates: [(&'static str, Option<(Span, B)>); N],
) -> Checked<(Span, B)> {
    let names = candidates.each_ref().map(|(name, _)| *name).join(", ");
    let mut found = candidates
        .into_iter()
        .filter_map(|(name, backing)| Some((name, backing?)));
    let Some((first, backing)) = found.next() else {
        let why = format!("it does not say what is behind it: write one of {names}");
        return Err(Problem::at(table, why));
    };
    match found.next() {
        None => Ok(backing),
        Some((second, (span, _))) => {
            let why = format!("it has {first} and {second}: write one of them");
            Err(Problem::at(&span, why))
        }
    }
}

/// A key's value with its place.
pub(super) fn placed<T, B>(
    value: Option<Spanned<T>>,
    wrap: impl FnOnce(T) -> B,
) -> Option<(Span, B)> {
    let value = value?;
    Some((value.span(), wrap(value.into_inner())))
}

/// A key that must not be there, with why.
pub(super) fn refuse<T>(key: &Option<Spanned<T>>, why: &str) -> Checked<()> {
    match key {
        None => Ok(()),
        Some(key) => Err(Problem::at(&key.span(), why)),
    }
}

/// Whether something can be turned off: what the file says, if the hardware can.
pub(super) fn gate(wanted: &Option<Spanned<bool>>, can: bool) -> Checked<bool> {
    match wanted {
        None => Ok(can),
        Some(wanted) if *wanted.get_ref() && !can => Err(Problem::at(
            &wanted.span(),
            "nothing here turns it on and off: write what does beside what is behind it, or leave \
             this out",
        )),
        Some(wanted) => Ok(*wanted.get_ref()),
    }
}

/// The number of a resource by its name.
pub(super) fn find(table: &str, names: &[String], name: &Spanned<String>) -> Checked<usize> {
    let found = names.iter().position(|other| other == name.get_ref());
    found.ok_or_else(|| {
        let why = format!(
            "there is no [[{table}]] that is called {:?}",
            name.get_ref()
        );
        Problem::at(&name.span(), why)
    })
}

pub(super) fn power_scale(scale: Option<file::PowerScale>, usual: PowerScale) -> PowerScale {
    match scale {
        None => usual,
        Some(file::PowerScale::Abstract) => PowerScale::Abstract,
        Some(file::PowerScale::Milliwatts) => PowerScale::Milliwatts,
        Some(file::PowerScale::Microwatts) => PowerScale::Microwatts,
    }
}

/// Paths of a hook.
struct HookFiles {
    get: Option<PathBuf>,
    set: Option<PathBuf>,
}

impl HookFiles {
    fn place(&self, mode: Mode) -> Place<'_> {
        Place {
            get: self.get.as_deref(),
            set: self.set.as_deref(),
            mode,
        }
    }

    /// What `--check` calls it.
    fn name(&self, mode: Mode) -> String {
        let set = self.set.as_ref().filter(|_| mode != Mode::Read);
        let paths = [self.get.as_ref(), set].into_iter().flatten();
        let mut names: Vec<_> = paths.map(|path| path.display().to_string()).collect();
        names.dedup();
        if names.is_empty() {
            "nothing that is read".to_owned()
        } else {
            names.join(" + ")
        }
    }
}

/// A line drives a power domain or a reset domain.
pub(super) trait LineDriver: PowerDriver + ResetDriver {}

impl<T: PowerDriver + ResetDriver> LineDriver for T {}

/// A driver in place of hardware that is not here.
pub(super) fn absent(backing: String) -> Arc<Looked> {
    Arc::new(Looked(backing))
}

impl Builder<'_> {
    /// What the daemon does with the hardware of a resource.
    pub(super) fn mode(&self, permissions: &Permissions) -> Mode {
        match (is_controlled(permissions), self.site.looks) {
            (false, _) => Mode::Read,
            (true, true) => Mode::Look,
            (true, false) => Mode::Control,
        }
    }

    /// Where a path of the file leads.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        if path.is_absolute() {
            self.site.root.path(path)
        } else {
            self.site.base.join(path)
        }
    }

    /// Takes what was opened. If that failed, a start fails; a look notes the problem and goes on
    /// with `None`.
    pub(super) fn opened<T>(&self, opened: Opened<T>, span: &Span) -> Checked<Option<T>> {
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                let problem = Problem {
                    resource: self.resource,
                    ..Problem::at(span, error.explain())
                };
                if !self.site.looks {
                    return Err(problem);
                }
                self.not_here.borrow_mut().push(problem);
                Ok(None)
            }
        }
    }

    fn files(&self, files: &Files) -> HookFiles {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| self.path(path));
        HookFiles {
            get: path(&files.get),
            set: path(&files.set),
        }
    }

    /// A number in the files of a hook, and what `--check` calls it.
    pub(super) fn number(
        &self,
        files: &Files,
        mode: Mode,
        initial: i64,
        span: &Span,
    ) -> Checked<(Number, String)> {
        let files = self.files(files);
        let number = self.opened(Number::open(files.place(mode), initial), span)?;
        let number = number.unwrap_or_else(|| Number::remembered(initial));
        Ok((number, files.name(mode)))
    }

    pub(super) fn optional_number(
        &self,
        files: &Option<Files>,
        mode: Mode,
        initial: i64,
        span: &Span,
    ) -> Checked<Option<Number>> {
        let number = files
            .as_ref()
            .map(|files| self.number(files, mode, initial, span));
        Ok(number.transpose()?.map(|(number, _)| number))
    }

    /// A switch in the files of a hook, and what `--check` calls it.
    pub(super) fn switch(
        &self,
        files: &Files,
        mode: Mode,
        initial: bool,
        span: &Span,
    ) -> Checked<(Switch, String)> {
        let files = self.files(files);
        let switch = self.opened(Switch::open(files.place(mode), DIGITS, initial), span)?;
        let switch = switch.unwrap_or_else(|| Switch::remembered(DIGITS, initial));
        Ok((switch, files.name(mode)))
    }

    pub(super) fn optional_switch(
        &self,
        files: &Option<Files>,
        mode: Mode,
        initial: bool,
        span: &Span,
    ) -> Checked<Option<Switch>> {
        let switch = files
            .as_ref()
            .map(|files| self.switch(files, mode, initial, span));
        Ok(switch.transpose()?.map(|(switch, _)| switch))
    }

    /// A file that the daemon only writes. `None` if it does not open it.
    pub(super) fn sink(&self, path: &Path, mode: Mode, span: &Span) -> Checked<Option<Sink>> {
        let path = self.path(path);
        match mode {
            Mode::Read => Ok(None),
            Mode::Look => Ok(self.opened(Sink::look(&path), span)?.and(None)),
            Mode::Control => self.opened(Sink::open(&path), span),
        }
    }

    /// A GPIO line for a power or a reset domain.
    pub(super) fn line(
        &self,
        gpio: &file::Gpio,
        place: &Span,
        mode: Mode,
    ) -> Checked<Arc<dyn LineDriver>> {
        let spec = gpio::LineSpec {
            chip: &gpio.chip,
            line: &gpio.line,
            active_low: gpio.active_low.unwrap_or(false),
            open_drain: gpio.open_drain.unwrap_or(false),
            initial: gpio.initial.as_ref().map(|initial| *initial.get_ref()),
        };
        if mode == Mode::Read {
            let why = "this sets the line, and no guest may control it: leave it out, or write \
                       control = […]";
            refuse(&gpio.initial, why)?;
        }
        if !self.site.looks
            && let Some(line) = self.opened(gpio::open(self.site.root, &spec, mode), place)?
        {
            return Ok(Arc::new(line));
        }
        let found = self.opened(gpio::look(self.site.root, &spec, mode), place)?;
        let backing = found.unwrap_or_else(|| format!("{} line {}", gpio.chip, gpio.line));
        Ok(absent(backing))
    }
}
