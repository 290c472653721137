//! The numbers and structures of the vhost-user protocol, named as in its specification.
//!
//! Feature constants are bit numbers, as the specification has them; [`bits`] makes a mask.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The mask with these bit numbers set.
pub const fn bits(numbers: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

/// Size of a message's header: request, flags and size of the payload.
pub const HEADER_SIZE: usize = 12;
/// In a header's flags: the protocol's version.
pub const FLAG_VERSION_1: u32 = 1;
/// In a header's flags: the bits of the version.
pub const FLAG_VERSION_MASK: u32 = 3;
/// In a header's flags: the message is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// In a header's flags: the sender wants an acknowledgement.
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// In the payload of SET_VRING_KICK, CALL and ERR: the bits of the queue's index.
pub const VHOST_USER_VRING_IDX_MASK: u64 = 0xff;
/// In the payload of SET_VRING_KICK, CALL and ERR: no file descriptor comes with it.
pub const VHOST_USER_VRING_NOFD_MASK: u64 = 1 << 8;
/// In a vring address's flags: writes to the used ring are logged.
pub const VHOST_VRING_F_LOG: u32 = 1;
/// In the payload of GET_CONFIG and SET_CONFIG: the access is for migration.
pub const VHOST_USER_CONFIG_F_LIVE_MIGRATION: u32 = 1;
/// In the reply to SET_DEVICE_STATE_FD: the back-end sends no pipe of its own.
pub const VHOST_USER_DEVICE_STATE_NOFD: u64 = 1 << 8;
/// Bytes of guest memory for each bit of the dirty log.
pub const VHOST_LOG_PAGE: u64 = 0x1000;

/// Virtio feature bit: the device may be called even if the driver asked for no calls.
pub const VIRTIO_F_NOTIFY_ON_EMPTY: u32 = 24;
/// Virtio feature bit of vhost: log every write to guest memory.
pub const VHOST_F_LOG_ALL: u32 = 26;
/// Virtio feature bit: the driver may use indirect descriptors.
pub const VIRTIO_F_INDIRECT_DESC: u32 = 28;
/// Virtio feature bit: notifications by index.
pub const VIRTIO_F_EVENT_IDX: u32 = 29;
/// Virtio feature bit of vhost-user: there are protocol features to negotiate.
pub const VHOST_USER_F_PROTOCOL_FEATURES: u32 = 30;
/// Virtio feature bit: the device is not a legacy one.
pub const VIRTIO_F_VERSION_1: u32 = 32;
/// Virtio feature bit: memory is reached through translated addresses.
pub const VIRTIO_F_ACCESS_PLATFORM: u32 = 33;
/// Virtio feature bit: packed rings.
pub const VIRTIO_F_RING_PACKED: u32 = 34;
/// Virtio feature bit: buffers are used in the order in which they were made available.
pub const VIRTIO_F_IN_ORDER: u32 = 35;
/// Virtio feature bit: memory is ordered as by the platform.
pub const VIRTIO_F_ORDER_PLATFORM: u32 = 36;
/// Virtio feature bit: a queue can be reset alone.
pub const VIRTIO_F_RING_RESET: u32 = 40;

/// Device status bit: the guest has seen the device.
pub const VIRTIO_CONFIG_S_ACKNOWLEDGE: u64 = 1;
/// Device status bit: the guest has a driver for it.
pub const VIRTIO_CONFIG_S_DRIVER: u64 = 2;
/// Device status bit: the driver is ready.
pub const VIRTIO_CONFIG_S_DRIVER_OK: u64 = 4;
/// Device status bit: the features are settled.
pub const VIRTIO_CONFIG_S_FEATURES_OK: u64 = 8;
/// Device status bit: the device needs a reset.
pub const VIRTIO_CONFIG_S_NEEDS_RESET: u64 = 0x40;
/// Device status bit: the driver gave up.
pub const VIRTIO_CONFIG_S_FAILED: u64 = 0x80;

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        $(
            $(#[$doc])*
            pub const $name: u32 = $value;
        )+
    };
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)+) => {
        numbers! { $($(#[$doc])* $name = $value,)+ }

        /// The name of a front-end's request.
        pub fn request_name(request: u32) -> &'static str {
            match request {
                $($value => stringify!($name),)+
                _ => "an unknown request",
            }
        }
    };
}

requests! {
    /// Reads the virtio features of the back-end.
    VHOST_USER_GET_FEATURES = 1,
    /// Sets the virtio features in use.
    VHOST_USER_SET_FEATURES = 2,
    /// Begins a session.
    VHOST_USER_SET_OWNER = 3,
    /// Deprecated end of a session.
    VHOST_USER_RESET_OWNER = 4,
    /// Sets all memory regions.
    VHOST_USER_SET_MEM_TABLE = 5,
    /// Sets where dirty pages are logged.
    VHOST_USER_SET_LOG_BASE = 6,
    /// Sets the eventfd for the dirty log.
    VHOST_USER_SET_LOG_FD = 7,
    /// Sets the size of a queue.
    VHOST_USER_SET_VRING_NUM = 8,
    /// Sets the addresses of a queue's parts.
    VHOST_USER_SET_VRING_ADDR = 9,
    /// Sets where a queue goes on.
    VHOST_USER_SET_VRING_BASE = 10,
    /// Stops a queue and reads where it was.
    VHOST_USER_GET_VRING_BASE = 11,
    /// Sets a queue's kick and starts it.
    VHOST_USER_SET_VRING_KICK = 12,
    /// Sets a queue's call.
    VHOST_USER_SET_VRING_CALL = 13,
    /// Sets a queue's error signal.
    VHOST_USER_SET_VRING_ERR = 14,
    /// Reads the protocol features of the back-end.
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    /// Sets the protocol features in use.
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    /// Reads how many queues there can be.
    VHOST_USER_GET_QUEUE_NUM = 17,
    /// Enables or disables a queue.
    VHOST_USER_SET_VRING_ENABLE = 18,
    /// Asks a network device to announce the guest.
    VHOST_USER_SEND_RARP = 19,
    /// Sets the MTU of a network device.
    VHOST_USER_NET_SET_MTU = 20,
    /// Hands over the socket for the back-end's own requests.
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    /// Updates the IOTLB.
    VHOST_USER_IOTLB_MSG = 22,
    /// Sets a queue's byte order.
    VHOST_USER_SET_VRING_ENDIAN = 23,
    /// Reads configuration space.
    VHOST_USER_GET_CONFIG = 24,
    /// Writes configuration space.
    VHOST_USER_SET_CONFIG = 25,
    /// Creates a session of a crypto device.
    VHOST_USER_CREATE_CRYPTO_SESSION = 26,
    /// Closes a session of a crypto device.
    VHOST_USER_CLOSE_CRYPTO_SESSION = 27,
    /// Announces post-copy migration.
    VHOST_USER_POSTCOPY_ADVISE = 28,
    /// Begins post-copy migration.
    VHOST_USER_POSTCOPY_LISTEN = 29,
    /// Ends post-copy migration.
    VHOST_USER_POSTCOPY_END = 30,
    /// Asks for the memory in which requests in flight are tracked.
    VHOST_USER_GET_INFLIGHT_FD = 31,
    /// Hands that memory back.
    VHOST_USER_SET_INFLIGHT_FD = 32,
    /// Hands over the socket of a graphics device.
    VHOST_USER_GPU_SET_SOCKET = 33,
    /// Resets the device.
    VHOST_USER_RESET_DEVICE = 34,
    /// Kicks a queue with a message.
    VHOST_USER_VRING_KICK = 35,
    /// Reads how many memory regions there can be.
    VHOST_USER_GET_MAX_MEM_SLOTS = 36,
    /// Adds a memory region.
    VHOST_USER_ADD_MEM_REG = 37,
    /// Removes a memory region.
    VHOST_USER_REM_MEM_REG = 38,
    /// Writes the device status.
    VHOST_USER_SET_STATUS = 39,
    /// Reads the device status.
    VHOST_USER_GET_STATUS = 40,
    /// Asks for a shared object.
    VHOST_USER_GET_SHARED_OBJECT = 41,
    /// Begins to transfer the device's state.
    VHOST_USER_SET_DEVICE_STATE_FD = 42,
    /// Asks whether the transfer of the device's state succeeded.
    VHOST_USER_CHECK_DEVICE_STATE = 43,
    /// Reads the shared memory regions of the device.
    VHOST_USER_GET_SHMEM_CONFIG = 44,
}

numbers! {
    /// Back-end's request: an IOTLB entry is missing or invalid.
    VHOST_USER_BACKEND_IOTLB_MSG = 1,
    /// Back-end's request: configuration space changed.
    VHOST_USER_BACKEND_CONFIG_CHANGE_MSG = 2,
    /// Back-end's request: a host notifier for a queue.
    VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG = 3,
    /// Back-end's request: call the guest.
    VHOST_USER_BACKEND_VRING_CALL = 4,
    /// Back-end's request: a queue has an error.
    VHOST_USER_BACKEND_VRING_ERR = 5,

    /// Protocol feature bit: more than one queue, and GET_QUEUE_NUM.
    VHOST_USER_PROTOCOL_F_MQ = 0,
    /// Protocol feature bit: the dirty log is in shared memory.
    VHOST_USER_PROTOCOL_F_LOG_SHMFD = 1,
    /// Protocol feature bit: SEND_RARP.
    VHOST_USER_PROTOCOL_F_RARP = 2,
    /// Protocol feature bit: acknowledgements.
    VHOST_USER_PROTOCOL_F_REPLY_ACK = 3,
    /// Protocol feature bit: NET_SET_MTU.
    VHOST_USER_PROTOCOL_F_MTU = 4,
    /// Protocol feature bit: the back-end can send requests.
    VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5,
    /// Protocol feature bit: SET_VRING_ENDIAN.
    VHOST_USER_PROTOCOL_F_CROSS_ENDIAN = 6,
    /// Protocol feature bit: crypto sessions.
    VHOST_USER_PROTOCOL_F_CRYPTO_SESSION = 7,
    /// Protocol feature bit: post-copy migration.
    VHOST_USER_PROTOCOL_F_PAGEFAULT = 8,
    /// Protocol feature bit: GET_CONFIG and SET_CONFIG.
    VHOST_USER_PROTOCOL_F_CONFIG = 9,
    /// Protocol feature bit: the back-end's requests can carry file descriptors.
    VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD = 10,
    /// Protocol feature bit: host notifiers.
    VHOST_USER_PROTOCOL_F_HOST_NOTIFIER = 11,
    /// Protocol feature bit: requests in flight are tracked in shared memory.
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12,
    /// Protocol feature bit: RESET_DEVICE.
    VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13,
    /// Protocol feature bit: kicks and calls are messages.
    VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS = 14,
    /// Protocol feature bit: ADD_MEM_REG, REM_MEM_REG and GET_MAX_MEM_SLOTS.
    VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15,
    /// Protocol feature bit: SET_STATUS and GET_STATUS.
    VHOST_USER_PROTOCOL_F_STATUS = 16,
    /// Protocol feature bit: Xen's mappings.
    VHOST_USER_PROTOCOL_F_XEN_MMAP = 17,
    /// Protocol feature bit: shared objects.
    VHOST_USER_PROTOCOL_F_SHARED_OBJECT = 18,
    /// Protocol feature bit: the device's state can be transferred.
    VHOST_USER_PROTOCOL_F_DEVICE_STATE = 19,
    /// Protocol feature bit: GET_VRING_BASE does not wait for requests in flight.
    VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT = 20,
}

/// A memory region in SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest physical address of the first byte.
    pub guest_phys_addr: u64,
    /// Size in bytes.
    pub memory_size: u64,
    /// Address of the first byte in the front-end.
    pub user_addr: u64,
    /// Where in the file the region starts.
    pub mmap_offset: u64,
}

