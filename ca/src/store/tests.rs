#![allow(clippy::unwrap_used)]

use time::OffsetDateTime;

use super::*;
use outrigger_identity::SpiffeId;

pub(super) fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
}

/// A new database.
pub(super) struct Place {
    location: Location,
    _file: Option<tempfile::NamedTempFile>,
}

impl Place {
    pub(super) fn open(&self) -> Database {
        Database::at(&self.location, &domain(), Claim::Existing).unwrap()
    }

    /// Opens it on a thread of its own, for tests in a runtime, where a blocking client must not be.
    fn spawn(&self) -> (Store, std::thread::JoinHandle<()>) {
        let location = self.location.clone();
        let open = move || Store::spawn(Database::at(&location, &domain(), Claim::Existing).unwrap()).unwrap();
        std::thread::spawn(open).join().unwrap()
    }

    /// As [`Place::open`], for one use, in tests in a runtime.
    fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Database) -> T + Send + 'static) -> T {
        let location = self.location.clone();
        let run = move || work(&mut Database::at(&location, &domain(), Claim::Existing).unwrap());
        std::thread::spawn(run).join().unwrap()
    }
}

pub(super) fn domain() -> TrustDomain {
    TrustDomain::parse("mesh.example").unwrap()
}

/// A new place, empty but for the schema.
pub(super) fn place(dialect: Dialect) -> Place {
    match dialect {
        Dialect::Sqlite => {
            let file = file();
            Place { location: Location::File(file.path().to_owned()), _file: Some(file) }
        }
        Dialect::Postgres => {
            let make = || {
                let url = server::Postgres::shared().database().parse().unwrap();
                let location = Location::Postgres(url);
                Database::at(&location, &domain(), Claim::New).unwrap().take(&domain()).unwrap();
                location
            };
            Place { location: std::thread::spawn(make).join().unwrap(), _file: None }
        }
    }
}

/// What is promised is promised for each kind of database.
pub(super) const BOTH: [Dialect; 2] = [Dialect::Sqlite, Dialect::Postgres];

