//! What an operator sees of the identity: `/certs` and the certificate's part of `/readyz`. No key material.

use std::time::{Duration, SystemTime};

use outrigger_identity::{SpiffeId, TrustDomain};
use serde::Serialize;

use super::{Identity, NotValidNow, Readings, RevocationList, Root, Shared, certificate::hex, rfc3339, words_for};

/// A root that has less than this share of its life left is warned about, whatever that is in days.
const ROOT_WARNING: f64 = 0.1;

/// The identity as an operator sees it.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityStatus {
    /// Whether mesh connections can be made.
    pub state: IdentityState,
    /// Why not, where the state is not `valid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the identity comes from.
    pub source: String,
    /// Our certificate.
    pub certificate: Option<CertificateStatus>,
    /// The roots that peers must chain to.
    pub roots: Vec<RootStatus>,
    /// What issuers took back, one list an issuer.
    pub revocation_lists: Vec<RevocationStatus>,
    /// When the CA's bundle and lists were last read, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_read: Option<String>,
    /// When the next renewal or enrolment is tried, RFC 3339.
    pub next_renewal: Option<String>,
    /// The last thing that went wrong and has not been put right since.
    pub last_error: Option<String>,
    /// When that was, RFC 3339.
    pub last_error_at: Option<String>,
    /// What works but should be looked at.
    pub warnings: Vec<String>,
    /// Certificates obtained from the CA since the start.
    pub renewals_ok: u64,
    /// Attempts at the CA that failed since the start.
    pub renewals_failed: u64,
}

/// Whether mesh connections can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityState {
    /// Yes.
    Valid,
    /// No certificate yet.
    Missing,
    /// The certificate expired.
    Expired,
    /// The certificate becomes valid later.
    NotYetValid,
}

/// Our certificate.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateStatus {
    /// SPIFFE id.
    pub id: SpiffeId,
    /// Trust domain of peers.
    pub trust_domain: TrustDomain,
    /// DNS SANs.
    pub dns_names: Vec<String>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Issuer's name.
    pub issuer: String,
    /// Certificates in the chain, leaf included.
    pub chain_length: usize,
    /// Beginning of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// Time left in words; `0 s` where expired.
    pub remaining: String,
    /// Time left in seconds; 0 where expired.
    pub remaining_seconds: u64,
    /// Which identity of this process it is, from 1.
    pub generation: u64,
}

/// One trusted root.
#[derive(Debug, Clone, Serialize)]
pub struct RootStatus {
    /// Subject.
    pub subject: String,
    /// SHA-256 fingerprint, hexadecimal.
    pub sha256: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// Time left in seconds; 0 where expired.
    pub remaining_seconds: u64,
    /// Whether the CA is taking it out of use.
    pub tainted: bool,
}

/// One issuer's revocation list.
#[derive(Debug, Clone, Serialize)]
pub struct RevocationStatus {
    /// The issuer's name.
    pub issuer: String,
    /// Certificates on it.
    pub revoked: usize,
    /// cRLNumber, hexadecimal.
    pub number: String,
    /// When the next one was to come, RFC 3339.
    pub next_update: Option<String>,
}

impl IdentityStatus {
    /// The certificate's condition for `/readyz`.
    pub fn ready(&self) -> Result<(), String> {
        match self.state {
            IdentityState::Valid => Ok(()),
            _ => Err(self.reason.clone().unwrap_or_else(|| "no certificate".to_owned())),
        }
    }
}

/// What the task notes for the status.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) origin: String,
    pub(super) next_renewal: Option<SystemTime>,
    pub(super) file_error: Option<(String, SystemTime)>,
    pub(super) ca_error: Option<(String, SystemTime)>,
    pub(super) trust_error: Option<(String, SystemTime)>,
    pub(super) lists_error: Option<(String, SystemTime)>,
    pub(super) trust_read: Option<SystemTime>,
    pub(super) warnings: Vec<String>,
    pub(super) renewals_ok: u64,
    pub(super) renewals_failed: u64,
    pub(super) readings: Readings,
}

