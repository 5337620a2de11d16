//! One check of one endpoint: over HTTP, by gRPC's health checking protocol, or by connecting; in the way in which the
//! workload's own requests would go.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt::Display,
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Version,
    header::{CONTENT_TYPE, HOST, TE, USER_AGENT},
    request::Parts,
    uri::Authority,
};
use prost::Message;
use tokio::{io::AsyncReadExt as _, task::spawn_local, time::timeout};

use crate::{
    config::{HealthCheck, StatusRange},
    http::{Body, Incoming, SendError, client::ConnectError, headers, reply::is_grpc},
    http1::client::{Client, Pool},
    http2::{self, client::Sender},
    net::Io,
    outbound::{
        connect::{self, Mesh},
        endpoint::Endpoint,
        service::{Service, ServiceSpec},
    },
    reason::Reason,
    tls::{self, Standing, TlsFailure},
    worker::Worker,
};

/// Who asks, as servers' logs show it.
const AGENT: HeaderValue = HeaderValue::from_static("outrigger-health-check");
/// So much of an answer is read, in bytes: whoever is not broken off logs no error.
const MAX_ANSWER: usize = 64 * 1024;
/// For so long a sidecar may say that its application, or it itself, does not take a connection after all. A part of a
/// timeout where that is short.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);

/// How a check ended.
pub(super) enum Answer {
    Good,
    Bad {
        /// `status`, `connect` or `timeout`; a metric label.
        result: &'static str,
        /// What happened.
        why: Arc<str>,
    },
    /// There was no certificate to ask with.
    NotAsked,
}

impl Answer {
    fn bad(result: &'static str, why: impl Display) -> Self {
        Self::Bad { result, why: why.to_string().into() }
    }

    /// The value of a metric label.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Good => "success",
            Self::Bad { result, .. } => result,
            Self::NotAsked => "no_certificate",
        }
    }
}

impl From<ConnectError> for Answer {
    fn from(e: ConnectError) -> Self {
        if e.reason == Reason::NoCertificate { Self::NotAsked } else { Self::bad("connect", e) }
    }
}

/// An HTTP/2 connection for checks alone.
struct Connection {
    sender: Sender,
    closed: Rc<Cell<bool>>,
    /// Why the peer did not take it after all.
    refusal: Rc<OnceCell<TlsFailure>>,
}

/// The connection of the last check of an endpoint, for the next.
#[derive(Default)]
pub(super) struct Kept(RefCell<Option<Connection>>);

enum Kind {
    Http { head: Parts, expected: Vec<StatusRange> },
    Grpc { head: Parts, call: Bytes },
    Tcp,
}

/// Asks endpoints of one service.
pub(super) struct Probe {
    kind: Kind,
    limit: Duration,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The names of `HealthCheckResponse.ServingStatus`, in the order of their numbers.
const SERVING_STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: i32 = 1;

impl Probe {
    /// What asks endpoints of this service. Nothing where the check has no kind, which the configuration refuses.
    pub(super) fn new(spec: &ServiceSpec, check: &HealthCheck) -> Option<Self> {
        let (is_mesh, host, port) =
            (spec.mtls == crate::config::MtlsMode::Required, &spec.expect.host, spec.target.port);
        let authority: Authority = format!("{host}:{port}").parse().ok()?;
        let request = |method, path: &str, version: Version| {
            let uri = http::Uri::builder().scheme("http").authority(authority.clone()).path_and_query(path);
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.version_mut() = version;
            *request.uri_mut() = uri.build().ok()?;
            request.headers_mut().insert(USER_AGENT, AGENT);
            Some(request.into_parts().0)
        };
        let kind = if let Some(http) = &check.http {
            let version = if is_mesh { Version::HTTP_2 } else { Version::HTTP_11 };
            let mut head = request(Method::GET, &http.path, version)?;
            if is_mesh {
                head.headers.insert(headers::ORIGINAL_PROTOCOL, HeaderValue::from_static("1"));
            } else {
                head.headers.insert(HOST, HeaderValue::from_str(authority.as_str()).ok()?);
            }
            Kind::Http { head, expected: http.expected_statuses.clone() }
        } else if let Some(grpc) = &check.grpc {
            let mut head = request(Method::POST, "/grpc.health.v1.Health/Check", Version::HTTP_2)?;
            head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            head.headers.insert(TE, HeaderValue::from_static("trailers"));
            let message = HealthCheckRequest { service: grpc.service.clone() }.encode_to_vec();
            let mut call = BytesMut::from(&[0][..]);
            call.extend_from_slice(&u32::try_from(message.len()).ok()?.to_be_bytes());
            call.extend_from_slice(&message);
            Kind::Grpc { head, call: call.freeze() }
        } else {
            check.tcp.as_ref()?;
            Kind::Tcp
        };
        Some(Self { kind, limit: check.timeout.get() })
    }

