//! The kernel's generator, and files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::Source;

/// `/dev/random` and `/dev/urandom`: major number 1, minor 8 and 9.
const MEMORY_DEVICES: u32 = 1;
const RANDOM: [u32; 2] = [8, 9];

/// How much is read of a source to see whether it gives anything.
const SAMPLE: usize = 16;

/// A file that cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened.
    #[error(
        "cannot open {} for random bytes: name a file that can be read, or leave --filename out to \
         have the kernel's generator",
        .0.display()
    )]
    Open(PathBuf, #[source] io::Error),
    /// It is a directory, a disk or the like.
    #[error(
        "{} cannot be read for random bytes: it is not a file, a FIFO or a character device",
        .0.display()
    )]
    Kind(PathBuf),
    /// It is a regular file in which there is nothing.
    #[error(
        "{} is empty, and guests would wait for ever: name a file with random bytes in it, or leave \
         --filename out to have the kernel's generator",
        .0.display()
    )]
    Empty(PathBuf),
    /// It is a device that gives nothing.
    #[error(
        "{} is at its end from the beginning, and guests would wait for ever: name a device that \
         gives random bytes, or leave --filename out to have the kernel's generator",
        .0.display()
    )]
    Nothing(PathBuf),
    /// It cannot be read.
    #[error(
        "{} cannot be read: name another file, or leave --filename out to have the kernel's \
         generator (/sys/class/misc/hw_random/rng_available lists what is behind /dev/hwrng)",
        .0.display()
    )]
    Read(PathBuf, #[source] io::Error),
}

/// A source of the host.
#[derive(Debug)]
pub struct Linux(Kind);

#[derive(Debug)]
enum Kind {
    /// getrandom(2).
    Kernel,
    File {
        file: File,
        name: String,
        pollable: bool,
    },
}

impl Linux {
    /// The kernel's generator.
    pub fn kernel() -> Self {
        Self(Kind::Kernel)
    }

    /// The file at `path`, opened once for all guests.
    ///
    /// # Errors
    /// When there can be no random bytes from it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, stat) =
            open(path).map_err(|error| OpenError::Open(path.into(), error.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if is_kernel_generator(&stat) => return Ok(Self::kernel()),
            // Looked into, it might have given what nobody gets; and its writer comes later.
            FileType::Fifo => {}
            FileType::CharacterDevice => {
                let first = rustix::io::read(&file, &mut [0; SAMPLE]);
                check_first(path, first, OpenError::Nothing)?;
            }
            FileType::RegularFile => {
                // Its size says nothing in /proc and /sys.
                let first = rustix::io::pread(&file, &mut [0; SAMPLE], 0);
                check_first(path, first, OpenError::Empty)?;
                log::warn!(
                    "{} is a regular file: the same bytes after each start are not random",
                    path.display()
                );
            }
            _ => return Err(OpenError::Kind(path.into())),
        }
        let pollable =
            is_pollable(&file).map_err(|error| OpenError::Open(path.into(), error.into()))?;
        Ok(Self(Kind::File {
            file,
            name: path.display().to_string(),
            pollable,
        }))
    }
}

/// Refuses a source whose first read has given nothing, or failed otherwise than for having nothing
/// yet.
fn check_first(
    path: &Path,
    first: Result<usize, Errno>,
    nothing: fn(PathBuf) -> OpenError,
) -> Result<(), OpenError> {
    match first {
        Ok(0) => Err(nothing(path.into())),
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(OpenError::Read(path.into(), error.into())),
    }
}

fn open(path: &Path) -> Result<(File, Stat), Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    Ok((File::from(fd), stat))
}

/// The generator itself under another name: getrandom(2) gives the same without the file.
fn is_kernel_generator(stat: &Stat) -> bool {
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    major == MEMORY_DEVICES && RANDOM.contains(&minor)
}

