//! Samples from the kernel's buffer, `/dev/iio:deviceN`.
//!
//! A device has one buffer, which one process can have. Sensors that are channels of one device
//! share it: the first one's event is the buffer itself, and whoever reads a sample from there
//! wakes the others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, epoll, eventfd};
use rustix::fs::{Access, OFlags};
use vhost_device_backend::{RateLimit, Turns, limited};

use super::decimal::Decimal;
use super::{Attribute, Channel, Conversion, Opener, device, groups, name_of, shape};
use crate::host::linux::attribute::{Mode, Sink};
use crate::host::linux::{OpenError, Opened, Root, entries};
use crate::host::{Driver, Error, Event, Reading, Result, SensorDriver, Shape};

/// The longest sample. A kernel that tells of longer ones must not fill the memory.
const MAX_FRAME: usize = 4096;

/// How much is read at once, of samples that came one after the other: the last one counts.
const READ: usize = 8192;

/// How often it is read at one event, so that a sensor which is faster than its reader does not
/// keep it forever.
const MAX_READS: usize = 16;

/// How many samples the kernel keeps.
const LENGTH: u32 = 64;

/// A hertz in micro-hertz, in which frequencies are compared.
const MICRO: i8 = -6;

/// How a buffer is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// What starts a sample: the name of a trigger. As it is, when `None`.
    pub trigger: Option<&'a str>,
    /// Whether the buffer is set up. One that nobody may control is read as it is.
    pub mode: Mode,
}

/// The buffers of all devices that have one, until they are started.
#[derive(Debug, Default)]
pub struct Buffers(BTreeMap<PathBuf, Arc<Buffer>>);

impl Buffers {
    /// A sensor with the samples of `channel` of the device `wanted`, named as for
    /// [`open`](super::open). It reads nothing before [`Buffers::start`].
    ///
    /// # Errors
    /// When there is no such device or channel, or no buffer for it, or another sensor wants
    /// another trigger for it.
    pub fn add(
        &mut self,
        root: &Root,
        wanted: &str,
        channel: &str,
        setup: Setup<'_>,
    ) -> Opened<(Shape, Arc<Buffered>)> {
        let directory = device(root, wanted)?;
        let names = entries(&directory)?;
        let channels = groups(&directory, &names, Some(channel))?;
        let channels = channels.into_iter().next().unwrap_or_default();
        let opener = Opener {
            device: &directory,
            names: &names,
        };
        let conversions = channels.iter().map(|channel| {
            if channel.raw {
                opener.conversion(channel)
            } else {
                Err(OpenError::unfit(format!(
                    "{} is computed by the kernel, which has no buffer for it: leave `buffer` out",
                    channel.base
                )))
            }
        });
        let (quantities, conversions) = conversions.collect::<Opened<(Vec<_>, Vec<_>)>>()?;
        for channel in &channels {
            let path = directory.join(format!("scan_elements/{}_en", channel.base));
            if !path.exists() {
                return Err(OpenError::unfit(format!(
                    "{} is not there, so {} has no buffer for {}: leave `buffer` out",
                    path.display(),
                    directory.display(),
                    channel.base
                )));
            }
        }
        let buffer = match self.0.get(&directory) {
            Some(buffer) => Arc::clone(buffer),
            None => {
                let buffer = Buffer::new(&directory, &channels, &names)?;
                let buffer = Arc::new(buffer);
                self.0.insert(directory.clone(), Arc::clone(&buffer));
                buffer
            }
        };
        let (number, waker) = buffer.join(&channels, setup)?;
        let sensor = Buffered {
            backing: format!("{} {} (buffer)", directory.display(), name_of(&channels)),
            channels: channels
                .iter()
                .map(|channel| channel.base.clone())
                .collect(),
            conversions,
            buffer,
            number,
            waker,
            seen: AtomicU64::new(0),
        };
        Ok((shape(&channels, quantities), Arc::new(sensor)))
    }

    /// Turns the buffers on that somebody may control; the others have to be on.
    ///
    /// # Errors
    /// When one is in use, or has samples that are not understood, or cannot be turned on.
    pub fn start(self, root: &Root) -> Opened<()> {
        self.0.values().try_for_each(|buffer| buffer.start(root))
    }

    /// Looks whether that can be done. Nothing is opened that only one process can have: it may be
    /// a daemon that runs.
    ///
    /// # Errors
    /// As of [`Buffers::start`], as far as can be told.
    pub fn look(self, root: &Root) -> Opened<()> {
        self.0.values().try_for_each(|buffer| buffer.look(root))
    }
}

