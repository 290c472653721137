//! Each device on rings of each kind that Linux's drivers know, on each architecture. The daemons
//! choose the kind: QEMU hands on what they offer to rng, i2c and gpio.
//!
//! All are devices of one guest.

mod devices;

use anyhow::Result;
use devices::DEVICES;
use vhost_device_guest::{Arch, Guest, IN_ORDER, RING_PACKED, on_each_arch};

/// A kind of ring.
struct Kind {
    /// What the daemon does not offer.
    without: &'static str,
    packed: bool,
    in_order: bool,
}

const fn kind(without: &'static str, packed: bool, in_order: bool) -> Kind {
    Kind {
        without,
        packed,
        in_order,
    }
}

on_each_arch! {
    rings_of_each_kind_serve,
    rings_in_order_serve_since_7_3,
}

fn rings_of_each_kind_serve(arch: &'static Arch) -> Result<()> {
    let kinds = [
        kind("in-order", true, false),
        kind("in-order,indirect,event-idx,ring-reset", true, false),
        kind("in-order,packed", false, false),
        kind(
            "in-order,packed,indirect,event-idx,ring-reset",
            false,
            false,
        ),
    ];
    serve(arch, &kinds)
}

/// Linux 6.12 does not know `VIRTIO_F_IN_ORDER`.
fn rings_in_order_serve_since_7_3(arch: &'static Arch) -> Result<()> {
    let kinds = [
        kind("", true, true),
        kind("indirect", true, true),
        kind("packed", false, true),
        kind("packed,indirect", false, true),
    ];
    serve(arch, &kinds)
}

/// A device of each daemon on rings of each kind works.
fn serve(arch: &'static Arch, kinds: &[Kind]) -> Result<()> {
    let pairs = DEVICES.iter().flat_map(|device| {
        let kinds = kinds.iter().map(move |kind| (device, kind));
        let kinds = kinds.filter(|(device, kind)| !device.needs_tables || kind.tables());
        // With its number among those of the same daemon.
        kinds.enumerate()
    });
    let pairs: Vec<_> = pairs.collect();
    let daemons = pairs
        .iter()
        .map(|(_, (device, kind))| device.daemon(kind.without));
    let mut guest = daemons.fold(Guest::of(arch), Guest::attach).boot()?;
    for (number, (own, (device, kind))) in pairs.into_iter().enumerate() {
        let what = format!("{} without {:?}", device.model, kind.without);
        let own_driver = format!("drivers/{}/virtio{number}", device.driver);
        let packed = guest.has_feature(&own_driver, RING_PACKED)?;
        assert_eq!(packed, kind.packed, "{what}");
        let in_order = kind.in_order && device.in_order;
        assert_eq!(
            guest.has_feature(&own_driver, IN_ORDER)?,
            in_order,
            "{what}"
        );
        // Often enough that a ring of few entries wraps around.
        for _ in 0..3 {
            device.works(own, &mut guest)?;
        }
    }
    guest.power_off()
}

impl Kind {
    /// Whether requests may be tables of descriptors.
    fn tables(&self) -> bool {
        !self.without.contains("indirect")
    }
}
