//! How a refusal is told: to the caller as a gRPC status, to the metrics as a word.
//!
//! The caller learns what it did wrong; what is wrong with the CA goes to the CA's log.

use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataMap};

use super::metrics::Outcome;
use crate::{
    attest::Refusal,
    authority::{AuthorityError, RequestError},
    issue::IssueError,
    limits::Exceeded,
    store::StoreGone,
};

/// A request that brings no certificate.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: Status,
    pub(super) outcome: Outcome,
    /// The rate limit that was met.
    pub(super) limit: Option<Exceeded>,
}

impl Refused {
    fn caller(code: Code, reason: &'static str, words: impl Into<String>) -> Self {
        Self { status: Status::new(code, words), outcome: Outcome::Refused(reason), limit: None }
    }

    fn own(code: Code, reason: &'static str, words: impl Into<String>) -> Self {
        Self { status: Status::new(code, words), outcome: Outcome::Failed(reason), limit: None }
    }

    /// A rate limit; tells when to come back as HTTP's `retry-after` in seconds and as gRPC's pushback in milliseconds.
    pub(super) fn too_many(limit: Exceeded, wait: Duration) -> Self {
        // Rounded up: who comes back when told finds room.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let mut metadata = MetadataMap::new();
        metadata.insert("retry-after", seconds.into());
        metadata.insert("grpc-retry-pushback-ms", (seconds * 1000).into());
        let words = format!("{limit}; try again in {seconds} s");
        Self {
            status: Status::with_metadata(Code::ResourceExhausted, words, metadata),
            outcome: Outcome::Refused("rate_limited"),
            limit: Some(limit),
        }
    }

    /// The validity asked for makes no sense.
    pub(super) fn negative_validity() -> Self {
        let words = "validity_duration is negative; send seconds, or 0 for the default";
        Self::caller(Code::InvalidArgument, "lifetime", words)
    }

    /// Somebody else's identity was asked for.
    pub(super) fn impersonation() -> Self {
        let words = "this CA issues for the caller alone and not for an ImpersonatedIdentity; let each workload enrol with its own token";
        Self::caller(Code::PermissionDenied, "impersonation", words)
    }

    /// Whether the caller did something that an honest one does not do often.
    pub(super) fn is_callers_fault(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(_)) && self.limit.is_none()
    }
}

impl From<RequestError> for Refused {
    fn from(error: RequestError) -> Self {
        Self::caller(Code::InvalidArgument, "request", error.to_string())
    }
}

impl From<StoreGone> for Refused {
    fn from(gone: StoreGone) -> Self {
        let reason = match gone {
            StoreGone::Busy => "busy",
            StoreGone::Closed => "stopping",
        };
        Self::own(Code::Unavailable, reason, gone.to_string())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let words = refusal.to_string();
        match refusal {
            Refusal::Nothing
            | Refusal::NotBearer
            | Refusal::TokenTooLong(_)
            | Refusal::NoServiceAccounts
            | Refusal::ServiceAccountToken { .. }
            | Refusal::UnknownToken
            | Refusal::TokenUsed(_)
            | Refusal::TokenRevoked(_)
            | Refusal::TokenExpired(_)
            | Refusal::CertificateExpired(_) => Self::caller(Code::Unauthenticated, refusal.reason(), words),
            Refusal::CertificateRevoked(_)
            | Refusal::KeyUsed(_)
            | Refusal::Blocked { .. }
            | Refusal::Certificate(_)
            | Refusal::Subject(_) => Self::caller(Code::PermissionDenied, refusal.reason(), words),
            Refusal::Unreachable(why) => {
                tracing::error!(%why, "cannot examine a service-account token");
                let words = "the cluster cannot be asked about this token at the moment; the CA's log says why";
                Self::own(Code::Unavailable, "unreachable", words)
            }
            Refusal::TooMany { limit, wait } => Self::too_many(limit, wait),
            Refusal::Store(error) => broken(&error),
        }
    }
}

impl From<IssueError> for Refused {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Refused(refusal) => refusal.into(),
            IssueError::Authority(error) => match error {
                AuthorityError::Subject(_) => Self::caller(Code::PermissionDenied, "subject", error.to_string()),
                AuthorityError::Lifetime { .. } => Self::caller(Code::InvalidArgument, "lifetime", error.to_string()),
                AuthorityError::IssuerExpired { .. } => {
                    Self::own(Code::FailedPrecondition, "issuer_expired", error.to_string())
                }
                AuthorityError::Retired { .. } => Self::own(Code::Unavailable, "retired", error.to_string()),
                AuthorityError::Missing { .. }
                | AuthorityError::Exists { .. }
                | AuthorityError::Served { .. }
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
                | AuthorityError::NothingActive
                | AuthorityError::RootPrepared { .. }
                | AuthorityError::NotPublished { .. }
                | AuthorityError::UnderRetiredRoot { .. }
                | AuthorityError::ChangedMeanwhile
                | AuthorityError::NoAuthority { .. }
                | AuthorityError::NotARoot { .. }
                | AuthorityError::RootActive { .. }
                | AuthorityError::RootUnused { .. }
                | AuthorityError::NotTainted { .. }
                | AuthorityError::StillSigning { .. }
                | AuthorityError::IntermediateActive { .. }
                | AuthorityError::StillUsed { .. }
                | AuthorityError::AlreadySo { .. }
                | AuthorityError::Bundle { .. }
                | AuthorityError::NoCertificate { .. }
                | AuthorityError::IsAuthority { .. }
                | AuthorityError::Expired { .. }
                | AuthorityError::UnknownIssuer { .. }
                | AuthorityError::Store(_)
                | AuthorityError::NoMemory(_)
                | AuthorityError::Crypto(_)
                | AuthorityError::Signing(_)
                | AuthorityError::Random => broken(&error),
            },
            IssueError::Store(error) => broken(&error),
        }
    }
}

fn broken(error: &dyn std::error::Error) -> Refused {
    tracing::error!(%error, "cannot issue");
    Refused::own(Code::Unavailable, "broken", "the CA cannot issue at the moment; its log says why")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_tells_when_to_come_back_and_is_not_charged_as_a_failure() {
        let refused = Refused::too_many(Exceeded::Failures, Duration::from_millis(1200));
        assert_eq!(refused.status.code(), Code::ResourceExhausted);
        assert_eq!(refused.status.metadata().get("retry-after").unwrap(), "2");
        assert_eq!(refused.status.metadata().get("grpc-retry-pushback-ms").unwrap(), "2000");
        assert!(!refused.is_callers_fault());
        assert!(Refused::from(Refusal::UnknownToken).is_callers_fault());
        assert!(!Refused::from(StoreGone::Busy).is_callers_fault());
    }
}
