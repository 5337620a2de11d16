//! A workload that was away while the CA changed its root: what an operator can do for it, and what nobody can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, time::Duration};

use tokio::time::sleep;

use super::{
    tests_ca::{HOUR, SOON, World, serial},
    tests_trust::{NEXT_READING, document},
};
use crate::tls::test_pki::{Pki, eventually};

impl World {
    /// The CA's server, and all that it issues, is under another root from now on.
    fn moves_to(&self, next: Pki) {
        *self.ca.server_root.lock().unwrap() = Some(next.root.pem.clone());
        *self.ca.successor.lock().unwrap() = Some(next);
    }

    /// What an operator writes into identity.ca.bundle.
    fn operator_trusts(&self, roots: &[&str]) {
        fs::write(self.dir.path().join("ca-bundle.pem"), roots.concat()).unwrap();
    }

    /// Whether a root was ever taken for the CA's.
    fn vouched(&self, root: &str) -> bool {
        let requests = self.ca.requests.lock().unwrap();
        requests.iter().any(|request| request.bundle_pem.contains(root.trim()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_was_missed_is_mended_by_the_operators_bundle_without_another_token() {
    let world = World::new(HOUR, vec![]);
    let handle = world.enrolled().await;
    let (first, next) = (serial(&handle), Pki::new());
    let new_root = next.root.pem.clone();
    world.moves_to(next);
    sleep(Duration::from_secs(40 * 60)).await;
    assert_eq!((serial(&handle), world.status(&handle).ready()), (first.clone(), Ok(())));
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("unknown root") && error.contains("identity.ca.bundle"), "{error}");
    let failed = handle.renewals().1;
    assert!((5..=16).contains(&failed), "{failed} failures in some 10 min");

    // Taken up at the next look, not when the pause is over.
    world.operator_trusts(&[&new_root]);
    eventually(SOON, "a renewal", || serial(&handle) != first).await;
    assert!(world.ca.credentials()[1..].iter().all(|credential| credential == "certificate"), "a token was spent");
    let last = world.ca.requests.lock().unwrap().last().unwrap().bundle_pem.clone();
    assert_eq!(last, new_root, "the CA was authenticated by something else");
    // The root joins those in use, so that the next renewal and the CA's documents need the operator no more.
    eventually(Duration::from_secs(120), "no error", || handle.status().last_error.is_none()).await;
    assert!(world.ca.publishes.lock().unwrap().readings.last().unwrap().contains(new_root.trim()));
    fs::remove_file(world.dir.path().join("ca-bundle.pem")).unwrap();
    let (second, failed) = (serial(&handle), handle.renewals().1);
    sleep(Duration::from_secs(34 * 60)).await;
    assert_ne!(serial(&handle), second);
    assert_eq!(handle.renewals().1, failed);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_the_ca_took_out_does_not_come_back_with_the_operators_bundle() {
    let world = World::new(HOUR, vec![]);
    let (stolen, third) = (Pki::new(), Pki::new());
    let old = &world.ca.pki.root;
    world.publish(document(1, &[(old, false), (&stolen.root, false)]));
    let handle = world.enrolled().await;
    eventually(NEXT_READING, "both roots", || handle.status().roots.len() == 2).await;
    world.publish(document(2, &[(old, false)]));
    eventually(NEXT_READING, "one root", || handle.status().roots.len() == 1).await;

    // Who has the key of the stolen root poses as the CA, and an old bundle file still names it.
    world.ca.requests.lock().unwrap().clear();
    let stolen_root = stolen.root.pem.clone();
    let before = serial(&handle);
    world.operator_trusts(&[&stolen_root]);
    world.moves_to(stolen);
    sleep(Duration::from_secs(40 * 60)).await;
    assert!(world.ca.asked() > 0 && !world.vouched(&stolen_root), "the stolen root vouched for a CA");
    assert_eq!(serial(&handle), before);
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("ca-bundle.pem") || error.contains("cannot read /bundle.json"), "{error}");

    // What else the file names counts as ever.
    let third_root = third.root.pem.clone();
    world.operator_trusts(&[&stolen_root, &third_root]);
    world.moves_to(third);
    eventually(SOON, "a renewal", || serial(&handle) != before).await;
    assert!(world.vouched(&third_root) && !world.vouched(&stolen_root));
}
