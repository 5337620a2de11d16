#![allow(clippy::unwrap_used)]

use std::time::Duration;

use outrigger_identity::TrustDomain;
use rcgen::{CertificateParams, DistinguishedName, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use super::{lost_answer::WINDOW, *};
use crate::{
    authority::{DEFAULT_TTL, InitOptions, RequestedKey, init},
    issue::{self, IssueError},
    store::{Database, LogEntry},
};

struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    database: Database,
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions::new(TrustDomain::parse("mesh.example").unwrap());
    init(dir.path(), options, now()).unwrap();
    let authority = Authority::open(dir.path(), None).unwrap();
    let database = Database::open(&authority.database_path()).unwrap();
    World { dir, authority, database }
}

impl World {
    fn token(&mut self, ttl: Duration) -> JoinToken {
        let subject = self.authority.subject("spiffe://mesh.example/a", &["a.mesh".into()]).unwrap();
        create_token(&mut self.database, &subject, ttl, now()).unwrap()
    }

    fn enrol_key(
        &mut self,
        key: &RequestedKey,
        evidence: &Evidence,
        now: OffsetDateTime,
    ) -> Result<issue::Issued, IssueError> {
        self.database
            .transaction(|tx| issue::on_evidence(tx, &self.authority, evidence, key, DEFAULT_TTL, now, |_| Ok(())))
    }

    fn enrol(&mut self, evidence: &Evidence, now: OffsetDateTime) -> Result<issue::Issued, IssueError> {
        let key = RequestedKey::of(&KeyPair::generate().unwrap()).unwrap();
        self.database
            .transaction(|tx| issue::on_evidence(tx, &self.authority, evidence, &key, DEFAULT_TTL, now, |_| Ok(())))
    }

    /// A certificate that our own intermediate has signed, with names of the test's choice.
    fn forge(&self, names: Vec<SanType>, not_after: OffsetDateTime) -> (String, CertificateDer<'static>) {
        let key = std::fs::read_to_string(self.dir.path().join("intermediate-key.pem")).unwrap();
        let key = KeyPair::from_pem(&key).unwrap();
        let issuer = Issuer::from_ca_cert_der(self.authority.intermediate(), key).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x42; 20]));
        params.not_before = now() - Duration::from_secs(60);
        params.not_after = not_after;
        let der = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
        ("42".repeat(20), der)
    }

    fn log(&mut self, serial: &str, id: &str, der: &CertificateDer<'_>) {
        let entry = LogEntry {
            serial: serial.into(),
            id: Some(id.parse().unwrap()),
            dns_names: vec!["a.mesh".into()],
            not_before: now(),
            not_after: now(),
            credential: CredentialKind::Operator,
            credential_ref: None,
            certificate: der.to_vec(),
            issued_at: now(),
        };
        self.database.transaction(|tx| tx.append(&entry)).unwrap();
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn nothing_and_unknown_schemes_prove_nothing() {
    assert!(matches!(Credential::of(None, None), Err(Refusal::Nothing)));
    let certificate = CertificateDer::from(vec![1]);
    for bad in ["", "Bearer", "Basic abc"] {
        assert!(matches!(Credential::of(Some(bad), Some(certificate.clone())), Err(Refusal::NotBearer)), "{bad:?}");
    }
    // A bad token is not rescued by a certificate beside it.
    for good in ["Bearer x", "bearer x", "BEARER x"] {
        let shown = Credential::of(Some(good), Some(certificate.clone()));
        assert!(matches!(shown, Ok(Credential::JoinToken(_))), "{good:?}");
    }
    assert!(matches!(Credential::of(Some("Bearer a.b.c"), None), Ok(Credential::ServiceAccountToken(_))));
    let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_LEN + 1));
    assert!(matches!(Credential::of(Some(&long), Some(certificate)), Err(Refusal::TokenTooLong(_))));
}

#[test]
fn a_token_brings_its_identity_once() {
    let mut world = world();
    let token = world.token(Duration::from_secs(60));
    let evidence = Evidence::JoinToken(TokenHash::of(token.as_str()));
    let issued = world.enrol(&evidence, now()).unwrap();
    assert_eq!(issued.id.unwrap().as_str(), "spiffe://mesh.example/a");
    let again = world.enrol(&evidence, now()).unwrap_err();
    assert!(matches!(again, IssueError::Refused(Refusal::TokenUsed(_))), "{again}");
    let wrong = world.enrol(&Evidence::JoinToken(TokenHash::of("ojt_00")), now()).unwrap_err();
    assert!(matches!(wrong, IssueError::Refused(Refusal::UnknownToken)), "{wrong}");
    let token = world.token(Duration::from_secs(60));
    let late = world.enrol(&Evidence::JoinToken(TokenHash::of(token.as_str())), now() + Duration::from_secs(60));
    assert!(matches!(late.unwrap_err(), IssueError::Refused(Refusal::TokenExpired(_))));
}

#[test]
fn a_revoked_token_enrols_nobody_and_says_so() {
    let mut world = world();
    let token = world.token(Duration::from_secs(60));
    let hash = TokenHash::of(token.as_str());
    let (row, _) = world.database.snapshot(|tx| tx.list_tokens()).unwrap().remove(0);
    world.database.transaction(|tx| tx.revoke_token(&row, now())).unwrap();
    let error = world.enrol(&Evidence::JoinToken(hash), now()).unwrap_err();
    assert!(matches!(error, IssueError::Refused(Refusal::TokenRevoked(_))), "{error}");
}

