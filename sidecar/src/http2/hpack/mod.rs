//! Field compression for HTTP/2 (HPACK, RFC 7541).
//!
//! A connection between two sidecars lives long and its field lists repeat, so what counts is the price of a field that
//! is already in the dynamic table: the decoder keeps *parsed* fields there and hands out clones of them, and the
//! encoder finds them by one hash. Neither shifts or copies a table, whatever is evicted.
//!
//! Faults come in two kinds. An [`Error`] means that the two tables no longer agree and ends the connection
//! (COMPRESSION_ERROR, RFC 9113 section 4.3). A *malformed* field (RFC 9113 section 8.2.1) keeps its place in the table and
//! ends only its stream: see [`Decoded`].

mod decode;
mod encode;
mod huffman;
mod integer;
mod sent;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery},
};

pub use self::{
    decode::{Decoder, Take},
    encode::Encoder,
};

/// What every table holds until the SETTINGS say otherwise (RFC 9113 section 6.5.2).
pub const DEFAULT_TABLE_SIZE: usize = 4096;

/// What an entry costs beside its name and its value (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// A decoded field, right in itself: of its kind, and of no character that RFC 9113 section 8.2.1 forbids.
///
/// Whether it is allowed where it stands (pseudo-fields first, each one once) is for the reader of the whole list to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`
    Method(Method),
    /// `:scheme`
    Scheme(Scheme),
    /// `:authority`: not empty, without user information (RFC 9113 section 8.3.1)
    Authority(Authority),
    /// `:path`: begins with `/` or is `*` (RFC 9113 section 8.3.1)
    Path(PathAndQuery),
    /// `:protocol` (RFC 8441 section 4): a token
    Protocol(Bytes),
    /// `:status`
    Status(StatusCode),
    /// Any other; the value is marked sensitive where the peer forbids to index it (RFC 7541 section 7.1.3)
    Header(HeaderName, HeaderValue),
}

/// The value of `:scheme`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
    /// Any other that is well formed (RFC 3986 section 3.1), as it was received
    Other(Bytes),
}

impl Scheme {
    /// As it is written in a message.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Http => b"http",
            Self::Https => b"https",
            Self::Other(scheme) => scheme,
        }
    }
}

/// How a block was decoded that kept the tables in step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Decoded {
    /// What the list counts against SETTINGS_MAX_HEADER_LIST_SIZE, whether or not it was handed out.
    pub size: usize,
    /// The list is larger than allowed: the fields beyond the bound were not handed out.
    pub too_large: bool,
    /// A field was malformed and not handed out: a stream error of type PROTOCOL_ERROR (RFC 9113 section 8.1.1).
    pub malformed: bool,
}

/// Why a block cannot be decoded. The peer is to blame; the connection must end with COMPRESSION_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The block ends within a field.
    Truncated,
    /// An integer of more than 28 bits, or padded with zeros beyond that (RFC 7541 section 5.1).
    Integer,
    /// An index of zero, or one beyond the last entry (RFC 7541 section 2.3.3).
    Index,
    /// A Huffman code with EOS in it, or with padding that is too long or not of ones (RFC 7541 section 5.2).
    Huffman,
    /// A table size above the one we allow, or elsewhere than at the start of the block (RFC 7541 sections 4.2 and 6.3).
    TableSize,
    /// We reduced the table, the peer acknowledged, and its next block does not (RFC 9113 section 4.3.1).
    MissingTableSize,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the peer's field block ends within a field",
            Self::Integer => "the peer's field block holds an integer of more than 28 bits",
            Self::Index => "the peer's field block refers to an entry that its table does not have",
            Self::Huffman => "the peer's field block holds an invalid Huffman code",
            Self::TableSize => "the peer's field block changes the table size too late or beyond our limit",
            Self::MissingTableSize => "the peer's field block does not obey the reduced table size it acknowledged",
        })
    }
}

impl std::error::Error for Error {}

/// A pseudo-field's name (RFC 9113 section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pseudo {
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
}

impl Pseudo {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Authority => ":authority",
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Scheme => ":scheme",
            Self::Status => ":status",
        }
    }
}
