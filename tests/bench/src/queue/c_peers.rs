//! The peers that are written in C: QEMU's libvhost-user and DPDK's rte_vhost, as devices of the
//! bench. Debian has both; they are built into shared objects with the files in `tests/bench/c`,
//! which are loaded here.
//!
//! libvhost-user is given memory and ring by hand. rte_vhost takes them from a front-end only, over
//! a socket, which is ours; behind that, its queue is emptied by a call as the others are.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vhost_device_driver::protocol::{
    VHOST_USER_F_PROTOCOL_FEATURES, VHOST_USER_PROTOCOL_F_REPLY_ACK, VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VringAddr, bits,
};
use vhost_device_driver::{Frontend, GuestMemory, Layout, PackedRing, Ring, SplitRing};
use vhost_device_guest::setup::{Library, Origin, Progress, build_library};

use super::measure::SECOND_RING;
use super::sides::{Device, Place};

const LIBVHOST_USER: Library = Library {
    name: "libvhost-user",
    source: include_str!("../../c/libvhost_user.c"),
    origin: Origin::Source {
        package: "qemu",
        version: "10.0.*",
        files: &[
            "qemu-*/subprojects/libvhost-user/*",
            "qemu-*/include/standard-headers/*",
            "qemu-*/include/qemu/*",
        ],
    },
    options: &[
        "-O2",
        "-D_GNU_SOURCE",
        "-Deventfd_write=bench_call",
        "-I{origin}/subprojects/libvhost-user",
        "{origin}/subprojects/libvhost-user/libvhost-user.c",
        "-pthread",
    ],
};

/// Debian's series of DPDK.
const DPDK: &str = "22.11.*";

const RTE_VHOST: Library = Library {
    name: "rte-vhost",
    source: include_str!("../../c/rte_vhost.c"),
    origin: Origin::Packages {
        libraries: &[
            ("librte-vhost23", DPDK),
            ("librte-cryptodev23", DPDK),
            ("librte-dmadev23", DPDK),
            ("librte-eal23", DPDK),
            ("librte-ethdev23", DPDK),
            ("librte-hash23", DPDK),
            ("librte-kvargs23", DPDK),
            ("librte-mbuf23", DPDK),
            ("librte-mempool23", DPDK),
            ("librte-mempool-ring23", DPDK),
            ("librte-meter23", DPDK),
            ("librte-net23", DPDK),
            ("librte-pci23", DPDK),
            ("librte-rcu23", DPDK),
            ("librte-ring23", DPDK),
            ("librte-telemetry23", DPDK),
            ("libbsd0", "0.11.*"),
            ("libfdt1", "1.6.*"),
            ("libmd0", "1.0.*"),
            ("libnuma1", "2.0.*"),
        ],
        headers: &[("libdpdk-dev", DPDK), ("libbsd-dev", "0.11.*")],
    },
    options: &[
        "-O2",
        // As Debian's DPDK is built.
        "-march=corei7",
        "-D_GNU_SOURCE",
        "-include",
        "rte_config.h",
        "-I{origin}/usr/include",
        "-I{origin}/usr/include/dpdk",
        "-I{origin}/usr/include/x86_64-linux-gnu/dpdk",
        "-L{root}/usr/lib/x86_64-linux-gnu",
        "-Wl,--no-as-needed",
        "-l:librte_eal.so.23",
        "-l:librte_mempool.so.23",
        // Found by nobody, but its constructor makes the pool of packets possible.
        "-l:librte_mempool_ring.so.23",
        "-l:librte_mbuf.so.23",
        "-l:librte_vhost.so.23",
        // An old tag, which holds for the libraries of the libraries too.
        "-Wl,--disable-new-dtags",
        "-Wl,-rpath,$ORIGIN/root/usr/lib/x86_64-linux-gnu",
        "-Wl,-rpath-link,{root}/usr/lib/x86_64-linux-gnu",
        "-pthread",
    ],
};

/// As in `libvhost_user.c`.
#[repr(C)]
struct CRegion {
    guest_addr: u64,
    size: u64,
    host_addr: u64,
}

/// As in `libvhost_user.c`.
#[repr(C)]
struct CPlace {
    regions: *const CRegion,
    region_count: u32,
    size: u32,
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    event_idx: bool,
}

