//! What a server, a network and other processes do to PostgreSQL's transactions.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    server::Postgres,
    tests::{at, domain, entry, place, serials},
    *,
};

const PASS: u8 = 0;
/// The connection breaks when a commit has been done and before the answer comes.
const CUT_AFTER_COMMIT: u8 = 1;
/// It breaks with the commit on its way.
const CUT_BEFORE_COMMIT: u8 = 2;

/// A network in front of the shared server, that fails once when it is told to.
struct Network {
    port: u16,
    plan: Arc<AtomicU8>,
}

impl Network {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(AtomicU8::new(PASS));
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let server = TcpStream::connect(("127.0.0.1", Postgres::shared().port())).unwrap();
                relay(client.unwrap(), server, Arc::clone(&shared));
            }
        });
        Self { port, plan }
    }

    /// A database behind it.
    fn database(&self) -> Database {
        let url = Postgres::shared().database();
        let name = url.rsplit('/').next().unwrap();
        let location = Location::Postgres(
            format!("postgres://ca@127.0.0.1:{}/{name}?sslmode=disable", self.port).parse().unwrap(),
        );
        Database::at(&location, &domain(), Claim::New).unwrap().take(&domain()).unwrap();
        Database::at(&location, &domain(), Claim::Existing).unwrap()
    }
}

fn relay(client: TcpStream, server: TcpStream, plan: Arc<AtomicU8>) {
    let (mut from_client, mut to_client) = (client.try_clone().unwrap(), client);
    let (mut from_server, mut to_server) = (server.try_clone().unwrap(), server);
    let muted = Arc::new(AtomicU8::new(0));
    let mute = Arc::clone(&muted);
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer) {
            if muted.load(Ordering::SeqCst) == 0 && to_client.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to_client.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(n @ 1..) = from_client.read(&mut buffer) {
            let commit = buffer[..n].windows(7).any(|bytes| bytes == b"COMMIT\0");
            let cut = if commit { plan.swap(PASS, Ordering::SeqCst) } else { PASS };
            if cut != PASS {
                mute.store(1, Ordering::SeqCst);
            }
            if cut == CUT_AFTER_COMMIT {
                to_server.write_all(&buffer[..n]).unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
            if cut != PASS || to_server.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = (to_server.shutdown(Shutdown::Both), from_client.shutdown(Shutdown::Both));
    });
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_out_and_not_done_twice() {
    let network = Network::new();
    let mut db = network.database();
    for (cut, times) in [(CUT_AFTER_COMMIT, 1), (CUT_BEFORE_COMMIT, 2)] {
        network.plan.store(cut, Ordering::SeqCst);
        let mut runs = 0;
        let done = db.transaction(|tx| {
            runs += 1;
            tx.append(&entry(&format!("{cut}{runs}"))).map(|()| runs)
        });
        assert_eq!(done.unwrap(), times, "what is told is what was committed");
        assert_eq!(network.plan.load(Ordering::SeqCst), PASS, "the network did not fail");
    }
    assert_eq!(serials(&mut db), ["11", "22"]);
    db.snapshot(|tx| tx.verify_chain(None)).unwrap();

    // Of what leaves no record nothing can be found out, and that is said.
    network.plan.store(CUT_AFTER_COMMIT, Ordering::SeqCst);
    let error = db.transaction(|tx| tx.revoke_tokens_of("spiffe://mesh.example/a", at(0))).unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_)), "{error}");
}

#[test]
fn a_connection_that_the_server_ends_is_made_anew_and_the_work_done_again() {
    let place = place(Dialect::Postgres);
    let mut db = place.open();
    let mut other = place.open();
    let mut runs = 0;
    db.transaction(|tx| {
        runs += 1;
        tx.append(&entry("aa"))?;
        if runs == 1 {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            other.snapshot(|tx| tx.query(end, &[]))?;
        }
        tx.append(&entry("bb"))
    })
    .unwrap();
    assert_eq!(runs, 2);
    assert_eq!(serials(&mut db), ["aa", "bb"]);
}

#[test]
fn a_failed_statement_whose_error_is_swallowed_commits_nothing() {
    let place = place(Dialect::Postgres);
    let mut db = place.open();
    let error = db.transaction(|tx| {
        tx.append(&entry("aa"))?;
        // The server rolls back at COMMIT, and calls that a success.
        let _ = tx.append(&entry("aa"));
        Ok::<_, StoreError>(())
    });
    assert!(error.is_err());
    assert!(serials(&mut db).is_empty());
}

