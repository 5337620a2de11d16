//! SPIFFE ids and trust domains, parsed once and right ever after.
//!
//! Rules: SPIFFE-ID standard, sections 2.1 to 2.3. An id is compared as the raw string and never goes
//! through a URL parser: path normalization has let one workload pass for another before (CVE-2021-27099).

use std::{fmt, str::FromStr, sync::Arc};

/// The longest SPIFFE id, in bytes (SPIFFE-ID section 2.3).
pub const MAX_ID_LEN: usize = 2048;
/// The longest trust domain, in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE id or a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Longer than the standard allows.
    #[error("{len} bytes long, the limit is {max}")]
    TooLong {
        /// Length of the text in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The text does not begin with `spiffe://`.
    #[error("does not begin with \"spiffe://\"")]
    Scheme,
    /// The trust domain is empty or holds a character outside `[a-z0-9.-_]`.
    #[error("trust domain \"{0}\" must be one or more of a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    /// A workload's id needs a path.
    #[error("has no path; a workload's id is \"spiffe://<trust domain>/<path>\"")]
    NoPath,
    /// A path segment is empty, `.`, `..` or holds a character outside `[a-zA-Z0-9.-_]`.
    #[error("path segment \"{0}\" must be one or more of a-z, A-Z, 0-9, '.', '-', '_' and not \".\" or \"..\"")]
    Segment(String),
}

/// A trust domain: the name of one root of trust.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain name, without the scheme.
    pub fn parse(s: &str) -> Result<Self, SpiffeError> {
        if s.len() > MAX_TRUST_DOMAIN_LEN {
            return Err(SpiffeError::TooLong { len: s.len(), max: MAX_TRUST_DOMAIN_LEN });
        }
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if s.is_empty() || !s.bytes().all(ok) {
            return Err(SpiffeError::TrustDomain(s.to_owned()));
        }
        Ok(Self(s.into()))
    }

    /// The name, as `mesh.example`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The SPIFFE id of one workload: a trust domain and a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_len: u16,
}

impl SpiffeId {
    /// Parses a workload's id, `spiffe://<trust domain>/<path>`.
    pub fn parse(s: &str) -> Result<Self, SpiffeError> {
        if s.len() > MAX_ID_LEN {
            return Err(SpiffeError::TooLong { len: s.len(), max: MAX_ID_LEN });
        }
        let rest = s.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let domain = TrustDomain::parse(domain)?;
        let path = path.ok_or(SpiffeError::NoPath)?;
        for segment in path.split('/') {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if segment.is_empty() || segment == "." || segment == ".." || !segment.bytes().all(ok) {
                return Err(SpiffeError::Segment(segment.to_owned()));
            }
        }
        // The limit of 255 bytes was checked above, so the cast cannot cut.
        Ok(Self { text: s.into(), trust_domain_len: domain.0.len() as u16 })
    }

    /// The whole id, as `spiffe://mesh.example/ns/shop/sa/orders`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The path with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + usize::from(self.trust_domain_len)..]
    }

    /// Whether this id belongs to `domain`, without allocating.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_str() == domain.as_str()
    }

    fn trust_domain_str(&self) -> &str {
        &self.text[SCHEME.len()..SCHEME.len() + usize::from(self.trust_domain_len)]
    }
}

macro_rules! text_traits {
    ($t:ty) => {
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $t {
            type Err = SpiffeError;
            fn from_str(s: &str) -> Result<Self, SpiffeError> {
                Self::parse(s)
            }
        }
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::parse(&text).map_err(|e| serde::de::Error::custom(format_args!("\"{text}\": {e}")))
            }
        }
    };
}
text_traits!(TrustDomain);
text_traits!(SpiffeId);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_split_into_trust_domain_and_path() {
        let id = SpiffeId::parse("spiffe://mesh.example/ns/shop/sa/orders").unwrap();
        assert_eq!(id.trust_domain().as_str(), "mesh.example");
        assert_eq!(id.path(), "/ns/shop/sa/orders");
        assert!(id.is_member_of(&TrustDomain::parse("mesh.example").unwrap()));
    }

    #[test]
    fn what_could_be_mistaken_for_another_id_is_refused() {
        for bad in [
            "",
            "http://a/b",
            "spiffe://",
            "spiffe:///x",
            "spiffe://a",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/b/",
            "spiffe://A/b",
            "spiffe://a:80/b",
            "spiffe://u@a/b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/%62",
            "SPIFFE://a/b",
            "spiffe://a/b\0",
            "spiffe://ä/b",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(SpiffeId::parse(&format!("spiffe://a/{}", "x".repeat(2048))).is_err());
        assert!(TrustDomain::parse(&"a".repeat(256)).is_err());
    }
}
