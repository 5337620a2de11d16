//! The load generator: a fixed number of connections, each with one request at a time, and an honest count of failures.
//!
//! A request fails if it got no answer, a broken answer, or a status outside 200..=299. A request that the client
//! provably never sent (the connection ended while it was idle) is sent again on a new one and is not a failure: every
//! HTTP client does the same.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::{http1, http2},
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

/// What to send.
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// http://host:port/path
    #[arg(long)]
    pub url: Uri,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Stop after this many requests
    #[arg(long, required_unless_present = "duration")]
    pub requests: Option<u64>,
    /// Stop after this long, as 10, 10s or 500ms
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Requests a second over all connections; without it, as fast as the answers come
    #[arg(long)]
    pub rate: Option<f64>,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    pub h2: bool,
    /// Dial this address whatever the URL's host resolves to
    #[arg(long)]
    pub connect_to: Option<SocketAddr>,
    /// The method
    #[arg(long, default_value = "GET")]
    pub method: Method,
    /// A request body of this text
    #[arg(long, default_value = "")]
    pub data: String,
    /// A new connection for each request
    #[arg(long)]
    pub close: bool,
    /// A request without its whole answer after this long has failed, as 30s
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("\"{text}\" is not a duration: write it as 10s or 500ms")),
    };
    let number: f64 = number.parse().map_err(|e| format!("\"{text}\" is not a duration: {e}"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|e| format!("\"{text}\" is not a duration: {e}"))
}

/// What came back.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Requests answered with 200..=299.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Failures by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// The first five failures in words.
    pub messages: Vec<String>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Good answers by their text (its first 64 bytes; at most 100 different ones).
    pub bodies: BTreeMap<String, u64>,
    /// Connections made.
    pub connections: u64,
    latencies: Vec<u32>,
    elapsed: Duration,
}

impl LoadReport {
    fn failure(&mut self, kind: &'static str, message: String) {
        self.failed += 1;
        *self.failures.entry(kind).or_default() += 1;
        if self.messages.len() < 5 {
            self.messages.push(message);
        }
    }

    fn percentile(&self, share: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        f64::from(self.latencies.get(at).copied().unwrap_or(0)) / 1_000.0
    }

    /// One line of JSON.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "total": self.ok + self.failed,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "messages": self.messages,
            "statuses": self.statuses.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<serde_json::Map<_, _>>(),
            "replicas": self.bodies,
            "connections": self.connections,
            "seconds": self.elapsed.as_secs_f64(),
            "p50_ms": self.percentile(0.50),
            "p99_ms": self.percentile(0.99),
            "max_ms": self.percentile(1.0),
        })
    }
}

struct Shared {
    options: LoadOptions,
    host: String,
    port: u16,
    started: Instant,
    sent: RefCell<u64>,
    report: RefCell<LoadReport>,
}

impl Shared {
    /// Waits for the next request's turn; false when there is none.
    async fn next(&self) -> bool {
        let turn = {
            let mut sent = self.sent.borrow_mut();
            if self.options.requests.is_some_and(|n| *sent >= n) {
                return false;
            }
            *sent += 1;
            *sent - 1
        };
        let end = self.options.duration.map(|d| self.started + d);
        if let Some(rate) = self.options.rate {
            let at = self.started + Duration::from_secs_f64(turn as f64 / rate);
            if end.is_some_and(|end| at >= end) {
                return false;
            }
            tokio::time::sleep_until(at.into()).await;
        }
        end.is_none_or(|end| Instant::now() < end)
    }
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn ready(&mut self) -> bool {
        match self {
            Self::H1(sender) => sender.ready().await.is_ok(),
            Self::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// The answer, or the error and whether the request provably was not sent.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, (hyper::Error, bool)> {
        let result = match self {
            Self::H1(sender) => sender.try_send_request(request).await,
            Self::H2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut e| {
            let unsent = e.take_message().is_some();
            (e.into_error(), unsent)
        })
    }
}

/// Runs the load to its end.
pub async fn run(options: LoadOptions) -> Result<LoadReport, String> {
    if options.url.scheme_str() != Some("http") {
        return Err(format!("\"{}\" is not an http:// URL", options.url));
    }
    if options.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
        return Err("--rate must be greater than 0".to_owned());
    }
    let host = options.url.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
    let port = options.url.port_u16().unwrap_or(80);
    let connections = options.connections;
    let shared = Rc::new(Shared {
        options,
        host,
        port,
        started: Instant::now(),
        sent: RefCell::new(0),
        report: RefCell::default(),
    });
    let local = tokio::task::LocalSet::new();
    let tasks: Vec<_> = (0..connections).map(|_| local.spawn_local(connection(shared.clone()))).collect();
    local
        .run_until(async move {
            for task in tasks {
                task.await.map_err(|e| format!("a connection's task ended: {e}"))?;
            }
            Ok::<_, String>(())
        })
        .await?;
    let mut report = shared.report.take();
    report.elapsed = shared.started.elapsed();
    report.latencies.sort_unstable();
    Ok(report)
}

