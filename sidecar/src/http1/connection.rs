//! One connection: what has come and was not taken, the body that is coming, what waits to leave.

use std::{
    cell::RefCell,
    future::Future as _,
    io,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::io::AsyncReadExt as _;

use super::{
    chunked::{Chunked, Piece},
    client::Pool,
    head::{Bad, MAX_HEAD},
    out::{Framing, Out},
};
use crate::{http::Error, net::Io};

/// Bytes of one read, at most.
const READ: usize = 64 * 1024;
/// What was read is copied out of the buffer that all connections of a worker read into, up to this size; beyond it,
/// the buffer is given away and another one made.
const COPY: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

/// A connection, and whoever takes the body off it.
pub(super) type Shared = Rc<RefCell<Connection>>;

/// The state of one connection.
pub(super) struct Connection {
    /// Read and not taken.
    input: Bytes,
    /// The beginning of a head that did not come in one piece.
    partial: BytesMut,
    eof: bool,
    receiving: Receiving,
    /// A [`RecvBody`](super::RecvBody) takes the body off.
    has_reader: bool,
    /// The client waits for "100 Continue".
    pub(super) expects: bool,
    pub(super) out: Out,
    /// It has become something else and belongs to others.
    pub(super) upgraded: bool,
    /// Whom to wake when the body's reader is done.
    waiting: Option<Waker>,
    /// Where a connection to an application goes back to.
    pub(super) home: Option<Home>,
    /// The task that takes the body off.
    reader: Option<Waker>,
    /// None once the connection was closed, which may be while others still hold on to it.
    io: Option<Box<dyn Io>>,
}

/// Where a client's connection goes when its response was taken.
pub(super) struct Home {
    /// Who closes it by being gone: an endpoint that has left takes its idle connections along.
    pub(super) pool: Weak<Pool>,
    /// The request has left and nobody said that this is the last exchange.
    pub(super) may_return: bool,
}

#[derive(Debug)]
enum Receiving {
    Done,
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
    /// It broke off, or nobody wants the rest.
    Broken,
}

/// Takes the first `n` bytes.
pub(super) fn take(from: &mut Bytes, n: usize) -> Bytes {
    if n == from.len() { std::mem::take(from) } else { from.split_to(n) }
}

pub(super) fn share(io: impl Io + 'static) -> Shared {
    Rc::new(RefCell::new(Connection {
        input: Bytes::new(),
        partial: BytesMut::new(),
        eof: false,
        receiving: Receiving::Done,
        has_reader: false,
        expects: false,
        out: Out::default(),
        upgraded: false,
        waiting: None,
        home: None,
        reader: None,
        io: Some(Box::new(io)),
    }))
}

impl Connection {
    /// Reads a head with `parse`; none where the connection ended before one began.
    pub(super) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&Bytes) -> Result<Option<(T, usize)>, Bad>,
    ) -> Poll<Result<Option<T>, HeadError>> {
        loop {
            if !self.input.is_empty() {
                if self.partial.is_empty() {
                    if let Some((head, len)) = parse(&self.input)? {
                        take(&mut self.input, len);
                        return Poll::Ready(Ok(Some(head)));
                    }
                    self.partial = BytesMut::from(&*std::mem::take(&mut self.input));
                } else {
                    let more = std::mem::take(&mut self.input);
                    self.partial.extend_from_slice(&more);
                    // Only the end of a line can end a head.
                    if memchr::memchr(b'\n', &more).is_some() {
                        let all = std::mem::take(&mut self.partial).freeze();
                        if let Some((head, len)) = parse(&all)? {
                            if len > MAX_HEAD {
                                return Poll::Ready(Err(Bad::FIELDS.into()));
                            }
                            self.input = all;
                            take(&mut self.input, len);
                            return Poll::Ready(Ok(Some(head)));
                        }
                        self.partial = all.into();
                    }
                }
                if self.partial.len() > MAX_HEAD {
                    return Poll::Ready(Err(Bad::FIELDS.into()));
                }
                // RFC 9112 section 2.2: empty lines before a request are nothing.
                if self.partial.iter().all(|b| matches!(b, b'\r' | b'\n')) {
                    self.partial = BytesMut::new();
                }
            }
            if self.eof {
                let whole = self.partial.is_empty();
                return Poll::Ready(if whole { Ok(None) } else { Err(Error::Incomplete.into()) });
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// Reads what there is, up to [`READ`].
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.reserve(READ);
            let io = self.io.as_mut().ok_or(Error::Closed)?;
            let read = ready!(pin!(io.read_buf(scratch)).poll(cx)).map_err(broke)?;
            self.eof = read == 0;
            let bytes = if read <= COPY {
                let bytes = Bytes::copy_from_slice(scratch);
                scratch.clear();
                bytes
            } else {
                scratch.split().freeze()
            };
            self.input = if self.input.is_empty() { bytes } else { [&*self.input, &*bytes].concat().into() };
            Poll::Ready(Ok(()))
        })
    }

    /// Ends when the other side has closed or broken the connection. What comes is kept for later, and no more is read
    /// then: a client that sends its next request before it has the answer to this one is still there.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.eof {
            if !self.input.is_empty() || !self.partial.is_empty() {
                return Poll::Pending;
            }
            if ready!(self.poll_fill(cx)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Whether whoever reads learns when there is something to read.
    pub(super) fn is_watched(&self) -> bool {
        self.io.as_ref().is_none_or(|io| io.is_watched())
    }

    /// Ends when the client has gone while its request is worked on.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if self.has_reader {
            // Whoever reads the body learns of the connection's end.
            self.wait(cx);
            return Poll::Pending;
        }
        self.poll_gone(cx).map(|()| Error::Closed)
    }

    /// Ends when nobody takes the body off any more.
    pub(super) fn poll_unread(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.has_reader && !self.is_received() && !matches!(self.receiving, Receiving::Broken) {
            self.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Reads over what still comes, up to `limit` bytes, until the other side has closed.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>, limit: &mut usize) -> Poll<()> {
        while !self.eof {
            let read = std::mem::take(&mut self.input).len();
            let Some(left) = limit.checked_sub(read) else { break };
            *limit = left;
            if ready!(self.poll_fill(cx)).is_err() {
                break;
            }
        }
        Poll::Ready(())
    }

    /// Whether somebody still takes the body off.
    pub(super) fn has_reader(&self) -> bool {
        self.has_reader
    }

    /// Whether bytes were read that nobody has taken, or the other side has said its last.
    pub(super) fn has_input(&self) -> bool {
        self.eof || !self.input.is_empty() || !self.partial.is_empty()
    }

    /// A body of this framing follows; gives it where all of it has come.
    pub(super) fn receive(&mut self, framing: Framing) -> Received {
        self.receiving = match framing {
            Framing::None => {
                self.receiving = Receiving::Done;
                return Received::Nothing;
            }
            Framing::Length(length) => {
                if let Ok(n) = usize::try_from(length)
                    && n <= self.input.len()
                {
                    self.receiving = Receiving::Done;
                    return Received::Whole(take(&mut self.input, n));
                }
                Receiving::Length(length)
            }
            Framing::Chunked => Receiving::Chunked(Box::new(Chunked::new())),
            Framing::UntilClose => Receiving::UntilClose,
        };
        self.has_reader = true;
        Received::Later
    }

    /// The bytes that the body still has, where that is known.
    pub(super) fn body_length(&self) -> Option<u64> {
        match self.receiving {
            Receiving::Done => Some(0),
            Receiving::Length(left) => Some(left),
            Receiving::Chunked(_) | Receiving::UntilClose | Receiving::Broken => None,
        }
    }

    /// Whether the message was received to its end.
    pub(super) fn is_received(&self) -> bool {
        matches!(self.receiving, Receiving::Done)
    }

    /// Whether the message was received to its end and, as far as is known, nothing came after it.
    pub(super) fn is_over(&self) -> bool {
        self.is_received() && self.input.is_empty() && self.partial.is_empty()
    }

    /// The next piece of the body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if std::mem::take(&mut self.expects) {
            self.out.put(b"HTTP/1.1 100 Continue\r\n\r\n");
            // Should the connection be full, it leaves with what comes next.
            if let Poll::Ready(Err(e)) = self.poll_write(cx) {
                return Poll::Ready(Some(Err(self.break_off(e))));
            }
        }
        loop {
            if !self.input.is_empty() {
                match &mut self.receiving {
                    Receiving::Done | Receiving::Broken => {}
                    Receiving::Length(left) => {
                        let n = usize::try_from(*left).map_or(self.input.len(), |left| left.min(self.input.len()));
                        *left -= n as u64;
                        let data = take(&mut self.input, n);
                        if *left == 0 {
                            self.received();
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Receiving::Chunked(chunked) => match chunked.next(&mut self.input) {
                        Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        Ok(Piece::End(trailers)) => {
                            self.received();
                            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                        }
                        Ok(Piece::More) => {}
                        Err(words) => return Poll::Ready(Some(Err(self.break_off(Error::Parse(words))))),
                    },
                    Receiving::UntilClose => {
                        return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.input)))));
                    }
                }
            }
            match self.receiving {
                Receiving::Done => return Poll::Ready(None),
                Receiving::Broken => return Poll::Ready(Some(Err(Error::Closed))),
                Receiving::UntilClose if self.eof => {
                    self.received();
                    return Poll::Ready(None);
                }
                _ if self.eof => return Poll::Ready(Some(Err(self.break_off(Error::Incomplete)))),
                _ => {}
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Some(Err(self.break_off(e)))),
                Poll::Pending => {
                    keep(&mut self.reader, cx);
                    return Poll::Pending;
                }
            }
        }
    }

    fn received(&mut self) {
        self.receiving = Receiving::Done;
        self.wake();
    }

    /// Nobody can tell where the next message begins.
    pub(super) fn give_up(&mut self) {
        self.receiving = Receiving::Broken;
    }

    fn break_off(&mut self, e: Error) -> Error {
        self.receiving = Receiving::Broken;
        self.wake();
        e
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// Closes the connection, whoever still holds on to it.
    pub(super) fn close(&mut self) {
        if !self.is_received() {
            self.receiving = Receiving::Broken;
        }
        self.io = None;
        self.wake();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Wakes this task when the body is received or nobody wants it any more.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        keep(&mut self.waiting, cx);
    }

    /// The answer begins. A client that was never given leave to send its body will not send it, or will: nobody can
    /// tell what comes next on this connection.
    pub(super) fn answers(&mut self) {
        if std::mem::take(&mut self.expects) {
            self.receiving = Receiving::Broken;
        }
    }

    /// The body's reader has gone, at its end or before it.
    pub(super) fn reader_left(&mut self) {
        self.has_reader = false;
        self.reader = None;
        if self.home.is_some() && !self.is_received() {
            // The rest of a response that nobody wants.
            return self.close();
        }
        self.wake();
    }

    /// Whether a request's body was taken to its end; what its reader has left there is read over, up to `limit`
    /// bytes.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>, limit: &mut usize) -> Poll<bool> {
        loop {
            match self.receiving {
                Receiving::Done => return Poll::Ready(true),
                Receiving::Broken => return Poll::Ready(false),
                _ if self.has_reader => {
                    self.wait(cx);
                    return Poll::Pending;
                }
                _ => {}
            }
            match ready!(self.poll_body(cx)) {
                Some(Ok(frame)) => {
                    let read = frame.data_ref().map_or(0, Bytes::len);
                    let Some(left) = limit.checked_sub(read) else { return Poll::Ready(false) };
                    *limit = left;
                }
                Some(Err(_)) => return Poll::Ready(false),
                None => {}
            }
        }
    }

    /// Writes all that waits.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_write_out(cx, false)
    }

    /// Writes all that waits to a connection that is closed as soon as that is done.
    pub(super) fn poll_write_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_write_out(cx, true)
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<Result<(), Error>> {
        let Self { out, io, .. } = self;
        let io = io.as_mut().ok_or(Error::Closed)?;
        out.poll_write(&mut **io, cx, last).map_err(broke)
    }

    /// Tells the other side that nothing more comes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => {
                io.read_over();
                std::pin::Pin::new(&mut **io).poll_shutdown(cx)
            }
            None => Poll::Ready(Ok(())),
        }
    }

    /// What was read and belongs to whatever the connection becomes, and the connection itself.
    pub(super) fn rest(&mut self) -> io::Result<(&mut Bytes, &mut dyn Io)> {
        if !self.partial.is_empty() {
            // No head was read since; there is no other way in which there could be both.
            self.input = [&*std::mem::take(&mut self.partial), &*self.input].concat().into();
        }
        let Self { input, io, .. } = self;
        match io {
            Some(io) => Ok((input, &mut **io)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// What [`Connection::receive`] found.
pub(super) enum Received {
    Nothing,
    Whole(Bytes),
    /// A [`RecvBody`](super::RecvBody) is to take it.
    Later,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum HeadError {
    Bad(Bad),
    Connection(Error),
}

impl From<Bad> for HeadError {
    fn from(bad: Bad) -> Self {
        Self::Bad(bad)
    }
}

impl From<Error> for HeadError {
    fn from(e: Error) -> Self {
        Self::Connection(e)
    }
}

/// The error of a connection that broke.
pub(super) fn broke(e: io::Error) -> Error {
    Error::Io(Arc::new(e))
}

/// Remembers whom to wake.
fn keep(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}
