//! A peer's requests: authorize, restore the application's protocol, hand over, count.

use std::rc::Rc;

use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{HOST, UPGRADE},
    request::Parts,
};
use tokio::task::spawn_local;

use super::{
    application::{Leg, Pools},
    caller::Caller,
};
use crate::{
    http::{
        Body, Incoming, SendError,
        body::{Activity, ReplaySource, Watched},
        client::{self, ConnectError, Made},
        exchange::{Exchange, Held},
        headers,
        reply::{is_grpc, reply},
        tunnel,
    },
    http1::{self, OnUpgrade, client::Client},
    http2,
    net::{Io, Metered},
    reason::Reason,
    telemetry::{ConnectionMetrics, Direction, RequestMetrics, Transport},
    tls::{self, Standing},
    worker::{Phase, Worker},
};

/// One connection of a peer.
struct Peer {
    worker: Rc<Worker>,
    caller: Caller,
    leg: Leg,
    pools: Rc<Pools>,
    metrics: Rc<RequestMetrics>,
    to_application: Rc<ConnectionMetrics>,
}

impl Peer {
    fn new(worker: &Rc<Worker>, caller: Caller, leg: Leg) -> Rc<Self> {
        Rc::new(Self {
            pools: worker.inbound.applications.pools(leg),
            metrics: caller.metrics(worker, leg.destination.port()),
            to_application: worker.metrics.connections(Direction::Inbound, Transport::Workload),
            worker: Rc::clone(worker),
            caller,
            leg,
        })
    }
}

/// Serves a peer's HTTP/2.
pub(super) async fn serve_http2<IO>(
    worker: &Rc<Worker>,
    io: IO,
    caller: Caller,
    transport: Transport,
    leg: Leg,
    standing: Option<Standing>,
) where
    IO: Io + 'static,
{
    let metrics = worker.metrics.connections(Direction::Inbound, transport);
    let peer = Peer::new(worker, caller, leg);
    metrics.opened();
    let io = Metered::new(io, metrics.meter());
    let to_move = standing.as_ref().map(Standing::is_to_move);
    let finishing = worker.reached(Phase::Finishing);
    let finish = async move {
        tokio::select! {
            () = finishing => {}
            () = async { match to_move { Some(to_move) => to_move.await, None => std::future::pending().await } } => {}
        }
    };
    let cut = {
        let peer = Rc::clone(&peer);
        async move {
            let refusal = tls::is_refused(standing).await;
            let error = peer.caller.refused_by_now(&peer.worker, &refusal);
            super::say_refused(&peer.worker, peer.caller.address(), &error);
        }
    };
    let ended = http2::server::serve_until(io, |request| handle(Rc::clone(&peer), request), finish, cut).await;
    metrics.closed();
    if let Err(error) = ended {
        tracing::debug!(%error, "a peer's HTTP/2 connection ended");
    }
}

/// Serves a peer's HTTP/1.x.
pub(super) async fn serve_http1<IO>(worker: &Rc<Worker>, io: IO, caller: Caller, transport: Transport, leg: Leg)
where
    IO: Io + 'static,
{
    let metrics = worker.metrics.connections(Direction::Inbound, transport);
    let peer = Peer::new(worker, caller, leg);
    metrics.opened();
    let io = Metered::new(io, metrics.meter());
    let ended =
        http1::server::serve(io, |request| handle(Rc::clone(&peer), request), worker.reached(Phase::Finishing)).await;
    metrics.closed();
    if let Err(error) = ended {
        if error.is_parse() {
            worker.metrics.error(Direction::Inbound, Reason::BadRequest.code());
        }
        tracing::debug!(%error, "a peer's HTTP/1 connection ended");
    }
}

