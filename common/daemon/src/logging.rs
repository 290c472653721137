//! The log: to stderr, in the form that the reader of stderr wants. No thread that serves a guest
//! waits for that reader.
//!
//! The thread that logs a message formats it and puts it into a [`Buffer`]; one other thread writes
//! the buffer to stderr. If the pipe is full, the terminal stopped or the journal frozen, only the
//! writing thread sleeps, and lines that do not fit are counted. Panics go the same way.
//!
//! The buffer exists from [`Log::install`] on, the thread from [`Log::start`] on, the last thing
//! that happens before guests are served. What is logged between the two waits in the buffer.

mod buffer;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::fmt::{ConfigurableFormat, Formatter};
use env_logger::{Logger, Target, WriteStyle};
use log::{Level, LevelFilter, Log as _, Record};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstat;
use rustix::io::Errno;

use self::buffer::Buffer;
use crate::signals;

/// How much is kept for a reader that does not read: some thousand lines.
const LIMIT: usize = 256 * 1024;

/// How long an end that has no deadline of its own waits for the reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// The target of what the log says about itself.
const TARGET: &str = "log";

/// The log of this process. When it is dropped, what was logged has been written, or the reader
/// has not read it for [`PATIENCE`].
pub(crate) struct Log {
    buffer: Arc<Buffer>,
    style: Style,
    is_started: bool,
    is_finished: bool,
}

impl Log {
    /// Takes what is logged from now on. `level` is `--log-level`; without it `RUST_LOG` decides,
    /// then "info". Starts no thread.
    pub(crate) fn install(level: Option<LevelFilter>) -> Self {
        let buffer = Arc::new(Buffer::new());
        let style = Style::of_stderr();
        let (filters, wrong) = match level {
            Some(level) => (level.to_string(), Vec::new()),
            None => filters(env::var("RUST_LOG").ok().as_deref()),
        };
        let logger = style.logger(&filters, Sink(Arc::clone(&buffer)));
        log::set_max_level(logger.filter());
        // Only a test has another one.
        let _ = log::set_boxed_logger(Box::new(logger));
        let everything = style.logger("trace", Sink(Arc::clone(&buffer)));
        panic::set_hook(Box::new(move |info| report_panic(&everything, info)));
        for directive in wrong {
            log::warn!(
                "RUST_LOG: {directive:?} is not understood and left out; write LEVEL or \
                 TARGET=LEVEL, with commas between them"
            );
        }
        Self {
            buffer,
            style,
            is_started: false,
            is_finished: false,
        }
    }

    /// Starts the thread that writes, and bounds what is kept for it. The thread has all signals
    /// blocked: none is handled there, and a terminal cannot stop the process by one of its own.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        let writer = Writer::new(&self.buffer, self.style, io::stderr());
        signals::with_all_blocked(|| {
            thread::Builder::new()
                .name("log".to_owned())
                .spawn(move || writer.run())
        })??;
        self.buffer.limit(LIMIT);
        self.is_started = true;
        Ok(())
    }

    /// Writes why the program ends. This is not a line of the log, and no level turns it off.
    pub(crate) fn say(&self, text: &str) {
        self.buffer
            .push(self.style.marked(Level::Error, text).as_bytes());
    }

    /// Waits until all that was logged is written, but not longer than until `deadline`.
    pub(crate) fn finish(mut self, deadline: Instant) {
        self.finish_by(deadline);
    }

    fn finish_by(&mut self, deadline: Instant) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        if !self.is_started && self.start().is_err() {
            // Without a thread nobody was served, and nobody will be: this one may wait.
            self.buffer.finish(Instant::now());
            return Writer::new(&self.buffer, self.style, io::stderr()).run();
        }
        self.buffer.finish(deadline);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A panic of the main thread comes here.
        self.finish_by(Instant::now() + PATIENCE);
    }
}

/// Writes to stderr, without a log, why the program does not even begin. A write that fails is
/// ignored: the status tells.
pub(crate) fn say_without_log(text: &str) {
    let text = Style::of_stderr().marked(Level::Error, text);
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether stderr is the journal, which wants to be told how urgent a line is.
pub(crate) fn is_for_the_journal() -> bool {
    matches!(Style::of_stderr(), Style::Journal)
}

/// What the reader of stderr is.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// A terminal that shows colours, or somebody who wants them.
    Colours,
    /// Anybody.
    Plain,
    /// systemd's journal: it stamps each line itself, and takes its priority from `<N>` before it
    /// (sd-daemon(3)).
    Journal,
}

impl Style {
    fn of_stderr() -> Self {
        let wants_colours = match env::var("RUST_LOG_STYLE").as_deref() {
            Ok("always") => true,
            Ok("never") => false,
            _ => {
                let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
                let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
                io::stderr().is_terminal() && !is_dumb && !is_set("NO_COLOR")
            }
        };
        match (stderr_is_the_journal(), wants_colours) {
            (true, _) => Self::Journal,
            (false, true) => Self::Colours,
            (false, false) => Self::Plain,
        }
    }

