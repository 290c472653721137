//! The model on random inputs, in a bounded time; the fuzz targets take up where this ends.

use arbitrary::{Arbitrary, Unstructured};
use proptest::prelude::*;
use vhost_device_driver::{PackedRing, SplitRing};
use vhost_device_model::{Input, run};

/// Long enough for some hundred steps.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 16..2000)
}

fn input(bytes: &[u8]) -> Input {
    Input::arbitrary(&mut Unstructured::new(bytes)).expect("any bytes are an input")
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn split_rings_work_until_they_are_corrupted_and_then_survive(bytes in bytes()) {
        run::<SplitRing>(&input(&bytes));
    }

    #[test]
    fn packed_rings_work_until_they_are_corrupted_and_then_survive(bytes in bytes()) {
        run::<PackedRing>(&input(&bytes));
    }
}
