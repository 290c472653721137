//! The I2C adapter, on the host guest's `i2c-stub`.
//!
//! | module | what lives there |
//! |---|---|
//! | `load` | what is asked for |

mod load;

use anyhow::{Context, Result};
use vhost_device_guest::setup::Build;

use self::load::{ADDRESS, Depth, Load, ROOM};
use crate::cli::Cli;
use crate::daemon::Daemon;
use crate::host::{Comparison, Figures, Plan, Title};
use crate::load::Guest;
use crate::programs::{self, Side};

/// What both programs are called.
const PROGRAM: &str = "vhost-device-i2c";
/// What Linux calls the bus, and both programs understand.
const BUS: &str = "SMBus stub driver";
/// `VIRTIO_I2C_F_ZERO_LENGTH_REQUEST`.
const ZERO_LENGTH_REQUEST: u64 = 1;

pub(crate) fn run(cli: &Cli) -> Result<()> {
    let title = |load: Load| Title {
        text: load.to_string(),
        timed: load.depth == Depth::One,
    };
    let method = "Both are on the guest's `i2c-stub`, a bus of SMBus calls that answers at once, \
        with the same options. The load is one driver thread in the guest over the daemon's own \
        socket, the same for both: a split ring of 256 descriptors with EVENT_IDX and INDIRECT \
        negotiated, three descriptors for a request. To write a byte is one request of two bytes; \
        to read one is two requests, the first with FAIL_NEXT, as Linux's driver has them. \
        \"depth\" transfers are outstanding; the larger is what the ring holds. The driver sleeps \
        until it is called when nothing is done. An answer is good when its status is OK and what \
        was read is what is in the register.";
    Comparison {
        name: "i2c",
        program: PROGRAM,
        document: "docs/bench-i2c.md",
        sides: programs::sides(PROGRAM, cli, &Build::default())?,
        hardware: vec![format!(
            "insmod /modules/i2c-stub.ko chip_addr={ADDRESS:#x}"
        )],
        loads: Load::all().map(title).collect(),
        method: vec![method.to_owned()],
        failures: "The peer makes one transaction of all requests that it finds in the ring; an \
            SMBus has calls for one or two of them.",
        measure,
    }
    .run(cli)
}

/// The figures of each load, with a new daemon.
fn measure(side: &Side, plan: &Plan) -> Result<Vec<Figures>> {
    // Decimal: the peer understands nothing else.
    let list = format!("{BUS}:{ADDRESS}");
    let mut daemon = Daemon::start(side, 1, &["-l", &list])?;
    let mut guest = Guest::start(daemon.connect(0)?, ROOM, ZERO_LENGTH_REQUEST)?;
    Load::all()
        .map(|load| {
            Figures::of_job(&mut load.job(&guest), &mut guest, &daemon, plan)
                .with_context(|| format!("at \"{load}\""))
        })
        .collect()
}
