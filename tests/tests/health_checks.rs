//! Active health checks: who fails them gets no request and comes back by them, whatever is spoken, and nobody else is
//! asked anything.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Frame, body::Incoming};
use outrigger_e2e::{
    harness::{
        self, Mesh, Pod, Shop, Sidecar,
        client::{Body, body},
        pki::Ca,
        script::{self, Script},
        shop::{ORDERS, URL, assert_none_failed, orders, unhindered_orders},
    },
    workload::grpc::{FrameBody, frame},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const CHECKS: &str = "outrigger_health_checks_total";
const UNHEALTHY: &str = "outrigger_endpoints_unhealthy";

/// An application that works, and whose `/healthz` answers what the test says.
struct Told {
    health: Arc<AtomicU16>,
    checks: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    versions: Arc<Mutex<Vec<http::Version>>>,
    _script: Script,
}

impl Told {
    fn serve(pod: &Pod, health: u16) -> Self {
        let health = Arc::new(AtomicU16::new(health));
        let (checks, requests, versions) =
            (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (h, c, r, v) = (Arc::clone(&health), Arc::clone(&checks), Arc::clone(&requests), Arc::clone(&versions));
        let script = script::http(pod, 8080, move |request: Request<Incoming>| {
            let is_check = request.uri().path() == "/healthz";
            if is_check {
                assert_eq!(request.headers()["user-agent"], "outrigger-health-check");
                v.lock().unwrap().push(request.version());
            }
            (if is_check { &c } else { &r }).fetch_add(1, Relaxed);
            let status = if is_check { h.load(Relaxed) } else { 200 };
            async move { Response::builder().status(status).body(body("told\n")).unwrap() }
        });
        Self { health, checks, requests, versions, _script: script }
    }

    fn answers(&self, status: u16) {
        self.health.store(status, Relaxed);
    }

    /// Waits for further checks.
    async fn checked(&self, times: u64) {
        let before = self.checks.load(Relaxed);
        harness::eventually("it is checked", Duration::from_secs(10), || async {
            let now = self.checks.load(Relaxed);
            if now >= before + times { Ok(()) } else { Err(format!("{} times", now - before)) }
        })
        .await;
    }
}

/// Checks by HTTP, with these settings.
fn by_http(settings: Value) -> Value {
    let mut check = json!({ "http": { "path": "/healthz" }, "interval": "200ms", "timeout": "1s" });
    harness::sidecar::merge(&mut check, settings);
    json!({ "health_check": check, "retry": { "attempts": 0 } })
}

async fn until_unhealthy(client: &Pod, service: &str, endpoints: f64) {
    client.until_metric(UNHEALTHY, &[("service", service)], endpoints).await;
}

async fn shown(shop: &Shop, address: SocketAddr) -> Value {
    let all = shop.endpoints(ORDERS).await;
    let address = json!(address);
    let found = all["endpoints"].as_array().and_then(|all| all.iter().find(|e| e["address"] == address));
    found.cloned().unwrap_or(Value::Null)
}

#[test]
fn who_fails_its_checks_gets_no_request_and_comes_back_by_them() {
    harness::run(async {
        let check = by_http(json!({ "unhealthy_threshold": 3, "healthy_threshold": 2 }));
        let mut shop = Shop::open(Mesh::new(), 3, 60, unhindered_orders(check)).await;
        shop.replicas[0].origin.kill();
        let told = Told::serve(&shop.replicas[0].pod, 200);
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        told.checked(3).await;
        let load = async || shop.client.load(&["--url", URL, "--requests", "300", "--connections", "4"]).report().await;
        assert_none_failed(&load().await);
        assert!(told.requests.load(Relaxed) > 30, "it has its share");

        let good = shop.client.metric(CHECKS, &[("service", ORDERS), ("result", "success")]).await;
        assert!(good >= 9.0, "{good}");
        told.answers(500);
        let (asked, requests) = (told.checks.load(Relaxed), told.requests.load(Relaxed));
        until_unhealthy(&shop.client, ORDERS, 1.0).await;
        let failures = told.checks.load(Relaxed) - asked;
        // One may have been under way when its answers changed, and the metric is looked at every now and then.
        assert!((3..=6).contains(&failures), "{failures} failed checks, of one worker, and the threshold is 3");
        assert_none_failed(&load().await);
        assert_eq!(told.requests.load(Relaxed), requests, "nobody sent it anything");
        let failed = shop.client.metric(CHECKS, &[("service", ORDERS), ("result", "status")]).await;
        assert!(failed >= 3.0, "{failed}");
        let view = shown(&shop, shop.replicas[0].pod.at4(8080)).await;
        assert_eq!(view["unhealthy_by_workers"], json!([0]), "{view}");
        let why = view["health_check_failure"].as_str().unwrap();
        assert!(why.contains("answered 500") && why.contains("/healthz"), "{why}");

        told.answers(200);
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        assert_none_failed(&load().await);
        assert!(told.requests.load(Relaxed) > requests + 30, "it has its share again");
        assert!(
            told.versions.lock().unwrap().iter().all(|v| *v == http::Version::HTTP_11),
            "as the application expects"
        );

        // The checks are nobody's requests.
        let outbound = [("direction", "outbound"), ("service", ORDERS)];
        assert_eq!(shop.client.metric("outrigger_requests_total", &outbound).await, 900.0);
        for nothing in ["outrigger_ejections_total", "outrigger_retries_total", "outrigger_connect_failures_total"] {
            let seen = shop.client.metric(nothing, &[("service", ORDERS)]).await;
            assert_eq!(seen, 0.0, "{nothing}");
        }
        let log = shop.client_sidecar.log_text();
        assert!(log.contains("endpoint unhealthy") && log.contains("endpoint healthy again"), "{log}");
    });
}

#[test]
fn a_black_hole_is_found_before_a_request_is_and_none_is_lost() {
    harness::run(async {
        let check = json!({ "interval": "200ms", "timeout": "300ms", "unhealthy_threshold": 2 });
        let shop = Shop::open(Mesh::new(), 3, 60, unhindered_orders(by_http(check))).await;
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        sleep(ms(500)).await;
        shop.replicas[1].pod.black_hole();
        let begun = Instant::now();
        until_unhealthy(&shop.client, ORDERS, 1.0).await;
        println!("a black hole was found in {:?}", begun.elapsed());
        assert!(begun.elapsed() < ms(3_000), "{:?} for two checks", begun.elapsed());
        // Nothing is tried again, so one request to it would be one lost.
        let args = ["--url", URL, "--method", "POST", "--data", "x", "--requests", "300", "--connections", "4"];
        let report = shop.client.load(&args).report().await;
        assert_none_failed(&report);
        assert_eq!(report["replicas"]["orders2"], Value::Null, "{report}");
        let late = shop.client.metric(CHECKS, &[("service", ORDERS), ("result", "timeout")]).await;
        assert!(late >= 2.0, "{late}");

        shop.replicas[1].pod.heal();
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        let report = shop.client.load(&args).report().await;
        assert_none_failed(&report);
        assert!(report["replicas"]["orders2"].as_u64().unwrap_or(0) > 30, "it is used again: {report}");
    });
}

#[test]
fn under_load_a_black_hole_costs_what_was_under_way_and_no_request() {
    harness::run(async {
        let check = json!({
            "health_check": {
                "http": { "path": "/healthz" }, "interval": "200ms", "timeout": "300ms", "unhealthy_threshold": 2,
            },
            "timeouts": { "backendRequest": "2s", "connect": "2s" },
            "outlier_detection": {
                "consecutive_5xx": 0, "consecutive_gateway_failure": 0, "consecutive_local_origin_failure": 0,
            },
        });
        let shop = Shop::open(Mesh::new(), 3, 60, orders(check)).await;
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        let load = shop.client.load(&["--url", URL, "--duration", "6s", "--connections", "16", "--rate", "300"]);
        sleep(ms(1_500)).await;
        let before = shop.client.metric("outrigger_retries_total", &[]).await;
        shop.replicas[1].pod.black_hole();
        let report = load.report().await;
        let retries = shop.client.metric("outrigger_retries_total", &[]).await - before;
        println!("{report}; {retries} retries");
        assert_none_failed(&report);
        assert!(report["ok"].as_u64().unwrap() > 1_000, "{report}");
        // Only what was sent before the second failed check, not one for each request of 4.5 s.
        assert!(retries < 100.0, "{retries} requests met the hole");
    });
}

/// An application that answers health checks of gRPC as the test says: the number of a serving status, or 100 for
/// a method that it does not have. Only `shop.Orders` is asked about.
fn grpc_health(pod: &Pod, says: &Arc<AtomicU16>) -> Script {
    let says = Arc::clone(says);
    script::http(pod, 8080, move |request: Request<Incoming>| {
        let says = says.load(Relaxed) as u8;
        async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(
                (request.version(), &request.headers()["te"]),
                (http::Version::HTTP_2, &"trailers".parse().unwrap())
            );
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(asked, frame(b"\x0a\x0bshop.Orders"), "HealthCheckRequest in protobuf");
            let response = Response::builder().header("content-type", "application/grpc");
            if says == 100 {
                return response.header("grpc-status", "12").body(body("")).unwrap();
            }
            response.body(answer(says).await).unwrap()
        }
    })
}

async fn answer(status: u8) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    assert!(sender.send(Ok(Frame::data(frame(&[8, status])))).await.is_ok());
    assert!(sender.send(Ok(Frame::trailers(trailers))).await.is_ok());
    FrameBody::new(receiver).boxed_unsync()
}

