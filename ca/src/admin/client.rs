//! The command line's side of the socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::{
    AdminFault, CERTIFICATES, CertificateMade, CertificateWish, MAX_MESSAGE, STATUS, Status, TOKENS, TokenMade,
    TokenWish,
};

/// Longer than the server's own limits on what it does for us.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The socket could not be used, or the CA said no.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody is there, or it may not be opened.
    #[error(
        "cannot reach the CA at {path}: {source}; is \"outrigger-ca serve\" running there, and is this its user or root?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The CA answered no.
    #[error("{}", .0.message)]
    Refused(AdminFault),
    /// The answer did not come or makes no sense.
    #[error("the CA at {path} gave no answer that can be used: {why}; use the same version of both")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A running CA's admin socket. Blocking, for the command line.
#[derive(Debug, Clone)]
pub struct AdminSocket(PathBuf);

impl AdminSocket {
    /// The socket at `path`; nothing is opened yet.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Asks how the CA is.
    pub fn status(&self) -> Result<Status, AdminError> {
        self.ask(STATUS, &())
    }

    /// Has a join token made.
    pub fn create_token(&self, wish: &TokenWish) -> Result<TokenMade, AdminError> {
        self.ask(TOKENS, wish)
    }

    /// Has a certificate issued.
    pub fn issue(&self, wish: &CertificateWish) -> Result<CertificateMade, AdminError> {
        self.ask(CERTIFICATES, wish)
    }

    fn ask<T: DeserializeOwned>(&self, what: (&str, &str), wish: &impl Serialize) -> Result<T, AdminError> {
        let unusable = |why: String| AdminError::Answer { path: self.0.clone(), why };
        let body = serde_json::to_vec(wish).map_err(|e| unusable(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| AdminError::Connect { path: self.0.clone(), source })?;
        let exchange = async { timeout(TIMEOUT, self.exchange(what, body)).await };
        let (ok, answer) =
            runtime.block_on(exchange).map_err(|_| unusable(format!("nothing within {TIMEOUT:?}")))??;
        if !ok {
            let fault = serde_json::from_slice(&answer).map_err(|e| unusable(e.to_string()))?;
            return Err(AdminError::Refused(fault));
        }
        serde_json::from_slice(&answer).map_err(|e| unusable(e.to_string()))
    }

    /// One request on a connection of its own: whether it was granted, and the answer.
    async fn exchange(&self, (method, path): (&str, &str), body: Vec<u8>) -> Result<(bool, Bytes), AdminError> {
        let unusable = |why: String| AdminError::Answer { path: self.0.clone(), why };
        let stream = UnixStream::connect(&self.0).await;
        let stream = stream.map_err(|source| AdminError::Connect { path: self.0.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unusable(e.to_string()))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "outrigger-ca")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| unusable(e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|e| unusable(e.to_string()))?;
        let ok = answer.status().is_success();
        let body = Limited::new(answer.into_body(), MAX_MESSAGE).collect().await;
        connection.abort();
        Ok((ok, body.map_err(|e| unusable(e.to_string()))?.to_bytes()))
    }
}
