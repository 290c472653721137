//! What is said over a control socket: see [`super`].

use std::fmt::{Display, Write};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::nearest;

/// What a command is answered with: the lines of a text, or why it was not done.
pub type Answer = Result<String, String>;

/// A command, as `help` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The word that it begins with.
    pub name: &'static str,
    /// What comes behind the word, in capitals, what may be left out in brackets: `[GUEST]`.
    pub arguments: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
}

/// The commands that every control socket has.
const COMMON: [Command; 4] = [
    Command {
        name: "help",
        arguments: "[WORD]",
        about: "shows all commands and things, or one of them",
    },
    Command {
        name: "list",
        arguments: "",
        about: "shows each thing with its value",
    },
    Command {
        name: "get",
        arguments: "NAME",
        about: "shows one value",
    },
    Command {
        name: "set",
        arguments: "NAME VALUE",
        about: "changes a value",
    },
];

impl Command {
    /// How it is written.
    fn usage(&self) -> String {
        format!("{} {}", self.name, self.arguments)
            .trim_end()
            .to_owned()
    }

    /// Whether something may, and must, come behind its word.
    fn takes(&self, arguments: &str) -> bool {
        match arguments {
            "" => self.arguments.is_empty() || self.arguments.starts_with('['),
            _ => !self.arguments.is_empty(),
        }
    }
}

/// Something that can be seen, and perhaps set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is called. It may have spaces in it, but not at its ends.
    pub name: String,
    /// What it is now: one line.
    pub value: String,
    /// What it can be set to, in a few words that name the range: `degrees, -55 to 125`. `None`
    /// if it can only be seen.
    pub takes: Option<String>,
}

/// What is behind a control socket: the things that there are, and the commands of its own.
pub trait Control {
    /// The commands that it has beside `help`, `list`, `get` and `set`.
    fn commands(&self) -> &[Command] {
        &[]
    }

    /// Everything there is, in the order of `list`.
    fn items(&self) -> Vec<Item>;

    /// The thing that a client calls `name`.
    fn item(&self, name: &str) -> Option<Item> {
        self.items().into_iter().find(|item| item.name == name)
    }

    /// Gives the item that a client calls `name` another value. Asked only for what can be set.
    ///
    /// # Errors
    /// Why it cannot have `value`; [`number`] and [`choice`] say which values it can have.
    fn set(&mut self, name: &str, value: &str) -> Result<(), String>;

    /// Does what one of [`Self::commands`] says. `arguments` is what came behind the word; there
    /// is something if there must be, and nothing if nothing may be.
    ///
    /// # Errors
    /// Why it was not done.
    fn command(&mut self, name: &str, arguments: &str) -> Answer {
        let _ = arguments;
        Err(format!("{name} is not done here"))
    }
}

/// Does what a client's line says; gives the whole answer, which ends with the line `ok` or with a
/// line that begins with `error: `.
pub fn answer(control: &mut dyn Control, line: &[u8]) -> String {
    let done = match str::from_utf8(line) {
        Ok(line) => obey(control, line.trim()),
        Err(_) => Err("that is not text in UTF-8".to_owned()),
    };
    match done {
        Ok(text) if text.is_empty() => "ok\n".to_owned(),
        Ok(text) => format!("{}\nok\n", text.trim_end_matches('\n')),
        // An error is one line, whatever it quotes.
        Err(why) => format!("error: {}\n", why.replace('\n', " ")),
    }
}

fn obey(control: &mut dyn Control, line: &str) -> Answer {
    let (word, arguments) = match line.split_once(char::is_whitespace) {
        Some((word, arguments)) => (word, arguments.trim_start()),
        None => (line, ""),
    };
    let commands: Vec<_> = COMMON.iter().chain(control.commands()).copied().collect();
    let Some(command) = commands.iter().find(|command| command.name == word) else {
        return Err(unknown_command(control, &commands, line, word));
    };
    if !command.takes(arguments) {
        return Err(format!("write it so: {}", command.usage()));
    }
    match command.name {
        "help" => help(control, &commands, arguments),
        "list" => Ok(lines(control.items().iter().map(shown))),
        "get" => Ok(shown(&find(control, arguments)?)),
        "set" => set(control, arguments),
        name => control.command(name, arguments),
    }
}

