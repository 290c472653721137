//! The sockets that front-ends connect to: bound at a path, or inherited already open.

mod place;

use std::env;
use std::ffi::{OsStr, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType, sockopt};

use self::place::{Place, Taken};

/// The longest path that fits `sun_path` of `sockaddr_un` with its end (unix(7)).
pub(crate) const MAX_PATH: usize = 107;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// Where one guest's front-end comes from.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// Front-ends connect here, one after the other.
    Listener(Listener),
    /// One front-end is already there; there will be no other.
    Connected(UnixStream),
}

/// A listening socket, with the file that it is reached by if we made it.
#[derive(Debug)]
pub struct Listener {
    // Dropped before the socket: as long as the socket listens, a starting daemon finds this one
    // alive and leaves its file alone, so the file that is removed is still ours.
    file: Option<Arc<SocketFile>>,
    socket: UnixListener,
}

impl Listener {
    /// Takes the next connection from the backlog; does not wait for one.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, or the system's.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        Ok(stream)
    }

    /// The socket alone, for a thread of its own: its file goes with `self`.
    ///
    /// # Errors
    /// The system's.
    pub fn socket(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    /// What to call it in the log.
    pub(crate) fn name(&self) -> String {
        match &self.file {
            Some(file) => file.path.display().to_string(),
            None => "an inherited socket".to_owned(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket's file, removed on drop if it is still the one that we made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    taken: Taken,
}

impl SocketFile {
    fn remove(&self) {
        if let Err(error) = self.taken.remove() {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The files of all sockets of this process.
static FILES: Mutex<Vec<Weak<SocketFile>>> = Mutex::new(Vec::new());

/// Removes the files of all sockets of this process, whoever holds them.
pub(crate) fn remove_files() {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    for file in files.drain(..).filter_map(|file| file.upgrade()) {
        file.remove();
    }
}

/// A path that cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {}", .path.display())]
pub struct BindError {
    path: PathBuf,
    #[source]
    reason: BindReason,
}

#[derive(Debug, thiserror::Error)]
enum BindReason {
    #[error("the path has {0} bytes; a socket's path has at most {MAX_PATH}: choose a shorter one")]
    TooLong(usize),
    #[error("it does not name a file")]
    NoName,
    #[error("cannot open the directory {}; it must exist and be readable", .0.display())]
    Directory(PathBuf, #[source] Errno),
    #[error("the file there is not a socket, and is left alone: choose another path")]
    NotASocket,
    #[error("another program is listening there: stop it, or choose another path")]
    InUse,
    #[error("cannot find out whether the socket there is in use; remove it if it is not")]
    Unclear(#[source] Errno),
    #[error("cannot replace the socket that an earlier run left behind; remove it")]
    Replace(#[source] Errno),
    #[error("other programs take and leave it all the time")]
    Restless,
    #[error("cannot make the socket")]
    Os(#[source] io::Error),
}

/// Listens at `path`. A socket that nobody listens at any more is replaced; anything else at the
/// path is left alone and refused. `mode` is the new file's, as the umask leaves it if `None`.
///
/// # Errors
/// When the path cannot be had; the message says why.
pub fn bind(path: &Path, mode: Option<Mode>) -> Result<Listener, BindError> {
    let taken = Place::new(path).and_then(|place| place.take(mode));
    let (socket, taken) = taken.map_err(|reason| BindError {
        path: path.to_owned(),
        reason,
    })?;
    let file = Arc::new(SocketFile {
        path: path.to_owned(),
        taken,
    });
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.retain(|file| file.strong_count() > 0);
    files.push(Arc::downgrade(&file));
    Ok(Listener {
        file: Some(file),
        socket,
    })
}

/// A descriptor that was given to us and cannot be a front-end's socket.
#[derive(Debug, thiserror::Error)]
#[error("file descriptor {fd} cannot be used: {reason}")]
pub(crate) struct AdoptError {
    fd: RawFd,
    reason: AdoptReason,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum AdoptReason {
    #[error("it is not open; was it passed on to this program?")]
    NotOpen,
    #[error("it is the standard output or error")]
    Standard,
    #[error("it is not a socket")]
    NotASocket,
    #[error("it is not a Unix stream socket")]
    NotUnixStream,
    #[error("it is neither listening nor connected")]
    Idle,
    #[error("{0}")]
    Os(#[from] Errno),
}

/// Takes an inherited socket, listening or connected.
///
/// To be called before this program opens anything, so that the number is certainly inherited.
pub(crate) fn adopt(fd: RawFd) -> Result<Endpoint, AdoptError> {
    claim(fd)
        .and_then(classify)
        .map_err(|reason| AdoptError { fd, reason })
}

fn claim(fd: RawFd) -> Result<OwnedFd, AdoptReason> {
    if fd == libc::STDOUT_FILENO || fd == libc::STDERR_FILENO {
        return Err(AdoptReason::Standard);
    }
    // SAFETY: F_GETFD takes any number and touches no memory.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(AdoptReason::NotOpen);
    }
    // SAFETY: the descriptor is open, it was opened before this program began, and whoever
    // started it gave it to us by number to own.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

fn classify(fd: OwnedFd) -> Result<Endpoint, AdoptReason> {
    let domain = match sockopt::socket_domain(&fd) {
        Err(Errno::NOTSOCK) => return Err(AdoptReason::NotASocket),
        domain => domain?,
    };
    if domain != AddressFamily::UNIX || sockopt::socket_type(&fd)? != SocketType::STREAM {
        return Err(AdoptReason::NotUnixStream);
    }
    refuse_credentials(&fd)?;
    if sockopt::socket_acceptconn(&fd)? {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let socket = UnixListener::from(fd);
        return Ok(Endpoint::Listener(Listener { file: None, socket }));
    }
    match rustix::net::getpeername(&fd) {
        Ok(_) => {}
        Err(Errno::NOTCONN) => return Err(AdoptReason::Idle),
        Err(error) => return Err(error.into()),
    }
    // As an accepted connection is.
    rustix::io::ioctl_fionbio(&fd, false)?;
    Ok(Endpoint::Connected(UnixStream::from(fd)))
}

/// Has the kernel add nothing to what comes by a socket: no credentials, security labels or pidfds.
/// They would be taken for file descriptors of the front-end's, and pidfds would stay open.
///
/// # Errors
/// When the system fails. An option that it does not have is off.
pub(crate) fn refuse_credentials(socket: impl AsFd) -> Result<(), Errno> {
    for option in [libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD] {
        match set_option(socket.as_fd(), option, 0) {
            Ok(()) | Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `SO_PASSPIDFD` of `asm-generic/socket.h`.
const SO_PASSPIDFD: c_int = 76;

/// Sets an option of a socket that `rustix` does not have.
fn set_option(socket: BorrowedFd<'_>, option: c_int, value: c_int) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and the value is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let errno = io::Error::last_os_error().raw_os_error();
    Err(Errno::from_raw_os_error(errno.unwrap_or_default()))
}

/// The descriptors that the service manager passes to this process, none if it passes none
/// (sd_listen_fds(3)).
pub(crate) fn listen_fds() -> Vec<RawFd> {
    passed_fds(
        env::var_os("LISTEN_PID").as_deref(),
        env::var_os("LISTEN_FDS").as_deref(),
        std::process::id(),
    )
}

fn passed_fds(pid: Option<&OsStr>, count: Option<&OsStr>, own_pid: u32) -> Vec<RawFd> {
    fn number<T: std::str::FromStr>(text: Option<&OsStr>) -> Option<T> {
        str::from_utf8(text?.as_bytes()).ok()?.parse().ok()
    }
    if number::<u32>(pid) != Some(own_pid) {
        return Vec::new();
    }
    let count = number::<u16>(count).unwrap_or(0);
    (LISTEN_FDS_START..LISTEN_FDS_START + RawFd::from(count)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{IoSliceMut, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixDatagram;

    use rustix::fs::{FlockOperation, OFlags};
    use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};

    use super::*;

    fn reason(path: &Path) -> BindReason {
        bind(path, None).unwrap_err().reason
    }

    #[test]
    fn test_bind_a_new_path_and_remove_it_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = bind(&path, None).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn test_bind_replaces_a_stale_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bind(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn test_bind_refuses_a_socket_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _first = bind(&path, None).unwrap();
        assert!(matches!(reason(&path), BindReason::InUse));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn test_bind_refuses_a_datagram_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _socket = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(reason(&path), BindReason::InUse));
    }

    #[test]
    fn test_bind_leaves_other_files_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(reason(&file), BindReason::NotASocket));
        assert!(matches!(reason(directory.path()), BindReason::NotASocket));
        let link = directory.path().join("link");
        symlink("nowhere", &link).unwrap();
        assert!(matches!(reason(&link), BindReason::NotASocket));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn test_bind_tells_of_a_missing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/s");
        assert!(matches!(
            reason(&path),
            BindReason::Directory(_, Errno::NOENT)
        ));
    }

    #[test]
    fn test_bind_takes_the_longest_path_and_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let fill = MAX_PATH - directory.path().as_os_str().len() - 1;
        let longest = directory.path().join("x".repeat(fill));
        bind(&longest, None).unwrap();
        let longer = directory.path().join("x".repeat(fill + 1));
        assert!(matches!(reason(&longer), BindReason::TooLong(108)));
    }

    #[test]
    fn test_bind_refuses_a_path_without_a_name() {
        assert!(matches!(reason(Path::new("/")), BindReason::NoName));
        assert!(matches!(reason(Path::new("..")), BindReason::NoName));
    }

    #[test]
    fn test_a_lock_on_the_directory_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let holder = fs::File::open(directory.path()).unwrap();
        rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
        bind(&directory.path().join("s"), None).unwrap();
    }

    #[test]
    fn test_bind_gives_the_mode_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        // Those that a umask takes away, too.
        for asked in [0o710, 0o600, 0o777, 0] {
            let _listener = bind(&path, Some(Mode::from_raw_mode(asked))).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, asked);
        }
    }

    #[test]
    fn test_a_file_that_is_no_longer_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    fn adopt_reason(fd: impl Into<OwnedFd>) -> AdoptReason {
        adopt(fd.into().into_raw_fd()).unwrap_err().reason
    }

    #[test]
    fn test_adopt_a_listening_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let fd = UnixListener::bind(&path).unwrap().into_raw_fd();
        let Endpoint::Listener(listener) = adopt(fd).unwrap() else {
            panic!("not taken for a listener");
        };
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let flags = rustix::io::fcntl_getfd(&listener).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        drop(listener);
        assert!(path.exists(), "the file is its maker's");
    }

    #[test]
    fn test_adopt_a_connected_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let Endpoint::Connected(stream) = adopt(ours.into_raw_fd()).unwrap() else {
            panic!("not taken for a connection");
        };
        let flags = rustix::fs::fcntl_getfl(&stream).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }

    #[test]
    fn test_adopt_has_nothing_added_to_what_comes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        set_option(ours.as_fd(), libc::SO_PASSCRED, 1).unwrap();
        // Kernels before 6.5 do not have it.
        let _ = set_option(ours.as_fd(), SO_PASSPIDFD, 1);
        let Endpoint::Connected(ours) = adopt(ours.into_raw_fd()).unwrap() else {
            panic!("not taken for a connection");
        };
        theirs.write_all(b"x").unwrap();
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); 16];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        let received = recvmsg(&ours, buffers, &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(ancillary.drain().count(), 0);
        // Nor was anything left out that there was no room for.
        assert!(!received.flags.contains(ReturnFlags::CTRUNC));
    }

    #[test]
    fn test_adopt_refuses_what_is_no_front_end() {
        assert_eq!(
            adopt_reason(tempfile::tempfile().unwrap()),
            AdoptReason::NotASocket
        );
        let datagram = UnixDatagram::unbound().unwrap();
        assert_eq!(adopt_reason(datagram), AdoptReason::NotUnixStream);
        let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(adopt_reason(internet), AdoptReason::NotUnixStream);
        let idle = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert_eq!(adopt_reason(idle), AdoptReason::Idle);
        assert_eq!(adopt(1).unwrap_err().reason, AdoptReason::Standard);
        assert_eq!(adopt(-1).unwrap_err().reason, AdoptReason::NotOpen);
        assert_eq!(adopt(999_999).unwrap_err().reason, AdoptReason::NotOpen);
    }

    #[test]
    fn test_listen_fds_are_taken_only_by_the_process_meant() {
        let text = |text| Some(OsStr::new(text));
        assert_eq!(passed_fds(text("42"), text("2"), 42), [3, 4]);
        assert!(passed_fds(text("41"), text("2"), 42).is_empty());
        assert!(passed_fds(None, text("2"), 42).is_empty());
        assert!(passed_fds(text("42"), None, 42).is_empty());
        assert!(passed_fds(text("42"), text("-1"), 42).is_empty());
        assert!(passed_fds(text("42"), text("many"), 42).is_empty());
    }
}