/// The buffer of one device.
#[derive(Debug)]
struct Buffer {
    directory: PathBuf,
    /// Has the buffer's file while that works: what is watched for samples.
    watch: OwnedFd,
    settings: Mutex<Settings>,
    /// Had while the frequency is set, for which the thread that watches all events does not wait.
    turns: Turns,
    started: OnceLock<Started>,
    latest: Mutex<Latest>,
    /// The buffer's file has failed: nothing comes any more.
    dead: AtomicBool,
    /// The file of its frequency, if it has one.
    frequency: Option<String>,
    complaints: RateLimit,
}

/// What the sensors want of their buffer.
#[derive(Debug, Default)]
struct Settings {
    channels: Vec<String>,
    trigger: Option<String>,
    /// The most that may be done with it for one of them.
    mode: Option<Mode>,
    /// For each sensor, what wakes it; the first has the buffer's own file.
    wakers: Vec<Option<Arc<OwnedFd>>>,
    /// For each sensor, the interval that it wants.
    intervals: BTreeMap<usize, Duration>,
}

/// What there is once a buffer is on.
#[derive(Debug)]
struct Started {
    file: File,
    layout: Layout,
    /// Samples have times, and those are SCMI's.
    has_times: bool,
    /// How often there are samples, if that may be set.
    frequency: Option<Frequency>,
}

