//! HTTP/2 connections to others, which many requests share.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    future::Future,
    rc::Rc,
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    task::spawn_local,
};

use super::{Body, Incoming, LocalExec, SendError};
use crate::{
    http1::client::{Client, Pool},
    net::{Gathered, Io, Metered},
    reason::Reason,
    resilience::Permit,
    telemetry::{ConnectionMetrics, RequestMetrics},
    tls,
};

/// A stream may hold this much unread; a connection eight times that, so that one slow reader cannot stop the others
/// (linkerd2 #14908: at least four times).
pub const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 8 << 20;
/// Streams of one connection from which another one is opened beside it.
const STREAMS_BEFORE_ANOTHER: usize = 64;
/// Connections of one worker to one endpoint.
const MAX_CONNECTIONS: usize = 8;

/// Why there is no connection.
#[derive(Debug, Clone)]
pub struct ConnectError {
    /// What to tell the caller.
    pub reason: Reason,
    /// What happened, to whom.
    pub message: Rc<str>,
}

impl ConnectError {
    /// An error of this reason.
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string().into() }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An HTTP/2 connection that requests share.
#[derive(Debug)]
pub struct H2Connection {
    sender: RefCell<http2::SendRequest<Body>>,
    streams: Cell<usize>,
    closed: Cell<bool>,
    refusal: Rc<OnceCell<ConnectError>>,
    metrics: Rc<RequestMetrics>,
}

impl H2Connection {
    /// The metrics of requests to this service and this peer.
    pub fn metrics(&self) -> &Rc<RequestMetrics> {
        &self.metrics
    }

    /// Why the peer did not take the connection after all, and so none of its requests.
    pub fn refusal(&self) -> Option<&ConnectError> {
        self.refusal.get()
    }

    fn is_usable(&self) -> bool {
        !self.closed.get() && !self.sender.borrow().is_closed()
    }

    /// Sends a request; one that never left comes back with the error.
    pub fn send(&self, request: Request<Body>) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<> {
        self.sender.borrow_mut().try_send_request(request).map(|sent| match sent {
            Ok(response) => Ok(response.map(Incoming::Http2)),
            Err(mut e) => Err(SendError { unsent: e.take_message().is_some(), error: e.into_error().into() }),
        })
    }
}

/// A request's share of an [`H2Connection`].
#[derive(Debug)]
pub struct StreamSlot(Rc<H2Connection>);

impl StreamSlot {
    fn new(connection: Rc<H2Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self(connection)
    }

    /// The connection.
    pub fn connection(&self) -> &H2Connection {
        &self.0
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

type Waiter = oneshot::Sender<Result<StreamSlot, ConnectError>>;

/// The HTTP/2 connections of one worker to one endpoint.
#[derive(Debug, Default)]
pub struct H2Pool {
    connections: RefCell<SmallVec<[Rc<H2Connection>; 2]>>,
    waiters: RefCell<Vec<Waiter>>,
    connecting: Cell<bool>,
}

/// A connection that was made, ready to be driven.
pub struct Made<IO> {
    /// The connection's bytes.
    pub io: IO,
    /// Filled where the peer refuses the connection only after its handshake.
    pub refusal: Rc<OnceCell<ConnectError>>,
    /// The metrics of its requests.
    pub requests: Rc<RequestMetrics>,
    /// The metrics of the connection itself.
    pub connection: Rc<ConnectionMetrics>,
    /// Its place among the service's connections.
    pub permit: Option<Permit>,
    /// Whether a sidecar is at the other end, which lets itself be asked whether it is still there. Servers of gRPC end
    /// connections that do so more often than they like (grpc-go: once in 5 minutes).
    pub to_sidecar: bool,
}

impl H2Pool {
    /// A share of a connection that is there already and has room.
    pub fn ready(&self) -> Option<StreamSlot> {
        let best = self.best()?;
        (best.streams.get() < STREAMS_BEFORE_ANOTHER).then(|| StreamSlot::new(best))
    }

    fn best(&self) -> Option<Rc<H2Connection>> {
        let connections = self.connections.borrow();
        connections.iter().filter(|c| c.is_usable()).min_by_key(|c| c.streams.get()).cloned()
    }

    /// A share of a connection; where there is none with room, `connect` makes one, for all that wait.
    pub async fn get<IO, C, F>(self: &Rc<Self>, connect: C) -> Result<StreamSlot, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        C: FnOnce() -> F,
        F: Future<Output = Result<Made<IO>, ConnectError>> + 'static,
    {
        if let Some(slot) = self.ready() {
            return Ok(slot);
        }
        self.connections.borrow_mut().retain(|c| c.is_usable());
        let best = self.best();
        if self.connections.borrow().len() < MAX_CONNECTIONS && !self.connecting.replace(true) {
            // A task of its own: a caller that goes away must not take the others' connection with it.
            let (pool, making) = (Rc::clone(self), connect());
            spawn_local(async move {
                let made = match making.await {
                    Ok(made) => pool.start(made).await,
                    Err(e) => Err(e),
                };
                pool.connecting.set(false);
                pool.answer(made);
            });
        }
        if let Some(best) = best {
            return Ok(StreamSlot::new(best));
        }
        let (sender, receiver) = oneshot::channel();
        self.waiters.borrow_mut().push(sender);
        receiver.await.unwrap_or_else(|_| Err(ConnectError::new(Reason::ConnectFailed, "the connection was given up")))
    }

    async fn start<IO>(self: &Rc<Self>, made: Made<IO>) -> Result<Rc<H2Connection>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let ask_every = made.to_sidecar.then_some(Duration::from_secs(10));
        let (sender, driver) = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .keep_alive_interval(ask_every)
            .keep_alive_timeout(Duration::from_secs(5))
            .handshake(TokioIo::new(Gathered::new(Metered::open(made.io, made.connection, made.permit))))
            .await
            .map_err(|e| match tls::find(&e) {
                Some(refusal) => ConnectError::new(Reason::TlsFailed, format_args!("no mTLS: {}", refusal.message)),
                None => ConnectError::new(Reason::ProtocolError, format_args!("HTTP/2 could not start: {e}")),
            })?;
        let connection = Rc::new(H2Connection {
            sender: RefCell::new(sender),
            streams: Cell::new(0),
            closed: Cell::new(false),
            refusal: made.refusal,
            metrics: made.requests,
        });
        self.connections.borrow_mut().push(Rc::clone(&connection));
        let (weak, pool) = (Rc::downgrade(&connection), Rc::downgrade(self));
        spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a peer broke");
            }
            if let Some(connection) = weak.upgrade() {
                connection.closed.set(true);
            }
            if let Some(pool) = pool.upgrade() {
                pool.connections.borrow_mut().retain(|c| c.is_usable());
            }
        });
        Ok(connection)
    }

    fn answer(&self, made: Result<Rc<H2Connection>, ConnectError>) {
        for waiter in self.waiters.take() {
            // A waiter that has gone away needs no answer.
            let _ = waiter.send(made.clone().map(StreamSlot::new));
        }
    }
}

/// An HTTP/1.1 connection that was made, ready for a request.
pub fn http1<IO: Io + 'static>(made: Made<IO>, pool: &Rc<Pool>) -> Client {
    Client::new(Metered::open(made.io, made.connection, made.permit), pool)
}
