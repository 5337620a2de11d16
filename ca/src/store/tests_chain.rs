//! The log proves itself: what each kind of meddling with the file looks like afterwards.

use rusqlite::Connection;

use super::{
    tests::{BOTH, Place, at, entry, file, place, places},
    *,
};

/// A new database with some records, and the place that it needs.
fn database(dialect: Dialect, records: i64) -> (Place, Database) {
    let place = place(dialect);
    let mut db = place.open();
    for n in 0..records {
        let mut record = entry(&format!("{n:02x}"));
        record.not_after = at(n);
        db.transaction(|tx| tx.append(&record)).unwrap();
    }
    (place, db)
}

fn verify(db: &mut Database) -> Result<ChainReport, ChainFault> {
    db.transaction(|tx| tx.verify_chain(None))
}

/// Somebody with a client of the database, whom triggers do not stop.
fn meddle(db: &mut Database, sql: &str) {
    let dialect = db.sql.dialect();
    for trigger in ["issued_is_append_only", "issued_is_pruned_behind_an_anchor"] {
        let of = if dialect == Dialect::Postgres { " ON issued" } else { "" };
        db.batch(&format!("DROP TRIGGER {trigger}{of}")).unwrap();
    }
    let sql = match dialect {
        Dialect::Sqlite => sql.to_owned(),
        Dialect::Postgres => sql.replace("x'", "'\\x").replace("zeroblob(32)", "decode(repeat('00', 32), 'hex')"),
    };
    db.batch(&sql).unwrap();
}

#[test]
fn a_log_that_nobody_touched_proves_itself() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 5);
        let report = verify(&mut db).unwrap();
        assert_eq!((report.records, report.last_seq, report.anchor), (5, 5, None));
        let (_place, mut empty) = database(dialect, 0);
        assert_eq!(verify(&mut empty).unwrap().head, ChainHash::GENESIS);
    }
}

#[test]
fn each_field_of_a_record_is_covered() {
    for dialect in BOTH {
        for (column, value) in [
            ("serial", "'ff'"),
            ("id", "'spiffe://mesh.example/b'"),
            ("id", "NULL"),
            ("dns_names", "'[\"a.mesh\"]'"),
            ("not_before", "not_before + 1"),
            ("not_after", "not_after + 1"),
            ("credential", "'operator'"),
            ("credential_ref", "'fe'"),
            ("credential_ref", "NULL"),
            ("certificate", "x'010204'"),
            ("issued_at", "issued_at - 1"),
            ("seq", "100"),
            ("hash", "zeroblob(32)"),
        ] {
            let (_place, mut db) = database(dialect, 3);
            meddle(&mut db, &format!("UPDATE issued SET {column} = {value} WHERE seq = 2"));
            let fault = verify(&mut db).unwrap_err();
            assert!(matches!(fault, ChainFault::Broken { .. }), "{column} = {value}: {fault}");
        }
    }
}

#[test]
fn a_record_that_was_removed_added_moved_or_cut_off_is_missed() {
    for dialect in BOTH {
        let broken = |sql: &str| {
            let (_place, mut db) = database(dialect, 4);
            meddle(&mut db, sql);
            verify(&mut db).unwrap_err()
        };
        assert!(matches!(broken("DELETE FROM issued WHERE seq = 1"), ChainFault::Broken { seq: 2, .. }));
        assert!(matches!(broken("DELETE FROM issued WHERE seq = 3"), ChainFault::Broken { seq: 4, .. }));
        assert!(matches!(broken("DELETE FROM issued WHERE seq > 2"), ChainFault::Cut { found: 2, last: 4 }));
        let swap = "UPDATE issued SET seq = -2 WHERE seq = 2; UPDATE issued SET seq = 2 WHERE seq = 3;
                UPDATE issued SET seq = 3 WHERE seq = -2;";
        assert!(matches!(broken(swap), ChainFault::Broken { seq: 2, .. }));
        let copy =
            "INSERT INTO issued SELECT 5, 'dd', id, dns_names, not_before, not_after, credential, credential_ref,
                certificate, issued_at, hash FROM issued WHERE seq = 4";
        assert!(matches!(broken(copy), ChainFault::Broken { seq: 5, .. }));
        // An anchor that nobody's pruning left does not make a hole good.
        let forged = "DELETE FROM issued WHERE seq < 3; INSERT INTO log_anchor VALUES (2, zeroblob(32), 2, 0)";
        assert!(matches!(broken(forged), ChainFault::Broken { seq: 3, .. }));
    }
}

#[test]
fn nothing_is_recorded_behind_a_log_that_was_cut() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 4);
        meddle(&mut db, "DELETE FROM issued WHERE seq > 2");
        let error = db.transaction(|tx| tx.append(&entry("aa"))).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged(what) if what.contains("ends at record 2")), "{error}");
        assert!(matches!(verify(&mut db).unwrap_err(), ChainFault::Cut { found: 2, last: 4 }));
    }
}