fn set(control: &mut dyn Control, arguments: &str) -> Answer {
    // The last word is the value, as a name may have spaces in it.
    let Some((name, value)) = arguments.rsplit_once(char::is_whitespace) else {
        return Err("write it so: set NAME VALUE".to_owned());
    };
    let name = name.trim_end();
    if find(control, name)?.takes.is_none() {
        return Err(format!("{name} can be seen, and not set"));
    }
    control.set(name, value)?;
    // What has become of it: a value may be rounded.
    Ok(shown(&find(control, name)?))
}

fn find(control: &dyn Control, name: &str) -> Result<Item, String> {
    control.item(name).ok_or_else(|| {
        let items = control.items();
        let known = items.iter().map(|item| item.name.as_str());
        unknown("thing", name, nearest(name, known), "list")
    })
}

fn unknown_command(control: &dyn Control, commands: &[Command], line: &str, word: &str) -> String {
    if line.is_empty() {
        return "that line is empty: help shows what can be said".to_owned();
    }
    // A name without its command.
    if control.item(line).is_some() {
        return format!("to see it, write: get {line}");
    }
    if let Some((name, value)) = line.rsplit_once('=')
        && control.item(name.trim()).is_some()
    {
        return format!("to set it, write: set {} {}", name.trim(), value.trim());
    }
    let known = commands.iter().map(|command| command.name);
    unknown("command", word, nearest(word, known), "help")
}

fn unknown(what: &str, word: &str, nearest: Option<&str>, see: &str) -> String {
    match nearest {
        Some(nearest) => format!("there is no {what} {word:?}; is {nearest} meant?"),
        None => format!("there is no {what} {word:?}: {see} shows what there is"),
    }
}

