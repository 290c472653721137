//! Debian's own kernel, for a guest that is wanted at once: it has been built already.
//!
//! It lacks the drivers of some devices. These are built of the kernel's source as modules, against
//! the headers that Debian built the kernel with, in seconds. Everything is unpacked from packages,
//! what builds the modules too where the machine lacks it, and nothing is installed.
//!
//! Tests have a kernel of their own (see [`kernel`](super::kernel)): this one boots slowly, and not
//! all drivers can be built this way.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::apt::Tool;
use super::cache::{Cache, Entry, LockedCache};
use super::kernel::Kernel;
use super::packages::{Packages, Pin, deb_version};
use super::progress::Progress;
use super::together;
use crate::arch::Arch;

/// The series, of Debian 12's backports and updates: that of Debian 13.
const SERIES: &str = "6.12";
const SOURCE: &str = "linux-source-6.12";

/// Prints the archive of the source out of its package `$1`, and unpacks the files behind `$2`. It
/// is read only as far as they are.
const EXTRACT: &str = "\
package=$1 source=$2
shift 2
dpkg-deb --fsys-tarfile \"$package\" | tar -xO \"./usr/src/$source.tar.xz\" | xz -dc |
    tar -x --strip-components=1 --occurrence=1 -f - \"$@\"";

/// Unpacks the files behind the package `$1`.
const TAKE: &str = "\
package=$1
shift
dpkg-deb --fsys-tarfile \"$package\" | tar -x --wildcards -f - \"$@\"";

/// What else builds modules, on a machine that may lack it.
const TOOLS: [(Pin, Tool); 3] = [
    (
        Pin {
            package: "make",
            version: "4.3-*",
        },
        Tool::program("make", "make"),
    ),
    (
        Pin {
            package: "libelf1",
            version: "0.188-*",
        },
        Tool::file("libelf1", "/usr/lib/x86_64-linux-gnu/libelf.so.1"),
    ),
    (
        Pin {
            package: "xz-utils",
            version: "5.4.*",
        },
        Tool::program("xz-utils", "xz"),
    ),
];
/// The series of the compiler that the kernels were built with.
const COMPILER: &str = "4:12.2.*";

/// To be counted up when the way of building changes what comes out.
const RECIPE: &str = "recipe 1";

/// What a guest's kernel is made of.
struct Stock {
    /// Drivers that Debian has as modules, and what they depend on.
    shipped: &'static [&'static str],
    /// Those that it lacks.
    built: &'static [Driver],
}

/// A driver that is built as a module.
struct Driver {
    module: &'static str,
    /// Its files in the source. The first is compiled, the others are what it includes.
    files: &'static [&'static str],
}

const I2C: Driver = Driver {
    module: "i2c-virtio",
    files: &["drivers/i2c/busses/i2c-virtio.c"],
};
const GPIO: Driver = Driver {
    module: "gpio-virtio",
    files: &["drivers/gpio/gpio-virtio.c"],
};
/// SCMI's transport. What it carries messages for is in Debian's kernels for Arm.
const SCMI: Driver = Driver {
    module: "scmi_transport_virtio",
    files: &[
        "drivers/firmware/arm_scmi/transports/virtio.c",
        "drivers/firmware/arm_scmi/common.h",
        "drivers/firmware/arm_scmi/notify.h",
        "drivers/firmware/arm_scmi/protocols.h",
    ],
};

impl Stock {
    fn of(arch: &Arch) -> Self {
        if !arch.has_scmi {
            return Self {
                shipped: &["virtio-rng", "i2c-dev", "at24", "lm75"],
                built: &[I2C, GPIO],
            };
        }
        Self {
            shipped: &[
                "virtio-rng",
                "i2c-dev",
                "at24",
                "lm75",
                "industrialio",
                "kfifo_buf",
                "cpufreq_userspace",
            ],
            built: &[
                I2C,
                GPIO,
                Driver {
                    module: "scmi-hwmon",
                    files: &["drivers/hwmon/scmi-hwmon.c"],
                },
                Driver {
                    module: "scmi_iio",
                    files: &["drivers/iio/common/scmi_sensors/scmi_iio.c"],
                },
                Driver {
                    module: "scmi-cpufreq",
                    files: &["drivers/cpufreq/scmi-cpufreq.c"],
                },
                Driver {
                    module: "scmi-regulator",
                    files: &["drivers/regulator/scmi-regulator.c"],
                },
                // Consumers whose voltage a user sets, and that he switches.
                Driver {
                    module: "virtual",
                    files: &["drivers/regulator/virtual.c"],
                },
                Driver {
                    module: "userspace-consumer",
                    files: &["drivers/regulator/userspace-consumer.c"],
                },
                // The last: with it come the devices.
                SCMI,
            ],
        }
    }

