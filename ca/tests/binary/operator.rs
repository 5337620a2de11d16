//! What an operator and the operator's scripts see: results, JSON, exit statuses.

use std::process::Output;

use outrigger_identity::{csr::new_key_and_csr, enrol::Credential};
use serde_json::{Value, json};

use super::{Ca, ID, ask, ok, run};

impl Ca {
    /// Runs a command on this CA's folder with `--json`: its exit status, stdout's lines and the error's code.
    pub(crate) fn json(&self, args: &[&str]) -> (i32, Vec<Value>, String) {
        let dir = self.path("ca");
        let out = run(&[args, &["--dir", &dir, "--json"]].concat());
        let (out, code) = (parse(&out), error_code(&out));
        (out.0, out.1, code)
    }
}

fn parse(out: &Output) -> (i32, Vec<Value>) {
    let lines = std::str::from_utf8(&out.stdout).unwrap().lines();
    (out.status.code().unwrap(), lines.map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The code of the one JSON error on stderr; empty without one. Its exit status must be the process's.
fn error_code(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr);
    let Some(line) = text.lines().find(|line| line.starts_with("{\"error\"")) else { return String::new() };
    let error: Value = serde_json::from_str(line).unwrap();
    assert_eq!(error["error"]["exit"], json!(out.status.code()), "{line}");
    assert!(error["error"]["message"].as_str().unwrap().len() > 10, "{line}");
    error["error"]["code"].as_str().unwrap().to_owned()
}

fn meddle(ca: &Ca, sql: &str) {
    let database = ca.sqlite();
    let drop =
        "DROP TRIGGER IF EXISTS issued_is_append_only; DROP TRIGGER IF EXISTS issued_is_pruned_behind_an_anchor;";
    database.execute_batch(&format!("{drop} {sql}")).unwrap();
}

#[test]
fn the_log_is_listed_verified_and_pruned_and_a_changed_record_is_found() {
    let ca = Ca::new();
    for n in 0..3 {
        let out = ca.path(&format!("w{n}"));
        ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--ttl", "1s", "--out", &out]);
    }
    let (status, lines, _) = ca.json(&["log", "verify"]);
    assert_eq!((status, &lines[0]["records"]), (0, &json!(3)));
    let head = lines[0]["head"].as_str().unwrap().to_owned();
    let (_, listed, _) = ca.json(&["log", "list"]);
    assert_eq!((listed.len(), &listed[2]["hash"], &listed[2]["seq"]), (3, &json!(head), &json!(3)));

    // The certificates live one second more than nothing; wait until they are over.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let (status, lines, _) = ca.json(&["log", "prune", "--older-than", "1h"]);
    assert_eq!((status, &lines[0]["pruned"]), (0, &json!(0)), "nothing is an hour old");
    let (status, lines, _) = ca.json(&["log", "prune", "--older-than", "0s"]);
    assert_eq!((status, &lines[0]["pruned"]), (0, &json!(3)));
    ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &ca.path("w")]);
    let (status, lines, _) = ca.json(&["log", "verify", "--head", &head]);
    assert_eq!((status, &lines[0]["records"], &lines[0]["anchor"]["seq"]), (0, &json!(1), &json!(3)));

    let unknown = "ab".repeat(32);
    let (status, _, code) = ca.json(&["log", "verify", "--head", &unknown]);
    assert_eq!((status, code.as_str()), (6, "log_head_missing"));
    meddle(&ca, "UPDATE issued SET id = 'spiffe://mesh.example/evil'");
    let (status, lines, code) = ca.json(&["log", "verify"]);
    assert_eq!((status, lines.len(), code.as_str()), (6, 0, "log_broken"));
    // A broken log is not pruned, which would hide where it broke.
    let (status, _, code) = ca.json(&["log", "prune", "--older-than", "0s"]);
    assert_eq!((status, code.as_str()), (6, "log_broken"));
    // What no program of ours writes is a verdict too.
    meddle(&ca, "UPDATE issued SET credential = 'friendship'");
    let (status, _, code) = ca.json(&["log", "verify"]);
    assert_eq!((status, code.as_str()), (6, "log_damaged"));
}

