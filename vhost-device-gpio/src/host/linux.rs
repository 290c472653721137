//! Lines of the host's own chips, `/dev/gpiochipN`, through the kernel's interface (uAPI v2).
//!
//! Each line is a request of its own to the kernel. One request for many lines could have only
//! ten different attributes, and edges of one line could not be forgotten without the others'.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpiocdev_uapi::v2::{
    self as uapi, LineConfig, LineEdgeEvent, LineEdgeEventKind, LineFlags, LineRequest, LineValues,
    Offsets,
};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::{Edge, LineNumber, Lines, Watch, no_such_line};
use crate::log::Log;
use crate::wake::Bundle;

/// What the kernel calls the user of a guest's lines; the guest's number comes behind it.
const CONSUMER: &str = "vhost-device-gpio";

/// Where the kernel's chips are.
const DEV: &str = "/dev";

/// What they are called; their number comes behind it.
const CHIP: &str = "gpiochip";

/// A chip that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChipError {
    /// It cannot be opened.
    #[error("cannot open {}: {hint}", .path.display())]
    Open {
        /// Its file.
        path: PathBuf,
        /// What to do about it.
        hint: String,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no GPIO chip with the kernel's interface of version 2", .0.display())]
    NoChip(PathBuf, #[source] io::Error),
}

/// A chip, open. A guest can have lines of several, a chip can have lines of several guests.
#[derive(Debug)]
pub struct Chip {
    file: File,
    name: String,
    lines: u32,
}

/// A line of a chip as the kernel tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineInfo {
    /// Its name; empty when it has none.
    pub name: String,
    /// Who has it now, if somebody has.
    pub consumer: Option<String>,
}

impl Chip {
    /// The chip at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or is none.
    pub fn open(path: &Path) -> Result<Self, ChipError> {
        // A FIFO of that name would else be waited for.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| ChipError::Open {
                path: path.into(),
                hint: hint(error, Path::new(DEV)),
                source: error.into(),
            })?;
        let info = uapi::get_chip_info(&file)
            .map_err(|error| ChipError::NoChip(path.into(), system(error)))?;
        Ok(Self {
            file,
            name: String::from(&info.name),
            lines: info.num_lines,
        })
    }

    /// What the kernel calls it: `gpiochip0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many lines it has.
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// What the kernel says of a line.
    ///
    /// # Errors
    /// The kernel's.
    pub fn line(&self, offset: u32) -> io::Result<LineInfo> {
        let info = uapi::get_line_info(&self.file, offset).map_err(system)?;
        let used = info.flags.contains(LineFlags::USED);
        Ok(LineInfo {
            name: String::from(&info.name),
            consumer: used.then(|| String::from(&info.consumer)),
        })
    }

    /// Takes a line as it is. It is given back with the file.
    fn request(&self, offset: u32, consumer: &str, config: LineConfig) -> io::Result<File> {
        let request = LineRequest {
            offsets: Offsets::from_slice(&[offset]),
            consumer: consumer.into(),
            config,
            num_lines: 1,
            ..LineRequest::default()
        };
        let file = uapi::get_line(&self.file, request).map_err(system)?;
        fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
        Ok(file)
    }
}

/// What the user can do about a chip that cannot be opened.
fn hint(error: Errno, dev: &Path) -> String {
    match error {
        Errno::NOENT => there_are(dev),
        Errno::ACCESS | Errno::PERM => {
            "this user needs the right to read and write it (a udev rule can give it to a group)"
                .to_owned()
        }
        _ => "its driver does not let it be opened".to_owned(),
    }
}

/// The chips to choose from, for those who have named something else.
fn there_are(dev: &Path) -> String {
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix(CHIP)?.parse().ok();
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| number(entry.file_name().to_str()?))
        .collect();
    numbers.sort_unstable();
    let names: Vec<_> = numbers.iter().map(|n| format!("{CHIP}{n}")).collect();
    match names.is_empty() {
        true => "this host has no GPIO chip; sim:8 is a simulated one with 8 lines".to_owned(),
        false => format!("this host has {}", names.join(", ")),
    }
}

fn system(error: uapi::Error) -> io::Error {
    match error {
        uapi::Error::Os(errno) => io::Error::from_raw_os_error(errno.0),
        error => io::Error::other(error),
    }
}

