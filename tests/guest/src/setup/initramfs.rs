//! The guest's root file system: busybox, tools, the kernel's modules and our
//! init.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use super::cpio::Archive;
use super::{Images, tools};

/// The guest's first process.
const INIT: &str = include_str!("init.sh");
/// Directories that programs or mounts need.
const DIRECTORIES: [&str; 7] = ["bin", "dev", "modules", "proc", "root", "sys", "tmp"];

/// Writes the initramfs to the file `to`.
pub(crate) fn write(to: &Path, images: &Images) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for directory in DIRECTORIES.into_iter().chain(tools::DIRECTORIES) {
        archive.directory(directory)?;
    }
    archive.program("init", INIT.as_bytes())?;
    archive.program("bin/busybox", &fs::read(&images.busybox)?)?;
    for applet in ["sh", "mount"] {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    for (name, path) in tools::files(&images.tools) {
        archive.program(name, &fs::read(path)?)?;
    }
    for module in fs::read_dir(&images.modules)? {
        let module = module?;
        let name = module.file_name();
        let name = name.to_string_lossy();
        archive.program(&format!("modules/{name}"), &fs::read(module.path())?)?;
    }
    archive.finish()
}