    /// A logger that lets pass what `filters` names, and writes whole messages to `sink`.
    fn logger(self, filters: &str, sink: impl Write + Send + 'static) -> Logger {
        let mut builder = env_logger::Builder::new();
        builder
            .parse_filters(filters)
            .target(Target::Pipe(Box::new(sink)))
            .write_style(match self {
                Self::Colours => WriteStyle::Always,
                Self::Plain | Self::Journal => WriteStyle::Never,
            });
        match self {
            Self::Journal => builder.format(journal_format),
            Self::Colours | Self::Plain => {
                builder.format(|to, record| ConfigurableFormat::default().format(to, record))
            }
        };
        builder.build()
    }

    /// Lines that are no message of the log, each with its priority if the reader wants one.
    fn marked(self, level: Level, text: &str) -> String {
        match self {
            Self::Journal => text.lines().fold(String::new(), |all, line| {
                all + priority(level) + line + "\n"
            }),
            Self::Colours | Self::Plain => text.trim_end().to_owned() + "\n",
        }
    }
}

/// systemd.exec(5), `JOURNAL_STREAM`: "device:inode" of the journal's end of stderr.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// A level as syslog(3) has it, in the form of sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// The usual format without the time, and each line of a message with its priority.
fn journal_format(to: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (level, target) = (record.level(), record.target());
    let priority = priority(level);
    let text = record.args().to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    writeln!(to, "{priority}[{level:<5} {target}] {first}")?;
    lines.try_for_each(|line| writeln!(to, "{priority}    {line}"))
}

/// The filters in `RUST_LOG`, and the parts that are not valid.
fn filters(wanted: Option<&str>) -> (String, Vec<String>) {
    let wanted = wanted.unwrap_or_default();
    // Each by itself: one that is wrong must not invalidate the others.
    let is_right = |part: &str| env_filter::Builder::new().try_parse(part).is_ok();
    let (targets, text) = match wanted.split_once('/') {
        Some((targets, text)) => (targets, Some(format!("/{text}"))),
        None => (wanted, None),
    };
    let targets = targets.split(',').map(str::trim);
    let (right, mut wrong): (Vec<_>, Vec<_>) = targets
        .filter(|target| !target.is_empty())
        .map(str::to_owned)
        .partition(|target| is_right(target));
    let mut filters = match right.is_empty() {
        true => "info".to_owned(),
        false => right.join(","),
    };
    match text {
        Some(text) if is_right(&text) => filters += &text,
        text => wrong.extend(text),
    }
    (filters, wrong)
}

/// What the standard library's hook says, but into the log, whatever its level is.
fn report_panic(log: &Logger, info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let what = info.payload_as_str().unwrap_or("of another type than text");
    let place = match info.location() {
        Some(place) => format!(" at {place}"),
        None => String::new(),
    };
    // Empty unless RUST_BACKTRACE asks for one.
    let trace = std::backtrace::Backtrace::capture();
    let trace = match trace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("\n{trace}"),
        _ => String::new(),
    };
    log.log(
        &Record::builder()
            .level(Level::Error)
            .target("panic")
            .args(format_args!("thread {name} panicked{place}: {what}{trace}"))
            .build(),
    );
}

/// Where a logger writes: a message at once.
struct Sink(Arc<Buffer>);

