//! The bodies that pass through: streamed, never collected.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future as _,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::{
    Error, Incoming,
    exchange::Exchange,
    reply::{grpc_status, own_words},
    tunnel::TunnelBody,
};
use crate::reason::Reason;

/// What a request keeps of its body so that it can be sent again: at most this much, then it streams only.
pub const MAX_REPLAY: usize = 64 * 1024;
/// … in at most this many pieces.
const MAX_PIECES: usize = 1_024;
/// How long who a body is sent to may take nothing of it, where no other limit is set (Envoy's stream_idle_timeout).
const STALLED: Duration = Duration::from_secs(300);
/// A piece below this size is kept as a copy.
const SMALL_PIECE: usize = 1_024;

/// A request's or a response's body.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// One piece.
    Full(Bytes),
    /// A request's, which may have to be sent again.
    Replay(Replay),
    /// A response's, at whose end the exchange is counted.
    Watched(Box<Watched>),
    /// Bytes of an upgraded connection.
    Tunnel(TunnelBody),
}

/// Why a body ended before its end.
#[derive(Debug)]
pub enum BodyError {
    /// The connection that it came from.
    Source(Error),
    /// No byte moved in either direction for this long.
    Idle(Duration),
    /// A newer try has taken the body over.
    Superseded,
    /// The upgraded connection that it carries.
    Broke(io::ErrorKind),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(e) => write!(f, "the connection of the body broke: {e}"),
            Self::Idle(d) => write!(f, "no byte moved in either direction for {d:?} (timeouts.idle)"),
            Self::Superseded => f.write_str("a newer try sends this body"),
            Self::Broke(kind) => write!(f, "the upgraded connection broke: {kind}"),
        }
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source(e) => Some(e),
            _ => None,
        }
    }
}

/// When bytes of an exchange last moved, in either direction.
#[derive(Debug)]
pub struct Activity {
    last: Cell<Instant>,
    limit: Option<Duration>,
}

impl Activity {
    /// Activity that counts as ended after `limit` without a byte.
    pub fn new(limit: Option<Duration>) -> Rc<Self> {
        Rc::new(Self { last: Cell::new(Instant::now()), limit })
    }

    /// Bytes moved, now.
    pub fn touch(&self) -> Instant {
        let now = Instant::now();
        self.last.set(now);
        now
    }

