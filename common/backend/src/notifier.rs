//! The file descriptors by which a session and its front-end wake each other: kicks, calls, errors.
//!
//! They are the front-end's, which keeps them too, and can be anything. The session takes an
//! eventfd, or a pipe or FIFO, as User-Mode Linux sends for calls. To hold anything else could do
//! harm: a socket that has the session's own socket in its queue keeps the connection open after
//! the front-end has left, and so does that socket itself.
//!
//! There is no call that says "this is an eventfd", and `/proc`, which does, is not there in a
//! sandbox. But three things that eventfds do can be seen without a change to the counter, and
//! without a question to anyone who may be slow:
//!
//! - It is on the file system of anonymous inodes, as an eventfd of our own is. `statx` with
//!   `AT_STATX_DONT_SYNC` says so.
//! - It can be written to: a vector of no bytes is written. Timerfds, signalfds, epolls, inotifies,
//!   pidfds, userfaultfds, io_urings and most others answer EINVAL.
//! - It refuses to be written less than 8 bytes: a write of no bytes is EINVAL.
//!
//! A fanotify group, a set of Landlock rules, and BPF maps and programs are known to pass as well.
//! They do not harm: no write to them sleeps (those of BPF fail), and no socket is in their queue.
//!
//! Writes and reads do not block, unless the front-end makes it so in the instant between the look
//! and the call: the flag is the front-end's as well, and eventfds know no `RWF_NOWAIT`. Whoever
//! watches over a session sees that in [`Signalling`], and interrupts the thread by a signal. What
//! sleeps in a write is full, so it has been signalled, and is not written again.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, AsRawFd, RawFd};
use rustix::fs::{
    AtFlags, FileType, OFlags, RawMode, Statx, StatxFlags, fcntl_getfl, fcntl_setfl, statx,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, readv, retry_on_intr, write, writev};

/// Why an fd cannot be used to wake anyone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotifierError {
    #[error("it is neither an eventfd nor a pipe")]
    Kind,
    #[error("nothing can be {0} it")]
    WrongEnd(&'static str),
    #[error(transparent)]
    System(#[from] Errno),
}

/// How far a session has come, and whether it is in a call on an fd of its front-end, for whoever
/// watches over it. A clone tells of the same session.
#[derive(Clone, Debug, Default)]
pub struct Signalling(Arc<AtomicU64>);

/// Where a session is: it has not moved for as long as this is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step(u64);

impl Step {
    /// Whether it is in a call on an fd of its front-end.
    pub fn is_call(self) -> bool {
        self.0 % 2 == 1
    }
}

impl Signalling {
    /// Where the session is.
    pub fn step(&self) -> Step {
        // A hint: nothing is ordered by it.
        Step(self.0.load(Ordering::Relaxed))
    }

    /// The session looks for its next message.
    pub(crate) fn moves(&self) {
        self.during(|| ());
    }

    fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        // Only the session's thread counts.
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(1), Ordering::Relaxed);
        let result = call();
        self.0.store(before.wrapping_add(2), Ordering::Relaxed);
        result
    }
}

/// An eventfd or pipe of the front-end.
#[derive(Debug)]
pub(crate) struct Notifier {
    fd: File,
    signalling: Signalling,
}

impl Notifier {
    /// An fd that is to be signalled.
    pub(crate) fn to_signal(fd: File, signalling: &Signalling) -> Result<Self, NotifierError> {
        let written = match is_pipe_or_eventfd(&fd)? {
            true => writev(&fd, &[IoSlice::new(&[])]),
            false => return Err(NotifierError::Kind),
        };
        match written {
            Err(Errno::BADF) => Err(NotifierError::WrongEnd("written to")),
            _ => Self::new(fd, signalling),
        }
    }

    /// An fd that the front-end signals.
    pub(crate) fn to_watch(fd: File, signalling: &Signalling) -> Result<Self, NotifierError> {
        let read = match is_pipe_or_eventfd(&fd)? {
            true => readv(&fd, &mut [IoSliceMut::new(&mut [])]),
            false => return Err(NotifierError::Kind),
        };
        match read {
            Err(Errno::BADF) => Err(NotifierError::WrongEnd("read from")),
            _ => Self::new(fd, signalling),
        }
    }

    fn new(fd: File, signalling: &Signalling) -> Result<Self, NotifierError> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            signalling: signalling.clone(),
        })
    }

    /// Signals it. One that is full has been signalled, also if a signal has ended a sleep for want
    /// of room: neither is an error.
    pub(crate) fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        let _ = self.signalling.during(|| write(&self.fd, &one));
    }

    /// Takes the signals that have come, and whether there were any. `O_NONBLOCK` would not do: it
    /// is the front-end's as well, which may clear it.
    pub(crate) fn take(&self) -> bool {
        let mut counter = [0; 8];
        let mut buffers = [IoSliceMut::new(&mut counter)];
        let taken = self.signalling.during(|| {
            // An offset of -1 is a plain read.
            match preadv2(&self.fd, &mut buffers, u64::MAX, ReadWriteFlags::NOWAIT) {
                // Before Linux 5.13 an eventfd does not know it, and qemu-user has no such call.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) if is_readable(&self.fd) => {
                    read(&self.fd, &mut [0; 8])
                }
                taken => taken,
            }
        });
        taken.is_ok_and(|count| count > 0)
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Whether a read would not block now.
fn is_readable(fd: &File) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, Some(&Timespec::default()))).is_ok_and(|count| count > 0)
}