impl Write for Sink {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        self.0.push(message);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the writing thread has.
struct Writer<W> {
    buffer: Arc<Buffer>,
    to: W,
    /// Formats what the log says about itself, into `notice`.
    logger: Logger,
    notice: Notice,
    /// How many lines are missing between what was written and what will be.
    missing: u64,
}

/// A sink for a message that is written by the thread itself, at its place.
#[derive(Clone, Default)]
struct Notice(Arc<Mutex<Vec<u8>>>);

impl Notice {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Notice {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend_from_slice(message);
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: AsFd> Writer<W> {
    fn new(buffer: &Arc<Buffer>, style: Style, to: W) -> Self {
        let notice = Notice::default();
        Self {
            buffer: Arc::clone(buffer),
            to,
            logger: style.logger("trace", notice.clone()),
            notice,
            missing: 0,
        }
    }

    fn run(mut self) {
        let mut batch = Vec::new();
        while let Some(left_out) = self.buffer.take(&mut batch) {
            self.tell_missing();
            self.missing += write(&self.to, &batch) + left_out;
            self.tell_missing();
        }
    }

    /// Says how many lines are missing, if that can be said.
    fn tell_missing(&mut self) {
        if self.missing == 0 {
            return;
        }
        let missing = self.missing;
        self.logger.log(
            &Record::builder()
                .level(Level::Warn)
                .target(TARGET)
                .args(format_args!(
                    "lines left out here, as nobody read the log in time: {missing}"
                ))
                .build(),
        );
        if write(&self.to, &self.notice.take()) == 0 {
            self.missing = 0;
        }
    }
}

/// Writes all of `text`, however long the reader takes; gives the number of lines that cannot be
/// written, because there is no reader any more, or no space. To the descriptor itself, as the lock
/// of `std::io::stderr` would be held meanwhile.
fn write(to: impl AsFd, mut text: &[u8]) -> u64 {
    while !text.is_empty() {
        match rustix::io::write(&to, text) {
            Ok(length) => text = text.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever shares it with us has made it so.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return text.iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(style: Style, level: Level, message: &str) -> String {
        let notice = Notice::default();
        style.logger("trace", notice.clone()).log(
            &Record::builder()
                .level(level)
                .target("session")
                .args(format_args!("{message}"))
                .build(),
        );
        String::from_utf8(notice.take()).unwrap()
    }

    #[test]
    fn test_the_journal_gets_a_priority_with_each_line() {
        let lines = |level| formatted(Style::Journal, level, "one\ntwo");
        assert_eq!(lines(Level::Error), "<3>[ERROR session] one\n<3>    two\n");
        assert_eq!(lines(Level::Warn), "<4>[WARN  session] one\n<4>    two\n");
        assert_eq!(lines(Level::Info), "<6>[INFO  session] one\n<6>    two\n");
        assert_eq!(lines(Level::Debug), "<7>[DEBUG session] one\n<7>    two\n");
        assert_eq!(lines(Level::Trace), "<7>[TRACE session] one\n<7>    two\n");
        let error = Style::Journal.marked(Level::Error, "one\n\ntwo\n");
        assert_eq!(error, "<3>one\n<3>\n<3>two\n");
    }

    #[test]
    fn test_others_get_the_time_and_colours_where_they_are_shown() {
        let plain = formatted(Style::Plain, Level::Warn, "one");
        assert!(plain.starts_with("[20"), "{plain}");
        assert!(plain.ends_with("Z WARN  session] one\n"), "{plain}");
        let coloured = formatted(Style::Colours, Level::Warn, "one");
        assert!(coloured.contains("\x1b["), "{coloured:?}");
        assert_eq!(Style::Plain.marked(Level::Error, "a\nb\n"), "a\nb\n");
    }

    #[test]
    fn test_each_gap_is_told_of_at_its_place_with_its_length() {
        let (mut reader, pipe) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&pipe, 4096).unwrap();
        let buffer = Arc::new(Buffer::new());
        buffer.limit(1024);
        let writer = Writer::new(&buffer, Style::Journal, pipe);
        let writer = thread::spawn(move || writer.run());
        // Nobody reads: the pipe and the buffer are soon full, and this thread goes on.
        let lines = 10_000;
        for number in 0..lines {
            buffer.push(format!("{number}\n").as_bytes());
        }
        let reading = thread::spawn(move || io::read_to_string(&mut reader).unwrap());
        // Only a hang takes as long.
        buffer.finish(Instant::now() + Duration::from_secs(60));
        writer.join().unwrap();
        let text = reading.join().unwrap();
        let mut next = 0;
        for line in text.lines() {
            next += match line.strip_prefix("<4>[WARN  log] ") {
                None => {
                    assert_eq!(line, next.to_string());
                    1
                }
                Some(notice) => {
                    let (text, number) = notice.rsplit_once(' ').unwrap();
                    assert!(text.starts_with("lines left out here"), "{notice}");
                    number.parse().unwrap()
                }
            };
        }
        assert_eq!(next, lines);
        assert!(text.contains("left out"));
    }

    #[test]
    fn test_what_cannot_be_written_is_counted() {
        let full = std::fs::File::create("/dev/full").unwrap();
        assert_eq!(write(&full, b"one\ntwo\n"), 2);
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(write(&pipe, b"one\n"), 1);
    }

    #[test]
    fn test_a_panic_goes_into_the_log() {
        let notice = Notice::default();
        let log = Style::Plain.logger("trace", notice.clone());
        panic::set_hook(Box::new(move |info| report_panic(&log, info)));
        let thread = thread::Builder::new().name("guest 7".to_owned());
        let thread = thread.spawn(|| panic!("no {}", "more")).unwrap();
        thread.join().unwrap_err();
        drop(panic::take_hook());
        let text = String::from_utf8(notice.take()).unwrap();
        // Another test may have panicked meanwhile, too.
        let line = text.lines().find(|line| line.contains("guest 7")).unwrap();
        assert!(
            line.contains("ERROR panic] thread guest 7 panicked at "),
            "{line}"
        );
        assert!(line.contains("logging.rs"), "{line}");
        assert!(line.ends_with(": no more"), "{line}");
    }

    #[test]
    fn test_what_is_wrong_in_rust_log_takes_nothing_else_with_it() {
        let understood = |wanted| {
            let (filters, wrong) = filters(Some(wanted));
            (filters, wrong.join(" "))
        };
        let right = |filters: &str| (filters.to_owned(), String::new());
        assert_eq!(filters(None).0, "info");
        assert_eq!(understood(""), right("info"));
        assert_eq!(understood("debug"), right("debug"));
        assert_eq!(understood("a=debug, b/x"), right("a=debug,b/x"));
        assert_eq!(
            understood("a=loud,b=debug"),
            ("b=debug".to_owned(), "a=loud".to_owned())
        );
        assert_eq!(understood("a=b=c"), ("info".to_owned(), "a=b=c".to_owned()));
        assert_eq!(
            understood("debug/x/y"),
            ("debug".to_owned(), "/x/y".to_owned())
        );
    }
}
