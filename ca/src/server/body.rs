//! A request's body with an end: so many bytes, by such a time.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;

/// A body whose bytes and time are bounded. Its error is the gRPC status that tells the caller so.
pub(super) struct Bounded {
    inner: Incoming,
    left: usize,
    deadline: Pin<Box<Sleep>>,
    time: Duration,
}

impl Bounded {
    /// At most `bytes`, all of them within `time` from now.
    pub(super) fn new(inner: Incoming, bytes: usize, time: Duration) -> Self {
        Self { inner, left: bytes, deadline: Box::pin(sleep(time)), time }
    }
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            let time = self.time;
            return Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                "the request did not come whole within {time:?}; send it at once"
            )))));
        }
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::cancelled(error.to_string())))),
            None => return Poll::Ready(None),
        };
        match frame.data_ref().map_or(Some(self.left), |data| self.left.checked_sub(data.len())) {
            Some(left) => self.left = left,
            None => {
                let status = Status::resource_exhausted("the request is longer than any that this CA takes");
                return Poll::Ready(Some(Err(status)));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
