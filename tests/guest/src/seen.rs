//! What a guest's commands printed, and assertions on it.

/// What one line of shell printed in the guest, and how it ended.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// The line that was run.
    pub line: String,
    /// Its standard output and error, as one.
    pub output: String,
    /// Its exit status.
    pub status: i32,
}

impl CommandOutput {
    /// Panics unless the line ended with status 0.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert_eq!(self.status, 0, "this line failed in the guest: {self}");
        self
    }

    /// The output without the white space around it, of a line that succeeded.
    #[track_caller]
    pub fn text(&self) -> &str {
        self.succeeded().output.trim()
    }

    /// Panics unless the line succeeded and printed exactly `expected`.
    #[track_caller]
    pub fn is(&self, expected: &str) {
        assert_eq!(self.text(), expected, "from the guest's line: {self}");
    }

    /// Panics unless the line succeeded and `expected` is in what it printed.
    #[track_caller]
    pub fn contains(&self, expected: &str) {
        assert!(
            self.text().contains(expected),
            "{expected:?} is not in the output of the guest's line: {self}"
        );
    }
}

impl std::fmt::Display for CommandOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            line,
            output,
            status,
        } = self;
        write!(f, "`{line}` (exit status {status}) printed:\n{output}")
    }
}

/// What all lines of a guest's run printed, in their order.
#[derive(Clone, Debug)]
pub struct Seen(Vec<CommandOutput>);

impl Seen {
    pub(crate) fn new(outputs: Vec<CommandOutput>) -> Self {
        Self(outputs)
    }

    /// What line number `index` (from 0) printed.
    #[track_caller]
    pub fn line(&self, index: usize) -> &CommandOutput {
        let count = self.0.len();
        self.0
            .get(index)
            .unwrap_or_else(|| panic!("line {index} was not run, only {count} lines were"))
    }
}