#[test]
fn a_hole_that_the_chain_was_closed_over_is_found() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 2);
        let (_, before) = db.snapshot(|tx| tx.read_head()).unwrap();
        // A right hash, but numbers 3 and 4 were never there.
        let next = entry("aa");
        let hash = before.of_next(5, &next);
        db.transaction(|tx| tx.execute(super::log::INSERT, &super::log::values(&next, "[]", 5, &hash)).map(drop))
            .unwrap();
        assert!(matches!(verify(&mut db).unwrap_err(), ChainFault::Broken { seq: 5, .. }));
    }
}

#[test]
fn a_hash_noted_elsewhere_shows_a_log_that_was_written_anew() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 3);
        let noted = verify(&mut db).unwrap().head;
        db.transaction(|tx| tx.append(&entry("aa"))).unwrap();
        let proved = db.transaction(|tx| tx.verify_chain(Some(noted))).unwrap();
        assert_eq!(proved.records, 4);
        // The same number of records, a chain without a flaw, and another history.
        let (_place, mut other) = database(dialect, 2);
        other.transaction(|tx| tx.append(&entry("bb"))).unwrap();
        verify(&mut other).unwrap();
        let fault = other.transaction(|tx| tx.verify_chain(Some(noted))).unwrap_err();
        assert!(matches!(fault, ChainFault::HeadMissing(hash) if hash == noted), "{fault}");
    }
}

#[test]
fn pruning_takes_the_old_from_the_front_and_the_rest_still_proves_itself() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 6);
        let noted = verify(&mut db).unwrap().head;
        let pruned = db.transaction(|tx| tx.prune(at(3), at(1000))).unwrap();
        assert_eq!((pruned.records, pruned.anchor.unwrap().0), (3, 3), "not_after 0, 1 and 2 are before 3");
        let report = db.transaction(|tx| tx.verify_chain(Some(noted))).unwrap();
        assert_eq!((report.records, report.anchor), (3, pruned.anchor));
        assert_eq!(report.head, noted);
        // Records go on from there, also when nothing is left at all.
        assert_eq!(db.transaction(|tx| tx.prune(at(1000), at(1000))).unwrap().records, 3);
        assert_eq!(verify(&mut db).unwrap().head, noted);
        db.transaction(|tx| tx.append(&entry("aa"))).unwrap();
        let report = db.transaction(|tx| tx.verify_chain(Some(noted))).unwrap();
        assert_eq!((report.records, report.last_seq), (1, 7));
        assert_eq!(db.transaction(|tx| tx.prune(at(0), at(1000))).unwrap().anchor, None);
    }
}

#[test]
fn forgetting_goes_in_steps_proves_what_goes_and_takes_old_tokens_along() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 6);
        let noted = verify(&mut db).unwrap().head;
        for n in 0..4 {
            let token = TokenRow {
                id: "spiffe://mesh.example/a".into(),
                dns_names: vec![],
                created_at: at(0),
                expires_at: at(i64::from(n)),
                used_at: None,
                revoked_at: None,
            };
            db.transaction(|tx| tx.insert_token(&[n; 32], &token)).unwrap();
        }
        let mut forget = |before, at_once| db.transaction(|tx| tx.forget::<ChainFault>(before, at(1000), at_once));
        let first = forget(at(3), 2).unwrap();
        assert_eq!((first.pruned.records, first.tokens), (2, 2), "no more than were asked for");
        let second = forget(at(3), 2).unwrap();
        assert_eq!((second.pruned.records, second.tokens), (1, 1), "not_after and expires_at 2 are before 3");
        assert_eq!(forget(at(3), 2).unwrap().pruned.anchor, None);
        assert_eq!(db.snapshot(|tx| tx.list_tokens()).unwrap().len(), 1);
        let report = db.snapshot(|tx| tx.verify_chain(Some(noted))).unwrap();
        assert_eq!((report.records, report.anchor), (3, second.pruned.anchor));
        // What was meddled with is kept, for people to look at.
        meddle(&mut db, "UPDATE issued SET issued_at = 0 WHERE seq = 5");
        let fault = db.transaction(|tx| tx.forget::<ChainFault>(at(1000), at(1000), 100)).unwrap_err();
        assert!(matches!(fault, ChainFault::Broken { seq: 5, .. }), "{fault}");
        assert!(db.snapshot(|tx| tx.by_serial("03")).unwrap().is_some());
    }
}

#[test]
fn a_certificate_that_is_still_good_keeps_its_record_and_those_behind_it() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 4);
        // Told to forget what expires in the future, it still keeps what is good now.
        assert_eq!(db.transaction(|tx| tx.prune(at(1000), at(2))).unwrap().records, 2);
        assert!(db.snapshot(|tx| tx.by_serial("02")).unwrap().is_some());
    }
}

