//! What can go wrong between a front-end and its back-end.

use std::io;

use crate::protocol::request_name;

/// The outcome of an exchange with a back-end.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an exchange with a back-end failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The back-end answered a request that wanted an acknowledgement with a failure.
    #[error("the back-end refused {}: {value:#x}", request_name(*.request))]
    Nack {
        /// The request that was refused.
        request: u32,
        /// The value of the acknowledgement; zero would have been success.
        value: u64,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection")]
    Closed,
    /// The back-end did not answer within the socket's timeout.
    #[error("the back-end did not answer in time")]
    Timeout,
    /// The back-end sent something that the protocol does not allow.
    #[error("the back-end broke the protocol: {0}")]
    Protocol(String),
    /// The back-end does not offer virtio features that the options demand.
    #[error("the back-end does not offer the features {missing:#x}")]
    NotOffered {
        /// The demanded feature bits that were not offered.
        missing: u64,
    },
    /// The device did not keep `FEATURES_OK`: it cannot work with this subset of features.
    #[error("the device refused the features: status {status:#x}")]
    FeaturesRefused {
        /// The device status that was read back.
        status: u64,
    },
    /// A system call failed.
    #[error("input or output failed: {0}")]
    Io(io::Error),
}

impl Error {
    /// Whether the back-end answered, and the answer was a refusal.
    pub fn is_nack(&self) -> bool {
        matches!(self, Error::Nack { .. })
    }

    /// Whether the back-end hung up.
    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closed)
    }

    /// Whether the back-end was silent for too long.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Timeout)
    }
}

impl From<io::Error> for Error {
    /// Sorts the errors of a socket: hang-ups and timeouts have variants of their own.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Closed,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout,
            _ => Error::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}
