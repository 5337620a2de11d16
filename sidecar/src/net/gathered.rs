//! A connection whose writes are collected until everybody who is ready to write has written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Collected at most before it is written whoever else is ready: four TLS records.
const LIMIT: usize = 64 * 1024;
/// A piece of this size is not worth a copy where nothing waits before it.
const LARGE: usize = 8 * 1024;

/// Many requests share one HTTP/2 connection, and each of them asks for a flush as soon as its frames are there. The
/// first flush after a write therefore gives way once to all tasks that are ready, and only the second one writes: the
/// frames of one turn of the event loop leave as one TLS record and one system call.
#[derive(Debug)]
pub struct Gathered<IO> {
    io: IO,
    buffer: Vec<u8>,
    written: usize,
    gave_way: bool,
}

impl<IO> Gathered<IO> {
    /// Collects what is written to `io`.
    pub fn new(io: IO) -> Self {
        Self { io, buffer: Vec::new(), written: 0, gave_way: false }
    }
}

impl<IO: AsyncWrite + Unpin> Gathered<IO> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.written = 0;
        // An idle connection holds no memory.
        self.buffer = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Makes room; true where the next piece of `length` bytes should go past the buffer.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(length >= LARGE));
        }
        if self.buffer.len() + length > LIMIT {
            ready!(self.poll_drain(cx))?;
            return Poll::Ready(Ok(length >= LARGE));
        }
        Poll::Ready(Ok(false))
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(4 * 1024);
        }
        self.buffer.extend_from_slice(bytes);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if ready!(self.poll_room(cx, buf.len()))? {
            return Pin::new(&mut self.io).poll_write(cx, buf);
        }
        self.keep(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|b| b.len()).sum();
        if ready!(self.poll_room(cx, length))? {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| self.keep(buf));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() {
            if !self.gave_way {
                self.gave_way = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_drain(cx))?;
        }
        self.gave_way = false;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_first_flush_gives_way_once_and_the_second_writes_all() {
        let (io, mut other) = duplex(1 << 20);
        let mut gathered = Gathered::new(io);
        let mut cx = Context::from_waker(Waker::noop());
        gathered.write_all(b"one").await.unwrap();
        assert!(Pin::new(&mut gathered).poll_flush(&mut cx).is_pending());
        assert!(other.read_u8().now_or_never().is_none(), "nothing has left yet");
        gathered.write_all(b" two").await.unwrap();
        assert!(Pin::new(&mut gathered).poll_flush(&mut cx).is_ready());
        let mut got = [0; 7];
        assert_eq!(other.read(&mut got).await.unwrap(), 7, "both in one piece");
        assert_eq!(&got, b"one two");
    }

    #[tokio::test]
    async fn more_than_the_limit_is_never_held_and_nothing_is_lost() {
        let (io, mut other) = duplex(100);
        let mut gathered = Gathered::new(io);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let write = async {
            let mut rest = &sent[..];
            let mut size = 1;
            while !rest.is_empty() {
                let n = size.min(rest.len());
                let written = poll_fn(|cx| Pin::new(&mut gathered).poll_write(cx, &rest[..n])).await.unwrap();
                rest = &rest[written..];
                assert!(gathered.buffer.len() <= LIMIT);
                size = size * 3 % 20_011 + 1;
            }
            gathered.shutdown().await.unwrap();
        };
        let read = async {
            let mut got = Vec::new();
            other.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::join!(write, read);
        assert_eq!(got, expected);
    }
}
