//! Health, metrics and the operator's view: two small HTTP/1 servers on the control runtime.
//!
//! The operator's address (loopback) has everything; the telemetry address (every interface) has only what probes
//! and Prometheus need and can change nothing. Both are bounded in connections and in time, so that neither a slow
//! nor a hostile client can hold more than its share.

mod endpoints;
mod readiness;
mod routes;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

pub use self::{
    endpoints::{EndpointReport, EndpointsView},
    readiness::{CERTIFICATE, LISTENERS, Readiness},
};
use crate::{config::Config, telemetry::Metrics};

/// Connections of one server at once. More of them wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Time for a request's head, and the longest that a connection may stay silent between two requests. Shorter than
/// the usual scrape interval: a scraper then makes a new connection, which costs little and holds no place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is asked to end after this long …
const CONNECTION_AGE: Duration = Duration::from_secs(120);
/// … and cut when it has not ended by then: a client that does not read its answer.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// The largest request head, in bytes (hyper's least is 8,192).
const MAX_HEAD: usize = 16 * 1024;

/// What the servers show and can set going.
pub struct AdminState {
    /// The active configuration.
    pub config: Arc<Config>,
    /// All metrics.
    pub metrics: Metrics,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// What `/endpoints` shows.
    pub endpoints: EndpointsView,
    /// What `/certs` shows: no key material.
    pub certs: Box<dyn Fn() -> Value + Send + Sync>,
    /// Begins the drain, as SIGTERM does. May be called more than once.
    pub drain: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// `admin.address`: everything.
    Operator,
    /// `admin.telemetry_address`: `/livez`, `/readyz` and `/metrics`.
    Telemetry,
}

/// Listens on `address`. `[::]` means every IPv4 and IPv6 address, or every IPv4 address where the kernel has no IPv6.
///
/// The error says which address, why, and which setting to change. Needs a running tokio runtime.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let every_v6 = address.is_ipv6() && address.ip().is_unspecified();
    let bound = match listen(address) {
        // EAFNOSUPPORT: built or booted without IPv6. EADDRNOTAVAIL: switched off by sysctl.
        Err(e) if every_v6 && matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        other => other,
    };
    bound.map_err(|e| {
        let remedy = match e.kind() {
            io::ErrorKind::AddrInUse => "another process has it (is a second sidecar running?): end that, or",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privilege:",
            _ => "this host does not have that address:",
        };
        let setting = "change admin.address or admin.telemetry_address";
        io::Error::new(e.kind(), format!("cannot listen on {address}: {e}; {remedy} {setting}"))
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Whatever net.ipv6.bindv6only says.
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for the TIME_WAIT of the last run's connections.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `shutdown` is done, then lets answers under way finish.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, face: Face, shutdown: impl Future<Output = ()>) {
    let bound = match listener.local_addr() {
        Ok(bound) => bound,
        Err(e) => return tracing::error!("the admin server has no address: {e}"),
    };
    tracing::debug!(address = %bound, ?face, "admin server listens");
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, state.clone(), face, bound, stopped.clone()))),
                Err(e) => {
                    // Out of file descriptors, most likely: trying again at once would only burn the processor.
                    tracing::warn!(address = %bound, "the admin server cannot accept: {e}; trying again");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop((listener, stop));
    let _ = timeout(LAST_ANSWER, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    state: Arc<AdminState>,
    face: Face,
    bound: SocketAddr,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(|request| {
        let answer = routes::answer(&state, face, bound, &request);
        async { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_header_size(MAX_HEAD);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { tokio::select! { _ = stopped.changed() => {}, () = sleep(CONNECTION_AGE) => {} } } => {
            connection.as_mut().graceful_shutdown();
            match timeout(LAST_ANSWER, connection).await {
                Ok(ended) => ended,
                Err(_) => return tracing::debug!("an admin connection was cut: its client does not read"),
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!("an admin connection ended: {e}");
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
