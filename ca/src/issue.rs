//! The one way in which a certificate comes to be: proof, signature, record, all in one transaction. A certificate
//! is returned from here after its record is on the disk, and a credential that is spent once is spent in the same
//! stroke; a crash at any moment leaves both or neither.
//!
//! These functions run in a transaction, whose `Ok` the caller awaits before the certificate leaves. They may run more than
//! once, for a transaction that has to be tried again; what an earlier run signed is then dropped.

use std::time::Duration;

use outrigger_identity::SpiffeId;
use time::OffsetDateTime;

use crate::{
    attest::{Evidence, Refusal, attest, attest_lost_answer},
    authority::{
        Authority, AuthorityError, RequestedKey, SecretKey, SignedCertificate, Subject, SubjectError, rfc3339,
    },
    store::{AuthorityState, CredentialKind, LogEntry, StoreError, Transaction},
};

/// A certificate whose record is durable.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: SignedCertificate,
    /// Whose it is.
    pub id: Option<SpiffeId>,
    /// By what right.
    pub credential: CredentialKind,
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The caller is not believed.
    #[error(transparent)]
    Refused(Refusal),
    /// The CA cannot sign this.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The record could not be made durable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Refusal> for IssueError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Store(e) => Self::Store(e),
            other => Self::Refused(other),
        }
    }
}

/// For a caller over the network: evidence first, then whether whoever it proves may have one more (`admit`). A token
/// of a caller who is told to come back is not spent.
pub fn on_evidence(
    tx: &mut Transaction<'_>,
    authority: &Authority,
    evidence: &Evidence,
    key: &RequestedKey,
    ttl: Duration,
    now: OffsetDateTime,
    admit: impl FnOnce(&SpiffeId) -> Result<(), Refusal>,
) -> Result<Issued, IssueError> {
    let attested = match (attest(tx, authority, evidence, now), evidence) {
        (Err(Refusal::TokenUsed(at)), Evidence::JoinToken(hash)) => {
            attest_lost_answer(tx, authority, hash, key, now)?.ok_or(Refusal::TokenUsed(at))?
        }
        (attested, _) => attested?,
    };
    may_issue(tx, authority, Some(&attested.subject.id))?;
    key_is_free(tx, key, &attested.subject.id, attested.kind, now)?;
    names_are_free(tx, &attested.subject, now)?;
    admit(&attested.subject.id)?;
    let certificate = authority.sign_workload(&attested.subject, key, ttl, now)?;
    tx.hold_key(&key.hash(), attested.subject.id.as_str(), certificate.not_after)?;
    let owner = Owner::from(attested.subject);
    record(tx, certificate, owner, attested.kind, Some(attested.reference), now)
}

/// For an operator, who can read the CA's key and therefore needs no other proof, or whom the kernel vouches for (`by`).
pub fn for_operator(
    tx: &mut Transaction<'_>,
    authority: &Authority,
    subject: &Subject,
    key: &RequestedKey,
    ttl: Duration,
    now: OffsetDateTime,
    by: Option<String>,
) -> Result<Issued, IssueError> {
    may_issue(tx, authority, Some(&subject.id))?;
    key_is_free(tx, key, &subject.id, CredentialKind::Operator, now)?;
    names_are_free(tx, subject, now)?;
    let certificate = authority.sign_workload(subject, key, ttl, now)?;
    tx.hold_key(&key.hash(), subject.id.as_str(), certificate.not_after)?;
    record(tx, certificate, Owner::from(subject.clone()), CredentialKind::Operator, by, now)
}

/// For the enrolment server itself.
pub fn for_server(
    tx: &mut Transaction<'_>,
    authority: &Authority,
    key: &SecretKey,
    ttl: Duration,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    may_issue(tx, authority, None)?;
    let certificate = authority.sign_server(key, ttl, now)?;
    let owner = Owner { id: None, dns_names: authority.server_names().to_vec() };
    record(tx, certificate, owner, CredentialKind::Server, None, now)
}

/// Whether the intermediate in memory still signs, as the database has it in this transaction: after another was
/// activated nothing is signed with the old one any more, whatever process has not heard of it. And whether the id is
/// blocked.
fn may_issue(tx: &mut Transaction<'_>, authority: &Authority, id: Option<&SpiffeId>) -> Result<(), IssueError> {
    let active = authority.active();
    match tx.authority_state(&active.row.fingerprint)? {
        Some(AuthorityState::Active) => {}
        other => {
            let state = other.map_or("unknown to the database", AuthorityState::as_str);
            return Err(AuthorityError::Retired { name: active.short().to_owned(), state }.into());
        }
    }
    if let Some(id) = id
        && let Some(at) = tx.blocked_at(id.as_str())?
    {
        return Err(Refusal::Blocked { id: id.to_string(), at: rfc3339(at) }.into());
    }
    Ok(())
}

/// A key proves one identity: while there is a certificate for it, nobody else gets one, however he proves who he is. With a
/// join token a key gets one certificate at all, so that of many who have copied both key and tokens one is served, and the
/// others are noticed. Who renews, is vouched for by Kubernetes or is an operator may come with the same key again.
fn key_is_free(
    tx: &mut Transaction<'_>,
    key: &RequestedKey,
    id: &SpiffeId,
    kind: CredentialKind,
    now: OffsetDateTime,
) -> Result<(), IssueError> {
    match tx.key_holder(&key.hash(), now)? {
        Some(holder) if holder != id.as_str() || kind == CredentialKind::Token => {
            Err(Refusal::KeyUsed(key.hash()).into())
        }
        _ => Ok(()),
    }
}

/// Whoever holds a name of the CA's own could stand between the CA and those who enrol. What a server was started with
/// (`serve --name`), here or at another replica, its certificate says.
fn names_are_free(tx: &mut Transaction<'_>, subject: &Subject, now: OffsetDateTime) -> Result<(), IssueError> {
    match tx.name_of_a_server(&subject.dns_names, now)? {
        Some(name) => Err(AuthorityError::from(SubjectError::ReservedName(name)).into()),
        None => Ok(()),
    }
}

struct Owner {
    id: Option<SpiffeId>,
    dns_names: Vec<String>,
}

impl From<Subject> for Owner {
    fn from(subject: Subject) -> Self {
        Self { id: Some(subject.id), dns_names: subject.dns_names }
    }
}

fn record(
    tx: &mut Transaction<'_>,
    certificate: SignedCertificate,
    owner: Owner,
    credential: CredentialKind,
    credential_ref: Option<String>,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    tx.append(&LogEntry {
        serial: certificate.serial.clone(),
        id: owner.id.clone(),
        dns_names: owner.dns_names,
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        credential,
        credential_ref,
        certificate: certificate.der.to_vec(),
        issued_at: now,
    })?;
    Ok(Issued { certificate, id: owner.id, credential })
}
