//! The real binary: made, served, asked, killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admin;
mod crash;
mod documents;
mod examine;
mod hostile;
mod keys;
mod kills;
mod kubernetes;
mod limits;
mod lint;
mod oidc;
mod operator;
#[allow(dead_code, unreachable_pub)]
#[path = "../support/postgres.rs"]
mod postgres;
mod races;
mod replicas;
mod revoke;
mod roots;
mod rotate;
mod serving;
mod stand_in;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use outrigger_ca::{attest::create_token, authority::Directory, store::Database};
use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolCause, EnrolError, EnrolRequest, Enrolled, enrol},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use x509_parser::prelude::{FromDer, Pem, X509Certificate};

const BINARY: &str = env!("CARGO_BIN_EXE_outrigger-ca");
const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn refused(args: &[&str]) -> String {
    let out = run(args);
    assert!(!out.status.success(), "{args:?} succeeded");
    String::from_utf8(out.stderr).unwrap()
}

struct Ca {
    dir: tempfile::TempDir,
}

struct Server {
    child: Child,
    address: String,
    /// Of the metrics, if they are on.
    metrics: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ca {
    fn new() -> Self {
        Self::with(&[])
    }

    /// Made with further options of "init".
    fn with(options: &[&str]) -> Self {
        let ca = Self { dir: tempfile::tempdir().unwrap() };
        let dir = ca.path("ca");
        let names = ["--name", "127.0.0.1", "--name", "ca.mesh"];
        ok(&[&["init", "--dir", &dir, "--trust-domain", "mesh.example"][..], &names, options].concat());
        ca
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn bundle(&self) -> String {
        ok(&["bundle", "show", "--dir", &self.path("ca")])
    }

    fn token(&self, id: &str) -> String {
        let token = ok(&["token", "create", "--dir", &self.path("ca"), "--id", id, "--dns", "orders.mesh"]);
        assert_eq!(token.lines().count(), 1, "the token stands alone on stdout");
        token.trim().to_owned()
    }

    /// The database's file, for who looks or meddles.
    fn sqlite(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.dir.path().join("ca/ca.db")).unwrap()
    }

    /// Many tokens without a process for each.
    fn tokens(&self, count: usize) -> Vec<String> {
        let directory = Directory::open(&self.dir.path().join("ca")).unwrap();
        let mut database = Database::of(&directory).unwrap();
        let subject = directory.subject(ID, &[]).unwrap();
        let now = time::OffsetDateTime::now_utc();
        let mut one =
            || create_token(&mut database, &subject, Duration::from_secs(600), now).unwrap().as_str().to_owned();
        (0..count).map(|_| one()).collect()
    }

    fn log(&self) -> Vec<serde_json::Value> {
        let text = ok(&["log", "list", "--dir", &self.path("ca"), "--json"]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    fn serve_with(&self, options: &[&str]) -> Server {
        let started = Instant::now();
        let mut child = Command::new(BINARY)
            .args(["serve", "--dir", &self.path("ca"), "--listen", "127.0.0.1:0"])
            .args(if options.contains(&"--metrics-listen") { &[][..] } else { &["--metrics-listen", "off"] })
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "started after {:?}", started.elapsed());
        let address = line.split_whitespace().nth(3).unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        let metrics = line.trim_end().split_once("metrics are on ").map(|(_, address)| address.to_owned());
        Server { child, address, metrics }
    }
}

async fn ask(server: &Server, bundle: &str, credential: Credential, csr: &str) -> Result<Enrolled, EnrolError> {
    let ttl = Some(Duration::from_secs(3600));
    enrol(EnrolRequest {
        address: &server.address,
        bundle_pem: bundle,
        credential,
        csr_pem: csr,
        ttl,
        cluster_id: None,
    })
    .await
}

fn leaf(chain_pem: &str) -> Pem {
    Pem::iter_from_buffer(chain_pem.as_bytes()).next().unwrap().unwrap()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let san = certificate.subject_alternative_name().unwrap().unwrap();
    san.value.general_names.iter().map(ToString::to_string).collect()
}

fn openssl_accepts(chain: &Path, bundle: &Path) {
    for purpose in ["sslserver", "sslclient"] {
        let out = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .args([bundle, Path::new("-untrusted"), chain, chain])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn an_issued_identity_passes_openssl_and_is_not_overwritten() {
    let ca = Ca::new();
    let out = ca.path("orders");
    let issue = ["issue", "--dir", &ca.path("ca"), "--id", ID, "--dns", "orders.mesh", "--ttl", "2h", "--out", &out];
    ok(&issue);
    let file = |name: &str| PathBuf::from(&out).join(name);
    openssl_accepts(&file("cert.pem"), &file("bundle.pem"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(file("key.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read(file("key.pem")).unwrap();
    assert!(refused(&issue).contains("--force"));
    assert_eq!(std::fs::read(file("key.pem")).unwrap(), key);
    ok(&[&issue[..], &["--force"]].concat());
    assert_ne!(std::fs::read(file("key.pem")).unwrap(), key);

    let log = ca.log();
    assert_eq!(log.len(), 2);
    let pem = leaf(&std::fs::read_to_string(file("cert.pem")).unwrap());
    let certificate = pem.parse_x509().unwrap();
    let serial: String = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(log[1]["serial"], serial);
    assert_eq!(log[1]["id"], ID);
    assert_eq!(log[1]["dns"], serde_json::json!(["orders.mesh"]));
}

#[test]
fn mistakes_on_the_command_line_are_named_with_their_remedy() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    let init = refused(&["init", "--dir", &dir, "--trust-domain", "mesh.example"]);
    assert!(init.contains("already holds a CA") && init.contains("--force"), "{init}");
    let other = refused(&["token", "create", "--dir", &dir, "--id", "spiffe://other.example/a"]);
    assert!(other.contains("spiffe://mesh.example/"), "{other}");
    let own = refused(&["token", "create", "--dir", &dir, "--id", ID, "--dns", "ca.mesh"]);
    assert!(own.contains("CA's own server"), "{own}");
    let ttl = refused(&["issue", "--dir", &dir, "--id", ID, "--ttl", "31d", "--out", &ca.path("x")]);
    assert!(ttl.contains("30d"), "{ttl}");
    let missing = refused(&["bundle", "show", "--dir", &ca.path("nowhere")]);
    assert!(missing.contains("outrigger-ca init"), "{missing}");
}

#[tokio::test]
async fn a_token_enrols_once_and_the_certificate_renews_itself() {
    let ca = Ca::new();
    let server = ca.serve();
    let (bundle, token) = (ca.bundle(), ca.token(ID));

    let (key, csr) = new_key_and_csr(None).unwrap();
    let first = ask(&server, &bundle, Credential::Token(token.clone()), csr.as_str()).await.unwrap();
    assert_eq!(first.roots_pem, bundle);
    let (chain, roots) = (ca.dir.path().join("chain.pem"), ca.dir.path().join("roots.pem"));
    std::fs::write(&chain, &first.chain_pem).unwrap();
    std::fs::write(&roots, &first.roots_pem).unwrap();
    openssl_accepts(&chain, &roots);

    let again = ask(&server, &bundle, Credential::Token(token), csr.as_str()).await.unwrap_err();
    assert!(again.is_permanent() && again.to_string().contains("already used"), "{again}");
    let wrong = ask(&server, &bundle, Credential::Token("ojt_1234".into()), csr.as_str()).await.unwrap_err();
    assert!(wrong.is_permanent() && wrong.to_string().contains("unknown to this CA"), "{wrong}");

    let current = Credential::Certificate { chain_pem: first.chain_pem.clone(), key_pem: key.as_str().to_owned() };
    let (_, csr) = new_key_and_csr(None).unwrap();
    let second = ask(&server, &bundle, current, csr.as_str()).await.unwrap();
    let (old, new) = (leaf(&first.chain_pem), leaf(&second.chain_pem));
    let (old, new) = (old.parse_x509().unwrap(), new.parse_x509().unwrap());
    assert_ne!(old.raw_serial(), new.raw_serial());
    assert_eq!(names(&old), names(&new));
    assert_eq!(names(&new), [format!("URI({ID})"), "DNSName(orders.mesh)".into()]);

    let mut kinds: Vec<_> = ca.log().iter().map(|e| e["credential"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    assert_eq!(kinds, ["certificate", "server", "token"]);
}

#[tokio::test]
async fn wishes_in_a_request_are_not_granted() {
    let ca = Ca::new();
    let server = ca.serve();
    let mut wishes = CertificateParams::new(vec!["bank.mesh".to_owned()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wishes.subject_alt_names.push(SanType::URI("spiffe://mesh.example/admin".try_into().unwrap()));
    let csr = wishes.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let got = ask(&server, &ca.bundle(), Credential::Token(ca.token(ID)), &csr).await.unwrap();
    let pem = leaf(&got.chain_pem);
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.key_usage().unwrap().unwrap().value.flags, 1);
    assert_eq!(names(&certificate), [format!("URI({ID})"), "DNSName(orders.mesh)".into()]);
    assert!(certificate.subject().iter().next().is_none());
}

#[tokio::test]
async fn both_sides_refuse_strangers_with_the_right_words() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = ca.serve();
    let (key, csr) = new_key_and_csr(None).unwrap();

    // Before the CA is known the token must not leave.
    let token = ca.token(ID);
    let error = ask(&server, &other.bundle(), Credential::Token(token.clone()), csr.as_str()).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::UnknownRoot), "{error}");
    assert!(error.is_permanent() && error.to_string().contains("bundle show"), "{error}");

    let address = server.address.replace("127.0.0.1", "localhost");
    let (bundle, credential) = (ca.bundle(), Credential::Token(token.clone()));
    let request = EnrolRequest {
        address: &address,
        bundle_pem: &bundle,
        credential,
        csr_pem: csr.as_str(),
        ttl: None,
        cluster_id: None,
    };
    let error = enrol(request).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::WrongName { .. }), "{error}");

    // The token was spent by neither attempt.
    let mine = ask(&server, &bundle, Credential::Token(token), csr.as_str()).await.unwrap();

    // A certificate of another CA is refused in the handshake; ours at another CA as well.
    let out = other.path("a");
    ok(&["issue", "--dir", &other.path("ca"), "--id", ID, "--out", &out]);
    let read = |name: &str| std::fs::read_to_string(Path::new(&out).join(name)).unwrap();
    let theirs = Credential::Certificate { chain_pem: read("cert.pem"), key_pem: read("key.pem") };
    let error = ask(&server, &bundle, theirs, csr.as_str()).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::CertificateRefused(_)) && error.is_permanent(), "{error}");

    let there = other.serve();
    let mine = Credential::Certificate { chain_pem: mine.chain_pem, key_pem: key.as_str().to_owned() };
    let error = ask(&there, &other.bundle(), mine, csr.as_str()).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::CertificateRefused(_)), "{error}");
    assert_eq!(other.log().iter().filter(|e| e["credential"] == "certificate").count(), 0);

    let gone = there.address.clone();
    drop(there);
    let bundle = other.bundle();
    let credential = Credential::Token("ojt_1".into());
    let request = EnrolRequest {
        address: &gone,
        bundle_pem: &bundle,
        credential,
        csr_pem: csr.as_str(),
        ttl: None,
        cluster_id: None,
    };
    let error = enrol(request).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::Connect(_)) && !error.is_permanent(), "{error}");
}

#[test]
fn sigterm_ends_the_server_cleanly() {
    let ca = Ca::new();
    let mut server = ca.serve();
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let asked = Instant::now();
    let status = server.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(5), "took {:?}", asked.elapsed());
}
