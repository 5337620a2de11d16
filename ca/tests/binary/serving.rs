//! What the serving port and the metrics port answer.

use std::{process::Command, time::Duration};

use outrigger_ca::authority::{InitOptions, init};
use outrigger_identity::{
    TrustDomain,
    csr::new_key_and_csr,
    enrol::{Credential, EnrolRequest, enrol},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Ca, ID, ask};

pub(crate) const METRICS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// What curl got: the status and everything that it printed with `-i`.
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.text.lines().take_while(|line| !line.is_empty());
        lines.find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    }
}

/// curl with the CA's bundle as the only root.
pub(crate) fn curl(ca: &Ca, url: &str, options: &[&str]) -> Got {
    try_curl(ca, url, options).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// The same where the server may reset the stream instead of answering.
pub(crate) fn try_curl(ca: &Ca, url: &str, options: &[&str]) -> Result<Got, String> {
    let roots = ca.path("roots.pem");
    std::fs::write(&roots, ca.bundle()).unwrap();
    let fixed = ["-sS", "-i", "--max-time", "10", "--cacert", &roots];
    let out = Command::new("curl").args(fixed).args(options).arg(url).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(Got { status: text.split_whitespace().nth(1).unwrap().parse().unwrap(), text })
}

#[test]
fn the_bundle_is_read_over_https_with_both_versions_of_http() {
    let ca = Ca::new();
    let server = ca.serve();
    let url = format!("https://{}/bundle.pem", server.address);
    for (version, line) in [("--http1.1", "HTTP/1.1 200"), ("--http2", "HTTP/2 200")] {
        let got = curl(&ca, &url, &[version]);
        assert!(got.text.starts_with(line), "{}", got.text);
        assert!(got.text.ends_with(&ca.bundle()), "{}", got.text);
        let etag = got.header("etag").unwrap().to_owned();
        let again = curl(&ca, &url, &[version, "-H", &format!("If-None-Match: {etag}")]);
        assert_eq!((again.status, again.header("etag")), (304, Some(etag.as_str())));
        assert!(!again.text.contains("CERTIFICATE"));
        let head = curl(&ca, &url, &[version, "--head"]);
        assert_eq!((head.status, head.header("content-length")), (200, Some(ca.bundle().len().to_string().as_str())));

        let post = curl(&ca, &url, &[version, "-d", "x"]);
        assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
        let nothing = curl(&ca, &format!("https://{}/ca.db", server.address), &[version, "--path-as-is"]);
        assert_eq!(nothing.status, 404);
        assert!(nothing.text.contains("/bundle.pem"), "{}", nothing.text);
        // A method of gRPC that does not exist is told in gRPC's way: HTTP's status is 200.
        let headers = ["-H", "content-type: application/grpc", "-d", ""];
        let unknown = curl(&ca, &format!("https://{}/x.Y/Z", server.address), &[&[version][..], &headers].concat());
        assert_eq!((unknown.status, unknown.header("grpc-status")), (200, Some("12")), "{}", unknown.text);
    }
}

#[tokio::test]
async fn probes_and_metrics_say_what_has_happened() {
    let ca = Ca::new();
    let server = ca.serve_with(&METRICS);
    let base = format!("http://{}", server.metrics.as_ref().unwrap());
    let get = |path: &str| curl(&ca, &format!("{base}{path}"), &[]);
    assert_eq!((get("/livez").status, get("/readyz").status), (200, 200));
    assert_eq!((get("/").status, curl(&ca, &format!("{base}/readyz"), &["-X", "POST"]).status), (404, 405));

    let (token, _waiting) = (ca.token(ID), ca.token(ID));
    let (_, csr) = new_key_and_csr(None).unwrap();
    ask(&server, &ca.bundle(), Credential::Token(token.clone()), csr.as_str()).await.unwrap();
    ask(&server, &ca.bundle(), Credential::Token(token), csr.as_str()).await.unwrap_err();
    sleep(Duration::from_millis(1100)).await;
    let metrics = get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    for line in [
        r#"outrigger_ca_requests_total{credential="token",outcome="issued"} 1"#,
        r#"outrigger_ca_requests_total{credential="token",outcome="refused"} 1"#,
        r#"outrigger_ca_refusals_total{reason="token_used"} 1"#,
        r#"outrigger_ca_request_duration_seconds_count{outcome="issued"} 1"#,
        "outrigger_ca_join_tokens_waiting 1",
        "outrigger_ca_store_queue 0",
        "outrigger_ca_connections 0",
        "outrigger_ca_ready 1",
    ] {
        assert!(metrics.text.lines().any(|l| l == line), "no {line} in\n{}", metrics.text);
    }
    let left = |role: &str| -> i64 {
        let mut lines = metrics.text.lines().filter(|l| l.starts_with("outrigger_ca_certificate_expiry_seconds{"));
        lines.find(|l| l.contains(role)).unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((86_000..=86_400).contains(&left("\"server\"")), "{}", left("\"server\""));
    assert!(left("\"root\"") > left("\"intermediate\"") && left("\"intermediate\"") > left("\"server\""));
}

#[test]
fn what_cannot_issue_is_not_ready_and_says_why() {
    let ca = Ca::new();
    let server = ca.serve_with(&METRICS);
    let url = format!("http://{}/readyz", server.metrics.as_ref().unwrap());
    assert_eq!(curl(&ca, &url, &[]).status, 200);
    // The disk goes away under it: the tables are no longer what the server knows.
    ca.sqlite().execute_batch("ALTER TABLE token RENAME TO gone").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let got = curl(&ca, &url, &[]);
    assert_eq!(got.status, 503);
    assert!(got.text.contains("store: "), "{}", got.text);
    assert_eq!(curl(&ca, &url.replace("readyz", "livez"), &[]).status, 200, "a restart would not help");
    let metrics = curl(&ca, &url.replace("readyz", "metrics"), &[]);
    assert!(metrics.text.contains("outrigger_ca_ready 0"), "{}", metrics.text);
}

#[test]
fn an_expired_issuer_is_not_ready_and_names_the_commands() {
    let ca = Ca { dir: tempfile::tempdir().unwrap() };
    let mut options = InitOptions::new(TrustDomain::parse("mesh.example").unwrap());
    options.intermediate_ttl = Duration::from_secs(3600);
    // With the root's key at hand the server would make itself another intermediate.
    options.offline_root = Some(ca.dir.path().join("root-key.pem"));
    let born = time::OffsetDateTime::now_utc() - Duration::from_secs(3600 - 3);
    init(&ca.dir.path().join("ca"), options, born).unwrap();
    let server = ca.serve_with(&METRICS);
    let url = format!("http://{}/readyz", server.metrics.as_ref().unwrap());
    assert_eq!(curl(&ca, &url, &[]).status, 200);
    std::thread::sleep(Duration::from_secs(4));
    let got = curl(&ca, &url, &[]);
    assert!(got.status == 503 && got.text.contains("rotate prepare"), "{}", got.text);
    let metrics = curl(&ca, &url.replace("readyz", "metrics"), &[]).text;
    let line = metrics.lines().find(|l| l.contains("expiry_seconds{certificate=\"intermediate\"")).unwrap();
    assert!(line.rsplit(' ').next().unwrap().starts_with('-'), "{line}");
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_is_not_ready_and_finishes_what_is_under_way() {
    let ca = Ca::new();
    let mut server = ca.serve_with(&METRICS);
    let port = server.metrics.clone().unwrap();
    let (address, bundle, token) = (server.address.clone(), ca.bundle(), ca.token(ID));
    // The request has come whole and waits for the database.
    let lock = ca.sqlite();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let caller = tokio::spawn(async move {
        let (_, csr) = new_key_and_csr(None).unwrap();
        let (bundle_pem, csr_pem, credential) = (bundle.as_str(), csr.as_str(), Credential::Token(token));
        enrol(EnrolRequest { address: &address, bundle_pem, credential, csr_pem, ttl: None, cluster_id: None }).await
    });
    sleep(Duration::from_millis(700)).await;
    let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    sleep(Duration::from_millis(100)).await;
    let mut prober = TcpStream::connect(port).await.unwrap();
    prober.write_all(b"GET /readyz HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n").await.unwrap();
    let got = String::from_utf8(until_ended(&mut prober).await.0).unwrap();
    assert!(got.starts_with("HTTP/1.1 503") && got.contains("stopping: "), "{got}");
    assert!(!caller.is_finished());
    lock.execute_batch("ROLLBACK").unwrap();
    caller.await.unwrap().unwrap();
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_taken_metrics_port_is_told_with_its_option() {
    let ca = Ca::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = ca.path("ca");
    let words = super::refused(&["serve", "--dir", &dir, "--listen", "127.0.0.1:0", "--metrics-listen", &address]);
    assert!(words.contains(&address) && words.contains("--metrics-listen"), "{words}");
}

/// Reads until the other side ends the connection; gives back what came and how long it took.
pub(crate) async fn until_ended(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let mut all = Vec::new();
    // An end without close_notify is an end too.
    let _ = timeout(Duration::from_secs(40), stream.read_to_end(&mut all)).await.expect("the connection never ended");
    (all, began.elapsed())
}
