//! What operators and scrapers are told, held against what was really sent.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Method;
use http_body_util::BodyExt as _;
use outrigger_e2e::{
    harness::{
        self, Mesh, Pair, Pod, Reply, Shop, Sidecar,
        client::{body, request},
        pair::{ECHO, HTTP, SCRIPT},
        pki::{Ca, id},
        pod::SIDECAR,
        shop::ORDERS,
    },
    pattern,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(5);
const REQUESTS: &str = "outrigger_requests_total";

async fn ask(pod: &Pod, to: SocketAddr, host: &str, h2: bool, path: &str) -> Reply {
    // A POST is not tried again, whatever the answer, so that there is one request for each.
    pod.send(to, h2, request(host, h2, Method::POST, path).body(body("x")).unwrap()).await
}

#[test]
fn requests_are_counted_by_direction_service_peer_and_status_class() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let other = pair.mesh.pod("other");
        pair.ca.issue(&other, &[], "1h");
        let _sidecar = Sidecar::start(&pair.mesh, &other, json!({})).await;
        let [v4, v6] = pair.families();
        let sent = [
            ("/", 12, "2xx"),
            ("/delay/300", 3, "2xx"),
            ("/status/302", 2, "3xx"),
            ("/status/404", 5, "4xx"),
            ("/status/500", 2, "5xx"),
            ("/status/503", 1, "5xx"),
        ];
        for (path, times, _) in sent {
            for n in 0..times {
                ask(&pair.client, v4.at(HTTP), &v4.host(), n % 2 == 1, path).await;
            }
        }
        for _ in 0..4 {
            assert_eq!(ask(&pair.client, v6.at(HTTP), &v6.host(), false, "/").await.status, 200);
        }
        for _ in 0..6 {
            assert_eq!(ask(&other, v4.at(HTTP), &v4.host(), false, "/status/418").await.status, 418);
        }
        let (client, other_id, server) = (id("client"), id("other"), id("server"));
        pair.client.until_metric(REQUESTS, &[("direction", "outbound")], 29.0).await;
        pair.server.until_metric(REQUESTS, &[("direction", "inbound")], 35.0).await;
        other.until_metric(REQUESTS, &[("direction", "outbound")], 6.0).await;

        let (ours, theirs) = (pair.client.scrape().await, pair.server.scrape().await);
        for class in ["1xx", "2xx", "3xx", "4xx", "5xx", "none"] {
            let wanted: i32 = sent.iter().filter(|(_, _, c)| *c == class).map(|(_, times, _)| times).sum();
            let class = ("status_class", class);
            let outbound = [("direction", "outbound"), ("service", "orders4.mesh"), ("peer", &server), class];
            let all: Vec<_> = ours.of(REQUESTS, &[]).filter(|s| s.value > 0.0).collect();
            assert_eq!(ours.sum(REQUESTS, &outbound), f64::from(wanted), "{outbound:?}: {all:?}");
            // The same by the callee's count, where the second family's four belong to the same port and peer.
            let inbound = [("direction", "inbound"), ("service", "8080"), ("peer", &client), class];
            let wanted = wanted + if class.1 == "2xx" { 4 } else { 0 };
            assert_eq!(theirs.sum(REQUESTS, &inbound), f64::from(wanted), "{inbound:?}");
        }
        let of_six = [("service", "orders6.mesh"), ("peer", &*server), ("status_class", "2xx")];
        assert_eq!(ours.sum(REQUESTS, &of_six), 4.0);
        assert_eq!(theirs.sum(REQUESTS, &[("peer", &other_id), ("status_class", "4xx")]), 6.0);

        // The histogram counts the same requests, and puts the slow ones where they belong.
        let duration = |what: &str| format!("outrigger_request_duration_seconds_{what}");
        for (scrape, labels, count) in [
            (&ours, [("direction", "outbound"), ("service", "orders4.mesh"), ("peer", &*server)], 25.0),
            (&theirs, [("direction", "inbound"), ("service", "8080"), ("peer", &*client)], 29.0),
        ] {
            assert_eq!(scrape.sum(&duration("count"), &labels), count);
            let below = |le| scrape.sum(&duration("bucket"), &[&labels[..], &[("le", le)]].concat());
            assert!(below("0.25") <= count - 3.0, "three took 300 ms: {}", below("0.25"));
            assert!(below("0.25") >= count / 2.0 && below("10.0") == count, "{} {}", below("0.25"), below("10.0"));
            let seconds = scrape.sum(&duration("sum"), &labels);
            assert!((0.9..20.0).contains(&seconds), "{seconds} s in all");
        }
    });
}

