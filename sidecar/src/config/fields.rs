//! Values of routes that are right once they exist: names and values of headers, host patterns, methods, gRPC statuses.

use std::{fmt, str::FromStr, sync::Arc};

use http::{HeaderName, HeaderValue, Method};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Host, routes::GrpcMethodMatch};

/// The name of a route, as it stands in metrics.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RouteName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if s.is_empty() || s.len() > 63 || !s.bytes().all(ok) {
            return Err(format!("\"{s}\" is not a name: it must be 1 to 63 letters, digits, '-', '_' or '.'"));
        }
        Ok(Self(s.into()))
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host, or every host under a suffix (`*.shop.mesh`: one label or more before it).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host.
    Exact(Host),
    /// Every host that ends in `.` and this.
    Under(Host),
}

impl HostPattern {
    /// Whether `host` is meant.
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(this) => this == host,
            Self::Under(suffix) => host != suffix && host.is_under(suffix),
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.strip_prefix("*.") {
            Some(suffix) => Host::parse(suffix).map(Self::Under),
            None => Host::parse(s).map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Under(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// The name of a header (RFC 9110 section 5.1), lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldName(pub HeaderName);

impl FromStr for FieldName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.len() > 256 {
            return Err("the name of a header has at most 256 bytes".to_owned());
        }
        HeaderName::from_bytes(s.as_bytes()).map(Self).map_err(|_| {
            format!("\"{s}\" is not the name of a header: it has letters, digits and !#$%&'*+-.^_`|~ only")
        })
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// The value of a header (RFC 9110 section 5.5): visible characters, spaces and tabs within, at most 4,096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldValue(pub HeaderValue);

impl FromStr for FieldValue {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.len() > 4_096 {
            return Err("the value of a header has at most 4096 bytes here".to_owned());
        }
        if s.trim() != s {
            return Err(format!("\"{s}\" is not the value of a header: it must not begin or end with a space"));
        }
        HeaderValue::from_str(s)
            .map(Self)
            .map_err(|_| format!("{s:?} is not the value of a header: it must have printable ASCII characters only"))
    }
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0.as_bytes()))
    }
}

/// A status of gRPC: <https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcCode(u8);

const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const GRPC_NUMBERS: [&str; 17] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

impl GrpcCode {
    /// The call was cancelled.
    pub const CANCELLED: Self = Self(1);
    /// The service cannot be used now.
    pub const UNAVAILABLE: Self = Self(14);

    /// What stands in `grpc-status`.
    pub fn number(self) -> &'static str {
        GRPC_NUMBERS.get(usize::from(self.0)).copied().unwrap_or("2")
    }

    /// Whether it says that all went well.
    pub fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// What a client of gRPC makes of a response that is none:
    /// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
    pub fn of_http(status: u16) -> Self {
        Self(match status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }
}

impl FromStr for GrpcCode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let at = GRPC_CODES.iter().position(|name| name.eq_ignore_ascii_case(s));
        let at = at.and_then(|at| u8::try_from(at).ok());
        at.map(Self).ok_or_else(|| format!("\"{s}\" is not a status of gRPC: write it as UNAVAILABLE"))
    }
}

impl fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(GRPC_CODES.get(usize::from(self.0)).copied().unwrap_or("UNKNOWN"))
    }
}

/// An origin that may read answers (RFC 6454 section 6.1), or a pattern of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    /// Every one.
    Any,
    /// This one.
    Exact(Arc<str>),
    /// Scheme with `://`, and what must follow at least one label.
    Under(Arc<str>, Arc<str>),
}

