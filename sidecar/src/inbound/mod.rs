//! The inbound journey: from a peer to the application.
//!
//! Accept within the limits, and recover where the peer was going; look at the first bytes: mesh mTLS is
//! terminated and the peer verified, anything else goes by `inbound.mode`; then [`http`] and [`opaque`] authorize and
//! hand over.

mod application;
mod caller;
mod http;
mod opaque;
mod waiting;

use std::{
    cell::RefCell,
    fmt, io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use rustc_hash::FxHashMap;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub use caller::Caller;

use self::{
    application::{Applications, Leg},
    waiting::{Place, Waiting},
};
use crate::{
    config::{Config, IdPattern, InboundMode, InboundPort, Interception, Protocol},
    http::client::ConnectError,
    identity::Usage,
    net::{
        Peeked, ReadAhead,
        detect::{self, Kind},
        listen,
        look::{Look, look},
    },
    reason::Reason,
    telemetry::{Direction, Transport},
    tls::{self, Standing},
    worker::{Entered, Open, Worker},
};

/// A handshake that takes longer is given up. A connection that has sent nothing at all is only given up when its
/// place is needed.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a refused peer may take to close its connection after reading the refusal.
const HEAR_OUT: Duration = Duration::from_secs(1);

/// What the inbound connections of one worker share.
pub struct Inbound {
    /// Open connections.
    pub open: Open,
    waiting: Waiting,
    applications: Applications,
    ports: FxHashMap<u16, InboundPort>,
    mode: InboundMode,
    allow: Vec<IdPattern>,
    tls: RefCell<Option<(u64, Arc<ServerConfig>)>>,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbound({:?})", self.mode)
    }
}

impl Inbound {
    /// The inbound side of a worker with this configuration.
    pub fn new(config: &Config) -> Self {
        let inbound = &config.inbound;
        Self {
            open: Open::new(inbound.max_connections.get()),
            waiting: Waiting::new(inbound.max_handshakes.get()),
            applications: Applications::new(inbound.application),
            ports: inbound.ports.iter().map(|p| (p.port, p.clone())).collect(),
            mode: inbound.mode,
            allow: inbound.allow.clone(),
            tls: RefCell::new(None),
        }
    }

    fn mode(&self, port: u16) -> InboundMode {
        self.ports.get(&port).and_then(|p| p.mode).unwrap_or(self.mode)
    }

    fn is_opaque(&self, port: u16) -> bool {
        self.ports.get(&port).is_some_and(|p| p.protocol == Protocol::Opaque)
    }

    /// The TLS settings of the current identity.
    fn server_config(&self, worker: &Worker) -> Result<Arc<ServerConfig>, ConnectError> {
        let missing = |why: &dyn fmt::Display| ConnectError::new(Reason::NoCertificate, why);
        let identity =
            worker.shared.identity.current().ok_or_else(|| missing(&"this sidecar has no certificate yet"))?;
        identity.check_valid(std::time::SystemTime::now()).map_err(|e| missing(&e))?;
        let mut cached = self.tls.borrow_mut();
        if let Some((generation, config)) = &*cached
            && *generation == identity.generation
        {
            return Ok(Arc::clone(config));
        }
        let config = tls::server_config(&identity).map_err(|e| missing(&e))?;
        *cached = Some((identity.generation, Arc::clone(&config)));
        Ok(config)
    }
}

/// What a peer's connection carries.
enum Carries {
    Mesh,
    Http1,
    Http2,
    OwnTls,
}

/// A connection that is being made to the application while it is seen who speaks first.
type ToApplication = TcpStream;

/// Carries one connection of a peer to its end.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, peer: SocketAddr, _entered: Entered) {
    let peer = listen::canonical(peer);
    match journey(&worker, &mut stream, peer).await {
        Ok(Next::Done) => {}
        Ok(Next::Mesh(bytes, leg, place)) => {
            if let Err(e) = mesh(&worker, Peeked::new(stream, bytes), place, peer, leg).await {
                say_refused(&worker, peer, &e);
            }
        }
        Ok(Next::Plaintext { carries, bytes, application, leg }) => {
            plaintext(&worker, stream, bytes, carries, application, peer, leg).await;
        }
        Err(e) => {
            say_refused(&worker, peer, &e);
            listen::reset_on_close(&stream);
        }
    }
}

enum Next {
    Done,
    Mesh(BytesMut, Leg, Place),
    Plaintext { carries: Option<Carries>, bytes: BytesMut, application: Option<(ToApplication, BytesMut)>, leg: Leg },
}