/// Callers leave before the head of the answer and in the middle of its body; what one of the sidecars makes of it.
async fn callers_leave(at_the_caller: bool) {
    let pair = Pair::new(Mesh::new()).await;
    let family = pair.families()[0];
    let (host, to) = (family.host(), family.at(HTTP));
    let (pod, direction) = if at_the_caller { (&pair.client, "outbound") } else { (&pair.server, "inbound") };
    let direction = [("direction", direction)];
    let ways = [(false, "/delay/20000"), (true, "/delay/20000"), (false, "/endless"), (true, "/endless")];
    for (h2, path) in ways {
        let (mut sender, cut) = pair.client.http(to, h2).await;
        let get = request(&host, h2, Method::GET, path).body(body("")).unwrap();
        let mut sending = Box::pin(sender.send(get));
        let mut answer = timeout(Duration::from_millis(300), &mut sending).await;
        if let Ok(answer) = &mut answer {
            answer.as_mut().unwrap().body_mut().frame().await.unwrap().unwrap();
        }
        println!("h2={h2} {path}");
        pod.until_metric("outrigger_requests_in_flight", &direction, 1.0).await;
        drop((answer, sending, cut));
        pod.until_metric("outrigger_requests_in_flight", &direction, 0.0).await;
    }
    pod.until_metric(REQUESTS, &[direction[0], ("status_class", "none")], 4.0).await;
    pod.until_metric(REQUESTS, &direction, 4.0).await;
}

#[test]
fn what_breaks_off_is_counted_by_the_callee_and_does_not_stay_in_flight() {
    harness::run(callers_leave(false));
}

#[test]
fn what_breaks_off_is_counted_by_the_caller_and_does_not_stay_in_flight() {
    harness::run(callers_leave(true));
}

#[test]
fn retries_ejections_and_endpoints_are_counted() {
    harness::run(async {
        let outlier = json!({ "services": [{ "name": ORDERS, "port": 8080,
            "outlier_detection": { "base_ejection_time": "1500ms", "interval": "200ms" } }] });
        let mut shop = Shop::open(Mesh::new(), 2, 5, outlier).await;
        let service = [("service", ORDERS)];
        shop.client.until_metric("outrigger_endpoints", &service, 2.0).await;
        let ask_many = ["--url", "http://orders.mesh:8080/", "--requests", "200", "--connections", "4"];
        // Both replicas have shown how fast they are: one that failed at once would hardly be asked again.
        harness::shop::assert_none_failed(&shop.client.load(&ask_many).report().await);
        let before = shop.count().await as f64;
        shop.replicas[0].ask("/control/fail/503").await;
        harness::shop::assert_none_failed(&shop.client.load(&ask_many).report().await);
        let retried = shop.client.metric("outrigger_retries_total", &[service[0], ("reason", "status")]).await;
        assert!(retried >= 5.0, "{retried}");
        assert_eq!(shop.count().await as f64, before + 200.0 + retried, "each retry is one more request at a replica");
        assert_eq!(shop.client.metric("outrigger_retries_total", &[]).await, retried, "for no other reason");
        assert_eq!(shop.client.metric(REQUESTS, &service).await, 400.0, "a request with its retries is one request");

        let ejections = shop.client.metric("outrigger_ejections_total", &service).await;
        assert!((1.0..=2.0).contains(&ejections), "once by each worker that saw enough: {ejections}");
        let shown = |all: serde_json::Value| -> u64 {
            all["endpoints"].as_array().unwrap().iter().map(|e| e["ejections"].as_u64().unwrap()).sum()
        };
        assert_eq!(shown(shop.endpoints(ORDERS).await) as f64, ejections, "/endpoints says the same");
        shop.client.until_metric("outrigger_endpoints_ejected", &service, 1.0).await;
        shop.replicas[0].ask("/control/ok").await;
        shop.client.until_metric("outrigger_readmissions_total", &service, ejections).await;
        shop.client.until_metric("outrigger_endpoints_ejected", &service, 0.0).await;

        shop.replicas[0].kill();
        harness::shop::assert_none_failed(&shop.client.load(&ask_many).report().await);
        let after = shop.client.scrape().await;
        assert!(after.sum("outrigger_connect_failures_total", &[service[0], ("reason", "connect_failed")]) >= 1.0);
        assert!(after.sum("outrigger_retries_total", &service) > retried);
    });
}

