//! Why a peer's certificate is refused, and how that travels through rustls.
//!
//! rustls chooses the alert that the peer gets by the kind of error that a verifier returns. Expiry, an unknown root,
//! a wrong name, a wrong purpose and a bad signature have kinds, and alerts, of their own. The rules that only SPIFFE has
//! have none: they travel whole inside [`CertificateError::Other`], and the peer gets `certificate_unknown`, which no
//! other case causes. Both ways [`explain`](super::explain) gives the operator the code and the words back.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_identity::TrustDomain;
use rustls::{
    CertificateError, Error, OtherError, PeerIncompatible,
    pki_types::{ServerName, UnixTime},
};

use crate::identity::{CertificateFault, PathFault};

/// Why we refuse a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// Its chain leads to none of our roots.
    #[error(
        "its certificate leads to none of the roots in our bundle.pem; compare \"outrigger-ca bundle show\" with bundle.pem on both sides"
    )]
    UnknownRoot,
    /// A certificate of its chain is past its end.
    #[error(
        "its certificate expired{}; look at its renewal (/certs of its admin address) and at both clocks", ago(*.not_after, *.now)
    )]
    Expired {
        /// End of validity, where known.
        not_after: Option<UnixTime>,
        /// When it was looked at.
        now: Option<UnixTime>,
    },
    /// A certificate of its chain is before its beginning.
    #[error("its certificate is not valid yet{}; compare both clocks", ahead(*.not_before, *.now))]
    NotYetValid {
        /// Beginning of validity, where known.
        not_before: Option<UnixTime>,
        /// When it was looked at.
        now: Option<UnixTime>,
    },
    /// A certificate of its chain is on its issuer's revocation list.
    #[error(
        "its certificate, or an intermediate of its chain, was revoked by its issuer; look at \"outrigger-ca log list\" for why, and enrol that workload anew"
    )]
    Revoked,
    /// Its id belongs to another trust domain.
    #[error(
        "its id {id} is not in our trust domain {ours}; look at identity.trust_domain and at who issued its certificate"
    )]
    WrongTrustDomain {
        /// The peer's id.
        id: String,
        /// The trust domain that peers must belong to.
        ours: TrustDomain,
    },
    /// It has more than one URI SAN.
    #[error("its certificate has {} URI names ({}) where exactly one is allowed; issue it again with one SPIFFE id", .0.len(), .0.join(", "))]
    ManyUriSans(Vec<String>),
    /// It has no SPIFFE id.
    #[error("its certificate carries no usable SPIFFE id: {0}; issue it as a workload certificate")]
    NoSpiffeId(String),
    /// It is somebody else than whom we asked for.
    #[error("{0}")]
    WrongName(WrongName),
    /// It is none of those that may serve what we asked for.
    #[error(
        "its id {id} is none of those listed for {host} ({}); look at the service's identities and endpoints", .listed.join(", ")
    )]
    WrongId {
        /// The host that was asked for.
        host: String,
        /// The ids listed for it.
        listed: Vec<String>,
        /// The peer's id.
        id: String,
    },
    /// It showed no certificate.
    #[error("it showed no certificate; is there a sidecar in front of it, and is that one enrolled?")]
    NoCertificate,
    /// It showed a CA's certificate.
    #[error("it showed a CA's certificate as its own; issue a workload certificate for it")]
    CaCertificate,
    /// A key usage forbids what it does.
    #[error("its certificate may not be used for this: {0}; issue it again")]
    KeyUsage(String),
    /// An intermediate of its chain has a workload's id.
    #[error(
        "an intermediate of its chain has a workload's SPIFFE id, so that a workload could sign for others; look at who issued it"
    )]
    IssuerId,
    /// Its extended key usage does not allow what it does.
    #[error("its certificate's extended key usage must allow serverAuth and clientAuth, or be absent; issue it again")]
    Purpose,
    /// A certificate of its chain is signed in a way that is not accepted.
    #[error(
        "a certificate of its chain is signed by {0}, which is not accepted; issue it again with SHA-256 or better"
    )]
    SignatureAlgorithm(String),
    /// A signature does not fit.
    #[error(
        "a signature in its certificate chain or handshake is wrong: the certificate was altered or its key is another one"
    )]
    BadSignature,
    /// No application protocol in common.
    #[error(
        "it speaks neither outrigger-h2 nor outrigger-tcp (ALPN); it is no sidecar of this mesh, or of another version"
    )]
    Alpn,
    /// No TLS 1.3.
    #[error("it does not offer TLS 1.3, the only version spoken in the mesh; it is no sidecar of this mesh")]
    Version,
    /// Its certificate or its messages cannot be read.
    #[error("what it sent cannot be read: {0}")]
    Malformed(String),
}

/// The wanted and the presented names of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongName {
    /// The host that was asked for.
    pub expected: String,
    /// The names in the certificate: DNS SANs, then the id.
    pub presented: Vec<String>,
}

impl std::fmt::Display for WrongName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "it is not {}: its certificate is for {}; look at the service's endpoints, and at the DNS names of its certificate",
            self.expected,
            self.presented.join(", ")
        )
    }
}