    /// Asks an endpoint, within the time that there is.
    pub(super) async fn ask(&self, service: &Weak<Service>, endpoint: &Rc<Endpoint>, kept: &Kept) -> Answer {
        let Some(service) = service.upgrade() else { return Answer::NotAsked };
        let Some(worker) = service.worker() else { return Answer::NotAsked };
        let to = To { worker: &worker, service: &service, endpoint };
        let asked = async {
            match &self.kind {
                Kind::Http { head, expected } => http(to, kept, head, expected).await,
                Kind::Grpc { head, call } => grpc(to, kept, head, call).await,
                Kind::Tcp => tcp(to, REFUSED_WITHIN.min(self.limit / 2)).await,
            }
        };
        match timeout(self.limit, pin!(asked)).await {
            Ok(Ok(())) => Answer::Good,
            Ok(Err(answer)) => answer,
            Err(_) => Answer::bad(
                "timeout",
                format_args!("no answer within {:?} (health_check.timeout) from {}", self.limit, endpoint.address),
            ),
        }
    }
}

/// Whom a check asks, and for whom.
#[derive(Clone, Copy)]
struct To<'a> {
    worker: &'a Rc<Worker>,
    service: &'a Service,
    endpoint: &'a Endpoint,
}

async fn http(to: To<'_>, kept: &Kept, head: &Parts, expected: &[StatusRange]) -> Result<(), Answer> {
    let mut said = String::new();
    let status = if head.version == Version::HTTP_2 {
        let (mut response, connection) = over_http2(to, kept, head, || Body::Empty).await?;
        read(&mut response).await?;
        kept.0.replace(Some(connection));
        // Only a sidecar says this.
        if let Some(code) = response.headers().get(headers::ERROR) {
            said = format!(" ({})", String::from_utf8_lossy(code.as_bytes()));
        }
        response.status()
    } else {
        let stream = connect::tcp(to.service, to.endpoint).await?;
        // Nobody takes it back: a connection of a server that is being closed would be no answer.
        let client = Client::new(stream, &Rc::<Pool>::default());
        let mut response = client.send(head, Body::Empty).await.map_err(broke)?;
        read(&mut response).await?;
        response.status()
    };
    if expected.iter().any(|range| range.contains(status.as_u16())) {
        return Ok(());
    }
    let (who, path) = (to.endpoint.address, head.uri.path());
    Err(Answer::bad("status", format_args!("{who} answered {status}{said} to GET {path}")))
}

async fn grpc(to: To<'_>, kept: &Kept, head: &Parts, call: &Bytes) -> Result<(), Answer> {
    let (mut response, connection) = over_http2(to, kept, head, || Body::Full(call.clone())).await?;
    let (data, trailers) = read(&mut response).await?;
    kept.0.replace(Some(connection));
    let who = to.endpoint.address;
    if response.status() != 200 || !is_grpc(response.headers()) {
        let status = response.status();
        return Err(Answer::bad("status", format_args!("{who} answered {status} and no gRPC to Health/Check")));
    }
    let status = [trailers.as_ref(), Some(response.headers())].into_iter().flatten().find_map(|h| h.get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => {}
        Some(code) => {
            let code = String::from_utf8_lossy(code);
            return Err(Answer::bad("status", format_args!("{who} answered gRPC status {code} to Health/Check")));
        }
        None => return Err(Answer::bad("status", format_args!("{who} answered no gRPC status to Health/Check"))),
    }
    match serving_status(&data) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let name = usize::try_from(other).ok().and_then(|n| SERVING_STATUS.get(n)).copied().unwrap_or("UNKNOWN");
            Err(Answer::bad("status", format_args!("{who} answered {name} to Health/Check")))
        }
        None => Err(Answer::bad("status", format_args!("{who} answered no HealthCheckResponse to Health/Check"))),
    }
}

/// What stands in the one message of an answer that is not compressed.
fn serving_status(mut data: &[u8]) -> Option<i32> {
    let plain = data.try_get_u8().ok()? == 0;
    let length = usize::try_from(data.try_get_u32().ok()?).ok()?;
    let message = data.get(..length).filter(|_| plain)?;
    Some(HealthCheckResponse::decode(message).ok()?.status)
}