    /// Ends when nothing has moved for the limit; never, where there is none.
    pub async fn stalled(&self) -> Duration {
        let Some(limit) = self.limit else { return std::future::pending().await };
        loop {
            let end = self.last.get() + limit;
            if Instant::now() >= end {
                return limit;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[derive(Debug)]
struct Source {
    incoming: Incoming,
    kept: Vec<Bytes>,
    kept_len: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    failed: bool,
    overflowed: bool,
    /// All that came was taken, and more is to come.
    starves: bool,
    reader: u32,
    /// Who waits for more to come.
    waker: Option<Waker>,
    activity: Rc<Activity>,
}

/// A request's body before it is sent, from which each try takes its own [`Replay`].
#[derive(Debug, Clone)]
pub struct ReplaySource(Rc<RefCell<Source>>);

impl ReplaySource {
    /// Wraps a body as it comes in.
    pub fn new(incoming: Incoming, activity: Rc<Activity>) -> Self {
        Self(Rc::new(RefCell::new(Source {
            incoming,
            kept: Vec::new(),
            kept_len: 0,
            trailers: None,
            ended: false,
            failed: false,
            overflowed: false,
            starves: false,
            reader: 0,
            waker: None,
            activity,
        })))
    }

    /// Whether everything that was sent so far can be sent again.
    pub fn can_replay(&self) -> bool {
        let source = self.0.borrow();
        !source.overflowed && !source.failed
    }

    /// All of the body, where all of it has come and was kept.
    pub fn whole(&self) -> Option<Bytes> {
        let source = self.0.borrow();
        if !source.ended && !source.incoming.is_end_stream() || source.overflowed || source.failed {
            return None;
        }
        match &*source.kept {
            [] => Some(Bytes::new()),
            [one] => Some(one.clone()),
            many => Some(many.concat().into()),
        }
    }

    /// Whether who reads it waits for more to come.
    pub fn starves(&self) -> bool {
        self.0.borrow().starves
    }

    /// Whether the connection that the body comes from broke.
    pub fn broke(&self) -> bool {
        self.0.borrow().failed
    }

    /// Ends the bodies of earlier tries, so that none of them reads on, beyond what is kept, until the next try begins.
    pub fn supersede(&self) {
        let mut source = self.0.borrow_mut();
        source.reader += 1;
        source.starves = false;
        if let Some(waker) = source.waker.take() {
            waker.wake();
        }
    }

    /// The body for the next try; those of earlier tries end with an error.
    pub fn next_try(&self) -> Body {
        self.supersede();
        let source = self.0.borrow();
        Body::Replay(Replay { source: Rc::clone(&self.0), reader: source.reader, position: 0, finished: false })
    }
}

/// One try's view of a request's body.
#[derive(Debug)]
pub struct Replay {
    source: Rc<RefCell<Source>>,
    reader: u32,
    position: usize,
    finished: bool,
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let source = &mut *self.source.borrow_mut();
        if source.reader != self.reader {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if self.finished {
            return Poll::Ready(None);
        }
        if let Some(piece) = source.kept.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if source.ended {
            self.finished = true;
            return Poll::Ready(source.trailers.clone().map(|t| Ok(Frame::trailers(t))));
        }
        let polled = source.incoming.poll(cx);
        source.starves = polled.is_pending();
        if source.starves && !source.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            source.waker = Some(cx.waker().clone());
        }
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => {
                source.failed = true;
                return Poll::Ready(Some(Err(BodyError::Source(e))));
            }
            None => {
                source.ended = true;
                self.finished = true;
                return Poll::Ready(None);
            }
        };
        source.activity.touch();
        if let Some(data) = frame.data_ref() {
            if !source.overflowed && source.kept_len + data.len() <= MAX_REPLAY && source.kept.len() < MAX_PIECES {
                source.kept_len += data.len();
                // A small piece must not keep the whole of what was read with it.
                let small = data.len() < SMALL_PIECE;
                source.kept.push(if small { Bytes::copy_from_slice(data) } else { data.clone() });
                self.position += 1;
            } else {
                source.overflowed = true;
                source.kept = Vec::new();
                self.position = 0;
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            source.trailers = Some(trailers.clone());
            source.ended = true;
            self.finished = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.borrow();
        self.finished
            || (source.kept.len() == self.position
                && source.trailers.is_none()
                && (source.ended || source.incoming.is_end_stream()))
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.borrow();
        if source.overflowed {
            return source.incoming.size_hint();
        }
        let mut hint = if source.ended { SizeHint::with_exact(0) } else { source.incoming.size_hint() };
        let kept: u64 = source.kept.iter().skip(self.position).map(|b| b.len() as u64).sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + kept);
        }
        hint.set_lower(hint.lower() + kept);
        hint
    }
}

/// A response's body, at whose end, however it comes, the exchange is counted.
#[derive(Debug)]
pub struct Watched {
    incoming: Incoming,
    exchange: Exchange,
    activity: Rc<Activity>,
    deadline: Option<Deadline>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// When a gRPC call must have ended.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// The call's `grpc-timeout`.
    pub limit: Duration,
}

impl Deadline {
    fn trailers(self) -> HeaderMap {
        let text = format!("the call did not end within its grpc-timeout of {:?}", self.limit);
        grpc_status(Reason::RequestTimeout, &own_words(Reason::RequestTimeout, &text))
    }
}

impl Watched {
    /// A body that belongs to `exchange`.
    pub fn body(incoming: Incoming, exchange: Exchange, activity: Rc<Activity>, deadline: Option<Deadline>) -> Body {
        activity.touch();
        if incoming.is_end_stream() {
            exchange.finish();
            return Body::Empty;
        }
        Body::Watched(Box::new(Self { incoming, exchange, activity, deadline, timer: None }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.incoming.poll(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.activity.touch();
                // Who knows the length does not ask for more once it is there.
                if frame.is_trailers() || self.incoming.size_hint().exact() == Some(0) {
                    self.exchange.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(e))) => {
                self.exchange.broke();
                Poll::Ready(Some(Err(BodyError::Source(e))))
            }
            Poll::Ready(None) => {
                self.exchange.finish();
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_time(cx),
        }
    }

    /// When the body has waited too long: for any byte, or for its end.
    fn ends_at(&self) -> Option<Instant> {
        let idle = self.activity.limit.map(|limit| self.activity.last.get() + limit);
        match (idle, self.deadline.as_ref().map(|d| d.at)) {
            (Some(idle), Some(deadline)) => Some(idle.min(deadline)),
            (idle, deadline) => idle.or(deadline),
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let limit = self.activity.limit.unwrap_or(STALLED);
        loop {
            let idle = self.activity.last.get() + limit;
            let end = self.deadline.as_ref().map_or(idle, |deadline| deadline.at.min(idle));
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= end {
                self.exchange.broke();
                return Poll::Ready(BodyError::Idle(limit));
            }
            timer.as_mut().reset(end);
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while let Some(end) = self.ends_at() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            ready!(timer.as_mut().poll(cx));
            // Bytes that moved meanwhile have put the end off; the timer follows only now.
            if Instant::now() < end {
                timer.as_mut().reset(end);
                continue;
            }
            self.exchange.broke();
            return Poll::Ready(Some(match self.deadline.take_if(|d| d.at <= end) {
                Some(deadline) => Ok(Frame::trailers(deadline.trailers())),
                None => Err(BodyError::Idle(self.activity.limit.unwrap_or_default())),
            }));
        }
        Poll::Pending
    }
}

impl Body {
    /// Whether it is over because who it is sent to takes nothing of it.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match self {
            Self::Watched(b) => b.poll_stalled(cx),
            _ => Poll::Pending,
        }
    }

    /// A part of it had room after a wait.
    pub fn moved(&self) {
        if let Self::Watched(b) = self {
            b.activity.touch();
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Replay(b) => b.poll(cx),
            Self::Watched(b) => b.poll(cx),
            Self::Tunnel(b) => b.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Replay(b) => b.is_end_stream(),
            // The end must be polled for, or the exchange would be counted as broken off.
            Self::Watched(b) => b.incoming.is_end_stream() && b.exchange.is_finished(),
            Self::Tunnel(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Replay(b) => b.size_hint(),
            Self::Watched(b) => b.incoming.size_hint(),
            Self::Tunnel(_) => SizeHint::default(),
        }
    }
}
