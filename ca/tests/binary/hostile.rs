//! Hostile requests, certificates and chains against the CA: each refused, for its own reason, and nothing recorded.

use std::{path::Path, sync::Arc};

use outrigger_ca::{
    authority::{RequestError, RequestedKey},
    inspect::{Expectation, Presented, Verdict, judge},
};
use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolCause},
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SigningKey as _};
use rustls::{
    AlertDescription, ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use time::OffsetDateTime;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use super::{Ca, ask};

#[path = "../hostile/table.rs"]
mod table;

use table::{Chain, Gate, HOSTILE, Pki};

fn pki(ca: &Ca) -> Pki {
    let read = |name: &str| std::fs::read_to_string(Path::new(&ca.path("ca")).join(name)).unwrap();
    Pki::of(&read("root.pem"), &read("root-key.pem"), &read("intermediate.pem"), &read("intermediate-key.pem"))
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

/// The rules that a chain breaks, without repetition.
fn broken(pki: &Pki, chain: Chain) -> Vec<&'static str> {
    let presented = Presented { chain: chain.certificates, possession: None };
    let expect = Expectation { roots: Some(vec![pki.root.clone()]), ..Expectation::default() };
    let findings = judge(&presented, &expect, OffsetDateTime::now_utc());
    let mut rules: Vec<_> = findings.iter().filter(|f| f.verdict == Verdict::Fail).map(|f| f.rule).collect();
    rules.dedup();
    rules
}

#[test]
fn verify_names_every_rule_that_a_hostile_chain_breaks_and_no_other() {
    let ca = Ca::new();
    let pki = pki(&ca);
    assert!(broken(&pki, table::harmless(&pki)).is_empty());
    for hostile in HOSTILE {
        assert_eq!(broken(&pki, hostile.chain(&pki)), hostile.rules, "{}", hostile.name);
    }
}

#[tokio::test]
async fn the_server_renews_nothing_hostile_not_even_with_its_own_keys_stolen() {
    let ca = Ca::new();
    let (pki, server, bundle) = (pki(&ca), ca.serve(), ca.bundle());
    let (_, csr) = new_key_and_csr(None).unwrap();
    let show = async |chain: &Chain| {
        let chain_pem = chain.certificates.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let credential = Credential::Certificate { chain_pem, key_pem: chain.key_pem.clone() };
        ask(&server, &bundle, credential, csr.as_str()).await.unwrap_err()
    };
    // Nothing is wrong with this one but that the log has never seen it.
    let harmless = show(&table::harmless(&pki)).await.to_string();
    assert!(harmless.contains("no such serial"), "{harmless}");
    for hostile in HOSTILE {
        let chain = hostile.chain(&pki);
        let error = show(&chain).await;
        let gate = match &error.cause {
            EnrolCause::CertificateRefused(_) | EnrolCause::Tls(_) => Gate::Handshake,
            // Our own client refuses to show it. One without scruples does, and is refused by the server.
            EnrolCause::Credential(_) => {
                let alert = alert_for(&server.address, &pki, chain).await;
                assert!(alert.is_some(), "{}: no alert", hostile.name);
                Gate::Handshake
            }
            EnrolCause::Refused { code: "permission_denied", message, .. } => match hostile.ca {
                Gate::Renewal(words) if message.contains(words) => hostile.ca,
                _ => panic!("{}: {error}", hostile.name),
            },
            _ => panic!("{}: {error}", hostile.name),
        };
        assert_eq!(gate, hostile.ca, "{}: {error}", hostile.name);
    }
    assert_eq!(ca.log().len(), 1, "the server's own certificate alone");
}

/// Shows a chain whatever is in it; gives back the alert with which the server ends the connection.
async fn alert_for(address: &str, pki: &Pki, chain: Chain) -> Option<AlertDescription> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::from_pem_slice(chain.key_pem.as_bytes()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(pki.root.clone()).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(chain.certificates, key));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("ca.mesh").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    // In TLS 1.3 a client learns only from reading what the server thinks of its certificate.
    let error = loop {
        match stream.read(&mut [0; 1024]).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        n if n < 128 => vec![n as u8],
        n if n < 256 => vec![0x81, n as u8],
        n => vec![0x82, (n >> 8) as u8, n as u8],
    };
    [&[tag][..], &length, content].concat()
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const SECP256K1: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];
const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const RSA_SHA256: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const NULL: &[u8] = &[0x05, 0x00];

fn spki(algorithm: &[&[u8]], bits: &[u8]) -> Vec<u8> {
    sequence(&[&sequence(algorithm), &tlv(0x03, bits)])
}

/// A request for any public key, signed by `key`: its signature is right wherever the key is the same.
fn request(key: &KeyPair, spki: &[u8], algorithm: &[u8]) -> Vec<u8> {
    let info = sequence(&[&[0x02, 0x01, 0x00], &sequence(&[]), spki, &[0xa0, 0x00]]);
    let signature = [&[0][..], &key.sign(&info).unwrap()].concat();
    sequence(&[&info, &sequence(&[algorithm]), &tlv(0x03, &signature)])
}

#[derive(Debug, PartialEq, Eq)]
enum Why {
    TooLong,
    Unreadable,
    Signature,
    KeyKind,
}

