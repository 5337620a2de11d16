//! Reads what a CA publishes beside its gRPC: its bundle and its revocation lists, by HTTPS on the same port.
//!
//! The CA is authenticated as for an enrolment, see [`enrol`](super::enrol::enrol); the reader shows no certificate,
//! because these documents are anybody's. Redirections are not followed.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;

use super::{
    connect::{AbortOnDrop, Dial},
    enrol_error::EnrolCause,
};

/// Limit of all requests of one [`read`] together, after the connection was made.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A document that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its path, as `/bundle.json`.
    pub path: &'a str,
    /// The entity tag of the one that is known.
    pub etag: Option<&'a str>,
    /// No honest one is longer, in bytes.
    pub max: usize,
}

/// What the CA answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The one that is known is still the newest.
    Unchanged,
    /// This CA does not publish it: 404, or gRPC's answer to what is no gRPC.
    Absent,
    /// It is this.
    Text {
        /// Its bytes.
        body: Bytes,
        /// Its entity tag.
        etag: Option<String>,
    },
}

/// A document that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} of the CA {address}: {cause}")]
pub struct ReadError {
    /// The CA's address as configured.
    pub address: String,
    /// Which document.
    pub path: String,
    /// What went wrong.
    pub cause: ReadCause,
}

/// The cause inside a [`ReadError`].
#[derive(Debug, thiserror::Error)]
pub enum ReadCause {
    /// There is no connection.
    #[error("{0}")]
    Connection(EnrolCause),
    /// The answer took too long.
    #[error("no whole answer in {} s; look at the CA's load and at the network between", READ_TIMEOUT.as_secs())]
    TimedOut,
    /// The connection ended before the answer.
    #[error("the connection was lost before the answer: {0}")]
    Lost(String),
    /// Another status than 200, 304 and those of [`Document::Absent`].
    #[error("it answered {0}; look at the CA's log")]
    Status(StatusCode),
    /// It is longer than any honest one.
    #[error("it is longer than {0} bytes; is this the CA?")]
    TooLong(usize),
}

/// Reads documents one after another over one connection. Ends within [`CONNECT_TIMEOUT`](super::enrol::CONNECT_TIMEOUT)
/// plus [`READ_TIMEOUT`]. `address` is `host:port`, `bundle_pem` the roots that may vouch for the CA's server.
///
/// # Errors
///
/// The first document that cannot be read ends it: what was read before would be of another moment.
pub async fn read(address: &str, bundle_pem: &str, wanted: &[Wanted<'_>]) -> Result<Vec<Document>, ReadError> {
    let fail = |path: &str, cause| ReadError { address: address.to_owned(), path: path.to_owned(), cause };
    let Some(first) = wanted.first() else { return Ok(Vec::new()) };
    let connected = async {
        let stream = Dial::new(address, bundle_pem, None)?.connect().await?;
        hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| EnrolCause::Lost(e.to_string()))
    };
    let (mut sender, connection) = connected.await.map_err(|cause| fail(first.path, ReadCause::Connection(cause)))?;
    let _connection = AbortOnDrop::of(connection);
    let mut documents = Vec::with_capacity(wanted.len());
    let mut at = first.path;
    let all = async {
        for want in wanted {
            at = want.path;
            documents.push(get(&mut sender, address, want).await?);
        }
        Ok(())
    };
    match timeout(READ_TIMEOUT, all).await.unwrap_or(Err(ReadCause::TimedOut)) {
        Ok(()) => Ok(documents),
        Err(cause) => Err(fail(at, cause)),
    }
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, address: &str, want: &Wanted<'_>) -> Result<Document, ReadCause> {
    let mut request = Request::get(format!("https://{address}{}", want.path));
    if let Some(etag) = want.etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let request = request.body(Empty::new()).map_err(|e| ReadCause::Connection(EnrolCause::Address(e.to_string())))?;
    sender.ready().await.map_err(|e| ReadCause::Lost(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(|e| ReadCause::Lost(e.to_string()))?;
    let (parts, body) = response.into_parts();
    let header = |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    // A server that has gRPC and nothing else (istiod) says so by one of these statuses, a proxy before it by a gRPC one.
    let is_grpc = header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/grpc"));
    match parts.status {
        StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::NOT_IMPLEMENTED => return Ok(Document::Absent),
        _ if is_grpc => return Ok(Document::Absent),
        StatusCode::NOT_MODIFIED if want.etag.is_some() => return Ok(Document::Unchanged),
        StatusCode::OK => {}
        other => return Err(ReadCause::Status(other)),
    }
    let body = Limited::new(body, want.max).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() { ReadCause::TooLong(want.max) } else { ReadCause::Lost(e.to_string()) }
    })?;
    Ok(Document::Text { body: body.to_bytes(), etag: header(header::ETAG).map(str::to_owned) })
}