#[test]
fn a_grpc_server_is_asked_by_its_own_protocol_with_and_without_a_sidecar() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let [client, peer, legacy] = ["client", "peer", "legacy"].map(|name| mesh.pod(name));
        ca.issue(&client, &[], "1h");
        ca.issue(&peer, &["peer.mesh"], "1h");
        let says = [(); 2].map(|()| Arc::new(AtomicU16::new(1)));
        let _scripts = [grpc_health(&peer, &says[0]), grpc_health(&legacy, &says[1])];
        let service = |name: &str, mtls: &str, pod: &Pod| {
            json!({
                "name": name, "port": 8080, "mtls": mtls, "endpoints": { "static": [pod.at4(8080)] },
                "health_check": {
                    "grpc": { "service": "shop.Orders" }, "interval": "100ms", "unhealthy_threshold": 2,
                },
            })
        };
        let services = [service("peer.mesh", "required", &peer), service("legacy.mesh", "off", &legacy)];
        let _sidecars = [
            Sidecar::start(&mesh, &peer, json!({})).await,
            Sidecar::start(&mesh, &client, json!({ "services": services })).await,
        ];
        for (name, says) in ["peer.mesh", "legacy.mesh"].into_iter().zip(&says) {
            let why = async || {
                let all = client.admin("/endpoints").await.json();
                let all = all.as_array().unwrap().iter().find(|s| s["service"] == name).cloned().unwrap();
                all["endpoints"][0]["health_check_failure"].as_str().unwrap_or_default().to_owned()
            };
            until_unhealthy(&client, name, 0.0).await;
            for (status, words) in
                [(2, "answered NOT_SERVING"), (3, "answered SERVICE_UNKNOWN"), (100, "answered gRPC status 12")]
            {
                says.store(status, Relaxed);
                until_unhealthy(&client, name, 1.0).await;
                let why = why().await;
                assert!(why.contains(words), "{name} said {status}: {why}");
                says.store(1, Relaxed);
                until_unhealthy(&client, name, 0.0).await;
            }
            let good = client.metric(CHECKS, &[("service", name), ("result", "success")]).await;
            assert!(good >= 3.0, "{name}: {good}");
        }
        let inbound = [("direction", "inbound"), ("transport", "mtls")];
        let connections = peer.metric("outrigger_connections_total", &inbound).await;
        assert!(connections <= 4.0, "{connections}: a connection is kept from check to check, by each of two workers");
    });
}

