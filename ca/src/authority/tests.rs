#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use x509_parser::prelude::{GeneralName, ParsedExtension};

use super::*;
use outrigger_identity::csr::new_key_and_csr;

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn options(force: bool) -> InitOptions {
    InitOptions {
        names: vec!["ca.mesh".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        force,
        ..InitOptions::new(TrustDomain::parse("mesh.example").unwrap())
    }
}

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), options(false), now()).unwrap();
    let authority = Authority::open(dir.path(), None).unwrap();
    (dir, authority)
}

fn key() -> RequestedKey {
    RequestedKey::from_csr_pem(new_key_and_csr(None).unwrap().1.as_str()).unwrap()
}

fn names(of: &X509Certificate<'_>) -> (Vec<String>, bool) {
    let san = of.subject_alternative_name().unwrap().unwrap();
    (san.value.general_names.iter().map(ToString::to_string).collect(), san.critical)
}

fn extension<'a>(of: &'a X509Certificate<'_>, oid: &str) -> &'a x509_parser::extensions::X509Extension<'a> {
    of.extensions().iter().find(|e| e.oid.to_id_string() == oid).unwrap()
}

#[test]
fn a_workload_certificate_has_the_profile_of_an_x509_svid() {
    let (_dir, ca) = authority();
    let subject = ca.subject("spiffe://mesh.example/ns/shop/sa/orders", &["orders.mesh".into()]).unwrap();
    let signed = ca.sign_workload(&subject, &key(), DEFAULT_TTL, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.der).unwrap();

    assert!(leaf.subject().as_raw().len() == 2, "the subject is not empty");
    let (names, critical) = names(&leaf);
    assert!(critical, "the SAN is not critical although the subject is empty");
    assert_eq!(names, ["URI(spiffe://mesh.example/ns/shop/sa/orders)", "DNSName(orders.mesh)"]);

    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);

    let constraints = extension(&leaf, "2.5.29.19");
    assert!(constraints.critical);
    assert_eq!(constraints.value, [0x30, 0x00], "CA:FALSE in DER");
    let (_, issuer) = X509Certificate::from_der(ca.intermediate()).unwrap();
    let key_id = |e: &x509_parser::extensions::X509Extension<'_>| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => id.0.to_vec(),
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().unwrap().0.to_vec(),
        _ => panic!("not a key identifier"),
    };
    assert_eq!(key_id(extension(&leaf, "2.5.29.35")), key_id(extension(&issuer, "2.5.29.14")));
    assert_eq!(key_id(extension(&leaf, "2.5.29.14")).len(), 20);

    assert_eq!(signed.not_before, now() - BACKDATE);
    assert_eq!(signed.not_after, now() + DEFAULT_TTL);
    assert_eq!(leaf.validity().not_after.to_datetime(), signed.not_after);
    assert_eq!(leaf.raw_serial().len(), 20);
    assert!(leaf.raw_serial()[0] & 0x80 == 0, "the serial is negative");
    assert_eq!(hex(leaf.raw_serial()), signed.serial);
    leaf.verify_signature(Some(issuer.public_key())).unwrap();
}

#[test]
fn the_same_key_gets_another_serial_each_time() {
    let (_dir, ca) = authority();
    let subject = ca.subject("spiffe://mesh.example/a", &[]).unwrap();
    let key = key();
    let mut serials: Vec<String> =
        (0..50).map(|_| ca.sign_workload(&subject, &key, DEFAULT_TTL, now()).unwrap().serial).collect();
    // Of 64 serials each random bit is set in some and not in others, but for one chance in 2^56 or so.
    let (mut set, mut clear) = ([0u8; 20], [0u8; 20]);
    for _ in 0..64 {
        let signed = ca.sign_workload(&subject, &key, DEFAULT_TTL, now()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&signed.der).unwrap();
        for (at, byte) in leaf.raw_serial().iter().enumerate() {
            set[at] |= byte;
            clear[at] |= !byte;
        }
        serials.push(signed.serial);
    }
    let random: u32 = set.iter().zip(&clear).map(|(set, clear)| (set & clear).count_ones()).sum();
    assert!(random >= 128, "{random} random bits");
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 50 + 64);
}

