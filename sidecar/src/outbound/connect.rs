//! Connecting to an endpoint: TCP, and over it mesh mTLS, within `timeouts.connect`.

use std::{cell::OnceCell, rc::Rc, sync::Arc};

use outrigger_identity::SpiffeId;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{endpoint::Endpoint, service::Service};
use crate::{
    http::client::{self, ConnectError, Made, StreamSlot, Watched},
    http1::client::Client,
    identity::Usage,
    net::{ReadAhead, connect::dial},
    reason::Reason,
    telemetry::{Direction, Transport},
    tls::{self, Standing, TlsFailure},
    worker::Worker,
};

/// A mesh connection.
pub(super) struct Mesh {
    pub(super) io: TlsStream<ReadAhead<TcpStream>>,
    /// Who is at its other end.
    pub(super) peer: SpiffeId,
    /// What is thought of it when trust changes.
    pub(super) standing: Option<Standing>,
}

/// Connects in the clear.
pub(super) async fn plain(service: &Service, endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    within(service, endpoint, tcp(service, endpoint)).await
}

/// Connects by mesh mTLS, for `alpn`.
pub(super) async fn mesh(
    worker: &Worker,
    service: &Service,
    endpoint: &Endpoint,
    alpn: &'static [u8],
) -> Result<Mesh, ConnectError> {
    within(service, endpoint, handshake(worker, service, endpoint, alpn)).await
}

/// The same in as much time as it takes, and without a word to those who judge endpoints.
pub(super) async fn handshake(
    worker: &Worker,
    service: &Service,
    endpoint: &Endpoint,
    alpn: &'static [u8],
) -> Result<Mesh, ConnectError> {
    let config = client_config(worker, service, alpn)?;
    let stream = tcp(service, endpoint).await?;
    let name = tls::server_name(&service.spec.expect.host);
    let stream = TlsConnector::from(config)
        .connect(name, ReadAhead::new(stream))
        .await
        .map_err(|e| refused(worker, service, endpoint, &tls::explain(&e)))?;
    let connection = stream.get_ref().1;
    let peer = tls::peer_id(connection);
    match peer {
        Some(peer) if connection.alpn_protocol() == Some(alpn) => {
            let standing = worker.peers.enter(connection, Usage::Server, &worker.shared.identity);
            Ok(Mesh { io: stream, peer, standing })
        }
        _ => {
            worker.metrics.tls_failure(Direction::Outbound, "alpn");
            let (service, address) = (&service.spec.name, endpoint.address);
            let text = format!("{service} at {address} does not speak this version of the mesh protocol");
            Err(ConnectError::new(Reason::MeshVersion, text))
        }
    }
}

/// A share of an HTTP/2 connection to `endpoint`.
pub(super) async fn http2(
    worker: &Rc<Worker>,
    service: &Rc<Service>,
    endpoint: &Rc<Endpoint>,
) -> Result<StreamSlot, ConnectError> {
    if let Some(slot) = endpoint.h2.ready() {
        return Ok(slot);
    }
    let _pending = service.breakers.try_pending().map_err(|full| overflow(service, full.which()))?;
    if service.is_mesh() {
        let (worker, service, to) = (Rc::clone(worker), Rc::clone(service), Rc::clone(endpoint));
        let connect = || async move {
            let permit = service.breakers.try_connection().map_err(|full| overflow(&service, full.which()))?;
            let Mesh { io, peer, standing } = mesh(&worker, &service, &to, tls::ALPN_H2).await?;
            let refusal = Rc::<OnceCell<_>>::default();
            let told = {
                // A connection must not keep alive what it belongs to.
                let (worker, service, to) = (Rc::clone(&worker), Rc::downgrade(&service), Rc::downgrade(&to));
                let refusal = Rc::clone(&refusal);
                move |failure| {
                    if let (Some(service), Some(to)) = (service.upgrade(), to.upgrade()) {
                        let error = refused(&worker, &service, &to, &failure);
                        tracing::warn!("{error}");
                        service.connect_failed(&to, &error);
                        // The first one is the one.
                        let _ = refusal.set(error);
                    }
                }
            };
            let watched = standing.map(|standing| {
                let (worker, service, to) = (Rc::clone(&worker), Rc::downgrade(&service), Rc::downgrade(&to));
                let refused = Box::new(move |failure: TlsFailure| {
                    if let (Some(service), Some(to)) = (service.upgrade(), to.upgrade()) {
                        refused_by_now(&worker, &service, &to, &failure);
                    }
                });
                Watched { standing, refused }
            });
            Ok(Made {
                io: tls::Late::new(io, told),
                refusal,
                requests: worker.metrics.requests(Direction::Outbound, service.spec.name.as_str(), peer.as_str()),
                connection: worker.metrics.connections(Direction::Outbound, Transport::Mtls),
                permit: Some(permit),
                watched,
                to_sidecar: true,
            })
        };
        return endpoint.h2.get(connect).await;
    }
    let (worker, service, to) = (Rc::clone(worker), Rc::clone(service), Rc::clone(endpoint));
    let connect = || async move {
        let permit = service.breakers.try_connection().map_err(|full| overflow(&service, full.which()))?;
        let io = plain(&service, &to).await?;
        Ok(Made {
            io,
            refusal: Rc::default(),
            requests: Rc::clone(&service.unattached),
            connection: worker.metrics.connections(Direction::Outbound, Transport::Plaintext),
            permit: Some(permit),
            watched: None,
            to_sidecar: false,
        })
    };
    endpoint.h2.get(connect).await
}

