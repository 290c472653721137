//! The log: to stderr, as plain as the reader of stderr likes it.

use env_logger::{Builder, Env};
use log::LevelFilter;
use rustix::fs::fstat;

/// Starts the log. `level` is `--log-level`; without it `RUST_LOG` decides, then "info".
pub(crate) fn start(level: Option<LevelFilter>) {
    let mut builder = match level {
        Some(level) => {
            let mut builder = Builder::new();
            builder.filter_level(level);
            builder
        }
        None => Builder::from_env(Env::default().default_filter_or("info")),
    };
    if stderr_is_the_journal() {
        // The journal stamps each line itself.
        builder.format_timestamp(None);
    }
    builder.init();
}

/// systemd.exec(5), `JOURNAL_STREAM`: "device:inode" of the journal's end of stderr.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
