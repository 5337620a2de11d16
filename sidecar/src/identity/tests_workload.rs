//! What of a Workload API's answers is taken, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use outrigger_identity::workload_api::{Endpoint, Update, X509Svid};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};

use super::{workload::Workload, *};
use crate::tls::test_pki::{Leaf, Pair, Pki, TestCa};

const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";

fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn svid(id: &str, pair: &Pair, roots: &str) -> X509Svid {
    X509Svid {
        id: id.parse().unwrap(),
        chain: ders(&pair.chain_pem),
        key: PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap(),
        roots: ders(roots),
        hint: String::new(),
    }
}

fn update(svids: Vec<X509Svid>) -> Update {
    Update { svids, revocation_lists: Vec::new(), federated: Vec::new() }
}

struct World {
    pki: Pki,
    workload: Workload,
    shared: Arc<Shared>,
}

impl World {
    fn new(config: &str) -> Self {
        let config: IdentityConfig = serde_json::from_str(config).unwrap();
        let shared = Shared::new("a test".to_owned());
        let endpoint = Endpoint::Unix("/nowhere/agent.sock".into());
        Self { pki: Pki::new(), workload: Workload::new(&config, endpoint, shared.clone()), shared }
    }

    fn good(&self, id: &str) -> X509Svid {
        svid(id, &self.pki.intermediate.issue(&Leaf::new(id, &["orders.mesh"])), &self.pki.root.pem)
    }

    /// Takes it, and gives what is said of it.
    fn take(&mut self, update: Update) -> IdentityStatus {
        self.workload.updated(update, SystemTime::now());
        self.shared.status(SystemTime::now())
    }
}

#[test]
fn the_first_identity_is_taken_or_the_one_that_is_asked_for() {
    let other = "spiffe://mesh.example/other";
    let mut world = World::new("{}");
    let both = update(vec![world.good(ID), world.good(other)]);
    let status = world.take(both);
    assert_eq!(status.certificate.unwrap().id.to_string(), ID);
    assert_eq!((status.state, status.renewals_ok, status.last_error), (IdentityState::Valid, 1, None));

    let mut world = World::new(&format!("{{\"id\": \"{other}\"}}"));
    let both = update(vec![world.good(ID), world.good(other)]);
    assert_eq!(world.take(both).certificate.unwrap().id.to_string(), other);
    let one = update(vec![world.good(ID)]);
    let status = world.take(one);
    let why = status.last_error.unwrap();
    assert!(why.contains(&format!("has no {other}, but {ID}")), "{why}");
    assert_eq!(status.certificate.unwrap().id.to_string(), other, "the one in use stays");
}

#[test]
fn what_peers_would_refuse_is_refused_in_words_and_what_is_in_use_stays() {
    let mut world = World::new("{}");
    let first = update(vec![world.good(ID)]);
    let serial = world.take(first).certificate.unwrap().serial;
    let issue = |leaf: &Leaf| world.pki.intermediate.issue(leaf);
    let root = world.pki.root.pem.clone();
    let right = Leaf::new(ID, &[]);
    let mut old = right.clone();
    (old.from, old.until) = (-7200, -3600);
    let mut early = right.clone();
    (early.from, early.until) = (3600, 7200);
    let (pair, another) = (issue(&right), issue(&right));
    let mixed = Pair { chain_pem: pair.chain_pem.clone(), key_pem: another.key_pem.clone() };
    let strange = TestCa::root_of("strange", "spiffe://other.example");
    let mut forged = update(vec![svid(ID, &issue(&right), &root)]);
    // A list under the intermediate's name and key id that it has not signed.
    let mut list = pem::parse(world.pki.intermediate.crl(1, &["01"])).unwrap().into_contents();
    *list.last_mut().unwrap() ^= 1;
    forged.revocation_lists = vec![list];
    let mut garbage = update(vec![svid(ID, &issue(&right), &root)]);
    garbage.revocation_lists = vec![b"hello".to_vec()];
    let cases = [
        (update(vec![svid(ID, &issue(&old), &root)]), "expired"),
        (update(vec![svid(ID, &issue(&early), &root)]), "becomes valid in"),
        (update(vec![svid(ID, &mixed, &root)]), "its private key is of another certificate"),
        (
            update(vec![svid(ID, &issue(&Leaf::new("spiffe://mesh.example/b", &[])), &root)]),
            "is for spiffe://mesh.example/b",
        ),
        (update(vec![svid(ID, &issue(&right), &TestCa::root("another").pem)]), "peers will refuse"),
        (update(vec![svid(ID, &issue(&right), &(root.clone() + &strange.pem))]), "is of spiffe://other.example"),
        (forged, "is not signed by it"),
        (garbage, "its revocation lists"),
    ];
    for (at, (bad, words)) in cases.into_iter().enumerate() {
        let status = world.take(bad);
        let why = status.last_error.unwrap();
        assert!(why.contains(words) && why.contains("unix:///nowhere/agent.sock"), "{why} does not say {words:?}");
        assert_eq!((status.state, status.renewals_failed), (IdentityState::Valid, at as u64 + 1));
        assert_eq!(status.certificate.unwrap().serial, serial);
    }
    let again = update(vec![world.good(ID)]);
    let status = world.take(again);
    assert_eq!(status.last_error, None);
    assert_ne!(status.certificate.unwrap().serial, serial);
}

#[test]
fn roots_and_lists_follow_the_agent_and_the_same_again_is_no_new_generation() {
    let mut world = World::new("{}");
    let pair = world.pki.intermediate.issue(&Leaf::new(ID, &[]));
    let root = world.pki.root.pem.clone();
    let more = root.clone() + &TestCa::root("the next").pem;
    let generation = |status: &IdentityStatus| status.certificate.as_ref().unwrap().generation;
    let one = world.take(update(vec![svid(ID, &pair, &root)]));
    assert_eq!((generation(&one), one.roots.len()), (1, 1));
    let same = world.take(update(vec![svid(ID, &pair, &root)]));
    assert_eq!((generation(&same), same.renewals_ok), (1, 1));
    let two = world.take(update(vec![svid(ID, &pair, &more)]));
    assert_eq!((generation(&two), two.roots.len(), two.renewals_ok), (2, 2, 1));
    let mut with_list = update(vec![svid(ID, &pair, &root)]);
    let list = world.pki.intermediate.crl(1, &["01"]);
    with_list.revocation_lists =
        vec![CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap().as_ref().to_vec()];
    let listed = world.take(with_list);
    assert_eq!((generation(&listed), listed.roots.len(), listed.revocation_lists.len()), (3, 1, 1));
}
