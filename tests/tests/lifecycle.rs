//! Start and stop: nothing is lost, and everything ends.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use http::Request;
use http_body_util::BodyExt as _;
use nix::sys::signal::Signal;
use outrigger_e2e::harness::{
    self, Mesh, Pair, Pod, Shop, Sidecar,
    client::body,
    pair::{ECHO, HTTP},
    pod::SIDECAR,
    shop::{URL, assert_none_failed},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

async fn probe(pod: &Pod, path: &str) -> u16 {
    pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", path).await.status.as_u16()
}

#[test]
fn sigterm_of_a_replicas_sidecar_under_load_loses_nothing() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::alone(), 2, 1, json!({})).await;
        let slow = "http://orders.mesh:8080/delay/20";
        let load = shop.client.load(&["--url", slow, "--duration", "7s", "--connections", "16", "--rate", "500"]);
        sleep(Duration::from_millis(1_500)).await;
        shop.replicas[0].sidecar.signal(Signal::SIGTERM);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(probe(&shop.replicas[0].pod, "/readyz").await, 503, "not ready any more");
        assert_eq!(probe(&shop.replicas[0].pod, "/livez").await, 200, "but alive");
        let status = shop.replicas[0].sidecar.wait(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(0));
        // It comes back, as in a rolling update.
        shop.replicas[0].sidecar = Sidecar::start(&shop.mesh, &shop.replicas[0].pod, json!({})).await;
        let report = load.report().await;
        println!("{report}");
        assert_none_failed(&report);
    });
}

#[test]
fn sigterm_of_the_callers_sidecar_lets_it_finish() {
    harness::run(async {
        let drain = json!({ "drain": { "minimum": "3s", "timeout": "20s" } });
        let mut shop = Shop::open(Mesh::alone(), 2, 5, drain).await;
        // New connections all the while, and the last of them 2 s after the signal.
        let load =
            shop.client.load(&["--url", URL, "--duration", "3s", "--connections", "8", "--rate", "300", "--close"]);
        let to = shop.replicas[0].pod.at4(8080);
        let long = async {
            let reply = shop.client.get(to, "orders.mesh:8080", "/delay/5000").await;
            (reply.status.as_u16(), reply.text())
        };
        let begun = Instant::now();
        let terminate = async {
            sleep(Duration::from_secs(1)).await;
            shop.client_sidecar.signal(Signal::SIGTERM);
        };
        let (long, ()) = tokio::join!(long, terminate);
        assert_eq!(long.0, 200, "a request under way ends well: {}", long.1);
        assert!(begun.elapsed() >= Duration::from_secs(5));
        assert_none_failed(&load.report().await);
        assert_eq!(shop.client_sidecar.wait(Duration::from_secs(10)).await.code(), Some(0));
    });
}

#[test]
fn sigterm_ends_although_connections_never_do() {
    harness::run(async {
        let drain = json!({ "drain": { "minimum": "200ms", "timeout": "2s" } });
        let mut pair = Pair::with(Mesh::new(), drain.clone(), drain).await;
        let family = pair.families()[0];
        let (mut sender, _cut) = pair.client.http(family.at(HTTP), false).await;
        let ask = Request::get("/endless").header("host", family.host()).body(body("")).unwrap();
        let mut endless = sender.send(ask).await.unwrap();
        endless.body_mut().frame().await.unwrap().unwrap();
        let mut opaque = pair.client.connect(family.at(ECHO)).await.unwrap();
        opaque.write_all(b"\x01x").await.unwrap();
        opaque.read_exact(&mut [0; 2]).await.unwrap();
        let begun = Instant::now();
        pair.server_sidecar.signal(Signal::SIGTERM);
        pair.client_sidecar.signal(Signal::SIGTERM);
        for sidecar in [&mut pair.server_sidecar, &mut pair.client_sidecar] {
            assert_eq!(sidecar.wait(Duration::from_secs(10)).await.code(), Some(0));
        }
        let took = begun.elapsed();
        assert!((Duration::from_millis(1_500)..Duration::from_secs(6)).contains(&took), "{took:?}");
        // Cut, and not made to look complete.
        let rest = async {
            loop {
                match endless.body_mut().frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return true,
                    None => return false,
                }
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(5), rest).await.unwrap(), "an endless body ended well");
    });
}

#[test]
fn an_idle_sidecar_ends_soon_after_its_minimum() {
    harness::run(async {
        let mut pair = Pair::new(Mesh::new()).await;
        let family = pair.families()[0];
        assert_eq!(pair.client.get(family.at(HTTP), &family.host(), "/").await.status, 200);
        for sidecar in [&mut pair.client_sidecar, &mut pair.server_sidecar] {
            let begun = Instant::now();
            sidecar.signal(Signal::SIGTERM);
            assert_eq!(sidecar.wait(Duration::from_secs(10)).await.code(), Some(0));
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        }
    });
}

#[test]
fn a_request_under_way_at_a_lone_replica_ends_well() {
    harness::run(async {
        let mut pair = Pair::new(Mesh::new()).await;
        for (family, h2) in [(pair.families()[0], false), (pair.families()[1], true)] {
            let host = family.host();
            let uri = if h2 { format!("http://{host}/delay/2000") } else { "/delay/2000".to_owned() };
            let mut ask = Request::get(uri).body(body("")).unwrap();
            if !h2 {
                ask.headers_mut().insert("host", host.parse().unwrap());
            }
            let call = pair.client.send(family.at(HTTP), h2, ask);
            let terminate = async {
                sleep(Duration::from_millis(500)).await;
                pair.server_sidecar.signal(Signal::SIGTERM);
            };
            let (reply, ()) = tokio::join!(call, terminate);
            assert_eq!(reply.text(), "server\n");
            assert_eq!(pair.server_sidecar.wait(Duration::from_secs(10)).await.code(), Some(0));
            pair.server_sidecar = Sidecar::start(&pair.mesh, &pair.server, json!({})).await;
        }
    });
}

#[test]
fn a_bad_configuration_ends_with_2_and_names_the_place() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("pod");
        let file = pod.folder("config").join("bad.yaml");
        std::fs::write(&file, "inbound:\n  mode: strict\n  prots: []\n").unwrap();
        for command in ["run", "check"] {
            let output = pod.output(SIDECAR, "outrigger-sidecar", &[command, "--config", file.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(2), "{command}");
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            for part in ["bad.yaml", "3", "prots", "ports"] {
                assert!(words.contains(part), "{command}: no {part} in: {words}");
            }
        }
    });
}

#[test]
fn a_sidecar_without_a_certificate_lives_and_is_not_ready() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("pod");
        let mut sidecar = Sidecar::launch(&mesh, &pod, json!({}));
        harness::eventually("it lives", Duration::from_secs(5), || async {
            let reply = pod.try_get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/livez").await?;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
        let ready = pod.get((Ipv4Addr::LOCALHOST, 15020).into(), "localhost", "/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.text().contains("cert"), "it says what is missing: {}", ready.text());
        let other = mesh.pod("other");
        mesh.dns.set("orders.mesh", 5, &[other.v4.into()]);
        let refused = pod.get(other.at4(8080), "orders.mesh:8080", "/").await;
        assert_eq!(refused.header("outrigger-error"), "no_certificate", "{}", refused.text());
        // Its files arrive late.
        let ca = harness::pki::TestCa::new("late root");
        ca.install(&pod, &harness::pki::Leaf::of("pod", &[]));
        sidecar.ready(&pod).await;
    });
}