#[test]
fn nothing_is_deleted_that_no_anchor_stands_for() {
    for dialect in BOTH {
        let (_place, mut db) = database(dialect, 4);
        let error = db.batch("DELETE FROM issued WHERE seq = 1").unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
        db.transaction(|tx| tx.prune(at(2), at(1000))).unwrap();
        let error = db.batch("DELETE FROM issued WHERE seq = 3").unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

/// The first schema, as the first version left it on disks.
const FIRST_SCHEMA: &str = "
    CREATE TABLE token (hash BLOB PRIMARY KEY, id TEXT NOT NULL, dns_names TEXT NOT NULL, created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL, used_at INTEGER) STRICT;
    CREATE TABLE issued (seq INTEGER PRIMARY KEY AUTOINCREMENT, serial TEXT NOT NULL UNIQUE, id TEXT,
        dns_names TEXT NOT NULL, not_before INTEGER NOT NULL, not_after INTEGER NOT NULL, credential TEXT NOT NULL,
        credential_ref TEXT, certificate BLOB NOT NULL, issued_at INTEGER NOT NULL) STRICT;
    CREATE TRIGGER issued_is_append_only BEFORE UPDATE ON issued
        BEGIN SELECT RAISE(ABORT, 'the issuance log is append-only'); END;
    PRAGMA user_version = 1;";
const FIRST_INSERT: &str = "INSERT INTO issued (serial, id, dns_names, not_before, not_after, credential,
    credential_ref, certificate, issued_at) VALUES (?1, 'spiffe://mesh.example/a', '[\"a.mesh\"]', 1, 2, 'token', 'ff',
    x'0102', 1)";

#[test]
fn a_log_of_the_first_version_is_chained_and_nothing_of_it_lost() {
    let file = file();
    let first = Connection::open(file.path()).unwrap();
    first.execute_batch(FIRST_SCHEMA).unwrap();
    for serial in ["aa", "bb", "cc"] {
        first.execute(FIRST_INSERT, [serial]).unwrap();
    }
    let token = "INSERT INTO token VALUES (zeroblob(32), 'spiffe://mesh.example/a', '[]', 1, 2, NULL)";
    first.execute(token, []).unwrap();

    let mut db = Database::open(file.path()).unwrap();
    assert_eq!(verify(&mut db).unwrap().records, 3);
    let kept = db.snapshot(|tx| tx.by_serial("bb")).unwrap().unwrap();
    assert_eq!((kept.dns_names, kept.certificate), (vec!["a.mesh".to_owned()], vec![1, 2]));
    assert!(db.snapshot(|tx| tx.token_by_hash(&[0; 32])).unwrap().unwrap().revoked_at.is_none());
    db.transaction(|tx| tx.append(&entry("dd"))).unwrap();
    assert_eq!(verify(&mut db).unwrap().last_seq, 4);
    let error = db.batch("UPDATE issued SET id = 'x'").unwrap_err();
    assert!(error.to_string().contains("append-only"), "{error}");

    // A server of the first version that is still running cannot write past the chain.
    assert!(first.execute(FIRST_INSERT, ["ee"]).is_err());
    assert_eq!(verify(&mut db).unwrap().last_seq, 4);
}

#[test]
fn a_log_that_was_empty_is_chained_too() {
    let file = file();
    Connection::open(file.path()).unwrap().execute_batch(FIRST_SCHEMA).unwrap();
    let mut db = Database::open(file.path()).unwrap();
    db.transaction(|tx| tx.append(&entry("aa"))).unwrap();
    assert_eq!(verify(&mut db).unwrap().records, 1);
}

#[test]
fn a_revoked_token_is_not_spent_and_a_spent_one_not_revoked() {
    for place in places() {
        let mut db = place.open();
        let token = |id: &str| TokenRow {
            id: id.into(),
            dns_names: vec![],
            created_at: at(0),
            expires_at: at(10),
            used_at: None,
            revoked_at: None,
        };
        for (hash, id) in [([1; 32], "a"), ([2; 32], "a"), ([3; 32], "b"), ([4; 32], "b")] {
            let token = token(&format!("spiffe://mesh.example/{id}"));
            db.transaction(|tx| tx.insert_token(&hash, &token)).unwrap();
        }
        assert!(db.transaction(|tx| tx.revoke_token(&[1; 32], at(1))).unwrap());
        assert!(!db.transaction(|tx| tx.revoke_token(&[1; 32], at(2))).unwrap(), "revoked twice");
        assert!(!db.transaction(|tx| tx.spend_token(&[1; 32], at(2))).unwrap(), "spent after it was revoked");
        assert!(db.transaction(|tx| tx.spend_token(&[2; 32], at(2))).unwrap());
        assert!(!db.transaction(|tx| tx.revoke_token(&[2; 32], at(3))).unwrap(), "revoked after it was spent");
        assert_eq!(db.transaction(|tx| tx.revoke_tokens_of("spiffe://mesh.example/b", at(3))).unwrap(), 2);
        let states: Vec<_> =
            db.snapshot(|tx| tx.list_tokens()).unwrap().iter().map(|(_, t)| t.state(at(20)).as_str()).collect();
        assert_eq!(states, ["revoked", "used", "revoked", "revoked"]);
        assert_eq!(db.transaction(|tx| tx.tokens_by_ref("02020202")).unwrap().len(), 1);
        assert!(db.transaction(|tx| tx.tokens_by_ref("02020203")).unwrap().is_empty());
    }
}
