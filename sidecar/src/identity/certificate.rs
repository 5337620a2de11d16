//! A workload certificate (X509-SVID) read once, by one set of rules, for our own and for every peer's.
//!
//! The rules are section 5.2 of the SPIFFE X509-SVID standard, except those that a path to a root decides
//! ([`TrustBundle::verify`](super::TrustBundle::verify)). ztunnel and linkerd2-proxy take the first URI SAN of many; here a
//! second one is refused, because two readers of the same certificate must never see two identities.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_identity::{SpiffeError, SpiffeId};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::Oid,
    prelude::{FromDer, GeneralName, X509Certificate},
    time::ASN1Time,
};

/// What a workload certificate says about its owner.
#[derive(Debug, Clone)]
pub struct WorkloadCertificate {
    /// The SPIFFE id, from the only URI SAN.
    pub id: SpiffeId,
    /// The DNS SANs as written.
    pub dns_names: Vec<String>,
    /// Beginning of validity.
    pub not_before: SystemTime,
    /// End of validity, inclusive.
    pub not_after: SystemTime,
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// The issuer's name, as `CN=mesh.example intermediate`.
    pub issuer: String,
}

/// Why a certificate is not a workload certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// The bytes are not a certificate, or one of its extensions cannot be read.
    #[error("it cannot be read: {0}")]
    Malformed(String),
    /// More than one URI SAN.
    #[error("it has {} URI names ({}) where a workload certificate has exactly one", .0.len(), .0.join(", "))]
    ManyUriSans(Vec<String>),
    /// No URI SAN.
    #[error("it has no URI name, so it says no SPIFFE id")]
    NoUriSan,
    /// The URI SAN is not a workload's SPIFFE id.
    #[error("its URI name \"{uri}\" is not a SPIFFE id: {why}")]
    BadId {
        /// The URI SAN as written.
        uri: String,
        /// The rule that it breaks.
        why: SpiffeError,
    },
    /// basicConstraints says CA.
    #[error("it is a CA's certificate (basicConstraints cA is true), not a workload's")]
    CaCertificate,
    /// keyUsage allows signing certificates or revocation lists.
    #[error("its key usage has {0}, which only a CA may have")]
    KeyUsage(&'static str),
    /// keyUsage is absent, or does not allow signatures.
    #[error("its key usage does not have digitalSignature, which a workload signs its handshakes by")]
    NoDigitalSignature,
    /// Only the names say who it is, and who does not understand them may pass over them.
    #[error("its subject is empty and its names are not critical (RFC 5280 section 4.2.1.6)")]
    NamesNotCritical,
}

impl WorkloadCertificate {
    /// Reads a leaf certificate. The signature, the dates and the path to a root are not looked at.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|e| CertificateFault::Malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateFault::Malformed("bytes follow its end".into()));
        }
        let unreadable = |what: &str| CertificateFault::Malformed(format!("its {what} cannot be read or stands twice"));

        let constraints = certificate.basic_constraints().map_err(|_| unreadable("basicConstraints"))?;
        if constraints.is_some_and(|c| c.value.ca) {
            return Err(CertificateFault::CaCertificate);
        }
        let Some(usage) = certificate.key_usage().map_err(|_| unreadable("keyUsage"))? else {
            return Err(CertificateFault::NoDigitalSignature);
        };
        if usage.value.key_cert_sign() {
            return Err(CertificateFault::KeyUsage("keyCertSign"));
        }
        if usage.value.crl_sign() {
            return Err(CertificateFault::KeyUsage("cRLSign"));
        }
        if !usage.value.digital_signature() {
            return Err(CertificateFault::NoDigitalSignature);
        }

        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        if let Some(names) = certificate.subject_alternative_name().map_err(|_| unreadable("subjectAltName"))? {
            if !names.critical && certificate.subject().iter().next().is_none() {
                return Err(CertificateFault::NamesNotCritical);
            }
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                    // What cannot be read might be a second URI.
                    GeneralName::Invalid(..) => return Err(unreadable("subjectAltName")),
                    _ => {}
                }
            }
        }
        let id = match &uris[..] {
            [] => return Err(CertificateFault::NoUriSan),
            [uri] => SpiffeId::parse(uri).map_err(|why| CertificateFault::BadId { uri: uri.clone(), why })?,
            _ => return Err(CertificateFault::ManyUriSans(uris)),
        };
        Ok(Self {
            id,
            dns_names,
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            serial: hex(certificate.raw_serial()),
            issuer: certificate.issuer().to_string(),
        })
    }
}

/// An ASN.1 time as the system counts it; times before 1970 become 1970.
pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// Lower-case hexadecimal digits, two a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
        text
    })
}
/// From when until when a certificate is valid; `None` where it cannot be read.
pub fn validity(der: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((system_time(validity.not_before), system_time(validity.not_after)))
}

/// A signature algorithm (the inside of its AlgorithmIdentifier) by its name, or by its object identifier.
pub(super) fn algorithm_name(algorithm: &[u8]) -> String {
    let Ok((_, oid)) = Oid::from_der(algorithm) else { return "something that has no name".to_owned() };
    let name = match oid.to_id_string().as_str() {
        "1.2.840.113549.1.1.4" => "RSA with MD5",
        "1.2.840.113549.1.1.5" => "RSA with SHA-1",
        "1.2.840.10045.4.1" => "ECDSA with SHA-1",
        "1.2.840.10040.4.3" => "DSA with SHA-1",
        "1.3.101.113" => "Ed448",
        // Not as long as a peer likes.
        other => return other.chars().take(64).collect(),
    };
    name.to_owned()
}
