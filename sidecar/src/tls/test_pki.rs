//! A small PKI for tests: roots, intermediates and leaves of every hostile kind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;

use crate::identity::{Identity, load};

/// A CA that can sign.
pub(crate) struct TestCa {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
    // Intermediates between this one and the root, this one first. Empty for a root.
    chain: String,
}

/// What a leaf should look like; the default is a good one.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) dns: Vec<String>,
    /// Seconds from now.
    pub(crate) from: i64,
    /// Seconds from now.
    pub(crate) until: i64,
    pub(crate) is_ca: bool,
    pub(crate) usages: Vec<KeyUsagePurpose>,
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub(crate) fn new(id: &str, dns: &[&str]) -> Self {
        Self {
            uris: vec![id.to_owned()],
            dns: dns.iter().map(|s| (*s).to_owned()).collect(),
            from: -60,
            until: 3600,
            is_ca: false,
            usages: vec![KeyUsagePurpose::DigitalSignature],
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// Certificate chain and key.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

fn ca_params(name: &str, from: i64, until: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (in_seconds(from), in_seconds(until));
    params
}

/// A certificate of a CA's name and of nobody's making, valid for these seconds from now.
pub(crate) fn namesake(
    of: &rustls::pki_types::CertificateDer<'_>,
    from: i64,
    until: i64,
) -> rustls::pki_types::CertificateDer<'static> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(of).unwrap();
    let name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned();
    let root = TestCa::root_valid(&name, from, until);
    rustls::pki_types::pem::PemObject::from_pem_slice(root.pem.as_bytes()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn in_seconds(n: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::seconds(n)
}

impl TestCa {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_valid(name, -3600, 86_400)
    }

    /// A root that says by a URI name whose it is.
    pub(crate) fn root_of(name: &str, uri: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(name, -3600, 86_400);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key), chain: String::new() }
    }

    pub(crate) fn root_valid(name: &str, from: i64, until: i64) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name, from, until);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key), chain: String::new() }
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| {})
    }

    pub(crate) fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(name, -3600, 86_400);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = certificate.pem() + &self.chain;
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key), chain }
    }

    /// This CA's revocation list, PEM.
    pub(crate) fn crl(&self, number: u64, serials: &[&str]) -> String {
        let revoked = |serial: &&str| rcgen::RevokedCertParams {
            serial_number: unhex(serial).into(),
            revocation_time: in_seconds(-60),
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: in_seconds(-60),
            next_update: in_seconds(7 * 86_400),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Pair {
        let key = KeyPair::generate().unwrap();
        let chain_pem = self.sign(leaf, &key);
        Pair { chain_pem, key_pem: key.serialize_pem() }
    }

    /// Signs a leaf for somebody's public key.
    pub(crate) fn sign(&self, leaf: &Leaf, key: &impl rcgen::PublicKeyData) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "workload");
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(fastrand::u64(..).to_be_bytes().to_vec().into());
        for uri in &leaf.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        }
        for name in &leaf.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().unwrap()));
        }
        (params.not_before, params.not_after) = (in_seconds(leaf.from), in_seconds(leaf.until));
        params.is_ca = if leaf.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params.key_usages.clone_from(&leaf.usages);
        params.extended_key_usages.clone_from(&leaf.purposes);
        params.signed_by(key, &self.issuer).unwrap().pem() + &self.chain
    }

    /// A loaded identity that trusts this CA's `bundle`.
    pub(crate) fn identity(&self, leaf: &Leaf, bundle: &str) -> Arc<Identity> {
        let dir = tempfile::tempdir().unwrap();
        write_identity(dir.path(), &self.issue(leaf), bundle);
        Arc::new(load(dir.path(), None).unwrap())
    }
}

/// Writes the three files of an identity.
pub(crate) fn write_identity(dir: &Path, pair: &Pair, bundle: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(dir.join("cert.pem"), &pair.chain_pem).unwrap();
    std::fs::write(dir.join("key.pem"), &pair.key_pem).unwrap();
    std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(dir.join("bundle.pem"), bundle).unwrap();
}

/// One root with one intermediate below it, as `outrigger-ca init` makes them.
pub(crate) struct Pki {
    pub(crate) root: TestCa,
    pub(crate) intermediate: TestCa,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let root = TestCa::root("mesh root");
        let intermediate = root.intermediate("mesh intermediate");
        Self { root, intermediate }
    }

    pub(crate) fn identity(&self, id: &str, dns: &[&str]) -> Arc<Identity> {
        self.intermediate.identity(&Leaf::new(id, dns), &self.root.pem)
    }
}

/// Waits, in virtual time, until something holds; fails after `limit`.
pub(crate) async fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
