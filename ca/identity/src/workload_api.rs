//! A client of the SPIFFE Workload API: identities that an agent on this machine (SPIRE's, for one) gives a workload, and
//! again with each change.
//!
//! The agent finds out by itself whom it speaks with, so nothing is shown to it, and it is trusted for who owns the socket:
//! there is no TLS (SPIFFE Workload Endpoint, sections 4 and 6).

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::{Code, Status, metadata::MetadataValue};
use x509_parser::{asn1_rs::Any, prelude::FromDer};

use crate::{
    SpiffeId,
    connect::AbortOnDrop,
    workload_proto::{
        X509svid, X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
};

/// Limit of connecting.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of the time to the first answer. SPIRE's agent answers from memory.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an agent that says nothing is asked whether it lives. More often than every 5 min, gRPC's servers in Go take it
/// for an attack ("too many pings").
const PING_INTERVAL: Duration = Duration::from_secs(6 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// No honest message is longer, in bytes: the limit that gRPC has by itself.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// No honest chain or bundle has more certificates.
const MAX_CERTIFICATES: usize = 256;

/// Where the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///run/spire/agent.sock`.
    Unix(PathBuf),
    /// `tcp://127.0.0.1:8000`.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad =
            |why: &str| format!("\"{s}\" {why}; write it as unix:///run/spire/agent.sock or tcp://127.0.0.1:8000");
        if s.contains(['?', '#']) {
            return Err(bad("has a query or a fragment"));
        }
        if let Some(rest) = s.strip_prefix("unix:") {
            // With an authority, which must be empty, or without.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(bad("has no absolute path"))
            };
        }
        let Some(address) = s.strip_prefix("tcp://") else { return Err(bad("begins with neither unix: nor tcp://")) };
        // An IP address: a name would let DNS decide who we are.
        match address.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
            _ => Err(bad("has no IP address with a port")),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <String as serde::Deserialize>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// Identities that can be had no more, or not yet.
#[derive(Debug, thiserror::Error)]
#[error("no identity from {endpoint}: {cause}")]
pub struct WorkloadApiError {
    /// Where the agent was looked for.
    pub endpoint: Endpoint,
    /// What went wrong.
    pub cause: WorkloadApiCause,
}

/// The cause inside a [`WorkloadApiError`].
#[derive(Debug, thiserror::Error)]
pub enum WorkloadApiCause {
    /// Nobody listens there, or we may not.
    #[error("no connection: {why}; check that the agent runs and that uid {uid} may use its socket")]
    Connect {
        /// What the system said.
        why: io::Error,
        /// Who we are to it.
        uid: u32,
    },
    /// Nothing came.
    #[error("no answer in {} s; look at the agent's log", .0.as_secs())]
    TimedOut(Duration),
    /// The agent knows nothing of us (SPIFFE Workload API, section 4.4).
    #[error("the agent has no identity for this workload ({0}); register it (\"spire-server entry create\")")]
    NoIdentity(String),
    /// We asked for what it does not understand.
    #[error("it does not take the question ({0}); is this an agent of SPIFFE?")]
    Question(String),
    /// Another refusal.
    #[error("the agent answered {code:?}: {said}")]
    Status {
        /// gRPC's code.
        code: Code,
        /// Its words.
        said: String,
    },
    /// The stream ended.
    #[error("the agent ended the stream; it is asked again")]
    Ended,
    /// The connection broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// What came is not what the standard says.
    #[error("the answer cannot be used: {0}")]
    Answer(String),
}

impl WorkloadApiCause {
    /// Whether it will be so until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Question(_))
    }
}