async fn handle(peer: Rc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let held = Held { busy: Some(peer.worker.busy()), ..Held::default() };
    let exchange = Exchange::begin(Rc::clone(&peer.metrics), held);
    let grpc = is_grpc(request.headers());
    let refused = match peer.caller.authorize(&request, peer.leg.destination) {
        Ok(()) => match peer.ask(request).await {
            Ok(answer) => return answer.give(exchange),
            Err(e) => {
                tracing::debug!(reason = e.reason.code(), "{e}");
                e
            }
        },
        Err((reason, detail)) => {
            tracing::warn!(reason = reason.code(), "{detail}");
            ConnectError::new(reason, detail)
        }
    };
    peer.worker.metrics.error(Direction::Inbound, refused.reason.code());
    exchange.refuse(refused.reason.status());
    reply(refused.reason, &refused.message, grpc)
}

/// What the application is to get.
struct Call {
    parts: Parts,
    upgrade: Option<HeaderValue>,
}

/// What the application gave.
enum Answer {
    Ordinary(Response<Incoming>, Rc<Activity>),
    Switched { parts: http::response::Parts, application: OnUpgrade, protocol: HeaderValue, peer: Peers },
}

/// The peer's side of an upgraded connection.
enum Peers {
    /// A connection of its own.
    Connection(OnUpgrade),
    /// A stream, from a sidecar: its two bodies are the connection.
    Stream(Incoming),
}

impl Answer {
    fn give(self, mut exchange: Exchange) -> Response<Body> {
        let (mut parts, application, protocol, peer) = match self {
            Self::Ordinary(response, activity) => {
                exchange.answered(response.status());
                let (parts, body) = response.into_parts();
                return Response::from_parts(parts, Watched::body(body, exchange, activity, None));
            }
            Self::Switched { parts, application, protocol, peer } => (parts, application, protocol, peer),
        };
        exchange.answered(StatusCode::SWITCHING_PROTOCOLS);
        match peer {
            Peers::Connection(client) => {
                spawn_local(async move {
                    match tokio::try_join!(client.upgraded(), application.upgraded()) {
                        Ok((client, application)) => _ = tunnel::join(client, application, None).await,
                        Err(error) => tracing::debug!(%error, "an upgrade broke off"),
                    }
                    exchange.finish();
                });
                headers::set_upgrade(&mut parts.headers, protocol);
                Response::from_parts(parts, Body::Empty)
            }
            Peers::Stream(stream) => {
                let (sender, receiver) = tunnel::channel();
                spawn_local(async move {
                    match application.upgraded().await {
                        Ok(application) => _ = tunnel::carry(application, sender, stream, None).await,
                        Err(error) => tracing::debug!(%error, "the application left during its upgrade"),
                    }
                    exchange.finish();
                });
                parts.status = StatusCode::OK;
                parts.headers.insert(headers::MESH_UPGRADE, protocol);
                Response::from_parts(parts, Body::Tunnel(receiver))
            }
        }
    }
}

impl Peer {
    async fn ask(&self, request: Request<Incoming>) -> Result<Answer, ConnectError> {
        let (parts, body) = request.into_parts();
        let call = self.restore(parts, !body.is_end_stream())?;
        if let Some(protocol) = call.upgrade {
            let peer = match body {
                Incoming::Upgrade(client) => Peers::Connection(client),
                stream => Peers::Stream(stream),
            };
            return Box::pin(self.upgrade(call.parts, protocol, peer)).await;
        }
        let activity = Activity::new(None);
        let source = (!body.is_end_stream()).then(|| ReplaySource::new(body, Rc::clone(&activity)));
        let response = self.send(&call.parts, source.as_ref()).await?;
        Ok(Answer::Ordinary(restored(response), activity))
    }

