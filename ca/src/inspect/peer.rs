//! Asks a server for its certificates, as far into a handshake as that takes. The chain is not judged here, so that a
//! bad one can be looked at; the proof that the server has the leaf's key is.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{InspectError, Presented};

/// For connecting and the handshake together.
const LIMIT: Duration = Duration::from_secs(10);
/// A sidecar terminates only its own protocol; the others are what servers commonly have.
const ALPN: [&[u8]; 3] = [b"outrigger-h2", b"h2", b"http/1.1"];

pub(super) fn ask(address: &str) -> Result<Presented, InspectError> {
    let fail = |why: String| InspectError::Peer { address: address.to_owned(), why };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| fail(format!("\"{host}\" is no host name")))?;
    let deadline = Instant::now() + LIMIT;
    let tcp = connect(address, deadline).map_err(|e| fail(e.to_string()))?;
    let seen = Arc::new(Seen::new());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&seen.provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|e| fail(e.to_string()))?;
    let ended = handshake(connection, tcp, deadline);

    let State { chain, possession } = seen.take();
    match (chain.is_empty(), ended) {
        (false, ended) => {
            let unproved = || match ended {
                Err(error) => Err(error.to_string()),
                Ok(()) => Err("the handshake ended without a signature".to_owned()),
            };
            Ok(Presented { chain, possession: Some(possession.unwrap_or_else(unproved)) })
        }
        (true, Err(error)) => Err(fail(error.to_string())),
        (true, Ok(())) => Err(fail("the handshake ended without one".into())),
    }
}

fn connect(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Until the handshake is over. In TLS 1.3 that is before the server looks for our certificate, which we have not.
fn handshake(mut connection: ClientConnection, mut tcp: TcpStream, deadline: Instant) -> io::Result<()> {
    while connection.is_handshaking() {
        // Anew each time, or a server that sends a byte now and then could hold us for ever.
        tcp.set_read_timeout(Some(left(deadline)?))?;
        tcp.set_write_timeout(Some(left(deadline)?))?;
        while connection.wants_write() {
            connection.write_tls(&mut tcp)?;
        }
        if connection.is_handshaking() {
            if connection.read_tls(&mut tcp)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
            }
            connection.process_new_packets().map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, format!("it took longer than {LIMIT:?}"))),
        left => Ok(left),
    }
}

#[derive(Debug, Default)]
struct State {
    chain: Vec<CertificateDer<'static>>,
    possession: Option<Result<(), String>>,
}

/// Takes every chain, remembers it, and checks signatures.
#[derive(Debug)]
struct Seen {
    provider: Arc<CryptoProvider>,
    state: Mutex<State>,
}

impl Seen {
    fn new() -> Self {
        Self { provider: Arc::new(aws_lc_rs::default_provider()), state: Mutex::default() }
    }

    fn take(&self) -> State {
        std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, checked: Result<HandshakeSignatureValid, Error>) -> Result<HandshakeSignatureValid, Error> {
        let possession = checked.as_ref().map(drop).map_err(ToString::to_string);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).possession = Some(possession);
        checked
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned());
        self.state.lock().unwrap_or_else(PoisonError::into_inner).chain = chain.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.note(verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.note(verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
