//! TPROXY, end to end: the application sees the address of its client, through two sidecars and mTLS, and nothing passes
//! a sidecar that is down.

use std::{net::SocketAddr, time::Duration};

use outrigger_e2e::harness::{
    self, Mesh, Pod, Process, Sidecar, eventually,
    pair::{HTTP, SCRIPT},
    pki::Ca,
    pod::SIDECAR,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);

/// A client with a sidecar as ever, a server whose sidecar gets its connections by TPROXY, a stranger with none.
struct Meeting {
    server_sidecar: Sidecar,
    _client_sidecar: Sidecar,
    _origin: Process,
    client: Pod,
    server: Pod,
    stranger: Pod,
    _mesh: Mesh,
}

impl Meeting {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let (client, server, stranger) = (mesh.pod("client"), mesh.pod("server"), mesh.pod("stranger"));
        let names = ["orders4.mesh", "orders6.mesh", "script4.mesh", "script6.mesh"];
        let mut services = Vec::new();
        for (index, name) in names.iter().enumerate() {
            mesh.dns.set(name, 60, &[server.ips()[index % 2]]);
            services.push(json!({ "name": name, "port": if index < 2 { HTTP } else { SCRIPT } }));
        }
        ca.issue(&client, &[], "1h");
        ca.issue(&server, &names, "1h");
        let origin = server.serve(&["--http", &HTTP.to_string()]).await;
        let server_config = json!({ "inbound": { "mode": "permissive" } });
        let server_sidecar = Sidecar::start_transparent(&mesh, &server, server_config).await;
        let client_sidecar = Sidecar::start(&mesh, &client, json!({ "services": services })).await;
        eventually("the client's sidecar knows all endpoints", SOON, || async {
            let text = client.admin("/endpoints").await.text();
            let all = [HTTP, SCRIPT].into_iter().flat_map(|port| [server.at4(port), server.at6(port)]);
            let missing: Vec<_> = all.filter(|a| !text.contains(&format!("\"{a}\""))).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} missing in {text}")) }
        })
        .await;
        Self { server_sidecar, _client_sidecar: client_sidecar, _origin: origin, client, server, stranger, _mesh: mesh }
    }
}

/// The address that the workload says it sees.
async fn seen(from: &Pod, to: SocketAddr, host: &str) -> (String, String) {
    let who = from.get(to, host, "/whoami").await.json();
    let peer: SocketAddr = who["peer"].as_str().unwrap().parse().unwrap();
    (who["name"].as_str().unwrap().to_owned(), peer.ip().to_canonical().to_string())
}

#[test]
fn the_application_sees_the_address_of_its_client() {
    harness::run(async {
        let meeting = Meeting::new().await;
        let Meeting { client, server, stranger, .. } = &meeting;
        for (to, own, other, host) in [
            (server.at4(HTTP), client.v4.to_string(), stranger.v4.to_string(), "orders4.mesh:8080"),
            (server.at6(HTTP), client.v6.to_string(), stranger.v6.to_string(), "orders6.mesh:8080"),
        ] {
            // HTTP in mTLS, HTTP in the clear by a port that is permissive, and each again, over what is kept open.
            for _ in 0..3 {
                assert_eq!(seen(client, to, host).await, ("server".to_owned(), own.clone()), "{to}");
                assert_eq!(seen(stranger, to, host).await, ("server".to_owned(), other.clone()), "{to}");
            }
            // The workload's call to itself is no client's.
            let (_, itself) = seen(server, to, host).await;
            assert_eq!(itself, to.ip().to_string());
        }
        // They did go through the sidecar.
        let taken = server.metric("outrigger_requests_total", &[("direction", "inbound")]).await;
        assert!(taken >= 12.0, "{taken} requests went through the server's sidecar");

        // Bytes: the application reads who calls from its socket, and bytes go both ways.
        let listener = server.listen(SCRIPT);
        for (to, own) in [(server.at4(SCRIPT), client.v4.to_string()), (server.at6(SCRIPT), client.v6.to_string())] {
            let mut call = client.connect(to).await.unwrap();
            call.write_all(b"\x01ping").await.unwrap();
            let (mut accepted, peer) = timeout(SOON, listener.accept()).await.expect("a connection").unwrap();
            assert_eq!(peer.ip().to_canonical().to_string(), own);
            let mut bytes = [0; 5];
            timeout(SOON, accepted.read_exact(&mut bytes)).await.expect("bytes").unwrap();
            accepted.write_all(b"\x01pong").await.unwrap();
            timeout(SOON, call.read_exact(&mut bytes)).await.expect("an answer").unwrap();
            assert_eq!(&bytes, b"\x01pong");
        }
    });
}

#[test]
fn many_clients_at_once_lose_no_request() {
    harness::run(async {
        let meeting = Meeting::new().await;
        for (load, url) in [
            (&meeting.client, "http://orders4.mesh:8080/".to_owned()),
            (&meeting.stranger, format!("http://{}/", meeting.server.at6(HTTP))),
        ] {
            let report = load.load(&["--url", &url, "--requests", "1500", "--connections", "40"]).report().await;
            assert_eq!((report["ok"].as_u64(), report["failed"].as_u64()), (Some(1500), Some(0)), "{report}");
        }
    });
}

#[test]
fn a_sidecar_that_is_down_lets_nothing_past() {
    harness::run(async {
        let mut meeting = Meeting::new().await;
        let to = [meeting.server.at4(HTTP), meeting.server.at6(HTTP)];
        meeting.server_sidecar.kill();
        for to in to {
            let went = timeout(Duration::from_millis(1_500), meeting.stranger.connect(to)).await;
            assert!(!matches!(went, Ok(Ok(_))), "{to} was reached past the sidecar");
        }
        // Without the redirection it is reached at once: the silence was the rules'.
        let removed = meeting.server.output(0, "outrigger-iptables", &["remove"]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        for to in to {
            meeting.stranger.connect(to).await.unwrap();
        }
    });
}

#[test]
fn without_the_capability_it_does_not_start_and_says_what_is_missing() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("server");
        let config = json!({ "inbound": { "interception": "tproxy" } });
        let file = Sidecar::configure(&mesh, &pod, config);
        let output = pod.output(SIDECAR, "outrigger-sidecar", &["run", "--config", file.to_str().unwrap()]);
        let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && words.contains("NET_RAW"), "{}: {words}", output.status);
    });
}
