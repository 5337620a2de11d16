//! Another root: in an order that loses nobody, with every other order refused.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use outrigger_ca::authority::{InitOptions, init};
use outrigger_identity::{
    TrustDomain,
    csr::new_key_and_csr,
    enrol::{Credential, EnrolCause},
};
use serde_json::{Value, json};

use super::{BINARY, Ca, ID, ask, leaf, ok, openssl_accepts, run};

impl Ca {
    pub(crate) fn status(&self) -> Value {
        let (status, mut lines, code) = self.json(&["rotate", "status"]);
        assert_eq!(status, 0, "{code}");
        lines.remove(0)
    }

    /// The fingerprints of the roots or intermediates in a state.
    pub(crate) fn authorities(&self, kind: &str, state: &str) -> Vec<String> {
        let status = self.status();
        let all = status["authorities"].as_array().unwrap();
        let found = all.iter().filter(|it| it["kind"] == kind && it["state"] == state);
        found.map(|it| it["fingerprint"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn one(&self, kind: &str, state: &str) -> String {
        let mut found = self.authorities(kind, state);
        assert_eq!(found.len(), 1, "{kind} {state}: {}", self.status());
        found.remove(0)
    }

    fn refuses(&self, args: &[&str], status: i32, code: &str) {
        let got = self.json(args);
        assert_eq!((got.0, got.2.as_str()), (status, code), "{args:?}");
    }
}

/// Asks again and again until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "never came: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn issuer(chain_pem: &str) -> String {
    leaf(chain_pem).parse_x509().unwrap().issuer().to_string()
}

fn certificates(pem: &str) -> Vec<String> {
    pem.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
}

#[tokio::test]
async fn a_root_is_replaced_under_a_running_server_and_nobody_is_lost() {
    let ca = Ca::new();
    ok(&["bundle", "set", "--dir", &ca.path("ca"), "--refresh-hint", "5s"]);
    let server = ca.serve();
    let old_bundle = ca.bundle();
    let (key, csr) = new_key_and_csr(None).unwrap();
    let first = ask(&server, &old_bundle, Credential::Token(ca.token(ID)), csr.as_str()).await.unwrap();
    let old_root = ca.one("root", "active");

    let (status, made, _) = ca.json(&["rotate", "prepare", "--root"]);
    assert_eq!((status, &made[0]["new_root"]), (0, &json!(true)));
    let both = ca.bundle();
    assert_eq!(certificates(&both).len(), 2);
    assert_eq!(certificates(&both)[0], old_bundle, "the one that signs comes first");
    // It is published and nothing signs with it.
    ca.refuses(&["rotate", "activate"], 3, "not_published");
    let (_, csr) = new_key_and_csr(None).unwrap();
    let current = Credential::Certificate { chain_pem: first.chain_pem.clone(), key_pem: key.as_str().to_owned() };
    let same = ask(&server, &old_bundle, current.clone(), csr.as_str()).await.unwrap();
    assert_eq!(issuer(&same.chain_pem), issuer(&first.chain_pem));

    eventually("two refresh hints are over", || ca.json(&["rotate", "activate"]).0 == 0);
    assert_eq!(ca.one("root", "old"), old_root);
    let new_bundle = certificates(&ca.bundle()).remove(0);
    assert_ne!(new_bundle, old_bundle);
    // The same server, at once: by what the old root has signed one gets what the new one signs.
    let renewed = ask(&server, &both, current.clone(), csr.as_str()).await.unwrap();
    assert_ne!(issuer(&renewed.chain_pem), issuer(&first.chain_pem));
    assert_eq!(renewed.roots_pem, new_bundle, "the root of its own chain is the last");
    let files = ["chain.pem", "root.pem"].map(|name| ca.dir.path().join(name));
    std::fs::write(&files[0], &renewed.chain_pem).unwrap();
    std::fs::write(&files[1], &new_bundle).unwrap();
    openssl_accepts(&files[0], &files[1]);
    // Its own certificate too.
    let (_, other) = new_key_and_csr(None).unwrap();
    let began = Instant::now();
    while ask(&server, &new_bundle, Credential::Token(ca.token(ID)), other.as_str()).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "its own certificate still leads to the old root");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    ca.refuses(&["rotate", "revoke", &old_root], 3, "not_tainted");
    let (status, tainted, _) = ca.json(&["rotate", "taint", &old_root[..12]]);
    assert_eq!((status, &tainted[0]["state"]), (0, &json!("tainted")));
    let document = ok(&["bundle", "export", "--dir", &ca.path("ca"), "--format", "spiffe"]);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["spiffe_refresh_hint"], 5);
    let marks: Vec<_> = document["keys"].as_array().unwrap().iter().map(|key| &key["outrigger_tainted"]).collect();
    assert_eq!(marks, [&Value::Null, &json!(true)]);
    // What leads to it is still good, and so it cannot go.
    ask(&server, &both, current.clone(), csr.as_str()).await.unwrap();
    ca.refuses(&["rotate", "revoke", &old_root], 3, "still_used");
    let living = ca.status()["authorities"].as_array().unwrap().iter().find(|it| it["state"] == "tainted").cloned();
    assert_eq!(living.unwrap()["living"]["count"], 2, "the first certificate and its renewal");
    let (status, revoked, _) = ca.json(&["rotate", "revoke", &old_root, "--force"]);
    assert_eq!((status, &revoked[0]["living"]["count"]), (0, &json!(2)));
    assert_eq!(ca.bundle(), new_bundle);

