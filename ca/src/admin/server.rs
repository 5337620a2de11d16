//! The server's side of the socket.

use std::{
    convert::Infallible,
    fs::Permissions,
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    AdminFault, CERTIFICATES, CertificateMade, CertificateWish, MAX_MESSAGE, STATUS, Status, TOKENS, TokenMade,
    TokenWish,
};
use crate::{
    attest::{CreateError, TokenHash, create_token_in},
    authority::{Authority, AuthorityError, MAX_TTL, RequestedKey, rfc3339},
    issue::{self, IssueError},
    server::{Live, Observer, ServeError},
    store::{Store, Transaction},
};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// The time of one connection, which carries one or few requests.
const MAX_AGE: Duration = Duration::from_secs(30);
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A bound socket; its file goes when this does.
#[derive(Debug)]
pub struct AdminListener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        // Gone already, or in a folder that is gone: then there is nothing to do.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket with mode 0600. One that a killed server has left behind is replaced; one that answers is not.
pub fn listen(path: &Path) -> Result<AdminListener, ServeError> {
    let fault = |source| ServeError::AdminSocket { path: path.to_owned(), source };
    match path.symlink_metadata() {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(fault(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(fault)?,
            Err(e) => return Err(fault(e)),
            Ok(_) => return Err(fault(io::Error::new(io::ErrorKind::AddrInUse, "another server answers there"))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(fault(e)),
    }
    let listener = UnixListener::bind(path).map_err(fault)?;
    let bound = AdminListener { listener, path: path.to_owned() };
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(fault)?;
    Ok(bound)
}

/// What the socket works on.
struct Admin {
    live: Arc<Live>,
    store: Store,
    observer: Arc<Observer>,
}

/// Serves until the task is ended.
pub(crate) async fn serve(bound: AdminListener, live: Arc<Live>, store: Store, observer: Arc<Observer>) {
    let admin = Arc::new(Admin { live, store, observer });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match bound.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the admin socket");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let _place = place;
            // Who asked for too long is cut; what was begun for him is finished by the store.
            let _ = timeout(MAX_AGE, admin.talk(stream)).await;
        });
    }
}

impl Admin {
    async fn talk(self: Arc<Self>, stream: UnixStream) {
        let peer = stream.peer_cred().map(|peer| (peer.uid(), peer.pid()));
        let own = nix::unistd::geteuid().as_raw();
        let uid = match peer {
            Ok((uid, _)) if uid == 0 || uid == own => Ok(uid),
            Ok((uid, pid)) => {
                tracing::warn!(uid, pid, "refused on the admin socket");
                let message =
                    format!("the user {uid} may not use this socket; run it as root or as the CA's user ({own})");
                Err(fault(StatusCode::FORBIDDEN, "peer", message))
            }
            Err(error) => {
                Err(fault(StatusCode::FORBIDDEN, "peer", format!("the kernel does not say who asks: {error}")))
            }
        };
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (admin, uid) = (Arc::clone(&self), uid.clone());
            async move {
                let answer = match uid {
                    Ok(uid) => admin.answer(request, uid).await,
                    Err(refusal) => Err(refusal),
                };
                Ok::<_, Infallible>(answer.unwrap_or_else(|(status, fault)| json(status, &fault)))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_MESSAGE)
            .serve_connection(TokioIo::new(stream), service);
        // A client that went away is nobody's failure.
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>, uid: u32) -> Result<Response<Full<Bytes>>, Refusal> {
        let (method, path) = (request.method().as_str().to_owned(), request.uri().path().to_owned());
        match (method.as_str(), path.as_str()) {
            STATUS => Ok(json(StatusCode::OK, &self.status().await)),
            TOKENS => Ok(json(StatusCode::OK, &self.token(read(request).await?, uid).await?)),
            CERTIFICATES => Ok(json(StatusCode::OK, &self.certificate(read(request).await?, uid).await?)),
            _ => {
                let message =
                    format!("{method} {path} is nothing that this version knows; use the same version of both");
                Err(fault(StatusCode::NOT_FOUND, "unknown_request", message))
            }
        }
    }

