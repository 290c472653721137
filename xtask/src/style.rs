//! Colours, where they are wanted: on a terminal and without `NO_COLOR`.

use std::env;
use std::io::{self, IsTerminal};

/// How text is written to one of the standard streams.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    colours: bool,
}

/// The style for standard output.
pub(crate) fn stdout() -> Style {
    Style::new(io::stdout().is_terminal())
}

/// The style for standard error.
pub(crate) fn stderr() -> Style {
    Style::new(io::stderr().is_terminal())
}

impl Style {
    fn new(terminal: bool) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: terminal && !refused,
        }
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What is well.
    pub(crate) fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What is not.
    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What is shown as it came.
    pub(crate) fn data(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// What matters less.
    pub(crate) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