/// What both files have: `argument` is a place or a path.
type New = unsafe extern "C" fn(argument: *const c_void) -> *mut c_void;
type Ready = unsafe extern "C" fn(peer: *mut c_void) -> bool;
type Run = unsafe extern "C" fn(peer: *mut c_void, batch: u32) -> u64;
type Free = unsafe extern "C" fn(peer: *mut c_void);

/// A shared object, which stays loaded.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    handle: NonNull<c_void>,
    new: New,
    run: Run,
    free: Free,
}

impl Loaded {
    fn open(library: &Library) -> Result<Self> {
        let path = build_library(library, &Progress::new()).with_context(|| {
            format!(
                "cannot have {}: `--no-c-peers` measures without those of C",
                library.name
            )
        })?;
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the name ends with a zero. The constructors in it are those of the peer's
        // libraries, which any program has that is linked to them.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let handle = NonNull::new(handle)
            .with_context(|| format!("cannot load {}: {}", path.display(), loader_error()))?;
        // SAFETY: these are the types of the functions with these names in both files of
        // `tests/bench/c`, and the object is never unloaded.
        unsafe {
            Ok(Self {
                handle,
                new: mem::transmute::<*mut c_void, New>(symbol(handle, c"peer_new")?),
                run: mem::transmute::<*mut c_void, Run>(symbol(handle, c"peer_run")?),
                free: mem::transmute::<*mut c_void, Free>(symbol(handle, c"peer_free")?),
            })
        }
    }

    /// A device on `memory`, of what this object's `peer_new` takes.
    ///
    /// # Safety
    /// `argument` must be what it takes.
    unsafe fn make(self, argument: *const c_void, memory: &GuestMemory) -> Result<Peer> {
        // SAFETY: as the caller says.
        let peer = unsafe { (self.new)(argument) };
        Ok(Peer {
            library: self,
            peer: NonNull::new(peer).context("the peer could not be made")?,
            _memory: memory.clone(),
        })
    }
}

fn symbol(handle: NonNull<c_void>, name: &CStr) -> Result<*mut c_void> {
    // SAFETY: the handle is of an object that is loaded, and the name ends with a zero.
    let symbol = unsafe { libc::dlsym(handle.as_ptr(), name.as_ptr()) };
    ensure!(!symbol.is_null(), "{}", loader_error());
    Ok(symbol)
}

fn loader_error() -> String {
    // SAFETY: what is returned is valid until the next call of the loader, and is copied.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return "no reason is known".to_owned();
    }
    // SAFETY: as above; it ends with a zero.
    let text: &CStr = unsafe { CStr::from_ptr(error.cast::<c_char>()) };
    text.to_string_lossy().into_owned()
}

/// What a peer has for one of its devices, and the memory that it works on.
struct Peer {
    library: Loaded,
    peer: NonNull<c_void>,
    _memory: GuestMemory,
}

// SAFETY: neither peer ties its device to a thread; each is used by one at a time.
unsafe impl Send for Peer {}

