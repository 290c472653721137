//! Which guest gets which lines: the command line and the host's chips brought together, and all
//! that can be wrong with that found before any guest is there.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use vhost_device_daemon::{BindError, Listener, bind, nearest, with_number};

use crate::args::{self, Args, MAX_LINES, Part, Set, Which};
use crate::host::linux::{self, Attributes, Chip, ChipError, HostLine};
use crate::host::sim::Board;

/// What one guest gets.
#[derive(Clone, Debug)]
pub enum Share {
    /// A simulated chip, and where those come from who play the world around it.
    Sim(Board, Option<Arc<Listener>>),
    /// Lines of the host's.
    Host(Arc<[HostLine]>),
}

/// Lines that cannot be given as they should.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A chip cannot be used.
    #[error(transparent)]
    Chip(#[from] ChipError),
    /// The simulator's control socket cannot be had.
    #[error("--sim-control")]
    Control(#[from] BindError),
    /// There is nothing to control.
    #[error("--sim-control is given, and no guest has a simulated chip (-l sim:8): leave it out")]
    NothingSimulated,
    /// There are no lines that this is for.
    #[error(
        "{0} is for lines of the host's chips, and all guests have simulated ones: leave it out"
    )]
    NothingOfHost(&'static str),
    /// A line cannot be driven to its safe value.
    #[error("--safe")]
    Park(#[source] io::Error),
    /// There are more or fewer guests than sets of lines.
    #[error(
        "there {}, and -l has lines for {sets}: give it once for each guest (--socket-count says \
         how many there are)", are_guests(*.guests)
    )]
    Guests {
        /// The sockets.
        guests: usize,
        /// The sets of lines.
        sets: usize,
    },
    /// A chip is not as large.
    #[error("{chip} has no line {offset}: it has {lines}, counted from 0")]
    NoOffset {
        /// The chip.
        chip: String,
        /// The offset.
        offset: u32,
        /// How many lines it has.
        lines: u32,
    },
    /// A chip has no line of this name.
    #[error("{chip} has no line that is called {name:?}: {hint}")]
    NoName {
        /// The chip.
        chip: String,
        /// The name.
        name: String,
        /// What to do about it.
        hint: String,
    },
    /// A chip has several lines of this name.
    #[error("{chip} has several lines that are called {name:?}: give an offset")]
    Ambiguous {
        /// The chip.
        chip: String,
        /// The name.
        name: String,
    },
    /// Somebody else has the line.
    #[error(
        "line {offset} of {chip} is in use by {consumer:?}: it has to be given up there, or be left \
         out here"
    )]
    InUse {
        /// The chip.
        chip: String,
        /// The line.
        offset: u32,
        /// Who has it.
        consumer: String,
    },
    /// A line is given twice.
    #[error(
        "line {offset} of {chip} is given to {}: give it to one guest, once",
        twice(*.first, *.second)
    )]
    Twice {
        /// The chip.
        chip: String,
        /// The line.
        offset: u32,
        /// Who has it.
        first: usize,
        /// Who was to have it too; perhaps the same.
        second: usize,
    },
    /// There are fewer lines than names for them.
    #[error("there are {names} names for {lines} lines of {chip}: give one for each at most")]
    Names {
        /// The chip.
        chip: String,
        /// How many names.
        names: usize,
        /// How many lines.
        lines: usize,
    },
    /// A name is given twice.
    #[error("guest {guest} has two lines that are called {name:?}: give one another name")]
    SameName {
        /// The guest.
        guest: usize,
        /// The name.
        name: String,
    },
    /// A guest has more lines than there may be.
    #[error("guest {guest} has {lines} lines, more than {MAX_LINES}: leave some out")]
    TooMany {
        /// The guest.
        guest: usize,
        /// How many.
        lines: usize,
    },
    /// `--attr` or `--safe` for a line that no guest has.
    #[error(
        "{option} is given for line {offset} of {chip}, which no guest has: give it to one with -l, \
         or leave it out"
    )]
    Unused {
        /// The option.
        option: &'static str,
        /// The chip.
        chip: String,
        /// The line.
        offset: u32,
    },
    /// `--attr` or `--safe` twice for a line.
    #[error("{option} is given twice for line {offset} of {chip}: give it once")]
    SetTwice {
        /// The option.
        option: &'static str,
        /// The chip.
        chip: String,
        /// The line.
        offset: u32,
    },
    /// The kernel does not tell of a line.
    #[error("cannot ask for line {offset} of {chip}")]
    Info {
        /// The chip.
        chip: String,
        /// The line.
        offset: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How many guests there are, behind "there".
fn are_guests(guests: usize) -> String {
    match guests {
        1 => "is 1 guest".to_owned(),
        guests => format!("are {guests} guests"),
    }
}

/// Who has a line that is given twice.
fn twice(first: usize, second: usize) -> String {
    match first == second {
        true => format!("guest {first} twice"),
        false => format!("guest {first} and to guest {second}"),
    }
}

/// Finds what is wrong with the command line alone, for so many guests. Two names may be one chip
/// or one line, which only the host knows: what depends on that, [`open`] finds.
///
/// # Errors
/// What is wrong.
pub fn check(args: &Args, guests: usize) -> Result<(), OpenError> {
    let sets = args.sets().count();
    if sets != guests {
        return Err(OpenError::Guests { guests, sets });
    }
    let mut owners = BTreeMap::new();
    for (guest, set) in args.sets().enumerate() {
        match set {
            Set::Sim(board) => unique(guest, board.names.iter())?,
            Set::Host(parts) => {
                unique(guest, parts.iter().flat_map(|part| &part.names))?;
                let counts = parts.iter().filter_map(|part| part.lines.count());
                check_total(guest, counts.sum())?;
                for part in parts {
                    check_part(guest, part, &mut owners)?;
                }
            }
        }
    }
    if args.sets().all(|set| matches!(set, Set::Sim(_))) {
        let safe = args.safe.first().map(|_| "--safe");
        let attributes = args.attr.first().map(|_| "--attr");
        if let Some(option) = safe.or(attributes) {
            return Err(OpenError::NothingOfHost(option));
        }
    }
    let mut sets = args.sets();
    if args.sim_control.is_some() && !sets.any(|set| matches!(set, Set::Sim(_))) {
        return Err(OpenError::NothingSimulated);
    }
    Ok(())
}

fn check_part<'a>(
    guest: usize,
    part: &'a Part,
    owners: &mut BTreeMap<(&'a Path, u32), usize>,
) -> Result<(), OpenError> {
    let path = part.lines.chip.as_path();
    let chip = || path.display().to_string();
    if let Some(lines) = part.lines.count() {
        check_names(part, lines, chip)?;
    }
    for offset in part.lines.offsets() {
        if let Some(first) = owners.insert((path, offset), guest) {
            return Err(OpenError::Twice {
                chip: chip(),
                offset,
                first,
                second: guest,
            });
        }
    }
    Ok(())
}

fn check_total(guest: usize, lines: usize) -> Result<(), OpenError> {
    match lines > MAX_LINES {
        true => Err(OpenError::TooMany { guest, lines }),
        false => Ok(()),
    }
}

fn check_names(part: &Part, lines: usize, chip: impl Fn() -> String) -> Result<(), OpenError> {
    match part.names.len() > lines {
        true => Err(OpenError::Names {
            chip: chip(),
            names: part.names.len(),
            lines,
        }),
        false => Ok(()),
    }
}

/// Opens the chips and gives each guest its lines, on a command line that [`check`] has let
/// through.
///
/// # Errors
/// What is wrong.
pub fn open(args: &Args) -> Result<Vec<Share>, OpenError> {
    let mut plan = Plan::default();
    for setting in &args.attr {
        plan.set("--attr", setting, |plan| &mut plan.attributes)?;
    }
    for setting in &args.safe {
        plan.set("--safe", setting, |plan| &mut plan.safe)?;
    }
    let shares = args.sets().enumerate().map(|(guest, set)| match set {
        Set::Sim(board) => Ok(Share::Sim(board.clone(), control(args, guest)?)),
        Set::Host(parts) => plan.host_lines(guest, parts).map(Share::Host),
    });
    let shares = shares.collect::<Result<Vec<_>, OpenError>>()?;
    plan.check_all_used()?;
    // Last, as nothing may be driven when the daemon does not start.
    for (guest, share) in shares.iter().enumerate() {
        if let Share::Host(lines) = share {
            linux::park(lines, guest).map_err(OpenError::Park)?;
        }
    }
    Ok(shares)
}

/// The control socket of a guest's simulated chip: for the user alone, and at a path with the
/// guest's number where there are several guests.
fn control(args: &Args, guest: usize) -> Result<Option<Arc<Listener>>, BindError> {
    let Some(path) = &args.sim_control else {
        return Ok(None);
    };
    let path = match args.sets().nth(1) {
        Some(_) => with_number(path, guest),
        None => path.clone(),
    };
    let listener = bind(&path, Some(Mode::RUSR | Mode::WUSR))?;
    Ok(Some(Arc::new(listener)))
}

/// A line of the host: chip and offset.
type Key = (String, u32);

#[derive(Debug, Default)]
struct Plan {
    /// By the name that the kernel gives them: the same chip may have several paths.
    chips: BTreeMap<String, Arc<Chip>>,
    paths: BTreeMap<PathBuf, Arc<Chip>>,
    owners: BTreeMap<Key, usize>,
    attributes: BTreeMap<Key, Attributes>,
    safe: BTreeMap<Key, bool>,
}

impl Plan {
    fn chip(&mut self, path: &Path) -> Result<Arc<Chip>, OpenError> {
        if let Some(chip) = self.paths.get(path) {
            return Ok(Arc::clone(chip));
        }
        let chip = Arc::new(Chip::open(path)?);
        let name = chip.name().to_owned();
        let chip = Arc::clone(self.chips.entry(name).or_insert(chip));
        self.paths.insert(path.to_owned(), Arc::clone(&chip));
        Ok(chip)
    }

    fn set<T: Copy>(
        &mut self,
        option: &'static str,
        setting: &args::Setting<T>,
        settings: impl Fn(&mut Self) -> &mut BTreeMap<Key, T>,
    ) -> Result<(), OpenError> {
        let chip = self.chip(&setting.lines.chip)?;
        for offset in offsets(&*chip, &setting.lines)? {
            let key = (chip.name().to_owned(), offset);
            if settings(self).insert(key, setting.value).is_some() {
                let chip = chip.name().to_owned();
                return Err(OpenError::SetTwice {
                    option,
                    chip,
                    offset,
                });
            }
        }
        Ok(())
    }

    fn host_lines(&mut self, guest: usize, parts: &[Part]) -> Result<Arc<[HostLine]>, OpenError> {
        let mut lines = Vec::new();
        for part in parts {
            self.add_part(guest, part, &mut lines)?;
        }
        check_total(guest, lines.len())?;
        Ok(lines.into())
    }

    fn add_part(
        &mut self,
        guest: usize,
        part: &Part,
        lines: &mut Vec<HostLine>,
    ) -> Result<(), OpenError> {
        let chip = self.chip(&part.lines.chip)?;
        let offsets = offsets(&*chip, &part.lines)?;
        check_names(part, offsets.len(), || chip.name().to_owned())?;
        let names = part.names.iter().map(String::as_str);
        for (offset, name) in offsets.into_iter().zip(names.chain(std::iter::repeat(""))) {
            lines.push(self.line(guest, &chip, offset, name)?);
        }
        Ok(())
    }

    fn line(
        &mut self,
        guest: usize,
        chip: &Arc<Chip>,
        offset: u32,
        name: &str,
    ) -> Result<HostLine, OpenError> {
        let key = (chip.name().to_owned(), offset);
        if let Some(first) = self.owners.insert(key.clone(), guest) {
            return Err(OpenError::Twice {
                chip: key.0,
                offset,
                first,
                second: guest,
            });
        }
        let info = chip.line(offset).map_err(|source| OpenError::Info {
            chip: chip.name().to_owned(),
            offset,
            source,
        })?;
        if let Some(consumer) = info.consumer {
            let chip = key.0;
            return Err(OpenError::InUse {
                chip,
                offset,
                consumer,
            });
        }
        let name = match name {
            "" => info.name,
            name => name.to_owned(),
        };
        let attributes = self.attributes.get(&key).copied().unwrap_or_default();
        let safe = self.safe.get(&key).copied();
        Ok(HostLine::new(
            Arc::clone(chip),
            offset,
            name,
            attributes,
            safe,
        ))
    }

    fn check_all_used(&self) -> Result<(), OpenError> {
        let attributes = self.attributes.keys().map(|key| ("--attr", key));
        let safe = self.safe.keys().map(|key| ("--safe", key));
        let mut all = attributes.chain(safe);
        match all.find(|(_, key)| !self.owners.contains_key(*key)) {
            None => Ok(()),
            Some((option, (chip, offset))) => Err(OpenError::Unused {
                option,
                chip: chip.clone(),
                offset: *offset,
            }),
        }
    }
}

/// The names that are given must be each its line's own; those of the host's that are not are
/// left out when the guest asks for them.
fn unique<'a>(guest: usize, names: impl Iterator<Item = &'a String>) -> Result<(), OpenError> {
    let mut seen = HashSet::new();
    let mut names = names.filter(|name| !name.is_empty());
    match names.find(|name| !seen.insert(*name)) {
        None => Ok(()),
        Some(name) => Err(OpenError::SameName {
            guest,
            name: name.clone(),
        }),
    }
}

