//! What the configuration can change about where a connection goes and how: services without a sidecar, static
//! endpoints, destinations that are nobody's, opaque services; and what works with hardly any configuration.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use http::Request;
use hyper_util::rt::TokioIo;
use outrigger_e2e::harness::{
    self, Mesh, Pair, Pod, Process, Reply, Shop, Sidecar,
    client::{Body, body},
    pair::{ECHO, HTTP, SCRIPT},
    pki::{Ca, secret},
    script,
    shop::{ORDERS, assert_none_failed},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);

fn ask(h2: bool, host: &str, path: &str) -> Request<Body> {
    let request = Request::builder();
    let request = if h2 { request.uri(format!("http://{host}{path}")) } else { request.uri(path).header("host", host) };
    request.header("x-forwarded-client-cert", "By=forged").header("outrigger-error", "forged").body(body("")).unwrap()
}

/// A workload without a sidecar, with HTTP at 8080 and an echo at 9000. Fields end in their order.
struct Legacy {
    _origin: Process,
    pod: Pod,
}

impl Legacy {
    async fn open(mesh: &Mesh) -> Self {
        let pod = mesh.pod("legacy");
        let origin = pod.serve(&["--http", "8080", "--tcp-echo", "9000"]).await;
        Self { _origin: origin, pod }
    }

    /// Asks the workload from inside its pod.
    async fn count(&self) -> String {
        self.pod.get(self.pod.at4(8080), "localhost", "/count").await.text()
    }
}

async fn echoes(pod: &Pod, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = pod.connect(to).await?;
    stream.write_all(b"\x01bytes").await?;
    let mut answer = [0; 6];
    timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer or an end")?;
    assert_eq!(&answer, b"\x01bytes");
    Ok(())
}

#[test]
fn a_service_without_mtls_is_spoken_to_in_its_own_protocol_and_in_the_clear() {
    harness::run(async {
        let mesh = Mesh::new();
        let legacy = Legacy::open(&mesh).await;
        let strict = mesh.pod("strict");
        let endpoints = |pod: &Pod, port| json!({ "static": [pod.at4(port)] });
        let config = json!({ "services": [
            { "name": "legacy.mesh", "port": 8080, "mtls": "off", "endpoints": endpoints(&legacy.pod, 8080) },
            { "name": "bytes.mesh", "port": 9000, "mtls": "off", "endpoints": endpoints(&legacy.pod, 9000) },
            { "name": "strict.mesh", "port": 8080, "mtls": "off", "endpoints": endpoints(&strict, 8080) },
            { "name": "wrong.mesh", "port": 8080, "hosts": ["wrong.mesh"], "endpoints": endpoints(&legacy.pod, 8080),
              "retry": { "attempts": 0 } },
        ]});
        let shop = Shop::open(mesh, 1, 60, config).await;
        let to = legacy.pod.at4(8080);
        for h2 in [false, true] {
            let who = shop.client.send(to, h2, ask(h2, "legacy.mesh:8080", "/whoami?a=b")).await.json();
            assert_eq!(who["version"], if h2 { "HTTP/2.0" } else { "HTTP/1.1" }, "{who}");
            assert_eq!((&who["name"], &who["path"]), (&json!("legacy"), &json!("/whoami?a=b")), "{who}");
            let from: SocketAddr = who["peer"].as_str().unwrap().parse().unwrap();
            assert_eq!(from.ip(), shop.client.v4, "{who}");
            let headers = who["headers"].as_object().unwrap();
            let of_the_mesh = |k: &&String| k.starts_with("outrigger-") || *k == "x-forwarded-client-cert";
            assert_eq!(headers.keys().find(of_the_mesh), None, "nothing of the mesh leaves it: {who}");
            let status = shop.client.send(to, h2, ask(h2, "legacy.mesh:8080", "/status/500")).await;
            assert_eq!((status.status.as_u16(), status.header("outrigger-error")), (500, ""));
        }
        echoes(&shop.client, legacy.pod.at4(9000)).await.unwrap();
        let (mut sender, _cut) = shop.client.http(to, false).await;
        let upgrade = Request::get("/upgrade").header("host", "legacy.mesh:8080").header("connection", "upgrade");
        let mut answer = sender.send(upgrade.header("upgrade", "bytes").body(body("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 101);
        let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        io.write_all(b"u").await.unwrap();
        assert_eq!(timeout(SOON, io.read_u8()).await.unwrap().unwrap(), b'u');
        let mtls = [("direction", "outbound"), ("transport", "mtls")];
        assert_eq!(shop.client.metric("outrigger_connections_total", &mtls).await, 0.0);

        // "Off" opens no door: who requires mTLS refuses, and who is called by it is not called without.
        shop.ca.issue(&strict, &["strict.mesh"], "1h");
        let _origin = strict.serve(&["--http", "8080"]).await;
        let _sidecar = Sidecar::start(&shop.mesh, &strict, json!({})).await;
        let refused = shop.client.get(strict.at4(8080), "strict.mesh:8080", "/").await;
        assert_eq!((refused.status.as_u16(), refused.text().contains("mesh_only")), (403, true), "{}", refused.text());
        let refused = shop.client.get(to, "wrong.mesh:8080", "/").await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("outrigger-error")),
            (503, "tls_failed"),
            "{}",
            refused.text()
        );
    });
}

#[test]
fn static_endpoints_need_no_dns() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let (client, one, two) = (mesh.pod("client"), mesh.pod("one"), mesh.pod("two"));
        ca.issue(&client, &[], "1h");
        ca.issue(&one, &["fixed.mesh"], "1h");
        ca.issue(&two, &["fixed.mesh"], "1h");
        // Of both families, and with a port of its own.
        let mut origins = [one.serve(&["--http", "8080"]).await, two.serve(&["--http", "8181"]).await];
        let config = json!({ "services": [
            { "name": "fixed.mesh", "port": 8080, "endpoints": { "static": [one.at4(8080), two.at6(8181)] } },
        ]});
        let _sidecars = [
            Sidecar::start(&mesh, &one, json!({})).await,
            Sidecar::start(&mesh, &two, json!({})).await,
            Sidecar::start(&mesh, &client, config).await,
        ];
        // Where the workload believes it goes plays no part: the name says who is meant.
        let nowhere = "10.77.9.9:8080";
        let load =
            ["--url", "http://fixed.mesh:8080/", "--connect-to", nowhere, "--requests", "200", "--connections", "4"];
        let report = client.load(&load).report().await;
        assert_none_failed(&report);
        for name in ["one", "two"] {
            assert!(report["replicas"][name].as_u64().unwrap_or(0) > 0, "{report}");
        }
        origins[0].kill();
        let report = client.load(&load).report().await;
        assert_none_failed(&report);
        assert_eq!(report["replicas"]["two"], 200, "{report}");
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            assert_eq!(mesh.dns.asked("fixed.mesh", kind), 0, "{kind}");
        }
    });
}

