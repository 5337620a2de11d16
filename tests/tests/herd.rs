//! A thousand sidecars that start at once, real processes against the real CA: all get certificates.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use outrigger_ca::{attest::create_token, authority::Directory, store::Database};
use outrigger_e2e::harness::{
    self, Mesh, Process,
    pki::{Ca, id, secret},
    pod::SIDECAR,
};
use serde_json::json;

const HERD: usize = 1000;
/// Each has four listening ports of its own, below those that the kernel gives to clients.
const FIRST_PORT: usize = 20_000;
/// How long the last one may wait. Measured: see tests/bench/README.md.
const LIMIT: Duration = Duration::from_secs(120);

/// Folder, settings and token of each; gives back the folders.
fn prepare(ca: &Ca, folder: &Path) -> Vec<PathBuf> {
    let directory = Directory::open(&ca.dir).unwrap();
    let mut database = Database::of(&directory).unwrap();
    let bundle = folder.join("ca-bundle.pem");
    std::fs::write(&bundle, ca.run(&["bundle", "show"]) + "\n").unwrap();
    let ttl = Duration::from_secs(3600);
    let one = |n: usize| {
        let own = folder.join(n.to_string());
        std::fs::create_dir(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
        chown(&own, Some(SIDECAR), Some(SIDECAR)).unwrap();
        let subject = directory.subject(&id(&format!("herd{n}")), &[]).unwrap();
        let token = create_token(&mut database, &subject, ttl, time::OffsetDateTime::now_utc()).unwrap();
        secret(&own.join("token"), token.as_str());
        let port = |nth: usize| FIRST_PORT + 4 * n + nth;
        let config = json!({
            "workers": 1,
            "inbound": { "port": port(0) },
            "outbound": { "port": port(1) },
            "admin": {
                "address": format!("127.0.0.1:{}", port(2)), "telemetry_address": format!("127.0.0.1:{}", port(3)),
            },
            "identity": {
                "dir": own.join("identity"),
                "ca": {
                    "address": format!("{}:15012", ca.pod.v4), "bundle": bundle, "token_file": own.join("token"),
                },
            },
        });
        std::fs::create_dir(own.join("identity")).unwrap();
        chown(own.join("identity"), Some(SIDECAR), Some(SIDECAR)).unwrap();
        std::fs::write(own.join("outrigger.yaml"), config.to_string()).unwrap();
        own
    };
    (0..HERD).map(one).collect()
}

#[test]
#[ignore = "a measurement of half a minute and more"]
fn a_thousand_sidecars_that_start_at_once_all_get_certificates() {
    harness::run(async {
        let mesh = Mesh::alone();
        let ca = Ca::init(&mesh);
        let herd = mesh.pod("herd");
        let folders = prepare(&ca, &herd.folder("herd"));
        let _server = ca.serve().await;
        let mut sidecars: Vec<Process> = Vec::new();
        for folder in &folders {
            let config = folder.join("outrigger.yaml");
            let args = ["run", "--config", config.to_str().unwrap()];
            let sidecar = herd.start(SIDECAR, "outrigger-sidecar", &args);
            // To make a process takes longer than to enrol it: each is held at its first steps until all are there.
            sidecar.signal(Signal::SIGSTOP);
            sidecars.push(sidecar);
        }
        let early = folders.iter().filter(|folder| folder.join("identity/cert.pem").exists()).count();
        assert!(early < HERD / 10, "{early} were not held");
        let start = SystemTime::now();
        sidecars.iter().for_each(|sidecar| sidecar.signal(Signal::SIGCONT));
        let has = |folder: &PathBuf| std::fs::metadata(folder.join("identity/cert.pem")).ok()?.modified().ok();
        harness::eventually("every sidecar has its certificate", LIMIT, || async {
            let missing = folders.iter().filter(|folder| has(folder).is_none()).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} of {HERD} have none")) }
        })
        .await;
        let mut waits = Vec::new();
        for (folder, sidecar) in folders.iter().zip(&mut sidecars) {
            sidecar.assert_running();
            waits.push(has(folder).unwrap().duration_since(start).unwrap_or_default());
        }
        waits.sort();
        println!(
            "{HERD} sidecars from their start at once: half had a certificate after {:.2?}, 99 of 100 after {:.2?}, the last \
             after {:.2?}; {:.0} certificates a second; {} KiB each",
            waits[HERD / 2],
            waits[HERD * 99 / 100],
            waits[HERD - 1],
            HERD as f64 / waits[HERD - 1].as_secs_f64(),
            sidecars[HERD / 2].memory_kib("VmRSS"),
        );
        let log = ca.run(&["log", "list", "--json"]);
        assert_eq!(log.lines().filter(|line| line.contains("/sa/herd")).count(), HERD, "each once, and recorded");
    });
}