/// What is looked at of a chip to find lines in it.
trait Directory {
    fn name(&self) -> &str;
    fn lines(&self) -> u32;
    fn line_name(&self, offset: u32) -> io::Result<String>;
}

impl Directory for Chip {
    fn name(&self) -> &str {
        self.name()
    }

    fn lines(&self) -> u32 {
        self.lines()
    }

    fn line_name(&self, offset: u32) -> io::Result<String> {
        Ok(self.line(offset)?.name)
    }
}

/// The offsets of lines, in the order in which they are given.
fn offsets(chip: &impl Directory, lines: &args::Lines) -> Result<Vec<u32>, OpenError> {
    let Some(which) = &lines.which else {
        return Ok((0..chip.lines()).collect());
    };
    let mut offsets = Vec::new();
    for which in which {
        match which {
            Which::Offsets(first, last) => offsets.extend(*first..=*last),
            Which::Named(name) => offsets.push(find(chip, name)?),
        }
    }
    match offsets.iter().find(|offset| **offset >= chip.lines()) {
        None => Ok(offsets),
        Some(offset) => Err(OpenError::NoOffset {
            chip: chip.name().to_owned(),
            offset: *offset,
            lines: chip.lines(),
        }),
    }
}

fn find(chip: &impl Directory, name: &str) -> Result<u32, OpenError> {
    let mut found = None;
    let mut names = Vec::new();
    for offset in 0..chip.lines() {
        let this = chip.line_name(offset).map_err(|source| OpenError::Info {
            chip: chip.name().to_owned(),
            offset,
            source,
        })?;
        if this == name && found.replace(offset).is_some() {
            return Err(OpenError::Ambiguous {
                chip: chip.name().to_owned(),
                name: name.to_owned(),
            });
        }
        names.push(this);
    }
    found.ok_or_else(|| OpenError::NoName {
        chip: chip.name().to_owned(),
        name: name.to_owned(),
        hint: match nearest(name, names.iter().map(String::as_str)) {
            Some(nearest) => format!("is {nearest:?} meant?"),
            None => "gpioinfo lists what there is".to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(&'static [&'static str]);

    impl Directory for Table {
        fn name(&self) -> &str {
            "table"
        }

        fn lines(&self) -> u32 {
            self.0.len() as u32
        }

        fn line_name(&self, offset: u32) -> io::Result<String> {
            Ok(self.0[offset as usize].to_owned())
        }
    }

    const TABLE: Table = Table(&["a", "", "c", "b", "c", "resets"]);

    fn found(lines: &str) -> Result<Vec<u32>, String> {
        let lines = lines.parse().unwrap();
        offsets(&TABLE, &lines).map_err(|error| error.to_string())
    }

    #[test]
    fn test_lines_are_found_by_offset_and_name_in_their_order() {
        assert_eq!(found("0").unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(found("3,b,0-1,a@0").unwrap(), [3, 3, 0, 1, 0]);
    }

    #[test]
    fn test_lines_that_are_missing_are_refused() {
        for (lines, why) in [
            ("6@0", "table has no line 6: it has 6"),
            ("3-9@0", "table has no line 6: it has 6"),
            ("x@0", "no line that is called \"x\": gpioinfo lists"),
            (
                "reset@0",
                "no line that is called \"reset\": is \"resets\" meant?",
            ),
            ("c@0", "table has several lines that are called \"c\""),
        ] {
            let error = found(lines).unwrap_err();
            assert!(error.contains(why), "{lines}: {error}");
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn checked(guests: usize, arguments: &str) -> Result<(), String> {
        let arguments = ["gpio"].into_iter().chain(arguments.split(' '));
        let cli: Cli = clap::Parser::try_parse_from(arguments).unwrap();
        check(&cli.args, guests).map_err(|error| error.to_string())
    }

    #[test]
    fn test_what_contradicts_itself_is_seen_without_the_host() {
        for (guests, arguments, why) in [
            (1, "-l sim:2 -l sim:2", "is 1 guest, and -l has lines for 2"),
            (2, "-l s2:s2:s2", "are 2 guests, and -l has lines for 3"),
            (1, "-l sim:2,0=a,1=a", "two lines that are called \"a\""),
            (1, "-l 0-1@0:a+1@1:a", "two lines that are called \"a\""),
            (1, "-l 0,x@0:a,b,c", "3 names for 2 lines"),
            (
                2,
                "-l 0-3@0 -l 3@gpiochip0",
                "given to guest 0 and to guest 1",
            ),
            (1, "-l 1,0-3@0", "given to guest 0 twice"),
            (1, "-l 0-511@0+0@1", "guest 0 has 513 lines, more than 512"),
            (1, "-l 0 --sim-control /c", "no guest has a simulated chip"),
        ] {
            let error = checked(guests, arguments).unwrap_err();
            assert!(error.contains(why), "{arguments}: {error}");
        }
        for (guests, arguments) in [
            (1, "-l sim:2 --sim-control /c"),
            (2, "-l 0:1"),
            // Perhaps the same line, perhaps not.
            (1, "-l x,y@0+0@/dev/other+0@0:a"),
            (1, "-l 0:a,b,c"),
        ] {
            assert_eq!(checked(guests, arguments), Ok(()), "{arguments}");
        }
    }

    #[test]
    fn test_names_of_one_guest_are_unique() {
        let names = ["a", "", "b", ""].map(str::to_owned);
        unique(0, names.iter()).unwrap();
        let names = ["a", "", "a"].map(str::to_owned);
        let error = unique(3, names.iter()).unwrap_err().to_string();
        assert!(error.starts_with("guest 3 has two lines that are called \"a\""));
    }
}