/// A client with this `outbound.unmatched`, and a workload that is no service of its.
async fn unmatched(mode: &str) -> (Shop, Legacy) {
    let mesh = Mesh::new();
    let legacy = Legacy::open(&mesh).await;
    (Shop::open(mesh, 1, 60, json!({ "outbound": { "unmatched": mode } })).await, legacy)
}

#[test]
fn a_destination_that_is_nobodys_is_passed_or_refused_by_config() {
    harness::run(async {
        let (shop, legacy) = unmatched("passthrough").await;
        echoes(&shop.client, legacy.pod.at4(9000)).await.unwrap();
        for h2 in [false, true] {
            let reply = shop.client.send(legacy.pod.at4(8080), h2, ask(h2, "legacy.example:8080", "/")).await;
            assert_eq!(reply.text(), "legacy\n", "h2={h2}");
        }
        drop((shop, legacy));

        let (shop, legacy) = unmatched("reject").await;
        for to in [legacy.pod.at4(9000), legacy.pod.at6(9000)] {
            let ended = echoes(&shop.client, to).await.unwrap_err();
            assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset, "{to}");
        }
        // A client that waits for the server's first word is not left waiting.
        let mut silent = shop.client.connect(legacy.pod.at4(9000)).await.unwrap();
        let ended = timeout(SOON, silent.read_u8()).await.expect("an end").unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
        let told = [("direction", "outbound"), ("reason", "unknown_service")];
        assert_eq!(shop.client.metric("outrigger_errors_total", &told).await, 3.0);
        assert_eq!(legacy.count().await, "0\n");
        assert_eq!(shop.get("/").await.text(), "orders1\n", "services are called as ever");
    });
}

