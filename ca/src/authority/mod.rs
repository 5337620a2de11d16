//! The keys of one trust domain, and the only code that signs with them.
//!
//! A directory holds a root (kept for a later offline life) and an intermediate that signs everything. What a
//! certificate looks like is in [`profile`]; how the directory comes to be is in [`ceremony`].

mod ceremony;
mod error;
mod files;
mod keys;
mod profile;
mod request;
mod rotation;
mod sealed;
mod subject;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{Issuer, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use ceremony::{INTERMEDIATE_LIFETIME, InitDatabase, InitOptions, ROOT_LIFETIME, SharedRoot, init};
pub use error::AuthorityError;
pub use files::{OutputError, write_public, write_secret};
pub use keys::{Algorithm, SecretKey};
pub use profile::random_bytes;
pub use request::{MAX_CSR_LEN, RequestError, RequestedKey};
pub use sealed::{Password, is_encrypted};
pub use subject::{MAX_DNS_NAMES, ServerNameText, Subject, SubjectError};

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
    /// Name of the intermediate's two files without `.pem` and `-key.pem`; `None` is that of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) intermediate: Option<String>,
    /// The same of the next intermediate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prepared: Option<String>,
}

impl Settings {
    fn intermediate_file(&self, end: &str) -> String {
        format!("{}{end}", self.intermediate.as_deref().unwrap_or("intermediate"))
    }
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

/// A CA's folder, without its keys: what it is and whom it may name.
pub struct Directory {
    dir: PathBuf,
    settings: Settings,
    root: CertificateFile,
    intermediate: CertificateFile,
    issuer_not_before: OffsetDateTime,
    issuer_not_after: OffsetDateTime,
}

/// A CA with its intermediate's key: ready to sign until the intermediate expires.
pub struct Authority {
    directory: Directory,
    issuer: Issuer<'static, SecretKey>,
}

/// An authority is its directory and a key.
impl std::ops::Deref for Authority {
    type Target = Directory;
    fn deref(&self) -> &Directory {
        &self.directory
    }
}

impl Directory {
    /// Reads a directory made by [`init`], and no key.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let settings_path = dir.join(SETTINGS);
        let text = match std::fs::read(&settings_path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(AuthorityError::Missing { dir: dir.display().to_string() });
            }
            Err(source) => return Err(files::error("read", &settings_path, source)),
        };
        let settings: Settings =
            serde_json::from_slice(&text).map_err(|e| files::damaged(&settings_path, e.to_string()))?;
        Self::with_settings(dir, settings)
    }

    fn with_settings(dir: &Path, settings: Settings) -> Result<Self, AuthorityError> {
        let root = read_certificate(&dir.join(ROOT_CERT))?;
        let path = dir.join(settings.intermediate_file(".pem"));
        let intermediate = read_certificate(&path)?;
        let (_, parsed) =
            X509Certificate::from_der(&intermediate.der).map_err(|e| files::damaged(&path, e.to_string()))?;
        let issuer_not_before = parsed.validity().not_before.to_datetime();
        let issuer_not_after = parsed.validity().not_after.to_datetime();
        Ok(Self { dir: dir.into(), settings, root, intermediate, issuer_not_before, issuer_not_after })
    }

    /// Reads the intermediate's key too, with the password if it is encrypted.
    pub fn unlock(self, password: Option<&Password>) -> Result<Authority, AuthorityError> {
        let key_path = self.intermediate_key_path();
        let key = sealed::open(&key_path, password)?;
        let (_, parsed) = X509Certificate::from_der(&self.intermediate.der)
            .map_err(|e| files::damaged(&self.intermediate_path(), e.to_string()))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            let certificate = self.intermediate_path();
            return Err(files::damaged(&key_path, format!("it is not the key of {}", certificate.display())));
        }
        let issuer = Issuer::from_ca_cert_der(&self.intermediate.der, key)?;
        Ok(Authority { directory: self, issuer })
    }

    /// The trust domain that this CA speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// DNS names and IP addresses of the enrolment server.
    pub fn server_names(&self) -> &[String] {
        &self.settings.names
    }

    /// The shared database of the settings, if there is one.
    pub fn database_url(&self) -> Option<&str> {
        self.settings.database.as_deref()
    }

    /// Where the issuance log is, unless it is in a shared database.
    pub fn database_path(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where the root's key is, unless it is kept elsewhere.
    pub fn root_key_path(&self) -> PathBuf {
        self.dir.join(ROOT_KEY)
    }

    fn intermediate_path(&self) -> PathBuf {
        self.dir.join(self.settings.intermediate_file(".pem"))
    }

    /// Where the intermediate's key is.
    pub fn intermediate_key_path(&self) -> PathBuf {
        self.dir.join(self.settings.intermediate_file("-key.pem"))
    }

    /// The root, which is what verifiers trust.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// The intermediate, which travels with every leaf.
    pub fn intermediate(&self) -> &CertificateDer<'static> {
        &self.intermediate.der
    }

    /// The intermediate as PEM.
    pub fn intermediate_pem(&self) -> &str {
        &self.intermediate.pem
    }

    /// The trust bundle as PEM.
    pub fn bundle_pem(&self) -> &str {
        &self.root.pem
    }

    /// The last second at which this CA can sign.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.issuer_not_after
    }

    /// The share of the intermediate's lifetime that is left at `now`, 0.0 to 1.0.
    pub fn lifetime_left(&self, now: OffsetDateTime) -> f64 {
        let whole = (self.issuer_not_after - self.issuer_not_before).as_seconds_f64();
        ((self.issuer_not_after - now).as_seconds_f64() / whole).clamp(0.0, 1.0)
    }

    /// Parses a workload's id and DNS names and checks that this CA may put them into a certificate.
    pub fn subject(&self, id: &str, dns_names: &[String]) -> Result<Subject, AuthorityError> {
        let subject = Subject::parse(id, dns_names)?;
        self.check(&subject)?;
        Ok(subject)
    }

    fn check(&self, subject: &Subject) -> Result<(), AuthorityError> {
        if !subject.id.is_member_of(&self.settings.trust_domain) {
            return Err(SubjectError::OtherTrustDomain {
                id: subject.id.to_string(),
                trust_domain: self.settings.trust_domain.to_string(),
            }
            .into());
        }
        // Whoever holds the CA's own name could stand between the CA and those who enrol.
        match subject.dns_names.iter().find(|n| self.settings.names.contains(n)) {
            Some(name) => Err(SubjectError::ReservedName(name.clone()).into()),
            None => Ok(()),
        }
    }
}

