//! Taking certificates back. A revocation is recorded, and from then on the certificate renews nothing; verifiers learn of
//! it from the issuer's list, which is signed here if the key is at hand and by the running server if not.

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, Directory, Member, Members, Password, crl, retirement::publish_with, rfc3339};
use crate::store::{Database, LogEntry, RevocationReason, RevocationRow, Transaction};
use outrigger_identity::SpiffeId;

/// Which certificates.
#[derive(Debug)]
pub enum RevokeRequest<'a> {
    /// These, by their serials in hex.
    Serials(&'a [String]),
    /// Every one of an id, and its unused join tokens; with `block` none is issued for it any more.
    Id {
        /// The id.
        id: &'a SpiffeId,
        /// Whether to block it.
        block: bool,
    },
    /// Every one that came of a join token: the first one and its renewals. The token's whole hash in hex.
    Token(&'a str),
}

/// What was revoked.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Serials that are revoked from now on.
    pub serials: Vec<String>,
    /// Serials that were before.
    pub before: Vec<String>,
    /// How many unused tokens were taken back.
    pub tokens: u64,
    /// Whether the id is blocked from now on and was not before.
    pub blocked: bool,
    /// How many issuers' lists wait for the running server to sign them.
    pub lists_waiting: usize,
}

impl Directory {
    /// Revokes certificates. The lists of issuers whose key is at hand are signed with it; `password` opens it.
    pub fn revoke(
        &self,
        database: &mut Database,
        request: &RevokeRequest<'_>,
        reason: RevocationReason,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) -> Result<Revoked, AuthorityError> {
        let (mut revoked, touched) = database.transaction(|tx| {
            let mut revoked = Revoked::default();
            let mut entries = Vec::new();
            match request {
                RevokeRequest::Serials(serials) => {
                    for serial in *serials {
                        entries.push(self.entry(tx, serial, now)?);
                    }
                }
                RevokeRequest::Id { id, block } => {
                    tx.for_each_unexpired::<AuthorityError>(now, |_, entry| {
                        if entry.id.as_ref() == Some(id) {
                            entries.push(entry);
                        }
                        Ok(())
                    })?;
                    revoked.tokens = tx.revoke_tokens_of(id.as_str(), now)?;
                    revoked.blocked = *block && tx.block_id(id.as_str(), now)?;
                }
                RevokeRequest::Token(hash) => entries = descendants(tx, hash, now)?,
            }
            let mut touched: Vec<String> = Vec::new();
            for entry in entries {
                let issuer = self.issuer_of(&entry)?.row.fingerprint.clone();
                let row = RevocationRow {
                    serial: entry.serial.clone(),
                    issuer: issuer.clone(),
                    reason,
                    not_after: entry.not_after,
                    revoked_at: now,
                };
                if tx.insert_revocation(&row)? {
                    revoked.serials.push(entry.serial);
                } else {
                    revoked.before.push(entry.serial);
                }
                if !touched.contains(&issuer) {
                    touched.push(issuer);
                }
            }
            Ok::<_, AuthorityError>((revoked, touched))
        })?;
        for issuer in touched {
            // The revocation stands whatever comes of the list, which the server makes too.
            match self.publish_list(database, &issuer, password, now) {
                Ok(true) => {}
                Ok(false) | Err(AuthorityError::Locked { .. }) => revoked.lists_waiting += 1,
                Err(error) => {
                    tracing::warn!(%error, "revoked, but the list could not be signed");
                    revoked.lists_waiting += 1;
                }
            }
        }
        Ok(revoked)
    }

    /// Signs an issuer's list if it must be made anew and the key is in this folder. `false`: the key is elsewhere.
    pub(super) fn publish_list(
        &self,
        database: &mut Database,
        issuer: &str,
        password: Option<&Password>,
        now: OffsetDateTime,
    ) -> Result<bool, AuthorityError> {
        let Some(member) = self.members().get(issuer) else { return Ok(false) };
        if !database.snapshot(|tx| crl::is_due(tx, member, now))? {
            return Ok(true);
        }
        let Some(path) = self.ring().key_of(issuer) else { return Ok(false) };
        let signer = self.issuer(member, path, password)?;
        database.transaction(|tx| {
            // Somebody else may have made it meanwhile.
            if crl::is_due(tx, member, now)? {
                let members = Members::load(tx)?;
                publish_with(tx, &members, member, &signer, now)?;
            }
            Ok::<_, AuthorityError>(true)
        })
    }

    fn entry(&self, tx: &mut Transaction<'_>, serial: &str, now: OffsetDateTime) -> Result<LogEntry, AuthorityError> {
        let wanted: String = serial.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
        let Some(entry) = tx.by_serial(&wanted)? else {
            let authority = self.members().all().iter().find(|member| member.serial == wanted);
            return Err(match authority {
                Some(member) => AuthorityError::IsAuthority { serial: wanted, name: member.short().to_owned() },
                None => AuthorityError::NoCertificate { serial: serial.to_owned() },
            });
        };
        if entry.not_after < now {
            return Err(AuthorityError::Expired { serial: wanted, at: rfc3339(entry.not_after) });
        }
        Ok(entry)
    }

    fn issuer_of(&self, entry: &LogEntry) -> Result<&Member, AuthorityError> {
        let found = X509Certificate::from_der(&entry.certificate).ok();
        let found = found.and_then(|(_, parsed)| self.members().issuer_of(&parsed));
        found.ok_or_else(|| AuthorityError::UnknownIssuer { serial: entry.serial.clone() })
    }
}

/// The certificate that a token was spent on and what it was renewed into. A renewal is recorded after what it renews, so
/// one look through the log finds all.
fn descendants(tx: &mut Transaction<'_>, token: &str, now: OffsetDateTime) -> Result<Vec<LogEntry>, AuthorityError> {
    let mut family = std::collections::HashSet::from([token.to_owned()]);
    let mut entries = Vec::new();
    // The first ones may have expired and still lead to what has not.
    tx.for_each::<AuthorityError>(|record| {
        let entry = record.entry;
        if entry.credential_ref.as_ref().is_some_and(|reference| family.contains(reference)) {
            family.insert(entry.serial.clone());
            if entry.not_after >= now {
                entries.push(entry);
            }
        }
        Ok(())
    })?;
    Ok(entries)
}

/// Records that a root has revoked an intermediate.
pub(super) fn revoke_member(
    tx: &mut Transaction<'_>,
    member: &Member,
    reason: RevocationReason,
    now: OffsetDateTime,
) -> Result<(), AuthorityError> {
    let issuer = member.row.issuer.clone().ok_or(AuthorityError::NothingActive)?;
    let row =
        RevocationRow { serial: member.serial.clone(), issuer, reason, not_after: member.not_after, revoked_at: now };
    tx.insert_revocation(&row)?;
    Ok(())
}
