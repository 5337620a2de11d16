//! What waits to be written.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use crate::net::Io;

/// Data up to this size is copied behind what is there already, which costs less than a piece of its own.
const COPY: usize = 8 * 1024;
/// Pieces of one write.
const PIECES: usize = 16;

/// Bytes in the order in which they leave. Holds no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct Out {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
    begun: bool,
}

/// How a body is told from what follows it (RFC 9112 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked,
    /// All that comes until the connection ends.
    UntilClose,
}

impl Out {
    pub(super) fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    /// A message begins.
    pub(super) fn begin(&mut self) {
        self.begun = false;
    }

    /// Whether some of the message has left.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Where a head is written, with room for `room` bytes.
    pub(super) fn head(&mut self, room: usize) -> &mut BytesMut {
        self.tail.reserve(room);
        &mut self.tail
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    fn data(&mut self, data: Bytes) {
        if data.len() <= COPY {
            return self.put(&data);
        }
        if !self.tail.is_empty() {
            self.len += self.tail.len();
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.len += data.len();
        self.pieces.push_back(data);
    }

    /// A piece of a body. What is more than was promised is an error.
    pub(super) fn body(&mut self, framing: &mut Framing, data: Bytes) -> Result<(), &'static str> {
        match framing {
            _ if data.is_empty() => {}
            Framing::None => return Err("a body where there can be none"),
            Framing::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or("a body longer than its content-length")?;
                self.data(data);
            }
            Framing::Chunked => {
                let mut size = [0; 18];
                let at = hex(data.len(), &mut size);
                self.put(size.get(at..).unwrap_or_default());
                self.data(data);
                self.put(b"\r\n");
            }
            Framing::UntilClose => self.data(data),
        }
        Ok(())
    }

    /// The end of a body. Less than was promised is an error.
    pub(super) fn end(&mut self, framing: Framing, trailers: Option<&HeaderMap>) -> Result<(), &'static str> {
        match framing {
            Framing::Length(1..) => return Err("a body shorter than its content-length"),
            Framing::Chunked => {
                self.put(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| super::head::may_trail(name)) {
                    super::head::field(&mut self.tail, name, value);
                }
                self.put(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes all. `last`: the connection is closed as soon as that is done.
    pub(super) fn poll_write(&mut self, io: &mut dyn Io, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        while self.len() > 0 {
            let n = if self.pieces.is_empty() {
                let polled = match last {
                    true => io.poll_write_last(cx, &self.tail),
                    false => Pin::new(&mut *io).poll_write(cx, &self.tail),
                };
                ready!(polled)?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let all = self.pieces.iter().map(|piece| &**piece).chain([&*self.tail]).filter(|b| !b.is_empty());
                let count = slices.iter_mut().zip(all).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count();
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices.get(..count).unwrap_or_default()))?
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            self.advance(n);
        }
        self.tail = BytesMut::new();
        Pin::new(io).poll_flush(cx)
    }

    fn advance(&mut self, mut n: usize) {
        while let Some(first) = self.pieces.front_mut() {
            let here = n.min(first.len());
            first.advance(here);
            self.len -= here;
            n -= here;
            if !first.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(n.min(self.tail.len()));
    }
}

/// Writes `n` in hexadecimal and CRLF at the end of `into`, and says where it begins.
fn hex(mut n: usize, into: &mut [u8; 18]) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [into[16], into[17]] = *b"\r\n";
    let mut at = 16;
    loop {
        at -= 1;
        into[at] = DIGITS[n & 15];
        n >>= 4;
        if n == 0 {
            return at;
        }
    }
}
