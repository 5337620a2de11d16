//! Authorities, revocations and their lists, in each kind of database.

use std::time::Duration;

use super::{
    tests::{at, places},
    *,
};

fn row(fingerprint: &str, kind: AuthorityKind, issuer: Option<&str>) -> AuthorityRow {
    AuthorityRow {
        fingerprint: fingerprint.into(),
        kind,
        state: AuthorityState::Prepared,
        issuer: issuer.map(str::to_owned),
        certificate: vec![0x30, 0],
        created_at: at(0),
        changed_at: at(0),
    }
}

fn revocation(serial: &str, not_after: i64) -> RevocationRow {
    RevocationRow {
        serial: serial.into(),
        issuer: "aa".into(),
        reason: RevocationReason::KeyCompromise,
        not_after: at(not_after),
        revoked_at: at(1),
    }
}

fn with_authorities(db: &mut Database) {
    db.transaction::<_, StoreError>(|tx| {
        tx.insert_authority(&row("aa", AuthorityKind::Root, None))?;
        tx.insert_authority(&row("bb", AuthorityKind::Intermediate, Some("aa")))
    })
    .unwrap();
}

#[test]
fn of_two_who_move_an_authority_one_does_and_everybody_can_see_that_something_changed() {
    for place in places() {
        let mut db = place.open();
        let before = db.snapshot(|tx| tx.bundle_row()).unwrap();
        assert_eq!(before.refresh_hint, Duration::from_secs(60));
        with_authorities(&mut db);
        let after = db.snapshot(|tx| tx.bundle_row()).unwrap();
        assert_eq!(after.sequence, before.sequence + 1, "the bundle has another root, once");
        assert!(after.version > before.version);
        let rows = db.snapshot(|tx| tx.list_authorities()).unwrap();
        let known = [row("aa", AuthorityKind::Root, None), row("bb", AuthorityKind::Intermediate, Some("aa"))];
        assert_eq!(rows, known);

        let step = (AuthorityState::Prepared, AuthorityState::Active);
        let mut other = place.open();
        let go = |db: &mut Database| {
            db.transaction(|tx| tx.move_authority("bb", AuthorityKind::Intermediate, step, at(5))).unwrap()
        };
        assert!(go(&mut db));
        assert!(!go(&mut other));
        let moved = other.snapshot(|tx| tx.list_authorities()).unwrap().remove(1);
        assert_eq!((moved.state, moved.changed_at), (AuthorityState::Active, at(5)));
        assert_eq!(other.snapshot(|tx| tx.authority_state("bb")).unwrap(), Some(AuthorityState::Active));
        assert_eq!(other.snapshot(|tx| tx.authority_state("cc")).unwrap(), None);
        assert_eq!(other.snapshot(|tx| tx.bundle_row()).unwrap().sequence, after.sequence, "no root was moved");
        db.transaction(|tx| tx.set_refresh_hint(Duration::from_secs(5))).unwrap();
        assert_eq!(other.snapshot(|tx| tx.bundle_row()).unwrap().refresh_hint, Duration::from_secs(5));
    }
}

#[test]
fn revocations_are_recorded_once_chained_and_never_changed() {
    for place in places() {
        let mut db = place.open();
        with_authorities(&mut db);
        let insert = |db: &mut Database, row: &RevocationRow| db.transaction(|tx| tx.insert_revocation(row)).unwrap();
        assert!(insert(&mut db, &revocation("01", 100)));
        assert!(!insert(&mut db, &revocation("01", 200)), "once");
        assert!(insert(&mut db, &revocation("02", 10)));
        assert_eq!(db.snapshot(|tx| tx.revoked_at("01")).unwrap(), Some(at(1)));
        assert_eq!(db.snapshot(|tx| tx.revoked_at("03")).unwrap(), None);
        let serials = |db: &mut Database, seconds| {
            let rows = db.snapshot(|tx| tx.revocations_of("aa", at(seconds))).unwrap();
            rows.into_iter().map(|row| row.serial).collect::<Vec<_>>()
        };
        assert_eq!(serials(&mut db, 10), ["01", "02"]);
        assert_eq!(serials(&mut db, 11), ["01"], "what has expired is on no list any more");
        assert_eq!(db.snapshot(|tx| tx.newest_revocation_of("aa")).unwrap(), 2);
        assert_eq!(db.snapshot(|tx| tx.newest_revocation_of("bb")).unwrap(), 0);
        let (count, head) = db.snapshot(|tx| tx.verify_revocations()).unwrap();
        assert_eq!(count, 2);
        for sql in ["UPDATE revocation SET revoked_at = 0", "DELETE FROM revocation"] {
            let refused = db.transaction(|tx| tx.execute(sql, &[])).unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{refused}");
        }
        assert_eq!(db.snapshot(|tx| tx.verify_revocations()).unwrap().1, head);

        let id = "spiffe://mesh.example/a";
        assert!(db.transaction(|tx| tx.block_id(id, at(3))).unwrap());
        assert!(!db.transaction(|tx| tx.block_id(id, at(4))).unwrap());
        assert_eq!(db.snapshot(|tx| tx.blocked_at(id)).unwrap(), Some(at(3)));
        assert!(db.transaction(|tx| tx.unblock_id(id)).unwrap());
        assert!(!db.transaction(|tx| tx.unblock_id(id)).unwrap());
    }
}

#[test]
fn lists_of_two_replicas_have_numbers_that_only_grow() {
    for place in places() {
        with_authorities(&mut place.open());
        let make = |db: &mut Database| {
            db.transaction::<_, StoreError>(|tx| {
                let number = tx.next_crl_number("aa")?;
                let (made_at, next_update) = (at(0), at(60));
                tx.put_crl(&CrlRow { issuer: "aa".into(), number, newest: 0, made_at, next_update, der: vec![1] })?;
                Ok(number)
            })
            .unwrap()
        };
        let numbers = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut db = place.open();
                    for _ in 0..5 {
                        let number = make(&mut db);
                        numbers.lock().unwrap().push(number);
                    }
                });
            }
        });
        let mut numbers = numbers.into_inner().unwrap();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<_>>(), "none twice");
        assert_eq!(place.open().snapshot(|tx| tx.crl_of("aa")).unwrap().unwrap().number, 20);
    }
}
