//! A body as it comes over a stream.

use std::{
    fmt,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{
    Code,
    connection::Shared,
    frame, message,
    stream::{Stream, keep},
};
use crate::http::{Error, Incoming};

/// A body of which not all has come when its head was given on.
pub struct RecvBody {
    connection: Shared,
    stream: Rc<Stream>,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBody({})", self.stream.id)
    }
}

/// The body of a message whose head has come.
pub(super) fn incoming(connection: &Shared, stream: &Rc<Stream>) -> Incoming {
    let mut state = stream.state.borrow_mut();
    if state.received && state.trailers.is_none() && state.error.is_none() {
        if state.data.is_empty() {
            return Incoming::Empty;
        }
        if state.data.len() == 1
            && let Some(data) = state.data.pop_front()
        {
            connection.borrow_mut().took(data.len());
            return Incoming::Whole(data, state.to_take.is_some());
        }
    }
    Incoming::Http2(RecvBody { connection: Rc::clone(connection), stream: Rc::clone(stream) })
}

impl RecvBody {
    /// The next piece, or the trailers.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.stream.state.borrow_mut();
        if let Some(data) = state.data.pop_front() {
            if let Some(left) = &mut state.to_take {
                *left = left.saturating_sub(data.len() as u64);
            }
            self.connection.borrow_mut().took_of(&self.stream, &mut state, data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(error) = &state.error
            && !state.received
        {
            return Poll::Ready(Some(Err(error.clone())));
        }
        if let Some(trailers) = state.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if state.received {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut state.expects) {
            // RFC 9110 section 10.1.1: who wants the body says so.
            let now = &mut *self.connection.borrow_mut();
            let at = frame::begin_fields(&mut now.out, false, self.stream.id);
            message::put_continue(&mut now.encoder, &mut now.out);
            frame::end_fields(&mut now.out, at, now.max_payload);
            now.wake_driver();
        }
        keep(&mut state.reader, cx);
        Poll::Pending
    }

    /// Whether all was taken.
    pub fn is_end_stream(&self) -> bool {
        self.stream.state.borrow().is_taken()
    }

    /// What is still to be taken, where the head said how long the body is.
    pub fn size_hint(&self) -> SizeHint {
        let state = self.stream.state.borrow();
        state.to_take.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        let mut connection = self.connection.borrow_mut();
        let sent = {
            let mut state = self.stream.state.borrow_mut();
            state.unread = true;
            state.reader = None;
            state.trailers = None;
            if state.received || state.error.is_some() {
                drop(state);
                return connection.discard(&self.stream);
            }
            state.sent
        };
        if connection.client {
            connection.reset(&self.stream, Code::CANCEL, Error::Closed);
        } else if sent {
            // RFC 9113 section 8.1: the answer is complete, and the rest of the request is not wanted.
            connection.reset(&self.stream, Code::NO_ERROR, Error::Closed);
        } else {
            connection.discard(&self.stream);
        }
    }
}
