//! How a caller proves who it is. Default deny: what is not one of these kinds of evidence is no evidence, and
//! where a connection comes from, loopback included, proves nothing.

mod https;
mod join_token;
mod jwks;
mod lost_answer;
mod oidc;
mod renewal;
mod service_account;
mod token_review;

use std::time::Duration;

use outrigger_identity::TrustDomain;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use https::{Https, HttpsError};
pub use join_token::{CreateError, JoinToken, TokenHash, create as create_token, create_in as create_token_in};
pub use jwks::KeySource;
pub(crate) use lost_answer::attest as attest_lost_answer;
pub use oidc::Oidc;
pub use service_account::{DnsTemplate, DnsTemplateError, VouchedAccount};
pub use token_review::TokenReview;

use crate::{
    authority::{Authority, Subject, SubjectError, hex},
    limits::Exceeded,
    store::{CredentialKind, StoreError, Transaction},
};

/// The longest bearer token, in bytes. One of Kubernetes has one to two KiB.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;

/// What a caller shows.
pub enum Credential {
    /// A join token's hash; the token itself is not kept.
    JoinToken(TokenHash),
    /// A token of Kubernetes, not examined yet.
    ServiceAccountToken(Zeroizing<String>),
    /// The client certificate of the connection. The TLS layer has verified its chain to our root, its dates and
    /// its purpose at the handshake.
    Certificate(CertificateDer<'static>),
}

impl Credential {
    /// Picks what counts. A token decides alone: if it is bad, a certificate beside it does not help.
    pub fn of(authorization: Option<&str>, peer: Option<CertificateDer<'static>>) -> Result<Self, Refusal> {
        match (authorization, peer) {
            (Some(header), _) => {
                // The scheme's case does not matter (RFC 9110 section 11.1).
                let token = match header.split_at_checked("Bearer ".len()) {
                    Some((scheme, token)) if scheme.eq_ignore_ascii_case("Bearer ") => token,
                    _ => return Err(Refusal::NotBearer),
                };
                match token.len() {
                    0..=MAX_TOKEN_LEN => {}
                    len => return Err(Refusal::TokenTooLong(len)),
                }
                // A join token is hex behind a prefix; parts joined by dots are how a JWT is written.
                if token.contains('.') {
                    Ok(Self::ServiceAccountToken(Zeroizing::new(token.trim().to_owned())))
                } else {
                    Ok(Self::JoinToken(TokenHash::of(token)))
                }
            }
            (None, Some(certificate)) => Ok(Self::Certificate(certificate)),
            (None, None) => Err(Refusal::Nothing),
        }
    }

    /// Its kind, as the metrics have it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::JoinToken(_) => "token",
            Self::ServiceAccountToken(_) => "service_account",
            Self::Certificate(_) => "certificate",
        }
    }
}

/// What has been shown and needs nobody else's word any more.
pub enum Evidence {
    /// A join token's hash.
    JoinToken(TokenHash),
    /// A service account that the cluster vouches for.
    ServiceAccount(VouchedAccount),
    /// A certificate of ours.
    Certificate(CertificateDer<'static>),
}

/// One kind of proof, judged in the transaction that records the issuance, and consumed there if it is of the kind that
/// is consumed.
trait Attestor {
    fn attest(&self, tx: &mut Transaction<'_>, authority: &Authority, now: OffsetDateTime)
    -> Result<Attested, Refusal>;
}

impl Evidence {
    /// Every kind and its judge; what is not here is no evidence.
    fn attestor(&self) -> &dyn Attestor {
        match self {
            Self::JoinToken(hash) => hash,
            Self::ServiceAccount(account) => account,
            Self::Certificate(certificate) => certificate,
        }
    }
}

/// Who vouches for tokens of Kubernetes.
pub enum ClusterVoice {
    /// Its API server.
    TokenReview(Box<TokenReview>),
    /// Its signing keys.
    Oidc(Box<Oidc>),
}

/// How tokens of Kubernetes are taken.
pub struct ServiceAccounts {
    /// Who vouches for them.
    pub voice: ClusterVoice,
    /// What DNS names an account may serve.
    pub dns: Vec<DnsTemplate>,
    /// Whether a token that is not bound to a pod is taken.
    pub unbound: bool,
}

impl ServiceAccounts {
    async fn examine(&self, token: &str, trust_domain: &TrustDomain) -> Result<VouchedAccount, Refusal> {
        let (account, kind) = match &self.voice {
            ClusterVoice::TokenReview(review) => (review.examine(token).await?, CredentialKind::Kubernetes),
            ClusterVoice::Oidc(oidc) => (oidc.examine(token).await?, CredentialKind::Oidc),
        };
        if account.pod.is_none() && !self.unbound {
            let words = "it is bound to no pod, so it outlives every one; project one into the pod, or serve with --k8s-allow-unbound";
            return Err(Refusal::token("token_unbound", words));
        }
        VouchedAccount::new(kind, &account, trust_domain, &self.dns)
    }
}

/// What this CA takes from callers over the network: join tokens and own certificates always, tokens of Kubernetes
/// if it was told who vouches for them.
#[derive(Default)]
pub struct Attestation {
    service_accounts: Option<ServiceAccounts>,
}

impl Attestation {
    /// Takes tokens of Kubernetes too.
    pub fn with_service_accounts(service_accounts: ServiceAccounts) -> Self {
        Self { service_accounts: Some(service_accounts) }
    }

    /// Looks whether whoever vouches for tokens can be heard, as far as that shows without a token. `Err`: why not; a
    /// file that cannot be read stays so, while a server may come back.
    pub async fn warm_up(&self) -> Result<(), String> {
        match self.service_accounts.as_ref().map(|accounts| &accounts.voice) {
            Some(ClusterVoice::Oidc(oidc)) => oidc.load().await.map(drop),
            Some(ClusterVoice::TokenReview(_)) | None => Ok(()),
        }
    }