/// One of each kind.
pub(super) fn places() -> [Place; 2] {
    BOTH.map(place)
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

pub(super) fn serials(db: &mut Database) -> Vec<String> {
    let mut all = Vec::new();
    let seen = db.snapshot(|tx| {
        tx.for_each::<StoreError>(|e| {
            all.push(e.entry.serial);
            Ok(())
        })
    });
    seen.unwrap();
    all
}

#[test]
fn a_committed_record_is_there_for_the_next_process_and_whole() {
    for place in places() {
        let mut db = place.open();
        db.transaction(|tx| tx.append(&entry("aa"))).unwrap();
        // Another connection, while the first is still open and has closed nothing.
        let mut other = place.open();
        let read = other.snapshot(|tx| tx.by_serial("aa")).unwrap().unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", entry("aa")));
        assert!(other.snapshot(|tx| tx.by_serial("bb")).unwrap().is_none());
    }
}

#[test]
fn the_database_is_as_durable_as_it_promises() {
    let file = file();
    let mut db = Database::open(file.path()).unwrap();
    let mut pragma = |name: &str| {
        let row = db.sql.query_first(&format!("PRAGMA {name}"), &[]).unwrap().unwrap();
        row.int(0).map_or_else(|_| row.text(0).unwrap().to_owned(), |number| number.to_string())
    };
    assert_eq!(pragma("synchronous"), "2", "FULL");
    assert_eq!(pragma("foreign_keys"), "1");
    assert_eq!(pragma("journal_mode"), "wal");
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    for place in places() {
        let mut db = place.open();
        let result: Result<(), StoreError> = db.transaction(|tx| {
            tx.append(&entry("aa"))?;
            tx.append(&entry("aa")) // the same serial again
        });
        assert!(result.is_err());
        assert!(serials(&mut db).is_empty());
    }
}

#[test]
fn records_are_never_changed() {
    for place in places() {
        let mut db = place.open();
        db.transaction(|tx| tx.append(&entry("aa"))).unwrap();
        let error = db.batch("UPDATE issued SET id = 'x'").unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

#[test]
fn a_token_is_spent_once_and_not_after_its_time() {
    for place in places() {
        let mut db = place.open();
        let token = TokenRow {
            id: "spiffe://mesh.example/a".into(),
            dns_names: vec![],
            created_at: at(0),
            expires_at: at(10),
            used_at: None,
            revoked_at: None,
        };
        let (one, two) = ([1; 32], [2; 32]);
        db.transaction(|tx| tx.insert_token(&one, &token)).unwrap();
        db.transaction(|tx| tx.insert_token(&two, &token)).unwrap();
        let mut spend = |hash, now| db.transaction(|tx| tx.spend_token(hash, now)).unwrap();
        assert!(spend(&one, at(9)));
        assert!(!spend(&one, at(9)), "spent twice");
        assert!(!spend(&two, at(10)), "spent at its expiry");
        assert!(!spend(&[3; 32], at(0)), "unknown");
        assert!(spend(&two, at(9)), "the failed attempt must not have spent it");
    }
}

#[test]
fn a_key_is_its_holders_until_the_last_certificate_for_it_is_over_and_then_forgotten() {
    for place in places() {
        let mut db = place.open();
        let key = [7; 32];
        let mut holder = |now| db.transaction(|tx| tx.key_holder(&key, now)).unwrap();
        assert_eq!(holder(at(0)), None);
        let mut hold = |id: &str, until| db.transaction(|tx| tx.hold_key(&key, id, until)).unwrap();
        hold("spiffe://mesh.example/a", at(60));
        // A shorter one does not end the longer.
        hold("spiffe://mesh.example/a", at(10));
        let mut holder = |now| db.transaction(|tx| tx.key_holder(&key, now)).unwrap();
        assert_eq!(holder(at(60)).as_deref(), Some("spiffe://mesh.example/a"));
        assert_eq!(holder(at(61)), None);
        db.transaction(|tx| tx.hold_key(&key, "spiffe://mesh.example/b", at(70))).unwrap();
        let mut holder = |now| db.transaction(|tx| tx.key_holder(&key, now)).unwrap();
        assert_eq!(holder(at(65)).as_deref(), Some("spiffe://mesh.example/b"));
        db.transaction(|tx| tx.prune(at(71), at(71))).unwrap();
        let mut holder = |now| db.transaction(|tx| tx.key_holder(&key, now)).unwrap();
        assert_eq!(holder(at(0)), None, "it is forgotten");
    }
}

#[test]
fn the_names_of_servers_are_known_from_their_certificates() {
    for place in places() {
        let mut db = place.open();
        let server = LogEntry { id: None, dns_names: vec!["ca.mesh".into(), "127.0.0.1".into()], ..entry("01") };
        db.transaction(|tx| tx.append(&server)).unwrap();
        db.transaction(|tx| tx.append(&entry("02"))).unwrap();
        let mut taken = |names: &[&str], now| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            db.transaction(|tx| tx.name_of_a_server(&names, now)).unwrap()
        };
        assert_eq!(taken(&["x.mesh", "ca.mesh"], at(60)).as_deref(), Some("ca.mesh"));
        assert_eq!(taken(&["a.mesh", "mesh"], at(60)), None);
        assert_eq!(taken(&["ca.mesh"], at(61)), None);
        assert_eq!(taken(&[], at(60)), None);
    }
}

#[test]
fn who_only_looks_changes_nothing_and_waits_for_nobody() {
    for place in places() {
        let mut db = place.open();
        let looked = db.transaction(|_| {
            let mut other = Database::look(&place.location, &domain())?;
            other.snapshot(|tx| tx.tokens_waiting(at(0)))
        });
        assert_eq!(looked.unwrap(), 0, "while somebody writes");
    }
    let file = file();
    let location = Location::File(file.path().to_owned());
    let version = || {
        let db = rusqlite::Connection::open(file.path()).unwrap();
        db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(matches!(Database::look(&location, &domain()), Err(StoreError::Older { found: 0, .. })));
    assert_eq!(version(), 0);
    drop(Database::open(file.path()).unwrap());
    Database::look(&location, &domain()).unwrap();
    let known = version();
    rusqlite::Connection::open(file.path()).unwrap().pragma_update(None, "user_version", known - 1).unwrap();
    let error = Database::look(&location, &domain()).unwrap_err();
    assert!(error.to_string().contains("looking does not change it"), "{error}");
    assert_eq!(version(), known - 1);
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
    for place in places() {
        let (store, thread) = place.spawn();
        let (begin, wait) = std::sync::mpsc::channel::<()>();
        let busy = tokio::spawn({
            let store = store.clone();
            async move {
                let hold = move |_: &mut Transaction<'_>| {
                    wait.recv().unwrap();
                    Ok::<_, StoreError>(())
                };
                store.transaction(hold).await
            }
        });
        tokio::task::yield_now().await;
        let record = |serial: &'static str| {
            let store = store.clone();
            async move { store.transaction(move |tx| tx.append(&entry(serial))).await }
        };
        let impatient = tokio::time::timeout(std::time::Duration::from_millis(50), record("aa"));
        assert!(impatient.await.is_err(), "it gave up");
        begin.send(()).unwrap();
        busy.await.unwrap().unwrap().unwrap();
        record("bb").await.unwrap().unwrap();
        drop(store);
        thread.join().unwrap();
        assert_eq!(place.with(serials), ["bb"]);
    }
}

#[tokio::test]
async fn callers_that_share_a_transaction_fail_each_for_itself() {
    for place in places() {
        let (store, thread) = place.spawn();
        let (begin, wait) = std::sync::mpsc::channel::<()>();
        let hold = {
            let store = store.clone();
            tokio::spawn(async move {
                let hold = move |_: &mut Transaction<'_>| {
                    wait.recv().unwrap();
                    Ok::<_, StoreError>(())
                };
                store.transaction(hold).await
            })
        };
        tokio::task::yield_now().await;
        let mut callers = tokio::task::JoinSet::new();
        for n in 0..100 {
            let store = store.clone();
            // Every third does its work and then fails; every third takes a serial that is there.
            callers.spawn(async move {
                let serial = if n % 3 == 1 { "00".to_owned() } else { format!("{n:02x}") };
                let work = move |tx: &mut Transaction<'_>| {
                    tx.append(&entry(&serial))?;
                    if n % 3 == 2 { Err(StoreError::Damaged("nothing".into())) } else { Ok(n) }
                };
                (n, store.transaction(work).await.unwrap())
            });
        }
        tokio::task::yield_now().await;
        begin.send(()).unwrap();
        hold.await.unwrap().unwrap().unwrap();
        let mut done = Vec::new();
        while let Some(caller) = callers.join_next().await {
            let (n, result) = caller.unwrap();
            if result.is_ok() {
                done.push(n);
            }
        }
        drop(store);
        thread.join().unwrap();
        done.sort_unstable();
        assert_eq!(done.len(), 34, "{done:?}");
        let mut there: Vec<_> =
            place.with(serials).iter().map(|serial| i64::from_str_radix(serial, 16).unwrap()).collect();
        there.sort_unstable();
        assert_eq!(there.len(), done.len(), "who was told Ok is there, and nobody else");
        assert_eq!(place.with(|db| db.snapshot(|tx| tx.verify_chain(None))).unwrap().records, 34);
    }
}

