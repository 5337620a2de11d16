//! What the CA publishes, taken up on a paused clock: which documents change what, and what follows for our own certificate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outrigger_identity::{
    documents::{Document, Documents, ReadCause, ReadError, Wanted},
    enrol::EnrolCause,
};
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    tests_ca::{Answer, HOUR, SOON, World},
    *,
};
use crate::tls::{
    PeerRules,
    test_pki::{Leaf, Pki, TestCa, eventually, write_identity},
    verify_chain,
};

const PEER: &str = "spiffe://mesh.example/ns/shop/sa/peer";
/// A hint of 30 s, its jitter, and a tick.
pub(super) const NEXT_READING: Duration = Duration::from_secs(35);

/// What the CA of a test publishes; nothing at first, as istiod.
#[derive(Default)]
pub(super) struct Publishes {
    bundle: Option<String>,
    lists: Option<String>,
    pub(super) away: bool,
    /// The lists do not come.
    lists_hang: bool,
    /// The roots that each reading was authenticated by.
    pub(super) readings: Vec<String>,
}

impl Publishes {
    pub(super) fn answer(
        &mut self,
        address: &str,
        bundle_pem: &str,
        wanted: &[Wanted<'_>],
    ) -> Result<Documents, ReadError> {
        assert_eq!(wanted.iter().map(|want| want.path).collect::<Vec<_>>(), ["/bundle.json", "/crl.pem"]);
        self.readings.push(bundle_pem.to_owned());
        if self.away {
            let cause = ReadCause::Connection(EnrolCause::Connect(std::io::ErrorKind::ConnectionRefused.into()));
            return Err(ReadError { address: address.to_owned(), path: wanted[0].path.to_owned(), cause });
        }
        let give = |(text, want): (&Option<String>, &Wanted<'_>)| match text {
            None => Document::Absent,
            Some(text) if want.etag == Some(text) => Document::Unchanged,
            Some(text) => Document::Text { body: text.clone().into(), etag: Some(text.clone()) },
        };
        let mut all: Documents = [&self.bundle, &self.lists].into_iter().zip(wanted).map(give).map(Ok).collect();
        if self.lists_hang {
            let (address, path) = (address.to_owned(), wanted[1].path.to_owned());
            all[1] = Err(ReadError { address, path, cause: ReadCause::TimedOut });
        }
        Ok(all)
    }
}

/// A bundle document; roots whose name begins with "tainted" are marked.
pub(super) fn document(sequence: u64, roots: &[(&TestCa, bool)]) -> String {
    let key = |(root, tainted): &(&TestCa, bool)| {
        let der = pem::parse(&root.pem).unwrap().into_contents();
        let mut key = json!({ "use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)] });
        if *tainted {
            key["outrigger_tainted"] = true.into();
        }
        key
    };
    let keys: Vec<Value> = roots.iter().map(key).collect();
    json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 30 }).to_string()
}

impl World {
    pub(super) fn publish(&self, bundle: String) {
        self.ca.publishes.lock().unwrap().bundle = Some(bundle);
    }

    pub(super) fn publish_lists(&self, lists: String) {
        self.ca.publishes.lock().unwrap().lists = Some(lists);
    }

    pub(super) fn readings(&self) -> usize {
        self.ca.publishes.lock().unwrap().readings.len()
    }

