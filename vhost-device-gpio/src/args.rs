//! The options of this daemon; those of every daemon are in `vhost-device-daemon`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::host::LineNumber;
use crate::host::linux::{Attributes, Bias, Drive};
use crate::host::sim::{Board, Signal};

/// The most lines of a guest: each of the host's takes a file descriptor, and a mistyped range
/// must not take them all.
pub const MAX_LINES: usize = 512;

/// The longest name of a line, as in Linux's interface to chips.
pub const MAX_NAME: usize = 31;

/// The longest that an input may have to be steady.
const MAX_DEBOUNCE: u64 = 1_000_000;

/// The longest time between two changes of a simulated line: an hour.
const MAX_DELAY: u64 = 3_600_000;

/// What the user of the GPIO daemon chooses.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The lines of one guest; given once for each guest, in their order.
    ///
    /// LINES@CHIP:NAMES, or several of these with + between them. LINES are offsets, ranges and
    /// names with commas between them; without LINES@, all lines of the chip. CHIP is gpiochip0,
    /// 0 or a path. NAMES are what the guest calls the lines, with commas between them, and may
    /// be left out with their colon. For example: `0,4-7@gpiochip0:reset,irq`.
    ///
    /// N:N:… is a chip for each guest; sN is a simulated one with N lines.
    ///
    /// sim:COUNT is a simulated chip, whole and alone; behind it may come ,LINE=NAME
    /// ,loop=LINE-LINE ,pulse=LINE@MS and ,edges=LINE@MS/MS/… For example: `sim:8,3=button`.
    #[arg(
        short = 'l',
        long = "device-list",
        value_name = "[LINES@]CHIP[:NAMES][+…]",
        required = true
    )]
    pub device_list: Vec<Sets>,

    /// What the host makes of these lines of its chips: active-low, pull-up, pull-down, no-bias,
    /// open-drain, open-source, debounce=MICROSECONDS, with commas between them.
    #[arg(long, value_name = "LINES@CHIP=ATTRIBUTES")]
    pub attr: Vec<Setting<Attributes>>,

    /// While their guest is away, these lines of the host's chips are driven to this value, 0 or 1.
    #[arg(long, value_name = "LINES@CHIP=VALUE")]
    pub safe: Vec<Setting<bool>>,

    /// A socket to see and change the simulated lines by; where there are several guests, PATH0,
    /// PATH1 and so on, one for each that has a simulated chip.
    #[arg(long, value_name = "PATH")]
    pub sim_control: Option<PathBuf>,
}

impl Args {
    /// What each guest gets, in the guests' order.
    pub fn sets(&self) -> impl Iterator<Item = &Set> {
        self.device_list.iter().flat_map(|sets| &sets.0)
    }
}

/// The value of one `-l`: what one guest gets, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets(pub Vec<Set>);

/// What one guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// A simulated chip.
    Sim(Board),
    /// Lines of the host's chips.
    Host(Vec<Part>),
}

/// Lines of one chip, and what the guest calls them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which lines.
    pub lines: Lines,
    /// Their names for the guest, in their order; an empty one is the line's own.
    pub names: Vec<String>,
}

/// Lines of one chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    /// The chip's file.
    pub chip: PathBuf,
    /// Which; all when `None`.
    pub which: Option<Vec<Which>>,
}

impl Lines {
    /// How many they are; `None` when the chip has to say.
    pub fn count(&self) -> Option<usize> {
        let which = self.which.as_ref()?.iter();
        // Fits: a range is no longer than `MAX_LINES`.
        let counts = which.map(|which| which.offsets().map_or(1, |range| range.count()));
        Some(counts.sum())
    }

    /// Those that are given by offset.
    pub fn offsets(&self) -> impl Iterator<Item = u32> {
        let which = self.which.iter().flatten();
        which.filter_map(Which::offsets).flatten()
    }
}

/// A line, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// From the first offset to the last.
    Offsets(u32, u32),
    /// The one that the chip calls so.
    Named(String),
}

