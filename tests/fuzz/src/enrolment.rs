//! `CreateCertificate` in the real service, from the bytes of an HTTP/2 request's body to the record: only sockets and TLS
//! are missing. The first byte says what the caller proves itself with, the second what the rest is.

use std::{
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use aws_lc_rs::{rand::SystemRandom, signature};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use outrigger_ca::{
    attest::{Attestation, ClusterVoice, KeySource, Oidc, ServiceAccounts, create_token},
    authority::{Authority, InitOptions, RequestedKey, Subject, init},
    limits::{Limits, Rate},
    server::{Live, PeerCertificate, enrolment},
    store::{Database, Store},
};
use outrigger_identity::{
    TrustDomain,
    proto::{IstioCertificateRequest, IstioCertificateResponse},
};
use prost::Message as _;
use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tower::{Service as _, ServiceExt as _, util::BoxCloneService};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::csr;

const ID: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const ISSUER: &str = "https://cluster.example";
const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

type Grpc = BoxCloneService<http::Request<Full<Bytes>>, http::Response<tonic::body::Body>, std::convert::Infallible>;

struct Ca {
    runtime: tokio::runtime::Runtime,
    service: Grpc,
    database: Database,
    watcher: rusqlite::Connection,
    subject: Subject,
    cluster: signature::EcdsaKeyPair,
    /// One that can be spent.
    token: String,
    recorded: i64,
    _dir: tempfile::TempDir,
}

/// A folder in memory where there is one: nothing here is about the disk.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

impl Ca {
    fn new() -> Self {
        let (dir, now) = (folder(), OffsetDateTime::now_utc());
        let path = dir.path().join("ca");
        init(&path, InitOptions::new(TrustDomain::parse("mesh.example").unwrap()), now).unwrap();
        let authority = Authority::open(&path, None).unwrap();
        let file = authority.database_path();
        let subject = authority.subject(ID, &[]).unwrap();
        let (cluster, keys) = cluster_key();
        let jwks = dir.path().join("jwks.json");
        std::fs::write(&jwks, keys).unwrap();
        let oidc = Oidc::new(ISSUER.into(), vec!["istio-ca".into()], KeySource::File(jwks));
        let accounts = ServiceAccounts { voice: ClusterVoice::Oidc(Box::new(oidc)), dns: Vec::new(), unbound: true };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let off =
            Limits { failures: Rate::OFF, issuances_of_one: Rate::OFF, issuances: Rate::OFF, ..Limits::default() };
        let (store, _) = Store::spawn(Database::open(&file).unwrap()).unwrap();
        let live = Live::new(authority, Database::open(&file).unwrap(), None);
        let service = enrolment(live, store, Attestation::with_service_accounts(accounts), &off);
        let mut ca = Self {
            runtime,
            service: BoxCloneService::new(service),
            database: Database::open(&file).unwrap(),
            watcher: rusqlite::Connection::open(&file).unwrap(),
            subject,
            cluster,
            token: String::new(),
            recorded: 0,
            _dir: dir,
        };
        ca.new_token();
        ca
    }

    fn new_token(&mut self) {
        let (ttl, now) = (Duration::from_secs(86_400), OffsetDateTime::now_utc());
        self.token = create_token(&mut self.database, &self.subject, ttl, now).unwrap().as_str().to_owned();
    }

    fn count(&self, sql: &str) -> i64 {
        self.watcher.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// A token of the cluster with these claims, signed by its key.
    fn vouched(&self, claims: &[u8]) -> String {
        let head = BASE64.encode(r#"{"alg":"ES256","kid":"cluster","typ":"JWT"}"#);
        let signed = format!("{head}.{}", BASE64.encode(claims));
        let signature = self.cluster.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64.encode(signature.as_ref()))
    }
}

fn cluster_key() -> (signature::EcdsaKeyPair, String) {
    use aws_lc_rs::signature::KeyPair as _;
    let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = signature::EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    let key = signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap();
    // An uncompressed point: 4, x, y.
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (BASE64.encode(x), BASE64.encode(y));
    let jwk = serde_json::json!({ "kty": "EC", "crv": "P-256", "kid": "cluster", "alg": "ES256", "x": x, "y": y });
    (key, serde_json::json!({ "keys": [jwk] }).to_string())
}

/// One gRPC message, uncompressed.
fn framed(message: &[u8]) -> Bytes {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat().into()
}

/// A refused request leaves no record and spends nothing. An accepted one leaves one record, and the certificate is for
/// whom the credential says and for the key that the request has.
pub fn check(data: &[u8]) -> bool {
    static CA: OnceLock<Mutex<Ca>> = OnceLock::new();
    let [proof, kind, rest @ ..] = data else { return false };
    let mut ca = CA.get_or_init(|| Mutex::new(Ca::new())).lock().unwrap_or_else(PoisonError::into_inner);
    // The header's bytes end at the first zero.
    let (shown, rest) = match rest.iter().position(|b| *b == 0) {
        Some(at) if proof % 5 > 1 => (&rest[..at], &rest[at + 1..]),
        _ => (&[][..], rest),
    };
    let (header, certificate, by_token) = match proof % 5 {
        0 => (None, None, false),
        1 => (Some(format!("Bearer {}", ca.token).into_bytes()), None, true),
        2 => (Some(shown.to_vec()), None, false),
        3 => (None, Some(CertificateDer::from(shown.to_vec())), false),
        _ => (Some(format!("Bearer {}", ca.vouched(shown)).into_bytes()), None, false),
    };
    let wished = csr::text(rest);
    let body = match kind % 3 {
        0 => Bytes::copy_from_slice(rest),
        1 => framed(rest),
        _ => {
            let csr = wished.clone().unwrap_or_default();
            framed(&IstioCertificateRequest { csr, ..Default::default() }.encode_to_vec())
        }
    };
    let mut request = http::Request::post(PATH).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(header) = header {
        let Ok(value) = http::HeaderValue::from_bytes(&header) else { return false };
        request = request.header("authorization", value);
    }
    let mut request = request.body(Full::new(body)).unwrap();
    request.extensions_mut().insert(PeerCertificate { address: ([192, 0, 2, 1], 9).into(), certificate });

    let mut service = ca.service.clone();
    let (status, message) = ca.runtime.block_on(async {
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or_default();
        let status = head.headers.get("grpc-status").or(trailers.get("grpc-status")).cloned().expect("no grpc-status");
        (status.to_str().unwrap().to_owned(), body.to_bytes())
    });
    let recorded = ca.count("SELECT count(*) FROM issued");
    let used = ca.count("SELECT count(*) FROM token WHERE used_at IS NOT NULL");
    let by_tokens = ca.count("SELECT count(*) FROM issued WHERE credential = 'token'");
    assert_eq!(used, by_tokens, "a token is spent exactly when a record is made");
    assert_eq!(recorded, ca.recorded + i64::from(status == "0"), "status {status}");
    assert_ne!(status, "2", "an error without a name");
    ca.recorded = recorded;
    if status != "0" {
        assert!(message.is_empty(), "a refusal with a message");
        return false;
    }
    let answer = IstioCertificateResponse::decode(&message[5..]).unwrap();
    assert_eq!(answer.cert_chain.len(), 3);
    let leaf = pem::parse(&answer.cert_chain[0]).unwrap();
    let (_, leaf) = X509Certificate::from_der(leaf.contents()).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let name = names.value.general_names[0].to_string();
    if by_token {
        assert_eq!(name, format!("URI({ID})"));
        ca.new_token();
    } else {
        assert!(proof % 5 == 4 && name.starts_with("URI(spiffe://mesh.example/ns/"), "{name} without a credential");
    }
    if kind % 3 == 2 {
        let key = SubjectPublicKeyInfo::from_der(leaf.public_key().raw).unwrap();
        let asked = RequestedKey::from_csr_pem(&wished.unwrap()).unwrap();
        assert_eq!(RequestedKey::of(&key).unwrap(), asked, "a certificate for another key");
    }
    true
}