/// One connection after another, one request at a time, until no request is left.
async fn connection(shared: Rc<Shared>) {
    let mut sender: Option<Sender> = None;
    while shared.next().await {
        let begun = Instant::now();
        let outcome = tokio::time::timeout(shared.options.timeout, request(&shared, &mut sender)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let words = format!("no whole answer within {:?}", shared.options.timeout);
            Err(("timeout", words))
        });
        let mut report = shared.report.borrow_mut();
        match outcome {
            Ok((status, text)) => {
                report.latencies.push(begun.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
                *report.statuses.entry(status).or_default() += 1;
                if (200..300).contains(&status) {
                    report.ok += 1;
                    if report.bodies.len() < 100 || report.bodies.contains_key(&text) {
                        *report.bodies.entry(text).or_default() += 1;
                    }
                } else {
                    report.failure("status", format!("{status}: {text}"));
                }
            }
            Err((kind, message)) => {
                report.failure(kind, message);
                sender = None;
            }
        }
        if shared.options.close {
            sender = None;
        }
    }
}

async fn request(shared: &Shared, slot: &mut Option<Sender>) -> Result<(u16, String), (&'static str, String)> {
    loop {
        if let Some(sender) = slot
            && !sender.ready().await
        {
            *slot = None;
        }
        let fresh = slot.is_none();
        let sender = match slot {
            Some(sender) => sender,
            None => slot.insert(dial(shared).await.map_err(|e| ("connect", e))?),
        };
        match sender.send(build(shared)).await {
            Ok(response) => {
                let status = response.status().as_u16();
                return match read(response.into_body()).await {
                    Ok(text) => Ok((status, text)),
                    Err(e) => Err(("body", format!("{status}, then its body broke off: {}", chain(&e)))),
                };
            }
            Err((_, true)) if !fresh => *slot = None,
            Err((e, _)) => return Err(("reset", chain(&e))),
        }
    }
}

async fn read(mut body: Incoming) -> Result<String, hyper::Error> {
    let mut head = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            let room = 64_usize.saturating_sub(head.len()).min(data.len());
            head.extend_from_slice(&data[..room]);
        }
    }
    Ok(String::from_utf8_lossy(&head).trim_end().to_owned())
}

fn build(shared: &Shared) -> Request<Full<Bytes>> {
    let options = &shared.options;
    let mut request = Request::new(Full::from(options.data.clone()));
    *request.method_mut() = options.method.clone();
    if options.h2 {
        *request.uri_mut() = options.url.clone();
    } else {
        let path = options.url.path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        if let Some(Ok(host)) = options.url.authority().map(|a| header::HeaderValue::from_str(a.as_str())) {
            request.headers_mut().insert(header::HOST, host);
        }
    }
    request
}

async fn dial(shared: &Shared) -> Result<Sender, String> {
    let stream = match shared.options.connect_to {
        Some(address) => TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))?,
        None => TcpStream::connect((shared.host.as_str(), shared.port))
            .await
            .map_err(|e| format!("{}:{}: {e}", shared.host, shared.port))?,
    };
    // Errors only when the peer has already gone, which the request tells.
    let _ = stream.set_nodelay(true);
    shared.report.borrow_mut().connections += 1;
    let io = TokioIo::new(stream);
    // A connection's own error reaches us through the request that it broke.
    if shared.options.h2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(|e| chain(&e))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Sender::H2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await.map_err(|e| chain(&e))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Sender::H1(sender))
    }
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        words = format!("{words}: {e}");
        source = e.source();
    }
    words
}
