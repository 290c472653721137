//! The command line, the same for every daemon, with the device's own options beside it.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser};
use log::LevelFilter;
use rustix::fs::Mode;
use vhost_device_backend::{Feature, MemoryFs};

use crate::sockets::{self, Endpoint};
use crate::{Chain, Identity};

/// The most guests that one process serves: a mistyped count must not fill a directory.
const MAX_GUESTS: u32 = 1024;

/// The longest that a ring is polled after activity, in microseconds: longer than this a
/// sleeping guest costs a core for nothing.
const MAX_POLL_US: u64 = 10_000;

/// What [`wants_capabilities`] looks for.
const PRINT_CAPABILITIES: &str = "--print-capabilities";

/// A command line, understood; inherited sockets are already ours.
#[derive(Debug)]
pub(crate) struct Invocation<A> {
    pub(crate) sockets: Sockets,
    pub(crate) log_level: Option<LevelFilter>,
    pub(crate) poll: Duration,
    pub(crate) without: Vec<Feature>,
    pub(crate) memory_fs: MemoryFs,
    pub(crate) device: A,
}

/// Where the front-ends come from, one entry a guest.
#[derive(Debug)]
pub(crate) enum Sockets {
    /// Sockets to bind.
    Paths {
        paths: Vec<PathBuf>,
        mode: Option<Mode>,
    },
    /// Sockets that were inherited.
    Adopted(Vec<Endpoint>),
}

impl Sockets {
    /// How many guests there are.
    pub(crate) fn guests(&self) -> usize {
        match self {
            Self::Paths { paths, .. } => paths.len(),
            Self::Adopted(endpoints) => endpoints.len(),
        }
    }
}

#[derive(Debug, Parser)]
struct Cli<A: Args> {
    #[command(flatten)]
    common: Common,
    #[command(flatten, next_help_heading = "Device")]
    device: A,
}

#[derive(Debug, Args)]
struct Common {
    /// Listen at this path; a socket left behind by an earlier run is replaced.
    ///
    /// With neither this nor --fd, the sockets that systemd passes (LISTEN_FDS) are used.
    #[arg(short, long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Serve this many guests, at PATH0, PATH1, and so on [default: one guest, at PATH itself].
    #[arg(short = 'c', long, value_name = "N")]
    #[arg(value_parser = number_in(1..=MAX_GUESTS))]
    socket_count: Option<u32>,

    /// The access mode of the sockets' files, octal, for example 660 [default: as the umask says].
    #[arg(long, value_name = "MODE", requires = "socket_path", value_parser = parse_mode)]
    socket_mode: Option<Mode>,

    /// Use this inherited socket: listening, or connected, which is served once.
    #[arg(long, value_name = "FD", conflicts_with = "socket_path")]
    #[arg(value_parser = number_in(0..=RawFd::MAX))]
    fd: Option<RawFd>,

    /// Log messages of this level and more important ones [default: what RUST_LOG says, or info].
    #[arg(long, value_name = "LEVEL", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log_level: Option<String>,

    /// After a request, look for the next one for at most this long before sleeping, in
    /// microseconds.
    ///
    /// Answers come sooner and a core is busy meanwhile. How long pays off is found out; a guest
    /// that sends nothing costs nothing, and nobody looks while another guest has no core.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    #[arg(value_parser = number_in(0..=MAX_POLL_US))]
    poll_us: u64,

    /// Do not offer these features to front-ends; several with commas between them.
    ///
    /// For guests and front-ends that claim a feature and fail with it. "packed" are packed rings,
    /// "in-order" is VIRTIO_F_IN_ORDER, "indirect" VIRTIO_F_INDIRECT_DESC, "event-idx"
    /// VIRTIO_F_EVENT_IDX, "ring-reset" VIRTIO_F_RING_RESET, "inflight" the region for requests in
    /// flight, and "log" the dirty log, without which no guest can be migrated.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',', value_parser = features())]
    without: Vec<Feature>,

    /// Accept guest memory in files on these file systems.
    ///
    /// known: memory (memfd, shm, hugetlbfs), DAX, and files on ext4, xfs, btrfs and f2fs. any:
    /// also FUSE, overlays, network file systems, dma-buf, udmabuf and other devices. Whoever
    /// serves those can keep the daemon waiting, even when it is to end.
    #[arg(long, value_name = "WHERE", default_value = "known", value_parser = ["known", "any"])]
    memory_fs: String,