#[test]
fn connections_and_opaque_bytes_are_counted_to_the_byte() {
    const UP: usize = 100_000;
    const DOWN: usize = 300_000;
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let listener = pair.server.listen(SCRIPT);
        let mut open = Vec::new();
        for family in [pair.families()[0], pair.families()[1], pair.families()[0]] {
            let mut client = pair.client.connect(family.at(SCRIPT)).await.unwrap();
            client.write_all(&pattern::bytes(UP)).await.unwrap();
            let (mut server, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
            timeout(SOON, server.read_exact(&mut vec![0; UP])).await.unwrap().unwrap();
            open.push((client, server));
        }
        let ends = [(&pair.client, ("direction", "outbound")), (&pair.server, ("direction", "inbound"))];
        let mtls = ("transport", "mtls");
        for (pod, direction) in ends {
            pod.until_metric("outrigger_connections_open", &[direction, mtls], 3.0).await;
            pod.until_metric("outrigger_connections_total", &[direction, mtls], 3.0).await;
        }
        for (mut client, mut server) in open {
            server.write_all(&pattern::bytes(DOWN)).await.unwrap();
            server.shutdown().await.unwrap();
            let mut all = Vec::new();
            timeout(SOON, client.read_to_end(&mut all)).await.unwrap().unwrap();
            assert_eq!(all.len(), DOWN);
        }
        for (pod, direction) in ends {
            pod.until_metric("outrigger_connections_open", &[direction, mtls], 0.0).await;
            pod.until_metric("outrigger_connections_total", &[direction, mtls], 3.0).await;
            let (received, sent) = if direction.1 == "outbound" { (DOWN, UP) } else { (UP, DOWN) };
            // The sidecar carries each byte twice: from and to its own workload, and from and to its peer.
            for (transport, received, sent) in [(mtls, received, sent), (("transport", "workload"), sent, received)] {
                let flow = |name| [direction, transport, ("flow", name)];
                pod.until_metric("outrigger_bytes_total", &flow("received"), 3.0 * received as f64).await;
                pod.until_metric("outrigger_bytes_total", &flow("sent"), 3.0 * sent as f64).await;
            }
        }
    });
}

#[test]
fn bytes_of_http_are_counted() {
    const UP: usize = 1_000_000;
    const DOWN: usize = 3_000_000;
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        let family = pair.families()[0];
        let (host, to) = (family.host(), family.at(HTTP));
        for h2 in [false, true] {
            let post = request(&host, h2, Method::POST, "/sink").body(body(pattern::bytes(UP))).unwrap();
            assert_eq!(pair.client.send(to, h2, post).await.json()["length"], UP);
            let get = request(&host, h2, Method::GET, &format!("/bytes/{DOWN}")).body(body("")).unwrap();
            assert_eq!(pair.client.send(to, h2, get).await.body.len(), DOWN);
        }
        for (pod, direction) in [(&pair.client, "outbound"), (&pair.server, "inbound")] {
            for transport in ["mtls", "workload"] {
                // From the callee's point of view on the side that is called, from the caller's on the other.
                let called = (direction == "inbound") == (transport == "mtls");
                for (flow, sent) in
                    [("received", if called { UP } else { DOWN }), ("sent", if called { DOWN } else { UP })]
                {
                    let labels = [("direction", direction), ("transport", transport), ("flow", flow)];
                    let counted = pod.metric("outrigger_bytes_total", &labels).await;
                    // The bodies, and at most a twentieth for heads and frames.
                    let right = 2.0 * sent as f64..2.1 * sent as f64;
                    assert!(right.contains(&counted), "{labels:?}: {counted}, not in {right:?}");
                }
            }
            let mtls = [("direction", direction), ("transport", "mtls")];
            let connections = pod.metric("outrigger_connections_total", &mtls).await;
            assert!((1.0..=2.0).contains(&connections), "requests share one connection a worker: {connections}");
        }
    });
}

