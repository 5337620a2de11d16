//! One caller's connection: handshake, requests, end. Every step has a limit.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_identity::proto::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::Service as _;

use super::{
    DRAIN, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, MAX_CONNECTION_AGE, REQUEST_TIMEOUT,
    activity::Activity,
    body::Bounded,
    grpc::{Enrolment, PeerCertificate},
    metrics::Metrics,
    published::Published,
    slots::Slot,
};

/// How long a refused caller gets to read why.
const LINGER: Duration = Duration::from_secs(1);
const MAX_STREAMS: u32 = 16;
/// All of a request's head, in bytes. A service-account token is one to two KiB of it.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// The longest message, in bytes: a CSR of [`crate::authority::MAX_CSR_LEN`] and some metadata.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// A message and gRPC's prefix of it.
const MAX_BODY: usize = MAX_MESSAGE + 5;

/// What every connection shares.
#[derive(Clone)]
pub(super) struct Face {
    pub(super) tls: TlsAcceptor,
    pub(super) grpc: IstioCertificateServiceServer<Enrolment>,
    pub(super) published: Arc<RwLock<Arc<Published>>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: watch::Receiver<bool>,
}

impl Face {
    /// Serves one connection to its end.
    pub(super) async fn serve(self, tcp: TcpStream, peer: SocketAddr, slot: Slot) {
        // Small answers, each complete at once.
        let _ = tcp.set_nodelay(true);
        let handshake = async {
            let _under_way = slot.handshake().await;
            self.tls.accept(tcp).into_fallible().await
        };
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, tcp))) => {
                self.metrics.handshake_failed("refused");
                tracing::info!(%peer, %error, "TLS handshake failed");
                return linger(tcp).await;
            }
            Err(_) => {
                self.metrics.handshake_failed("timeout");
                return tracing::info!(%peer, "TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}");
            }
        };
        self.talk(stream, peer).await;
    }

    async fn talk(mut self, stream: TlsStream<TcpStream>, peer: SocketAddr) {
        let activity = Activity::new();
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let caller = PeerCertificate { address: peer, certificate: certificate.map(|c| c.clone().into_owned()) };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let (face, busy) = (self.clone(), activity.clone());
        let service = hyper::service::service_fn(move |request| {
            let (face, caller, under_way) = (face.clone(), caller.clone(), busy.begin());
            async move {
                let answer = face.answer(request, caller).await;
                drop(under_way);
                Ok::<_, Infallible>(answer)
            }
        });
        let io = TokioIo::new(stream);
        if is_h2 {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEADER_BYTES)
                .serve_connection(io, service);
            run(connection, &activity, &mut self.shutdown, peer).await;
        } else {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEADER_BYTES as usize)
                .serve_connection(io, service);
            run(connection, &activity, &mut self.shutdown, peer).await;
        }
    }

    /// gRPC to the service, the rest to what is published.
    async fn answer(&self, mut request: Request<Incoming>, caller: PeerCertificate) -> Response<tonic::body::Body> {
        let content_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        if content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
            request.extensions_mut().insert(caller);
            let request = request.map(|body| Bounded::new(body, MAX_BODY, REQUEST_TIMEOUT));
            match self.grpc.clone().call(request).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            }
        } else {
            let published = Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner));
            let answer = published.answer(&request);
            self.metrics.read(answer.status());
            // Nothing here takes a body; one that is not read would reset the stream and take the answer along.
            let mut body = Bounded::new(request.into_body(), MAX_BODY, REQUEST_TIMEOUT);
            while let Some(Ok(_)) = body.frame().await {}
            answer.map(tonic::body::Body::new)
        }
    }
}

/// A connection that can be told to end.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn end(self: std::pin::Pin<&mut Self>);
}

impl<S> Graceful for hyper::server::conn::http1::Connection<TokioIo<TlsStream<TcpStream>>, S>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<tonic::body::Body>, Error = Infallible>,
{
    fn end(self: std::pin::Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S> Graceful for hyper::server::conn::http2::Connection<TokioIo<TlsStream<TcpStream>>, S, TokioExecutor>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    fn end(self: std::pin::Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Runs a connection to its end, which comes when the caller is done, silent or old, or the server stops.
async fn run(connection: impl Graceful, activity: &Activity, shutdown: &mut watch::Receiver<bool>, peer: SocketAddr) {
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = activity.quiet_for(IDLE_TIMEOUT) => None,
        () = sleep(MAX_CONNECTION_AGE) => None,
        _ = shutdown.wait_for(|stop| *stop) => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().end();
            // What is silent has nothing to finish.
            let finish = async {
                tokio::select! {
                    ended = &mut connection => Some(ended),
                    () = activity.quiet_for(LINGER) => None,
                }
            };
            match timeout(DRAIN, finish).await {
                Ok(Some(ended)) => Ok(ended),
                Ok(None) => return tracing::debug!(%peer, "silent connection ended"),
                Err(late) => Err(late),
            }
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "connection ended with an error"),
        Err(_) => tracing::info!(%peer, "connection cut: it did not end within {DRAIN:?} of being told to"),
    }
}

/// Lets the alert that says why reach the caller. A client sends its request right behind its certificate, and
/// closing a socket with bytes unread resets the connection, which would take the alert along.
async fn linger(mut tcp: TcpStream) {
    let mut unread = [0; 4096];
    let drain = async {
        tcp.shutdown().await?;
        while tcp.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever comes of it, the connection ends here.
    let _ = timeout(LINGER, drain).await;
}
