//! Failed TLS in words: who refused whom, why, and what to look at. One place for both directions, because an error can
//! be our own refusal or the peer's alert, and an operator must never take one for the other.

use std::{error::Error as StdError, fmt, io};

use rustls::{AlertDescription, Error};

use super::PeerRefusal;

/// A failed handshake or connection, for a log line, an error response and a metric label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFailure {
    /// A stable word from a small closed set. Those of [`PeerRefusal::code`] mean that *we* refused the peer; those that
    /// begin with `refused_` mean that the *peer* refused us; the rest is nobody's refusal.
    pub code: &'static str,
    /// Who refused whom, why, and what to look at; to be put after the peer's address.
    pub message: String,
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Explains the error of a handshake, or of a later read: in TLS 1.3 a client learns only from its first read that the server
/// refused its certificate.
pub fn explain(error: &io::Error) -> TlsFailure {
    if let Some(failure) = find(error) {
        return failure;
    }
    let (code, message) = match error.kind() {
        io::ErrorKind::UnexpectedEof => (
            "closed",
            "the peer closed the connection in the middle of TLS, without saying why; look at the log of its sidecar",
        ),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            ("reset", "the peer reset the connection, without saying why; look at the log of its sidecar")
        }
        io::ErrorKind::TimedOut => ("timeout", "the TLS handshake took too long; the peer or the network is stuck"),
        _ => return TlsFailure { code: "io", message: format!("the connection failed: {error}") },
    };
    TlsFailure { code, message: message.to_owned() }
}

/// The TLS failure somewhere inside `error`: `hyper` and `h2` wrap it in their own errors. `None`: TLS is not the cause.
pub fn find(error: &(dyn StdError + 'static)) -> Option<TlsFailure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Error>() {
            return Some(explain_tls(tls));
        }
        if let Some(refusal) = error.downcast_ref::<PeerRefusal>() {
            return Some(TlsFailure::from(refusal));
        }
        // io::Error::source() skips the error that it wraps.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(failure) = find(inner)
        {
            return Some(failure);
        }
        next = error.source();
    }
    None
}

/// Explains an error of rustls.
pub fn explain_tls(error: &Error) -> TlsFailure {
    if let Error::AlertReceived(alert) = error {
        return explain_alert(*alert);
    }
    if let Some(refusal) = PeerRefusal::find(error) {
        return TlsFailure::from(&refusal);
    }
    let (code, message) = match error {
        Error::InvalidMessage(why) => (
            "not_tls",
            format!(
                "the peer answered with something that is not TLS ({why:?}); there is no sidecar in front of it, or its redirection is missing"
            ),
        ),
        Error::PeerIncompatible(why) => (
            "incompatible",
            format!("the peer's TLS has nothing in common with ours ({why:?}); it is no sidecar of this mesh"),
        ),
        Error::PeerMisbehaved(why) => ("misbehaved", format!("the peer broke the TLS protocol ({why:?})")),
        Error::DecryptError => ("tampered", "a record cannot be decrypted: something between changed it".to_owned()),
        other => ("tls", format!("TLS failed: {other}")),
    };
    TlsFailure { code, message }
}

impl From<&PeerRefusal> for TlsFailure {
    fn from(refusal: &PeerRefusal) -> Self {
        Self { code: refusal.code(), message: format!("we refused the peer: {refusal}") }
    }
}

fn explain_alert(alert: AlertDescription) -> TlsFailure {
    use AlertDescription as A;
    let (code, why) = match alert {
        A::UnknownCA => (
            "refused_unknown_root",
            "our certificate leads to none of the roots in its bundle; compare \"outrigger-ca bundle show\" with bundle.pem on both sides",
        ),
        A::CertificateExpired => (
            "refused_expired",
            "by its clock our certificate is expired or not valid yet; look at /certs of our admin address and compare both clocks",
        ),
        A::CertificateRequired => {
            ("refused_no_certificate", "we showed no certificate; look at /certs of our admin address")
        }
        A::CertificateUnknown => (
            "refused_identity",
            "our certificate breaks a rule of its mesh: another trust domain, not exactly one SPIFFE id, an id that is not listed for the service, or a CA's certificate; its log has the rule, /certs of our admin address has our certificate",
        ),
        A::BadCertificate => (
            "refused_wrong_name",
            "our certificate does not name the service that it asked for, or cannot be read; look at the DNS names in /certs of our admin address, and at its list of endpoints",
        ),
        A::UnsupportedCertificate => (
            "refused_key_usage",
            "our certificate may not be used for this; issue it again with serverAuth and clientAuth",
        ),
        A::CertificateRevoked => ("refused_revoked", "our certificate is revoked; enrol again"),
        A::DecryptError => (
            "refused_bad_signature",
            "a signature of ours is wrong to it: our certificate was altered, or our key is another one",
        ),
        A::AccessDenied => ("refused_access", "our identity may not call it; look at inbound.allow there"),
        A::NoApplicationProtocol => (
            "refused_alpn",
            "it speaks neither outrigger-h2 nor outrigger-tcp (ALPN); it is no sidecar of this mesh, or of another version",
        ),
        A::ProtocolVersion => (
            "refused_version",
            "it does not speak TLS 1.3, the only version of the mesh; it is no sidecar of this mesh",
        ),
        A::HandshakeFailure => {
            ("refused_handshake", "its TLS has nothing in common with ours; it is no sidecar of this mesh")
        }
        A::UnrecognisedName => {
            ("refused_unknown_host", "it does not know the host that we asked for; it is no sidecar of this mesh")
        }
        A::InternalError => ("refused_internal", "it failed by itself; look at its log"),
        other => {
            return TlsFailure {
                code: "refused_other",
                message: format!("the peer refused us with the TLS alert {other:?}; look at its log"),
            };
        }
    };
    TlsFailure { code, message: format!("the peer refused us: {why}") }
}
