//! What bounds a failing service: circuit breakers reached and released, fast answers when nobody is left, and callers
//! that do not notice.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Method, Request, Response};
use hyper::body::Incoming;
use nix::sys::signal::Signal;
use outrigger_e2e::harness::{
    self, Mesh, Pod, Process, Reply, Shop, Sidecar,
    client::body,
    pki::Ca,
    script,
    shop::{ORDERS, URL, assert_none_failed, orders, request, unhindered_orders},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn opened(pod: &Pod, service: &str, limit: &str) -> f64 {
    pod.metric("outrigger_circuit_open_total", &[("service", service), ("limit", limit)]).await
}

/// A client, and a pod without a sidecar whose HTTP and echo it calls in the clear. Fields end in their order.
struct Plain {
    _sidecar: Sidecar,
    _origin: Process,
    client: Pod,
    server: Pod,
    _mesh: Mesh,
}

impl Plain {
    /// `plain.mesh` and `echo.mesh` with these settings, and one worker.
    async fn open(settings: Value) -> Self {
        let mesh = Mesh::new();
        let (client, server) = (mesh.pod("client"), mesh.pod("server"));
        Ca::init(&mesh).issue(&client, &[], "1h");
        let origin = server.serve(&["--http", "8080", "--tcp-echo", "9000"]).await;
        let services = [("plain.mesh", 8080), ("echo.mesh", 9000)].map(|(name, port)| {
            let endpoints = json!({ "static": [server.at4(port)] });
            let mut service = json!({ "name": name, "port": port, "mtls": "off", "endpoints": endpoints });
            harness::sidecar::merge(&mut service, settings.clone());
            service
        });
        let sidecar = Sidecar::start(&mesh, &client, json!({ "workers": 1, "services": services })).await;
        Self { _sidecar: sidecar, _origin: origin, client, server, _mesh: mesh }
    }

    async fn get(&self, path: &str) -> (Reply, Duration) {
        let begun = Instant::now();
        (self.client.get(self.server.at4(8080), "plain.mesh:8080", path).await, begun.elapsed())
    }

    /// A new connection to the echo, and whether it is carried.
    async fn echo(&self) -> std::io::Result<TcpStream> {
        let mut stream = self.client.connect(self.server.at4(9000)).await?;
        stream.write_all(b"x").await?;
        timeout(Duration::from_secs(5), stream.read_u8()).await.expect("an answer or an end")?;
        Ok(stream)
    }
}

/// Panics unless a reply came at once and says that this bound of the service is reached.
fn assert_open((reply, took): &(Reply, Duration), bound: &str) {
    let text = reply.text();
    assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (503, "circuit_open"), "{text}");
    assert!(text.contains(&format!("circuit_breakers.{bound} of ")), "{text}");
    assert_eq!(reply.header("retry-after"), "1", "{text}");
    assert!(*took < ms(600), "{took:?} is a queue");
}

#[test]
fn connections_beyond_their_bound_are_refused_until_one_ends() {
    harness::run(async {
        let plain = Plain::open(json!({ "circuit_breakers": { "max_connections": 2 } })).await;
        let (first, second) = (plain.echo().await.unwrap(), plain.echo().await.unwrap());
        for n in 1..=3 {
            let refused = plain.echo().await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(opened(&plain.client, "echo.mesh", "max_connections").await, f64::from(n));
        }
        let told = [("direction", "outbound"), ("reason", "circuit_open")];
        assert_eq!(plain.client.metric("outrigger_errors_total", &told).await, 3.0);
        drop(first);
        let third = harness::eventually("a place is free", Duration::from_secs(3), || async {
            plain.echo().await.map_err(|e| e.to_string())
        })
        .await;
        assert!(plain.echo().await.is_err(), "one place, not two");
        drop((second, third));

        let (a, b, late) = tokio::join!(plain.get("/delay/1000"), plain.get("/delay/1000"), async {
            sleep(ms(300)).await;
            plain.get("/").await
        });
        assert_eq!((a.0.status.as_u16(), b.0.status.as_u16()), (200, 200));
        assert_open(&late, "max_connections");
        assert_eq!(opened(&plain.client, "plain.mesh", "max_connections").await, 1.0);
        assert_eq!(plain.get("/").await.0.status, 200, "an idle connection is there for the next");
    });
}

