//! Who may talk to whom, and what a refusal says on either side.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use outrigger_e2e::harness::{
    self, Mesh, Pair, Pod, Shop, Sidecar,
    client::body,
    pair::{ECHO, FIRST, HTTP},
    pki::{Ca, Issued, Leaf, TestCa},
    shop::{ORDERS, URL, assert_none_failed},
    tls,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(5);

/// A certificate that must be refused.
struct Hostile {
    what: &'static str,
    /// None: it shows no certificate.
    issued: Option<Issued>,
    /// The code in metrics.
    code: &'static str,
    /// What the refusing side's words must contain.
    words: &'static str,
    /// The alert that the refused side must get.
    alert: &'static str,
}

/// Every certificate that must be refused from a peer called `workload` that may serve `names`.
fn hostile(ca: &TestCa, workload: &str, names: &[&str]) -> Vec<Hostile> {
    let right = Leaf::of(workload, names);
    let case = |what, leaf: Leaf, code, words, alert| {
        let issued = Some(ca.issue(&leaf));
        Hostile { what, issued, code, words, alert }
    };
    let two = vec![right.uris[0].clone(), "spiffe://mesh.example/ns/test/sa/admin".to_owned()];
    let elsewhere = vec!["spiffe://other.example/ns/test/sa/orders".to_owned()];
    vec![
        Hostile {
            what: "an unknown root",
            issued: Some(TestCa::new("another root").issue(&right)),
            code: "unknown_root",
            words: "none of the roots",
            alert: "UnknownCA",
        },
        case(
            "expired",
            Leaf { from: -7_200, until: -3_600, ..right.clone() },
            "expired",
            "expired",
            "CertificateExpired",
        ),
        case(
            "not valid yet",
            Leaf { from: 3_600, until: 7_200, ..right.clone() },
            "not_yet_valid",
            "not valid yet",
            "CertificateExpired",
        ),
        case(
            "another trust domain",
            Leaf { uris: elsewhere, ..right.clone() },
            "wrong_trust_domain",
            "not in our trust domain mesh.example",
            "CertificateUnknown",
        ),
        case("two URI SANs", Leaf { uris: two, ..right.clone() }, "many_uri_sans", "2 URI names", "CertificateUnknown"),
        case(
            "no URI SAN",
            Leaf { uris: Vec::new(), ..right },
            "no_spiffe_id",
            "no usable SPIFFE id",
            "CertificateUnknown",
        ),
    ]
}

#[test]
fn a_server_refuses_every_wrong_client_and_says_why() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = TestCa::new("test root");
        let (server, outside) = (mesh.pod("server"), mesh.pod("outside"));
        ca.install(&server, &Leaf::of("server", &[ORDERS]));
        let _origin = server.serve(&["--http", "8080"]).await;
        let sidecar = Sidecar::start(&mesh, &server, json!({})).await;
        let mut cases = hostile(&ca, "outside", &[]);
        cases.push(Hostile {
            what: "no certificate",
            issued: None,
            code: "no_certificate",
            words: "it showed no certificate",
            alert: "CertificateRequired",
        });
        for case in &cases {
            for alpn in [tls::H2, tls::TCP] {
                let refused = |reason| [("direction", "inbound"), ("reason", reason)];
                let before = server.metric("outrigger_tls_failures_total", &refused(case.code)).await;
                let log_before = sidecar.log_text().len();
                let stream = outside.connect(server.at4(8080)).await.unwrap();
                // In TLS 1.3 the client has finished before the server looks at its certificate.
                let mut stream =
                    timeout(SOON, tls::connect(stream, case.issued.as_ref(), &[alpn])).await.unwrap().unwrap();
                let error = timeout(SOON, stream.read(&mut [0; 1])).await.expect("no hang");
                let error = error.expect_err(&format!("{}: it was let in", case.what)).to_string();
                assert!(error.contains(case.alert), "{}: the client is told: {error}", case.what);
                server.until_metric("outrigger_tls_failures_total", &refused(case.code), before + 1.0).await;
                let log = sidecar.log_text().split_off(log_before);
                assert!(log.contains(case.words), "{}: the server's log says: {log}", case.what);
                assert!(log.contains(&outside.v4.to_string()), "{}: and names the peer: {log}", case.what);
            }
        }
        // A right one of the same CA is let in, so it is the certificates that made the difference.
        let right = ca.issue(&Leaf::of("outside", &[]));
        let stream = outside.connect(server.at4(8080)).await.unwrap();
        let stream = tls::connect(stream, Some(&right), &[tls::H2]).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::spawn(connection);
        let ask = Request::get("http://orders.mesh:8080/whoami").body(body("")).unwrap();
        let answer = timeout(SOON, sender.send_request(ask)).await.unwrap().unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("URI=spiffe://mesh.example/ns/test/sa/outside"));
        assert_eq!(
            server.metric("outrigger_connections_open", &[("direction", "inbound"), ("transport", "mtls")]).await,
            1.0
        );
    });
}

