//! A hundred callers at once: with one token, with one key, with one certificate.

use std::collections::HashSet;

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolError, EnrolRequest, Enrolled, enrol},
};
use tokio::task::JoinSet;

use super::{Ca, ID, Server, leaf, ok};

const CALLERS: usize = 100;

/// Everybody asks at the same moment; gives back what each one got.
async fn race(
    server: &Server,
    bundle: &str,
    callers: impl IntoIterator<Item = (Credential, String)>,
) -> Vec<Result<Enrolled, EnrolError>> {
    let mut race = JoinSet::new();
    for (credential, csr) in callers {
        let (address, bundle) = (server.address.clone(), bundle.to_owned());
        race.spawn(async move {
            let (bundle_pem, csr_pem) = (bundle.as_str(), csr.as_str());
            enrol(EnrolRequest { address: &address, bundle_pem, credential, csr_pem, ttl: None, cluster_id: None })
                .await
        });
    }
    race.join_all().await
}

fn serial(enrolled: &Enrolled) -> String {
    let pem = leaf(&enrolled.chain_pem);
    pem.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect()
}

/// The serials that the log has for this kind of credential; the chain of the log must be whole.
fn logged(ca: &Ca, credential: &str) -> Vec<String> {
    ok(&["log", "verify", "--dir", &ca.path("ca")]);
    let log = ca.log();
    let of_kind = log.iter().filter(|e| e["credential"] == credential);
    of_kind.map(|e| e["serial"].as_str().unwrap().to_owned()).collect()
}

fn csr() -> String {
    new_key_and_csr(None).unwrap().1.as_str().to_owned()
}

#[tokio::test]
async fn of_a_hundred_callers_with_one_token_exactly_one_wins() {
    for same_key in [false, true] {
        let ca = Ca::new();
        let (server, bundle, token, one) = (ca.serve(), ca.bundle(), ca.token(ID), csr());
        let callers = (0..CALLERS)
            .map(|_| (Credential::Token(token.clone()), if same_key { one.clone() } else { csr() }))
            .collect::<Vec<_>>();
        let results = race(&server, &bundle, callers).await;
        let winners: Vec<String> = results.iter().filter_map(|r| r.as_ref().ok().map(serial)).collect();
        assert_eq!(winners.len(), 1, "same key: {same_key}");
        for error in results.iter().filter_map(|r| r.as_ref().err()) {
            assert!(error.is_permanent() && error.to_string().contains("already used"), "{error}");
        }
        assert_eq!(logged(&ca, "token"), winners, "the winner's certificate alone is recorded");
    }
}

/// Somebody has copied a key, and has a token for each of a hundred tries.
#[tokio::test]
async fn of_a_hundred_callers_with_one_key_exactly_one_wins_and_the_tokens_of_the_others_are_not_spent() {
    let ca = Ca::new();
    // Failures of an address are limited, which is not what this is about.
    let (server, bundle, one) = (ca.serve_with(&["--failed-attempts", "1000/s:1000"]), ca.bundle(), csr());
    let tokens = ca.tokens(CALLERS);
    let callers: Vec<_> = tokens.iter().map(|token| (Credential::Token(token.clone()), one.clone())).collect();
    let results = race(&server, &bundle, callers).await;
    let winners: Vec<String> = results.iter().filter_map(|r| r.as_ref().ok().map(serial)).collect();
    assert_eq!(winners.len(), 1);
    for error in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(error.is_permanent() && error.to_string().contains("make a new key"), "{error}");
    }
    assert_eq!(logged(&ca, "token"), winners, "the winner's certificate alone is recorded");
    // With keys of their own the others are served.
    let again = tokens.into_iter().map(|token| (Credential::Token(token), csr())).collect::<Vec<_>>();
    let results = race(&server, &bundle, again).await;
    let errors: Vec<String> = results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
    assert!(errors.len() == 1 && errors[0].contains("already used"), "{errors:?}");
}

/// Whoever proves what: while a key has a certificate of one identity, it gets none of another.
#[tokio::test]
async fn a_key_proves_one_identity() {
    let ca = Ca::new();
    let (server, bundle) = (ca.serve(), ca.bundle());
    let (key, request) = new_key_and_csr(None).unwrap();
    let ask = |credential| (credential, request.as_str().to_owned());
    let first = race(&server, &bundle, [ask(Credential::Token(ca.token(ID)))]).await.remove(0).unwrap();
    let other = ca.token("spiffe://mesh.example/other");
    let error = race(&server, &bundle, [ask(Credential::Token(other))]).await.remove(0).unwrap_err();
    assert!(error.to_string().contains("a certificate for the request's key already"), "{error}");
    let file = ca.dir.path().join("request.pem");
    std::fs::write(&file, request.as_str()).unwrap();
    let sign = |id: &str, out: &str| {
        let (file, out) = (file.to_str().unwrap().to_owned(), ca.path(out));
        crate::run(&["sign", &file, "--dir", &ca.path("ca"), "--id", id, "--out", &out])
    };
    let refused = sign("spiffe://mesh.example/other", "other");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("make a new key"));
    // Its own identity it may have again: by renewal, and from an operator.
    let own = Credential::Certificate { chain_pem: first.chain_pem, key_pem: key.as_str().to_owned() };
    assert!(race(&server, &bundle, [ask(own)]).await[0].is_ok());
    let again = sign(ID, "again");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