#[test]
fn requests_that_wait_for_a_connection_are_bounded() {
    harness::run(async {
        let settings = json!({
            "circuit_breakers": { "max_pending_requests": 2 },
            "timeouts": { "connect": "1500ms" },
            "retry": { "attempts": 0 },
        });
        let shop = Shop::open(Mesh::new(), 1, 60, unhindered_orders(settings)).await;
        shop.replicas[0].pod.black_hole();
        let get = async |wait| {
            sleep(wait).await;
            let begun = Instant::now();
            (shop.get("/").await, begun.elapsed())
        };
        let (a, b, late, later) = tokio::join!(get(ms(0)), get(ms(0)), get(ms(300)), get(ms(500)));
        for waited in [a, b] {
            assert_eq!(waited.0.header("outrigger-error"), "connect_timeout", "{}", waited.0.text());
            assert!(waited.1 >= ms(1_500), "{:?}", waited.1);
        }
        assert_open(&late, "max_pending_requests");
        assert_open(&later, "max_pending_requests");
        assert_eq!(opened(&shop.client, ORDERS, "max_pending_requests").await, 2.0);
        shop.replicas[0].pod.heal();
        assert_eq!(get(ms(0)).await.0.status, 200, "the places are free again");
        // With a connection there nothing waits.
        let slow = || shop.get("/delay/100");
        let (a, b, c, d) = tokio::join!(slow(), slow(), slow(), slow());
        assert!([a, b, c, d].iter().all(|r| r.status == 200));
    });
}

#[test]
fn without_a_sidecar_on_the_other_side_what_waits_for_a_connection_is_bounded_too() {
    harness::run(async {
        let settings = json!({
            "circuit_breakers": { "max_pending_requests": 1 },
            "timeouts": { "connect": "1500ms" },
            "retry": { "attempts": 0 },
        });
        let plain = Plain::open(settings).await;
        plain.server.black_hole();
        let (waited, late) = tokio::join!(plain.get("/"), async {
            sleep(ms(300)).await;
            plain.get("/").await
        });
        assert_eq!(waited.0.header("outrigger-error"), "connect_timeout", "{}", waited.0.text());
        assert_open(&late, "max_pending_requests");
        assert_eq!(opened(&plain.client, "plain.mesh", "max_pending_requests").await, 1.0);
        plain.server.heal();
        assert_eq!(plain.get("/").await.0.status, 200);
    });
}

#[test]
fn requests_that_wait_for_the_first_endpoints_are_bounded() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("client");
        Ca::init(&mesh).issue(&pod, &[], "1h");
        mesh.dns.fail(Some(harness::dns::Fault::Silent));
        let breakers = json!({ "circuit_breakers": { "max_pending_requests": 1 } });
        let mut config = unhindered_orders(breakers);
        harness::sidecar::merge(&mut config, json!({ "dns": { "timeout": "3s" } }));
        let _sidecar = Sidecar::start(&mesh, &pod, config).await;
        let get = async |wait| {
            sleep(wait).await;
            let begun = Instant::now();
            (pod.get((mesh.dns.pod.v4, 8080).into(), "orders.mesh:8080", "/").await, begun.elapsed())
        };
        let (waited, late) = tokio::join!(get(ms(0)), get(ms(300)));
        let (reply, took) = (&late.0, late.1);
        assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (503, "circuit_open"), "{}", reply.text());
        assert!(reply.text().contains(ORDERS) && took < ms(600), "{took:?}: {}", reply.text());
        assert_eq!(waited.0.header("outrigger-error"), "no_endpoints", "{}", waited.0.text());
        assert_eq!(opened(&pod, ORDERS, "max_pending_requests").await, 1.0);
    });
}

