//! The barriers of each step of a turn are those of the tables in `docs/queue.md`, and no more.

use std::sync::LazyLock;

use vhost_device_arm64::disassembly::{Function, Order};
use vhost_device_arm64::probes::{BATCH, Probes, Run};

static PROBES: LazyLock<Probes> = LazyLock::new(|| Probes::build().unwrap());

/// Descriptors of a packed ring in a cache line.
const LINE: usize = 4;

/// What is off the path of a request: the dirty log, the region for requests in flight, and requests
/// that a device kept and dropped.
const COLD: [&str; 4] = ["log::", "inflight::", "::mark_", "::collect_dropped"];

fn orders(run: &Run<'_>) -> Vec<Order> {
    run.iter()
        .filter_map(|instruction| instruction.order())
        .collect()
}

/// What each step orders, of the last turn: of its requests one after the other.
struct Turn {
    look: Vec<Order>,
    requests: Vec<Order>,
    publish: Vec<Order>,
    arm: Vec<Order>,
    whole: Vec<Order>,
}

impl Turn {
    fn of(ring: &str) -> Self {
        let trace = PROBES.trace(ring).unwrap();
        let runs = |probe: &str| PROBES.runs(&trace, probe).unwrap();
        let last = |probe: &str| orders(runs(probe).last().unwrap());
        let requests = runs("probe_request");
        let (_, requests) = requests.split_at(requests.len() - BATCH);
        Self {
            look: last("probe_look"),
            requests: requests.iter().flat_map(orders).collect(),
            publish: last("probe_publish"),
            arm: last("probe_arm"),
            whole: last("probe_turn"),
        }
    }
}

#[test]
fn a_turn_on_a_split_ring_has_one_barrier_of_each_kind() {
    let turn = Turn::of("split");
    assert_eq!(turn.look, [Order::Acquire]);
    assert_eq!(turn.requests, [], "{BATCH} requests");
    assert_eq!(turn.publish, [Order::Release, Order::Full]);
    assert_eq!(turn.arm, [Order::Full]);
    assert_eq!(turn.whole, [Order::Acquire, Order::Release, Order::Full]);
}

#[test]
fn a_turn_on_a_packed_ring_acquires_once_a_cache_line() {
    let turn = Turn::of("packed");
    let lines = BATCH * 2 / LINE;
    assert_eq!(turn.look, [Order::Acquire]);
    assert!(turn.requests.len() < lines, "{:?}", turn.requests);
    assert!(turn.requests.iter().all(|order| *order == Order::Acquire));
    assert_eq!(turn.publish, [Order::Release, Order::Full]);
    assert_eq!(turn.arm, [Order::Full]);
    let end = turn.whole.len() - 2;
    let (acquires, end) = turn.whole.split_at(end);
    assert!(acquires.len() <= lines, "{acquires:?}");
    assert!(acquires.iter().all(|order| *order == Order::Acquire));
    assert_eq!(end, [Order::Release, Order::Full]);
}

/// The functions of the queue that a probe may run, cold ones left out.
fn functions(probe: &str) -> Vec<&'static Function> {
    let start = PROBES.start(probe).unwrap();
    PROBES.disassembly.reachable(start, |name| {
        name.contains("vhost_device_queue::") && !COLD.iter().any(|cold| name.contains(cold))
    })
}

/// Which orders there are in what a probe may run, whether it did or not.
#[track_caller]
fn may_only(probe: &str, allowed: &[Order]) {
    let functions = functions(probe);
    assert!(!functions.is_empty());
    for function in functions {
        for (address, instruction) in &function.instructions {
            if let Some(order) = instruction.order() {
                let Function { name, .. } = function;
                assert!(
                    allowed.contains(&order),
                    "{name}: {address:#x}: {instruction:?} of {probe}"
                );
            }
        }
    }
}

#[test]
fn no_path_of_a_step_has_another_barrier() {
    may_only("probe_look", &[Order::Acquire]);
    may_only("probe_request", &[Order::Acquire]);
    may_only("probe_publish", &[Order::Release, Order::Full]);
    may_only("probe_arm", &[Order::Full]);
    // The walk through a request is followed into the functions that it calls.
    assert!(functions("probe_request").len() > 1);
}

/// Atomic read-modify-writes are the compiler's helpers, which use LSE instructions where the
/// processor has them. No function of the queue has a loop of exclusives of its own.
#[test]
fn atomic_updates_use_lse_where_there_is_lse() {
    let all = || PROBES.disassembly.functions();
    assert!(all().any(|function| function.name.starts_with("__aarch64_")));
    let own = all().filter(|function| function.name.contains("vhost_device_queue::"));
    for function in own {
        let mut atomics = function.instructions.values();
        let atomic = atomics.find(|instruction| instruction.order() == Some(Order::Atomic));
        assert_eq!(atomic, None, "{}", function.name);
    }
}
