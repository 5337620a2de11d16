//! What verifiers are told: the roots as PEM and as a SPIFFE bundle document, and the revocation lists.
//!
//! The document is that of "SPIFFE Trust Domain and Bundle" section 4. A root that is tainted has one more member,
//! `outrigger_tainted`, which RFC 7517 section 4 lets others ignore.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
};

use super::{
    crl,
    members::{Member, Members},
};
use crate::store::AuthorityState;

impl Members {
    /// Every root that verifiers must trust, as PEM: `/bundle.pem`.
    pub fn bundle_pem(&self) -> String {
        self.roots().map(|root| root.pem.as_str()).collect()
    }

    /// The SPIFFE bundle document: `/bundle.json`.
    pub fn bundle_json(&self) -> String {
        let keys: Vec<Value> = self.roots().map(jwk).collect();
        let document = json!({
            "keys": keys,
            "spiffe_sequence": self.bundle.sequence,
            "spiffe_refresh_hint": self.bundle.refresh_hint.as_secs(),
        });
        document.to_string()
    }

    /// The newest revocation list of each issuer that is of use at `now`, as PEM: `/crl.pem`.
    pub fn crl_pem(&self, now: OffsetDateTime) -> String {
        self.crls(now).map(|list| crl::to_pem(&list.der)).collect()
    }
}

fn jwk(root: &Member) -> Value {
    let mut key = Map::new();
    // A key of a kind that JWK has no words for still has its certificate, which is what verifiers use.
    if let Some(parameters) = X509Certificate::from_der(&root.der).ok().and_then(|(_, parsed)| parameters(&parsed)) {
        key.extend(parameters.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
    }
    key.insert("use".into(), "x509-svid".into());
    key.insert("x5c".into(), json!([STANDARD.encode(&root.der)]));
    if root.state() == AuthorityState::Tainted {
        key.insert("outrigger_tainted".into(), true.into());
    }
    Value::Object(key)
}

/// RFC 7518 section 6 and RFC 8037 section 2.
fn parameters(certificate: &X509Certificate<'_>) -> Option<Vec<(&'static str, String)>> {
    let spki = certificate.public_key();
    let algorithm = &spki.algorithm;
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = &*spki.subject_public_key.data;
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref()?.as_oid().ok()?;
        let (name, size) = match curve {
            c if c == OID_EC_P256 => ("P-256", 32),
            c if c == OID_NIST_EC_P384 => ("P-384", 48),
            _ => return None,
        };
        // An uncompressed point: 4, x, y.
        let (x, y) = key.strip_prefix(&[4])?.split_at_checked(size)?;
        Some(vec![("kty", "EC".into()), ("crv", name.into()), ("x", text(x)), ("y", text(y))])
    } else if algorithm.algorithm == OID_SIG_ED25519 {
        Some(vec![("kty", "OKP".into()), ("crv", "Ed25519".into()), ("x", text(key))])
    } else if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = spki.parsed() else { return None };
        let number = |bytes: &[u8]| text(bytes.strip_prefix(&[0]).unwrap_or(bytes));
        Some(vec![("kty", "RSA".into()), ("n", number(rsa.modulus)), ("e", number(rsa.exponent))])
    } else {
        None
    }
}
