//! Refusals that come late: in TLS 1.3 a client has ended its handshake before the server has looked at its certificate,
//! so it learns of a refusal from a later read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{TlsFailure, find};
use crate::net::Io;

/// A connection that tells why TLS ended it. HTTP libraries keep no more than the words of an error of their connection.
#[derive(Debug)]
pub struct Late<IO, F> {
    io: IO,
    tell: Option<F>,
}

impl<IO, F: FnOnce(TlsFailure)> Late<IO, F> {
    /// Calls `tell` if a failure is met before the peer has said anything.
    pub fn new(io: IO, tell: F) -> Self {
        Self { io, tell: Some(tell) }
    }
}

impl<IO: AsyncRead + Unpin, F: FnOnce(TlsFailure)> Late<IO, F> {
    fn hear(&mut self, error: &io::Error) {
        if let Some(failure) = find(error)
            && let Some(tell) = self.tell.take()
        {
            tell(failure);
        }
    }

    /// A write met a connection that the peer has closed: why may be among what was not read yet.
    fn closed(&mut self, cx: &mut Context<'_>) {
        if self.tell.is_some()
            && let Poll::Ready(Err(e)) = Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut [0; 1_024]))
        {
            self.hear(&e);
        }
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(polled, Poll::Ready(Err(_))) {
            self.closed(cx);
        }
        polled
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, F: FnOnce(TlsFailure) + Unpin> Io for Late<IO, F> {}

impl<IO: AsyncRead + Unpin, F: FnOnce(TlsFailure) + Unpin> AsyncRead for Late<IO, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Err(e)) => self.hear(e),
            // Who has said something has taken us.
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.tell = None,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        polled
    }
}

impl<IO, F> AsyncWrite for Late<IO, F>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: FnOnce(TlsFailure) + Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