/// Accepts mesh TLS with whatever identity is set, and keeps what the handshakes came to.
struct Impostor {
    identity: Rc<RefCell<Issued>>,
    outcomes: Rc<RefCell<Vec<Result<(), String>>>>,
}

impl Impostor {
    fn start(pod: &Pod, identity: Issued) -> Self {
        let impostor = Self { identity: Rc::new(RefCell::new(identity)), outcomes: Rc::default() };
        let (listener, identity, outcomes) = (pod.listen(8080), impostor.identity.clone(), impostor.outcomes.clone());
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let identity = identity.borrow().clone();
                let outcome = match tls::accept(stream, &identity).await {
                    Ok(mut stream) => match stream.read(&mut [0; 1]).await {
                        Ok(n) => {
                            if n > 0 {
                                Ok(())
                            } else {
                                Err("closed".to_owned())
                            }
                        }
                        Err(e) => Err(e.to_string()),
                    },
                    Err(e) => Err(e.to_string()),
                };
                outcomes.borrow_mut().push(outcome);
            }
        });
        impostor
    }
}

#[test]
fn a_client_refuses_every_wrong_server_and_says_why() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = TestCa::new("test root");
        let (client, outside) = (mesh.pod("client"), mesh.pod("outside"));
        ca.install(&client, &Leaf::of("client", &[]));
        let _sidecar = Sidecar::start(&mesh, &client, json!({})).await;
        // A service of its own for each case, so that none inherits another's ejection.
        let names: Vec<_> = (0..8).map(|n| format!("case{n}.mesh")).collect();
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        let mut cases = hostile(&ca, "outside", &all);
        cases.push(Hostile {
            what: "a right chain with a wrong name",
            issued: Some(ca.issue(&Leaf::of("outside", &["payments.mesh"]))),
            code: "wrong_name",
            words: "is for payments.mesh",
            alert: "BadCertificate",
        });
        let impostor = Impostor::start(&outside, ca.issue(&Leaf::of("outside", &all)));
        for (name, case) in names.iter().zip(&cases) {
            mesh.dns.set(name, 60, &[outside.v4.into()]);
            *impostor.identity.borrow_mut() = case.issued.clone().unwrap();
            impostor.outcomes.borrow_mut().clear();
            let refused = client.get(outside.at4(8080), &format!("{name}:8080"), "/").await;
            assert_eq!(refused.status, 503, "{}", case.what);
            assert_eq!(refused.header("outrigger-error"), "tls_failed", "{}: {}", case.what, refused.text());
            assert!(refused.text().contains(case.words), "{}: the caller reads: {}", case.what, refused.text());
            let counted = [("direction", "outbound"), ("reason", case.code)];
            assert!(client.metric("outrigger_tls_failures_total", &counted).await >= 1.0, "{}", case.what);
            harness::eventually("the impostor's handshake ends", SOON, || async {
                if impostor.outcomes.borrow().is_empty() { Err(String::new()) } else { Ok(()) }
            })
            .await;
            for outcome in impostor.outcomes.borrow().iter() {
                let error = outcome.as_ref().expect_err(case.what);
                assert!(error.contains(case.alert), "{}: the server is told: {error}", case.what);
            }
        }
        // And the right one: the request is sent.
        *impostor.identity.borrow_mut() = ca.issue(&Leaf::of("outside", &all));
        impostor.outcomes.borrow_mut().clear();
        mesh.dns.set("case7.mesh", 60, &[outside.v4.into()]);
        let asking = client.try_get(outside.at4(8080), "case7.mesh:8080", "/");
        let _ = timeout(Duration::from_millis(800), asking).await;
        assert_eq!(impostor.outcomes.borrow().first(), Some(&Ok(())));
    });
}

