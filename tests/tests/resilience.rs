//! What the callers see when replicas and DNS fail.

use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use http::Method;
use outrigger_e2e::harness::{
    self, Mesh, Reply, Shop,
    client::{body, request},
    dns::Fault,
    shop::{ORDERS, URL, assert_none_failed},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// Settings of `orders.mesh` at the client.
fn orders(settings: Value) -> Value {
    let mut service = json!({ "name": ORDERS, "port": 8080 });
    service.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    json!({ "services": [service] })
}

fn share(report: &Value, replica: &str) -> f64 {
    report["replicas"][replica].as_f64().unwrap_or(0.0) / report["ok"].as_f64().unwrap()
}

#[test]
fn ten_thousand_requests_and_a_killed_application_that_comes_back() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::alone(), 3, 5, json!({})).await;
        let load = shop.client.load(&["--url", URL, "--requests", "10000", "--connections", "8", "--rate", "1500"]);
        sleep(Duration::from_millis(1_500)).await;
        shop.replicas[1].origin.kill();
        sleep(Duration::from_millis(1_500)).await;
        shop.replicas[1].origin = shop.replicas[1].pod.serve(&["--http", "8080"]).await;
        let report = load.report().await;
        println!("{report}");
        assert_none_failed(&report);
        assert_eq!(report["ok"], 10_000);
        for replica in ["orders1", "orders3"] {
            assert!(share(&report, replica) > 0.2, "{report}");
        }
    });
}

#[test]
fn ten_thousand_requests_and_a_killed_pod_that_comes_back() {
    harness::run(async {
        let outlier = json!({ "outlier_detection": { "base_ejection_time": "1s", "interval": "200ms" } });
        let mut shop = Shop::open(Mesh::alone(), 3, 5, orders(outlier)).await;
        let load = shop.client.load(&["--url", URL, "--requests", "10000", "--connections", "8", "--rate", "1500"]);
        sleep(Duration::from_millis(1_500)).await;
        shop.replicas[1].kill();
        sleep(Duration::from_millis(1_000)).await;
        let Shop { replicas, mesh, .. } = &mut shop;
        replicas[1].restart(mesh).await;
        // It may have been found again already.
        let before = replicas[1].count().await;
        let report = load.report().await;
        println!("{report}");
        assert_none_failed(&report);
        assert_eq!(report["ok"], 10_000);
        assert!(shop.replicas[1].count().await > before + 100, "the pod that came back is used again: {report}");
    });
}

#[test]
fn a_request_that_was_never_sent_is_tried_again_whatever_its_method() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::new(), 2, 5, json!({})).await;
        // The pod is there and nobody listens in it.
        shop.replicas[0].kill();
        let args = [
            "--url",
            URL,
            "--method",
            "POST",
            "--data",
            "x",
            "--requests",
            "300",
            "--connections",
            "4",
            "--rate",
            "100",
        ];
        let report = shop.client.load(&args).report().await;
        assert_none_failed(&report);
        assert_eq!(share(&report, "orders2"), 1.0, "{report}");
    });
}

#[test]
fn a_request_that_may_have_been_processed_is_not_sent_twice() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::new(), 2, 5, json!({})).await;
        let load = shop.client.load(&[
            "--url",
            "http://orders.mesh:8080/delay/1500",
            "--method",
            "POST",
            "--data",
            "x",
            "--requests",
            "8",
            "--connections",
            "8",
        ]);
        sleep(Duration::from_millis(700)).await;
        let (first, second) = (shop.replicas[0].count().await, shop.replicas[1].count().await);
        assert_eq!(first + second, 8, "all are under way");
        assert!(first > 0, "the first replica has some of them");
        shop.replicas[0].origin.kill();
        let report = load.report().await;
        assert_eq!(shop.replicas[1].count().await, second, "a POST was sent again: {report}");
        assert_eq!((report["ok"].as_u64(), report["failed"].as_u64()), (Some(second), Some(first)), "{report}");
    });
}

