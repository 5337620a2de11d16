//! Service-account tokens judged by their signature, without asking the API server: its keys are published, so a CA
//! outside of the cluster can read them. What was deleted since a token was made, it cannot know; tokens are short-lived
//! for that reason.
//!
//! Rules: RFC 8725 (JWT best current practices): algorithms from a list of asymmetric ones, the key chosen by its id and
//! for its own algorithm alone, issuer and audience exact, times checked.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use jsonwebtoken::{
    Algorithm, DecodingKey, TokenData, Validation, decode,
    errors::ErrorKind,
    jwk::{Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;

use super::{
    Refusal,
    jwks::{KeySource, Keys},
    service_account::{Pod, ServiceAccount, printable},
};

/// How far clocks may disagree.
const LEEWAY: Duration = Duration::from_secs(30);

/// Asymmetric algorithms alone: with a shared secret the CA could make tokens, and so could who knows a public key that
/// somebody takes for a secret.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// Judges the tokens of one issuer.
pub struct Oidc {
    issuer: String,
    audiences: Vec<String>,
    keys: Keys,
}

/// What is looked at before the key is known.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: Option<f64>,
    jti: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    uid: String,
}

impl Oidc {
    /// Tokens of `issuer` that are meant for one of `audiences`.
    pub fn new(issuer: String, audiences: Vec<String>, keys: KeySource) -> Self {
        Self { issuer, audiences, keys: Keys::new(keys) }
    }

    /// Reads the issuer's keys; gives back how many, or why that is not possible now.
    pub async fn load(&self) -> Result<usize, String> {
        self.keys.load().await
    }

    pub(super) async fn examine(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        let head = head(token).ok_or_else(unreadable)?;
        let algorithm = ALGORITHMS.iter().find(|(name, _)| *name == head.alg).map(|(_, algorithm)| *algorithm);
        let algorithm = algorithm.ok_or_else(|| {
            let words = format!("its algorithm \"{}\" is not allowed; use RS256, ES256 or EdDSA", printable(&head.alg));
            Refusal::token("token_algorithm", words)
        })?;
        if head.crit.is_some() {
            let words = "its header demands an extension (\"crit\") that this CA does not know";
            return Err(Refusal::token("token_unreadable", words));
        }
        let no_kid = || Refusal::token("token_unknown_key", "it does not name its key (\"kid\")");
        let kid = head.kid.ok_or_else(no_kid)?;
        let key = self.keys.find(&kid).await?;
        if !is_for(&key, algorithm, &head.alg) {
            let words = format!("the key that it names is not one for {}", head.alg);
            return Err(Refusal::token("token_algorithm", words));
        }
        let key =
            DecodingKey::from_jwk(&key).map_err(|_| Refusal::token("token_unknown_key", "its key cannot be used"))?;
        let mut rules = Validation::new(algorithm);
        rules.leeway = LEEWAY.as_secs();
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&self.audiences);
        let TokenData { claims, .. } = decode::<Claims>(token, &key, &rules).map_err(|e| self.explain(e.kind()))?;
        self.account(claims)
    }

    fn account(&self, claims: Claims) -> Result<ServiceAccount, Refusal> {
        // Once more, by equality: the library also takes a list of issuers.
        if claims.iss != self.issuer {
            return Err(self.explain(&ErrorKind::InvalidIssuer));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if claims.iat.is_some_and(|iat| iat.is_nan() || iat > (now + LEEWAY).as_secs_f64()) {
            let words = "it was made in the future (\"iat\"); compare the clocks of the cluster and of the CA";
            return Err(Refusal::token("token_not_yet_valid", words));
        }
        let mut account = ServiceAccount::from_user_name(&claims.sub)?;
        let Some(kubernetes) = claims.kubernetes else {
            let words = "it has no claim \"kubernetes.io\", so no cluster made it for a pod";
            return Err(Refusal::token("not_service_account", words));
        };
        if kubernetes.namespace != account.namespace() || kubernetes.serviceaccount.name != account.name() {
            let words = "its claims \"sub\" and \"kubernetes.io\" name two service accounts";
            return Err(Refusal::token("not_service_account", words));
        }
        account.pod = kubernetes.pod.map(|pod| Pod { name: pod.name, uid: pod.uid });
        account.token_id = claims.jti;
        Ok(account)
    }

    fn explain(&self, kind: &ErrorKind) -> Refusal {
        match kind {
            ErrorKind::InvalidSignature => {
                Refusal::token("token_signature", "its signature is not by its issuer's key")
            }
            ErrorKind::ExpiredSignature => Refusal::token("token_expired", "it has expired; project a fresh one"),
            ErrorKind::ImmatureSignature => {
                let words = "it is not valid yet (\"nbf\"); compare the clocks of the cluster and of the CA";
                Refusal::token("token_not_yet_valid", words)
            }
            ErrorKind::InvalidIssuer => {
                Refusal::token("token_issuer", format!("its issuer is not {}; is it of another cluster?", self.issuer))
            }
            ErrorKind::InvalidAudience => Refusal::wrong_audience(&self.audiences),
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "aud" => Refusal::wrong_audience(&self.audiences),
                claim => Refusal::token("token_unreadable", format!("it has no proper claim \"{}\"", printable(claim))),
            },
            _ => unreadable(),
        }
    }
}

