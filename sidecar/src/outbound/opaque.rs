//! The workload's opaque connections: bytes to an endpoint of the service that has this address, or to the original
//! destination.

use std::rc::Rc;

use bytes::BytesMut;
use tokio::{net::TcpStream, time::Instant};

use super::{
    Ends, affinity, connect, endpoint::Endpoint, passthrough_allowed, policy::Policy, refuse, retries::Retries,
    service::Service,
};
use crate::{
    balance::Candidate,
    http::client::ConnectError,
    net::{Upstream, copy, listen},
    reason::Reason,
    resilience::{Outcome, Permit},
    telemetry::{Direction, Transport},
    tls::{self, Standing, TlsFailure},
    worker::{Phase, Worker},
};

/// A connection to an upstream and what it counts against.
#[derive(Debug)]
pub(super) struct Dialled {
    io: Upstream,
    endpoint: Option<Rc<Endpoint>>,
    service: Option<Rc<Service>>,
    standing: Option<Standing>,
    _permit: Option<Permit>,
}

impl tokio::io::AsyncRead for Dialled {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.load().end(Instant::now(), None);
        }
    }
}

/// Connects to an endpoint of `service`, to another one when that fails, or without a service to `destination`.
pub(super) async fn dial(
    worker: &Rc<Worker>,
    service: Option<Rc<Service>>,
    ends: Ends,
) -> Result<Dialled, ConnectError> {
    let Some(service) = service else {
        passthrough_allowed(worker, ends.destination)?;
        let direct = Service::passthrough(worker, ends.destination);
        let endpoint = direct.pick(&[], None).await?;
        let io = Upstream::Plain(connect::plain(&direct, &endpoint).await?);
        return Ok(Dialled { io, endpoint: None, service: None, standing: None, _permit: None });
    };
    let mut retries = Retries::new(Policy::of(&service));
    let hash = affinity::of_connection(&service.spec.load_balancing.hash, ends.peer.ip());
    loop {
        let endpoint = service.pick(retries.tried(), hash).await?;
        let permit = service.breakers.try_connection().map_err(|full| connect::overflow(&service, full.which()))?;
        let connected = if service.is_mesh() {
            let mesh = connect::mesh(worker, &service, &endpoint, tls::ALPN_TCP).await;
            mesh.map(|mesh| (Upstream::Mtls(Box::new(mesh.io)), mesh.standing))
        } else {
            connect::plain(&service, &endpoint).await.map(|io| (Upstream::Plain(io), None))
        };
        match connected {
            Ok((io, standing)) => {
                service.record(&endpoint, Outcome::Success);
                endpoint.load().begin(Instant::now());
                drop(retries);
                let endpoint = Some(endpoint);
                return Ok(Dialled { io, endpoint, service: Some(service), standing, _permit: Some(permit) });
            }
            Err(e) if e.reason == Reason::NoCertificate => return Err(e),
            Err(e) => {
                service.record(&endpoint, Outcome::LocalOrigin);
                // Nothing was sent yet, so another endpoint may have it.
                if !retries.granted() {
                    return Err(e);
                }
                drop(permit);
                retries.wait(endpoint, e.reason.code()).await;
            }
        }
    }
}

/// Carries bytes both ways until both sides have ended.
pub(super) async fn carry(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    bytes: BytesMut,
    upstream: Option<(Dialled, BytesMut)>,
    service: Option<Rc<Service>>,
    ends: Ends,
) {
    let (mut upstream, said) = match upstream {
        Some(upstream) => upstream,
        None => match dial(&worker, service, ends).await {
            Ok(upstream) => (upstream, BytesMut::new()),
            Err(refused) => return refuse(&worker, &stream, &refused),
        },
    };
    let transport = match (&upstream.io, &upstream.service) {
        (Upstream::Mtls(_), _) => Transport::Mtls,
        (_, Some(_)) => Transport::Plaintext,
        (_, None) => Transport::Passthrough,
    };
    let metrics = worker.metrics.connections(Direction::Outbound, transport);
    let idle = upstream.service.as_ref().and_then(|s| s.spec.timeouts.tcp_idle.enabled());
    let workload = worker.metrics.connections(Direction::Outbound, Transport::Workload);
    let _busy = worker.busy();
    let standing = upstream.standing.take();
    workload.opened();
    metrics.opened();
    let copying = copy::copy_both(&mut stream, &mut upstream.io, bytes, said, idle, |forth, back| {
        workload.bytes(forth, back);
        metrics.bytes(back, forth);
    });
    let ended = tokio::select! {
        biased;
        (_, ended) = copying => Ok(ended),
        () = worker.reached(Phase::Closing) => Err(Reason::Draining),
        refusal = tls::is_refused(standing) => {
            if let (Some(service), Some(endpoint)) = (&upstream.service, &upstream.endpoint) {
                connect::refused_by_now(&worker, service, endpoint, &TlsFailure::from(&refusal));
            }
            Err(Reason::TlsFailed)
        }
    };
    metrics.closed();
    workload.closed();
    let reason = match ended {
        Ok(copy::Ended::Closed) => return,
        Ok(copy::Ended::FirstBroke(error)) => {
            tracing::debug!(%error, "the workload's connection broke");
            listen::reset_on_close(upstream.io.tcp());
            return;
        }
        Ok(copy::Ended::SecondBroke(error)) => {
            if let Some(service) = &upstream.service {
                let failure = tls::explain(&error);
                if tls::find(&error).is_some() {
                    worker.metrics.tls_failure(Direction::Outbound, failure.code);
                }
                let (name, text) = (&service.spec.name, failure.message);
                tracing::warn!(service = %name, reason = failure.code, "connection to an endpoint broke: {text}");
            }
            Reason::UpstreamReset
        }
        Ok(copy::Ended::Idle) => Reason::IdleTimeout,
        Err(reason) => reason,
    };
    worker.metrics.error(Direction::Outbound, reason.code());
    // The workload must not take a broken connection for a finished one.
    listen::reset_on_close(&stream);
}