/// What the host makes of a line, whatever the guest does with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// High for the guest is low on the line.
    pub active_low: bool,
    /// What pulls the line when nothing drives it; as it is when `None`.
    pub bias: Option<Bias>,
    /// How it drives as an output; both ways when `None`.
    pub drive: Option<Drive>,
    /// For how long an input must be steady to count.
    pub debounce: Option<Duration>,
}

/// What pulls a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Up.
    PullUp,
    /// Down.
    PullDown,
    /// Nothing.
    Disabled,
}

/// How an output drives, when not both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Low only.
    OpenDrain,
    /// High only.
    OpenSource,
}

/// A line that a guest is to have.
#[derive(Debug)]
pub struct HostLine {
    chip: Arc<Chip>,
    offset: u32,
    name: String,
    attributes: Attributes,
    /// The level that it is driven to while the guest is away.
    safe: Option<bool>,
    /// While the guest is away, the line that is driven to its safe level.
    parked: Mutex<Option<File>>,
}

impl HostLine {
    /// The line `offset` of `chip`, which the guest knows as `name`.
    pub fn new(
        chip: Arc<Chip>,
        offset: u32,
        name: String,
        attributes: Attributes,
        safe: Option<bool>,
    ) -> Self {
        Self {
            chip,
            offset,
            name,
            attributes,
            safe,
            parked: Mutex::default(),
        }
    }

    /// Takes the line and drives it to its safe level, if it has one.
    fn park(&self, consumer: &str) -> io::Result<()> {
        if self.safe.is_some() {
            let file = self.take(consumer)?;
            self.set_safe(&file)?;
            *self.lock_parked() = Some(file);
        }
        Ok(())
    }

    fn set_safe(&self, file: &File) -> io::Result<()> {
        let Some(high) = self.safe else {
            return Ok(());
        };
        configure(file, self.output(high)).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{self} cannot be set to its safe value: {error}"),
            )
        })
    }

    fn lock_parked(&self) -> MutexGuard<'_, Option<File>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the line: the one that is parked, or from the kernel.
    fn take(&self, consumer: &str) -> io::Result<File> {
        if let Some(file) = self.lock_parked().take() {
            return Ok(file);
        }
        let as_it_is = LineConfig {
            flags: self.flags(),
            ..LineConfig::default()
        };
        self.chip
            .request(self.offset, consumer, as_it_is)
            .map_err(|error| self.explain(error))
    }

    /// Gives the line back, or keeps it at its safe level.
    fn give_back(&self, file: File, log: &Log) {
        if self.safe.is_none() {
            return;
        }
        if let Err(error) = self.set_safe(&file) {
            log.not_safe(error);
        }
        *self.lock_parked() = Some(file);
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let info = self.chip.line(self.offset).unwrap_or_default();
        match info.consumer {
            Some(consumer) => io::Error::new(
                error.kind(),
                format!("{self} is in use by {consumer:?}: {error}"),
            ),
            None => io::Error::new(error.kind(), format!("{self} cannot be had: {error}")),
        }
    }

    /// Those that go with any direction, and with none.
    fn flags(&self) -> LineFlags {
        match self.attributes.active_low {
            true => LineFlags::ACTIVE_LOW,
            false => LineFlags::empty(),
        }
    }

    fn bias(&self) -> LineFlags {
        match self.attributes.bias {
            None => LineFlags::empty(),
            Some(Bias::PullUp) => LineFlags::BIAS_PULL_UP,
            Some(Bias::PullDown) => LineFlags::BIAS_PULL_DOWN,
            Some(Bias::Disabled) => LineFlags::BIAS_DISABLED,
        }
    }

    fn input(&self, watch: Option<Watch>) -> LineConfig {
        let edges = match watch {
            None => LineFlags::empty(),
            Some(Watch::Rising) => LineFlags::EDGE_RISING,
            Some(Watch::Falling) => LineFlags::EDGE_FALLING,
            Some(Watch::Both) => LineFlags::EDGE_RISING | LineFlags::EDGE_FALLING,
        };
        let mut config = LineConfig {
            flags: self.flags() | self.bias() | LineFlags::INPUT | edges,
            ..LineConfig::default()
        };
        if let Some(period) = self.attributes.debounce {
            // Fits: the command line bounds it to a second.
            config.add_debounce(period.as_micros() as u32, 1);
        }
        config
    }

    fn output(&self, high: bool) -> LineConfig {
        let drive = match self.attributes.drive {
            None => LineFlags::empty(),
            Some(Drive::OpenDrain) => LineFlags::OPEN_DRAIN,
            Some(Drive::OpenSource) => LineFlags::OPEN_SOURCE,
        };
        let mut config = LineConfig {
            flags: self.flags() | self.bias() | LineFlags::OUTPUT | drive,
            ..LineConfig::default()
        };
        config.add_values(&one_value(high));
        config
    }
}

