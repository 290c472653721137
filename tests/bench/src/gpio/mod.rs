//! The GPIO device, on a chip of the host guest's `gpio-sim`.
//!
//! | module | what lives there |
//! |---|---|
//! | `load` | what is asked for |
//! | `edges` | edges of a line, and how long they take |

mod edges;
mod load;

use std::time::Duration;

use anyhow::{Context, Result};
use vhost_device_guest::setup::Build;

use self::edges::Edges;
use self::load::{Load, ROOM};
use crate::cli::Cli;
use crate::daemon::Daemon;
use crate::host::{Comparison, Figures, Plan, Title};
use crate::load::{Guest, Waiting};
use crate::programs::{self, Side};

/// What both programs are called.
const PROGRAM: &str = "vhost-device-gpio";
/// The number of the only chip, and what both programs understand.
const CHIP: &str = "0";

/// The peer binds C's libgpiod 2, which Debian 12 has in its backports, and makes the bindings with
/// libclang. As a static program it needs neither where it runs.
const PEER: Build = Build {
    packages: &[
        ("libgpiod-dev", "2.1.3-*"),
        ("libgpiod3", "2.1.3-*"),
        ("libclang-14-dev", "1:14.0.6-*"),
        ("libclang1-14", "1:14.0.6-*"),
        ("libllvm14", "1:14.0.6-*"),
        ("libclang-common-14-dev", "1:14.0.6-*"),
    ],
    tools: &["pkg-config"],
    options: &["--target", "x86_64-unknown-linux-gnu"],
    environment: &[
        ("LIBCLANG_PATH", "{root}/usr/lib/llvm-14/lib"),
        ("LD_LIBRARY_PATH", "{root}/usr/lib/x86_64-linux-gnu"),
        ("PKG_CONFIG_SYSROOT_DIR", "{root}"),
        (
            "PKG_CONFIG_PATH",
            "{root}/usr/lib/x86_64-linux-gnu/pkgconfig",
        ),
        ("PKG_CONFIG_ALLOW_CROSS", "1"),
        (
            "BINDGEN_EXTRA_CLANG_ARGS",
            "-I{root}/usr/include -I{root}/usr/lib/llvm-14/lib/clang/14.0.6/include",
        ),
        ("LIBGPIOD_STATIC", "1"),
        ("RUSTFLAGS", "-C target-feature=+crt-static"),
    ],
};

/// Makes a chip of the kernel's.
const MAKE_CHIP: &str = "chip=/sys/kernel/config/gpio-sim/bench; mkdir -p $chip/bank && \
    echo 4 > $chip/bank/num_lines && echo 1 > $chip/live";

pub(crate) fn run(cli: &Cli) -> Result<()> {
    let title = |load: Load| Title {
        text: load.to_string(),
        timed: load.depth == 1,
    };
    let edges = Title {
        text: "an edge".to_owned(),
        timed: true,
    };
    let method = [
        "Both are on a chip of the guest's `gpio-sim`, with the same option. The peer is linked \
         statically. The load is one driver thread in the guest over the daemon's own socket, the \
         same for both: split rings with EVENT_IDX and INDIRECT negotiated, two descriptors for a \
         request. \"depth\" requests are outstanding; the larger is what a ring of 256 descriptors \
         holds. The driver sleeps until it is called when nothing is done. An answer is good when \
         its status is OK and its value is what the line has.",
        "An edge is made by pulling a line of the chip up or down through sysfs, when its event \
         buffer is on the event queue; its time is from before that to the driver's wake-up by the \
         used buffer, with the kernel's part of it. Both edges are asked for. An edge that takes a \
         second is lost.",
    ];
    Comparison {
        name: "gpio",
        program: PROGRAM,
        document: "docs/bench-gpio.md",
        sides: programs::sides(PROGRAM, cli, &PEER)?,
        hardware: vec![MAKE_CHIP.to_owned()],
        loads: Load::all().map(title).chain([edges]).collect(),
        method: method.map(str::to_owned).to_vec(),
        failures: "The peer answers a read with the opposite of the level: its library lists the \
            levels with the active one first, and it answers with the position in that list. An \
            edge fails when no event comes within a second.",
        measure,
    }
    .run(cli)
}

/// The figures of each load, with a new daemon for requests and one for edges.
fn measure(side: &Side, plan: &Plan) -> Result<Vec<Figures>> {
    let mut figures = requests(side, plan)?;
    let mut daemon = Daemon::start(side, 1, &["-l", CHIP])?;
    let mut edges = Edges::start(daemon.connect(0)?)?;
    edges.run(plan.cell / 5)?;
    figures.push(Figures::of(&daemon, || edges.run(plan.cell))?);
    Ok(figures)
}

fn requests(side: &Side, plan: &Plan) -> Result<Vec<Figures>> {
    let mut daemon = Daemon::start(side, 1, &["-l", CHIP])?;
    let mut guest = Guest::start(daemon.connect(0)?, ROOM, 0)?;
    let mut directions = load::directions(&guest);
    guest.run(&mut directions, Duration::ZERO, Waiting::Asleep)?;
    Load::all()
        .map(|load| {
            Figures::of_job(&mut load.job(&guest), &mut guest, &daemon, plan)
                .with_context(|| format!("at \"{load}\""))
        })
        .collect()
}
