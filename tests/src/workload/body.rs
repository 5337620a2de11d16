//! Bodies of the origin: made as they are sent, so that memory stays flat, and watched, so that a body that nobody
//! took to its end is counted as cancelled.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use tokio::time::{Interval, MissedTickBehavior};

use crate::pattern;

/// A body that cannot be finished; its connection or stream ends with it.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body broke off")
    }
}

impl std::error::Error for Broken {}

/// The body of every answer.
pub type OriginBody = UnsyncBoxBody<Bytes, Broken>;

/// A body of this text.
pub fn text(text: impl Into<Bytes>) -> OriginBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn empty() -> OriginBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// `total` bytes of the pattern.
pub struct PatternBody {
    offset: u64,
    total: u64,
    sized: bool,
}

impl PatternBody {
    /// With a known length (`content-length`) or without (`chunked`).
    pub fn new(total: u64, sized: bool) -> Self {
        Self { offset: 0, total, sized }
    }
}

impl Body for PatternBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let part = pattern::slice(self.offset, self.total - self.offset);
        if part.is_empty() {
            return Poll::Ready(None);
        }
        self.offset += part.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.sized && self.offset == self.total
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized { SizeHint::with_exact(self.total - self.offset) } else { SizeHint::default() }
    }
}

/// One numbered line every 10 ms until the client leaves.
pub struct EndlessBody {
    tick: Interval,
    n: u64,
}

impl Default for EndlessBody {
    fn default() -> Self {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { tick, n: 0 }
    }
}

impl Body for EndlessBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        ready!(self.tick.poll_tick(cx));
        self.n += 1;
        Poll::Ready(Some(Ok(Frame::data(format!("{}\n", self.n).into()))))
    }
}

/// Counts one request as cancelled unless it is told that it was answered to the end.
pub struct Flight {
    cancelled: Arc<AtomicU64>,
    done: AtomicBool,
}

impl Flight {
    /// A request under way; `cancelled` grows by one if it does not end well.
    pub fn new(cancelled: Arc<AtomicU64>) -> Self {
        Self { cancelled, done: AtomicBool::new(false) }
    }

    /// The answer was handed over to its last byte.
    pub fn finish(&self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.done.load(Ordering::Relaxed) {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A body that finishes its [`Flight`] when its last frame was taken.
pub struct Watched {
    inner: OriginBody,
    flight: Flight,
    /// Bytes still to come by the answer's `content-length`.
    left: Option<u64>,
}

impl Watched {
    /// Watches `inner`, which is `length` bytes long if that is known.
    pub fn new(inner: OriginBody, flight: Flight, length: Option<u64>) -> Self {
        if inner.is_end_stream() || length == Some(0) {
            flight.finish();
        }
        Self { inner, flight, left: length }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let (Some(Ok(frame)), Some(left)) = (&frame, &mut self.left) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        // hyper does not poll a body of known length again after its last byte.
        if matches!(frame, Some(Err(_))) {
            return Poll::Ready(frame);
        }
        // Nor after trailers, which are the end.
        let trailers = matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        if frame.is_none() || trailers || self.inner.is_end_stream() || self.left == Some(0) {
            self.flight.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
