//! The guest's root file system: busybox, tools, the kernel's modules and our
//! init.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use super::cpio::Archive;
use super::{Images, tools};
use crate::programs::Programs;

/// The guest's first process.
const INIT: &str = include_str!("init.sh");
/// Directories that programs or mounts need.
const DIRECTORIES: [&str; 7] = ["bin", "dev", "modules", "proc", "root", "sys", "tmp"];

/// Writes the initramfs, with these programs in it, to the file `to`.
pub(crate) fn write(to: &Path, images: &Images, programs: &Programs) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    let own: BTreeSet<_> = programs.files().collect();
    let directories = DIRECTORIES.into_iter().chain(tools::DIRECTORIES);
    for directory in directories.collect::<BTreeSet<_>>().union(&parents(&own)) {
        archive.directory(directory)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.program("bin/busybox", &fs::read(&images.busybox)?)?;
    for applet in ["sh", "mount"] {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let tools = tools::files(images.arch, &images.tools);
    // This machine's C library runs the tools too; theirs may be too old for the programs.
    for (name, path) in tools.filter(|(name, _)| !own.contains(name.as_str())) {
        archive.program(&name, &fs::read(path)?)?;
    }
    for name in own {
        archive.program(name, &fs::read(Path::new("/").join(name))?)?;
    }
    for module in fs::read_dir(&images.modules)? {
        let module = module?;
        let name = module.file_name();
        let name = name.to_string_lossy();
        archive.program(&format!("modules/{name}"), &fs::read(module.path())?)?;
    }
    archive.finish()
}

/// The directories that these are in, from the root on.
fn parents<'a>(paths: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    let ends = |path: &'a str| path.match_indices('/').map(|(end, _)| end);
    paths
        .iter()
        .flat_map(|&path| ends(path).map(move |end| &path[..end]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let parents = parents(&BTreeSet::from(["a/b/c", "a/b/d", "a/x/y", "z"]));
        assert_eq!(parents.into_iter().collect::<Vec<_>>(), ["a", "a/b", "a/x"]);
    }
}
