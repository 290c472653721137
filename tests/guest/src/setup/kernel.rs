//! The guests' kernels, built of Debian's source with a small configuration.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Apt, Tool};
use super::cache::{Cache, Entry, LockedCache};
use super::packages::{Packages, Pin};
use super::progress::{Progress, Step};
use crate::arch::Arch;

/// What the kernels of all architectures and series have.
const COMMON: &str = include_str!("../../kernels/common.config");

/// The variable that names the series of the tests' kernels.
pub const SERIES: &str = "VHOST_DEVICE_TEST_KERNEL";

/// A series of Linux that guests are tested on, and that Debian has the source of.
#[derive(Debug)]
pub struct Series {
    /// Its number, such as `6.12`.
    pub name: &'static str,
    source: Pin,
    /// The source inside the package.
    tarball: &'static str,
    /// What its kernels have besides, as others name it otherwise or do not have it.
    fragment: &'static str,
}

impl Series {
    /// What guests have unless they are told otherwise: the newest, with the drivers of all
    /// devices.
    pub const NEWEST: Self = Self {
        name: "7.3",
        source: Pin {
            package: "linux-source-7.3",
            version: "7.3.*",
        },
        tarball: "usr/src/linux-source-7.3.tar.xz",
        fragment: include_str!("../../kernels/7.3.config"),
    };

    /// What is in the field: Debian 13's own.
    pub const STABLE: Self = Self {
        name: "6.12",
        source: Pin {
            package: "linux-source-6.12",
            version: "6.12.*",
        },
        tarball: "usr/src/linux-source-6.12.tar.xz",
        fragment: include_str!("../../kernels/6.12.config"),
    };

    /// All of them, from the newest.
    pub const ALL: &'static [&'static Self] = &[&Self::NEWEST, &Self::STABLE];

    /// The one with this number.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().copied().find(|series| series.name == name)
    }

    /// The one that the environment names, or else the newest.
    ///
    /// # Errors
    /// When the environment names one that there is not.
    pub fn chosen() -> Result<&'static Self> {
        let Some(name) = env::var_os(SERIES) else {
            return Ok(&Self::NEWEST);
        };
        name.to_str().and_then(Self::named).with_context(|| {
            let names: Vec<_> = Self::ALL.iter().map(|series| series.name).collect();
            format!(
                "{SERIES} is {}; there are kernels of {}",
                name.display(),
                names.join(" and ")
            )
        })
    }

    /// What is in the names of tests that need a newer series than this: `since_7_3`.
    pub fn newer_tests(&self) -> impl Iterator<Item = String> {
        let newer = Self::ALL
            .iter()
            .take_while(|series| series.name != self.name);
        newer.map(|series| format!("since_{}", series.name.replace('.', "_")))
    }

    /// What the configuration has on top of `tinyconfig`.
    fn fragment_for(&self, arch: &Arch) -> String {
        [COMMON, arch.fragment, self.fragment].concat()
    }
}

/// To be counted up when the way of building changes what comes out.
const RECIPE: &str = "recipe 1";

/// What the build runs or includes.
const TOOLS: [Tool; 8] = [
    Tool::program("bc", "bc"),
    Tool::program("bison", "bison"),
    Tool::program("flex", "flex"),
    Tool::program("gcc", "gcc"),
    Tool::file("libelf-dev", "/usr/include/gelf.h"),
    Tool::program("make", "make"),
    Tool::program("perl", "perl"),
    Tool::program("xz-utils", "xz"),
];

/// A kernel in the cache.
pub(crate) struct Kernel {
    /// The image.
    pub(crate) image: PathBuf,
    /// The directory with its modules.
    pub(crate) modules: PathBuf,
    /// Whether it is Debian's own.
    pub(crate) stock: bool,
}

/// The kernel, when it is in the cache.
pub(crate) fn find(arch: &Arch, series: &Series, cache: &Cache) -> Result<Option<Kernel>> {
    let path = with_entry(arch, series, |entry| cache.find(entry))?;
    Ok(path.map(|path| Kernel {
        image: path.join("image"),
        modules: path.join("modules"),
        stock: false,
    }))
}

