//! Looks at certificates of anybody's making, from a file or from a server: what they say, and whether they are what
//! SPIFFE calls an X509-SVID. Nothing here trusts what it reads; it is the reader's tool against what is wrong.

mod describe;
mod path;
mod peer;
mod rules;

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};

pub use describe::{CertificateText, describe};
pub use rules::{Expectation, Finding, Verdict, judge};

/// The longest file that is read, in bytes: a bundle of a thousand roots is shorter.
pub const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}; give a file of certificates in PEM or DER, or a server as HOST:PORT")]
    File {
        /// What was given.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no certificates: {why}; give a file of certificates in PEM or DER")]
    NotCertificates {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The file holds something else than revocation lists.
    #[error("{path} holds no revocation lists: {why}; give a file of X509 CRL in PEM or DER")]
    NotCrls {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The file is too long to be one of ours.
    #[error("{path} is longer than {MAX_FILE} bytes; give a file of certificates in PEM or DER")]
    TooLong {
        /// The file.
        path: String,
    },
    /// The server could not be reached, or ended the handshake before its certificate.
    #[error("{address} showed no certificate: {why}; check that a TLS server listens there")]
    Peer {
        /// What was given.
        address: String,
        /// What happened.
        why: String,
    },
}

/// Certificates as they were found: the leaf first, unverified.
#[derive(Debug, Clone)]
pub struct Presented {
    /// The chain; at least one certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the server proved in the handshake that it has the leaf's key; `None` for a file.
    pub possession: Option<Result<(), String>>,
}

/// Reads a file of certificates, or asks the server at `HOST:PORT` for its own. A file of that name counts first.
pub fn load(target: &str) -> Result<Presented, InspectError> {
    let path = Path::new(target);
    if path.exists() || !is_address(target) {
        return Ok(Presented { chain: read_certificates(path)?, possession: None });
    }
    peer::ask(target)
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// Reads every certificate of a PEM file, or the one of a DER file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    certificates_in(path, read_file(path)?)
}

/// Reads every revocation list of a PEM file, or the one of a DER file.
pub fn read_crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, InspectError> {
    let bytes = read_file(path)?;
    let bad = |why: String| InspectError::NotCrls { path: path.display().to_string(), why };
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    if lists.is_empty() { Err(bad("no PEM block of it is an X509 CRL".into())) } else { Ok(lists) }
}

/// Reads a file of at most [`MAX_FILE`] bytes.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, InspectError> {
    let fail = |source| InspectError::File { path: path.display().to_string(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(InspectError::TooLong { path: path.display().to_string() });
    }
    Ok(bytes)
}

/// The certificates that a file of PEM or DER holds; `path` is for the error alone.
pub fn certificates_in(path: &Path, bytes: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    let bad = |why: String| InspectError::NotCertificates { path: path.display().to_string(), why };
    // A DER certificate is a SEQUENCE; PEM is text.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateDer::from(bytes)]);
    }
    let chain =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>().map_err(|e| bad(e.to_string()))?;
    if chain.is_empty() { Err(bad("no PEM block of it is a certificate".into())) } else { Ok(chain) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
