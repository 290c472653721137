//! What a load gave, and how it comes out of the guest: as lines of numbers.

use anyhow::{Context, Result, bail, ensure};

use super::Plan;
use crate::daemon::Daemon;
use crate::load::{Done, Guest, Job, Waiting};
use crate::process::cpu_time;
use crate::programs::Each;
use crate::stats::{micros, quantile};

/// The first word of a line of figures.
const MARK: &str = "figures";

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Good answers in a second.
    pub(crate) good: f64,
    /// The part of all answers that failed, from 0 to 1.
    pub(crate) failed: f64,
    /// How long an answer takes, in microseconds: half of them take longer.
    pub(crate) median: f64,
    /// One in a hundred takes longer.
    pub(crate) percentile_99: f64,
    /// The daemon's CPU time for an answer, in microseconds.
    pub(crate) cpu: f64,
}

impl Figures {
    /// Those of a job that runs for as long as the plan says.
    pub(crate) fn of_job(
        job: &mut Job,
        guest: &mut Guest,
        daemon: &Daemon,
        plan: &Plan,
    ) -> Result<Self> {
        guest.run(job, plan.cell / 5, Waiting::Asleep)?;
        Self::of(daemon, || guest.run(job, plan.cell, Waiting::Asleep))
    }

    /// Those of something that is done once, and what it costs the daemon.
    pub(crate) fn of(daemon: &Daemon, work: impl FnOnce() -> Result<Done>) -> Result<Self> {
        let before = cpu_time(daemon.pid())?;
        let done = work()?;
        let cpu = cpu_time(daemon.pid())?.saturating_sub(before);
        let mut times: Vec<f64> = done.times.iter().copied().map(micros).collect();
        times.sort_by(f64::total_cmp);
        let requests = done.requests as f64;
        Ok(Self {
            good: (done.requests - done.failed) as f64 / done.time.as_secs_f64(),
            failed: done.failed as f64 / requests,
            median: quantile(&times, 0.5),
            percentile_99: quantile(&times, 0.99),
            cpu: micros(cpu) / requests,
        })
    }
}

/// Both sides' figures as a line.
pub(super) fn line(each: &Each<Figures>) -> String {
    let numbers = [each.ours, each.peer].map(|figures| {
        let Figures {
            good,
            failed,
            median,
            percentile_99,
            cpu,
        } = figures;
        format!("{good} {failed} {median} {percentile_99} {cpu}")
    });
    format!("{MARK} {}", numbers.join(" "))
}

/// The figures of each load, from what the guest printed.
pub(super) fn parse(printed: &str) -> Result<Vec<Each<Figures>>> {
    let lines = printed.lines();
    let lines = lines.filter_map(|line| line.strip_prefix(MARK));
    let parse = |line| parse_line(line).with_context(|| format!("the guest printed {line:?}"));
    lines.map(parse).collect()
}

fn parse_line(line: &str) -> Result<Each<Figures>> {
    let numbers: Vec<f64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let &[a, b, c, d, e, f, g, h, i, j] = &numbers[..] else {
        bail!("{} numbers and not 10", numbers.len());
    };
    ensure!(
        numbers.iter().all(|number| number.is_finite()),
        "no numbers"
    );
    let figures = |[good, failed, median, percentile_99, cpu]: [f64; 5]| Figures {
        good,
        failed,
        median,
        percentile_99,
        cpu,
    };
    Ok(Each {
        ours: figures([a, b, c, d, e]),
        peer: figures([f, g, h, i, j]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_through_a_line() {
        let ours = Figures {
            good: 1.5,
            failed: 0.25,
            median: 20.0,
            percentile_99: 33.125,
            cpu: 7.0,
        };
        let each = Each {
            ours,
            peer: Figures { good: 2.0, ..ours },
        };
        let printed = format!("something else\n{}\n", line(&each));
        assert_eq!(parse(&printed).unwrap(), [each]);
        assert!(parse("figures 1 2 3").is_err());
        assert!(parse("figures 1 2 3 4 5 6 7 8 9 NaN").is_err());
        assert!(parse("").unwrap().is_empty());
    }
}