    // Within seconds the server accepts nothing under it.
    let began = Instant::now();
    let error = loop {
        match ask(&server, &new_bundle, current.clone(), csr.as_str()).await {
            Err(error) => break error,
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(10), "the revoked root is still accepted"),
        }
    };
    assert!(matches!(error.cause, EnrolCause::CertificateRefused(_)), "{error}");
    assert_eq!(ca.json(&["log", "verify"]).0, 0);
    let (status, checks, _) = ca.json(&["check"]);
    assert_eq!(status, 0, "{checks:?}");
}

#[test]
fn every_unsafe_order_is_refused_with_its_own_code() {
    let ca = Ca::new();
    let (root, intermediate) = (ca.one("root", "active"), ca.one("intermediate", "active"));
    ca.refuses(&["rotate", "taint", &root], 3, "root_active");
    ca.refuses(&["rotate", "revoke", &root], 3, "root_active");
    ca.refuses(&["rotate", "revoke", &root, "--force"], 3, "root_active");
    ca.refuses(&["rotate", "taint", &intermediate], 3, "not_a_root");
    ca.refuses(&["rotate", "revoke", &intermediate, "--force"], 3, "intermediate_active");
    ca.refuses(&["rotate", "activate"], 4, "nothing_prepared");
    for nobody in ["0000000000", "xyzxyzxyz", &root[..7]] {
        ca.refuses(&["rotate", "taint", nobody], 4, "no_authority");
    }
    assert_eq!(ca.json(&["rotate", "prepare", "--root"]).0, 0);
    let next = ca.one("root", "prepared");
    ca.refuses(&["rotate", "prepare", "--root"], 3, "already_prepared");
    ca.refuses(&["rotate", "activate"], 3, "not_published");
    ca.refuses(&["rotate", "taint", &next], 3, "root_unused");
    ca.refuses(&["rotate", "revoke", &next, "--force"], 3, "root_unused");
    assert_eq!(ca.json(&["rotate", "activate", "--force"]).0, 0);
    ca.refuses(&["rotate", "revoke", &root, "--force"], 3, "not_tainted");
    assert_eq!(ca.json(&["rotate", "taint", &root]).0, 0);
    ca.refuses(&["rotate", "taint", &root], 3, "already_so");
    assert_eq!(ca.json(&["rotate", "revoke", &root]).0, 0, "nothing was ever issued under it");
    ca.refuses(&["rotate", "revoke", &root], 3, "already_so");
    assert_eq!(ca.one("root", "active"), next);
}

#[tokio::test]
async fn the_intermediate_is_replaced_by_the_server_itself_and_no_enrolment_fails() {
    let ca = Ca { dir: tempfile::tempdir().unwrap() };
    let mut options = InitOptions::new(TrustDomain::parse("mesh.example").unwrap());
    options.intermediate_ttl = Duration::from_secs(3600);
    // A sixth of its life is left in a few seconds: time to prepare, and soon to activate.
    let born = time::OffsetDateTime::now_utc() - Duration::from_secs(3600 - 616);
    init(&ca.dir.path().join("ca"), options, born).unwrap();
    let first = ca.one("intermediate", "active");
    let server = ca.serve();
    eventually("the next one is prepared", || ca.authorities("intermediate", "prepared").len() == 1);
    assert_eq!(ca.one("intermediate", "active"), first);

    let bundle = ca.bundle();
    let mut issuers = Vec::new();
    let began = Instant::now();
    while issuers.len() < 2 {
        let (_, csr) = new_key_and_csr(None).unwrap();
        let token = ca.tokens(1).remove(0);
        let got = ask(&server, &bundle, Credential::Token(token), csr.as_str()).await.unwrap();
        let by = issuer(&got.chain_pem);
        if issuers.last() != Some(&by) {
            issuers.push(by);
        }
        assert!(began.elapsed() < Duration::from_secs(30), "never activated: {}", ca.status());
    }
    assert_eq!(ca.one("intermediate", "old"), first);
    assert_ne!(ca.one("intermediate", "active"), first);
    // Certificates of the old one live on, so its key stays for its revocation list.
    assert!(ca.dir.path().join("ca/intermediate-key.pem").exists());
}

