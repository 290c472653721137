//! What differs from one guest architecture to another.

use std::env::consts::ARCH;

/// A guest architecture: how its kernel is built and its machine is started.
#[derive(Debug)]
pub struct Arch {
    /// Its name, in the kernel's `ARCH=` and in the names of cache entries.
    pub name: &'static str,
    /// Debian's name of it.
    pub debian: &'static str,
    /// The QEMU program that emulates it.
    pub qemu: &'static str,
    /// The Debian package with that program.
    pub qemu_package: &'static str,
    /// QEMU's options for the machine and its CPU.
    pub machine: &'static [&'static str],
    /// The kernel's name for the console on the first serial port.
    pub console: &'static str,
    /// The make target of the kernel image.
    pub image_target: &'static str,
    /// Where the build leaves the image, inside the source tree.
    pub image_path: &'static str,
    /// What the kernel's configuration has on top of `tinyconfig`.
    pub fragment: &'static str,
}

impl Arch {
    /// A 64-bit PC.
    pub const X86_64: Self = Self {
        name: "x86_64",
        debian: "amd64",
        qemu: "qemu-system-x86_64",
        qemu_package: "qemu-system-x86",
        machine: &["-machine", "q35,memory-backend=mem", "-cpu", "qemu64"],
        console: "ttyS0",
        image_target: "bzImage",
        image_path: "arch/x86/boot/bzImage",
        fragment: include_str!("../kernels/x86_64.config"),
    };

    /// Whether this machine is of it.
    pub(crate) fn is_own(&self) -> bool {
        self.name == ARCH
    }
}
