//! What was taken back: openssl, `verify` and the server all refuse it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolCause},
};
use serde_json::json;
use x509_parser::prelude::{CertificateRevocationList, FromDer, Pem};

use super::{Ca, ID, ask, leaf, ok, roots::eventually, serving::curl};

const OTHER: &str = "spiffe://mesh.example/ns/shop/sa/cart";

struct Issued {
    dir: PathBuf,
    serial: String,
}

impl Issued {
    fn credential(&self) -> Credential {
        let read = |name: &str| std::fs::read_to_string(self.dir.join(name)).unwrap();
        Credential::Certificate { chain_pem: read("cert.pem"), key_pem: read("key.pem") }
    }
}

impl Ca {
    fn issued(&self, name: &str, id: &str) -> Issued {
        let dir = self.path(name);
        let (status, lines, code) = self.json(&["issue", "--id", id, "--out", &dir]);
        assert_eq!(status, 0, "{code}");
        Issued { dir: dir.into(), serial: lines[0]["serial"].as_str().unwrap().to_owned() }
    }

    /// The lists as the server publishes them, in a file with the roots, and each one's issuer, number and count.
    fn lists(&self, server: &super::Server) -> (String, Vec<(String, u64, usize)>) {
        let got = curl(self, &format!("https://{}/crl.pem", server.address), &[]);
        assert_eq!(got.status, 200, "{}", got.text);
        let pem = got.text[got.text.find("-----BEGIN").unwrap()..].to_owned();
        let lists = Pem::iter_from_buffer(pem.as_bytes()).map(|pem| {
            let pem = pem.unwrap();
            assert_eq!(pem.label, "X509 CRL");
            let (rest, crl) = CertificateRevocationList::from_der(&pem.contents).unwrap();
            assert!(rest.is_empty() && crl.next_update().is_some());
            let number = crl.crl_number().unwrap().to_u64_digits()[0];
            (crl.issuer().to_string(), number, crl.iter_revoked_certificates().count())
        });
        let lists = lists.collect();
        let file = self.path("roots-and-lists.pem");
        std::fs::write(&file, self.bundle() + &pem).unwrap();
        (file, lists)
    }
}

