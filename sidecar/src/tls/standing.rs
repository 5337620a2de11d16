//! How the peers of established connections stand when what we trust has changed: a handshake is judged once, and a
//! connection may live for days after it.
//!
//! Each worker keeps one entry for each chain that was shown, however many connections its owner has, and judges it again
//! when the roots, their marks or the revocation lists change. Connections wait for the verdict; requests never do. Dates are
//! not judged again: a connection may outlive its certificate, as with Envoy and Linkerd.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustc_hash::FxHashMap;
use rustls::{
    CommonState,
    pki_types::{CertificateDer, UnixTime},
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, time::sleep};

use super::PeerRefusal;
use crate::identity::{Identity, IdentityHandle, PathFault, TrustBundle, Usage, validity};

/// How long a connection under a tainted root goes on, at least and at most. The peer renews meanwhile; one that has not gets a
/// new connection that is moved again, so that this is also how often that happens.
const MOVED_AFTER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(25));
/// Entries that nobody uses are looked for when there are this many, and then twice as many as are left.
const FIRST_SWEEP: usize = 64;

/// What is thought of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Good, under a root that is being taken out of use.
    Tainted,
    Refused(PeerRefusal),
}

/// A chain that was shown.
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    /// The leaf and the intermediates over which it led to a root when it was first looked at; empty where it did not.
    path: Vec<CertificateDer<'static>>,
    usage: Usage,
    verdict: watch::Sender<Verdict>,
}

type Fingerprint = [u8; 32];

/// The peers of one worker.
#[derive(Default)]
pub struct Peers {
    known: RefCell<FxHashMap<Fingerprint, Weak<Peer>>>,
    sweep_at: Cell<usize>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({})", self.known.borrow().len())
    }
}

impl Peers {
    /// The standing of the peer of a connection. `usage` is what the peer's certificate was used for.
    pub fn enter(&self, connection: &CommonState, usage: Usage, identity: &IdentityHandle) -> Option<Standing> {
        self.enter_chain(connection.peer_certificates()?, usage, identity)
    }

