//! Connections that the runtime watches only from the first time that somebody has to wait for them.
//!
//! To watch a connection and to end it costs four system calls' worth of work: two `epoll_ctl`, what the runtime keeps
//! about it, and an event for whatever happens to it meanwhile. A client that has sent its request when it is accepted,
//! and is answered soon and closed, needs none of that.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpListener, TcpStream},
};

use super::{Io, listen::acknowledge, send_last};

/// Bytes of one read of a connection that is not watched.
const PIECE: usize = 2_048;

/// A listening socket.
pub trait Accept {
    /// What it accepts.
    type Connection: AsFd;

    /// The next connection, and who makes it.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Connection, SocketAddr)>>;
}

impl Accept for TcpListener {
    type Connection = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

/// A listening socket whose connections are not watched yet.
///
/// To the runtime every watched socket is the same, and of its types `TcpStream` is the one that lets a system call of
/// ours wait for it.
#[derive(Debug)]
pub struct Listener(TcpStream);

impl Listener {
    /// Makes a bound socket, which does not block, one of this thread's runtime.
    pub fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        TcpStream::from_std(OwnedFd::from(listener).into()).map(Self)
    }
}

impl Accept for Listener {
    type Connection = std::net::TcpStream;

    async fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = || Ok(acceptfrom_with(&self.0, flags)?);
        let (socket, peer) = self.0.async_io(Interest::READABLE, accept).await?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let peer = peer.ok_or_else(|| io::Error::other("a connection of no internet address"))?;
        Ok((socket.into(), peer))
    }
}