/// The newest sample.
#[derive(Debug, Default)]
struct Latest {
    /// How many have come.
    count: u64,
    frame: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned or not, each value is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    fn new(directory: &Path, channels: &[Channel], names: &[String]) -> Opened<Self> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| OpenError::open(directory, error))?;
        let file = channels
            .first()
            .and_then(|channel| channel.property("sampling_frequency", names))
            .or_else(|| {
                let file = "sampling_frequency";
                names
                    .iter()
                    .any(|name| name == file)
                    .then(|| file.to_owned())
            });
        Ok(Self {
            directory: directory.to_owned(),
            watch,
            settings: Mutex::default(),
            turns: Turns::default(),
            started: OnceLock::new(),
            latest: Mutex::default(),
            dead: AtomicBool::new(false),
            frequency: file,
            complaints: RateLimit::default(),
        })
    }

    /// One more sensor has samples of this buffer; returns its number and what wakes it.
    fn join(
        &self,
        channels: &[Channel],
        setup: Setup<'_>,
    ) -> Opened<(usize, Option<Arc<OwnedFd>>)> {
        let mut settings = lock(&self.settings);
        if let Some(trigger) = setup.trigger {
            match &settings.trigger {
                Some(other) if other != trigger => {
                    return Err(OpenError::unfit(format!(
                        "{} has one buffer, and another sensor wants the trigger {other:?} for it",
                        self.directory.display()
                    )));
                }
                _ => settings.trigger = Some(trigger.to_owned()),
            }
        }
        settings.mode = settings.mode.max(Some(setup.mode));
        for channel in channels {
            settings.channels.push(channel.base.clone());
        }
        let number = settings.wakers.len();
        let waker = match number {
            0 => None,
            _ => {
                let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(|error| OpenError::open(&self.directory, error))?;
                Some(Arc::new(waker))
            }
        };
        settings.wakers.push(waker.clone());
        Ok((number, waker))
    }

    fn set(&self, file: &str, value: &str) -> Opened<()> {
        let path = self.directory.join(file);
        Sink::open(&path)?.write(value).map_err(|error| {
            OpenError::unfit(format!(
                "cannot write {value:?} to {}: {error}",
                path.display()
            ))
        })
    }

    fn start(&self, root: &Root) -> Opened<()> {
        self.start_with(root, &lock(&self.settings))
    }

    /// What may be done with it, if it is on or off as it has to be for that.
    fn mode(&self, settings: &Settings) -> Opened<Mode> {
        let mode = settings.mode.unwrap_or(Mode::Read);
        let enable = Attribute::to_read(&self.directory.join("buffer/enable"))?;
        let is_on = enable.number()? != 0;
        match mode {
            Mode::Read if !is_on => Err(OpenError::unfit(format!(
                "the buffer of {} is off, and no guest may control what is behind it: turn it on \
                 before (buffer/enable there), or write control = […]",
                self.directory.display()
            ))),
            Mode::Look | Mode::Control if is_on => Err(OpenError::unfit(format!(
                "the buffer of {} is on already: end the program that has it, or write 0 to \
                 buffer/enable there",
                self.directory.display()
            ))),
            _ => Ok(mode),
        }
    }

    fn start_with(&self, root: &Root, settings: &Settings) -> Opened<()> {
        let path = |file: &str| self.directory.join(file);
        let set = |file: &str, value: &str| self.set(file, value);
        if self.mode(settings)? != Mode::Control {
            return self.watch(root, settings, None);
        }
        if let Some(trigger) = &settings.trigger {
            set("trigger/current_trigger", trigger)?;
        }
        for channel in &settings.channels {
            set(&format!("scan_elements/{channel}_en"), "1")?;
        }
        // Times are those of SCMI, or there are none.
        let timestamp = "scan_elements/in_timestamp_en";
        if path(timestamp).exists() {
            let clock = path(CLOCK);
            let has_clock = clock.exists() && set(CLOCK, "boottime").is_ok();
            set(timestamp, if has_clock { "1" } else { "0" })?;
        }
        if path("buffer/length").exists() {
            set("buffer/length", &LENGTH.to_string())?;
        }
        let frequency = self.frequency.as_ref();
        let frequency = frequency.map(|file| Frequency::open(&self.directory, file));
        self.watch(root, settings, frequency.transpose()?)
    }

    fn look(&self, root: &Root) -> Opened<()> {
        let settings = lock(&self.settings);
        match self.mode(&settings)? {
            Mode::Read => _ = self.layout(&settings)?,
            Mode::Look | Mode::Control => self.look_at_files(&settings)?,
        }
        let node = self.node(root);
        rustix::fs::access(&node, Access::READ_OK).map_err(|error| OpenError::open(&node, error))
    }

    /// Looks whether a buffer could be set up, and changes nothing.
    fn look_at_files(&self, settings: &Settings) -> Opened<()> {
        let channels = settings.channels.iter();
        let elements = channels.map(|channel| format!("scan_elements/{channel}_en"));
        let trigger = settings.trigger.as_ref();
        let trigger = trigger.map(|_| "trigger/current_trigger".to_owned());
        let files = elements.chain(trigger).chain(self.frequency.clone());
        for file in files.chain(["buffer/enable".to_owned()]) {
            Sink::look(&self.directory.join(file))?;
        }
        for channel in &settings.channels {
            Layout::format(&self.directory.join("scan_elements"), channel)?;
        }
        Ok(())
    }

    fn node(&self, root: &Root) -> PathBuf {
        let name = self.directory.file_name().unwrap_or_default();
        root.path(Path::new("dev").join(name))
    }

    /// Where the samples of a buffer that is set up have what, if they have all that is wanted.
    fn layout(&self, settings: &Settings) -> Opened<Layout> {
        let layout = Layout::read(&self.directory.join("scan_elements"))?;
        for channel in &settings.channels {
            if layout.find(channel).is_none() {
                return Err(OpenError::unfit(format!(
                    "{channel} is not among the samples of {}: turn it on before \
                     (scan_elements/{channel}_en there), or write control = […]",
                    self.directory.display()
                )));
            }
        }
        Ok(layout)
    }

    /// Opens a buffer that is set up, and turns it on unless it is on.
    fn watch(&self, root: &Root, settings: &Settings, frequency: Option<Frequency>) -> Opened<()> {
        let layout = self.layout(settings)?;
        let clock = Attribute::optional(&self.directory.join(CLOCK))?;
        let clock = clock.and_then(|clock| clock.line().ok());
        let has_times = layout.find(TIMESTAMP).is_some() && clock.as_deref() == Some("boottime");
        let node = self.node(root);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = rustix::fs::open(&node, flags, rustix::fs::Mode::empty())
            .map(File::from)
            .map_err(|error| OpenError::open(&node, error))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&self.watch, &file, data, epoll::EventFlags::IN)
            .map_err(|error| OpenError::open(&node, error))?;
        if settings.mode == Some(Mode::Control) {
            self.set("buffer/enable", "1")?;
        }
        let _ = self.started.set(Started {
            file,
            layout,
            has_times,
            frequency,
        });
        Ok(())
    }

    /// Takes what has come; true if something has.
    fn pump(&self) -> bool {
        let Some(started) = self.started.get() else {
            return false;
        };
        let size = started.layout.size;
        let mut buffer = [0; READ];
        // Whole samples: the rest would be read as the start of one.
        let room = READ.checked_div(size).unwrap_or(0) * size;
        let mut some = false;
        for _ in 0..MAX_READS {
            let Some(space) = buffer.get_mut(..room) else {
                return some;
            };
            let count = match rustix::io::read(&started.file, &mut *space) {
                Ok(0) => return self.die(started, &io::ErrorKind::UnexpectedEof.into(), some),
                Ok(count) => count,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return some,
                Err(error) => return self.die(started, &error.into(), some),
            };
            let frames = space.get(..count).unwrap_or_default().chunks_exact(size);
            let came = frames.len() as u64;
            if let Some(frame) = frames.last() {
                let mut latest = lock(&self.latest);
                latest.count += came;
                latest.frame.clear();
                latest.frame.extend_from_slice(frame);
                some = true;
            }
            if count < room {
                return some;
            }
        }
        some
    }

    /// The file is of no use any more, and would be ready forever.
    fn die(&self, started: &Started, error: &io::Error, some: bool) -> bool {
        if !self.dead.swap(true, Ordering::Relaxed) {
            limited!(
                self.complaints,
                Warn,
                "no more samples come from the buffer of {}: {error}",
                self.directory.display()
            );
            let _ = epoll::delete(&self.watch, &started.file);
        }
        some
    }

    fn wake_others(&self) {
        for waker in lock(&self.settings).wakers.iter().flatten() {
            // One that is full is awake.
            let _ = rustix::io::write(waker, &1_u64.to_ne_bytes());
        }
    }
}

