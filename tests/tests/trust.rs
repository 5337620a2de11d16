//! Roots and trust domains that do not fit, between two real sidecars: who is told what, and how it is healed without a
//! restart.

use std::time::Duration;

use http::Method;
use outrigger_e2e::harness::{
    self, Mesh, Pod, Process, Reply, Sidecar,
    client::{body, request},
    pki::{Issued, Leaf, TestCa, secret},
    shop::ORDERS,
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