#[test]
fn the_token_itself_is_nowhere_in_the_database() {
    let mut world = world();
    let token = world.token(Duration::from_secs(60));
    drop(world.database); // folds the WAL into the file
    let bytes = std::fs::read(world.authority.database_path()).unwrap();
    let secret = token.as_str().trim_start_matches("ojt_").as_bytes();
    assert!(!bytes.windows(secret.len()).any(|w| w == secret));
}

#[test]
fn a_token_survives_an_issuance_that_failed() {
    let mut world = world();
    let token = world.token(Duration::from_secs(3600 * 24 * 700));
    let evidence = Evidence::JoinToken(TokenHash::of(token.as_str()));
    let late = world.authority.expires_at();
    assert!(matches!(world.enrol(&evidence, late).unwrap_err(), IssueError::Authority(_)));
    world.enrol(&evidence, now()).unwrap();
}

#[test]
fn a_renewal_keeps_id_and_names_from_the_log() {
    let mut world = world();
    let token = world.token(Duration::from_secs(60));
    let first = world.enrol(&Evidence::JoinToken(TokenHash::of(token.as_str())), now()).unwrap();
    let evidence = Evidence::Certificate(first.certificate.der.clone());
    let second = world.enrol(&evidence, now()).unwrap();
    assert_ne!(second.certificate.serial, first.certificate.serial);
    let entry = world.database.snapshot(|tx| tx.by_serial(&second.certificate.serial)).unwrap().unwrap();
    assert_eq!(entry.id.unwrap().as_str(), "spiffe://mesh.example/a");
    assert_eq!(entry.dns_names, ["a.mesh"]);
    assert_eq!(entry.credential_ref.unwrap(), first.certificate.serial);
    let late = world.enrol(&evidence, first.certificate.not_after + Duration::from_secs(1)).unwrap_err();
    assert!(matches!(late, IssueError::Refused(Refusal::CertificateExpired(_))), "{late}");
}

#[test]
fn hostile_certificates_renew_nothing_even_when_our_key_signed_them() {
    let day = now() + Duration::from_secs(86_400);
    let ours = "spiffe://mesh.example/a";
    let cases = [
        (vec![uri(ours), uri("spiffe://mesh.example/b")], "more than one URI"),
        (vec![uri(ours), uri("https://mesh.example/")], "more than one URI"),
        (vec![SanType::DnsName("a.mesh".try_into().unwrap())], "no SPIFFE id"),
        (vec![uri("spiffe://mesh.example")], "not a workload's"),
        (vec![uri("spiffe://mesh.example/../a")], "not a workload's"),
        (vec![uri("spiffe://other.example/a")], "another trust domain"),
        (vec![uri("spiffe://mesh.example/b")], "not the one"),
    ];
    for (names, words) in cases {
        let mut world = world();
        let (serial, der) = world.forge(names, day);
        world.log(&serial, ours, &der);
        let error = world.enrol(&Evidence::Certificate(der), now()).unwrap_err().to_string();
        assert!(error.contains(words), "{error} does not say {words:?}");
    }
    // Signed by us, but never recorded; and recorded with other bytes under its serial.
    let mut world = world();
    let (serial, der) = world.forge(vec![uri(ours)], day);
    let error = world.enrol(&Evidence::Certificate(der.clone()), now()).unwrap_err().to_string();
    assert!(error.contains("no such serial"), "{error}");
    world.log(&serial, ours, &CertificateDer::from(vec![0]));
    let error = world.enrol(&Evidence::Certificate(der), now()).unwrap_err().to_string();
    assert!(error.contains("not the one"), "{error}");
}

#[test]
fn an_answer_that_was_lost_is_given_once_more_for_the_same_key_and_by_another_process_alone() {
    let key = || RequestedKey::of(&KeyPair::generate().unwrap()).unwrap();
    let (first, ours, other) = (key(), key(), key());
    let used = |result: Result<issue::Issued, IssueError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, IssueError::Refused(Refusal::TokenUsed(_))), "{error}");
    };
    let mut world = world();
    let evidence = Evidence::JoinToken(TokenHash::of(world.token(Duration::from_secs(600)).as_str()));
    // This process has answered and knows it.
    world.enrol_key(&first, &evidence, now()).unwrap();
    used(world.enrol_key(&first, &evidence, now()));

    // The one before it may have died with the answer.
    let subject = world.authority.subject("spiffe://mesh.example/a", &["a.mesh".into()]).unwrap();
    let before = OffsetDateTime::now_utc() - Duration::from_secs(10);
    let mut dead = |key: &RequestedKey, age: Duration| {
        let token = create_token(&mut world.database, &subject, Duration::from_secs(3600), before - age).unwrap();
        let evidence = Evidence::JoinToken(TokenHash::of(token.as_str()));
        (world.enrol_key(key, &evidence, before - age).unwrap(), evidence)
    };
    let long_ago = key();
    let ((lost, evidence), (_, late)) = (dead(&ours, Duration::ZERO), dead(&long_ago, WINDOW));
    let now = OffsetDateTime::now_utc();
    used(world.enrol_key(&other, &evidence, now));
    used(world.enrol_key(&long_ago, &late, now));
    let again = world.enrol_key(&ours, &evidence, now).unwrap();
    assert_eq!(again.id.unwrap().as_str(), "spiffe://mesh.example/a");
    assert_eq!(again.credential, CredentialKind::Certificate);
    let entry = world.database.snapshot(|tx| tx.by_serial(&again.certificate.serial)).unwrap().unwrap();
    assert_eq!((entry.credential_ref.unwrap(), entry.dns_names), (lost.certificate.serial, vec!["a.mesh".to_owned()]));
    used(world.enrol_key(&ours, &evidence, now));
}
