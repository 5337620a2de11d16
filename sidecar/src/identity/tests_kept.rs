//! What is kept from one attempt at the CA to the next: roots, the key of a token, a certificate of the future.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, time::Duration};

use outrigger_identity::enrol::EnrolCause;
use tokio::time::sleep;

use super::{
    tests_ca::{Answer, HOUR, ID, SOON, World, serial, token_refused, unavailable},
    *,
};
use crate::tls::test_pki::{Pki, eventually};

#[tokio::test(start_paused = true)]
async fn a_renewal_joins_its_root_to_those_that_are_known() {
    let world = World::new(HOUR, vec![]);
    // During a change of roots the CA's bundle holds both, and its answer names the one that it signs under.
    let successor = Pki::new();
    let both = format!("{}{}", successor.root.pem, world.ca.pki.root.pem);
    fs::write(world.dir.path().join("ca-bundle.pem"), both).unwrap();
    let roots = |handle: &IdentityHandle| {
        let mut roots: Vec<_> = handle.status().roots.iter().map(|root| root.sha256.clone()).collect();
        roots.sort();
        roots
    };
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let before = roots(&handle);
    assert_eq!(before.len(), 2);
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(handle.renewals(), (2, 0));
    assert_eq!(roots(&handle), before, "a renewal took a root away");
    let kept = TrustBundle::from_pem(&fs::read(world.config.dir.join("bundle.pem")).unwrap()).unwrap();
    assert_eq!(kept.roots().len(), 2, "bundle.pem");

    // Roots that an operator added stay too, and one that is there already is not written twice.
    let third = Pki::new();
    let mut text = fs::read_to_string(world.config.dir.join("bundle.pem")).unwrap();
    text.push_str(&third.root.pem);
    fs::write(world.config.dir.join("bundle.pem"), &text).unwrap();
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(handle.renewals(), (3, 0));
    assert_eq!((roots(&handle).len(), fs::read_to_string(world.config.dir.join("bundle.pem")).unwrap()), (3, text));
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_that_is_not_valid_yet_is_kept_and_waited_for() {
    let world = World::new(4 * HOUR, vec![Answer::Early]);
    *world.ca.always.lock().unwrap() = Some(token_refused);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = serial(&handle);
    let status = world.status(&handle);
    assert_eq!(status.state, IdentityState::NotYetValid);
    assert!(status.ready().unwrap_err().contains("becomes valid in 29 min"), "{:?}", status.ready());
    // A restart finds it, and nobody spends a token on another one.
    drop(handle);
    let handle = world.start();
    assert_eq!(serial(&handle), first);
    sleep(Duration::from_secs(1_810)).await;
    assert_eq!(world.status(&handle).ready(), Ok(()));
    assert_eq!((world.ca.asked(), serial(&handle)), (1, first));
    // And then it lives as any other.
    *world.ca.always.lock().unwrap() = None;
    sleep(2 * HOUR).await;
    assert_eq!(world.ca.credentials(), ["first-token", "certificate"]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_not_valid_yet_does_not_replace_what_is() {
    let world = World::new(4 * HOUR, vec![Answer::Issue(ID), Answer::Early]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = serial(&handle);
    eventually(3 * HOUR, "a failure", || handle.renewals().1 == 1).await;
    assert_eq!((serial(&handle), world.status(&handle).ready()), (first, Ok(())));
    assert!(handle.status().last_error.unwrap().contains("becomes valid in"));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_tried_again_with_the_key_of_its_first_try() {
    fn lost() -> EnrolCause {
        EnrolCause::Lost("the CA died".into())
    }
    let answers = vec![Answer::Fail(lost), Answer::Fail(unavailable), Answer::Fail(lost)];
    let world = World::new(HOUR, answers);
    let handle = world.start();
    eventually(Duration::from_secs(10), "two tries", || world.ca.asked() >= 2).await;
    fs::write(world.dir.path().join("token"), "another-token").unwrap();
    eventually(Duration::from_secs(60), "an identity", || handle.current().is_some()).await;
    sleep(Duration::from_secs(34 * 60)).await;
    let requests = world.ca.requests.lock().unwrap();
    let csrs_of = |token: Option<&str>| {
        let csrs: Vec<_> =
            requests.iter().filter(|r| r.token.as_deref() == token).map(|r| r.csr_pem.as_str()).collect();
        let different: std::collections::BTreeSet<_> = csrs.iter().copied().collect();
        (csrs.len(), different)
    };
    let (first, other, renewal) = (csrs_of(Some("first-token")), csrs_of(Some("another-token")), csrs_of(None));
    assert!(first.0 >= 2 && first.1.len() == 1, "{} requests with {} keys", first.0, first.1.len());
    assert_eq!((other.1.len(), renewal.0), (1, 1));
    assert!(first.1.is_disjoint(&other.1) && other.1.is_disjoint(&renewal.1), "a key for two certificates");
}
