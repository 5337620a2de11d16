//! Values that are right once they exist: hosts, durations, percentages, id patterns.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use outrigger_identity::SpiffeId;
use serde::{Deserialize, Deserializer, Serialize};

/// A DNS name in lower case without its final dot (RFC 1123 section 2.1, with `_` allowed as SRV names have it).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

impl Host {
    /// Parses a DNS name: at most 253 bytes, labels of 1 to 63 letters, digits, `-` and `_`.
    pub fn parse(s: &str) -> Result<Self, String> {
        let name = s.strip_suffix('.').unwrap_or(s);
        if name.is_empty() || name.len() > 253 {
            return Err(format!("\"{s}\" is not a DNS name: it must have 1 to 253 bytes"));
        }
        for label in name.split('.') {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            if label.is_empty() || label.len() > 63 || !label.bytes().all(ok) {
                return Err(format!(
                    "\"{s}\" is not a DNS name: its label \"{label}\" must be 1 to 63 letters, digits, '-' or '_'"
                ));
            }
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    pub(crate) fn from_static(s: &'static str) -> Self {
        Self(s.into())
    }

    /// The name, lower case, no final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name is `suffix` or ends in `.suffix`.
    pub fn is_under(&self, suffix: &Host) -> bool {
        let (name, suffix) = (self.as_str(), suffix.as_str());
        name == suffix || name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A duration as people write it: `250ms`, `3s`, `5m`, `24h`, `1m30s` (Gateway API's GEP-2257), or `0s`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// The duration, or nothing where it is zero, which means "off".
    pub fn enabled(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl From<Duration> for HumanDuration {
    fn from(d: Duration) -> Self {
        Self(d)
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("\"{s}\" is not a duration: write it as 250ms, 3s, 5m, 24h or 1m30s");
        let (mut total, mut rest) = (Duration::ZERO, s);
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            let millis: u64 = match &rest[..letters] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(bad()),
            };
            rest = &rest[letters..];
            let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
        }
        if total > Duration::from_secs(3650 * 86_400) {
            return Err(format!("\"{s}\" is longer than ten years"));
        }
        Ok(Self(total))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0 => f.write_str("0s"),
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1_000) => write!(f, "{}s", ms / 1_000),
            _ => write!(f, "{ms}ms"),
        }
    }
}

impl fmt::Debug for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A share of 0 to 100 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Percent(u8);

impl Percent {
    pub(crate) const fn new_const(n: u8) -> Self {
        assert!(n <= 100);
        Self(n)
    }

    /// 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(d)?;
        match u8::try_from(n) {
            Ok(n) if n <= 100 => Ok(Self(n)),
            _ => Err(serde::de::Error::custom(format_args!("{n} is not a percentage: it must be 0 to 100"))),
        }
    }
}

/// SPIFFE ids that may call: one id, or every id under a prefix that ends in `/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdPattern {
    /// This id.
    Exact(SpiffeId),
    /// Every id that begins with this text, which ends in `/`.
    Prefix(Arc<str>),
}

impl IdPattern {
    /// Whether `id` is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(want) => want == id,
            Self::Prefix(prefix) => id.as_str().starts_with(&**prefix),
        }
    }
}

impl FromStr for IdPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(stem) = s.strip_suffix('*') {
            // "spiffe://a/*" and "spiffe://a/ns/b/*": what stands before the star must itself be an id's beginning.
            let probe = format!("{stem}x");
            if !stem.ends_with('/') {
                return Err(format!("\"{s}\": a '*' may stand only after the last '/'"));
            }
            SpiffeId::parse(&probe).map_err(|e| format!("\"{s}\": {e}"))?;
            return Ok(Self::Prefix(stem.into()));
        }
        SpiffeId::parse(s).map(Self::Exact).map_err(|e| format!("\"{s}\": {e}"))
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => fmt::Display::fmt(id, f),
            Self::Prefix(p) => write!(f, "{p}*"),
        }
    }
}

