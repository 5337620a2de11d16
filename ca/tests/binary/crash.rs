//! SIGKILL at 200 random moments while callers enrol and renew, with a restart after each: no certificate in the world
//! without its record, no token both spent and unspent, and a log that is whole.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolRequest, enrol},
};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::{Ca, leaf, ok};

const KILLS: usize = 200;
const CALLERS: usize = 8;
const TOKENS: usize = 4000;
/// A server is killed at the latest so long after it began to listen: an enrolment takes a few milliseconds, so that
/// kills come before, in and after the first ones.
const LONGEST_LIFE: Duration = Duration::from_millis(40);
/// Certificates that each token begins: by the token, and by renewals.
const GENERATIONS: usize = 3;

/// What the callers have seen.
#[derive(Default)]
struct Seen {
    /// Serials that arrived.
    arrived: Mutex<Vec<String>>,
    /// Tokens that were shown at least once.
    shown: Mutex<HashSet<String>>,
    /// Attempts that a kill, or the time without a server, has cut.
    cut: AtomicUsize,
    /// Tokens that were spent on a certificate that never arrived.
    orphans: AtomicUsize,
}

/// Takes tokens one after the other, tries with each until it is spent, and renews what it got.
async fn call(
    tokens: Arc<Mutex<Vec<String>>>,
    bundle: Arc<String>,
    mut address: watch::Receiver<Option<String>>,
    seen: Arc<Seen>,
) {
    'token: loop {
        let Some(token) = tokens.lock().unwrap().pop() else { return };
        seen.shown.lock().unwrap().insert(token.clone());
        let mut credential = Credential::Token(token);
        let mut generation = 0;
        while generation < GENERATIONS {
            let Ok(to) = address.wait_for(Option::is_some).await.map(|to| to.clone().unwrap()) else { return };
            let (key, csr) = new_key_and_csr(None).unwrap();
            let (bundle_pem, csr_pem) = (bundle.as_str(), csr.as_str());
            let asked = EnrolRequest {
                address: &to,
                bundle_pem,
                credential: credential.clone(),
                csr_pem,
                ttl: None,
                cluster_id: None,
            };
            match enrol(asked).await {
                Ok(enrolled) => {
                    let pem = leaf(&enrolled.chain_pem);
                    let serial = pem.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect();
                    seen.arrived.lock().unwrap().push(serial);
                    let key_pem = key.as_str().to_owned();
                    credential = Credential::Certificate { chain_pem: enrolled.chain_pem, key_pem };
                    generation += 1;
                }
                Err(error) if error.to_string().contains("already used") => {
                    seen.orphans.fetch_add(1, Ordering::Relaxed);
                    continue 'token;
                }
                Err(error) => {
                    assert!(!error.is_permanent(), "a crash looks like a refusal: {error}");
                    seen.cut.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(2)).await;
                }
            }
        }
    }
}

#[test]
fn two_hundred_kills_leave_every_certificate_recorded_and_every_token_in_one_state() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let ca = Ca::new();
    let bundle = Arc::new(ca.bundle());
    let tokens = Arc::new(Mutex::new(ca.tokens(TOKENS)));
    let (seen, (announce, address)) = (Arc::new(Seen::default()), watch::channel(None));
    let world = (tokens.clone(), bundle.clone(), seen.clone());
    // On a thread of their own, so that nothing here holds them up.
    let callers = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut callers = JoinSet::new();
            for _ in 0..CALLERS {
                let (tokens, bundle, seen) = world.clone();
                callers.spawn(call(tokens, bundle, address.clone(), seen));
            }
            drop(address);
            callers.join_all().await;
        });
    });
    let began = Instant::now();
    for _ in 0..KILLS {
        let mut server = ca.serve();
        announce.send_replace(Some(server.address.clone()));
        thread::sleep(LONGEST_LIFE.mul_f64(random.f64()));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        announce.send_replace(None);
    }
    let took = began.elapsed();
    // Nobody waits for a server any more.
    drop(announce);
    callers.join().unwrap();

    ok(&["log", "verify", "--dir", &ca.path("ca")]);
    let log = ca.log();
    let serials: HashSet<&str> = log.iter().map(|e| e["serial"].as_str().unwrap()).collect();
    assert_eq!(serials.len(), log.len(), "a serial was recorded twice");
    let arrived = seen.arrived.lock().unwrap();
    let lost: Vec<_> = arrived.iter().filter(|serial| !serials.contains(serial.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?} are in the world and not in the log; seed {seed}");
    assert_eq!(arrived.iter().collect::<HashSet<_>>().len(), arrived.len(), "a serial arrived twice");

    // Spent exactly when one record, and no more, refers to it.
    let mut records: HashMap<&str, usize> = HashMap::new();
    for entry in log.iter().filter(|e| e["credential"] == "token") {
        *records.entry(entry["credential_ref"].as_str().unwrap()).or_default() += 1;
    }
    let listed = ok(&["token", "list", "--dir", &ca.path("ca"), "--json"]);
    let listed: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), TOKENS);
    for token in &listed {
        let (state, hash) = (token["state"].as_str().unwrap(), token["ref"].as_str().unwrap());
        let recorded = records.remove(hash).unwrap_or(0);
        assert_eq!(recorded, usize::from(state == "used"), "token {hash} is {state}; seed {seed}");
    }
    assert!(records.is_empty(), "records of tokens that do not exist: {records:?}");

    let (shown, cut) = (seen.shown.lock().unwrap().len(), seen.cut.load(Ordering::Relaxed));
    println!(
        "{KILLS} kills in {took:?}: {} certificates arrived, {} recorded, {shown} tokens shown, {cut} attempts cut, {} \
         certificates recorded that never arrived",
        arrived.len(),
        log.len(),
        seen.orphans.load(Ordering::Relaxed)
    );
    assert!(arrived.len() > KILLS && cut > KILLS / 4, "the kills met no load: they prove nothing");
    assert!(shown < TOKENS, "the tokens ran out, and with them the load");
    assert!(took < Duration::from_secs(120), "{took:?}");
}
