//! Values that are right once they exist: ports, ids, marks, interfaces, networks, durations.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr, time::Duration};

use ipnet::{IpNet, Ipv4Net};

/// A contradiction between options, or a value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOption(pub String);

/// One port, or a range of them with both ends in it; 1 to 65535. Written `22` or `9000-9010`.
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

/// One user id, or a range of them with both ends in it; 0 to 4294967294, since the last means "no user" to the
/// kernel. Written `1000` or `1000-1999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// One id. `None` for 4294967295.
    pub const fn single(uid: u32) -> Option<Self> {
        if uid == u32::MAX { None } else { Some(Self { first: uid, last: uid }) }
    }

    /// The lowest id.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The highest id.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Whether the id is in the range.
    pub fn contains(&self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// Sorted, without overlaps.
    pub(crate) fn normalise(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut joined: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(before) if u64::from(range.first) <= u64::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for UidRange {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let uid = |part: &str| match part.trim().parse::<u32>() {
            Ok(uid) if uid != u32::MAX => Ok(uid),
            _ => Err(InvalidOption(format!(
                "{text:?} is no user id from 0 to 4294967294 and no range such as 1000-1999; names are not looked up"
            ))),
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (uid(first)?, uid(last)?),
            None => (uid(text)?, uid(text)?),
        };
        if first > last {
            return Err(InvalidOption(format!("the range {text:?} ends before it begins; write {last}-{first}")));
        }
        Ok(Self { first, last })
    }
}

/// A mark of packets (`SO_MARK`): these bits under this mask. Written `0x539` (all 32 bits) or `0x500/0xf00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    value: u32,
    mask: u32,
}

impl Mark {
    /// One that is compared in full. `None` for 0, which every packet has that nobody has marked.
    pub const fn whole(value: u32) -> Option<Self> {
        if value == 0 { None } else { Some(Self { value, mask: u32::MAX }) }
    }

    /// The bits.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// Which of them count.
    pub fn mask(&self) -> u32 {
        self.mask
    }

    /// Whether a packet with this mark has it.
    pub fn is_on(&self, mark: u32) -> bool {
        mark & self.mask == self.value
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

impl FromStr for Mark {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let number = |part: &str| {
            let part = part.trim();
            match part.strip_prefix("0x").or(part.strip_prefix("0X")) {
                Some(digits) => u32::from_str_radix(digits, 16).ok(),
                None => part.parse().ok(),
            }
        };
        let (value, mask) = match text.split_once('/') {
            Some((value, mask)) => (number(value), number(mask)),
            None => (number(text), Some(u32::MAX)),
        };
        match (value, mask) {
            (Some(value), Some(mask)) if value != 0 && value & mask == value => Ok(Self { value, mask }),
            (Some(0), Some(_)) => {
                Err(InvalidOption(format!("the mark {text:?} is 0, which every unmarked packet has; give another")))
            }
            (Some(_), Some(_)) => Err(InvalidOption(format!("the mark {text:?} has bits outside of its mask"))),
            _ => Err(InvalidOption(format!("{text:?} is no mark such as 1337, 0x539 or 0x500/0xf00"))),
        }
    }
}

/// The name of a network interface, or of all that begin alike: `eth0`, `cali*` (`cali+`, as iptables writes it).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    name: Cow<'static, str>,
    wildcard: bool,
}

impl Interface {
    /// `lo`.
    pub const LOOPBACK: Self = Self { name: Cow::Borrowed("lo"), wildcard: false };

    /// The name, or its beginning where it stands for several.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it stands for every interface whose name begins so.
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Whether it means the interface of this name. No interface at all is none.
    pub fn is(&self, interface: &str) -> bool {
        if self.wildcard { interface.starts_with(self.name.as_ref()) } else { interface == self.name }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.wildcard { "*" } else { "" })
    }
}

impl FromStr for Interface {
    type Err = InvalidOption;

