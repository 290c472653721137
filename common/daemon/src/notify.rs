//! The service manager: READY and STOPPING, as sd_notify(3) defines them.
//!
//! The socket is connected once, at start, and kept: a daemon that has given its privileges away
//! can still say STOPPING.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The link to the service manager, if one started us.
pub(crate) struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// Connects to `NOTIFY_SOCKET`. A manager that cannot be reached is logged, not fatal.
    pub(crate) fn connect() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else {
            return Self(None);
        };
        match connect(&address) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                log::warn!(
                    "cannot reach the service manager at {}: {error}",
                    address.display()
                );
                Self(None)
            }
        }
    }

    /// Nobody to tell.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// All sockets listen.
    pub(crate) fn ready(&self) {
        self.send(b"READY=1");
    }

    /// The daemon is on its way out.
    pub(crate) fn stopping(&self) {
        self.send(b"STOPPING=1");
    }

    fn send(&self, state: &[u8]) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state)
        {
            log::warn!(
                "cannot tell the service manager {}: {error}",
                state.escape_ascii()
            );
        }
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    // A manager that does not read must not hold the guests.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(manager: &ServiceManager, socket: &UnixDatagram) -> Vec<u8> {
        manager.ready();
        manager.stopping();
        let mut text = [0; 64];
        let mut all = Vec::new();
        for _ in 0..2 {
            let length = socket.recv(&mut text).unwrap();
            all.extend_from_slice(&text[..length]);
            all.push(b'\n');
        }
        all
    }

    #[test]
    fn test_states_reach_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager(Some(connect(path.as_os_str()).unwrap()));
        assert_eq!(received(&manager, &socket), b"READY=1\nSTOPPING=1\n");
    }

    #[test]
    fn test_states_reach_an_abstract_name() {
        let name = format!("vhost-device-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let manager = ServiceManager(Some(connect(OsStr::new(&format!("@{name}"))).unwrap()));
        assert_eq!(received(&manager, &socket), b"READY=1\nSTOPPING=1\n");
    }

    #[test]
    fn test_no_manager_is_no_error() {
        ServiceManager(None).ready();
    }
}
