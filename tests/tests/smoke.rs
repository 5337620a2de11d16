//! The harness itself, without a sidecar: what is wrong here is wrong with the tests, not with the product.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use outrigger_e2e::harness::{self, Mesh, pki::Ca, pod::APP};

#[test]
fn five_pods_reach_each_other() {
    harness::run(async {
        let mesh = Mesh::alone();
        let pods: Vec<_> = (0..5).map(|n| mesh.pod(&format!("pod{n}"))).collect();
        let _origin = pods[0].serve(&["--http", "8080", "--tcp-echo", "9000"]).await;
        mesh.dns.set("orders.mesh", 5, &pods[0].ips());
        for to in [pods[0].at4(8080), pods[0].at6(8080)] {
            let who = pods[4].get(to, "orders.mesh", "/whoami").await.json();
            assert_eq!(who["name"], "pod0");
            let from = who["peer"].as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().ip();
            let own: IpAddr = if to.is_ipv4() { pods[4].v4.into() } else { pods[4].v6.into() };
            assert_eq!(from, own);
        }
        // The system's resolver in a pod asks the mesh's DNS server.
        let report = pods[1].load(&["--url", "http://orders.mesh:8080/", "--requests", "200", "--connections", "4"]);
        let report = report.report().await;
        assert_eq!((report["ok"].as_u64(), report["failed"].as_u64()), (Some(200), Some(0)), "{report}");
        assert_eq!(report["replicas"]["pod0"], 200);
        // A load that must fail says so: the name is unknown.
        let report = pods[1].load(&["--url", "http://nobody.mesh:8080/", "--requests", "2"]).report().await;
        assert_eq!(report["failures"]["connect"], 2, "{report}");
        let output = pods[2].output(APP, "id", &["-u"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), APP.to_string());
    });
}

#[test]
fn a_killed_replica_comes_back_on_its_port() {
    harness::run(async {
        let mesh = Mesh::new();
        let (server, client) = (mesh.pod("server"), mesh.pod("client"));
        for _ in 0..3 {
            let mut origin = server.serve(&["--http", "8080"]).await;
            assert_eq!(client.get(server.at4(8080), "x", "/").await.text(), "server\n");
            origin.kill();
            assert!(client.try_get(server.at4(8080), "x", "/").await.is_err());
        }
    });
}

#[test]
fn the_real_ca_issues_into_a_pod() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let pod = mesh.pod("orders");
        let dir = ca.issue(&pod, &["orders.mesh"], "1h");
        for file in ["cert.pem", "key.pem", "bundle.pem"] {
            assert!(dir.join(file).is_file(), "{file}");
        }
        let _server = ca.serve().await;
    });
}

/// Started by `a_killed_test_leaves_nothing`, in a process of its own.
#[test]
#[ignore = "a part of another test"]
fn part_a_mesh_that_waits_to_be_killed() {
    harness::run(async {
        let mesh = Mesh::new();
        let pod = mesh.pod("doomed");
        let origin = pod.serve(&["--http", "8080"]).await;
        println!("origin {}", origin.pid());
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

#[test]
fn a_killed_test_leaves_nothing() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "smoke::part_a_mesh_that_waits_to_be_killed"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = std::io::BufRead::lines(std::io::BufReader::new(test.stdout.take().unwrap()));
    let origin = out.map_while(Result::ok).find_map(|l| Some(l.split_once("origin ")?.1.trim().to_owned())).unwrap();
    let proc = std::path::PathBuf::from(format!("/proc/{origin}"));
    assert!(proc.exists());
    test.kill().unwrap();
    test.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while proc.exists() {
        assert!(Instant::now() < end, "process {origin} lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}