impl OriginPattern {
    /// Whether `origin` is meant. Browsers write it in lower case.
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(this) => this.as_bytes() == origin,
            Self::Under(scheme, suffix) => {
                let label = origin.strip_prefix(scheme.as_bytes()).and_then(|o| o.strip_suffix(suffix.as_bytes()));
                label.is_some_and(|label| {
                    !label.is_empty() && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
                })
            }
        }
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "*" {
            return Ok(Self::Any);
        }
        let bad = || format!("\"{s}\" is not an origin: write it as https://shop.example or https://*.shop.example");
        let lower = s.to_ascii_lowercase();
        let (scheme, rest) = lower.split_once("://").ok_or_else(bad)?;
        let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
        let scheme_is_right = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
        if !scheme_is_right || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(bad());
        }
        let stem = host.strip_prefix("*.").unwrap_or(host);
        Host::parse(stem).map_err(|_| bad())?;
        match rest.strip_prefix('*') {
            Some(suffix) => Ok(Self::Under(format!("{scheme}://").into(), suffix.into())),
            None => Ok(Self::Exact(lower.as_str().into())),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(origin) => f.write_str(origin),
            Self::Under(scheme, suffix) => write!(f, "{scheme}*{suffix}"),
        }
    }
}

/// A condition on the method: of HTTP, or of a gRPC call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MethodMatch {
    /// This method of HTTP.
    Http(Method),
    /// A gRPC call.
    Grpc(GrpcMethodMatch),
}

impl Serialize for MethodMatch {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Http(method) => s.serialize_str(method.as_str()),
            Self::Grpc(grpc) => grpc.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for MethodMatch {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = MethodMatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method as GET, or { service: shop.Orders, method: Get }")
            }
            fn visit_str<E: Error>(self, s: &str) -> Result<MethodMatch, E> {
                let is_upper = s.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
                let method = Method::from_bytes(s.as_bytes()).ok().filter(|_| is_upper);
                let method =
                    method.ok_or_else(|| E::custom(format_args!("\"{s}\" is not a method: write it as GET")))?;
                Ok(MethodMatch::Http(method))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MethodMatch, A::Error> {
                GrpcMethodMatch::deserialize(MapAccessDeserializer::new(map)).map(MethodMatch::Grpc)
            }
        }
        d.deserialize_any(Visit)
    }
}

super::types::as_text!(RouteName, RouteName::from_str);
super::types::as_text!(HostPattern, HostPattern::from_str);
super::types::as_text!(FieldName, FieldName::from_str);
super::types::as_text!(FieldValue, FieldValue::from_str);
super::types::as_text!(GrpcCode, GrpcCode::from_str);
super::types::as_text!(OriginPattern, OriginPattern::from_str);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_pattern_is_a_host_or_everything_below_one() {
        let host = |s: &str| Host::parse(s).unwrap();
        let under: HostPattern = "*.Shop.mesh".parse().unwrap();
        assert!(under.matches(&host("a.shop.mesh")) && under.matches(&host("a.b.shop.mesh")));
        assert!(!under.matches(&host("shop.mesh")) && !under.matches(&host("ashop.mesh")));
        assert_eq!(under.to_string(), "*.shop.mesh");
        for bad in ["*", "*.", "a.*.mesh", "**.mesh", "*mesh", ""] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_pattern_is_never_met_by_another_host() {
        let under: OriginPattern = "https://*.Shop.example".parse().unwrap();
        assert!(under.matches(b"https://a.shop.example") && under.matches(b"https://a.b.shop.example"));
        for other in
            ["https://shop.example", "http://a.shop.example", "https://evil/.shop.example", "https://.shop.example"]
        {
            assert!(!under.matches(other.as_bytes()), "{other}");
        }
        let exact: OriginPattern = "http://shop.example:8080".parse().unwrap();
        assert!(exact.matches(b"http://shop.example:8080") && !exact.matches(b"http://shop.example"));
        for bad in ["shop.example", "https://", "https://a b", "https://a/", "https://*", "://a", "https://a:x"] {
            assert!(bad.parse::<OriginPattern>().is_err(), "{bad}");
        }
        assert_eq!(under.to_string(), "https://*.shop.example");
    }

    #[test]
    fn grpc_statuses_have_names_and_numbers() {
        let code: GrpcCode = "unavailable".parse().unwrap();
        assert_eq!((code.number(), code.to_string().as_str()), ("14", "UNAVAILABLE"));
        assert_eq!(GrpcCode::of_http(404).to_string(), "UNIMPLEMENTED");
        assert!("14".parse::<GrpcCode>().is_err());
    }
}