fn why(error: &RequestError) -> Why {
    match error {
        RequestError::TooLong(_) => Why::TooLong,
        RequestError::Unreadable(_) => Why::Unreadable,
        RequestError::Signature => Why::Signature,
        RequestError::KeyKind => Why::KeyKind,
    }
}

#[test]
fn hostile_requests_are_refused_each_for_its_own_reason() {
    const LABEL: &str = "CERTIFICATE REQUEST";
    let key = KeyPair::generate().unwrap();
    let other = KeyPair::generate().unwrap();
    let (own, point) = (key.subject_public_key_info(), key.der_bytes());
    let ec = |bits: &[u8]| pem(LABEL, &request(&key, &spki(&[EC, P256], bits), ECDSA_SHA256));
    let bits = |point: &[u8]| [&[0][..], point].concat();
    let good = request(&key, &own, ECDSA_SHA256);
    let of = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
    };
    let changed = |at: usize| {
        let mut der = good.clone();
        der[at] ^= 1;
        pem(LABEL, &der)
    };
    let with = |algorithm: &[&[u8]], bits: &[u8]| pem(LABEL, &request(&key, &spki(algorithm, bits), ECDSA_SHA256));
    let good_pem = pem(LABEL, &good);
    // The maker of these is right: what it makes of right parts is accepted, also with the point spelled out.
    RequestedKey::from_csr_pem(&good_pem).unwrap();
    RequestedKey::from_csr_pem(&ec(&bits(point))).unwrap();

    let off_curve = [&point[..64], &[point[64] ^ 1][..]].concat();
    let unsigned = {
        let info = sequence(&[&[0x02, 0x01, 0x00], &sequence(&[]), &own, &[0xa0, 0x00]]);
        sequence(&[&info, &sequence(&[ECDSA_SHA256]), &tlv(0x03, &[0])])
    };
    let cases: Vec<(&str, String, Why)> = vec![
        ("nothing", String::new(), Why::Unreadable),
        ("no PEM", "give me a certificate".into(), Why::Unreadable),
        ("a NUL", "\0".into(), Why::Unreadable),
        ("no end", good_pem.lines().take(3).collect(), Why::Unreadable),
        ("no base64", good_pem.replace("MI", "!!"), Why::Unreadable),
        ("a certificate", pem("CERTIFICATE", &good), Why::Unreadable),
        ("a private key", key.serialize_pem(), Why::Unreadable),
        ("an empty sequence", pem(LABEL, &sequence(&[])), Why::Unreadable),
        ("cut short", pem(LABEL, &good[..good.len() - 1]), Why::Unreadable),
        ("bytes behind it", pem(LABEL, &[&good[..], &[0]].concat()), Why::Unreadable),
        ("a length beyond the end", pem(LABEL, &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), Why::Unreadable),
        ("two requests", good_pem.repeat(2), Why::Unreadable),
        ("16 KiB of air", format!("{good_pem}{}", " ".repeat(16 * 1024)), Why::TooLong),
        ("RSA", of(&rcgen::PKCS_RSA_SHA256), Why::KeyKind),
        ("P-521", of(&rcgen::PKCS_ECDSA_P521_SHA512), Why::KeyKind),
        ("secp256k1", with(&[EC, SECP256K1], &bits(point)), Why::KeyKind),
        ("a curve without a name", with(&[EC], &bits(point)), Why::KeyKind),
        ("NULL for a curve", with(&[EC, NULL], &bits(point)), Why::KeyKind),
        (
            "a curve of one's own (CVE-2020-0601)",
            with(&[EC, &sequence(&[&[0x02, 0x01, 0x01]])], &bits(point)),
            Why::KeyKind,
        ),
        ("X25519", with(&[&[0x06, 0x03, 0x2b, 0x65, 0x6e]], &bits(&[7; 32])), Why::KeyKind),
        ("Ed448", with(&[&[0x06, 0x03, 0x2b, 0x65, 0x71]], &bits(&[7; 57])), Why::KeyKind),
        ("Ed25519 of 31 bytes", with(&[&[0x06, 0x03, 0x2b, 0x65, 0x70]], &bits(&[7; 31])), Why::Signature),
        ("a point off its curve", ec(&bits(&off_curve)), Why::Signature),
        ("the point at infinity", ec(&[0, 0]), Why::Signature),
        ("no point", ec(&[0]), Why::Signature),
        (
            "somebody else's key",
            pem(LABEL, &request(&key, &other.subject_public_key_info(), ECDSA_SHA256)),
            Why::Signature,
        ),
        ("no signature", pem(LABEL, &unsigned), Why::Signature),
        ("a bit of the signature turned", changed(good.len() - 1), Why::Signature),
        ("a signature of another kind", pem(LABEL, &request(&key, &own, RSA_SHA256)), Why::Signature),
    ];
    assert!(cases.len() + HOSTILE.len() >= 40, "the table shrank");
    for (name, text, expected) in &cases {
        match RequestedKey::from_csr_pem(text) {
            Ok(_) => panic!("{name} was accepted"),
            Err(error) => assert_eq!(why(&error), *expected, "{name}: {error}"),
        }
    }
}
