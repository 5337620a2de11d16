//! Tokens of Kubernetes judged by their issuer's keys: good ones, and a table of hostile ones.

use std::{
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use outrigger_identity::{
    csr::new_key_and_csr,
    enrol::{Credential, EnrolError, Enrolled},
};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

use super::{Ca, Server, ask, leaf, names, stand_in::StandIn};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// A projected token's claims, as kube-apiserver makes them.
fn claims(issuer: &str) -> Value {
    json!({
        "aud": ["outrigger-ca"],
        "exp": now() + 3607,
        "iat": now(),
        "iss": issuer,
        "jti": "7e0d3b1c-0000-1111-2222-333344445555",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "node-1", "uid": "11112222-aaaa-bbbb-cccc-123456789012" },
            "pod": { "name": "orders-7d4b9c-x2x7p", "uid": "9a8b7c6d-1111-2222-3333-444455556666" },
            "serviceaccount": { "name": "orders", "uid": "0f1e2d3c-aaaa-bbbb-cccc-123456789012" }
        },
        "nbf": now(),
        "sub": "system:serviceaccount:shop:orders"
    })
}

/// An issuer's key on P-256.
struct Key {
    kid: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: KeyPair::generate().unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.der_bytes();
        let [x, y] = [&point[1..33], &point[33..65]].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": x, "y": y })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(claims, |_| {})
    }

    fn sign_with(&self, claims: &Value, change: impl FnOnce(&mut Header)) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.to_owned());
        change(&mut header);
        encode(&header, claims, &EncodingKey::from_ec_der(&self.pair.serialize_der())).unwrap()
    }
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A CA that knows `keys` from a file.
fn serve(ca: &Ca, keys: &[Value], options: &[&str]) -> Server {
    let file = ca.path("jwks.json");
    std::fs::write(&file, json!({ "keys": keys }).to_string()).unwrap();
    let fixed = ["--oidc-issuer", ISSUER, "--oidc-jwks", &file, "--failed-attempts", "off"];
    ca.serve_with(&[&fixed[..], options].concat())
}

async fn enrol(ca: &Ca, server: &Server, token: &str) -> Result<Enrolled, EnrolError> {
    let (_, csr) = new_key_and_csr(None).unwrap();
    ask(server, &ca.bundle(), Credential::Token(token.to_owned()), csr.as_str()).await
}

#[tokio::test]
async fn a_signed_token_of_a_pod_gets_the_identity_of_its_account_and_is_recorded() {
    let (ca, key) = (Ca::new(), Key::new("one"));
    let server = serve(&ca, &[key.jwk()], &[]);
    let enrolled = enrol(&ca, &server, &key.sign(&claims(ISSUER))).await.unwrap();
    let pem = leaf(&enrolled.chain_pem);
    let certificate = pem.parse_x509().unwrap();
    let wanted = [
        "URI(spiffe://mesh.example/ns/shop/sa/orders)",
        "DNSName(orders.shop.svc.cluster.local)",
        "DNSName(orders.shop.svc)",
    ];
    assert_eq!(names(&certificate), wanted);
    let entry = ca.log().into_iter().find(|e| e["credential"] == "oidc").unwrap();
    let reference = entry["credential_ref"].as_str().unwrap();
    for part in ["shop/orders", "orders-7d4b9c-x2x7p", "9a8b7c6d-1111", "jti 7e0d3b1c-0000"] {
        assert!(reference.contains(part), "{reference}");
    }
    // One audience as a string, and clocks that differ by less than the leeway.
    let mut other = claims(ISSUER);
    (other["aud"], other["exp"], other["nbf"]) = (json!("outrigger-ca"), json!(now() - 10), json!(now() + 10));
    enrol(&ca, &server, &key.sign(&other)).await.unwrap();
}

fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut command = Command::new("openssl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{args:?}");
    out.stdout
}