impl std::fmt::Display for HostLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {} of {}", self.offset, self.chip.name)
    }
}

fn configure(file: &File, config: LineConfig) -> io::Result<()> {
    loop {
        match uapi::set_line_config(file, config.clone()).map_err(system) {
            // The session is to end. The chip may be behind a slow bus, and what is done at the end
            // matters most: lines get their safe levels.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn one_value(high: bool) -> LineValues {
    LineValues {
        bits: high.into(),
        mask: 1,
    }
}

/// Drives those lines of a guest that have a safe level to it, until the guest is there.
///
/// # Errors
/// When somebody else has one, or it cannot be an output.
pub fn park(lines: &[HostLine], guest: usize) -> io::Result<()> {
    let mut lines = lines.iter();
    lines.try_for_each(|line| line.park(&consumer(guest)))
}

fn consumer(guest: usize) -> String {
    format!("{CONSUMER} {guest}")
}

/// The lines of one guest while it is connected.
#[derive(Debug)]
pub struct Linux {
    lines: Arc<[HostLine]>,
    /// In the lines' order; fewer only while they are being taken.
    taken: Vec<Taken>,
    bundle: Bundle,
    log: Log,
}

#[derive(Debug)]
struct Taken {
    file: File,
    watch: Option<Watch>,
}

impl Linux {
    /// Takes `lines` for a guest.
    ///
    /// # Errors
    /// When somebody has taken one meanwhile, or the system has no descriptors left.
    pub fn new(lines: Arc<[HostLine]>, guest: usize, log: Log) -> io::Result<Self> {
        let consumer = consumer(guest);
        let mut this = Self {
            lines: Arc::clone(&lines),
            taken: Vec::with_capacity(lines.len()),
            bundle: Bundle::new()?,
            log,
        };
        for (number, line) in (0..).zip(lines.iter()) {
            let file = line.take(&consumer)?;
            let added = this.bundle.add(&file, number);
            this.taken.push(Taken { file, watch: None });
            added?;
        }
        Ok(this)
    }

    fn line(&mut self, number: LineNumber) -> io::Result<(&HostLine, &mut Taken)> {
        let number = usize::from(number);
        let lines = self.lines.get(number).zip(self.taken.get_mut(number));
        lines.ok_or_else(no_such_line)
    }
}

/// Forgets the edges of a line that were not read.
fn drain(file: &File) {
    let mut events = [0; 64];
    // A line has a buffer of 16 edges, and its watch is over: this ends.
    while uapi::read_event(file, &mut events).is_ok_and(|words| words > 0) {}
}

fn read_edge(file: &File) -> io::Result<Edge> {
    let mut words = vec![0; LineEdgeEvent::u64_size()];
    let count = uapi::read_event(file, &mut words).map_err(system)?;
    let event = words.get(..count).unwrap_or_default();
    let event = LineEdgeEvent::from_slice(event).map_err(system)?;
    match LineEdgeEventKind::try_from(event.kind) {
        Ok(LineEdgeEventKind::RisingEdge) => Ok(Edge::Rising),
        Ok(LineEdgeEventKind::FallingEdge) => Ok(Edge::Falling),
        Err(()) => Err(io::Error::other("an event is neither edge")),
    }
}

impl Lines for Linux {
    fn count(&self) -> LineNumber {
        // Fits: the command line bounds it (`MAX_LINES`).
        self.lines.len() as LineNumber
    }

    fn name(&self, line: LineNumber) -> &str {
        let line = self.lines.get(usize::from(line));
        line.map_or("", |line| &line.name)
    }

    fn set_input(&mut self, line: LineNumber) -> io::Result<()> {
        let (line, taken) = self.line(line)?;
        configure(&taken.file, line.input(taken.watch))
    }

    fn set_output(&mut self, line: LineNumber, high: bool) -> io::Result<()> {
        let (line, taken) = self.line(line)?;
        configure(&taken.file, line.output(high))
    }

    fn release(&mut self, line: LineNumber) -> io::Result<()> {
        let (line, taken) = self.line(line)?;
        taken.watch = None;
        let result = configure(&taken.file, line.input(None));
        drain(&taken.file);
        result
    }

    fn value(&mut self, line: LineNumber) -> io::Result<bool> {
        let (_, taken) = self.line(line)?;
        let mut values = one_value(false);
        uapi::get_line_values(&taken.file, &mut values).map_err(system)?;
        Ok(values.bits & 1 != 0)
    }

    fn set_value(&mut self, line: LineNumber, high: bool) -> io::Result<()> {
        let (_, taken) = self.line(line)?;
        uapi::set_line_values(&taken.file, &one_value(high)).map_err(system)
    }

    fn watch(&mut self, line: LineNumber, edges: Option<Watch>) -> io::Result<()> {
        let (line, taken) = self.line(line)?;
        if taken.watch.take().is_some() {
            let result = configure(&taken.file, line.input(None));
            drain(&taken.file);
            result?;
        }
        if edges.is_some() {
            configure(&taken.file, line.input(edges))?;
        }
        taken.watch = edges;
        Ok(())
    }

    fn events(&self) -> BorrowedFd<'_> {
        self.bundle.as_fd()
    }

    fn next_edge(&mut self) -> Option<(LineNumber, Edge)> {
        while let Some(number) = self.bundle.ready() {
            let (line, taken) = self.taken_line(number)?;
            match read_edge(&taken.file) {
                Ok(edge) => return Some((number, edge)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    // A chip that was pulled out says so forever.
                    self.log.lost_edges(line, error);
                    self.bundle.remove(&taken.file);
                }
            }
        }
        None
    }
}

impl Linux {
    fn taken_line(&self, number: LineNumber) -> Option<(&HostLine, &Taken)> {
        let number = usize::from(number);
        self.lines.get(number).zip(self.taken.get(number))
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        for (line, taken) in self.lines.iter().zip(self.taken.drain(..)) {
            // A line that is parked must not wake the next session's bundle, nor this one's.
            self.bundle.remove(&taken.file);
            line.give_back(taken.file, &self.log);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use vhost_device_rig::logged;

    use super::*;

    /// A chip that has nothing of a chip.
    fn no_chip() -> Arc<Chip> {
        Arc::new(Chip {
            file: File::open("/dev/null").unwrap(),
            name: "gpiochip0".to_owned(),
            lines: 100,
        })
    }

    #[test]
    fn test_hardware_that_fails_is_a_line_a_second_over_all_connections() {
        let chip = no_chip();
        let line = |offset| {
            let chip = Arc::clone(&chip);
            HostLine::new(
                chip,
                offset,
                String::new(),
                Attributes::default(),
                Some(true),
            )
        };
        let lines: Arc<[HostLine]> = (0..100).map(line).collect();
        let log = Log::new("guest 0");
        let start = Instant::now();
        let told = logged(|| {
            for _ in 0..5 {
                for line in lines.iter() {
                    // Ready, and no edge: what a chip says that was pulled out.
                    let (reader, _) = rustix::pipe::pipe().unwrap();
                    *line.lock_parked() = Some(reader.into());
                }
                let mut guest = Linux::new(Arc::clone(&lines), 0, log.clone()).unwrap();
                assert_eq!(guest.next_edge(), None);
            }
        });
        let most = 1 + start.elapsed().as_secs() as usize;
        for what in [
            "edges cannot be read any more",
            "cannot be set to its safe value",
        ] {
            let count = told.iter().filter(|line| line.contains(what)).count();
            assert!((1..=most).contains(&count), "{told:?}");
        }
        assert!(told.len() <= 2 * most, "{told:?}");
    }

    #[test]
    fn test_who_names_no_chip_is_told_which_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let hint = |error| hint(error, directory.path());
        assert!(hint(Errno::NOENT).contains("no GPIO chip; sim:8 is"));
        for name in ["gpiochip10", "gpiochip2", "gpio", "gpiochip"] {
            File::create(directory.path().join(name)).unwrap();
        }
        let there_are = "this host has gpiochip2, gpiochip10";
        assert_eq!(hint(Errno::NOENT), there_are);
        assert!(hint(Errno::ACCESS).contains("the right to read and write"));
    }
}
