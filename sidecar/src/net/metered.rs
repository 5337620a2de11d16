//! A connection whose bytes are counted as they pass.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;
use crate::{
    resilience::Permit,
    telemetry::{ConnectionMetrics, Meter},
};

/// Counts what is read from a connection as received from its other side and what is written as sent to it.
#[derive(Debug)]
pub struct Metered<IO> {
    io: IO,
    meter: Meter,
    _open: Option<Open>,
}

/// What an open connection holds.
struct Open {
    metrics: Rc<ConnectionMetrics>,
    _permit: Option<Permit>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Open")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.closed();
    }
}

impl<IO> Metered<IO> {
    /// Counts the bytes of `io` on `meter`.
    pub fn new(io: IO, meter: Meter) -> Self {
        Self { io, meter, _open: None }
    }

    /// The same, and counts the connection as open for as long as it is; `permit` is its place among others.
    pub fn open(io: IO, metrics: Rc<ConnectionMetrics>, permit: Option<Permit>) -> Self {
        metrics.opened();
        Self { io, meter: metrics.meter(), _open: Some(Open { metrics, _permit: permit }) }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.meter.received(read as u64);
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> Metered<IO> {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = polled {
            self.meter.sent(written as u64);
        }
        polled
    }
}

impl<IO: Io> Io for Metered<IO> {
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.io.poll_write_last(cx, bytes);
        self.count(polled)
    }

    fn is_watched(&self) -> bool {
        self.io.is_watched()
    }

    fn read_over(&mut self) {
        self.io.read_over();
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