/// A sensor with samples of a buffer.
#[derive(Debug)]
pub struct Buffered {
    backing: String,
    channels: Vec<String>,
    conversions: Vec<Conversion>,
    buffer: Arc<Buffer>,
    number: usize,
    /// What wakes it; the first sensor of a buffer is woken by the buffer.
    waker: Option<Arc<OwnedFd>>,
    /// How many samples had come when this sensor was told last.
    seen: AtomicU64,
}

impl Buffered {
    /// Whether samples have timestamps; known once the buffer is on.
    pub fn timestamps(&self) -> bool {
        let started = self.buffer.started.get();
        started.is_some_and(|started| started.has_times)
    }
}

impl Driver for Buffered {
    fn backing(&self) -> String {
        self.backing.clone()
    }

    fn event(&self) -> Option<Event<'_>> {
        let fd = self.waker.as_deref().unwrap_or(&self.buffer.watch);
        Some(Event {
            fd: fd.as_fd(),
            flags: PollFlags::IN,
        })
    }

    fn on_event(&self) -> bool {
        match &self.waker {
            Some(waker) => {
                // What it counts does not matter.
                let _ = rustix::io::read(waker, &mut [0; 8]);
            }
            None if self.buffer.pump() => self.buffer.wake_others(),
            None => {}
        }
        let count = lock(&self.buffer.latest).count;
        self.seen.swap(count, Ordering::Relaxed) != count
    }
}

impl SensorDriver for Buffered {
    fn read(&self, values: &mut [i64]) -> Result<Reading> {
        let started = self.buffer.started.get().ok_or(Error::Busy)?;
        if self.buffer.dead.load(Ordering::Relaxed) {
            return Err(Error::Hardware(io::ErrorKind::UnexpectedEof.into()));
        }
        let latest = lock(&self.buffer.latest);
        if latest.count == 0 {
            return Err(Error::Busy);
        }
        let value = |channel: &str| {
            let element = started.layout.find(channel)?;
            element.value(&latest.frame)
        };
        if values.len() != self.channels.len() {
            return Err(Error::NotSupported);
        }
        let channels = self.channels.iter().zip(&self.conversions);
        for (into, (channel, conversion)) in values.iter_mut().zip(channels) {
            let number = value(channel).and_then(|raw| conversion.apply(raw));
            *into = number.ok_or_else(|| Error::Hardware(io::ErrorKind::InvalidData.into()))?;
        }
        let time = started.has_times.then(|| value(TIMESTAMP)).flatten();
        let nanoseconds = time.and_then(|time| u64::try_from(time).ok());
        Ok(Reading {
            timestamp: nanoseconds.map(Duration::from_nanos),
        })
    }

