//! A packed ring: see `vhost_device_model`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_driver::PackedRing;
use vhost_device_model::{Input, run};

fuzz_target!(|input: Input| run::<PackedRing>(&input));
