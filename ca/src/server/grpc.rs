//! `CreateCertificate`: reads the request, asks [`issue`] and words the answer.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_identity::proto::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::{
    Live,
    metrics::{Metrics, Outcome, UNKNOWN},
    refusal::Refused,
};
use crate::{
    attest::{Attestation, Credential, Refusal},
    authority::{Authority, DEFAULT_TTL, RequestedKey, rfc3339},
    issue::{self, Issued},
    limits::{Exceeded, Rates, Source},
    store::{Store, Transaction},
};

/// The name under which Istio's message metadata carries the identity of somebody else.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// What the TLS layer knows of the caller; put into each request's extensions by the connection.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Where the connection comes from. For the log; it proves nothing.
    pub address: SocketAddr,
    /// The client certificate, verified against our root.
    pub certificate: Option<CertificateDer<'static>>,
}

#[derive(Clone)]
pub(super) struct Enrolment(Arc<Inner>);

struct Inner {
    live: Arc<Live>,
    store: Store,
    attestation: Attestation,
    rates: Arc<Rates>,
    metrics: Arc<Metrics>,
}

impl Enrolment {
    pub(super) fn new(
        live: Arc<Live>,
        store: Store,
        attestation: Attestation,
        rates: Rates,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner { live, store, attestation, rates: Arc::new(rates), metrics }))
    }
}

impl Inner {
    /// Counts what [`Self::judge`] says, and charges failures.
    async fn enrol(&self, request: Request<IstioCertificateRequest>) -> Result<(Issued, Arc<Authority>), Status> {
        let began = Instant::now();
        let peer = request.extensions().get::<PeerCertificate>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection was not described"))?;
        let (address, source) = (peer.address, Source::from(peer.address.ip()));
        // The handshake has proved more of this caller than its address, so its neighbours' failures do not hold it up.
        let by_address = peer.certificate.is_none() || request.metadata().contains_key("authorization");
        let mut credential = UNKNOWN;
        let judged = match self.rates.may_try(source) {
            Err(wait) if by_address => Err(Refused::too_many(Exceeded::Failures, wait)),
            _ => self.judge(peer, request, &mut credential).await,
        };
        match judged {
            Ok((issued, signer)) => {
                self.metrics.request(credential, Outcome::Issued, began.elapsed());
                let certificate = &issued.certificate;
                tracing::info!(
                    peer = %address,
                    id = issued.id.as_ref().map(|id| id.as_str()),
                    serial = certificate.serial,
                    credential = issued.credential.as_str(),
                    not_after = rfc3339(certificate.not_after),
                    "certificate issued"
                );
                Ok((issued, signer))
            }
            Err(refused) => {
                if refused.is_callers_fault() {
                    self.rates.failed(source);
                }
                if let Some(limit) = refused.limit {
                    self.metrics.limited(limit);
                }
                self.metrics.request(credential, refused.outcome, began.elapsed());
                let status = refused.status;
                tracing::warn!(peer = %address, code = ?status.code(), reason = status.message(), "request refused");
                Err(status)
            }
        }
    }

    async fn judge(
        &self,
        peer: PeerCertificate,
        request: Request<IstioCertificateRequest>,
        credential: &mut &'static str,
    ) -> Result<(Issued, Arc<Authority>), Refused> {
        let authorization = match request.metadata().get("authorization").map(|value| value.to_str()) {
            Some(Ok(text)) => Some(text),
            Some(Err(_)) => return Err(Refusal::NotBearer.into()),
            None => None,
        };
        let shown = Credential::of(authorization, peer.certificate)?;
        *credential = shown.as_str();
        let request = request.into_inner();
        // Istio's node proxies ask on behalf of others. Issuing for the caller instead would be the wrong answer.
        if request.metadata.as_ref().is_some_and(|wishes| wishes.fields.contains_key(IMPERSONATED)) {
            return Err(Refused::impersonation());
        }
        let key = RequestedKey::from_csr_pem(&request.csr)?;
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(0) => DEFAULT_TTL,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Refused::negative_validity()),
        };
        let ttl = ttl.min(self.rates.max_ttl);
        let evidence = self.attestation.examine(shown, self.live.get().trust_domain()).await?;
        let (rates, evidence) = (Arc::clone(&self.rates), Arc::new(evidence));
        let now = OffsetDateTime::now_utc();
        // Charged once, also if the transaction has to be tried again.
        let mut admitted = false;
        let issue = move |tx: &mut Transaction<'_>, authority: &Authority| {
            let admit = |id: &_| {
                if !std::mem::replace(&mut admitted, true) {
                    rates.admit(id).map_err(|(limit, wait)| Refusal::TooMany { limit, wait })?;
                }
                Ok(())
            };
            issue::on_evidence(tx, authority, &evidence, &key, ttl, now, admit)
        };
        Ok(self.live.issue(&self.store, issue).await??)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Enrolment {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (issued, signer) = self.0.enrol(request).await?;
        let (intermediate, root) = (signer.intermediate_pem().to_owned(), signer.root_pem().to_owned());
        let cert_chain = vec![issued.certificate.pem, intermediate, root];
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