    fn set_interval(&self, interval: Option<Duration>) -> Result<()> {
        let _turn = self.buffer.turns.take();
        // The fastest that one of them wants; when nobody wants any, it stays as it is.
        let shortest = {
            let mut settings = lock(&self.buffer.settings);
            match interval {
                Some(interval) => settings.intervals.insert(self.number, interval),
                None => settings.intervals.remove(&self.number),
            };
            settings.intervals.values().min().copied()
        };
        let started = self.buffer.started.get();
        let frequency = started.and_then(|started| started.frequency.as_ref());
        match (shortest, frequency) {
            (Some(interval), Some(frequency)) => frequency.set(interval),
            _ => Ok(()),
        }
    }
}

/// How often a device makes samples.
#[derive(Debug)]
struct Frequency {
    set: Sink,
    /// What it can be set to, in µHz, with how it is written; empty when that is not known.
    available: Vec<(i64, String)>,
}

impl Frequency {
    fn open(directory: &Path, file: &str) -> Opened<Self> {
        let available = Attribute::optional(&directory.join(format!("{file}_available")))?;
        let list = available.map(|list| list.line()).transpose()?;
        let list = list.unwrap_or_default();
        // `[1 1 100]` is a range, which takes any.
        let words = list.split_ascii_whitespace();
        let words = words.take_while(|word| !word.starts_with('['));
        let mut available: Vec<_> = words
            .filter_map(|word| Some((Decimal::parse(word)?.at(MICRO)?, word.to_owned())))
            .collect();
        available.sort();
        Ok(Self {
            set: Sink::open(&directory.join(file))?,
            available,
        })
    }

    /// Sets the lowest frequency that is enough for the interval, or the highest.
    fn set(&self, interval: Duration) -> Result<()> {
        let wanted = 1_000_000_000_000_000_u128.div_ceil(interval.as_nanos().max(1));
        let enough = self
            .available
            .iter()
            .find(|(frequency, _)| u128::try_from(*frequency).is_ok_and(|have| have >= wanted));
        match enough.or(self.available.last()) {
            Some((_, word)) => self.set.write(word),
            None => {
                let (whole, behind) = (wanted / 1_000_000, wanted % 1_000_000);
                self.set.write(format_args!("{whole}.{behind:06}"))
            }
        }
    }
}

/// Which clock times are of.
const CLOCK: &str = "current_timestamp_clock";

/// What the channel with the time is called.
const TIMESTAMP: &str = "in_timestamp";

/// Where a sample has what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    elements: Vec<Element>,
    size: usize,
}

/// A number in a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Element {
    channel: String,
    offset: usize,
    format: Format,
}

/// How a number is stored: `le:s12/16>>4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    big_endian: bool,
    signed: bool,
    bits: u32,
    /// In bytes: 1, 2, 4 or 8.
    storage: usize,
    repeat: usize,
    shift: u32,
}

impl Layout {
    /// Reads which channels are on, and how they are stored.
    fn read(directory: &Path) -> Opened<Self> {
        let names = entries(directory)?;
        let mut on = BTreeMap::new();
        for channel in names.iter().filter_map(|name| name.strip_suffix("_en")) {
            let attribute =
                |end: &str| Attribute::to_read(&directory.join(format!("{channel}_{end}")));
            if attribute("en")?.number()? == 0 {
                continue;
            }
            let index = attribute("index")?.number()?;
            let format = Self::format(directory, channel)?;
            on.insert(index, (channel.to_owned(), format));
        }
        let layout = Self::of(on.into_values());
        layout.ok_or_else(|| {
            let path = directory.display();
            OpenError::unfit(format!("{path} tells of samples over {MAX_FRAME} bytes"))
        })
    }

    /// How a channel's numbers are stored.
    fn format(directory: &Path, channel: &str) -> Opened<Format> {
        let path = directory.join(format!("{channel}_type"));
        let text = Attribute::to_read(&path)?.line()?;
        Format::parse(&text).ok_or_else(|| {
            let path = path.display();
            OpenError::unfit(format!("{path} says {text:?}: no known format"))
        })
    }

    /// Each number begins at a multiple of its own size, and the next sample at one of the
    /// largest's.
    fn of(channels: impl Iterator<Item = (String, Format)>) -> Option<Self> {
        let mut layout = Self::default();
        let mut align = 1;
        for (channel, format) in channels {
            let size = format.storage.checked_mul(format.repeat)?;
            let offset = layout.size.checked_next_multiple_of(size)?;
            layout.size = offset.checked_add(size)?;
            align = align.max(size);
            layout.elements.push(Element {
                channel,
                offset,
                format,
            });
            if layout.size > MAX_FRAME {
                return None;
            }
        }
        layout.size = layout.size.checked_next_multiple_of(align)?;
        (1..=MAX_FRAME).contains(&layout.size).then_some(layout)
    }

