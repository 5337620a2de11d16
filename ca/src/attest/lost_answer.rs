//! An answer that was lost: a CA spent a token, recorded the certificate and died before it had gone out. Whoever then
//! asks again, at another replica or after the restart, with the same token and for the same key, gets a successor of the
//! certificate that never came: once, for a few minutes.
//!
//! The token and the private key together are what the first caller had; a thief of the token alone has no use of it. While
//! the process that answered lives it knows that it did, so there a token stays good for one certificate.

use std::time::Duration;

use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Attested, Refusal, TokenHash};
use crate::{
    authority::{Authority, RequestedKey, Subject},
    store::{CredentialKind, Transaction},
};

/// How long a caller may ask again. Longer than a sidecar goes on trying at once, shorter than anything is forgotten.
pub(super) const WINDOW: Duration = Duration::from_secs(300);

/// The identity of the certificate whose answer was lost; `None`: nothing speaks for that.
pub(crate) fn attest(
    tx: &mut Transaction<'_>,
    authority: &Authority,
    hash: &TokenHash,
    key: &RequestedKey,
    now: OffsetDateTime,
) -> Result<Option<Attested>, Refusal> {
    let Some(lost) = tx.by_credential(CredentialKind::Token, &hash.to_hex())? else { return Ok(None) };
    let Ok((_, certificate)) = X509Certificate::from_der(&lost.certificate) else { return Ok(None) };
    let answered = lost.issued_at >= authority.opened_at() && authority.active().has_signed(&certificate);
    if answered || lost.issued_at + WINDOW < now || !key.is_of(&certificate) {
        return Ok(None);
    }
    // Renewed, so that it had come; or asked for again before.
    if tx.by_credential(CredentialKind::Certificate, &lost.serial)?.is_some() || tx.revoked_at(&lost.serial)?.is_some()
    {
        return Ok(None);
    }
    let Some(id) = lost.id else { return Ok(None) };
    let subject = Subject { id, dns_names: lost.dns_names };
    Ok(Some(Attested { subject, kind: CredentialKind::Certificate, reference: lost.serial }))
}
