//! A body as it comes from a connection.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::Error;
use crate::{
    http1::{OnUpgrade, RecvBody},
    http2,
};

/// The body of a request or a response that has come.
#[derive(Debug)]
pub enum Incoming {
    /// There is none.
    Empty,
    /// It has all come, and whether its head said how long it is. Where it did not, neither will we: how a message is
    /// framed must not depend on how fast it came.
    Whole(Bytes, bool),
    /// It is coming over HTTP/1.x.
    Http1(RecvBody),
    /// It is coming over HTTP/2.
    Http2(http2::RecvBody),
    /// There is none, and the connection may become, or has become, something else.
    Upgrade(OnUpgrade),
}

impl Incoming {
    /// The next piece, or the trailers.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self {
            Self::Empty | Self::Upgrade(_) => Poll::Ready(None),
            Self::Whole(bytes, _) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Http1(body) => body.poll(cx),
            Self::Http2(body) => body.poll(cx),
        }
    }

    /// Whether all was taken.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Upgrade(_) => true,
            Self::Whole(..) => false,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    /// What is known of the length of what is still to come.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Upgrade(_) => SizeHint::with_exact(0),
            Self::Whole(bytes, true) => SizeHint::with_exact(bytes.len() as u64),
            Self::Whole(_, false) => SizeHint::default(),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }

    /// The right to the connection, where it is to become something else.
    pub fn upgrade(self) -> Option<OnUpgrade> {
        match self {
            Self::Upgrade(upgrade) => Some(upgrade),
            _ => None,
        }
    }
}