#[test]
fn a_server_without_tls_gets_nothing_in_plaintext() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = TestCa::new("test root");
        let (client, outside) = (mesh.pod("client"), mesh.pod("outside"));
        ca.install(&client, &Leaf::of("client", &[]));
        let _sidecar = Sidecar::start(&mesh, &client, json!({})).await;
        mesh.dns.set("plain.mesh", 60, &[outside.v4.into()]);
        let origin = outside.serve(&["--http", "8080"]).await;
        let refused = client.get(outside.at4(8080), "plain.mesh:8080", "/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "tls_failed"));
        assert!(refused.text().contains("not TLS"), "{}", refused.text());
        let count = outside.get((std::net::Ipv4Addr::LOCALHOST, 8080).into(), "x", "/count").await.text();
        assert_eq!(count, "0\n");
        drop(origin);
    });
}

/// What a plaintext client outside of the mesh gets from raw TCP: the bytes, or the error.
async fn raw(outside: &Pod, to: std::net::SocketAddr, send: &[u8], wait: Duration) -> io::Result<Vec<u8>> {
    let mut stream = outside.connect(to).await?;
    stream.write_all(send).await?;
    let mut all = Vec::new();
    match timeout(wait, stream.read_buf(&mut all)).await {
        Ok(read) => read.map(|_| all),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "silence")),
    }
}

#[test]
fn strict_refuses_plaintext_but_for_the_health_probes() {
    harness::run(async {
        let exceptions = json!({ "inbound": { "ports": [
            { "port": HTTP, "plaintext_paths": ["/healthz"] },
            { "port": FIRST, "mode": "permissive" },
        ] } });
        let pair = Pair::with(Mesh::new(), json!({}), exceptions).await;
        let outside = pair.mesh.pod("outside");
        for family in pair.families() {
            let to = family.at(HTTP);
            for h2 in [false, true] {
                let uri = if h2 { format!("http://{to}/") } else { "/".to_owned() };
                let ask = Request::get(uri).header("host", to.to_string()).body(body("")).unwrap();
                let refused = outside.send(to, h2, ask).await;
                assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (403, "mesh_only"), "h2={h2}");
                assert!(refused.text().contains("inbound.mode"), "{}", refused.text());
            }
            assert_eq!(outside.get(to, "x", "/healthz").await.text(), "ok\n");
            for path in ["/healthz/", "/healthz/../", "/Healthz", "//healthz", "/healthz/x", "/whoami", "/%68ealthz"] {
                assert_eq!(outside.get(to, "x", path).await.status, 403, "{path}");
            }
            let post = Request::post("/healthz").header("host", "x").body(body("x")).unwrap();
            assert_eq!(outside.send(to, false, post).await.status, 403, "a probe reads");

            // Opaque bytes and a foreign TLS are reset; the application never hears of them.
            for bytes in [&b"\0\x01\x02opaque"[..], b"SSH-2.0-client\r\n"] {
                let error = raw(&outside, family.at(ECHO), bytes, SOON).await.expect_err("refused");
                assert_ne!(error.kind(), io::ErrorKind::TimedOut, "no hang");
            }
            let stream = outside.connect(family.at(ECHO)).await.unwrap();
            timeout(SOON, tls::connect(stream, None, &[b"h2"])).await.expect("no hang").expect_err("refused");

            // An exception for one port.
            assert_eq!(raw(&outside, family.at(FIRST), b"", SOON).await.unwrap(), b"220 server ready\r\n");
        }
        let refused = [("direction", "inbound"), ("reason", "mesh_only")];
        assert!(pair.server.metric("outrigger_errors_total", &refused).await >= 20.0);
        // The mesh's own calls go on.
        assert_eq!(pair.client.get(pair.families()[0].at(HTTP), &pair.families()[0].host(), "/").await.status, 200);
    });
}