/// What openssl says of a chain when every certificate of it must not be on a list.
fn openssl(file: &str, issued: &Issued) -> (bool, String) {
    let chain = issued.dir.join("cert.pem");
    let out = Command::new("openssl")
        .args(["verify", "-x509_strict", "-crl_check_all", "-CAfile", file, "-untrusted"])
        .args([&chain, &chain])
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[tokio::test]
async fn a_revoked_certificate_is_on_a_list_that_openssl_accepts_and_renews_nothing() {
    let ca = Ca::new();
    let server = ca.serve();
    let (good, bad) = (ca.issued("good", ID), ca.issued("bad", ID));
    let (file, before) = ca.lists(&server);
    assert_eq!(before.iter().map(|list| list.2).sum::<usize>(), 0, "empty lists of root and intermediate");
    assert_eq!(before.len(), 2);
    assert!(openssl(&file, &good).0 && openssl(&file, &bad).0);

    let (status, revoked, _) = ca.json(&["revoke", &bad.serial, "--reason", "keyCompromise"]);
    assert_eq!((status, &revoked[0]["revoked"]), (0, &json!([bad.serial])));
    eventually("the server publishes the new list", || ca.lists(&server).1.iter().any(|list| list.2 == 1));
    let (file, after) = ca.lists(&server);
    for ((_, old, _), (_, new, count)) in before.iter().zip(&after) {
        assert!(new >= old && (*count == 0 || new > old), "cRLNumber grows: {before:?} {after:?}");
    }
    let (accepted, said) = openssl(&file, &bad);
    assert!(!accepted && said.contains("certificate revoked"), "{said}");
    assert!(openssl(&file, &good).0);
    // Each list is its issuer's, and says why.
    let lists = std::fs::read_to_string(&file).unwrap();
    let mut texts = Vec::new();
    for block in lists.split_inclusive("-----END X509 CRL-----\n").filter(|it| it.contains("BEGIN X509 CRL")) {
        let crl = ca.path("one.crl");
        std::fs::write(&crl, &block[block.find("-----BEGIN X509").unwrap()..]).unwrap();
        let signed = ["root.pem", "intermediate.pem"].iter().any(|issuer| {
            let issuer = Path::new(&ca.path("ca")).join(issuer);
            let read = ["crl", "-in", &crl, "-noout", "-text", "-CAfile"];
            let out = Command::new("openssl").args(read).arg(issuer).output().unwrap();
            texts.push(String::from_utf8_lossy(&out.stdout).into_owned());
            String::from_utf8_lossy(&out.stderr).contains("verify OK")
        });
        assert!(signed, "{block}");
    }
    assert!(texts.iter().any(|text| text.contains("Key Compromise")), "{texts:?}");

    // Our own reader agrees.
    let crl = ca.path("lists.pem");
    std::fs::write(&crl, &lists[lists.find("-----BEGIN X509").unwrap()..]).unwrap();
    let verify = |issued: &Issued| {
        let chain = issued.dir.join("cert.pem");
        let (status, lines, _) = ca.json(&["verify", chain.to_str().unwrap(), "--crl", &crl]);
        (status, lines.iter().find(|line| line["rule"] == "path").unwrap()["detail"].as_str().unwrap().to_owned())
    };
    assert_eq!(verify(&good).0, 0);
    let (status, detail) = verify(&bad);
    assert!(status == 6 && detail.contains("revoked"), "{detail}");

    let (bundle, (_, csr)) = (ca.bundle(), new_key_and_csr(None).unwrap());
    ask(&server, &bundle, good.credential(), csr.as_str()).await.unwrap();
    let error = ask(&server, &bundle, bad.credential(), csr.as_str()).await.unwrap_err();
    assert!(matches!(error.cause, EnrolCause::CertificateRefused(_)) && error.is_permanent(), "{error}");

    let (status, lines, _) = ca.json(&["log", "verify"]);
    assert_eq!((status, &lines[0]["revocations"]), (0, &json!(1)));
    for (args, status, code) in [
        (&["revoke", "00ff00ff00ff"][..], 4, "no_certificate"),
        (&["revoke", &good.serial, "--reason", "boredom"], 2, "usage"),
        (&["revoke"], 2, "usage"),
        (&["revoke", &good.serial, "--block"], 2, "usage"),
    ] {
        let got = ca.json(args);
        assert_eq!((got.0, got.2.as_str()), (status, code), "{args:?}");
    }
    let root = leaf(&bundle);
    let serial: String = root.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(ca.json(&["revoke", &serial]).2, "is_authority");
    let (status, again, _) = ca.json(&["revoke", &bad.serial]);
    assert_eq!((status, &again[0]["before"]), (0, &json!([bad.serial])));
}

#[tokio::test]
async fn an_id_is_blocked_with_its_tokens_until_it_is_unblocked_and_a_token_is_taken_back_with_its_renewals() {
    let ca = Ca::new();
    let server = ca.serve();
    let bundle = ca.bundle();
    let (waiting, other) = (ca.token(ID), ca.token(OTHER));
    let mine = ca.issued("mine", ID);
    let (status, lines, _) = ca.json(&["revoke", "--id", ID, "--block"]);
    assert_eq!((status, &lines[0]["revoked"], &lines[0]["tokens"]), (0, &json!([mine.serial]), &json!(1)));
    let (_, csr) = new_key_and_csr(None).unwrap();
    let error = ask(&server, &bundle, Credential::Token(waiting), csr.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    // A new token is worth nothing either, and is not spent.
    let token = ca.token(ID);
    let error = ask(&server, &bundle, Credential::Token(token.clone()), csr.as_str()).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("blocked"), "{error}");
    assert_eq!(ca.json(&["issue", "--id", ID, "--out", &ca.path("x")]).0, 3);
    assert_eq!(ca.json(&["revoke", "--id", ID, "--unblock"]).0, 0);
    assert_eq!(ca.json(&["revoke", "--id", ID, "--unblock"]).2, "not_blocked");
    ask(&server, &bundle, Credential::Token(token), csr.as_str()).await.unwrap();

    // A token that leaked: its certificate, and what that was renewed into.
    let (key, csr) = new_key_and_csr(None).unwrap();
    let first = ask(&server, &bundle, Credential::Token(other), csr.as_str()).await.unwrap();
    let current = Credential::Certificate { chain_pem: first.chain_pem, key_pem: key.as_str().to_owned() };
    let (key, csr) = new_key_and_csr(None).unwrap();
    let second = ask(&server, &bundle, current, csr.as_str()).await.unwrap();
    let (_, tokens, _) = ca.json(&["token", "list"]);
    let used = tokens.iter().find(|it| it["id"] == OTHER).unwrap()["ref"].as_str().unwrap().to_owned();
    let (status, lines, _) = ca.json(&["revoke", "--token", &used[..16]]);
    assert_eq!((status, lines[0]["revoked"].as_array().unwrap().len()), (0, 2));
    let current = Credential::Certificate { chain_pem: second.chain_pem, key_pem: key.as_str().to_owned() };
    let error = ask(&server, &bundle, current, csr.as_str()).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("revoked"), "{error}");
    assert_eq!(ca.json(&["revoke", "--token", "0123456789"]).2, "no_token");
}

