//! Whom `verify` stands in for: the sidecar as a listener, the application and the sidecar as callers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Options, options::Mode, plan::Family};

pub(super) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Listeners on the ports of the sidecar on which nobody listens yet.
pub(super) struct StandIn {
    _listeners: Vec<Socket>,
}

impl StandIn {
    pub(super) fn listen(options: &Options) -> io::Result<Self> {
        let transparent = options.mode == Mode::Tproxy;
        let mut listeners = Vec::new();
        let inbound = listener(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), options.inbound_port), transparent);
        match inbound {
            Ok(None) | Err(_) => {
                listeners.extend(listener(
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), options.inbound_port),
                    transparent,
                )?);
            }
            Ok(listener) => listeners.extend(listener),
        }
        for family in options.families() {
            let address = SocketAddr::new(loopback(*family), options.outbound_port);
            match listener(address, false) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                other => listeners.extend(other?),
            }
        }
        Ok(Self { _listeners: listeners })
    }
}

/// `None` when somebody listens there.
pub(super) fn listener(address: SocketAddr, transparent: bool) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if transparent {
        // One of IPv6 is that for both (linux/net/ipv6/ipv6_sockglue.c: both set the same bit).
        socket.set_ip_transparent_v4(true)?;
    }
    match socket.bind(&address.into()).and_then(|()| socket.listen(16)) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whose sockets this thread makes, for as long as it lives.
pub(super) struct Disguise {
    uid: Uid,
    gid: Gid,
}

impl Disguise {
    /// `None` when we may not.
    pub(super) fn put_on(uid: Option<u32>, gid: Option<u32>) -> Option<Self> {
        let disguise = Self { uid: geteuid(), gid: getegid() };
        // Both calls give back what was before, and so does one that cannot succeed: only asking again tells.
        if let Some(gid) = gid {
            setfsgid(Gid::from_raw(gid));
            if setfsgid(Gid::from_raw(u32::MAX)).as_raw() != gid {
                return None;
            }
        }
        if let Some(uid) = uid {
            setfsuid(Uid::from_raw(uid));
            if setfsuid(Uid::from_raw(u32::MAX)).as_raw() != uid {
                return None;
            }
        }
        Some(disguise)
    }

    /// The first of the signs by which the sidecar is known; a mark is the socket's.
    pub(super) fn as_proxy(options: &Options) -> Option<Self> {
        Self::put_on(options.proxy.uid, if options.proxy.uid.is_none() { options.proxy.gid } else { None })
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
    }
}
