//! A split ring: see `vhost_device_model`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_driver::SplitRing;
use vhost_device_model::{Input, run};

fuzz_target!(|input: Input| run::<SplitRing>(&input));
