//! The outbound journey: from a connection of the workload to an endpoint of the service that it means.
//!
//! Accept, and recover where the workload was going; look at the first bytes; name the service; then
//! [`http`] carries requests and [`opaque`] carries bytes.

mod affinity;
mod connect;
mod endpoint;
mod forward;
mod health_check;
mod http;
mod mirror;
mod opaque;
mod policy;
mod retries;
mod routed;
mod service;
mod services;
mod upgrade;

use std::{io, net::SocketAddr, os::fd::AsFd, rc::Rc};

use bytes::BytesMut;
use tokio::{net::TcpStream, task::spawn_local};

pub use endpoint::Endpoint;
pub use service::Service;
pub use services::Services;

use crate::{
    config::Unmatched,
    http::client::ConnectError,
    net::{
        Accepted, Peeked,
        accepted::read_now,
        detect::{self, HostHeader, Kind},
        listen::{self, acknowledge},
        look::{Look, look},
    },
    reason::Reason,
    telemetry::Direction,
    worker::{Entered, Worker},
};

/// What a connection of the workload carries.
enum Carries {
    Http1,
    Http2,
    Bytes(Rc<Service>),
}

/// The two ends of a connection of the workload.
#[derive(Debug, Clone, Copy)]
struct Ends {
    /// Who made it.
    peer: SocketAddr,
    /// Where it was going.
    destination: SocketAddr,
}

/// Begins to carry one connection of the workload. `entered` is its place among those that are open. False where the
/// system has no room for more.
pub fn begin(worker: Rc<Worker>, socket: std::net::TcpStream, peer: SocketAddr, entered: Entered) -> bool {
    let mut bytes = BytesMut::new();
    let begun = destination_of(&worker, &socket, peer)
        .and_then(|destination| Ok(read_now(&socket, &mut bytes).map(|()| destination)?));
    let destination = match begun {
        Ok(destination) => destination,
        Err(refused) => {
            refuse(&worker, &socket, &refused);
            return true;
        }
    };
    // What most connections are: a request that has come by the time that they are accepted. All else is looked at in a
    // task of its own.
    if bytes.first().is_some_and(u8::is_ascii_uppercase)
        && let Some(named_by_address) = worker.services.known_by_address(&worker, destination)
        && opaque_by_config(&named_by_address).is_none()
        && let Some(Some(Carries::Http1)) = decide(&worker, destination, &named_by_address, &bytes)
    {
        let io = Accepted::unwatched(socket, bytes);
        spawn_local(http::serve_http1(worker, io, Ends { peer, destination }, entered));
        return true;
    }
    acknowledge(&socket);
    match TcpStream::from_std(socket) {
        Ok(stream) => {
            spawn_local(serve(worker, stream, bytes, Ends { peer, destination }, entered));
            true
        }
        Err(error) => {
            tracing::warn!(%error, "a connection of the workload cannot be watched");
            worker.metrics.error(Direction::Outbound, Reason::Overload.code());
            false
        }
    }
}

/// Carries one connection, of which `bytes` were read already, to its end.
async fn serve(worker: Rc<Worker>, mut stream: TcpStream, bytes: BytesMut, ends: Ends, entered: Entered) {
    let destination = ends.destination;
    let named_by_address = match by_address(&worker, destination, Service::is_opaque).await {
        Ok(service) => service,
        Err(refused) => return refuse(&worker, &stream, &refused),
    };
    let silence = worker.config().outbound.detect_delay.get();
    let looked: Result<Look<Carries, _>, ConnectError> = if let Some(service) = opaque_by_config(&named_by_address) {
        Ok(Look { found: Some(Carries::Bytes(service)), bytes, upstream: None })
    } else {
        let decide = |bytes: &[u8]| decide(&worker, destination, &named_by_address, bytes);
        let dial = async || {
            let service = by_address(&worker, destination, |_| true).await?;
            opaque::dial(&worker, service, ends).await
        };
        look(&mut stream, bytes, silence, decide, dial).await
    };
    let looked = match looked {
        Ok(looked) => looked,
        Err(refused) => return refuse(&worker, &stream, &refused),
    };
    match looked.found {
        // A task of its own: this one has room for what came before, and most of these are idle for long.
        Some(Carries::Http1) => {
            spawn_local(http::serve_http1(worker, Accepted::watched(stream, looked.bytes), ends, entered));
        }
        Some(Carries::Http2) => {
            Box::pin(http::serve_http2(worker, Peeked::new(stream, looked.bytes), ends)).await;
        }
        Some(Carries::Bytes(service)) => {
            Box::pin(opaque::carry(worker, stream, looked.bytes, None, Some(service), ends)).await;
        }
        None => match by_address(&worker, destination, |_| true).await {
            Ok(service) => {
                Box::pin(opaque::carry(worker, stream, looked.bytes, looked.upstream, service, ends)).await;
            }
            Err(refused) => refuse(&worker, &stream, &refused),
        },
    }
}