/// A new HTTP/1.1 connection to an endpoint without a sidecar.
pub(super) async fn http1(worker: &Worker, service: &Service, endpoint: &Endpoint) -> Result<Client, ConnectError> {
    let _pending = service.breakers.try_pending().map_err(|full| overflow(service, full.which()))?;
    let permit = service.breakers.try_connection().map_err(|full| overflow(service, full.which()))?;
    let io = plain(service, endpoint).await?;
    let made = Made {
        io,
        refusal: Rc::default(),
        requests: Rc::clone(&service.unattached),
        connection: worker.metrics.connections(Direction::Outbound, Transport::Plaintext),
        permit: Some(permit),
        watched: None,
        to_sidecar: false,
    };
    Ok(client::http1(made, &endpoint.h1))
}

/// A failure of mTLS, counted.
fn refused(worker: &Worker, service: &Service, endpoint: &Endpoint, failure: &TlsFailure) -> ConnectError {
    worker.metrics.tls_failure(Direction::Outbound, failure.code);
    let (service, address) = (&service.spec.name, endpoint.address);
    ConnectError::new(Reason::TlsFailed, format_args!("no mTLS with {service} at {address}: {}", failure.message))
}

/// A peer that was taken and would not be today: told and counted. The endpoint is not to blame: its workload may long have
/// another certificate, which the next handshake judges.
pub(super) fn refused_by_now(worker: &Worker, service: &Service, endpoint: &Endpoint, failure: &TlsFailure) {
    let error = refused(worker, service, endpoint, failure);
    tracing::warn!("a connection ends: {error}");
}

/// A circuit breaker's refusal, counted.
pub(super) fn overflow(service: &Service, which: &'static str) -> ConnectError {
    service.metrics.circuit_open(which);
    ConnectError::new(Reason::CircuitOpen, format_args!("circuit_breakers.{which} of {} is reached", service.spec.name))
}

/// Connects in the clear, as [`handshake`] does.
pub(super) async fn tcp(service: &Service, endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    dial(endpoint.address).await.map_err(|e| {
        let (service, address) = (&service.spec.name, endpoint.address);
        ConnectError::new(Reason::ConnectFailed, format_args!("cannot connect to {service} at {address}: {e}"))
    })
}

async fn within<T>(
    service: &Service,
    endpoint: &Endpoint,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let limit = service.spec.timeouts.connect.get();
    let result = tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
        let (service, address) = (&service.spec.name, endpoint.address);
        let text = format!("{service} at {address} did not take the connection within {limit:?} (timeouts.connect)");
        Err(ConnectError::new(Reason::ConnectTimeout, text))
    });
    match &result {
        Ok(_) => endpoint.connected(),
        // Our own missing certificate says nothing about the endpoint.
        Err(e) if e.reason == Reason::NoCertificate => {}
        Err(e) => {
            tracing::debug!(reason = e.reason.code(), "{e}");
            service.connect_failed(endpoint, e);
        }
    }
    result
}

/// The TLS settings for `alpn`, made anew when the identity has changed.
fn client_config(worker: &Worker, service: &Service, alpn: &'static [u8]) -> Result<Arc<ClientConfig>, ConnectError> {
    let missing = |why: &dyn std::fmt::Display| ConnectError::new(Reason::NoCertificate, why);
    let identity = worker.shared.identity.current().ok_or_else(|| missing(&"this sidecar has no certificate yet"))?;
    if !identity.is_valid_now() {
        return Err(missing(&"this sidecar's certificate is not valid at this time"));
    }
    let mut cache = service.tls.borrow_mut();
    if cache.generation != identity.generation {
        cache.generation = identity.generation;
        (cache.http, cache.bytes) = (None, None);
    }
    let cached = if alpn == tls::ALPN_H2 { &mut cache.http } else { &mut cache.bytes };
    if let Some(config) = cached {
        return Ok(Arc::clone(config));
    }
    let config = tls::client_config(&identity, &service.spec.expect, alpn).map_err(|e| missing(&e))?;
    *cached = Some(Arc::clone(&config));
    Ok(config)
}
