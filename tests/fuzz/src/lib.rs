//! What the fuzz targets do with their inputs: valid rings, which are then corrupted.
//!
//! Bytes at random are no ring: they are refused at once, and nothing behind the first check is
//! seen. So an input is a list of what a driver and a device do, and the driver does it well,
//! until it writes a byte where it should not. Before that, every answer is checked; from then on
//! the queue has to survive, and to serve the next driver that comes.

pub mod split;
