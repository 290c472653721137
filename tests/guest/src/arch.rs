//! What differs from one guest architecture to another.

use std::env::consts::ARCH;

use anyhow::{Context, Result};

/// A guest architecture: how its kernel is built and its machine is started.
#[derive(Debug)]
pub struct Arch {
    /// Its name, as Rust has it, and in the names of cache entries.
    pub name: &'static str,
    /// Debian's name of it.
    pub debian: &'static str,
    /// GNU's name of it: of the directory with its libraries, and before the
    /// names of the programs that build for it elsewhere.
    pub triplet: &'static str,
    /// The directory that programs name their loader in.
    pub loader_directory: &'static str,
    /// The loader of programs that are linked to libraries.
    pub loader: &'static str,
    /// The QEMU program that emulates it.
    pub qemu: &'static str,
    /// The Debian package with that program.
    pub qemu_package: &'static str,
    /// QEMU's options for the machine and its CPU.
    pub machine: &'static [&'static str],
    /// Whether the machine tells of itself in a device tree, in which more can
    /// be said.
    pub has_device_tree: bool,
    /// Whether QEMU has an SCMI device for it, and Linux drivers for that.
    pub has_scmi: bool,
    /// The kernel's name for the console on the first serial port.
    pub console: &'static str,
    /// More words for its kernel's command line.
    pub boot_options: &'static str,
    /// Its name in the kernel's `ARCH=`.
    pub kernel: &'static str,
    /// The compiler that builds the kernel on another architecture, and the
    /// Debian package with it.
    pub cross_compiler: (&'static str, &'static str),
    /// The make target of the kernel image.
    pub image_target: &'static str,
    /// Where the build leaves the image, inside its directory.
    pub image_path: &'static str,
    /// What the configuration of its kernels has besides that of the others.
    pub fragment: &'static str,
}

impl Arch {
    /// A 64-bit PC. It boots fastest.
    pub const X86_64: Self = Self {
        name: "x86_64",
        debian: "amd64",
        triplet: "x86_64-linux-gnu",
        loader_directory: "lib64",
        loader: "ld-linux-x86-64.so.2",
        qemu: "qemu-system-x86_64",
        qemu_package: "qemu-system-x86",
        machine: &["-machine", "q35,memory-backend=mem", "-cpu", "qemu64"],
        has_device_tree: false,
        has_scmi: false,
        console: "ttyS0",
        // Linux looks at the boot whether interrupts of its timer come, for some ticks, and panics
        // when QEMU was given no time to make any.
        boot_options: "no_timer_check",
        kernel: "x86_64",
        cross_compiler: ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
        image_target: "bzImage",
        image_path: "arch/x86/boot/bzImage",
        fragment: include_str!("../kernels/x86_64.config"),
    };

    /// A 64-bit Arm board: QEMU's `virt`. It alone has SCMI.
    pub const AARCH64: Self = Self {
        name: "aarch64",
        debian: "arm64",
        triplet: "aarch64-linux-gnu",
        loader_directory: "lib",
        loader: "ld-linux-aarch64.so.1",
        qemu: "qemu-system-aarch64",
        qemu_package: "qemu-system-arm",
        machine: &["-machine", "virt,memory-backend=mem", "-cpu", "cortex-a57"],
        has_device_tree: true,
        has_scmi: true,
        console: "ttyAMA0",
        boot_options: "",
        kernel: "arm64",
        cross_compiler: ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        image_target: "Image",
        image_path: "arch/arm64/boot/Image",
        fragment: include_str!("../kernels/aarch64.config"),
    };

    /// All of them.
    pub const ALL: &'static [&'static Self] = &[&Self::X86_64, &Self::AARCH64];

    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().copied().find(|arch| arch.name == name)
    }

    /// The one that this machine is of.
    pub(crate) fn own() -> Result<&'static Self> {
        Self::named(ARCH).with_context(|| {
            format!("QEMU is run on x86_64 and aarch64 machines; this one is {ARCH}")
        })
    }

    /// Whether this machine is of it.
    pub(crate) fn is_own(&self) -> bool {
        self.name == ARCH
    }
}