    /// What kbuild is told of the modules.
    fn kbuild(&self) -> String {
        let lines = self.built.iter().map(|Driver { module, files }| {
            let object = files[0].replace(".c", ".o");
            format!("obj-m += {module}.o\n{module}-y := {object}\n")
        });
        lines.collect()
    }
}

/// Does something with the cache's entry for a kernel.
fn with_entry<T>(arch: &Arch, work: impl FnOnce(&Entry<'_>) -> T) -> T {
    let stock = Stock::of(arch);
    let files = stock.built.iter().flat_map(|driver| driver.files);
    let made_of: Vec<_> = stock.shipped.iter().chain(files).copied().collect();
    let made_of = [&[SERIES, RECIPE], made_of.as_slice()].concat();
    work(&Entry {
        what: format!("stock-kernel-{}", arch.name),
        made_of: &made_of,
    })
}

/// The kernel, when it is in the cache.
pub(crate) fn find(arch: &Arch, cache: &Cache) -> Result<Option<Kernel>> {
    let path = with_entry(arch, |entry| cache.find(entry))?;
    Ok(path.map(|path| Kernel {
        image: path.join("image"),
        modules: path.join("modules"),
        stock: true,
    }))
}

/// Puts the kernel into the cache unless it is there. `own` are the machine's packages, `foreign`
/// the guest's.
pub(crate) fn make(
    arch: &Arch,
    cache: &LockedCache,
    own: &Packages<'_>,
    foreign: &Packages<'_>,
    progress: &Progress,
) -> Result<()> {
    if find(arch, cache.cache())?.is_some() {
        return Ok(());
    }
    let work = cache.temporary()?;
    // `linux-image-6.12.1+deb12-amd64`.
    let image = foreign.stands_for(&format!("linux-image-{SERIES}-{}", arch.debian))?;
    let release = image
        .strip_prefix("linux-image-")
        .with_context(|| format!("{image} is no kernel"))?;
    let making = Making {
        arch,
        stock: Stock::of(arch),
        release,
        directory: work.path(),
        own,
        foreign,
        progress,
    };
    let version = making.run()?;
    with_entry(arch, |entry| cache.publish(&making.made(), entry, &version))
}

/// A kernel that is being made in a directory.
struct Making<'a> {
    arch: &'a Arch,
    stock: Stock,
    /// What `uname -r` will say in the guest.
    release: &'a str,
    directory: &'a Path,
    own: &'a Packages<'a>,
    foreign: &'a Packages<'a>,
    progress: &'a Progress,
}