impl Authority {
    /// Reads a directory made by [`init`] and its intermediate's key. The root's key is not read: nothing here needs it.
    pub fn open(dir: &Path, password: Option<&Password>) -> Result<Self, AuthorityError> {
        Directory::open(dir)?.unlock(password)
    }

    /// Adds names for the enrolment server, for this process only.
    pub fn add_server_names(&mut self, names: impl IntoIterator<Item = ServerNameText>) {
        for name in names {
            if !self.directory.settings.names.iter().any(|n| n == name.as_str()) {
                self.directory.settings.names.push(name.into());
            }
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
        let params = profile::server(&self.settings.names, key, &window)?;
        self.sign(params, key, window)
    }

    fn window(&self, ttl: Duration, now: OffsetDateTime) -> Result<profile::Window, AuthorityError> {
        if ttl < Duration::from_secs(1) {
            let max = format!("{}d", MAX_TTL.as_secs() / 86_400);
            return Err(AuthorityError::Lifetime { wished: format!("{ttl:?}"), max });
        }
        if now >= self.issuer_not_after {
            return Err(AuthorityError::IssuerExpired { at: rfc3339(self.issuer_not_after) });
        }
        let window = profile::Window::new(now, ttl.min(MAX_TTL))?;
        Ok(profile::Window { not_after: window.not_after.min(self.issuer_not_after), ..window })
    }

    fn sign(
        &self,
        params: rcgen::CertificateParams,
        key: &impl PublicKeyData,
        window: profile::Window,
    ) -> Result<SignedCertificate, AuthorityError> {
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(SignedCertificate {
            serial: hex(&window.serial),
            not_before: window.not_before,
            not_after: window.not_after,
            der: certificate.der().clone(),
            pem: certificate.pem(),
        })
    }
}

/// A certificate and the text that it was read from.
struct CertificateFile {
    der: CertificateDer<'static>,
    pem: String,
}

fn read_certificate(path: &Path) -> Result<CertificateFile, AuthorityError> {
    let pem = std::fs::read_to_string(path).map_err(|e| files::error("read", path, e))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| files::damaged(path, e.to_string()))?;
    Ok(CertificateFile { der, pem })
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