/// One identity.
pub struct X509Svid {
    /// Whose it is, as the agent says.
    pub id: SpiffeId,
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The roots of its trust domain.
    pub roots: Vec<CertificateDer<'static>>,
    /// What the operator says that it is for.
    pub hint: String,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("id", &self.id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// All that the agent gives a workload at a moment.
#[derive(Debug)]
pub struct Update {
    /// At least one; the first is the default.
    pub svids: Vec<X509Svid>,
    /// DER revocation lists.
    pub revocation_lists: Vec<Vec<u8>>,
    /// The ids of other trust domains whose roots came too.
    pub federated: Vec<String>,
}

/// The stream of updates.
pub struct Updates {
    endpoint: Endpoint,
    stream: tonic::Streaming<X509svidResponse>,
    answered: bool,
    _connection: AbortOnDrop,
}

/// Asks the agent. Ends within [`CONNECT_TIMEOUT`] plus [`ANSWER_TIMEOUT`].
///
/// # Errors
///
/// When nobody answers there, or refuses.
pub async fn watch(endpoint: &Endpoint) -> Result<Updates, WorkloadApiError> {
    let fail = |cause| WorkloadApiError { endpoint: endpoint.clone(), cause };
    match endpoint {
        Endpoint::Unix(path) => watch_over(endpoint, connected(UnixStream::connect(path)).await.map_err(fail)?).await,
        Endpoint::Tcp(address) => {
            watch_over(endpoint, connected(TcpStream::connect(address)).await.map_err(fail)?).await
        }
    }
    .map_err(fail)
}

async fn connected<T>(connecting: impl Future<Output = io::Result<T>>) -> Result<T, WorkloadApiCause> {
    let stream = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| WorkloadApiCause::TimedOut(CONNECT_TIMEOUT))?;
    stream.map_err(|why| WorkloadApiCause::Connect { why, uid: own_uid() })
}

/// The owner of our own process: what the agent will look at.
fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    Path::new("/proc/self").metadata().map_or(u32::MAX, |facts| facts.uid())
}

async fn watch_over<S>(endpoint: &Endpoint, stream: S) -> Result<Updates, WorkloadApiCause>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let lost = |e: hyper::Error| WorkloadApiCause::Lost(e.to_string());
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake::<_, tonic::body::Body>(TokioIo::new(stream))
        .await
        .map_err(lost)?;
    let connection = AbortOnDrop::of(connection);
    let service = tower::service_fn(move |request| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await?;
            sender.send_request(request).await
        }
    });
    let origin = http::Uri::from_static("http://localhost/");
    let mut client = SpiffeWorkloadApiClient::with_origin(service, origin).max_decoding_message_size(MAX_MESSAGE);
    let mut question = tonic::Request::new(X509svidRequest {});
    // Without it the agent must refuse: a request that somebody else was made to send has no such field (section 6.1).
    question.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answer = timeout(ANSWER_TIMEOUT, client.fetch_x509svid(question))
        .await
        .map_err(|_| WorkloadApiCause::TimedOut(ANSWER_TIMEOUT))?
        .map_err(|status| cause_of(&status))?;
    Ok(Updates { endpoint: endpoint.clone(), stream: answer.into_inner(), answered: false, _connection: connection })
}

fn cause_of(status: &Status) -> WorkloadApiCause {
    let said = status.message().to_owned();
    match status.code() {
        Code::PermissionDenied => WorkloadApiCause::NoIdentity(said),
        Code::InvalidArgument | Code::Unimplemented => WorkloadApiCause::Question(said),
        Code::OutOfRange => WorkloadApiCause::Answer(said),
        Code::Unknown if status.metadata().is_empty() => WorkloadApiCause::Lost(said),
        code => WorkloadApiCause::Status { code, said },
    }
}

impl Updates {
    /// The next update. The first has to come within [`ANSWER_TIMEOUT`], the others come when something changes.
    ///
    /// # Errors
    ///
    /// When the stream has ended, or brought what cannot be read. It is then over: [`watch`] begins another.
    pub async fn next(&mut self) -> Result<Update, WorkloadApiError> {
        let message = self.stream.message();
        let message = if self.answered {
            message.await
        } else {
            match timeout(ANSWER_TIMEOUT, message).await {
                Ok(message) => message,
                Err(_) => return Err(self.failed(WorkloadApiCause::TimedOut(ANSWER_TIMEOUT))),
            }
        };
        let read = match message {
            Ok(Some(message)) => read(message).map_err(WorkloadApiCause::Answer),
            Ok(None) => Err(WorkloadApiCause::Ended),
            Err(status) => Err(cause_of(&status)),
        };
        self.answered = true;
        read.map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: WorkloadApiCause) -> WorkloadApiError {
        WorkloadApiError { endpoint: self.endpoint.clone(), cause }
    }
}

fn read(message: X509svidResponse) -> Result<Update, String> {
    if message.svids.is_empty() {
        return Err("it holds no identity".to_owned());
    }
    let svids = message
        .svids
        .into_iter()
        .enumerate()
        .map(|(at, svid)| read_svid(svid).map_err(|why| format!("identity {} of it {why}", at + 1)));
    let mut federated: Vec<String> = message.federated_bundles.into_keys().collect();
    federated.sort_unstable();
    Ok(Update { svids: svids.collect::<Result<_, _>>()?, revocation_lists: message.crl, federated })
}

