//! Certificates and chains that somebody with bad intentions, a broken library or one of our own keys could make. One
//! table, so that everybody who verifies is held against the same: the CA's server and `verify` (ca/tests/binary), and
//! the sidecar (sidecar/src/tls).
#![allow(dead_code)] // Each of them looks at the columns that are its own.

mod der;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData as _, SanType, SerialNumber,
    SigningKey as _,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};

use der::{der, element, fields, tlv};

/// The trust domain that the verifiers are of.
pub(crate) const TRUST_DOMAIN: &str = "mesh.example";
const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";

/// One entry.
pub(crate) struct Hostile {
    /// What is wrong with it.
    pub(crate) name: &'static str,
    /// Every rule of `verify` that it breaks.
    pub(crate) rules: &'static [&'static str],
    /// The sidecar's code for it; empty where the sidecar's rules are wider than the standard's.
    pub(crate) sidecar: &'static str,
    /// How the CA's server refuses to renew it.
    pub(crate) ca: Gate,
    make: fn(&Pki) -> Chain,
}

/// Where the CA's server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// In the TLS handshake.
    Handshake,
    /// When the identity is looked up, with these words.
    Renewal(&'static str),
}

/// A chain to show, leaf first, and the leaf's key.
pub(crate) struct Chain {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) key_pem: String,
}

/// A root and an intermediate, with their keys: the attacker has stolen both.
pub(crate) struct Pki {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) intermediate: CertificateDer<'static>,
    root_key: String,
    intermediate_key: String,
}

impl Pki {
    /// Of PEM texts.
    pub(crate) fn of(root: &str, root_key: &str, intermediate: &str, intermediate_key: &str) -> Self {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        Self {
            root: certificate(root),
            intermediate: certificate(intermediate),
            root_key: root_key.to_owned(),
            intermediate_key: intermediate_key.to_owned(),
        }
    }

    fn root_issuer(&self) -> Issuer<'static, KeyPair> {
        Issuer::from_ca_cert_der(&self.root, KeyPair::from_pem(&self.root_key).unwrap()).unwrap()
    }

    fn issuer(&self) -> Issuer<'static, KeyPair> {
        Issuer::from_ca_cert_der(&self.intermediate, KeyPair::from_pem(&self.intermediate_key).unwrap()).unwrap()
    }

    /// A leaf of the real intermediate, good but for what `change` does to it.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let (leaf, key_pem) = leaf(&self.issuer(), change);
        Chain { certificates: vec![leaf, self.intermediate.clone()], key_pem }
    }

    /// As [`Pki::leaf`], with other URI names.
    fn named(&self, uris: &[&str]) -> Chain {
        self.leaf(|params| {
            params.subject_alt_names.retain(|name| !matches!(name, SanType::URI(_)));
            params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        })
    }

    /// A good leaf of another intermediate, which the real root signed with what `change` did to it.
    fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let (intermediate, issuer) = authority(&self.root_issuer(), change);
        let (leaf, key_pem) = leaf(&issuer, |_| {});
        Chain { certificates: vec![leaf, intermediate], key_pem }
    }
}

fn now(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::seconds(seconds)
}

fn serial() -> SerialNumber {
    // The head of a fresh key is as good a random number as any.
    let random = KeyPair::generate().unwrap();
    SerialNumber::from_slice(&[&[0x42][..], &random.der_bytes()[1..16]].concat())
}

fn good_leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(serial());
    (params.not_before, params.not_after) = (now(-60), now(3600));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names =
        vec![SanType::URI(ID.try_into().unwrap()), SanType::DnsName("orders.mesh".try_into().unwrap())];
    params
}

fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = good_leaf();
    change(&mut params);
    (params.signed_by(&key, issuer).unwrap().der().clone(), key.serialize_pem())
}

fn authority(
    issuer: &Issuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = authority_params("another intermediate");
    change(&mut params);
    let der = params.signed_by(&key, issuer).unwrap().der().clone();
    (der, Issuer::new(params, key))
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial());
    (params.not_before, params.not_after) = (now(-3600), now(86_400));
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.example".try_into().unwrap())];
    params
}

fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// A subjectAltName of URIs alone.
fn san(uris: &[&str], critical: bool) -> CustomExtension {
    let names: Vec<u8> = uris.iter().flat_map(|uri| tlv(0x86, uri.as_bytes())).collect();
    extension(&[2, 5, 29, 17], &tlv(0x30, &names), critical)
}

fn replace_once(der: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let at = der.windows(from.len()).position(|w| w == from).unwrap();
    der[at..at + to.len()].copy_from_slice(to);
}

fn altered(mut chain: Chain, change: impl FnOnce(&mut Vec<u8>)) -> Chain {
    let mut der = chain.certificates[0].to_vec();
    change(&mut der);
    chain.certificates[0] = CertificateDer::from(der);
    chain
}

impl Pki {
    /// A good leaf whose body somebody rewrote, and a signature of the real intermediate over the result. What names the
    /// algorithm outside of the body is `outer`.
    fn rewritten(&self, outer: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Chain {
        altered(self.leaf(|_| {}), |certificate| {
            let mut fields = fields(certificate);
            change(&mut fields);
            let body = der(0x30, &fields.concat());
            let signature = KeyPair::from_pem(&self.intermediate_key).unwrap().sign(&body).unwrap();
            let signature = der(0x03, &[&[0], &signature[..]].concat());
            *certificate = der(0x30, &[&body, outer, &signature].concat());
        })
    }

    /// A good leaf with these extensions behind its own.
    fn with_extensions(&self, more: &[u8]) -> Chain {
        self.rewritten(ECDSA_SHA256, |fields| {
            let all = fields.last_mut().unwrap();
            let own = element(element(all).1).1.to_vec();
            *all = der(0xa3, &der(0x30, &[&own, more].concat()));
        })
    }

    /// A good leaf with this serial.
    fn numbered(&self, serial: &[u8]) -> Chain {
        self.rewritten(ECDSA_SHA256, |fields| fields[1] = der(0x02, serial))
    }
}

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA1: &[u8] = &[0x30, 0x09, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
const RSA_MD5: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04, 0x05, 0x00];
/// Extensions whole: the key usage digitalSignature, and basicConstraints of a CA.
const KEY_USAGE: &[u8] = &[0x30, 0x0e, 0x06, 3, 0x55, 0x1d, 0x0f, 1, 1, 0xff, 0x04, 4, 0x03, 2, 7, 0x80];
const CA_TRUE: &[u8] = &[0x30, 0x0f, 0x06, 3, 0x55, 0x1d, 0x13, 1, 1, 0xff, 0x04, 5, 0x30, 3, 1, 1, 0xff];
/// URI names below must lie in other.mesh.
fn uri_constraint() -> CustomExtension {
    extension(&[2, 5, 29, 30], &tlv(0x30, &tlv(0xa0, &tlv(0x30, &tlv(0x86, b"other.mesh")))), true)
}

const NO_ID: Gate = Gate::Renewal("not a workload's SPIFFE id");
const UNRECORDED: Gate = Gate::Renewal("no such serial");

macro_rules! hostile {
    ($($name:literal: $rules:expr, $sidecar:literal, $ca:expr, $make:expr;)*) => {
        &[$(Hostile { name: $name, rules: &$rules, sidecar: $sidecar, ca: $ca, make: $make }),*]
    };
}

impl Hostile {
    /// Makes it, of these keys.
    pub(crate) fn chain(&self, pki: &Pki) -> Chain {
        (self.make)(pki)
    }
}

/// A chain without a flaw: what refuses this refuses everything, and its table proves nothing.
pub(crate) fn harmless(pki: &Pki) -> Chain {
    pki.leaf(|_| {})
}

/// The table.
pub(crate) const HOSTILE: &[Hostile] = hostile! {
    // Who it says that it is.
    "two SPIFFE ids": ["one_uri"], "many_uri_sans", Gate::Renewal("more than one URI name"),
        |pki| pki.named(&[ID, "spiffe://mesh.example/admin"]);
    "an id and another URI": ["one_uri"], "many_uri_sans", Gate::Renewal("more than one URI name"),
        |pki| pki.named(&["https://mesh.example/", ID]);
    "the same id twice": ["one_uri"], "many_uri_sans", Gate::Renewal("more than one URI name"),
        |pki| pki.named(&[ID, ID]);
    "no URI": ["one_uri"], "no_spiffe_id", Gate::Renewal("no SPIFFE id"), |pki| pki.named(&[]);
    "another scheme": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["https://mesh.example/a"]);
    "the scheme in capitals": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["SPIFFE://mesh.example/a"]);
    "a trust domain without a path": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example"]);
    "no trust domain": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe:///a"]);
    "the trust domain in capitals": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://MESH.example/a"]);
    "a path that climbs": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/a/../admin"]);
    "a path with a dot": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/./admin"]);
    "a path with an empty segment": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example//a"]);
    "a slash at the end": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/a/"]);
    "a letter in percent-encoding": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/%61"]);
    "a port": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example:443/a"]);
    "a user": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example@evil.example/a"]);
    "a query": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/a?b"]);
    "a fragment": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/a#b"]);
    "a NUL in the path": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&["spiffe://mesh.example/a\0b"]);
    "an id of 2,049 bytes": ["spiffe_id"], "no_spiffe_id", NO_ID,
        |pki| pki.named(&[&format!("spiffe://mesh.example/{}", "a".repeat(2049 - 22))]);
    "another trust domain": ["trust_domain"], "wrong_trust_domain", Gate::Renewal("another trust domain"),
        |pki| pki.named(&["spiffe://other.example/ns/shop/sa/orders"]);
    "a trust domain that begins like ours": ["trust_domain"], "wrong_trust_domain", Gate::Renewal("another trust domain"),
        |pki| pki.named(&["spiffe://mesh.example.evil/a"]);
    "an id that nobody was given": [], "", UNRECORDED, |pki| pki.named(&["spiffe://mesh.example/admin"]);

    // What it may be used for.
    "a CA as a leaf": ["leaf_not_ca", "path"], "ca_certificate", Gate::Handshake,
        |pki| pki.leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    "a leaf that may sign certificates": ["no_signing"], "key_usage", UNRECORDED,
        |pki| pki.leaf(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    "a leaf that may sign revocation lists": ["no_signing"], "key_usage", UNRECORDED,
        |pki| pki.leaf(|p| p.key_usages.push(KeyUsagePurpose::CrlSign));
    "a key usage without digitalSignature": ["key_usage"], "key_usage", UNRECORDED,
        |pki| pki.leaf(|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    "no key usage": ["key_usage"], "key_usage", UNRECORDED, |pki| pki.leaf(|p| p.key_usages.clear());
    "for servers alone": ["ext_key_usage", "path"], "key_usage", Gate::Handshake,
        |pki| pki.leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    "for clients alone": ["ext_key_usage", "path"], "key_usage", UNRECORDED,
        |pki| pki.leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    "for code alone": ["ext_key_usage", "path"], "key_usage", Gate::Handshake,
        |pki| pki.leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    "for nothing (CVE-2026-40097)": ["ext_key_usage", "path"], "key_usage", Gate::Handshake,
        |pki| pki.leaf(|p| {
            p.extended_key_usages.clear();
            p.custom_extensions = vec![extension(&[2, 5, 29, 37], &[0x30, 0x00], false)];
        });
    "an empty subject whose names are not critical": ["san_critical"], "malformed", UNRECORDED,
        |pki| pki.leaf(|p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![san(&[ID], false)];
        });

    // When.
    "expired": ["validity", "path"], "expired", Gate::Handshake,
        |pki| pki.leaf(|p| (p.not_before, p.not_after) = (now(-7200), now(-3600)));
    "not valid yet": ["validity", "path"], "not_yet_valid", Gate::Handshake,
        |pki| pki.leaf(|p| (p.not_before, p.not_after) = (now(3600), now(7200)));

    // Who signed it.
    "signed by itself": ["path"], "unknown_root", Gate::Handshake, |_| {
        let key = KeyPair::generate().unwrap();
        let leaf = good_leaf().self_signed(&key).unwrap().der().clone();
        Chain { certificates: vec![leaf], key_pem: key.serialize_pem() }
    };
    "by somebody else's root": ["path"], "unknown_root", Gate::Handshake, |_| {
        let key = KeyPair::generate().unwrap();
        let params = authority_params("mesh.example root");
        let root = params.self_signed(&key).unwrap().der().clone();
        let (leaf, key_pem) = leaf(&Issuer::new(params, key), |_| {});
        Chain { certificates: vec![leaf, root], key_pem }
    };
    "the intermediate left out": ["path"], "unknown_root", Gate::Handshake, |pki| {
        let mut chain = pki.leaf(|_| {});
        chain.certificates.truncate(1);
        chain
    };
    "a bit of the signature turned": ["path"], "bad_signature", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| *der.last_mut().unwrap() ^= 1);
    "another id written in": ["path"], "bad_signature", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| replace_once(der, b"/sa/orders", b"/sa/admins"));
    "a workload that signs for another": ["issuer_is_ca", "issuer_may_sign", "issuer_id", "path"], "key_usage",
        Gate::Handshake, |pki| {
            let (between, key_pem) = leaf(&pki.issuer(), |_| {});
            let mut params = good_leaf();
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let issuer = Issuer::new(params, KeyPair::from_pem(&key_pem).unwrap());
            let (leaf, key_pem) = leaf(&issuer, |_| {});
            Chain { certificates: vec![leaf, between, pki.intermediate.clone()], key_pem }
        };
    "an intermediate below an intermediate": ["path"], "malformed", Gate::Handshake, |pki| {
        let (below, issuer) = authority(&pki.issuer(), |_| {});
        let (leaf, key_pem) = leaf(&issuer, |_| {});
        Chain { certificates: vec![leaf, below, pki.intermediate.clone()], key_pem }
    };
    "an intermediate that may only sign revocation lists": ["issuer_may_sign", "path"], "key_usage",
        Gate::Handshake, |pki| pki.below(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    "an intermediate that has expired": ["path"], "expired", Gate::Handshake,
        |pki| pki.below(|p| (p.not_before, p.not_after) = (now(-7200), now(-3600)));
    "an intermediate for other DNS names": ["path"], "malformed", Gate::Handshake,
        |pki| pki.below(|p| p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("other.mesh".into())],
            excluded_subtrees: vec![],
        }));
    "an intermediate with a workload's id": ["issuer_id"], "issuer_id", UNRECORDED,
        |pki| pki.below(|p| p.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())]);

    // How it is written.
    "bytes behind its end": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| der.push(0));
    "cut short": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| der.truncate(der.len() / 2));
    "no certificate at all": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| *der = b"spiffe://mesh.example/admin".to_vec());
    "a critical extension that nobody knows": ["path"], "malformed", Gate::Handshake,
        |pki| pki.leaf(|p| p.custom_extensions = vec![extension(&[1, 3, 6, 1, 4, 1, 99_999, 1], &[5, 0], true)]);
    "names in two extensions": ["one_uri", "san_critical", "path"], "malformed", Gate::Handshake,
        |pki| pki.leaf(|p| p.custom_extensions = vec![san(&["spiffe://mesh.example/admin"], true)]);
    "a key usage twice": ["key_usage", "no_signing", "path"], "malformed", Gate::Handshake, |pki| pki.with_extensions(KEY_USAGE);
    "a leaf that is a CA by a second basicConstraints": ["leaf_not_ca", "path"], "malformed", Gate::Handshake,
        |pki| pki.with_extensions(&[CA_TRUE, CA_TRUE].concat());
    "a CA behind a leaf's extensions": ["leaf_not_ca", "path"], "ca_certificate", Gate::Handshake, |pki| pki.with_extensions(CA_TRUE);
    "an extension that is no sequence": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| pki.with_extensions(&[0x04, 0x01, 0x00]);
    "signed with SHA-1": ["path"], "signature_algorithm", Gate::Handshake,
        |pki| pki.rewritten(ECDSA_SHA1, |fields| fields[2] = ECDSA_SHA1.to_vec());
    "signed with MD5": ["path"], "signature_algorithm", Gate::Handshake,
        |pki| pki.rewritten(RSA_MD5, |fields| fields[2] = RSA_MD5.to_vec());
    "one algorithm inside and another outside": ["path"], "malformed", Gate::Handshake,
        |pki| pki.rewritten(ECDSA_SHA256, |fields| fields[2] = RSA_MD5.to_vec());
    "version 1": ["readable", "path"], "malformed", Gate::Handshake, |pki| pki.rewritten(ECDSA_SHA256, |fields| drop(fields.remove(0)));
    "version 4": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| pki.rewritten(ECDSA_SHA256, |fields| fields[0] = vec![0xa0, 3, 2, 1, 3]);
    "a length in more bytes than it takes (BER)": ["path"], "malformed", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| {
            assert_eq!(der[..2], [0x30, 0x82]);
            der.splice(1..2, [0x83, 0x00]);
        });
    "an indefinite length (BER)": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| altered(pki.leaf(|_| {}), |der| {
            der.splice(1..4, [0x80]);
            der.extend([0, 0]);
        });
    "an end before its beginning": ["validity", "path"], "malformed", Gate::Handshake,
        |pki| pki.leaf(|p| (p.not_before, p.not_after) = (now(3600), now(-3600)));
    "a date of the thirteenth month": ["readable", "path"], "malformed", Gate::Handshake,
        |pki| pki.rewritten(ECDSA_SHA256, |fields| {
            let date = |year: &str| tlv(0x17, format!("{year}1301000000Z").as_bytes());
            fields[4] = der(0x30, &[date("25"), date("49")].concat());
        });
    "a serial of zero": ["serial"], "", UNRECORDED, |pki| pki.numbered(&[0]);
    "a negative serial": ["serial"], "", UNRECORDED, |pki| pki.numbered(&[0x80, 1]);
    "a serial of 21 bytes": ["serial"], "", UNRECORDED, |pki| pki.numbered(&[0x42; 21]);
    "a serial of no bytes": ["serial"], "", UNRECORDED, |pki| pki.numbered(&[]);
    "an intermediate for URIs of another mesh": ["path"], "malformed", Gate::Handshake,
        |pki| pki.below(|p| p.custom_extensions = vec![uri_constraint()]);
    "an empty URI": ["spiffe_id"], "no_spiffe_id", NO_ID, |pki| pki.named(&[""]);
    "no names in the extension for them": ["one_uri"], "no_spiffe_id", Gate::Renewal("no SPIFFE id"),
        |pki| pki.leaf(|p| {
            p.subject_alt_names.clear();
            p.custom_extensions = vec![san(&[], true)];
        });
    "a NUL in a DNS name": [], "", UNRECORDED, |pki| pki.leaf(|p| {
        p.subject_alt_names.clear();
        let names = [tlv(0x86, ID.as_bytes()), tlv(0x82, b"orders.mesh\0.evil")].concat();
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], &tlv(0x30, &names), true)];
    });
    "every DNS name": [], "", UNRECORDED,
        |pki| pki.leaf(|p| p.subject_alt_names.push(SanType::DnsName("*".try_into().unwrap())));
    "3,000 DNS names": [], "", UNRECORDED, |pki| pki.leaf(|p| {
        let name = |n| SanType::DnsName(format!("orders{n}.mesh").try_into().unwrap());
        p.subject_alt_names.extend((0..3000).map(name));
    });
};
