//! Why an enrolment failed, in words that say what to do next, and whether trying again can help.

use std::{error::Error, io, time::Duration};

use rustls::{AlertDescription, CertificateError};

/// An enrolment that brought no certificate.
#[derive(Debug, thiserror::Error)]
#[error("cannot enrol with {address}: {cause}")]
pub struct EnrolError {
    /// The CA's address as configured.
    pub address: String,
    /// What went wrong.
    pub cause: EnrolCause,
}

impl EnrolError {
    /// Whether the same attempt would fail again until somebody changes something: a credential, the bundle,
    /// an address. A caller still retries (files get replaced), but slowly and loudly.
    pub fn is_permanent(&self) -> bool {
        match &self.cause {
            EnrolCause::Address(_)
            | EnrolCause::Bundle(_)
            | EnrolCause::Credential(_)
            | EnrolCause::UnknownRoot
            | EnrolCause::WrongName { .. }
            | EnrolCause::CertificateRefused(_) => true,
            EnrolCause::Refused { permanent, .. } => *permanent,
            EnrolCause::Connect(_)
            | EnrolCause::TimedOut { .. }
            | EnrolCause::ServerCertificate(_)
            | EnrolCause::Tls(_)
            | EnrolCause::Lost(_)
            | EnrolCause::Response(_) => false,
        }
    }
}

/// The cause inside an [`EnrolError`].
#[derive(Debug, thiserror::Error)]
pub enum EnrolCause {
    /// The configured address cannot be used.
    #[error("the address is not host:port ({0}); correct identity.ca.address")]
    Address(String),
    /// The bundle that should authenticate the CA cannot be used.
    #[error("identity.ca.bundle cannot be used: {0}; write the output of \"outrigger-ca bundle show\" there")]
    Bundle(String),
    /// The token or the current certificate and key cannot be used.
    #[error("{0}")]
    Credential(String),
    /// No TCP connection.
    #[error(
        "no connection: {0}; check that \"outrigger-ca serve\" runs there and that nothing between blocks the port"
    )]
    Connect(io::Error),
    /// Too slow.
    #[error("{what} took longer than {}; check the load of the CA and the network between", human(*after))]
    TimedOut {
        /// What was being done.
        what: &'static str,
        /// The limit that passed.
        after: Duration,
    },
    /// The CA's certificate leads to none of the roots in the bundle.
    #[error(
        "its certificate is signed by an unknown root; compare \"outrigger-ca bundle show\" with identity.ca.bundle"
    )]
    UnknownRoot,
    /// The CA's certificate is good, but for other names.
    #[error(
        "its certificate is for {presented}; use one of these in identity.ca.address, or serve with \"outrigger-ca serve --name {expected}\""
    )]
    WrongName {
        /// The host that was dialled.
        expected: String,
        /// What the certificate says.
        presented: String,
    },
    /// The CA's certificate cannot be accepted now, most often for its dates.
    #[error(
        "its certificate is not acceptable: {0}; compare the clocks of both machines and restart \"outrigger-ca serve\""
    )]
    ServerCertificate(String),
    /// The handshake failed otherwise.
    #[error("the TLS handshake failed: {0}; check that the port is that of the CA's gRPC service (15012)")]
    Tls(String),
    /// The CA did not accept the certificate that was shown for a renewal.
    #[error("it refused the current certificate ({0}); enrol again with a token from \"outrigger-ca token create\"")]
    CertificateRefused(String),
    /// The CA answered, and said no.
    #[error("it answered {code}: {message}")]
    Refused {
        /// The gRPC status, as `permission_denied`.
        code: &'static str,
        /// The CA's words.
        message: String,
        /// Whether the status is one that does not pass by itself.
        permanent: bool,
    },
    /// The connection ended before the answer.
    #[error("the connection was lost before the answer: {0}; trying again is safe, but a token may have been spent")]
    Lost(String),
    /// The answer is not what was asked for.
    #[error("its answer cannot be used: {0}; check the CA's version and log")]
    Response(String),
}

fn human(d: Duration) -> String {
    format!("{} s", d.as_secs_f32())
}

/// Finds the rustls error somewhere under `error`; I/O errors keep theirs outside the `source` chain.
pub(super) fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        if let Some(inner) = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(tls) = find_tls(inner)
        {
            return Some(tls);
        }
        next = e.source();
    }
    None
}

/// Words for a TLS failure, from either side. `host` is the name that was checked.
pub(super) fn tls_cause(error: &rustls::Error, host: &str) -> EnrolCause {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => EnrolCause::UnknownRoot,
        rustls::Error::InvalidCertificate(C::NotValidForNameContext { presented, .. }) => {
            let presented = if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") };
            EnrolCause::WrongName { expected: host.to_owned(), presented }
        }
        rustls::Error::InvalidCertificate(C::NotValidForName) => {
            EnrolCause::WrongName { expected: host.to_owned(), presented: "another name".to_owned() }
        }
        rustls::Error::InvalidCertificate(why) => EnrolCause::ServerCertificate(why.to_string()),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError),
        ) => EnrolCause::CertificateRefused(alert_words(*alert).to_owned()),
        other => EnrolCause::Tls(other.to_string()),
    }
}

fn alert_words(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "expired",
        AlertDescription::UnknownCA => "signed by a root that the CA does not know",
        AlertDescription::CertificateRevoked => "revoked",
        AlertDescription::UnsupportedCertificate => "not meant for this use",
        AlertDescription::AccessDenied => "access denied",
        _ => "not valid",
    }
}

/// The cause inside a gRPC status: the CA's answer, or the end of the transport below it.
pub(super) fn status_cause(status: &tonic::Status) -> EnrolCause {
    if let Some(source) = status.source() {
        return EnrolCause::Lost(innermost(source));
    }
    let (code, permanent) = code_words(status.code());
    let message = if status.message().is_empty() { "no reason given" } else { status.message() };
    EnrolCause::Refused { code, message: message.to_owned(), permanent }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

fn code_words(code: tonic::Code) -> (&'static str, bool) {
    use tonic::Code;
    match code {
        Code::Ok => ("ok", false),
        Code::Cancelled => ("cancelled", false),
        Code::Unknown => ("unknown", false),
        Code::InvalidArgument => ("invalid_argument", true),
        Code::DeadlineExceeded => ("deadline_exceeded", false),
        Code::NotFound => ("not_found", true),
        Code::AlreadyExists => ("already_exists", true),
        Code::PermissionDenied => ("permission_denied", true),
        Code::ResourceExhausted => ("resource_exhausted", false),
        Code::FailedPrecondition => ("failed_precondition", true),
        Code::Aborted => ("aborted", false),
        Code::OutOfRange => ("out_of_range", true),
        Code::Unimplemented => ("unimplemented", true),
        Code::Internal => ("internal", false),
        Code::Unavailable => ("unavailable", false),
        Code::DataLoss => ("data_loss", false),
        Code::Unauthenticated => ("unauthenticated", true),
    }
}
