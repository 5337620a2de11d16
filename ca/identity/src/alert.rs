//! Keeps the TLS error that ended a connection. In TLS 1.3 a server judges the client's certificate after the client's
//! handshake is over, so its alert arrives below HTTP/2, which keeps an error's words and forgets its type.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first TLS error of a connection, once there is one.
pub(super) type TlsError = Arc<OnceLock<rustls::Error>>;

/// A stream that remembers the TLS error of a failed read.
pub(super) struct Remembering<S> {
    stream: S,
    error: TlsError,
}

impl<S> Remembering<S> {
    pub(super) fn new(stream: S) -> (Self, TlsError) {
        let error = TlsError::default();
        (Self { stream, error: Arc::clone(&error) }, error)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Remembering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(e)) = &result
            && let Some(tls) = super::enrol_error::find_tls(e)
        {
            // Only the first one tells the cause.
            let _ = self.error.set(tls.clone());
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Remembering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
