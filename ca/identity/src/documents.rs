//! Reads what a CA publishes beside its gRPC: its bundle and its revocation lists, by HTTPS on the same port.
//!
//! The CA is authenticated as for an enrolment, see [`enrol`](super::enrol::enrol); the reader shows no certificate,
//! because these documents are anybody's. Redirections are not followed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;

use super::{
    connect::{AbortOnDrop, Dial},
    enrol_error::EnrolCause,
};

/// Limit of each request of a [`read`], after the connection was made.
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

/// What became of each document that was asked for, in order.
pub type Documents = Vec<Result<Document, ReadError>>;

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
/// plus [`READ_TIMEOUT`] for each. `address` is `host:port`, `bundle_pem` the roots that may vouch for the CA's server.
///
/// # Errors
///
/// Where there is no connection. What becomes of one document is no other one's affair.
pub async fn read(address: &str, bundle_pem: &str, wanted: &[Wanted<'_>]) -> Result<Documents, ReadError> {
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
    for want in wanted {
        let read = timeout(READ_TIMEOUT, get(&mut sender, address, want)).await.unwrap_or(Err(ReadCause::TimedOut));
        documents.push(read.map_err(|cause| fail(want.path, cause)));
    }
    Ok(documents)
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
    // A server that has gRPC and nothing else (istiod) says so by one of these statuses, or by gRPC's UNIMPLEMENTED.
    let is_unimplemented = header(HeaderName::from_static("grpc-status")) == Some("12");
    match parts.status {
        StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::NOT_IMPLEMENTED => return Ok(Document::Absent),
        StatusCode::OK if is_unimplemented => return Ok(Document::Absent),
        StatusCode::NOT_MODIFIED if want.etag.is_some() => return Ok(Document::Unchanged),
        StatusCode::OK => {}
        other => return Err(ReadCause::Status(other)),
    }
    let body = Limited::new(body, want.max).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() { ReadCause::TooLong(want.max) } else { ReadCause::Lost(e.to_string()) }
    })?;
    Ok(Document::Text { body: body.to_bytes(), etag: header(header::ETAG).map(str::to_owned) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{convert::Infallible, net::SocketAddr, sync::Arc};

    use http::Response;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each path in its own way. Gives its address and its root.
    async fn server() -> (SocketAddr, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], der)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        (address, certificate.pem())
    }

    fn answer<B>(request: &Request<B>) -> Response<Full<Bytes>> {
        let (status, body) = match request.uri().path() {
            "/document" if request.headers().get(header::IF_NONE_MATCH).is_some_and(|tag| tag == "\"1\"") => (304, ""),
            "/document" => (200, "text"),
            "/moved" => (302, ""),
            "/unchanged" => (304, ""),
            "/broken" => (500, "text"),
            "/no-grpc" => (415, ""),
            "/no-get" => (405, ""),
            "/grpc" => (200, ""),
            _ => (404, ""),
        };
        let mut response = Response::builder().status(status).header(header::ETAG, "\"1\"");
        if request.uri().path() == "/grpc" {
            response = response.header(header::CONTENT_TYPE, "application/grpc").header("grpc-status", "12");
        }
        response = response.header(header::LOCATION, "/document");
        response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
    }

    fn want(path: &str) -> Wanted<'_> {
        Wanted { path, etag: None, max: 4 }
    }

    #[tokio::test]
    async fn documents_are_read_over_one_connection_in_the_order_asked_for() {
        let (address, root) = server().await;
        let known = Wanted { etag: Some("\"1\""), ..want("/document") };
        let other = Wanted { etag: Some("\"2\""), ..want("/document") };
        let wanted = [want("/document"), known, other, want("/none"), want("/no-grpc"), want("/no-get"), want("/grpc")];
        let read = read(&address.to_string(), &root, &wanted).await.unwrap();
        let text = Document::Text { body: Bytes::from_static(b"text"), etag: Some("\"1\"".to_owned()) };
        let absent = Document::Absent;
        let expected =
            [text.clone(), Document::Unchanged, text, absent.clone(), absent.clone(), absent.clone(), absent];
        assert_eq!(read.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn what_is_no_document_is_an_error_that_names_the_place_and_the_reason() {
        let (address, root) = server().await;
        let address = address.to_string();
        let short = Wanted { max: 3, ..want("/document") };
        for (wanted, words) in [
            (short, "it is longer than 3 bytes"),
            (want("/moved"), "it answered 302 Found"),
            (want("/unchanged"), "it answered 304"),
            (want("/broken"), "it answered 500"),
        ] {
            let mut all = read(&address, &root, &[wanted, want("/document")]).await.unwrap();
            assert!(matches!(all.pop(), Some(Ok(Document::Text { .. }))), "the other one is read all the same");
            let error = all.pop().unwrap().unwrap_err().to_string();
            let place = format!("cannot read {} of the CA {address}: ", wanted.path);
            assert!(error.starts_with(&place) && error.contains(words), "{error}");
        }
        // Whoever else answers there is not the CA.
        let stranger = rcgen::KeyPair::generate().unwrap();
        let stranger = rcgen::CertificateParams::default().self_signed(&stranger).unwrap().pem();
        let error = read(&address, &stranger, &[want("/document")]).await.unwrap_err();
        assert!(matches!(error.cause, ReadCause::Connection(EnrolCause::UnknownRoot)), "{error}");
        let error = read(&address, "", &[want("/document")]).await.unwrap_err();
        assert!(matches!(error.cause, ReadCause::Connection(EnrolCause::Bundle(_))), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (_, root) = server().await;
        let error = read(&address, &root, &[want("/document")]).await.unwrap_err();
        assert!(matches!(error.cause, ReadCause::Connection(EnrolCause::TimedOut { .. })), "{error}");
    }
}
