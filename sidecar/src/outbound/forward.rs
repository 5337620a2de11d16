//! One request's way: admit, pick, send, classify, perhaps try elsewhere.

use std::{cell::Cell, rc::Rc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request::Parts};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{connect, endpoint::Endpoint, retries::Retries, service::Service};
use crate::{
    balance::Candidate,
    http::{
        Body,
        body::{Activity, Deadline, ReplaySource, Watched},
        client::{ConnectError, Exchange, Held, StreamSlot},
        headers,
        reply::{is_grpc, reply},
    },
    reason::Reason,
    resilience::Outcome,
    telemetry::{Direction, RequestMetrics},
    tls,
    worker::Worker,
};

/// A request that is ready to leave, in the protocol of the service's endpoints.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) target: Uri,
    pub(super) headers: HeaderMap,
    pub(super) version: Version,
}

impl Outgoing {
    pub(super) fn request(&self, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        *request.version_mut() = self.version;
        request
    }
}

/// Why a try did not give a response.
#[derive(Debug)]
pub(super) struct TryError {
    pub(super) reason: Reason,
    pub(super) message: Rc<str>,
    /// The endpoint certainly did nothing with the request.
    pub(super) unprocessed: bool,
    /// The workload itself broke off: nobody's fault and nobody left to answer.
    pub(super) by_caller: bool,
}

impl From<ConnectError> for TryError {
    fn from(e: ConnectError) -> Self {
        Self { reason: e.reason, message: e.message, unprocessed: true, by_caller: false }
    }
}

/// The body of a request, from which each try takes its own.
enum Source {
    None,
    Replay(ReplaySource),
}

impl Source {
    fn next_try(&self) -> Body {
        match self {
            Self::None => Body::Empty,
            Self::Replay(source) => source.next_try(),
        }
    }

    fn broke(&self) -> bool {
        match self {
            Self::None => false,
            Self::Replay(source) => source.broke(),
        }
    }

    fn can_replay(&self) -> bool {
        match self {
            Self::None => true,
            Self::Replay(source) => source.can_replay(),
        }
    }
}

/// Forwards a request to `service` and gives back its response, or one of our own that says why there is none.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    outgoing: Outgoing,
    body: Incoming,
) -> Response<Body> {
    let started = Instant::now();
    let grpc = is_grpc(&outgoing.headers);
    let busy = worker.busy();
    let permit = match service.breakers.try_request() {
        Ok(permit) => permit,
        Err(full) => {
            service.metrics.circuit_open(full.which());
            let text = format!("circuit_breakers.{} of {} is reached", full.which(), service.spec.name);
            return refused(worker, &service.unattached, started, Reason::CircuitOpen, &text, grpc);
        }
    };
    let deadline = if grpc { deadline(started, &outgoing.headers) } else { None };
    let limit = match (service.spec.timeouts.request.enabled(), deadline) {
        (Some(own), Some(call)) => Some(own.min(call.limit)),
        (own, call) => own.or(call.map(|c| c.limit)),
    };
    let activity = Activity::new(service.spec.timeouts.idle.enabled());
    let source = if http_body::Body::is_end_stream(&body) {
        Source::None
    } else {
        Source::Replay(ReplaySource::new(body, Rc::clone(&activity)))
    };
    let tries = tries(worker, service, &outgoing, &source, &activity);
    let outcome = match limit {
        None => tries.await,
        Some(limit) => tokio::time::timeout_at(started + limit, tries).await.unwrap_or_else(|_| {
            let text = format!("{} gave no response within {limit:?}", service.spec.name);
            Err(TryError { reason: Reason::RequestTimeout, message: text.into(), unprocessed: false, by_caller: false })
        }),
    };
    match outcome {
        Ok((response, slot)) => {
            let metrics = slot.as_ref().map_or(&service.unattached, |s| s.connection().metrics());
            let metrics = Rc::clone(metrics);
            metrics.begin();
            let held = Held { slot, permit: Some(permit), busy: Some(busy) };
            let exchange = Exchange::new(metrics, started, response.status(), held);
            let (parts, body) = response.into_parts();
            Response::from_parts(parts, Watched::body(body, exchange, activity, deadline))
        }
        Err(e) => refused(worker, &service.unattached, started, e.reason, &e.message, grpc),
    }
}

/// A response of our own, counted.
pub(super) fn refused(
    worker: &Worker,
    metrics: &RequestMetrics,
    started: Instant,
    reason: Reason,
    detail: &str,
    grpc: bool,
) -> Response<Body> {
    worker.metrics.error(Direction::Outbound, reason.code());
    metrics.begin();
    metrics.end(Some(reason.status()), started.elapsed());
    tracing::debug!(reason = reason.code(), "{detail}");
    reply(reason, detail, grpc)
}