#[test]
fn refusals_are_counted_on_both_sides() {
    harness::run(async {
        let pair = Pair::new(Mesh::new()).await;
        // The server gets a certificate that names something else.
        pair.ca.issue(&pair.server, &["payments.mesh"], "1h");
        harness::eventually("the new certificate is taken up", SOON, || async {
            let certs = pair.server.admin("/certs").await.text();
            if certs.contains("payments.mesh") { Ok(()) } else { Err(certs) }
        })
        .await;
        let family = pair.families()[0];
        let refused = ask(&pair.client, family.at(HTTP), &family.host(), false, "/").await;
        assert_eq!(refused.header("outrigger-error"), "tls_failed", "{}", refused.text());
        let ours = [("direction", "outbound"), ("reason", "wrong_name")];
        let failed = pair.client.metric("outrigger_tls_failures_total", &ours).await;
        assert!(failed >= 1.0);
        let theirs = [("direction", "inbound"), ("reason", "refused_wrong_name")];
        pair.server.until_metric("outrigger_tls_failures_total", &theirs, failed).await;
        pair.server.until_metric("outrigger_tls_failures_total", &[], failed).await;
        pair.client
            .until_metric("outrigger_errors_total", &[("direction", "outbound"), ("reason", "tls_failed")], 1.0)
            .await;
        let class = [("direction", "outbound"), ("service", "orders4.mesh"), ("status_class", "5xx")];
        pair.client.until_metric(REQUESTS, &class, 1.0).await;

        let outside = pair.mesh.pod("outside");
        for _ in 0..3 {
            assert_eq!(outside.get(family.at(HTTP), "x", "/").await.status, 403);
        }
        let mut opaque = outside.connect(family.at(ECHO)).await.unwrap();
        opaque.write_all(b"\0\x01").await.unwrap();
        assert!(timeout(SOON, opaque.read(&mut [0; 1])).await.unwrap().is_err());
        let refused = [("direction", "inbound"), ("reason", "mesh_only")];
        pair.server.until_metric("outrigger_errors_total", &refused, 4.0).await;
        let nobody = [("direction", "inbound"), ("peer", ""), ("status_class", "4xx")];
        pair.server.until_metric(REQUESTS, &nobody, 3.0).await;
    });
}

