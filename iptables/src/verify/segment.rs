//! TCP segments in Ethernet frames, written and read by hand: the outside host that `verify` has not got.

use std::net::IpAddr;

/// FIN, SYN, RST, ACK (RFC 9293 section 3.1).
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERNET: usize = 14;

/// What of a segment matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: (IpAddr, u16),
    pub(super) to: (IpAddr, u16),
    /// `false`: UDP, without sequence, acknowledgement and flags.
    pub(super) tcp: bool,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
}

impl Segment {
    /// The TCP segment as a frame; `None` when the addresses are of two families.
    pub(super) fn frame(&self, from_hardware: [u8; 6], to_hardware: [u8; 6]) -> Option<Vec<u8>> {
        let mut segment = Vec::with_capacity(20);
        segment.extend(self.from.1.to_be_bytes());
        segment.extend(self.to.1.to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledgement.to_be_bytes());
        // Header length, flags, window, checksum, urgent pointer.
        segment.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        let (kind, header, addresses) = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum(&header).to_be_bytes();
                header.splice(10..12, sum);
                (IPV4, header, [from.octets(), to.octets()].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
                header.extend(from.octets());
                header.extend(to.octets());
                (IPV6, header, [from.octets(), to.octets()].concat())
            }
            _ => return None,
        };
        let pseudo = [addresses, vec![0, TCP, 0, 20]].concat();
        let sum = checksum(&[pseudo, segment.clone()].concat()).to_be_bytes();
        segment.splice(16..18, sum);
        Some([to_hardware.to_vec(), from_hardware.to_vec(), kind.to_vec(), header, segment].concat())
    }

    /// The TCP or UDP packet in a frame, if it is one without IPv6 extension headers.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (kind, packet) = (frame.get(12..ETHERNET)?, frame.get(ETHERNET..)?);
        let address = |at: usize, length: usize| crate::netlink::address::ip(packet.get(at..at + length)?);
        let (protocol, from, to, header) = if kind == IPV4 {
            let length = usize::from(packet.first()? & 0xf) * 4;
            (*packet.get(9)?, address(12, 4)?, address(16, 4)?, length)
        } else if kind == IPV6 {
            (*packet.get(6)?, address(8, 16)?, address(24, 16)?, 40)
        } else {
            return None;
        };
        let segment = packet.get(header..)?;
        let short = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
        let tcp = protocol == TCP;
        if !tcp && protocol != UDP {
            return None;
        }
        Some(Self {
            from: (from, short(0)?),
            to: (to, short(2)?),
            tcp,
            flags: if tcp { *segment.get(13)? } else { 0 },
            sequence: if tcp { long(4)? } else { 0 },
            acknowledgement: if tcp { long(8)? } else { 0 },
        })
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // At most 16 bits remain.
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        for (from, to) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let segment = Segment {
                from: (from.parse().unwrap(), 1),
                to: (to.parse().unwrap(), 65535),
                tcp: true,
                flags: SYN | ACK,
                sequence: u32::MAX,
                acknowledgement: 7,
            };
            let frame = segment.frame([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).unwrap();
            assert_eq!(Segment::read(&frame), Some(segment));
            for length in 0..frame.len() - 6 {
                assert_eq!(Segment::read(&frame[..length]), None, "{length} bytes of it");
            }
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071 section 3: 0001 f203 f4f5 f6f7 sum to ddf2.
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