/// The payload of SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE and SET_VRING_ENABLE.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VringState {
    /// The queue.
    pub index: u32,
    /// The value.
    pub num: u32,
}

/// The payload of SET_VRING_ADDR. The addresses of the parts are user addresses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VringAddr {
    /// The queue.
    pub index: u32,
    /// [`VHOST_VRING_F_LOG`] or nothing.
    pub flags: u32,
    /// The descriptor table.
    pub descriptor: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// Guest physical address of the used ring, for the dirty log.
    pub log: u64,
}

/// The payload of SET_LOG_BASE: where in the file that comes with it the log is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LogArea {
    /// Size in bytes.
    pub mmap_size: u64,
    /// Where in the file the log starts.
    pub mmap_offset: u64,
}

/// The head of the payload of GET_CONFIG and SET_CONFIG; `size` bytes follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ConfigHeader {
    /// Offset into configuration space.
    pub offset: u32,
    /// Bytes to read or write.
    pub size: u32,
    /// Zero or [`VHOST_USER_CONFIG_F_LIVE_MIGRATION`].
    pub flags: u32,
}

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, padded as a C compiler does it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Inflight {
    /// Size of the area in bytes.
    pub mmap_size: u64,
    /// Where in the file the area starts.
    pub mmap_offset: u64,
    /// Number of queues.
    pub num_queues: u16,
    /// Size of the queues.
    pub queue_size: u16,
    /// Padding.
    pub padding: u32,
}

