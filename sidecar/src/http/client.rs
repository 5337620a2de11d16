//! HTTP/2 connections to others, which many requests share.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    future::Future,
    pin::pin,
    rc::{Rc, Weak},
    time::Duration,
};

use http::{Response, request::Parts};
use smallvec::SmallVec;
use tokio::{sync::oneshot, task::spawn_local};

use super::{Body, Incoming, SendError};
use crate::{
    http1::client::{Client, Pool},
    http2::{self, KeepAlive},
    net::{Io, Metered},
    reason::Reason,
    resilience::Permit,
    telemetry::{ConnectionMetrics, RequestMetrics},
    tls::{Standing, TlsFailure},
};

/// Streams of one connection from which another one is opened beside it.
const STREAMS_BEFORE_ANOTHER: usize = 64;
/// Connections of one worker to one endpoint.
const MAX_CONNECTIONS: usize = 8;
/// A sidecar that is asked something and silent is asked whether it is there.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { every: Duration::from_secs(10), timeout: Duration::from_secs(5), idle: false };

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
    sender: http2::client::Sender,
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
        !self.closed.get() && self.sender.is_usable()
    }

    /// Streams that are open, or will be.
    fn load(&self) -> usize {
        self.streams.get().max(self.sender.streams())
    }

    /// Whether a request need not wait, and does not crowd the others.
    fn has_room(&self) -> bool {
        self.load() < STREAMS_BEFORE_ANOTHER && self.sender.room() > 0
    }

    /// Sends a request; one that never left comes back with the error.
    pub fn send<'h>(
        &self,
        head: &'h Parts,
        body: Body,
    ) -> impl Future<Output = Result<Response<Incoming>, SendError>> + use<'h> {
        self.sender.send(head, body)
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
    /// How its peer stands, and whom to tell when we would refuse it today.
    pub watched: Option<Watched>,
    /// Whether a sidecar is at the other end, which lets itself be asked whether it is still there. Servers of gRPC end
    /// connections that do so more often than they like (grpc-go: once in 5 minutes).
    pub to_sidecar: bool,
}

/// A peer that is judged again when trust changes.
pub struct Watched {
    /// How it stands.
    pub standing: Standing,
    /// Told why it is refused, before the connection ends. Requests under way may have been done: it is no [`Made::refusal`].
    pub refused: Box<dyn FnOnce(TlsFailure)>,
}

impl Watched {
    /// Takes the connection out of use, and ends it, as its peer's standing has it.
    async fn follow(self, connection: Weak<H2Connection>, pool: Weak<H2Pool>) {
        let mut refused = pin!(self.standing.is_refused());
        let refusal = tokio::select! {
            biased;
            refusal = refused.as_mut() => refusal,
            () = self.standing.is_to_move() => {
                if let Some(connection) = connection.upgrade() {
                    // It ends with its last request.
                    connection.closed.set(true);
                }
                if let Some(pool) = pool.upgrade() {
                    pool.connections.borrow_mut().retain(|c| c.is_usable());
                }
                refused.await
            }
        };
        (self.refused)(TlsFailure::from(&refusal));
        if let Some(connection) = connection.upgrade() {
            connection.sender.cut();
        }
    }
}

impl H2Pool {
    /// A share of a connection that is there already and has room.
    pub fn ready(&self) -> Option<StreamSlot> {
        self.best().filter(|best| best.has_room()).map(StreamSlot::new)
    }

    fn best(&self) -> Option<Rc<H2Connection>> {
        let connections = self.connections.borrow();
        connections.iter().filter(|c| c.is_usable()).min_by_key(|c| (c.sender.room() == 0, c.load())).cloned()
    }

    /// A share of a connection; where there is none with room, `connect` makes one, for all that wait.
    pub async fn get<IO, C, F>(self: &Rc<Self>, connect: C) -> Result<StreamSlot, ConnectError>
    where
        IO: Io + 'static,
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
                let made = making.await.map(|made| pool.start(made));
                pool.connecting.set(false);
                pool.answer(made);
            });
        }
        // One that would have the request wait is no better than one that is being made.
        if let Some(best) = best.as_ref().filter(|best| best.sender.room() > 0 || !self.connecting.get()) {
            return Ok(StreamSlot::new(Rc::clone(best)));
        }
        let (sender, receiver) = oneshot::channel();
        self.waiters.borrow_mut().push(sender);
        let made = receiver
            .await
            .unwrap_or_else(|_| Err(ConnectError::new(Reason::ConnectFailed, "the connection was given up")));
        match best.filter(|best| made.is_err() && best.is_usable()) {
            Some(best) => Ok(StreamSlot::new(best)),
            None => made,
        }
    }

    fn start<IO>(self: &Rc<Self>, made: Made<IO>) -> Rc<H2Connection>
    where
        IO: Io + 'static,
    {
        let keep_alive = made.to_sidecar.then_some(KEEP_ALIVE);
        let (sender, driver) = http2::client::start(Metered::open(made.io, made.connection, made.permit), keep_alive);
        let connection = Rc::new(H2Connection {
            sender,
            streams: Cell::new(0),
            closed: Cell::new(false),
            refusal: made.refusal,
            metrics: made.requests,
        });
        self.connections.borrow_mut().push(Rc::clone(&connection));
        let (weak, pool) = (Rc::downgrade(&connection), Rc::downgrade(self));
        // A task of its own: it would be asked each time that the connection's has something to do.
        let watching = made.watched.map(|watched| spawn_local(watched.follow(weak.clone(), pool.clone())));
        spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to a peer broke");
            }
            if let Some(watching) = watching {
                watching.abort();
            }
            if let Some(connection) = weak.upgrade() {
                connection.closed.set(true);
            }
            if let Some(pool) = pool.upgrade() {
                pool.connections.borrow_mut().retain(|c| c.is_usable());
            }
        });
        connection
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