    /// Print what this program can do, as JSON, and exit; other options are ignored.
    #[arg(long)]
    print_capabilities: bool,
}

/// Whether `--print-capabilities` is among the arguments, in which case "other options and
/// arguments should be ignored" (QEMU, `docs/interop/vhost-user.rst`), even wrong ones.
pub(crate) fn wants_capabilities(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .skip(1)
        .any(|argument| argument == PRINT_CAPABILITIES)
}

/// A command line that makes sense by itself; what it says of sockets is not looked at yet.
#[derive(Debug)]
pub(crate) struct Parsed<A> {
    command: Command,
    common: Common,
    pub(crate) device: A,
}

/// Understands the command line.
///
/// # Errors
/// A usage error, or the text of `--help` or `--version`.
pub(crate) fn parse<A: Args>(
    identity: &Identity,
    arguments: Vec<OsString>,
) -> Result<Parsed<A>, clap::Error> {
    let mut command = Cli::<A>::command()
        .name(identity.name)
        .version(identity.version)
        .about(identity.about);
    // Otherwise arguments cannot be shown.
    command.build();
    let usage = usage(&command);
    let mut command = command.override_usage(usage);
    let matches = command.try_get_matches_from_mut(arguments)?;
    let Cli { common, device } =
        Cli::<A>::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok(Parsed {
        command,
        common,
        device,
    })
}

/// What has to be given: a socket, which the parser cannot know, and what the device requires.
fn usage(command: &Command) -> String {
    let required = command.get_arguments().filter(|arg| arg.is_required_set());
    let required: String = required.map(|arg: &Arg| format!(" {arg}")).collect();
    format!(
        "{} --socket-path <PATH>{required} [OPTIONS]",
        command.get_name()
    )
}

/// Parses a decimal number in this range; the error names the range.
pub fn number_in<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "it must be a number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

impl<A> Parsed<A> {
    /// How many guests `--socket-count` wants, or one.
    pub(crate) fn guests(&self) -> usize {
        // Fits: it is at most `MAX_GUESTS`.
        self.common.socket_count.map_or(1, |count| count as usize)
    }

    /// Claims inherited sockets, and sees where the others will be. `check` finds what contradicts
    /// itself in the device's options, given the number of guests.
    ///
    /// # Errors
    /// A usage error: there are no sockets, or what `check` found.
    pub(crate) fn claim<E: std::error::Error + 'static>(
        self,
        check: impl FnOnce(&A, usize) -> Result<(), E>,
    ) -> Result<Invocation<A>, clap::Error> {
        let Self {
            mut command,
            common,
            device,
        } = self;
        let sockets = sockets(&common).map_err(|(kind, message)| command.error(kind, message))?;
        check(&device, sockets.guests())
            .map_err(|error| command.error(ErrorKind::ValueValidation, Chain(&error)))?;
        Ok(Invocation {
            sockets,
            log_level: common.log_level.and_then(|level| level.parse().ok()),
            poll: Duration::from_micros(common.poll_us),
            without: common.without,
            memory_fs: match common.memory_fs.as_str() {
                "any" => MemoryFs::Any,
                _ => MemoryFs::Known,
            },
            device,
        })
    }
}

fn sockets(common: &Common) -> Result<Sockets, (ErrorKind, String)> {
    if let Some(path) = &common.socket_path {
        return Ok(Sockets::Paths {
            paths: numbered(path, common.socket_count),
            mode: common.socket_mode,
        });
    }
    // Not the parser's: what is only asked needs a number of guests, and no path.
    if common.socket_count.is_some() {
        let message = "--socket-count needs --socket-path, which the numbers of guests are put \
                       behind";
        return Err((ErrorKind::MissingRequiredArgument, message.to_owned()));
    }
    let fds = match common.fd {
        Some(fd) => vec![fd],
        None => sockets::listen_fds(),
    };
    if fds.is_empty() {
        let message = "no socket to serve: give --socket-path or --fd, or pass sockets as systemd \
                       does (LISTEN_FDS and LISTEN_PID)";
        return Err((ErrorKind::MissingRequiredArgument, message.to_owned()));
    }
    fds.into_iter()
        .map(sockets::adopt)
        .collect::<Result<_, _>>()
        .map(Sockets::Adopted)
        .map_err(|error| (ErrorKind::ValueValidation, error.to_string()))
}