/// Records a second, of callers who each wait for their own commit and of callers who share one. Run it by
/// `cargo test -p outrigger-ca --lib records_a_second -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn records_a_second() {
    const ALONE: usize = 300;
    const TOGETHER: usize = 5000;
    const CALLERS: usize = 64;
    for dialect in BOTH {
        let place = place(dialect);
        let mut db = place.open();
        let begun = Instant::now();
        for n in 0..ALONE {
            db.transaction(|tx| tx.append(&entry(&format!("a{n}")))).unwrap();
        }
        let alone = ALONE as f64 / begun.elapsed().as_secs_f64();
        let (store, thread) = place.spawn();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let begun = Instant::now();
        runtime.block_on(async {
            let mut callers = tokio::task::JoinSet::new();
            for caller in 0..CALLERS {
                let store = store.clone();
                callers.spawn(async move {
                    for n in 0..TOGETHER / CALLERS {
                        let record = entry(&format!("b{caller}-{n}"));
                        store.transaction(move |tx| tx.append(&record)).await.unwrap().unwrap();
                    }
                });
            }
            callers.join_all().await;
        });
        let together = (TOGETHER / CALLERS * CALLERS) as f64 / begun.elapsed().as_secs_f64();
        println!("{dialect:?}: {alone:.0} records a second one by one, {together:.0} of {CALLERS} callers at once");
        drop(store);
        thread.join().unwrap();
    }
}
