//! Shared objects of C: something of Debian's, with a file of our own that makes it loadable.
//!
//! What is Debian's is built or used on the user's machine only. Nothing of it is in this
//! repository, whatever its license.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::{Apt, Tool};
use super::cache::{Cache, Entry, LockedCache, Purpose};
use super::packages::{Packages, Pin};
use super::progress::Progress;

/// The file in the cache entry.
const FILE: &str = "library.so";
/// Where the origin's libraries are in the cache entry.
const ROOT: &str = "root";
/// To be counted up when the way of building changes what comes out.
const RECIPE: &str = "recipe 1";

const TOOLS: [Tool; 3] = [
    Tool::program("gcc", "gcc"),
    Tool::file("libc6-dev", "/usr/include/stdio.h"),
    Tool::program("xz-utils", "xz"),
];

/// A shared object.
#[derive(Debug)]
pub struct Library {
    /// What it is called in the cache.
    pub name: &'static str,
    /// Our own source.
    pub source: &'static str,
    /// What else it is made of.
    pub origin: Origin,
    /// What the compiler is given behind our own source. `{origin}` stands for the directory with
    /// the source or with the packages that the build needs, `{root}` for that with the libraries.
    pub options: &'static [&'static str],
}

/// Where Debian has it.
#[derive(Debug)]
pub enum Origin {
    /// In the source of one of the backports.
    Source {
        /// The source package.
        package: &'static str,
        /// The series of upstream's versions.
        version: &'static str,
        /// What of it is unpacked: tar's patterns.
        files: &'static [&'static str],
    },
    /// In packages, with their series of versions, which are unpacked and not installed.
    Packages {
        /// What is loaded. The first one's version is that of the library.
        libraries: &'static [(&'static str, &'static str)],
        /// What only the build needs.
        headers: &'static [(&'static str, &'static str)],
    },
}

/// The library, built unless it is in the cache.
///
/// # Errors
/// When something cannot be downloaded, installed or built.
pub fn build_library(library: &Library, progress: &Progress) -> Result<PathBuf> {
    let cache = Cache::open()?;
    if let Some(path) = library.find(&cache)? {
        return Ok(path);
    }
    let cache = cache.lock(Purpose::Programs, progress)?;
    // Another process may have built it before it let go of the lock.
    if library.find(cache.cache())?.is_none() {
        library.build(&cache, progress)?;
    }
    let found = library.find(cache.cache())?;
    found.with_context(|| format!("{} was built, but is not in the cache", library.name))
}

impl Library {
    fn find(&self, cache: &Cache) -> Result<Option<PathBuf>> {
        let options = self.options.join(" ");
        let found = cache.find(&self.entry(&self.made_of(&options)))?;
        Ok(found.map(|path| path.join(FILE)))
    }

    fn made_of<'a>(&self, options: &'a str) -> [&'a str; 3] {
        [self.source, options, RECIPE]
    }

    fn entry<'a>(&self, made_of: &'a [&'a str]) -> Entry<'a> {
        Entry {
            what: self.name.to_owned(),
            made_of,
        }
    }

    fn publish(&self, made: &Path, cache: &LockedCache, version: &str) -> Result<()> {
        let options = self.options.join(" ");
        cache.publish(made, &self.entry(&self.made_of(&options)), version)
    }

    fn build(&self, cache: &LockedCache, progress: &Progress) -> Result<()> {
        let apt = Apt::new(cache, progress);
        let name = self.name;
        apt.install_tools(&format!("building {name}"), &TOOLS)?;
        let work = cache.temporary()?;
        let made = work.path().join("made");
        let origin = work.path().join("origin");
        for directory in [&made, &origin] {
            fs::create_dir(directory)?;
        }
        let root = made.join(ROOT);
        let version = match &self.origin {
            Origin::Source {
                package,
                version,
                files,
            } => {
                let pin = Pin { package, version };
                let tarball = apt.packages().download_source(&pin, work.path())?;
                let title = format!("Unpacking what is needed of {package} {}", tarball.version);
                progress.step(&title, |step| {
                    let mut command = Command::new("tar");
                    command.arg("-xf").arg(&tarball.path).arg("-C").arg(&origin);
                    command.args(["--strip-components=1", "--wildcards"]);
                    step.command(command.args(*files), &work.path().join("log"))
                })?;
                tarball.version
            }
            Origin::Packages { libraries, headers } => {
                unpack(headers, &origin, apt.packages())?;
                let versions = unpack(libraries, &root, apt.packages())?;
                versions.into_iter().next().context("no package")?
            }
        };
        let source = work.path().join("library.c");
        fs::write(&source, self.source)?;
        progress.step(&format!("Building {name} {version}"), |step| {
            let mut command = Command::new("gcc");
            command.args(["-shared", "-fPIC", "-o"]);
            command.arg(made.join(FILE)).arg(&source);
            command.args(self.options(&origin, &root));
            step.command(&mut command, &work.path().join("log"))
        })?;
        self.publish(&made, cache, &version)
    }

    fn options(&self, origin: &Path, root: &Path) -> impl Iterator<Item = String> {
        let (origin, root) = (origin.display().to_string(), root.display().to_string());
        let options = self.options.iter();
        options.map(move |option| option.replace("{origin}", &origin).replace("{root}", &root))
    }
}

/// Unpacks packages, with their series of versions, into one directory. Their versions.
fn unpack(
    pins: &[(&'static str, &'static str)],
    root: &Path,
    packages: &Packages<'_>,
) -> Result<Vec<String>> {
    let pins = pins.iter();
    pins.map(|&(package, version)| packages.unpack(&Pin { package, version }, root))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: Library = Library {
        name: "library",
        source: "int answer(void) { return 42; }",
        origin: Origin::Packages {
            libraries: &[],
            headers: &[],
        },
        options: &["-I{origin}/include", "-L{root}/lib", "-O2"],
    };

    #[test]
    fn options_name_the_directories_of_a_build() {
        let options: Vec<_> = LIBRARY.options(Path::new("/a"), Path::new("/b")).collect();
        assert_eq!(options, ["-I/a/include", "-L/b/lib", "-O2"]);
    }

    #[test]
    fn a_library_is_found_that_was_made_of_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().to_owned()).unwrap();
        let cache = cache.lock(Purpose::Programs, &Progress::new()).unwrap();
        assert_eq!(LIBRARY.find(cache.cache()).unwrap(), None);
        let work = cache.temporary().unwrap();
        let made = work.path().join("made");
        fs::create_dir(&made).unwrap();
        LIBRARY.publish(&made, &cache, "1:2.3").unwrap();
        let found = LIBRARY.find(cache.cache()).unwrap().unwrap();
        assert!(found.ends_with(FILE) && found.starts_with(directory.path()));
        let other = Library {
            source: "int answer(void) { return 43; }",
            ..LIBRARY
        };
        assert_eq!(other.find(cache.cache()).unwrap(), None);
    }
}