async fn echoes(pod: &Pod, to: SocketAddr) {
    let mut stream = pod.connect(to).await.unwrap();
    stream.write_all(b"\x01bytes").await.unwrap();
    let mut answer = [0; 6];
    timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"\x01bytes");
}

#[test]
fn a_tcp_server_is_well_while_it_takes_connections_with_and_without_a_sidecar() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let client = mesh.pod("client");
        ca.issue(&client, &[], "1h");
        let names = ["peer1", "peer2", "legacy1", "legacy2"];
        let pods = names.map(|name| mesh.pod(name));
        let mut origins = Vec::new();
        let mut sidecars = Vec::new();
        for pod in &pods {
            origins.push(pod.serve(&["--tcp-echo", "9000"]).await);
        }
        for pod in &pods[..2] {
            ca.issue(pod, &["peer.mesh"], "1h");
            sidecars.push(Sidecar::start(&mesh, pod, json!({})).await);
        }
        let service = |name: &str, mtls: &str, pods: &[Pod]| {
            let addresses: Vec<_> = pods.iter().map(|pod| pod.at4(9000)).collect();
            json!({
                "name": name, "port": 9000, "mtls": mtls, "protocol": "opaque", "retry": { "attempts": 0 },
                "endpoints": { "static": addresses }, "health_check": { "tcp": {}, "interval": "100ms" },
            })
        };
        let services = [service("peer.mesh", "required", &pods[..2]), service("legacy.mesh", "off", &pods[2..])];
        // Each worker finds out for itself.
        let config = json!({ "workers": 1, "services": services });
        sidecars.push(Sidecar::start(&mesh, &client, config).await);
        for (name, dies) in [("peer.mesh", 0), ("legacy.mesh", 2)] {
            // An endpoint's first answer decides alone; these are to be more.
            let checked = [("service", name), ("result", "success")];
            harness::eventually("all are checked", Duration::from_secs(10), || async {
                let n = client.metric(CHECKS, &checked).await;
                if n >= 8.0 { Ok(()) } else { Err(n.to_string()) }
            })
            .await;
            until_unhealthy(&client, name, 0.0).await;
            echoes(&client, pods[dies].at4(9000)).await;
            // The application alone: its sidecar goes on to shake hands.
            origins[dies].kill();
            until_unhealthy(&client, name, 1.0).await;
            for _ in 0..20 {
                echoes(&client, pods[dies].at4(9000)).await;
            }
            let failed = client.metric(CHECKS, &[("service", name), ("result", "connect")]).await;
            assert!(failed >= 3.0, "{name}: {failed}");
            assert_eq!(client.metric("outrigger_connect_failures_total", &[("service", name)]).await, 0.0);
            origins[dies] = pods[dies].serve(&["--tcp-echo", "9000"]).await;
            until_unhealthy(&client, name, 0.0).await;
        }
    });
}

