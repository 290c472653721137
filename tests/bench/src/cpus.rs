//! Which CPUs the two ends run on.
//!
//! A guest's virtual CPU and its daemon may run side by side or take turns on one CPU. Left to
//! itself, the scheduler changes between the two as it likes, and the figures of a run depend on
//! its choice more than on the daemon.

use std::fmt;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where driver and daemon run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Placement {
    /// On a CPU each
    Apart,
    /// On one CPU
    Together,
    /// Where the scheduler likes
    Free,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apart => "on two CPUs",
            Self::Together => "on one CPU",
            Self::Free => "on any CPU",
        })
    }
}

/// The CPUs of the driver and of the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// All that this process may use.
    allowed: CpuSet,
    driver: CpuSet,
    daemon: CpuSet,
}

impl Cpus {
    /// Chooses from the last CPUs: interrupts go to the first ones more often.
    pub(crate) fn find(placement: Placement) -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot tell which CPUs there are")?;
        let mut usable = (0..CpuSet::MAX_CPU)
            .rev()
            .filter(|&cpu| allowed.is_set(cpu));
        let last = usable.next().map_or(allowed, only);
        let (driver, daemon) = match placement {
            Placement::Apart => (last, usable.next().map_or(last, only)),
            Placement::Together => (last, last),
            Placement::Free => (allowed, allowed),
        };
        ensure!(
            placement != Placement::Apart || driver != daemon,
            "there are no two CPUs: use `--cpus together`"
        );
        Ok(Self {
            allowed,
            driver,
            daemon,
        })
    }

    /// Runs `start` so that the processes that it starts are on the daemons' CPU.
    pub(crate) fn for_daemons<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        self.on(&self.daemon, start)
    }

    /// Runs `drive` on the driver's CPU.
    pub(crate) fn for_driver<T>(&self, drive: impl FnOnce() -> Result<T>) -> Result<T> {
        self.on(&self.driver, drive)
    }

    fn on<T>(&self, cpus: &CpuSet, work: impl FnOnce() -> Result<T>) -> Result<T> {
        set(cpus)?;
        let result = work();
        set(&self.allowed)?;
        result
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

fn set(cpus: &CpuSet) -> Result<()> {
    sched_setaffinity(None, cpus).context("cannot choose a CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_allowed_before_is_allowed_after() {
        let allowed = || Ok(sched_getaffinity(None)?);
        let before = allowed().unwrap();
        let together = Cpus::find(Placement::Together).unwrap();
        let used = together.for_driver(allowed).unwrap();
        assert_eq!(used.count(), 1);
        assert_eq!(together.for_daemons(allowed).unwrap(), used);
        let free = Cpus::find(Placement::Free).unwrap();
        assert_eq!(free.for_driver(allowed).unwrap(), before);
        if let Ok(apart) = Cpus::find(Placement::Apart) {
            assert_ne!(apart.for_daemons(allowed).unwrap(), used);
        }
        assert_eq!(allowed().unwrap(), before);
    }
}
