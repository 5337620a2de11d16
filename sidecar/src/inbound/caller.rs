//! Who calls: a verified workload, or somebody in the clear.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use http::HeaderValue;
use outrigger_identity::SpiffeId;
use sha2::{Digest, Sha256};

use crate::{
    config::InboundMode,
    http::client::ConnectError,
    reason::Reason,
    telemetry::{Direction, RequestMetrics},
    tls::{PeerRefusal, TlsFailure},
    worker::Worker,
};

/// The caller of one connection.
#[derive(Debug)]
pub struct Caller {
    address: SocketAddr,
    id: Option<SpiffeId>,
    allowed: bool,
    /// Paths that a caller without identity may read.
    open_paths: Option<Vec<String>>,
    certificate: Option<HeaderValue>,
    metrics: RefCell<Option<Rc<RequestMetrics>>>,
}

impl Caller {
    /// A workload whose certificate was verified.
    pub(super) fn mesh(
        worker: &Worker,
        address: SocketAddr,
        id: SpiffeId,
        certificate: Option<&[u8]>,
        allowed: bool,
    ) -> Self {
        let certificate = client_cert(worker, &id, certificate);
        Self { address, id: Some(id), allowed, open_paths: None, certificate, metrics: RefCell::default() }
    }

    /// Somebody in the clear, at the application's port `port`.
    pub(super) fn plaintext(worker: &Worker, address: SocketAddr, port: u16) -> Self {
        let inbound = &worker.inbound;
        let allowed = inbound.mode(port) == InboundMode::Permissive;
        let open_paths = inbound.ports.get(&port).map(|p| p.plaintext_paths.clone());
        Self { address, id: None, allowed, open_paths, certificate: None, metrics: RefCell::default() }
    }

    /// Whether it was authenticated.
    pub fn is_mesh(&self) -> bool {
        self.id.is_some()
    }

    /// Whether it may call at all.
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// `x-forwarded-client-cert` for its requests, in Envoy's format.
    pub fn certificate(&self) -> Option<&HeaderValue> {
        self.certificate.as_ref()
    }

    /// Whether it may make this request; where not, why.
    pub fn authorize<B>(&self, request: &http::Request<B>, destination: SocketAddr) -> Result<(), (Reason, String)> {
        if self.allowed {
            return Ok(());
        }
        if self.is_mesh() {
            return Err((Reason::NotAllowed, self.refusal(destination)));
        }
        let reading = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
        let path = request.uri().path();
        if reading && self.open_paths.as_ref().is_some_and(|open| open.iter().any(|p| p == path)) {
            return Ok(());
        }
        Err((Reason::MeshOnly, self.refusal(destination)))
    }

    /// The words for a caller that may not call.
    pub fn refusal(&self, destination: SocketAddr) -> String {
        let port = destination.port();
        match &self.id {
            Some(id) => format!("{id} may not call port {port}"),
            None => format!(
                "{} called port {port} in plaintext, and this workload takes calls from other workloads of the mesh only",
                self.address.ip()
            ),
        }
    }

    /// The error for a peer that was let in and would not be today, counted.
    pub(super) fn refused_by_now(&self, worker: &Worker, refusal: &PeerRefusal) -> ConnectError {
        let failure = TlsFailure::from(refusal);
        worker.metrics.tls_failure(Direction::Inbound, failure.code);
        let who = self.id.as_ref().map_or("", SpiffeId::as_str);
        let text = format_args!("no mTLS with {} ({who}) any more: {}", self.address, failure.message);
        ConnectError::new(Reason::TlsFailed, text)
    }

    /// Where it calls from.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The metrics of its requests to `port`.
    pub(super) fn metrics(&self, worker: &Worker, port: u16) -> Rc<RequestMetrics> {
        let mut metrics = self.metrics.borrow_mut();
        let metrics = metrics.get_or_insert_with(|| {
            let peer = self.id.as_ref().map_or("", SpiffeId::as_str);
            worker.metrics.requests(Direction::Inbound, &port.to_string(), peer)
        });
        Rc::clone(metrics)
    }
}

/// Envoy's `x-forwarded-client-cert`: By is who was called, Hash the SHA-256 of the caller's certificate, URI its id.
fn client_cert(worker: &Worker, id: &SpiffeId, certificate: Option<&[u8]>) -> Option<HeaderValue> {
    let own = worker.shared.identity.current()?;
    let hash = certificate.map(|der| {
        let digest = Sha256::digest(der);
        digest.iter().fold(String::from("Hash="), |mut text, byte| {
            use std::fmt::Write;
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        }) + ";"
    });
    // Ids hold none of the characters that the format would have to quote.
    HeaderValue::from_str(&format!("By={};{}URI={id}", own.id, hash.unwrap_or_default())).ok()
}
