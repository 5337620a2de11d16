//! The CA's own keys: their kind, their life, where they lie and who can read them.

use std::{
    path::Path,
    process::{Command, Output},
};

use outrigger_identity::{csr::new_key_and_csr, enrol::Credential};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BINARY, Ca, ID, ask, leaf, ok, openssl_accepts, refused, run};

fn with_env(args: &[&str], password: &str) -> Output {
    Command::new(BINARY).args(args).env("OUTRIGGER_CA_PASSWORD", password).output().unwrap()
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn lifetime_of(pem: &str) -> i64 {
    let pem = leaf(pem);
    let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
    let validity = certificate.validity();
    // Backdated by a minute.
    validity.not_after.timestamp() - validity.not_before.timestamp() - 60
}

#[test]
fn each_kind_of_key_makes_chains_that_openssl_accepts() {
    for (kind, oid, parameters) in [
        ("p256", "1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")),
        ("p384", "1.2.840.10045.2.1", Some("1.3.132.0.34")),
        ("ed25519", "1.3.101.112", None),
    ] {
        let ca = Ca::with(&["--alg", kind]);
        let out = ca.path("w");
        ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &out]);
        openssl_accepts(&Path::new(&out).join("cert.pem"), &Path::new(&out).join("bundle.pem"));
        for name in ["root.pem", "intermediate.pem"] {
            let pem = leaf(&read(Path::new(&ca.path("ca")).join(name)));
            let (_, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
            let algorithm = &certificate.public_key().algorithm;
            let curve = algorithm.parameters.as_ref().map(|p| p.as_oid().unwrap().to_id_string());
            assert_eq!((algorithm.algorithm.to_id_string().as_str(), curve.as_deref()), (oid, parameters), "{name}");
        }
    }
    let ca = Ca::new();
    let rsa = refused(&["init", "--dir", &ca.path("x"), "--trust-domain", "mesh.example", "--alg", "rsa2048"]);
    assert!(rsa.contains("ed25519"), "{rsa}");
}

#[test]
fn root_and_intermediate_live_as_long_as_told() {
    let ca = Ca::with(&["--root-ttl", "20d", "--int-ttl", "12h"]);
    let dir = ca.path("ca");
    assert_eq!(lifetime_of(&read(Path::new(&dir).join("root.pem"))), 20 * 86_400);
    assert_eq!(lifetime_of(&read(Path::new(&dir).join("intermediate.pem"))), 12 * 3600);
    // A leaf of a day ends with its issuer.
    let (status, lines, _) = ca.json(&["issue", "--id", ID, "--ttl", "24h", "--out", &ca.path("w")]);
    assert_eq!(status, 0);
    let intermediate = leaf(&read(Path::new(&dir).join("intermediate.pem")));
    let (_, intermediate) = X509Certificate::from_der(&intermediate.contents).unwrap();
    let end = intermediate.validity().not_after.to_datetime();
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(lines[0]["not_after"], json!(end));

    let long = ["--root-ttl", "10d", "--int-ttl", "11d"];
    let elsewhere = ca.path("x");
    let init = ["init", "--dir", &elsewhere, "--trust-domain", "mesh.example"];
    assert!(refused(&[&init[..], &long].concat()).contains("outlive"));
    for bad in ["59s", "36501d", "1y"] {
        refused(&[&init[..], &["--root-ttl", bad]].concat());
    }
    assert!(!Path::new(&elsewhere).exists(), "a refused init leaves nothing");
}

#[test]
fn an_offline_roots_key_is_where_it_was_told_and_nowhere_else() {
    let usb = tempfile::tempdir().unwrap();
    let key = usb.path().join("root-key.pem");
    let key = key.to_str().unwrap();
    let ca = Ca::with(&["--offline-root", key]);
    let dir = ca.path("ca");
    assert!(!Path::new(&dir).join("root-key.pem").exists());
    let secret = read(key);
    assert!(secret.starts_with("-----BEGIN PRIVATE KEY-----"));
    for file in std::fs::read_dir(&dir).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let needle = secret.lines().nth(1).unwrap().as_bytes();
        assert!(!bytes.windows(needle.len()).any(|w| w == needle), "the root's key is in the CA's folder");
    }
    // It is the root's key, and the CA works without it.
    let public = Command::new("openssl").args(["pkey", "-pubout", "-in", key]).output().unwrap();
    let root = format!("{dir}/root.pem");
    let certified = Command::new("openssl").args(["x509", "-pubkey", "-noout", "-in", &root]).output().unwrap();
    assert!(public.status.success() && public.stdout == certified.stdout);
    ok(&["issue", "--dir", &dir, "--id", ID, "--out", &ca.path("w")]);

    // Never over what is there, with --force neither, and never inside.
    let again = ["init", "--dir", &dir, "--trust-domain", "mesh.example", "--force", "--offline-root"];
    let out = run(&[&again[..], &[key]].concat());
    assert_eq!(out.status.code(), Some(3), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(read(key), secret);
    let inside = refused(&[&again[..], &[&format!("{dir}/../ca/offline.pem")]].concat());
    assert!(inside.contains("CA's own folder"), "{inside}");
    assert!(Path::new(&dir).join("intermediate-key.pem").exists(), "a refused init moves nothing");
}

