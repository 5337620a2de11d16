//! Handshakes between sidecars: TLS 1.3 only, both sides authenticated, SPIFFE rules for both, no resumption.
//!
//! Sessions are never resumed: a ticket would outlive the trust bundle that its first handshake was checked against
//! (SPIRE had exactly that), and one ECDSA handshake for a connection that lives for minutes costs nothing worth it.
//! The configurations are made once for an identity's generation and shared by every connection of a worker.

mod explain;
mod late;
mod refusal;
mod standing;
#[cfg(test)]
pub(crate) mod test_pki;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_hostile;
mod verify;

use std::{net::Ipv4Addr, sync::Arc, time::SystemTime};

use outrigger_identity::SpiffeId;
use rustls::{
    ClientConfig, CommonState, ServerConfig, client::Resumption, pki_types::ServerName, server::NoServerSessionStorage,
    sign::SingleCertAndKey, version::TLS13,
};

use crate::{
    config::Host,
    identity::{Identity, NotValidNow, provider},
};

pub use explain::{TlsFailure, explain, explain_tls, find};
pub use late::Late;
pub use refusal::{PeerRefusal, WrongName};
pub use standing::{Peers, Standing, is_refused};
pub use verify::{PeerRules, check_name, verify_chain};

/// HTTP, carried as HTTP/2.
pub const ALPN_H2: &[u8] = b"outrigger-h2";
/// Opaque bytes, one connection each.
pub const ALPN_TCP: &[u8] = b"outrigger-tcp";

/// Why no TLS configuration can be made from an identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Our own certificate would be refused by every peer.
    #[error(transparent)]
    NotValidNow(#[from] NotValidNow),
    /// rustls refused the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// Whom a client wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerExpectation {
    /// The service's host: without `identities`, a DNS SAN of the server must equal it.
    pub host: Host,
    /// The ids, one of which the server must have. They replace the check of the DNS SAN.
    pub identities: Vec<SpiffeId>,
}

/// The accepting side: a client certificate is demanded, both ALPN protocols are offered.
///
/// rustls lets a client without ALPN in: a connection whose `alpn_protocol()` is `None` must be refused with
/// [`PeerRefusal::Alpn`], which [`require_alpn`] does.
pub fn server_config(identity: &Arc<Identity>) -> Result<Arc<ServerConfig>, TlsError> {
    identity.check_valid(SystemTime::now())?;
    let verifier = verify::ClientVerifier(PeerRules::of(identity));
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.as_ref().clone())));
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_TCP.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The dialling side, for one service and one of the two protocols. The server's choice must be checked with
/// [`require_alpn`] after the handshake.
pub fn client_config(
    identity: &Arc<Identity>,
    expect: &PeerExpectation,
    alpn: &'static [u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    identity.check_valid(SystemTime::now())?;
    let verifier = verify::ServerVerifier { rules: PeerRules::of(identity), expect: expect.clone() };
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // The name of the builder's step; our verifier checks more than the default one.
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key.as_ref().clone())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The SNI to send. It is a hint for people with packet captures; which server is right is decided by
/// [`PeerExpectation`], so a host that SNI cannot carry is simply not sent.
pub fn server_name(host: &Host) -> ServerName<'static> {
    ServerName::try_from(host.as_str().to_owned()).unwrap_or(ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()))
}

/// The id of the peer of an established connection, which the handshake has verified.
pub fn peer_id(connection: &CommonState) -> Option<SpiffeId> {
    connection.peer_certificates()?.first().and_then(verify::id_of)
}

/// The protocol that an established connection speaks: [`ALPN_H2`] or [`ALPN_TCP`].
pub fn require_alpn(connection: &CommonState) -> Result<&'static [u8], PeerRefusal> {
    match connection.alpn_protocol() {
        Some(ALPN_H2) => Ok(ALPN_H2),
        Some(ALPN_TCP) => Ok(ALPN_TCP),
        _ => Err(PeerRefusal::Alpn),
    }
}
