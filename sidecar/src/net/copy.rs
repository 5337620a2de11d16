//! Copies bytes both ways between two connections, each direction ending by itself (half-close), with no memory
//! held while nothing moves.
//!
//! All connections of a worker read into one buffer of the thread; only what the other side did not take at once is
//! kept with the connection, and reading pauses until it is gone.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Large enough for four TLS records of 16 KiB in one turn.
const SCRATCH: usize = 64 * 1024;
/// Reads in one turn before other connections get theirs.
const READS_A_TURN: usize = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Bytes that moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// From the first connection to the second.
    pub forth: u64,
    /// From the second to the first.
    pub back: u64,
}

/// How the copying ended.
#[derive(Debug)]
pub enum Ended {
    /// Both sides closed their direction.
    Closed,
    /// The connection named first broke.
    FirstBroke(io::Error),
    /// The connection named second broke.
    SecondBroke(io::Error),
    /// Nothing moved for the idle time.
    Idle,
}

enum Step {
    Copying,
    ShuttingDown,
    Done,
}

struct Half {
    step: Step,
    pending: BytesMut,
    unflushed: bool,
    copied: u64,
}

enum Broke {
    Reader(io::Error),
    Writer(io::Error),
}

impl Half {
    fn new(first_bytes: BytesMut) -> Self {
        Self { step: Step::Copying, pending: first_bytes, unflushed: false, copied: 0 }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Broke>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut reads = 0;
        loop {
            while !self.pending.is_empty() {
                let n = ready!(Pin::new(&mut *writer).poll_write(cx, &self.pending)).map_err(Broke::Writer)?;
                if n == 0 {
                    return Poll::Ready(Err(Broke::Writer(io::ErrorKind::WriteZero.into())));
                }
                self.copied += n as u64;
                self.unflushed = true;
                self.pending.advance(n);
                if self.pending.is_empty() {
                    self.pending = BytesMut::new();
                }
            }
            match self.step {
                Step::Done => return Poll::Ready(Ok(())),
                Step::ShuttingDown => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        Ok(()) => {}
                        // The other side has gone already: there is nobody left to tell.
                        Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                        Err(e) => return Poll::Ready(Err(Broke::Writer(e))),
                    }
                    self.step = Step::Done;
                }
                Step::Copying => {
                    if reads == READS_A_TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    reads += 1;
                    match self.poll_read_once(cx, reader, writer) {
                        Poll::Ready(Ok(true)) => {}
                        Poll::Ready(Ok(false)) => self.step = Step::ShuttingDown,
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Broke::Writer)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Reads once into the thread's buffer and writes what the other side takes; false at the end of the bytes.
    fn poll_read_once<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<bool, Broke>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(reader).poll_read(cx, &mut buf)).map_err(Broke::Reader)?;
            let mut bytes = buf.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(false));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *writer).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broke::Writer(io::ErrorKind::WriteZero.into()))),
                    Poll::Ready(Ok(n)) => {
                        self.copied += n as u64;
                        self.unflushed = true;
                        bytes = &bytes[n..];
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Broke::Writer(e))),
                    Poll::Pending => {
                        self.pending.extend_from_slice(bytes);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(true))
        })
    }
}

/// Copies until both directions have ended, one broke, or nothing moved for `idle`. `forth` and `back` are bytes
/// that were already read from the first and the second connection; `progress` hears of bytes as they move.
pub async fn copy_both<A, B>(
    first: &mut A,
    second: &mut B,
    forth: BytesMut,
    back: BytesMut,
    idle: Option<Duration>,
    mut progress: impl FnMut(u64, u64),
) -> (Copied, Ended)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_second, mut to_first) = (Half::new(forth), Half::new(back));
    let mut told = Copied::default();
    let mut last = Instant::now();
    let mut timer = pin!(idle.map(tokio::time::sleep));
    let ended = poll_fn(|cx| {
        let forth = to_second.poll(cx, first, second);
        let back = to_first.poll(cx, second, first);
        let now = Copied { forth: to_second.copied, back: to_first.copied };
        if now != told {
            progress(now.forth - told.forth, now.back - told.back);
            told = now;
            if idle.is_some() {
                last = Instant::now();
            }
        }
        match (forth, back) {
            (Poll::Ready(Err(Broke::Reader(e))), _) | (_, Poll::Ready(Err(Broke::Writer(e)))) => {
                return Poll::Ready(Ended::FirstBroke(e));
            }
            (Poll::Ready(Err(Broke::Writer(e))), _) | (_, Poll::Ready(Err(Broke::Reader(e)))) => {
                return Poll::Ready(Ended::SecondBroke(e));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Closed),
            _ => {}
        }
        if let (Some(idle), Some(mut timer)) = (idle, timer.as_mut().as_pin_mut()) {
            while timer.as_mut().poll(cx).is_ready() {
                if Instant::now() >= last + idle {
                    return Poll::Ready(Ended::Idle);
                }
                timer.as_mut().reset(last + idle);
            }
        }
        Poll::Pending
    })
    .await;
    (told, ended)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn one_direction_ends_and_the_other_goes_on() {
        let (mut client, mut a) = duplex(16);
        let (mut b, mut server) = duplex(16);
        let copying = async { copy_both(&mut a, &mut b, BytesMut::new(), BytesMut::new(), None, |_, _| {}).await };
        let talk = async {
            client.write_all(b"a request longer than the pipe").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = String::new();
            client.read_to_string(&mut got).await.unwrap();
            got
        };
        let serve = async {
            let mut got = String::new();
            server.read_to_string(&mut got).await.unwrap();
            server.write_all(b"an answer after the client's end").await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let ((copied, ended), answer, request) = tokio::join!(copying, talk, serve);
        assert_eq!(request, "a request longer than the pipe");
        assert_eq!(answer, "an answer after the client's end");
        assert_eq!(copied, Copied { forth: 30, back: 32 });
        assert!(matches!(ended, Ended::Closed));
    }

    #[tokio::test]
    async fn bytes_that_were_read_before_come_first() {
        let (mut client, mut a) = duplex(1024);
        let (mut b, mut server) = duplex(1024);
        client.write_all(b" world").await.unwrap();
        client.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
        copy_both(&mut a, &mut b, BytesMut::from("hello"), BytesMut::from("banner"), None, |_, _| {}).await;
        drop((a, b));
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello world");
        got.clear();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "banner");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_only_after_the_whole_idle_time() {
        let (mut client, mut a) = duplex(1024);
        let (mut b, _server) = duplex(1024);
        let start = Instant::now();
        let copying = async {
            copy_both(&mut a, &mut b, BytesMut::new(), BytesMut::new(), Some(Duration::from_secs(10)), |_, _| {}).await
        };
        let talk = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"x").await.unwrap();
        };
        let ((_, ended), ()) = tokio::join!(copying, talk);
        assert!(matches!(ended, Ended::Idle));
        assert_eq!(start.elapsed().as_secs(), 17);
    }
}
