//! What can go wrong between a request and the end of its response.

use std::{error, fmt, io, sync::Arc, time::Duration};

use crate::http2::Code;

/// Why a message did not come, or did not go, whole. Cheap to clone: one broken connection may fail many requests.
#[derive(Debug, Clone)]
pub enum Error {
    /// What the other side sent is no HTTP; in words.
    Parse(&'static str),
    /// The connection ended in the middle of a message.
    Incomplete,
    /// The connection has ended.
    Closed,
    /// The connection broke.
    Io(Arc<io::Error>),
    /// A body that we were to send is not as long as was said.
    Length(&'static str),
    /// The body that we were to send broke off.
    Body(Arc<str>),
    /// The other side has ended the HTTP/2 stream.
    Reset(Code),
    /// The other side has ended the HTTP/2 connection, because of this.
    GoAway(Code),
    /// The other side has ended the HTTP/2 connection and says that it did nothing with the request.
    Unprocessed(Code),
    /// The other side did not answer a PING within this time.
    Silent(Duration),
}

impl Error {
    /// Whether the other side does not speak HTTP as it should.
    pub fn is_parse(&self) -> bool {
        matches!(self, Self::Parse(_))
    }

    /// Whether the other side certainly did nothing with the request: RFC 9113 section 8.7 says so of a refused stream
    /// and of one above the last that GOAWAY names.
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::Unprocessed(_) | Self::Reset(Code::REFUSED_STREAM))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parse(words) => f.write_str(words),
            Self::Incomplete => f.write_str("the connection ended in the middle of a message"),
            Self::Closed => f.write_str("the connection has ended"),
            Self::Io(e) => write!(f, "the connection broke: {e}"),
            Self::Length(words) => f.write_str(words),
            Self::Body(why) => write!(f, "its body broke off: {why}"),
            Self::Reset(code) => write!(f, "it ended the stream: {code}"),
            Self::GoAway(code) => write!(f, "it ended the connection: {code}"),
            Self::Unprocessed(code) => write!(f, "it ended the connection without the request: {code}"),
            Self::Silent(time) => write!(f, "it did not answer a PING within {time:?}"),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(&**e),
            _ => None,
        }
    }
}

/// Why a request got no response.
#[derive(Debug, Clone)]
pub struct SendError {
    /// What happened.
    pub error: Error,
    /// Nothing of the request has left.
    pub unsent: bool,
}

impl SendError {
    /// Whether the other side certainly did nothing with the request.
    pub fn is_unprocessed(&self) -> bool {
        self.unsent || self.error.is_unprocessed()
    }
}