#[test]
fn a_commit_is_on_the_disk_whatever_the_server_does_by_default() {
    let place = place(Dialect::Postgres);
    let mut db = place.open();
    for (default, meant) in [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")] {
        db.batch(&format!("SET synchronous_commit = {default}")).unwrap();
        let now = db.transaction(|tx| tx.query("SELECT current_setting('synchronous_commit')", &[])).unwrap();
        assert_eq!(now[0].text(0).unwrap(), meant, "{default}");
    }
}

#[test]
fn ten_that_open_a_new_database_at_once_make_one_schema_and_a_newer_one_is_left_alone() {
    let location = Location::Postgres(Postgres::shared().database().parse().unwrap());
    let open = || Database::at(&location, &domain(), Claim::New).map(drop);
    std::thread::scope(|scope| {
        let openers: Vec<_> = (0..10).map(|_| scope.spawn(open)).collect();
        openers.into_iter().for_each(|opener| opener.join().unwrap().unwrap());
    });
    let mut db = Database::at(&location, &domain(), Claim::New).unwrap();
    db.batch("UPDATE schema_version SET version = 99").unwrap();
    assert!(matches!(open(), Err(StoreError::Newer { found: 99, .. })));
}

fn certificate(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::from_params(&params, &key);
    let own = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&own, &issuer).unwrap();
    std::fs::write(dir.join("server.pem"), leaf.pem()).unwrap();
    std::fs::write(dir.join("server-key.pem"), own.serialize_pem()).unwrap();
    std::fs::set_permissions(dir.join("server-key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn the_server_proves_itself_as_sslmode_says() {
    let stranger = tempfile::tempdir().unwrap();
    certificate(stranger.path());
    let ours = tempfile::tempdir().unwrap();
    let roots = ours.path().join("root.pem");
    let server = Postgres::start(|dir| {
        certificate(dir);
        std::fs::copy(dir.join("root.pem"), &roots).unwrap();
        let file = |name: &str| dir.join(name).display().to_string();
        vec![
            "-c ssl=on".into(),
            format!("-c ssl_cert_file={}", file("server.pem")),
            format!("-c ssl_key_file={}", file("server-key.pem")),
        ]
    });
    let open = |host: &str, mode: &str, roots: &Path| {
        let url = format!(
            "postgres://ca@{host}:{}/postgres?sslmode={mode}&sslrootcert={}",
            server.port(),
            roots.display().to_string().replace('/', "%2F")
        );
        let mut db = Database::at(&Location::Postgres(url.parse().unwrap()), &domain(), Claim::New)?;
        let ssl = db.snapshot(|tx| tx.query("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]))?;
        ssl[0].text(0).map(str::to_owned)
    };
    assert_eq!(open("localhost", "verify-full", &roots).unwrap(), "true");
    assert_eq!(open("127.0.0.1", "verify-ca", &roots).unwrap(), "true");
    assert_eq!(open("127.0.0.1", "disable", &roots).unwrap(), "false");
    let name = open("127.0.0.1", "verify-full", &roots).unwrap_err().to_string();
    assert!(name.contains("certificate"), "{name}");
    for mode in ["verify-full", "verify-ca"] {
        let unknown = open("localhost", mode, &stranger.path().join("root.pem")).unwrap_err().to_string();
        assert!(unknown.contains("certificate"), "{unknown}");
    }
    let absent = open("localhost", "verify-full", Path::new("/nowhere.pem")).unwrap_err().to_string();
    assert!(absent.contains("sslrootcert /nowhere.pem"), "{absent}");
}

#[test]
fn a_server_that_stays_away_is_waited_for_within_bounds() {
    let server = Postgres::start(|_| Vec::new());
    let location = Location::Postgres(server.url("postgres").parse().unwrap());
    Database::at(&location, &domain(), Claim::New).unwrap().take(&domain()).unwrap();
    let mut db = Database::at(&location, &domain(), Claim::Existing).unwrap();
    server.command("stop");
    let begun = Instant::now();
    let error = db.transaction(|tx| tx.append(&entry("aa"))).unwrap_err();
    assert!(matches!(error, StoreError::Postgres { .. }), "{error}");
    let waited = begun.elapsed();
    assert!(waited > PATIENCE / 2 && waited < PATIENCE + Duration::from_secs(2), "{waited:?}");
    server.command("start");
    db.transaction(|tx| tx.append(&entry("bb"))).unwrap();
    assert_eq!(serials(&mut db), ["bb"]);
}