impl PeerRefusal {
    /// The stable word for metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownRoot => "unknown_root",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::ManyUriSans(_) => "many_uri_sans",
            Self::NoSpiffeId(_) => "no_spiffe_id",
            Self::WrongName(_) => "wrong_name",
            Self::WrongId { .. } => "wrong_id",
            Self::NoCertificate => "no_certificate",
            Self::CaCertificate => "ca_certificate",
            Self::KeyUsage(_) | Self::Purpose => "key_usage",
            Self::IssuerId => "issuer_id",
            Self::BadSignature => "bad_signature",
            Self::SignatureAlgorithm(_) => "signature_algorithm",
            Self::Alpn => "alpn",
            Self::Version => "version",
            Self::Malformed(_) => "malformed",
        }
    }

    /// The refusal behind an error of our own side of a handshake.
    pub fn find(error: &Error) -> Option<Self> {
        match error {
            Error::InvalidCertificate(certificate) => Some(Self::of_certificate(certificate)),
            Error::NoCertificatesPresented => Some(Self::NoCertificate),
            Error::NoApplicationProtocol => Some(Self::Alpn),
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Some(Self::Version),
            Error::Other(OtherError(inner)) => inner.downcast_ref::<Self>().cloned(),
            _ => None,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as C;
        match error {
            C::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(refusal) => refusal.clone(),
                None => Self::Malformed(inner.to_string()),
            },
            C::UnknownIssuer => Self::UnknownRoot,
            C::Revoked => Self::Revoked,
            C::Expired => Self::Expired { not_after: None, now: None },
            C::ExpiredContext { time, not_after } => Self::Expired { not_after: Some(*not_after), now: Some(*time) },
            C::NotValidYet => Self::NotYetValid { not_before: None, now: None },
            C::NotValidYetContext { time, not_before } => {
                Self::NotYetValid { not_before: Some(*not_before), now: Some(*time) }
            }
            C::NotValidForNameContext { expected, presented } => {
                Self::WrongName(WrongName { expected: expected.to_str().into_owned(), presented: presented.clone() })
            }
            C::InvalidPurposeContext { .. } | C::InvalidPurpose => Self::Purpose,
            C::BadSignature
            | C::UnsupportedSignatureAlgorithmContext { .. }
            | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::BadSignature,
            other => Self::Malformed(other.to_string()),
        }
    }

    /// The error for rustls, which decides what the peer is told.
    pub fn into_rustls(self, now: UnixTime) -> Error {
        let error = match self {
            Self::UnknownRoot => CertificateError::UnknownIssuer,
            Self::Expired { not_after: Some(not_after), .. } => {
                CertificateError::ExpiredContext { time: now, not_after }
            }
            Self::NotYetValid { not_before: Some(not_before), .. } => {
                CertificateError::NotValidYetContext { time: now, not_before }
            }
            Self::Revoked => CertificateError::Revoked,
            Self::BadSignature => CertificateError::BadSignature,
            Self::WrongName(WrongName { ref expected, ref presented }) => {
                match ServerName::try_from(expected.clone()) {
                    Ok(expected) => CertificateError::NotValidForNameContext { expected, presented: presented.clone() },
                    Err(_) => CertificateError::Other(OtherError(Arc::new(self))),
                }
            }
            Self::Purpose => CertificateError::InvalidPurpose,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Error::InvalidCertificate(error)
    }

    pub(super) fn of_path(fault: PathFault, now: UnixTime) -> Self {
        match fault {
            PathFault::UnknownRoot => Self::UnknownRoot,
            PathFault::Revoked => Self::Revoked,
            PathFault::Expired { not_after } => Self::Expired { not_after: Some(not_after), now: Some(now) },
            PathFault::NotYetValid { not_before } => Self::NotYetValid { not_before: Some(not_before), now: Some(now) },
            PathFault::BadSignature => Self::BadSignature,
            PathFault::SignatureAlgorithm(name) => Self::SignatureAlgorithm(name),
            PathFault::CaCertificate => Self::CaCertificate,
            PathFault::KeyUsage(why) => Self::KeyUsage(why),
            PathFault::IssuerId => Self::IssuerId,
            PathFault::Purpose => Self::Purpose,
            PathFault::Malformed(why) => Self::Malformed(why),
        }
    }
}

impl From<CertificateFault> for PeerRefusal {
    fn from(fault: CertificateFault) -> Self {
        match fault {
            CertificateFault::Malformed(why) => Self::Malformed(why),
            CertificateFault::ManyUriSans(uris) => Self::ManyUriSans(uris),
            CertificateFault::NoUriSan => Self::NoSpiffeId("it has no URI name".to_owned()),
            CertificateFault::BadId { uri, why } => Self::NoSpiffeId(format!("\"{uri}\" {why}")),
            CertificateFault::CaCertificate => Self::CaCertificate,
            CertificateFault::NoDigitalSignature => Self::KeyUsage(fault.to_string()),
            CertificateFault::NamesNotCritical => Self::Malformed(fault.to_string()),
            CertificateFault::KeyUsage(which) => Self::KeyUsage(format!("its key usage has {which}")),
        }
    }
}

fn seconds_between(from: UnixTime, to: UnixTime) -> String {
    crate::identity::words_for(Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())))
}

fn ago(not_after: Option<UnixTime>, now: Option<UnixTime>) -> String {
    match (not_after, now) {
        (Some(end), Some(now)) => format!(" {} ago ({})", seconds_between(end, now), written(end)),
        _ => String::new(),
    }
}

fn ahead(not_before: Option<UnixTime>, now: Option<UnixTime>) -> String {
    match (not_before, now) {
        (Some(start), Some(now)) => format!(" (in {}: {})", seconds_between(now, start), written(start)),
        _ => String::new(),
    }
}

fn written(time: UnixTime) -> String {
    crate::identity::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}
