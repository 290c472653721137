//! A socket's place in the file system. It is taken without a lock, as others could hold a lock.
//!
//! A socket is bound to a temporary name in the directory, gets its mode, listens, and is renamed
//! into its place only then. So a socket at its place listens for as long as its daemon lives. A
//! daemon that finds a socket there which does not listen knows that the one that made it is dead.
//!
//! # Of several that start at once, one wins
//! - Nothing is there: `RENAME_NOREPLACE` succeeds for one of them. The others look again, and
//!   find it alive.
//! - A dead socket is there: each exchanges its own for what is there (`RENAME_EXCHANGE`), and
//!   looks at what it got. The dead socket comes out once, so one of them has won; it removes it.
//!   The others got a socket that is alive, and put it back: they exchange again until they have
//!   their own. All that is exchanged is the winner's socket and those of the others. When each
//!   of the others has its own, the winner's is in its place. Meanwhile there is a socket that
//!   listens, and who starts only now finds the place in use.
//!
//! A daemon removes a socket only after it has taken it out and found it dead. A file that is not a
//! socket is put back in the same way, never replaced.
//!
//! # Where files cannot be exchanged
//! NFS, 9p and SMB have no `RENAME_EXCHANGE`, the first two no `RENAME_NOREPLACE`. There a dead
//! socket is moved aside, looked at, and removed, and a hard link takes the place of the rename
//! that replaces nothing. Two that start at once are told apart; a third that comes in the moment
//! in which a socket that is alive was taken for a dead one may get the place.
//!
//! # What a daemon leaves behind that is killed meanwhile
//! A socket with a temporary name. The first that a process binds in a directory removes those
//! that nobody listens at.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{BindReason, MAX_PATH};

/// What comes before the random end of a temporary name.
const MARK: &[u8] = b".vd-";

/// How many digits the random end has.
const DIGITS: usize = 8;

/// How often the place is looked at again when others have changed it meanwhile. Each time one of
/// them has come further.
const ATTEMPTS: u32 = 1000;

/// How many front-ends may wait to be accepted.
const BACKLOG: i32 = 128;

/// What a file is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl From<Stat> for Identity {
    fn from(stat: Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    /// The directory's path, for the addresses of sockets.
    parent: PathBuf,
    name: OsString,
}

