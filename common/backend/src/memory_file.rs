//! The files that a front-end shares memory by, looked at before they are mapped.
//!
//! Whoever serves a file decides how long an access to its mapping takes: a FUSE server that does
//! not answer puts the thread that touches a page into a sleep that no signal ends. So the file
//! systems that are taken are those which answer by themselves, unless the user says otherwise:
//! [`MemoryFs`].
//!
//! The look itself must not ask the file system either. `fstatfs` and `fstat` ask a FUSE server. In
//! this order, these do not:
//!
//! 1. `F_GET_SEALS` is answered by memory alone: memfds, shm, tmpfs and hugetlbfs.
//! 2. `statx` with `AT_STATX_DONT_SYNC` is answered from what the kernel has cached: the type of
//!    the file, its device, and which attributes its file system knows. Only those that keep their
//!    own inodes know `STATX_ATTR_NODUMP`: ext4, xfs, btrfs, f2fs and more. FUSE and the network
//!    file systems do not.
//! 3. `FS_IOC_GETFSUUID`, from Linux 6.9 on, is answered by the kernel above the file systems.
//!    Those of step 2 have a UUID and a FUSE file system has none, should a later kernel let FUSE
//!    servers name attributes. Before Linux 6.9 it is for the file system to answer, but then step
//!    2 has shown that this is not FUSE.
//! 4. An overlay passes attributes of the file below on, and `fstatfs` to another file system,
//!    which may be FUSE. Its device has the major number 0, as btrfs' has, and an ioctl that btrfs
//!    alone knows tells them apart. An overlay answers ioctls itself.
//! 5. What is left is a file system on a disk, or btrfs. It has what it needs to answer `fstatfs`.

use std::fs::File;
use std::io;
use std::sync::OnceLock;

use rustix::fs::{
    AtFlags, FileType, MemfdFlags, RawMode, StatxAttributes, StatxFlags, fcntl_get_seals, fstatfs,
    memfd_create, statx,
};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use rustix::param::page_size;
use vhost_device_queue::memory::Mapping;

/// `statfs` types, from `linux/magic.h`.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
const EXT4_SUPER_MAGIC: i64 = 0xef53;
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;
const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;
const F2FS_SUPER_MAGIC: i64 = 0xf2f5_2010;

/// The file systems on disks that the file backends of QEMU and libvirt are used with.
const DISK: [i64; 4] = [
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
];

/// Where the files may be that a front-end shares memory by: guest memory, the dirty log and the
/// region for requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFs {
    /// Where an access waits for nobody but the kernel and its disk: memory, DAX, and the usual
    /// file systems on disks.
    #[default]
    Known,
    /// Anywhere. Whoever serves the files can keep a session from ending, and with it the process.
    Any,
}

/// Why a file cannot hold what the front-end says it holds.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is where an access may wait for somebody.
    #[error(
        "the file is {0}, which may keep the daemon waiting: let the front-end share memory that \
         is no file (QEMU: memory-backend-memfd with share=on), or start the daemon with \
         --memory-fs any"
    )]
    Unknown(&'static str),
    /// Nothing can be found out about it.
    #[error("cannot learn about the file: {0}")]
    Look(#[source] io::Error),
    /// It cannot be mapped so.
    #[error("cannot map the file: {0}")]
    Map(#[source] io::Error),
}

/// A file that may be mapped.
#[derive(Debug)]
pub(crate) struct MemoryFile<'a> {
    file: &'a File,
    page: u64,
}

impl<'a> MemoryFile<'a> {
    /// Takes `file` if it is where it may be.
    pub(crate) fn new(file: &'a File, allowed: MemoryFs) -> Result<Self, FileError> {
        let mut page = page_size() as u64;
        if fcntl_get_seals(file).is_ok() {
            page = page.max(huge_page(file)?);
        } else if allowed == MemoryFs::Known {
            judge(&look(file)?, file)?;
        }
        Ok(Self { file, page })
    }

    /// What offsets into it must be multiples of.
    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    /// Maps `len` bytes of it from `offset`.
    pub(crate) fn map(&self, offset: u64, len: usize) -> Result<Mapping, FileError> {
        Mapping::new(self.file, offset, len).map_err(FileError::Map)
    }
}

/// The size of the pages of a file in memory, if it has huge ones; 0 if it has not.
fn huge_page(file: &File) -> Result<u64, FileError> {
    let stat = fstatfs(file).map_err(|error| FileError::Look(error.into()))?;
    Ok(match stat.f_type as i64 {
        HUGETLBFS_MAGIC => u64::try_from(stat.f_bsize).unwrap_or(0),
        _ => 0,
    })
}

/// What the kernel says of a file without asking its file system.
#[derive(Clone, Copy, Debug)]
struct Facts {
    kind: FileType,
    device_major: u32,
    attributes: StatxAttributes,
    /// The attributes that the file system knows.
    known: StatxAttributes,
}

fn look(file: &File) -> Result<Facts, FileError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat =
        statx(file, c"", flags, StatxFlags::TYPE).map_err(|error| FileError::Look(error.into()))?;
    Ok(Facts {
        kind: FileType::from_raw_mode(RawMode::from(stat.stx_mode)),
        device_major: stat.stx_dev_major,
        attributes: stat.stx_attributes,
        known: stat.stx_attributes_mask,
    })
}