impl Which {
    fn offsets(&self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::Offsets(first, last) => Some(*first..=*last),
            Self::Named(_) => None,
        }
    }
}

/// Something that holds for lines of a chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// Which lines.
    pub lines: Lines,
    /// What holds.
    pub value: T,
}

/// What is wrong with an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

fn invalid<T>(why: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(why.into()))
}

fn number<T: FromStr>(text: &str, what: &str) -> Result<T, Invalid> {
    text.parse()
        .or_else(|_| invalid(format!("{text:?} is no {what}")))
}

/// A number of these units from 1 to `most`.
fn in_range(text: &str, units: &str, most: u64) -> Result<u64, Invalid> {
    let what = format!("number of {units} from 1 to {most}");
    let value = number(text, &what)?;
    match (1..=most).contains(&value) {
        true => Ok(value),
        false => invalid(format!("{text:?} is no {what}")),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl FromStr for Sets {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let sets = if let Some(board) = text.strip_prefix("sim:") {
            check_alone(board)?;
            vec![Set::Sim(parse_board(board)?)]
        } else if text.split([':', ',']).all(is_upstreams) {
            let sets = text.split([':', ',']).map(parse_upstreams);
            sets.collect::<Result<_, _>>()?
        } else {
            let parts = text.split('+').map(parse_part);
            vec![Set::Host(parts.collect::<Result<_, _>>()?)]
        };
        Ok(Self(sets))
    }
}

/// A simulated chip is all that its guest gets.
fn check_alone(board: &str) -> Result<(), Invalid> {
    let count = board.split(',').next().unwrap_or_default();
    match count.contains('+') || board.contains("+sim:") {
        true => invalid(
            "a guest has one simulated chip and nothing besides: give it more lines, or each \
             guest an -l of its own",
        ),
        false => Ok(()),
    }
}

/// What to write instead of the simulated chip that `chip` seems to mean, if it means one: they
/// are no chips of the host.
fn simulated(chip: &str) -> Option<String> {
    let count = chip.strip_prefix("sim").or(chip.strip_prefix('s'))?;
    match count.strip_prefix(':').unwrap_or(count) {
        "" => Some("sim:8".to_owned()),
        count => is_number(count).then(|| format!("sim:{count}")),
    }
}

/// Whether this is what upstream's daemon knows: the number of a chip, or `s` and how many lines
/// a simulated one has.
fn is_upstreams(text: &str) -> bool {
    is_number(text.strip_prefix('s').unwrap_or(text))
}

fn parse_upstreams(text: &str) -> Result<Set, Invalid> {
    match text.strip_prefix('s') {
        Some(board) => Ok(Set::Sim(parse_board(board)?)),
        None => Ok(Set::Host(vec![whole_chip(text)])),
    }
}

fn whole_chip(chip: &str) -> Part {
    Part {
        lines: Lines {
            chip: chip_path(chip),
            which: None,
        },
        names: Vec::new(),
    }
}

fn chip_path(chip: &str) -> PathBuf {
    match chip {
        number if is_number(number) => PathBuf::from(format!("/dev/gpiochip{number}")),
        path if path.contains('/') => PathBuf::from(path),
        name => Path::new("/dev").join(name),
    }
}

fn parse_part(text: &str) -> Result<Part, Invalid> {
    // Behind the chip only: a name of a line may have a colon in it.
    let from = text.find('@').unwrap_or(0);
    let colon = text
        .get(from..)
        .and_then(|rest| rest.find(':'))
        .map_or(text.len(), |colon| from + colon);
    let (lines, names) = text.split_at(colon);
    let (which, chip) = match lines.split_once('@') {
        Some((which, chip)) => (Some(which), chip),
        None => (None, lines),
    };
    if let Some(instead) = simulated(chip) {
        return match which {
            None => invalid(format!(
                "a simulated chip is given with a number of lines, whole and alone: {instead}"
            )),
            Some(_) => invalid(format!(
                "a simulated chip is given whole, without lines before an `@`: {instead}"
            )),
        };
    }
    let names: Vec<_> = match names.strip_prefix(':') {
        Some(names) => names.split(',').map(str::to_owned).collect(),
        None => Vec::new(),
    };
    names.iter().try_for_each(|name| check_name(name))?;
    Ok(Part {
        lines: lines.parse()?,
        names,
    })
}

fn check_name(name: &str) -> Result<(), Invalid> {
    if name.len() > MAX_NAME {
        return invalid(format!("{name:?} is longer than {MAX_NAME} characters"));
    }
    match name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        true => Ok(()),
        false => invalid(format!("{name:?} has characters that are not ASCII")),
    }
}