    /// Does what needs somebody else's word, outside of any transaction: nobody waits for the network with the
    /// database locked.
    pub async fn examine(&self, credential: Credential, trust_domain: &TrustDomain) -> Result<Evidence, Refusal> {
        match credential {
            Credential::JoinToken(hash) => Ok(Evidence::JoinToken(hash)),
            Credential::Certificate(certificate) => Ok(Evidence::Certificate(certificate)),
            Credential::ServiceAccountToken(token) => {
                let accounts = self.service_accounts.as_ref().ok_or(Refusal::NoServiceAccounts)?;
                accounts.examine(&token, trust_domain).await.map(Evidence::ServiceAccount)
            }
        }
    }
}

/// Who the caller turned out to be.
#[derive(Debug)]
pub struct Attested {
    /// The identity, from the CA's own records.
    pub subject: Subject,
    /// By what right.
    pub kind: CredentialKind,
    /// The token's hash, the serial of the certificate shown, or account, pod and token of Kubernetes.
    pub reference: String,
}

/// Why a caller is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Neither a token nor a certificate.
    #[error(
        "no credential: send a join token as \"authorization: Bearer …\", or connect with the certificate to renew"
    )]
    Nothing,
    /// Another scheme than Bearer.
    #[error("the authorization metadata is not \"Bearer <token>\"")]
    NotBearer,
    /// Longer than [`MAX_TOKEN_LEN`].
    #[error("the bearer token is {0} bytes long; the limit is {MAX_TOKEN_LEN}")]
    TokenTooLong(usize),
    /// A token of Kubernetes, and nobody to vouch for it.
    #[error(
        "this CA takes no tokens of Kubernetes; serve with --k8s-api or --oidc-issuer, or enrol with a join token from \"outrigger-ca token create\""
    )]
    NoServiceAccounts,
    /// A token of Kubernetes that is not good.
    #[error("the service-account token is not accepted: {detail}")]
    ServiceAccountToken {
        /// One word.
        reason: &'static str,
        /// What is wrong with it, and what to do.
        detail: String,
    },
    /// Nobody could be asked; for the CA's log.
    #[error("{0}")]
    Unreachable(String),
    /// No such token here.
    #[error("the join token is unknown to this CA; make one with \"outrigger-ca token create\" on this CA")]
    UnknownToken,
    /// Spent before.
    #[error("the join token was already used at {0}; make a new one with \"outrigger-ca token create\"")]
    TokenUsed(String),
    /// Taken back by an operator.
    #[error("the join token was revoked at {0}; make a new one with \"outrigger-ca token create\"")]
    TokenRevoked(String),
    /// Too late.
    #[error("the join token expired at {0}; make a new one with \"outrigger-ca token create\"")]
    TokenExpired(String),
    /// The certificate shown breaks a rule.
    #[error("the client certificate cannot be renewed: {0}; enrol again with a join token")]
    Certificate(&'static str),
    /// The certificate shown is over.
    #[error("the client certificate expired at {0}; enrol again with a join token")]
    CertificateExpired(String),
    /// The certificate shown was taken back.
    #[error("the client certificate was revoked at {0} and renews nothing; enrol again with a join token")]
    CertificateRevoked(String),
    /// Somebody has a certificate for the key.
    #[error(
        "there is a certificate for the request's key already (SHA-256 {}); make a new key for each enrolment, and look at who else has this one", hex(.0)
    )]
    KeyUsed([u8; 32]),
    /// An operator let nothing be issued for the id.
    #[error(
        "{id} is blocked since {at}; if it shall have certificates again: \"outrigger-ca revoke --unblock --id {id}\""
    )]
    Blocked {
        /// The id.
        id: String,
        /// Since when.
        at: String,
    },
    /// The records hold an identity that this CA may not sign for.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// It proved who it is, and a limit on certificates is met.
    #[error("{limit}; try again in {wait:?}")]
    TooMany {
        /// Which limit.
        limit: Exceeded,
        /// When there is room again.
        wait: Duration,
    },
    /// The records could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refusal {
    fn token(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::ServiceAccountToken { reason, detail: detail.into() }
    }

    fn wrong_audience(wanted: &[String]) -> Self {
        let detail = format!(
            "it is meant for another audience; project one for the audience {} into the pod",
            wanted.join(" or ")
        );
        Self::token("token_audience", detail)
    }

    /// One word for the metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Nothing => "no_credential",
            Self::NotBearer => "not_bearer",
            Self::TokenTooLong(_) => "token_too_long",
            Self::NoServiceAccounts => "no_service_accounts",
            Self::ServiceAccountToken { reason, .. } => reason,
            Self::Unreachable(_) => "unreachable",
            Self::UnknownToken => "token_unknown",
            Self::TokenUsed(_) => "token_used",
            Self::TokenRevoked(_) => "token_revoked",
            Self::TokenExpired(_) => "token_expired",
            Self::Certificate(_) => "certificate",
            Self::CertificateExpired(_) => "certificate_expired",
            Self::CertificateRevoked(_) => "certificate_revoked",
            Self::KeyUsed(_) => "key_used",
            Self::Blocked { .. } => "blocked",
            Self::Subject(_) => "subject",
            Self::TooMany { .. } => "rate_limited",
            Self::Store(_) => "broken",
        }
    }
}

/// Judges evidence inside the transaction that will record the issuance.
pub fn attest(
    tx: &mut Transaction<'_>,
    authority: &Authority,
    evidence: &Evidence,
    now: OffsetDateTime,
) -> Result<Attested, Refusal> {
    evidence.attestor().attest(tx, authority, now)
}

#[cfg(test)]
mod tests;