/// Reads what there is, into `bytes`; nothing where there is nothing yet, or only an end, which the next who reads is told
/// again.
///
/// # Errors
/// Where the connection broke. The kernel says so once.
pub fn read_now(mut socket: &std::net::TcpStream, bytes: &mut BytesMut) -> io::Result<()> {
    let mut buffer = [0; PIECE];
    match socket.read(&mut buffer) {
        Ok(n) => bytes.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// A connection that was accepted, and what was read of it already.
#[derive(Debug)]
pub struct Accepted {
    prefix: BytesMut,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Unwatched(std::net::TcpStream),
    Watched(TcpStream),
    /// The runtime would not have it.
    Lost,
}

impl Accepted {
    /// A connection that nobody watches; `prefix` was read from it.
    pub fn unwatched(socket: std::net::TcpStream, prefix: BytesMut) -> Self {
        Self { prefix, socket: Socket::Unwatched(socket) }
    }

    /// One that the runtime watches already.
    pub fn watched(socket: TcpStream, prefix: BytesMut) -> Self {
        Self { prefix, socket: Socket::Watched(socket) }
    }
}

impl Socket {
    fn watch(&mut self) -> io::Result<()> {
        if let Self::Unwatched(socket) = std::mem::replace(self, Self::Lost) {
            *self = Self::Watched(TcpStream::from_std(socket)?);
        }
        Ok(())
    }

    /// Tries `now`, and has the connection watched where that would block.
    fn try_now<T>(&mut self, now: impl FnOnce(&std::net::TcpStream) -> io::Result<T>) -> Option<io::Result<T>> {
        let Self::Unwatched(socket) = self else { return None };
        match now(socket) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.watch().err().map(Err),
            done => Some(done),
        }
    }

    fn watched(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match self {
            Self::Watched(socket) => Ok(Pin::new(socket)),
            Self::Unwatched(_) | Self::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Io for Accepted {
    fn poll_write_last(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.socket.try_now(|socket| send_last(socket, bytes)) {
            Some(done) => Poll::Ready(done),
            None => self.socket.watched()?.poll_write_last(cx, bytes),
        }
    }

    fn is_watched(&self) -> bool {
        !matches!(self.socket, Socket::Unwatched(_))
    }

    fn read_over(&mut self) {
        if let Socket::Unwatched(socket) = &mut self.socket {
            // Whatever comes of it, the connection is closed next.
            let _ = socket.read(&mut [0; PIECE]);
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                // Gives the memory back: a connection may live for days.
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let mut piece = [0; PIECE];
        let room = PIECE.min(buf.remaining());
        let read = |mut socket: &std::net::TcpStream| {
            let read = socket.read(&mut piece[..room]);
            if read.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                acknowledge(socket);
            }
            read
        };
        if let Some(read) = self.socket.try_now(read) {
            let n = read?;
            buf.put_slice(&piece[..n]);
            if n == PIECE {
                // There is more to come, and the runtime reads it in larger pieces.
                self.socket.watch()?;
            }
            return Poll::Ready(Ok(()));
        }
        self.socket.watched()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.socket.try_now(|mut socket| socket.write(buf)) {
            Some(done) => Poll::Ready(done),
            None => self.socket.watched()?.poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.socket.try_now(|mut socket| socket.write_vectored(bufs)) {
            Some(done) => Poll::Ready(done),
            None => self.socket.watched()?.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.socket.try_now(|socket| socket.shutdown(Shutdown::Write)) {
            Some(done) => Poll::Ready(done),
            None => self.socket.watched()?.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::listen::bind_loopback;

    async fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = bind_loopback(0).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let listener = Listener::new(listener).unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        (client, accepted)
    }

    #[tokio::test]
    async fn it_is_watched_once_somebody_has_to_wait_for_it_and_not_before() {
        let (mut client, socket) = pair().await;
        client.write_all(b"question").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut first = BytesMut::new();
        read_now(&socket, &mut first).unwrap();
        assert_eq!(&first[..], b"question");
        let mut accepted = Accepted::unwatched(socket, first);
        let mut got = [0; 8];
        accepted.read_exact(&mut got).await.unwrap();
        accepted.write_all(b"answer").await.unwrap();
        assert!(!accepted.is_watched());
        let ask = async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            client.write_all(b"again").await.unwrap();
        };
        let mut again = [0; 5];
        let (read, ()) = tokio::join!(accepted.read_exact(&mut again), ask);
        assert_eq!((read.unwrap(), &again), (5, b"again"));
        assert!(accepted.is_watched());
    }

    #[tokio::test]
    async fn a_client_that_sends_in_pieces_does_not_wait_for_an_acknowledgement() {
        let (mut client, socket) = pair().await;
        client.set_nodelay(false).unwrap();
        // As long as the first piece is not acknowledged, the second stays where it is.
        client.write_all(b"head").await.unwrap();
        client.write_all(b"body").await.unwrap();
        let mut accepted = Accepted::unwatched(socket, BytesMut::new());
        let began = std::time::Instant::now();
        accepted.read_exact(&mut [0; 8]).await.unwrap();
        // A delayed acknowledgement comes after 40 ms (Linux: TCP_DELACK_MIN).
        assert!(began.elapsed() < std::time::Duration::from_millis(30), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_connection_that_broke_is_told_and_not_taken_for_one_that_ended() {
        let (client, socket) = pair().await;
        crate::net::listen::reset_on_close(&client);
        drop(client);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let broke = read_now(&socket, &mut BytesMut::new()).unwrap_err();
        assert_eq!(broke.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn every_byte_passes_both_ways_whoever_is_slower() {
        let (client, socket) = pair().await;
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let accepted = Accepted::unwatched(socket, BytesMut::new());
        let (mut from, mut to) = tokio::io::split(accepted);
        let (mut client_from, mut client_to) = client.into_split();
        let echo = async {
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let talk = async {
            client_to.write_all(&sent).await.unwrap();
            client_to.shutdown().await.unwrap();
        };
        let hear = async {
            let mut got = Vec::new();
            client_from.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), (), got) = tokio::join!(echo, talk, hear);
        assert!(got == sent, "the bytes are the same");
    }

    #[tokio::test]
    async fn last_words_that_do_not_fit_at_once_arrive_whole() {
        let (mut client, socket) = pair().await;
        let sent = vec![b'x'; 20_000_000];
        let mut accepted = Accepted::unwatched(socket, BytesMut::new());
        let talk = async {
            let mut left = &sent[..];
            while !left.is_empty() {
                let n = std::future::poll_fn(|cx| accepted.poll_write_last(cx, left)).await.unwrap();
                left = &left[n..];
            }
            accepted.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), heard) = tokio::join!(talk, client.read_to_end(&mut got));
        assert_eq!(heard.unwrap(), sent.len());
    }
}
