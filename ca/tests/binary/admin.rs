//! The admin socket: what it does for root and the CA's user, and whom it turns away.

use std::{
    fs::Permissions,
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    path::Path,
    process::Command,
};

use outrigger_identity::{csr::new_key_and_csr, enrol::Credential};
use serde_json::{Value, json};

use super::{BINARY, Ca, ID, ask, leaf, names, ok, openssl_accepts, refused};

const NOBODY: u32 = 65_534;

impl Ca {
    fn socket(&self) -> String {
        self.path("ca/admin.sock")
    }
}

#[tokio::test]
async fn a_locked_ca_that_runs_issues_signs_and_makes_tokens_without_its_password() {
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "correct horse").unwrap();
    let password = password.path().to_str().unwrap();
    let ca = Ca::with(&["--password-file", password]);
    let server = ca.serve_with(&["--password-file", password]);
    let socket = ca.socket();
    assert_eq!(Path::new(&socket).metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let out = ca.path("orders");
    assert!(refused(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &out]).contains("password"));
    let line =
        ok(&["issue", "--admin-socket", &socket, "--id", ID, "--dns", "orders.mesh", "--ttl", "2h", "--out", &out]);
    assert!(line.starts_with(&format!("issued {ID} into {out}, serial ")), "{line}");
    let (cert, bundle) = (format!("{out}/cert.pem"), format!("{out}/bundle.pem"));
    openssl_accepts(Path::new(&cert), Path::new(&bundle));
    assert_eq!(std::fs::read_to_string(&bundle).unwrap(), ca.bundle());
    assert_eq!(Path::new(&out).join("key.pem").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let pair = Credential::Certificate {
        chain_pem: std::fs::read_to_string(&cert).unwrap(),
        key_pem: std::fs::read_to_string(format!("{out}/key.pem")).unwrap(),
    };
    let (_, csr) = new_key_and_csr(None).unwrap();
    let renewed = ask(&server, &ca.bundle(), pair, csr.as_str()).await.unwrap();
    let pem = leaf(&renewed.chain_pem);
    assert_eq!(names(&pem.parse_x509().unwrap()), [format!("URI({ID})"), "DNSName(orders.mesh)".into()]);

    let file = ca.path("csr.pem");
    std::fs::write(&file, csr.as_str()).unwrap();
    let chain = ok(&["sign", &file, "--admin-socket", &socket, "--id", ID]);
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);

    let token = ok(&["token", "create", "--admin-socket", &socket, "--id", ID, "--ttl", "5m"]);
    let (_, another) = new_key_and_csr(None).unwrap();
    ask(&server, &ca.bundle(), Credential::Token(token.trim().to_owned()), another.as_str()).await.unwrap();

    let by = format!("admin socket, uid {}", nix::unistd::geteuid());
    let log = ca.log();
    let operators: Vec<&Value> = log.iter().filter(|e| e["credential"] == "operator").collect();
    assert_eq!(operators.len(), 2);
    assert!(operators.iter().all(|e| e["credential_ref"] == json!(by)), "{operators:?}");

    let status: Value = serde_json::from_str(&ok(&["status", "--admin-socket", &socket, "--json"])).unwrap();
    assert_eq!((&status["ready"], &status["trust_domain"]), (&json!(true), &json!("mesh.example")));
    assert!(ok(&["status", "--admin-socket", &socket]).ends_with("ready\n"));
}

#[test]
fn what_the_socket_refuses_has_the_same_words_and_status_as_in_the_folder() {
    let ca = Ca::new();
    let _server = ca.serve();
    let socket = ca.socket();
    let (dir, out) = (ca.path("ca"), ca.path("out"));
    let cases: &[(&[&str], i32, &str)] = &[
        (&["token", "create", "--id", "spiffe://other.example/a"], 3, "spiffe://mesh.example/"),
        (&["token", "create", "--id", "nonsense"], 3, "not a SPIFFE id"),
        (&["token", "create", "--id", ID, "--dns", "ca.mesh"], 3, "CA's own server"),
        (&["token", "create", "--id", ID, "--dns", "*.mesh"], 3, "not a DNS name"),
        (&["issue", "--id", ID, "--dns", "ca.mesh", "--out", &out], 3, "CA's own server"),
    ];
    for (args, status, words) in cases {
        for place in [["--dir", &dir], ["--admin-socket", &socket]] {
            let got = super::run(&[args, &place[..]].concat());
            let text = String::from_utf8_lossy(&got.stderr).into_owned();
            assert_eq!(got.status.code(), Some(*status), "{args:?} {place:?}: {text}");
            assert!(text.contains(words), "{args:?} {place:?}: {text}");
        }
    }
    assert!(!Path::new(&out).join("key.pem").exists());
    let both = refused(&["token", "create", "--dir", &dir, "--admin-socket", &socket, "--id", ID]);
    assert!(both.contains("cannot be used with"), "{both}");
    assert!(refused(&["token", "create", "--id", ID]).contains("--dir <DIR>|--admin-socket <PATH>"));
    let useless = refused(&["issue", "--admin-socket", &socket, "--password-file", &out, "--id", ID, "--out", &out]);
    assert!(useless.contains("leave it out"), "{useless}");
}

