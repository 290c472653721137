//! GPIO chips of the kernel without hardware: its `gpio-sim` driver, by configfs.
//!
//! For tests in the host guest, as root. The kernel's documentation is
//! `Documentation/admin-guide/gpio/gpio-sim.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the driver's chips are made.
const CONFIGFS: &str = "/sys/kernel/config/gpio-sim";
/// Where they are when they live.
const DEVICES: &str = "/sys/devices/platform";

/// A chip of the kernel, gone when dropped.
#[derive(Debug)]
pub struct GpioSim {
    config: PathBuf,
    lines: usize,
    device: PathBuf,
    sysfs: PathBuf,
}

impl GpioSim {
    /// A chip with a line for each of these names; an empty one is none. The chip's label is
    /// `label`, which no other chip has.
    pub fn new(label: &str, names: &[&str]) -> Self {
        let config = Path::new(CONFIGFS).join(label);
        let bank = config.join("bank");
        make_directory(&config);
        make_directory(&bank);
        write(&bank.join("label"), label);
        write(&bank.join("num_lines"), &names.len().to_string());
        for (number, name) in names.iter().enumerate() {
            let line = line_directory(&bank, number);
            make_directory(&line);
            write(&line.join("name"), name);
        }
        // The chip is there when this returns.
        write(&config.join("live"), "1");
        let chip = read(&bank.join("chip_name"));
        let device = read(&config.join("dev_name"));
        Self {
            config,
            lines: names.len(),
            device: Path::new("/dev").join(&chip),
            sysfs: Path::new(DEVICES).join(device).join(chip),
        }
    }

    /// Its character device, `/dev/gpiochipN`.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// What is outside of the chip pulls a line up or down. An input follows it, with an edge
    /// when it changes.
    pub fn pull(&self, line: usize, high: bool) {
        let level = if high { "pull-up" } else { "pull-down" };
        write(&self.line(line).join("pull"), level);
    }

    /// Whether a line is high: what an output drives, and else what pulls.
    pub fn is_high(&self, line: usize) -> bool {
        match &read(&self.line(line).join("value"))[..] {
            "0" => false,
            "1" => true,
            other => panic!("line {line} of gpio-sim is {other:?}"),
        }
    }

    fn line(&self, line: usize) -> PathBuf {
        self.sysfs.join(format!("sim_gpio{line}"))
    }

    fn remove(&self) -> io::Result<()> {
        fs::write(self.config.join("live"), "0")?;
        let bank = self.config.join("bank");
        for line in 0..self.lines {
            fs::remove_dir(line_directory(&bank, line))?;
        }
        fs::remove_dir(bank)?;
        fs::remove_dir(&self.config)
    }
}

impl Drop for GpioSim {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("cannot remove {}: {error}", self.config.display());
        }
    }
}

fn line_directory(bank: &Path, line: usize) -> PathBuf {
    bank.join(format!("line{line}"))
}

fn make_directory(path: &Path) {
    fs::create_dir(path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: is this the host guest, with gpio-sim?",
            path.display()
        )
    });
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn read(path: &Path) -> String {
    let text = fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}
