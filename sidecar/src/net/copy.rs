//! Copies bytes both ways between two connections, each direction ending by itself (half-close), with no memory
//! held while nothing moves.
//!
//! All connections of a worker read into one buffer of the thread; only what the other side did not take at once is
//! kept with the connection, and reading pauses until it is gone. Between two plain sockets large pieces are not read at
//! all but moved by the kernel, see [`super::pipe`].

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
    net::TcpStream,
    time::Instant,
};

use tokio_rustls::server::TlsStream;

use super::{pages::PAGE, pipe::Pipe};

/// Large enough for four TLS records of 16 KiB in one turn.
const SCRATCH: usize = 64 * 1024;
/// A read of this much is a bulk transfer; a move of less is the end of one. In between nothing is gained by a change.
const BULK: (usize, usize) = (32 * 1024, 8 * 1024);
/// Reads in one turn before other connections get theirs.
const READS_A_TURN: usize = 8;

thread_local! {
    static BUFFER: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// The buffer, in the middle of a page: see [`super::pages`].
struct Scratch {
    memory: Box<[u8]>,
    from: usize,
}

impl Scratch {
    fn new() -> Self {
        let memory = vec![0; SCRATCH + PAGE].into_boxed_slice();
        let from = (PAGE + PAGE / 2 - memory.as_ptr().addr() % PAGE) % PAGE;
        Self { memory, from }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + SCRATCH]
    }
}

/// A side of the copying.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where its bytes are those of the connection, so that the kernel may move them.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl Side for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Side for TlsStream<IO> {}

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
    /// The last read was a large one.
    bulk: bool,
    pipe: Option<Pipe>,
}

enum Broke {
    Reader(io::Error),
    Writer(io::Error),
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

impl Half {
    fn new(first_bytes: BytesMut) -> Self {
        Self { step: Step::Copying, pending: first_bytes, unflushed: false, copied: 0, bulk: false, pipe: None }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Broke>>
    where
        R: Side,
        W: Side,
    {
        let mut reads = 0;
        loop {
            if let Some(pipe) = self.pipe.as_mut().filter(|p| p.held() > 0)
                && let Some(to) = writer.plain()
            {
                self.copied += ready!(pipe.poll_empty(cx, to)).map_err(Broke::Writer)? as u64;
                continue;
            }
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
                    let moved = match (self.bulk, reader.plain(), writer.plain()) {
                        (true, Some(from), Some(_)) => self.poll_fill(cx, from),
                        _ => self.poll_read_once(cx, reader, writer),
                    };
                    match moved {
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

    /// Fills the pipe; false at the end of the bytes. Who waits for bytes holds no pipe.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<Result<bool, Broke>> {
        let mut pipe = match self.pipe.take().map_or_else(Pipe::take, Ok) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::debug!(%error, "no pipe: bytes are copied");
                self.bulk = false;
                return Poll::Ready(Ok(true));
            }
        };
        let polled = pipe.poll_fill(cx, from);
        match polled {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.bulk = n >= BULK.1;
                self.pipe = Some(pipe);
                Poll::Ready(Ok(true))
            }
            // It holds nothing, so nothing is lost.
            Poll::Ready(Err(error)) if Pipe::is_refused(&error) => {
                self.bulk = false;
                Poll::Ready(Ok(true))
            }
            other => {
                pipe.give_back();
                other.map(|filled| filled.map(|_| false).map_err(Broke::Reader))
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
            let mut buf = ReadBuf::new(scratch.bytes());
            ready!(Pin::new(reader).poll_read(cx, &mut buf)).map_err(Broke::Reader)?;
            let mut bytes = buf.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.bulk = bytes.len() >= BULK.0;
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
    A: Side,
    B: Side,
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

    impl Side for tokio::io::DuplexStream {}

    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (connected, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_kernel_moves_every_byte_both_ways_and_ends_each_by_itself() {
        much_both_ways().await;
    }

    #[tokio::test]
    async fn where_the_system_does_not_splice_bytes_are_copied() {
        // What this thread is told once holds for all its connections.
        assert!(!Pipe::is_refused(&io::ErrorKind::ConnectionReset.into()));
        assert!(Pipe::take().is_ok());
        assert!(Pipe::is_refused(&io::Error::from_raw_os_error(nix::libc::ENOSYS)));
        assert!(Pipe::take().is_err());
        much_both_ways().await;
    }

    async fn much_both_ways() {
        let ((mut client, mut a), (mut b, mut server)) = (sockets().await, sockets().await);
        let sent: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
        let copying = async { copy_both(&mut a, &mut b, BytesMut::new(), BytesMut::new(), None, |_, _| {}).await };
        let (mut client_read, mut client_write) = client.split();
        let (mut server_read, mut server_write) = server.split();
        let talk = async {
            client_write.write_all(&sent).await.unwrap();
            client_write.shutdown().await.unwrap();
        };
        let answer = async {
            // Slow to begin with, so that what is under way waits in the pipe.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut got = Vec::new();
            server_read.read_to_end(&mut got).await.unwrap();
            server_write.write_all(&got).await.unwrap();
            server_write.shutdown().await.unwrap();
        };
        let hear = async {
            let mut got = Vec::new();
            client_read.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((copied, ended), (), (), got) = tokio::join!(copying, talk, answer, hear);
        assert!(got == sent, "the bytes are the same");
        assert_eq!(copied, Copied { forth: 20_000_000, back: 20_000_000 });
        assert!(matches!(ended, Ended::Closed));
    }

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