impl Device for Peer {
    #[inline]
    fn run(&mut self, batch: usize) -> u64 {
        // SAFETY: the peer lives until this is dropped, as does the memory that it was given.
        unsafe { (self.library.run)(self.peer.as_ptr(), batch as u32) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // SAFETY: as for `run`, and nothing uses it later.
        unsafe { (self.library.free)(self.peer.as_ptr()) }
    }
}

/// The peers of C, loaded.
#[derive(Debug)]
pub(super) struct CPeers {
    libvhost_user: Loaded,
    rte_vhost: Loaded,
    /// Where rte_vhost listens, from the first device on.
    directory: TempDir,
}

impl CPeers {
    /// Builds what is not in the cache, and loads both.
    pub(super) fn load() -> Result<Self> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "the peers of C are built on x86_64 only: use `--no-c-peers`"
        );
        Ok(Self {
            libvhost_user: Loaded::open(&LIBVHOST_USER)?,
            rte_vhost: Loaded::open(&RTE_VHOST)?,
            directory: tempfile::tempdir().context("cannot make a directory")?,
        })
    }

    /// libvhost-user's device.
    pub(super) fn libvhost_user(&self, place: Place<'_>) -> Result<impl Device + Send + use<>> {
        let mut regions: Vec<_> = place
            .memory
            .regions()
            .iter()
            .map(|region| CRegion {
                guest_addr: region.guest_addr(),
                size: region.size(),
                host_addr: region.user_addr(),
            })
            .collect();
        regions.sort_by_key(|region| region.guest_addr);
        let ptr = |gpa| place.memory.host_ptr(gpa, 1);
        let argument = CPlace {
            regions: regions.as_ptr(),
            region_count: u32::try_from(regions.len())?,
            size: place.size.into(),
            desc: ptr(place.layout.desc),
            avail: ptr(place.layout.avail),
            used: ptr(place.layout.used),
            event_idx: place.event_idx,
        };
        // SAFETY: this object's function takes such a place, and copies what it needs.
        unsafe {
            self.libvhost_user
                .make((&raw const argument).cast(), place.memory)
        }
    }

    /// rte_vhost's device.
    pub(super) fn rte_vhost(&self, place: Place<'_>, packed: bool) -> Result<RteVhost> {
        let path = self.directory.path().join("socket");
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: this object's function takes a path that ends with a zero, and copies it.
        let peer = unsafe { self.rte_vhost.make(name.as_ptr().cast(), place.memory)? };
        let frontend = attach(&path, place, packed).context("rte_vhost does not take the ring")?;
        // SAFETY: this is the type of that function of the object, which is never unloaded.
        let ready = unsafe {
            let symbol = symbol(self.rte_vhost.handle, c"peer_ready")?;
            mem::transmute::<*mut c_void, Ready>(symbol)
        };
        // SAFETY: the peer lives.
        let ready = unsafe { ready(peer.peer.as_ptr()) };
        ensure!(ready, "rte_vhost says of no device that it is ready");
        Ok(RteVhost {
            _frontend: frontend,
            peer,
        })
    }
}

/// rte_vhost's device, for as long as it has its front-end.
pub(super) struct RteVhost {
    /// Hangs up before the peer is freed, which waits for that.
    _frontend: Frontend,
    peer: Peer,
}

impl Device for RteVhost {
    #[inline]
    fn run(&mut self, batch: usize) -> u64 {
        self.peer.run(batch)
    }
}

/// Sets the ring up as the transmit queue of a network card. It has a receive queue too, or else
/// rte_vhost waits for it; nothing is ever in that.
fn attach(path: &Path, place: Place<'_>, packed: bool) -> Result<Frontend> {
    let mut frontend = Frontend::connect(path)?;
    let mut features = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_F_INDIRECT_DESC,
        VHOST_USER_F_PROTOCOL_FEATURES,
    ];
    features.extend(place.event_idx.then_some(VIRTIO_F_EVENT_IDX));
    features.extend(packed.then_some(VIRTIO_F_RING_PACKED));
    let features = bits(&features);
    let missing = features & !frontend.get_features()?;
    ensure!(missing == 0, "it does not offer the features {missing:#x}");
    frontend.get_protocol_features()?;
    frontend.set_protocol_features(bits(&[VHOST_USER_PROTOCOL_F_REPLY_ACK]))?;
    frontend.set_owner()?;
    frontend.set_features(features)?;
    frontend.set_mem_table(place.memory)?;
    let (receive, base) = if packed {
        let layout = PackedRing::place_at(SECOND_RING, place.size);
        (layout, PackedRing::FIRST_BASE)
    } else {
        let layout = SplitRing::place_at(SECOND_RING, place.size);
        (layout, SplitRing::FIRST_BASE)
    };
    for (index, layout) in [(0, receive), (1, place.layout)] {
        frontend.set_vring_num(index, place.size.into())?;
        frontend.set_vring_base(index, base)?;
        frontend.set_vring_addr(&addresses(index, layout, place.memory))?;
        // Without events: whether to call is found out, and nobody is called, as with the others.
        frontend.set_vring_call(index as u8, None)?;
        frontend.set_vring_kick(index as u8, None)?;
        frontend.set_vring_enable(index, true)?;
    }
    Ok(frontend)
}

fn addresses(index: u32, layout: Layout, memory: &GuestMemory) -> VringAddr {
    VringAddr {
        index,
        flags: 0,
        descriptor: memory.user_addr(layout.desc),
        used: memory.user_addr(layout.used),
        available: memory.user_addr(layout.avail),
        log: 0,
    }
}