async fn tries(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    outgoing: &Outgoing,
    source: &Source,
    activity: &Activity,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    let policy = &service.spec.retry;
    let mut retries = Retries::new(service);
    loop {
        let endpoint = service.pick(retries.tried()).await?;
        let result = one_try(worker, service, &endpoint, outgoing, source, activity).await;
        let why = match &result {
            Ok((response, _)) => {
                service.record(&endpoint, outcome_of(response.status()));
                response_retry(policy.codes.as_slice(), outgoing, response)
            }
            Err(e) if e.by_caller => return result,
            Err(e) => {
                if counts_against_endpoint(e.reason) {
                    service.record(&endpoint, Outcome::LocalOrigin);
                }
                (retriable_error(e.reason) && (e.unprocessed || outgoing.method.is_idempotent()))
                    .then_some(e.reason.code())
            }
        };
        let Some(why) = why else { return result };
        if !source.can_replay() || !retries.granted() {
            return result;
        }
        // Closes a stream whose response is not wanted before the wait, not after it.
        drop(result);
        retries.wait(endpoint, why).await;
    }
}

/// Whether another endpoint, or another moment, could do better.
fn retriable_error(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::MeshVersion
            | Reason::UpstreamReset
            | Reason::TryTimeout
    )
}

fn counts_against_endpoint(reason: Reason) -> bool {
    retriable_error(reason) || matches!(reason, Reason::ProtocolError | Reason::IdleTimeout)
}

fn outcome_of(status: StatusCode) -> Outcome {
    match status.as_u16() {
        502..=504 => Outcome::GatewayFailure,
        500.. => Outcome::Http5xx,
        _ => Outcome::Success,
    }
}

/// Whether a response is one to try again, and what to call it.
fn response_retry(codes: &[u16], outgoing: &Outgoing, response: &Response<Incoming>) -> Option<&'static str> {
    if let Some(code) = response.headers().get(headers::ERROR)
        && Reason::unprocessed(code.as_bytes())
    {
        return Some("unprocessed");
    }
    let listed = codes.contains(&response.status().as_u16());
    (listed && outgoing.method.is_idempotent()).then_some("status")
}

async fn one_try(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    endpoint: &Rc<Endpoint>,
    outgoing: &Outgoing,
    source: &Source,
    activity: &Activity,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    let load = endpoint.load();
    load.begin();
    endpoint.count_request();
    // The time of a new connection's handshakes is no sign of load.
    let sent_at = Cell::new(None);
    let in_flight = InFlight(Some(endpoint));
    let limit = service.spec.timeouts.backend_request.enabled();
    let sent = send(worker, service, endpoint, outgoing, source, &sent_at);
    let result = tokio::select! {
        biased;
        result = sent => result,
        limit = activity.stalled() => {
            let text = format!("no byte to or from {} for {limit:?} (timeouts.idle)", service.spec.name);
            Err(TryError { reason: Reason::IdleTimeout, message: text.into(), unprocessed: false, by_caller: false })
        }
        limit = elapsed(limit) => {
            let text = format!("{} at {} gave no response within {limit:?}", service.spec.name, endpoint.address);
            Err(TryError { reason: Reason::TryTimeout, message: text.into(), unprocessed: false, by_caller: false })
        }
    };
    // A failure says nothing about how long an answer takes, and a fast one must not make its endpoint look fast:
    // the endpoint keeps the price that it had. Leaving it alone is for outlier detection and the connect backoff.
    in_flight.end(match (&result, sent_at.get()) {
        (Ok((response, _)), Some(sent_at)) if !response.status().is_server_error() => Some(sent_at.elapsed()),
        _ => None,
    });
    let (mut response, slot) = result?;
    let from = response.version();
    headers::strip_hop_by_hop(response.headers_mut(), from);
    if service.is_mesh() {
        response.headers_mut().remove(headers::MESH_UPGRADE);
    } else {
        headers::strip_mesh(response.headers_mut());
    }
    *response.version_mut() = Version::HTTP_11;
    Ok((response, slot))
}

async fn elapsed(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Counts a request as under way at an endpoint, also when its future is dropped.
struct InFlight<'a>(Option<&'a Rc<Endpoint>>);

impl InFlight<'_> {
    fn end(mut self, rtt: Option<Duration>) {
        if let Some(endpoint) = self.0.take() {
            endpoint.load().end(Instant::now(), rtt);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0.take() {
            endpoint.load().end(Instant::now(), None);
        }
    }
}

