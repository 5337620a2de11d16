//! One request's way: admit, pick, send, classify, perhaps try elsewhere.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, request::Parts};
use tokio::time::Instant;

use super::{
    affinity, connect, endpoint::Endpoint, mirror::Copies, policy::Policy, retries::Retries, routed::LocalRule,
    service::Service,
};
use crate::{
    balance::Candidate,
    http::{
        Body, Incoming, SendError,
        body::{Activity, Deadline, ReplaySource, Watched},
        client::{ConnectError, StreamSlot},
        exchange::{Exchange, Held},
        headers,
        reply::{is_grpc, reply},
        tunnel::{self, TunnelSender},
    },
    reason::Reason,
    resilience::{Outcome, Pushback},
    telemetry::Direction,
    worker::Worker,
};

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
pub(super) enum Source {
    None,
    Replay(ReplaySource),
    /// An upgrade's, through which the bytes go later: the sender of the last try.
    Tunnel(RefCell<Option<TunnelSender>>),
}

impl Source {
    fn next_try(&self) -> Body {
        match self {
            Self::None => Body::Empty,
            Self::Replay(source) => source.next_try(),
            Self::Tunnel(last) => {
                let (sender, receiver) = tunnel::channel();
                *last.borrow_mut() = Some(sender);
                Body::Tunnel(receiver)
            }
        }
    }

    fn replay(&self) -> Option<&ReplaySource> {
        match self {
            Self::None | Self::Tunnel(_) => None,
            Self::Replay(source) => Some(source),
        }
    }

    fn broke(&self) -> bool {
        self.replay().is_some_and(ReplaySource::broke)
    }

    /// Whatever earlier tries still send ends.
    fn supersede(&self) {
        if let Some(source) = self.replay() {
            source.supersede();
        }
    }

    /// Whether the endpoint can only wait, for the workload to send more.
    fn starves(&self) -> bool {
        self.replay().is_some_and(ReplaySource::starves)
    }

    fn can_replay(&self) -> bool {
        self.replay().is_none_or(ReplaySource::can_replay)
    }
}

/// Forwards a request to a service and gives back its response, or one of our own that says why there is none. Its
/// `copies` go where they are for once the body of it is known.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    policy: Policy<'_>,
    outgoing: Parts,
    body: Incoming,
    mut copies: Copies,
) -> Response<Body> {
    let service = policy.service;
    let grpc = is_grpc(&outgoing.headers);
    let deadline = if grpc { deadline(Instant::now(), &outgoing.headers) } else { None };
    let activity = Activity::new(policy.idle());
    let source =
        if body.is_end_stream() { Source::None } else { Source::Replay(ReplaySource::new(body, Rc::clone(&activity))) };
    if source.replay().is_none() {
        copies.send(worker, None);
    }
    let called = call(worker, policy, &outgoing, &source, &activity, deadline).await;
    if let Some(body) = source.replay() {
        copies.send(worker, Some(body));
    }
    match called {
        Ok((response, exchange)) => answer(service, response, exchange, activity, deadline),
        Err((e, exchange)) => refused(worker, exchange, e.reason, &e.message, grpc),
    }
}

/// A response as the workload gets it.
pub(super) fn answer(
    service: &Service,
    response: Response<Incoming>,
    exchange: Exchange,
    activity: Rc<Activity>,
    deadline: Option<Deadline>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers, parts.version);
    if service.is_mesh() {
        parts.headers.remove(headers::MESH_UPGRADE);
    } else {
        headers::strip_mesh(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, Watched::body(body, exchange, activity, deadline))
}

/// Gets a response from an endpoint of a service, within its bounds and its time.
pub(super) async fn call(
    worker: &Rc<Worker>,
    policy: Policy<'_>,
    outgoing: &Parts,
    source: &Source,
    activity: &Activity,
    deadline: Option<Deadline>,
) -> Result<(Response<Incoming>, Exchange), (TryError, Exchange)> {
    let service = policy.service;
    let held = Held { busy: Some(worker.busy()), ..Held::default() };
    let mut exchange = Exchange::begin(Rc::clone(&service.unattached), held);
    if let Some(route) = policy.route {
        exchange.take_route(route.metrics.requests());
    }
    match service.breakers.try_request() {
        Ok(permit) => exchange.hold(permit),
        Err(full) => return Err((connect::overflow(service, full.which()).into(), exchange)),
    }
    let own = policy.request().map(|limit| Deadline { at: exchange.started() + limit, limit });
    let end = own.into_iter().chain(deadline).min_by_key(|d| d.at);
    let asked = Cell::new(None);
    let mut tries = pin!(tries(worker, policy, outgoing, source, activity, end.map(|end| end.at), &asked));
    let outcome = match end {
        None => tries.await,
        Some(end) => tokio::time::timeout_at(end.at, tries.as_mut()).await.unwrap_or_else(|_| {
            // A caller's own deadline may be as short as it likes.
            if let Some(endpoint) = asked.take()
                && own.is_some_and(|own| own.at <= end.at)
                && !source.starves()
            {
                service.record(&endpoint, Outcome::LocalOrigin);
            }
            let text = format!("{} gave no response within {:?}", service.spec.name, end.limit);
            Err(TryError { reason: Reason::RequestTimeout, message: text.into(), unprocessed: false, by_caller: false })
        }),
    };
    match outcome {
        Ok((response, slot)) => {
            exchange.answered(response.status());
            if let Some(slot) = slot {
                exchange.attribute(slot);
            }
            Ok((response, exchange))
        }
        Err(e) => Err((e, exchange)),
    }
}