    fn enter_chain(
        &self,
        chain: &[CertificateDer<'static>],
        usage: Usage,
        identity: &IdentityHandle,
    ) -> Option<Standing> {
        let fingerprint = fingerprint(chain, usage);
        let mut known = self.known.borrow_mut();
        if let Some(peer) = known.get(&fingerprint).and_then(Weak::upgrade) {
            return Some(Standing(peer));
        }
        // The handshake has judged it, and does not tell by which path; trust may also have changed since.
        let now = identity.current()?;
        let (leaf, intermediates) = chain.split_first()?;
        let (path, verdict) = match now.bundle.verify_path(leaf, intermediates, UnixTime::now(), usage) {
            Ok((root, used)) => {
                let verdict = if root.tainted { Verdict::Tainted } else { Verdict::Good };
                (std::iter::once(leaf).chain(used).cloned().collect(), verdict)
            }
            Err(_) => (Vec::new(), judge(&now.bundle, chain, &[], usage, SystemTime::now())),
        };
        let peer = Rc::new(Peer { chain: chain.to_vec(), path, usage, verdict: watch::Sender::new(verdict) });
        if known.len() >= self.sweep_at.get().max(FIRST_SWEEP) {
            known.retain(|_, peer| peer.strong_count() > 0);
            self.sweep_at.set(2 * known.len());
        }
        known.insert(fingerprint, Rc::downgrade(&peer));
        Some(Standing(peer))
    }

    /// Judges again with each change of trust, for as long as the worker runs.
    pub async fn follow(&self, identity: &IdentityHandle) {
        let mut changes = identity.subscribe();
        let mut judged: Option<Arc<Identity>> = changes.borrow_and_update().clone();
        while changes.changed().await.is_ok() {
            let Some(now) = changes.borrow_and_update().clone() else { continue };
            // A renewal of our own certificate changes nothing about others.
            if judged.as_ref().is_none_or(|before| !before.bundle.judges_as(&now.bundle)) {
                self.judge_again(&now.bundle).await;
            }
            judged = Some(now);
        }
    }

    async fn judge_again(&self, bundle: &TrustBundle) {
        let all: Vec<_> = self.known.borrow().values().cloned().collect();
        for peer in all {
            if let Some(peer) = peer.upgrade() {
                let verdict = judge(bundle, &peer.chain, &peer.path, peer.usage, SystemTime::now());
                peer.verdict.send_if_modified(|known| {
                    let changes = *known != verdict;
                    *known = verdict;
                    changes
                });
            }
            // Two signatures a peer: requests have their turn between.
            tokio::task::yield_now().await;
        }
    }
}

fn fingerprint(chain: &[CertificateDer<'_>], usage: Usage) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update([u8::from(usage == Usage::Server)]);
    // Each certificate says its own length.
    chain.iter().for_each(|certificate| hash.update(certificate));
    hash.finalize().into()
}

/// Dates do not count, and so must not hide what does: of all faults of all paths webpki tells the date of one, also that of a
/// certificate which somebody has put beside his chain for that. So where a date is at fault the path that once was good is
/// judged by itself, at a moment at which all of it was valid.
fn judge(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    path: &[CertificateDer<'_>],
    usage: Usage,
    now: SystemTime,
) -> Verdict {
    match verdict(bundle, chain, usage, now) {
        Err((PathFault::Expired { .. } | PathFault::NotYetValid { .. }, _)) if !path.is_empty() => {
            match verdict(bundle, path, usage, now) {
                // All of the path is valid at that moment, but for its root, which is there and has taken nothing back.
                Err((PathFault::Expired { .. } | PathFault::NotYetValid { .. }, _)) => Verdict::Good,
                Err((fault, at)) => Verdict::Refused(PeerRefusal::of_path(fault, at)),
                Ok(verdict) => verdict,
            }
        }
        Err((fault, at)) => Verdict::Refused(PeerRefusal::of_path(fault, at)),
        Ok(verdict) => verdict,
    }
}

/// What is thought of a chain at the moment next to `now` at which all certificates of it are valid, if there is one.
fn verdict(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    now: SystemTime,
) -> Result<Verdict, (PathFault, UnixTime)> {
    let at = chain.iter().filter_map(validity).fold(now, |at, (from, until)| at.min(until).max(from));
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err((PathFault::Malformed("it shows no certificate".to_owned()), at));
    };
    match bundle.verify(leaf, intermediates, at, usage) {
        Ok(root) if root.tainted => Ok(Verdict::Tainted),
        Ok(_) => Ok(Verdict::Good),
        Err(fault) => Err((fault, at)),
    }
}

/// How the peer of one connection stands.
#[derive(Clone)]
pub struct Standing(Rc<Peer>);

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Standing({:?})", *self.0.verdict.borrow())
    }
}

impl Standing {
    /// Ends when the connection should take no new requests: its root is being taken out of use, and the peer has had time
    /// to renew. Not all at one moment.
    pub fn is_to_move(&self) -> impl Future<Output = ()> + use<> {
        let (peer, mut verdicts) = (Rc::clone(&self.0), self.0.verdict.subscribe());
        async move {
            loop {
                // The sender is in `peer`.
                let _ = verdicts.wait_for(|verdict| *verdict != Verdict::Good).await;
                sleep(MOVED_AFTER.0 + (MOVED_AFTER.1 - MOVED_AFTER.0).mul_f64(fastrand::f64())).await;
                if *peer.verdict.borrow() != Verdict::Good {
                    return;
                }
            }
        }
    }

    /// Ends when we would refuse the peer today, with the reason.
    pub fn is_refused(&self) -> impl Future<Output = PeerRefusal> + use<> {
        let (peer, mut verdicts) = (Rc::clone(&self.0), self.0.verdict.subscribe());
        async move {
            loop {
                // As one that waits: `watch` hands out a guard, which must not live over the next wait.
                if let Verdict::Refused(refusal) = &*peer.verdict.borrow() {
                    return refusal.clone();
                }
                let _ = verdicts.changed().await;
            }
        }
    }
}

