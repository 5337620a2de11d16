//! A body as it comes from a connection.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{client, connection::Shared};
use crate::http::Error;

/// A body of which not all has come when its head did.
pub struct RecvBody(Option<Shared>);

impl std::fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecvBody")
    }
}

impl RecvBody {
    pub(super) fn new(connection: Shared) -> Self {
        Self(Some(connection))
    }

    /// The next piece, or the trailers.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(connection) = &self.0 else { return Poll::Ready(None) };
        let polled = connection.borrow_mut().poll_body(cx);
        if connection.borrow().is_received() {
            self.leave();
        }
        polled
    }

    /// Whether all was taken.
    pub fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    /// What is still to come.
    pub fn size_hint(&self) -> SizeHint {
        let Some(connection) = &self.0 else { return SizeHint::with_exact(0) };
        connection.borrow().body_length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn leave(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.borrow_mut().reader_left();
            client::give_back(connection);
        }
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        self.leave();
    }
}
