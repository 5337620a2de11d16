//! `sign`, `inspect`, `verify` and `check` on what the CA made, and on what somebody broke.

use std::{
    io::Read as _,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use outrigger_identity::csr::new_key_and_csr;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::{BINARY, Ca, ID, ok, openssl_accepts, refused, run};

/// The lines of a command with `--json`, and its exit status.
fn lines(args: &[&str]) -> (i32, Vec<Value>) {
    let out = run(&[args, &["--json"]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    (out.status.code().unwrap(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The rules of `verify` that have this verdict.
fn rules(findings: &[Value], verdict: &str) -> Vec<String> {
    let with = findings.iter().filter(|f| f["verdict"] == verdict);
    with.map(|f| f["rule"].as_str().unwrap().to_owned()).collect()
}

fn issued(ca: &Ca) -> PathBuf {
    let out = ca.path("w");
    ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--dns", "orders.mesh", "--out", &out, "--force"]);
    PathBuf::from(out)
}

#[test]
fn a_request_is_signed_for_the_operators_id_and_nothing_that_it_wishes() {
    let ca = Ca::new();
    let (request, chain) = (ca.path("csr.pem"), ca.path("chain.pem"));
    let mut wishes = CertificateParams::new(vec!["bank.mesh".to_owned()]).unwrap();
    wishes.subject_alt_names.push(rcgen::SanType::URI("spiffe://mesh.example/admin".try_into().unwrap()));
    let key = KeyPair::generate().unwrap();
    std::fs::write(&request, wishes.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
    let dir = ca.path("ca");
    let sign = ["sign", &request, "--dir", &dir, "--id", ID, "--dns", "orders.mesh", "--out", &chain];
    ok(&sign);
    let bundle = Path::new(&dir).join("root.pem");
    openssl_accepts(Path::new(&chain), &bundle);
    let (_, seen) = lines(&["inspect", &chain]);
    assert_eq!(seen[0]["certificate"]["uris"], json!([ID]));
    assert_eq!(seen[0]["certificate"]["dns"], json!(["orders.mesh"]));
    assert_eq!(ca.log()[0]["serial"], seen[0]["certificate"]["serial"], "it is recorded");

    assert!(refused(&sign).contains("--force"));
    // To stdout, from stdin.
    let (_, csr) = new_key_and_csr(None).unwrap();
    let mut child = Command::new(super::BINARY)
        .args(["sign", "-", "--dir", &dir, "--id", ID])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), csr.as_str().as_bytes()).unwrap();
    let mut pem = String::new();
    child.stdout.take().unwrap().read_to_string(&mut pem).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2);

    std::fs::write(&request, csr.as_str().replace("MI", "MJ")).unwrap();
    let out = run(&["sign", &request, "--dir", &dir, "--id", ID]);
    assert_eq!(out.status.code(), Some(3), "a broken request");
    let out = run(&["sign", &ca.path("nowhere"), "--dir", &dir, "--id", ID]);
    assert_eq!(out.status.code(), Some(4), "no request");
    assert_eq!(ca.log().len(), 2, "what was refused is not recorded");
}

#[test]
fn inspect_says_what_openssl_says() {
    let ca = Ca::new();
    let dir = issued(&ca);
    let chain = dir.join("cert.pem");
    let (status, seen) = lines(&["inspect", chain.to_str().unwrap()]);
    assert_eq!((status, seen.len()), (0, 2));
    let (leaf, issuer) = (&seen[0]["certificate"], &seen[1]["certificate"]);
    let openssl = |args: &[&str]| {
        let out = Command::new("openssl").args(["x509", "-noout", "-in"]).arg(&chain).args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap().to_lowercase()
    };
    let serial = openssl(&["-serial"]);
    assert_eq!(leaf["serial"], json!(serial.trim().trim_start_matches("serial=")));
    let fingerprint = openssl(&["-fingerprint", "-sha256"]).replace(':', "");
    assert_eq!(leaf["sha256"], json!(fingerprint.trim().rsplit_once('=').unwrap().1));
    assert_eq!((&leaf["ca"], &issuer["ca"], &issuer["path_length"]), (&json!(false), &json!(true), &json!(0)));
    assert_eq!(leaf["ext_key_usage"], json!(["serverAuth", "clientAuth"]));
    assert_eq!(leaf["authority_key_id"], issuer["subject_key_id"]);
    assert_eq!(leaf["key"], "ECDSA P-256");
    let text = ok(&["inspect", chain.to_str().unwrap()]);
    assert!(text.contains(ID) && text.contains("Digital Signature"), "{text}");
}

#[test]
fn a_hostile_name_cannot_write_to_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cert.pem");
    let mut params = CertificateParams::default();
    let uri = "spiffe://x/\u{1b}[2J\npass        0 path            leads to a root";
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::CommonName, "a\rb");
    std::fs::write(&path, params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    for command in ["inspect", "verify"] {
        let out = run(&[command, path.to_str().unwrap()]);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.contains("\\u{1b}[2J\\npass"), "{command}: {text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{command}");
        assert!(!text.lines().any(|line| line.starts_with("pass        0 path")), "{command}: {text}");
    }
}

#[test]
fn verify_passes_what_the_ca_issues_and_names_the_rule_that_is_broken() {
    let ca = Ca::new();
    let dir = issued(&ca);
    let (cert, bundle) = (dir.join("cert.pem"), dir.join("bundle.pem"));
    let (cert, bundle) = (cert.to_str().unwrap(), bundle.to_str().unwrap());
    let (status, findings) = lines(&["verify", cert, "--bundle", bundle]);
    assert_eq!((status, rules(&findings, "fail"), rules(&findings, "not checked")), (0, vec![], vec![]));
    for rule in ["readable", "one_uri", "spiffe_id", "trust_domain", "key_usage", "issuer_is_ca", "path"] {
        assert!(rules(&findings, "pass").iter().any(|r| r == rule), "no verdict for {rule}");
    }
    let (status, _) = lines(&["verify", cert, "--dir", &ca.path("ca")]);
    assert_eq!(status, 0);

    // Another mesh's roots; another trust domain; no roots at all.
    let stranger = Ca::new();
    let other = issued(&stranger).join("bundle.pem");
    let (status, findings) = lines(&["verify", cert, "--bundle", other.to_str().unwrap()]);
    assert_eq!((status, rules(&findings, "fail")), (6, vec!["path".into()]));
    let (status, findings) = lines(&["verify", cert, "--bundle", bundle, "--trust-domain", "other.example"]);
    assert_eq!((status, rules(&findings, "fail")), (6, vec!["trust_domain".into()]));
    let (status, findings) = lines(&["verify", cert]);
    assert_eq!((status, rules(&findings, "fail")), (6, vec![]));
    assert_eq!(rules(&findings, "not checked"), ["trust_domain", "path"]);
    // The root itself is no workload.
    let (status, findings) = lines(&["verify", bundle, "--bundle", bundle]);
    let fails = rules(&findings, "fail");
    assert_eq!(status, 6);
    assert_eq!(fails, ["spiffe_id", "leaf_not_ca", "key_usage", "no_signing", "path"]);
    assert_eq!(run(&["verify", "/nowhere.pem"]).status.code(), Some(4));
}

#[test]
fn a_server_is_asked_for_its_certificates_and_one_that_stays_silent_is_given_up() {
    let ca = Ca::new();
    let server = ca.serve();
    let (status, seen) = lines(&["inspect", &server.address]);
    assert_eq!((status, seen.len()), (0, 2));
    let names = seen[0]["certificate"]["dns"].as_array().unwrap();
    assert!(names.contains(&json!("ca.mesh")), "{names:?}");
    let (status, findings) = lines(&["verify", &server.address, "--dir", &ca.path("ca")]);
    // The CA's own server is no workload, and says so by having no SPIFFE id and serverAuth alone.
    assert_eq!((status, rules(&findings, "fail")), (6, vec!["one_uri".into(), "ext_key_usage".into(), "path".into()]));
    assert!(rules(&findings, "pass").contains(&"possession".into()));

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let asked = Instant::now();
    let out = run(&["inspect", &address]);
    assert_eq!(out.status.code(), Some(1));
    assert!(asked.elapsed() > Duration::from_secs(9), "it did not wait");
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(words.contains("showed no certificate"), "{words}");
    drop(silent);
    assert_eq!(run(&["inspect", &address]).status.code(), Some(1), "nobody listens");
}

fn levels(ca: &Ca, options: &[&str]) -> (i32, Vec<(String, String)>) {
    let (status, lines, _) = ca.json(&[&["check"], options].concat());
    let level = |l: &Value| (l["check"].as_str().unwrap().to_owned(), l["level"].as_str().unwrap().to_owned());
    (status, lines.iter().map(level).collect())
}

fn not_ok(ca: &Ca, options: &[&str]) -> (i32, Vec<String>) {
    let (status, levels) = levels(ca, options);
    assert_eq!(levels.len(), 12, "every check is made, whatever the others say: {levels:?}");
    let bad = levels.into_iter().filter(|(_, level)| level != "ok");
    (status, bad.map(|(name, level)| format!("{name} {level}")).collect())
}

fn chmod(path: &str, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn check_finds_what_is_wrong_with_a_ca_and_nothing_in_a_good_one() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    // A fresh one has its root's key beside it, and not encrypted: it works, and is said.
    assert_eq!(not_ok(&ca, &[]), (0, vec!["root_key warning".into()]));
    let aside = ca.path("root-key.pem");
    std::fs::rename(format!("{dir}/root-key.pem"), &aside).unwrap();
    assert_eq!(not_ok(&ca, &[]), (0, vec![]));

    let key = format!("{dir}/intermediate-key.pem");
    chmod(&key, 0o640);
    assert_eq!(not_ok(&ca, &[]), (0, vec!["intermediate_key_file warning".into()]));
    chmod(&key, 0o644);
    assert_eq!(not_ok(&ca, &[]), (6, vec!["intermediate_key_file failure".into()]));
    chmod(&key, 0o600);
    chmod(&dir, 0o777);
    assert_eq!(not_ok(&ca, &[]), (6, vec!["folder failure".into()]));
    chmod(&dir, 0o700);

    let right = std::fs::read(&key).unwrap();
    std::fs::copy(&aside, &key).unwrap();
    assert_eq!(not_ok(&ca, &[]), (6, vec!["intermediate_key failure".into()]));
    std::fs::write(&key, right).unwrap();

    issued(&ca);
    let database = ca.sqlite();
    database.execute_batch("DROP TRIGGER issued_is_append_only; UPDATE issued SET dns_names = '[]'").unwrap();
    drop(database);
    assert_eq!(not_ok(&ca, &[]), (6, vec!["log failure".into()]));

    let other = Ca::new();
    std::fs::copy(format!("{}/root.pem", other.path("ca")), format!("{dir}/root.pem")).unwrap();
    assert_eq!(not_ok(&ca, &[]), (6, vec!["certificate_files failure".into(), "log failure".into()]));
}

/// As in `outrigger-ca check | grep -q …` under pipefail.
#[test]
fn a_bad_verdict_is_told_by_the_exit_status_also_when_nobody_reads() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    chmod(&dir, 0o777);
    let other = Ca::new();
    let cert = issued(&other).join("cert.pem");
    let (check, verify) = (["check", "--dir", &dir], ["verify", cert.to_str().unwrap(), "--dir", &dir]);
    for args in [&check[..], &verify] {
        for end in [">&-", "2>&1 | true; exit ${PIPESTATUS[0]}"] {
            let script = format!("\"$0\" \"$@\" {end}");
            let mut shell = Command::new("bash");
            let status = shell.args(["-c", &script, BINARY]).args(args).status().unwrap();
            assert_eq!(status.code(), Some(6), "{args:?} {end}");
        }
    }
}

#[test]
fn check_says_what_it_could_not_look_at() {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str| secrets.path().join(name).to_str().unwrap().to_owned();
    let (password, wrong, offline) = (file("password"), file("wrong"), file("root-key.pem"));
    for (path, text) in [(&password, "secret"), (&wrong, "public")] {
        std::fs::write(path, text).unwrap();
        chmod(path, 0o600);
    }
    let ca = Ca::with(&["--password-file", &password, "--offline-root", &offline]);
    assert_eq!(not_ok(&ca, &["--password-file", &password]), (0, vec![]));
    assert_eq!(not_ok(&ca, &[]), (0, vec!["intermediate_key warning".into()]), "locked");
    assert_eq!(not_ok(&ca, &["--password-file", &wrong]), (6, vec!["intermediate_key failure".into()]));
}
