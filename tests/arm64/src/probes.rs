//! The probes (`examples/probes.rs`): their disassembly and what they execute.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vhost_device_guest::setup::Arm64;

use crate::build;
use crate::disassembly::{Disassembly, Instruction};

/// How many chains a turn has, of two descriptors each; that of the example.
pub const BATCH: usize = 16;

/// The processor that is emulated: one with LSE and without SVE, which some cores lack that the
/// instructions are weighed for, and for which the C library has another `memcpy`.
const CPU: &str = "neoverse-n1";

/// The program, built for release as the daemons are, and linked statically.
#[derive(Debug)]
pub struct Probes {
    tools: Arm64,
    program: PathBuf,
    entry: u64,
    /// What is in it.
    pub disassembly: Disassembly,
}

/// What a function and all that it called executed, from its beginning to its end.
pub type Run<'a> = Vec<&'a Instruction>;

impl Probes {
    /// Builds it.
    ///
    /// # Errors
    /// When the tools are not there or it cannot be built.
    pub fn build() -> Result<Self> {
        let tools = Arm64::find()?;
        let args = [
            "build",
            "--release",
            "--package",
            "vhost-device-arm64",
            "--example",
            "probes",
        ];
        let built = build::programs(&mut build::static_cargo(&tools, args)?)?;
        let program = built.into_iter().map(|built| built.executable).next();
        let program = program.context("cargo built no probes")?;
        let objdump = |options: &[&str]| -> Result<String> {
            let output = tools.objdump().args(options).arg(&program).output();
            let output = output.context("cannot run objdump")?;
            ensure!(output.status.success(), "objdump failed");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let header = objdump(&["-f"])?;
        let entry = header
            .lines()
            .find_map(|line| line.strip_prefix("start address 0x"));
        let entry = entry.context("objdump names no start address")?;
        let disassembly = Disassembly::parse(&objdump(&["-d", "-C", "--no-show-raw-insn"])?);
        Ok(Self {
            entry: u64::from_str_radix(entry.trim(), 16)?,
            disassembly,
            program,
            tools,
        })
    }

    /// Where a probe begins.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn start(&self, probe: &str) -> Result<u64> {
        let start = self.disassembly.find(probe);
        start.with_context(|| format!("there is no {probe}"))
    }

    /// Runs it on a `split` or `packed` ring, or with the `reference`, and returns the addresses
    /// of all that was executed.
    ///
    /// # Errors
    /// When it fails, or the emulator does not say what it executes.
    pub fn trace(&self, ring: &str) -> Result<Vec<u64>> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("trace");
        let status = Command::new(self.tools.emulator())
            .args(["-cpu", CPU, "-one-insn-per-tb", "-d", "exec,nochain", "-D"])
            .args([&log, &self.program])
            .arg(ring)
            .status()
            .context("cannot run qemu-aarch64")?;
        ensure!(status.success(), "the probes failed on {ring}");
        let text = fs::read_to_string(&log).context("qemu-aarch64 wrote no trace")?;
        let mut addresses: Vec<u64> = text.lines().filter_map(address).collect();
        let first = *addresses.first().context("the trace is empty")?;
        // Where the program was put: it begins at its start address.
        let moved = first.wrapping_sub(self.entry);
        for address in &mut addresses {
            *address = address.wrapping_sub(moved);
        }
        Ok(addresses)
    }

    /// All runs of a probe in a trace.
    ///
    /// # Errors
    /// When it was not called, or something was executed that is not in the program.
    pub fn runs(&self, trace: &[u64], probe: &str) -> Result<Vec<Run<'_>>> {
        let start = self.start(probe)?;
        let mut runs = Vec::new();
        let mut left = trace;
        while let Some(at) = left.iter().position(|&address| address == start) {
            let caller = at.checked_sub(1).and_then(|before| left.get(before));
            let back = caller.context("nobody called the probe")? + 4;
            let (_, run) = left.split_at(at);
            let end = run.iter().position(|&address| address == back);
            let (run, rest) = run.split_at(end.context("the probe did not return")?);
            let instructions = run.iter().map(|&address| {
                let instruction = self.disassembly.at(address);
                instruction.with_context(|| format!("nothing is at {address:#x}"))
            });
            runs.push(instructions.collect::<Result<_>>()?);
            left = rest;
        }
        ensure!(!runs.is_empty(), "{probe} was not called");
        Ok(runs)
    }
}

/// The address in `Trace 0: 0x7f… [flags/0000000000405cc0/…] name`.
fn address(line: &str) -> Option<u64> {
    let address = line.strip_prefix("Trace ")?.split('/').nth(1)?;
    u64::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_a_trace() {
        let line = "Trace 0: 0x7f7094000100 [81009331/0000000000405cc0/00000001/00000201] _start";
        assert_eq!(address(line), Some(0x40_5cc0));
        assert_eq!(address("IN: _start"), None);
    }
}