    fn find(&self, channel: &str) -> Option<&Element> {
        let mut elements = self.elements.iter();
        elements.find(|element| element.channel == channel)
    }
}

impl Format {
    fn parse(text: &str) -> Option<Self> {
        let (endianness, rest) = text.split_once(':')?;
        let big_endian = match endianness {
            "be" => true,
            "le" => false,
            _ => return None,
        };
        let signed = match rest.get(..1)? {
            "s" => true,
            "u" => false,
            _ => return None,
        };
        let (bits, rest) = rest.get(1..)?.split_once('/')?;
        let (storage, shift) = rest.split_once(">>").unwrap_or((rest, "0"));
        let (storage, repeat) = storage.split_once('X').unwrap_or((storage, "1"));
        let format = Self {
            big_endian,
            signed,
            bits: bits.parse().ok()?,
            storage: match storage {
                "8" => 1,
                "16" => 2,
                "32" => 4,
                "64" => 8,
                _ => return None,
            },
            repeat: repeat
                .parse()
                .ok()
                .filter(|repeat| (1..=16).contains(repeat))?,
            shift: shift.parse().ok()?,
        };
        let room = u32::try_from(format.storage * 8).ok()?;
        let fits = format.bits.checked_add(format.shift)? <= room;
        (fits && format.bits > 0).then_some(format)
    }
}