async fn journey(worker: &Rc<Worker>, stream: &mut TcpStream, peer: SocketAddr) -> Result<Next, ConnectError> {
    let destination = listen::original_destination(stream, peer)?;
    let config = worker.config();
    let own = [config.inbound.port, config.outbound.port, config.admin.address.port()];
    if own.contains(&destination.port()) {
        let text = format!("{peer} dialled the sidecar's own port {destination}");
        return Err(ConnectError::new(Reason::Loop, text));
    }
    let leg = Leg { destination, source: source(worker, stream, peer) };
    let port = destination.port();
    let strict = worker.inbound.mode(port) == InboundMode::Strict;
    let opaque = worker.inbound.is_opaque(port);
    let decide = |bytes: &[u8]| {
        Some(match detect::kind(bytes)? {
            Kind::Tls(hello) if hello.is_mesh() => Some(Carries::Mesh),
            Kind::Tls(_) => Some(Carries::OwnTls),
            Kind::Http1 if !opaque => Some(Carries::Http1),
            Kind::Http2 if !opaque => Some(Carries::Http2),
            Kind::Http1 | Kind::Http2 | Kind::Opaque => None,
        })
    };
    let place = worker.inbound.waiting.enter();
    let dial = async || {
        if strict {
            // Nothing is said to the application on behalf of a peer that is not known.
            std::future::pending::<()>().await;
        }
        worker.inbound.applications.dial(leg).await
    };
    let silence = config.outbound.detect_delay.get();
    let looked: Look<Carries, ToApplication> = tokio::select! {
        biased;
        looked = look(stream, BytesMut::new(), silence, decide, dial) => looked?,
        () = place.given_up() => {
            let text = format!("{peer} was silent and its place among inbound.max_handshakes was needed");
            return Err(ConnectError::new(Reason::HandshakeTimeout, text));
        }
    };
    if looked.bytes.is_empty() && looked.upstream.is_none() && strict {
        // Came and went without a word: a port check.
        return Ok(Next::Done);
    }
    match looked.found {
        Some(Carries::Mesh) => Ok(Next::Mesh(looked.bytes, leg, place)),
        carries => Ok(Next::Plaintext { carries, bytes: looked.bytes, application: looked.upstream, leg }),
    }
}

/// Whom the application sees. What came by NAT after all is a call of this very workload, by the sidecar or by the
/// application: with its source, a local address, the leg would be redirected once more, and so for ever. A link-local
/// address has no meaning on `lo`.
fn source(worker: &Worker, stream: &TcpStream, peer: SocketAddr) -> Option<IpAddr> {
    let inbound = &worker.config().inbound;
    let link_local = matches!(peer.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    if inbound.interception != Interception::Tproxy || link_local {
        return None;
    }
    let local = stream.local_addr().ok()?;
    (local.port() != inbound.port).then_some(peer.ip())
}

/// Terminates mesh mTLS and serves what is inside. Until the handshake has ended the connection keeps its `place`.
async fn mesh(worker: &Rc<Worker>, io: Peeked, place: Place, peer: SocketAddr, leg: Leg) -> Result<(), ConnectError> {
    let config = worker.inbound.server_config(worker)?;
    let late = |why: fmt::Arguments<'_>| {
        worker.metrics.tls_failure(Direction::Inbound, "timeout");
        ConnectError::new(Reason::HandshakeTimeout, format_args!("{peer} {why}"))
    };
    let stream = tokio::select! {
        biased;
        accepted = TlsAcceptor::from(config).accept(ReadAhead::new(io)).into_fallible() => match accepted {
            Ok(stream) => stream,
            Err((e, io)) => {
                tokio::task::spawn_local(hear_out(io, place));
                let failure = tls::explain(&e);
                worker.metrics.tls_failure(Direction::Inbound, failure.code);
                let text = format_args!("no mTLS with {peer}: {}", failure.message);
                return Err(ConnectError::new(Reason::TlsFailed, text));
            }
        },
        () = tokio::time::sleep(HANDSHAKE) => {
            return Err(late(format_args!("did not end its handshake in {HANDSHAKE:?}")));
        }
        () = place.given_up() => {
            return Err(late(format_args!("was slow in its handshake and its place among inbound.max_handshakes was needed")));
        }
    };
    drop(place);
    let connection = stream.get_ref().1;
    let alpn = tls::require_alpn(connection).map_err(|refusal| {
        worker.metrics.tls_failure(Direction::Inbound, refusal.code());
        ConnectError::new(Reason::MeshVersion, format_args!("{peer}: {refusal}"))
    })?;
    let id = tls::peer_id(connection)
        .ok_or_else(|| ConnectError::new(Reason::TlsFailed, format_args!("{peer} has no verified identity")))?;
    let standing = worker.peers.enter(connection, Usage::Client, &worker.shared.identity);
    let certificate = connection.peer_certificates().and_then(|all| all.first());
    let allowed = worker.inbound.allow.is_empty() || worker.inbound.allow.iter().any(|p| p.matches(&id));
    let caller = Caller::mesh(worker, peer, id, certificate.map(|c| c.as_ref()), allowed);
    serve_mesh(worker, stream, caller, alpn, leg, standing).await
}

