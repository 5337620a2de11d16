//! Enrolment and renewal against a CA inside the test, on a paused clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::VecDeque,
    fs,
    future::Future,
    os::unix::fs::PermissionsExt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use outrigger_identity::{
    documents::{Documents, ReadCause, ReadError, Wanted},
    enrol::{Credential, EnrolCause, EnrolError, EnrolRequest, Enrolled},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    enrol::{CertificateAuthority, Enroller},
    tests_trust::Publishes,
    *,
};
use crate::{
    config::CaConfig,
    tls::test_pki::{Leaf, Pki, eventually, write_identity},
};

pub(super) const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";
pub(super) const SOON: Duration = Duration::from_millis(2500);

/// What the CA does with the next request; once the list is empty it issues for `ID`.
pub(super) enum Answer {
    Issue(&'static str),
    Fail(fn() -> EnrolCause),
    WrongRoot,
    /// Sets notBefore half an hour ahead: the sidecar's clock is behind.
    Early,
    /// Takes 5 s and sets notBefore near the end of them.
    Late,
    Hang,
}

pub(super) struct Request {
    at: Instant,
    /// The token, or nothing for a renewal with the certificate.
    pub(super) token: Option<String>,
    chain_pem: Option<String>,
    /// The roots that the CA is taken for what it is by.
    pub(super) bundle_pem: String,
    pub(super) csr_pem: String,
}

pub(super) struct FakeCa {
    pub(super) pki: Pki,
    pub(super) publishes: Mutex<Publishes>,
    /// Signs from now on, where there is one.
    pub(super) successor: Mutex<Option<Pki>>,
    /// The root of its server, PEM, where callers are to know it.
    pub(super) server_root: Mutex<Option<String>>,
    ttl: Duration,
    started: Instant,
    answers: Mutex<VecDeque<Answer>>,
    pub(super) requests: Mutex<Vec<Request>>,
    pub(super) always: Mutex<Option<fn() -> EnrolCause>>,
}

impl CertificateAuthority for FakeCa {
    fn enrol<'a>(
        &'a self,
        request: EnrolRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<Enrolled, EnrolError>> + Send + 'a>> {
        let (token, chain_pem) = match request.credential {
            Credential::Token(token) => (Some(token), None),
            Credential::Certificate { chain_pem, .. } => (None, Some(chain_pem)),
        };
        self.requests.lock().unwrap().push(Request {
            at: Instant::now(),
            token,
            chain_pem,
            bundle_pem: request.bundle_pem.to_owned(),
            csr_pem: request.csr_pem.to_owned(),
        });
        let fail = |cause| Err(EnrolError { address: request.address.to_owned(), cause });
        if !self.is_known_by(request.bundle_pem) {
            return Box::pin(std::future::ready(fail(EnrolCause::UnknownRoot)));
        }
        let default = match *self.always.lock().unwrap() {
            Some(cause) => Answer::Fail(cause),
            None => Answer::Issue(ID),
        };
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(default);
        let csr_pem = request.csr_pem;
        let result = match answer {
            Answer::Hang => return Box::pin(std::future::pending()),
            Answer::Fail(cause) => fail(cause()),
            Answer::Issue(id) => Ok(self.issue(id, csr_pem, &self.pki.root.pem)),
            Answer::Late => {
                return Box::pin(async {
                    sleep(Duration::from_secs(5)).await;
                    Ok(self.issue_from(-2, ID, csr_pem, &self.pki.root.pem))
                });
            }
            Answer::Early => Ok(self.issue_from(1_800, ID, csr_pem, &self.pki.root.pem)),
            Answer::WrongRoot => Ok(self.issue(ID, csr_pem, &Pki::new().root.pem)),
        };
        Box::pin(std::future::ready(result))
    }