impl Element {
    /// The number in a sample; `None` when it is none, or has no room.
    fn value(&self, frame: &[u8]) -> Option<i64> {
        let Format { storage, bits, .. } = self.format;
        if self.format.repeat != 1 {
            return None;
        }
        let bytes = frame.get(self.offset..)?.get(..storage)?;
        let one = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        let number = if self.format.big_endian {
            bytes.iter().fold(0, one)
        } else {
            bytes.iter().rev().fold(0, one)
        };
        // Of the bits that count, the first is the first of all 64.
        let left = (number >> self.format.shift) << (64 - bits);
        if self.format.signed {
            Some(left.cast_signed() >> (64 - bits))
        } else {
            i64::try_from(left >> (64 - bits)).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use rustix::event::{PollFd, poll};

    use super::*;
    use crate::host::linux::tests::Tree;

    const DEVICE: &str = "sys/bus/iio/devices/iio:device1";

    /// A device with an accelerometer of 12 bits and a thermometer.
    fn tree() -> Tree {
        let tree = Tree::new();
        tree.files(
            DEVICE,
            &[
                ("name", "imu"),
                ("in_accel_x_raw", "0"),
                ("in_accel_y_raw", "0"),
                ("in_accel_scale", "0.01"),
                ("in_temp_raw", "0"),
                ("in_temp_scale", "10"),
                ("in_illuminance_input", "3"),
                ("current_timestamp_clock", "realtime"),
                ("sampling_frequency", "12.5"),
                ("sampling_frequency_available", "100 12.5 25"),
                ("trigger/current_trigger", ""),
                ("buffer/enable", "0"),
                ("buffer/length", "2"),
                ("scan_elements/in_accel_x_en", "0"),
                ("scan_elements/in_accel_x_index", "0"),
                ("scan_elements/in_accel_x_type", "be:s12/16>>4"),
                ("scan_elements/in_accel_y_en", "0"),
                ("scan_elements/in_accel_y_index", "1"),
                ("scan_elements/in_accel_y_type", "be:s12/16>>4"),
                ("scan_elements/in_temp_en", "0"),
                ("scan_elements/in_temp_index", "2"),
                ("scan_elements/in_temp_type", "le:u8/8>>0"),
                ("scan_elements/in_timestamp_en", "0"),
                ("scan_elements/in_timestamp_index", "3"),
                ("scan_elements/in_timestamp_type", "le:s64/64>>0"),
            ],
        );
        tree.fifo("dev/iio:device1");
        tree
    }

    /// The kernel's side of the device's file.
    fn kernel(tree: &Tree) -> File {
        let path = tree.path("dev/iio:device1");
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn sample(x: i16, y: i16, temp: u8, time: u64) -> Vec<u8> {
        let mut sample = Vec::new();
        sample.extend((x << 4).to_be_bytes());
        sample.extend((y << 4).to_be_bytes());
        sample.extend([temp, 0xaa, 0xaa, 0xaa]);
        sample.extend(time.to_le_bytes());
        sample
    }

    fn is_ready(sensor: &Buffered) -> bool {
        let event = sensor.event().unwrap();
        let mut fds = [PollFd::from_borrowed_fd(event.fd, event.flags)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).unwrap() == 1
    }

    fn start(tree: &Tree, channels: &[&str]) -> Vec<Arc<Buffered>> {
        let mut buffers = Buffers::default();
        let setup = Setup {
            trigger: Some("clock"),
            mode: Mode::Control,
        };
        let sensors = channels
            .iter()
            .map(|channel| {
                let sensor = buffers.add(&tree.root(), "imu", channel, setup);
                sensor.unwrap().1
            })
            .collect();
        buffers.start(&tree.root()).unwrap();
        sensors
    }

    #[test]
    fn test_samples_are_told_to_each_sensor_once() {
        let tree = tree();
        let mut kernel = kernel(&tree);
        let sensors = start(&tree, &["in_accel", "in_temp"]);
        let [accel, temp] = &sensors[..] else {
            unreachable!();
        };
        for (file, value) in [
            ("trigger/current_trigger", "clock\n"),
            ("buffer/enable", "1\n"),
            ("buffer/length", "64\n"),
            ("scan_elements/in_accel_y_en", "1\n"),
            ("scan_elements/in_timestamp_en", "1\n"),
            ("current_timestamp_clock", "boottime\n"),
        ] {
            assert_eq!(tree.read(&format!("{DEVICE}/{file}")), value, "{file}");
        }
        assert!(accel.timestamps());
        assert!(!is_ready(accel) && !is_ready(temp));
        assert!(matches!(accel.read(&mut [0; 2]), Err(Error::Busy)));

        kernel.write_all(&sample(5, 6, 7, 8)).unwrap();
        kernel
            .write_all(&sample(-1, 2047, 200, 9_000_000_001))
            .unwrap();
        assert!(is_ready(accel));
        assert!(accel.on_event());
        assert!(!is_ready(accel) && is_ready(temp));
        assert!(temp.on_event());
        assert!(!is_ready(temp));
        assert!(!accel.on_event() && !temp.on_event());

        let mut values = [0; 2];
        let reading = accel.read(&mut values).unwrap();
        assert_eq!(values, [-1, 2047]);
        let time = Duration::new(9, 1);
        assert_eq!(reading.timestamp, Some(time));
        let mut values = [0];
        temp.read(&mut values).unwrap();
        assert_eq!(values, [200]);
        assert!(matches!(temp.read(&mut [0; 2]), Err(Error::NotSupported)));
    }

    #[test]
    fn test_many_samples_are_read_to_the_last() {
        let tree = tree();
        let mut kernel = kernel(&tree);
        let sensors = start(&tree, &["in_accel"]);
        for number in 0..2000_i16 {
            kernel.write_all(&sample(number, 0, 0, 0)[..4]).unwrap();
        }
        // Without the temperature, but with the time: the same 16 bytes.
        assert!(sensors[0].on_event());
        assert!(sensors[0].read(&mut [0; 2]).is_ok());
        assert!(!is_ready(&sensors[0]));
    }

    #[test]
    fn test_a_buffer_that_ends_is_a_hardware_error_and_is_quiet() {
        let tree = tree();
        let mut kernel = kernel(&tree);
        let sensors = start(&tree, &["in_accel"]);
        kernel.write_all(&sample(1, 2, 3, 4)).unwrap();
        drop(kernel);
        assert!(sensors[0].on_event());
        sensors[0].on_event();
        assert!(!is_ready(&sensors[0]));
        let read = sensors[0].read(&mut [0; 2]);
        assert!(matches!(read, Err(Error::Hardware(_))));
    }

    #[test]
    fn test_the_fastest_wish_sets_the_frequency() {
        let tree = tree();
        let _kernel = kernel(&tree);
        let sensors = start(&tree, &["in_accel", "in_temp"]);
        let frequency = || tree.read(&format!("{DEVICE}/sampling_frequency"));
        let ms = |ms| Some(Duration::from_millis(ms));
        sensors[0].set_interval(ms(50)).unwrap();
        assert_eq!(frequency(), "25\n");
        sensors[1].set_interval(ms(10)).unwrap();
        assert_eq!(frequency(), "100\n");
        sensors[1].set_interval(ms(1)).unwrap();
        assert_eq!(frequency(), "100\n");
        sensors[1].set_interval(None).unwrap();
        assert_eq!(frequency(), "25\n");
        sensors[0].set_interval(ms(10_000)).unwrap();
        assert_eq!(frequency(), "12.5\n");
        sensors[0].set_interval(None).unwrap();
        assert_eq!(frequency(), "12.5\n");
    }

    #[test]
    fn test_a_frequency_without_a_list_takes_any() {
        let tree = tree();
        tree.files(DEVICE, &[("sampling_frequency_available", "[1 1 1000]")]);
        let frequency = Frequency::open(&tree.path(DEVICE), "sampling_frequency").unwrap();
        frequency.set(Duration::from_millis(3)).unwrap();
        let set = tree.read(&format!("{DEVICE}/sampling_frequency"));
        assert_eq!(set, "333.333334\n");
    }

    #[test]
    fn test_a_buffer_that_cannot_be_had_is_refused() {
        let add = |tree: &Tree, channel: &str| {
            let mut buffers = Buffers::default();
            let setup = Setup {
                trigger: None,
                mode: Mode::Control,
            };
            buffers.add(&tree.root(), "imu", channel, setup)?;
            buffers.start(&tree.root())
        };
        let refused = |tree: &Tree, channel: &str, why: &str| {
            let error = add(tree, channel).unwrap_err().explain();
            assert!(error.contains(why), "{error}");
        };
        let tree = tree();
        refused(&tree, "in_illuminance", "computed by the kernel");
        tree.files(DEVICE, &[("buffer/enable", "1")]);
        refused(&tree, "in_accel", "on already");
        tree.files(DEVICE, &[("buffer/enable", "0")]);
        tree.files(DEVICE, &[("scan_elements/in_accel_x_type", "le:s99/16>>0")]);
        refused(&tree, "in_accel", "no known format");
        tree.remove("dev/iio:device1");
        tree.files(DEVICE, &[("scan_elements/in_accel_x_type", "le:s16/16>>0")]);
        refused(&tree, "in_accel", "dev/iio:device1");
        tree.remove(&format!("{DEVICE}/scan_elements/in_temp_en"));
        refused(&tree, "in_temp", "leave `buffer` out");

        let mut buffers = Buffers::default();
        let mut trigger = |trigger| {
            let setup = Setup {
                trigger: Some(trigger),
                mode: Mode::Control,
            };
            buffers.add(&tree.root(), "imu", "in_accel", setup)
        };
        trigger("one").unwrap();
        let error = trigger("other").unwrap_err().to_string();
        assert!(error.contains("another sensor wants"), "{error}");
    }

    #[test]
    fn test_formats_of_numbers() {
        let number = |format: &str, bytes: &[u8]| {
            let element = Element {
                channel: String::new(),
                offset: 0,
                format: Format::parse(format).unwrap(),
            };
            element.value(bytes)
        };
        assert_eq!(number("le:s12/16>>4", &[0xf0, 0xff]), Some(-1));
        assert_eq!(number("be:s12/16>>4", &[0x7f, 0xff]), Some(2047));
        assert_eq!(number("le:u24/32>>8", &[0xff, 1, 0, 0]), Some(1));
        assert_eq!(number("be:u8/8>>0", &[0xff]), Some(255));
        assert_eq!(number("le:s64/64>>0", &[0xff; 8]), Some(-1));
        assert_eq!(number("le:u64/64>>0", &[0xff; 8]), None);
        assert_eq!(number("le:s16/16>>0", &[0xff]), None);
        assert_eq!(number("le:s16/32X2>>0", &[0; 8]), None);
        for wrong in [
            "",
            "le",
            "le:",
            "le:s",
            "me:s16/16",
            "le:x16/16",
            "le:s0/16>>0",
            "le:s16/24>>0",
            "le:s16/16>>1",
            "le:s16/16>>4294967295",
            "le:s16/16X0>>0",
            "le:s16/16X99>>0",
            "le:é",
        ] {
            assert_eq!(Format::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn test_any_format_and_any_sample_is_a_number_or_none(
            text in "(le|be):[su][0-9]{1,2}/(8|16|32|64)(X[0-9])?>>[0-9]{1,2}",
            bytes: Vec<u8>,
        ) {
            if let Some(format) = Format::parse(&text) {
                let channels = std::iter::once((String::new(), format));
                for element in Layout::of(channels).unwrap().elements {
                    let _ = element.value(&bytes);
                }
            }
        }
    }
}