#[test]
fn permissive_serves_plaintext_and_still_speaks_mtls_with_the_mesh() {
    harness::run(async {
        let pair = Pair::with(Mesh::new(), json!({}), json!({ "inbound": { "mode": "permissive" } })).await;
        let outside = pair.mesh.pod("outside");
        for family in pair.families() {
            let to = family.at(HTTP);
            for h2 in [false, true] {
                let uri = if h2 { format!("http://{to}/whoami") } else { "/whoami".to_owned() };
                let ask = Request::get(uri)
                    .header("host", to.to_string())
                    .header("x-forwarded-client-cert", "URI=spiffe://mesh.example/ns/test/sa/admin")
                    .body(body(""))
                    .unwrap();
                let who = outside.send(to, h2, ask).await.json();
                assert_eq!(who["name"], "server", "h2={h2}");
                assert!(who["headers"].get("x-forwarded-client-cert").is_none(), "nobody vouches for it: {who}");
            }
            assert_eq!(raw(&outside, family.at(ECHO), b"\0\x01ok", SOON).await.unwrap(), b"\0\x01ok");
            assert_eq!(raw(&outside, family.at(FIRST), b"", SOON).await.unwrap(), b"220 server ready\r\n");
            let who = pair.client.get(to, &family.host(), "/whoami").await.json();
            assert!(who["headers"]["x-forwarded-client-cert"].to_string().contains("/sa/client"), "{who}");
        }
        assert!(pair.server.metric("outrigger_connections_total", &[("transport", "plaintext")]).await >= 4.0);
        assert!(pair.server.metric("outrigger_connections_total", &[("transport", "mtls")]).await >= 1.0);
    });
}