    fn read<'a>(
        &'a self,
        address: &'a str,
        bundle_pem: &'a str,
        wanted: &'a [Wanted<'a>],
    ) -> Pin<Box<dyn Future<Output = Result<Documents, ReadError>> + Send + 'a>> {
        let mut answer = self.publishes.lock().unwrap().answer(address, bundle_pem, wanted);
        if !self.is_known_by(bundle_pem) {
            let cause = ReadCause::Connection(EnrolCause::UnknownRoot);
            answer = Err(ReadError { address: address.to_owned(), path: wanted[0].path.to_owned(), cause });
        }
        Box::pin(std::future::ready(answer))
    }
}

impl FakeCa {
    fn is_known_by(&self, bundle_pem: &str) -> bool {
        self.server_root.lock().unwrap().as_ref().is_none_or(|root| bundle_pem.contains(root.trim()))
    }

    fn issue(&self, id: &str, csr_pem: &str, roots_pem: &str) -> Enrolled {
        // Set back by a minute, as CAs do against clocks that differ.
        self.issue_from(-60, id, csr_pem, roots_pem)
    }

    fn issue_from(&self, from: i64, id: &str, csr_pem: &str, roots_pem: &str) -> Enrolled {
        let csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let mut leaf = Leaf::new(id, &["orders.mesh"]);
        let elapsed = i64::try_from(self.started.elapsed().as_secs()).unwrap();
        (leaf.from, leaf.until) = (elapsed + from, elapsed + i64::try_from(self.ttl.as_secs()).unwrap());
        let successor = self.successor.lock().unwrap();
        let (pki, roots_pem) = successor.as_ref().map_or((&self.pki, roots_pem), |pki| (pki, &pki.root.pem[..]));
        Enrolled { chain_pem: pki.intermediate.sign(&leaf, &csr.public_key), roots_pem: roots_pem.to_owned() }
    }

    pub(super) fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// The token of each request, or "certificate".
    pub(super) fn credentials(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|r| r.token.clone().unwrap_or("certificate".to_owned())).collect()
    }
}

/// A workload's folder, token and CA.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) ca: Arc<FakeCa>,
    pub(super) config: IdentityConfig,
    /// The time that the paused clock started at.
    wall: SystemTime,
}

impl World {
    pub(super) fn new(ttl: Duration, answers: Vec<Answer>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        fs::write(dir.path().join("ca-bundle.pem"), &pki.root.pem).unwrap();
        fs::write(dir.path().join("token"), "  first-token\n").unwrap();
        let ca = CaConfig {
            address: "ca.mesh:15012".parse().unwrap(),
            bundle: dir.path().join("ca-bundle.pem"),
            token_file: Some(dir.path().join("token")),
            ttl: None,
            cluster_id: None,
        };
        let config = IdentityConfig { dir: dir.path().join("identity"), ca: Some(ca), ..IdentityConfig::default() };
        let ca = Arc::new(FakeCa {
            pki,
            publishes: Mutex::default(),
            successor: Mutex::default(),
            server_root: Mutex::default(),
            ttl,
            started: Instant::now(),
            answers: Mutex::new(answers.into()),
            requests: Mutex::default(),
            always: Mutex::new(None),
        });
        Self { dir, ca, config, wall: SystemTime::now() }
    }

    pub(super) fn start(&self) -> IdentityHandle {
        self.start_with_clock_ahead_by(Arc::default())
    }

    /// `ahead`: seconds that the sidecar's clock is ahead of the CA's.
    fn start_with_clock_ahead_by(&self, ahead: Arc<AtomicU64>) -> IdentityHandle {
        let (wall, started) = (self.wall, self.ca.started);
        let clock = move || wall + started.elapsed() + Duration::from_secs(ahead.load(Ordering::Relaxed));
        let enroller = Enroller::new(self.config.ca.clone().unwrap(), self.ca.clone());
        start_with(&self.config, Some(enroller), Arc::new(clock))
    }

    pub(super) fn status(&self, handle: &IdentityHandle) -> IdentityStatus {
        handle.shared.status(self.wall + self.ca.started.elapsed())
    }
}

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn serial(handle: &IdentityHandle) -> String {
    handle.current().unwrap().serial.clone()
}

pub(super) fn unavailable() -> EnrolCause {
    EnrolCause::Connect(std::io::ErrorKind::ConnectionRefused.into())
}

