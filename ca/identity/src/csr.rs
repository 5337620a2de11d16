//! A workload's key and the request for its certificate. The key is made where it is used and never travels.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::SpiffeId;

/// A private key as PKCS#8 PEM. Never shown by `Debug`.
#[derive(Clone)]
pub struct KeyPairPem(String);

/// A PKCS#10 certificate request as PEM.
#[derive(Clone, Debug)]
pub struct CsrPem(String);

impl KeyPairPem {
    /// The PEM text, to be written with mode 0600.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl CsrPem {
    /// The PEM text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPairPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPairPem(hidden)")
    }
}

/// The system could not make a key or sign the request with it.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key and a certificate request: {0}")]
pub struct CsrError(#[from] rcgen::Error);

/// Makes a fresh ECDSA P-256 key and a request for it.
///
/// `id` goes into the request as its URI SAN. The bundled CA ignores it (a caller's identity comes from its
/// credential alone); other CAs that speak Istio's protocol, such as cert-manager's istio-csr, compare it.
pub fn new_key_and_csr(id: Option<&SpiffeId>) -> Result<(KeyPairPem, CsrPem), CsrError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        params.subject_alt_names.push(SanType::URI(id.as_str().try_into()?));
    }
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((KeyPairPem(key.serialize_pem()), CsrPem(csr)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_call_makes_another_key_and_the_key_stays_out_of_debug_output() {
        let id = SpiffeId::parse("spiffe://mesh.example/a").unwrap();
        let (key_a, csr_a) = new_key_and_csr(Some(&id)).unwrap();
        let (key_b, _) = new_key_and_csr(None).unwrap();
        assert_ne!(key_a.as_str(), key_b.as_str());
        assert!(csr_a.as_str().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        assert!(!format!("{key_a:?}").contains("PRIVATE"));
    }
}