/// Lets a refused peer read why: closing a connection with bytes of it unread would reset it and take our alert along.
async fn hear_out(mut io: ReadAhead<Peeked>, place: Place) {
    let ended = async {
        let mut rest = [0; 4_096];
        if io.shutdown().await.is_ok() {
            while matches!(io.read(&mut rest).await, Ok(1..)) {}
        }
    };
    tokio::select! {
        () = ended => {}
        () = tokio::time::sleep(HEAR_OUT) => {}
        () = place.given_up() => {}
    }
}

async fn serve_mesh(
    worker: &Rc<Worker>,
    stream: TlsStream<ReadAhead<Peeked>>,
    caller: Caller,
    alpn: &[u8],
    leg: Leg,
    standing: Option<Standing>,
) -> Result<(), ConnectError> {
    if alpn == tls::ALPN_H2 {
        http::serve_http2(worker, stream, caller, Transport::Mtls, leg, standing).await;
        return Ok(());
    }
    if !caller.is_allowed() {
        return Err(ConnectError::new(Reason::NotAllowed, caller.refusal(leg.destination)));
    }
    let refused = async { caller.refused_by_now(worker, &tls::is_refused(standing).await) };
    opaque::carry(worker, stream, |s| s.get_ref().0.get_ref().tcp(), None, Transport::Mtls, leg, refused).await
}

/// Serves what is not mesh mTLS, by the mode of its port.
async fn plaintext(
    worker: &Rc<Worker>,
    stream: TcpStream,
    bytes: BytesMut,
    carries: Option<Carries>,
    application: Option<(ToApplication, BytesMut)>,
    peer: SocketAddr,
    leg: Leg,
) {
    let destination = leg.destination;
    let strict = worker.inbound.mode(destination.port()) == InboundMode::Strict;
    let transport = if matches!(carries, Some(Carries::OwnTls)) { Transport::Tls } else { Transport::Plaintext };
    match carries {
        // An HTTP caller is told in its own words what is wrong, and a health probe may be an exception.
        Some(Carries::Http1) => {
            let caller = Caller::plaintext(worker, peer, destination.port());
            http::serve_http1(worker, Peeked::new(stream, bytes), caller, transport, leg).await;
        }
        Some(Carries::Http2) => {
            let caller = Caller::plaintext(worker, peer, destination.port());
            http::serve_http2(worker, Peeked::new(stream, bytes), caller, transport, leg, None).await;
        }
        _ if strict => {
            let what = if transport == Transport::Tls { "TLS that is not the mesh's" } else { "plaintext" };
            let text = format!("{peer} sent {what} to port {}, which is strict: mesh mTLS only", destination.port());
            say_refused(worker, peer, &ConnectError::new(Reason::MeshOnly, text));
            listen::reset_on_close(&stream);
        }
        _ => {
            let io = Peeked::new(stream, bytes);
            let nobody = std::future::pending();
            let carried = opaque::carry(worker, io, Peeked::tcp, application, transport, leg, nobody).await;
            if let Err(e) = carried {
                say_refused(worker, peer, &e);
            }
        }
    }
}

fn say_refused(worker: &Worker, peer: SocketAddr, refused: &ConnectError) {
    tracing::warn!(%peer, reason = refused.reason.code(), "inbound connection ended: {refused}");
    worker.metrics.error(Direction::Inbound, refused.reason.code());
}

impl From<(SocketAddr, io::Error)> for ConnectError {
    fn from((to, e): (SocketAddr, io::Error)) -> Self {
        Self::new(
            Reason::ApplicationUnreachable,
            format_args!("the application does not take connections at {to}: {e}"),
        )
    }
}