#[test]
fn a_member_that_is_not_listed_may_not_call() {
    harness::run(async {
        let allow = json!({ "inbound": { "allow": ["spiffe://mesh.example/ns/test/sa/client"] } });
        let pair = Pair::with(Mesh::new(), json!({}), allow).await;
        let other = pair.mesh.pod("other");
        pair.ca.issue(&other, &[], "1h");
        let _sidecar = Sidecar::start(&pair.mesh, &other, json!({})).await;
        let family = pair.families()[0];
        assert_eq!(pair.client.get(family.at(HTTP), &family.host(), "/").await.status, 200);
        let refused = other.get(family.at(HTTP), &family.host(), "/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (403, "not_allowed"));
        assert!(refused.text().contains("spiffe://mesh.example/ns/test/sa/other"), "{}", refused.text());
        let plain = Request::builder().method(Method::GET).uri("/").header("host", "x").body(body("")).unwrap();
        assert_eq!(pair.mesh.pod("outside").send(family.at(HTTP), false, plain).await.status, 403);
    });
}

#[test]
fn an_expired_certificate_of_ones_own_stops_calls_and_never_falls_back_to_plaintext() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = TestCa::new("test root");
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        mesh.dns.set(ORDERS, 60, &[server.v4.into()]);
        ca.install(&server, &Leaf::of("server", &[ORDERS]));
        ca.install(&client, &Leaf { until: 6, ..Leaf::of("client", &[]) });
        let expires = Instant::now() + Duration::from_secs(6);
        let _origin = server.serve(&["--http", "8080"]).await;
        let _server = Sidecar::start(&mesh, &server, json!({ "inbound": { "mode": "permissive" } })).await;
        let _client = Sidecar::start(&mesh, &client, json!({})).await;
        assert_eq!(client.get(server.at4(8080), "orders.mesh:8080", "/").await.status, 200);
        sleep(expires.saturating_duration_since(Instant::now()) + Duration::from_millis(1_500)).await;
        let ready = client.get((std::net::Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await;
        assert_eq!(ready.status, 503, "{}", ready.text());
        assert!(ready.text().contains("expired"), "{}", ready.text());
        // A name that has no connection yet.
        mesh.dns.set("fresh.mesh", 60, &[server.v4.into()]);
        let refused = client.get(server.at4(8080), "fresh.mesh:8080", "/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "no_certificate"));
        assert!(refused.text().contains("not valid at this time"), "{}", refused.text());
        // A new certificate heals it.
        ca.install(&client, &Leaf::of("client", &[]));
        harness::eventually("the new certificate is taken up", SOON, || async {
            let reply = client.get(server.at4(8080), "orders.mesh:8080", "/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}

/// The serial of a sidecar's current certificate.
async fn serial(pod: &Pod) -> String {
    let certs = pod.admin("/certs").await;
    assert!(!certs.text().contains("PRIVATE KEY"), "key material on /certs");
    certs.json()["certificate"]["serial"].as_str().unwrap_or_else(|| panic!("no serial: {}", certs.text())).to_owned()
}

/// Says something over an echo connection and hears it back.
async fn echo_lives(stream: &mut tokio::net::TcpStream) {
    stream.write_all(b"\x01alive").await.unwrap();
    let mut back = [0; 6];
    timeout(SOON, stream.read_exact(&mut back)).await.expect("the echo").unwrap();
}

#[test]
fn new_certificate_files_are_taken_up_under_load_and_break_nothing() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let family = pair.families()[0];
        let mut old = pair.client.connect(family.at(ECHO)).await.unwrap();
        echo_lives(&mut old).await;
        let (url, to) = (format!("http://{}/", family.host()), family.at(HTTP).to_string());
        let args = ["--url", &url, "--connect-to", &to, "--duration", "8s", "--connections", "4", "--rate", "300"];
        let load = pair.client.load(&args);
        let names: Vec<_> =
            ["orders4.mesh", "orders6.mesh", "echo4.mesh", "echo6.mesh", "first4.mesh", "script4.mesh"].to_vec();
        for _ in 0..3 {
            let before = (serial(&pair.client).await, serial(&pair.server).await);
            pair.ca.issue(&pair.client, &[], "1h");
            pair.ca.issue(&pair.server, &names, "1h");
            harness::eventually("both take the new certificate", SOON, || async {
                let now = (serial(&pair.client).await, serial(&pair.server).await);
                if now.0 != before.0 && now.1 != before.1 { Ok(()) } else { Err(format!("{now:?}")) }
            })
            .await;
        }
        assert_none_failed(&load.report().await);
        echo_lives(&mut old).await;
        let mut new = pair.client.connect(family.at(ECHO)).await.unwrap();
        echo_lives(&mut new).await;
    });
}

#[test]
fn certificates_are_renewed_from_the_ca_under_load() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let _server = ca.serve().await;
        let (client, orders) = (mesh.pod("client"), mesh.pod("orders"));
        mesh.dns.set(ORDERS, 60, &[orders.v4.into()]);
        let _origin = orders.serve(&["--http", "8080"]).await;
        // The shortest lifetime that can be asked for: renewed after 27 to 33 s.
        let enrol = |pod: &Pod, names: &[&str]| json!({ "identity": ca.enrolment(pod, names, "1m") });
        let _orders = Sidecar::start(&mesh, &orders, enrol(&orders, &[ORDERS])).await;
        let _client = Sidecar::start(&mesh, &client, enrol(&client, &[])).await;
        let begun = Instant::now();
        let before = (serial(&client).await, serial(&orders).await);
        let load = client.load(&["--url", URL, "--duration", "40s", "--connections", "4", "--rate", "200"]);
        harness::eventually("both have renewed", Duration::from_secs(45), || async {
            let now = (serial(&client).await, serial(&orders).await);
            if now.0 != before.0 && now.1 != before.1 { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        let took = begun.elapsed();
        assert!((24..=36).contains(&took.as_secs()), "half of a minute, give or take a tenth: {took:?}");
        assert_none_failed(&load.report().await);
        // The key on disk is the sidecar's alone.
        let key = std::fs::metadata(client.folder("identity").join("key.pem")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
        // By the CA's own log: two enrolments and two renewals.
        let log = ca.run(&["log", "list", "--json"]);
        let of = |id: &str| log.lines().filter(|l| l.contains(id)).count();
        assert_eq!((of("/sa/client\""), of("/sa/orders\"")), (2, 2), "{log}");
    });
}

#[test]
fn a_load_balanced_service_is_known_by_its_ids_where_they_are_listed() {
    harness::run(async {
        let service = |id: &str| {
            let id = format!("spiffe://mesh.example/ns/test/sa/{id}");
            json!({ "services": [{ "name": ORDERS, "port": 8080, "identities": [id] }] })
        };
        let mut shop = Shop::open(Mesh::new(), 1, 5, service("orders1")).await;
        assert_eq!(shop.get("/").await.text(), "orders1\n");
        shop.client_sidecar.kill();
        shop.client_sidecar = Sidecar::start(&shop.mesh, &shop.client, service("somebody-else")).await;
        let refused = shop.get("/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "tls_failed"));
        assert!(refused.text().contains("/sa/somebody-else"), "{}", refused.text());
    });
}
