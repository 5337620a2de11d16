//! A connection that is read in large pieces whatever its reader asks for.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Two TLS records of the greatest size and what may follow them.
const PIECE: usize = 40 * 1024;

thread_local! {
    /// The buffer of whichever connection of the thread had one last.
    static SPARE: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

fn spare() -> Box<[u8]> {
    SPARE.take().unwrap_or_else(|| vec![0; PIECE].into_boxed_slice())
}

/// rustls asks the socket for 4 KiB at a time, so a batch of frames would cost a system call for every few of them, and
/// one more to see that there is nothing left. The buffer is there only while it holds something.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl<IO> ReadAhead<IO> {
    /// Reads ahead from `io`.
    pub fn new(io: IO) -> Self {
        Self { io, held: None }
    }

    /// The connection.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(held) = &mut self.held else { return false };
        let n = buf.remaining().min(held.to - held.from);
        buf.put_slice(&held.buffer[held.from..held.from + n]);
        held.from += n;
        if held.from == held.to {
            SPARE.set(self.held.take().map(|h| h.buffer));
        }
        true
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.give(buf) {
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= PIECE {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let mut buffer = spare();
        let mut whole = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut whole);
        let to = whole.filled().len();
        if to == 0 {
            SPARE.set(Some(buffer));
            return polled;
        }
        ready!(polled)?;
        self.held = Some(Held { buffer, from: 0, to });
        self.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn small_reads_get_every_byte_in_order_and_nothing_is_held_afterwards() {
        let (io, mut other) = duplex(1 << 20);
        let mut ahead = ReadAhead::new(io);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        other.write_all(&sent).await.unwrap();
        drop(other);
        let mut got = Vec::new();
        for size in [1, 5, 4_096, PIECE + 1, 7].into_iter().cycle() {
            let mut piece = vec![0; size];
            match ahead.read(&mut piece).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
        assert_eq!(got, sent);
        assert!(ahead.held.is_none());
    }
}
