//! SIGKILL while certificates are being made: what the log then says, and what has left the house.

use std::time::{Duration, Instant};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolError, EnrolRequest, Enrolled, enrol},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, ID, Server, leaf};

fn enrolling(
    address: &str,
    bundle: &str,
    token: &str,
) -> impl Future<Output = Result<Enrolled, EnrolError>> + Send + use<> {
    let (address, bundle, token) = (address.to_owned(), bundle.to_owned(), token.to_owned());
    async move {
        let (_, csr) = new_key_and_csr(None).unwrap();
        let (bundle_pem, csr_pem, credential) = (bundle.as_str(), csr.as_str(), Credential::Token(token));
        enrol(EnrolRequest { address: &address, bundle_pem, credential, csr_pem, ttl: None, cluster_id: None }).await
    }
}

#[tokio::test]
async fn a_kill_under_load_leaves_no_certificate_without_its_record() {
    // More than two transactions take, or a kill could come after the last of them.
    const CALLERS: usize = 200;
    let ca = Ca::new();
    let bundle = ca.bundle();
    for kill_after in [0, 1, 5, 17] {
        let tokens = ca.tokens(CALLERS);
        let mut server = ca.serve();
        let mut callers = JoinSet::new();
        for token in tokens {
            callers.spawn(enrolling(&server.address, &bundle, &token));
        }
        // At the moment when so many have their certificate, the others are anywhere on their way.
        let mut received = Vec::new();
        while received.len() < kill_after {
            received.push(callers.join_next().await.unwrap().unwrap().unwrap());
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        received.extend(callers.join_all().await.into_iter().filter_map(Result::ok));
        assert!(received.len() < CALLERS, "the kill came too late to prove anything");

        let log = ca.log();
        for enrolled in &received {
            let pem = leaf(&enrolled.chain_pem);
            let serial: String = pem.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect();
            assert!(log.iter().any(|e| e["serial"] == serial), "serial {serial} is in the world and not in the log");
        }
        let recorded = log.iter().filter(|e| e["credential"] == "token").count() as i64;
        let spent: i64 = ca
            .sqlite()
            .query_row("SELECT count(*) FROM token WHERE used_at IS NOT NULL", [], |row| row.get(0))
            .unwrap();
        assert_eq!(spent, recorded, "a token is spent exactly when its certificate is recorded");
        println!(
            "killed after {kill_after}: {} of {CALLERS} have a certificate, {recorded} recorded so far",
            received.len()
        );
    }
}

/// Passes bytes on, those from the CA only until told to hold them.
struct Relay {
    address: String,
    hold: watch::Sender<bool>,
}

impl Relay {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (hold, held) = watch::channel(false);
        let to = server.address.clone();
        tokio::spawn(async move {
            let (caller, _) = listener.accept().await.unwrap();
            let (mut from_caller, mut to_caller) = caller.into_split();
            let (mut from_ca, mut to_ca) = TcpStream::connect(to).await.unwrap().into_split();
            let forth = tokio::io::copy(&mut from_caller, &mut to_ca);
            let back = async {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from_ca.read(&mut buffer).await {
                    if !*held.borrow() {
                        to_caller.write_all(&buffer[..n]).await.unwrap();
                    }
                }
            };
            tokio::select! { _ = forth => {}, () = back => {} }
        });
        Self { address, hold }
    }
}

/// A caller's whole request has come and waits for the database, which the test has locked.
const REQUEST_IS_THERE: Duration = Duration::from_millis(700);

fn enrolled_by_token(ca: &Ca) -> usize {
    ca.log().iter().filter(|e| e["credential"] == "token").count()
}

#[tokio::test]
async fn no_certificate_leaves_before_its_record_is_made() {
    let ca = Ca::new();
    let (bundle, token, database) = (ca.bundle(), ca.token(ID), ca.sqlite());
    let mut server = ca.serve();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let caller = tokio::spawn(enrolling(&server.address, &bundle, &token));
    tokio::time::sleep(REQUEST_IS_THERE).await;
    assert!(!caller.is_finished(), "answered without a record: {:?}", caller.await);
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    caller.await.unwrap().unwrap_err();
    database.execute_batch("ROLLBACK").unwrap();
    assert_eq!(enrolled_by_token(&ca), 0);

    // Nothing happened, so the token is still good.
    let server = ca.serve();
    enrolling(&server.address, &bundle, &token).await.unwrap();
    assert_eq!(enrolled_by_token(&ca), 1);
}

#[tokio::test]
async fn a_kill_between_record_and_reply_leaves_the_certificate_in_the_log() {
    let ca = Ca::new();
    let (bundle, token, database) = (ca.bundle(), ca.token(ID), ca.sqlite());
    let mut server = ca.serve();
    let relay = Relay::to(&server).await;
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let caller = tokio::spawn(enrolling(&relay.address, &bundle, &token));
    tokio::time::sleep(REQUEST_IS_THERE).await;
    relay.hold.send(true).unwrap();
    database.execute_batch("ROLLBACK").unwrap();
    let asked = Instant::now();
    while enrolled_by_token(&ca) == 0 {
        assert!(asked.elapsed() < Duration::from_secs(4), "no record");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let error = caller.await.unwrap().expect_err("the reply was held back");
    assert!(!error.is_permanent(), "{error}");

    // The certificate that nobody has is in the log, whole, and its token is spent.
    let mut entries = ca.log();
    entries.retain(|e| e["credential"] == "token");
    assert_eq!((entries.len(), &entries[0]["id"]), (1, &serde_json::json!(ID)));
    let der: Vec<u8> =
        database.query_row("SELECT certificate FROM issued WHERE credential = 'token'", [], |row| row.get(0)).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let serial: String = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(entries[0]["serial"], serial);
    let server = ca.serve();
    let error = enrolling(&server.address, &bundle, &token).await.unwrap_err();
    assert!(error.is_permanent() && error.to_string().contains("used"), "{error}");
}
