//! Programs of this machine that run in a guest.
//!
//! They are in the guest by the paths that they have here, so that a path that was compiled into
//! one leads to the other there too. What is tested in a guest is thus the very file that is
//! tested here; the C library comes along, where a static build would be another file.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Some programs, and the libraries that they are linked to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs(BTreeSet<String>);

impl Programs {
    /// Adds a program and its libraries.
    pub(crate) fn add(&mut self, path: &Path) -> Result<()> {
        ensure!(path.is_file(), "there is no program {}", path.display());
        self.insert(path.to_str().context("a program's path is not UTF-8")?)?;
        // It fails for a static program, and says so.
        let mut ldd = Command::new("ldd");
        let output = ldd.arg(path).env("LC_ALL", "C").output();
        let output = output.context("cannot run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let missing: Vec<_> = text
            .lines()
            .filter(|line| line.ends_with("not found"))
            .collect();
        ensure!(
            missing.is_empty(),
            "{} lacks libraries: {}",
            path.display(),
            missing.join(",")
        );
        libraries(&text).try_for_each(|library| self.insert(library))
    }

    fn insert(&mut self, path: &str) -> Result<()> {
        let name = path.strip_prefix('/');
        let name = name.with_context(|| format!("{path} does not begin with /"))?;
        self.0.insert(name.to_owned());
        Ok(())
    }

    /// Their files, by paths without the first `/`.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The paths in what `ldd`, or a loader with `--list`, printed: behind `=>`, or alone for the
/// loader.
pub(crate) fn libraries(text: &str) -> impl Iterator<Item = &str> {
    let words = text.lines().flat_map(|line| {
        let found = line.split_once("=>").map_or(line, |(_, found)| found);
        found.split_whitespace().next()
    });
    words.filter(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let text = "\tlinux-vdso.so.1 (0x00007f22)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f22)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f22)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(text).collect::<Vec<_>>(), expected);
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }

    #[test]
    fn a_program_comes_with_what_it_is_linked_to() {
        let own = std::env::current_exe().unwrap();
        let mut programs = Programs::default();
        programs.add(&own).unwrap();
        let files: Vec<_> = programs.files().collect();
        assert!(files.contains(&own.to_str().unwrap().strip_prefix('/').unwrap()));
        assert!(
            files.iter().any(|file| file.contains("libc.so")),
            "{files:?}"
        );
        assert!(programs.add(Path::new("/no such program")).is_err());
    }
}