#[test]
fn retries_under_way_are_bounded() {
    harness::run(async {
        let settings = json!({ "circuit_breakers": { "max_retries": 1 } });
        let mut shop = Shop::open(Mesh::new(), 2, 60, unhindered_orders(settings)).await;
        let seen: Arc<Mutex<HashSet<String>>> = Arc::default();
        // The first time each call is refused at once; the second time it is answered slowly.
        let _scripts = [0, 1].map(|n: usize| {
            shop.replicas[n].origin.kill();
            let seen = Arc::clone(&seen);
            script::http(&shop.replicas[n].pod, 8080, move |call: Request<Incoming>| {
                let is_first = seen.lock().unwrap().insert(call.uri().path().to_owned());
                async move {
                    if is_first {
                        return Response::builder().status(503).body(body("not yet")).unwrap();
                    }
                    sleep(ms(1_000)).await;
                    Response::new(body("at last"))
                }
            })
        });
        let to = shop.replicas[0].pod.at4(8080);
        let get = |path| shop.client.send(to, false, request(false, &Method::GET, path, body("")));
        let replies = tokio::join!(get("/1"), get("/2"), get("/3"), get("/4"));
        let mut texts = [replies.0.text(), replies.1.text(), replies.2.text(), replies.3.text()];
        texts.sort();
        assert_eq!(texts, ["at last", "not yet", "not yet", "not yet"], "one retry at a time, and no queue");
        let denied = [("service", ORDERS), ("limit", "max_retries")];
        assert_eq!(shop.client.metric("outrigger_retries_denied_total", &denied).await, 3.0);
        for path in ["/5", "/6"] {
            assert_eq!(get(path).await.text(), "at last", "and then the next");
        }
        assert_eq!(shop.client.metric("outrigger_retries_denied_total", &denied).await, 3.0);
    });
}

#[test]
fn with_every_endpoint_ejected_and_no_panic_the_answer_is_fast_and_says_so() {
    harness::run(async {
        let settings = json!({
            "retry": { "attempts": 0 },
            "outlier_detection": {
                "consecutive_5xx": 1, "base_ejection_time": "3s", "interval": "200ms",
                "max_ejection_percent": 100, "panic_threshold": 0,
            },
        });
        let mut config = orders(settings);
        config["workers"] = json!(1);
        let shop = Shop::open(Mesh::new(), 2, 60, config).await;
        for replica in &shop.replicas {
            replica.ask("/control/fail/500").await;
        }
        assert_eq!((shop.get("/").await.status.as_u16(), shop.get("/").await.status.as_u16()), (500, 500));
        let begun = Instant::now();
        for _ in 0..5 {
            let reply = shop.get("/").await;
            let text = reply.text();
            assert_eq!(
                (reply.status.as_u16(), reply.header("outrigger-error")),
                (503, "no_healthy_endpoints"),
                "{text}"
            );
            assert!(text.contains("all 2 endpoints of orders.mesh are ejected or unreachable"), "{text}");
            assert!(text.contains("/endpoints"), "{text}");
            assert_eq!(reply.header("retry-after"), "1");
        }
        assert!(begun.elapsed() < ms(1_500), "{:?}", begun.elapsed());
        assert_eq!(shop.count().await, 2, "nobody was asked");
        assert_eq!(shop.client.metric("outrigger_endpoints_ejected", &[("service", ORDERS)]).await, 2.0);
        for replica in &shop.replicas {
            replica.ask("/control/ok").await;
        }
        harness::eventually("they are readmitted", Duration::from_secs(10), || async {
            let reply = shop.get("/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}

/// `orders.mesh` of two replicas and one worker, with these timeouts, and an ejection of which one look suffices. How
/// many requests go to a replica before the balancer avoids it depends on how fast the machine is, so one is enough.
fn two_with(timeouts: Value) -> Value {
    let mut config = orders(json!({
        "timeouts": timeouts,
        "outlier_detection": { "base_ejection_time": "30s", "consecutive_local_origin_failure": 1 },
    }));
    config["workers"] = json!(1);
    config
}

#[test]
fn a_replica_whose_requests_run_out_of_time_is_ejected() {
    harness::run(async {
        for (timeouts, reason) in
            [(json!({ "backendRequest": "200ms" }), "try_timeout"), (json!({ "request": "200ms" }), "request_timeout")]
        {
            let shop = Shop::open(Mesh::new(), 2, 60, two_with(timeouts)).await;
            shop.replicas[0].origin.signal(Signal::SIGSTOP);
            let args = ["--url", URL, "--requests", "300", "--connections", "8", "--rate", "150"];
            let report = shop.client.load(&args).report().await;
            let ejections = shop.client.metric("outrigger_ejections_total", &[("service", ORDERS)]).await;
            assert_eq!(ejections, 1.0, "{reason}: {report}");
        }
    });
}

#[test]
fn a_caller_that_stalls_its_own_upload_ejects_nobody() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 2, 60, two_with(json!({ "idle": "300ms" }))).await;
        let to = shop.replicas[0].pod.at4(8080);
        let mut stalled = Vec::new();
        for _ in 0..16 {
            let mut stream = shop.client.connect(to).await.unwrap();
            let head = b"POST /sink HTTP/1.1\r\nhost: orders.mesh:8080\r\ncontent-length: 1000\r\n\r\nhalf";
            stream.write_all(head).await.unwrap();
            stalled.push(stream);
        }
        for mut stream in stalled {
            let mut answer = [0; 12];
            timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
            assert_eq!(&answer, b"HTTP/1.1 504");
        }
        let ejections = shop.client.metric("outrigger_ejections_total", &[("service", ORDERS)]).await;
        assert_eq!(ejections, 0.0, "the replicas waited for what the caller did not send");
    });
}

#[test]
fn a_sidecar_stays_ready_whatever_becomes_of_its_peers() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::new(), 2, 1, orders(json!({}))).await;
        assert_eq!(shop.get("/").await.status, 200);
        shop.replicas[0].kill();
        shop.replicas[1].kill();
        shop.replicas[1].pod.black_hole();
        let ready = async |when: &str| {
            let reply = shop.client.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await;
            assert_eq!(reply.status, 200, "{when}: {}", reply.text());
        };
        let begun = Instant::now();
        while begun.elapsed() < ms(1_500) {
            let (reply, ()) = tokio::join!(timeout(ms(300), shop.get("/")), ready("every replica is dead"));
            // 502 where the last try was on a connection that was just dying.
            assert!(reply.is_err() || matches!(reply.unwrap().status.as_u16(), 502 | 503));
        }
        shop.mesh.dns.fail(Some(harness::dns::Fault::ServFail));
        sleep(ms(1_500)).await;
        ready("DNS fails").await;
        shop.mesh.dns.fail(None);
        shop.mesh.dns.remove(ORDERS);
        harness::eventually("there is no endpoint", Duration::from_secs(5), || async {
            let reply = shop.get("/").await;
            if reply.header("outrigger-error") == "no_endpoints" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
        ready("the service has no endpoint").await;
    });
}

