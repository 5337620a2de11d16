//! Our own words where hyper answers a request head that it cannot read.
//!
//! hyper answers such a head itself, with a bare status line, before any code of ours hears of it. A connection on
//! which no answer of ours is under way can only carry that reply, so this is where it is given the header
//! `outrigger-error` and a text, as every response of the sidecar's own has them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    body::{Body, BodyError},
    headers,
    reply::own_words,
};
use crate::reason::Reason;

/// No answer is under way: what hyper writes now is its own.
const IDLE: u8 = 0;
/// A request was read and its answer is being made or sent.
const ANSWERING: u8 = 1;
/// hyper has taken the whole answer; it may not all be written.
const TAKEN: u8 = 2;
/// The connection has become something else.
const UPGRADED: u8 = 3;

/// What a connection is doing. Shared between the two halves that hyper keeps apart; both stay on one thread.
#[derive(Debug, Clone, Default)]
pub(super) struct Doing(Arc<AtomicU8>);

impl Doing {
    fn is(&self, state: u8) -> bool {
        self.0.load(Relaxed) == state
    }

    /// A request was read.
    pub(super) fn begin(&self) {
        self.0.store(ANSWERING, Relaxed);
    }

    /// Watches the answer to its end.
    pub(super) fn answer(&self, response: Response<Body>) -> Response<Answer> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.0.store(UPGRADED, Relaxed);
        }
        response.map(|body| Answer { body, doing: self.clone() })
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    doing: Doing,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.doing.is(ANSWERING) {
            self.doing.0.store(TAKEN, Relaxed);
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that hyper serves HTTP/1.x on.
#[derive(Debug)]
pub(super) struct Watching<IO> {
    io: IO,
    doing: Doing,
    own: Bytes,
}

impl<IO> Watching<IO> {
    pub(super) fn new(io: IO, doing: Doing) -> Self {
        Self { io, doing, own: Bytes::new() }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watching<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> Watching<IO> {
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.own.has_remaining() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.own))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether `bytes` are hyper's reply; then ours is sent in its stead.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if !self.doing.is(IDLE) {
            return false;
        }
        let Some(own) = reply_instead_of(bytes) else { return false };
        self.own = own;
        true
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watching<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [buf, ..] = bufs
            && self.replaces(buf)
        {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        // hyper flushes only after it has written all that it holds.
        if self.doing.is(TAKEN) {
            self.doing.0.store(IDLE, Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What to say in place of a reply of hyper's own (RFC 9112 section 2.2, RFC 6585 section 5).
fn reply_instead_of(bytes: &[u8]) -> Option<Bytes> {
    let line = bytes.strip_prefix(b"HTTP/1.1 ")?;
    let what = match line.get(..4)? {
        b"400 " => "the request head is not HTTP/1.1 as RFC 9112 has it",
        b"414 " => "the request target is longer than 65,534 bytes",
        b"431 " => "the request head has more than 100 fields or 400 KiB",
        _ => return None,
    };
    let status = line.split(|b| *b == b'\r').next()?;
    let text = own_words(Reason::BadRequest, what);
    let reply = [
        b"HTTP/1.1 ".as_slice(),
        status,
        b"\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n",
        headers::ERROR.as_str().as_bytes(),
        b": ",
        Reason::BadRequest.code().as_bytes(),
        format!("\r\ncontent-length: {}\r\n\r\n", text.len()).as_bytes(),
        text.as_bytes(),
    ]
    .concat();
    Some(reply.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::http::{Body, server};

    async fn said_to(request: &'static [u8]) -> String {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let serving = server::http1(
            io,
            async |_| http::Response::new(Body::Full("HTTP/1.1 400 Bad Request\r\n\r\n".into())),
            std::future::pending(),
        );
        let asking = async {
            client.write_all(request).await.unwrap();
            let mut said = String::new();
            client.read_to_string(&mut said).await.unwrap();
            said
        };
        tokio::join!(serving, asking).1
    }

    #[tokio::test]
    async fn a_head_that_cannot_be_read_is_refused_in_our_words() {
        for bad in [
            b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n".as_slice(),
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        ] {
            let said = said_to(bad).await;
            assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
            assert!(said.contains("\r\noutrigger-error: bad_request\r\n"), "{said}");
            let (head, text) = said.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", text.len())), "{said}");
            assert!(text.contains("RFC 9112"), "{said}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000)).leak();
        assert!(said_to(long.as_bytes()).await.contains("longer than 65,534 bytes"));
        let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(101)).leak();
        assert!(said_to(many.as_bytes()).await.contains("more than 100 fields"));
    }

    #[tokio::test]
    async fn an_answer_that_looks_like_one_of_hypers_passes() {
        let said =
            said_to(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 2, "{said}");
        assert_eq!(said.matches("\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n").count(), 2, "{said}");
        assert!(!said.contains("outrigger-error"), "{said}");
    }
}