fn is_pem(file: &std::fs::DirEntry) -> bool {
    file.path().extension().is_some_and(|end| end == "pem")
}

/// Wherever a command is killed, the CA works, says where it stands, and the same command goes on.
#[test]
fn a_kill_in_the_middle_of_a_rotation_leaves_a_ca_that_works_and_explains_itself() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let ca = Ca::new();
    let dir = ca.path("ca");
    let (mut killed, mut leftovers) = (0, 0);
    for round in 0..24u64 {
        let command: &[&str] = match round % 3 {
            0 => &["rotate", "prepare", "--root"],
            1 => &["rotate", "prepare"],
            _ => &["rotate", "activate", "--force"],
        };
        let mut child = Command::new(BINARY)
            .args(command)
            .args(["--dir", &dir])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros((seed * 7919 + round * 104_729) % 30_000));
        } else {
            // The very moment when so many of the new files are there and nothing is recorded yet.
            let files = || std::fs::read_dir(&dir).unwrap().filter(|f| is_pem(f.as_ref().unwrap())).count();
            let enough = files() + 1 + (round as usize / 2) % 3;
            while files() < enough && child.try_wait().unwrap().is_none() {}
        }
        let _ = child.kill();
        killed += u32::from(child.wait().unwrap().code().is_none());

        let status = ca.status();
        leftovers += status["leftovers"].as_array().unwrap().len();
        for file in status["leftovers"].as_array().unwrap() {
            std::fs::remove_file(file.as_str().unwrap()).unwrap();
        }
        assert_eq!(ca.json(&["check"]).0, 0, "{status}");
        let out = ca.path("w");
        ok(&["issue", "--dir", &dir, "--id", ID, "--out", &out, "--force"]);
        openssl_accepts(&Path::new(&out).join("cert.pem"), &Path::new(&out).join("bundle.pem"));
        // The states fit each other: one active root, one active intermediate, and it is under an active root.
        let active = ca.one("intermediate", "active");
        let line = status["authorities"].as_array().unwrap().iter().find(|it| it["fingerprint"] == json!(active));
        assert_eq!(line.unwrap()["issuer"], json!(ca.one("root", "active")));
    }
    println!("{killed} of 24 commands were killed, {leftovers} files were left over");
    assert!(killed > 5 && leftovers > 0, "too few were killed in the middle to prove anything");
    assert_eq!(ca.json(&["log", "verify"]).0, 0);
}

#[test]
fn an_offline_root_with_a_password_is_followed_by_another() {
    let safe = tempfile::tempdir().unwrap();
    let file = |name: &str| safe.path().join(name).to_str().unwrap().to_owned();
    let (password, one, two) = (file("password"), file("one.pem"), file("two.pem"));
    std::fs::write(&password, "correct horse").unwrap();
    let with = ["--password-file", password.as_str()];
    let ca = Ca::with(&[&with[..], &["--offline-root", &one]].concat());
    let dir = ca.path("ca");

    ca.refuses(&["rotate", "prepare", "--root", "--offline-root", &two], 5, "password_missing");
    let inside = format!("{dir}/inside.pem");
    ca.refuses(
        &[&["rotate", "prepare", "--root", "--offline-root", &inside][..], &with].concat(),
        3,
        "offline_root_inside",
    );
    ca.refuses(&[&["rotate", "prepare", "--root", "--offline-root", &one][..], &with].concat(), 3, "file_exists");
    assert_eq!(ca.status()["leftovers"], json!([]), "what was refused leaves no files");
    assert_eq!(ca.json(&[&["rotate", "prepare", "--root", "--offline-root", &two][..], &with].concat()).0, 0);
    assert!(std::fs::read_to_string(&two).unwrap().contains("OUTRIGGER ENCRYPTED"));
    ca.refuses(&["rotate", "activate", "--force"], 5, "password_missing");
    assert_eq!(ca.json(&[&["rotate", "activate", "--force"][..], &with].concat()).0, 0);

    // The next intermediate is the new root's, whose key is elsewhere; the old root's signs nothing any more.
    ca.refuses(&[&["rotate", "prepare"][..], &with].concat(), 4, "no_file");
    ca.refuses(&[&["rotate", "prepare", "--root-key", &one][..], &with].concat(), 1, "damaged");
    let (status, made, _) = ca.json(&[&["rotate", "prepare", "--root-key", &two][..], &with].concat());
    assert_eq!((status, &made[0]["root"]), (0, &json!(ca.one("root", "active"))));
    let keys = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    assert!(!keys.into_iter().any(|name| name.starts_with("root") && name.ends_with("-key.pem")));
}

