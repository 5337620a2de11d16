//! The CA dies, at the worst moment and for long: no certificate is unrecorded, and traffic goes on.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outrigger_e2e::harness::{
    self, Mesh, Pod, Sidecar,
    pki::{Ca, id},
    shop::{ORDERS, URL, assert_none_failed},
};
use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolRequest, enrol},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::time::sleep;

/// Hexadecimal without separators and leading zeros, so that two spellings of one number are equal.
fn normal(serial: &str) -> String {
    let digits: String = serial.chars().filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_ascii_lowercase()
}

fn serial_of(chain_pem: &str) -> String {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    normal(&certificate.raw_serial_as_string())
}

fn serials_in_log(ca: &Ca) -> HashSet<String> {
    let log = ca.run(&["log", "list", "--json"]);
    let serial = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        normal(line["serial"].as_str().unwrap())
    };
    log.lines().map(serial).collect()
}

/// Enrols again and again until told to stop, and keeps the serial of every certificate that arrived.
async fn enrol_until(
    address: String,
    bundle: String,
    token: String,
    received: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
) {
    let mut credential = Credential::Token(token);
    while !stop.load(Ordering::Relaxed) {
        let (key, csr) = new_key_and_csr(None).unwrap();
        let request = EnrolRequest {
            address: &address,
            bundle_pem: &bundle,
            credential: credential.clone(),
            csr_pem: csr.as_str(),
            ttl: Some(Duration::from_secs(3_600)),
            cluster_id: None,
        };
        match enrol(request).await {
            Ok(enrolled) => {
                received.lock().unwrap().push(serial_of(&enrolled.chain_pem));
                let key_pem = key.as_str().to_owned();
                credential = Credential::Certificate { chain_pem: enrolled.chain_pem, key_pem };
            }
            // The CA is dead for the moment.
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

#[test]
fn every_certificate_that_arrived_is_in_the_log_however_the_ca_died() {
    const CALLERS: usize = 6;
    const ROUNDS: u64 = 12;
    harness::run(async {
        let mesh = Mesh::alone();
        let ca = Ca::init(&mesh);
        let callers = mesh.pod("callers");
        let bundle = ca.run(&["bundle", "show"]);
        let (received, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut server = ca.serve().await;
        let tasks: Vec<_> = (0..CALLERS)
            .map(|n| {
                let token = ca.run(&["token", "create", "--id", &id(&format!("caller{n}"))]);
                let (address, bundle) = (format!("{}:15012", ca.pod.v4), bundle.clone());
                let (received, stop) = (received.clone(), stop.clone());
                callers.thread(move || harness::run(enrol_until(address, bundle, token, received, stop)))
            })
            .collect();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut before = 0;
        for round in 0..ROUNDS {
            // Some have theirs, and the others are anywhere on their way.
            let enough = before + rng.usize(1..40);
            harness::eventually("certificates arrive", Duration::from_secs(30), || async {
                let arrived = received.lock().unwrap().len();
                if arrived >= enough { Ok(()) } else { Err(format!("round {round}: {arrived} of {enough}")) }
            })
            .await;
            sleep(Duration::from_millis(rng.u64(..10))).await;
            server.kill();
            let (arrived, logged) = (received.lock().unwrap().clone(), serials_in_log(&ca));
            let lost: Vec<_> = arrived.iter().filter(|serial| !logged.contains(*serial)).collect();
            assert!(lost.is_empty(), "round {round}: {lost:?} arrived and are not in the log");
            assert_eq!(arrived.iter().collect::<HashSet<_>>().len(), arrived.len(), "a serial came twice");
            before = arrived.len();
            server = ca.serve().await;
        }
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.join().unwrap();
        }
        println!("{} certificates over {ROUNDS} kills, {} in the log", before, serials_in_log(&ca).len());
    });
}

/// A sidecar's settings to enrol at the CA for these names.
fn enrolment(ca: &Ca, pod: &Pod, names: &[&str]) -> serde_json::Value {
    json!({ "identity": ca.enrolment(pod, names, "1m") })
}

#[test]
fn without_the_ca_traffic_goes_on_and_sidecars_restart() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let mut server = ca.serve().await;
        let (client, orders) = (mesh.pod("client"), mesh.pod("orders"));
        mesh.dns.set(ORDERS, 60, &[orders.v4.into()]);
        let _origin = orders.serve(&["--http", "8080"]).await;
        let (for_client, for_orders) = (enrolment(&ca, &client, &[]), enrolment(&ca, &orders, &[ORDERS]));
        let mut orders_sidecar = Sidecar::start(&mesh, &orders, for_orders.clone()).await;
        let mut client_sidecar = Sidecar::start(&mesh, &client, for_client.clone()).await;
        server.kill();
        let args = ["--url", URL, "--duration", "2s", "--connections", "4", "--rate", "300"];
        assert_none_failed(&client.load(&args).report().await);
        // The certificate on disk serves a new process; the token was used up long ago.
        client_sidecar.kill();
        orders_sidecar.kill();
        let _orders_sidecar = Sidecar::start(&mesh, &orders, for_orders).await;
        let _client_sidecar = Sidecar::start(&mesh, &client, for_client).await;
        assert_none_failed(&client.load(&args).report().await);
        // Past half of the life (33 s at the latest) renewal fails, which is counted and costs nothing.
        let args = ["--url", URL, "--duration", "34s", "--connections", "2", "--rate", "100"];
        assert_none_failed(&client.load(&args).report().await);
        assert!(client.metric("outrigger_identity_renewals_total", &[("outcome", "failed")]).await >= 1.0);
        // Back again: it renews before the end.
        let before = client.admin("/certs").await.json()["certificate"]["serial"].clone();
        let _server = ca.serve().await;
        harness::eventually("the certificate is renewed", Duration::from_secs(20), || async {
            let now = client.admin("/certs").await.json()["certificate"]["serial"].clone();
            if now == before { Err(now.to_string()) } else { Ok(()) }
        })
        .await;
    });
}

