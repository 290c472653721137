//! Files with a number or a word in them: attributes in sysfs, and hooks of the user's.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::fs::{Access, FileType, OFlags};
use vhost_device_backend::{Turns, limited};

use super::{CANNOT_READ, CANNOT_SET, OpenError, Opened};
use crate::host::{Error, Result};

/// What is read of a file at most. An attribute in sysfs has a page; a hook that somebody fills
/// must not fill the daemon's memory.
const MAX_TEXT: usize = 4096;

/// The longest line that is written. It goes through a FIFO in one piece (`PIPE_BUF`), so that its
/// reader sees whole lines, and a number or a word is far shorter.
const MAX_LINE: usize = 256;

/// The longest number, with its sign and zeros in front of it.
const MAX_DIGITS: usize = 40;

/// A file that is read, written, or both, each time from its start.
#[derive(Debug)]
pub struct Attribute {
    file: File,
    path: PathBuf,
}

impl Attribute {
    /// Opens a regular file for reading, as those of sysfs are.
    ///
    /// # Errors
    /// When it cannot be opened, or is something else.
    pub fn to_read(path: &Path) -> Opened<Self> {
        Self::open(path, OFlags::RDONLY)
    }

    /// Opens a regular file for writing.
    ///
    /// # Errors
    /// When it cannot be opened, or is something else.
    pub fn to_write(path: &Path) -> Opened<Self> {
        Self::open(path, OFlags::WRONLY)
    }

