//! Sockets: listening, the original destination, what the first bytes say, copying bytes.

pub mod accepted;
pub mod ahead;
pub mod connect;
pub mod copy;
pub mod detect;
pub mod listen;
pub mod look;
pub mod metered;
pub mod pages;
pub mod peeked;
pub mod pipe;
pub mod stream;

pub use accepted::Accepted;
pub use ahead::ReadAhead;
pub use metered::Metered;
pub use peeked::Peeked;
pub use stream::Upstream;

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// A connection of whatever kind.
pub trait Io: AsyncRead + AsyncWrite + Unpin {
    /// Writes bytes after which the connection is closed at once. Where it can, it lets them leave together with its
    /// end: one segment, and one wake-up of the other side, instead of two.
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    /// Whether whoever polls it is told when there is something to read, see [`accepted`].
    fn is_watched(&self) -> bool {
        true
    }

    /// Takes what has come of a connection that is not watched and is closed next: unread bytes would make its end a reset.
    fn read_over(&mut self) {}
}

/// Sends bytes that leave together with the connection's end, or as soon as the kernel has no room for more.
fn send_last(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    SockRef::from(socket).send_with_flags(bytes, libc::MSG_MORE | libc::MSG_NOSIGNAL)
}

impl Io for TcpStream {
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_io(Interest::WRITABLE, || send_last(self, bytes)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Io for client::TlsStream<IO> {}
impl<IO: AsyncRead + AsyncWrite + Unpin> Io for server::TlsStream<IO> {}
#[cfg(test)]
impl Io for tokio::io::DuplexStream {}
