#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::*;
use crate::tls::test_pki::{Leaf, Pki, TestCa, eventually, write_identity};

const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";
/// Two ticks and a bit: one that sees the change, one that sees the files still.
const PICK_UP: Duration = Duration::from_millis(2500);

fn leaf() -> Leaf {
    Leaf::new(ID, &["orders.mesh"])
}

fn folder(pki: &Pki, leaf: &Leaf) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_identity(dir.path(), &pki.intermediate.issue(leaf), &pki.root.pem);
    dir
}

fn watch_files(dir: &Path) -> IdentityHandle {
    start(&IdentityConfig { dir: dir.to_owned(), ..IdentityConfig::default() })
}

fn error_of(dir: &Path) -> String {
    load(dir, None).unwrap_err().to_string()
}

fn serial(handle: &IdentityHandle) -> String {
    handle.current().unwrap().serial.clone()
}

#[test]
fn a_folder_of_three_files_is_an_identity() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let identity = load(dir.path(), None).unwrap();
    assert_eq!(identity.id.as_str(), ID);
    assert_eq!(identity.trust_domain.as_str(), "mesh.example");
    assert_eq!(identity.dns_names, ["orders.mesh"]);
    assert_eq!(identity.key.cert.len(), 2);
    assert!(identity.is_valid_now());
    assert!(identity.serial.len() >= 14, "{}", identity.serial);
}