#[test]
fn no_certificate_outlives_its_limit_or_its_issuer() {
    let (_dir, ca) = authority();
    let subject = ca.subject("spiffe://mesh.example/a", &[]).unwrap();
    let sign = |ttl, at| ca.sign_workload(&subject, &key(), ttl, at);
    let long = sign(MAX_TTL * 100, now()).unwrap();
    assert_eq!(long.not_after, now() + MAX_TTL);
    let late = ca.expires_at() - Duration::from_secs(60);
    assert_eq!(sign(DEFAULT_TTL, late).unwrap().not_after, ca.expires_at());
    let error = sign(DEFAULT_TTL, ca.expires_at()).unwrap_err();
    assert!(matches!(error, AuthorityError::IssuerExpired { .. }), "{error}");
    assert!(matches!(sign(Duration::ZERO, now()).unwrap_err(), AuthorityError::Lifetime { .. }));
}

#[test]
fn the_authority_certificates_can_sign_and_say_so_critically() {
    let (dir, ca) = authority();
    for (der, path_length, lifetime) in
        [(ca.root(), None, ROOT_LIFETIME), (ca.intermediate(), Some(0), INTERMEDIATE_LIFETIME)]
    {
        let (_, parsed) = X509Certificate::from_der(der).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, path_length);
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert_eq!(usage.value.flags.count_ones(), 2);
        assert_eq!(names(&parsed).0, ["URI(spiffe://mesh.example)"]);
        assert_eq!(parsed.validity().not_after.to_datetime(), now() + lifetime);
        assert!(parsed.name_constraints().unwrap().is_none(), "webpki refuses every SPIFFE leaf under one");
    }
    for name in [ROOT_KEY, INTERMEDIATE_KEY, DATABASE] {
        let mode = dir.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn init_never_overwrites_and_force_loses_nothing() {
    let (dir, _) = authority();
    let key = std::fs::read(dir.path().join(ROOT_KEY)).unwrap();
    let error = init(dir.path(), options(false), now()).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(std::fs::read(dir.path().join(ROOT_KEY)).unwrap(), key);
    let aside = init(dir.path(), options(true), now()).unwrap().unwrap();
    assert_ne!(std::fs::read(dir.path().join(ROOT_KEY)).unwrap(), key);
    assert_eq!(std::fs::read(aside.join(ROOT_KEY)).unwrap(), key);
    Authority::open(dir.path(), None).unwrap();
}

#[test]
fn a_directory_without_a_ca_or_with_the_wrong_key_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = Authority::open(empty.path(), None).err().unwrap().to_string();
    assert!(error.contains("outrigger-ca init"), "{error}");
    let (dir, _) = authority();
    std::fs::copy(dir.path().join(ROOT_KEY), dir.path().join(INTERMEDIATE_KEY)).unwrap();
    let error = Authority::open(dir.path(), None).err().unwrap().to_string();
    assert!(error.contains("is not the key of"), "{error}");
}

#[test]
fn identities_that_are_not_ours_to_give_are_refused() {
    let (_dir, ca) = authority();
    let refused = |id: &str, dns: &[&str]| {
        let dns: Vec<String> = dns.iter().map(|s| (*s).to_owned()).collect();
        ca.subject(id, &dns).unwrap_err().to_string()
    };
    assert!(refused("spiffe://other.example/a", &[]).contains("trust domain"));
    assert!(refused("spiffe://mesh.example", &[]).contains("no path"));
    assert!(refused("spiffe://mesh.example/a", &["ca.mesh"]).contains("own server"));
    for bad in ["*.mesh", "A.mesh", "a.mesh.", "a..mesh", "10.0.0.7", "a b", "", "a.mesh:80", "::1", "ä.mesh"] {
        assert!(refused("spiffe://mesh.example/a", &[bad]).contains("DNS name"), "{bad:?}");
    }
    let many: Vec<String> = (0..=MAX_DNS_NAMES).map(|i| format!("n{i}.mesh")).collect();
    assert!(ca.subject("spiffe://mesh.example/a", &many).is_err());
}

