#![allow(clippy::unwrap_used)]

use time::OffsetDateTime;

use super::*;
use outrigger_identity::SpiffeId;

pub(super) fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
}

pub(super) fn file() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().unwrap()
}

pub(super) fn entry(serial: &str) -> LogEntry {
    LogEntry {
        serial: serial.into(),
        id: Some(SpiffeId::parse("spiffe://mesh.example/a").unwrap()),
        dns_names: vec!["a.mesh".into(), "b.mesh".into()],
        not_before: at(0),
        not_after: at(60),
        credential: CredentialKind::Token,
        credential_ref: Some("ff".into()),
        certificate: vec![1, 2, 3],
        issued_at: at(1),
    }
}

fn serials(db: &Database) -> Vec<String> {
    let mut all = Vec::new();
    for_each::<StoreError>(db.connection(), |e| {
        all.push(e.entry.serial);
        Ok(())
    })
    .unwrap();
    all
}

#[test]
fn a_committed_record_is_there_for_the_next_process_and_whole() {
    let file = file();
    let mut db = Database::open(file.path()).unwrap();
    db.transaction(|tx| append(tx, &entry("aa"))).unwrap();
    // Another connection, while the first is still open and has closed nothing.
    let other = Database::open(file.path()).unwrap();
    let read = by_serial(other.connection(), "aa").unwrap().unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", entry("aa")));
    assert!(by_serial(other.connection(), "bb").unwrap().is_none());
}

#[test]
fn the_database_is_as_durable_as_it_promises() {
    let file = file();
    let db = Database::open(file.path()).unwrap();
    let pragma = |name: &str| db.connection().pragma_query_value(None, name, |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2, "FULL");
    assert_eq!(pragma("foreign_keys"), 1);
    let mode: String = db.connection().pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    let file = file();
    let mut db = Database::open(file.path()).unwrap();
    let result: Result<(), StoreError> = db.transaction(|tx| {
        append(tx, &entry("aa"))?;
        append(tx, &entry("aa")) // the same serial again
    });
    assert!(result.is_err());
    assert!(serials(&db).is_empty());
}

#[test]
fn records_are_never_changed() {
    let file = file();
    let mut db = Database::open(file.path()).unwrap();
    db.transaction(|tx| append(tx, &entry("aa"))).unwrap();
    let error = db.connection().execute("UPDATE issued SET id = 'x'", []).unwrap_err();
    assert!(error.to_string().contains("append-only"), "{error}");
}

#[test]
fn a_token_is_spent_once_and_not_after_its_time() {
    let file = file();
    let mut db = Database::open(file.path()).unwrap();
    let token = TokenRow {
        id: "spiffe://mesh.example/a".into(),
        dns_names: vec![],
        created_at: at(0),
        expires_at: at(10),
        used_at: None,
        revoked_at: None,
    };
    let (one, two) = ([1; 32], [2; 32]);
    db.transaction(|tx| insert_token(tx, &one, &token)).unwrap();
    db.transaction(|tx| insert_token(tx, &two, &token)).unwrap();
    let mut spend = |hash, now| db.transaction(|tx| spend_token(tx, hash, now)).unwrap();
    assert!(spend(&one, at(9)));
    assert!(!spend(&one, at(9)), "spent twice");
    assert!(!spend(&two, at(10)), "spent at its expiry");
    assert!(!spend(&[3; 32], at(0)), "unknown");
    assert!(spend(&two, at(9)), "the failed attempt must not have spent it");
}

#[test]
fn a_newer_schema_is_left_alone_and_a_lost_file_is_not_made_anew() {
    let file = file();
    drop(Database::open(file.path()).unwrap());
    rusqlite::Connection::open(file.path()).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Database::open(file.path()), Err(StoreError::Newer { found: 99, .. })));
    let dir = tempfile::tempdir().unwrap();
    assert!(Database::open(&dir.path().join("ca.db")).is_err());
}

#[tokio::test]
async fn nothing_is_done_for_a_caller_that_has_gone_before_its_turn() {
    let file = file();
    let (store, thread) = Store::spawn(Database::open(file.path()).unwrap()).unwrap();
    let (begin, wait) = std::sync::mpsc::channel::<()>();
    let busy = tokio::spawn({
        let store = store.clone();
        async move { store.run(move |_| wait.recv()).await }
    });
    tokio::task::yield_now().await;
    let record = |serial: &'static str| {
        let store = store.clone();
        async move { store.run(move |db| db.transaction(|tx| append(tx, &entry(serial)))).await }
    };
    let impatient = tokio::time::timeout(std::time::Duration::from_millis(50), record("aa"));
    assert!(impatient.await.is_err(), "it gave up");
    begin.send(()).unwrap();
    busy.await.unwrap().unwrap().unwrap();
    record("bb").await.unwrap().unwrap();
    drop(store);
    thread.join().unwrap();
    assert_eq!(serials(&Database::open(file.path()).unwrap()), ["bb"]);
}
