//! How a caller proves who it is. Default deny: what is not one of these kinds of evidence is no evidence, and
//! where a connection comes from, loopback included, proves nothing.

mod join_token;
mod renewal;

use std::time::Duration;

use rusqlite::Transaction;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

pub use join_token::{CreateError, JoinToken, TokenHash, create as create_token};

use crate::{
    authority::{Authority, Subject, SubjectError},
    limits::Exceeded,
    store::{CredentialKind, StoreError},
};

/// What a caller shows.
#[derive(Debug)]
pub enum Evidence {
    /// The hash of a join token; the token itself is not kept.
    Token(TokenHash),
    /// The client certificate of the connection. The TLS layer has verified its chain to our root, its dates and
    /// its purpose at the handshake.
    Certificate(CertificateDer<'static>),
}

impl Evidence {
    /// Picks what counts. A token decides alone: if it is bad, a certificate beside it does not help.
    pub fn of(authorization: Option<&str>, peer: Option<CertificateDer<'static>>) -> Result<Self, Refusal> {
        match (authorization, peer) {
            (Some(header), _) => {
                let token = header.strip_prefix("Bearer ").ok_or(Refusal::NotBearer)?;
                Ok(Self::Token(TokenHash::of(token)))
            }
            (None, Some(certificate)) => Ok(Self::Certificate(certificate)),
            (None, None) => Err(Refusal::Nothing),
        }
    }

    /// By what right a certificate would be issued on it.
    pub fn kind(&self) -> CredentialKind {
        match self {
            Self::Token(_) => CredentialKind::Token,
            Self::Certificate(_) => CredentialKind::Certificate,
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
    /// The token's hash or the serial of the certificate shown.
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
    /// One word for the metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Nothing => "no_credential",
            Self::NotBearer => "not_bearer",
            Self::UnknownToken => "token_unknown",
            Self::TokenUsed(_) => "token_used",
            Self::TokenRevoked(_) => "token_revoked",
            Self::TokenExpired(_) => "token_expired",
            Self::Certificate(_) => "certificate",
            Self::CertificateExpired(_) => "certificate_expired",
            Self::CertificateRevoked(_) => "certificate_revoked",
            Self::Blocked { .. } => "blocked",
            Self::Subject(_) => "subject",
            Self::TooMany { .. } => "rate_limited",
            Self::Store(_) => "broken",
        }
    }
}

/// Judges evidence inside the transaction that will record the issuance, and consumes it there if it is of the kind
/// that is consumed.
pub fn attest(
    tx: &Transaction<'_>,
    authority: &Authority,
    evidence: &Evidence,
    now: OffsetDateTime,
) -> Result<Attested, Refusal> {
    match evidence {
        Evidence::Token(hash) => join_token::spend(tx, hash, now),
        Evidence::Certificate(certificate) => renewal::attest(tx, authority, certificate, now),
    }
}

#[cfg(test)]
mod tests;