/// What the region for requests in flight has at the beginning of a split ring's part.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QueueRegionSplit {
    /// Zero.
    pub features: u64,
    /// One, or zero when the region was not used yet.
    pub version: u16,
    /// How many [`DescStateSplit`] follow.
    pub desc_num: u16,
    /// The head of the list of the last batch of used descriptors.
    pub last_batch_head: u16,
    /// The used index when that list was dealt with.
    pub used_idx: u16,
}

/// The state of a descriptor of a split ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DescStateSplit {
    /// Whether the chain with this head is in flight.
    pub inflight: u8,
    /// Padding.
    pub padding: [u8; 5],
    /// The next one of the last batch.
    pub next: u16,
    /// Rises from one request to the next.
    pub counter: u64,
}

/// What the region for requests in flight has at the beginning of a packed ring's part.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QueueRegionPacked {
    /// Zero.
    pub features: u64,
    /// One, or zero when the region was not used yet.
    pub version: u16,
    /// How many [`DescStatePacked`] follow.
    pub desc_num: u16,
    /// The head of the list of free entries.
    pub free_head: u16,
    /// The same before the last change.
    pub old_free_head: u16,
    /// Where the next used descriptor goes.
    pub used_idx: u16,
    /// The same before the last change.
    pub old_used_idx: u16,
    /// The wrap counter there.
    pub used_wrap_counter: u8,
    /// The same before the last change.
    pub old_used_wrap_counter: u8,
    /// Padding, and what a C compiler adds to it.
    pub padding: [u8; 10],
}

