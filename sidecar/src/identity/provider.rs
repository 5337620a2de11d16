//! The cryptography that everything of the mesh uses.

use std::sync::Arc;

use rustls::{
    SupportedCipherSuite,
    crypto::{CryptoProvider, ring},
};

use super::certificate::hex;

/// The suites of TLS 1.3, 128 bits first, as Envoy and Go have it where the processor does AES. Their ciphers are ring's:
/// on processors with VAES and without AVX-512, most of AMD's, they take half the time of aws-lc's.
static SUITES: [SupportedCipherSuite; 3] = [
    ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// The crypto provider, always given explicitly: which one a process gets must not depend on who was first.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider { cipher_suites: SUITES.to_vec(), ..rustls::crypto::aws_lc_rs::default_provider() })
    })
}

/// SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> Option<String> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    Some(hex(suite.common.hash_provider.hash(bytes).as_ref()))
}