impl FromStr for Lines {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (which, chip) = match text.split_once('@') {
            Some((which, chip)) => (Some(which), chip),
            None => (None, text),
        };
        let is_range = |(first, last): (&str, &str)| is_number(first) && is_number(last);
        if which.is_none()
            && chip
                .split(',')
                .any(|one| one.split_once('-').is_some_and(is_range))
        {
            return invalid(format!(
                "{text:?} names lines and no chip: write {text}@gpiochip0"
            ));
        }
        if chip.is_empty() {
            return invalid(format!(
                "{text:?} names no chip: write LINES@gpiochip0, gpiochip0, or sim:8"
            ));
        }
        if chip.contains('@') {
            return invalid(format!(
                "{text:?} names two chips: write + between the lines of one and of the next, as in \
                 0-3@gpiochip0+0@gpiochip1"
            ));
        }
        let which = which.map(|which| which.split(',').map(str::parse).collect());
        Ok(Self {
            chip: chip_path(chip),
            which: which.transpose()?,
        })
    }
}

impl FromStr for Which {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return invalid(
                "a line without a number or a name: write one between two commas, as in \
                 0,4-7@gpiochip0",
            );
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        if !is_number(first) || !is_number(last) {
            return Ok(Self::Named(text.to_owned()));
        }
        let what = "offset of a line, from 0 to 4294967295";
        let (first, last) = (number(first, what)?, number(last, what)?);
        match u32::checked_sub(last, first) {
            None => invalid(format!(
                "{text:?} ends before it begins: write the lower offset first"
            )),
            // Fits: it is compared first, and a `usize` has 32 bits at least.
            Some(more) if more as usize >= MAX_LINES => invalid(format!(
                "{text:?} is more than {MAX_LINES} lines, the most that a guest may have"
            )),
            Some(_) => Ok(Self::Offsets(first, last)),
        }
    }
}

impl<T: Value> FromStr for Setting<T> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some((lines, value)) = text.split_once('=') else {
            return invalid(format!("it has no `=`: write {}", T::EXAMPLE));
        };
        let (_, chip) = lines.split_once('@').unwrap_or(("", lines));
        if simulated(chip).is_some() {
            return invalid(
                "simulated lines have none of this: it is for lines of the host's chips",
            );
        }
        Ok(Self {
            lines: lines.parse()?,
            value: T::parse(value)?,
        })
    }
}

/// What can be set for a line.
pub trait Value: Sized {
    /// An option that sets it.
    const EXAMPLE: &str;

    /// Understands the text behind the `=`.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &str) -> Result<Self, Invalid>;
}

impl Value for bool {
    const EXAMPLE: &str = "5@gpiochip0=1";

    fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => invalid(format!("{text:?} is neither 0 nor 1")),
        }
    }
}

impl Value for Attributes {
    const EXAMPLE: &str = "1,3-4@gpiochip0=pull-up,active-low";

    fn parse(text: &str) -> Result<Self, Invalid> {
        let mut attributes = Self::default();
        for attribute in text.split(',') {
            set_attribute(&mut attributes, attribute)?;
        }
        if attributes.drive.is_some() && attributes.debounce.is_some() {
            return invalid("a line with debounce is an input, and has no drive");
        }
        Ok(attributes)
    }
}

