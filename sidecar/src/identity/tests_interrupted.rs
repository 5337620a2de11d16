//! What a writer that was stopped has left: found by its successor, and by nobody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::time::sleep;

use super::{
    kept::{beside, load_kept},
    tests_ca::{HOUR, ID, SOON, World, serial, unavailable},
    *,
};
use crate::tls::test_pki::{Leaf, Pair, Pki, eventually, write_identity};

fn leaf() -> Leaf {
    Leaf::new(ID, &["orders.mesh"])
}

/// What a process with `identity.ca` starts with.
fn kept(dir: &Path) -> Result<Identity, IdentityError> {
    load_kept(dir, None, SystemTime::now()).map(|loaded| loaded.identity)
}

fn why_not(dir: &Path) -> String {
    kept(dir).unwrap_err().to_string()
}

fn assert_three_files(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(names.len() == 3 && names.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{names:?}");
}

/// Puts a whole identity beside its places.
fn leave_beside(dir: &Path, pair: &Pair, root: &str) {
    fs::create_dir_all(dir).unwrap();
    for (name, text) in [("bundle.pem", root), ("cert.pem", &pair.chain_pem), ("key.pem", &pair.key_pem)] {
        fs::write(beside(dir, name), text).unwrap();
        fs::set_permissions(beside(dir, name), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn every_point_where_a_crash_can_stop_a_renewal_leaves_a_pair_that_matches() {
    let pki = Pki::new();
    let (before, after) = (pki.intermediate.issue(&leaf()), pki.intermediate.issue(&leaf()));
    let serial_of = |pair: &Pair| {
        let dir = tempfile::tempdir().unwrap();
        write_identity(dir.path(), pair, &pki.root.pem);
        load(dir.path(), None).unwrap().serial
    };
    // How many of the renames (bundle, cert, key) had happened.
    for renames in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        write_identity(dir.path(), &before, &pki.root.pem);
        let new = [("bundle.pem", &pki.root.pem), ("cert.pem", &after.chain_pem), ("key.pem", &after.key_pem)];
        for (at, (name, text)) in new.into_iter().enumerate() {
            let path = dir.path().join(if at < renames { name.to_owned() } else { format!(".{name}.next") });
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let want = serial_of(if renames >= 2 { &after } else { &before });
        for load_number in 1..=2 {
            let loaded = kept(dir.path()).unwrap_or_else(|e| panic!("load {load_number} after {renames} renames: {e}"));
            assert_eq!(loaded.serial, want, "load {load_number} after {renames} renames");
            assert_three_files(dir.path());
        }
        assert_eq!(load(dir.path(), None).unwrap().serial, want, "after {renames} renames");
    }
}

#[test]
fn every_point_where_a_crash_can_stop_a_first_enrolment_leaves_it_to_be_found() {
    let pki = Pki::new();
    let pair = pki.intermediate.issue(&leaf());
    let texts = [("bundle.pem", &pki.root.pem), ("cert.pem", &pair.chain_pem), ("key.pem", &pair.key_pem)];
    let left = |renames: usize, written: usize| {
        let dir = tempfile::tempdir().unwrap();
        for (at, (name, text)) in texts.into_iter().enumerate().take(written) {
            let path = dir.path().join(if at < renames { name.to_owned() } else { format!(".{name}.next") });
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        dir
    };
    for renames in 0..=3 {
        let dir = left(renames, 3);
        for load_number in 1..=2 {
            let loaded = kept(dir.path()).unwrap_or_else(|e| panic!("load {load_number}, {renames} renames: {e}"));
            assert_eq!(loaded.id.as_str(), ID);
        }
        assert_three_files(dir.path());
    }
    // Stopped as it wrote: nothing is made of a part, and what is missing is named.
    for written in 0..3 {
        assert!(why_not(left(0, written).path()).contains("cert.pem is missing"), "{written} files");
    }
    let dir = left(0, 3);
    fs::write(dir.path().join(".key.pem.next"), &pair.key_pem[..pair.key_pem.len() / 2]).unwrap();
    assert!(why_not(dir.path()).contains("cert.pem is missing"));
    // Somebody else's key beside is not ours, and a readable one is as good as told.
    fs::write(dir.path().join(".key.pem.next"), pki.intermediate.issue(&leaf()).key_pem).unwrap();
    assert!(why_not(dir.path()).contains("cert.pem is missing"));
    fs::write(dir.path().join(".key.pem.next"), &pair.key_pem).unwrap();
    fs::set_permissions(dir.path().join(".key.pem.next"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(why_not(dir.path()).contains("cert.pem is missing"));
}

#[test]
fn a_token_that_was_spent_while_the_old_certificate_was_dead_is_not_lost() {
    let pki = Pki::new();
    let mut dead = leaf();
    (dead.from, dead.until) = (-200, -100);
    let (dead, fresh) = (pki.intermediate.issue(&dead), pki.intermediate.issue(&leaf()));
    let other = pki.intermediate.issue(&Leaf::new("spiffe://mesh.example/ns/shop/sa/other", &[]));
    for (pair, is_taken) in [(&fresh, true), (&other, false)] {
        let dir = tempfile::tempdir().unwrap();
        write_identity(dir.path(), &dead, &pki.root.pem);
        leave_beside(dir.path(), pair, &Pki::new().root.pem);
        let loaded = kept(dir.path()).unwrap();
        assert_eq!((loaded.id.as_str(), loaded.is_valid_now()), (ID, is_taken));
        assert_eq!(loaded.bundle.roots().len(), 1);
        let placed = fs::read_to_string(dir.path().join("bundle.pem")).unwrap();
        assert_eq!(placed, pki.root.pem, "roots that lie in their place count");
        assert_three_files(dir.path());
    }
}

#[tokio::test(start_paused = true)]
async fn files_of_somebody_else_are_never_completed_from_beside() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let (first, next) = (pki.intermediate.issue(&leaf()), pki.intermediate.issue(&leaf()));
    leave_beside(dir.path(), &next, &pki.root.pem);
    let handle = start(&IdentityConfig { dir: dir.path().to_owned(), ..IdentityConfig::default() });
    sleep(SOON).await;
    assert!(handle.current().is_none(), "made of what lies beside at the start");
    write_identity(dir.path(), &first, &pki.root.pem);
    eventually(SOON, "the identity of the files", || handle.current().is_some()).await;
    let known = serial(&handle);
    // Neither a removed file nor a pair that does not match.
    fs::remove_file(dir.path().join("cert.pem")).unwrap();
    sleep(2 * SOON).await;
    assert!(handle.status().last_error.unwrap().contains("cert.pem is missing"));
    fs::write(dir.path().join("cert.pem"), &next.chain_pem).unwrap();
    sleep(2 * SOON).await;
    assert!(handle.status().last_error.unwrap().contains("is not the key of"));
    assert_eq!(serial(&handle), known);
    assert!(beside(dir.path(), "key.pem").exists(), "somebody else's file was removed");
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_removed_does_not_come_back_while_we_run() {
    let world = World::new(HOUR, vec![]);
    let dir = &world.config.dir;
    let left = world.ca.pki.intermediate.issue(&leaf());
    fs::create_dir_all(dir).unwrap();
    write_identity(dir, &left, &world.ca.pki.root.pem);
    leave_beside(dir, &left, &world.ca.pki.root.pem);
    let handle = world.start();
    assert!(handle.current().is_some());
    assert_three_files(dir);

    // Appears while we run, as when a disk was full: not taken, though the placed one is gone.
    *world.ca.always.lock().unwrap() = Some(unavailable);
    leave_beside(dir, &world.ca.pki.intermediate.issue(&leaf()), &world.ca.pki.root.pem);
    let known = serial(&handle);
    fs::remove_file(dir.join("cert.pem")).unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(!dir.join("cert.pem").exists(), "it was put back");
    assert_eq!(serial(&handle), known);
}
