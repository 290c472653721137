//! What the queue compiles to for arm64: which barriers, and how many cycles.
//!
//! An x86 processor orders more than an arm64 one, so neither a test nor a bench on it shows what
//! an ordering costs or whether one is missing. The instructions do. `examples/probes.rs` does the
//! steps of a turn; it is built for release as the daemons are, and looked at in two ways:
//!
//! - its disassembly, function by function with all that it calls: what *may* be executed;
//! - the instructions of a turn, one after the other as qemu-user executed them: what *is*.
//!
//! | module | what lives there |
//! |---|---|
//! | [`build`] | cargo for arm64, and the programs that it builds |
//! | [`disassembly`] | functions, their instructions, and which of them order memory |
//! | [`probes`] | the probes: their disassembly and what they execute |

pub mod build;
pub mod disassembly;
pub mod probes;
