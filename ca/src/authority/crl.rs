//! Certificate revocation lists (RFC 5280 section 5): one of each issuer, complete, signed by the issuer itself.

use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, RevocationReason as Code, RevokedCertParams, SerialNumber,
    SigningKey,
};
use time::OffsetDateTime;

use super::{AuthorityError, BACKDATE, members::Member};
use crate::store::{AuthorityKind, CrlRow, RevocationReason, Transaction};

/// How long a list is good. It is made anew at half of that, and at each revocation; a verifier that cannot reach the CA
/// keeps the last one.
pub const CRL_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Whether an issuer's list must be made anew: there is none, it lacks a revocation, or half of its time is over.
pub(super) fn is_due(tx: &mut Transaction<'_>, issuer: &Member, now: OffsetDateTime) -> Result<bool, AuthorityError> {
    let Some(crl) = tx.crl_of(&issuer.row.fingerprint)? else { return Ok(true) };
    let half = crl.made_at + (crl.next_update - crl.made_at) / 2;
    Ok(now >= half || crl.newest != tx.newest_revocation_of(&issuer.row.fingerprint)?)
}

/// Signs an issuer's list and records it in the place of the one before. Expired certificates are not on it.
///
/// A root's key may lie in a safe, so its list is good until `youngest`, the end of its youngest intermediate: the next
/// intermediate needs the key again anyway.
pub(super) fn publish(
    tx: &mut Transaction<'_>,
    issuer: &Member,
    signer: &Issuer<'_, impl SigningKey>,
    youngest: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<(), AuthorityError> {
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let fingerprint = &issuer.row.fingerprint;
    let rows = tx.revocations_of(fingerprint, now)?;
    let number = tx.next_crl_number(fingerprint)?;
    let mut next_update = now + CRL_LIFETIME;
    if issuer.kind() == AuthorityKind::Root {
        next_update = next_update.max(youngest.unwrap_or(next_update));
    }
    let revoked = |row: &crate::store::RevocationRow| -> Result<RevokedCertParams, AuthorityError> {
        let serial = unhex(&row.serial).ok_or_else(|| AuthorityError::Crypto(format!("the serial {}", row.serial)))?;
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: row.revoked_at,
            reason_code: code(row.reason),
            invalidity_date: None,
        })
    };
    let method = issuer.key_id.clone().map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
    let list = CertificateRevocationListParams {
        this_update: now - BACKDATE,
        next_update,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: rows.iter().map(revoked).collect::<Result<_, _>>()?,
        key_identifier_method: method,
    }
    .signed_by(signer)?;
    let newest = tx.newest_revocation_of(fingerprint)?;
    let der = list.der().to_vec();
    tx.put_crl(&CrlRow { issuer: fingerprint.clone(), number, newest, made_at: now, next_update, der })?;
    Ok(())
}

/// A list as PEM.
pub(super) fn to_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("X509 CRL", der), config)
}

/// "Unspecified" is told by saying nothing (RFC 5280 section 5.3.1).
fn code(reason: RevocationReason) -> Option<Code> {
    match reason {
        RevocationReason::Unspecified => None,
        RevocationReason::KeyCompromise => Some(Code::KeyCompromise),
        RevocationReason::CaCompromise => Some(Code::CaCompromise),
        RevocationReason::AffiliationChanged => Some(Code::AffiliationChanged),
        RevocationReason::Superseded => Some(Code::Superseded),
        RevocationReason::CessationOfOperation => Some(Code::CessationOfOperation),
        RevocationReason::PrivilegeWithdrawn => Some(Code::PrivilegeWithdrawn),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
