//! The TCP sockets of this network namespace, as `/proc` lists them (proc_net_tcp in the kernel's documentation): where a
//! connection has landed, whoever has accepted it.

use std::{fs, io, net::IpAddr};

/// TCP_LISTEN (include/net/tcp_states.h).
const LISTEN: u8 = 10;

/// One socket.
pub(super) struct Open {
    pub(super) local: (IpAddr, u16),
    pub(super) remote: (IpAddr, u16),
    state: u8,
}

impl Open {
    pub(super) fn listens(&self) -> bool {
        self.state == LISTEN
    }
}

/// All of them. `/proc/net` would be those of the main thread.
pub(super) fn all() -> io::Result<Vec<Open>> {
    let mut found = Vec::new();
    for file in ["tcp", "tcp6"] {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn line(text: &str) -> Option<Open> {
    let mut words = text.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
    Some(Open { local, remote, state: u8::from_str_radix(words.next()?, 16).ok()? })
}

/// `0100007F:3A99`: words of 32 bits in the host's order.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    let ip = crate::netlink::address::ip(&bytes)?;
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_proc_is_read() {
        let open =
            line("   0: 0100007F:3A99 0200000A:0050 01 00000000:00000000 00:00000000 00000000  1337 0 1").unwrap();
        assert_eq!(open.local, ("127.0.0.1".parse().unwrap(), 15001));
        assert_eq!(open.remote, ("10.0.0.2".parse().unwrap(), 80));
        assert!(!open.listens());
        let mapped = address("0000000000000000FFFF00000100007F:0001").unwrap();
        assert_eq!(mapped.0.to_string(), "127.0.0.1");
        assert_eq!(line("nonsense").map(|open| open.local.1), None);
    }
}
