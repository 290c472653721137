//! The lines of one guest, as the device sees them.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

pub mod linux;
pub mod sim;

/// A line of a guest: counted from 0, below [`Lines::count`].
pub type LineNumber = u16;

/// A change of a line's level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// From low to high.
    Rising,
    /// From high to low.
    Falling,
}

/// Which changes of a line are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// From low to high.
    Rising,
    /// From high to low.
    Falling,
    /// All.
    Both,
}

impl Watch {
    /// Whether this edge is wanted.
    pub fn wants(self, edge: Edge) -> bool {
        match self {
            Self::Rising => edge == Edge::Rising,
            Self::Falling => edge == Edge::Falling,
            Self::Both => true,
        }
    }
}

/// The lines that one guest has, for as long as it is connected: dropping this gives them back.
///
/// Nothing here waits. A line's number is one of the host's own set: an implementation answers
/// any other with an error.
pub trait Lines: Debug + Send {
    /// How many there are.
    fn count(&self) -> LineNumber;

    /// What the guest is told that a line is called; empty when it has no name.
    fn name(&self, line: LineNumber) -> &str;

    /// Makes a line an input. A watch on it stays.
    ///
    /// # Errors
    /// The hardware's.
    fn set_input(&mut self, line: LineNumber) -> io::Result<()>;

    /// Makes a line an output that has this level from the first moment.
    ///
    /// # Errors
    /// The hardware's.
    fn set_output(&mut self, line: LineNumber, high: bool) -> io::Result<()>;

    /// The guest has no more use for a line: it drives nothing, and is not watched.
    ///
    /// # Errors
    /// The hardware's.
    fn release(&mut self, line: LineNumber) -> io::Result<()>;

    /// Whether a line is high.
    ///
    /// # Errors
    /// The hardware's.
    fn value(&mut self, line: LineNumber) -> io::Result<bool>;

    /// Changes the level of an output.
    ///
    /// # Errors
    /// The hardware's.
    fn set_value(&mut self, line: LineNumber, high: bool) -> io::Result<()>;

    /// Looks for these edges of a line from now on, or for none. Those from before that were not
    /// read are forgotten. An error leaves it unwatched.
    ///
    /// # Errors
    /// The hardware's: not every line can be watched.
    fn watch(&mut self, line: LineNumber, edges: Option<Watch>) -> io::Result<()>;

    /// Becomes readable when [`Lines::next_edge`] may have one, and stays so until it has none.
    fn events(&self) -> BorrowedFd<'_>;

    /// The next edge of a line that is watched.
    fn next_edge(&mut self) -> Option<(LineNumber, Edge)>;
}

/// What an implementation answers to a number that is no line of its set.
pub(crate) fn no_such_line() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}