pub(super) fn token_refused() -> EnrolCause {
    EnrolCause::Refused { code: "unauthenticated", message: "the join token was used".into(), permanent: true }
}

fn certificate_refused() -> EnrolCause {
    EnrolCause::CertificateRefused("signed by a root that the CA does not know".into())
}

#[tokio::test(start_paused = true)]
async fn an_empty_folder_enrols_with_the_token_and_a_restart_does_not_ask_again() {
    let world = World::new(HOUR, vec![]);
    let handle = world.start();
    assert!(handle.current().is_none());
    assert!(handle.status().ready().unwrap_err().contains("being asked for"));
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    assert_eq!(world.ca.credentials(), ["first-token"]);
    assert_eq!(handle.current().unwrap().id.as_str(), ID);
    assert_eq!(handle.renewals(), (1, 0));
    let mode = fs::metadata(world.config.dir.join("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let first = serial(&handle);
    drop(handle);
    let handle = world.start();
    assert_eq!(serial(&handle), first, "the kept identity is there at once");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.ca.asked(), 1, "a valid certificate was thrown away");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_renews_itself_at_half_of_its_life_with_a_new_key() {
    let world = World::new(HOUR, vec![]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = handle.current().unwrap();
    let first_pem = fs::read_to_string(world.config.dir.join("cert.pem")).unwrap();
    sleep(Duration::from_secs(26 * 60)).await;
    assert_eq!(world.ca.asked(), 1, "renewed before 45 % of the life");
    sleep(Duration::from_secs(8 * 60)).await;
    assert_eq!(world.ca.asked(), 2, "not renewed by 55 % of the life");
    {
        let requests = world.ca.requests.lock().unwrap();
        assert_eq!(requests[1].chain_pem.as_deref(), Some(&*first_pem), "renewed with something else");
    }
    let second = handle.current().unwrap();
    assert_ne!(second.serial, first.serial);
    assert_ne!(second.key.key.public_key(), first.key.key.public_key());
    assert_eq!(second.generation, first.generation + 1);
    assert_eq!(load(&world.config.dir, None).unwrap().serial, second.serial);
    // And so on: five more hours, some ten renewals, never a gap.
    for _ in 0..300 {
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.status(&handle).ready(), Ok(()));
    }
    assert!((10..=14).contains(&world.ca.asked()), "{} requests", world.ca.asked());
}

#[tokio::test(start_paused = true)]
async fn a_minute_of_life_with_a_minute_of_backdating_is_no_renewal_storm() {
    let world = World::new(Duration::from_secs(60), vec![]);
    let handle = world.start();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(world.status(&handle).ready(), Ok(()));
    assert!((18..=24).contains(&world.ca.asked()), "{} requests in 10 min", world.ca.asked());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_is_asked_again_with_growing_pauses() {
    let world = World::new(HOUR, vec![]);
    *world.ca.always.lock().unwrap() = Some(unavailable);
    let handle = world.start();
    sleep(Duration::from_secs(10)).await;
    let early = world.ca.asked();
    assert!((2..=12).contains(&early), "{early} requests in 10 s");
    sleep(Duration::from_secs(590)).await;
    let late = world.ca.asked() - early;
    assert!((5..=60).contains(&late), "{late} requests in the next 10 min: no backoff, or too much");
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("cannot enrol with ca.mesh:15012: no connection"), "{error}");
    *world.ca.always.lock().unwrap() = None;
    eventually(Duration::from_secs(62), "an identity after the CA came back", || handle.current().is_some()).await;
    assert_eq!(handle.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_retried_slowly_and_a_new_one_at_once() {
    let world = World::new(HOUR, vec![]);
    *world.ca.always.lock().unwrap() = Some(token_refused);
    let handle = world.start();
    sleep(Duration::from_secs(300)).await;
    assert!((5..=7).contains(&world.ca.asked()), "{} requests in 5 min", world.ca.asked());
    let why = handle.status().ready().unwrap_err();
    assert!(why.contains("the join token was used"), "{why}");
    *world.ca.always.lock().unwrap() = None;
    fs::write(world.dir.path().join("token"), "another-token").unwrap();
    eventually(SOON, "an identity by the new token", || handle.current().is_some()).await;
    assert_eq!(world.ca.credentials().last().unwrap(), "another-token");
}

#[tokio::test(start_paused = true)]
async fn a_failing_renewal_leaves_the_certificate_in_use_until_its_end_and_then_enrols_anew() {
    let world = World::new(HOUR, vec![]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = serial(&handle);
    *world.ca.always.lock().unwrap() = Some(unavailable);
    sleep(Duration::from_secs(3590)).await;
    assert_eq!(serial(&handle), first);
    assert_eq!(world.status(&handle).ready(), Ok(()));
    assert!(world.ca.credentials()[1..].iter().all(|c| c == "certificate"));
    sleep(Duration::from_secs(20)).await;
    let status = world.status(&handle);
    assert_eq!(status.state, IdentityState::Expired);
    assert!(status.ready().unwrap_err().contains("our own certificate"), "{:?}", status.ready());

    *world.ca.always.lock().unwrap() = None;
    fs::write(world.dir.path().join("token"), "fresh-token").unwrap();
    eventually(Duration::from_secs(62), "an identity", || serial(&handle) != first).await;
    assert_eq!(world.ca.credentials().last().unwrap(), "fresh-token");
    assert_eq!(world.status(&handle).ready(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_last_minutes_of_a_certificate_are_not_slept_through() {
    let world = World::new(Duration::from_secs(120), vec![]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    *world.ca.always.lock().unwrap() = Some(unavailable);
    sleep(Duration::from_secs(100)).await;
    *world.ca.always.lock().unwrap() = None;
    sleep(Duration::from_secs(15)).await;
    assert_eq!(handle.renewals().0, 2, "the CA was back for 15 s before the end and nobody asked it");
    assert_eq!(world.status(&handle).ready(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_the_ca_refuses_for_good_gives_way_to_the_token() {
    let world = World::new(HOUR, vec![Answer::Issue(ID), Answer::Fail(certificate_refused)]);
    let handle = world.start();
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(world.ca.credentials(), ["first-token", "certificate", "first-token"]);
    assert_eq!(handle.renewals(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn certificate_and_token_take_turns_slowly_when_both_are_refused() {
    let world = World::new(24 * HOUR, vec![]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    sleep(Duration::from_secs(10 * 3600)).await;
    assert_eq!(world.ca.asked(), 1);
    *world.ca.always.lock().unwrap() = Some(certificate_refused);
    sleep(Duration::from_secs(4 * 3600)).await;
    let asked = world.ca.asked();
    assert!(asked < 4 * 60 * 3, "{asked} requests in 4 h of refusals");
    let tokens = world.ca.credentials().iter().filter(|c| *c == "first-token").count();
    assert!(tokens > 10 && tokens < asked - 10, "{tokens} of {asked} with the token");
}

#[tokio::test(start_paused = true)]
async fn what_would_make_us_somebody_else_or_unusable_is_not_taken() {
    let answers = vec![Answer::Issue(ID), Answer::Issue("spiffe://mesh.example/admin"), Answer::WrongRoot];
    let world = World::new(HOUR, answers);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = serial(&handle);
    eventually(Duration::from_secs(34 * 60), "a failure", || handle.renewals().1 == 1).await;
    assert_eq!(serial(&handle), first);
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("it is for spiffe://mesh.example/admin, but we are"), "{error}");
    eventually(Duration::from_secs(62), "another failure", || handle.renewals().1 == 2).await;
    assert!(handle.status().last_error.unwrap().contains("does not verify against the root"));
    assert_eq!(load(&world.config.dir, None).unwrap().serial, first, "a refused certificate was kept");
    eventually(Duration::from_secs(62), "a renewal", || serial(&handle) != first).await;
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_written_costs_a_warning_and_not_the_identity() {
    let mut world = World::new(HOUR, vec![]);
    // A file where the folder should be: unlike permission bits, this stops root too.
    fs::write(world.dir.path().join("file"), "").unwrap();
    world.config.dir = world.dir.path().join("file/identity");
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let warnings = handle.status().warnings;
    assert!(warnings.iter().any(|w| w.contains("lives in memory")), "{warnings:?}");
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(world.ca.credentials(), ["first-token", "certificate"], "the identity in memory renews itself");
}

#[tokio::test(start_paused = true)]
async fn without_token_and_certificate_the_operator_is_told_what_to_do() {
    let mut world = World::new(HOUR, vec![]);
    world.config.ca.as_mut().unwrap().token_file = None;
    let handle = world.start();
    sleep(SOON).await;
    let why = handle.status().ready().unwrap_err();
    assert!(why.contains("identity.ca.token_file is not set") && why.contains("outrigger-ca issue"), "{why}");
    assert_eq!(world.ca.asked(), 0);
    // The other remedy: somebody puts a certificate there.
    fs::create_dir(&world.config.dir).unwrap();
    let pair = world.ca.pki.intermediate.issue(&Leaf::new(ID, &[]));
    write_identity(&world.config.dir, &pair, &world.ca.pki.root.pem);
    eventually(SOON, "the identity of the files", || handle.current().is_some()).await;
    assert_eq!(handle.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_missing_token_or_bundle_is_named_and_waited_for() {
    for name in ["token", "ca-bundle.pem"] {
        let world = World::new(HOUR, vec![]);
        let path = world.dir.path().join(name);
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let handle = world.start();
        sleep(SOON).await;
        let why = handle.status().ready().unwrap_err();
        assert!(why.contains(name) && why.contains("it is not there"), "{why}");
        fs::write(&path, text).unwrap();
        eventually(SOON, "an identity", || handle.current().is_some()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_bundle_is_picked_up_also_while_the_ca_hangs() {
    let world = World::new(HOUR, vec![Answer::Issue(ID), Answer::Hang]);
    let handle = world.start();
    eventually(SOON, "an identity", || handle.current().is_some()).await;
    let first = handle.current().unwrap();
    sleep(Duration::from_secs(34 * 60)).await;
    assert_eq!(world.ca.asked(), 2, "the hanging renewal has begun");
    let both = format!("{}{}", world.ca.pki.root.pem, Pki::new().root.pem);
    fs::write(world.config.dir.join("bundle.pem"), both).unwrap();
    eventually(SOON, "both roots", || handle.status().roots.len() == 2).await;
    let second = handle.current().unwrap();
    assert_eq!(second.serial, first.serial);
    assert!(second.generation > first.generation);
}

#[tokio::test(start_paused = true)]
async fn attempts_never_come_closer_than_the_shortest_pause() {
    let world = World::new(HOUR, vec![]);
    *world.ca.always.lock().unwrap() = Some(unavailable);
    let _handle = world.start();
    sleep(Duration::from_secs(60)).await;
    let requests = world.ca.requests.lock().unwrap();
    assert!(requests.len() > 3);
    assert!(requests.windows(2).all(|w| w[1].at - w[0].at >= Duration::from_millis(200)));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_a_year_ahead_delays_nothing_once_it_is_right() {
    let world = World::new(HOUR, vec![]);
    let ahead = Arc::new(AtomicU64::new(365 * 86_400));
    let handle = world.start_with_clock_ahead_by(ahead.clone());
    sleep(Duration::from_secs(30)).await;
    let error = handle.status().last_error.unwrap();
    assert!(error.contains("what ca.mesh:15012 issued cannot be used") && error.contains("expired"), "{error}");
    ahead.store(0, Ordering::Relaxed);
    eventually(SOON, "an identity", || handle.current().is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_dated_after_the_question_but_before_the_answer_is_taken() {
    let world = World::new(HOUR, vec![Answer::Late]);
    let handle = world.start();
    eventually(Duration::from_secs(10), "an identity", || handle.current().is_some()).await;
    assert_eq!(handle.renewals(), (1, 0));
}
