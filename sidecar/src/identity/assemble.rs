//! Makes an identity of its parts, wherever they come from.

use std::{sync::Arc, time::SystemTime};

use outrigger_identity::TrustDomain;
use rustls::{
    Error as TlsError,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateFault, Identity, TrustBundle, Usage, WorkloadCertificate, certificate::system_time, provider};

/// Why parts do not make an identity.
#[derive(Debug, thiserror::Error)]
pub(super) enum Misfit {
    #[error("its chain holds no certificate")]
    Empty,
    #[error("it cannot be our identity: {0}")]
    Certificate(CertificateFault),
    #[error("its private key cannot be used: {0}")]
    Key(String),
    #[error("its private key is of another certificate")]
    OtherKey,
    #[error("its certificate cannot be used: {0}")]
    Chain(String),
}

/// Makes an identity of its parts. Neither dates nor the path to a root are judged.
pub(super) fn assemble(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    bundle: TrustBundle,
    trust_domain: Option<&TrustDomain>,
) -> Result<Identity, Misfit> {
    let leaf = chain.first().ok_or(Misfit::Empty)?;
    let certificate = WorkloadCertificate::parse(leaf).map_err(Misfit::Certificate)?;
    let key = provider().key_provider.load_private_key(key).map_err(|e| Misfit::Key(e.to_string()))?;
    let key = CertifiedKey::new(chain, key);
    key.keys_match().map_err(|e| match e {
        TlsError::InconsistentKeys(_) => Misfit::OtherKey,
        other => Misfit::Chain(other.to_string()),
    })?;
    // Peers refuse a path with an intermediate that is over, however long its leaf goes on.
    let (mut not_before, mut not_after) = (certificate.not_before, certificate.not_after);
    for der in key.cert.iter().skip(1) {
        let (_, above) = X509Certificate::from_der(der)
            .map_err(|e| Misfit::Chain(format!("an intermediate of it cannot be read: {e}")))?;
        not_before = not_before.max(system_time(above.validity().not_before));
        not_after = not_after.min(system_time(above.validity().not_after));
    }
    Ok(Identity {
        trust_domain: trust_domain.cloned().unwrap_or_else(|| certificate.id.trust_domain()),
        id: certificate.id,
        dns_names: certificate.dns_names,
        key: Arc::new(key),
        bundle: Arc::new(bundle),
        not_before,
        not_after,
        serial: certificate.serial,
        issuer: certificate.issuer,
        generation: 0,
    })
}

/// What works but is likely not meant.
pub(super) fn doubts(identity: &Identity) -> Vec<String> {
    let mut doubts = Vec::new();
    if !identity.id.is_member_of(&identity.trust_domain) {
        doubts.push(format!(
            "our own id {} is not in the trust domain {} that we demand of peers; look at identity.trust_domain",
            identity.id, identity.trust_domain
        ));
    }
    if let Some((leaf, intermediates)) = identity.key.cert.split_first() {
        // At a moment when the certificate itself is valid: its dates are judged elsewhere.
        let since = identity.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for usage in [Usage::Server, Usage::Client] {
            if let Err(fault) = identity.bundle.verify(leaf, intermediates, UnixTime::since_unix_epoch(since), usage) {
                doubts.push(format!(
                    "our own certificate does not pass our own bundle ({fault}); peers with the same bundle refuse us, unless a change of roots is under way"
                ));
                break;
            }
        }
    }
    doubts
}