#[test]
fn of_a_request_only_the_key_is_believed() {
    let (_dir, ca) = authority();
    let key = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(vec!["bank.mesh".to_owned()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wishes.subject_alt_names.push(SanType::URI("spiffe://mesh.example/admin".try_into().unwrap()));
    let csr = wishes.serialize_request(&key).unwrap().pem().unwrap();
    let subject = ca.subject("spiffe://mesh.example/a", &[]).unwrap();
    let requested = RequestedKey::from_csr_pem(&csr).unwrap();
    let signed = ca.sign_workload(&subject, &requested, DEFAULT_TTL, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.der).unwrap();
    assert_eq!(names(&leaf).0, ["URI(spiffe://mesh.example/a)"]);
    assert!(!leaf.is_ca());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert!(
        leaf.subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .iter()
            .all(|n| matches!(n, GeneralName::URI(_)))
    );
}

#[test]
fn requests_by_nobody_or_with_weak_keys_are_refused() {
    let request = |alg| {
        let key = KeyPair::generate_for(alg).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap()
    };
    for good in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        RequestedKey::from_csr_pem(&request(good).pem().unwrap()).unwrap();
    }
    let rsa = request(&rcgen::PKCS_RSA_SHA256).pem().unwrap();
    assert_eq!(RequestedKey::from_csr_pem(&rsa).unwrap_err(), RequestError::KeyKind);

    // A thief of a request who changes the key in it cannot sign for that key.
    let mut der = request(&rcgen::PKCS_ECDSA_P256_SHA256).der().to_vec();
    let other = KeyPair::generate().unwrap();
    let at = der.windows(2).position(|w| w == [0x00, 0x04]).unwrap() + 1;
    der[at..at + 65].copy_from_slice(other.public_key_raw());
    assert_eq!(RequestedKey::from_csr_pem(&csr_pem(&der)).unwrap_err(), RequestError::Signature);

    // An integer with the bytes of an algorithm's name is none.
    let der = request(&rcgen::PKCS_ED25519).der().to_vec();
    let names: Vec<_> = (0..der.len() - 5).filter(|&at| der[at..at + 5] == [6, 3, 0x2b, 0x65, 0x70]).collect();
    assert_eq!(names.len(), 2, "the key's and the signature's");
    for at in names {
        let mut der = der.clone();
        der[at] = 2;
        assert!(RequestedKey::from_csr_pem(&csr_pem(&der)).is_err(), "at {at}");
    }

    for bad in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
        assert!(matches!(RequestedKey::from_csr_pem(bad).unwrap_err(), RequestError::Unreadable(_)), "{bad:?}");
    }
    let long = "x".repeat(MAX_CSR_LEN + 1);
    assert!(matches!(RequestedKey::from_csr_pem(&long).unwrap_err(), RequestError::TooLong(_)));
}

/// Truncated and flipped requests end in an error, never in a panic. The parser forgives some bits of the wrapping,
/// which the signature does not cover; what it lets pass must still be the key that signed.
#[test]
fn mangled_requests_are_refused_quietly() {
    let der = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    for cut in 0..der.len() {
        assert!(RequestedKey::from_csr_pem(&csr_pem(&der[..cut])).is_err());
    }
    let key = RequestedKey::from_csr_pem(&csr_pem(&der)).unwrap();
    for at in 0..der.len() {
        for bit in 0..8 {
            let mut bad = der.clone();
            bad[at] ^= 1 << bit;
            if let Ok(got) = RequestedKey::from_csr_pem(&csr_pem(&bad)) {
                assert!(got == key, "byte {at} bit {bit} changed the key");
            }
        }
    }
}

fn csr_pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in der.chunks(3) {
        let word = group.iter().fold(0u32, |w, b| (w << 8) | u32::from(*b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= group.len() { symbol } else { '=' });
        }
    }
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}