    async fn status(&self) -> Status {
        let failing = self.observer.failing().await;
        let authority = self.live.get();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: authority.trust_domain().to_string(),
            ready: failing.is_empty(),
            failing,
            intermediate_not_after: rfc3339(authority.expires_at()),
            connections: self.observer.connections() as u64,
            tokens_waiting: self.observer.tokens_waiting().await.ok(),
        }
    }

    async fn token(&self, wish: TokenWish, uid: u32) -> Result<TokenMade, Refusal> {
        let ttl = lifetime(wish.ttl_seconds)?;
        let subject = self.live.get().subject(&wish.id, &wish.dns)?;
        let now = OffsetDateTime::now_utc();
        let dns = subject.dns_names.clone();
        let token = self.store.transaction(move |tx| create_token_in(tx, &subject, ttl, now)).await??;
        let reference = TokenHash::of(token.as_str()).to_hex();
        tracing::info!(uid, id = wish.id, r#ref = &reference[..16], "join token made on the admin socket");
        let token = token.as_str().to_owned();
        Ok(TokenMade { token, reference, id: wish.id, dns, expires_at: rfc3339(now + ttl) })
    }

    async fn certificate(&self, wish: CertificateWish, uid: u32) -> Result<CertificateMade, Refusal> {
        let ttl = lifetime(wish.ttl_seconds)?;
        let key = RequestedKey::from_csr_pem(&wish.csr)
            .map_err(|e| fault(StatusCode::BAD_REQUEST, "request", e.to_string()))?;
        let subject = self.live.get().subject(&wish.id, &wish.dns)?;
        let now = OffsetDateTime::now_utc();
        let dns = subject.dns_names.clone();
        let by = Some(format!("admin socket, uid {uid}"));
        let issue = move |tx: &mut Transaction<'_>, authority: &Authority| {
            issue::for_operator(tx, authority, &subject, &key, ttl, now, by.clone())
        };
        let (issued, signer) = self.live.issue(&self.store, issue).await??;
        let issued = issued.certificate;
        tracing::info!(uid, id = wish.id, serial = issued.serial, "certificate issued on the admin socket");
        Ok(CertificateMade {
            chain: format!("{}{}", issued.pem, signer.intermediate_pem()),
            bundle: signer.bundle_pem().to_owned(),
            serial: issued.serial,
            dns,
            not_after: rfc3339(issued.not_after),
        })
    }
}

type Refusal = (StatusCode, AdminFault);

fn fault(status: StatusCode, code: &str, message: impl Into<String>) -> Refusal {
    (status, AdminFault { code: code.to_owned(), message: message.into() })
}

fn lifetime(seconds: u64) -> Result<Duration, Refusal> {
    let most = MAX_TTL.as_secs();
    if (1..=most).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let message = format!("{seconds} s is out of range; choose from 1s to {}d", most / 86_400);
    Err(fault(StatusCode::BAD_REQUEST, "lifetime", message))
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        match &error {
            AuthorityError::Subject(_) => fault(StatusCode::BAD_REQUEST, "subject", error.to_string()),
            AuthorityError::Lifetime { .. } => fault(StatusCode::BAD_REQUEST, "lifetime", error.to_string()),
            AuthorityError::IssuerExpired { .. } => fault(StatusCode::CONFLICT, "issuer_expired", error.to_string()),
            _ => fault(StatusCode::SERVICE_UNAVAILABLE, "signing", error.to_string()),
        }
    }
}

impl From<CreateError> for Refusal {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Authority(error) => error.into(),
            CreateError::Store(error) => fault(StatusCode::SERVICE_UNAVAILABLE, "database", error.to_string()),
        }
    }
}

impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Refused(refusal) => fault(StatusCode::FORBIDDEN, "credential", refusal.to_string()),
            IssueError::Authority(error) => error.into(),
            IssueError::Store(error) => fault(StatusCode::SERVICE_UNAVAILABLE, "database", error.to_string()),
        }
    }
}

impl From<crate::store::StoreGone> for Refusal {
    fn from(gone: crate::store::StoreGone) -> Self {
        fault(StatusCode::SERVICE_UNAVAILABLE, "database", gone.to_string())
    }
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let unreadable =
        |why: String| fault(StatusCode::BAD_REQUEST, "unreadable", format!("the request cannot be read: {why}"));
    let body = Limited::new(request.into_body(), MAX_MESSAGE).collect().await.map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| unreadable(e.to_string()))
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    // Of plain structs of strings and numbers; that cannot fail.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