fn unreadable() -> Refusal {
    Refusal::token("token_unreadable", "it cannot be read as a signed token (JWS) of Kubernetes; send one unchanged")
}

/// Three parts of base64url, the first of them a header in JSON.
fn head(token: &str) -> Option<Head> {
    let parts: Vec<&str> = token.split('.').collect();
    let [first, _, signature] = parts[..] else { return None };
    if signature.is_empty() {
        // Perhaps "none", which is then told for its algorithm.
        let head: Head = decode_part(first)?;
        return (!ALGORITHMS.iter().any(|(name, _)| *name == head.alg)).then_some(head);
    }
    decode_part(first)
}

fn decode_part(part: &str) -> Option<Head> {
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Whether a key may verify signatures by this algorithm, as far as it says.
fn is_for(key: &Jwk, algorithm: Algorithm, name: &str) -> bool {
    let named = key.common.key_algorithm.is_none_or(|named| named.to_string() == name);
    let signs = key.common.public_key_use.as_ref().is_none_or(|for_what| *for_what == PublicKeyUse::Signature);
    let verifies = key.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let fits = DecodingKey::from_jwk(key).is_ok_and(|key| key.family() == algorithm.family());
    named && signs && verifies && fits
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::{KeyPair, PublicKeyData as _};
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://issuer.example";

    fn world(folder: &std::path::Path) -> (Oidc, String) {
        let pair = KeyPair::generate().unwrap();
        let point = pair.der_bytes();
        let [x, y] =
            [&point[1..33], &point[33..65]].map(|part| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part));
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "one", "x": x, "y": y }] });
        let file = folder.join("jwks.json");
        std::fs::write(&file, keys.to_string()).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": "outrigger-ca", "exp": now + 600, "iat": now, "nbf": now,
            "sub": "system:serviceaccount:shop:orders",
            "kubernetes.io": {
                "namespace": "shop", "serviceaccount": { "name": "orders" }, "pod": { "name": "p", "uid": "u" }
            },
        });
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        let token = encode(&header, &claims, &EncodingKey::from_ec_der(&pair.serialize_der())).unwrap();
        (Oidc::new(ISSUER.into(), vec!["outrigger-ca".into()], KeySource::File(file)), token)
    }

    /// Any change at any place takes a token its worth, and nothing panics.
    #[tokio::test]
    async fn a_changed_token_is_never_good() {
        let folder = tempfile::tempdir().unwrap();
        let (oidc, token) = world(folder.path());
        assert_eq!(oidc.examine(&token).await.unwrap().name(), "orders");
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..3000 {
            let mut bytes = token.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(0x20..0x7f),
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, random.u8(0x20..0x7f)),
                    _ => bytes.truncate(at.max(4)),
                }
            }
            let changed = String::from_utf8(bytes).unwrap();
            if changed != token {
                let refusal = oidc.examine(&changed).await.expect_err(&changed);
                assert!(matches!(refusal, Refusal::ServiceAccountToken { .. }), "{refusal}");
            }
        }
    }
}
