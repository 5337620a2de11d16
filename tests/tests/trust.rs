//! Roots and trust domains that do not fit, between two real sidecars: who is told what, and how it is healed without a
//! restart. And roots that the real CA replaces, and certificates that it revokes, under their traffic.

use std::time::Duration;

use http::Method;
use outrigger_e2e::harness::{
    self, Mesh, Pod, Process, Reply, Sidecar,
    client::{body, request},
    pki::{Ca, Issued, Leaf, TestCa, id, secret},
    shop::{ORDERS, URL, assert_none_failed},
    tls,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);
const HOST: &str = "orders.mesh:8080";
const ECHO: u16 = 9000;

/// A client and a server that need not trust each other.
struct Strangers {
    client_sidecar: Sidecar,
    server_sidecar: Sidecar,
    _origin: Process,
    client: Pod,
    server: Pod,
    _mesh: Mesh,
}

fn identify(pod: &Pod, issued: &Issued, roots: &[&TestCa]) {
    let dir = pod.folder("identity");
    secret(&dir.join("cert.pem"), &issued.chain);
    secret(&dir.join("key.pem"), &issued.key);
    trust(pod, roots);
}

/// Replaces the pod's bundle in one step.
fn trust(pod: &Pod, roots: &[&TestCa]) {
    let dir = pod.folder("identity");
    secret(&dir.join("new"), &roots.iter().map(|ca| ca.bundle()).collect::<String>());
    std::fs::rename(dir.join("new"), dir.join("bundle.pem")).unwrap();
}

impl Strangers {
    /// Each with a certificate and the roots that it trusts.
    async fn meet(client_is: (&Issued, &[&TestCa]), server_is: (&Issued, &[&TestCa]), client_config: Value) -> Self {
        let mesh = Mesh::new();
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        identify(&client, client_is.0, client_is.1);
        identify(&server, server_is.0, server_is.1);
        mesh.dns.set(ORDERS, 60, &[server.v4.into()]);
        let origin = server.serve(&["--http", "8080", "--tcp-echo", &ECHO.to_string()]).await;
        let mut config = json!({ "services": [
            { "name": ORDERS, "port": 8080 },
            { "name": "streams.mesh", "port": ECHO, "hosts": [ORDERS] },
        ] });
        harness::sidecar::merge(&mut config, client_config);
        let server_sidecar = Sidecar::start(&mesh, &server, json!({})).await;
        let client_sidecar = Sidecar::start(&mesh, &client, config).await;
        harness::eventually("the endpoints are known", SOON, || async {
            let text = client.admin("/endpoints").await.text();
            let both = text.contains(&server.at4(8080).to_string()) && text.contains(&server.at4(ECHO).to_string());
            if both { Ok(()) } else { Err(text) }
        })
        .await;
        Self { client_sidecar, server_sidecar, _origin: origin, client, server, _mesh: mesh }
    }

    async fn ask(&self, h2: bool, method: Method) -> Reply {
        let ask = request(HOST, h2, method, "/").body(body("x")).unwrap();
        timeout(SOON, self.client.send(self.server.at4(8080), h2, ask)).await.expect("no hang")
    }

    /// Says something over an opaque connection; what came back.
    async fn echo(&self) -> std::io::Result<tokio::net::TcpStream> {
        let mut stream = self.client.connect(self.server.at4(ECHO)).await?;
        stream.write_all(b"\x01hello").await?;
        timeout(SOON, stream.read_exact(&mut [0; 6])).await.expect("no hang")?;
        Ok(stream)
    }

    /// The server refuses the client's certificate, which a client of TLS 1.3 hears after its own handshake is done.
    async fn refused(&self, words: &str, codes: (&str, &str)) {
        let theirs = [("direction", "inbound"), ("reason", codes.1)];
        let ours = [("direction", "outbound"), ("reason", codes.0)];
        for (h2, method) in [(false, Method::GET), (true, Method::GET), (false, Method::POST), (true, Method::POST)] {
            let before = self.client.metric("outrigger_tls_failures_total", &ours).await;
            let refused = self.ask(h2, method.clone()).await;
            let context = format!("h2={h2} {method}: {}", refused.text());
            assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "tls_failed"), "{context}");
            for part in ["the peer refused us", words, ORDERS, &self.server.v4.to_string()] {
                assert!(refused.text().contains(part), "no \"{part}\" in {context}");
            }
            let after = self.client.metric("outrigger_tls_failures_total", &ours).await;
            assert!(after > before, "{context}: the caller's sidecar counts {after} after {before}");
        }
        assert!(self.server.metric("outrigger_tls_failures_total", &theirs).await >= 4.0);
        let error = self.echo().await.expect_err("opaque bytes are refused as well");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        let log = self.client_sidecar.log_text();
        assert!(log.contains("the peer refused us") && log.contains(words), "the log says: {log}");
        let count = self.server.get((std::net::Ipv4Addr::LOCALHOST, 8080).into(), "x", "/count").await.text();
        assert_eq!(count, "0\n", "the application never hears of it");
    }
}

