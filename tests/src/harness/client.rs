//! HTTP clients that connect from inside a pod.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::pod::Pod;

/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long one exchange may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body of these bytes.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
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

/// An HTTP/1.1 client on this connection; upgrades work.
pub async fn http1_on(stream: TcpStream) -> http1::SendRequest<Body> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    // Its error reaches the test through the request that it broke.
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    sender
}

/// An HTTP/2 client on this connection.
pub async fn http2_on(stream: TcpStream) -> http2::SendRequest<Body> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

impl Pod {
    /// An HTTP/1.1 client to this address.
    pub async fn http1(&self, to: SocketAddr) -> http1::SendRequest<Body> {
        http1_on(self.connect(to).await.unwrap_or_else(|e| panic!("{} to {to}: {e}", self.name))).await
    }

    /// An HTTP/2 client to this address.
    pub async fn http2(&self, to: SocketAddr) -> http2::SendRequest<Body> {
        http2_on(self.connect(to).await.unwrap_or_else(|e| panic!("{} to {to}: {e}", self.name))).await
    }

    /// One GET on a connection of its own; the error in words.
    pub async fn try_get(&self, to: SocketAddr, host: &str, path: &str) -> Result<Reply, String> {
        let exchange = async {
            let stream = self.connect(to).await.map_err(|e: io::Error| format!("connect {to}: {e}"))?;
            let mut sender = http1_on(stream).await;
            let request = Request::get(path).header("host", host).body(body("")).map_err(|e| e.to_string())?;
            let response = sender.send_request(request).await.map_err(|e| format!("{to}{path}: {e:?}"))?;
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
        let response = if h2 {
            self.http2(to).await.send_request(request).await
        } else {
            self.http1(to).await.send_request(request).await
        };
        let response = response.unwrap_or_else(|e| panic!("{} to {to}: {e:?}", self.name));
        Reply::read(response).await.unwrap_or_else(|e| panic!("{} to {to}, body: {e:?}", self.name))
    }
}
