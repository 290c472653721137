//! Every state that a process which is killed can leave behind in shared memory.
//!
//! A child runs one instruction after the other, and after each of them the memory is looked at. A
//! process that is killed has run its program up to some instruction, so what is found between any
//! two of them is all that there can be.
//!
//! Not everywhere can a program run so: between an exclusive load and its store, of which other
//! processors than x86-64 make their atomic operations, there must be no trap.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a child ends with that may not be traced.
const NOT_TRACED: libc::c_int = 77;

/// Runs `life` in a child, instruction by instruction, and returns each state of `memory` from
/// before the first instruction to after the last, without those that are the same as the one
/// before.
///
/// # Panics
/// When `life` panics, or the system does not let a child be traced.
pub fn states(memory: impl Fn() -> Vec<u8>, life: impl FnOnce()) -> Vec<Vec<u8>> {
    // SAFETY: the child runs `life` on the one thread that it has, and leaves by `_exit`. What
    // other threads of the test hold, it needs not: it takes no lock but the allocator's, which is
    // made whole in a child.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "cannot fork");
    if child == 0 {
        // SAFETY: plain system calls, of which none takes a pointer that is looked at.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                libc::_exit(NOT_TRACED);
            }
            libc::raise(libc::SIGSTOP);
        }
        let result = catch_unwind(AssertUnwindSafe(life));
        // SAFETY: ends the process.
        unsafe { libc::_exit(result.is_err().into()) };
    }
    let status = wait(child);
    let is_refused = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == NOT_TRACED;
    assert!(!is_refused, "the system does not let a child be traced");
    let stopped_by = |status| libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status));
    assert_eq!(stopped_by(status), Some(libc::SIGSTOP));
    let mut states = vec![memory()];
    loop {
        // SAFETY: the child is stopped and ours.
        let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0) };
        assert_eq!(stepped, 0, "cannot run the child by single steps");
        let status = wait(child);
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0, "the child panicked");
            break;
        }
        assert_eq!(stopped_by(status), Some(libc::SIGTRAP));
        let now = memory();
        if states.last() != Some(&now) {
            states.push(now);
        }
    }
    states
}

fn wait(child: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` is there for as long as the call takes.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "the child is gone");
    status
}
