//! Private keys in memory: made here or read from disk, and wiped when they go.

use std::{fmt, str::FromStr};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData, SigningKey};
use x509_parser::{
    oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519},
    prelude::{FromDer, SubjectPublicKeyInfo},
};
use zeroize::{Zeroize as _, Zeroizing};

/// The kinds of key that a CA may have; the same that it accepts in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    P256,
    /// ECDSA on P-384 with SHA-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl FromStr for Algorithm {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::P256, Self::P384, Self::Ed25519]
            .into_iter()
            .find(|a| a.as_str() == text)
            .ok_or_else(|| format!("\"{text}\" is not a kind of key; choose p256, p384 or ed25519"))
    }
}

impl Algorithm {
    /// The kind of a subjectPublicKeyInfo; `None`: another than these.
    pub(super) fn of_public_key(spki: &[u8]) -> Option<Self> {
        let (_, spki) = SubjectPublicKeyInfo::from_der(spki).ok()?;
        let algorithm = &spki.algorithm;
        if algorithm.algorithm == OID_SIG_ED25519 {
            return Some(Self::Ed25519);
        }
        match algorithm.parameters.as_ref()?.as_oid().ok()? {
            curve if curve == OID_EC_P256 => Some(Self::P256),
            curve if curve == OID_NIST_EC_P384 => Some(Self::P384),
            _ => None,
        }
    }

    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// A private key. Its bytes are overwritten when it is dropped; the crypto library does the same with its own copy.
pub struct SecretKey(KeyPair);

impl SecretKey {
    /// Makes one.
    pub fn generate(algorithm: Algorithm) -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(match algorithm {
            Algorithm::P256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::P384 => &PKCS_ECDSA_P384_SHA384,
            Algorithm::Ed25519 => &PKCS_ED25519,
        })
        .map(Self)
    }

    /// Reads PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, rcgen::Error> {
        KeyPair::try_from(der).map(Self)
    }

    /// PKCS#8 DER.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// PKCS#8 PEM, not encrypted.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