fn set_attribute(attributes: &mut Attributes, attribute: &str) -> Result<(), Invalid> {
    let already = match attribute {
        "active-low" => std::mem::replace(&mut attributes.active_low, true),
        "pull-up" => attributes.bias.replace(Bias::PullUp).is_some(),
        "pull-down" => attributes.bias.replace(Bias::PullDown).is_some(),
        "no-bias" => attributes.bias.replace(Bias::Disabled).is_some(),
        "open-drain" => attributes.drive.replace(Drive::OpenDrain).is_some(),
        "open-source" => attributes.drive.replace(Drive::OpenSource).is_some(),
        other => {
            let Some(period) = other.strip_prefix("debounce=") else {
                return invalid(format!(
                    "{other:?} is no attribute of a line: there are active-low, pull-up, \
                     pull-down, no-bias, open-drain, open-source, debounce=MICROSECONDS"
                ));
            };
            let period = in_range(period, "microseconds", MAX_DEBOUNCE)?;
            let period = Duration::from_micros(period);
            attributes.debounce.replace(period).is_some()
        }
    };
    match already {
        true => invalid(format!(
            "{attribute:?} is about something that was said before: leave one of the two out"
        )),
        false => Ok(()),
    }
}

fn parse_board(text: &str) -> Result<Board, Invalid> {
    let mut words = text.split(',');
    let count = words.next().unwrap_or_default();
    let count: usize = number(count, "number of lines: a simulated chip is written sim:8")?;
    if !(1..=MAX_LINES).contains(&count) {
        return invalid(format!("a simulated chip has 1 to {MAX_LINES} lines"));
    }
    let mut board = Board {
        names: (0..count).map(|number| format!("sim{number}")).collect(),
        ..Board::default()
    };
    for word in words {
        let Some((what, value)) = word.split_once('=') else {
            return invalid(format!(
                "{word:?} has no `=`: write LINE=NAME, loop=LINE-LINE, pulse=LINE@MS or \
                 edges=LINE@MS/MS"
            ));
        };
        match what {
            "loop" => add_loop(&mut board, value)?,
            "pulse" | "edges" => add_signal(&mut board, value, what == "pulse")?,
            line => {
                check_name(value)?;
                let line = sim_line(&board, line)?;
                if let Some(name) = board.names.get_mut(usize::from(line)) {
                    value.clone_into(name);
                }
            }
        }
    }
    Ok(board)
}

fn sim_line(board: &Board, text: &str) -> Result<LineNumber, Invalid> {
    let last = board.names.len().saturating_sub(1);
    let what = format!("line of the simulated chip: its lines are numbered from 0 to {last}");
    let line: LineNumber = number(text, &what)?;
    match usize::from(line) <= last {
        true => Ok(line),
        false => invalid(format!("{text:?} is no {what}")),
    }
}

fn add_loop(board: &mut Board, value: &str) -> Result<(), Invalid> {
    let Some((one, other)) = value.split_once('-') else {
        return invalid(format!(
            "loop={value} does not name two lines: write loop=0-1"
        ));
    };
    let pair = (sim_line(board, one)?, sim_line(board, other)?);
    let mut wired = board.loops.iter().flat_map(|&(one, other)| [one, other]);
    if pair.0 == pair.1 || wired.any(|line| line == pair.0 || line == pair.1) {
        return invalid(format!(
            "loop={value}: a line is wired to one other, which is not itself"
        ));
    }
    board.loops.push(pair);
    Ok(())
}