/// The path itself without a count; with one, the path with each guest's number behind it.
fn numbered(path: &Path, count: Option<u32>) -> Vec<PathBuf> {
    match count {
        None => vec![path.to_owned()],
        Some(count) => (0..count).map(|guest| with_number(path, guest)).collect(),
    }
}

/// The path with a guest's number behind it, as for the sockets of several guests.
pub fn with_number(path: &Path, guest: impl Display) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(guest.to_string());
    path.into()
}

/// Understands the name of a feature that can be withheld.
fn features() -> impl TypedValueParser<Value = Feature> {
    let names = Feature::ALL.map(Feature::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Feature>())
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(Mode::from_raw_mode(mode)),
        _ => Err("it must be octal, 0 to 777".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const IDENTITY: Identity = Identity {
        name: "vhost-device-test",
        version: "1.2.3",
        about: "a test",
        device_type: "test",
    };

    #[derive(Debug, Args)]
    struct DeviceArgs {
        /// The device's file.
        #[arg(short = 'f', long)]
        filename: Option<PathBuf>,
    }

    fn parse(arguments: &[&str]) -> Result<Invocation<DeviceArgs>, clap::Error> {
        let program = [IDENTITY.name];
        let arguments = program
            .iter()
            .chain(arguments)
            .map(OsString::from)
            .collect();
        super::parse(&IDENTITY, arguments)?.claim(|args: &DeviceArgs, guests| {
            match args.filename.is_some() && guests > 3 {
                true => Err(std::io::Error::other("too many guests for a file")),
                false => Ok(()),
            }
        })
    }

    fn error(arguments: &[&str]) -> ErrorKind {
        let error = parse(arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{arguments:?}");
        error.kind()
    }

    fn paths(arguments: &[&str]) -> Vec<PathBuf> {
        match parse(arguments).unwrap().sockets {
            Sockets::Paths { paths, .. } => paths,
            Sockets::Adopted(_) => panic!("{arguments:?} adopts sockets"),
        }
    }

    #[test]
    fn test_parse_defaults() {
        let invocation = parse(&["-s", "/run/s"]).unwrap();
        assert_eq!(invocation.poll, Duration::ZERO);
        assert_eq!(invocation.without, []);
        assert_eq!(invocation.memory_fs, MemoryFs::Known);
        assert_eq!(invocation.log_level, None);
        assert_eq!(invocation.device.filename, None);
        assert_eq!(invocation.sockets.guests(), 1);
    }

    #[test]
    fn test_parse_every_option() {
        let invocation = parse(&[
            "--socket-path=/run/s",
            "--socket-count=3",
            "--socket-mode=660",
            "--log-level=trace",
            "--poll-us=50",
            "--without=packed,log",
            "--without",
            "event-idx",
            "--memory-fs=any",
            "--filename=/dev/x",
        ])
        .unwrap();
        assert_eq!(invocation.sockets.guests(), 3);
        let Sockets::Paths { mode, .. } = invocation.sockets else {
            panic!("adopts sockets");
        };
        assert_eq!(mode, Some(Mode::from_raw_mode(0o660)));
        assert_eq!(invocation.log_level, Some(LevelFilter::Trace));
        assert_eq!(invocation.poll, Duration::from_micros(50));
        let without = [Feature::Packed, Feature::Log, Feature::EventIdx];
        assert_eq!(invocation.without, without);
        assert_eq!(invocation.memory_fs, MemoryFs::Any);
        assert_eq!(invocation.device.filename, Some(PathBuf::from("/dev/x")));
    }

    #[test]
    fn test_parse_numbers_the_paths_when_there_is_a_count() {
        assert_eq!(paths(&["-s", "a"]), [PathBuf::from("a")]);
        assert_eq!(paths(&["-s", "a", "-c", "1"]), [PathBuf::from("a0")]);
        assert_eq!(
            paths(&["-s", "a", "-c", "2"]),
            [PathBuf::from("a0"), PathBuf::from("a1")]
        );
    }

    #[test]
    fn test_what_needs_no_socket_is_understood_without() {
        let arguments = ["daemon", "-f", "/dev/x"].map(OsString::from).into();
        let parsed = super::parse::<DeviceArgs>(&IDENTITY, arguments).unwrap();
        assert_eq!(parsed.device.filename, Some(PathBuf::from("/dev/x")));
        assert_eq!(parsed.guests(), 1);
        let arguments = ["daemon", "-s", "s", "-c", "3"].map(OsString::from).into();
        let parsed = super::parse::<DeviceArgs>(&IDENTITY, arguments).unwrap();
        assert_eq!(parsed.guests(), 3);
    }

    #[test]
    fn test_parse_invalid_options_are_usage_errors() {
        assert_eq!(error(&[]), ErrorKind::MissingRequiredArgument);
        assert_eq!(error(&["-c", "2"]), ErrorKind::MissingRequiredArgument);
        assert_eq!(
            error(&["-s", "a", "--fd", "3"]),
            ErrorKind::ArgumentConflict
        );
        assert_eq!(error(&["-s", ""]), ErrorKind::InvalidValue);
        for wrong in [
            &["-s", "a", "-c", "0"],
            &["-s", "a", "-c", "1025"],
            &["-s", "a", "--poll-us", "10001"],
            &["-s", "a", "--socket-mode", "888"],
            &["-s", "a", "--socket-mode", "7777"],
        ] {
            assert_eq!(error(wrong), ErrorKind::ValueValidation, "{wrong:?}");
        }
        for wrong in [
            &["-s", "a", "--log-level", "loud"],
            &["-s", "a", "--memory-fs", "fuse"],
        ] {
            assert_eq!(error(wrong), ErrorKind::InvalidValue, "{wrong:?}");
        }
        for wrong in ["", "packed,", "Packed", "packed in-order", "34"] {
            let arguments = ["-s", "a", "--without", wrong];
            assert_eq!(error(&arguments), ErrorKind::InvalidValue, "{wrong:?}");
        }
        assert_eq!(error(&["--fd=-1"]), ErrorKind::ValueValidation);
        assert_eq!(error(&["--fd=99999"]), ErrorKind::ValueValidation);
        assert_eq!(
            error(&["-s", "a", "--nonsense"]),
            ErrorKind::UnknownArgument
        );
    }

    #[test]
    fn test_parse_options_that_contradict_each_other_are_a_usage_error() {
        let arguments = ["-s", "a", "-c", "4", "-f", "x"];
        assert_eq!(error(&arguments), ErrorKind::ValueValidation);
        let text = parse(&arguments).unwrap_err().to_string();
        assert!(text.contains("too many guests"), "{text}");
        assert!(parse(&["-s", "a", "-c", "3", "-f", "x"]).is_ok());
    }

    #[test]
    fn test_usage_has_the_socket_and_what_is_required() {
        let mut command = Command::new("daemon")
            .arg(Arg::new("list").long("list").value_name("X").required(true))
            .arg(Arg::new("other").long("other"));
        command.build();
        assert_eq!(
            usage(&command),
            "daemon --socket-path <PATH> --list <X> [OPTIONS]"
        );
    }

    #[test]
    fn test_parse_errors_tell_what_to_write() {
        for (arguments, what) in [
            (&["-s", "a", "-c", "x"][..], "a number from 1 to 1024"),
            (&["--fd", "-"], "a number from 0 to"),
            (&["-s", "a", "--poll-us", "x"], "a number from 0 to 10000"),
            (
                &["-s", "a", "--without", "order"],
                "packed, in-order, indirect, event-idx, ring-reset, inflight, log",
            ),
            (
                &[],
                "Usage: vhost-device-test --socket-path <PATH> [OPTIONS]",
            ),
        ] {
            let text = parse(arguments).unwrap_err().to_string();
            assert!(text.contains(what), "{arguments:?}: {text}");
        }
    }

    #[test]
    fn test_parse_claims_an_inherited_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let fd = ours.into_raw_fd().to_string();
        let invocation = parse(&["--fd", &fd]).unwrap();
        let Sockets::Adopted(endpoints) = invocation.sockets else {
            panic!("binds a path");
        };
        assert!(matches!(endpoints[..], [Endpoint::Connected(_)]));
    }

    #[test]
    fn test_print_capabilities_wins_over_anything_else() {
        let wants = |arguments: &[&str]| {
            wants_capabilities(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert!(wants(&["daemon", "--nonsense", PRINT_CAPABILITIES]));
        assert!(!wants(&["daemon", "-s", "a"]));
        assert!(!wants(&[PRINT_CAPABILITIES]));
    }
}
