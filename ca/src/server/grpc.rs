//! `CreateCertificate`: reads the request, asks [`issue`] and words the answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrigger_identity::proto::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use crate::{
    attest::{Evidence, Refusal},
    authority::{Authority, AuthorityError, DEFAULT_TTL, RequestedKey, rfc3339},
    issue::{self, IssueError, Issued},
    store::Store,
};

/// What the TLS layer knows of the caller; put into each request's extensions by the connection.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// Where the connection comes from. For the log; it proves nothing.
    pub address: SocketAddr,
    /// The client certificate, verified against our root.
    pub certificate: Option<CertificateDer<'static>>,
}

#[derive(Clone)]
pub(super) struct Enrolment {
    authority: Arc<Authority>,
    store: Store,
}

impl Enrolment {
    pub(super) fn new(authority: Arc<Authority>, store: Store) -> Self {
        Self { authority, store }
    }

    async fn enrol(
        &self,
        peer: PeerCertificate,
        authorization: Option<String>,
        request: IstioCertificateRequest,
    ) -> Result<Issued, Status> {
        let evidence = Evidence::of(authorization.as_deref(), peer.certificate)
            .map_err(|e| Status::unauthenticated(e.to_string()))?;
        // The token is hashed; the text is not needed any more.
        drop(authorization);
        let key = RequestedKey::from_csr_pem(&request.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(0) => DEFAULT_TTL,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                return Err(Status::invalid_argument(
                    "validity_duration is negative; send seconds, or 0 for the default",
                ));
            }
        };
        let authority = Arc::clone(&self.authority);
        let now = OffsetDateTime::now_utc();
        self.store
            .transaction(move |tx| issue::on_evidence(tx, &authority, &evidence, &key, ttl, now))
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?
            .map_err(status_of)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Enrolment {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<PeerCertificate>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection was not described"))?;
        let address = peer.address;
        let authorization = match request.metadata().get("authorization").map(|value| value.to_str()) {
            Some(Ok(text)) => Some(text.to_owned()),
            Some(Err(_)) => return Err(Status::unauthenticated(Refusal::NotBearer.to_string())),
            None => None,
        };
        match self.enrol(peer, authorization, request.into_inner()).await {
            Ok(issued) => {
                let certificate = issued.certificate;
                tracing::info!(
                    peer = %address,
                    id = issued.id.as_ref().map(|id| id.as_str()),
                    serial = certificate.serial,
                    credential = issued.credential.as_str(),
                    not_after = rfc3339(certificate.not_after),
                    "certificate issued"
                );
                let intermediate = self.authority.intermediate_pem().to_owned();
                let root = self.authority.bundle_pem().to_owned();
                Ok(Response::new(IstioCertificateResponse { cert_chain: vec![certificate.pem, intermediate, root] }))
            }
            Err(status) => {
                tracing::warn!(peer = %address, code = ?status.code(), reason = status.message(), "request refused");
                Err(status)
            }
        }
    }
}

/// The caller learns what it did wrong; what is wrong with the CA goes to the CA's log.
fn status_of(error: IssueError) -> Status {
    match error {
        IssueError::Refused(refusal) => match refusal {
            Refusal::Nothing
            | Refusal::NotBearer
            | Refusal::UnknownToken
            | Refusal::TokenUsed(_)
            | Refusal::TokenRevoked(_)
            | Refusal::TokenExpired(_)
            | Refusal::CertificateExpired(_) => Status::unauthenticated(refusal.to_string()),
            Refusal::Certificate(_) | Refusal::Subject(_) => Status::permission_denied(refusal.to_string()),
            Refusal::Store(error) => broken(&error),
        },
        IssueError::Authority(error) => match error {
            AuthorityError::Subject(_) => Status::permission_denied(error.to_string()),
            AuthorityError::IssuerExpired { .. } => Status::failed_precondition(error.to_string()),
            AuthorityError::Lifetime { .. } => Status::invalid_argument(error.to_string()),
            AuthorityError::Missing { .. }
            | AuthorityError::Exists { .. }
            | AuthorityError::File { .. }
            | AuthorityError::Damaged { .. }
            | AuthorityError::Locked { .. }
            | AuthorityError::WrongPassword { .. }
            | AuthorityError::EmptyPassword
            | AuthorityError::OfflineRootInside { .. }
            | AuthorityError::IntermediateOutlivesRoot { .. }
            | AuthorityError::RootExpired { .. }
            | AuthorityError::NotTheRoot { .. }
            | AuthorityError::AlreadyPrepared { .. }
            | AuthorityError::NothingPrepared
            | AuthorityError::NoMemory(_)
            | AuthorityError::Crypto(_)
            | AuthorityError::Signing(_)
            | AuthorityError::Random => broken(&error),
        },
        IssueError::Store(error) => broken(&error),
    }
}

fn broken(error: &dyn std::error::Error) -> Status {
    tracing::error!(%error, "cannot issue");
    Status::unavailable("the CA cannot issue at the moment; its log says why")
}
