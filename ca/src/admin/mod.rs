//! The operator's door to a running CA: a Unix socket that only root and the CA's own user may use. Over it the command
//! line issues and makes tokens without the keys' password, which the server alone holds.
//!
//! Who asks is known from the kernel (`SO_PEERCRED`), not from the socket's mode and not from where it is. HTTP/1.1 with
//! JSON; three things can be asked for, and nothing on it reads a key or changes trust.

mod client;
mod server;

use serde::{Deserialize, Serialize};

pub use client::{AdminError, AdminSocket};
pub(crate) use server::serve;
pub use server::{AdminListener, listen};

/// The socket's name in the CA's folder.
pub const SOCKET: &str = "admin.sock";

/// The longest request or answer, in bytes: a CSR or a chain.
const MAX_MESSAGE: usize = 64 * 1024;

/// What can be asked for: method and path.
pub(crate) const STATUS: (&str, &str) = ("GET", "/v1/status");
pub(crate) const TOKENS: (&str, &str) = ("POST", "/v1/tokens");
pub(crate) const CERTIFICATES: (&str, &str) = ("POST", "/v1/certificates");

/// A wish for a join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWish {
    /// The SPIFFE id that it stands for.
    pub id: String,
    /// The DNS names that come with it.
    pub dns: Vec<String>,
    /// How long it may wait to be used.
    pub ttl_seconds: u64,
}

/// A token that was made. It has no `Debug`: its text belongs into no log.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenMade {
    /// Its text.
    pub token: String,
    /// Its hash, by which the log and `token revoke` know it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The SPIFFE id that it stands for.
    pub id: String,
    /// The DNS names that come with it.
    pub dns: Vec<String>,
    /// RFC 3339.
    pub expires_at: String,
}

/// A wish for a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateWish {
    /// A PKCS#10 request as PEM, of which only the key is believed.
    pub csr: String,
    /// The SPIFFE id.
    pub id: String,
    /// The DNS names.
    pub dns: Vec<String>,
    /// The lifetime.
    pub ttl_seconds: u64,
}

/// A certificate that was issued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateMade {
    /// Leaf first, then intermediates, PEM.
    pub chain: String,
    /// The trust bundle, PEM.
    pub bundle: String,
    /// Lower-case hex.
    pub serial: String,
    /// The DNS names in it.
    pub dns: Vec<String>,
    /// RFC 3339.
    pub not_after: String,
}

/// How the CA is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// What it speaks for.
    pub trust_domain: String,
    /// Whether certificates can be issued.
    pub ready: bool,
    /// Why not, one line a reason.
    pub failing: Vec<String>,
    /// When the intermediate ends, RFC 3339.
    pub intermediate_not_after: String,
    /// Connections at this moment.
    pub connections: u64,
    /// Join tokens that could still be used; absent if the store does not say.
    pub tokens_waiting: Option<u64>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminFault {
    /// Lower-case words joined by underscores, as the command line's errors have them.
    pub code: String,
    /// Words for people.
    pub message: String,
}