/// Where the workload was going with a connection.
fn destination_of(worker: &Worker, stream: &std::net::TcpStream, peer: SocketAddr) -> Result<SocketAddr, ConnectError> {
    let destination = listen::original_destination(stream, peer)?;
    let config = worker.config();
    let own = [config.outbound.port, config.inbound.port];
    if own.contains(&destination.port())
        && (destination.ip().is_loopback() || stream.local_addr().is_ok_and(|l| listen::canonical(l) == destination))
    {
        return Err(ConnectError::new(
            Reason::Loop,
            format_args!("a connection to the sidecar's own port {destination}, not redirected from anywhere"),
        ));
    }
    Ok(destination)
}

/// The service that has an endpoint at `destination`.
///
/// Where discovery has not said yet where the services of this port are, the first answer for those that `may_be` meant
/// is waited for. A service that is opaque is known by its addresses alone: as long as none is known, a connection to
/// its port is refused, since the bytes may be those that only a sidecar may get.
async fn by_address(
    worker: &Rc<Worker>,
    destination: SocketAddr,
    may_be: impl Fn(&Service) -> bool,
) -> Result<Option<Rc<Service>>, ConnectError> {
    let known = worker.services.by_address(destination);
    if known.is_some() {
        return Ok(known);
    }
    for service in worker.services.unknown_at(worker, destination.port()) {
        if !may_be(&service) {
            continue;
        }
        service.first_answer().await;
        let known = worker.services.by_address(destination);
        if known.is_some() {
            return Ok(known);
        }
        if service.is_opaque() && service.is_unknown() {
            let (name, why) = (&service.spec.name, service.nobody().message);
            let text = format_args!("{destination} may be an endpoint of the opaque service {name}, but {why}");
            return Err(ConnectError::new(Reason::NoEndpoints, text));
        }
    }
    Ok(None)
}

fn opaque_by_config(service: &Option<Rc<Service>>) -> Option<Rc<Service>> {
    service.as_ref().filter(|s| s.is_opaque()).cloned()
}

/// What the bytes so far say: not enough, bytes for whoever has this address, or something with a name in it.
fn decide(
    worker: &Rc<Worker>,
    destination: SocketAddr,
    by_address: &Option<Rc<Service>>,
    bytes: &[u8],
) -> Option<Option<Carries>> {
    let port = destination.port();
    match detect::kind(bytes)? {
        Kind::Opaque => Some(None),
        Kind::Http2 => Some(Some(Carries::Http2)),
        Kind::Tls(hello) => {
            let by_name = hello.sni.and_then(|name| worker.services.by_host(worker, &name, port));
            Some(by_name.map(Carries::Bytes))
        }
        // Requests to nobody we know pass as the bytes that they are or, where nothing passes, are told so.
        Kind::Http1 => {
            let to_us = by_address.is_some() || worker.config().outbound.unmatched == Unmatched::Reject;
            match detect::host_header(bytes) {
                HostHeader::More => None,
                HostHeader::Is(host) => {
                    Some((to_us || worker.services.knows(worker, &host, port)).then_some(Carries::Http1))
                }
                HostHeader::None => Some(to_us.then_some(Carries::Http1)),
            }
        }
    }
}

/// Ends a connection with a reset, and says why.
fn refuse(worker: &Worker, stream: &impl AsFd, refused: &ConnectError) {
    tracing::warn!(reason = refused.reason.code(), "outbound connection ended: {refused}");
    worker.metrics.error(Direction::Outbound, refused.reason.code());
    listen::reset_on_close(stream);
}

/// Whether connections to no known service may pass.
fn passthrough_allowed(worker: &Worker, destination: SocketAddr) -> Result<(), ConnectError> {
    match worker.config().outbound.unmatched {
        Unmatched::Passthrough => Ok(()),
        Unmatched::Reject => Err(ConnectError::new(
            Reason::UnknownService,
            format_args!("{destination} belongs to no service and outbound.unmatched is reject"),
        )),
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        Self::new(Reason::UpstreamReset, format_args!("the workload's connection broke: {e}"))
    }
}