/// A response of our own, counted.
pub(super) fn refused(worker: &Worker, exchange: Exchange, reason: Reason, detail: &str, grpc: bool) -> Response<Body> {
    worker.metrics.error(Direction::Outbound, reason.code());
    exchange.refuse(reason.status());
    tracing::debug!(reason = reason.code(), "{detail}");
    reply(reason, detail, grpc)
}

/// Refuses a request that cannot be forwarded.
pub(super) fn bad_request(worker: &Worker, policy: Policy<'_>, detail: &str, grpc: bool) -> Response<Body> {
    refused(worker, unsent(policy), Reason::BadRequest, detail, grpc)
}

/// A request that goes nowhere.
pub(super) fn unsent(policy: Policy<'_>) -> Exchange {
    let mut exchange = Exchange::begin(Rc::clone(&policy.service.unattached), Held::default());
    if let Some(route) = policy.route {
        exchange.take_route(route.metrics.requests());
    }
    exchange
}

/// In `asked` is always whom the response is awaited from.
async fn tries(
    worker: &Rc<Worker>,
    policy: Policy<'_>,
    outgoing: &Parts,
    source: &Source,
    activity: &Activity,
    end: Option<Instant>,
    asked: &Cell<Option<Rc<Endpoint>>>,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    let service = policy.service;
    let mut retries = Retries::new(policy);
    let hash = affinity::of_request(policy, outgoing);
    loop {
        let endpoint = service.pick(retries.tried(), hash).await?;
        asked.set(Some(Rc::clone(&endpoint)));
        let result = one_try(worker, policy, &endpoint, outgoing, source, activity).await;
        asked.set(None);
        let mut said = None;
        let why = match &result {
            Ok((response, _)) => {
                service.record(&endpoint, outcome_of(response.status()));
                said = pushback(service, outgoing, response);
                if let Some(Pushback::Endpoint(time)) = said {
                    service.told_to_wait(&endpoint, time);
                }
                response_retry(policy, outgoing, response)
            }
            Err(e) if e.by_caller => return result,
            // It waited for the workload; another endpoint would as well.
            Err(e) if matches!(e.reason, Reason::TryTimeout | Reason::IdleTimeout) && source.starves() => {
                return result;
            }
            Err(e) => {
                if counts_against_endpoint(e.reason) {
                    service.record(&endpoint, Outcome::LocalOrigin);
                }
                (retriable_error(e.reason) && (e.unprocessed || outgoing.method.is_idempotent()))
                    .then_some(e.reason.code())
            }
        };
        let Some(why) = why else { return result };
        if !source.can_replay() {
            return result;
        }
        let Some(least) = retries.granted_after(said, &endpoint, end) else { return result };
        // An upload goes on after its early answer, and would read more than is kept.
        source.supersede();
        // Closes a stream whose response is not wanted before the wait, not after it.
        drop(result);
        retries.wait_at_least(endpoint, why, least).await;
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

/// Whether an answer comes without the work that answers take.
fn is_fast_failure(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn outcome_of(status: StatusCode) -> Outcome {
    match status.as_u16() {
        502..=504 => Outcome::GatewayFailure,
        500.. => Outcome::Http5xx,
        _ => Outcome::Success,
    }
}

/// What an application says about when to come. A sidecar's own words are not the application's.
fn pushback(service: &Service, outgoing: &Parts, response: &Response<Incoming>) -> Option<Pushback> {
    if service.is_mesh() && response.headers().contains_key(headers::ERROR) {
        return None;
    }
    Pushback::of(response.status(), response.headers(), is_grpc(&outgoing.headers), SystemTime::now())
}

/// Whether a response is one to try again, and what to call it.
fn response_retry(policy: Policy<'_>, outgoing: &Parts, response: &Response<Incoming>) -> Option<&'static str> {
    // Only a sidecar's word counts, and it lets no application use the header.
    if policy.service.is_mesh()
        && let Some(code) = response.headers().get(headers::ERROR)
    {
        if Reason::unprocessed(code.as_bytes()) {
            return Some("unprocessed");
        }
        // What would have been a broken connection of ours, had there been no sidecar in between.
        let lost = Reason::ApplicationReset.code();
        if code.as_bytes() == lost.as_bytes() && outgoing.method.is_idempotent() {
            return Some(lost);
        }
    }
    if policy.retries_call(response.headers()) && is_grpc(&outgoing.headers) {
        return Some("grpc_status");
    }
    (policy.retries_status(response.status()) && outgoing.method.is_idempotent()).then_some("status")
}

async fn one_try(
    worker: &Rc<Worker>,
    policy: Policy<'_>,
    endpoint: &Rc<Endpoint>,
    outgoing: &Parts,
    source: &Source,
    activity: &Activity,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    let service = policy.service;
    let load = endpoint.load();
    load.begin(activity.touch());
    endpoint.count_request();
    // The time of a new connection's handshakes is no sign of load.
    let sent_at = Cell::new(None);
    let in_flight = InFlight(Some(endpoint));
    let limit = policy.backend_request();
    let result = tokio::select! {
        biased;
        result = send(worker, service, endpoint, outgoing, source, activity, &sent_at) => result,
        limit = stalled(activity, &sent_at) => {
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
        (Ok((response, _)), Some(sent_at)) if !is_fast_failure(response.status()) => Some(sent_at.elapsed()),
        _ => None,
    });
    result
}

/// Ends when nothing has moved for `timeouts.idle` since the request was sent: until then `timeouts.connect` counts, and
/// blames who does not answer.
async fn stalled(activity: &Activity, sent_at: &Cell<Option<Instant>>) -> Duration {
    loop {
        let limit = activity.stalled().await;
        if sent_at.get().is_some() {
            return limit;
        }
        activity.touch();
    }
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
    outgoing: &Parts,
    source: &Source,
    activity: &Activity,
    sent_at: &Cell<Option<Instant>>,
) -> Result<(Response<Incoming>, Option<StreamSlot>), TryError> {
    if outgoing.version == Version::HTTP_2 {
        let mut again = true;
        loop {
            let was_there = endpoint.h2.ready();
            let was_reused = was_there.is_some();
            let slot = match was_there {
                Some(slot) => slot,
                // Rare and large: a request should not carry the room for it along.
                None => Box::pin(connect::http2(worker, service, endpoint)).await?,
            };
            sent_at.set(Some(activity.touch()));
            let e = match slot.connection().send(outgoing, source.next_try()).await {
                Ok(response) => return Ok((response, Some(slot))),
                Err(e) => e,
            };
            if let Some(refusal) = slot.connection().refusal() {
                return Err(TryError::from(refusal.clone()));
            }
            // As below: the connection ended as we wrote.
            if was_reused && e.unsent && source.can_replay() && std::mem::take(&mut again) {
                continue;
            }
            return Err(failed(service, endpoint, &e, source));
        }
    }
    let mut reused = endpoint.h1.take();
    loop {
        let was_reused = reused.is_some();
        let client = match reused.take() {
            Some(client) => client,
            None => Box::pin(connect::http1(worker, service, endpoint)).await?,
        };
        let body = source.next_try();
        sent_at.set(Some(activity.touch()));
        match client.send(outgoing, body).await {
            Ok(response) => return Ok((response, None)),
            // The peer closed the idle connection as we wrote: that is no failure of the endpoint's, and a new
            // connection tells at once.
            Err(e) if was_reused && e.is_unprocessed() && source.can_replay() => {}
            Err(e) => return Err(failed(service, endpoint, &e, source)),
        }
    }
}

fn failed(service: &Service, endpoint: &Endpoint, e: &SendError, source: &Source) -> TryError {
    let by_caller = !e.unsent && source.broke();
    let unprocessed = e.is_unprocessed();
    let e = &e.error;
    let (name, address) = (&service.spec.name, endpoint.address);
    let (reason, message) = if e.is_parse() {
        (Reason::ProtocolError, format!("{name} at {address} sent what is no HTTP response: {e}"))
    } else {
        (Reason::UpstreamReset, format!("{name} at {address} ended the connection before its response: {e}"))
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

/// Makes of the workload's request one that can leave: for the mesh as HTTP/2, else in its own protocol; with the headers
/// that its route changes.
pub(super) fn outgoing(
    service: &Service,
    route: Option<&LocalRule>,
    mut parts: Parts,
) -> Result<Parts, headers::TargetError> {
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
    (parts.uri, parts.version) = (target, version);
    // Last, so that nothing that the workload says undoes it.
    if let Some(changes) = route.and_then(|route| route.rule.request_headers.as_ref()) {
        changes.apply(&mut parts.headers);
    }
    Ok(parts)
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