fn add_signal(board: &mut Board, value: &str, repeats: bool) -> Result<(), Invalid> {
    let Some((line, delays)) = value.split_once('@') else {
        return invalid(format!(
            "{value:?} has no `@` between a line and its times: write pulse=0@500 or edges=0@100/50"
        ));
    };
    let delays = delays.split('/').map(|delay| {
        let delay = in_range(delay, "milliseconds", MAX_DELAY)?;
        Ok(Duration::from_millis(delay))
    });
    let signal = Signal {
        line: sim_line(board, line)?,
        delays: delays.collect::<Result<_, _>>()?,
        repeats,
    };
    board.signals.push(signal);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, String> {
        let arguments = ["gpio"].iter().chain(arguments);
        Cli::try_parse_from(arguments)
            .map(|cli| cli.args)
            .map_err(|error| error.to_string())
    }

    fn sets(text: &str) -> Vec<Set> {
        text.parse::<Sets>().unwrap().0
    }

    fn lines(chip: &str, which: &[Which]) -> Lines {
        Lines {
            chip: chip.into(),
            which: (!which.is_empty()).then(|| which.to_vec()),
        }
    }

    #[test]
    fn test_parse_a_chip_for_each_guest_as_upstream_does() {
        let whole = |chip| {
            Set::Host(vec![Part {
                lines: lines(chip, &[]),
                names: Vec::new(),
            }])
        };
        assert_eq!(sets("0"), [whole("/dev/gpiochip0")]);
        assert_eq!(
            sets("2:0"),
            [whole("/dev/gpiochip2"), whole("/dev/gpiochip0")]
        );
        assert_eq!(sets("gpiochip1"), [whole("/dev/gpiochip1")]);
        let sim = |count| sets(&format!("sim:{count}")).remove(0);
        assert_eq!(sets("s4"), [sim(4)]);
        assert_eq!(sets("s4:s8"), [sim(4), sim(8)]);
        assert_eq!(sets("s4,s8"), [sim(4), sim(8)]);
        assert_eq!(sets("3:s8"), [whole("/dev/gpiochip3"), sim(8)]);
        assert_eq!(sets("/tmp/chip"), [whole("/tmp/chip")]);
    }

    #[test]
    fn test_parse_lines_of_several_chips() {
        let expected = Set::Host(vec![
            Part {
                lines: lines(
                    "/dev/gpiochip0",
                    &[Which::Offsets(0, 0), Which::Offsets(4, 7)],
                ),
                names: vec!["reset".to_owned(), String::new(), "irq".to_owned()],
            },
            Part {
                lines: lines(
                    "/dev/gpiochip3",
                    &[
                        Which::Named("LED-1".to_owned()),
                        Which::Named("a:b".to_owned()),
                    ],
                ),
                names: Vec::new(),
            },
        ]);
        assert_eq!(sets("0,4-7@gpiochip0:reset,,irq+LED-1,a:b@3"), [expected]);
    }

    #[test]
    fn test_parse_a_guest_each_option() {
        let args = parse(&["-l", "0:1", "-l", "sim:2", "--device-list", "3@2"]).unwrap();
        assert_eq!(args.sets().count(), 4);
        assert!(parse(&[]).unwrap_err().contains("--device-list"));
    }

    #[test]
    fn test_parse_invalid_lines_are_refused() {
        let long = format!("0@0:{}", "x".repeat(32));
        for (wrong, why) in [
            ("", "names no chip"),
            ("3@", "names no chip"),
            ("@0", "without a number"),
            ("1,,2@0", "without a number"),
            ("7-4@0", "ends before it begins"),
            ("0-512@0", "more than 512 lines"),
            ("0-4294967295@0", "more than 512 lines"),
            ("4294967296@0", "no offset"),
            ("0@0:grün", "not ASCII"),
            (&long, "longer than 31"),
            ("0@0+", "names no chip"),
            ("sim8", "alone: sim:8"),
            ("sim", "alone: sim:8"),
            ("sim:8+sim:4", "one simulated chip and nothing besides"),
            ("sim:8,0=a+sim:4", "one simulated chip and nothing besides"),
            ("sim:8+0@0", "one simulated chip and nothing besides"),
            ("0@0+sim:4", "alone: sim:8"),
            ("0-3@sim:8", "whole, without lines before an `@`: sim:8"),
            ("0-3@s8", "whole, without lines before an `@`: sim:8"),
            ("s4+s8", "alone: sim:4"),
            ("0-3", "no chip: write 0-3@gpiochip0"),
            ("0@0,1@1", "names two chips: write + between"),
            ("1,4-7", "no chip: write 1,4-7@gpiochip0"),
            ("0-3@sim8", "without lines before an `@`: sim:8"),
        ] {
            let error = parse(&["-l", wrong]).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn test_parse_a_simulated_chip() {
        let expected = Board {
            names: ["out", "in", "sim2", ""].map(str::to_owned).to_vec(),
            loops: vec![(0, 1)],
            signals: vec![
                Signal {
                    line: 2,
                    delays: vec![Duration::from_millis(500)],
                    repeats: true,
                },
                Signal {
                    line: 3,
                    delays: vec![Duration::from_millis(100), Duration::from_millis(50)],
                    repeats: false,
                },
            ],
        };
        let text = "sim:4,0=out,1=in,3=,loop=0-1,pulse=2@500,edges=3@100/50";
        assert_eq!(sets(text), [Set::Sim(expected)]);
    }

    #[test]
    fn test_parse_invalid_simulated_chips_are_refused() {
        for (wrong, why) in [
            ("sim:0", "1 to 512"),
            ("s0", "1 to 512"),
            ("sim:513", "1 to 512"),
            ("sim:many", "no number of lines"),
            ("sim:2,loop", "no `=`"),
            ("sim:2,loop=0", "two lines"),
            ("sim:2,loop=0-0", "wired to one other"),
            ("sim:3,loop=0-1,loop=1-2", "wired to one other"),
            ("sim:2,loop=0-2", "lines are numbered from 0 to 1"),
            ("sim:2,0=out,loop=out-1", "\"out\" is no line of the"),
            ("sim:2,2=x", "lines are numbered from 0 to 1"),
            ("sim:2,pulse=0", "no `@`"),
            ("sim:2,pulse=0@0", "1 to 3600000"),
            ("sim:2,edges=0@1/", "no number of milliseconds"),
        ] {
            let error = parse(&["-l", wrong]).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn test_parse_attributes_and_safe_values() {
        let args = parse(&[
            "-l=0",
            "--attr=1,3-4@0=active-low,pull-up,debounce=5000",
            "--attr=5@0=open-drain,no-bias",
            "--safe=5@gpiochip0=1",
        ])
        .unwrap();
        let [inputs, output] = &args.attr[..] else {
            panic!("{:?}", args.attr);
        };
        let which = [Which::Offsets(1, 1), Which::Offsets(3, 4)];
        assert_eq!(inputs.lines, lines("/dev/gpiochip0", &which));
        assert_eq!(
            inputs.value,
            Attributes {
                active_low: true,
                bias: Some(Bias::PullUp),
                drive: None,
                debounce: Some(Duration::from_millis(5)),
            }
        );
        assert_eq!(output.value.drive, Some(Drive::OpenDrain));
        assert!(args.safe[0].value);
    }

    #[test]
    fn test_parse_invalid_settings_are_refused() {
        for (wrong, why) in [
            (["--attr", "1@0"], "no `=`: write 1,3-4@gpiochip0=pull-up"),
            (["--attr", "0@sim=pull-up"], "of the host's chips"),
            (["--safe", "0@sim:8=1"], "of the host's chips"),
            (["--safe", "0@s8=1"], "of the host's chips"),
            (["--safe", "sim8=1"], "of the host's chips"),
            (["--attr", "1@0=loud"], "no attribute"),
            (["--attr", "1@0=pull-up,pull-down"], "said before"),
            (["--attr", "1@0=active-low,active-low"], "said before"),
            (["--attr", "1@0=debounce=0"], "1 to 1000000"),
            (["--attr", "1@0=debounce=1000001"], "1 to 1000000"),
            (["--attr", "1@0=open-drain,debounce=1"], "no drive"),
            (["--safe", "1@0=2"], "neither 0 nor 1"),
            (["--safe", "1@0"], "no `=`"),
        ] {
            let error = parse(&["-l", "0", wrong[0], wrong[1]]).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