/// Regular files cannot be polled, nor can devices whose driver does not provide for it
/// (`/dev/hwrng`).
fn is_pollable(file: &File) -> Result<bool, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&epoll, file, EventData::new_u64(0), EventFlags::IN) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Source for Linux {
    fn name(&self) -> &str {
        match &self.0 {
            Kind::Kernel => "the kernel's generator",
            Kind::File { name, .. } => name,
        }
    }

    fn read<B: BitmapSlice>(
        &self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        loop {
            let result = match &self.0 {
                Kind::Kernel => getrandom(buffer).map_err(VolatileMemoryError::IOError),
                Kind::File { file, .. } => file.as_fd().read_volatile(buffer),
            };
            match result {
                Err(VolatileMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn is_plentiful(&self) -> bool {
        matches!(self.0, Kind::Kernel)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::File {
                file,
                pollable: true,
                ..
            } => Some(file.as_fd()),
            _ => None,
        }
    }
}

/// getrandom(2), which a generator that is not seeded yet answers with `EAGAIN`: soon after boot
/// only.
fn getrandom<B: BitmapSlice>(buffer: &mut VolatileSlice<'_, B>) -> io::Result<usize> {
    let guard = buffer.ptr_guard_mut();
    // SAFETY: the guard keeps `len` bytes at its pointer mapped and writable. The kernel writes
    // at most that many; that the guest may touch them meanwhile is nothing to it.
    let result =
        unsafe { libc::getrandom(guard.as_ptr().cast(), guard.len(), libc::GRND_NONBLOCK) };
    let bytes = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    buffer.bitmap().mark_dirty(0, bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn read(source: &Linux, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let slice = &mut VolatileSlice::from(&mut bytes[..]);
        match source.read(slice) {
            Ok(count) => {
                bytes.truncate(count);
                Ok(bytes)
            }
            Err(VolatileMemoryError::IOError(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn test_kernel_gives_random_bytes() {
        let source = Linux::kernel();
        let (one, two) = (read(&source, 4096).unwrap(), read(&source, 4096).unwrap());
        assert_eq!((one.len(), two.len()), (4096, 4096));
        assert_ne!(one, two);
        assert!(source.is_plentiful());
        assert!(source.readiness().is_none());
    }

    #[test]
    fn test_open_the_generator_by_its_file_is_the_generator() {
        for path in ["/dev/random", "/dev/urandom"] {
            assert!(Linux::open(Path::new(path)).unwrap().is_plentiful());
        }
        assert!(!Linux::open(Path::new("/dev/zero")).unwrap().is_plentiful());
    }

    #[test]
    fn test_open_invalid_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        fs::write(&empty, "").unwrap();
        assert!(matches!(Linux::open(&empty), Err(OpenError::Empty(_))));
        let nothing = Linux::open(Path::new("/dev/null"));
        assert!(matches!(nothing, Err(OpenError::Nothing(_))));
        assert!(matches!(
            Linux::open(directory.path()),
            Err(OpenError::Kind(_))
        ));
        let missing = directory.path().join("missing");
        assert!(matches!(Linux::open(&missing), Err(OpenError::Open(..))));
    }

    #[test]
    fn test_open_what_fails_at_once_is_refused_and_what_has_nothing_yet_is_not() {
        let first = |first| check_first(Path::new("/f"), first, OpenError::Nothing);
        assert!(matches!(first(Ok(0)), Err(OpenError::Nothing(_))));
        let failed = first(Err(Errno::NODEV));
        assert!(matches!(failed, Err(OpenError::Read(..))));
        for good in [Ok(1), Ok(SAMPLE), Err(Errno::AGAIN)] {
            assert!(first(good).is_ok());
        }
    }

    #[test]
    fn test_open_a_file_without_a_size_is_read_to_see_what_it_has() {
        let source = Linux::open(Path::new("/proc/version")).unwrap();
        assert_eq!(read(&source, 5).unwrap(), b"Linux", "nothing was lost");
    }

    #[test]
    fn test_a_file_gives_each_byte_once_and_then_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abcde").unwrap();
        let source = Linux::open(&path).unwrap();
        assert!(source.readiness().is_none());
        assert_eq!(read(&source, 3).unwrap(), b"abc");
        assert_eq!(read(&source, 3).unwrap(), b"de");
        assert_eq!(read(&source, 3).unwrap(), b"");
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"f")
            .unwrap();
        assert_eq!(read(&source, 3).unwrap(), b"f");
    }

    #[test]
    fn test_a_fifo_never_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let source = Linux::open(&path).unwrap();
        assert!(source.readiness().is_some());
        assert_eq!(read(&source, 3).unwrap(), b"", "no writer");
        let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(
            read(&source, 3).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        writer.write_all(b"xy").unwrap();
        assert_eq!(read(&source, 3).unwrap(), b"xy");
    }
}