    /// 1 to 15 bytes (IFNAMSIZ). The kernel allows stranger names than this does: quotes, blanks and stars in a name
    /// would have to survive three languages.
    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        let text = text.trim();
        let (name, wildcard) = match text.strip_suffix(['*', '+']) {
            Some(name) => (name, true),
            None => (text, false),
        };
        // `ip link` shows eth0@if7 for a veth's end; eth0:1 is a label of an address. The kernel's name is the part before.
        if let Some((before, _)) = name.split_once(['@', ':']) {
            return Err(InvalidOption(format!(
                "{text:?} is not the name of an interface: give the part before @ or :, {before:?}"
            )));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        // Of the beginning of a name nft takes no 15 bytes and iptables no 15 with its +.
        let longest = if wildcard { 14 } else { 15 };
        if name.is_empty() || name.len() > longest || name.starts_with('-') || !name.bytes().all(plain) {
            return Err(InvalidOption(format!(
                "{text:?} is no interface such as eth0 or cali*: 1 to 15 letters, digits and any of _ . - (14 before a *)"
            )));
        }
        Ok(Self { name: Cow::Owned(name.to_owned()), wildcard })
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

/// A duration such as `500ms`, `10s`, `5m` or `1h`; a bare number is seconds.
///
/// # Errors
/// When the text is none, or longer than the kernel can count (136 years).
pub fn parse_duration(text: &str) -> Result<Duration, InvalidOption> {
    let text = text.trim();
    let wrong = || InvalidOption(format!("{text:?} is no duration such as 500ms, 10s, 5m or 1h"));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)?;
    if duration.as_secs() > u64::from(u32::MAX) { Err(wrong()) } else { Ok(duration) }
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
        let ranges = ["7", "0-3", "4", "4294967294"].map(|text| text.parse().unwrap());
        let text: Vec<_> = UidRange::normalise(ranges.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0-4", "7", "4294967294"]);
    }

    #[test]
    fn user_ids_are_numbers_that_a_user_can_have() {
        assert!("1000-1999".parse::<UidRange>().unwrap().contains(1999));
        for wrong in ["4294967295", "root", "-1", "5-1", "1-", ""] {
            assert!(wrong.parse::<UidRange>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_mark_is_one_that_an_unmarked_packet_has_not() {
        assert_eq!("1337".parse::<Mark>().unwrap().to_string(), "0x539/0xffffffff");
        let masked: Mark = "0x500/0xf00".parse().unwrap();
        assert!(masked.is_on(0xfff0_05ff) && !masked.is_on(0x400));
        for wrong in ["0", "0/0xff", "0x10/0xf", "x", "1/2/3", "4294967296"] {
            assert!(wrong.parse::<Mark>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn an_interface_is_a_name_and_nothing_that_a_tool_could_take_for_more() {
        assert!("eth0".parse::<Interface>().unwrap().is("eth0") && !"eth0".parse::<Interface>().unwrap().is("eth01"));
        assert!("cali*".parse::<Interface>().unwrap().is("cali9") && "cali+".parse::<Interface>().unwrap().is("cali9"));
        for wrong in [
            "",
            "*",
            "a b",
            "eth0;drop",
            "\"x\"",
            "-j",
            "abcdefghijklmnop",
            "a\nb",
            "e*h",
            "eth0@if7",
            "eth0:1",
            "abcdefghijklmno*",
        ] {
            assert!(wrong.parse::<Interface>().is_err(), "{wrong:?} was taken");
        }
        assert!("eth0@if7".parse::<Interface>().unwrap_err().to_string().contains("part before @ or :, \"eth0\""));
        assert!("abcdefghijklmno".parse::<Interface>().is_ok() && "abcdefghijklmn*".parse::<Interface>().is_ok());
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
    fn durations_have_units_or_are_seconds() {
        for (text, milliseconds) in [("0", 0), ("7", 7_000), ("250ms", 250), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for wrong in ["", "s", "1d", "-1", "1.5s", "99999999999h", "5000000000"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