#[test]
fn a_revoked_intermediate_is_on_its_roots_list_which_needs_the_roots_key() {
    let safe = tempfile::tempdir().unwrap();
    let key = safe.path().join("root-key.pem").to_str().unwrap().to_owned();
    let ca = Ca::with(&["--offline-root", &key]);
    let server = ca.serve();
    let old = ca.one("intermediate", "active");
    let issued = ca.issued("w", ID);
    assert_eq!(ca.json(&["rotate", "prepare", "--root-key", &key]).0, 0);
    assert_eq!(ca.json(&["rotate", "activate"]).0, 0);
    let after = ca.issued("after", ID);
    let revoke = ["rotate", "revoke", old.as_str(), "--reason", "cACompromise"];
    assert_eq!(ca.json(&revoke).2, "no_file");
    let with_key = [&revoke[..], &["--root-key", &key]].concat();
    assert_eq!(ca.json(&with_key).2, "still_used");
    assert_eq!(ca.one("intermediate", "old"), old, "what was refused changed nothing");
    assert_eq!(ca.json(&[&with_key[..], &["--force"]].concat()).0, 0);

    eventually("the root's list has it", || ca.lists(&server).1.iter().any(|list| list.2 == 1));
    let (file, _) = ca.lists(&server);
    let (accepted, said) = openssl(&file, &issued);
    assert!(!accepted, "{said}");
    let (accepted, said) = openssl(&file, &after);
    assert!(accepted, "{said}");
    eventually("the key of no more use is gone", || !Path::new(&ca.path("ca")).join("intermediate-key.pem").exists());
    assert_eq!(ca.json(&["check"]).0, 0);
}

#[test]
fn without_the_password_the_running_server_signs_the_list() {
    let secrets = tempfile::tempdir().unwrap();
    let password = secrets.path().join("password").to_str().unwrap().to_owned();
    std::fs::write(&password, "correct horse").unwrap();
    let with = ["--password-file", password.as_str()];
    let ca = Ca::with(&with);
    let server = ca.serve_with(&with);
    let dir = ca.path("w");
    ok(&[&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &dir][..], &with].concat());
    // A request signed with the encrypted key, too.
    let csr = ca.path("request.pem");
    std::fs::write(&csr, new_key_and_csr(None).unwrap().1.as_str()).unwrap();
    assert_eq!(ca.json(&["sign", &csr, "--id", ID]).2, "password_missing");
    let (status, signed, _) = ca.json(&[&["sign", &csr, "--id", ID][..], &with].concat());
    assert_eq!(status, 0);
    let serial = signed[0]["serial"].as_str().unwrap();
    let (status, lines, _) = ca.json(&["revoke", serial]);
    assert_eq!((status, &lines[0]["lists_waiting"]), (0, &json!(1)));
    eventually("the server has signed the list", || ca.lists(&server).1.iter().any(|list| list.2 == 1));
}

#[test]
fn a_revocation_that_was_tampered_with_is_found() {
    let ca = Ca::new();
    let (one, two) = (ca.issued("one", ID), ca.issued("two", ID));
    ok(&["revoke", &one.serial, &two.serial, "--dir", &ca.path("ca")]);
    let meddle = |sql: &str| {
        let drop =
            "DROP TRIGGER IF EXISTS revocation_is_not_changed; DROP TRIGGER IF EXISTS revocation_is_not_removed;";
        ca.sqlite().execute_batch(&format!("{drop} {sql}")).unwrap();
        let got = ca.json(&["log", "verify"]);
        (got.0, got.2)
    };
    assert!(ca.sqlite().execute("DELETE FROM revocation", []).is_err(), "the database refuses it first");
    assert_eq!(meddle("UPDATE revocation SET reason = 'superseded' WHERE seq = 1").1, "revocations_broken");
    assert_eq!(meddle("UPDATE revocation SET reason = 'unspecified' WHERE seq = 1"), (0, String::new()));
    assert_eq!(meddle("DELETE FROM revocation WHERE seq = 2"), (6, "revocations_cut".into()));
}