async fn send(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    endpoint: &Rc<Endpoint>,
    outgoing: &Outgoing,
    source: &Source,
    sent_at: &Cell<Option<Instant>>,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    if outgoing.version == Version::HTTP_2 {
        let slot = connect::http2(worker, service, endpoint).await?;
        sent_at.set(Some(Instant::now()));
        let response = slot.connection().send(outgoing.request(source.next_try())).await;
        let response = response.map_err(|mut e| {
            let unsent = e.take_message().is_some();
            failed(service, endpoint, &e.into_error(), unsent, source)
        })?;
        return Ok((response, Some(slot)));
    }
    let mut reused = endpoint.h1.take();
    loop {
        let was_reused = reused.is_some();
        let mut sender = match reused.take() {
            Some(sender) => sender,
            None => connect::http1(worker, service, endpoint).await?,
        };
        let body = source.next_try();
        sent_at.set(Some(Instant::now()));
        match sender.try_send_request(outgoing.request(body)).await {
            Ok(response) => {
                endpoint.h1.give_back(sender);
                return Ok((response, None));
            }
            Err(mut e) => {
                let unsent = e.take_message().is_some();
                let e = failed(service, endpoint, &e.into_error(), unsent, source);
                // The peer closed the idle connection as we wrote: that is no failure of the endpoint's, and a new
                // connection tells at once.
                if was_reused && e.unprocessed && source.can_replay() {
                    continue;
                }
                return Err(e);
            }
        }
    }
}

/// What an error of a connection says about the request.
pub(super) fn h2_unprocessed(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(e) = source {
        if let Some(h2) = e.downcast_ref::<h2::Error>() {
            // RFC 9113 section 8.7: a refused stream, and one above the last that GOAWAY names, was not processed.
            let refused = h2.is_reset() && h2.is_remote() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            let gone = h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
            return refused || gone;
        }
        source = e.source();
    }
    false
}

fn failed(service: &Service, endpoint: &Endpoint, e: &hyper::Error, unsent: bool, source: &Source) -> TryError {
    let by_caller = !unsent && source.broke();
    let unprocessed = unsent || e.is_canceled() || h2_unprocessed(e);
    let why = std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default();
    let (name, address) = (&service.spec.name, endpoint.address);
    if let Some(refusal) = tls::find(e) {
        // With TLS 1.3 a peer refuses our certificate only after the handshake; it read nothing of the request.
        let text = format!("no mTLS with {name} at {address}: {}", refusal.message);
        let unprocessed = unprocessed || refusal.code.starts_with("refused_");
        return TryError { reason: Reason::TlsFailed, message: text.into(), unprocessed, by_caller };
    }
    let (reason, message) = if e.is_parse() {
        (Reason::ProtocolError, format!("{name} at {address} sent what is no HTTP response: {e}"))
    } else {
        (Reason::UpstreamReset, format!("{name} at {address} ended the connection before its response: {e}{why}"))
    };
    TryError { reason, message: message.into(), unprocessed, by_caller }
}

/// When the call itself wants to have ended.
fn deadline(started: Instant, headers: &HeaderMap) -> Option<Deadline> {
    let limit = headers.get("grpc-timeout").and_then(grpc_timeout)?;
    Some(Deadline { at: started.checked_add(limit)?, limit })
}

/// Parses `grpc-timeout` (gRPC over HTTP/2, "Requests": at most eight digits and a unit).
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Makes of the workload's request one that can leave: for the mesh as HTTP/2, else in its own protocol.
pub(super) fn outgoing(service: &Service, mut parts: Parts) -> Result<Outgoing, headers::TargetError> {
    let authority = headers::authority(&parts.uri, &parts.headers)?;
    let came_as_h2 = parts.version == Version::HTTP_2;
    headers::strip_mesh(&mut parts.headers);
    parts.headers.remove(headers::CLIENT_CERT);
    headers::strip_hop_by_hop(&mut parts.headers, parts.version);
    let (target, version) = if service.is_mesh() || came_as_h2 {
        let target = headers::absolute_target(&parts.uri, authority)?;
        parts.headers.remove(http::header::HOST);
        if service.is_mesh() && !came_as_h2 {
            parts.headers.insert(headers::ORIGINAL_PROTOCOL, HeaderValue::from_static("1"));
        }
        (target, Version::HTTP_2)
    } else {
        let target = headers::origin_target(&parts.uri)?;
        headers::set_host(&mut parts.headers, &authority)?;
        (target, Version::HTTP_11)
    };
    Ok(Outgoing { method: parts.method, target, headers: parts.headers, version })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        let parse = |s: &'static str| grpc_timeout(&HeaderValue::from_static(s));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parse("99999999S"), Some(Duration::from_secs(99_999_999)));
        for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1.5S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
