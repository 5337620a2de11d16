//! What can go wrong between a request and the end of its response.

use std::{error, fmt, io, sync::Arc};

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
    /// An HTTP/2 stream or connection ended.
    Http2(Arc<hyper::Error>),
}

impl Error {
    /// Whether the other side does not speak HTTP as it should.
    pub fn is_parse(&self) -> bool {
        match self {
            Self::Parse(_) => true,
            Self::Http2(e) => e.is_parse(),
            _ => false,
        }
    }

    /// Whether the other side certainly did nothing with the request: RFC 9113 section 8.7 says so of a refused stream
    /// and of one above the last that GOAWAY names.
    pub fn is_unprocessed(&self) -> bool {
        let Self::Http2(e) = self else { return false };
        let mut source: Option<&(dyn error::Error + 'static)> = error::Error::source(e);
        while let Some(e) = source {
            if let Some(h2) = e.downcast_ref::<h2::Error>() {
                let refused = h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
                let gone = h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
                return refused || gone;
            }
            source = e.source();
        }
        e.is_canceled()
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
            Self::Http2(e) => e.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io(e) => Some(&**e),
            Self::Http2(e) => e.source(),
            _ => None,
        }
    }
}

impl From<hyper::Error> for Error {
    fn from(e: hyper::Error) -> Self {
        Self::Http2(Arc::new(e))
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
