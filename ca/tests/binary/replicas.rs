//! Two replicas that share a database: PostgreSQL itself, real binaries, and what happens when one of them dies.

use std::{
    collections::HashSet,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolError, EnrolRequest, Enrolled, enrol},
};
use tokio::task::JoinSet;

use super::{BINARY, Ca, ID, ask, leaf, names, ok, postgres::Postgres, refused};

/// The blocking client must not run within a runtime.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// A CA and a replica of it.
struct Pair {
    first: Ca,
    second: Ca,
    url: String,
}

impl Pair {
    fn new(server: &Postgres) -> Self {
        let url = apart(|| server.database());
        let first = Ca::with(&["--database", &url]);
        let second = Ca { dir: tempfile::tempdir().unwrap() };
        ok(&replica(&first, &second, &url, "mesh.example").iter().map(String::as_str).collect::<Vec<_>>());
        Self { first, second, url }
    }

    fn database(&self) -> ::postgres::Client {
        ::postgres::Client::connect(&self.url, ::postgres::NoTls).unwrap()
    }

    fn number(&self, sql: &str) -> i64 {
        apart(|| self.database().query_one(sql, &[]).unwrap().get(0))
    }

    fn tokens(&self, count: usize) -> Vec<String> {
        apart(|| self.first.tokens(count))
    }

    /// What must hold whatever happened: the chain proves itself, every certificate that arrived is in the log, a token is
    /// spent exactly when one certificate was issued for it.
    fn is_consistent(&self, arrived: &[Enrolled]) {
        let log = self.second.log();
        let recorded: HashSet<_> = log.iter().map(|entry| entry["serial"].as_str().unwrap()).collect();
        for enrolled in arrived {
            let serial = serial(&enrolled.chain_pem);
            assert!(recorded.contains(serial.as_str()), "serial {serial} is in the world and not in the log");
        }
        let spent = self.number("SELECT count(*) FROM token WHERE used_at IS NOT NULL");
        let by_token: Vec<_> = log.iter().filter(|entry| entry["credential"] == "token").collect();
        let tokens: HashSet<_> = by_token.iter().map(|entry| entry["credential_ref"].as_str().unwrap()).collect();
        assert_eq!(by_token.len(), tokens.len(), "a token was used twice");
        assert_eq!(i64::try_from(tokens.len()).unwrap(), spent, "spent and unspent at once");
        ok(&["log", "verify", "--dir", &self.first.path("ca")]);
    }
}

fn replica(first: &Ca, second: &Ca, url: &str, domain: &str) -> Vec<String> {
    let root = first.path("ca/root.pem");
    let key = first.path("ca/root-key.pem");
    let dir = second.path("ca");
    let args = ["init", "--dir", &dir, "--trust-domain", domain, "--replica", "--root", &root, "--root-key", &key];
    let names = ["--database", url, "--name", "127.0.0.1", "--name", "ca.mesh"];
    args.iter().chain(&names).map(|arg| (*arg).to_owned()).collect()
}

fn serial(chain_pem: &str) -> String {
    let pem = leaf(chain_pem);
    pem.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect()
}

async fn enrolling(address: &str, bundle: &str, token: &str, csr: &str) -> Result<Enrolled, EnrolError> {
    let credential = Credential::Token(token.to_owned());
    enrol(EnrolRequest { address, bundle_pem: bundle, credential, csr_pem: csr, ttl: None, cluster_id: None }).await
}