#[tokio::test]
async fn tokens_are_listed_by_their_hash_and_revoked_under_a_running_server() {
    let ca = Ca::new();
    let server = ca.serve();
    let (status, made, _) = ca.json(&["token", "create", "--id", ID, "--dns", "orders.mesh"]);
    assert_eq!(status, 0);
    let (token, reference) = (made[0]["token"].as_str().unwrap(), made[0]["ref"].as_str().unwrap());
    let other = ca.token(ID);
    let third = ca.token("spiffe://mesh.example/b");

    let (_, listed, _) = ca.json(&["token", "list"]);
    let states: Vec<_> = listed.iter().map(|t| t["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["unused"; 3]);
    assert!(listed.iter().any(|t| t["ref"] == reference && t["dns"] == json!(["orders.mesh"])));
    assert!(!format!("{listed:?}").contains(token.trim_start_matches("ojt_")), "the list tells the token");

    let plain = ok(&["token", "revoke", &reference[..16], "--dir", &ca.path("ca")]);
    assert!(plain.contains(ID), "{plain}");
    let (_, csr) = new_key_and_csr(None).unwrap();
    let error = ask(&server, &ca.bundle(), Credential::Token(token.to_owned()), csr.as_str()).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("revoked"), "{error}");
    ask(&server, &ca.bundle(), Credential::Token(other), csr.as_str()).await.unwrap();

    let (status, revoked, _) = ca.json(&["token", "revoke", "--id", "spiffe://mesh.example/b"]);
    assert_eq!((status, &revoked[0]["revoked"]), (0, &json!(1)));
    assert!(ask(&server, &ca.bundle(), Credential::Token(third), csr.as_str()).await.is_err());
    let (_, listed, _) = ca.json(&["token", "list"]);
    let states: Vec<_> = listed.iter().map(|t| t["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["revoked", "used", "revoked"]);

    let (status, _, code) = ca.json(&["token", "revoke", reference]);
    assert_eq!((status, code.as_str()), (3, "token_spent"));
    let (status, _, code) = ca.json(&["token", "revoke", &"0".repeat(64)]);
    assert_eq!((status, code.as_str()), (4, "no_token"));
    let (status, _, code) = ca.json(&["token", "revoke", "%"]);
    assert_eq!((status, code.as_str()), (2, "token_ref"));
}

#[test]
fn each_kind_of_failure_has_its_exit_status_and_code_and_json_leaves_stdout_alone() {
    let ca = Ca::new();
    let (dir, nowhere) = (ca.path("ca"), ca.path("nowhere"));
    let taken = ca.path("taken");
    ok(&["issue", "--dir", &dir, "--id", ID, "--out", &taken]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["bundle", "show", "--dir", &nowhere], 4, "no_ca"),
        (&["init", "--dir", &dir, "--trust-domain", "mesh.example"], 3, "ca_exists"),
        (&["token", "create", "--dir", &dir, "--id", "spiffe://other.example/a"], 3, "subject"),
        (&["issue", "--dir", &dir, "--id", ID, "--out", &taken], 3, "file_exists"),
        (&["issue", "--dir", &dir, "--id", ID, "--out", &taken, "--ttl", "31d"], 2, "usage"),
        (&["token", "revoke", "--dir", &dir], 2, "usage"),
        (&["nonsense"], 2, "usage"),
        (&["serve", "--dir", &dir, "--listen", "192.0.2.1:1"], 1, "listen"),
    ];
    for (args, status, code) in cases {
        let out = run(&[args, &["--json"][..]].concat());
        assert_eq!((out.status.code(), error_code(&out).as_str()), (Some(*status), *code), "{args:?}");
        assert!(out.stdout.is_empty(), "{args:?}");
        // Without --json the same status, and words.
        let out = run(args);
        assert_eq!(out.status.code(), Some(*status), "{args:?}");
        assert!(!String::from_utf8_lossy(&out.stderr).contains("{\"error\""), "{args:?}");
    }
    let help = ok(&["--help"]);
    for status in 0..=6 {
        assert!(help.contains(&format!("\n  {status}  ")), "--help does not tell of status {status}");
    }
}

#[test]
fn a_server_forgets_by_itself_what_is_long_over_and_the_log_still_proves_itself() {
    let ca = Ca::new();
    let dir = ca.path("ca");
    for n in 0..3 {
        ok(&["issue", "--dir", &dir, "--id", ID, "--ttl", "1s", "--out", &ca.path(&n.to_string())]);
    }
    ok(&["token", "create", "--dir", &dir, "--id", ID, "--ttl", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    drop(ca.serve_with(&["--prune-after", "off"]));
    assert_eq!(ca.log().iter().filter(|entry| entry["credential"] == "operator").count(), 3);
    let _server = ca.serve_with(&["--prune-after", "0s"]);
    let begun = std::time::Instant::now();
    while ca.log().iter().any(|entry| entry["credential"] == "operator") {
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "nothing was forgotten: {:?}", ca.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(ok(&["token", "list", "--dir", &dir]), "");
    let proof = ok(&["log", "verify", "--dir", &dir]);
    assert!(proof.contains("were pruned"), "{proof}");
}