fn is_pipe_or_eventfd(fd: &File) -> Result<bool, Errno> {
    let stat = look(fd)?;
    if FileType::from_raw_mode(RawMode::from(stat.stx_mode)) == FileType::Fifo {
        return Ok(true);
    }
    if place(&stat) != place_of_eventfds()? {
        return Ok(false);
    }
    let takes_bytes = writev(fd, &[IoSlice::new(&[])]) == Ok(0);
    let takes_eight = write(fd, &[]) == Err(Errno::INVAL);
    Ok(takes_bytes && takes_eight)
}

/// What the kernel knows of a file, without a question to its file system.
fn look(fd: impl AsFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, c"", flags, StatxFlags::TYPE | StatxFlags::MODE)
}

/// The file system of a file, and what kind of file it is there.
type Place = (u32, u32, u16);

fn place(stat: &Statx) -> Place {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mode)
}

/// Where all eventfds are: with an inode that is no file's, and without a type in its mode as far
/// as this can be seen from outside.
fn place_of_eventfds() -> Result<Place, Errno> {
    static PLACE: OnceLock<Place> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return Ok(*place);
    }
    let place = place(&look(eventfd(0, EventfdFlags::CLOEXEC)?)?);
    Ok(*PLACE.get_or_init(|| place))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use rustix::event::epoll;
    use rustix::fs::inotify;
    use rustix::pipe::pipe;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

    use super::*;
    use crate::memory_file::memfd;

    fn to_signal(fd: impl Into<OwnedFd>) -> Result<Notifier, NotifierError> {
        Notifier::to_signal(File::from(fd.into()), &Signalling::default())
    }

    fn to_watch(fd: impl Into<OwnedFd>) -> Result<Notifier, NotifierError> {
        Notifier::to_watch(File::from(fd.into()), &Signalling::default())
    }

    fn counter(flags: EventfdFlags, initial: u64) -> OwnedFd {
        let fd = eventfd(0, flags | EventfdFlags::NONBLOCK).unwrap();
        if initial != 0 {
            write(&fd, &initial.to_ne_bytes()).unwrap();
        }
        fd
    }

    fn value(fd: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        match read(fd, &mut value) {
            Ok(_) => u64::from_ne_bytes(value),
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                0
            }
        }
    }

    /// The values of an eventfd at its limits.
    const COUNTERS: [u64; 4] = [0, 1, 1 << 63, u64::MAX - 1];

    #[test]
    fn eventfds_are_taken_and_their_counters_left_alone() {
        for initial in COUNTERS {
            let fd = counter(EventfdFlags::empty(), initial);
            to_signal(fd.try_clone().unwrap()).unwrap();
            to_watch(fd.try_clone().unwrap()).unwrap();
            assert_eq!(value(&fd), initial);
        }
        let fd = counter(EventfdFlags::SEMAPHORE, 2);
        to_signal(fd.try_clone().unwrap()).unwrap();
        to_watch(fd.try_clone().unwrap()).unwrap();
        assert_eq!([value(&fd), value(&fd), value(&fd)], [1, 1, 0]);
    }

    #[test]
    fn the_look_at_an_eventfd_that_blocks_does_not() {
        for initial in COUNTERS {
            let fd = counter(EventfdFlags::empty(), initial);
            let flags = fcntl_getfl(&fd).unwrap();
            fcntl_setfl(&fd, flags - OFlags::NONBLOCK).unwrap();
            let notifier = to_signal(fd.try_clone().unwrap()).unwrap();
            assert!(fcntl_getfl(&fd).unwrap().contains(OFlags::NONBLOCK));
            notifier.signal();
            assert_eq!(value(&fd), initial.saturating_add(1).min(u64::MAX - 1));
        }
    }

    #[test]
    fn pipes_are_taken_by_the_end_that_is_needed() {
        let (reader, writer) = pipe().unwrap();
        let [theirs, ours] = [&reader, &writer].map(|end| end.try_clone().unwrap());
        assert!(matches!(to_signal(theirs), Err(NotifierError::WrongEnd(_))));
        assert!(matches!(to_watch(ours), Err(NotifierError::WrongEnd(_))));
        let (reader, writer) = (to_watch(reader).unwrap(), to_signal(writer).unwrap());
        assert!(!reader.take());
        writer.signal();
        assert!(reader.take());
        assert!(!reader.take());
        // It is full one day, and does not block.
        (0..10_000).for_each(|_| writer.signal());
    }

    #[test]
    fn nothing_else_is_taken() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
        let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let open = |path| File::options().read(true).write(true).open(path).unwrap();
        let others: [(&str, OwnedFd); 8] = [
            ("a socket", socket.into()),
            ("a memfd", memfd(c"test").unwrap().into()),
            ("a device", open("/dev/null").into()),
            ("a directory", File::open("/").unwrap().into()),
            (
                "an epoll",
                epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            ),
            ("an inotify", inotify),
            ("a timerfd", timer),
            ("a pidfd", process),
        ];
        for (what, fd) in others {
            let ours = fd.try_clone().unwrap();
            assert!(
                matches!(to_signal(ours), Err(NotifierError::Kind)),
                "{what}"
            );
            assert!(matches!(to_watch(fd), Err(NotifierError::Kind)), "{what}");
        }
    }
}
