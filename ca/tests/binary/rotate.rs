//! A new intermediate under the same root: who holds the root notices nothing.

use std::path::Path;

use outrigger_identity::{csr::new_key_and_csr, enrol::Credential};
use serde_json::json;

use super::{Ca, ID, ask, leaf, ok, openssl_accepts, run};

fn issuer(chain_pem: &str) -> String {
    leaf(chain_pem).parse_x509().unwrap().issuer().to_string()
}

#[tokio::test]
async fn the_intermediate_is_replaced_and_certificates_of_the_old_one_renew_under_the_new() {
    let ca = Ca::with(&["--int-ttl", "10d"]);
    let (dir, bundle) = (ca.path("ca"), ca.bundle());
    let server = ca.serve();
    let (key, csr) = new_key_and_csr(None).unwrap();
    let old = ask(&server, &bundle, Credential::Token(ca.token(ID)), csr.as_str()).await.unwrap();

    let (status, _, code) = ca.json(&["rotate", "activate"]);
    assert_eq!((status, code.as_str()), (4, "nothing_prepared"));
    ok(&["rotate", "prepare", "--dir", &dir, "--alg", "p384"]);
    let (status, _, code) = ca.json(&["rotate", "prepare"]);
    assert_eq!((status, code.as_str()), (3, "already_prepared"));
    let (_, lines, _) = ca.json(&["rotate", "status"]);
    assert!(lines[0]["prepared_not_after"].as_str() > lines[0]["intermediate_not_after"].as_str(), "{lines:?}");

    // Prepared is not yet in use: here, nor in the server.
    let sign = |name: &str| {
        let out = ca.path(name);
        ok(&["issue", "--dir", &dir, "--id", ID, "--out", &out]);
        let cert = Path::new(&out).join("cert.pem");
        openssl_accepts(&cert, &Path::new(&out).join("bundle.pem"));
        issuer(&std::fs::read_to_string(cert).unwrap())
    };
    assert_eq!(sign("before"), issuer(&old.chain_pem));
    ok(&["rotate", "activate", "--dir", &dir]);
    let new_issuer = sign("after");
    assert_ne!(new_issuer, issuer(&old.chain_pem));
    let (_, lines, _) = ca.json(&["rotate", "status"]);
    assert_eq!(lines[0]["prepared_not_after"], json!(null));
    assert_eq!(ca.bundle(), bundle, "the root is the same");

    // The server that runs has the very next certificate signed by the new one, and renews what the old one signed.
    let (_, csr) = new_key_and_csr(None).unwrap();
    let current = Credential::Certificate { chain_pem: old.chain_pem.clone(), key_pem: key.as_str().to_owned() };
    let renewed = ask(&server, &bundle, current, csr.as_str()).await.unwrap();
    assert_eq!(issuer(&renewed.chain_pem), new_issuer);
    assert_eq!(ca.json(&["log", "verify"]).0, 0);
    assert_eq!(ca.json(&["check"]).0, 0);

    // Another CA in its place takes every file of this one aside.
    drop(server);
    let init = ok(&["init", "--dir", &dir, "--trust-domain", "mesh.example", "--force"]);
    let left = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|f| f.as_ref().unwrap().file_name().to_str().unwrap().starts_with("intermediate-"));
    assert_eq!(left.count(), 1, "intermediate-key.pem alone: {init}");
}

#[test]
fn a_rotation_never_weakens_and_takes_an_offline_roots_key_from_where_it_is() {
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str| secrets.path().join(name).to_str().unwrap().to_owned();
    let (password, root_key) = (file("password"), file("root-key.pem"));
    std::fs::write(&password, "correct horse").unwrap();
    let ca =
        Ca::with(&["--password-file", &password, "--offline-root", &root_key, "--root-ttl", "20d", "--int-ttl", "10d"]);
    let (dir, with) = (ca.path("ca"), ["--password-file", password.as_str()]);
    let before = std::fs::read(format!("{dir}/ca.json")).unwrap();

    let refuse = |args: &[&str], status: i32| {
        let out = run(&[&["rotate", "prepare", "--dir", &dir][..], args].concat());
        assert_eq!(out.status.code(), Some(status), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read(format!("{dir}/ca.json")).unwrap(), before, "{args:?} changed something");
    };
    // Without the password the new key would lie unencrypted where the old one did not.
    refuse(&["--root-key", &root_key], 5);
    refuse(&with, 4);
    let stranger = Ca::new();
    refuse(&[&with[..], &["--root-key", &format!("{}/root-key.pem", stranger.path("ca"))]].concat(), 1);

    // Longer than the root is not possible: it ends with it.
    let args = [&["rotate", "prepare", "--root-key", &root_key, "--int-ttl", "365d"][..], &with].concat();
    assert_eq!(ca.json(&args).0, 0);
    let root = leaf(&ca.bundle());
    let end = root.parse_x509().unwrap().validity().not_after.to_datetime();
    let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
    assert_eq!(ca.json(&["rotate", "status"]).1[0]["prepared_not_after"], json!(end));
    let key = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path());
    let key = key.into_iter().find(|p| {
        let name = p.file_name().unwrap().to_str().unwrap();
        name.starts_with("intermediate-") && name.ends_with("-key.pem") && name != "intermediate-key.pem"
    });
    let key = key.unwrap();
    assert!(std::fs::read_to_string(&key).unwrap().contains("OUTRIGGER ENCRYPTED"));

    // What cannot be used does not come into use.
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "gone").unwrap();
    assert_eq!(ca.json(&[&["rotate", "activate"][..], &with].concat()).0, 1);
    let issue = ["issue", "--dir", &dir, "--id", ID, "--force", "--out"];
    ok(&[&issue[..], &[&ca.path("w")], &with].concat());
    std::fs::write(&key, good).unwrap();
    assert_eq!(ca.json(&[&["rotate", "activate"][..], &with].concat()).0, 0);
    ok(&[&issue[..], &[&ca.path("w")], &with].concat());
}

#[test]
fn the_next_intermediate_has_the_kind_of_key_of_the_one_before() {
    let ca = Ca::with(&["--alg", "p384"]);
    let dir = ca.path("ca");
    let kind = |name: &str| {
        let out = ca.path(name);
        ok(&["issue", "--dir", &dir, "--id", ID, "--out", &out]);
        let chain = std::fs::read(Path::new(&out).join("cert.pem")).unwrap();
        let intermediate = x509_parser::prelude::Pem::iter_from_buffer(&chain).nth(1).unwrap().unwrap();
        let certificate = intermediate.parse_x509().unwrap();
        (certificate.public_key().raw.len(), certificate.raw_serial().to_vec())
    };
    let before = kind("before");
    ok(&["rotate", "prepare", "--dir", &dir]);
    ok(&["rotate", "activate", "--dir", &dir]);
    let after = kind("after");
    assert_eq!(before.0, after.0, "another kind of key");
    assert_ne!(before.1, after.1);
}
