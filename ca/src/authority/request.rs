//! A certificate request, of which only the public key is believed.
//!
//! A request also carries wishes: names, CA flags, usages, a lifetime. They come from the caller and are not read;
//! who the certificate is for comes from what the caller has proved.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateSigningRequestDer, alg_id, pem::PemObject};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    asn1_rs::Any,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519},
    prelude::{FromDer, X509Certificate, X509CertificationRequest},
};

/// The longest request, in bytes of PEM. A P-384 request with many names is under 4 KiB.
pub const MAX_CSR_LEN: usize = 16 * 1024;

/// Why a request is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than [`MAX_CSR_LEN`].
    #[error("the certificate request is {0} bytes long; the limit is {MAX_CSR_LEN}")]
    TooLong(usize),
    /// Not PEM, not PKCS#10, or followed by something else.
    #[error("the certificate request cannot be read: {0}; send one PKCS#10 request as PEM")]
    Unreadable(String),
    /// The caller does not hold the private key.
    #[error("the certificate request's signature is not by its own key; make it anew with the key that it names")]
    Signature,
    /// A kind of key that is not on the list.
    #[error("the certificate request's key is not ECDSA P-256, ECDSA P-384 or Ed25519; make one of these")]
    KeyKind,
}

/// The public key of a request whose signature has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Takes the key out of a PEM request after verifying that the sender holds its private half.
    pub fn from_csr_pem(pem: &str) -> Result<Self, RequestError> {
        if pem.len() > MAX_CSR_LEN {
            return Err(RequestError::TooLong(pem.len()));
        }
        let unreadable = |why: &str| RequestError::Unreadable(why.to_owned());
        let mut requests = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let der = requests.next().ok_or_else(|| unreadable("there is none"))?;
        let der = der.map_err(|e| RequestError::Unreadable(e.to_string()))?;
        // Two readers of one text must not see two keys.
        if requests.next().is_some() {
            return Err(unreadable("there is more than one"));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(&der).map_err(|e| RequestError::Unreadable(e.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("something follows it"));
        }
        let spki = &csr.certification_request_info.subject_pki;
        let algorithm = &spki.algorithm;
        let allowed = if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
            curve.is_some_and(|c| c == OID_EC_P256 || c == OID_NIST_EC_P384)
        } else {
            algorithm.algorithm == OID_SIG_ED25519
        };
        if !allowed {
            return Err(RequestError::KeyKind);
        }
        csr.verify_signature().map_err(|_| RequestError::Signature)?;
        if !is_in_its_one_form(&spki.subject_public_key.data, spki.subject_public_key.unused_bits) {
            return Err(unreadable("its key is not an uncompressed point, or not the 32 bytes of Ed25519"));
        }
        if !signature_is_der(&der) {
            return Err(unreadable("its signature is not DER, or not ECDSA with SHA-256 or SHA-384 or Ed25519"));
        }
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| RequestError::KeyKind)?;
        if key.subject_public_key_info() != spki.raw {
            return Err(unreadable("its key is not DER"));
        }
        Ok(Self(key))
    }

    /// The public half of a key that this process has just made.
    pub fn of(key: &impl PublicKeyData) -> Result<Self, RequestError> {
        SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map(Self).map_err(|_| RequestError::KeyKind)
    }

    /// SHA-256 of its subjectPublicKeyInfo.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.subject_public_key_info()).into()
    }

    /// Whether it is the key of this certificate.
    pub(crate) fn is_of(&self, certificate: &X509Certificate<'_>) -> bool {
        self.0.subject_public_key_info() == certificate.public_key().raw
    }

    pub(super) fn as_rcgen(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }
}

/// Whether a key stands there as everybody writes it (RFC 5480 section 2.2, RFC 8410 section 4). What verifies signatures
/// takes compressed points and wrapped keys too, and one key in two forms would be two.
fn is_in_its_one_form(bits: &[u8], unused: u8) -> bool {
    const UNCOMPRESSED: u8 = 4;
    unused == 0 && matches!((bits.len(), bits.first()), (65 | 97, Some(&UNCOMPRESSED)) | (32, _))
}

/// Whether the signature is one of an allowed kind in the one form that DER gives it (RFC 2986 section 4.2). It is not
/// covered by itself, and x509-parser forgives other types and stray bits in it.
fn signature_is_der(request: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    let after_info = || {
        let (_, sequence) = Any::from_der(request).ok()?;
        let (rest, _info) = Any::from_der(sequence.data).ok()?;
        (request.first() == Some(&SEQUENCE) && sequence.data.first() == Some(&SEQUENCE)).then_some(rest)
    };
    let Some(rest) = after_info() else { return false };
    [alg_id::ECDSA_SHA256, alg_id::ECDSA_SHA384, alg_id::ED25519].iter().any(|algorithm| {
        let length = u8::try_from(algorithm.len()).unwrap_or(u8::MAX);
        let signature = rest.strip_prefix(&[SEQUENCE, length]).and_then(|rest| rest.strip_prefix(&**algorithm));
        let no_bit_unused = |rest| Any::from_der(rest).is_ok_and(|(_, signature)| signature.data.first() == Some(&0));
        signature.is_some_and(|rest| rest.first() == Some(&BIT_STRING) && no_bit_unused(rest))
    })
}
