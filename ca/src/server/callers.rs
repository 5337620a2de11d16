//! Callers' certificates: judged by the roots and revocation lists of this moment.
//!
//! webpki does signatures, dates, basicConstraints, purposes and revocation; it does not look at the key usage of
//! intermediates (RFC 5280 section 6.1.4 (n)), so that is done here.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ServeError;
use crate::authority::Authority;

/// The verifier of client certificates; showing one is optional.
#[derive(Debug)]
pub(super) struct Callers {
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Inner>,
}

#[derive(Debug)]
struct Inner(Arc<dyn ClientCertVerifier>);

impl Callers {
    pub(super) fn new(authority: &Authority) -> Result<Arc<Self>, ServeError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let current = ArcSwap::from_pointee(inner(authority, &provider)?);
        Ok(Arc::new(Self { provider, current }))
    }

    /// Judges by other roots and lists from now on.
    pub(super) fn update(&self, authority: &Authority) -> Result<(), ServeError> {
        self.current.store(Arc::new(inner(authority, &self.provider)?));
        Ok(())
    }
}

fn inner(authority: &Authority, provider: &Arc<CryptoProvider>) -> Result<Inner, ServeError> {
    let broken = |e: &dyn std::fmt::Display| ServeError::Tls(e.to_string());
    let mut roots = RootCertStore::empty();
    for root in authority.members().roots() {
        roots.add(root.der.clone()).map_err(|e| broken(&e))?;
    }
    let lists = authority.members().crls(OffsetDateTime::now_utc());
    let lists = lists.map(|list| CertificateRevocationListDer::from(list.der.clone()));
    // An issuer without a list has revoked nothing: the database, not the list, is what renewal asks.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .with_crls(lists)
        .allow_unknown_revocation_status()
        .allow_unauthenticated()
        .build()
        .map_err(|e| broken(&e))?;
    Ok(Inner(verifier))
}

impl ClientCertVerifier for Callers {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: which roots there are is nobody's business before the handshake, and they change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.current.load().0.verify_client_cert(end_entity, intermediates, now)?;
        for der in intermediates {
            let (_, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::BadEncoding)?;
            match parsed.key_usage() {
                Ok(Some(usage)) if !usage.value.key_cert_sign() => {
                    return Err(CertificateError::InvalidPurpose.into());
                }
                Ok(_) => {}
                Err(_) => return Err(CertificateError::BadEncoding.into()),
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
