//! What a daemon opens once it is ready: nothing.
//!
//! A daemon may give the file system away when it is ready. Whatever asks for a path later (a
//! library that reads `/proc` when it first needs to) fails then, in the middle of a guest's session.
//!
//! The daemon is started with a seccomp filter that stops it at each call that opens something, until
//! the test has written down what. It is stopped at what it tells the service manager too, so READY
//! has its place among them. What newer kernels tell without a path, they do not tell here: what libraries
//! do on older ones is seen.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use vhost_device_driver::codec;

use crate::{Daemon, Program};

/// A call at which the daemon is stopped.
struct Watched {
    name: &'static str,
    number: libc::c_long,
    /// Which argument is the path, if there is one.
    path: Option<usize>,
}

const fn watched(name: &'static str, number: libc::c_long, path: Option<usize>) -> Watched {
    Watched { name, number, path }
}

/// By which the service manager is told.
const WRITE: libc::c_long = libc::SYS_write;
const PRCTL: libc::c_long = libc::SYS_prctl;
/// From `linux/prctl.h`: from Linux 6.4 on, what is in `/proc/self/auxv`.
const PR_GET_AUXV: u64 = 0x4155_5856;
/// The longest path.
const PATH_MAX: usize = libc::PATH_MAX as usize;

const OPENS: &[Watched] = &[
    #[cfg(target_arch = "x86_64")]
    watched("open", libc::SYS_open, Some(0)),
    #[cfg(target_arch = "x86_64")]
    watched("creat", libc::SYS_creat, Some(0)),
    watched("openat", libc::SYS_openat, Some(1)),
    watched("openat2", libc::SYS_openat2, Some(1)),
    watched("open_by_handle_at", libc::SYS_open_by_handle_at, None),
    watched("open_tree", libc::SYS_open_tree, Some(1)),
    watched("execve", libc::SYS_execve, Some(0)),
    watched("execveat", libc::SYS_execveat, Some(1)),
];

/// Further calls at which it is stopped.
const OTHERS: [libc::c_long; 2] = [WRITE, PRCTL];

/// Something that the daemon has done.
enum Event {
    Open(String),
    Ready,
}

/// A daemon is started, twice a guest is served by `serve`, and the daemon is ended.
///
/// # Panics
/// When the daemon opens something after it was ready.
pub fn opens_nothing_when_ready(
    program: Program,
    arguments: &[&str],
    mut serve: impl FnMut(&Daemon),
) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = program.command();
    command.arg("-s").arg(directory.path().join("s"));
    command.args(arguments);
    let events = watch(&mut command);
    let mut daemon = Daemon::spawn(command, directory);
    serve(&daemon);
    serve(&daemon);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    let events = events.join().unwrap();
    let ready = events
        .iter()
        .position(|event| matches!(event, Event::Ready));
    let (before, after) = events.split_at(ready.expect("it was ready"));
    let opens = |events: &[Event]| -> Vec<String> {
        let opens = events.iter().filter_map(|event| match event {
            Event::Open(what) => Some(what.clone()),
            Event::Ready => None,
        });
        opens.collect()
    };
    // Its program, at least.
    assert!(!opens(before).is_empty(), "nothing is seen");
    assert_eq!(opens(after), [""; 0], "opened when it was ready");
}

/// Has the program that `command` starts stopped at each call that opens something. What it has
/// done is known when it has ended.
fn watch(command: &mut Command) -> JoinHandle<Vec<Event>> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: `hand_over` makes system calls, and allocates nothing but by the allocator, which is
    // made whole in a child.
    unsafe { command.pre_exec(move || hand_over(&theirs)) };
    thread::spawn(move || {
        let mut fds = Vec::new();
        codec::recv(&ours, &mut [0], &mut fds).unwrap();
        let listener = fds.pop().expect("the filter's end");
        let mut events = Vec::new();
        while let Some(event) = next(&listener) {
            events.extend(event);
        }
        events
    })
}

/// Puts the filter in place, and sends what is asked by it.
fn hand_over(to: &UnixStream) -> io::Result<()> {
    let listener = filter()?;
    codec::send(to, b"x", &[listener.as_fd()]).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Puts a filter in place that asks before each of the calls.
fn filter() -> io::Result<OwnedFd> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jt: usize| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: 0,
        k,
    };
    let numbers = OPENS.iter().map(|call| call.number).chain(OTHERS);
    let count = OPENS.len() + OTHERS.len();
    let number = mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut program = vec![step(LOAD, number, 0)];
    program.extend((0..).zip(numbers).map(|(place, number): (usize, _)| {
        // Over the other numbers and the step that lets the call be made.
        step(JUMP, number as u32, count - place)
    }));
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    program.push(step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0));
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel reads the program, which is there for as long as the call takes.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match listener {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, and nobody else has it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
    }
}

/// Waits for the next call and lets it be made. `None` when nobody is left who could make any.
fn next(listener: &OwnedFd) -> Option<Option<Event>> {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    while poll(&mut fds, None).is_err() {}
    if !fds[0].revents().contains(PollFlags::IN) {
        return None;
    }
    // SAFETY: all bits of it are numbers.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    if !ask(listener.as_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) {
        // Whoever made it has been killed.
        return Some(None);
    }
    let event = event(&call);
    let number = libc::c_long::from(call.data.nr);
    let (error, flags) = match number == PRCTL && call.data.args[0] == PR_GET_AUXV {
        true => (-libc::EINVAL, 0),
        false => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut answer = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error,
        flags,
    };
    ask(
        listener.as_fd(),
        libc::SECCOMP_IOCTL_NOTIF_SEND,
        &mut answer,
    );
    Some(event)
}

fn ask<T>(listener: BorrowedFd<'_>, request: libc::Ioctl, value: &mut T) -> bool {
    // SAFETY: each request has the structure that it is called with.
    unsafe { libc::ioctl(listener.as_raw_fd(), request, std::ptr::from_mut(value)) == 0 }
}

fn event(call: &libc::seccomp_notif) -> Option<Event> {
    let number = libc::c_long::from(call.data.nr);
    if number == WRITE {
        let text = bytes(call.pid, call.data.args[1], call.data.args[2] as usize);
        return text.starts_with(b"READY=1").then_some(Event::Ready);
    }
    let open = OPENS.iter().find(|open| open.number == number)?;
    let path = open.path.map(|path| {
        let path = bytes(call.pid, call.data.args[path], PATH_MAX);
        let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
        path.escape_ascii().to_string()
    });
    Some(Event::Open(format!(
        "{} {}",
        open.name,
        path.unwrap_or_default()
    )))
}

/// At most `length` bytes of a thread's memory.
fn bytes(thread: u32, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length.min(PATH_MAX)];
    // A thread that has been killed has none.
    let memory = File::open(format!("/proc/{thread}/mem"));
    let length = memory.and_then(|memory| memory.read_at(&mut bytes, address));
    bytes.truncate(length.unwrap_or(0));
    bytes
}