impl Place {
    pub(super) fn new(path: &Path) -> Result<Self, BindReason> {
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(BindReason::TooLong(length));
        }
        let name = path.file_name().ok_or(BindReason::NoName)?.to_owned();
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|error| BindReason::Directory(parent.to_owned(), error))?;
        Ok(Self {
            directory,
            parent: parent.to_owned(),
            name,
        })
    }

    /// Listens here. See the module for how.
    pub(super) fn take(self, mode: Option<Mode>) -> Result<(UnixListener, Taken), BindReason> {
        self.remove_leftovers();
        let (listener, identity) = self.listen(mode)?;
        let taken = Taken {
            place: self,
            identity,
        };
        Ok((listener, taken))
    }

    fn listen(&self, mode: Option<Mode>) -> Result<(UnixListener, Identity), BindReason> {
        let (mut listener, mut ours) = Temporary::bind(self, mode)?;
        for _ in 0..ATTEMPTS {
            let is_ours = match self.look()? {
                None => ours.move_to_free_place()?,
                Some(dead) => ours.replace(dead)?,
            };
            if is_ours {
                return Ok((listener, ours.identity));
            }
            if !self.is(&ours.name, ours.identity) {
                (listener, ours) = Temporary::bind(self, mode)?;
            }
            thread::yield_now();
        }
        Err(BindReason::Restless)
    }

    /// A dead socket that is here, or nothing.
    fn look(&self) -> Result<Option<Identity>, BindReason> {
        let found = match self.stat(&self.name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(BindReason::Os(error.into())),
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
            return Err(BindReason::NotASocket);
        }
        match self.connect(&self.name) {
            Err(Errno::CONNREFUSED) => Ok(Some(found.into())),
            // It has gone meanwhile.
            Err(Errno::NOENT) => Ok(None),
            // EAGAIN: somebody listens, with a full backlog. EPROTOTYPE: not with a stream socket.
            Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindReason::InUse),
            Err(error) => Err(BindReason::Unclear(error)),
        }
    }

    fn is_dead(&self, name: &OsStr) -> bool {
        self.connect(name) == Err(Errno::CONNREFUSED)
    }

    fn connect(&self, name: &OsStr) -> Result<(), Errno> {
        step();
        rustix::net::connect(&socket()?, &self.address(name)?)
    }

    /// The address of a socket in the directory, by a path that fits.
    fn address(&self, name: &OsStr) -> Result<SocketAddrUnix, Errno> {
        let path = self.parent.join(name);
        match path.as_os_str().len() <= MAX_PATH {
            true => SocketAddrUnix::new(path),
            false => {
                let directory = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
                SocketAddrUnix::new(Path::new(&directory).join(name))
            }
        }
    }

    fn stat(&self, name: &OsStr) -> Result<Stat, Errno> {
        step();
        rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn is(&self, name: &OsStr, identity: Identity) -> bool {
        self.stat(name)
            .is_ok_and(|stat| Identity::from(stat) == identity)
    }

    fn rename(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> Result<(), Errno> {
        step();
        if !can(flags) {
            return Err(Errno::INVAL);
        }
        rustix::fs::renameat_with(&self.directory, from, &self.directory, to, flags)
    }

    /// Renames if there is nothing, with what the file system can do.
    fn rename_to_free(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match self.rename(from, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                step();
                let directory = &self.directory;
                rustix::fs::linkat(directory, from, directory, to, AtFlags::empty())?;
                self.unlink(from)
            }
            result => result,
        }
    }

    fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        step();
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
    }

    /// A name that nobody has.
    fn temporary_name(&self) -> Result<OsString, Errno> {
        let mut random = [0; DIGITS / 2];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let random = u32::from_ne_bytes(random);
        // With as much of the name in it as its address has room for.
        let others = self.parent.as_os_str().len() + "/.".len() + MARK.len() + DIGITS;
        let name = self.name.as_bytes();
        let name = name.get(..MAX_PATH.saturating_sub(others)).unwrap_or(name);
        let end = format!("{random:0DIGITS$x}");
        Ok(OsString::from_vec(
            [b".", name, MARK, end.as_bytes()].concat(),
        ))
    }

    /// Removes temporary names in the directory that nobody listens at, once for each process.
    fn remove_leftovers(&self) {
        static DONE: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());
        let Ok(stat) = rustix::fs::fstat(&self.directory) else {
            return;
        };
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        if done.insert((stat.st_dev, stat.st_ino)) {
            drop(done);
            // A directory that cannot be read keeps them.
            let _ = self.remove_all_leftovers();
        }
    }

    fn remove_all_leftovers(&self) -> Result<(), Errno> {
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_socket = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
            if is_temporary(name) && self.stat(name).is_ok_and(is_socket) && self.is_dead(name) {
                // Whoever has only bound it yet finds it gone, and binds another.
                let _ = self.unlink(name);
            }
        }
        Ok(())
    }
}

fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let Some((start, digits)) = name.split_at_checked(name.len().saturating_sub(DIGITS)) else {
        return false;
    };
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    start.starts_with(b".") && start.ends_with(MARK) && digits.iter().all(is_digit)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A place that a socket of ours has.
#[derive(Debug)]
pub(super) struct Taken {
    place: Place,
    identity: Identity,
}

impl Taken {
    /// Gives the place up, if it is still ours.
    pub(super) fn remove(&self) -> Result<(), Errno> {
        match self.place.is(&self.place.name, self.identity) {
            true => self.place.unlink(&self.place.name),
            false => Ok(()),
        }
    }
}

/// A socket that listens at a temporary name, which is removed on drop if it is still there.
struct Temporary<'a> {
    place: &'a Place,
    name: OsString,
    identity: Identity,
}

impl<'a> Temporary<'a> {
    fn bind(place: &'a Place, mode: Option<Mode>) -> Result<(UnixListener, Self), BindReason> {
        Self::try_bind(place, mode).map_err(|error| BindReason::Os(error.into()))
    }

