//! Service-account tokens judged by the Kubernetes API server: one `TokenReview` for each
//! (`authentication.k8s.io/v1`). It knows of pods and accounts that have been deleted, which a signature does not.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Refusal,
    https::{Https, HttpsError, https_uri},
    service_account::{Pod, ServiceAccount, printable},
};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Every authenticator of service accounts puts them into this group.
const GROUP: &str = "system:serviceaccounts";
/// Reviews under way; further ones wait, so that a herd of pods is no herd for the API server.
const AT_ONCE: usize = 32;
/// How long one waits for its turn; who is then told to come back has not given up yet.
const WAIT: Duration = Duration::from_secs(4);

/// Asks one API server.
pub struct TokenReview {
    https: Https,
    uri: Uri,
    audiences: Vec<String>,
    at_once: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct Answer {
    kind: String,
    status: Status,
}

/// `TokenReviewStatus`; what is absent is empty, and `authenticated` false.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    username: String,
    groups: Vec<String>,
    extra: std::collections::HashMap<String, Vec<String>>,
}

impl User {
    fn extra(&self, key: &str) -> Option<&str> {
        self.extra.get(&format!("authentication.kubernetes.io/{key}"))?.first().map(String::as_str)
    }
}

impl TokenReview {
    /// Asks the API server at `api` whether tokens are meant for one of `audiences`.
    pub fn new(api: &str, https: Https, audiences: Vec<String>) -> Result<Self, HttpsError> {
        let uri = https_uri(&format!("{}{PATH}", api.trim_end_matches('/')))?;
        Ok(Self { https, uri, audiences, at_once: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    pub(super) async fn examine(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": self.audiences },
        });
        let answer = {
            let turn = timeout(WAIT, self.at_once.acquire()).await;
            let busy =
                |_| Refusal::Unreachable(format!("more than {AT_ONCE} reviews are under way; is the API server slow?"));
            let _turn = turn.map_err(busy)?;
            self.https.post(&self.uri, Bytes::from(review.to_string())).await
        };
        let answer = answer.map_err(|error| Refusal::Unreachable(explain(&error)))?;
        let none = |why: String| Refusal::Unreachable(format!("the API server's answer is no TokenReview: {why}"));
        let answer: Answer = serde_json::from_slice(&answer).map_err(|e| none(e.to_string()))?;
        match answer.kind.as_str() {
            "TokenReview" => self.judge(answer.status),
            other => Err(none(format!("its kind is {}", printable(other)))),
        }
    }

    fn judge(&self, status: Status) -> Result<ServiceAccount, Refusal> {
        if !status.authenticated {
            let why = match status.error.as_str() {
                "" => "the API server does not know it".to_owned(),
                error => format!("the API server says: {}", printable(error)),
            };
            let audiences = self.audiences.join(" or ");
            return Err(Refusal::token(
                "token_not_authenticated",
                format!("{why}; project a fresh token with the audience {audiences} into the pod"),
            ));
        }
        // A server that knows nothing of audiences answers without: then the token is one for the API server itself.
        if !status.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Refusal::wrong_audience(&self.audiences));
        }
        let mut account = ServiceAccount::from_user_name(&status.user.username)?;
        if !status.user.groups.iter().any(|group| group == GROUP) {
            return Err(Refusal::token(
                "not_service_account",
                format!("its user is not in the group {GROUP}; use a pod's own token"),
            ));
        }
        let (name, uid) = (status.user.extra("pod-name"), status.user.extra("pod-uid"));
        if let (Some(name), Some(uid)) = (name, uid) {
            account.pod = Some(Pod { name: name.to_owned(), uid: uid.to_owned() });
        }
        let id = status.user.extra("credential-id");
        account.token_id = id.map(|id| id.strip_prefix("JTI=").unwrap_or(id).to_owned());
        Ok(account)
    }
}

/// For the CA's log: what its operator has to mend.
fn explain(error: &HttpsError) -> String {
    let remedy = match error {
        HttpsError::Status { status, .. } if *status == StatusCode::UNAUTHORIZED => {
            "it does not accept the CA's own token; look at --k8s-token-file"
        }
        HttpsError::Status { status, .. } if *status == StatusCode::FORBIDDEN => {
            "bind the CA's service account to the cluster role system:auth-delegator"
        }
        HttpsError::Connection { .. } => "look at --k8s-api and --k8s-ca",
        HttpsError::File { .. } => "look at --k8s-token-file and --k8s-ca",
        HttpsError::Status { .. } | HttpsError::Address(_) => "look at --k8s-api",
    };
    format!("the Kubernetes API server cannot be asked: {error}; {remedy}")
}
