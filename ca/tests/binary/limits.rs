//! Callers who want too much, too long, too slowly or too often, and honest ones beside them.

use std::{sync::Arc, time::Duration};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolCause, EnrolRequest, enrol},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Ca, ID, Server, ask, leaf,
    serving::{METRICS, curl, try_curl, until_ended},
};

#[tokio::test]
async fn failures_are_limited_by_address_and_successes_are_not() {
    let ca = Ca::new();
    let server = ca.serve_with(&[&METRICS[..], &["--failed-attempts", "1/m:3"]].concat());
    let (bundle, tokens) = (ca.bundle(), ca.tokens(40));
    let (mut key, mut csr) = new_key_and_csr(None).unwrap();
    let mut enrolled = None;
    for token in &tokens[..30] {
        (key, csr) = new_key_and_csr(None).unwrap();
        enrolled = Some(ask(&server, &bundle, Credential::Token(token.clone()), csr.as_str()).await.unwrap());
    }
    for _ in 0..3 {
        let error = ask(&server, &bundle, Credential::Token("ojt_wrong".into()), csr.as_str()).await.unwrap_err();
        assert!(error.to_string().contains("unknown to this CA"), "{error}");
    }
    // From here on even a good token waits, and is not spent.
    let error = ask(&server, &bundle, Credential::Token(tokens[30].clone()), csr.as_str()).await.unwrap_err();
    let EnrolCause::Refused { code, message, permanent } = &error.cause else { panic!("{error}") };
    assert!(*code == "resource_exhausted" && message.contains("try again in") && !permanent, "{error}");
    // The neighbour that has a certificate renews it all the same.
    let chain_pem = enrolled.unwrap().chain_pem;
    let mine = Credential::Certificate { chain_pem, key_pem: key.as_str().to_owned() };
    ask(&server, &bundle, mine, csr.as_str()).await.unwrap();
    assert_eq!(ca.log().iter().filter(|e| e["credential"] == "token").count(), 30);
    let metrics = curl(&ca, &format!("http://{}/metrics", server.metrics.as_ref().unwrap()), &[]);
    for line in [
        r#"outrigger_ca_rate_limited_total{limit="failures"} 1"#,
        r#"outrigger_ca_refusals_total{reason="token_unknown"} 3"#,
        r#"outrigger_ca_refusals_total{reason="rate_limited"} 1"#,
    ] {
        assert!(metrics.text.lines().any(|l| l == line), "no {line} in\n{}", metrics.text);
    }
}

#[tokio::test]
async fn nobody_gets_a_longer_life_than_the_server_allows() {
    let ca = Ca::new();
    let life = async |options: &[&str], wished: Option<u64>| {
        let (_, csr) = new_key_and_csr(None).unwrap();
        let (server, bundle, token) = (ca.serve_with(options), ca.bundle(), ca.token(ID));
        let (credential, ttl) = (Credential::Token(token), wished.map(Duration::from_secs));
        let address = &server.address;
        let request =
            EnrolRequest { address, bundle_pem: &bundle, credential, csr_pem: csr.as_str(), ttl, cluster_id: None };
        let pem = leaf(&enrol(request).await.unwrap().chain_pem);
        let validity = pem.parse_x509().unwrap().validity().clone();
        // Backdated by a minute.
        validity.not_after.timestamp() - validity.not_before.timestamp() - 60
    };
    let month = Some(30 * 86_400);
    for (options, wished, granted) in [
        (&[][..], month, 86_400),
        (&["--max-ttl", "7d"], month, 7 * 86_400),
        (&["--max-ttl", "1h"], None, 3600),
        (&["--max-ttl", "1h"], Some(600), 600),
    ] {
        let got = life(options, wished).await;
        assert!((granted - 1..=granted + 1).contains(&got), "{options:?}, {wished:?}: {got} s");
    }
}

