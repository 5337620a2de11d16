//! Who the peer is. One function, [`verify_chain`], decides for both directions; the two verifiers only hand it to rustls.

use std::sync::Arc;

use outrigger_identity::{SpiffeId, TrustDomain};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{PeerExpectation, PeerRefusal, WrongName, provider};
use crate::identity::{Identity, TrustBundle, Usage, WorkloadCertificate};

/// The roots and the trust domain that every peer is measured by.
#[derive(Debug, Clone)]
pub struct PeerRules {
    /// The roots of the trust domain.
    pub bundle: Arc<TrustBundle>,
    /// The trust domain that a peer's id must belong to.
    pub trust_domain: TrustDomain,
}

impl PeerRules {
    /// Those of an identity.
    pub fn of(identity: &Identity) -> Self {
        Self { bundle: identity.bundle.clone(), trust_domain: identity.trust_domain.clone() }
    }
}

/// Checks a presented chain: a workload certificate with exactly one SPIFFE id, a path to a root of the bundle that is
/// good at `now` for `usage`, and the trust domain.
///
/// What the path says is reported first: what an unsigned certificate says of itself is no fact.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    rules: &PeerRules,
    now: UnixTime,
    usage: Usage,
) -> Result<WorkloadCertificate, PeerRefusal> {
    rules.bundle.verify(leaf, intermediates, now, usage).map_err(|fault| PeerRefusal::of_path(fault, now))?;
    let certificate = WorkloadCertificate::parse(leaf)?;
    if !certificate.id.is_member_of(&rules.trust_domain) {
        return Err(PeerRefusal::WrongTrustDomain {
            id: certificate.id.as_str().to_owned(),
            ours: rules.trust_domain.clone(),
        });
    }
    Ok(certificate)
}

/// Whether a verified server is the one that was asked for: one of the listed ids where there is a list, else a DNS SAN
/// equal to the host. No wildcards: a name either is the service's or it is not.
pub fn check_name(certificate: &WorkloadCertificate, expect: &PeerExpectation) -> Result<(), PeerRefusal> {
    let host = expect.host.as_str();
    if !expect.identities.is_empty() {
        if expect.identities.contains(&certificate.id) {
            return Ok(());
        }
        return Err(PeerRefusal::WrongId {
            host: host.to_owned(),
            listed: expect.identities.iter().map(|id| id.as_str().to_owned()).collect(),
            id: certificate.id.as_str().to_owned(),
        });
    }
    if certificate.dns_names.iter().any(|name| name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let mut presented = certificate.dns_names.clone();
    presented.push(certificate.id.as_str().to_owned());
    Err(PeerRefusal::WrongName(WrongName { expected: host.to_owned(), presented }))
}

/// The id of a peer whose connection is established and verified.
pub(super) fn id_of(leaf: &CertificateDer<'_>) -> Option<SpiffeId> {
    WorkloadCertificate::parse(leaf).ok().map(|c| c.id)
}

/// Verifies callers.
#[derive(Debug)]
pub(super) struct ClientVerifier(pub(super) PeerRules);

/// Verifies the server that was dialled.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) rules: PeerRules,
    pub(super) expect: PeerExpectation,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a caller has one certificate and shows it.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_chain(leaf, intermediates, &self.0, now, Usage::Client)
            .map(|_| ClientCertVerified::assertion())
            .map_err(|refusal| refuse(refusal, leaf, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The name that counts is in `expect`: it may be one that SNI cannot carry.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_chain(leaf, intermediates, &self.rules, now, Usage::Server)
            .and_then(|certificate| check_name(&certificate, &self.expect))
            .map(|()| ServerCertVerified::assertion())
            .map_err(|refusal| refuse(refusal, leaf, now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Turns a refusal into rustls's error. Its kinds have no room for who it was, so that goes to the log.
fn refuse(refusal: PeerRefusal, leaf: &CertificateDer<'_>, now: UnixTime) -> Error {
    if tracing::enabled!(tracing::Level::DEBUG) {
        match WorkloadCertificate::parse(leaf) {
            Ok(c) => tracing::debug!(
                code = refusal.code(), claimed_id = %c.id, serial = %c.serial, issuer = %c.issuer, "peer certificate refused"
            ),
            Err(fault) => tracing::debug!(code = refusal.code(), %fault, "peer certificate refused"),
        }
    }
    refusal.into_rustls(now)
}
