//! The CA's face: TLS 1.3 with Istio's `CreateCertificate` as gRPC and the published documents over HTTPS, for callers
//! nobody trusts yet; beside it a plain port for probes and metrics.
//!
//! Everything that a stranger can make it hold is bounded: connections in total and of one source, handshakes under
//! way, the time of a handshake, of a request and of silence, the age of a connection, streams on it, the sizes of
//! heads and bodies, attempts that fail, and the work that waits for the disk.

mod activity;
mod body;
mod callers;
mod certificate;
mod connection;
mod forgetting;
mod grpc;
mod live;
mod metrics;
mod observe;
mod published;
mod refusal;
mod slots;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use outrigger_identity::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use callers::Callers;
pub use certificate::ServerCertificate;
pub use forgetting::keep_forgetting;
pub use grpc::PeerCertificate;
pub use live::Live;
pub(crate) use observe::Observer;

use crate::{
    admin::{self, AdminListener},
    attest::Attestation,
    authority::AuthorityError,
    issue::IssueError,
    limits::{Limits, Rates},
    store::{Store, StoreGone},
};

/// A TLS handshake that takes longer is a connection that somebody holds open on purpose.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head and the body of a request may each take to come.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing is asked for so long is ended.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// After this a connection is told to go away, so that callers cannot use up [`Limits::connections`] by trickling. An
/// enrolment takes milliseconds, and clients open a new connection by themselves.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);
/// What requests under way get to finish, at the age limit and at shutdown.
pub const DRAIN: Duration = Duration::from_secs(10);

/// The server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port could not be had.
    #[error("cannot listen on {address}: {source}; choose another with {option}, or stop what uses it")]
    Listen {
        /// The option that chooses it.
        option: &'static str,
        /// The address wished for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The admin socket could not be made.
    #[error("cannot make the admin socket {path}: {source}; choose another with --admin-socket, or \"off\"")]
    AdminSocket {
        /// Where it should be.
        path: PathBuf,
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

/// Opens a listening socket, chosen with `option`. `[::]` takes IPv4 as well, and falls back to `0.0.0.0` where IPv6 is
/// switched off.
pub async fn listen(address: SocketAddr, option: &'static str) -> Result<TcpListener, ServeError> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(e) if address.is_ipv6() && address.ip().is_unspecified() && e.kind() != io::ErrorKind::AddrInUse => {
            let v4 = SocketAddr::from(([0, 0, 0, 0], address.port()));
            TcpListener::bind(v4).await.map_err(|_| ServeError::Listen { option, address, source: e })
        }
        Err(source) => Err(ServeError::Listen { option, address, source }),
    }
}

/// The sockets of one server.
#[derive(Debug)]
pub struct Listeners {
    /// Enrolment and published documents, over TLS.
    pub enrolment: TcpListener,
    /// Probes and metrics, plain.
    pub metrics: Option<TcpListener>,
    /// The operator's own.
    pub admin: Option<AdminListener>,
}

/// `CreateCertificate` without sockets and TLS, for whoever brings them: each request carries its [`PeerCertificate`] as
/// an extension.
pub fn enrolment(
    live: Arc<Live>,
    store: Store,
    attestation: Attestation,
    limits: &Limits,
) -> IstioCertificateServiceServer<impl IstioCertificateService> {
    grpc_service(grpc::Enrolment::new(live, store, attestation, Rates::new(limits), metrics::Metrics::new()))
}

fn grpc_service(enrolment: grpc::Enrolment) -> IstioCertificateServiceServer<grpc::Enrolment> {
    IstioCertificateServiceServer::new(enrolment).max_decoding_message_size(connection::MAX_MESSAGE)
}

/// Serves until `shutdown` becomes true, then lets requests under way finish for at most [`DRAIN`].
pub async fn serve(
    listeners: Listeners,
    live: Arc<Live>,
    store: Store,
    own: Arc<ServerCertificate>,
    attestation: Attestation,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let authority = live.get();
    let callers = Callers::new(&authority)?;
    let tls = TlsAcceptor::from(certificate::tls_config(Arc::clone(&callers), Arc::clone(&own))?);
    let slots = slots::Slots::new(limits.connections, limits.connections_of_one);
    let metrics = metrics::Metrics::new();
    let published = Arc::new(RwLock::new(Arc::new(published::Published::of(&authority))));
    let mut beside = tokio::task::JoinSet::new();
    let observer = Observer::new(
        Arc::clone(&live),
        store.clone(),
        Arc::clone(&own),
        Arc::clone(&slots),
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    if let Some(bound) = listeners.admin {
        beside.spawn(admin::serve(bound, Arc::clone(&live), store.clone(), Arc::clone(&observer)));
    }
    if let Some(listener) = listeners.metrics {
        beside.spawn(observe::serve(listener, observer));
    }
    beside.spawn(certificate::keep_fresh(own, Arc::clone(&live), store.clone()));
    let documents = Arc::clone(&published);
    let _keeper = live.keep(move |next| {
        let next_documents = Arc::new(published::Published::of(next));
        *documents.write().unwrap_or_else(PoisonError::into_inner) = next_documents;
        callers.update(next)
    })?;
    let enrolment = grpc::Enrolment::new(live, store, attestation, Rates::new(&limits), Arc::clone(&metrics));
    let grpc = grpc_service(enrolment);
    let face = connection::Face { tls, grpc, published, metrics, shutdown: shutdown.clone() };

    let listener = listeners.enrolment;
    loop {
        let place = tokio::select! {
            place = slots.place() => place,
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let Some(place) = place else { break };
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
        match slots.enter(place, peer.ip().into()) {
            Some(slot) => drop(tokio::spawn(face.clone().serve(tcp, peer, slot))),
            None => {
                face.metrics.connection_refused();
                tracing::debug!(%peer, "connection closed: its source has as many as it may");
            }
        }
    }
    drop(listener);
    if timeout(DRAIN, slots.all_free()).await.is_err() {
        tracing::warn!("some requests did not finish within {DRAIN:?} and were cut");
    }
    Ok(())
}