#[tokio::test]
async fn encrypted_keys_are_used_with_their_password_from_a_file_or_the_environment() {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = secrets.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (file("right", "correct horse\n"), file("wrong", "battery staple\n"));
    let ca = Ca::with(&["--password-file", &right]);
    let dir = ca.path("ca");
    for name in ["root-key.pem", "intermediate-key.pem"] {
        let text = read(Path::new(&dir).join(name));
        assert!(text.starts_with("-----BEGIN OUTRIGGER ENCRYPTED PRIVATE KEY-----"), "{name}");
        assert!(text.contains("Argon2id: v=19,m=65536,t=3,p=4"), "{name}");
    }

    let out = ca.path("w");
    let issue = ["issue", "--dir", &dir, "--id", ID, "--out", &out, "--force"];
    let (none, bad, good) = (&[][..], ["--password-file", &wrong], ["--password-file", &right]);
    for (options, status, words) in [(none, 5, "--password-file"), (&bad, 5, "password is wrong"), (&good, 0, "")] {
        let out = run(&[&issue[..], options].concat());
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{options:?}: {err}");
        assert!(err.contains(words) && !err.contains("horse") && !err.contains("staple"), "{err}");
    }
    assert_eq!(with_env(&issue, "correct horse").status.code(), Some(0));
    assert_eq!(with_env(&issue, "nonsense").status.code(), Some(5));
    assert_eq!(with_env(&issue, "").status.code(), Some(5), "an empty password is an error, not no password");
    // The file counts before the environment.
    assert_eq!(with_env(&[&issue[..], &good].concat(), "nonsense").status.code(), Some(0));

    assert_eq!(run(&["serve", "--dir", &dir, "--listen", "127.0.0.1:0"]).status.code(), Some(5));
    let server = ca.serve_with(&good);
    let (_, csr) = new_key_and_csr(None).unwrap();
    // What needs no key asks for no password.
    let token = Credential::Token(ca.token(ID));
    ask(&server, &ca.bundle(), token, csr.as_str()).await.unwrap();
    assert_eq!(ca.json(&["log", "verify"]).0, 0);
}

#[test]
fn whether_keys_are_encrypted_is_said_and_no_password_is_stronger_than_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let init = |name: &str, options: &[&str]| {
        let dir = folder.path().join(name);
        let args = ["init", "--trust-domain", "mesh.example", "--dir", dir.to_str().unwrap()];
        let out = with_env(&[&args[..], options].concat(), "secret");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (String::from_utf8(out.stdout).unwrap(), read(dir.join("intermediate-key.pem")))
    };
    let (said, key) = init("a", &[]);
    assert!(said.contains("are encrypted") && key.contains("ENCRYPTED"), "{said}");
    let (said, key) = init("b", &["--no-password"]);
    assert!(!said.contains("encrypted") && key.starts_with("-----BEGIN PRIVATE KEY-----"), "{said}");
    let c = folder.path().join("c");
    let said = ok(&["init", "--trust-domain", "mesh.example", "--dir", c.to_str().unwrap()]);
    assert!(said.contains("not encrypted") && said.contains("--password-file"), "{said}");
    refused(&["init", "--trust-domain", "x", "--dir", "/nonexistent/x", "--no-password", "--password-file", "x"]);
}

#[tokio::test]
async fn a_ca_that_is_served_is_not_replaced_and_its_memory_is_nobody_elses() {
    let ca = Ca::new();
    let replace = || run(&["init", "--dir", &ca.path("ca"), "--trust-domain", "mesh.example", "--force"]);
    let server = ca.serve();
    let refused = replace();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains("stop it first"), "{said}");
    let proc = format!("/proc/{}", server.child.id());
    let limits = std::fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(5), Some("0"), "{core}");
    drop(server);
    assert!(replace().status.success());
}
