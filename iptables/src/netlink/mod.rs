//! Netlink (netlink(7)): the few requests that the tools do not make for us, so that an image without iproute2 and
//! conntrack-tools will do. One request, one answer; all integers of the headers are in the host's order.
//!
//! By hand, since the crates for it know some of these messages and none knows all: time-out policies are in no crate.

pub(crate) mod address;
pub(crate) mod conntrack;
pub(crate) mod link;
pub(crate) mod nf_tables;
pub(crate) mod routing;
pub(crate) mod timeout;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

use crate::Error;

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Fail when it is there.
pub(crate) const CREATE_NEW: u16 = 0x400 | 0x200;
/// Make it, or make it so.
pub(crate) const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

/// `AF_INET` and `AF_INET6` as messages have them.
pub(crate) fn family_number(family: crate::plan::Family) -> u8 {
    match family {
        crate::plan::Family::V4 => 2,
        crate::plan::Family::V6 => 10,
    }
}

/// A connection to one part of the kernel.
pub(crate) struct Kernel(OwnedFd);

impl Kernel {
    /// Addresses, routes, rules and interfaces (rtnetlink(7)).
    pub(crate) fn routing() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Connection tracking, its time-out policies, nf_tables.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The kernel answers before sendto returns; the limit is for the case that it does not.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self(socket))
    }

    /// Has the kernel do something.
    pub(crate) fn ask(&self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)?;
        let mut buffer = vec![0; 8192];
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for (kind, payload) in messages(buffer.get(..length).unwrap_or_default()) {
            if kind == NLMSG_ERROR {
                return outcome(payload);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was no acknowledgement"))
    }

    /// Has the kernel tell all that it has of something: the message's payload for each.
    pub(crate) fn list(&self, kind: u16, body: &Body) -> io::Result<Vec<Vec<u8>>> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
        let mut all = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for (kind, payload) in messages(buffer.get(..length).unwrap_or_default()) {
                match kind {
                    NLMSG_DONE => return Ok(all),
                    NLMSG_ERROR => {
                        outcome(payload)?;
                        return Ok(all);
                    }
                    _ => all.push(payload.to_vec()),
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + body.0.len());
        message.extend(u32::try_from(HEADER + body.0.len()).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]); // sequence number and port: one request, one answer
        message.extend(&body.0);
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }
}

/// What follows a message's header: a structure, then attributes.
#[derive(Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    /// One that begins with these bytes, a multiple of four long.
    pub(crate) fn new(start: &[u8]) -> Self {
        Self(start.to_vec())
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // No value here comes near the limit of 65,531 bytes.
        self.0.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute that consists of attributes.
    pub(crate) fn with_nested(self, kind: u16, inner: Body) -> Self {
        self.with(kind | NLA_F_NESTED, &inner.0)
    }

    /// Adds a text with its final zero.
    pub(crate) fn with_text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), &[0]].concat())
    }
}

/// The attributes after a structure of `skip` bytes.
pub(crate) fn attributes(payload: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// One attribute of them.
pub(crate) fn attribute(payload: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    attributes(payload, skip).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// An integer in the host's order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

/// An integer in the host's order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let kind = u16_at(rest, 4)?;
        let payload = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// 0, or a negated errno.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was cut off")),
    }
}

/// Whether the thing was not there, or its whole family is not.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    let absent = [
        Errno::ENOENT,
        Errno::ESRCH,
        Errno::ENODEV,
        Errno::EADDRNOTAVAIL,
        Errno::EOPNOTSUPP,
        Errno::EAFNOSUPPORT,
        Errno::EPROTONOSUPPORT,
    ];
    error.raw_os_error().is_some_and(|number| absent.contains(&Errno::from_raw(number)))
}

/// The error of a refused request.
pub(crate) fn refused(what: &str, look_at: &'static str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |source| {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Error::NotPermitted { command: format!("netlink: {what}"), said: source.to_string() }
        } else {
            Error::System { what, source, remedy: look_at }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put_in() {
        let inner = Body::default().with(1, &[9]);
        let body = Body::new(&[1, 2, 3, 4]).with(7, &[5, 6, 7]).with_text(8, "ab").with_nested(9, inner);
        let found: Vec<_> = attributes(&body.0, 4).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(found[0], (7, vec![5, 6, 7]));
        assert_eq!(found[1], (8, b"ab\0".to_vec()));
        assert_eq!(attribute(&found[2].1, 0, 1), Some([9].as_slice()));
        assert_eq!(attribute(&body.0, 4, 3), None);
    }

    #[test]
    fn what_is_cut_off_is_no_attribute_and_no_message() {
        for cut in [&[][..], &[8], &[8, 0, 1], &[8, 0, 1, 0, 1], &[0, 0, 0, 0], &[3, 0, 1, 0]] {
            assert_eq!(attributes(cut, 0).count(), 0, "{cut:?}");
            assert_eq!(messages(cut).count(), 0, "{cut:?}");
        }
        assert!(outcome(&[]).is_err());
    }
}