async fn until_used(shop: &Shop) {
    harness::eventually("the second replica has its share", Duration::from_secs(5), || async {
        let n = shop.replicas[1].count().await;
        if n > 50 { Ok(()) } else { Err(format!("{n} requests")) }
    })
    .await;
}

#[test]
fn of_a_replica_that_becomes_a_black_hole_no_caller_learns() {
    harness::run(async {
        let settings = json!({ "timeouts": { "backendRequest": "1s", "connect": "1s" } });
        let shop = Shop::open(Mesh::new(), 3, 60, orders(settings)).await;
        let load = shop.client.load(&["--url", URL, "--duration", "6s", "--connections", "16", "--rate", "300"]);
        until_used(&shop).await;
        shop.replicas[1].pod.black_hole();
        let report = load.report().await;
        println!("{report}");
        assert_none_failed(&report);
        assert!(report["ok"].as_u64().unwrap() > 1_000, "the others carry it: {report}");
        assert!(report["max_ms"].as_f64().unwrap() > 900.0, "it was a hole: {report}");
    });
}

#[test]
fn with_the_defaults_a_black_hole_costs_time_and_no_request() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 3, 60, json!({})).await;
        let load = shop.client.load(&["--url", URL, "--duration", "10s", "--connections", "16", "--rate", "300"]);
        until_used(&shop).await;
        shop.replicas[1].pod.black_hole();
        let report = load.report().await;
        println!("{report}");
        assert_none_failed(&report);
        let (all, lost) = (report["ok"].as_u64().unwrap(), report["replicas"]["orders2"].as_u64().unwrap_or(0));
        assert!(all > 1_000 && lost < all / 5, "the others carry it: {report}");
    });
}