impl Making<'_> {
    /// Makes it, and says its version.
    fn run(&self) -> Result<String> {
        fs::create_dir_all(self.made().join("modules"))?;
        let mut version = String::new();
        together(&mut [
            &mut || {
                version = self.unpack_image()?;
                Ok(())
            },
            &mut || {
                together(&mut [
                    &mut || self.unpack_source(),
                    &mut || self.unpack_headers(),
                    &mut || self.unpack_tools(),
                ])?;
                self.build()
            },
        ])?;
        self.collect().context("cannot keep the kernel")?;
        Ok(version)
    }

    fn made(&self) -> PathBuf {
        self.directory.join("made")
    }

    fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    fn source(&self) -> PathBuf {
        self.directory.join("source")
    }

    /// The root of what the machine lacks for building modules.
    fn tools(&self) -> PathBuf {
        self.directory.join("tools")
    }

    /// The root of the headers' packages.
    fn headers(&self) -> PathBuf {
        self.directory.join("headers")
    }

    /// Takes the kernel and the modules that are wanted out of its package, which has 4000.
    fn unpack_image(&self) -> Result<String> {
        let Self { release, .. } = self;
        let package = self.directory.join("image-package");
        let title = format!("Getting Debian's Linux {release} (100 MB)");
        let name = format!("linux-image-{release}");
        let package = self.foreign.download_as(&title, &name, &package)?;
        let title = format!("Unpacking what is needed of {name}");
        self.progress.step(&title, |step| {
            let mut command = Command::new("sh");
            command.args(["-c", TAKE, "sh"]).arg(&package);
            command.arg(format!("./boot/vmlinuz-{release}"));
            let modules = self.stock.shipped.iter();
            command.args(modules.map(|module| format!("*/{module}.ko.xz")));
            fs::create_dir(self.image())?;
            let log = self.directory.join("image.log");
            step.command(command.current_dir(self.image()), &log)
        })?;
        deb_version(&package)
    }

    fn unpack_headers(&self) -> Result<()> {
        let Self { release, arch, .. } = self;
        let title = format!("Getting the headers of Linux {release} (17 MB)");
        let version = release.strip_suffix(&format!("-{}", arch.debian));
        let version = version.with_context(|| format!("{release} is not for {}", arch.debian))?;
        let headers = format!("linux-headers-{release}");
        let common = format!("linux-headers-{version}-common");
        self.foreign
            .unpack_as(&title, &[&headers, &common], &self.headers())?;
        // Its programs run here, whatever they build for.
        let title = format!("Getting what builds modules of Linux {version}");
        let programs = format!("linux-kbuild-{version}");
        self.own.unpack_as(&title, &[&programs], &self.headers())?;
        Ok(())
    }

    /// Takes the drivers' files out of the source. Its archive is read only as far as they are.
    fn unpack_source(&self) -> Result<()> {
        let package = self.directory.join("package");
        let title = format!("Getting the source of Linux {SERIES} (150 MB)");
        let own = self.own.download_as(&title, SOURCE, &package)?;
        let source = self.source();
        fs::create_dir(&source)?;
        let title = "Taking the drivers that it lacks out of the source";
        self.progress.step(title, |step| {
            let mut command = Command::new("sh");
            command.args(["-c", EXTRACT, "sh"]).arg(own).arg(SOURCE);
            let files = self.stock.built.iter().flat_map(|driver| driver.files);
            let files: BTreeSet<_> = files.map(|file| format!("{SOURCE}/{file}")).collect();
            command.args(files).current_dir(&source);
            step.command(&mut command, &self.directory.join("extract.log"))
        })?;
        fs::remove_dir_all(&package)?;
        Ok(())
    }

    /// Unpacks the compiler, make and libraries where the machine lacks them.
    fn unpack_tools(&self) -> Result<()> {
        let (program, package) = match self.arch.is_own() {
            true => ("gcc-12", "gcc"),
            false => self.arch.cross_compiler,
        };
        let compiler = Pin {
            package,
            version: COMPILER,
        };
        let tools = [(compiler, Tool::program(package, program))];
        let tools = tools.into_iter().chain(TOOLS);
        let missing: Vec<_> = tools
            .filter(|(_, tool)| !tool.is_there())
            .map(|(pin, _)| pin)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = missing.iter().map(|pin| pin.package).collect();
        let title = format!("Getting {}", names.join(", "));
        self.own
            .unpack_whole(&title, &missing, &self.tools())
            .map(drop)
    }

    fn build(&self) -> Result<()> {
        let source = self.source();
        fs::write(source.join("Kbuild"), self.stock.kbuild())?;
        let headers = self.headers().join("usr/src");
        let own = headers.join(format!("linux-headers-{}", self.release));
        // It is one line that includes that of all architectures, by the path of an installed one.
        let makefile = own.join("Makefile");
        let text = fs::read_to_string(&makefile).context("the headers have no Makefile")?;
        let text = text.replace("/usr/src", &headers.display().to_string());
        fs::write(&makefile, text)?;
        // Where it is, types are described for BPF, by a program that is not.
        let described = own.join("vmlinux");
        if described.exists() {
            fs::remove_file(described)?;
        }
        let title = format!("Building these {} drivers", self.stock.built.len());
        self.progress.step(&title, |step| {
            let mut command = Command::new("make");
            let jobs = thread::available_parallelism().map_or(1, usize::from);
            command.arg(format!("-j{jobs}")).arg("-C").arg(&own);
            let mut modules = OsString::from("M=");
            modules.push(&source);
            command.arg(modules).args(["KCFLAGS=-g0", "modules"]);
            for variable in ["MAKEFLAGS", "CROSS_COMPILE", "KCONFIG_CONFIG", "KCFLAGS"] {
                command.env_remove(variable);
            }
            self.find_tools(&mut command)?;
            step.command(&mut command, &self.directory.join("build.log"))
        })
    }

    /// Lets a command find what was unpacked behind what the machine has.
    fn find_tools(&self, command: &mut Command) -> Result<()> {
        let own = env::var_os("PATH").unwrap_or_default();
        let programs = self.tools().join("usr/bin");
        let path = env::join_paths(env::split_paths(&own).chain([programs]));
        command.env("PATH", path.context("PATH has a colon in a name")?);
        let libraries = self.tools().join("usr/lib").join(Arch::own()?.triplet);
        if libraries.exists() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        Ok(())
    }

    /// Puts what a guest boots into the directory of what is made.
    fn collect(&self) -> Result<()> {
        let made = self.made();
        let image = self.image();
        let kernel = image.join(format!("boot/vmlinuz-{}", self.release));
        fs::rename(&kernel, made.join("image"))
            .with_context(|| format!("there is no {}", kernel.display()))?;
        let mut modules = Modules {
            shipped: BTreeMap::new(),
            to: made.join("modules"),
            order: Vec::new(),
        };
        modules.look(&image.join("lib/modules").join(self.release))?;
        for name in self.stock.shipped {
            modules.add(name)?;
        }
        for Driver { module, .. } in self.stock.built {
            let path = self.source().join(format!("{module}.ko"));
            let content = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
            modules.write(module, &content)?;
        }
        modules.finish()
    }
}

