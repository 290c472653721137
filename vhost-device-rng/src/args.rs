//! The options of this daemon; those of every daemon are in `vhost-device-daemon`.

use std::path::PathBuf;
use std::time::Duration;

use vhost_device_daemon::number_in;

use crate::quota::{Limit, MAX_PERIOD};

/// The period of `--max-bytes` when the user does not say, in milliseconds.
const PERIOD: u64 = 60_000;

/// What the user of the entropy daemon chooses.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Take the random bytes from this file, FIFO or character device, for example /dev/hwrng
    /// [default: the kernel's generator].
    #[arg(short, long, alias = "rng-source", value_name = "PATH")]
    pub filename: Option<PathBuf>,

    /// Give each guest at most this many bytes in a period [default: no limit].
    ///
    /// A guest may take them at once; what it took comes back evenly over the period.
    #[arg(short, long, value_name = "BYTES")]
    #[arg(value_parser = number_in(1..=u64::MAX))]
    pub max_bytes: Option<u64>,

    /// The length of the period of --max-bytes, in milliseconds [default: 60000].
    #[arg(short, long, value_name = "MILLISECONDS")]
    #[arg(value_parser = number_in(1..=MAX_PERIOD.as_millis() as u64))]
    pub period: Option<u64>,
}

impl Args {
    /// The limit of each guest, if there is one.
    pub fn limit(&self) -> Option<Limit> {
        Some(Limit {
            max_bytes: self.max_bytes?,
            period: Duration::from_millis(self.period.unwrap_or(PERIOD)),
        })
    }

    /// What the user should know of options that do nothing. Scripts of others have them, so they
    /// are no errors.
    pub fn remark(&self) -> Option<&'static str> {
        let is_idle = self.period.is_some() && self.max_bytes.is_none();
        is_idle.then_some(
            "--period does nothing without --max-bytes: guests have as many bytes as they like",
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, ErrorKind> {
        let arguments = ["rng"].iter().chain(arguments);
        Cli::try_parse_from(arguments)
            .map(|cli| cli.args)
            .map_err(|error| error.kind())
    }

    #[test]
    fn test_parse_defaults_to_no_limit() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.filename, None);
        assert_eq!(args.limit(), None);
    }

    #[test]
    fn test_parse_a_period_without_a_limit_is_remarked_upon() {
        let args = parse(&["-p", "1000"]).unwrap();
        assert_eq!(args.limit(), None);
        assert!(args.remark().unwrap().contains("--max-bytes"));
        for said in [&["-m", "1", "-p", "1000"][..], &["-m", "1"], &[]] {
            assert_eq!(parse(said).unwrap().remark(), None);
        }
    }

    #[test]
    fn test_parse_limit() {
        let limit = parse(&["-m", "1000"]).unwrap().limit().unwrap();
        assert_eq!(limit.max_bytes, 1000);
        assert_eq!(limit.period, Duration::from_secs(60));
        let limit = parse(&["-m", "1", "-p", "86400000"]).unwrap().limit();
        assert_eq!(limit.unwrap().period, MAX_PERIOD);
    }

    #[test]
    fn test_parse_invalid_limits_are_refused() {
        for wrong in [
            ["-m", "0"],
            ["-p", "0"],
            ["-p", "86400001"],
            ["-m", "18446744073709551616"],
            ["-m", "many"],
        ] {
            assert_eq!(
                parse(&wrong).unwrap_err(),
                ErrorKind::ValueValidation,
                "{wrong:?}"
            );
        }
    }
}
