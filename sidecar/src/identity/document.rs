//! The SPIFFE bundle document (SPIFFE Trust Domain and Bundle, section 4): the roots as the CA publishes them.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrigger_identity::TrustDomain;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::{BundleError, TrustBundle};

/// Where the document does not say how often it is to be read.
pub(super) const REFRESH_HINT: Duration = Duration::from_secs(60);
/// More often no CA has to answer, and more seldom no reader asks.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3_600));

/// What a document says.
#[derive(Debug)]
pub(super) struct BundleDocument {
    /// The roots, in the document's order, without marks.
    pub(super) bundle: TrustBundle,
    /// SHA-256 fingerprints of those that are tainted.
    pub(super) tainted: BTreeSet<String>,
    /// Counts up with each change, where it is there.
    pub(super) sequence: Option<u64>,
    /// How often to read it, 5 s to 1 h.
    pub(super) refresh_hint: Duration,
}

/// Why a document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DocumentError {
    /// Not JSON, or not of this shape.
    #[error("it is no SPIFFE bundle document: {0}")]
    Shape(String),
    /// A key is not what the standard demands.
    #[error("key {number} of it {why}")]
    Key {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
    /// The certificates cannot be roots, or there are none.
    #[error(transparent)]
    Roots(#[from] BundleError),
    /// A root says that it is of another trust domain.
    #[error("its root \"{subject}\" is of {theirs}, and ours is {ours}")]
    Foreign {
        /// The root.
        subject: String,
        /// What its URI name says.
        theirs: String,
        /// Ours.
        ours: TrustDomain,
    },
}

#[derive(Deserialize)]
struct Json {
    keys: Vec<Key>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// What else a key has, as `kty`, its certificate says better.
#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
    #[serde(default)]
    outrigger_tainted: bool,
}

impl BundleDocument {
    /// Reads a document of the trust domain `ours`.
    pub(super) fn parse(text: &[u8], ours: &TrustDomain) -> Result<Self, DocumentError> {
        let json: Json = serde_json::from_slice(text).map_err(|e| DocumentError::Shape(e.to_string()))?;
        let (mut ders, mut marked) = (Vec::new(), Vec::new());
        for (at, key) in json.keys.into_iter().enumerate() {
            // Section 4.2.2: a key whose use is not known, or not said, is not there.
            if key.purpose.as_deref() != Some("x509-svid") {
                continue;
            }
            let bad = |why: String| DocumentError::Key { number: at + 1, why };
            // Section 4.2.2 of X509-SVID's part: exactly one certificate.
            let [certificate] = &key.x5c[..] else {
                return Err(bad(format!("has {} certificates in x5c, where one belongs", key.x5c.len())));
            };
            let der = STANDARD.decode(certificate).map_err(|e| bad(format!("is not base64: {e}")))?;
            let der = CertificateDer::from(der);
            if key.outrigger_tainted {
                marked.push(der.clone());
            }
            ders.push(der);
        }
        let bundle = TrustBundle::from_der(ders)?;
        for root in bundle.roots() {
            if let Some(theirs) = foreign(&root.der, ours) {
                return Err(DocumentError::Foreign { subject: root.subject.clone(), theirs, ours: ours.clone() });
            }
        }
        let tainted =
            bundle.roots().iter().filter(|root| marked.contains(&root.der)).map(|r| r.sha256.clone()).collect();
        let hint = json.spiffe_refresh_hint.map_or(REFRESH_HINT, Duration::from_secs);
        Ok(Self { bundle, tainted, sequence: json.spiffe_sequence, refresh_hint: hint.clamp(BOUNDS.0, BOUNDS.1) })
    }
}

/// A URI name of a root that is not our trust domain. A root need not have one; one that has may belong to us alone, because
/// bundles of trust domains are never merged.
pub(super) fn foreign(root: &CertificateDer<'_>, ours: &TrustDomain) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(root).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let ours = format!("spiffe://{ours}");
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) if *uri != ours => Some((*uri).to_owned()),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::tls::test_pki::TestCa;

    fn key(ca: &TestCa) -> Value {
        let der = pem::parse(&ca.pem).unwrap().into_contents();
        json!({ "use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)] })
    }

    fn parse(document: &Value) -> Result<BundleDocument, DocumentError> {
        BundleDocument::parse(document.to_string().as_bytes(), &TrustDomain::parse("mesh.example").unwrap())
    }

    #[test]
    fn a_document_gives_its_roots_with_their_marks() {
        let (old, new) = (TestCa::root("old"), TestCa::root("new"));
        let mut tainted = key(&old);
        tainted["outrigger_tainted"] = true.into();
        let jwt = json!({ "use": "jwt-svid", "kty": "EC", "kid": "a", "x": "", "y": "" });
        let keys = json!([jwt, tainted, key(&new), { "kty": "EC" }]);
        let read = parse(&json!({ "keys": keys, "spiffe_sequence": 7, "spiffe_refresh_hint": 30 })).unwrap();
        let subjects: Vec<_> = read.bundle.roots().iter().map(|r| r.subject.as_str()).collect();
        assert_eq!(subjects, ["CN=old", "CN=new"]);
        assert_eq!(read.tainted.into_iter().collect::<Vec<_>>(), [read.bundle.roots()[0].sha256.clone()]);
        assert_eq!((read.sequence, read.refresh_hint), (Some(7), Duration::from_secs(30)));
    }

    #[test]
    fn the_hint_is_bounded_and_a_minute_where_there_is_none() {
        let ca = TestCa::root("root");
        for (hint, seconds) in [(json!(null), 60), (json!(0), 5), (json!(5), 5), (json!(u64::MAX), 3_600)] {
            let read = parse(&json!({ "keys": [key(&ca)], "spiffe_refresh_hint": hint })).unwrap();
            assert_eq!(read.refresh_hint, Duration::from_secs(seconds), "{hint}");
        }
    }

    #[test]
    fn what_is_no_document_of_ours_is_refused_with_the_reason() {
        let ca = TestCa::root("root");
        let leaf =
            pem::parse(ca.issue(&crate::tls::test_pki::Leaf::new("spiffe://mesh.example/a", &[])).chain_pem).unwrap();
        let stranger = TestCa::root_of("stranger", "spiffe://other.example");
        let key_with = |x5c: Value| json!({ "keys": [{ "use": "x509-svid", "x5c": x5c }] });
        for (document, words) in [
            (json!({}), "no SPIFFE bundle document: missing field `keys`"),
            (json!([]), "no SPIFFE bundle document"),
            (json!({ "keys": [] }), "holds no certificate"),
            (json!({ "keys": [{ "use": "jwt-svid" }] }), "holds no certificate"),
            (json!({ "keys": [key(&ca)], "spiffe_sequence": -1 }), "no SPIFFE bundle document"),
            (key_with(json!([])), "key 1 of it has 0 certificates"),
            (key_with(json!(["AA==", "AA=="])), "key 1 of it has 2 certificates"),
            (key_with(json!(["!"])), "key 1 of it is not base64"),
            (key_with(json!(["AA=="])), "certificate 1 of it cannot be a root"),
            (key_with(json!([STANDARD.encode(leaf.contents())])), "is not a CA's certificate"),
            (json!({ "keys": [key(&ca), key(&stranger)] }), "is of spiffe://other.example, and ours is mesh.example"),
        ] {
            let error = parse(&document).unwrap_err().to_string();
            assert!(error.contains(words), "{document}: {error}");
        }
        assert!(parse(&json!({ "keys": [key(&TestCa::root_of("ours", "spiffe://mesh.example"))] })).is_ok());
        assert!(BundleDocument::parse(b"{", &TrustDomain::parse("mesh.example").unwrap()).is_err());
    }
}