    /// Opens a file if there is one.
    ///
    /// # Errors
    /// When there is one and it cannot be opened.
    pub fn optional(path: &Path) -> Opened<Option<Self>> {
        match Self::to_read(path) {
            Ok(attribute) => Ok(Some(attribute)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(path: &Path, access: OFlags) -> Opened<Self> {
        let unfit = |kind| match kind {
            FileType::Fifo => OpenError::unfit(format!(
                "{} is a FIFO, which has no value to be read at any time: give a regular file to \
                 `get`; `set` may be a FIFO",
                path.display()
            )),
            _ => OpenError::unfit(format!("{} is no regular file", path.display())),
        };
        let before = kind(path)?;
        if before != FileType::RegularFile {
            return Err(unfit(before));
        }
        match open(path, access)? {
            (file, FileType::RegularFile) => Ok(Self::of(file, path)),
            (_, other) => Err(unfit(other)),
        }
    }

    fn of(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first line, without white space around it.
    ///
    /// # Errors
    /// [`Error::Busy`] when there is nothing yet, and [`Error::Hardware`] for all else: the file
    /// may have gone, but the guest's resource has not. It is logged.
    pub fn line(&self) -> Result<String> {
        self.read_line().map_err(|error| self.cannot_read(error))
    }

    fn read_line(&self) -> io::Result<String> {
        let mut text = [0; MAX_TEXT];
        let count = rustix::io::pread(&self.file, &mut text[..], 0)?;
        let text = text.get(..count).unwrap_or_default();
        let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = str::from_utf8(line.trim_ascii());
        line.map(str::to_owned)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it has no text in it"))
    }

    /// The number that the file has.
    ///
    /// # Errors
    /// As of [`Attribute::line`], and [`Error::Hardware`] when it is no number.
    pub fn number(&self) -> Result<i64> {
        let line = self.line()?;
        parse_number(&line).ok_or_else(|| self.says(&line, "a number"))
    }

    /// The file says something that it must not.
    pub(super) fn says(&self, what: impl fmt::Display, expected: &str) -> Error {
        // What it says is cut: a hook may be filled with anything.
        let what: String = what.to_string().chars().take(MAX_DIGITS).collect();
        let text = format!("it says {what:?}, which is not {expected}");
        self.cannot_read(io::Error::new(io::ErrorKind::InvalidData, text))
    }

    pub(super) fn cannot_read(&self, error: io::Error) -> Error {
        limited!(
            CANNOT_READ,
            Warn,
            "cannot read {}: {error}",
            self.path.display()
        );
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => Error::Busy,
            _ => Error::Hardware(error),
        }
    }

    /// Writes a number or a word, with an end of line.
    ///
    /// # Errors
    /// What the kernel says: what it does not take is [`Error::OutOfRange`], and so on. It is
    /// logged.
    pub fn write(&self, value: impl fmt::Display) -> Result<()> {
        let line = bounded_line(value).map_err(|error| self.cannot_write(error))?;
        write_whole(rustix::io::pwrite(&self.file, line.as_bytes(), 0), &line)
            .map_err(|error| self.cannot_write(error))
    }

    fn cannot_write(&self, error: io::Error) -> Error {
        let path = self.path.display();
        limited!(CANNOT_SET, Warn, "cannot write {path}: {error}");
        match Error::from(error) {
            Error::NotFound => {
                Error::Hardware(io::Error::new(io::ErrorKind::NotFound, "it is gone"))
            }
            error => error,
        }
    }
}

/// What is at a path. It is found out before anything is opened: that alone may do something, as
/// to a watchdog, or to whoever waits at the other side of a FIFO.
fn kind(path: &Path) -> Opened<FileType> {
    let stat = rustix::fs::stat(path).map_err(|error| OpenError::open(path, error))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Opens without waiting for whoever is on the other side of a FIFO.
fn open(path: &Path, access: OFlags) -> Opened<(File, FileType)> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|error| OpenError::open(path, error))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| OpenError::open(path, error))?;
    Ok((file, FileType::from_raw_mode(stat.st_mode)))
}

fn bounded_line(value: impl fmt::Display) -> io::Result<String> {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(line, "{value}");
    if line.len() <= MAX_LINE {
        Ok(line)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

fn write_whole(written: rustix::io::Result<usize>, line: &str) -> io::Result<()> {
    match written? {
        count if count == line.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// A decimal number, with nothing around it.
pub(super) fn parse_number(text: &str) -> Option<i64> {
    if text.len() <= MAX_DIGITS {
        text.parse().ok()
    } else {
        None
    }
}

/// Where lines are written.
#[derive(Debug)]
pub struct Sink {
    attribute: Attribute,
    fifo: bool,
}

impl Sink {
    /// Opens a regular file or a FIFO for writing. A FIFO needs no reader to be there, and takes
    /// what it has room for.
    ///
    /// # Errors
    /// When it cannot be opened, or is something else.
    pub fn open(path: &Path) -> Opened<Self> {
        match kind(path)? {
            FileType::RegularFile => Ok(Self {
                attribute: Attribute::open(path, OFlags::WRONLY)?,
                fifo: false,
            }),
            FileType::Fifo => {
                // With a reader of our own it need not have another, and one that goes away later
                // is no broken pipe.
                let (file, kind) = open(path, OFlags::RDWR)?;
                match kind {
                    FileType::Fifo => Ok(Self {
                        attribute: Attribute::of(file, path),
                        fifo: true,
                    }),
                    _ => Err(Self::unfit(path)),
                }
            }
            _ => Err(Self::unfit(path)),
        }
    }

    fn unfit(path: &Path) -> OpenError {
        OpenError::unfit(format!(
            "{} is neither a regular file nor a FIFO",
            path.display()
        ))
    }

    /// Looks whether a file could be opened, and opens nothing.
    ///
    /// # Errors
    /// When it could not, as far as can be told.
    pub fn look(path: &Path) -> Opened<()> {
        match kind(path)? {
            FileType::RegularFile | FileType::Fifo => {}
            _ => return Err(Self::unfit(path)),
        }
        rustix::fs::access(path, Access::WRITE_OK).map_err(|error| OpenError::open(path, error))
    }

    /// Writes a line: behind what a FIFO has, or instead of what a file has.
    ///
    /// # Errors
    /// [`Error::Busy`] when a FIFO is full; else as of [`Attribute::write`].
    pub fn write(&self, value: impl fmt::Display) -> Result<()> {
        let attribute = &self.attribute;
        if !self.fifo {
            let line = value.to_string();
            attribute.write(&line)?;
            // What is longer from before goes; a reader takes the first line in any case. In
            // sysfs this does nothing.
            return rustix::fs::ftruncate(&attribute.file, line.len() as u64 + 1)
                .map_err(|error| attribute.cannot_write(error.into()));
        }
        let line = bounded_line(value).map_err(|error| attribute.cannot_write(error))?;
        write_whole(
            rustix::io::write(attribute.file.as_fd(), line.as_bytes()),
            &line,
        )
        .map_err(|error| attribute.cannot_write(error))
    }
}

/// A number of the host's: read from one file, set by another or the same one.
#[derive(Debug)]
pub struct Number {
    get: Option<Attribute>,
    set: Option<Sink>,
    /// What it was set to last, for one that cannot be read.
    last: AtomicI64,
}

/// Where a [`Number`] or a [`Switch`] is: what it is read from and what it is set by.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Read here; if nowhere, it is what it was set to last.
    pub get: Option<&'a Path>,
    /// Set here; if nowhere, it cannot be set, or is only remembered when `get` is nowhere, too.
    pub set: Option<&'a Path>,
    /// What is done with `set`.
    pub mode: Mode,
}

/// What is done with hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is read. Nobody may control it, so nothing is opened for writing.
    Read,
    /// It is read, and it is looked at whether it could be set: nothing is opened for that, and
    /// nothing changes.
    Look,
    /// It is read and set.
    Control,
}

impl<'a> Place<'a> {
    /// Nowhere: it is remembered.
    pub const MEMORY: Self = Self {
        get: None,
        set: None,
        mode: Mode::Read,
    };

    /// In one file.
    pub fn at(path: &'a Path, mode: Mode) -> Self {
        Self {
            get: Some(path),
            set: Some(path),
            mode,
        }
    }
}

impl Number {
    /// Opens its files. Until it is set, one that cannot be read is `initial`.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(place: Place<'_>, initial: i64) -> Opened<Self> {
        let get = place.get.map(Attribute::to_read).transpose()?;
        let set = match place.mode {
            Mode::Read => None,
            Mode::Look => {
                place.set.map(Sink::look).transpose()?;
                None
            }
            Mode::Control => place.set.map(Sink::open).transpose()?,
        };
        Ok(Self {
            get,
            set,
            last: AtomicI64::new(initial),
        })
    }

    /// A number that is nowhere: it is what it was set to last.
    pub fn remembered(initial: i64) -> Self {
        Self {
            get: None,
            set: None,
            last: AtomicI64::new(initial),
        }
    }

    /// The number.
    ///
    /// # Errors
    /// The file's.
    pub fn get(&self) -> Result<i64> {
        match &self.get {
            Some(attribute) => attribute.number(),
            // A number alone: no order is needed.
            None => Ok(self.last.load(Ordering::Relaxed)),
        }
    }

    /// The number as one of another type.
    ///
    /// # Errors
    /// The file's, and [`Error::Hardware`] when it does not fit.
    pub fn get_as<T: TryFrom<i64>>(&self) -> Result<T> {
        let number = self.get()?;
        T::try_from(number).map_err(|_| self.says(number, "within bounds"))
    }

    /// The file says something that it must not.
    pub(super) fn says(&self, what: impl fmt::Display, expected: &str) -> Error {
        match &self.get {
            Some(attribute) => attribute.says(what, expected),
            None => Error::Hardware(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sets it.
    ///
    /// # Errors
    /// The file's; [`Error::NotSupported`] when it cannot be set.
    pub fn set(&self, value: i64) -> Result<()> {
        self.set_word(value, value)
    }

    fn set_word(&self, word: impl fmt::Display, value: i64) -> Result<()> {
        match (&self.set, &self.get) {
            (Some(sink), _) => sink.write(word)?,
            (None, None) => {}
            (None, Some(_)) => return Err(Error::NotSupported),
        }
        self.last.store(value, Ordering::Relaxed);
        Ok(())
    }
}

/// Two numbers, the first of which is never above the second.
#[derive(Debug)]
pub struct Window {
    min: Number,
    max: Number,
    /// Had while both are read or set: of two that set them at once, each might win one.
    turns: Turns,
}

impl Window {
    /// The numbers from `min` to `max`.
    pub fn new(min: Number, max: Number) -> Self {
        Self {
            min,
            max,
            turns: Turns::default(),
        }
    }

    /// Both numbers.
    ///
    /// # Errors
    /// The files'.
    pub fn get(&self) -> Result<(i64, i64)> {
        let _turn = self.turns.take();
        Ok((self.min.get()?, self.max.get()?))
    }

    /// Sets both.
    ///
    /// # Errors
    /// The files'; then both are as before, if that can be had.
    pub fn set(&self, wanted: (i64, i64)) -> Result<()> {
        let _turn = self.turns.take();
        let before = (self.min.get()?, self.max.get()?);
        self.write(wanted, before).inspect_err(|_| {
            // One of both may be written.
            let _ = self.write(before, wanted);
        })
    }

    /// Writes both, in the order in which the lower one is never above the higher one.
    fn write(&self, (min, max): (i64, i64), before: (i64, i64)) -> Result<()> {
        if min > before.1 {
            self.max.set(max)?;
            self.min.set(min)
        } else {
            self.min.set(min)?;
            self.max.set(max)
        }
    }

    /// The first number is what it must not be.
    pub(super) fn says(&self, what: impl fmt::Display, expected: &str) -> Error {
        self.min.says(what, expected)
    }
}

/// Something that is on or off.
#[derive(Debug)]
pub struct Switch {
    number: Number,
    words: Words,
}

/// What is written to turn a [`Switch`] off and on.
pub type Words = [&'static str; 2];

/// As most of sysfs has it, and hooks.
pub const DIGITS: Words = ["0", "1"];

impl Switch {
    /// Opens its files. Until it is set, one that cannot be read is `initial`.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(place: Place<'_>, words: Words, initial: bool) -> Opened<Self> {
        let number = Number::open(place, initial.into())?;
        Ok(Self { number, words })
    }

    /// A switch that is nowhere: it is as it was turned last.
    pub fn remembered(words: Words, initial: bool) -> Self {
        let number = Number::remembered(initial.into());
        Self { number, words }
    }

    /// Whether it is on.
    ///
    /// # Errors
    /// The file's, and [`Error::Hardware`] when it says neither.
    pub fn get(&self) -> Result<bool> {
        let Some(attribute) = &self.number.get else {
            return Ok(self.number.get()? != 0);
        };
        match attribute.line()?.as_str() {
            "1" | "on" | "enabled" | "Y" | "y" => Ok(true),
            "0" | "off" | "disabled" | "N" | "n" => Ok(false),
            other => Err(attribute.says(other, "on or off")),
        }
    }

    /// Turns it on or off.
    ///
    /// # Errors
    /// The file's; [`Error::NotSupported`] when it cannot be set.
    pub fn set(&self, on: bool) -> Result<()> {
        let [off_word, on_word] = self.words;
        let word = if on { on_word } else { off_word };
        self.number.set_word(word, on.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn test_a_number_is_the_first_line() {
        let tree = Tree::new();
        for (text, expected) in [
            ("42\n", Some(42)),
            (" -7 \n9\n", Some(-7)),
            ("+3", Some(3)),
            ("", None),
            ("1.5\n", None),
            ("<unsupported>\n", None),
            ("9223372036854775808\n", None),
            (&"0".repeat(MAX_DIGITS + 1), None),
        ] {
            tree.write("value", text);
            let attribute = Attribute::to_read(&tree.path("value")).unwrap();
            match expected {
                Some(number) => assert_eq!(attribute.number().unwrap(), number),
                None => assert!(matches!(attribute.number(), Err(Error::Hardware(_)))),
            }
        }
    }

    #[test]
    fn test_a_window_that_cannot_be_set_is_as_before() {
        let tree = Tree::new();
        tree.files("", &[("min", "10"), ("max", "20")]);
        tree.fifo("full");
        let (min, max, full) = (tree.path("min"), tree.path("max"), tree.path("full"));
        let filler = Sink::open(&full).unwrap();
        while filler.write("x".repeat(200)).is_ok() || filler.write(1).is_ok() {}
        let min = Number::open(Place::at(&min, Mode::Control), 0).unwrap();
        let place = Place {
            get: Some(&max),
            set: Some(&full),
            mode: Mode::Control,
        };
        let window = Window::new(min, Number::open(place, 0).unwrap());
        // Whichever of both is written first.
        for wanted in [(20, 20), (40, 40)] {
            assert!(matches!(window.set(wanted), Err(Error::Busy)));
            assert_eq!(window.get().unwrap(), (10, 20));
        }
    }

    #[test]
    fn test_a_file_that_is_no_text_is_a_hardware_error() {
        let tree = Tree::new();
        tree.write("value", b"\xff\xfe\n");
        let attribute = Attribute::to_read(&tree.path("value")).unwrap();
        assert!(matches!(attribute.line(), Err(Error::Hardware(_))));
    }

    #[test]
    fn test_open_refuses_what_is_no_file() {
        let tree = Tree::new();
        tree.fifo("fifo");
        let open = |path: &str| {
            let error = Attribute::to_read(&tree.path(path)).unwrap_err();
            error.explain()
        };
        assert!(open("fifo").contains("is a FIFO"), "{}", open("fifo"));
        assert!(open("").contains("is no regular file"), "{}", open(""));
        assert!(open("gone").contains("No such file"), "{}", open("gone"));
        let error = Sink::open(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
    }

    #[test]
    fn test_set_leaves_nothing_of_a_longer_number() {
        let tree = Tree::new();
        tree.write("value", "123456\n");
        let path = tree.path("value");
        let number = Number::open(Place::at(&path, Mode::Control), 0).unwrap();
        number.set(-5).unwrap();
        assert_eq!(tree.read("value"), "-5\n");
        assert_eq!(number.get().unwrap(), -5);
        assert!(matches!(number.get_as::<u32>(), Err(Error::Hardware(_))));
    }

    #[test]
    fn test_a_number_without_a_place_to_set_it_cannot_be_set() {
        let tree = Tree::new();
        tree.write("value", "1\n");
        let path = tree.path("value");
        let number = Number::open(Place::at(&path, Mode::Read), 0).unwrap();
        assert!(matches!(number.set(2), Err(Error::NotSupported)));
        assert_eq!(tree.read("value"), "1\n");
    }

    #[test]
    fn test_a_fifo_takes_whole_lines_until_it_is_full() {
        use std::io::Read;

        let tree = Tree::new();
        tree.fifo("fifo");
        let path = tree.path("fifo");
        let place = Place {
            get: None,
            set: Some(&path),
            mode: Mode::Control,
        };
        let number = Number::open(place, 3).unwrap();
        assert_eq!(number.get().unwrap(), 3);
        number.set(17).unwrap();
        number.set(-4).unwrap();
        assert_eq!(number.get().unwrap(), -4);
        let mut reader = File::open(&path).unwrap();
        let mut text = [0; 6];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"17\n-4\n");

        let full = (0..1 << 20).find_map(|value| number.set(value).err());
        assert!(matches!(full, Some(Error::Busy)), "{full:?}");
    }

    #[test]
    fn test_a_switch_understands_the_words_of_sysfs() {
        let tree = Tree::new();
        tree.write("state", "");
        let path = tree.path("state");
        let words = ["disabled", "enabled"];
        let switch = Switch::open(Place::at(&path, Mode::Control), words, false).unwrap();
        for on in [true, false] {
            switch.set(on).unwrap();
            assert_eq!(tree.read("state").trim(), words[usize::from(on)]);
            assert_eq!(switch.get().unwrap(), on);
        }
        tree.write("state", "unknown\n");
        assert!(matches!(switch.get(), Err(Error::Hardware(_))));
    }

    proptest! {
        #[test]
        fn test_any_content_is_a_number_or_an_error(content: Vec<u8>) {
            let tree = Tree::new();
            tree.write("value", &content);
            let attribute = Attribute::to_read(&tree.path("value")).unwrap();
            let _ = attribute.number();
        }
    }
}