/// Does something with the cache's entry for it.
fn with_entry<T>(arch: &Arch, series: &Series, work: impl FnOnce(&Entry<'_>) -> T) -> T {
    work(&Entry {
        what: format!("kernel-{}", arch.name),
        made_of: &[series.source.package, &series.fragment_for(arch), RECIPE],
    })
}

/// Builds the kernels that are not in the cache into it, of one unpacked source.
pub(crate) fn build(
    archs: &[&Arch],
    series: &Series,
    cache: &LockedCache,
    apt: &Apt<'_>,
    newer: &Packages<'_>,
    progress: &Progress,
) -> Result<()> {
    let mut missing = Vec::new();
    for &arch in archs {
        if find(arch, series, cache.cache())?.is_none() {
            missing.push(arch);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let foreign = missing.iter().filter(|arch| !arch.is_own());
    let compilers = foreign.map(|arch| {
        let (program, package) = arch.cross_compiler;
        Tool::program(package, program)
    });
    let tools: Vec<_> = TOOLS.into_iter().chain(compilers).collect();
    apt.install_tools("building the guests' kernels", &tools)?;

    let work = cache.temporary()?;
    let package = work.path().join("package");
    let version = newer.unpack(&series.source, &package)?;
    let source = work.path().join("source");
    let log = work.path().join("log");
    let title = format!("Unpacking the source of Linux {version} (1.6 GB)");
    progress.step(&title, |step| {
        unpack(&package.join(series.tarball), &source, step, &log)
    })?;
    for arch in missing {
        let build = Build {
            arch,
            fragment: &series.fragment_for(arch),
            source: &source,
            objects: work.path().join(arch.name),
            log: &log,
        };
        let made = build.run(progress)?;
        with_entry(arch, series, |entry| cache.publish(&made, entry, &version))?;
    }
    let title = "Removing the source and what the builds left";
    progress.step(title, |_| Ok(work.close()?))
}

fn unpack(tarball: &Path, source: &Path, step: &Step<'_>, log: &Path) -> Result<()> {
    fs::create_dir(source)?;
    let mut command = Command::new("tar");
    command.args(["-x", "--xz", "--strip-components=1", "-f"]);
    step.command(command.arg(tarball).arg("-C").arg(source), log)
}

/// A build that is being made.
struct Build<'a> {
    arch: &'a Arch,
    fragment: &'a str,
    source: &'a Path,
    /// The directory for what the build makes; the source stays as it is.
    objects: PathBuf,
    log: &'a Path,
}

impl Build<'_> {
    /// Returns the directory with what a guest boots.
    fn run(&self, progress: &Progress) -> Result<PathBuf> {
        let Self { arch, objects, .. } = self;
        fs::create_dir(objects).context("cannot make a directory for the build")?;
        let title = format!("Configuring the guests' kernel for {}", arch.name);
        progress.step(&title, |step| self.configure(step))?;
        let title = format!(
            "Building the guests' kernel for {}, once (8 minutes on 2 cores)",
            arch.name
        );
        progress.step(&title, |step| self.make(step))?;
        let made = objects.join("made");
        self.collect(&made).context("cannot keep the kernel")?;
        Ok(made)
    }

    /// `tinyconfig`, and what the fragment says on top.
    fn configure(&self, step: &Step<'_>) -> Result<()> {
        step.command(self.make_command().arg("tinyconfig"), self.log)?;
        let path = self.objects.join(".config");
        let tiny = fs::read_to_string(&path).context("cannot read tinyconfig's .config")?;
        fs::write(&path, format!("{tiny}\n{}", self.fragment))?;
        step.command(self.make_command().arg("olddefconfig"), self.log)?;
        let config = fs::read_to_string(&path).context("cannot read the kernel's .config")?;
        let missing = missing_symbols(self.fragment, &config);
        ensure!(
            missing.is_empty(),
            "the configuration of the kernel for {} did not take {}: it does not have them, or \
             something that they depend on is not set; correct the files in tests/guest/kernels",
            self.arch.name,
            missing.join(", ")
        );
        Ok(())
    }

    fn make(&self, step: &Step<'_>) -> Result<()> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut command = self.make_command();
        command.arg(format!("-j{jobs}"));
        command.args([self.arch.image_target, "modules"]);
        step.command(&mut command, self.log)
    }

    fn make_command(&self) -> Command {
        let mut command = Command::new("make");
        command.arg("-C").arg(self.source);
        let mut objects = OsString::from("O=");
        objects.push(&self.objects);
        command.arg(objects);
        command.arg(format!("ARCH={}", self.arch.kernel));
        // An outer make's options, or another kernel's, are not for this one.
        for variable in ["MAKEFLAGS", "CROSS_COMPILE", "KCONFIG_CONFIG", "KCFLAGS"] {
            command.env_remove(variable);
        }
        if !self.arch.is_own() {
            command.arg(format!("CROSS_COMPILE={}-", self.arch.triplet));
        }
        command
    }

    /// Puts what a guest boots into the directory `made`.
    fn collect(&self, made: &Path) -> Result<()> {
        let modules = made.join("modules");
        fs::create_dir_all(&modules)?;
        fs::rename(self.objects.join(self.arch.image_path), made.join("image"))?;
        // A line a module, by the name of its object.
        let order = fs::read_to_string(self.objects.join("modules.order"))?;
        for object in order.lines().map(Path::new) {
            let Some(name) = object.file_stem() else {
                bail!("modules.order has a line that is no object");
            };
            let name = Path::new(name).with_extension("ko");
            let built = self.objects.join(object.with_extension("ko"));
            fs::rename(built, modules.join(name))?;
        }
        Ok(())
    }
}

/// The fragment's lines that set a symbol and are not in the configuration.
fn missing_symbols<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !line.ends_with("=n"))
        .filter(|line| !config.lines().any(|set| set == *line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_need_a_newer_series_are_known_by_their_names() {
        let newer = |series: &Series| series.newer_tests().collect::<Vec<_>>();
        assert!(newer(&Series::NEWEST).is_empty());
        assert_eq!(newer(&Series::STABLE), ["since_7_3"]);
    }

    #[test]
    fn each_series_and_architecture_has_a_kernel_of_its_own() {
        let all = Series::ALL.iter().flat_map(|series| {
            Arch::ALL.iter().map(move |arch| {
                with_entry(arch, series, |entry| entry.made_of.concat() + &entry.what)
            })
        });
        let distinct: std::collections::BTreeSet<_> = all.collect();
        assert_eq!(distinct.len(), Series::ALL.len() * Arch::ALL.len());
    }

    #[test]
    fn symbols_that_the_kernel_did_not_take_are_named() {
        let fragment = "# a comment\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\nCONFIG_D=4\n";
        let config = "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=4\n";
        assert_eq!(missing_symbols(fragment, config), ["CONFIG_B=m"]);
    }
}
