//! The keys of one trust domain, and the only code that signs with them.
//!
//! Which roots and intermediates there are, and what each of them is at the moment, is in the database, as [`Members`]
//! read it; their keys are files in the CA's folder ([`Directory`]). What a certificate looks like is in [`profile`], how
//! the folder comes to be in [`ceremony`], how one authority follows another in [`rotation`].

mod bundle;
mod ceremony;
mod crl;
mod directory;
mod error;
mod files;
mod import;
mod keyring;
mod keys;
mod members;
mod profile;
mod request;
mod retirement;
mod revocation;
mod rotation;
mod sealed;
mod status;
mod subject;
mod trusted;
mod upkeep;

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{Issuer, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
#[cfg(test)]
use x509_parser::prelude::{FromDer, X509Certificate};

pub use ceremony::{INTERMEDIATE_LIFETIME, InitOptions, ROOT_LIFETIME, SharedDatabase, SharedRoot, init};
pub use crl::CRL_LIFETIME;
pub use directory::Directory;
pub use error::AuthorityError;
pub use files::{OutputError, write_public, write_secret};
pub use keys::{Algorithm, SecretKey};
pub use members::{MIN_FINGERPRINT_LEN, Member, Members, fingerprint};
pub use profile::random_bytes;
pub use request::{MAX_CSR_LEN, RequestError, RequestedKey};
pub use retirement::{Living, Retired, RevokeOptions};
pub use revocation::{RevokeRequest, Revoked};
pub use rotation::{NewRoot, PrepareOptions, Prepared};
pub use sealed::{Password, is_encrypted};
pub use status::{Status, StatusLine};
pub use subject::{MAX_DNS_NAMES, ServerNameText, Subject, SubjectError};
pub use trusted::SetOutcome;
pub use upkeep::{Upkeep, upkeep};

use outrigger_identity::TrustDomain;

/// Lifetime of a workload's certificate when the caller names none. Istio, Linkerd and step-ca use 24 h too.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest lifetime that a workload's certificate gets.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far `notBefore` lies in the past, for clocks that disagree.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The environment variable that may hold the password of a CA's keys.
pub const PASSWORD_ENV: &str = "OUTRIGGER_CA_PASSWORD";

pub(crate) const ROOT_CERT: &str = "root.pem";
pub(crate) const ROOT_KEY: &str = "root-key.pem";
pub(crate) const INTERMEDIATE_CERT: &str = "intermediate.pem";
pub(crate) const INTERMEDIATE_KEY: &str = "intermediate-key.pem";
pub(crate) const SETTINGS: &str = "ca.json";
pub(crate) const DATABASE: &str = "ca.db";

/// What `init` wrote beside the keys.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Settings {
    pub(crate) trust_domain: TrustDomain,
    /// DNS names and IP addresses of the enrolment server.
    pub(crate) names: Vec<String>,
    /// URL of a shared database, without a password; `None` is [`DATABASE`] in the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<String>,
    /// Read from a CA of before the database knew of its intermediates: the name of the current one's two files
    /// without `.pem` and `-key.pem`; `None` is that of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) intermediate: Option<String>,
    /// The same of the next intermediate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prepared: Option<String>,
}

/// A certificate that has been signed. It must not leave the process before its record is durable.
#[derive(Debug, Clone)]
pub struct SignedCertificate {
    /// Serial number, lower-case hex without separators, 40 digits.
    pub serial: String,
    /// First second of validity.
    pub not_before: OffsetDateTime,
    /// Last second of validity.
    pub not_after: OffsetDateTime,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The same as PEM.
    pub pem: String,
}

/// A CA with its intermediate's key: ready to sign until the intermediate expires.
pub struct Authority {
    directory: Directory,
    issuer: Arc<Issuer<'static, SecretKey>>,
    opened_at: OffsetDateTime,
}

