//! A peer's requests: authorize, restore the application's protocol, hand over, count.

use std::{net::SocketAddr, rc::Rc};

use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{HOST, UPGRADE},
    request::Parts,
};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
    time::Instant,
};

use super::{application::Pools, caller::Caller};
use crate::{
    http::{
        Body,
        body::{Activity, ReplaySource, Watched},
        client::{ConnectError, Exchange, H1Sender, Held, Made, start_h1},
        headers,
        reply::{is_grpc, reply},
        server, tunnel,
    },
    net::Metered,
    reason::Reason,
    telemetry::{ConnectionMetrics, Direction, RequestMetrics, Transport},
    worker::{Phase, Worker},
};

/// One connection of a peer.
struct Peer {
    worker: Rc<Worker>,
    caller: Caller,
    destination: SocketAddr,
    pools: Rc<Pools>,
    metrics: Rc<RequestMetrics>,
    to_application: Rc<ConnectionMetrics>,
}

impl Peer {
    fn new(worker: &Rc<Worker>, caller: Caller, destination: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            pools: worker.inbound.applications.pools(destination),
            metrics: caller.metrics(worker, destination.port()),
            to_application: worker.metrics.connections(Direction::Inbound, Transport::Workload),
            worker: Rc::clone(worker),
            caller,
            destination,
        })
    }
}

/// Serves a peer's HTTP/2.
pub(super) async fn serve_http2<IO>(
    worker: &Rc<Worker>,
    io: IO,
    caller: Caller,
    transport: Transport,
    destination: SocketAddr,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let metrics = worker.metrics.connections(Direction::Inbound, transport);
    let peer = Peer::new(worker, caller, destination);
    metrics.opened();
    let io = Metered::new(io, metrics.meter());
    let ended = server::http2(io, |request| handle(Rc::clone(&peer), request), worker.reached(Phase::Finishing)).await;
    metrics.closed();
    if let Err(error) = ended {
        tracing::debug!(%error, "a peer's HTTP/2 connection ended");
    }
}

/// Serves a peer's HTTP/1.x.
pub(super) async fn serve_http1<IO>(
    worker: &Rc<Worker>,
    io: IO,
    caller: Caller,
    transport: Transport,
    destination: SocketAddr,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let metrics = worker.metrics.connections(Direction::Inbound, transport);
    let peer = Peer::new(worker, caller, destination);
    metrics.opened();
    let io = Metered::new(io, metrics.meter());
    let ended = server::http1(io, |request| handle(Rc::clone(&peer), request), worker.reached(Phase::Finishing)).await;
    metrics.closed();
    if let Err(error) = ended {
        if error.is_parse() {
            worker.metrics.error(Direction::Inbound, Reason::BadRequest.code());
        }
        tracing::debug!(%error, "a peer's HTTP/1 connection ended");
    }
}

async fn handle(peer: Rc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let grpc = is_grpc(request.headers());
    peer.metrics.begin();
    if let Err((reason, detail)) = peer.caller.authorize(&request, peer.destination) {
        tracing::warn!(reason = reason.code(), "{detail}");
        return peer.refuse(started, reason, &detail, grpc);
    }
    let held = Held { busy: Some(peer.worker.busy()), ..Held::default() };
    match peer.call(started, held, request).await {
        Ok(response) => response,
        Err(e) => {
            tracing::debug!(reason = e.reason.code(), "{e}");
            peer.refuse(started, e.reason, &e.message, grpc)
        }
    }
}

/// What the application is to get.
struct Call {
    parts: Parts,
    upgrade: Option<HeaderValue>,
}

impl Peer {
    fn refuse(&self, started: Instant, reason: Reason, detail: &str, grpc: bool) -> Response<Body> {
        self.worker.metrics.error(Direction::Inbound, reason.code());
        self.metrics.end(Some(reason.status()), started.elapsed());
        reply(reason, detail, grpc)
    }