async fn tcp(to: To<'_>, refused_within: Duration) -> Result<(), Answer> {
    if !to.service.is_mesh() {
        connect::tcp(to.service, to.endpoint).await?;
        return Ok(());
    }
    let mut io = connect::handshake(to.worker, to.service, to.endpoint, tls::ALPN_TCP).await?.io;
    // With TLS 1.3 the other side has not judged us yet, and its application has not been asked.
    match timeout(refused_within, io.read(&mut [0; 1])).await {
        Ok(Err(e)) => {
            let why = tls::find(&e).map_or_else(|| e.to_string(), |failure| failure.message.to_string());
            Err(Answer::bad("connect", format_args!("{} did not keep the connection: {why}", to.endpoint.address)))
        }
        // Bytes, an orderly end, or the patience that applications have.
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Asks over the connection that was kept, or over a new one.
async fn over_http2(
    to: To<'_>,
    kept: &Kept,
    head: &Parts,
    body: impl Fn() -> Body,
) -> Result<(Response<Incoming>, Connection), Answer> {
    let before = kept.0.take().filter(|c| !c.closed.get() && c.sender.is_usable());
    if let Some(connection) = before {
        // It may have ended since, which is no failure as long as a new one can be had.
        if let Ok(response) = connection.sender.send(head, body()).await {
            return Ok((response, connection));
        }
    }
    let connection = if to.service.is_mesh() {
        let Mesh { io, standing, .. } = connect::handshake(to.worker, to.service, to.endpoint, tls::ALPN_H2).await?;
        let refusal = Rc::<OnceCell<TlsFailure>>::default();
        let told = Rc::clone(&refusal);
        // The first one is the one.
        start(tls::Late::new(io, move |failure| _ = told.set(failure)), standing, refusal)
    } else {
        start(connect::tcp(to.service, to.endpoint).await?, None, Rc::default())
    };
    match connection.sender.send(head, body()).await {
        Ok(response) => Ok((response, connection)),
        Err(e) => Err(match connection.refusal.get() {
            Some(refusal) => {
                Answer::bad("connect", format_args!("no mTLS with {}: {}", to.endpoint.address, refusal.message))
            }
            None => broke(e),
        }),
    }
}

/// A connection, which carries no more checks once trust says so.
fn start(io: impl Io + 'static, standing: Option<Standing>, refusal: Rc<OnceCell<TlsFailure>>) -> Connection {
    let (sender, driver) = http2::client::start(io, None);
    let closed = Rc::<Cell<bool>>::default();
    let is_closed = Rc::clone(&closed);
    spawn_local(async move {
        let mut driver = pin!(driver);
        let to_move = standing.as_ref().map(Standing::is_to_move);
        let to_move = async {
            match to_move {
                Some(to_move) => to_move.await,
                None => std::future::pending().await,
            }
        };
        let mut refused = pin!(tls::is_refused(standing.clone()));
        tokio::select! {
            _ = driver.as_mut() => {}
            _ = refused.as_mut() => {}
            () = to_move => {
                // What is under way ends first.
                is_closed.set(true);
                tokio::select! {
                    _ = driver => {}
                    _ = refused => {}
                }
            }
        }
        is_closed.set(true);
    });
    Connection { sender, closed, refusal }
}

/// Reads an answer, so that who gives it sees it taken.
async fn read(response: &mut Response<Incoming>) -> Result<(BytesMut, Option<HeaderMap>), Answer> {
    let (mut data, mut trailers) = (BytesMut::new(), None);
    let body = response.body_mut();
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        let frame = frame.map_err(|e| Answer::bad("connect", format_args!("its answer broke off: {e}")))?;
        match frame.into_data() {
            Ok(piece) if data.len() + piece.len() > MAX_ANSWER => break,
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((data, trailers))
}

fn broke(e: SendError) -> Answer {
    Answer::bad("connect", format_args!("the connection ended before an answer: {}", e.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_message_says_how_a_server_is() {
        let framed = |message: &[u8]| [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(0)][..], message].concat();
        assert_eq!(serving_status(&framed(&[8, 1])), Some(SERVING));
        assert_eq!(serving_status(&framed(&[8, 2])), Some(2));
        // proto3: a field that is 0 is not sent.
        assert_eq!(serving_status(&framed(&[])), Some(0));
        let compressed = [1, 0, 0, 0, 2, 8, 1];
        for bad in
            [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 2, 8], &compressed, &[0, 255, 255, 255, 255, 8, 1], &framed(&[8])]
        {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }
}
