//! vhost-user messages, as the `vhost` crate's message layer calls them.
//!
//! A method that returns [`refused`] makes its message fail, and the session goes on. Any other
//! error, above all in a message that must be answered with a value, closes the connection.

use std::fmt::Display;
use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::device::Device;
use crate::session::Session;
use crate::table::Table;
use crate::vring::UserAddresses;

/// The base of each region in this process, in the only message that may ask for it.
type RegionBases = Option<Vec<vhost::VhostUserMemoryRegionBase>>;

/// The message fails, the connection stays.
fn refused(why: impl Display) -> Error {
    Error::ReqHandlerError(io::Error::other(why.to_string()))
}

impl<D: Device> VhostUserBackendReqHandlerMut for Session<D> {
    fn set_owner(&mut self) -> Result<()> {
        self.begin().map_err(refused)
    }

    /// Deprecated; the specification lets a back-end ignore it.
    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.tell_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.negotiate(features).map_err(refused)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.offered_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // First, as the message layer takes them whatever is returned here.
        self.set_protocol(features);
        let unknown = features & !self.offered_protocol().bits();
        if unknown != 0 {
            return Err(refused(format_args!(
                "protocol features {unknown:#x} were not offered"
            )));
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<RegionBases> {
        let (limits, allowed) = (self.limits(), self.memory_fs());
        let table = Table::map(regions, &files, limits, allowed).map_err(refused)?;
        self.change_memory(table).map_err(refused)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(self.limits().slots as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let (limits, allowed) = (self.limits(), self.memory_fs());
        let table = self.table().with(region, &file, limits, allowed);
        let table = table.map_err(refused)?;
        self.change_memory(table).map_err(refused)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let table = self.table().without(region).map_err(refused)?;
        self.change_memory(table).map_err(refused)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vring_count())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.set_size(index, num).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = UserAddresses {
            descriptor,
            available,
            used,
        };
        let is_logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let log = is_logged.then_some(log);
        self.set_addresses(index, addresses, log).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.set_base(index, base).map_err(refused)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.stop(index).map_err(|_| Error::InvalidParam)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_kick(index.into(), fd).map_err(refused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_call(index.into(), fd).map_err(refused)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_err(index.into(), fd).map_err(refused)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.enable(index, enable).map_err(refused)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(self.read_config(offset, size))
    }

    /// Nothing in it may be written: whatever a guest does, that is no failure of its front-end.
    fn set_config(
        &mut self,
        _offset: u32,
        _buf: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        Ok(())
    }

    /// The answer is not a number that could say no: a log that cannot be used ends the session.
    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let VhostUserLog {
            mmap_size,
            mmap_offset,
        } = *log;
        self.set_log(&file, mmap_offset, mmap_size).map_err(|why| {
            self.refused(why);
            Error::InvalidParam
        })
    }

    /// The answer has a region in it, so nothing else could say no: a front-end that asks for one
    /// that cannot be loses its session.
    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight {
            num_queues,
            queue_size,
            ..
        } = *inflight;
        let (file, len) = self.make_inflight(num_queues, queue_size).map_err(|why| {
            self.refused(why);
            Error::InvalidParam
        })?;
        let made = VhostUserInflight::new(len, 0, num_queues, queue_size);
        Ok((made, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight {
            mmap_size,
            mmap_offset,
            num_queues,
            queue_size,
        } = *inflight;
        self.set_inflight(&file, mmap_offset, mmap_size, num_queues, queue_size)
            .map_err(refused)
    }

    // What follows belongs to protocol features that are not offered: the front-end should not
    // have sent it.

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(refused("this is not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("shared objects are not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(refused("device state is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refused("device state is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("shared memory is not offered"))
    }
}
