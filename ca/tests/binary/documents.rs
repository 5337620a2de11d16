//! What verifiers read from a running CA: the SPIFFE bundle document and the revocation lists, and how they follow what
//! the command line does beside the server.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, Pem, X509Certificate};

use super::{Ca, ID, Server, ok, serving::curl};

/// How soon a server has to show what another process has done: it looks every two seconds.
const SOON: Duration = Duration::from_secs(10);

impl Ca {
    fn read(&self, server: &Server, path: &str) -> String {
        let got = curl(self, &format!("https://{}{path}", server.address), &["--http2"]);
        assert_eq!(got.status, 200, "{}", got.text);
        got.text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Reads until the text is as wished.
    fn read_until(&self, server: &Server, path: &str, is_so: impl Fn(&str) -> bool) -> String {
        let asked = Instant::now();
        loop {
            let text = self.read(server, path);
            if is_so(&text) {
                return text;
            }
            assert!(asked.elapsed() < SOON, "{path} stays {text}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn document(&self, server: &Server) -> Value {
        serde_json::from_str(&self.read(server, "/bundle.json")).unwrap()
    }
}

fn blocks(pem: &str, label: &str) -> Vec<String> {
    let end = format!("-----END {label}-----\n");
    pem.split_inclusive(&end).map(str::to_owned).collect()
}

fn openssl_crl(list: &str, options: &[&str]) -> (String, String) {
    let mut command = Command::new("openssl");
    command.arg("crl").args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
}

/// SPIFFE Trust Domain and Bundle, section 4, and RFC 7517.
#[test]
fn the_bundle_document_is_a_jwk_set_with_one_certificate_a_root() {
    let ca = Ca::new();
    let server = ca.serve();
    let document = ca.document(&server);
    assert_eq!(document["spiffe_refresh_hint"], json!(60));
    assert!(document["spiffe_sequence"].is_u64(), "{document}");
    let keys = document["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    let key = &keys[0];
    assert_eq!((&key["use"], &key["kty"], &key["crv"]), (&json!("x509-svid"), &json!("EC"), &json!("P-256")));
    assert!(key.get("outrigger_tainted").is_none());
    let chain = key["x5c"].as_array().unwrap();
    assert_eq!(chain.len(), 1);
    let der = STANDARD.decode(chain[0].as_str().unwrap()).unwrap();
    let root = Pem::iter_from_buffer(ca.bundle().as_bytes()).next().unwrap().unwrap();
    assert_eq!(der, root.contents);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let point =
        [&[4], &*["x", "y"].map(|n| URL_SAFE_NO_PAD.decode(key[n].as_str().unwrap()).unwrap()).concat()].concat();
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), point);
    let got = curl(&ca, &format!("https://{}/bundle.json", server.address), &["--http1.1"]);
    assert_eq!(got.header("content-type"), Some("application/json"));
}

/// RFC 5280 section 5, by openssl.
#[test]
fn a_revocation_shows_in_the_list_of_its_issuer_while_the_server_runs() {
    let ca = Ca::new();
    let server = ca.serve();
    let lists = blocks(&ca.read(&server, "/crl.pem"), "X509 CRL");
    assert_eq!(lists.len(), 2, "one of the root and one of the intermediate");
    let out = ca.path("orders");
    ok(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &out]);
    let chain = std::fs::read_to_string(format!("{out}/cert.pem")).unwrap();
    let authorities = ca.path("authorities.pem");
    std::fs::write(&authorities, ca.bundle() + &blocks(&chain, "CERTIFICATE")[1]).unwrap();
    for list in &lists {
        let (_, verdict) = openssl_crl(list, &["-noout", "-verify", "-CAfile", &authorities]);
        assert!(verdict.contains("verify OK"), "{verdict}");
        let (text, _) = openssl_crl(list, &["-noout", "-text"]);
        for part in ["Version 2", "X509v3 CRL Number", "X509v3 Authority Key Identifier", "Next Update", "No Revoked"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
    let etag = |path: &str| {
        let got = curl(&ca, &format!("https://{}{path}", server.address), &[]);
        got.header("etag").unwrap().to_owned()
    };
    let before = etag("/crl.pem");
    let serial = ca.log().last().unwrap()["serial"].as_str().unwrap().to_owned();
    ok(&["revoke", "--dir", &ca.path("ca"), &serial]);
    let wanted = serial.to_uppercase();
    let has_it = |text: &str| {
        blocks(text, "X509 CRL").iter().any(|list| openssl_crl(list, &["-noout", "-text"]).0.contains(&wanted))
    };
    let now = ca.read_until(&server, "/crl.pem", has_it);
    assert_ne!(etag("/crl.pem"), before);
    for list in blocks(&now, "X509 CRL") {
        let (_, verdict) = openssl_crl(&list, &["-noout", "-verify", "-CAfile", &authorities]);
        assert!(verdict.contains("verify OK"), "{verdict}");
    }
}

#[test]
fn roots_come_taint_and_go_in_the_documents_of_a_running_server() {
    let ca = Ca::new();
    let server = ca.serve_with(&["--metrics-listen", "127.0.0.1:0"]);
    let dir = ca.path("ca");
    let keys = |document: &str| -> Vec<Value> {
        let document: Value = serde_json::from_str(document).unwrap();
        document["keys"].as_array().unwrap().clone()
    };
    let first = ca.document(&server);
    let old = first["keys"][0]["x5c"].clone();
    ok(&["rotate", "prepare", "--root", "--dir", &dir]);
    let text = ca.read_until(&server, "/bundle.json", |text| keys(text).len() == 2);
    let second: Value = serde_json::from_str(&text).unwrap();
    assert!(second["spiffe_sequence"].as_u64() > first["spiffe_sequence"].as_u64(), "{first} {second}");
    assert_eq!(ca.read(&server, "/bundle.pem").matches("BEGIN CERTIFICATE").count(), 2);
    let metrics = curl(&ca, &format!("http://{}/metrics", server.metrics.as_ref().unwrap()), &[]).text;
    assert_eq!(metrics.matches(r#"expiry_seconds{certificate="root""#).count(), 2, "{metrics}");

    ok(&["rotate", "activate", "--force", "--dir", &dir]);
    let status = ok(&["rotate", "status", "--dir", &dir, "--json"]);
    let root = |state: &str| {
        let all = status.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut found = all.flat_map(|line| line["authorities"].as_array().cloned().unwrap_or_else(|| vec![line]));
        found.find(|one| one["kind"] == "root" && one["state"] == state).unwrap_or_else(|| panic!("{status}"))
    };
    let fingerprint = root("old")["fingerprint"].as_str().unwrap().to_owned();
    ok(&["rotate", "taint", &fingerprint, "--dir", &dir]);
    let tainted = |text: &str| keys(text).iter().any(|key| key["outrigger_tainted"] == true);
    let text = ca.read_until(&server, "/bundle.json", tainted);
    for key in keys(&text) {
        assert_eq!(key.get("outrigger_tainted").is_some(), key["x5c"] == old, "{key}");
    }
    ok(&["rotate", "revoke", &fingerprint, "--force", "--dir", &dir]);
    let text = ca.read_until(&server, "/bundle.json", |text| keys(text).len() == 1);
    assert_ne!(keys(&text)[0]["x5c"], old);
    assert_eq!(ca.read(&server, "/bundle.pem").matches("BEGIN CERTIFICATE").count(), 1);
}
