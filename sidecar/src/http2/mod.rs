//! HTTP/2 (RFC 9113), both sides, made for a proxy whose streams all live on one thread.
//!
//! Why not the crate h2 under hyper: each request goes there through two channels and a task of its own, each frame
//! through a queue, and each head through maps that are made twice. Here who sends a request writes its frames at once
//! into the buffer that the connection's one task writes out when all tasks of the turn have had theirs; what comes is
//! decoded straight into the message and given to who waits for it.
//!
//! Bounds against hostile peers stand beside what they bound, in [`connection`].

mod body;
pub mod client;
mod connection;
mod driver;
mod frame;
pub mod hpack;
mod message;
mod sending;
pub mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

pub use body::RecvBody;

/// A stream may hold this much unread; a connection as much as 64 of them, so that readers that have stopped do not stop
/// the others (linkerd2 #14908 had four). Where so many have, new requests go to another connection.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Streams that a client may have open at once.
const MAX_STREAMS: u32 = 1_024;
/// Bytes of a head, after decompression (SETTINGS_MAX_HEADER_LIST_SIZE).
const MAX_HEADERS: u32 = 64 * 1024;
/// Fields of a head. A field that the compression's table holds costs its sender one byte and us a hundred.
const MAX_FIELDS: usize = 256;

/// How the other side is asked whether it is still there.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// After this long without a byte of it.
    pub every: Duration,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Also when no stream is open.
    pub idle: bool,
}

/// Why a stream or a connection ends (RFC 9113 section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Nothing went wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The other side does not keep to the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// It is our own fault.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than the window allows.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame on a stream that has ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a length that it cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// Nothing was done with the request.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Nobody wants it any more.
    pub const CANCEL: Self = Self(8);
    /// The tables of the field compression differ.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The other side makes work without end.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}