/// Ends at once where there is nobody to judge: never.
pub async fn is_refused(standing: Option<Standing>) -> PeerRefusal {
    match standing {
        Some(standing) => standing.is_refused().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::FutureExt as _;
    use tokio::{
        task::{LocalSet, spawn_local},
        time::Instant,
    };

    use super::*;
    use crate::{
        identity::RevocationLists,
        tls::test_pki::{Leaf, Pki},
    };

    const PEER: &str = "spiffe://mesh.example/ns/shop/sa/peer";

    /// A worker's peers, judged by an identity that the test changes.
    struct World {
        pki: Pki,
        identity: IdentityHandle,
        peers: Rc<Peers>,
    }

    impl World {
        fn new() -> Self {
            let pki = Pki::new();
            let own = pki.identity("spiffe://mesh.example/own", &[]);
            let identity = IdentityHandle::fixed(Arc::unwrap_or_clone(own));
            Self { pki, identity, peers: Rc::default() }
        }

        /// Runs a test beside the task that judges again.
        async fn run(self, test: impl AsyncFnOnce(&Self)) {
            let set = LocalSet::new();
            let (peers, identity) = (Rc::clone(&self.peers), self.identity.clone());
            set.run_until(async {
                spawn_local(async move { peers.follow(&identity).await });
                tokio::task::yield_now().await;
                test(&self).await;
            })
            .await;
        }

        fn enter(&self, peer: &Identity) -> Standing {
            self.peers.enter_chain(&peer.key.cert, Usage::Client, &self.identity).unwrap()
        }

        /// From now on these roots, marked so, and these lists.
        async fn trust(&self, roots: &[&Pki], tainted: bool, lists: &str) {
            let pem: String = roots.iter().map(|pki| pki.root.pem.as_str()).collect();
            let bundle = TrustBundle::from_pem(pem.as_bytes()).unwrap();
            let own = TrustBundle::from_pem(self.pki.root.pem.as_bytes()).unwrap().roots()[0].sha256.clone();
            let marks = if tainted { BTreeSet::from([own]) } else { BTreeSet::new() };
            let lists =
                if lists.is_empty() { <_>::default() } else { RevocationLists::from_pem(lists.as_bytes()).unwrap() };
            let now = self.identity.current().unwrap();
            let bundle = Arc::new(bundle.marked(&marks, Arc::new(lists)));
            self.identity.replace(Identity { bundle, generation: now.generation + 1, ..(*now).clone() });
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_root_has_gone_or_that_is_revoked_is_refused_at_once() {
        World::new()
            .run(async |world| {
                let (bad, good) =
                    (world.pki.identity(PEER, &[]), world.pki.identity("spiffe://mesh.example/other", &[]));
                let (its, others) = (world.enter(&bad), world.enter(&good));
                assert_eq!(its.is_refused().now_or_never(), None);
                world.trust(&[&world.pki], false, &world.pki.intermediate.crl(1, &[&bad.serial])).await;
                assert_eq!(its.is_refused().now_or_never(), Some(PeerRefusal::Revoked));
                assert_eq!(others.is_refused().now_or_never(), None);
                world.trust(&[&Pki::new()], false, "").await;
                assert_eq!(others.is_refused().now_or_never(), Some(PeerRefusal::UnknownRoot));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn under_a_tainted_root_a_connection_moves_after_a_while_and_is_not_refused() {
        World::new()
            .run(async |world| {
                let peer = world.pki.identity(PEER, &[]);
                let before = world.enter(&peer);
                let moved = spawn_local(before.is_to_move());
                tokio::time::sleep(Duration::from_secs(3600)).await;
                assert!(!moved.is_finished());
                world.trust(&[&world.pki], true, "").await;
                let began = Instant::now();
                moved.await.unwrap();
                let took = began.elapsed();
                assert!((5..=25).contains(&took.as_secs()), "{took:?}");
                assert_eq!(before.is_refused().now_or_never(), None);
                // One that is made now has its while too.
                drop(before);
                let after = world.enter(&peer);
                assert_eq!(after.is_to_move().now_or_never(), None);
                tokio::time::timeout(Duration::from_secs(26), after.is_to_move()).await.unwrap();
                // The mark was a mistake.
                world.trust(&[&world.pki], false, "").await;
                assert!(tokio::time::timeout(Duration::from_secs(60), after.is_to_move()).await.is_err());
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_expired_since_its_handshake_keeps_its_connection() {
        World::new()
            .run(async |world| {
                let mut old = Leaf::new(PEER, &[]);
                (old.from, old.until) = (-7200, -3600);
                let standing = world.enter(&world.pki.intermediate.identity(&old, &world.pki.root.pem));
                world.trust(&[&world.pki, &Pki::new()], false, "").await;
                assert_eq!(standing.is_refused().now_or_never(), None);
                world.trust(&[&Pki::new()], false, "").await;
                assert_eq!(standing.is_refused().now_or_never(), Some(PeerRefusal::UnknownRoot));
            })
            .await;
    }

    /// A certificate that is no part of the path, of the issuer's name and out of date, needs no CA's key.
    #[tokio::test(start_paused = true)]
    async fn a_date_that_somebody_put_beside_the_chain_hides_nothing() {
        for revoke in [true, false] {
            World::new()
                .run(async |world| {
                    let peer = world.pki.identity(PEER, &[]);
                    let issuer = peer.key.cert[1].clone();
                    let mut chain = peer.key.cert.clone();
                    for (from, until) in [(-7200, -3600), (3600, 7200)] {
                        chain.push(crate::tls::test_pki::namesake(&issuer, from, until));
                    }
                    let standing = world.peers.enter_chain(&chain, Usage::Client, &world.identity).unwrap();
                    assert_eq!(standing.is_refused().now_or_never(), None);
                    // What else changes leaves it alone.
                    world.trust(&[&world.pki, &Pki::new()], false, "").await;
                    assert_eq!(standing.is_refused().now_or_never(), None);
                    let wanted = if revoke {
                        world.trust(&[&world.pki], false, &world.pki.intermediate.crl(1, &[&peer.serial])).await;
                        PeerRefusal::Revoked
                    } else {
                        world.trust(&[&Pki::new()], false, "").await;
                        PeerRefusal::UnknownRoot
                    };
                    assert_eq!(standing.is_refused().now_or_never(), Some(wanted));
                })
                .await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_a_change_of_trust_overtook_is_judged_by_the_new_one() {
        World::new()
            .run(async |world| {
                let peer = world.pki.identity(PEER, &[]);
                world.trust(&[&Pki::new()], false, "").await;
                let standing = world.peers.enter_chain(&peer.key.cert, Usage::Client, &world.identity).unwrap();
                assert_eq!(standing.is_refused().now_or_never(), Some(PeerRefusal::UnknownRoot));
            })
            .await;
    }

    #[test]
    fn connections_of_one_peer_share_an_entry_and_those_of_nobody_are_swept() {
        let world = World::new();
        let peer = world.pki.identity(PEER, &[]);
        let (one, two) = (world.enter(&peer), world.enter(&peer));
        assert!(Rc::ptr_eq(&one.0, &two.0));
        for n in 0..3 * FIRST_SWEEP {
            drop(world.enter(&world.pki.identity(&format!("spiffe://mesh.example/{n}"), &[])));
        }
        assert!(world.peers.known.borrow().len() <= FIRST_SWEEP, "{:?}", world.peers);
        assert!(Rc::ptr_eq(&one.0, &world.enter(&peer).0), "one in use was swept");
    }
}