#[test]
fn a_replica_that_answers_500_is_ejected_and_comes_back() {
    harness::run(async {
        let outlier = json!({ "outlier_detection": { "base_ejection_time": "2s", "interval": "500ms" } });
        let shop = Shop::open(Mesh::new(), 3, 5, orders(outlier)).await;
        shop.replicas[0].ask("/control/fail/500").await;
        let load = shop.client.load(&["--url", URL, "--duration", "3s", "--connections", "4", "--rate", "400"]);
        harness::eventually("the replica is ejected", Duration::from_secs(3), || async {
            let endpoints = shop.endpoints(ORDERS).await;
            let address = json!(shop.replicas[0].pod.at4(8080));
            let one = endpoints["endpoints"].as_array().and_then(|all| all.iter().find(|e| e["address"] == address));
            let ejected = one.is_some_and(|e| e["ejected_by_workers"].as_array().is_some_and(|w| !w.is_empty()));
            if ejected { Ok(()) } else { Err(endpoints.to_string()) }
        })
        .await;
        let report = load.report().await;
        // Five in a row for each of two workers and each ejection (two fit into the time), and what was under way.
        let failed = report["failed"].as_u64().unwrap();
        assert!((5..=28).contains(&failed), "{report}");
        assert_eq!(report["statuses"]["500"].as_u64(), Some(failed), "nothing but the application's 500: {report}");
        let cause = [("service", ORDERS), ("cause", "consecutive_5xx")];
        assert!(shop.client.metric("outrigger_ejections_total", &cause).await >= 1.0);

        shop.replicas[0].ask("/control/ok").await;
        harness::eventually("the replica gets its share again", Duration::from_secs(10), || async {
            let load = shop.client.load(&["--url", URL, "--requests", "200", "--connections", "4", "--rate", "400"]);
            let report = load.report().await;
            if report["failed"] == 0 && share(&report, "orders1") > 0.1 { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
        assert!(shop.client.metric("outrigger_readmissions_total", &[("service", ORDERS)]).await >= 1.0);
    });
}

#[test]
fn retries_add_at_most_their_budget_to_an_outage() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 2, 5, json!({})).await;
        for replica in &shop.replicas {
            replica.ask("/control/fail/503").await;
        }
        let load = shop.client.load(&["--url", URL, "--requests", "2000", "--connections", "4", "--rate", "500"]);
        let report = load.report().await;
        assert_eq!(report["failed"], 2_000, "{report}");
        let reached = shop.count().await;
        println!("2,000 requests became {reached}");
        // 20 %, and the floor of 3 a second for each of at most two workers over its window of 10 s.
        assert!(reached <= 2_000 + 400 + 60, "{reached} reached the replicas");
        assert!(reached >= 2_000 + 200, "{reached}: retries are made while the budget lasts");
        let denied = [("service", ORDERS), ("limit", "budget")];
        assert!(shop.client.metric("outrigger_retries_denied_total", &denied).await > 0.0);
    });
}

#[test]
fn load_is_spread_over_all_replicas() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 3, 5, json!({})).await;
        let report = shop.client.load(&["--url", URL, "--requests", "6000", "--connections", "8"]).report().await;
        assert_none_failed(&report);
        for replica in ["orders1", "orders2", "orders3"] {
            assert!((0.2..0.5).contains(&share(&report, replica)), "{report}");
        }
    });
}

#[test]
fn beyond_a_circuit_breaker_the_answer_comes_at_once() {
    harness::run(async {
        let breakers = json!({ "circuit_breakers": { "max_requests": 4 } });
        let shop = Shop::open(Mesh::new(), 1, 5, orders(breakers)).await;
        let get = |path| request("orders.mesh:8080", false, Method::GET, path).body(body("")).unwrap();
        let mut callers = Vec::new();
        for _ in 0..20 {
            let (mut sender, cut) = shop.client.http(shop.replicas[0].pod.at4(8080), false).await;
            // What a first request costs is no part of this.
            assert_eq!(Reply::read(sender.send(get("/")).await.unwrap()).await.unwrap().status, 200);
            callers.push((sender, cut));
        }
        let calls: Vec<_> = callers
            .into_iter()
            .map(|(mut sender, cut)| {
                let ask = get("/delay/1500");
                tokio::task::spawn_local(async move {
                    let begun = Instant::now();
                    let reply = Reply::read(sender.send(ask).await.unwrap()).await.unwrap();
                    drop(cut);
                    (reply, begun.elapsed())
                })
            })
            .collect();
        let (mut ok, mut refused) = (0, Vec::new());
        for call in calls {
            let (reply, took) = call.await.unwrap();
            if reply.status == 200 {
                assert!(took >= Duration::from_millis(1_500), "{took:?}");
                ok += 1;
            } else {
                assert_eq!((reply.status.as_u16(), reply.header("outrigger-error")), (503, "circuit_open"));
                assert!(reply.text().contains("circuit_breakers.max_requests of orders.mesh"), "{}", reply.text());
                refused.push(took);
            }
        }
        refused.sort();
        println!("{ok} were served; refusals after {refused:?}");
        // The limit is divided among the workers, so that one of them may have had too few calls to reach its own.
        assert!((1..=4).contains(&ok) && ok + refused.len() == 20, "{ok} were served");
        assert!(refused[refused.len() / 2] < Duration::from_millis(100), "not at once: {refused:?}");
        assert!(refused.iter().all(|took| *took < Duration::from_millis(700)), "waited: {refused:?}");
        assert!(shop.client.metric("outrigger_circuit_open_total", &[("service", ORDERS)]).await >= 16.0);
        assert_eq!(shop.get("/").await.status, 200, "and closes again");
    });
}

