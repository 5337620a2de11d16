//! The servers over real connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

use super::*;

struct Server {
    address: SocketAddr,
    state: Arc<AdminState>,
    drains: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

fn start(face: Face) -> Server {
    let drains = Arc::new(AtomicUsize::new(0));
    let counted = drains.clone();
    let state = Arc::new(AdminState {
        config: Arc::new(Config::default()),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        endpoints: EndpointsView::default(),
        certs: Box::new(|| json!({ "state": "missing" })),
        drain: Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    });
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, state.clone(), face, async { drop(stopped.await) });
    Server { address, state, drains, stop, done: tokio::spawn(serving) }
}

impl Server {
    /// Sends `head` (its lines, without the empty one) and gives the whole answer.
    async fn raw(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{}\r\nconnection: close\r\n\r\n", head.trim().replace('\n', "\r\n"));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The status and the body of what `method path` answers.
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answer = self.raw(&format!("{method} {path} HTTP/1.1\nhost: localhost:15000")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn the_operator_sees_everything() {
    let server = start(Face::Operator);
    let (status, index) = server.ask("GET", "/").await;
    assert_eq!(status, 200);
    for path in ["/livez", "/readyz", "/metrics", "/config", "/endpoints", "/certs", "/drain"] {
        assert!(index.contains(path), "{index}");
    }
    assert_eq!(server.ask("GET", "/livez").await, (200, "live\n".to_owned()));
    let (_, metrics) = server.ask("GET", "/metrics").await;
    assert!(metrics.ends_with("# EOF\n"));
    let (_, config) = server.ask("GET", "/config").await;
    let read: Config = serde_saphyr::from_str(&config).unwrap();
    assert_eq!(read.admin.telemetry_address.port(), 15020);
    let (_, certs) = server.ask("GET", "/certs").await;
    assert_eq!(serde_json::from_str::<Value>(&certs).unwrap(), json!({ "state": "missing" }));
    assert_eq!(server.ask("POST", "/drain").await, (202, "draining\n".to_owned()));
    assert_eq!(server.drains.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn readiness_names_each_failing_condition() {
    let server = start(Face::Telemetry);
    let (status, why) = server.ask("GET", "/readyz").await;
    assert_eq!((status, why.lines().count()), (503, 2), "{why}");
    let readiness = &server.state.readiness;
    readiness.set(CERTIFICATE, Err("expired 3 minutes ago".to_owned()));
    readiness.set(LISTENERS, Ok(()));
    assert_eq!(server.ask("GET", "/readyz").await, (503, "certificate: expired 3 minutes ago\n".to_owned()));
    readiness.set(CERTIFICATE, Ok(()));
    assert_eq!(server.ask("GET", "/readyz").await, (200, "ready\n".to_owned()));
    readiness.draining();
    readiness.set(CERTIFICATE, Ok(()));
    let (status, why) = server.ask("GET", "/readyz").await;
    assert_eq!((status, why.starts_with("draining: ")), (503, true), "{why}");
    assert!(readiness.is_draining());
    assert_eq!(server.ask("GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn the_telemetry_address_shows_health_and_metrics_only() {
    let server = start(Face::Telemetry);
    for path in ["/config", "/endpoints", "/certs", "/drain", "/"] {
        assert_eq!(server.ask("GET", path).await.0, 404, "{path}");
    }
    let (status, listed) = server.ask("POST", "/drain").await;
    assert_eq!((status, listed.contains("/metrics"), listed.contains("/certs")), (404, true, false), "{listed}");
    assert_eq!(server.drains.load(Ordering::Relaxed), 0);
    // Probes name the pod's address or any host they like.
    let answer = server.raw("GET /metrics HTTP/1.1\nhost: orders-7f9c.shop:15020").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{answer}");
}

#[tokio::test]
async fn methods_are_kept_apart() {
    let server = start(Face::Operator);
    let head = server.raw("HEAD /config HTTP/1.1\nhost: localhost").await;
    let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n") && length != "0", "{head}");
    let get = server.raw("GET /drain HTTP/1.1\nhost: localhost").await;
    assert!(get.starts_with("HTTP/1.1 405") && get.contains("allow: POST"), "{get}");
    let post = server.raw("POST /config HTTP/1.1\nhost: localhost").await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    assert_eq!(server.ask("DELETE", "/drain").await.0, 405);
    assert_eq!(server.drains.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_web_page_cannot_reach_the_operators_address() {
    let server = start(Face::Operator);
    for host in ["evil.example", "evil.example:15000", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"] {
        let answer = server.raw(&format!("GET /config HTTP/1.1\nhost: {host}")).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(host), "{host}: {answer}");
    }
    for head in [
        "GET http://evil.example/config HTTP/1.1\nhost: localhost",
        "GET / HTTP/1.1\nhost: localhost\nhost: evil.example",
    ] {
        let answer = server.raw(head).await;
        assert!(answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    for host in ["localhost", "LOCALHOST:9000", "127.0.0.1:15000", "[::1]:15000", "127.0.0.7"] {
        let answer = server.raw(&format!("GET /livez HTTP/1.1\nhost: {host}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for extra in ["origin: https://evil.example", "origin: null", "sec-fetch-site: cross-site"] {
        let answer = server.raw(&format!("POST /drain HTTP/1.1\nhost: 127.0.0.1:15000\n{extra}")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{extra}: {answer}");
    }
    assert_eq!(server.drains.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_not_waited_for() {
    let server = start(Face::Operator);
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent.write_all(b"GET / HTTP/1.1\r\nhost: loc").await.unwrap();
    let began = tokio::time::Instant::now();
    let mut rest = Vec::new();
    // Closed by the server; a reset is as good.
    let _ = timeout(Duration::from_secs(60), silent.read_to_end(&mut rest)).await.expect("the server must end it");
    assert!(began.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_crowd_waits_and_does_not_shut_out_a_probe_for_ever() {
    let server = start(Face::Telemetry);
    let mut crowd = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        crowd.push(TcpStream::connect(server.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(timeout(Duration::from_millis(300), server.ask("GET", "/livez")).await.is_err(), "the limit must hold");
    drop(crowd);
    assert_eq!(server.ask("GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn the_server_ends_when_told() {
    let server = start(Face::Operator);
    let _idle = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop.send(()).unwrap();
    timeout(Duration::from_secs(5), server.done).await.expect("an idle connection must not hold it").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    let error = bind(address).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let said = error.to_string();
    assert!(said.contains(&address.to_string()) && said.contains("admin.telemetry_address"), "{said}");
}

#[tokio::test]
async fn the_unspecified_address_is_reached_by_v4() {
    let listener = bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (client, server) = tokio::join!(TcpStream::connect(("127.0.0.1", port)), listener.accept());
    client.unwrap();
    server.unwrap();
}

#[test]
fn endpoints_are_one_entry_an_address() {
    let view = EndpointsView::default();
    let endpoint = |port, ejected_for| EndpointReport {
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        weight: 1,
        priority: 0,
        ejected_for,
        ejections: u32::from(ejected_for.is_some()),
        unhealthy: ejected_for.is_some_and(|d| !d.is_zero()),
        check_failure: ejected_for.map(|_| "status 500".into()),
        requests: 5,
    };
    view.publish(0, "orders.mesh", vec![endpoint(1, None), endpoint(2, Some(Duration::from_secs(30)))]);
    view.publish(1, "orders.mesh", vec![endpoint(1, None), endpoint(2, Some(Duration::ZERO))]);
    let report = view.report();
    assert_eq!(report[0]["workers"], 2);
    assert_eq!(report[0]["endpoints"].as_array().unwrap().len(), 2);
    assert_eq!(report[0]["endpoints"][0]["requests"], 10);
    assert_eq!(report[0]["endpoints"][0]["ejected_by_workers"], json!([]));
    assert_eq!(report[0]["endpoints"][1]["ejected_by_workers"], json!([0]));
    assert_eq!(report[0]["endpoints"][1]["ejections"], 2);
    assert_eq!(report[0]["endpoints"][0]["unhealthy_by_workers"], json!([]));
    assert_eq!(report[0]["endpoints"][0]["health_check_failure"], json!(null));
    assert_eq!(report[0]["endpoints"][1]["unhealthy_by_workers"], json!([0]));
    assert_eq!(report[0]["endpoints"][1]["health_check_failure"], "status 500");
    assert!(report[0]["endpoints"][1]["ejected_for_seconds"].as_f64().unwrap() > 29.0);
    view.withdraw(0, "orders.mesh");
    assert_eq!(view.report()[0]["endpoints"][0]["requests"], 5);
    view.withdraw(1, "orders.mesh");
    assert_eq!(view.report(), json!([]));
}
