//! HTTP clients that connect from inside a pod.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::pod::Pod;
use crate::workload::body::{OriginBody, text};

/// The body of a request.
pub type Body = OriginBody;

/// How long one exchange may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body of these bytes.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    text(bytes)
}

/// The beginning of a request to `host` (with its port), as an application of that version of HTTP writes it.
pub fn request(host: &str, h2: bool, method: Method, path: &str) -> http::request::Builder {
    let builder = Request::builder().method(method);
    if h2 { builder.uri(format!("http://{host}{path}")) } else { builder.uri(path).header("host", host) }
}

/// A call of the origin's gRPC service, with further headers.
pub fn grpc_call(host: &str, method: &str, data: Body, headers: &[(&str, &str)]) -> Request<Body> {
    let builder = request(host, true, Method::POST, &format!("/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).body(data).unwrap()
}

/// Asks for an upgrade to `protocol`.
pub fn upgrade_call(host: &str, protocol: &str) -> Request<Body> {
    request(host, false, Method::GET, "/upgrade")
        .header("connection", "upgrade")
        .header("upgrade", protocol)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(body(""))
        .unwrap()
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its version.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    /// Reads an answer to its end.
    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let (status, version, headers) = (head.status, head.version, head.headers);
        Ok(Self { status, version, headers, body: body.to_bytes(), trailers })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.text()))
    }

    /// A header as text, empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// A header of the trailers, or of the head of a trailers-only answer.
    pub fn trailer(&self, name: &str) -> &str {
        self.trailers.as_ref().and_then(|t| t.get(name)).map_or_else(|| self.header(name), |v| v.to_str().unwrap())
    }
}

/// A connection that ends when this is dropped, whatever is still under way on it.
pub struct Cut(std::os::fd::OwnedFd);

impl Drop for Cut {
    fn drop(&mut self) {
        // hyper keeps the socket of an HTTP/2 connection in a task of its own. An error means that it has ended.
        let _ = socket2::SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }
}

/// Something that can send either version.
pub enum Sender {
    /// HTTP/1.1.
    H1(http1::SendRequest<Body>),
    /// HTTP/2.
    H2(http2::SendRequest<Body>),
}

impl Sender {
    /// Sends a request and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::H1(sender) => sender.send_request(request).await,
            Self::H2(sender) => sender.send_request(request).await,
        }
    }
}

/// A client on this connection, and what cuts the connection when dropped.
pub async fn on(stream: TcpStream, h2: bool) -> (Sender, Cut) {
    let cut = Cut(std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned().unwrap());
    let io = TokioIo::new(stream);
    // A connection's error reaches the test through the request that it broke.
    if h2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        (Sender::H2(sender), cut)
    } else {
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        (Sender::H1(sender), cut)
    }
}

impl Pod {
    /// A client to this address.
    pub async fn http(&self, to: SocketAddr, h2: bool) -> (Sender, Cut) {
        on(self.connect(to).await.unwrap_or_else(|e| panic!("{} to {to}: {e}", self.name)), h2).await
    }

    /// An upgraded connection to the origin's `/upgrade`.
    pub async fn upgraded(&self, to: SocketAddr, host: &str, protocol: &str) -> (TokioIo<Upgraded>, Cut) {
        let (mut sender, cut) = self.http(to, false).await;
        let mut response = sender.send(upgrade_call(host, protocol)).await.unwrap();
        assert_eq!(response.status(), 101, "{} to {to}", self.name);
        (TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap()), cut)
    }

    /// One GET on a connection of its own; the error in words.
    pub async fn try_get(&self, to: SocketAddr, host: &str, path: &str) -> Result<Reply, String> {
        let exchange = async {
            let stream = self.connect(to).await.map_err(|e: io::Error| format!("connect {to}: {e}"))?;
            let (mut sender, _cut) = on(stream, false).await;
            let request = Request::get(path).header("host", host).body(body("")).map_err(|e| e.to_string())?;
            let response = sender.send(request).await.map_err(|e| format!("{to}{path}: {e:?}"))?;
            Reply::read(response).await.map_err(|e| format!("{to}{path}, body: {e:?}"))
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| format!("{to}{path}: no answer in {PATIENCE:?}"))?
    }

    /// One GET on a connection of its own.
    pub async fn get(&self, to: SocketAddr, host: &str, path: &str) -> Reply {
        self.try_get(to, host, path).await.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// One GET whose every detail is the caller's, in HTTP/1.1 or HTTP/2.
    pub async fn send(&self, to: SocketAddr, h2: bool, request: Request<Body>) -> Reply {
        let (mut sender, _cut) = self.http(to, h2).await;
        let response = sender.send(request).await.unwrap_or_else(|e| panic!("{} to {to}: {e:?}", self.name));
        Reply::read(response).await.unwrap_or_else(|e| panic!("{} to {to}, body: {e:?}", self.name))
    }
}
