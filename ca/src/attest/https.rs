//! A small HTTPS client for the two servers that may vouch for a caller: the Kubernetes API and a token issuer.
//!
//! Promises: HTTPS alone, the server authenticated by the given roots alone, no redirect followed, an answer of bounded
//! size within a bounded time.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// From the connection to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Idle connections are kept for so long, as long as a herd of pods starts.
const KEEP: Duration = Duration::from_secs(20);

type Inner = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why an answer was not had.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// A file could not be read or does not hold what it should.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An address that cannot be asked.
    #[error("\"{0}\" is not an https:// address")]
    Address(String),
    /// No connection, or a broken one.
    #[error("{host}: {why}")]
    Connection {
        /// Who was asked.
        host: String,
        /// What happened.
        why: String,
    },
    /// Another status than a success.
    #[error("{host} answered {status} to {path}")]
    Status {
        /// Who was asked.
        host: String,
        /// For what.
        path: String,
        /// The status.
        status: StatusCode,
    },
}

/// A client with the roots of one file, read anew when a connection fails: roots are replaced too.
pub struct Https {
    roots: PathBuf,
    token: Option<PathBuf>,
    client: Mutex<Option<Inner>>,
}

impl Https {
    /// A client that trusts the roots in the file `roots` and shows the token in the file `token`. Both are read, so
    /// that a wrong path is told at the start.
    pub fn new(roots: PathBuf, token: Option<PathBuf>) -> Result<Self, HttpsError> {
        let client = connect(&roots)?;
        let this = Self { roots, token, client: Mutex::new(Some(client)) };
        this.bearer()?;
        Ok(this)
    }

    /// Reads.
    pub(super) async fn get(&self, uri: &Uri) -> Result<Bytes, HttpsError> {
        self.ask(Request::get(uri.clone()), uri, Bytes::new()).await
    }

    /// Sends JSON.
    pub(super) async fn post(&self, uri: &Uri, json: Bytes) -> Result<Bytes, HttpsError> {
        let request = Request::post(uri.clone()).header(header::CONTENT_TYPE, "application/json");
        self.ask(request, uri, json).await
    }

    async fn ask(&self, mut request: http::request::Builder, uri: &Uri, body: Bytes) -> Result<Bytes, HttpsError> {
        let host = uri.authority().map_or_else(|| uri.to_string(), ToString::to_string);
        let broken = |why: String| HttpsError::Connection { host: host.clone(), why };
        if let Some(bearer) = self.bearer()? {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("outrigger-ca/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|e| broken(e.to_string()))?;
        let client = self.client()?;
        let exchange = async {
            let answer = client.request(request).await.map_err(|e| broken(innermost(&e)))?;
            let (status, body) = (answer.status(), Limited::new(answer.into_body(), MAX_ANSWER));
            if !status.is_success() {
                let path = uri.path().to_owned();
                return Err(HttpsError::Status { host: host.clone(), path, status });
            }
            Ok(body.collect().await.map_err(|e| broken(e.to_string()))?.to_bytes())
        };
        let answer = match timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(broken(format!("no answer within {TIMEOUT:?}"))),
        };
        if matches!(answer, Err(HttpsError::Connection { .. })) {
            *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }

    fn client(&self) -> Result<Inner, HttpsError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        match client.as_ref() {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(connect(&self.roots)?).clone()),
        }
    }

    /// The own token, read for each request: the kubelet replaces it every hour or so.
    fn bearer(&self) -> Result<Option<HeaderValue>, HttpsError> {
        let Some(path) = &self.token else { return Ok(None) };
        let fault = |why: String| HttpsError::File { path: path.clone(), why };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?);
        if text.trim().is_empty() {
            return Err(fault("it is empty and should hold a token".into()));
        }
        let header = Zeroizing::new(format!("Bearer {}", text.trim()));
        let mut header = HeaderValue::from_str(&header).map_err(|_| fault("it does not hold a token".into()))?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// Parses an address that must be HTTPS, without query, fragment or user.
pub(super) fn https_uri(text: &str) -> Result<Uri, HttpsError> {
    let bad = || HttpsError::Address(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?;
    let plain = uri.scheme_str() == Some("https") && uri.query().is_none() && !authority.as_str().contains('@');
    if plain && !text.contains('#') { Ok(uri) } else { Err(bad()) }
}

fn connect(roots: &Path) -> Result<Inner, HttpsError> {
    let fault = |why: String| HttpsError::File { path: roots.to_owned(), why };
    let pem = std::fs::read(roots).map_err(|e| fault(e.to_string()))?;
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem) {
        let root = root.map_err(|e| fault(e.to_string()))?;
        store.add(root).map_err(|e| fault(format!("a certificate in it is not a root: {e}")))?;
    }
    if store.is_empty() {
        return Err(fault("it holds no certificate in PEM".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| fault(e.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(TIMEOUT));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(tcp);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEEP)
        .pool_max_idle_per_host(16)
        .build(connector);
    Ok(client)
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_https_addresses_are_asked() {
        assert!(https_uri("https://kubernetes.default.svc").is_ok());
        assert!(https_uri("https://10.0.0.1:6443/prefix").is_ok());
        for bad in
            ["", "kubernetes.default.svc", "http://a", "https://", "https://u:p@a", "https://a?x=1", "https://a/#x"]
        {
            assert!(https_uri(bad).is_err(), "{bad:?}");
        }
    }
}