/// What is asked about a file once that is safe.
trait Answers {
    /// Whether its file system has a UUID; nothing if this kernel does not tell.
    fn has_uuid(&self) -> Option<bool>;
    /// Whether it is a file of btrfs.
    fn is_btrfs(&self) -> bool;
    /// The type of its file system.
    fn file_system(&self) -> Result<i64, FileError>;
}

/// Whether a file that is not in memory may be mapped. See the module for the order.
fn judge(facts: &Facts, answers: &impl Answers) -> Result<(), FileError> {
    let unknown = |what| Err(FileError::Unknown(what));
    match facts.kind {
        // A device of its own for memory: `/dev/dax0.0`.
        FileType::CharacterDevice if facts.attributes.contains(StatxAttributes::DAX) => {
            return Ok(());
        }
        FileType::CharacterDevice | FileType::BlockDevice => return unknown("a device"),
        FileType::RegularFile => {}
        _ => return unknown("not one that usually holds memory"),
    }
    let keeps_its_inodes = facts.known.contains(StatxAttributes::NODUMP);
    if !keeps_its_inodes || answers.has_uuid() == Some(false) {
        return unknown("on FUSE, a network or another file system that is not known");
    }
    if facts.device_major == 0 && !answers.is_btrfs() {
        return unknown("on an overlay or another file system that is not known");
    }
    match DISK.contains(&answers.file_system()?) {
        true => Ok(()),
        false => unknown("on a file system that is not known"),
    }
}

impl Answers for File {
    fn has_uuid(&self) -> Option<bool> {
        kernel_tells_uuids().then(|| has_uuid(self))
    }

    fn is_btrfs(&self) -> bool {
        // _IOR(BTRFS_IOCTL_MAGIC, 57, struct btrfs_ioctl_feature_flags)
        const BTRFS_IOC_GET_FEATURES: Opcode = opcode::read::<[u64; 3]>(0x94, 57);
        // SAFETY: the kernel writes `struct btrfs_ioctl_feature_flags`, three `u64`.
        let got = unsafe { ioctl(self, Getter::<BTRFS_IOC_GET_FEATURES, [u64; 3]>::new()) };
        got.is_ok()
    }

    fn file_system(&self) -> Result<i64, FileError> {
        let stat = fstatfs(self).map_err(|error| FileError::Look(error.into()))?;
        Ok(stat.f_type as i64)
    }
}

fn has_uuid(file: &File) -> bool {
    // _IOR(0x15, 0, struct fsuuid2)
    const FS_IOC_GETFSUUID: Opcode = opcode::read::<[u8; 17]>(0x15, 0);
    // SAFETY: the kernel writes `struct fsuuid2`, 17 bytes.
    let got = unsafe { ioctl(file, Getter::<FS_IOC_GETFSUUID, [u8; 17]>::new()) };
    got.is_ok()
}

/// Whether the kernel answers for the file systems. Memory has a UUID wherever that is so.
fn kernel_tells_uuids() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| memfd(c"vhost-device-probe").is_ok_and(|file| has_uuid(&file)))
}

