//! What a process costs: CPU time and memory.

use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What the driver's guest memory is called in another process's mappings.
const GUEST_MEMORY: &str = "/memfd:guest-memory";

/// The CPU time that all threads of a process have taken, in user space and in the kernel, to
/// the nanosecond.
pub(crate) fn cpu_time(pid: i32) -> Result<Duration> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    let mut clock = 0;
    // SAFETY: both calls write to what they are given a pointer to, and to nothing else.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &mut clock) != 0
            || libc::clock_gettime(clock, time.as_mut_ptr()) != 0
    };
    ensure!(!failed, "cannot read the CPU time of process {pid}");
    // SAFETY: the call that writes it has succeeded.
    let time = unsafe { time.assume_init() };
    let seconds = u64::try_from(time.tv_sec).context("the CPU time is negative")?;
    let nanoseconds = u32::try_from(time.tv_nsec).context("the CPU time is negative")?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// What a process has in memory, without its guests' memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) resident: u64,
    /// What no other process has too: what would be free if the process ended.
    pub(crate) private: u64,
}

impl Memory {
    /// That of a process.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let smaps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&smaps)
    }

    /// Adds up what `/proc/PID/smaps` says.
    fn parse(smaps: &str) -> Result<Self> {
        let mut memory = Self::default();
        let mut skip = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let Some(key) = first.strip_suffix(':') else {
                skip = line.contains(GUEST_MEMORY);
                continue;
            };
            let counted = matches!(key, "Rss" | "Private_Clean" | "Private_Dirty");
            if skip || !counted {
                continue;
            }
            let number = words.next().and_then(|number| number.parse::<u64>().ok());
            let number = number.with_context(|| format!("{line:?} is not understood"))?;
            match key {
                "Rss" => memory.resident += number,
                _ => memory.private += number,
            }
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a5d000-55d0c0a8a000 r--p 00000000 fe:00 1234                       /usr/bin/daemon
Size:                180 kB
Rss:                 100 kB
Pss:                  50 kB
Shared_Clean:         60 kB
Private_Clean:        40 kB
Private_Dirty:         0 kB
VmFlags: rd mr mw me sd
7f0000000000-7f0001000000 rw-s 00000000 00:01 2050                       /memfd:guest-memory (deleted)
Rss:                9000 kB
Private_Dirty:      9000 kB
7f0001000000-7f0001021000 rw-p 00000000 00:00 0
Rss:                   8 kB
Private_Clean:         0 kB
Private_Dirty:         8 kB
";

    #[test]
    fn mappings_are_added_up_without_the_guests() {
        let expected = Memory {
            resident: 108,
            private: 48,
        };
        assert_eq!(Memory::parse(SMAPS).unwrap(), expected);
        assert!(Memory::parse("Rss: many kB").is_err());
    }

    #[test]
    fn own_costs_are_read() {
        let pid = std::process::id().cast_signed();
        let before = cpu_time(pid).unwrap();
        let memory = Memory::of(pid).unwrap();
        assert!(0 < memory.private && memory.private <= memory.resident);
        assert!(cpu_time(pid).unwrap() > before);
        assert!(cpu_time(0x0fff_ffff).is_err());
    }
}
