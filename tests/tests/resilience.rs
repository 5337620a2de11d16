//! Replicas that die, fail and move, and DNS that fails: what the caller sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{net::IpAddr, time::Duration};

use outrigger_e2e::harness::{self, Mesh, Pod, Process, Sidecar, dns::Fault, pki::Ca};
use serde_json::{Value, json};

const HTTP: u16 = 8080;
const HOST: &str = "orders.mesh";
const URL: &str = "http://orders.mesh:8080/";

struct Replica {
    sidecar: Sidecar,
    app: Process,
    pod: Pod,
}

impl Replica {
    async fn new(mesh: &Mesh, ca: &Ca, name: &str) -> Self {
        let pod = mesh.pod(name);
        ca.issue(&pod, &[HOST], "1h");
        let app = serve(&pod).await;
        let sidecar = Sidecar::start(mesh, &pod, json!({ "workers": 1 })).await;
        Self { sidecar, app, pod }
    }

    fn kill(&mut self) {
        self.app.kill();
        self.sidecar.kill();
    }

    async fn restart(&mut self, mesh: &Mesh) {
        self.app = serve(&self.pod).await;
        self.sidecar = Sidecar::start(mesh, &self.pod, json!({ "workers": 1 })).await;
    }

    /// Tells the application something past its sidecar.
    async fn tell(&self, path: &str) {
        let reply = self.pod.get((std::net::Ipv4Addr::LOCALHOST, HTTP).into(), "localhost", path).await;
        assert_eq!(reply.status, 200, "{path}");
    }
}

async fn serve(pod: &Pod) -> Process {
    pod.serve(&["--http", &HTTP.to_string()]).await
}

/// A client and replicas of one service, each with a sidecar.
struct World {
    /// Ends when dropped.
    #[allow(dead_code)]
    client_sidecar: Sidecar,
    client: Pod,
    replicas: Vec<Replica>,
    mesh: Mesh,
}

impl World {
    async fn new(mesh: Mesh, replicas: usize, service: Value) -> Self {
        let ca = Ca::init(&mesh);
        let client = mesh.pod("client");
        ca.issue(&client, &[], "1h");
        let mut all = Vec::new();
        for n in 0..replicas {
            all.push(Replica::new(&mesh, &ca, &format!("orders-{n}")).await);
        }
        let ips: Vec<IpAddr> = all.iter().map(|r| r.pod.v4.into()).collect();
        mesh.dns.set(HOST, 1, &ips);
        let mut config = json!({ "name": HOST, "port": HTTP });
        harness::sidecar::merge(&mut config, service);
        let config = json!({ "workers": 1, "services": [config] });
        let client_sidecar = Sidecar::start(&mesh, &client, config).await;
        Self { client_sidecar, client, replicas: all, mesh }
    }

    /// Gives the service these replicas, over IPv4.
    fn publish(&self, ttl: u32, replicas: &[usize]) {
        let ips: Vec<IpAddr> = replicas.iter().map(|n| self.replicas[*n].pod.v4.into()).collect();
        self.mesh.dns.set(HOST, ttl, &ips);
    }

    async fn load(&self, args: &[&str]) -> Value {
        self.client.load(&[&["--url", URL], args].concat()).report().await
    }

    async fn get(&self, path: &str) -> harness::Reply {
        self.client.get(self.replicas[0].pod.at4(HTTP), &format!("{HOST}:{HTTP}"), path).await
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"))
}

#[test]
fn a_replica_killed_and_restarted_costs_no_request_of_ten_thousand() {
    harness::run(async {
        let mut world = World::new(Mesh::alone(), 3, json!({})).await;
        let load = world.client.load(&["--url", URL, "--connections", "16", "--requests", "10000", "--rate", "1500"]);
        let report = load.report();
        let faults = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.replicas[1].kill();
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.replicas[1].restart(&world.mesh).await;
        };
        let (report, ()) = tokio::join!(report, faults);
        assert_eq!((number(&report, "ok"), number(&report, "failed")), (10_000, 0), "{report}");
        for n in 0..3 {
            let answered = report["replicas"][format!("orders-{n}")].as_u64().unwrap_or(0);
            assert!(answered > 300, "orders-{n} answered {answered}: {report}");
        }
    });
}

