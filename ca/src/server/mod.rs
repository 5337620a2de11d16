//! The enrolment server: TLS 1.3, HTTP/2 and Istio's `CreateCertificate`, for callers nobody trusts yet.
//!
//! Everything that a stranger can make it hold is bounded: connections, the time of a handshake, the age of a
//! connection, streams on it, the sizes of headers and messages, and the work that waits for the disk.

mod certificate;
mod grpc;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_identity::proto::istio_certificate_service_server::IstioCertificateServiceServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

pub use certificate::ServerCertificate;
pub use grpc::PeerCertificate;

use crate::{
    authority::{Authority, AuthorityError},
    issue::IssueError,
    store::{Store, StoreGone},
};

/// The most connections at a time; further ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: u32 = 1024;
/// A TLS handshake that takes longer is a connection that somebody holds open on purpose.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection is told to go away, so that idle callers cannot use up [`MAX_CONNECTIONS`]. An
/// enrolment takes milliseconds, and clients open a new connection by themselves.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);
/// What requests under way get to finish, at the age limit and at shutdown.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long a refused caller gets to read why.
const LINGER: Duration = Duration::from_secs(1);
const MAX_STREAMS: u32 = 16;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// The longest message, in bytes: a CSR of [`crate::authority::MAX_CSR_LEN`] and some metadata.
const MAX_MESSAGE: usize = 64 * 1024;

/// The server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port could not be had.
    #[error("cannot listen on {address}: {source}; choose another with --listen, or stop what uses it")]
    Listen {
        /// The address wished for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A thread or a signal handler could not be made.
    #[error("cannot {0}: {1}; check the limits of this process")]
    System(&'static str, io::Error),
    /// The server's own certificate could not be signed or recorded.
    #[error("cannot issue the server's own certificate: {0}")]
    OwnCertificate(#[from] IssueError),
    /// The server's key could not be made.
    #[error("cannot make the server's own key: {0}")]
    OwnKey(#[from] AuthorityError),
    /// TLS could not be set up.
    #[error("cannot set TLS up: {0}; this is a defect, please report it")]
    Tls(String),
    /// The database's thread has ended.
    #[error(transparent)]
    Store(#[from] StoreGone),
}

/// Opens the listening socket. `[::]` takes IPv4 as well, and falls back to `0.0.0.0` where IPv6 is switched off.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(e) if address.is_ipv6() && address.ip().is_unspecified() && e.kind() != io::ErrorKind::AddrInUse => {
            let v4 = SocketAddr::from(([0, 0, 0, 0], address.port()));
            TcpListener::bind(v4).await.map_err(|_| ServeError::Listen { address, source: e })
        }
        Err(source) => Err(ServeError::Listen { address, source }),
    }
}

/// Serves until `shutdown` becomes true, then lets requests under way finish for at most [`DRAIN`].
pub async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    store: Store,
    own: Arc<ServerCertificate>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let tls = TlsAcceptor::from(certificate::tls_config(&authority, Arc::clone(&own))?);
    let renewal = tokio::spawn(certificate::keep_fresh(own, Arc::clone(&authority), store.clone()));
    let grpc = IstioCertificateServiceServer::new(grpc::Enrolment::new(authority, store))
        .max_decoding_message_size(MAX_MESSAGE);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));

    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&slots).acquire_owned() => permit,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { break };
        let (tcp, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a connection that was reset while it waited.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let connection = Connection { peer, tls: tls.clone(), grpc: grpc.clone(), shutdown: shutdown.clone() };
        tokio::spawn(connection.run(tcp, permit));
    }
    drop(listener);
    renewal.abort();
    if timeout(DRAIN, slots.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        tracing::warn!("some requests did not finish within {DRAIN:?} and were cut");
    }
    Ok(())
}

struct Connection {
    peer: SocketAddr,
    tls: TlsAcceptor,
    grpc: IstioCertificateServiceServer<grpc::Enrolment>,
    shutdown: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, tcp: TcpStream, _slot: OwnedSemaphorePermit) {
        let peer = self.peer;
        // Small answers, each complete at once.
        let _ = tcp.set_nodelay(true);
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.tls.accept(tcp).into_fallible()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, tcp))) => {
                tracing::info!(%peer, %error, "TLS handshake failed");
                return linger(tcp).await;
            }
            Err(_) => return tracing::info!(%peer, "TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = PeerCertificate { address: peer, certificate: certificate.map(|c| c.clone().into_owned()) };
        let grpc = self.grpc.clone();
        let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(certificate.clone());
            grpc.clone().call(request)
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);

        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = sleep(MAX_CONNECTION_AGE) => None,
            _ = self.shutdown.wait_for(|stop| *stop) => None,
        };
        let ended = match ended {
            Some(ended) => Ok(ended),
            None => {
                connection.as_mut().graceful_shutdown();
                timeout(DRAIN, connection).await
            }
        };
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "connection ended with an error"),
            Err(_) => tracing::info!(%peer, "connection cut: it did not end within {DRAIN:?} of being told to"),
        }
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