#[test]
fn an_http_caller_of_nobody_is_told_so() {
    harness::run(async {
        let (shop, legacy) = unmatched("reject").await;
        // HTTP/2 first, so that a failure says that HTTP/1.1 is what fails.
        for h2 in [true, false] {
            let (mut sender, _cut) = shop.client.http(legacy.pod.at4(8080), h2).await;
            let answer = sender.send(ask(h2, "legacy.example:8080", "/")).await;
            let answer = answer.unwrap_or_else(|e| panic!("h2={h2}: no answer but {e:?}"));
            let reply = Reply::read(answer).await.unwrap();
            let text = reply.text();
            assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (503, "unknown_service"), "{text}");
            assert!(text.contains("belongs to no service and outbound.unmatched is reject"), "{text}");
        }
        assert_eq!(legacy.count().await, "0\n");
    });
}

#[test]
fn an_opaque_service_gets_its_bytes_as_they_are() {
    harness::run(async {
        let opaque = |name: &str, port: u16| json!({ "name": name, "port": port, "protocol": "opaque" });
        let config = json!({ "services": [
            opaque("script4.mesh", SCRIPT), opaque("script6.mesh", SCRIPT),
            { "name": "orders4.mesh", "port": HTTP }, { "name": "orders6.mesh", "port": HTTP },
            { "name": "echo4.mesh", "port": ECHO }, { "name": "echo6.mesh", "port": ECHO },
            { "name": "first4.mesh", "port": 9001 }, { "name": "first6.mesh", "port": 9001 },
        ]});
        let pair = Pair::with(Mesh::new(), config, json!({})).await;
        let taken: Arc<Mutex<Vec<u8>>> = Arc::default();
        let _script = script::connections(&pair.server, SCRIPT, {
            let taken = Arc::clone(&taken);
            move |mut stream| {
                let taken = Arc::clone(&taken);
                async move {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).await.unwrap();
                    *taken.lock().unwrap() = all;
                    stream.write_all(b"HTTP/1.1 299 As\tit Is\nConnection: keep-alive\r\n\r\n\0").await.unwrap();
                }
            }
        });
        // What a proxy of HTTP would refuse, rewrite, or take for the beginning of something else.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let request =
            b"GeT  /%zz HTTP/1.1\r\nhOsT: orders4.mesh:9002\r\nHost: other\r\nx-forwarded-client-cert: mine\r\n\
            Outrigger-Error: mine\r\nConnection: close\r\nTransfer-Encoding: nonsense\r\n\r\n\0\xff";
        for bytes in [&request[..], &preface[..], b"\x16\x03\x01\x00", b"", b"G"] {
            for family in pair.families() {
                let mut stream = pair.client.connect(family.at(SCRIPT)).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = Vec::new();
                timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
                assert_eq!(answer, b"HTTP/1.1 299 As\tit Is\nConnection: keep-alive\r\n\r\n\0", "{bytes:?}");
                assert_eq!(*taken.lock().unwrap(), bytes, "IPv{}", family.version);
            }
        }
        let mtls = [("direction", "inbound"), ("transport", "mtls")];
        assert_eq!(pair.server.metric("outrigger_connections_total", &mtls).await, 10.0, "each by mesh mTLS");
        let requests = pair.client.metric("outrigger_requests_total", &[("direction", "outbound")]).await;
        assert_eq!(requests, 0.0, "nobody looked into them");
    });
}

#[test]
fn an_opaque_service_gets_no_byte_in_the_clear_before_its_addresses_are_known() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("client");
        Ca::init(&mesh).issue(&pod, &[], "1h");
        let legacy = Legacy::open(&mesh).await;
        mesh.dns.set("db.mesh", 60, &legacy.pod.ips());
        mesh.dns.fail(Some(harness::dns::Fault::ServFail));
        let config = json!({ "services": [{ "name": "db.mesh", "port": 9000, "protocol": "opaque" }] });
        let _sidecar = Sidecar::start(&mesh, &pod, config).await;
        for address in [legacy.pod.at4(9000), legacy.pod.at6(9000)] {
            echoes(&pod, address).await.expect_err("nobody knows whose address it is");
        }
        let refused = [("direction", "outbound"), ("reason", "no_endpoints")];
        assert_eq!(pod.metric("outrigger_errors_total", &refused).await, 2.0);
        // Other ports are not held up by it.
        assert_eq!(pod.get(legacy.pod.at4(8080), "legacy.example:8080", "/").await.status, 200);
        let passed = [("direction", "outbound"), ("transport", "passthrough")];
        assert_eq!(pod.metric("outrigger_connections_total", &passed).await, 1.0);
    });
}