#[test]
fn a_database_is_one_trust_domains_and_says_what_is_wrong() {
    let server = Postgres::shared();
    let url = server.database();
    let first = Ca::with(&["--database", &url]);
    assert!(!std::path::Path::new(&first.path("ca/ca.db")).exists(), "a second log that nobody asked for");
    let other = Ca { dir: tempfile::tempdir().unwrap() };
    let dir = other.path("ca");
    let init =
        |more: &[&str]| refused(&[&["init", "--dir", &dir, "--trust-domain", "mesh.example"][..], more].concat());
    let taken = init(&["--database", &url]);
    assert!(taken.contains("already belongs") && taken.contains("--replica"), "{taken}");
    let secret = init(&["--database", "postgres://ca:s3cret@127.0.0.1/ca"]);
    assert!(secret.contains("PGPASSWORD") && !secret.contains("s3cret"), "{secret}");
    let absent = init(&["--database", &server.url("nowhere")]);
    assert!(absent.contains("does not exist"), "{absent}");
    let weak = init(&["--database", "postgres://ca@127.0.0.1/ca?sslmode=require"]);
    assert!(weak.contains("verify-full"), "{weak}");
    let refuse = |first: &Ca, url: &str, domain: &str| {
        let args = replica(first, &other, url, domain);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let empty = refuse(&first, &server.database(), "mesh.example");
    assert!(empty.contains("holds no CA yet"), "{empty}");
    let domain = refuse(&first, &url, "other.example");
    assert!(domain.contains("belongs to the trust domain mesh.example"), "{domain}");
    let stranger = refuse(&Ca::new(), &url, "mesh.example");
    assert!(stranger.contains("no root of the trust domain"), "{stranger}");
    assert!(!std::path::Path::new(&dir).join("ca.json").exists(), "something was left behind");

    // The environment names another database than the folder's.
    let elsewhere = Command::new(BINARY)
        .args(["log", "list", "--dir", &first.path("ca")])
        .env("OUTRIGGER_CA_DATABASE", server.database())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("holds no CA yet"), "{elsewhere:?}");
}

