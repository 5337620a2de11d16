//! pkilint, a linter of other people's making, over every kind of certificate that the CA makes. tests/run.sh installs
//! it and runs this; by hand: `python3 -m venv target/pkilint && target/pkilint/bin/pip install pkilint`, then
//! `cargo test -p outrigger-ca --test binary -- --ignored pkilint`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use rcgen::KeyPair;

use super::{Ca, ID, ok, openssl_accepts};

/// What it says of a right certificate, as severity and code.
const KNOWN: [(&str, &str); 2] = [
    // It reads "spiffe://" by a pattern for "http://": RFC 3986 section 3 knows no such limit, and SPIFFE asks for it.
    ("ERROR", "pkix.invalid_uri_syntax"),
    // It knows the two methods of RFC 5280 with SHA-1. Ours is method 1 of RFC 7093, with SHA-256.
    ("NOTICE", "pkix.unknown_subject_key_identifier_calculation_method"),
];

fn linter(program: &str) -> PathBuf {
    let folder = std::env::var_os("OUTRIGGER_PKILINT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pkilint/bin"), PathBuf::from);
    let found = folder.join(program);
    assert!(found.is_file(), "there is no {}; the head of this file says how to get it", found.display());
    found
}

/// Severity and code of each finding, and the message of one that is not known.
fn findings(file: &Path) -> Vec<(String, String, String)> {
    let out =
        Command::new(linter("lint_pkix_cert")).args(["lint", "-s", "INFO", "-f", "JSON"]).arg(file).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{}: {e}: {}", file.display(), String::from_utf8_lossy(&out.stderr)));
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let results = report["results"].as_array().unwrap();
    let all = results.iter().flat_map(|r| r["finding_descriptions"].as_array().unwrap());
    all.map(|f| (text(&f["severity"]), text(&f["code"]), text(&f["message"]))).collect()
}

fn unknown(file: &Path) -> Vec<(String, String, String)> {
    let mut all = findings(file);
    all.retain(|(severity, code, message)| {
        let known = KNOWN.iter().any(|(s, c)| s == severity && c == code);
        !known || (code == "pkix.invalid_uri_syntax" && !message.contains("\"spiffe://"))
    });
    all
}

/// Files of every kind of certificate of a CA with this kind of key; `openssl verify -x509_strict` takes each chain.
fn every_kind(algorithm: &str, folder: &Path) -> Vec<PathBuf> {
    let ca = Ca::with(&["--alg", algorithm]);
    let (dir, out) = (ca.path("ca"), ca.path("w"));
    ok(&["issue", "--dir", &dir, "--id", ID, "--dns", "orders.mesh", "--out", &out]);
    let workload = Path::new(&out).join("cert.pem");
    let bundle = Path::new(&out).join("bundle.pem");
    openssl_accepts(&workload, &bundle);
    let _served = ca.serve();
    let mut files = Vec::new();
    let mut keep = |kind: &str, pem: &str| {
        let file = folder.join(format!("{algorithm}-{kind}.pem"));
        std::fs::write(&file, pem).unwrap();
        files.push(file);
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    keep("root", &read(bundle.clone()));
    let chain = read(workload);
    let blocks: Vec<_> = pem::parse_many(&chain).unwrap().iter().map(pem::encode).collect();
    assert_eq!(blocks.len(), 2);
    keep("workload", &blocks[0]);
    keep("intermediate", &blocks[1]);
    let server: Vec<u8> = ca
        .sqlite()
        .query_row("SELECT certificate FROM issued WHERE credential = 'server'", [], |row| row.get(0))
        .unwrap();
    let server = pem::encode(&pem::Pem::new("CERTIFICATE", server));
    keep("server", &server);
    let file = folder.join(format!("{algorithm}-server.pem"));
    let untrusted = folder.join(format!("{algorithm}-intermediate.pem"));
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "ca.mesh", "-CAfile"]);
    let verified = verify.args([&bundle, Path::new("-untrusted"), &untrusted, &file]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    files
}

#[test]
#[ignore = "needs pkilint; tests/run.sh installs it"]
fn pkilint_finds_nothing_in_any_kind_of_certificate_but_its_known_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = ["p256", "p384", "ed25519"].iter().flat_map(|a| every_kind(a, folder.path())).collect();
    assert_eq!(files.len(), 12);
    // One that is wrong shows that a finding would be seen.
    let wrong = folder.path().join("wrong.pem");
    let mut params = rcgen::CertificateParams::new(vec!["orders.mesh".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    std::fs::write(&wrong, params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let (mut bad, half) = (Vec::new(), files.len().div_ceil(2));
    thread::scope(|scope| {
        let one = |files: &[PathBuf]| files.iter().map(|f| (f.clone(), unknown(f))).collect::<Vec<_>>();
        let runs: Vec<_> = files.chunks(half).map(|part| scope.spawn(move || one(part))).collect();
        bad.extend(runs.into_iter().flat_map(|run| run.join().unwrap()).filter(|(_, found)| !found.is_empty()));
    });
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(!unknown(&wrong).is_empty(), "pkilint has nothing to say against an explicit CA:FALSE");
}