impl Shared {
    pub(super) fn status(&self, now: SystemTime) -> IdentityStatus {
        let identity = self.current.borrow().clone();
        let notes = self.notes();
        let last_error = [&notes.file_error, &notes.ca_error, &notes.trust_error, &notes.lists_error]
            .into_iter()
            .flatten()
            .max_by_key(|(_, at)| *at);
        let (state, reason) = match identity.as_deref().map(|i| i.check_valid(now)) {
            Some(Ok(())) => (IdentityState::Valid, None),
            Some(Err(why @ NotValidNow::Expired { .. })) => (IdentityState::Expired, Some(why.to_string())),
            Some(Err(why @ NotValidNow::NotYet { .. })) => (IdentityState::NotYetValid, Some(why.to_string())),
            None => {
                let why = last_error.map_or("the first certificate is being asked for", |e| &e.0);
                (IdentityState::Missing, Some(format!("no certificate yet: {why}")))
            }
        };
        let mut warnings = notes.warnings.clone();
        let roots = identity.as_deref().map_or(&[][..], |i| i.bundle.roots());
        warnings.extend(roots.iter().filter_map(|r| root_warning(r, now)));
        let lists = identity.as_deref().map_or(&[][..], |i| i.bundle.revoked().lists());
        warnings.extend(lists.iter().filter_map(|list| list_warning(list, now)));
        IdentityStatus {
            state,
            reason,
            source: notes.origin.clone(),
            certificate: identity.as_deref().map(|i| CertificateStatus::of(i, now)),
            roots: roots.iter().map(|r| RootStatus::of(r, now)).collect(),
            revocation_lists: lists.iter().map(|list| RevocationStatus::of(list)).collect(),
            trust_read: notes.trust_read.map(rfc3339),
            next_renewal: notes.next_renewal.map(rfc3339),
            last_error: last_error.map(|e| e.0.clone()),
            last_error_at: last_error.map(|e| rfc3339(e.1)),
            warnings,
            renewals_ok: notes.renewals_ok,
            renewals_failed: notes.renewals_failed,
        }
    }
}

impl CertificateStatus {
    fn of(identity: &Identity, now: SystemTime) -> Self {
        let left = identity.not_after.duration_since(now).unwrap_or(Duration::ZERO);
        Self {
            id: identity.id.clone(),
            trust_domain: identity.trust_domain.clone(),
            dns_names: identity.dns_names.clone(),
            serial: identity.serial.clone(),
            issuer: identity.issuer.clone(),
            chain_length: identity.key.cert.len(),
            not_before: rfc3339(identity.not_before),
            not_after: rfc3339(identity.not_after),
            remaining: words_for(left),
            remaining_seconds: left.as_secs(),
            generation: identity.generation,
        }
    }
}

impl RootStatus {
    fn of(root: &Root, now: SystemTime) -> Self {
        Self {
            subject: root.subject.clone(),
            sha256: root.sha256.clone(),
            not_after: rfc3339(root.not_after),
            remaining_seconds: root.not_after.duration_since(now).unwrap_or(Duration::ZERO).as_secs(),
            tainted: root.tainted,
        }
    }
}

impl RevocationStatus {
    fn of(list: &RevocationList) -> Self {
        Self {
            issuer: list.issuer.clone(),
            revoked: list.revoked,
            number: hex(&list.number),
            next_update: list.next_update.map(rfc3339),
        }
    }
}

/// Who revokes nothing new is not noticed; who has stopped publishing is.
fn list_warning(list: &RevocationList, now: SystemTime) -> Option<String> {
    let over = now.duration_since(list.next_update?).ok()?;
    Some(format!(
        "the revocation list of \"{}\" should have been replaced {} ago; it still counts, and newer revocations are not known",
        list.issuer,
        words_for(over)
    ))
}

/// Istio's root once expired without a word (#14516); here it is said in time.
fn root_warning(root: &Root, now: SystemTime) -> Option<String> {
    let life = root.not_after.duration_since(root.not_before).ok()?;
    let Ok(left) = root.not_after.duration_since(now) else {
        return Some(format!("root \"{}\" has expired; peers that chain to it are refused", root.subject));
    };
    (left.as_secs_f64() < life.as_secs_f64() * ROOT_WARNING).then(|| {
        format!(
            "root \"{}\" expires in {}; add its successor to every bundle.pem before",
            root.subject,
            words_for(left)
        )
    })
}