/// The same key as a compressed point is the same key, and has another hash.
#[test]
fn a_key_in_another_form_is_refused() {
    let ca = Ca::new();
    let path = |name: &str| ca.dir.path().join(name).display().to_string();
    for curve in ["prime256v1", "secp384r1"] {
        let openssl = |args: &[&str]| {
            let run = std::process::Command::new("openssl").args(args).output().unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        };
        let (key, request) = (path("key.pem"), path("request.pem"));
        let made = path("made.pem");
        openssl(&["ecparam", "-name", curve, "-genkey", "-noout", "-out", &made]);
        for (form, good) in [("uncompressed", true), ("compressed", false), ("hybrid", false)] {
            openssl(&["ec", "-in", &made, "-conv_form", form, "-out", &key]);
            openssl(&["req", "-new", "-key", &key, "-subj", "/CN=x", "-out", &request]);
            let out = path(&format!("{curve}-{form}"));
            let signed = crate::run(&["sign", &request, "--dir", &ca.path("ca"), "--id", ID, "--out", &out]);
            let said = String::from_utf8_lossy(&signed.stderr);
            assert_eq!(signed.status.success(), good, "{curve} {form}: {said}");
            assert!(good || said.contains("not an uncompressed point"), "{curve} {form}: {said}");
        }
    }
}

/// Certificates from before the database knew keys keep theirs.
#[tokio::test]
async fn an_upgrade_knows_the_keys_of_the_certificates_that_are_good() {
    let ca = Ca::new();
    let (server, bundle, one) = (ca.serve(), ca.bundle(), csr());
    let first = [(Credential::Token(ca.token(ID)), one.clone())];
    assert!(race(&server, &bundle, first).await[0].is_ok());
    drop(server);
    ca.sqlite()
        .execute_batch("DROP TABLE certified_key; DROP INDEX issued_to_servers; PRAGMA user_version = 4")
        .unwrap();
    let server = ca.serve();
    let other = [(Credential::Token(ca.token("spiffe://mesh.example/other")), one)];
    let error = race(&server, &bundle, other).await.remove(0).unwrap_err();
    assert!(error.to_string().contains("a certificate for the request's key already"), "{error}");
}

#[tokio::test]
async fn what_a_server_calls_itself_no_workload_may_be_called() {
    let ca = Ca::new();
    let named = |out: &str| {
        let (dir, out) = (ca.path("ca"), ca.path(out));
        crate::run(&["issue", "--dir", &dir, "--id", ID, "--dns", "extra.mesh", "--out", &out])
    };
    assert!(named("before").status.success());
    let _server = ca.serve_with(&["--name", "extra.mesh"]);
    let refused = named("after");
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("extra.mesh"));
}

/// Somebody who may write the database put another root above our intermediate.
#[tokio::test]
async fn an_intermediate_under_another_root_signs_nothing() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let root = |ca: &Ca| -> Vec<u8> {
        let sql = "SELECT certificate FROM authority WHERE kind = 'root'";
        ca.sqlite().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let sql = "UPDATE authority SET certificate = ?1 WHERE kind = 'root'";
    ca.sqlite().execute(sql, [root(&stranger)]).unwrap();
    let issued = crate::run(&["issue", "--dir", &ca.path("ca"), "--id", ID, "--out", &ca.path("out")]);
    assert!(!issued.status.success());
    let said = String::from_utf8_lossy(&issued.stderr);
    assert!(said.contains("has not signed it"), "{said}");
}

#[tokio::test]
async fn a_hundred_renewals_of_one_certificate_are_each_recorded_for_its_identity() {
    let ca = Ca::new();
    let (server, bundle) = (ca.serve(), ca.bundle());
    let (key, csr_of_first) = new_key_and_csr(None).unwrap();
    let first = (Credential::Token(ca.token(ID)), csr_of_first.as_str().to_owned());
    let first = race(&server, &bundle, [first]).await.remove(0).unwrap();
    let own = Credential::Certificate { chain_pem: first.chain_pem.clone(), key_pem: key.as_str().to_owned() };
    let results = race(&server, &bundle, (0..CALLERS).map(|_| (own.clone(), csr())).collect::<Vec<_>>()).await;
    let arrived: HashSet<String> = results.iter().map(|r| serial(r.as_ref().unwrap())).collect();
    assert_eq!(arrived.len(), CALLERS);
    assert_eq!(logged(&ca, "certificate").into_iter().collect::<HashSet<_>>(), arrived);
    for entry in ca.log().iter().filter(|e| e["credential"] == "certificate") {
        assert_eq!((&entry["id"], &entry["credential_ref"]), (&serde_json::json!(ID), &serial(&first).into()));
    }
}
