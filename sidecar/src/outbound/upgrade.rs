//! Requests that ask their connection to become something else: WebSocket and others.

use std::rc::Rc;

use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_LENGTH, header::UPGRADE};
use hyper::body::Incoming;
use tokio::{task::spawn_local, time::Instant};

use super::{
    connect,
    endpoint::Endpoint,
    forward::{self, refused},
    retries::Retries,
    service::Service,
};
use crate::{
    http::{
        Body,
        body::{Activity, Watched},
        client::{ConnectError, Exchange, Held},
        headers, tunnel,
    },
    reason::Reason,
    resilience::Outcome,
    telemetry::Direction,
    worker::Worker,
};

/// Whether a request asks for an upgrade that is to be carried (RFC 9110 section 7.8). Upgrades to another version of
/// HTTP are not: the answer without one is right as well.
pub(super) fn is_asked_for(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && headers::asks_for_upgrade(request.headers())
        && request.headers().get(UPGRADE).is_some_and(|v| !v.as_bytes().to_ascii_lowercase().starts_with(b"h2c"))
}

/// Forwards the request and, once the other side agrees, the bytes.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let refuse = |reason: Reason, detail: &str| refused(worker, &service.unattached, started, reason, detail, false);
    let client = hyper::upgrade::on(&mut request);
    let idle = service.spec.timeouts.tcp_idle.enabled();
    let permit = match service.breakers.try_request() {
        Ok(permit) => permit,
        Err(full) => {
            service.metrics.circuit_open(full.which());
            let text = format!("circuit_breakers.{} of {} is reached", full.which(), service.spec.name);
            return refuse(Reason::CircuitOpen, &text);
        }
    };
    let (parts, body) = request.into_parts();
    if !http_body::Body::is_end_stream(&body) {
        return refuse(Reason::BadRequest, "a request that asks for an upgrade must have no body here");
    }
    let Some(protocol) = parts.headers.get(UPGRADE).cloned() else {
        return refuse(Reason::BadRequest, "the upgrade names no protocol");
    };
    let mut outgoing = match forward::outgoing(service, parts) {
        Ok(outgoing) => outgoing,
        Err(e) => return refuse(Reason::BadRequest, &e.to_string()),
    };
    outgoing.headers.remove(CONTENT_LENGTH);
    let held = Held { slot: None, permit: Some(permit), busy: Some(worker.busy()) };
    if service.is_mesh() {
        outgoing.headers.insert(headers::MESH_UPGRADE, protocol.clone());
        let slot = match elsewhere(service, |endpoint| connect::http2_owned(worker, service, endpoint)).await {
            Ok((slot, _)) => slot,
            Err(e) => return refuse(e.reason, &e.message),
        };
        let metrics = Rc::clone(slot.connection().metrics());
        let (sender, receiver) = tunnel::channel();
        let answer = slot.connection().send(outgoing.request(Body::Tunnel(receiver))).await;
        let held = Held { slot: Some(slot), ..held };
        let mut response = match answer {
            Ok(response) => response,
            Err(e) => {
                let text = format!("{} ended the connection before its response: {}", service.spec.name, e.error());
                return refuse(Reason::UpstreamReset, &text);
            }
        };
        metrics.begin();
        let agreed = response.headers_mut().remove(headers::MESH_UPGRADE);
        let version = response.version();
        headers::strip_hop_by_hop(response.headers_mut(), version);
        let (parts, body) = response.into_parts();
        let Some(agreed) = agreed.filter(|_| parts.status == StatusCode::OK) else {
            let exchange = Exchange::new(metrics, started, parts.status, held);
            return ordinary(service, parts, body, exchange);
        };
        let exchange = Exchange::new(metrics, started, StatusCode::SWITCHING_PROTOCOLS, held);
        let worker = Rc::clone(worker);
        spawn_local(async move {
            match client.await {
                Ok(client) => count_idle(&worker, tunnel::carry(client, sender, body, idle).await),
                Err(error) => tracing::debug!(%error, "the workload left during its upgrade"),
            }
            exchange.finish();
        });
        return switched(parts.headers, agreed);
    }
    headers::set_upgrade(&mut outgoing.headers, protocol);
    let mut sender = match elsewhere(service, |endpoint| connect::http1_owned(worker, service, endpoint)).await {
        Ok((sender, _)) => sender,
        Err(e) => return refuse(e.reason, &e.message),
    };
    let mut response = match sender.send_request(outgoing.request(Body::Empty)).await {
        Ok(response) => response,
        Err(e) => {
            let text = format!("{} ended the connection before its response: {e}", service.spec.name);
            return refuse(Reason::UpstreamReset, &text);
        }
    };
    let metrics = Rc::clone(&service.unattached);
    metrics.begin();
    let exchange = Exchange::new(metrics, started, response.status(), held);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let version = response.version();
        headers::strip_hop_by_hop(response.headers_mut(), version);
        headers::strip_mesh(response.headers_mut());
        let (parts, body) = response.into_parts();
        return ordinary(service, parts, body, exchange);
    }
    let upstream = hyper::upgrade::on(&mut response);
    let agreed = response.headers_mut().remove(UPGRADE).unwrap_or_else(|| HeaderValue::from_static(""));
    let (mut parts, _) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers, Version::HTTP_11);
    headers::strip_mesh(&mut parts.headers);
    let worker = Rc::clone(worker);
    spawn_local(async move {
        match tokio::try_join!(client, upstream) {
            Ok((client, upstream)) => count_idle(&worker, tunnel::join(client, upstream, idle).await),
            Err(error) => tracing::debug!(%error, "an upgrade broke off"),
        }
        exchange.finish();
    });
    switched(parts.headers, agreed)
}

/// Connects to an endpoint, and to others when that fails: nothing was sent yet.
async fn elsewhere<T, F>(
    service: &Service,
    connect: impl Fn(Rc<Endpoint>) -> F,
) -> Result<(T, Rc<Endpoint>), ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let mut retries = Retries::new(service);
    loop {
        let endpoint = service.pick(retries.tried()).await?;
        match connect(Rc::clone(&endpoint)).await {
            Ok(connection) => return Ok((connection, endpoint)),
            Err(e) if matches!(e.reason, Reason::NoCertificate | Reason::CircuitOpen) => return Err(e),
            Err(e) => {
                service.record(&endpoint, Outcome::LocalOrigin);
                if !retries.granted() {
                    return Err(e);
                }
                retries.wait(endpoint, e.reason.code()).await;
            }
        }
    }
}

fn count_idle(worker: &Worker, ended: tunnel::End) {
    if ended == tunnel::End::Idle {
        tracing::debug!("an upgraded connection ended: nothing moved for timeouts.tcpIdle");
        worker.metrics.error(Direction::Outbound, Reason::IdleTimeout.code());
    }
}

/// The response of an application that did not agree.
fn ordinary(service: &Service, mut parts: http::response::Parts, body: Incoming, exchange: Exchange) -> Response<Body> {
    parts.version = Version::HTTP_11;
    let activity = Activity::new(service.spec.timeouts.idle.enabled());
    Response::from_parts(parts, Watched::body(body, exchange, activity, None))
}

fn switched(mut response_headers: http::HeaderMap, protocol: HeaderValue) -> Response<Body> {
    headers::set_upgrade(&mut response_headers, protocol);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = response_headers;
    response
}
