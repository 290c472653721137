//! What can be said over the simulator's control socket: whoever connects plays the world around
//! the chip.
//!
//! It is [`vhost_device_daemon::control`]'s language. The things that there are, are the lines, by
//! name or number; their value is their level, and what is set is the level from outside. After
//! `watch`, a client is told of each change: `changed NAME LEVEL`.
//!
//! A client is not trusted: see [`control::Client`](vhost_device_daemon::control::Client).

use vhost_device_daemon::control::{Answer, Command, Control, Item, choice};

use super::{Line, State};
use crate::host::LineNumber;

/// What is written for a low level and for a high one.
const LEVELS: [&str; 2] = ["0", "1"];

/// The commands beside those that every control socket has.
const COMMANDS: [Command; 1] = [Command {
    name: "watch",
    arguments: "",
    about: "tells each change of a level from now on: changed NAME LEVEL",
}];

/// The chip as one client has it.
pub(super) struct Chip<'a> {
    pub(super) state: &'a mut State,
    /// Whether the client is told of changes.
    pub(super) watches: &'a mut bool,
}

impl Chip<'_> {
    fn show(&self, number: LineNumber, line: &Line) -> Item {
        Item {
            name: name(&self.state.names, number),
            value: LEVELS[usize::from(line.last)].to_owned(),
            takes: Some(format!("the level from outside, {}", LEVELS.join(" or "))),
        }
    }
}

impl Control for Chip<'_> {
    fn commands(&self) -> &[Command] {
        &COMMANDS
    }

    fn items(&self) -> Vec<Item> {
        let lines = (0..).zip(&self.state.lines);
        lines
            .map(|(number, line)| self.show(number, line))
            .collect()
    }

    fn item(&self, name: &str) -> Option<Item> {
        let number = find(name, &self.state.names)?;
        let line = self.state.lines.get(usize::from(number))?;
        Some(self.show(number, line))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let high = choice(value, &LEVELS)? == 1;
        let number = find(name, &self.state.names).ok_or("there is no such line")?;
        self.state.drive(number, high);
        Ok(())
    }

    fn command(&mut self, _: &str, _: &str) -> Answer {
        *self.watches = true;
        Ok(String::new())
    }
}

/// What a line is called: its name, or its number where that would not be understood.
pub(super) fn name(names: &[String], number: LineNumber) -> String {
    let name = names.get(usize::from(number));
    let own = name.filter(|name| find(name, names) == Some(number));
    own.cloned().unwrap_or_else(|| number.to_string())
}

/// A line by its number or its name.
fn find(line: &str, names: &[String]) -> Option<LineNumber> {
    let number = match line.parse() {
        Ok(number) => number,
        // No name has spaces at its ends here, as they are not seen there.
        Err(_) if line.is_empty() || line.trim() != line => return None,
        Err(_) => names.iter().position(|name| name == line)?,
    };
    (number < names.len()).then(|| LineNumber::try_from(number).ok())?
}

#[cfg(test)]
mod tests {
    use vhost_device_daemon::control::answer;

    use super::*;
    use crate::host::sim::{Board, Sim};
    use crate::log::Log;

    #[test]
    fn test_lines_have_their_names_or_their_numbers() {
        let names = ["reset", "a b", "", "1", "reset", " "].map(str::to_owned);
        let called: Vec<_> = (0..6).map(|number| name(&names, number)).collect();
        assert_eq!(called, ["reset", "a b", "2", "3", "4", "5"]);
        for (number, name) in (0..).zip(&called) {
            assert_eq!(find(name, &names), Some(number));
        }
        for wrong in ["", "6", "nobody", "-1", "99999999999999999999"] {
            assert_eq!(find(wrong, &names), None);
        }
    }

    #[test]
    fn test_levels_are_seen_and_set() {
        let board = Board {
            names: ["button", "a b", ""].map(str::to_owned).to_vec(),
            ..Board::default()
        };
        let sim = Sim::new(&board, None, Log::new("the test")).unwrap();
        let mut watches = false;
        let mut ask = |line: &str| {
            let (state, watches) = (&mut *sim.state(), &mut watches);
            answer(&mut Chip { state, watches }, line.as_bytes())
        };
        assert_eq!(ask("list"), "button 0\na b 0\n2 0\nok\n");
        assert_eq!(ask("set button 1"), "button 1\nok\n");
        assert_eq!(ask("set a b 1"), "a b 1\nok\n");
        assert_eq!(ask("set 2 1"), "2 1\nok\n");
        assert_eq!(ask("get 0"), "button 1\nok\n");
        for (line, why) in [
            ("set button 2", "\"2\" is none of: 0, 1"),
            ("set buton 1", "is button meant?"),
            ("get 3", "list shows what there is"),
            ("button=1", "write: set button 1"),
            ("button", "write: get button"),
            ("watch button", "write it so: watch"),
        ] {
            let answer = ask(line);
            assert!(answer.starts_with("error: "), "{line}: {answer}");
            assert!(answer.contains(why), "{line}: {answer}");
        }
        assert!(ask("help").contains("takes the level from outside, 0 or 1"));
        assert_eq!(ask("watch"), "ok\n");
        assert!(watches);
    }
}
