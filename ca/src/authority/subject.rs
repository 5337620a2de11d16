//! Who a certificate is for: a SPIFFE id and DNS names, parsed once.

use std::{net::IpAddr, str::FromStr};

use rustls::pki_types::DnsName;

use outrigger_identity::{SpiffeError, SpiffeId};

/// The most DNS names in one certificate; keeps a certificate within a few TCP segments.
pub const MAX_DNS_NAMES: usize = 64;

/// Why a certificate cannot be for this subject.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// Not a workload's SPIFFE id.
    #[error("\"{text}\" is not a SPIFFE id of a workload: {source}; write it as spiffe://<trust domain>/<path>")]
    Id {
        /// What was given.
        text: String,
        /// The rule it breaks.
        source: SpiffeError,
    },
    /// The id belongs to somebody else's CA.
    #[error("{id} is outside this CA's trust domain; use an id that begins with spiffe://{trust_domain}/")]
    OtherTrustDomain {
        /// The id.
        id: String,
        /// The trust domain of this CA.
        trust_domain: String,
    },
    /// Not a DNS name that may be in a certificate.
    #[error(
        "\"{0}\" is not a DNS name that a certificate can carry; write it in lower case, without a wildcard, port or trailing dot"
    )]
    DnsName(String),
    /// Neither a DNS name nor an IP address.
    #[error(
        "\"{0}\" is neither a DNS name in lower case nor an IP address; a server's name has no port, wildcard or trailing dot"
    )]
    ServerName(String),
    /// The enrolment server's own name.
    #[error(
        "{0} is the name of this CA's own server, and a workload that had it could stand in for the CA; leave it out"
    )]
    ReservedName(String),
    /// More names than [`MAX_DNS_NAMES`].
    #[error("{0} DNS names for one workload are too many; the limit is {MAX_DNS_NAMES}")]
    TooMany(usize),
}

/// A workload that can be given a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its SPIFFE id.
    pub id: SpiffeId,
    /// The DNS names that it may serve, in the order given, without repetitions.
    pub dns_names: Vec<String>,
}

impl Subject {
    /// Parses an id and DNS names. Whether a CA may sign for them is [`super::Directory::subject`]'s to say.
    pub fn parse(id: &str, dns_names: &[String]) -> Result<Self, SubjectError> {
        let id = SpiffeId::parse(id).map_err(|source| SubjectError::Id { text: id.to_owned(), source })?;
        if dns_names.len() > MAX_DNS_NAMES {
            return Err(SubjectError::TooMany(dns_names.len()));
        }
        let mut names = Vec::with_capacity(dns_names.len());
        for name in dns_names {
            if !is_dns_name(name) {
                return Err(SubjectError::DnsName(name.clone()));
            }
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Ok(Self { id, dns_names: names })
    }
}

/// A DNS name or IP address of the enrolment server.
#[derive(Debug, Clone)]
pub struct ServerNameText(String);

impl ServerNameText {
    /// The name, as it stands in a certificate.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<ServerNameText> for String {
    fn from(name: ServerNameText) -> Self {
        name.0
    }
}

impl FromStr for ServerNameText {
    type Err = SubjectError;
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ip.to_string()));
        }
        if is_dns_name(text) { Ok(Self(text.to_owned())) } else { Err(SubjectError::ServerName(text.to_owned())) }
    }
}

/// A name that a verifier compares literally: lower case, no wildcard (one certificate would be many workloads),
/// no trailing dot, and nothing that looks like an IPv4 address (its last label would be a number).
fn is_dns_name(name: &str) -> bool {
    DnsName::try_from(name).is_ok()
        && !name.ends_with('.')
        && !name.bytes().any(|b| b.is_ascii_uppercase() || b == b'*')
        && !name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()))
}