#[test]
fn a_new_endpoint_waits_for_its_first_good_check_and_a_departed_one_is_checked_no_more() {
    harness::run(async {
        let check = by_http(json!({ "healthy_threshold": 5 }));
        let mut shop = Shop::open(Mesh::new(), 3, 1, unhindered_orders(check)).await;
        shop.replicas[2].origin.kill();
        let told = Told::serve(&shop.replicas[2].pod, 503);
        let publish = |n: usize| {
            let addresses: Vec<_> = shop.replicas[..n].iter().map(|r| r.pod.v4.into()).collect();
            shop.mesh.dns.set(ORDERS, 1, &addresses);
        };
        let endpoints = [("service", ORDERS)];
        publish(2);
        shop.client.until_metric("outrigger_endpoints", &endpoints, 2.0).await;
        sleep(ms(300)).await;
        let asked = told.checks.load(Relaxed);
        sleep(ms(1_000)).await;
        assert_eq!(told.checks.load(Relaxed), asked, "discovery does not name it any more");
        until_unhealthy(&shop.client, ORDERS, 0.0).await;

        let load = shop.client.load(&["--url", URL, "--duration", "4s", "--connections", "4", "--rate", "300"]);
        sleep(ms(500)).await;
        let requests = told.requests.load(Relaxed);
        publish(3);
        shop.client.until_metric("outrigger_endpoints", &endpoints, 3.0).await;
        told.checked(2).await;
        assert_eq!(told.requests.load(Relaxed), requests, "it was never well");
        until_unhealthy(&shop.client, ORDERS, 1.0).await;
        assert_none_failed(&load.report().await);
        assert_eq!(told.requests.load(Relaxed), requests);

        // Once more, and well from the first check on: that one suffices.
        publish(2);
        shop.client.until_metric("outrigger_endpoints", &endpoints, 2.0).await;
        told.answers(200);
        publish(3);
        shop.client.until_metric("outrigger_endpoints", &endpoints, 3.0).await;
        told.checked(1).await;
        until_unhealthy(&shop.client, ORDERS, 0.0).await;
        assert!(told.checks.load(Relaxed) < asked + 40, "five in a row were not asked for");
        assert_none_failed(
            &shop.client.load(&["--url", URL, "--requests", "200", "--connections", "4"]).report().await,
        );
        assert!(told.requests.load(Relaxed) > requests + 20, "it has its share");
    });
}