/// The state of a descriptor that was taken from a packed ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DescStatePacked {
    /// Whether the chain that begins here is in flight.
    pub inflight: u8,
    /// Padding.
    pub padding: u8,
    /// The next entry of the chain, or of the free list.
    pub next: u16,
    /// The last entry of the chain that begins here.
    pub last: u16,
    /// How many entries that has.
    pub num: u16,
    /// Rises from one request to the next.
    pub counter: u64,
    /// The buffer id.
    pub id: u16,
    /// The descriptor's flags.
    pub flags: u16,
    /// The buffer's length.
    pub len: u32,
    /// The buffer's address.
    pub addr: u64,
}

/// The payload of SET_DEVICE_STATE_FD.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceStateTransfer {
    /// Zero to save the state of the back-end, one to load it.
    pub direction: u32,
    /// Zero: the device is stopped.
    pub phase: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_specifications_sizes() {
        assert_eq!(size_of::<MemoryRegion>(), 32);
        assert_eq!(size_of::<VringState>(), 8);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(size_of::<LogArea>(), 16);
        assert_eq!(size_of::<ConfigHeader>(), 12);
        assert_eq!(size_of::<Inflight>(), 24);
        assert_eq!(size_of::<QueueRegionSplit>(), 16);
        assert_eq!(size_of::<DescStateSplit>(), 16);
        assert_eq!(size_of::<QueueRegionPacked>(), 32);
        assert_eq!(size_of::<DescStatePacked>(), 32);
        assert_eq!(bits(&[0, 3, 32]), 0x1_0000_0009);
        assert_eq!(request_name(44), "VHOST_USER_GET_SHMEM_CONFIG");
        assert_eq!(request_name(45), "an unknown request");
    }
}
