//! Join tokens: 256 random bits that stand for one SPIFFE id and its DNS names, once, until they expire.

use std::{fmt, time::Duration};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Attested, Attestor, Refusal};
use crate::{
    authority::{Authority, AuthorityError, Subject, hex, random_bytes, rfc3339},
    store::{CredentialKind, Database, StoreError, TokenRow, TokenState, Transaction},
};

/// Lets secret scanners and people recognise one.
const PREFIX: &str = "ojt_";

/// A token's text. It exists here, on the operator's screen and at the workload, and nowhere on the CA's disk.
pub struct JoinToken(String);

impl JoinToken {
    /// The text to hand to the workload.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256 of a token. The token has 256 random bits, so a slow hash would add nothing, and looking the hash up
/// in an index tells nothing about the token by its timing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token's text.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.trim().as_bytes()).into())
    }

    /// The hash in hex: how the log, `token list` and `token revoke` name the token.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

/// A token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No random bytes.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Not recorded.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token for `subject` that is good for `ttl`, and records it.
pub fn create(
    database: &mut Database,
    subject: &Subject,
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<JoinToken, CreateError> {
    database.transaction(|tx| create_in(tx, subject, ttl, now))
}

/// The same in a transaction; the token is worth nothing before that is committed.
pub fn create_in(
    tx: &mut Transaction<'_>,
    subject: &Subject,
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<JoinToken, CreateError> {
    let token = JoinToken(format!("{PREFIX}{}", hex(&random_bytes::<32>()?)));
    let row = TokenRow {
        id: subject.id.to_string(),
        dns_names: subject.dns_names.clone(),
        created_at: now,
        expires_at: now + ttl,
        used_at: None,
        revoked_at: None,
    };
    tx.insert_token(&TokenHash::of(token.as_str()).0, &row)?;
    Ok(token)
}

impl Attestor for TokenHash {
    fn attest(&self, tx: &mut Transaction<'_>, _: &Authority, now: OffsetDateTime) -> Result<Attested, Refusal> {
        let hash = self;
        let row = tx.token_by_hash(&hash.0)?.ok_or(Refusal::UnknownToken)?;
        if !tx.spend_token(&hash.0, now)? {
            return Err(match row.state(now) {
                TokenState::Used(at) => Refusal::TokenUsed(rfc3339(at)),
                TokenState::Revoked(at) => Refusal::TokenRevoked(rfc3339(at)),
                TokenState::Expired(at) => Refusal::TokenExpired(rfc3339(at)),
                // It was read in this very transaction, so nobody else can have taken it.
                TokenState::Unused => Refusal::UnknownToken,
            });
        }
        let subject = Subject::parse(&row.id, &row.dns_names)?;
        Ok(Attested { subject, kind: CredentialKind::Token, reference: hex(&hash.0) })
    }
}
