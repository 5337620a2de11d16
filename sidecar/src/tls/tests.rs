#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{io, sync::Arc};

use outrigger_identity::{SpiffeId, TrustDomain};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::{ClientConfig, ServerConfig, sign::CertifiedKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{
    test_pki::{Leaf, Pki, TestCa},
    *,
};

const CLIENT: &str = "spiffe://mesh.example/ns/shop/sa/web";
const SERVER: &str = "spiffe://mesh.example/ns/shop/sa/orders";

fn expect(host: &str, ids: &[&str]) -> PeerExpectation {
    PeerExpectation {
        host: Host::parse(host).unwrap(),
        identities: ids.iter().map(|s| SpiffeId::parse(s).unwrap()).collect(),
    }
}

type Established = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

/// A handshake, and one byte in each direction: in TLS 1.3 a client learns only from reading that it was refused.
async fn connect(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<Established>, [Option<io::Error>; 2]) {
    let (near, far) = duplex(64 * 1024);
    let name = server_name(&Host::parse("orders.mesh").unwrap());
    let dial = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        io::Result::Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        io::Result::Ok(stream)
    };
    match tokio::join!(dial, accept) {
        (Ok(c), Ok(s)) => (Ok((c, s)), [None, None]),
        (c, s) => (Err(io::Error::other("refused")), [c.err(), s.err()]),
    }
}

/// The failures that the client and the server see.
async fn failures(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> [TlsFailure; 2] {
    let (result, [c, s]) = connect(client, server).await;
    assert!(result.is_err(), "the handshake succeeded");
    [explain(&c.expect("the client saw no error")), explain(&s.expect("the server saw no error"))]
}

fn good_client(pki: &Pki) -> Arc<ClientConfig> {
    client_config(&pki.identity(CLIENT, &[]), &expect("orders.mesh", &[]), ALPN_H2).unwrap()
}

fn good_server(pki: &Pki) -> Arc<ServerConfig> {
    server_config(&pki.identity(SERVER, &["orders.mesh"])).unwrap()
}

/// Somebody who shows whatever certificate they have: the peer that our own rules would never let out.
fn hostile_client(pki: &Pki, ca: &TestCa, leaf: &Leaf) -> Arc<ClientConfig> {
    let identity = pki.identity(CLIENT, &[]);
    let mut config = (*client_config(&identity, &expect("orders.mesh", &[]), ALPN_H2).unwrap()).clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key_of(ca, leaf)));
    Arc::new(config)
}

fn hostile_server(pki: &Pki, ca: &TestCa, leaf: &Leaf) -> Arc<ServerConfig> {
    let identity = pki.identity(SERVER, &["orders.mesh"]);
    let mut config = (*server_config(&identity).unwrap()).clone();
    config.cert_resolver = Arc::new(SingleCertAndKey::from(key_of(ca, leaf)));
    Arc::new(config)
}