    pub(super) async fn enrolled(&self) -> IdentityHandle {
        let handle = self.start();
        eventually(SOON, "an identity", || handle.current().is_some()).await;
        handle
    }
}

fn roots(handle: &IdentityHandle) -> Vec<(String, bool)> {
    handle.status().roots.iter().map(|root| (root.sha256.clone(), root.tainted)).collect()
}

fn fingerprint(root: &TestCa) -> String {
    TrustBundle::from_pem(root.pem.as_bytes()).unwrap().roots()[0].sha256.clone()
}

/// How a handshake with this peer would end.
fn judge(handle: &IdentityHandle, peer: &Identity) -> Result<(), &'static str> {
    let (leaf, intermediates) = peer.key.cert.split_first().unwrap();
    let rules = PeerRules::of(&handle.current().unwrap());
    for usage in [Usage::Server, Usage::Client] {
        verify_chain(leaf, intermediates, &rules, UnixTime::now(), usage).map_err(|refusal| refusal.code())?;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_the_ca_publishes_is_taken_up_and_kept_for_a_restart_without_it() {
    let world = World::new(24 * HOUR, vec![]);
    let next = Pki::new();
    world.publish(document(1, &[(&world.ca.pki.root, false)]));
    let handle = world.enrolled().await;
    let peer = next.identity(PEER, &[]);
    assert_eq!(judge(&handle, &peer), Err("unknown_root"));
    world.publish(document(2, &[(&world.ca.pki.root, false), (&next.root, false)]));
    eventually(NEXT_READING, "both roots", || roots(&handle).len() == 2).await;
    assert_eq!(judge(&handle, &peer), Ok(()));
    assert_eq!(handle.status().last_error, None);

    // Every half a minute, give or take a tenth, and never without need more often.
    let (before, generation) = (world.readings(), handle.current().unwrap().generation);
    sleep(Duration::from_secs(600)).await;
    let readings = world.readings() - before;
    assert!((17..=23).contains(&readings), "{readings} readings in 10 min");
    assert_eq!(handle.current().unwrap().generation, generation, "an unchanged document was published again");

    drop(handle);
    world.ca.publishes.lock().unwrap().away = true;
    let handle = world.start();
    assert_eq!((roots(&handle).len(), judge(&handle, &peer)), (2, Ok(())), "at once, and without the CA");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(roots(&handle).len(), 2);
    assert!(handle.status().last_error.unwrap().contains("cannot read /bundle.json of the CA ca.mesh:15012"));
    assert_eq!(handle.status().ready(), Ok(()), "a CA that is away costs nothing");
    world.ca.publishes.lock().unwrap().away = false;
    // The hint is not known yet: it is a minute.
    eventually(Duration::from_secs(62), "no error", || handle.status().last_error.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_without_documents_is_asked_once_a_certificate() {
    let world = World::new(HOUR, vec![]);
    let handle = world.enrolled().await;
    sleep(Duration::from_secs(25 * 60)).await;
    assert_eq!(world.readings(), 1);
    sleep(Duration::from_secs(10 * 60)).await;
    assert_eq!((handle.renewals().0, world.readings()), (2, 2));
    assert_eq!(handle.status().last_error, None);
    // It was replaced by one that has some.
    world.publish(document(1, &[(&world.ca.pki.root, false), (&Pki::new().root, false)]));
    eventually(Duration::from_secs(34 * 60), "the documents", || roots(&handle).len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_document_changes_nothing_and_is_told_until_a_good_one_comes() {
    let world = World::new(24 * HOUR, vec![]);
    let root = &world.ca.pki.root;
    let good = document(5, &[(root, false)]);
    world.publish(good.clone());
    let list = world.ca.pki.intermediate.crl(3, &[]);
    world.publish_lists(list.clone());
    let handle = world.enrolled().await;
    eventually(SOON, "a reading", || handle.status().trust_read.is_some()).await;
    let generation = handle.current().unwrap().generation;
    let kept = fs::read(world.config.dir.join("bundle.pem")).unwrap();

    let stranger = TestCa::root_of("stranger", "spiffe://other.example");
    let with_stranger = document(6, &[(root, false), (&stranger, false)]);
    let impostor = TestCa::root("mesh root");
    let forged = {
        // The issuer's name and key id, and somebody else's signature.
        let list = pem::parse(world.ca.pki.intermediate.crl(2, &[])).unwrap();
        let mut der = list.contents().to_vec();
        *der.last_mut().unwrap() ^= 1;
        super::bundle::to_pem("X509 CRL", &der)
    };
    for (bundle, lists, words) in [
        (String::new(), &list, "/bundle.json of the CA ca.mesh:15012 changes nothing: it is no SPIFFE bundle document"),
        ("<html>".to_owned(), &list, "it is no SPIFFE bundle document"),
        (json!({ "keys": [] }).to_string(), &list, "it holds no certificate"),
        (with_stranger, &list, "is of spiffe://other.example, and ours is mesh.example"),
        (document(4, &[(&impostor, false)]), &list, "it is older than one that was read before"),
        (good.clone(), &forged, "/crl.pem of the CA ca.mesh:15012 changes nothing: the list of CN=mesh intermediate"),
        (good.clone(), &String::new(), "it holds no revocation list"),
        (good.clone(), &"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n".to_owned(), "it is not PEM"),
        (good.clone(), &super::bundle::to_pem("X509 CRL", b"\x30\x00"), "revocation list 1 of it cannot be used"),
    ] {
        world.publish(bundle.clone());
        world.publish_lists(lists.clone());
        eventually(NEXT_READING, words, || handle.status().last_error.is_some_and(|e| e.contains(words))).await;
        assert_eq!(roots(&handle), [(fingerprint(root), false)], "after {bundle}");
        assert_eq!(handle.current().unwrap().generation, generation, "after {bundle}");
        assert_eq!(fs::read(world.config.dir.join("bundle.pem")).unwrap(), kept, "after {bundle}");
    }
    world.publish(good);
    world.publish_lists(list);
    eventually(NEXT_READING, "no error", || handle.status().last_error.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_document_is_a_replicas_until_the_third_in_a_row() {
    let world = World::new(24 * HOUR, vec![]);
    let (root, next) = (&world.ca.pki.root, Pki::new());
    world.publish(document(9, &[(root, false), (&next.root, false)]));
    let handle = world.enrolled().await;
    eventually(SOON, "both roots", || roots(&handle).len() == 2).await;
    world.publish(document(8, &[(root, false)]));
    let before = world.readings();
    eventually(NEXT_READING, "a reading", || world.readings() > before).await;
    assert_eq!(roots(&handle).len(), 2, "one replica was behind");
    // From a backup: it stays so.
    eventually(2 * NEXT_READING, "one root", || roots(&handle).len() == 1).await;
    assert_eq!(world.readings(), before + 3);
}

#[tokio::test(start_paused = true)]
async fn under_a_tainted_root_the_certificate_is_renewed_at_once() {
    let world = World::new(24 * HOUR, vec![]);
    let (root, next) = (&world.ca.pki.root, Pki::new());
    world.publish(document(1, &[(root, false), (&next.root, false)]));
    let handle = world.enrolled().await;
    eventually(SOON, "both roots", || roots(&handle).len() == 2).await;
    world.publish(document(2, &[(root, true), (&next.root, false)]));
    let next_root = fingerprint(&next.root);
    *world.ca.successor.lock().unwrap() = Some(next);
    eventually(NEXT_READING, "the mark", || roots(&handle).contains(&(fingerprint(root), true))).await;
    let old = world.ca.pki.identity(PEER, &[]);
    assert_eq!(judge(&handle, &old), Ok(()), "what leads to a tainted root is good");
    eventually(Duration::from_secs(31), "a renewal", || handle.renewals().0 == 2).await;
    let warnings = handle.status().warnings;
    assert!(!warnings.iter().any(|w| w.contains("out of use")), "{warnings:?}");
    assert!(roots(&handle).contains(&(fingerprint(root), true)), "a renewal keeps the marks");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(handle.renewals(), (2, 0));

    // Out of the bundle: refused, and no later certificate brings it back.
    let successor = world.ca.successor.lock().unwrap().take().unwrap();
    world.publish(document(3, &[(&successor.root, false)]));
    eventually(NEXT_READING, "one root", || roots(&handle) == [(next_root.clone(), false)]).await;
    assert_eq!(judge(&handle, &old), Err("unknown_root"));
    eventually(13 * HOUR, "a renewal under the old root", || handle.renewals().1 == 1).await;
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("its root \"CN=mesh root\" was taken out of the CA's bundle"), "{error}");
    assert_eq!(roots(&handle), [(next_root, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_goes_on_issuing_under_a_tainted_root_is_not_stormed() {
    let world = World::new(24 * HOUR, vec![]);
    let handle = world.enrolled().await;
    world.publish(document(1, &[(&world.ca.pki.root, true), (&Pki::new().root, false)]));
    // This CA had nothing to read when the certificate came.
    drop(handle);
    let handle = world.start();
    eventually(Duration::from_secs(35), "a renewal", || handle.renewals().0 == 1).await;
    sleep(Duration::from_secs(600)).await;
    let renewals = handle.renewals().0;
    assert!((8..=13).contains(&renewals), "{renewals} renewals in 10 min");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_peer_is_refused_also_after_a_restart_and_by_an_older_list() {
    let world = World::new(24 * HOUR, vec![]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    let lists = |number, revoked: &[&str]| ca.root.crl(1, &[]) + &ca.intermediate.crl(number, revoked);
    world.publish_lists(lists(255, &[]));
    let handle = world.enrolled().await;
    let (bad, good) = (ca.identity(PEER, &[]), ca.identity(PEER, &[]));
    eventually(SOON, "the lists", || handle.status().revocation_lists.len() == 2).await;
    assert_eq!(judge(&handle, &bad), Ok(()));
    world.publish_lists(lists(256, &[&bad.serial]));
    eventually(NEXT_READING, "a refusal", || judge(&handle, &bad) == Err("revoked")).await;
    assert_eq!(judge(&handle, &good), Ok(()));

    // A replica that is behind does not take it back.
    world.publish_lists(lists(255, &[]));
    sleep(2 * NEXT_READING).await;
    assert_eq!(judge(&handle, &bad), Err("revoked"));
    drop(handle);
    world.ca.publishes.lock().unwrap().away = true;
    let handle = world.start();
    assert_eq!((judge(&handle, &bad), judge(&handle, &good)), (Err("revoked"), Ok(())), "at once, and without the CA");
}

/// Lost, put back from a backup, or somebody's who may write the folder: with a CA the file is a copy.
#[tokio::test(start_paused = true)]
async fn whoever_takes_the_kept_lists_away_takes_no_revocation_back() {
    let world = World::new(24 * HOUR, vec![]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    let (bad, old) = (ca.identity(PEER, &[]), ca.intermediate.crl(1, &[]));
    world.publish_lists(ca.intermediate.crl(2, &[&bad.serial]));
    let handle = world.enrolled().await;
    eventually(SOON, "a refusal", || judge(&handle, &bad) == Err("revoked")).await;
    let path = world.config.dir.join("crl.pem");
    fs::write(&path, old).unwrap();
    sleep(2 * NEXT_READING).await;
    assert_eq!(judge(&handle, &bad), Err("revoked"), "after an older file");
    fs::remove_file(&path).unwrap();
    sleep(2 * NEXT_READING).await;
    assert_eq!(judge(&handle, &bad), Err("revoked"), "without the file");
}

#[tokio::test(start_paused = true)]
async fn a_ca_from_a_backup_revokes_more_and_takes_nothing_back() {
    let world = World::new(24 * HOUR, vec![]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    let (first, second) = (ca.identity(PEER, &[]), ca.identity(PEER, &[]));
    world.publish_lists(ca.root.crl(1, &[]) + &ca.intermediate.crl(40, &[&first.serial]));
    let handle = world.enrolled().await;
    eventually(SOON, "the first", || judge(&handle, &first) == Err("revoked")).await;
    // It has forgotten the first one, and counts from a lower number.
    world.publish_lists(ca.root.crl(1, &[]) + &ca.intermediate.crl(36, &[&second.serial]));
    eventually(NEXT_READING, "the second", || judge(&handle, &second) == Err("revoked")).await;
    assert_eq!(judge(&handle, &first), Err("revoked"));
    // A replica that does not know the intermediate's list.
    world.publish_lists(ca.root.crl(2, &[]));
    sleep(2 * NEXT_READING).await;
    assert_eq!((judge(&handle, &first), judge(&handle, &second)), (Err("revoked"), Err("revoked")));
    world.publish_lists(ca.intermediate.crl(41, &[&second.serial]));
    eventually(NEXT_READING, "the CA's word counts again", || judge(&handle, &first) == Ok(())).await;
    assert_eq!(judge(&handle, &second), Err("revoked"));
}

#[tokio::test(start_paused = true)]
async fn lists_that_do_not_come_keep_no_root_away_and_a_bad_bundle_no_revocation() {
    let world = World::new(24 * HOUR, vec![]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    world.publish_lists(ca.intermediate.crl(1, &[]));
    let handle = world.enrolled().await;
    eventually(SOON, "a list", || handle.status().revocation_lists.len() == 1).await;
    world.ca.publishes.lock().unwrap().lists_hang = true;
    let next = Pki::new();
    world.publish(document(2, &[(&ca.root, false), (&next.root, false)]));
    eventually(NEXT_READING, "both roots", || roots(&handle).len() == 2).await;
    assert!(handle.status().last_error.unwrap().contains("/crl.pem"));
    world.ca.publishes.lock().unwrap().lists_hang = false;
    let bad = ca.identity(PEER, &[]);
    world.publish("rubbish".to_owned());
    world.publish_lists(ca.intermediate.crl(2, &[&bad.serial]));
    eventually(2 * NEXT_READING, "a refusal", || judge(&handle, &bad) == Err("revoked")).await;
    assert_eq!(roots(&handle).len(), 2);
    assert!(handle.status().last_error.unwrap().contains("/bundle.json"));
}

/// One answer of a proxy, or of an older replica, must not end the following of a CA that publishes.
#[tokio::test(start_paused = true)]
async fn documents_that_are_gone_are_told_and_asked_for_again_soon() {
    let world = World::new(24 * HOUR, vec![]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    world.publish_lists(ca.intermediate.crl(1, &[]));
    let handle = world.enrolled().await;
    eventually(SOON, "a reading", || handle.status().trust_read.is_some()).await;
    let (bundle, lists) = {
        let mut publishes = world.ca.publishes.lock().unwrap();
        (publishes.bundle.take(), publishes.lists.take())
    };
    eventually(NEXT_READING, "it is told", || {
        handle.status().last_error.is_some_and(|why| why.contains("publishes no bundle any more"))
    })
    .await;
    let next = Pki::new();
    world.publish(document(2, &[(&ca.root, false), (&next.root, false)]));
    eventually(NEXT_READING, "both roots", || roots(&handle).len() == 2).await;
    eventually(NEXT_READING, "the lists alone are missing", || {
        handle.status().last_error.is_some_and(|why| why.contains("/crl.pem") && why.contains("not there any more"))
    })
    .await;
    world.ca.publishes.lock().unwrap().lists = lists;
    eventually(NEXT_READING, "no error", || handle.status().last_error.is_none()).await;
    assert!(bundle.is_some());
}

#[tokio::test(start_paused = true)]
async fn our_own_revoked_certificate_gives_way_to_the_token() {
    fn refused() -> EnrolCause {
        EnrolCause::CertificateRefused("revoked".into())
    }
    let world = World::new(24 * HOUR, vec![Answer::Issue(PEER), Answer::Fail(refused), Answer::Issue(PEER)]);
    let ca = &world.ca.pki;
    world.publish(document(1, &[(&ca.root, false)]));
    let handle = world.enrolled().await;
    let first = handle.current().unwrap().serial.clone();
    world.publish_lists(ca.intermediate.crl(1, &[&first]));
    eventually(Duration::from_secs(70), "another certificate", || handle.current().unwrap().serial != first).await;
    assert_eq!(world.ca.credentials(), ["first-token", "certificate", "first-token"]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_knows_the_ca_by_the_roots_in_use() {
    let world = World::new(HOUR, vec![]);
    let next = Pki::new();
    world.publish(document(1, &[(&world.ca.pki.root, false), (&next.root, false)]));
    let handle = world.enrolled().await;
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(handle.renewals(), (2, 0));
    let of = |pem: &str| TrustBundle::from_pem(pem.as_bytes()).unwrap().roots().len();
    let requests = world.ca.requests.lock().unwrap();
    // identity.ca.bundle has the old root alone, and may never hear of the new one.
    assert_eq!(requests.iter().map(|r| of(&r.bundle_pem)).collect::<Vec<_>>(), [1, 2]);
    let publishes = world.ca.publishes.lock().unwrap();
    assert_eq!(publishes.readings.iter().map(|pem| of(pem)).collect::<Vec<_>>()[..2], [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_operators_lists_are_read_from_the_folder() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    write_identity(dir.path(), &pki.intermediate.issue(&Leaf::new(PEER, &[])), &pki.root.pem);
    let handle = start(&IdentityConfig { dir: dir.path().to_owned(), ..IdentityConfig::default() });
    let peer = pki.identity(PEER, &[]);
    assert_eq!(judge(&handle, &peer), Ok(()));
    let path = dir.path().join("crl.pem");
    let pick_up = Duration::from_secs(5);
    fs::write(&path, pki.intermediate.crl(1, &[&peer.serial])).unwrap();
    wait_for(pick_up, "a refusal", || judge(&handle, &peer) == Err("revoked")).await;
    // Half a file, and one of another issuer's making, change nothing.
    fs::write(&path, "rubbish").unwrap();
    wait_for(pick_up, "an error", || handle.status().last_error.is_some()).await;
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("crl.pem cannot be used: it holds no revocation list") && error.contains("curl"), "{error}");
    assert_eq!(judge(&handle, &peer), Err("revoked"));
    // An issuer of the same name with another key has no say, and none of ours is hurt by its list.
    let other = TestCa::root("mesh root").intermediate("mesh intermediate");
    fs::write(&path, other.crl(1, &[&peer.serial])).unwrap();
    wait_for(pick_up, "the other's list", || judge(&handle, &peer) == Ok(())).await;
    fs::remove_file(&path).unwrap();
    wait_for(pick_up, "no list", || handle.status().revocation_lists.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn bad_lists_at_the_start_are_told_until_they_are_mended() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    write_identity(dir.path(), &pki.intermediate.issue(&Leaf::new(PEER, &[])), &pki.root.pem);
    fs::write(dir.path().join("crl.pem"), "rubbish").unwrap();
    let handle = start(&IdentityConfig { dir: dir.path().to_owned(), ..IdentityConfig::default() });
    let told = || handle.status().last_error.is_some_and(|why| why.contains("crl.pem"));
    assert!(told());
    // Another certificate mends nothing.
    write_identity(dir.path(), &pki.intermediate.issue(&Leaf::new(PEER, &[])), &pki.root.pem);
    wait_for(Duration::from_secs(5), "the certificate", || handle.current().unwrap().generation == 2).await;
    assert!(told());
    fs::write(dir.path().join("crl.pem"), pki.intermediate.crl(1, &[])).unwrap();
    wait_for(Duration::from_secs(5), "no error", || handle.status().last_error.is_none()).await;
}

#[test]
fn a_revoked_intermediate_takes_what_it_signed_along() {
    let pki = Pki::new();
    let peer = pki.identity(PEER, &[]);
    let serial = {
        let pem = pem::parse(&pki.intermediate.pem).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(pem.contents()).unwrap();
        certificate::hex(certificate.raw_serial())
    };
    let judge = |lists: &str| {
        let lists = Arc::new(RevocationLists::from_pem(lists.as_bytes()).unwrap());
        let bundle = TrustBundle::from_pem(pki.root.pem.as_bytes()).unwrap().marked(&Default::default(), lists);
        let (leaf, intermediates) = peer.key.cert.split_first().unwrap();
        bundle.verify(leaf, intermediates, UnixTime::now(), Usage::Client).map(drop)
    };
    assert_eq!(judge(&pki.root.crl(1, &[])), Ok(()));
    assert_eq!(judge(&pki.root.crl(2, &[&serial])), Err(PathFault::Revoked));
    // The intermediate cannot revoke itself, nor the root the leaf.
    assert_eq!(judge(&(pki.intermediate.crl(1, &[&serial]) + &pki.root.crl(1, &[&peer.serial]))), Ok(()));
}

/// As [`eventually`], in real time: the age of a file is the system's affair, not the test's clock's.
async fn wait_for(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + limit;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
        sleep(Duration::from_millis(100)).await;
    }
}