#[test]
fn while_dns_is_down_the_last_answer_serves() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 2, 1, orders(json!({}))).await;
        assert_eq!(shop.get("/").await.status, 200);
        for fault in [Fault::ServFail, Fault::Silent] {
            shop.mesh.dns.fail(Some(fault));
            let to = shop.replicas[0].pod.at4(8080).to_string();
            let args = ["--url", URL, "--connect-to", &to, "--duration", "4s", "--connections", "2", "--rate", "200"];
            assert_none_failed(&shop.client.load(&args).report().await);
            let stale = shop.client.metric("outrigger_endpoints_stale", &[("service", ORDERS)]).await;
            assert!(stale >= 1.0, "{fault:?}: {stale}");
            shop.mesh.dns.fail(None);
            harness::eventually("the answer is fresh again", Duration::from_secs(10), || async {
                let stale = shop.client.metric("outrigger_endpoints_stale", &[("service", ORDERS)]).await;
                if stale == 0.0 { Ok(()) } else { Err(format!("{stale}")) }
            })
            .await;
        }
    });
}

#[test]
fn an_empty_answer_empties_the_service_and_a_failure_does_not() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 1, orders(json!({}))).await;
        assert_eq!(shop.get("/").await.status, 200);
        let address = [shop.replicas[0].pod.v4.into()];
        for nodata in [false, true] {
            if nodata {
                shop.mesh.dns.set(ORDERS, 1, &[]);
            } else {
                shop.mesh.dns.remove(ORDERS);
            }
            let refused = harness::eventually("there are no endpoints", Duration::from_secs(5), || async {
                let reply = shop.get("/").await;
                if reply.status == 503 { Ok(reply) } else { Err(reply.text()) }
            })
            .await;
            assert_eq!(refused.header("outrigger-error"), "no_endpoints", "{}", refused.text());
            assert!(refused.text().contains(ORDERS), "it names the service: {}", refused.text());
            let begun = Instant::now();
            assert_eq!(shop.get("/").await.status, 503);
            assert!(begun.elapsed() < Duration::from_secs(1), "a fast answer: {:?}", begun.elapsed());
            shop.mesh.dns.set(ORDERS, 1, &address);
            harness::eventually("the endpoint is back", Duration::from_secs(5), || async {
                let reply = shop.get("/").await;
                if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
            })
            .await;
        }
    });
}

#[test]
fn a_name_that_never_resolved_gets_a_fast_answer_that_says_so() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 1, json!({})).await;
        let to = shop.replicas[0].pod.at4(8080);
        let begun = Instant::now();
        let unknown = shop.client.get(to, "nobody.mesh:8080", "/").await;
        assert_eq!((unknown.status.as_u16(), unknown.header("outrigger-error")), (503, "no_endpoints"));
        assert!(unknown.text().contains("nobody.mesh"), "{}", unknown.text());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        shop.mesh.dns.fail(Some(Fault::ServFail));
        let begun = Instant::now();
        let failing = shop.client.get(to, "failing.mesh:8080", "/").await;
        assert_eq!((failing.status.as_u16(), failing.header("outrigger-error")), (503, "no_endpoints"));
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    });
}

#[test]
fn changed_records_move_the_traffic_and_lose_nothing() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 2, 1, orders(json!({}))).await;
        let (first, second) = (shop.replicas[0].pod.v4.into(), shop.replicas[1].pod.v4.into());
        shop.mesh.dns.set(ORDERS, 1, &[first]);
        harness::eventually("one endpoint", Duration::from_secs(5), || async {
            let one = shop.client.metric("outrigger_endpoints", &[("service", ORDERS)]).await;
            if one == 1.0 { Ok(()) } else { Err(format!("{one}")) }
        })
        .await;
        let to = shop.replicas[0].pod.at4(8080).to_string();
        let slow = "http://orders.mesh:8080/delay/30";
        let load = shop.client.load(&[
            "--url",
            slow,
            "--connect-to",
            &to,
            "--duration",
            "6s",
            "--connections",
            "8",
            "--rate",
            "150",
        ]);
        sleep(Duration::from_secs(2)).await;
        let (before, other) = (shop.replicas[0].count().await, shop.replicas[1].count().await);
        assert!(before > 100, "{before}");
        shop.mesh.dns.set(ORDERS, 1, &[second]);
        // TTL of 1 s, one look-up, and some patience.
        sleep(Duration::from_millis(2_500)).await;
        let (moved, taken) = (shop.replicas[0].count().await, shop.replicas[1].count().await);
        assert!(taken > other + 50, "the new replica is used: {taken}");
        let report = load.report().await;
        assert_none_failed(&report);
        assert_eq!(shop.replicas[0].count().await, moved, "the departed replica is left alone: {report}");
    });
}

