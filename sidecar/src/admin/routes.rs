//! What each path answers, and who is kept out.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::Full;

use super::{AdminState, Face};
use crate::telemetry;

type Answer = Response<Full<Bytes>>;

/// What can be asked for: method, path, whether the telemetry address has it too, and what it is.
const ENDPOINTS: [(&str, &str, bool, &str); 8] = [
    ("GET", "/", false, "this list"),
    ("GET", "/livez", true, "200 while the process runs"),
    ("GET", "/readyz", true, "200 when traffic may come, else 503 and why"),
    ("GET", "/metrics", true, "metrics as OpenMetrics text"),
    ("GET", "/config", false, "the active configuration as YAML, with defaults and variables"),
    ("GET", "/endpoints", false, "services and their endpoints as JSON"),
    ("GET", "/certs", false, "certificate and roots as JSON, without keys"),
    ("POST", "/drain", false, "finish what is under way and end"),
];

/// Answers one request that came to `face`, which is bound to `bound`.
pub(super) fn answer<B>(state: &AdminState, face: Face, bound: SocketAddr, request: &Request<B>) -> Answer {
    if let Some(refusal) = guard(face, bound, request) {
        return refusal;
    }
    let path = request.uri().path();
    let Some((method, ..)) =
        ENDPOINTS.iter().find(|(_, p, public, _)| *p == path && (*public || face == Face::Operator))
    else {
        return text(StatusCode::NOT_FOUND, format!("nothing is at {path}; there are:\n{}", index(face)));
    };
    let fits = match *request.method() {
        Method::GET | Method::HEAD => *method == "GET",
        Method::POST => *method == "POST",
        _ => false,
    };
    if !fits {
        let allow = if *method == "GET" { "GET, HEAD" } else { "POST" };
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {allow}\n"));
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
        return answer;
    }
    match path {
        "/livez" => text(StatusCode::OK, "live\n"),
        "/readyz" => ready(state),
        "/metrics" => typed(StatusCode::OK, telemetry::CONTENT_TYPE, state.metrics.encode()),
        "/config" => match serde_saphyr::to_string(&*state.config) {
            Ok(yaml) => typed(StatusCode::OK, "application/yaml", yaml),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the configuration cannot be written: {e}\n")),
        },
        "/endpoints" => json(&state.endpoints.report()),
        "/certs" => json(&(state.certs)()),
        "/drain" => {
            (state.drain)();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        _ => text(StatusCode::OK, index(face)),
    }
}

fn ready(state: &AdminState) -> Answer {
    match state.readiness.report() {
        Ok(()) => text(StatusCode::OK, "ready\n"),
        Err(failing) => {
            let lines: String = failing.iter().map(|(condition, why)| format!("{condition}: {why}\n")).collect();
            text(StatusCode::SERVICE_UNAVAILABLE, lines)
        }
    }
}

fn index(face: Face) -> String {
    let shown = ENDPOINTS.iter().filter(|(_, _, public, _)| *public || face == Face::Operator);
    shown.map(|(method, path, _, what)| format!("{method:4} {path:10}  {what}\n")).collect()
}

/// Keeps web pages away from the operator's address. A page's script reaches loopback in two ways: under its own
/// host name, made to resolve to 127.0.0.1 (DNS rebinding), which shows in `Host`; or across origins, blind, which
/// a browser shows in `Origin` or `Sec-Fetch-Site` and which matters only for what changes something.
fn guard<B>(face: Face, bound: SocketAddr, request: &Request<B>) -> Option<Answer> {
    if face == Face::Telemetry {
        return None;
    }
    let hosts = request.headers().get_all(header::HOST).iter();
    for host in hosts.map(|h| h.to_str().ok().and_then(|h| h.parse().ok())) {
        let host: Option<Authority> = host;
        if !host.as_ref().is_some_and(|host| is_own(host.host(), bound)) {
            return Some(wrong_host(host.as_ref().map_or("one that is no host", Authority::as_str)));
        }
    }
    if let Some(host) = request.uri().host().filter(|host| !is_own(host, bound)) {
        return Some(wrong_host(host));
    }
    if *request.method() == Method::POST && is_from_another_site(request.headers(), bound) {
        let why = "a web page of another site may not do this; use curl -X POST from the workload's host\n";
        return Some(text(StatusCode::FORBIDDEN, why));
    }
    None
}

fn wrong_host(host: &str) -> Answer {
    text(
        StatusCode::FORBIDDEN,
        format!(
            "the Host header names {host}, which is not this address; ask for it as localhost or by its IP address\n"
        ),
    )
}

fn is_own(host: &str, bound: SocketAddr) -> bool {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        // Bound to every address, any of them may be meant; an address cannot be rebound as a name can.
        Ok(ip) => ip.is_loopback() || ip == bound.ip() || bound.ip().is_unspecified(),
        Err(_) => host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
    }
}

fn is_from_another_site(headers: &HeaderMap, bound: SocketAddr) -> bool {
    let foreign_site = headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let foreign_origin = headers.get(header::ORIGIN).is_some_and(|origin| {
        let origin = origin.to_str().ok().and_then(|o| o.parse::<Uri>().ok());
        !origin.as_ref().and_then(Uri::host).is_some_and(|host| is_own(host, bound))
    });
    foreign_site || foreign_origin
}

fn json(value: &serde_json::Value) -> Answer {
    typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    answer
}