#[test]
fn a_late_refusal_for_an_unknown_root_is_told_in_words() {
    harness::run(async {
        let (old, new) = (TestCa::new("the old root"), TestCa::new("the new root"));
        let client_is = new.issue(&Leaf::of("client", &[]));
        let server_is = old.issue(&Leaf::of("server", &[ORDERS]));
        let they = Strangers::meet((&client_is, &[&old]), (&server_is, &[&old]), json!({})).await;
        they.refused("none of the roots in its bundle", ("refused_unknown_root", "unknown_root")).await;
    });
}

#[test]
fn a_new_bundle_is_taken_up_without_a_restart() {
    harness::run(async {
        let (old, new) = (TestCa::new("the old root"), TestCa::new("the new root"));
        let client_is = new.issue(&Leaf::of("client", &[]));
        let server_is = old.issue(&Leaf::of("server", &[ORDERS]));
        let mut they = Strangers::meet((&client_is, &[&old]), (&server_is, &[&old]), json!({})).await;
        assert_ne!(they.ask(false, Method::GET).await.status, 200);
        assert!(they.echo().await.is_err());

        // The new root is added to the server's bundle: nobody is restarted.
        trust(&they.server, &[&old, &new]);
        harness::eventually("the new bundle is taken up", Duration::from_secs(10), || async {
            let reply = they.ask(false, Method::GET).await;
            if reply.text() == "server\n" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
        let roots = they.server.admin("/certs").await.json()["roots"].as_array().unwrap().len();
        assert_eq!(roots, 2, "/certs shows both");
        let mut stream = they.echo().await.unwrap();

        // The old root goes: who has nothing better is refused from then on; what is open, and who has, goes on.
        let outside = they._mesh.pod("outside");
        let outdated = old.issue(&Leaf::of("outside", &[]));
        let knock = async || {
            let tcp = outside.connect(they.server.at4(8080)).await.unwrap();
            let mut tls = tls::connect(tcp, Some(&outdated), &[tls::H2]).await.unwrap();
            // SETTINGS of the server's HTTP/2, or the alert.
            timeout(SOON, tls.read(&mut [0; 64])).await.expect("no hang")
        };
        assert!(knock().await.unwrap() > 0, "the old root is still trusted");
        trust(&they.server, &[&new]);
        let refusal = harness::eventually("the old root is dropped", Duration::from_secs(10), || async {
            knock().await.err().ok_or_else(|| "it was let in".to_owned())
        })
        .await;
        assert!(refusal.to_string().contains("UnknownCA"), "{refusal}");
        stream.write_all(b"\x01still").await.unwrap();
        timeout(SOON, stream.read_exact(&mut [0; 6])).await.expect("no hang").unwrap();
        they.echo().await.unwrap();
        for sidecar in [&mut they.client_sidecar, &mut they.server_sidecar] {
            sidecar.assert_running();
        }
    });
}

#[test]
fn a_late_refusal_for_another_trust_domain_is_told_in_words() {
    harness::run(async {
        let ca = TestCa::new("one root of two domains");
        let elsewhere = vec!["spiffe://other.example/ns/test/sa/client".to_owned()];
        let client_is = ca.issue(&Leaf { uris: elsewhere, ..Leaf::of("client", &[]) });
        let server_is = ca.issue(&Leaf::of("server", &[ORDERS]));
        // The client takes peers of the server's domain; the server does not take those of the client's.
        let config = json!({ "identity": { "trust_domain": "mesh.example" } });
        let they = Strangers::meet((&client_is, &[&ca]), (&server_is, &[&ca]), config).await;
        they.refused("our certificate breaks a rule of its mesh", ("refused_identity", "wrong_trust_domain")).await;
        let log = they.server_sidecar.log_text();
        assert!(log.contains("spiffe://other.example/ns/test/sa/client"), "the server says whom it refused: {log}");
        assert!(log.contains("not in our trust domain mesh.example"), "and why: {log}");
    });
}

/// A client and a server whose certificates are the real CA's, which has its bundle looked at every 5 s.
struct Enrolled {
    ca: Ca,
    _serving: Process,
    client_sidecar: Sidecar,
    server_sidecar: Sidecar,
    _origin: Process,
    client: Pod,
    server: Pod,
    _mesh: Mesh,
}

/// A reading of the CA's documents, and what follows it.
const READ: Duration = Duration::from_secs(10);

impl Enrolled {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        ca.run(&["bundle", "set", "--refresh-hint", "5s"]);
        let serving = ca.serve().await;
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        mesh.dns.set(ORDERS, 60, &[server.v4.into()]);
        let origin = server.serve(&["--http", "8080", "--tcp-echo", &ECHO.to_string()]).await;
        let server_config = json!({ "identity": ca.enrolment(&server, &[ORDERS], "2m") });
        let client_config = json!({
            "identity": ca.enrolment(&client, &[], "2m"),
            "services": [
                { "name": ORDERS, "port": 8080 },
                { "name": "streams.mesh", "port": ECHO, "hosts": [ORDERS] },
            ],
        });
        let server_sidecar = Sidecar::start(&mesh, &server, server_config).await;
        let client_sidecar = Sidecar::start(&mesh, &client, client_config).await;
        Self { ca, _serving: serving, client_sidecar, server_sidecar, _origin: origin, client, server, _mesh: mesh }
    }

    /// The root of this state, by its fingerprint.
    fn root(&self, state: &str) -> String {
        let status: Value = serde_json::from_str(&self.ca.run(&["rotate", "status", "--json"])).unwrap();
        let all = status["authorities"].as_array().unwrap();
        let found = all.iter().find(|it| it["kind"] == "root" && it["state"] == state);
        found.unwrap_or_else(|| panic!("no {state} root: {status:#}"))["fingerprint"].as_str().unwrap().to_owned()
    }

    /// Waits until what `/certs` of both says is so.
    async fn both(&self, what: &str, limit: Duration, is_so: impl Fn(&Value) -> bool) {
        harness::eventually(what, limit, || async {
            for pod in [&self.client, &self.server] {
                let certs = pod.admin("/certs").await.json();
                if !is_so(&certs) {
                    return Err(format!("{}: {certs:#}", pod.name));
                }
            }
            Ok(())
        })
        .await;
    }

    async fn opaque(&self) -> tokio::net::TcpStream {
        let mut stream = self.client.connect(self.server.at4(ECHO)).await.unwrap();
        said(&mut stream).await.unwrap();
        stream
    }

    async fn get(&self) -> Reply {
        self.client.get(self.server.at4(8080), HOST, "/").await
    }
}

/// Says something over an opaque connection and hears it back.
async fn said(stream: &mut tokio::net::TcpStream) -> std::io::Result<()> {
    stream.write_all(b"\x01still").await?;
    timeout(SOON, stream.read_exact(&mut [0; 6])).await.expect("no hang").map(drop)
}

fn issuer(certs: &Value) -> String {
    certs["certificate"]["issuer"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_root_is_replaced_under_live_traffic_and_no_request_fails() {
    harness::run(async {
        let mut they = Enrolled::new().await;
        let old = they.root("active");
        let roots = |certs: &Value| certs["roots"].as_array().map_or(0, Vec::len);
        they.both("the CA's documents are read", READ, |certs| !certs["trust_read"].is_null()).await;
        // One connection goes on through everything: what is opaque cannot be moved.
        let mut opaque = they.opaque().await;
        let args = ["--url", URL, "--duration", "120s", "--connections", "4", "--rate", "200"];
        let mut load = they.client.load(&args);

        they.ca.run(&["rotate", "prepare", "--root"]);
        they.both("both roots are trusted", READ, |certs| roots(certs) == 2).await;
        harness::eventually("two refresh hints are over", Duration::from_secs(20), || async {
            they.ca.attempt(&["rotate", "activate"]).map(drop)
        })
        .await;
        let before: Vec<_> = [they.client.admin("/certs").await.json(), they.server.admin("/certs").await.json()]
            .iter()
            .map(|certs| certs["certificate"]["serial"].clone())
            .collect();
        let mtls = [("direction", "outbound"), ("transport", "mtls")];
        let dialled = they.client.metric("outrigger_connections_total", &mtls).await;
        they.ca.run(&["rotate", "taint", &old]);
        // A reading, and the wait of at most a tenth of what is left. Half of the life is further away.
        they.both("both have a certificate under the new root", Duration::from_secs(20), |certs| {
            let serial = &certs["certificate"]["serial"];
            !before.contains(serial) && certs["roots"].as_array().unwrap().iter().any(|root| root["tainted"] == true)
        })
        .await;
        // A connection to who had not renewed yet is moved within 25 s, and its successor once more.
        tokio::time::sleep(Duration::from_secs(28)).await;
        said(&mut opaque).await.expect("what leads to a tainted root is good");
        let moved = they.client.metric("outrigger_connections_total", &mtls).await - dialled;
        assert!(moved >= 1.0, "requests go on over the connections that lead to the tainted root");
        they.ca.run(&["rotate", "revoke", &old, "--force"]);
        they.both("the old root is out", READ, |certs| roots(certs) == 1).await;
        assert!(said(&mut opaque).await.is_err(), "what leads to it ends");
        said(&mut they.opaque().await).await.unwrap();
        // The claim is about requests, and the last moment of a rotation is the one that can cost some.
        let asked = async || they.client.metric("outrigger_requests_total", &[("direction", "outbound")]).await;
        let before = asked().await;
        harness::eventually("requests go on without the old root", SOON, || async {
            let more = asked().await - before;
            if more > 200.0 { Ok(()) } else { Err(format!("{more} requests")) }
        })
        .await;
        load.assert_running();
        assert_none_failed(&load.report().await);
        // The opaque connection was the only one left to end, whichever side was first to end it.
        let mut ended = 0.0;
        for pod in [&they.client, &they.server] {
            ended += pod.metric("outrigger_tls_failures_total", &[("reason", "unknown_root")]).await;
        }
        assert!((1.0..=2.0).contains(&ended), "{ended} connections were not moved before their root went");
        let log = they.client_sidecar.log_text();
        assert!(!log.contains("a connection ends: no mTLS with orders.mesh"), "HTTP was cut off: {log}");
        for sidecar in [&mut they.client_sidecar, &mut they.server_sidecar] {
            sidecar.assert_running();
        }
        // Renewals go on, by a root that identity.ca.bundle has never heard of.
        let now = they.client.admin("/certs").await.json();
        they.both("another renewal", Duration::from_secs(75), |certs| {
            issuer(certs) == issuer(&now) && certs["certificate"]["serial"] != now["certificate"]["serial"]
        })
        .await;
    });
}

#[test]
fn a_revoked_peer_is_refused_and_its_connections_end() {
    harness::run(async {
        for revoked in ["client", "server"] {
            let they = Enrolled::new().await;
            they.both("the lists are read", READ, |certs| certs["revocation_lists"].as_array().unwrap().len() == 2)
                .await;
            let mut opaque = they.opaque().await;
            assert_eq!(they.get().await.text(), "server\n");
            // Without a way back: no renewal, and no other certificate for its id.
            they.ca.run(&["revoke", "--id", &id(revoked), "--block", "--reason", "keyCompromise"]);
            harness::eventually("its connection ends", READ, || async {
                let reply = they.get().await;
                if reply.status == 503 { Ok(()) } else { Err(reply.text()) }
            })
            .await;
            harness::eventually("the opaque one too", READ, || async {
                if closed(&opaque) { Ok(()) } else { Err("it goes on".to_owned()) }
            })
            .await;
            assert!(said(&mut opaque).await.is_err());
            let refused = they.get().await;
            let (theirs, ours) =
                if revoked == "client" { ("revoked", "refused_revoked") } else { ("refused_revoked", "revoked") };
            assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (503, "tls_failed"));
            assert!(refused.text().contains("revoked"), "{}", refused.text());
            let count = async |pod: &Pod, direction: &str, reason: &str| {
                let labels = [("direction", direction), ("reason", reason)];
                pod.metric("outrigger_tls_failures_total", &labels).await
            };
            assert!(count(&they.client, "outbound", ours).await >= 1.0, "{revoked}: the client counts {ours}");
            assert!(count(&they.server, "inbound", theirs).await >= 1.0, "{revoked}: the server counts {theirs}");
            // It knows by itself, and says so.
            let pod = if revoked == "client" { &they.client } else { &they.server };
            harness::eventually("it reads the lists too", READ, || async {
                let warnings = pod.admin("/certs").await.json()["warnings"].to_string();
                if warnings.contains("was revoked") { Ok(()) } else { Err(warnings) }
            })
            .await;
        }
    });
}

/// Whether the other side has ended the connection.
fn closed(stream: &tokio::net::TcpStream) -> bool {
    let mut byte = [0];
    !matches!(stream.try_read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}