/// An authority is its directory and a key.
impl std::ops::Deref for Authority {
    type Target = Directory;
    fn deref(&self) -> &Directory {
        &self.directory
    }
}

impl Authority {
    /// Reads a directory made by [`init`] and its intermediate's key. The root's key is not read: nothing here needs it.
    pub fn open(dir: &Path, password: Option<&Password>) -> Result<Self, AuthorityError> {
        Directory::open(dir)?.unlock(password)
    }

    /// The same CA as the database has it now: another intermediate if another was activated, whose key is then read with
    /// the password.
    pub fn with_members(&self, members: Members, password: Option<&Password>) -> Result<Self, AuthorityError> {
        let directory = self.directory.with_members(members)?;
        if directory.active().row.fingerprint == self.active().row.fingerprint {
            return Ok(Self { directory, issuer: Arc::clone(&self.issuer), opened_at: self.opened_at });
        }
        directory.unlock(password)
    }

    /// The second since which this process signs with this intermediate.
    pub(crate) fn opened_at(&self) -> OffsetDateTime {
        self.opened_at
    }

    /// Adds names for the enrolment server, for this process only.
    pub fn add_server_names(&mut self, names: impl IntoIterator<Item = ServerNameText>) {
        for name in names {
            self.directory.add_server_name(name);
        }
    }

    /// Signs a workload's certificate. The lifetime is the shortest of `ttl`, [`MAX_TTL`] and what is left of
    /// the issuer's own.
    pub fn sign_workload(
        &self,
        subject: &Subject,
        key: &RequestedKey,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<SignedCertificate, AuthorityError> {
        // Checked again here because a name may have become the CA's own since the token was made.
        self.check(subject)?;
        let window = self.window(ttl, now)?;
        let params = profile::workload(subject, key.as_rcgen(), &window)?;
        self.sign(params, key.as_rcgen(), window)
    }

    /// Signs the certificate with which the enrolment server shows itself. It has no SPIFFE id, so it is
    /// worth nothing inside the mesh.
    pub fn sign_server(
        &self,
        key: &SecretKey,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<SignedCertificate, AuthorityError> {
        let window = self.window(ttl, now)?;
        let params = profile::server(self.server_names(), key, &window)?;
        self.sign(params, key, window)
    }

    fn window(&self, ttl: Duration, now: OffsetDateTime) -> Result<profile::Window, AuthorityError> {
        if ttl < Duration::from_secs(1) {
            let max = format!("{}d", MAX_TTL.as_secs() / 86_400);
            return Err(AuthorityError::Lifetime { wished: format!("{ttl:?}"), max });
        }
        let end = self.expires_at();
        if now >= end {
            return Err(AuthorityError::IssuerExpired { at: rfc3339(end) });
        }
        let window = profile::Window::new(now, ttl.min(MAX_TTL))?;
        Ok(profile::Window { not_after: window.not_after.min(end), ..window })
    }

    fn sign(
        &self,
        params: rcgen::CertificateParams,
        key: &impl PublicKeyData,
        window: profile::Window,
    ) -> Result<SignedCertificate, AuthorityError> {
        let certificate = params.signed_by(key, &*self.issuer)?;
        Ok(SignedCertificate {
            serial: hex(&window.serial),
            not_before: window.not_before,
            not_after: window.not_after,
            der: certificate.der().clone(),
            pem: certificate.pem(),
        })
    }
}

/// A certificate as it was read from a file.
struct CertificateFile {
    der: CertificateDer<'static>,
}

fn read_certificate(path: &Path) -> Result<CertificateFile, AuthorityError> {
    let pem = std::fs::read_to_string(path).map_err(|e| files::error("read", path, e))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| files::damaged(path, e.to_string()))?;
    Ok(CertificateFile { der })
}

/// As the database keeps times.
fn whole_second(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}

/// Lower-case hex without separators.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, b| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// A time as `2026-11-23T08:00:00Z`.
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| at.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_upkeep;