fn shown(item: &Item) -> String {
    format!("{} {}", item.name, item.value)
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

fn help(control: &dyn Control, commands: &[Command], word: &str) -> Answer {
    let commands = commands.iter().map(|command| {
        (
            command.usage(),
            command.name.to_owned(),
            command.about.to_owned(),
        )
    });
    let items = control.items().into_iter().map(|item| {
        let takes = match item.takes {
            Some(takes) => format!("is {}; takes {takes}", item.value),
            None => format!("is {}", item.value),
        };
        (item.name.clone(), item.name, takes)
    });
    let mut all: Vec<_> = commands.chain(items).collect();
    if !word.is_empty() {
        // The client's name for an item may be another than that of the list.
        let name = control.item(word).map(|item| item.name);
        let name = name.as_deref().unwrap_or(word);
        let known = all.iter().map(|(_, name, _)| name.as_str());
        let nearest = nearest(word, known).map(str::to_owned);
        all.retain(|(_, known, _)| known == name);
        if all.is_empty() {
            return Err(unknown("word", word, nearest.as_deref(), "help"));
        }
    }
    let width = all.iter().map(|(usage, ..)| usage.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for (usage, _, about) in all {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{usage:width$}  {about}");
    }
    Ok(text)
}

/// Understands a number in a range, for a value or an argument.
///
/// # Errors
/// It is not a number in the range; the text names the range.
pub fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "{text:?} is not a number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Understands one of a few words, and gives its index.
///
/// # Errors
/// It is not one of the words; the text names them.
pub fn choice(text: &str, choices: &[&str]) -> Result<usize, String> {
    choices
        .iter()
        .position(|choice| *choice == text)
        .ok_or_else(|| format!("{text:?} is none of: {}", choices.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thermometer, a button called by number too, and a serial number.
    struct Bench {
        degrees: f64,
        pressed: usize,
        told: Vec<String>,
    }

    impl Control for Bench {
        fn commands(&self) -> &[Command] {
            &[
                Command {
                    name: "shutdown",
                    arguments: "[GUEST]",
                    about: "asks guests to shut down",
                },
                Command {
                    name: "watch",
                    arguments: "",
                    about: "tells each change",
                },
            ]
        }

        fn items(&self) -> Vec<Item> {
            let item = |name: &str, value: String, takes: Option<&str>| Item {
                name: name.to_owned(),
                value,
                takes: takes.map(str::to_owned),
            };
            vec![
                item(
                    "sim.temperature",
                    self.degrees.to_string(),
                    Some("degrees, -55 to 125"),
                ),
                item("my button", self.pressed.to_string(), Some("0 or 1")),
                item("serial", "42".to_owned(), None),
            ]
        }

        fn item(&self, name: &str) -> Option<Item> {
            let name = if name == "7" { "my button" } else { name };
            self.items().into_iter().find(|item| item.name == name)
        }

        fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
            match name {
                "sim.temperature" => self.degrees = number(value, -55.0..=125.0)?,
                _ => self.pressed = choice(value, &["0", "1"])?,
            }
            Ok(())
        }

        fn command(&mut self, name: &str, arguments: &str) -> Answer {
            self.told.push(format!("{name} {arguments}"));
            Ok(String::new())
        }
    }

    fn bench() -> Bench {
        Bench {
            degrees: 25.0,
            pressed: 0,
            told: Vec::new(),
        }
    }

    fn ask(bench: &mut Bench, line: &str) -> String {
        answer(bench, line.as_bytes())
    }

    #[test]
    fn test_help_lists_what_there_is_one_line_each() {
        let mut bench = bench();
        let help = ask(&mut bench, "help");
        assert_eq!(
            help.lines().collect::<Vec<_>>(),
            [
                "help [WORD]       shows all commands and things, or one of them",
                "list              shows each thing with its value",
                "get NAME          shows one value",
                "set NAME VALUE    changes a value",
                "shutdown [GUEST]  asks guests to shut down",
                "watch             tells each change",
                "sim.temperature   is 25; takes degrees, -55 to 125",
                "my button         is 0; takes 0 or 1",
                "serial            is 42",
                "ok",
            ]
        );
        assert_eq!(
            ask(&mut bench, "help shutdown"),
            "shutdown [GUEST]  asks guests to shut down\nok\n"
        );
        assert_eq!(
            ask(&mut bench, "help 7"),
            "my button  is 0; takes 0 or 1\nok\n"
        );
        assert_eq!(
            ask(&mut bench, "help shutdow"),
            "error: there is no word \"shutdow\"; is shutdown meant?\n"
        );
    }

    #[test]
    fn test_things_are_listed_seen_and_set() {
        let mut bench = bench();
        assert_eq!(
            ask(&mut bench, "list"),
            "sim.temperature 25\nmy button 0\nserial 42\nok\n"
        );
        assert_eq!(
            ask(&mut bench, " set  sim.temperature\t-3.5 \r"),
            "sim.temperature -3.5\nok\n"
        );
        assert_eq!(ask(&mut bench, "set my button 1"), "my button 1\nok\n");
        assert_eq!(ask(&mut bench, "get 7"), "my button 1\nok\n");
        assert_eq!(ask(&mut bench, "set 7 0"), "my button 0\nok\n");
        assert_eq!(
            ask(&mut bench, "get sim.temperature"),
            "sim.temperature -3.5\nok\n"
        );
    }

    #[test]
    fn test_commands_of_its_own_get_what_they_may_be_given() {
        let mut bench = bench();
        assert_eq!(ask(&mut bench, "shutdown"), "ok\n");
        assert_eq!(ask(&mut bench, "shutdown  1 2"), "ok\n");
        assert_eq!(ask(&mut bench, "watch"), "ok\n");
        assert_eq!(ask(&mut bench, "watch 3"), "error: write it so: watch\n");
        assert_eq!(bench.told, ["shutdown ", "shutdown 1 2", "watch "]);
    }

    #[test]
    fn test_what_is_wrong_is_told_with_what_to_write() {
        let mut bench = bench();
        for (line, why) in [
            ("", "that line is empty: help shows what can be said"),
            ("hlep", "there is no command \"hlep\"; is help meant?"),
            (
                "xyz 1",
                "there is no command \"xyz\": help shows what there is",
            ),
            ("get", "write it so: get NAME"),
            ("set", "write it so: set NAME VALUE"),
            ("set serial", "write it so: set NAME VALUE"),
            ("list all", "write it so: list"),
            (
                "get sim.temprature",
                "there is no thing \"sim.temprature\"; is sim.temperature meant?",
            ),
            (
                "set nothing 1",
                "there is no thing \"nothing\": list shows what there is",
            ),
            ("set serial 7", "serial can be seen, and not set"),
            (
                "set sim.temperature 126",
                "\"126\" is not a number from -55 to 125",
            ),
            (
                "set sim.temperature nan",
                "\"nan\" is not a number from -55 to 125",
            ),
            ("set my button 2", "\"2\" is none of: 0, 1"),
            ("my button", "to see it, write: get my button"),
            ("my button=1", "to set it, write: set my button 1"),
        ] {
            assert_eq!(ask(&mut bench, line), format!("error: {why}\n"), "{line}");
        }
        assert_eq!(
            answer(&mut bench, b"\xff"),
            "error: that is not text in UTF-8\n"
        );
        assert_eq!((bench.degrees, bench.pressed), (25.0, 0));
    }
}
