//! Connections to applications and to endpoints without a sidecar: each is lent to one request at a time.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Method, Response, StatusCode, Version, request::Parts};
use http_body::Body as _;
use tokio::{task::spawn_local, time::Instant};

use super::{
    OnUpgrade, RecvBody, Upgraded,
    connection::{self, HeadError, Home, Received, Shared},
    head::{self, Carries, Says},
    sending::Sending,
};
use crate::{
    http::{Body, Error, Incoming, SendError},
    net::Io,
};

/// An idle connection is not used again after this long: shorter than the keep-alive time of the usual servers (Node
/// 5 s), so that they do not close it as we write.
const MAX_IDLE: Duration = Duration::from_secs(3);
/// Idle connections kept for one destination.
const MAX_IDLE_CONNECTIONS: usize = 256;

struct Idle {
    connection: Shared,
    since: Instant,
}

/// The idle connections of one worker to one destination.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    sweeping: Cell<bool>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} idle)", self.idle.borrow().len())
    }
}

/// Whether a connection that should be idle is.
fn is_idle(connection: &Shared) -> bool {
    let mut now = connection.borrow_mut();
    now.poll_gone(&mut Context::from_waker(Waker::noop())).is_pending() && !now.has_input()
}

impl Pool {
    /// The connection that was used last and is still open.
    pub fn take(&self) -> Option<Client> {
        let now = Instant::now();
        loop {
            let last = self.idle.borrow_mut().pop()?;
            if now - last.since < MAX_IDLE && is_idle(&last.connection) {
                return Some(Client(last.connection));
            }
        }
    }

    fn keep(self: &Rc<Self>, connection: Shared) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MAX_IDLE_CONNECTIONS {
            return;
        }
        idle.push(Idle { connection, since: Instant::now() });
        if !self.sweeping.replace(true) {
            spawn_local(Self::sweep(Rc::downgrade(self)));
        }
    }

    /// Closes connections that have been idle too long or that the other side has closed, until there is none.
    async fn sweep(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(MAX_IDLE / 2).await;
            let Some(pool) = pool.upgrade() else { return };
            let now = Instant::now();
            let mut idle = pool.idle.borrow_mut();
            idle.retain(|i| now - i.since < MAX_IDLE && is_idle(&i.connection));
            if idle.is_empty() {
                pool.sweeping.set(false);
                return;
            }
        }
    }
}

/// Takes a connection back once its exchange is over, where it can carry another.
pub(super) fn give_back(connection: Shared) {
    let pool = {
        let now = connection.borrow();
        let Some(home) = now.home.as_ref().filter(|home| home.may_return) else { return };
        if !now.is_received() || now.has_input() {
            return;
        }
        home.pool.upgrade()
    };
    if let Some(pool) = pool {
        pool.keep(connection);
    }
}

