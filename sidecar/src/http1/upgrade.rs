//! Connections that have become something else (RFC 9110 section 7.8).

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use super::connection::Shared;
use crate::{http::Error, net::copy::Side};

/// The right to a connection after its upgrade.
#[derive(Debug)]
pub enum OnUpgrade {
    /// Once the client has been told.
    Later(oneshot::Receiver<Upgraded>),
    /// The application has agreed.
    Now(Upgraded),
}

impl OnUpgrade {
    /// Waits for the upgrade.
    ///
    /// # Errors
    ///
    /// Where the connection ended, or the answer was another.
    pub async fn upgraded(self) -> Result<Upgraded, Error> {
        match self {
            Self::Later(receiver) => receiver.await.map_err(|_| Error::Closed),
            Self::Now(upgraded) => Ok(upgraded),
        }
    }
}

/// The bytes of an upgraded connection.
pub struct Upgraded(Shared);

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgraded")
    }
}

impl Upgraded {
    pub(super) fn new(connection: Shared) -> Self {
        Self(connection)
    }
}

impl Side for Upgraded {}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut connection = self.0.borrow_mut();
        let (input, io) = connection.rest()?;
        if input.is_empty() {
            return Pin::new(io).poll_read(cx, buf);
        }
        let n = input.len().min(buf.remaining());
        buf.put_slice(input.get(..n).unwrap_or_default());
        input.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.0.borrow_mut().rest()?.1).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.borrow_mut().rest()?.1).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.borrow_mut().rest()?.1).poll_shutdown(cx)
    }
}
