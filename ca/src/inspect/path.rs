//! The path from a leaf to a root (RFC 5280 section 6). webpki does signatures, dates, basicConstraints, path length,
//! name constraints and purposes; it looks neither at a root's own dates nor at the key usage of intermediates.

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
};
use time::OffsetDateTime;
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage,
    RevocationOptionsBuilder, VerifiedPath, anchor_from_trusted_cert,
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whether a path good at `now` leads from the leaf to one of the roots, both for a server and for a client; if not, why.
pub(super) fn find(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    crls: &[CertificateRevocationListDer<'static>],
    now: OffsetDateTime,
) -> Result<(), String> {
    let lists: Vec<CertRevocationList<'_>> = crls
        .iter()
        .map(|der| BorrowedCertRevocationList::from_der(der).map(Into::into))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("a revocation list cannot be read: {e}"))?;
    let lists: Vec<_> = lists.iter().collect();
    // Every certificate of the path, by lists that are not out of date; an issuer without one is an error.
    let revocation = match RevocationOptionsBuilder::new(&lists) {
        Ok(options) => Some(options.with_expiration_policy(ExpirationPolicy::Enforce).build()),
        // Without lists nothing is asked.
        Err(_) => None,
    };
    let (leaf, intermediates) = chain.split_first().ok_or("there is no certificate")?;
    let anchors: Vec<_> = roots
        .iter()
        .map(|der| anchor_from_trusted_cert(der).map_err(|e| format!("a certificate of the bundle is no root: {e}")))
        .collect::<Result<_, _>>()?;
    let seconds = u64::try_from(now.unix_timestamp()).map_err(|_| "the clock is before 1970")?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let end_entity = EndEntityCert::try_from(leaf).map_err(|e| format!("it cannot be read: {e}"))?;
    let check = |path: &VerifiedPath<'_>| check_path(path, roots, now);
    for (purpose, name) in [(KeyUsage::server_auth(), "server"), (KeyUsage::client_auth(), "client")] {
        end_entity
            .verify_for_usage(
                aws_lc_rs::default_provider().signature_verification_algorithms.all,
                &anchors,
                intermediates,
                time,
                purpose,
                revocation,
                Some(&check),
            )
            .map_err(|error| words(&error, name))?;
    }
    Ok(())
}

fn check_path(
    path: &VerifiedPath<'_>,
    roots: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> Result<(), webpki::Error> {
    for intermediate in path.intermediate_certificates() {
        let der = intermediate.der();
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| webpki::Error::BadDer)?;
        // RFC 5280 section 6.1.4 (n): where the extension is present, keyCertSign must be set.
        match certificate.key_usage() {
            Ok(Some(usage)) if !usage.value.key_cert_sign() => return Err(webpki::Error::EndEntityUsedAsCa),
            Ok(_) => {}
            Err(_) => return Err(webpki::Error::BadDer),
        }
    }
    // The anchor is known by its name and key; any root that is both and good now will do.
    let anchor = path.anchor();
    let good = roots.iter().any(|der| {
        let same = anchor_from_trusted_cert(der)
            .is_ok_and(|a| a.subject == anchor.subject && a.subject_public_key_info == anchor.subject_public_key_info);
        let valid = X509Certificate::from_der(der).is_ok_and(|(_, root)| {
            let validity = root.validity();
            validity.not_before.to_datetime() <= now && now <= validity.not_after.to_datetime()
        });
        same && valid
    });
    if good { Ok(()) } else { Err(webpki::Error::UnknownIssuer) }
}

fn words(error: &webpki::Error, purpose: &str) -> String {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => "it leads to no root of the bundle that is valid now".to_owned(),
        E::CertExpired { .. } => "a certificate of the path has expired".to_owned(),
        E::CertNotValidYet { .. } => "a certificate of the path is not valid yet".to_owned(),
        E::InvalidSignatureForPublicKey => "a signature of the path is wrong".to_owned(),
        E::EndEntityUsedAsCa => "an issuer of the path may not sign certificates".to_owned(),
        E::CaUsedAsEndEntity => "it is a CA's certificate".to_owned(),
        E::CertRevoked => "a certificate of the path is revoked".to_owned(),
        E::UnknownRevocationStatus => "an issuer of the path has no revocation list in the file".to_owned(),
        E::CrlExpired { .. } => "a revocation list is out of date; fetch it anew".to_owned(),
        E::InvalidCrlSignatureForPublicKey => "a revocation list is not signed by the issuer that it names".to_owned(),
        E::PathLenConstraintViolated => "an issuer of the path may not have issuers below it".to_owned(),
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            format!("a certificate of the path is not meant for a TLS {purpose}")
        }
        other => format!("it cannot be used: {other}"),
    }
}