#[test]
fn the_operators_view_is_complete_and_holds_no_secret() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let _ca = ca.serve().await;
        let (pod, outside) = (mesh.pod("orders"), mesh.pod("outside"));
        mesh.dns.set(ORDERS, 60, &[pod.v4.into(), outside.v4.into()]);
        let config = json!({
            "identity": ca.enrolment(&pod, &[ORDERS], "1h"),
            "services": [{ "name": ORDERS, "port": 8080, "timeouts": { "request": "7s" } }],
        });
        let _sidecar = Sidecar::start(&mesh, &pod, config).await;
        let _origin = pod.serve(&["--http", "8080"]).await;
        assert_eq!(pod.get(pod.at4(8080), "orders.mesh:8080", "/").await.status, 200);
        pod.until_metric("outrigger_endpoints", &[("service", ORDERS)], 2.0).await;
        // Names that callers make up, and paths, are in no label.
        pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "made-up.example", "/made-up-path").await;
        let _ = pod.try_get(outside.at4(8080), "made-up.example", "/made-up-path").await;

        // What the CA publishes was read, and its lists are to be replaced some time from now.
        pod.until_metric("outrigger_trust_readings_total", &[("outcome", "ok")], 1.0).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let read = pod.metric("outrigger_trust_read_timestamp_seconds", &[]).await;
        assert!((now - 60.0..=now + 1.0).contains(&read), "{read} is not a moment ago, {now} is now");
        let next_update = pod.metric("outrigger_trust_lists_next_update_timestamp_seconds", &[]).await;
        assert!(next_update > now, "{next_update} is over, {now} is now");

        let metrics = pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/metrics").await;
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(metrics.header("content-type"), kind);
        assert!(!metrics.text().contains("made-up"), "{}", metrics.text());
        let config = pod.admin("/config").await.text();
        for part in ["orders.mesh", "7s", "workers: 2", "mode: strict", "consecutive_5xx: 5", "15006", "token_file"] {
            assert!(config.contains(part), "no {part} in {config}");
        }
        // What it shows is a configuration, whole and right.
        let file = pod.folder("config").join("shown.yaml");
        std::fs::write(&file, &config).unwrap();
        let check = pod.output(SIDECAR, "outrigger-sidecar", &["check", "--config", file.to_str().unwrap()]);
        assert!(check.status.success(), "{}\n{config}", String::from_utf8_lossy(&check.stderr));

        let endpoints = pod.admin("/endpoints").await.json();
        let service = endpoints.as_array().unwrap().iter().find(|s| s["service"] == ORDERS).unwrap().clone();
        let mut addresses: Vec<_> = service["endpoints"].as_array().unwrap().iter().map(|e| &e["address"]).collect();
        addresses.sort_by_key(|a| a.to_string());
        assert_eq!(addresses, [&json!(pod.at4(8080)), &json!(outside.at4(8080))]);
        for field in ["weight", "priority", "ejected_by_workers", "ejections", "requests"] {
            assert!(!service["endpoints"][0][field].is_null(), "no {field} in {service}");
        }
        let certs = pod.admin("/certs").await.json();
        let certificate = &certs["certificate"];
        assert_eq!((&certs["state"], &certificate["id"]), (&json!("valid"), &json!(id("orders"))));
        assert_eq!((&certificate["dns_names"], &certificate["chain_length"]), (&json!([ORDERS]), &json!(2)));
        let left = certificate["remaining_seconds"].as_u64().unwrap();
        assert!((3_500..=3_600).contains(&left), "{left} s of one hour");
        assert!(certs["next_renewal"].is_string() && certificate["not_after"].is_string(), "{certs:#}");
        let bundle = std::fs::read(pod.folder("identity").join("bundle.pem")).unwrap();
        let root = CertificateDer::pem_slice_iter(&bundle).next().unwrap().unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root);
        let sha256: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let shown = certs["roots"][0]["sha256"].as_str().unwrap().replace(':', "").to_lowercase();
        assert_eq!(shown, sha256, "{certs:#}");

        let key = std::fs::read_to_string(pod.folder("identity").join("key.pem")).unwrap();
        let token = std::fs::read_to_string(pod.folder("enrolment").join("token")).unwrap();
        let secrets: Vec<_> = key.lines().filter(|l| !l.starts_with('-')).chain([token.trim(), "PRIVATE"]).collect();
        for path in ["/", "/livez", "/readyz", "/metrics", "/config", "/endpoints", "/certs"] {
            let text = pod.admin(path).await.text();
            assert!(!text.is_empty() && secrets.iter().all(|s| !text.contains(s)), "{path}: {text}");
            let public = pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", path).await;
            let open = matches!(path, "/livez" | "/readyz" | "/metrics");
            assert_eq!(public.status, if open { 200 } else { 404 }, "{path} of 15020");
        }
        // Nobody else reaches the operator's address.
        let refused = outside.try_get(pod.at4(15000), "localhost", "/config").await;
        assert!(refused.as_ref().map_or(true, |r| r.status == 403), "{refused:?}");
        assert_eq!(outside.get(pod.at4(15020), "x", "/livez").await.status, 200);
    });
}
