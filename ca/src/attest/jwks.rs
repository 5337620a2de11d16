//! The public keys of a token issuer: from a file, or found by OpenID Connect discovery.

use std::{
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use http::Uri;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde::Deserialize;

use super::{
    Refusal,
    https::{Https, HttpsError, https_uri},
};

/// Keys are read anew when they are this old: one that the issuer has withdrawn must not live on here.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Without an answer from the issuer, keys serve until they are this old.
const STALE: Duration = Duration::from_secs(60 * 60);
/// A token with an unknown key makes us look again, but not more often than this, and so does a failure.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);
/// The most keys that an issuer's document may hold.
const MAX_KEYS: usize = 64;
/// The longest file of keys, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Where keys come from.
pub enum KeySource {
    /// A JWKS document on the disk.
    File(PathBuf),
    /// The issuer's `/.well-known/openid-configuration`, and what it names as `jwks_uri`.
    Discovery {
        /// The issuer, exactly as tokens name it.
        issuer: String,
        /// Asks it.
        https: Box<Https>,
    },
}

impl KeySource {
    /// Discovery at `issuer`, which must be an `https://` address.
    pub fn discovery(issuer: String, https: Https) -> Result<Self, HttpsError> {
        https_uri(&issuer)?;
        Ok(Self::Discovery { issuer, https: Box::new(https) })
    }
}

/// The keys of one issuer, kept for a while.
pub(super) struct Keys {
    source: KeySource,
    state: RwLock<State>,
    /// Held while the issuer is asked, so that one question is asked for all who wait.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Option<(JwkSet, Instant)>,
    tried: Option<Instant>,
    /// Why the last try failed.
    failure: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Keys {
    pub(super) fn new(source: KeySource) -> Self {
        Self { source, state: RwLock::default(), asking: tokio::sync::Mutex::new(()) }
    }

    /// Reads the keys now and says how many there are. `Err`: why that is not possible.
    pub(super) async fn load(&self) -> Result<usize, String> {
        let _asking = self.asking.lock().await;
        self.ask().await;
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match (&state.failure, &state.keys) {
            (Some(why), _) => Err(why.clone()),
            (None, keys) => Ok(keys.as_ref().map_or(0, |(keys, _)| keys.keys.len())),
        }
    }

    /// The key of this id. Who asks for one that is known does not wait for others who ask for an unknown one.
    pub(super) async fn find(&self, kid: &str) -> Result<Jwk, Refusal> {
        if let Some(key) = self.known(kid, REFRESH) {
            return Ok(key);
        }
        let _asking = self.asking.lock().await;
        let tried = self.state.read().unwrap_or_else(PoisonError::into_inner).tried;
        if self.known(kid, REFRESH).is_none() && tried.is_none_or(|at| at.elapsed() >= AT_MOST_EVERY) {
            self.ask().await;
        }
        if let Some(key) = self.known(kid, STALE) {
            return Ok(key);
        }
        // Without the issuer's word an unknown key may be a new one.
        match &self.state.read().unwrap_or_else(PoisonError::into_inner).failure {
            Some(why) => Err(Refusal::Unreachable(format!("the token issuer's keys cannot be had: {why}"))),
            None => Err(unknown()),
        }
    }

    fn known(&self, kid: &str, not_older: Duration) -> Option<Jwk> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (keys, at) = state.keys.as_ref()?;
        if at.elapsed() < not_older { keys.find(kid).cloned() } else { None }
    }

    /// Asks the issuer, and keeps the answer or the failure.
    async fn ask(&self) {
        let text = match &self.source {
            KeySource::File(path) => read(path).await,
            KeySource::Discovery { issuer, https } => discover(issuer, https).await,
        };
        let read = text.and_then(|text| parse(&text));
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        state.tried = Some(now);
        match read {
            Ok(keys) => {
                state.keys = Some((keys, now));
                state.failure = None;
            }
            Err(why) => {
                tracing::warn!(%why, "the keys of the token issuer cannot be read");
                state.failure = Some(why);
            }
        }
    }
}

fn parse(text: &[u8]) -> Result<JwkSet, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|e| format!("they are no JWKS document: {e}"))?;
    match set.keys.len() {
        1..=MAX_KEYS => Ok(set),
        count => Err(format!("the JWKS document holds {count} keys; 1 to {MAX_KEYS} are expected")),
    }
}

fn unknown() -> Refusal {
    Refusal::token("token_unknown_key", "its issuer has no key of this id; is the token of another cluster?")
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    use tokio::io::AsyncReadExt as _;
    let fault = |e: std::io::Error| format!("cannot read {}: {e}; look at --oidc-jwks", path.display());
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(fault)?;
    file.take(MAX_FILE).read_to_end(&mut text).await.map_err(fault)?;
    Ok(text)
}

async fn discover(issuer: &str, https: &Https) -> Result<Vec<u8>, String> {
    let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let uri: Uri = https_uri(&at).map_err(|e| e.to_string())?;
    let text =
        https.get(&uri).await.map_err(|e| format!("{e}; look at --oidc-issuer, --oidc-ca and --oidc-token-file"))?;
    let found: Discovery = serde_json::from_slice(&text).map_err(|e| format!("{at} is no discovery document: {e}"))?;
    // OpenID Connect Discovery 1.0, section 4.3: it must be the issuer's own.
    if found.issuer != issuer {
        return Err(format!(
            "{at} is the document of the issuer \"{}\"",
            super::service_account::printable(&found.issuer)
        ));
    }
    let uri = https_uri(&found.jwks_uri).map_err(|e| format!("jwks_uri in {at}: {e}"))?;
    Ok(https.get(&uri).await.map_err(|e| format!("{e}; look at --oidc-ca and --oidc-token-file"))?.to_vec())
}