fn read_svid(svid: X509svid) -> Result<X509Svid, String> {
    let id = svid.spiffe_id.parse().map_err(|e| format!("is for {:?}: {e}", svid.spiffe_id))?;
    let chain = certificates(&svid.x509_svid).map_err(|why| format!("({id}) has a chain that {why}"))?;
    let roots = certificates(&svid.bundle).map_err(|why| format!("({id}) has a bundle that {why}"))?;
    if svid.x509_svid_key.is_empty() {
        return Err(format!("({id}) has no private key"));
    }
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(svid.x509_svid_key));
    Ok(X509Svid { id, chain, key, roots, hint: svid.hint })
}

/// Splits certificates that stand one after the other.
fn certificates(mut ders: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = Vec::new();
    while !ders.is_empty() {
        let (rest, _) = Any::from_der(ders).map_err(|e| format!("is not DER after {} certificates: {e}", all.len()))?;
        let length = ders.len() - rest.len();
        if all.len() == MAX_CERTIFICATES || length == 0 {
            return Err(format!("has more than {MAX_CERTIFICATES} certificates"));
        }
        all.push(CertificateDer::from(ders[..length].to_vec()));
        ders = rest;
    }
    if all.is_empty() { Err("is empty".to_owned()) } else { Ok(all) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_the_standard_writes_them() {
        for (text, endpoint) in [
            ("unix:///run/spire/agent.sock", Endpoint::Unix("/run/spire/agent.sock".into())),
            ("unix:/run/spire/agent.sock", Endpoint::Unix("/run/spire/agent.sock".into())),
            ("tcp://127.0.0.1:8000", Endpoint::Tcp("127.0.0.1:8000".parse().unwrap())),
            ("tcp://[::1]:8000", Endpoint::Tcp("[::1]:8000".parse().unwrap())),
        ] {
            let read: Endpoint = text.parse().unwrap();
            assert_eq!(read, endpoint);
            assert_eq!(read.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }
        for wrong in [
            "",
            "/run/agent.sock",
            "unix:",
            "unix://",
            "unix:///",
            "unix://host/agent.sock",
            "unix:agent.sock",
            "unix:///a?b",
            "unix:///a#b",
            "tcp://localhost:8000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:8000/path",
            "http://127.0.0.1:8000",
        ] {
            let why = wrong.parse::<Endpoint>().unwrap_err();
            assert!(why.contains("unix:///run/spire/agent.sock"), "{why}");
        }
    }

    #[test]
    fn what_stands_one_after_the_other_is_split_and_nothing_else_is_taken() {
        let key = rcgen::KeyPair::generate().unwrap();
        let one = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let two = [&one.der()[..], one.der()].concat();
        assert_eq!(certificates(&two).unwrap(), [one.der().clone(), one.der().clone()]);
        for wrong in
            [&[][..], b"hello", &two[..two.len() - 1], &[&two[..], b"x"].concat(), &two.repeat(MAX_CERTIFICATES)]
        {
            assert!(certificates(wrong).is_err());
        }
    }

    #[test]
    fn an_identity_without_its_parts_is_refused_in_words() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::default().self_signed(&key).unwrap().der().to_vec();
        let good = || X509svid {
            spiffe_id: "spiffe://mesh.example/a".into(),
            x509_svid: der.clone(),
            x509_svid_key: key.serialize_der(),
            bundle: der.clone(),
            hint: String::new(),
        };
        let answer = |svid| read(X509svidResponse { svids: vec![svid], ..Default::default() });
        assert_eq!(answer(good()).unwrap().svids[0].id.to_string(), "spiffe://mesh.example/a");
        assert!(read(X509svidResponse::default()).unwrap_err().contains("no identity"));
        for (svid, words) in [
            (X509svid { spiffe_id: "mesh.example/a".into(), ..good() }, "identity 1 of it is for"),
            (X509svid { x509_svid: Vec::new(), ..good() }, "a chain that is empty"),
            (X509svid { bundle: b"x".to_vec(), ..good() }, "a bundle that is not DER"),
            (X509svid { x509_svid_key: Vec::new(), ..good() }, "no private key"),
        ] {
            let why = answer(svid).unwrap_err();
            assert!(why.contains(words), "{why} does not say {words:?}");
        }
    }
}
