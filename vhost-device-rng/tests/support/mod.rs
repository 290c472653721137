//! The daemon, and what its tests ask of it.

// Each test program uses its part.
#![allow(dead_code)]

pub mod fuse;

use vhost_device_driver::memory::RegionSpec;
use vhost_device_driver::{Buffer, Driver, Options, Used};
use vhost_device_rig::Program;
use vhost_device_rig::program::DEADLINE;

/// The daemon's program.
pub const PROGRAM: Program = Program(env!("CARGO_BIN_EXE_vhost-device-rng"));

/// A guest small enough to have many.
pub fn options() -> Options {
    Options::new(&[64]).regions(&[RegionSpec::new(0x4000_0000, 1 << 20)])
}

/// Asks for `length` bytes and kicks; returns where they will be.
pub fn submit(driver: &mut Driver, length: u32) -> u64 {
    let address = driver.alloc(length.into());
    driver.memory.fill(address, length as usize, 0);
    submit_buffers(driver, &[Buffer::writable(address, length)]);
    address
}

/// Makes a request of these buffers and kicks.
pub fn submit_buffers(driver: &mut Driver, buffers: &[Buffer]) {
    driver.queues[0].submit(buffers).unwrap();
    driver.queues[0].notify();
}

/// Waits for the next answer and returns its length.
pub fn answer(driver: &mut Driver) -> usize {
    let Used { len, .. } = driver.queues[0].wait_used(DEADLINE);
    len as usize
}

/// Asks for `length` bytes and waits for as many as there are.
pub fn request(driver: &mut Driver, length: u32) -> Vec<u8> {
    driver.arena.clear();
    let address = submit(driver, length);
    let length = answer(driver);
    driver.memory.read_vec(address, length)
}