fn key_of(ca: &TestCa, leaf: &Leaf) -> CertifiedKey {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let pair = ca.issue(leaf);
    let chain = CertificateDer::pem_slice_iter(pair.chain_pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
    CertifiedKey::new(chain, provider().key_provider.load_private_key(key).unwrap())
}

#[tokio::test]
async fn two_sidecars_know_each_other_by_name_with_each_protocol() {
    let pki = Pki::new();
    for alpn in [ALPN_H2, ALPN_TCP] {
        let config = client_config(&pki.identity(CLIENT, &[]), &expect("orders.mesh", &[]), alpn).unwrap();
        let (streams, _) = connect(config, good_server(&pki)).await;
        let (c, s) = streams.unwrap();
        assert_eq!(peer_id(c.get_ref().1).unwrap().as_str(), SERVER);
        assert_eq!(peer_id(s.get_ref().1).unwrap().as_str(), CLIENT);
        assert_eq!(require_alpn(c.get_ref().1), Ok(alpn));
        assert_eq!(require_alpn(s.get_ref().1), Ok(alpn));
        assert_eq!(c.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn a_second_connection_is_a_full_handshake_again() {
    let pki = Pki::new();
    let (client, server) = (good_client(&pki), good_server(&pki));
    for _ in 0..2 {
        let (streams, _) = connect(client.clone(), server.clone()).await;
        let (c, s) = streams.unwrap();
        assert_eq!(c.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(s.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_server_is_known_by_a_dns_name_in_any_case_or_by_a_listed_id_which_replaces_the_name() {
    let pki = Pki::new();
    let us = pki.identity(CLIENT, &[]);
    let server = server_config(&pki.identity(SERVER, &["ORDERS.mesh"])).unwrap();
    for good in [expect("orders.mesh", &[]), expect("elsewhere.mesh", &["spiffe://mesh.example/x", SERVER])] {
        let config = client_config(&us, &good, ALPN_H2).unwrap();
        assert!(connect(config, server.clone()).await.0.is_ok(), "{good:?} was refused");
    }
    for bad in [expect("rders.mesh", &[]), expect("a.orders.mesh", &[])] {
        let config = client_config(&us, &bad, ALPN_H2).unwrap();
        let [c, s] = failures(config, server.clone()).await;
        assert_eq!((c.code, s.code), ("wrong_name", "refused_wrong_name"), "{bad:?}");
        assert!(c.message.contains(SERVER) && c.message.contains("ORDERS.mesh"), "{}", c.message);
        assert!(s.message.starts_with("the peer refused us"), "{}", s.message);
    }
    // The list is the rule where there is one: the DNS name alone no longer suffices.
    let payments = "spiffe://mesh.example/ns/shop/sa/payments";
    let config = client_config(&us, &expect("orders.mesh", &[payments]), ALPN_H2).unwrap();
    let [c, s] = failures(config, server).await;
    assert_eq!((c.code, s.code), ("wrong_id", "refused_identity"));
    assert!(c.message.contains(SERVER) && c.message.contains(payments), "{}", c.message);
    let wildcard = server_config(&pki.identity(SERVER, &["*.mesh"])).unwrap();
    let [c, _] = failures(good_client(&pki), wildcard).await;
    assert_eq!(c.code, "wrong_name", "a wildcard named the service");
}

#[tokio::test]
async fn every_hostile_certificate_is_refused_with_its_reason_on_both_sides_in_both_roles() {
    let pki = Pki::new();
    let good = Leaf::new(SERVER, &["orders.mesh"]);
    let change = |f: &dyn Fn(&mut Leaf)| {
        let mut leaf = good.clone();
        f(&mut leaf);
        leaf
    };
    let stranger = TestCa::root("somebody else");
    let namesake = TestCa::root("mesh root").intermediate("mesh intermediate");
    let cannot_sign = pki.root.intermediate_with("no keyCertSign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let mesh = &pki.intermediate;
    let cases: Vec<(&TestCa, Leaf, &str, &str, &str)> = vec![
        (&stranger, good.clone(), "unknown_root", "refused_unknown_root", "bundle"),
        (&namesake, good.clone(), "unknown_root", "refused_unknown_root", "bundle"),
        (mesh, change(&|l| (l.from, l.until) = (-7200, -3600)), "expired", "refused_expired", "1 h ago"),
        (
            mesh,
            change(&|l| (l.from, l.until) = (3630, 7200)),
            "not_yet_valid",
            "refused_expired",
            "not valid yet (in 1 h",
        ),
        (
            mesh,
            change(&|l| l.uris = vec!["spiffe://other.example/x".into()]),
            "wrong_trust_domain",
            "refused_identity",
            "other.example",
        ),
        (
            mesh,
            change(&|l| l.uris.push("spiffe://mesh.example/admin".into())),
            "many_uri_sans",
            "refused_identity",
            "2 URI names",
        ),
        (mesh, change(&|l| l.uris.clear()), "no_spiffe_id", "refused_identity", "no URI name"),
        (
            mesh,
            change(&|l| l.uris = vec!["https://mesh.example/x".into()]),
            "no_spiffe_id",
            "refused_identity",
            "https://mesh.example/x",
        ),
        (
            mesh,
            change(&|l| l.uris = vec!["spiffe://mesh.example/a/../b".into()]),
            "no_spiffe_id",
            "refused_identity",
            "..",
        ),
        (mesh, change(&|l| l.is_ca = true), "ca_certificate", "refused_identity", "CA's certificate"),
        (
            mesh,
            change(&|l| l.usages.push(KeyUsagePurpose::KeyCertSign)),
            "key_usage",
            "refused_identity",
            "keyCertSign",
        ),
        (mesh, change(&|l| l.usages.push(KeyUsagePurpose::CrlSign)), "key_usage", "refused_identity", "cRLSign"),
        (
            mesh,
            change(&|l| l.purposes = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            "key_usage",
            "refused_key_usage",
            "serverAuth",
        ),
        (&cannot_sign, good.clone(), "key_usage", "refused_identity", "intermediate"),
    ];
    for (ca, leaf, ours, theirs, words) in cases {
        let [c, s] = failures(good_client(&pki), hostile_server(&pki, ca, &leaf)).await;
        assert_eq!((c.code, s.code), (ours, theirs), "as server: {} / {}", c.message, s.message);
        assert!(c.message.contains(words), "{words:?} is missing in: {}", c.message);
        let [c, s] = failures(hostile_client(&pki, ca, &leaf), good_server(&pki)).await;
        assert_eq!((s.code, c.code), (ours, theirs), "as client: {} / {}", s.message, c.message);
        assert!(s.message.contains(words), "{words:?} is missing in: {}", s.message);
        assert!(s.message.starts_with("we refused the peer") && c.message.starts_with("the peer refused us"));
    }
}

#[tokio::test]
async fn an_altered_certificate_has_a_bad_signature_and_not_an_unknown_root() {
    let pki = Pki::new();
    let mut key = key_of(&pki.intermediate, &Leaf::new(SERVER, &["orders.mesh"]));
    // The DNS name is text inside the signed part: "orders.mesh" becomes "brders.mesh".
    let mut der = key.cert[0].to_vec();
    let at = der.windows(11).position(|w| w == b"orders.mesh").unwrap();
    der[at] = b'b';
    key.cert[0] = der.into();
    let mut config = (*good_server(&pki)).clone();
    config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
    let [c, s] = failures(good_client(&pki), Arc::new(config)).await;
    assert_eq!((c.code, s.code), ("bad_signature", "refused_bad_signature"));
}

#[tokio::test]
async fn somebody_elses_certificate_without_its_key_is_refused() {
    let pki = Pki::new();
    let theirs = key_of(&pki.intermediate, &Leaf::new(CLIENT, &[]));
    let mut stolen = key_of(&pki.intermediate, &Leaf::new(CLIENT, &[]));
    stolen.cert = theirs.cert;
    let mut config = (*good_client(&pki)).clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let [c, s] = failures(Arc::new(config), good_server(&pki)).await;
    assert_eq!((s.code, c.code), ("bad_signature", "refused_bad_signature"));
}

#[tokio::test]
async fn a_root_that_has_expired_vouches_for_nobody() {
    let old = TestCa::root_valid("old root", -7200, -3600);
    let leaf = Leaf::new(SERVER, &["orders.mesh"]);
    let server = old.identity(&leaf, &old.pem);
    let client = old.identity(&Leaf::new(CLIENT, &[]), &old.pem);
    let config = client_config(&client, &expect("orders.mesh", &[]), ALPN_H2).unwrap();
    let [c, _] = failures(config, server_config(&server).unwrap()).await;
    assert_eq!(c.code, "expired");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_told_so() {
    let pki = Pki::new();
    let mut config = (*good_client(&pki)).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let [c, s] = failures(Arc::new(config), good_server(&pki)).await;
    assert_eq!((s.code, c.code), ("no_certificate", "refused_no_certificate"));
    assert!(s.message.contains("is there a sidecar"), "{}", s.message);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_by_name_and_none_at_all_is_detected() {
    let pki = Pki::new();
    let mut config = (*good_client(&pki)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let [c, s] = failures(Arc::new(config.clone()), good_server(&pki)).await;
    assert_eq!((s.code, c.code), ("alpn", "refused_alpn"));

    config.alpn_protocols.clear();
    let (c, s) = connect(Arc::new(config), good_server(&pki)).await.0.unwrap();
    assert_eq!(require_alpn(s.get_ref().1), Err(PeerRefusal::Alpn));
    assert_eq!(require_alpn(c.get_ref().1), Err(PeerRefusal::Alpn));
}

#[tokio::test]
async fn tls_1_2_is_refused_by_name() {
    let pki = Pki::new();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let [c, s] = failures(Arc::new(config), good_server(&pki)).await;
    assert_eq!((s.code, c.code), ("version", "refused_version"));
}

#[tokio::test]
async fn a_server_that_speaks_plaintext_is_recognised() {
    let pki = Pki::new();
    let (near, mut far) = duplex(1024);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let name = server_name(&Host::parse("orders.mesh").unwrap());
    let error = TlsConnector::from(good_client(&pki)).connect(name, near).await.unwrap_err();
    let failure = explain(&error);
    assert_eq!(failure.code, "not_tls");
    assert!(failure.message.contains("no sidecar"), "{}", failure.message);
}

#[tokio::test]
async fn a_server_that_hangs_up_is_told_apart_from_one_that_refuses() {
    let pki = Pki::new();
    let (near, far) = duplex(1024);
    drop(far);
    let name = server_name(&Host::parse("orders.mesh").unwrap());
    let error = TlsConnector::from(good_client(&pki)).connect(name, near).await.unwrap_err();
    assert!(["closed", "reset"].contains(&explain(&error).code), "{error:?}");
}

#[test]
fn a_failure_is_found_inside_the_errors_of_other_crates() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);
    let tls = Error::AlertReceived(rustls::AlertDescription::UnknownCA);
    let wrapped = Outer(io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls)));
    assert_eq!(find(&wrapped).unwrap().code, "refused_unknown_root");
    assert_eq!(find(&Outer(io::ErrorKind::ConnectionReset.into())), None);
}

use rustls::Error;

#[test]
fn an_identity_that_has_expired_makes_no_configuration() {
    let pki = Pki::new();
    let mut leaf = Leaf::new(CLIENT, &[]);
    (leaf.from, leaf.until) = (-7200, -3600);
    let identity = pki.intermediate.identity(&leaf, &pki.root.pem);
    let server = server_config(&identity).unwrap_err().to_string();
    assert!(server.contains("our own certificate") && server.contains("expired 1 h ago"), "{server}");
    assert!(client_config(&identity, &expect("orders.mesh", &[]), ALPN_H2).is_err());
}

#[test]
fn the_configured_trust_domain_outranks_our_own() {
    let pki = Pki::new();
    let identity = pki.identity(SERVER, &["orders.mesh"]);
    let rules = PeerRules { trust_domain: TrustDomain::parse("other.example").unwrap(), ..PeerRules::of(&identity) };
    let (leaf, intermediates) = identity.key.cert.split_first().unwrap();
    let now = rustls::pki_types::UnixTime::now();
    let verify = |rules| verify_chain(leaf, intermediates, rules, now, crate::identity::Usage::Server);
    assert_eq!(verify(&rules).unwrap_err().code(), "wrong_trust_domain");
    assert_eq!(verify(&PeerRules::of(&identity)).unwrap().id.as_str(), SERVER);
}

#[test]
fn a_host_that_sni_cannot_carry_is_not_sent() {
    assert_eq!(server_name(&Host::parse("Orders.Mesh.").unwrap()).to_str(), "orders.mesh");
    assert_eq!(server_name(&Host::parse("_x.-bad-").unwrap()).to_str(), "0.0.0.0");
}
