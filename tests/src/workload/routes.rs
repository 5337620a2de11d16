//! What the origin answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use serde_json::json;

use super::{
    body::{Broken, EndlessBody, Flight, OriginBody, PatternBody, Watched, empty, text},
    grpc, websocket,
};
use crate::pattern;

/// What one origin process counts and is told to do.
pub struct Origin {
    name: String,
    /// The status of every answer but those of the control paths; 0 means "as asked".
    failing: AtomicU16,
    served: AtomicU64,
    cancelled: Arc<AtomicU64>,
}

impl Origin {
    /// An origin of this name, healthy.
    pub fn new(name: String) -> Self {
        Self { name, failing: AtomicU16::new(0), served: AtomicU64::new(0), cancelled: Arc::default() }
    }
}

/// The two ends of a connection as the origin sees them.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Who connected.
    pub remote: Option<SocketAddr>,
    /// What was dialled.
    pub local: Option<SocketAddr>,
}

/// The answer to one request.
pub async fn respond(origin: Arc<Origin>, peer: Peer, request: Request<Incoming>) -> Response<OriginBody> {
    if let Some(answer) = control(&origin, &request) {
        return answer;
    }
    origin.served.fetch_add(1, Ordering::Relaxed);
    let failing = origin.failing.load(Ordering::Relaxed);
    if failing != 0 {
        return answer(failing, format!("{} was told to answer {failing}\n", origin.name));
    }
    let flight = Flight::new(origin.cancelled.clone());
    let head = request.method() == Method::HEAD;
    let response =
        if grpc::is_grpc(&request) { grpc::respond(request).await } else { route(&origin, &peer, request).await };
    if head {
        // hyper would send the body of an answer to HEAD on HTTP/2.
        flight.finish();
        return response.map(|_| empty());
    }
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    response.map(|body| Watched::new(body, flight, length).boxed_unsync())
}

/// The paths that a failing origin still answers and that are not counted.
fn control(origin: &Origin, request: &Request<Incoming>) -> Option<Response<OriginBody>> {
    let path = request.uri().path();
    let set = |status: u16| {
        origin.failing.store(status, Ordering::Relaxed);
        answer(200, "done\n")
    };
    Some(match path {
        "/count" => answer(200, format!("{}\n", origin.served.load(Ordering::Relaxed))),
        "/cancelled" => answer(200, format!("{}\n", origin.cancelled.load(Ordering::Relaxed))),
        "/control/ok" => set(0),
        "/fail" => match request.uri().query() {
            Some("on") => set(500),
            Some("off") => set(0),
            _ => answer(400, "/fail?on or /fail?off\n"),
        },
        _ => match path.strip_prefix("/control/fail/")?.parse() {
            Ok(status @ 200..=599) => set(status),
            _ => answer(400, "/control/fail/CODE: 200 to 599\n"),
        },
    })
}

async fn route(origin: &Origin, peer: &Peer, request: Request<Incoming>) -> Response<OriginBody> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let (first, argument) = (parts.next().unwrap_or_default(), parts.next());
    let number = argument.and_then(|a| a.parse::<u64>().ok());
    match (first, number) {
        ("", _) => answer(200, format!("{}\n", origin.name)),
        ("whoami", _) => whoami(origin, peer, &request),
        ("healthz", _) => answer(200, "ok\n"),
        ("status", Some(status @ 200..=599)) => answer(status as u16, format!("{status}\n")),
        ("delay", Some(ms)) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            answer(200, format!("{}\n", origin.name))
        }
        ("bytes", Some(n)) => {
            let mut response = ok(PatternBody::new(n, true).boxed_unsync());
            // hyper leaves it out for an empty HTTP/2 body.
            response.headers_mut().insert(header::CONTENT_LENGTH, n.into());
            response
        }
        ("chunked", Some(n)) => ok(PatternBody::new(n, false).boxed_unsync()),
        ("endless", _) => ok(EndlessBody::default().boxed_unsync()),
        ("echo", _) => echo(request),
        ("sink", _) => sink(request).await,
        ("upgrade", _) => websocket::upgrade(request),
        _ => answer(404, format!("no such path: {path}\n")),
    }
}

/// An answer of this status and text.
pub fn answer(status: u16, body: impl Into<bytes::Bytes>) -> Response<OriginBody> {
    let mut response = Response::new(text(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

fn ok(body: OriginBody) -> Response<OriginBody> {
    Response::new(body)
}

fn whoami(origin: &Origin, peer: &Peer, request: &Request<Incoming>) -> Response<OriginBody> {
    let mut headers = serde_json::Map::new();
    for name in request.headers().keys() {
        let values: Vec<_> = request
            .headers()
            .get_all(name)
            .iter()
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect();
        headers.insert(name.as_str().to_owned(), values.join(", ").into());
    }
    let body = json!({
        "name": origin.name,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(|p| p.as_str()),
        "authority": request.uri().authority().map(|a| a.as_str()),
        "version": format!("{:?}", request.version()),
        "peer": peer.remote,
        "local": peer.local,
        "headers": headers,
    });
    let mut response = answer(200, format!("{body}\n"));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// Streams the request's body, and its trailers, back. A body that breaks off breaks the answer off.
fn echo(request: Request<Incoming>) -> Response<OriginBody> {
    let length = request.headers().get(header::CONTENT_LENGTH).cloned();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut body = request.into_body();
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            if sender.send(frame.map_err(|_| Broken)).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(grpc::FrameBody::new(receiver).boxed_unsync());
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response
}

/// Reads the body and tells its length, its SHA-256 and whether it was the pattern.
async fn sink(request: Request<Incoming>) -> Response<OriginBody> {
    let (mut length, mut is_pattern) = (0_u64, true);
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return answer(400, "the body broke off\n");
        };
        if let Some(data) = frame.data_ref() {
            is_pattern = is_pattern && pattern::matches(length, data);
            hash.update(data);
            length += data.len() as u64;
        }
    }
    let sha256: String = hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    answer(200, format!("{}\n", json!({ "length": length, "sha256": sha256, "pattern": is_pattern })))
}

/// An answer without a body.
pub fn bare(status: StatusCode) -> Response<OriginBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}