/// A connection for one request. It goes back to its pool by itself, once the response was taken.
pub struct Client(Shared);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A connection that was made just now and belongs to `pool`.
    pub fn new(io: impl Io + 'static, pool: &Rc<Pool>) -> Self {
        let connection = connection::share(io);
        connection.borrow_mut().home = Some(Home { pool: Rc::downgrade(pool), may_return: false });
        Self(connection)
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    ///
    /// Where the connection broke before it, or what came is no HTTP/1.x.
    pub async fn send(self, head: &Parts, body: Body) -> Result<Response<Incoming>, SendError> {
        let method = &head.method;
        let upgrades = head.headers.contains_key(http::header::UPGRADE);
        let carries = match body.size_hint().exact() {
            // Whoever expects a body is told that there is none.
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Carries::Nothing,
            Some(length) => Carries::Exactly(length),
            None => Carries::Something,
        };
        let framing = {
            let mut now = self.0.borrow_mut();
            now.out.begin();
            let out = now.out.head(head::room(&head.headers) + head.uri.path().len());
            out.extend_from_slice(method.as_str().as_bytes());
            out.extend_from_slice(b" ");
            let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
            out.extend_from_slice(target.as_bytes());
            out.extend_from_slice(b" HTTP/1.1\r\n");
            head::fields(out, &head.headers, carries, true)
        };
        let framing = framing.map_err(|words| SendError { error: Error::Length(words), unsent: true })?;
        let mut sending = Sending::new(body, framing);
        let (response, says) = self.exchange(&mut sending, method).await.map_err(|error| {
            let unsent = !self.0.borrow().out.has_begun();
            SendError { error, unsent }
        })?;
        self.begin_response(response, says, sending, upgrades)
    }

    /// Writes the request and reads the response's head, whichever the server does first.
    async fn exchange(&self, sending: &mut Sending, method: &Method) -> Result<(Response<()>, Says), Error> {
        let mut refused = None;
        loop {
            let head = poll_fn(|cx| {
                if refused.is_none()
                    && let Poll::Ready(Err(e)) = poll_out(&self.0, sending, cx)
                {
                    match e {
                        // It may have answered before it closed.
                        Error::Io(_) => refused = Some(e),
                        _ => return Poll::Ready(Err(e.into())),
                    }
                }
                self.0.borrow_mut().poll_head(cx, |bytes| {
                    Ok(head::response(bytes, method)?.map(|(response, says, len)| ((response, says), len)))
                })
            })
            .await;
            match head {
                // RFC 9110 section 15.2: any number of interim responses.
                Ok(Some((response, _))) if is_interim(response.status()) => {}
                Ok(Some(head)) => return Ok(head),
                Ok(None) => return Err(refused.unwrap_or(Error::Incomplete)),
                Err(HeadError::Connection(e)) => return Err(refused.unwrap_or(e)),
                Err(HeadError::Bad(bad)) => return Err(Error::Parse(bad.1)),
            }
        }
    }

    fn begin_response(
        self,
        response: Response<()>,
        says: Says,
        mut sending: Sending,
        upgrades: bool,
    ) -> Result<Response<Incoming>, SendError> {
        let connection = self.0;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !upgrades {
                let error = Error::Parse("it switches protocols and was not asked to");
                return Err(SendError { error, unsent: false });
            }
            return Ok(response.map(|()| Incoming::Upgrade(OnUpgrade::Now(Upgraded::new(connection)))));
        }
        let keep = says.keep_alive && response.version() == Version::HTTP_11;
        let sent = sending.is_sent(&connection);
        let received = {
            let mut now = connection.borrow_mut();
            if let Some(home) = &mut now.home {
                home.may_return = keep && sent;
            }
            now.receive(says.framing)
        };
        if !sent {
            // An upload that goes on after its early answer.
            let connection = connection.clone();
            spawn_local(async move {
                let sent = poll_fn(|cx| {
                    let polled = poll_out(&connection, &mut sending, cx);
                    connection.borrow_mut().wait(cx);
                    polled
                });
                let sent = match sent.await {
                    Ok(()) => true,
                    // The answer may still be read.
                    Err(Error::Io(_)) => false,
                    // The server would wait for the rest, and we for it.
                    Err(_) => return connection.borrow_mut().close(),
                };
                if let Some(home) = &mut connection.borrow_mut().home {
                    home.may_return = keep && sent;
                }
                if !connection.borrow().has_reader() {
                    give_back(connection);
                }
            });
        }
        let body = match received {
            Received::Later => Incoming::Http1(RecvBody::new(connection)),
            Received::Nothing => {
                give_back(connection);
                Incoming::Empty
            }
            Received::Whole(bytes) => {
                give_back(connection);
                Incoming::Whole(bytes, true)
            }
        };
        Ok(response.map(|()| body))
    }
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Writes a request to its end.
fn poll_out(connection: &Shared, sending: &mut Sending, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
    loop {
        let ended = sending.gather(cx, connection)?;
        let mut now = connection.borrow_mut();
        let waited = now.out.len() > 0;
        match now.poll_write(cx)? {
            Poll::Ready(()) if ended => return Poll::Ready(Ok(())),
            // There may be more that had no room.
            Poll::Ready(()) if waited => {}
            _ => return Poll::Pending,
        }
    }
}