/// `host:port` of a CA; the port defaults to 15012.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaAddress {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for CaAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("\"{s}\" is not host:port");
        let (host, port) = match s.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (
                    host,
                    after.strip_prefix(':').map(str::to_owned).or_else(|| after.is_empty().then(|| "15012".to_owned())),
                )
            }
            None => match s.rsplit_once(':') {
                Some((host, port)) => (host, Some(port.to_owned())),
                None => (s, Some("15012".to_owned())),
            },
        };
        let port = port.ok_or_else(bad)?.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad)?;
        if host.parse::<std::net::IpAddr>().is_err() {
            Host::parse(host).map_err(|_| bad())?;
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

macro_rules! as_text {
    ($t:ty, $parse:expr) => {
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                $parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use as_text;
as_text!(Host, Host::parse);
as_text!(HumanDuration, HumanDuration::from_str);
as_text!(IdPattern, IdPattern::from_str);
as_text!(CaAddress, CaAddress::from_str);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_lower_case_without_their_final_dot() {
        assert_eq!(Host::parse("Orders.MESH.").unwrap().as_str(), "orders.mesh");
        assert_eq!(Host::parse("_http._tcp.orders.mesh").unwrap().as_str(), "_http._tcp.orders.mesh");
        for bad in ["", ".", "a..b", ".a", "a b", "a/b", "ü.mesh", "*.mesh", &"a".repeat(64), &"a.".repeat(127)] {
            assert_eq!(Host::parse(bad).is_ok(), bad == "a.".repeat(127), "{bad}");
        }
        assert!(Host::parse(&"a.".repeat(128)).is_err());
    }

    #[test]
    fn a_host_is_under_a_suffix_at_a_label_only() {
        let (mesh, host) = (Host::parse("mesh").unwrap(), |s: &str| Host::parse(s).unwrap());
        assert!(host("orders.mesh").is_under(&mesh) && host("mesh").is_under(&mesh));
        assert!(!host("smesh").is_under(&mesh) && !host("mesh.evil").is_under(&mesh));
    }

    #[test]
    fn durations_print_as_they_are_read() {
        for (text, ms) in
            [("250ms", 250), ("3s", 3_000), ("90s", 90_000), ("24h", 86_400_000), ("0s", 0), ("5m", 300_000)]
        {
            let d: HumanDuration = text.parse().unwrap();
            assert_eq!(d.get(), Duration::from_millis(ms), "{text}");
            assert_eq!(d.to_string().parse::<HumanDuration>().unwrap(), d, "{text}");
        }
        assert_eq!("1m30s".parse::<HumanDuration>().unwrap().to_string(), "90s");
        assert_eq!("1d".parse::<HumanDuration>().unwrap().to_string(), "24h");
        for bad in
            ["", "5", "s", "1.5s", "-1s", "5 s", "1y", "18446744073709551616ms", "4000d", "١s", "99999999999999999h"]
        {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
        assert_eq!("0s".parse::<HumanDuration>().unwrap().enabled(), None);
    }

    #[test]
    fn id_patterns_end_at_a_segment() {
        let id = |s: &str| SpiffeId::parse(s).unwrap();
        let shop: IdPattern = "spiffe://t/ns/shop/*".parse().unwrap();
        assert!(shop.matches(&id("spiffe://t/ns/shop/sa/a")));
        assert!(!shop.matches(&id("spiffe://t/ns/shopper/a")) && !shop.matches(&id("spiffe://u/ns/shop/a")));
        let all: IdPattern = "spiffe://t/*".parse().unwrap();
        assert!(all.matches(&id("spiffe://t/a")) && !all.matches(&id("spiffe://tt/a")));
        let one: IdPattern = "spiffe://t/a".parse().unwrap();
        assert!(one.matches(&id("spiffe://t/a")) && !one.matches(&id("spiffe://t/a/b")));
        for bad in ["*", "spiffe://*", "spiffe://t/a*", "spiffe://t/*/b", "spiffe://t/../*", "t/a", "spiffe://t"] {
            assert!(bad.parse::<IdPattern>().is_err(), "{bad}");
        }
        assert_eq!(shop.to_string(), "spiffe://t/ns/shop/*");
    }

    #[test]
    fn a_ca_address_has_a_default_port() {
        for (text, host, port) in [
            ("ca.mesh", "ca.mesh", 15012),
            ("ca.mesh:1", "ca.mesh", 1),
            ("10.0.0.1:99", "10.0.0.1", 99),
            ("[::1]", "::1", 15012),
            ("[fd00::1]:7", "fd00::1", 7),
        ] {
            let ca: CaAddress = text.parse().unwrap();
            assert_eq!((ca.host.as_str(), ca.port), (host, port), "{text}");
            assert_eq!(ca.to_string().parse::<CaAddress>().unwrap(), ca, "{text}");
        }
        for bad in ["", ":1", "ca:0", "ca:x", "ca:70000", "::1", "[::1", "[ca]:1", "[::1]x", "a b:1", "https://ca:1"] {
            assert!(bad.parse::<CaAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_percentage_is_bounded() {
        assert_eq!(serde_json::from_str::<Percent>("100").unwrap().get(), 100);
        assert!((serde_json::from_str::<Percent>("20").unwrap().fraction() - 0.2).abs() < 1e-9);
        assert!(serde_json::from_str::<Percent>("101").is_err() && serde_json::from_str::<Percent>("-1").is_err());
    }
}