/// The modules of a guest.
struct Modules {
    /// Those of Debian's, compressed, by the names that modules are asked for by.
    shipped: BTreeMap<String, PathBuf>,
    to: PathBuf,
    /// The names of those that the guest has, each behind what it depends on.
    order: Vec<String>,
}

impl Modules {
    /// Takes note of the modules in a directory and below.
    fn look(&mut self, directory: &Path) -> Result<()> {
        let entries = fs::read_dir(directory);
        let entries = entries.with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.look(&entry.path())?;
            } else if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(".ko.xz") {
                self.shipped.insert(canonical(name), entry.path());
            }
        }
        Ok(())
    }

    /// Gives the guest a module of Debian's, and what it depends on.
    fn add(&mut self, name: &str) -> Result<()> {
        let name = canonical(name);
        if self.order.contains(&name) {
            return Ok(());
        }
        let path = self.shipped.get(&name);
        let path = path.with_context(|| format!("Debian has no module {name}"))?;
        let output = Command::new("xz").arg("-dc").arg(path).output();
        let output = output.context("cannot run xz")?;
        ensure!(
            output.status.success(),
            "cannot decompress {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        self.write(&name, &output.stdout)
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        for needed in depends(content) {
            // One that was built may depend on another.
            if !self.order.contains(&canonical(needed)) {
                self.add(needed)?;
            }
        }
        let name = canonical(name);
        fs::write(self.to.join(format!("{name}.ko")), content)?;
        self.order.push(name);
        Ok(())
    }

    /// Says in which order they are loaded.
    fn finish(self) -> Result<()> {
        let lines = self.order.iter().map(|name| format!("{name}.ko\n"));
        fs::write(self.to.join("load"), lines.collect::<String>())?;
        Ok(())
    }
}

/// A module's name as the kernel has it.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The names of the modules that one depends on, out of its own description of itself.
fn depends(module: &[u8]) -> impl Iterator<Item = &str> {
    const KEY: &[u8] = b"\0depends=";
    let place = module.windows(KEY.len()).position(|window| window == KEY);
    let value = place.map_or(&[][..], |place| &module[place + KEY.len()..]);
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let value = str::from_utf8(value).unwrap_or_default();
    value.split(',').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_a_module_depends_on_is_found_in_it() {
        let module = b"ELF\0license=GPL\0depends=regmap-i2c,nvmem\0name=x\0depends=y\0";
        assert_eq!(depends(module).collect::<Vec<_>>(), ["regmap-i2c", "nvmem"]);
        assert_eq!(depends(b"ELF\0depends=\0name=x\0").count(), 0);
        assert_eq!(depends(b"ELF").count(), 0);
    }

    #[test]
    fn a_module_is_loaded_behind_what_it_depends_on() {
        let directory = TempDir::new().unwrap();
        let shipped = directory.path().join("shipped/kernel");
        let to = directory.path().join("to");
        fs::create_dir_all(&shipped).unwrap();
        fs::create_dir(&to).unwrap();
        for (name, depends) in [("a-b", ""), ("c", "a-b"), ("unwanted", "")] {
            let path = shipped.join(format!("{name}.ko"));
            fs::write(&path, format!("ELF\0depends={depends}\0")).unwrap();
            assert!(Command::new("xz").arg(path).status().unwrap().success());
        }
        let mut modules = Modules {
            shipped: BTreeMap::new(),
            to: to.clone(),
            order: Vec::new(),
        };
        modules.look(&directory.path().join("shipped")).unwrap();
        modules.add("c").unwrap();
        modules.write("own-one", b"ELF\0depends=c,a_b\0").unwrap();
        let error = modules.add("none").unwrap_err().to_string();
        assert_eq!(error, "Debian has no module none");
        modules.finish().unwrap();
        let load = fs::read_to_string(to.join("load")).unwrap();
        assert_eq!(load, "a_b.ko\nc.ko\nown_one.ko\n");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 4);
    }

    #[test]
    fn kbuild_makes_a_module_of_each_driver() {
        let kbuild = Stock::of(&Arch::X86_64).kbuild();
        let lines = "obj-m += gpio-virtio.o\ngpio-virtio-y := drivers/gpio/gpio-virtio.o\n";
        assert!(kbuild.ends_with(lines), "{kbuild}");
    }
}