/// The limits of the defaults let a herd behind one address through, each at its first try.
#[tokio::test]
async fn a_thousand_sidecars_that_start_at_once_behind_one_address_are_all_served() {
    const HERD: usize = 1000;
    let ca = Ca::new();
    let server = ca.serve_with(&METRICS);
    let (bundle, tokens) = (Arc::new(ca.bundle()), ca.tokens(HERD));
    let began = Instant::now();
    let mut herd = tokio::task::JoinSet::new();
    for token in tokens {
        let (bundle, address) = (Arc::clone(&bundle), server.address.clone());
        let (_, csr) = new_key_and_csr(None).unwrap();
        herd.spawn(async move {
            let credential = Credential::Token(token);
            let request = EnrolRequest {
                address: &address,
                bundle_pem: &bundle,
                credential,
                csr_pem: csr.as_str(),
                ttl: None,
                cluster_id: None,
            };
            enrol(request).await.map(drop)
        });
    }
    let results = herd.join_all().await;
    let took = began.elapsed();
    let failures: Vec<String> = results.into_iter().filter_map(|r| r.err().map(|e| e.to_string())).collect();
    println!("{HERD} enrolments in {took:?}, {:.0} a second", HERD as f64 / took.as_secs_f64());
    assert!(failures.is_empty(), "{} failed, the first: {}", failures.len(), failures[0]);
    let metrics = curl(&ca, &format!("http://{}/metrics", server.metrics.as_ref().unwrap()), &[]);
    assert!(metrics.text.contains(r#"{credential="token",outcome="issued"} 1000"#), "{}", metrics.text);
}

#[tokio::test]
async fn one_identity_is_limited_and_its_token_survives_the_refusal() {
    let ca = Ca::new();
    let server = ca.serve_with(&["--id-rate", "2/s:2"]);
    let (bundle, tokens) = (ca.bundle(), ca.tokens(3));
    let renew = async |token: &str| {
        let (_, csr) = new_key_and_csr(None).unwrap();
        ask(&server, &bundle, Credential::Token(token.to_owned()), csr.as_str()).await
    };
    renew(&tokens[0]).await.unwrap();
    renew(&tokens[1]).await.unwrap();
    let error = renew(&tokens[2]).await.unwrap_err();
    assert!(error.to_string().contains("this identity"), "{error}");
    let other = ca.token("spiffe://mesh.example/other");
    renew(&other).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    renew(&tokens[2]).await.unwrap();
}

async fn tls(ca: &Ca, server: &Server, alpn: &[u8]) -> TlsStream<TcpStream> {
    tls_to(&ca.bundle(), &server.address, alpn).await
}

/// A TLS connection without a certificate.
pub(crate) async fn tls_to(bundle: &str, address: &str, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(bundle.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn slow_callers_are_ended_at_every_step_and_hold_nobody_up() {
    let ca = Ca::new();
    let server = ca.serve();
    // More than one source's share of handshakes: they stand still, and the next caller comes in when they are over.
    let silent = async {
        let mut held = TcpStream::connect(&server.address).await.unwrap();
        until_ended(&mut held).await.1
    };
    let no_head = async {
        let mut held = tls(&ca, &server, b"http/1.1").await;
        until_ended(&mut held).await.1
    };
    let half_a_head = async {
        let mut held = tls(&ca, &server, b"http/1.1").await;
        held.write_all(b"GET /bundle.pem HTTP/1.1\r\nHos").await.unwrap();
        until_ended(&mut held).await.1
    };
    let no_request_on_h2 = async {
        let mut held = tls(&ca, &server, b"h2").await;
        held.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        until_ended(&mut held).await.1
    };
    let no_body = async {
        let mut held = tls(&ca, &server, b"http/1.1").await;
        let head = "POST /istio.v1.auth.IstioCertificateService/CreateCertificate HTTP/1.1\r\nhost: ca\r\ncontent-type: application/grpc\r\ncontent-length: 100\r\n\r\n\0\0";
        held.write_all(head.as_bytes()).await.unwrap();
        until_ended(&mut held).await.1
    };
    let all = tokio::join!(silent, no_head, half_a_head, no_request_on_h2, no_body);
    for (what, took) in
        [("silent", all.0), ("no head", all.1), ("half a head", all.2), ("h2", all.3), ("no body", all.4)]
    {
        assert!((9..=30).contains(&took.as_secs()), "{what}: ended after {took:?}");
    }
    let (_, csr) = new_key_and_csr(None).unwrap();
    ask(&server, &ca.bundle(), Credential::Token(ca.token(ID)), csr.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_connections_from_one_address_is_cut_and_the_rest_is_served() {
    let ca = Ca::new();
    let server = ca.serve_with(&[&METRICS[..], &["--max-connections-per-source", "20"]].concat());
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(TcpStream::connect(&server.address).await.unwrap());
    }
    sleep(Duration::from_millis(300)).await;
    let mut extra = TcpStream::connect(&server.address).await.unwrap();
    let (_, took) = until_ended(&mut extra).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    // The same flood, and a caller from another address.
    let other = curl(&ca, &format!("https://{}/bundle.pem", server.address), &["--interface", "127.0.0.2"]);
    assert_eq!(other.status, 200);
    let metrics = curl(&ca, &format!("http://{}/metrics", server.metrics.as_ref().unwrap()), &[]);
    assert!(metrics.text.contains("outrigger_ca_connections_refused_total 1"), "{}", metrics.text);
    drop(held);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(curl(&ca, &format!("https://{}/bundle.pem", server.address), &[]).status, 200);
}

#[tokio::test]
async fn what_is_too_long_is_refused_in_words() {
    let ca = Ca::new();
    let server = ca.serve();
    let url = format!("https://{}/bundle.pem", server.address);
    let head = format!("x-long: {}", "a".repeat(20_000));
    let got = curl(&ca, &url, &["--http1.1", "-H", &head]);
    assert_eq!(got.status, 431, "{}", got.text);
    let many: Vec<String> = (0..100).map(|n| format!("x-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().flat_map(|h| ["-H", h.as_str()]).collect();
    assert_eq!(curl(&ca, &url, &[&["--http1.1"][..], &many].concat()).status, 431);

    let error = ask(&server, &ca.bundle(), Credential::Token(ca.token(ID)), &"x".repeat(20_000)).await.unwrap_err();
    assert!(error.to_string().contains("limit is 16384"), "{error}");
    let error = ask(&server, &ca.bundle(), Credential::Token(ca.token(ID)), &"x".repeat(200_000)).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::Refused { code: "out_of_range" | "resource_exhausted", .. }), "{error}");

    // Many small messages where one belongs are as long as one that is too long.
    let body = ca.path("body");
    let message = [&[0, 0, 0, 0, 100][..], &[0x0a, 98], &[b'a'; 98]].concat();
    std::fs::write(&body, message.repeat(2000)).unwrap();
    let rpc = "istio.v1.auth.IstioCertificateService/CreateCertificate";
    let data = format!("@{body}");
    let options = ["--http2", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", &data];
    if let Ok(got) = try_curl(&ca, &format!("https://{}/{rpc}", server.address), &options) {
        assert_ne!(got.header("grpc-status"), Some("0"), "{}", got.text);
    }
    assert_eq!(curl(&ca, &url, &[]).status, 200);
}