#[test]
fn of_ten_that_make_a_ca_in_one_database_at_once_one_does() {
    let url = Postgres::shared().database();
    let homes: Vec<_> = (0..10).map(|_| tempfile::tempdir().unwrap()).collect();
    let children: Vec<_> = homes
        .iter()
        .map(|home| {
            let dir = home.path().join("ca");
            Command::new(BINARY)
                .args(["init", "--trust-domain", "mesh.example", "--database", &url, "--dir"])
                .arg(dir)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let words: Vec<_> = outputs.iter().map(|out| String::from_utf8_lossy(&out.stderr).into_owned()).collect();
    assert_eq!(outputs.iter().filter(|out| out.status.success()).count(), 1, "{words:?}");
    assert_eq!(words.iter().filter(|text| text.contains("already belongs")).count(), 9, "{words:?}");
}

#[tokio::test]
async fn what_one_replica_issued_the_other_renews() {
    let pair = Pair::new(Postgres::shared());
    let (one, two) = (pair.first.serve(), pair.second.serve());
    let bundle = pair.second.bundle();
    assert_eq!(bundle, pair.first.bundle());
    let (key, csr) = new_key_and_csr(None).unwrap();
    let token = Credential::Token(pair.second.token(ID));
    let first = ask(&one, &bundle, token.clone(), csr.as_str()).await.unwrap();
    let again = ask(&two, &bundle, token, new_key_and_csr(None).unwrap().1.as_str()).await.unwrap_err();
    assert!(again.to_string().contains("already used"), "{again}");
    let current = Credential::Certificate { chain_pem: first.chain_pem.clone(), key_pem: key.as_str().to_owned() };
    let (_, csr) = new_key_and_csr(None).unwrap();
    let second = ask(&two, &bundle, current, csr.as_str()).await.unwrap();
    let (old, new) = (leaf(&first.chain_pem), leaf(&second.chain_pem));
    let (old, new) = (old.parse_x509().unwrap(), new.parse_x509().unwrap());
    assert_eq!(names(&old), names(&new));
    assert_ne!(old.issuer(), new.issuer(), "each replica signs with its own intermediate");
    pair.is_consistent(&[first, second]);
    ok(&["check", "--dir", &pair.second.path("ca")]);
}

#[tokio::test]
async fn of_a_hundred_callers_with_one_token_over_two_replicas_one_wins() {
    let pair = Pair::new(Postgres::shared());
    let (one, two) = (pair.first.serve(), pair.second.serve());
    let (bundle, token) = (pair.first.bundle(), pair.first.token(ID));
    let mut callers = JoinSet::new();
    for n in 0..100 {
        let address = if n % 2 == 0 { one.address.clone() } else { two.address.clone() };
        let (bundle, token, csr) = (bundle.clone(), token.clone(), new_key_and_csr(None).unwrap().1);
        callers.spawn(async move { enrolling(&address, &bundle, &token, csr.as_str()).await });
    }
    let (good, bad): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(good.len(), 1);
    for error in bad.into_iter().filter_map(Result::err) {
        let words = error.to_string();
        assert!(words.contains("already used") || words.contains("too many"), "{words}");
    }
    pair.is_consistent(&good.into_iter().map(Result::unwrap).collect::<Vec<_>>());
}

#[tokio::test]
async fn with_one_replica_killed_under_load_everybody_enrols_after_one_retry_at_most() {
    const CALLERS: usize = 150;
    let pair = Pair::new(Postgres::shared());
    let bundle = pair.first.bundle();
    let two = pair.second.serve();
    for kill_after in [1, 10, 40] {
        let mut one = pair.first.serve();
        let done = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for token in pair.tokens(CALLERS) {
            let (first, second) = (one.address.clone(), two.address.clone());
            let (bundle, done) = (bundle.clone(), Arc::clone(&done));
            callers.spawn(async move {
                let (_, csr) = new_key_and_csr(None).unwrap();
                let asked = enrolling(&first, &bundle, &token, csr.as_str()).await;
                done.fetch_add(1, Ordering::Relaxed);
                match asked {
                    Ok(enrolled) => (enrolled, 0),
                    Err(first) => match enrolling(&second, &bundle, &token, csr.as_str()).await {
                        Ok(enrolled) => (enrolled, 1),
                        Err(second) => panic!("failed twice: {first}; then {second}"),
                    },
                }
            });
        }
        while done.load(Ordering::Relaxed) < kill_after {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        one.child.kill().unwrap();
        one.child.wait().unwrap();
        let (arrived, retries): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().unzip();
        let retried: usize = retries.iter().sum();
        assert!(retried > 0, "the kill came too late to prove anything");
        pair.is_consistent(&arrived);
        println!("killed after {kill_after}: {CALLERS} enrolled, {retried} of them at the second attempt");
    }
}

#[tokio::test]
async fn a_restart_of_postgresql_under_load_costs_nobody_the_certificate() {
    const CALLERS: usize = 120;
    let server = Postgres::start(|_| Vec::new());
    let pair = Pair::new(&server);
    let (bundle, tokens) = (pair.first.bundle(), pair.tokens(CALLERS));
    let (one, two) = (pair.first.serve(), pair.second.serve());
    let mut callers = JoinSet::new();
    for (n, token) in tokens.into_iter().enumerate() {
        let addresses = [one.address.clone(), two.address.clone()];
        let bundle = bundle.clone();
        callers.spawn(async move {
            // Spread over the three restarts.
            tokio::time::sleep(Duration::from_millis(25 * n as u64)).await;
            let (_, csr) = new_key_and_csr(None).unwrap();
            match enrolling(&addresses[n % 2], &bundle, &token, csr.as_str()).await {
                Ok(enrolled) => enrolled,
                Err(first) => match enrolling(&addresses[(n + 1) % 2], &bundle, &token, csr.as_str()).await {
                    Ok(enrolled) => enrolled,
                    Err(second) => panic!("failed twice: {first}; then {second}"),
                },
            }
        });
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        apart(|| server.command("restart"));
    }
    let arrived = callers.join_all().await;
    assert_eq!(arrived.len(), CALLERS);
    pair.is_consistent(&arrived);
}

#[test]
fn a_replica_ends_cleanly_when_told_to() {
    let pair = Pair::new(Postgres::shared());
    let mut server = pair.second.serve();
    // A look at the authorities or two.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap().success());
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(pair.number("SELECT count(*) FROM issued WHERE credential = 'server'"), 1);
}
