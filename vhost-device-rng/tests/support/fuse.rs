//! A file system whose server is the test, which writes down what it is asked.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

// From `linux/fuse.h`.
const FUSE_LOOKUP: u32 = 1;
const FUSE_FORGET: u32 = 2;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
pub const FUSE_RELEASE: u32 = 18;
pub const FUSE_FLUSH: u32 = 25;
const FUSE_INIT: u32 = 26;
const FUSE_INTERRUPT: u32 = 36;
const FUSE_BATCH_FORGET: u32 = 42;

/// The number of the one file.
const FILE: u64 = 2;
const ROOT: u64 = 1;
/// The file's size.
pub const SIZE: u64 = 1 << 20;

#[derive(Debug, Default)]
struct State {
    /// What the server was asked, by its numbers.
    asked: Vec<u32>,
    /// `FUSE_FLUSH` is not answered.
    flush_is_held: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A file system with one file, mounted until it is dropped.
#[derive(Debug)]
pub struct Fuse {
    directory: PathBuf,
    shared: Shared,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts it at a directory, which is made.
    pub fn mount(directory: PathBuf) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.expect("/dev/fuse can be opened");
        fs::create_dir(&directory).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let (target, options) = (c_string(&directory), CString::new(options).unwrap());
        // SAFETY: each pointer is to a string that is there for as long as the call takes.
        let mounted = unsafe {
            libc::mount(
                c"test".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(mounted, 0, "cannot mount: {error}");
        let shared = Shared::default();
        let of_server = Arc::clone(&shared);
        Self {
            directory,
            shared,
            server: Some(thread::spawn(move || serve(device, &of_server))),
        }
    }

    /// Opens the file.
    pub fn open(&self) -> File {
        let mut options = File::options();
        let options = options.read(true).write(true);
        options.open(self.directory.join("memory")).unwrap()
    }

    /// What the server has been asked since the last call.
    pub fn asked(&self) -> Vec<u32> {
        std::mem::take(&mut self.shared.0.lock().unwrap().asked)
    }

    /// The server does not answer `FUSE_FLUSH` until what is returned is dropped: before any file,
    /// whose end would wait for ever.
    pub fn hold_flush(&self) -> Held {
        self.shared.0.lock().unwrap().flush_is_held = true;
        Held(Arc::clone(&self.shared))
    }
}

/// `FUSE_FLUSH` is not answered.
#[derive(Debug)]
pub struct Held(Shared);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().flush_is_held = false;
        self.0.1.notify_all();
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let target = c_string(&self.directory);
        // SAFETY: the pointer is to a string that is there for as long as the call takes. Whoever
        // waits for the server is told that it has gone.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Answers until the file system is unmounted.
fn serve(mut device: File, shared: &Shared) {
    // The kernel wants room for 8192 bytes at least.
    let mut request = vec![0; 1 << 16];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            // A request was withdrawn.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => return,
        };
        // fuse_in_header: length, opcode, unique, nodeid, …
        let header = &request[..length];
        let opcode = u32::from_ne_bytes(header[4..8].try_into().unwrap());
        let unique = u64::from_ne_bytes(header[8..16].try_into().unwrap());
        let node = u64::from_ne_bytes(header[16..24].try_into().unwrap());
        let mut state = shared.0.lock().unwrap();
        state.asked.push(opcode);
        if opcode == FUSE_FLUSH {
            state = shared
                .1
                .wait_while(state, |state| state.flush_is_held)
                .unwrap();
        }
        drop(state);
        let answer = match opcode {
            FUSE_FORGET | FUSE_BATCH_FORGET | FUSE_INTERRUPT => continue,
            FUSE_INIT => Ok(init()),
            FUSE_LOOKUP => Ok(entry()),
            FUSE_GETATTR => Ok([&[0; 16][..], &attributes(node)].concat()),
            FUSE_OPEN => Ok(vec![0; 16]),
            FUSE_FLUSH | FUSE_RELEASE => Ok(Vec::new()),
            // Nobody reads memory that nobody may map.
            _ => Err(libc::ENOSYS),
        };
        let (error, payload) = match answer {
            Ok(payload) => (0, payload),
            Err(error) => (-error, Vec::new()),
        };
        // fuse_out_header
        let length = 16 + payload.len() as u32;
        let header = [
            &length.to_ne_bytes()[..],
            &error.to_ne_bytes(),
            &unique.to_ne_bytes(),
        ];
        let answer = [header.concat(), payload].concat();
        // Whoever asked may have gone.
        let _ = device.write_all(&answer);
    }
}

/// `fuse_init_out`
fn init() -> Vec<u8> {
    let mut answer = vec![0; 64];
    answer[..4].copy_from_slice(&7_u32.to_ne_bytes());
    answer[4..8].copy_from_slice(&31_u32.to_ne_bytes());
    // Of 4096 bytes are writes at most.
    answer[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
    answer
}

/// `fuse_entry_out`: nothing of it is valid for longer than this question.
fn entry() -> Vec<u8> {
    [&FILE.to_ne_bytes()[..], &[0; 32], &attributes(FILE)].concat()
}

/// `fuse_attr`
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o644, SIZE),
    };
    let mut words = [0_u32; 22];
    let mut set = |place: usize, value: u64| {
        words[place] = value as u32;
        words[place + 1] = (value >> 32) as u32;
    };
    set(0, node);
    set(2, size);
    words[15] = mode;
    words[16] = 1;
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