/// The day of a 24 h certificate in the minute of the shortest one: an hour is 2.5 s. The CA crashes again and again, at
/// any phase of the certificates' lives, and stays away for one to six of these hours.
#[test]
fn hours_without_the_ca_are_invisible_to_traffic() {
    const LIFE: &str = "1m";
    const HOUR: f64 = 2.5;
    const LONG: Duration = Duration::from_secs(70);
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let mut server = ca.serve().await;
        let (client, orders) = (mesh.pod("client"), mesh.pod("orders"));
        mesh.dns.set(ORDERS, 60, &[orders.v4.into()]);
        let _origin = orders.serve(&["--http", "8080"]).await;
        let identity = |pod: &Pod, names: &[&str]| json!({ "identity": ca.enrolment(pod, names, LIFE) });
        let _orders_sidecar = Sidecar::start(&mesh, &orders, identity(&orders, &[ORDERS])).await;
        let _client_sidecar = Sidecar::start(&mesh, &client, identity(&client, &[])).await;
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let duration = format!("{}s", LONG.as_secs());
        let load = client.load(&["--url", URL, "--duration", &duration, "--connections", "4", "--rate", "200"]);
        let (mut crashes, began) = (0, std::time::Instant::now());
        while began.elapsed() < LONG {
            server.kill();
            crashes += 1;
            sleep(Duration::from_secs_f64(HOUR * (1.0 + 5.0 * rng.f64()))).await;
            server = ca.serve().await;
            // A renewal is tried again within a quarter of what is left, which is 7.5 s at most.
            sleep(Duration::from_secs_f64(HOUR * (2.0 + rng.f64()))).await;
        }
        assert_none_failed(&load.report().await);
        assert!(crashes >= 3, "{crashes} crashes");
        for pod in [&client, &orders] {
            let renewed = pod.metric("outrigger_identity_renewals_total", &[("outcome", "ok")]).await;
            assert!(renewed >= 2.0, "{} got {renewed} certificates: nothing was shown", pod.name);
        }
        let mut failed = 0.0;
        for pod in [&client, &orders] {
            failed += pod.metric("outrigger_identity_renewals_total", &[("outcome", "failed")]).await;
        }
        println!("{crashes} crashes, {failed} renewals failed and were tried again");
    });
}

#[test]
fn a_token_is_good_for_one_enrolment() {
    harness::run(async {
        let mesh = Mesh::new();
        let ca = Ca::init(&mesh);
        let _server = ca.serve().await;
        let (first, second) = (mesh.pod("first"), mesh.pod("second"));
        let mut config = enrolment(&ca, &first, &[]);
        let _first = Sidecar::start(&mesh, &first, config.clone()).await;
        // Stolen and used again elsewhere.
        config["identity"]["dir"] = json!(second.folder("identity"));
        let thief = Sidecar::launch(&mesh, &second, config);
        harness::eventually("the thief is told", Duration::from_secs(10), || async {
            let log = thief.log_text();
            if log.contains("already used") { Ok(()) } else { Err(log) }
        })
        .await;
        let ready = second.get((std::net::Ipv4Addr::LOCALHOST, 15020).into(), "x", "/readyz").await;
        assert_eq!(ready.status, 503, "{}", ready.text());
        assert!(!second.folder("identity").join("cert.pem").exists());
        let log = ca.run(&["log", "list", "--json"]);
        assert_eq!(log.lines().filter(|l| l.contains("/sa/first\"")).count(), 1, "{log}");
    });
}