    async fn call(
        &self,
        started: Instant,
        held: Held,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, ConnectError> {
        let client = (request.version() < Version::HTTP_2).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let call = self.restore(parts)?;
        if let Some(protocol) = call.upgrade {
            return self.upgrade(started, held, call.parts, protocol, body, client).await;
        }
        let activity = Activity::new(None);
        let source = (!http_body::Body::is_end_stream(&body)).then(|| ReplaySource::new(body, Rc::clone(&activity)));
        let response = self.send(&call.parts, source.as_ref()).await?;
        let exchange = Exchange::new(Rc::clone(&self.metrics), started, response.status(), held);
        let (parts, body) = self.restored_response(response).into_parts();
        Ok(Response::from_parts(parts, Watched::body(body, exchange, activity, None)))
    }

    /// Gives a request the form that the calling application gave it, without what only the mesh may say.
    fn restore(&self, mut parts: Parts) -> Result<Call, ConnectError> {
        let bad = |e: headers::TargetError| ConnectError::new(Reason::BadRequest, e);
        let from_mesh = self.caller.is_mesh();
        let was_http1 =
            parts.version < Version::HTTP_2 || (from_mesh && parts.headers.contains_key(headers::ORIGINAL_PROTOCOL));
        let mut upgrade = parts.headers.get(headers::MESH_UPGRADE).filter(|_| from_mesh).cloned();
        headers::strip_mesh(&mut parts.headers);
        if let Some(asked) = headers::strip_hop_by_hop(&mut parts.headers, parts.version) {
            let is_http = asked.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
            upgrade = upgrade.or(Some(asked).filter(|_| !is_http));
        }
        match self.caller.certificate() {
            Some(certificate) => {
                parts.headers.insert(headers::CLIENT_CERT, certificate.clone());
            }
            None => {
                parts.headers.remove(headers::CLIENT_CERT);
            }
        }
        match headers::authority(&parts.uri, &parts.headers) {
            Ok(authority) if was_http1 => {
                parts.uri = headers::origin_target(&parts.uri).map_err(bad)?;
                headers::set_host(&mut parts.headers, &authority).map_err(bad)?;
            }
            Ok(authority) => {
                parts.uri = headers::absolute_target(&parts.uri, authority).map_err(bad)?;
                parts.headers.remove(HOST);
            }
            Err(headers::TargetError::NoHost) if parts.version < Version::HTTP_11 => {
                let host = self.destination.to_string();
                parts
                    .headers
                    .insert(HOST, HeaderValue::from_str(&host).map_err(|_| bad(headers::TargetError::BadHost))?);
            }
            Err(e) => return Err(bad(e)),
        }
        parts.version = if was_http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        parts.extensions = http::Extensions::new();
        Ok(Call { parts, upgrade })
    }

    fn restored_response<B>(&self, mut response: Response<B>) -> Response<B> {
        let version = response.version();
        headers::strip_hop_by_hop(response.headers_mut(), version);
        headers::strip_mesh(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        response
    }

    async fn send(&self, parts: &Parts, source: Option<&ReplaySource>) -> Result<Response<Incoming>, ConnectError> {
        let request = || {
            let body = source.map_or(Body::Empty, ReplaySource::next_try);
            Request::from_parts(parts.clone(), body)
        };
        if parts.version == Version::HTTP_2 {
            let slot = self.pools.h2.get(|| self.made()).await?;
            return slot.connection().send(request()).await.map_err(|e| broke_off(e.error()));
        }
        let mut reused = self.pools.h1.take();
        loop {
            let was_reused = reused.is_some();
            let mut sender = match reused.take() {
                Some(sender) => sender,
                None => self.http1().await?,
            };
            match sender.try_send_request(request()).await {
                Ok(response) => {
                    self.pools.h1.give_back(sender);
                    return Ok(response);
                }
                Err(mut e) => {
                    // The application closed the idle connection as we wrote (the keep-alive race, RFC 9112 section
                    // 9.3.1): tried anew where nothing was sent, or where a second time does no harm.
                    let harmless = e.take_message().is_some() || parts.method.is_idempotent();
                    if was_reused && harmless && source.is_none_or(ReplaySource::can_replay) {
                        continue;
                    }
                    return Err(broke_off(e.error()));
                }
            }
        }
    }

    fn made(&self) -> impl Future<Output = Result<Made<tokio::net::TcpStream>, ConnectError>> + use<> {
        let (worker, destination) = (Rc::clone(&self.worker), self.destination);
        let (requests, connection) = (Rc::clone(&self.metrics), Rc::clone(&self.to_application));
        async move {
            let io = worker.inbound.applications.dial(destination).await?;
            Ok(Made { io, requests, connection, permit: None })
        }
    }

    async fn http1(&self) -> Result<H1Sender, ConnectError> {
        start_h1(self.made().await?).await
    }

    /// Asks the application for an upgrade on a connection of its own, and carries the bytes once it agrees.
    async fn upgrade(
        &self,
        started: Instant,
        held: Held,
        mut parts: Parts,
        protocol: HeaderValue,
        body: Incoming,
        client: Option<hyper::upgrade::OnUpgrade>,
    ) -> Result<Response<Body>, ConnectError> {
        headers::set_upgrade(&mut parts.headers, protocol);
        parts.headers.remove(http::header::CONTENT_LENGTH);
        let mut sender = self.http1().await?;
        let request = Request::from_parts(parts, Body::Empty);
        let mut response = sender.send_request(request).await.map_err(|e| broke_off(&e))?;
        let exchange = Exchange::new(Rc::clone(&self.metrics), started, response.status(), held);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = self.restored_response(response).into_parts();
            return Ok(Response::from_parts(parts, Watched::body(body, exchange, Activity::new(None), None)));
        }
        let application = hyper::upgrade::on(&mut response);
        let agreed = response.headers_mut().remove(UPGRADE).unwrap_or(HeaderValue::from_static(""));
        let (mut answer, _) = self.restored_response(response).into_parts();
        let Some(client) = client else {
            // From a sidecar: the two bodies of the stream are the connection.
            let (sender, receiver) = tunnel::channel();
            spawn_local(async move {
                match application.await {
                    Ok(application) => _ = tunnel::carry(application, sender, body, None).await,
                    Err(error) => tracing::debug!(%error, "the application left during its upgrade"),
                }
                exchange.finish();
            });
            answer.status = StatusCode::OK;
            answer.headers.insert(headers::MESH_UPGRADE, agreed);
            return Ok(Response::from_parts(answer, Body::Tunnel(receiver)));
        };
        spawn_local(async move {
            match tokio::try_join!(client, application) {
                Ok((client, application)) => _ = tunnel::join(client, application, None).await,
                Err(error) => tracing::debug!(%error, "an upgrade broke off"),
            }
            exchange.finish();
        });
        headers::set_upgrade(&mut answer.headers, agreed);
        Ok(Response::from_parts(answer, Body::Empty))
    }
}

fn broke_off(e: &hyper::Error) -> ConnectError {
    let why = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
    ConnectError::new(
        Reason::ApplicationReset,
        format_args!("the application ended the connection before its response: {e}{why}"),
    )
}
