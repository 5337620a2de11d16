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

/// One key says nothing about who its holder is, so each token counts for itself: no two certificates share a serial,
/// and none is unrecorded.
#[tokio::test]
async fn of_a_hundred_callers_with_one_key_each_gets_a_certificate_and_a_record_of_its_own() {
    let ca = Ca::new();
    let (server, bundle, one) = (ca.serve(), ca.bundle(), csr());
    let callers: Vec<_> = ca.tokens(CALLERS).into_iter().map(|token| (Credential::Token(token), one.clone())).collect();
    let results = race(&server, &bundle, callers).await;
    let arrived: HashSet<String> = results.iter().map(|r| serial(r.as_ref().unwrap())).collect();
    assert_eq!(arrived.len(), CALLERS, "two certificates with one serial");
    let logged = logged(&ca, "token");
    assert_eq!(logged.len(), CALLERS);
    assert_eq!(logged.into_iter().collect::<HashSet<_>>(), arrived);
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
