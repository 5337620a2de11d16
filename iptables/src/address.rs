//! The address `::6/128` on `lo`, from which the sidecar's IPv6 leg to its application comes. IPv4 needs none: all of
//! 127.0.0.0/8 is on `lo`.
//!
//! It is spoken to the kernel by rtnetlink itself (rtnetlink(7)), so that an image without iproute2 will do. It is made
//! *deprecated* (preferred lifetime 0), so that nobody who has not bound it gets it as a source: ::6 is of global scope,
//! and a pod whose only other address is link-local would otherwise talk to the world from it.

use std::{
    fs, io,
    net::Ipv6Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
        sockopt,
    },
    sys::time::TimeVal,
};

use crate::Error;

/// The source of the sidecar's leg to its application over IPv6; Istio's.
pub const LEG_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

// linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const AF_INET6: u8 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;

/// Adds the address unless it is there. `Ok(true)` when this call added it. A host without IPv6 gets a notice and
/// nothing else: IPv4 works on.
pub(crate) fn add(notices: &mut Vec<String>) -> Result<bool, Error> {
    let without =
        |why: &str| format!("IPv6 calls to the application have no source address ::6 on lo: {why}; IPv4 is complete");
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(text) if text.trim() == "1" => {
            notices.push(without("net.ipv6.conf.lo.disable_ipv6 is 1"));
            return Ok(false);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            notices.push(without("this kernel has no IPv6"));
            return Ok(false);
        }
        _ => {}
    }
    match change(RTM_NEWADDR, NLM_F_CREATE_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(failed("add ::6/128 to lo", source)),
    }
}

/// Removes the address if it is there.
pub(crate) fn remove() -> Result<(), Error> {
    match change(RTM_DELADDR, 0) {
        // EADDRNOTAVAIL: not there. EOPNOTSUPP, EAFNOSUPPORT: no IPv6 in this kernel.
        Err(source) if !matches!(source.raw_os_error(), Some(99 | 95 | 97)) => {
            Err(failed("remove ::6/128 from lo", source))
        }
        _ => Ok(()),
    }
}

fn failed(what: &str, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied {
        Error::NotPermitted { command: format!("ip -6 addr: {what}"), said: source.to_string() }
    } else {
        Error::System {
            what: what.to_owned(),
            source,
            remedy: "look at `ip -6 addr show dev lo`; nothing was left half done",
        }
    }
}

/// One request to the kernel and its answer.
fn change(kind: u16, flags: u16) -> io::Result<()> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // The kernel answers before sendto returns; the limit is for the case that it does not.
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    let request = request(kind, flags, if_nametoindex("lo")?);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    outcome(answer.get(..length).unwrap_or_default())
}

/// `struct nlmsghdr`, `struct ifaddrmsg`, then the attributes; all integers in the host's order.
fn request(kind: u16, flags: u16, interface: u32) -> Vec<u8> {
    let mut body = vec![AF_INET6, 128, 0, 0];
    body.extend(interface.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        push_attribute(&mut body, attribute, &LEG_ADDRESS_V6.octets());
    }
    if kind == RTM_NEWADDR {
        // struct ifa_cacheinfo: preferred (never), valid (for ever), created, updated.
        let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes).concat();
        push_attribute(&mut body, IFA_CACHEINFO, &lifetimes);
    }
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST_ACK | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend(body);
    message
}

/// Every value here is a multiple of four long, so no padding is needed.
fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// The answer is an `NLMSG_ERROR` whose first integer is 0 or a negated errno.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let number = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(number)) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was no acknowledgement")),
    }
}