    /// Gives a request the form that the calling application gave it, without what only the mesh may say.
    fn restore(&self, mut parts: Parts, has_body: bool) -> Result<Call, ConnectError> {
        let bad = |e: headers::TargetError| ConnectError::new(Reason::BadRequest, e);
        let from_mesh = self.caller.is_mesh();
        let was_http1 =
            parts.version < Version::HTTP_2 || (from_mesh && parts.headers.contains_key(headers::ORIGINAL_PROTOCOL));
        let by_mesh = parts.headers.get(headers::MESH_UPGRADE).filter(|_| from_mesh).cloned();
        headers::strip_mesh(&mut parts.headers);
        headers::strip_lookalikes(&mut parts.headers);
        let by_itself = headers::strip_hop_by_hop(&mut parts.headers, parts.version);
        // RFC 9110 section 7.8: not in HTTP/1.0. Where there is a body the answer without an upgrade is right as well.
        let by_itself = by_itself.filter(|_| parts.version == Version::HTTP_11 && !has_body);
        // An application that began to speak HTTP on the connection would not have its requests looked at any more.
        let upgrade = by_mesh.or(by_itself).filter(|protocol| !headers::is_http(protocol));
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
                let host = self.leg.destination.to_string();
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

    async fn send(&self, parts: &Parts, source: Option<&ReplaySource>) -> Result<Response<Incoming>, ConnectError> {
        let body = || source.map_or(Body::Empty, ReplaySource::next_try);
        if parts.version == Version::HTTP_2 {
            let slot = match self.pools.h2.ready() {
                Some(slot) => slot,
                // Rare and large: a request should not carry the room for it along.
                None => Box::pin(self.pools.h2.get(|| self.made())).await?,
            };
            return slot.connection().send(parts, body()).await.map_err(|e| lost(&e));
        }
        let mut reused = self.pools.h1.take();
        loop {
            let was_reused = reused.is_some();
            let client = match reused.take() {
                Some(client) => client,
                None => Box::pin(self.http1()).await?,
            };
            match client.send(parts, body()).await {
                Ok(response) => return Ok(response),
                // The application closed the idle connection as we wrote (the keep-alive race, RFC 9112 section
                // 9.3.1): tried anew where nothing was sent, or where a second time does no harm.
                Err(e)
                    if was_reused
                        && (e.unsent || parts.method.is_idempotent())
                        && source.is_none_or(ReplaySource::can_replay) => {}
                Err(e) => return Err(lost(&e)),
            }
        }
    }

    fn made(&self) -> impl Future<Output = Result<Made<tokio::net::TcpStream>, ConnectError>> + use<> {
        let (worker, leg) = (Rc::clone(&self.worker), self.leg);
        let (requests, connection) = (Rc::clone(&self.metrics), Rc::clone(&self.to_application));
        async move {
            let io = worker.inbound.applications.dial(leg).await?;
            Ok(Made {
                io,
                refusal: Rc::default(),
                requests,
                connection,
                permit: None,
                watched: None,
                to_sidecar: false,
            })
        }
    }

    async fn http1(&self) -> Result<Client, ConnectError> {
        Ok(client::http1(self.made().await?, &self.pools.h1))
    }

    /// Asks the application for an upgrade, on a connection of its own.
    async fn upgrade(&self, mut parts: Parts, protocol: HeaderValue, peer: Peers) -> Result<Answer, ConnectError> {
        headers::set_upgrade(&mut parts.headers, protocol);
        parts.headers.remove(http::header::CONTENT_LENGTH);
        let client = self.http1().await?;
        let response = client.send(&parts, Body::Empty).await.map_err(|e| lost(&e))?;
        let (mut parts, body) = response.into_parts();
        match body {
            Incoming::Upgrade(application) => {
                let protocol = parts.headers.remove(UPGRADE).unwrap_or(HeaderValue::from_static(""));
                let (parts, ()) = restored(Response::from_parts(parts, ())).into_parts();
                Ok(Answer::Switched { parts, application, protocol, peer })
            }
            body => Ok(Answer::Ordinary(restored(Response::from_parts(parts, body)), Activity::new(None))),
        }
    }
}

/// The application's response without what only the two of us, or only the mesh, may say.
fn restored<B>(mut response: Response<B>) -> Response<B> {
    let version = response.version();
    headers::strip_hop_by_hop(response.headers_mut(), version);
    headers::strip_mesh(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    response
}

/// What an error of the application's connection says about the request.
fn lost(e: &SendError) -> ConnectError {
    let why = &e.error;
    if e.is_unprocessed() {
        let text = format_args!("the application did not take the request: {why}");
        return ConnectError::new(Reason::ApplicationRefused, text);
    }
    ConnectError::new(
        Reason::ApplicationReset,
        format_args!("the application ended the connection before its response: {why}"),
    )
}
