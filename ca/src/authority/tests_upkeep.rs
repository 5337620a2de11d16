//! What a running server does by itself, at times of the test's choice.

use std::{path::Path, time::Duration};

use time::OffsetDateTime;

use super::*;
use crate::store::{AuthorityState, Database, RevocationReason};
use outrigger_identity::TrustDomain;

const DAY: Duration = Duration::from_secs(86_400);

struct World {
    dir: tempfile::TempDir,
    database: Database,
    authority: Authority,
}

fn born() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn world(root_ttl: Duration, intermediate_ttl: Duration) -> World {
    let dir = tempfile::tempdir().unwrap();
    let options =
        InitOptions { root_ttl, intermediate_ttl, ..InitOptions::new(TrustDomain::parse("mesh.example").unwrap()) };
    init(dir.path(), options, born()).unwrap();
    let authority = Authority::open(dir.path(), None).unwrap();
    let database = Database::of(&authority).unwrap();
    World { dir, database, authority }
}

impl World {
    /// Looks once; gives back what was done and what was warned of.
    fn look(&mut self, after: Duration) -> (Vec<String>, Vec<String>) {
        let look = upkeep(&self.authority, &mut self.database, None, born() + after).unwrap();
        if let Some(next) = look.changed {
            self.authority = next;
        }
        (look.done, look.warnings)
    }

    fn states(&self) -> Vec<AuthorityState> {
        let all = self.authority.members().all().iter();
        all.filter(|it| it.kind() == crate::store::AuthorityKind::Intermediate).map(Member::state).collect()
    }

    fn root_key(&self) -> std::path::PathBuf {
        self.dir.path().join(ROOT_KEY)
    }
}

fn exists(dir: &Path, name: &str) -> bool {
    dir.join(name).exists()
}

#[test]
fn the_next_intermediate_is_prepared_at_30_days_and_signs_at_7_and_the_old_key_goes_when_it_has_nothing_to_sign() {
    use AuthorityState::{Active, Old, Prepared};
    let mut world = world(DAY * 3650, DAY * 365);
    assert_eq!(world.look(DAY * 334), (vec![], vec![]));
    assert_eq!(world.states(), [Active]);
    let (done, warnings) = world.look(DAY * 336);
    assert!(done.len() == 1 && warnings.is_empty(), "{done:?} {warnings:?}");
    assert_eq!(world.states(), [Active, Prepared]);
    let first = world.authority.active().row.fingerprint.clone();
    // It lives as long as the one before.
    let next = world.authority.prepared().unwrap();
    assert_eq!(next.not_after, born() + DAY * 336 + DAY * 365);
    assert_eq!(world.look(DAY * 357), (vec![], vec![]), "not before seven days are left");
    let (done, _) = world.look(DAY * 358 + Duration::from_secs(60));
    assert!(done[0].contains("signs from now on"), "{done:?}");
    assert_eq!(world.states(), [Old, Active]);
    assert_ne!(world.authority.active().row.fingerprint, first);
    // For its list, until the last certificate that it signed is over, which is with itself.
    assert_eq!(world.look(DAY * 364).0, Vec::<String>::new());
    assert!(exists(world.dir.path(), INTERMEDIATE_KEY));
    let (done, _) = world.look(DAY * 366);
    assert!(done[0].contains("removed") && !exists(world.dir.path(), INTERMEDIATE_KEY), "{done:?}");
    Authority::open(world.dir.path(), None).unwrap();
}

#[test]
fn short_lives_are_judged_by_their_share() {
    let mut world = world(DAY * 3650, DAY * 6);
    assert_eq!(world.look(DAY * 3 - Duration::from_secs(60)).0.len(), 0);
    assert_eq!(world.look(DAY * 3 + Duration::from_secs(60)).0.len(), 1);
    assert_eq!(world.look(DAY * 5 - Duration::from_secs(60)).0.len(), 0);
    assert_eq!(world.look(DAY * 5 + Duration::from_secs(60)).0.len(), 1);
}

#[test]
fn without_the_roots_key_or_with_a_root_that_ends_too_somebody_is_told_what_to_run() {
    let mut away = world(DAY * 3650, DAY * 10);
    std::fs::remove_file(away.root_key()).unwrap();
    let (done, warnings) = away.look(DAY * 6);
    assert!(done.is_empty() && warnings[0].contains("rotate prepare --root-key"), "{done:?} {warnings:?}");
    assert_eq!(away.states(), [AuthorityState::Active]);

    let mut ending = world(DAY * 10, DAY * 10);
    let (done, warnings) = ending.look(DAY * 6);
    assert!(done.is_empty() && warnings[0].contains("rotate prepare --root"), "{done:?} {warnings:?}");
    assert_eq!(ending.states(), [AuthorityState::Active]);
}

#[test]
fn a_list_is_made_anew_at_half_of_its_time_and_forgets_what_has_expired() {
    let mut world = world(DAY * 3650, DAY * 365);
    let subject = world.authority.subject("spiffe://mesh.example/a", &[]).unwrap();
    let key = RequestedKey::of(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let issue = |tx: &mut crate::store::Transaction<'_>, authority: &Authority| {
        crate::issue::for_operator(tx, authority, &subject, &key, DAY, born(), None)
    };
    let World { authority, database, .. } = &mut world;
    let serial = database.transaction(|tx| issue(tx, authority)).unwrap().certificate.serial;
    let list = |world: &World| {
        let list = world.authority.members().crl_of(&world.authority.active().row.fingerprint).unwrap().clone();
        let (_, parsed) = x509_parser::prelude::CertificateRevocationList::from_der(&list.der).unwrap();
        (list.number, parsed.iter_revoked_certificates().count(), parsed.last_update().to_datetime())
    };
    let (first, none, made) = list(&world);
    // Backdated, for verifiers whose clock is behind.
    assert_eq!((none, made), (0, born() - BACKDATE));
    let serials = [serial];
    let request = RevokeRequest::Serials(&serials);
    let World { authority, database, .. } = &mut world;
    let at = born() + Duration::from_secs(10);
    let revoked = authority.revoke(database, &request, RevocationReason::Superseded, None, at).unwrap();
    assert_eq!((revoked.serials.len(), revoked.lists_waiting), (1, 0));
    world.look(Duration::from_secs(20));
    assert_eq!((list(&world).0, list(&world).1), (first + 1, 1));
    world.look(DAY * 3);
    assert_eq!(list(&world).0, first + 1, "still good for more than half of its time");
    world.look(DAY * 4);
    assert_eq!((list(&world).0, list(&world).1), (first + 2, 0), "the certificate has expired");
}