#[test]
fn a_replica_that_answers_500_is_ejected_and_readmitted() {
    harness::run(async {
        let outliers = json!({ "outlier_detection": { "base_ejection_time": "2s", "interval": "500ms" } });
        let world = World::new(Mesh::alone(), 3, outliers).await;
        world.replicas[2].tell("/control/fail/500").await;
        let learning = world.load(&["--connections", "4", "--requests", "400"]).await;
        let seen = learning["statuses"]["500"].as_u64().unwrap_or(0);
        // Five in a row eject, and those that are under way beside them may end the same way.
        assert!((5..=12).contains(&seen), "{seen} answers 500: {learning}");
        let ejections = world.client.metric("outrigger_ejections_total", &[("service", HOST)]).await;
        assert!(ejections >= 1.0);
        let endpoints = world.client.admin("/endpoints").await.text();
        assert!(endpoints.contains("ejected"), "{endpoints}");
        let after = world.load(&["--connections", "4", "--requests", "300"]).await;
        assert_eq!(number(&after, "failed"), 0, "{after}");
        world.replicas[2].tell("/control/ok").await;
        harness::eventually("orders-2 answers again", Duration::from_secs(10), || async {
            let report = world.load(&["--connections", "4", "--requests", "60"]).await;
            let answered = report["replicas"]["orders-2"].as_u64().unwrap_or(0);
            if answered > 0 { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
    });
}

#[test]
fn with_every_replica_failing_retries_add_no_more_than_their_budget() {
    harness::run(async {
        // Ejection off, so that the budget alone bounds the load.
        let none = json!({
            "outlier_detection": { "consecutive_5xx": 0, "consecutive_gateway_failure": 0, "consecutive_local_origin_failure": 0 },
            "retry": { "attempts": 3, "backoff": "1ms", "budget": 20, "budget_floor": 1 },
        });
        let world = World::new(Mesh::alone(), 2, none).await;
        for replica in &world.replicas {
            replica.tell("/control/fail/503").await;
        }
        let report = world.load(&["--connections", "8", "--requests", "2000"]).await;
        assert_eq!(number(&report, "failed"), 2000, "{report}");
        let retries = world.client.metric("outrigger_retries_total", &[("service", HOST)]).await;
        let denied = world.client.metric("outrigger_retries_denied_total", &[("service", HOST)]).await;
        // A fifth of the requests, and ten seconds' worth of the floor of one a second.
        assert!(retries <= 2000.0 * 0.2 + 20.0, "{retries} retries");
        assert!(retries >= 300.0, "only {retries} retries: the budget was not used");
        assert!(denied >= 1000.0, "only {denied} denied");
    });
}

#[test]
fn dns_that_fails_keeps_the_last_answer_and_one_that_says_nobody_is_believed() {
    harness::run(async {
        let world = World::new(Mesh::new(), 2, json!({})).await;
        for fault in [Fault::ServFail, Fault::Silent] {
            world.mesh.dns.fail(Some(fault));
            // Several times the TTL of one second.
            tokio::time::sleep(Duration::from_secs(4)).await;
            let report =
                world.load(&["--requests", "50", "--connect-to", &world.replicas[0].pod.at4(HTTP).to_string()]).await;
            assert_eq!(number(&report, "failed"), 0, "{fault:?}: {report}");
            world.mesh.dns.fail(None);
        }
        // The set is empty: no guess at the old addresses.
        world.publish(1, &[]);
        harness::eventually("the caller is told that there is nobody", Duration::from_secs(45), || async {
            let reply = world.get("/").await;
            let text = format!("{} {}", reply.status, reply.text());
            if reply.status == 503 && reply.header("outrigger-error") == "no_endpoints" { Ok(()) } else { Err(text) }
        })
        .await;
        world.publish(1, &[0, 1]);
        harness::eventually("the service is back", Duration::from_secs(10), || async {
            let reply = world.get("/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
    });
}

#[test]
fn a_changed_answer_moves_the_load_without_a_failure() {
    harness::run(async {
        let world = World::new(Mesh::alone(), 3, json!({})).await;
        world.publish(1, &[0]);
        harness::eventually("one endpoint is known", Duration::from_secs(5), || async {
            let report = world.load(&["--requests", "40"]).await;
            if report["replicas"]["orders-0"] == 40 { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
        let load = world.client.load(&["--url", URL, "--connections", "8", "--duration", "5s", "--rate", "400"]);
        let change = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.publish(1, &[1, 2]);
        };
        let (report, ()) = tokio::join!(load.report(), change);
        assert_eq!(number(&report, "failed"), 0, "{report}");
        for n in 0..3 {
            assert!(report["replicas"][format!("orders-{n}")].as_u64().unwrap_or(0) > 50, "orders-{n}: {report}");
        }
        let after = world.load(&["--requests", "100"]).await;
        assert_eq!(after["replicas"].get("orders-0"), None, "{after}");
    });
}

#[test]
fn srv_records_decide_ports_weights_and_priorities() {
    harness::run(async {
        let mesh = Mesh::alone();
        let source = json!({ "endpoints": { "srv": "_http._tcp.orders.mesh" } });
        let world = World::new(mesh, 3, source).await;
        let dns = &world.mesh.dns;
        for (n, replica) in world.replicas.iter().enumerate() {
            dns.set(&format!("r{n}.orders.mesh"), 1, &[replica.pod.v4.into()]);
        }
        let srv = |records: &[(u16, u16, u16, &str)]| dns.set_srv("_http._tcp.orders.mesh", 1, records);
        srv(&[(10, 90, HTTP, "r0.orders.mesh"), (10, 10, HTTP, "r1.orders.mesh"), (20, 1, HTTP, "r2.orders.mesh")]);
        harness::eventually("the records are known", Duration::from_secs(10), || async {
            let reply = world.get("/").await;
            if reply.status == 200 { Ok(()) } else { Err(reply.text()) }
        })
        .await;
        let report = world.load(&["--connections", "2", "--requests", "2000"]).await;
        assert_eq!(number(&report, "failed"), 0, "{report}");
        let of = |n: usize| report["replicas"][format!("orders-{n}")].as_u64().unwrap_or(0);
        assert!((1600..=1960).contains(&of(0)), "nine tenths: {report}");
        assert!(of(1) >= 40, "one tenth: {report}");
        assert_eq!(of(2), 0, "the backup has nothing to do: {report}");
        srv(&[(20, 1, HTTP, "r2.orders.mesh")]);
        harness::eventually("the backup alone is left", Duration::from_secs(10), || async {
            let report = world.load(&["--requests", "20"]).await;
            if report["replicas"]["orders-2"] == 20 { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
    });
}