#[test]
fn what_is_wrong_with_a_folder_is_said_with_the_file_and_the_remedy() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let path = |name: &str| dir.path().join(name);
    let says = |parts: &[&str]| {
        let error = error_of(dir.path());
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
    };

    fs::set_permissions(path("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    says(&["key.pem may be read by every user (mode 0644)", "chmod 600"]);
    fs::set_permissions(path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();

    let other = pki.intermediate.issue(&leaf());
    fs::write(path("key.pem"), &other.key_pem).unwrap();
    says(&["key.pem is not the key of", "cert.pem", "same issuance"]);
    fs::write(path("key.pem"), "no key").unwrap();
    says(&["key.pem holds no usable private key"]);
    fs::remove_file(path("key.pem")).unwrap();
    says(&["key.pem is missing", "identity.ca"]);

    write_identity(dir.path(), &other, "");
    says(&["bundle.pem cannot be used: it holds no certificate", "bundle show"]);
    write_identity(dir.path(), &other, &other.chain_pem);
    says(&["bundle.pem cannot be used: certificate 1 of it cannot be a root"]);

    let mut two = leaf();
    two.uris.push("spiffe://mesh.example/admin".into());
    write_identity(dir.path(), &pki.intermediate.issue(&two), &pki.root.pem);
    says(&["cert.pem cannot be our identity", "2 URI names", "spiffe://mesh.example/admin"]);
    fs::write(path("cert.pem"), "").unwrap();
    says(&["cert.pem holds no certificate"]);
    fs::write(path("cert.pem"), "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
    says(&["cert.pem is not PEM"]);
}

#[test]
fn no_error_or_debug_output_shows_the_key() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let key = fs::read_to_string(dir.path().join("key.pem")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    let identity = load(dir.path(), None).unwrap();
    let handle = IdentityHandle::fixed(identity.clone());
    let status = serde_json::to_string(&handle.status()).unwrap();
    assert!(!format!("{identity:?} {:?} {status}", identity.key).contains(secret));
    assert!(status.contains(ID) && status.contains("mesh root"), "{status}");
}

#[tokio::test]
async fn a_key_that_the_group_may_read_works_with_a_warning() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    fs::set_permissions(dir.path().join("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    let handle = watch_files(dir.path());
    assert!(handle.current().is_some());
    assert!(handle.status().warnings.iter().any(|w| w.contains("may be read by its group")), "{:?}", handle.status());
}

#[tokio::test]
async fn a_certificate_outside_our_own_bundle_works_with_a_warning() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    fs::write(dir.path().join("bundle.pem"), TestCa::root("successor").pem).unwrap();
    let handle = watch_files(dir.path());
    assert!(handle.current().is_some());
    assert!(handle.status().warnings[0].contains("does not pass our own bundle"), "{:?}", handle.status());
}

#[tokio::test]
async fn an_expired_certificate_loads_and_the_status_says_so() {
    let pki = Pki::new();
    let mut old = leaf();
    (old.from, old.until) = (-7200, -3600);
    let dir = folder(&pki, &old);
    let handle = watch_files(dir.path());
    let identity = handle.current().unwrap();
    assert!(!identity.is_valid_now());
    let status = handle.status();
    assert_eq!(status.state, IdentityState::Expired);
    assert_eq!(status.certificate.as_ref().unwrap().remaining_seconds, 0);
    assert!(status.ready().unwrap_err().contains("expired 1 h ago"), "{:?}", status.ready());
}

#[test]
fn validity_includes_both_its_first_and_its_last_second() {
    let pki = Pki::new();
    let identity = load(folder(&pki, &leaf()).path(), None).unwrap();
    assert!(identity.check_valid(identity.not_before).is_ok());
    assert!(identity.check_valid(identity.not_before - Duration::from_secs(1)).is_err());
    assert!(identity.check_valid(identity.not_after + Duration::from_millis(900)).is_ok());
    assert!(identity.check_valid(identity.not_after + Duration::from_secs(1)).is_err());
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_picked_up_and_told_to_subscribers() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let handle = watch_files(dir.path());
    let mut told = handle.subscribe();
    told.mark_unchanged();
    let (first, generation) = (serial(&handle), handle.current().unwrap().generation);

    write_identity(dir.path(), &pki.intermediate.issue(&leaf()), &pki.root.pem);
    tokio::time::timeout(PICK_UP, told.changed()).await.expect("not picked up").unwrap();
    assert_ne!(serial(&handle), first);
    assert_eq!(handle.current().unwrap().generation, generation + 1);

    // Nothing changed: nothing is published again.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!told.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_folder_swapped_behind_a_symlink_is_picked_up() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        write_identity(&dir.path().join(name), &pki.intermediate.issue(&leaf()), &pki.root.pem);
    }
    symlink("one", dir.path().join("..data")).unwrap();
    for name in ["cert.pem", "key.pem", "bundle.pem"] {
        symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
    }
    let handle = watch_files(dir.path());
    let first = serial(&handle);
    symlink("two", dir.path().join("..new")).unwrap();
    fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    eventually(PICK_UP, "the other folder's serial", || serial(&handle) != first).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_reload_keeps_the_identity_and_says_so_until_it_is_put_right() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let handle = watch_files(dir.path());
    let first = serial(&handle);
    fs::write(dir.path().join("cert.pem"), "rubbish").unwrap();
    eventually(2 * PICK_UP, "an error", || handle.status().last_error.is_some()).await;
    assert!(handle.status().last_error.unwrap().contains("cert.pem holds no certificate"));
    assert_eq!(serial(&handle), first);
    assert_eq!(handle.status().ready(), Ok(()));

    write_identity(dir.path(), &pki.intermediate.issue(&leaf()), &pki.root.pem);
    eventually(PICK_UP, "the new identity", || serial(&handle) != first).await;
    assert_eq!(handle.status().last_error, None);
}

/// What a deployment that goes back, or a clock, puts into the folder.
#[tokio::test(start_paused = true)]
async fn a_pair_that_is_out_of_date_does_not_replace_a_good_one() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let clock_start = (SystemTime::now(), tokio::time::Instant::now());
    let config = IdentityConfig { dir: dir.path().to_owned(), ..IdentityConfig::default() };
    let handle = start_with(&config, None, Arc::new(move || clock_start.0 + clock_start.1.elapsed()));
    let first = serial(&handle);
    let (mut over, mut early) = (leaf(), leaf());
    (over.from, over.until) = (-7_200, -3_600);
    (early.from, early.until) = (600, 7_200);
    let other = TestCa::root("another");
    let both = pki.root.pem.clone() + &other.pem;
    for (wrong, words) in [(&over, "expired at"), (&early, "is not valid before")] {
        write_identity(dir.path(), &pki.intermediate.issue(wrong), &both);
        eventually(2 * PICK_UP, words, || handle.status().last_error.is_some_and(|why| why.contains(words))).await;
        assert_eq!(serial(&handle), first);
        assert_eq!(handle.status().ready(), Ok(()));
        assert_eq!(handle.status().roots.len(), 2, "its bundle counts all the same");
    }
    // As soon as it is valid, without another change of the files.
    eventually(Duration::from_secs(700), "the second is taken", || serial(&handle) != first).await;
    assert_eq!(handle.status().last_error, None);
    // One that is over is no worse than one that is.
    tokio::time::sleep(Duration::from_secs(7_200)).await;
    let second = serial(&handle);
    write_identity(dir.path(), &pki.intermediate.issue(&over), &pki.root.pem);
    eventually(2 * PICK_UP, "the third is taken", || serial(&handle) != second).await;
}

#[test]
fn a_chain_lives_as_long_as_the_first_of_its_certificates_to_end() {
    let pki = Pki::new();
    let (soon, late) = (TestCa::root("a root"), pki.root.pem.clone());
    let short = soon.intermediate_with("short", |params| {
        params.not_after = crate::tls::test_pki::in_seconds(-10);
        params.not_before = crate::tls::test_pki::in_seconds(-30);
    });
    let dir = tempfile::tempdir().unwrap();
    write_identity(dir.path(), &short.issue(&leaf()), &(soon.pem + &late));
    let identity = load(dir.path(), None).unwrap();
    assert!(!identity.is_valid_now(), "its intermediate is over");
    let shared = Shared::new("a test".to_owned());
    shared.publish(identity);
    let status = shared.status(SystemTime::now());
    assert_eq!(status.state, IdentityState::Expired);
    assert!(status.ready().unwrap_err().contains("expired"), "{:?}", status.ready());
}

#[tokio::test(start_paused = true)]
async fn files_replaced_one_after_another_are_no_error() {
    let pki = Pki::new();
    let dir = folder(&pki, &leaf());
    let handle = watch_files(dir.path());
    let first = serial(&handle);
    let pair = pki.intermediate.issue(&leaf());
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::write(dir.path().join("cert.pem"), &pair.chain_pem).unwrap();
    // Exactly one tick, the one at 1 s, sees the pair that does not match.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((handle.status().last_error, serial(&handle)), (None, first.clone()));
    fs::write(dir.path().join("key.pem"), &pair.key_pem).unwrap();
    eventually(PICK_UP, "the new identity", || serial(&handle) != first).await;
    assert_eq!(handle.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_missing_folder_is_waited_for() {
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("identity");
    let handle = watch_files(&inner);
    assert!(handle.current().is_none());
    assert!(handle.status().ready().unwrap_err().contains("cert.pem is missing"), "{:?}", handle.status());
    fs::create_dir(&inner).unwrap();
    write_identity(&inner, &pki.intermediate.issue(&leaf()), &pki.root.pem);
    eventually(PICK_UP, "an identity", || handle.current().is_some()).await;
    assert_eq!(handle.status().ready(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_new_bundle_decides_the_next_handshake() {
    use crate::tls::{PeerRules, verify_chain};
    let (old, new) = (Pki::new(), Pki::new());
    let dir = folder(&old, &leaf());
    let handle = watch_files(dir.path());
    let peer = new.identity("spiffe://mesh.example/peer", &[]);
    let accepted = || {
        let (leaf, intermediates) = peer.key.cert.split_first().unwrap();
        let rules = PeerRules::of(&handle.current().unwrap());
        verify_chain(leaf, intermediates, &rules, rustls::pki_types::UnixTime::now(), Usage::Client)
    };
    assert_eq!(accepted().unwrap_err().code(), "unknown_root");
    fs::write(dir.path().join("bundle.pem"), format!("{}{}", old.root.pem, new.root.pem)).unwrap();
    eventually(PICK_UP, "a bundle of two", || handle.status().roots.len() == 2).await;
    assert!(accepted().is_ok());
    fs::write(dir.path().join("bundle.pem"), &old.root.pem).unwrap();
    eventually(PICK_UP, "a bundle of one", || handle.status().roots.len() == 1).await;
    assert_eq!(accepted().unwrap_err().code(), "unknown_root");
}

#[test]
fn keeping_an_identity_makes_the_folder_and_a_private_key_file() {
    let pki = Pki::new();
    let pair = pki.intermediate.issue(&leaf());
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("a/b");
    let material = files::Material {
        chain_pem: pair.chain_pem.into_bytes(),
        key_pem: pair.key_pem.into_bytes(),
        bundle_pem: pki.root.pem.clone().into_bytes(),
    };
    for _ in 0..2 {
        files::persist(&inner, &material).unwrap();
        assert_eq!(load(&inner, None).unwrap().id.as_str(), ID);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner.join("key.pem")), mode(&inner)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 3, "leftovers");
    }
}

#[test]
fn a_root_near_its_end_is_warned_about_by_the_share_of_its_life() {
    let root = TestCa::root_valid("short root", -95, 5);
    let mut short = leaf();
    (short.from, short.until) = (-60, 4);
    let handle = IdentityHandle::fixed(Arc::unwrap_or_clone(root.identity(&short, &root.pem)));
    let warnings = handle.status().warnings;
    assert!(warnings[0].contains("short root") && warnings[0].contains("expires in"), "{warnings:?}");
    let later = handle.shared.status(SystemTime::now() + Duration::from_secs(10)).warnings;
    assert!(later[0].contains("has expired"), "{later:?}");
}

#[test]
fn times_read_as_people_write_them() {
    assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)), "2023-11-14T22:13:20Z");
    for (seconds, words) in [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h"), (90_000, "1 d 1 h")] {
        assert_eq!(words_for(Duration::from_secs(seconds)), words);
    }
}
