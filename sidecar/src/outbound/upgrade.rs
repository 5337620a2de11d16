//! Requests that ask their connection to become something else: WebSocket and others.

use std::{cell::RefCell, rc::Rc, time::Duration};

use http::{
    HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_LENGTH, header::UPGRADE, request::Parts,
};
use tokio::task::spawn_local;

use super::{
    forward::{self, Source, refused},
    policy::Policy,
    service::Service,
};
use crate::{
    http::{Body, Error, Incoming, body::Activity, headers, tunnel},
    http1::OnUpgrade,
    reason::Reason,
    telemetry::Direction,
    worker::Worker,
};

/// Whether a request asks for an upgrade that is to be carried (RFC 9110 section 7.8). Upgrades to another version of
/// HTTP are not: the answer without one is right as well.
pub(super) fn is_asked_for(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && headers::asks_for_upgrade(request.headers())
        && request.headers().get(UPGRADE).is_some_and(|v| !headers::is_http(v))
}

/// Forwards the request and, once the other side agrees, the bytes.
pub(super) async fn forward(worker: &Rc<Worker>, policy: Policy<'_>, request: Request<Incoming>) -> Response<Body> {
    let service = policy.service;
    let (outgoing, client) = match outgoing(policy, request) {
        Ok(outgoing) => outgoing,
        Err(why) => return forward::bad_request(worker, policy, &why, false),
    };
    let source = if service.is_mesh() { Source::Tunnel(RefCell::default()) } else { Source::None };
    let activity = Activity::new(policy.idle());
    let (mut response, mut exchange) = match forward::call(worker, policy, &outgoing, &source, &activity, None).await {
        Ok(answered) => answered,
        Err((e, exchange)) => return refused(worker, exchange, e.reason, &e.message, false),
    };
    let Some(agreed) = agreed(service, &mut response) else {
        return forward::answer(service, response, exchange, activity, None);
    };
    exchange.answered(StatusCode::SWITCHING_PROTOCOLS);
    let idle = service.spec.timeouts.tcp_idle.enabled();
    let (parts, body) = response.into_parts();
    let worker = Rc::clone(worker);
    spawn_local(async move {
        match carry(client, source, body, idle).await {
            Ok(ended) => count_idle(&worker, ended),
            Err(error) => tracing::debug!(%error, "an upgrade broke off"),
        }
        exchange.finish();
    });
    switched(service, parts, agreed)
}

/// Carries the bytes between the workload and the other side, once the workload knows of the upgrade.
async fn carry(
    client: OnUpgrade,
    source: Source,
    body: Incoming,
    idle: Option<Duration>,
) -> Result<tunnel::End, Error> {
    let client = client.upgraded().await?;
    Ok(match source {
        Source::Tunnel(last) => match last.take() {
            Some(sender) => tunnel::carry(client, sender, body, idle).await,
            None => tunnel::End::Closed,
        },
        Source::None | Source::Replay(_) => {
            let upstream = body.upgrade().ok_or(Error::Closed)?.upgraded().await?;
            tunnel::join(client, upstream, idle).await
        }
    })
}

/// The request as it leaves: an upgrade between sidecars is an ordinary request with a header.
fn outgoing(policy: Policy<'_>, request: Request<Incoming>) -> Result<(Parts, OnUpgrade), String> {
    let service = policy.service;
    let (parts, body) = request.into_parts();
    let client = body.upgrade().ok_or("a request that asks for an upgrade must have no body here")?;
    let protocol = parts.headers.get(UPGRADE).cloned().ok_or("the upgrade names no protocol")?;
    let mut outgoing = forward::outgoing(service, policy.route, parts).map_err(|e| e.to_string())?;
    outgoing.headers.remove(CONTENT_LENGTH);
    if service.is_mesh() {
        outgoing.headers.insert(headers::MESH_UPGRADE, protocol);
    } else {
        headers::set_upgrade(&mut outgoing.headers, protocol);
    }
    Ok((outgoing, client))
}

/// The protocol that the other side has switched to, if it has.
fn agreed(service: &Service, response: &mut Response<Incoming>) -> Option<HeaderValue> {
    let (switched, name) = if service.is_mesh() {
        (StatusCode::OK, headers::MESH_UPGRADE)
    } else {
        (StatusCode::SWITCHING_PROTOCOLS, UPGRADE)
    };
    if response.status() != switched {
        return None;
    }
    let named = response.headers_mut().remove(name);
    // Who says 101 has switched, to whatever.
    if service.is_mesh() { named } else { Some(named.unwrap_or_else(|| HeaderValue::from_static(""))) }
}

fn count_idle(worker: &Worker, ended: tunnel::End) {
    if ended == tunnel::End::Idle {
        tracing::debug!("an upgraded connection ended: nothing moved for timeouts.tcpIdle");
        worker.metrics.error(Direction::Outbound, Reason::IdleTimeout.code());
    }
}

fn switched(service: &Service, mut parts: http::response::Parts, protocol: HeaderValue) -> Response<Body> {
    headers::strip_hop_by_hop(&mut parts.headers, parts.version);
    if !service.is_mesh() {
        headers::strip_mesh(&mut parts.headers);
    }
    headers::set_upgrade(&mut parts.headers, protocol);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = parts.headers;
    response
}