/// A user who can open the socket, since its mode was changed, is turned away by who he is.
#[test]
fn another_user_is_refused_even_where_the_files_would_let_him() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let ca = Ca::new();
    let server = ca.serve_with(&["--admin-socket", &ca.path("admin.sock")]);
    let open = |path: &str, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    open(ca.dir.path().to_str().unwrap(), 0o755);
    open(&ca.path("admin.sock"), 0o666);
    // The binary may lie where only root can look.
    let binary = ca.path("outrigger-ca");
    std::fs::copy(BINARY, &binary).unwrap();
    let ask = |args: &[&str], uid: u32| {
        Command::new(&binary).args(args).args(["--admin-socket", &ca.path("admin.sock")]).uid(uid).output().unwrap()
    };
    for args in [&["status"][..], &["token", "create", "--id", ID]] {
        let out = ask(args, NOBODY);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(text.contains("the user 65534 may not use this socket"), "{text}");
        assert_eq!((out.status.code(), out.stdout.len()), (Some(3), 0));
    }
    assert!(ask(&["status"], 0).status.success());
    assert!(ca.json(&["token", "list"]).1.is_empty());
    drop(server);
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_living_one_or_a_file_is_not() {
    let ca = Ca::new();
    let socket = ca.socket();
    // As a server that was killed leaves it.
    drop(UnixListener::bind(&socket).unwrap());
    let mut first = ca.serve();
    ok(&["status", "--admin-socket", &socket]);
    let dir = ca.path("ca");
    let serve = ["serve", "--dir", &dir, "--listen", "127.0.0.1:0", "--metrics-listen", "off", "--admin-socket"];
    let taken = refused(&[&serve[..], &[&socket]].concat());
    assert!(taken.contains("another server answers there") && taken.contains("--admin-socket"), "{taken}");
    let file = ca.path("file");
    std::fs::write(&file, "kept").unwrap();
    assert!(refused(&[&serve[..], &[&file]].concat()).contains("no socket"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    let long = ca.path(&"d".repeat(120));
    assert!(refused(&[&serve[..], &[&long]].concat()).contains("--admin-socket"));

    // A second server on the same folder serves without it and leaves the first one's alone.
    drop(ca.serve());
    ok(&["status", "--admin-socket", &socket]);
    let pid = nix::unistd::Pid::from_raw(first.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(first.child.wait().unwrap().success());
    assert!(!Path::new(&socket).exists());
    let gone = super::run(&["status", "--admin-socket", &socket]);
    let text = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(gone.status.code() == Some(4) && text.contains("outrigger-ca serve"), "{text}");
}

#[test]
fn hostile_requests_on_the_socket_are_refused_in_words() {
    let ca = Ca::new();
    let _server = ca.serve();
    let curl = |path: &str, options: &[&str]| {
        let fixed = ["-sS", "--max-time", "10", "--unix-socket", &ca.socket(), "-w", "\n%{http_code}"];
        let out = Command::new("curl").args(fixed).args(options).arg(format!("http://ca{path}")).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let token = json!({ "id": ID, "dns": [], "ttl_seconds": 60 });
    let change = |key: &str, value: Value| {
        let mut wish = token.clone();
        wish[key] = value;
        wish.to_string()
    };
    assert!(curl("/v1/tokens", &["-d", &token.to_string()]).ends_with("200"));
    for (path, body, words) in [
        ("/v1/tokens", change("ttl_seconds", json!(0)), "out of range"),
        ("/v1/tokens", change("ttl_seconds", json!(u64::MAX)), "out of range"),
        ("/v1/tokens", change("ttl_seconds", json!(-1)), "cannot be read"),
        ("/v1/tokens", change("unknown", json!(1)), "unknown field"),
        ("/v1/tokens", "{}".to_owned(), "missing field"),
        ("/v1/tokens", String::new(), "cannot be read"),
        ("/v1/tokens", "[".repeat(10_000), "cannot be read"),
        ("/v1/certificates", json!({ "csr": "x", "id": ID, "dns": [], "ttl_seconds": 60 }).to_string(), "request"),
        ("/v1/revoke", "{}".to_owned(), "unknown_request"),
        ("/v1/status", "{}".to_owned(), "unknown_request"),
    ] {
        let got = curl(path, &["-d", &body]);
        assert!(got.contains(words) && (got.ends_with("400") || got.ends_with("404")), "{path} {body}: {got}");
    }
    let file = ca.path("long");
    std::fs::write(&file, vec![b'a'; 100_000]).unwrap();
    let got = curl("/v1/tokens", &["--data-binary", &format!("@{file}")]);
    assert!(got.contains("cannot be read") && got.ends_with("400"), "{got}");
    ok(&["status", "--admin-socket", &ca.socket()]);
}
