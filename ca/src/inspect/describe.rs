//! What a certificate says, for people and for programs.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use crate::authority::{hex, rfc3339};

/// A certificate as text. What cannot be read is left out of the lists and named in `unreadable`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CertificateText {
    /// Its subject's name; empty for a workload.
    pub subject: String,
    /// Its issuer's name.
    pub issuer: String,
    /// Lower-case hex.
    pub serial: String,
    /// Beginning of validity.
    pub not_before: String,
    /// End of validity.
    pub not_after: String,
    /// The share of its life that is left, 0.0 to 1.0.
    pub life_left: f64,
    /// Kind of its key.
    pub key: String,
    /// Object identifier or name of the algorithm that signed it.
    pub signature: String,
    /// Whether it is a CA's.
    pub ca: bool,
    /// How many CAs may stand below it.
    pub path_length: Option<u32>,
    /// Key usages.
    pub key_usage: Vec<String>,
    /// Extended key usages.
    pub ext_key_usage: Vec<String>,
    /// URI names.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Names of other kinds.
    pub other_names: Vec<String>,
    /// Hex of the subject key identifier.
    pub subject_key_id: Option<String>,
    /// Hex of the authority key identifier.
    pub authority_key_id: Option<String>,
    /// SHA-256 over the certificate, lower-case hex.
    pub sha256: String,
    /// Extensions whose content cannot be read.
    pub unreadable: Vec<String>,
}

/// Reads a certificate; the error says why it is none.
pub fn describe(der: &CertificateDer<'_>, now: OffsetDateTime) -> Result<CertificateText, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let (from, until) =
        (certificate.validity().not_before.to_datetime(), certificate.validity().not_after.to_datetime());
    let whole = (until - from).as_seconds_f64();
    let left = if whole > 0.0 { ((until - now).as_seconds_f64() / whole).clamp(0.0, 1.0) } else { 0.0 };
    let mut text = CertificateText {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: hex(certificate.raw_serial()),
        not_before: rfc3339(from),
        not_after: rfc3339(until),
        // Two digits: what follows them changes with every second.
        life_left: (left * 100.0).round() / 100.0,
        key: key(&certificate),
        signature: algorithm(&certificate.signature_algorithm.algorithm.to_id_string()),
        ca: false,
        path_length: None,
        key_usage: Vec::new(),
        ext_key_usage: Vec::new(),
        uris: Vec::new(),
        dns: Vec::new(),
        other_names: Vec::new(),
        subject_key_id: None,
        authority_key_id: None,
        sha256: hex(&Sha256::digest(der)),
        unreadable: Vec::new(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(c) => (text.ca, text.path_length) = (c.ca, c.path_len_constraint),
            ParsedExtension::KeyUsage(usage) => {
                text.key_usage = usage.to_string().split(", ").filter(|u| !u.is_empty()).map(Into::into).collect();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [
                    (usage.any, "any"),
                    (usage.server_auth, "serverAuth"),
                    (usage.client_auth, "clientAuth"),
                    (usage.code_signing, "codeSigning"),
                    (usage.email_protection, "emailProtection"),
                    (usage.time_stamping, "timeStamping"),
                    (usage.ocsp_signing, "OCSPSigning"),
                ];
                text.ext_key_usage = known.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).into()).collect();
                text.ext_key_usage.extend(usage.other.iter().map(|oid| oid.to_id_string()));
            }
            ParsedExtension::SubjectAlternativeName(san) => {
                for name in &san.general_names {
                    match name {
                        GeneralName::URI(uri) => text.uris.push((*uri).to_owned()),
                        GeneralName::DNSName(name) => text.dns.push((*name).to_owned()),
                        other => text.other_names.push(other.to_string()),
                    }
                }
            }
            ParsedExtension::SubjectKeyIdentifier(id) => text.subject_key_id = Some(hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                text.authority_key_id = id.key_identifier.as_ref().map(|id| hex(id.0));
            }
            ParsedExtension::ParseError { .. } | ParsedExtension::Unparsed => {
                text.unreadable.push(extension.oid.to_id_string());
            }
            _ => {}
        }
    }
    Ok(text)
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let algorithm = &certificate.public_key().algorithm;
    let parameters = algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    match (algorithm.algorithm.to_id_string().as_str(), parameters.as_deref()) {
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => "ECDSA P-256".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => "ECDSA P-384".into(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "ECDSA P-521".into(),
        ("1.3.101.112", _) => "Ed25519".into(),
        ("1.2.840.113549.1.1.1", _) => match certificate.public_key().parsed() {
            Ok(key) => format!("RSA {}", key.key_size()),
            Err(_) => "RSA".into(),
        },
        (other, _) => other.to_owned(),
    }
}

fn algorithm(oid: &str) -> String {
    match oid {
        "1.2.840.10045.4.3.2" => "ecdsa-with-SHA256",
        "1.2.840.10045.4.3.3" => "ecdsa-with-SHA384",
        "1.2.840.10045.4.3.4" => "ecdsa-with-SHA512",
        "1.3.101.112" => "Ed25519",
        "1.2.840.113549.1.1.11" => "sha256WithRSAEncryption",
        "1.2.840.113549.1.1.12" => "sha384WithRSAEncryption",
        "1.2.840.113549.1.1.13" => "sha512WithRSAEncryption",
        other => other,
    }
    .to_owned()
}