#[test]
fn when_nobody_is_well_the_panic_threshold_says_whether_all_are_used() {
    harness::run(async {
        for (threshold, status) in [(50, 200), (0, 503)] {
            let mut check = by_http(json!({ "unhealthy_threshold": 1 }));
            check["outlier_detection"] = json!({ "panic_threshold": threshold });
            let mut shop = Shop::open(Mesh::new(), 1, 60, unhindered_orders(check)).await;
            shop.replicas[0].origin.kill();
            harness::eventually("its sidecar says that nobody is there", Duration::from_secs(10), || async {
                let view = shown(&shop, shop.replicas[0].pod.at4(8080)).await;
                let why = view["health_check_failure"].as_str().unwrap_or_default().to_owned();
                if why.contains("503 Service Unavailable (application_unreachable)") { Ok(()) } else { Err(why) }
            })
            .await;
            let told = Told::serve(&shop.replicas[0].pod, 500);
            told.checked(2).await;
            until_unhealthy(&shop.client, ORDERS, 1.0).await;
            let reply = shop.get("/").await;
            assert_eq!(reply.status, status, "panic_threshold {threshold}: {}", reply.text());
            if status == 503 {
                assert_eq!(reply.header("outrigger-error"), "no_healthy_endpoints");
                assert!(reply.text().contains("all 1 endpoints of orders.mesh are unhealthy,"), "{}", reply.text());
                told.answers(200);
                until_unhealthy(&shop.client, ORDERS, 0.0).await;
                assert_eq!(shop.get("/").await.status, 200);
            }
        }
    });
}

#[test]
fn where_no_check_is_configured_nobody_is_asked_anything() {
    harness::run(async {
        let mesh = Mesh::new();
        let [client, quiet, asked] = ["client", "quiet", "asked"].map(|name| mesh.pod(name));
        Ca::init(&mesh).issue(&client, &[], "1h");
        let count = |pod: &Pod| {
            let seen = Arc::<AtomicU64>::default();
            let connections = Arc::clone(&seen);
            let script = script::connections(pod, 8080, move |_| {
                connections.fetch_add(1, Relaxed);
                async {}
            });
            (seen, script)
        };
        let (to_quiet, to_asked) = (count(&quiet), count(&asked));
        let service = |name: &str, pod: &Pod| json!({ "name": name, "port": 8080, "mtls": "off", "endpoints": { "static": [pod.at4(8080)] } });
        let mut checked = service("asked.mesh", &asked);
        checked["health_check"] = json!({ "tcp": {}, "interval": "100ms" });
        let config = json!({ "services": [service("quiet.mesh", &quiet), checked] });
        let _sidecar = Sidecar::start(&mesh, &client, config).await;
        harness::eventually("the other one is checked", Duration::from_secs(10), || async {
            let n = to_asked.0.load(Relaxed);
            if n >= 20 { Ok(()) } else { Err(format!("{n} connections")) }
        })
        .await;
        assert_eq!(to_quiet.0.load(Relaxed), 0);
        assert_eq!(client.metric(CHECKS, &[("service", "quiet.mesh")]).await, 0.0);
        assert!(client.metric(CHECKS, &[("service", "asked.mesh"), ("result", "success")]).await >= 10.0);
    });
}