#[test]
fn a_root_that_was_made_elsewhere_joins_signs_and_is_never_of_another_trust_domain() {
    let (ca, stranger) = (Ca::new(), Ca { dir: tempfile::tempdir().unwrap() });
    let other = stranger.path("ca");
    ok(&["init", "--dir", &other, "--trust-domain", "mesh.example", "--no-password"]);
    let foreign = ca.path("foreign.json");
    ok(&["bundle", "export", "--dir", &other, "--format", "spiffe", "--out", &foreign]);
    let own = ca.one("root", "active");

    // Replacing would take the active root out.
    ca.refuses(&["bundle", "set", &foreign, "--replace"], 3, "bundle");
    let (status, set, _) = ca.json(&["bundle", "set", &foreign]);
    assert_eq!((status, set[0]["added"].as_array().unwrap().len()), (0, 1));
    let joined = ca.one("root", "prepared");
    assert_eq!(ca.json(&["bundle", "set", &foreign]).1[0]["added"], json!([]), "once");
    // With its key it becomes the root.
    let key = format!("{other}/root-key.pem");
    let (status, made, _) = ca.json(&["rotate", "prepare", "--root-key", &key]);
    assert_eq!((status, &made[0]["root"]), (0, &json!(joined)));
    assert_eq!(ca.json(&["rotate", "activate", "--force"]).0, 0);
    assert_eq!((ca.one("root", "active"), ca.one("root", "old")), (joined, own));
    let out = ca.path("w");
    ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &out]);
    openssl_accepts(&Path::new(&out).join("cert.pem"), Path::new(&format!("{other}/root.pem")));

    // What is no root of this trust domain.
    let elsewhere = Ca { dir: tempfile::tempdir().unwrap() };
    ok(&["init", "--dir", &elsewhere.path("ca"), "--trust-domain", "other.example", "--no-password"]);
    let bad = ca.path("bad.pem");
    let before = ca.bundle();
    for (name, words) in [
        (format!("{}/root.pem", elsewhere.path("ca")), "never one"),
        (format!("{other}/intermediate.pem"), "not signed by itself"),
        (format!("{out}/cert.pem"), "not a CA's"),
        (format!("{out}/key.pem"), "no certificates"),
    ] {
        std::fs::copy(&name, &bad).unwrap();
        let got = run(&["bundle", "set", "--dir", &ca.path("ca"), &bad]);
        let said = String::from_utf8_lossy(&got.stderr).into_owned();
        assert_eq!(got.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
    for text in ["{", "{}", "{\"keys\":[]}", "{\"keys\":[{\"use\":\"x509-svid\",\"x5c\":[\"!\"]}]}", "", "hello"] {
        std::fs::write(&bad, text).unwrap();
        ca.refuses(&["bundle", "set", &bad], 3, "bundle");
    }
    assert_eq!(ca.bundle(), before);
}

/// The blocking client of PostgreSQL must not run within a runtime, so this test is none of one.
#[test]
fn replicas_follow_each_other_to_a_new_root_and_publish_each_others_lists() {
    let url = super::postgres::Postgres::shared().database();
    let (one, two) = (Ca::with(&["--database", &url]), Ca { dir: tempfile::tempdir().unwrap() });
    let (folder, key) = (two.path("ca"), one.path("ca/root-key.pem"));
    let init = ["init", "--dir", &folder, "--trust-domain", "mesh.example", "--database", &url, "--name", "127.0.0.1"];
    ok(&[&init[..], &["--replica", "--root", &one.path("ca/root.pem"), "--root-key", &key]].concat());
    let old = one.one("root", "active");
    assert_eq!(one.authorities("intermediate", "active").len(), 2, "each has one of its own");

    // Revoked here, signed there: the issuer's key is with the other replica, which runs.
    let (status, issued, _) = two.json(&["issue", "--id", ID, "--out", &two.path("w")]);
    assert_eq!(status, 0);
    let serial = issued[0]["serial"].as_str().unwrap().to_owned();
    let servers = [one.serve(), two.serve()];
    let (_, lines, _) = one.json(&["revoke", &serial]);
    assert_eq!((&lines[0]["revoked"], &lines[0]["lists_waiting"]), (&json!([serial]), &json!(1)));
    for (ca, server) in [&one, &two].into_iter().zip(&servers) {
        let url = format!("https://{}/crl.pem", server.address);
        eventually("both publish the list that one can sign", || {
            let text = super::serving::curl(ca, &url, &[]).text;
            let lists = text.split_inclusive("-----END X509 CRL-----\n").filter(|it| it.contains("BEGIN X509 CRL"));
            let listed = lists.filter(|list| {
                let file = ca.path("one.crl");
                std::fs::write(&file, &list[list.find("-----BEGIN X509").unwrap()..]).unwrap();
                let out = Command::new("openssl").args(["crl", "-in", &file, "-noout", "-text"]).output().unwrap();
                String::from_utf8_lossy(&out.stdout).to_lowercase().contains(&serial)
            });
            listed.count() == 1
        });
    }
    drop(servers);

    assert_eq!(one.json(&["rotate", "prepare", "--root"]).0, 0);
    assert_eq!(one.json(&["rotate", "activate", "--force"]).0, 0);
    // The other replica signs under the old root still.
    one.refuses(&["rotate", "taint", &old], 3, "still_signing");
    let next = two.status()["next"].to_string();
    assert!(next.contains("rotate prepare"), "{next}");
    let keys = std::fs::read_dir(one.path("ca")).unwrap().map(|f| f.unwrap().path().to_str().unwrap().to_owned());
    let key = keys.into_iter().find(|name| name.contains("/root-") && name.ends_with("-key.pem") && *name != key);
    assert_eq!(two.json(&["rotate", "prepare", "--root-key", &key.unwrap()]).0, 0);
    assert_eq!(two.json(&["rotate", "activate"]).0, 0, "its root is the active one already");
    assert_eq!(one.json(&["rotate", "taint", &old]).0, 0);
    assert_eq!(two.json(&["rotate", "revoke", &old]).0, 0, "its only certificate is revoked");
    assert_eq!(one.bundle(), two.bundle());
    assert_eq!((one.json(&["log", "verify"]).0, two.json(&["check"]).0), (0, 0));
}

#[test]
fn a_ca_from_before_the_database_knew_its_authorities_goes_on() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    ok(&["rotate", "prepare", "--dir", &dir]);
    let (active, prepared) = (ca.one("intermediate", "active"), ca.one("intermediate", "prepared"));
    let next = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let next = next.into_iter().find(|name| name.starts_with("intermediate-") && name.len() == 33).unwrap();
    let settings = format!("{dir}/ca.json");
    let mut old: Value = serde_json::from_str(&std::fs::read_to_string(&settings).unwrap()).unwrap();
    old["prepared"] = json!(next.trim_end_matches(".pem"));
    std::fs::write(&settings, old.to_string()).unwrap();
    // As the schema was then: what later steps add is gone.
    let database = ca.sqlite();
    database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    let later = "SELECT 'DROP INDEX ' || name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL
                 UNION ALL SELECT 'DROP TABLE ' || name FROM sqlite_master WHERE type = 'table'
                 AND name NOT IN ('token', 'issued', 'log_anchor', 'sqlite_sequence')";
    let later: Vec<String> =
        database.prepare(later).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    database.execute_batch(&(later.join("; ") + "; PRAGMA user_version = 2")).unwrap();
    drop(database);
    // Who looks leaves it as it is: the server of that version may be running.
    let looked = run(&["rotate", "status", "--dir", &dir]);
    assert!(String::from_utf8_lossy(&looked.stderr).contains("schema version 2"), "{looked:?}");
    ca.token(ID);
    assert_eq!(
        (ca.one("intermediate", "active"), ca.one("intermediate", "prepared")),
        (active.clone(), prepared.clone())
    );
    assert_eq!(ca.json(&["rotate", "activate"]).0, 0);
    // The settings still name the old pair, and the database counts.
    assert_eq!((ca.one("intermediate", "active"), ca.one("intermediate", "old")), (prepared, active));
    assert_eq!(ca.json(&["check"]).0, 0);
}