/// A file in memory, without content.
pub(crate) fn memfd(name: &std::ffi::CStr) -> Result<File, Errno> {
    let create = |more| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more;
        memfd_create(name, flags)
    };
    let file = match create(MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there is no such flag; after it an administrator may insist on it.
        Err(Errno::INVAL) => create(MemfdFlags::empty()),
        created => created,
    };
    file.map(File::from)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file system that counts who asks it.
    #[derive(Default)]
    struct Fake {
        uuid: Option<bool>,
        btrfs: bool,
        file_system: i64,
        asked: Cell<u32>,
    }

    impl Answers for Fake {
        fn has_uuid(&self) -> Option<bool> {
            self.uuid
        }

        fn is_btrfs(&self) -> bool {
            self.btrfs
        }

        fn file_system(&self) -> Result<i64, FileError> {
            self.asked.set(self.asked.get() + 1);
            Ok(self.file_system)
        }
    }

    const NONE: StatxAttributes = StatxAttributes::empty();

    /// What ext4 and its like know, and what an overlay on a file system without any knows.
    const CHATTR: StatxAttributes = StatxAttributes::NODUMP
        .union(StatxAttributes::IMMUTABLE)
        .union(StatxAttributes::APPEND);
    const OVERLAY: StatxAttributes = StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND);

    const fn regular(device_major: u32, known: StatxAttributes) -> Facts {
        Facts {
            kind: FileType::RegularFile,
            device_major,
            attributes: NONE,
            known,
        }
    }

    /// Whether the file is taken, and how often its file system was asked.
    fn judged(facts: &Facts, answers: &Fake) -> (bool, u32) {
        (judge(facts, answers).is_ok(), answers.asked.get())
    }

    fn on(file_system: i64, btrfs: bool, uuid: Option<bool>) -> Fake {
        Fake {
            uuid,
            btrfs,
            file_system,
            ..Fake::default()
        }
    }

    #[test]
    fn files_on_disks_are_taken() {
        for uuid in [None, Some(true)] {
            for file_system in [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, F2FS_SUPER_MAGIC] {
                let answers = on(file_system, false, uuid);
                assert_eq!(judged(&regular(254, CHATTR), &answers), (true, 1));
            }
            let answers = on(BTRFS_SUPER_MAGIC, true, uuid);
            assert_eq!(judged(&regular(0, CHATTR), &answers), (true, 1));
        }
    }

    #[test]
    fn who_may_not_answer_is_not_asked() {
        let fuse = || on(0x6573_5546, false, None);
        // FUSE, and FUSE on a block device.
        assert_eq!(judged(&regular(0, NONE), &fuse()), (false, 0));
        assert_eq!(judged(&regular(7, NONE), &fuse()), (false, 0));
        // FUSE whose server says what it likes, on a kernel that lets it.
        let answers = on(EXT4_SUPER_MAGIC, true, Some(false));
        assert_eq!(judged(&regular(7, CHATTR), &answers), (false, 0));
        // An overlay on FUSE, and one on ext4, beside which there may be FUSE too.
        let overlay = || on(EXT4_SUPER_MAGIC, false, Some(true));
        assert_eq!(judged(&regular(0, OVERLAY), &overlay()), (false, 0));
        assert_eq!(judged(&regular(0, CHATTR), &overlay()), (false, 0));
        // NFS, 9p.
        let nfs = on(0x6969, false, None);
        assert_eq!(judged(&regular(0, NONE), &nfs), (false, 0));
    }

    #[test]
    fn a_cluster_file_system_on_a_disk_is_not_known() {
        let gfs2 = on(0x0116_1970, false, Some(true));
        assert_eq!(judged(&regular(253, CHATTR), &gfs2), (false, 1));
    }

    #[test]
    fn of_devices_only_those_for_memory_are_taken() {
        let device = |kind, attributes| Facts {
            kind,
            device_major: 0,
            attributes,
            known: CHATTR,
        };
        let any = || on(EXT4_SUPER_MAGIC, true, Some(true));
        let (character, block) = (FileType::CharacterDevice, FileType::BlockDevice);
        let dax = StatxAttributes::DAX;
        assert_eq!(judged(&device(character, dax), &any()), (true, 0));
        assert_eq!(judged(&device(character, NONE), &any()), (false, 0));
        assert_eq!(judged(&device(block, dax), &any()), (false, 0));
        // A dma-buf has no type, or that of a regular file in no file system.
        assert_eq!(judged(&device(FileType::Unknown, dax), &any()), (false, 0));
        assert_eq!(judged(&regular(0, NONE), &any()), (false, 0));
    }

    #[test]
    fn memory_is_taken_and_so_is_anything_for_who_wants_that() {
        let memory = memfd(c"test").unwrap();
        memory.set_len(0x2000).unwrap();
        for allowed in [MemoryFs::Known, MemoryFs::Any] {
            let file = MemoryFile::new(&memory, allowed).unwrap();
            assert_eq!(file.page(), page_size() as u64);
            file.map(0x1000, 0x1000).unwrap();
            file.map(0x1000, 0x1001).unwrap_err();
        }
        let device = File::options().read(true).write(true).open("/dev/zero");
        let device = device.unwrap();
        let error = MemoryFile::new(&device, MemoryFs::Known).unwrap_err();
        assert!(error.to_string().contains("--memory-fs any"), "{error}");
        // Without a length, as it is a device.
        let file = MemoryFile::new(&device, MemoryFs::Any).unwrap();
        file.map(0, 0x1000).unwrap();
    }

    #[test]
    fn a_file_in_the_directory_of_the_program_is_judged_by_its_file_system() {
        let path = std::env::current_exe().unwrap();
        let file = File::open(path).unwrap();
        let known = DISK.contains(&file.file_system().unwrap());
        let overlay = look(&file).unwrap().device_major == 0 && !file.is_btrfs();
        let in_memory = fcntl_get_seals(&file).is_ok();
        let taken = MemoryFile::new(&file, MemoryFs::Known).is_ok();
        assert_eq!(taken, in_memory || (known && !overlay));
    }
}
