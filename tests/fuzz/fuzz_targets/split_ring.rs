//! A split ring: see `vhost_device_fuzz::split`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_device_fuzz::split::{Input, run};

fuzz_target!(|input: Input| run(&input));