#[test]
fn a_connect_failure_asks_dns_again_long_before_the_ttl() {
    harness::run(async {
        let mut shop = Shop::open(Mesh::new(), 2, 250, orders(json!({}))).await;
        let (first, second) = (shop.replicas[0].pod.v4.into(), shop.replicas[1].pod.v4.into());
        // Start over with one record of a long life.
        shop.mesh.dns.set(ORDERS, 250, &[first]);
        let config = orders(json!({}));
        shop.client_sidecar.kill();
        shop.client_sidecar = harness::Sidecar::start(&shop.mesh, &shop.client, config).await;
        assert_eq!(shop.get("/").await.text(), "orders1\n");
        shop.replicas[0].kill();
        shop.mesh.dns.set(ORDERS, 250, &[second]);
        harness::eventually("the new address is found", Duration::from_secs(5), || async {
            let reply = shop.get("/").await;
            if reply.text() == "orders2\n" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}

#[test]
fn ttls_are_kept_the_positive_and_the_negative() {
    harness::run(async {
        let shop = Shop::open(Mesh::new(), 1, 2, orders(json!({}))).await;
        let asked = |name: &str| shop.mesh.dns.asked(name, RecordType::A);
        let to = shop.replicas[0].pod.at4(8080).to_string();
        let load = |url: &str| {
            let args = ["--url", url, "--connect-to", &to, "--duration", "6s", "--connections", "2", "--rate", "50"];
            shop.client.load(&args)
        };
        let (orders_before, nobody_before) = (asked(ORDERS), asked("nobody.mesh"));
        let both = (load(URL), load("http://nobody.mesh:8080/"));
        let (good, bad) = tokio::join!(both.0.report(), both.1.report());
        assert_none_failed(&good);
        assert_eq!(bad["ok"], 0, "{bad}");
        let (good, bad) = (asked(ORDERS) - orders_before, asked("nobody.mesh") - nobody_before);
        // 6 s of a TTL of 2 s and of a negative TTL of 1 s.
        assert!((2..=5).contains(&good), "{good} look-ups at a TTL of 2 s");
        assert!((4..=9).contains(&bad), "{bad} look-ups at a negative TTL of 1 s");
    });
}

#[test]
fn srv_records_give_weight_priority_and_port() {
    harness::run(async {
        let service = orders(json!({ "endpoints": { "srv": "_http._tcp.orders.mesh" } }));
        let mesh = Mesh::new();
        // The third replica is a spare, on another port as well.
        let records = [(1, 30, 8080, "r1.mesh"), (1, 10, 8080, "r2.mesh"), (2, 1, 8085, "r3.mesh")];
        mesh.dns.set_srv("_http._tcp.orders.mesh", 1, &records);
        let mut shop = Shop::open(mesh, 3, 1, service).await;
        for (name, replica) in ["r1.mesh", "r2.mesh", "r3.mesh"].iter().zip(&shop.replicas) {
            shop.mesh.dns.set(name, 1, &[replica.pod.v4.into()]);
        }
        let _spare = shop.replicas[2].pod.serve(&["--http", "8085"]).await;
        harness::eventually("SRV and its targets resolve", Duration::from_secs(5), || async {
            let reply = shop.get("/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
        let to = shop.replicas[0].pod.at4(8080).to_string();
        let args = ["--url", URL, "--connect-to", &to, "--requests", "4000", "--connections", "4"];
        let report = shop.client.load(&args).report().await;
        assert_none_failed(&report);
        let heavy = share(&report, "orders1");
        assert!((0.60..0.90).contains(&heavy), "three quarters are wanted: {report}");
        assert_eq!(share(&report, "orders3"), 0.0, "the spare is spared: {report}");

        shop.replicas[0].kill();
        shop.replicas[1].kill();
        harness::eventually("the spare takes over, at its own port", Duration::from_secs(8), || async {
            let reply = shop.client.get(shop.replicas[2].pod.at4(8080), "orders.mesh:8080", "/").await;
            if reply.text() == "orders3\n" { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}