/// Of a maker that shares no code with us: RS256 is what kube-apiserver signs with by default.
#[tokio::test]
async fn an_rsa_token_that_openssl_has_signed_is_good_and_a_changed_one_is_not() {
    let ca = Ca::new();
    let key = ca.path("rsa.pem");
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &key], b"");
    let modulus = String::from_utf8(openssl(&["rsa", "-in", &key, "-noout", "-modulus"], b"")).unwrap();
    let hex = modulus.trim().strip_prefix("Modulus=").unwrap();
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let jwk = json!({ "kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(bytes) });
    let server = serve(&ca, &[jwk], &[]);
    let sign = |claims: &Value| {
        let message = format!("{}.{}", part(&json!({ "alg": "RS256", "kid": "rsa" })), part(claims));
        let signature = openssl(&["dgst", "-sha256", "-sign", &key], message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let token = sign(&claims(ISSUER));
    enrol(&ca, &server, &token).await.unwrap();

    let mut parts: Vec<&str> = token.split('.').collect();
    let mut other = claims(ISSUER);
    other["sub"] = json!("system:serviceaccount:shop:admin");
    let other = part(&other);
    parts[1] = &other;
    let error = enrol(&ca, &server, &parts.join(".")).await.unwrap_err();
    assert!(error.to_string().contains("its signature is not by its issuer's key"), "{error}");
    // The public key as a shared secret, which an unwary verifier would take.
    let public = openssl(&["pkey", "-in", &key, "-pubout"], b"");
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("rsa".to_owned());
    let forged = encode(&header, &claims(ISSUER), &EncodingKey::from_secret(&public)).unwrap();
    let error = enrol(&ca, &server, &forged).await.unwrap_err();
    assert!(error.to_string().contains("algorithm \"HS256\" is not allowed"), "{error}");
}

#[tokio::test]
async fn hostile_tokens_are_refused_each_for_its_own_reason() {
    let (ca, key, stranger) = (Ca::new(), Key::new("one"), Key::new("one"));
    let (unknown, twin) = (Key::new("two"), Key::new("enc"));
    let mut for_encryption = twin.jwk();
    for_encryption["use"] = json!("enc");
    let secret = json!({ "kty": "oct", "kid": "oct", "k": URL_SAFE_NO_PAD.encode("secret") });
    let p384 = json!({ "kty": "EC", "crv": "P-384", "kid": "three", "alg": "ES384", "x": key.jwk()["x"], "y": key.jwk()["y"] });
    let server = serve(&ca, &[key.jwk(), for_encryption, secret, p384], &[]);
    let with = |path: &str, value: Value| {
        let mut all = claims(ISSUER);
        match all.pointer_mut(path) {
            Some(there) => *there = value,
            None => all[path.trim_start_matches('/')] = value,
        }
        key.sign(&all)
    };
    let without = |claim: &str| {
        let mut all = claims(ISSUER);
        all.as_object_mut().unwrap().remove(claim);
        key.sign(&all)
    };
    let good = key.sign(&claims(ISSUER));
    let parts: Vec<&str> = good.split('.').collect();
    let unsigned = |header: Value| format!("{}.{}.", part(&header), parts[1]);
    let signed_as = |header: Value, signature: &str| format!("{}.{}.{signature}", part(&header), parts[1]);
    let hs = |kid: &str, secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(kid.to_owned());
        encode(&header, &claims(ISSUER), &EncodingKey::from_secret(secret)).unwrap()
    };
    let deep = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("[".repeat(4000)), parts[2]);
    let table: Vec<(&str, String, &str)> = vec![
        ("alg none", unsigned(json!({ "alg": "none", "kid": "one" })), "\"none\" is not allowed"),
        ("alg None", unsigned(json!({ "alg": "None" })), "\"None\" is not allowed"),
        ("no signature", unsigned(json!({ "alg": "ES256", "kid": "one" })), "cannot be read"),
        ("alg none with a signature", signed_as(json!({ "alg": "none", "kid": "one" }), parts[2]), "not allowed"),
        ("no alg", signed_as(json!({ "kid": "one" }), parts[2]), "cannot be read"),
        ("alg is a list", signed_as(json!({ "alg": ["ES256"], "kid": "one" }), parts[2]), "cannot be read"),
        ("HS256 with the public key", hs("one", key.pair.der_bytes()), "\"HS256\" is not allowed"),
        ("HS256 with a published secret", hs("oct", b"secret"), "\"HS256\" is not allowed"),
        ("ES256 with an oct key", signed_as(json!({ "alg": "ES256", "kid": "oct" }), parts[2]), "not one for ES256"),
        ("ES384 with a P-256 key", signed_as(json!({ "alg": "ES384", "kid": "one" }), parts[2]), "not one for ES384"),
        ("ES256 with a P-384 key", signed_as(json!({ "alg": "ES256", "kid": "three" }), parts[2]), "not one for ES256"),
        ("RS256 with an EC key", signed_as(json!({ "alg": "RS256", "kid": "one" }), parts[2]), "not one for RS256"),
        ("a key for encryption", twin.sign(&claims(ISSUER)), "not one for ES256"),
        ("another key of the same id", stranger.sign(&claims(ISSUER)), "its signature is not by its issuer's key"),
        ("unknown kid", unknown.sign(&claims(ISSUER)), "no key of this id"),
        ("no kid", key.sign_with(&claims(ISSUER), |header| header.kid = None), "does not name its key"),
        ("empty kid", key.sign_with(&claims(ISSUER), |header| header.kid = Some(String::new())), "no key of this id"),
        (
            "kid is a path",
            key.sign_with(&claims(ISSUER), |header| header.kid = Some("../../dev/null".into())),
            "no key of this id",
        ),
        (
            "its own key in the header",
            stranger.sign_with(&claims(ISSUER), |h| h.jwk = Some(serde_json::from_value(stranger.jwk()).unwrap())),
            "its signature is not by its issuer's key",
        ),
        ("crit", key.sign_with(&claims(ISSUER), |h| h.crit = Some(vec!["exp".into()])), "demands an extension"),
        ("wrong audience", with("/aud", json!(["https://kubernetes.default.svc"])), "another audience"),
        ("audience begins alike", with("/aud", json!("outrigger-ca.evil")), "another audience"),
        ("empty audience", with("/aud", json!([])), "another audience"),
        ("no audience", without("aud"), "another audience"),
        ("audience is a number", with("/aud", json!(7)), "another audience"),
        ("wrong issuer", with("/iss", json!("https://evil.example")), "its issuer is not"),
        ("issuer with a slash more", with("/iss", json!(format!("{ISSUER}/"))), "its issuer is not"),
        ("issuers as a list", with("/iss", json!([ISSUER, "https://evil.example"])), "cannot be read"),
        ("no issuer", without("iss"), "cannot be read"),
        ("expired", with("/exp", json!(now() - 60)), "has expired"),
        ("expired long ago", with("/exp", json!(0)), "has expired"),
        ("expires at a text", with("/exp", json!("tomorrow")), "\"exp\""),
        ("expires before 1970", with("/exp", json!(-1)), "\"exp\""),
        ("never expires", without("exp"), "\"exp\""),
        ("expiry is null", with("/exp", Value::Null), "\"exp\""),
        ("not yet valid", with("/nbf", json!(now() + 120)), "not valid yet"),
        ("nbf is a text", with("/nbf", json!("now")), "cannot be read"),
        ("made in the future", with("/iat", json!(now() + 3600)), "made in the future"),
        ("no subject", without("sub"), "cannot be read"),
        ("a user", with("/sub", json!("alice@example.com")), "not for a service account"),
        ("a node", with("/sub", json!("system:node:node-1")), "not for a service account"),
        ("a SPIFFE id", with("/sub", json!("spiffe://mesh.example/admin")), "not for a service account"),
        ("a path in the name", with("/sub", json!("system:serviceaccount:shop:../../admin")), "not for a service"),
        ("percent in the name", with("/sub", json!("system:serviceaccount:shop:a%2fb")), "not for a service"),
        ("upper case", with("/sub", json!("system:serviceaccount:Shop:orders")), "not for a service account"),
        ("a homograph", with("/sub", json!("system:serviceaccount:shop:оrders")), "not for a service account"),
        ("a NUL", with("/sub", json!("system:serviceaccount:shop:orders\u{0}")), "not for a service account"),
        (
            "another account in sub",
            with("/sub", json!("system:serviceaccount:shop:admin")),
            "name two service accounts",
        ),
        (
            "another namespace in sub",
            with("/sub", json!("system:serviceaccount:bank:orders")),
            "name two service accounts",
        ),
        (
            "another namespace's pod",
            with(
                "/kubernetes.io",
                json!({
                    "namespace": "bank", "serviceaccount": { "name": "orders" }, "pod": { "name": "x", "uid": "y" }
                }),
            ),
            "name two service accounts",
        ),
        ("no cluster's claims", without("kubernetes.io"), "no claim \"kubernetes.io\""),
        (
            "bound to no pod",
            with(
                "/kubernetes.io",
                json!({
                    "namespace": "shop", "serviceaccount": { "name": "orders" }
                }),
            ),
            "bound to no pod",
        ),
        ("claims that are no object", format!("{}.{}.{}", parts[0], part(&json!("x")), parts[2]), "signature"),
        ("nested deep", deep, "signature"),
        ("five parts (JWE)", format!("{good}.x.y"), "cannot be read"),
        ("two parts", format!("{}.{}", parts[0], parts[1]), "cannot be read"),
        ("dots alone", "..".into(), "cannot be read"),
        (
            "a token in a token",
            format!(
                "{}.{}.{}",
                part(&json!({ "alg": "ES256", "kid": "one", "cty": "JWT" })),
                URL_SAFE_NO_PAD.encode(&good),
                parts[2]
            ),
            "signature",
        ),
        ("padding", format!("{}=.{}.{}", parts[0], parts[1], parts[2]), "cannot be read"),
        ("not base64url", format!("{}.{}.{}", parts[0], parts[1], parts[2].replace(['a', '_'], "+")), "cannot be read"),
        ("a byte more at the end", format!("{good}AAAA"), "signature"),
        ("huge", format!("{good}{}", "A".repeat(9000)), "limit is 8192"),
    ];
    for (what, token, words) in &table {
        let error = match enrol(&ca, &server, token).await {
            Ok(_) => panic!("{what}: accepted"),
            Err(error) => error,
        };
        let text = error.to_string();
        assert!(text.contains("unauthenticated") && text.contains(words) && error.is_permanent(), "{what}: {text}");
    }
    println!("{} hostile tokens refused", table.len());
    // A good one comes through after all of them, and nothing else has.
    enrol(&ca, &server, &good).await.unwrap();
    assert_eq!(ca.log().iter().filter(|e| e["credential"] == "oidc").count(), 1);
}

/// An issuer that publishes its keys; which, the test changes.
fn issuer(keys: Arc<Mutex<Vec<Value>>>) -> StandIn {
    StandIn::new(move |url, asked| match asked.path.as_str() {
        "/.well-known/openid-configuration" => {
            let document = json!({ "issuer": url, "jwks_uri": format!("{url}/openid/v1/jwks"),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"] });
            (200, document.to_string())
        }
        "/openid/v1/jwks" => (200, json!({ "keys": *keys.lock().unwrap() }).to_string()),
        _ => (404, String::new()),
    })
}

#[tokio::test]
async fn keys_are_found_by_discovery_and_a_new_one_is_looked_for_at_a_bounded_rate() {
    let (ca, old, new) = (Ca::new(), Key::new("old"), Key::new("new"));
    let published = Arc::new(Mutex::new(vec![old.jwk()]));
    let issuer = issuer(Arc::clone(&published));
    let root = ca.path("issuer.pem");
    std::fs::write(&root, &issuer.root).unwrap();
    let options = ["--oidc-issuer", &issuer.url, "--oidc-ca", &root, "--failed-attempts", "off"];
    let server = ca.serve_with(&options);
    enrol(&ca, &server, &old.sign(&claims(&issuer.url))).await.unwrap();
    let questions = || issuer.asked.lock().unwrap().len();
    assert_eq!(questions(), 2, "the discovery document and the keys, at the start");

    published.lock().unwrap().push(new.jwk());
    for _ in 0..20 {
        let error = enrol(&ca, &server, &new.sign(&claims(&issuer.url))).await.unwrap_err();
        assert!(error.to_string().contains("no key of this id"), "{error}");
    }
    assert_eq!(questions(), 2, "unknown keys make no flood at the issuer");
    tokio::time::sleep(Duration::from_secs(10)).await;
    enrol(&ca, &server, &new.sign(&claims(&issuer.url))).await.unwrap();
    assert_eq!(questions(), 4);

    // Known keys serve while the issuer is away; an unknown one may be new, so nobody is told that it is wrong.
    let (url, stranger) = (issuer.url.clone(), Key::new("stranger"));
    drop(issuer);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let error = enrol(&ca, &server, &stranger.sign(&claims(&url))).await.unwrap_err();
    assert!(error.to_string().contains("unavailable") && !error.is_permanent(), "{error}");
    enrol(&ca, &server, &old.sign(&claims(&url))).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_is_somebody_else_or_away_accepts_nobody() {
    let (ca, key) = (Ca::new(), Key::new("one"));
    let jwk = key.jwk();
    let other = StandIn::new(move |url, asked| match asked.path.as_str() {
        "/keys" => (200, json!({ "keys": [jwk] }).to_string()),
        _ => (200, json!({ "issuer": "https://evil.example", "jwks_uri": format!("{url}/keys") }).to_string()),
    });
    let root = ca.path("issuer.pem");
    std::fs::write(&root, &other.root).unwrap();
    for issuer in [other.url.as_str(), "https://127.0.0.1:1"] {
        let server = ca.serve_with(&["--oidc-issuer", issuer, "--oidc-ca", &root]);
        let error = enrol(&ca, &server, &key.sign(&claims(issuer))).await.unwrap_err();
        assert!(error.to_string().contains("unavailable") && !error.is_permanent(), "{error}");
    }
    assert!(!other.asked.lock().unwrap().iter().any(|asked| asked.path == "/keys"));
}
