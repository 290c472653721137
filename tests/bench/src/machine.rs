//! The machine, for the report: figures mean little without it.

use std::fmt;
use std::fs;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};

/// What the figures depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    cpu: String,
    cpus: usize,
    virtualized: bool,
    kernel: String,
    rustc: String,
}

impl Machine {
    /// This one.
    pub(crate) fn find() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        Ok(Self {
            cpu: model(&cpuinfo).unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            cpus: thread::available_parallelism()?.get(),
            virtualized: is_virtualized(&cpuinfo),
            kernel: format!("Linux {}", plain_release(&release)),
            rustc: compiler()?,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores", self.cpu, self.cpus)?;
        if self.virtualized {
            f.write_str(" of a virtual machine")?;
        }
        write!(f, ", {}, {}", self.kernel, self.rustc)
    }
}

/// The first CPU's name and, as the name can be a general one, its model's number.
fn model(cpuinfo: &str) -> Option<String> {
    let name = field(cpuinfo, "model name")?;
    let numbers = field(cpuinfo, "cpu family").zip(field(cpuinfo, "model"));
    Some(match numbers {
        Some((family, model)) => format!("{name} (family {family}, model {model})"),
        None => name.to_owned(),
    })
}

fn is_virtualized(cpuinfo: &str) -> bool {
    field(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"))
}

/// The numbers of a kernel's release; what follows is the distribution's.
fn plain_release(release: &str) -> &str {
    release.split('-').next().unwrap_or(release)
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// The compiler of the daemons, as it says itself, without its commit.
pub(crate) fn compiler() -> Result<String> {
    let output = Command::new("rustc")
        .arg("--version")
        .output()
        .context("cannot run rustc")?;
    let version = String::from_utf8_lossy(&output.stdout);
    let plain = version.split('(').next().unwrap_or_default();
    Ok(plain.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_named() {
        let x86 = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Intel(R) \
            Xeon(R)\nflags\t\t: fpu hypervisor lahf_lm\n\nprocessor\t: 1\n";
        assert_eq!(
            model(x86).as_deref(),
            Some("Intel(R) Xeon(R) (family 6, model 207)")
        );
        assert!(is_virtualized(x86));
        assert_eq!(model("processor\t: 0\nBogoMIPS\t: 50.00\n"), None);
        assert_eq!(plain_release("6.12.38-1-amd64"), "6.12.38");
    }
}
