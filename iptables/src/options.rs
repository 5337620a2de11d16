//! The options of a redirection, parsed so that the plan has nothing left to check.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};

/// A contradiction between options, or a value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOption(pub String);

/// What to redirect, where to, and what to leave alone.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sidecar's port for connections from peers. Default 15006.
    pub inbound_port: u16,
    /// The sidecar's port for connections of the application. Default 15001.
    pub outbound_port: u16,
    /// The user id of the sidecar, whose own connections are left alone. Default 1337.
    pub proxy_uid: u32,
    /// Ports of the workload that peers reach without the sidecar, beside [`crate::plan::TELEMETRY_PORT`].
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Ports of others that the application reaches without the sidecar.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Networks that the application reaches without the sidecar; IPv4 and IPv6 mixed.
    pub exclude_outbound_cidrs: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            inbound_port: 15006,
            outbound_port: 15001,
            proxy_uid: 1337,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

impl Options {
    /// Refuses options that cannot work together.
    pub(crate) fn check(&self) -> Result<(), InvalidOption> {
        let refuse = |words: String| Err(InvalidOption(words));
        if self.inbound_port == 0 || self.outbound_port == 0 {
            return refuse(
                "port 0 cannot be listened on; give --inbound-port and --outbound-port from 1 to 65535".into(),
            );
        }
        if self.inbound_port == self.outbound_port {
            return refuse(format!(
                "--inbound-port and --outbound-port are both {}: the sidecar tells the directions apart by them; give two",
                self.inbound_port
            ));
        }
        if self.proxy_uid == u32::MAX {
            return refuse("--proxy-uid 4294967295 means \"no user\" to the kernel; give the sidecar's uid".into());
        }
        // An outside peer that could reach these past the inbound rules would talk to the sidecar as if it were the
        // application: an open relay that speaks with the workload's identity.
        for port in [self.inbound_port, self.outbound_port] {
            if port == crate::plan::TELEMETRY_PORT {
                return refuse(format!("port {port} is the sidecar's health and metrics port; give another"));
            }
            if let Some(range) = self.exclude_inbound_ports.iter().find(|range| range.contains(port)) {
                return refuse(format!(
                    "--exclude-inbound-ports {range} holds {port}, a port of the sidecar itself: peers would reach it \
                     unguarded; leave it out"
                ));
            }
        }
        Ok(())
    }

    /// What is allowed but deserves a word.
    pub(crate) fn notices(&self) -> Vec<String> {
        if self.proxy_uid == 0 {
            vec!["--proxy-uid 0: every process of root bypasses the mesh, not the sidecar alone".to_owned()]
        } else {
            Vec::new()
        }
    }
}

/// One port, or a range of them with both ends in it; 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port. `None` for port 0.
    pub const fn single(port: u16) -> Option<Self> {
        if port == 0 { None } else { Some(Self { first: port, last: port }) }
    }

    /// The lowest port.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(&self) -> u16 {
        self.last
    }

    /// Whether the port is in the range.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Sorted, without overlaps, neighbours joined: the fewest ranges that mean the same.
    pub(crate) fn normalise(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut joined: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for PortRange {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let wrong = || InvalidOption(format!("{text:?} is no port from 1 to 65535 and no range such as 9000-9010"));
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(wrong()),
        };
        let (first, last) = match text.split_once(['-', ':']) {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(InvalidOption(format!("the range {text:?} ends before it begins; write {last}-{first}")));
        }
        Ok(Self { first, last })
    }
}

/// A network, or one address as a network of one; host bits are cleared. `::ffff:a.b.c.d` networks become IPv4 ones,
/// because the kernel sends such packets as IPv4.
///
/// # Errors
/// When the text is neither.
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidOption> {
    let text = text.trim();
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| InvalidOption(format!("{text:?} is no network such as 10.0.0.0/8 or fd00::/8, and no address")))?;
    if let IpNet::V6(v6) = net
        && let (Some(v4), Some(length)) = (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96))
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return Ok(IpNet::V4(v4.trunc()));
    }
    Ok(net.trunc())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_whole_or_refused() {
        assert_eq!("22".parse::<PortRange>().unwrap().to_string(), "22");
        assert_eq!("9000-9010".parse::<PortRange>().unwrap().to_string(), "9000-9010");
        assert_eq!("9000:9010".parse::<PortRange>().unwrap().to_string(), "9000-9010");
        for wrong in ["0", "0-5", "65536", "", "-", "22-", "a", "1-2-3", "+5 5"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong:?} was taken");
        }
        assert!("9-1".parse::<PortRange>().unwrap_err().to_string().contains("write 1-9"));
    }

    #[test]
    fn ranges_are_joined_when_they_touch_or_overlap() {
        let ranges = ["80", "1-5", "6", "4-9", "65535", "65000-65535", "82"].map(|text| text.parse().unwrap());
        let text: Vec<_> = PortRange::normalise(ranges.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["1-9", "80", "82", "65000-65535"]);
    }

    #[test]
    fn a_cidr_means_what_the_kernel_will_see() {
        assert_eq!(parse_cidr("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_cidr("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(parse_cidr("fd00::1/64").unwrap().to_string(), "fd00::/64");
        assert_eq!(parse_cidr("::ffff:10.1.0.0/112").unwrap().to_string(), "10.1.0.0/16");
        assert!(parse_cidr("10.0.0.0/33").is_err());
        assert!(parse_cidr("example.com").is_err());
    }

    #[test]
    fn the_sidecars_own_ports_cannot_be_laid_open() {
        let mut options = Options { exclude_inbound_ports: vec!["15000-15005".parse().unwrap()], ..Options::default() };
        assert!(options.check().unwrap_err().to_string().contains("15001"));
        options.exclude_inbound_ports = vec!["15007-15020".parse().unwrap()];
        options.check().unwrap();
        assert!(Options { inbound_port: 15001, ..Options::default() }.check().is_err());
        assert!(Options { outbound_port: 15020, ..Options::default() }.check().is_err());
        assert!(Options { proxy_uid: u32::MAX, ..Options::default() }.check().is_err());
    }
}
