//! The part that runs in the guest: one round of both sides, and a line of figures for each load
//! and side.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::load::{ADDRESS, Load, ROOM};
use super::{BUS, Figures, Plan};
use crate::daemon::Daemon;
use crate::load::{Guest, Waiting};
use crate::process::cpu_time;
use crate::programs::{Each, Side, Sides};
use crate::stats::quantile;

/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`.
const ZERO_LENGTH_REQUEST: u64 = 1;

/// The first word of a line of figures.
const MARK: &str = "figures";

/// Measures a round and prints it.
pub(super) fn run(sides: &Sides, plan: &Plan, round: usize) -> Result<()> {
    let all = sides.each(round, |side| {
        side_figures(side, plan).with_context(|| format!("with {}", side.name))
    })?;
    for (ours, peer) in all.ours.iter().zip(&all.peer) {
        println!(
            "{}",
            line(&Each {
                ours: *ours,
                peer: *peer
            })
        );
    }
    Ok(())
}

/// The figures of each load, with a new daemon.
fn side_figures(side: &Side, plan: &Plan) -> Result<Vec<Figures>> {
    // Decimal: the peer understands nothing else.
    let list = format!("{BUS}:{ADDRESS}");
    let mut daemon = Daemon::start(side, 1, &["-l", &list])?;
    let mut guest = Guest::start(daemon.connect(0)?, ROOM, ZERO_LENGTH_REQUEST)?;
    Load::all()
        .map(|load| {
            measure(load, &mut guest, &daemon, plan).with_context(|| format!("at \"{load}\""))
        })
        .collect()
}

fn measure(load: Load, guest: &mut Guest, daemon: &Daemon, plan: &Plan) -> Result<Figures> {
    let mut job = load.job(guest);
    guest.run(&mut job, plan.cell / 5, Waiting::Asleep)?;
    let before = cpu_time(daemon.pid())?;
    let done = guest.run(&mut job, plan.cell, Waiting::Asleep)?;
    let cpu = cpu_time(daemon.pid())?.saturating_sub(before);
    let mut times: Vec<f64> = done.times.iter().map(microseconds).collect();
    times.sort_by(f64::total_cmp);
    let requests = done.requests as f64;
    Ok(Figures {
        good: (done.requests - done.failed) as f64 / done.time.as_secs_f64(),
        failed: done.failed as f64 / requests,
        median: quantile(&times, 0.5),
        percentile_99: quantile(&times, 0.99),
        cpu: microseconds(&cpu) / requests,
    })
}

fn microseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Both sides' figures as a line.
fn line(each: &Each<Figures>) -> String {
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