/// A folder that is `/var/lib` in the pod, with a certificate where an empty configuration looks for it.
fn var_lib(ca: &Ca, pod: &Pod, names: &[&str]) -> PathBuf {
    let issued = ca.issue(pod, names, "1h");
    let dir = pod.folder("var-lib");
    let identity = dir.join("outrigger/identity");
    std::fs::create_dir_all(&identity).unwrap();
    for file in ["cert.pem", "key.pem", "bundle.pem"] {
        secret(&identity.join(file), &std::fs::read_to_string(issued.join(file)).unwrap());
    }
    pod.mount(&dir, "/var/lib".as_ref());
    issued
}

/// Arguments after `run`, variables, and the service that is called.
type Bare<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn an_empty_configuration_or_none_at_all_is_a_working_sidecar() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        mesh.dns.set(ORDERS, 60, &server.ips());
        mesh.dns.set("orders.corp", 60, &server.ips());
        let elsewhere = var_lib(&ca, &client, &[]);
        var_lib(&ca, &server, &[ORDERS, "orders.corp"]);
        let _origin = server.serve(&["--http", "8080"]).await;
        // The server has no configuration of any kind, and is strict.
        let mut server_sidecar = Sidecar::bare(&server, &[], &[]);
        server_sidecar.ready(&server).await;
        let refused = mesh.dns.pod.get(server.at4(8080), "orders.mesh:8080", "/").await;
        assert_eq!((refused.status.as_u16(), refused.header("outrigger-error")), (403, "mesh_only"));

        let file = |name: &str, text: &str| {
            let path = client.folder("config").join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let empty = file("empty.yaml", "");
        let commented = file("commented.yaml", "# services:\n# - name: orders.mesh\n\n");
        let sections = file("sections.yaml", "services:\n#- name: orders.mesh\ninbound:\ndns:\n");
        let loud = file("loud.yaml", "log:\n  level: debug\n");
        let dir = elsewhere.to_str().unwrap();
        let dns = mesh.dns.address().to_string();
        let by_env = [
            ("OUTRIGGER_IDENTITY_DIR", dir),
            ("OUTRIGGER_OUTBOUND_MESH_DOMAINS", "corp,internal"),
            ("OUTRIGGER_DNS_SERVERS", &dns),
            ("OUTRIGGER_INBOUND_MODE", "permissive"),
            ("OUTRIGGER_WORKERS", "1"),
        ];
        let cases: [Bare<'_>; 6] = [
            (&["--config", &empty], &[], ORDERS),
            (&["--config", &commented], &[], ORDERS),
            (&["--config", &sections], &[], ORDERS),
            (&[], &[], ORDERS),
            (&[], &by_env, "orders.corp"),
            (&[], &[("OUTRIGGER_CONFIG", &loud)], ORDERS),
        ];
        for (args, env, host) in cases {
            let context = format!("run {args:?} with {env:?}");
            let begun = Instant::now();
            let mut sidecar = Sidecar::bare(&client, args, env);
            sidecar.ready(&client).await;
            assert!(begun.elapsed() < Duration::from_secs(3), "{context}: ready after {:?}", begun.elapsed());
            for to in [server.at4(8080), server.at6(8080)] {
                let who = client.get(to, &format!("{host}:8080"), "/whoami").await.json();
                let caller = who["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
                assert!(caller.contains("URI=spiffe://mesh.example/ns/test/sa/client"), "{context}: {who}");
            }
            let config = client.admin("/config").await.text();
            let by_variables = ["permissive", "internal", dir].iter().all(|value| config.contains(value));
            assert_eq!(by_variables, env.len() > 1, "{context}: {config}");
            assert_eq!(sidecar.log_text().contains("DEBUG"), env.len() == 1, "{context}: {}", sidecar.log_text());
        }
        let mut wrong = client.start_with(
            harness::pod::SIDECAR,
            "outrigger-sidecar",
            &["run"],
            &[("OUTRIGGER_INBOUND_MOD", "permissive")],
        );
        assert_eq!(wrong.wait(SOON).await.code(), Some(2), "{}", wrong.log_text());
        assert!(wrong.log_text().contains("did you mean OUTRIGGER_INBOUND_MODE?"), "{}", wrong.log_text());
    });
}
