//! Renewal: the certificate about to be replaced is the proof. The new one gets the identity that the log has for
//! it, so nothing in a request and no slip in reading a certificate can change who a workload is.

use outrigger_identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Attested, Attestor, Refusal};
use crate::{
    authority::{Authority, Subject, hex, rfc3339},
    store::{CredentialKind, Transaction},
};

impl Attestor for CertificateDer<'static> {
    fn attest(
        &self,
        tx: &mut Transaction<'_>,
        authority: &Authority,
        now: OffsetDateTime,
    ) -> Result<Attested, Refusal> {
        let certificate = self;
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| Refusal::Certificate("it cannot be read"))?;
        // The handshake checked the dates; a connection may have lived past them.
        let not_after = parsed.validity().not_after.to_datetime();
        if now > not_after {
            return Err(Refusal::CertificateExpired(rfc3339(not_after)));
        }
        let id = only_uri_san(&parsed)?;
        if !id.is_member_of(authority.trust_domain()) {
            return Err(Refusal::Certificate("it belongs to another trust domain"));
        }
        let serial = hex(parsed.raw_serial());
        let entry = tx
            .by_serial(&serial)?
            .ok_or(Refusal::Certificate("the issuance log has no such serial, perhaps because it was restored"))?;
        if entry.certificate != certificate.as_ref() || entry.id.as_ref() != Some(&id) {
            return Err(Refusal::Certificate("it is not the one that the issuance log has under its serial"));
        }
        if let Some(at) = tx.revoked_at(&serial)? {
            return Err(Refusal::CertificateRevoked(rfc3339(at)));
        }
        let subject = Subject { id, dns_names: entry.dns_names };
        Ok(Attested { subject, kind: CredentialKind::Certificate, reference: serial })
    }
}

fn only_uri_san(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    let san = certificate
        .subject_alternative_name()
        .map_err(|_| Refusal::Certificate("its names cannot be read"))?
        .ok_or(Refusal::Certificate("it names nobody"))?;
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => {
            SpiffeId::parse(uri).map_err(|_| Refusal::Certificate("its URI name is not a workload's SPIFFE id"))
        }
        (None, _) => Err(Refusal::Certificate("it has no SPIFFE id")),
        (Some(_), Some(_)) => Err(Refusal::Certificate("it has more than one URI name")),
    }
}