    fn try_bind(place: &'a Place, mode: Option<Mode>) -> Result<(UnixListener, Self), Errno> {
        let socket = socket()?;
        if let Some(mode) = mode {
            // The file gets the socket's mode less the umask: never a wider one than asked for.
            rustix::fs::fchmod(&socket, mode)?;
        }
        let name = loop {
            let name = place.temporary_name()?;
            step();
            match rustix::net::bind(&socket, &place.address(&name)?) {
                Ok(()) => break name,
                Err(Errno::ADDRINUSE) => {}
                Err(error) => return Err(error),
            }
        };
        let identity = place.stat(&name)?.into();
        let temporary = Self {
            place,
            name,
            identity,
        };
        step();
        if let Some(mode) = mode {
            temporary.set_mode(mode)?;
        }
        step();
        rustix::net::listen(&socket, BACKLOG)?;
        Ok((socket.into(), temporary))
    }

    /// Gives the file what the umask, or the directory's default ACL, has taken from its mode.
    ///
    /// Who may write to the directory can put another file, or a link to one, in its place. So the
    /// file is opened first, without a look at what is in it, and changed by what was opened.
    fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = &self.place.directory;
        let file = rustix::fs::openat(directory, &self.name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        if !is_socket || stat.st_nlink != 1 || self.identity != stat.into() {
            // As if it had been removed.
            return Err(Errno::NOENT);
        }
        if Mode::from_raw_mode(stat.st_mode) == mode {
            return Ok(());
        }
        rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
    }

    /// Takes the place if there is nothing. False if something has come meanwhile.
    fn move_to_free_place(&self) -> Result<bool, BindReason> {
        match self.place.rename_to_free(&self.name, &self.place.name) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOENT) => Ok(false),
            Err(error) => Err(BindReason::Os(error.into())),
        }
    }

    /// Takes the place of a dead socket. False if something else has come meanwhile.
    fn replace(&self, dead: Identity) -> Result<bool, BindReason> {
        let place = self.place;
        match place.rename(&self.name, &place.name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::INVAL | Errno::NOSYS) => return self.move_aside(dead).map(|()| false),
            Err(error) => return Err(BindReason::Replace(error)),
        }
        // Alive after all, if the number was given to another one meanwhile.
        if place.is(&self.name, dead) && place.is_dead(&self.name) {
            log::debug!("a socket that was left behind is replaced");
            // If another has removed it, it is gone all the same.
            let _ = place.unlink(&self.name);
            return Ok(true);
        }
        self.put_back()?;
        Ok(false)
    }

    /// Puts back what has come out of the place.
    fn put_back(&self) -> Result<(), BindReason> {
        let place = self.place;
        for _ in 0..ATTEMPTS {
            match place.rename(&self.name, &place.name, RenameFlags::EXCHANGE) {
                Ok(()) if place.is(&self.name, self.identity) => return Ok(()),
                // Another has exchanged its own meanwhile: it is to get that back.
                Ok(()) => thread::yield_now(),
                // Nothing is there any more: its owner has removed it as it leaves.
                Err(Errno::NOENT) => match place.rename_to_free(&self.name, &place.name) {
                    Err(Errno::EXIST) => {}
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    Err(error) => return Err(BindReason::Replace(error)),
                },
                Err(error) => return Err(BindReason::Replace(error)),
            }
        }
        Err(BindReason::Restless)
    }

    /// Makes room where nothing can be exchanged.
    fn move_aside(&self, dead: Identity) -> Result<(), BindReason> {
        let place = self.place;
        let aside = place.temporary_name().map_err(BindReason::Replace)?;
        match place.rename(&place.name, &aside, RenameFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(BindReason::Replace(error)),
        }
        let done = match place.is(&aside, dead) && place.is_dead(&aside) {
            true => place.unlink(&aside),
            false => place.rename_to_free(&aside, &place.name),
        };
        match done {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(BindReason::Replace(error)),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Before the socket is closed. What another has put here is not ours to remove.
        if self.place.is(&self.name, self.identity) {
            let _ = self.place.unlink(&self.name);
        }
    }
}

/// Whether the file system can rename so; a test says that it cannot.
#[cfg(not(test))]
fn can(_: RenameFlags) -> bool {
    true
}

/// Where a test lets another one go first.
#[cfg(not(test))]
fn step() {}

#[cfg(test)]
use self::tests::{can, step};

#[cfg(test)]
mod tests;
